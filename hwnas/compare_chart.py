"""A comparison of searchers as a table and as a picture: the share of the front's hypervolume that is there after every evaluation.

What is shown is computed first (`tables`, `curves`), then drawn (`draw`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.compare import BASELINE, Comparison, Floats, Needed, Standing
from hwnas.picture import COLOURS, GRID, LOOKS, MUTED, ending, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALLEST = 1e-4
"""The smallest share that is drawn as lacking: below it a logarithmic axis shows nothing more."""
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """A searcher's line and band over the evaluations 1 to n."""

    label: str
    colour: str
    style: str
    evaluations: Floats
    median: Floats
    low: Floats
    high: Floats


def checkpoints(budget: int) -> list[int]:
    """The evaluations that the table shows: an eighth, a quarter, half and the whole of the budget."""
    return sorted({max(1, budget // part) for part in (8, 4, 2, 1)})


def tables(found: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """What is shown on the screen, tables of a title, a header and rows, the best at the end of the budget first."""
    points = checkpoints(found.budget)
    ranked = sorted(found.searchers, key=lambda one: -one.median[-1])
    shares = []
    for one in ranked:
        medians = [f"{one.median[point - 1]:.2%}" for point in points]
        shares.append([_name(one, found), *medians, f"{100 * one.low[-1]:.1f} - {one.high[-1]:.1%}"])
    header = ["searcher", *(f"at {point}" for point in points), f"band at {points[-1]}"]
    shown = [(f"{found.title}\nhypervolume at so many evaluations, median share of {found.whose} front's", header, shares)]
    targets = [f"{needed.share:.0%}" for needed in found.searchers[0].needed]
    costs = []
    for one in ranked:
        costs.append([_name(one, found), *map(_needed, one.needed), f"{one.ask_s_median:.3f}", f"{one.ask_s_max:.3f}"])
    title = "median evaluations to a share (seeds that reached it), and seconds an ask" if targets else "seconds an ask"
    return [*shown, (title, ["searcher", *targets, "median ask", "longest"], costs)]


def _name(one: Standing, found: Comparison) -> str:
    return one.label + (f" (ended after {min(one.evaluations)})" if min(one.evaluations) < found.budget else "")


def _needed(found: Needed) -> str:
    return f"{'-' if found.median is None else f'{found.median:g}'} ({found.reached}/{len(found.by_seed)})"


def curves(found: Comparison) -> list[Curve]:
    """What is drawn of each searcher; the baseline grey, the others in colours, and beyond these in other strokes."""
    drawn = []
    others = 0
    for one in found.searchers:
        colour, style = MUTED, "--"
        if one.label != BASELINE:
            colour, style = COLOURS[others % len(COLOURS)], _STYLES[others // len(COLOURS) % len(_STYLES)]
            others += 1
        evaluations = np.arange(1, len(one.median) + 1, dtype=np.float64)
        drawn.append(Curve(one.label, colour, style, evaluations, np.array(one.median), np.array(one.low), np.array(one.high)))
    return drawn


def draw(found: Comparison, path: Path) -> None:
    """Writes the picture: the share that is there, and on a logarithmic axis the share that is lacking.

    Raises:
        ConfigError: the path does not end in .png or .svg.
        ExportError: the file cannot be written.
    """
    ending(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(LOOKS):
        figure = Figure(figsize=(12.5, 5.6), dpi=150, layout="constrained")
        figure.suptitle(found.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        left, right = figure.subplots(1, 2)
        lines = curves(found)
        _draw(left, lines, [(c.median, c.low, c.high) for c in lines])
        lacking = [tuple(np.maximum(1 - share, _SMALLEST) for share in (c.median, c.low, c.high)) for c in lines]
        _draw(right, lines, lacking)
        left.set_ylabel(f"hypervolume, share of {found.whose} front's")
        left.set_ylim(max(0.0, min(float(np.quantile(c.median, 0.03)) for c in lines) - 0.02), 1.005)
        left.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}" if abs(100 * share % 1) < 1e-6 else f"{share:.1%}")
        right.set_yscale("log")
        right.set_ylabel("hypervolume that is lacking (logarithmic)")
        right.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        for needed in found.searchers[0].needed:
            right.axhline(1 - needed.share, color=GRID, linewidth=1.2, zorder=0)
        left.legend(loc="lower right", frameon=False, fontsize=9)
        figure.supxlabel(found.subtitle, x=0.01, ha="left", fontsize=9, color=MUTED)
        save(figure, path)


def _draw(axes: Axes, lines: Sequence[Curve], bands: Sequence[tuple[Floats, ...]]) -> None:
    for order, (curve, (median, low, high)) in enumerate(zip(lines, bands, strict=True), 2):
        axes.fill_between(curve.evaluations, low, high, color=curve.colour, alpha=0.15, linewidth=0, step="post", zorder=order)
        axes.step(curve.evaluations, median, where="post", color=curve.colour, linestyle=curve.style, label=curve.label, zorder=order + 50)
    axes.set_xlabel("distinct architectures evaluated")
    axes.set_xlim(1, lines[0].evaluations[-1])
    axes.grid(True)
