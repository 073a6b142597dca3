"""DPP-Net's cells: the published counts, what prefixes are, and that a learned group convolution ends up as a plain one in groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hwnas import layers, resources
from hwnas.errors import ConfigError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.spaces.dense_cell import END, DenseCell


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("dense_cell", DenseCell.small)


def cells(space: SearchSpace) -> dict[int, set[bytes]]:
    """The distinct networks by the number of layers of their cells."""
    found: dict[int, set[bytes]] = {}
    for arch in space.all():
        labels = [slot.choices[choice] for slot, choice in zip(space.slots, arch, strict=True)]
        length = labels.index(END) if END in labels else len(labels)
        found.setdefault(length, set()).add(space.identity(arch))
    return found


def test_324_cells_of_four_layers_and_the_shorter_ones(space: SearchSpace) -> None:
    found = cells(space)
    assert {length: len(networks) for length, networks in found.items()} == {2: 18, 3: 54, 4: 324}
    assert len(found[2] & found[3]) == 18  # a third layer that is the identity
    assert len(set().union(*found.values())) == 18 + 36 + 324


def test_growing_layer_by_layer_gives_3_18_54_324_972_5832() -> None:
    space = load_space("dense_cell", {**DenseCell.small, "length": 6})
    prefixes: list[tuple[int, ...]] = [()]
    for length, number in enumerate((3, 18, 54, 324, 972, 5832), 1):
        longer = [extension for prefix in prefixes for extension in space.extensions(prefix)]
        assert len(longer) == len(set(longer)) == number
        assert {cell[: length - 1] for cell in longer} == set(prefixes)
        prefixes = longer


@pytest.mark.parametrize("prefix", [(0, 1), (1, 4, 2), (2, 5, 0, 3)])
def test_a_prefix_is_the_shorter_cell(space: SearchSpace, prefix: tuple[int, ...]) -> None:
    arch = space.completed(prefix)
    assert arch[: len(prefix)] == prefix
    assert all(space.slots[slot].choices[arch[slot]] == END for slot in range(len(prefix), 4))
    of_a_cell = [site for site in space.graph(arch) if site.output.startswith("s1.c1.") and site.op.kind != "identity"]
    made = [layer for layer, choice in enumerate(prefix) if space.slots[layer].choices[choice] != "identity"]
    assert len(of_a_cell) == len(made)


def test_widths_of_a_cell_and_of_the_features() -> None:
    space = load_space("dense_cell", {"input_size": 16, "depths": [2, 1], "growths": [8, 16]})
    convolutions = [site.op for site in space.graph((0, 0, 0, 0)) if site.op.kind == "conv"]
    assert [(op.c_in, op.c_out, op.height) for op in convolutions] == [
        (16, 32, 16), (32, 8, 16), (24, 32, 16), (32, 8, 16), (32, 64, 8), (64, 16, 8),
    ]  # fmt: skip
    assert [site.op.c_out for site in space.sites if site.op.kind == "concat"] == [24, 32, 48]
    assert [op.c_out for op in (site.op for site in space.graph(space.completed((0, 0)))) if op.kind == "conv"] == [8, 8, 16]


def test_the_full_size_has_42_cells() -> None:
    space = load_space("dense_cell", {"depths": [14, 14, 14], "growths": [8, 16, 32]})
    assert sum(site.op.kind == "concat" for site in space.sites) == 42
    assert space.sites[-1].op.c_in == 16 + 14 * (8 + 16 + 32)


def test_a_learned_group_convolution_costs_what_one_in_groups_costs(space: SearchSpace) -> None:
    learned, plain = (OpSpec(kind, 24, 32, 8, 8, groups=4) for kind in ("learned_group_conv", "conv"))
    assert resources.macs(learned) == resources.macs(plain)
    assert resources.params(learned) == resources.params(plain)


def test_its_exported_network_holds_no_dense_weights(space: SearchSpace) -> None:
    network = Network(space, space.completed((0, 4)), torch.Generator().manual_seed(0)).eval()
    deployed = layers.finished(network)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(deployed(images), network(images), rtol=1e-5, atol=1e-6)
    assert not any(isinstance(module, layers.Scheduled) for module in deployed.modules())
    assert sum(p.numel() for p in deployed.parameters()) == sum(map(resources.params, space.lower(network.arch)))
    assert any(isinstance(module, layers.Scheduled) for module in network.modules())


@pytest.mark.parametrize(
    ("options", "says"), [({"growths": [8]}, "one growth a stage"), ({"depths": [1], "growths": [6]}, "multiple of 4")]
)
def test_bad_options(options: dict[str, list[int]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_space("dense_cell", options)


def test_longer_cells_cost_more_macs(space: SearchSpace) -> None:
    macs = [sum(map(resources.macs, space.lower(space.completed(prefix)))) for prefix in ((0, 1), (0, 1, 0, 1))]
    assert all(a < b for a, b in pairwise(macs))
