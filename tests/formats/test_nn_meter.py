"""nn-Meter's kernel profiles: an operator is the sum of its kernels, from several files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwnas.errors import TableError
from hwnas.exchange import import_table, load_form
from hwnas.formats.nn_meter import kernel_key
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, load_space


def profile(latency: object, **config: int) -> dict[str, Any]:
    return {"model": "x", "shapes": [[8, 8, 3]], "config": config, "latency": latency}


def write(folder: Path, kernel: str, *profiles: dict[str, Any]) -> Path:
    path = folder / f"profiled_{kernel}.json"
    path.write_text(json.dumps({kernel: dict(enumerate(profiles))}), encoding="utf-8")
    return path


@pytest.fixture
def space() -> SearchSpace:
    block, stem = OpSpec.parse("mbconv:8-8:4x4:k5:e16"), OpSpec.parse("conv_bn_relu:3-8:8x8:k3:s2")
    sites = (Site(stem, ("input",), "a"), Site(block, ("a",), "b"), Site(OpSpec.parse("classifier:8-2:4x4:s4"), ("b",), "output"))
    return SearchSpace((3, 8, 8), 2, (), sites, name="two")


def test_kernels_add_up(space: SearchSpace, tmp_path: Path) -> None:
    files = [
        write(
            tmp_path, "conv-bn-relu6", profile("1.5 +- 0.3", HW=8, CIN=3, COUT=8, KERNEL_SIZE=3, STRIDES=2),
            profile("2.0 +- 0.4", HW=4, CIN=8, COUT=16, KERNEL_SIZE=1, STRIDES=1),
            profile("9.0 +- 0.4", HW=99, CIN=8, COUT=16, KERNEL_SIZE=1, STRIDES=1),
        ),
        write(tmp_path, "dwconv-bn-relu6", profile("4.0 +- 0.3", HW=4, CIN=16, COUT=16, KERNEL_SIZE=5, STRIDES=1)),
        write(tmp_path, "conv-bn", profile(8, HW=4, CIN=16, COUT=8, KERNEL_SIZE=1, STRIDES=1)),
        write(tmp_path, "add", profile("16 +- 0", HW=4, CIN=8)),
    ]  # fmt: skip
    found = import_table("nn_meter", files, "a phone", space)
    rows = {op.kind: row for op, row in found.table.rows.items()}
    assert {kind: row.price for kind, row in rows.items()} == {"conv_bn_relu": 1.5, "mbconv": 30.0}
    assert rows["mbconv"].error == pytest.approx(0.5) and rows["conv_bn_relu"].error == 0.3
    assert [op.kind for op in found.missing] == ["classifier"]
    assert found.unused == ["conv-bn-relu6 HW=99 CIN=8 COUT=16 KERNEL_SIZE=1 STRIDES=1"]
    assert found.table.fingerprint["file"].count(",") == 3


@pytest.mark.parametrize("name", ["mobilenet_v2", "ofa_mobilenet_v3", "nasbench201"])
def test_operators_have_kernels(name: str) -> None:
    space = load_space(name)
    recipes = load_form("nn_meter", {}).recipes(space, {})
    assert {op.kind for op in space.operators() if op not in recipes} <= {"resnet_reduction", "bn_relu_classifier"}
    assert all(part.split()[0] for parts in recipes.values() for recipe in parts for part in recipe)


def test_squeeze_and_residual_are_kernels_of_their_own() -> None:
    form = load_form("nn_meter", {})
    op = OpSpec.parse("mbconv_se_hswish:8-8:4x4:k5:e16")
    (recipe,) = form.recipes(SearchSpace((8, 4, 4), 8, (), (Site(op, ("input",), "output"),)), {})[op]
    assert kernel_key("se", HW=4, CIN=16) in recipe and kernel_key("add", HW=4, CIN=8) in recipe and len(recipe) == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"conv-bn-rel": {"0": profile("1 +- 0", HW=8)}}, "did you mean 'conv-bn-relu'"),
        ({"fc": {"0": profile("1 +- 0", CIN=8)}}, "gives no COUT in the config of fc 0"),
        ({"fc": {"0": profile("fast", CIN=8, COUT=2)}}, "has the latency 'fast' for fc 0"),
        ({"fc": {"0": profile("-1 +- 0", CIN=8, COUT=2)}}, "gives -1 for 'fc CIN=8 COUT=2'"),
        ({"fc": {"0": {"config": {"CIN": 8, "COUT": 2}}}}, "has no config and latency for fc 0"),
    ],
)
def test_damaged_files(content: dict[str, Any], says: str, space: SearchSpace, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TableError, match=says.replace("+", "[+]")):
        import_table("nn_meter", [tmp_path / "table.json"], "a phone", space)


def test_one_file_twice(space: SearchSpace, tmp_path: Path) -> None:
    path = write(tmp_path, "fc", profile("1 +- 0", CIN=8, COUT=2))
    with pytest.raises(TableError, match="gives 'fc CIN=8 COUT=2' a second time"):
        import_table("nn_meter", [path, path], "a phone", space)
