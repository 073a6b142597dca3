"""A trained network -> a folder to deploy: `model.onnx`, `weights.safetensors` and `manifest.json`, which says all about the two.

For an int8 device there is `model.int8.onnx` besides, quantised with training images; the manifest's `deployed` names the file to use.

The manifest is written last, so a folder holds a whole member or none; a member that was interrupted is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import onnx
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from hwnas import plugins
from hwnas.checkpoint import save_state
from hwnas.config import Named
from hwnas.data import Dataset
from hwnas.device import Device
from hwnas.errors import ExportError
from hwnas.measure import Measurement, Progress, Timing, measure, silent
from hwnas.measure import Protocol as MeasuringProtocol
from hwnas.network import Network
from hwnas.profile import reference_onnx
from hwnas.quantize import quantize

SCHEMA = 1
"""Of the manifest; a change that older readers would misread gets the next number."""
MODEL, INT8, WEIGHTS, MANIFEST = "model.onnx", "model.int8.onnx", "weights.safetensors", "manifest.json"
OUTPUT, BATCH_AXIS = "logits", "batch"
"""The input is called what the space reads: `images` or `tokens`."""
CALIBRATION_IMAGES = 256
"""Training images from which the ranges of an int8 model are taken."""
Quantiser = Callable[[bytes], bytes]


@runtime_checkable
class Exporter(Protocol):
    """A file format. Its file in `hwnas/exporters/` holds one class that takes the device positionally, options keyword-only."""

    def write(self, network: Network, path: Path) -> None:
        """The network as a file, whole or not at all; it is not changed. Raises ExportError where it cannot be written."""

    def annotate(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Puts the metadata into the file, instead of what was there; it computes what it computed."""


def load_exporter(chosen: Named, device: Device) -> Exporter:
    """The exporter that a configuration names.

    Raises:
        PluginError: there is none of that name, or a package that it needs is not installed.
        ConfigError: an option that it does not have.
    """
    exporter: Exporter = plugins.build("exporters", chosen.name, chosen.options, device)
    return exporter


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Chosen(_Record):
    """A section of the configuration: a name and its options."""

    name: str
    options: dict[str, Any]


class ChosenSpace(Chosen):
    """The search space; `id` tells whether its definition is still the same."""

    id: str


class Target(_Record):
    """The device: its YAML file's content, and the fingerprint under which latency was measured."""

    name: str
    settings: dict[str, Any]
    fingerprint: dict[str, str]


class Predicted(_Record):
    """A cost model's expectation and its upper bound at the experiment's confidence."""

    mean: FiniteFloat
    upper: FiniteFloat


class Measured(_Record):
    """A measured latency, ms: `low` is comparable with predictions, p50 and p90 are what a user feels, `n` counts runs.

    `reference` is what the reference model took meanwhile: the state of the machine.
    """

    p50: FiniteFloat
    p90: FiniteFloat
    low: FiniteFloat
    n: int
    reference: FiniteFloat | None = None

    @classmethod
    def of(cls, timing: Timing, reference_ms: float | None = None) -> Measured:
        """What the protocol found."""
        return cls(p50=timing.p50_ms, p90=timing.p90_ms, low=timing.low_ms, n=timing.n, reference=reference_ms)


class Tensor(_Record):
    """An input or output; a dynamic axis is a name."""

    name: str
    shape: list[int | str]
    dtype: str


class Facts(_Record):
    """All that is known of a member before its files are written; its metrics' names carry their units."""

    hwnas_version: str
    experiment: str
    space: ChosenSpace
    arch: list[int]
    description: str
    device: Target
    exporter: Chosen
    data: Chosen
    preprocessing: dict[str, Any]
    classes: list[str]
    values: dict[str, FiniteFloat]
    """`error`, `accuracy` and `loss` on the validation part, `test_accuracy` on the test part: of the deployed file, and where that
    is quantised `fp32_test_accuracy` of `model.onnx`; of a text also the perplexities."""
    predicted: dict[str, Predicted]
    measured: dict[str, Measured] = {}
    budgets: dict[str, FiniteFloat] = {}

    def metadata(self) -> dict[str, str]:
        """The facts as strings, under keys that begin with `hwnas.`: what stands in the model file."""
        plain = self.model_dump(mode="json", include=set(Facts.model_fields))
        return {f"hwnas.{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True) for key, value in plain.items()}


class Manifest(Facts):
    """`manifest.json`: the facts, and what is true of the files beside it."""

    schema_version: Literal[1] = 1
    opset: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
    """Name -> sha256."""
    deployed: str = MODEL
    """The file to use on the device: what was measured."""


def describe(
    network: Network, data: Dataset, device: Device, fingerprint: dict[str, str], *,
    hwnas_version: str, experiment: str, data_section: Named, exporter: Named, values: Mapping[str, float],
    predicted: Mapping[str, Mapping[str, float]], budgets: Mapping[str, float],
) -> Facts:  # fmt: skip
    """The facts of a member that has not been measured yet; `facts.model_copy(update={"measured": ...})` adds that."""
    space = network.space
    return Facts(
        hwnas_version=hwnas_version,
        experiment=experiment,
        space=ChosenSpace(name=space.name, options=space.options, id=space.id),
        arch=list(network.arch),
        description=space.describe(network.arch),
        device=Target(name=device.name, settings=device.model_dump(mode="json"), fingerprint=fingerprint),
        exporter=Chosen(name=exporter.name, options=exporter.options),
        data=Chosen(name=data_section.name, options=data_section.options),
        preprocessing=data.preprocessing(),
        classes=list(data.class_names),
        values=dict(values),
        predicted={metric: Predicted.model_validate(value) for metric, value in predicted.items()},
        budgets=dict(budgets),
    )


def replace_file(path: Path, content: bytes) -> None:
    """Puts `content` at `path` in one step: killed at any moment, the file is the old one or the new one.

    Raises:
        ExportError: the folder cannot be written to.
    """
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}; free or choose another folder") from None
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def quantiser(device: Device, data: Dataset) -> Quantiser | None:
    """How a model becomes one for that int8 device, its ranges taken from training images; None where the device takes it as it is."""
    how = plugins.constant("backends", device.backend, "QUANTISES")
    if device.precision != "int8" or not how:
        return None
    images = data.normalise(data.train.images[:CALIBRATION_IMAGES]).numpy()

    def quantised(model: bytes) -> bytes:
        batches = [{data.gives: images[i : i + 16]} for i in range(0, len(images), 16)]
        return quantize(model, batches, symmetric=how == ("symmetric",))

    return quantised


def write_model(folder: Path, network: Network, exporter: Exporter, quantised: Quantiser | None = None) -> Path:
    """The member's model and weights, without a manifest: it can be measured, but is not finished. Gives the file to deploy.

    Raises:
        ExportError: the network cannot be exported or the folder not be written to.
        DeviceError: it cannot be quantised.
    """
    _forget_manifest(folder)
    about = {"arch": list(network.arch), "space": network.space.id}
    save_state(folder / WEIGHTS, network.state_dict(), about)
    exporter.write(network, folder / MODEL)
    if quantised is None:
        (folder / INT8).unlink(missing_ok=True)
        return folder / MODEL
    replace_file(folder / INT8, quantised((folder / MODEL).read_bytes()))
    return folder / INT8


def finish_member(folder: Path, exporter: Exporter, facts: Facts) -> Manifest:
    """Puts the facts into the model file, and then writes the manifest of what is there.

    Raises:
        ExportError: there is no model yet, or the folder cannot be written to.
    """
    _forget_manifest(folder)
    models = [name for name in (MODEL, INT8) if (folder / name).exists()] or [MODEL]
    for name in models:
        exporter.annotate(folder / name, facts.metadata())
    model = read_model(folder / MODEL)
    manifest = Manifest(
        **facts.model_dump(),
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        inputs=[_tensor(value) for value in model.graph.input],
        outputs=[_tensor(value) for value in model.graph.output],
        files={name: sha256(folder / name) for name in (*models, WEIGHTS)},
        deployed=models[-1],
    )
    replace_file(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def write_member(folder: Path, network: Network, exporter: Exporter, facts: Facts) -> Manifest:
    """A whole member in one go, where measuring comes later or never: see `write_model` and `finish_member`."""
    write_model(folder, network, exporter)
    return finish_member(folder, exporter, facts)


def _forget_manifest(folder: Path) -> None:
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write to {folder}: {error.strerror}; free or choose another folder") from None


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    return Tensor(name=value.name, shape=shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits.

    Raises:
        ExportError: there is no such file or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}; export the member again") from None


def read_model(path: Path) -> onnx.ModelProto:
    """The ONNX model in a file.

    Raises:
        ExportError: there is no such file, or it is truncated or of another kind.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}; export the member again") from None
    except DecodeError:
        raise ExportError(f"{path} is not an ONNX model, or a truncated one; export the member again") from None
    if not model.graph.node:
        raise ExportError(f"{path} holds no ONNX graph; export the member again")
    return model


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a member's folder.

    Raises:
        ExportError: there is none, it is damaged, or another program or a newer hwnas wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{folder} is not a finished member: it has no {MANIFEST}; write it with `hwnas export RUN`") from None
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ExportError(f"{path} is damaged: it is not JSON; export the member again") from None
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if schema is None:
        raise ExportError(f"{path} is not a manifest of hwnas: it has no schema_version; give a folder that `hwnas export` wrote")
    if schema != SCHEMA:
        raise ExportError(f"{path} has schema {schema!r}, but this hwnas reads {SCHEMA}; use the hwnas that wrote it or export again")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ExportError(f"{path} is damaged: {plugins.first_problem(error)}; export the member again") from None
    missing = {MODEL, WEIGHTS, manifest.deployed} - manifest.files.keys()
    if missing:
        raise ExportError(f"{path} is damaged: it names no {' and no '.join(sorted(missing))}; export the member again")
    return manifest


def complete(folder: Path) -> Manifest | None:
    """The member's manifest where its files are what it says; None where the member must be written (again)."""
    try:
        manifest = read_manifest(folder)
        whole = all(sha256(folder / name) == digest for name, digest in manifest.files.items())
    except ExportError:
        return None
    return manifest if whole else None


def measure_members(
    models: Mapping[str, Path], device: Device, *,
    protocol: MeasuringProtocol | None = None, journal: Path | None = None, level_ms: float | None = None, seed: int = 0,
    progress: Progress = silent,
) -> Measurement:  # fmt: skip
    """Times exported models, by name, on the device, all of them in one interleaved session; the dynamic axis is the device's batch.

    `level_ms` is the state of the machine that is wanted: what the reference model took when the tables were measured.

    Raises:
        ExportError: a file is not there.
        DeviceError: the device cannot be measured at all. A single model that it cannot run is among the failures.
    """
    try:
        content = {name: path.read_bytes() for name, path in models.items()}
    except OSError as error:
        raise ExportError(f"cannot read {error.filename}: {error.strerror}; export the member again") from None
    return measure(
        content, device, reference=reference_onnx(), protocol=protocol, journal=journal, level_ms=level_ms, seed=seed, progress=progress
    )
