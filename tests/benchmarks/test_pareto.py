"""The referee's scores are shares of the true front, and every kind of searcher runs to the end of its budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import pareto


@pytest.fixture
def task(test_data: Path) -> pareto.Task:
    return pareto.load_task(str(test_data / "nasbench201_hw.npz"), "pixel3", "test_acc")


def test_the_whole_front_is_all_there_is_and_points_outside_the_box_count_nothing(task: pareto.Task) -> None:
    assert len(task.archs) == 15284
    assert pareto.share(task.front, task.front) == pytest.approx(1)
    assert pareto.share(task.front[:1] + 1e6, task.front) == 0
    assert 0 < pareto.share(task.front[::3], task.front) < 1
    assert pareto.share(task.front, task.tight_front) == pytest.approx(1)
    assert len(task.tight_front) <= len(task.front)
    scores = pareto.scores(task, range(100), 60)
    assert len(scores["hv"]) == len(scores["tight"]) == 2


@pytest.mark.parametrize("name", ["random", "pymoo-nsga2-20", "optuna-tpe", "{name: nsga2, population: 8}:hidden"])
def test_a_run_has_as_many_distinct_evaluations_as_asked_for(test_data: Path, name: str) -> None:
    found = pareto.run((str(test_data / "nasbench201_hw.npz"), "test_acc", "pixel3", name, 0, 30, 5))
    assert found["evaluations"] == 30
    assert 0 < found["hv"][0] <= 1


def test_the_report_names_where_a_peer_is_ahead() -> None:
    found = [
        {"searcher": name, "task": "pixel3", "seed": seed, "asks": [0.1], "seconds": 1.0, "hv": [hv + seed / 100], "tight": [hv]}
        for name, hv in (("random", 0.5), ("optuna-tpe", 0.7)) for seed in range(3)
    ]  # fmt: skip
    made = pareto.report(found, ["pixel3"], ["random", "optuna-tpe"], [25])
    assert made["means of medians, hv/tight"]["tuned on"]["random"] == {"25": "0.510/0.500"}
    error = np.std([0.5, 0.51, 0.52], ddof=1) / np.sqrt(3) * np.sqrt(2)
    errors, peer = made["below the best peer, standard errors"]["random"]["pixel3 hv 25"].split()
    assert float(errors) == pytest.approx(0.2 / error, rel=0.02) and peer == "(optuna-tpe)"


@pytest.mark.parametrize("arguments", [["--devices", "pixel4"], ["--searchers", "prospectr"], ["--budget", "10"], ["--file", "nowhere"]])
def test_what_cannot_be_meant_is_said_in_one_line(test_data: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pareto.main(["--file", str(test_data / "nasbench201_hw.npz"), *arguments])
    assert "error: there " in capsys.readouterr().err


def test_one_of_each_isomorphic_kind_has_less_than_all(task: pareto.Task) -> None:
    shares = pareto.ceiling(task, 1)
    assert 0.9 < shares["hv"] < 1 and 0.9 < shares["tight"] < 1
