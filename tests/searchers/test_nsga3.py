"""NSGA-III: evenly spread directions, survivors along them whatever the units are, and better than random search."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, Trial
from hwnas.searchers.nsga3 import reference_directions

THREE = (Objective("error"), Objective("macs"), Objective("loss"))


@pytest.mark.parametrize(("objectives", "most", "number"), [(1, 8, 1), (2, 32, 32), (3, 32, 28), (3, 92, 91), (4, 32, 20), (5, 5, 5)])
def test_directions_are_das_and_denniss_within_the_population(objectives: int, most: int, number: int) -> None:
    directions = reference_directions(objectives, most)
    assert directions.shape == (number, objectives)
    np.testing.assert_allclose(directions.sum(1), 1)
    assert {math.comb(parts + objectives - 1, objectives - 1) for parts in range(1, 40)} >= {number}
    assert len({tuple(row) for row in directions.round(9)}) == number


def test_a_population_smaller_than_the_objectives_is_refused(toy: Any) -> None:
    with pytest.raises(ConfigError, match="at least one network for each of the 3 objectives, but got 2"):
        toy.make("nsga3", toy.problem(objectives=THREE), population=2)


def spread_trials(toy: Any, scale: float) -> list[Trial]:
    """A straight front of 40 networks, crowded at one end, and 20 behind it."""
    rng = np.random.default_rng(3)
    archs = {tuple(int(choice) for choice in row) for row in rng.integers(4, size=(80, 10))}
    places = np.sort(rng.uniform(0, 1, 40) ** 3)
    rows = [(place, 1 - place) for place in places] + [(0.6 + place, 0.6) for place in rng.uniform(0, 1, 20)]
    return [Trial(i, arch, {"error": x, "macs": scale * y}) for i, (arch, (x, y)) in enumerate(zip(sorted(archs), rows, strict=False))]


def test_survivors_are_spread_whatever_the_units_are(toy: Any) -> None:
    """pymoo cuts differences below 1e-3, so an objective in small units would lose its extreme point."""
    kept = []
    for scale in (1.0, 2.0**-14, 2.0**20):
        searcher = toy.make("nsga3", toy.problem(), population=9)
        searcher.tell(spread_trials(toy, scale))
        tensors, _ = searcher.save()
        kept.append(sorted(map(tuple, tensors["X"].tolist())))
        error = np.sort(tensors["F"][:, 0].numpy())
        assert len(error) == 9 and error[0] < 0.01 and error[-1] > 0.9
        assert np.diff(error).max() < 0.3
    assert kept[0] == kept[1] == kept[2]


def test_the_extreme_points_of_all_that_was_told_are_kept(toy: Any) -> None:
    searcher = toy.make("nsga3", toy.problem(), population=4)
    trials = spread_trials(toy, 1.0)
    for first in range(0, 60, 6):
        searcher.tell(trials[first : first + 6])
    tensors, _ = searcher.save()
    assert tensors["told"].shape == (60, 2) and tensors["X"].shape == (4, 10)
    assert tensors["F"][:, 0].min() == min(trial.values["error"] for trial in trials)
    assert tensors["F"][:, 1].min() == min(trial.values["macs"] for trial in trials[:40])


def test_pymoos_change_of_the_warnings_filter_is_undone(toy: Any) -> None:
    before = list(warnings.filters)
    toy.make("nsga3", toy.problem(), population=4).tell(spread_trials(toy, 1.0))
    assert warnings.filters == before


def test_one_and_three_objectives(toy: Any) -> None:
    for objectives in ((Objective("error"),), THREE):
        searcher = toy.make("nsga3", toy.problem(objectives=objectives), population=6)
        assert len({trial.arch for trial in toy.search(searcher, 24, batch=6)}) == 24


@pytest.mark.slow
def test_beats_random_search_at_equal_evaluations(toy: Any) -> None:
    gains = toy.gains("nsga3")
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / len(gains) ** 0.5
