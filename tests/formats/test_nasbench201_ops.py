"""NAS-Bench-201's per-operator latencies: a network's edges add up to the file's numbers, and come back when written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwnas.cost import CostModel
from hwnas.errors import TableError
from hwnas.exchange import export_table, import_table
from hwnas.space import load_space

FILE = "luts/nb201_ops_18_devices.json"


def columns(test_data: Path) -> dict[str, dict[str, float]]:
    content = json.loads((test_data / FILE).read_text(encoding="utf-8"))
    return {device: content[f"{device}_latency"] for device in content["devices"]}


def test_edges_add_up_on_every_device(test_data: Path) -> None:
    space = load_space("nasbench201")
    for device, prices in columns(test_data).items():
        found = import_table("nasbench201_ops", [test_data / FILE], device, space, options={"column": device}, fixed_as_zero=True)
        assert (found.missing, found.unused) == ([], ["none"])
        model = CostModel(space, found.table.price)
        for choice in ("nor_conv_1x1", "nor_conv_3x3"):
            (index,) = {slot.choices.index(choice) for slot in space.slots}
            assert float(model.of([(index,) * 6])) == pytest.approx(6 * prices[choice])
        path = space.parse("|avg_pool_3x3~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|nor_conv_1x1~2|")
        assert float(model.of([path])) == pytest.approx(prices["avg_pool_3x3"] + prices["nor_conv_3x3"] + prices["nor_conv_1x1"])


def test_what_is_written_is_the_file_again(test_data: Path, tmp_path: Path) -> None:
    space = load_space("nasbench201")
    for device, prices in columns(test_data).items():
        table = import_table("nasbench201_ops", [test_data / FILE], device, space, options={"column": device}).table
        out = tmp_path / f"{device}.json"
        assert export_table("nasbench201_ops", table, out, space, options={"column": device}) == []
        written = json.loads(out.read_text(encoding="utf-8"))[f"{device}_latency"]
        assert written == pytest.approx({**prices, "none": 0.0})
        again = import_table("nasbench201_ops", [out], device, space, options={"column": device}).table
        assert {op: row.price for op, row in again.rows.items()} == pytest.approx({op: row.price for op, row in table.rows.items()})


def test_other_spaces_and_columns(test_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is of the space nasbench201, but the space given is fbnet"):
        import_table("nasbench201_ops", [test_data / FILE], "x", load_space("fbnet"), options={"column": "fpga"})
    with pytest.raises(TableError, match="holds no latencies of 'fpg'; choose the option column among: 1080ti, "):
        import_table("nasbench201_ops", [test_data / FILE], "x", load_space("nasbench201"), options={"column": "fpg"})
    table = import_table("nasbench201_ops", [test_data / FILE], "x", load_space("nasbench201"), options={"column": "fpga"}).table
    with pytest.raises(TableError, match="name it with --space"):
        export_table("nasbench201_ops", table, tmp_path / "x.json", options={"column": "fpga"})
