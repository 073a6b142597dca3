"""The options of the MobileNetV2 space as slots and sites."""

from __future__ import annotations

import pytest

from hwnas.errors import ConfigError
from hwnas.op import OpSpec
from hwnas.space import load_space


def test_slots_and_networks_of_one_stage() -> None:
    space = load_space(
        "mobilenet_v2",
        {"input_size": 16, "channels": 1, "classes": 5, "stem_width": 8, "head_width": 32, "kernels": [3, 5], "expansions": [4],
         "stages": [{"widths": [8, 12], "depth": 2, "stride": 2}]},
    )  # fmt: skip
    assert [(slot.name, slot.choices) for slot in space.slots] == [
        ("s1.width", ("8", "12")), ("s1.b1", ("k3e4", "k5e4")), ("s1.b2", ("k3e4", "k5e4", "skip")),
    ]  # fmt: skip
    assert space.lower((1, 1, 0)) == (
        OpSpec("conv_bn_relu", 1, 8, 16, 16, kernel=3),
        OpSpec("mbconv", 8, 12, 16, 16, kernel=5, stride=2, hidden=32),
        OpSpec("mbconv", 12, 12, 8, 8, kernel=3, hidden=48),
        OpSpec("conv_bn_relu", 12, 32, 8, 8),
        OpSpec("classifier", 32, 5, 8, 8, stride=8),
    )
    assert [op.kind for op in space.lower((0, 0, 2))] == ["conv_bn_relu", "mbconv", "identity", "conv_bn_relu", "classifier"]


def test_a_block_between_stages_hangs_on_both_widths() -> None:
    space = load_space("mobilenet_v2", {"stages": [{"widths": [8, 16], "depth": 1}, {"widths": [24, 32], "depth": 1, "stride": 2}]})
    between = [site for site in space.sites if site.output.startswith("s2.b1")]
    assert {(site.op.c_in, site.op.c_out) for site in between} == {(8, 24), (8, 32), (16, 24), (16, 32)}
    assert all(len(site.when) == 3 for site in between)
    assert all(len(space.active(arch)) == len(space.graph(arch)) for arch in [(0, 0, 0, 0), (1, 2, 1, 5)])


def test_a_stage_may_have_kernels_and_expansions_of_its_own() -> None:
    stages = [{"widths": [8], "depth": 1, "kernels": [3], "expansions": [1]}, {"widths": [16], "depth": 1, "expansions": [2, 4]}]
    space = load_space("mobilenet_v2", {"stages": stages, "kernels": [3, 5], "expansions": [6]})
    assert [slot.choices for slot in space.slots if "b" in slot.name] == [("k3e1",), ("k3e2", "k3e4", "k5e2", "k5e4")]
    assert {op.hidden for op in space.operators() if op.kind == "mbconv" and op.c_in == 8} == {16, 32}


@pytest.mark.parametrize(
    "options",
    [
        {"stages": []}, {"stages": [{"widths": []}]}, {"stages": [{"widths": [8], "depth": 0}]}, {"stages": [{"widths": [8], "stride": 3}]},
        {"kernels": []}, {"kernels": [0]}, {"expansions": [-1]}, {"input_size": 4}, {"stages": [{"widths": [0]}]}, {"kernels": [4]},
        {"stages": [{"widths": [8], "kernels": [4]}]}, {"stages": [{"widths": [8], "expansions": []}]},
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="space 'mobilenet_v2'"):
        load_space("mobilenet_v2", options)
