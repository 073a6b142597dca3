"""ONNX -> torch: the model as a traced module that computes the same, for the kinds of nodes that `RULES` knows.

A BatchNormalization whose convolution nobody else reads becomes part of it, as in every runtime.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hwnas.errors import DeviceError
from hwnas.feed import parse, shapes

Options = dict[str, Any]
Rule = Callable[["Reader", onnx.NodeProto, Options], fx.Node]


def to_torch(model: bytes) -> fx.GraphModule:
    """A module whose arguments and results are the model's inputs and outputs, in order; its weights are buffers.

    Raises:
        DeviceError: the bytes hold no ONNX model, or it has a node that `RULES` cannot translate.
    """
    return Reader(parse(model)).module()


class Reader:
    """The torch graph as it grows, value by value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._root = nn.Module()
        self.graph = fx.Graph()
        self.constants: dict[str, NDArray[Any]] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.readers.update(value.name for value in model.graph.output)
        self._values: dict[str, fx.Node] = {}

    def module(self) -> fx.GraphModule:
        """The whole model."""
        for name in shapes(self._model, 1):
            self._values[name] = self.graph.placeholder(f"input_{len(self._values)}")
        for node in self._model.graph.node:
            if node.domain not in ("", "ai.onnx") or node.op_type not in RULES:
                kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                raise DeviceError(f"torch has no translation of the ONNX operator {kind}; add one to hwnas.onnx_torch.RULES")
            options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            self._values[node.output[0]] = RULES[node.op_type](self, node, options)
        self.graph.output(tuple(self.value(value.name) for value in self._model.graph.output))
        self.graph.eliminate_dead_code()  # what was folded away
        return fx.GraphModule(self._root, self.graph)

    def value(self, name: str) -> fx.Node:
        """The node that computes the value; a constant becomes a buffer."""
        if name not in self._values:
            self._values[name] = self.buffer(torch.from_numpy(np.array(self.constants[name])))
        return self._values[name]

    def buffer(self, tensor: torch.Tensor) -> fx.Node:
        """The tensor as a buffer of the module."""
        name = f"weight_{len(list(self._root.buffers()))}"
        self._root.register_buffer(name, tensor.clone())
        return self.graph.create_node("get_attr", name)

    def tensor(self, node: fx.Node) -> torch.Tensor:
        """What a buffer's node holds."""
        return self._root.get_buffer(str(node.target))

    def constant(self, node: onnx.NodeProto, position: int, missing: Any = None) -> Any:
        """An input of the node that must be known beforehand, as plain numbers; `missing` where it is left out.

        Raises:
            DeviceError: it is computed.
        """
        name = node.input[position] if position < len(node.input) else ""
        if not name:
            return missing
        if name not in self.constants:
            raise DeviceError(f"torch has no translation of a {node.op_type} whose input {position} is computed; make {name!r} a constant")
        return self.constants[name].tolist()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> fx.Node:
        """A node that calls the function."""
        return self.graph.call_function(function, arguments, options)

    def inputs(self, node: onnx.NodeProto) -> list[fx.Node]:
        """Its inputs; one that is left out must be the last."""
        return [self.value(name) for name in node.input if name]


def _direct(function: Callable[..., Any]) -> Rule:
    """Node and function take the same arguments."""
    return lambda reader, node, options: reader.call(function, *reader.inputs(node))


def _padding(node: onnx.NodeProto, options: Options) -> list[int]:
    """The padding before height and width, which must be that behind them.

    Raises:
        DeviceError: it is not, or is left to the runtime, or the node's maps are not two-dimensional.
    """
    pads = list(options.get("pads", [0, 0, 0, 0]))
    if options.get("auto_pad", b"NOTSET") != b"NOTSET" or len(pads) != 4 or pads[:2] != pads[2:]:
        raise DeviceError(f"torch has no translation of a {node.op_type} whose pads are not the same four on both sides: {options}")
    return pads[:2]


def _conv(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    x, weight, *bias = reader.inputs(node)
    padding, ones = _padding(node, options), [1, 1]
    strides, dilations = options.get("strides", ones), options.get("dilations", ones)
    return reader.call(functional.conv2d, x, weight, bias[0] if bias else None, strides, padding, dilations, options.get("group", 1))


def _batch_norm(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    x, *rest = reader.inputs(node)
    epsilon = options.get("epsilon", 1e-5)
    if x.target is functional.conv2d and reader.readers[node.input[0]] == 1:
        image, weight, bias, *places = x.args
        assert isinstance(weight, fx.Node)
        before = reader.tensor(bias) if isinstance(bias, fx.Node) else None
        gain, offset, average, spread = (reader.tensor(value) for value in rest)
        folded = fuse_conv_bn_weights(reader.tensor(weight), before, average, spread, epsilon, gain, offset)
        with reader.graph.inserting_before(x):
            x.args = (image, *(reader.buffer(tensor.detach()) for tensor in folded), *places)
        return x
    scale, shift, mean, variance = rest
    return reader.call(functional.batch_norm, x, mean, variance, scale, shift, eps=epsilon)


def _clip(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    low, high = reader.constant(node, 1), reader.constant(node, 2)
    return reader.call(torch.clamp, reader.value(node.input[0]), low, high)


def _avg_pool(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    ceil, padded = bool(options.get("ceil_mode", 0)), bool(options.get("count_include_pad", 0))
    where = options["kernel_shape"], options.get("strides", [1, 1]), _padding(node, options)
    return reader.call(functional.avg_pool2d, reader.value(node.input[0]), *where, ceil_mode=ceil, count_include_pad=padded)


def _max_pool(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    where = options["kernel_shape"], options.get("strides", [1, 1]), _padding(node, options), options.get("dilations", [1, 1])
    return reader.call(functional.max_pool2d, reader.value(node.input[0]), *where, ceil_mode=bool(options.get("ceil_mode", 0)))


def _reduce_mean(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    axes = reader.constant(node, 1, options.get("axes"))
    return reader.call(torch.mean, reader.value(node.input[0]), axes, keepdim=bool(options.get("keepdims", 1)))


def _flatten(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    if options.get("axis", 1) != 1:
        raise DeviceError(f"torch has no translation of a Flatten of axis {options['axis']}; flatten behind the batch axis")
    return reader.call(torch.flatten, reader.value(node.input[0]), 1)


def _reshape(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    x, sizes = reader.value(node.input[0]), reader.constant(node, 1)
    copies = not options.get("allowzero", 0)
    shape = [reader.graph.call_method("size", (x, i)) if copies and size == 0 else size for i, size in enumerate(sizes)]
    return reader.call(torch.reshape, x, shape)


def _transpose(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    if "perm" not in options:
        raise DeviceError("torch has no translation of a Transpose without perm; write the order of the axes")
    return reader.call(torch.permute, reader.value(node.input[0]), list(options["perm"]))


def _gemm(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    plain = (options.get("alpha", 1.0), options.get("beta", 1.0), options.get("transA", 0), options.get("transB", 0)) == (1.0, 1.0, 0, 1)
    if not plain:
        raise DeviceError(f"torch has no translation of a Gemm that is no linear layer (transB=1, all else as usual): {options}")
    return reader.call(functional.linear, *reader.inputs(node))


def _cast(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    kind = helper.tensor_dtype_to_np_dtype(options["to"])
    return reader.graph.call_method("to", (reader.value(node.input[0]), getattr(torch, kind.name)))


def _gather(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    values, index = reader.inputs(node)
    return reader.call(operator.getitem, values, (*(slice(None),) * options.get("axis", 0), index))


def _slice(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    starts, ends, axes = (reader.constant(node, position) for position in (1, 2, 3))
    steps = reader.constant(node, 4, [1] * len(starts))
    if axes is None or any(axis < 0 for axis in axes):
        raise DeviceError(f"torch has no translation of a Slice that does not name its axes from the front: {axes}")
    parts = dict(zip(axes, map(slice, starts, ends, steps), strict=True))
    return reader.call(operator.getitem, reader.value(node.input[0]), tuple(parts.get(i, slice(None)) for i in range(max(axes) + 1)))


def _unsqueeze(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    x = reader.value(node.input[0])
    for axis in sorted(reader.constant(node, 1)):
        x = reader.call(torch.unsqueeze, x, axis)
    return x


def _pad(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    """Of maps: the pads in front of and behind each of four axes, of which the first two have none."""
    pads, mode = reader.constant(node, 1), options.get("mode", b"constant").decode()
    if mode not in ("constant", "edge") or len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or reader.constant(node, 2, 0.0):
        raise DeviceError(f"torch has no translation of a Pad that does more than widen maps by zeros or by their edge: {pads}, {mode}")
    sides = (pads[3], pads[7], pads[2], pads[6])
    return reader.call(functional.pad, reader.value(node.input[0]), sides, mode={"edge": "replicate"}.get(mode, mode))


def _hard_sigmoid(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    scaled = reader.call(operator.mul, reader.value(node.input[0]), options.get("alpha", 0.2))
    return reader.call(torch.clamp, reader.call(operator.add, scaled, options.get("beta", 0.5)), 0.0, 1.0)


def _shape(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    first, last = options.get("start", 0), options.get("end")
    return reader.call(lambda x: torch.tensor(x.shape[first:last]), *reader.inputs(node))


def _constant_of_shape(reader: Reader, node: onnx.NodeProto, options: Options) -> fx.Node:
    value = numpy_helper.to_array(options["value"]).item() if "value" in options else 0.0
    return reader.call(lambda shape: torch.full(shape.tolist(), value), *reader.inputs(node))


RULES: dict[str, Rule] = {
    "Add": _direct(operator.add),
    "AveragePool": _avg_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda reader, node, options: reader.call(torch.cat, reader.inputs(node), options["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda reader, node, options: reader.call(functional.adaptive_avg_pool2d, *reader.inputs(node), 1),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _direct(functional.hardswish),
    "Identity": lambda reader, node, options: reader.value(node.input[0]),
    "MatMul": _direct(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _direct(operator.mul),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _direct(functional.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _direct(torch.sigmoid),
    "Slice": _slice,
    "Sub": _direct(operator.sub),
    "Tanh": _direct(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""How each kind of ONNX node is written in torch."""
