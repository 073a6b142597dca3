"""FBNet: 22 layers with nine operators each (arXiv 1812.03443), in the shapes of HW-NAS-Bench (arXiv 2103.10584) for CIFAR by default.

An operator is kernel 3 or 5 with expansion 1 (also with its 1x1 convolutions in two groups and the channels shuffled between them), 3
or 6, or `skip`. A skip that must change the shape is a 1x1 convolution with BatchNorm and ReLU, as in HW-NAS-Bench; elsewhere it is the
identity. The first 1x1 convolution stands at expansion 1 too. For ImageNet's shapes:
`input_size=224 classes=1000 stem_stride=2 strides=[1,2,2,2,1,2,1] head_width=1984`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from hwnas.errors import ConfigError
from hwnas.layers import ChannelShuffle, Residual, conv, operator
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
BLOCKS = {
    f"k{kernel}_e{expansion}" + (f"_g{groups}" if groups > 1 else ""): (kernel, expansion, groups)
    for kernel in (3, 5)
    for expansion, groups in ((1, 1), (1, 2), (3, 1), (6, 1))
}
"""Kernel, expansion and groups of the eight operators beside `skip`, in the published order."""


@operator("fbnet_block")
def fbnet_block(op: OpSpec) -> nn.Module:
    """1x1 convolution to `hidden` channels, depthwise, 1x1 convolution; with groups, the channels are shuffled after the first."""
    if any(channels % op.groups for channels in (op.c_in, op.hidden, op.c_out)):
        raise ConfigError(f"{op} has channels that {op.groups} groups do not divide; choose widths of which {op.groups} is a factor")
    body = nn.Sequential(conv(op.c_in, op.hidden, 1, groups=op.groups), nn.BatchNorm2d(op.hidden), nn.ReLU())
    if op.groups > 1:
        body.append(ChannelShuffle(op.groups, (op.hidden, op.height, op.width)))
    body.extend([conv(op.hidden, op.hidden, op.kernel, op.stride, op.hidden), nn.BatchNorm2d(op.hidden), nn.ReLU()])
    body.extend([conv(op.hidden, op.c_out, 1, groups=op.groups), nn.BatchNorm2d(op.c_out)])
    return Residual(body, nn.Identity()) if op.stride == 1 and op.c_in == op.c_out else body


@operator("fbnet_skip")
def fbnet_skip(op: OpSpec) -> nn.Module:
    """A skip where the shape changes: 1x1 convolution, BatchNorm, ReLU."""
    return nn.Sequential(conv(op.c_in, op.c_out, 1, op.stride), nn.BatchNorm2d(op.c_out), nn.ReLU())


class FBNet(SearchSpace):
    """The published stages (`depths` layers of `widths` channels) between a 3x3 stem and a 1x1 head; stem and head end in ReLU6."""

    small: ClassVar[dict[str, Any]] = {
        "input_size": 16, "stem_width": 8, "widths": [8, 12, 16], "depths": [1, 2, 1], "strides": [1, 2, 2], "head_width": 24,
    }  # fmt: skip

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        stem_width: Positive = 16,
        stem_stride: Annotated[int, Field(ge=1, le=2)] = 1,
        widths: Annotated[list[Positive], Field(min_length=1)] = [16, 24, 32, 64, 112, 184, 352],  # noqa: B006
        depths: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 4, 4, 4, 4, 1],  # noqa: B006
        strides: Annotated[list[Annotated[int, Field(ge=1, le=2)]], Field(min_length=1)] = [1, 1, 2, 2, 1, 2, 1],  # noqa: B006
        head_width: Positive = 1504,
        shape_changing_skips: bool = True,
    ) -> None:
        if not len(widths) == len(depths) == len(strides):
            raise ConfigError(
                f"space 'fbnet': widths, depths and strides must say the same number of stages, but say {len(widths)}, {len(depths)} "
                f"and {len(strides)}"
            )
        if odd := [width for width in (stem_width, *widths) if width % 2]:
            raise ConfigError(f"space 'fbnet': stem_width and widths must be even for the operators in two groups, but one is {odd[0]}")
        slots: list[Slot] = []
        stem = OpSpec("conv_bn_relu", channels, stem_width, input_size, input_size, kernel=3, stride=stem_stride)
        sites = [Site(stem, ("input",), "stem")]
        node, c_in, side = "stem", stem_width, stem.out_height
        for width, depth, first_stride in zip(widths, depths, strides, strict=True):
            for block in range(depth):
                stride = first_stride if block == 0 else 1
                keeps = c_in == width and stride == 1
                slot = len(slots)
                name = f"layer{slot + 1}"
                for choice, (kernel, expansion, groups) in enumerate(BLOCKS.values()):
                    op = OpSpec("fbnet_block", c_in, width, side, side, kernel, stride, c_in * expansion, groups)
                    sites.append(Site(op, (node,), name, ((slot, choice),)))
                may_skip = keeps or shape_changing_skips
                if may_skip:
                    op = OpSpec("identity" if keeps else "fbnet_skip", c_in, width, side, side, stride=stride)
                    sites.append(Site(op, (node,), name, ((slot, len(BLOCKS)),)))
                slots.append(Slot(name, (*BLOCKS, "skip") if may_skip else tuple(BLOCKS)))
                node, c_in, side = name, width, -(-side // stride)
        sites.append(Site(OpSpec("conv_bn_relu", c_in, head_width, side, side), (node,), "head"))
        sites.append(Site(OpSpec("classifier", head_width, classes, side, side, stride=side), ("head",), "output"))
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))
