"""What evolution shares: a first generation that knows both ends of the front, children that are new and feasible, and pymoo's mating.

The budgets are hard here: what exceeds one is never asked, so all that is told keeps them and ranks by its objectives only.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from pymoo.core.population import Population
from pymoo.core.problem import Problem as Variables
from pymoo.core.selection import Selection
from pymoo.core.variable import Choice
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.rm import ChoiceRandomMutation
from torch import Tensor

from hwnas.evaluate import Trial
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture

Share = Annotated[float, Field(ge=0, le=1)]
ROUNDS = 10
"""How many times over a population is bred before children that are new and feasible are given up."""
RANKED = {"X": torch.int64, "F": torch.float64, "rank": torch.int64, "crowding": torch.float64}
"""What is saved of members that have a rank and a crowding distance."""
_STEPS = 3  # random changes that make a new network of a member of the population


def ends(problem: Problem) -> list[Architecture]:
    """The cheapest and the costliest feasible network by each objective whose cost is known before anything is trained."""
    names = [objective.name for objective in problem.objectives if objective.name in problem.costs]
    known = [name for name in names if problem.costs[name].quick]
    return [end for name in known for end in (problem.costs[name].cheapest(), problem.costliest(name))]


class Evolution(Searcher):
    """A population, and children of it: the steady frame of an evolutionary searcher.

    The first generation is random, but begins with both ends of the front, which are free. Children are drawn until they are
    new and within the budgets; where that takes too long, walks from members of the population take their place, then random networks.

    A subclass says in `learn` who is in the population (`members`, rows X of choices and F of minimised objectives) and in
    `children` how it is bred.
    """

    saved: ClassVar[dict[str, torch.dtype]] = {"X": torch.int64, "F": torch.float64}
    """What of each member is kept in a checkpoint."""

    def __init__(self, problem: Problem, rng: np.random.Generator, population: int) -> None:
        super().__init__(problem, rng)
        self.population = population
        self.members = Population()
        choices = {slot.name: Choice(options=range(len(slot.choices))) for slot in problem.space.slots}
        self.variables = Variables(vars=choices, n_obj=len(problem.objectives))

    @abc.abstractmethod
    def children(self, n: int) -> Iterator[Architecture]:
        """Offspring of `members`, known or over budget among them; more than the `n` that are wanted, but not without end."""

    def propose(self, n: int) -> list[Architecture]:
        """Of the first generation while there is no whole population, else offspring."""
        strangers = self.random_architectures(n)
        if len(self.asked) < self.population or len(self.members) == 0:
            return self.unasked(chain(self._ends, strangers), n)
        return self.unasked(chain(self.children(n), self._neighbours(n), strangers), n)

    def newcomers(self, trials: Sequence[Trial]) -> Population:
        """The trials as individuals."""
        return Population.new(X=np.array([trial.arch for trial in trials]), F=self.vectors(trials))

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The members, in their order."""
        return {name: torch.as_tensor(self.members.get(name)).to(dtype) for name, dtype in self.saved.items()}, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self.members = Population.new(**{name: tensors[name].numpy() for name in self.saved})

    @cached_property
    def _ends(self) -> list[Architecture]:
        return ends(self.problem)

    def _neighbours(self, n: int) -> Iterator[Architecture]:
        for _ in range(4 * n):
            parent = self.members[int(self.rng.integers(len(self.members)))]
            yield self.problem.walk(arch_of(parent), self.rng, _STEPS)


class Mating(Evolution):
    """Evolution whose children are made by pymoo's operators: `selection` of two parents, uniform crossover, random-choice mutation.

    Args:
        selection: chooses the parents; it finds `tournament_type` in the algorithm that it is given.
        crossover: probability that two parents are mixed.
        mutation: probability that a slot is drawn anew; by default one slot a network, at most half of them.
    """

    def __init__(
        self, problem: Problem, rng: np.random.Generator, population: int, selection: Selection, crossover: float, mutation: float | None
    ) -> None:
        super().__init__(problem, rng, population)
        self._selection = selection
        self._crossover = UniformCrossover(prob=crossover)
        self._mutation = ChoiceRandomMutation(prob_var=mutation)

    def children(self, n: int) -> Iterator[Architecture]:
        """Selected, crossed, mutated."""
        context: Any = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=self.rng)
        for _ in range(ROUNDS):
            matings = max(n, self.population) // 2
            parents = self._selection.do(self.variables, self.members, matings, 2, algorithm=context, random_state=self.rng)
            children = self._crossover.do(self.variables, parents, random_state=self.rng)
            children = self._mutation.do(self.variables, children, random_state=self.rng)
            yield from map(arch_of, children)


def arch_of(individual: Any) -> Architecture:
    """The choices of one of pymoo's individuals."""
    return tuple(int(choice) for choice in individual.X)
