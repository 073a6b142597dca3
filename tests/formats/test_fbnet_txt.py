"""The FBNet text table: microseconds, its own names, equal operators at several layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.cost import CostModel
from hwnas.errors import TableError
from hwnas.exchange import import_table
from hwnas.space import load_space

FILE = "luts/fbnet_araslanova_lookup_table.txt"


def test_means_over_layers_and_their_spread(test_data: Path) -> None:
    space = load_space("fbnet")
    found = import_table("fbnet_txt", [test_data / FILE], "a CPU", space, fixed_as_zero=True)
    values = np.loadtxt(test_data / FILE, skiprows=1) / 1000
    assert (found.missing, found.unused) == ([], [])
    row = {op: row for op, row in found.table.rows.items() if str(op) == "fbnet_block:24-24:32x32:k3:e24:g2"}
    ((_, twice),) = row.items()
    assert twice.price == pytest.approx(values[2:5, 1].mean()) and twice.error == pytest.approx(values[2:5, 1].std(ddof=1))
    assert "2.52 times apart" in found.table.facts["places"]
    # a network of one operator everywhere costs what its layers cost: means over equal operators do not change that sum
    model = CostModel(space, found.table.price)
    np.testing.assert_allclose(model.of([(choice,) * 22 for choice in range(9)]), values.sum(0), rtol=1e-12)
    fixed = [row for op, row in found.table.rows.items() if op.kind in ("conv_bn_relu", "classifier")]
    assert [row.price for row in fixed] == [0, 0, 0] and "conv_bn_relu" in found.table.facts["priced 0"]


def test_stem_and_head_are_missing_unless_said_otherwise(test_data: Path) -> None:
    found = import_table("fbnet_txt", [test_data / FILE], "a CPU", load_space("fbnet"))
    assert {op.kind for op in found.missing} == {"conv_bn_relu", "classifier"} and "priced 0" not in found.table.facts


def test_damaged_files(test_data: Path, tmp_path: Path) -> None:
    text = (test_data / FILE).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    damaged = {
        "must have 9 numbers in a line": text[: len(text) // 2],
        "holds 21 layers .1 to 21., but fbnet has 22": "".join(lines[:-1]),
        "gives -3.02": text.replace("3028.797898441553", "-3028.797898441553"),
        "'fast' at layer 1, ir_k3_s2": text.replace("3028.797898441553", "fast"),
        "gives nan": text.replace("3028.797898441553", "nan"),
        "must begin with the operator names": "".join(lines[1:]),
    }
    for says, content in damaged.items():
        (tmp_path / "table.txt").write_text(content, encoding="utf-8")
        with pytest.raises(TableError, match=says):
            import_table("fbnet_txt", [tmp_path / "table.txt"], "a CPU", load_space("fbnet"))
