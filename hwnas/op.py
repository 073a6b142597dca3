"""OpSpec: one operator with all its sizes; `str(op)` is its key everywhere and `OpSpec.parse` its inverse."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from hwnas.errors import SpaceError

_PATTERN = re.compile(
    r"(?P<kind>[a-z][a-z0-9_]*):(?P<c_in>\d+)-(?P<c_out>\d+):(?P<height>\d+)x(?P<width>\d+)(?P<rest>(:[a-z]\d+)*)", re.ASCII
)
_OPTIONAL = {"kernel": "k", "stride": "s", "hidden": "e", "groups": "g", "dilation": "d"}
_DEFAULTS = {"kernel": 1, "stride": 1, "hidden": 0, "groups": 1, "dilation": 1}


@dataclass(frozen=True, slots=True, order=True)
class OpSpec:
    """One operator and every size its price can depend on.

    `c_in`, `c_out` are channels; `height`, `width` the spatial size of the *input*; `hidden` the channels inside an
    inverted bottleneck (0 where there are none). The output is `ceil(height / stride)` high.

    Raises:
        SpaceError: a size that is not a positive whole number.
    """

    kind: str
    c_in: int
    c_out: int
    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    hidden: int = 0
    groups: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.kind):
            raise SpaceError(f"an operator's kind must be lower-case letters, digits and _, but got {self.kind!r}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            least = 0 if field.name == "hidden" else 1
            if type(value) is not int or value < least:
                raise SpaceError(f"{field.name} of {self.kind} must be a whole number of at least {least}, but got {value!r}")

    def __str__(self) -> str:
        sizes = f"{self.kind}:{self.c_in}-{self.c_out}:{self.height}x{self.width}"
        given = ((letter, getattr(self, name)) for name, letter in _OPTIONAL.items() if getattr(self, name) != _DEFAULTS[name])
        return sizes + "".join(f":{letter}{value}" for letter, value in given)

    @classmethod
    def parse(cls, text: str) -> OpSpec:
        """The operator whose `str` is `text`.

        Raises:
            SpaceError: the text is not the key of an operator.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise SpaceError(f"{text!r} is not an operator; expected e.g. 'mbconv:16-24:32x32:k5:s2:e96'")
        names = {letter: name for name, letter in _OPTIONAL.items()}
        values = {name: int(match[name]) for name in ("c_in", "c_out", "height", "width")}
        for part in filter(None, match["rest"].split(":")):
            if part[0] not in names or names[part[0]] in values:
                raise SpaceError(f"{text!r} is not an operator: {part!r} is unknown or given twice")
            values[names[part[0]]] = int(part[1:])
        return cls(match["kind"], **values)

    @property
    def out_height(self) -> int:
        """Height of the output, `ceil(height / stride)`."""
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        """Width of the output, `ceil(width / stride)`."""
        return -(-self.width // self.stride)
