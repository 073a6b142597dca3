"""The ONNX exporter: quiet, reproducible, BatchNorm folded wherever there is a convolution to take it, nothing half-written."""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from hwnas import layers
from hwnas.config import Named
from hwnas.device import Device
from hwnas.errors import ConfigError, ExportError
from hwnas.export import load_exporter
from hwnas.exporters.onnx import ONNX, fold_batch_norm
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, load_space

DEVICE = Device(name="test", backend="onnxruntime")


class OnePicture(nn.Module):
    """Takes the batch size as a plain number."""

    def forward(self, images: Tensor) -> Tensor:
        """As many maps of ones as there are images."""
        return images + torch.ones(len(images), 1, 1, 1)


class Sorted(nn.Module):
    """Does what depends on values: torch cannot trace it."""

    def forward(self, images: Tensor) -> Tensor:
        """Images or nothing."""
        return images if float(images.sum()) > 0 else -images


@layers.operator("sequences")
def sequences(op: OpSpec) -> nn.Module:
    """Convolutions and BatchNorm in nested and named sequences: three can be folded, the one behind a ReLU cannot."""
    inner = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 6, 3, padding=1), norm=nn.BatchNorm2d(6), relu=nn.ReLU()))
    grouped = nn.Conv2d(6, 3, 1, groups=3, bias=False)
    return nn.Sequential(inner, nn.BatchNorm2d(6), grouped, nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3))


@layers.operator("batch_as_number")
def batch_as_number(op: OpSpec) -> nn.Module:
    """For tests."""
    return OnePicture()


@layers.operator("depends_on_values")
def depends_on_values(op: OpSpec) -> nn.Module:
    """For tests."""
    return Sorted()


def network_of(kind: str) -> Network:
    """An operator and a classifier."""
    sites = (Site(OpSpec(kind, 3, 3, 8, 8), ("input",), "a"), Site(OpSpec("classifier", 3, 2, 8, 8, stride=8), ("a",), "output"))
    return Network(SearchSpace((3, 8, 8), 2, (), sites, name="tiny"), (), torch.Generator().manual_seed(0))


def counted(path: Path) -> Counter[str]:
    """How many nodes of each kind a file holds."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_it_is_quiet_reproducible_and_leaves_all_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    network = network_of("conv_bn").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    disabled = logging.root.manager.disable
    for name in ("a.onnx", "b.onnx"):
        ONNX(DEVICE).write(network, tmp_path / name)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list and not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert logging.root.manager.disable == disabled
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert os.getcwd().encode() not in content and b"site-packages" not in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    model = onnx.load(tmp_path / "a.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (20, 10)
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, name, shape in ((images, "images", ["batch", 3, 8, 8]), (logits, "logits", ["batch", 2])):
        assert value.name == name
        assert [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] == shape


def test_batch_norm_goes_into_the_convolution_before_it_across_sites_too(tmp_path: Path) -> None:
    space = load_space("nasbench201", {"input_size": 8, "width": 2, "cells": 1})
    path = tmp_path / "model.onnx"
    ONNX(DEVICE, opset=18).write(Network(space, space.parse("0,0,0,3,0,0"), torch.Generator().manual_seed(0)), path)
    assert counted(path)["BatchNormalization"] == 0  # the head's finds the last cell's only convolution before it
    assert onnx.load(path).opset_import[0].version == 18


def test_folding_changes_nothing_that_is_computed() -> None:
    generator = torch.Generator().manual_seed(0)
    network = network_of("sequences")
    images = torch.randn(8, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for _ in range(3):
            network.train()(images)
        folded = fold_batch_norm(network)
        assert not folded.training
        torch.testing.assert_close(folded(images), network.eval()(images), rtol=1e-5, atol=1e-6)
    kinds = Counter(type(layer).__name__ for layer in folded.modules())
    assert (kinds["Conv2d"], kinds["BatchNorm2d"]) == (2, 1)
    assert folded.space is network.space


def test_what_holds_for_one_batch_size_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"of tiny can be exported for one batch size only.*`len\(x\)`"):
        ONNX(DEVICE).write(network_of("batch_as_number"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_export_is_an_error_of_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="torch cannot export .*tiny: ") as caught:
        ONNX(DEVICE).write(network_of("depends_on_values"), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="exporter 'onnx': opset: .*greater than or equal to 18, but got 11"):
        load_exporter(Named.model_validate({"name": "onnx", "opset": 11}), DEVICE)


def test_annotating_what_is_no_model_or_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"cannot read .*model.onnx: No such file"):
        ONNX(DEVICE).annotate(path, {})
    path.write_bytes(b"\x08\x0a\x12\x07pyt")
    with pytest.raises(ExportError, match="not an ONNX model, or a truncated one"):
        ONNX(DEVICE).annotate(path, {})
    path.write_bytes(b"")
    with pytest.raises(ExportError, match="holds no ONNX graph"):
        ONNX(DEVICE).annotate(path, {})
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), path)
    content = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ExportError, match=r"cannot write .*model.onnx: No space left"):
        ONNX(DEVICE).annotate(path, {"a": "b"})
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
