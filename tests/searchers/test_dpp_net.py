"""DPP-Net on tabulated cells: what its specification says must hold, and the true front of the 324 cells."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hwnas import pareto, plugins
from hwnas.cost import CostModel
from hwnas.evaluate import Objective, Trial
from hwnas.op import OpSpec
from hwnas.searcher import Problem
from hwnas.searchers.dpp_net import DPPNet
from hwnas.space import Architecture, SearchSpace, Site, Slot, load_space
from hwnas.spaces.dense_cell import END, DenseCell
from hwnas.surrogates import SequenceRegressor, Vocabulary, fit, own_randomness, scaled

OBJECTIVES = (Objective("error"), Objective("latency_ms"))
WORTH = {"bn_relu": 0.9, "bn": 0.45, "identity": 0.0, "1x1": 0.3, "3x3": 1.0, "1x1_group": 0.15, "3x3_group": 0.7,
         "1x1_learned_group": 0.25, "3x3_depthwise": 0.6}  # fmt: skip
SPEED = {"1x1": 1.0, "3x3": 4.0, "1x1_group": 0.6, "3x3_group": 2.0, "1x1_learned_group": 0.8, "3x3_depthwise": 1.3}


@pytest.fixture(scope="module")
def cells() -> SearchSpace:
    return load_space("dense_cell", DenseCell.small)


def labels(space: SearchSpace, arch: Architecture) -> list[str]:
    """The layers of a cell."""
    named = [slot.choices[choice] for slot, choice in zip(space.slots, arch, strict=True)]
    return named[: named.index(END)] if END in named else named


def error(space: SearchSpace, arch: Architecture) -> float:
    """Layers help, the second convolution less than the first, and a ReLU before a 3x3 convolution more."""
    named = labels(space, arch)
    quality = sum(WORTH[label] * 0.8 ** (i // 2) for i, label in enumerate(named))
    quality += sum(0.3 for a, b in pairwise(named) if a == "bn_relu" and b.startswith("3x3"))
    return 1 - quality / 5


def problem(space: SearchSpace, speed: dict[str, float] = SPEED) -> Problem:
    """Latencies that are made up by kind of layer."""
    names = {("conv", 1, 1): "1x1", ("conv", 3, 1): "3x3", ("conv", 1, 4): "1x1_group", ("conv", 3, 4): "3x3_group",
             ("learned_group_conv", 1, 4): "1x1_learned_group", ("depthwise_pointwise", 3, 1): "3x3_depthwise"}  # fmt: skip

    def price(op: OpSpec) -> float:
        name = names.get((op.kind, op.kernel, op.groups))
        return 0.1 if name is None else speed[name] * op.c_out**0.5

    return Problem(space, OBJECTIVES, {"latency_ms": CostModel(space, price, metric="latency_ms")})


def evaluate(task: Problem, archs: list[Architecture], first: int = 0) -> list[Trial]:
    costs = task.known(archs)["latency_ms"]
    return [
        Trial(first + i, arch, {"error": error(task.space, arch), "latency_ms": float(cost)})
        for i, (arch, cost) in enumerate(zip(archs, costs, strict=True))
    ]


def make(task: Problem, seed: int = 0, **options: Any) -> DPPNet:
    searcher: DPPNet = plugins.build("searchers", "dpp_net", options, task, np.random.default_rng(seed))
    return searcher


def search(task: Problem, evaluations: int, seed: int = 0, batch: int = 7, **options: Any) -> list[Trial]:
    searcher = make(task, seed, **options)
    trials: list[Trial] = []
    while len(trials) < evaluations:
        told = evaluate(task, searcher.ask(min(batch, evaluations - len(trials))), len(trials))
        searcher.tell(told)
        trials += told
    return trials


def of_length(space: SearchSpace, trials: list[Trial], length: int) -> list[Trial]:
    return [trial for trial in trials if len(labels(space, trial.arch)) == length]


def vectors(trials: list[Trial]) -> NDArray[np.float64]:
    return np.array([trial.vector(OBJECTIVES) for trial in trials])


def whole(task: Problem, length: int) -> list[Trial]:
    """Every cell of that length, evaluated."""
    prefixes: list[Architecture] = [()]
    for _ in range(length):
        prefixes = [extension for prefix in prefixes for extension in task.space.extensions(prefix)]
    return evaluate(task, [task.space.completed(prefix) for prefix in prefixes])


def test_rounds_grow_cells_by_a_layer_in_parts_of_any_size(cells: SearchSpace) -> None:
    asked: dict[int, list[Architecture]] = {}
    searcher = make(problem(cells), keep=5, steps=2)
    while sum(map(len, asked.values())) < 18 + 5 + 5:
        archs = searcher.ask(4)
        lengths = {len(labels(cells, arch)) for arch in archs}
        assert len(lengths) == 1  # what is asked at a time is of one round
        asked.setdefault(lengths.pop(), []).extend(archs)
        searcher.tell(evaluate(searcher.problem, archs))
    assert {length: len(archs) for length, archs in asked.items()} == {2: 18, 3: 5, 4: 5}
    for shorter, longer in ((2, 3), (3, 4)):
        parents = {tuple(labels(cells, arch)) for arch in asked[shorter]}
        assert all(tuple(labels(cells, arch)[:shorter]) in parents for arch in asked[longer])


def chain(slots: int = 5, choices: int = 4) -> tuple[SearchSpace, NDArray[np.float64], NDArray[np.float64]]:
    """A chain of convolutions with additive worth (slot, choice) and additive price."""
    rng = np.random.default_rng(5)
    worth, price = rng.random((slots, choices)), 0.1 + rng.random((slots, choices))
    sites = [Site(OpSpec("conv_bn", 1, 4, 8, 8), ("input",), "n0")]
    for i in range(slots):
        for choice in range(choices):
            sites.append(
                Site(OpSpec("conv_bn", 4, 4, 8, 8, kernel=2 * choice + 1, dilation=i + 1), (f"n{i}",), f"n{i + 1}", ((i, choice),))
            )
    sites.append(Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), (f"n{slots}",), "output"))
    named = tuple(Slot(f"conv{i}", tuple(f"k{2 * choice + 1}" for choice in range(choices))) for i in range(slots))
    return SearchSpace((1, 8, 8), 2, named, tuple(sites), name="chain"), worth, price


def test_a_perfect_surrogate_finds_the_true_front_of_an_additive_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    space, worth, price = chain()
    every = np.array(list(space.all()))
    slots = np.arange(5)

    def true_error(archs: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = 1 - worth[slots, archs].sum(1) / 5
        return found

    costs = CostModel(
        space, lambda op: price[op.dilation - 1, (op.kernel - 1) // 2] if op.c_in == 4 == op.c_out else 0.0, metric="latency_ms"
    )
    task = Problem(space, OBJECTIVES, {"latency_ms": costs})
    values = np.stack([true_error(every), costs.of(list(space.all())).numpy()], 1)
    front = {tuple(arch) for arch in every[pareto.nondominated(values)].tolist()}
    monkeypatch.setattr(DPPNet, "_predicted", lambda self, archs, surrogates: true_error(np.array(archs))[:, None])

    def found(keep: int) -> set[Architecture]:
        searcher = make(task, keep=keep, steps=1, margin=0.0)
        asked: set[Architecture] = set()
        while not searcher._prefixes or len(searcher._prefixes[0]) < 5 or not set(searcher._queue) <= asked:
            archs = searcher.ask(11)
            searcher.tell(
                [Trial(0, a, {"error": float(true_error(np.array([a]))[0]), "latency_ms": float(costs.of([a])[0])}) for a in archs]
            )
            asked |= set(archs)
        return asked

    assert front <= found(len(front))
    assert not front <= found(3)


def rank_correlation(task: Problem, length: int, seed: int) -> float:
    """Spearman of the surrogate, fitted on cells of up to `length` layers, with the truth on those of one more."""
    seen = [trial for number in range(2, length + 1) for trial in whole(task, number)]
    wanted = whole(task, length + 1)
    searcher = make(task, seed, steps=60)
    searcher.tell(seen)
    predicted = searcher._predicted([trial.arch for trial in wanted], searcher._trained())
    return float(spearmanr(predicted[:, 0], [trial.values["error"] for trial in wanted]).statistic)


def test_the_surrogate_ranks_longer_cells_than_it_has_seen_and_ever_better(cells: SearchSpace) -> None:
    task = problem(cells)
    after_two, after_three = (np.mean([rank_correlation(task, length, seed) for seed in range(3)]) for length in (2, 3))
    assert 0 < after_two < after_three


def test_what_is_chosen_beats_a_random_choice(cells: SearchSpace) -> None:
    task = problem(cells)
    reference = pareto.reference_point(vectors(whole(task, 3)))
    searcher = make(task, keep=8, steps=60)
    searcher.tell(whole(task, 2))
    prefixes = [extension for trial in whole(task, 2) for extension in cells.extensions(trial.arch[:2])]
    archs = [cells.completed(prefix) for prefix in searcher._chosen(prefixes, 8, searcher._trained())]
    chosen = pareto.hypervolume(vectors(evaluate(task, archs)), reference)
    rng = np.random.default_rng(0)
    draws = [[whole(task, 3)[i] for i in rng.permutation(54)[:8]] for _ in range(10)]
    assert chosen > np.mean([pareto.hypervolume(vectors(draw), reference) for draw in draws])


def test_the_front_depends_on_the_device(cells: SearchSpace) -> None:
    slow_groups = {**SPEED, "1x1_group": 3.0, "3x3_group": 6.0, "1x1_learned_group": 3.0, "3x3_depthwise": 8.0}
    fronts = []
    for speed in (SPEED, slow_groups):
        trials = search(problem(cells, speed), 60, keep=12, steps=20)
        full = of_length(cells, trials, 4)
        fronts.append({tuple(labels(cells, full[i].arch)) for i in np.flatnonzero(pareto.nondominated(vectors(full)))})
    grouped = [sum("group" in label or "depthwise" in label for cell in front for label in cell) / len(front) for front in fronts]
    assert grouped[0] > grouped[1]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_true_front_of_the_324_cells(cells: SearchSpace, seed: int) -> None:
    """At least 95 % of its hypervolume after evaluating no more than 40 % as many cells, the shorter ones included."""
    task = problem(cells)
    truth = vectors(whole(task, 4))
    reference = pareto.reference_point(truth)
    trials = search(task, 129, seed, steps=40)
    volumes = pareto.hypervolume_history(vectors(of_length(cells, trials, 4)), reference)
    assert (np.diff(volumes) >= 0).all()
    assert volumes[-1] >= 0.95 * pareto.hypervolume(truth, reference)


def test_a_margin_makes_near_equals_equal(cells: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    task = problem(cells)
    archs = [cells.completed(prefix) for prefix in ((2, 2), (2, 0), (2, 1))]  # dearer and dearer
    assert sorted(task.known(archs)["latency_ms"]) == list(task.known(archs)["latency_ms"])
    monkeypatch.setattr(DPPNet, "_predicted", lambda self, archs, surrogates: np.array([[0.509], [0.502], [0.2]]))
    assert pareto.nondominated(make(task, margin=0.0)._expected(archs, [])).tolist() == [True, True, True]
    assert pareto.nondominated(make(task, margin=0.02)._expected(archs, [])).tolist() == [True, False, True]


def test_costs_alone_need_no_surrogate(cells: SearchSpace) -> None:
    task = problem(cells)
    task.objectives = (Objective("latency_ms"),)
    trials = search(task, 40, keep=4)
    cheapest = float(task.costs["latency_ms"].of([task.costs["latency_ms"].cheapest()])[0])
    assert min(trial.values["latency_ms"] for trial in trials) == cheapest


def test_members_are_averaged(cells: SearchSpace) -> None:
    task = problem(cells)
    searcher = make(task, members=3, steps=3)
    searcher.tell(whole(task, 2))
    surrogates = searcher._trained()
    archs = [trial.arch for trial in whole(task, 3)]
    each = [searcher._predicted(archs, [surrogate]) for surrogate in surrogates]
    assert len(each) == 3 and not np.allclose(each[0], each[1])
    np.testing.assert_allclose(searcher._predicted(archs, surrogates), np.mean(each, 0), rtol=1e-6)


def test_the_surrogate_learns_what_it_is_told(cells: SearchSpace) -> None:
    told = whole(problem(cells), 3)
    vocabulary = Vocabulary(cells)
    tokens, lengths = vocabulary.read([trial.arch for trial in told]), torch.full((54,), 3)
    targets = scaled(torch.tensor([[trial.values["error"]] for trial in told], dtype=torch.float64))
    with own_randomness(0):
        model = SequenceRegressor(vocabulary.size, 1)
        loss: Callable[[], torch.Tensor] = lambda: torch.nn.functional.mse_loss(model(tokens, lengths), targets)  # noqa: E731
        before = float(loss().detach())
        assert fit(model, loss, 80, 1e-2) < 0.1 * before
