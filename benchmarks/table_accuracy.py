"""How true tables are: our calibration beside what others do with the same measurements, and on latencies that nobody here measured.

Prints JSON. `python benchmarks/table_accuracy.py --devices cpu-1t openvino-cpu --spaces mobilenet_v2 nasbench201 fbnet` profiles
each device into a folder of its own, calibrates on `--probes` networks, and measures `--networks` random ones that no method
has seen, twice. `--public ../shared/data` compares with least squares on published latencies of whole networks instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from hwnas import resources
from hwnas.calibrate import Accuracy, Calibration, indicators, interval, op_features
from hwnas.config import load_device
from hwnas.cost import CostModel
from hwnas.profile import (
    CHECK_PATIENCE_S,
    NETWORKS,
    REFERENCE_FACT,
    DeviceTables,
    measure_networks,
    profile_networks,
    profile_operators,
    unseen,
)
from hwnas.space import Architecture, SearchSpace, load_space

Floats = NDArray[np.float64]
Archs = Sequence[Architecture]
PUBLIC = {"nasbench201": ("nasbench201_hw.npz", {}), "fbnet": ("fbnet_hw.npz", {"classes": 100})}


def methods(space: SearchSpace, isolated: Floats, probes: Archs, times: Floats) -> dict[str, Callable[[Archs], Floats]]:
    """Every way to predict a network's latency from the same isolated prices and measured networks."""
    counter = CostModel(space, lambda op: 0.0)
    macs = np.array([resources.macs(op) for op in space.operators()])
    features = np.column_stack([isolated, op_features(space.operators())])

    def counts(archs: Archs) -> Floats:
        return counter.counts(archs).numpy()

    def scaled(price: Floats) -> Callable[[Archs], Floats]:
        sums = counts(probes) @ price
        factor = float(np.median(times / sums))
        return lambda archs: counts(archs) @ price * factor

    def linear(rows: Callable[[Archs], Floats]) -> Callable[[Archs], Floats]:
        design = np.column_stack([rows(probes), np.ones(len(times))])
        weights, *_ = np.linalg.lstsq(design / times[:, None], np.ones(len(times)), rcond=None)
        return lambda archs: np.asarray(np.column_stack([rows(archs), np.ones(len(archs))]) @ weights)

    forest = RandomForestRegressor(300, random_state=0).fit(counts(probes) @ features, times)
    ours = Calibration.best(space, isolated, probes, times)
    return {
        "macs_scaled": scaled(macs),
        "sum_of_isolated": lambda archs: counts(archs) @ isolated,
        "scale_and_offset": linear(lambda archs: (counts(archs) @ isolated)[:, None]),
        "random_forest_on_operator_features": lambda archs: np.asarray(forest.predict(counts(archs) @ features)),
        "least_squares_on_indicators": linear(lambda archs: indicators(space, archs)),
        "ours": lambda archs: ours.predict(archs)[0],
    }


def measured(device: str, name: str, probes: int, networks: int, root: Path, seed: int) -> dict[str, Any]:
    """One device and space: profiled, calibrated, and all methods judged by the same unseen networks."""
    space = load_space(name)
    tables = DeviceTables.here(root, load_device(device))
    start = time.monotonic()
    operators = profile_operators(tables, space.operators())
    table = profile_networks(tables, space, probes)
    took = time.monotonic() - start
    isolated = np.array([operators.price(op) for op in space.operators()])
    seen, times = list(table.rows), np.array([row.price for row in table.rows.values()])
    patient = replace(NETWORKS, patience_s=CHECK_PATIENCE_S)
    archs = unseen(tables, space, networks, seed=seed)
    (first, session), (second, again_session) = (measure_networks(tables, space, archs, protocol=patient) for _ in range(2))
    archs = [arch for arch in archs if arch in first and arch in second]
    truth, again = (np.array([rows[arch].price for arch in archs]) for rows in (first, second))
    calibration = tables.calibration(space)
    low, high = interval(*calibration.predict(archs))
    return {
        "device": device,
        "space": name,
        "operators": len(isolated),
        "probes": len(times),
        "networks": len(archs),
        "profile_seconds": round(took, 1),
        "reference_ms": [float(table.facts[REFERENCE_FACT]), session.reference_ms, again_session.reference_ms],
        "steady": [float(table.facts["steady"]), session.steady, again_session.steady],
        "noise_floor": asdict(Accuracy.of(again, truth)),
        "interval_coverage": float(((low <= truth) & (truth <= high)).mean()),
        "corrected": calibration.corrections is not None,
        "methods": {
            method: asdict(Accuracy.of(predict(archs), truth)) for method, predict in methods(space, isolated, seen, times).items()
        },
    }


def published(name: str, data: Path, number: int, seeds: int) -> list[dict[str, Any]]:
    """Every latency column of a published data set: ours and least squares from `number` networks, medians over `seeds` draws."""
    file, options = PUBLIC[name]
    table = np.load(data / file)
    space = load_space(name, options)
    ops = [tuple(row) for row in table["ops"].tolist()]
    valid = np.array([space.is_valid(arch) for arch in ops])
    found = []
    for column, device in enumerate(table["latency_devices"].tolist()):
        times = table["latency_ms"][:, column].astype(np.float64)
        results: dict[str, list[Accuracy]] = {"ours": [], "least_squares": [], "least_squares_relative": []}
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(np.flatnonzero(valid & np.isfinite(times) & (times > 0)))
            train, test = order[:number], order[number : number + 1000]
            seen, others = [ops[i] for i in train], [ops[i] for i in test]
            results["ours"].append(Accuracy.of(Calibration.best(space, None, seen, times[train]).predict(others)[0], times[test]))
            rows, unknown = (np.column_stack([indicators(space, archs), np.ones(len(archs))]) for archs in (seen, others))
            for method, weight in (("least_squares", np.ones(number)), ("least_squares_relative", 1 / times[train])):
                solution, *_ = np.linalg.lstsq(rows * weight[:, None], times[train] * weight, rcond=None)
                results[method].append(Accuracy.of(unknown @ solution, times[test]))
        medians = {
            method: {key: float(np.median([getattr(a, key) for a in values])) for key in asdict(values[0])}
            for method, values in results.items()
        }
        found.append({"space": name, "device": device, "networks": number, "seeds": seeds, "methods": medians})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="*", default=["cpu-1t"])
    parser.add_argument("--spaces", nargs="*", default=["mobilenet_v2", "nasbench201", "fbnet"])
    parser.add_argument("--probes", type=int, default=60)
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--tables", type=Path, default=Path("benchmarks/tables"), help="where profiles are kept")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--public", type=Path, help="the folder of the published data; nothing is measured then")
    parser.add_argument("--public-networks", type=int, nargs="*", default=[60, 900])
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    if asked.public:
        for name in asked.spaces:
            for number in asked.public_networks if name in PUBLIC else ():
                results += published(name, asked.public, number, asked.seeds)
    else:
        for device in asked.devices:
            for name in asked.spaces:
                results.append(measured(device, name, asked.probes, asked.networks, asked.tables, asked.seed))
                sys.stderr.write(json.dumps(results[-1]) + "\n")
    sys.stdout.write(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
