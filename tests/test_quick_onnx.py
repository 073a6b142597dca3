"""Models for measuring: every kind of operator runs in ONNX Runtime and gives the shape that it says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hwnas import layers, plugins
from hwnas.errors import SpaceError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.quick_onnx import quick_onnx
from hwnas.space import SearchSpace, load_space


def run(model: bytes, shape: tuple[int, ...]) -> tuple[int, ...]:
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"input": np.ones(shape, dtype=np.float32)})
    assert np.isfinite(out).all()
    assert list(out.shape) == session.get_outputs()[0].shape
    return tuple(out.shape)


# one operator of every kind that a space file uses (other tests register kinds of their own in the same process)
OPERATORS = {
    op.kind: op for name in plugins.names("spaces") for op in load_space(name, dict(plugins.load("spaces", name).small)).operators()
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", OPERATORS)
def test_every_kind_runs_and_gives_its_shape(kind: str, batch: int) -> None:
    op = OPERATORS[kind]
    shape = (op.c_in, op.height, op.width)
    with torch.device("meta"):
        module = layers.build(op)
    assert run(quick_onnx(module, shape, batch), (batch, *shape)) == (batch, *layers.output_shape(op))


@pytest.mark.parametrize("change", [{"kernel": 5}, {"stride": 2, "kernel": 3}, {"kernel": 3, "dilation": 2}, {"groups": 3}])
def test_sizes_of_convolutions(change: dict[str, int]) -> None:
    op = OpSpec("conv_bn", 6, 6, 9, 7, **change)
    assert run(quick_onnx(layers.build(op), (6, 9, 7)), (1, 6, 9, 7)) == (1, *layers.output_shape(op))


@pytest.mark.parametrize("key", ["max_pool:4-4:8x8:k2", "avg_pool:4-4:7x8:k2:s2", "factorized_reduce:4-6:8x8:s2",
    "factorized_reduce:4-6:7x5:s2", "learned_group_conv:8-4:4x4:g2", "concat:4-4:8x8", "sep_conv:4-6:9x7:k5:s2"])  # fmt: skip
def test_kinds_that_a_space_may_have(key: str) -> None:
    op = OpSpec.parse(key)
    shape = (op.c_in, op.height, op.width)
    assert run(quick_onnx(layers.build(op), shape, 2), (2, *shape)) == (2, *layers.output_shape(op))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.together = layers.Concat(9)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.together(x, torch.cat((x, x), 1))
        return out


def test_concatenations() -> None:
    assert run(quick_onnx(Joined(), (3, 4, 4)), (1, 3, 4, 4)) == (1, 9, 4, 4)


def test_a_random_network_of_every_space(space: SearchSpace, rng: np.random.Generator) -> None:
    for _ in range(2):
        with torch.device("meta"):
            network = Network(space, space.random(rng))
        assert run(quick_onnx(network, space.input_shape), (1, *space.input_shape)) == (1, *space.output_shape)


def test_the_same_module_gives_the_same_bytes() -> None:
    module = layers.build(OpSpec("conv_bn", 6, 6, 9, 7))
    assert quick_onnx(module, (6, 9, 7)) == quick_onnx(module, (6, 9, 7))


def test_a_layer_without_a_rule() -> None:
    with pytest.raises(SpaceError, match="no rule for GELU"):
        quick_onnx(nn.Sequential(nn.GELU()), (3, 4, 4))


class Quotient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(("module", "says"), [(Quotient(), "truediv"), (Scaled(), "mul")])
def test_what_is_neither_a_layer_nor_a_sum(module: nn.Module, says: str) -> None:
    with pytest.raises(SpaceError, match=says):
        quick_onnx(module, (3, 4, 4))
