"""Exported members proved again from their files alone: hashes, graph, outputs against torch, accuracy, latency within the budget."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from hwnas.checkpoint import load_state
from hwnas.data import Dataset, load_data
from hwnas.device import Device, differences
from hwnas.errors import ConfigError, DeviceError, ExportError, HwnasError, PluginError
from hwnas.export import INT8, MANIFEST, MODEL, OUTPUT, WEIGHTS, Manifest, measure_members, read_manifest, read_model, sha256
from hwnas.measure import Progress, Protocol, Timing, silent
from hwnas.network import Network
from hwnas.plugins import first_problem
from hwnas.profile import fingerprint, source_of
from hwnas.space import load_space
from hwnas.train import predict

TOLERANCE = 1e-4
"""Largest absolute difference allowed between a logit of torch and of ONNX Runtime."""
BATCH = 64
INT8_TOLERANCE = 0.005
"""How far the accuracy of an int8 model may lie from the manifest's: other processors round and saturate otherwise."""
SINGLE = 8
"""Images that are also run one at a time."""
LATENCY = "latency_ms"
SESSIONS = 3
"""How often a member that misses its latency budget is measured before that counts."""


Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what would have been allowed. `skipped` could not be checked; `found` says why."""

    name: str
    status: Status
    found: str
    limit: str


@dataclass(frozen=True)
class MemberReport:
    """All the checks of one member."""

    name: str
    folder: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; some may have been skipped."""
        return all(check.status != "failed" for check in self.checks)


def verify(folder: Path, *, protocol: Protocol | None = None, progress: Progress = silent) -> list[MemberReport]:
    """Repeats everything that was claimed of the member in `folder`, or of all the members in its subfolders.

    Latency is measured in one interleaved session for all members of a device, and only on the machine and runtime of
    which the manifest speaks.

    Raises:
        ExportError: there is no member.
    """
    checks: dict[Path, list[Check]] = {}
    manifests: dict[Path, Manifest] = {}
    datasets: dict[str, Dataset | HwnasError] = {}
    found = _members(folder)
    for number, member in enumerate(found):
        progress("verify files", number, len(found))
        try:
            manifests[member] = read_manifest(member)
        except ExportError as error:
            checks[member] = [Check("manifest", "failed", str(error), f"a whole {MANIFEST}")]
            continue
        checks[member] = list(_Examination(member, manifests[member], datasets).checks())
    progress("verify files", len(found), len(found))
    for member, check in _latencies(manifests, protocol, progress).items():
        checks[member].append(check)
    return [MemberReport(member.name, str(member), tuple(checks[member])) for member in found]


def _members(folder: Path) -> list[Path]:
    """The folder itself or its subfolders, as far as they hold a member or the remains of one."""

    def holds(path: Path) -> bool:
        return any((path / name).is_file() for name in (MANIFEST, MODEL))

    folder = folder.resolve()
    if holds(folder):
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and holds(path)) if folder.is_dir() else []
    if not found:
        raise ExportError(f"{folder} holds no exported member (a folder with a {MANIFEST}); write one with `hwnas export RUN`")
    return found


class _ImpossibleError(Exception):
    """A check that cannot be made here, which is no fault of the member."""


Finding = tuple[bool, str]


@dataclass(frozen=True)
class _Compared:
    """Torch's logits and those of ONNX Runtime on the test images (or tokens).

    The largest absolute difference, the classes that torch and that ONNX Runtime give, torch's lead of the best class over the second,
    and torch's logits of the first images.
    """

    difference: float
    expected: NDArray[np.int64]
    computed: NDArray[np.int64]
    lead: NDArray[np.float32]
    first: NDArray[np.float32]


class _Examination:
    """The checks of one member that need no measuring. What several of them need is computed when the first asks for it."""

    def __init__(self, folder: Path, manifest: Manifest, datasets: dict[str, Dataset | HwnasError]) -> None:
        self.folder, self.manifest, self._datasets = folder, manifest, datasets

    def checks(self) -> Iterable[Check]:
        """One after the other; what a check stumbles over is its finding."""
        known = self._stated_accuracy
        stated = "the manifest states none" if known is None else f"the manifest's {known:.4f}"
        steps: tuple[tuple[str, str, Callable[[], Finding]], ...] = (
            ("files", "the SHA-256 in the manifest", self.files),
            ("onnx", "onnx.checker finds nothing wrong", self.checker),
            ("metadata", "in the model as in the manifest", self.metadata),
            ("graph", "no dead node, no unused weight, no BatchNormalization that could be part of a Conv", self.graph),
            ("preprocessing", "the data set's, as in the manifest", self.preprocessing),
            ("outputs", f"at most {TOLERANCE:g} from torch's", self.outputs),
            ("accuracy", f"onnxruntime's equal to torch's and to that of the manifest ({stated})", self.accuracy),
        )
        if INT8 in self.manifest.files:
            steps += (("int8", f"its accuracy at most {INT8_TOLERANCE:g} from the manifest's", self.int8),)
        for name, limit, step in steps:
            try:
                passed, found = step()
                yield Check(name, "passed" if passed else "failed", found, limit)
            except _ImpossibleError as error:
                yield Check(name, "skipped", str(error), limit)
            except HwnasError as error:
                yield Check(name, "failed", str(error), limit)

    def files(self) -> Finding:
        wrong = []
        for name, digest in self.manifest.files.items():
            if not (self.folder / name).is_file():
                wrong.append(f"{name} is missing")
            elif sha256(self.folder / name) != digest:
                wrong.append(f"{name} was changed")
        return not wrong, "; ".join(wrong) or ", ".join(self.manifest.files)

    def checker(self) -> Finding:
        try:
            onnx.checker.check_model(self._model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return False, str(error).strip().splitlines()[0]
        return True, f"opset {self.manifest.opset}, {len(self._model.graph.node)} nodes"

    def metadata(self) -> Finding:
        there = {entry.key: entry.value for entry in self._model.metadata_props}
        wanted = self.manifest.metadata()
        different = [key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key)]
        return not different, f"differs in {', '.join(different)}" if different else f"{len(there)} entries"

    def graph(self) -> Finding:
        faults = graph_faults(self._model)
        return not faults, "; ".join(faults) or f"{len(self._model.graph.node)} nodes, {len(self._model.graph.initializer)} weights"

    def preprocessing(self) -> Finding:
        now, stated = _rounded(self._data.preprocessing()), _rounded(self.manifest.preprocessing)
        different = [key for key in sorted({*now, *stated}) if now.get(key) != stated.get(key)]
        return not different, f"differs in {', '.join(different)}" if different else self._data.name

    def outputs(self) -> Finding:
        first = self._images[:SINGLE]
        single = np.concatenate([self._run(image[None]) for image in first.numpy()])
        difference, alone = self._compared.difference, float(np.abs(single - self._compared.first).max())
        found = f"{difference:.1e} on {len(self._images)} {self._origin} in batches of {BATCH}, {alone:.1e} on {len(first)} one by one"
        return bool(max(difference, alone) <= TOLERANCE), found

    def accuracy(self) -> Finding:
        labels = self._data.test.labels.numpy()
        compared = self._compared
        torch_says, onnx_says = (float((classes == labels).mean()) for classes in (compared.expected, compared.computed))
        undecided = int((compared.lead <= 2 * TOLERANCE).sum())
        known = torch_says if self._stated_accuracy is None else self._stated_accuracy
        apart = max(abs(onnx_says - torch_says), abs(known - torch_says))
        ties = f"; {undecided} are undecided within the tolerance and may differ" if undecided else ""
        found = f"onnxruntime {onnx_says:.4f}, torch {torch_says:.4f} on {labels.size} test {self._data.gives}{ties}"
        return apart <= (undecided + 0.5) / labels.size, found

    def int8(self) -> Finding:
        found = runtime_accuracy(self.folder / INT8, self._data)
        known = self.manifest.values.get("test_accuracy", found)
        return abs(found - known) <= INT8_TOLERANCE, f"onnxruntime {found:.4f}, the manifest {known:.4f}"

    @property
    def _stated_accuracy(self) -> float | None:
        """What the manifest says of `model.onnx`."""
        values = self.manifest.values
        return values.get("fp32_test_accuracy" if INT8 in self.manifest.files else "test_accuracy")

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return read_model(self.folder / MODEL)

    @cached_property
    def _network(self) -> Network:
        """Rebuilt from the space's options and the weights."""
        stated = self.manifest.space
        space = load_space(stated.name, stated.options)
        if space.id != stated.id:
            raise ExportError(f"the space is {space.id} now, not {stated.id}; use the hwnas that wrote the member or export again")
        network = Network(space, self.manifest.arch)
        tensors, _ = load_state(self.folder / WEIGHTS)
        try:
            network.load_state_dict(tensors)
        except RuntimeError:
            raise ExportError(f"{WEIGHTS} holds another network's weights than {self.manifest.description}; export again") from None
        return network.eval()

    @property
    def _data(self) -> Dataset:
        section = self.manifest.data
        key = section.model_dump_json()
        if key not in self._datasets:
            try:
                self._datasets[key] = load_data(section.name, section.options)
            except HwnasError as error:
                self._datasets[key] = error
        data = self._datasets[key]
        if isinstance(data, HwnasError):
            raise _ImpossibleError(f"the data cannot be loaded: {data}")
        return data

    @cached_property
    def _normalised(self) -> tuple[Float[Tensor, "n channel height width"], str]:
        """The test images, or else noise, and how to call them."""
        space = self._network.space
        what = space.reads if space.reads == "images" else f"windows of {space.reads}"
        try:
            return self._data.normalise(self._data.test.images), f"test {what}"
        except _ImpossibleError:
            generator, shape = torch.Generator().manual_seed(0), (2 * BATCH, *space.input_shape)
            noise = torch.randn(shape, generator=generator)
            if space.reads == "tokens":
                noise = torch.randint(space.classes, shape, generator=generator).float()
            return noise, f"{what} of noise (the data cannot be loaded)"

    @property
    def _images(self) -> Float[Tensor, "n channel height width"]:
        return self._normalised[0]

    @property
    def _origin(self) -> str:
        return self._normalised[1]

    @cached_property
    def _compared(self) -> _Compared:
        """Batch by batch: the logits of a whole text would not fit into memory."""
        found = []
        for images in torch.split(self._images, BATCH):
            expected, computed = predict(self._network, images, BATCH).numpy(), self._run(images.numpy())
            second, best = np.moveaxis(np.partition(expected, -2, axis=1)[:, -2:], 1, 0)
            found.append((np.abs(computed - expected).max(), expected.argmax(1), computed.argmax(1), best - second, expected[:SINGLE]))
        difference, expected_classes, computed_classes, lead, first = zip(*found, strict=True)
        classes = np.concatenate(expected_classes), np.concatenate(computed_classes)
        return _Compared(float(np.max(difference)), *classes, np.concatenate(lead), first[0])

    @cached_property
    def _session(self) -> Any:
        return _session(self._model, MODEL)

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (logits,) = self._session.run([OUTPUT], {self._network.space.reads: images})
        except Exception as error:
            raise ExportError(f"onnxruntime cannot run {MODEL} on a batch of {len(images)}: {str(error).splitlines()[0]}") from None
        found: NDArray[np.float32] = logits
        wanted = (len(images), *self._network.space.output_shape)
        if found.shape != wanted:
            raise ExportError(f"{MODEL} gives {found.shape} for a batch of {len(images)}, not {wanted}")
        return found


def _session(model: onnx.ModelProto, name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ExportError(f"onnxruntime refuses {name}: {str(error).splitlines()[0]}") from None


def runtime_accuracy(path: Path, data: Dataset) -> float:
    """Share of the test images that the model in the file classifies rightly under ONNX Runtime on the CPU.

    Raises:
        ExportError: there is no such model, or ONNX Runtime cannot run it.
    """
    session = _session(read_model(path), path.name)
    right = 0
    for images, labels in zip(torch.split(data.test.images, BATCH), torch.split(data.test.labels, BATCH), strict=True):
        try:
            (logits,) = session.run([OUTPUT], {data.gives: data.normalise(images).numpy()})
        except Exception as error:  # onnxruntime's own exceptions share no narrower base
            raise ExportError(f"onnxruntime cannot run {path.name}: {str(error).splitlines()[0]}") from None
        right += int((logits.argmax(1) == labels.numpy()).sum())
    return right / data.test.labels.numel()


def _rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON gives them back, numbers to 9 digits: sums round differently on another processor."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(facts)), parse_float=lambda text: float(f"{float(text):.9g}"))
    return plain


def graph_faults(model: onnx.ModelProto) -> list[str]:
    """Nodes that do not lie between input and output, weights that nobody reads, a BatchNormalization directly behind a Conv."""
    graph = model.graph
    used = {value.name for value in graph.output}
    faults = []
    for node in reversed(graph.node):
        if used.isdisjoint(node.output):
            faults.append(f"nothing reads the {node.op_type} {node.name}")
        else:
            used |= set(node.input)
    faults += [f"nothing reads the weight {tensor.name}" for tensor in graph.initializer if tensor.name not in used]
    constant = {tensor.name for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if constant.issuperset(filter(None, node.input)):
            constant |= set(node.output)
            if node.op_type != "Constant":
                faults.append(f"the input does not feed the {node.op_type} {node.name}")
        elif node.op_type == "BatchNormalization" and (before := maker.get(node.input[0])) and before.op_type == "Conv":
            if readers[node.input[0]] > 1:  # others read the convolution as it is
                continue
            faults.append(f"the BatchNormalization {node.name} is not folded into the Conv {before.name}")
    return faults


def _latencies(manifests: Mapping[Path, Manifest], protocol: Protocol | None, progress: Progress) -> dict[Path, Check]:
    """The latency check of every member, device by device."""
    groups: dict[str, dict[Path, Manifest]] = {}
    for member, manifest in manifests.items():
        groups.setdefault(json.dumps(manifest.device.settings, sort_keys=True), {})[member] = manifest
    checks: dict[Path, Check] = {}
    for group in groups.values():
        for member, (status, found) in _measured_again(group, protocol, progress).items():
            budget = group[member].budgets.get(LATENCY)
            limit = "no budget" if budget is None else f"p50 at most {budget:g} ms in one of {SESSIONS} sessions"
            checks[member] = Check("latency", status, found, limit)
    return checks


def _measured_again(
    manifests: Mapping[Path, Manifest], protocol: Protocol | None, progress: Progress
) -> dict[Path, tuple[Status, str]]:  # fmt: skip
    """What the latency check of each of these members found; they are all for the same device."""
    stated = next(manifest.device for manifest in manifests.values())
    try:
        device = Device.model_validate(stated.settings)
        here = fingerprint(device)
    except ValidationError as error:
        return dict.fromkeys(manifests, ("failed", f"the manifest's device is wrong: {first_problem(error)}"))
    except (PluginError, ConfigError, DeviceError) as error:
        return dict.fromkeys(manifests, ("skipped", f"{stated.name} cannot be used here: {error}"))
    found: dict[Path, tuple[Status, str]] = {}
    to_measure = []
    for member, manifest in manifests.items():
        elsewhere = differences(manifest.device.fingerprint, here)
        if elsewhere:
            found[member] = ("skipped", f"it was measured elsewhere ({'; '.join(elsewhere)})")
        elif not (member / manifest.deployed).is_file():
            found[member] = ("failed", f"there is no {manifest.deployed}")
        else:
            to_measure.append(member)
    budgets = {member: manifest.budgets.get(LATENCY, math.inf) for member, manifest in manifests.items()}
    files = {member: member / manifest.deployed for member, manifest in manifests.items()}
    levels = {measured.reference for manifest in manifests.values() if (measured := manifest.measured.get(LATENCY))}
    level = levels.pop() if len(levels) == 1 else None
    timings, reasons = _best_timings({member: files[member] for member in to_measure}, budgets, device, level, protocol, progress)
    found |= {member: ("failed", f"{stated.name}: {reason}") for member, reason in reasons.items()}
    for member, timing in timings.items():
        before = manifests[member].measured.get(LATENCY)
        exported = f" ({before.p50:.3f} ms when exported)" if before else ""
        text = f"p50 {timing.p50_ms:.3f} ms{exported}, p90 {timing.p90_ms:.3f} ms, {timing.n} runs"
        if source_of(here) != "measured":
            text = f"{timing.p50_ms:.3f} ms, {source_of(here)}"
        found[member] = ("passed" if timing.p50_ms <= budgets[member] else "failed", text)
    return found


def _best_timings(
    files: Mapping[Path, Path], budgets: Mapping[Path, float], device: Device, level_ms: float | None, protocol: Protocol | None,
    progress: Progress,
) -> tuple[dict[Path, Timing], dict[Path, str]]:  # fmt: skip
    """Each member's best session, or why its file cannot be run. What misses its budget is measured again: it may have been disturbed."""
    timings: dict[Path, Timing] = {}
    failures: dict[Path, str] = {}
    left = list(files)
    for session in range(SESSIONS):
        if not left:
            break
        models = {str(member): files[member] for member in left}
        measurement = measure_members(models, device, protocol=protocol, level_ms=level_ms, seed=session, progress=progress)
        failures |= {Path(key): reason for key, reason in measurement.failures.items()}
        for key, timing in measurement.timings.items():
            known = timings.get(Path(key))
            timings[Path(key)] = timing if known is None else min(known, timing, key=lambda t: t.p50_ms)
        left = [member for member in left if member in timings and timings[member].p50_ms > budgets[member]]
    return {member: timing for member, timing in timings.items() if member not in failures}, failures
