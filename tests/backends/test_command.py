"""Programs that print milliseconds: what counts of what they print, and what they may do wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hwnas.config import load_device
from hwnas.device import Device, device_fingerprint, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.measure import Protocol, measure
from hwnas.profile import reference_onnx

MODEL = reference_onnx()


def device(*script: str, **options: object) -> Device:
    """A device whose program is this shell script, with the model's path as $1 and the number of runs as $2."""
    return Device(name="board", backend="command", options={"command": ["sh", "-c", *script, "sh", "{model}", "{runs}"], **options})


def times(script: str, runs: int = 3, **options: object) -> list[int]:
    return list(load_backend(device(script, **options)).compile(MODEL).time(runs))  # type: ignore[attr-defined]


def test_the_last_number_printed_is_the_mean_in_milliseconds() -> None:
    assert times("echo 7 warm-up runs; echo mean 1.5e-1 ms") == [150_000]
    assert times('echo "$2.5"') == [3_500_000]


def test_a_pattern_takes_one_number_a_run() -> None:
    script = 'for i in $(seq $2); do echo "run $i: 0.$i ms"; done; echo 99'
    assert times(script, pattern=r": (\S+) ms") == [100_000, 200_000, 300_000]


def test_without_a_placeholder_for_runs_the_program_decides_how_many() -> None:
    options = {"command": "sh -c 'echo 1; echo 2 # {model}'", "pattern": r"\d"}
    executable = load_backend(Device(backend="command", options=options)).compile(MODEL)
    assert list(executable.time(5)) == [1_000_000, 2_000_000]  # type: ignore[attr-defined]


def test_the_program_gets_the_model(tmp_path: Path) -> None:
    times(f'cp "$1" {tmp_path}/seen; echo 1')
    assert (tmp_path / "seen").read_bytes() == MODEL


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("echo done", {}, "sh must print milliseconds, but printed 'done'"),
        ("true", {}, "sh must print milliseconds, but printed nothing"),
        ("echo 3 us", {"pattern": "(.*) ms"}, "sh must print milliseconds that match '(.*) ms', but printed '3 us'"),
        ("echo fast ms", {"pattern": "(.*) ms"}, "sh must print milliseconds above 0 that match '(.*) ms', but printed 'fast'"),
        ("echo 0.0", {}, "above 0, but printed '0.0'"),
        ("echo -1", {}, "above 0, but printed '-1'"),
        ("echo 1e999", {}, "above 0, but printed '1e999'"),
        ("echo 1; echo 2", {"pattern": r"\d"}, "for each of 3 runs, or one for all, but printed 2"),
        ("echo loading; echo no such model >&2; exit 3", {}, "sh failed (exit code 3): no such model"),
        ("kill -9 $$", {}, "sh failed (exit code -9): it printed nothing"),
        ("sleep 60", {"timeout_s": 0.1}, "sh did not end in 0.1 s"),
    ],
)
def test_what_a_program_may_do_wrong(script: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(says)):
        times(script, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "command: field required"),
        ({"command": "true"}, "must hold {model}"),
        ({"command": "nosuchprogram {model}"}, "there is no program 'nosuchprogram' to run"),
        ({"command": "sh {model}", "pattern": "("}, "pattern must be a regular expression, but '(' is none"),
        ({"command": "sh {model}", "pattern": "(.)(.)"}, "pattern must have at most one group"),
        ({"command": "sh {model}", "timeout_s": 0}, "timeout_s: input should be greater than 0"),
        ({"command": "sh 'unclosed {model}"}, "command cannot be split into words"),
        ({"comand": "sh {model}"}, "did you mean 'command'"),
    ],
)
def test_devices_that_cannot_be_meant(options: dict[str, object], says: str) -> None:
    with pytest.raises((ConfigError, DeviceError), match=re.escape(says)):
        load_backend(Device(backend="command", options=options))


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="did not end"):
        times(f"sleep 60 & echo $! > {tmp_path}/pid; wait", timeout_s=0.5)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":  # dead; whoever adopted it has not looked yet
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the program's child lives on")


def test_a_bad_row_costs_itself_only(tmp_path: Path) -> None:
    script = 'grep -q garbage "$1" && exit 1; for i in $(seq $2); do echo 0.5; done'
    bad = MODEL + b"\x1a\x07garbage"  # a field that ONNX does not use
    found = measure(
        {"good": MODEL, "bad": bad}, device(script, pattern=r"\S+"), reference=MODEL,
        protocol=Protocol(rounds=2, most_rounds=2, visit_ms=1, fewest_runs=2),
    )  # fmt: skip
    assert found.timings["good"].low_ms == 0.5 and set(found.failures) == {"bad"}
    assert "sh failed (exit code 1)" in found.failures["bad"]


def test_another_build_of_the_program_or_its_script_is_another_fingerprint(tmp_path: Path) -> None:
    script = tmp_path / "bench.py"
    script.write_text("print(1)")
    made = Device(name="board", backend="command", options={"command": [sys.executable, str(script), "{model}"]})
    before = device_fingerprint(made, load_backend(made))
    script.write_text("print(2)")
    after = device_fingerprint(made, load_backend(made))
    assert before["runtime_version"] != after["runtime_version"]
    assert before["cpu"] == after["cpu"]


def test_a_program_that_drives_another_machine_names_it_instead_of_this_one() -> None:
    made = device("echo 1", target="Pixel 8, Android 16")
    found = device_fingerprint(made, load_backend(made))
    assert found["cpu"] == "Pixel 8, Android 16" and "cores" not in found and "governor" not in found


def test_the_example_reads_what_its_program_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "onnxruntime_perf_test"
    lines = "Session creation time cost: 0.127918 s\nAverage inference time cost: 144.871 ms\nTotal inference run time: 1.44916 s"
    program.write_text(f"#!/bin/sh\necho '{lines}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    executable = load_backend(load_device("command-example")).compile(MODEL)
    assert list(executable.time(10)) == [144_871_000]  # type: ignore[attr-defined]
