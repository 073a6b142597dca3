"""ENAS's cells: their number, the loose ends, the weights that branches share."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas import layers
from hwnas.cost import CostModel
from hwnas.errors import ConfigError, SpaceError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.supernet import Supernet


@pytest.fixture(scope="module")
def published() -> SearchSpace:
    return load_space("enas_micro")


@pytest.fixture(scope="module")
def small() -> SearchSpace:
    return load_space("enas_micro", {"input_size": 8, "width": 4, "nodes": 2, "cells": 1, "reductions": 1})


def arch_of(space: SearchSpace, **cells: str) -> tuple[int, ...]:
    """Cells as `in1 sep_3x3 in2 identity | ...`, node by node."""
    text = []
    for cell, nodes in cells.items():
        for number, node in enumerate(nodes.split("|"), 1):
            a, op_a, b, op_b = node.split()
            name = f"{cell}.n{number}"
            text += [f"{name}.a.from={a}", f"{name}.a.op={op_a}", f"{name}.b.from={b}", f"{name}.b.op={op_b}"]
    return space.parse(" ".join(text))


def loose(space: SearchSpace, arch: tuple[int, ...]) -> dict[str, list[str]]:
    """Cell -> the values that are projected."""
    found: dict[str, list[str]] = {}
    for site in space.graph(arch):
        if site.op.kind == "conv":
            cell, value = site.inputs[0].removesuffix(".relu").removesuffix(".half").rsplit(".", 1)
            found.setdefault(cell, []).append(value)
    return found


def test_the_published_number_of_cells(published: SearchSpace) -> None:
    assert published.size == (5_062_500_000_000) ** 2  # 5.06e12 a cell
    assert published.size == ((2 * 3 * 4 * 5 * 6) ** 2 * 5**10) ** 2
    assert load_space("enas_micro", {"operators": "nao"}).size == ((2 * 3 * 4 * 5 * 6) ** 2 * 11**10) ** 2


def test_six_normal_and_two_reduction_cells(published: SearchSpace) -> None:
    shapes = {node: published.node_shape(node) for node in published.writers if node.endswith(".out")}
    assert shapes == {
        "s1.c1.out": (20, 32, 32), "s1.c2.out": (20, 32, 32), "s2.c1.out": (40, 16, 16), "s2.c2.out": (40, 16, 16),
        "s2.c3.out": (40, 16, 16), "s3.c1.out": (80, 8, 8), "s3.c2.out": (80, 8, 8), "s3.c3.out": (80, 8, 8),
    }  # fmt: skip


def test_slots_are_four_a_node(published: SearchSpace) -> None:
    assert len(published.slots) == 40
    assert [slot.name for slot in published.slots[4:8]] == ["normal.n2.a.from", "normal.n2.a.op", "normal.n2.b.from", "normal.n2.b.op"]
    assert published.slots[20].name == "reduction.n1.a.from"
    assert [slot.choices for slot in published.slots[4:6]] == [
        ("in1", "in2", "n1"), ("sep_3x3", "sep_5x5", "avg_3x3", "max_3x3", "identity"),
    ]  # fmt: skip
    assert {len(site.when) for site in published.sites} == {0, 2}


def test_what_no_node_reads_is_projected(small: SearchSpace) -> None:
    arch = arch_of(
        small, normal="in1 sep_3x3 in1 identity | in1 avg_3x3 in1 max_3x3", reduction="in1 identity in2 sep_5x5 | n1 max_3x3 in2 sep_3x3"
    )
    assert loose(small, arch) == {"s1.c1": ["in2", "n1", "n2"], "s2.c1": ["n2"], "s2.c2": ["in2", "n1", "n2"]}
    other = arch_of(
        small, normal="in1 sep_3x3 in2 identity | n1 avg_3x3 n1 max_3x3", reduction="in2 identity in2 sep_5x5 | in2 max_3x3 in2 sep_3x3"
    )
    assert loose(small, other) == {"s1.c1": ["n2"], "s2.c1": ["in1", "n1", "n2"], "s2.c2": ["n2"]}
    halved = [site.inputs for site in small.graph(other) if site.output == "s2.c1.in1.half"]
    assert halved == [("s2.c1.in1.relu",)]


def test_slices_are_the_convolution_of_the_concatenation(small: SearchSpace) -> None:
    arch = arch_of(
        small, normal="in1 sep_3x3 in2 identity | in1 avg_3x3 in2 max_3x3", reduction="in1 identity in2 sep_5x5 | n1 max_3x3 in2 sep_3x3"
    )
    network = Network(small, arch, torch.Generator().manual_seed(0)).eval()
    values: dict[str, torch.Tensor] = {}
    for i in network.indices:
        site = small.sites[i]
        if str(i) in network.sites:
            network.sites[str(i)].register_forward_hook(lambda _, ins, out, site=site: values.update({site.output: out}))
    kept = {i: small.sites[i] for i in network.indices if small.sites[i].op.kind == "conv" and small.sites[i].output == "s1.c1.sum"}
    norms = [i for i in network.indices if small.sites[i].output == "s1.c1.out"]
    assert [site.inputs[0] for site in kept.values()] == ["s1.c1.n1.relu", "s1.c1.n2.relu"]
    parts: list[torch.Tensor] = []
    for i in kept:
        network.sites[str(i)].register_forward_hook(lambda _, ins, out: parts.append(ins[0]))
    with torch.inference_mode():
        network(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        weight = torch.cat([network.get_parameter(f"sites.{i}.weight") for i in kept], 1)
        whole = functional.conv2d(torch.cat(parts, 1), weight)
        torch.testing.assert_close(network.sites[str(norms[0])](whole), values["s1.c1.out"])


def test_the_branches_of_a_node_share_their_weights_and_may_be_swapped(small: SearchSpace) -> None:
    supernet = Supernet(small, torch.Generator().manual_seed(0)).eval()
    reduction = "in1 identity in2 sep_5x5 | n1 max_3x3 in2 sep_3x3"
    swapped = "in2 sep_5x5 in1 identity | in2 sep_3x3 n1 max_3x3"
    one = arch_of(small, normal="in1 sep_3x3 in2 identity | n1 sep_3x3 in2 sep_3x3", reduction=reduction)
    other = arch_of(small, normal="in2 identity in1 sep_3x3 | in2 sep_3x3 n1 sep_3x3", reduction=swapped)
    assert one != other and small.identity(one) == small.identity(other)
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(supernet.of(image, one), supernet.of(image, other))
    twice = arch_of(small, normal="in1 sep_3x3 in1 sep_3x3 | n1 sep_3x3 in2 sep_3x3", reduction=reduction)
    assert (
        Counter(small.lower(twice))[OpSpec("sep_conv", 4, 4, 8, 8, 3)]
        == Counter(small.stored(twice))[OpSpec("sep_conv", 4, 4, 8, 8, 3)] + 1
    )
    assert small.identity(twice) != small.identity(one)


def test_it_has_no_expected_cost(small: SearchSpace, rng: np.random.Generator) -> None:
    model = CostModel(small, lambda op: 1.0)
    assert not small.expectable and not model.expects
    assert model.of([arch := small.random(rng)]).tolist() == [float(len(small.lower(arch)))]
    with pytest.raises(SpaceError, match="enas_micro prices its networks one by one"):
        model(torch.full((len(small.slots), 5), 0.2))


def test_nao_has_eleven_operators_which_run() -> None:
    space = load_space("enas_micro", {"operators": "nao", "input_size": 8, "width": 4, "nodes": 2, "cells": 1, "reductions": 1})
    names = space.slots[1].choices
    assert names == (
        "identity", "conv_1x1", "conv_3x3", "conv_1x3_3x1", "conv_1x7_7x1", "max_2x2", "max_3x3", "max_5x5",
        "avg_2x2", "avg_3x3", "avg_5x5",
    )  # fmt: skip
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for choice in range(11):
        arch = tuple(choice if i % 2 else 0 for i in range(len(space.slots)))
        network = Network(space, arch, torch.Generator().manual_seed(0)).eval()
        assert bool(network(images).isfinite().all())
    row, _, _, column, _ = layers.build(OpSpec("conv_in_two", 4, 4, 8, 8, 7, 2)).children()
    assert isinstance(row, nn.Conv2d) and isinstance(column, nn.Conv2d)
    assert (row.kernel_size, column.kernel_size, row.stride, column.stride) == ((1, 7), (7, 1), (1, 2), (2, 1))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"operators": "darts"}, "operators"), ({"nodes": 0}, "nodes"), ({"input_size": 10}, "multiple of 4"), ({"width": 1}, "width")],
)
def test_options_out_of_range(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_space("enas_micro", options)
