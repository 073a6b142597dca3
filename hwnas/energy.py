"""Measured energy of models: looped in a worker beside a counter, idle power taken out, the spread over repeats kept.

The models stand in the same worker process as those that are timed, on this machine or the device's own; every window
is journalled, so a session that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.device import Device
from hwnas.errors import DeviceError
from hwnas.measure import Journal, Progress, Protocol, Session, open_worker, silent
from hwnas.worker import Handle

IDLE_EVERY = 8
"""Windows between two measurements of idle power."""


@dataclass(frozen=True)
class Draw:
    """What one inference of a model draws above idle, mJ, with its standard error, from `n` inferences."""

    mj: float
    error_mj: float
    n: int


@dataclass
class EnergyMeasurement:
    """All that one session of `measure_energy` found."""

    draws: dict[str, Draw]
    failures: dict[str, str]
    fingerprint: dict[str, str]
    counter: str
    """What counted, e.g. `rapl package-0`."""
    interval_s: float
    """How often the counter is updated."""
    idle_watts: float
    """Median power with nothing to do; NaN where all windows came from the journal."""


def require_counter(device: Device) -> str:
    """The name of the device's counter, opened to see that it counts.

    Raises:
        DeviceError: it is not there or may not be read, or the device computes its times.
    """
    with open_worker(device) as worker:
        if worker.fingerprint.get("source") == "modelled":
            raise DeviceError(
                f"{device.name} computes its times and runs nothing whose energy could be counted; set energy.source: modelled"
            )
        return str(worker.request(("meter",), 120)["counter"])


def measure_energy(
    models: Mapping[str, bytes],
    device: Device,
    *,
    reference: bytes,
    protocol: Protocol | None = None,
    journal: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> EnergyMeasurement:
    """Energy of every model by the device's counter: in each of `energy.repeats` rounds one window a model, in random order.

    The caller removes the journal when the results are safe elsewhere.

    Raises:
        DeviceError: the counter is not there or may not be read, or the device cannot run even the reference model.
    """
    session = _EnergySession(models, device, protocol or Protocol(), reference, np.random.default_rng(seed), progress, None)
    with open_worker(device, session.protocol.memory_gb) as worker:
        return session.draw(worker, journal)


class _EnergySession(Session):
    """What timing does too (compiling, failing, resuming), with windows of energy in the place of visits."""

    def draw(self, worker: Handle, journal: Path | None) -> EnergyMeasurement:
        self.fingerprint = worker.fingerprint
        self.meter = worker.request(("meter",), self.protocol.compile_timeout_s)
        self.timeout_s = self.protocol.run_timeout_s + 3 * self.device.energy.seconds + 100 * self.meter["interval_s"]
        header = self._header() | {"energy": self.device.energy.model_dump(), "counter": self.meter["counter"]}
        digests = {self._digest(key): key for key in self.models}
        self.windows: dict[str, list[tuple[float, int]]] = {key: [] for key in self.models}
        for entry in Journal.read(journal, header):
            if entry["model"] in digests:
                self.windows[digests[entry["model"]]].append((entry["mj"], entry["runs"]))
        self.idle: list[float] = []
        repeats = self.device.energy.repeats
        self._compile_all(worker)
        with Journal(journal, header) as log:
            for number in range(1, repeats + 1):
                lacking = [key for key in self._models() if len(self.windows[key]) < number]
                for position, i in enumerate(self.rng.permutation(len(lacking))):
                    if position % IDLE_EVERY == 0:
                        self.idle.append(self._window(worker, None)["watts"])
                    self._measure_one(worker, lacking[i], log)
                    self.progress("energy", sum(len(self.windows[key]) for key in self._models()), repeats * len(self._models()))
        draws = {key: _reduced(self.windows[key]) for key in self._models()}
        idle = float(np.median(self.idle)) if self.idle else float("nan")
        return EnergyMeasurement(draws, self.failures, self.fingerprint, self.meter["counter"], self.meter["interval_s"], idle)

    def _models(self) -> list[str]:
        return [key for key in list(self.models)[1:] if key not in self.failures]  # all but the reference

    def _measure_one(self, worker: Handle, key: str, log: Journal) -> None:
        if key in self.failures:
            return
        try:
            found = self._window(worker, key)
        except DeviceError as error:
            self._fail(key, str(error))
            self._restart(worker)
            worker.request(("meter",), self.protocol.compile_timeout_s)
            self._compile_all(worker)
            return
        net = 1e3 * (found["joules"] - self.idle[-1] * found["seconds"]) / (found["runs"] * self.device.batch)
        self.windows[key].append((net, found["runs"]))
        log.write({"model": self._digest(key), "mj": net, "runs": found["runs"]})

    def _window(self, worker: Handle, key: str | None) -> dict[str, Any]:
        found: dict[str, Any] = worker.request(("energy", key), self.timeout_s)
        return found | {"watts": found["joules"] / found["seconds"]}


def _reduced(windows: list[tuple[float, int]]) -> Draw:
    """The median of the windows; its standard error by the spread of the windows, as of a normal distribution."""
    nets = np.array([net for net, _ in windows])
    return Draw(float(np.median(nets)), float(1.2533 * nets.std(ddof=1) / len(nets) ** 0.5), sum(runs for _, runs in windows))
