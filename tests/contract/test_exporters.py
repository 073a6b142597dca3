"""Laws 5 and 7 of the design, over every file of `hwnas/exporters` and `hwnas/spaces`: new ones are tested before anyone writes a test."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import hwnas.exporters
from hwnas import front, plugins
from hwnas.config import Named
from hwnas.device import Device
from hwnas.errors import BudgetError
from hwnas.export import OUTPUT, Exporter, Manifest, complete, load_exporter, measure_members
from hwnas.front import export_run, read_export
from hwnas.layers import finished
from hwnas.network import Network
from hwnas.run import Run
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.verify import graph_faults

DEVICE = Device(name="test", backend="onnxruntime")
DROPPED = '''"""A file that somebody drops into the folder."""

from hwnas.exporters.onnx import ONNX


class DroppedFormat(ONNX):
    pass
'''


def lived_in(space: SearchSpace, arch: Architecture) -> Network:
    """A network with random weights and, as after training, BatchNorm that changes things: zeros do not come out as zeros."""
    generator = torch.Generator().manual_seed(0)
    network = Network(space, arch, generator)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for _ in range(5):
            network.train()(torch.randn(16, *space.input_shape, generator=generator))
    return network.eval()


def with_a_dead_branch(space: SearchSpace) -> Architecture:
    """An architecture that has active sites which are not alive, if 400 random ones hold one."""
    rng = np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(400)]
    return max(drawn, key=lambda arch: len(space.active(arch)) - len(space.alive(arch)))


@pytest.fixture(scope="module", params=plugins.names("exporters"))
def exporter(request: pytest.FixtureRequest) -> Exporter:
    """Every exporter there is with its default options, one after the other."""
    missing = {line.name: line.missing for line in plugins.listing("exporters")}[request.param]
    if missing:
        pytest.skip(f"{request.param} needs {', '.join(missing)}")
    return load_exporter(Named(name=request.param), DEVICE)


@pytest.fixture(scope="module", params=plugins.names("spaces"))
def exported(request: pytest.FixtureRequest, exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    """A network of every space there is, in its small version, and its file."""
    space = load_space(request.param, plugins.load("spaces", request.param).small)
    network = lived_in(space, with_a_dead_branch(space))
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    exporter.write(network, path)
    return network, path


def test_it_computes_what_torch_computes_at_every_batch_size(exported: tuple[Network, Path]) -> None:
    network, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3, 7):
        images = torch.randn(batch, *network.space.input_shape, generator=torch.Generator().manual_seed(batch))
        (computed,) = session.run([OUTPUT], {network.space.reads: images.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(computed, network(images).numpy(), rtol=0, atol=1e-4)


def test_nothing_dead_is_in_it(exported: tuple[Network, Path]) -> None:
    network, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert graph_faults(model) == []
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = Counter(shapes[node.input[1]] for node in model.graph.node if node.op_type == "Conv")
    assert found == Counter(tuple(layer.weight.shape) for layer in finished(network).modules() if isinstance(layer, nn.Conv2d))


def test_annotations_replace_each_other_and_change_nothing_else(exported: tuple[Network, Path], exporter: Exporter) -> None:
    path = exported[1]
    graph = onnx.load(path).graph
    for metadata in ({"a": "1", "b": "zwei"}, {"c": ""}):
        exporter.annotate(path, metadata)
        model = onnx.load(path)
        assert {entry.key: entry.value for entry in model.metadata_props} == metadata
        assert model.graph == graph
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# Law 7 (that searchers keep budgets: `test_searchers.py`)


@pytest.mark.parametrize("name", plugins.names("exporters"))
def test_no_exported_model_exceeds_its_budget(
    name: str, finished_run: Path, fixed_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really measured, but for a member that is shown a thousand times as slow as it is: no noise of this machine makes up for that."""

    def slowed(*args: Any, **kwargs: Any) -> Any:
        found = measure_members(*args, **kwargs)
        slow = found.timings["m01"]
        found.timings["m01"] = replace(slow, low_ms=1000 * slow.low_ms, p50_ms=1000 * slow.p50_ms, p90_ms=1000 * slow.p90_ms)
        return found

    monkeypatch.setattr(front, "measure_members", slowed)
    shutil.copytree(finished_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.experiment = run.experiment.model_copy(update={"exporter": Named(name=name)})
    whole = read_export(export_run(run, out=tmp_path / "whole", tables=fixed_tables))
    fast, slow = (whole.members[name]["latency_ms"].p50 for name in ("m00", "m01"))
    limit = (fast * slow) ** 0.5
    folder = export_run(run, out=tmp_path / "some", budgets={"latency_ms": limit}, tables=fixed_tables)
    record = read_export(folder)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["m00"]
    assert complete_member(folder / "m00").measured["latency_ms"].p50 <= limit
    assert "over budget" in record.left_out["m01"]
    with pytest.raises(BudgetError, match="the fastest, m00, takes"):
        export_run(run, out=tmp_path / "none", budgets={"latency_ms": fast / 1000}, tables=fixed_tables)


def complete_member(folder: Path) -> Manifest:
    """The manifest of a whole member."""
    found = complete(folder)
    assert found is not None
    return found


def test_a_dropped_file_is_an_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load("exporters", "onnx")
    (tmp_path / "exporters").mkdir()
    (tmp_path / "exporters" / "dropped_format.py").write_text(DROPPED)
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    monkeypatch.setattr(hwnas.exporters, "__path__", [str(tmp_path / "exporters")])
    assert plugins.names("exporters") == ["dropped_format"]
    assert type(load_exporter(Named(name="dropped_format"), DEVICE)).__name__ == "DroppedFormat"
