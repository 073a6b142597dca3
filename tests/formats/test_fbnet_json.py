"""The FBNet table of a Raspberry Pi: fixed layers are null, skips only where they keep the shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwnas.cost import CostModel
from hwnas.errors import TableError
from hwnas.exchange import import_table
from hwnas.space import load_space

FILE = "luts/fbnet_jh88_lookup_table_pi.json"
SPACE = {"strides": [1, 2, 2, 1, 1, 1, 1], "shape_changing_skips": False}


def test_the_table_is_the_space(test_data: Path) -> None:
    space = load_space("fbnet", SPACE)
    found = import_table("fbnet_json", [test_data / FILE], "Pi 4", space, fixed_as_zero=True)
    assert (found.missing, found.unused) == ([], [])
    layers = [layer for layer in json.loads((test_data / FILE).read_text(encoding="utf-8")) if layer]
    model = CostModel(space, found.table.price)
    wanted = [sum(layer[choice] for layer in layers) / 1000 for choice in range(8)]
    np.testing.assert_allclose(model.of([(choice,) * 22 for choice in range(8)]), wanted, rtol=1e-12)


def test_skips_that_change_the_shape_are_not_in_it(test_data: Path) -> None:
    found = import_table(
        "fbnet_json", [test_data / FILE], "Pi 4", load_space("fbnet", {**SPACE, "shape_changing_skips": True}), fixed_as_zero=True
    )
    assert {op.kind for op in found.missing} == {"fbnet_skip"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[null, [1, 2, 3]]", "searched layer 1 has 3"), ("[1]", "searched layer 1 has int"), ("[[1,2", "not valid JSON at line 1"),
        ("[[1,2,3,4,5,6,7,-8]]", "gives -0.008 for 'layer 1 k5_e6'"), ("[[1,2,3,4,5,6,7,8]]", "holds 1 layers"),
        ('[[1,2,3,4,5,6,7,"8"]]', "gives '8' for 'layer 1 k5_e6'"),
    ],
)  # fmt: skip
def test_damaged_files(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(content, encoding="utf-8")
    with pytest.raises(TableError, match=says):
        import_table("fbnet_json", [tmp_path / "table.json"], "Pi 4", load_space("fbnet"))
