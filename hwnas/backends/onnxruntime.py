"""ONNX Runtime: any execution provider, fp32, fp16 and int8; one session a model."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.device import Device, Precision, require_precision
from hwnas.errors import ConfigError, DeviceError, nearest
from hwnas.feed import Feed, first_line, parse, random_feed
from hwnas.quantize import halve, quantize_randomly

if TYPE_CHECKING:
    import onnxruntime as ort

REQUIRES = ("onnxruntime", "onnx")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
QUANTISES = ("asymmetric",)
CPU = "CPUExecutionProvider"
SOURCES = {
    "CUDAExecutionProvider": "pip install onnxruntime-gpu",
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu tensorrt",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino",
    "DmlExecutionProvider": "pip install onnxruntime-directml (Windows)",
    "QNNExecutionProvider": "pip install onnxruntime-qnn",
    "MIGraphXExecutionProvider": "pip install onnxruntime-migraphx",
    "CoreMLExecutionProvider": "use onnxruntime on macOS",
    "XnnpackExecutionProvider": "build onnxruntime with --use_xnnpack",
}
"""How one comes by a build that has the provider; each takes the place of the package `onnxruntime`."""


class Session:
    """A session with random inputs of its own, drawn once."""

    def __init__(self, session: ort.InferenceSession, feed: Feed) -> None:
        self._session = session
        self._feed = feed

    def run(self) -> None:
        """One inference."""
        self._session.run(None, self._feed)

    def outputs(self, feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """What the model computes of these inputs."""
        found: list[NDArray[np.float32]] = self._session.run(None, dict(feed))
        return found


class ONNXRuntime:
    """The backend of the devices whose YAML says `backend: onnxruntime`."""

    def __init__(
        self, device: Device, *,
        provider: str = CPU,
        provider_options: dict[str, str | int | float | bool] = {},  # noqa: B006
        optimization: Literal["none", "basic", "extended", "layout", "all"] = "all",
        allow_fallback: bool = False,
    ) -> None:  # fmt: skip
        import onnxruntime as ort

        require_precision(device, PRECISIONS)
        self._ort = ort
        self._device = device
        self._provider = provider
        self._provider_options = provider_options
        self._optimization = "DISABLE_ALL" if optimization == "none" else f"ENABLE_{optimization.upper()}"
        self._allow_fallback = allow_fallback
        if provider not in ort.get_all_providers():
            raise DeviceError(f"onnxruntime knows no execution provider {provider!r}; {nearest(provider, ort.get_all_providers())}")
        if provider not in ort.get_available_providers():
            get = SOURCES.get(provider, "see onnxruntime.ai/docs/execution-providers")
            has = ", ".join(ort.get_available_providers())
            raise DeviceError(f"this build of onnxruntime has no {provider} (it has {has}); to get one that has: {get}")
        if provider == CPU and provider_options:
            raise ConfigError(f"{CPU} has no options, but provider_options has {', '.join(provider_options)}; take them out")
        if provider == CPU and device.precision == "fp16" and platform.machine() in ("x86_64", "AMD64"):
            raise ConfigError(f"on x86 the {CPU} of onnxruntime computes fp16 models in fp32; choose precision fp32 or int8")

    def fingerprint(self) -> dict[str, str]:
        """Runtime, version and execution provider."""
        return {"runtime": "onnxruntime", "runtime_version": self._ort.__version__, "provider": self._provider}

    def options(self) -> ort.SessionOptions:
        """Sequential execution; threads do not spin on between runs, where they would disturb the next session's."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._device.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(self._ort.GraphOptimizationLevel, f"ORT_{self._optimization}")
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._provider != CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def compile(self, model: bytes) -> Session:
        """A session of the model, converted to the device's precision.

        Raises:
            DeviceError: the runtime refuses the model, or the provider leaves nodes of it to the CPU.
        """
        feed = random_feed(parse(model), self._device.batch)
        if self._device.precision == "int8":
            model = quantize_randomly(model, self._device.batch)
        elif self._device.precision == "fp16":
            model = halve(model)
        provider: Any = (self._provider, {key: str(value) for key, value in self._provider_options.items()})
        try:
            session = self._ort.InferenceSession(model, self.options(), providers=[provider], enable_fallback=0)
        except Exception as error:  # onnxruntime's own exceptions share no narrower base
            raise DeviceError(f"onnxruntime refuses the model: {first_line(error)}") from None
        if self._provider != CPU and not self._allow_fallback:
            self._require_provider(session)
        return Session(session, feed)

    def _require_provider(self, session: ort.InferenceSession) -> None:
        groups = [(group.ep_name, [node.op_type for node in group.get_nodes()]) for group in session.get_provider_graph_assignment_info()]
        left = Counter(kind for name, kinds in groups if name != self._provider for kind in kinds)
        if left:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
            raise DeviceError(
                f"{self._provider} leaves {left.total()} of {sum(len(nodes) for _, nodes in groups)} nodes to the CPU ({kinds}); "
                "choose a provider that runs them, or accept that with `options: {allow_fallback: true}`"
            )
