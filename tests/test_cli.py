"""The commands from outside: help, listings, exit codes, and that light commands stay light."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hwnas import __version__, cli, plugins

COMMANDS = ("devices", "spaces", "searchers", "profile", "search", "front", "export", "verify", "report", "run")
HEAVY = ("torch", "onnx", "onnxruntime", "optuna", "scipy", "sklearn", "pandas", "matplotlib", "pymoo")


def printed(*arguments: str) -> Any:
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_help_explains_every_command() -> None:
    text = CliRunner().invoke(cli.app, ["--help"]).output
    assert all(f" {command} " in text for command in (*COMMANDS, "table"))
    for command in (*COMMANDS, "table"):
        result = CliRunner().invoke(cli.app, [command, "--help"])
        assert result.exit_code == 0 and len(result.output) > 100


def test_version() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output.strip() == __version__


def test_listings() -> None:
    assert {"cpu-1t", "cpu-2t"} <= {row["name"] for row in printed("devices", "--json")}
    for kind in ("spaces", "searchers"):
        rows = printed(kind, "--json")
        assert [row["name"] for row in rows] == plugins.names(kind)
        assert all(row["summary"] and row.keys() == {"name", "summary", "missing"} for row in rows)
        lines = CliRunner().invoke(cli.app, [kind]).output.splitlines()
        assert len(lines) == len(rows)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "missing_packages", lambda packages: tuple(packages))
    (row,) = (row for row in printed("devices", "--json") if row["name"] == "cpu-1t")
    assert row["missing"] == ["onnxruntime", "onnx"]
    assert "pip install" in CliRunner().invoke(cli.app, ["devices"]).output


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["devices"], ["spaces", "--json"], ["searchers"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['hwnas', *{arguments!r}]\n"
        "from hwnas.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(cli.__file__).parents[1])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_front_of_a_run(finished_run: Path, tiny: Path) -> None:
    shutil.copytree(finished_run, tiny / "runs" / "tiny")
    found = printed("front", "tiny", "--json")
    assert {"objectives", "reference_point", "hypervolume", "members"} <= found.keys()
    assert found["objectives"] == ["error", "latency_ms"]
    assert all({"name", "arch", "values", "predicted", "measured", "files"} <= member.keys() for member in found["members"])
    assert printed("front", "runs/tiny", "--json") == found
    text = CliRunner().invoke(cli.app, ["front", "tiny"]).output
    assert all(member["name"] in text for member in found["members"])


def test_an_interruption_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "hwnas: interrupted; the same command goes on from here\n"


def test_what_the_system_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.delenv("HWNAS_TRACEBACK", raising=False)
    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("hwnas: No space left on device: runs/x")
    monkeypatch.setenv("HWNAS_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space"):
        cli.main()
