"""The referee: what it reports follows from the trials, it goes on after a kill, trains nothing twice, and refuses what does not fit."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
import yaml
from PIL import Image

from hwnas import cli, profile, resources
from hwnas import compare as module
from hwnas.compare import BASELINE, Comparison, Contest, Referee, band, compare, confidence, contest_path, needed, parse_entries
from hwnas.compare_chart import checkpoints, curves, draw, tables
from hwnas.config import Experiment, load_experiment, parse
from hwnas.errors import BudgetError, ConfigError, PluginError, RunError, TableError
from hwnas.space import Architecture

EXPERIMENT = """\
name: small
space:
  name: mobilenet_v2
  input_size: 8
  channels: 1
  classes: 10
  stem_width: 4
  head_width: 8
  kernels: [3, 5, 7]
  expansions: [1, 2]
  stages: [{widths: [4, 8], depth: 2, stride: 1}]
objectives: [accuracy, latency_ms]
evaluator: {name: tabular, file: bench.npz, values: {accuracy: quality, latency_ms: latency}}
batch: 4
"""


@pytest.fixture(scope="session")
def tabulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment on 84 networks and the file of their values: larger is slower and better, with a twist."""
    folder = tmp_path_factory.mktemp("tabulated")
    (folder / "small.yaml").write_text(EXPERIMENT, encoding="utf-8")
    space = parse(Experiment, yaml.safe_load(EXPERIMENT), "EXPERIMENT").load_space()
    archs = list(space.all())
    latency = np.array([sum(resources.macs(op) for op in space.lower(arch)) for arch in archs]) / 1e4
    quality = 0.5 + 0.1 * np.tanh(latency / latency.mean()) + 0.01 * np.sin(7 * latency)
    np.savez(folder / "bench.npz", ops=np.array(archs), latency=latency, quality=quality)
    return folder


@pytest.fixture
def small(tabulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment, with its file in the current folder."""
    for name in ("small.yaml", "bench.npz"):
        shutil.copy(tabulated / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return load_experiment("small.yaml")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The contests that are played from now on."""
    done: list[tuple[str, int]] = []
    play = Referee.play

    def noted(self: Referee, entry: module.Entry, seed: int, *rest: Any) -> Contest:
        done.append((entry.label, seed))
        return play(self, entry, seed, *rest)

    monkeypatch.setattr(Referee, "play", noted)
    return done


def timeless(found: Comparison) -> dict[str, Any]:
    """What does not hang on the clock."""
    content: dict[str, Any] = json.loads(found.json())
    for one in content["searchers"]:
        assert 0 <= one.pop("ask_s_median") <= one.pop("ask_s_max")
    return content


def test_what_is_reported_follows_from_the_trials(small: Experiment, tmp_path: Path) -> None:
    """Against hypervolume in the box of the true front's ideal and nadir, its far corner at 1.1, over all 84 networks."""
    found = compare(small, ["nsga2:population=6"], tmp_path / "out", seeds=3, budget=30)
    table = np.load("bench.npz")
    everything = np.stack([-table["quality"], table["latency"]], 1)
    front = everything[moocore.is_nondominated(everything)]
    ideal, nadir = front.min(0), front.max(0)

    def volume(values: Any) -> float:
        scaled = (np.array(values) - ideal) / (nadir - ideal)
        return float(moocore.hypervolume(scaled[(scaled < 1.1).all(1)], ref=[1.1, 1.1]))

    assert found.front.true and found.front.members == len(np.unique(front, axis=0))
    assert [one.label for one in found.searchers] == [BASELINE, "nsga2:population=6"]
    assert found.searchers[1].options == {"population": 6}
    for one in found.searchers:
        curves_of = []
        for number, seed in enumerate(found.seeds):
            contest = Contest.model_validate_json(contest_path(tmp_path / "out", one.label, seed).read_text())
            rows = {tuple(row): i for i, row in enumerate(table["ops"].tolist())}
            values = [[-table["quality"][rows[tuple(arch)]], table["latency"][rows[tuple(arch)]]] for arch in contest.archs]
            assert [[-row[0], row[1]] for row in contest.values] == values  # type: ignore[operator]
            assert [n for n, _ in contest.asks] == [4] * 7 + [2]
            shares = [volume(values[: n + 1]) / volume(front) for n in range(30)]
            assert one.final[number] == pytest.approx(shares[-1])
            assert one.needed[1].by_seed[number] == next((n for n, share in enumerate(shares, 1) if share >= 0.95), None)
            curves_of.append(shares)
        np.testing.assert_allclose(one.median, np.median(curves_of, axis=0))
        np.testing.assert_allclose(one.low, np.min(curves_of, axis=0))  # of three seeds
        np.testing.assert_allclose(one.high, np.max(curves_of, axis=0))


def test_bands_hold_the_median_as_surely_as_they_say(rng: np.random.Generator) -> None:
    assert [round(confidence(seeds), 4) for seeds in (1, 2, 5, 6, 20)] == [0, 0.5, 0.9375, 0.9688, 0.9586]
    for seeds in (6, 9, 20):
        median, low, high = band(rng.exponential(size=(seeds, 4000)))
        held = float(((low <= math.log(2)) & (math.log(2) <= high)).mean())
        assert held == pytest.approx(confidence(seeds), abs=0.012) and held > 0.94
        assert (low <= median).all() and (median <= high).all()


def test_evaluations_needed() -> None:
    rows = np.array([[0.1, 0.9, 0.95], [0.2, 0.5, 0.9], [0.1, 0.2, 0.3]])
    assert needed(rows, 0.9) == module.Needed(0.9, [2, 3, None], 3.0, 2)
    assert needed(rows, 0.95) == module.Needed(0.95, [3, None, None], None, 1)


def test_a_searcher_that_has_asked_for_everything_keeps_what_it_has(small: Experiment, tmp_path: Path) -> None:
    found = compare(small, ["random"], tmp_path / "out", seeds=2, budget=100)
    (one,) = found.searchers
    space = small.load_space()
    assert one.evaluations == [len({space.identity(arch) for arch in space.all()})] * 2
    assert len(one.median) == 100 and one.median[-1] == pytest.approx(1) and one.final == [one.median[-1]] * 2
    assert "ended after" in tables(found)[0][2][0][0]


def test_budgets_bound_the_true_front_too(small: Experiment, tmp_path: Path) -> None:
    limit = float(np.quantile(np.load("bench.npz")["latency"], 0.5))
    bounded = small.model_copy(update={"budgets": {"latency_ms": limit}})
    found = compare(bounded, ["nsga2"], tmp_path / "out", seeds=1, budget=60)
    assert found.searchers[0].final == [pytest.approx(1)]
    contest = Contest.model_validate_json(contest_path(tmp_path / "out", "nsga2", 0).read_text())
    assert max(row[1] or 0 for row in contest.values) <= limit


@pytest.mark.parametrize("stopped_after", [0, 3, 5])
def test_killed_and_started_again_it_gives_the_same(
    small: Experiment, tmp_path: Path, played: list[tuple[str, int]], stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a contest; finished ones are not played again, and the unfinished is."""
    whole = compare(small, ["nsga2"], tmp_path / "whole", seeds=3, budget=10)
    assert len(played) == 6
    played.clear()
    values = Referee.values

    def stop(self: Referee, archs: Sequence[Architecture]) -> list[dict[str, float]]:
        if len(played) > stopped_after:
            raise KeyboardInterrupt
        return values(self, archs)

    monkeypatch.setattr(Referee, "values", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(small, ["nsga2"], tmp_path / "out", seeds=3, budget=10)
    monkeypatch.setattr(Referee, "values", values)
    assert len(list((tmp_path / "out").glob("contests/*"))) == stopped_after
    played.clear()
    assert timeless(compare(small, ["nsga2"], tmp_path / "out", seeds=3, budget=10)) == timeless(whole)
    assert len(played) == 6 - stopped_after


def test_half_of_the_files_and_more_seeds_and_searchers_later(small: Experiment, tmp_path: Path, played: list[tuple[str, int]]) -> None:
    compare(small, ["nsga2"], tmp_path / "out", seeds=2, budget=10)
    for seed in (0, 1):
        contest_path(tmp_path / "out", "nsga2", seed).unlink()
    (tmp_path / "out" / "contests" / ".nsga2_0.json.x").write_text("{")  # what a kill while writing leaves
    played.clear()
    found = compare(small, ["nsga2", "regularized_evolution"], tmp_path / "out", seeds=3, budget=10)
    assert sorted(played) == [("nsga2", 0), ("nsga2", 1), ("nsga2", 2), ("random", 2)] + [("regularized_evolution", i) for i in range(3)]
    assert len(found.searchers) == 3 and all(len(one.final) == 3 for one in found.searchers)


@pytest.mark.slow
def test_processes_change_nothing(small: Experiment, tmp_path: Path) -> None:
    one, two = (compare(small, ["nsga2"], tmp_path / str(jobs), seeds=3, budget=10, jobs=jobs) for jobs in (1, 2))
    assert timeless(one) == timeless(two)


def test_a_folder_of_something_else_is_refused(small: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(small, ["random"], out, seeds=1, budget=10)
    path = contest_path(out, "random", 0)
    kept = path.read_text()

    def refused(says: str, **options: Any) -> None:
        with pytest.raises(RunError, match=says):
            compare(options.pop("experiment", small), ["random"], out, **{"seeds": 1, "budget": 10, **options})

    refused("another comparison \\(budget: 10 there, 12 now\\)", budget=12)
    refused("another comparison \\(batch: 4 there, 5 now\\)", experiment=small.model_copy(update={"batch": 5}))
    for broken, says in (
        (kept[:-40], "random_0.json is damaged"),
        (
            kept.replace('"seed":0', '"seed":7'),
            "holds the contest of random with seed 7 and 10 evaluations, not that of random with seed 0",
        ),
        (kept.replace('"budget":10', '"budget":11'), "damaged .*it has 10 architectures"),
        (kept.replace('"format":1', '"format":2'), "damaged"),
    ):
        assert broken != kept
        path.write_text(broken)
        refused(says)
    path.write_text(kept)
    arrays = dict(np.load("bench.npz"))
    np.savez("bench.npz", **{**arrays, "quality": arrays["quality"] / 2})
    refused("another comparison \\(sample")
    np.savez("bench.npz", **arrays)
    compare(small, ["random"], out, seeds=1, budget=10)
    (out / "comparison.json").write_text("{")
    refused("comparison.json is damaged")
    (out / "comparison.json").unlink()
    refused("holds contests, but no comparison.json")


def test_names_and_options() -> None:
    found = parse_entries(
        ["nsga2", "nsga2:population=20:mutation=0.2", "optuna:sampler=nsgaii:options.population_size=8", "random", "nsga2"]
    )
    assert [entry.label for entry in found][:2] == ["random", "nsga2"] and len(found) == 4
    assert found[2].searcher.options == {"population": 20, "mutation": 0.2}
    assert found[3].searcher.options == {"sampler": "nsgaii", "options": {"population_size": 8}}
    with pytest.raises(PluginError, match="no searcher called 'nsga'; did you mean 'nsga"):
        parse_entries(["nsga"])
    with pytest.raises(ConfigError, match="'nsga2' has no option 'populaton'; did you mean 'population'"):
        parse_entries(["nsga2:populaton=3"])
    with pytest.raises(ConfigError, match="key=value"):
        parse_entries(["nsga2:population"])


def test_who_cannot_serve_is_named_and_left_out(small: Experiment, tmp_path: Path) -> None:
    found = compare(small, ["snas", "nsga2"], tmp_path / "out", seeds=1, budget=5)
    assert [one.label for one in found.searchers] == ["random", "nsga2"]
    assert "needs data to train it on" in found.left_out["snas"]
    with pytest.raises(ConfigError, match="none of the searchers serves this experiment: snas: .*needs data"):
        compare(small, ["snas"], tmp_path / "other", seeds=1, budget=5)
    assert not (tmp_path / "other").exists()


def test_numbers_that_cannot_be_meant(small: Experiment, tmp_path: Path) -> None:
    for name in ("seeds", "budget", "jobs"):
        numbers: dict[str, Any] = {name: 0}
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, but is 0"):
            compare(small, ["random"], tmp_path / "out", **numbers)
    with pytest.raises(BudgetError, match="cannot be met"):
        compare(small.model_copy(update={"budgets": {"latency_ms": 1e-9}}), ["random"], tmp_path / "out")
    Path("bench.npz").unlink()
    with pytest.raises(TableError, match="there is no file bench.npz"):
        compare(small, ["random"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Counting:
    """An evaluator that stands for training: counts, and now and then gives no number."""

    def __init__(self) -> None:
        self.trained: Counter[Architecture] = Counter()

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        pass

    def evaluate(self, archs: Sequence[Architecture], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        for number in reversed(range(len(archs))):
            self.trained[archs[number]] += 1
            error = math.nan if sum(archs[number]) % 5 == 0 else (seeds[number] % 97) / 97
            yield number, {"error": error, "accuracy": 1 - error, "loss": 1.0}

    def close(self) -> None:
        pass


def test_nothing_is_trained_twice_by_whomever_it_is_asked_for(tiny: Path, local_fingerprint: dict[str, str], monkeypatch: Any) -> None:
    monkeypatch.setattr(profile, "fingerprint", lambda device: dict(local_fingerprint))
    training = Counting()
    monkeypatch.setattr(module, "make_evaluator", lambda assembly, shared: training)
    experiment, out = load_experiment("tiny.yaml"), tiny / "out"
    whole = compare(experiment, ["nsga2:population=30"], out, seeds=2, budget=12)
    asked = Counter(tuple(arch) for path in out.glob("contests/*.json") for arch in Contest.model_validate_json(path.read_text()).archs)
    assert sum(asked.values()) == 48 > len(asked)
    assert training.trained == Counter(dict.fromkeys(asked, 1))
    assert not whole.front.true and not whole.searchers[0].needed
    assert 0 < max(one.median[-1] for one in whole.searchers) <= 1
    for path in out.glob("contests/*.json"):
        path.unlink()
    lines = (out / "evaluations.jsonl").read_text()
    (out / "evaluations.jsonl").write_text(lines[:-9])  # killed while it was written
    training.trained.clear()
    assert timeless(compare(experiment, ["nsga2:population=30"], out, seeds=2, budget=12)) == timeless(whole)
    assert sum(training.trained.values()) == 1
    assert sorted((out / "evaluations.jsonl").read_text().splitlines()) == sorted(lines.splitlines())
    contest_path(out, "random", 0).unlink()
    (out / "evaluations.jsonl").write_text("{}\n" + lines)
    with pytest.raises(RunError, match="line 1 of .*evaluations.jsonl is damaged"):
        compare(experiment, ["nsga2:population=30"], out, seeds=2, budget=12)
    with pytest.raises(ConfigError, match="jobs must be 1 where networks are trained"):
        compare(experiment, ["nsga2"], tiny / "other", jobs=2)


@pytest.mark.slow
def test_real_training_with_a_searcher_that_trains_a_supernet(tiny: Path) -> None:
    """Scores are the shared evaluator's, whoever asks; the searcher's own supernet is another."""
    from hwnas.profile import DeviceTables, profile_networks, profile_operators

    experiment = load_experiment("tiny.yaml")
    here = DeviceTables.here(tiny / "latency_tables", experiment.load_device())
    profile_operators(here, experiment.load_space().operators())
    profile_networks(here, experiment.load_space(), 12, seed=0)
    found = compare(experiment, ["snas:epochs=2:epochs_per_ask=1:samples=3:batch_size=16"], tiny / "out", seeds=2, budget=6)
    values: dict[tuple[int, ...], Any] = {}
    for path in (tiny / "out" / "contests").glob("*.json"):
        contest = Contest.model_validate_json(path.read_text())
        for arch, row in zip(contest.archs, contest.values, strict=True):
            assert values.setdefault(tuple(arch), row) == row
    assert [one.evaluations for one in found.searchers] == [[6, 6], [6, 6]]


@pytest.mark.parametrize(
    ("label", "trains"),
    [("snas", True), ("enas", True), ("enas:weights=none", False), ("parsec:likelihood=told", False), ("random", False)],
)
def test_who_trains_a_supernet_never_touches_the_evaluators(tiny: Path, label: str, trains: bool) -> None:
    """Whether one does is decided by its options and by what the experiment has."""
    referee = Referee(load_experiment("tiny.yaml"), tiny / "out")
    (entry,) = [entry for entry in module.parse_entries([label]) if entry.label == label]
    searcher = referee.searcher(entry, 1)
    assert searcher.needs_shared_weights == trains
    assert (searcher.problem.shared is not referee.shared) == trains


def comparison(searchers: int) -> Comparison:
    """Made up: each a little better than the one before."""
    front = module.Front(True, 5, [1.0, 1.0], 1.0)
    curve = np.linspace(0.1, 0.9, 40)
    standings = []
    for i in range(searchers):
        rows = np.array([curve + 0.001 * i + noise for noise in (-0.01, 0, 0.01)])
        median, low, high = (ends.tolist() for ends in band(rows))
        label = f"searcher{i}" if i else BASELINE
        many = [needed(rows, share) for share in module.TARGETS]
        standings.append(module.Standing(label, label, {}, [40] * 3, rows[:, -1].tolist(), median, low, high, many, 0.01, 0.1))
    return Comparison("made up", "tabular", ["error", "latency_ms"], {}, 40, 8, [0, 1, 2], 0.75, front, standings, {"x": "why"})


def test_the_tables_have_the_best_first() -> None:
    (_, header, shares), (_, targets, costs) = tables(comparison(3))
    assert header == ["searcher", "at 5", "at 10", "at 20", "at 40", "band at 40"]
    assert [row[0] for row in shares] == [row[0] for row in costs] == ["searcher2", "searcher1", "random"]
    assert shares[2][-2:] == ["90.00%", "89.0 - 91.0%"]
    assert targets == ["searcher", "90%", "95%", "99%", "median ask", "longest"]
    assert costs[2] == ["random", "40 (2/3)", "- (0/3)", "- (0/3)", "0.010", "0.100"]
    assert checkpoints(1) == [1] and checkpoints(400) == [50, 100, 200, 400]


def test_every_curve_has_looks_of_its_own() -> None:
    drawn = curves(comparison(25))
    assert len({(curve.colour, curve.style) for curve in drawn}) == 25
    np.testing.assert_array_equal(drawn[3].evaluations, np.arange(1, 41))
    np.testing.assert_allclose(drawn[3].high - drawn[3].low, 0.02)


@pytest.mark.parametrize("searchers", [1, 12])
def test_the_picture_opens(tmp_path: Path, searchers: int) -> None:
    draw(comparison(searchers), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 1500 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    with pytest.raises(ConfigError, match=".png or .svg"):
        draw(comparison(1), tmp_path / "c.pdf")


def test_the_command(small: Experiment, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hwnas", "compare", "small.yaml", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capfd.readouterr()

    code, out, _ = run("--searchers", "nsga2,snas", "--seeds", "2", "--budget", "8")
    assert code == 0 and "at 8" in out and "nsga2" in out and "left out snas: SNAS trains a supernet" in out
    folder = Path("runs/compare_small")
    assert (folder / "comparison.png").stat().st_size > 10_000
    code, out, _ = run("--searchers", "nsga2,snas", "--seeds", "2", "--budget", "8", "--json")
    found = json.loads(out)
    assert code == 0 and found == json.loads((folder / "result.json").read_text())
    assert found["format"] == 1 and set(found) == set(Comparison.__dataclass_fields__)
    for arguments, says in (
        (("--searchers", "nsga22"), "did you mean 'nsga2'"),
        (("--searchers", "snas"), "none of the searchers serves this experiment"),
        (("--seeds", "0"), "seeds must be at least 1"),
        (("--budget", "9"), "holds another comparison"),
        (("evaluator.file=none.npz",), "there is no file none.npz"),
        (("budgets.latency_ms=0.000001",), "cannot be met"),
        (("--out", "small.yaml/x"), "small.yaml/x"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1 and says in err, err
