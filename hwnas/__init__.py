"""hwnas: measure a device, search, and get a Pareto front of trained networks as ONNX inside a latency budget.

The public API, in the order in which data flows (each name is imported when it is first used):

    load_device, load_experiment, load_space     what a device, an experiment, a search space is (`devices/`, `configs/`, `spaces/`)
    DeviceTables, profile_operators, profile_networks    measured operators and networks of a device; `costs(space)` prices everything
    CostTable, CostModel, Calibration            a table; exact and expected cost with its gradient; corrected prices with uncertainty
    load_data, Dataset                           digits, npz, image_folder
    Problem, Searcher, run_search, Run             what is searched for, ask and tell, the loop, its folder
    export_run, verify_folder, front_of, report_run     ONNX per device, the proof, the front as plain data, pictures
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load_device": "config", "load_experiment": "config", "Experiment": "config", "Device": "device", "load_space": "space",
    "SearchSpace": "space", "Site": "space", "Slot": "space", "OpSpec": "op", "DeviceTables": "profile", "profile_operators": "profile",
    "profile_networks": "profile", "CostTable": "table", "CostModel": "cost", "Calibration": "calibrate", "load_data": "data",
    "Dataset": "data", "Problem": "searcher", "Searcher": "searcher", "run_search": "search", "Run": "run", "export_run": "front",
    "front_of": "front", "report_run": "front", "verify_folder": "verify",
}  # fmt: skip
__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hwnas.{_HOMES[name]}"), name)
