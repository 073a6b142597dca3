"""Counts against closed forms and against torch's own counter. NAS-Bench-201's published counts: `spaces/test_nasbench201.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas import layers, resources
from hwnas.errors import SpaceError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot


def counted(key: str) -> resources.Counts:
    return resources.count(OpSpec.parse(key))


@pytest.mark.parametrize(
    ("key", "dense", "pointwise", "depthwise", "params"),
    [
        ("conv_bn_relu:3-16:32x32:k3", 32 * 32 * 3 * 16 * 9, 0, 0, 3 * 16 * 9 + 2 * 16),
        ("conv_bn:3-16:32x32:k3:s2", 16 * 16 * 3 * 16 * 9, 0, 0, 3 * 16 * 9 + 2 * 16),
        ("conv_bn:16-16:9x7:s2", 0, 5 * 4 * 16 * 16, 0, 16 * 16 + 2 * 16),
        ("conv_bn:8-8:8x8:k3:g8:d2", 0, 0, 8 * 8 * 8 * 9, 8 * 9 + 2 * 8),
        ("conv_bn:8-16:8x8:k3:g4", 8 * 8 * 2 * 16 * 9, 0, 0, 2 * 16 * 9 + 2 * 16),
        (
            "mbconv:16-24:32x32:k5:s2:e96",
            0,
            32 * 32 * 16 * 96 + 16 * 16 * 96 * 24,
            16 * 16 * 96 * 25,
            16 * 96 + 96 * 25 + 96 * 24 + 2 * (96 + 96 + 24),
        ),
        ("mbconv:16-16:8x8:k3:e16", 0, 8 * 8 * 16 * 16, 8 * 8 * 16 * 9, 16 * 9 + 16 * 16 + 2 * (16 + 16)),
        ("resnet_reduction:16-32:32x32:s2", 16 * 16 * 9 * (16 * 32 + 32 * 32), 16 * 16 * 16 * 32, 0, 9 * 16 * 32 * 3 + 16 * 32 + 2 * 64),
        ("classifier:256-10:4x4:s4", 0, 2560, 0, 2570),
        ("bn_relu_classifier:64-10:8x8:s8", 0, 640, 0, 650 + 2 * 64),
        ("avg_pool:16-16:8x8:k3", 0, 0, 0, 0),
        ("identity:16-16:8x8", 0, 0, 0, 0),
    ],
)
def test_counts_by_hand(key: str, dense: int, pointwise: int, depthwise: int, params: int) -> None:
    found = counted(key)
    assert (found.macs_dense, found.macs_pointwise, found.macs_depthwise, found.params) == (dense, pointwise, depthwise, params)
    op = OpSpec.parse(key)
    assert resources.macs(op) == dense + pointwise + depthwise
    assert resources.flops(op) == 2 * resources.macs(op)
    assert resources.params(op) == params
    assert {name: price(op) for name, price in resources.ANALYTIC.items()} == {
        "macs": resources.macs(op),
        "flops": resources.flops(op),
        "params": resources.params(op),
    }


def test_counts_are_torchs_own(default_operators: list[OpSpec]) -> None:
    for op in default_operators:
        with torch.device("meta"):
            module, image = layers.finished(layers.build(op)).eval(), torch.zeros(1, op.c_in, op.height, op.width)
        with FlopCounterMode(display=False) as counter:
            module(image)
        assert counter.get_total_flops() == resources.flops(op), op
        assert sum(parameter.numel() for parameter in module.parameters()) == resources.params(op), op


def test_traffic_is_what_layers_that_remain_after_folding_read_and_write() -> None:
    assert (counted("conv_bn:4-6:8x8:s2").moved, counted("conv_bn:4-6:8x8:s2").layers) == (4 * 64 + 6 * 16, 1)
    assert (counted("identity:4-4:8x8").moved, counted("identity:4-4:8x8").layers) == (0, 0)
    expand, depthwise, project = 64 * (4 + 12), 64 * 12 + 16 * 12, 16 * (12 + 4)
    assert (counted("mbconv:4-4:8x8:k3:s2:e12").moved, counted("mbconv:4-4:8x8:k3:s2:e12").layers) == (expand + depthwise + project, 3)


def test_energy_is_arithmetic_and_traffic() -> None:
    op = OpSpec.parse("conv_bn:4-6:8x8:s2")
    model = resources.EnergyModel(picojoules_per_mac=2, picojoules_per_byte=10)
    macs, moved, params = 16 * 4 * 6, 4 * 64 + 6 * 16, 4 * 6 + 12
    assert model(op) == pytest.approx(1e-9 * (2 * macs + 10 * 4 * (moved + params)))


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], OpSpec]:
    """Gives an operator of a new kind that this module computes."""
    monkeypatch.setattr(layers, "_KINDS", dict(layers._KINDS))

    def define(module: nn.Module) -> OpSpec:
        name = f"made_{len(layers.kinds())}_{id(module)}"
        layers.operator(name)(lambda op: module)
        return OpSpec(name, 4, 4, 8, 8)

    return define


def test_a_layer_without_a_rule_is_an_error(kind: Callable[[nn.Module], OpSpec]) -> None:
    op = kind(nn.Sequential(nn.ReLU(), nn.SELU()))
    with pytest.raises(SpaceError, match=rf"{op} holds a SELU, which resources\.RULES has no rule for"):
        resources.count(op)


def test_a_module_of_another_shape_is_an_error(kind: Callable[[nn.Module], OpSpec]) -> None:
    op = kind(nn.AvgPool2d(2))
    with pytest.raises(SpaceError, match=r"must give shape \(4, 8, 8\), but its module gives \(4, 4, 4\)"):
        resources.count(op)


class Scale(nn.Module):
    """A parameter and a function: nothing that a counting rule could see."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_space_adds_rules_for_layers_of_its_own(kind: Callable[[nn.Module], OpSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    module = Scale().to("meta")
    op = kind(module)
    with pytest.raises(SpaceError, match="holds a Scale"):
        resources.count(op)
    monkeypatch.setitem(resources.RULES, Scale, lambda layer, out: ("pointwise", out[0].numel()))
    found = resources.count(op)
    assert (found.macs_pointwise, found.params) == (4 * 8 * 8, 1)


def test_peak_memory_by_hand() -> None:
    """input 3x8x8 -> a 4x8x8 (kept for the sum) -> b 6x4x4, 12 channels of 8x8 inside -> c; a also feeds c."""
    sites = (
        Site(OpSpec("conv_bn", 3, 4, 8, 8), ("input",), "a"),
        Site(OpSpec("mbconv", 4, 6, 8, 8, 3, 2, hidden=12), ("a",), "b"),
        Site(OpSpec("conv_bn", 6, 6, 4, 4), ("b",), "c", ((0, 0),)),
        Site(OpSpec("conv_bn", 4, 6, 8, 8, stride=2), ("a",), "c", ((0, 0),)),
        Site(OpSpec("identity", 6, 6, 4, 4), ("b",), "c", ((0, 1),)),
        Site(OpSpec("classifier", 6, 2, 4, 4, stride=4), ("c",), "output"),
    )
    space = SearchSpace((3, 8, 8), 2, (Slot("end", ("long", "short")),), sites)
    image, a, b, c, inside = 3 * 64, 4 * 64, 6 * 16, 6 * 16, 12 * 64
    for arch in ((0,), (1,)):
        weights = sum(resources.count(op).params for op in space.lower(arch))
        assert image + a < a + b + inside  # the bottleneck decides
        assert resources.peak_mb(space, arch) == pytest.approx(4e-6 * (a + b + inside + weights))
    thin = SearchSpace(
        (3, 8, 8), 2, (), (*sites[:1], Site(OpSpec("conv_bn", 4, 6, 8, 8, stride=2), ("a",), "b"), *unconditional(sites[2:4]), sites[5])
    )
    weights = sum(resources.count(op).params for op in thin.lower(()))
    assert resources.peak_mb(thin, ()) == pytest.approx(4e-6 * (max(image + a, a + b, a + b + c) + weights))


def unconditional(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    return tuple(Site(site.op, site.inputs, site.output) for site in sites)


def test_peak_memory_counts_nothing_dead(diamond: SearchSpace) -> None:
    assert resources.peak_mb(diamond, (2, 0)) == resources.peak_mb(diamond, (0, 0)) == resources.peak_mb(diamond, (0, 1))
    assert resources.peak_mb(diamond, (2, 1)) > resources.peak_mb(diamond, (0, 0))
