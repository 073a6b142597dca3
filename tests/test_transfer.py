"""A table from a sibling device's: predictions on a known law, what is written and marked, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas import cli, layers, profile, resources
from hwnas.config import load_device, load_experiment
from hwnas.errors import ConfigError, TableError
from hwnas.measure import Measurement, Protocol, Timing
from hwnas.op import OpSpec
from hwnas.profile import DeviceTables, profile_networks, profile_operators, unmeasured
from hwnas.space import SearchSpace, load_space
from hwnas.table import CostTable, Row
from hwnas.transfer import FEWEST, Transfer, choose, features, load_source, transfer_table

QUICK = Protocol(rounds=3, most_rounds=3, visit_ms=0.3)


def space_of_blocks() -> SearchSpace:
    """MobileNet blocks of two stages: 57 operators."""
    stages = [{"widths": [4, 8], "depth": 2, "stride": 2}, {"widths": [8, 16], "depth": 2, "stride": 2}]
    return load_space("mobilenet_v2", {"input_size": 16, "stages": stages, "kernels": [3, 5], "expansions": [1, 3], "head_width": 16})


def source_price(op: OpSpec) -> float:
    """A made-up machine, ms."""
    return 1e-3 + 2e-8 * resources.macs(op) + 1e-8 * resources.count(op).moved


def target_price(op: OpSpec) -> float:
    """Another one: half the overhead, slower arithmetic, faster memory."""
    return 5e-4 + 3e-8 * resources.macs(op) + 0.7e-8 * resources.count(op).moved


@pytest.fixture(scope="module")
def blocks() -> SearchSpace:
    return space_of_blocks()


@pytest.fixture(scope="module")
def law(blocks: SearchSpace) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features, the source's prices and the target's, with a noise of 3 % each."""
    rng = np.random.default_rng(0)
    operators = blocks.operators()
    noise = np.exp(rng.normal(0, 0.03, (2, len(operators))))
    source, target = (np.array([price(op) for op in operators]) for price in (source_price, target_price))
    return features(operators, source * noise[0]), source * noise[0], target * noise[1]


def test_what_is_measured_is_spread_and_what_is_known_comes_first(law: tuple[Any, Any, Any]) -> None:
    rows = law[0]
    chosen = choose(rows, 12)
    assert len(set(chosen)) == 12 and choose(rows, 12) == chosen
    assert choose(rows, 12, [3, 5])[:2] == [3, 5]
    assert sorted(choose(rows, 10**6)) == list(range(len(rows)))

    def doubt(index: list[int]) -> float:
        """Mean variance of a linear fit through these rows over all rows."""
        design = np.column_stack([np.ones(len(rows)), rows])
        covariance = np.linalg.inv(design[index].T @ design[index] + 0.1 * np.eye(design.shape[1]))
        return float(((design @ covariance) * design).sum(1).mean())

    rng = np.random.default_rng(0)
    by_chance = [doubt(list(rng.permutation(len(rows))[:12])) for _ in range(20)]
    assert doubt(chosen) < min(by_chance)


def test_a_known_law_is_learnt_and_its_error_is_what_is_reported(law: tuple[Any, Any, Any]) -> None:
    rows, source, target = law
    index = choose(rows, 20)
    model = Transfer(rows, source, {i: (float(target[i]), 0.02 * float(target[i])) for i in index})
    price, error = model.predict()
    others = [i for i in range(len(rows)) if i not in index]
    relative = np.abs(price / target - 1)[others]
    scaled = np.abs(source * np.median(target[index] / source[index]) / target - 1)[others]
    assert relative.mean() < 0.08 < scaled.mean()
    assert 0.5 * relative.mean() < model.left_out.of_total < 4 * relative.mean() and model.left_out.n == 20
    inside = np.abs(price - target)[others] < 1.645 * error[others]
    assert inside.mean() > 0.8 and (error > 0).all()


def test_operators_that_cost_nothing(law: tuple[Any, Any, Any]) -> None:
    rows, source, target = law
    free, source, target = 0, source.copy(), target.copy()
    source[free] = target[free] = 0.0
    index = [i for i in choose(rows, 15) if i != free]
    price, error = Transfer(rows, source, {i: (float(target[i]), 0.0) for i in index}).predict()
    assert 0 <= price[free] < 0.1 * np.median(target) and np.isfinite(error).all()
    with pytest.raises(TableError, match=f"at least {FEWEST} operators"):
        Transfer(rows, source, {0: (1.0, 0.1)})


# tables


@pytest.fixture
def tables(tmp_path: Path, local_fingerprint: dict[str, str]) -> Callable[[str], DeviceTables]:
    """The tables of a device that its fingerprint tells from another."""
    return lambda name: DeviceTables(tmp_path, load_device(name), {**local_fingerprint, "threads": name[4]})


def machine(fingerprint: dict[str, str], price: Callable[[OpSpec], float], asked: list[OpSpec], broken: str = "") -> Any:
    """`measure` on a made-up machine on which operators cost `price`; networks cost what their models are large."""

    def measure(models: Mapping[str, bytes], *_: Any, **__: Any) -> Measurement:
        timings: dict[str, Timing] = {}
        failures: dict[str, str] = {}
        for key, model in models.items():
            name, part = key.rpartition(" ")[::2]
            if not name:
                timings[key] = Timing(1e-5 * len(model), 0.0, 0.1, 0.1, 9)
                continue
            op = OpSpec.parse(name)
            asked.append(op)
            copies = profile.CHAIN - 1 if layers.output_shape(op) == (op.c_in, op.height, op.width) else 1
            time = 1.0 + (copies * price(op) if part == "long" else 0.0)
            timings[key] = Timing(time, 0.005 * price(op), time, time, 9)
            if broken and name.startswith(broken):
                failures[key] = "crashed the runtime (SIGSEGV)"
                del timings[key]
        return Measurement(timings, failures, fingerprint, 0.0, 0.1)

    return measure


@pytest.fixture
def source(tables: Callable[[str], DeviceTables], blocks: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> CostTable:
    """The table of cpu-1t; models are not lowered for made-up machines."""
    monkeypatch.setattr(profile, "quick_onnx", lambda module, shape, batch=1, out_shape=None: str(shape).encode())
    of = tables("cpu-1t")
    table = of.operators("latency_ms")
    table.add({op: Row(source_price(op), 1e-6, n=9) for op in blocks.operators()}, of.fingerprint)
    table.save(of.folder / "latency_ms.csv")
    return table


def test_a_few_rows_are_measured_and_the_others_are_marked(
    tables: Callable[[str], DeviceTables], blocks: SearchSpace, source: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tables("cpu-2t")
    asked: list[OpSpec] = []
    monkeypatch.setattr(profile, "measure", machine(target.fingerprint, target_price, asked))
    _, summary = transfer_table(source, target, blocks, 15)
    operators = blocks.operators()
    assert len(set(asked)) == 15 and summary["measured"] == 15 and summary["predicted"] == len(operators) - 15
    table = CostTable.load(target.folder / "latency_ms.csv")
    assert table.fingerprint == target.fingerprint and not table.missing(operators)
    assert {op for op, row in table.rows.items() if row.source == "measured"} == set(asked)
    predicted = unmeasured(table, operators)
    assert {table.rows[op].source for op in predicted} == {"modelled"} and len(predicted) == summary["predicted"]
    assert all(table.rows[op].error > 0 for op in predicted)
    assert np.mean([abs(table.rows[op].price / target_price(op) - 1) for op in predicted]) < 0.1
    assert table.facts["transfer source"].startswith("cpu-1t/") and table.facts["transfer measured operators"] == "15"
    assert float(table.facts["transfer left-out error"]) == pytest.approx(summary["left_out"]["of_total"], abs=1e-3)
    # what is measured is kept and counts
    asked.clear()
    transfer_table(source, target, blocks, 18)
    assert len(set(asked)) == 3 and len(unmeasured(CostTable.load(target.folder / "latency_ms.csv"), operators)) == len(operators) - 18
    # and profiling replaces what was predicted
    asked.clear()
    profile_networks(target, blocks, 8)
    assert not asked
    table = profile_operators(target, operators)
    assert len(set(asked)) == len(operators) - 18 and {row.source for row in table.rows.values()} == {"measured"}
    assert not any(key.startswith("transfer") for key in CostTable.load(target.folder / "latency_ms.csv").facts)


def test_an_operator_that_the_target_cannot_run(
    tables: Callable[[str], DeviceTables], blocks: SearchSpace, source: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a bad row, whether the transfer measured it or profiling did in place of a prediction."""
    target = tables("cpu-2t")
    monkeypatch.setattr(profile, "measure", machine(target.fingerprint, target_price, []))
    transfer_table(source, target, blocks, 15)
    lost = unmeasured(CostTable.load(target.folder / "latency_ms.csv"), blocks.operators())[0]
    monkeypatch.setattr(profile, "measure", machine(target.fingerprint, target_price, [], broken=str(lost)))
    table = profile_operators(target, blocks.operators())
    assert lost not in table.rows and "SIGSEGV" in table.bad[lost]
    fresh = DeviceTables(target.root / "fresh", target.device, target.fingerprint)
    monkeypatch.setattr(profile, "measure", machine(target.fingerprint, target_price, [], broken="conv_bn_relu"))
    _, summary = transfer_table(source, fresh, blocks, 15)
    assert summary["bad"] and not set(summary["bad"]) & {str(op) for op in fresh.operators("latency_ms").rows}


def test_where_everything_is_measured_nothing_is_predicted(
    tables: Callable[[str], DeviceTables], blocks: SearchSpace, source: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tables("cpu-2t")
    monkeypatch.setattr(profile, "measure", machine(target.fingerprint, target_price, []))
    table, summary = transfer_table(source, target, blocks, 1000)
    assert summary["predicted"] == 0 and summary["left_out"] is None and {row.source for row in table.rows.values()} == {"measured"}


def test_what_cannot_be_learnt_from(
    tables: Callable[[str], DeviceTables], blocks: SearchSpace, source: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tables("cpu-2t")
    with pytest.raises(ConfigError, match="at least 5 measured operators, but --operators is 4"):
        transfer_table(source, target, blocks, 4)
    with pytest.raises(ConfigError, match="cpu-1t's own table"):
        transfer_table(source, tables("cpu-1t"), blocks)
    op = blocks.operators()[0]
    for change in (Row(1.0, source="modelled"), None):
        poor = CostTable(source.device, source.metric, source.fingerprint, dict(source.rows))
        del poor.rows[op]
        poor.rows |= {op: change} if change else {}
        with pytest.raises(TableError, match=f"no measured price of 1 operators of mobilenet_v2, e.g. {re.escape(str(op))}"):
            transfer_table(poor, target, blocks)
    energy = tables("cpu-1t").folder / "energy_mj.csv"
    CostTable("cpu-1t", "energy_mj", source.fingerprint, {op: Row(1.0)}).save(energy)
    with pytest.raises(TableError, match="holds energy_mj; a transfer needs a table of latency_ms"):
        load_source(str(energy), target.root)
    assert not target.folder.exists()
    monkeypatch.setattr(profile, "measure", machine(target.fingerprint, target_price, [], broken="mbconv"))
    poor = CostTable(source.device, source.metric, source.fingerprint, dict(source.rows))
    with pytest.raises(TableError, match="needs at least 5 operators measured on the target"):
        transfer_table(poor, target, blocks, 5)


# the command, for real


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `hwnas`."""
    monkeypatch.setattr("sys.argv", ["hwnas", *arguments])
    capfd.readouterr()
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, *capfd.readouterr()


@pytest.mark.slow
def test_a_search_on_a_transferred_table(
    tiny: Path, fixed_tables: Path, local_fingerprint: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the made-up table of one thread to two real ones: measured for real, then searched with, then profiled."""
    fingerprints = {"cpu-1t": local_fingerprint, "cpu-2t": {**local_fingerprint, "threads": "2"}}
    monkeypatch.setattr(profile, "fingerprint", lambda device: dict(fingerprints[device.name]))
    monkeypatch.setattr(profile, "Protocol", lambda: QUICK)
    code, out, err = run(
        capfd, monkeypatch, "table", "transfer", "cpu-1t", "cpu-2t", "tiny.yaml", "--operators", "8", "--networks", "8", "--json"
    )
    assert code == 0, err
    summary = json.loads(out)
    space = load_experiment("tiny.yaml").load_space()
    assert summary["measured"] == 8 and summary["predicted"] == len(space.operators()) - 8 and summary["networks"] == 8
    assert summary["left_out"]["n"] == 8 and summary["networks_left_out_error"] > 0
    path = next(tiny.glob("latency_tables/cpu-2t/*/latency_ms.csv"))
    assert sorted({row.source for row in CostTable.load(path).rows.values()}) == ["measured", "modelled"]
    code, out, err = run(capfd, monkeypatch, "table", "doctor", "cpu-2t", "tiny.yaml", "--again", "0", "--json")
    assert code == 1 and "modelled" in {finding["kind"] for finding in json.loads(out)["findings"]}
    code, out, err = run(capfd, monkeypatch, "search", "tiny.yaml", "device=cpu-2t", "trials=4", "final.members=1", "--json")
    assert code == 0 and json.loads(out)["members"], err
    code, out, err = run(capfd, monkeypatch, "profile", "cpu-2t", "tiny.yaml", "--json")
    assert code == 0 and json.loads(out)["measured_now"] == summary["predicted"], err
    assert {row.source for row in CostTable.load(path).rows.values()} == {"measured"}


def test_what_the_command_refuses(
    tiny: Path, local_fingerprint: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile, "fingerprint", lambda device: {**local_fingerprint, "threads": str(device.threads)})

    def refused(*arguments: str) -> str:
        code, _, err = run(capfd, monkeypatch, "table", "transfer", *arguments)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("hwnas: "), err
        return lines[0]

    assert "cpu-2t has no tables in" in refused("cpu-2t", "cpu-1t", "tiny.yaml")
    assert "cpu-1t's own table" in refused("cpu-1t", "cpu-1t", "tiny.yaml")
    assert "at least 5 measured operators" in refused("cpu-1t", "cpu-2t", "tiny.yaml", "--operators", "4")
    assert "did you mean" in refused("cpu-9t", "cpu-2t", "tiny.yaml")
    assert "did you mean" in refused("cpu-1t", "cpu-9t", "tiny.yaml")
    table = next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))
    whole = table.read_text(encoding="utf-8")
    table.write_text(whole[: len(whole) - 25], encoding="utf-8")
    assert "is not a row of a table" in refused("cpu-1t", "cpu-2t", "tiny.yaml")
    shutil.rmtree(table.parents[1])
    assert "cpu-1t has no tables in" in refused("cpu-1t", "cpu-2t", "tiny.yaml")
    assert not list(tiny.glob("latency_tables/cpu-2t"))
