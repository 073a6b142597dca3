"""How true tables are: our calibration beside what others do with the same measurements, and on latencies that nobody here measured.

Prints JSON. `python benchmarks/table_accuracy.py --devices cpu-1t openvino-cpu --spaces mobilenet_v2 nasbench201 fbnet` profiles
each device into a folder of its own, calibrates on `--probes` networks, and measures `--networks` random ones that no method
has seen, twice. What was measured stays in `--tables`: the same command again measures only what is not there yet, so a killed run
goes on and another calibration is judged by the same measurements (delete the folder to measure anew).
`--public ../shared/data` compares with least squares on published latencies of whole networks instead.
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
from hwnas.table import NetworkTable

Floats = NDArray[np.float64]
Archs = Sequence[Architecture]
PROFILE_FACT = "profile seconds"
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


def judged(tables: DeviceTables, space: SearchSpace, networks: int, seed: int) -> tuple[NetworkTable, NetworkTable]:
    """Random networks that calibration has not seen, measured in two sessions one after the other, or as they were measured before."""
    folder = tables.folder / "judges"
    paths = [folder / f"{space.id}-seed{seed}-n{networks}-session{session}.csv" for session in (1, 2)]
    found = [NetworkTable.load(path) for path in paths if path.exists()]
    archs = list(found[0].rows) if found else unseen(tables, space, networks, seed=seed)
    patient = replace(NETWORKS, patience_s=CHECK_PATIENCE_S)
    for path in paths[len(found) :]:
        journal = path.with_suffix(".journal")
        rows, session = measure_networks(tables, space, archs, protocol=patient, journal=journal)
        facts = {REFERENCE_FACT: f"{session.reference_ms:.6g}", "steady": f"{session.steady:.3f}"}
        NetworkTable(tables.device.name, space.id, tables.fingerprint, rows, facts).save(path)
        found.append(NetworkTable.load(path))
        journal.unlink()
    return found[0], found[1]


def measured(device: str, name: str, probes: int, networks: int, root: Path, seed: int) -> dict[str, Any]:
    """One device and space: profiled, calibrated, and all methods judged by the same unseen networks."""
    space = load_space(name)
    tables = DeviceTables.here(root, load_device(device))
    start = time.monotonic()
    profile_operators(tables, space.operators())
    table = profile_networks(tables, space, probes)
    took = time.monotonic() - start
    if PROFILE_FACT not in table.facts:
        table.facts[PROFILE_FACT] = f"{took:.1f}"
        table.save(tables.networks_path(space))
    operators, table = tables.operators("latency_ms"), tables.networks(space)
    isolated = np.array([operators.price(op) for op in space.operators()])
    seen, times = list(table.rows), np.array([row.price for row in table.rows.values()])
    sessions = judged(tables, space, networks, seed)
    archs = [arch for arch in sessions[0].rows if arch in sessions[1].rows]
    truth, again = (np.array([session.rows[arch].price for arch in archs]) for session in sessions)
    calibration = tables.calibration(space)
    low, high = interval(*calibration.predict(archs))
    return {
        "device": device,
        "space": name,
        "operators": len(isolated),
        "probes": len(times),
        "networks": len(archs),
        "profile_seconds": float(table.facts[PROFILE_FACT]),
        "reference_ms": [float(one.facts[REFERENCE_FACT]) for one in (table, *sessions)],
        "steady": [float(one.facts["steady"]) for one in (table, *sessions)],
        "noise_floor": asdict(Accuracy.of(again, truth)),
        "interval_coverage": float(((low <= truth) & (truth <= high)).mean()),
        "beside_prices": list(calibration.kept),
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
