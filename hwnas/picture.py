"""What all pictures share: colours, looks, the two endings, and writing in one step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import ConfigError
from hwnas.export import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, EDGE, GRID = "#1f2933", "#52606d", "#9aa5b1", "#e4e7eb"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#332288", "#999933", "#882255")
"""Told apart by readers who see no red or no green too (most are Okabe and Ito's or Tol's); markers or strokes must differ as well."""
LOOKS: Any = {
    "font.size": 10, "axes.edgecolor": EDGE, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.color": GRID, "axes.titlelocation": "left",
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlepad": 8, "svg.hashsalt": "hwnas",
}  # fmt: skip
"""For `matplotlib.rc_context`, around the drawing and the saving."""


def ending(path: Path) -> str:
    """`png` or `svg`.

    Raises:
        ConfigError: the file ends in something else.
    """
    found = path.suffix.lower().removeprefix(".")
    if found not in ("png", "svg"):
        raise ConfigError(f"a picture's name must end in .png or .svg, but is {path}")
    return found


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the file's ending; the same figure gives the same bytes.

    Raises:
        ConfigError: another ending. ExportError: the file cannot be written.
    """
    form = ending(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else {})
    replace_file(path, buffer.getvalue())
