"""The referee: searchers and seeds on one evaluator with equal budgets and one reference point, against random sampling.

Killed at any moment and started again it goes on: every contest (a searcher and a seed) that is finished lies in a file of its own, and
what was trained once is not trained again, by whomever it is asked for. The form of the result is described in docs/compare.md.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from hwnas import pareto, plugins
from hwnas.config import Experiment, Named, apply_override
from hwnas.errors import ConfigError, HwnasError, PluginError, RunError, nearest
from hwnas.evaluate import Trial
from hwnas.export import replace_file
from hwnas.measure import Progress, silent
from hwnas.search import assemble, evaluation_seed, make_evaluator, make_shared
from hwnas.searcher import ENUMERABLE, Problem, Searcher
from hwnas.space import Architecture

BASELINE = "random"
TARGETS = (0.9, 0.95, 0.99)
"""Shares of the true front's hypervolume whose evaluations are counted."""
CONFIDENCE = 0.95
"""What the bands hold at least, where there are six seeds or more."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """A searcher with options, under the label by which it was named."""

    label: str
    searcher: Named


@dataclass(frozen=True)
class Front:
    """What hypervolume is a share of: the true front where all architectures are tabulated, else that of all trials of all contests."""

    true: bool
    members: int
    reference: list[float]
    """Minimised objectives: the nadir of the front, a tenth of its range further out."""
    hypervolume: float


@dataclass(frozen=True)
class Needed:
    """Evaluations until `share` of the front's hypervolume was there, by seed; None where it never was."""

    share: float
    by_seed: list[int | None]
    median: float | None
    reached: int


@dataclass(frozen=True)
class Standing:
    """How a searcher did. The curves have a value for each evaluation from the first; a searcher that ended early keeps its last."""

    label: str
    searcher: str
    options: dict[str, Any]
    evaluations: list[int]
    final: list[float]
    median: list[float]
    low: list[float]
    high: list[float]
    needed: list[Needed]
    """For each of `TARGETS`; none where the true front is not known."""
    ask_s_median: float
    ask_s_max: float


@dataclass(frozen=True)
class Comparison:
    """Everything that the table, the plot and the JSON show."""

    experiment: str
    evaluator: str
    objectives: list[str]
    budgets: dict[str, float]
    budget: int
    batch: int
    seeds: list[int]
    confidence: float
    """Probability that a band holds the median of all seeds there could be."""
    front: Front
    searchers: list[Standing]
    left_out: dict[str, str]
    format: int = 1

    @property
    def title(self) -> str:
        """What was compared."""
        return f"{self.experiment}: {', '.join(self.objectives)} after {self.budget} evaluations, {len(self.seeds)} seeds"

    @property
    def whose(self) -> str:
        """Whose front hypervolume is a share of."""
        return "the true" if self.front.true else "all trials'"

    @property
    def subtitle(self) -> str:
        """How curves and bands are to be read."""
        bands = f"band: order statistics that hold it with {self.confidence:.0%}" if len(self.seeds) > 1 else "no band: a single seed"
        return f"line: median of the seeds · {bands} · {self.whose} front has {self.front.members} members"

    def json(self) -> str:
        """The documented form."""
        return json.dumps(asdict(self), indent=1)


class Contest(pydantic.BaseModel):
    """What one searcher did with one seed: a file."""

    model_config = pydantic.ConfigDict(extra="forbid")

    format: Literal[1] = 1
    searcher: str
    seed: int
    budget: int
    ended: bool
    """Whether it had nothing more to ask before the budget was spent."""
    archs: list[list[int]]
    values: list[list[float | None]]
    """The objectives' values in the order of the experiment; None for what is no number."""
    asks: list[tuple[int, float]]
    """How many architectures each ask gave, and its seconds."""

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Contest:
        counts = {len(self.archs), len(self.values), sum(number for number, _ in self.asks)}
        if len(counts) != 1 or (len(self.archs) != self.budget and not (self.ended and len(self.archs) < self.budget)):
            raise ValueError(f"it has {len(self.archs)} architectures, {len(self.values)} values and a budget of {self.budget}")
        return self


def parse_entries(texts: Sequence[str]) -> list[Entry]:
    """Searchers from `name` or `name:option=value:option=value`; the baseline comes first, named or not.

    Raises:
        ConfigError, PluginError: no such searcher or option, or a wrong value.
    """
    lacking = {line.name: line.missing for line in plugins.listing("searchers")}
    found = []
    for text in dict.fromkeys([BASELINE, *(text.strip() for text in texts)]):
        name, *changes = text.split(":")
        if name not in lacking:
            raise PluginError(f"there is no searcher called {name!r}; {nearest(name, lacking)}")
        given: dict[str, Any] = {"name": name}
        for change in changes:
            apply_override(given, change)
        entry = Entry(text, Named.model_validate(given))
        if not lacking[name]:
            plugins.options("searchers", name, entry.searcher.options)
        found.append(entry)
    return found


class Referee:
    """Plays contests of one experiment in one folder.

    What the evaluator trains is shared by all: an architecture's values hang on the experiment's seed, not on who asks. A searcher that
    trains a supernet has one of its own in every contest, and what it asks for is scored like what the others ask for.

    Args:
        tables: folder of the lookup tables.
    """

    def __init__(self, experiment: Experiment, folder: Path, tables: Path | None = None) -> None:
        self.folder = folder
        self.assembly = assemble(experiment.model_copy(update={"searcher": Named(name=BASELINE)}), tables)
        self.tabulated = self.assembly.evaluator is not None
        self.shared = make_shared(self.assembly, folder)
        self.evaluator = make_evaluator(self.assembly, self.shared)
        self._known: dict[Architecture, dict[str, float]] = {}

    def problem(self, own_supernet: bool = False, seed: int = 0, label: str = "") -> Problem:
        """What a searcher is given."""
        experiment, assembly = self.assembly.experiment, self.assembly
        shared = self.shared
        if own_supernet:
            folder = self.folder / "supernets" / f"{slug(label)}_{seed}"
            shared = make_shared(replace(assembly, experiment=experiment.model_copy(update={"seed": seed})), folder)
        return Problem(assembly.space, assembly.objectives, assembly.costs, experiment.budgets, experiment.confidence, shared)

    def searcher(self, entry: Entry, seed: int) -> Searcher:
        """A fresh searcher.

        Raises:
            HwnasError: it cannot serve the experiment; why.
        """

        def build(own_supernet: bool) -> Searcher:
            problem = self.problem(own_supernet, seed, entry.label)
            found: Searcher = plugins.build("searchers", entry.searcher.name, entry.searcher.options, problem, np.random.default_rng(seed))
            return found

        found = build(own_supernet=False)  # its options decide whether it trains
        return build(own_supernet=True) if found.needs_shared_weights else found

    def facts(self) -> dict[str, Any]:
        """What decides the contests: the experiment without what only a search has, and some costs and tabulated values."""
        experiment = self.assembly.experiment.model_dump(
            exclude={"description", "searcher", "trials", "calibration", "final", "exporter", "storage"}
        )
        rng = np.random.default_rng(0)
        archs = [self.assembly.space.random(rng) for _ in range(8)]
        sample = {metric: cost.of(archs).tolist() for metric, cost in self.assembly.costs.items()}
        if self.tabulated:
            sample["evaluator"] = [value for values in self.values(archs) for value in values.values()]
        rounded = {name: [float(f"{value:.6g}") for value in column] for name, column in sample.items()}
        return {**experiment, "space": self.assembly.space.id, "sample": rounded}

    def prepare(self, progress: Progress) -> None:
        """Trains what the evaluator shares, and reads what was evaluated before.

        Raises:
            RunError: the file of evaluations is damaged.
        """
        self.evaluator.prepare(lambda done, of: progress("prepare", done, of))
        if not self.tabulated:
            self._known = read_evaluations(self._cache)

    @property
    def _cache(self) -> Path:
        return self.folder / "evaluations.jsonl"

    def play(self, entry: Entry, seed: int, budget: int, count: Callable[[int], None] = lambda done: None) -> Contest:
        """One contest from beginning to end; `count` is told how many evaluations are done."""
        searcher, objectives = self.searcher(entry, seed), self.assembly.objectives
        trials: list[Trial] = []
        asks: list[tuple[int, float]] = []
        while len(trials) < budget:
            begun = time.perf_counter()
            archs = searcher.ask(min(self.assembly.experiment.batch, budget - len(trials)))
            if not archs:
                break
            asks.append((len(archs), time.perf_counter() - begun))
            evaluated = zip(archs, self.values(archs), strict=True)
            told = [Trial(index, arch, values) for index, (arch, values) in enumerate(evaluated, len(trials))]
            searcher.tell(told)
            trials += told
            count(len(trials))
        rows = [[trial.values[objective.name] for objective in objectives] for trial in trials]
        return Contest(
            searcher=entry.label, seed=seed, budget=budget, ended=len(trials) < budget, asks=asks,
            archs=[list(trial.arch) for trial in trials],
            values=[[value if math.isfinite(value) else None for value in row] for row in rows],
        )  # fmt: skip

    def values(self, archs: Sequence[Architecture]) -> list[dict[str, float]]:
        """Objectives and costs of each architecture, from the evaluator or from what it said before."""
        fresh = [arch for arch in archs if arch not in self._known]
        seeds = [evaluation_seed(self.assembly.experiment, arch) for arch in fresh]
        found = {}
        for number, values in self.evaluator.evaluate(fresh, seeds):
            found[fresh[number]] = values
            if not self.tabulated:
                _append(self._cache, fresh[number], values)
                self._known[fresh[number]] = values
        costs = {metric: cost.of(archs).tolist() for metric, cost in self.assembly.costs.items()}
        known = [found.get(arch) or self._known[arch] for arch in archs]
        return [{**values, **{metric: column[i] for metric, column in costs.items()}} for i, values in enumerate(known)]

    def true_front(self) -> Floats | None:
        """The minimised objectives (architecture, objective) of every architecture within the budgets, where all are tabulated."""
        space = self.assembly.space
        if not self.tabulated or space.size > ENUMERABLE:
            return None
        archs = [arch for arch in space.all() if space.is_valid(arch)]
        keeps = self.problem().feasible(archs)
        archs = [arch for arch, keep in zip(archs, keeps, strict=True) if keep]
        return self._minimised([[values[o.name] for o in self.assembly.objectives] for values in self.values(archs)])

    def _minimised(self, rows: Sequence[Sequence[float | None]]) -> Floats:
        signs = np.array([objective.minimised(1.0) for objective in self.assembly.objectives])
        return np.asarray(np.array(rows, dtype=np.float64).reshape(len(rows), len(signs)) * signs)

    def judge(self, entries: Sequence[Entry], contests: dict[tuple[str, int], Contest], left_out: dict[str, str]) -> Comparison:
        """The standings: hypervolume as a share of the front's, after every evaluation."""
        experiment = self.assembly.experiment
        values = {key: self._minimised(contest.values) for key, contest in contests.items()}
        everything = self.true_front()
        front = make_front(np.vstack(list(values.values())) if everything is None else everything, everything is not None)
        seeds = sorted({seed for _, seed in contests})
        budget = next(iter(contests.values())).budget
        standings = []
        for entry in entries:
            rows = np.array([_share(values[entry.label, seed], front, budget) for seed in seeds])
            median, low, high = (ends.tolist() for ends in band(rows))
            made = [len(contests[entry.label, seed].archs) for seed in seeds]
            seconds = [took for seed in seeds for _, took in contests[entry.label, seed].asks] or [0.0]
            standings.append(
                Standing(
                    entry.label, entry.searcher.name, entry.searcher.options, made, rows[:, -1].tolist(), median, low, high,
                    [needed(rows, share) for share in TARGETS] if front.true else [], float(np.median(seconds)), max(seconds),
                )
            )  # fmt: skip
        return Comparison(
            experiment.name, experiment.evaluator.name, [o.name for o in self.assembly.objectives], dict(experiment.budgets), budget,
            experiment.batch, seeds, confidence(len(seeds)), front, standings, left_out,
        )  # fmt: skip


def make_front(values: Floats, true: bool) -> Front:
    """The front of the minimised objectives `values` (n, objective), and the point that its hypervolume is counted from.

    Raises:
        RunError: no row is finite.
    """
    reference = pareto.reference_point(values)
    return Front(true, int(pareto.nondominated(values).sum()), reference.tolist(), pareto.hypervolume(values, reference))


def _share(values: Floats, front: Front, budget: int) -> Floats:
    """The share of the front's hypervolume after 1 to `budget` evaluations; after its last a searcher keeps what it has."""
    history = pareto.hypervolume_history(values, np.array(front.reference)) / front.hypervolume
    last = history[-1] if len(history) else 0.0
    return np.concatenate([history, np.full(budget - len(history), last)])


def _rank(seeds: int) -> int:
    """Which of the sorted seeds, counted from 0, is the lower end of a band; its mirror image is the upper."""
    ranks = [rank for rank in range((seeds + 1) // 2) if 1 - 2 * binom.cdf(rank, seeds, 0.5) >= CONFIDENCE]
    return max(ranks, default=0)


def confidence(seeds: int) -> float:
    """The probability that the band of that many seeds holds the median of all seeds there could be; 0 of a single one."""
    return max(0.0, float(1 - 2 * binom.cdf(_rank(seeds), seeds, 0.5)))


def band(rows: Floats) -> tuple[Floats, Floats, Floats]:
    """Median, lower and upper end of (seed, evaluation) over the seeds.

    The ends are order statistics, so nothing is assumed of how the seeds are distributed: the narrowest pair that holds the true
    median with a probability of at least `CONFIDENCE`; of fewer than six seeds the smallest and the largest, which hold it less surely.
    """
    ordered = np.sort(rows, axis=0)
    rank = _rank(len(rows))
    return np.median(rows, axis=0), ordered[rank], ordered[len(rows) - 1 - rank]


def needed(rows: Floats, share: float) -> Needed:
    """The first evaluation at which each row of (seed, evaluation) reaches `share`."""
    by_seed = [int(row.argmax()) + 1 if row.any() else None for row in rows >= share]
    median = float(np.median([math.inf if number is None else number for number in by_seed]))
    return Needed(share, by_seed, median if math.isfinite(median) else None, sum(number is not None for number in by_seed))


def compare(
    experiment: Experiment, searchers: Sequence[str], folder: Path, *, seeds: int = 20, budget: int = 400, jobs: int = 1,
    tables: Path | None = None, progress: Progress = silent,
) -> Comparison:  # fmt: skip
    """Plays what has not been played in that folder yet, and judges all. Seeds are the experiment's and those after it.

    Args:
        searchers: `name` or `name:option=value`, see `parse_entries`.
        jobs: contests at a time, of a tabulated evaluator; training keeps all cores busy with one.

    Raises:
        HwnasError: whatever is not there or cannot be meant; a folder of another comparison.
    """
    for name, number in (("seeds", seeds), ("budget", budget), ("jobs", jobs)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, but is {number}")
    entries = parse_entries(searchers)
    referee = Referee(experiment, folder, tables)
    if jobs > 1 and not referee.tabulated:
        raise ConfigError(f"jobs must be 1 where networks are trained: one contest keeps the cores busy; but is {jobs}")
    left_out = {}
    for entry in entries:
        reason = _why_not(referee, entry)
        if reason is not None:
            left_out[entry.label] = reason
    playing = [entry for entry in entries if entry.label not in left_out]
    if not any(entry.label in searchers for entry in playing):
        raise ConfigError("none of the searchers serves this experiment: " + "; ".join(f"{a}: {b}" for a, b in left_out.items()))
    _claim(referee, budget)
    wanted = [(entry, seed) for entry in playing for seed in range(experiment.seed, experiment.seed + seeds)]
    contests: dict[tuple[str, int], Contest] = {}
    for entry, seed in wanted:
        there = read_contest(folder, entry.label, seed, budget)
        if there is not None:
            contests[entry.label, seed] = there
    todo = [(entry, seed) for entry, seed in wanted if (entry.label, seed) not in contests]
    if todo:
        referee.prepare(progress)

        def count(evaluations: int) -> None:
            progress("compare", len(contests) * budget + evaluations, len(wanted) * budget)

        count(0)
        for contest in _in_processes(experiment, folder, tables, todo, budget, jobs) if jobs > 1 else _here(referee, todo, budget, count):
            contests[contest.searcher, contest.seed] = contest
            replace_file(contest_path(folder, contest.searcher, contest.seed), contest.model_dump_json().encode())
            count(0)
    referee.evaluator.close()
    return referee.judge(playing, contests, left_out)


def _why_not(referee: Referee, entry: Entry) -> str | None:
    """Why a searcher cannot serve the experiment."""
    try:
        referee.searcher(entry, 0)
    except HwnasError as error:
        return str(error)
    return None


def _here(referee: Referee, todo: Sequence[tuple[Entry, int]], budget: int, count: Callable[[int], None]) -> Iterator[Contest]:
    for entry, seed in todo:
        yield referee.play(entry, seed, budget, count)


_referee: Referee  # that of a process of the pool


def _in_processes(
    experiment: Experiment, folder: Path, tables: Path | None, todo: Sequence[tuple[Entry, int]], budget: int, jobs: int
) -> Iterator[Contest]:  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), context, _begin, (experiment, folder, tables)) as pool:
        try:
            for future in as_completed([pool.submit(_play, entry, seed, budget) for entry, seed in todo]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(experiment: Experiment, folder: Path, tables: Path | None) -> None:
    """A process ends with the one that started it, however that ended."""
    global _referee
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _referee = Referee(experiment, folder, tables)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _play(entry: Entry, seed: int, budget: int) -> Contest:
    return _referee.play(entry, seed, budget)


def slug(label: str) -> str:
    """A label as the name of a file."""
    return re.sub(r"[^\w.=-]+", "_", label)


def contest_path(folder: Path, label: str, seed: int) -> Path:
    """Where a contest is kept."""
    return folder / "contests" / f"{slug(label)}_{seed}.json"


def read_contest(folder: Path, label: str, seed: int, budget: int) -> Contest | None:
    """A finished contest; None where it has not been played.

    Raises:
        RunError: the file is damaged, or of another contest.
    """
    path = contest_path(folder, label, seed)
    try:
        found = Contest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({_reason(error)}); delete it to have that contest played again") from None
    if (found.searcher, found.seed, found.budget) != (label, seed, budget):
        raise RunError(
            f"{path} holds the contest of {found.searcher} with seed {found.seed} and {found.budget} evaluations, not that of {label} "
            f"with seed {seed} and {budget}; delete it or choose another folder with --out"
        )
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        return plugins.first_problem(error).partition(", but got")[0]
    return str(error).splitlines()[0]


def _claim(referee: Referee, budget: int) -> None:
    """Writes down what the folder's contests are of.

    Raises:
        RunError: it holds contests of something else.
    """
    path = referee.folder / "comparison.json"
    now = json.loads(json.dumps({"budget": budget, **referee.facts()}))
    if not path.exists():
        if (referee.folder / "contests").exists() or (referee.folder / "evaluations.jsonl").exists():
            raise RunError(f"{referee.folder} holds contests, but no {path.name} that says of what; choose another folder with --out")
        replace_file(path, json.dumps(now, indent=1).encode())
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({_reason(error)}); choose another folder with --out or delete that one") from None
    different = [key for key in now if not isinstance(there, dict) or there.get(key) != now[key]]
    if different:
        said = "; ".join(f"{key}: {there[key]!r} there, {now[key]!r} now" for key in different if isinstance(there, dict) and key in there)
        raise RunError(f"{referee.folder} holds another comparison ({said or path.name}); choose another folder with --out or delete it")


def read_evaluations(path: Path) -> dict[Architecture, dict[str, float]]:
    """What was evaluated before, from a file of one JSON object a line; a last line without its end was being written, and is cut off.

    Raises:
        RunError: another line is damaged.
    """
    found: dict[Architecture, dict[str, float]] = {}
    if not path.exists():
        return found
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            values = {str(name): math.nan if value is None else float(value) for name, value in row["values"].items()}
            found[tuple(map(int, row["arch"]))] = values
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"line {number} of {path} is damaged ({error}); delete the line to have that evaluated again") from None
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return found


def _append(path: Path, arch: Architecture, values: dict[str, float]) -> None:
    row = {"arch": arch, "values": {name: value if math.isfinite(value) else None for name, value in values.items()}}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
