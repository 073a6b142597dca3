"""The only loop: ask, evaluate, record, tell, checkpoint; then the front's members are trained in full.

Killed at any moment and started again, it gives the same trials and the same front: what a searcher asks follows from
its last checkpoint, what was evaluated since then is found in the run's database, and an evaluation depends on nothing
but the architecture and the experiment's seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic

from hwnas import plugins
from hwnas.checkpoint import load_state, save_state
from hwnas.config import Experiment, tables_root, train_settings
from hwnas.cost import Cost
from hwnas.data import Dataset
from hwnas.device import Device
from hwnas.errors import ConfigError, RunError, nearest
from hwnas.evaluate import Evaluator, Objective, SharedWeights, Trial
from hwnas.measure import Progress, silent
from hwnas.network import Network
from hwnas.pareto import nondominated, spread
from hwnas.profile import DeviceTables
from hwnas.run import Run
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture, SearchSpace
from hwnas.tabular import evaluator_and_costs
from hwnas.workers import Job, ShortTraining, TrainingPool

TABULAR = "tabular"
EVALUATORS = ("shared", "short", TABULAR)


@dataclass(frozen=True)
class Assembly:
    """Everything an experiment names, made, and checked to fit together; data, device and tables where it does not read a benchmark."""

    experiment: Experiment
    space: SearchSpace
    data: Dataset | None
    device: Device | None
    tables: DeviceTables | None
    costs: dict[str, Cost]
    objectives: tuple[Objective, ...]
    evaluator: Evaluator | None = None
    """The one that reads a benchmark."""


def check_fit(experiment: Experiment, space: SearchSpace, data: Dataset) -> None:
    """Data and space must agree about images and classes, or about windows and vocabulary.

    Raises:
        ConfigError: they do not; what to change.
    """
    if space.reads != data.gives:
        raise ConfigError(
            f"the data set {data.name} gives {data.gives}, but the space {space.name} reads {space.reads}; choose another of the two"
        )
    if space.input_shape != data.image_shape:
        tokens = data.gives == "tokens"
        remedy = "set space.steps to data.steps" if tokens else "set space.channels and space.input_size, or data.size"
        raise ConfigError(
            f"the data set {data.name} gives {'windows' if tokens else 'images'} of {data.image_shape} (channels, height, width), but the "
            f"space {space.name} takes {space.input_shape}; {remedy}"
        )
    if space.classes != data.num_classes:
        remedy = "space.vocabulary to data.vocabulary" if data.gives == "tokens" else "space.classes"
        raise ConfigError(
            f"the data set {data.name} has {data.num_classes} classes, but the space {space.name} has {space.classes}; set {remedy}"
        )


def assemble(experiment: Experiment, tables: Path | None = None) -> Assembly:
    """Makes space, data, device and cost models, and checks the whole configuration before anything takes long.

    Raises:
        HwnasError: whatever does not exist, does not fit, or has not been measured on this machine.
    """
    if experiment.evaluator.name not in EVALUATORS:
        raise ConfigError(f"there is no evaluator called {experiment.evaluator.name!r}; {nearest(experiment.evaluator.name, EVALUATORS)}")
    if experiment.evaluator.name == TABULAR:
        return _assemble_tabular(experiment)
    device = experiment.load_device()
    space = experiment.load_space()
    data = experiment.load_data()
    check_fit(experiment, space, data)
    plugins.options("searchers", experiment.searcher.name, experiment.searcher.options)
    plugins.options("exporters", experiment.exporter.name, experiment.exporter.options)
    train_settings(experiment.evaluator.options, "evaluator")
    experiment.final_training()
    here = DeviceTables.here(tables_root(tables), device)
    costs = here.costs(space)
    objectives = tuple(Objective.named(name, list(costs)) for name in experiment.objectives)
    Problem(space, objectives, costs, experiment.budgets, experiment.confidence)  # checks the budgets before a run's folder is made
    return Assembly(experiment, space, data, device, here, costs, objectives)


def _assemble_tabular(experiment: Experiment) -> Assembly:
    """Space, evaluator and costs of a benchmark's file; data only where there is a section of it, for a searcher that trains a supernet."""
    space = experiment.load_space()
    data = None if experiment.data is None else experiment.load_data()
    if data is not None:
        check_fit(experiment, space, data)
    plugins.options("searchers", experiment.searcher.name, experiment.searcher.options)
    options = plugins.checked_options(evaluator_and_costs, experiment.evaluator.options, "evaluator 'tabular'")
    evaluator, costs = evaluator_and_costs(space, **options)
    known = [*evaluator.names, *costs]
    for name in experiment.objectives:
        if name not in known:
            raise ConfigError(f"evaluator.values gives no column for the objective {name!r}; {nearest(name, known)}")
    objectives = tuple(Objective.named(name, list(costs)) for name in experiment.objectives)
    Problem(space, objectives, costs, experiment.budgets, experiment.confidence)
    return Assembly(experiment, space, data, None, None, costs, objectives, evaluator)


def make_shared(assembly: Assembly, folder: Path) -> SharedWeights | None:
    """The supernet that the evaluator, or a gradient searcher, trains, its checkpoint in `folder`; none without data."""
    experiment = assembly.experiment
    if assembly.data is None:
        return None
    options = experiment.evaluator.options if experiment.evaluator.name == "shared" else {}
    settings = train_settings(options, "evaluator")
    problem = Problem(assembly.space, assembly.objectives, assembly.costs, experiment.budgets, experiment.confidence)
    checkpoint = folder / "supernet.safetensors"
    return SharedWeights(assembly.space, assembly.data, settings, experiment.seed, checkpoint, draw=problem.random)


def make_evaluator(assembly: Assembly, shared: SharedWeights | None) -> Evaluator:
    """The evaluator that the experiment names."""
    evaluator = assembly.experiment.evaluator
    if assembly.evaluator is not None:
        return assembly.evaluator
    if evaluator.name == "shared" and shared is not None:
        return shared
    return ShortTraining(assembly.experiment, train_settings(evaluator.options, "evaluator"))


def evaluation_seed(experiment: Experiment, arch: Architecture) -> int:
    """A seed that follows from the experiment's and the architecture alone."""
    return int(np.random.SeedSequence([experiment.seed, *arch]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def run_search(experiment: Experiment, folder: Path | str, *, tables: Path | None = None, progress: Progress = silent) -> Run:
    """Searches, or goes on where a search in that folder stopped, and trains the members of the front in full.

    The members of a search on a benchmark's file are the whole front of what was looked up, and nothing is trained.

    Raises:
        HwnasError: the configuration, tables, data or folder cannot be used.
    """
    assembly = assemble(experiment, tables)
    run = Run.create(Path(folder), experiment)
    shared = run_trials(assembly, run, progress)
    if shared is None or assembly.evaluator is not None:
        record_members(assembly, run)
    else:
        train_members(assembly, run, shared, progress)
    return run


def run_trials(assembly: Assembly, run: Run, progress: Progress = silent, evaluator: Evaluator | None = None) -> SharedWeights | None:
    """Asks and evaluates until the experiment's number of trials is there, or the searcher has nothing more to ask."""
    experiment = assembly.experiment
    shared = make_shared(assembly, run.folder)
    problem = Problem(assembly.space, assembly.objectives, assembly.costs, experiment.budgets, experiment.confidence, shared)
    rng = np.random.default_rng(experiment.seed)
    searcher: Searcher = plugins.build("searchers", experiment.searcher.name, experiment.searcher.options, problem, rng)
    if evaluator is None:
        evaluator = make_evaluator(assembly, shared)
    saved = run.load_searcher()
    told = 0
    if saved is not None:
        state, told = saved
        searcher.restore(state)
    if not searcher.needs_shared_weights:
        evaluator.prepare(lambda done, of: progress("train supernet", done, of))
    done = {trial.index: trial for trial in run.trials(assembly.space)}
    while told < experiment.trials:
        archs = searcher.ask(min(experiment.batch, experiment.trials - told))
        if not archs:
            break
        for index, arch in enumerate(archs, told):
            if index in done and done[index].arch != arch:
                raise RunError(
                    f"{run.folder} holds trial {index} of another search than its checkpoint's; the database and searcher.safetensors "
                    "do not belong together: restore both from one copy, or start a new run"
                )
        fresh = [(index, arch) for index, arch in enumerate(archs, told) if index not in done]
        seeds = [evaluation_seed(experiment, arch) for _, arch in fresh]
        for number, values in evaluator.evaluate([arch for _, arch in fresh], seeds):
            index, arch = fresh[number]
            costs = {metric: float(cost.of([arch])[0]) for metric, cost in assembly.costs.items()}
            done[index] = Trial(index, arch, {**values, **costs}, {"log": dict(searcher.log)} if searcher.log else {})
            run.record(done[index], assembly.space, assembly.objectives)
            progress("search", len(done), experiment.trials)
        batch = [done[index] for index in range(told, told + len(archs))]
        searcher.tell(batch)
        told += len(batch)
        run.save_searcher(searcher.state(), told)
    evaluator.close()
    if not done:
        raise ConfigError(
            f"the searcher {experiment.searcher.name} asked for no architecture at all; loosen the budgets {experiment.budgets}"
        )
    return shared


class Member(pydantic.BaseModel):
    """A member of the front, trained in full: its weights lie beside this record."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: str
    arch: list[int]
    trial: int
    values: dict[str, float]
    predicted: dict[str, dict[str, float]]


def choose_members(trials: Sequence[Trial], objectives: Sequence[Objective], most: int) -> list[Trial]:
    """At most `most` trials to train in full: the front, evenly covered; where it is small, the fronts behind it too."""
    values = np.array([trial.vector(objectives) for trial in trials], dtype=np.float64)
    left = np.asarray(np.isfinite(values).all(1))
    chosen: list[int] = []
    while left.any() and len(chosen) < most:
        layer = np.flatnonzero(left)[nondominated(values[left])]
        chosen += [int(layer[i]) for i in spread(values[layer], most - len(chosen))]
        left[layer] = False
    order = len(objectives) - 1
    return [trials[i] for i in sorted(chosen, key=lambda i: (values[i, order], i))]


def train_members(assembly: Assembly, run: Run, shared: SharedWeights, progress: Progress = silent) -> list[Member]:
    """Trains the chosen trials in full, as many at a time as there are cores; finished ones are kept, interrupted ones go on."""
    experiment = assembly.experiment
    settings = experiment.final_training()
    chosen = choose_members(run.trials(assembly.space), assembly.objectives, experiment.final.members)
    folders = [run.folder / "members" / f"m{number:02d}" for number in range(len(chosen))]
    todo = [number for number, folder in enumerate(folders) if not (folder / "member.json").exists()]
    if todo:
        warm = run.folder / "warm.safetensors" if experiment.final.warm_start else None
        if warm is not None:
            save_state(warm, _trained(run, shared).supernet.state_dict(), {"space": assembly.space.id})
        jobs = [
            Job(
                chosen[number].arch, evaluation_seed(experiment, chosen[number].arch), settings, warm=warm,
                checkpoint=folders[number] / "training.safetensors", save=folders[number] / "weights.safetensors",
            )
            for number in todo
        ]  # fmt: skip
        done = (len(chosen) - len(todo)) * settings.epochs

        def count(_: int) -> None:
            nonlocal done
            done += 1
            progress("train members", done, len(chosen) * settings.epochs)

        with TrainingPool(experiment) as pool:
            for number, values in pool.train(jobs, count):
                _finish_member(assembly, chosen[todo[number]], folders[todo[number]], values)
        if warm is not None:
            warm.unlink(missing_ok=True)
    return [read_member(folder) for folder in folders]


def record_members(assembly: Assembly, run: Run) -> list[Member]:
    """The front of the trials as members without weights: what a benchmark's file says of a network needs no training."""
    trials = run.trials(assembly.space)
    values = np.array([trial.vector(assembly.objectives) for trial in trials], dtype=np.float64)
    for number, index in enumerate(np.flatnonzero(nondominated(values))):
        folder = run.folder / "members" / f"m{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        trial = trials[index]
        _write_member(assembly, trial, folder, {name: value for name, value in trial.values.items() if name not in assembly.costs})
    return read_members(run)


def _trained(run: Run, shared: SharedWeights) -> SharedWeights:
    """The shared weights as the search left them."""
    saved = run.load_searcher()
    if saved is not None and any(name.startswith("supernet.") for name in saved[0][0]):
        shared.load(saved[0][0])
    else:
        shared.prepare(lambda done, of: None)
    return shared


def _finish_member(assembly: Assembly, trial: Trial, folder: Path, values: dict[str, float]) -> None:
    if not math.isfinite(values["loss"]):
        raise ConfigError(f"training {assembly.space.describe(trial.arch)} in full diverged; lower final.training.lr")
    _write_member(assembly, trial, folder, values)
    (folder / "training.safetensors").unlink(missing_ok=True)


def _write_member(assembly: Assembly, trial: Trial, folder: Path, values: dict[str, float]) -> None:
    predicted = {
        metric: {"mean": float(cost.of([trial.arch])[0]), "upper": float(cost.upper([trial.arch], assembly.experiment.confidence)[0])}
        for metric, cost in assembly.costs.items()
    }
    member = Member(name=folder.name, arch=list(trial.arch), trial=trial.index, values=values, predicted=predicted)
    unfinished = folder / "member.json.tmp"
    unfinished.write_text(member.model_dump_json(indent=1), encoding="utf-8")
    os.replace(unfinished, folder / "member.json")


def read_member(folder: Path) -> Member:
    """The record of a trained member.

    Raises:
        RunError: it is damaged.
    """
    path = folder / "member.json"
    try:
        return Member.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is damaged ({str(error).splitlines()[0]}); delete the folder {folder} and search again to train that member anew"
        ) from None


def read_members(run: Run) -> list[Member]:
    """All trained members of a run, fastest first.

    Raises:
        RunError: there are none yet.
    """
    folders = sorted(path.parent for path in run.folder.glob("members/*/member.json"))
    if not folders:
        raise RunError(f"{run.folder} has no trained members yet; finish it with `hwnas search`")
    return [read_member(folder) for folder in folders]


def load_member(run: Run, space: SearchSpace, member: Member) -> Network:
    """The member's network with its trained weights, in eval mode.

    Raises:
        RunError: the weights are damaged or of another space.
    """
    path = run.folder / "members" / member.name / "weights.safetensors"
    try:
        tensors, about = load_state(path)
    except RunError as error:
        reason = str(error).partition(";")[0]
        raise RunError(f"{reason}; delete the folder {path.parent} and search again to train that member anew") from None
    if about.get("space") != space.id or about.get("arch") != member.arch:
        raise RunError(f"{path} holds weights of another network than {member.name}; delete its folder and search again to train it anew")
    network = Network(space, member.arch)
    network.load_state_dict(tensors)
    return network.eval()
