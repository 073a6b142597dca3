"""Every file of `hwnas/formats`: what is no table is refused in one sentence, and what is written is read again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hwnas import plugins
from hwnas.errors import TableError
from hwnas.exchange import export_table, import_table, load_form
from hwnas.space import SearchSpace, load_space
from hwnas.table import CostTable, Row

OPTIONS: dict[str, dict[str, Any]] = {"hw_nas_bench": {"column": "raspi4"}, "nasbench201_ops": {"column": "raspi4"}}
EXPORTING = [name for name in plugins.names("formats") if plugins.load("formats", name).exports]
# where tables of a form find all their operators
SPACES = {
    "once_for_all": load_space("ofa_mobilenet_v3", {"width": 1.2}),
    "proxylessnas": load_space("mobilenet_v2"),
    "plain_csv": load_space("fbnet"),
    "nasbench201_ops": load_space("nasbench201"),
}
amounts = st.floats(0, 1e6)
maybe = amounts | st.just(math.nan)
rows = st.builds(Row, amounts, amounts, maybe, maybe, st.integers(0, 10**6), st.just("imported"))


@pytest.fixture(params=plugins.names("formats"))
def name(request: pytest.FixtureRequest) -> str:
    """Every form there is, one after the other."""
    return str(request.param)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", "3", "word", "a: b", '{"a": 1}', "a,b\n1,2\n", "x " * 9, "\x00\x01", "- a\n- b"]
)
def test_what_is_no_table_is_refused(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TableError) as refused:
        import_table(name, [path], "somewhere", SPACES["plain_csv"], options=OPTIONS.get(name))
    assert "table.txt" in str(refused.value) and "\n" not in str(refused.value)


def test_an_image_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "table.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(TableError, match="is not text"):
        import_table(name, [path], "somewhere", SPACES["plain_csv"], options=OPTIONS.get(name))


def same(found: Row, wanted: Row) -> bool:
    """NaN is NaN."""
    pairs = zip((found.price, found.error, found.p50, found.p90), (wanted.price, wanted.error, wanted.p50, wanted.p90), strict=True)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs) and (found.n, found.source) == (wanted.n, wanted.source)


def test_every_form_that_is_written_has_a_space_here() -> None:
    assert set(EXPORTING) == set(SPACES)


@pytest.mark.parametrize("form", [name for name in EXPORTING if name != "nasbench201_ops"])
@settings(max_examples=8, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # what fails is small as it is
@given(data=st.data())
def test_what_is_written_is_read_again(form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    space: SearchSpace = SPACES[form]
    recipes = load_form(form, {}).recipes(space, {})
    operators = [op for op in space.operators() if recipes.get(op) and recipes[op][0]]
    chosen = data.draw(st.lists(st.sampled_from(operators), min_size=1, max_size=6, unique=True))
    table = CostTable("here", "latency_ms", {"cpu": "x"}, {op: data.draw(rows) for op in chosen})
    path = tmp_path_factory.mktemp("forms") / "table"
    assert export_table(form, table, path) == []
    back = import_table(form, [path], "here", space)
    read = {op: row for op, row in back.table.rows.items() if recipes[op][0]}
    assert read.keys() == table.rows.keys() and not back.unused
    assert all(same(read[op], row) for op, row in table.rows.items())
    assert set(back.missing) == set(space.operators()) - back.table.rows.keys()
    back.table.save(path.with_suffix(".csv"))
    again = CostTable.load(path.with_suffix(".csv"))
    assert again.fingerprint == back.table.fingerprint and all(same(again.rows[op], row) for op, row in read.items())
