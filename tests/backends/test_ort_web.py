"""onnxruntime-web under node and in Chromium: it computes what ONNX Runtime computes, times itself, and goes when its worker goes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hwnas.backends import ort_web
from hwnas.backends.ort_web import ORTWeb, installed
from hwnas.config import load_device
from hwnas.device import Device, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.measure import Protocol, Worker, measure
from hwnas.profile import network_onnx, reference_onnx
from hwnas.space import load_space

needs_node = pytest.mark.skipif(None in map(shutil.which, ("node", "npm")), reason="node or npm is not installed")
HOSTS = ["node", pytest.param("chromium", marks=pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"))]


@pytest.fixture(scope="module")
def packages() -> Path:
    """The installed npm packages; where they cannot be had, nothing can be tried."""
    try:
        return installed()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=HOSTS)
def backend(request: pytest.FixtureRequest, packages: Path) -> ORTWeb:
    """The backend in each of its hosts, with a batch of 2."""
    made = load_backend(Device(name="web", backend="ort_web", batch=2, options={"host": request.param}))
    assert isinstance(made, ORTWeb)
    return made


def test_it_computes_what_onnx_runtime_computes(backend: ORTWeb) -> None:
    space = load_space("nasbench201", {"input_size": 16, "width": 8, "cells": 1})
    model = network_onnx(space, (3,) * 6, batch=2)
    images = np.random.default_rng(0).standard_normal((2, *space.input_shape), dtype=np.float32)
    (found,) = backend.compile(model).outputs({"input": images})
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(found, session.run(None, {"input": images})[0], rtol=1e-4, atol=1e-4)


def test_it_says_where_it_runs_and_times_itself(backend: ORTWeb) -> None:
    said = backend.fingerprint()
    pinned = json.loads((ort_web.WEB / "package-lock.json").read_text())["packages"]["node_modules/onnxruntime-web"]
    assert said["runtime_version"] == pinned["version"] and re.fullmatch(r"(node|Chromium) \d+\.\d[\d.]*", said["host"])
    executable = backend.compile(reference_onnx())
    executable.run()
    times = executable.time(5)
    assert times.shape == (5,) and times.dtype == np.int64 and (times > 1000).all()


def test_a_coarse_clock_times_several_inferences_together(backend: ORTWeb) -> None:
    executable = backend.compile(reference_onnx())
    step_ns = 1e6 * backend._host.ask("about")["step"]
    assert 0 < step_ns < 6000  # 5 us in an isolated page, finer in node
    repeats = backend._host.ask("repeats", executable._number)
    assert repeats * executable.time(20).max() > 50 * step_ns


def test_what_it_refuses_names_the_reason(backend: ORTWeb) -> None:
    with pytest.raises(DeviceError, match=r"onnxruntime-web refuses the model: .*protobuf parsing failed"):
        backend.compile(b"garbage")


@pytest.mark.parametrize("host", HOSTS)
def test_it_is_gone_when_its_worker_is_killed(host: str, packages: Path) -> None:
    with Worker(Device(name="web", backend="ort_web", options={"host": host})) as worker:
        process = worker._process
        assert process is not None
        children = _descendants(process.pid)
        assert children
        process.kill()
        process.wait()
        for _ in range(200):
            if not any(map(_alive, children)):
                return
            time.sleep(0.05)
    pytest.fail(f"still there: {[pid for pid in children if _alive(pid)]}")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid]
    for _ in range(8):
        found += [child for child, parent in parents.items() if parent in found and child not in found]
    return found[1:]


def test_a_node_that_dies_costs_one_model(packages: Path) -> None:
    made = load_backend(Device(backend="ort_web"))
    assert isinstance(made, ORTWeb) and isinstance(made._host, ort_web.Node)
    executable = made.compile(reference_onnx())
    made._host._process.kill()
    with pytest.raises(DeviceError, match="node ended in the middle of its work .exit code -9."):
        executable.run()


def test_two_threads(packages: Path) -> None:
    protocol = Protocol(rounds=2, most_rounds=2, visit_ms=1)
    found = measure({"net": reference_onnx()}, Device(backend="ort_web", threads=2), reference=reference_onnx(), protocol=protocol)
    assert not found.failures and found.timings["net"].low_ms > 0 and found.fingerprint["threads"] == "2"


def test_the_devices() -> None:
    assert load_device("web-wasm").backend == load_device("web-chromium").backend == "ort_web"
    assert load_device("web-chromium").options == {"host": "chromium"}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Leaves only these programs on the PATH, and an empty cache."""

    def only(*names: str) -> None:
        (tmp_path / "bin").mkdir()
        for name in names:
            found = shutil.which(name)
            assert found is not None
            (tmp_path / "bin" / name).symlink_to(found)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    return only


@needs_node
def test_without_npm(programs: Callable[..., None]) -> None:
    programs("node")
    with pytest.raises(DeviceError, match="needs 'npm', which is not on the PATH; install npm"):
        load_backend(Device(backend="ort_web"))


@needs_node
def test_without_node(programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    programs()
    monkeypatch.setattr(ort_web, "installed", lambda: Path("installed"))
    with pytest.raises(DeviceError, match="needs 'node', which is not on the PATH; install Node.js"):
        load_backend(Device(backend="ort_web"))
    with pytest.raises(DeviceError, match="needs 'chromium', which is not on the PATH; install Chromium, or say in the device's options"):
        load_backend(Device(backend="ort_web", options={"host": "chromium"}))


@needs_node
def test_an_unreachable_registry(programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(DeviceError) as caught:
        installed()
    assert (
        "npm cannot install onnxruntime-web" in str(caught.value) and "ECONNREFUSED" in str(caught.value) and "\n" not in str(caught.value)
    )
    assert list((tmp_path / "cache" / "hwnas").iterdir()) == []


@needs_node
def test_a_cache_that_cannot_be_written(programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    with pytest.raises(DeviceError, match="cannot be installed into /proc/hwnas/.*; set XDG_CACHE_HOME"):
        installed()


def test_a_browser_that_opens_no_page(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Browser 1.0 || exec sleep 60\n')
    browser.chmod(0o755)
    monkeypatch.setattr(ort_web, "PAGE_TIMEOUT_S", 0.5)
    with pytest.raises(DeviceError, match=f"{browser} did not open the page in 0.5 s"):
        load_backend(Device(backend="ort_web", options={"host": "chromium", "browser": str(browser)}))


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (Device(backend="ort_web", options={"host": "firefox"}), "host: input should be 'node' or 'chromium', but got 'firefox'"),
        (Device(backend="ort_web", precision="int8"), "runs fp32, but its precision is 'int8'"),
    ],
)
def test_devices_that_cannot_be_meant(device: Device, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_backend(device)


def test_the_lock_file_pins_every_package_by_its_hash() -> None:
    lock = json.loads((ort_web.WEB / "package-lock.json").read_text())
    assert lock["packages"][""]["dependencies"] == json.loads((ort_web.WEB / "package.json").read_text())["dependencies"]
    assert all(entry["integrity"].startswith("sha512-") for name, entry in lock["packages"].items() if name)
