"""ENAS: a controller that samples the paths of a supernet, and is rewarded for what they score with its weights (arXiv 1802.03268).

With `memory_buffer`, the controller's last state must also tell past architectures apart, after Adam and Lorraine (arXiv 1904.00438), who
found that it otherwise does not. Not from the papers: costs in the reward, several rewards in one run, and evaluations
without shared weights, which teach the controller as they do MONAS's (`hwnas.controller`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hwnas.checkpoint import load_optimizer, optimizer_tensors, part
from hwnas.controller import (
    Buffer,
    ControllerSearcher,
    Decoder,
    Form,
    Learning,
    cost_objectives,
    reinforce,
    scalarisations,
    scalarised,
    share_below,
)
from hwnas.errors import ConfigError
from hwnas.evaluate import CLIP_WEIGHTS, SharedWeights, Trial
from hwnas.searcher import Problem, State
from hwnas.space import Architecture

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
CAPACITY = 1000
"""Architectures in the memory buffer."""
LATEST = 200
"""Accuracies on batches among which one is ranked."""
PATHS = 8
"""Draws looked at for a path to train that is a feasible network."""


class ENAS(ControllerSearcher):
    """A controller with learnt embeddings; slots with the same labels share weights, and nodes are chosen by attention.

    With shared weights an epoch is: the weights are trained on the training part, a path drawn for every batch; then
    the controller is rewarded `controller_steps` times for the accuracy of its draws on a batch of the validation part. After
    every `epochs_per_ask` epochs the best of many draws for each reward are asked. Without, what is told teaches the controller.

    Args:
        weights: "shared" trains the experiment's supernet, "none" learns from evaluations alone; by default shared where there
            is a supernet, which every experiment with data has.
        alphas: each a reward `alpha quality - (1 - alpha) cost`; with several costs, for each of them and for their mean.
        epochs, batch_size, lr, lr_min: training of the shared weights by SGD with a cosine.
        controller_steps: a controller's steps in an epoch, each on `draws` draws for each reward.
        samples: draws for each reward that are scored on the validation part to ask the best of them.
        squash, temperature, op_reduce, prefer, bias: of the logits, see `hwnas.controller.Form`. Published for cells: squash 1.1,
            op_reduce 2.5, prefer [normal*=sep*]: no operator can then be more probable than 46 %, which is why it is not the default.
        memory_buffer: adds `mu` times the loss of telling `memory` past architectures from the controller's last state.
        hidden: units of the LSTM.
        scale, controller_lr, entropy, steps, replay, free, decay, kappa: see `hwnas.controller.Learning`.

    Raises:
        ConfigError: shared weights are wanted and there is no data.
    """

    small: ClassVar[dict[str, Any]] = {
        "alphas": [0.0, 1.0], "hidden": 8, "epochs": 2, "epochs_per_ask": 1, "batch_size": 16, "controller_steps": 1, "draws": 2,
        "samples": 4, "memory_buffer": True, "memory": 4, "steps": 2, "replay": 4, "free": 2,
    }  # fmt: skip

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        weights: Literal["shared", "none"] | None = None,
        alphas: Annotated[Sequence[Share], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0),
        epochs: Positive = 150,
        epochs_per_ask: Positive = 10,
        batch_size: Annotated[int, Field(ge=2)] = 64,
        lr: Annotated[float, Field(gt=0)] = 0.05,
        lr_min: Annotated[float, Field(ge=0)] = 0.0005,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: Annotated[float, Field(ge=0)] = 1e-4,
        controller_steps: Positive = 30,
        draws: Positive = 2,
        samples: Positive = 16,
        squash: Annotated[float, Field(ge=0)] = 5.0,
        temperature: Annotated[float, Field(gt=0)] = 1.0,
        op_reduce: Annotated[float, Field(gt=0)] = 1.0,
        prefer: Sequence[str] = (),
        bias: float = 0.25,
        memory_buffer: bool = False,
        memory: Positive = 32,
        mu: Annotated[float, Field(ge=0)] = 0.1,
        hidden: Positive = 64,
        scale: Literal["range", "rank"] = "rank",
        controller_lr: Annotated[float, Field(gt=0)] = 3.5e-3,
        entropy: Annotated[float, Field(ge=0)] = 0.25,
        steps: Positive = 4,
        replay: Positive = 32,
        free: Positive = 16,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        kappa: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        costs = cost_objectives(problem)
        wanted = problem.shared is not None if weights is None else weights == "shared"
        self.needs_shared_weights = wanted
        super().__init__(
            problem, rng, scalarisations(alphas, len(problem.objectives) > len(costs), len(costs)),
            Form(hidden=hidden, share=True, squash=squash, temperature=temperature, op_reduce=op_reduce, prefer=tuple(prefer), bias=bias),
            Learning(scale, controller_lr, entropy, steps, replay, free, decay, kappa),
        )  # fmt: skip
        self.epochs, self.epochs_per_ask, self.batch_size = epochs, epochs_per_ask, batch_size
        self.lr, self.lr_min, self.momentum, self.weight_decay = lr, lr_min, momentum, weight_decay
        self.controller_steps, self.draws, self.samples = controller_steps, draws, samples
        self.memory, self.mu = memory, mu
        self.buffer = Buffer(CAPACITY)
        self.decoder = Decoder(problem.space.num_choices, hidden, self.torch_generator()) if memory_buffer else None
        if self.decoder is not None:
            self.optimizer.add_param_group({"params": list(self.decoder.parameters())})
        self.scores = torch.zeros(0)
        self._epoch = 0
        self._queue: list[Architecture] = []
        if self.needs_shared_weights:
            self._sgd = self._new_sgd()

    @property
    def shared(self) -> SharedWeights:
        """The supernet that this searcher trains."""
        assert self.problem.shared is not None
        return self.problem.shared

    def propose(self, n: int) -> list[Architecture]:
        """With shared weights the best of the last draws, after more training where there are none left; then draws."""
        self._queue = self.unasked(self._queue, len(self._queue) or 1)
        while self.needs_shared_weights and not self._queue and self._epoch < self.epochs:
            self._train(min(self._epoch + self.epochs_per_ask, self.epochs))
            self._queue = self.unasked(self._best(), self.contexts * self.samples)
        asked, self._queue = self._queue[:n], self._queue[n:]
        return asked or super().propose(n)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Without shared weights what is told teaches the controller; with them it already knows better."""
        self.buffer.push(trial.arch for trial in trials)
        if not self.needs_shared_weights:
            super().learn(trials)

    def extra_loss(self, generator: torch.Generator) -> Tensor:
        """Of the memory buffer: minus the log-probability of past architectures given the controller's last state on reading them."""
        if self.decoder is None or not self.buffer.archs:
            return super().extra_loss(generator)
        archs = self.buffer.draw(self.memory, generator)
        turns = torch.randint(self.contexts, (len(archs),), generator=generator)
        loss: Tensor = self.decoder(self.controller(turns, archs).state, archs).mean()
        self.log["reconstruction"] = float(loss.detach())
        return self.mu * loss

    def save(self) -> State:
        """Besides: decoder, buffer and last scores; the supernet, its SGD, the position in the schedule, what is waiting to be asked."""
        tensors, values = super().save()
        tensors["buffer"] = torch.tensor(list(self.buffer.archs), dtype=torch.int64).reshape(-1, self.archs.shape[1])
        tensors["scores"] = self.scores
        if self.decoder is not None:
            tensors |= {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        if self.needs_shared_weights:
            tensors |= self.shared.tensors() | optimizer_tensors("sgd", self._sgd)
        return tensors, {**values, "epoch": self._epoch, "queue": [list(arch) for arch in self._queue]}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        super().load(tensors, values)
        self.buffer.archs = dict.fromkeys(map(tuple, tensors["buffer"].tolist()))
        self.scores = tensors["scores"]
        self._epoch, self._queue = int(values["epoch"]), [tuple(arch) for arch in values["queue"]]
        if self.decoder is not None:
            self.decoder.load_state_dict(part(tensors, "decoder"))
        if self.needs_shared_weights:
            self.shared.load(tensors)
            self._sgd = self._new_sgd()
            load_optimizer("sgd", self._sgd, tensors)

    def _new_sgd(self) -> torch.optim.Optimizer:
        weights = self.shared.supernet.to(self.shared.fabric.device).parameters()
        return torch.optim.SGD(weights, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _train(self, until: int) -> None:
        """Trains up to the end of an epoch."""

        def epoch(generator: torch.Generator) -> None:
            loss = self._train_weights(generator)
            self._train_controller(generator)
            self._epoch += 1
            self.log |= {"epoch": self._epoch, "sampled_loss": loss}

        self.train_shared({"until": until}, lambda: self._epoch < until, epoch)

    def _train_weights(self, generator: torch.Generator) -> float:
        """One pass over the training part, a path drawn for every batch; the mean loss."""
        data, fabric, supernet = self.shared.data, self.shared.fabric, self.shared.supernet.train()
        total = 0.0
        for group in self._sgd.param_groups:
            group["lr"] = self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * self._epoch / self.epochs))
        for images, labels in self.shared.batches(data.train, self.batch_size, generator):
            with fabric.autocast():
                loss = functional.cross_entropy(supernet.of(images, self._path(generator)).float(), labels)
            if not math.isfinite(float(loss.detach())):
                raise ConfigError(f"enas: the shared weights' loss became no number in epoch {self._epoch + 1}; lower lr (now {self.lr:g})")
            self._sgd.zero_grad()
            fabric.backward(loss)
            nn.utils.clip_grad_norm_(supernet.parameters(), CLIP_WEIGHTS)
            self._sgd.step()
            total += float(loss.detach()) * len(labels)
        return total / len(data.train)

    def _path(self, generator: torch.Generator) -> Architecture:
        """A feasible network drawn by one of the policies, or where none is at hand a random one."""
        turns = torch.randint(self.contexts, (1,), generator=generator).repeat(PATHS)
        return next((arch for arch in self.drawn(turns, generator) if self._is_network(arch)), None) or self.problem.random(self.rng)

    def _train_controller(self, generator: torch.Generator) -> None:
        """Steps of Adam, each rewarded for the accuracy of fresh draws on one batch of the validation part."""
        data = self.shared.data
        turns = torch.arange(self.contexts).repeat_interleave(self.draws)
        for _ in range(self.controller_steps):
            index = torch.randperm(len(data.valid), generator=generator)[: self.batch_size]
            archs = self.controller.sample(turns, generator).archs
            self.buffer.push(map(tuple, archs.tolist()))
            quality = self._quality(self._accuracies(archs, index))
            rewards = scalarised(self.weights[turns], quality, self.known(archs, ~self.free)).view(self.contexts, -1)
            log_probs = self.controller(turns, archs).log_prob.view(self.contexts, -1)
            loss = reinforce(log_probs, rewards - self.told_baseline.update(rewards.mean(1)))
            self.descend(loss + self.free_loss(generator) + self.extra_loss(generator))

    @torch.no_grad()
    def _accuracies(self, archs: Int[Tensor, "n slot"], index: Int[Tensor, " m"]) -> Float[Tensor, " n"]:
        """Of paths on images of the validation part, by the BatchNorm of that batch; 0 of what is no feasible network."""
        data, fabric, supernet = self.shared.data, self.shared.fabric, self.shared.supernet.train()
        images, labels = data.normalise(data.valid.images[index].to(fabric.device)), data.valid.labels[index].to(fabric.device)
        rows = list(map(tuple, archs.tolist()))
        found = []
        for arch, feasible in zip(rows, self.problem.feasible(rows), strict=True):
            if not (feasible and self._is_network(arch)):
                found.append(0.0)
                continue
            with fabric.autocast():
                found.append(float((supernet.of(images, arch).argmax(1) == labels).float().mean()))
        return torch.tensor(found)

    def _quality(self, accuracies: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Accuracies on the scale of the rewards; ranks are those among the latest."""
        self.scores = torch.cat([self.scores, accuracies])[-LATEST:]
        return share_below(self.scores, accuracies) if self.learning.scale == "rank" else accuracies

    def _best(self) -> Iterator[Architecture]:
        """For one reward after another the best, by the shared weights on the whole validation part, of what its policy draws."""
        generator = self.torch_generator()
        ranked = []
        for turn, weights in enumerate(self.weights):
            archs = self.unasked(self.drawn(torch.full((self.samples,), turn), generator), self.samples)
            with torch.random.fork_rng([]):  # networks of their own are built, which draws weights
                scores = [self.shared.score(arch, int(torch.randint(2**62, (), generator=generator)))["accuracy"] for arch in archs]
            quality = torch.tensor(scores, dtype=torch.float32)
            if self.learning.scale == "rank" and archs:
                quality = share_below(self.scores, quality)
            costs = self.known(torch.tensor(archs, dtype=torch.int64).reshape(-1, self.archs.shape[1]), torch.ones_like(self.free))
            rewards = scalarised(weights.expand(len(archs), -1), quality, costs)
            ranked.append([archs[i] for i in rewards.argsort(descending=True, stable=True)[: max(1, self.samples // 4)]])
        return (arch for archs in zip_longest(*ranked) for arch in archs if arch is not None)
