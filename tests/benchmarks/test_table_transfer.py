"""Every pair of devices is compared from stored tables, and a table that is the source's times a factor is learnt exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import table_transfer
from hwnas import resources
from hwnas.config import load_device
from hwnas.cost import CostModel
from hwnas.profile import REFERENCE_FACT, DeviceTables
from hwnas.space import load_space
from hwnas.table import CostTable, NetworkTable, Row

SMALL = {"cells": 1, "width": 4, "input_size": 8}


def test_a_table_that_is_another_ones_double(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_transfer, "load_space", lambda name: load_space(name, SMALL))
    space = load_space("nasbench201", SMALL)
    rng = np.random.default_rng(0)
    archs = list(dict.fromkeys(space.random(rng) for _ in range(100)))
    price = {op: 1e-3 + 1e-6 * resources.macs(op) for op in space.operators()}
    for device, factor in (("cpu-1t", 1.0), ("cpu-2t", 2.0)):
        tables = DeviceTables.here(tmp_path, load_device(device))
        rows = {op: Row(factor * value, 1e-3 * value) for op, value in price.items()}
        CostTable(device, "latency_ms", tables.fingerprint, rows).save(tables.folder / "latency_ms.csv")
        times = factor * CostModel(space, price).of(archs).numpy()
        networks = {arch: Row(float(time)) for arch, time in zip(archs, times, strict=True)}
        facts = {REFERENCE_FACT: "1", "steady": "1"}
        NetworkTable(device, space.id, tables.fingerprint, dict(list(networks.items())[:40]), facts).save(tables.networks_path(space))
        for session in (1, 2):
            path = tables.folder / "judges" / f"{space.id}-seed1-n30-session{session}.csv"
            NetworkTable(device, space.id, tables.fingerprint, dict(list(networks.items())[40:70]), facts).save(path)
    arguments = ["--devices", "cpu-1t", "cpu-2t", "--space", "nasbench201", "--operators", "8", "--judges", "30", "--tables", str(tmp_path)]
    assert table_transfer.main(arguments) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [(pair["source"], pair["target"]) for pair in found] == [("cpu-1t", "cpu-2t"), ("cpu-2t", "cpu-1t")]
    for pair in found:
        assert pair["operators"]["judged"] == len(price) - 8
        assert pair["operators"]["one_factor"]["mape"] < 1e-5
        assert pair["operators"]["ours"]["mape"] < 0.02
        assert pair["networks"]["judged"] == 30
        assert pair["networks"]["ours"]["within_5"] == 1
