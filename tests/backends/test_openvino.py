"""OpenVINO: it computes in the precision that the device says, with its threads, and says why it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwnas import plugins
from hwnas.device import Device, load_backend
from hwnas.errors import ConfigError, DeviceError, PluginError
from hwnas.profile import reference_onnx
from hwnas.quantize import quantize

ov = pytest.importorskip("openvino")
FEED = {"input": np.random.default_rng(3).standard_normal((1, 24, 16, 16), dtype=np.float32)}


def device(**settings: Any) -> Device:
    return Device(**{"name": "here", "backend": "openvino", **settings})


def outputs(**settings: Any) -> np.ndarray[Any, Any]:
    executable: Any = load_backend(device(**settings)).compile(reference_onnx())
    return np.asarray(executable.outputs(FEED)[0])


def property_of(executable: Any, name: str) -> Any:
    return executable._compiled.get_property(name)


def kinds(executable: Any) -> list[str]:
    """The types in which convolutions run, as the compiled model says."""
    nodes = executable._compiled.get_runtime_model().get_ordered_ops()
    infos = [{key: value.value for key, value in node.get_rt_info().items()} for node in nodes]
    return [info["runtimePrecision"] for info in infos if info["layerType"] == "Convolution"]


@pytest.mark.parametrize(("precision", "type_"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "u8")])
def test_convolutions_run_in_the_precision(precision: Any, type_: str) -> None:
    try:
        backend = load_backend(device(precision=precision))
    except DeviceError as error:
        pytest.skip(str(error))
    found = kinds(backend.compile(reference_onnx()))
    assert found == [type_] * 9


def test_settings_are_taken() -> None:
    executable = load_backend(device()).compile(reference_onnx())
    assert property_of(executable, "INFERENCE_NUM_THREADS") == 1 and property_of(executable, "NUM_STREAMS") == 1
    assert property_of(executable, "INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert property_of(executable, "ENABLE_HYPER_THREADING") is False


def test_a_model_that_is_quantised_already_is_not_quantised_again() -> None:
    model = quantize(reference_onnx(), [FEED])
    executable: Any = load_backend(device(precision="int8")).compile(model)
    wanted: Any = load_backend(Device(backend="onnxruntime", precision="int8")).compile(model)
    found, expected = executable.outputs(FEED)[0], wanted.outputs(FEED)[0]
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_a_run_leaves_its_inputs_as_they_were() -> None:
    executable: Any = load_backend(device()).compile(reference_onnx())
    first = executable.outputs(FEED)[0]
    executable.run()
    executable.run()
    np.testing.assert_array_equal(executable.outputs(FEED)[0], first)


def test_fingerprint() -> None:
    assert load_backend(device()).fingerprint() == {"runtime": "openvino", "runtime_version": ov.__version__}
    assert load_backend(device(precision="int8")).fingerprint()["quantizer"].startswith("onnxruntime ")


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"precision": "fp16"}, ConfigError, "openvino of device here runs fp32, bf16, int8, but its precision is 'fp16'"),
        ({"options": {"target": "GPU"}}, ConfigError, "backend 'openvino' has no option 'target'"),
    ],
)
def test_a_device_that_cannot_be(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_backend(device(**settings))


def test_more_threads_than_cores() -> None:
    with pytest.raises(DeviceError, match=r"OpenVINO has \d+ cores to use here, one a thread, but threads is 1024; lower it"):
        load_backend(device(threads=1024)).compile(reference_onnx())


def test_bf16_without_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(ov, "Core", Old)
    with pytest.raises(DeviceError, match="no bf16 instructions.*choose precision fp32 or int8"):
        load_backend(device(precision="bf16"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_no_model(precision: Any) -> None:
    with pytest.raises(DeviceError, match="damaged or no ONNX model"):
        load_backend(device(precision=precision)).compile(b"garbage")


def test_a_model_that_it_refuses() -> None:
    model = reference_onnx().replace(b"Clip", b"Clap")
    with pytest.raises(DeviceError, match="openvino refuses the model: No conversion rule found for operations: Clap") as caught:
        load_backend(device()).compile(model)
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_importable", lambda package: package != "openvino")
    plugins.load.cache_clear()
    (listed,) = [entry for entry in plugins.listing("backends") if entry.name == "openvino"]
    assert listed.missing == ("openvino",) and listed.precisions == ("fp32", "bf16", "int8")
    with pytest.raises(PluginError, match="openvino needs openvino: pip install openvino"):
        load_backend(device())
