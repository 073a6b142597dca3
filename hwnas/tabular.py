"""What a benchmark has tabulated: the values of every architecture of a space, read from an npz, or from any function."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hwnas.cost import Cost, TabularCost
from hwnas.errors import ConfigError, TableError, nearest
from hwnas.evaluate import MEASURED
from hwnas.space import Architecture, SearchSpace

Column = NDArray[np.float64]
"""Values of shape `space.num_choices`, indexed by the architecture; NaN where it has no path and the file does not hold it."""

MOST_ROWS = 1 << 24
"""Assignments of choices of the largest space whose columns are held in memory."""
_SHARES = ("accuracy", "error")


class TabularEvaluator:
    """Looks up `error`, `accuracy` and `loss`; of error and accuracy either gives the other, and the seeds make no difference.

    Args:
        values: columns by name, or a function that gives an architecture's values by name.
    """

    def __init__(self, values: Mapping[str, Column] | Callable[[Architecture], Mapping[str, float]]) -> None:
        self._values = values

    @property
    def names(self) -> list[str]:
        """What it gives, where that is known beforehand."""
        return [] if callable(self._values) else list(_completed(dict.fromkeys(self._values, 0.0)))

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Nothing to prepare."""

    def evaluate(self, archs: Sequence[Architecture], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        """The values of each architecture as it is written: isomorphic cells may stand with different ones."""
        for number, arch in enumerate(archs):
            found = self._values(arch) if callable(self._values) else {name: float(column[arch]) for name, column in self._values.items()}
            yield number, _completed(found)

    def close(self) -> None:
        """Nothing to end."""


def _completed(values: Mapping[str, float]) -> dict[str, float]:
    """Error from accuracy, or accuracy from error."""
    other = {_SHARES[1 - i]: 1 - values[name] for i, name in enumerate(_SHARES) if name in values}
    return {**other, **values}


def evaluator_and_costs(
    space: SearchSpace,
    *,
    file: Annotated[str, Field(min_length=1)],
    archs: str = "ops",
    values: Annotated[dict[str, str], Field(min_length=1)],
) -> tuple[TabularEvaluator, dict[str, Cost]]:
    """What a file tabulates: `error`, `accuracy` and `loss` to be evaluated, any other metric as a cost.

    Args:
        file: path of an npz.
        archs: its array of architectures, (architecture, slot), choices by number.
        values: from each metric to its column: the name of an array, `latency_ms[gold_6226]` or `latency_ms[4]` of one with
            several columns, and `test_acc %` where the file holds per cent of what is a share here.

    Raises:
        TableError: the file cannot be read, or it does not give every architecture of the space one finite value.
        ConfigError: a column that it does not have.
    """
    columns = read_columns(space, Path(file), archs, values)
    measured = {name: column for name, column in columns.items() if name in MEASURED}
    return TabularEvaluator(measured), {m: TabularCost(space, m, column) for m, column in columns.items() if m not in MEASURED}


def read_columns(space: SearchSpace, file: Path, archs: str, values: Mapping[str, str]) -> dict[str, Column]:
    """The columns `values` of an npz, laid out by the choices of the array `archs`; see `evaluator_and_costs`."""
    arrays = _read(file)
    index = _index(space, _array(arrays, archs, file), f"{archs} of {file}")
    found = {}
    for metric, text in values.items():
        rows = _column(arrays, text, len(index), file)
        if metric in _SHARES and ((rows < 0) | (rows > 1)).any():
            raise TableError(
                f"{metric} must be a share between 0 and 1, but {text!r} of {file} has values from {np.nanmin(rows):g} to "
                f"{np.nanmax(rows):g}; if these are per cent, write {text.rstrip(' %') + ' %'!r}"
            )
        if metric not in MEASURED and (rows < 0).any():
            raise TableError(f"{text!r} of {file} is a cost and must not be negative, but is {rows.min():g} in row {rows.argmin()}")
        column = np.full(space.num_choices, np.nan)
        column.reshape(-1)[index] = rows
        for row in np.flatnonzero(~np.isfinite(rows)):
            arch = _unravel(space, index[row])
            if space.is_valid(arch):
                raise TableError(f"{text!r} of {file} is {rows[row]} in row {row} ({space.describe(arch)}); every value must be finite")
        found[metric] = column
    return found


def _read(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise TableError(f"there is no file {file}; give the path of an npz of tabulated architectures") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise TableError(f"{file} cannot be read as an npz of plain arrays ({str(error).splitlines()[0]}); get an intact copy") from None


def _array(arrays: Mapping[str, NDArray[Any]], name: str, file: Path) -> NDArray[Any]:
    if name not in arrays:
        raise ConfigError(f"{file} has no array {name!r}; {nearest(name, arrays)}")
    return arrays[name]


def _index(space: SearchSpace, archs: NDArray[Any], what: str) -> NDArray[np.int64]:
    """Where each row stands in a flat column."""
    if archs.ndim != 2 or archs.shape[1] != len(space.slots) or archs.dtype.kind not in "iu":
        raise TableError(
            f"{what} must hold whole numbers of shape (architecture, {len(space.slots)}), a choice for every slot of {space.name}, "
            f"but has {archs.dtype} of shape {archs.shape}"
        )
    wrong = np.flatnonzero(((archs < 0) | (archs >= np.array(space.num_choices))).any(1))
    if len(wrong):
        raise TableError(
            f"row {wrong[0]} of {what}, {archs[wrong[0]].tolist()}, has a choice that {space.name} {space.num_choices} does not have"
        )
    if space.size > MOST_ROWS:
        raise TableError(f"{what} has {len(archs)} of the {space.size} architectures of {space.name}; a table must hold them all")
    index = np.ravel_multi_index(tuple(archs.T.astype(np.int64)), space.num_choices)
    rows, counts = np.unique(index, return_counts=True)
    if len(rows) < len(index):
        twice = rows[(counts > 1).argmax()]
        two = np.flatnonzero(index == twice)[:2].tolist()
        raise TableError(f"{what} holds the architecture {_unravel(space, twice)} in rows {two[0]} and {two[1]}; keep one of them")
    for row in np.setdiff1d(np.arange(space.size), rows, assume_unique=True):
        if space.is_valid(_unravel(space, row)):
            raise TableError(
                f"{what} lacks the architecture {_unravel(space, row)} ({space.describe(_unravel(space, row))}); it has {len(rows)} of the "
                f"{space.size} of {space.name}, and every one with a path must be there"
            )
    return np.asarray(index)


def _unravel(space: SearchSpace, row: int | np.int64) -> Architecture:
    return tuple(int(choice) for choice in np.unravel_index(row, space.num_choices))


def _column(arrays: Mapping[str, NDArray[Any]], text: str, rows: int, file: Path) -> NDArray[np.float64]:
    """The column that `name`, `name[label]` or `name[number]` names, divided by 100 where a `%` follows."""
    parts = re.fullmatch(r"\s*([^\[\]%\s]+)\s*(?:\[\s*([^\[\]]+?)\s*\])?\s*(%?)\s*", text)
    if parts is None:
        raise ConfigError(
            f"{text!r} names no column; write an array's name, name[label] of one with several columns, and % behind for per cent"
        )
    name, label, percent = parts.groups()
    array = _array(arrays, name, file)
    if array.dtype.kind not in "fiu" or array.shape[:1] != (rows,) or array.ndim not in (1, 2):
        raise TableError(
            f"{name} of {file} must hold a number for each of the {rows} architectures, but has {array.dtype} of shape {array.shape}"
        )
    if (array.ndim == 2) != (label is not None):
        which = f"{array.shape[1]} columns; name one, e.g. {name}[0]" if array.ndim == 2 else f"a single column; write {name}"
        raise ConfigError(f"{name} of {file} has {which}, but got {text!r}")
    if label is not None:
        array = array[:, _number(arrays, name, label, array.shape[1], file)]
    return array.astype(np.float64) / (100 if percent else 1)


def _number(arrays: Mapping[str, NDArray[Any]], name: str, label: str, width: int, file: Path) -> int:
    """The column called `label` in the names that go with an array: `latency_devices` with `latency_ms`, or the only list as long."""
    if label.isdecimal() and int(label) < width:
        return int(label)
    lists = {key: array.tolist() for key, array in arrays.items() if array.dtype.kind == "U" and array.shape == (width,)}
    related = {key: labels for key, labels in lists.items() if key.partition("_")[0] == name.partition("_")[0]} or lists
    if len(related) != 1:
        raise ConfigError(
            f"{file} does not say how the columns of {name} are called; write {name}[0] to {name}[{width - 1}], but not {label!r}"
        )
    labels = next(iter(related.values()))
    if label not in labels:
        raise ConfigError(f"{name} of {file} has no column {label!r}; {nearest(label, map(str, labels))}")
    return int(labels.index(label))
