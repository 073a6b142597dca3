"""NAS-Bench-201 as published: its strings, its counts, its 341 cells without a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas import resources
from hwnas.errors import SpaceError
from hwnas.space import SearchSpace, load_space
from hwnas.spaces.nasbench201 import NASBench201

INDEX_1 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


@pytest.fixture(scope="module")
def published() -> SearchSpace:
    return load_space("nasbench201")


def counted(space: SearchSpace, arch: tuple[int, ...]) -> tuple[float, float]:
    """Multiply-adds and parameters as the benchmark counts them: dead branches too, and the classifier's bias as 10 MACs."""
    ops = [site.op for site in space.active(arch)]
    return sum(map(resources.macs, ops)) + 10, sum(map(resources.params, ops))


def test_first_cell_has_the_published_counts(published: SearchSpace) -> None:
    macs, params = counted(published, published.parse(INDEX_1))
    assert (macs, params) == (113_951_370, 802_426)


def test_every_cell_has_the_published_counts_and_string(published: SearchSpace, test_data: Path) -> None:
    table = np.load(test_data / "nasbench201_hw.npz")
    prices = {op: (resources.macs(op), resources.params(op)) for op in published.operators()}
    for row, text, macs, params in zip(
        table["ops"].tolist(), table["arch_str"].tolist(), table["macs"].tolist(), table["params"].tolist(), strict=True
    ):
        counts = np.sum([prices[site.op] for site in published.active(row)], axis=0)
        assert (counts[0] + 10, counts[1]) == (macs, params), text
        assert published.describe(row) == text.decode()


def test_cells_without_a_path(test_data: Path) -> None:
    table = np.load(test_data / "nasbench201_hw.npz")
    space = load_space("nasbench201", NASBench201.small)
    cut = np.array([not space.graph(row) for row in table["ops"].tolist()])
    assert cut.sum() == 341
    assert (table["test_acc"][cut] < 10.01).all()


def test_parse_reads_the_published_string_and_nothing_like_it(published: SearchSpace) -> None:
    arch = published.parse(INDEX_1)
    assert arch == (3, 3, 4, 1, 3, 1)
    assert published.describe(arch) == INDEX_1
    assert published.parse("3,3,4,1,3,1") == arch
    for wrong in (INDEX_1.replace("avg", "max"), INDEX_1.replace("~2", "~1"), INDEX_1[:-1], INDEX_1.replace("+", "")):
        with pytest.raises(SpaceError, match="with the operators none, skip_connect"):
            published.parse(wrong)
    with pytest.raises(SpaceError, match="no path from its input to its output"):
        published.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")


def test_odd_image_sizes_are_rounded_up_in_both_branches(published: SearchSpace) -> None:
    space = load_space("nasbench201", {"input_size": 25, "width": 4, "cells": 1})
    assert [space.node_shape(f"reduction{i}") for i in (1, 2)] == [(8, 13, 13), (16, 7, 7)]
    assert all(resources.count(op).params >= 0 for op in space.operators())
