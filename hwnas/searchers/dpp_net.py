"""DPP-Net: cells grow layer by layer, and a recurrent surrogate says which of the longer ones are worth training (arXiv 1806.08198).

Any space is read as a chain of slots. A prefix of choices stands for the architecture that `SearchSpace.completed` makes of it: in
`dense_cell` the shorter cell itself, elsewhere the prefix and behind it choices that hand on. Only what must be measured is
predicted; costs are the table's, and the next prefixes are chosen in all objectives at once, with no weights.

Decided here, where the publication is silent: norms come first in a cell; what a round keeps is completed by crowding; when all
slots are decided and there is something left to spend, the surrogate alone grows prefixes from the first slot on, many at a
time, and the best architectures not asked before are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hwnas import pareto
from hwnas.evaluate import Trial
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture
from hwnas.surrogates import SequenceRegressor, Vocabulary, fit, own_randomness, scaled

Positive = Annotated[int, Field(ge=1)]
LEARNING_RATE = 1e-2
BATCH = 128


class DPPNet(Searcher):
    """Rounds of growing, choosing and evaluating prefixes; a round ends when all of it has been asked.

    `log` holds the length of the latest round's prefixes and the surrogate's last loss.

    Args:
        keep: prefixes that a round keeps and has evaluated.
        beam: prefixes that are kept of each length where the surrogate alone grows them.
        members: surrogates whose mean is taken.
        steps: of each surrogate's training, before every round, on everything evaluated so far.
        margin: by what share of the range seen a predicted objective must be better to count as better.
    """

    small: ClassVar[dict[str, Any]] = {"keep": 3, "beam": 8, "members": 2, "steps": 3}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        keep: Positive = 16,
        beam: Positive = 64,
        members: Positive = 1,
        steps: Positive = 100,
        margin: Annotated[float, Field(ge=0, lt=1)] = 0.01,
    ) -> None:
        super().__init__(problem, rng)
        self.keep, self.beam, self.members, self.steps, self.margin = keep, beam, members, steps, margin
        self._vocabulary = Vocabulary(problem.space)
        self._measured = [i for i, objective in enumerate(problem.objectives) if objective.name not in problem.costs]
        self._prefixes: list[Architecture] = []
        self._queue: list[Architecture] = []
        self._archs: list[Architecture] = []
        self._values = np.empty((0, len(problem.objectives)))

    def propose(self, n: int) -> list[Architecture]:
        """What is left of the round; if nothing is, of the next."""
        for _ in range(len(self.problem.space.slots) + 1):
            found = self.unasked(self._queue, n)
            if found:
                return found
            self._queue = self._next_round()
        return self.unasked(self.random_architectures(n), n)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Keeps what was measured."""
        self._archs += [trial.arch for trial in trials]
        self._values = np.concatenate([self._values, self.vectors(trials)])

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was measured, the prefixes of the round and what is left to ask of it."""
        slots = len(self.problem.space.slots)
        archs = {"archs": self._archs, "queue": self._queue}
        tensors = {name: torch.tensor(rows, dtype=torch.int64).reshape(-1, slots) for name, rows in archs.items()}
        return {**tensors, "values": torch.tensor(self._values)}, {"prefixes": [list(prefix) for prefix in self._prefixes]}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._archs, self._queue = ([tuple(row) for row in tensors[name].tolist()] for name in ("archs", "queue"))
        self._values = tensors["values"].numpy()
        self._prefixes = [tuple(prefix) for prefix in values["prefixes"]]

    def _next_round(self) -> list[Architecture]:
        space = self.problem.space
        first = min(space.shortest, len(space.slots))
        surrogates = self._trained()
        length = len(self._prefixes[0]) if self._prefixes else 0
        if not length:
            prefixes = self._grown([()], first)
            self._prefixes = [prefixes[i] for i in self.rng.permutation(len(prefixes))]
        elif length < len(space.slots):
            self._prefixes = self._chosen(self._grown(self._prefixes, length + 1), self.keep, surrogates)
        else:
            prefixes = self._grown([()], first)
            for length in range(first, len(space.slots)):
                prefixes = self._grown(self._chosen(prefixes, self.beam, surrogates), length + 1)
            fresh = self.unasked(prefixes, len(prefixes))
            if fresh:
                self._prefixes = self._chosen(fresh, self.keep, surrogates)
        self.log["length"] = len(self._prefixes[0])
        return [space.completed(prefix) for prefix in self._prefixes]

    def _grown(self, prefixes: list[Architecture], length: int) -> list[Architecture]:
        """All extensions of the prefixes to that length."""
        while len(prefixes[0]) < length:
            prefixes = list(chain.from_iterable(map(self.problem.space.extensions, prefixes)))
        return prefixes

    def _chosen(self, prefixes: list[Architecture], most: int, surrogates: list[SequenceRegressor]) -> list[Architecture]:
        """At most that many prefixes, the best in all objectives of those that stand for a network within the budgets."""
        archs = [self.problem.space.completed(prefix) for prefix in prefixes]
        keeps = self.problem.feasible(archs) & np.array([bool(self.problem.space.graph(arch)) for arch in archs], dtype=np.bool_)
        allowed = np.flatnonzero(keeps) if keeps.any() else np.arange(len(prefixes))
        if not surrogates and self._measured:
            return [prefixes[i] for i in self.rng.permutation(allowed)[:most]]
        values = self._expected([archs[i] for i in allowed], surrogates)
        return [prefixes[allowed[i]] for i in pareto.best(values, most)]

    def _expected(self, archs: list[Architecture], surrogates: list[SequenceRegressor]) -> NDArray[np.float64]:
        """(architecture, objective) to be minimised: predicted values, in steps of the margin, and costs."""
        known = self.problem.known(archs)
        values = np.empty((len(archs), len(self.problem.objectives)))
        for i, objective in enumerate(self.problem.objectives):
            if i not in self._measured:
                values[:, i] = [objective.minimised(float(cost)) for cost in known[objective.name]]
        if self._measured:
            predicted = self._predicted(archs, surrogates)
            values[:, self._measured] = np.floor(predicted / self.margin) if self.margin else predicted
        return values

    def _trained(self) -> list[SequenceRegressor]:
        """Surrogates of the measured objectives, trained on all that was measured; none before anything was."""
        if not self._measured or not self._archs:
            return []
        tokens, lengths = self._vocabulary.read(self._archs), self._lengths(self._archs)
        targets = scaled(torch.tensor(self._values[:, self._measured]))
        surrogates = []
        for seed in self.rng.integers(2**62, size=self.members).tolist():
            with own_randomness(seed):
                surrogate = SequenceRegressor(self._vocabulary.size, len(self._measured))
                loss = partial(self._loss, surrogate, tokens, lengths, targets)
                self.log["surrogate_loss"] = fit(surrogate, loss, self.steps, LEARNING_RATE)
            surrogates.append(surrogate)
        return surrogates

    def _loss(self, surrogate: SequenceRegressor, tokens: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error on a random batch."""
        rows = self.rng.permutation(len(tokens))[:BATCH]
        return functional.mse_loss(surrogate(tokens[rows], lengths[rows]), targets[rows])

    @torch.no_grad()
    def _predicted(self, archs: list[Architecture], surrogates: list[SequenceRegressor]) -> NDArray[np.float64]:
        """(architecture, measured objective) mean of the surrogates, between 0 and 1."""
        tokens, lengths = self._vocabulary.read(archs), self._lengths(archs)
        return torch.stack([surrogate(tokens, lengths) for surrogate in surrogates]).mean(0).double().numpy()

    def _lengths(self, archs: list[Architecture]) -> Tensor:
        """How many choices of each there are before nothing but what completes a prefix."""
        differs = torch.tensor(archs) != torch.tensor(self.problem.space.rest)
        ends = differs * torch.arange(1, differs.shape[1] + 1)
        return ends.max(1).values.clamp_min(min(self.problem.space.shortest, differs.shape[1]))
