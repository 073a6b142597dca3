"""The benchmark runs and says what it says; its bars are `slow`, for they need the machine to themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cost_model

ROOT = Path(__file__).parents[2]


def test_every_number_has_its_baseline_and_its_spread(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost_model.STEPS, "mobilenet_v2", {"input_size": 8, "stages": [{"widths": [8]}], "head_width": 8})
    monkeypatch.setitem(cost_model.STEPS, "nasbench201", {"input_size": 8, "width": 2, "cells": 1})
    assert cost_model.main(["--repeats", "2", "--architectures", "200", "--batch", "4"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    shares = [found["pricing"], *found["expected_cost"].values()]
    for part, ratio in zip(shares, ["times_baseline", "share_of_step", "share_of_step"], strict=True):
        assert part["baseline"]
        assert 0 < part[ratio]["min"] <= part[ratio]["median"] <= part[ratio]["max"]


@pytest.mark.slow
def test_bars() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cost_model.py"), "--repeats", "7"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    assert found["pricing"]["per_second"]["median"] >= 2e6
    assert all(part["share_of_step"]["median"] < 0.01 for part in found["expected_cost"].values())
