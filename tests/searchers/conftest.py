"""A tabulated toy for searchers: ten convolutions in a chain, each of four kernels, whose error is a formula."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hwnas import pareto, plugins, resources
from hwnas.cost import Cost, CostModel
from hwnas.evaluate import Objective, Trial
from hwnas.op import OpSpec
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture, SearchSpace, Site, Slot

KERNELS = (1, 3, 5, 7)


class Toy:
    """The space, and searches on it."""

    objectives = (Objective("error"), Objective("macs"))

    def __init__(self) -> None:
        slots = tuple(Slot(f"conv{i}", tuple(f"k{kernel}" for kernel in KERNELS)) for i in range(10))
        sites = [Site(OpSpec("conv_bn", 1, 4, 8, 8), ("input",), "n0")]
        for i in range(10):
            for choice, kernel in enumerate(KERNELS):
                sites.append(Site(OpSpec("conv_bn", 4, 4, 8, 8, kernel=kernel), (f"n{i}",), f"n{i + 1}", ((i, choice),)))
        sites.append(Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), ("n10",), "output"))
        self.space = SearchSpace((1, 8, 8), 2, slots, tuple(sites), name="chain")
        self.macs = CostModel(self.space, resources.macs, metric="macs")
        self.low, self.high = (float(self.macs.of([(choice,) * 10])) for choice in (0, 3))

    def problem(self, share: float | None = None, objectives: tuple[Objective, ...] | None = None) -> Problem:
        """With a budget that share of the way from the cheapest network to the costliest."""
        costs: dict[str, Cost] = {"macs": self.macs}
        budgets = {} if share is None else {"macs": self.low + share * (self.high - self.low)}
        return Problem(self.space, objectives or self.objectives, costs, budgets)

    def make(self, name: str, problem: Problem, seed: int = 0, **options: Any) -> Searcher:
        """A searcher."""
        searcher: Searcher = plugins.build("searchers", name, options, problem, np.random.default_rng(seed))
        return searcher

    def evaluate(self, archs: Sequence[Architecture], first: int = 0) -> list[Trial]:
        """Larger kernels help, each slot to its own degree, and neighbours of one size help more: a smooth trade-off with a twist."""
        worth = np.random.default_rng(7).uniform(0.2, 1.0, len(self.space.slots))
        told = []
        for index, arch in enumerate(archs, first):
            quality = float(worth @ np.sqrt(np.array(arch) / 3)) + 0.3 * sum(a == b for a, b in pairwise(arch))
            told.append(
                Trial(index, arch, {"error": 1 - quality / 10, "macs": float(self.macs.of([arch])), "loss": worth @ np.array(arch)})
            )
        return told

    def search(self, searcher: Searcher, evaluations: int, batch: int = 16) -> list[Trial]:
        """Asks and tells, as the loop does."""
        trials: list[Trial] = []
        while len(trials) < evaluations:
            told = self.evaluate(searcher.ask(min(batch, evaluations - len(trials))), len(trials))
            searcher.tell(told)
            trials += told
        return trials

    def values(self, trials: Sequence[Trial]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Minimised objectives, (trial, objective)."""
        return np.array([trial.vector(self.objectives) for trial in trials])

    def gains(self, name: str, share: float | None = None, seeds: int = 6, evaluations: int = 160, **options: Any) -> list[float]:
        """How much more hypervolume than random sampling a searcher finds, seed by seed."""
        gains = []
        for seed in range(seeds):
            volumes = {}
            for one, given in ((name, options), ("random", {})):
                values = self.values(self.search(self.make(one, self.problem(share), seed, **given), evaluations))
                values[:, 1] = (values[:, 1] - self.low) / (self.high - self.low)
                volumes[one] = pareto.hypervolume(values, np.array([1.0, 1.1]))
            gains.append(volumes[name] - volumes["random"])
        return gains


@pytest.fixture(scope="session")
def toy() -> Toy:
    """The same for all."""
    return Toy()
