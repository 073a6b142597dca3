"""A whole search on a fixed table: resumed after any interruption it ends as if it had never been interrupted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.checkpoint import load_state
from hwnas.config import load_experiment
from hwnas.errors import ConfigError, RunError
from hwnas.evaluate import Objective, Trial
from hwnas.front import front_of
from hwnas.run import Run
from hwnas.search import (
    Assembly,
    assemble,
    choose_members,
    evaluation_seed,
    load_member,
    read_members,
    run_search,
    run_trials,
)
from hwnas.space import Architecture

OBJECTIVES = (Objective("error"), Objective("latency_ms"))


def outcome(folder: Path) -> tuple[list[Any], list[Any]]:
    """Trials and members of a run as plain data."""
    run = Run.open(folder)
    trials = [(trial.index, trial.arch, trial.values) for trial in run.trials(run.experiment.load_space())]
    return trials, [member.model_dump() for member in read_members(run)]


class MadeUp:
    """An evaluator that takes no time; it breaks down before the evaluation of that number."""

    def __init__(self, breaks: int = 10**9) -> None:
        self.left, self.asked = breaks, list[Architecture]()

    def prepare(self, progress: Any) -> None:
        pass

    def evaluate(self, archs: Sequence[Architecture], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        for number, (arch, seed) in enumerate(zip(archs, seeds, strict=True)):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked.append(arch)
            error = np.random.default_rng(seed).random()
            yield number, {"error": error, "accuracy": 1 - error, "loss": math.nan if error > 0.9 else error}

    def close(self) -> None:
        pass


@pytest.fixture
def assembly(tiny: Path) -> Assembly:
    return assemble(load_experiment("tiny.yaml", ["trials=30", "batch=4"]))


def test_a_complete_search(finished_run: Path) -> None:
    trials, members = outcome(finished_run)
    assert [index for index, _, _ in trials] == list(range(12))
    run = Run.open(finished_run)
    space = run.experiment.load_space()
    assert len({space.alive(arch) for _, arch, _ in trials}) == 12
    assert {"error", "accuracy", "loss", "latency_ms", "energy_mj", "macs", "params", "peak_mb"} <= trials[0][2].keys()
    assert [member["name"] for member in members] == ["m00", "m01"]
    assert all(trials[member["trial"]][1] == tuple(member["arch"]) for member in members)
    for member in read_members(run):
        network = load_member(run, space, member)
        assert not network.training
        assert network(torch.zeros(2, *space.input_shape)).shape == (2, 10)
        assert member.predicted["latency_ms"]["upper"] >= member.predicted["latency_ms"]["mean"] > 0
    front = front_of(run)
    assert front["basis"] == "predicted" and 1 <= len(front["members"]) <= 2


def test_a_finished_search_is_left_as_it_is(finished_run: Path, fixed_tables: Path) -> None:
    before = outcome(finished_run)
    written = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    done = run_search(Run.open(finished_run).experiment, finished_run, tables=fixed_tables)
    assert done.folder == finished_run
    assert outcome(finished_run) == before
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("members/*/*.safetensors")}.items() <= written.items()


def test_interrupted_while_the_supernet_trains_while_it_searches_and_while_members_train(
    finished_run: Path, fixed_tables: Path, tmp_path: Path
) -> None:
    experiment = Run.open(finished_run).experiment

    def run(stop: tuple[str, int] | None) -> None:
        def progress(what: str, done: int, of: int) -> None:
            if (what, done) == stop:
                raise KeyboardInterrupt

        run_search(experiment, tmp_path / "tiny", tables=fixed_tables, progress=progress)

    for stop in (("train supernet", 1), ("search", 6), ("train members", 1)):
        with pytest.raises(KeyboardInterrupt):
            run(stop)
    run(None)
    assert outcome(tmp_path / "tiny") == outcome(finished_run)


def trained(trials: Sequence[Trial]) -> list[tuple[int, Architecture, str]]:
    return [(trial.index, trial.arch, repr(trial.values)) for trial in trials]


@pytest.mark.parametrize("searcher", ["random", "nsga2"])
def test_interrupted_again_and_again_it_asks_and_records_the_same(assembly: Assembly, tmp_path: Path, searcher: str) -> None:
    experiment = assembly.experiment.model_copy(
        update={"searcher": load_experiment("tiny.yaml", [f"searcher={{name: {searcher}}}"]).searcher}
    )
    assembly = Assembly(**{**vars(assembly), "experiment": experiment})
    whole = Run.create(tmp_path / "whole", experiment)
    run_trials(assembly, whole, evaluator=MadeUp())
    rng = np.random.default_rng(1)
    evaluated: list[Architecture] = []
    for _ in range(100):
        pieces = Run.create(tmp_path / "pieces", experiment)
        evaluator = MadeUp(int(rng.integers(0, 7)))
        try:
            run_trials(assembly, pieces, evaluator=evaluator)
            break
        except KeyboardInterrupt:
            continue
        finally:
            evaluated += evaluator.asked
    assert trained(pieces.trials(assembly.space)) == trained(whole.trials(assembly.space))
    assert len(evaluated) == len(set(evaluated)) == 30
    assert len(pieces.study.trials) == 30
    states = [load_state(folder / "searcher.safetensors") for folder in (pieces.folder, whole.folder)]
    assert states[0][1] == states[1][1]
    assert all(torch.equal(states[0][0][name], tensor) for name, tensor in states[1][0].items())


def test_a_database_and_a_checkpoint_of_different_searches(assembly: Assembly, tmp_path: Path) -> None:
    first = Run.create(tmp_path / "first", assembly.experiment)
    run_trials(assembly, first, evaluator=MadeUp())
    other = assembly.experiment.model_copy(update={"seed": 1})
    second = Run.create(tmp_path / "second", other)
    with pytest.raises(KeyboardInterrupt):
        run_trials(Assembly(**{**vars(assembly), "experiment": other}), second, evaluator=MadeUp(6))
    (tmp_path / "first" / "searcher.safetensors").write_bytes((tmp_path / "second" / "searcher.safetensors").read_bytes())
    with pytest.raises(RunError, match="another search than its checkpoint's"):
        run_trials(assembly, Run.create(tmp_path / "first", assembly.experiment), evaluator=MadeUp())


def test_it_ends_when_the_space_is_used_up(tiny: Path, tmp_path: Path) -> None:
    experiment = load_experiment("tiny.yaml", ["trials=500", "batch=100", "searcher={name: random}"])
    made = assemble(experiment)
    cheapest = made.costs["latency_ms"]
    limit = float(cheapest.upper([cheapest.cheapest()])[0]) * 1.0001
    experiment = load_experiment("tiny.yaml", ["trials=500", "batch=100", "searcher={name: random}", f"budgets.latency_ms={limit}"])
    made = assemble(experiment)
    run = Run.create(tmp_path / "run", experiment)
    run_trials(made, run, evaluator=MadeUp())
    assert 1 <= len(run.trials(made.space)) < 500


def test_evaluation_seeds_follow_from_the_experiment_and_the_architecture_alone(tiny: Path) -> None:
    here, there = (load_experiment("tiny.yaml", [f"seed={seed}", f"trials={12 + seed}"]) for seed in (0, 1))
    seeds = {evaluation_seed(here, (i, j)) for i in range(20) for j in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**62 for seed in seeds)
    assert evaluation_seed(here, (1, 2)) == evaluation_seed(here.model_copy(update={"trials": 99}), (1, 2))
    assert evaluation_seed(here, (1, 2)) != evaluation_seed(there, (1, 2))


def trial(index: int, error: float, latency: float) -> Trial:
    return Trial(index, (index,), {"error": error, "latency_ms": latency})


def test_members_are_the_front_fastest_first_then_the_fronts_behind_it() -> None:
    trials = [trial(0, 0.3, 1.0), trial(1, 0.1, 3.0), trial(2, 0.2, 2.0), trial(3, 0.25, 2.5), trial(4, 0.5, 5.0), trial(5, math.nan, 0.1)]
    assert [t.index for t in choose_members(trials, OBJECTIVES, 3)] == [0, 2, 1]
    assert [t.index for t in choose_members(trials, OBJECTIVES, 4)] == [0, 2, 3, 1]
    assert [t.index for t in choose_members(trials, OBJECTIVES, 10)] == [0, 2, 3, 1, 4]
    two = [t.index for t in choose_members(trials, OBJECTIVES, 2)]
    assert len(two) == 2 and set(two) <= {0, 1, 2}
    assert choose_members([trial(0, math.nan, 1.0)], OBJECTIVES, 3) == []


def test_members_cover_a_long_front_from_end_to_end() -> None:
    trials = [trial(i, 1 / (1 + i), float(i)) for i in range(50)]
    chosen = [t.index for t in choose_members(trials, OBJECTIVES, 5)]
    assert len(chosen) == 5 and chosen[0] == 0 and chosen[-1] == 49


def test_data_and_space_must_agree(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="space.channels"):
        assemble(load_experiment("tiny.yaml", ["data.size=16"]))
