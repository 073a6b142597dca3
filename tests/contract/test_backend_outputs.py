"""Every file of `hwnas/backends` in every precision it declares: what it computes is what ONNX Runtime computes in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet

from hwnas import plugins
from hwnas.device import Backend, ComputingExecutable, Device, Precision, load_backend
from hwnas.errors import ConfigError, DeviceError
from hwnas.feed import parse, random_feed
from hwnas.profile import chains, network_onnx
from hwnas.space import SearchSpace, load_space

TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "int8": 0.1}
"""Largest distance from the fp32 outputs, as a share of their norm. Random weights, random images, random calibration data."""
LISTED = [entry for entry in plugins.listing("backends") if not entry.missing]


def test_every_backend_declares_what_it_computes_in() -> None:
    assert LISTED
    for entry in LISTED:
        assert entry.precisions and set(entry.precisions) <= set(get_args(Precision)), entry


def batch_of(space: SearchSpace) -> int:
    """Ranges for int8 come from random data; a vector holds too few numbers for them."""
    return 2 if space.reads == "images" else 64


def one_of_each_kind(space: SearchSpace) -> list[bytes]:
    """A chain of every kind of operator in the space, and its largest network."""
    batch = batch_of(space)
    kinds = {op.kind: op for op in space.operators()}
    rng = np.random.default_rng(0)
    arch = max((space.random(rng) for _ in range(20)), key=lambda arch: len(space.graph(arch)))
    return [*(chains(op, batch)[1] for op in kinds.values()), network_onnx(space, arch, batch)]


def every_pair() -> Iterator[ParameterSet]:
    """Backends in every precision with spaces; slow, but for one space that moves on from pair to pair."""
    spaces = plugins.names("spaces")
    for number, (name, precision) in enumerate((entry.name, precision) for entry in LISTED for precision in entry.precisions):
        for space in spaces:
            marks: list[pytest.MarkDecorator] = [] if space == spaces[number % len(spaces)] else [pytest.mark.slow]
            yield pytest.param((name, precision, space), id=f"{name}-{precision}-{space}", marks=marks)


@pytest.fixture(params=every_pair())
def pair(request: pytest.FixtureRequest) -> tuple[Backend, str, SearchSpace]:
    name, precision, space_name = request.param
    space = load_space(space_name, plugins.load("spaces", space_name).small)
    try:
        return load_backend(Device(name="under test", backend=name, precision=precision, batch=batch_of(space))), precision, space
    except (ConfigError, DeviceError) as error:  # of a device's own options, or what this machine cannot do
        pytest.skip(str(error))


def test_computes_what_the_model_says(pair: tuple[Backend, str, SearchSpace]) -> None:
    runtime, precision, space = pair
    reference = load_backend(Device(backend="onnxruntime", batch=batch_of(space)))
    for model in one_of_each_kind(space):
        executable = runtime.compile(model)
        if not isinstance(executable, ComputingExecutable):
            pytest.skip(f"{type(executable).__name__} keeps its outputs to itself")
        expected = reference.compile(model)
        assert isinstance(expected, ComputingExecutable)
        feed = random_feed(parse(model), batch_of(space), seed=9)
        for found, wanted in zip(executable.outputs(feed), expected.outputs(feed), strict=True):
            assert found.shape == wanted.shape and found.dtype == np.float32
            assert np.linalg.norm(found - wanted) <= TOLERANCES[precision] * np.linalg.norm(wanted)
            again = executable.outputs(feed)[0]
            np.testing.assert_array_equal(found, again)
