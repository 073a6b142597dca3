"""InstaNAS's meta-graph: every module of every MobileNetV2 block has a gate, which a controller opens for each image (arXiv 1811.10201).

A block's output is the sum of its open modules: inverted bottlenecks (`k3e6`: kernel 3, expansion 6) and a block of two 3x3
convolutions (`basic`). With all gates shut a block hands its input on, except the first of a stage, whose last module steps in with
the weights that it has anyway. By default 17 blocks of 5 modules, as published for CIFAR: 2^85 networks.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from hwnas.errors import ConfigError
from hwnas.layers import Residual, conv, operator
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
Module = Annotated[str, Field(pattern=r"^(k[1357]e[1-9]|basic)$")]


@operator("basic_block")
def basic_block(op: OpSpec) -> nn.Module:
    """3x3 convolution, BatchNorm, ReLU6, 3x3 convolution, BatchNorm; residual where shapes allow."""
    body = nn.Sequential(
        conv(op.c_in, op.c_out, 3, op.stride), nn.BatchNorm2d(op.c_out), nn.ReLU6(), conv(op.c_out, op.c_out, 3), nn.BatchNorm2d(op.c_out)
    )
    return Residual(body, nn.Identity()) if op.stride == 1 and op.c_in == op.c_out else body


def module_spec(module: str, c_in: int, c_out: int, side: int, stride: int) -> OpSpec:
    """The operator that a module's name stands for."""
    if module == "basic":
        return OpSpec("basic_block", c_in, c_out, side, side, kernel=3, stride=stride)
    kernel, expansion = map(int, re.findall(r"\d", module))
    return OpSpec("mbconv", c_in, c_out, side, side, kernel, stride, hidden=c_in * expansion)


class InstanceMobileNet(SearchSpace):
    """Stages (`depths` blocks of `widths` channels) between a 3x3 stem and a 1x1 head, and the controller that opens the gates.

    `controller` are that network's operators, one after another: a stem, a basic block for each of `controller_widths`, and
    a classifier with an output for each gate. They are among `operators()`, so that tables price what choosing costs. `base`
    is the network of every block's first module, by default MobileNetV2.

    Args:
        modules: of every block. The last one is the fallback.
        controller_pool: by which factor the controller sees the image smaller (published: 2 for 224 x 224).

    Raises:
        ConfigError: lists of different lengths, a module named twice, an image that does not divide by `controller_pool`.
    """

    small: ClassVar[dict[str, Any]] = {
        "input_size": 8, "stem_width": 4, "widths": [6], "depths": [2], "strides": [2], "head_width": 12,
        "modules": ["k3e3", "k5e2", "basic"], "controller_widths": [4, 6],
    }  # fmt: skip

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        stem_width: Positive = 32,
        stem_stride: Annotated[int, Field(ge=1, le=2)] = 1,
        widths: Annotated[list[Positive], Field(min_length=1)] = [16, 24, 32, 64, 96, 160, 320],  # noqa: B006
        depths: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 3, 4, 3, 3, 1],  # noqa: B006
        strides: Annotated[list[Annotated[int, Field(ge=1, le=2)]], Field(min_length=1)] = [1, 1, 2, 2, 1, 2, 1],  # noqa: B006
        head_width: Positive = 1280,
        modules: Annotated[list[Module], Field(min_length=1)] = ["k3e6", "k3e3", "k5e6", "k5e3", "basic"],  # noqa: B006
        controller_widths: Annotated[list[Positive], Field(min_length=1)] = [16, 32, 64],  # noqa: B006
        controller_pool: Positive = 1,
    ) -> None:
        if not len(widths) == len(depths) == len(strides):
            raise ConfigError(
                f"space 'instance_mobilenet': widths, depths and strides must say the same number of stages, but say {len(widths)}, "
                f"{len(depths)} and {len(strides)}"
            )
        if len(set(modules)) < len(modules):
            raise ConfigError(f"space 'instance_mobilenet': modules must name each module once, but are {modules}")
        if input_size % controller_pool:
            raise ConfigError(
                f"space 'instance_mobilenet': controller_pool must divide input_size, but {input_size} does not divide by {controller_pool}"
            )
        slots: list[Slot] = []
        stem = OpSpec("conv_bn_relu", channels, stem_width, input_size, input_size, kernel=3, stride=stem_stride)
        sites = [Site(stem, ("input",), "stem")]
        node, c_in, side = "stem", stem_width, stem.out_height
        for stage, (width, depth, first_stride) in enumerate(zip(widths, depths, strides, strict=True), 1):
            for block in range(1, depth + 1):
                stride = first_stride if block == 1 else 1
                name = f"s{stage}.b{block}"
                gates = range(len(slots), len(slots) + len(modules))
                for gate, module in zip(gates, modules, strict=True):
                    slots.append(Slot(f"{name}.{module}", ("off", "on")))
                    op = module_spec(module, c_in, width, side, stride)
                    sites.append(Site(op, (node,), name, ((gate, 1),), tied=slots[-1].name))
                shut = tuple((gate, 0) for gate in gates)
                if block == 1:
                    sites.append(Site(sites[-1].op, (node,), name, shut, tied=slots[-1].name))
                else:
                    sites.append(Site(OpSpec("identity", width, width, side, side), (node,), name, shut))
                node, c_in, side = name, width, -(-side // stride)
        sites.append(Site(OpSpec("conv_bn_relu", c_in, head_width, side, side), (node,), "head"))
        sites.append(Site(OpSpec("classifier", head_width, classes, side, side, stride=side), ("head",), "output"))
        self.controller = controller(channels, input_size, controller_widths, controller_pool, len(slots))
        self.base = (1, *[0] * (len(modules) - 1)) * sum(depths)
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))

    def operators(self) -> tuple[OpSpec, ...]:
        """Every distinct operator that the space or its controller may need, sorted by key."""
        return tuple(sorted({*super().operators(), *self.controller}, key=str))


def controller(channels: int, side: int, widths: list[int], pool: int, gates: int) -> tuple[OpSpec, ...]:
    """A small ResNet from an image to a logit for each gate, as operators one after another."""
    operators = [OpSpec("avg_pool", channels, channels, side, side, kernel=pool, stride=pool)] if pool > 1 else []
    side //= pool
    operators.append(OpSpec("conv_bn_relu", channels, widths[0], side, side, kernel=3))
    c_in = widths[0]
    for i, width in enumerate(widths):
        operators.append(OpSpec("basic_block", c_in, width, side, side, kernel=3, stride=2 if i else 1))
        c_in, side = width, operators[-1].out_height
    return (*operators, OpSpec("classifier", c_in, gates, side, side, stride=side))
