"""DARTS's cells: the published counts, where cells reduce, what the operators cost, and the expectation over both cell types."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import layers, resources
from hwnas.cost import CostModel, choice_mask
from hwnas.errors import ConfigError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.spaces.darts import OPERATORS

NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


@pytest.fixture(scope="module")
def published() -> SearchSpace:
    return load_space("darts")


def test_the_space_has_the_published_size(published: SearchSpace) -> None:
    """14 edges of 8 operators: 8^14 cells of a type, 1.9e25 pairs."""
    kinds = Counter(slot.name.partition(".")[0] for slot in published.slots)
    assert kinds == {"normal": 14, "reduce": 14}
    assert {slot.choices for slot in published.slots} == {OPERATORS}
    assert published.size == (8**14) ** 2 == pytest.approx(1.9e25, rel=0.02)
    assert math.prod(published.num_choices[:14]) == pytest.approx(4.4e12, rel=0.01)
    assert [slot.name for slot in published.slots[:5]] == ["normal.2<-0", "normal.2<-1", "normal.3<-0", "normal.3<-1", "normal.3<-2"]


@pytest.mark.parametrize(("cells", "reductions"), [(8, (2, 5)), (20, (6, 13)), (3, (1, 2))])
def test_cells_reduce_at_a_third_and_at_two_thirds(cells: int, reductions: tuple[int, int]) -> None:
    space = load_space("darts", {"cells": cells})
    width, side = 16, 32
    for number in range(cells):
        if number in reductions:
            width, side = 2 * width, side // 2
        assert space.node_shape(f"c{number}") == (4 * width, side, side)
        assert space.node_shape(f"c{number}.n2") == (width, side, side)
    strides = {(site.output.partition(".")[0], site.op.stride) for site in space.sites if site.op.kind in ("sep_conv", "dil_conv")}
    assert {cell for cell, stride in strides if stride == 2} == {f"c{number}" for number in reductions}
    assert space.node_shape("stem") == (48, 32, 32)


@pytest.mark.parametrize(("stride", "c_out"), [(1, 16), (2, 16)])
def test_operators_cost_what_is_published(stride: int, c_out: int) -> None:
    """Sizes and multiply-adds by the released formulas, to which BatchNorm's scale and shift come here."""
    c, side = 16, 12
    area = (side // stride) ** 2
    for kernel in (3, 5):
        sep = OpSpec("sep_conv", c, c_out, side, side, kernel, stride)
        dil = OpSpec("dil_conv", c, c_out, side, side, kernel, stride, dilation=2)
        size_sep, size_dil = 2 * c * kernel**2 + c * (c + c_out), c * kernel**2 + c * c_out
        assert (resources.params(sep), resources.macs(sep)) == (size_sep + 4 * c_out, size_sep * area)
        assert (resources.params(dil), resources.macs(dil)) == (size_dil + 2 * c_out, size_dil * area)
    reduce = OpSpec("factorized_reduce", c, 2 * c_out, side, side, stride=2)
    assert (resources.params(reduce), resources.macs(reduce)) == (c * 2 * c_out + 4 * c_out, c * 2 * c_out * 36)
    pool = OpSpec("max_pool", c, c, side, side, 3, stride)
    assert (resources.params(pool), resources.macs(pool)) == (0, 0)


def test_what_edges_compute_alike_is_computed_once(published: SearchSpace) -> None:
    """All convolutions: one ReLU for each node that is read, of the stem and every cell too; nothing pooled."""
    kinds = Counter(op.kind for op in published.lower((SEP3,) * 28))
    assert kinds == {
        "conv_bn": 1 + 14, "factorized_reduce": 2, "relu": 1 + 8 * 5 + 7, "sep_conv": 8 * 14, "add": 8 * 10, "concat": 8, "classifier": 1,
    }  # fmt: skip
    pooled = Counter(op.kind for op in published.lower((MAX,) * 28))
    assert (pooled["max_pool"], pooled["batch_norm"], pooled["avg_pool"]) == (8 * 5, 8 * 14, 0)
    skipped = Counter(op.kind for op in published.lower((SKIP,) * 28))
    assert (skipped["factorized_reduce"], skipped["identity"]) == (2 + 2 * 8, 6 * 14 + 2 * 6)


def test_a_node_without_edges_is_zeros_in_the_cells_output() -> None:
    space = load_space("darts", {**type(load_space("darts")).small, "input_size": 8})
    normal, reduce = [SEP3, NONE, NONE, NONE, NONE], [NONE, SEP3, NONE, NONE, NONE]
    with torch.no_grad():
        network = Network(space, (*normal, *reduce), torch.Generator().manual_seed(0)).eval()
        seen: list[torch.Tensor] = []
        last = max(i for i in network.indices if space.sites[i].op.kind == "concat")
        network.sites[str(last)].register_forward_hook(lambda module, inputs, out: seen.append(out))
        network(torch.randn(2, *space.input_shape, generator=torch.Generator().manual_seed(1)))
    width = space.node_shape("c2.n2")[0]  # its first node is fed, its second is not
    assert float(seen[0][:, :width].abs().max()) > 0
    assert float(seen[0][:, width:].abs().max()) == 0
    assert not space.graph((NONE,) * 10)


def test_options_change_what_they_name() -> None:
    space = load_space("darts", {"nodes": 3, "operators": ["none", "sep_conv_3x3"], "cells": 5, "width": 6})
    assert space.num_choices == (2,) * 18
    with pytest.raises(ConfigError, match="operators"):
        load_space("darts", {"operators": ["sep_conv_7x7"]})
    with pytest.raises(ConfigError, match="cells"):
        load_space("darts", {"cells": 2})


def test_odd_sides_are_rounded_up() -> None:
    space = load_space("darts", {"input_size": 9, "width": 2, "cells": 3, "nodes": 1})
    assert [space.node_shape(f"c{i}")[1] for i in range(3)] == [9, 5, 3]
    for op in space.operators():
        assert tuple(layers.build(op).eval()(torch.zeros(1, op.c_in, op.height, op.width)).shape[1:]) == layers.output_shape(op)


def brute_force(options: dict[str, Any]) -> None:
    """Both cell types at once: the expectation and its gradient are the mean over every pair of cells."""
    space = load_space("darts", {"input_size": 8, "width": 2, **options})
    rng = np.random.default_rng(0)
    prices = {op: float(rng.uniform(0.1, 10)) for op in space.operators()}
    model = CostModel(space, prices, offset=0.5)
    logits = torch.as_tensor(rng.normal(size=choice_mask(space).shape)).requires_grad_()
    probs = logits.softmax(-1)
    archs = list(product(*map(range, space.num_choices)))
    costs = torch.tensor([0.5 + sum(prices[op] for op in space.lower(arch)) for arch in archs], dtype=torch.float64)
    chance = probs[torch.arange(len(space.slots)), torch.tensor(archs)].prod(-1)
    torch.testing.assert_close(model.of(archs), costs)
    torch.testing.assert_close(model(probs), chance @ costs, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (model(probs), chance @ costs))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_the_expectation_over_both_cell_types_is_the_mean_of_all_pairs() -> None:
    brute_force({"cells": 5, "nodes": 1, "operators": ["none", "skip_connect", "max_pool_3x3", "sep_conv_3x3"]})


@pytest.mark.slow
def test_the_expectation_over_larger_cells_is_the_mean_of_all_pairs() -> None:
    brute_force({"cells": 4, "nodes": 2, "operators": ["none", "skip_connect", "sep_conv_3x3"]})


@pytest.mark.slow
def test_the_published_network_has_an_expected_cost(published: SearchSpace) -> None:
    """The mean of 20 000 drawn networks, which are priced by lookup, is within five standard errors."""
    model = CostModel(published, resources.macs)
    assert model.expects
    probs = torch.softmax(torch.randn(28, 8, generator=torch.Generator().manual_seed(0)), -1)
    archs = torch.multinomial(probs, 20_000, replacement=True, generator=torch.Generator().manual_seed(1)).T
    costs = model.of(archs)
    assert abs(float(model(probs)) - float(costs.mean())) < 5 * float(costs.std()) / 20_000**0.5
    few = [tuple(row) for row in archs[:20].tolist()]
    assert model.of(few).tolist() == pytest.approx([sum(map(resources.macs, published.lower(arch))) for arch in few])
