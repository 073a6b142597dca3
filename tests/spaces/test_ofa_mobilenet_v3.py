"""Once-for-all's space: depth cuts a stage short, weights are shared among depths, the widths are the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwnas import layers, resources
from hwnas.cost import CostModel, _Terms
from hwnas.errors import ConfigError, SpaceError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.spaces.ofa_mobilenet_v3 import SqueezeExcite, make_divisible


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("ofa_mobilenet_v3")


def test_blocks_behind_the_depth_are_not_in_the_network(space: SearchSpace) -> None:
    names = [slot.name for slot in space.slots]
    assert names[:6] == ["s1.depth", "s1.b1", "s1.b2", "s1.b3", "s1.b4", "s2.depth"] and len(names) == 25
    for depth in range(3):
        arch = [depth if name.endswith("depth") else 4 for name in names]
        blocks = [op for op in space.lower(arch) if op.kind.startswith("mbconv")]
        assert len(blocks) == 1 + 5 * (depth + 2)
        other = [depth if name.endswith("depth") else 8 if name.endswith("b4") and depth < 2 else 4 for name in names]
        assert space.alive(other) == space.alive(arch)


def test_a_block_is_one_site_at_every_depth(space: SearchSpace) -> None:
    shallow, deep = ([depth if slot.name.endswith("depth") else 0 for slot in space.slots] for depth in (0, 2))
    exits = {i for i, site in enumerate(space.sites) if site.op.kind == "identity"}
    assert set(space.alive(shallow)) - exits < set(space.alive(deep))


def test_widths_of_the_published_multipliers() -> None:
    def widths(width: float) -> list[int]:
        sites = load_space("ofa_mobilenet_v3", {"width": width}).sites
        return list(dict.fromkeys(site.op.c_out for site in sites))

    assert widths(1.0) == [16, 24, 40, 80, 112, 160, 960, 1280, 1000]
    assert widths(1.2) == [24, 32, 48, 96, 136, 192, 1152, 1536, 1000]
    assert [make_divisible(channels) for channels in (1, 11, 12, 19.2, 134.4)] == [8, 16, 16, 24, 136]


def test_counts_of_squeeze_and_excitation_by_hand() -> None:
    plain = resources.count(OpSpec("mbconv_hswish", 16, 24, 8, 8, kernel=3, hidden=64))
    squeezed = resources.count(OpSpec("mbconv_se_hswish", 16, 24, 8, 8, kernel=3, hidden=64))
    assert squeezed.macs - plain.macs == 64 * 16 + 16 * 64
    assert squeezed.params - plain.params == 64 * 16 + 16 + 16 * 64 + 64


def test_the_gate_is_between_nothing_and_all_of_a_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    module = SqueezeExcite(32)
    layers.initialise(module, generator)
    images = torch.randn(2, 32, 5, 5, generator=generator)
    reduce, expand = module.gate[1], module.gate[3]
    assert isinstance(reduce, nn.Conv2d) and isinstance(expand, nn.Conv2d)
    squeezed = torch.relu(images.mean((2, 3)) @ reduce.weight[:, :, 0, 0].T)
    gate = (squeezed @ expand.weight[:, :, 0, 0].T / 6 + 0.5).clamp(0, 1)  # biases begin at 0
    torch.testing.assert_close(module(images), images * gate[:, :, None, None])


def test_the_cost_model_enumerates_the_depths_only(space: SearchSpace) -> None:
    terms = CostModel(space, lambda op: 1.0)._terms
    assert isinstance(terms, _Terms)
    assert len(terms.live_slots) == 5
    assert all(space.slots[slot].name.endswith("depth") for slot in terms.live_slots)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"width": 0}, "width"), ({"kernels": [4]}, "kernels"), ({"depths": []}, "depths"), ({"stages": 6}, "stages"), ({"size": 3}, "size")],
)
def test_options_out_of_range(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_space("ofa_mobilenet_v3", options)


@pytest.mark.parametrize("key", ["global_pool:8-8:7x7:s2", "global_pool:8-16:7x7:s7", "linear:8-10:2x2"])
def test_operators_of_sizes_that_they_cannot_have(key: str) -> None:
    with pytest.raises(SpaceError, match=key):
        layers.build(OpSpec.parse(key))
