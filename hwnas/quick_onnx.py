"""Module -> ONNX bytes for measuring, in milliseconds; what is deployed is written by the maintained exporter (`exporters/`).

The module is traced by torch.fx and every layer becomes the ONNX nodes that `RULES` gives for its type. Weights are
random numbers: what is measured here is time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import fx, nn

from hwnas.errors import SpaceError
from hwnas.layers import ChannelIndex, ChannelShuffle, Concat, Crop, finished, nothing

OPSET = 18
Rule = Callable[..., str]
"""Called with the graph, the layer and the names of its inputs; gives the name of its output."""


class Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Appends a node; the name of its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, *shape: int, ones: bool = False) -> str:
        """Appends a random weight (or ones) of that shape; its name."""
        name = f"w{len(self.weights)}"
        data = np.ones(shape, dtype=np.float32).tobytes() if ones else _random_bytes(shape, len(self.weights))
        self.weights.append(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, raw_data=data))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """Appends these numbers; their name."""
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(values, name))
        return name


@cache
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)


def _random_bytes(shape: tuple[int, ...], offset: int) -> bytes:
    """Normal weights that keep the scale of activations, different for every offset so that no two layers are merged."""
    size = int(np.prod(shape))
    fan_in = max(int(np.prod(shape[1:])), 1)
    return (np.resize(np.roll(_pool()[: max(size, 64)], 7 * offset), size) / np.float32(fan_in) ** np.float32(0.5)).tobytes()


def _conv(graph: Graph, layer: nn.Conv2d, x: str) -> str:
    inputs = [x, graph.weight(*layer.weight.shape)] + ([graph.weight(layer.out_channels)] if layer.bias is not None else [])
    pads = [int(p) for p in layer.padding] * 2
    return graph.add(
        "Conv",
        inputs,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=pads,
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _batch_norm(graph: Graph, layer: nn.BatchNorm2d, x: str) -> str:
    size = layer.num_features
    inputs = [x, graph.weight(size, ones=True), graph.weight(size), graph.weight(size), graph.weight(size, ones=True)]
    return graph.add("BatchNormalization", inputs, epsilon=layer.eps)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _avg_pool(graph: Graph, layer: nn.AvgPool2d, x: str) -> str:
    pads = _pair(layer.padding) * 2
    shape, strides = _pair(layer.kernel_size), _pair(layer.stride)
    return graph.add(
        "AveragePool",
        [x],
        kernel_shape=shape,
        strides=strides,
        pads=pads,
        count_include_pad=int(layer.count_include_pad),
        ceil_mode=int(layer.ceil_mode),
    )


def _relu6(graph: Graph, layer: nn.ReLU6, x: str) -> str:
    return graph.add("Clip", [x, graph.constant(np.array(0, np.float32)), graph.constant(np.array(6, np.float32))])


def _flatten(graph: Graph, layer: nn.Flatten, x: str) -> str:
    """Behind the batch axis, or behind the channels too."""
    return graph.add("Flatten", [x]) if layer.start_dim == 1 else graph.add("Reshape", [x, graph.constant(np.array([0, 0, -1]))])


def _linear(graph: Graph, layer: nn.Linear, x: str) -> str:
    inputs = [x, graph.weight(*layer.weight.shape)] + ([graph.weight(layer.out_features)] if layer.bias is not None else [])
    return graph.add("Gemm", inputs, transB=1)


def _channel_shuffle(graph: Graph, layer: ChannelShuffle, x: str) -> str:
    channels, *size = layer.shape
    apart = graph.add("Reshape", [x, graph.constant(np.array([0, layer.groups, channels // layer.groups, *size]))])
    dealt = graph.add("Transpose", [apart], perm=[0, 2, 1, 3, 4])
    return graph.add("Reshape", [dealt, graph.constant(np.array([0, *layer.shape]))])


def _max_pool(graph: Graph, layer: nn.MaxPool2d, x: str) -> str:
    shape, strides, pads = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding) * 2
    return graph.add("MaxPool", [x], kernel_shape=shape, strides=strides, pads=pads)


def _pad(graph: Graph, x: str, pads: tuple[int, ...], mode: str) -> str:
    left, right, top, bottom = pads
    return graph.add("Pad", [x, graph.constant(np.array([0, 0, top, left, 0, 0, bottom, right]))], mode=mode)


def _crop(graph: Graph, layer: Crop, x: str) -> str:
    most = np.iinfo(np.int64).max
    inside = graph.add("Slice", [x, *(graph.constant(np.array(numbers)) for numbers in ([1, 1], [most, most], [2, 3]))])
    return _pad(graph, inside, layer.pads, "constant") if any(layer.pads) else inside


def _channel_index(graph: Graph, layer: ChannelIndex, x: str) -> str:
    dealt = np.random.default_rng(0).permutation(layer.index.shape[0])  # the module may be on the meta device
    return graph.add("Gather", [x, graph.constant(dealt)], axis=1)


def _concat(graph: Graph, layer: Concat, *inputs: str) -> str:
    """On its own, as operators are measured, what copies as much: a selection of all channels."""
    if len(inputs) > 1:
        return graph.add("Concat", list(inputs), axis=1)
    return graph.add("Gather", [*inputs, graph.constant(np.arange(layer.channels))], axis=1)


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: lambda graph, layer, x: graph.add("GlobalAveragePool", [x]),
    nn.Flatten: _flatten,
    nn.Unflatten: lambda graph, layer, x: graph.add("Reshape", [x, graph.constant(np.array([0, *layer.unflattened_size]))]),
    nn.Linear: _linear,
    nn.ReLU: lambda graph, layer, x: graph.add("Relu", [x]),
    nn.ReLU6: _relu6,
    nn.Sigmoid: lambda graph, layer, x: graph.add("Sigmoid", [x]),
    nn.Tanh: lambda graph, layer, x: graph.add("Tanh", [x]),
    nn.Hardswish: lambda graph, layer, x: graph.add("HardSwish", [x]),
    nn.Hardsigmoid: lambda graph, layer, x: graph.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5),
    nn.MaxPool2d: _max_pool,
    nn.ReplicationPad2d: lambda graph, layer, x: _pad(graph, x, layer.padding, "edge"),
    ChannelShuffle: _channel_shuffle,
    ChannelIndex: _channel_index,
    Concat: _concat,
    Crop: _crop,
    nn.Identity: lambda graph, layer, x: x,
}
"""How each kind of torch layer is written; a space with a layer of its own adds its rule here."""

FUNCTIONS: dict[Callable[..., Any], str] = {
    operator.add: "Add", torch.add: "Add", operator.sub: "Sub", operator.mul: "Mul", torch.mul: "Mul",
}  # fmt: skip
"""What may be done with two tensors outside a layer."""


class _Tracer(fx.Tracer):
    """Looks into every module but those that have a rule."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in RULES or super().is_leaf_module(m, module_qualified_name)


def quick_onnx(module: nn.Module, shape: tuple[int, ...], batch: int = 1, out_shape: tuple[int, ...] | None = None) -> bytes:
    """The module in eval mode as an ONNX model with random weights, an input of (batch, *shape) and an output of (batch, *out_shape).

    It may live on the meta device. Without `out_shape` it runs once to find out, which takes longer than all the rest.

    Raises:
        SpaceError: the module holds a layer that `RULES` has no rule for, or does what is neither a layer nor in `FUNCTIONS`
            nor a concatenation of channels.
    """
    module = finished(module).eval()
    if out_shape is None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("meta"))
        with torch.no_grad():
            out_shape = tuple(module(torch.zeros(batch, *shape, device=device)).shape[1:])
    whole = nn.Sequential(module)  # a single layer would be looked into
    traced = fx.GraphModule(whole, _Tracer().trace(whole))
    graph = Graph()
    names: dict[fx.Node, str] = {}
    layers = dict(traced.named_modules())
    output = ""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            names[node] = "input"
        elif node.op == "call_module":
            layer = layers[str(node.target)]
            if type(layer) not in RULES:
                raise SpaceError(f"quick_onnx.RULES has no rule for {type(layer).__name__}; add one beside the operator's builder")
            names[node] = RULES[type(layer)](graph, layer, *(names[argument] for argument in node.args))
        elif node.op == "call_function" and node.target in FUNCTIONS and all(argument in names for argument in node.args):
            names[node] = graph.add(FUNCTIONS[node.target], [names[argument] for argument in node.args])
        elif node.op == "call_function" and node.target is nothing:
            names[node] = graph.constant(np.zeros((batch, *node.args[1]), np.float32))
        elif node.op == "call_function" and node.target is torch.cat and node.args[1:] == (1,):
            names[node] = graph.add("Concat", [names[argument] for argument in node.args[0]], axis=1)
        elif node.op == "output":
            output = names[node.args[0]]
        else:
            raise SpaceError(
                f"quick_onnx can write layers, sums, products and concatenations of channels, but the module also does {node.format_node()}"
            )
    if output == "input":
        output = graph.add("Identity", ["input"])
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "measured",
        [value("input", TensorProto.FLOAT, [batch, *shape])],
        [value(output, TensorProto.FLOAT, [batch, *out_shape])],
        graph.weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString())
