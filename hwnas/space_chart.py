"""A search space as a picture, all candidates or one architecture: the graph of its sites, cells that repeat drawn once.

What is drawn is computed first (`load_chart`: boxes and lines with their places), then drawn (`draw`). Nodes are taken by the name before
`@`, so `conv3@16` and `conv3@48` are one place. A cell is what several nodes with the same slots make again and again.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hwnas.picture import EDGE, LOOKS, MUTED, ending, save
from hwnas.space import IDENTITY, Architecture, SearchSpace, Site

FONT, TITLE = 8.0, 11.0
ADVANCE = 0.602
"""Width of a character of the monospaced font, in its size."""
LINE = 1.35
"""Height of a line of text, in its size."""
MARGIN, GAP_X, GAP_Y, ROW_GAP = 5.0, 30.0, 9.0, 30.0
WIDEST = 1180.0
"""Where a long chain goes on in the next row. All lengths are points."""
LETTERS = 22
"""Characters after which a list of choices goes on in the next line."""
_BARE = frozenset({"on", "yes", "true"})
_LOOKS = {
    "fixed": ("#f1f3f5", "#ced4da"), "choice": ("#e3f0fb", "#5aa2d8"), "chosen": ("#e6f4ea", "#5fb07a"), "value": ("#ffffff", "#52606d"),
    "cell": ("#fdf1dd", "#e0a845"),
}  # fmt: skip


@dataclass
class Box:
    """A rectangle of text (a `value` is drawn as a pill); `x`, `y` is its centre, y downwards."""

    title: str
    lines: tuple[str, ...] = ()
    look: str = "fixed"
    alike: Any = None
    """What it shares with boxes that it may be drawn as one with, in a row."""
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        """In points; at least what its text needs."""
        return ADVANCE * FONT * max(map(len, (self.title, *self.lines)), default=0) + 2 * MARGIN if self.title or self.lines else 5.0

    @property
    def height(self) -> float:
        """In points."""
        return LINE * FONT * (1 + len(self.lines)) + 2 * MARGIN - 2 if self.title or self.lines else 5.0


@dataclass
class Panel:
    """One graph with its place to be: boxes, and lines through these points from box to box."""

    title: str
    boxes: list[Box]
    lines: list[list[tuple[float, float]]]
    width: float
    height: float
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Everything that the picture shows."""

    title: str
    subtitle: str
    panels: tuple[Panel, ...]


@dataclass
class Graph:
    """Boxes and which feeds which, before they have places."""

    boxes: dict[str, Box] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def link(self, source: str, target: str) -> None:
        """An arrow, once."""
        if (source, target) not in self.edges:
            self.edges.append((source, target))


@dataclass(frozen=True)
class Step:
    """Sites that stand for one box: they lead from `sources` to `target` and hang on the same slots."""

    sources: tuple[str, ...]
    target: str
    sites: tuple[Site, ...]

    @property
    def slots(self) -> tuple[int, ...]:
        """Those that decide about it, in order."""
        return tuple(sorted({slot for site in self.sites for slot, _ in site.when}))


def place(node: str) -> str:
    """A node without the width that it has there."""
    return node.partition("@")[0]


def steps_of(space: SearchSpace, arch: Architecture | None) -> list[Step]:
    """The sites by what they lead to and hang on; of one architecture, one by one. Weightless forms of a value are the value."""
    sites = space.sites if arch is None else space.graph(arch)
    writers = Counter(site.output for site in sites)
    form = {space.input: place(space.input)}
    grouped: dict[tuple[Any, ...], tuple[list[str], list[Site]]] = {}
    for number, site in enumerate(sites):
        inputs = [form.get(node, place(node)) for node in site.inputs]
        if (site.weightless or site.op.kind == "relu") and writers[site.output] == 1 and site.output != space.output:
            form[site.output] = inputs[0]
            continue
        slots = frozenset(slot for slot, _ in site.when)
        what = (slots, site.op.kind if not slots else "") if arch is None else (site.op, site.when) if not slots else (number,)
        sources, group = grouped.setdefault((place(site.output), *what), ([], []))
        sources += [node for node in inputs if node not in sources]
        group.append(site)
    return [Step(tuple(sources), key[0], tuple(group)) for key, (sources, group) in grouped.items()]


def cells_of(steps: Sequence[Step]) -> list[list[list[str]]]:
    """Kinds of cell -> their instances -> the nodes of one, where the same slots make several nodes again and again."""
    slots: dict[str, set[int]] = defaultdict(set)
    for step in steps:
        slots[step.target] |= set(step.slots)
    roles: dict[frozenset[int], list[str]] = defaultdict(list)
    for node, deciding in slots.items():
        if deciding:
            roles[frozenset(deciding)].append(node)
    role = {node: key for key, nodes in roles.items() for node in nodes}
    number = {key: len(nodes) for key, nodes in roles.items()}
    group = {key: key for key in roles}

    def root(key: frozenset[int]) -> frozenset[int]:
        while group[key] != key:
            key = group[key]
        return key

    for step in steps:
        for source in step.sources:
            if source in role and step.target in role:
                few, many = sorted((number[role[source]], number[role[step.target]]))
                if few == many or (few > 1 and many % few == 0):  # some nodes of a cell may have the same slots
                    group[root(role[source])] = root(role[step.target])
    kinds: dict[frozenset[int], list[frozenset[int]]] = defaultdict(list)
    for key in roles:
        kinds[root(key)].append(key)
    found = []
    for keys in kinds.values():
        times = min(number[key] for key in keys)
        if len(set().union(*keys)) > 1 and all(number[key] % times == 0 for key in keys):
            shares = [(roles[key], number[key] // times) for key in keys]
            found.append([[node for nodes, share in shares for node in nodes[i * share : (i + 1) * share]] for i in range(times)])
    return found if any(len(instances) > 1 for instances in found) else []


def load_chart(space: SearchSpace, arch: Architecture | None = None) -> Chart:
    """Boxes and lines of all candidates of a space, or of the network of one architecture."""
    steps = steps_of(space, arch)
    whole = steps if arch is None else steps_of(space, None)
    there = {step.target for step in steps}
    cells = [[[n for n in nodes if n in there] for nodes in instances] for instances in cells_of(whole)]
    cells = [[nodes for nodes in instances if nodes] for instances in cells]
    cells = [instances for instances in cells if instances]
    if cells:
        panels = _with_cells(space, arch, steps, cells)
    else:
        panels = [panel("candidates" if arch is None else "network", compressed(graph_of(space, arch, steps)))]
    decisions = f"{len(space.slots)} slots · {_count(space.size)} architectures"
    if arch is None:
        return Chart(f"search space {space.name}", f"{decisions} · input {'×'.join(map(str, space.input_shape))}", tuple(panels))
    text = space.describe(arch) if len(space.describe(arch)) < 150 else ",".join(map(str, arch))
    return Chart(f"a network of {space.name}", f"{text} · input {'×'.join(map(str, space.input_shape))}", tuple(panels))


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**7 else f"{float(number):.3g}" if number < 10**300 else f"10^{len(str(number)) - 1}"


def graph_of(
    space: SearchSpace, arch: Architecture | None, steps: Sequence[Step], labels: dict[str, str] | None = None, common: str = "",
    prefix: str = "", sizes: bool = True,
) -> Graph:  # fmt: skip
    """Boxes of the steps between the values that they read and write; a value that only links two boxes is an arrow.

    `labels` names values; slots with the choices `common` do not list them; `prefix` is left out of the slots' names; `sizes` says
    whether channels are written.
    """
    labels = labels or {}
    graph = Graph()
    listed: set[int] = set()
    readers: dict[str, list[str]] = defaultdict(list)
    writers: dict[str, list[str]] = defaultdict(list)
    known: dict[tuple[Any, ...], str] = {}
    for number, step in enumerate(steps):
        box = _box(space, arch, step, listed, common, sizes)
        box.title = box.title.removeprefix(prefix)
        same = (box.title.rpartition(".")[0], box.lines, step.sources, step.target)
        if arch is None and box.look == "choice" and same in known:  # both branches of a node
            twin = graph.boxes[known[same]]
            twin.title = f"{twin.title}, {box.title.rpartition('.')[2]}"
            continue
        name = known[same] = f"step {number}"
        graph.boxes[name] = box
        writers[step.target].append(name)
        for source in step.sources:
            readers[source].append(name)
    for node in dict.fromkeys([*readers, *writers]):
        if node not in labels and len(writers[node]) == 1 and len(readers[node]) == 1:
            graph.link(writers[node][0], readers[node][0])
            continue
        if node not in labels and len(writers[node]) == 1 and not readers[node]:
            continue
        graph.boxes[node] = Box(labels.get(node, node if not (writers[node] and readers[node]) else ""), look="value")
        for box_ in writers[node]:
            graph.link(box_, node)
        for box_ in readers[node]:
            graph.link(node, box_)
    return graph


def _box(space: SearchSpace, arch: Architecture | None, step: Step, listed: set[int], common: str, sizes: bool) -> Box:
    ops = [site.op for site in step.sites]
    title = ops[0].kind + (f" {ops[0].kernel}×{ops[0].kernel}" if ops[0].kernel > 1 and len({op.kernel for op in ops}) == 1 else "")
    one = len({(op.c_in, op.c_out, op.height, op.width) for op in ops}) == 1
    size = f"{ops[0].c_in}→{ops[0].c_out} · {ops[0].height}×{ops[0].width}" if sizes and one else ""
    size += f" /{ops[0].stride}" if size and 1 < ops[0].stride < ops[0].height else ""
    lines = (size,) if size else ()
    if arch is not None:
        slots = step.sites[0].when
        if not slots:
            return Box(title, lines, alike=title)
        label = space.slots[slots[-1][0]].choices[slots[-1][1]]
        telling = re.search("[a-z]", label) and label not in _BARE
        return Box(label if telling else IDENTITY if ops[0].kind == IDENTITY else title, lines, "chosen", (title, slots))
    new = [slot for slot in step.slots if slot not in listed]
    listed.update(new)
    if not new:
        kinds = list(dict.fromkeys(op.kind for op in ops if op.kind != IDENTITY))
        return Box(title if len(kinds) < 2 else " | ".join(kinds), lines, alike=title)
    shared = _shared([space.slots[slot].name for slot in new])
    text: list[str] = []
    for slot in new:
        name, choices = space.slots[slot].name.removeprefix(shared).lstrip("."), space.slots[slot].choices
        if " ".join(choices) != common:
            text += _wrapped((f"{name}: " if name and len(new) > 1 else "") + "  ".join(choices))
    words = {word for slot in new for word in space.slots[slot].choices} - {"off", *_BARE}
    if not any(re.search("[a-z]", word) for word in words) and {op.kind for op in ops} != {IDENTITY}:
        text.append(title)
    return Box(shared.rstrip("."), tuple(text), "choice")


def _shared(names: Sequence[str]) -> str:
    """What dotted names begin with alike; of one name, all of it."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    same = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), min(map(len, parts)))
    return ".".join(parts[0][:same]) or " ".join(names)


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > LETTERS:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def compressed(graph: Graph) -> Graph:
    """Boxes that are alike and stand in a row, without a branch between them, are one, with their number."""
    after, before = defaultdict(list), defaultdict(list)
    for source, target in graph.edges:
        after[source].append(target)
        before[target].append(source)

    def follows(name: str) -> str | None:
        """The box that continues a row of equal ones."""
        if len(after[name]) != 1 or len(before[after[name][0]]) != 1:
            return None
        a, b = graph.boxes[name], graph.boxes[after[name][0]]
        return after[name][0] if a.alike and a.alike == b.alike else None

    result = Graph()
    merged: dict[str, str] = {}
    for name, box in graph.boxes.items():
        if name in merged:
            continue
        row = [name]
        while (nxt := follows(row[-1])) is not None and nxt not in merged:
            row.append(nxt)
        merged |= dict.fromkeys(row, name)
        last = graph.boxes[row[-1]]
        if len(row) > 1:
            first_size, last_size = (b.lines[0] if b.lines else "" for b in (box, last))
            size = (f"{first_size.partition('→')[0]}→{last_size.partition('→')[2]}",) if first_size and last_size else ()
            box = Box(f"{len(row)} × {box.title}", size, box.look, box.alike)
        result.boxes[name] = box
    for source, target in graph.edges:
        if merged[source] != merged[target]:
            result.link(merged[source], merged[target])
    return result


def _with_cells(space: SearchSpace, arch: Architecture | None, steps: list[Step], cells: list[list[list[str]]]) -> list[Panel]:
    """The row of cells, and one panel for each kind of cell."""
    owner = {node: (kind, i) for kind, instances in enumerate(cells) for i, nodes in enumerate(instances) for node in nodes}
    slots: dict[int, set[int]] = defaultdict(set)
    writing: dict[str, list[Step]] = defaultdict(list)
    reading: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        writing[step.target].append(step)
        for source in step.sources:
            reading[source].append(step)
        if step.target in owner:
            slots[owner[step.target][0]] |= set(step.slots)
    order = list(dict.fromkeys(step.target for step in steps))
    for node in order:  # what a cell ends in: joins of its values, and what only goes on from there in the same shape
        if node in owner or node == space.output:
            continue
        sources = list(dict.fromkeys(source for step in writing[node] for source in step.sources))
        owners = {owner[source] for source in sources if source in owner}
        keeps = all(site.op.c_in == site.op.c_out and site.op.stride == 1 for step in writing[node] for site in step.sites)
        if owners and (len(sources) > 1 or (keeps and len(reading[sources[0]]) == 1)):
            owner[node] = max(owners, key=lambda cell: order.index(cells[cell[0]][cell[1]][0]))
    for node in reversed(order):  # what a cell begins with: preparations of its inputs that nothing else reads
        readers = {owner.get(step.target) for step in reading[node]}
        if node not in owner and len(readers) == 1 and None not in readers and not _needed(space, steps, node):
            owner[node] = next(iter(readers))  # type: ignore[assignment]
    names = [_shared([space.slots[s].name for s in sorted(slots[kind])]) for kind in range(len(cells))]
    plain = [re.fullmatch(r"[a-z_]+", name) is not None for name in names]
    titles = [
        f"{name} cell" if ok else "cell" if len(cells) == 1 else f"cell {chr(65 + i)}"
        for i, (name, ok) in enumerate(zip(names, plain, strict=True))
    ]
    members: dict[tuple[int, int], list[Step]] = defaultdict(list)
    for step in steps:
        if step.target in owner:
            members[owner[step.target]].append(step)
    panels = [panel("network", _row_of_cells(space, arch, steps, owner, titles))]
    for kind, title in enumerate(titles):
        instances = [members[kind, i] for i in range(len(cells[kind]))]
        shown = min(instances, key=len)
        times = f" × {len(instances)}" if len(instances) > 1 else ""
        panels.append(_cell_panel(space, arch, shown, f"{title}{times}", f"{names[kind]}."))
    return panels


def _needed(space: SearchSpace, steps: Iterable[Step], node: str) -> bool:
    """Whether every path from the input to the output goes through the node."""
    reached = {place(space.input)}
    for step in steps:
        if step.target != node and reached & set(step.sources):
            reached.add(step.target)
    return place(space.output) not in reached


def _row_of_cells(
    space: SearchSpace, arch: Architecture | None, steps: Sequence[Step], owner: dict[str, tuple[int, int]], titles: Sequence[str]
) -> Graph:  # fmt: skip
    boxes: list[tuple[str, Box]] = []
    seen: set[tuple[int, int]] = set()
    for step in steps:
        cell = owner.get(step.target)
        if cell is None and (step.target == space.output or _needed(space, steps, step.target)):
            boxes.append((step.target, _box(space, arch, step, set(range(len(space.slots))), "", True)))
        elif cell is not None and cell not in seen:
            seen.add(cell)
            last = next(s for s in reversed(steps) if owner.get(s.target) == cell).sites[0].op
            size = f"{last.c_out} ch · {last.out_height}×{last.out_width}"
            title = titles[cell[0]]
            if boxes and boxes[-1][1].title.endswith(title) and boxes[-1][1].lines == (size,):
                times = int(boxes[-1][1].title.partition(" × ")[0]) + 1 if " × " in boxes[-1][1].title else 2
                boxes[-1] = (boxes[-1][0], Box(f"{times} × {title}", (size,), "cell"))
            else:
                boxes.append((f"cell {cell}", Box(title, (size,), "cell")))
    graph = Graph(dict(boxes))
    graph.boxes = {"input": Box("input", look="value"), **graph.boxes}
    names = list(graph.boxes)
    graph.edges = list(pairwise(names))
    return graph


def _cell_panel(space: SearchSpace, arch: Architecture | None, steps: Sequence[Step], title: str, prefix: str) -> Panel:
    inside = {step.target for step in steps}
    outside = [source for source in dict.fromkeys(source for step in steps for source in step.sources) if source not in inside]
    read = {source for step in steps for source in step.sources}
    labels = {node: "in" if len(outside) == 1 else f"in{i}" for i, node in enumerate(outside, 1)}
    deciding = {step.target for step in steps if step.slots}
    labels |= {step.target: step.target.rpartition(".")[2] for step in steps if step.target in deciding}
    labels |= {step.target: "out" for step in steps if step.target not in read}
    lists = [{" ".join(space.slots[slot].choices) for slot in step.slots} for step in steps if step.slots]
    shared = sorted(set.intersection(*lists)) if arch is None and len(lists) > 2 else []
    common = shared[0] if shared else ""
    drawn = panel(title, graph_of(space, arch, steps, labels, common, prefix, sizes=False), wrapped=False)
    drawn.note = f"every blue box chooses: {' · '.join(common.split())}" if common else ""
    return drawn


@dataclass(frozen=True)
class Spot:
    """The centre of a box or bend, its width, and from where to where its column goes."""

    x: float
    y: float
    width: float
    left: float
    right: float


def panel(title: str, graph: Graph, wrapped: bool = True) -> Panel:
    """Places for everything: columns by the longest path, rows that cross little, long chains `wrapped`."""
    columns = _columns(graph)
    names, edges = _with_bends(graph, columns)
    layers: list[list[str]] = [[] for _ in range(max(columns.values(), default=0) + 1)]
    for name in names:
        layers[columns[name]].append(name)
    _order(layers, edges)
    size = {name: (graph.boxes[name].width, graph.boxes[name].height) if name in graph.boxes else (0.0, 2.0) for name in names}
    y = _heights(layers, edges, size)
    boxes: list[Box] = []
    lines: list[list[tuple[float, float]]] = []
    top = width = 0.0
    values = {name for name, box in graph.boxes.items() if box.look == "value"}
    for rows in _wrap(layers, size, values) if wrapped else [range(len(layers))]:
        here = {name for layer in rows for name in layers[layer]}
        highest = min(y[name] - size[name][1] / 2 for name in here)
        x = 0.0
        at: dict[str, Spot] = {}
        for layer in rows:
            wide = max(size[name][0] for name in layers[layer])
            for name in layers[layer]:
                at[name] = Spot(x + wide / 2, top + y[name] - highest, size[name][0], x, x + wide)
            x += wide + GAP_X
        boxes += [replace(graph.boxes[name], x=spot.x, y=spot.y) for name, spot in at.items() if name in graph.boxes]
        lines += _paths(graph, edges, at)
        width = max(width, x - GAP_X)
        top += max(y[name] + size[name][1] / 2 for name in here) - highest + ROW_GAP
    return Panel(title, boxes, lines, width, top - ROW_GAP)


def _columns(graph: Graph) -> dict[str, int]:
    """Layers by the longest path from what nothing feeds; what has room stands where least stands already."""
    feeds, reads = defaultdict(list), defaultdict(list)
    for source, target in graph.edges:
        feeds[target].append(source)
        reads[source].append(target)
    columns: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in columns:
            stack = [name]
            while stack:
                waiting = [source for source in feeds[stack[-1]] if source not in columns]
                if waiting:
                    stack += waiting
                else:
                    top = stack.pop()
                    columns[top] = max((columns[source] + 1 for source in feeds[top]), default=0)
        return columns[name]

    for name in graph.boxes:
        column(name)
    crowd: Counter[int] = Counter(columns.values())
    for name in sorted(graph.boxes, key=lambda n: -columns[n]):
        if reads[name]:
            last = min(columns[target] for target in reads[name]) - 1
            choices = range(columns[name], last + 1) if feeds[name] else range(last, last + 1)
            parity = [c for c in choices if (last - c) % 2 == 0] or [last]
            best = min(parity, key=lambda c: (crowd[c] - (c == columns[name]), -c))
            crowd[columns[name]] -= 1
            crowd[best] += 1
            columns[name] = best
    return columns


def _with_bends(graph: Graph, columns: dict[str, int]) -> tuple[list[str], list[tuple[str, str]]]:
    """The boxes and, for each layer that an arrow crosses, a bend of it, whose column is noted; arrows from layer to layer."""
    names, edges = list(graph.boxes), []
    for number, (source, target) in enumerate(graph.edges):
        last = source
        for layer in range(columns[source] + 1, columns[target]):
            bend = f"bend {number} {layer}"
            columns[bend] = layer
            names.append(bend)
            edges.append((last, bend))
            last = bend
        edges.append((last, target))
    return names, edges


def _order(layers: list[list[str]], edges: Sequence[tuple[str, str]]) -> None:
    """Sorts every layer by the mean place of its neighbours, to and fro, and keeps what crosses least."""
    left, right = defaultdict(list), defaultdict(list)
    for source, target in edges:
        left[target].append(source)
        right[source].append(target)
    best, least = [list(layer) for layer in layers], _crossings(layers, right)
    for turn in range(12):
        neighbours = left if turn % 2 == 0 else right
        for i in range(len(layers)) if turn % 2 == 0 else range(len(layers) - 1, -1, -1):
            rank = {name: (k + 0.5) / len(layer) for layer in layers for k, name in enumerate(layer)}
            layers[i].sort(key=lambda n, rank=rank: sum(rank[m] for m in neighbours[n]) / len(neighbours[n]) if neighbours[n] else rank[n])  # type: ignore[misc]
        number = _crossings(layers, right)
        if number < least:
            best, least = [list(layer) for layer in layers], number
    layers[:] = best


def _crossings(layers: Sequence[Sequence[str]], right: dict[str, list[str]]) -> int:
    number = 0
    for layer, following in pairwise(layers):
        rank = {name: i for i, name in enumerate(following)}
        ends = [(i, rank[target]) for i, name in enumerate(layer) for target in right[name] if target in rank]
        number += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for k, a in enumerate(ends) for b in ends[:k])
    return number


def _heights(layers: Sequence[Sequence[str]], edges: Sequence[tuple[str, str]], size: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The centres of boxes and bends: near the mean of their neighbours, in order, without touching."""
    near = defaultdict(list)
    for source, target in edges:
        near[source].append(target)
        near[target].append(source)
    y: dict[str, float] = {}
    for layer in layers:
        whole = sum(size[name][1] + GAP_Y for name in layer)
        at = -whole / 2
        for name in layer:
            y[name] = at + (size[name][1] + GAP_Y) / 2
            at += size[name][1] + GAP_Y
    for turn in range(60):
        for layer in layers if turn % 2 == 0 else layers[::-1]:
            wish = [sum(y[other] for other in near[name]) / len(near[name]) if near[name] else y[name] for name in layer]
            for name, at in zip(layer, _apart(wish, [size[name][1] + GAP_Y for name in layer]), strict=True):
                y[name] = at
    return y


def _apart(wish: Sequence[float], room: Sequence[float]) -> list[float]:
    """Places nearest to the wishes (least squares) whose neighbours are half their rooms apart, in order."""
    offsets = [0.0]
    for a, b in pairwise(room):
        offsets.append(offsets[-1] + (a + b) / 2)
    blocks: list[tuple[float, int]] = []
    for at, offset in zip(wish, offsets, strict=True):
        mean, number = at - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean, number = (mean * number + other * count) / (number + count), number + count
        blocks.append((mean, number))
    flat = [mean for mean, number in blocks for _ in range(number)]
    return [mean + offset for mean, offset in zip(flat, offsets, strict=True)]


def _wrap(layers: Sequence[Sequence[str]], size: dict[str, tuple[float, float]], values: set[str]) -> list[range]:
    """Ranges of layers that are a row each, where all would get too wide: cut where one box, or one of the `values`, stands alone."""
    widths = [max((size[name][0] for name in layer), default=0.0) + GAP_X for layer in layers]
    alone = [len(layer) == 1 for layer in layers]
    # where a row may end (behind its last layer) and the next begin: a value between branches stands in both
    cuts = [(i, i) if alone[i - 1] else (i + 1, i) for i in range(1, len(layers)) if alone[i] and (alone[i - 1] or layers[i][0] in values)]

    def rows(most: float) -> list[range]:
        found, start, last = [], 0, (0, 0)
        for end, begin in [*cuts, (len(layers), 0)]:
            if sum(widths[start:end]) > most and last[0] > start + 1:
                found.append(range(start, last[0]))
                start = last[1]
            last = end, begin
        return [*found, range(start, len(layers))]

    number = len(rows(WIDEST))
    return next(found for share in range(5, 21) if len(found := rows(WIDEST * share / 20)) == number)  # no row much shorter than the others


def _paths(graph: Graph, edges: Sequence[tuple[str, str]], at: dict[str, Spot]) -> list[list[tuple[float, float]]]:
    """Arrows as points: out of a box on the right, level through the columns of its bends, into a box on the left.

    Where the other end stands in another row, the arrow ends in the margin.
    """
    follow = {source: target for source, target in edges if source not in graph.boxes}
    found = []
    for source, target in edges:
        if source in graph.boxes and source in at:
            spot = at[source]
            points = [(spot.x + spot.width / 2, spot.y), (spot.right, spot.y)]
            while target in at and target not in graph.boxes:
                points += [(at[target].left, at[target].y), (at[target].right, at[target].y)]
                target = follow[target]
            if target in at:
                points += [(at[target].left, at[target].y), (at[target].x - at[target].width / 2, at[target].y)]
            else:
                points.append((points[-1][0] + GAP_X / 2, points[-1][1]))
            found.append([point for point, last in zip(points, [None, *points], strict=False) if point != last])
        elif target in graph.boxes and target in at and source not in at:
            spot = at[target]
            found.append([(spot.left - GAP_X / 2, spot.y), (spot.x - spot.width / 2, spot.y)])
    return [points for i, points in enumerate(found) if points not in found[:i]]


def draw(chart: Chart, path: Path) -> None:
    """Writes the picture.

    Raises:
        ConfigError: the file's ending is neither .png nor .svg. ExportError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ending(path)
    edge, head, gap = 24.0, 34.0, 34.0
    rows = shelves(chart.panels)
    texts = _lines_of(chart.subtitle, max(sum(_room(p) for p in row) + gap * (len(row) - 1) for row in rows))
    width = max([sum(_room(p) for p in row) + gap * (len(row) - 1) for row in rows] + [ADVANCE * 14 * len(chart.title), 420.0]) + 2 * edge
    top = edge + 22 + 13 * len(texts) + 10
    height = top + sum(max(p.height + (16 if p.note else 0) for p in row) + head for row in rows) + gap * (len(rows) - 1) + edge
    with mpl.rc_context(LOOKS):
        figure = Figure(figsize=(width / 72, height / 72), dpi=130)
        axes: Any = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        axes.text(edge, edge, chart.title, fontsize=14, fontweight="bold", va="top")
        for i, line in enumerate(texts):
            axes.text(edge, edge + 23 + 13 * i, line, fontsize=8.5, color=MUTED, va="top", family="monospace")
        for row in rows:
            left = edge
            for part in row:
                axes.text(left, top + 8, part.title, fontsize=TITLE, fontweight="bold", va="center")
                _draw_panel(part, axes, left, top + head)
                if part.note:
                    axes.text(left, top + head + part.height + 14, part.note, fontsize=FONT, color=MUTED, va="center", family="monospace")
                left += _room(part) + gap
            top += max(p.height + (16 if p.note else 0) for p in row) + head + gap
        save(figure, path)


def _room(part: Panel) -> float:
    """The width of a panel with its text."""
    return max(part.width, ADVANCE * FONT * len(part.note), 0.65 * TITLE * len(part.title))


def shelves(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Panels side by side where they fit, the first alone where there are several."""
    rows = [[panels[0]]]
    for part in panels[1:]:
        if len(rows) > 1 and sum(_room(p) + 34 for p in rows[-1]) + _room(part) <= WIDEST:
            rows[-1].append(part)
        else:
            rows.append([part])
    return rows


def _lines_of(text: str, width: float) -> list[str]:
    """The text in lines of at most that width at the size of a subtitle."""
    most = max(60, int(width / (ADVANCE * 8.5)))
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _draw_panel(part: Panel, axes: Any, left: float, top: float) -> None:
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path as Curve

    for points in part.lines:
        moved = [(left + x, top + y) for x, y in points]
        vertices, codes = [moved[0]], [Curve.MOVETO]
        for (x0, y0), (x1, y1) in pairwise(moved):
            middle = (x0 + x1) / 2
            vertices += [(middle, y0), (middle, y1), (x1, y1)]
            codes += [Curve.CURVE4] * 3
        arrow: Any = FancyArrowPatch(
            path=Curve(vertices, codes), arrowstyle="-|>", mutation_scale=7, linewidth=0.9, color=EDGE, shrinkA=0, shrinkB=0, zorder=1
        )
        axes.add_patch(arrow)
    for box in part.boxes:
        x, y, face = left + box.x, top + box.y, _LOOKS[box.look]
        pill = min(box.width, box.height) / 2 if box.look == "value" else 3.5
        corner = (x - box.width / 2, y - box.height / 2)
        shape = FancyBboxPatch(
            corner, box.width, box.height, boxstyle=f"round,pad=0,rounding_size={pill}", facecolor=face[0], edgecolor=face[1],
            linewidth=1.0, zorder=2,
        )  # fmt: skip
        axes.add_patch(shape)
        if not box.title:
            continue
        first = y - LINE * FONT * len(box.lines) / 2
        bold = "bold" if box.lines or box.look in ("cell", "chosen") else "normal"
        axes.text(x, first, box.title, fontsize=FONT, family="monospace", ha="center", va="center", fontweight=bold, zorder=3)
        for i, line in enumerate(box.lines, 1):
            axes.text(x, first + LINE * FONT * i, line, fontsize=FONT, family="monospace", ha="center", va="center", color=MUTED, zorder=3)
