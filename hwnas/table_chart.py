"""A lookup table as a picture: every operator's price, time against MACs, and where a network's time goes.

What is drawn is computed first (`bars`, `dots`, `network_time`, put together by `load_chart`), then drawn (`draw`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas import context, resources
from hwnas.calibrate import FEWEST, Calibration
from hwnas.cost import CostModel
from hwnas.device import digest
from hwnas.doctor import find_table
from hwnas.errors import ConfigError, PluginError, SpaceError, TableError
from hwnas.picture import COLOURS, INK, LOOKS, MUTED, ending, save
from hwnas.profile import space_of
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.table import CostTable, NetworkTable, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVERHEAD = "beside operators"
LAYOUT = "change of layout"
"""The stage of what a network costs beside its operators."""
_UNITS = {"latency_ms": ("latency", "ms"), "energy_mj": ("energy", "mJ"), "peak_mb": ("peak memory", "MB")}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


@dataclass(frozen=True)
class Bar:
    """An operator's price and standard error in the table's unit."""

    op: str
    kind: str
    price: float
    error: float
    source: Source


@dataclass(frozen=True)
class Dot:
    """An operator's multiply-adds for one image, and its price."""

    op: str
    kind: str
    macs: float
    price: float


@dataclass(frozen=True)
class NetworkTime:
    """Where a network's cost goes: stage (the size of the operators' input) -> kind -> cost in the table's unit."""

    space: str
    what: str
    """Which network it is, and of which prices its cost is a sum."""
    total: float
    stages: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Chart:
    """Everything that the picture shows."""

    device: str
    title: str
    subtitle: str
    label: str
    unit: str
    kinds: tuple[str, ...]
    """The costliest first."""
    bars: tuple[Bar, ...]
    dots: tuple[Dot, ...]
    undrawn: int
    """Operators that a logarithmic axis has no place for: without MACs, or free."""
    networks: tuple[NetworkTime, ...]
    notes: tuple[str, ...]


def bars(table: CostTable) -> tuple[Bar, ...]:
    """The rows by kind, kinds by what their rows cost together, and within a kind the costliest first."""
    total: dict[str, float] = {}
    for op, row in table.rows.items():
        total[op.kind] = total.get(op.kind, 0.0) + row.price
    found = (Bar(str(op), op.kind, row.price, row.error, row.source) for op, row in table.rows.items())
    return tuple(sorted(found, key=lambda bar: (-total[bar.kind], bar.kind, -bar.price, bar.op)))


def dots(table: CostTable) -> tuple[Dot, ...]:
    """The rows whose MACs can be counted (imported operators may be unknown here), that have some, and that are not free."""
    found = []
    for op, row in sorted(table.rows.items()):
        try:
            macs = resources.macs(op)
        except SpaceError:
            continue
        if macs > 0 and row.price > 0:
            found.append(Dot(str(op), op.kind, macs, row.price))
    return tuple(found)


def network_time(model: CostModel, arch: Architecture, what: str = "") -> NetworkTime:
    """The network's cost by the size of its operators' input, largest first, and by their kind.

    What it costs beside its operators stands last; where it costs less than them, all are shown smaller, and `what` says so.
    """
    stages: dict[str, dict[str, float]] = {}
    prices = dict(zip(model.operators, model.price.tolist(), strict=True))
    operators = context.lower_for(model.space, arch, prices)
    total, summed = float(model.of([arch])), math.fsum(prices[op] for op in operators)
    smaller = total / summed if total < summed * (1 - 1e-9) else 1.0
    for op in sorted(operators, key=lambda op: -op.height * op.width):
        stage = stages.setdefault(f"{op.height}×{op.width}", {})
        plain = context.plain(op)
        kind = LAYOUT if plain is None else plain.kind
        stage[kind] = stage.get(kind, 0.0) + prices[op] * smaller
    if total > summed * (1 + 1e-9):
        stages[OVERHEAD] = {OVERHEAD: total - summed}
    note = f", times {smaller:.2f}: whole networks take less than their sum" if smaller < 1 else ""
    return NetworkTime(model.space.name, what + note, total, stages)


def median_network(model: CostModel, number: int = 201, seed: int = 0) -> Architecture:
    """The one of `number` random architectures that costs the median."""
    rng = np.random.default_rng(seed)
    archs = [model.space.random(rng) for _ in range(number)]
    return archs[int(np.argsort(model.of(archs).numpy(), kind="stable")[number // 2])]


def load_chart(name: str, root: Path, space: SearchSpace | None = None, arch: str | None = None) -> Chart:
    """What is drawn of a device's table or of the table in a file; of `space` alone where one is given.

    Raises:
        TableError: there is no table, or it is damaged. ConfigError: `arch` without its space.
    """
    if arch is not None and space is None:
        raise ConfigError("--arch needs the experiment whose space it is of; give CONFIG too")
    path, _, _ = find_table(name, root)
    table = CostTable.load(path)
    notes = []
    networks = []
    if table.metric == "latency_ms":
        for file in sorted((path.parent / "networks").glob("*.csv")):
            measured = NetworkTable.load(file)
            try:
                found = _calibrated(space, table, measured, file, arch)
            except (TableError, PluginError, SpaceError) as error:
                notes.append(f"{file.stem} is not drawn: {error}")
                continue
            networks += [] if found is None else [found]
    if space is not None:
        operators = space.operators()
        missing = table.missing(operators)
        if missing:
            notes.append(f"{len(missing)} operators of {space.name} are missing, e.g. {missing[0]}")
        table = CostTable(table.device, table.metric, table.fingerprint, {op: table.rows[op] for op in operators if op in table.rows})
        if not networks and not missing:
            prices = {op: row.price for op, row in table.rows.items()}
            networks = [_time_of(CostModel(space, prices), arch, "sum of isolated prices, not calibrated")]
    if not table.rows:
        raise TableError(f"{path} holds no rows to draw{f' of {space.name}' if space else ''}; measure with `hwnas profile`")
    date = CostTable.load(path).facts.get("date", "")
    label, unit = _UNITS[table.metric]
    drawn, placed = bars(table), dots(table)
    return Chart(
        device=table.device,
        title=f"{table.device}: {label} of {len(table.rows)} operator{'' if len(table.rows) == 1 else 's'}",
        subtitle=summary(table.fingerprint, date),
        label=label,
        unit=unit,
        kinds=tuple(dict.fromkeys(bar.kind for bar in drawn)),
        bars=drawn,
        dots=placed,
        undrawn=len(drawn) - len(placed),
        networks=tuple(networks),
        notes=tuple(notes),
    )


def summary(fingerprint: Mapping[str, str], date: str = "") -> str:
    """A fingerprint in one line, with its digest."""
    threads, batch = fingerprint.get("threads", ""), fingerprint.get("batch", "")
    parts = [
        fingerprint.get("cpu", ""),
        f"{fingerprint.get('runtime', '')} {fingerprint.get('runtime_version', '')}".strip(),
        fingerprint.get("precision", ""),
        f"{threads} thread{'' if threads == '1' else 's'}" if threads else "",
        f"batch {batch}" if batch else "",
        date[:10],
        f"fingerprint {digest(dict(fingerprint))}",
    ]
    return " · ".join(filter(None, parts))


def _calibrated(space: SearchSpace | None, table: CostTable, measured: NetworkTable, file: Path, arch: str | None) -> NetworkTime | None:
    """Of one space's measured networks; None where they are of another space than `space`, or too few."""
    if len(measured.rows) < FEWEST or (space is not None and space.id != measured.space):
        return None
    named = space_of(measured, file)
    own = space or load_space(named["name"], dict(named["options"]))
    times = np.array([row.price for row in measured.rows.values()])
    calibration = Calibration.from_tables(own, table, list(measured.rows), times)
    return _time_of(calibration.cost_model(), arch, "calibrated prices")


def _time_of(model: CostModel, arch: str | None, basis: str) -> NetworkTime:
    chosen = median_network(model) if arch is None else model.space.parse(arch)
    which = "the median of 201 random networks" if arch is None else f"network {'-'.join(map(str, chosen))}"
    return network_time(model, chosen, f"{which}; {basis}")


def draw(chart: Chart, path: Path) -> None:
    """Writes the picture.

    Raises:
        ConfigError: the file's ending is neither .png nor .svg. ExportError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ending(path)
    columns = _columns(chart.bars)
    rows = max(len(column) for column in columns)
    heights = (max(5.6, 2.0 * len(chart.networks)), max(1.6, 0.75 + 0.155 * rows))
    with mpl.rc_context(LOOKS):
        figure = Figure(figsize=(15, sum(heights) + 1.3), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
        figure.suptitle(chart.title, x=0.01, ha="left", fontsize=15, fontweight="bold")
        parts: Any = figure.subfigures(2, 1, height_ratios=heights)
        top, bottom = parts
        top.suptitle(chart.subtitle, x=0.01, ha="left", fontsize=10, color=MUTED)
        _draw_top(chart, top)
        _draw_bars(chart, columns, bottom)
        save(figure, path)


def _columns(bars: Sequence[Bar]) -> list[Sequence[Bar]]:
    """At most four columns, of equal length, of at least 30 bars where there are that many."""
    number = max(1, min(4, len(bars) // 30))
    length = -(-len(bars) // number)
    return [bars[i : i + length] for i in range(0, len(bars), length)]


def _look(chart: Chart, kind: str) -> tuple[str, str]:
    """A kind's colour and marker: no two kinds have both alike."""
    if kind not in chart.kinds:
        return "#cbd2d9", "o"
    index = chart.kinds.index(kind)
    return COLOURS[index % len(COLOURS)], _MARKERS[(index + index // len(COLOURS)) % len(_MARKERS)]


def _draw_top(chart: Chart, figure: Any) -> None:
    if not chart.networks:
        _draw_dots(chart, figure.subplots())
        return
    grid = figure.add_gridspec(len(chart.networks), 2, width_ratios=(1.25, 1))
    _draw_dots(chart, figure.add_subplot(grid[:, 0]))
    for i, network in enumerate(chart.networks):
        _draw_network(chart, network, figure.add_subplot(grid[i, 1]))


def _draw_dots(chart: Chart, axes: Axes) -> None:
    """Log-log, with lines of equal multiply-adds per second where prices are times."""
    axes.set(title=f"{chart.label} against multiply-adds", xlabel="MACs of one image", ylabel=f"{chart.label} ({chart.unit})")
    axes.grid(True)
    for kind in chart.kinds:
        of_kind = [dot for dot in chart.dots if dot.kind == kind]
        if of_kind:
            colour, marker = _look(chart, kind)
            axes.scatter(
                [dot.macs for dot in of_kind], [dot.price for dot in of_kind], s=26, color=colour, marker=marker, alpha=0.85,
                edgecolors="white", linewidths=0.4, label=kind, zorder=3,
            )  # fmt: skip
    if not chart.dots:
        axes.text(0.5, 0.5, "no operator here has multiply-adds and a price", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_axis_off()
        return
    axes.set(xscale="log", yscale="log")
    if chart.unit == "ms":
        _draw_rates(axes)
    if chart.undrawn:
        axes.text(
            0.99, 0.01, f"{chart.undrawn} operators without MACs or price are not drawn", transform=axes.transAxes, ha="right", va="bottom",
            fontsize=8, color=MUTED,
        )  # fmt: skip
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_rates(axes: Axes) -> None:
    """Lines of equal multiply-adds per second, labelled where they leave the picture."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for power in range(-3, 7):
        per_ms = 10.0**power * 1e6
        x = min(right, high * per_ms)
        if x > left and x / per_ms > low:
            axes.plot([left, x], [left / per_ms, x / per_ms], color="#b8c1cc", linewidth=0.8, linestyle=":", zorder=1)
            looks: Any = {"xytext": (-4, -2), "textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 7.5, "color": MUTED}
            axes.annotate(f"{10.0**power:g} GMAC/s", (x, x / per_ms), **looks)
    axes.set(xlim=(left, right), ylim=(low, high))


def _draw_network(chart: Chart, network: NetworkTime, axes: Axes) -> None:
    """A bar a stage, stacked by kind, with its share of the whole behind it."""
    title = f"where the time goes: {network.space}" if chart.unit == "ms" else f"where it goes: {network.space}"
    axes.set_title(f"{title}, {network.total:.3g} {chart.unit}")
    axes.set_xlabel(f"{chart.label} ({chart.unit}) of {network.what}", fontsize=9)
    stages = list(network.stages)
    for row, stage in enumerate(stages):
        left = 0.0
        for kind, value in sorted(network.stages[stage].items(), key=lambda item: _rank(chart, item[0])):
            axes.barh(row, value, left=left, color=_look(chart, kind)[0], edgecolor="white", linewidth=0.8, height=0.68)
            left += value
        axes.annotate(f"{left / network.total:.0%}", (left, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(stages)), stages, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(sum(spent.values()) for spent in network.stages.values()))
    axes.grid(True, axis="x")
    inside = {kind for stage in network.stages.values() for kind, value in stage.items() if value > 0}
    handles = [_patch(_look(chart, kind)[0], kind) for kind in sorted(inside, key=lambda kind: _rank(chart, kind)) if kind != OVERHEAD]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False, fontsize=8)


def _rank(chart: Chart, kind: str) -> int:
    return chart.kinds.index(kind) if kind in chart.kinds else len(chart.kinds)


def _patch(colour: str, label: str, **looks: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label, **looks)


def _draw_bars(chart: Chart, columns: Sequence[Sequence[Bar]], figure: Figure | Any) -> None:
    """One bar an operator with its standard error; what was not measured is hatched."""
    figure.suptitle(
        f"{chart.label} of each operator ({chart.unit}; lines: ± one standard error)", x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    high = max((bar.price + (0 if math.isnan(bar.error) else bar.error) for bar in chart.bars), default=1.0) or 1.0
    length = max(len(column) for column in columns)
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for row, bar in enumerate(column):
            hatch = "" if bar.source == "measured" else "/////"
            axes.barh(row, bar.price, color=_look(chart, bar.kind)[0], height=0.72, hatch=hatch, edgecolor="white", linewidth=0)
            if bar.error > 0:
                axes.plot([max(bar.price - bar.error, 0.0), bar.price + bar.error], [row, row], color=INK, linewidth=0.9)
        axes.set_yticks(range(len(column)), [bar.op for bar in column], fontsize=6.8, family="monospace")
        axes.tick_params(axis="y", length=0, pad=2)
        axes.tick_params(axis="x", labelsize=8)
        axes.set(xlim=(0, 1.03 * high), ylim=(length - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.xaxis.set_ticks_position("both")
        axes.tick_params(axis="x", labeltop=True)
    lines = [*_sources(chart.bars), *chart.notes]
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9, color=MUTED)


def _sources(bars: Iterable[Bar]) -> list[str]:
    counts: dict[str, int] = {}
    for bar in bars:
        counts[bar.source] = counts.get(bar.source, 0) + 1
    if set(counts) == {"measured"}:
        return []
    return ["rows: " + ", ".join(f"{number} {source}" for source, number in sorted(counts.items())) + " (hatched: not measured)"]
