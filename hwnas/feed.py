"""What goes into an ONNX model that is measured: the model read, and random inputs for it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from hwnas.errors import DeviceError

Feed = dict[str, NDArray[np.float32]]
"""One batch: the name of every input and its values."""


def parse(model: bytes) -> onnx.ModelProto:
    """The model in these bytes.

    Raises:
        DeviceError: they hold none.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        parsed = onnx.load_from_string(model)
    except DecodeError:
        raise DeviceError("the model is damaged or no ONNX model: its bytes cannot be decoded; export it again") from None
    if not parsed.graph.output:
        raise DeviceError("the model is damaged or no ONNX model: it has no outputs; export it again")
    return parsed


def shapes(model: onnx.ModelProto, batch: int) -> dict[str, list[int]]:
    """Every input's shape, a dynamic first axis being the batch.

    Raises:
        DeviceError: another axis is dynamic, or an input does not hold float32 numbers.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = [axis.dim_value or (batch if position == 0 else 0) for position, axis in enumerate(kind.shape.dim)]
        if kind.elem_type != onnx.TensorProto.FLOAT or 0 in shape:
            what = f"{onnx.TensorProto.DataType.Name(kind.elem_type)} {[axis.dim_param or axis.dim_value for axis in kind.shape.dim]}"
            raise DeviceError(f"input {value.name!r} must be FLOAT with every axis but the batch fixed, but is {what}; export it so")
        found[value.name] = shape
    return found


def random_feed(model: onnx.ModelProto, batch: int, seed: int = 0) -> Feed:
    """Normal numbers for every input; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes(model, batch).items()}


def first_line(error: BaseException) -> str:
    """A runtime's own complaint, as far as it fits into one sentence."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
