"""What searchers share that learn independent probabilities of every slot's choices, and train a supernet to learn them."""

from __future__ import annotations

import abc
import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hwnas.checkpoint import load_optimizer, optimizer_tensors
from hwnas.cost import Cost, choice_mask
from hwnas.errors import ConfigError
from hwnas.evaluate import SharedWeights
from hwnas.searcher import Problem, Searcher, State
from hwnas.space import Architecture

Logits = Float[Tensor, "*batch slot choice"]
"""Unnormalised log-probabilities of the choices; minus infinity behind a slot's last choice, so that padding is never drawn."""

CLIP_LOGITS = 10.0
HARD_SAMPLES = 8
"""One-hot architectures a batch whose costs stand in for the expectation of a metric that has none."""
_DRAWS = 64  # draws from the learnt distribution for each architecture wanted
_MOST_PROBABLE = 4096  # assignments looked at, from the most probable down, for one that is a network


def exact_cost(cost: Cost, logits: Logits) -> Float[Tensor, "*batch"]:
    """The expected cost of the distribution itself: no noise. Shared terms (dead branches, widths) are in it exactly."""
    expected: Tensor = cost(logits.softmax(-1))
    return expected


def score_of_hard_samples(costs: Float[Tensor, " n"], log_probs: Float[Tensor, "n slot"]) -> Float[Tensor, ""]:
    """The same from n > 1 architectures drawn from the distribution, for costs that are no sum over slots (`peak_mb`).

    The credit of each is its cost less the mean of the others'; `log_probs` are those of its choices.
    """
    n = len(costs)
    credit = (costs - costs.mean()) * (n / (n - 1))
    return (log_probs.sum(-1) * credit).mean()


def most_probable(log_probs: Float[Tensor, "slot choice"]) -> Iterator[Architecture]:
    """All assignments of choices, the most probable first, under independent slots; choices of probability 0 never."""
    order = [[(-value, choice) for choice, value in enumerate(row) if value > -math.inf] for row in log_probs.tolist()]
    for row in order:
        row.sort()
    start = (0,) * len(order)
    heap = [(sum(row[0][0] for row in order), start, 0)]
    while heap:
        value, ranks, last = heapq.heappop(heap)
        yield tuple(row[rank][1] for row, rank in zip(order, ranks, strict=True))
        for slot in range(last, len(order)):
            rank = ranks[slot] + 1
            if rank < len(order[slot]):
                lost = order[slot][rank][0] - order[slot][rank - 1][0]
                heapq.heappush(heap, (value + lost, (*ranks[:slot], rank, *ranks[slot + 1 :]), slot))


def repaired(problem: Problem, arch: Architecture, log_probs: Float[Tensor, "slot choice"]) -> Architecture:
    """A feasible architecture near `arch`: slot by slot, the swap that loses least log-probability for the excess it saves.

    The excess is the share by which upper bounds exceed their budgets, summed. Where no single swap lowers it, the
    problem's anchor takes the architecture's place.
    """

    def excess(archs: Sequence[Architecture]) -> np.ndarray[Any, np.dtype[np.float64]]:
        over = np.zeros(len(archs))
        for metric, limit in problem.budgets.items():
            over += (problem.costs[metric].upper(archs, problem.confidence).numpy() - limit).clip(min=0) / limit
        return over

    space = problem.space
    over = float(excess([arch])[0])
    while over > 0:
        near = [(*arch[:s], c, *arch[s + 1 :]) for s, n in enumerate(space.num_choices) for c in range(n) if c != arch[s]]
        near = [candidate for candidate in near if space.graph(candidate)]
        saved = over - excess(near)
        log_prob = log_probs.double().gather(1, torch.tensor([arch, *near]).T).sum(0).numpy()
        price = np.where(saved > 0, (log_prob[0] - log_prob[1:]) / np.maximum(saved, 1e-300), np.inf)
        if not np.isfinite(price).any():
            return problem.anchor
        best = int(price.argmin())
        arch, over = near[best], over - float(saved[best])
        over = float(excess([arch])[0])
    return arch


class Distribution(Searcher):
    """One search for each resource weight in `etas`, one after the other; together their children are a front.

    Each trains for `epochs` and every `epochs_per_ask` of them (0: after the last) has `samples` architectures to ask: the
    argmax child, then draws from the learnt distribution, then the most probable ones, all distinct, within the budgets,
    and never asked before. A child of argmax choices need not be a network (`none` can cut every path) or within the
    budgets: then the most probable assignment that is takes its place; where none of the first 4096 is, the child is
    `repaired`. An interrupted `ask` goes on from the checkpoint of the shared weights, where they have one.

    A subclass sets `logits_lr`, `BETAS` and `_first_logits`, and learns for one epoch in `_learn_epoch`.

    Raises:
        ConfigError: no such resource.
    """

    needs_shared_weights = True
    BETAS: ClassVar[tuple[float, float]]
    """Of the logits' Adam."""

    logits_lr: float

    def __init__(
        self, problem: Problem, rng: np.random.Generator, *, etas: Sequence[float], resource: str, epochs: int, epochs_per_ask: int,
        samples: int, batch_size: int, lr: float, lr_min: float, momentum: float, weight_decay: float, logits_weight_decay: float,
        warm_start: bool,
    ) -> None:  # fmt: skip
        super().__init__(problem, rng)
        self.etas, self.epochs, self.samples, self.batch_size = tuple(etas), epochs, samples, batch_size
        self.epochs_per_ask = epochs_per_ask or epochs
        self.lr, self.lr_min, self.momentum, self.weight_decay = lr, lr_min, momentum, weight_decay
        self.logits_weight_decay = logits_weight_decay
        self.warm_start = warm_start
        self.resource = problem.resource(resource)
        self.cost: Cost = problem.costs[self.resource]
        self.mask = choice_mask(problem.space)
        self.logits = torch.zeros(self.mask.shape, requires_grad=True)
        self.reference = self._reference()
        self._eta = 0  # which of the etas
        self._epoch = 0  # how many of its epochs are done
        self._queue: list[Architecture] = []
        self._optimizers: dict[str, torch.optim.Optimizer] = {}

    @abc.abstractmethod
    def _first_logits(self, generator: torch.Generator) -> Tensor:
        """What a search for one eta begins with."""

    @abc.abstractmethod
    def _learn_epoch(self, generator: torch.Generator) -> dict[str, float]:
        """Trains weights and logits for one epoch; what is to be logged of it."""

    @property
    def shared(self) -> SharedWeights:
        """The supernet that is trained."""
        assert self.problem.shared is not None
        return self.problem.shared

    def propose(self, n: int) -> list[Architecture]:
        """The next of what there is to ask; trains where there is nothing left, and is at its end after the last eta."""
        self._queue = self.unasked(self._queue, len(self._queue) or 1)
        while not self._queue:
            if self._epoch == self.epochs:
                if self._eta + 1 == len(self.etas):
                    return []
                self._eta, self._epoch = self._eta + 1, 0
            self._train(min(self._epoch + self.epochs_per_ask, self.epochs))
            self._queue = self._children()
        asked, self._queue = self._queue[:n], self._queue[n:]
        return asked

    def save(self) -> State:
        """Logits, both optimisers, the supernet, the position in the schedule, and what is waiting to be asked."""
        tensors = {"logits": self.logits.detach(), **(self.shared.tensors() if self.needs_shared_weights else {})}
        for name, optimizer in self._optimizers.items():
            tensors |= optimizer_tensors(name, optimizer)
        return tensors, {"eta": self._eta, "epoch": self._epoch, "queue": [list(arch) for arch in self._queue]}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._eta, self._epoch = int(values["eta"]), int(values["epoch"])
        self._queue = [tuple(arch) for arch in values["queue"]]
        with torch.no_grad():
            self.logits.copy_(tensors["logits"])
        if self.needs_shared_weights:
            self.shared.load(tensors)
            self._new_optimizers()
        for name, optimizer in self._optimizers.items():
            load_optimizer(name, optimizer, tensors)

    def probs(self) -> Float[Tensor, "slot choice"]:
        """What the logits say of every slot's choices; zeros in the padding."""
        return self._masked().detach().softmax(-1)

    def _masked(self) -> Tensor:
        return self.logits.masked_fill(~self.mask, -torch.inf)

    def _reference(self) -> float:
        """The cost of a uniformly drawn network, which makes etas free of units."""
        if self.cost.expects:
            value = float(self.cost(self.mask / self.mask.sum(-1, keepdim=True)))
        else:
            rng = np.random.default_rng(0)
            value = float(self.cost.of([self.problem.space.random(rng) for _ in range(64)]).mean())
        return value or 1.0

    def _new_optimizers(self) -> None:
        self.shared.supernet.to(self.shared.fabric.device)
        weights = torch.optim.SGD(self.shared.supernet.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        logits = torch.optim.Adam([self.logits], lr=self.logits_lr, betas=self.BETAS, weight_decay=self.logits_weight_decay)
        self._optimizers = {"sgd": weights, "adam": logits}

    def _begin(self) -> None:
        generator = self.torch_generator()
        with torch.no_grad():
            self.logits.copy_(self._first_logits(generator))
            if self._eta > 0 and not self.warm_start:
                self.shared.initialise(generator)
        self._new_optimizers()

    def _train(self, until: int) -> None:
        """Trains up to the end of an epoch."""
        self.train_shared({"eta": self._eta, "until": until}, lambda: self._epoch < until, self._train_epoch)

    def _train_epoch(self, generator: torch.Generator) -> None:
        if self._epoch == 0:
            self._begin()
        lr = self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * self._epoch / self.epochs))
        for group in self._optimizers["sgd"].param_groups:
            group["lr"] = lr
        self.shared.supernet.train()
        learnt = self._learn_epoch(generator)
        self._epoch += 1
        entropy = float(torch.special.entr(self.probs()).sum(-1).mean())
        position = {"eta": self.etas[self._eta], "epoch": self._epoch, "entropy": entropy}
        self.log = {**position, f"expected_{self.resource}": self._expected(), **learnt}
        text = ", ".join(f"{key} {value:.4g}" for key, value in self.log.items())
        logging.getLogger(type(self).__module__).info("%s of %d epochs", text, self.epochs)

    def _check_loss(self, loss: Tensor) -> float:
        """The loss as a number.

        Raises:
            ConfigError: it is none.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            reason = f"the supernet's loss became no number in epoch {self._epoch + 1} of eta {self.etas[self._eta]:g}"
            raise ConfigError(f"{reason}; lower lr (now {self.lr:g})")
        return value

    def _expected(self) -> float:
        """The expected cost of the learnt distribution; of a metric that is no sum, the mean of a few draws."""
        if self.cost.expects:
            return float(self.cost(self.probs()))
        return float(self.cost.of(self._draw(HARD_SAMPLES, torch.Generator().manual_seed(0))).mean())

    def _score(self, logits: Tensor, archs: Int[Tensor, "n slot"]) -> Tensor:
        """A number whose gradient estimates that of the expected cost, from architectures drawn from the distribution."""
        log_probs = logits.log_softmax(-1).expand(len(archs), -1, -1).gather(-1, archs[..., None]).squeeze(-1)
        return score_of_hard_samples(self.cost.of(archs).float(), log_probs)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n assignments drawn from the learnt distribution, (n, slot)."""
        return torch.multinomial(self.probs(), n, replacement=True, generator=generator).T

    def _children(self) -> list[Architecture]:
        """What there is to ask at this point: the child, draws, and where they are too few the most probable ones."""
        log_probs = self._masked().detach().log_softmax(-1)
        likely = self._feasible(self._networks(log_probs))
        child = next(likely, ())
        if not child:
            child = repaired(self.problem, next(self._networks(log_probs), self.problem.space.random(self.rng)), log_probs)
        drawn = map(tuple, self._draw(_DRAWS * self.samples, self.torch_generator()).tolist())
        candidates = chain([child], self._feasible(drawn), likely)
        return self.unasked(candidates, self.samples)

    def _networks(self, log_probs: Tensor) -> Iterator[Architecture]:
        """The assignments that are networks, the most probable first, as far as they are looked at."""
        return filter(self.problem.space.graph, islice(most_probable(log_probs), _MOST_PROBABLE))

    def _feasible(self, archs: Iterator[Architecture]) -> Iterator[Architecture]:
        """Those that keep the budgets, looked at 256 at a time, which is much faster than one by one."""
        while some := list(islice(archs, 256)):
            yield from (arch for arch, keeps in zip(some, self.problem.feasible(some), strict=True) if keeps)
