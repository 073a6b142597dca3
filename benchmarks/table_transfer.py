"""How good a device's table is that was learnt from another device's and a few measured operators.

Prints JSON. `python -m benchmarks.table_transfer --devices cpu-1t openvino-cpu torch-cpu --space mobilenet_v2` takes every ordered pair of
devices whose tables `benchmarks/table_accuracy.py` left in `--tables` (operators, networks to calibrate by, networks to judge by): of the
target's operators only `--operators` are shown to `hwnas.transfer`, of its networks only `--networks` to the calibration, everything else
judges. Beside it: the source's prices times one factor, by the same operators; no source and no operators at all; the target's own
table. Nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.table_accuracy import judged
from hwnas.calibrate import Accuracy, Calibration, interval
from hwnas.config import load_device
from hwnas.profile import DeviceTables
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.transfer import LATENCY, Transfer, choose, features

Floats = NDArray[np.float64]
NEGLIGIBLE = 0.01
"""Operators below this share of the median price are not judged: what they cost is noise."""


class Measured:
    """What is known of a device: its operators' prices and errors, networks to calibrate by and to judge by."""

    def __init__(self, tables: DeviceTables, space: SearchSpace, judges: int, seed: int) -> None:
        rows = [tables.operators(LATENCY).rows[op] for op in space.operators()]
        self.prices, self.errors = np.array([row.price for row in rows]), np.array([row.error for row in rows])
        networks = tables.networks(space).rows
        self.archs, self.times = list(networks), np.array([row.price for row in networks.values()])
        first, second = judged(tables, space, judges, seed)
        self.judges: list[Architecture] = [arch for arch in first.rows if arch in second.rows]
        self.truth = np.array([first.rows[arch].price for arch in self.judges])


def transferred(space: SearchSpace, source: Measured, target: Measured, operators: int, networks: int) -> dict[str, Any]:
    """The errors of one pair: on operators, and on networks after calibration by `networks` of them."""
    rows = features(space.operators(), source.prices)
    seen = choose(rows, operators)
    model = Transfer(rows, source.prices, {i: (target.prices[i], target.errors[i]) for i in seen})
    mean, error = model.predict()
    factor = float(np.median(target.prices[seen] / np.maximum(source.prices[seen], 1e-12)))
    worth = target.prices > NEGLIGIBLE * np.median(target.prices)
    worth[seen] = False
    low, high = interval(mean, error)
    mean[seen] = target.prices[seen]
    one = source.prices * factor
    one[seen] = target.prices[seen]
    isolated = {"ours": mean, "one_factor": one, "paper_only": None, "own_table": target.prices}
    return {
        "operators": {
            "measured": len(seen),
            "judged": int(worth.sum()),
            "left_out": asdict(model.left_out),
            "ours": asdict(Accuracy.of(mean[worth], target.prices[worth])),
            "one_factor": asdict(Accuracy.of(one[worth], target.prices[worth])),
            "ours_of_total": float(np.abs(mean - target.prices)[worth].sum() / target.prices[worth].sum()),
            "one_factor_of_total": float(np.abs(one - target.prices)[worth].sum() / target.prices[worth].sum()),
            "interval_coverage": float(((low <= target.prices) & (target.prices <= high))[worth].mean()),
        },
        "networks": {
            "measured": networks,
            "judged": len(target.judges),
            **{name: _judged(space, prices, target, networks) for name, prices in isolated.items()},
            f"own_table_{len(target.times)}_networks": _judged(space, target.prices, target, len(target.times)),
        },
    }


def _judged(space: SearchSpace, isolated: Floats | None, target: Measured, networks: int) -> dict[str, float]:
    calibration = Calibration.best(space, isolated, target.archs[:networks], target.times[:networks])
    return asdict(Accuracy.of(calibration.predict(target.judges)[0], target.truth))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares every ordered pair of the devices and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="+", required=True)
    parser.add_argument("--space", default="mobilenet_v2")
    parser.add_argument("--operators", type=int, default=20)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--judges", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tables", type=Path, default=Path("benchmarks/tables"))
    asked = parser.parse_args(arguments)
    space = load_space(asked.space)
    known = {name: Measured(DeviceTables.here(asked.tables, load_device(name)), space, asked.judges, asked.seed) for name in asked.devices}
    results = [
        {"space": asked.space, "source": source, "target": target}
        | transferred(space, known[source], known[target], asked.operators, asked.networks)
        for source, target in permutations(asked.devices, 2)
    ]
    sys.stdout.write(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
