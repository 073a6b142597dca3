from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import plugins
from hwnas.cost import Cost, CostModel
from hwnas.data import Augmentation, Dataset, Part
from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, SharedWeights, Trial
from hwnas.explain import probe
from hwnas.resources import macs
from hwnas.searcher import Problem
from hwnas.searchers.enas import ENAS
from hwnas.space import SearchSpace, load_space
from hwnas.train import TrainSettings

OBJECTIVES = (Objective("error"), Objective("latency_ms"))


@pytest.fixture(scope="module")
def cells() -> SearchSpace:
    return load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1, "classes": 2})


def problem_of(space: SearchSpace, checkpoint: Path | None = None, images: bool = True) -> Problem:
    """A problem with a supernet on 32 images of two classes, dark ones and bright ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    noise = torch.randint(0, 80, (32, *space.input_shape), generator=generator)
    part = Part((noise + labels.view(-1, 1, 1, 1) * 120).to(torch.uint8), labels)
    data = Dataset("made up", part, part, part, ("dark", "bright"), Augmentation())
    shared = SharedWeights(space, data, TrainSettings(epochs=1), 0, checkpoint) if images else None
    costs: dict[str, Cost] = {"latency_ms": CostModel(space, lambda op: 1e-3 + 1e-6 * macs(op), metric="latency_ms")}
    return Problem(space, OBJECTIVES, costs, shared=shared)


def make(problem: Problem, seed: int = 0, **options: Any) -> ENAS:
    small = {**ENAS.small, "memory_buffer": False, **options}
    searcher: ENAS = plugins.build("searchers", "enas", small, problem, np.random.default_rng(seed))
    return searcher


def tell(searcher: ENAS, archs: list[tuple[int, ...]]) -> None:
    known = searcher.problem.known(archs)["latency_ms"]
    searcher.tell(
        [
            Trial(i, arch, {"error": 0.5 + 0.5 * np.sin(sum(arch)), "latency_ms": float(known[i])})
            for i, arch in enumerate(archs)
        ]
    )  # fmt: skip


def test_it_trains_a_supernet_where_there_is_one(cells: SearchSpace) -> None:
    assert make(problem_of(cells)).needs_shared_weights
    assert not make(problem_of(cells, images=False)).needs_shared_weights
    assert not make(problem_of(cells), weights="none").needs_shared_weights
    with pytest.raises(ConfigError, match="ENAS trains a supernet and needs data"):
        make(problem_of(cells, images=False), weights="shared")
    with pytest.raises(ConfigError, match="prefer: 'x=y' matches no choice"):
        make(problem_of(cells), prefer=["x=y"])


def test_without_shared_weights_what_is_told_teaches_and_the_supernet_is_left_alone(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells), weights="none")
    before = {name: value.clone() for name, value in searcher.shared.supernet.state_dict().items()}
    policy = [parameter.detach().clone() for parameter in searcher.trained()]
    tell(searcher, searcher.ask(4))
    assert not all(map(torch.equal, policy, searcher.trained()))
    after = searcher.shared.supernet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_sampled_paths_train_the_shared_weights(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells), epochs=6, epochs_per_ask=3, lr=0.1, lr_min=0.1, batch_size=8)
    searcher.ask(2)
    first = searcher.log["sampled_loss"]
    searcher.asked.clear()
    searcher._queue.clear()
    searcher.ask(2)
    assert searcher.log["epoch"] == 6
    assert searcher.log["sampled_loss"] < first
    policy = [parameter.detach().clone() for parameter in searcher.trained()]
    tell(searcher, [next(iter(searcher.asked.values()))])
    assert all(map(torch.equal, policy, searcher.trained()))  # the supernet has told it already


def test_an_interrupted_training_goes_on_to_the_same_asks(cells: SearchSpace, tmp_path: Path) -> None:
    options = {"epochs": 2, "epochs_per_ask": 2}
    whole = make(problem_of(cells), **options).ask(4)
    stopped = make(problem_of(cells, tmp_path / "supernet.safetensors"), **options)
    train_weights = stopped._train_weights

    def killed(generator: torch.Generator) -> float:
        if stopped._epoch == 1:
            raise KeyboardInterrupt
        return train_weights(generator)

    stopped._train_weights = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.ask(4)
    again = make(problem_of(cells, tmp_path / "supernet.safetensors"), **options)
    assert again.ask(4) == whole


def test_a_diverging_supernet_is_an_error(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells))
    with torch.no_grad():
        for weight in searcher.shared.supernet.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match=r"enas: the shared weights' loss became no number in epoch 1; lower lr \(now 0.05\)"):
        searcher.ask(1)


def test_after_the_last_epoch_draws_go_on(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells))
    asked = [arch for _ in range(8) for arch in searcher.ask(4)]
    assert searcher.log["epoch"] == 2
    assert len(asked) > 16


def test_costs_shape_the_policies_of_the_rewards(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells), weights="none", alphas=[0.0, 1.0], steps=30, free=16, controller_lr=0.02, entropy=0.0)
    for _ in range(3):
        tell(searcher, searcher.ask(4))
    cost, rng = searcher.problem.costs["latency_ms"], np.random.default_rng(0)
    drawn = searcher.controller.sample(torch.full((100,), 0), torch.Generator().manual_seed(0)).archs  # alpha 0: costs alone are paid
    networks = [tuple(arch) for arch in drawn.tolist() if cells.graph(arch)]
    assert float(cost.of(networks).mean()) < 0.7 * float(cost.of([cells.random(rng) for _ in range(200)]).mean())


# Fact 4: what the memory buffer does


@pytest.mark.slow
def test_the_memory_buffer_makes_the_state_tell_past_architectures(cells: SearchSpace) -> None:
    accuracies = {}
    for mu in (0.0, 1.0):
        searcher = make(
            problem_of(cells), weights="none", memory_buffer=True, memory=32, mu=mu, hidden=16, steps=60, controller_lr=0.02, entropy=1.0
        )
        losses = []
        for _ in range(4):
            tell(searcher, searcher.ask(8))
            losses.append(searcher.log["reconstruction"])
        reading = searcher.controller.sample(torch.zeros(600, dtype=torch.int64), torch.Generator().manual_seed(0))
        rng = np.random.default_rng(0)
        found = [probe(reading.state.chunk(2, -1)[0], reading.archs[:, slot], rng) for slot in range(6)]
        accuracies[mu] = float(np.mean([said - majority for said, majority in found]))
        if mu:
            assert losses[-1] < 0.8 * losses[0]
        else:
            assert losses[-1] > 0.95 * losses[0]  # the decoder is not trained by a loss that weighs nothing
    assert accuracies[1.0] > accuracies[0.0] + 0.05


# Fact 6: with the published squash, draws are worth what uniform draws are


@pytest.mark.slow
def test_squashed_policies_draw_networks_no_better_than_uniform_ones(cells: SearchSpace) -> None:
    searcher = make(
        problem_of(cells), alphas=[1.0], epochs=10, epochs_per_ask=10, lr=0.1, squash=1.1, op_reduce=2.5, controller_steps=10, hidden=64
    )
    searcher.ask(1)
    assert searcher.log["entropy"] > 0.94
    rng = np.random.default_rng(0)
    drawn = searcher.drawn(torch.zeros(80, dtype=torch.int64), torch.Generator().manual_seed(0))
    groups = [[arch for arch in drawn if cells.graph(arch)][:60], [cells.random(rng) for _ in range(60)]]
    scores = [np.array([searcher.shared.score(arch, i)["accuracy"] for i, arch in enumerate(archs)]) for archs in groups]
    noise = np.sqrt(sum(score.var() / len(score) for score in scores))
    assert abs(scores[0].mean() - scores[1].mean()) <= 3 * noise
