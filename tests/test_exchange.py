"""Import and export through the commands: what is printed, what is refused, and that nothing is half-written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hwnas import cli, plugins
from hwnas.cost import CostModel
from hwnas.errors import FingerprintError, MissingPriceError
from hwnas.op import OpSpec
from hwnas.space import load_space
from hwnas.table import CostTable, Row

Called = Callable[..., tuple[int, str, str]]
KEY = "expanded_conv-input:8x8x8-output:8x8x8-expand:3-kernel:3-stride:1-idskip:1"
BLOCK = OpSpec.parse("mbconv:8-8:8x8:k3:e24")
# its only searched block is the one of `KEY`
SPACE = (
    "{name: mobilenet_v2, input_size: 8, stem_width: 8, head_width: 16, kernels: [3], expansions: [3], stages: [{widths: [8], depth: 1}]}"
)


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Called:
    """Runs `hwnas table ...` in an empty folder; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HWNAS_TRACEBACK", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hwnas", "table", *arguments])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capfd.readouterr()
        return int(code), out, err

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A table of one block, in ProxylessNAS's form."""
    path = tmp_path / "pixel.yaml"
    other = KEY.replace("8x8x8", "9x9x8")
    content = {KEY: {"mean": 2.0, "count": 4, "var": 1.0}, other: {"mean": 1.0, "count": 1, "var": 0.0}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def importing(file: Path, *more: str) -> list[str]:
    return ["import", str(file), "--format", "proxylessnas", "--device", "Pixel 9", "--out", "table.csv", *more]


def test_what_was_imported_and_what_was_not(called: Called, file: Path) -> None:
    code, out, _ = called(*importing(file, "--space", SPACE, "--json"))
    assert code == 0
    found = json.loads(out)
    assert found["rows"] == 1 and found["unused"] == [KEY.replace("8x8x8", "9x9x8")]
    assert [key.split(":")[0] for key in found["missing"]] == ["classifier", "conv_bn_relu", "conv_bn_relu"]
    table = CostTable.load(Path("table.csv"))
    (row,) = table.rows.values()
    assert (row.price, row.error, row.n, row.source) == (2.0, 0.5, 4, "imported") and BLOCK in table.rows
    assert table.fingerprint == {
        "source": "imported", "device": "Pixel 9", "format": "proxylessnas", "file": "pixel.yaml", "sha256": table.fingerprint["sha256"],
    }  # fmt: skip
    assert len(table.fingerprint["sha256"]) == 64
    with pytest.raises(MissingPriceError, match="no row for identity:8-8:8x8; import one of its space"):
        table.price(OpSpec("identity", 8, 8, 8, 8))
    with pytest.raises(FingerprintError, match="imported"):
        table.add({BLOCK: Row(1.0)}, {"cpu": "here"})


def test_in_words(called: Called, file: Path) -> None:
    code, out, _ = called(*importing(file, "--space", SPACE))
    assert code == 0
    assert "table.csv: 1 rows" in out and "operators of the space that the file lacks: 3" in out and "keys that the space lacks: 1" in out


def test_the_fixed_part_may_be_left_out(called: Called, file: Path) -> None:
    code, out, _ = called(*importing(file, "--space", SPACE, "--fixed-as-zero", "--json"))
    assert code == 0 and json.loads(out)["missing"] == []
    table = CostTable.load(Path("table.csv"))
    assert "classifier:16-10:8x8:s8" in table.facts["priced 0"]
    space = load_space("mobilenet_v2", {k: v for k, v in yaml.safe_load(SPACE).items() if k != "name"})
    assert float(CostModel(space, table.price).of([(0, 0)])) == 2.0


def test_written_and_read_again(called: Called, file: Path) -> None:
    assert called(*importing(file, "--space", SPACE, "--fixed-as-zero"))[0] == 0
    code, out, _ = called("export", "table.csv", "--format", "plain_csv", "--out", "plain.csv", "--json")
    assert code == 0 and json.loads(out) == {"file": "plain.csv", "written": 4, "left_out": []}
    assert called("import", "plain.csv", "--format", "plain_csv", "--device", "Pixel 9", "--out", "again.csv")[0] == 0
    first, again = CostTable.load(Path("table.csv")), CostTable.load(Path("again.csv"))
    assert {op: (row.price, row.error, row.n) for op, row in first.rows.items()} == {
        op: (row.price, row.error, row.n) for op, row in again.rows.items()
    }
    code, out, _ = called("export", "again.csv", "--format", "once_for_all", "--out", "ofa.yaml")
    assert code == 2 and not Path("ofa.yaml").exists()


def test_forms_are_listed(called: Called) -> None:
    code, out, _ = called("formats", "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == plugins.names("formats")


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: 2 * len(content) // 3])  # half of it is the first of two equally long entries


def holds(content: str) -> Callable[[Path], object]:
    """Damage: the file has this content."""
    return lambda file: file.write_text(content + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "more", "says"),
    [
        (None, ["--format", "proxylesnas"], ["'proxylesnas'", "did you mean 'proxylessnas'"]),
        (None, ["--format", "{name: proxylessnas, colum: x}"], ["'colum'"]),
        (None, ["--format", "hw_nas_bench"], ["column"]),
        (None, ["--format", "{name: hw_nas_bench, column: x}"], ["pixel.yaml", "not valid JSON"]),
        (None, ["--format", "{name"], ["--format", "'{name'"]),
        (None, ["--format", "once_for_all"], ["pixel.yaml", "none of this form"]),
        (None, ["--metric", "energy_mj"], ["latency_ms", "'energy_mj'"]),
        (None, ["--metric", "latency"], ["'latency'"]),
        (None, ["--space", "mobilnet_v2"], ["did you mean 'mobilenet_v2'"]),
        (None, ["--space", "{name: mobilenet_v2, size: 3}"], ["'size'"]),
        (None, ["--space", "fbnet"], ["none of the 2 entries", "fbnet"]),
        (None, ["--out", "pixel.yaml"], ["pixel.yaml", "there already"]),
        (None, ["--out", "/proc/hwnas/table.csv"], ["/proc/hwnas/table.csv"]),
        (cut, [], ["pixel.yaml", "get it again"]),
        (holds(f"{KEY}: {{mean: -1, count: 1, var: 1}}"), [], ["gives -1", KEY]),
        (holds(f"{KEY}: {{mean: .inf, count: 1, var: 1}}"), [], ["gives inf", KEY]),
        (holds(f"{KEY}: {{mean: 1, count: 1, var: -1}}"), [], ["var", "negative", KEY]),
        (holds(f"{KEY}: {{mean: 1, count: .nan, var: 1}}"), [], ["count", KEY]),
        (holds(f"{KEY}: {{mean: fast, count: 1, var: 1}}"), [], ["'fast'", KEY]),
        (holds(f"{KEY}: {{men: 1, count: 1, var: 1}}"), [], ["no mean", KEY]),
        (holds(f"{KEY}: {{mean: 1, count: 1}}"), [], ["no var", KEY]),
        (holds("expanded_con-input: {mean: 1}"), [], ["'expanded_con-input'", "none of this form"]),
        (holds("a: ["), [], ["not valid YAML at line"]),
        (lambda file: file.unlink(), [], ["cannot read", "pixel.yaml"]),
    ],
)  # fmt: skip
def test_what_is_refused_writes_nothing(
    called: Called, file: Path, damage: Callable[[Path], object] | None, more: list[str], says: list[str]
) -> None:
    if damage:
        damage(file)
    before = {path: path.read_bytes() for path in Path().iterdir()}
    code, out, err = called(*importing(file, "--space", SPACE, *more))
    assert code == 2 and not out and "Traceback" not in err, err
    assert len(err.splitlines()) == 1 and all(word in err for word in says), err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_device_is_named(called: Called, file: Path) -> None:
    code, _, err = called(*importing(file, "--space", SPACE, "--device", " "))
    assert code == 2 and "--device" in err and not Path("table.csv").exists()
    assert called(*importing(file, "--space", SPACE, "--device", "two\nlines"))[0] == 0
    assert CostTable.load(Path("table.csv")).device == "two lines"


def test_a_space_is_needed(called: Called, file: Path) -> None:
    code, _, err = called(*importing(file))
    assert code == 2 and "--space" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("export own.csv --format fbnet_txt --out x", ["can be imported but not written", "once_for_all"]),
        ("export own.csv --format once_for_all --out x", ["mbconv:8-8:8x8:k3:e24"]),
        ("export own.csv --format plain --out x", ["did you mean 'plain_csv'"]),
        ("export own.csv --format plain_csv --out own.csv", ["own.csv is there already"]),
        ("export none.csv --format plain_csv --out x", ["none.csv"]),
        ("export own.csv --format plain_csv --out own.csv/x", ["own.csv/x"]),
        ("export energy.csv --format proxylessnas --out x", ["energy_mj"]),
        ("export twins.csv --format proxylessnas --out x", ["the same key"]),
    ],
)
def test_exports_that_are_refused(called: Called, tmp_path: Path, arguments: str, says: list[str]) -> None:
    CostTable("here", "latency_ms", {}, {BLOCK: Row(1.0)}).save(tmp_path / "own.csv")
    CostTable("here", "energy_mj", {}, {BLOCK: Row(1.0)}).save(tmp_path / "energy.csv")
    twins = {OpSpec("conv_bn_relu", 3, 8, 8, 8, kernel=3, stride=stride): Row(1.0) for stride in (8, 9)}
    CostTable("here", "latency_ms", {}, twins).save(tmp_path / "twins.csv")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = called(*arguments.split())
    assert code == 2 and not out and len(err.splitlines()) == 1 and all(word in err for word in says), err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
