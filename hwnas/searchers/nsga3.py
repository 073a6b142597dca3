"""NSGA-III: survivors are spread by reference directions, for three objectives and more (Deb and Jain, IEEE TEC 18(4), 2014); pymoo's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pymoo.algorithms.moo.nsga3 import ReferenceDirectionSurvival
from pymoo.core.population import Population
from pymoo.operators.selection.rnd import RandomSelection
from pymoo.util.ref_dirs import get_reference_directions
from torch import Tensor

from hwnas import pareto
from hwnas.errors import ConfigError
from hwnas.evaluate import Trial
from hwnas.evolution import Mating, Share
from hwnas.searcher import Problem


class NSGA3(Mating):
    """(mu + lambda) evolution of choice vectors whose last survivors fill the emptiest of evenly spread directions.

    Parents are drawn at random, as in the paper where nothing is infeasible. The directions are as many as Das and Dennis's simplex
    has within `population`. pymoo cuts differences of objectives below 1e-3 when it looks for the extreme points, whatever the
    unit, so objectives are handed to it as shares of the range told so far.

    Args:
        population: networks that survive a generation; at least one for each objective.
        crossover: probability that two parents are mixed.
        mutation: probability that a slot is drawn anew; by default one slot a network, at most half of them.
    """

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
        super().__init__(problem, rng, population, RandomSelection(), crossover, mutation)
        self._directions = reference_directions(len(problem.objectives), population)
        self._told = np.empty((0, len(problem.objectives)))

    def learn(self, trials: Sequence[Trial]) -> None:
        """Survival of the best of parents and newcomers; the extreme points are those of all that was told."""
        if not trials:
            return
        newcomers = self.newcomers(trials)
        self._told = np.vstack([self._told, newcomers.get("F")])
        rivals = Population.merge(self.members, newcomers)
        low, high = self._told.min(0), self._told.max(0)
        span = np.where(high > low, high - low, 1.0)
        scaled = Population.new(X=rivals.get("X"), F=(rivals.get("F") - low) / span, number=np.arange(len(rivals)))
        survival = ReferenceDirectionSurvival(self._directions)
        with warnings.catch_warnings():  # pymoo switches all warnings off for good
            survival.norm.update((self._told - low) / span, nds=np.flatnonzero(pareto.nondominated(self._told)))
            survivors = survival.do(self.variables, scaled, n_survive=min(self.population, len(scaled)), random_state=self.rng)
        self.members = rivals[survivors.get("number").astype(int)]

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The members and the objectives of all that was told."""
        members, _ = super().save()
        return {**members, "told": torch.as_tensor(self._told)}, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        super().load(tensors, values)
        self._told = tensors["told"].numpy()


def reference_directions(objectives: int, most: int) -> NDArray[np.float64]:
    """Points (direction, objective) spread evenly over the unit simplex (Das and Dennis, SIAM J. Optim. 8(3), 1998): the largest
    number of them that is at most `most`.

    Raises:
        ConfigError: there are fewer than `objectives`, so that not every objective would have its own direction.
    """
    if most < objectives:
        raise ConfigError(f"nsga3 needs a population of at least one network for each of the {objectives} objectives, but got {most}")
    parts = 1
    while objectives > 1 and math.comb(parts + objectives, objectives - 1) <= most:
        parts += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=parts))
