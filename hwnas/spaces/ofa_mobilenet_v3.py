"""Once-for-all's MobileNetV3 (arXiv 1908.09791): kernel 3, 5, 7 and expansion 3, 4, 6 of every block, depth 2, 3, 4 of five stages.

Blocks stand in a row and the depth decides from which of them a stage's output is taken, so those behind it are dead and block 2 is
the same site (the same weights) at every depth. Resolution is the option `input_size` and no decision: sites at another size would be
other sites, with weights of their own, which is what once-for-all does not want; search one resolution after the other.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.layers import Residual, conv, operator
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
# Channels, stride, squeeze-and-excitation and hard swish of the five stages, before the width multiplier.
_STAGES = ((24, 2, False, False), (40, 2, True, False), (80, 2, False, True), (112, 1, True, True), (160, 2, True, True))


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to a number of channels, but no less than 90 % of it (MobileNetV2, arXiv 1801.04381)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Every channel times a gate of 0 to 1 that sees all channels' means (arXiv 1709.01507), by hard sigmoid as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


def _mbconv(op: OpSpec, activation: type[nn.Module], squeeze: bool) -> nn.Module:
    body = nn.Sequential()
    if op.hidden != op.c_in:
        body.extend([conv(op.c_in, op.hidden, 1), nn.BatchNorm2d(op.hidden), activation()])
    body.extend([conv(op.hidden, op.hidden, op.kernel, op.stride, op.hidden), nn.BatchNorm2d(op.hidden), activation()])
    if squeeze:
        body.append(SqueezeExcite(op.hidden))
    body.extend([conv(op.hidden, op.c_out, 1), nn.BatchNorm2d(op.c_out)])
    return Residual(body, nn.Identity()) if op.stride == 1 and op.c_in == op.c_out else body


@operator("mbconv_relu")
def mbconv_relu(op: OpSpec) -> nn.Module:
    """An inverted bottleneck with ReLU (MobileNetV3, arXiv 1905.02244); no expansion where `hidden` is `c_in`."""
    return _mbconv(op, nn.ReLU, squeeze=False)


@operator("mbconv_se_relu")
def mbconv_se_relu(op: OpSpec) -> nn.Module:
    """The same with squeeze-and-excitation after the depthwise convolution."""
    return _mbconv(op, nn.ReLU, squeeze=True)


@operator("mbconv_hswish")
def mbconv_hswish(op: OpSpec) -> nn.Module:
    """An inverted bottleneck with hard swish."""
    return _mbconv(op, nn.Hardswish, squeeze=False)


@operator("mbconv_se_hswish")
def mbconv_se_hswish(op: OpSpec) -> nn.Module:
    """The same with squeeze-and-excitation after the depthwise convolution."""
    return _mbconv(op, nn.Hardswish, squeeze=True)


@operator("conv_bn_hswish")
def conv_bn_hswish(op: OpSpec) -> nn.Module:
    """Convolution, BatchNorm, hard swish."""
    return nn.Sequential(conv(op.c_in, op.c_out, op.kernel, op.stride), nn.BatchNorm2d(op.c_out), nn.Hardswish())


@operator("conv_hswish")
def conv_hswish(op: OpSpec) -> nn.Module:
    """Convolution and hard swish without BatchNorm: the features behind the global pooling are mixed by one."""
    return nn.Sequential(conv(op.c_in, op.c_out, op.kernel, op.stride), nn.Hardswish())


@operator("global_pool")
def global_pool(op: OpSpec) -> nn.Module:
    """Global average pooling to a 1x1 map; `stride` is the larger side of the input."""
    if op.c_in != op.c_out or op.stride < max(op.height, op.width):
        raise SpaceError(f"{op} must keep its channels and have the larger side of its input as stride to be a global pooling")
    return nn.AdaptiveAvgPool2d(1)


@operator("linear", vector=True)
def linear(op: OpSpec) -> nn.Module:
    """A linear layer on a 1x1 map."""
    if (op.height, op.width) != (1, 1):
        raise SpaceError(f"{op} must have an input of 1x1 to be a linear layer")
    return nn.Sequential(nn.Flatten(), nn.Linear(op.c_in, op.c_out))


class OFAMobileNetV3(SearchSpace):
    """The published space at `input_size` 224 (its authors use 128 to 224) and width multiplier `width` 1.0 (they publish 1.0 and 1.2)."""

    small: ClassVar[dict[str, Any]] = {
        "input_size": 32, "classes": 10, "width": 0.25, "kernels": [3, 5], "expansions": [3, 4], "depths": [1, 2], "stages": 3,
    }  # fmt: skip

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 224,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 1000,
        width: Annotated[float, Field(gt=0, le=8)] = 1.0,
        stem_stride: Annotated[int, Field(ge=1, le=2)] = 2,
        kernels: Annotated[list[Literal[3, 5, 7]], Field(min_length=1)] = [3, 5, 7],  # noqa: B006
        expansions: Annotated[list[Positive], Field(min_length=1)] = [3, 4, 6],  # noqa: B006
        depths: Annotated[list[Positive], Field(min_length=1, max_length=8)] = [2, 3, 4],  # noqa: B006
        stages: Annotated[int, Field(ge=1, le=len(_STAGES))] = len(_STAGES),
    ) -> None:
        operators = [(kernel, expansion) for kernel in kernels for expansion in expansions]
        slots: list[Slot] = []
        c_in = make_divisible(16 * width)
        stem = OpSpec("conv_bn_hswish", channels, c_in, input_size, input_size, kernel=3, stride=stem_stride)
        side = stem.out_height
        first = OpSpec("mbconv_relu", c_in, c_in, side, side, kernel=3, hidden=c_in)
        sites = [Site(stem, ("input",), "stem"), Site(first, ("stem",), "first")]
        node = "first"
        for number, (stage_width, first_stride, squeeze, swish) in enumerate(_STAGES[:stages], 1):
            kind = f"mbconv{'_se' if squeeze else ''}_{'hswish' if swish else 'relu'}"
            c_out = make_divisible(stage_width * width)
            depth_slot = len(slots)
            slots.append(Slot(f"s{number}.depth", tuple(map(str, depths))))
            for block in range(1, max(depths) + 1):
                stride = first_stride if block == 1 else 1
                for choice, (kernel, expansion) in enumerate(operators):
                    op = OpSpec(kind, c_in, c_out, side, side, kernel, stride, hidden=make_divisible(c_in * expansion))
                    sites.append(Site(op, (node,), f"s{number}.b{block}", ((len(slots), choice),)))
                slots.append(Slot(f"s{number}.b{block}", tuple(f"k{kernel}e{expansion}" for kernel, expansion in operators)))
                node, c_in, side = f"s{number}.b{block}", c_out, -(-side // stride)
            for choice, depth in enumerate(depths):
                leave = OpSpec("identity", c_out, c_out, side, side)
                sites.append(Site(leave, (f"s{number}.b{depth}",), f"s{number}", ((depth_slot, choice),)))
            node = f"s{number}"
        # MobileNetV3's last expansion is six times the last stage's width: 960 = 6 x 160
        expanded, features = make_divisible(6 * _STAGES[stages - 1][0] * width), make_divisible(1280 * width)
        sites += [
            Site(OpSpec("conv_bn_hswish", c_in, expanded, side, side), (node,), "expanded"),
            Site(OpSpec("global_pool", expanded, expanded, side, side, stride=side), ("expanded",), "pooled"),
            Site(OpSpec("conv_hswish", expanded, features, 1, 1), ("pooled",), "features"),
            Site(OpSpec("linear", features, classes, 1, 1), ("features",), "output"),
        ]
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))
