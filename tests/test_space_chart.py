"""What is drawn of a space is computed rightly: places that do not touch, every choice written, cells that repeat drawn once."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas import cli
from hwnas.errors import ConfigError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot, load_space
from hwnas.space_chart import Box, Chart, Graph, Panel, _apart, compressed, draw, load_chart, panel, shelves


def titles(part: Panel) -> list[str]:
    return [box.title for box in part.boxes if box.look != "value"]


def text_of(chart: Chart) -> str:
    boxes = [box for part in chart.panels for box in part.boxes]
    return " ".join([chart.subtitle, *(part.note for part in chart.panels), *(" ".join([box.title, *box.lines]) for box in boxes)])


def check_places(chart: Chart) -> None:
    """Boxes are inside their panel and apart from each other, and a line touches none but those at its ends."""
    for part in chart.panels:
        for box in part.boxes:
            assert box.width / 2 - 0.01 <= box.x <= part.width - box.width / 2 + 0.01
            assert box.height / 2 - 0.01 <= box.y <= part.height - box.height / 2 + 0.01
        for a, b in combinations(part.boxes, 2):
            assert abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2, (a, b)
        for points in part.lines:
            for (x0, y0), (x1, y1) in pairwise(points):
                for box in part.boxes:
                    inside = [abs(x - box.x) < box.width / 2 - 0.01 and abs(y - box.y) < box.height / 2 for x, y in ((x0, y0), (x1, y1))]
                    level = y0 == y1 and abs(y0 - box.y) < box.height / 2
                    through = level and min(x0, x1) < box.x - box.width / 2 and max(x0, x1) > box.x + box.width / 2
                    assert not any(inside) and not through, (box, points)


def test_nothing_touches_and_every_choice_is_written(space: SearchSpace, rng: np.random.Generator) -> None:
    chart = load_chart(space)
    check_places(chart)
    written = set(text_of(chart).replace("·", " ").split())
    assert {choice for slot in space.slots for choice in slot.choices} <= written
    for _ in range(3):
        check_places(load_chart(space, space.random(rng)))


def test_nothing_touches_at_full_size(default_space: SearchSpace) -> None:
    check_places(load_chart(default_space))


def test_cells_that_repeat_are_drawn_once() -> None:
    network, cell = load_chart(load_space("nasbench201")).panels
    assert titles(network) == [
        "conv_bn 3×3", "5 × cell", "resnet_reduction", "5 × cell", "resnet_reduction", "5 × cell", "bn_relu_classifier",
    ]  # fmt: skip
    assert [box.lines for box in network.boxes if box.look == "cell"] == [("16 ch · 32×32",), ("32 ch · 16×16",), ("64 ch · 8×8",)]
    assert cell.title == "cell × 15" and sorted(titles(cell)) == ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]
    assert cell.note == "every blue box chooses: none · skip_connect · nor_conv_1x1 · nor_conv_3x3 · avg_pool_3x3"


def test_one_cell_of_an_architecture() -> None:
    space = load_space("nasbench201")
    _, cell = load_chart(space, space.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|")).panels
    assert sorted(titles(cell)) == ["avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3", "skip_connect"]
    _, dead = load_chart(space, space.parse("|nor_conv_3x3~0|+|none~0|none~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|")).panels
    assert titles(dead) == ["avg_pool_3x3"]


def test_two_kinds_of_cell_with_what_they_end_in() -> None:
    space = load_space("enas_micro")
    network, normal, reduction = load_chart(space).panels
    assert titles(network)[1:4] == ["2 × normal cell", "reduction cell", "2 × normal cell"]
    assert (normal.title, reduction.title) == ("normal cell × 6", "reduction cell × 2")
    assert titles(normal) == ["n1.a, b", "n2.a, b", "n3.a, b", "n4.a, b", "n5.a, b", "conv", "batch_norm"]
    assert titles(reduction).count("factorized_reduce") == 2
    arch = tuple([0, 0, 1, 4] + [0, 0, 0, 2] * 4 + [1, 1, 1, 1] * 5)
    _, drawn, _ = load_chart(space, arch).panels
    assert sorted(titles(drawn)) == sorted(["sep_3x3"] * 5 + ["avg_3x3"] * 4 + ["identity", "conv", "batch_norm"])
    assert len([line for line in drawn.lines if line[-1][0] < drawn.boxes[0].x + 1]) == 0


def test_equal_layers_in_a_row_are_one_box() -> None:
    space = load_space("condensenet")
    (drawn,) = load_chart(space, (2, 0, 0, 1, 1, 2)).panels
    assert titles(drawn) == [
        "conv 3×3", "10 × condense_layer 3×3", "avg_pool 2×2", "6 × condense_layer 3×3", "avg_pool 2×2", "8 × condense_layer 3×3",
        "bn_relu_classifier",
    ]  # fmt: skip
    assert drawn.boxes[2].lines == ("8→48 · 32×32",)
    whole = load_chart(space).panels[0]
    stage = next(box for box in whole.boxes if box.title == "b1.stage")
    assert stage.lines == ("6 8 10 12 14", "avg_pool 2×2")


def test_a_long_chain_goes_on_in_the_next_row() -> None:
    chain = Graph({f"b{i}": Box(f"operator {i}") for i in range(40)}, [(f"b{i}", f"b{i + 1}") for i in range(39)])
    part = panel("chain", chain)
    rows = sorted({round(box.y) for box in part.boxes})
    widths = [max(box.x for box in part.boxes if round(box.y) == row) for row in rows]
    assert len(rows) > 1 and min(widths) > 0.6 * max(widths)
    assert len(part.lines) == 39 + len(rows) - 1  # where it is cut, one goes out and one comes in
    assert panel("chain", chain, wrapped=False).height < part.height


def test_alike_boxes_with_a_branch_between_them_stay_apart() -> None:
    boxes = {name: Box(name if name == "d" else "conv", alike="conv" if name != "d" else None) for name in "abcd"}
    row = compressed(Graph(boxes, [("a", "b"), ("b", "c"), ("b", "d")]))
    assert [box.title for box in row.boxes.values()] == ["2 × conv", "conv", "d"]


def test_places_are_the_nearest_to_the_wishes() -> None:
    assert _apart([0, 10, 20], [4, 4, 4]) == [0, 10, 20]
    assert _apart([5, 5], [4, 4]) == [3, 7]
    assert _apart([0, 8, 8], [4, 4, 4]) == [0, 6, 10]


def test_panels_stand_side_by_side_where_they_fit() -> None:
    parts = [Panel(str(i), [], [], width, 10.0) for i, width in enumerate((900.0, 400.0, 500.0, 900.0))]
    assert [[part.title for part in row] for row in shelves(parts)] == [["0"], ["1", "2"], ["3"]]


def test_a_space_of_ones_own() -> None:
    conv = OpSpec("conv_bn", 3, 3, 8, 8)
    sites = (Site(conv, ("input",), "a", ((0, 0),)), Site(OpSpec("identity", 3, 3, 8, 8), ("input",), "a", ((0, 1),)))
    space = SearchSpace((3, 8, 8), 3, (Slot("first", ("conv", "skip")),), (*sites, Site(conv, ("a",), "output")), name="own")
    (part,) = load_chart(space).panels
    assert [(box.title, box.lines) for box in part.boxes] == [("input", ()), ("first", ("conv skip",)), ("conv_bn", ("3→3 · 8×8",))]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture_opens(ending: str, diamond: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / f"space.{ending}"
    draw(load_chart(diamond), path)
    if ending == "png":
        with Image.open(path) as image:
            image.load()
            assert image.width > 500
    else:
        assert ET.parse(path).getroot().tag.endswith("svg")
    before = path.read_bytes()
    draw(load_chart(diamond), path)
    assert path.read_bytes() == before


def test_endings_that_are_no_picture(diamond: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in .png or .svg, but is .*space.pdf"):
        draw(load_chart(diamond), tmp_path / "space.pdf")


def shown(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["hwnas", "space", "show", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = shown("nasbench201", "cells=1", "width=4", "--arch", "3,3,4,1,3,1", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and json.loads(out) == {"files": ["nasbench201_space.png"]} and Path("nasbench201_space.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing argument"),
        (("nasbench",), "there is no space called 'nasbench'"),
        (("nasbench201", "cells"), "must look like width=8"),
        (("nasbench201", "cells=x"), "cells"),
        (("nasbench201", "cell=1"), "'cell'"),
        (("nasbench201", "--arch", "1,2"), "6 choices, but got 2"),
        (("nasbench201", "--out", "a.pdf"), "must end in .png or .svg"),
    ],
)
def test_what_cannot_be_shown(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = shown(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and says in " ".join(err.split()) and "Traceback" not in err
