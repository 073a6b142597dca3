"""FBNet tables as text (AnnaAraslanova/FBNet): a line of nine operator names, then a line of nine latencies (us) for each of 22 layers.

It says no image size: choose the space's. Stem and head are not in it.
"""

from __future__ import annotations

from typing import ClassVar

from hwnas.errors import TableError
from hwnas.exchange import Entry, Positional, place
from hwnas.op import OpSpec

_NAMES = ("ir_k3_e1", "ir_k3_s2", "ir_k3_e3", "ir_k3_e6", "ir_k5_e1", "ir_k5_s2", "ir_k5_e3", "ir_k5_e6", "skip")


class FBNetTxt(Positional):
    """`ir_k3_s2` is kernel 3, expansion 1, two groups."""

    blocks: ClassVar[frozenset[str]] = frozenset({"fbnet_block", "fbnet_skip", "identity"})

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """Milliseconds by layer and operator name."""
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if not lines or sorted(lines[0]) != sorted(_NAMES):
            found = " ".join(lines[0])[:60] if lines else "nothing"
            raise TableError(f"must begin with the operator names {' '.join(_NAMES)}, but begins with {found!r}; choose another --format")
        entries = {}
        for layer, line in enumerate(lines[1:], 1):
            if len(line) != len(_NAMES):
                raise TableError(
                    f"must have {len(_NAMES)} numbers in a line, but layer {layer} has {len(line)}; it may be cut off: get it again"
                )
            for name, word in zip(lines[0], line, strict=True):
                try:
                    entries[place(layer, name)] = Entry(float(word) / 1000)
                except ValueError:
                    raise TableError(f"has {word!r} at layer {layer}, {name}, which is no number; mend that entry") from None
        return entries

    def columns(self, op: OpSpec) -> tuple[str, ...] | None:
        """The operator's name."""
        if op.kind in ("identity", "fbnet_skip"):
            return ("skip",)
        name = f"ir_k{op.kernel}_" + ("s2" if op.groups == 2 else f"e{op.hidden // op.c_in}")
        return (name,) if name in _NAMES else None
