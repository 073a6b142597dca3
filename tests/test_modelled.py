"""A run whose device computes times: whatever it shows of a member is predicted or modelled, never measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hwnas.front import export_run, front_of, report_run
from hwnas.run import Run
from hwnas.verify import verify

BOARD = {"backend": "roofline", "options": {"gmacs_per_second": {"fp32": 1}, "gigabytes_per_second": 1, "overhead_us": 1}}


@pytest.fixture
def run(finished_run: Path, tiny: Path) -> Run:
    """A finished run, now said to be for a board by its datasheet."""
    folder = tiny / "runs" / "tiny"
    shutil.copytree(finished_run, folder)
    (tiny / "board.yaml").write_text(yaml.safe_dump(BOARD))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "device": str(tiny / "board.yaml")}))
    return Run.open(folder)


def test_nothing_is_shown_as_measured(run: Run) -> None:
    exported = export_run(run)
    front = front_of(run)
    assert front["basis"] == "modelled" and front["members"]
    for member in front["members"]:
        assert member["measured"] == {} and member["predicted"]["latency_ms"]["mean"] > 0
        assert json.loads(Path(member["files"]["manifest.json"]).read_text())["measured"] == {}
    assert all("as measured" not in reason for reason in front["left_out"].values())
    for report in verify(exported):
        (latency,) = [check for check in report.checks if check.name == "latency"]
        assert report.passed and latency.found.endswith(" ms, modelled")
    page = report_run(run)[1].read_text(encoding="utf-8")
    assert "exported models: measured" not in page and "source" in page and "modelled" in page
