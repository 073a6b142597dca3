"""Tables as plain text: what was written is read again, by pandas too, and what cannot be believed is refused."""

from __future__ import annotations

import dataclasses
import math
import string
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import FingerprintError, MissingPriceError, TableError
from hwnas.op import OpSpec
from hwnas.table import SOURCES, CostTable, NetworkTable, Row

HERE = {"cpu": "a: b, c", "runtime": "onnxruntime"}
OP, OTHER = OpSpec("conv_bn", 3, 4, 8, 8, kernel=3), OpSpec("mbconv", 4, 4, 8, 8, kernel=5, hidden=12)
# as the files keep them: six digits
numbers = st.floats(0, 1e6).map(lambda value: float(f"{value:.6g}"))
text = st.text(string.ascii_letters + string.digits + " ,;:'\"#=(é", max_size=20).map(lambda word: " ".join(word.split()))
names = st.text(string.ascii_letters + " _-", min_size=1, max_size=10).map(lambda word: " ".join(word.split()) or "x")
facts = st.dictionaries(names.filter(lambda name: not name.startswith("bad ")), text, max_size=3)
rows = st.builds(Row, numbers, numbers, numbers, numbers, st.integers(0, 10**6), st.sampled_from(SOURCES))
sizes = st.integers(1, 64)
operators = st.builds(
    OpSpec, st.sampled_from(["conv_bn", "mbconv"]), sizes, sizes, sizes, sizes, kernel=st.integers(1, 7), stride=st.integers(1, 2),
    hidden=st.integers(0, 99),
)  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(operators, rows, max_size=5), facts, facts, st.dictionaries(operators, text, max_size=2))
def test_operators_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[OpSpec, Row],
    about: dict[str, str],
    fingerprint: dict[str, str],
    bad: dict[OpSpec, str],
) -> None:
    path = tmp_path_factory.mktemp("tables") / "latency_ms.csv"
    table = CostTable("cpu-1t", "latency_ms", fingerprint, rows, about, bad)
    table.save(path)
    assert CostTable.load(path) == table
    if rows:
        assert pd.read_csv(path, comment="#")["latency_ms"].tolist() == [rows[op].price for op in sorted(rows, key=str)]


@settings(max_examples=40)
@given(st.dictionaries(st.lists(st.integers(0, 20), min_size=1, max_size=6).map(tuple), rows, max_size=5), facts)
def test_networks_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[tuple[int, ...], Row], about: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("tables") / "networks" / "x.csv"
    measured = {arch: dataclasses.replace(row, price=row.price + 1) for arch, row in rows.items()}
    measured = {arch: dataclasses.replace(row, price=float(f"{row.price:.6g}")) for arch, row in measured.items()}
    table = NetworkTable("cpu-1t", "x", HERE, measured, about)
    table.save(path)
    assert NetworkTable.load(path) == table


def test_networks_say_where_they_come_from(tmp_path: Path) -> None:
    table = NetworkTable("cpu-1t", "x", HERE, {(0, 1): Row(1.5, source="modelled")}, {})
    table.save(tmp_path / "x.csv")
    assert NetworkTable.load(tmp_path / "x.csv").rows[0, 1].source == "modelled"
    text = (tmp_path / "x.csv").read_text()
    for old, new in (("modelled", "guessed"), (",source", "")):
        (tmp_path / "x.csv").write_text(text.replace(old, new))
        with pytest.raises(TableError, match="source must be one of|delete it and profile again"):
            NetworkTable.load(tmp_path / "x.csv")


def test_what_was_not_measured_stays_empty(tmp_path: Path) -> None:
    CostTable("cpu-1t", "energy_mj", HERE, {OP: Row(0.5, source="modelled")}).save(tmp_path / "t.csv")
    row = CostTable.load(tmp_path / "t.csv").rows[OP]
    assert math.isnan(row.p50) and row.source == "modelled"
    frame = pd.read_csv(tmp_path / "t.csv", comment="#")
    assert frame.columns.tolist() == ["op", "energy_mj", "error", "p50", "p90", "n", "source"]
    assert frame["p50"].isna().all()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    table = CostTable("cpu-1t", "latency_ms", HERE, {OP: Row(0.5)})
    table.save(tmp_path / "t.csv")
    before = (tmp_path / "t.csv").read_bytes()
    table.save(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    with pytest.raises(TableError, match="--tables"):
        table.save(tmp_path / "t.csv" / "below.csv")
    with pytest.raises(TableError, match="cannot read the table"):
        CostTable.load(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf])
def test_prices_that_cannot_be(price: float) -> None:
    with pytest.raises(TableError, match="finite and not negative"):
        CostTable("cpu-1t", "latency_ms", HERE, {OP: Row(price)})
    with pytest.raises(TableError, match="finite and not negative"):
        CostTable("cpu-1t", "latency_ms", HERE).add({OP: Row(price)}, HERE)


def test_a_metric_that_no_table_has() -> None:
    with pytest.raises(TableError, match="latency_us"):
        CostTable("cpu-1t", "latency_us", HERE)


def test_a_missing_price_is_an_error_and_not_zero() -> None:
    table = CostTable("cpu-1t", "latency_ms", HERE, {OP: Row(0.5)}, bad={OTHER: "crashed"})
    assert table.price(OP) == 0.5
    assert table.missing([OP, OTHER]) == [OTHER]
    with pytest.raises(MissingPriceError, match="could not be measured on cpu-1t: crashed"):
        table.price(OTHER)
    with pytest.raises(MissingPriceError, match="hwnas profile cpu-1t"):
        table.price(OpSpec("relu", 4, 4, 8, 8))
    table.add({OTHER: Row(0.7)}, HERE)
    assert table.price(OTHER) == 0.7 and not table.bad


def test_numbers_of_two_machines_do_not_mix() -> None:
    with pytest.raises(FingerprintError, match="cpu: 'Z80', here 'a: b, c'"):
        CostTable("cpu-1t", "latency_ms", HERE).add({OP: Row(1.0)}, {**HERE, "cpu": "Z80"})
