"""NAO: architectures are climbed in a continuous form, by the gradient of what a predictor makes of it, and decoded (arXiv 1808.07233).

Encoder, predictor and decoder are trained together on everything evaluated, and on any number of architectures more, whose costs
the table knows: the predictor has a head for every objective. From the best architectures evaluated so far, taken by
non-dominated rank, steps lead down `measured + eta_c * costs` for several weights eta_c at once, so that a step can climb
accuracy and descend latency. Whether evaluations come from training or from shared weights is the evaluator's affair.

Not from the paper: training goes on from the parts as they are, for a few steps a round, in place of a thousand epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hwnas import pareto
from hwnas.checkpoint import part
from hwnas.evaluate import Trial
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture
from hwnas.surrogates import EncoderPredictorDecoder, Vocabulary, fit, own_randomness, scaled

Positive = Annotated[int, Field(ge=1)]
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 1e-4


class NAO(Searcher):
    """Random architectures first; then round after round of training the three parts, stepping, decoding and evaluating.

    `log` holds the last loss, the eta at which enough new architectures had been found, and how many were.

    Args:
        initial: random architectures before the first round.
        new: architectures of a round.
        seeds: architectures that steps begin from: the best of the pool.
        pool: architectures that are kept to learn from, the best by non-dominated rank; by default all.
        steps: of training before a round.
        batch_size: evaluated architectures a step, with half as many whose costs alone are known.
        cost_weights: the eta_c: how much the costs' scaled predictions, their mean, count beside the measured objectives'.
        eta_max: the longest step; from 1 on it is lengthened until a round has enough new architectures.
        trade_off: share of the predictor in the loss; the rest is the decoder's.
        merge: tokens that the encoder reads at a time.
    """

    small: ClassVar[dict[str, Any]] = {"initial": 4, "new": 3, "seeds": 3, "steps": 2, "batch_size": 8, "eta_max": 2}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        initial: Positive = 64,
        new: Positive = 24,
        seeds: Positive = 32,
        pool: Positive | None = None,
        steps: Positive = 25,
        batch_size: Positive = 128,
        cost_weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] = [0.0, 0.3, 1.0, 3.0],  # noqa: B006
        eta_max: Positive = 50,
        trade_off: Annotated[float, Field(gt=0, lt=1)] = 0.8,
        merge: Positive = 1,
    ) -> None:
        super().__init__(problem, rng)
        self.initial, self.new, self.seeds, self.pool, self.steps = initial, new, seeds, pool, steps
        self.batch_size, self.cost_weights, self.eta_max, self.trade_off = batch_size, cost_weights, eta_max, trade_off
        self._vocabulary = Vocabulary(problem.space)
        self._known = [objective.name in problem.costs for objective in problem.objectives]
        with own_randomness(int(rng.integers(2**62))):
            self._model = EncoderPredictorDecoder(self._vocabulary, len(problem.objectives), merge=merge)
        self._queue: list[Architecture] = []
        self._archs: list[Architecture] = []
        self._values = np.empty((0, len(problem.objectives)))

    def propose(self, n: int) -> list[Architecture]:
        """Random architectures at first, then what is left of the round or the next one; where it has too few, random ones again."""
        strangers = self.random_architectures(n)
        if len(self.asked) < self.initial or not self._archs:
            return self.unasked(strangers, min(n, max(self.initial - len(self.asked), 1)))
        found = self.unasked(self._queue, n)
        if not found:
            self._queue = self._next_round()
            found = self.unasked(chain(self._queue, strangers), n)
        return found

    def learn(self, trials: Sequence[Trial]) -> None:
        """Keeps what was measured, or the best of it."""
        self._archs += [trial.arch for trial in trials]
        self._values = np.concatenate([self._values, self.vectors(trials)])
        if self.pool is not None and len(self._archs) > self.pool:
            kept = np.sort(pareto.best(self._values, self.pool))
            self._archs, self._values = [self._archs[i] for i in kept], self._values[kept]

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The three parts, what was measured, and what is left to ask of the round."""
        slots = len(self.problem.space.slots)
        archs = {"archs": self._archs, "queue": self._queue}
        tensors = {name: torch.tensor(rows, dtype=torch.int64).reshape(-1, slots) for name, rows in archs.items()}
        model = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        return {**tensors, **model, "values": torch.tensor(self._values)}, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._archs, self._queue = ([tuple(row) for row in tensors[name].tolist()] for name in ("archs", "queue"))
        self._values = tensors["values"].numpy()
        self._model.load_state_dict(part(tensors, "model"))

    def _next_round(self) -> list[Architecture]:
        """New architectures, the best of them by prediction and table where a step has found more than a round takes."""
        self._train()
        seeds = [self._archs[i] for i in pareto.best(self._values, self.seeds)]
        found: list[Architecture] = []
        eta = 0
        while len(found) < self.new and eta < self.eta_max:
            eta += 1
            fresh = self.unasked(chain(found, self._decoded(seeds, eta)), len(seeds) * len(self.cost_weights) + len(found))[len(found) :]
            if fresh:
                found += [fresh[i] for i in pareto.best(self._expected(fresh), self.new - len(found))]
        self.log |= {"eta": float(eta), "found": float(len(found))}
        return found

    def _decoded(self, seeds: Sequence[Architecture], eta: float) -> Iterator[Architecture]:
        """What steps of that length lead to, from every seed with every weight of the costs."""
        with torch.no_grad():
            outputs = self._model.encode(self._vocabulary.read(seeds))
        known = torch.tensor(self._known)
        for weight in self.cost_weights if bool(known.any()) else self.cost_weights[:1]:
            weights = torch.where(known, weight / max(int(known.sum()), 1), 1.0).expand(len(seeds), -1)
            better = self._model.improved(outputs, weights, eta)
            with torch.no_grad():
                tokens = self._model.greedy(better)
            yield from self._vocabulary.write(tokens)

    @torch.no_grad()
    def _expected(self, archs: list[Architecture]) -> NDArray[np.float64]:
        """(architecture, objective) to be minimised: predicted, or the table's."""
        values: NDArray[np.float64] = self._model.predict(self._model.encode(self._vocabulary.read(archs))).double().numpy()
        costs = self._costs(archs)
        values[:, self._known] = costs[:, self._known]
        return values

    def _costs(self, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """(architecture, objective) to be minimised, 0 where an objective must be measured."""
        values = np.zeros((len(archs), len(self._known)))
        for i, (objective, known) in enumerate(zip(self.problem.objectives, self._known, strict=True)):
            if known:
                values[:, i] = [objective.minimised(float(cost)) for cost in self.problem.costs[objective.name].of(archs)]
        return values

    def _train(self) -> None:
        """Some steps on random batches: evaluated architectures, each written anew at random, and others whose costs are known."""
        space, number = self.problem.space, self.batch_size
        others = [space.random(self.rng) for _ in range(number // 2)]
        archs = [*self._archs, *others]
        values = np.concatenate([self._values, self._costs(others)])
        known = torch.ones(len(archs), len(self._known), dtype=torch.bool)
        known[len(self._archs) :] = torch.tensor(self._known)
        targets = torch.zeros(known.shape)
        for i in range(len(self._known)):
            targets[known[:, i], i] = scaled(torch.tensor(values)[known[:, i], i : i + 1])[:, 0]
        tokens = self._vocabulary.read(archs)
        twins = {i: self._vocabulary.read(twins) for i, arch in enumerate(archs) if (twins := space.twins(arch))}

        def loss() -> Tensor:
            measured = self.rng.permutation(len(self._archs))[:number]
            rows = np.concatenate([measured, np.arange(len(self._archs), len(archs))])
            drawn = tokens[rows]
            for place, row in enumerate(rows.tolist()):
                if row in twins and self.rng.random() < 0.5:
                    drawn[place] = twins[row][int(self.rng.integers(len(twins[row])))]
            return self._model.loss(drawn, targets[rows], known[rows], self.trade_off)

        with own_randomness(int(self.rng.integers(2**62))):
            self.log["loss"] = fit(self._model, loss, self.steps, LEARNING_RATE, WEIGHT_DECAY)
