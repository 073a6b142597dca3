"""Fingerprints: what must be equal for two measurements to mix."""

from __future__ import annotations

import pydantic
import pytest

from hwnas.config import load_device
from hwnas.device import (
    Device,
    cpu_model,
    device_fingerprint,
    differences,
    digest,
    host_fingerprint,
    load_backend,
    relation,
    require_same,
)
from hwnas.errors import ConfigError, FingerprintError, PluginError


class Quiet:
    def fingerprint(self) -> dict[str, str]:
        return {"runtime": "none"}

    def compile(self, model: bytes) -> Quiet:
        return self

    def run(self) -> None:
        pass


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch": 4}, {"options": {"x": 1}}, {"backend": "other"}])
def test_whatever_changes_timings_changes_the_fingerprint(change: dict[str, object]) -> None:
    device = Device(name="a", backend="onnxruntime")
    mine, other = (device_fingerprint(one, Quiet()) for one in (device, Device.model_validate({**device.model_dump(), **change})))
    assert digest(mine) != digest(other)
    assert len(differences(mine, other)) == 1


def test_names_and_order_do_not() -> None:
    mine, other = (device_fingerprint(Device(name=name, backend="onnxruntime", description=name), Quiet()) for name in "ab")
    assert mine == other and digest(mine) == digest(dict(reversed(mine.items())))


def test_the_host_is_described() -> None:
    found = host_fingerprint()
    assert found.keys() == {"cpu", "cores", "machine", "governor"} and all(found.values())
    assert found["cpu"] == cpu_model() and int(found["cores"]) >= 1


def test_refuses_to_mix_and_says_what_differs() -> None:
    require_same({"a": "1"}, {"a": "1"}, "it")
    with pytest.raises(FingerprintError, match="it was measured elsewhere .a: '2', here '1'; b: 'not stated', here '3'.; measure here"):
        require_same({"a": "2"}, {"a": "1", "b": "3"}, "it")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "same"),
        ({"runtime_version": "1.1"}, "stale"),
        ({"runtime_version": "1.1", "driver_version": "7"}, "stale"),
        ({"runtime_version": "1.1", "threads": "2"}, "other settings"),
        ({"governor": "powersave"}, "other settings"),
        ({"runtime": "openvino"}, "other settings"),
        ({"cpu": "Z80", "runtime_version": "1.1"}, "other machine"),
        ({"cores": "4"}, "other machine"),
    ],
)
def test_how_fingerprints_are_related(change: dict[str, str], expected: str) -> None:
    here = {"cpu": "Z80A", "cores": "2", "governor": "performance", "threads": "1", "runtime": "onnxruntime", "runtime_version": "1.2"}
    assert relation({**here, **change}, here) == expected
    if expected != "same":
        says = "is stale: it was measured on this machine" if expected == "stale" else "was measured elsewhere"
        with pytest.raises(FingerprintError, match=f"the table {says}.*with `hwnas profile`"):
            require_same({**here, **change}, here, "the table")


def test_backends_are_found_by_name() -> None:
    with pytest.raises(PluginError, match="did you mean 'onnxruntime'"):
        load_backend(Device(backend="onnxrunime"))
    with pytest.raises(ConfigError, match="did you mean 'provider'"):
        load_backend(load_device("cpu-1t").model_copy(update={"options": {"provder": "x"}}))


def test_a_device_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError):
        Device(backend="onnxruntime").threads = 3
