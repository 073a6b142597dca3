"""Fronts and hypervolume against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from hwnas.errors import RunError
from hwnas.pareto import Floats, best, crowding, gaps, hypervolume, hypervolume_history, nondominated, reference_point, spread

LEVELS = 5


def values(rows: int = 9, least: int = 0) -> st.SearchStrategy[Floats]:
    """(n, 1 to 3 objectives) of whole numbers: many ties."""
    return st.integers(1, 3).flatmap(
        lambda m: arrays.arrays(np.float64, st.tuples(st.integers(least, rows), st.just(m)), elements=st.integers(0, LEVELS - 1).map(float))
    )


def dominates(one: Floats, other: Floats) -> bool:
    return bool((one <= other).all() and (one < other).any())


@given(values(), st.data())
def test_nondominated_rows_are_those_of_brute_force(rows: Floats, data: st.DataObject) -> None:
    for i in data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=2)) if len(rows) else ():
        rows[i, 0] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    finite = [bool(np.isfinite(row).all()) for row in rows]
    expected = [
        finite[i]
        and not any(finite[j] and (dominates(rows[j], rows[i]) or (j < i and np.array_equal(rows[j], rows[i]))) for j in range(len(rows)))
        for i in range(len(rows))
    ]
    assert nondominated(rows).tolist() == expected


def volume(rows: Floats, reference: Floats) -> int:
    """The number of unit cells of the grid that some row dominates."""
    cells = itertools.product(*(range(int(r)) for r in reference))
    return sum(any((row <= cell).all() for row in rows) for cell in cells)


@given(values())
def test_hypervolume_is_that_of_the_cells(rows: Floats) -> None:
    reference = np.full(rows.shape[1], float(LEVELS - 1))
    assert hypervolume(rows, reference) == pytest.approx(volume(rows, reference))


@given(values())
def test_history_is_the_hypervolume_of_every_prefix(rows: Floats) -> None:
    reference = np.full(rows.shape[1], float(LEVELS - 1))
    history = hypervolume_history(rows, reference)
    np.testing.assert_allclose(history, [hypervolume(rows[: i + 1], reference) for i in range(len(rows))], atol=1e-12)
    assert (np.diff(history) >= 0).all()


def test_values_that_are_no_numbers_add_nothing() -> None:
    rows = np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, np.inf]])
    reference = np.array([3.0, 3.0])
    assert nondominated(rows).tolist() == [True, False, False]
    assert hypervolume(rows, reference) == 2
    assert hypervolume_history(rows, reference).tolist() == [2, 2, 2]
    assert hypervolume(rows[1:], reference) == 0


@given(values(least=1))
def test_reference_point_lies_outside_the_front(rows: Floats) -> None:
    front = rows[nondominated(rows)]
    assert (reference_point(rows) > front).all()
    assert hypervolume(rows, reference_point(rows)) > 0


def test_reference_point_is_the_nadir_of_the_front_moved_out() -> None:
    rows = np.array([[0.0, 10.0], [10.0, 5.0], [100.0, 100.0]])
    np.testing.assert_allclose(reference_point(rows), [11.0, 10.5])
    np.testing.assert_allclose(reference_point(rows, margin=0.5), [15.0, 12.5])
    np.testing.assert_allclose(reference_point(np.array([[4.0, 0.0]])), [4.4, 1e-13])


@given(values(rows=12), st.integers(1, 14))
def test_spread_takes_different_members_and_the_ends(rows: Floats, most: int) -> None:
    front = rows[nondominated(rows)]
    taken = spread(front, most)
    assert len(taken) == min(most, len(front)) == len(set(taken.tolist()))
    assert taken.tolist() == sorted(taken.tolist())
    if len(front):
        assert front[taken, -1].min() == front[:, -1].min()
    if most > 1 and len(front):
        assert front[taken, -1].max() == front[:, -1].max()


def test_spread_is_even() -> None:
    front: NDArray[np.float64] = np.stack([np.arange(101.0), 100 - np.arange(101.0)], 1)
    assert spread(front, 5).tolist() == [0, 25, 50, 75, 100]


def test_the_best_are_whole_fronts_and_of_the_last_the_least_crowded() -> None:
    front = np.array([[0.0, 4.0], [1.0, 3.0], [1.1, 2.9], [2.0, 2.0], [4.0, 0.0]])
    rows = np.concatenate([front + 10, front])
    assert best(rows, 5).tolist()[:2] in ([5, 9], [9, 5])
    assert set(best(rows, 5).tolist()) == {5, 6, 7, 8, 9}
    assert set(best(rows, 4).tolist()) == {5, 9, 8, 6}  # 7 is the most crowded: see below
    assert set(best(rows, 7).tolist()) == {0, 4, 5, 6, 7, 8, 9}
    assert best(rows[:0], 3).tolist() == []


def test_crowding_by_hand() -> None:
    front = np.array([[0.0, 4.0], [1.0, 3.0], [1.1, 2.9], [2.0, 2.0], [4.0, 0.0]])
    np.testing.assert_allclose(crowding(front), [np.inf, 0.55, 0.5, 1.45, np.inf])
    assert crowding(np.ones((3, 2))).tolist() == [np.inf, 0.0, np.inf]


def test_no_front_without_a_finite_row() -> None:
    with pytest.raises(RunError, match="none of the 2 trials has finite objectives"):
        reference_point(np.array([[np.nan, 1.0], [np.inf, 2.0]]))


@given(values(rows=6))
def test_gaps_fill_what_is_not_dominated_and_do_not_overlap(rows: Floats) -> None:
    reference = np.full(rows.shape[1], LEVELS - 1.0)
    low, high = gaps(rows, reference)
    assert (low < high).all()
    for point in itertools.product(np.arange(-1, LEVELS) + 0.5, repeat=rows.shape[1]):
        inside = int(((low < point) & (point < high)).all(1).sum())
        free = bool((np.array(point) < reference).all()) and not (rows <= np.array(point)).all(1).any()
        assert inside == int(free)


def test_gaps_of_a_front_are_as_few_as_they_can_be() -> None:
    front = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert len(gaps(front, np.array([4.0, 4.0]))[0]) == 4
    high = np.random.default_rng(0).dirichlet(np.ones(3), size=30)
    assert len(gaps(high, np.ones(3))[0]) <= 2 * 30 + 1
