"""Energy counters of the machine that this runs on, and the meter that reads them around looped inferences.

A counter gives the energy since some moment, J. Where hardware has a counter it is read; where it has a power sensor
only, power is integrated from reading to reading. What is missing or may not be read is an error that says what to do.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from hwnas.errors import DeviceError, nearest

if TYPE_CHECKING:
    from hwnas.device import Energy

Clock = Callable[[], float]
POWERCAP = Path("/sys/class/powercap")


@runtime_checkable
class Counter(Protocol):
    """Something that counts energy."""

    name: str
    steps: bool
    """Whether the reading stands still between updates of the hardware; an integrated one does not."""

    def joules(self) -> float:
        """The energy since some moment, J; it never goes back.

        Raises:
            DeviceError: it cannot be read.
        """


class Window(NamedTuple):
    """What was counted while a model was looped, or nothing was done (0 runs)."""

    joules: float
    seconds: float
    runs: int

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


class Rapl:
    """Domains of a processor, as the kernel's powercap tree counts them, together.

    Read directly and not through Zeus: Zeus 0.16 knows one fixed root, so that no test could give it a tree whose answer
    is known; it sums package and DRAM only; it polls every counter from processes of its own, beside what is measured;
    and a small board would need pandas and scikit-learn for what is a number in a file. A counter begins anew after
    `max_energy_range_uj` (minutes at least), which reading it once a window tells.
    """

    steps = True

    def __init__(self, root: Path = POWERCAP, domain: str = "package") -> None:
        zones = {zone: _read(zone / "name") for zone in sorted(root.glob("intel-rapl:*"))}
        if not zones:
            raise DeviceError(
                f"{root} has no zones intel-rapl:*, so this machine counts no energy of its processor (virtual machines seldom do); "
                "load the kernel module intel_rapl_msr or choose another `energy.source`"
            )
        chosen = [zone for zone, name in zones.items() if domain in (name, name.partition("-")[0])]
        if not chosen:
            raise DeviceError(f"{root} has no domain {domain!r}; {nearest(domain, set(zones.values()))}")
        self.name = f"rapl {' '.join(sorted({zones[zone] for zone in chosen}))}"
        self._files = [zone / "energy_uj" for zone in chosen]
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in chosen]
        self._last = [_number(file) for file in self._files]
        self._total = 0.0

    def joules(self) -> float:
        """See `Counter`."""
        for i, file in enumerate(self._files):
            now = _number(file)
            self._total += now - self._last[i] + (self._ranges[i] if now < self._last[i] else 0.0)
            self._last[i] = now
        return 1e-6 * self._total


class Ina:
    """A rail that an INA sensor watches: `power*_input` in uW, or `curr*_input` in mA times `in*_input` in mV (hwmon)."""

    steps = False

    def __init__(self, path: str, channel: int = 1, clock: Clock = time.monotonic) -> None:
        folders = sorted(glob.glob(path)) if path else []
        if len(folders) != 1:
            raise DeviceError(
                f"`energy.path` must name one folder of an INA sensor (/sys/class/hwmon/hwmon*), but {path!r} names {len(folders)}"
            )
        folder = Path(folders[0])
        channel = channel or 1
        power, current, voltage = (folder / f"{kind}{channel}_input" for kind in ("power", "curr", "in"))
        if power.exists():
            self._files, self._scale = [power], 1e-6
        elif current.exists() and voltage.exists():
            self._files, self._scale = [current, voltage], 1e-6
        else:
            raise DeviceError(
                f"{folder} has neither {power.name} nor both {current.name} and {voltage.name}; correct `energy.path` or `energy.index`"
            )
        self.name = f"ina {folder.name} channel {channel}"
        self._clock, self._total = clock, 0.0
        self._last = (clock(), self.watts())

    def watts(self) -> float:
        """The power now."""
        return self._scale * float(np.prod([_number(file) for file in self._files]))

    def joules(self) -> float:
        """See `Counter`."""
        (before, then), (now, watts) = self._last, (self._clock(), self.watts())
        self._total += 0.5 * (then + watts) * (now - before)
        self._last = (now, watts)
        return self._total


class Nvml:
    """The energy counter of an NVIDIA GPU (Volta or newer), through Zeus."""

    steps = True

    def __init__(self, index: int = 0) -> None:
        gpu = _zeus("zeus.device.gpu")
        try:
            gpus = gpu.get_gpus()
            self.name = f"nvml {gpus.get_name(index)} #{index}"
            supported = gpus.supports_get_total_energy_consumption(index)
        except IndexError:
            raise DeviceError(f"there is no GPU {index} here, but {len(gpus)}; correct `energy.index`") from None
        except Exception as error:  # Zeus's and NVML's exceptions share no narrower base
            raise DeviceError(
                f"NVML counts no energy here ({_line(error)}); install NVIDIA's driver or choose another `energy.source`"
            ) from None
        if not supported:
            raise DeviceError(f"{self.name} has no energy counter (Volta is the first that has); choose another `energy.source`")
        self._gpus, self._index = gpus, index

    def joules(self) -> float:
        """See `Counter`."""
        return 1e-3 * float(self._gpus.get_total_energy_consumption(self._index))


class Jetson:
    """The power rails of an NVIDIA Jetson, integrated by Zeus."""

    steps = True

    def __init__(self, domain: str = "total") -> None:
        jetson = _zeus("zeus.device.soc.jetson")
        try:
            self._soc = jetson.Jetson()
            rails = {name.removesuffix("_energy_mj") for name in self._soc.get_available_metrics()}
        except Exception as error:  # see above
            raise DeviceError(f"no power rails of a Jetson here ({_line(error)}); choose another `energy.source`") from None
        if domain not in rails:
            raise DeviceError(f"this Jetson has no rail {domain!r}; {nearest(domain, rails)}")
        self.name, self._field = f"jetson {domain}", f"{domain}_energy_mj"

    def joules(self) -> float:
        """See `Counter`."""
        return 1e-3 * float(getattr(self._soc.get_total_energy_consumption(), self._field))


def open_counter(energy: Energy) -> Counter:
    """The counter that a device's `energy` section names.

    Raises:
        DeviceError: it is not there or may not be read.
    """
    match energy.source:
        case "rapl":
            return Rapl(Path(energy.path) if energy.path else POWERCAP, energy.domain or "package")
        case "ina":
            return Ina(energy.path, energy.index)
        case "nvml":
            return Nvml(energy.index)
        case "jetson":
            return Jetson(energy.domain or "total")
    raise DeviceError(f"energy of the source {energy.source!r} is computed, not counted")


class Meter:
    """Reads a counter around looped inferences: from one of its updates to another one, `seconds` or more apart.

    A slow counter needs long windows: at least `FEWEST` of its updates, whose interval is found out by watching it.
    """

    FEWEST = 20
    PATIENCE_S = 5.0
    """A counter that stands still for so long is dead."""

    def __init__(self, counter: Counter, seconds: float, clock: Clock | None = None, sleep: Callable[[float], None] | None = None) -> None:
        self.counter, self._clock, self._sleep = counter, clock or time.monotonic, sleep or time.sleep
        self.interval_s = self._watch() if counter.steps else 1e-3
        self._seconds = max(seconds, self.FEWEST * self.interval_s)
        self._burst_s = max(0.1 * self.interval_s, 1e-3)

    def window(self, run: Callable[[], None] | None) -> Window:
        """Energy of inferences in a row, or of doing nothing.

        Raises:
            DeviceError: the counter cannot be read, or stands still.
        """
        burst = self._burst(run)
        self._edge(burst)
        begin, first = self._clock(), self.counter.joules()
        runs, last = 0, first
        while True:
            runs += burst()
            joules, now = self.counter.joules(), self._clock()
            if now - begin >= self._seconds and (joules != last or not self.counter.steps):
                return Window(joules - first, now - begin, runs)
            if now - begin > self._seconds + self.PATIENCE_S:
                raise self._dead()
            last = joules

    def _burst(self, run: Callable[[], None] | None) -> Callable[[], int]:
        """A function that runs the model as often as the counter may go unread for, and says how often."""
        if run is None:
            return lambda: self._sleep(self._burst_s) or 0
        start, count = self._clock(), 0
        while self._clock() - start < self._burst_s:
            run()
            count += 1

        def burst() -> int:
            for _ in range(count):
                run()
            return count

        return burst

    def _edge(self, burst: Callable[[], int]) -> None:
        """Waits for an update of the counter, with the work going on."""
        start, first = self._clock(), self.counter.joules()
        while self.counter.steps and self.counter.joules() == first:
            if self._clock() - start > self.PATIENCE_S:
                raise self._dead()
            burst()

    def _watch(self) -> float:
        """How often the counter is updated, s: the median over ten updates."""
        changes: list[float] = []
        last, start = self.counter.joules(), self._clock()
        while len(changes) < 11:
            self._sleep(2e-4)
            now, joules = self._clock(), self.counter.joules()
            if joules != last:
                changes.append(now)
                last = joules
            elif now - (changes[-1] if changes else start) > self.PATIENCE_S:
                raise self._dead()
        return float(np.median(np.diff(changes)))

    def _dead(self) -> DeviceError:
        return DeviceError(f"the counter {self.counter.name} has not moved in {self.PATIENCE_S:g} s; choose another `energy.source`")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except PermissionError:
        raise DeviceError(f"{path} may not be read by this user; allow it with `sudo chmod a+r {path}` (until the next boot)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}; choose another `energy.source`"
        ) from None


def _number(path: Path) -> float:
    text = _read(path)
    try:
        return float(text)
    except ValueError:
        raise DeviceError(f"{path} must hold a number, but holds {text[:40]!r}; choose another `energy.source`") from None


def _zeus(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeviceError(
            f"counters of NVIDIA hardware are read through Zeus, which needs {error.name}: pip install 'hwnas[energy]'"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
