"""Regularised evolution: the oldest dies however good it is, children are one mutation from a tournament's winner, and it beats random."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, Trial

NAME = "regularized_evolution"


def differing(a: Any, b: Any) -> int:
    return int((np.array(a) != np.array(b)).sum())


def test_the_oldest_die_however_good_they_are(toy: Any) -> None:
    searcher = toy.make(NAME, toy.problem(), population=5, sample=2)
    archs = [tuple(int(choice) for choice in row) for row in np.random.default_rng(1).integers(4, size=(12, 10))]
    trials = [Trial(i, arch, {"error": i / 100, "macs": float(i)}) for i, arch in enumerate(archs)]  # the first dominates all
    searcher.tell(trials[:3])
    assert searcher.save()[0]["X"].tolist() == [list(arch) for arch in archs[:3]]
    searcher.tell(trials[3:4])
    searcher.tell(trials[4:])
    assert searcher.save()[0]["X"].tolist() == [list(arch) for arch in archs[7:]]
    assert searcher.save()[0]["rank"].tolist() == [0, 1, 2, 3, 4]


def test_a_child_differs_from_a_living_parent_in_one_slot(toy: Any) -> None:
    searcher = toy.make(NAME, toy.problem(), population=6, sample=3)
    toy.search(searcher, 30, batch=6)
    living = searcher.save()[0]["X"].tolist()
    assert all(min(differing(child, parent) for parent in living) == 1 for child in searcher.ask(20))


@pytest.mark.parametrize(("sample", "low", "high"), [(1, 0.05, 0.3), (6, 0.55, 0.8)])
def test_the_tournament_draws_with_replacement_and_the_best_wins(toy: Any, sample: int, low: float, high: float) -> None:
    """Of six living a sample of six holds the best with 1 - (5/6)^6 = 67 %; a sample of one with 17 %."""
    searcher = toy.make(NAME, toy.problem(objectives=(Objective("error"),)), population=6, sample=sample)
    archs = [(choice,) * 5 + (other,) * 5 for choice, other in ((0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (3, 0))]
    searcher.tell([Trial(i, arch, {"error": abs(i - 2) / 10, "macs": 1.0}) for i, arch in enumerate(archs)])
    winners = Counter(min(archs, key=lambda parent: differing(child, parent)) for child in searcher.children(30))
    assert sum(winners.values()) == 300
    assert low < winners[archs[2]] / 300 < high
    assert winners.most_common(1)[0][0] == archs[2] or sample == 1


def test_of_several_objectives_the_lowest_front_wins_and_in_it_the_least_crowded(toy: Any) -> None:
    searcher = toy.make(NAME, toy.problem(), population=5, sample=5)
    archs = [(i % 4,) * 5 + (i // 4,) * 5 for i in range(5)]
    rows = [(0.1, 9.0), (0.2, 8.0), (0.3, 7.9), (0.9, 1.0), (0.95, 9.5)]
    searcher.tell([Trial(i, arch, {"error": error, "macs": macs}) for i, (arch, (error, macs)) in enumerate(zip(archs, rows, strict=True))])
    tensors, _ = searcher.save()
    assert tensors["rank"].tolist() == [0, 0, 0, 0, 1]
    winners = Counter(min(archs, key=lambda parent: differing(child, parent)) for child in searcher.children(60))
    assert winners[archs[0]] + winners[archs[3]] > 0.7 * sum(winners.values())  # the ends
    assert winners[archs[4]] < 0.01 * sum(winners.values())  # (1/5)^5


def test_a_sample_larger_than_the_population_is_refused(toy: Any) -> None:
    with pytest.raises(ConfigError, match="sample must be at most its population of 4, but is 5"):
        toy.make(NAME, toy.problem(), population=4, sample=5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.3], ids=["without", "within a budget"])
def test_beats_random_search_at_equal_evaluations(toy: Any, share: float | None) -> None:
    gains = toy.gains(NAME, share)
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / len(gains) ** 0.5
