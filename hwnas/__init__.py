"""hwnas: measure a device, search, and get a Pareto front of trained networks as ONNX inside a latency budget.

The public API, in the order in which data flows (each name is imported when it is first used):

    load_device, load_experiment, load_space     what a device, an experiment, a search space is (`devices/`, `configs/`, `spaces/`)
    DeviceTables, profile_operators, profile_networks    measured operators and networks of a device; `costs(space)` prices everything
    CostTable, CostModel, Calibration            a table; exact and expected cost with its gradient; corrected prices with uncertainty
    load_data, Dataset                           digits, npz, image_folder
    Problem, Searcher, run_search, Run             what is searched for, ask and tell, the loop, its folder
    export_run, front_of, report_run           ONNX per device, the proof, the front as plain data, pictures
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "config": ("Experiment", "load_device", "load_experiment", "tables_root"),
    "op": ("OpSpec",),
    "space": ("SearchSpace", "Site", "Slot", "load_space"),
    "device": ("Device",),
    "table": ("CostTable",),
    "cost": ("CostModel",),
    "calibrate": ("Calibration",),
    "profile": ("DeviceTables", "profile_networks", "profile_operators"),
    "data": ("Dataset", "load_data"),
    "searcher": ("Problem", "Searcher"),
    "run": ("Run",),
    "search": ("run_search",),
    "front": ("export_run", "front_of", "report_run"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_MODULES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hwnas.{_MODULES[name]}"), name)
