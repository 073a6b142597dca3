"""A state on disk: named tensors and JSON metadata in one safetensors file that is either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hwnas.errors import RunError

METADATA_KEY = "hwnas"  # safetensors keeps strings only: ours is one JSON text under this name


def save_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replaces `path` in one step by a file of `tensors` (copied to the CPU; shared memory is allowed) and `metadata`.

    Killed at any moment, the file is the old one or the new one. Missing folders are made. The metadata must be JSON
    (tuples come back as lists, keys as strings).

    Raises:
        RunError: the file cannot be written.
    """
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(copies, {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)})
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; free or choose another place") from None
    finally:
        partial.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote: the tensors, on the CPU, and the metadata.

    Raises:
        RunError: the file is missing, truncated or of another program.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise RunError(f"there is no checkpoint {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{path} must be a whole checkpoint, but it is truncated or no safetensors file ({error}); "
            "delete it to start again from nothing"
        ) from None
    try:
        metadata = json.loads(written or "")
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict):
        raise RunError(f"{path} is a safetensors file that hwnas did not write; choose another place for the checkpoint")
    return tensors, metadata


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors saved under `name.`, without that."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of its parameters, under `name.<parameter>.<entry>`."""
    states = optimizer.state_dict()["state"].items()
    return {f"{name}.{i}.{entry}": value for i, state in states for entry, value in state.items() if isinstance(value, Tensor)}


def load_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, into a fresh optimiser of the same parameters; others may be among the tensors."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in part(tensors, name).items():
        parameter, entry = key.split(".")
        states.setdefault(int(parameter), {})[entry] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, state in optimizer.state.items():  # lying in memory as the weight does, or sums round otherwise
        for entry, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[entry] = torch.empty_like(weight).copy_(value)
