"""NSGA-II: a population bred towards the front by rank and crowding (Deb et al., IEEE TEC 6(2), 2002); pymoo's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pymoo.algorithms.moo.nsga2 import binary_tournament
from pymoo.core.population import Population
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from hwnas.evaluate import Trial
from hwnas.evolution import RANKED, Mating, Share
from hwnas.searcher import Problem


class NSGA2(Mating):
    """(mu + lambda) evolution of choice vectors: binary tournament, uniform crossover, random-choice mutation.

    Args:
        population: networks that survive a generation.
        crossover: probability that two parents are mixed.
        mutation: probability that a slot is drawn anew; by default one slot a network, at most half of them.
    """

    saved = RANKED
    small: ClassVar[dict[str, Any]] = {"population": 4}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        population: Annotated[int, Field(ge=2)] = 32,
        crossover: Share = 0.9,
        mutation: Share | None = None,
    ) -> None:
        super().__init__(problem, rng, population, TournamentSelection(func_comp=binary_tournament), crossover, mutation)
        self._survival = RankAndCrowding()

    def learn(self, trials: Sequence[Trial]) -> None:
        """Survival of the best of parents and newcomers."""
        if trials:
            rivals = Population.merge(self.members, self.newcomers(trials))
            self.members = self._survival.do(self.variables, rivals, n_survive=self.population, random_state=self.rng)
