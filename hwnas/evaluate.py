"""What an architecture is worth: objectives, trials, and evaluators by short training or by shared weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hwnas import layers
from hwnas.checkpoint import load_state
from hwnas.data import Dataset, Part, batches
from hwnas.errors import ConfigError, RunError, nearest
from hwnas.space import Architecture, SearchSpace
from hwnas.supernet import Supernet
from hwnas.train import TrainSettings, evaluate_accuracy, make_fabric, recalibrate_batch_norm, train

Draw = Callable[[np.random.Generator], Architecture]

MEASURED: dict[str, Literal["min", "max"]] = {"error": "min", "accuracy": "max", "loss": "min"}
"""The objectives that an evaluator gives; every other objective is a metric of a cost model, and minimised."""

BATCH = 64
"""Images scored at a time: on a CPU 256 take 2 to 3 times longer each, their activations being larger than its caches."""
RECALIBRATION_BATCHES = 8
CLIP_WEIGHTS = 5.0
"""Largest norm of the gradient of shared weights that a searcher trains."""


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


@runtime_checkable
class Evaluator(Protocol):
    """Scores an architecture; the same `seed` gives the same values on one machine."""

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Whatever must be done once before the first evaluation; `progress(done, of)` is called as it goes on."""

    def evaluate(self, archs: Sequence[Architecture], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        """Each architecture's number, in the order in which they are done, with `error`, `accuracy` (shares) and `loss` (mean
        cross-entropy) on the validation part; of a text also `perplexity`."""

    def close(self) -> None:
        """Ends what `prepare` or `evaluate` may have started."""


def score(network: nn.Module, data: Dataset) -> dict[str, float]:
    """`error`, `accuracy` and `loss` of a trained network on the validation part; of a text also `perplexity`."""
    found = evaluate_accuracy(network, data, data.valid, BATCH)
    values = {"error": 1.0 - found.accuracy, "accuracy": found.accuracy, "loss": found.loss}
    return values if data.gives == "images" else {**values, "perplexity": found.perplexity}


def _lay_channels_last(module: nn.Module) -> None:
    """Convolution weights lie in memory as (out, height, width, in) from now on: more than twice as fast on a CPU."""
    for weight in module.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


class SinglePath(nn.Module):
    """A supernet whose every training pass is the network of one architecture, drawn anew.

    What `draw` is given is seeded from torch's global generator, which `train` seeds for every epoch, as it does for dropout.
    """

    def __init__(self, supernet: Supernet, draw: Draw) -> None:
        super().__init__()
        self.supernet = supernet
        self.draw = draw

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes *steps"]:
        """Logits of the drawn network."""
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        logits: Tensor = self.supernet.of(images, self.draw(rng))
        return logits


class SharedWeights:
    """A supernet, the data it is trained on, and how an architecture is scored with its weights.

    Who trains it: a gradient searcher inside `ask`, or else `prepare`, one random architecture a batch (arXiv 1904.00420).

    Args:
        settings: how `prepare` trains; of these a gradient searcher takes the accelerator and the precision.
        checkpoint: a file rewritten after each epoch, from which an interrupted training goes on.
        draw: gives the architectures that `prepare` trains; by default any of the space. Give `Problem.random` where there
            are budgets, so that the weights are not trained for networks that are never asked for.
    """

    def __init__(
        self, space: SearchSpace, data: Dataset, settings: TrainSettings, seed: int,
        checkpoint: Path | None = None, draw: Draw | None = None,
    ) -> None:  # fmt: skip
        self.space, self.data, self.settings, self.seed, self.checkpoint = space, data, settings, seed, checkpoint
        self.draw = draw or space.random
        self.supernet = Supernet(space)
        _lay_channels_last(self.supernet)
        self.initialise(torch.Generator().manual_seed(seed))

    def initialise(self, generator: torch.Generator) -> None:
        """New weights. Residual blocks begin as identities (arXiv 1706.02677), so that the alternatives in one place begin alike.

        On digits, 40 epochs of `prepare` in batches of 16 reach a mean accuracy of 54 % so, and 24 % otherwise.
        """
        layers.initialise(self.supernet.cpu(), generator)
        for module in self.supernet.modules():
            if isinstance(module, layers.Residual) and isinstance(module.shortcut, nn.Identity):
                for norm in [layer for layer in module.body.modules() if isinstance(layer, nn.BatchNorm2d)][-1:]:
                    nn.init.zeros_(norm.weight)
        self._prepared = False

    @cached_property
    def fabric(self) -> Any:
        """What a gradient searcher trains with."""
        return make_fabric(self.settings)

    def batches(self, part: Part, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a part, shuffled, augmented and normalised, with their labels, on the device that is trained on."""
        device = self.fabric.device
        for index in batches(part, size, generator):
            yield self.data.normalise(self.data.augment(part.images[index].to(device), generator)), part.labels[index].to(device)

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Trains the supernet, once; `progress(done, of)` counts epochs. Not for a supernet that a searcher trains.

        Raises:
            RunError: the checkpoint is damaged or belongs to another training.
            ConfigError: the training diverged.
        """
        epochs = self.settings.epochs
        if not self._prepared:
            report = train(
                SinglePath(self.supernet, self.draw), self.data, self.settings, self.seed,
                on_epoch=lambda epoch, loss: progress(epoch + 1, epochs), checkpoint=self.checkpoint,
            )  # fmt: skip
            if report.diverged:
                epoch, lr = len(report.losses), self.settings.lr
                raise ConfigError(f"the supernet's loss became no number in epoch {epoch}; lower lr (now {lr:g})")
            self._prepared = True
        progress(epochs, epochs)

    def evaluate(self, archs: Sequence[Architecture], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        """Scores them with copies of the shared weights, one after another, BatchNorm recalibrated; no training."""
        for number, (arch, seed) in enumerate(zip(archs, seeds, strict=True)):
            yield number, self.score(arch, seed)

    def score(self, arch: Architecture, seed: int) -> dict[str, float]:
        """Values of one architecture with a copy of the shared weights; `seed` draws the images that recalibrate its BatchNorm."""
        device = next(self.supernet.parameters()).device
        network = self.supernet.extract(arch).to(device)
        _lay_channels_last(network)
        generator = torch.Generator().manual_seed(seed)
        recalibrate_batch_norm(network, self.data, batch_size=BATCH, generator=generator, batches=RECALIBRATION_BATCHES)
        return score(network, self.data)

    def close(self) -> None:
        """Nothing to end."""

    def trained_in(self, run: str) -> SharedWeights:
        """The same data with the weights that another run has trained, whoever trained them there: evaluator or searcher.

        Args:
            run: its folder, or its supernet.safetensors.

        Raises:
            RunError: there are none, or they are another supernet's.
        """
        file = Path(run) / "supernet.safetensors" if Path(run).is_dir() else Path(run)
        if not file.is_file():
            raise RunError(f"there is no supernet {file}; name the folder of a run that has trained one, or its supernet.safetensors")
        other = SharedWeights(self.space, self.data, self.settings, self.seed)
        other.load({name.removeprefix("network."): tensor for name, tensor in load_state(file)[0].items()})
        return other

    def tensors(self) -> dict[str, Tensor]:
        """The shared weights, for a checkpoint."""
        return {f"supernet.{name}": tensor for name, tensor in self.supernet.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; others than the supernet's may be among them.

        Raises:
            RunError: they are another supernet's.
        """
        own = {name.removeprefix("supernet."): tensor for name, tensor in tensors.items() if name.startswith("supernet.")}
        try:
            self.supernet.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split()[:24])
            raise RunError(f"the checkpoint holds the weights of another supernet than that of {self.space.name} ({reason} ...)") from None
        self._prepared = True
