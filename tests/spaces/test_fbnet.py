"""FBNet's layers are the published ones, layer by layer and operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas import layers, resources
from hwnas.errors import ConfigError
from hwnas.formats.hw_nas_bench import HWNASBench
from hwnas.op import OpSpec
from hwnas.space import load_space

IMAGENET = {
    "input_size": 224, "classes": 1000, "stem_stride": 2, "strides": [1, 2, 2, 2, 1, 2, 1], "head_width": 1984,
}  # fmt: skip


@pytest.mark.parametrize(("options", "keys"), [({"classes": 100}, "cifar100_block_keys"), (IMAGENET, "imagenet_block_keys")])
def test_every_choice_of_every_layer_is_the_published_block(test_data: Path, options: dict[str, Any], keys: str) -> None:
    space = load_space("fbnet", options)
    published = np.load(test_data / "fbnet_hw.npz")
    form = HWNASBench(column="edgegpu")
    found: dict[tuple[int, int], str] = {}
    for site in space.sites:
        if site.when:
            (decision,) = site.when
            (found[decision],) = form.recipe(site.op) or {}
    assert len(found) == 22 * 9
    assert [[found[layer, choice] for choice in range(9)] for layer in range(22)] == published[keys].tolist()
    assert [slot.choices for slot in space.slots] == [tuple(published["op_names"].tolist())] * 22


def test_a_skip_is_the_identity_where_it_can_be() -> None:
    space = load_space("fbnet")
    skips = [next(s.op for s in space.sites if s.when == ((layer, 8),)) for layer in range(22)]
    changing = [layer for layer, op in enumerate(skips) if op.kind == "fbnet_skip"]
    assert changing == [1, 5, 9, 13, 17, 21]
    assert all(op.kind == "identity" for layer, op in enumerate(skips) if layer not in changing)
    without = load_space("fbnet", {"shape_changing_skips": False})
    assert [len(slot.choices) for slot in without.slots] == [8 if layer in changing else 9 for layer in range(22)]
    assert not any(op.kind == "fbnet_skip" for op in without.operators())


def test_counts_of_a_block_by_hand() -> None:
    op = OpSpec("fbnet_block", 16, 24, 32, 32, kernel=5, stride=2, hidden=16, groups=2)
    found = resources.count(op)
    grouped = 32 * 32 * 16 * 16 // 2 + 16 * 16 * 16 * 24 // 2
    assert (found.macs_pointwise, found.macs_depthwise, found.macs_dense) == (grouped, 16 * 16 * 16 * 25, 0)
    assert found.params == 16 * 16 // 2 + 16 * 25 + 16 * 24 // 2 + 2 * (16 + 16 + 24)
    whole = resources.count(OpSpec("fbnet_block", 16, 24, 32, 32, kernel=5, stride=2, hidden=16))
    assert whole.macs_pointwise == 2 * grouped  # the first 1x1 convolution stands at expansion 1 too


def test_the_second_convolution_in_groups_sees_both_groups() -> None:
    block = layers.build(OpSpec("fbnet_block", 8, 16, 4, 4, kernel=3, hidden=8, groups=2)).eval()
    shuffled = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert layers.ChannelShuffle(2, (8, 1, 1))(shuffled).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(layers.ChannelShuffle(2, (8, 1, 1))(shuffled), nn.ChannelShuffle(2)(shuffled))
    image = torch.zeros(1, 8, 4, 4, requires_grad=True)
    (reach,) = torch.autograd.grad(block(image)[:, :8].sum(), image, allow_unused=True)
    module = nn.Sequential(
        nn.Conv2d(8, 8, 1, groups=2, bias=False), layers.ChannelShuffle(2, (8, 4, 4)), nn.Conv2d(8, 8, 1, groups=2, bias=False)
    )
    (mixed,) = torch.autograd.grad(module(image)[:, :4].sum(), image)
    assert reach is not None and bool((mixed != 0).any(dim=(2, 3)).all())
    plain = nn.Sequential(module[0], module[2])
    (apart,) = torch.autograd.grad(plain(image)[:, :4].sum(), image)
    assert not bool((apart[:, 4:] != 0).any())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": [16, 24]}, "widths, depths and strides"), ({"stem_width": 15}, "even"), ({"strides": [3] * 7}, "strides"),
        ({"input_size": 4}, "input_size"), ({"depths": [0, 4, 4, 4, 4, 4, 1]}, "depths"), ({"width": 3}, "'widths'"),
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_space("fbnet", options)
