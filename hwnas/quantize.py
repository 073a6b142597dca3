"""fp32 ONNX -> int8 by static quantisation, or fp16: onnxruntime's tools do the work.

int8 is quantise/dequantise pairs (QDQ) around the nodes: activations unsigned and asymmetric, weights signed and symmetric per
channel. The ranges come from calibration data, which are real images where accuracy counts and random where only time does.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from hwnas.errors import DeviceError
from hwnas.feed import Feed, first_line, parse, random_feed

CALIBRATION_BATCHES = 4
"""Random batches from which `quantize_randomly` takes the ranges of activations."""


class _Batches:
    """What onnxruntime reads calibration data from."""

    def __init__(self, batches: Iterable[Feed]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Feed | None:
        return next(self._batches, None)


def quantize(model: bytes, batches: Iterable[Feed], *, symmetric: bool = False) -> bytes:
    """The model with int8 weights and activations, BatchNorm folded into convolutions; its inputs and outputs stay float32.

    `batches` hold the names of the model's inputs and their values. Embeddings stay as they are: looking up is no arithmetic.
    With `symmetric`, as TensorRT wants it, activations are signed without a zero point, and biases stay float32.

    Raises:
        DeviceError: the bytes hold no ONNX model, there is no batch, or onnxruntime cannot quantise it.
    """
    from onnxruntime import quantization

    graph = parse(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    lookups = [node.name for node in graph.node if node.op_type == "Gather" and node.input[0] in weights]
    kind = quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8
    more = {"ActivationSymmetric": True, "QuantizeBias": False} if symmetric else {}
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder, _quiet():
        given, folded, written = (Path(folder, f"{name}.onnx") for name in ("fp32", "folded", "int8"))
        given.write_bytes(model)  # a model in memory would lose its weights (onnxruntime 1.31)
        try:
            quantization.quant_pre_process(str(given), str(folded), skip_symbolic_shape=True, skip_onnx_shape=True)
            left = [*_left_in_float(folded), *lookups]
            quantization.quantize_static(
                folded, written, _Batches(batches), nodes_to_exclude=left, quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=kind, weight_type=quantization.QuantType.QInt8, extra_options=more,
            )  # fmt: skip
            return written.read_bytes()
        except Exception as error:  # its tools raise whatever they stumble over
            raise DeviceError(f"onnxruntime cannot quantise the model: {first_line(error)}") from None


def _left_in_float(path: Path) -> list[str]:
    """The names of concatenations that a BatchNormalization alone reads, and its: OpenVINO 2026.4 dies of such a pair in int8.

    Nodes without a name are given one in the file.
    """
    model = onnx.load(path)
    made = {}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node {number}"
        made[node.output[0]] = node
    onnx.save(model, path)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization" and readers[node.input[0]] == 1]
    pairs = [(made[norm.input[0]], norm) for norm in norms if norm.input[0] in made]
    return [node.name for concat, norm in pairs if concat.op_type == "Concat" for node in (concat, norm)]


def quantize_randomly(model: bytes, batch: int, *, symmetric: bool = False) -> bytes:
    """As `quantize` with random calibration data, for measuring time; a model that is quantised already stays as it is."""
    parsed = parse(model)
    if any(node.op_type == "QuantizeLinear" for node in parsed.graph.node):
        return model
    return quantize(model, [random_feed(parsed, batch, seed) for seed in range(1, CALIBRATION_BATCHES + 1)], symmetric=symmetric)


def halve(model: bytes) -> bytes:
    """The model in fp16; its inputs and outputs stay float32.

    Raises:
        DeviceError: the bytes hold no ONNX model, or onnxruntime cannot convert it.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    parsed = parse(model)
    try:
        with _quiet():
            converted: onnx.ModelProto = convert_float_to_float16(parsed, keep_io_types=True)
    except Exception as error:  # its tools raise whatever they stumble over
        raise DeviceError(f"onnxruntime cannot convert the model to fp16: {first_line(error)}") from None
    return bytes(converted.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile nothing is logged: what is wrong becomes an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
