"""Fill a device's tables: isolated operators as differences of chains, whole networks for calibration, and check them.

A device's tables stand in `<tables>/<device>/<digest of the fingerprint>/`: `latency_ms.csv` and `energy_mj.csv` for
operators, `networks/<space>.csv` for whole networks. Another machine or runtime version is another folder.
"""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwnas import layers, resources
from hwnas.calibrate import FEWEST, Accuracy, Calibration, choose_probes, interval
from hwnas.cost import Cost, CostModel, PeakMemory
from hwnas.device import Device, differences, digest, disagreement, relation
from hwnas.energy import measure_energy, require_counter
from hwnas.errors import FingerprintError, SpaceError, TableError
from hwnas.measure import Measurement, Progress, Protocol, measure, open_worker, silent
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.quick_onnx import quick_onnx
from hwnas.space import Architecture, SearchSpace
from hwnas.table import CostTable, NetworkTable, Row, Source

CHAIN = 5
"""Copies in the long chain; the price is (time of 5 copies - time of 1) / 4 where the operator keeps its shape."""

ANCHORS = 16
"""Networks of the table that a later session measures again, at most."""

NETWORKS = Protocol(rounds=24, most_rounds=48, reference_every=8, percentile=25)
"""How whole networks are measured. They are few and their visits long: more rounds cost little, the reference is asked more often, and
a quarter of the runs may be quicker, for between two visits of it a machine in its slow state has quick moments too."""

CHECK_PATIENCE_S = 60.0
"""How long each session of a check waits for the machine to be in the state in which it was calibrated."""

REFERENCE_FACT = "reference ms"
"""The fact that keeps the reference model's time in the first session of a file of operators or networks: a whole machine drifts by
tens of percent between sessions, so later ones wait for that state, or are scaled to it."""

TRANSFER_FACT = "transfer "
"""What begins the facts of rows that `hwnas.transfer` predicted; they go with the last such row."""


ENERGY_FACT = "energy source"
"""The fact that says where a table's energies come from: `modelled`, or the kind of counter. One table has one source."""

MODEL_SETTINGS = {"idle_watts", "picojoules_per_mac", "picojoules_per_byte"}


def fingerprint(device: Device) -> dict[str, str]:
    """The fingerprint that measurements on this device have now (asks the runtime in a worker process)."""
    with open_worker(device) as worker:
        return worker.fingerprint


@dataclass(frozen=True)
class DeviceTables:
    """The tables of one device under one fingerprint."""

    root: Path
    device: Device
    fingerprint: dict[str, str]

    @classmethod
    def here(cls, root: Path, device: Device) -> DeviceTables:
        """Those that match this machine and runtime as they are now."""
        return cls(root, device, fingerprint(device))

    @property
    def folder(self) -> Path:
        """Where they stand."""
        return self.root / self.device.name / digest(self.fingerprint)

    def networks_path(self, space: SearchSpace) -> Path:
        """The file of the space's measured networks."""
        return self.folder / "networks" / f"{space.id}.csv"

    def operators(self, metric: str) -> CostTable:
        """The table of a metric; empty where there is none yet.

        Raises:
            TableError: the file is there but wrong; FingerprintError: its header is of another machine than its folder.
        """
        path = self.folder / f"{metric}.csv"
        if not path.exists():
            return CostTable(self.device.name, metric, self.fingerprint)
        table = CostTable.load(path)
        self._own(table.fingerprint, path)
        return table

    def energies(self) -> CostTable:
        """The energy table of the source that the device's YAML names; empty where there is none yet.

        Modelled rows are no loss: they make room for measured ones and for those of another model. Measured rows stay until
        somebody moves them away.

        Raises:
            TableError: there are measured rows of another source.
        """
        table = self.operators("energy_mj")
        wanted = self.device.energy.source
        sources = {row.source for row in table.rows.values()}
        if sources <= {"modelled"}:
            same = wanted == "modelled" and {"model idle_watts": "0.0", **table.facts}.items() >= _model_facts(self.device).items()
            return table if same or not sources else CostTable(self.device.name, "energy_mj", self.fingerprint)
        if sources == {"measured"} and wanted == table.facts.get(ENERGY_FACT):
            return table
        raise TableError(
            f"{self.folder / 'energy_mj.csv'} holds energies of the source {table.facts.get(ENERGY_FACT, 'unknown')!r}, which do not mix "
            f"with {wanted!r} of the device's YAML; move the file away or change `energy.source`"
        )

    def networks(self, space: SearchSpace) -> NetworkTable:
        """The space's measured networks; empty where there are none yet."""
        path = self.networks_path(space)
        if not path.exists():
            facts = {"space": json.dumps({"name": space.name, "options": space.options})}
            return NetworkTable(self.device.name, space.id, self.fingerprint, facts=facts)
        table = NetworkTable.load(path)
        self._own(table.fingerprint, path)
        for arch in table.rows:
            try:
                space.check(arch)
            except SpaceError as error:
                raise TableError(f"{path} holds what is no network of its space ({error}); delete that line and profile again") from None
        return table

    def _own(self, found: dict[str, str], path: Path) -> None:
        if differences(found, self.fingerprint):
            raise FingerprintError(f"{path} {disagreement(found, self.fingerprint)} after deleting it")

    def reference_ms(self, space: SearchSpace) -> float | None:
        """What the reference model took when the space's networks were measured first: the state of the machine that costs belong to."""
        return level_of(self.networks(space))

    def explain_absence(self) -> str:
        """Why there is nothing for this machine: which other tables of the device there are, stale ones first, and what differs."""
        stale: list[str] = []
        others: list[str] = []
        for path in sorted((self.root / self.device.name).glob("*/latency_ms.csv")):
            found = CostTable.load(path).fingerprint
            if not differences(found, self.fingerprint):
                continue
            different = f"{path.parent.name} differs in {'; '.join(differences(found, self.fingerprint))}"
            (stale if relation(found, self.fingerprint) == "stale" else others).append(different)
        reasons = []
        if stale:
            reasons.append(f"this machine's tables are stale, measured under another version of the runtime: {' | '.join(stale)}")
        if others:
            reasons.append(f"there are tables of other machines or runtimes, which do not count here: {' | '.join(others)}")
        return f" ({'; '.join(reasons)})" if reasons else ""

    def calibration(self, space: SearchSpace) -> Calibration:
        """The space's calibrated prices.

        Raises:
            TableError: operators or networks have not been measured here yet.
        """
        table = self.operators("latency_ms")
        missing = table.missing(space.operators())
        networks = self.networks(space)
        if missing or not networks.rows:
            what = f"{len(missing)} operators of {space.name}, e.g. {missing[0]}," if missing else f"whole networks of {space.name}"
            bad = [table.bad[op] for op in missing if op in table.bad]
            reason = f" (measuring it failed: {bad[0]})" if bad else self.explain_absence()
            raise TableError(
                f"{what} have not been measured on {self.device.name} here{reason}; run `hwnas profile {self.device.name} CONFIG`"
            )
        return Calibration.from_tables(space, table, list(networks.rows), np.array([row.price for row in networks.rows.values()]))

    def costs(self, space: SearchSpace) -> dict[str, Cost]:
        """Every metric's cost model: latency calibrated, energy by the device's counter or model, the others counted."""
        costs: dict[str, Cost] = {"latency_ms": self.calibration(space).cost_model()}
        costs |= paper_costs(space, self.device)
        return costs if "energy_mj" in costs else {**costs, "energy_mj": self.energy(space)}

    def energy(self, space: SearchSpace) -> Cost:
        """The energy of networks as the sum of the operators' rows.

        Raises:
            TableError: rows are missing or come from another source than the device's YAML names.
        """
        table = self.energies()
        missing = table.missing(space.operators())
        if missing:
            reason = f" (measuring it failed: {table.bad[missing[0]]})" if missing[0] in table.bad else ""
            raise TableError(
                f"the energy of {len(missing)} operators of {space.name}, e.g. {missing[0]}, is not known on {self.device.name} by "
                f"{self.device.energy.source!r}{reason}; run `hwnas profile {self.device.name} CONFIG`"
            )
        return CostModel(space, table.price, metric="energy_mj")


def paper_costs(space: SearchSpace, device: Device) -> dict[str, Cost]:
    """The metrics that need no measuring: `macs`, `flops`, `params`, `peak_mb`, and `energy_mj` where it is modelled without a table."""
    costs: dict[str, Cost] = {}
    if device.energy.source == "modelled" and not device.energy.idle_watts:
        costs["energy_mj"] = CostModel(space, energy_model(device), metric="energy_mj")
    costs |= {metric: CostModel(space, price, metric=metric, once=metric == "params") for metric, price in resources.ANALYTIC.items()}
    return {**costs, "peak_mb": PeakMemory(space)}


def energy_model(device: Device) -> Callable[[OpSpec], float]:
    """The device's modelled energy of an operator without idle power, mJ."""
    return resources.EnergyModel(device.energy.picojoules_per_mac, device.energy.picojoules_per_byte)


def chains(op: OpSpec, batch: int = 1) -> tuple[bytes, bytes, int]:
    """Two models and a number n such that price = (time of the second - time of the first) / n.

    Both begin with a 1x1 convolution, so that the operator finds the layout that it finds in a network. An operator
    that keeps its shape stands once in the first and `CHAIN` times in the second; any other stands only in the second.
    """
    shape = (op.c_in, op.height, op.width)
    keeps = layers.output_shape(op) == shape
    short, long = (1, CHAIN) if keeps else (0, 1)

    def chain(copies: int) -> bytes:
        with torch.device("meta"):
            entry = nn.Conv2d(op.c_in, op.c_in, 1)
            module = nn.Sequential(entry, *(layers.build(op) for _ in range(copies)))
        return quick_onnx(module, shape, batch, layers.output_shape(op) if copies else shape)

    return chain(short), chain(long), long - short


def _all_chains(operators: Sequence[OpSpec], batch: int, progress: Progress) -> tuple[dict[str, bytes], dict[OpSpec, int]]:
    """The models of all operators by `<operator> short` and `<operator> long`, and how many copies lie between."""
    models: dict[str, bytes] = {}
    copies: dict[OpSpec, int] = {}
    for done, op in enumerate(operators):
        models[f"{op} short"], models[f"{op} long"], copies[op] = chains(op, batch)
        progress("lower operators", done + 1, len(operators))
    return models, copies


def network_onnx(space: SearchSpace, arch: Architecture, batch: int = 1) -> bytes:
    """A whole network as an ONNX model for measuring."""
    with torch.device("meta"):
        network = Network(space, arch)
    return quick_onnx(network, space.input_shape, batch, space.output_shape)


def reference_onnx() -> bytes:
    """The model that every session visits again and again against drift: three inverted bottlenecks on a 16x16 map."""
    op = OpSpec("mbconv", 24, 24, 16, 16, kernel=5, hidden=72)
    with torch.device("meta"):
        module = nn.Sequential(*(layers.build(op) for _ in range(3)))
    return quick_onnx(module, (24, 16, 16))


def profile_operators(
    tables: DeviceTables, operators: Sequence[OpSpec], *, protocol: Protocol | None = None, progress: Progress = silent
) -> CostTable:
    """Measures the operators that the latency table lacks, writes it and the energy table, and gives the former.

    An operator that the runtime refuses, crashes or hangs on becomes a named bad row; the others are measured.
    """
    if tables.device.energy.source != "modelled":
        count_energy(tables, operators, protocol=protocol, progress=progress)
    table = tables.operators("latency_ms")
    wanted = unmeasured(table, operators)
    if wanted:
        measure_into(table, tables, wanted, protocol=protocol, progress=progress)
        table.save(tables.folder / "latency_ms.csv")
        operators_journal(tables).unlink(missing_ok=True)
    if tables.device.energy.source == "modelled":
        model_energy(tables, operators)
    return table


def model_energy(tables: DeviceTables, operators: Sequence[OpSpec]) -> CostTable:
    """Writes the modelled energy of the operators, mJ; needs their latency where idle power is part of the model."""
    energy, model, idle_watts = tables.energies(), energy_model(tables.device), tables.device.energy.idle_watts
    rows = {op: Row(model(op), source="modelled") for op in operators}
    if idle_watts:
        latency = tables.operators("latency_ms")
        lasting = {op: idle_watts * latency.price(op) / tables.device.batch for op in operators if op not in latency.bad}  # W ms = mJ
        rows = {op: Row(rows[op].price + mj, source="modelled") for op, mj in lasting.items()}
    if energy.missing(operators) or "date" not in energy.facts:
        energy.facts |= {"date": _now(), "protocol": "modelled from MACs and bytes, not measured"}
    energy.add(rows, tables.fingerprint)
    energy.facts |= {ENERGY_FACT: "modelled", **_model_facts(tables.device)}
    energy.save(tables.folder / "energy_mj.csv")
    return energy


def _model_facts(device: Device) -> dict[str, str]:
    return {f"model {key}": str(value) for key, value in device.energy.model_dump(include=MODEL_SETTINGS).items()}


def count_energy(
    tables: DeviceTables, operators: Sequence[OpSpec], *, protocol: Protocol | None = None, progress: Progress = silent
) -> CostTable:
    """Measures the energy of one image, mJ, of the operators that the table lacks: by differences of chains, like latency.

    Raises:
        DeviceError: the device's counter is not there or may not be read.
        TableError: the table's rows come from another source or counter.
    """
    energy = tables.energies()
    missing = energy.missing(operators)
    if missing:
        counter = require_counter(tables.device)
        if energy.rows and counter != energy.facts.get("energy counter"):
            raise TableError(
                f"{tables.folder / 'energy_mj.csv'} was counted by {energy.facts.get('energy counter')!r}, which does not mix with "
                f"{counter!r}; move the file away to count anew, or change `energy`"
            )
        journal = tables.folder / "energy.journal"
        models, copies = _all_chains(missing, tables.device.batch, progress)
        found = measure_energy(models, tables.device, reference=reference_onnx(), protocol=protocol, journal=journal, progress=progress)
        rows = {}
        for op in missing:
            short, long = found.draws.get(f"{op} short"), found.draws.get(f"{op} long")
            if short is None or long is None:
                energy.bad[op] = found.failures.get(f"{op} short") or found.failures[f"{op} long"]
                continue
            error = (short.error_mj**2 + long.error_mj**2) ** 0.5
            rows[op] = Row(max(long.mj - short.mj, 0.0) / copies[op], error / copies[op], n=long.n)
        energy.add(rows, found.fingerprint)
        energy.facts |= {
            "date": _now(), ENERGY_FACT: tables.device.energy.source, "energy counter": found.counter,
            "energy counter interval ms": f"{1e3 * found.interval_s:.3g}", "idle W": f"{found.idle_watts:.4g}",
            "window s": f"{tables.device.energy.seconds:g}", "windows": str(tables.device.energy.repeats),
        }  # fmt: skip
        energy.save(tables.folder / "energy_mj.csv")
        journal.unlink(missing_ok=True)
    return energy


def unmeasured(table: CostTable, operators: Sequence[OpSpec]) -> list[OpSpec]:
    """Those of the operators that measuring is to fill: without a row, or with one predicted from another device's table."""
    predicted = source_of(table.fingerprint) != "modelled"
    return [op for op in operators if op not in table.rows or (predicted and table.rows[op].source == "modelled")]


def operators_journal(tables: DeviceTables) -> Path:
    """Where a session of `measure_into` is kept until its results are safe in the table's file."""
    return tables.folder / "operators.journal"


def measure_into(
    table: CostTable,
    tables: DeviceTables,
    operators: Sequence[OpSpec],
    *,
    protocol: Protocol | None = None,
    progress: Progress = silent,
    journal: Path | None = None,
) -> Measurement:
    """Measures these operators, whatever the table holds of them, and puts the rows into it; the caller saves the table.

    What fails becomes a bad row, unless the table had measured it before: that row stays.
    """
    protocol = protocol or Protocol()
    journal = journal or operators_journal(tables)
    models, copies = _all_chains(operators, tables.device.batch, progress)
    wanted = level_of(table)
    found = measure(
        models, tables.device, reference=reference_onnx(), protocol=protocol, journal=journal, level_ms=wanted, progress=progress
    )
    level = wanted or found.reference_ms
    rows = {op: row for op in operators if (row := _difference(found, op, copies[op], level / found.reference_ms)) is not None}
    table.add(rows, found.fingerprint)
    for op in operators:
        failed = found.failures.get(f"{op} short") or found.failures.get(f"{op} long")
        if failed and unmeasured(table, [op]):
            table.rows.pop(op, None)
            table.bad[op] = failed
    table.facts |= {**_facts(protocol, found), REFERENCE_FACT: f"{level:.6g}"}
    if not any(row.source == "modelled" for row in table.rows.values()):
        table.facts = {key: value for key, value in table.facts.items() if not key.startswith(TRANSFER_FACT)}
    return found


def _difference(found: Measurement, op: OpSpec, copies: int, steady: float) -> Row | None:
    short, long = found.timings.get(f"{op} short"), found.timings.get(f"{op} long")
    if short is None or long is None:
        return None
    error = (short.error_ms**2 + long.error_ms**2) ** 0.5
    price, p50, p90 = (
        max(b - a, 0.0) / copies for a, b in ((short.low_ms, long.low_ms), (short.p50_ms, long.p50_ms), (short.p90_ms, long.p90_ms))
    )
    return Row(steady * price, steady * error / copies, steady * p50, steady * p90, long.n, source_of(found.fingerprint))


def level_of(table: CostTable | NetworkTable) -> float | None:
    """What the reference model took when the table was begun, ms; None of an empty one."""
    level = table.facts.get(REFERENCE_FACT)
    return float(level) if level else None


def source_of(fingerprint: Mapping[str, str]) -> Source:
    """What rows under this fingerprint are: `modelled` where the backend computes times, else `measured`."""
    return "modelled" if fingerprint.get("source") == "modelled" else "measured"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _facts(protocol: Protocol, found: Measurement) -> dict[str, str]:
    settings = {f"protocol {key}": value for key, value in protocol.as_text().items()}
    quality = {"noise floor": f"{found.noise_floor():.4f}", "drift": f"{found.drift:.4f}", "steady": f"{found.steady:.3f}"}
    return {"date": _now(), **quality, **settings}


def measure_networks(
    tables: DeviceTables,
    space: SearchSpace,
    archs: Sequence[Architecture],
    *,
    protocol: Protocol | None = None,
    journal: Path | None = None,
    progress: Progress = silent,
) -> tuple[dict[Architecture, Row], Measurement]:
    """Whole networks measured in one interleaved session, in the time of the session in which the space was measured first.

    The machine is wanted in the state that it was in then. Up to `ANCHORS` networks that the table holds are measured
    again beside the others, and all are scaled by what these took then and take now. Where the machine never was in that
    state, the factor depends on the network (`then_over_now`).
    """
    table = tables.networks(space)
    known = table.rows
    anchors = [arch for arch in known if arch not in archs][:ANCHORS]
    models = {}
    for done, arch in enumerate([*archs, *anchors]):
        models["-".join(map(str, arch))] = network_onnx(space, arch, tables.device.batch)
        progress("lower networks", done + 1, len(archs) + len(anchors))
    wanted = level_of(table)
    protocol = protocol or NETWORKS
    found = measure(
        models,
        tables.device,
        reference=reference_onnx(),
        protocol=protocol,
        journal=journal,
        level_ms=wanted,
        progress=progress,
    )
    timings = {arch: found.timings[key] for arch, key in zip([*archs, *anchors], models, strict=True) if key in found.timings}
    steady = (wanted or found.reference_ms) / found.reference_ms
    factors = dict.fromkeys(timings, steady)
    if both := [arch for arch in anchors if arch in timings]:
        ratios = np.array([known[arch].price / timings[arch].low_ms for arch in both])
        factors = dict.fromkeys(timings, float(np.median(ratios)))
        if wanted and len(both) >= FEWEST and found.reference_ms != wanted:
            low = np.array([timing.low_ms for timing in timings.values()])
            anchored = np.array([list(timings).index(arch) for arch in both])
            estimated = then_over_now(space, list(timings), low, anchored, ratios)
            factors = dict(zip(timings, estimated.tolist(), strict=True))
    source = source_of(found.fingerprint)
    rows = {
        arch: Row(f * timing.low_ms, f * timing.error_ms, f * timing.p50_ms, f * timing.p90_ms, timing.n, source)
        for arch, timing in timings.items()
        if arch not in anchors and (f := factors[arch])
    }
    return rows, found


def then_over_now(
    space: SearchSpace, archs: Sequence[Architecture], low_ms: NDArray[np.float64], anchors: NDArray[np.int64], ratios: NDArray[np.float64]
) -> NDArray[np.float64]:
    """By what to multiply each network's time in this state of the machine to have it in another, known for some, the anchors.

    The states slow kinds of operators by different factors: the ratio's logarithm is linear in the network's, and in how
    often it holds each kind, with a Gaussian prior (a spread of 5 % a standard deviation of either, and noise of 2 %).
    """
    counts = [Counter(f"{op.kind} {op.kernel}" for op in space.lower(arch)) for arch in archs]
    kinds = sorted(set().union(*counts))
    features = np.column_stack([np.log(low_ms), *([count[kind] for count in counts] for kind in kinds)])
    spread = features.std(0)
    features = (features - features.mean(0))[:, spread > 1e-9] / spread[spread > 1e-9]
    design = np.column_stack([np.ones(len(archs)), features])
    precision = np.diag([0.0, *np.full(features.shape[1], 0.05**-2)])
    seen = design[anchors]
    weights = np.linalg.solve(seen.T @ seen / 0.02**2 + precision, seen.T @ np.log(ratios) / 0.02**2)
    return np.asarray(np.exp(design @ weights))


def profile_networks(
    tables: DeviceTables, space: SearchSpace, number: int, *, seed: int = 0, protocol: Protocol | None = None, progress: Progress = silent
) -> NetworkTable:
    """Measures whole networks until the space has `number` of them, chosen where the table is least sure, and writes them.

    Raises:
        MissingPriceError: the operators have not been measured.
    """
    table = tables.networks(space)
    lacking = number - len(table.rows)
    if lacking > 0:
        prices = tables.operators("latency_ms")
        isolated = np.array([prices.price(op) for op in space.operators()])
        archs = [arch for arch in choose_probes(space, isolated, number, np.random.default_rng(seed)) if arch not in table.rows][:lacking]
        journal = tables.networks_path(space).with_suffix(".journal")
        rows, found = measure_networks(tables, space, archs, protocol=protocol, journal=journal, progress=progress)
        table.rows |= rows
        level = level_of(table) or found.reference_ms
        table.facts |= {**_facts(protocol or NETWORKS, found), REFERENCE_FACT: f"{level:.6g}"}
        table.save(tables.networks_path(space))
        journal.unlink(missing_ok=True)
    return table


def check(tables: DeviceTables, space: SearchSpace, number: int, *, seed: int = 1, progress: Progress = silent) -> dict[str, Any]:
    """How far the calibrated table is from `number` random networks that calibration never saw, measured now, twice.

    What was killed goes on where it stopped.

    Keys: `device`, `space`, `n`, `noise_floor` (the second measuring predicted by the first), `before` (sum of isolated
    prices), `after` (calibrated), `interval_coverage` (of the 90 % interval), `probes`, `seconds`.
    """
    start = time.monotonic()
    calibration = tables.calibration(space)
    archs = unseen(tables, space, number, seed=seed)
    patient = replace(NETWORKS, patience_s=CHECK_PATIENCE_S)
    journals = [tables.networks_path(space).with_suffix(f".check{session}.journal") for session in (1, 2)]
    first, second = (measure_networks(tables, space, archs, protocol=patient, journal=path, progress=progress)[0] for path in journals)
    for path in journals:
        path.unlink(missing_ok=True)
    archs = [arch for arch in archs if arch in first and arch in second]
    measured = np.array([first[arch].price for arch in archs])
    again = np.array([second[arch].price for arch in archs])
    predicted, deviation = calibration.predict(archs)
    low, high = interval(predicted, deviation)
    return {
        "device": tables.device.name,
        "space": space.id,
        "n": len(archs),
        "noise_floor": asdict(Accuracy.of(again, measured)),
        "before": asdict(Accuracy.of(calibration.sum_of_isolated(archs), measured)),
        "after": asdict(Accuracy.of(predicted, measured)),
        "interval_coverage": float(((low <= measured) & (measured <= high)).mean()),
        "probes": len(calibration.measured),
        "seconds": round(time.monotonic() - start, 1),
    }


def unseen(tables: DeviceTables, space: SearchSpace, number: int, *, seed: int) -> list[Architecture]:
    """Random networks that calibration has not seen, each another network.

    Raises:
        TableError: there are fewer than two.
    """
    seen = {space.alive(arch) for arch in tables.networks(space).rows}
    rng = np.random.default_rng(seed)
    archs: list[Architecture] = []
    for _ in range(100 * number):
        arch = space.random(rng)
        if space.alive(arch) not in seen:
            seen.add(space.alive(arch))
            archs.append(arch)
        if len(archs) == number:
            break
    if len(archs) < 2:
        raise TableError(
            f"calibration has seen all networks of {space.name}, so there are none to check it with; calibrate with fewer probes"
        )
    return archs


def space_of(table: NetworkTable, path: Path) -> Mapping[str, Any]:
    """Name and options of the space that a file of measured networks says it is of.

    Raises:
        TableError: it does not say so.
    """
    try:
        named = json.loads(table.facts["space"])
        return {"name": str(named["name"]), "options": dict(named["options"])}
    except (KeyError, ValueError, TypeError):
        raise TableError(f"{path} does not say of which space its networks are (a line '# fact space: ...'); profile again") from None


def spaces_of(tables: DeviceTables) -> list[Mapping[str, Any]]:
    """Name and options of every space that has measured networks in these tables."""
    return [space_of(NetworkTable.load(path), path) for path in sorted((tables.folder / "networks").glob("*.csv"))]
