"""A board that is not here, by its datasheet: a node takes max(arithmetic, memory traffic) plus a launch (the roofline of Williams 2009).

Nothing runs: a table of such a device says `modelled`, and holds on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import Field

from hwnas.device import Device, Precision
from hwnas.errors import ConfigError, DeviceError
from hwnas.feed import parse

REQUIRES = ("onnx",)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
VERSION = "1"
"""Of the formula; one that gives other numbers is another runtime version."""
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
Shape = tuple[int, ...]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _conv(inputs: list[Shape], output: Shape) -> int:
    return prod(output) * prod(inputs[1][1:])  # weights: (out, in / groups, kernel...)


def _matrix(inputs: list[Shape], output: Shape) -> int:
    return prod(output) * inputs[0][-1]


def _gemm(inputs: list[Shape], output: Shape) -> int:
    return prod(inputs[0]) * output[-1]  # transposed or not, A holds rows x inner numbers


MACS: dict[str, Callable[[list[Shape], Shape], int]] = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matrix}
"""Multiply-accumulates of the nodes that have arithmetic worth counting, from the shapes of their inputs and of their output."""
FUSED = frozenset(["BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu"])
"""Elementwise nodes that every graph runtime makes part of the convolution or product before them."""
MOVES = FUSED | frozenset(
    ["Add", "Sub", "Mul", "Div", "Concat", "Split", "Slice", "Pad", "Transpose", "Cast", "Resize", "Gather"]
    + ["Softmax", "AveragePool", "MaxPool", "GlobalAveragePool", "ReduceMean"]
)
"""Nodes that cost what they read and write."""
FREE = frozenset(["Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Constant", "Dropout", "QuantizeLinear", "DequantizeLinear"])
"""Nodes that change names or types only; quantisation is part of the nodes on either side."""


class Roofline:
    """The backend of the devices whose YAML says `backend: roofline`.

    `gmacs_per_second` is the peak of all cores together, 1e9 multiply-accumulates per second, for each precision;
    `gigabytes_per_second` the bandwidth of the memory; `overhead_us` what starting a node costs.
    """

    example: ClassVar[dict[str, Any]] = {"gmacs_per_second": {"fp32": 100}, "gigabytes_per_second": 10, "overhead_us": 1}
    """Options that the contract tests use."""

    def __init__(
        self,
        device: Device,
        *,
        gmacs_per_second: dict[Precision, Rate],
        gigabytes_per_second: Rate,
        overhead_us: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    ) -> None:
        if device.precision not in gmacs_per_second:
            raise ConfigError(
                f"device {device.name or 'without a name'} runs {device.precision}, but its gmacs_per_second has only "
                f"{', '.join(gmacs_per_second) or 'nothing'}; add that peak rate from the datasheet, or change the precision"
            )
        self._device = device
        self._macs_per_ns = gmacs_per_second[device.precision]
        self._elements_per_ns = gigabytes_per_second / BYTES[device.precision]
        self._overhead_ns = 1e3 * overhead_us

    def fingerprint(self) -> dict[str, str]:
        """The formula's version; all else that changes times is in the device's options."""
        return {"runtime": "roofline", "runtime_version": VERSION, "source": "modelled", "cpu": "none: times are computed"}

    def compile(self, model: bytes) -> Computed:
        """The model's time.

        Raises:
            DeviceError: it holds a node that there is no rule for, or the shape of a tensor cannot be inferred.
        """
        graph = _with_shapes(parse(model), self._device.batch)
        shapes = _shapes(graph)
        return Computed(sum(self._node_ns(node, shapes) for node in _costly(graph)))

    def _node_ns(self, node: onnx.NodeProto, shapes: dict[str, Shape]) -> float:
        """max(macs / peak, bytes / bandwidth) + overhead."""
        try:
            inputs, outputs = ([shapes[name] for name in names if name] for names in (node.input, node.output))
        except KeyError as error:
            raise DeviceError(f"the shape of tensor {error} of a {node.op_type} node cannot be inferred") from None
        macs = MACS[node.op_type](inputs, outputs[0]) if node.op_type in MACS else 0
        if node.op_type == "Gather":
            inputs = [outputs[0], *inputs[1:]]  # of a table only the rows that are asked for
        moved = sum(prod(shape) for shape in inputs + outputs)
        return max(macs / self._macs_per_ns, moved / self._elements_per_ns) + self._overhead_ns


class Computed:
    """A model that nothing runs."""

    def __init__(self, nanoseconds: float) -> None:
        self.nanoseconds = nanoseconds

    def run(self) -> None:
        """Nothing to wait for."""

    def time(self, runs: int) -> NDArray[np.int64]:
        """The computed time for each of `runs` inferences, ns."""
        return np.full(runs, max(round(self.nanoseconds), 1), dtype=np.int64)


def _with_shapes(model: onnx.ModelProto, batch: int) -> onnx.GraphProto:
    """The graph with every tensor's shape inferred; a dynamic axis gets the size `batch`."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = batch
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise DeviceError(f"the shapes of the model's tensors cannot be inferred: {str(error).splitlines()[0]}") from None


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return shapes


def _costly(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """The nodes that cost something: neither free nor fused into the node before them."""
    readers: dict[str, int] = {}
    for name in [name for node in graph.node for name in node.input] + [value.name for value in graph.output]:
        readers[name] = readers.get(name, 0) + 1
    fusing: set[str] = set()
    for node in graph.node:
        if node.op_type not in MACS and node.op_type not in MOVES and node.op_type not in FREE:
            raise DeviceError(f"backend roofline has no rule for the node {node.op_type}; add its kind to hwnas/backends/roofline.py")
        fused = node.op_type in FUSED and node.input[0] in fusing
        if (fused or node.op_type in MACS) and readers.get(node.output[0], 0) == 1:
            fusing.add(node.output[0])
        if not fused and node.op_type not in FREE:
            yield node
