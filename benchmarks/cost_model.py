"""How fast architectures are priced, and what the expected cost takes of a search step; each beside its baseline of the same run.

Prints JSON: `python benchmarks/cost_model.py --repeats 15`. A ratio is taken within each repeat, where both sides have just
been timed; its median is given with the quartiles and extremes over the repeats.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hwnas import resources
from hwnas.cost import CostModel, choice_mask
from hwnas.space import SearchSpace, load_space
from hwnas.supernet import Supernet

STAGES = [{"widths": [16, 24], "depth": 2, "stride": 2}, {"widths": [24, 40], "depth": 3, "stride": 2}]
STEPS: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"channels": 1, "stages": STAGES, "head_width": 128},
    "nasbench201": {"channels": 1, "cells": 1},
}
"""Supernets about as small as the quickstart's: on larger ones the cost takes a smaller share."""

PASSES = 10
"""Evaluations of the expected cost timed together: one is over in a millisecond."""


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, first, median, third, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"median": median, "q1": first, "q3": third, "min": low, "max": high}


def random_prices(space: SearchSpace, rng: np.random.Generator) -> CostModel:
    """A cost model whose prices are as uneven as measured ones."""
    return CostModel(space, {op: float(rng.uniform(0.5, 1.5)) * (1 + resources.macs(op)) for op in space.operators()})


def pricing(repeats: int, rng: np.random.Generator, many: int, few: int) -> dict[str, Any]:
    """Architectures of the default `mobilenet_v2` priced a second: `CostModel.of` on `many` against the baseline on `few`."""
    space = load_space("mobilenet_v2")
    model = random_prices(space, rng)
    prices = dict(zip(model.operators, model.price.tolist(), strict=True))
    archs = torch.as_tensor(np.stack([rng.integers(n, size=many) for n in space.num_choices], 1))
    rows = [tuple(row) for row in archs[:few].tolist()]

    def baseline() -> list[float]:
        return [sum(prices[op] for op in space.lower(row)) for row in rows]

    torch.testing.assert_close(model.of(archs[:few]), torch.tensor(baseline(), dtype=torch.float64))
    times = [(seconds(lambda: model.of(archs)) / many, seconds(baseline) / few) for _ in range(repeats)]
    return {
        "space": space.id,
        "architectures": many,
        "per_second": spread([1 / ours for ours, _ in times]),
        "baseline": "sum of a dict of prices over space.lower(arch)",
        "baseline_per_second": spread([1 / theirs for _, theirs in times]),
        "times_baseline": spread([theirs / ours for ours, theirs in times]),
    }


def expectation(name: str, repeats: int, rng: np.random.Generator, batch: int) -> dict[str, Any]:
    """Expected cost with its gradient, as a share of one pass of the supernet forward and backward on `batch` images."""
    space = load_space(name, STEPS[name])
    model = random_prices(space, rng)
    supernet = Supernet(space, torch.Generator().manual_seed(0)).train()
    images = torch.as_tensor(rng.normal(size=(batch, *space.input_shape)), dtype=torch.float32)
    labels = torch.as_tensor(rng.integers(space.classes, size=batch))
    logits = torch.as_tensor(rng.normal(size=choice_mask(space).shape), dtype=torch.float32).requires_grad_()
    padding = ~choice_mask(space)

    def step() -> None:
        probs = logits.masked_fill(padding, -torch.inf).softmax(-1)
        torch.autograd.backward(functional.cross_entropy(supernet(images, probs), labels))

    def cost() -> None:
        for _ in range(PASSES):
            torch.autograd.backward(model(logits.masked_fill(padding, -torch.inf).softmax(-1)))

    step()
    cost()
    times = [(seconds(cost) / PASSES, seconds(step)) for _ in range(repeats)]
    return {
        "space": space.id,
        "batch": batch,
        "cost_ms": spread([1e3 * ours for ours, _ in times]),
        "baseline": "forward and backward of the supernet under soft probabilities",
        "step_ms": spread([1e3 * theirs for _, theirs in times]),
        "share_of_step": spread([ours / theirs for ours, theirs in times]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="how often each side is timed (default 15)")
    parser.add_argument("--architectures", type=int, default=1_000_000, help="how many are priced at a time (default 1000000)")
    parser.add_argument("--batch", type=int, default=64, help="images in a search step (default 64)")
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results = {
        "machine": machine,
        "repeats": given.repeats,
        "pricing": pricing(given.repeats, rng, given.architectures, min(1000, given.architectures)),
        "expected_cost": {name: expectation(name, given.repeats, rng, given.batch) for name in STEPS},
    }
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
