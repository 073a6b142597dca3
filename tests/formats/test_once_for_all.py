"""Once-for-all's Note10 tables price every network of the space with width multiplier 1.2, as once-for-all's own walk does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from hwnas.cost import CostModel
from hwnas.errors import TableError
from hwnas.exchange import import_table
from hwnas.space import SearchSpace, load_space

RESOLUTIONS = (160, 176, 192, 208, 224)


def walked(space: SearchSpace, arch: Sequence[int], size: int, means: dict[str, dict[str, float]]) -> float:
    """The sum of a network's layers in the file, in the way of the project: stem, blocks, `Conv_1`, `AvgPool2D`, `Conv_2`, `Logits`."""
    choices = {slot.name: slot.choices[choice] for slot, choice in zip(space.slots, arch, strict=True)}
    side = (size + 1) // 2
    keys = [f"Conv-input:{size}x{size}x3-output:{side}x{side}x24"]
    blocks = [(24, 24, 1, 24, 3, 0, 0)]  # channels in, out, stride, channels between, kernel, squeeze, hard swish
    c_in = 24
    for stage, (c_out, stride, squeeze, swish) in enumerate(
        ((32, 2, 0, 0), (48, 2, 1, 0), (96, 2, 0, 1), (136, 1, 1, 1), (192, 2, 1, 1)), 1
    ):
        for block in range(1, int(choices[f"s{stage}.depth"]) + 1):
            kernel, expansion = map(int, choices[f"s{stage}.b{block}"].removeprefix("k").split("e"))
            blocks.append((c_in, c_out, stride if block == 1 else 1, c_in * expansion, kernel, squeeze, swish))
            c_in = c_out
    for c_in, c_out, stride, between, kernel, squeeze, swish in blocks:
        out = int((side - 1) / stride + 1)
        skip = int(stride == 1 and c_in == c_out)
        keys.append(
            f"expanded_conv-input:{side}x{side}x{c_in}-output:{out}x{out}x{c_out}-expand:{between}-kernel:{kernel}-stride:{stride}"
            f"-idskip:{skip}-se:{squeeze}-hs:{swish}"
        )
        side = out
    keys += [f"Conv_1-input:{side}x{side}x192-output:{side}x{side}x1152", f"AvgPool2D-input:{side}x{side}x1152-output:1x1x1152"]
    keys += ["Conv_2-input:1x1x1152-output:1x1x1536", "Logits-input:1x1x1536-output:1000"]
    return sum(means[key]["mean"] for key in keys)


@pytest.mark.parametrize("size", RESOLUTIONS)
def test_the_table_is_the_space_and_sums_are_the_projects(test_data: Path, size: int, rng: np.random.Generator) -> None:
    path = test_data / f"luts/ofa_note10_{size}.yaml"
    space = load_space("ofa_mobilenet_v3", {"width": 1.2, "input_size": size})
    found = import_table("once_for_all", [path], "Note10", space)
    assert (found.missing, found.unused) == ([], [])
    assert sum(op.kind != "identity" for op in found.table.rows) == 96
    assert "identity:32-32" in found.table.facts["free"]
    means = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = CostModel(space, found.table.price)
    archs = [space.random(rng) for _ in range(50)]
    np.testing.assert_allclose(model.of(archs), [walked(space, arch, size, means) for arch in archs], rtol=1e-12)


# The blocks, stage by stage, of `ofa/ofa_specialized/note10_lat-30ms_top1-78.4_finetune-75` in han-cai/files @ a7c9bcd525e1.
RELEASED = ("k3e3 k3e3", "k5e4 k3e3 k3e4", "k5e4 k5e4 k3e3", "k3e6 k3e4 k3e4", "k3e6 k3e6 k3e4 k3e3")


def test_a_released_network_costs_what_its_authors_say(test_data: Path) -> None:
    """They print 29.97 ms for it."""
    space = load_space("ofa_mobilenet_v3", {"width": 1.2})
    table = import_table("once_for_all", [test_data / "luts/ofa_note10_224.yaml"], "Note10", space).table
    chosen: dict[str, str] = {}
    for stage, blocks in enumerate(map(str.split, RELEASED), 1):
        chosen |= {f"s{stage}.depth": str(len(blocks))} | {f"s{stage}.b{number}": block for number, block in enumerate(blocks, 1)}
    arch = [slot.choices.index(chosen[slot.name]) if slot.name in chosen else 0 for slot in space.slots]
    assert float(CostModel(space, table.price).of([tuple(arch)])) == pytest.approx(29.97, abs=0.005)


def test_standard_errors_are_of_the_mean(test_data: Path) -> None:
    space = load_space("ofa_mobilenet_v3", {"width": 1.2})
    table = import_table("once_for_all", [test_data / "luts/ofa_note10_224.yaml"], "Note10", space).table
    (stem,) = (row for op, row in table.rows.items() if op.kernel == 3 and op.kind == "conv_bn_hswish")
    assert (stem.price, stem.n) == (0.994418, 500)
    assert stem.error == pytest.approx(0.01726798413249215 / 500**0.5)


def test_a_file_cut_off_anywhere_is_refused_or_lacks_operators(test_data: Path, tmp_path: Path) -> None:
    text = (test_data / "luts/ofa_note10_224.yaml").read_text(encoding="utf-8")
    space = load_space("ofa_mobilenet_v3", {"width": 1.2})
    refused = 0
    for at in range(7, len(text), len(text) // 12):
        (tmp_path / "table.yaml").write_text(text[:at], encoding="utf-8")
        try:
            assert import_table("once_for_all", [tmp_path / "table.yaml"], "Note10", space).missing
        except TableError:
            refused += 1
    assert refused >= 10


def test_a_table_of_another_resolution_says_what_it_lacks(test_data: Path) -> None:
    found = import_table("once_for_all", [test_data / "luts/ofa_note10_160.yaml"], "Note10", load_space("ofa_mobilenet_v3", {"width": 1.2}))
    assert len(found.missing) > 90 and len(found.unused) > 90
    assert found.unused[0].startswith("AvgPool2D-input:5x5x1152")
