"""Single-Path NAS's runtime model (arXiv 1904.02877), JSON: 22 layers -> four choices -> ms on a Pixel 1.

The choices have no names; by their values they are 3x3 e3, 3x3 e6, 5x5 e3, 5x5 e6. The first block has expansion 1 whatever is chosen,
so its four numbers are four timings of one block. Stem, head and skip are not in the file;
a skip costs nothing here.
"""

from __future__ import annotations

from typing import ClassVar

from hwnas.errors import TableError
from hwnas.exchange import Entry, Positional, number, parse_json, place
from hwnas.op import OpSpec

_CHOICES = {"0": (3, 3), "1": (3, 6), "2": (5, 3), "3": (5, 6)}  # kernel, expansion


class SinglePath(Positional):
    """The space is `mobilenet_v2` with one width a stage; `docs/tables.md` has the options."""

    blocks: ClassVar[frozenset[str]] = frozenset({"mbconv"})
    free: ClassVar[frozenset[str]] = frozenset({"identity"})

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """Milliseconds by layer and choice."""
        found = parse_json(text)
        if not isinstance(found, dict) or not all(isinstance(layer, dict) for layer in found.values()):
            raise TableError("must hold a mapping of layers to choices; choose another --format")
        entries = {}
        for layer, choices in found.items():
            if not layer.isdecimal() or choices.keys() != _CHOICES.keys():
                raise TableError(
                    f"must have numbered layers with the choices {', '.join(_CHOICES)}, but layer {layer!r} has {', '.join(choices)}"
                )
            for choice, value in choices.items():
                key = place(int(layer) + 1, choice)
                entries[key] = Entry(number(value, key))
        return entries

    def columns(self, op: OpSpec) -> tuple[str, ...] | None:
        """The choice of that kernel and expansion; all four for a block that does not expand."""
        if op.hidden == op.c_in:
            return tuple(_CHOICES)
        return next(
            ((name,) for name, (kernel, expansion) in _CHOICES.items() if (op.kernel, op.hidden) == (kernel, expansion * op.c_in)), None
        )
