"""NSGA-II: a population bred towards the front by rank and crowding (Deb et al., IEEE TEC 6(2), 2002); pymoo's operators.

The budgets are hard here: what exceeds one is never asked, so all that is told keeps them and ranks by its objectives only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from pymoo.algorithms.moo.nsga2 import binary_tournament
from pymoo.core.population import Population
from pymoo.core.problem import Problem as Variables
from pymoo.core.variable import Choice
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.rm import ChoiceRandomMutation
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from torch import Tensor

from hwnas.evaluate import Trial
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture

Share = Annotated[float, Field(ge=0, le=1)]
_ROUNDS = 10  # matings of a whole population before offspring that are new and feasible are given up
_STEPS = 3  # random changes that make a new network of a member of the population


class NSGA2(Searcher):
    """(mu + lambda) evolution of choice vectors: binary tournament, uniform crossover, random-choice mutation.

    The first generation is random, but begins with the cheapest and the costliest feasible network by each objective whose
    cost is known before anything is trained: both ends of the front for free. Offspring are drawn until they
    are new and within the budgets; where that takes too long, walks from members of the population take their place, then random networks.

    Args:
        population: networks that survive a generation.
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
        super().__init__(problem, rng)
        self.population = population
        self._survivors = Population()
        choices = {slot.name: Choice(options=range(len(slot.choices))) for slot in problem.space.slots}
        self._variables = Variables(vars=choices, n_obj=len(problem.objectives))
        self._survival = RankAndCrowding()
        self._selection = TournamentSelection(func_comp=binary_tournament)
        self._crossover = UniformCrossover(prob=crossover)
        self._mutation = ChoiceRandomMutation(prob_var=mutation)

    def propose(self, n: int) -> list[Architecture]:
        """Of the first generation while there is no whole population, else offspring."""
        strangers = self.random_architectures(n)
        if len(self.asked) < self.population or len(self._survivors) == 0:
            return self.unasked(chain(self._ends, strangers), n)
        return self.unasked(chain(self._offspring(n), self._neighbours(n), strangers), n)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Survival of the best of parents and newcomers."""
        if trials:
            newcomers = Population.new(X=np.array([trial.arch for trial in trials]), F=self.vectors(trials))
            rivals = Population.merge(self._survivors, newcomers)
            self._survivors = self._survival.do(self._variables, rivals, n_survive=self.population, random_state=self.rng)

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The survivors with their objectives, rank and crowding distance."""
        names = {"X": torch.int64, "F": torch.float64, "rank": torch.int64, "crowding": torch.float64}
        return {name: torch.as_tensor(self._survivors.get(name)).to(dtype) for name, dtype in names.items()}, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._survivors = Population.new(**{name: tensor.numpy() for name, tensor in tensors.items()})

    @cached_property
    def _ends(self) -> list[Architecture]:
        names = [objective.name for objective in self.problem.objectives if objective.name in self.problem.costs]
        known = [name for name in names if self.problem.costs[name].additive]  # the others are priced one by one, too slow to search
        return [end for name in known for end in (self.problem.costs[name].cheapest(), self.problem.costliest(name))]

    def _offspring(self, n: int) -> Iterator[Architecture]:
        context = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=self.rng)
        for _ in range(_ROUNDS):
            matings = max(n, self.population) // 2
            parents = self._selection.do(self._variables, self._survivors, matings, 2, algorithm=context, random_state=self.rng)
            children = self._crossover.do(self._variables, parents, random_state=self.rng)
            children = self._mutation.do(self._variables, children, random_state=self.rng)
            yield from (tuple(int(choice) for choice in child) for child in children.get("X"))

    def _neighbours(self, n: int) -> Iterator[Architecture]:
        for _ in range(4 * n):
            parent = self._survivors[int(self.rng.integers(len(self._survivors)))]
            yield self.problem.walk(tuple(int(choice) for choice in parent.X), self.rng, _STEPS)
