"""YAML to validated objects: defaults, overrides, where files are looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas import config
from hwnas.config import Experiment, apply_override, available, find, load_device, load_experiment, parse, tables_root, train_settings
from hwnas.errors import ConfigError, DeviceError


@pytest.mark.parametrize("name", available("configs"))
def test_every_experiment_of_the_project_is_whole(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.load_space().size > 1
    assert experiment.load_device().name == experiment.device
    assert experiment.final_training().epochs >= 1
    assert parse(Experiment, experiment.model_dump(), "itself") == experiment


@pytest.mark.parametrize("name", available("devices"))
def test_every_device_of_the_project_is_whole(name: str) -> None:
    device = load_device(name)
    assert device.name == name and device.description


@pytest.mark.parametrize(
    ("override", "gives"),
    [
        ("trials=7", {"trials": 7}),
        ("budgets.latency_ms=0.5", {"budgets": {"latency_ms": 0.5}}),
        ("a.b.c=[1, {d: e}]", {"a": {"b": {"c": [1, {"d": "e"}]}}}),
        ("storage=sqlite:///x.db?y=1", {"storage": "sqlite:///x.db?y=1"}),
        ("storage=", {"storage": None}),
    ],
)
def test_overrides(override: str, gives: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    apply_override(found, override)
    assert found == gives


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans() | st.floats(allow_nan=False), max_size=5)
)
def test_overrides_give_what_yaml_says(values: dict[str, Any]) -> None:
    import yaml

    found: dict[str, Any] = {}
    for key, value in values.items():
        apply_override(found, f"section.{key}={yaml.safe_dump(value).removesuffix('...' + chr(10)).strip()}")
    assert found.get("section", {}) == values


def test_an_override_keeps_its_neighbours(tiny: Path) -> None:
    experiment = load_experiment("tiny.yaml", ["space.width=8", "final.training.epochs=3", "searcher.population=8"])
    assert experiment.space.options == {"input_size": 8, "channels": 1, "classes": 10, "width": 8, "cells": 1}
    assert experiment.final.training == {"epochs": 3, "batch_size": 32}
    assert (experiment.searcher.name, experiment.searcher.options) == ("nsga2", {"population": 8})


def test_nearest_keys_of_sections() -> None:
    for given_, says in (({"final": {"membrs": 3}}, "'members'"), ({"calibration": {"probe": 9}}, "'probes'"), ({"trails": 1}, "'trials'")):
        with pytest.raises(ConfigError, match=f"did you mean {says}"):
            parse(Experiment, {"name": "x", "space": {"name": "x"}, "data": {"name": "x"}, **given_}, "here")
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        train_settings({"epoch": 1}, "here")


def test_a_nearer_folder_hides_a_farther_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    far = find("devices", "cpu-1t")
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "cpu-1t.yaml").write_text("backend: onnxruntime\nthreads: 3\n", encoding="utf-8")
    assert find("devices", "cpu-1t") != far
    assert load_device("cpu-1t").threads == 3
    assert load_device(str(far)).threads == 1
    assert {"cpu-1t", "cpu-2t"} <= available("devices").keys()


def test_where_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tables_root(tmp_path / "given") == tmp_path / "given"
    (tmp_path / "latency_tables").mkdir()
    assert tables_root() == tmp_path / "latency_tables"
    (tmp_path / "latency_tables").rmdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(config, "folders", lambda kind: [])
    assert tables_root() == tmp_path / "data" / "hwnas" / "latency_tables"


def test_unknown_names() -> None:
    with pytest.raises(DeviceError, match="did you mean 'cpu-1t'"):
        load_device("cpu-1")
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_experiment("quickstar")
