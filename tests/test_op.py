"""An operator is its key and the key is the operator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import SpaceError
from hwnas.op import OpSpec

SIZES = st.integers(1, 4096)


def specs() -> st.SearchStrategy[OpSpec]:
    return st.builds(
        OpSpec,
        st.text("abcz059_", max_size=8).map("k".__add__),
        SIZES, SIZES, SIZES, SIZES,
        kernel=SIZES, stride=SIZES, hidden=st.integers(0, 4096), groups=SIZES, dilation=SIZES,
    )  # fmt: skip


@given(specs())
def test_parse_is_the_inverse_of_str(op: OpSpec) -> None:
    assert OpSpec.parse(str(op)) == op
    assert str(OpSpec.parse(f" {op}\n")) == str(op)


@given(specs(), specs())
def test_equal_keys_mean_equal_operators(one: OpSpec, other: OpSpec) -> None:
    assert (str(one) == str(other)) == (one == other)
    assert one != other or hash(one) == hash(other)


def test_key_names_what_differs_from_the_default() -> None:
    assert str(OpSpec("mbconv", 16, 24, 32, 32, 5, 2, hidden=96)) == "mbconv:16-24:32x32:k5:s2:e96"
    assert str(OpSpec("identity", 8, 8, 7, 9)) == "identity:8-8:7x9"
    assert OpSpec.parse("conv:1-2:3x4:k1:s1") == OpSpec("conv", 1, 2, 3, 4)


@pytest.mark.parametrize(
    "text",
    [
        "", "conv", "conv:1-2", "conv:1-2:3", "conv:1-2:3x4:", "conv:1-2:3x4:k", "conv:1-2:3x4:z3", "conv:1-2:3x4:k3:k5",
        "Conv:1-2:3x4", "conv:1-2:3x4 k3", "conv:-1-2:3x4", "conv:1.5-2:3x4", "conv:0-2:3x4", "conv:1-2:3x4:k0",
        "conv:1-2:3x4:kk3", "conv:1-2:3x4\nconv:1-2:3x4", "conv:١-2:3x4", ":1-2:3x4", "3conv:1-2:3x4",
    ],
)  # fmt: skip
def test_malformed_keys_are_refused(text: str) -> None:
    with pytest.raises(SpaceError, match="must be a whole number|is not an operator"):
        OpSpec.parse(text)


@pytest.mark.parametrize(("field", "value"), [("c_in", 0), ("kernel", -1), ("hidden", -1), ("stride", True)])
def test_sizes_must_be_whole_and_positive(field: str, value: int) -> None:
    sizes = {"c_in": 1, "c_out": 1, "height": 1, "width": 1, field: value}
    with pytest.raises(SpaceError, match=f"{field} of conv must be a whole number of at least"):
        OpSpec("conv", **sizes)


def test_kind_must_be_printable_in_a_key() -> None:
    with pytest.raises(SpaceError, match="'Conv:3'"):
        OpSpec("Conv:3", 1, 1, 1, 1)


@given(st.integers(1, 512), st.integers(1, 64))
def test_output_is_the_input_over_the_stride_rounded_up(side: int, stride: int) -> None:
    op = OpSpec("conv", 1, 1, side, side + 1, stride=stride)
    assert (op.out_height - 1) * stride < side <= op.out_height * stride
    assert (op.out_width - 1) * stride < side + 1 <= op.out_width * stride
