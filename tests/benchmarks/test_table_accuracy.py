"""The benchmark runs and says what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import table_accuracy
from hwnas import resources
from hwnas.calibrate import Accuracy
from hwnas.cost import CostModel
from hwnas.space import load_space

SMALL = {"cells": 1, "width": 4, "input_size": 8}


def test_every_method_predicts_from_the_same_probes() -> None:
    space = load_space("nasbench201", SMALL)
    rng = np.random.default_rng(0)
    isolated = np.array([1e-3 + 1e-6 * resources.macs(op) for op in space.operators()])
    archs = [space.random(rng) for _ in range(150)]
    times = CostModel(space, lambda op: 0.0).counts(archs).numpy() @ isolated * 1.5 + 0.01
    found = table_accuracy.methods(space, isolated, archs[:50], times[:50])
    accuracy = {method: Accuracy.of(predict(archs[50:]), times[50:]) for method, predict in found.items()}
    assert accuracy["ours"].within_5 == accuracy["scale_and_offset"].within_5 == 1
    assert accuracy["sum_of_isolated"].within_10 == 0
    assert accuracy["ours"].mape < accuracy["least_squares_on_indicators"].mape


@pytest.mark.slow
def test_a_device_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_accuracy, "load_space", lambda name: load_space(name, SMALL))
    arguments = ["--devices", "cpu-1t", "--spaces", "nasbench201", "--probes", "10", "--networks", "6", "--tables", str(tmp_path)]
    assert table_accuracy.main(arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)[0]
    assert (found["probes"], found["networks"]) == (10, 6)
    assert 0 < found["methods"]["ours"]["mape"] < 1
    assert table_accuracy.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)[0] == found, "nothing is measured a second time"


def test_published_latencies(test_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--public", str(test_data), "--spaces", "nasbench201", "--public-networks", "60", "--seeds", "1"]
    assert table_accuracy.main(arguments) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert len(found) == 8
    for column in found:
        ours = column["methods"].pop("ours")
        for other in column["methods"].values():
            assert ours["within_10"] >= other["within_10"] - 0.02, column
