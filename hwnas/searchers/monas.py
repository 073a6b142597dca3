"""MONAS: an LSTM controller taught by REINFORCE with a reward made of accuracy and a cost (arXiv 1806.10332).

Not from the paper: the grid of alphas is searched in one run, by one controller that is told which alpha it writes for; the gradient of
the costs comes from architectures that are never evaluated; and what was evaluated teaches again (`hwnas.controller`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hwnas.controller import ControllerSearcher, Form, Learning, cost_objectives, scalarisations
from hwnas.errors import ConfigError, nearest
from hwnas.searcher import Problem
from hwnas.space import Architecture

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class MONAS(ControllerSearcher):
    """A controller of one LSTM layer, to which each choice is fed back as a one-hot vector.

    Args:
        reward: "mixed": `alpha quality - (1 - alpha) cost` for every alpha of `alphas`; "cost_constraint": quality where `metric`
            keeps `threshold`, else 0; "accuracy_constraint": `1 - cost` where the measured objective is better than
            `threshold`, else 0; "single": quality. Quality and cost lie between 0 and 1, see `scale`.
        alphas: the grid; with several costs among the objectives each alpha is tried with each of them and with their mean.
        metric: what is constrained; by default the first cost among objectives and budgets.
        threshold: in the unit of `metric` (by default its budget), or of the measured objective.
        warm_up: trials until a constraint is a cliff; before, a reward is that without constraint less `kappa` times the share by
            which the threshold is missed, for a controller that begins where nothing keeps it would never be rewarded.
        hidden: units of the LSTM.
        scale, lr, entropy, steps, replay, free, decay, kappa: see `hwnas.controller.Learning`.

    Raises:
        ConfigError: a reward that cannot be had of these objectives.
    """

    small: ClassVar[dict[str, Any]] = {"alphas": [0.0, 0.5, 1.0], "hidden": 8, "steps": 2, "replay": 4, "free": 2}

    def __init__(
        self,
        problem: Problem,
        rng: np.random.Generator,
        *,
        reward: Literal["mixed", "cost_constraint", "accuracy_constraint", "single"] = "mixed",
        alphas: Annotated[Sequence[Share], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0),
        metric: str = "",
        threshold: float | None = None,
        warm_up: Annotated[int, Field(ge=0)] = 50,
        hidden: Positive = 64,
        scale: Literal["range", "rank"] = "rank",
        lr: Annotated[float, Field(gt=0)] = 3e-3,
        entropy: Annotated[float, Field(ge=0)] = 0.25,
        steps: Positive = 4,
        replay: Positive = 32,
        free: Positive = 16,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        kappa: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        costs = cost_objectives(problem)
        measured = len(problem.objectives) - len(costs)
        super().__init__(
            problem, rng,
            scalarisations(alphas, measured > 0, len(costs)) if reward == "mixed" else torch.tensor([[1.0, *(0.0 for _ in costs)]]),
            Form(hidden=hidden, one_hot=True), Learning(scale, lr, entropy, steps, replay, free, decay, kappa),
        )  # fmt: skip
        self.reward, self.warm_up = reward, warm_up
        if reward != "mixed" and not measured:
            raise ConfigError(f"monas: the reward {reward!r} needs an objective that is measured; add error, or set reward: mixed")
        if reward == "cost_constraint":
            self.metric = metric or next(iter([*costs, *problem.budgets]), "")
            if self.metric not in problem.costs:
                raise ConfigError(f"monas: nothing gives the metric {self.metric!r} to constrain; {nearest(self.metric, problem.costs)}")
            threshold = problem.budgets.get(self.metric) if threshold is None else threshold
        if reward == "accuracy_constraint" and (measured != 1 or not costs):
            raise ConfigError("monas: the reward 'accuracy_constraint' needs one measured objective and a cost, e.g. error and latency_ms")
        if reward in ("cost_constraint", "accuracy_constraint"):
            if threshold is None:
                raise ConfigError(f"monas: the reward {reward!r} needs a threshold; set threshold to a number")
            self.threshold = threshold

    def told_rewards(
        self, told: Int[Tensor, " n"], quality: Float[Tensor, " n"], costs: Float[Tensor, "n cost"]
    ) -> Float[Tensor, "context n"]:
        """By the reward's formula, less what is free of it."""
        if self.reward == "mixed":
            return super().told_rewards(told, quality, costs)
        if self.reward == "cost_constraint":
            self._worth = float(quality.mean())
            return constrained(quality - self._worth if self.hard else quality, self._over(self.archs[told]), self.hard, 0.0)[None]
        if self.reward == "accuracy_constraint":
            column = [objective.name in self.costs for objective in self.problem.objectives].index(False)
            limit = self.problem.objectives[column].minimised(self.threshold)
            missed = (self.losses[told, column] - limit) / max(abs(limit), 1e-12)
            return constrained(1 - costs.mean(1), missed.float(), self.hard, self.learning.kappa)[None]
        return quality[None]

    def free_rewards(self, archs: Int[Tensor, "context n slot"], costs: Float[Tensor, "context n cost"]) -> Float[Tensor, "context n"]:
        """What a cost constraint gives or takes away is known: an architecture that breaks it earns nothing, whatever it is worth."""
        if self.reward != "cost_constraint":
            return super().free_rewards(archs, costs)
        return constrained(
            torch.full(archs.shape[1:2], self._worth if self.hard else 0.0), self._over(archs[0]), self.hard, self.learning.kappa
        )[None]

    def promising(self, archs: Sequence[Architecture]) -> NDArray[np.bool_]:
        """What earns nothing is not worth an evaluation."""
        worth = super().promising(archs)
        return (
            worth & (self._over(torch.tensor(archs, dtype=torch.int64).reshape(-1, self.archs.shape[1])) <= 0).numpy()
            if self.reward == "cost_constraint"
            else worth
        )

    @property
    def hard(self) -> bool:
        """Whether the warm-up of a constraint is over."""
        return len(self.archs) >= self.warm_up

    def _over(self, archs: Int[Tensor, "n slot"]) -> Float[Tensor, " n"]:
        """By which share the constrained cost exceeds its threshold; not positive where it keeps it."""
        return (self.problem.costs[self.metric].of(archs) / self.threshold - 1).float()


def constrained(reward: Float[Tensor, " n"], missed: Float[Tensor, " n"], hard: bool, kappa: float) -> Float[Tensor, " n"]:
    """`reward` where the threshold is kept (`missed` by at most 0), else 0; in the warm-up `reward - kappa min(max(0, missed), 1)`."""
    return torch.where(missed <= 0, reward, 0.0) if hard else reward - kappa * missed.clamp(0, 1)
