"""Device: one target as a YAML file says it; Backend and Executable: what a runtime's file must give; fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwnas import plugins
from hwnas.errors import ConfigError, FingerprintError

try:
    from pydantic import BaseModel, ConfigDict, Field
except ImportError:  # a worker on a remote device, whose host has its runtime only
    from hwnas.plain import BaseModel, ConfigDict, Field  # type: ignore[assignment, no-redef]

Precision = Literal["fp32", "fp16", "bf16", "int8"]


class Energy(BaseModel):
    """How energy is had on a device: read from a counter (`hwnas.counters`), or modelled, which needs none.

    Modelled, an operator takes `idle_watts` for as long as it runs, and energy for every multiply-add and every byte
    moved. A counter is read over windows of at least `seconds`, `repeats` times for every model.
    """

    model_config = ConfigDict(extra="forbid")

    source: Literal["modelled", "rapl", "nvml", "jetson", "ina"] = "modelled"
    idle_watts: Annotated[float, Field(ge=0)] = 0.0
    picojoules_per_mac: Annotated[float, Field(gt=0)] = 4.6
    picojoules_per_byte: Annotated[float, Field(gt=0)] = 160.0
    domain: str = ""
    """What of the source counts: `package`, `core`, `dram`, `psys` (rapl), `total`, `cpu`, `gpu` (jetson)."""
    index: Annotated[int, Field(ge=0)] = 0
    """Which GPU (nvml), which channel (ina)."""
    path: str = ""
    """Where the files are: the folder of an ina rail, `*` allowed; another root than /sys/class/powercap (rapl)."""
    seconds: Annotated[float, Field(gt=0)] = 0.5
    repeats: Annotated[int, Field(ge=2)] = 5


class Remote(BaseModel):
    """Another machine on which a device's workers run, reached over SSH with keys; there is no place for a password.

    What is empty is as for `ssh` itself: the user's name, `~/.ssh/known_hosts`, the agent's keys and those of `~/.ssh`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: str = ""
    known_hosts: str = ""
    key: str = ""
    python: str = "python3"
    """The interpreter there that has numpy and the runtime; a path is absolute or begins at the user's home."""
    folder: str = "~/.cache/hwnas"
    """Where code and models are kept there; it may be deleted at any time."""


class Device(BaseModel):
    """One target: the runtime (a file of `hwnas/backends/`), how it runs there, and how long measuring may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    description: str = ""
    backend: str
    precision: Precision = "fp32"
    batch: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    options: dict[str, Any] = {}  # noqa: RUF012  a model copies its defaults
    needs: list[str] = []  # noqa: RUF012
    """Programs that must be on the PATH; `hwnas devices` names those that are missing."""
    energy: Energy = Energy()
    remote: Remote | None = None


@runtime_checkable
class Executable(Protocol):
    """A compiled model with inputs of its own."""

    def run(self) -> None:
        """One inference; returns when its result is there."""


@runtime_checkable
class TimedExecutable(Executable, Protocol):
    """A compiled model that knows its own times: by the device's clock, from another process, or from a formula."""

    def time(self, runs: int) -> NDArray[np.int64]:
        """How long each of `runs` inferences in a row took, ns; fewer numbers where it knows only means of several."""


@runtime_checkable
class ComputingExecutable(Executable, Protocol):
    """A compiled model that also runs on inputs that it is given, so that what it computes can be compared."""

    def outputs(self, feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The model's outputs, in order, of one batch of inputs by name; the batch is the device's."""


@runtime_checkable
class Backend(Protocol):
    """A runtime. Its file in `hwnas/backends/` holds one class that takes the device positionally, options keyword-only.

    The file's `REQUIRES` names the packages that it needs, its `PRECISIONS` what it can compute in, its
    `QUANTISES` how the activations of the int8 models lie that it takes, if it does ("asymmetric" or "symmetric"); literal tuples.
    A class that needs options has `example`, the options that the contract tests use.

    It is made and used inside a worker process: what crashes, hangs or exhausts memory there costs one row.
    """

    def fingerprint(self) -> dict[str, str]:
        """The runtime, its version, and the hardware it runs on, as far as these change timings.

        One that computes times instead of taking them says `"source": "modelled"`, and so say the rows of its tables.
        One whose models do not run on this machine's processor names theirs as `"cpu"`: this machine is then left out.
        """

    def compile(self, model: bytes) -> Executable:
        """The ONNX model made ready to run; raises DeviceError with the runtime's reason where it cannot."""


def require_precision(device: Device, known: tuple[Precision, ...]) -> None:
    """Refuses a precision that a backend does not have.

    Raises:
        ConfigError: it is none of `known`.
    """
    if device.precision not in known:
        raise ConfigError(
            f"backend {device.backend} of device {device.name or 'without a name'} runs {', '.join(known)}, but its precision is "
            f"{device.precision!r}; change it in the device's YAML"
        )


def load_backend(device: Device) -> Backend:
    """The device's backend.

    Raises:
        PluginError: there is none of that name, or a package that it needs is not installed.
        ConfigError: an option that it does not have.
    """
    backend: Backend = plugins.build("backends", device.backend, device.options, device)
    return backend


@cache
def cpu_model() -> str:
    """The processor's name as the system gives it, with family and model where it is a vague one."""
    found: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.split()[-1]} {found[key]}" for key in ("cpu family", "model", "stepping") if key in found]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def host_fingerprint() -> dict[str, str]:
    """What of this machine changes timings: processor, cores, memory architecture, operating system, frequency governor."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "machine": f"{platform.system()} {platform.machine()}",
        "governor": governor.read_text(encoding="utf-8").strip() if governor.exists() else "unknown",
    }


def device_fingerprint(device: Device, backend: Backend) -> dict[str, str]:
    """All that must be equal for two measurements to mix."""
    settings = {"backend": device.backend, "precision": device.precision, "batch": str(device.batch), "threads": str(device.threads)}
    options = {f"option {key}": json.dumps(value) for key, value in sorted(device.options.items())}
    said = backend.fingerprint()
    return {**({} if "cpu" in said else host_fingerprint()), **settings, **options, **said}


def digest(fingerprint: dict[str, str]) -> str:
    """Eight hexadecimal digits that stand for a fingerprint, e.g. in a folder's name."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:8]


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """What differs between two fingerprints, as `key: found, here wanted`."""
    return [
        f"{key}: {found.get(key, 'not stated')!r}, here {wanted.get(key, 'not stated')!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]


Relation = Literal["same", "stale", "other settings", "other machine"]


def relation(found: dict[str, str], wanted: dict[str, str]) -> Relation:
    """How two fingerprints are related; `stale` = the same machine and settings under another version of the runtime or a driver."""
    different = {key for key in {*found, *wanted} if found.get(key) != wanted.get(key)}
    if different & {"cpu", "cores", "machine"}:
        return "other machine"
    if all(key.endswith("version") for key in different):
        return "stale" if different else "same"
    return "other settings"


def disagreement(found: dict[str, str], wanted: dict[str, str]) -> str:
    """What two fingerprints that differ differ in, and what to do, as the end of a sentence about the former."""
    details = "; ".join(differences(found, wanted))
    if relation(found, wanted) == "stale":
        return f"is stale: it was measured on this machine under another runtime version ({details}); measure again with `hwnas profile`"
    return f"was measured elsewhere ({details}); measure here with `hwnas profile`"


def require_same(found: dict[str, str], wanted: dict[str, str], what: str) -> None:
    """Refuses to mix.

    Raises:
        FingerprintError: the fingerprints differ; the message says in what.
    """
    if differences(found, wanted):
        raise FingerprintError(f"{what} {disagreement(found, wanted)}")
