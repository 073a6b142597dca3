"""Counters and the meter, on made-up sysfs trees whose answer is known, and a clock of their own."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hwnas.counters import Ina, Jetson, Meter, Nvml, Rapl, open_counter
from hwnas.device import Energy
from hwnas.errors import DeviceError

TOP_UJ = 262_143_328_850


class Machine:
    """A processor that draws `idle` W, and `inference_mj` more for every inference of `inference_s`, by a clock that it moves itself.

    Its counter is updated every `update_s`, and begins anew after `TOP_UJ`.
    """

    def __init__(self, root: Path, *, idle: float = 7.0, inference_mj: float = 2.0, inference_s: float = 2e-4, **more: float) -> None:
        self.idle, self.inference_mj, self.inference_s = idle, inference_mj, inference_s
        self.update_s, self.start_uj = more.get("update_s", 1e-3), more.get("start_uj", 123_456.0)
        self.now, self.drawn_uj, self.root = 0.0, 0.0, root
        for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram"), ("intel-rapl:1", "package-1")):
            (root / zone).mkdir(parents=True)
            (root / zone / "name").write_text(f"{name}\n", encoding="utf-8")
            (root / zone / "max_energy_range_uj").write_text(f"{TOP_UJ}\n", encoding="utf-8")
            (root / zone / "energy_uj").write_text("5\n", encoding="utf-8")
        self.pass_by(0.0)

    def clock(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        before, self.now = self.now, self.now + seconds
        self.drawn_uj += 1e6 * self.idle * seconds
        if seconds == 0 or math.floor(before / self.update_s) != math.floor(self.now / self.update_s):
            count = int(self.start_uj + self.drawn_uj) % TOP_UJ
            (self.root / "intel-rapl:0" / "energy_uj").write_text(f"{count}\n", encoding="utf-8")

    def run(self) -> None:
        self.drawn_uj += 1e3 * self.inference_mj
        self.pass_by(self.inference_s)

    def meter(self, seconds: float = 0.2) -> Meter:
        return Meter(Rapl(self.root), seconds, self.clock, self.pass_by)


def net_mj(meter: Meter, run: Callable[[], None]) -> float:
    """What one inference takes above idle."""
    idle, busy = meter.window(None), meter.window(run)
    return 1e3 * (busy.joules - idle.watts * busy.seconds) / busy.runs


@pytest.mark.parametrize(
    ("update_s", "inference_mj", "inference_s"),
    [(1e-3, 0.4, 5e-5), (1e-3, 90.0, 0.03), (0.02, 2.0, 1e-3), (0.1, 0.4, 1e-4), (0.1, 90.0, 0.03)],
)
def test_energy_of_an_inference_is_found_and_idle_power_taken_out(
    tmp_path: Path, update_s: float, inference_mj: float, inference_s: float
) -> None:
    machine = Machine(tmp_path, inference_mj=inference_mj, inference_s=inference_s, update_s=update_s)
    meter = machine.meter()
    assert meter.interval_s == pytest.approx(update_s, rel=0.25)
    assert meter.window(None).watts == pytest.approx(machine.idle, rel=0.01)
    window = meter.window(machine.run)
    assert window.seconds >= max(0.2, 20 * 0.75 * update_s) and window.runs == pytest.approx(window.seconds / inference_s, rel=0.01)
    assert net_mj(meter, machine.run) == pytest.approx(inference_mj, rel=0.02)


@pytest.mark.parametrize("before_the_top_uj", [1.0, 4e5, 2e6, 4e6])
def test_a_counter_that_begins_anew_in_the_middle(tmp_path: Path, before_the_top_uj: float) -> None:
    machine = Machine(tmp_path, start_uj=TOP_UJ - before_the_top_uj)
    assert net_mj(machine.meter(), machine.run) == pytest.approx(2.0, rel=0.02)
    assert machine.drawn_uj > before_the_top_uj


def test_domains_are_chosen_by_name_and_packages_are_added(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    both, first = Rapl(tmp_path), Rapl(tmp_path, "package-0")
    assert (both.name, first.name, Rapl(tmp_path, "dram").name) == ("rapl package-0 package-1", "rapl package-0", "rapl dram")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text(f"{5 + 3_000_000}\n", encoding="utf-8")
    machine.pass_by(1.0)
    assert first.joules() == pytest.approx(7.0) and both.joules() == pytest.approx(10.0)


def refused(call: Callable[[], object], *says: str) -> None:
    with pytest.raises(DeviceError) as caught:
        call()
    assert "\n" not in str(caught.value) and all(words in str(caught.value) for words in says), caught.value


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    refused(lambda: Rapl(tmp_path / "none"), "none has no zones intel-rapl:*", "`energy.source`")
    Machine(tmp_path)
    refused(lambda: Rapl(tmp_path, "drma"), "no domain 'drma'", "did you mean 'dram'", "package-0")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("many\n", encoding="utf-8")
    refused(lambda: Rapl(tmp_path), "energy_uj must hold a number, but holds 'many'")
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    refused(lambda: Rapl(tmp_path), "cannot read", "energy_uj: No such file")
    refused(lambda: open_counter(Energy()), "'modelled' is computed, not counted")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_counter_that_may_not_be_read(open_folder: Path) -> None:
    Machine(open_folder)
    counter = Rapl(open_folder)
    for file in open_folder.glob("*/energy_uj"):
        file.chmod(0o400 if os.geteuid() == 0 else 0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        refused(lambda: Rapl(open_folder), "energy_uj may not be read by this user", "sudo chmod a+r")
        refused(counter.joules, "energy_uj may not be read by this user", "sudo chmod a+r")
    finally:
        os.seteuid(user)


def test_a_counter_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "PATIENCE_S", 0.2)
    machine = Machine(tmp_path)
    meter = machine.meter()
    refused(lambda: Meter(Rapl(tmp_path, "dram"), 0.5, machine.clock, machine.pass_by), "rapl dram has not moved in 0.2 s")
    machine.update_s = math.inf
    refused(lambda: meter.window(machine.run), "has not moved")
    machine.update_s = 1e-3
    assert net_mj(meter, machine.run) == pytest.approx(2.0, rel=0.02)


class Rail:
    """A board whose INA sensor says `busy` W after an inference and `idle` W after a pause."""

    def __init__(self, folder: Path, idle: float, busy: float, *, product: bool = False) -> None:
        self.folder, self.idle, self.busy, self.product, self.now = folder, idle, busy, product, 0.0
        self.say(idle)

    def say(self, watts: float) -> None:
        volts = 5.0
        files = {"curr2_input": 1e3 * watts / volts, "in2_input": 1e3 * volts} if self.product else {"power1_input": 1e6 * watts}
        for name, value in files.items():
            (self.folder / name).write_text(f"{value:.0f}\n", encoding="utf-8")

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.say(self.idle)

    def run(self) -> None:
        self.now += 4e-3
        self.say(self.busy)


@pytest.mark.parametrize("product", [False, True])
def test_a_rail_is_integrated(tmp_path: Path, product: bool) -> None:
    rail = Rail(tmp_path, 1.5, 4.0, product=product)
    counter = Ina(str(tmp_path), 2 if product else 1, rail.clock)
    meter = Meter(counter, 0.1, rail.clock, rail.sleep)
    assert net_mj(meter, rail.run) == pytest.approx(1e3 * (4.0 - 1.5) * 4e-3, rel=1e-3)


def test_a_rail_that_is_not_there(tmp_path: Path) -> None:
    for name in ("hwmon0", "hwmon1"):
        (tmp_path / name).mkdir()
    refused(lambda: Ina(""), "must name one folder of an INA sensor", "'' names 0")
    refused(lambda: Ina(str(tmp_path / "hwmon*")), "names 2")
    refused(lambda: Ina(str(tmp_path / "hwmon0"), 3), "neither power3_input nor both curr3_input and in3_input", "`energy.index`")
    (tmp_path / "hwmon1" / "power1_input").write_text("250000\n", encoding="utf-8")
    counter = open_counter(Energy(source="ina", path=str(tmp_path / "*1")))
    assert isinstance(counter, Ina) and counter.watts() == 0.25


class FakeGPUs:
    """Zeus's manager of GPUs, as far as it is used: one GPU that counts 1500 mJ more at every reading."""

    def __init__(self) -> None:
        self.count = 10_000

    def __len__(self) -> int:
        return 1

    def get_name(self, index: int) -> str:
        return ["H100"][index]

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return True

    def get_total_energy_consumption(self, index: int) -> int:
        self.count += 1500
        return self.count


def fake_zeus(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    for name in ("zeus", "zeus.device", "zeus.device.soc"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"zeus.device.{name.replace('_', '.')}", module)


def test_a_gpu_is_read_through_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_zeus(monkeypatch, gpu=SimpleNamespace(get_gpus=FakeGPUs))
    counter = open_counter(Energy(source="nvml"))
    assert counter.name == "nvml H100 #0" and counter.joules() - counter.joules() == pytest.approx(-1.5)
    refused(lambda: Nvml(3), "there is no GPU 3 here, but 1")
    monkeypatch.setattr(FakeGPUs, "supports_get_total_energy_consumption", lambda self, index: False)
    refused(Nvml, "no energy counter (Volta")

    def fails() -> None:
        raise RuntimeError("NVML unavailable.\nmore")

    fake_zeus(monkeypatch, gpu=SimpleNamespace(get_gpus=fails))
    refused(Nvml, "counts no energy here (NVML unavailable)", "driver")


def test_a_jetson_is_read_through_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Board:
        def get_available_metrics(self) -> set[str]:
            return {"cpu_energy_mj", "total_energy_mj"}

        def get_total_energy_consumption(self) -> object:
            return SimpleNamespace(total_energy_mj=2500.0, cpu_energy_mj=500.0)

    fake_zeus(monkeypatch, soc_jetson=SimpleNamespace(Jetson=Board))
    assert Jetson().joules() == 2.5 and open_counter(Energy(source="jetson", domain="cpu")).joules() == 0.5
    refused(lambda: Jetson("gpu"), "no rail 'gpu'", "cpu, total")


def test_zeus_has_what_is_used_of_it() -> None:
    gpu = pytest.importorskip("zeus.device.gpu", reason="counters of NVIDIA hardware need the extra `energy`")
    from zeus.device.soc import jetson

    for name in ("get_name", "supports_get_total_energy_consumption", "get_total_energy_consumption"):
        assert callable(getattr(gpu.GPUs, name))
    assert callable(jetson.Jetson.get_available_metrics) and callable(jetson.Jetson.get_total_energy_consumption)
    assert {"cpu_energy_mj", "gpu_energy_mj", "total_energy_mj"} <= set(jetson.JetsonMeasurement.__dataclass_fields__)
    if not Path("/etc/nv_tegra_release").exists():
        refused(Jetson, "no power rails of a Jetson here")


@pytest.mark.parametrize("source", ["nvml", "jetson"])
def test_without_zeus_it_says_how_to_get_it(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    for name in [name for name in sys.modules if name.startswith("zeus.")]:
        monkeypatch.delitem(sys.modules, name)
    refused(lambda: open_counter(Energy.model_validate({"source": source})), "through Zeus", "pip install 'hwnas[energy]'")
