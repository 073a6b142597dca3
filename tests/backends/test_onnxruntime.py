"""ONNX Runtime: what it runs and how, and what it refuses in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from hwnas.backends import onnxruntime as module
from hwnas.device import Backend, Device, Executable, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.profile import reference_onnx

OTHER = next((name for name in onnxruntime.get_available_providers() if name != "CPUExecutionProvider"), "")
needs_other = pytest.mark.skipif(not OTHER, reason="this build of onnxruntime has no provider but the CPU's")


def device(**settings: Any) -> Device:
    return Device(**{"name": "here", "backend": "onnxruntime", **settings})


def test_runs_a_model() -> None:
    backend = load_backend(device())
    assert isinstance(backend, Backend)
    session = backend.compile(reference_onnx())
    assert isinstance(session, Executable)
    session.run()
    assert backend.fingerprint() == {
        "runtime": "onnxruntime", "runtime_version": onnxruntime.__version__, "provider": "CPUExecutionProvider",
    }  # fmt: skip


def test_threads_are_those_of_the_device() -> None:
    options = load_backend(device(threads=2)).options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


@pytest.mark.parametrize(
    ("given", "level"), [({}, "ENABLE_ALL"), ({"optimization": "none"}, "DISABLE_ALL"), ({"optimization": "basic"}, "ENABLE_BASIC")]
)
def test_optimization_level(given: dict[str, Any], level: str) -> None:
    backend = load_backend(device(options=given))
    assert backend.options().graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")  # type: ignore[attr-defined]
    backend.compile(reference_onnx()).run()


@needs_other
def test_nodes_that_the_provider_leaves_to_the_cpu_are_listed_and_refused() -> None:
    """What PyPI's builds have besides the CPU's is for remote calls and runs no ordinary node."""
    backend = load_backend(device(options={"provider": OTHER}))
    with pytest.raises(DeviceError, match=r"leaves \d+ of \d+ nodes to the CPU") as caught:
        backend.compile(reference_onnx())
    assert "9 Conv" in str(caught.value) and "options: {allow_fallback: true}" in str(caught.value)


@needs_other
def test_unless_that_is_allowed() -> None:
    backend = load_backend(device(options={"provider": OTHER, "allow_fallback": True}))
    feed = {"input": np.ones((1, 24, 16, 16), np.float32)}
    found, wanted = (one.compile(reference_onnx()).outputs(feed) for one in (backend, load_backend(device())))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found[0], wanted[0])
    assert backend.fingerprint()["provider"] == OTHER


def test_providers_to_get_are_ones_that_exist() -> None:
    assert module.SOURCES.keys() <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"options": {"provider": "CPUExecutionProvidr"}}, DeviceError, "did you mean 'CPUExecutionProvider'"),
        (
            {"options": {"provider": "CoreMLExecutionProvider"}},
            DeviceError,
            "has no CoreMLExecutionProvider .it has .*CPUExecutionProvider.*macOS",
        ),
        ({"options": {"provider": "RknpuExecutionProvider"}}, DeviceError, "has no RknpuExecutionProvider .*onnxruntime.ai"),
        ({"options": {"providr": "x"}}, ConfigError, "did you mean 'provider'"),
        ({"options": {"optimization": "most"}}, ConfigError, "optimization: .*'most'"),
        ({"options": {"provider_options": {"device_id": 1}}}, ConfigError, "CPUExecutionProvider has no options, .* has device_id"),
        ({"options": {"allow_fallback": "perhaps"}}, ConfigError, "allow_fallback: .*'perhaps'"),
        ({"precision": "bf16"}, ConfigError, "onnxruntime of device here runs fp32, fp16, int8, but its precision is 'bf16'"),
    ],
)
def test_a_device_that_cannot_be(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        load_backend(device(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_fp16_that_would_be_fp32(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(ConfigError, match="computes fp16 models in fp32; choose precision fp32 or int8"):
        load_backend(device(precision="fp16"))


def test_fp16_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    executable: Any = load_backend(device(precision="fp16")).compile(reference_onnx())
    feed = {"input": np.ones((1, 24, 16, 16), np.float32)}
    wanted = load_backend(device()).compile(reference_onnx()).outputs(feed)[0]  # type: ignore[attr-defined]
    distance = np.linalg.norm(executable.outputs(feed)[0] - wanted) / np.linalg.norm(wanted)
    assert 1e-6 < distance < 5e-3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("model", [b"garbage", b""])
def test_what_is_no_model(model: bytes, precision: str) -> None:
    with pytest.raises(DeviceError, match="damaged or no ONNX model") as caught:
        load_backend(device(precision=precision)).compile(model)
    assert "\n" not in str(caught.value)


def test_a_model_that_it_refuses() -> None:
    with pytest.raises(DeviceError, match="onnxruntime refuses the model: .*Clap") as caught:
        load_backend(device()).compile(reference_onnx().replace(b"Clip", b"Clap"))
    assert "\n" not in str(caught.value)
