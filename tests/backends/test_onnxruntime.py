"""ONNX Runtime: what it runs, and what it refuses in one sentence."""

from __future__ import annotations

import pytest

from hwnas.device import Backend, Device, Executable, load_backend
from hwnas.errors import DeviceError
from hwnas.profile import reference_onnx


def test_runs_a_model() -> None:
    backend = load_backend(Device(backend="onnxruntime"))
    assert isinstance(backend, Backend)
    session = backend.compile(reference_onnx())
    assert isinstance(session, Executable)
    session.run()
    assert backend.fingerprint().keys() == {"runtime", "runtime_version", "provider"}


def test_threads_are_those_of_the_device() -> None:
    options = load_backend(Device(backend="onnxruntime", threads=2)).options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_an_unknown_provider() -> None:
    with pytest.raises(DeviceError, match="did you mean 'CPUExecutionProvider'"):
        load_backend(Device(backend="onnxruntime", options={"provider": "CPUExecutionProvidr"}))


@pytest.mark.parametrize("model", [b"garbage", b""])
def test_a_model_that_it_refuses(model: bytes) -> None:
    with pytest.raises(DeviceError, match="onnxruntime refuses the model: ") as caught:
        load_backend(Device(backend="onnxruntime")).compile(model)
    assert "\n" not in str(caught.value)
