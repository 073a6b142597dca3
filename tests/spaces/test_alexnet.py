"""MONAS's AlexNet: its candidates, and what a network of it consists of."""

from __future__ import annotations

import pytest

from hwnas import resources
from hwnas.errors import ConfigError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("alexnet")


def test_five_layers_of_twenty_candidates(space: SearchSpace) -> None:
    assert [(slot.name, slot.choices) for slot in space.slots[:2]] == [
        ("conv1.filters", ("8", "16", "32", "48", "64")), ("conv1.kernel", ("3", "5", "7", "9")),
    ]  # fmt: skip
    assert space.size == 20**5


def test_a_network_layer_by_layer(space: SearchSpace) -> None:
    arch = space.parse(
        "conv1.filters=8 conv1.kernel=9 conv2.filters=64 conv2.kernel=3 conv3.filters=16 conv3.kernel=5 "
        "conv4.filters=16 conv4.kernel=7 conv5.filters=48 conv5.kernel=3"
    )
    assert list(map(str, space.lower(arch))) == [
        "conv_bn_relu:3-8:32x32:k9", "max_pool:8-8:32x32:k3:s2", "conv_bn_relu:8-64:16x16:k3", "max_pool:64-64:16x16:k3:s2",
        "conv_bn_relu:64-16:8x8:k5", "conv_bn_relu:16-16:8x8:k7", "conv_bn_relu:16-48:8x8:k3", "max_pool:48-48:8x8:k3:s2",
        "alexnet_head:48-10:4x4:s4:e256",
    ]  # fmt: skip


def test_a_convolution_hangs_on_the_filters_before_it_its_own_and_its_kernel(space: SearchSpace) -> None:
    hanging = [len(site.when) for site in space.sites if site.op.kind == "conv_bn_relu"]
    assert hanging == [2] * 20 + [3] * 400
    assert len(space.operators()) == 20 + 100 + 100 + 3 * 5 + 5  # the last three convolutions are the same operators


def test_counts_of_the_head_by_hand() -> None:
    counted = resources.count(OpSpec("alexnet_head", 8, 10, 4, 4, stride=4, hidden=32))
    assert (counted.macs, counted.params) == (128 * 32 + 32 * 32 + 320, 128 * 32 + 32 * 32 + 320 + 32 + 32 + 10)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"filters": []}, "filters"), ({"kernels": [4]}, "kernels"), ({"filters": [0]}, "filters"), ({"input_size": 7}, "input_size")],
)
def test_options_out_of_range(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_space("alexnet", options)
