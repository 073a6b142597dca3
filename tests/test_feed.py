"""Inputs of ONNX models: read from the model, the same for the same seed, refused where they cannot be made."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwnas.errors import DeviceError
from hwnas.feed import first_line, parse, random_feed, shapes
from hwnas.profile import reference_onnx


def model(kind: int, shape: list[int | str]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name in "xy")
    weight = helper.make_tensor("weight", kind, [1], [1])
    listed_weight = helper.make_tensor_value_info("weight", kind, [1])  # as old files do
    return helper.make_model(helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", [x, listed_weight], [y], [weight]))


def test_random_inputs_have_the_model_s_shapes() -> None:
    found = random_feed(parse(reference_onnx()), 1)
    assert list(found) == ["input"] and found["input"].shape == (1, 24, 16, 16) and found["input"].dtype == np.float32
    again, other = random_feed(parse(reference_onnx()), 1), random_feed(parse(reference_onnx()), 1, seed=1)
    np.testing.assert_array_equal(found["input"], again["input"])
    assert not np.array_equal(found["input"], other["input"])


def test_a_dynamic_first_axis_is_the_batch() -> None:
    assert shapes(model(TensorProto.FLOAT, ["batch", 3, 4]), 5) == {"x": [5, 3, 4]}
    assert shapes(model(TensorProto.FLOAT, [2, 3, 4]), 5) == {"x": [2, 3, 4]}


@pytest.mark.parametrize(
    ("made", "says"),
    [(model(TensorProto.FLOAT, ["batch", 3, "width"]), "width"), (model(TensorProto.INT64, [1, 3]), "INT64")],
    ids=["dynamic", "integers"],
)
def test_inputs_that_cannot_be_made(made: onnx.ModelProto, says: str) -> None:
    with pytest.raises(DeviceError, match=f"input 'x' must be FLOAT .*{says}"):
        random_feed(made, 1)


@pytest.mark.parametrize("damaged", [b"garbage", b"", b"\x00" * 64])
def test_what_is_no_model(damaged: bytes) -> None:
    with pytest.raises(DeviceError, match="damaged or no ONNX model") as caught:
        parse(damaged)
    assert "\n" not in str(caught.value)


def test_first_line() -> None:
    assert first_line(RuntimeError("\n  one \ntwo")) == "one"
    assert first_line(MemoryError()) == "MemoryError"
