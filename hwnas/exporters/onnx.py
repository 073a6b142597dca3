"""ONNX by torch's maintained exporter (`torch.onnx.export(dynamo=True)`): BatchNorm folded, batch axis dynamic, one file."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, cast

import onnx
import torch
from pydantic import Field
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hwnas.device import Device
from hwnas.errors import ExportError
from hwnas.export import BATCH_AXIS, OUTPUT, read_model, replace_file
from hwnas.layers import finished
from hwnas.network import Network

REQUIRES = ("onnxscript",)


class ONNX:
    """The exporter of the experiments whose configuration says `exporter: {name: onnx}`."""

    def __init__(self, device: Device, *, opset: Annotated[int, Field(ge=18)] = 20) -> None:
        self._opset = opset

    def write(self, network: Network, path: Path) -> None:
        """The network in eval mode, its input called what the space reads and its output `logits`, batch axis first and dynamic.

        Raises:
            ExportError: torch cannot export a layer, or only for one batch size or another opset.
        """
        folded = fold_batch_norm(cast(Network, finished(network)))  # what has its last form, for folding changes weights
        images = torch.zeros(2, *network.space.input_shape)
        batch = torch.export.Dim(BATCH_AXIS, min=1)
        what = f"{network.space.describe(network.arch)} of {network.space.name}"
        try:
            with _quiet():
                program = torch.onnx.export(
                    folded, (images,), dynamo=True, input_names=[network.space.reads], output_names=[OUTPUT],
                    dynamic_shapes=({0: batch},),
                    opset_version=self._opset, external_data=False, verbose=False,
                )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ExportError(f"torch cannot export {what}: {str(error).strip().splitlines()[0]}") from error
        assert program is not None
        model = program.model_proto
        _strip(model)
        if any(entry.version != self._opset for entry in model.opset_import if not entry.domain):
            raise ExportError(f"torch {torch.__version__} cannot export {what} to opset {self._opset}; choose another exporter.opset")
        for value in (*model.graph.input, *model.graph.output):
            if value.type.tensor_type.shape.dim[0].dim_param != BATCH_AXIS:
                fault = "some layer takes the batch size as a plain number (`len(x)`, not `x.shape[0]`)"
                raise ExportError(f"{what} can be exported for one batch size only: {fault}")
        replace_file(path, model.SerializeToString(deterministic=True))

    def annotate(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Replaces the file by one that has these `metadata_props`, and no others.

        Raises:
            ExportError: there is no such file, it is no ONNX model, or its folder cannot be written to.
        """
        model = read_model(path)
        onnx.helper.set_model_props(model, dict(metadata))
        replace_file(path, model.SerializeToString(deterministic=True))


def fold_batch_norm(network: Network) -> Network:
    """A copy in eval mode on the CPU in which a BatchNorm that follows a convolution in an `nn.Sequential` is part of it."""
    folded = copy.deepcopy(network, {id(network.space): network.space}).eval().cpu()
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            layers: list[nn.Module] = []
            for layer in module:
                if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
                    layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
                else:
                    layers.append(layer)
            del module[:]
            module.extend(layers)
    return folded


def _strip(model: onnx.ModelProto) -> None:
    """Takes out what the exporter notes about its own work: stack traces with the paths of this machine, most of all."""
    graph = model.graph
    for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile, nothing is printed, nothing logged and nobody warned: the exporter writes dozens of lines that are no use here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
