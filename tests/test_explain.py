from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hwnas import cli, plugins
from hwnas.config import Experiment, parse
from hwnas.controller import Controller, Form, Reading, make_controller
from hwnas.cost import Cost, CostModel
from hwnas.errors import RunError
from hwnas.evaluate import Objective, Trial
from hwnas.explain import (
    cosine_distances,
    depth,
    explain,
    explain_run,
    history_bits,
    identical_state,
    mantel,
    probe,
    structural_distances,
)
from hwnas.run import Run
from hwnas.searcher import Problem, Searcher
from hwnas.space import SearchSpace, load_space
from tests.conftest import TINY, made_up_price


def controller_of(space: SearchSpace, scale: float, forgets: bool = False) -> Controller:
    controller = make_controller(space, Form(hidden=8, share=True), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in controller.named_parameters():
            parameter.mul_(0 if forgets and name == "lstm.weight_ih" else scale)
    return controller


@pytest.fixture(scope="module")
def cells() -> SearchSpace:
    return load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1})


def test_history_information_is_0_only_where_the_past_is_not_looked_at(cells: SearchSpace) -> None:
    turns = torch.zeros(500, dtype=torch.int64)
    forgetful, willed, new = (controller_of(cells, *how) for how in ((20.0, True), (20.0,), (1.0,)))
    generator = torch.Generator().manual_seed(0)
    bits = [history_bits(controller.sample(turns, generator)) for controller in (forgetful, willed, new)]
    assert float(bits[0].max()) < 1e-5
    assert float(bits[1][0]) < 1e-5  # there is no past before the first choice
    assert float(bits[1][1:].max()) > 0.05
    assert float(bits[2].max()) < 0.01  # ENAS fact 3: a new controller hardly looks at it


def test_an_architecture_that_is_copied_tells_all_its_bits() -> None:
    first = torch.arange(8) % 4
    archs = torch.stack([first, first], 1)
    certain = torch.nn.functional.one_hot(first, 4).float().log()
    reading = Reading(archs, torch.stack([torch.full((8, 4), 0.25).log(), certain], 1), torch.zeros(8, 2))
    assert history_bits(reading).tolist() == pytest.approx([0.0, 2.0], abs=1e-6)


def test_completions_of_one_state_are_alike_where_the_state_says_something(cells: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    within, between = identical_state(controller_of(cells, 20.0, True), 0, generator)
    assert within == pytest.approx(between, abs=0.02)
    within, between = identical_state(controller_of(cells, 30.0), 0, generator)
    assert within > between + 0.02


def test_mantel() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    same = mantel(distances, distances**3, 99, rng)
    assert same is not None
    assert same.rho == pytest.approx(1)
    assert same.p_value == 0.01
    others = rng.normal(size=(30, 2))
    found = mantel(distances, np.linalg.norm(others[:, None] - others, axis=2), 99, rng)
    assert found is not None
    assert abs(found.rho) < 0.3
    assert found.p_value > 0.05
    assert mantel(distances, np.zeros((30, 30)), 99, rng) is None


def test_the_probe_reads_what_is_there_on_held_out_samples_only() -> None:
    rng = np.random.default_rng(0)
    choices = torch.as_tensor(rng.integers(4, size=400))
    said, majority = probe(torch.nn.functional.one_hot(choices, 6).float(), choices, rng)
    assert said == 1
    assert majority < 0.4
    said, majority = probe(torch.as_tensor(rng.normal(size=(400, 6))).float(), choices, rng)
    assert abs(said - 0.25) < 0.12
    assert probe(torch.zeros(10, 2), torch.ones(10, dtype=torch.int64), rng) == (1, 1)


def test_distances(diamond: SearchSpace) -> None:
    archs = [(0, 0), (1, 1), (2, 1), (2, 0)]
    found = structural_distances(diamond, archs)
    assert found["slots"][0].tolist() == [0, 1, 1, 0.5]
    assert found["sites"][0, 3] == 0  # what left chose is not used
    assert found["sites"][1, 2] == pytest.approx(1 - 4 / 6)
    assert [depth(diamond, arch) for arch in archs] == [2, 4, 4, 2]
    assert found["depth"][0].tolist() == [0, 2, 2, 0]
    angles = cosine_distances(torch.tensor([[1.0, 0], [0, 2], [3, 0]]))
    assert angles[0].tolist() == pytest.approx([0, 1, 0])


def test_a_policy_without_a_choice_left_is_explained_too(diamond: SearchSpace) -> None:
    controller = controller_of(diamond, 1.0)
    with torch.no_grad():
        for head in controller.heads.values():
            head.bias[0] = 100.0  # type: ignore[operator]
    found = explain(diamond, controller, 0, [1.0], {}, torch.Generator().manual_seed(0))
    assert found.entropy == pytest.approx(0, abs=1e-6)
    assert found.correlations == {"slots": None, "sites": None, "depth": None}
    assert [slot.probe for slot in found.slots] == [1, 1]
    json.dumps(found.plain())


@pytest.fixture
def monas_run(tmp_path: Path) -> Path:
    """The folder of a search of eight made-up trials."""
    searcher = {"name": "monas", "hidden": 8, "alphas": [0.5, 1.0], "steps": 1}
    run = Run.create(tmp_path / "monas", parse(Experiment, {"name": "monas", **yaml.safe_load(TINY), "searcher": searcher}, "TINY"))
    space = run.experiment.load_space()
    objectives = (Objective("error"), Objective("latency_ms"))
    costs: dict[str, Cost] = {"latency_ms": CostModel(space, made_up_price, metric="latency_ms")}
    options = run.experiment.searcher.options
    monas: Searcher = plugins.build("searchers", "monas", options, Problem(space, objectives, costs), np.random.default_rng(0))
    archs = monas.ask(8)
    trials = [Trial(i, arch, {"error": i / 8, "latency_ms": float(costs["latency_ms"].of([arch])[0])}) for i, arch in enumerate(archs)]
    for trial in trials:
        run.record(trial, space, objectives)
    monas.tell(trials)
    run.save_searcher(monas.state(), len(trials))
    return run.folder


def test_a_run_is_explained_from_its_folder(monas_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("hwnas.explain.PERMUTATIONS", 19)
    found = explain_run(Run.open(monas_run))
    assert [one.weights for one in found] == [[0.5, 0.5], [1, 0]]
    assert all(0.9 < one.entropy <= 1.0001 for one in found)
    assert set(found[0].correlations) == {"slots", "sites", "depth", "value"}
    assert found == explain_run(Run.open(monas_run))
    monkeypatch.setattr(sys, "argv", ["hwnas", "explain", str(monas_run), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == [one.plain() for one in found]
    monkeypatch.setattr(sys, "argv", ["hwnas", "explain", str(monas_run)])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    assert "reward with weights 1, 0: policy entropy" in out
    assert "distance of states and of slots" in out


def test_runs_without_a_controller_or_a_checkpoint_are_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "tiny", parse(Experiment, {"name": "tiny", **yaml.safe_load(TINY)}, "TINY"))
    with pytest.raises(RunError, match="has no checkpoint of its searcher yet"):
        explain_run(run)
    run.save_searcher(({}, {}), 4)
    with pytest.raises(RunError, match=r"reads the controllers of enas, monas, but .* was searched by nsga2"):
        explain_run(run)
