"""Every file of `hwnas/backends`: it says what it is, compiles what a space needs, runs it, and refuses garbage in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas import plugins
from hwnas.device import Backend, Device, Executable, device_fingerprint, load_backend
from hwnas.errors import DeviceError
from hwnas.measure import Protocol, measure
from hwnas.profile import chains, network_onnx, reference_onnx
from hwnas.space import load_space

QUICK_SPACES = ("mobilenet_v2", "darts")
"""What `make test` runs on every backend; `make slow` runs all spaces."""
USABLE = [entry.name for entry in plugins.listing("backends") if not entry.missing]
QUICK = Protocol(rounds=2, most_rounds=2, visit_ms=0.2, fewest_runs=2, most_runs=4)


@pytest.fixture(params=USABLE)
def device(request: pytest.FixtureRequest) -> Device:
    """A device of every backend, with the options of its class's `example` if it needs any; skipped where it cannot run here."""
    options = getattr(plugins.load("backends", request.param), "example", {})
    made = Device(name="under test", backend=request.param, options=options)
    try:
        load_backend(made)
    except DeviceError as error:
        pytest.skip(str(error))
    return made


def test_every_listed_backend_says_what_it_is() -> None:
    assert USABLE and all(entry.summary for entry in plugins.listing("backends"))


def test_fingerprint_names_runtime_and_version(device: Device) -> None:
    backend = load_backend(device)
    assert isinstance(backend, Backend)
    found = device_fingerprint(device, backend)
    assert found["runtime"] and found["runtime_version"] and found["cpu"]
    assert all(isinstance(value, str) and "\n" not in value for value in found.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK_SPACES else pytest.mark.slow) for name in plugins.names("spaces")]
)
def test_runs_every_operator_and_a_network(device: Device, name: str) -> None:
    space = load_space(name, dict(plugins.load("spaces", name).small))
    backend = load_backend(device)
    models = [model for op in space.operators() for model in chains(op)[:2]]
    arch = space.random(np.random.default_rng(0))
    for model in [*models, network_onnx(space, arch)]:
        executable = backend.compile(model)
        assert isinstance(executable, Executable)
        executable.run()


def test_garbage_is_refused(device: Device) -> None:
    with pytest.raises(DeviceError) as caught:
        load_backend(device).compile(b"no model at all")
    assert "\n" not in str(caught.value)


def test_measures_in_a_worker_and_goes_on_after_a_bad_model(device: Device) -> None:
    found = measure({"good": reference_onnx(), "bad": b"no model at all"}, device, reference=reference_onnx(), protocol=QUICK)
    assert set(found.timings) == {"good"} and set(found.failures) == {"bad"}
    timing = found.timings["good"]
    assert 0 < timing.low_ms <= timing.p50_ms <= timing.p90_ms and timing.n >= QUICK.rounds * QUICK.fewest_runs
