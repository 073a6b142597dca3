"""InstaNAS's meta-graph: published counts, the rule for a block with all gates shut, what policies cost (arXiv 1811.10201)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas import layers, resources
from hwnas.cost import CostModel
from hwnas.errors import ConfigError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.spaces.instance_mobilenet import InstanceMobileNet

FIVE = ["k3e6", "k3e3", "k5e6", "k5e3", "basic"]


def made(**options: Any) -> InstanceMobileNet:
    space = load_space("instance_mobilenet", {**InstanceMobileNet.small, **options})
    assert isinstance(space, InstanceMobileNet)
    return space


def prices_of(space: SearchSpace, seed: int = 0) -> dict[OpSpec, float]:
    rng = np.random.default_rng(seed)
    return {op: float(rng.uniform(0.1, 10)) for op in space.operators()}


def expected(space: SearchSpace, prices: dict[OpSpec, float], gates: Tensor) -> float:
    """E[l|x] = fixed + sum over blocks of <q, t> + P(all shut) t_fallback + (sum q - 1 + P(all shut)) t_addition."""
    total = sum(prices[site.op] for site in space.sites if not site.when)
    for fallback in (site for site in space.sites if len(site.when) > 1):
        slots = [slot for slot, _ in fallback.when]
        times = [prices[site.op] for site in space.sites for slot, choice in site.when[:1] if choice == 1 and slot in slots]
        shut = float((1 - gates[slots]).prod())
        total += float(gates[slots] @ torch.tensor(times, dtype=gates.dtype)) + shut * prices[fallback.op]
        total += (float(gates[slots].sum()) - 1 + shut) * prices[space.addition(fallback.output)]
    return total


def test_published_counts() -> None:
    space = load_space("instance_mobilenet")
    assert isinstance(space, InstanceMobileNet)
    assert space.size == 2**85 == pytest.approx(3.9e25, rel=0.01)
    basic = [site for site in space.sites if site.op.kind == "basic_block" and len(site.when) == 1]
    assert [site.op.c_out for site in basic] == [16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    assert [i for i, site in enumerate(basic) if site.op.stride == 2] == [3, 6, 13]
    assert [(site.op.kernel, site.op.hidden // site.op.c_in) for site in space.sites[1:5]] == [(3, 6), (3, 3), (5, 6), (5, 3)]
    assert space.describe(space.base).count("k3e6=on") == space.describe(space.base).count("=on") == 17


def test_a_block_with_all_gates_shut_hands_on_or_falls_back_to_its_last_module() -> None:
    """Fact 3: only the first block of a stage falls back; the others cost nothing."""
    space = made(widths=[6, 8], depths=[2, 1], strides=[2, 1])
    shut = (0,) * len(space.slots)
    assert [site.op.kind for site in space.graph(shut)] == ["conv_bn_relu", "basic_block", "identity", "basic_block", *_head(space)]
    prices = prices_of(space)
    model = CostModel(space, {**prices, space.graph(shut)[2].op: 0.0})
    paid = [site for site in space.sites if not site.when or (site.op.kind == "basic_block" and len(site.when) == 3)]
    assert float(model.of([shut])) == pytest.approx(sum(prices[site.op] for site in paid))
    chosen = space.parse(" ".join(f"{slot.name}={'on' if slot.name in ('s1.b1.basic', 's2.b1.basic') else 'off'}" for slot in space.slots))
    assert space.identity(chosen) == space.identity(shut)
    assert list(Network(space, chosen).state_dict()) == list(Network(space, shut).state_dict())


def _head(space: SearchSpace) -> list[str]:
    return [site.op.kind for site in space.sites[-2:]]


def test_a_block_is_the_sum_of_its_modules() -> None:
    space = made()
    network = Network(space, (1, 0, 1, 1, 1, 1), torch.Generator().manual_seed(0)).eval()
    stem, one, two, *three, head, classifier = network.sites.values()
    images = torch.randn(2, *space.input_shape, generator=torch.Generator().manual_seed(1))
    first = one(stem(images)) + two(stem(images))
    second = three[0](first) + three[1](first) + three[2](first)
    torch.testing.assert_close(network(images), classifier(head(second)))
    assert [str(op) for op in space.lower(network.arch)].count(str(space.addition("s1.b1"))) == 3


def test_the_expected_cost_is_the_published_sum_over_blocks() -> None:
    space = made(widths=[6, 8], depths=[2, 1], strides=[2, 1], modules=FIVE)
    prices = prices_of(space)
    identity = OpSpec("identity", 6, 6, 4, 4)
    model = CostModel(space, {**prices, identity: 0.0})
    gates = torch.rand(4, len(space.slots), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = model(torch.stack([1 - gates, gates], -1))
    assert found.tolist() == pytest.approx([expected(space, {**prices, identity: 0.0}, q) for q in gates])


def test_a_module_stored_once_is_counted_once_and_still_expected() -> None:
    """Fallback and module share their weights but never stand in a network together: parameters are a plain sum."""
    space = made()
    assert space.module_of and not space.reuses
    assert CostModel(space, resources.params, once=True).expects


def test_the_controller_is_priced_with_the_space_and_gives_a_logit_for_each_gate() -> None:
    space = made(input_size=16, controller_widths=[4, 6, 8], controller_pool=2)
    assert set(space.controller) <= set(space.operators())
    assert [op.kind for op in space.controller] == ["avg_pool", "conv_bn_relu", *["basic_block"] * 3, "classifier"]
    network = nn.Sequential(*map(layers.build, space.controller)).eval()
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, len(space.slots))
    assert not {op for op in space.controller if op.c_out == len(space.slots)} & set(space.lower((1,) * len(space.slots)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [1, 2]}, "widths, depths and strides must say the same number of stages, but say 1, 2 and 1"),
        ({"modules": ["k3e6", "k3e6"]}, "modules must name each module once, but are"),
        ({"modules": ["k4e6"]}, "modules"),
        ({"modules": []}, "modules"),
        ({"controller_pool": 3}, "controller_pool must divide input_size, but 8 does not divide by 3"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**options)
