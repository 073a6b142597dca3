"""Prospector, our own: digs where the front is expected to move most. Costs are known from the table, accuracy from a Gaussian process.

What is expected of a network is its exact hypervolume improvement: costs have no deviation, objectives that must be measured
have the Gaussian process's. It is computed for the whole space where that is small, else for a large pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtr
from torch import Tensor

from hwnas.cost import Cost, TabularCost
from hwnas.errors import ConfigError, RunError
from hwnas.evaluate import MEASURED, Objective, SharedWeights, Trial
from hwnas.features import Features
from hwnas.gaussian import GaussianProcess, Posterior, distances
from hwnas.pareto import gaps, nondominated, spread
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_MARGIN = 0.1  # of the range of what is known: how far the reference point lies beyond the worst
_REFIT = 1.25  # as many more trials as before, and the Gaussian process is fitted anew
_SHORTLIST = 1000  # candidates that a batch is chosen from, one after the other
_LARGE_FRONT = 30  # members of a front of four and more objectives that improvement is computed against
_NEAR = 4  # candidates, at least, that one of the first networks is drawn from
_PARENTS = 20  # best candidates whose neighbours are looked at
_TASK = "task"  # the group of features that tells scores by a supernet from trials
_FLOOR = 1e-2  # of the median: values below are as good as it, so that a logarithm of 0 is never taken


@dataclass
class _Pool:
    """Candidates that are valid and keep the budgets, with their features and known objectives (as logarithms), by name."""

    archs: Rows
    groups: list[NDArray[np.float32]]
    known: dict[str, Floats]

    def only(self, rows: Rows) -> _Pool:
        return _Pool(self.archs[rows], [group[rows] for group in self.groups], {name: values[rows] for name, values in self.known.items()})

    def joined(self, other: _Pool) -> _Pool:
        groups = [np.vstack(both) for both in zip(self.groups, other.groups, strict=True)]
        known = {name: np.concatenate([values, other.known[name]]) for name, values in self.known.items()}
        return _Pool(np.vstack([self.archs, other.archs]), groups, known)


class Prospector(Searcher):
    """Gaussian processes for what is measured, exact costs for what is known, batches by expected hypervolume improvement.

    The first networks are spread along a known cost, beginning with the cheapest. Of a batch each network is chosen as if
    those before it had turned out as expected. Errors, losses and costs are compared by their logarithms: a tenth less is
    worth the same at either end of the front. Scores by a supernet that another run has trained are data for the Gaussian
    processes too, at a distance from the trials that is learnt: as far as both agree they count.

    Args:
        initial: networks that are asked before there is a model; by default 6, and 3 where a supernet has scored networks.
        whole: assignments of choices up to which every network is a candidate, if costs are looked up and not computed one by one.
        pool: candidates that are drawn for each ask elsewhere, an eighth of it where networks are pruned or priced one by one.
        supernet: the folder of a run on this space that has trained a supernet; none by default.
        ranked: random networks that it scores, before anything is asked.

    Raises:
        ConfigError: a supernet without data to score networks on, or without an objective that it scores.
        RunError: the run has no supernet, or that of another space.
    """

    small: ClassVar[dict[str, Any]] = {"initial": 3, "whole": 16, "pool": 32}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        initial: Annotated[int, Field(ge=2)] | None = None,
        whole: Annotated[int, Field(ge=1)] = 1 << 14,
        pool: Annotated[int, Field(ge=16)] = 1000,
        supernet: str = "",
        ranked: Annotated[int, Field(ge=8)] = 64,
    ) -> None:
        super().__init__(problem, rng)
        self.initial = initial or (3 if supernet else 6)
        slow = [
            m for m in (*(o.name for o in problem.objectives), *problem.budgets) if m in problem.costs and not _looked_up(problem.costs[m])
        ]
        self._all = problem.space.size <= whole and not slow
        self._size = pool if problem.space.expectable and not slow else max(16, pool // 8)
        self.features = Features(problem.space)
        self._known = [o for o in problem.objectives if o.name in problem.costs]
        self._measured = [o for o in problem.objectives if o.name not in problem.costs]
        self._archs: list[Architecture] = []
        self._values: dict[str, list[float]] = {o.name: [] for o in self._measured}
        self._supernet, self._number = self._supernet_of(supernet) if supernet else None, ranked
        self._ranked: list[Architecture] = []
        self._scores: dict[str, list[float]] = {}
        self._processes = {
            o.name: GaussianProcess(len(self._groups), doubtful=self._supernet is not None and o.name in MEASURED) for o in self._measured
        }
        self._fitted = 0
        self._priced: dict[tuple[str, Architecture], float] = {}

    def propose(self, n: int) -> list[Architecture]:
        """The next of the first networks, or the batch of the largest expected improvement."""
        self._rank_strangers()
        chosen = self._first(n) if len(self._archs) < self.initial else self._best(n)
        return self.unasked(chain(chosen, self.random_architectures(n)), n)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Remembers what was measured, and fits the Gaussian processes anew where there is much more of it."""
        self._archs += [trial.arch for trial in trials]
        if self._supernet is not None:
            self._rank_strangers()
            self._rank(self._supernet, [trial.arch for trial in trials])
        for objective in self._measured:
            self._values[objective.name] += [_positive(objective, trial.values[objective.name]) for trial in trials]
        if len(self._archs) >= max(self.initial, self._fitted * _REFIT):
            told = self._told()
            for name, process in self._processes.items():
                groups, values = self._evidence(name, told)
                process.fit(distances(groups, groups), values, len(values) - len(told.archs))
            self._fitted = len(self._archs)

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was told and what the Gaussian processes have been fitted to."""
        tensors = {"archs": torch.tensor(self._archs, dtype=torch.int64).reshape(-1, len(self.problem.space.slots))}
        tensors |= {f"values.{name}": torch.tensor(values, dtype=torch.float64) for name, values in self._values.items()}
        tensors |= {f"theta.{name}": torch.as_tensor(process.theta) for name, process in self._processes.items()}
        if self._ranked:
            tensors["ranked"] = torch.tensor(self._ranked, dtype=torch.int64)
            tensors |= {f"scores.{name}": torch.tensor(scores, dtype=torch.float64) for name, scores in self._scores.items()}
        return tensors, {"fitted": self._fitted}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._archs = [tuple(row) for row in tensors["archs"].tolist()]
        self._values = {name: tensors[f"values.{name}"].tolist() for name in self._values}
        for name, process in self._processes.items():
            process.theta = tensors[f"theta.{name}"].numpy()
        self._fitted = values["fitted"]
        if "ranked" in tensors:
            self._ranked = [tuple(row) for row in tensors["ranked"].tolist()]
            self._scores = {name.removeprefix("scores."): t.tolist() for name, t in tensors.items() if name.startswith("scores.")}

    def _supernet_of(self, run: str) -> SharedWeights:
        """That of another run, to score networks with."""
        if self.problem.shared is None:
            raise ConfigError("a supernet ranks networks by scores on data; give the experiment a data section, or leave supernet out")
        if not any(objective.name in MEASURED for objective in self._measured):
            raise ConfigError(f"a supernet scores {', '.join(sorted(MEASURED))}, and none of them is an objective; leave supernet out")
        return self.problem.shared.trained_in(run)

    def _rank(self, supernet: SharedWeights, archs: Sequence[Architecture]) -> None:
        """Lets the supernet score networks."""
        for arch in archs:
            values = supernet.score(arch, supernet.seed)
            self._ranked.append(arch)
            for objective in self._measured:
                if objective.name in MEASURED:
                    score = _positive(objective, values[objective.name])
                    self._scores.setdefault(objective.name, []).append(score if math.isfinite(score) else math.inf)
        if not any(math.isfinite(score) for scores in self._scores.values() for score in scores):
            raise RunError("the supernet ranks nothing: its scores are no numbers; train it with a lower lr, or leave supernet out")

    def _rank_strangers(self) -> None:
        """Lets the supernet score random networks, once and before all others."""
        if self._supernet is not None and not self._ranked:
            self._rank(self._supernet, list(dict.fromkeys(self.problem.random(self.rng) for _ in range(self._number))))

    def _evidence(self, name: str, told: _Pool) -> tuple[list[NDArray[np.float32]], Floats]:
        """Features and values (logarithms) that the process of a measured objective learns from.

        Scores by a supernet are shifted and scaled so that those of the told networks have the mean and spread of the trials.
        """
        values = _log(np.array(self._values[name]))
        if name not in self._scores:
            return told.groups, values
        finite = np.isfinite(self._scores[name])
        scores = _log(np.array(self._scores[name])[finite])
        archs = np.array(self._ranked, dtype=np.int64)[finite]
        same = scores[np.flatnonzero(finite) >= len(finite) - len(values)]  # the told ones come last
        same = same if len(same) else scores
        scores = values.mean() + (scores - same.mean()) * values.std() / (same.std() or 1.0)
        ranked = self._describe(archs, self.features(archs)[1], task=1.0)
        return [np.vstack(both) for both in zip(told.groups, ranked.groups, strict=True)], np.concatenate([values, scores])

    @property
    def _groups(self) -> list[str]:
        """The names of the groups of features of a pool."""
        return [*(name for name, _ in self._scales), *([_TASK] if self._supernet is not None else [])]

    @cached_property
    def _sample(self) -> Rows:
        """Architectures that every feature is scaled by: all, or the same random ones in every run."""
        space = self.problem.space
        if self._all:
            return np.array(list(space.all()), dtype=np.int64).reshape(space.size, len(space.slots))
        return self._drawn(np.random.default_rng(0), self._size)

    def _drawn(self, rng: np.random.Generator, n: int) -> Rows:
        return np.stack([rng.integers(choices, size=n) for choices in self.problem.space.num_choices], 1)

    @cached_property
    def _scales(self) -> list[tuple[str, float]]:
        """The groups of features that differ between networks, and what makes their mean squared distance 1."""
        there, groups = self.features(self._sample)
        groups = self._with_costs(self._sample, groups)
        widths = {name: float(np.sqrt(2 * group[there].var(0, dtype=np.float64).sum())) for name, group in groups.items()}
        return [(name, 1 / width) for name, width in widths.items() if width > 0]

    def _cost(self, metric: str, archs: Rows) -> Floats:
        """The logarithm of a known cost; 0 where there is no network."""
        cost = self.problem.costs[metric]
        if _looked_up(cost):
            values = cost.of(torch.as_tensor(archs)).numpy()
        else:
            rows = [tuple(arch) for arch in archs.tolist()]
            new = [arch for arch in dict.fromkeys(rows) if (metric, arch) not in self._priced]
            self._priced |= {(metric, arch): value for arch, value in zip(new, cost.of(new).tolist(), strict=True)} if new else {}
            values = np.array([self._priced[metric, arch] for arch in rows])
        return np.where(np.isfinite(values), np.log(np.maximum(values, 1e-12)), 0.0)

    def _with_costs(self, archs: Rows, groups: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The groups of features, and one of the costs that are looked up."""
        costs = [self._cost(metric, archs) for metric, cost in self.problem.costs.items() if _looked_up(cost)]
        return groups | ({"costs": np.stack(costs, 1).astype(np.float32)} if costs else {})

    def _describe(self, archs: Rows, groups: dict[str, NDArray[np.float32]], task: float = 0.0) -> _Pool:
        """Features, scaled, and known objectives of valid architectures."""
        groups = self._with_costs(archs, groups)
        known = {objective.name: self._cost(objective.name, archs) for objective in self._known}
        scaled = [(scale * groups[name]).astype(np.float32) for name, scale in self._scales]
        if self._supernet is not None:
            scaled.append(np.full((len(archs), 1), task, np.float32))
        return _Pool(archs, scaled, known)

    def _told(self) -> _Pool:
        archs = np.array(self._archs, dtype=np.int64)
        return self._describe(archs, self.features(archs)[1])

    def _pool(self, archs: Rows) -> _Pool:
        """Those of the architectures that are networks within the budgets; one that is, where none of them is."""
        there, groups = self.features(archs)
        rows = np.flatnonzero(there)
        rows = rows[self.problem.feasible([tuple(arch) for arch in archs[rows].tolist()])]
        if not len(rows):
            return self._pool(np.array([self.problem.random(self.rng)], dtype=np.int64))
        return self._describe(archs[rows], {name: group[rows] for name, group in groups.items()})

    @cached_property
    def _whole(self) -> _Pool:
        """Every network of a small space; of those with equal features the one whose known objectives are least."""
        pool = self._pool(self._sample)
        cost = np.sum(list(pool.known.values()), 0) if pool.known else np.zeros(len(pool.archs))
        order = np.argsort(cost, kind="stable")
        alike = [group.round(3) for name, group in zip(self._groups, pool.groups, strict=True) if name not in ("places", "costs")]
        return pool.only(np.sort(order[np.unique(np.hstack(alike)[order], axis=0, return_index=True)[1]]) if alike else order)

    def _mutants(self, parents: Rows, n: int) -> Rows:
        """`n` architectures that differ from one of the parents in one to three slots."""
        sizes = np.array(self.problem.space.num_choices)
        found = parents[self.rng.integers(len(parents), size=n)].copy()
        for change in range(3):
            slots = self.rng.integers(len(sizes), size=n)
            fresh = self.rng.integers(sizes[slots])
            found[np.arange(n), slots] = np.where(self.rng.random(n) < 0.5**change, fresh, found[np.arange(n), slots])
        return found

    def _first(self, n: int) -> Iterator[Architecture]:
        """Random networks near places along a known objective, or another cost; the places halve what is left again and again."""
        names = [objective.name for objective in self._known] or list(self.problem.costs)
        if not names:
            return
        pool = self._whole if self._all else self._pool(self._drawn(self.rng, self._size))
        for number in range(len(self.asked), len(self.asked) + n):
            cost = self._cost(names[number % len(names)], pool.archs)
            place = cost.min() + _halving(number // len(names)) * (cost.max() - cost.min())
            near = np.argsort(np.abs(cost - place), kind="stable")[: 1 if number < len(names) else max(_NEAR, len(cost) // 200)]
            yield tuple(pool.archs[self.rng.choice(near)].tolist())

    def _best(self, n: int) -> Iterator[Architecture]:
        """Networks of the largest expected improvement, one after the other."""
        told = self._told()
        evidence = {name: (process, *self._evidence(name, told)) for name, process in self._processes.items()}
        model = _Model(told, [(o.name, evidence.get(o.name)) for o in self.problem.objectives])
        pool = self._whole if self._all else self._near(model)
        asked = {tuple(arch) for arch in self.asked.values()}
        for row in model.batch(pool, np.array([tuple(arch) not in asked for arch in pool.archs.tolist()])):
            arch = tuple(pool.archs[row].tolist())
            if self.problem.space.identity(arch) not in self.asked:
                yield arch

    def _near(self, model: _Model) -> _Pool:
        """Of a space too large to go through: networks drawn at random, mutants of the front, and mutants of the best of these."""
        quarter = self._size // 4
        front = model.told.archs[nondominated(model.values)]
        pool = self._pool(np.vstack([self._drawn(self.rng, quarter), self._mutants(front, 2 * quarter)]))
        for _ in range(2):
            best = np.argsort(-model.improvement(pool), kind="stable")[:_PARENTS]
            pool = pool.joined(self._pool(self._mutants(pool.archs[best], quarter)))
        return pool


class _Model:
    """What is expected of candidates, given the networks that were told; values are logarithms, objectives in the problem's order.

    Args:
        told: the networks.
        objectives: names, and where one is measured its Gaussian process with the features and values that it learns from,
            those of `told` first.
    """

    def __init__(
        self, told: _Pool, objectives: Sequence[tuple[str, tuple[GaussianProcess, list[NDArray[np.float32]], Floats] | None]]
    ) -> None:
        self.told = told
        self._objectives = objectives
        self.values = np.stack([told.known[name] if process is None else process[2][: len(told.archs)] for name, process in objectives], 1)
        """(network, objective)"""

    def improvement(self, pool: _Pool) -> Floats:
        """Expected hypervolume improvement of each candidate."""
        return self._improvement(self._beliefs(pool), self.values, self._reference(pool))

    def batch(self, pool: _Pool, free: NDArray[np.bool_]) -> Iterator[int]:
        """Rows of the candidates that are `free`, the best first, each as if those before it had turned out as expected."""
        reference = self._reference(pool)
        beliefs = self._beliefs(pool)
        scores = np.where(free, self._improvement(beliefs, self.values, reference), -1.0)
        rows = np.argsort(-scores, kind="stable")[: min(_SHORTLIST, int(free.sum()))]
        pool = pool.only(rows)
        for belief in beliefs:
            belief.keep(rows)
        left = np.ones(len(rows), np.bool_)
        values = self.values
        while left.any():
            best = int(np.where(left, self._improvement(beliefs, values, reference), -1.0).argmax())
            left[best] = False
            yield int(rows[best])
            values = np.vstack([values, [belief.mean[best] for belief in beliefs]])
            squared = distances(pool.groups, [group[best : best + 1] for group in pool.groups])[:, :, 0]
            for belief in beliefs:
                belief.assume(best, squared)

    def _beliefs(self, pool: _Pool) -> list[Posterior | _Known]:
        return [
            _Known(pool.known[name])
            if process is None
            else process[0].posterior(
                distances(process[1], process[1]), distances(pool.groups, process[1]), process[2], len(process[2]) - len(self.told.archs)
            )
            for name, process in self._objectives
        ]

    def _reference(self, pool: _Pool) -> Floats:
        """Beyond the worst that was told, and of known objectives beyond the worst candidate."""
        columns = [
            np.concatenate([column, pool.known.get(name, column)])
            for (name, _), column in zip(self._objectives, self.values.T, strict=True)
        ]
        return np.array([column.max() + _MARGIN * max(np.ptp(column), 1e-6) for column in columns])

    def _improvement(self, beliefs: Sequence[Posterior | _Known], values: Floats, reference: Floats) -> Floats:
        front = values[nondominated(values)]
        if len(reference) > 3:
            front = front[spread(front, _LARGE_FRONT)]
        return expected_improvement([belief.mean for belief in beliefs], [belief.deviation for belief in beliefs], front, reference)


class _Known:
    """A posterior without any doubt."""

    def __init__(self, mean: Floats) -> None:
        self.mean = mean

    @property
    def deviation(self) -> Floats:
        return np.zeros(len(self.mean))

    def keep(self, rows: Rows) -> None:
        self.mean = self.mean[rows]

    def assume(self, row: int, squared: NDArray[np.float32]) -> None:
        """Nothing becomes known that was not."""


def expected_improvement(means: Sequence[Floats], deviations: Sequence[Floats], front: Floats, reference: Floats) -> Floats:
    """Expected hypervolume improvement over `front` (point, objective) below `reference`, of independent normal objectives; exact.

    A candidate adds of each box that the front leaves free the part that it dominates. The sides of that part are
    independent, so its expected volume is the product over the objectives of E[(high - Y)+] - E[(low - Y)+] (the idea of
    arXiv 1904.12672). `means` and `deviations` hold an array over the candidates for each objective; a deviation of 0
    is a known value.
    """
    low, high = gaps(front, reference)
    volume: Floats = np.ones((len(means[0]), len(low)))
    for mean, deviation, starts, ends in zip(means, deviations, low.T, high.T, strict=True):
        edges, where = np.unique(np.concatenate([starts, ends]), return_inverse=True)
        below = _shortfall(edges, mean[:, None], deviation[:, None])
        volume *= below[:, where[len(starts) :]] - below[:, where[: len(starts)]]
    return np.asarray(volume.sum(1))


def _shortfall(edges: Floats, mean: Floats, deviation: Floats) -> Floats:
    """E[(edge - Y)+] of a normal Y, (candidate, edge); 0 below an edge at minus infinity."""
    finite = np.isfinite(edges)
    gap = np.where(finite, edges, 0.0) - mean
    if not deviation.any():
        return np.where(finite, np.maximum(gap, 0), 0.0)
    scaled = gap / deviation
    return np.where(finite, gap * ndtr(scaled) + deviation * np.exp(-0.5 * scaled**2) / np.sqrt(2 * np.pi), 0.0)


def _looked_up(cost: Cost) -> bool:
    """Whether many architectures are priced at once, by lookup."""
    return cost.expects or isinstance(cost, TabularCost)


def _positive(objective: Objective, value: float) -> float:
    """The value as something positive to minimise: of an accuracy the error."""
    return 1 - value if objective.goal == "max" else value


def _log(values: Floats) -> Floats:
    """Logarithms of values that are not negative."""
    positive = values[values > 0]
    return np.log(np.maximum(values, _FLOOR * np.median(positive) if len(positive) else 1.0))


def _halving(number: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: the bits of the number behind the point, the last first."""
    place, share = 0.0, 0.5
    while number:
        place, number, share = place + share * (number & 1), number >> 1, share / 2
    return place
