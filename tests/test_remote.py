"""Remote devices, against a real sshd on loopback: what the far end needs, what is copied, and connections cut in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas import cli, plugins, remote
from hwnas.device import Device, Remote
from hwnas.errors import ConnectionLostError, DeviceError, HwnasError, PluginError
from hwnas.measure import Measurement, Protocol, Worker, measure, open_worker
from hwnas.profile import reference_onnx
from hwnas.remote import RemoteWorker, modules_of, packed
from tests.sshd import SSHD, Proxy, Server, free_port, key_pair, server

pytest.importorskip("asyncssh", reason="remote devices need the extra `remote`")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="there is no sshd here; Debian's package is openssh-server")

WORDS = """
import os, signal, time

class Words:
    def __init__(self, device, *, log: str, factor: float = 1.0):
        self.log = log
        self.note("start %d" % os.getpid())

    def note(self, line):
        with open(self.log, "a") as file:
            file.write(line + "\\n")

    def fingerprint(self):
        return {"runtime": "words"}

    def compile(self, model):
        self.note("compile " + model.decode())
        if model == b"crash at once":
            os.kill(os.getpid(), signal.SIGSEGV)
        if model == b"refuse":
            raise ValueError("not today")
        if model == b"quit":
            os._exit(3)
        return Running(model.decode())

class Running:
    def __init__(self, word):
        self.word, self.runs = word, 0

    def run(self):
        self.runs += 1
        if self.runs > 6 and self.word == "hang later":
            time.sleep(1000)
        if self.runs > 2 and self.word == "cut the line":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        end = time.perf_counter() + 1e-4 * (int(self.word.split()[1]) if self.word.startswith("work") else 1)
        while time.perf_counter() < end:
            pass
"""
QUICK = Protocol(rounds=4, most_rounds=4, visit_ms=0.3, run_timeout_s=1.0, compile_timeout_s=5.0)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running sshd."""
    with server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def lean(tmp_path: Path) -> str:
    """An interpreter that has a backend `words` and numpy, but neither pydantic nor torch, and a broken hwnas of its own."""
    package = tmp_path / "package"
    (package / "words-0.dist-info").mkdir(parents=True)
    (package / "words.py").write_text(WORDS, encoding="utf-8")
    (package / "words-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: words\nVersion: 0\n", encoding="utf-8")
    (package / "words-0.dist-info" / "entry_points.txt").write_text("[hwnas.backends]\nwords = words:Words\n", encoding="utf-8")
    for name in ("pydantic", "torch", "yaml", "hwnas"):
        (package / f"{name}.py").write_text(f"raise ImportError('{name} is not here')\n", encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def words(far: Server, lean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose backend is there and not here, as a third party's package would be on both."""
    monkeypatch.setattr(plugins, "names", lambda kind: ["onnxruntime", "words"])
    return Device(
        name="far", backend="words", options={"log": str(tmp_path / "log")}, remote=far.remote(python=lean, folder=str(tmp_path / "far"))
    )


def at(device: Device, **changes: Any) -> Device:
    """The device with another `remote` section."""
    assert device.remote is not None
    return device.model_copy(update={"remote": Remote.model_validate(device.remote.model_dump() | changes)})


def log(device: Device) -> list[str]:
    return Path(device.options["log"]).read_text(encoding="utf-8").splitlines()


def measured(device: Device, *models: str, **more: Any) -> Measurement:
    given = {"protocol": QUICK, **more}
    return measure({word: word.encode() for word in models}, device, reference=b"reference", **given)


def ends(process: int) -> bool:
    """Whether the process is gone, or a zombie, within ten seconds: a killed one takes its time on a busy machine."""
    for _ in range(200):
        listed = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False).stdout
        if listed.strip()[:1] in ("", "Z"):
            return True
        time.sleep(0.05)
    return False


def test_a_worker_imports_nothing_heavy() -> None:
    names = {path.name for path in modules_of("onnxruntime")}
    assert {"worker.py", "device.py", "errors.py", "plugins.py", "counters.py", "onnxruntime.py"} <= names
    assert not names & {"measure.py", "profile.py", "layers.py", "space.py", "config.py", "remote.py"}
    assert packed(modules_of("onnxruntime")) == packed(modules_of("onnxruntime")) != packed(modules_of("words"))


@needs_sshd
def test_measures_as_the_machine_itself_would(far: Server) -> None:
    here = Device(name="far", backend="onnxruntime")
    there = here.model_copy(update={"remote": far.remote()})
    with Worker(here) as near, open_worker(there) as distant:
        assert isinstance(distant, RemoteWorker)
        assert distant.fingerprint == near.fingerprint
    protocol = Protocol(rounds=2, most_rounds=2, visit_ms=0.2)
    found = measure({"good": reference_onnx(), "bad": b"no model"}, there, reference=reference_onnx(), protocol=protocol)
    assert found.timings.keys() == {"good"} and "no ONNX model" in found.failures["bad"]
    assert 0 < found.timings["good"].low_ms <= found.timings["good"].p50_ms


@needs_sshd
def test_code_and_models_are_copied_once_and_suffice(words: Device) -> None:
    assert words.remote is not None
    folder = Path(words.remote.folder)

    def files() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}

    found = measured(words, "work 1", "work 3")
    assert found.timings["work 3"].low_ms == pytest.approx(3 * found.timings["work 1"].low_ms, rel=0.3)
    copied = files()
    assert len(list((folder / "models").iterdir())) == 3 and len(list((folder / "code").iterdir())) == 1
    measured(words, "work 1", "work 3")
    assert files() == copied
    damaged = next(path for path in copied if path.parent.name == "models" and path.read_bytes() == b"work 3")
    damaged.write_bytes(b"wo")
    assert measured(words, "work 1", "work 3").failures == {} and damaged.read_bytes() == b"work 3"


@needs_sshd
def test_models_that_cannot_be_kept(words: Device) -> None:
    assert words.remote is not None
    folder = Path(words.remote.folder)
    folder.mkdir()
    (folder / "models").write_text("in the way\n", encoding="utf-8")
    with RemoteWorker(words) as worker:
        for _ in range(2):
            with pytest.raises(DeviceError, match="cannot keep a model in .*models: .*make room there or change `folder`"):
                worker.request(("compile", "work 1", b"work 1"), 5.0)
        (folder / "models").unlink()
        assert worker.request(("compile", "work 1", b"work 1"), 5.0) > 0


@needs_sshd
def test_every_failure_has_its_name_and_nothing_is_left_running(words: Device, far: Server) -> None:
    bad = {
        "crash at once": "crashed the runtime (SIGSEGV)",
        "hang later": "gave no answer in 1 s",
        "refuse": "ValueError: not today",
        "quit": "ended the worker process (exit code 3)",
    }
    found = measured(words, *bad, "work 1", "work 2")
    assert found.failures == bad and found.timings.keys() == {"work 1", "work 2"}
    started = [int(line.split()[1]) for line in log(words) if line.startswith("start")]
    assert len(started) == 4 and all(ends(process) for process in started)


@needs_sshd
@pytest.mark.parametrize("how", ["session killed", "line dropped", "line silent"])
def test_a_cut_connection_goes_on_with_the_visit_in_hand(
    words: Device, far: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(remote, "KEEPALIVE_S", 0.5)
    proxy = Proxy(far.port)
    far.trust(proxy.port)
    journal = tmp_path / "session.journal"

    def cut(what: str, done: int, of: int) -> None:
        if what == "round" and done == 3:
            {"session killed": far.cut, "line dropped": proxy.drop, "line silent": proxy.hush}[how]()

    try:
        found = measured(at(words, port=proxy.port), "work 1", "work 2", journal=journal, progress=cut)
    finally:
        proxy.close()
    assert found.failures == {} and found.timings.keys() == {"work 1", "work 2"}
    started = [int(line.split()[1]) for line in log(words) if line.startswith("start")]
    assert len(started) == proxy.accepted == 2 and all(ends(process) for process in started)
    visits = Counter(json.loads(line)["model"].rpartition(" ")[0] for line in journal.read_text(encoding="utf-8").splitlines()[1:])
    assert visits["work 1"] == visits["work 2"] == QUICK.rounds  # none twice and none left out


@needs_sshd
def test_a_connection_that_stays_lost_is_an_error_and_the_journal_is_gone_on_with(
    words: Device, far: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.1))
    proxy = Proxy(far.port)
    far.trust(proxy.port)
    journal = tmp_path / "session.journal"

    def close(what: str, done: int, of: int) -> None:
        if what == "round" and done == 6:
            proxy.close()

    with pytest.raises(ConnectionLostError, match="was lost and could not be had again.*the same command goes on from here"):
        measured(at(words, port=proxy.port), "work 1", "work 2", journal=journal, progress=close)
    kept = journal.read_text(encoding="utf-8").splitlines()
    assert len(kept) >= 1 + 6
    found = measured(words, "work 1", "work 2", journal=journal)
    lines = journal.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept and len(lines) > len(kept) and found.failures == {}


@pytest.mark.slow
@needs_sshd
def test_a_model_that_cuts_the_connection_each_time_is_its_own_failure(words: Device) -> None:
    found = measured(words, "cut the line", "work 1")
    assert found.timings.keys() == {"work 1"} and "lost the connection to" in found.failures["cut the line"]


@needs_sshd
def test_another_machine_behind_the_same_name_is_refused(words: Device, far: Server) -> None:
    with RemoteWorker(words) as worker:
        worker.fingerprint = worker.fingerprint | {"runtime_version": "2"}
        far.cut()
        with pytest.raises(ConnectionLostError, match="is another machine or runtime"):
            worker.request(("compile", "work 1", b"work 1"), 5.0)


@needs_sshd
def test_large_models_arrive_whole(far: Server, words: Device) -> None:
    noise = np.random.default_rng(0).integers(32, 126, 5_000_000, dtype=np.uint8).tobytes()
    assert words.remote is not None
    with RemoteWorker(words) as worker:
        assert worker.request(("compile", "large", noise), 60.0) > 0
    assert max(path.stat().st_size for path in Path(words.remote.folder, "models").iterdir()) == len(noise)


def no_numpy(folder: Path) -> str:
    (folder / "numpy.py").write_text("raise ImportError('No module named numpy')\n", encoding="utf-8")
    (folder / "bare").write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n', encoding="utf-8")
    (folder / "bare").chmod(0o755)
    return str(folder / "bare")


def not_known(folder: Path) -> str:
    (folder / "none").touch()
    return str(folder / "none")


def other_host(folder: Path, port: int) -> str:
    (folder / "changed").write_text(f"[127.0.0.1]:{port} {key_pair(folder / 'another')}\n", encoding="utf-8")
    return str(folder / "changed")


def other_key(folder: Path) -> str:
    key_pair(folder / "mine")
    return str(folder / "mine")


def no_key(folder: Path) -> str:
    (folder / "no_key").write_text("nothing of the kind\n", encoding="utf-8")
    return str(folder / "no_key")


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "nobody listens": (lambda tmp, far: {"port": free_port()}, ("cannot reach", "127.0.0.1", "`remote.port`")),
    "no such host": (lambda tmp, far: {"host": "nowhere.invalid"}, ("cannot reach", "nowhere.invalid")),
    "unknown host key": (lambda tmp, far: {"known_hosts": not_known(tmp)}, ("not trusted", "ssh-keyscan")),
    "changed host key": (lambda tmp, far: {"known_hosts": other_host(tmp, far.port)}, ("not trusted",)),
    "no known_hosts": (lambda tmp, far: {"known_hosts": str(tmp / "absent")}, ("`remote.known_hosts` must be a file", "absent")),
    "another key": (lambda tmp, far: {"key": other_key(tmp)}, ("does not let the user in", "authorized_keys")),
    "another user": (lambda tmp, far: {"user": "nobody-here"}, ("nobody-here", "does not let the user in")),
    "no key file": (lambda tmp, far: {"key": str(tmp / "absent")}, ("`remote.key` must be a file", "absent")),
    "a key that is none": (lambda tmp, far: {"key": no_key(tmp)}, ("cannot be used", "no_key")),
    "no python": (lambda tmp, far: {"python": "/opt/no/python3"}, ("cannot run '/opt/no/python3'", "`remote.python`")),
    "no numpy": (lambda tmp, far: {"python": no_numpy(tmp)}, ("No module named numpy",)),
    "no folder": (lambda tmp, far: {"folder": "/proc/none"}, ("/proc/none",)),
}


@needs_sshd
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_reached_is_one_sentence(far: Server, tmp_path: Path, case: str) -> None:
    changes, says = REFUSED[case]
    device = at(Device(name="far", backend="onnxruntime", remote=far.remote(folder=str(tmp_path / "far"))), **changes(tmp_path, far))
    with pytest.raises(DeviceError) as caught, open_worker(device):
        pass
    assert "\n" not in str(caught.value) and all(words in str(caught.value) for words in says), caught.value


@needs_sshd
def test_host_keys_are_checked_whatever_the_configuration_of_ssh_says(far: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("UserKnownHostsFile none\nStrictHostKeyChecking no\n", encoding="utf-8")
    device = at(Device(name="far", backend="onnxruntime", remote=far.remote(folder=str(tmp_path / "far"))), known_hosts="")
    with pytest.raises(DeviceError, match="not trusted.*~/.ssh/known_hosts"), open_worker(device):
        pass
    (tmp_path / ".ssh" / "known_hosts").write_bytes((far.folder / "known_hosts").read_bytes())
    with open_worker(device) as worker:
        assert worker.fingerprint["runtime"] == "onnxruntime"


@needs_sshd
def test_what_the_far_end_lacks_is_said(far: Server, words: Device, tmp_path: Path) -> None:
    for change, says in (
        ({"log": "x", "lgo": 1}, "on .*'lgo'; did you mean 'log'"),
        ({"log": 3}, "on .*log: input should be a valid str, but got 3"),
        ({}, "on .*log: field required"),
    ):
        with pytest.raises(DeviceError, match=says), open_worker(words.model_copy(update={"options": change})):
            pass
    no_runtime = at(words.model_copy(update={"backend": "onnxruntime", "options": {}}))
    (tmp_path / "package" / "onnxruntime.py").write_text("raise ImportError('onnxruntime is not here')\n", encoding="utf-8")
    with pytest.raises(DeviceError, match="on .*onnxruntime is not here"), open_worker(no_runtime):
        pass
    with (
        pytest.raises(PluginError, match="no backend called 'onnxruntim'"),
        open_worker(words.model_copy(update={"backend": "onnxruntim"})),
    ):
        pass


@needs_sshd
def test_the_command_line_says_it_in_one_line(
    far: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, says in (
        (f"remote: {{host: 127.0.0.1, port: {free_port()}}}", "cannot reach 127.0.0.1"),
        ("remote: {host: 127.0.0.1, password: secret}", "password"),
        ("remote: {user: me}", "host"),
    ):
        (tmp_path / "mine.yaml").write_text(f"backend: onnxruntime\n{text}\n", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["hwnas", "profile", "mine.yaml", "quickstart"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        err = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
        assert ended.value.code == 2 and len(err) == 1 and err[0].startswith("hwnas: ") and says in err[0], err


def test_a_remote_device_needs_its_runtime_there_and_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "listing", lambda kind: [plugins.Listing("onnxruntime", "", ("onnxruntime",))])
    (tmp_path / "devices").mkdir()
    for name, more in (("far", "remote: {host: board.local}\n"), ("near", "")):
        (tmp_path / "devices" / f"{name}.yaml").write_text(f"backend: onnxruntime\n{more}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    cli.devices(as_json=True)
    listed = {row["name"]: row["missing"] for row in json.loads(capsys.readouterr().out)}
    assert listed["far"] == [] and listed["near"] == ["onnxruntime"]


def test_without_asyncssh_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "missing_packages", lambda packages: packages)
    with pytest.raises(HwnasError, match="pip install 'hwnas\\[remote\\]'"), open_worker(
        Device(name="far", backend="onnxruntime", remote=Remote(host="127.0.0.1"))
    ):  # fmt: skip
        pass
