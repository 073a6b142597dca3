"""Plain CSV: columns `op` (this tree's keys) and the metric, maybe error, p50, p90, n; lines that begin with # do not count."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import ClassVar

from hwnas.errors import SpaceError, TableError
from hwnas.exchange import Entry, Keyed, Recipe
from hwnas.op import OpSpec
from hwnas.space import SearchSpace
from hwnas.table import METRICS, CostTable

_NUMBERS = ("error", "p50", "p90", "n")


class PlainCSV(Keyed):
    """The only form whose keys are operators by themselves; a table of this tree can be read as one, too."""

    metrics = METRICS
    exports = True
    free: ClassVar[frozenset[str]] = frozenset()
    pattern: ClassVar[re.Pattern[str]] = re.compile(r".+")

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """Every line."""
        rows = list(csv.reader(line for line in text.splitlines() if line.strip() and not line.startswith("#")))
        columns = rows[0] if rows else []
        if "op" not in columns or metric not in columns or len(set(columns)) != len(columns):
            raise TableError(
                f"must have the columns op and {metric}, but has {', '.join(columns)[:80] or 'none'}; rename them or choose --metric"
            )
        entries: dict[str, Entry] = {}
        for row in rows[1:]:
            if len(row) != len(columns):
                raise TableError(
                    f"must have {len(columns)} cells a line, but {','.join(row)[:60]!r} has {len(row)}; it may be cut off: get it again"
                )
            cells = dict(zip(columns, row, strict=True))
            try:
                key = str(OpSpec.parse(cells["op"]))
                error, p50, p90, n = (cells.get(name) or default for name, default in zip(_NUMBERS, ("0", "nan", "nan", "0"), strict=True))
                entry = Entry(float(cells[metric]), float(error), float(p50), float(p90), int(n))
            except SpaceError as problem:
                raise TableError(f"has a line for no operator: {problem}") from None
            except ValueError:
                raise TableError(f"has the line {','.join(row)[:60]!r}, in which a cell is no number; mend or delete it") from None
            if key in entries:
                raise TableError(f"gives {key} a second time; delete one of the two lines")
            entries[key] = entry
        return entries

    def recipe(self, op: OpSpec) -> Recipe | None:
        """The operator's own key."""
        return {str(op): 1.0}

    def operator(self, key: str) -> OpSpec:
        """The operator of a line."""
        return OpSpec.parse(key)

    def write(self, table: CostTable, space: SearchSpace | None) -> tuple[str, list[OpSpec]]:
        """All rows, sorted by operator, with every digit."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["op", table.metric, *_NUMBERS])
        for op, row in sorted(table.rows.items(), key=lambda item: str(item[0])):
            numbers = (row.price, row.error, row.p50, row.p90)
            writer.writerow([str(op), *("" if math.isnan(value) else repr(value) for value in numbers), row.n])
        return out.getvalue(), []
