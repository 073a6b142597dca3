"""MONAS's CondenseNet: layers and growth of each of three dense blocks (arXiv 1806.10332, the network of arXiv 1711.09224).

A layer is BatchNorm, ReLU, the learned group convolution to four times the growth (as it is deployed: priced and exported in groups),
BatchNorm, ReLU and a 3x3 convolution in groups; what comes out stands behind what went in. Between blocks the map is halved by 2x2 average
pooling. Widths multiply: what a layer reads depends on all choices before it, so a node carries its channels, `b2.l3@104` (layer 3 of
block 2 with 104 channels), a layer's operator exists once for every width that can reach it, and a network's are picked by walking it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hwnas.errors import ConfigError
from hwnas.layers import conv, learned_group_conv, operator
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
BOTTLENECK = 4
"""How many times the growth the learned group convolution puts out."""
GROUPS = 4
"""Of both convolutions, and the condensation factor."""


class Dense(nn.Module):
    """x, and behind it body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


@operator("condense_layer")
def condense_layer(op: OpSpec) -> nn.Module:
    """A layer of CondenseNet: `c_out - c_in` is its growth, `hidden` what the learned group convolution puts out."""
    growth = op.c_out - op.c_in
    learned = learned_group_conv(OpSpec("learned_group_conv", op.c_in, op.hidden, op.height, op.width, groups=op.groups))
    last = conv(op.hidden, growth, op.kernel, groups=op.groups)
    return Dense(nn.Sequential(nn.BatchNorm2d(op.c_in), nn.ReLU(), learned, nn.BatchNorm2d(op.hidden), nn.ReLU(), last))


class CondenseNet(SearchSpace):
    """The published candidates on images of 32x32; the stem has twice the first block's growth. The slots are stage and growth in turn."""

    small: ClassVar[dict[str, Any]] = {"input_size": 8, "stages": [1, 2], "growths": [4, 8]}

    expectable: ClassVar[bool] = False

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        blocks: Annotated[int, Field(ge=1, le=3)] = 3,
        stages: Annotated[list[Positive], Field(min_length=1)] = [6, 8, 10, 12, 14],  # noqa: B006
        growths: Annotated[list[Positive], Field(min_length=1)] = [4, 8, 16, 24, 32],  # noqa: B006
    ) -> None:
        if odd := [growth for growth in growths if growth % GROUPS]:
            raise ConfigError(f"space 'condensenet': growths must be multiples of {GROUPS}, the number of groups, but one is {odd[0]}")
        if len({*stages}) < len(stages) or len({*growths}) < len(growths):
            raise ConfigError(f"space 'condensenet': stages and growths must not name a number twice, but are {stages} and {growths}")
        slots: list[Slot] = []
        for block in range(1, blocks + 1):
            slots += [Slot(f"b{block}.stage", tuple(map(str, stages))), Slot(f"b{block}.growth", tuple(map(str, growths)))]
        self.stages, self.growths = stages, growths
        self.stems: list[int] = []
        self.layers: dict[tuple[int, int, int, int], int] = {}
        """Block, layer, channels and growth -> site."""
        self.exits: dict[tuple[int, int, int], int] = {}
        """Block, its layers and channels behind them -> site."""
        sites: list[Site] = []
        side = input_size
        for choice, growth in enumerate(growths):
            self.stems.append(len(sites))
            stem = OpSpec("conv", channels, 2 * growth, side, side, kernel=3)
            sites.append(Site(stem, ("input",), f"b1.l0@{2 * growth}", ((1, choice),)))
        entering = {(2 * growth, growth) for growth in growths}
        for block in range(1, blocks + 1):
            stage_slot, growth_slot = 2 * block - 2, 2 * block - 1
            for layer in range(1, max(stages) + 1):
                for start, growth in sorted(entering):
                    c_in = start + (layer - 1) * growth
                    op = OpSpec("condense_layer", c_in, c_in + growth, side, side, 3, hidden=BOTTLENECK * growth, groups=GROUPS)
                    self.layers[block, layer, c_in, growth] = len(sites)
                    when = ((growth_slot, growths.index(growth)),)
                    sites.append(Site(op, (f"b{block}.l{layer - 1}@{c_in}",), f"b{block}.l{layer}@{c_in + growth}", when))
            leaving = sorted({(stage, start + stage * growth) for stage in stages for start, growth in entering})
            for stage, width in leaving:
                self.exits[block, stage, width] = len(sites)
                if block < blocks:
                    op, output = OpSpec("avg_pool", width, width, side, side, 2, 2), f"b{block + 1}.l0@{width}"
                else:
                    op, output = OpSpec("bn_relu_classifier", width, classes, side, side, stride=side), "output"
                sites.append(Site(op, (f"b{block}.l{stage}@{width}",), output, ((stage_slot, stages.index(stage)),)))
            entering = {(width, growth) for _, width in leaving for growth in growths}
            side = -(-side // 2)
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))

    def chosen(self, arch: Architecture) -> list[int]:
        """The stem, and block by block the layers for the channels that reach them, and what leads out of the block."""
        indices = [self.stems[arch[1]]]
        width = 2 * self.growths[arch[1]]
        for block, (stage, growth) in enumerate(zip(arch[::2], arch[1::2], strict=True), 1):
            for layer in range(1, self.stages[stage] + 1):
                indices.append(self.layers[block, layer, width, self.growths[growth]])
                width += self.growths[growth]
            indices.append(self.exits[block, self.stages[stage], width])
        return indices

    def operators(self) -> tuple[OpSpec, ...]:
        """Every distinct operator, sorted by key; nothing is added up, though the decisions alone do not tell the last sites apart."""
        return tuple(op for op in super().operators() if op.kind != "add")
