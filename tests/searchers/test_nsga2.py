"""NSGA-II on a tabulated toy: better than random search, never out of bounds, and its population is what it should be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hwnas import pareto, plugins, resources
from hwnas.cost import Cost, CostModel, PeakMemory
from hwnas.evaluate import Objective, Trial
from hwnas.op import OpSpec
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture, SearchSpace, Site, Slot

OBJECTIVES = (Objective("error"), Objective("macs"))
KERNELS = (1, 3, 5, 7)


@pytest.fixture(scope="module")
def chain() -> SearchSpace:
    """Ten convolutions one after the other, each of four kernels."""
    slots = tuple(Slot(f"conv{i}", tuple(f"k{kernel}" for kernel in KERNELS)) for i in range(10))
    sites = [Site(OpSpec("conv_bn", 1, 4, 8, 8), ("input",), "n0")]
    for i in range(10):
        for choice, kernel in enumerate(KERNELS):
            sites.append(Site(OpSpec("conv_bn", 4, 4, 8, 8, kernel=kernel), (f"n{i}",), f"n{i + 1}", ((i, choice),)))
    sites.append(Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), ("n10",), "output"))
    return SearchSpace((1, 8, 8), 2, slots, tuple(sites), name="chain")


def make_problem(space: SearchSpace, budget: float | None = None) -> Problem:
    costs: dict[str, Cost] = {"macs": CostModel(space, resources.macs, metric="macs")}
    return Problem(space, OBJECTIVES, costs, {} if budget is None else {"macs": budget})


def make(name: str, problem: Problem, seed: int, **options: float) -> Searcher:
    searcher: Searcher = plugins.build("searchers", name, options, problem, np.random.default_rng(seed))
    return searcher


def tabulate(space: SearchSpace, archs: list[Architecture], problem: Problem, first: int) -> list[Trial]:
    """Larger kernels help, each slot to its own degree, and neighbours of one size help more: a smooth trade-off with a twist."""
    worth = np.random.default_rng(7).uniform(0.2, 1.0, len(space.slots))
    told = []
    for index, arch in enumerate(archs, first):
        quality = float(worth @ np.sqrt(np.array(arch) / 3)) + 0.3 * sum(a == b for a, b in pairwise(arch))
        macs = float(problem.known([arch])["macs"][0])
        told.append(Trial(index, arch, {"error": 1 - quality / 10, "macs": macs}))
    return told


def search(name: str, problem: Problem, seed: int, evaluations: int, batch: int = 16, **options: float) -> list[Trial]:
    searcher = make(name, problem, seed, **options)
    trials: list[Trial] = []
    while len(trials) < evaluations:
        told = tabulate(problem.space, searcher.ask(min(batch, evaluations - len(trials))), problem, len(trials))
        searcher.tell(told)
        trials += told
    return trials


@pytest.mark.parametrize("share", [None, 0.3], ids=["without", "within a budget"])
def test_beats_random_search_at_equal_evaluations(chain: SearchSpace, share: float | None) -> None:
    every = CostModel(chain, resources.macs)
    low, high = float(every.of([(0,) * 10])), float(every.of([(3,) * 10]))
    problem = make_problem(chain, None if share is None else low + share * (high - low))
    gains = []
    for seed in range(6):
        volumes = {}
        for name in ("nsga2", "random"):
            values = np.array([trial.vector(OBJECTIVES) for trial in search(name, problem, seed, 160)])
            values[:, 1] = (values[:, 1] - low) / (high - low)
            volumes[name] = pareto.hypervolume(values, np.array([1.0, 1.1]))
        gains.append(volumes["nsga2"] - volumes["random"])
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / len(gains) ** 0.5  # two standard errors of the mean gain


def test_the_population_is_the_best_of_all_that_was_told(chain: SearchSpace) -> None:
    problem = make_problem(chain)
    searcher = make("nsga2", problem, 0, population=12)
    trials: list[Trial] = []
    for _ in range(6):
        told = tabulate(chain, searcher.ask(12), problem, len(trials))
        searcher.tell(told)
        trials += told
    tensors, _ = searcher.save()
    values = np.array([trial.vector(OBJECTIVES) for trial in trials])
    front = {tuple(row) for row in values[pareto.nondominated(values)].tolist()}
    kept = {tuple(row) for row in tensors["F"].tolist()}
    assert len(tensors["F"]) == 12
    assert kept <= front if len(front) >= 12 else front <= kept
    assert {trial.arch for trial in trials} >= {tuple(row) for row in tensors["X"].tolist()}


def test_what_is_no_number_does_not_survive(chain: SearchSpace) -> None:
    problem = make_problem(chain)
    searcher = make("nsga2", problem, 0, population=4)
    fine, broken = searcher.ask(2)
    searcher.tell([*tabulate(chain, [fine], problem, 0), Trial(1, broken, {"error": float("nan"), "macs": 1.0})])
    assert searcher.save()[0]["X"].tolist() == [list(fine)]


def test_the_first_generation_has_the_end_of_the_front_that_is_known(chain: SearchSpace) -> None:
    problem = make_problem(chain)
    assert make("nsga2", problem, 0).ask(5)[0] == (0,) * 10 == problem.costs["macs"].cheapest()


def test_offspring_resemble_their_parents(chain: SearchSpace) -> None:
    """Without crossover and with few mutations a child differs from some parent in few slots; a random network does not."""
    problem = make_problem(chain)
    searcher = make("nsga2", problem, 0, population=8, crossover=0.0, mutation=0.1)
    for _ in range(3):
        searcher.tell(tabulate(chain, searcher.ask(8), problem, 0))
    parents = searcher.save()[0]["X"].numpy()
    children = searcher.ask(8)
    assert max(int((parents != np.array(child)).sum(1).min()) for child in children) <= 4


def test_a_population_that_cannot_breed_anything_new_still_goes_on(chain: SearchSpace) -> None:
    """No crossover and no mutation: neighbours of the population take the offspring's place."""
    problem = make_problem(chain)
    trials = search("nsga2", problem, 0, 48, batch=8, population=8, crossover=0.0, mutation=0.0)
    assert len({trial.arch for trial in trials}) == 48


def test_odd_batches_and_one_at_a_time(chain: SearchSpace) -> None:
    problem = make_problem(chain)
    for batch in (1, 7):
        trials = search("nsga2", problem, 0, 30, batch=batch, population=5)
        assert len({trial.arch for trial in trials}) == 30


def test_metrics_that_are_no_sum_are_objectives_too(diamond: SearchSpace) -> None:
    problem = Problem(diamond, (Objective("error"), Objective("peak_mb")), {"peak_mb": PeakMemory(diamond)})
    assert len(make("nsga2", problem, 0).ask(5)) == 3
