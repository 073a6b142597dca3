"""Analytic prices of operators, counted on the module that `layers` builds: MACs, parameters, bytes; and peak memory.

A kind of layer without a counting rule is an error, never 0. What is counted is seen while the module runs once, on zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from hwnas import layers
from hwnas.errors import SpaceError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace

BYTES = 4
"""Bytes of a number; tables of other precisions scale with their own."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one operator does to one image: multiply-adds by kind of layer, parameters, and numbers moved between layers."""

    macs_dense: int
    macs_pointwise: int
    macs_depthwise: int
    params: int
    moved: int
    layers: int

    @property
    def macs(self) -> int:
        """Multiply-adds (pooling, normalisation, activations and additions are not counted)."""
        return self.macs_dense + self.macs_pointwise + self.macs_depthwise


Rule = Callable[[nn.Module, Tensor], tuple[str, int]]


def _conv(module: nn.Module, out: Tensor) -> tuple[str, int]:
    assert isinstance(module, nn.Conv2d)
    macs = out[0].numel() * prod(module.kernel_size) * module.in_channels // module.groups
    if module.groups == module.in_channels > 1:
        return "depthwise", macs
    return "pointwise" if module.kernel_size == (1, 1) else "dense", macs


def _linear(module: nn.Module, out: Tensor) -> tuple[str, int]:
    assert isinstance(module, nn.Linear)
    return "pointwise", out[0].numel() * module.in_features


def _free(module: nn.Module, out: Tensor) -> tuple[str, int]:
    return "none", 0


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv, nn.Linear: _linear,
    **dict.fromkeys((nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Identity, nn.Flatten), _free),
    **dict.fromkeys((nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, layers.Sum), _free),
    **dict.fromkeys((nn.Hardswish, nn.Hardsigmoid, nn.ReplicationPad2d), _free),
    **dict.fromkeys((layers.ChannelShuffle, layers.ChannelIndex, layers.Concat, layers.Crop), _free),
    **dict.fromkeys((nn.Sigmoid, nn.Tanh, nn.Unflatten), _free),
}  # fmt: skip
"""How each kind of torch layer counts; a space with a layer of its own adds its rule here."""

_FOLDED = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Identity, nn.Flatten, nn.Unflatten)


@cache
def count(op: OpSpec) -> Counts:
    """What the operator costs on paper, for one image.

    Raises:
        SpaceError: it holds a layer that `RULES` has no rule for, or its output is not `layers.output_shape(op)`.
    """
    with torch.device("meta"):  # no random numbers are drawn for weights that do not matter
        module = layers.finished(layers.build(op)).eval()
    module.to_empty(device="cpu")
    image = torch.zeros(1, op.c_in, op.height, op.width)
    macs: Counter[str] = Counter()
    moved = 0
    real_layers = 0

    def tally(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal moved, real_layers
        if type(layer) not in RULES:
            raise SpaceError(f"{op} holds a {type(layer).__name__}, which resources.RULES has no rule for; add one")
        kind, number = RULES[type(layer)](layer, out)
        macs[kind] += number
        if not isinstance(layer, _FOLDED):
            moved += sum(tensor.numel() for tensor in inputs) + out.numel()
            real_layers += 1

    leaves = [layer for layer in module.modules() if not any(True for _ in layer.children())]
    handles = [layer.register_forward_hook(tally) for layer in leaves]
    with torch.inference_mode():  # torch's meta device would do without computing, but takes ten times as long
        for tensor in module.state_dict().values():
            tensor.zero_()
        out = module(image)
    for handle in handles:
        handle.remove()
    if tuple(out.shape[1:]) != layers.output_shape(op):
        raise SpaceError(f"{op} must give shape {layers.output_shape(op)}, but its module gives {tuple(out.shape[1:])}")
    params = sum(parameter.numel() for parameter in module.parameters())
    return Counts(macs["dense"], macs["pointwise"], macs["depthwise"], params, moved, real_layers)


def macs(op: OpSpec) -> float:
    """Multiply-adds for one image; `flops(op)` is twice that."""
    return float(count(op).macs)


def flops(op: OpSpec) -> float:
    """Floating-point operations for one image: two a multiply-add."""
    return 2 * macs(op)


def params(op: OpSpec) -> float:
    """Trainable parameters, BatchNorm's scale and shift included."""
    return float(count(op).params)


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Energy of an operator as arithmetic plus memory traffic; modelled, never measured.

    Defaults: 4.6 pJ for a 32-bit floating-point multiply and add and 640 pJ for 32 bits from DRAM (45 nm), of
    M. Horowitz, 'Computing's energy problem', ISSCC 2014.
    """

    picojoules_per_mac: float = 4.6
    picojoules_per_byte: float = 160.0

    def __call__(self, op: OpSpec) -> float:
        """Energy of one image, mJ: weights and activations are each moved once."""
        counts = count(op)
        moved = BYTES * (counts.moved + counts.params)
        return 1e-9 * (self.picojoules_per_mac * counts.macs + self.picojoules_per_byte * moved)


ANALYTIC: dict[str, Callable[[OpSpec], float]] = {"macs": macs, "flops": flops, "params": params}
"""Additive metrics that are counted, not measured, by name."""


def peak_mb(space: SearchSpace, arch: Sequence[int]) -> float:
    """Peak memory of one image's activations plus all weights, in MB (10^6 bytes), in the sites' order of execution.

    A node's value lives from its first writer to its last reader; a site holds its inputs, its output, and the widest
    tensor inside it (`hidden` channels) at the same time.
    """
    sites = space.steps(arch)
    last_use = {node: step for step, site in enumerate(sites) for node in site.inputs}
    live = {space.input: prod(space.input_shape)}
    weights = sum(count(op).params for op in space.stored(arch))
    peak = 0
    for step, site in enumerate(sites):
        op = site.op
        live[site.output] = op.c_out * op.out_height * op.out_width
        inside = op.hidden * op.height * op.width
        peak = max(peak, sum(live.values()) + inside)
        live = {node: size for node, size in live.items() if last_use.get(node, -1) > step or node == site.output}
    return 1e-6 * BYTES * (peak + weights)
