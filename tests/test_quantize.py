"""Models in int8 and fp16: they compute nearly the same in the numbers they are meant to have."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from hwnas.device import Device
from hwnas.errors import DeviceError
from hwnas.exporters.onnx import ONNX
from hwnas.feed import Feed, parse, random_feed
from hwnas.network import Network
from hwnas.profile import network_onnx, reference_onnx
from hwnas.quantize import halve, quantize, quantize_randomly
from hwnas.space import SearchSpace, load_space


@pytest.fixture(scope="module")
def small() -> SearchSpace:
    return load_space("mobilenet_v2", {"input_size": 16, "stem_width": 8, "stages": [{"widths": [8], "stride": 2}], "head_width": 32})


def run(model: bytes, feed: Feed, optimized: Path | None = None) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    found: NDArray[np.float32] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    return found


def distance(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert found.dtype == wanted.dtype == np.float32
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_int8_runs_in_int8(small: SearchSpace, tmp_path: Path) -> None:
    model = network_onnx(small, next(iter(small.all())))
    feed = random_feed(parse(model), 1)
    found = run(quantize_randomly(model, 1), feed, tmp_path / "optimized.onnx")
    assert 1e-4 < distance(found, run(model, feed)) < 0.1
    ran = kinds(onnx.load(tmp_path / "optimized.onnx"))
    assert ran["QLinearConv"] == kinds(parse(model))["Conv"] and ran["QGemm"] == 1
    assert not {"Conv", "Gemm", "BatchNormalization"} & ran.keys()


def test_weights_have_a_scale_per_channel() -> None:
    made = parse(quantize_randomly(reference_onnx(), 1))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    weights = [
        node for node in made.graph.node if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.zeros(1)).ndim == 4
    ]
    assert len(weights) == kinds(made)["Conv"] == 9
    for node in weights:
        weight, scale, zero = (constants[name] for name in node.input)
        assert weight.dtype == np.int8 and scale.shape == (len(weight),) and not zero.any()


def test_ranges_are_those_of_the_calibration_data() -> None:
    model, shape = reference_onnx(), (1, 24, 16, 16)

    def scale(largest: float) -> float:
        values = np.linspace(-largest, largest, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        half = np.float32(0.5) * values
        made = parse(quantize(model, [{"input": half}, {"input": values}]))
        entry = next(node for node in made.graph.node if node.input[0] == "input")
        assert entry.op_type == "QuantizeLinear"
        return next(float(numpy_helper.to_array(t)) for t in made.graph.initializer if t.name == entry.input[1])

    assert scale(1.0) == pytest.approx(2 / 255, rel=1e-3)
    assert scale(20.0) == pytest.approx(40 / 255, rel=1e-3)


def test_an_exported_network_of_any_batch(small: SearchSpace, tmp_path: Path) -> None:
    network = Network(small, next(iter(small.all())), torch.Generator().manual_seed(0)).eval()
    ONNX(Device(backend="onnxruntime")).write(network, tmp_path / "model.onnx")
    model = (tmp_path / "model.onnx").read_bytes()
    rng = np.random.default_rng(0)
    images = [{"images": rng.standard_normal((size, *small.input_shape), dtype=np.float32)} for size in (8, 8, 3)]
    made = quantize(model, images)
    for feed in images:
        assert distance(run(made, feed), run(model, feed)) < 0.1
    assert [value.name for value in parse(made).graph.output] == ["logits"]


def test_a_quantised_model_stays_as_it_is() -> None:
    once = quantize_randomly(reference_onnx(), 1)
    assert quantize_randomly(once, 1) == once


def test_fp16() -> None:
    model = reference_onnx()
    half = parse(halve(model))
    feed = random_feed(parse(model), 1)
    assert 1e-6 < distance(run(half.SerializeToString(), feed), run(model, feed)) < 5e-3
    assert {tensor.data_type for tensor in half.graph.initializer} == {TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("model", "batches", "says"),
    [
        (b"garbage", [], "damaged or no ONNX model"),
        (reference_onnx(), [], "onnxruntime cannot quantise the model: no data is collected"),
        (reference_onnx(), [{"images": np.zeros((1, 24, 16, 16), np.float32)}], "onnxruntime cannot quantise the model: .*input"),
        (reference_onnx(), [{"input": np.zeros((1, 2, 16, 16), np.float32)}], "onnxruntime cannot quantise the model: .*dimensions"),
    ],
    ids=["garbage", "no data", "wrong name", "wrong shape"],
)
def test_what_cannot_be_quantised(model: bytes, batches: list[Feed], says: str) -> None:
    with pytest.raises(DeviceError, match=f"(?i){says}") as caught:
        quantize(model, batches)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_halved() -> None:
    with pytest.raises(DeviceError, match="damaged or no ONNX model"):
        halve(b"garbage")


def test_a_concatenation_that_only_a_batch_norm_reads_stays_in_float() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.norm, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.relu(self.norm(torch.cat((self.left(x), self.right(x)), 1))))
            return out

    buffer = io.BytesIO()
    torch.onnx.export(Joined().eval(), (torch.zeros(1, 4, 8, 8),), buffer, dynamo=False)  # type: ignore[arg-type]
    graph = onnx.load_from_string(quantize_randomly(buffer.getvalue(), 1)).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    readers = {node.op_type: [made[name] for name in node.input if name in made] for node in graph.node}
    assert readers["BatchNormalization"][0] == "Concat"
    assert readers["Conv"][0] == "DequantizeLinear"
