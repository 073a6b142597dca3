"""Decision diagrams against functions that are tabulated over all assignments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.diagram import Diagrams, Evaluation
from hwnas.errors import SpaceError

SIZES = (2, 3, 2, 3)
ASSIGNMENTS = list(itertools.product(*map(range, SIZES)))


def tabulated(diagrams: Diagrams, function: int) -> np.ndarray:
    return Evaluation(diagrams, [function]).at(torch.tensor(ASSIGNMENTS))[:, 0].numpy()


def drawn(diagrams: Diagrams, table: list[int]) -> int:
    """The function that takes the values of a table, assignment by assignment."""
    found = diagrams.constant(table[-1])
    for assignment, value in zip(ASSIGNMENTS, table, strict=True):
        here = diagrams.true
        for variable, choice in enumerate(assignment):
            here = diagrams.both(here, diagrams.literal(variable, choice))
        found = diagrams.choose(here, diagrams.constant(value), found)
    return found


TABLES = st.lists(st.integers(0, 3), min_size=len(ASSIGNMENTS), max_size=len(ASSIGNMENTS))


@settings(max_examples=15)
@given(TABLES, TABLES, st.integers(0, 3))
def test_operations_are_those_of_the_tables(first: list[int], second: list[int], value: int) -> None:
    diagrams = Diagrams(SIZES, 10_000)
    a, b = drawn(diagrams, first), drawn(diagrams, second)
    x, y = np.array(first), np.array(second)
    np.testing.assert_array_equal(tabulated(diagrams, a), x)
    assert diagrams.leaves(a) == set(first)
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.plus(a, b)), x + y)
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.equal(a, b)), x == y)
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.at_least(a, value)), x >= value)
    condition = diagrams.at_least(b, 2)
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.choose(condition, a, b)), np.where(y >= 2, x, y))
    other = diagrams.at_least(a, 1)
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.without(condition, other)), (y >= 2) & ~(x >= 1))
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.either([condition, other])), (y >= 2) | (x >= 1))
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.both(condition, other)), (y >= 2) & (x >= 1))
    assert (diagrams.plus(a, b) == diagrams.plus(b, a)) and (a == b) == (first == second)  # equal functions, equal numbers
    fixed = {1: 2, 3: 0}
    rows = [ASSIGNMENTS.index((p, 2, q, 0)) for p, _, q, _ in ASSIGNMENTS]
    np.testing.assert_array_equal(tabulated(diagrams, diagrams.restrict(a, fixed)), x[rows])
    assert not diagrams.support(diagrams.restrict(a, fixed)) & set(fixed)


@settings(max_examples=10)
@given(TABLES, TABLES)
def test_the_mean_is_that_of_all_assignments(first: list[int], second: list[int]) -> None:
    diagrams = Diagrams(SIZES, 10_000)
    evaluation = Evaluation(diagrams, [drawn(diagrams, first), drawn(diagrams, second)])
    shares = torch.rand(3, len(SIZES), max(SIZES), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    chance = torch.stack([shares[:, v, [a[v] for a in ASSIGNMENTS]] for v in range(len(SIZES))]).prod(0)
    weights = torch.stack([shares[:, v, :n].sum(-1) for v, n in enumerate(SIZES)]).prod(0)
    normal = torch.stack([shares[:, v, :, None] / shares[:, v, :n].sum(-1)[:, None, None] for v, n in enumerate(SIZES)], 1)[..., 0]
    wanted = chance @ torch.tensor([first, second], dtype=torch.float64).T / weights[:, None]
    found = evaluation.mean(normal)
    torch.testing.assert_close(found, wanted)
    by_diagram, by_force = (torch.autograd.grad(value.sum() + 0 * shares.sum(), shares, retain_graph=True)[0] for value in (found, wanted))
    torch.testing.assert_close(by_diagram, by_force)


def test_a_function_that_needs_few_facts_has_few_nodes() -> None:
    """Whether an odd number of 60 choices is 1: two nodes a variable, of 2^60 assignments."""
    diagrams = Diagrams([2] * 60, 10_000)
    odd = diagrams.false
    for variable in range(60):
        one = diagrams.literal(variable, 1)
        odd = diagrams.choose(one, diagrams.without(diagrams.true, odd), odd)
    evaluation = Evaluation(diagrams, [odd])
    assert evaluation.nodes == 2 * 59 + 1 + 2
    shares = torch.tensor([0.9, 0.1], dtype=torch.float64).expand(60, 2)
    assert float(evaluation.mean(shares)) == pytest.approx((1 - 0.8**60) / 2)


def test_too_many_nodes_are_refused() -> None:
    diagrams = Diagrams([2] * 8, 10)
    literals = [diagrams.literal(variable, 1) for variable in range(8)]
    with pytest.raises(SpaceError, match="more than the 10 nodes"):
        diagrams.either(literals)


@settings(max_examples=15)
@given(TABLES, TABLES, TABLES)
def test_a_part_is_the_same_functions_with_fewer_nodes(first: list[int], second: list[int], third: list[int]) -> None:
    diagrams = Diagrams(SIZES, 1 << 12)
    whole = Evaluation(diagrams, [drawn(diagrams, table) for table in (first, second, third)])
    part = whole.part(torch.tensor([2, 0]))
    assignments = torch.tensor(ASSIGNMENTS)
    assert part.at(assignments).tolist() == whole.at(assignments)[:, [2, 0]].tolist()
    assert part.nodes <= whole.nodes
