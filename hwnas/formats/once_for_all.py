"""Once-for-all's latency tables (arXiv 1908.09791), YAML: layer keys with HxWxC shapes and mid channels -> mean (ms), count, std.

One file for each resolution: choose `input_size` (and `width`) of the space `ofa_mobilenet_v3` accordingly.
"""

from __future__ import annotations

import re
from typing import ClassVar

from hwnas.exchange import LayerYAML
from hwnas.op import OpSpec


class OnceForAll(LayerYAML):
    """`Conv` is the 3x3 stem, `Conv_1` the last expansion, `AvgPool2D` and `Conv_2` the head, `Logits` the classifier."""

    spread = "std"
    pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"(Conv|Conv_1|Conv_2|AvgPool2D)-input:\d+x\d+x\d+-output:\d+x\d+x\d+|Logits-input:1x1x\d+-output:\d+"
        r"|expanded_conv-input:\d+x\d+x\d+-output:\d+x\d+x\d+-expand:\d+-kernel:\d+-stride:\d+-idskip:[01]-se:[01]-hs:[01]"
    )

    def key(self, op: OpSpec) -> str | None:
        """The operator's key."""
        before, after = f"input:{op.height}x{op.width}x{op.c_in}", f"output:{op.out_height}x{op.out_width}x{op.c_out}"
        if (op.groups, op.dilation) != (1, 1):
            return None
        block = re.fullmatch(r"mbconv(_se)?_(relu|hswish)", op.kind)
        if block:
            skip = int(op.stride == 1 and op.c_in == op.c_out)
            squeeze, swish = int(block[1] is not None), int(block[2] == "hswish")
            return (
                f"expanded_conv-{before}-{after}-expand:{op.hidden}-kernel:{op.kernel}-stride:{op.stride}-idskip:{skip}"
                f"-se:{squeeze}-hs:{swish}"
            )
        if op.kind == "linear":
            return f"Logits-{before}-output:{op.c_out}"
        names = {
            ("conv_bn_hswish", 3): "Conv",
            ("conv_bn_hswish", 1): "Conv_1",
            ("conv_hswish", 1): "Conv_2",
            ("global_pool", 1): "AvgPool2D",
        }
        name = names.get((op.kind, op.kernel))
        return None if name is None else f"{name}-{before}-{after}"
