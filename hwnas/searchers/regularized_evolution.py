"""Regularised evolution: the best of a sample has one slot mutated, and the oldest dies (Real et al. 2018, arXiv 1802.01548)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pymoo.core.population import Population
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from hwnas.errors import ConfigError
from hwnas.evaluate import Trial
from hwnas.evolution import RANKED, ROUNDS, Evolution, arch_of
from hwnas.searcher import Problem
from hwnas.space import Architecture


class RegularizedEvolution(Evolution):
    """Ageing evolution: a network lives until `population` younger ones were told, however good it is.

    The paper has one objective. Of several, the best of a sample is the one of the lowest front among the living, and within
    a front the least crowded, as in NSGA-II. The paper's mutation that changes nothing is left out: no network is asked twice.

    Args:
        population: networks alive at a time.
        sample: living networks drawn, with replacement, for each tournament.
    """

    saved = RANKED
    small: ClassVar[dict[str, Any]] = {"population": 4, "sample": 2}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        population: Annotated[int, Field(ge=2)] = 50,
        sample: Annotated[int, Field(ge=1)] = 10,
    ) -> None:
        super().__init__(problem, rng, population)
        if sample > population:
            raise ConfigError(f"regularized_evolution's sample must be at most its population of {population}, but is {sample}")
        self._sample = sample

    def learn(self, trials: Sequence[Trial]) -> None:
        """The newcomers join, the oldest die, and the living are ranked."""
        if trials:
            living = Population.merge(self.members, self.newcomers(trials))
            self.members = living[-self.population :]
            RankAndCrowding().do(self.variables, self.members, n_survive=len(self.members))  # notes rank and crowding on each

    def children(self, n: int) -> Iterator[Architecture]:
        """A tournament and a mutation each."""
        order = np.lexsort((-self.members.get("crowding"), self.members.get("rank")))
        place = np.argsort(order)
        for _ in range(ROUNDS * max(n, self.population)):
            sample = self.rng.integers(len(self.members), size=self._sample)
            yield self._mutated(arch_of(self.members[int(sample[place[sample].argmin()])]))

    def _mutated(self, arch: Architecture) -> Architecture:
        """Another choice in one of the slots that have several."""
        sizes = self.problem.space.num_choices
        slot = int(self.rng.choice(np.flatnonzero(np.array(sizes) > 1)))
        choice = (arch[slot] + int(self.rng.integers(1, sizes[slot]))) % sizes[slot]
        return (*arch[:slot], choice, *arch[slot + 1 :])
