"""HW-NAS-Bench's blocks of the FBNet space (arXiv 2103.10584), JSON: `<column>_latency` (ms), `<column>_energy` (mJ) -> key -> number.

The option `column` is the device's name in the file (edgegpu, raspi4, pixel3, eyeriss, fpga). Sums of a network's blocks, stem and head
are the benchmark's own latencies and energies; the classifier is its pooling and its linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from hwnas.errors import TableError
from hwnas.exchange import Entry, Keyed, Recipe, number, parse_json
from hwnas.op import OpSpec


class HWNASBench(Keyed):
    """Keys with H, W, Cin, Cout, exp, kernel, stride, group; `Skip` is the identity or, where it changes the shape, a 1x1 convolution."""

    metrics = ("latency_ms", "energy_mj")
    free: ClassVar[frozenset[str]] = frozenset()
    pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"ConvNorm_H\d+_W\d+_Cin\d+_Cout\d+_kernel\d+_stride\d+_group\d+|ConvBlock_H\d+_W\d+_Cin\d+_Cout\d+_exp\d+_kernel\d+_stride\d+_group\d+"
        r"|Skip_H\d+_W\d+_Cin\d+_Cout\d+_stride\d+|AvgP_H\d+_W\d+_Cin\d+_Cout\d+_kernel\d+_stride\d+|FC_Cin\d+_Cout\d+"
    )

    def __init__(self, *, column: str) -> None:
        self.column = column

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """The column's blocks."""
        found = parse_json(text)
        name = f"{self.column}_{metric.partition('_')[0]}"
        columns = [key for key in found if key.endswith(("_latency", "_energy"))] if isinstance(found, Mapping) else []
        if not columns:
            raise TableError("holds no <device>_latency or <device>_energy; choose another --format")
        if name not in columns or not isinstance(found[name], dict):
            raise TableError(f"holds no {name}; choose the option column and --metric among {', '.join(sorted(columns))}")
        self.check_keys(found[name])
        return {key: Entry(number(value, key)) for key, value in found[name].items()}

    def recipe(self, op: OpSpec) -> Recipe | None:
        """The operator's key, two for the classifier."""
        size = f"H{op.height}_W{op.width}_Cin{op.c_in}_Cout{op.c_out}"
        if op.kind == "conv_bn_relu":
            return {f"ConvNorm_{size}_kernel{op.kernel}_stride{op.stride}_group{op.groups}": 1.0}
        if op.kind == "fbnet_block" and op.hidden % op.c_in == 0:
            return {f"ConvBlock_{size}_exp{op.hidden // op.c_in}_kernel{op.kernel}_stride{op.stride}_group{op.groups}": 1.0}
        if op.kind in ("identity", "fbnet_skip"):
            return {f"Skip_{size}_stride{op.stride}": 1.0}
        if op.kind == "classifier":
            pool = f"AvgP_H{op.height}_W{op.width}_Cin{op.c_in}_Cout{op.c_in}_kernel{op.height}_stride1"
            return {pool: 1.0, f"FC_Cin{op.c_in}_Cout{op.c_out}": 1.0}
        return None
