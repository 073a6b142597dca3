"""Measured energy, end to end: a made-up runtime whose inferences add known energies to a made-up processor's counter."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hwnas import plugins, resources
from hwnas.device import Device
from hwnas.energy import measure_energy, require_counter
from hwnas.errors import DeviceError, TableError
from hwnas.measure import Protocol
from hwnas.op import OpSpec
from hwnas.profile import DeviceTables, count_energy, model_energy, paper_costs, profile_operators
from hwnas.space import SearchSpace
from hwnas.table import CostTable, Row
from tests.sshd import SSHD, server

IDLE_W = 3.0
MJ_PER_CONVOLUTION = 0.5
BACKEND = """
import os
from types import SimpleNamespace
from hwnas import counters

class Joules:
    # an inference takes 0.2 ms and as many mJ as its word says, or as many halves as its ONNX graph has convolutions; time takes 3 W.
    # the time is one that this machine moves itself, so that a busy test machine changes nothing
    def __init__(self, device, *, root: str):
        self.counter, self.now, self.drawn_uj = os.path.join(root, "intel-rapl:0", "energy_uj"), 0.0, 0.0
        counters.time = SimpleNamespace(monotonic=lambda: self.now, sleep=self.pass_by)

    def pass_by(self, seconds):
        before, self.now = self.now, self.now + seconds
        self.drawn_uj += 3e6 * seconds
        if int(before * 1e3) != int(self.now * 1e3):
            with open(self.counter, "w") as file:
                file.write("%d" % (self.drawn_uj % 262143328850))

    def draw(self, mj):
        self.drawn_uj += 1e3 * mj
        self.pass_by(2e-4)

    def fingerprint(self):
        return {"runtime": "joules"}

    def compile(self, model):
        if model.startswith(b"draw"):
            return Running(self, float(model.split()[1]), b"crash" in model)
        import onnx
        nodes = onnx.load_from_string(model).graph.node
        return Running(self, 0.5 * sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in nodes), False)

class Running:
    def __init__(self, machine, mj, crashes):
        self.machine, self.mj, self.crashes, self.runs = machine, mj, crashes, 0

    def run(self):
        self.runs += 1
        if self.crashes and self.runs > 20:
            os._exit(4)
        self.machine.draw(self.mj)
"""
QUICK = Protocol(rounds=2, most_rounds=2, visit_ms=0.3)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device of the made-up runtime, with a made-up powercap tree."""
    package, root = tmp_path / "package", tmp_path / "powercap"
    (package / "joules-0.dist-info").mkdir(parents=True)
    (package / "joules.py").write_text(BACKEND, encoding="utf-8")
    (package / "joules-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: joules\nVersion: 0\n", encoding="utf-8")
    (package / "joules-0.dist-info" / "entry_points.txt").write_text("[hwnas.backends]\njoules = joules:Joules\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")])))
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")):
        (root / zone).mkdir(parents=True)
        for file, content in (("name", name), ("energy_uj", "0"), ("max_energy_range_uj", "262143328850")):
            (root / zone / file).write_text(f"{content}\n", encoding="utf-8")
    energy = {"source": "rapl", "path": str(root), "seconds": 0.1, "repeats": 3}
    return Device.model_validate({"name": "metered", "backend": "joules", "options": {"root": str(root)}, "energy": energy})


def with_energy(device: Device, **changes: Any) -> Device:
    return Device.model_validate(device.model_dump() | {"energy": device.energy.model_dump() | changes})


def test_energy_above_idle_and_its_spread(device: Device) -> None:
    models = {"small": b"draw 0.5", "large": b"draw 4", "bad": b"draw 1 crash"}
    found = measure_energy(models, device, reference=b"draw 1", protocol=QUICK)
    assert found.failures == {"bad": "ended the worker process (exit code 4)"}
    assert found.draws["small"].mj == pytest.approx(0.5, rel=0.03) and found.draws["large"].mj == pytest.approx(4.0, rel=0.03)
    assert found.idle_watts == pytest.approx(IDLE_W, rel=0.03) and found.counter == "rapl package-0"
    assert all(draw.n > 1000 and 0 <= draw.error_mj < 0.05 * draw.mj for draw in found.draws.values())


def test_windows_of_a_killed_session_are_used_again(device: Device, tmp_path: Path) -> None:
    journal = tmp_path / "energy.journal"
    models = {"small": b"draw 0.5", "large": b"draw 4"}

    def stop(what: str, done: int, of: int) -> None:
        if what == "energy" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_energy(models, device, reference=b"draw 1", journal=journal, progress=stop)
    kept = journal.read_text(encoding="utf-8").splitlines()
    assert len(kept) == 1 + 3
    found = measure_energy(models, device, reference=b"draw 1", journal=journal)
    lines = journal.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == kept and len(lines) == 1 + 6
    again = measure_energy(models, device, reference=b"draw 1", journal=journal)
    assert again.draws == found.draws and math.isnan(again.idle_watts)


@pytest.mark.skipif(SSHD is None, reason="there is no sshd here; Debian's package is openssh-server")
def test_a_remote_counter_is_gone_on_with_after_a_cut(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("asyncssh")
    monkeypatch.setattr(plugins, "names", lambda kind: ["joules"])
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "package"} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    with server(tmp_path / "sshd") as far:
        there = device.model_copy(update={"remote": far.remote(python=str(python))})

        def cut(what: str, done: int, of: int) -> None:
            if what == "energy" and done == 2:
                far.cut()

        found = measure_energy({"a": b"draw 0.5", "b": b"draw 4"}, there, reference=b"draw 1", progress=cut)
    assert found.failures == {}
    assert found.draws["a"].mj == pytest.approx(0.5, rel=0.03) and found.draws["b"].mj == pytest.approx(4.0, rel=0.03)


def test_operators_are_measured_and_never_mixed(device: Device, diamond: SearchSpace, tmp_path: Path) -> None:
    tables = DeviceTables.here(tmp_path / "tables", device)
    operators = diamond.operators()
    modelled = dataclasses.replace(tables, device=with_energy(device, source="modelled"))
    model_energy(modelled, operators)
    path = tables.folder / "energy_mj.csv"
    assert {row.source for row in CostTable.load(path).rows.values()} == {"modelled"}
    with pytest.raises(TableError, match="the energy of 6 operators .* is not known on metered by 'rapl'; run `hwnas profile metered"):
        tables.energy(diamond)

    profile_operators(tables, operators, protocol=QUICK)
    table = CostTable.load(path)
    assert {row.source for row in table.rows.values()} == {"measured"} and table.rows.keys() == set(operators)
    for op, row in table.rows.items():
        weighted = op.kind in ("conv_bn", "classifier")
        assert row.price == pytest.approx(MJ_PER_CONVOLUTION * weighted, abs=0.02), op
        assert row.error >= 0 and row.n > 1000 and math.isnan(row.p50)
    assert table.facts["energy source"] == "rapl" and table.facts["energy counter"] == "rapl package-0"
    assert float(table.facts["idle W"]) == pytest.approx(IDLE_W, rel=0.03)
    assert "energy_mj" not in paper_costs(diamond, device)
    arch = (2, 1)
    assert float(tables.energy(diamond).of([arch])[0]) == pytest.approx(sum(table.price(op) for op in diamond.lower(arch)))
    before = path.read_bytes()
    profile_operators(tables, operators, protocol=QUICK)
    assert path.read_bytes() == before and not list(tables.folder.glob("*.journal"))

    with pytest.raises(TableError, match="energies of the source 'rapl', which do not mix with 'modelled'.*move the file away"):
        model_energy(modelled, operators)
    another, (root,) = OpSpec("conv_bn", 2, 2, 8, 8, kernel=3), device.options.values()
    (Path(root) / "intel-rapl:0" / "name").write_text("psys\n", encoding="utf-8")
    psys = dataclasses.replace(tables, device=with_energy(device, domain="psys"))
    with pytest.raises(TableError, match="was counted by 'rapl package-0', which does not mix with 'rapl psys'"):
        count_energy(psys, [another])
    assert path.read_bytes() == before


def test_a_counter_that_cannot_be_read_is_said_before_anything_is_measured(device: Device, diamond: SearchSpace, tmp_path: Path) -> None:
    tables = DeviceTables.here(tmp_path / "tables", with_energy(device, domain="psys"))
    with pytest.raises(DeviceError, match="no domain 'psys'; known: dram, package-0"):
        profile_operators(tables, diamond.operators(), protocol=QUICK)
    assert not tables.folder.exists()
    roofline = Device.model_validate(device.model_dump() | {"options": {"root": str(tmp_path / "gone")}, "energy": {"source": "rapl"}})
    with pytest.raises(DeviceError):
        require_counter(roofline)


def test_idle_power_of_the_model_takes_as_long_as_the_operator(device: Device, diamond: SearchSpace, tmp_path: Path) -> None:
    modelled = with_energy(device, source="modelled", idle_watts=2.0)
    tables = DeviceTables(tmp_path, modelled, {"runtime": "joules"})
    latency, operators = tables.operators("latency_ms"), diamond.operators()
    latency.add({op: Row(0.25) for op in operators}, tables.fingerprint)
    latency.save(tables.folder / "latency_ms.csv")
    assert "energy_mj" not in paper_costs(diamond, modelled)
    with pytest.raises(TableError, match="is not known"):
        tables.energy(diamond)
    model_energy(tables, operators)
    for op, row in tables.energies().rows.items():
        assert row.price == pytest.approx(resources.EnergyModel()(op) + 2.0 * 0.25) and row.source == "modelled"
    other = DeviceTables(tmp_path, with_energy(modelled, idle_watts=1.0), tables.fingerprint)
    with pytest.raises(TableError, match="is not known"):
        other.energy(diamond)  # rows of another model do not count


@pytest.mark.parametrize("page", ["energy.md", "remote.md"])
def test_the_examples_of_the_documentation_are_devices(page: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
    found = [Device.model_validate(yaml.safe_load(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert found and all(device.remote or device.energy for device in found)
