"""The measuring protocol: interleaved rounds in a worker process, journalled visit by visit, reduced to a low percentile.

Everything that is measured is measured by `measure`: operators, whole networks, exported models. Models run in a worker
process (`hwnas.worker`), on this machine or the device's own, so one that crashes the runtime, hangs or runs out of
memory is a named failure and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.device import Device
from hwnas.errors import DeviceError, WorkerLostError
from hwnas.remote import RemoteWorker
from hwnas.worker import Handle

REFERENCE = "reference"


@dataclass(frozen=True)
class Protocol:
    """How everything is measured; printed in every table.

    A visit to a model is one untimed run, then timed runs for about `visit_ms`. In a round every model is visited
    once in random order, and the reference model before every `reference_every` visits and at the end. A machine has
    states (a neighbour on the same core, a clock rate) that slow different operators by different factors, so only
    steady visits count: those between two visits of the reference that are both within `steady` of its level. The
    price is the `percentile` of all timed runs of steady visits. Models with fewer than `rounds` of them, or whose
    standard error is above `wide` of their price, get more rounds, up to `most_rounds`. Where an earlier session's
    state is wanted, rounds wait for it, `patience_s` a session in all.
    """

    version: int = 3
    rounds: int = 10
    most_rounds: int = 24
    visit_ms: float = 2.0
    fewest_runs: int = 3
    most_runs: int = 40
    percentile: float = 10.0
    wide: float = 0.01
    reference_every: int = 16
    steady: float = 0.12
    patience_s: float = 20.0
    compile_timeout_s: float = 60.0
    run_timeout_s: float = 30.0
    memory_gb: float = 0.0

    def as_text(self) -> dict[str, str]:
        """The settings as a table's header keeps them."""
        return {key: f"{value:g}" for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Timing:
    """What was measured of one model, ms: `low` is the price, in one state of the machine, and `error` its standard error.

    p50 and p90 are what a user feels: of all `n` timed runs, whatever state the machine was in.
    """

    low_ms: float
    error_ms: float
    p50_ms: float
    p90_ms: float
    n: int


@dataclass
class Measurement:
    """All that one session of `measure` found."""

    timings: dict[str, Timing]
    failures: dict[str, str]
    fingerprint: dict[str, str]
    drift: float
    """Relative spread of the reference model over its visits (standard deviation / mean)."""
    reference_ms: float
    """The reference model's level that the times belong to: the one asked for where the machine ran at it, else this session's."""
    halves: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Each model's price from every second visit and from the others: their difference is the noise floor."""
    steady: float = 1.0
    """The share of visits that were steady."""

    def noise_floor(self) -> float:
        """Median relative difference of a model measured twice, in the even and in the odd rounds."""
        apart = [abs(a - b) / max(a, b) for a, b in self.halves.values()]
        return float(np.median(apart)) if apart else float("nan")


class Worker(Handle):
    """A child process that holds compiled models and times them; it can be killed and started again."""

    def __init__(self, device: Device, memory_gb: float = 0.0) -> None:
        self._device = device
        self._memory_gb = memory_gb
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self.fingerprint: dict[str, str] = {}

    def start(self) -> None:
        """See `Handle`."""
        to_child_read, to_child_write = os.pipe()
        from_child_read, from_child_write = os.pipe()
        command = [sys.executable, "-m", "hwnas.worker", str(to_child_read), str(from_child_write)]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            command, pass_fds=(to_child_read, from_child_write), env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL
        )
        os.close(to_child_read)
        os.close(from_child_write)
        self._to = Connection(to_child_write, readable=False)
        self._from = Connection(from_child_read, writable=False)
        self.fingerprint = self.request(("open", self._device.model_dump_json(), self._memory_gb), timeout_s=120)

    def stop(self) -> None:
        """See `Handle`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._to.close()
            self._from.close()
            self._process = None

    def send(self, message: tuple[Any, ...]) -> None:
        """See `Handle`."""
        try:
            self._to.send(message)
        except OSError:
            raise WorkerLostError(self._obituary()) from None

    def receive(self, timeout_s: float) -> Any:
        """See `Handle`."""
        try:
            if not self._from.poll(timeout_s):
                raise WorkerLostError(f"gave no answer in {timeout_s:g} s")
            status, value = self._from.recv()
        except (EOFError, OSError):
            raise WorkerLostError(self._obituary()) from None
        if status == "error":
            raise DeviceError(value)
        return value

    def _obituary(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code < 0:
            return f"crashed the runtime ({signal.Signals(-code).name})"
        return f"ended the worker process (exit code {code})"


def open_worker(device: Device, memory_gb: float = 0.0) -> Handle:
    """A worker of the device, not yet started: a child process, or a process on its remote machine."""
    return Worker(device, memory_gb) if device.remote is None else RemoteWorker(device, memory_gb)


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


def silent(what: str, done: int, of: int) -> None:
    """No progress shown."""


def measure(
    models: Mapping[str, bytes],
    device: Device,
    *,
    reference: bytes,
    protocol: Protocol | None = None,
    journal: Path | None = None,
    level_ms: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Measurement:
    """Times every model on the device, all of them in one interleaved session.

    `level_ms` is what the reference model takes in the state of the machine that is wanted (that of an earlier
    session); without it, and where the machine did not run in that state, it is the state it was in most of the time.
    With a `journal` every visit is kept in that file; a session that was killed goes on where it stopped, with the
    visits of models whose bytes are the same. The caller removes the file when the results are safe elsewhere.

    Raises:
        DeviceError: the device cannot run even the reference model.
    """
    session = Session(models, device, protocol or Protocol(), reference, np.random.default_rng(seed), progress, level_ms)
    with open_worker(device, session.protocol.memory_gb) as worker:
        return session.run(worker, journal)


class Session:
    """One session of `measure`: what is compiled, visited, failed and journalled; `hwnas.energy` has its own kind of visit."""

    def __init__(
        self,
        models: Mapping[str, bytes],
        device: Device,
        protocol: Protocol,
        reference: bytes,
        rng: np.random.Generator,
        progress: Progress,
        level_ms: float | None,
    ) -> None:
        self.wanted_ms = level_ms
        self.patience_s = protocol.patience_s
        self.models = {REFERENCE: reference, **models}
        self.device, self.protocol, self.rng, self.progress = device, protocol, rng, progress
        self.failures: dict[str, str] = {}
        self.first_ms: dict[str, float] = {}
        self.visits: list[Visit] = []

    def run(self, worker: Handle, journal: Path | None) -> Measurement:
        self.fingerprint = worker.fingerprint
        round_number = self._load(journal)
        self._compile_all(worker)
        self._warm_up(worker)
        with Journal(journal, self._header()) as log:
            while True:
                todo = self._todo()
                if not todo:
                    break
                self._await_level(worker)
                self._round(worker, todo, round_number, log)
                round_number += 1
        return self._reduce()

    def _header(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "protocol": self.protocol.as_text()}

    def _load(self, journal: Path | None) -> int:
        """Takes in the visits of an interrupted session; the number of the next round."""
        digests = {self._digest(key): key for key in self.models}
        latest = -1
        for entry in Journal.read(journal, self._header()):
            latest = max(latest, entry["round"])
            key = digests.get(entry["model"])
            if key is not None:
                self.visits.append(Visit(key, np.array(entry["ns"]) * 1e-6))
        return latest + 1

    def _digest(self, key: str) -> str:
        return f"{key} {hashlib.sha256(self.models[key]).hexdigest()[:12]}"

    def _compile_all(self, worker: Handle) -> None:
        pending = [key for key in self.models if key not in self.failures]
        done = 0
        while done < len(pending):
            key = pending[done]
            try:
                self.first_ms[key] = worker.request(("compile", key, self.models[key]), self.protocol.compile_timeout_s)
            except WorkerLostError as error:
                self._fail(key, str(error))
                self._restart(worker)
                pending, done = [k for k in pending if k not in self.failures], 0
                continue
            except DeviceError as error:
                self._fail(key, str(error))
            done += 1
            self.progress("compile", done, len(pending))

    def _fail(self, key: str, reason: str) -> None:
        if key == REFERENCE:
            raise DeviceError(f"device {self.device.name or self.device.backend} cannot run the reference model: {reason}")
        self.failures[key] = reason

    def _restart(self, worker: Handle) -> None:
        worker.stop()
        worker.start()

    def _warm_up(self, worker: Handle) -> None:
        """Runs the reference until two visits in a row agree within 2 %."""
        last = float("inf")
        for _ in range(50):
            worker.send(("round", [(REFERENCE, self.protocol.most_runs)]))
            now = float(np.median(worker.receive(self.protocol.run_timeout_s)))
            if abs(now - last) <= 0.02 * now:
                return
            last = now

    def _await_level(self, worker: Handle) -> None:
        """Visits the reference until the machine is in the state that is wanted, as long as there is patience."""
        while self.wanted_ms and self.patience_s > 0:
            began = time.monotonic()
            worker.send(("round", [(REFERENCE, self.protocol.most_runs)]))
            now = float(np.min(worker.receive(self.protocol.run_timeout_s))) * 1e-6
            if abs(np.log(now / self.wanted_ms)) <= self.protocol.steady:
                return
            time.sleep(0.2)
            self.patience_s -= time.monotonic() - began
            waited = round(self.protocol.patience_s - max(self.patience_s, 0.0))
            self.progress("wait for state", waited, round(self.protocol.patience_s))

    def _todo(self) -> list[str]:
        """The models that need another round: with too few steady visits, or whose price is still uncertain."""
        number = Counter(visit.key for visit in self.visits)
        steady = self._steady(self._level())
        todo = []
        for key in self.models:
            if key == REFERENCE or key in self.failures or number[key] >= self.protocol.most_rounds:
                continue
            found = steady.get(key, [])
            if len(found) < self.protocol.rounds:
                todo.append(key)
            else:
                low, error = self._low(found)
                if error > self.protocol.wide * low:
                    todo.append(key)
        return todo

    def _level(self) -> float:
        references = [visit.low_ms for visit in self.visits if visit.key == REFERENCE]
        return self.wanted_ms or usual_level(references, self.protocol.steady)

    def _steady(self, level: float) -> dict[str, list[NDArray[np.float64]]]:
        """Each model's samples, visit by visit, of its steady visits."""
        found: dict[str, list[NDArray[np.float64]]] = {}
        for visit, steady in zip(self.visits, steady_visits(self.visits, level, self.protocol.steady), strict=True):
            if steady:
                found.setdefault(visit.key, []).append(visit.samples)
        return found

    def _low(self, visits: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
        per_visit = [float(np.percentile(samples, self.protocol.percentile)) for samples in visits]
        middle = float(np.median(per_visit))
        error = 1.25 * 1.4826 * float(np.median(np.abs(np.array(per_visit) - middle))) / len(per_visit) ** 0.5
        return middle, error

    def _round(self, worker: Handle, todo: list[str], number: int, log: Journal) -> None:
        order = [todo[i] for i in self.rng.permutation(len(todo))]
        step = self.protocol.reference_every
        visits = [*(key for i in range(0, len(order), step) for key in (REFERENCE, *order[i : i + step])), REFERENCE]
        remaining = [key for key in visits if key not in self.failures]
        while remaining:
            worker.send(("round", [(key, self._runs(key)) for key in remaining]))
            position = 0
            try:
                for key in remaining:
                    samples = worker.receive(self.protocol.run_timeout_s)
                    self.visits.append(Visit(key, samples * 1e-6))
                    log.write({"round": number, "model": self._digest(key), "ns": [int(ns) for ns in samples]})
                    position += 1
                    self.progress("round", len(self.visits), self.protocol.rounds * len(self.models))
                return
            except DeviceError as error:
                self._fail(remaining[position], str(error))
                self._restart(worker)
                self._compile_all(worker)
                remaining = [key for key in remaining[position + 1 :] if key not in self.failures]

    def _runs(self, key: str) -> int:
        wanted = self.protocol.visit_ms / max(self.first_ms[key], 1e-6)
        return int(np.clip(np.ceil(wanted), self.protocol.fewest_runs, self.protocol.most_runs))

    def _reduce(self) -> Measurement:
        percentile = self.protocol.percentile
        keys = [key for key in self.models if key != REFERENCE and key not in self.failures]
        level = self._level()
        steady = self._steady(level)
        if self.wanted_ms and sum(len(steady.get(key, [])) >= _FEWEST_STEADY for key in keys) < 0.9 * len(keys):
            self.wanted_ms = None  # the machine is in another state than it was: all of this session's own
            level = self._level()
            steady = self._steady(level)
        timings, halves = {}, {}
        for key in keys:
            visits = steady.get(key, [])
            if len(visits) < min(_FEWEST_STEADY, self.protocol.rounds):
                visits = [visit.samples for visit in self.visits if visit.key == key]
            if not visits:
                continue
            every = np.concatenate([visit.samples for visit in self.visits if visit.key == key])
            p50, p90 = (float(p) for p in np.percentile(every, [50, 90]))
            timings[key] = Timing(float(np.percentile(np.concatenate(visits), percentile)), self._low(visits)[1], p50, p90, len(every))
            if len(visits) > 1:
                even, odd = (float(np.percentile(np.concatenate(visits[start::2]), percentile)) for start in (0, 1))
                halves[key] = even, odd
        reference = np.array([visit.low_ms for visit in self.visits if visit.key == REFERENCE] or [1.0])
        share = sum(map(len, steady.values())) / max(len(self.visits), 1)
        drift = float(reference.std() / reference.mean())
        return Measurement(timings, self.failures, self.fingerprint, drift, level, halves, share)


_FEWEST_STEADY = 3


@dataclass(frozen=True)
class Visit:
    """The timed runs of one visit to a model, ms."""

    key: str
    samples: NDArray[np.float64]

    @property
    def low_ms(self) -> float:
        """The quickest run."""
        return float(self.samples.min())


def usual_level(reference_ms: Sequence[float], steady: float) -> float:
    """The reference model's time within `steady` of which most of its visits lie; the quickest such state among near equals."""
    if not reference_ms:
        return 1.0
    times = np.sort(np.asarray(reference_ms, dtype=np.float64))
    logs = np.log(times)
    near = np.searchsorted(logs, logs + steady, "right") - np.searchsorted(logs, logs - steady, "left")
    level = float(times[np.flatnonzero(near >= 0.9 * near.max())[0]])
    return float(np.median(times[np.abs(logs - np.log(level)) <= steady]))


def steady_visits(visits: Sequence[Visit], level_ms: float, steady: float) -> NDArray[np.bool_]:
    """Which visits lie between visits of the reference that both took `level_ms`, give or take the share `steady`."""
    places = np.array([i for i, visit in enumerate(visits) if visit.key == REFERENCE], dtype=np.int64)
    if not len(places):
        return np.ones(len(visits), dtype=np.bool_)
    near = np.array([abs(np.log(visits[i].low_ms / level_ms)) <= steady for i in places])
    after = np.searchsorted(places, np.arange(len(visits)))
    before = np.clip(after - 1, 0, None)
    return np.asarray(near[before] & near[np.clip(after, None, len(places) - 1)])


class Journal:
    """One JSON line a visit behind a header line; a half-written last line is ignored when read."""

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self._file = None
        if path is not None:
            fresh = not self._matches(path, header)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not fresh:
                _cut_half_line(path)
            self._file = path.open("w" if fresh else "a", encoding="utf-8")
            if fresh:
                self.write(header)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    @staticmethod
    def _matches(path: Path, header: dict[str, Any]) -> bool:
        if not path.exists():
            return False
        with path.open(encoding="utf-8", errors="replace") as lines:
            try:
                return bool(json.loads(lines.readline()) == header)
            except ValueError:
                return False

    @classmethod
    def read(cls, path: Path | None, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if path is None or not cls._matches(path, header):
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            lines.readline()
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
