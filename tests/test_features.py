"""Features against an enumeration of the paths of a cell; equal for isomorphic cells, whatever the number of cells."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwnas.features import WIDTH, Features, Floats, _rotation, _sort
from hwnas.space import Architecture, SearchSpace, load_space

PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
SKIP, ONE, THREE, POOL = 1, 2, 3, 4


@pytest.fixture(scope="module")
def cell() -> SearchSpace:
    return load_space("nasbench201", {"cells": 1, "width": 2, "input_size": 8})


def described(space: SearchSpace, archs: list[Architecture]) -> dict[str, Floats]:
    there, groups = Features(space)(np.array(archs))
    assert there.all()
    return groups


def random_archs(space: SearchSpace, n: int) -> list[Architecture]:
    rng = np.random.default_rng(0)
    return [space.random(rng) for _ in range(n)]


def test_a_cell_s_paths_are_those_of_an_enumeration(cell: SearchSpace) -> None:
    archs = random_archs(cell, 60)
    found = described(cell, archs)
    ops = {str(op): op for op in cell.operators()}
    turns = {choice: _rotation(_sort(next(op for op in ops.values() if (op.kind, op.kernel) == kind))) for choice, kind in
             {ONE: ("conv_bn", 1), THREE: ("conv_bn", 3), POOL: ("avg_pool", 3)}.items()}  # fmt: skip
    for row, arch in enumerate(archs):
        paths = [[arch[edge] for edge in path] for path in PATHS if all(arch[edge] for edge in path)]
        words = [[choice for choice in path if choice != SKIP] for path in paths]
        works, learned, sees = ([sum(c in what for c in word) for word in words] for what in ((ONE, THREE, POOL), (ONE, THREE), (THREE,)))
        expected = [*map(max, (works, learned, sees)), *map(min, (works, learned, sees)), np.log(len(paths))]
        np.testing.assert_allclose(found["paths"][row], expected, rtol=1e-6)
        total = np.zeros((WIDTH, WIDTH))
        for word in words:
            product = np.eye(WIDTH)
            for choice in word:
                product = product @ turns[choice]
            total += product
        np.testing.assert_allclose(found["orders"][row], total.ravel(), atol=1e-5)
        alive = {edge for path in PATHS if all(arch[e] for e in path) for edge in path}
        counts = sorted(sum(arch[edge] == choice for edge in alive) for choice in (ONE, THREE, POOL))
        assert sorted(found["counts"][row].tolist()) == counts
        assert found["places"][row].sum() == len(alive)


def test_isomorphic_cells_have_equal_features_and_others_do_not(cell: SearchSpace) -> None:
    archs: list[tuple[int, ...]] = [(2, 3, 0, 1, 4, 2), (3, 2, 0, 1, 2, 4), (3, 2, 0, 1, 4, 2)]
    found = described(cell, archs)
    assert cell.identity(archs[0]) == cell.identity(archs[1]) != cell.identity(archs[2])
    for group in ("counts", "paths", "orders"):
        np.testing.assert_allclose(found[group][0], found[group][1], atol=1e-5)
    assert np.abs(found["orders"][0] - found["orders"][2]).max() > 0.1


def test_repeated_cells_are_looked_at_once(cell: SearchSpace) -> None:
    archs = random_archs(cell, 30)
    once, often = described(cell, archs), described(load_space("nasbench201", {"cells": 3, "width": 2, "input_size": 8}), archs)
    for group, values in once.items():
        np.testing.assert_array_equal(values, often[group])


def test_handing_on_leaves_no_trace_on_a_path(cell: SearchSpace) -> None:
    straight, around = (0, 0, 0, THREE, 0, 0), (THREE, 0, SKIP, 0, 0, SKIP)
    found = described(cell, [straight, around])
    np.testing.assert_array_equal(found["orders"][0], found["orders"][1])
    np.testing.assert_array_equal(found["counts"][0], found["counts"][1])


def test_what_is_alive_is_what_the_space_says(space: SearchSpace) -> None:
    features = Features(space)
    rng = np.random.default_rng(1)
    archs = np.stack([rng.integers(choices, size=40) for choices in space.num_choices], 1)
    alive = space.alive_in(archs)
    for column, arch in enumerate(archs.tolist()):
        assert tuple(np.flatnonzero(alive[:, column]).tolist()) == space.alive(arch)
    there, groups = features(archs)
    assert there.tolist() == [space.is_valid(arch) for arch in archs.tolist()]
    assert all(np.isfinite(values).all() and len(values) == len(archs) for values in groups.values())
    assert groups["places"].shape[1] > 0


class Ruled(SearchSpace):
    """A space whose choices are made by a rule, the same as without."""

    expectable = False


def test_where_a_rule_chooses_architectures_are_taken_one_by_one(diamond: SearchSpace) -> None:
    ruled = Ruled(diamond.input_shape, diamond.classes, diamond.slots, diamond.sites)
    archs = np.array(list(diamond.all()))
    for values, others in zip(Features(diamond)(archs)[1].values(), Features(ruled)(archs)[1].values(), strict=True):
        np.testing.assert_array_equal(values, others)


def test_sorts_turn_differently_and_keep_lengths() -> None:
    turns = [_rotation(sort) for sort in ("conv k1", "conv k3", "pool k3")]
    for one, other in itertools.combinations(turns, 2):
        assert np.abs(one - other).max() > 0.1
    for turn in turns:
        np.testing.assert_allclose(turn @ turn.T, np.eye(WIDTH), atol=1e-12)
