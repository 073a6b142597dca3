"""Measuring: what fails in the worker costs one named row, what was measured is kept, drift lands on none.

A made-up backend comes in as a third party's would, through an entry point: its models are words that say what to do.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from hwnas import layers
from hwnas.device import Device
from hwnas.errors import DeviceError, PluginError
from hwnas.measure import REFERENCE, Measurement, Protocol, Visit, Worker, measure, steady_visits, usual_level
from hwnas.op import OpSpec
from hwnas.profile import reference_onnx
from hwnas.quick_onnx import quick_onnx

BACKEND = """
import os, signal, time

class Words:
    def __init__(self, device):
        pass

    def fingerprint(self):
        return {"runtime": "words"}

    def compile(self, model):
        word = model.decode()
        with open(os.environ["WORDS_LOG"], "a") as log:
            log.write("compile " + word + "\\n")
        if word == "crash at once":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "hang at once":
            time.sleep(1000)
        if word == "refuse":
            raise ValueError("not today\\nnor tomorrow")
        if word == "too large":
            raise MemoryError
        if word == "quit":
            os._exit(3)
        return Running(word)

class Running:
    def __init__(self, word):
        self.word, self.runs = word, 0

    def run(self):
        self.runs += 1
        later = self.runs > 6
        if later and self.word == "crash later":
            os.kill(os.getpid(), signal.SIGSEGV)
        if later and self.word == "hang later":
            time.sleep(1000)
        if later and self.word == "raise later":
            raise RuntimeError("tired")
        end = time.perf_counter() + 1e-4 * (int(self.word.split()[1]) if self.word.startswith("work") else 1)
        while time.perf_counter() < end:
            pass
"""
WORDS = Device(name="words", backend="words")
QUICK = Protocol(rounds=4, most_rounds=4, visit_ms=0.3, run_timeout_s=1.0, compile_timeout_s=1.0)


def install(package: Path, name: str, backend: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a backend where workers find it, as a third party would."""
    (package / f"{name}-0.dist-info").mkdir(parents=True)
    (package / f"{name}.py").write_text(code, encoding="utf-8")
    (package / f"{name}-0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n", encoding="utf-8")
    (package / f"{name}-0.dist-info" / "entry_points.txt").write_text(f"[hwnas.backends]\n{name} = {name}:{backend}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")])))


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the backend where workers find it; gives the file in which it says what it compiled."""
    install(tmp_path / "package", "words", "Words", BACKEND, monkeypatch)
    monkeypatch.setenv("WORDS_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def measured(*models: str, protocol: Protocol = QUICK, **more: object) -> Measurement:
    return measure({word: word.encode() for word in models}, WORDS, reference=b"reference", protocol=protocol, **more)  # type: ignore[arg-type]


def test_every_failure_has_its_name_and_the_other_models_are_measured(words: Path) -> None:
    bad = {
        "crash at once": "crashed the runtime (SIGSEGV)",
        "crash later": "crashed the runtime (SIGSEGV)",
        "hang at once": "gave no answer in 1 s",
        "hang later": "gave no answer in 1 s",
        "refuse": "ValueError: not today",
        "raise later": "RuntimeError: tired",
        "too large": "ran out of memory",
        "quit": "ended the worker process (exit code 3)",
    }
    good = ("work 1", "work 2", "work 4")
    found = measured(*bad, *good)
    assert found.failures == bad
    assert found.timings.keys() == set(good)
    lows = [found.timings[word].low_ms for word in good]
    np.testing.assert_allclose(lows, [0.1, 0.2, 0.4], rtol=0.3)
    for timing in found.timings.values():
        assert timing.low_ms <= timing.p50_ms <= timing.p90_ms and timing.error_ms >= 0 and timing.n >= 3 * QUICK.rounds
    assert found.halves.keys() == set(good)
    assert found.noise_floor() >= 0 and found.fingerprint["runtime"] == "words"


@pytest.mark.parametrize("reference", [b"refuse", b"crash at once"])
def test_a_device_that_cannot_run_the_reference(words: Path, reference: bytes) -> None:
    with pytest.raises(DeviceError, match="words cannot run the reference model: "):
        measure({"work": b"work 1"}, WORDS, reference=reference, protocol=QUICK)


def test_visits_of_a_killed_session_are_used_again(words: Path, tmp_path: Path) -> None:
    journal = tmp_path / "session.journal"
    seen = 0

    def stop(what: str, done: int, of: int) -> None:
        nonlocal seen
        seen = done
        if what == "round" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured("work 1", "work 2", journal=journal, progress=stop)
    assert seen == 7
    kept = journal.read_text(encoding="utf-8").splitlines()
    assert len(kept) == 1 + 7
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"round": 2, "mod')  # what a kill in the middle of a line leaves
    found = measured("work 1", "work 2", journal=journal)
    lines = journal.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept and len(lines) > len(kept)
    assert found.timings.keys() == {"work 1", "work 2"}
    again = measured("work 1", "work 2", journal=journal)
    assert journal.read_text(encoding="utf-8").splitlines() == lines
    assert again.timings == found.timings


def test_a_journal_of_another_protocol_is_not_used(words: Path, tmp_path: Path) -> None:
    journal = tmp_path / "session.journal"
    measured("work 1", journal=journal)
    before = journal.read_text(encoding="utf-8").splitlines()
    measured("work 1", protocol=Protocol(rounds=2, most_rounds=2, visit_ms=0.1), journal=journal)
    after = journal.read_text(encoding="utf-8").splitlines()
    assert after[0] != before[0] and len(after) < len(before)


def test_a_model_whose_bytes_changed_is_measured_again(words: Path, tmp_path: Path) -> None:
    journal = tmp_path / "session.journal"
    before = measured("work 1", journal=journal)
    found = measure({"work 1": b"work 5"}, WORDS, reference=b"reference", protocol=QUICK, journal=journal)
    assert found.timings["work 1"].low_ms > 2 * before.timings["work 1"].low_ms


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="no backend called 'none'"), Worker(Device(backend="none")):
        pass


def test_a_worker_is_gone_after_use(words: Path) -> None:
    with Worker(WORDS) as worker:
        process = worker._process
        assert process is not None and process.poll() is None
    assert process.poll() is not None
    assert not issubclass(PluginError, DeviceError)


def test_real_operators_in_onnx_runtime_and_garbage() -> None:
    small, large = (OpSpec("conv_bn", size, size, 16, 16, kernel=3) for size in (4, 64))
    models = {str(op): quick_onnx(layers.build(op), (op.c_in, 16, 16)) for op in (small, large)}
    start = time.monotonic()
    found = measure(
        {**models, "garbage": b"garbage"}, Device(backend="onnxruntime"), reference=reference_onnx(),
        protocol=Protocol(rounds=4, most_rounds=4, visit_ms=0.5),
    )  # fmt: skip
    assert time.monotonic() - start < 30
    assert found.failures.keys() == {"garbage"} and "no ONNX model" in found.failures["garbage"]
    assert found.timings[str(large)].low_ms > 2 * found.timings[str(small)].low_ms > 0


def test_the_level_is_the_state_of_most_visits_and_the_quicker_of_two_equals() -> None:
    assert usual_level([0.9, 0.91, 0.92, 1.25], 0.12) == 0.91
    assert usual_level([0.9, 1.25, 1.26, 1.27], 0.12) == 1.26
    assert usual_level([0.9, 0.9, 1.25, 1.25], 0.12) == 0.9


def test_steady_visits_lie_between_references_at_the_level() -> None:
    visits = []
    for state in (1.0, 1.0, 1.4, 1.4, 1.0, 1.0):
        visits += [Visit(REFERENCE, np.array([state, 2.0])), *(Visit(f"m{i}", np.array([3.0])) for i in range(2))]
    steady = steady_visits([*visits, Visit(REFERENCE, np.array([1.0]))], 1.02, 0.1)
    between = [steady[3 * i + 1 : 3 * i + 3].tolist() for i in range(6)]
    assert between == [[True] * 2, [False] * 2, [False] * 2, [False] * 2, [True] * 2, [True] * 2]
    assert steady_visits([Visit("m", np.array([1.0]))], 1.0, 0.1).all()


SLOWING = """
import numpy as np

class Slowing:
    def __init__(self, device):
        self.calls = 0

    def fingerprint(self):
        return {"runtime": "slowing"}

    def compile(self, model):
        return Running(self, model.decode())

class Running:
    def __init__(self, machine, word):
        self.machine, self.word = machine, word

    def run(self):
        pass

    def time(self, runs):
        self.machine.calls += 1
        slow = self.machine.calls % 60 >= 20
        factor = {"reference": 1.4, "bound": 1.05, "free": 1.8}[self.word] if slow else 1.0
        return np.full(runs, round(1e5 * factor), dtype=np.int64)
"""


def test_a_machine_with_two_states_is_measured_in_the_one_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "package", "slowing", "Slowing", SLOWING, monkeypatch)
    protocol = Protocol(rounds=6, most_rounds=60, reference_every=2, patience_s=0.5)
    models = {"bound": b"bound", "free": b"free"}

    def low(level_ms: float | None) -> tuple[float, list[float]]:
        found = measure(models, Device(backend="slowing"), reference=b"reference", protocol=protocol, level_ms=level_ms)
        return round(found.reference_ms, 9), [round(found.timings[key].low_ms, 9) for key in models]

    assert low(0.1) == (0.1, [0.1, 0.1])
    assert low(0.14) == (0.14, [0.105, 0.18])
    assert low(0.3)[0] in (0.1, 0.14)  # a state that never comes: this session's own
