"""A benchmark's file as evaluator and costs: looked up exactly, refused where it is not whole, searched without data or device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.config import load_experiment
from hwnas.cost import TabularCost, one_hot
from hwnas.errors import BudgetError, ConfigError, HwnasError, SpaceError, TableError
from hwnas.evaluate import Objective
from hwnas.front import export_run, front_of, report_run
from hwnas.pareto import nondominated
from hwnas.run import Run
from hwnas.search import assemble, run_search
from hwnas.searcher import Problem
from hwnas.space import SearchSpace, load_space
from hwnas.tabular import TabularEvaluator, evaluator_and_costs, read_columns

VALUES = {"accuracy": "test_acc %", "latency_ms": "latency_ms[phone]", "energy_mj": "energy_mj[1]"}


@pytest.fixture
def cells() -> SearchSpace:
    """The 15,625 cells in a tiny network."""
    return load_space("nasbench201", {"cells": 1, "width": 2, "input_size": 8})


def arrays_of(space: SearchSpace) -> dict[str, Any]:
    """A whole file's content, rows in any order, every value another."""
    rng = np.random.default_rng(0)
    archs = rng.permutation(np.array(list(space.all()), dtype=np.int8))
    n = len(archs)
    return {
        "ops": archs, "test_acc": rng.uniform(10, 95, n).astype(np.float32), "latency_ms": rng.uniform(1, 9, (n, 3)),
        "latency_devices": np.array(["server", "phone", "board"]), "energy_mj": rng.uniform(1, 9, (n, 3)),
        "op_names": np.array(["a", "b", "c", "d", "e"]),
    }  # fmt: skip


@pytest.fixture
def arrays(diamond: SearchSpace) -> dict[str, Any]:
    return arrays_of(diamond)


def save(tmp_path: Path, arrays: dict[str, Any]) -> str:
    np.savez(tmp_path / "bench.npz", **arrays)
    return str(tmp_path / "bench.npz")


def test_every_architecture_has_its_row_s_values(diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path) -> None:
    evaluator, costs = evaluator_and_costs(diamond, file=save(tmp_path, arrays), values=VALUES)
    archs = [tuple(int(choice) for choice in row) for row in arrays["ops"]]
    found = dict(evaluator.evaluate(archs, range(len(archs))))
    for row in range(len(archs)):
        assert found[row]["accuracy"] == pytest.approx(float(arrays["test_acc"][row]) / 100)
        assert found[row]["error"] == 1 - found[row]["accuracy"]
    assert evaluator.names == ["error", "accuracy"]
    np.testing.assert_array_equal(costs["latency_ms"].of(archs), arrays["latency_ms"][:, 1])
    np.testing.assert_array_equal(costs["energy_mj"].upper(archs), arrays["energy_mj"][:, 1])
    np.testing.assert_array_equal(costs["latency_ms"].of(torch.tensor(archs)), arrays["latency_ms"][:, 1])


def test_isomorphic_networks_keep_the_values_that_they_stand_with(diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path) -> None:
    assert diamond.alive((1, 0)) == diamond.alive((2, 0))
    columns = read_columns(diamond, Path(save(tmp_path, arrays)), "ops", {"latency_ms": "latency_ms[0]"})
    rows = {tuple(row): i for i, row in enumerate(arrays["ops"].tolist())}
    for arch in ((1, 0), (2, 0)):
        assert columns["latency_ms"][arch] == arrays["latency_ms"][rows[arch], 0]


def test_a_function_may_stand_for_a_file(diamond: SearchSpace) -> None:
    evaluator = TabularEvaluator(lambda arch: {"error": sum(arch) / 10})
    assert dict(evaluator.evaluate([(2, 1)], [0])) == {0: {"error": 0.3, "accuracy": 0.7}}
    cost = TabularCost(diamond, "latency_ms", lambda arch: 1.0 + sum(arch))
    assert cost.of([(2, 1), (0, 0)]).tolist() == [4, 1]
    assert cost.cheapest() == (0, 0)


def test_what_has_no_path_may_be_absent_and_is_infinitely_dear(cells: SearchSpace, tmp_path: Path) -> None:
    arrays = arrays_of(cells)
    dead = [i for i, arch in enumerate(arrays["ops"][:2000].tolist()) if not cells.is_valid(arch)]
    assert dead
    gone = tuple(arrays["ops"][dead[0]].tolist())
    arrays = {name: np.delete(array, dead, 0) if len(array) == cells.size else array for name, array in arrays.items()}
    _, costs = evaluator_and_costs(cells, file=save(tmp_path, arrays), values=VALUES)
    assert costs["latency_ms"].of([gone]).item() == np.inf
    assert cells.is_valid(costs["latency_ms"].cheapest())


def test_soft_rows_have_no_expectation(diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path) -> None:
    _, costs = evaluator_and_costs(diamond, file=save(tmp_path, arrays), values=VALUES)
    cost = costs["latency_ms"]
    archs = list(diamond.all())
    torch.testing.assert_close(cost(one_hot(diamond, archs).double()), cost.of(archs))
    assert isinstance(cost, TabularCost) and cost.deviation(archs).tolist() == [0] * len(archs)
    with pytest.raises(SpaceError, match="latency_ms is tabulated for whole architectures and has no expectation"):
        cost(torch.full((2, 3), 1 / 3))


def test_a_budget_below_the_cheapest_names_it(diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path) -> None:
    _, costs = evaluator_and_costs(diamond, file=save(tmp_path, arrays), values=VALUES)
    least = arrays["latency_ms"][:, 1].min()
    with pytest.raises(BudgetError, match=f"needs up to {least:.4g}, most of it for operators that a table of whole networks does not"):
        Problem(diamond, (Objective("error"),), costs, {"latency_ms": least / 2})
    problem = Problem(diamond, (Objective("error"),), costs, {"latency_ms": least})
    assert problem.random(np.random.default_rng(0)) == problem.anchor == costs["latency_ms"].cheapest()


def without(name: str) -> Any:
    return lambda arrays: arrays.pop(name)


def put(name: str, value: Any, *where: Any) -> Any:
    return lambda arrays: arrays.update({name: value}) if not where else arrays[name].__setitem__(where, value)


def cut(arrays: dict[str, Any]) -> None:
    for name in ("ops", "test_acc", "latency_ms", "energy_mj"):
        arrays[name] = arrays[name][:-1]


BAD = [
    (lambda arrays: put("ops", arrays["ops"][0], 3)(arrays), "holds the architecture .* in rows 0 and 3; keep one"),
    (cut, "lacks the architecture .* it has 5 of the 6 of"),
    (without("ops"), "has no array 'ops'; did you mean 'op_names'"),
    (put("ops", np.zeros((6, 3), np.int8)), r"shape \(architecture, 2\), a choice for every slot of .* but has int8 of shape \(6, 3\)"),
    (put("ops", np.zeros((6, 2))), "whole numbers .* but has float64"),
    (put("ops", 7, 2), r"row 2 of ops of .*, \[7, 7\], has a choice that .* does not have"),
    (put("test_acc", np.nan, 4), "'test_acc %' of .* is nan in row 4 .*every value must be finite"),
    (put("latency_ms", np.inf, 4, 1), r"'latency_ms\[phone\]' of .* is inf in row 4"),
    (put("latency_ms", -1.0, 5, 1), "is a cost and must not be negative, but is -1 in row 5"),
    (put("test_acc", np.zeros(5)), r"test_acc of .* must hold a number for each of the 6 architectures, but has float64 of shape \(5,\)"),
    (put("test_acc", np.array(["x"] * 6)), "must hold a number for each .* but has <U1"),
    (put("test_acc", np.full(6, 9400.0)), "accuracy must be a share between 0 and 1, but .* has values from 94 to 94"),
    (without("test_acc"), "has no array 'test_acc'; known: energy_mj"),
    (put("latency_devices", np.array(["server", "phon", "board"])), r"latency_ms of .* has no column 'phone'; did you mean 'phon'"),
    (without("latency_devices"), r"does not say how the columns of latency_ms are called; write latency_ms\[0\] to latency_ms\[2\]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_file_that_is_not_whole_is_refused_in_one_sentence(
    diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path, change: Any, message: str
) -> None:
    change(arrays)
    with pytest.raises(HwnasError, match=message) as found:
        evaluator_and_costs(diamond, file=save(tmp_path, arrays), values=VALUES)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test_acc", "accuracy must be a share .* if these are per cent, write 'test_acc %'"),
        ("test_acc[0] %", "test_acc of .* has a single column; write test_acc, but got"),
        ("latency_ms", r"latency_ms of .* has 3 columns; name one, e.g. latency_ms\[0\], but got"),
        ("latency_ms[3]", r"has no column '3'; known: board, phone, server"),
        ("100 - test_acc", "names no column; write an array's name"),
        ("op_names", "must hold a number for each"),
    ],
)
def test_a_column_that_cannot_be_meant(diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HwnasError, match=message):
        read_columns(diamond, Path(save(tmp_path, arrays)), "ops", {"accuracy": text})


def test_a_file_that_cannot_be_read(diamond: SearchSpace, arrays: dict[str, Any], tmp_path: Path) -> None:
    path = Path(save(tmp_path, arrays))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an archive", whole.replace(b"descr", b"dexcr")):
        path.write_bytes(content)
        with pytest.raises(TableError, match="cannot be read as an npz"):
            read_columns(diamond, path, "ops", VALUES)
    np.savez(path, ops=np.array([{}], dtype=object))
    with pytest.raises(TableError, match="cannot be read as an npz"):
        read_columns(diamond, path, "ops", VALUES)
    with pytest.raises(TableError, match="there is no file"):
        read_columns(diamond, tmp_path / "nowhere.npz", "ops", VALUES)


def test_a_space_too_large_to_be_tabulated(tmp_path: Path) -> None:
    space = load_space("mobilenet_v2")
    file = save(tmp_path, {"ops": np.zeros((1, len(space.slots)), np.int8), "test_acc": np.ones(1)})
    with pytest.raises(TableError, match="has 1 of the [0-9]+ architectures of mobilenet_v2; a table must hold them all"):
        read_columns(space, Path(file), "ops", {"accuracy": "test_acc %"})


@pytest.fixture
def config(cells: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    given = {
        "space": {"name": "nasbench201", **cells.options},
        "evaluator": {"name": "tabular", "file": save(tmp_path, arrays_of(cells)), "values": VALUES},
        "searcher": {"name": "random"}, "trials": 30, "objectives": ["error", "latency_ms"],
    }  # fmt: skip
    Path("bench.yaml").write_text(yaml.safe_dump(given))
    return given


def test_a_search_without_data_and_device_ends_with_the_front_of_what_was_looked_up(config: dict[str, Any]) -> None:
    assert CliRunner().invoke(app, ["search", "bench.yaml", "--json"]).exit_code == 0
    run = Run.open("runs/bench")
    space = run.experiment.load_space()
    trials = run.trials(space)
    assert len(trials) == 30
    columns = read_columns(space, Path("bench.npz"), "ops", VALUES)
    assert all(trial.values["latency_ms"] == columns["latency_ms"][trial.arch] for trial in trials)
    front = front_of(run)
    assert front["basis"] == "tabulated"
    values = np.array([[trial.values["error"], trial.values["latency_ms"]] for trial in trials])
    assert sorted(member["values"]["error"] for member in front["members"]) == sorted(values[nondominated(values), 0])
    with pytest.raises(HwnasError, match="nothing was trained, so there is nothing to export"):
        export_run(run)
    again = run_search(run.experiment, run.folder)
    assert front_of(again) == front


@pytest.mark.slow
def test_its_report_is_drawn(config: dict[str, Any]) -> None:
    assert all(path.exists() for path in report_run(run_search(load_experiment("bench.yaml"), Path("run"))))


def test_profiling_it_makes_no_sense(config: dict[str, Any]) -> None:
    ran = CliRunner().invoke(app, ["run", "bench.yaml"])
    assert isinstance(ran.exception, ConfigError) and "use `hwnas search`" in str(ran.exception)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives=[error, loss]", "evaluator.values gives no column for the objective 'loss'; known: accuracy, energy_mj, error, lat"),
        ("objectives=[error, latncy_ms]", "did you mean 'latency_ms'"),
        ("evaluator.fil=x", "evaluator 'tabular' has no option 'fil'; did you mean 'file'"),
        ("evaluator.file=", "evaluator 'tabular': file"),
        ("evaluator.values={}", "evaluator 'tabular': values"),
        ("evaluator={name: shared}", "the experiment bench has no data section"),
        ("evaluator.name=tabulr", "no evaluator called 'tabulr'; did you mean 'tabular'"),
        ("searcher={name: snas}", "needs data to train it on"),
    ],
)  # fmt: skip
def test_an_experiment_that_cannot_be_meant(config: dict[str, Any], override: str, message: str) -> None:
    experiment = load_experiment("bench.yaml", [override])
    with pytest.raises(ConfigError, match=message):
        run_search(experiment, Path("run"))


def test_the_published_file(test_data: Path) -> None:
    values = {"accuracy": "test_acc %", "latency_ms": "latency_ms[gold_6226]", "energy_mj": "energy_mj[eyeriss]"}
    space = load_space("nasbench201")
    evaluator, costs = evaluator_and_costs(space, file=str(test_data / "nasbench201_hw.npz"), values=values)
    with np.load(test_data / "nasbench201_hw.npz") as arrays:
        row = int(arrays["test_acc"].argmax())
        arch = space.parse(arrays["arch_str"][row].decode())
        device = arrays["latency_devices"].tolist().index("gold_6226")
        latency = float(arrays["latency_ms"][row, device])
    assert dict(evaluator.evaluate([arch], [0]))[0]["accuracy"] == pytest.approx(0.94373, abs=1e-5)
    assert costs["latency_ms"].of([arch]).item() == latency
    assert len(costs["energy_mj"].of(list(space.all()))) == 15625


def test_the_cli_says_it_in_one_line(config: dict[str, Any], tmp_path: Path) -> None:
    Path("bench.npz").write_bytes(b"PK")
    ran = CliRunner().invoke(app, ["search", "bench.yaml"])
    assert isinstance(ran.exception, TableError)
    assert not (tmp_path / "runs").exists()
    assert json.dumps(str(ran.exception)).count("\\n") == 0


def test_assembly_of_a_table_has_no_device(config: dict[str, Any]) -> None:
    made = assemble(load_experiment("bench.yaml"))
    assert made.device is None and made.tables is None and set(made.costs) == {"latency_ms", "energy_mj"}
