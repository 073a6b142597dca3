"""ENAS's cells, which are NAO's too: two cells of nodes that add up two branches (arXiv 1802.03268, 1808.07233).

A branch of a node is an operator on an earlier node or on one of the cell's two inputs, which are the outputs of the two cells before.
What no node reads is a loose end: loose ends, through ReLU, are concatenated and projected by a 1x1 convolution with BatchNorm. The
convolution of a concatenation is the sum of the convolutions of its parts, so every node has a slice of it, and those of nodes that
are read are dropped: that is the rule that this space adds to its sites. Weights belong to (node, input, operator), whichever branch
asks for them; the two branches of a node may be swapped. Reduction cells halve the map by the stride of what reads their inputs (ENAS
halves it before the cell while it searches, and so only in the final network); a loose input of theirs is halved by a factorized reduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from hwnas.errors import ConfigError
from hwnas.layers import ADDITION, operator
from hwnas.op import OpSpec
from hwnas.space import Architecture, Decision, SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
CELLS = ("normal", "reduction")
BRANCHES = ("a", "b")
SKIP = "identity"
POOLS = {f"{kind}_{kernel}x{kernel}": (f"{kind}_pool", kernel) for kind in ("max", "avg") for kernel in (2, 3, 5)}
OPERATORS: dict[str, dict[str, tuple[str, int]]] = {
    "enas": {
        "sep_3x3": ("sep_conv", 3), "sep_5x5": ("sep_conv", 5), "avg_3x3": POOLS["avg_3x3"], "max_3x3": POOLS["max_3x3"], SKIP: (SKIP, 1),
    },
    "nao": {
        SKIP: (SKIP, 1), "conv_1x1": ("conv_bn", 1), "conv_3x3": ("conv_bn", 3), "conv_1x3_3x1": ("conv_in_two", 3),
        "conv_1x7_7x1": ("conv_in_two", 7), **POOLS,
    },
}  # fmt: skip
"""Kind and kernel of every operator, in the published order."""


@operator("conv_in_two", takes_in=ADDITION)
def conv_in_two(op: OpSpec) -> nn.Module:
    """A convolution of one row, BatchNorm, ReLU, a convolution of one column, BatchNorm (1x7 and 7x1 of NASNet, arXiv 1707.07012)."""
    k, s = op.kernel, op.stride
    row = nn.Conv2d(op.c_in, op.c_out, (1, k), (1, s), (0, k // 2), bias=False)
    column = nn.Conv2d(op.c_out, op.c_out, (k, 1), (s, 1), (k // 2, 0), bias=False)
    return nn.Sequential(row, nn.BatchNorm2d(op.c_out), nn.ReLU(), column, nn.BatchNorm2d(op.c_out))


@dataclass(frozen=True, slots=True)
class Value:
    """What a cell reads: a node, its channels and the side of its map."""

    node: str
    channels: int
    side: int


class Cell:
    """The sites of one cell as they come: `sites`, of which `slices` (one a value, inputs first) project what may be a loose end."""

    def __init__(self, name: str, width: int, side: int, reduces: bool, operators: dict[str, tuple[str, int]]) -> None:
        self.name, self.width, self.side, self.operators = name, width, side, operators
        self.half = side // 2 if reduces else side
        self.sites: list[Site] = []
        self.slices: list[int] = []
        self.values: dict[str, Value] = {}

    def add(self, kind: str, source: str, output: str, side: int, kernel: int = 1, stride: int = 1, **rest: Any) -> None:
        """A site between two nodes of the cell."""
        op = OpSpec(kind, self.width, self.width, side, side, kernel, stride)
        self.sites.append(Site(op, (source,), f"{self.name}.{output}", **rest))

    def enter(self, label: str, value: Value) -> None:
        """An input of the cell, brought to its width and size."""
        node = value.node
        if (value.channels, value.side) != (self.width, self.side):
            before, node = f"{self.name}.{label}.before", f"{self.name}.{label}"
            kind, stride = ("conv_bn", 1) if value.side == self.side else ("factorized_reduce", 2)
            relu = OpSpec("relu", value.channels, value.channels, value.side, value.side)
            fitting = OpSpec(kind, value.channels, self.width, value.side, value.side, stride=stride)
            self.sites += [Site(relu, (value.node,), before, weightless=True), Site(fitting, (before,), node)]
        self.offer(label, Value(node, self.width, self.side))

    def offer(self, label: str, value: Value) -> None:
        """A value that nodes may read, in the weightless forms in which operators read it."""
        self.values[label] = value
        self.add("relu", value.node, f"{label}.relu", value.side, weightless=True)
        for pool in filter(POOLS.__contains__, self.operators):
            self.add(POOLS[pool][0], value.node, f"{label}.{pool}", value.side, POOLS[pool][1], value.side // self.half, weightless=True)

    def node(self, label: str, first: int) -> None:
        """A node of two branches, whose four slots begin with slot `first`."""
        for source, (read, value) in enumerate(self.values.items()):
            for choice, name in enumerate(self.operators):
                for slot in (first, first + 2):
                    self.branch(read, value, name, label, ((slot, source), (slot + 1, choice)))
        self.offer(label, Value(f"{self.name}.{label}", self.width, self.half))

    def branch(self, read: str, value: Value, name: str, label: str, when: tuple[Decision, ...]) -> None:
        """The operator `name` on the value `read` where the decisions `when` hold."""
        kind, kernel = self.operators[name]
        tied = f"{self.name}.{label}.{read}.{name}"
        if name in POOLS:
            self.add(SKIP, f"{self.name}.{read}.{name}", label, self.half, when=when, tied=tied)
        elif name == SKIP and value.side == self.half:
            self.add(SKIP, value.node, label, self.half, when=when, tied=tied)
        else:
            kind = "factorized_reduce" if name == SKIP else kind
            self.add(kind, f"{self.name}.{read}.relu", label, value.side, kernel, value.side // self.half, when=when, tied=tied)

    def leave(self) -> Value:
        """What comes out: the loose ends through ReLU, projected, and BatchNorm."""
        for label, value in self.values.items():
            relu = f"{label}.relu"
            if value.side != self.half:
                self.add("factorized_reduce", f"{self.name}.{relu}", f"{label}.half", value.side, stride=2)
                relu = f"{label}.half.relu"
                self.add("relu", f"{self.name}.{label}.half", relu, self.half)
            self.slices.append(len(self.sites))
            self.add("conv", f"{self.name}.{relu}", "sum", self.half)
        self.add("batch_norm", f"{self.name}.sum", "out", self.half)
        return Value(f"{self.name}.out", self.width, self.half)


class ENASMicro(SearchSpace):
    """`cells` normal cells, a reduction cell, and so on: 6 normal and 2 reduction cells of 5 nodes and 20 channels by default."""

    small: ClassVar[dict[str, Any]] = {"input_size": 8, "width": 4, "nodes": 2, "cells": 1, "reductions": 1}

    expectable: ClassVar[bool] = False

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        width: Annotated[int, Field(ge=2)] = 20,
        nodes: Annotated[int, Field(ge=1, le=10)] = 5,
        cells: Positive = 2,
        reductions: Annotated[int, Field(ge=1, le=5)] = 2,
        operators: Literal["enas", "nao"] = "enas",
    ) -> None:
        if input_size % 2**reductions:
            raise ConfigError(
                f"space 'enas_micro': input_size must be a multiple of {2**reductions} for {reductions} reductions, but is {input_size}"
            )
        self.nodes = nodes
        self.slices: dict[tuple[int, int], list[int]] = {}
        """Cell and number of a value in it (0 and 1 are its inputs) -> the sites that project it where it is a loose end."""
        names = ["in1", "in2", *(f"n{node}" for node in range(1, nodes + 1))]
        slots: list[Slot] = []
        for kind, node, branch in product(CELLS, range(nodes), BRANCHES):
            slots.append(Slot(f"{kind}.{names[node + 2]}.{branch}.from", tuple(names[: node + 2])))
            slots.append(Slot(f"{kind}.{names[node + 2]}.{branch}.op", tuple(OPERATORS[operators])))
        stem = OpSpec("conv_bn", channels, 3 * width, input_size, input_size, kernel=3)
        sites = [Site(stem, ("input",), "stem")]
        before = last = Value("stem", 3 * width, input_size)
        for stage in range(1, reductions + 2):
            width *= 1 if stage == 1 else 2
            for number in range(1, cells + 1 + (stage > 1)):
                reduces = stage > 1 and number == 1
                cell = Cell(f"s{stage}.c{number}", width, last.side, reduces, OPERATORS[operators])
                cell.enter(names[0], before)
                cell.enter(names[1], last)
                for node in range(nodes):
                    cell.node(names[node + 2], 2 * len(BRANCHES) * (reduces * nodes + node))
                before, last = last, cell.leave()
                for value, site in enumerate(cell.slices):
                    self.slices.setdefault((int(reduces), value), []).append(len(sites) + site)
                sites += cell.sites
        sites += [
            Site(OpSpec("relu", width, width, last.side, last.side), (last.node,), "features"),
            Site(OpSpec("classifier", width, classes, last.side, last.side, stride=last.side), ("features",), "output"),
        ]
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))

    @property
    def swaps(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The two branches of each node."""
        return tuple(((slot, slot + 2), (slot + 1, slot + 3)) for slot in range(0, len(self.slots), 2 * len(BRANCHES)))

    def chosen(self, arch: Architecture) -> list[int]:
        """The sites whose decisions hold, without the projections of what some node reads."""
        per_cell = 2 * len(BRANCHES) * self.nodes
        read = {(slot // per_cell, arch[slot]) for slot in range(0, len(arch), 2)}
        dropped = {site for value in read for site in self.slices.get(value, ())}
        return [site for site in super().chosen(arch) if site not in dropped]
