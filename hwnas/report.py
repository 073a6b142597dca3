"""A front as a picture and as a page: what is drawn is computed first (`front_data`), then drawn twice (`draw_png`, `write_html`).

Predicted and measured points never share a series: trials are predicted, exported models are measured.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from hwnas.evaluate import MEASURED, Objective, Trial
from hwnas.export import replace_file
from hwnas.pareto import hypervolume_history, nondominated, reference_point
from hwnas.picture import EDGE, GRID, INK, LOOKS, save

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes

LATENCY = "latency_ms"
WIDE = 8.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

# metric -> what it is called, its unit on paper, and what to multiply it with to have it in that unit
_LABELS: dict[str, tuple[str, str, float]] = {
    "error": ("error", "%", 100), "accuracy": ("accuracy", "%", 100), "loss": ("cross entropy", "nats", 1),
    "latency_ms": ("latency", "ms", 1), "energy_mj": ("energy, predicted", "mJ", 1), "peak_mb": ("peak memory", "MB", 1),
    "macs": ("MACs", "M", 1e-6), "flops": ("FLOPs", "M", 1e-6), "params": ("parameters", "k", 1e-3),
}  # fmt: skip
_TESTED = ("error", "accuracy")
"""What is known on the test part once a member is exported."""
_VALUES = {
    "test_accuracy": ("test accuracy (%)", 100, ".2f"), "test_perplexity": ("test perplexity", 1, ".1f"),
    "accuracy": ("validation accuracy (%)", 100, ".2f"), "loss": ("validation cross entropy", 1, ".3f"),
    "perplexity": ("validation perplexity", 1, ".1f"),
}  # fmt: skip
"""What a member's values are called in the table, what they are multiplied with, and their digits."""
_UNITS = {"ms": "ms", "s": "s", "mj": "mJ", "mb": "MB"}
_COLOURS = {"trial": "#9aa7b8", "front": "#2b6cb0", "member": "#d9480f", "budget": "#b3261e"}
"""Told apart by readers who see no red or no green too; the markers differ as well."""


@dataclass(frozen=True)
class Axis:
    """One drawn objective: values in `unit`, drawn from `low` to `high`; a logarithmic axis has `ticks`, and draws 0 at `low`."""

    metric: str
    label: str
    unit: str
    scale: float
    budget: float | None
    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @property
    def title(self) -> str:
        """As it stands beside the axis."""
        return self.label + _bracketed(self.unit)

    @property
    def limit(self) -> float | None:
        """The budget, where it is in sight."""
        return self.budget if self.budget is not None and self.low <= self.budget <= self.high else None

    def place(self, values: Iterable[float]) -> list[float]:
        """Where values are drawn."""
        return [max(value, self.low) if self.log else value for value in values]


@dataclass(frozen=True)
class Point:
    """A drawn point; `x_high` is the other end of its interval on the x axis. `text` is what the page shows beside the pointer."""

    name: str
    x: float
    y: float
    x_high: float
    text: str


@dataclass(frozen=True)
class FrontData:
    """Everything that the picture and the page show."""

    title: str
    subtitle: str
    x: Axis
    y: Axis
    trials: tuple[Point, ...]
    """All trials with finite values, as predicted, in the order in which they were evaluated."""
    front: tuple[Point, ...]
    """Those that no other trial dominates, by x."""
    front_is_line: bool
    """False where there are more objectives than the two drawn, in which the front is no staircase."""
    measured: tuple[Point, ...]
    """Exported models: p50 to p90."""
    unmeasured: tuple[Point, ...]
    """Members without a measurement on the x axis: predicted mean to upper bound."""
    trial_y: str
    member_y: str
    """What the error of a trial and of a member is an error of."""
    history: tuple[float, ...]
    """Hypervolume of all trials up to this one."""
    history_unit: str
    reference: str
    """The point from which it is counted."""
    settled: int
    """After how many trials the hypervolume had 95 % of its last value; 0 where there is none."""
    headline: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The table of members, a text a cell."""
    files: tuple[Mapping[str, str], ...]
    """Name -> path of every file of each member."""
    left_out: Mapping[str, str]
    """What is not shown, and why."""
    facts: Mapping[str, Mapping[str, str]]


def front_data(
    front: Mapping[str, Any], trials: Sequence[Trial], objectives: Sequence[Objective], budgets: Mapping[str, float],
    facts: Mapping[str, Mapping[str, str]], *, title: str, subtitle: str = "",
) -> FrontData:  # fmt: skip
    """What is drawn of a front (the mapping that `hwnas front --json` prints) and of the trials that it comes from.

    Args:
        facts: tables for the page, by their headings: device, protocol, calibration and whatever else a reader should know.
    """
    members = list(front["members"])
    x, y = _drawn(objectives)
    vectors = np.array([trial.vector(objectives) for trial in trials], dtype=np.float64).reshape(len(trials), len(objectives))
    finite = np.asarray(np.isfinite(vectors).all(1))
    points = [_trial_point(trial, x, y) for trial, good in zip(trials, finite, strict=True) if good]
    front_points = [points[i] for i in np.flatnonzero(nondominated(vectors[finite]))] if points else []
    measured = [_member_point(member, x, y) for member in members if x in _measured(member)]
    unmeasured = [_member_point(member, x, y) for member in members if x not in _measured(member)]
    drawn = [*points, *measured, *unmeasured]
    left_out = dict(front.get("left_out", {}))
    if not finite.all():
        left_out[f"{(~finite).sum()} of {len(trials)} trials"] = "without finite values: their training diverged"
    history, reference = _history(vectors[finite])
    tested = bool(members) and all("test_accuracy" in member["values"] for member in members)
    label = _name(y)[0]
    columns, rows = _table(members, [objective.name for objective in objectives])
    return FrontData(
        title=title,
        subtitle=subtitle,
        x=_axis(x, budgets, [value for point in drawn for value in (point.x, point.x_high)]),
        y=_axis(y, budgets, [point.y for point in drawn]),
        trials=tuple(points),
        front=tuple(sorted(front_points, key=lambda point: (point.x, point.y))),
        front_is_line=len(objectives) == 2,
        measured=tuple(measured),
        unmeasured=tuple(unmeasured),
        trial_y=f"validation {label}" if y in MEASURED else label,
        member_y=f"test {label}" if tested and y in _TESTED else f"validation {label}" if y in MEASURED else label,
        history=history,
        history_unit=" × ".join(_text(objective.name) for objective in objectives),
        reference=", ".join(_text(o.name, o.minimised(value)) for o, value in zip(objectives, reference, strict=False)),
        settled=next((i for i, value in enumerate(history, 1) if value >= 0.95 * history[-1] > 0), 0),
        headline=tuple(_headline(front, members, len(trials), budgets)),
        columns=columns,
        rows=rows,
        files=tuple(_files(member) for member in members),
        left_out=left_out,
        facts={heading: dict(table) for heading, table in facts.items()},
    )


def _drawn(objectives: Sequence[Objective]) -> tuple[str, str]:
    """The metrics of the x and the y axis: the first two objectives, a cost on x where one of them is one."""
    first, second = [*dict.fromkeys([*(objective.name for objective in objectives), LATENCY, "error"])][:2]
    return (first, second) if first not in MEASURED and second in MEASURED else (second, first)


def _name(metric: str) -> tuple[str, str, float]:
    """A metric's label, unit and scale; an unknown metric's name says its unit itself."""
    *words, last = metric.split("_")
    unit = _UNITS.get(last, "") if words else ""
    return _LABELS.get(metric, (" ".join(words if unit else [*words, last]), unit, 1.0))


def _text(metric: str, value: float | None = None) -> str:
    """A value with its metric and unit; without a value, the metric with the unit in which hypervolumes count it."""
    label, unit, scale = _name(metric)
    if value is None:
        return label + _bracketed(unit if scale == 1 else "")
    return f"{label} {value * scale:.4g} {unit}".strip()


def _bracketed(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _axis(metric: str, budgets: Mapping[str, float], values: Sequence[float]) -> Axis:
    """An axis on which all values have room: logarithmic where the positive ones differ much and none is negative."""
    label, unit, scale = _name(metric)
    budget = budgets[metric] * scale if metric in budgets else None
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0 if budget is None else budget]
    if budget is not None and min(known) <= budget <= 3 * max(known):
        known = [*known, budget]
    positive = [value for value in known if value > 0]
    log = bool(positive) and min(known) >= 0 and max(positive) > WIDE * min(positive)
    low, high = min(positive if log else known), max(known)
    if log:
        margin = (high / low) ** 0.05
        low, high = low / (2 if len(positive) < len(known) else margin), high * margin
        steps = (1, 2, 5) if high < 1000 * low else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = tuple(tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high)
        return Axis(metric, label, unit, scale, budget, low, high, True, ticks)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(metric, label, unit, scale, budget, low - margin, high + margin, False, ())


def _trial_point(trial: Trial, x: str, y: str) -> Point:
    # a single objective is drawn against a second metric, which trials may lack
    place, height = (trial.values.get(metric, math.nan) * _name(metric)[2] for metric in (x, y))
    (x_label, x_unit, _), (y_label, y_unit, _) = _name(x), _name(y)
    name = f"trial {trial.index}"
    return Point(name, place, height, place, f"{name}<br>{x_label} {place:.4g} {x_unit}, predicted<br>{y_label} {height:.3g} {y_unit}")


def _member_point(member: Mapping[str, Any], x: str, y: str) -> Point:
    """x from measured p50 to p90, or else from the predicted mean to its upper bound; y on the test part where that is known."""
    (x_label, x_unit, x_scale), (y_label, y_unit, y_scale) = _name(x), _name(y)
    low, high = (value * x_scale for value in _interval(member, x))
    height = _member_value(member, y) * y_scale
    ends = f"p50 {low:.4g}, p90 {high:.4g} {x_unit}, measured" if x in _measured(member) else f"{low:.4g} to {high:.4g} {x_unit}, predicted"
    return Point(member["name"], low, height, high, f"{member['name']}<br>{x_label} {ends}<br>{y_label} {height:.3g} {y_unit}")


def _measured(member: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Mapping[str, float]] = member.get("measured") or {}
    return found


def _interval(member: Mapping[str, Any], metric: str) -> tuple[float, float]:
    if metric in _measured(member):
        return _measured(member)[metric]["p50"], _measured(member)[metric]["p90"]
    if metric in member["predicted"]:
        return member["predicted"][metric]["mean"], member["predicted"][metric]["upper"]
    return (_member_value(member, metric),) * 2


def _member_value(member: Mapping[str, Any], metric: str) -> float:
    values: Mapping[str, float] = member["values"]
    if metric in _TESTED and "test_accuracy" in values:
        return 1 - values["test_accuracy"] if metric == "error" else values["test_accuracy"]
    if metric in values or metric not in member["predicted"]:
        return values.get(metric, math.nan)
    return _interval(member, metric)[0]


def _history(vectors: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Hypervolume after each trial, and the point from which it is counted.

    It is the trials' own, which no member moves; no better than the median trial, so that a front which ends in a corner
    does not hide how it was reached.
    """
    if not len(vectors):
        return (), ()
    reference = np.maximum(reference_point(vectors), np.median(vectors, axis=0))
    return tuple(float(value) for value in hypervolume_history(vectors, reference)), tuple(float(value) for value in reference)


def _headline(
    front: Mapping[str, Any], members: Sequence[Mapping[str, Any]], trials: int, budgets: Mapping[str, float]
) -> Iterable[tuple[str, str]]:  # fmt: skip
    """What a reader wants to know first."""
    yield "models", str(len(members))
    yield "trials", str(trials)
    accuracies = [member["values"]["test_accuracy"] for member in members if "test_accuracy" in member["values"]]
    if accuracies:
        yield "best test accuracy", f"{max(accuracies):.2%}"
    times = [_measured(member)[LATENCY]["p50"] for member in members if LATENCY in _measured(member)]
    if times:
        yield "latency, p50", f"{min(times):.3g}–{max(times):.3g} ms" if len(times) > 1 else f"{times[0]:.3g} ms"
    for metric, limit in budgets.items():
        label, unit, scale = _name(metric)
        yield f"{label} budget", f"{limit * scale:.4g} {unit}".strip()
    if front.get("hypervolume"):
        corner = ", ".join(_text(metric, value) for metric, value in front["reference_point"].items())
        yield f"hypervolume up to {corner}", f"{front['hypervolume']:.4g}"


def _table(members: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """One row a member: what is known of any of them, measured before predicted."""
    metrics = [*dict.fromkeys([*objectives, *(metric for member in members for metric in member["predicted"])])]
    columns: list[tuple[str, list[str]]] = [("model", [member["name"] for member in members])]

    def add(heading: str, cells: Sequence[float | None], digits: str = "") -> None:
        if any(cell is not None for cell in cells):
            columns.append((heading, ["–" if cell is None else format(cell, digits) if digits else _three_digits(cell) for cell in cells]))

    def found(group: str, metric: str, key: str) -> list[float | None]:
        scale = _name(metric)[2]
        entries = [(member.get(group) or {}).get(metric) for member in members]
        return [entry[key] * scale if entry else None for entry in entries]

    for name, (heading, scale, digits) in _VALUES.items():
        values = [member["values"].get(name) for member in members]
        add(heading, [None if v is None else v * scale for v in values], digits)
    for metric in metrics:
        label, unit, _ = _name(metric)
        add(f"{label} p50, measured{_bracketed(unit)}", found("measured", metric, "p50"))
        add(f"p90{_bracketed(unit)}", found("measured", metric, "p90"))
        add("runs", found("measured", metric, "n"), ".0f")
    for metric in metrics:
        label, unit, _ = _name(metric)
        mean, upper = found("predicted", metric, "mean"), found("predicted", metric, "upper")
        exact = mean == upper
        add(f"{label}{'' if exact else ', predicted'}{_bracketed(unit)}", mean)
        if not exact:
            add(f"upper bound{_bracketed(unit)}", upper)
    columns.append(("choices", ["-".join(str(choice) for choice in member["arch"]) for member in members]))
    return tuple(heading for heading, _ in columns), tuple(zip(*(cells for _, cells in columns), strict=True))


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _files(member: Mapping[str, Any]) -> dict[str, str]:
    """A member's files, name -> path, from a mapping or a list of paths."""
    files = member.get("files") or {}
    return {Path(file).name: str(file) for file in (files.values() if isinstance(files, Mapping) else files)}


def _legend(data: FrontData) -> dict[str, str]:
    """How each series is called."""
    return {
        "trials": f"trials: predicted {data.x.label}, {data.trial_y}",
        "front": "front of the trials",
        "measured": f"exported models: measured {data.x.label} (p50, bar to p90), {data.member_y}",
        "unmeasured": f"trained models: predicted {data.x.label} (mean, bar to upper bound), {data.member_y}",
    }


def draw_png(data: FrontData, path: Path) -> None:
    """Two panels: the front, and the hypervolume over the trials.

    Raises:
        ExportError: the folder cannot be written to.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(LOOKS | {"axes.grid": True}):
        figure = Figure(figsize=(13, 6.4), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
        figure.suptitle(": ".join(filter(None, (data.title, data.subtitle))), x=0.01, ha="left", fontsize=14, fontweight="bold")
        _draw_front(data, left)
        _draw_history(data, right)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=9.5)
        save(figure, path)


def _draw_front(data: FrontData, axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    names = _legend(data)
    axes.set(title="front", xlabel=data.x.title, ylabel=data.y.title)
    axes.set(xscale="log" if data.x.log else "linear", yscale="log" if data.y.log else "linear")
    for axis, ticks in ((data.x, axes.xaxis), (data.y, axes.yaxis)):
        if axis.log:
            ticks.set_major_locator(FixedLocator(axis.ticks))
            ticks.set_major_formatter("{x:g}")
            ticks.set_minor_locator(NullLocator())
    if data.trials:
        axes.scatter(*_places(data, data.trials), s=20, color=_COLOURS["trial"], alpha=0.65, linewidths=0, label=names["trials"], zorder=2)
    if data.front:
        axes.plot(
            *_places(data, data.front), color=_COLOURS["front"], linestyle="-" if data.front_is_line else "none", drawstyle="steps-post",
            linewidth=1.4, marker="o", markersize=5.5, markerfacecolor="white", markeredgewidth=1.5, label=names["front"], zorder=3,
        )  # fmt: skip
    for key, points, fill in (("unmeasured", data.unmeasured, "white"), ("measured", data.measured, _COLOURS["member"])):
        if points:
            axes.errorbar(
                *_places(data, points), xerr=[[0.0] * len(points), _bars(points)], fmt="D", markersize=7, color=_COLOURS["member"],
                markerfacecolor=fill, markeredgewidth=1.5, elinewidth=1.4, capsize=3, label=names[key], zorder=4,
            )  # fmt: skip
    if not (data.trials or data.measured or data.unmeasured):
        axes.text(0.5, 0.5, "nothing evaluated yet", transform=axes.transAxes, ha="center", color="#7b8794")
    for axis, line, span in ((data.x, axes.axvline, axes.axvspan), (data.y, axes.axhline, axes.axhspan)):
        if axis.limit is not None:
            label = f"{axis.label} budget: {axis.limit:.4g} {axis.unit}"
            line(axis.limit, color=_COLOURS["budget"], linestyle="--", linewidth=1.4, label=label, zorder=1)
            span(axis.limit, axis.high, color=_COLOURS["budget"], alpha=0.05, linewidth=0, zorder=0)
    axes.set(xlim=(data.x.low, data.x.high), ylim=(data.y.low, data.y.high))


def _places(data: FrontData, points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """x and y coordinates."""
    return data.x.place(point.x for point in points), data.y.place(point.y for point in points)


def _bars(points: Sequence[Point]) -> list[float]:
    """How far each point's interval reaches to the right."""
    return [max(point.x_high - point.x, 0.0) for point in points]


def _draw_history(data: FrontData, axes: Axes) -> None:
    numbers = range(1, len(data.history) + 1)
    axes.set(title=_settled(data), xlabel="trials", ylabel=f"hypervolume, {data.history_unit}")
    axes.plot(numbers, data.history, color=_COLOURS["front"], linewidth=1.8, drawstyle="steps-post")
    axes.fill_between(numbers, data.history, step="post", color=_COLOURS["front"], alpha=0.08, linewidth=0)
    if data.settled:
        axes.plot([data.settled], [data.history[data.settled - 1]], "o", color=_COLOURS["front"], markersize=6)
    axes.set_xlim(0, max(len(data.history), 1))
    axes.set_ylim(0, 1.05 * max(data.history, default=0.0) or 1.0)


def _settled(data: FrontData) -> str:
    return f"hypervolume: 95 % after trial {data.settled} of {len(data.history)}" if data.settled else "hypervolume"


def write_html(data: FrontData, path: Path) -> None:
    """A page that needs nothing but itself: the pictures to look into, the members with their files, all the facts.

    Raises:
        ExportError: the folder cannot be written to.
    """
    from plotly.offline import get_plotlyjs

    counted = f"In units of {data.history_unit}, of the trials as predicted, up to {data.reference}. Measured models are not in it."
    tables = "".join(_section(heading, _definitions(table)) for heading, table in data.facts.items() if table)
    sections = [
        _section("Front", _note(_reading(data)) + _plotly_div(_plotly_front(data))),
        _section("Models", _models(data, path.parent)),
        _section("Search", _note(counted if data.history else "") + _plotly_div(_plotly_history(data))),
        _section("Left out", _definitions(data.left_out)) if data.left_out else "",
        f"<div class='facts-grid'>{tables}</div>",
    ]
    cards = "".join(f"<div class='card'><b>{_escape(value)}</b><span>{_escape(key)}</span></div>" for key, value in data.headline)
    page = _PAGE.format(
        title=_escape(data.title), subtitle=_escape(data.subtitle), style=_STYLE, plotly=get_plotlyjs(), cards=cards,
        sections="".join(sections),
    )  # fmt: skip
    replace_file(path, page.encode())


def _reading(data: FrontData) -> str:
    """How the picture is to be read."""
    names = _legend(data)
    series = {"trials": data.trials, "measured": data.measured, "unmeasured": data.unmeasured}
    shown = [names[key] for key, points in series.items() if points]
    if not shown:
        return "Nothing has been evaluated yet."
    sentences = ["; ".join(shown)]
    if data.trials and data.measured:
        sentences.append("predictions and measurements are not comparable with each other")
    points = [point for group in series.values() for point in group]
    for axis, values in ((data.x, [point.x for point in points]), (data.y, [point.y for point in points])):
        if axis.log and min(values) <= 0:
            sentences.append(f"the axis is logarithmic, and {axis.label} of 0 stands at its end")
    return " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in sentences)


def _plotly_front(data: FrontData) -> go.Figure:
    import plotly.graph_objects as go

    names = _legend(data)
    figure = go.Figure()

    def add(key: str, points: Sequence[Point], **looks: Any) -> None:
        if points:
            xs, ys = _places(data, points)
            texts = [_escape(point.text).replace("&lt;br&gt;", "<br>") for point in points]
            figure.add_trace(go.Scatter(x=xs, y=ys, text=texts, hoverinfo="text", name=_escape(names[key]), **looks))

    def bars(points: Sequence[Point]) -> dict[str, Any]:
        ends = {"symmetric": False, "array": _bars(points), "arrayminus": [0.0] * len(points)}
        return {"type": "data", "thickness": 1.6, "width": 4, "color": _COLOURS["member"], **ends}

    add("trials", data.trials, mode="markers", marker={"size": 6, "color": _COLOURS["trial"], "opacity": 0.65})
    hollow = {"size": 9, "color": "white", "line": {"width": 2, "color": _COLOURS["front"]}}
    mode = "lines+markers" if data.front_is_line else "markers"
    add("front", data.front, mode=mode, line={"shape": "hv", "width": 2, "color": _COLOURS["front"]}, marker=hollow)
    for key, points, fill in (("unmeasured", data.unmeasured, "white"), ("measured", data.measured, _COLOURS["member"])):
        diamond = {"size": 11, "symbol": "diamond", "color": fill, "line": {"width": 2, "color": _COLOURS["member"]}}
        add(key, points, mode="markers", marker=diamond, error_x=bars(points))
    for axis, draw in ((data.x, figure.add_vline), (data.y, figure.add_hline)):
        if axis.limit is not None:
            draw(axis.limit, line={"color": _COLOURS["budget"], "dash": "dash", "width": 2})
            place = {"x": axis.limit, "y": 1, "yref": "paper"} if axis is data.x else {"x": 1, "y": axis.limit, "xref": "paper"}
            if axis.log:
                place["x" if axis is data.x else "y"] = math.log10(axis.limit)
            text = f"budget {axis.limit:.4g} {axis.unit}"
            figure.add_annotation(text=text, showarrow=False, yanchor="bottom", font={"color": _COLOURS["budget"]}, **place)
    for axis, update in ((data.x, figure.update_xaxes), (data.y, figure.update_yaxes)):
        ends = [math.log10(axis.low), math.log10(axis.high)] if axis.log else [axis.low, axis.high]
        ticks = {"type": "log", "tickvals": axis.ticks, "ticktext": [f"{tick:g}" for tick in axis.ticks]} if axis.log else {}
        update(title_text=axis.title, range=ends, **ticks)
    return _plotly_looks(figure, 560)


def _plotly_history(data: FrontData) -> go.Figure:
    import plotly.graph_objects as go

    looks = {"line": {"shape": "hv", "width": 2, "color": _COLOURS["front"]}, "fill": "tozeroy", "fillcolor": "rgba(43,108,176,0.08)"}
    figure = go.Figure(go.Scatter(x=list(range(1, len(data.history) + 1)), y=data.history, mode="lines", name="hypervolume", **looks))
    figure.update_layout(title={"text": _settled(data), "font": {"size": 14}}, showlegend=False)
    figure.update_xaxes(title_text="trials", range=[0, max(len(data.history), 1)])
    figure.update_yaxes(title_text="hypervolume", rangemode="tozero", exponentformat="none")
    return _plotly_looks(figure, 380)


def _plotly_looks(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height, paper_bgcolor="white", plot_bgcolor="white", margin={"l": 70, "r": 24, "t": 48, "b": 60},
        font={"family": _FONT, "size": 13, "color": INK}, hoverlabel={"bgcolor": "white", "align": "left"},
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
    )  # fmt: skip
    looks = {
        "gridcolor": GRID, "linecolor": EDGE, "ticks": "outside", "tickcolor": EDGE,
        "zeroline": False, "automargin": True,
    }  # fmt: skip
    figure.update_xaxes(**looks)
    figure.update_yaxes(**looks)
    return figure


def _plotly_div(figure: go.Figure) -> str:
    import plotly.io

    settings = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=settings))


def _models(data: FrontData, folder: Path) -> str:
    """The table of members, with links to their files as seen from the page's folder."""
    if not data.rows:
        return _note("There is no model yet.")
    name, *others = data.columns
    head = "".join(f"<th>{_escape(heading)}</th>" for heading in (name, "files", *others))
    body = []
    for (member, *cells), files in zip(data.rows, data.files, strict=True):
        links = " ".join(_anchor(path, folder) for path in files.values())
        body.append(f"<tr><td>{_escape(member)}</td><td>{links or '–'}</td>{''.join(f'<td>{_escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<div class='wide'><table class='models'><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _anchor(file: str, folder: Path) -> str:
    """A link to a file, shown without its ending."""
    path = Path(file).absolute()
    link = quote(Path(os.path.relpath(path, folder.absolute())).as_posix())
    return f"<a href='{_escape(link)}' title='{_escape(path.name)}'>{_escape(path.stem)}</a>"


def _definitions(table: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{_escape(key)}</th><td>{_escape(value)}</td></tr>" for key, value in table.items())
    return f"<table class='facts'>{rows}</table>"


def _note(text: str) -> str:
    return f"<p class='note'>{_escape(text)}</p>" if text else ""


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{_escape(heading)}</h2>{content}</section>"


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f5f7fa; color: #1f2933; font: 15px/1.5 FONT; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; }
h2 { margin: 0 0 12px; font-size: 18px; }
header p { margin: 4px 0 20px; color: #52606d; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 16px; }
.card, section { background: white; border: 1px solid #e4e7eb; border-radius: 10px; }
.card { padding: 14px 16px; }
.card b { display: block; font-size: 17px; white-space: nowrap; }
.card span { display: block; color: #52606d; font-size: 12.5px; line-height: 1.35; }
section { padding: 20px 22px; margin-top: 16px; }
.facts-grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 0 16px; align-items: start; }
.note { margin: 0 0 8px; color: #52606d; font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.models { width: 100%; }
.models th { color: #52606d; font-weight: 600; font-size: 12px; line-height: 1.3; text-align: right; vertical-align: bottom; }
.models th { padding: 6px 8px; border-bottom: 2px solid #cbd2d9; }
.models td { text-align: right; padding: 7px 8px; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
.models th:nth-child(-n+2), .models td:nth-child(-n+2) { text-align: left; }
.models td:first-child { font-weight: 600; }
.models tbody tr:hover { background: #f5f7fa; }
.facts th { text-align: left; font-weight: 500; color: #52606d; padding: 4px 24px 4px 0; vertical-align: top; white-space: nowrap; }
.facts td { padding: 4px 0; overflow-wrap: anywhere; }
a { color: #2b6cb0; text-decoration: none; margin-right: 8px; }
a:hover { text-decoration: underline; }
""".replace("FONT", _FONT)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body><main>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<div class="cards">{cards}</div>
{sections}
</main></body>
</html>
"""
