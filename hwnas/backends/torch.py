"""PyTorch, eager or compiled, on the CPU or a CUDA GPU: fp32, fp16 and bf16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hwnas.device import Device, Precision, require_precision
from hwnas.errors import DeviceError
from hwnas.feed import first_line, parse, random_feed
from hwnas.onnx_torch import to_torch

REQUIRES = ("torch", "onnx")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Program:
    """A module with random inputs of its own, drawn once; a run ends when a GPU has finished it."""

    def __init__(self, module: Any, inputs: Mapping[str, NDArray[np.float32]], target: torch.device, dtype: torch.dtype) -> None:
        self._module, self._target, self._dtype = module, target, dtype
        self._names = list(inputs)
        self._inputs = self._moved(inputs)

    def _moved(self, feed: Mapping[str, NDArray[np.float32]]) -> list[torch.Tensor]:
        return [torch.from_numpy(feed[name]).to(self._target, self._dtype) for name in self._names]

    def run(self) -> None:
        """One inference."""
        with torch.inference_mode():
            self._module(*self._inputs)
        if self._target.type == "cuda":
            torch.cuda.synchronize(self._target)

    def outputs(self, feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """What the model computes of these inputs."""
        with torch.inference_mode():
            return [value.float().cpu().numpy() for value in self._module(*self._moved(feed))]


class Torch:
    """The backend of the devices whose YAML says `backend: torch`."""

    def __init__(self, device: Device, *, target: Literal["cpu", "cuda"] = "cpu", compiled: bool = False) -> None:
        require_precision(device, PRECISIONS)
        if target == "cuda" and not torch.cuda.is_available():
            raise DeviceError(f"torch {torch.__version__} finds no CUDA GPU; install its CUDA build and a driver, or set target: cpu")
        self._device = device
        self._target = torch.device(target)
        self._compiled = compiled
        torch.set_num_threads(device.threads)

    def fingerprint(self) -> dict[str, str]:
        """Runtime and version, how it runs, and on which GPU."""
        where = torch.cuda.get_device_name(self._target) if self._target.type == "cuda" else "cpu"
        mode = "compiled" if self._compiled else "eager"
        return {"runtime": "torch", "runtime_version": torch.__version__, "mode": mode, "target": where}

    def compile(self, model: bytes) -> Program:
        """The model as a torch module, compiled where the device says so.

        Raises:
            DeviceError: there is no translation of one of its operators, or torch cannot run or compile it.
        """
        inputs = random_feed(parse(model), self._device.batch)
        dtype = TYPES[self._device.precision]
        module = to_torch(model).to(self._target, dtype).eval()
        runs: Any = torch.compile(module, fullgraph=True, dynamic=False) if self._compiled else module
        program = Program(runs, inputs, self._target, dtype)
        try:
            program.run()
        except RuntimeError as error:
            raise DeviceError(f"torch cannot run the model: {first_line(error)}") from None
        return program
