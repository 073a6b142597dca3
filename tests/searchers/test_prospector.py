"""Prospector: its improvement against Monte Carlo, its use of what is free, and that it beats the others on tabulated toys."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from hwnas import pareto, plugins, resources
from hwnas.cost import Cost, CostModel, PeakMemory, TabularCost
from hwnas.errors import ConfigError, RunError
from hwnas.evaluate import Objective, SharedWeights, Trial
from hwnas.op import OpSpec
from hwnas.searcher import Problem, Searcher
from hwnas.searchers.prospector import Prospector, _halving, expected_improvement
from hwnas.space import Architecture, SearchSpace, Site, Slot, load_space

ERROR, MACS = Objective("error"), Objective("macs")
KERNELS = (1, 3, 5, 7)


def chain_of(length: int) -> SearchSpace:
    """Convolutions one after the other, each of four kernels."""
    slots = tuple(Slot(f"conv{i}", tuple(f"k{kernel}" for kernel in KERNELS)) for i in range(length))
    sites = [Site(OpSpec("conv_bn", 1, 4, 8, 8), ("input",), "n0")]
    for i in range(length):
        for choice, kernel in enumerate(KERNELS):
            sites.append(Site(OpSpec("conv_bn", 4, 4, 8, 8, kernel=kernel), (f"n{i}",), f"n{i + 1}", ((i, choice),)))
    sites.append(Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), (f"n{length}",), "output"))
    return SearchSpace((1, 8, 8), 2, slots, tuple(sites), name="chain")


SHORT, LONG = chain_of(5), chain_of(10)
"""One that is gone through, and one of 4^10 networks."""


def error_of(arch: Architecture) -> float:
    """Larger kernels help, each slot to its own degree, and neighbours of one size help more: a smooth trade-off with a twist."""
    worth = np.random.default_rng(7).uniform(0.2, 1.0, len(arch))
    quality = float(worth @ np.sqrt(np.array(arch) / 3)) + 0.3 * sum(a == b for a, b in pairwise(arch))
    return 1 - quality / len(arch)


def problem_of(space: SearchSpace, *objectives: Objective, free: bool = True, budget: float | None = None) -> Problem:
    costs: dict[str, Cost] = {"macs": CostModel(space, resources.macs, metric="macs")} if free else {}
    return Problem(space, objectives or (ERROR, MACS), costs, {} if budget is None else {"macs": budget})


def search(
    name: str, problem: Problem, seed: int, evaluations: int, batch: int = 5, error: Callable[[Architecture], float] = error_of
) -> list[Trial]:
    searcher: Searcher = plugins.build("searchers", name, {}, problem, np.random.default_rng(seed))
    macs = CostModel(problem.space, resources.macs, metric="macs")
    trials: list[Trial] = []
    while len(trials) < evaluations:
        archs = searcher.ask(min(batch, evaluations - len(trials)))
        new = [
            Trial(i, arch, {"error": error(arch), "accuracy": 1 - error(arch), "loss": 2 * error(arch), "macs": float(macs.of([arch])[0])})
            for i, arch in enumerate(archs, len(trials))
        ]
        searcher.tell(new)
        trials += new
    return trials


def volume(trials: list[Trial], reference: tuple[float, float]) -> float:
    return pareto.hypervolume(np.array([trial.vector((ERROR, MACS)) for trial in trials]), np.array(reference))


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("known", [0, 1])
def test_improvement_is_that_of_monte_carlo(objectives: int, known: int) -> None:
    rng = np.random.default_rng(objectives + 10 * known)
    front = rng.uniform(0, 1, (6, objectives))
    front = front[pareto.nondominated(front)]
    reference = np.full(objectives, 1.1)
    means = [rng.uniform(-0.1, 1.2, 5) for _ in range(objectives)]
    deviations = [np.zeros(5) if i < known else rng.uniform(0.05, 0.4, 5) for i in range(objectives)]
    found = expected_improvement(means, deviations, front, reference)
    before = pareto.hypervolume(front, reference)
    for candidate in range(5):
        draws = np.stack([rng.normal(mean[candidate], spread[candidate], 2000) for mean, spread in zip(means, deviations, strict=True)], 1)
        gains = [pareto.hypervolume(np.vstack([front, draw]), reference) - before for draw in draws]
        assert abs(found[candidate] - np.mean(gains)) < 4 * np.std(gains) / np.sqrt(len(gains)) + 1e-4


def test_improvement_of_one_objective_is_the_textbook_s() -> None:
    mean, deviation, best = np.array([0.2, 0.9]), np.array([0.3, 0.1]), 0.5
    z = (best - mean) / deviation
    expected = (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)
    np.testing.assert_allclose(expected_improvement([mean], [deviation], np.array([[best]]), np.array([2.0])), expected)


def test_improvement_of_what_is_known_is_its_hypervolume() -> None:
    front, reference = np.array([[0.2, 0.8], [0.6, 0.3]]), np.ones(2)
    points = np.array([[0.4, 0.5], [0.7, 0.9], [0.1, 0.1], [0.9, 1.2]])
    before = pareto.hypervolume(front, reference)
    gains = [pareto.hypervolume(np.vstack([front, point]), reference) - before for point in points]
    np.testing.assert_allclose(expected_improvement(list(points.T), [np.zeros(4)] * 2, front, reference), gains, atol=1e-12)


@pytest.mark.parametrize("space", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["whole", "pool"])
def test_it_is_better_than_evolution_and_random_search_by_far(space: SearchSpace) -> None:
    dearest = float(problem_of(space).costs["macs"].of([(3,) * len(space.slots)])[0])
    found = {
        name: [volume(search(name, problem_of(space), seed, 40), (1.0, 1.1 * dearest)) for seed in range(3)]
        for name in ("prospector", "nsga2", "random")
    }
    assert min(found["prospector"]) > max(found["nsga2"] + found["random"])
    best = max(found["prospector"])
    missed = {name: best - np.mean(values) for name, values in found.items()}
    assert missed["prospector"] < 0.3 * min(missed["nsga2"], missed["random"])


def test_it_finds_a_whole_front_of_a_small_space() -> None:
    archs = list(SHORT.all())
    costs = problem_of(SHORT).costs["macs"].of(archs).numpy()
    values = np.stack([[error_of(arch) for arch in archs], costs], 1)
    front = values[pareto.nondominated(values)]
    reference = front.max(0) * 1.1
    reached = [pareto.hypervolume(np.array([t.vector((ERROR, MACS)) for t in search("prospector", problem_of(SHORT), s, 100)]), reference)
               for s in range(2)]  # fmt: skip
    assert min(reached) > 0.995 * pareto.hypervolume(front, reference)


def test_the_cheap_end_is_asked_for_first() -> None:
    problem = problem_of(SHORT)
    assert Prospector(problem, np.random.default_rng(0)).ask(1) == [problem.costs["macs"].cheapest()]


def test_costs_that_follow_from_nothing_are_known_all_the_same() -> None:
    """A latency without rhyme or reason: who may look it up takes the cheap ones of the good networks."""
    table = np.random.default_rng(0).uniform(1, 20, SHORT.num_choices)

    def found(costs: dict[str, Cost], seed: int) -> float:
        searcher = Prospector(Problem(SHORT, (ERROR, Objective("latency_ms")), costs), np.random.default_rng(seed))
        trials: list[Trial] = []
        for _ in range(5):
            archs = searcher.ask(6)
            trials += (new := [Trial(0, arch, {"error": error_of(arch), "latency_ms": float(table[arch])}) for arch in archs])
            searcher.tell(new)
        values = np.array([[trial.values["error"], trial.values["latency_ms"]] for trial in trials])
        return pareto.hypervolume(values, np.array([1.0, 20.0]))

    archs = list(SHORT.all())
    whole = pareto.hypervolume(np.array([[error_of(arch), table[arch]] for arch in archs]), np.array([1.0, 20.0]))
    free = [found({"latency_ms": TabularCost(SHORT, "latency_ms", table)}, seed) for seed in range(3)]
    hidden = [found({}, seed) for seed in range(3)]
    assert min(free) > 0.999 * whole
    assert max(hidden) < 0.99 * whole


def test_first_networks_are_spread_along_the_cost() -> None:
    problem = problem_of(LONG)
    costs = np.log(problem.costs["macs"].of(Prospector(problem, np.random.default_rng(0), pool=1000).ask(6)).numpy())
    assert len(set(np.digitize(costs, np.linspace(costs.min(), costs.max(), 5)))) == 5
    assert [_halving(i) for i in range(6)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]


def test_a_batch_is_not_the_same_network_again_and_again() -> None:
    problem = problem_of(SHORT)
    searcher = Prospector(problem, np.random.default_rng(0))
    searcher.tell([Trial(i, arch, {"error": error_of(arch), "macs": float(problem.costs["macs"].of([arch])[0])})
                   for i, arch in enumerate(searcher.ask(8))])  # fmt: skip
    costs = problem.costs["macs"].of(searcher.ask(6)).numpy()
    assert len(set(costs)) >= 5


@pytest.mark.parametrize(
    "objectives",
    [(ERROR,), (Objective("accuracy", "max"), MACS), (ERROR, Objective("loss")), (MACS,), (Objective("loss"), ERROR, MACS)],
    ids=lambda objectives: "+".join(objective.name for objective in objectives),
)
@pytest.mark.parametrize("space", [SHORT, LONG], ids=["whole", "pool"])
def test_objectives_of_all_kinds(space: SearchSpace, objectives: tuple[Objective, ...]) -> None:
    problem = problem_of(space, *objectives)
    found = search("prospector", problem, 0, 30)
    strangers = search("random", problem, 0, 30)
    objective = objectives[0]
    best, luck = (min(objective.minimised(trial.values[objective.name]) for trial in trials) for trials in (found, strangers))
    assert best < luck or (objective is MACS and best == problem.costs["macs"].of([(0,) * len(space.slots)]))


def test_the_same_whether_accuracy_or_error_is_asked_for() -> None:
    one, other = (search("prospector", problem_of(SHORT, o, MACS), 0, 25) for o in (ERROR, Objective("accuracy", "max")))
    assert [trial.arch for trial in one] == [trial.arch for trial in other]


def test_a_perfect_network_is_no_trouble() -> None:
    def error(arch: Architecture) -> float:
        return max(0.0, 0.4 - 0.1 * arch[0])

    assert min(t.values["error"] for t in search("prospector", problem_of(SHORT), 0, 25, error=error)) <= 0.1 + 1e-12
    assert len(search("prospector", problem_of(SHORT), 0, 20, error=lambda arch: 0.0)) == 20


def test_within_a_tight_budget_of_a_large_space() -> None:
    limit = float(problem_of(LONG).costs["macs"].of([(1,) * 10])[0])
    problem = problem_of(LONG, budget=limit)
    assert max(trial.values["macs"] for trial in search("prospector", problem, 0, 20)) <= limit


def test_costs_that_are_computed_one_by_one_are_computed_for_few() -> None:
    space = load_space("nasbench201", {"cells": 1, "width": 2, "input_size": 8})
    priced: list[int] = []

    class Counted(PeakMemory):
        def of(self, archs):  # type: ignore[no-untyped-def]
            priced.append(len(archs))
            return super().of(archs)

    problem = Problem(space, (ERROR, Objective("peak_mb")), {"peak_mb": Counted(space)})
    searcher = Prospector(problem, np.random.default_rng(0), initial=3, pool=200)
    for _ in range(2):
        archs = searcher.ask(3)
        priced.clear()
        searcher.tell(
            [Trial(0, arch, {"error": error_of(arch), "peak_mb": float(problem.costs["peak_mb"].of([arch])[0])}) for arch in archs]
        )
    searcher.ask(3)
    assert sum(priced) < 100


def test_tabulated_costs_are_gone_through() -> None:
    table = np.random.default_rng(0).uniform(1, 2, SHORT.num_choices)
    problem = Problem(SHORT, (ERROR, Objective("latency_ms")), {"latency_ms": TabularCost(SHORT, "latency_ms", table)})
    assert Prospector(problem, np.random.default_rng(0)).ask(1) == [tuple(int(i) for i in np.unravel_index(table.argmin(), table.shape))]


class Ranker(SharedWeights):
    """Shared weights whose scores are the true errors with noise, and that count how often they are asked."""

    seed = 0

    def __init__(self, noise: float) -> None:  # no supernet: the scores are made up
        self.noise, self.asked = noise, 0

    def trained_in(self, run: str) -> Ranker:
        return self

    def score(self, arch: Architecture, seed: int) -> dict[str, float]:
        self.asked += 1
        return {"error": error_of(arch) * float(np.exp(self.noise * np.random.default_rng(arch).standard_normal()))}


def ranked_problem(ranker: Ranker) -> Problem:
    problem = problem_of(LONG)
    return Problem(LONG, problem.objectives, problem.costs, shared=ranker)


def test_a_supernet_s_ranking_helps_where_there_are_few_trials() -> None:
    def mean(noise: float, **options: Any) -> float:
        found = []
        for seed in range(5):
            problem = ranked_problem(Ranker(noise))
            searcher = plugins.build("searchers", "prospector", options, problem, np.random.default_rng(seed))
            trials: list[Trial] = []
            for _ in range(4):
                archs = searcher.ask(2)
                new = [Trial(0, arch, {"error": error_of(arch), "macs": float(problem.costs["macs"].of([arch]))}) for arch in archs]
                searcher.tell(new)
                trials += new
            found.append(volume(trials, (1.0, 1.1 * float(problem.costs["macs"].of([(3,) * 10])))))
        return float(np.mean(found))

    alone, guided, misled = mean(0), mean(0.1, supernet="run"), mean(3.0, supernet="run")
    assert guided > 1.05 * alone
    assert misled > 0.9 * alone


def test_a_ranking_is_made_once_and_kept() -> None:
    ranker = Ranker(0.1)
    options = {"supernet": "run", "ranked": 20}
    searcher = Prospector(ranked_problem(ranker), np.random.default_rng(0), **options)  # type: ignore[arg-type]
    searcher.tell([Trial(i, arch, {"error": error_of(arch), "macs": 1.0}) for i, arch in enumerate(searcher.ask(8))])
    state = searcher.state()
    assert ranker.asked == 20 + 8  # the told ones too, so that scores and trials can be compared
    again = Prospector(ranked_problem(ranker), np.random.default_rng(1), **options)  # type: ignore[arg-type]
    again.restore(state)
    before = ranker.asked
    assert again.ask(4) == searcher.ask(4)
    assert ranker.asked == before


def test_networks_told_before_anything_is_asked_are_ranked_after_random_ones() -> None:
    ranker = Ranker(0.1)
    searcher = Prospector(ranked_problem(ranker), np.random.default_rng(0), supernet="run", ranked=20)
    archs = [(choice,) * 10 for choice in range(4)]
    searcher.tell([Trial(i, arch, {"error": error_of(arch), "macs": 1.0}) for i, arch in enumerate(archs)])
    assert ranker.asked == 20 + 4
    searcher.ask(2)
    assert ranker.asked == 20 + 4


def test_a_ranking_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(ConfigError, match="give the experiment a data section"):
        Prospector(problem_of(LONG), np.random.default_rng(0), supernet="run")
    nothing = Problem(LONG, (MACS,), problem_of(LONG).costs, shared=Ranker(0))
    with pytest.raises(ConfigError, match="none of them is an objective"):
        Prospector(nothing, np.random.default_rng(0), supernet="run")
    with pytest.raises(RunError, match="ranks nothing"):
        Prospector(ranked_problem(Ranker(float("nan"))), np.random.default_rng(0), supernet="run").ask(1)


def test_options_out_of_range_are_errors() -> None:
    for option in ({"initial": 1}, {"pool": 3}, {"whole": 0}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            plugins.build("searchers", "prospector", option, problem_of(SHORT), np.random.default_rng(0))
