"""Single-Path NAS's runtime model: 22 layers, the first timed four times, the last only where its block is the fixed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwnas.errors import TableError
from hwnas.exchange import import_table
from hwnas.op import OpSpec
from hwnas.space import load_space

FILE = "luts/singlepath_pixel1_runtime_model.json"
SPACE: dict[str, Any] = {
    "input_size": 224, "classes": 1000, "stem_width": 32, "stem_stride": 2, "head_width": 1280, "kernels": [3, 5],
    "stages": [
        {"widths": [16], "depth": 1, "expansions": [1], "kernels": [3]}, {"widths": [24], "depth": 4, "stride": 2},
        {"widths": [40], "depth": 4, "stride": 2}, {"widths": [80], "depth": 4, "stride": 2}, {"widths": [96], "depth": 4},
        {"widths": [192], "depth": 4, "stride": 2}, {"widths": [320], "depth": 1, "expansions": [6], "kernels": [3]},
    ],
}  # fmt: skip


def test_layers_find_their_blocks(test_data: Path) -> None:
    found = import_table("single_path", [test_data / FILE], "Pixel 1", load_space("mobilenet_v2", SPACE), fixed_as_zero=True)
    values = json.loads((test_data / FILE).read_text(encoding="utf-8"))
    prices = {str(op): row.price for op, row in found.table.rows.items()}
    assert found.missing == [] and found.unused == ["layer 22 0", "layer 22 2", "layer 22 3"]
    assert prices["mbconv:32-16:112x112:k3:e32"] == pytest.approx(sum(values["0"].values()) / 4)
    assert prices["mbconv:192-320:7x7:k3:e1152"] == values["21"]["1"]
    assert prices["mbconv:16-24:112x112:k5:s2:e48"] == values["1"]["2"]
    assert prices["mbconv:24-24:56x56:k3:e144"] == pytest.approx(sum(values[layer]["1"] for layer in "234") / 3)
    assert prices[str(OpSpec("identity", 24, 24, 56, 56))] == 0


def test_a_space_of_another_depth(test_data: Path) -> None:
    with pytest.raises(TableError, match="holds 22 layers .1 to 22., but mobilenet_v2 "):
        import_table("single_path", [test_data / FILE], "Pixel 1", load_space("mobilenet_v2"))


@pytest.mark.parametrize("content", ['{"x": {"0": 1, "1": 1, "2": 1, "3": 1}}', '{"0": {"0": 1}}'])
def test_unknown_layers_and_choices(content: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(content, encoding="utf-8")
    with pytest.raises(TableError, match="must have numbered layers with the choices 0, 1, 2, 3"):
        import_table("single_path", [tmp_path / "table.json"], "Pixel 1", load_space("mobilenet_v2"))
