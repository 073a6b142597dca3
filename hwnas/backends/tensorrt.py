"""TensorRT, or TensorRT for RTX: engines for this machine's GPU or for GPUs named by compute capability, timed by CUDA events."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from hwnas.device import Device, Precision, require_precision
from hwnas.errors import ConfigError, DeviceError, nearest
from hwnas.feed import Feed, parse, random_feed
from hwnas.feed import shapes as input_shapes
from hwnas.quantize import halve, quantize_randomly

REQUIRES = ("tensorrt_rtx or tensorrt",)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
QUANTISES = ("symmetric",)


class TensorRT:
    """The backend of the devices whose YAML says `backend: tensorrt`.

    `compute_capability` (`[8.9]`) names the GPUs that engines are built for, instead of this machine's. `cache` is the file that
    saves time from one session to the next: TensorRT keeps there what it measured while building, TensorRT for RTX the kernels
    that it compiled while loading. By default it stands in the user's cache folder.

    Raises:
        DeviceError: there is no GPU.
    """

    def __init__(self, device: Device, *, compute_capability: list[float] = [], cache: Path | None = None) -> None:  # noqa: B006
        require_precision(device, PRECISIONS)
        _capabilities(_tensorrt(), compute_capability)
        self._gpu = _gpu()
        self._device, self._compute_capability, self._cache = device, compute_capability, cache

    def fingerprint(self) -> dict[str, str]:
        """Runtime, version and GPU."""
        trt = _tensorrt()
        return {"runtime": trt.__name__, "runtime_version": trt.__version__, **self._gpu}

    def compile(self, model: bytes) -> Engine:
        """An engine of the model on the GPU.

        Raises:
            DeviceError: TensorRT refuses the model.
        """
        engine = build_engine(
            model,
            precision=self._device.precision,
            batch=self._device.batch,
            compute_capability=self._compute_capability,
            cache=self._cache,
        )
        return Engine(engine, random_feed(parse(model), self._device.batch), self._cache)


def build_engine(
    model: bytes,
    *,
    precision: Precision = "fp32",
    batch: int = 1,
    compute_capability: Sequence[float] = (),
    cache: Path | None = None,
) -> bytes:
    """A TensorRT engine of an ONNX model, to be deployed. TensorRT for RTX needs no GPU for it, if GPUs are named (8.9) or any will do.

    The network is strongly typed: an fp16 or int8 engine comes of a model converted to that, whose inputs and outputs stay
    float32. int8 ranges are from random data unless the model is quantised already (symmetrically, as TensorRT wants it).
    fp32 may be computed in TF32, which is TensorRT's default.

    Raises:
        ConfigError: a compute capability that this TensorRT does not know.
        DeviceError: TensorRT refuses the model, or has no GPU to build for.
    """
    trt = _tensorrt()
    named = _capabilities(trt, compute_capability)
    shapes = input_shapes(parse(model), batch)
    if precision == "fp16":
        model = halve(model)
    elif precision == "int8":
        model = quantize_randomly(model, batch, symmetric=True)
    log = _log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError:  # its factory gives a null pointer
        raise DeviceError(f"{trt.__name__} cannot start here: {_said(log) or 'it finds no NVIDIA driver'}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise DeviceError(f"{trt.__name__} refuses the model: {_said(log) or 'it gives no reason'}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    if named:
        config.num_compute_capabilities = len(named)
        for number, capability in enumerate(named):
            config.set_compute_capability(capability, number)
    timings, path = None, _cache_path(trt, cache)
    if not _is_rtx(trt):
        timings = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise DeviceError(f"{trt.__name__} cannot build an engine of the model: {_said(log) or 'it gives no reason'}")
    if timings is not None:
        _keep(path, bytes(timings.serialize()))
    return bytes(engine)


class Engine:
    """An engine on the GPU with random inputs of its own, drawn once; it has run once."""

    def __init__(self, engine: bytes, feed: Feed, cache: Path | None = None) -> None:
        _gpu()
        torch: Any = importlib.import_module("torch")  # its CUDA classes have no types
        trt = _tensorrt()
        self._torch, self._log = torch, _log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        kernels, path = None, _cache_path(trt, cache)
        settings: tuple[Any, ...] = ()
        if self._engine and _is_rtx(trt):
            config = self._engine.create_runtime_config()
            kernels = config.create_runtime_cache()
            if path.is_file():
                kernels.deserialize(path.read_bytes())  # one of another GPU, driver or version is left out
            config.set_runtime_cache(kernels)
            settings = (config,)
        self._context: Any = self._engine and self._engine.create_execution_context(*settings)
        if not self._context:
            raise DeviceError(f"{trt.__name__} cannot load the engine: {_said(self._log) or 'it gives no reason'}")
        self._stream = torch.cuda.Stream()
        self._inputs = {name: torch.from_numpy(values).cuda() for name, values in feed.items()}
        for name, tensor in self._inputs.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        self._outputs = {
            name: torch.empty(tuple(self._context.get_tensor_shape(name)), device="cuda") for name in names if name not in self._inputs
        }
        for name, tensor in (self._inputs | self._outputs).items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()
        self.run()
        if kernels is not None:
            _keep(path, bytes(kernels.serialize()))

    def run(self) -> None:
        """One inference."""
        self._enqueue()
        self._stream.synchronize()

    def time(self, runs: int) -> NDArray[np.int64]:
        """How long each of `runs` inferences in a row took on the GPU, ns, between CUDA events in its stream."""
        events = [tuple(self._torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(runs)]
        for start, end in events:
            start.record(self._stream)
            self._enqueue()
            end.record(self._stream)
        self._stream.synchronize()
        return np.rint(np.array([start.elapsed_time(end) for start, end in events]) * 1e6).astype(np.int64)

    def outputs(self, feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """What the model computes of these inputs."""
        for name, values in feed.items():
            self._inputs[name].copy_(self._torch.from_numpy(values))
        self._torch.cuda.synchronize()
        self.run()
        return [tensor.cpu().numpy() for tensor in self._outputs.values()]

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise DeviceError(f"the engine cannot be run: {_said(self._log) or 'it gives no reason'}")


def _tensorrt() -> Any:
    """TensorRT for RTX where that is installed, else TensorRT."""
    name = "tensorrt_rtx" if importlib.util.find_spec("tensorrt_rtx") else "tensorrt"
    return importlib.import_module(name)


def _is_rtx(trt: Any) -> bool:
    """TensorRT for RTX measures nothing when it builds, and compiles kernels when it loads."""
    return hasattr(trt, "IRuntimeCache")


def _cache_path(trt: Any, given: Path | None) -> Path:
    return given or Path(platformdirs.user_cache_dir("hwnas")) / f"{trt.__name__}-{trt.__version__}.cache"


def _capabilities(trt: Any, wanted: Sequence[float]) -> list[Any]:
    """TensorRT's names of compute capabilities: SM89 is 8.9."""
    if wanted and not hasattr(trt, "ComputeCapability"):
        raise ConfigError(f"{trt.__name__} {trt.__version__} builds for this machine's GPU only; compute_capability needs tensorrt_rtx")
    known = {} if not wanted else {f"{int(c) / 10:.1f}": c for name, c in trt.ComputeCapability.__members__.items() if name[-1:].isdigit()}
    for number in wanted:
        if f"{number:.1f}" not in known or not np.isclose(number, round(number, 1)):
            raise ConfigError(f"{trt.__name__} {trt.__version__} has no compute capability {number:g}; {nearest(f'{number:g}', known)}")
    return [known[f"{number:.1f}"] for number in wanted]


def _log(trt: Any) -> Any:
    """A logger of TensorRT that keeps its errors to itself; `_said` gives the first."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def _said(log: Any) -> str:
    return next((line.strip() for message in log.errors for line in message.splitlines() if line.strip()), "")


def _gpu() -> dict[str, str]:
    """The GPU that engines run on; torch drives it.

    Raises:
        DeviceError: there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(
            f"there is no NVIDIA GPU that torch {torch.__version__} can use, and TensorRT runs on nothing else; "
            "engines for named compute capabilities can be built here, not run"
        )
    major, minor = torch.cuda.get_device_capability()
    return {"gpu": torch.cuda.get_device_name(), "compute_capability": f"{major}.{minor}", "cuda": str(torch.version.cuda)}


def _keep(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError as error:
        raise DeviceError(f"the cache {path} cannot be written: {error.strerror}; name another file in the device's options") from None
