"""Members on disk: whole or redone, manifests read strictly, all measured in one session."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from hwnas import export
from hwnas.config import Named
from hwnas.data import Dataset, load_data
from hwnas.device import Device
from hwnas.errors import ExportError
from hwnas.export import (
    MANIFEST,
    MODEL,
    WEIGHTS,
    Facts,
    Manifest,
    Measured,
    complete,
    describe,
    finish_member,
    measure_members,
    read_manifest,
    replace_file,
    sha256,
    write_member,
    write_model,
)
from hwnas.measure import Protocol, Timing
from hwnas.network import Network
from hwnas.space import SearchSpace, load_space

DEVICE = Device(name="test", backend="onnxruntime")
SPACE = {"input_size": 8, "channels": 1, "stem_width": 4, "head_width": 8, "stages": [{"widths": [4], "depth": 1}]}


class Stub:
    """An exporter that writes the smallest model there is, and counts."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, network: Network, path: Path) -> None:
        """One node."""
        value = onnx.helper.make_tensor_value_info
        images = value("images", onnx.TensorProto.FLOAT, ["batch", *network.space.input_shape])
        logits = value("logits", onnx.TensorProto.FLOAT, ["batch", network.space.classes])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["logits"])], "stub", [images], [logits])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        replace_file(path, model.SerializeToString())
        self.written += 1

    def annotate(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Sets the metadata."""
        model = onnx.load(path)
        onnx.helper.set_model_props(model, dict(metadata))
        replace_file(path, model.SerializeToString())


@pytest.fixture(scope="module")
def data() -> Dataset:
    """The digits as they are."""
    return load_data("digits", {"size": 8})


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """One block."""
    return load_space("mobilenet_v2", SPACE)


@pytest.fixture
def network(space: SearchSpace) -> Network:
    """Untrained."""
    return Network(space, (0, 3), torch.Generator().manual_seed(0))


@pytest.fixture
def facts(network: Network, data: Dataset) -> Facts:
    """As a run would state them."""
    return describe(
        network, data, DEVICE, {"cpu": "one", "cores": "2"},
        hwnas_version="0.1", experiment="quick", data_section=Named.model_validate({"name": "digits", "size": 8}),
        exporter=Named(name="onnx"), values={"error": 0.02, "test_accuracy": 0.985}, predicted={"latency_ms": {"mean": 0.2, "upper": 0.22}},
        budgets={"latency_ms": 0.25},
    )  # fmt: skip


def test_a_member_says_all_about_itself(network: Network, facts: Facts, data: Dataset, tmp_path: Path) -> None:
    measured = {"latency_ms": Measured.of(Timing(low_ms=0.19, error_ms=0.001, p50_ms=0.2, p90_ms=0.24, n=120), reference_ms=0.1)}
    written = write_member(tmp_path / "m00", network, Stub(), facts.model_copy(update={"measured": measured}))
    manifest = read_manifest(tmp_path / "m00")
    assert manifest == written == complete(tmp_path / "m00")
    assert (manifest.space.name, manifest.space.id, manifest.arch) == ("mobilenet_v2", network.space.id, [0, 3])
    assert load_space(manifest.space.name, manifest.space.options).id == network.space.id
    assert manifest.description == "s1.width=4 s1.b1=k5e6"
    assert Device.model_validate(manifest.device.settings) == DEVICE
    assert load_data(manifest.data.name, manifest.data.options).preprocessing() == manifest.preprocessing == data.preprocessing()
    assert manifest.classes == list("0123456789")
    assert (manifest.opset, manifest.inputs[0].shape, manifest.outputs[0].shape) == (20, ["batch", 1, 8, 8], ["batch", 10])
    assert (manifest.inputs[0].name, manifest.outputs[0].name, manifest.inputs[0].dtype) == ("images", "logits", "float32")
    assert manifest.measured["latency_ms"].model_dump() == {"p50": 0.2, "p90": 0.24, "low": 0.19, "n": 120, "reference": 0.1}
    assert manifest.files == {name: sha256(tmp_path / "m00" / name) for name in (MODEL, WEIGHTS)}
    inside = {entry.key: entry.value for entry in onnx.load(tmp_path / "m00" / MODEL).metadata_props}
    assert inside == manifest.metadata()
    assert inside["hwnas.experiment"] == "quick"
    assert json.loads(inside["hwnas.measured"])["latency_ms"]["p50"] == 0.2
    assert sorted(path.name for path in (tmp_path / "m00").iterdir()) == sorted([MANIFEST, MODEL, WEIGHTS])


@pytest.mark.parametrize("dies_in", ["save_state", "write", "annotate", "read_model", "replace_file"])
def test_a_kill_leaves_a_whole_member_or_one_that_is_redone(
    dies_in: str, network: Network, facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Stub()
    write_member(tmp_path, network, exporter, facts)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporter if hasattr(exporter, dies_in) else export, dies_in, dies)
        with pytest.raises(KeyboardInterrupt):
            write_member(tmp_path, network, exporter, facts.model_copy(update={"experiment": "other"}))
    assert complete(tmp_path) is None
    write_member(tmp_path, network, exporter, facts)
    assert complete(tmp_path) is not None


def test_measured_between_writing_and_finishing(network: Network, facts: Facts, tmp_path: Path) -> None:
    exporter = Stub()
    write_model(tmp_path, network, exporter)
    assert complete(tmp_path) is None
    manifest = finish_member(tmp_path, exporter, facts)
    again = finish_member(tmp_path, exporter, facts)
    assert manifest == again == complete(tmp_path)
    assert exporter.written == 1


def test_a_changed_file_is_not_complete(network: Network, facts: Facts, tmp_path: Path) -> None:
    write_member(tmp_path, network, Stub(), facts)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1])
    assert complete(tmp_path) is None
    (tmp_path / WEIGHTS).unlink()
    assert complete(tmp_path) is None


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    """Without that key."""
    return lambda content: {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, "not a manifest of hwnas"),
        (lambda content: {"model_type": "bert"}, "not a manifest of hwnas: it has no schema_version"),
        (lambda content: {**content, "schema_version": 2}, "has schema 2, but this hwnas reads 1"),
        (lambda content: {**content, "extra": 1}, "is damaged: extra: extra inputs are not permitted"),
        (drop("arch"), "is damaged: arch: field required"),
        (lambda content: {**content, "values": {"error": "nan"}}, "is damaged: values.error: "),
        (lambda content: {**content, "files": {}}, "is damaged: it names no model.onnx and no weights.safetensors"),
        (lambda content: {**content, "files": {"../../etc/passwd": "0" * 64}}, "is damaged: files"),
    ],
)
def test_a_wrong_manifest_is_an_error_of_one_sentence(
    change: Callable[[dict[str, Any]], Any], message: str, network: Network, facts: Facts, tmp_path: Path
) -> None:
    write_member(tmp_path, network, Stub(), facts)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(change(content)))
    with pytest.raises(ExportError, match=message) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_manifest_or_half_of_one(network: Network, facts: Facts, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a finished member: it has no manifest.json"):
        read_manifest(tmp_path)
    write_member(tmp_path, network, Stub(), facts)
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ExportError, match="is damaged: it is not JSON"):
        read_manifest(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="is damaged: it is not JSON"):
        read_manifest(tmp_path)


def test_a_folder_that_cannot_be_written_to(network: Network, facts: Facts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*file"):
        write_member(tmp_path / "file" / "m00", network, Stub(), facts)
    with pytest.raises(ExportError, match="cannot write .*: File exists; free or choose another folder"):
        replace_file(tmp_path / "file" / "model.onnx", b"")


def test_facts_round_trip_and_metadata_is_of_strings(facts: Facts) -> None:
    assert Facts.model_validate_json(facts.model_dump_json()) == facts
    assert all(isinstance(value, str) for value in facts.metadata().values())
    assert set(facts.metadata()) == {f"hwnas.{name}" for name in Facts.model_fields}
    assert set(Manifest.model_fields) - set(Facts.model_fields) == {"schema_version", "opset", "inputs", "outputs", "files", "deployed"}


def test_members_are_measured_in_one_session_with_the_devices_batch(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["images"], ["logits"])
    shapes: dict[str, list[str | int]] = {"small": ["batch", 8], "large": ["batch", 4096, 64], "wrong": ["batch", 8]}
    paths = {}
    for name, shape in shapes.items():
        images, logits = (value(tensor, onnx.TensorProto.FLOAT, shape) for tensor in ("images", "logits"))
        graph = onnx.helper.make_graph([node], name, [images], [logits])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        paths[name] = tmp_path / f"{name}.onnx"
        paths[name].write_bytes(b"nothing" if name == "wrong" else model.SerializeToString())
    found = measure_members(paths, DEVICE.model_copy(update={"batch": 4}), protocol=Protocol(rounds=2, most_rounds=2))
    assert set(found.timings) == {"small", "large"}
    assert found.timings["small"].p50_ms < found.timings["large"].p50_ms
    assert "no ONNX model" in found.failures["wrong"]
    assert found.fingerprint["batch"] == "4"
    with pytest.raises(ExportError, match=r"cannot read .*absent.onnx: No such file"):
        measure_members({"absent": tmp_path / "absent.onnx"}, DEVICE)
