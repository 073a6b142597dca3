"""The cost of one architecture, of a distribution, its bound, and what cannot be priced. Laws 1 and 2 for every space: `contract/`."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas import cost, resources
from hwnas.cost import CostModel, PeakMemory, Uncertainty, choice_mask, one_hot
from hwnas.errors import ConfigError, MissingPriceError, SpaceError, TableError
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace, Site, Slot, load_space

OPS = tuple(OpSpec("conv_bn", 4, 4, 8, 8, kernel) for kernel in (1, 3, 5, 7))
RELU, ADD, HAND_ON = (OpSpec(kind, 4, 4, 8, 8) for kind in ("relu", "add", "identity"))
PRICES = dict(zip((*OPS, RELU, ADD, HAND_ON), (1.0, 10.0, 100.0, 1000.0, 0.1, 0.01, 0.003), strict=True))
NODES = "input", "a", "b", "c", "d", "output"


def made(sites: list[Site], choices: list[int]) -> SearchSpace:
    slots = tuple(Slot(f"s{i}", tuple(f"x{k}" for k in range(n))) for i, n in enumerate(choices))
    return SearchSpace((4, 8, 8), 4, slots, tuple(sites), name="made")


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Small spaces of any wiring: sites without and with several decisions, several inputs, dead ends, handing on, shared ReLUs."""
    choices = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    sites = []
    for target in range(1, len(NODES)):
        if draw(st.booleans()):
            sites.append(Site(RELU, (NODES[draw(st.integers(0, target - 1))],), NODES[target], weightless=True))
            continue
        for _ in range(draw(st.integers(1, 3))):
            op = draw(st.sampled_from((*OPS, HAND_ON, HAND_ON)))
            sources = draw(st.sets(st.integers(0, target - 1), min_size=1, max_size=1 if op == HAND_ON else 2))
            slots = draw(st.sets(st.integers(0, len(choices) - 1), max_size=2))
            when = tuple((slot, draw(st.integers(0, choices[slot] - 1))) for slot in sorted(slots))
            sites.append(Site(op, tuple(NODES[source] for source in sorted(sources)), NODES[target], when))
    return made(sites, choices)


def total(space: SearchSpace, arch: Architecture) -> float:
    return sum(PRICES[op] for op in space.lower(arch))


@given(spaces())
def test_lookup_forward_and_sum_agree_on_any_wiring(space: SearchSpace) -> None:
    model = CostModel(space, PRICES, offset=0.5)
    archs = list(space.all())
    expected = torch.tensor([0.5 + total(space, arch) for arch in archs], dtype=torch.float64)
    torch.testing.assert_close(model(one_hot(space, archs).double()), expected, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(model.of(archs), expected, rtol=1e-12, atol=1e-9)
    counts = model.counts(archs)
    for row, arch in zip(counts.tolist(), archs, strict=True):
        assert {op: n for op, n in zip(model.operators, row, strict=True) if n} == Counter(space.lower(arch))


@given(spaces(), st.integers(0, 2**32 - 1))
def test_expectation_is_the_mean_on_any_wiring(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.as_tensor(2 * rng.normal(size=choice_mask(space).shape)).requires_grad_()
    probs = logits.masked_fill(~choice_mask(space), -torch.inf).softmax(-1)
    archs = torch.tensor(list(space.all()))
    costs = torch.tensor([total(space, arch) for arch in space.all()], dtype=torch.float64)
    mean = probs[torch.arange(len(space.slots)), archs].prod(-1) @ costs
    expected = CostModel(space, PRICES)(probs)
    torch.testing.assert_close(expected, mean, rtol=1e-10, atol=1e-9)
    nothing = 0 * logits.sum()  # a cost that no decision changes has no gradient of its own
    by_model, by_force = (torch.autograd.grad(value + nothing, logits, retain_graph=True)[0] for value in (expected, mean))
    torch.testing.assert_close(by_model, by_force, rtol=1e-8, atol=1e-8)


def test_liveness_by_hand(diamond: SearchSpace) -> None:
    """What `left` chose, handing it on and adding it, is paid for where `right` uses it."""
    ops = [site.op for site in diamond.sites]
    prices = dict(zip([ops[0], ops[1], ops[2], ADD, ops[5], HAND_ON], [1.0, 10.0, 100.0, 1000.0, 10000.0, 0.5], strict=True))
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]], dtype=torch.float64, requires_grad=True)
    model = CostModel(diamond, prices)
    expected = 1 + 10000 + 0.5 + 0.4 * (0.5 * 10 + 0.3 * 100) + 0.4 * (0.5 + 0.3) * 1000.5
    assert model(probs).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(model, (probs,))


def test_any_batch_shape(diamond: SearchSpace) -> None:
    model = CostModel(diamond, lambda op: float(op.kernel))
    probs = torch.rand(2, 3, 2, 3, dtype=torch.float64)
    assert model(probs).shape == (2, 3)
    assert float(model(probs[1, 2])) == pytest.approx(float(model(probs)[1, 2]))
    assert model(probs.float()).dtype == torch.float32
    assert model.of([]).shape == (0,)
    assert model.of(torch.tensor([[2, 1]], dtype=torch.int8)).dtype == torch.float64
    with pytest.raises(SpaceError, match=r"probs of diamond must end in \(2, 3\), but have shape \(3, 2\)"):
        model(torch.zeros(3, 2))


def test_lookup_of_many_slots_stays_exact(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("nasbench201", {"cells": 1, "width": 4, "input_size": 8})
    archs = [space.random(rng) for _ in range(50)]
    expected = CostModel(space, resources.macs).of(archs)
    monkeypatch.setattr(cost, "_DENSE", 100)
    model = CostModel(space, resources.macs)
    assert model._lookup is None
    torch.testing.assert_close(model.of(archs), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_prices_must_be_prices(diamond: SearchSpace, value: float) -> None:
    prices = dict.fromkeys(diamond.operators(), 1.0) | {diamond.sites[2].op: value}
    with pytest.raises(TableError, match=f"the latency_ms price of {diamond.sites[2].op} must be finite and not negative, but is {value}"):
        CostModel(diamond, prices, metric="latency_ms")


def test_a_missing_price_is_named(diamond: SearchSpace) -> None:
    prices = {op: 1.0 for op in diamond.operators() if op != diamond.sites[2].op}
    with pytest.raises(MissingPriceError, match=f"no latency_ms price of {diamond.sites[2].op}"):
        CostModel(diamond, prices, metric="latency_ms")


def branches(n: int) -> SearchSpace:
    """n binary decisions each of which wires the network in its own way."""
    sites = [Site(OPS[0], ("input",), "n0")]
    for i in range(n):
        sites.append(Site(OPS[0], (f"n{i}",), f"m{i}", ((i, 0),)))
        sites += [Site(OPS[1], (f"m{i}",), f"n{i + 1}"), Site(OPS[2], (f"n{i}",), f"n{i + 1}")]
    return SearchSpace((4, 8, 8), 4, tuple(Slot(f"s{i}", ("x", "y")) for i in range(n)), tuple(sites), output=f"n{n}", name="branches")


def test_diagrams_that_grow_too_large_give_no_expected_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MOST_NODES", 32)
    assert float(CostModel(branches(5), PRICES).of([(0,) * 5])) == pytest.approx(1 + 5 * 111.01)
    many = CostModel(branches(40), PRICES)
    assert not many.expects
    assert many.of([(0,) * 40, (1,) * 40]).tolist() == pytest.approx([1 + 40 * 111.01, 1 + 40 * 100])
    assert many(one_hot(many.space, [(0,) * 40])).tolist() == pytest.approx([1 + 40 * 111.01])
    with pytest.raises(SpaceError, match="branches has no expected cost: the functions need more than the 32 nodes"):
        many(torch.full((40, 2), 0.5))


def test_bound_from_covariance_and_noise(diamond: SearchSpace, rng: np.random.Generator) -> None:
    operators = diamond.operators()
    factor = rng.normal(size=(len(operators) + 1, len(operators) + 1))
    uncertainty = Uncertainty(factor @ factor.T, noise=0.1)
    model = CostModel(diamond, lambda op: 10.0 * op.kernel, offset=3.0, uncertainty=uncertainty)
    for arch in diamond.all():
        ops = diamond.lower(arch)
        counts = np.array([*(ops.count(op) for op in operators), 1.0])
        variance = counts @ uncertainty.covariance @ counts + (0.1 * float(model.of([arch]))) ** 2
        assert float(model.deviation([arch])) == pytest.approx(math.sqrt(variance))
        assert float(model.upper([arch], 0.95)) == pytest.approx(float(model.of([arch])) + 1.6448536 * math.sqrt(variance))
        assert float(model.upper([arch], 0.5)) == pytest.approx(float(model.of([arch])))
    assert float(model.upper([(2, 1)], 0.99)) > float(model.upper([(2, 1)], 0.9))


@pytest.mark.parametrize("dense", [1, 1 << 20])
def test_corrections_are_what_choices_cost_beside_their_operators(
    diamond: SearchSpace, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dense: int
) -> None:
    monkeypatch.setattr(cost, "_DENSE", dense)
    corrections = rng.uniform(0, 1, (2, 3))
    plain, model = (CostModel(diamond, lambda op: 1.0, corrections=value) for value in (None, corrections))
    archs = list(diamond.all())
    expected = plain.of(archs) + torch.tensor([corrections[0, left] + corrections[1, right] for left, right in archs])
    torch.testing.assert_close(model.of(archs), expected)
    torch.testing.assert_close(model(one_hot(diamond, archs).double()), expected)
    for wrong, message in ((corrections[:, :2], "must have the shape"), (-corrections, "not negative"), (corrections * np.nan, "finite")):
        with pytest.raises(TableError, match=message):
            CostModel(diamond, lambda op: 1.0, corrections=wrong)


def test_counted_metrics_are_certain(diamond: SearchSpace) -> None:
    model = CostModel(diamond, resources.params, metric="params")
    archs = list(diamond.all())
    assert torch.equal(model.deviation(archs), torch.zeros(6, dtype=torch.float64))
    assert torch.equal(model.upper(archs), model.of(archs))


def test_cheapest_is_exact_where_the_space_can_be_enumerated(space: SearchSpace, rng: np.random.Generator) -> None:
    model = CostModel(space, {op: float(rng.uniform(1, 10)) for op in space.operators()})
    arch = model.cheapest()
    assert space.is_valid(arch)
    if space.size <= cost.ENUMERABLE:
        best = min(sum(map(float, model.price[[model.operators.index(op) for op in space.lower(a)]])) for a in sample(space, rng))
        assert float(model.of([arch])) <= best + 1e-9


def sample(space: SearchSpace, rng: np.random.Generator) -> list[Architecture]:
    return [space.random(rng) for _ in range(200)]


def test_cheapest_by_descent_finds_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("mobilenet_v2", load_space("mobilenet_v2").small)
    model = CostModel(space, resources.macs)
    exact = model.cheapest()
    monkeypatch.setattr(cost, "ENUMERABLE", 0)
    assert float(model.of([model.cheapest()])) == float(model.of([exact]))


def test_the_fastest_of_the_default_space_is_all_of_its_cheapest_parts() -> None:
    space = load_space("mobilenet_v2")
    arch = CostModel(space, resources.macs).cheapest()
    labels = [slot.choices[choice] for slot, choice in zip(space.slots, arch, strict=True)]
    assert labels == ["16", "k3e3", "skip", "24", "k3e3", "skip", "skip", "48", "k3e3", "skip", "skip", "96", "k3e3", "skip"]


def test_peak_memory_has_the_interface_of_a_cost_model(diamond: SearchSpace) -> None:
    model = PeakMemory(diamond)
    archs = list(diamond.all())
    expected = torch.tensor([resources.peak_mb(diamond, arch) for arch in archs], dtype=torch.float64)
    assert torch.equal(model.of(archs), expected)
    assert torch.equal(model.upper(archs, 0.99), expected)
    rows = one_hot(diamond, archs)
    torch.testing.assert_close(model(rows), expected.float())
    torch.testing.assert_close(model(rows.reshape(2, 3, 2, 3)), expected.float().reshape(2, 3))
    torch.testing.assert_close(model(rows[5]), expected.float()[5])
    assert resources.peak_mb(diamond, model.cheapest()) == float(expected.min())
    with pytest.raises(ConfigError, match="peak_mb is not a sum over operators and has no expectation"):
        model(torch.full((2, 3), 0.5))


def test_one_hot_rows_and_the_mask_agree_on_the_padding(diamond: SearchSpace) -> None:
    mask = choice_mask(diamond)
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    rows = one_hot(diamond, list(diamond.all()))
    assert rows.shape == (6, 2, 3)
    assert bool((rows.sum(-1) == 1).all())
    assert bool((rows[:, ~mask] == 0).all())
    assert [tuple(row) for row in rows.argmax(-1).tolist()] == list(itertools.product(range(3), range(2)))


def test_choices_that_all_wire_alike_have_one_presence_pattern() -> None:
    space = made([Site(OPS[k], ("input",), "output", ((0, k),)) for k in range(3)], [3])
    model = CostModel(space, PRICES, offset=1.0)
    assert model.of([(0,), (1,), (2,)]).tolist() == [2.0, 11.0, 101.0]
    assert float(model(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))) == 1 + 0.5 + 2.5 + 25
    assert model.cheapest() == (0,)
