"""Tables of other projects: a file's entries become the prices of a space's operators, and a table is written in their forms.

A form is one file in `hwnas/formats/`. It reads a file into entries by key and says of every operator of a space which entries add up
to its price. Imported rows are marked so, and the table's fingerprint is the file's: it never mixes with what is measured here.
"""

from __future__ import annotations

import abc
import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from hwnas import plugins
from hwnas.errors import TableError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace
from hwnas.table import CostTable, Row, write_text

Recipe = Mapping[str, float]
"""The entries whose sum is an operator's price, each times a factor; an empty one is an operator that costs nothing in that form."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of a file in the metric's unit, its standard error, p50 and p90 where the file has them, and how many runs it is of."""

    value: float
    error: float = 0.0
    p50: float = math.nan
    p90: float = math.nan
    n: int = 0


class Form(abc.ABC):
    """How one project writes its tables. Options are keyword-only constructor arguments."""

    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    """What its files can hold."""
    exports: ClassVar[bool] = False
    """Whether `write` is there."""

    @abc.abstractmethod
    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """The file's entries by key.

        Raises:
            TableError: what is wrong with the file, as the end of a sentence that begins with its name.
        """

    @abc.abstractmethod
    def recipes(self, space: SearchSpace, entries: Mapping[str, Entry]) -> dict[OpSpec, list[Recipe]]:
        """Which entries make each operator's price: one recipe, or one for every place where the file has a number for the operator.

        Raises:
            TableError: the file is of another space, e.g. of one with fewer layers.
        """

    def operator(self, key: str) -> OpSpec | None:
        """The operator that a key stands for, in forms that say it without a space."""
        return None

    def write(self, table: CostTable, space: SearchSpace | None) -> tuple[str, list[OpSpec]]:
        """The table in this form, and the operators that the form has no place for.

        Raises:
            TableError: it cannot hold this table.
        """
        raise NotImplementedError


class Keyed(Form):
    """A form whose keys say the sizes of an operator."""

    pattern: ClassVar[re.Pattern[str]]
    """What its keys look like."""
    free: ClassVar[frozenset[str]] = frozenset({"identity"})
    """Kinds of operators that cost nothing in this form's sums."""

    @abc.abstractmethod
    def recipe(self, op: OpSpec) -> Recipe | None:
        """The keys of an operator; None where the form has none."""

    def recipes(self, space: SearchSpace, entries: Mapping[str, Entry]) -> dict[OpSpec, list[Recipe]]:
        """One recipe for every operator that the form has keys for."""
        found = {op: {} if op.kind in self.free else self.recipe(op) for op in space.operators()}
        return {op: [recipe] for op, recipe in found.items() if recipe is not None}

    def check_keys(self, keys: Iterable[str]) -> None:
        """Refuses a key that is none of this form.

        Raises:
            TableError: the first of them.
        """
        for key in keys:
            if not self.pattern.fullmatch(key):
                raise TableError(f"holds the key {key!r}, which is none of this form; choose another --format or delete that entry")


class LayerYAML(Keyed):
    """ProxylessNAS's and once-for-all's files: a mapping of layer keys to mean (ms), count and `spread` (var or std) of single runs.

    What is written has `error`, `p50` and `p90` beside them, which other programs do not look at.
    """

    exports = True
    spread: ClassVar[str]

    @abc.abstractmethod
    def key(self, op: OpSpec) -> str | None:
        """The key of an operator; None where the form has none."""

    def recipe(self, op: OpSpec) -> Recipe | None:
        """The operator's one key."""
        key = self.key(op)
        return None if key is None else {key: 1.0}

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """The entries of a YAML mapping."""
        found = parse_yaml(text)
        if not text.endswith("\n"):
            raise TableError("ends in the middle of a line, so it may be cut off: get it again")
        if not text.endswith("\n"):
            raise TableError("ends in the middle of a line, so it may be cut off: get it again")
        self.check_keys(found)
        return {key: self._entry(key, values) for key, values in found.items()}

    def _entry(self, key: str, values: Any) -> Entry:
        needed = ("mean", "count", self.spread)
        if lacking := [name for name in needed if not isinstance(values, dict) or name not in values]:
            raise TableError(f"gives no {lacking[0]} for {key!r}; the file may be cut off: get it again")
        mean, count, spread = (number(values[name], f"{name} of {key}") for name in needed)
        if not (0 <= count < math.inf and 0 <= spread < math.inf):
            raise TableError(f"gives {key!r} a count or {self.spread} that is negative or not finite; mend or delete that entry")
        deviation = spread**0.5 if self.spread == "var" else spread
        error = number(values["error"], f"error of {key}") if "error" in values else deviation / max(count, 1) ** 0.5
        p50, p90 = (number(values[name], f"{name} of {key}") if name in values else math.nan for name in ("p50", "p90"))
        return Entry(mean, error, p50, p90, int(count))

    def write(self, table: CostTable, space: SearchSpace | None) -> tuple[str, list[OpSpec]]:
        """Every operator that has a key, by key."""
        written: dict[str, dict[str, float | int]] = {}
        left_out = []
        for op, row in table.rows.items():
            key = self.key(op)
            if key is None:
                left_out.append(op)
                continue
            if key in written:
                raise TableError(f"{op} and another operator of the table have the same key {key!r} in this form; export one space's table")
            deviation = row.error * max(row.n, 1) ** 0.5
            more = {name: value for name, value in (("error", row.error), ("p50", row.p50), ("p90", row.p90)) if not math.isnan(value)}
            written[key] = {"count": row.n, "mean": row.price, self.spread: deviation**2 if self.spread == "var" else deviation, **more}
        return yaml.safe_dump(written), left_out


class Positional(Form):
    """A form with one number for every layer and choice. Equal operators at several layers get their mean, and their spread as error."""

    blocks: ClassVar[frozenset[str]]
    """The kinds of operators that have numbers at searched layers."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Kinds of operators that cost nothing in this form's sums."""

    @abc.abstractmethod
    def columns(self, op: OpSpec) -> tuple[str, ...] | None:
        """The names of the choices that are this operator (of `blocks`); None where the form has none."""

    def recipes(self, space: SearchSpace, entries: Mapping[str, Entry]) -> dict[OpSpec, list[Recipe]]:
        """A recipe for every place; layers are the nodes that operators of `blocks` write, in order."""
        layers: dict[str, list[OpSpec]] = {}
        for site in space.sites:
            if site.op.kind in self.blocks:
                layers.setdefault(site.output, []).append(site.op)
        numbers = {int(key.split()[1]) for key in entries}
        if numbers != set(range(1, len(layers) + 1)):
            raise TableError(
                f"holds {len(numbers)} layers ({min(numbers)} to {max(numbers)}), but {space.name} has {len(layers)} with these options; "
                "choose the table's space"
            )
        found: dict[OpSpec, list[Recipe]] = {op: [{}] for op in space.operators() if op.kind in self.free}
        for layer, operators in enumerate(layers.values(), 1):
            for op in dict.fromkeys(operators):
                columns = self.columns(op)
                if columns is not None:
                    found.setdefault(op, []).extend({place(layer, column): 1.0} for column in columns)
        return found


def place(layer: int, column: str) -> str:
    """The key of a layer's choice; layers count from 1."""
    return f"layer {layer} {column}"


@dataclass(frozen=True)
class Imported:
    """A table made of a file, and what did not find its counterpart."""

    table: CostTable
    missing: list[OpSpec] = field(default_factory=list)
    """Operators of the space that the file has no number for."""
    unused: list[str] = field(default_factory=list)
    """Keys of the file that are no operator of the space."""


def load_form(name: str, options: dict[str, Any]) -> Form:
    """The form of `hwnas/formats/<name>.py` made with these options.

    Raises:
        PluginError: there is none of that name; ConfigError: an option that it does not have.
    """
    form: Form = plugins.build("formats", name, options)
    return form


def import_table(
    name: str,
    paths: Sequence[Path],
    device: str,
    space: SearchSpace | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    metric: str = "latency_ms",
    fixed_as_zero: bool = False,
) -> Imported:
    """The table of `device` in the files of the form `name`, for a space's operators (or all that a form names without a space).

    `fixed_as_zero` prices operators that every network holds and the file lacks at 0: costs are then without that fixed part.

    Raises:
        TableError: a file cannot be read, is not of that form, or is of another space.
    """
    form = load_form(name, dict(options or {}))
    if metric not in form.metrics:
        raise TableError(f"files of the form {name} hold {' and '.join(form.metrics)}, but the metric asked for is {metric!r}")
    device = " ".join(device.split())
    if not device:
        raise TableError("the device of an imported table has no name; say with --device what the numbers were measured on")
    entries = _entries(form, paths, metric)
    fingerprint = {"source": "imported", "device": device, "format": name, **_origin(paths)}
    fingerprint |= {f"option {key}": json.dumps(value) for key, value in sorted((options or {}).items())}
    facts = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if space is None:
        recipes: dict[OpSpec, list[Recipe]] = {op: [{key: 1.0}] for key in entries if (op := form.operator(key)) is not None}
        if not recipes:
            raise TableError(f"the form {name} does not say an operator's sizes; name the space that the table is of with --space")
        operators: Sequence[OpSpec] = list(recipes)
    else:
        try:
            recipes = form.recipes(space, entries)
        except TableError as error:
            raise TableError(f"{', '.join(map(str, paths))} {error}") from None
        operators = space.operators()
        facts["space"] = json.dumps({"name": space.name, "options": space.options})
    rows, used, apart = _rows(operators, recipes, entries)
    if not used:
        what = space.name if space else "any space"
        raise TableError(
            f"none of the {len(entries)} entries of {paths[0]}, e.g. {next(iter(entries))!r}, is an operator of {what} with these options; "
            "choose the space and the image size that the table is of"
        )
    if free := [str(op) for op in rows if not any(recipes[op])]:
        facts["free"] = f"not in the file and of no cost in this form's sums: {', '.join(sorted(free))}"
    if apart:
        ratio = max(apart.values())
        facts["places"] = (
            f"{len(apart)} operators have several numbers, up to {ratio:.3g} times apart; their price is the mean, their error the spread"
        )
    missing = [op for op in operators if op not in rows]
    if fixed_as_zero and space is not None:
        searched = {site.op for site in space.sites if any(len(space.slots[slot].choices) > 1 for slot, _ in site.when)}
        fixed = [op for op in missing if op not in searched]
        rows |= {op: Row(0.0, source="imported") for op in fixed}
        facts |= {"priced 0": f"not in the file and in every network: {', '.join(map(str, fixed))}"} if fixed else {}
        missing = [op for op in missing if op in searched]
    return Imported(CostTable(device, metric, fingerprint, rows, facts), missing, sorted(entries.keys() - used))


def _entries(form: Form, paths: Sequence[Path], metric: str) -> dict[str, Entry]:
    """What the files hold together."""
    entries: dict[str, Entry] = {}
    for path in paths:
        text = _read(path)
        try:
            found = form.read(text, metric)
            _check(found)
            if twice := sorted(entries.keys() & found.keys()):
                raise TableError(f"gives {twice[0]!r} a second time; import the files one by one")
        except TableError as error:
            raise TableError(f"{path} {error}") from None
        entries |= found
    return entries


def _origin(paths: Sequence[Path]) -> dict[str, str]:
    """Name and SHA-256 of the files."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return {"file": ", ".join(" ".join(path.name.split()) for path in paths), "sha256": ", ".join(digests)}


def _rows(
    operators: Iterable[OpSpec], recipes: Mapping[OpSpec, list[Recipe]], entries: Mapping[str, Entry]
) -> tuple[dict[OpSpec, Row], set[str], dict[OpSpec, float]]:
    """The rows of operators all of whose entries are there, the keys used, and how far apart (as a factor) several numbers are."""
    rows: dict[OpSpec, Row] = {}
    used: set[str] = set()
    apart: dict[OpSpec, float] = {}
    for op in operators:
        there = [recipe for recipe in recipes.get(op, []) if recipe.keys() <= entries.keys()]
        used.update(*there)
        if not there:
            continue
        parts = [[(factor, entries[key]) for key, factor in recipe.items()] for recipe in there]
        values = [math.fsum(factor * entry.value for factor, entry in part) for part in parts]
        if min(values) < 0:
            raise TableError(
                f"the entries {', '.join(there[0])} make a price of {min(values):.4g} for {op}, which is below 0; mend the file"
            )
        price = math.fsum(values) / len(values)
        error = math.sqrt(math.fsum((factor * entry.error) ** 2 for factor, entry in parts[0]))
        n = min((entry.n for part in parts for _, entry in part), default=0)
        p50 = p90 = math.nan
        if len(values) > 1:
            error = math.sqrt(math.fsum((value - price) ** 2 for value in values) / (len(values) - 1))
            apart |= {op: max(values) / min(values)} if min(values) > 0 else {}
        elif list(there[0].values()) == [1.0]:
            entry = parts[0][0][1]
            price, error, p50, p90 = entry.value, entry.error, entry.p50, entry.p90
        rows[op] = Row(price, error, p50, p90, n, "imported")
    return rows, used, apart


def _check(entries: Mapping[str, Entry]) -> None:
    if not entries:
        raise TableError("holds no entry; the file may be cut off: get it again")
    for key, entry in entries.items():
        if not (math.isfinite(entry.value) and entry.value >= 0):
            raise TableError(f"gives {entry.value:g} for {key!r}, which is no price; mend or delete that entry")
        more = [entry.error, *(value for value in (entry.p50, entry.p90) if not math.isnan(value))]
        if not all(math.isfinite(value) and value >= 0 for value in more) or entry.n < 0:
            raise TableError(f"gives {key!r} a spread, percentile or count that is negative or not finite; mend or delete that entry")


def export_table(
    name: str, table: CostTable, path: Path, space: SearchSpace | None = None, *, options: Mapping[str, Any] | None = None
) -> list[OpSpec]:
    """Writes the table in the form `name`, whole or not at all; gives the operators that the form has no place for.

    Raises:
        TableError: the form is only read, holds no such metric, or has a place for none of the operators.
    """
    form = load_form(name, dict(options or {}))
    if not form.exports:
        writable = [known for known in plugins.names("formats") if plugins.load("formats", known).exports]
        raise TableError(f"tables of the form {name} can be imported but not written; forms that can be written: {', '.join(writable)}")
    if table.metric not in form.metrics:
        raise TableError(f"files of the form {name} hold {' and '.join(form.metrics)}, but the table is of {table.metric}")
    text, left_out = form.write(table, space)
    if len(left_out) == len(table.rows):
        example = f", e.g. {left_out[0]}" if left_out else ""
        raise TableError(f"the form {name} has a place for none of the table's {len(left_out)} operators{example}; choose another --format")
    write_text(path, text)
    return left_out


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TableError(f"{path} is not text and so no table of any form; give the file that the project publishes") from None


def number(value: Any, what: str) -> float:
    """A number of a file.

    Raises:
        TableError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TableError(f"gives {value!r} for {what!r}, which is no number; mend that entry")
    return float(value)


def parse_json(text: str) -> Any:
    """The content of a JSON file.

    Raises:
        TableError: it is not JSON, with the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TableError(f"is not valid JSON at line {error.lineno} ({error.msg}); it may be cut off: get it again") from None


def parse_yaml(text: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        TableError: it is not YAML, with the line, or no mapping of names.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise TableError(f"is not valid YAML{line}; it may be cut off: get it again") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise TableError(f"must hold a mapping of keys to numbers, but holds {type(found).__name__}; choose another --format")
    return found
