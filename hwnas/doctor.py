"""Doctor: what cannot be believed in a lookup table, row by row, and measuring those rows again.

The checks (`impossible`, `cheaper_though_larger`, `twins_apart`, `too_wide`, `drifted`) take plain lines, whatever table they
come from. `examine` runs all that can be run on a table's file, `repair` measures again what they found.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from hwnas import layers
from hwnas.config import load_device
from hwnas.device import Relation, disagreement, relation
from hwnas.errors import FingerprintError, HwnasError, SpaceError, TableError
from hwnas.measure import Progress, Protocol, silent
from hwnas.op import OpSpec
from hwnas.profile import REFERENCE_FACT, DeviceTables, measure_into, source_of
from hwnas.quick_onnx import quick_onnx
from hwnas.space import SearchSpace
from hwnas.table import CostTable, Fault, NetworkTable, Row

LATENCY = "latency_ms"


@dataclass(frozen=True)
class Line:
    """A row as the checks see it, of any table. Prices and standard errors are in the table's unit.

    Lines of equal `computation` and equal `sizes` compute the same; where no size is smaller than the other's, a line cannot be
    cheaper.
    """

    name: str
    computation: Hashable
    sizes: Mapping[str, int]
    price: float
    error: float = 0.0


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a finding."""

    sigmas: float = 3.0
    """Differences of fewer standard errors are noise."""
    negligible: float = 0.01
    """Differences below this share of the table's median price do not change what a network costs."""
    apart: float = 0.05
    """Twins may differ by this share."""
    wide: float = 0.2
    """A price's standard error may be this share of it."""
    drift: float = 0.15
    """A price measured again may differ by this share."""
    machine: float = 1.5
    """The reference model may take this many times as long as it did, or as short."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, the operators, the numbers, and a sentence that says it."""

    kind: str
    operators: tuple[str, ...]
    numbers: dict[str, float]
    text: str


def possible(price: float) -> bool:
    """Whether a price can be one: finite and not negative."""
    return bool(math.isfinite(price) and price >= 0)


def impossible(lines: Iterable[Line]) -> list[Finding]:
    """Prices that are negative or not finite."""
    return [
        Finding(
            "price",
            (line.name,),
            {"price": line.price},
            f"{line.name} has the price {line.price:.4g}, which must be finite and not negative",
        )
        for line in lines
        if not possible(line.price)
    ]


def inversions(lines: Sequence[Line], limits: Limits | None = None) -> list[tuple[Line, Line]]:
    """All pairs (larger, smaller) of one computation in which the larger one is cheaper beyond the errors."""
    limits = limits or Limits()
    slack = _slack(lines, limits)
    groups: dict[Hashable, list[Line]] = {}
    for line in lines:
        if possible(line.price):
            groups.setdefault((line.computation, tuple(sorted(line.sizes))), []).append(line)
    found = []
    for group in groups.values():
        for one, other in combinations(group, 2):
            for larger, smaller in ((one, other), (other, one)):
                grows = all(size >= smaller.sizes[name] for name, size in larger.sizes.items()) and larger.sizes != smaller.sizes
                if grows and smaller.price - larger.price > max(slack, limits.sigmas * _error(larger, smaller)):
                    found.append((larger, smaller))
    return found


def cheaper_though_larger(lines: Sequence[Line], limits: Limits | None = None) -> list[Finding]:
    """Non-monotone rows: one finding for every operator that is cheaper than smaller ones, with the dearest of those."""
    worst: dict[str, tuple[Line, Line]] = {}
    others: dict[str, int] = {}
    for larger, smaller in inversions(lines, limits):
        others[larger.name] = others.get(larger.name, 0) + 1
        if larger.name not in worst or smaller.price > worst[larger.name][1].price:
            worst[larger.name] = (larger, smaller)
    findings = []
    for larger, smaller in worst.values():
        more = others[larger.name] - 1
        text = f"{larger.name} is larger than {smaller.name} and yet cheaper: {larger.price:.4g} against {smaller.price:.4g}"
        text += _beyond(smaller.price - larger.price, _error(larger, smaller)) + (f"; so it is with {more} more" if more else "")
        numbers = {"price": larger.price, "smaller_price": smaller.price, "error": _error(larger, smaller), "pairs": more + 1}
        findings.append(Finding("monotone", (larger.name, smaller.name), numbers, text))
    return findings


def twins_apart(lines: Sequence[Line], limits: Limits | None = None) -> list[Finding]:
    """Operators that compute the same and whose prices differ beyond the errors and `limits.apart`; one finding a set of twins."""
    limits = limits or Limits()
    slack = _slack(lines, limits)
    sets: dict[Hashable, list[Line]] = {}
    for line in lines:
        if possible(line.price):
            sets.setdefault((line.computation, tuple(sorted(line.sizes.items()))), []).append(line)
    findings = []
    for twins in sets.values():
        low, high = min(twins, key=lambda line: line.price), max(twins, key=lambda line: line.price)
        apart = high.price - low.price
        if apart > max(slack, limits.sigmas * _error(low, high), limits.apart * low.price):
            ratio = high.price / low.price if low.price > 0 else math.inf
            text = f"{high.name} and {low.name} compute the same, but cost {high.price:.4g} and {low.price:.4g}: {ratio:.3g} times as much"
            numbers = {"price": high.price, "twin_price": low.price, "error": _error(low, high), "ratio": ratio}
            names = (high.name, low.name, *(line.name for line in twins if line not in (high, low)))
            findings.append(Finding("twins", names, numbers, text + _beyond(apart, _error(low, high))))
    return findings


def too_wide(lines: Sequence[Line], limits: Limits | None = None) -> list[Finding]:
    """Prices whose standard error is above `limits.wide` of them."""
    limits = limits or Limits()
    slack = _slack(lines, limits)
    return [
        Finding(
            "wide",
            (line.name,),
            {"price": line.price, "error": line.error},
            f"{line.name} costs {line.price:.4g} with a standard error of {line.error:.2g}, above {limits.wide:.0%} of it",
        )
        for line in lines
        if possible(line.price) and line.error > max(slack, limits.wide * line.price)
    ]


def drifted(before: Mapping[str, Line], now: Mapping[str, Line], limits: Limits | None = None) -> list[Finding]:
    """Rows that were measured again and cost something else now, by more than the errors and `limits.drift`."""
    limits = limits or Limits()
    slack = _slack(list(before.values()), limits)
    findings = []
    for name in before.keys() & now.keys():
        then, again = before[name], now[name]
        gap = abs(again.price - then.price)
        if gap > max(slack, limits.sigmas * _error(then, again), limits.drift * then.price):
            text = f"{name} cost {then.price:.4g} when it was measured and costs {again.price:.4g} now" + _beyond(gap, _error(then, again))
            findings.append(Finding("drift", (name,), {"price": then.price, "now": again.price, "error": _error(then, again)}, text))
    return sorted(findings, key=lambda finding: finding.operators)


def absent(needed: Iterable[str], there: Collection[str], of: str) -> list[Finding]:
    """The keys that `of` needs and that are not there, in one finding."""
    missing = tuple(dict.fromkeys(name for name in needed if name not in there))
    if not missing:
        return []
    text = f"{len(missing)} rows that {of} needs are missing, e.g. {missing[0]}"
    return [Finding("missing", missing, {"missing": len(missing)}, text)]


def _slack(lines: Sequence[Line], limits: Limits) -> float:
    prices = [line.price for line in lines if possible(line.price)]
    return limits.negligible * float(np.median(prices)) if prices else 0.0


def _error(one: Line, other: Line) -> float:
    return math.hypot(*(0.0 if math.isnan(line.error) else line.error for line in (one, other)))


def _beyond(gap: float, error: float) -> str:
    return f" ({gap / error:.1f} standard errors)" if error > 0 else " (no errors are stated)"


def lines_of(table: CostTable) -> list[Line]:
    """A table's rows: comparable where kind, stride, groups and dilation are equal, by channels, image size and kernel.

    One that keeps its channels is not compared with one that does not: it may add its input, which costs something.
    """
    return [
        Line(
            str(op),
            (op.kind, op.stride, op.groups, op.dilation, op.c_in == op.c_out),
            {name: getattr(op, name) for name in ("c_in", "c_out", "height", "width", "kernel", "hidden")},
            row.price,
            row.error,
        )
        for op, row in table.rows.items()
    ]


def graphs_of(table: CostTable) -> list[Line]:
    """A table's rows by what they compute, whatever they are called: by the graph that a runtime is given.

    Operators that this installation cannot build (imported ones) have no graph and are left out.
    """
    lines = []
    for op, row in table.rows.items():
        try:
            with torch.device("meta"):
                module = layers.build(op)
            graph = quick_onnx(module, (op.c_in, op.height, op.width))
        except SpaceError:
            continue
        lines.append(Line(str(op), hashlib.sha256(graph).hexdigest(), {}, row.price, row.error))
    return lines


@dataclass
class Patient:
    """A table's file, read line by line, and how it stands to this machine."""

    path: Path
    table: CostTable
    faults: list[Fault]
    """Lines that are no rows."""
    here: DeviceTables | None
    """The tables that its device would have on this machine now; None where the device cannot be asked."""
    unknown: str = ""
    """Why it cannot."""
    reference: dict[str, float] = field(default_factory=dict)
    """The reference model's time when the table was begun and now, ms; empty where nothing has been measured again."""

    @property
    def standing(self) -> Relation | None:
        """How the table's fingerprint is related to the one that measurements have here; None where that is not known."""
        return None if self.here is None else relation(self.table.fingerprint, self.here.fingerprint)


def find_table(name: str, root: Path) -> tuple[Path, DeviceTables | None, str]:
    """The latency table of a device, or the table's file itself; the device's tables here, or why there are none to compare with.

    A device's own table of this machine comes first; else that which was measured last elsewhere.

    Raises:
        DeviceError: there is no such device. TableError: it has no tables.
    """
    if name.endswith(".csv"):
        path = Path(name).resolve()
        device = CostTable.load(path, []).device
    else:
        path, device = Path(), name
    here, unknown = None, ""
    try:
        loaded = load_device(device)
        root = path.parents[2] if name.endswith(".csv") and len(path.parents) > 2 else root
        here = DeviceTables.here(root, loaded)
    except HwnasError as error:
        if not name.endswith(".csv") and not (root / name).is_dir():
            raise
        unknown = str(error)
    if name.endswith(".csv"):
        return path, here, unknown
    if here is not None and (here.folder / f"{LATENCY}.csv").exists():
        return here.folder / f"{LATENCY}.csv", here, unknown
    others = list((root / (here.device.name if here else name)).glob(f"*/{LATENCY}.csv"))
    if not others:
        raise TableError(f"{name} has no tables in {root}; measure with `hwnas profile {name} CONFIG`")
    return max(others, key=lambda other: CostTable.load(other, []).facts.get("date", "")), here, unknown


def admit(name: str, root: Path) -> Patient:
    """The table of a device or in a file, for `examine`.

    Raises:
        TableError: there is none, or its file is no table.
    """
    path, here, unknown = find_table(name, root)
    faults: list[Fault] = []
    return Patient(path, CostTable.load(path, faults), faults, here, unknown)


def examine(
    patient: Patient,
    space: SearchSpace | None = None,
    *,
    limits: Limits | None = None,
    again: int = 5,
    seed: int = 0,
    protocol: Protocol | None = None,
    progress: Progress = silent,
) -> list[Finding]:
    """All that is wrong with the table, and with what `space` needs of it.

    `again` random rows and the reference model are measured again where the fingerprint is this machine's; 0 measures nothing.
    """
    table = patient.table
    findings = [*_fingerprint(patient), *_faults(patient), *_facts(patient)]
    lines = lines_of(table)
    findings += cheaper_though_larger(lines, limits)
    findings += twins_apart(graphs_of(table), limits)
    findings += too_wide(lines, limits)
    findings += [Finding("bad", (str(op),), {}, f"{op} could not be measured: {reason}") for op, reason in sorted(table.bad.items())]
    if space is not None:
        known = {str(op) for op in (*table.rows, *table.bad, *(fault.op for fault in patient.faults if fault.op is not None))}
        findings += absent(map(str, space.operators()), known, space.name)
    findings += _predicted(table)
    findings += _networks(patient)
    if again and patient.standing == "same" and table.metric == LATENCY:
        findings += _measured_again(patient, again, seed, limits or Limits(), protocol, progress)
    return findings


def _fingerprint(patient: Patient) -> list[Finding]:
    if patient.table.rows and all(row.source == "imported" for row in patient.table.rows.values()):
        return []
    if patient.here is None:
        return [Finding("fingerprint", (), {}, f"whether the table was measured here is not known: {patient.unknown}")]
    if patient.standing == "same":
        return []
    return [Finding("fingerprint", (), {}, f"the table {disagreement(patient.table.fingerprint, patient.here.fingerprint)}")]


def _faults(patient: Patient) -> list[Finding]:
    findings = []
    for fault in patient.faults:
        kind = "price" if fault.op is not None and not math.isnan(fault.price) and not possible(fault.price) else "line"
        text = f"line {fault.line} is not a row: {fault.reason}"
        findings.append(Finding(kind, () if fault.op is None else (str(fault.op),), {"line": fault.line, "price": fault.price}, text))
    return findings


def _facts(patient: Patient) -> list[Finding]:
    facts = patient.table.facts
    lacking = [what for what in ("date", "protocol") if not any(key == what or key.startswith(f"{what} ") for key in facts)]
    if not lacking or not any(row.source == "measured" for row in patient.table.rows.values()):
        return []
    return [Finding("undocumented", (), {}, f"the table holds measured rows, but does not say their {' and '.join(lacking)}")]


def _predicted(table: CostTable) -> list[Finding]:
    if table.metric != LATENCY or source_of(table.fingerprint) == "modelled":
        return []
    names = tuple(str(op) for op, row in sorted(table.rows.items()) if row.source == "modelled")
    if not names:
        return []
    text = f"{len(names)} rows are predicted and not measured, e.g. {names[0]}; `hwnas profile` measures them"
    return [Finding("modelled", names, {"rows": len(names)}, text)]


def _networks(patient: Patient) -> list[Finding]:
    findings = []
    for path in sorted((patient.path.parent / "networks").glob("*.csv")):
        try:
            networks = NetworkTable.load(path)
        except TableError as error:
            findings.append(Finding("networks", (), {}, str(error)))
            continue
        if networks.fingerprint != patient.table.fingerprint:
            text = f"{path} has another fingerprint than the operators beside it; measure again with `hwnas profile`"
            findings.append(Finding("networks", (), {}, text))
    return findings


def _measured_again(
    patient: Patient, number: int, seed: int, limits: Limits, protocol: Protocol | None, progress: Progress
) -> list[Finding]:  # fmt: skip
    table = patient.table
    slack = _slack(lines_of(table), limits)
    worth = [op for op, row in sorted(table.rows.items()) if row.source == "measured" and row.price > 2 * slack]
    if not worth:
        return []
    chosen = [worth[i] for i in np.random.default_rng(seed).permutation(len(worth))[:number]]
    assert patient.here is not None
    copy = CostTable(table.device, table.metric, dict(table.fingerprint), facts=dict(table.facts))
    with tempfile.TemporaryDirectory() as folder:
        found = measure_into(copy, patient.here, chosen, protocol=protocol, progress=progress, journal=Path(folder) / "again.journal")
    then = float(copy.facts[REFERENCE_FACT])
    patient.reference = {"then_ms": then, "now_ms": found.reference_ms}
    findings = [Finding("bad", (str(op),), {}, f"{op} cannot be measured any more: {reason}") for op, reason in copy.bad.items()]
    if not 1 / limits.machine <= found.reference_ms / then <= limits.machine:
        text = f"the reference model took {then:.4g} ms when the table was begun and takes {found.reference_ms:.4g} ms now"
        findings.append(Finding("drift", (), dict(patient.reference), f"{text}: the whole machine runs at another speed"))
    old, new = ({line.name: line for line in lines_of(one)} for one in (table, copy))
    return findings + drifted({name: old[name] for name in map(str, chosen)}, new, limits)


FIXABLE = ("price", "line", "monotone", "twins", "wide", "drift", "bad", "missing")
"""The kinds of findings whose operators `repair` measures again."""


def repair(
    patient: Patient, findings: Iterable[Finding], *, protocol: Protocol | None = None, progress: Progress = silent
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Measures the operators of the findings again, in one session, and writes the table: whole or not at all.

    Gives the operators that have a new price with the old one (NaN where there was none) and the new. An operator that fails now
    keeps the price that it had. Lines that name no operator are not written again.

    Raises:
        FingerprintError: the table is not of this machine and runtime as they are now.
        TableError: it is no table of latencies, or its file cannot be written.
    """
    require_here(patient)
    operators = sorted({OpSpec.parse(name) for finding in findings if finding.kind in FIXABLE for name in finding.operators})
    before: dict[OpSpec, Row] = dict(patient.table.rows)
    assert patient.here is not None
    journal = patient.path.with_name("doctor.journal")
    if operators:
        measure_into(patient.table, patient.here, operators, protocol=protocol, progress=progress, journal=journal)
    if operators or patient.faults:
        patient.table.save(patient.path)
        patient.faults = []
    journal.unlink(missing_ok=True)
    rows = patient.table.rows
    nothing = Row(math.nan)
    return {str(op): (before.get(op, nothing).price, rows[op].price) for op in operators if op in rows and rows[op] != before.get(op)}


def require_here(patient: Patient) -> None:
    """Refuses to measure rows of a table that is not this machine's as it is now.

    Raises:
        FingerprintError: what differs. TableError: its rows are not what is measured.
    """
    if patient.table.metric != LATENCY:
        raise TableError(f"{patient.path} holds {patient.table.metric}, which is not measured; only tables of {LATENCY} can be fixed")
    if patient.here is None:
        raise FingerprintError(f"rows of {patient.path} cannot be measured again here: {patient.unknown}")
    if patient.standing != "same":
        raise FingerprintError(
            f"rows of {patient.path} cannot be measured again here: it {disagreement(patient.table.fingerprint, patient.here.fingerprint)}"
        )
