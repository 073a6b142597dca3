"""A built wheel, installed elsewhere, does all that the checkout does: its data folders travel in it."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, **environment: str) -> str:
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=cwd, env={**known, **environment}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_runs_the_quickstart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "__pycache__", ".*_cache"))
    # as git sees them: tables are in the checkout, whether or not they have been measured here
    (source / "latency_tables" / "elsewhere").mkdir(parents=True, exist_ok=True)
    (source / "latency_tables" / "elsewhere" / "example.csv").write_text("op\n", encoding="utf-8")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path / "dist"), str(source), cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("hwnas-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("devices/cpu-1t.yaml", "configs/quickstart.yaml", "latency_tables/elsewhere/example.csv"):
        assert f"hwnas/_data/{name}" in names
    assert {f"hwnas/backends/web/{path.name}" for path in (ROOT / "hwnas" / "backends" / "web").iterdir()} <= {*names}
    assert not [name for name in names if name.startswith(("tests/", "devices/", "configs/", "runs/"))]

    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "-q", str(wheel), cwd=tmp_path)
    here = [path for path in {*site.getsitepackages(), *(p for p in sys.path if p.endswith("site-packages"))} if Path(path).is_dir()]
    (packages / "dependencies.pth").write_text("\n".join(here) + "\n", encoding="utf-8")  # behind its own, and nothing is downloaded

    empty = tmp_path / "empty"
    empty.mkdir()
    hwnas = str(tmp_path / "venv" / "bin" / "hwnas")
    home = {"XDG_DATA_HOME": str(tmp_path / "data"), "HOME": str(tmp_path)}
    where = run(str(python), "-c", "import hwnas; print(hwnas.__file__)", cwd=empty).strip()
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert {row["name"] for row in json.loads(run(hwnas, "devices", "--json", cwd=empty, **home))} >= {"cpu-1t", "cpu-2t"}
    shrunken = ["trials=2", "batch=2", "final.members=1", "final.training.epochs=1", "evaluator.epochs=1", "calibration.probes=12"]
    found = json.loads(run(hwnas, "run", "quickstart", *shrunken, "--json", cwd=empty, **home))
    assert len(found["members"]) == 1 and found["basis"] == "measured"
    assert (empty / "runs" / "quickstart" / "report.html").exists()
    assert list((tmp_path / "data" / "hwnas" / "latency_tables" / "cpu-1t").glob("*/latency_ms.csv"))
    assert not [path for path in (packages / "hwnas" / "_data").rglob("*.csv") if path.name != "example.csv" and "elsewhere" in path.parts]
