"""Every system end to end on real training, random sampling with the same budget beside it: searched, trained, exported, verified.

Prints JSON: `python benchmarks/real_training.py --data digits cifar10 text --seeds 2`. A system searches a small version of its space for
`--trials` networks; random sampling asks for as many in the same space, scored in the same way (where the system trains a supernet, by
one that is trained for as many epochs). The front's members are trained from scratch, exported, measured and verified on
`--device`. Objectives are the error and multiply-adds (of text the loss and latency: there all cells have as many). `volume` is the
hypervolume of the members, test part, as a share of the box between the cheapest and the costliest network, perfect and chance;
`searched` is that of the trials, validation part, by which systems with different scores cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.config import Experiment, parse
from hwnas.front import export_run, front_of
from hwnas.pareto import hypervolume
from hwnas.profile import DeviceTables, profile_networks, profile_operators
from hwnas.run import Run
from hwnas.search import assemble, run_search
from hwnas.searcher import Problem
from hwnas.verify import verify

SHARED = Path(__file__).parents[2] / "shared" / "data"
SIZE = 16
SUPERNET = {"epochs": 12, "batch_size": 32, "lr": 0.1}
"""How supernets are trained, by systems and by the evaluator that random sampling gets beside them."""
SHORT = {"name": "short", "epochs": 3, "batch_size": 32, "lr": 0.1}
ONE_SHOT = {"name": "shared", **SUPERNET}
STEPS = {**SUPERNET, "epochs_per_ask": 6}

Setting = tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]
"""Space, evaluator, and the systems by name."""
IMAGES: dict[str, Setting] = {
    "nasbench201": (
        {"width": 8, "cells": 1},
        SHORT,
        {
            "prospector": {}, "nsga2": {"population": 8}, "nsga3": {"population": 8}, "optuna": {"sampler": "tpe"},
            "regularized_evolution": {"population": 8, "sample": 3},
        },
    ),
    "alexnet": ({"filters": [4, 8, 16], "kernels": [3, 5, 7], "linear_width": 64}, SHORT, {"monas": {}}),
    "condensenet": ({"stages": [1, 2, 3], "growths": [4, 8]}, SHORT, {"monas": {}}),
    "dense_cell": ({"depths": [1, 1, 1], "growths": [4, 8, 8]}, SHORT, {"dpp_net": {"keep": 4}}),
    "darts": (
        {"width": 4, "cells": 3, "nodes": 2},
        ONE_SHOT,
        {
            "snas": {**STEPS, "etas": [0.0, 0.3, 1.0], "samples": 8},
            "parsec": {**STEPS, "etas": [0.0, 0.3, 1.0], "samples": 8, "draws": 4, "warmup": 2},
        },
    ),
    "enas_micro": (
        {"width": 4, "nodes": 2, "cells": 1},
        ONE_SHOT,
        {
            "enas": {**STEPS, "controller_steps": 10, "memory_buffer": True},
            "nao": {"initial": 8, "new": 4, "seeds": 8},
        },
    ),
    "instance_mobilenet": (
        {"stem_width": 8, "widths": [8, 16], "depths": [2, 1], "strides": [1, 2], "head_width": 32, "modules": ["k3e3", "k5e2", "basic"],
         "controller_widths": [4, 8]},
        ONE_SHOT,
        {
            "instanas": {"pretrain_epochs": 8, "epochs": 4, "epochs_per_ask": 2, "finetune_epochs": 1, "samples": 4, "batch_size": 32,
                         "lr": 0.1, "search_lr": 0.05, "controller_lr": 0.002},
        },
    ),
}  # fmt: skip
TEXT: dict[str, Setting] = {
    "rnn_cell": (
        {"nodes": 4, "hidden": 48, "vocabulary": 500, "steps": 8, "tied": True},
        {"name": "shared", "epochs": 6, "lr": 1.0, "clip_norm": 0.25, "weight_decay": 1e-5},
        {
            "enas": {"epochs": 6, "epochs_per_ask": 3, "lr": 1.0, "controller_steps": 10, "weight_decay": 1e-5, "memory_buffer": True},
            "nao": {"initial": 8, "new": 4, "seeds": 8},
        },
    )
}
FINAL = {"epochs": 8, "batch_size": 32, "lr": 0.1}
FINAL_TEXT = {"epochs": 6, "lr": 1.0, "clip_norm": 0.25, "weight_decay": 1e-5}


def settings(data: str) -> dict[str, Setting]:
    """The spaces that a data set is for, with their systems."""
    return TEXT if data == "text" else IMAGES


def experiment(data: str, space: str, system: str, *, folder: Path = SHARED, device: str = "cpu-1t", **changes: Any) -> Experiment:
    """The experiment of a system of that space, or of `random` beside it."""
    options, evaluator, systems = settings(data)[space]
    sources: dict[str, dict[str, Any]] = {
        "digits": {"name": "digits", "size": SIZE},
        "cifar10": {"name": "npz", "train": str(folder / "cifar10" / "cifar10_mini.npz"), "size": SIZE},
        "text": {
            "name": "text", "train": str(folder / "text" / "wikitext2_valid.txt"), "valid": str(folder / "text" / "wikitext2_test.txt"),
            "vocabulary": 500, "steps": 8, "limit": 3000,
        },
    }  # fmt: skip
    reads = {} if data == "text" else {"input_size": SIZE, "channels": 1 if data == "digits" else 3}
    given = {
        "name": f"{data}-{space}-{system}", "device": device, "data": sources[data], "space": {"name": space, **options, **reads},
        "objectives": ["loss", "latency_ms"] if data == "text" else ["error", "macs"],
        "searcher": {"name": system, **systems.get(system, {})}, "evaluator": evaluator, "batch": 5,
        "final": {"members": 3, "training": FINAL_TEXT if data == "text" else FINAL},
    }  # fmt: skip
    return parse(Experiment, {**given, **changes}, "benchmark")


def scaled_volume(points: Sequence[Sequence[float]], ideal: Sequence[float], nadir: Sequence[float]) -> float:
    """Hypervolume of points as a share of the box between `ideal` and `nadir`."""
    low, high = np.array(ideal, dtype=np.float64), np.array(nadir, dtype=np.float64)
    return hypervolume((np.array(points, dtype=np.float64) - low) / (high - low), np.ones(len(low)))


def tested(values: dict[str, float], measured: str) -> float:
    """Error, or of a text the loss, on the test part."""
    return math.log(values["test_perplexity"]) if measured == "loss" else 1 - values["test_accuracy"]


def one(given: Experiment, folder: Path, tables: Path) -> dict[str, Any]:
    """Searches, trains, exports and verifies; what came of it."""
    start = time.perf_counter()
    run: Run = run_search(given, folder, tables=tables)
    seconds = time.perf_counter() - start
    assembly = assemble(given, tables)
    measured, cost = given.objectives
    problem = Problem(assembly.space, assembly.objectives, assembly.costs)
    ends = assembly.costs[cost].of([assembly.costs[cost].cheapest(), problem.costliest(cost)]).tolist()
    worst = math.log(assembly.space.classes) if measured == "loss" else 1 - 1 / assembly.space.classes
    ideal, nadir = [0.0, ends[0] - 1e-9 * ends[1]], [worst, ends[1]]
    reports = verify(export_run(run, tables=tables))
    members = front_of(run)["members"]
    trials = run.trials(assembly.space)
    points = [[tested(member["values"], measured), member["predicted"][cost]["mean"]] for member in members]
    return {
        "system": given.searcher.name,
        "seed": given.seed,
        "trials": len(trials),
        "members": len(members),
        "volume": scaled_volume(points, ideal, nadir),
        "searched": scaled_volume([trial.vector(assembly.objectives) for trial in trials], ideal, nadir),
        f"best test {measured}": min(point[0] for point in points),
        "verified": all(report.passed for report in reports),
        "failed checks": sorted({check.name for report in reports for check in report.checks if check.status == "failed"}),
        "seconds": seconds,
    }


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By system: median and range over the seeds, and the ratio of its volume to that of random sampling, seed by seed."""
    random = {one["seed"]: one["volume"] for one in found if one["system"] == "random"}
    out: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(one["system"] for one in found):
        mine = [one for one in found if one["system"] == system]
        best = next(key for key in mine[0] if key.startswith("best"))
        ratios = [one["volume"] / random[one["seed"]] for one in mine if random.get(one["seed"])]
        numbers = {
            "volume": [one["volume"] for one in mine],
            best: [one[best] for one in mine],
            "of random's": ratios,
            "seconds": [one["seconds"] for one in mine],
        }
        out[system] = {
            name: [round(float(f(values)), 4) for f in (np.median, np.min, np.max)] for name, values in numbers.items() if values
        }
        out[system]["verified"] = all(one["verified"] for one in mine)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", choices=("digits", "cifar10", "text"), default=["digits"])
    parser.add_argument("--spaces", nargs="+", choices=(*IMAGES, *TEXT), help="[default: all that the data are for]")
    parser.add_argument("--folder", type=Path, default=SHARED, help="where cifar10 and text lie")
    parser.add_argument("--device", default="cpu-1t")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args(arguments)
    report: dict[str, Any] = {"trials": given.trials, "seeds": given.seeds, "device": given.device, "found": {}, "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        for data in given.data:
            for space in settings(data):
                if given.spaces and space not in given.spaces:
                    continue
                found = []
                tables = Path(scratch) / f"{data}-{space}"
                for system in ("random", *settings(data)[space][2]):
                    for seed in range(given.seeds):
                        chosen = experiment(data, space, system, folder=given.folder, device=given.device, seed=seed, trials=given.trials)
                        if not tables.exists():
                            profile(chosen, tables)
                        found.append(one(chosen, tables / f"{system}-{seed}", tables / "tables"))
                        print(f"{data} {space}", json.dumps(found[-1]), file=sys.stderr, flush=True)
                report["found"][f"{data} {space}"] = summary(found)
                report["runs"] += [{"data": data, "space": space, **one} for one in found]
    print(json.dumps(report, indent=1))


def profile(given: Experiment, folder: Path, probes: int = 16) -> None:
    """Measures the space on the device, into `folder`/tables."""
    space = given.load_space()
    tables = DeviceTables.here(folder / "tables", given.load_device())
    profile_operators(tables, space.operators())
    profile_networks(tables, space, probes)


if __name__ == "__main__":
    main()
