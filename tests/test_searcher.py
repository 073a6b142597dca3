"""What a searcher is given: budgets that hold, and errors that say what cannot be met. Searchers themselves: `contract/`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas import resources
from hwnas.cost import Cost, CostModel, PeakMemory, Uncertainty
from hwnas.errors import BudgetError, ConfigError
from hwnas.evaluate import Objective
from hwnas.op import OpSpec
from hwnas.searcher import Problem, dominating
from hwnas.space import Architecture, SearchSpace, Site, Slot, load_space

ERROR = (Objective("error"),)


@pytest.fixture(scope="module")
def default() -> SearchSpace:
    return load_space("mobilenet_v2")


@pytest.fixture(scope="module")
def macs(default: SearchSpace) -> CostModel:
    return CostModel(default, resources.macs, metric="macs")


@pytest.mark.parametrize("slack", [1.0, 1.000001, 1.02, 1.2])
def test_tight_budgets_are_kept_and_nothing_hangs(default: SearchSpace, macs: CostModel, slack: float, rng: np.random.Generator) -> None:
    limit = slack * float(macs.of([macs.cheapest()]))
    problem = Problem(default, ERROR, {"macs": macs}, {"macs": limit})
    archs = [problem.random(rng) for _ in range(10)]
    assert bool(problem.feasible(archs).all())
    assert float(macs.of(archs).max()) <= limit
    assert slack < 1.2 or len(set(archs)) > 5


def test_random_architectures_without_budgets_are_the_spaces_own(default: SearchSpace, macs: CostModel) -> None:
    problem = Problem(default, ERROR, {"macs": macs})
    drawn = [problem.random(np.random.default_rng(seed)) for seed in range(5)]
    assert drawn == [default.random(np.random.default_rng(seed)) for seed in range(5)]


def test_an_unreachable_budget_names_the_cheapest_and_what_dominates_it(default: SearchSpace, macs: CostModel) -> None:
    cheapest = macs.cheapest()
    least = float(macs.of([cheapest]))
    with pytest.raises(BudgetError) as caught:
        Problem(default, ERROR, {"macs": macs}, {"macs": 0.9 * least})
    message = str(caught.value)
    assert default.describe(cheapest) in message
    assert f"at least {least:.4g}" in message
    for op in sorted(default.lower(cheapest), key=resources.macs)[-3:]:
        assert f"{op} ({resources.macs(op) / least:.0%})" in message


def test_dominating_operators_are_added_up_and_the_offset_is_one_of_them(diamond: SearchSpace) -> None:
    conv = OpSpec("conv_bn", 4, 4, 8, 8)
    sites = (Site(conv, ("input",), "a"), Site(conv, ("a",), "b"), Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), ("b",), "output"))
    model = CostModel(SearchSpace((4, 8, 8), 2, (), sites), lambda op: 3.0 if op == conv else 1.0, offset=4.0)
    assert dominating(model, (), most=2) == f"{conv} (55%), what networks cost beside their operators (36%)"
    assert dominating(PeakMemory(diamond), (1, 1)) == "its largest activations"


def test_budgets_are_held_against_the_upper_bound(diamond: SearchSpace) -> None:
    size = len(diamond.operators()) + 1
    model = CostModel(diamond, lambda op: 10.0, uncertainty=Uncertainty(np.zeros((size, size)), noise=0.1))
    (bound,) = model.upper([(0, 0)], 0.9).tolist()
    assert bound > 30
    problem = Problem(diamond, ERROR, {"latency_ms": model}, {"latency_ms": bound}, confidence=0.9)
    assert problem.feasible([(0, 0), (1, 1)]).tolist() == [True, False]
    with pytest.raises(BudgetError, match="latency_ms=31 cannot be met"):
        Problem(diamond, ERROR, {"latency_ms": model}, {"latency_ms": 31.0}, confidence=0.9)


def test_budgets_that_only_exclude_each_other(diamond: SearchSpace, rng: np.random.Generator) -> None:
    """The one wants few operators, the other none of the cheap networks."""
    few = CostModel(diamond, lambda op: 1.0)
    many = Inverse(few)
    problem = Problem(diamond, ERROR, {"few": few, "many": many}, {"few": 3.0, "many": 2.0})
    with pytest.raises(BudgetError, match=r"that keeps all of .*; the nearest \(left=.*\) needs up to few"):
        problem.random(rng)


def test_budgets_that_only_a_compromise_keeps(rng: np.random.Generator) -> None:
    """Neither metric's cheapest network keeps both budgets."""
    slots = tuple(Slot(f"s{i}", tuple("12345")) for i in range(2))
    pairs = [(slot, choice) for slot in range(2) for choice in range(5)]
    convs = {(slot, choice): OpSpec("conv_bn", 4, 4, 8, 8, dilation=choice + 1) for slot, choice in pairs}
    wide = [Site(op, (("input", "a")[decision[0]],), "ab"[decision[0]], (decision,)) for decision, op in convs.items()]
    head = OpSpec("classifier", 4, 2, 8, 8, stride=8)
    space = SearchSpace((4, 8, 8), 2, slots, (*wide, Site(head, ("b",), "output")))
    up = CostModel(space, lambda op: op.dilation - 1.0)
    down = CostModel(space, lambda op: 5.0 - op.dilation if op != head else 0.0)
    problem = Problem(space, ERROR, {"up": up, "down": down}, {"up": 4.0, "down": 4.0})
    assert not problem.feasible([up.cheapest(), down.cheapest()]).any()
    assert problem.feasible([problem.random(rng), problem.anchor]).all()


class Inverse(PeakMemory):
    """The more operators, the less it is."""

    def __init__(self, model: CostModel) -> None:
        super().__init__(model.space)
        self.model = model

    def of(self, archs):  # type: ignore[no-untyped-def]
        return 6 - self.model.of(archs)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"latency": 1.0}, "a budget on 'latency', but nothing gives that metric; did you mean 'latency_ms'"),
        ({"latency_ms": 0.0}, "the budget on latency_ms must be a positive number, but is 0"),
        ({"latency_ms": -1.0}, "must be a positive number"),
        ({"latency_ms": math.nan}, "must be a positive number, but is nan"),
        ({"latency_ms": math.inf}, "must be a positive number, but is inf"),
    ],
)
def test_budgets_that_cannot_be_meant(diamond: SearchSpace, budgets: dict[str, float], message: str) -> None:
    model = CostModel(diamond, lambda op: 1.0)
    with pytest.raises(ConfigError, match=message):
        Problem(diamond, ERROR, {"latency_ms": model}, budgets)


def test_there_must_be_an_objective(diamond: SearchSpace) -> None:
    with pytest.raises(ConfigError, match="at least one objective"):
        Problem(diamond, (), {})


def test_a_walk_keeps_the_budgets(default: SearchSpace, macs: CostModel, rng: np.random.Generator) -> None:
    limit = 1.5 * float(macs.of([macs.cheapest()]))
    problem = Problem(default, ERROR, {"macs": macs}, {"macs": limit})
    ends = [problem.walk(problem.anchor, rng) for _ in range(5)]
    assert bool(problem.feasible(ends).all())
    assert len({*ends, problem.anchor}) > 3
    assert problem.walk(problem.anchor, rng, steps=1) in {
        (*problem.anchor[:slot], choice, *problem.anchor[slot + 1 :]) for slot, n in enumerate(default.num_choices) for choice in range(n)
    }


def test_costs_are_known_before_anything_is_trained(diamond: SearchSpace) -> None:
    costs: dict[str, Cost] = {"params": CostModel(diamond, resources.params, metric="params"), "peak_mb": PeakMemory(diamond)}
    problem = Problem(diamond, ERROR, costs)
    known = problem.known([(0, 0), (2, 1)])
    assert {metric: values.tolist() for metric, values in known.items()} == {
        metric: costs[metric].of([(0, 0), (2, 1)]).tolist() for metric in ("params", "peak_mb")
    }
    assert problem.feasible([]).shape == (0,)


def test_without_budgets_every_architecture_keeps_them_and_the_ends_of_a_front_are_found(space: SearchSpace) -> None:
    latency = CostModel(space, lambda op: 1e-3 + 1e-6 * resources.macs(op) + 1e-4 * (sum(map(ord, op.kind)) % 7), metric="latency_ms")
    problem = Problem(space, (Objective("latency_ms"),), {"latency_ms": latency})
    assert problem.anchor == latency.cheapest()
    assert float(latency.of([problem.costliest("latency_ms")])[0]) > float(latency.of([problem.anchor])[0])


def test_the_costliest_is_found_where_sums_of_another_batch_are_rounded_otherwise(diamond: SearchSpace) -> None:
    """Compared with a batch of one, the network itself would seem to be dearer than it is, time after time."""

    class Rounded(CostModel):
        def of(self, archs: torch.Tensor | Sequence[Architecture]) -> torch.Tensor:
            return super().of(archs) * (1 + 1e-15 * (len(archs) > 1))

    cost = Rounded(diamond, resources.macs, metric="macs")
    costs = cost.of(list(diamond.all()))
    assert float(cost.of([Problem(diamond, ERROR, {"macs": cost}).costliest("macs")])[0]) == pytest.approx(float(costs.max()))


def test_a_budget_between_the_bounds_of_the_cheapest_and_the_surest_can_be_met(diamond: SearchSpace) -> None:
    """The cheapest network may be the one that least is known of."""
    arch = CostModel(diamond, lambda op: 1.0).cheapest()
    others = [other for other in diamond.all() if diamond.graph(other)]

    class Doubtful(CostModel):
        def upper(self, archs: Any, confidence: float = 0.95) -> Tensor:
            rows = [tuple(row) for row in torch.as_tensor(archs).reshape(-1, 2).tolist()]
            return self.of(archs) + torch.tensor([10.0 if diamond.identity(row) == diamond.identity(arch) else 0.0 for row in rows])

    doubtful = Doubtful(diamond, lambda op: 1.0)
    limit = float(doubtful.upper(others).min())
    assert limit < float(doubtful.upper([arch]))
    assert float(doubtful.upper([Problem(diamond, ERROR, {"macs": doubtful}, {"macs": limit}).anchor])) <= limit
