"""What is drawn of a table is computed rightly; the picture opens, and what cannot be drawn is refused."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas import cli, profile, resources
from hwnas.calibrate import Calibration
from hwnas.cost import CostModel
from hwnas.errors import ConfigError, SpaceError, TableError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.table import CostTable, NetworkTable, Row
from hwnas.table_chart import LAYOUT, OVERHEAD, Chart, bars, dots, draw, load_chart, median_network, network_time, summary

SMALL, LARGE = OpSpec("conv_bn", 4, 4, 8, 8), OpSpec("conv_bn", 4, 4, 8, 8, kernel=3)
FREE, UNKNOWN, HEAD = OpSpec("identity", 4, 4, 8, 8), OpSpec("squeeze", 4, 4, 8, 8), OpSpec("classifier", 4, 2, 8, 8, stride=8)
FINGERPRINT = {"cpu": "Z80", "runtime": "onnxruntime", "runtime_version": "1.2", "precision": "fp32", "threads": "1", "batch": "4"}


@pytest.fixture
def table() -> CostTable:
    rows = {
        SMALL: Row(0.1, 0.01),
        LARGE: Row(0.3),
        FREE: Row(0.0),
        UNKNOWN: Row(0.2, source="imported"),
        HEAD: Row(0.9, 0.1, source="modelled"),
    }
    return CostTable("cpu-1t", "latency_ms", FINGERPRINT, rows)


def test_bars_stand_by_kind_the_costliest_first(table: CostTable) -> None:
    assert [(bar.op, bar.price, bar.error, bar.source) for bar in bars(table)] == [
        (str(HEAD), 0.9, 0.1, "modelled"),
        (str(LARGE), 0.3, 0.0, "measured"),
        (str(SMALL), 0.1, 0.01, "measured"),
        (str(UNKNOWN), 0.2, 0.0, "imported"),
        (str(FREE), 0.0, 0.0, "measured"),
    ]


def test_dots_are_what_has_macs_and_a_price(table: CostTable) -> None:
    assert {(dot.op, dot.macs, dot.price) for dot in dots(table)} == {
        (str(op), resources.macs(op), table.rows[op].price) for op in (SMALL, LARGE, HEAD)
    }


def test_where_a_networks_time_goes(diamond: SearchSpace) -> None:
    prices = dict(zip(diamond.operators(), range(1, 10), strict=False))
    arch = (2, 1)
    found = network_time(CostModel(diamond, prices, offset=0.5), arch)
    assert found.total == 0.5 + sum(prices[op] for op in diamond.lower(arch))
    assert list(found.stages) == ["8×8", OVERHEAD] and found.stages[OVERHEAD] == {OVERHEAD: 0.5}
    assert found.stages["8×8"]["identity"] == 2 * prices[OpSpec("identity", 4, 4, 8, 8)]
    assert sum(value for stage in found.stages.values() for value in stage.values()) == found.total
    less = network_time(CostModel(diamond, prices, offset=-0.2 * (found.total - 0.5)), arch, "prices")
    assert less.what == "prices, times 0.80: whole networks take less than their sum"
    assert less.stages["8×8"]["identity"] == pytest.approx(0.8 * found.stages["8×8"]["identity"]) and OVERHEAD not in less.stages


def test_operators_in_context_stand_with_their_kind() -> None:
    space = load_space("fbnet", {"input_size": 16, "stem_width": 8, "widths": [8], "depths": [4], "strides": [1], "head_width": 24})
    model = CostModel(space, lambda op: 1.0, contextual=True)
    labels = space.slots[0].choices
    arch = tuple(labels.index(label) for label in ("k3_e1_g2", "k3_e1", "k3_e1_g2", "k3_e1"))
    found = network_time(model, arch)
    assert {kind for stage in found.stages.values() for kind in stage} == {"conv_bn_relu", "fbnet_block", "classifier", LAYOUT}
    assert sum(stage.get(LAYOUT, 0) for stage in found.stages.values()) == 4


def test_stages_are_by_size_the_largest_first() -> None:
    space = load_space("nasbench201", {"input_size": 16, "width": 4, "cells": 1})
    found = network_time(CostModel(space, lambda op: 1.0), (3,) * 6)
    assert list(found.stages) == ["16×16", "8×8", "4×4"] and OVERHEAD not in found.stages


def test_the_median_network(diamond: SearchSpace) -> None:
    prices = {op: resources.macs(op) for op in diamond.operators()}
    model = CostModel(diamond, prices)
    arch = median_network(model)
    cost = sum(prices[op] for op in diamond.lower(arch))
    rng = np.random.default_rng(0)
    others = [sum(prices[op] for op in diamond.lower(diamond.random(rng))) for _ in range(201)]
    assert cost == np.median(others) and median_network(model) == arch


def test_a_fingerprint_in_one_line() -> None:
    text = summary(FINGERPRINT, "2026-11-22T01:02:03+00:00")
    assert re.fullmatch(r"Z80 · onnxruntime 1.2 · fp32 · 1 thread · batch 4 · 2026-11-22 · fingerprint [0-9a-f]{8}", text)
    assert summary({"threads": "2"}).startswith("2 threads · fingerprint ")


@pytest.fixture
def charted(tiny: Path, local_fingerprint: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chart]:
    """`load_chart` of the made-up tables."""
    monkeypatch.setattr(profile, "fingerprint", lambda device: dict(local_fingerprint))
    return lambda name="cpu-1t", **options: load_chart(name, tiny / "latency_tables", **options)


def tiny_space() -> SearchSpace:
    return load_space("nasbench201", {"input_size": 8, "channels": 1, "classes": 10, "width": 4, "cells": 1})


def test_a_devices_table_with_its_calibrated_spaces(charted: Callable[..., Chart], tiny: Path) -> None:
    chart, space = charted(), tiny_space()
    assert chart.title == f"cpu-1t: latency of {len(space.operators())} operators" and "fp32 · 1 thread" in chart.subtitle
    assert len(chart.bars) == len(space.operators()) and len(chart.dots) + chart.undrawn == len(chart.bars)
    (network,) = chart.networks
    path = next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))
    measured = NetworkTable.load(next(path.parent.glob("networks/*.csv")))
    times = np.array([row.price for row in measured.rows.values()])
    calibration = Calibration.from_tables(space, CostTable.load(path), list(measured.rows), times)
    model = calibration.cost_model()
    assert network.total == pytest.approx(float(model.of([median_network(model)])), rel=1e-9)
    assert network.what.startswith("the median of 201 random networks; calibrated prices")
    assert sum(sum(stage.values()) for stage in network.stages.values()) == pytest.approx(network.total)
    assert charted(str(path)) == chart


def test_a_given_space_and_network(charted: Callable[..., Chart], tiny: Path) -> None:
    space = tiny_space()
    arch = (3, 1, 1, 1, 1, 1)
    (network,) = charted(space=space, arch="3,1,1,1,1,1").networks
    assert network.what.startswith("network 3-1-1-1-1-1; calibrated prices")
    shutil.rmtree(next(tiny.glob("latency_tables/cpu-1t/*/networks")))
    (network,) = charted(space=space, arch="3,1,1,1,1,1").networks
    assert network.what == "network 3-1-1-1-1-1; sum of isolated prices, not calibrated"
    prices = CostTable.load(next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))).rows
    assert network.total == pytest.approx(sum(prices[op].price for op in space.lower(arch)))
    assert not charted().networks
    other = load_space("nasbench201", {"input_size": 8, "channels": 1, "classes": 10, "width": 4, "cells": 2})
    assert charted(space=other).networks
    with pytest.raises(SpaceError, match="has 6 choices"):
        charted(space=space, arch="1,2")
    with pytest.raises(ConfigError, match="--arch needs"):
        charted(arch="3,1,1,1,1,1")
    wider = load_space("nasbench201", {"input_size": 8, "channels": 1, "classes": 9, "width": 4, "cells": 1})
    with pytest.raises(TableError, match="holds no rows to draw of nasbench201"):
        charted(space=load_space("nasbench201", {"input_size": 32, "channels": 2, "classes": 9, "width": 32, "cells": 1}))
    chart = charted(space=wider)
    assert not chart.networks and "1 operators of nasbench201 are missing" in chart.notes[0]


def test_networks_that_cannot_be_calibrated_are_named(charted: Callable[..., Chart], tiny: Path) -> None:
    path = next(tiny.glob("latency_tables/cpu-1t/*/networks/*.csv"))
    path.write_text(re.sub(r"# fact space: .*", '# fact space: {"name": "elsewhere", "options": {}}', path.read_text()), encoding="utf-8")
    chart = charted()
    assert not chart.networks and "there is no space called 'elsewhere'" in chart.notes[0]


@pytest.mark.parametrize(("number", "ending"), [(1, "png"), (40, "svg"), (250, "png")])
def test_the_picture_opens(charted: Callable[..., Chart], tmp_path: Path, number: int, ending: str) -> None:
    """With an operator, with some, with hundreds, and with more kinds than colours."""
    rows = {}
    for i in range(number):
        op = OpSpec("conv_bn" if i < 200 else f"kind{i % 17}", 4 + i, 4, 8, 8)
        rows[op] = Row(1e-3 * (1 + i), 1e-4, source="modelled" if i % 3 else "measured")
    table = CostTable("cpu-1t", "latency_ms", FINGERPRINT, rows)
    networks = charted().networks
    drawn = bars(table)
    kinds = tuple(dict.fromkeys(bar.kind for bar in drawn))
    chart = Chart("cpu-1t", "title", "below", "latency", "ms", kinds, drawn, dots(table), 3, networks[: number - 1] * 2, ("a note",))
    path = tmp_path / f"table.{ending}"
    draw(chart, path)
    if ending == "svg":
        text = path.read_text(encoding="utf-8")
        assert ET.fromstring(text).tag.endswith("svg") and all(f"<!-- {bar.op} -->" in text for bar in drawn)
    else:
        with Image.open(path) as picture:
            width, height = picture.size
            assert width > 1500 and height > 600 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_the_command(charted: Callable[..., Chart], tiny: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hwnas", "table", "show", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capfd.readouterr()

    assert run("cpu-1t")[:2] == (0, "cpu-1t_table.png\n") and (tiny / "cpu-1t_table.png").stat().st_size > 10_000
    assert run("cpu-1t", "tiny.yaml", "--arch", "3,1,1,1,1,1", "--out", "x.svg", "--json")[:2] == (0, '{"files": ["x.svg"]}\n')
    table = next(tiny.glob("latency_tables/cpu-1t/*/latency_ms.csv"))
    assert run(str(table.with_name("latency_ms.csv")), "--out", "deep/y.png")[0] == 0 and (tiny / "deep" / "y.png").exists()
    for arguments, says in (
        (("cpu-1t", "--out", "x.pdf"), ".png or .svg"),
        (("cpu-1t", "--out", "tiny.yaml/x.png"), "cannot write tiny.yaml/x.png"),
        (("cpu-1t", "--arch", "1"), "--arch needs"),
        (("cpu-2t",), "cpu-2t has no tables"),
        (("cpu-9t",), "did you mean"),
        (("none.csv",), "cannot read the table"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and len(err.splitlines()) == 1 and says in err, err
    whole = table.read_text(encoding="utf-8")
    table.write_text(whole[: len(whole) - 25], encoding="utf-8")
    code, _, err = run("cpu-1t")
    assert code == 2 and "is not a row of a table" in err and len(err.splitlines()) == 1
