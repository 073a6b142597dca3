"""The commands. Heavy imports stand inside them: `hwnas --help` and the listings do without torch."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas import __version__
from hwnas.errors import ConfigError, HwnasError

if TYPE_CHECKING:
    from hwnas.config import Named
    from hwnas.run import Run
    from hwnas.space import SearchSpace

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=(
    "Hardware-aware neural architecture search: measure a device, search, and get a Pareto front of trained models as ONNX, "
    "each measured on that device and inside the budget."
))  # fmt: skip
space_app = typer.Typer(no_args_is_help=True, help="Look at search spaces (`hwnas spaces` lists them).")
app.add_typer(space_app, name="space")
table_app = typer.Typer(no_args_is_help=True, help="Look at lookup tables and check them.")
app.add_typer(table_app, name="table")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Config = Annotated[str, typer.Argument(help="An experiment: a name from configs/ or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the experiment, e.g. trials=100 budgets.latency_ms=0.5", metavar="[KEY=VALUE]...")
]
Tables = Annotated[
    Path | None, typer.Option(help="Folder of the lookup tables [default: the project's latency_tables/, else the user's data folder].")
]
RunFolder = Annotated[Path | None, typer.Option("--run", help="The run's folder [default: runs/<experiment>].")]
RunArgument = Annotated[str, typer.Argument(help="A run: its folder, or the experiment's name for runs/<name>.")]


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """What every command shares."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def devices(as_json: Json = False) -> None:
    """List the devices: targets of profiling and search, one YAML file each."""
    from hwnas import plugins
    from hwnas.config import available, load_device

    backends = {entry.name: entry.missing for entry in plugins.listing("backends")}
    rows = []
    for name, path in available("devices").items():
        device = load_device(str(path))
        missing = backends.get(device.backend, (f"a backend called {device.backend}",))
        if device.remote and device.backend in backends:
            missing = plugins.missing_packages(("asyncssh",))  # its runtime is needed there and not here
        else:
            missing += tuple(program for program in device.needs if shutil.which(program) is None)
        rows.append({"name": name, "summary": f"{device.description} [{device.backend}, {device.precision}]", "missing": list(missing)})
    _list(rows, as_json)


@app.command()
def spaces(as_json: Json = False) -> None:
    """List the search spaces."""
    _plugins("spaces", as_json)


@space_app.command(name="show")
def space_show(
    name: Annotated[str, typer.Argument(help="A space's name from `hwnas spaces`.")],
    options_: Annotated[
        list[str] | None, typer.Argument(help="The space's options, e.g. cells=1 width=8", metavar="[OPTION=VALUE]...")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Draw this architecture's network, e.g. 0,3,1, and not all candidates.")] = None,
    out: Annotated[Path | None, typer.Option(help="The picture, .png or .svg [default: NAME_space.png in the current folder].")] = None,
    as_json: Json = False,
) -> None:
    """Draw a search space: all its candidates, or the network of one architecture."""
    import yaml

    from hwnas.space import load_space
    from hwnas.space_chart import draw, load_chart

    given = {}
    for text in options_ or ():
        key, is_, value = text.partition("=")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            is_ = ""
        if not is_:
            raise ConfigError(f"an option of a space must look like width=8, but got {text!r}")
    space = load_space(name, given)
    path = out or Path(f"{name}_space.png")
    draw(load_chart(space, None if arch is None else space.parse(arch)), path)
    typer.echo(json.dumps({"files": [str(path)]}) if as_json else str(path))


@app.command()
def searchers(as_json: Json = False) -> None:
    """List the searchers."""
    _plugins("searchers", as_json)


@app.command()
def profile(
    device: Annotated[str, typer.Argument(help="A device: a name from devices/ or the path of a YAML file.")],
    config: Config,
    overrides: Overrides = None,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Measure the operators that the experiment's space needs, and whole networks to calibrate them; what is there is kept."""
    from hwnas.config import load_experiment

    experiment = load_experiment(config, [*(overrides or ()), f"device={json.dumps(device)}"])
    with _progress() as progress:
        summary = _profile(experiment, tables, progress)
    _show(summary, as_json)


@app.command()
def search(config: Config, overrides: Overrides = None, run: RunFolder = None, tables: Tables = None, as_json: Json = False) -> None:
    """Search and train the front's members; a search that was interrupted goes on."""
    from hwnas.config import load_experiment
    from hwnas.search import run_search

    experiment = load_experiment(config, overrides or ())
    with _progress() as progress:
        done = run_search(experiment, run or _default_run(experiment.name), tables=tables, progress=progress)
    _show_front(done, as_json)


@app.command()
def compare(
    config: Config,
    overrides: Overrides = None,
    searchers: Annotated[
        str, typer.Option(help="Names separated by commas, options as in nsga2:population=20:mutation=0.2; random always plays.")
    ] = "prospector,nsga2",
    seeds: Annotated[int, typer.Option(help="How often each searcher plays, with the experiment's seed and those after it.")] = 20,
    budget: Annotated[int, typer.Option(help="Distinct architectures that each may have evaluated.")] = 400,
    jobs: Annotated[int, typer.Option(help="Contests at a time, where nothing is trained.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The comparison's folder [default: runs/compare_<experiment>].")] = None,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Let searchers play against each other and random sampling on one evaluator; a comparison that was interrupted goes on."""
    from hwnas.compare import compare as play
    from hwnas.compare_chart import draw
    from hwnas.compare_chart import tables as shown
    from hwnas.config import load_experiment
    from hwnas.export import replace_file

    experiment = load_experiment(config, overrides or ())
    folder = out or Path("runs") / f"compare_{experiment.name}"
    names = [name for name in searchers.split(",") if name.strip()]
    with _progress() as progress:
        found = play(experiment, names, folder, seeds=seeds, budget=budget, jobs=jobs, tables=tables, progress=progress)
    draw(found, folder / "comparison.png")
    replace_file(folder / "result.json", found.json().encode())
    if as_json:
        typer.echo(found.json())
        return
    for title, header, rows in shown(found):
        _table(title, header, rows)
    for label, reason in found.left_out.items():
        typer.echo(f"left out {label}: {reason}")
    typer.echo(f"plot: {folder / 'comparison.png'}\nJSON: {folder / 'result.json'}")


@app.command()
def front(run: RunArgument, as_json: Json = False) -> None:
    """Show the Pareto front of a run: measured where it is exported, else predicted."""
    _show_front(_open_run(run), as_json)


@app.command()
def export(
    run: RunArgument,
    budget: Annotated[list[str] | None, typer.Option(help="A tighter budget, e.g. latency_ms=0.5; may be given several times.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the exported models [default: RUN/export].")] = None,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Write the front as ONNX models, measure each on the device, and keep those inside the budgets."""
    from hwnas.front import export_run

    opened = _open_run(run)
    with _progress() as progress:
        export_run(opened, out=out, budgets=_budgets(budget or ()), tables=tables, progress=progress)
    _show_front(opened, as_json, out)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="An exported model's folder, or the folder of several.")], as_json: Json = False
) -> None:
    """Check exported models again: files, outputs against torch, accuracy, latency against the budget."""
    with _progress() as progress:
        reports, passed = _verify(folder, progress)
    if as_json:
        typer.echo(json.dumps(reports, indent=1))
    else:
        for report in reports:
            typer.echo(report["name"])
            for check in report["checks"]:
                typer.echo(
                    f"  {check['status']:7} {check['name']}: {check['found']}" + (f" (limit {check['limit']})" if check["limit"] else "")
                )
    if not passed:
        typer.echo("verify: not every check passed", err=True)
        raise typer.Exit(1)


@app.command()
def explain(run: RunArgument, as_json: Json = False) -> None:
    """Show what the states of a run's controller know of the architectures it writes (searchers enas and monas)."""
    from hwnas.explain import explain_run

    found = explain_run(_open_run(run))
    if as_json:
        typer.echo(json.dumps([one.plain() for one in found], indent=1))
        return
    for one in found:
        typer.echo(f"reward with weights {', '.join(f'{weight:g}' for weight in one.weights)}: policy entropy {one.entropy:.0%} of uniform")
        for name, known in one.correlations.items():
            said = f"rho {known.rho:+.3f}, p {known.p_value:.3f}" if known else "the same for all pairs"
            typer.echo(f"  distance of states and of {name:6} {said}")
        typer.echo(f"  equal choices after the same state {one.within:.0%}, after different states {one.between:.0%}")
        for slot in one.slots:
            typer.echo(
                f"  {slot.slot:24} entropy {slot.entropy:4.0%}   takes {slot.history_bits:.3f} bits from the choices before   "
                f"probe {slot.probe:4.0%}, majority {slot.majority:4.0%}"
            )


@app.command()
def report(run: RunArgument, as_json: Json = False) -> None:
    """Draw front.png and write the self-contained report.html into the run's folder."""
    from hwnas.front import report_run

    paths = [str(path) for path in report_run(_open_run(run))]
    typer.echo(json.dumps({"files": paths}) if as_json else "\n".join(paths))


@app.command(name="run")
def run_all(config: Config, overrides: Overrides = None, run: RunFolder = None, tables: Tables = None, as_json: Json = False) -> None:
    """Do it all: profile, search, export, verify, report. What is done already is skipped."""
    from hwnas.config import load_experiment
    from hwnas.front import export_run, report_run
    from hwnas.search import run_search

    experiment = load_experiment(config, overrides or ())
    folder = run or _default_run(experiment.name)
    with _progress() as progress:
        _profile(experiment, tables, progress)
        done = run_search(experiment, folder, tables=tables, progress=progress)
        exported = export_run(done, tables=tables, progress=progress)
        reports, passed = _verify(exported, progress)
        files = report_run(done)
    if not passed:
        failed = [f"{r['name']}: {c['name']}" for r in reports for c in r["checks"] if c["status"] == "failed"]
        raise HwnasError(
            f"verification failed ({'; '.join(failed)}); look with `hwnas verify {exported}`, and delete that folder to export again"
        )
    _show_front(done, as_json)
    if not as_json:
        typer.echo(f"models: {exported}\nreport: {files[-1]}")


@table_app.command(name="check")
def table_check(
    table: Annotated[str, typer.Argument(help="A device's name, or the CSV of a space's measured networks.")],
    networks: Annotated[int, typer.Option(min=2, help="How many unseen random networks to measure.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the networks.")] = 1,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Measure random networks that calibration never saw and compare them with the table, before and after calibration."""
    with _progress() as progress:
        results = list(_checks(table, networks, seed, tables, progress))
    if as_json:
        typer.echo(json.dumps(results if len(results) != 1 else results[0], indent=1))
        return
    for result in results:
        typer.echo(f"{result['device']} {result['space']}: {result['n']} networks, {result['probes']} probes, {result['seconds']} s")
        for row in ("noise_floor", "before", "after"):
            a = result[row]
            typer.echo(
                f"  {row.replace('_', ' '):12} mean error {a['mape']:6.2%}   within 5 % {a['within_5']:4.0%}   "
                f"within 10 % {a['within_10']:4.0%}   Spearman {a['spearman']:.3f}"
            )
        typer.echo(f"  the 90 % interval holds {result['interval_coverage']:.0%}")


@table_app.command(name="doctor")
def table_doctor(
    table: Annotated[str, typer.Argument(help="A device's name, or the CSV of a table of operators.")],
    config: Annotated[str | None, typer.Argument(help="An experiment whose space's operators the table should hold.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Measure the rows that are found again.")] = False,
    again: Annotated[int, typer.Option(min=0, help="How many random rows to measure again, to see whether the device has drifted.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of these rows.")] = 0,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Find what cannot be believed in a table; exit code 1 where there is something."""
    from hwnas.config import load_experiment, tables_root
    from hwnas.doctor import admit, examine, repair, require_here

    patient = admit(table, tables_root(tables))
    if fix:
        require_here(patient)
    space = load_experiment(config).load_space() if config else None
    with _progress() as progress:
        findings = examine(patient, space, again=again, seed=seed, progress=progress)
        fixed = {}
        if fix:
            fixed = repair(patient, findings, progress=progress)
            findings = examine(patient, space, again=0)
    result = {
        "table": str(patient.path),
        "device": patient.table.device,
        "metric": patient.table.metric,
        "rows": len(patient.table.rows),
        "fingerprint": patient.standing or "unknown",
        "reference": patient.reference,
        "findings": [vars(finding) for finding in findings],
        "fixed": {op: {"before": before, "now": now} for op, (before, now) in fixed.items()},
    }
    if as_json:
        typer.echo(json.dumps(_without_nan(result), indent=1))
    else:
        for op, (before, now) in fixed.items():
            typer.echo(f"measured again {op}: {now:.4g}, before {before:.4g}")
        for finding in findings:
            typer.echo(f"{finding.kind:12} {finding.text}")
        typer.echo(f"{patient.path}: {len(patient.table.rows)} rows, {len(findings)} findings")
    if findings:
        raise typer.Exit(1)


@table_app.command(name="show")
def table_show(
    table: Annotated[str, typer.Argument(help="A device's name, or the CSV of a table of operators.")],
    config: Annotated[str | None, typer.Argument(help="An experiment: only its space is drawn.")] = None,
    arch: Annotated[str | None, typer.Option(help="The network whose time is drawn, e.g. 0,3,1 [default: the median random one].")] = None,
    out: Annotated[Path | None, typer.Option(help="The picture, .png or .svg [default: DEVICE_table.png in the current folder].")] = None,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Draw a table: every operator's price, time against MACs, and where a network's time goes."""
    from hwnas.config import load_experiment, tables_root
    from hwnas.table_chart import draw, load_chart

    space = load_experiment(config).load_space() if config else None
    chart = load_chart(table, tables_root(tables), space, arch)
    path = out or Path(f"{chart.device}_table.png")
    draw(chart, path)
    typer.echo(json.dumps({"files": [str(path)]}) if as_json else str(path))


@table_app.command(name="transfer")
def table_transfer(
    source: Annotated[str, typer.Argument(help="The device whose table is known, or its CSV.")],
    device: Annotated[str, typer.Argument(help="The device to make a table for: a name from devices/ or the path of a YAML file.")],
    config: Config,
    operators: Annotated[int, typer.Option(help="How many operators to measure on it.")] = 20,
    networks: Annotated[int, typer.Option(min=8, help="How many whole networks to measure on it, to correct the prices.")] = 12,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Make a device's table from another device's: a few operators and networks are measured, the other rows are predicted."""
    from hwnas.config import load_experiment, tables_root
    from hwnas.profile import DeviceTables, profile_networks
    from hwnas.transfer import load_source, transfer_table

    experiment = load_experiment(config, [f"device={json.dumps(device)}"])
    space, root = experiment.load_space(), tables_root(tables)
    _, known = load_source(source, root)
    here = DeviceTables.here(root, experiment.load_device())
    with _progress() as progress:
        _, summary = transfer_table(known, here, space, operators, progress=progress)
        measured = profile_networks(here, space, networks, seed=experiment.seed, progress=progress)
    summary["networks"] = len(measured.rows)
    summary["networks_left_out_error"] = float(abs(here.calibration(space).left_out).mean())
    _show(summary, as_json)


def _without_nan(value: Any) -> Any:
    """Numbers that JSON does not have as null."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@table_app.command(name="formats")
def table_formats(as_json: Json = False) -> None:
    """List the forms of other projects' tables that can be imported."""
    _plugins("formats", as_json)


FormatOption = Annotated[
    str, typer.Option("--format", help="A name from `hwnas table formats`, options as in '{name: hw_nas_bench, column: raspi4}'.")
]
SpaceOption = Annotated[
    str | None, typer.Option("--space", help="The space whose operators are priced, options as in '{name: fbnet, input_size: 224}'.")
]


@table_app.command(name="import")
def table_import(
    files: Annotated[list[Path], typer.Argument(help="The file; several where a form keeps one table in several files.")],
    format_: FormatOption,
    device: Annotated[str, typer.Option(help="What the numbers were measured on, in your words.")],
    out: Annotated[Path, typer.Option(help="The table to write, a CSV file that is not there yet.")],
    space: SpaceOption = None,
    metric: Annotated[str, typer.Option(help="latency_ms or energy_mj, where the form has both.")] = "latency_ms",
    fixed_as_zero: Annotated[
        bool,
        typer.Option("--fixed-as-zero", help="Price operators of every network that the file lacks (a stem, a head) at 0, and say so."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a table of another project's: rows marked `imported`, the file as fingerprint, never mixed with what is measured here."""
    from hwnas.exchange import import_table

    _not_there_yet(out)
    named = _named(format_, "--format")
    found = import_table(
        named.name, files, device, _space(space), options=named.options, metric=metric, fixed_as_zero=fixed_as_zero
    )  # fmt: skip
    found.table.save(out)
    missing = [str(op) for op in found.missing]
    if as_json:
        summary = {"table": str(out), "rows": len(found.table.rows), "missing": missing, "unused": found.unused, "facts": found.table.facts}
        typer.echo(json.dumps(summary, indent=1))
        return
    typer.echo(f"{out}: {len(found.table.rows)} rows")
    for what, names in (("operators of the space that the file lacks", missing), ("keys that the space lacks", found.unused)):
        typer.echo(f"{what}: {len(names)}" + "".join(f"\n  {name}" for name in names))
    for key, value in found.table.facts.items():
        typer.echo(f"{key}: {value}")


@table_app.command(name="export")
def table_export(
    table: Annotated[Path, typer.Argument(help="A table's CSV file, e.g. latency_tables/<device>/<fingerprint>/latency_ms.csv.")],
    format_: FormatOption,
    out: Annotated[Path, typer.Option(help="The file to write, one that is not there yet.")],
    space: SpaceOption = None,
    as_json: Json = False,
) -> None:
    """Write a table in another project's form; operators that the form has no place for are listed."""
    from hwnas.exchange import export_table
    from hwnas.table import CostTable

    _not_there_yet(out)
    named = _named(format_, "--format")
    loaded = CostTable.load(table)
    left_out = [str(op) for op in export_table(named.name, loaded, out, _space(space), options=named.options)]
    if as_json:
        typer.echo(json.dumps({"file": str(out), "written": len(loaded.rows) - len(left_out), "left_out": left_out}, indent=1))
        return
    typer.echo(f"{out}: {len(loaded.rows) - len(left_out)} operators")
    typer.echo(f"operators without a place in that form: {len(left_out)}" + "".join(f"\n  {name}" for name in left_out))


def _named(text: str, option: str) -> Named:
    """A name, or a name with options as a YAML mapping."""
    import yaml

    from hwnas.config import Named

    try:
        given = yaml.safe_load(text)
        return Named.model_validate(given if isinstance(given, dict) else {"name": text})
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{option} must be a name or '{{name: ..., option: ...}}', but got {text!r}") from None


def _space(text: str | None) -> SearchSpace | None:
    from hwnas.space import load_space

    if text is None:
        return None
    named = _named(text, "--space")
    return load_space(named.name, named.options)


def _not_there_yet(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} is there already; give --out another name or delete it")


def _checks(
    table: str, networks: int, seed: int, tables: Path | None, progress: Callable[[str, int, int], None]
) -> Iterator[dict[str, Any]]:
    from hwnas.config import load_device, tables_root
    from hwnas.errors import TableError
    from hwnas.profile import DeviceTables, check, space_of, spaces_of
    from hwnas.space import load_space
    from hwnas.table import NetworkTable

    if table.endswith(".csv"):
        path = Path(table).resolve()
        measured = NetworkTable.load(path)
        here = DeviceTables.here(path.parents[3], load_device(measured.device))
        wanted = [space_of(measured, path)]
        if here.folder != path.parents[1]:
            raise TableError(
                f"{table} was measured elsewhere and cannot be checked here{here.explain_absence()}; measure here with `hwnas profile`"
            )
    else:
        here = DeviceTables.here(tables_root(tables), load_device(table))
        wanted = spaces_of(here)
        if not wanted:
            raise TableError(f"{table} has no tables here{here.explain_absence()}; measure with `hwnas profile {table} CONFIG`")
    for named in wanted:
        yield check(here, load_space(named["name"], named["options"]), networks, seed=seed, progress=progress)


def _profile(experiment: Any, tables: Path | None, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    from hwnas.config import tables_root
    from hwnas.profile import DeviceTables, profile_networks, profile_operators, unmeasured
    from hwnas.search import TABULAR

    if experiment.evaluator.name == TABULAR:
        raise ConfigError(f"{experiment.name} reads a benchmark's file, so there is nothing to measure or to train; use `hwnas search`")
    space = experiment.load_space()
    here = DeviceTables.here(tables_root(tables), experiment.load_device())
    operators = space.operators()
    lacking = len(unmeasured(here.operators("latency_ms"), operators))
    table = profile_operators(here, operators, progress=progress)
    networks = profile_networks(here, space, experiment.calibration.probes, seed=experiment.seed, progress=progress)
    calibration = here.calibration(space)
    return {
        "device": here.device.name,
        "space": space.id,
        "folder": str(here.folder),
        "operators": len(operators),
        "measured_now": lacking - len([op for op in operators if op in table.bad]),
        "bad": {str(op): reason for op, reason in table.bad.items()},
        "networks": len(networks.rows),
        "noise_floor": float(networks.facts.get("noise floor", "nan")),
        "left_out_error": float(abs(calibration.left_out).mean()),
        "beside_prices": list(calibration.kept),
    }


def _verify(folder: Path, progress: Callable[[str, int, int], None]) -> tuple[list[dict[str, Any]], bool]:
    from dataclasses import asdict

    from hwnas.verify import verify as check_folder

    reports = check_folder(folder, progress=progress)
    return [asdict(report) for report in reports], all(report.passed for report in reports)


def _default_run(name: str) -> Path:
    return Path("runs") / name


def _open_run(run: str) -> Run:
    from hwnas.run import Run

    path = Path(run)
    return Run.open(path if path.is_dir() or os.sep in run else _default_run(run))


def _budgets(texts: Sequence[str]) -> dict[str, float]:
    budgets = {}
    for text in texts:
        metric, _, limit = text.partition("=")
        try:
            budgets[metric] = float(limit)
        except ValueError:
            raise ConfigError(f"--budget must look like latency_ms=0.5, but got {text!r}") from None
    return budgets


def _show_front(run: Run, as_json: bool, out: Path | None = None) -> None:
    from hwnas.front import front_of

    found = front_of(run, out)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title=f"{run.experiment.name}: {len(found['members'])} members, hypervolume {found['hypervolume']:.4g} ({found['basis']})"
    )
    columns = ["name", *(f"{name} (valid)" for name in ("accuracy",)), "test accuracy", "predicted ms", "measured p50 ms", "p90 ms"]
    perplexities = sorted({name for member in found["members"] for name in member["values"] if name.endswith("perplexity")})
    for column in [*columns, *(name.replace("_", " ") for name in perplexities)]:
        shown.add_column(column, justify="left" if column == "name" else "right")
    for member in found["members"]:
        values, predicted, measured = member["values"], member["predicted"].get("latency_ms", {}), member["measured"].get("latency_ms", {})
        cells = [values.get("accuracy"), values.get("test_accuracy"), predicted.get("mean"), measured.get("p50"), measured.get("p90")]
        texts = ["" if cell is None else f"{cell:.2%}" if i < 2 else f"{cell:.4f}" for i, cell in enumerate(cells)]
        shown.add_row(member["name"], *texts, *(f"{values[name]:.1f}" if name in values else "" for name in perplexities))
    Console().print(shown)
    for name, reason in found["left_out"].items():
        typer.echo(f"left out {name}: {reason}")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the screen; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def _plugins(kind: str, as_json: bool) -> None:
    from hwnas import plugins

    _list([{"name": entry.name, "summary": entry.summary, "missing": list(entry.missing)} for entry in plugins.listing(kind)], as_json)


def _list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        lacks = f" (needs {', '.join(row['missing'])}: pip install it)" if row["missing"] else ""
        typer.echo(f"{row['name']:{width}}  {row['summary']}{lacks}")


def _show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    for key, value in summary.items():
        typer.echo(f"{key.replace('_', ' '):16} {value}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on standard error, one for each thing that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bars: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def update(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=of)
            shown.update(bars[what], completed=min(done, of), total=of)

        yield update


def main() -> None:
    """Runs a command; an error that is the user's to mend is one sentence and exit code 2."""
    try:
        app()
    except HwnasError as error:
        if os.environ.get("HWNAS_TRACEBACK"):
            raise
        typer.echo(f"hwnas: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("hwnas: interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    except OSError as error:
        if os.environ.get("HWNAS_TRACEBACK"):
            raise
        typer.echo(f"hwnas: {error.strerror or error}: {error.filename or 'no file named'}; check the path and its permissions", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
