"""What can be told of any architecture from its sites: which operators it computes, and what lies on its paths.

Where choices are shared by many cells only the first cell that each choice decides is looked at; the others repeat it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from hwnas import resources
from hwnas.op import OpSpec
from hwnas.space import IDENTITY, SearchSpace, Site

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

WIDTH = 8
"""Rows of the matrices that operators turn into along a path."""
_MOST_PATHS = 1e6  # paths beyond which more make no difference, so that nothing overflows


@dataclass(frozen=True)
class _Token:
    """What a decided site contributes to a path: nothing if it only hands on."""

    sort: str
    turn: NDArray[np.float64]
    weights: NDArray[np.float64]


class Features:
    """Groups of numbers that describe architectures of a space, equal for isomorphic cells but for the last group.

    `counts`: how often each sort of operator (sizes aside) is chosen and alive. `paths`: of the paths from the input of a
    cell to its end the longest and the shortest, in operators, in operators with weights and in how far these see, and
    the logarithm of their number. `orders`: a signature of what stands on the paths in which order: every sort of operator is a rotation
    of WIDTH dimensions (handing on is none), a path their product, and a cell the sum over its paths. `places`: which
    decisions are alive.

    A cell ends where a slot is decided again: a path through it meets its slots in ascending order.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._first = _first_runs(space)
        self._by_sort: dict[str, _Token] = {}
        self._tokens = {i: self._token(space.sites[i]) for i in self._first if space.sites[i].when}

    def __call__(self, archs: NDArray[np.int64]) -> tuple[Bools, dict[str, Floats]]:
        """Of `archs` (architecture, slot) which have a path, and the groups, each (architecture, number)."""
        alive = self.space.alive_in(archs)
        places: dict[object, Bools] = {}
        counts = {token.sort: np.zeros(len(archs), np.float32) for token in self._tokens.values() if token.sort}
        for i, token in self._tokens.items():
            when = self.space.sites[i].when
            places[when] = places.get(when, np.zeros(len(archs), np.bool_)) | alive[i]
            if token.sort:
                counts[token.sort] += alive[i]
        paths, orders = self._walk(alive)
        columns: dict[str, list[Any]] = {"counts": [*counts.values()], "paths": paths, "orders": orders, "places": [*places.values()]}
        groups = {group: np.array(found, np.float32).reshape(len(found), len(archs)).T for group, found in columns.items()}
        return np.asarray(alive.any(0)), groups

    def _token(self, site: Site) -> _Token:
        op = site.op
        if op.kind == IDENTITY:
            made = [writer for writer in self.space.writers.get(site.inputs[0], ()) if writer.weightless]
            if not made:
                return _Token("", np.eye(WIDTH), np.zeros(3))
            op = made[0].op
        sort = _sort(op)
        if sort not in self._by_sort:
            learned = resources.params(op) > 0
            weights = np.array([1.0, learned, learned * op.dilation * (op.kernel - 1) / 2])
            self._by_sort[sort] = _Token(sort, _rotation(sort), weights)
        return self._by_sort[sort]

    def _walk(self, alive: Bools) -> tuple[list[Floats], list[Floats]]:
        """`paths` and `orders`, for every first run: from each node that a run is entered at to each at which it ends."""
        n = alive.shape[1]
        nodes: dict[str, _Sums] = {}
        ends: dict[int, _Sums] = {}
        for i, run in self._first.items():
            site, here = self.space.sites[i], alive[i]
            if not here.any():
                continue
            reached = _Sums(n)
            for node in dict.fromkeys(site.inputs):
                reached.join(nodes[node] if (node, run) in self._inner else _Sums.start(n), here)
            if i in self._tokens:
                reached.append(self._tokens[i])
            nodes.setdefault(site.output, _Sums(n)).join(reached, here)
            if site.output in self._ends:
                ends.setdefault(run, _Sums(n)).join(reached, here)
        paths = [column for sums in ends.values() for column in sums.summary()]
        return paths, [column for sums in ends.values() for column in sums.orders()]

    @cached_property
    def _inner(self) -> set[tuple[str, int]]:
        """(node, run) where a node is written within a first run."""
        return {(self.space.sites[i].output, run) for i, run in self._first.items()}

    @cached_property
    def _ends(self) -> set[str]:
        """Nodes at which a run ends: a decided site writes them, and another run or none reads them, maybe through undecided sites."""
        sites = self.space.sites
        runs = {sites[i].output: run for i, run in self._first.items()}
        left = {self.space.output}
        for i in range(len(sites) - 1, -1, -1):
            for node in sites[i].inputs:
                if self._first.get(i) != runs.get(node) if sites[i].when else sites[i].output in left:
                    left.add(node)
        return left & {sites[i].output for i in self._tokens}


class _Sums:
    """Over the paths that reach a node, for n architectures at once: extremes of their weights, their number, the sum of their turns."""

    def __init__(self, n: int) -> None:
        self.high = np.full((3, n), -np.inf)
        self.low = np.full((3, n), np.inf)
        self.number = np.zeros(n)
        self.turns = np.zeros((n, WIDTH, WIDTH), np.float32)

    @classmethod
    def start(cls, n: int) -> _Sums:
        """One path of no operators."""
        found = cls(n)
        found.high[:], found.low[:], found.number[:], found.turns[:] = 0, 0, 1, np.eye(WIDTH)
        return found

    def join(self, other: _Sums, where: Bools) -> None:
        """Takes in another's paths for those architectures."""
        self.high = np.where(where, np.maximum(self.high, other.high), self.high)
        self.low = np.where(where, np.minimum(self.low, other.low), self.low)
        self.number = np.minimum(self.number + where * other.number, _MOST_PATHS)
        self.turns += where[:, None, None] * other.turns

    def append(self, token: _Token) -> None:
        """One operator more on every path."""
        self.high += token.weights[:, None]
        self.low += token.weights[:, None]
        self.turns = self.turns @ token.turn.astype(np.float32)

    def summary(self) -> list[Floats]:
        """Extremes and the logarithm of the number; 0 for architectures without a path."""
        there = self.number > 0
        return [np.where(there, column, 0).astype(np.float32) for column in (*self.high, *self.low, np.log(np.maximum(self.number, 1)))]

    def orders(self) -> list[Floats]:
        """The entries of the sum of turns, of more than `_MOST_PATHS` paths their mean."""
        scale = np.where(self.number < _MOST_PATHS, 1.0, 1 / _MOST_PATHS).astype(np.float32)
        return list((self.turns * scale[:, None, None]).reshape(len(self.turns), -1).T)


def _first_runs(space: SearchSpace) -> dict[int, int]:
    """Sites that are looked at, with the run that each belongs to: how often the slots on its way began anew.

    Of sites that the same slot decides first those of the lowest run are kept, and of undecided ones those of a kept run.
    """
    reached = {space.input: (0, -1)}
    runs: list[int] = []
    lowest: dict[int, int] = {}
    for site in space.sites:
        run, last = max(reached[node] for node in site.inputs)
        if site.when:
            slot = min(slot for slot, _ in site.when)
            if slot < last:
                run, last = run + 1, -1
            last = max(last, slot)
            lowest[slot] = min(lowest.get(slot, run), run)
        runs.append(run)
        reached[site.output] = max(reached.get(site.output, (run, last)), (run, last))
    kept = set(lowest.values())
    found = {}
    for i, (site, run) in enumerate(zip(space.sites, runs, strict=True)):
        if run in kept and (not site.when or lowest[min(slot for slot, _ in site.when)] == run):
            found[i] = run
    return found


def _sort(op: OpSpec) -> str:
    """An operator without what its place decides: channels and size of the image."""
    groups = "each" if 1 < op.groups == op.c_in else str(op.groups)
    return f"{op.kind} k{op.kernel} s{op.stride} d{op.dilation} e{op.hidden / op.c_in:.2g} g{groups}"


def _rotation(sort: str) -> NDArray[np.float64]:
    """A rotation that the sort's name decides, of about one radian."""
    seed = int.from_bytes(hashlib.sha256(sort.encode()).digest()[:8], "little")
    turn = np.random.default_rng(seed).normal(size=(WIDTH, WIDTH))
    return np.asarray(expm((turn - turn.T) / np.sqrt(2 * WIDTH)))
