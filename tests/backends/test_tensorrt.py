"""TensorRT: engines are built here without a GPU, for GPUs that are named; running them is tested where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from hwnas import plugins
from hwnas.backends import tensorrt
from hwnas.backends.tensorrt import build_engine
from hwnas.config import load_device
from hwnas.device import Device, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.measure import Worker
from hwnas.profile import reference_onnx

MISSING = plugins.missing_packages(tensorrt.REQUIRES)
if MISSING:
    pytest.skip(f"{MISSING[0]} is not installed", allow_module_level=True)
RTX = not plugins.missing_packages(("tensorrt_rtx",))
needs_rtx = pytest.mark.skipif(not RTX, reason="only tensorrt_rtx builds without a GPU")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="running an engine needs an NVIDIA GPU")
MODEL = reference_onnx()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that is not there yet."""
    return tmp_path / "made" / "cache"


def described(engine: bytes) -> list[tuple[str, tuple[int, ...]]] | None:
    """Name and shape of an engine's inputs and outputs; None where TensorRT cannot read it."""
    trt: Any = tensorrt._tensorrt()
    made = trt.Runtime(tensorrt._log(trt)).deserialize_cuda_engine(engine)
    if made is None:
        return None
    names = [made.get_tensor_name(number) for number in range(made.num_io_tensors)]
    return [(name, tuple(made.get_tensor_shape(name))) for name in names]


@needs_rtx
def test_engines_of_every_precision_for_a_named_gpu(cache: Path) -> None:
    engines = [build_engine(MODEL, precision=p, compute_capability=[8.9], cache=cache) for p in ("fp32", "fp16", "int8")]
    assert len(set(engines)) == 3 and min(map(len, engines)) > 10_000
    assert len(engines[1]) < 0.8 * len(engines[0])  # its weights are half as large
    assert build_engine(MODEL, compute_capability=[8.9], cache=cache) == engines[0]


@needs_rtx
def test_other_gpus_other_engines(cache: Path) -> None:
    turing, ada, both = (build_engine(MODEL, compute_capability=c, cache=cache) for c in ([7.5], [8.9], [7.5, 8.9]))
    assert len({turing, ada, both}) == 3 and len(both) > len(ada)


@needs_rtx
def test_the_batch_is_the_engines(cache: Path) -> None:
    from onnx import load_from_string

    dynamic = load_from_string(MODEL)
    dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    dynamic.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    one, eight = (build_engine(dynamic.SerializeToString(), batch=b, compute_capability=[8.9], cache=cache) for b in (1, 8))
    assert one != eight


@needs_rtx
@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (b"garbage", {}, "no ONNX model"),
        (MODEL, {"compute_capability": [8.7]}, "has no compute capability 8.7; did you mean"),
        (MODEL, {"compute_capability": [8.91]}, "has no compute capability 8.91"),
        (MODEL, {"compute_capability": [-1.0]}, "has no compute capability -1"),
    ],
)
def test_what_cannot_be_built(cache: Path, model: bytes, options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, DeviceError), match=re.escape(says)) as caught:
        build_engine(model, **{"cache": cache, **options})
    assert "\n" not in str(caught.value)


@needs_rtx
def test_an_operator_that_tensorrt_does_not_have(cache: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"], domain="mine")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)])
    with pytest.raises(DeviceError, match=r"^tensorrt(_rtx)? refuses the model: ") as caught:
        build_engine(model.SerializeToString(), compute_capability=[8.9], cache=cache)
    assert "Nonsense" in str(caught.value) and "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written() -> None:
    with pytest.raises(DeviceError, match="the cache /proc/cache cannot be written: .*; name another file"):
        tensorrt._keep(Path("/proc/cache"), b"")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (Device(backend="tensorrt", precision="bf16"), "runs fp32, fp16, int8, but its precision is 'bf16'"),
        (Device(backend="tensorrt", options={"compute_capability": [1.0]}), "compute capability"),
        (Device(backend="tensorrt", options={"compute_capability": "sm89"}), "compute_capability"),
        (Device(backend="tensorrt", options={"capability": [8.9]}), "did you mean 'compute_capability'"),
    ],
)
def test_devices_that_cannot_be_meant(device: Device, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_backend(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_running_says_so(cache: Path) -> None:
    with pytest.raises(DeviceError, match="there is no NVIDIA GPU"), Worker(load_device("tensorrt-fp16")):
        pass
    if RTX:
        engine = build_engine(MODEL, compute_capability=[8.9], cache=cache)
        with pytest.raises(DeviceError, match="there is no NVIDIA GPU"):
            tensorrt.Engine(engine, {})


def test_either_package_will_do() -> None:
    assert plugins.missing_packages(("nosuch or numpy", "nosuch or nonesuch")) == ("nosuch or nonesuch",)


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("fp16", 5e-2)])
def test_it_computes_what_onnx_runtime_computes_and_times_itself(cache: Path, precision: str, tolerance: float) -> None:
    device = Device.model_validate({"backend": "tensorrt", "precision": precision, "options": {"cache": str(cache)}})
    executable = load_backend(device).compile(MODEL)
    images = np.random.default_rng(0).standard_normal((1, 24, 16, 16), dtype=np.float32)
    (found,) = executable.outputs({"input": images})  # type: ignore[attr-defined]
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": images})
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    times = executable.time(7)  # type: ignore[attr-defined]
    assert times.shape == (7,) and (times > 1000).all()
    assert cache.stat().st_size > 0
