from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hwnas import plugins
from hwnas.controller import scalarisations, scalarised
from hwnas.cost import Cost, CostModel, PeakMemory
from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, Trial
from hwnas.resources import macs
from hwnas.searcher import Problem
from hwnas.searchers.monas import MONAS, constrained
from hwnas.space import Architecture, SearchSpace, load_space

ERROR, LATENCY = Objective("error"), Objective("latency_ms")


@pytest.fixture(scope="module")
def cells() -> SearchSpace:
    return load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1})


def problem_of(space: SearchSpace, *objectives: Objective, **rest: Any) -> Problem:
    latency = CostModel(space, lambda op: 1e-3 + 1e-6 * macs(op), metric="latency_ms")
    costs: dict[str, Cost] = {"latency_ms": latency, "peak_mb": PeakMemory(space)}
    return Problem(space, objectives or (ERROR, LATENCY), costs, **rest)


def make(problem: Problem, seed: int = 0, **options: Any) -> MONAS:
    searcher: MONAS = plugins.build("searchers", "monas", {"hidden": 16, **options}, problem, np.random.default_rng(seed))
    return searcher


def error(arch: Architecture) -> float:
    """A made-up error that large operators lower, each slot by its own measure."""
    worth = (0.0, 0.4, 0.7, 1.0, 0.5)
    return 0.9 - 0.8 * float(np.mean([worth[choice] * (1 + slot % 2) / 2 for slot, choice in enumerate(arch)]))


def drive(searcher: MONAS, trials: int, batch: int = 8) -> list[Architecture]:
    asked: list[Architecture] = []
    while len(asked) < trials:
        archs = searcher.ask(batch)
        assert archs
        known = searcher.problem.known(archs)
        searcher.tell(
            [
                Trial(len(asked) + i, arch, {"error": error(arch), **{metric: float(values[i]) for metric, values in known.items()}})
                for i, arch in enumerate(archs)
            ]
        )
        asked += archs
    return asked


# Fact 4: the rewards


@pytest.mark.parametrize("hard", [False, True])
def test_constrained_rewards_at_the_threshold(hard: bool) -> None:
    missed = torch.tensor([-0.5, 0.0, 1e-6, 0.5, 7.0])
    found = constrained(torch.full((5,), 0.8), missed, hard, 1.0).tolist()
    assert found == pytest.approx([0.8, 0.8, 0, 0, 0] if hard else [0.8, 0.8, 0.8 - 1e-6, 0.3, -0.2], abs=1e-7)


def test_what_rewards_are_made_of_lies_between_0_and_1(cells: SearchSpace) -> None:
    for scale in ("range", "rank"):
        searcher = make(problem_of(cells), scale=scale)
        archs = drive(searcher, 16)
        quality, costs = searcher.quality_and_costs()
        errors = torch.tensor([error(arch) for arch in archs])
        assert int(quality.argmax()) == int(errors.argmin())
        assert quality.argsort().tolist() == (-errors).argsort().tolist()
        low, high = float(quality.min()), float(quality.max())
        assert (low, high) == ((0, 1) if scale == "range" else (1 / 32, 31 / 32))
        latencies = searcher.problem.costs["latency_ms"].of(archs)
        assert costs[:, 0].argsort().tolist() == latencies.argsort().tolist()
        assert -0.2 <= float(costs.min()) < float(costs.max()) <= 1.2
        some = torch.tensor([0, 3])
        assert torch.equal(searcher.told_rewards(some, quality[some], costs[some]), searcher.weights[:, :1] * quality[some])
        known = searcher.free_rewards(searcher.archs[:10].view(5, 2, 6), searcher.known(searcher.archs[:10], searcher.free).view(5, 2, 1))
        assert torch.allclose(known, -(searcher.weights[:, 1:] * costs[:10, 0].view(5, 2)))


def test_costs_that_are_had_one_by_one_are_taken_from_what_is_told(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells, ERROR, Objective("peak_mb")), alphas=[0.5])
    drive(searcher, 8)
    quality, costs = searcher.quality_and_costs()
    assert torch.allclose(searcher.told_rewards(torch.arange(8), quality, costs)[0], 0.5 * quality - 0.5 * costs[:, 0])
    assert float(searcher.known(searcher.archs, searcher.free).abs().max()) <= 1
    assert not float(searcher.free_rewards(searcher.archs[None], torch.zeros(1, 8, 1)).abs().max())


# Fact 1: the two ends of alpha, and the exchange between


def test_the_best_networks_cost_falls_with_alpha(cells: SearchSpace) -> None:
    archs = [arch for arch in cells.all() if cells.graph(arch)][::37]
    latency = problem_of(cells).costs["latency_ms"].of(archs)
    cost = ((latency - latency.min()) / (latency.max() - latency.min())).float()[:, None]
    quality = 1 - torch.tensor([error(arch) for arch in archs])
    best = [int(scalarised(row.expand(len(archs), -1), quality, cost).argmax()) for row in scalarisations([0, 0.25, 0.5, 0.75, 1], True, 1)]
    chosen = cost[best, 0].tolist()
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert best[-1] == int(quality.argmax())


def test_alpha_0_finds_the_cheapest_network_whatever_its_error(cells: SearchSpace) -> None:
    problem = problem_of(cells)
    searcher = make(problem, alphas=[0.0], steps=10, lr=0.02, entropy=0.0, free=32)
    drive(searcher, 40)
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(arch) for arch in searcher.controller.sample(torch.zeros(64, dtype=torch.int64), generator).archs.tolist()]
    networks = [arch for arch in drawn if cells.graph(arch)]
    assert len(networks) > 50
    rng = np.random.default_rng(0)
    usual = problem.costs["latency_ms"].of([cells.random(rng) for _ in range(500)])
    assert float(problem.costs["latency_ms"].of(networks).median()) <= float(usual.quantile(0.02))


def test_alpha_1_follows_quality_alone(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells), alphas=[1.0])
    drive(searcher, 8)
    known = searcher.free_rewards(searcher.archs[None], torch.rand(1, 8, 1, generator=torch.Generator().manual_seed(0)))
    assert not float(known.abs().max())
    quality, costs = searcher.quality_and_costs()
    assert torch.equal(searcher.told_rewards(torch.arange(8), quality, costs)[0], quality)


# Fact 2: a constraint is learnt


@pytest.mark.slow
def test_a_cost_constraint_is_learnt_and_beats_random_search(cells: SearchSpace) -> None:
    problem = problem_of(cells)
    latency = problem.costs["latency_ms"]
    rng = np.random.default_rng(0)
    threshold = float(latency.of([cells.random(rng) for _ in range(500)]).quantile(0.25))
    best: dict[str, list[float]] = {"monas": [], "random": []}
    for seed in range(3):
        searcher = make(problem, seed, reward="cost_constraint", threshold=threshold, warm_up=16, steps=10, lr=0.02)
        asked = drive(searcher, 48)
        assert float((latency.of(asked) <= threshold).float().mean()) > 0.95  # what earns nothing is not worth an evaluation
        draws = searcher.controller.sample(torch.zeros(200, dtype=torch.int64), torch.Generator().manual_seed(0)).archs
        assert float((latency.of(draws) <= threshold).float().mean()) > 0.9
        rng = np.random.default_rng(seed)
        strangers = [cells.random(rng) for _ in range(48)]
        for name, archs in (("monas", asked), ("random", strangers)):
            best[name].append(min([error(arch) for arch in archs if float(latency.of([arch])[0]) <= threshold], default=1.0))
    assert np.mean(best["monas"]) <= np.mean(best["random"])


def test_an_accuracy_constraint_pays_for_cheap_networks_that_keep_it(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells), reward="accuracy_constraint", threshold=0.6, warm_up=0)
    archs = drive(searcher, 16)
    quality, costs = searcher.quality_and_costs()
    found = searcher.told_rewards(torch.arange(16), quality, costs)[0]
    assert torch.equal(found, torch.where(torch.tensor([error(arch) <= 0.6 for arch in archs]), 1 - costs[:, 0], 0.0))
    accuracy = make(problem_of(cells, Objective("accuracy", "max"), LATENCY), reward="accuracy_constraint", threshold=0.4, warm_up=99)
    archs = accuracy.ask(4)
    accuracy.tell([Trial(i, arch, {"accuracy": i / 5, "latency_ms": 1.0}) for i, arch in enumerate(archs)])
    quality, costs = accuracy.quality_and_costs()
    found = accuracy.told_rewards(torch.arange(4), quality, costs)[0]
    assert torch.allclose(found, 1 - costs[:, 0] - torch.tensor([1, 0.5, 0, 0]), atol=1e-6)


def test_a_single_objective_and_budgets(cells: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    limit = float(problem_of(cells).costs["latency_ms"].of([cells.random(rng) for _ in range(300)]).quantile(0.25))
    searcher = make(problem_of(cells, ERROR, budgets={"latency_ms": limit}), reward="single", steps=10, lr=0.02)
    drive(searcher, 32)
    assert searcher.log["feasible"] > 0.5


@pytest.mark.parametrize(
    ("objectives", "options", "said"),
    [
        ((LATENCY,), {"reward": "single"}, "'single' needs an objective that is measured; add error"),
        ((ERROR, LATENCY), {"reward": "cost_constraint"}, "'cost_constraint' needs a threshold"),
        ((ERROR,), {"reward": "cost_constraint", "metric": "energy", "threshold": 1.0}, "nothing gives the metric 'energy' to constrain"),
        ((ERROR,), {"reward": "accuracy_constraint", "threshold": 0.5}, "needs one measured objective and a cost"),
        ((ERROR, LATENCY), {"reward": "accuracy_constraint"}, "'accuracy_constraint' needs a threshold"),
        ((ERROR, LATENCY), {"alphas": [1.5]}, "less than or equal to 1"),
        ((ERROR, LATENCY), {"alphas": []}, "alphas"),
        ((ERROR, LATENCY), {"reward": "mixd"}, "reward"),
    ],
)
def test_rewards_that_cannot_be_had_are_refused(
    cells: SearchSpace, objectives: tuple[Objective, ...], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make(problem_of(cells, *objectives), **options)


def test_only_costs_are_searched_too(cells: SearchSpace) -> None:
    searcher = make(problem_of(cells, LATENCY, Objective("peak_mb")))
    assert searcher.weights[:, 0].tolist() == [0, 0, 0]
    assert len(drive(searcher, 16)) == 16
