"""What runs together with what: on graphs by hand, and against what ONNX Runtime itself makes of random networks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hwnas.context import contextual, is_contextual, lower, lower_for, plain
from hwnas.op import OpSpec
from hwnas.profile import network_onnx
from hwnas.space import SearchSpace, Site, Slot, load_space

CONV, RELU, ADD = OpSpec("conv_bn", 16, 16, 8, 8), OpSpec("relu", 16, 16, 8, 8), OpSpec("add", 16, 16, 8, 8)
SAME, POOL, HEAD = OpSpec("identity", 16, 16, 8, 8), OpSpec("avg_pool", 16, 16, 8, 8, 3), OpSpec("classifier", 16, 10, 8, 8, stride=8)


def kinds(*sites: Site) -> list[str]:
    """What a network of these sites, all taken, is in context, a head behind its node `end`."""
    space = SearchSpace((16, 8, 8), 10, (), (*sites, Site(HEAD, ("end",), "output")))
    return [op.kind for op in lower(space, ())]


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ([Site(CONV, ("input",), "a"), Site(RELU, ("a",), "end")], "conv_bn fused_relu classifier"),
        ([Site(POOL, ("input",), "a"), Site(RELU, ("a",), "end")], "avg_pool relu classifier"),
        ([Site(CONV, ("input",), "end"), Site(POOL, ("input",), "end")], "conv_bn avg_pool fused_add classifier"),
        ([Site(POOL, ("input",), "end"), Site(SAME, ("input",), "end")], "avg_pool identity add classifier"),
        # a convolution takes in one addition, and only what directly follows
        ([Site(CONV, ("input",), "end"), *[Site(POOL, ("input",), "end")] * 2], "conv_bn avg_pool fused_add avg_pool add classifier"),
        ([Site(CONV, ("input",), "end")] * 3, "conv_bn conv_bn fused_add conv_bn fused_add classifier"),
        # then an activation
        (
            [Site(CONV, ("input",), "a"), Site(POOL, ("input",), "a"), Site(RELU, ("a",), "end")],
            "conv_bn avg_pool fused_add fused_relu classifier",
        ),
        # not where another reader wants the result without it
        ([Site(CONV, ("input",), "a"), Site(RELU, ("a",), "end"), Site(POOL, ("a",), "end")], "conv_bn relu avg_pool add classifier"),
        # what is handed on is read by whoever reads it under another name
        ([Site(CONV, ("input",), "a"), Site(SAME, ("a",), "b"), Site(RELU, ("b",), "end")], "conv_bn identity fused_relu classifier"),
        (
            [Site(CONV, ("input",), "a"), Site(SAME, ("a",), "b"), Site(RELU, ("b",), "end"), Site(POOL, ("a",), "end")],
            "conv_bn identity relu avg_pool add classifier",
        ),
        # an identity that is added hands the convolution on
        (
            [Site(CONV, ("input",), "a"), Site(POOL, ("input",), "end"), Site(SAME, ("a",), "end")],
            "conv_bn avg_pool identity fused_add classifier",
        ),
    ],
)  # fmt: skip
def test_what_a_convolution_takes_in(sites: list[Site], found: str) -> None:
    assert kinds(*sites) == found.split()


def test_images_are_laid_out_anew_between_grouped_convolutions_and_others() -> None:
    space = load_space(
        "fbnet", {"input_size": 16, "stem_width": 8, "widths": [8, 12], "depths": [3, 1], "strides": [1, 2], "head_width": 24}
    )
    labels = space.slots[0].choices
    plain_block, grouped, skip = (labels.index(label) for label in ("k3_e3", "k3_e1_g2", "skip"))

    def borders(*arch: int) -> list[str]:
        return [str(op) for op in lower(space, arch) if plain(op) is None]

    assert borders(plain_block, plain_block, skip, plain_block) == []
    assert borders(grouped, skip, grouped, plain_block) == ["to_grouped_sum:8-8:16x16", "from_grouped:8-8:16x16"]
    assert borders(grouped, plain_block, skip, grouped) == [
        "to_grouped_sum:8-8:16x16", "from_grouped_sum:8-8:16x16", "to_grouped:8-8:16x16", "from_grouped:12-12:8x8",
    ]  # fmt: skip


def test_onnx_runtime_fuses_what_is_said_to_be_fused(tmp_path: Path) -> None:
    space = load_space("nasbench201", {"cells": 2, "width": 16, "input_size": 8})
    rng = np.random.default_rng(0)
    for _ in range(25):
        arch = space.random(rng)
        session = onnxruntime.SessionOptions()
        session.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session.log_severity_level = 3
        onnxruntime.InferenceSession(network_onnx(space, arch), session, providers=["CPUExecutionProvider"])
        nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
        expected = Counter(op.kind for op in lower(space, arch))
        inside = expected["resnet_reduction"]  # each begins with a ReLU of its own, on a value that its pooling reads too
        assert (nodes["Add"], nodes["Relu"] - inside) == (expected["add"], expected["relu"]), space.describe(arch)


def test_without_prices_in_context_operators_are_plain() -> None:
    space = load_space("nasbench201", {"cells": 1, "width": 16, "input_size": 8})
    arch = space.parse("|nor_conv_1x1~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|nor_conv_3x3~2|")
    assert lower_for(space, arch, space.operators()) == space.lower(arch)
    everything = (*space.operators(), *contextual(space))
    assert lower_for(space, arch, everything) == lower(space, arch) != space.lower(arch)
    assert Counter(plain(op) for op in lower(space, arch)) == Counter(space.lower(arch))
    assert [op for op in everything if is_contextual(op)] == list(contextual(space))


def test_spaces_without_neighbours_that_matter() -> None:
    space = SearchSpace((16, 8, 8), 10, (Slot("pool", ("yes",)),), (Site(POOL, ("input",), "a", ((0, 0),)), Site(HEAD, ("a",), "output")))
    assert contextual(space) == ()
    assert contextual(load_space("mobilenet_v2")) == ()
    block = OpSpec("fused_mbconv", 16, 16, 8, 8)  # a kind that a space might have
    assert plain(block) == block and not is_contextual(block)
