"""OpenVINO on the CPU: fp32, bf16 and int8, one stream, tuned for latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.device import Device, Precision, require_precision
from hwnas.errors import DeviceError
from hwnas.feed import Feed, first_line, parse, random_feed
from hwnas.quantize import quantize_randomly

if TYPE_CHECKING:
    import openvino as ov

REQUIRES = ("openvino", "onnx", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
QUANTISES = ("asymmetric",)
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""In which type OpenVINO computes what is not quantised; left to itself it takes bf16 where the processor has it."""


class Request:
    """A compiled model with one request and random inputs of its own, drawn once."""

    def __init__(self, compiled: ov.CompiledModel, feed: Feed) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._request.infer(feed)  # its tensors keep these inputs

    def run(self) -> None:
        """One inference."""
        self._request.infer(share_outputs=True)

    def outputs(self, feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """What the model computes of these inputs."""
        return list(self._compiled(dict(feed)).values())


class OpenVINO:
    """The backend of the devices whose YAML says `backend: openvino`."""

    def __init__(self, device: Device) -> None:
        import openvino as ov

        require_precision(device, PRECISIONS)
        self._ov = ov
        self._core = ov.Core()
        self._device = device
        if device.precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError("this processor has no bf16 instructions, so OpenVINO would compute in fp32; choose precision fp32 or int8")

    def fingerprint(self) -> dict[str, str]:
        """Runtime and version; who quantised, where that was asked for."""
        found = {"runtime": "openvino", "runtime_version": str(self._ov.__version__)}
        if self._device.precision == "int8":
            import onnxruntime

            found["quantizer"] = f"onnxruntime {onnxruntime.__version__}"
        return found

    def settings(self) -> dict[str, str | int | bool]:
        """How models are compiled: the precision, threads and streams that the device says, and no second thread on a core."""
        return {
            "INFERENCE_PRECISION_HINT": HINTS[self._device.precision],
            "INFERENCE_NUM_THREADS": self._device.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_HYPER_THREADING": False,
        }

    def compile(self, model: bytes) -> Request:
        """A compiled model with static shapes.

        Raises:
            DeviceError: the runtime refuses the model, or has fewer cores than the device has threads.
        """
        feed = random_feed(parse(model), self._device.batch)
        if self._device.precision == "int8":
            model = quantize_randomly(model, self._device.batch)
        try:
            read = self._core.read_model(model)
            read.reshape({name: list(values.shape) for name, values in feed.items()})
            compiled = self._core.compile_model(read, "CPU", self.settings())
            threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
            request = Request(compiled, feed)
        except RuntimeError as error:
            raise DeviceError(f"openvino refuses the model: {_reason(error)}") from None
        if threads != self._device.threads:
            raise DeviceError(f"OpenVINO has {threads} cores to use here, one a thread, but threads is {self._device.threads}; lower it")
        return request


def _reason(error: RuntimeError) -> str:
    """OpenVINO's complaint in one line: what it says of operators that it lacks, else the first line that is not about its source."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    return next((line for line in told if line.startswith("No conversion rule")), told[0] if told else first_line(error))
