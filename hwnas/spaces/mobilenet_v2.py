"""Inverted bottlenecks in stages: kernel and expansion of every block, depth by skipping, one width a stage (arXiv 1801.04381).

Node `s2.b1@24` is the output of block 1 of stage 2 where that stage is 24 channels wide, so a stage's width and a
block's operator are two decisions of one site, and the first block of a stage hangs on three.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
Kernel = Literal[1, 3, 5, 7, 9, 11]


class Stage(BaseModel):
    """One stage: the widths to choose from (channels), its number of blocks, the first one's stride, kernels and expansions of its own."""

    model_config = ConfigDict(extra="forbid")

    widths: Annotated[list[Positive], Field(min_length=1)]
    depth: Positive = 2
    stride: Annotated[int, Field(ge=1, le=2)] = 1
    kernels: Annotated[list[Kernel], Field(min_length=1)] | None = None
    expansions: Annotated[list[Positive], Field(min_length=1)] | None = None


SMALL_IMAGE_STAGES = (
    Stage(widths=[16, 24], depth=2, stride=2),
    Stage(widths=[24, 40], depth=3, stride=2),
    Stage(widths=[48, 80], depth=3, stride=2),
    Stage(widths=[96, 128], depth=2, stride=1),
)


class MobileNetV2(SearchSpace):
    """A MobileNetV2-like space for images of `channels` x `input_size` x `input_size`."""

    small: ClassVar[dict[str, Any]] = {
        "input_size": 16,
        "stem_width": 8,
        "stages": [{"widths": [8, 12], "depth": 2, "stride": 2}, {"widths": [12, 16], "depth": 2, "stride": 2}],
        "head_width": 32,
    }

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        stem_width: Positive = 16,
        stem_stride: Annotated[int, Field(ge=1, le=2)] = 1,
        stages: Annotated[list[Stage], Field(min_length=1)] = list(SMALL_IMAGE_STAGES),  # noqa: B006
        kernels: Annotated[list[Kernel], Field(min_length=1)] = [3, 5, 7],  # noqa: B006
        expansions: Annotated[list[Positive], Field(min_length=1)] = [3, 6],  # noqa: B006
        head_width: Positive = 256,
    ) -> None:
        slots: list[Slot] = []
        side = -(-input_size // stem_stride)
        stem = OpSpec("conv_bn_relu", channels, stem_width, input_size, input_size, kernel=3, stride=stem_stride)
        sites = [Site(stem, ("input",), f"stem@{stem_width}")]
        # (node, width, decisions that the node's existence hangs on) of everything the next block may read
        sources: list[tuple[str, int, tuple[tuple[int, int], ...]]] = [(sites[0].output, stem_width, ())]
        for number, stage in enumerate(stages, 1):
            operators = [(kernel, expansion) for kernel in stage.kernels or kernels for expansion in stage.expansions or expansions]
            labels = tuple(f"k{kernel}e{expansion}" for kernel, expansion in operators)
            width_slot = len(slots)
            slots.append(Slot(f"s{number}.width", tuple(str(width) for width in stage.widths)))
            for block in range(1, stage.depth + 1):
                slot = len(slots)
                stride = stage.stride if block == 1 else 1
                may_skip = block > 1
                slots.append(Slot(f"s{number}.b{block}", (*labels, "skip") if may_skip else labels))
                outputs: list[tuple[str, int, tuple[tuple[int, int], ...]]] = []
                for choice, width in enumerate(stage.widths):
                    decision = (width_slot, choice)
                    node = f"s{number}.b{block}@{width}"
                    for source, c_in, decisions in sources:
                        if block > 1 and c_in != width:
                            continue
                        when = tuple(sorted({*decisions, decision}))
                        for k, (kernel, expansion) in enumerate(operators):
                            op = OpSpec("mbconv", c_in, width, side, side, kernel, stride, hidden=c_in * expansion)
                            sites.append(Site(op, (source,), node, (*when, (slot, k))))
                        if may_skip:
                            op = OpSpec("identity", width, width, side, side)
                            sites.append(Site(op, (source,), node, (*when, (slot, len(operators)))))
                    outputs.append((node, width, (decision,)))
                sources, side = outputs, -(-side // stride)
        for source, c_in, decisions in sources:
            op = OpSpec("conv_bn_relu", c_in, head_width, side, side)
            sites.append(Site(op, (source,), "head", decisions))
        head = OpSpec("classifier", head_width, classes, side, side, stride=side)
        sites.append(Site(head, ("head",), "output"))
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))
