"""Searchers on tabulated networks: the share of the true front's hypervolume after 25 to 400 evaluations, beside library peers.

Prints JSON: `python benchmarks/pareto.py --seeds 20 --jobs 2`. A task is the tabulated test error of the 15,284 NAS-Bench-201
cells that have a path, and one device's latency; one more is error, gold_6226's latency and eyeriss's energy. Each objective
is scaled by the true front's ideal and nadir, and the reference point is 1.1. `hv` is over the whole front, `tight` over the
box of its members within 10 points of the best error. Searchers of hwnas know latency and energy beforehand; `NAME:hidden` has to
measure them as it does the error. Peers are told nothing beforehand and count each cell once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: a run is one core's work

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from hwnas import plugins
from hwnas.cost import Cost, TabularCost
from hwnas.evaluate import Objective, Trial
from hwnas.pareto import hypervolume, nondominated
from hwnas.searcher import Problem
from hwnas.space import Architecture, SearchSpace, load_space

Floats = NDArray[np.float64]

DATA = Path(__file__).parents[2] / "shared" / "data" / "nasbench201_hw.npz"
TUNED = ("1080ti_1", "2080ti_32", "pixel3", "eyeriss")
"""The devices that Prospector's options were chosen on; the others were looked at when that was done."""
THREE = "gold_6226+energy"
POINTS = (25, 50, 100, 200, 400)
TIGHT = 10.0
REFERENCE = 1.1
OURS = ["prospector", "prospector:hidden", "random"]


@dataclass(frozen=True)
class Task:
    """Tabulated objectives (cell, objective) of the cells that have a path, all to be minimised, the error (%) first."""

    name: str
    space: SearchSpace
    archs: list[Architecture]
    names: tuple[str, ...]
    values: Floats

    @property
    def front(self) -> Floats:
        return self.values[nondominated(self.values)]

    @property
    def tight_front(self) -> Floats:
        front = self.front
        tight: Floats = front[front[:, 0] <= front[:, 0].min() + TIGHT]
        return tight


@cache
def load_task(file: str, name: str, accuracy: str) -> Task:
    """The task of that device."""
    space = load_space("nasbench201", {"cells": 1, "width": 4, "input_size": 8})  # the same choices, a small network to walk
    with np.load(file) as arrays:
        archs = [tuple(int(choice) for choice in row) for row in arrays["ops"]]
        valid = np.array([bool(space.alive(arch)) for arch in archs])
        device = "gold_6226" if name == THREE else name
        columns = [100.0 - arrays[accuracy], arrays["latency_ms"][:, arrays["latency_devices"].tolist().index(device)]]
        names: tuple[str, ...] = ("error", "latency_ms")
        if name == THREE:
            columns.append(arrays["energy_mj"][:, arrays["energy_devices"].tolist().index("eyeriss")])
            names += ("energy_mj",)
    values = np.stack(columns, 1).astype(np.float64)[valid]
    return Task(name, space, [arch for arch, there in zip(archs, valid, strict=True) if there], names, values)


def share(values: Floats, front: Floats) -> float:
    """Hypervolume of `values` as a share of the front's, both scaled by the front's ideal and nadir."""
    low, span = front.min(0), np.ptp(front, 0)
    span[span == 0] = 1.0
    reference = np.full(len(low), REFERENCE)
    return hypervolume((values - low) / span, reference) / hypervolume((front - low) / span, reference)


def scores(task: Task, rows: Sequence[int], budget: int) -> dict[str, list[float]]:
    """`hv` and `tight` after each of the points within the budget."""
    found = [task.values[list(rows[:point])] for point in POINTS if point <= budget]
    return {"hv": [share(values, task.front) for values in found], "tight": [share(values, task.tight_front) for values in found]}


def run_ours(task: Task, name: str, seed: int, budget: int, batch: int) -> tuple[list[int], list[float]]:
    """Rows in the order of evaluation, and the processor time of each ask with the tell before it, s."""
    plain, hidden = name.removesuffix(":hidden"), name.endswith(":hidden")
    given = yaml.safe_load(plain) if plain.startswith("{") else {"name": plain}
    costs: dict[str, Cost] = {}
    if not hidden:
        for metric, column in zip(task.names[1:], task.values.T[1:], strict=True):
            table = np.full(task.space.num_choices, np.nan)
            table[tuple(np.array(task.archs).T)] = column
            costs[metric] = TabularCost(task.space, metric, table)
    problem = Problem(task.space, tuple(Objective(metric) for metric in task.names), costs)
    options = {key: value for key, value in given.items() if key != "name"}
    searcher = plugins.build("searchers", given["name"], options, problem, np.random.default_rng(seed))
    row_of = {arch: row for row, arch in enumerate(task.archs)}
    rows: list[int] = []
    seconds = []
    trials: list[Trial] = []
    while len(rows) < budget:
        start = time.process_time()
        searcher.tell(trials)
        archs = searcher.ask(min(batch, budget - len(rows)))
        seconds.append(time.process_time() - start)
        if not archs:
            break
        new = [row_of[arch] for arch in archs]
        trials = []
        for index, (arch, row) in enumerate(zip(archs, new, strict=True), len(rows)):
            error, *others = task.values[row].tolist()
            trials.append(Trial(index, arch, {"error": error / 100, **dict(zip(task.names[1:], others, strict=True))}))
        rows += new
    return rows, seconds


def run_pymoo(task: Task, seed: int, budget: int, population: int) -> list[int]:
    """pymoo's NSGA-II on choice variables; a cell without a path breaks a constraint and is not counted."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableMating, MixedVariableSampling
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.core.variable import Choice
    from pymoo.optimize import minimize

    row_of = {arch: row for row, arch in enumerate(task.archs)}
    seen: dict[int, None] = {}

    class Cells(ElementwiseProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            slots = {f"x{i}": Choice(options=range(choices)) for i, choices in enumerate(task.space.num_choices)}
            super().__init__(vars=slots, n_obj=len(task.names), n_ieq_constr=1)

        def _evaluate(self, x: dict[str, int], out: dict[str, Any], *_: Any, **__: Any) -> None:
            row = row_of.get(tuple(int(x[f"x{i}"]) for i in range(len(x))))
            if row is not None:
                seen.setdefault(row)
            out["F"] = task.values.max(0) if row is None else task.values[row]
            out["G"] = 1.0 if row is None else -1.0

    class Enough:
        def __call__(self, algorithm: Any) -> None:
            if len(seen) >= budget:
                algorithm.termination.force_termination = True

    clones = MixedVariableDuplicateElimination()
    algorithm = NSGA2(
        pop_size=population, sampling=MixedVariableSampling(), mating=MixedVariableMating(eliminate_duplicates=clones),
        eliminate_duplicates=clones,
    )  # fmt: skip
    minimize(Cells(), algorithm, ("n_gen", 40 * budget // population), seed=seed, callback=Enough())
    return list(seen)[:budget]


def run_optuna(task: Task, seed: int, budget: int) -> list[int]:
    """Optuna's multivariate TPE on categorical choices; a cell that was seen is answered from memory and not counted again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    row_of = {arch: row for row, arch in enumerate(task.archs)}
    seen: dict[int, None] = {}

    def objective(trial: optuna.Trial) -> list[float]:
        row = row_of.get(tuple(trial.suggest_categorical(f"x{i}", range(choices)) for i, choices in enumerate(task.space.num_choices)))
        if row is None:
            raise optuna.TrialPruned
        seen.setdefault(row)
        if len(seen) >= budget:
            trial.study.stop()
        return list(task.values[row].tolist())

    study = optuna.create_study(directions=["minimize"] * len(task.names), sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    study.optimize(objective, n_trials=5 * budget)
    return list(seen)


PEERS: dict[str, Callable[[Task, int, int], list[int]]] = {
    "pymoo-nsga2-20": lambda task, seed, budget: run_pymoo(task, seed, budget, 20),
    "pymoo-nsga2-50": lambda task, seed, budget: run_pymoo(task, seed, budget, 50),
    "optuna-tpe": run_optuna,
}


def run(job: tuple[str, str, str, str, int, int, int]) -> dict[str, Any]:
    """One searcher on one task with one seed."""
    file, accuracy, device, name, seed, budget, batch = job
    torch.set_num_threads(1)
    task = load_task(file, device, accuracy)
    start = time.process_time()
    rows, asks = (PEERS[name](task, seed, budget), []) if name in PEERS else run_ours(task, name, seed, budget, batch)
    seconds = time.process_time() - start
    assert len(set(rows)) == len(rows)
    return {
        "searcher": name,
        "task": device,
        "seed": seed,
        "evaluations": len(rows),
        "seconds": seconds,
        "asks": asks,
        **scores(task, rows, budget),
    }


def ceiling(task: Task, seeds: int) -> dict[str, float]:
    """The shares of all networks, one of each isomorphic kind, drawn at random: a mean over the seeds."""
    kinds: dict[bytes, list[int]] = {}
    for row, arch in enumerate(task.archs):
        kinds.setdefault(task.space.identity(arch), []).append(row)
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        values = task.values[[int(rng.choice(rows)) for rows in kinds.values()]]
        found.append([share(values, task.front), share(values, task.tight_front)])
    means = np.mean(found, 0)
    return {"hv": round(float(means[0]), 4), "tight": round(float(means[1]), 4)}


def summary(found: Sequence[dict[str, Any]], kind: str) -> dict[str, list[float]]:
    """Over the seeds, after each point: the median, the quartiles, and the standard error of the mean."""
    values = np.array([one[kind] for one in found])
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    named = {"median": median, "q1": low, "q3": high, "mean": values.mean(0), "standard_error": error}
    return {key: np.round(column, 4).tolist() for key, column in named.items()}


def report(found: Sequence[dict[str, Any]], tasks: Sequence[str], names: Sequence[str], points: Sequence[int]) -> dict[str, Any]:
    """Everything by searcher and task; means over the tasks of the medians; each searcher of hwnas against the best library peer."""
    by = {name: {task: [one for one in found if (one["searcher"], one["task"]) == (name, task)] for task in tasks} for name in names}
    detail = {n: {task: {kind: summary(by[n][task], kind) for kind in ("hv", "tight")} for task in tasks} for n in names}
    groups = {"all devices": [t for t in tasks if t != THREE], "tuned on": [t for t in tasks if t in TUNED]}
    groups |= {"not tuned on": [t for t in tasks if t not in TUNED and t != THREE], "three objectives": [t for t in tasks if t == THREE]}

    def mean(name: str, group: Sequence[str]) -> dict[str, str]:
        medians = {kind: np.mean([detail[name][task][kind]["median"] for task in group], 0) for kind in ("hv", "tight")}
        return {str(point): f"{medians['hv'][i]:.3f}/{medians['tight'][i]:.3f}" for i, point in enumerate(points)}

    means = {group: {name: mean(name, within) for name in names} for group, within in groups.items() if within}
    asks = {name: [second for task in tasks for one in by[name][task] for second in one["asks"]] for name in names if name not in PEERS}
    return {
        "points": list(points),
        "means of medians, hv/tight": means,
        "below the best peer, standard errors": {name: behind(detail, name, tasks, points) for name in names if name not in PEERS},
        "seconds an ask": {name: {"median": float(np.median(all_)), "max": float(np.max(all_))} for name, all_ in asks.items() if all_},
        "seconds a run": {name: float(np.mean([one["seconds"] for task in tasks for one in by[name][task]])) for name in names},
        "tasks": detail,
    }


def behind(detail: dict[str, Any], name: str, tasks: Sequence[str], points: Sequence[int]) -> dict[str, Any]:
    """Where the mean is below that of the library peer that is best there: by how many standard errors of the difference."""
    found = {}
    for task in tasks:
        for kind in ("hv", "tight"):
            for i, point in enumerate(points):
                ours = detail[name][task][kind]
                rivals = [
                    (detail[peer][task][kind]["mean"][i], detail[peer][task][kind]["standard_error"][i], peer)
                    for peer in PEERS
                    if peer in detail
                ]
                if rivals and max(rivals)[0] > ours["mean"][i]:
                    best, error, peer = max(rivals)
                    errors = (best - ours["mean"][i]) / max(float(np.hypot(error, ours["standard_error"][i])), 1e-9)
                    found[f"{task} {kind} {point}"] = f"{errors:.1f} ({peer})"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", type=Path, default=DATA, help="the benchmark's file")
    parser.add_argument("--accuracy", choices=("test_acc", "valid_acc"), default="test_acc", help="what the error is taken from")
    parser.add_argument("--devices", nargs="+", help=f"devices of the file, and {THREE} [default: all of them]")
    parser.add_argument("--searchers", nargs="+", default=[*OURS, *PEERS], help="searchers of hwnas, :hidden behind, and library peers")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=400, help="distinct evaluations")
    parser.add_argument("--batch", type=int, default=5, help="networks that a searcher of hwnas is asked for at a time")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--ceiling", action="store_true", help="what one of each isomorphic kind of cell can reach; no search")
    given = parser.parse_args(arguments)
    if not given.file.is_file():
        parser.error(f"there is no file {given.file}; give the path of nasbench201_hw.npz with --file")
    with np.load(given.file) as arrays:
        known = [*arrays["latency_devices"].tolist(), THREE]
    tasks = given.devices or known
    for task in tasks:
        if task not in known:
            parser.error(f"there is no device {task!r} in {given.file}; known: {', '.join(known)}")
    for name in given.searchers:
        plain = name.removesuffix(":hidden")
        if not name.startswith("{") and name not in PEERS and plain not in plugins.names("searchers"):
            parser.error(f"there is no searcher {name!r}; known: {', '.join([*plugins.names('searchers'), *PEERS])}")
    points = [point for point in POINTS if point <= given.budget]
    if given.seeds < 1 or not points:
        parser.error(f"there must be at least one seed and {POINTS[0]} evaluations, but got {given.seeds} and {given.budget}")
    if given.ceiling:
        shares = {task: ceiling(load_task(str(given.file), task, given.accuracy), given.seeds) for task in tasks}
        means = {kind: float(np.mean([shares[task][kind] for task in tasks if task != THREE])) for kind in ("hv", "tight")}
        print(json.dumps({"seeds": given.seeds, "mean over the devices": means, "tasks": shares}, indent=1))
        return
    jobs = [
        (str(given.file), given.accuracy, task, name, seed, given.budget, given.batch)
        for seed in range(given.seeds) for task in tasks for name in given.searchers
    ]  # fmt: skip
    start = time.perf_counter()
    found = []
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for number, one in enumerate(pool.imap_unordered(run, jobs), 1):
            found.append(one)
            print(f"\r{number}/{len(jobs)} runs, {time.perf_counter() - start:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    about = {"seeds": given.seeds, "budget": given.budget, "batch": given.batch, "accuracy": given.accuracy, "tuned on": list(TUNED)}
    print(json.dumps({**about, "seconds": time.perf_counter() - start, **report(found, tasks, given.searchers, points)}, indent=1))


if __name__ == "__main__":
    main()
