"""Times from datasheets: the formula by hand, its marks in tables, and boards that cannot be meant."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwnas import layers
from hwnas.config import available, load_device
from hwnas.device import Device, device_fingerprint, host_fingerprint, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.op import OpSpec
from hwnas.profile import DeviceTables, network_onnx, profile_networks, profile_operators
from hwnas.quick_onnx import quick_onnx
from hwnas.space import load_space

BOARD = {"gmacs_per_second": {"fp32": 1.0, "fp16": 2.0, "int8": 4.0}, "gigabytes_per_second": 1.0, "overhead_us": 1.0}


def board(**options: object) -> Device:
    return Device(name="board", backend="roofline", options={**BOARD, **options})


def nanoseconds(model: bytes, device: Device) -> int:
    (time,) = set(load_backend(device).compile(model).time(3))  # type: ignore[attr-defined]
    return int(time)


def graph(*nodes: onnx.NodeProto, shape: tuple[int | str, ...] = (1, 8, 10, 10), **weights: tuple[int, ...]) -> bytes:
    """A model from `x` to `y`, whose weights are zeros of these shapes."""
    made = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in weights.items()],
    )  # fmt: skip
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())


CONV = graph(helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4), w=(4, 8, 3, 3))
MACS, ELEMENTS = 4 * 10 * 10 * 8 * 9, 800 + 4 * 8 * 9 + 400


@pytest.mark.parametrize(
    ("options", "precision", "expected"),
    [
        ({}, "fp32", MACS + 1000),  # 1 MAC a nanosecond; a launch is 1 us
        ({}, "int8", MACS / 4 + 1000),
        ({"gmacs_per_second": {"fp32": 100}}, "fp32", 4 * ELEMENTS + 1000),  # 1 byte a nanosecond
        ({"gmacs_per_second": {"fp16": 100}}, "fp16", 2 * ELEMENTS + 1000),
        ({"overhead_us": 0}, "fp32", MACS),
    ],
)
def test_a_node_takes_arithmetic_or_traffic_and_a_launch(options: dict[str, object], precision: str, expected: float) -> None:
    device = board(**options).model_copy(update={"precision": precision})
    assert nanoseconds(CONV, device) == expected


def test_a_batch_is_as_much_more_work() -> None:
    model = graph(helper.make_node("Conv", ["x", "w"], ["y"]), shape=("batch", 8, 10, 10), w=(4, 8, 3, 3))
    one, four = (nanoseconds(model, board(overhead_us=0).model_copy(update={"batch": batch})) for batch in (1, 4))
    assert four == 4 * one == 4 * (4 * 8 * 8 * 72)


def test_products_of_matrices() -> None:
    flat = helper.make_node("Flatten", ["x"], ["f"])
    gemm = graph(flat, helper.make_node("Gemm", ["f", "w"], ["y"], transB=1), w=(5, 800))
    matmul = graph(flat, helper.make_node("MatMul", ["f", "w"], ["y"]), w=(800, 5))
    expected = max(800 * 5, 4 * (800 + 800 * 5 + 5)) + 1000
    assert nanoseconds(gemm, board()) == nanoseconds(matmul, board()) == expected


def test_what_a_runtime_fuses_is_free_and_what_it_cannot_is_not() -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4)
    relu, add = helper.make_node("Relu", ["c"], ["y"]), helper.make_node("Add", ["c", "r"], ["y"])
    assert nanoseconds(graph(conv, relu, w=(4, 8, 3, 3)), board()) == MACS + 1000
    read_twice = graph(conv, helper.make_node("Relu", ["c"], ["r"]), add, w=(4, 8, 3, 3))
    assert nanoseconds(read_twice, board()) == MACS + 1000 + (4 * 800 + 1000) + (4 * 1200 + 1000)
    alone = graph(helper.make_node("Relu", ["x"], ["y"]))
    assert nanoseconds(alone, board()) == 4 * 1600 + 1000


def test_an_operator_of_a_space_by_hand() -> None:
    op = OpSpec("conv_bn", 16, 16, 8, 8, kernel=3)
    model = quick_onnx(layers.build(op), (16, 8, 8))
    assert nanoseconds(model, board()) == 16 * 16 * 9 * 64 + 1000


@pytest.mark.parametrize("name", [name for name in available("devices") if name.startswith("roofline-")])
def test_the_shipped_boards(name: str) -> None:
    device = load_device(name)
    assert "#" in available("devices")[name].read_text() and "computed" in device.description  # sources, and no claim to have measured
    fingerprint = device_fingerprint(device, load_backend(device))
    assert fingerprint["source"] == "modelled"
    assert not {*host_fingerprint().values()} & {value for value in fingerprint.values() if len(value) > 3}
    space = load_space("nasbench201")
    small, large = (
        network_onnx(space, tuple(space.slots[0].choices.index(kind) for _ in space.slots)) for kind in ("skip_connect", "nor_conv_3x3")
    )
    assert 1000 < nanoseconds(small, device) < nanoseconds(large, device) < 1e8


def test_tables_say_modelled_and_are_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = board()
    space = load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1})
    tables = DeviceTables.here(tmp_path, device)
    table = profile_operators(tables, space.operators())
    networks = profile_networks(tables, space, 12)
    assert {row.source for row in table.rows.values()} == {"modelled"} == {row.source for row in networks.rows.values()}
    assert all(row.error == 0 for row in table.rows.values())
    assert tables.calibration(space).left_out.shape == (12,)
    monkeypatch.setattr("hwnas.device.host_fingerprint", lambda: {"cpu": "Z80"})
    assert device_fingerprint(device, load_backend(device)) == tables.fingerprint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gmacs_per_second": {"fp32": -5}}, "gmacs_per_second.fp32: input should be greater than 0, but got -5"),
        ({"gmacs_per_second": {"fp32": float("inf")}}, "gmacs_per_second.fp32: input should be a finite number"),
        ({"gmacs_per_second": {"fp33": 5}}, "fp33"),
        ({"gmacs_per_second": {"int8": 5}}, "device board runs fp32, but its gmacs_per_second has only int8"),
        ({"gigabytes_per_second": 0}, "gigabytes_per_second: input should be greater than 0, but got 0"),
        ({"overhead_us": -1}, "overhead_us: input should be greater than or equal to 0, but got -1"),
        ({"bandwidth": 5}, "no option 'bandwidth'"),
    ],
)
def test_boards_that_cannot_be_meant(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_backend(board(**options))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"garbage", "no ONNX model"),
        (graph(helper.make_node("Erf", ["x"], ["y"])), "no rule for the node Erf"),
        (graph(helper.make_node("Add", ["x", "w"], ["y"]), w=(4, 7, 3, 3)), "shapes of the model's tensors cannot be inferred"),
    ],
)
def test_models_that_it_cannot_price(model: bytes, says: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(says)):
        load_backend(board()).compile(model)
