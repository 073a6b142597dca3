"""NAO on a tabulated toy: what its specification says must hold of encoder, predictor, decoder and step."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwnas import pareto, plugins
from hwnas.cost import Cost, CostModel
from hwnas.evaluate import Objective, Trial
from hwnas.op import OpSpec
from hwnas.searcher import Problem
from hwnas.searchers.nao import NAO
from hwnas.space import Architecture, SearchSpace, Site, Slot, load_space

OBJECTIVES = (Objective("error"), Objective("latency_ms"))
SLOTS, CHOICES = 5, 4
WORTH = np.random.default_rng(3).random((SLOTS, CHOICES))
"""What a choice adds to the quality of a chain."""


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """A chain of five convolutions of four kernels: 1024 networks."""
    sites = [Site(OpSpec("conv_bn", 1, 4, 8, 8), ("input",), "n0")]
    for i in range(SLOTS):
        for choice in range(CHOICES):
            sites.append(
                Site(OpSpec("conv_bn", 4, 4, 8, 8, kernel=2 * choice + 1, dilation=i + 1), (f"n{i}",), f"n{i + 1}", ((i, choice),))
            )
    sites.append(Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), (f"n{SLOTS}",), "output"))
    named = tuple(Slot(f"conv{i}", tuple(f"k{2 * choice + 1}" for choice in range(CHOICES))) for i in range(SLOTS))
    return SearchSpace((1, 8, 8), 2, named, tuple(sites), name="chain")


def problem(space: SearchSpace) -> Problem:
    costs: dict[str, Cost] = {"latency_ms": CostModel(space, lambda op: 0.1 + float(op.kernel), metric="latency_ms")}
    return Problem(space, OBJECTIVES, costs)


def errors(archs: list[Architecture]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 - WORTH[np.arange(SLOTS), np.array(archs)].sum(1) / SLOTS
    return found


def evaluate(task: Problem, archs: list[Architecture], values: NDArray[np.float64] | None = None) -> list[Trial]:
    costs = task.known(archs)["latency_ms"]
    values = errors(archs) if values is None else values
    return [
        Trial(i, arch, {"error": float(error), "latency_ms": float(cost)})
        for i, (arch, error, cost) in enumerate(zip(archs, values, costs, strict=True))
    ]


def make(task: Problem, seed: int = 0, **options: Any) -> NAO:
    searcher: NAO = plugins.build("searchers", "nao", options, task, np.random.default_rng(seed))
    return searcher


def drawn(space: SearchSpace, number: int, seed: int) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return list({space.random(rng): None for _ in range(2 * number)})[:number]


@pytest.fixture(scope="module")
def fitted(space: SearchSpace) -> NAO:
    """Fitted on a hundred evaluated networks."""
    searcher = make(problem(space), steps=120, batch_size=64)
    searcher.tell(evaluate(searcher.problem, drawn(space, 100, 1)))
    searcher._train()
    return searcher


def outputs(searcher: NAO, archs: list[Architecture]) -> torch.Tensor:
    with torch.no_grad():
        return searcher._model.encode(searcher._vocabulary.read(archs))


def predicted(searcher: NAO, archs: list[Architecture]) -> NDArray[np.float64]:
    with torch.no_grad():
        return searcher._model.predict(outputs(searcher, archs)).numpy()


def pairwise_accuracy(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The share of pairs that both order alike."""
    return float(np.mean([(a[i] < a[j]) == (b[i] < b[j]) for i, j in combinations(range(len(a)), 2)]))


def test_the_decoder_writes_what_was_encoded(fitted: NAO) -> None:
    with torch.no_grad():
        tokens = fitted._model.greedy(outputs(fitted, fitted._archs))
    assert fitted._vocabulary.write(tokens) == fitted._archs


def test_the_predictor_orders_what_it_has_not_seen(fitted: NAO, space: SearchSpace) -> None:
    held_out = [arch for arch in drawn(space, 150, 2) if arch not in fitted._archs]
    values = predicted(fitted, held_out)
    assert pairwise_accuracy(values[:, 0], errors(held_out)) > 0.7
    assert pairwise_accuracy(values[:, 1], fitted.problem.known(held_out)["latency_ms"]) > 0.8  # of 1024 it knows the costs


def test_of_shuffled_targets_it_learns_nothing(space: SearchSpace) -> None:
    searcher = make(problem(space), steps=60, batch_size=64)
    archs = drawn(space, 100, 1)
    searcher.tell(evaluate(searcher.problem, archs, np.random.default_rng(4).permutation(errors(archs))))
    searcher._train()
    held_out = [arch for arch in drawn(space, 150, 2) if arch not in archs]
    assert abs(pairwise_accuracy(predicted(searcher, held_out)[:, 0], errors(held_out)) - 0.5) < 0.15


def test_a_small_step_lowers_the_prediction(fitted: NAO) -> None:
    start = outputs(fitted, fitted._archs)
    for weights in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])):
        with torch.no_grad():
            before = fitted._model.predict(start) @ weights
        better = fitted._model.improved(start, weights.expand(len(start), -1), 0.1)
        with torch.no_grad():
            assert bool((fitted._model.predict(better) @ weights <= before + 1e-6).all())


def decoded(searcher: NAO, seeds: list[Architecture], eta: float, weights: tuple[float, float]) -> list[Architecture]:
    start = outputs(searcher, seeds)
    better = searcher._model.improved(start, torch.tensor(weights).expand(len(seeds), -1), eta)
    with torch.no_grad():
        return searcher._vocabulary.write(searcher._model.greedy(better))


def test_longer_steps_lead_to_more_new_networks_and_none_to_none(fitted: NAO) -> None:
    seeds = fitted._archs[:50]
    changed = [np.mean([a != b for a, b in zip(decoded(fitted, seeds, eta, (1.0, 0.0)), seeds, strict=True)]) for eta in (0, 3, 30)]
    assert changed[0] == 0
    assert changed[0] <= changed[1] < changed[2]


def test_what_is_decoded_is_better_than_where_it_began(fitted: NAO) -> None:
    seeds = fitted._archs[:50]
    pairs = [(a, b) for a, b in zip(seeds, decoded(fitted, seeds, 20, (1.0, 0.0)), strict=True) if a != b]
    assert errors([b for _, b in pairs]).mean() < errors([a for a, _ in pairs]).mean() - 0.02


def test_weight_of_the_costs_lowers_them(fitted: NAO) -> None:
    seeds = fitted._archs[:50]
    costs = [fitted.problem.known(decoded(fitted, seeds, 20, (1.0, weight)))["latency_ms"].mean() for weight in (0.0, 1.0, 4.0)]
    assert costs[0] > costs[1] > costs[2]


def test_a_round_asks_what_it_decodes_and_the_hard_cap_ends_it(space: SearchSpace) -> None:
    searcher = make(problem(space), steps=20, new=10, seeds=10, initial=20, eta_max=3, batch_size=32)
    asked: list[Architecture] = []
    for _ in range(4):
        archs = searcher.ask(10)
        searcher.tell(evaluate(searcher.problem, archs))
        asked += archs
    assert len(set(asked)) == 40
    assert 1 <= searcher.log["eta"] <= 3
    assert 0 <= searcher.log["found"] <= 10


def test_the_pool_keeps_the_best_by_rank(space: SearchSpace) -> None:
    searcher = make(problem(space), pool=12)
    archs = drawn(space, 40, 1)
    trials = evaluate(searcher.problem, archs)
    for first in range(0, 40, 8):
        searcher.tell(trials[first : first + 8])
    values = np.array([trial.vector(OBJECTIVES) for trial in trials])
    front = {archs[i] for i in np.flatnonzero(pareto.nondominated(values))}
    assert len(searcher._archs) == 12
    assert front <= set(searcher._archs)


@pytest.mark.slow
def test_augmentation_brings_the_predictions_of_twins_together(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("nasbench201", {"width": 4, "cells": 1})
    rng = np.random.default_rng(0)
    archs = [arch for arch in (space.random(rng) for _ in range(600)) if space.twins(arch)][:80]
    twins = [space.twins(arch)[0] for arch in archs]
    spreads = []
    for swaps in (space.swaps, ()):
        monkeypatch.setattr(type(space), "swaps", property(lambda _, swaps=swaps: swaps))  # type: ignore[misc]
        of_seed = []
        for seed in range(2):
            costs: dict[str, Cost] = {"latency_ms": CostModel(space, lambda op: 0.1 + float(op.kernel), metric="latency_ms")}
            searcher = make(Problem(space, OBJECTIVES, costs), seed, steps=150, batch_size=64)
            worth = np.random.default_rng(3).random(5)
            values = np.array([1 - worth[list(arch)].sum() / 6 for arch in archs[:60]])
            searcher.tell(evaluate(searcher.problem, archs[:60], values))
            searcher._train()
            apart = np.abs(predicted(searcher, archs[60:])[:, 0] - predicted(searcher, twins[60:])[:, 0])
            of_seed.append(apart.mean())
        spreads.append(np.mean(of_seed))
    assert spreads[0] < spreads[1]


@pytest.mark.slow
def test_it_beats_random_search(space: SearchSpace) -> None:
    task = problem(space)
    truth = np.array([trial.vector(OBJECTIVES) for trial in evaluate(task, list(space.all()))])
    reference = pareto.reference_point(truth)
    gains = []
    for seed in range(3):
        volumes = {}
        for name, options in (("nao", {"initial": 32, "new": 12}), ("random", {})):
            searcher = plugins.build("searchers", name, options, task, np.random.default_rng(seed))
            trials: list[Trial] = []
            while len(trials) < 120:
                told = evaluate(task, searcher.ask(12))
                searcher.tell(told)
                trials += told
            volumes[name] = pareto.hypervolume(np.array([trial.vector(OBJECTIVES) for trial in trials]), reference)
        gains.append(volumes["nao"] - volumes["random"])
    assert min(gains) > 0
