"""NSGA-II on a tabulated toy: better than random search, never out of bounds, and its population is what it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwnas import pareto
from hwnas.cost import PeakMemory
from hwnas.evaluate import Objective, Trial
from hwnas.searcher import Problem
from hwnas.space import SearchSpace


@pytest.mark.parametrize("share", [None, 0.3], ids=["without", "within a budget"])
def test_beats_random_search_at_equal_evaluations(toy: Any, share: float | None) -> None:
    gains = toy.gains("nsga2", share)
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / len(gains) ** 0.5  # two standard errors of the mean gain


def test_the_population_is_the_best_of_all_that_was_told(toy: Any) -> None:
    problem = toy.problem()
    searcher = toy.make("nsga2", problem, 0, population=12)
    trials: list[Trial] = []
    for _ in range(6):
        told = toy.evaluate(searcher.ask(12), len(trials))
        searcher.tell(told)
        trials += told
    tensors, _ = searcher.save()
    values = toy.values(trials)
    front = {tuple(row) for row in values[pareto.nondominated(values)].tolist()}
    kept = {tuple(row) for row in tensors["F"].tolist()}
    assert len(tensors["F"]) == 12
    assert kept <= front if len(front) >= 12 else front <= kept
    assert {trial.arch for trial in trials} >= {tuple(row) for row in tensors["X"].tolist()}


def test_what_is_no_number_does_not_survive(toy: Any) -> None:
    problem = toy.problem()
    searcher = toy.make("nsga2", problem, 0, population=4)
    fine, broken = searcher.ask(2)
    searcher.tell([*toy.evaluate([fine]), Trial(1, broken, {"error": float("nan"), "macs": 1.0})])
    assert searcher.save()[0]["X"].tolist() == [list(fine)]


def test_the_first_generation_has_the_end_of_the_front_that_is_known(toy: Any) -> None:
    problem = toy.problem()
    assert toy.make("nsga2", problem, 0).ask(5)[0] == (0,) * 10 == problem.costs["macs"].cheapest()


def test_offspring_resemble_their_parents(toy: Any) -> None:
    """Without crossover and with few mutations a child differs from some parent in few slots; a random network does not."""
    problem = toy.problem()
    searcher = toy.make("nsga2", problem, 0, population=8, crossover=0.0, mutation=0.1)
    for _ in range(3):
        searcher.tell(toy.evaluate(searcher.ask(8)))
    parents = searcher.save()[0]["X"].numpy()
    children = searcher.ask(8)
    assert max(int((parents != np.array(child)).sum(1).min()) for child in children) <= 4


def test_a_population_that_cannot_breed_anything_new_still_goes_on(toy: Any) -> None:
    """No crossover and no mutation: neighbours of the population take the offspring's place."""
    problem = toy.problem()
    trials = toy.search(toy.make("nsga2", problem, population=8, crossover=0.0, mutation=0.0), 48, batch=8)
    assert len({trial.arch for trial in trials}) == 48


def test_odd_batches_and_one_at_a_time(toy: Any) -> None:
    problem = toy.problem()
    for batch in (1, 7):
        trials = toy.search(toy.make("nsga2", problem, population=5), 30, batch=batch)
        assert len({trial.arch for trial in trials}) == 30


def test_metrics_that_are_no_sum_are_objectives_too(toy: Any, diamond: SearchSpace) -> None:
    problem = Problem(diamond, (Objective("error"), Objective("peak_mb")), {"peak_mb": PeakMemory(diamond)})
    assert len(toy.make("nsga2", problem).ask(5)) == 3
