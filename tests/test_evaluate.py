"""Objectives, and what shared weights are: trained reproducibly, resumable to the bit, and worth something."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas import resources
from hwnas.checkpoint import save_state
from hwnas.cost import CostModel
from hwnas.data import Dataset, load_data
from hwnas.errors import ConfigError, RunError
from hwnas.evaluate import Objective, SharedWeights, SinglePath, Trial
from hwnas.layers import Residual
from hwnas.searcher import Problem
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.train import TrainSettings

SMALL = {"input_size": 8, "channels": 1, "stages": [{"widths": [4, 8], "depth": 2, "stride": 2}], "stem_width": 4, "head_width": 8}


@pytest.fixture(scope="module")
def space() -> SearchSpace:  # the spaces of tests/contract are tested there
    return load_space("mobilenet_v2", {**SMALL, "kernels": [3, 5]})


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_data("digits", {"size": 8, "limit": 60})


def make(space: SearchSpace, data: Dataset, checkpoint: Path | None = None, seed: int = 0, **settings: Any) -> SharedWeights:
    return SharedWeights(space, data, TrainSettings(**{"epochs": 3, "batch_size": 16, **settings}), seed, checkpoint)


def prepared(shared: SharedWeights) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    shared.prepare(lambda done, of: calls.append((done, of)))
    return calls


def same(one: SharedWeights, other: SharedWeights) -> bool:
    there = other.tensors()
    return all(torch.equal(tensor, there[name]) for name, tensor in one.tensors().items())


def test_objectives_are_named_by_what_gives_them() -> None:
    assert Objective.named("accuracy", []) == Objective("accuracy", "max")
    assert Objective.named("latency_ms", ["latency_ms"]) == Objective("latency_ms", "min")
    with pytest.raises(ConfigError, match="nothing gives the objective 'latency'; did you mean 'latency_ms'"):
        Objective.named("latency", ["latency_ms", "params"])


def test_the_sign_flips_once() -> None:
    trial = Trial(0, (0,), {"accuracy": 0.9, "latency_ms": 2.0})
    assert trial.vector([Objective("accuracy", "max"), Objective("latency_ms")]) == [-0.9, 2.0]


def test_preparing_is_reproducible_and_leaves_the_global_generator_alone(space: SearchSpace, data: Dataset) -> None:
    runs = [make(space, data, seed=seed) for seed in (0, 0, 1)]
    before = torch.get_rng_state()
    calls = [prepared(shared) for shared in runs]
    assert torch.equal(torch.get_rng_state(), before)
    assert calls[0] == [(1, 3), (2, 3), (3, 3), (3, 3)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_preparing_again_does_nothing(space: SearchSpace, data: Dataset) -> None:
    shared = make(space, data)
    prepared(shared)
    before = {name: tensor.clone() for name, tensor in shared.tensors().items()}
    assert prepared(shared) == [(3, 3)]
    assert all(torch.equal(before[name], tensor) for name, tensor in shared.tensors().items())


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_preparation_goes_on_to_the_same_weights(space: SearchSpace, data: Dataset, tmp_path: Path, stop: int) -> None:
    whole = make(space, data)
    prepared(whole)

    def interrupt(done: int, of: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(space, data, tmp_path / "supernet").prepare(interrupt)
    again = make(space, data, tmp_path / "supernet")
    assert prepared(again) == [(done, 3) for done in (*range(stop + 1, 4), 3)]
    assert same(again, whole)
    finished = make(space, data, tmp_path / "supernet")
    assert prepared(finished) == [(3, 3)]
    assert same(finished, whole)


def test_a_checkpoint_that_cannot_be_used_is_an_error(space: SearchSpace, data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "supernet"
    prepared(make(space, data, path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match="truncated"):
        prepared(make(space, data, path))
    path.write_bytes(content)
    with pytest.raises(RunError, match="seed"):
        prepared(make(space, data, path, seed=1))
    with pytest.raises(RunError, match="settings"):
        prepared(make(space, data, path, lr=0.017))
    with pytest.raises(RunError, match="another network"):
        prepared(make(load_space("mobilenet_v2", {**SMALL, "kernels": [3]}), data, path))


def test_every_batch_trains_the_network_that_was_drawn(space: SearchSpace, data: Dataset) -> None:
    """Weights of other choices do not move; by default every choice comes."""
    arch = (0, 1, 2)
    shared = make(space, data)
    before = {name: tensor.clone() for name, tensor in shared.tensors().items()}
    shared.draw = lambda rng: arch
    prepared(shared)
    moved = {int(name.split(".")[2]) for name, tensor in shared.tensors().items() if not torch.equal(before[name], tensor)}
    parametric = {i for i in space.alive(arch) if resources.params(space.sites[i].op)}
    assert moved == parametric

    seen: list[Architecture] = []
    shared = make(space, data)

    def draw(rng: np.random.Generator) -> Architecture:
        seen.append(space.random(rng))
        return seen[-1]

    shared.draw = draw
    prepared(shared)
    assert len(seen) == 3 * math.ceil(60 / 16)
    assert len(set(seen)) > 5


def test_only_networks_within_the_budgets_are_trained_if_so_wanted(space: SearchSpace, data: Dataset) -> None:
    cost = CostModel(space, resources.macs, metric="macs")
    problem = Problem(space, (Objective("error"),), {"macs": cost}, {"macs": float(cost.of([cost.cheapest()])[0]) * 1.1})
    single = SinglePath(make(space, data).supernet, problem.random)
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)
    for _ in range(5):
        single(images).sum().backward()
    touched = {int(name.split(".")[2]) for name, weight in single.named_parameters() if weight.grad is not None}
    allowed = {i for arch in space.all() if bool(problem.feasible([arch])[0]) for i in space.alive(arch)}
    assert touched <= allowed
    assert len(allowed) < len(space.sites) / 2


def test_residual_blocks_begin_as_identities(space: SearchSpace, data: Dataset) -> None:
    shared = make(space, data)
    blocks = [module for module in shared.supernet.eval().modules() if isinstance(module, Residual)]
    assert len(blocks) == 8  # second blocks: two widths, two kernels, two expansions
    for block in blocks:
        conv = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
        x = torch.randn(2, conv.in_channels, 4, 4)
        torch.testing.assert_close(block(x), x)


def test_a_score_is_reproducible_and_leaves_the_shared_weights_alone(space: SearchSpace, data: Dataset) -> None:
    shared = make(space, data)
    prepared(shared)
    before = {name: tensor.clone() for name, tensor in shared.tensors().items()}
    archs = [(0, 0, 0), (1, 3, 4)]
    once = dict(shared.evaluate(archs, [0, 1]))
    assert dict(shared.evaluate(archs, [0, 1])) == once
    assert set(once) == {0, 1}
    for values in once.values():
        assert values.keys() == {"error", "accuracy", "loss"}
        assert values["error"] + values["accuracy"] == pytest.approx(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in shared.tensors().items())


def test_scores_do_not_depend_on_the_running_statistics_of_the_supernet(space: SearchSpace, data: Dataset) -> None:
    """They mix architectures, so BatchNorm is calibrated anew for each."""
    shared = make(space, data)
    prepared(shared)
    expected = shared.score((1, 0, 1), 0)
    for module in shared.supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.add_(100.0)
    assert shared.score((1, 0, 1), 0) == expected


def test_trained_shared_weights_tell_digits_apart() -> None:
    few = load_space("mobilenet_v2", {**SMALL, "kernels": [3], "stages": [{"widths": [8], "depth": 2, "stride": 2}]})
    shared = make(few, load_data("digits", {"size": 8}), epochs=8, lr=0.1)
    prepared(shared)
    archs = [arch for arch in few.all() if few.graph(arch)]
    accuracies = [values["accuracy"] for _, values in shared.evaluate(archs, [0] * len(archs))]
    assert len(archs) == 6
    assert min(accuracies) > 0.4  # one in ten by chance


def test_a_diverged_training_is_an_error_that_says_what_to_do(space: SearchSpace, data: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"the supernet's loss became no number in epoch \d; lower lr \(now 1e\+30\)"):
        prepared(make(space, data, lr=1e30, clip_norm=0.0, warmup_epochs=0.0, epochs=8))


def test_weights_go_to_a_checkpoint_and_back(space: SearchSpace, data: Dataset, tmp_path: Path) -> None:
    one, other = make(space, data), make(space, data, seed=5)
    assert not same(one, other)
    other.load({**one.tensors(), "logits": torch.zeros(3)})
    assert same(one, other)
    assert prepared(other) == [(3, 3)]  # loaded weights are trained weights
    save_state(tmp_path / "state", one.tensors(), {})
    with pytest.raises(RunError, match="another supernet than that of mobilenet_v2"):
        make(load_space("mobilenet_v2", {**SMALL, "kernels": [3]}), data).load(one.tensors())


def test_weights_that_another_run_has_trained_are_found_whoever_trained_them(space: SearchSpace, data: Dataset, tmp_path: Path) -> None:
    trained = make(space, data, tmp_path / "evaluator" / "supernet.safetensors")
    prepared(trained)
    save_state(tmp_path / "searcher.safetensors", {**trained.tensors(), "logits": torch.zeros(1)}, {})
    fresh = make(space, data)
    before = fresh.tensors()["supernet." + next(iter(fresh.supernet.state_dict()))].clone()
    for run in (tmp_path / "evaluator", tmp_path / "searcher.safetensors"):
        found = fresh.trained_in(str(run))
        assert same(found, trained)
        assert found.score((0,) * len(space.slots), 0) == trained.score((0,) * len(space.slots), 0)
    assert torch.equal(before, next(iter(fresh.tensors().values())))
    with pytest.raises(RunError, match=r"there is no supernet .*; name the folder of a run"):
        fresh.trained_in(str(tmp_path))
    other = make(load_space("mobilenet_v2", SMALL), data)
    with pytest.raises(RunError, match="another supernet"):
        other.trained_in(str(tmp_path / "evaluator"))
