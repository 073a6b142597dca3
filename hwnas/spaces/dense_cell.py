"""DPP-Net's space: densely connected cells, each a chain of normalisations and convolutions in turn (arXiv 1806.08198).

All cells share their decisions. A cell reads all features so far and adds `growth` channels to them; between stages the
features are pooled and the growth changes. A cell begins with a normalisation and has two to `length` layers: `end` in place
of a layer ends it there, so that the cells of a progressive search are networks like any other. Of length 2, 3 and 4 there
are 18, 54 and 324 (18 of the 54 are those of length 2 with an identity behind). At full size: `depths=[14,14,14]`.

The publication leaves open, and is decided here: every convolution but a cell's last gives 4 x growth channels, the last
one growth; groups are four; a depthwise convolution is followed by a 1x1 convolution, which sets the width; pooling between
stages is 3x3 average pooling of stride 2; the stem gives twice the first growth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from hwnas.errors import ConfigError
from hwnas.layers import ADDITION, conv, operator
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace, Site, Slot

GROUPS = 4
WIDER = 4
"""How many times the growth a cell's convolutions are wide before the last one."""
END = "end"

Build = Callable[[int, int, int], OpSpec]
"""c_in, c_out, side -> operator."""
NORMS: dict[str, Build] = {
    "bn_relu": lambda c, _, side: OpSpec("norm_relu", c, c, side, side),
    "bn": lambda c, _, side: OpSpec("batch_norm", c, c, side, side),
    "identity": lambda c, _, side: OpSpec("identity", c, c, side, side),
}
CONVS: dict[str, Build] = {
    "1x1": lambda c, out, side: OpSpec("conv", c, out, side, side),
    "3x3": lambda c, out, side: OpSpec("conv", c, out, side, side, kernel=3),
    "1x1_group": lambda c, out, side: OpSpec("conv", c, out, side, side, groups=GROUPS),
    "3x3_group": lambda c, out, side: OpSpec("conv", c, out, side, side, kernel=3, groups=GROUPS),
    "1x1_learned_group": lambda c, out, side: OpSpec("learned_group_conv", c, out, side, side, groups=GROUPS),
    "3x3_depthwise": lambda c, out, side: OpSpec("depthwise_pointwise", c, out, side, side, kernel=3),
}


@operator("norm_relu")
def norm_relu(op: OpSpec) -> nn.Module:
    """BatchNorm and ReLU, before a convolution."""
    return nn.Sequential(nn.BatchNorm2d(op.c_in), nn.ReLU())


@operator("depthwise_pointwise", takes_in=ADDITION)
def depthwise_pointwise(op: OpSpec) -> nn.Module:
    """A depthwise convolution and the 1x1 convolution that sets the width."""
    return nn.Sequential(conv(op.c_in, op.c_in, op.kernel, op.stride, op.c_in), conv(op.c_in, op.c_out, 1))


class DenseCell(SearchSpace):
    """Cells of up to `length` layers, `depths` of them a stage; the growths are multiples of four."""

    small: ClassVar[dict[str, Any]] = {"input_size": 16, "depths": [1, 1, 1], "growths": [4, 4, 8]}
    shortest = 2

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Annotated[int, Field(ge=1)] = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        length: Annotated[int, Field(ge=2)] = 4,
        depths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [4, 4, 4],  # noqa: B006
        growths: Annotated[list[Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)]], Field(min_length=1)] = [8, 16, 32],  # noqa: B006
    ) -> None:
        if len(depths) != len(growths):
            raise ConfigError(f"dense_cell needs one growth a stage, but got {len(depths)} depths and {len(growths)} growths")
        self.length = length
        slots = tuple(
            Slot(f"{'norm' if layer % 2 == 0 else 'conv'}{layer // 2 + 1}", (*_layer(layer), END) if layer > 1 else tuple(_layer(layer)))
            for layer in range(length)
        )
        width, side = 2 * growths[0], input_size
        sites = [Site(OpSpec("conv_bn", channels, width, side, side, kernel=3), ("input",), "stem")]
        node = "stem"
        for stage, (depth, growth) in enumerate(zip(depths, growths, strict=True), 1):
            if stage > 1:
                sites.append(Site(OpSpec("avg_pool", width, width, side, side, kernel=3, stride=2), (node,), f"pool{stage - 1}"))
                node, side = f"pool{stage - 1}", -(-side // 2)
            for number in range(1, depth + 1):
                cell = f"s{stage}.c{number}"
                sites += _cell(cell, node, width, growth, side, length)
                width += growth
                sites.append(Site(OpSpec("concat", width, width, side, side), (node, f"{cell}.out"), cell))
                node = cell
        sites.append(Site(OpSpec("bn_relu_classifier", width, classes, side, side, stride=side), (node,), "output"))
        super().__init__((channels, input_size, input_size), classes, slots, tuple(sites))

    @cached_property
    def rest(self) -> Architecture:
        """`end` wherever a cell may end."""
        return tuple(slot.choices.index(END) if END in slot.choices else 0 for slot in self.slots)

    def extensions(self, prefix: Architecture) -> list[Architecture]:
        """The cells that are longer by one layer: 3 or 6 times as many."""
        return [(*prefix, choice) for choice in range(len(_layer(len(prefix))))]


def _layer(layer: int) -> dict[str, Build]:
    return NORMS if layer % 2 == 0 else CONVS


def _cell(cell: str, source: str, c_in: int, growth: int, side: int, length: int) -> list[Site]:
    """The chain from `source` to `<cell>.out`.

    A convolution is there in both widths, that of a cell's last and that of one with another behind it: only the one whose
    value is used is alive. `end` hands the value of the narrow one on.
    """
    sites: list[Site] = []

    def apply(layer: int, node: str, c_in: int, c_out: int, target: str) -> str:
        operators = _layer(layer).values()
        sites.extend(Site(build(c_in, c_out, side), (node,), target, ((layer, choice),)) for choice, build in enumerate(operators))
        return target

    wide, width = apply(0, source, c_in, c_in, f"{cell}.norm1"), c_in
    narrow = ""
    for layer in range(1, length):
        convolves = layer % 2 == 1
        if layer > 1:
            end = OpSpec("identity", growth, growth, side, side)
            sites.append(Site(end, (narrow,), f"{cell}.out", ((layer, len(_layer(layer))),)))
        target = f"{cell}.out" if layer == length - 1 else f"{cell}.{layer}.narrow"
        narrow = apply(layer, wide, width, growth, target) if convolves else apply(layer, narrow, growth, growth, target)
        if layer + 1 + convolves < length:
            wide, width = apply(layer, wide, width, WIDER * growth, f"{cell}.{layer}.wide"), WIDER * growth
    return sites
