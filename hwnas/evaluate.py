"""What an architecture is worth: objectives, trials, and evaluators by short training or by shared weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hwnas.checkpoint import load_state, save_state
from hwnas.data import Dataset
from hwnas.errors import ConfigError, nearest
from hwnas.network import Network
from hwnas.space import Architecture, SearchSpace
from hwnas.supernet import Supernet
from hwnas.train import TrainSettings, evaluate_accuracy, recalibrate_batch_norm, train

MEASURED: dict[str, Literal["min", "max"]] = {"error": "min", "accuracy": "max", "loss": "min"}
"""The objectives that an evaluator gives; every other objective is a metric of a cost model, and minimised."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A named number to minimise or maximise; the sign flips here and nowhere else."""

    name: str
    goal: Literal["min", "max"] = "min"

    @classmethod
    def named(cls, name: str, metrics: Sequence[str]) -> Objective:
        """The objective of that name; `metrics` are those that cost models give.

        Raises:
            ConfigError: nothing gives it.
        """
        if name not in MEASURED and name not in metrics:
            raise ConfigError(f"nothing gives the objective {name!r}; {nearest(name, [*MEASURED, *metrics])}")
        return cls(name, MEASURED.get(name, "min"))

    def minimised(self, value: float) -> float:
        """The value as something to minimise."""
        return value if self.goal == "min" else -value


@dataclass(frozen=True)
class Trial:
    """One evaluated architecture: the values of measured objectives and the predicted costs, by name."""

    index: int
    arch: Architecture
    values: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)

    def vector(self, objectives: Sequence[Objective]) -> list[float]:
        """The objectives' values, all to be minimised."""
        return [objective.minimised(self.values[objective.name]) for objective in objectives]


class Evaluator(Protocol):
    """Scores an architecture; the same `seed` gives the same values on one machine."""

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Whatever must be done once before the first evaluation; `progress(done, of)` is called as it goes on."""

    def evaluate(self, arch: Architecture, seed: int) -> dict[str, float]:
        """`error` and `accuracy` (shares) and `loss` (mean cross-entropy) on the validation part."""


class ShortTraining:
    """Trains each architecture on its own for a few epochs."""

    def __init__(self, space: SearchSpace, data: Dataset, settings: TrainSettings) -> None:
        self.space, self.data, self.settings = space, data, settings

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Nothing to prepare."""

    def evaluate(self, arch: Architecture, seed: int) -> dict[str, float]:
        """Values after training from scratch; a diverged training gives an error of 1 and a NaN loss."""
        network = Network(self.space, arch, torch.Generator().manual_seed(seed))
        report = train(network, self.data, self.settings, seed)
        if report.diverged:
            return {"error": 1.0, "accuracy": 0.0, "loss": float("nan")}
        return score(network, self.data)


def score(network: torch.nn.Module, data: Dataset) -> dict[str, float]:
    """`error`, `accuracy` and `loss` of a trained network on the validation part."""
    found = evaluate_accuracy(network, data, data.valid)
    return {"error": 1.0 - found.accuracy, "accuracy": found.accuracy, "loss": found.loss}


class SharedWeights:
    """A supernet, the data it is trained on, and how an architecture is scored with its weights.

    Who trains it: a gradient searcher inside `ask`, or else `prepare`, one uniformly drawn architecture a batch.
    """

    def __init__(self, space: SearchSpace, data: Dataset, settings: TrainSettings, seed: int, checkpoint: Path | None = None) -> None:
        self.space, self.data, self.settings, self.seed, self.checkpoint = space, data, settings, seed, checkpoint
        self.supernet = Supernet(space, torch.Generator().manual_seed(seed))
        self.recalibration_batches = 4

    def evaluate(self, arch: Architecture, seed: int) -> dict[str, float]:
        """Values of the architecture with a copy of the shared weights, BatchNorm recalibrated; no training."""
        network = self.supernet.extract(arch)
        generator = torch.Generator().manual_seed(seed)
        recalibrate_batch_norm(network, self.data, batch_size=self.settings.batch_size, generator=generator, batches=self.recalibration_batches)
        return score(network, self.data)

    def tensors(self) -> dict[str, Tensor]:
        """The shared weights, for a checkpoint."""
        return {f"supernet.{name}": tensor for name, tensor in self.supernet.state_dict().items()}
