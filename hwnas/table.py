"""CostTable: OpSpec -> price with its spread, for one device, runtime, precision, batch and metric, as plain text.

A table is a CSV that `pandas.read_csv(path, comment="#")` reads; its header lines carry the fingerprint, the protocol
and the noise floor. Measured, modelled and imported rows are marked as such.
"""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from hwnas.device import require_same
from hwnas.errors import MissingPriceError, SpaceError, TableError
from hwnas.op import OpSpec
from hwnas.space import Architecture

METRICS = ("latency_ms", "energy_mj", "peak_mb")
Source = Literal["measured", "modelled", "imported"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class Row:
    """One operator's price in the table's unit, its standard error, p50 and p90 of single runs, and where it comes from."""

    price: float
    error: float = 0.0
    p50: float = math.nan
    p90: float = math.nan
    n: int = 0
    source: Source = "measured"


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of a table's file that is no row: its number, the operator and price as far as they can be read, and what is wrong."""

    line: int
    op: OpSpec | None
    price: float
    reason: str


@dataclass
class CostTable:
    """The prices of one metric on one device.

    Raises:
        TableError: a price that is negative or not finite, or a metric that no table has.
    """

    device: str
    metric: str
    fingerprint: dict[str, str]
    rows: dict[OpSpec, Row] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    """The protocol, the date, the noise floor: what a reader should know, and what need not be equal to mix."""
    bad: dict[OpSpec, str] = field(default_factory=dict)
    """Operators whose measuring failed, and why."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise TableError(f"a table's metric must be one of {', '.join(METRICS)}, but is {self.metric!r}")
        for op, row in self.rows.items():
            _check(op, row)

    def price(self, op: OpSpec) -> float:
        """The price of an operator.

        Raises:
            MissingPriceError: the table has no row for it.
        """
        if op in self.bad:
            raise MissingPriceError(f"{op} could not be measured on {self.device}: {self.bad[op]}; choose a space without it")
        if op not in self.rows:
            imported = self.fingerprint.get("source") == "imported"
            advice = "import one of its space" if imported else f"measure it with `hwnas profile {self.device} CONFIG`"
            raise MissingPriceError(f"the {self.metric} table of {self.device} has no row for {op}; {advice}")
        return self.rows[op].price

    def missing(self, operators: Iterable[OpSpec]) -> list[OpSpec]:
        """Those of the operators that have no row."""
        return [op for op in operators if op not in self.rows]

    def add(self, rows: Mapping[OpSpec, Row], fingerprint: dict[str, str]) -> None:
        """Takes in rows measured under the same fingerprint.

        Raises:
            FingerprintError: they were measured elsewhere.
        """
        require_same(fingerprint, self.fingerprint, f"the {self.metric} rows to add to {self.device}")
        for op, row in rows.items():
            _check(op, row)
        self.rows.update(rows)
        self.bad = {op: reason for op, reason in self.bad.items() if op not in rows}

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all, rows sorted by operator."""
        lines = [[str(op), *_numbers(row), str(row.n), row.source] for op, row in self.rows.items()]
        columns = ["op", self.metric, "error", "p50", "p90", "n", "source"]
        header = {"device": self.device, "metric": self.metric}
        bad = {f"bad {op}": reason for op, reason in sorted(self.bad.items())}
        write_csv(path, header, self.fingerprint, self.facts | bad, columns, sorted(lines))

    @classmethod
    def load(cls, path: Path, faults: list[Fault] | None = None) -> CostTable:
        """The table in a file. Lines that are wrong are put into `faults` where a list is given, and are no rows.

        Raises:
            TableError: the file cannot be read, or a line of it is wrong: which, and what to do.
        """
        header, fingerprint, facts, columns, lines = read_csv(path)
        metric = header.get("metric", "")
        if columns != ["op", metric, "error", "p50", "p90", "n", "source"]:
            raise TableError(
                f"{path} must have the columns op, {metric or 'a metric'}, error, p50, p90, n, source, but has {', '.join(columns)}"
            )
        bad = {key.removeprefix("bad "): facts.pop(key) for key in list(facts) if key.startswith("bad ")}
        rows: dict[OpSpec, Row] = {}
        for number, line in lines:
            op, price = None, math.nan
            try:
                op = OpSpec.parse(line[0])
                if len(line) != len(columns):
                    raise TableError(f"it has {len(line)} cells and not {len(columns)}")
                price, error, p50, p90 = (float(cell) if cell else math.nan for cell in line[1:5])
                row = Row(price, error, p50, p90, int(line[5]), _source(line[6]))
                _check(op, row)
                if op in rows:
                    raise TableError(f"{op} stands in the table a second time")
            except (ValueError, IndexError, SpaceError) as problem:
                if faults is None:
                    raise TableError(
                        f"line {number} of {path} is not a row of a table ({problem}); mend it or delete it and profile again"
                    ) from None
                faults.append(Fault(number, op, price, str(problem)))
                continue
            rows[op] = row
        # an operator's key holds colons itself, so the reason stands behind ": " (write_csv) and not behind the first colon
        return cls(header.get("device", ""), metric, fingerprint, rows, facts, {OpSpec.parse(op): reason for op, reason in bad.items()})


@dataclass
class NetworkTable:
    """Whole networks of one space measured on one device: what calibration learns from and is judged by."""

    device: str
    space: str
    fingerprint: dict[str, str]
    rows: dict[Architecture, Row] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        lines = [
            ["-".join(map(str, arch)), _text(r.price), _text(r.error), _text(r.p50), _text(r.p90), str(r.n), r.source]
            for arch, r in self.rows.items()
        ]
        write_csv(path, {"device": self.device, "space": self.space}, self.fingerprint, self.facts, _NETWORK_COLUMNS, lines)

    @classmethod
    def load(cls, path: Path) -> NetworkTable:
        """The networks in a file.

        Raises:
            TableError: the file cannot be read or a line of it is wrong.
        """
        header, fingerprint, facts, columns, lines = read_csv(path)
        if columns != _NETWORK_COLUMNS:
            raise TableError(
                f"{path} must have the columns {', '.join(_NETWORK_COLUMNS)}, but has {', '.join(columns)}; delete it and profile again"
            )
        rows: dict[Architecture, Row] = {}
        for number, line in lines:
            try:
                arch = tuple(int(choice) for choice in line[0].split("-"))
                price, error, p50, p90 = (float(cell or math.nan) for cell in line[1:5])
                row = Row(price, error, p50, p90, int(line[5]), _source(line[6]))
                _check(line[0], row)
                if not row.price:
                    raise TableError("no network takes 0 ms")
            except (ValueError, IndexError) as problem:
                raise TableError(f"line {number} of {path} is not a measured network ({problem}); delete it and profile again") from None
            rows[arch] = row
        return cls(header.get("device", ""), header.get("space", ""), fingerprint, rows, facts)


_NETWORK_COLUMNS = ["arch", "latency_ms", "error", "p50", "p90", "n", "source"]


def _source(word: str) -> Source:
    if word not in SOURCES:
        raise TableError(f"source must be one of {', '.join(SOURCES)}, but is {word!r}")
    return next(source for source in SOURCES if source == word)


def _check(what: object, row: Row) -> None:
    if not (math.isfinite(row.price) and row.price >= 0):
        raise TableError(f"the price of {what} must be finite and not negative, but is {row.price}; measure it again")


def _numbers(row: Row) -> list[str]:
    """Six digits of what is measured; all digits of what is imported, whose sums are compared with published ones."""
    numbers = (row.price, row.error, row.p50, row.p90)
    return ["" if math.isnan(value) else repr(value) for value in numbers] if row.source == "imported" else list(map(_text, numbers))


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def write_csv(
    path: Path,
    header: Mapping[str, str],
    fingerprint: Mapping[str, str],
    facts: Mapping[str, str],
    columns: list[str],
    lines: Iterable[list[str]],
) -> None:
    """A CSV behind `# key: value` lines, written whole or not at all.

    Raises:
        TableError: the folder cannot be written to.
    """
    out = io.StringIO()
    for prefix, entries in (("", header), ("fingerprint ", fingerprint), ("fact ", facts)):
        for key, value in entries.items():
            out.write(f"# {prefix}{key}: {value}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    write_text(path, out.getvalue(), "choose another folder with --tables")


def write_text(path: Path, text: str, advice: str = "choose another folder") -> None:
    """The file, whole or not at all.

    Raises:
        TableError: the folder cannot be written to; `advice` says what to do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}; {advice}") from None


def read_csv(path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str], list[str], list[tuple[int, list[str]]]]:
    """The inverse of `write_csv`: header, fingerprint, facts, columns and numbered lines.

    Raises:
        TableError: there is no such file, it cannot be read, or it is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TableError(f"cannot read the table {path}: {reason}") from None
    groups: dict[str, dict[str, str]] = {"": {}, "fingerprint ": {}, "fact ": {}}
    body = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            entry = line[1:].strip()
            prefix = next((p for p in ("fingerprint ", "fact ") if entry.startswith(p)), "")
            key, _, value = f"{entry.removeprefix(prefix)} ".partition(": ")  # an empty value has lost its space
            groups[prefix][key.strip()] = value.strip()
        elif line.strip():
            body.append((number, next(csv.reader([line]))))
    if not body:
        raise TableError(f"{path} holds no table: it has no line of columns; delete it and profile again")
    return groups[""], groups["fingerprint "], groups["fact "], body[0][1], body[1:]
