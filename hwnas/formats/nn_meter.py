"""nn-Meter's kernel profiles (MobiSys 2021), JSON: kernel -> id -> config (HW, CIN, COUT, ...) and latency ("41.78 +- 1.0", ms).

nn-Meter writes a file for each kernel: give them all. An operator's price is the sum of its kernels, with residual additions as the kernel
`add` and squeeze-and-excitation as `se`; convolutions in groups have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from hwnas.errors import TableError, nearest
from hwnas.exchange import Entry, Keyed, Recipe, number, parse_json
from hwnas.op import OpSpec

_CONV = ("HW", "CIN", "COUT", "KERNEL_SIZE", "STRIDES")
_DEPTHWISE = ("HW", "CIN", "KERNEL_SIZE", "STRIDES")
_POOL = ("HW", "CIN", "KERNEL_SIZE", "POOL_STRIDES")
_MAP = ("HW", "CIN")
KERNELS: dict[str, tuple[str, ...]] = {
    **{f"conv-{end}": _CONV for end in ("bn", "relu", "relu6", "hswish", "bn-relu", "bn-relu6", "bn-hswish", "block")},
    **{f"dwconv-{end}": _DEPTHWISE for end in ("bn", "relu", "relu6", "bn-relu", "bn-relu6", "bn-hswish", "block")},
    **dict.fromkeys(("maxpool", "avgpool"), _POOL),
    **dict.fromkeys(("split", "channelshuffle", "se", "global-avgpool", "bnrelu", "bn", "hswish", "relu", "addrelu", "add"), _MAP),
    "fc": ("CIN", "COUT"),
    "concat": ("HW", "CIN1", "CIN2", "CIN3", "CIN4"),
    "resnet-se": _CONV,
}
"""nn-Meter's kernels and the sizes that tell two of a kind apart."""


class NNMeter(Keyed):
    """Entries by kernel and sizes, e.g. `conv-bn-relu HW=112 CIN=16 COUT=96 KERNEL_SIZE=1 STRIDES=1`."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"[a-z0-9-]+( [A-Z0-9_]+=\d+)+")

    def read(self, text: str, metric: str) -> dict[str, Entry]:
        """Every profiled configuration."""
        found = parse_json(text)
        if not isinstance(found, dict) or not all(isinstance(group, dict) for group in found.values()):
            raise TableError("must hold a mapping of kernels to profiled configurations; choose another --format")
        entries = {}
        for kernel, profiles in found.items():
            if kernel not in KERNELS:
                raise TableError(f"holds the kernel {kernel!r}, which nn-Meter does not have; {nearest(kernel, KERNELS)}")
            for name, profile in profiles.items():
                config = profile.get("config") if isinstance(profile, dict) else None
                if not isinstance(config, dict) or "latency" not in profile:
                    raise TableError(
                        f"has no config and latency for {kernel} {name}; profile it with nn-Meter first, or the file is cut off"
                    )
                entries[self._key(kernel, name, config)] = _latency(profile["latency"], f"{kernel} {name}")
        return entries

    def _key(self, kernel: str, name: str, config: dict[str, Any]) -> str:
        sizes = [size for size in KERNELS[kernel] if not size.startswith("CIN") or size in ("CIN", "CIN1") or size in config]
        if lacking := [size for size in sizes if size not in config]:
            raise TableError(f"gives no {lacking[0]} in the config of {kernel} {name}; mend that entry")
        return kernel_key(kernel, **{size: int(number(config[size], f"{size} of {kernel} {name}")) for size in sizes})

    def recipe(self, op: OpSpec) -> Recipe | None:
        """The kernels of an operator."""
        parts = _kernels(op) if op.height == op.width and op.dilation == 1 else []
        return dict.fromkeys(parts, 1.0) if parts else None


def kernel_key(kernel: str, **sizes: int) -> str:
    """The key of a configuration."""
    return " ".join([kernel, *(f"{size}={sizes[size]}" for size in KERNELS[kernel] if size in sizes)])


def _conv(kernel: str, side: int, c_in: int, c_out: int, size: int = 1, stride: int = 1) -> str:
    return kernel_key(kernel, HW=side, CIN=c_in, COUT=c_out, KERNEL_SIZE=size, STRIDES=stride)


def _kernels(op: OpSpec) -> list[str]:
    side, out = op.height, op.out_height
    block = re.fullmatch(r"mbconv(?P<se>_se)?(_(?P<act>relu|hswish))?|fbnet_block", op.kind)
    if block:
        if op.groups != 1:
            return []
        act = "relu" if op.kind == "fbnet_block" else block["act"] or "relu6"
        expand = [_conv(f"conv-bn-{act}", side, op.c_in, op.hidden)] if op.hidden != op.c_in or op.kind == "fbnet_block" else []
        depthwise = kernel_key(f"dwconv-bn-{act}", HW=side, CIN=op.hidden, KERNEL_SIZE=op.kernel, STRIDES=op.stride)
        squeeze = [kernel_key("se", HW=out, CIN=op.hidden)] if block["se"] else []
        residual = [kernel_key("add", HW=out, CIN=op.c_out)] if op.stride == 1 and op.c_in == op.c_out else []
        return [*expand, depthwise, *squeeze, _conv("conv-bn", out, op.hidden, op.c_out), *residual]
    convolutions = {"conv_bn_relu": "conv-bn-relu6", "conv_bn": "conv-bn", "fbnet_skip": "conv-bn-relu", "conv_bn_hswish": "conv-bn-hswish"}
    convolutions |= {"conv_hswish": "conv-hswish"}
    if op.kind in convolutions and op.groups == 1:
        return [_conv(convolutions[op.kind], side, op.c_in, op.c_out, op.kernel, op.stride)]
    pool, dense = kernel_key("global-avgpool", HW=side, CIN=op.c_in), kernel_key("fc", CIN=op.c_in, COUT=op.c_out)
    alone = {"classifier": [pool, dense], "linear": [dense], "global_pool": [pool], "relu": [kernel_key("relu", HW=side, CIN=op.c_in)]}
    alone["add"] = [kernel_key("add", HW=side, CIN=op.c_in)]
    alone["avg_pool"] = [kernel_key("avgpool", HW=side, CIN=op.c_in, KERNEL_SIZE=op.kernel, POOL_STRIDES=op.stride)]
    return alone.get(op.kind, [])


def _latency(value: Any, what: str) -> Entry:
    """`41.781 +- 1.0`, or a number."""
    words: Mapping[int, str] = dict(enumerate(value.split("+-"))) if isinstance(value, str) else {0: str(number(value, what))}
    try:
        return Entry(float(words[0]), float(words.get(1, "0")))
    except ValueError:
        raise TableError(f"has the latency {value!r} for {what}, which is not of the form '41.78 +- 1.0'; mend that entry") from None
