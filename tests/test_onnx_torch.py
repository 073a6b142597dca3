"""ONNX read into torch: every rule computes what ONNX Runtime computes; what has no rule is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from hwnas.device import Device
from hwnas.errors import DeviceError
from hwnas.exporters.onnx import ONNX
from hwnas.feed import parse, random_feed
from hwnas.network import Network
from hwnas.onnx_torch import RULES, to_torch
from hwnas.profile import network_onnx
from hwnas.space import SearchSpace

SHAPE = (2, 4, 6, 6)


def single(kind: str, *constants: Any, shape: tuple[int, ...] = SHAPE, domain: str = "", **attributes: Any) -> bytes:
    """A model of one node that reads the input and then these constants; None leaves one out."""
    weights = {f"c{i}": np.asarray(values) for i, values in enumerate(constants) if values is not None}
    names = ["x", *(f"c{i}" if values is not None else "" for i, values in enumerate(constants))]
    node = helper.make_node(kind, names, ["y"], domain=domain, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "single", [x], [y], [numpy_helper.from_array(values, name) for name, values in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    return bytes(model.SerializeToString())


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def same(model: bytes) -> None:
    """Both compute the same."""
    feed = random_feed(parse(model), 2)
    wanted = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)
    with torch.inference_mode():
        found = to_torch(model)(*map(torch.from_numpy, feed.values()))
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-5)


def filled(value: float | None, **attributes: Any) -> bytes:
    """A tensor as large as the input is along some axes, filled with one number."""
    tensor = {} if value is None else {"value": numpy_helper.from_array(np.array([value], np.float32))}
    nodes = [helper.make_node("Shape", ["x"], ["s"], **attributes), helper.make_node("ConstantOfShape", ["s"], ["y"], **tensor)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    graph = helper.make_graph(nodes, "filled", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())


CASES: dict[str, list[bytes]] = {
    "Add": [single("Add", normal(4, 1, 1))],
    "AveragePool": [
        single("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        single("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        single("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, shape=(2, 4, 5, 5)),
    ],
    "BatchNormalization": [single("BatchNormalization", normal(4), normal(4), normal(4), np.abs(normal(4)), epsilon=1e-3)],
    "Cast": [single("Cast", to=TensorProto.FLOAT)],  # to whole numbers: rnn_cell's networks below
    "Clip": [single("Clip", np.float32(0), np.float32(0.5)), single("Clip", np.float32(0.2)), single("Clip", None, np.float32(0.2))],
    "Concat": [single("Concat", normal(2, 3, 6, 6), axis=1)],
    "ConstantOfShape": [filled(None), filled(0.5)],
    "Conv": [
        single("Conv", normal(8, 4, 3, 3), normal(8), pads=[1, 1, 1, 1], strides=[2, 2]),
        single("Conv", normal(4, 1, 3, 3), group=4, pads=[2, 2, 2, 2], dilations=[2, 2]),
        single("Conv", normal(8, 4, 1, 3), pads=[0, 1, 0, 1]),
    ],
    "Flatten": [single("Flatten"), single("Flatten", axis=1)],
    "Gather": [single("Gather", np.array([2, 0, 2, 3]), axis=1), single("Gather", np.array([[1, 0], [0, 0]]))],
    "Gemm": [single("Gemm", normal(5, 4), normal(5), transB=1, shape=(2, 4)), single("Gemm", normal(5, 4), transB=1, shape=(2, 4))],
    "GlobalAveragePool": [single("GlobalAveragePool")],
    "HardSigmoid": [single("HardSigmoid"), single("HardSigmoid", alpha=1 / 6, beta=0.4)],
    "HardSwish": [single("HardSwish")],
    "Identity": [single("Identity")],
    "MatMul": [single("MatMul", normal(6, 5))],
    "MaxPool": [
        single("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        single("MaxPool", kernel_shape=[2, 2], ceil_mode=1),
    ],
    "Mul": [single("Mul", normal(2, 4, 1, 1))],
    "Pad": [
        single("Pad", np.array([0, 0, 1, 0, 0, 0, 2, 3]), mode="constant"),
        single("Pad", np.array([0, 0, 0, 0, 0, 0, 1, 1]), mode="edge"),
    ],
    "ReduceMean": [single("ReduceMean", np.array([2, 3])), single("ReduceMean", np.array([1]), keepdims=0)],
    "Relu": [single("Relu")],
    "Reshape": [single("Reshape", np.array([2, -1])), single("Reshape", np.array([0, 0, 36]))],
    "Shape": [filled(1.0, start=1), filled(1.0, start=0, end=2)],
    "Sigmoid": [single("Sigmoid")],
    "Slice": [
        single("Slice", np.array([1, 1]), np.array([2**63 - 1, 5]), np.array([2, 3])),
        single("Slice", np.array([3]), np.array([-1]), np.array([3]), np.array([2])),
    ],
    "Sub": [single("Sub", normal(4, 1, 1))],
    "Tanh": [single("Tanh")],
    "Transpose": [single("Transpose", perm=[0, 2, 1, 3])],
    "Unsqueeze": [single("Unsqueeze", np.array([3, 1]))],
}


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("kind", CASES)
def test_computes_what_onnx_means(kind: str) -> None:
    for model in CASES[kind]:
        same(model)


def test_an_exported_network(space: SearchSpace, tmp_path: Path) -> None:
    network = Network(space, space.random(np.random.default_rng(0)), torch.Generator().manual_seed(0)).eval()
    ONNX(Device(backend="onnxruntime")).write(network, tmp_path / "model.onnx")
    same((tmp_path / "model.onnx").read_bytes())


def test_batch_norm_becomes_part_of_its_convolution(space: SearchSpace) -> None:
    arch = next(arch for arch in space.all() if space.graph(arch))
    model = network_onnx(space, arch, 2)
    nodes = parse(model).graph.node
    made = {name: node for node in nodes for name in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    folded = {name for name in made if made[name].op_type == "Conv" and readers[name] == 1}
    alone = [n for n in nodes if n.op_type == "BatchNormalization" and n.input[0] not in folded]
    left = [node for node in to_torch(model).graph.nodes if node.target is functional.batch_norm]
    assert len(left) == len(alone)
    same(model)


def test_not_where_another_node_reads_the_convolution() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"w": normal(4, 4, 1, 1), "s": normal(4), "v": np.abs(normal(4)) + 1}
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy")
    graph = helper.make_graph(nodes, "shared", [x], [y], tensors)
    same(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (single("Softplus"), "no translation of the ONNX operator Softplus; add one to hwnas.onnx_torch.RULES"),
        (single("QuickGelu", domain="com.microsoft"), "operator com.microsoft.QuickGelu"),
        (single("Conv", normal(8, 4, 3, 3), pads=[0, 0, 1, 1]), "Conv whose pads are not the same four on both sides"),
        (single("Conv", normal(8, 4, 3, 3), auto_pad="SAME_UPPER"), "Conv whose pads"),
        (single("Conv", normal(8, 4, 3), shape=(2, 4, 6), pads=[1, 1]), "Conv whose pads"),
        (single("Gemm", normal(4, 5), shape=(2, 4)), "Gemm that is no linear layer"),
        (single("Flatten", axis=2), "Flatten of axis 2"),
        (single("Slice", np.array([1]), np.array([2])), "Slice that does not name its axes"),
        (single("Pad", np.array([0, 0, 1, 0, 0, 0, 1, 0]), mode="reflect"), "Pad that does more than widen maps"),
        (single("Pad", np.array([0, 0, 1, 0, 0, 0, 1, 0]), np.float32(1)), "Pad that does more than widen maps"),
        (single("Transpose"), "Transpose without perm"),
        (b"garbage", "damaged or no ONNX model"),
    ],
)
def test_what_has_no_translation(model: bytes, says: str) -> None:
    with pytest.raises(DeviceError, match=says) as caught:
        to_torch(model)
    assert "\n" not in str(caught.value)


def test_a_computed_shape_has_none() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes[1:], "computed", [x, helper.make_tensor_value_info("s", TensorProto.FLOAT, [4])], [y])
    )
    with pytest.raises(DeviceError, match="Reshape whose input 1 is computed; make 's' a constant"):
        to_torch(model.SerializeToString())
