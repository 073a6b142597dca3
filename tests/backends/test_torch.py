"""PyTorch as a runtime: threads, precisions, compiled or not, and what it refuses in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.device import Device, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.op import OpSpec
from hwnas.profile import chains, reference_onnx

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
FEED = {"input": np.random.default_rng(3).standard_normal((1, 24, 16, 16), dtype=np.float32)}


def device(**settings: Any) -> Device:
    return Device(**{"name": "here", "backend": "torch", **settings})


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_those_of_the_device() -> None:
    load_backend(device(threads=2))
    assert torch.get_num_threads() == 2


def test_fingerprint_says_how_it_runs() -> None:
    eager, compiled = (load_backend(device(options={"compiled": compiled})).fingerprint() for compiled in (False, True))
    assert eager == {"runtime": "torch", "runtime_version": torch.__version__, "mode": "eager", "target": "cpu"}
    assert compiled == {**eager, "mode": "compiled"}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_computes_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    executable: Any = load_backend(device(precision=precision)).compile(reference_onnx())
    assert {buffer.dtype for buffer in executable._module.buffers()} == {dtype} == {executable._inputs[0].dtype}
    assert executable.outputs(FEED)[0].dtype == np.float32


def same_compiled(op: OpSpec, model: bytes) -> None:
    """Compiled and eager, the model computes the same."""
    feed = {"input": np.random.default_rng(3).standard_normal((1, op.c_in, op.height, op.width), dtype=np.float32)}
    backends: list[Any] = [load_backend(device(options={"compiled": compiled})) for compiled in (False, True)]
    wanted, found = (backend.compile(model).outputs(feed)[0] for backend in backends)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_compiled_computes_the_same() -> None:
    op = OpSpec("relu", 4, 4, 6, 6)
    same_compiled(op, chains(op)[0])


@pytest.mark.slow
@needs_compiler
def test_compiled_one_model_after_another() -> None:
    """More models than dynamo would compile of one function before it went back to eager."""
    for size in range(4, 4 + torch._dynamo.config.recompile_limit + 2):
        op = OpSpec("mbconv", 8, 8, size, size, kernel=3, hidden=16)
        same_compiled(op, chains(op)[0])


def test_a_model_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no\nfurther")

    monkeypatch.setattr(torch, "compile", lambda module, **options: broken)
    with pytest.raises(DeviceError, match="torch cannot run the model: no$"):
        load_backend(device(options={"compiled": True})).compile(reference_onnx())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_run_on_a_gpu_ends_when_the_gpu_has_finished() -> None:
    executable: Any = load_backend(device(options={"target": "cuda"})).compile(reference_onnx())
    executable.run()
    assert torch.cuda.current_stream().query()
    wanted: Any = load_backend(device()).compile(reference_onnx())
    np.testing.assert_allclose(executable.outputs(FEED)[0], wanted.outputs(FEED)[0], rtol=1e-2, atol=1e-3)


def test_every_run_on_a_gpu_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU to try: a program that believes that it is on one."""
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    executable: Any = load_backend(device()).compile(reference_onnx())
    executable.run()
    assert not waited
    executable._target = torch.device("cuda")
    executable.run()
    executable.run()
    assert waited == [torch.device("cuda")] * 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"precision": "int8"}, "torch of device here runs fp32, fp16, bf16, but its precision is 'int8'"),
        ({"options": {"target": "tpu"}}, "backend 'torch': target: .*'tpu'"),
        ({"options": {"compile": True}}, "no option 'compile'; did you mean 'compiled'"),
    ],
)
def test_a_device_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_backend(device(**settings))


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="finds no CUDA GPU; install its CUDA build and a driver, or set target: cpu"):
        load_backend(device(options={"target": "cuda"}))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"garbage", "damaged or no ONNX model"),
        (reference_onnx().replace(b"Clip", b"Clap"), "no translation of the ONNX operator Clap"),
    ],
)
def test_a_model_that_it_refuses(model: bytes, says: str) -> None:
    with pytest.raises(DeviceError, match=says) as caught:
        load_backend(device()).compile(model)
    assert "\n" not in str(caught.value)
