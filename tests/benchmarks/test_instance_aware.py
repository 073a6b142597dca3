"""The benchmark runs and says what it says."""

from __future__ import annotations

import json

import pytest

from benchmarks import instance_aware
from hwnas.data import load_data


def test_every_network_stands_beside_the_fixed_ones(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(instance_aware.SPACE, "depths", [1, 1])
    monkeypatch.setattr(instance_aware, "load_data", lambda name, options: load_data(name, {**options, "limit": 40}))
    assert instance_aware.main(["--seeds", "1", "--epochs", "2", "--checkpoints", "2", "--fixed", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    (run,) = found["runs"]
    assert found["mean_hypervolume"] == run["hypervolume"]
    assert run["hypervolume"]["with_controller"] <= run["hypervolume"]["instance_wise"] < 1
    assert 0 < run["hypervolume"]["fixed"] < 1
    assert len(run["instance_wise"]) == len(run["unique_policies"]) == 2
