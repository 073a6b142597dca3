"""ONNX Runtime on the CPU: one session a model, `threads` threads, all graph optimisations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.device import Device, require_precision
from hwnas.errors import DeviceError, nearest

if TYPE_CHECKING:
    import onnxruntime as ort

REQUIRES = ("onnxruntime",)


class Session:
    """A session with random inputs of its own, drawn once."""

    def __init__(self, session: ort.InferenceSession, batch: int) -> None:
        self._session = session
        rng = np.random.default_rng(0)
        self._feed: dict[str, Any] = {
            tensor.name: rng.standard_normal([size if isinstance(size, int) else batch for size in tensor.shape], dtype=np.float32)
            for tensor in session.get_inputs()
        }

    def run(self) -> None:
        """One inference."""
        self._session.run(None, self._feed)


class ONNXRuntime:
    """The backend of the devices whose YAML says `backend: onnxruntime`."""

    def __init__(self, device: Device, *, provider: str = "CPUExecutionProvider") -> None:
        import onnxruntime as ort

        require_precision(device, ("fp32",))
        self._ort = ort
        self._device = device
        self._provider = provider
        if provider not in ort.get_available_providers():
            raise DeviceError(
                f"this build of onnxruntime has no {provider!r}; {nearest(provider, ort.get_available_providers())}; "
                "install the build that has it (e.g. onnxruntime-gpu, onnxruntime-openvino)"
            )

    def fingerprint(self) -> dict[str, str]:
        """Runtime, version and execution provider."""
        return {"runtime": "onnxruntime", "runtime_version": self._ort.__version__, "provider": self._provider}

    def options(self) -> ort.SessionOptions:
        """Sequential execution; threads do not spin on between runs, where they would disturb the next session's."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._device.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def compile(self, model: bytes) -> Session:
        """A session of the model.

        Raises:
            DeviceError: the runtime refuses the model.
        """
        try:
            session = self._ort.InferenceSession(model, self.options(), providers=[self._provider])
        except Exception as error:  # onnxruntime's own exceptions share no narrower base
            raise DeviceError(f"onnxruntime refuses the model: {str(error).splitlines()[0]}") from None
        return Session(session, self._device.batch)
