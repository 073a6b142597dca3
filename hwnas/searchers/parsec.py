"""PARSEC: a prior over architectures learnt by importance-weighted Monte Carlo empirical Bayes (arXiv 1902.05116).

The evidence `log E_prior[p(labels | images, architecture)]` is raised in the weights and in the prior, whose factors are
independent slots. Its gradients are means under the posterior, estimated from draws of the prior with the weights
`omega = softmax(T * log-likelihood)`; one architecture at a time is in memory. Adaptive numbers of draws are FP-NAS's
(arXiv 2011.10949). Not from the papers: tempering, the uniform warm-up, and learning from told trials without a supernet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hwnas.checkpoint import load_state
from hwnas.cost import one_hot
from hwnas.data import stratified_split
from hwnas.distribution import CLIP_LOGITS, Distribution, exact_cost
from hwnas.errors import ConfigError
from hwnas.evaluate import CLIP_WEIGHTS, MEASURED, Trial
from hwnas.searcher import Problem, State
from hwnas.space import Architecture

ETAS = {"shared": (0.1, 1.0, 10.0), "told": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)}
WARMUP, TOLD_WARMUP = 5, 32
TOLD_IMAGES = 4096
"""Images that a told error or loss is taken to be the mean of, if they are not said."""
LOGIT_TRAVEL = 15.0
LOGIT_STEP = 0.1
"""How far Adam may move a logit in all, and in one step, by default."""
_ROUNDS = 32  # draws for each architecture wanted before random ones are asked


def importance_weights(log_likelihoods: Float[Tensor, " draw"], tempering: float) -> Float[Tensor, " draw"]:
    """`omega = softmax(T * log-likelihood)`: the posterior of architectures drawn from the prior, self-normalised."""
    return (tempering * log_likelihoods).softmax(0)


def prior_gradient(omega: Float[Tensor, " draw"], archs: Int[Tensor, "draw slot"], probs: Float[Tensor, "slot choice"]) -> Tensor:
    """Gradient of the log evidence in the prior's logits: `sum_s omega_s onehot(A_s) - probs`, (slot, choice)."""
    chosen = functional.one_hot(archs, probs.shape[1]).to(probs)
    return torch.einsum("d,dsc->sc", omega.to(probs), chosen) - probs


def posterior_mean_gradient(
    weights: Sequence[nn.Parameter], losses: Iterable[Tensor], sharpness: float, backward: Callable[[Tensor], Any] = torch.autograd.backward
) -> Float[Tensor, " draw"]:
    """Leaves `sum_s omega_s grad loss_s` in the gradients of `weights`, with `omega = softmax(-sharpness * loss)`; gives the losses.

    By the online softmax: a loss is taken from `losses`, and its graph let go, before the next, so that one architecture
    is in memory. What has been summed up is scaled down whenever a loss is the least so far. A loss without a graph counts
    in omega and has no gradient.
    """
    top, total = -math.inf, 0.0
    values = []
    for loss in losses:
        values.append(loss.detach())
        evidence = -sharpness * float(values[-1])
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if evidence > top:
            shrink = math.exp(top - evidence)
            torch._foreach_mul_(grads, shrink) if grads else None
            top, total = evidence, total * shrink
        share = math.exp(evidence - top)
        if loss.requires_grad:
            backward(loss * share)
        total += share
        del loss
    grads = [weight.grad for weight in weights if weight.grad is not None]
    torch._foreach_div_(grads, total) if grads else None
    return torch.stack(values)


def number_of_draws(draws: int, kappa: float, entropy: float) -> int:
    """`draws`, or where that is 0 `max(2, round(kappa * entropy))`, the entropy in nats of the whole prior."""
    return draws or max(2, round(kappa * entropy))


def calibrated_loss(error: float, classes: int) -> float:
    """Mean cross-entropy of a classifier that is wrong in the share `error`, knows it, and tells no wrong classes apart.

    `-(1-e) log(1-e) - e log(e / (classes-1))`: no classifier with that error whose confidence does not vary has less.
    Errors beyond guessing are as bad as guessing.
    """
    error = min(max(error, 0.0), 1 - 1 / classes)
    right = -(1 - error) * math.log1p(-error)
    return right - (error * math.log(error / (classes - 1)) if error > 0 else 0.0)


class PARSEC(Distribution):
    """Empirical Bayes for each resource weight in `etas`: the evidence less `eta * E[cost] / reference` is raised.

    `likelihood: shared` trains a supernet, the weights on one half of the training images, the prior on the other, each
    step with importance weights of its own; one search for each eta, what is asked and when as at `Distribution`.
    `likelihood: told` trains nothing: the trials that it is told, from a table or from short training, give the
    likelihood. One prior for each eta learns from all of them, and they are asked in turn; a trial counts by
    `T * log-likelihood - eta * cost / reference`, and every tell moves the priors towards the weighted frequencies of
    all trials, the more the more are new.

    `log` holds: eta, epoch, entropy of a slot (mean, nats), expected cost, draws of the last step, the weights' mean
    effective sample size, and the mean loss of draws on the prior's half; of `told` the mean entropy.

    Args:
        likelihood: "shared" or "told", see above.
        etas: weights of the cost, relative to the cost of a uniformly drawn network; by default 0.1, 1, 10, and of "told"
            0, 1, 3, 10, 30, 100.
        resource: the metric whose cost is paid; by default the first objective that is a cost, else the first budget.
        estimator: of the cost's part in the prior's gradient. "exact" follows the expectation, where the cost has one;
            "score" is a score function; "posterior" puts `exp(-eta * cost / reference)` into the importance weights. By
            default "exact" where that is to be had, else "score". "told" always does as "posterior".
        draws: architectures a step, the same all the time; 0: as many as the entropy calls for, see `kappa`.
        kappa: draws a nat of the prior's entropy, at least 2.
        tempering: T; 1 is the exact likelihood, under which one architecture takes nearly all the weight; 0: 1 / sqrt(images).
        told_images: images that a told value is the mean of.
        warmup: epochs in which weights are trained on uniform draws and the prior rests, by default 5, at most half of all; of
            "told": trials that are random, by default 32.
        rate: of "told": how far the prior moves for each new trial.
        explore: of "told": the share of every slot's probability that stays uniform.
        prior: the folder of a finished run of parsec, or a file of its state, whose priors this search begins with.
        tau: the logits of `prior` are divided by it; more than 1 gives entropy back.
        epochs: for each eta.
        logits_lr: the logits' (Adam); 0 lets a logit go 15 in all and at most 0.1 a step.

    Raises:
        ConfigError: a single draw, no such resource, an estimator that cannot be had, no told value that has a likelihood,
            or a prior of other slots.
    """

    BETAS = (0.5, 0.999)
    home = "darts"
    small: ClassVar[dict[str, Any]] = {
        "etas": [0.0, 1.0], "epochs": 2, "epochs_per_ask": 1, "samples": 3, "batch_size": 16, "draws": 2, "warmup": 1,
    }  # fmt: skip

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        likelihood: Literal["shared", "told"] = "shared",
        etas: Annotated[Sequence[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)] | None = None,
        resource: str = "",
        estimator: Literal["exact", "score", "posterior"] | None = None,
        draws: Annotated[int, Field(ge=0)] = 8,
        kappa: Annotated[float, Field(gt=0)] = 0.25,
        tempering: Annotated[float, Field(ge=0)] = 0.0,
        told_images: Annotated[int, Field(ge=1)] = TOLD_IMAGES,
        warmup: Annotated[int, Field(ge=0)] | None = None,
        rate: Annotated[float, Field(gt=0, le=1)] = 0.04,
        explore: Annotated[float, Field(ge=0, le=1)] = 0.02,
        prior: str = "",
        tau: Annotated[float, Field(gt=0)] = 1.0,
        epochs: Annotated[int, Field(ge=1)] = 100,
        epochs_per_ask: Annotated[int, Field(ge=0)] = 0,
        samples: Annotated[int, Field(ge=1)] = 8,
        batch_size: Annotated[int, Field(ge=2)] = 64,
        lr: Annotated[float, Field(gt=0)] = 0.025,
        lr_min: Annotated[float, Field(ge=0)] = 0.001,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        weight_decay: Annotated[float, Field(ge=0)] = 3e-4,
        logits_lr: Annotated[float, Field(ge=0)] = 0.0,
        warm_start: bool = True,
    ) -> None:
        self.needs_shared_weights = likelihood == "shared"
        super().__init__(
            problem, rng, etas=ETAS[likelihood] if etas is None else etas, resource=resource, epochs=epochs, epochs_per_ask=epochs_per_ask,
            samples=samples, batch_size=batch_size, lr=lr, lr_min=lr_min, momentum=momentum, weight_decay=weight_decay,
            logits_weight_decay=0.0, warm_start=warm_start,
        )  # fmt: skip
        if draws == 1:
            raise ConfigError(
                "draws must not be 1: a single draw has the weight 1 whatever it is worth, so the prior learns nothing; set 2 or more"
            )
        self.likelihood = likelihood
        self.estimator = estimator or ("exact" if self.cost.expects else "score")
        if self.estimator == "exact" and not self.cost.expects:
            missing = f"{self.resource} of {problem.space.name} has no expectation, and so no 'exact' estimator"
            raise ConfigError(f"{missing}; set estimator: score or posterior")
        self.draws, self.kappa, self.tau = draws, kappa, tau
        self.tempering, self.rate, self.explore = tempering, rate, explore
        self.images = told_images
        by_default = min(WARMUP, epochs // 2) if likelihood == "shared" else TOLD_WARMUP
        self.warmup = by_default if warmup is None else warmup
        self.priors = self._read_prior(prior) if prior else torch.zeros(len(self.etas), *self.mask.shape)
        """The logits of every eta: what has been learnt, or what is begun with."""
        self._archs: list[Architecture] = []  # told so far, with their log-likelihood of one image
        self._evidence: list[float] = []
        if self.needs_shared_weights:
            data = self.shared.data
            if self.warmup >= epochs:
                raise ConfigError(f"warmup ({self.warmup} epochs) must leave epochs (now {epochs}) in which the prior learns; set fewer")
            if len(data.train) < 4:
                raise ConfigError(f"parsec splits the training images in two and needs at least 4, but {data.name} has {len(data.train)}")
            first = data.train.labels.reshape(len(data.train), -1)[:, 0]  # of a window of text
            halves = stratified_split(first, (0.5, 0.5), 0)
            self._halves = [type(data.train)(data.train.images[half], data.train.labels[half]) for half in halves]
            steps = max(1, epochs * len(self._halves[0]) // batch_size)
            self.logits_lr = logits_lr or min(LOGIT_STEP, LOGIT_TRAVEL / steps)
            self._new_optimizers()
        elif not any(objective.name in MEASURED for objective in problem.objectives):
            raise ConfigError("parsec learns from the likelihood of told trials; put error, accuracy or loss among the objectives")

    def propose(self, n: int) -> list[Architecture]:
        """As `Distribution`; of "told" the cheapest and random networks first, then draws of the priors in turn, then random ones."""
        if self.likelihood == "shared":
            return super().propose(n)
        strangers = self.random_architectures(n)
        warm = len(self.asked) < self.warmup
        return self.unasked(chain([self._cheapest], strangers) if warm else chain(self._draw_in_turn(n), strangers), n)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Moves the priors of "told" towards the weighted frequencies of all trials."""
        if self.likelihood == "shared" or not trials:
            return
        self._archs += [trial.arch for trial in trials]
        self._evidence += [-self._told_loss(trial.values) for trial in trials]
        costs = self.cost.of(self._archs) / self.reference
        evidence = self._tempering(self.images) * self.images * torch.tensor(self._evidence, dtype=torch.float64)
        chosen = one_hot(self.problem.space, self._archs).double()
        moved = 1 - (1 - self.rate) ** len(trials)
        uniform = self.mask / self.mask.sum(-1, keepdim=True)
        for i, eta in enumerate(self.etas):
            omega = importance_weights(evidence - eta * costs, 1.0)
            probs = (1 - moved) * self._distribution(i) + moved * torch.einsum("d,dsc->sc", omega, chosen)
            self.priors[i] = ((1 - self.explore) * probs + self.explore * uniform).where(self.mask, 1.0).log().float()
        entropies = [float(torch.special.entr(self._distribution(i)).sum(-1).mean()) for i in range(len(self.etas))]
        self.log = {"entropy": sum(entropies) / len(entropies)}

    def save(self) -> State:
        """Beside what every learner of a distribution has: all priors, what they belong to, and what was told."""
        tensors, values = super().save()
        archs = torch.tensor(self._archs, dtype=torch.int64).reshape(-1, len(self.mask))
        told = {"priors": self.priors, "told": archs, "evidence": torch.tensor(self._evidence, dtype=torch.float64)}
        return {**tensors, **told}, {**values, "etas": list(self.etas), "slots": self._slots}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        super().load(tensors, values)
        self.priors = tensors["priors"].clone()
        self._archs = [tuple(row) for row in tensors["told"].tolist()]
        self._evidence = tensors["evidence"].tolist()

    @cached_property
    def _cheapest(self) -> Architecture:
        """What an infinite eta would end with, known beforehand."""
        return self.cost.cheapest()

    @property
    def _slots(self) -> list[list[Any]]:
        return [[slot.name, list(slot.choices)] for slot in self.problem.space.slots]

    def _read_prior(self, path: str) -> Tensor:
        """The priors of another search, each eta's from the nearest there, divided by tau."""
        file = Path(path) / "searcher.safetensors" if Path(path).is_dir() else Path(path)
        tensors, values = load_state(file)
        values = values.get("searcher", values)
        if "priors" not in tensors or "slots" not in values:
            raise ConfigError(f"{file} holds no prior of parsec; name the folder of a run that parsec has searched")
        if values["slots"] != self._slots:
            raise ConfigError(f"the prior in {file} is over other slots than those of {self.problem.space.name}; search the same decisions")
        there = np.log1p(values["etas"])
        nearest = [int(np.abs(there - math.log1p(eta)).argmin()) for eta in self.etas]
        return tensors["priors"][nearest] / self.tau

    def _distribution(self, i: int) -> Float[Tensor, "slot choice"]:
        """The prior of an eta as probabilities, in double precision."""
        return self.priors[i].double().masked_fill(~self.mask, -torch.inf).softmax(-1)

    def _draw_in_turn(self, n: int) -> Iterator[Architecture]:
        """Draws from the priors, each in turn."""
        generator = self.torch_generator()
        number = -(-n * _ROUNDS // len(self.etas))
        drawn = [torch.multinomial(self._distribution(i), number, True, generator=generator).T.tolist() for i in range(len(self.etas))]
        first = len(self.asked) % len(self.etas)
        for row in range(number):
            yield from (tuple(drawn[(first + i) % len(self.etas)][row]) for i in range(len(self.etas)))

    def _told_loss(self, values: dict[str, float]) -> float:
        if math.isfinite(values.get("loss", math.nan)):
            return values["loss"]
        return calibrated_loss(values["error"] if "error" in values else 1 - values["accuracy"], self.problem.space.classes)

    def _tempering(self, images: int) -> float:
        return self.tempering or images**-0.5

    def _first_logits(self, generator: torch.Generator) -> Tensor:
        return self.priors[self._eta]

    def _learn_epoch(self, generator: torch.Generator) -> dict[str, float]:
        supernet = self.shared.supernet
        weights = list(supernet.parameters())
        resting = self._epoch < self.warmup and (self._eta == 0 or not self.warm_start)
        uniform = self.mask / self.mask.sum(-1, keepdim=True)
        effective, losses, draws = [], [], 1
        held_out = chain.from_iterable(self.shared.batches(self._halves[1], self.batch_size, generator) for _ in repeat(None))
        for images, labels in self.shared.batches(self._halves[0], self.batch_size, generator):
            probs = uniform if resting else self.probs()
            draws = 1 if resting else number_of_draws(self.draws, self.kappa, float(torch.special.entr(probs).sum()))
            archs = torch.multinomial(probs, draws, replacement=True, generator=generator).T
            self._optimizers["sgd"].zero_grad()
            scale = self._tempering(labels.numel()) * labels.numel()
            each = (self._loss(arch, images, labels) for arch in map(tuple, archs.tolist()))
            losses.append(posterior_mean_gradient(weights, each, scale, self.shared.fabric.backward).mean())
            if any(weight.grad is not None for weight in weights):
                torch.nn.utils.clip_grad_norm_(weights, CLIP_WEIGHTS)
                self._optimizers["sgd"].step()
            if not resting:
                effective.append(self._learn_prior(archs, *next(held_out)))
        self.priors[self._eta] = self.logits.detach()
        size = sum(effective) / len(effective) if effective else 1.0
        return {"draws": draws, "effective_draws": size, "sampled_loss": float(torch.stack(losses).mean())}

    def _learn_prior(self, archs: Int[Tensor, "draw slot"], images: Tensor, labels: Tensor) -> float:
        """One step of the prior on held-out images, forward only; the effective number of draws."""
        with torch.no_grad():
            losses = torch.stack([self._loss(arch, images, labels).cpu() for arch in map(tuple, archs.tolist())])
        eta = self.etas[self._eta] / self.reference
        evidence = -self._tempering(labels.numel()) * labels.numel() * losses
        if self.estimator == "posterior":
            evidence = evidence - eta * self.cost.of(archs).to(evidence)
        omega = importance_weights(evidence, 1.0)
        logits = self._masked()
        paid = torch.zeros_like(self.logits)
        if eta and self.estimator != "posterior":
            expected = exact_cost(self.cost, logits) if self.estimator == "exact" else self._score(logits, archs)
            (paid,) = torch.autograd.grad(eta * expected, self.logits)
        self.logits.grad = paid - prior_gradient(omega, archs, self.probs())
        torch.nn.utils.clip_grad_norm_([self.logits], CLIP_LOGITS)
        self._optimizers["adam"].step()
        return float(1 / omega.square().sum())

    def _loss(self, arch: Architecture, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a network with the shared weights; an assignment without a path tells no classes apart."""
        space = self.problem.space
        if not space.graph(arch):
            return images.new_tensor(math.log(space.classes))
        with self.shared.fabric.autocast():
            loss = functional.cross_entropy(self.shared.supernet.of(images, arch).float(), labels)
        self._check_loss(loss)
        return loss
