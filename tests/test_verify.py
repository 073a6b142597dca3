"""Whatever is done to an exported member is found, by name; what cannot be checked is said and is no pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from hwnas import verify as module
from hwnas.checkpoint import load_state, save_state
from hwnas.config import Named
from hwnas.data import load_data
from hwnas.device import Device
from hwnas.errors import DeviceError, ExportError
from hwnas.export import (
    INT8,
    MANIFEST,
    MODEL,
    WEIGHTS,
    Measured,
    describe,
    finish_member,
    load_exporter,
    quantiser,
    read_manifest,
    sha256,
    write_member,
    write_model,
)
from hwnas.measure import Measurement, Protocol, Timing
from hwnas.network import Network
from hwnas.profile import fingerprint
from hwnas.space import load_space
from hwnas.train import TrainSettings, evaluate_accuracy, train
from hwnas.verify import MemberReport, graph_faults, runtime_accuracy, verify

DEVICE = Device(name="test", backend="onnxruntime")
SPACE = {"input_size": 8, "channels": 1, "stem_width": 8, "head_width": 16, "stages": [{"widths": [8], "depth": 2}]}
QUICK = Protocol(rounds=2, most_rounds=2)


@pytest.fixture(scope="session")
def here() -> dict[str, str]:
    """This machine's fingerprint."""
    return fingerprint(DEVICE)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, here: dict[str, str]) -> Path:
    """A member that was really trained a little, on the digits as they are."""
    folder = tmp_path_factory.mktemp("export") / "m00"
    data, space = load_data("digits", {"size": 8}), load_space("mobilenet_v2", SPACE)
    network = Network(space, space.parse("s1.width=8 s1.b1=k3e3 s1.b2=k5e3"), torch.Generator().manual_seed(0))
    train(network, data, TrainSettings(epochs=3, accelerator="cpu"), 0)
    facts = describe(
        network, data, DEVICE, here, hwnas_version="0.1", experiment="test",
        data_section=Named.model_validate({"name": "digits", "size": 8}), exporter=Named(name="onnx"),
        values={"test_accuracy": evaluate_accuracy(network, data, data.test).accuracy},
        predicted={"latency_ms": {"mean": 1.0, "upper": 2.0}}, budgets={"latency_ms": 100.0},
    )  # fmt: skip
    measured = {"latency_ms": Measured(p50=1.0, p90=2.0, low=0.9, n=10)}
    write_member(folder, network, load_exporter(Named(name="onnx"), DEVICE), facts.model_copy(update={"measured": measured}))
    return folder


@pytest.fixture
def member(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(exported, tmp_path / "m00")
    return tmp_path / "m00"


Answers = Callable[..., None]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, here: dict[str, str]) -> Answers:
    """No real measuring: this machine is the one in the manifest, and every session gives the next of these p50s (or a failure)."""

    def answers(*p50s: float | str, elsewhere: Mapping[str, str] | None = None) -> None:
        sessions = chain(p50s, repeat(1.0))

        def measure_members(models: Mapping[str, Path], device: Device, **_: object) -> Measurement:
            p50 = next(sessions)
            if isinstance(p50, str):
                return Measurement({}, dict.fromkeys(models, p50), here, 0.0, 1.0)
            return Measurement(dict.fromkeys(models, Timing(p50, 0.0, p50, 2 * p50, 7)), {}, here, 0.0, 1.0)

        monkeypatch.setattr(module, "fingerprint", lambda device: {**here, **(elsewhere or {})})
        monkeypatch.setattr(module, "measure_members", measure_members)

    answers()
    return answers


def failed(report: MemberReport) -> dict[str, str]:
    """What the failed checks found."""
    return {check.name: check.found for check in report.checks if check.status == "failed"}


def reseal(member: Path, **changes: Any) -> None:
    """Changes the manifest and makes its hashes those of the files as they are now."""
    content = json.loads((member / MANIFEST).read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    content["files"] = {name: sha256(member / name) for name in (MODEL, WEIGHTS)}
    (member / MANIFEST).write_text(json.dumps(content))


def rewrite(member: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Changes the model and makes the manifest agree."""
    model = onnx.load(member / MODEL)
    change(model)
    onnx.save(model, member / MODEL)
    reseal(member)


def test_an_untouched_member_passes_everything_with_real_measuring(member: Path, tmp_path: Path) -> None:
    shutil.copytree(member, tmp_path / "m01")
    reports = verify(tmp_path, protocol=QUICK)
    assert [report.name for report in reports] == ["m00", "m01"]
    for report in reports:
        assert {check.name: check.status for check in report.checks} == dict.fromkeys(
            ("files", "onnx", "metadata", "graph", "preprocessing", "outputs", "accuracy", "latency"), "passed"
        )
        assert report.passed
        assert json.loads(json.dumps(asdict(report)))["checks"][0]["status"] == "passed"
    found = {check.name: (check.found, check.limit) for check in reports[0].checks}
    assert "(1.000 ms when exported)" in found["latency"][0]
    assert "8 one by one" in found["outputs"][0]
    assert found["latency"][1] == "p50 at most 100 ms in one of 3 sessions"


@pytest.fixture(scope="session")
def quantised(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same member for an int8 device."""
    folder = tmp_path_factory.mktemp("int8") / "m00"
    device, data, manifest = DEVICE.model_copy(update={"precision": "int8"}), load_data("digits", {"size": 8}), read_manifest(exported)
    network = Network(load_space("mobilenet_v2", SPACE), manifest.arch)
    network.load_state_dict(load_state(exported / WEIGHTS)[0])
    exporter = load_exporter(Named(name="onnx"), device)
    file = write_model(folder, network, exporter, quantiser(device, data))
    values = {"fp32_test_accuracy": manifest.values["test_accuracy"], "test_accuracy": runtime_accuracy(file, data)}
    facts = describe(
        network, data, device, fingerprint(device), hwnas_version="0.1", experiment="test",
        data_section=Named.model_validate({"name": "digits", "size": 8}), exporter=Named(name="onnx"), values=values, predicted={},
        budgets={"latency_ms": 100.0},
    )  # fmt: skip
    finish_member(folder, exporter, facts)
    return folder


def test_an_int8_device_gets_a_quantised_file_that_is_proved_too(quantised: Path, tmp_path: Path) -> None:
    (report,) = verify(quantised, protocol=QUICK)
    assert report.passed and {check.name: check.status for check in report.checks}["int8"] == "passed"
    manifest = read_manifest(quantised)
    assert manifest.deployed == INT8 and set(manifest.files) == {MODEL, INT8, WEIGHTS}
    kinds = [node.op_type for node in onnx.load(quantised / INT8).graph.node]
    assert "QuantizeLinear" in kinds and "QuantizeLinear" not in [node.op_type for node in onnx.load(quantised / MODEL).graph.node]
    assert abs(manifest.values["test_accuracy"] - manifest.values["fp32_test_accuracy"]) < 0.05
    shutil.copytree(quantised, tmp_path / "spoilt")
    content = json.loads((tmp_path / "spoilt" / MANIFEST).read_text())
    content["values"]["test_accuracy"] -= 0.02
    (tmp_path / "spoilt" / MANIFEST).write_text(json.dumps(content))
    (spoilt,) = verify(tmp_path / "spoilt", protocol=QUICK)
    assert {"int8", "metadata"} == set(failed(spoilt))


def test_a_model_is_quantised_only_for_runtimes_that_take_such() -> None:
    data = load_data("digits", {"size": 8})
    assert quantiser(DEVICE, data) is None
    for backend in ("onnxruntime", "openvino", "tensorrt"):
        assert quantiser(Device(name="x", backend=backend, precision="int8"), data) is not None
    assert quantiser(Device(name="x", backend="command", precision="int8", options={"command": "true"}), data) is None


def test_a_single_folder_is_a_member(member: Path, measured: Answers) -> None:
    (report,) = verify(member)
    assert (report.name, report.folder, report.passed) == ("m00", str(member), True)


def test_a_flipped_bit(member: Path, measured: Answers) -> None:
    content = bytearray((member / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (member / MODEL).write_bytes(content)
    (report,) = verify(member)
    assert failed(report)["files"] == "model.onnx was changed"
    assert not report.passed


@pytest.mark.parametrize("name", [MODEL, WEIGHTS])
def test_a_truncated_or_missing_file(name: str, member: Path, measured: Answers) -> None:
    (member / name).write_bytes((member / name).read_bytes()[:1000])
    found = failed(verify(member)[0])
    assert found["files"] == f"{name} was changed"
    assert "truncated" in found["outputs"]
    assert "accuracy" in found
    (member / name).unlink()
    found = failed(verify(member)[0])
    assert found["files"] == f"{name} is missing"
    assert ("latency" in found) == (name == MODEL)


def test_swapped_weights(member: Path, measured: Answers) -> None:
    tensors, about = load_state(member / WEIGHTS)
    name = next(name for name in tensors if name.endswith("2.weight") and tensors[name].ndim == 2)
    save_state(member / WEIGHTS, {**tensors, name: tensors[name].roll(1, 0)}, about)
    reseal(member)
    found = failed(verify(member)[0])
    assert set(found) == {"outputs", "accuracy"}
    assert "test images in batches of 64" in found["outputs"]
    save_state(member / WEIGHTS, {name: tensors[name]}, about)
    reseal(member)
    assert "holds another network's weights" in failed(verify(member)[0])["outputs"]


def test_a_weight_in_the_model_that_is_a_little_off(member: Path, measured: Answers) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bias") and tensor.dims == [10])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(2e-4), tensor.name))

    rewrite(member, nudge)
    assert set(failed(verify(member)[0])) == {"outputs"}  # what is right and wrong stays so


def test_a_batch_axis_that_is_not_dynamic(member: Path, measured: Answers) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 64
        del model.graph.value_info[:]

    rewrite(member, fix)
    assert "cannot run model.onnx on a batch of" in failed(verify(member)[0])["outputs"]


def test_metadata_that_says_something_else(member: Path, measured: Answers) -> None:
    rewrite(member, lambda model: helper.set_model_props(model, {"hwnas.experiment": "mine", "more": "x"}))
    found = failed(verify(member)[0])
    assert set(found) == {"metadata"}
    assert "hwnas.experiment" in found["metadata"] and "more" in found["metadata"]


def test_an_accuracy_that_is_not_true(member: Path, measured: Answers) -> None:
    reseal(member, values={"test_accuracy": 0.999})
    assert set(failed(verify(member)[0])) == {"metadata", "accuracy"}


def test_images_that_two_classes_share_may_differ(member: Path, measured: Answers) -> None:
    """Where the best two logits are closer than the tolerance, the accuracies may differ by these images and no more."""
    tensors, about = load_state(member / WEIGHTS)
    last = [name for name in tensors if tensors[name].shape[:1] == (10,)]
    save_state(member / WEIGHTS, {**tensors, **{name: 1e-6 * tensors[name] for name in last}}, about)

    def shrink(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in last:
                tensor.CopyFrom(numpy_helper.from_array(np.float32(1e-6) * numpy_helper.to_array(tensor), tensor.name))

    rewrite(member, shrink)
    reseal(member, values={"test_accuracy": 0.5})
    check = next(check for check in verify(member)[0].checks if check.name == "accuracy")
    assert check.status == "passed"
    assert "are undecided within the tolerance" in check.found


def test_preprocessing_of_other_data(member: Path, measured: Answers) -> None:
    stated = read_manifest(member).preprocessing
    reseal(member, preprocessing={"mean": [0.5]})
    assert failed(verify(member)[0])["preprocessing"] == "differs in mean"
    reseal(member, preprocessing={"mean": [stated["mean"][0] * (1 + 1e-13)]})
    assert "preprocessing" not in failed(verify(member)[0])


def test_data_that_is_not_there_is_said_and_outputs_are_compared_on_noise(member: Path, measured: Answers) -> None:
    reseal(member, data={"name": "npz", "options": {"train": "/nowhere.npz"}})
    checks = {check.name: check for check in verify(member)[0].checks}
    assert [name for name, check in checks.items() if check.status == "skipped"] == ["preprocessing", "accuracy"]
    assert "the data cannot be loaded: there is no file /nowhere.npz" in checks["accuracy"].found
    assert checks["outputs"].status == "passed"
    assert "noise" in checks["outputs"].found


def test_a_space_that_has_changed_since(member: Path, measured: Answers) -> None:
    reseal(member, space={"id": "mobilenet_v2-00000000"})
    assert "is mobilenet_v2-" in failed(verify(member)[0])["outputs"]
    reseal(member, space={"name": "mobilnet"})
    assert "there is no space called 'mobilnet'" in failed(verify(member)[0])["outputs"]


def test_a_missed_budget_counts_after_three_sessions(member: Path, measured: Answers) -> None:
    reseal(member, budgets={"latency_ms": 0.5})
    measured(0.7, 0.8, 0.6, 0.1)
    assert failed(verify(member)[0])["latency"].startswith("p50 0.600 ms (1.000 ms when exported)")
    measured(0.7, 0.45)
    checks = {check.name: check for check in verify(member)[0].checks}
    assert checks["latency"].status == "passed"
    assert checks["latency"].found.startswith("p50 0.450 ms")


def test_a_model_that_the_device_cannot_run(member: Path, measured: Answers) -> None:
    measured("crashed the runtime (SIGSEGV)")
    assert failed(verify(member)[0])["latency"] == "test: crashed the runtime (SIGSEGV)"


def test_no_budget_is_said(member: Path, measured: Answers) -> None:
    content = json.loads((member / MANIFEST).read_text())
    (member / MANIFEST).write_text(json.dumps({**content, "budgets": {}}))
    check = verify(member)[0].checks[-1]
    assert (check.status, check.limit) == ("passed", "no budget")


def test_another_machine_is_no_pass(member: Path, measured: Answers) -> None:
    measured(elsewhere={"cpu": "another one"})
    (report,) = verify(member)
    check = report.checks[-1]
    assert check.status == "skipped"
    assert check.found.startswith("it was measured elsewhere (cpu: ") and "here 'another one'" in check.found
    assert report.passed


def test_a_device_that_cannot_be_used_here(member: Path, measured: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: Device) -> dict[str, str]:
        raise DeviceError("no such provider")

    monkeypatch.setattr(module, "fingerprint", fails)
    check = verify(member)[0].checks[-1]
    assert (check.status, check.found) == ("skipped", "test cannot be used here: no such provider")
    reseal(member, device={"settings": {"backend": "onnxruntime", "batch": 0}})
    assert "the manifest's device is wrong: batch" in failed(verify(member)[0])["latency"]


def test_unfinished_and_damaged_members_among_others(member: Path, measured: Answers) -> None:
    shutil.copytree(member, member.parent / "m01")
    shutil.copytree(member, member.parent / "m02")
    (member.parent / "notes").mkdir()
    (member.parent / "m01" / MANIFEST).unlink()
    (member.parent / "m02" / MANIFEST).write_text("{")
    reports = verify(member.parent)
    assert [(report.name, report.passed) for report in reports] == [("m00", True), ("m01", False), ("m02", False)]
    assert "is not a finished member" in failed(reports[1])["manifest"]
    assert "is not JSON" in failed(reports[2])["manifest"]


def test_no_member_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ExportError, match="holds no exported member"):
            verify(folder)


def test_faults_of_a_graph() -> None:
    """x -> Conv -> BatchNormalization -> y, beside what is of no use."""
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2, 4, 4]) for name in "xy"]
    ones = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("scale", "bias", "mean", "var", "unread")]
    kernel = numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "kernel")
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], name="conv"),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"], name="norm"),
        helper.make_node("Relu", ["x"], ["c"], name="dead"),
        helper.make_node("Sigmoid", ["scale"], ["d"], name="unfed"),
        helper.make_node("Mul", ["b", "d"], ["y"], name="product"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [kernel, *ones])
    assert graph_faults(helper.make_model(graph)) == [
        "nothing reads the Relu dead",
        "nothing reads the weight unread",
        "the BatchNormalization norm is not folded into the Conv conv",
        "the input does not feed the Sigmoid unfed",
    ]
    read_twice = helper.make_node("Add", ["a", "b"], ["y"], name="sum")
    graph = helper.make_graph([*nodes[:2], read_twice], "g", values[:1], values[1:], [kernel, *ones[:4]])
    assert graph_faults(helper.make_model(graph)) == []  # the convolution is also read as it is
