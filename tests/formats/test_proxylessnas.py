"""ProxylessNAS's Pixel 1 table is the whole of its space, which `mobilenet_v2` can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hwnas.cost import CostModel
from hwnas.exchange import import_table
from hwnas.formats.proxylessnas import ProxylessNAS
from hwnas.op import OpSpec
from hwnas.space import load_space

SPACE: dict[str, Any] = {
    "input_size": 224, "classes": 1000, "stem_width": 32, "stem_stride": 2, "head_width": 1280,
    "stages": [
        {"widths": [16], "depth": 1, "expansions": [1]}, {"widths": [24], "depth": 4, "stride": 2},
        {"widths": [40], "depth": 4, "stride": 2}, {"widths": [80], "depth": 4, "stride": 2}, {"widths": [96], "depth": 4},
        {"widths": [192], "depth": 4, "stride": 2}, {"widths": [320], "depth": 1},
    ],
}  # fmt: skip


def test_the_table_is_the_space(test_data: Path) -> None:
    path = test_data / "luts/proxylessnas_mobile_trim.yaml"
    space = load_space("mobilenet_v2", SPACE)
    found = import_table("proxylessnas", [path], "Pixel 1", space)
    assert (found.missing, found.unused) == ([], [])
    means = {key: value["mean"] for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
    # every block k3e3, those that may be skipped skipped
    arch = [slot.choices.index("skip") if "skip" in slot.choices else 0 for slot in space.slots]
    shapes = ["112x112x16-output:56x56x24", "56x56x24-output:28x28x40", "28x28x40-output:14x14x80", "14x14x96-output:7x7x192"]
    keys = ["Conv-input:224x224x3-output:112x112x32", "Conv_1-input:7x7x320-output:7x7x1280", "Logits-input:7x7x1280-output:1000"]
    keys += ["expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0"]
    keys += [f"expanded_conv-input:{shape}-expand:3-kernel:3-stride:2-idskip:0" for shape in shapes]
    ends = ("14x14x80-output:14x14x96", "7x7x192-output:7x7x320")
    keys += [f"expanded_conv-input:{shape}-expand:3-kernel:3-stride:1-idskip:0" for shape in ends]
    assert float(CostModel(space, found.table.price).of([tuple(arch)])) == pytest.approx(sum(means[key] for key in keys), rel=1e-12)


def test_variances_are_of_single_runs(test_data: Path) -> None:
    table = import_table(
        "proxylessnas", [test_data / "luts/proxylessnas_mobile_trim.yaml"], "Pixel 1", load_space("mobilenet_v2", SPACE)
    ).table
    row = table.rows[OpSpec.parse("conv_bn_relu:3-32:224x224:k3:s2")]
    assert (row.price, row.n, row.source) == (4.083755600814664, 982, "imported")
    assert row.error == pytest.approx((0.2502372872758427 / 982) ** 0.5)


@pytest.mark.parametrize("key", ["mbconv:16-24:8x8:k3:e40", "mbconv:16-24:8x8:k3:e32:g2", "conv_bn_relu:3-8:8x8:k5", "identity:8-8:4x4"])
def test_operators_that_the_form_cannot_say(key: str) -> None:
    assert ProxylessNAS().key(OpSpec.parse(key)) is None
