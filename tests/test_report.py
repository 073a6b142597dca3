"""What is drawn of a front is computed rightly, series by series; the picture opens, and the page needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hwnas.errors import ExportError
from hwnas.evaluate import Objective, Trial
from hwnas.report import FrontData, draw_png, front_data, write_html

ERROR, LATENCY, ACCURACY, PARAMS = Objective("error"), Objective("latency_ms"), Objective("accuracy", "max"), Objective("params")
FACTS = {"Device": {"cpu": "one & <only>"}, "Nothing": {}}


def trial(index: int, error: float, latency_ms: float, params: float = 1000.0) -> Trial:
    """A trial with what evaluators and cost models give."""
    return Trial(index, (0, index), {"error": error, "accuracy": 1 - error, "loss": 1.0, "latency_ms": latency_ms, "params": params})


TRIALS = [trial(0, 0.4, 1.0, 9000), trial(1, 0.5, 2.0, 100), trial(2, 0.2, 2.0, 4000), trial(3, math.nan, 1.5), trial(4, 0.1, 4.0, 4000)]


def member(name: str, p50: float, test_accuracy: float, folder: Path = Path("runs/a/export")) -> dict[str, Any]:
    """An exported member."""
    return {
        "name": name, "arch": [0, 1], "values": {"error": 0.3, "accuracy": 0.7, "loss": 0.9, "test_accuracy": test_accuracy},
        "predicted": {"latency_ms": {"mean": 0.9 * p50, "upper": p50}, "params": {"mean": 12345.0, "upper": 12345.0}},
        "measured": {"latency_ms": {"p50": p50, "p90": 1.25 * p50, "low": 0.95 * p50, "n": 40}},
        "files": {"model.onnx": str(folder / name / "model.onnx"), "manifest.json": str(folder / name / "manifest.json")},
    }  # fmt: skip


def trained(name: str) -> dict[str, Any]:
    """A member that is not exported yet."""
    found = member(name, 2.0, 0.9)
    return {**found, "values": {"error": 0.25, "accuracy": 0.75, "loss": 0.9}, "measured": {}, "files": {}}


def front(*members: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As `hwnas front --json` prints it."""
    point = {"error": 0.5, "latency_ms": 5.0}
    return {"objectives": ["error", "latency_ms"], "reference_point": point, "hypervolume": 1.25, "members": list(members), **more}


def data(*members: dict[str, Any], objectives: tuple[Objective, ...] = (ERROR, LATENCY), **more: Any) -> FrontData:
    """Of the trials above."""
    given: dict[str, Any] = {"trials": TRIALS, "budgets": {"latency_ms": 3.0}, **more}
    made = front(*members, left_out={"m9": "over budget"})
    return front_data(made, given["trials"], objectives, given["budgets"], FACTS, title="a & b", subtitle="<here>")


def places(points: tuple[Any, ...]) -> list[tuple[float, float, float]]:
    """x, y and the end of the interval, rounded."""
    return [(round(point.x, 9), round(point.y, 9), round(point.x_high, 9)) for point in points]


def test_trials_are_predicted_points_and_members_measured_ones() -> None:
    found = data(member("m0", 1.2, 0.95), member("m1", 2.4, 0.99))
    assert (found.x.title, found.y.title) == ("latency (ms)", "error (%)")
    assert places(found.trials) == [(1, 40, 1), (2, 50, 2), (2, 20, 2), (4, 10, 4)]
    assert places(found.front) == [(1, 40, 1), (2, 20, 2), (4, 10, 4)]
    assert found.front_is_line
    assert places(found.measured) == [(1.2, 5, 1.5), (2.4, 1, 3.0)]
    assert found.unmeasured == ()
    assert (found.trial_y, found.member_y) == ("validation error", "test error")
    assert "p50 1.2, p90 1.5 ms, measured" in found.measured[0].text
    assert found.trials[0].text.startswith("trial 0<br>latency 1 ms, predicted")
    assert found.left_out == {"m9": "over budget", "1 of 5 trials": "without finite values: their training diverged"}


def test_hypervolume_is_that_of_the_trials_alone() -> None:
    found = data(member("m0", 0.001, 1.0))
    # counted from the front's worst plus a tenth of its range: error 0.43, latency 4.3
    assert found.history == pytest.approx([0.03 * 3.3, 0.03 * 3.3, 0.03 * 1.0 + 0.23 * 2.3, 0.03 * 1.0 + 0.23 * 2.3 + 0.1 * 0.3])
    assert found.reference == "error 43 %, latency 4.3 ms"
    assert found.settled == 4
    assert found.history_unit == "error × latency (ms)"


def test_a_member_that_is_not_measured_is_not_drawn_as_measured() -> None:
    found = data(member("m0", 1.2, 0.95), trained("m1"))
    assert places(found.measured) == [(1.2, 5, 1.5)]
    assert places(found.unmeasured) == [(1.8, 25, 2.0)]
    assert found.member_y == "validation error"
    assert "1.8 to 2 ms, predicted" in found.unmeasured[0].text
    assert found.rows[1][found.columns.index("latency p50, measured (ms)")] == "–"


def test_axes() -> None:
    narrow = data(member("m0", 1.2, 0.95), trials=TRIALS[:2]).x
    assert (narrow.log, narrow.ticks) == (False, ())
    assert narrow.low < 1.0 and narrow.high > 3.0  # the budget of 3 ms has room
    assert narrow.limit == narrow.budget == 3.0
    wide = data(trials=[trial(0, 0.5, 0.1), trial(1, 0.5, 30.0)], budgets={"latency_ms": 500.0}).x
    assert wide.log and wide.low < 0.1 and 30.0 < wide.high < 100
    assert (wide.ticks, wide.budget, wide.limit) == ((0.1, 0.2, 0.5, 1, 2, 5, 10, 20), 500.0, None)
    zero = data(member("m0", 1.2, 1.0), member("m1", 1.3, 0.999)).y
    assert zero.log and zero.low == pytest.approx(0.05)
    assert zero.place([0.0, 10.0]) == [zero.low, 10.0]
    assert data(trials=[]).x.limit == 3.0
    assert data(trials=[], budgets={}).x.low < data(trials=[], budgets={}).x.high


def test_what_is_drawn_where() -> None:
    assert data(objectives=(LATENCY, ERROR)).x.metric == "latency_ms"
    assert data(objectives=(PARAMS, LATENCY)).y.metric == "params"
    single = data(objectives=(ERROR,))
    assert (single.x.metric, single.y.metric, len(single.front)) == ("latency_ms", "error", 1)
    best = data(member("m0", 1.2, 0.95), objectives=(ACCURACY, LATENCY))
    assert places(best.front) == [(1, 60, 1), (2, 80, 2), (4, 90, 4)]
    assert best.measured[0].y == pytest.approx(95)
    assert (best.member_y, best.reference) == ("test accuracy", "accuracy 57 %, latency 4.3 ms")
    three = data(member("m0", 1.2, 0.95), objectives=(ERROR, LATENCY, PARAMS))
    assert not three.front_is_line
    assert len(three.front) == 4
    assert three.history_unit == "error × latency (ms) × parameters"
    counted = data(member("m0", 1.2, 0.95), objectives=(ERROR, PARAMS))
    assert counted.measured == () and places(counted.unmeasured) == [(12.345, 5, 12.345)]


def test_the_table_tells_measured_predicted_counted_and_modelled() -> None:
    with_energy = member("m0", 1.2, 0.95)
    with_energy["predicted"]["energy_mj"] = {"mean": 0.25, "upper": 0.25}
    with_energy["predicted"]["wear_s"] = {"mean": 2000.0, "upper": 3000.0}
    found = data(with_energy, member("m1", 120.0, 0.5))
    assert found.columns == (
        "model", "test accuracy (%)", "validation accuracy (%)", "validation cross entropy",
        "latency p50, measured (ms)", "p90 (ms)", "runs", "latency, predicted (ms)", "upper bound (ms)", "parameters (k)",
        "energy, predicted (mJ)", "wear, predicted (s)", "upper bound (s)", "choices",
    )  # fmt: skip
    assert found.rows[0] == (
        "m0", "95.00", "70.00", "0.900", "1.20", "1.50", "40", "1.08", "1.20", "12.3", "0.250", "2,000", "3,000", "0-1",
    )  # fmt: skip
    assert found.rows[1][4:6] == ("120", "150")
    assert found.rows[1][10] == "–"
    assert dict(found.headline) == {
        "models": "2", "trials": "5", "best test accuracy": "95.00%", "latency, p50": "1.2–120 ms", "latency budget": "3 ms",
        "hypervolume up to error 50 %, latency 5 ms": "1.25",
    }  # fmt: skip


CASES = {
    "one": lambda: data(member("m0", 1.2, 0.95)),
    "several": lambda: data(member("m0", 1.2, 1.0), member("m1", 2.4, 0.99), trained("m2")),
    "none": lambda: data(),
    "nothing": lambda: data(trials=[], budgets={}),
    "three objectives": lambda: data(member("m0", 1.2, 0.95), objectives=(ERROR, LATENCY, PARAMS), budgets={"error": 0.3, "params": 9.0}),
    "one objective": lambda: data(trained("m0"), objectives=(ERROR,)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_picture_opens(case: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "front.png"
    draw_png(CASES[case](), path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and 1200 < image.width < 2400 and 600 < image.height < 1200
        assert len(image.convert("L").getcolors(256) or []) > 20
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("case", CASES)
def test_the_page_needs_nothing_but_itself(case: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(CASES[case](), path)
    page = path.read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly itself, whose text may speak of the web
    assert not re.search(r"https?:|<link|\bsrc=|@import|url\(", own)
    assert "default-src 'none'" in own
    assert page[page.index("<section>") :].count("Plotly.newPlot(") == 2
    assert "<h1>a &amp; b</h1><p>&lt;here&gt;</p>" in own
    assert "one &amp; &lt;only&gt;" in own and "Nothing</h2>" not in own
    assert "m9" in own and "over budget" in own


def test_links_are_relative_to_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "run #1"
    write_html(data(member("m0", 1.2, 0.95, folder / "export")), folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<a href='export/m0/model.onnx' title='model.onnx'>model</a>" in page
    write_html(data(member("m0", 1.2, 0.95, folder / "export")), tmp_path / "report.html")
    assert "<a href='run%20%231/export/m0/model.onnx'" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_plotly_draws_the_same_points(tmp_path: Path) -> None:
    found = CASES["several"]()
    write_html(found, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    traces = json.JSONDecoder().raw_decode(text, text.index("[", text.index("Plotly.newPlot(", text.index("<section>"))))[0]
    by_name = {trace["name"].partition(":")[0]: trace for trace in traces}
    assert set(by_name) == {"trials", "front of the trials", "exported models", "trained models"}
    assert by_name["exported models"]["x"] == [1.2, 2.4]
    assert by_name["exported models"]["error_x"]["array"] == pytest.approx([0.3, 0.6])
    assert by_name["exported models"]["y"] == pytest.approx([found.y.low, 1.0])


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (draw_png, write_html):
        with pytest.raises(ExportError, match="cannot write"):
            write(CASES["none"](), tmp_path / "file" / "front.png")
