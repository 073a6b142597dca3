"""Is a network for each image worth more than one for all? InstaNAS against fixed policies of the same meta-graph, on digits.

Prints JSON: `python benchmarks/instance_aware.py --seeds 3`. At every checkpoint of one search a seed, with its weights as they are:
error and cost (multiply-adds) on the test part of the instance-wise network, with and without its controller, and of `--fixed` policies,
random ones and those that the controller chose for some image. The fixed ones' front is picked on the test part itself, which favours
them. Hypervolume is counted from error 1 and the cost of all gates open, as a share of that box above the cheapest network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hwnas import plugins, resources
from hwnas.cost import CostModel
from hwnas.data import load_data
from hwnas.evaluate import Objective, SharedWeights
from hwnas.pareto import hypervolume
from hwnas.searcher import Problem
from hwnas.searchers.instanas import InstaNAS
from hwnas.space import load_space
from hwnas.train import TrainSettings

SPACE = {
    "input_size": 8, "channels": 1, "stem_width": 8, "widths": [8, 16], "depths": [2, 2], "strides": [1, 2], "head_width": 32,
    "modules": ["k3e3", "k5e3", "k1e1"], "controller_widths": [4, 8],
}  # fmt: skip
OPTIONS = {"batch_size": 32, "lr": 0.1, "search_lr": 0.05, "controller_lr": 2e-3, "finetune_epochs": 1, "samples": 1}


def one_seed(seed: int, epochs: int, checkpoints: int, fixed: int) -> dict[str, Any]:
    """Points (error, cost) and hypervolumes of one search."""
    space, data = load_space("instance_mobilenet", SPACE), load_data("digits", {"size": 8})
    cost = CostModel(space, resources.macs, metric="macs")
    shared = SharedWeights(space, data, TrainSettings(epochs=1), seed)
    problem = Problem(space, (Objective("error"), Objective("macs")), {"macs": cost}, shared=shared)
    options = {**OPTIONS, "pretrain_epochs": epochs, "epochs": epochs, "epochs_per_ask": epochs // checkpoints}
    searcher: InstaNAS = plugins.build("searchers", "instanas", options, problem, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    points: dict[str, list[list[float]]] = {"instance_wise": [], "with_controller": [], "fixed": []}
    unique = []
    for _ in range(checkpoints):
        searcher.ask(1)
        gates = (searcher.probs(data.test) >= 0.5).long()
        error, mean = 1 - float(searcher.right(data.test, gates).float().mean()), float(cost.of(gates).mean())
        points["instance_wise"].append([error, mean])
        points["with_controller"].append([error, mean + searcher.controller_cost])
        chosen = list(dict.fromkeys(map(tuple, gates.tolist())))
        unique.append(len(chosen))
        for arch in [*chosen[: fixed // 2], *(space.random(rng) for _ in range(fixed - len(chosen[: fixed // 2])))]:
            right = searcher.right(data.test, torch.tensor([arch]).expand(len(data.test), -1))
            points["fixed"].append([1 - float(right.float().mean()), float(cost.of([arch]))])
    low, high = searcher.low, float(cost.of([(1,) * len(space.slots)]))
    scaled = {name: (np.array(found) - [0, low]) / [1, high - low] for name, found in points.items()}
    return {
        "seed": seed, "unique_policies": unique, "hypervolume": {name: hypervolume(found, np.ones(2)) for name, found in scaled.items()},
        "instance_wise": points["instance_wise"], "controller": searcher.controller_cost,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16, help="of each of the first two phases")
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--fixed", type=int, default=24, help="fixed policies for each checkpoint")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = [one_seed(seed, given.epochs, given.checkpoints, given.fixed) for seed in range(given.seeds)]
    names = list(runs[0]["hypervolume"])
    mean = {name: float(np.mean([run["hypervolume"][name] for run in runs])) for name in names}
    print(json.dumps({"mean_hypervolume": mean, "runs": runs}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
