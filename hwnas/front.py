"""A run's front as plain data, and its export: predicted until it is exported, then measured and only measured."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from hwnas import __version__
from hwnas.config import tables_root
from hwnas.device import Device, digest
from hwnas.errors import BudgetError, ConfigError, ExportError, nearest
from hwnas.evaluate import BATCH, MEASURED, Objective
from hwnas.export import (
    Facts,
    Measured,
    complete,
    describe,
    finish_member,
    load_exporter,
    measure_members,
    quantiser,
    replace_file,
    write_model,
)
from hwnas.measure import Progress, Protocol, silent
from hwnas.pareto import hypervolume, nondominated, reference_point
from hwnas.profile import DeviceTables, fingerprint, paper_costs, source_of
from hwnas.report import draw_png, front_data, write_html
from hwnas.run import Run
from hwnas.search import TABULAR, Member, load_member, read_members
from hwnas.table import Source
from hwnas.train import evaluate_accuracy
from hwnas.verify import runtime_accuracy

LATENCY = "latency_ms"
RECORD = "export.json"


class Exported(pydantic.BaseModel):
    """What an export did: its budgets, where it was measured, what it measured of each member, what was left out and why."""

    model_config = pydantic.ConfigDict(extra="forbid")

    budgets: dict[str, float]
    fingerprint: dict[str, str]
    members: dict[str, dict[str, Measured]]
    left_out: dict[str, str]


def export_run(
    run: Run,
    *,
    out: Path | None = None,
    budgets: Mapping[str, float] | None = None,
    tables: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Writes the trained members as models, measures all of them in one session, and keeps those inside every budget.

    Members that another one beats in every objective, by measurement, are left out too. The test part of the data is
    touched here, once, for those that stay. An export that is whole, with the same budgets on the same machine, is kept.

    Raises:
        BudgetError: no member keeps the budgets; the fastest is named.
        RunError: the run has no trained members.
        ExportError: a model cannot be written.
    """
    experiment = run.experiment
    if experiment.evaluator.name == TABULAR or experiment.data is None:
        raise ExportError(f"{run.folder} was searched on a benchmark's file: nothing was trained, so there is nothing to export")
    device, space = experiment.load_device(), experiment.load_space()
    members = read_members(run)
    costs = dict.fromkeys((*paper_costs(space, device), "energy_mj"))
    limits = dict(experiment.budgets)
    for metric, limit in (budgets or {}).items():
        if metric != LATENCY and metric not in costs:
            raise ConfigError(f"there is a budget on {metric!r}, but nothing gives that metric; {nearest(metric, [LATENCY, *costs])}")
        if not (math.isfinite(limit) and limit > 0):
            raise ConfigError(f"the budget on {metric} must be a positive number, but is {limit:g}")
        limits[metric] = min(limit, limits.get(metric, limit))
    folder = out or run.folder / "export"
    here = fingerprint(device)
    if _is_whole(folder, members, limits, here):
        return folder
    exporter = load_exporter(experiment.exporter, device)
    data = experiment.load_data()
    quantised = quantiser(device, data)
    models = {}
    for number, member in enumerate(members):
        progress("export", number, len(members))
        models[member.name] = write_model(folder / member.name, load_member(run, space, member), exporter, quantised)
    progress("export", len(members), len(members))
    level = DeviceTables(tables_root(tables), device, here).reference_ms(space)
    found = measure_members(models, device, journal=folder / "latency.journal", level_ms=level, progress=progress)
    measured = {name: {LATENCY: Measured.of(timing, found.reference_ms)} for name, timing in found.timings.items()}
    left_out = {name: f"the runtime cannot run it: {reason}" for name, reason in found.failures.items()}
    left_out |= _over_budget([m for m in members if m.name in measured], measured, limits, source_of(found.fingerprint))
    kept = [member for member in members if member.name not in left_out]
    if not kept:
        fastest = min(measured, key=lambda name: measured[name][LATENCY].p50, default=None)
        best = f"the fastest, {fastest}, takes {measured[fastest][LATENCY].p50:.4g} ms at p50" if fastest else "none of them runs"
        raise BudgetError(f"no trained member of {run.folder} keeps the budgets {limits}: {best}; loosen them or search again with them")
    objectives = _objectives(run, costs)
    best_rows = nondominated(_vectors(kept, objectives, measured))
    left_out |= {
        m.name: f"another member is at least as good in every objective, as {source_of(found.fingerprint)}"
        for m, good in zip(kept, best_rows, strict=True)
        if not good
    }
    for member in members:
        if member.name in left_out:
            shutil.rmtree(folder / member.name, ignore_errors=True)
            continue
        network = load_member(run, space, member)
        tested = evaluate_accuracy(network, data, data.test, BATCH)
        fp32 = {"test_accuracy": tested.accuracy, **({"test_perplexity": tested.perplexity} if data.gives == "tokens" else {})}
        values = member.values | fp32
        if quantised is not None:
            int8 = {"test_accuracy": runtime_accuracy(models[member.name], data)}
            values = member.values | {f"fp32_{name}": value for name, value in fp32.items()} | int8
        facts = describe(
            network, data, device, found.fingerprint, hwnas_version=__version__, experiment=experiment.name, data_section=experiment.data,
            exporter=experiment.exporter, values=values, predicted=member.predicted, budgets=limits,
        )  # fmt: skip
        shown = measured[member.name] if source_of(found.fingerprint) == "measured" else {}
        finish_member(folder / member.name, exporter, facts.model_copy(update={"measured": shown}))
    record = Exported(budgets=limits, fingerprint=found.fingerprint, members=measured, left_out=left_out)
    replace_file(folder / RECORD, record.model_dump_json(indent=1).encode())
    (folder / "latency.journal").unlink(missing_ok=True)
    return folder


def report_run(run: Run, out: Path | None = None) -> list[Path]:
    """Draws `front.png` and writes `report.html` into the run's folder; their paths.

    Raises:
        RunError: the run has no trained members yet, or its database is damaged.
    """
    experiment = run.experiment
    found = front_of(run, out)
    trials = run.trials(experiment.load_space())
    objectives = _objectives(run, trials[0].values)
    facts: dict[str, dict[str, str]] = {
        "Experiment": {
            "hwnas": __version__,
            "name": experiment.name,
            "seed": str(experiment.seed),
            "space": experiment.space.name,
            "data": "none" if experiment.data is None else experiment.data.name,
            "searcher": experiment.searcher.name,
            "evaluator": experiment.evaluator.name,
            "trials": str(len(trials)),
        }
    }
    if found["basis"] != "tabulated":
        facts["Experiment"]["energy"] = _energy_text(experiment.load_device())
        if found["basis"] != "predicted":
            facts["Device and runtime"] = {"device": experiment.device, **read_export(out or run.folder / "export").fingerprint}
        facts["Measuring protocol"] = Protocol().as_text()
    data = front_data(found, trials, objectives, found["budgets"], facts, title=experiment.name, subtitle=experiment.description)
    paths = [run.folder / "front.png", run.folder / "report.html"]
    draw_png(data, paths[0])
    write_html(data, paths[1])
    return paths


def read_export(folder: Path) -> Exported:
    """The record of an export.

    Raises:
        ExportError: there is none, or it is damaged.
    """
    try:
        return Exported.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{folder} holds no finished export ({error.strerror}); write it with `hwnas export RUN`") from None
    except ValueError:
        raise ExportError(f"{folder / RECORD} is damaged; delete {folder} and export again") from None


def front_of(run: Run, out: Path | None = None) -> dict[str, Any]:
    """The run's front as plain data, the fastest member first.

    Keys: `objectives`, `basis` ("measured" after an export, "modelled" if the device computes times, "tabulated" where a benchmark's
    file was searched, else "predicted": they never mix, and what a modelled device says of a member stands in the export's record
    only), `reference_point`, `hypervolume`, `budgets`, `members` (each with `name`, `arch`, `values`, `predicted`, `measured`,
    `files`), `left_out`.

    Raises:
        RunError: the run has no trained members yet.
    """
    members = read_members(run)
    folder = out or run.folder / "export"
    measured: dict[str, dict[str, Measured]] = {}
    left_out: dict[str, str] = {}
    facts: dict[str, Facts] = {}
    budgets = dict(run.experiment.budgets)
    objectives = _objectives(run, members[0].predicted)
    basis: Source | Literal["predicted", "tabulated"] = "tabulated" if run.experiment.evaluator.name == TABULAR else "predicted"
    if (folder / RECORD).exists():
        record = read_export(folder)
        basis = source_of(record.fingerprint)
        left_out, budgets = record.left_out, record.budgets
        measured = record.members if basis == "measured" else {}
        facts = {m.name: found for m in members if m.name not in left_out and (found := complete(folder / m.name)) is not None}
        members = [member for member in members if member.name in facts]
    else:
        good = nondominated(_vectors(members, objectives, {}))
        left_out = {
            m.name: "another member is at least as good in every objective, as predicted"
            for m, g in zip(members, good, strict=True)
            if not g
        }
        members = [member for member in members if member.name not in left_out]
    vectors = _vectors(members, objectives, measured)
    order = np.argsort(vectors[:, -1], kind="stable").tolist()
    reference = reference_point(vectors) if len(members) else np.zeros(len(objectives))
    return {
        "objectives": [objective.name for objective in objectives],
        "basis": basis,
        "reference_point": {o.name: o.minimised(float(value)) for o, value in zip(objectives, reference, strict=True)},
        "hypervolume": hypervolume(vectors, reference),
        "budgets": budgets,
        "members": [_plain(members[i], facts.get(members[i].name), measured, folder) for i in order],
        "left_out": left_out,
    }


def _plain(member: Member, facts: Facts | None, measured: Mapping[str, Mapping[str, Measured]], folder: Path) -> dict[str, Any]:
    files = {path.name: str(path) for path in sorted((folder / member.name).glob("*")) if not path.name.startswith(".")} if facts else {}
    return {
        "name": member.name,
        "arch": member.arch,
        "values": dict(facts.values) if facts else member.values,
        "predicted": member.predicted,
        "measured": {metric: value.model_dump() for metric, value in measured.get(member.name, {}).items()},
        "files": files,
    }


def _objectives(run: Run, costs: Mapping[str, Any]) -> tuple[Objective, ...]:
    return tuple(Objective.named(name, [LATENCY, *costs]) for name in run.experiment.objectives)


def _energy_text(device: Device) -> str:
    return "modelled" if device.energy.source == "modelled" else f"the sum of operators, each measured ({device.energy.source})"


def _vectors(
    members: Sequence[Member], objectives: Sequence[Objective], measured: Mapping[str, Mapping[str, Measured]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Minimised objectives, (member, objective); latency as measured for all members, or as predicted for all."""

    def value(member: Member, name: str) -> float:
        if name in MEASURED:
            return member.values[name]
        if name == LATENCY and measured:
            return measured[member.name][LATENCY].p50
        return member.predicted[name]["mean"]

    rows = [[objective.minimised(value(member, objective.name)) for objective in objectives] for member in members]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def _over_budget(
    members: Sequence[Member], measured: Mapping[str, Mapping[str, Measured]], limits: Mapping[str, float], source: Source
) -> dict[str, str]:
    """Which members exceed a budget: latency by its p50, which is what `source` says, any other metric by its counted or modelled value."""
    over = {}
    for member in members:
        for metric, limit in limits.items():
            value, how = (
                (measured[member.name][LATENCY].p50, f"{source} p50")
                if metric == LATENCY
                else (member.predicted[metric]["mean"], "counted or modelled")
            )
            if value > limit:
                over[member.name] = f"over budget: {metric} {value:.4g} ({how}) is above {limit:g}"
    return over


def _is_whole(folder: Path, members: Sequence[Member], limits: Mapping[str, float], here: dict[str, str]) -> bool:
    try:
        record = read_export(folder)
    except ExportError:
        return False
    same = record.budgets == dict(limits) and digest(record.fingerprint) == digest(here)
    names = {member.name for member in members}
    return same and names == {*record.left_out, *record.members} and all(complete(folder / name) for name in names - record.left_out.keys())
