"""Training: it learns, it repeats itself bit for bit, interrupted or not, and it touches the train part only."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hwnas.data import Augmentation, Dataset, Part
from hwnas.errors import ConfigError, DataError, RunError
from hwnas.layers import Scheduled
from hwnas.train import TrainSettings, evaluate_accuracy, predict, recalibrate_batch_norm, train

SETTINGS = TrainSettings(epochs=4, batch_size=8, lr=0.1, warmup_epochs=0.5, accelerator="cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def part(n: int, seed: int) -> Part:
    """Noise in which class 0 is reddish and class 1 bluish."""
    images = torch.randint(0, 200, (n, 3, 6, 6), dtype=torch.uint8, generator=generator(seed))
    labels = torch.arange(n) % 2
    images[torch.arange(n), 2 * labels] += 55
    return Part(images, labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset("colours", part(41, 0), part(20, 1), part(20, 2), ("red", "blue"), Augmentation(shift=1, flip=True))


def network(seed: int = 0) -> nn.Sequential:
    """Has all that can go wrong: a wide 3x3 convolution whose memory layout matters, BatchNorm, depthwise, dropout."""
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.BatchNorm2d(6),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(6, 2),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)) * 0.3)
    return made


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def killed_after(epoch: int) -> Callable[[int, float], None]:
    def kill(done: int, loss: float) -> None:
        if done == epoch:
            raise KeyboardInterrupt

    return kill


# --- what is learnt


def weight(net: nn.Sequential, index: int) -> Tensor:
    """The weight of a layer."""
    found = net[index].weight
    assert isinstance(found, Tensor)
    return found


def norms(net: nn.Sequential) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """The two BatchNorms of `network()`."""
    first, second = (layer for layer in net if isinstance(layer, nn.BatchNorm2d))
    return first, second


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def test_it_learns(data: Dataset) -> None:
    net = network()
    before = evaluate_accuracy(net, data, data.test)
    seen: list[tuple[int, float]] = []
    report = train(net, data, dataclasses.replace(SETTINGS, epochs=20), 0, on_epoch=lambda *done: seen.append(done))
    after = evaluate_accuracy(net, data, data.test)
    assert after.accuracy > 0.9 > before.accuracy and after.loss < before.loss and after.n == 20
    assert seen == list(enumerate(report.losses)) and len(seen) == 20
    assert report.losses[-1] < report.losses[0] / 1.5
    assert not report.diverged and report.resumed_at == 0 and not net.training


def test_it_repeats_itself_and_leaves_the_global_generator_alone(data: Dataset) -> None:
    nets = [network() for _ in range(3)]
    reports = []
    for i, (net, seed) in enumerate(zip(nets, (5, 5, 6), strict=True)):
        torch.manual_seed(i)
        state = torch.get_rng_state()
        reports.append(train(net, data, SETTINGS, seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert same(nets[0], nets[1]) and reports[0] == reports[1]
    assert not same(nets[0], nets[2])


def test_only_the_train_part_is_touched(data: Dataset) -> None:
    nets = network(), network()
    train(nets[0], data, SETTINGS, 0)
    train(nets[1], dataclasses.replace(data, valid=part(10, 7), test=part(10, 8)), SETTINGS, 0)
    assert same(*nets)


def test_frozen_weights_stay_and_the_network_is_left_tidy(data: Dataset) -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    train(net, data, SETTINGS, 0)
    assert torch.equal(weight(net, 0), weight(network(), 0)) and not torch.equal(weight(net, 9), weight(network(), 9))
    assert all(p.is_contiguous() and p.grad is None and p.dtype == torch.float32 for p in net.parameters())


class Forked(nn.Module):
    """Sends each training batch through one of two branches, so a step knows the gradient of some weights only."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([network(0), network(1)])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        out: Tensor = self.branches[self.calls // 2 % 2](x)
        return out


def test_weights_without_a_gradient_are_trained_when_they_have_one(data: Dataset, tmp_path: Path) -> None:
    net, again = Forked(), Forked()
    settings = dataclasses.replace(SETTINGS, epochs=2)
    expected = train(net, data, settings, 0)
    for branch, before in zip(net.branches, (network(0), network(1)), strict=True):
        assert all(not torch.equal(p, q) for p, q in zip(branch.parameters(), before.parameters(), strict=True))
    with pytest.raises(KeyboardInterrupt):
        train(again, data, settings, 0, on_epoch=killed_after(0), checkpoint=tmp_path / "c")
    assert train(again, data, settings, 0, checkpoint=tmp_path / "c").losses == expected.losses and same(net, again)


def test_only_matrices_decay(data: Dataset) -> None:
    nets = network(), network()
    settings = dataclasses.replace(SETTINGS, epochs=1, batch_size=64, warmup_epochs=0.0, momentum=0.0, clip_norm=0.0)
    for net, decay in zip(nets, (0.0, 0.5), strict=True):
        train(net, data, dataclasses.replace(settings, weight_decay=decay), 0)
    start, lr = network(), settings.lr_at(0.5)
    for plain, decayed, first in zip(*(net.parameters() for net in (*nets, start)), strict=True):
        assert torch.allclose(plain - decayed, lr * 0.5 * first if first.ndim > 1 else torch.zeros_like(first), atol=1e-6)


def test_a_loss_that_is_no_number_is_reported(data: Dataset, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    settings = dataclasses.replace(SETTINGS, lr=1e38, warmup_epochs=0.0)
    report = train(net, data, settings, 0, checkpoint=tmp_path / "c")
    assert report.diverged and not math.isfinite(report.losses[-1]) and len(report.losses) < 4
    assert not (tmp_path / "c").exists() and not net.training


def test_nothing_is_said_and_no_variable_set(data: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    environment = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network(), data, dataclasses.replace(SETTINGS, epochs=1, precision="bf16-mixed"), 0)
    assert capfd.readouterr() == ("", "") and dict(os.environ) == environment


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_accelerator_is_named(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="accelerator 'cuda' cannot be used here"):
        train(network(), data, dataclasses.replace(SETTINGS, accelerator="cuda"), 0)


def test_one_image_is_too_few() -> None:
    data = Dataset("single", part(1, 0), part(1, 1), part(1, 2), ("red",))
    with pytest.raises(DataError, match="single: training needs at least 2 images"):
        train(network(), data, SETTINGS, 0)


# --- checkpoints


@pytest.mark.parametrize("epoch", range(4))
def test_an_interrupted_training_ends_as_an_uninterrupted_one(data: Dataset, tmp_path: Path, epoch: int) -> None:
    whole, first, second = network(), network(), network(seed=9)
    expected = train(whole, data, SETTINGS, 3)
    path = tmp_path / "folder" / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(first, data, SETTINGS, 3, on_epoch=killed_after(epoch), checkpoint=path)
    called: list[int] = []
    report = train(second, data, SETTINGS, 3, on_epoch=lambda done, loss: called.append(done), checkpoint=path)
    assert same(whole, second)
    assert report == dataclasses.replace(expected, resumed_at=epoch + 1)
    assert called == list(range(epoch + 1, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "its seed is 3, not 4"),
        ({"settings": dataclasses.replace(SETTINGS, lr=0.2)}, "its settings is .*0.1.*, not .*0.2"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(108, 2))}, "belongs to another network"),
        ({"data": Dataset("colours", part(42, 0), part(20, 1), part(20, 2), ("red", "blue"))}, "its data is"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(data: Dataset, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.safetensors"
    options: dict[str, Any] = {"network": network(), "data": data, "settings": SETTINGS, "seed": 3}
    with pytest.raises(KeyboardInterrupt):
        train(**options, on_epoch=killed_after(0), checkpoint=path)
    with pytest.raises(RunError, match=rf"t\.safetensors .*{message}.*delete it"):
        train(**(options | changes), checkpoint=path)


def test_a_damaged_checkpoint_is_refused(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(network(), data, SETTINGS, 3, on_epoch=killed_after(0), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"t\.safetensors must be a whole checkpoint"):
        train(network(), data, SETTINGS, 3, checkpoint=path)


# --- settings


@given(epochs=st.integers(1, 50), warmup=st.floats(0, 1), lr=st.floats(1e-4, 10), at=st.floats(0, 1), later=st.floats(0, 1))
def test_learning_rate_rises_then_falls_to_zero(epochs: int, warmup: float, lr: float, at: float, later: float) -> None:
    settings = TrainSettings(epochs=epochs, warmup_epochs=warmup * epochs, lr=lr)
    first, second = sorted((at, later))
    rates = settings.lr_at(first * epochs), settings.lr_at(second * epochs)
    assert all(0 <= rate <= lr for rate in rates)
    if second < warmup:
        assert rates[0] <= rates[1] + 1e-9
    if first > warmup:
        assert rates[0] >= rates[1] - 1e-9
    assert settings.lr_at(settings.warmup_epochs) == pytest.approx(lr)
    assert warmup > 0.999 or settings.lr_at(epochs) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"lr": math.nan}, {"momentum": 1.0}, {"weight_decay": -0.1},
        {"warmup_epochs": 31.0}, {"label_smoothing": 1.0}, {"clip_norm": -1.0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"training: {next(iter(wrong))} must be between .* but got {next(iter(wrong.values()))}"):
        TrainSettings(**wrong)


def test_settings_come_from_a_configuration() -> None:
    reader = pydantic.TypeAdapter(TrainSettings)
    assert reader.validate_python({"epochs": 3, "lr": 1}) == TrainSettings(epochs=3, lr=1.0)
    for wrong in ({"epoch": 3}, {"precision": "8-true"}, {"batch_size": 1}):
        with pytest.raises(pydantic.ValidationError):
            reader.validate_python(wrong)


# --- scoring


@given(batch_size=st.integers(1, 25))
def test_scores_do_not_depend_on_batches(batch_size: int) -> None:
    data = Dataset("colours", part(8, 0), part(8, 1), part(21, 2), ("red", "blue"))
    net = network().train()
    score = evaluate_accuracy(net, data, data.test, batch_size)
    assert all(module.training for module in net.modules()), "modes are put back"
    logits = net.eval()(data.normalise(data.test.images)).detach()
    assert score.loss == pytest.approx(float(functional.cross_entropy(logits, data.test.labels)), rel=1e-4)
    assert score.accuracy == pytest.approx(float((logits.argmax(1) == data.test.labels).float().mean()))
    found = predict(net, data.normalise(data.test.images), batch_size)
    assert torch.allclose(found, logits, atol=1e-5) and not found.requires_grad


def test_recalibration_averages_over_train_images(data: Dataset) -> None:
    net = network()
    first, second = norms(net)
    first.momentum = 0.3
    first.eval()
    weights = {name: value.clone() for name, value in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    for norm in (first, second):
        statistics(norm)[0].fill_(1e3)
    recalibrate_batch_norm(net, data, batch_size=20, generator=generator(1), batches=2)
    order = torch.randperm(41, generator=generator(1))[:40]
    hidden: Tensor = net[0](data.normalise(data.train.images[order]))
    halves = [hidden[:20], hidden[20:]]
    assert torch.allclose(statistics(first)[0], torch.stack([h.mean((0, 2, 3)) for h in halves]).mean(0), atol=1e-5)
    assert torch.allclose(statistics(first)[1], torch.stack([h.var((0, 2, 3)) for h in halves]).mean(0), atol=1e-5)
    assert statistics(second)[0].abs().max() < 100 and first.num_batches_tracked == 2
    assert (first.momentum, second.momentum) == (0.3, 0.1) and [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())


def test_recalibration_brings_back_what_lost_statistics_cost(data: Dataset) -> None:
    net = network()
    train(net, data, dataclasses.replace(SETTINGS, epochs=20), 0)
    trained = evaluate_accuracy(net, data, data.valid).accuracy
    for norm in norms(net):
        statistics(norm)[0].fill_(3.0)
    assert evaluate_accuracy(net, data, data.valid).accuracy < 0.7
    recalibrate_batch_norm(net, data, generator=generator())
    assert evaluate_accuracy(net, data, data.valid).accuracy >= min(trained, 0.9)


def test_scheduled_modules_are_told_how_far_training_is_and_their_penalty_is_paid(data: Dataset) -> None:
    class Told(nn.Module, Scheduled):
        def __init__(self) -> None:
            super().__init__()
            self.shares: list[float] = []
            self.weight = nn.Parameter(torch.full((2, 2), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return x

        def progress(self, share: float) -> None:
            self.shares.append(share)

        def penalty(self) -> Tensor:
            return self.weight.square().sum()

        def finished(self) -> nn.Module:
            return nn.Identity()

    told = Told()
    net = network().append(told)
    settings = TrainSettings(epochs=4, batch_size=len(data.train), lr=0.1, momentum=0.0, weight_decay=0.0, warmup_epochs=0)
    train(net, data, settings, 0)
    assert told.shares == [0.0, 0.25, 0.5, 0.75]
    assert 0 < float(told.weight.detach().max()) < 3.0
