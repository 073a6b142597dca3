"""MONAS's CondenseNet: the networks that CondenseNet published have its counts; widths multiply and every reachable one is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas import layers, resources
from hwnas.errors import ConfigError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("condensenet")


def as_published(op: OpSpec) -> int:
    """CondenseNet's operations: multiply-adds, one a number that a ReLU gives, and one a number that a pooling reads."""
    with torch.device("meta"):
        module, image = layers.build(op).eval(), torch.zeros(1, op.c_in, op.height, op.width)
    beside = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal beside
        beside += out.numel() if isinstance(layer, nn.ReLU) else inputs[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.ReLU | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            layer.register_forward_hook(add)
    module(image)
    return int(resources.macs(op)) + beside


@pytest.mark.parametrize(
    ("layers_", "growths", "operations", "params"),
    [
        (8, (8, 16, 32), "28.6", "0.22"),
        (20, (8, 16, 32), "116.7", "0.95"),
        pytest.param(12, (8, 16, 32), "51.9", "0.41", marks=pytest.mark.slow),
        pytest.param(14, (8, 16, 32), "65.8", "0.52", marks=pytest.mark.slow),
        pytest.param(16, (8, 16, 32), "81.3", "0.65", marks=pytest.mark.slow),
        pytest.param(18, (8, 16, 32), "98.2", "0.79", marks=pytest.mark.slow),
        pytest.param(30, (12, 24, 48), "512.7", "4.22", marks=pytest.mark.slow),
    ],
)
def test_published_counts(layers_: int, growths: tuple[int, ...], operations: str, params: str) -> None:
    """CondenseNet-50 to -182, in 10^6 (the name counts two convolutions a layer, the stem and the linear layer)."""
    space = load_space("condensenet", {"stages": [layers_], "growths": sorted(set(growths))})
    network = space.lower([choice for growth in range(3) for choice in (0, growth)])
    assert f"{sum(map(as_published, network)) / 1e6:.1f}" == operations
    assert f"{sum(map(resources.params, network)) / 1e6:.2f}" == params


def test_the_published_one_of_the_candidates(space: SearchSpace) -> None:
    network = space.lower(space.parse("b1.stage=14 b1.growth=8 b2.stage=14 b2.growth=16 b3.stage=14 b3.growth=32"))
    assert [op.kind for op in network] == ["conv", *["condense_layer"] * 14, "avg_pool"] + (
        ["condense_layer"] * 14 + ["avg_pool"] + ["condense_layer"] * 14 + ["bn_relu_classifier"]
    )
    assert sum(map(as_published, network)) == 65_816_384
    assert sum(map(resources.macs, network)) == 62_381_888  # ours: convolutions and the linear layer alone
    assert sum(map(resources.params, network)) == 520_202


def test_counts_of_a_layer_by_hand() -> None:
    counted = resources.count(OpSpec("condense_layer", 24, 32, 16, 16, 3, hidden=32, groups=4))
    learned, last = 24 * 32 // 4, 32 * 8 * 9 // 4
    assert counted.macs == 256 * (learned + last)
    assert counted.params == learned + last + 2 * 24 + 2 * 32


def test_what_goes_into_a_layer_comes_out_before_what_it_makes() -> None:
    module = layers.build(OpSpec("condense_layer", 8, 12, 4, 4, 3, hidden=16, groups=4)).eval()
    image = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    out = module(image)
    assert out.shape == (2, 12, 4, 4) and torch.equal(out[:, :8], image)
    assert bool((out[:, 8:] != 0).any())


def test_every_architecture_is_a_network_of_its_own_widths(space: SearchSpace, rng: np.random.Generator) -> None:
    assert space.size == 25**3
    for arch in [tuple(row) for row in rng.integers(0, 5, (200, 6)).tolist()] + [(0,) * 6, (4,) * 6]:
        width = 2 * int(space.slots[1].choices[arch[1]])
        ops = iter(space.lower(arch))
        assert next(ops).c_out == width
        for block in range(3):
            growth = int(space.slots[2 * block + 1].choices[arch[2 * block + 1]])
            for _ in range(int(space.slots[2 * block].choices[arch[2 * block]])):
                op = next(ops)
                assert (op.c_in, op.c_out, op.hidden, op.height) == (width, width + growth, 4 * growth, 32 >> block)
                width += growth
            assert next(ops).c_in == width
        assert not list(ops)
    assert len({space.identity(arch) for arch in map(tuple, rng.integers(0, 5, (50, 6)).tolist())}) > 45


def test_no_site_is_unreachable() -> None:
    small = load_space("condensenet", {"input_size": 8, "stages": [1, 2], "growths": [4, 8]})
    reached = {i for arch in small.all() for i in small.alive(arch)}
    assert reached == set(range(len(small.sites)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"growths": [6]}, "multiples of 4"), ({"growths": []}, "growths"), ({"stages": [0]}, "stages"), ({"blocks": 4}, "blocks"),
        ({"stages": [2, 2]}, "twice"),
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_space("condensenet", options)
