"""SNAS: network weights and architecture logits learnt from the same backward pass through Concrete samples (arXiv 1812.09926).

The expected loss and the expected cost of a network drawn slot by slot from softmax(logits) are lowered together:
`E[loss] + eta * E[cost] / reference`, single level, with samples that are annealed from soft to one-hot.
Not from the paper: drop-path is left out, and BatchNorm keeps its affine part, which the children use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hwnas.cost import Cost
from hwnas.distribution import CLIP_LOGITS, HARD_SAMPLES, Distribution, Logits, exact_cost
from hwnas.errors import ConfigError
from hwnas.evaluate import CLIP_WEIGHTS
from hwnas.searcher import Problem

PUBLISHED_STEPS = 150 * 391
"""150 epochs of 391 batches, in which Adam moves a logit by at most 3e-4 a step."""
TRACE = 1e-6
"""The share of a Concrete sample below which a choice is not run."""


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


class SNAS(Distribution):
    """One search for each resource weight in `etas`, one after the other; together their children are a front.

    What is asked, and when, is said at `Distribution`. `log` holds, of the latest epoch: eta, epoch, temperature, the mean
    entropy of a slot's distribution (nats), the expected cost in the metric's unit, and loss and accuracy under sampled
    architectures on the training images.

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
        relaxation: "softmax" trains the mixture of all choices instead of samples, as DARTS does (arXiv 1806.09055), but on
            one level: for comparison.

    Raises:
        ConfigError: no such resource, or an estimator that cannot be had of it.
    """

    BETAS = (0.5, 0.999)
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
        relaxation: Literal["concrete", "softmax"] = "concrete",
    ) -> None:
        super().__init__(
            problem, rng, etas=etas, resource=resource, epochs=epochs, epochs_per_ask=epochs_per_ask, samples=samples,
            batch_size=batch_size, lr=lr, lr_min=lr_min, momentum=momentum, weight_decay=weight_decay,
            logits_weight_decay=logits_weight_decay, warm_start=warm_start,
        )  # fmt: skip
        if not problem.space.expectable:
            raise ConfigError(
                f"{problem.space.name} chooses its operators by a rule, so that its networks cannot be mixed as snas mixes them; "
                "search it with a searcher that trains one network at a time, e.g. enas"
            )
        if not self.cost.expects and estimator != "score":
            raise ConfigError(
                f"{self.resource} of {problem.space.name} has no expectation, and so no {estimator!r} estimator; set estimator: score"
            )
        if relaxation == "softmax" and self.cost.expects and estimator != "exact":
            raise ConfigError(f"a softmax mixture has no samples for a {estimator!r} estimator; set estimator: exact")
        steps = epochs * math.ceil(len(self.shared.data.train) / batch_size)
        self.logits_lr = logits_lr or 3e-4 * PUBLISHED_STEPS / steps
        self.temperature, self.temperature_min = temperature, temperature_min
        self.estimator, self.relaxation = estimator, relaxation
        self._new_optimizers()

    def _first_logits(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.logits.shape, generator=generator).mul_(0.01).add_(1.0)

    def _learn_epoch(self, generator: torch.Generator) -> dict[str, float]:
        supernet, device, eta = self.shared.supernet, self.shared.fabric.device, self.etas[self._eta]
        temperature = anneal(self._epoch, self.epochs, self.temperature, self.temperature_min)
        total = torch.zeros(3)
        for images, labels in self.shared.batches(self.shared.data.train, self.batch_size, generator):
            logits = self._masked()
            log_z = logits.log_softmax(-1) if self.relaxation == "softmax" else concrete_sample(logits, temperature, generator)
            with self.shared.fabric.autocast():
                out = supernet(images, self._runnable(log_z.exp()).to(device)).float()
                loss = functional.cross_entropy(out, labels)
            self._check_loss(loss)
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
        seen = float(total[2])
        return {"temperature": temperature, "sampled_loss": float(total[0]) / seen, "sampled_accuracy": float(total[1]) / seen}

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
        return self._score(logits, self._draw(HARD_SAMPLES, generator))
