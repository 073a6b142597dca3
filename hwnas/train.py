"""Train one network, score it, re-estimate its BatchNorm statistics: the same recipe for every architecture.

SGD with Nesterov momentum, linear warm-up and one cosine (arXiv 1608.03983); no weight decay on vectors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hwnas.checkpoint import load_optimizer, load_state, optimizer_tensors, save_state
from hwnas.data import Dataset, Part
from hwnas.data import batches as index_batches
from hwnas.errors import ConfigError, DataError, RunError
from hwnas.layers import Scheduled

Precision = Literal["32-true", "bf16-mixed"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained; small networks reach 98.5 % on the digits with these values.

    Args:
        lr: the highest learning rate, reached after `warmup_epochs` (a fraction is allowed), then falling to 0.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
        precision: "bf16-mixed" computes in bfloat16 where that is safe.
        accelerator: "auto" takes a GPU where there is one.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-3
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    clip_norm: float = 5.0
    precision: Precision = "32-true"
    accelerator: Accelerator = "auto"

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        limits = {
            "epochs": (1, math.inf), "batch_size": (2, math.inf), "lr": (1e-12, math.inf), "momentum": (0, 0.9999),
            "weight_decay": (0, math.inf), "warmup_epochs": (0, self.epochs), "label_smoothing": (0, 0.9999),
            "clip_norm": (0, math.inf),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"training: {name} must be between {low} and {high}, but got {value}")
        for name, known in (("precision", get_args(Precision)), ("accelerator", get_args(Accelerator))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"training: {name} must be one of {', '.join(known)}, but got {value!r}")

    def lr_at(self, epoch: float) -> float:
        """Learning rate at a point of time between 0 and `epochs`."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-12)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class TrainReport:
    """Mean training loss of each epoch, number of epochs found in a checkpoint, whether the loss became no number."""

    losses: tuple[float, ...]
    resumed_at: int
    diverged: bool


@dataclass(frozen=True)
class Accuracy:
    """Share of the `n` images (of a text: tokens) classified right, and their mean cross entropy."""

    accuracy: float
    loss: float
    n: int

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely classes it is as hard to choose; at most exp(700), about the largest float."""
        return math.exp(min(self.loss, 700.0))


def train(
    network: nn.Module, data: Dataset, settings: TrainSettings, seed: int, *,
    on_epoch: Callable[[int, float], None] | None = None, checkpoint: Path | None = None,
) -> TrainReport:  # fmt: skip
    """Trains `network` in place on `data.train` only; it ends in eval mode on the accelerator.

    Shuffling, augmentation and dropout follow from `seed`; the caller has initialised the weights. The global
    generators are left as they were. A loss that is no number ends the training, which is reported, not raised.

    Args:
        on_epoch: called after each epoch with its number from 0 and its mean loss; what it raises ends the training.
        checkpoint: a file rewritten after each epoch. Where it exists, training goes on from there to the same
            weights, bit for bit, as without the interruption.

    Raises:
        RunError: a checkpoint that is damaged or belongs to another network, data set, seed or settings.
        ConfigError: the accelerator does not exist here.
    """
    if len(data.train) < 2:
        raise DataError(f"{data.name}: training needs at least 2 images, but there is {len(data.train)}")
    fabric = make_fabric(settings)
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(network.to(fabric.device), settings)
    about = {
        "holds": "training", "settings": asdict(settings), "seed": seed,
        "data": [data.name, len(data.train), *data.image_shape, *data.mean],
    }  # fmt: skip
    losses: list[float] = []
    deterministic = torch.backends.cudnn.flags(deterministic=True)
    with _channels_last(network), torch.random.fork_rng(range(torch.cuda.device_count())), deterministic:
        if checkpoint is not None and checkpoint.exists():
            losses = _resume(checkpoint, about, network, optimizer, generator)
        resumed_at = len(losses)
        wrapped, stepper = fabric.setup(network, optimizer)
        scheduled = [module for module in network.modules() if isinstance(module, Scheduled)]
        for epoch in range(resumed_at, settings.epochs):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # dropout's
            network.train()
            total, seen = torch.zeros((), device=fabric.device), 0
            for index in index_batches(data.train, settings.batch_size, generator):
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr_at(epoch + (seen + len(index) / 2) / len(data.train))
                for module in scheduled:
                    module.progress((epoch + seen / len(data.train)) / settings.epochs)
                images = data.normalise(data.augment(data.train.images[index].to(fabric.device), generator))
                labels = data.train.labels[index].to(fabric.device)
                logits = wrapped(images.to(memory_format=torch.channels_last)).float()
                loss = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
                for module in scheduled:
                    loss = loss + module.penalty()
                optimizer.zero_grad()
                fabric.backward(loss)
                if settings.clip_norm:
                    fabric.clip_gradients(wrapped, stepper, max_norm=settings.clip_norm, error_if_nonfinite=False)
                stepper.step()
                total += loss.detach() * len(index)
                seen += len(index)
            losses.append(float(total) / seen)
            if not math.isfinite(losses[-1]):
                break
            if checkpoint is not None:
                _save(checkpoint, {**about, "losses": losses}, network, optimizer, generator)
            if on_epoch is not None:
                network.eval()
                on_epoch(epoch, losses[-1])
        optimizer.zero_grad()
    network.eval()
    return TrainReport(tuple(losses), resumed_at, diverged=not math.isfinite(losses[-1]))


def make_fabric(settings: TrainSettings) -> Any:
    """Lightning's Fabric for the accelerator and the precision.

    Raises:
        ConfigError: the accelerator does not exist here.
    """
    from lightning_fabric import Fabric  # two seconds, spared to everybody who does not train

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        return Fabric(accelerator=settings.accelerator, devices=1, precision=settings.precision)
    except RuntimeError as error:
        raise ConfigError(f"training: accelerator {settings.accelerator!r} cannot be used here: {error}") from None


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    """Meanwhile, convolution weights lie in memory as (out, height, width, in): up to twice as fast on a CPU."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim == 4]
    for weight in weights:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.to(memory_format=torch.contiguous_format)


def _optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # not fused: that step takes momentum for all weights or none and mixes up memory layouts
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, foreach=True)


def _save(
    path: Path,
    metadata: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()} | optimizer_tensors("optimizer", optimizer)
    save_state(path, {**tensors, "generator": generator.get_state()}, metadata)


def _resume(
    path: Path, about: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> list[float]:
    """Puts the saved state into the network, the optimiser and the generator; returns the losses of the epochs done."""
    tensors, metadata = load_state(path)
    advice = "delete it to start again, or name another checkpoint"
    for key, value in about.items():
        if metadata.get(key) != value:
            found = metadata.get(key)
            raise RunError(f"{path} was written by another training: its {key} is {found}, not {value}; {advice}")
    try:
        network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
        load_optimizer("optimizer", optimizer, tensors)
        generator.set_state(tensors["generator"])
        losses = [float(loss) for loss in metadata["losses"]]
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{path} belongs to another network ({str(error).splitlines()[0]}); {advice}") from None
    return losses


@contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    """Puts every module into eval mode and, afterwards, back into the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict(network: nn.Module, images: Float[Tensor, "n channel height width"], batch_size: int = 256) -> Float[Tensor, "n class *steps"]:
    """Logits, on the CPU, of normalised images: eval mode, no gradient, on the device of the network's weights."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with _modes_kept(network), torch.inference_mode():
        return torch.cat(
            [network(batch.to(device, memory_format=torch.channels_last)).float().cpu() for batch in torch.split(images, batch_size)]
        )


def evaluate_accuracy(network: nn.Module, data: Dataset, part: Part, batch_size: int = 256) -> Accuracy:
    """Top-1 accuracy and mean cross entropy on un-augmented images, or all tokens, of `part`."""
    right, loss = 0, 0.0
    for images, labels in zip(torch.split(part.images, batch_size), torch.split(part.labels, batch_size), strict=True):
        logits = predict(network, data.normalise(images), batch_size)
        right += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
    n = part.labels.numel()
    return Accuracy(right / n, loss / n, n)


def recalibrate_batch_norm(
    network: nn.Module, data: Dataset, *, batch_size: int = 256, generator: torch.Generator, batches: int = 20
) -> None:
    """Re-estimates BatchNorm's running statistics as plain averages over at most `batches` batches of training images.

    The images are not augmented; weights, momentum and modes stay as they are. Needed wherever weights come from a
    supernet, whose statistics mix architectures (arXiv 1903.05134).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        with _modes_kept(network), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for index in islice(index_batches(data.train, batch_size, generator), batches):
                network(data.normalise(data.train.images[index].to(device)))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
