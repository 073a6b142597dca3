"""The devices that come with hwnas: each file is right, listed without importing a runtime, and a wrong one is refused in a sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hwnas import cli, plugins
from hwnas.config import available, load_device, parse
from hwnas.device import Device

LISTED = {entry.name: entry for entry in plugins.listing("backends")}
RUNTIMES = {"onnx", "onnxruntime", "openvino", "torch"}


@pytest.mark.parametrize("name", available("devices"))
def test_its_backend_knows_its_precision_and_options(name: str) -> None:
    device = load_device(name)
    assert device.name == name and device.description
    assert device.backend in LISTED
    if not LISTED[device.backend].missing:
        assert device.precision in LISTED[device.backend].precisions
        plugins.options("backends", device.backend, device.options)


@pytest.mark.parametrize(
    ("name", "backend", "precision"),
    [("openvino-cpu", "openvino", "fp32"), ("cpu-int8", "onnxruntime", "int8"), ("torch-cpu", "torch", "fp32")],
)
def test_what_they_are(name: str, backend: str, precision: str) -> None:
    device = load_device(name)
    assert (device.backend, device.precision, device.threads, device.batch, device.options) == (backend, precision, 1, 1, {})


def test_listed_without_importing_a_runtime() -> None:
    script = (
        "import sys; from hwnas import cli; cli.app(['devices', '--json'], standalone_mode=False); "
        f"print(sorted({RUNTIMES} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    rows = {row["name"]: row for row in json.loads(ran.stdout)}
    assert {"cpu-1t", "cpu-int8", "openvino-cpu", "torch-cpu"} <= rows.keys()
    assert rows["cpu-int8"]["summary"].endswith("[onnxruntime, int8]") and rows["cpu-int8"]["missing"] == []


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plugins, "_importable", lambda package: package != "openvino")
    cli.app(["devices", "--json"], standalone_mode=False)
    rows = {row["name"]: row["missing"] for row in json.loads(capsys.readouterr().out)}
    assert rows["openvino-cpu"] == ["openvino"] and rows["torch-cpu"] == []
    monkeypatch.setenv("PATH", "")
    cli.app(["devices", "--json"], standalone_mode=False)
    rows = {row["name"]: row["missing"] for row in json.loads(capsys.readouterr().out)}
    assert rows["web-wasm"] == ["npm", "node"] and rows["web-chromium"] == ["npm", "chromium"]


TEXT = (Path(__file__).parents[1] / "docs" / "backends.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_the_page_names_every_option_and_precision(name: str) -> None:
    (row,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, _, precisions, options, _ = row.split("|")
    assert tuple(re.findall(r"`(\w+)`", precisions)) == LISTED[name].precisions
    if not LISTED[name].missing:
        known = plugins.options("backends", name, {})
        assert list(known) == re.findall(r"`(\w+)` \(", options)


def test_the_page_s_devices_are_devices() -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        device = parse(Device, yaml.safe_load(block), "docs/backends.md")
        plugins.options("backends", device.backend, device.options)


GOOD = {"backend": "onnxruntime", "threads": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"options": {"provider": "CUDAExecutionProvidr"}}, ["'CUDAExecutionProvidr'", "did you mean 'CUDAExecutionProvider'"]),
        ({"options": {"provider": "CoreMLExecutionProvider"}}, ["has no CoreMLExecutionProvider", "macOS"]),
        ({"options": {"allow_fallbak": True}}, ["'allow_fallbak'", "did you mean 'allow_fallback'"]),
        ({"backend": "torch", "options": {"target": "gpu"}}, ["target", "'gpu'"]),
        ({"backend": "openvno"}, ["'openvno'", "did you mean 'openvino'"]),
        ({"precision": "bf16"}, ["fp32, fp16, int8", "'bf16'"]),
        ({"backend": "torch", "precision": "int8"}, ["fp32, fp16, bf16", "'int8'"]),
        ({"precision": "int4"}, ["precision", "'int4'"]),
        ({"threads": 0}, ["threads", "greater than or equal to 1", "0"]),
        ({"threads": "all"}, ["threads", "'all'"]),
        ({"backend": "openvino", "threads": 999}, ["threads is 999", "lower it"]),
    ],
)
def test_a_wrong_device_is_refused_in_one_sentence(
    change: dict[str, object], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({**GOOD, **change}), encoding="utf-8")
    arguments = ["profile", "mine.yaml", "quickstart", "--tables", "tables", "space.stages=[{widths: [4]}]"]
    monkeypatch.setattr(sys, "argv", ["hwnas", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capfd.readouterr()
    lines = [line for line in out.err.splitlines() if line.startswith("hwnas: ")]
    assert ended.value.code == 2 and "Traceback" not in out.err and len(lines) == 1, out.err
    assert all(word in lines[0] for word in says), lines[0]
    assert not list(Path("tables").rglob("*.csv"))
