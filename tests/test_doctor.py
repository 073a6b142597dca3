"""The doctor finds what is wrong with a table, in ours and in public ones, and measures it again."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hwnas import cli, profile
from hwnas.config import load_device
from hwnas.doctor import (
    Finding,
    Limits,
    Line,
    absent,
    admit,
    cheaper_though_larger,
    drifted,
    examine,
    find_table,
    graphs_of,
    impossible,
    inversions,
    repair,
    too_wide,
    twins_apart,
)
from hwnas.errors import DeviceError, FingerprintError, TableError
from hwnas.measure import Measurement, Timing
from hwnas.op import OpSpec
from hwnas.profile import DeviceTables, profile_operators
from hwnas.space import SearchSpace
from hwnas.table import CostTable, Row


def line(name: str, price: float, error: float = 0.0, computation: str = "conv", **sizes: int) -> Line:
    return Line(name, computation, sizes, price, error)


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def test_prices_that_cannot_be() -> None:
    found = impossible([line("a", -0.1), line("b", math.nan), line("c", math.inf), line("d", 0.0)])
    assert [finding.operators for finding in found] == [("a",), ("b",), ("c",)] and set(kinds(found)) == {"price"}
    assert "-0.1" in found[0].text


def test_a_larger_operator_that_is_cheaper() -> None:
    small, middle, large = (line(name, price, 0.01, width=w) for name, price, w in (("s", 1.0, 8), ("m", 1.2, 16), ("l", 0.9, 32)))
    assert [(a.name, b.name) for a, b in inversions([small, middle, large])] == [("l", "s"), ("l", "m")]
    (found,) = cheaper_though_larger([small, middle, large])
    assert found.operators == ("l", "m") and found.numbers["pairs"] == 2 and "21.2 standard errors" in found.text


@pytest.mark.parametrize(
    "pair",
    [
        (line("s", 1.0, 0.1, width=8), line("l", 0.9, 0.1, width=16)),  # within the errors
        (line("s", 1.0, width=8), line("l", 0.995, width=16)),  # negligible
        (line("s", 1.0, width=8, kernel=5), line("l", 0.5, width=16, kernel=3)),  # neither is larger
        (line("s", 1.0, width=8), line("l", 0.5, computation="pool", width=16)),  # another computation
        (line("s", 1.0, width=8), line("l", 0.5, kernel=5)),  # other sizes are known of it
        (line("s", 1.0, width=8), line("l", -0.5, width=16)),  # no price
    ],
)
def test_what_need_not_be_dearer(pair: tuple[Line, Line]) -> None:
    assert not inversions(pair)


def test_twins_that_differ() -> None:
    found = twins_apart([line("a", 1.0, 0.01, width=8), line("b", 2.0, 0.01, width=8), line("c", 1.2, width=8), line("d", 9.0, width=16)])
    assert found[0].operators == ("b", "a", "c") and found[0].numbers["ratio"] == 2.0 and len(found) == 1
    assert not twins_apart([line("a", 1.0, 0.3, width=8), line("b", 2.0, 0.3, width=8)])
    assert not twins_apart([line("a", 1.0, width=8), line("b", 1.04, width=8)])
    assert twins_apart([line("a", 1.0, width=8), line("b", 1.04, width=8)], Limits(apart=0.03))


def test_wide_intervals_where_they_matter() -> None:
    rows = [line("a", 1.0, 0.3), line("b", 1.0, 0.1), line("free", 0.0, 0.001), line("c", 1.0)]
    assert [finding.operators for finding in too_wide(rows)] == [("a",)]
    assert len(too_wide(rows, Limits(negligible=0.0))) == 2


def test_drift_and_what_is_absent() -> None:
    before = {"a": line("a", 1.0, 0.01), "b": line("b", 1.0, 0.1), "c": line("c", 1.0)}
    now = {"a": line("a", 1.3, 0.01), "b": line("b", 1.3, 0.1), "c": line("c", 1.1)}
    assert [finding.operators for finding in drifted(before, now)] == [("a",)]
    (found,) = absent(["x", "a", "y", "x"], {"a"}, "the network")
    assert found.operators == ("x", "y") and "2 rows that the network needs" in found.text
    assert not absent(["a"], {"a"}, "it")


# our own tables


class Clock:
    """A made-up machine: a model takes a time that follows from its size, times `slow`; some models fail."""

    def __init__(self, fingerprint: dict[str, str]) -> None:
        self.fingerprint, self.slow, self.reference_ms, self.broken, self.asked = fingerprint, 1.0, 0.1, "", list[str]()

    def measure(self, models: Mapping[str, bytes], *_: Any, **__: Any) -> Measurement:
        self.asked += sorted({key.removesuffix(" long").removesuffix(" short") for key in models})
        failed = {key: "crashed the runtime (SIGSEGV)" for key in models if self.broken and key.startswith(self.broken)}
        times = {key: 1e-5 * len(model) * self.slow for key, model in models.items() if key not in failed}
        timings = {key: Timing(t, 1e-3 * t, t, t, 9) for key, t in times.items()}
        return Measurement(timings, failed, self.fingerprint, 0.0, self.reference_ms)


@pytest.fixture
def clock(local_fingerprint: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(dict(local_fingerprint))
    monkeypatch.setattr(profile, "measure", made.measure)
    monkeypatch.setattr(profile, "fingerprint", lambda device: dict(local_fingerprint))
    return made


@pytest.fixture
def path(clock: Clock, diamond: SearchSpace, tmp_path: Path) -> Path:
    """A healthy table of the diamond's operators."""
    tables = DeviceTables(tmp_path / "latency_tables", load_device("cpu-1t"), clock.fingerprint)
    profile_operators(tables, diamond.operators())
    clock.asked.clear()
    return tables.folder / "latency_ms.csv"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    changed = re.sub(old, new, text, count=1, flags=re.MULTILINE)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def test_a_healthy_table(path: Path, diamond: SearchSpace, clock: Clock) -> None:
    patient = admit("cpu-1t", path.parents[2])
    assert patient.path == path and patient.standing == "same"
    assert not examine(patient, diamond, again=3)
    assert len(clock.asked) == 3 and patient.reference == {"then_ms": 0.1, "now_ms": 0.1}
    assert not examine(admit(str(path), Path("nowhere")), diamond, again=0) and len(clock.asked) == 3


def test_all_wrong_lines_are_found_and_measured_again(path: Path, diamond: SearchSpace, clock: Clock) -> None:
    healthy = CostTable.load(path).rows
    edit(path, r"^(conv_bn:3-4:8x8:k3),[^,]*", r"\1,-0.5")
    edit(path, r"^(conv_bn:4-4:8x8),[^,]*", r"\1,nan")
    edit(path, r"^classifier:4-2.*\n", "")
    path.write_text(path.read_text() + "conv_bn:4-4:8x8:k3,0.5\nthis is none\n", encoding="utf-8")
    with pytest.raises(TableError, match="line"):
        CostTable.load(path)
    patient = admit(str(path), path.parents[2])
    findings = examine(patient, diamond, again=0)
    assert sorted(kinds(findings)) == ["line", "line", "line", "missing", "price"]
    wrong = {op for op in diamond.operators() if op.kind not in ("identity", "add")}
    assert {name for finding in findings for name in finding.operators} == {str(op) for op in wrong}
    before = path.read_text()
    fixed = repair(patient, findings)
    assert sorted(clock.asked) == sorted(fixed) and path.read_text() != before and "this is none" not in path.read_text()
    assert {op: row.price for op, row in CostTable.load(path).rows.items()} == {op: row.price for op, row in healthy.items()}
    assert not examine(patient, diamond, again=0)
    assert not list(path.parent.glob("*.journal"))


def test_rows_that_do_not_fit_together(path: Path, clock: Clock) -> None:
    table = CostTable.load(path)
    large = OpSpec("conv_bn", 4, 4, 8, 8, kernel=3)
    smaller = OpSpec("conv_bn", 4, 4, 8, 8)
    table.rows[large] = Row(table.rows[smaller].price / 2, 1e-6, n=9)
    table.rows[OpSpec("classifier", 4, 2, 8, 8, stride=8)] = Row(0.5, 0.4, n=9)
    table.bad[OpSpec("relu", 4, 4, 8, 8)] = "crashed the runtime"
    table.facts = {"reference ms": "0.1"}
    table.save(path)
    patient = admit("cpu-1t", path.parents[2])
    findings = examine(patient, again=0)
    assert sorted(kinds(findings)) == ["bad", "monotone", "undocumented", "wide"]
    fixed = repair(patient, findings)
    assert fixed[str(large)][0] < fixed[str(large)][1] and not patient.table.bad
    assert not examine(admit("cpu-1t", path.parents[2]), again=0)


def test_operators_that_are_the_same_computation_are_twins(path: Path) -> None:
    """Two spaces may call a head by two names: global pooling and a linear layer compute the same whatever the kernel is said to be."""
    table = CostTable.load(path)
    head = OpSpec("classifier", 4, 2, 8, 8, stride=8)
    same, other = OpSpec("classifier", 4, 2, 8, 8, kernel=8, stride=8), OpSpec("bn_relu_classifier", 4, 2, 8, 8, stride=8)
    price = table.rows[head].price
    table.rows |= {same: Row(1.5 * price, 1e-3 * price), other: Row(1.5 * price, 1e-3 * price)}
    table.save(path)
    (found,) = examine(admit("cpu-1t", path.parents[2]), again=0)
    assert found.kind == "twins" and found.operators == (str(same), str(head)) and found.numbers["ratio"] == pytest.approx(1.5)
    unknown = OpSpec("squeeze", 4, 2, 8, 8)
    table.rows[unknown] = Row(1.0)
    assert str(unknown) not in {line.name for line in graphs_of(table)} and len(graphs_of(table)) == len(table.rows) - 1


def test_what_has_drifted_since(path: Path, clock: Clock) -> None:
    clock.slow = 1.5
    findings = examine(admit("cpu-1t", path.parents[2]), again=3)
    assert kinds(findings) == ["drift"] * 3
    clock.reference_ms = 0.15  # the whole machine is slower, which tables allow for
    assert not examine(admit("cpu-1t", path.parents[2]), again=3)
    clock.slow, clock.reference_ms = 2.0, 0.2
    (found,) = examine(admit("cpu-1t", path.parents[2]), again=3)
    assert found.kind == "drift" and "the whole machine runs at another speed" in found.text


def test_an_operator_that_fails_now_keeps_its_price(path: Path, clock: Clock) -> None:
    table = CostTable.load(path)
    op = OpSpec("conv_bn", 4, 4, 8, 8, kernel=3)
    clock.broken = str(op)
    patient = admit("cpu-1t", path.parents[2])
    assert not repair(patient, [Finding("wide", (str(op),), {}, "wide")])
    assert CostTable.load(path).rows == table.rows and not CostTable.load(path).bad
    assert any("cannot be measured any more" in finding.text for finding in examine(patient, again=5))


def test_networks_beside_the_operators(path: Path, fixed_tables: Path) -> None:
    shutil.copytree(next(fixed_tables.glob("cpu-1t/*/networks")), path.parent / "networks")
    networks = next((path.parent / "networks").glob("*.csv"))
    assert not examine(admit("cpu-1t", path.parents[2]), again=0)
    edit(networks, r"^# fingerprint cpu: .*$", "# fingerprint cpu: Z80")
    (found,) = examine(admit("cpu-1t", path.parents[2]), again=0)
    assert found.kind == "networks" and "another fingerprint" in found.text
    networks.write_text(networks.read_text() + "0-1,-3,0,0,0,1\n", encoding="utf-8")
    (found,) = examine(admit("cpu-1t", path.parents[2]), again=0)
    assert found.kind == "networks" and "not a measured network" in found.text


def elsewhere(path: Path, key: str, value: str) -> Path:
    """The table as if measured under another fingerprint, where it would stand then."""
    edit(path, rf"^# fingerprint {key}: .*$", f"# fingerprint {key}: {value}")
    shutil.move(path.parent, path.parents[1] / "0badcafe")
    return path.parents[1] / "0badcafe" / path.name


@pytest.mark.parametrize(
    ("key", "value", "standing", "says"),
    [
        ("cpu", "Z80", "other machine", "was measured elsewhere (cpu: 'Z80'"),
        ("threads", "7", "other settings", "was measured elsewhere (threads: '7'"),
        (
            "runtime_version",
            "0.9",
            "stale",
            "is stale: it was measured on this machine under another runtime version (runtime_v",
        ),
    ],
)
def test_tables_of_another_fingerprint(path: Path, clock: Clock, key: str, value: str, standing: str, says: str) -> None:
    moved = elsewhere(path, key, value)
    for name in ("cpu-1t", str(moved)):
        patient = admit(name, path.parents[2])
        assert patient.path == moved and patient.standing == standing
        (found,) = examine(patient)
        assert found.kind == "fingerprint" and says in found.text and "measure" in found.text
        with pytest.raises(FingerprintError, match="cannot be measured again here"):
            repair(patient, [])
    assert not clock.asked
    tables = DeviceTables.here(path.parents[2], load_device("cpu-1t"))
    assert ("stale" in tables.explain_absence()) == (standing == "stale")


def test_a_device_that_is_not_known_here(path: Path) -> None:
    edit(path, r"^# device: .*$", "# device: phone")
    patient = admit(str(path), path.parents[2])
    assert patient.standing is None
    assert kinds(examine(patient)) == ["fingerprint"]
    with pytest.raises(FingerprintError, match="phone"):
        repair(patient, [])
    patient.table.rows = {op: Row(row.price, row.error, source="imported") for op, row in patient.table.rows.items()}
    assert not examine(patient)


def test_which_table_is_meant(path: Path, clock: Clock) -> None:
    root = path.parents[2]
    with pytest.raises(DeviceError, match="did you mean"):
        find_table("cpu-3t", root)
    with pytest.raises(TableError, match="cpu-2t has no tables in .*hwnas profile cpu-2t"):
        find_table("cpu-2t", root)
    with pytest.raises(TableError, match="cannot read the table"):
        find_table("nowhere.csv", root)
    for folder, date in (("aaaaaaaa", "2020-01-01"), ("bbbbbbbb", "2021-01-01")):
        shutil.copytree(path.parent, root / "cpu-1t" / folder)
        edit(root / "cpu-1t" / folder / path.name, r"^# fact date: .*$", f"# fact date: {date}")
    assert find_table("cpu-1t", root)[0] == path
    shutil.rmtree(path.parent)
    assert find_table("cpu-1t", root)[0].parent.name == "bbbbbbbb"


def test_energy_is_not_measured(path: Path) -> None:
    patient = admit(str(path.with_name("energy_mj.csv")), path.parents[2])
    assert not examine(patient)
    with pytest.raises(TableError, match="holds energy_mj, which is not measured"):
        repair(patient, [])


def test_every_table_says_when_and_how_it_was_made(tmp_path: Path, clock: Clock) -> None:
    from hwnas.profile import profile_networks
    from hwnas.space import load_space
    from hwnas.table import NetworkTable

    tables = DeviceTables(tmp_path, load_device("cpu-1t"), clock.fingerprint)
    space = load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1})
    profile_operators(tables, space.operators())
    profile_networks(tables, space, 8)
    loaded = [CostTable.load(tables.folder / f"{metric}.csv") for metric in ("latency_ms", "energy_mj")]
    every: list[CostTable | NetworkTable] = [*loaded, NetworkTable.load(tables.networks_path(space))]
    for table in every:
        assert table.fingerprint == clock.fingerprint and table.fingerprint["runtime_version"]
        assert re.match(r"\d{4}-\d\d-\d\dT", table.facts["date"]) and any(key.startswith("protocol") for key in table.facts)
    before = (tables.folder / "energy_mj.csv").read_bytes()
    profile_operators(tables, space.operators())
    assert (tables.folder / "energy_mj.csv").read_bytes() == before


# the command


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `hwnas`."""
    monkeypatch.setattr("sys.argv", ["hwnas", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command(tiny: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    table = next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))
    profile_operators(DeviceTables(tiny / "other", load_device("cpu-1t"), clock.fingerprint), list(CostTable.load(table).rows))
    shutil.copy(next(tiny.glob("other/cpu-1t/*/latency_ms.csv")), table)
    shutil.rmtree(table.parent / "networks")
    code, out, _ = run(capsys, monkeypatch, "table", "doctor", "cpu-1t", "tiny.yaml", "--again", "0")
    assert code == 0 and "0 findings" in out, out
    edit(table, r"^(conv_bn:[^,]*),[^,]*", r"\1,-0.5")
    code, out, _ = run(capsys, monkeypatch, "table", "doctor", "cpu-1t", "tiny.yaml", "--json", "--again", "2")
    found = json.loads(out)
    assert code == 1 and [finding["kind"] for finding in found["findings"]] == ["price"] and found["fingerprint"] == "same"
    assert found["reference"]["now_ms"] == 0.1
    code, out, _ = run(capsys, monkeypatch, "table", "doctor", "cpu-1t", "tiny.yaml", "--fix", "--json")
    found = json.loads(out)
    assert code == 0 and not found["findings"] and [entry["before"] for entry in found["fixed"].values()] == [None]
    CostTable.load(table)
    code, out, _ = run(capsys, monkeypatch, "table", "doctor", "cpu-1t", "--again", "0")
    assert code == 0 and "0 findings" in out


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one sentence with which `hwnas` refuses."""
    code, _, err = run(capsys, monkeypatch, *arguments)
    lines = [text for text in err.splitlines() if text.strip() and not re.search(r"\d+/\d+ +\d+:\d\d:\d\d ", text)]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("hwnas: "), err
    return lines[0]


def test_what_the_command_refuses(tiny: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    table = next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))
    assert "did you mean" in refusal(capsys, monkeypatch, "table", "doctor", "cpu-9t")
    assert "cpu-2t has no tables" in refusal(capsys, monkeypatch, "table", "doctor", "cpu-2t")
    assert "cannot read the table" in refusal(capsys, monkeypatch, "table", "doctor", "nowhere/none.csv")
    assert "columns" in refusal(capsys, monkeypatch, "table", "doctor", str(next(tiny.glob("latency_tables/cpu-1t/*/networks/*.csv"))))
    assert "'nowhere'" in refusal(capsys, monkeypatch, "table", "doctor", "cpu-1t", "nowhere")
    whole = table.read_text(encoding="utf-8")
    table.write_text(whole[: whole.index("op,latency_ms") - 40], encoding="utf-8")  # cut in half within the header
    assert "holds no table" in refusal(capsys, monkeypatch, "table", "doctor", "cpu-1t")
    table.write_text(whole[: len(whole) - 200], encoding="utf-8")  # cut in half within a row
    code, out, _ = run(capsys, monkeypatch, "table", "doctor", "cpu-1t", "tiny.yaml", "--json", "--again", "0")
    assert code == 1 and {"line", "missing"} <= {finding["kind"] for finding in json.loads(out)["findings"]}
    table.write_text(whole.replace("# fingerprint cpu: ", "# fingerprint cpu: Z80 "), encoding="utf-8")
    before = table.read_bytes()
    assert "cannot be measured again here: it was measured elsewhere (cpu: 'Z80" in refusal(
        capsys, monkeypatch, "table", "doctor", str(table), "--fix"
    )
    assert table.read_bytes() == before and not clock.asked


# public tables


def fbnet_lines(prices: Any, names: list[str]) -> Iterator[Line]:
    """Lines of an FBNet table, one a layer and block: what the layer is, and the block's expansion."""
    shapes = [(16, 16, 112, 1), (16, 24, 112, 2), *[(24, 24, 56, 1)] * 3, (24, 32, 56, 2), *[(32, 32, 28, 1)] * 3, (32, 64, 28, 2)]
    shapes += [
        *[(64, 64, 14, 1)] * 3,
        (64, 112, 14, 1),
        *[(112, 112, 14, 1)] * 3,
        (112, 184, 14, 2),
        *[(184, 184, 7, 1)] * 3,
        (184, 352, 7, 1),
    ]
    for layer, (shape, row) in enumerate(zip(shapes, prices, strict=True), 1):
        for name, price in zip(names, row, strict=False):
            kernel, group, expansion = (int(part[1:]) for part in name.split("_")) if name != "skip" else (1, 1, 1)
            yield Line(f"{layer}:{name}", (*shape, kernel, group, name == "skip"), {"expansion": expansion}, price * 1e-3)


BLOCKS = ["k3_g1_e1", "k3_g2_e1", "k3_g1_e3", "k3_g1_e6", "k5_g1_e1", "k5_g2_e1", "k5_g1_e3", "k5_g1_e6", "skip"]
EXACT = Limits(negligible=0.0)


def layers(pairs: list[tuple[Line, Line]], larger: str, smaller: str) -> int:
    """In how many layers the one block is cheaper than the other."""
    blocks = [(a.name.split(":"), b.name.split(":")) for a, b in pairs]
    return len({a[0] for a, b in blocks if a[0] == b[0] and (a[1], b[1]) == (larger, smaller)})


def test_the_fbnet_table_of_one_cpu_is_noise(test_data: Path) -> None:
    """A wider block is cheaper than a narrower one in 9 (3x3) and 10 (5x5) of 22 layers, and identical layers are up to 2.5x apart."""
    prices = np.loadtxt(test_data / "luts" / "fbnet_araslanova_lookup_table.txt", skiprows=1)
    lines = list(fbnet_lines(prices, BLOCKS))
    pairs = inversions(lines, EXACT)
    assert (layers(pairs, "k3_g1_e6", "k3_g1_e3"), layers(pairs, "k5_g1_e6", "k5_g1_e3")) == (9, 10)
    apart = twins_apart(lines, EXACT)
    skips = [finding.numbers["ratio"] for finding in apart if "skip" in finding.operators[0]]
    assert len(apart) - len(skips) == 5 * 8
    assert max(finding.numbers["ratio"] for finding in apart) == pytest.approx(2.52, abs=0.01)
    assert max(skips) == pytest.approx(2.0, abs=0.01)


def test_the_fbnet_table_of_a_raspberry_pi_is_sound_but_lacks_skips(test_data: Path) -> None:
    """Nothing larger is cheaper; one set of twins is over 5 % apart; of 5,000 networks many skip where the table has no row."""
    layers_there = [row for row in json.loads((test_data / "luts" / "fbnet_jh88_lookup_table_pi.json").read_text()) if row]
    lines = list(fbnet_lines(layers_there, BLOCKS))
    assert not inversions(lines, EXACT)
    assert all(finding.numbers["ratio"] < 1.08 for finding in twins_apart(lines))
    there = {line.name for line in lines}
    networks = np.load(test_data / "fbnet_hw.npz")["ops"]
    keys = [[f"{layer}:{BLOCKS[op]}" for layer, op in enumerate(network, 1)] for network in networks]
    lacking = [network for network in keys if absent(network, there, "a network")]
    assert 0 < len(lacking) < len(keys)
    (found,) = absent((key for network in keys for key in network), there, "the 5,000 networks")
    assert found.operators and all(key.endswith("skip") for key in found.operators)


@pytest.mark.parametrize(
    ("metric", "cheaper"),
    [
        ("edgegpu_latency", 43), ("edgegpu_energy", 11), ("raspi4_latency", 0), ("pixel3_latency", 0), ("fpga_latency", 0),
        ("eyeriss_latency", 0),
    ],
)  # fmt: skip
def test_the_block_tables_of_hw_nas_bench(test_data: Path, metric: str, cheaper: int) -> None:
    """On the edge GPU many a larger block is cheaper; on phones and boards none by more than a percent of the median."""
    table = json.loads((test_data / "luts" / "hwnasbench_fbnet_blocks.json").read_text())[metric]
    lines = []
    for key, price in table.items():
        match = re.fullmatch(r"ConvBlock_H(\d+)_W\d+_Cin(\d+)_Cout(\d+)_exp(\d+)_kernel(\d+)_stride(\d+)_group(\d+)", key)
        if match:
            height, c_in, c_out, expansion, kernel, stride, group = map(int, match.groups())
            lines.append(Line(key, (height, c_in, c_out, stride, group), {"expansion": expansion, "kernel": kernel}, price))
    assert len(lines) == 192 and not impossible(lines)
    assert len(cheaper_though_larger(lines)) == cheaper


def test_tables_of_once_for_all_and_proxylessnas(test_data: Path) -> None:
    """They state their errors, and nothing larger is cheaper beyond them."""
    for file in ("ofa_note10_160", "ofa_note10_176", "ofa_note10_192", "ofa_note10_208", "ofa_note10_224", "proxylessnas_mobile_trim"):
        lines = []
        for key, row in yaml.safe_load((test_data / "luts" / f"{file}.yaml").read_text()).items():
            match = re.match(r"expanded_conv-input:(\w+)-output:(\w+)-expand:(\d+)-kernel:(\d+)-stride", key)
            spread = row["std"] if "std" in row else row["var"] ** 0.5
            sizes = {"expand": int(match[3]), "kernel": int(match[4])} if match else {}
            lines.append(Line(key, (match[1], match[2]) if match else key, sizes, row["mean"], spread / row["count"] ** 0.5))
        assert not impossible(lines) and not too_wide(lines) and not twins_apart(lines)
        assert not cheaper_though_larger(lines)


def test_the_runtime_model_of_single_path(test_data: Path) -> None:
    """In its first layer, and nowhere else, larger blocks are cheaper, e.g. 3x3 of expansion 6 (choice 1) than of 3: 3.945 and 3.984 ms."""
    model = json.loads((test_data / "luts" / "singlepath_pixel1_runtime_model.json").read_text())
    lines = [
        Line(f"{layer}:{choice}", layer, {"kernel": 3 + 2 * (int(choice) // 2), "expansion": (3, 6)[int(choice) % 2]}, price)
        for layer, choices in model.items()
        for choice, price in choices.items()
    ]
    assert {(a.name, b.name) for a, b in inversions(lines, EXACT)} == {("0:1", "0:0"), ("0:2", "0:0"), ("0:3", "0:0"), ("0:3", "0:1")}


def test_operators_of_nas_bench_201_on_18_devices(test_data: Path) -> None:
    """On three GPUs a 3x3 convolution is cheaper than a 1x1."""
    table = json.loads((test_data / "luts" / "nb201_ops_18_devices.json").read_text())
    found = set()
    for device in table["devices"]:
        prices = table[f"{device}_latency"]
        assert not impossible(Line(name, name, {}, price) for name, price in prices.items())
        convolutions = [Line(name, "conv", {"kernel": int(name[-1])}, prices[name]) for name in ("nor_conv_1x1", "nor_conv_3x3")]
        found |= {device for _ in cheaper_though_larger(convolutions)}
    assert found == {"edgegpu", "2080ti", "titanxp"}
