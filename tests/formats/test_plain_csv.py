"""Plain CSV: the columns that are there, with or without a space, and lines that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.errors import TableError
from hwnas.exchange import import_table
from hwnas.op import OpSpec
from hwnas.table import CostTable, Row

OP = OpSpec.parse("conv_bn:3-4:8x8:k3")


def read(folder: Path, content: str, metric: str = "latency_ms") -> dict[OpSpec, Row]:
    (folder / "table.csv").write_text(content, encoding="utf-8")
    return import_table("plain_csv", [folder / "table.csv"], "here", metric=metric).table.rows


def test_columns_may_be_few_and_in_any_order(tmp_path: Path) -> None:
    assert read(tmp_path, f"# a comment\nlatency_ms,op\n0.25,{OP}\n")[OP].price == 0.25
    row = read(tmp_path, f"op,energy_mj,n,error\n{OP},3,7,0.5\n", "energy_mj")[OP]
    assert (row.price, row.n, row.error, row.source) == (3.0, 7, 0.5, "imported")


def test_a_table_of_this_tree_becomes_imported(tmp_path: Path) -> None:
    CostTable("cpu", "latency_ms", {"cpu": "x"}, {OP: Row(0.5, 0.25, 0.75, 1.0, 3)}).save(tmp_path / "own.csv")
    found = import_table("plain_csv", [tmp_path / "own.csv"], "cpu").table
    assert found.rows == {OP: Row(0.5, 0.25, 0.75, 1.0, 3, "imported")} and found.fingerprint["source"] == "imported"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"op,ms\n{OP},1\n", "must have the columns op and latency_ms, but has op, ms"),
        (f"op,latency_ms\n{OP},1,2\n", "must have 2 cells a line"),
        (f"op,latency_ms\n{OP}\n", "must have 2 cells a line"),
        (f"op,latency_ms\n{OP},fast\n", "a cell is no number"),
        (f"op,latency_ms\n{OP},-1\n", "gives -1 for 'conv_bn"),
        (f"op,latency_ms\n{OP},1\n{OP},2\n", "a second time"),
        ("op,latency_ms\nconv 3x3,1\n", "'conv 3x3' is not an operator"),
        ("op,latency_ms\n", "holds no entry"),
    ],
)
def test_damaged_files(content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=says):
        read(tmp_path, content)
