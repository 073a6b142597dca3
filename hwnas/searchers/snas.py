"""SNAS: network weights and architecture logits learnt from the same backward pass through Concrete samples (arXiv 1812.09926).

The expected loss and the expected cost of a network drawn slot by slot from softmax(logits) are lowered together:
`E[loss] + eta * E[cost] / reference`, single level, with samples that are annealed from soft to one-hot.
Not from the paper: drop-path is left out, and BatchNorm keeps its affine part, which the children use.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hwnas.checkpoint import load_optimizer, load_state, optimizer_tensors, save_state
from hwnas.cost import Cost, choice_mask
from hwnas.data import batches
from hwnas.errors import ConfigError
from hwnas.evaluate import SharedWeights
from hwnas.searcher import Problem, Searcher, State
from hwnas.space import Architecture

Logits = Float[Tensor, "*batch slot choice"]
"""Unnormalised log-probabilities of the choices; minus infinity behind a slot's last choice, so that padding is never drawn."""

CLIP_WEIGHTS = 5.0
CLIP_LOGITS = 10.0
PUBLISHED_STEPS = 150 * 391
"""150 epochs of 391 batches, in which Adam moves a logit by at most 3e-4 a step."""
TRACE = 1e-6
"""The share of a Concrete sample below which a choice is not run."""
_HARD_SAMPLES = 8  # one-hot architectures a batch whose costs stand in for the expectation of a metric that is no sum
_DRAWS = 64  # draws from the learnt distribution for each architecture wanted
_MOST_PROBABLE = 4096  # assignments looked at, from the most probable down, for one that is a network

_logger = logging.getLogger(__name__)


def anneal(epoch: int, epochs: int, start: float, end: float) -> float:
    """The temperature of an epoch (from 0): from `start` linearly towards `end`."""
    return end + (1 - epoch / epochs) * (start - end)


def gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, float32."""
    return -torch.empty(tuple(shape)).exponential_(generator=generator).clamp_min(1e-30).log()


def concrete_sample(logits: Logits, temperature: float, generator: torch.Generator) -> Logits:
    """The logarithm of a Concrete sample of every slot, `z = softmax((logits + gumbel) / temperature)`: differentiable in the logits.

    It is a logarithm so that the density of a nearly one-hot sample stays finite; `exp` of it is the sample.
    """
    return ((logits + gumbel(logits.shape, generator)) / temperature).log_softmax(-1)


def concrete_log_density(log_z: Logits, logits: Logits, temperature: float) -> Float[Tensor, "*batch slot"]:
    """Log density of Concrete samples, slot by slot, with K the number of choices of the slot.

    `log (K-1)! + (K-1) log t + sum_k [logit_k - (t+1) log z_k] - K log sum_k exp(logit_k) z_k^-t`
    """
    here = logits.isfinite()
    number = here.sum(-1)
    log_z = log_z.masked_fill(~here, 0.0)
    inner = (logits.masked_fill(~here, 0.0) - (temperature + 1) * log_z).sum(-1)
    mixture = (logits - temperature * log_z).logsumexp(-1)
    return torch.lgamma(number) + (number - 1) * math.log(temperature) + inner - number * mixture


def exact_cost(cost: Cost, logits: Logits) -> Float[Tensor, "*batch"]:
    """The expected cost of the distribution itself: no noise. Shared terms (dead branches, widths) are in it exactly."""
    expected: Tensor = cost(logits.softmax(-1))
    return expected


def reparam_cost(cost: Cost, log_z: Logits) -> Float[Tensor, "*batch"]:
    """The cost of the same relaxed sample that the loss is computed with."""
    relaxed: Tensor = cost(log_z.exp())
    return relaxed


def score_cost(
    cost: Cost, sample: Float[Tensor, "slot choice"], probs: Float[Tensor, "slot choice"], log_density: Float[Tensor, " slot"]
) -> Float[Tensor, ""]:
    """A number whose gradient is, in expectation, that of the sample's expected cost: sum over slots of log density x credit.

    The credit of a slot is what its sample costs more than its mean choice, all other slots as sampled: where the cost is a
    sum over slots, the local term of the paper less its mean, which changes no expectation and takes most of the noise away.
    """
    slots = len(sample)
    sample, probs = sample.detach(), probs.detach()
    without = sample.expand(slots, -1, -1).clone()
    without[range(slots), range(slots)] = probs
    credit: Tensor = cost(sample) - cost(without)
    return (log_density * credit).sum()


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


class SNAS(Searcher):
    """One search for each resource weight in `etas`, one after the other; together their children are a front.

    Each trains for `epochs` and every `epochs_per_ask` of them has `samples` architectures to ask: the argmax child, then
    draws from the learnt distribution, then the most probable ones, all distinct, within the budgets, and never asked
    before. A child of argmax choices need not be a network (`none` can cut every path) or within the budgets: then the
    most probable assignment that is takes its place; where none of the first 4096 is, the child is `repaired`. An
    interrupted `ask` goes on from the checkpoint of the shared weights, where they have one.

    `log` holds, of the latest epoch: eta, epoch, temperature, the mean entropy of a slot's distribution (nats), the
    expected cost in the metric's unit, and loss and accuracy under sampled architectures on the training images.

    Args:
        etas: weights of the cost, relative to the cost of a uniformly drawn network: mild, moderate and aggressive.
        resource: the metric whose cost is paid; by default the first objective that is a cost, else the first budget.
        estimator: of the expected cost's gradient. "exact" has no noise; "reparam" uses the loss's own relaxed sample;
            "score" is a score function, which needs no gradient of the cost and alone serves metrics that are no sum.
        epochs: for each eta.
        epochs_per_ask: epochs between questions; 0 asks only after an eta's last epoch. What is asked while the weights are
            still poor is scored with poor weights, and never asked again.
        samples: architectures for each time there is something to ask.
        lr: the weights' (SGD with momentum), lowered to `lr_min` by a cosine.
        logits_lr: the logits' (Adam); 0 lets the logits go as far in all as the paper's 3e-4 does in its 58 650 steps.
        temperature: of the first epoch, lowered towards `temperature_min`; less than 0.03 drowns gradients in noise.
        warm_start: whether an eta begins with the weights of the one before. Its logits always begin anew.

    Raises:
        ConfigError: no such resource, or an estimator that cannot be had of it.
    """

    needs_shared_weights: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {"etas": [0.0, 1.0], "epochs": 2, "epochs_per_ask": 1, "samples": 3, "batch_size": 16}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        etas: Annotated[Sequence[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)] = (0.01, 0.1, 1.0),
        resource: str = "",
        estimator: Literal["exact", "reparam", "score"] = "exact",
        epochs: Annotated[int, Field(ge=1)] = 150,
        epochs_per_ask: Annotated[int, Field(ge=0)] = 0,
        samples: Annotated[int, Field(ge=1)] = 8,
        batch_size: Annotated[int, Field(ge=2)] = 64,
        lr: Annotated[float, Field(gt=0)] = 0.025,
        lr_min: Annotated[float, Field(ge=0)] = 0.001,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: Annotated[float, Field(ge=0)] = 3e-4,
        logits_lr: Annotated[float, Field(ge=0)] = 0.0,
        logits_weight_decay: Annotated[float, Field(ge=0)] = 1e-3,
        temperature: Annotated[float, Field(gt=0)] = 1.0,
        temperature_min: Annotated[float, Field(gt=0)] = 0.03,
        warm_start: bool = True,
    ) -> None:
        super().__init__(problem, rng)
        assert problem.shared is not None
        self.shared: SharedWeights = problem.shared
        self.etas, self.epochs, self.samples, self.batch_size = tuple(etas), epochs, samples, batch_size
        self.epochs_per_ask = epochs_per_ask or epochs
        self.lr, self.lr_min, self.momentum, self.weight_decay = lr, lr_min, momentum, weight_decay
        steps = epochs * math.ceil(len(self.shared.data.train) / batch_size)
        self.logits_lr = logits_lr or 3e-4 * PUBLISHED_STEPS / steps
        self.logits_weight_decay = logits_weight_decay
        self.temperature, self.temperature_min = temperature, temperature_min
        self.warm_start = warm_start
        self.estimator = estimator
        self.resource = problem.resource(resource)
        self.cost = problem.costs[self.resource]
        if not problem.space.expectable:
            raise ConfigError(
                f"{problem.space.name} chooses its operators by a rule, so that its networks cannot be mixed as snas mixes them; "
                "search it with a searcher that trains one network at a time, e.g. enas"
            )
        if not self.cost.expects and estimator != "score":
            raise ConfigError(
                f"{self.resource} of {problem.space.name} has no expectation, and so no {estimator!r} estimator; set estimator: score"
            )
        self.mask = choice_mask(problem.space)
        self.logits = torch.zeros(self.mask.shape, requires_grad=True)
        self.reference = self._reference()
        self._eta = 0  # which of the etas
        self._epoch = 0  # how many of its epochs are done
        self._queue: list[Architecture] = []
        self._new_optimizers()

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
        tensors = {"logits": self.logits.detach(), **self.shared.tensors()}
        for name, optimizer in self._optimizers.items():
            tensors |= optimizer_tensors(name, optimizer)
        return tensors, {"eta": self._eta, "epoch": self._epoch, "queue": [list(arch) for arch in self._queue]}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._eta, self._epoch = int(values["eta"]), int(values["epoch"])
        self._queue = [tuple(arch) for arch in values["queue"]]
        with torch.no_grad():
            self.logits.copy_(tensors["logits"])
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
        logits = torch.optim.Adam([self.logits], lr=self.logits_lr, betas=(0.5, 0.999), weight_decay=self.logits_weight_decay)
        self._optimizers: dict[str, torch.optim.Optimizer] = {"sgd": weights, "adam": logits}

    def _begin(self) -> None:
        generator = self.torch_generator()
        with torch.no_grad():
            self.logits.copy_(torch.randn(self.logits.shape, generator=generator).mul_(0.01).add_(1.0))
            if self._eta > 0 and not self.warm_start:
                self.shared.initialise(generator)
        self._new_optimizers()

    def _train(self, until: int) -> None:
        """Trains up to the end of an epoch, if possible from where an interrupted run was on the way there."""
        path = self.shared.checkpoint
        began = {"rng": self.rng.bit_generator.state, "eta": self._eta, "until": until}
        if path is not None and path.exists():
            tensors, values = load_state(path)
            if values.pop("began", None) == began:
                self.restore((tensors, values))
        while self._epoch < until:
            if self._epoch == 0:
                self._begin()
            self._train_epoch()
            if path is not None:
                tensors, values = self.state()
                save_state(path, tensors, {**values, "began": began})

    def _train_epoch(self) -> None:
        data, supernet, device, eta = self.shared.data, self.shared.supernet, self.shared.fabric.device, self.etas[self._eta]
        temperature = anneal(self._epoch, self.epochs, self.temperature, self.temperature_min)
        lr = self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * self._epoch / self.epochs))
        for group in self._optimizers["sgd"].param_groups:
            group["lr"] = lr
        generator = self.torch_generator()
        total = torch.zeros(3)
        supernet.train()
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.backends.cudnn.flags(deterministic=True):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for index in batches(data.train, self.batch_size, generator):
                images = data.normalise(data.augment(data.train.images[index].to(device), generator))
                labels = data.train.labels[index].to(device)
                logits = self._masked()
                log_z = concrete_sample(logits, temperature, generator)
                with self.shared.fabric.autocast():
                    out = supernet(images, self._runnable(log_z.exp()).to(device)).float()
                    loss = functional.cross_entropy(out, labels)
                if not math.isfinite(float(loss.detach())):
                    reason = f"the supernet's loss became no number in epoch {self._epoch + 1} of eta {eta:g}"
                    raise ConfigError(f"{reason}; lower lr (now {self.lr:g})")
                paid = eta / self.reference * self._paid(logits, log_z, temperature, generator) if eta else torch.zeros(())
                for optimizer in self._optimizers.values():
                    optimizer.zero_grad()
                self.shared.fabric.backward(loss + paid.to(device))
                torch.nn.utils.clip_grad_norm_(supernet.parameters(), CLIP_WEIGHTS)
                torch.nn.utils.clip_grad_norm_([self.logits], CLIP_LOGITS)
                for optimizer in self._optimizers.values():
                    optimizer.step()
                n = labels.numel()
                total += torch.stack([loss.detach() * n, (out.argmax(1) == labels).sum(), torch.tensor(n)]).cpu()
        self._epoch += 1
        self._record(eta, temperature, float(total[0] / total[2]), float(total[1] / total[2]))

    def _runnable(self, z: Tensor) -> Tensor:
        """The sample without the choices of a trace, which cost as much time as the others and teach nothing.

        Where what is left has no path to the output, every choice gets a trace, so that all sites run.
        """
        if self.problem.space.graph(z.argmax(-1).tolist()):
            return z * (z > TRACE)
        return z.clamp_min(TRACE) * self.mask

    def _paid(self, logits: Tensor, log_z: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """A number whose gradient estimates that of the expected cost, by the estimator that was chosen."""
        if self.estimator == "exact":
            return exact_cost(self.cost, logits)
        if self.estimator == "reparam":
            return reparam_cost(self.cost, log_z)
        if self.cost.expects:
            log_z = log_z.detach()
            return score_cost(self.cost, log_z.exp(), logits.softmax(-1), concrete_log_density(log_z, logits, temperature))
        archs = self._draw(_HARD_SAMPLES, generator)
        log_probs = logits.log_softmax(-1).expand(len(archs), -1, -1).gather(-1, archs[..., None]).squeeze(-1)
        return score_of_hard_samples(self.cost.of(archs).float(), log_probs)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n assignments drawn from the learnt distribution, (n, slot)."""
        return torch.multinomial(self.probs(), n, replacement=True, generator=generator).T

    def _record(self, eta: float, temperature: float, loss: float, accuracy: float) -> None:
        probs = self.probs()
        if self.cost.expects:
            expected = float(self.cost(probs))
        else:
            expected = float(self.cost.of(self._draw(_HARD_SAMPLES, torch.Generator().manual_seed(0))).mean())
        self.log = {
            "eta": eta, "epoch": self._epoch, "temperature": temperature, "entropy": float(torch.special.entr(probs).sum(-1).mean()),
            f"expected_{self.resource}": expected, "sampled_loss": loss, "sampled_accuracy": accuracy,
        }  # fmt: skip
        _logger.info("snas: %s of %d epochs", ", ".join(f"{key} {value:.4g}" for key, value in self.log.items()), self.epochs)

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
