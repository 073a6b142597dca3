"""FBNet tables as JSON (jh88/fbnet): a list of layers, null for fixed ones, else eight latencies (us) and where it can be that of `skip`.

The file names no unit; its author times in microseconds. The Raspberry Pi table is of 32x32 images: space `fbnet` with
`strides=[1,2,2,1,1,1,1] shape_changing_skips=false`. Stem and head are null in it.
"""

from __future__ import annotations

from typing import ClassVar

from hwnas.errors import TableError
from hwnas.exchange import Entry, Positional, number, parse_json, place
from hwnas.op import OpSpec

_NAMES = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")


class FBNetJSON(Positional):
    """Choices stand in FBNet's order."""

    blocks: ClassVar[frozenset[str]] = frozenset({"fbnet_block", "fbnet_skip", "identity"})

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """Milliseconds by layer (fixed ones do not count) and operator name."""
        found = parse_json(text)
        if not isinstance(found, list):
            raise TableError(f"must hold a list of layers, but holds {type(found).__name__}; choose another --format")
        entries = {}
        for layer, numbers in enumerate((row for row in found if row is not None), 1):
            if not isinstance(numbers, list) or len(numbers) not in (8, 9):
                many = len(numbers) if isinstance(numbers, list) else type(numbers).__name__
                raise TableError(f"must have null or 8 or 9 numbers a layer, but searched layer {layer} has {many}; mend that layer")
            for name, value in zip(_NAMES, numbers, strict=False):
                key = place(layer, name)
                entries[key] = Entry(number(value, key) / 1000)
        return entries

    def columns(self, op: OpSpec) -> tuple[str, ...] | None:
        """The operator's name; a skip that changes the shape is not in these tables."""
        if op.kind == "identity":
            return ("skip",)
        name = f"k{op.kernel}_e{op.hidden // op.c_in}" + (f"_g{op.groups}" if op.groups > 1 else "")
        return (name,) if op.kind == "fbnet_block" and name in _NAMES else None
