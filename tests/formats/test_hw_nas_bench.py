"""HW-NAS-Bench's sums, exactly, for all of its published FBNet networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.cost import CostModel
from hwnas.errors import TableError
from hwnas.exchange import import_table
from hwnas.space import load_space
from hwnas.table import CostTable

FILE = "luts/hwnasbench_fbnet_blocks.json"
IMAGENET = {"input_size": 224, "classes": 1000, "stem_stride": 2, "strides": [1, 2, 2, 2, 1, 2, 1], "head_width": 1984}


@pytest.mark.parametrize("metric", range(8))
def test_block_sums_of_5000_networks(test_data: Path, metric: int, tmp_path: Path) -> None:
    published = np.load(test_data / "fbnet_hw.npz")
    column, kind = str(published["metric_names"][metric]).split("_")
    unit = "latency_ms" if kind == "latency" else "energy_mj"
    archs = torch.as_tensor(published["ops"].astype(np.int64))
    for options, dataset in (({"classes": 100}, "cifar100"), (IMAGENET, "imagenet")):
        space = load_space("fbnet", options)
        found = import_table("hw_nas_bench", [test_data / FILE], column, space, options={"column": column}, metric=unit)
        assert not found.missing
        found.table.save(tmp_path / "table.csv")
        table = CostTable.load(tmp_path / "table.csv")
        assert {row.source for row in table.rows.values()} == {"imported"}
        blocks = np.take_along_axis(published[f"{dataset}_block"][..., metric], published["ops"].T.astype(np.int64), 1).sum(0)
        sums = published[f"{dataset}_fixed"][metric] + blocks
        if dataset == "cifar100":
            np.testing.assert_allclose(sums, published["cifar100_sum"][:, metric], rtol=1e-12)
        np.testing.assert_allclose(CostModel(space, table.price, metric=unit).of(archs).numpy(), sums, rtol=1e-9)


def test_a_column_that_is_not_there(test_data: Path) -> None:
    with pytest.raises(TableError, match="holds no pixel2_latency; choose the option column and --metric among edgegpu_energy"):
        import_table("hw_nas_bench", [test_data / FILE], "x", load_space("fbnet"), options={"column": "pixel2"})
    with pytest.raises(TableError, match="holds no raspi4_energy"):
        import_table("hw_nas_bench", [test_data / FILE], "x", load_space("fbnet"), options={"column": "raspi4"}, metric="energy_mj")


def test_a_key_of_no_such_form(tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    path.write_text(json.dumps({"pi_latency": {"FC_Cin1504_Cout10": 1.0, "ConvBlok_H32": 2.0}}), encoding="utf-8")
    with pytest.raises(TableError, match="blocks.json holds the key 'ConvBlok_H32', which is none of this form"):
        import_table("hw_nas_bench", [path], "x", load_space("fbnet"), options={"column": "pi"})
