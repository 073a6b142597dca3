"""Laws 6 and 7 of the design, over every file of `hwnas/searchers`: a new searcher is tested before anyone writes a test for it.

Each is run with the options of its `small`, on the small version of every space that it does not refuse, with a supernet
on made-up images at hand; of the pairs `make test` takes a searcher's own space and one more, `make slow` all.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.mark.structures import ParameterSet

from hwnas import plugins, resources
from hwnas.checkpoint import load_state, save_state
from hwnas.cost import Cost, CostModel, PeakMemory, Uncertainty
from hwnas.data import Augmentation, Dataset, Part, Text, Windows
from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, SharedWeights, Trial
from hwnas.op import OpSpec
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.train import TrainSettings

OBJECTIVES = (Objective("error"), Objective("latency_ms"))
ROUNDS = (3, 1, 4, 2, 5)
"""How many architectures are asked for, time after time."""


def made_up_data(space: SearchSpace) -> Dataset:
    """Images whose brightness tells their class, or tokens that count up, the same in all parts."""
    generator = torch.Generator().manual_seed(0)
    if space.reads == "tokens":
        steps = space.input_shape[1]
        stream = torch.arange(2 * space.classes * steps + 1) % space.classes
        windows = Windows(stream[:-1].to(torch.int32).view(-1, 1, steps, 1), stream[1:].view(-1, steps))
        return Text("made up", windows, windows, windows, tuple(map(str, range(space.classes))))
    labels = torch.arange(2 * space.classes) % space.classes
    noise = torch.randint(0, 50, (len(labels), *space.input_shape), generator=generator)
    part = Part((noise + labels.view(-1, 1, 1, 1) * (200 // space.classes)).to(torch.uint8), labels)
    return Dataset("made up", part, part, part, tuple(map(str, range(space.classes))), Augmentation(shift=1))


def make_problem(space: SearchSpace, *, share: float = 1.0, seed: int = 0, objectives: tuple[Objective, ...] = OBJECTIVES) -> Problem:
    """A problem whose latency budget only that share of random architectures keeps; by their upper bounds, which differ from the costs."""
    operators = len(space.operators())
    uncertainty = Uncertainty(np.diag(np.full(operators + 1, 1e-6)), noise=0.05)
    apart = 2e-4 if space.reads == "tokens" else 0.0  # all steps of a recurrent cell have as many multiply-adds: told apart by kind

    def price(op: OpSpec) -> float:
        return 1e-3 + 1e-6 * resources.macs(op) + apart * sum(map(ord, op.kind))

    latency = CostModel(space, price, metric="latency_ms", offset=0.01, uncertainty=uncertainty)
    costs: dict[str, Cost] = {"latency_ms": latency, "peak_mb": PeakMemory(space)}
    budgets: dict[str, float] = {}
    if share < 1:
        rng = np.random.default_rng(1)
        bounds = latency.upper([space.random(rng) for _ in range(200)]).numpy()
        budgets = {"latency_ms": float(np.quantile(bounds, share))}
    shared = SharedWeights(space, made_up_data(space), TrainSettings(epochs=1, batch_size=8), seed)
    return Problem(space, objectives, costs, budgets, shared=shared)


def make(name: str, problem: Problem, seed: int = 0) -> Searcher:
    kind: type[Searcher] = plugins.load("searchers", name)
    try:
        searcher: Searcher = plugins.build("searchers", name, kind.small, problem, np.random.default_rng(seed))
    except ConfigError as refused:
        if problem.space.name == kind.home:
            raise
        pytest.skip(str(refused))
    return searcher


def trials(problem: Problem, archs: list[Architecture], first: int, *, broken: bool = False) -> list[Trial]:
    """What a made-up evaluator says of them; of every third, or of all `broken` ones, that their error is no number."""
    told = []
    for index, arch in enumerate(archs, first):
        error = math.nan if broken or index % 3 == 2 else 0.5 + 0.5 * math.sin(sum((slot + 2) * choice for slot, choice in enumerate(arch)))
        costs = {metric: float(values[0]) for metric, values in problem.known([arch]).items()}
        told.append(Trial(index, arch, {"error": error, "accuracy": 1 - error, "loss": 2 * error, **costs}))
    return told


def drive(searcher: Searcher, rounds: tuple[int, ...] = ROUNDS, first: int = 0) -> list[list[Architecture]]:
    """Asks and tells, as the loop does; gives what was asked."""
    asked = []
    for n in rounds:
        archs = searcher.ask(n)
        searcher.tell(trials(searcher.problem, archs, first))
        first += len(archs)
        asked.append(archs)
    return asked


def there(kind: str, name: str) -> str:
    """That plug-in's name, where what it needs is installed."""
    missing = {line.name: line.missing for line in plugins.listing(kind)}[name]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    return name


@pytest.fixture(params=plugins.names("searchers"))
def name(request: pytest.FixtureRequest) -> str:
    """Every searcher there is, one after the other."""
    return there("searchers", request.param)


def every_pair() -> Iterator[ParameterSet]:
    """Searchers with spaces; slow, but for the searcher's own space and another one that moves on from searcher to searcher."""
    spaces = plugins.names("spaces")
    homes = {line.name: plugins.load("searchers", line.name).home for line in plugins.listing("searchers") if not line.missing}
    for number, searcher in enumerate(plugins.names("searchers")):
        quick = {homes.get(searcher, spaces[0]), spaces[number % len(spaces)]}
        for space in spaces:
            yield pytest.param((searcher, space), id=f"{searcher}-{space}", marks=[] if space in quick else pytest.mark.slow)


@cache
def small(name: str) -> SearchSpace:
    return load_space(name, plugins.load("spaces", name).small)


@pytest.fixture(params=every_pair())
def pair(request: pytest.FixtureRequest) -> tuple[str, SearchSpace]:
    """A searcher and the small version of a space, pair after pair."""
    searcher, space = request.param
    return there("searchers", searcher), small(there("spaces", space))


def test_asks_valid_architectures_at_most_n_each_network_once(pair: tuple[str, SearchSpace]) -> None:
    name, space = pair
    rounds = drive(make(name, make_problem(space)))
    assert all(len(archs) <= n for archs, n in zip(rounds, ROUNDS, strict=True))
    archs = [arch for asked in rounds for arch in asked]
    assert len(archs) >= len(ROUNDS)
    assert all(space.is_valid(arch) for arch in archs)
    assert len({space.identity(arch) for arch in archs}) == len(archs)


def test_the_same_seed_asks_the_same_and_another_seed_does_not(pair: tuple[str, SearchSpace]) -> None:
    name, space = pair
    once, again = (drive(make(name, make_problem(space), 0)) for _ in range(2))
    assert once == again
    assert any(drive(make(name, make_problem(space), seed)) != once for seed in (1, 2, 3, 4))


def test_randomness_comes_from_the_given_generator_only(pair: tuple[str, SearchSpace]) -> None:
    name, space = pair

    def untouched() -> tuple[list[int], list[int]]:
        return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index] # noqa: NPY002

    problem = make_problem(space)  # building modules draws weights from torch's generator, before ours replace them
    before = untouched()
    asked = drive(make(name, problem), (4, 4))
    assert untouched() == before  # of Python's own generator nothing can be said: beartype draws from it
    random.seed(123)
    np.random.seed(123)  # noqa: NPY002
    torch.manual_seed(123)
    assert drive(make(name, make_problem(space)), (4, 4)) == asked


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_keeps_the_budgets(pair: tuple[str, SearchSpace], share: float) -> None:
    name, space = pair
    problem = make_problem(space, share=share)
    archs = [arch for asked in drive(make(name, problem)) for arch in asked]
    assert archs
    limit = problem.budgets["latency_ms"]
    assert float(problem.costs["latency_ms"].upper(archs, problem.confidence).max()) <= limit


@pytest.mark.parametrize("between", [False, True], ids=["after a tell", "between ask and tell"])
def test_restored_into_a_fresh_instance_it_asks_what_it_would_have_asked(
    pair: tuple[str, SearchSpace], between: bool, tmp_path: Path
) -> None:
    name, space = pair
    searcher = make(name, make_problem(space, share=0.7), seed=3)
    drive(searcher, ROUNDS[:3])
    waiting = searcher.ask(2) if between else []
    log = dict(searcher.log)
    save_state(tmp_path / "searcher", *searcher.state())
    fresh = make(name, make_problem(space, share=0.7, seed=99), seed=98)
    fresh.restore(load_state(tmp_path / "searcher"))
    assert fresh.log == log
    went_on = []
    for one in (searcher, fresh):
        one.tell(trials(one.problem, waiting, 100))
        went_on.append(drive(one, (3, 2, 4, 5, 5, 5), first=200))
    assert went_on[0] == went_on[1]
    assert any(went_on[0])


def test_survives_numbers_that_are_none_and_an_empty_tell(pair: tuple[str, SearchSpace]) -> None:
    name, space = pair
    problem = make_problem(space)
    searcher = make(name, problem)
    searcher.tell([])
    asked: list[Architecture] = []
    for _ in range(3):
        archs = searcher.ask(4)
        searcher.tell(trials(problem, archs, len(asked), broken=True))
        searcher.tell([])
        asked += archs
    assert len({space.identity(arch) for arch in asked}) == len(asked) >= 4
    drive(searcher, (4,))


@pytest.mark.parametrize("budget", [False, True], ids=["whole", "within a budget"])
def test_comes_to_an_end_without_a_repetition(name: str, diamond: SearchSpace, budget: bool) -> None:
    """On a space of three networks every searcher soon has nothing more to ask, and says so time after time."""
    problem = make_problem(diamond, share=0.75 if budget else 1.0)
    searcher = make(name, problem)
    asked: list[Architecture] = []
    for _ in range(20):
        archs = searcher.ask(2)
        searcher.tell(trials(problem, archs, len(asked)))
        asked += archs
    networks = {diamond.alive(arch) for arch in diamond.all() if bool(problem.feasible([arch])[0])}
    assert len(networks) == (2 if budget else 3)
    assert {diamond.alive(arch) for arch in asked} <= networks
    assert 0 < len(asked) <= len(networks)
    assert searcher.ask(3) == []


def test_what_others_asked_is_not_asked_again(name: str, diamond: SearchSpace) -> None:
    problem = make_problem(diamond)
    searcher = make(name, problem)
    searcher.tell(trials(problem, [(0, 0), (1, 1), (2, 1)], 0))
    asked = [arch for _ in range(10) for arch in searcher.ask(2)]
    assert not {diamond.alive(arch) for arch in asked} & {diamond.alive(arch) for arch in [(0, 0), (1, 1), (2, 1)]}


def test_more_objectives_than_two(pair: tuple[str, SearchSpace]) -> None:
    name, space = pair
    objectives = (Objective("accuracy", "max"), Objective("latency_ms"), Objective("peak_mb"))
    assert sum(map(len, drive(make(name, make_problem(space, objectives=objectives))))) >= len(ROUNDS)


def test_a_misspelt_option_and_too_few_to_ask_are_errors(name: str, diamond: SearchSpace) -> None:
    problem = make_problem(diamond)
    with pytest.raises(ConfigError, match="has no option 'populaton'"):
        plugins.build("searchers", name, {"populaton": 3}, problem, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="at least 1 architecture, but got 0"):
        make(name, problem).ask(0)


def test_a_searcher_that_trains_needs_something_to_train(name: str, diamond: SearchSpace) -> None:
    problem = make_problem(diamond)
    problem.shared = None
    if plugins.load("searchers", name).needs_shared_weights:
        with pytest.raises(ConfigError, match="needs data"):
            plugins.build("searchers", name, plugins.load("searchers", name).small, problem, np.random.default_rng(0))
    else:
        assert make(name, problem).ask(1)


BAD = '''"""A searcher that asks the same every time."""

from hwnas.searcher import Searcher


class Stubborn(Searcher):
    def propose(self, n):
        return [(0,) * len(self.problem.space.slots)]
'''


def test_a_new_file_is_tested_and_these_tests_can_fail(tmp_path: Path) -> None:
    root = Path(plugins.__file__).parents[1]
    shutil.copytree(root / "hwnas", tmp_path / "hwnas", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("conftest.py", "contract/test_searchers.py"):
        (tmp_path / "tests" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "tests" / file, tmp_path / "tests" / file)
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / "hwnas" / "searchers" / "stubborn.py").write_text(BAD)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "stubborn and (repetition or misspelt)", "tests"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Stubborn proposed the network of (0, 0) twice" in ran.stdout
    assert "2 failed, 1 passed" in ran.stdout
