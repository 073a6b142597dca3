"""Devices that other programs, other chips or a formula stand for, through the command line: wrong ones are refused in one sentence."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml

from hwnas import cli, plugins

TEXT = (Path(__file__).parents[1] / "docs" / "backends.md").read_text(encoding="utf-8")
LISTED = {entry.name: entry for entry in plugins.listing("backends")}
BOARD = {"gmacs_per_second": {"fp32": 1}, "gigabytes_per_second": 1}


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ({"backend": "command", "options": {"command": "nosuchprogram {model}"}}, ["no program 'nosuchprogram'", "install it"]),
        (
            {"backend": "command", "options": {"command": "echo hello {model}", "pattern": "none"}},
            ["echo must print", "'hello"],
        ),
        ({"backend": "command", "options": {"command": "false {model}"}}, ["false failed (exit code 1)"]),
        ({"backend": "roofline", "options": {**BOARD, "gigabytes_per_second": -1}}, ["gigabytes_per_second", "greater than 0", "-1"]),
        ({"backend": "roofline", "options": BOARD, "precision": "int8"}, ["runs int8", "gmacs_per_second has only fp32"]),
        ({"backend": "ort_web", "options": {"hst": "node"}}, ["'hst'", "did you mean 'host'"]),
        ({"backend": "tensorrt", "options": {"compute_capability": ["sm89"]}}, ["tensorrt"]),
    ],
)
def test_a_wrong_device(
    device: dict[str, object], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(device), encoding="utf-8")
    arguments = ["profile", "mine.yaml", "quickstart", "--tables", "tables", "space={name: nasbench201, input_size: 8, width: 4, cells: 1}"]
    monkeypatch.setattr(sys, "argv", ["hwnas", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capfd.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("hwnas: ")]
    assert ended.value.code == 2 and "Traceback" not in err and len(lines) == 1, err
    assert all(word in lines[0] for word in says), lines[0]
    assert not list(Path("tables").rglob("*.csv"))


@pytest.mark.parametrize("name", ["ort_web", "tensorrt", "command", "roofline"])
def test_the_page_names_every_option_and_precision(name: str) -> None:
    (row,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, _, precisions, options, _ = row.split("|")
    assert tuple(re.findall(r"`(\w+)`", precisions)) == LISTED[name].precisions
    if not LISTED[name].missing:
        parameters = inspect.signature(plugins.load("backends", name)).parameters.values()
        known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        assert known == re.findall(r"`(\w+)` \(", options)
