"""Random search: everything that is feasible comes, once, and nothing hangs."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hwnas import plugins, resources
from hwnas.cost import CostModel
from hwnas.evaluate import Objective
from hwnas.searcher import Problem, Searcher
from hwnas.space import SearchSpace, load_space

OBJECTIVES = (Objective("error"), Objective("macs"))


def random_search(space: SearchSpace, budget: float | None = None, seed: int = 0) -> Searcher:
    macs = CostModel(space, resources.macs, metric="macs")
    problem = Problem(space, OBJECTIVES, {"macs": macs}, {} if budget is None else {"macs": budget})
    searcher: Searcher = plugins.build("searchers", "random", {}, problem, np.random.default_rng(seed))
    return searcher


def test_every_network_comes_once_and_then_nothing(diamond: SearchSpace) -> None:
    searcher = random_search(diamond)
    asked = searcher.ask(2) + searcher.ask(2)
    assert {diamond.identity(arch) for arch in asked} == {diamond.identity(arch) for arch in diamond.all()}
    assert len(asked) == 3
    assert searcher.ask(1) == []


def test_the_last_feasible_networks_are_found_and_no_other(rng: np.random.Generator) -> None:
    space = load_space("nasbench201", {"input_size": 16, "width": 4, "cells": 1})
    valid = [arch for arch in space.all() if space.graph(arch)]
    costs = CostModel(space, resources.macs).of(valid).numpy()
    budget = float(np.quantile(costs, 0.01))
    feasible = {space.identity(arch) for arch, cost in zip(valid, costs, strict=True) if cost <= budget}
    searcher = random_search(space, budget)
    asked = [arch for _ in range(4) for arch in searcher.ask(len(feasible) // 3 or 1)]
    assert {space.identity(arch) for arch in asked} == feasible
    assert len(asked) == len(feasible)


def test_draws_are_as_good_as_uniform_where_there_is_no_budget() -> None:
    space = load_space("mobilenet_v2")
    archs = np.array(random_search(space).ask(300))
    for slot, n in enumerate(space.num_choices):
        shares = np.bincount(archs[:, slot], minlength=n) / len(archs)
        assert np.abs(shares - 1 / n).max() < 4 * (1 / n * (1 - 1 / n) / len(archs)) ** 0.5


@pytest.mark.parametrize("slack", [1.0, 1.05])
def test_a_budget_that_hardly_anything_keeps_does_not_hang(slack: float) -> None:
    """One network of a space that cannot be enumerated keeps it, or a few."""
    space = load_space("mobilenet_v2")
    least = float(CostModel(space, resources.macs).of([CostModel(space, resources.macs).cheapest()])[0])
    searcher = random_search(space, slack * least)
    began = time.monotonic()
    asked = searcher.ask(8)
    assert time.monotonic() - began < 60
    assert len(asked) >= 1
    assert float(CostModel(space, resources.macs).of(asked).max()) <= slack * least
