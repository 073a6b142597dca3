"""DARTS's cells as SNAS searches them: a normal and a reduction cell of 14 edges with eight operators each (arXiv 1806.09055, 1812.09926).

A cell reads the outputs of the two cells before it, each through ReLU, 1x1 convolution and BatchNorm (a factorized reduction
where it is twice as wide); every intermediate node is the sum of what its edges give it, and the cell's output is the
intermediate nodes one behind the other. All edges stay in the network: how many a node has is learnt through `none`. All
cells of a type share their decisions. What several edges would compute alike is one site that they read: a node's ReLU
(every convolution is ReLU, convolutions, BatchNorm) and its poolings have no weights.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from hwnas.layers import ADDITION, conv, operator
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

Operator = Literal["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
OPERATORS: tuple[Operator, ...] = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
TYPES = ("normal", "reduce")


@operator("dil_conv", takes_in=ADDITION)
def dil_conv(op: OpSpec) -> nn.Module:
    """Dilated depthwise and 1x1 convolution and BatchNorm; what it reads has had its ReLU."""
    depthwise = conv(op.c_in, op.c_in, op.kernel, op.stride, op.c_in, op.dilation)
    return nn.Sequential(depthwise, conv(op.c_in, op.c_out, 1), nn.BatchNorm2d(op.c_out))


class DARTS(SearchSpace):
    """The published network with `cells` = 8 and `width` = 16 (20 and 36 where it is retrained); smaller ones for experiments.

    The cells at a third and at two thirds of the depth are reduction cells: stride 2 on the edges from their two inputs,
    twice the channels. The stem is three times as wide as the first cell.

    Args:
        nodes: intermediate nodes of a cell; 4 make the published 14 edges.
        operators: what every edge chooses from.
    """

    small: ClassVar[dict[str, Any]] = {"input_size": 8, "width": 4, "cells": 3, "nodes": 2}

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Annotated[int, Field(ge=1)] = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        width: Annotated[int, Field(ge=2)] = 16,
        cells: Annotated[int, Field(ge=3)] = 8,
        nodes: Annotated[int, Field(ge=1)] = 4,
        operators: Annotated[list[Operator], Field(min_length=1)] = list(OPERATORS),  # noqa: B006
    ) -> None:
        edges = [(source, target) for target in range(2, 2 + nodes) for source in range(target)]
        slots = tuple(Slot(f"{kind}.{target}<-{source}", tuple(operators)) for kind in TYPES for source, target in edges)
        sites = [Site(OpSpec("conv_bn", channels, 3 * width, input_size, input_size, kernel=3), ("input",), "stem")]
        sites.append(_relu("stem", 3 * width, input_size))
        outputs = [("stem", 3 * width, input_size)] * 2  # node, channels, side of the two cells before
        for number in range(cells):
            reduces = number in (cells // 3, 2 * cells // 3)
            width *= 1 + reduces
            side = outputs[1][2]
            inputs = []
            for i, (node, wide, large) in enumerate(outputs):
                inputs.append(f"c{number}.n{i}")
                kind, stride = ("conv_bn", 1) if large == side else ("factorized_reduce", 2)
                sites.append(Site(OpSpec(kind, wide, width, large, large, stride=stride), (f"{node}.relu",), inputs[-1]))
            out = -(-side // (1 + reduces))
            names = [*inputs, *(f"c{number}.n{i}" for i in range(2, 2 + nodes))]
            for target in range(2, 2 + nodes):
                source = target - 1
                for i in (0, 1) if target == 2 else (source,):
                    sites += _forms(names[i], width, *((side, 1 + reduces) if i < 2 else (out, 1)))
                for slot, (i, _) in ((s, edge) for s, edge in enumerate(edges) if edge[1] == target):
                    shape = (side, 1 + reduces) if i < 2 else (out, 1)
                    for choice, name in enumerate(operators):
                        if name != "none":
                            form, op = _edge(name, width, *shape)
                            sites.append(Site(op, (names[i] + form,), names[target], ((slot + reduces * len(edges), choice),)))
            joined = OpSpec("concat", nodes * width, nodes * width, out, out)
            sites += [Site(joined, tuple(names[2:]), f"c{number}"), _relu(f"c{number}", nodes * width, out)]
            outputs = [outputs[1], (f"c{number}", nodes * width, out)]
        node, wide, side = outputs[1]
        sites.append(Site(OpSpec("classifier", wide, classes, side, side, stride=side), (node,), "output"))
        super().__init__((channels, input_size, input_size), classes, slots, tuple(sites))


def _relu(node: str, channels: int, side: int) -> Site:
    return Site(OpSpec("relu", channels, channels, side, side), (node,), f"{node}.relu", weightless=True)


def _forms(node: str, channels: int, side: int, stride: int) -> list[Site]:
    """What edges read of a node: its ReLU, and its poolings, which may already take the edges' stride."""
    pools = {form: OpSpec(kind, channels, channels, side, side, 3, stride) for form, kind in ((".max", "max_pool"), (".avg", "avg_pool"))}
    return [_relu(node, channels, side), *(Site(op, (node,), node + form, weightless=True) for form, op in pools.items())]


def _edge(name: Operator, channels: int, side: int, stride: int) -> tuple[str, OpSpec]:
    """The form of its source that an edge with this operator reads, and what it applies to it."""
    if name.endswith("pool_3x3"):
        out = -(-side // stride)
        return f".{name[:3]}", OpSpec("batch_norm", channels, channels, out, out)
    if name == "skip_connect":
        if stride == 1:
            return "", OpSpec("identity", channels, channels, side, side)
        return ".relu", OpSpec("factorized_reduce", channels, channels, side, side, stride=2)
    kind, kernel = name[:8], int(name[-1])
    dilation = 2 if kind == "dil_conv" else 1
    return ".relu", OpSpec(kind, channels, channels, side, side, kernel, stride, dilation=dilation)
