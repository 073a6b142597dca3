"""ProxylessNAS's latency tables (arXiv 1812.00332), YAML: layer keys with HxWxC shapes and expansion ratios -> mean (ms), count, var.

The space of its Pixel 1 table is `mobilenet_v2` with one width a stage; `docs/tables.md` has the options.
"""

from __future__ import annotations

import re
from typing import ClassVar

from hwnas.exchange import LayerYAML
from hwnas.op import OpSpec


class ProxylessNAS(LayerYAML):
    """`Conv` is the 3x3 stem, `Conv_1` the last 1x1 convolution, `Logits` pooling and classifier."""

    spread = "var"
    pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"Conv(_1)?-input:\d+x\d+x\d+-output:\d+x\d+x\d+|Logits-input:\d+x\d+x\d+-output:\d+"
        r"|expanded_conv-input:\d+x\d+x\d+-output:\d+x\d+x\d+-expand:\d+-kernel:\d+-stride:\d+-idskip:[01]"
    )

    def key(self, op: OpSpec) -> str | None:
        """The operator's key; expansions that are no whole ratio have none."""
        before, after = f"input:{op.height}x{op.width}x{op.c_in}", f"output:{op.out_height}x{op.out_width}x{op.c_out}"
        if (op.groups, op.dilation) != (1, 1):
            return None
        if op.kind == "mbconv" and op.hidden % op.c_in == 0:
            skip = int(op.stride == 1 and op.c_in == op.c_out)
            return f"expanded_conv-{before}-{after}-expand:{op.hidden // op.c_in}-kernel:{op.kernel}-stride:{op.stride}-idskip:{skip}"
        if op.kind == "conv_bn_relu" and op.kernel in (1, 3):
            return f"Conv{'_1' if op.kernel == 1 else ''}-{before}-{after}"
        return f"Logits-{before}-output:{op.c_out}" if op.kind == "classifier" else None
