"""What stands in for pydantic on a remote host says what pydantic says of a device and of a backend's options."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

from hwnas import plain
from hwnas.device import Device, Energy
from hwnas.plugins import first_problem

ROOT = Path(__file__).parents[1]
DEVICE = """
import sys
sys.modules["pydantic"] = None
from hwnas.device import Device
device = Device.model_validate_json(sys.argv[1])
print(device.name, device.threads, device.options, device.energy.seconds, device.energy.source, device.remote)
"""


def test_a_device_is_read_without_pydantic() -> None:
    sent = Device(name="x", backend="y", threads=3, options={"a": [1]}, energy=Energy(source="rapl", seconds=2.0))

    def read(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", DEVICE, text], capture_output=True, text=True, check=False, cwd=ROOT)

    assert read(sent.model_dump_json()).stdout.strip() == "x 3 {'a': [1]} 2.0 rapl None"
    assert "threads" not in read(sent.model_dump_json()).stderr
    assert "less than or equal to 1024" in read(sent.model_dump_json().replace(":3", ":3000")).stderr


def test_bounds_and_types_are_those_of_pydantic() -> None:
    cases: list[tuple[Any, list[Any]]] = [
        (int, [3, "x", True, 2.5, None]), (float, [3, 2.5, "x"]), (str, ["x", 3]), (bool, [True]), (Any, [3, "x", None]),
        (int | None, [None, 3, "x"]), (Literal["a", "b"], ["a", "c"]), (list[int], [[1, 2], ["x"], 3]),
        (dict[str, int], [{"a": 1}, {"a": "x"}]),
        (tuple[int, ...], [[1, 2], ["x"]]), (tuple[int, str], [[1, "x"], [1]]), (Sequence[float], [[1, 2.5], 3]),
        (Annotated[int, pydantic.Field(ge=1, lt=4)], [1, 3]),
    ]  # fmt: skip
    for hint, values in cases:
        for value in values:
            if value is True and hint is int:
                continue  # pydantic takes True for 1
            try:
                expected = pydantic.TypeAdapter(hint).validate_python(value)
            except pydantic.ValidationError:
                with pytest.raises(plain.ValidationError):
                    plain.fitted(value, hint)
            else:
                found = plain.fitted(value, hint)
                assert found == expected and type(found) is type(expected), (hint, value)
    bounded = Annotated[float, plain.Field(gt=0, le=2)]
    assert plain.fitted(2, bounded) == 2.0
    for value, says in ((0.0, "greater than 0"), (2.5, "less than or equal to 2")):
        with pytest.raises(plain.ValidationError, match=says):
            plain.fitted(value, bounded)


def test_a_model_has_defaults_of_its_own_and_names_what_is_wrong() -> None:
    made = plain.create_model("Options", size=(int, ...), names=(list[str], ["a"]))
    one, other = made(size=1), made(size=2, names=["b"])
    one.names.append("c")  # type: ignore[attr-defined]
    assert made(size=1).names == ["a"] and other.names == ["b"] and other.size == 2  # type: ignore[attr-defined]
    for given, says in (({}, "size: field required"), ({"size": "x"}, "size: input should be a valid int, but got 'x'")):
        with pytest.raises(plain.ValidationError) as caught:
            made(**given)
        assert first_problem(caught.value) == says
    with pytest.raises(plain.ValidationError) as caught:
        made(size=1, sice=2)
    assert first_problem(caught.value) == "sice: there is no such key, but got 2"
