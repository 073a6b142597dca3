"""OpSpec -> nn.Module: one builder for every kind of operator, and the shape that comes out."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hwnas.errors import SpaceError, nearest
from hwnas.op import OpSpec

Builder = Callable[[OpSpec], nn.Module]
B = TypeVar("B", bound=Builder)


@dataclass(frozen=True, slots=True)
class Kind:
    """How operators of one kind are built, and whether a vector (batch, c_out), or one a row (batch, c_out, height), comes out.

    Tied to an operator of kind `within` its module is that one's, which does this too. `takes_in`: what of an addition and an
    activation a graph runtime may compute in the convolution that the operator ends with (see `hwnas.context`).
    """

    build: Builder
    vector: bool
    sequence: bool
    within: str
    takes_in: int


ACTIVATION, ADDITION = 1, 2
"""What an operator's last convolution can take in: an activation; an addition and then an activation."""
_KINDS: dict[str, Kind] = {}


def operator(
    kind: str, *, vector: bool = False, sequence: bool = False, within: str = "", takes_in: int = 0
) -> Callable[[B], B]:  # fmt: skip
    """Decorator: this function builds operators of that kind. A space file may define kinds of its own with it."""

    def register(builder: B) -> B:
        if kind in _KINDS and _KINDS[kind].build.__module__ != builder.__module__:
            raise SpaceError(f"operator kind {kind!r} is built by {_KINDS[kind].build.__module__} already; choose another name")
        _KINDS[kind] = Kind(builder, vector, sequence, within, takes_in)
        return builder

    return register


def kinds() -> list[str]:
    """The names of all operator kinds known so far, sorted."""
    return sorted(_KINDS)


def _kind(op: OpSpec) -> Kind:
    if op.kind not in _KINDS:
        raise SpaceError(f"no builder for operator kind {op.kind!r}; {nearest(op.kind, _KINDS)}")
    return _KINDS[op.kind]


def build(op: OpSpec) -> nn.Module:
    """A module that computes the operator: (batch, c_in, height, width) -> (batch, *output_shape(op)).

    Raises:
        SpaceError: no builder for that kind.
    """
    return _kind(op).build(op)


def shares(op: OpSpec, other: OpSpec) -> bool:
    """Whether the module of `op` can stand in for that of `other`, so that the two may be tied."""
    return op == other or _kind(other).within == op.kind


def takes_in(op: OpSpec) -> int:
    """What the operator's last convolution can take in: 0, `ACTIVATION`, or `ADDITION` (both)."""
    return _kind(op).takes_in


@cache
def adds_input(op: OpSpec) -> bool:
    """Whether the operator adds its input, as it is, to its result."""
    with torch.device("meta"):
        module = build(op)
    return any(isinstance(part, Residual) and isinstance(part.shortcut, nn.Identity) for part in module.modules())


def output_shape(op: OpSpec) -> tuple[int, ...]:
    """The output's shape without the batch axis: (c_out, out_height, out_width), of a classifier (c_out,), of a sequence (c_out, steps)."""
    kind, whole = _kind(op), (op.c_out, op.out_height, op.out_width)
    return whole[:1] if kind.vector else whole[:2] if kind.sequence else whole


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias whose output is `ceil(size / stride)` (odd kernels)."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation=dilation, groups=groups, bias=False)


class Residual(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class ChannelShuffle(nn.Module):
    """Deals the channels of the groups out in turn, so that the next convolution in groups sees all of them (arXiv 1707.01083).

    `shape` is (channels, height, width), which some runtimes want to be told.
    """

    def __init__(self, groups: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.groups = groups
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.unflatten(x, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return out


class Crop(nn.Module):
    """The map without its first row and column; zeros behind an odd side, so that every second of what is left is `ceil(side / 2)`."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.pads = (0, width % 2, 0, height % 2)

    def forward(self, x: Tensor) -> Tensor:
        inside = x[:, :, 1:, 1:]
        return functional.pad(inside, self.pads) if any(self.pads) else inside


class ChannelIndex(nn.Module):
    """The channels `index`, in that order; the same one may stand there several times."""

    index: Tensor

    def __init__(self, index: Sequence[int] | Tensor) -> None:
        super().__init__()
        self.register_buffer("index", torch.as_tensor(index))

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.index)


class Scheduled(abc.ABC):
    """What a module is, too, that changes while it is trained: `train` tells it how far training is, and adds its penalty to the loss."""

    @abc.abstractmethod
    def progress(self, share: float) -> None:
        """Called before every step with the share of the training that is done, from 0 to 1."""

    @abc.abstractmethod
    def penalty(self) -> Tensor:
        """What is added to the loss."""

    @abc.abstractmethod
    def finished(self) -> nn.Module:
        """The module as it is deployed and paid for: computes what this one computes in eval mode."""


class LearnedGroupConv(nn.Conv2d, Scheduled):
    """1x1 convolution that learns which `c_in / groups` inputs each group of its outputs reads (CondenseNet, arXiv 1711.09224).

    It begins dense. In the first half of the training `groups - 1` times each group loses the `c_in / groups` inputs whose
    weights are smallest in sum; the rest of the training refines what is left. In eval mode it computes what it would if
    nothing more were learnt: a selection of channels, a convolution in groups, and its channels dealt out in turn, which is also
    what is exported and paid for.
    """

    LASSO = 1e-5
    """Weight of the group lasso, which lets a group's weights of one input vanish together."""

    def __init__(self, c_in: int, c_out: int, groups: int, size: tuple[int, int]) -> None:
        super().__init__(c_in, c_out, 1, bias=False)
        self.parts = groups
        self.shuffle = ChannelShuffle(groups, (c_out, *size))
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(groups, c_in))

    def _magnitudes(self) -> Tensor:
        """(group, c_in) summed magnitudes of the weights."""
        return self.weight.detach().abs().reshape(self.parts, -1, self.in_channels).sum(1) * self.mask

    def kept(self, number: int) -> Tensor:
        """(group, number) the inputs of largest weight of each group, in their order."""
        return self._magnitudes().topk(number, 1).indices.sort(1).values

    def _masked(self, mask: Tensor) -> Tensor:
        return self.weight * mask.repeat_interleave(self.out_channels // self.parts, 0)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask
        if not self.training:
            mask = torch.zeros_like(mask).scatter(1, self.kept(self.in_channels // self.parts), 1.0)
        out: Tensor = self.shuffle(functional.conv2d(x, self._masked(mask)))
        return out

    def progress(self, share: float) -> None:
        """Condenses once more at the shares 1 / (2 (groups - 1)), 2 / (2 (groups - 1)), ..., 1 / 2."""
        stages = self.parts - 1
        left = self.in_channels - min(int(share * 2 * stages), stages) * (self.in_channels // self.parts)
        if left < int(self.mask[0].sum()):
            self.mask.copy_(torch.zeros_like(self.mask).scatter(1, self.kept(left), 1.0))

    def penalty(self) -> Tensor:
        """Sum over groups and inputs of the Euclidean norm of their weights."""
        weights = self._masked(self.mask).reshape(self.parts, -1, self.in_channels)
        return self.LASSO * (weights.square().sum(1) + 1e-12).sqrt().sum()

    def finished(self) -> nn.Module:
        """A selection of channels, a convolution in groups, and a shuffle."""
        index = self.kept(self.in_channels // self.parts)
        grouped = nn.Conv2d(index.numel(), self.out_channels, 1, groups=self.parts, bias=False, device="meta")
        own = index.repeat_interleave(self.out_channels // self.parts, 0)
        grouped.weight = nn.Parameter(self.weight.detach().flatten(1).gather(1, own)[:, :, None, None], self.weight.requires_grad)
        return nn.Sequential(ChannelIndex(index.flatten()), grouped, self.shuffle).train(self.training)


def finished(module: nn.Module) -> nn.Module:
    """The module as it is deployed: itself, or a copy in which what changed during training has its last form."""
    if isinstance(module, Scheduled):
        return module.finished()
    if not any(isinstance(part, Scheduled) for part in module.modules()):
        return module
    deployed = copy.copy(module)
    deployed._modules = {name: None if part is None else finished(part) for name, part in module._modules.items()}
    return deployed


@fx.wrap
def nothing(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Zeros of that shape (channels, height, width) for each of the images: what a dead node's readers get."""
    return images.new_zeros(images.shape[0], *shape)


class Concat(nn.Module):
    """All its inputs one behind the other, channel by channel; `channels` in all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 1)


@operator("identity")
def identity(op: OpSpec) -> nn.Module:
    """Hands its input on; no node of an exported graph."""
    if (op.c_in, op.stride) != (op.c_out, 1):
        raise SpaceError(f"{op} must keep its shape to be an identity")
    return nn.Identity()


@operator("conv_bn_relu")
def conv_bn_relu(op: OpSpec) -> nn.Module:
    """Convolution, BatchNorm, ReLU6 (MobileNetV2's stem and last convolution)."""
    return nn.Sequential(conv(op.c_in, op.c_out, op.kernel, op.stride, op.groups, op.dilation), nn.BatchNorm2d(op.c_out), nn.ReLU6())


@operator("conv_bn", takes_in=ADDITION)
def conv_bn(op: OpSpec) -> nn.Module:
    """Convolution and BatchNorm (NAS-Bench-201)."""
    return nn.Sequential(conv(op.c_in, op.c_out, op.kernel, op.stride, op.groups, op.dilation), nn.BatchNorm2d(op.c_out))


@operator("conv", takes_in=ADDITION)
def plain_conv(op: OpSpec) -> nn.Module:
    """A convolution alone."""
    return conv(op.c_in, op.c_out, op.kernel, op.stride, op.groups, op.dilation)


@operator("batch_norm")
def batch_norm(op: OpSpec) -> nn.Module:
    """BatchNorm alone, behind a sum or a concatenation."""
    if (op.c_in, op.stride) != (op.c_out, 1):
        raise SpaceError(f"{op} must keep its shape to be a BatchNorm")
    return nn.BatchNorm2d(op.c_out)


@operator("relu")
def relu(op: OpSpec) -> nn.Module:
    """ReLU as an operator of its own, where several operators read it."""
    if (op.c_in, op.stride) != (op.c_out, 1):
        raise SpaceError(f"{op} must keep its shape to be a ReLU")
    return nn.ReLU()


class Sum(nn.Module):
    """x + x: what an addition costs where nothing else is known of its terms."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


@operator("add")
def add(op: OpSpec) -> nn.Module:
    """The addition at a node that several operators write."""
    if (op.c_in, op.stride) != (op.c_out, 1):
        raise SpaceError(f"{op} must keep its shape to be an addition")
    return Sum()


@operator("mbconv")
def mbconv(op: OpSpec) -> nn.Module:
    """MobileNetV2's inverted bottleneck (arXiv 1801.04381): expand to `hidden`, depthwise, project; residual where shapes allow."""
    body = nn.Sequential()
    if op.hidden != op.c_in:
        body.extend([conv(op.c_in, op.hidden, 1), nn.BatchNorm2d(op.hidden), nn.ReLU6()])
    body.extend([conv(op.hidden, op.hidden, op.kernel, op.stride, op.hidden), nn.BatchNorm2d(op.hidden), nn.ReLU6()])
    body.extend([conv(op.hidden, op.c_out, 1), nn.BatchNorm2d(op.c_out)])
    return Residual(body, nn.Identity()) if op.stride == 1 and op.c_in == op.c_out else body


def _pool(op: OpSpec, odd: nn.Module, even: nn.Module) -> nn.Module:
    """A pooling that keeps its channels; a 2x2 one repeats the last row and column where they have no partner."""
    if op.c_in != op.c_out or (op.kernel % 2 == 0 and op.kernel > 2):
        raise SpaceError(f"{op} must keep its channels and have a kernel of 2 or an odd one to be a pooling")
    if op.kernel % 2:
        return odd
    last = [int(op.stride == 1 or side % 2 == 1) for side in (op.width, op.height)]
    return nn.Sequential(nn.ReplicationPad2d((0, last[0], 0, last[1])), even) if any(last) else even


@operator("avg_pool")
def avg_pool(op: OpSpec) -> nn.Module:
    """Average pooling whose border windows count only what is inside."""
    odd = nn.AvgPool2d(op.kernel, op.stride, op.kernel // 2, count_include_pad=False)
    return _pool(op, odd, nn.AvgPool2d(op.kernel, op.stride))


@operator("max_pool")
def max_pool(op: OpSpec) -> nn.Module:
    """Maximum pooling; the output is `ceil(size / stride)`."""
    return _pool(op, nn.MaxPool2d(op.kernel, op.stride, op.kernel // 2), nn.MaxPool2d(op.kernel, op.stride))


@operator("sep_conv", takes_in=ADDITION)
def sep_conv(op: OpSpec) -> nn.Module:
    """Depthwise and 1x1 convolution and BatchNorm, twice, the stride in the first, a ReLU between; what it reads has had its ReLU."""
    first = [conv(op.c_in, op.c_in, op.kernel, op.stride, op.c_in), conv(op.c_in, op.c_out, 1), nn.BatchNorm2d(op.c_out), nn.ReLU()]
    return nn.Sequential(*first, conv(op.c_out, op.c_out, op.kernel, 1, op.c_out), conv(op.c_out, op.c_out, 1), nn.BatchNorm2d(op.c_out))


class FactorizedReduce(nn.Module):
    """Half the map: two 1x1 convolutions of stride 2 with BatchNorm, the second a pixel further on, their channels together.

    BatchNorm stands before the concatenation, where it becomes part of its convolution; behind it, it would compute the same.
    """

    def __init__(self, c_in: int, c_out: int, height: int, width: int) -> None:
        super().__init__()
        left, right = c_out // 2, c_out - c_out // 2
        self.left = nn.Sequential(conv(c_in, left, 1, 2), nn.BatchNorm2d(left))
        self.right = nn.Sequential(Crop(height, width), conv(c_in, right, 1, 2), nn.BatchNorm2d(right))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.left(x), self.right(x)), 1)


@operator("factorized_reduce")
def factorized_reduce(op: OpSpec) -> nn.Module:
    """A skip that halves the map (NASNet, arXiv 1707.07012); what it reads has had its ReLU."""
    if op.stride != 2 or op.c_out < 2:
        raise SpaceError(f"{op} must have a stride of 2 and two channels at least to be a factorized reduction")
    return FactorizedReduce(op.c_in, op.c_out, op.height, op.width)


@operator("concat")
def concat(op: OpSpec) -> nn.Module:
    """Several inputs one behind the other; `c_in` is what they have together."""
    if (op.c_in, op.stride) != (op.c_out, 1):
        raise SpaceError(f"{op} must keep the channels of its inputs together to be a concatenation")
    return Concat(op.c_out)


@operator("learned_group_conv")
def learned_group_conv(op: OpSpec) -> nn.Module:
    """CondenseNet's learned group convolution (arXiv 1711.09224), with as many groups as its condensation factor."""
    if op.c_in % op.groups or op.c_out % op.groups:
        raise SpaceError(f"{op} has channels that {op.groups} groups do not divide; choose widths of which {op.groups} is a factor")
    return LearnedGroupConv(op.c_in, op.c_out, op.groups, (op.height, op.width))


@operator("resnet_reduction", takes_in=ACTIVATION)
def resnet_reduction(op: OpSpec) -> nn.Module:
    """The reduction block between NAS-Bench-201's stages (arXiv 2001.00326): two 3x3 convolutions beside pool and 1x1."""
    body = nn.Sequential(
        nn.ReLU(), conv(op.c_in, op.c_out, 3, op.stride), nn.BatchNorm2d(op.c_out),
        nn.ReLU(), conv(op.c_out, op.c_out, 3), nn.BatchNorm2d(op.c_out),
    )  # fmt: skip
    odd = bool(op.height % op.stride or op.width % op.stride)
    return Residual(body, nn.Sequential(nn.AvgPool2d(op.stride, op.stride, ceil_mode=odd), conv(op.c_in, op.c_out, 1)))


@operator("classifier", vector=True)
def classifier(op: OpSpec) -> nn.Module:
    """Global average pooling and a linear layer; `stride` is the larger side of the input."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(op.c_in, op.c_out))


@operator("bn_relu_classifier", vector=True)
def bn_relu_classifier(op: OpSpec) -> nn.Module:
    """BatchNorm, ReLU, global average pooling and a linear layer."""
    return nn.Sequential(nn.BatchNorm2d(op.c_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(op.c_in, op.c_out))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He initialisation (fan out) of convolutions, small normal of linear layers and embeddings, one and zero for BatchNorm."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, 0.0, 0.1, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
