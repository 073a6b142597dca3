"""NAS-Bench-201 per-operator latencies of 18 devices, JSON (`<column>_latency` -> operator -> ms): what an operator adds on one edge.

An edge stands in every cell, at three image sizes; the file has one number for all of them, so each gets an equal share. Sums over the
edges are then right, while a share is not the operator's time at its size. Pooling is what `avg_pool_3x3` costs beyond a skip; several
edges that pool the same node do it once, in this tree's networks. Stem, reductions, head and `none` have no counterpart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from hwnas.errors import TableError
from hwnas.exchange import Entry, Form, Recipe, number, parse_json
from hwnas.op import OpSpec
from hwnas.space import SearchSpace
from hwnas.table import CostTable

_CHOICES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_MAIN = {"skip_connect": ("identity", 1), "nor_conv_1x1": ("conv_bn", 1), "nor_conv_3x3": ("conv_bn", 3), "avg_pool_3x3": ("avg_pool", 3)}
"""Kind and kernel of the operator that stands for a choice."""


class NASBench201Ops(Form):
    """`column` is the device's name in the file, e.g. raspi4."""

    exports = True

    def __init__(self, *, column: str) -> None:
        self.column = column

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """The five operators of the column."""
        found = parse_json(text)
        if not isinstance(found, dict):
            raise TableError(f"must hold a mapping, but holds {type(found).__name__}; choose another --format")
        columns = {key: values for key, values in found.items() if key.endswith("_latency") and isinstance(values, dict)}
        if f"{self.column}_latency" not in columns:
            known = ", ".join(sorted(key.removesuffix("_latency") for key in columns)) or "none"
            raise TableError(f"holds no latencies of {self.column!r}; choose the option column among: {known}")
        values = columns[f"{self.column}_latency"]
        if values.keys() != set(_CHOICES):
            raise TableError(
                f"must give {', '.join(_CHOICES)} for {self.column!r}, but gives {', '.join(values) or 'nothing'}; choose another --format"
            )
        return {key: Entry(number(value, key)) for key, value in values.items()}

    def recipes(self, space: SearchSpace, entries: Mapping[str, Entry]) -> dict[OpSpec, list[Recipe]]:
        """Every choice's operator with its share of the choice's number."""
        edges = _edges(space)
        free = {op for counts in edges.values() for op in counts if op.kind in ("relu", "add")}
        found: dict[OpSpec, list[Recipe]] = {op: [{}] for op in free}
        for choice, counts in edges.items():
            main = [op for op in counts if (op.kind, op.kernel) == _MAIN[choice]]
            shares = sum(counts[op] for op in main)
            recipe = {choice: 1 / shares} if shares else {}
            if choice == "avg_pool_3x3" and any(op.kind == "identity" for op in counts):
                recipe["skip_connect"] = -1 / shares
            found |= {op: [recipe] for op in main}
        return found

    def write(self, table: CostTable, space: SearchSpace | None) -> tuple[str, list[OpSpec]]:
        """What each choice costs on an edge of its own; the fixed operators are left out."""
        if space is None:
            raise TableError("the form nasbench201_ops sums over the cells of a space; name it with --space")
        edges = _edges(space)
        sums = {choice: sum(number * table.price(op) for op, number in counts.items()) for choice, counts in edges.items()}
        written = {op for counts in edges.values() for op in counts}
        content = {"name": space.name, "devices": [self.column], "metrics": ["latency"], "operations": list(_CHOICES)}
        content[f"{self.column}_latency"] = {"none": 0.0, **sums}  # type: ignore[assignment]
        return json.dumps(content, indent=1) + "\n", [op for op in table.rows if op not in written]


def _edges(space: SearchSpace) -> dict[str, Counter[OpSpec]]:
    """What each choice adds to a network whose only edge is from the first node to the last."""
    last = [i for i, slot in enumerate(space.slots) if tuple(sorted(slot.choices)) == tuple(sorted(_CHOICES))]
    if len(last) != 6 or len(space.slots) != 6:
        raise TableError(f"is of the space nasbench201, but the space given is {space.name}; choose --space nasbench201")
    lowered = {}
    for choice in _MAIN:
        for slot in last:
            arch = [s.choices.index(choice if i == slot else "none") for i, s in enumerate(space.slots)]
            if space.graph(arch):  # of the six edges only this one leads from the input to the output
                lowered[choice] = Counter(space.lower(arch))
    fixed = lowered["nor_conv_1x1"] & lowered["avg_pool_3x3"] & lowered["nor_conv_3x3"]
    return {choice: counts - fixed for choice, counts in lowered.items()}
