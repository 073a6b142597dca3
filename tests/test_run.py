"""A run's folder: what was told is there again, and a folder that is something else is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from hwnas.config import load_experiment
from hwnas.errors import ConfigError, RunError
from hwnas.evaluate import Objective, Trial
from hwnas.run import Run

OBJECTIVES = (Objective("error"), Objective("latency_ms"))


@pytest.fixture
def run(tiny: Path) -> Run:
    return Run.create(tiny / "run", load_experiment("tiny.yaml"))


def trial(index: int, error: float = 0.5) -> Trial:
    return Trial(index, (index % 5, 1, 1, 1, 1, 1), {"error": error, "latency_ms": 0.1 + 0.2}, {"log": {"temperature": 0.1 + 0.2}})


def test_trials_come_back_as_they_were(run: Run) -> None:
    space = run.experiment.load_space()
    for index in (1, 0, 2):
        run.record(trial(index), space, OBJECTIVES)
    again = Run.open(run.folder)
    assert again.experiment == run.experiment
    assert again.trials(space) == [trial(0), trial(1), trial(2)]


def test_a_trial_without_a_value_is_a_failed_one_of_the_study_and_comes_back(run: Run) -> None:
    space = run.experiment.load_space()
    run.record(trial(0, math.nan), space, OBJECTIVES)
    assert [stored.state.name for stored in run.study.trials] == ["FAIL"]
    (found,) = Run.open(run.folder).trials(space)
    assert math.isnan(found.values["error"])


def test_of_a_trial_recorded_twice_one_counts(run: Run) -> None:
    space = run.experiment.load_space()
    for _ in range(2):
        run.record(trial(0), space, OBJECTIVES)
    assert run.trials(space) == [trial(0)]


def test_the_study_says_what_was_chosen(run: Run) -> None:
    space = run.experiment.load_space()
    run.record(trial(3), space, OBJECTIVES)
    (stored,) = run.study.trials
    assert stored.params == {slot.name: slot.choices[3 if i == 0 else 1] for i, slot in enumerate(space.slots)}
    assert stored.values == [0.5, 0.1 + 0.2]


def test_the_searchers_state(run: Run) -> None:
    assert run.load_searcher() is None
    run.save_searcher(({"a": torch.arange(3)}, {"b": [1, 2]}), 5)
    found = run.load_searcher()
    assert found is not None
    (tensors, values), told = found
    assert tensors["a"].tolist() == [0, 1, 2] and values == {"b": [1, 2]} and told == 5


def test_another_storage(tiny: Path) -> None:
    experiment = load_experiment("tiny.yaml", [f"storage=sqlite:///{tiny}/shared.db"])
    space = experiment.load_space()
    first, second = (Run.create(tiny / name, experiment.model_copy(update={"name": name})) for name in ("one", "two"))
    first.record(trial(0), space, OBJECTIVES)
    assert len(first.trials(space)) == 1 and second.trials(space) == []
    assert not (tiny / "one" / "trials.db").exists()


def test_created_again_it_is_the_same_and_with_another_configuration_refused(run: Run) -> None:
    space = run.experiment.load_space()
    run.record(trial(0), space, OBJECTIVES)
    assert len(Run.create(run.folder, load_experiment("tiny.yaml")).trials(space)) == 1
    with pytest.raises(RunError, match="trials: 12 there, 13 now"):
        Run.create(run.folder, load_experiment("tiny.yaml", ["trials=13"]))


def test_one_that_never_began_is_replaced(tiny: Path) -> None:
    Run.create(tiny / "run", load_experiment("tiny.yaml"))
    changed = load_experiment("tiny.yaml", ["trials=13"])
    assert Run.create(tiny / "run", changed).experiment == Run.open(tiny / "run").experiment == changed


def test_folders_that_are_no_runs(tiny: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        Run.open(tiny)
    with pytest.raises(RunError, match="choose another"):
        Run.create(tiny / "tiny.yaml" / "run", load_experiment("tiny.yaml"))
    (tiny / "config.yaml").write_text("trials: few\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="config.yaml"):
        Run.open(tiny)


def test_trials_of_another_space(run: Run) -> None:
    run.record(trial(0), run.experiment.load_space(), OBJECTIVES)
    other = load_experiment("quickstart").load_space()
    with pytest.raises(RunError, match="damaged"):
        run.trials(other)
