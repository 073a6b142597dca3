"""InstaNAS: a controller opens the gates of a meta-graph for each image anew, few of them for an easy one (arXiv 1811.10201).

Three phases: the meta-graph is trained with modules dropped at random; then the controller learns by REINFORCE which gates to open,
in turn with the meta-graph, which is trained under other images' policies so that its weights serve them all; then every checkpoint
of the search is fine-tuned under the policies that its controller settled on.

Not from the paper: bounds are shares of what lies above the cheapest network, so that what every network pays does not count; the
controller's learning rate stays, as its target moves to the end; the meta-graph's gradients are clipped.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hwnas import layers
from hwnas.checkpoint import load_optimizer, optimizer_tensors, part
from hwnas.cost import CostModel
from hwnas.data import Part
from hwnas.errors import ConfigError
from hwnas.evaluate import BATCH, CLIP_WEIGHTS, SharedWeights
from hwnas.op import OpSpec
from hwnas.searcher import Problem, Searcher, State
from hwnas.space import Architecture

_DRAWS = 32  # policies drawn for each architecture wanted

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Gates = Float[Tensor, "batch slot"]

_logger = logging.getLogger(__name__)


@runtime_checkable
class Gated(Protocol):
    """What a space of gates has beside its slots, which are all off or on."""

    controller: tuple[OpSpec, ...]
    """The operators, one after another, of the network from an image to a logit for each gate."""
    base: Architecture
    """The network whose cost the search's last bound is measured by."""


def latency_reward(latency: Float[Tensor, " n"], low: float, high: float) -> Float[Tensor, " n"]:
    """A parabola: 1 in the middle between the bounds, 0 at them and outside."""
    span = max(high - low, 1e-30)
    parabola: Tensor = (4 * ((high - latency) / span) * ((latency - low) / span)).clamp_min(0)
    return parabola


def explore(probs: Gates, share: float) -> Gates:
    """Probabilities kept away from 0 and 1: `share * q + (1 - share) * (1 - q)`."""
    return share * probs + (1 - share) * (1 - probs)


def policy_loss(
    probs: Gates, gates: Gates, advantage: Float[Tensor, " batch"], beta: float, *, full_entropy: bool = True
) -> Float[Tensor, " batch"]:
    """`-advantage * log P(gates) - beta * entropy` of each image's independent gates, nats; the half entropy is sum of -q log q alone."""
    log_prob = -functional.binary_cross_entropy(probs, gates, reduction="none").sum(-1)
    entropy = torch.special.entr(probs).sum(-1)
    if full_entropy:
        entropy = entropy + torch.special.entr(1 - probs).sum(-1)
    loss: Tensor = -advantage * log_prob - beta * entropy
    return loss


def choice_rows(gates: Gates) -> Float[Tensor, "batch slot 2"]:
    """Probabilities that gates are open as probabilities of the choices (off, on)."""
    return torch.stack([1 - gates, gates], -1)


class InstaNAS(Searcher):
    """One search whose latency bound falls; every `epochs_per_ask` epochs of it is a checkpoint with `samples` networks to ask.

    What is asked are networks of one policy for all images, which can be trained and exported like any other: the policies that
    the controller chooses for most of the validation images, then draws from the exploring policies of single images. All are scored with
    the checkpoint's fine-tuned weights; the search goes on from those before. After the last checkpoint draws go on, then random networks.

    `log` holds, of the latest checkpoint, for the instance-wise network on the validation images: its accuracy; mean, median and 95th
    percentile of its cost over the images, the controller's own included, and that alone; the number of distinct policies; the mean
    entropy of a gate (nats); and the upper bound that the search was at.

    Args:
        resource: the metric that is rewarded; by default the first objective that is a cost, else the first budget.
        pretrain_epochs: of the meta-graph alone, all modules open in the first half, kept with a probability falling to 1/2 in the
            second. Published: 164; `epochs` 500; `finetune_epochs` 300.
        epochs: of the search, each one of the controller and one of the meta-graph.
        epochs_per_ask: epochs between checkpoints; 0 has one at the end only.
        finetune_epochs: of each checkpoint.
        samples: architectures for each checkpoint.
        lr: the meta-graph's in the first phase (SGD, Nesterov), a tenth from 1/2 on and a hundredth from 3/4 on.
        search_lr: the meta-graph's in the search (SGD without momentum).
        controller_lr: Adam's.
        finetune_lr: the meta-graph's in the third phase (SGD, Nesterov), falling by a cosine.
        exploration: the share of the controller's own probability in what gates are drawn from.
        reward: of a right answer in the middle of the bounds; `penalty` that of a wrong one; `power` sharpens the reward.
        beta: weight of the entropy. The authors' code has half of it: `full_entropy: false`.
        kappa: weight of the expected cost of the exploring policy as a share of the base network's, added to the controller's loss.
        start: the upper bound at first, as a share of the way from the cheapest network to that with all gates open.
        end: the upper bound at last, as a share of the way from the cheapest network to the space's base network; never above a budget.

    Raises:
        ConfigError: a space without gates; a resource that nothing gives, that is no sum, or that no gate changes; a kappa without
            an expected cost.
    """

    needs_shared_weights = True
    home: ClassVar[str] = "instance_mobilenet"
    small: ClassVar[dict[str, Any]] = {
        "pretrain_epochs": 2, "epochs": 2, "epochs_per_ask": 1, "finetune_epochs": 1, "samples": 3, "batch_size": 16, "kappa": 0.1,
    }  # fmt: skip

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        resource: str = "",
        pretrain_epochs: Annotated[int, Field(ge=1)] = 40,
        epochs: Annotated[int, Field(ge=1)] = 100,
        epochs_per_ask: Annotated[int, Field(ge=0)] = 20,
        finetune_epochs: Annotated[int, Field(ge=0)] = 10,
        samples: Annotated[int, Field(ge=1)] = 8,
        batch_size: Annotated[int, Field(ge=2)] = 32,
        lr: Rate = 0.01,
        search_lr: Rate = 0.01,
        controller_lr: Rate = 5e-4,
        finetune_lr: Rate = 1e-3,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: Annotated[float, Field(ge=0)] = 1e-4,
        exploration: Annotated[float, Field(gt=0.5, le=1)] = 0.8,
        reward: float = 30.0,
        penalty: float = 0.0,
        power: Annotated[float, Field(gt=0)] = 1.0,
        beta: Annotated[float, Field(ge=0)] = 0.8,
        full_entropy: bool = True,
        kappa: Annotated[float, Field(ge=0)] = 0.0,
        start: Annotated[float, Field(gt=0)] = 0.7,
        end: Annotated[float, Field(gt=0)] = 0.5,
    ) -> None:
        super().__init__(problem, rng)
        space = problem.space
        if not (isinstance(space, Gated) and set(space.num_choices) == {2}):
            raise ConfigError(f"instanas opens gates for each image, and {space.name} has none; set the space to instance_mobilenet")
        assert problem.shared is not None
        self.shared: SharedWeights = problem.shared
        self.pretrain_epochs, self.epochs, self.finetune_epochs = pretrain_epochs, epochs, finetune_epochs
        self.epochs_per_ask = epochs_per_ask or epochs
        self.samples, self.batch_size = samples, batch_size
        self.lr, self.search_lr, self.controller_lr, self.finetune_lr = lr, search_lr, controller_lr, finetune_lr
        self.momentum, self.weight_decay = momentum, weight_decay
        self.exploration, self.reward, self.penalty, self.power = exploration, reward, penalty, power
        self.beta, self.full_entropy, self.kappa = beta, full_entropy, kappa
        self.resource = problem.resource(resource)
        cost = problem.costs[self.resource]
        if not isinstance(cost, CostModel):
            raise ConfigError(f"{self.resource} is not a sum over operators, which instanas needs; set resource to another metric")
        if kappa and not cost.expects:
            raise ConfigError(f"kappa weighs an expected cost, but {self.resource} of {space.name} has none; set kappa: 0")
        self.cost = cost
        self.low, self.base, most = cost.of([cost.cheapest(), space.base, (1,) * len(space.slots)]).tolist()
        if not self.low < self.base:
            raise ConfigError(f"no gate of {space.name} changes its {self.resource}; set resource to another metric")
        last = min(self.low + end * (self.base - self.low), problem.budgets.get(self.resource, math.inf))
        self.bounds: tuple[float, float] = self.low + start * (most - self.low), last
        prices: dict[OpSpec, float] = dict(zip(cost.operators, cost.price.tolist(), strict=True))
        self.controller_cost = sum(prices[op] for op in space.controller)
        with torch.random.fork_rng([]):
            self.controller = nn.Sequential(*map(layers.build, space.controller))
        self._epoch = 0  # of the first two phases
        self._tuned = 0  # of the third, since then
        self._before: dict[str, Tensor] = {}  # the meta-graph before it was fine-tuned
        self._queue: list[Architecture] = []
        self._new_adam()
        self._new_sgd(self.momentum)

    def propose(self, n: int) -> list[Architecture]:
        """The next of what there is to ask; trains where there is nothing left, and after the last checkpoint goes on drawing."""
        self._queue = self.unasked(self._queue, len(self._queue) or 1)
        while not self._queue and self._epoch < self.pretrain_epochs + self.epochs:
            self._train()
            self._queue = self._record()
        if not self._queue:
            return self.unasked(chain(self._drawn(self.probs(self.shared.data.valid), n), self.random_architectures(n)), n)
        asked, self._queue = self._queue[:n], self._queue[n:]
        return asked

    def save(self) -> State:
        """Controller, meta-graph (also that before fine-tuning), optimisers, the position in the schedule, what is waiting to be asked."""
        tensors = {f"controller.{name}": tensor for name, tensor in self.controller.state_dict().items()}
        tensors |= {**self.shared.tensors(), **{f"before.{name}": tensor for name, tensor in self._before.items()}}
        tensors |= optimizer_tensors("adam", self._adam) | optimizer_tensors("sgd", self._sgd)
        return tensors, {"epoch": self._epoch, "tuned": self._tuned, "queue": [list(arch) for arch in self._queue]}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._epoch, self._tuned = int(values["epoch"]), int(values["tuned"])
        self._queue = [tuple(arch) for arch in values["queue"]]
        self.controller.load_state_dict(part(tensors, "controller"))
        self._before = part(tensors, "before")
        self.shared.load(tensors)
        self._new_adam()
        self._new_sgd(0.0 if self.pretrain_epochs < self._epoch and not self._tuned else self.momentum)
        load_optimizer("adam", self._adam, tensors)
        load_optimizer("sgd", self._sgd, tensors)

    def bound(self, epoch: int) -> float:
        """The upper bound in an epoch of the search: from the first of `bounds` linearly towards the last."""
        first, last = self.bounds
        return first - (first - last) * epoch / self.epochs

    def gates(self, images: Float[Tensor, "batch channel height width"]) -> Gates:
        """Probabilities that the gates are open for these normalised images."""
        opened: Tensor = self.controller(images).float().sigmoid()
        return opened

    # Training

    def _new_adam(self) -> None:
        self.controller.to(self.shared.fabric.device)
        self._adam = torch.optim.Adam(self.controller.parameters(), lr=self.controller_lr)

    def _new_sgd(self, momentum: float) -> None:
        weights = self.shared.supernet.to(self.shared.fabric.device).parameters()
        self._sgd = torch.optim.SGD(weights, lr=self.lr, momentum=momentum, nesterov=momentum > 0, weight_decay=self.weight_decay)

    def _train(self) -> None:
        """Trains up to the next checkpoint and fine-tunes it."""
        done = max(self._epoch - self.pretrain_epochs, 0)
        until = self.pretrain_epochs + min((done // self.epochs_per_ask + 1) * self.epochs_per_ask, self.epochs)

        def epoch(generator: torch.Generator) -> None:
            if self._epoch == until:
                self._finetune(generator)
            elif self._epoch < self.pretrain_epochs:
                self._pretrain(generator)
            else:
                self._search(generator)

        self.train_shared({"until": until}, lambda: self._epoch < until or self._tuned < self.finetune_epochs, epoch)

    def _pretrain(self, generator: torch.Generator) -> None:
        if self._epoch == 0:
            layers.initialise(self.controller, generator)
        progress = self._epoch / self.pretrain_epochs
        keep = kept(progress)
        slots = len(self.problem.space.slots)
        lr = self.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
        self._descend(lr, generator, lambda images: torch.bernoulli(torch.full((len(images), slots), keep), generator=generator))
        self._epoch += 1

    def _search(self, generator: torch.Generator) -> None:
        """An epoch of the controller, then one of the meta-graph under shuffled policies."""
        if self._tuned:
            self.shared.supernet.load_state_dict(self._before)
            self._tuned, self._before = 0, {}
        if self._sgd.defaults["momentum"]:
            self._new_sgd(0.0)
        self._teach(self.bound(self._epoch - self.pretrain_epochs), generator)

        def shuffled(images: Tensor) -> Tensor:
            opened = torch.bernoulli(explore(self.gates(images), self.exploration).cpu(), generator=generator)
            return opened[torch.randperm(len(opened), generator=generator)]

        self.controller.eval()
        self._descend(self.search_lr, generator, shuffled)
        self._epoch += 1

    def _finetune(self, generator: torch.Generator) -> None:
        """An epoch of the meta-graph under the policy that the controller settled on for each image."""
        if self._tuned == 0:
            self._before = {name: tensor.detach().clone() for name, tensor in self.shared.supernet.state_dict().items()}
            self._new_sgd(self.momentum)
        lr = self.finetune_lr * 0.5 * (1 + math.cos(math.pi * self._tuned / self.finetune_epochs))
        self.controller.eval()
        self._descend(lr, generator, lambda images: (self.gates(images) >= 0.5).float())
        self._tuned += 1

    def _descend(self, lr: float, generator: torch.Generator, policy: Callable[[Tensor], Tensor]) -> None:
        """An epoch of the meta-graph's weights, each image with the gates that `policy` opens for it."""
        supernet, fabric = self.shared.supernet.train(), self.shared.fabric
        for group in self._sgd.param_groups:
            group["lr"] = lr
        for images, labels in self.shared.batches(self.shared.data.train, self.batch_size, generator):
            with fabric.autocast():
                with torch.no_grad():
                    gates = policy(images).to(images)
                loss = functional.cross_entropy(supernet(images, choice_rows(gates)).float(), labels)
            if not math.isfinite(float(loss.detach())):
                raise ConfigError(f"the meta-graph's loss became no number after {self._epoch} epochs; lower lr (now {lr:g})")
            self._sgd.zero_grad()
            fabric.backward(loss)
            torch.nn.utils.clip_grad_norm_(supernet.parameters(), CLIP_WEIGHTS)
            self._sgd.step()

    def _teach(self, high: float, generator: torch.Generator) -> None:
        """An epoch of the controller: sampled gates against those it would settle on, both on the same image."""
        self.controller.train()
        self.shared.supernet.eval()
        fabric = self.shared.fabric
        for images, labels in self.shared.batches(self.shared.data.train, self.batch_size, generator):
            with fabric.autocast():
                own = self.gates(images).cpu()
                probs = explore(own, self.exploration)
                sampled, settled = torch.bernoulli(probs.detach(), generator=generator), (own >= 0.5).float()
                with torch.no_grad():
                    advantage = self._rewards(images, labels, sampled, high) - self._rewards(images, labels, settled, high)
            loss = policy_loss(probs, sampled, advantage, self.beta, full_entropy=self.full_entropy)
            if self.kappa:
                loss = loss + self.kappa / self.base * self.cost(choice_rows(probs))
            self._adam.zero_grad()
            fabric.backward(loss.mean())
            self._adam.step()

    def _rewards(self, images: Tensor, labels: Tensor, gates: Tensor, high: float) -> Float[Tensor, " batch"]:
        right = self.shared.supernet(images, choice_rows(gates.to(images))).argmax(1) == labels
        reward = self.reward * latency_reward(self.cost.of(gates.long()).float(), self.low, high) ** self.power
        return torch.where(right.cpu(), reward, self.penalty)

    # What was learnt

    @torch.no_grad()
    def probs(self, part: Part) -> Float[Tensor, "n slot"]:
        """The controller's probabilities for the images as they are."""
        self.controller.eval()
        device = self.shared.fabric.device
        return torch.cat([self.gates(self.shared.data.normalise(some.to(device))).cpu() for some in torch.split(part.images, BATCH)])

    @torch.no_grad()
    def right(self, part: Part, gates: Int[Tensor, "n slot"]) -> Bool[Tensor, " n"]:
        """Whether the meta-graph classifies each image right with these gates."""
        supernet, device = self.shared.supernet.eval(), self.shared.fabric.device
        found = []
        for images, labels, opened in zip(*(torch.split(all_, BATCH) for all_ in (part.images, part.labels, gates)), strict=True):
            logits = supernet(self.shared.data.normalise(images.to(device)), choice_rows(opened.float().to(device)))
            found.append(logits.argmax(1).cpu() == labels)
        return torch.cat(found)

    def _record(self) -> list[Architecture]:
        """Logs what the instance-wise network is worth; gives what there is to ask."""
        valid = self.shared.data.valid
        probs = self.probs(valid)
        gates = (probs >= 0.5).long()
        costs = (self.cost.of(gates) + self.controller_cost).numpy()
        policies = Counter(map(tuple, gates.tolist()))
        median, high = np.quantile(costs, [0.5, 0.95])
        self.log = {
            "epoch": self._epoch, "bound": self.bound(self._epoch - self.pretrain_epochs),
            "instance_accuracy": float(self.right(valid, gates).float().mean()),
            f"mean_{self.resource}": float(costs.mean()), f"p50_{self.resource}": float(median), f"p95_{self.resource}": float(high),
            f"controller_{self.resource}": self.controller_cost, "unique_policies": len(policies),
            "entropy": float((torch.special.entr(probs) + torch.special.entr(1 - probs)).mean()),
        }  # fmt: skip
        _logger.info("instanas: %s", ", ".join(f"{key} {value:.4g}" for key, value in self.log.items()))
        settled = (policy for policy, _ in policies.most_common())
        return self.unasked(chain(settled, self._drawn(probs, self.samples)), self.samples)

    def _drawn(self, probs: Tensor, n: int) -> Iterator[Architecture]:
        """Policies drawn for images that are drawn too."""
        generator = self.torch_generator()
        chosen = torch.randint(len(probs), (_DRAWS * n,), generator=generator)
        drawn = torch.bernoulli(explore(probs, self.exploration)[chosen], generator=generator).long()
        yield from map(tuple, drawn.tolist())


def kept(progress: float) -> float:
    """The probability that a module is kept at a point of the first phase: 1 in its first half, then falling linearly to 1/2."""
    return min(1.0, 1.5 - progress)
