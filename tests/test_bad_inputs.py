"""Bad inputs through the command line: one sentence that says what is wrong, exit code 2, no traceback, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas import cli, profile
from hwnas.device import Device
from hwnas.measure import Worker

Refused = Callable[..., str]


def contents(folder: Path) -> dict[Path, str]:
    """Every file in the folder by its SHA-256."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def sentence(code: object, err: str) -> str:
    """The one line on standard error beside progress bars, of a command that ended with exit code 2."""
    assert "Traceback" not in err, err
    assert code == 2, (code, err)
    lines = [line for line in err.splitlines() if line.strip() and not re.search(r"\d+/\d+ +\d+:\d\d:\d\d ", line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("hwnas: "), err
    return lines[0].removeprefix("hwnas: ")


@pytest.fixture
def refused(tiny: Path, local_fingerprint: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs `hwnas` with these arguments, which it must refuse; gives the sentence that says why."""
    monkeypatch.setattr(profile, "fingerprint", lambda device: dict(local_fingerprint))  # as found, half a second earlier
    monkeypatch.delenv("HWNAS_TRACEBACK", raising=False)

    def call(*arguments: str) -> str:
        before = contents(tiny)
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["hwnas", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = sentence(ended.value.code, capfd.readouterr().err)
        after = contents(tiny)
        assert {path: after.get(path) for path in before} == before
        return found

    return call


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("search quickstrat", ["'quickstrat'", "'quickstart'"]),
        ("search nowhere/tiny.yaml", ["nowhere/tiny.yaml"]),
        ("search tiny.yaml device=cpu-1", ["'cpu-1'", "'cpu-1t'"]),
        ("profile cpu-3t tiny.yaml", ["'cpu-3t'", "did you mean"]),
        ("table check cpu-9t", ["'cpu-9t'", "did you mean"]),
        ("search tiny.yaml space.name=nasbench200", ["'nasbench200'", "'nasbench201'"]),
        ("search tiny.yaml searcher.name=nsga9", ["'nsga9'", "'nsga"]),
        ("search tiny.yaml evaluator.name=shard", ["'shard'", "'shared'"]),
        ("search tiny.yaml exporter.name=onx", ["'onx'", "'onnx'"]),
        ("search tiny.yaml data.name=digit", ["'digit'", "'digits'"]),
        ("search tiny.yaml objectives=[error,latency]", ["'latency'", "'latency_ms'"]),
        ("search tiny.yaml objectives=[]", ["objectives"]),
        ("search tiny.yaml budgets.latency=1", ["'latency'", "'latency_ms'"]),
        ("search tiny.yaml trails=5", ["'trails'", "'trials'"]),
        ("search tiny.yaml final.member=5", ["member", "'members'"]),
        ("search tiny.yaml final.training.epoch=5", ["'epoch'", "'epochs'"]),
        ("search tiny.yaml evaluator.epoch=5", ["'epoch'", "'epochs'"]),
        ("search tiny.yaml searcher.populaton=5", ["'populaton'", "'population'"]),
        ("search tiny.yaml space.withd=5", ["'withd'", "'width'"]),
        ("search tiny.yaml data.limt=5", ["'limt'", "'limit'"]),
        ("search tiny.yaml trials", ["'trials'", "key=value"]),
        ("search tiny.yaml =3", ["'=3'", "key=value"]),
        ("search tiny.yaml trials.more=3", ["'trials'", "12"]),
        ("search tiny.yaml trials=many", ["trials", "'many'"]),
        ("search tiny.yaml trials=0", ["trials", "0"]),
        ("search tiny.yaml trials=[1", ["trials=[1", "YAML"]),
        ("search tiny.yaml name=../elsewhere", ["name", "../elsewhere"]),
        ("search tiny.yaml budgets.latency_ms=0", ["latency_ms", "greater than 0"]),
        ("search tiny.yaml budgets.latency_ms=-1", ["latency_ms", "-1"]),
        ("search tiny.yaml budgets.latency_ms=.nan", ["latency_ms", "nan"]),
        ("search tiny.yaml budgets.latency_ms=.inf", ["latency_ms", "inf"]),
        ("search tiny.yaml confidence=1.5", ["confidence", "1.5"]),
        ("search tiny.yaml evaluator.lr=-1", ["lr", "-1"]),
        ("search tiny.yaml searcher.population=0", ["population", "0"]),
        ("search tiny.yaml space.input_size=2", ["input_size", "2"]),
        ("search tiny.yaml data.limit=3", ["limit", "10"]),
        ("search tiny.yaml space.input_size=16", ["(1, 8, 8)", "(1, 16, 16)", "space.input_size"]),
        ("search tiny.yaml space.classes=7", ["10 classes", "space.classes"]),
        ("search tiny.yaml data={name:npz,train:none.npz}", ["none.npz"]),
        ("search tiny.yaml data={name:image_folder,path:none,size:8}", ["none", "train"]),
        ("search tiny.yaml space.width=8", ["not been measured", "hwnas profile cpu-1t"]),
        ("search tiny.yaml --run tiny.yaml/run", ["tiny.yaml/run", "--run"]),
        ("search tiny.yaml --run /proc/hwnas/run", ["/proc/hwnas/run", "--run"]),
        ("front nothing", ["runs/nothing", "config.yaml", "hwnas search"]),
        ("export latency_tables", ["latency_tables", "config.yaml"]),
        ("report latency_tables", ["latency_tables", "config.yaml"]),
        ("verify latency_tables", ["latency_tables", "manifest.json", "hwnas export"]),
        ("verify nowhere", ["nowhere", "manifest.json"]),
        ("table check tiny.csv", ["tiny.csv"]),
    ],
)  # fmt: skip
def test_arguments(refused: Refused, arguments: str, says: list[str]) -> None:
    found = refused(*(part.replace(":", ": ") if part.startswith("data={") else part for part in arguments.split()))
    assert all(words in found for words in says), found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trials: [1, 2\nname: tiny\n", ["line 2", "YAML"]),
        ("- one\n- two\n", ["list", "mapping"]),
        ("", ["mapping"]),
        ("data: {name: digits}\n", ["space", "required"]),
        ("space: nasbench201\ndata: {name: digits}\n", ["space", "'nasbench201'"]),
        ("1: 2\n", ["1"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["YAML"]),
    ],
    ids=["broken", "a list", "empty", "a key is missing", "a name without a section", "a number as key", "code"],
)
def test_configurations(refused: Refused, tiny: Path, text: str, says: list[str]) -> None:
    (tiny / "bad.yaml").write_text(text, encoding="utf-8")
    found = refused("search", "bad.yaml")
    assert "bad.yaml" in found and all(words in found for words in says), found


def test_configuration_that_is_no_text(refused: Refused, tiny: Path) -> None:
    (tiny / "bad.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "UTF-8" in refused("search", "bad.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("backend: onnxruntime\nthread: 2\n", ["'thread'", "'threads'"]),
        ("backend: onnxruntime\nthreads: 4096\n", ["threads", "4096"]),
        ("backend: onnxruntime\nprecision: int3\n", ["precision", "'int3'"]),
        ("threads: 2\n", ["backend", "required"]),
        ("backend: onnxruntime\nenergy: {source: modelled, picojoules_per_mac: -1}\n", ["picojoules_per_mac", "-1"]),
        ("backend: [\n", ["YAML"]),
    ],
    ids=["unknown key", "too many threads", "precision", "no backend", "energy", "broken"],
)
def test_devices(refused: Refused, tiny: Path, text: str, says: list[str]) -> None:
    (tiny / "mine.yaml").write_text(text, encoding="utf-8")
    found = refused("search", "tiny.yaml", "device=mine.yaml")
    assert "mine.yaml" in found and all(words in found for words in says), found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("backend: onnxruntim\n", ["'onnxruntim'", "'onnxruntime'"]),
        ("backend: onnxruntime\noptions: {provder: x}\n", ["'provder'", "'provider'"]),
        ("backend: onnxruntime\noptions: {provider: CUDAExecutionProvidr}\n", ["'CUDAExecutionProvidr'"]),
    ],
    ids=["backend", "option", "provider"],
)
def test_devices_that_the_worker_refuses(refused: Refused, tiny: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: list[str]) -> None:
    def really(device: Device) -> dict[str, str]:
        with Worker(device) as worker:
            return worker.fingerprint

    monkeypatch.setattr(profile, "fingerprint", really)
    (tiny / "mine.yaml").write_text(text, encoding="utf-8")
    found = refused("search", "tiny.yaml", "device=mine.yaml")
    assert all(words in found for words in says), found


def test_even_where_devices_lists_them(refused: Refused, tiny: Path) -> None:
    (tiny / "devices").mkdir()
    (tiny / "devices" / "mine.yaml").write_text("backend: onnxruntime\nthread: 2\n", encoding="utf-8")
    assert "'threads'" in refused("devices")


def test_a_budget_that_cannot_be_met_names_the_fastest_and_what_dominates_it(refused: Refused) -> None:
    found = refused("search", "tiny.yaml", "budgets.latency_ms=0.001")
    assert "latency_ms=0.001" in found and "|none~0|" in found and "resnet_reduction:" in found and "%" in found
    assert "raise the budget to at least" in found


def test_budgets_that_cannot_be_met_together_or_by_exact_metrics(refused: Refused) -> None:
    assert "params" in refused("search", "tiny.yaml", "budgets.params=10")


def edited(path: Path, edit: Callable[[list[str]], list[str]]) -> Path:
    """The table with its rows (all lines behind the columns) changed."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#")) + 1
    path.write_text("\n".join([*lines[:first], *edit(lines[first:])]) + "\n", encoding="utf-8")
    return path


def cell(row: str, column: int, value: str) -> str:
    cells = row.split(",")
    return ",".join([*cells[:column], value, *cells[column + 1 :]])


ROWS: dict[str, tuple[Callable[[list[str]], list[str]], list[str]]] = {
    "missing price": (lambda rows: [cell(rows[0], 1, ""), *rows[1:]], ["line", "price", "nan"]),
    "negative price": (lambda rows: [cell(rows[0], 1, "-0.1"), *rows[1:]], ["line", "-0.1"]),
    "price is no number": (lambda rows: [cell(rows[0], 1, "NaN"), *rows[1:]], ["line", "nan"]),
    "infinite price": (lambda rows: [cell(rows[0], 1, "inf"), *rows[1:]], ["line", "inf"]),
    "a word for a price": (lambda rows: [cell(rows[0], 1, "fast"), *rows[1:]], ["line", "'fast'"]),
    "duplicate row": (lambda rows: [*rows, rows[0]], ["line", "second time"]),
    "no operator": (lambda rows: [cell(rows[0], 0, "conv3x3"), *rows[1:]], ["line", "'conv3x3'"]),
    "unknown source": (lambda rows: [cell(rows[0], 6, "guessed"), *rows[1:]], ["line", "'guessed'"]),
    "short row": (lambda rows: [rows[0].rpartition(",")[0], *rows[1:]], ["line"]),
    "operator missing": (lambda rows: rows[1:], ["1 operators", "hwnas profile"]),
    "empty": (lambda rows: [], ["22 operators", "hwnas profile"]),
}


@pytest.mark.parametrize("damage", ROWS)
def test_rows_of_a_table(refused: Refused, tiny: Path, damage: str) -> None:
    edit, says = ROWS[damage]
    edited(next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv")), edit)
    found = refused("search", "tiny.yaml")
    assert all(words in found for words in says), found


NETWORKS: dict[str, tuple[Callable[[list[str]], list[str]], list[str]]] = {
    "none": (lambda rows: [], ["whole networks", "hwnas profile"]),
    "few": (lambda rows: rows[:5], ["at least 8", "5"]),
    "garbage": (lambda rows: ["\x00garbage"], ["line"]),
    "negative": (lambda rows: [cell(rows[0], 1, "-1"), *rows[1:]], ["line", "-1"]),
    "zero": (lambda rows: [cell(rows[0], 1, "0"), *rows[1:]], ["line", "0"]),
    "of another space": (lambda rows: [cell(rows[0], 0, "1-2"), *rows[1:]], ["1", "2"]),
    "choice out of range": (lambda rows: [cell(rows[0], 0, "1-2-3-4-5-9"), *rows[1:]], ["9"]),
}


@pytest.mark.parametrize("damage", NETWORKS)
def test_measured_networks(refused: Refused, tiny: Path, damage: str) -> None:
    edit, says = NETWORKS[damage]
    edited(next(tiny.glob("latency_tables/cpu-1t/*/networks/*.csv")), edit)
    found = refused("search", "tiny.yaml")
    assert all(words in found for words in says), found


@pytest.mark.parametrize("name", ["latency_ms.csv", "networks/*.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x81", b"a,b\n1,2\n"], ids=["empty", "no text", "columns"])
def test_files_that_are_no_tables(refused: Refused, tiny: Path, name: str, content: bytes) -> None:
    path = next(tiny.glob(f"latency_tables/cpu-1t/*/{name}"))
    path.write_bytes(content)
    assert path.name in refused("search", "tiny.yaml")


@pytest.mark.parametrize("name", ["latency_ms.csv", "networks/*.csv"])
def test_a_table_with_the_header_of_another_machine(refused: Refused, tiny: Path, name: str) -> None:
    path = next(tiny.glob(f"latency_tables/cpu-1t/*/{name}"))
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = ["# fingerprint cpu: Z80" if line.startswith("# fingerprint cpu:") else line for line in lines]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = refused("search", "tiny.yaml")
    assert "measured elsewhere" in found and "cpu: 'Z80'" in found


def test_tables_of_another_machine_only(refused: Refused, tiny: Path) -> None:
    path = next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))
    text = path.read_text(encoding="utf-8")
    old = next(line for line in text.splitlines() if line.startswith("# fingerprint runtime_version:"))
    path.write_text(text.replace(old, "# fingerprint runtime_version: 0.0.1"), encoding="utf-8")
    path.parent.rename(path.parent.with_name("01234567"))
    for arguments in (["search", "tiny.yaml"], ["table", "check", "cpu-1t"]):
        found = refused(*arguments)
        assert "01234567 differs in runtime_version: '0.0.1'" in found and "hwnas profile" in found


def test_a_table_to_check_that_is_of_another_machine(refused: Refused, tiny: Path) -> None:
    folder = next(tiny.glob("latency_tables/cpu-1t/*"))
    folder.rename(folder.with_name("01234567"))
    path = next(tiny.glob("latency_tables/cpu-1t/*/networks/*.csv"))
    assert "measured elsewhere" in refused("table", "check", str(path))


def test_networks_that_do_not_say_of_which_space_they_are(refused: Refused, tiny: Path) -> None:
    path = next(tiny.glob("latency_tables/cpu-1t/*/networks/*.csv"))
    path.write_text("".join(line for line in path.open() if not line.startswith("# fact space")), encoding="utf-8")
    assert "of which space" in refused("table", "check", "cpu-1t")


def npz(folder: Path, *, images: tuple[int, ...] = (60, 8, 8), largest: int = 9, **more: object) -> str:
    """The override for a data set of random images in one file."""
    labels = np.arange(images[0]) % (largest + 1)
    np.savez(folder / "data.npz", x_train=np.zeros(images, dtype=np.uint8), **{"y_train": labels, **more})  # type: ignore[arg-type]
    return "data={name: npz, train: data.npz}"


def test_arrays(refused: Refused, tiny: Path) -> None:
    names = np.array(list("0123456789"))
    assert "10" in refused("search", "tiny.yaml", npz(tiny, largest=12, class_names=names))
    assert "from -1" in refused("search", "tiny.yaml", npz(tiny, y_train=np.arange(60) % 10 - 1))
    assert "60 whole numbers" in refused("search", "tiny.yaml", npz(tiny, y_train=np.arange(59) % 10))
    assert "float64" in refused("search", "tiny.yaml", npz(tiny, x_train_=1, y_train=np.linspace(0, 9, 60)))
    assert "(1, 9, 9)" in refused("search", "tiny.yaml", npz(tiny, images=(60, 9, 9)))
    assert "(3, 8, 8)" in refused("search", "tiny.yaml", npz(tiny, images=(60, 8, 8, 3)))
    assert "5 classes" in refused("search", "tiny.yaml", npz(tiny, largest=4))


def test_files_that_are_no_arrays(refused: Refused, tiny: Path) -> None:
    override = npz(tiny)
    whole = (tiny / "data.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"garbage", b"", whole.replace(b"x_train", b"z_train")):
        (tiny / "data.npz").write_bytes(damaged)
        assert "data.npz" in refused("search", "tiny.yaml", override)
    (tiny / "data.npz").unlink()
    (tiny / "data.npz").mkdir()
    assert "data.npz" in refused("search", "tiny.yaml", override)


def test_images(refused: Refused, tiny: Path) -> None:
    override = "data={name: image_folder, path: images, size: 8, channels: 1}"
    for label in range(10):
        folder = tiny / "images" / "train" / str(label)
        folder.mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((9, 9), 20 * label, dtype=np.uint8)).save(folder / f"{number}.png")
    path = tiny / "images" / "train" / "3" / "2.png"
    for damaged in (path.read_bytes()[:40], b"not an image"):
        path.write_bytes(damaged)
        assert "2.png cannot be read as an image" in refused("search", "tiny.yaml", override)
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    assert "holds none" in refused("search", "tiny.yaml", override)
    path.parent.rmdir()
    assert "9 classes" in refused("search", "tiny.yaml", override)


@pytest.fixture
def run(finished_run: Path, tiny: Path) -> Path:
    """A finished run to damage, in `runs/tiny` of the current folder."""
    shutil.copytree(finished_run, tiny / "runs" / "tiny")
    return tiny / "runs" / "tiny"


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_run_of_another_configuration(refused: Refused, run: Path) -> None:
    found = refused("search", "tiny.yaml", "seed=1")
    assert "seed: 0 there, 1 now" in found and "--run" in found


def test_a_damaged_configuration_of_a_run(refused: Refused, run: Path) -> None:
    (run / "config.yaml").write_text("trials: [", encoding="utf-8")
    assert "config.yaml" in refused("front", "tiny")
    assert "config.yaml" in refused("search", "tiny.yaml")


@pytest.mark.parametrize("garbage", [True, False], ids=["garbage", "truncated"])
def test_a_corrupt_database(refused: Refused, run: Path, garbage: bool) -> None:
    if garbage:
        (run / "trials.db").write_bytes(b"garbage" * 1000)
    else:
        halve(run / "trials.db")
    found = refused("search", "tiny.yaml")
    assert "database" in found and "runs/tiny" in found


def test_a_database_in_a_storage_that_is_not_there(refused: Refused, tiny: Path) -> None:
    assert "database" in refused("search", "tiny.yaml", "storage=sqlite:////proc/none/trials.db")
    assert "database" in refused("search", "tiny.yaml", "storage=nosuch://x")
    assert not list(tiny.glob("runs/*/config.yaml"))


@pytest.mark.parametrize("override", ["budgets.latency_ms=0.001", "evaluator.name=shard", "evaluator.epochs=0", "exporter.name=onx"])
def test_what_is_refused_leaves_no_run_behind(refused: Refused, tiny: Path, override: str) -> None:
    refused("search", "tiny.yaml", override)
    assert not (tiny / "runs").exists()


def test_a_truncated_checkpoint(refused: Refused, run: Path) -> None:
    halve(run / "searcher.safetensors")
    found = refused("search", "tiny.yaml")
    assert "searcher.safetensors" in found and "delete" in found


def test_a_checkpoint_of_another_program(refused: Refused, run: Path) -> None:
    shutil.copy(run / "members" / "m00" / "weights.safetensors", run / "searcher.safetensors")
    assert "searcher.safetensors" in refused("search", "tiny.yaml")


def test_a_damaged_member(refused: Refused, run: Path) -> None:
    (run / "members" / "m00" / "member.json").write_text("{", encoding="utf-8")
    for command in (["front", "tiny"], ["export", "tiny"], ["search", "tiny.yaml"]):
        found = refused(*command)
        assert "member.json" in found and "delete" in found


def test_truncated_weights_of_a_member(refused: Refused, run: Path) -> None:
    halve(run / "members" / "m00" / "weights.safetensors")
    assert "weights.safetensors" in refused("export", "tiny")


def test_weights_of_another_member(refused: Refused, run: Path) -> None:
    shutil.copy(run / "members" / "m01" / "weights.safetensors", run / "members" / "m00" / "weights.safetensors")
    assert "m00" in refused("export", "tiny")


def test_a_run_without_members(refused: Refused, run: Path) -> None:
    shutil.rmtree(run / "members")
    for command in ("front", "export", "report"):
        assert "hwnas search" in refused(command, "tiny")


@pytest.mark.parametrize("budget", ["latency_ms", "latency_ms=", "latency_ms=fast", "=1"])
def test_malformed_budgets(refused: Refused, run: Path, budget: str) -> None:
    assert budget.partition("=")[0] in (found := refused("export", "tiny", "--budget", budget)) and "budget" in found


@pytest.mark.parametrize("budget", ["latency=1", "latency_ms=0", "latency_ms=-1", "latency_ms=nan"])
def test_budgets_that_cannot_be_meant(refused: Refused, run: Path, budget: str) -> None:
    found = refused("export", "tiny", "--budget", budget)
    assert "budget" in found and "latency" in found


def test_a_damaged_record_of_an_export(refused: Refused, run: Path) -> None:
    (run / "export").mkdir()
    (run / "export" / "export.json").write_text("{", encoding="utf-8")
    assert "export.json" in refused("front", "tiny")


def test_an_export_to_where_nothing_can_be_written(refused: Refused, run: Path) -> None:
    assert "tiny.yaml" in refused("export", "tiny", "--out", "tiny.yaml/models")


def test_a_damaged_manifest_is_a_failed_check(tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tiny / "m00").mkdir()
    (tiny / "m00" / "manifest.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["hwnas", "verify", "m00", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert ended.value.code == 1 and "Traceback" not in err
    assert json.loads(out)[0]["checks"][0]["status"] == "failed"


@pytest.mark.parametrize("arguments", [["devices", "--jsn"], ["serch"], ["search"], ["table", "check", "cpu-1t", "--networks", "1"]])
def test_what_the_parser_refuses_ends_with_2_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hwnas", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["search", "tiny.yaml", "trails=3"], "'trials'"), (["front", "nothing"], "runs/nothing"), (["verify", "."], "manifest.json")],
)
def test_as_a_process(tiny: Path, arguments: list[str], says: str) -> None:
    before = contents(tiny)
    path = os.pathsep.join(filter(None, [str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    ended = subprocess.run(
        [sys.executable, "-m", "hwnas.cli", *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert says in sentence(ended.returncode, ended.stderr)
    assert contents(tiny) == before
