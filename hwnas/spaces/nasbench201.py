"""NAS-Bench-201 (arXiv 2001.00326): one cell of 4 nodes and 6 edges, five operators an edge, repeated in three stages.

All cells share their decisions. What several edges would compute alike is one site that they read: a node's ReLU (every
convolution is ReLU, convolution, BatchNorm) and its pooling have no weights. Edges stand in the order of the published
architecture string: (0,1) (0,2) (1,2) (0,3) (1,3) (2,3).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field

from hwnas.errors import SpaceError
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace, Site, Slot

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
# What an edge with this choice reads (a form of its source node's value) and which operator it applies; None writes nothing.
_OPERATORS: dict[str, tuple[str, Callable[[int, int], OpSpec]] | None] = {
    "none": None,
    "skip_connect": ("", lambda c, side: OpSpec("identity", c, c, side, side)),
    "nor_conv_1x1": (".relu", lambda c, side: OpSpec("conv_bn", c, c, side, side)),
    "nor_conv_3x3": (".relu", lambda c, side: OpSpec("conv_bn", c, c, side, side, kernel=3)),
    "avg_pool_3x3": (".pool", lambda c, side: OpSpec("identity", c, c, side, side)),
}
_FORMS: dict[str, Callable[[int, int], OpSpec]] = {
    ".relu": lambda c, side: OpSpec("relu", c, c, side, side),
    ".pool": lambda c, side: OpSpec("avg_pool", c, c, side, side, kernel=3),
}


class NASBench201(SearchSpace):
    """The published space with `cells` = 5 a stage, `width` = 16 and 32x32 images; smaller ones for experiments."""

    small: ClassVar[dict[str, Any]] = {"input_size": 16, "width": 4, "cells": 1}

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Annotated[int, Field(ge=1)] = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        width: Annotated[int, Field(ge=1)] = 16,
        cells: Annotated[int, Field(ge=1)] = 5,
    ) -> None:
        slots = tuple(Slot(f"{target}<-{source}", tuple(_OPERATORS)) for source, target in EDGES)
        sites = [Site(OpSpec("conv_bn", channels, width, input_size, input_size, kernel=3), ("input",), "stem")]
        node, side = "stem", input_size
        for stage in range(1, 4):
            if stage > 1:
                reduction = OpSpec("resnet_reduction", width, 2 * width, side, side, stride=2)
                sites.append(Site(reduction, (node,), f"reduction{stage - 1}"))
                node, width, side = f"reduction{stage - 1}", 2 * width, -(-side // 2)
            for cell in range(1, cells + 1):
                nodes = [node, *(f"s{stage}.c{cell}.n{i}" for i in (1, 2, 3))]
                for target in (1, 2, 3):
                    source = nodes[target - 1]
                    sites += [Site(spec(width, side), (source,), source + form, weightless=True) for form, spec in _FORMS.items()]
                    for slot, (start, _) in ((i, edge) for i, edge in enumerate(EDGES) if edge[1] == target):
                        for choice, reads in enumerate(_OPERATORS.values()):
                            if reads is not None:
                                form, spec = reads
                                sites.append(Site(spec(width, side), (nodes[start] + form,), nodes[target], ((slot, choice),)))
                node = nodes[3]
        head = OpSpec("bn_relu_classifier", width, classes, side, side, stride=side)
        sites.append(Site(head, (node,), "output"))
        super().__init__((channels, input_size, input_size), classes, slots, tuple(sites))

    @property
    def swaps(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Nodes 1 and 2, which are alike where nothing leads from one to the other."""
        return (((0, 1), (4, 5)),)

    def describe(self, arch: tuple[int, ...] | list[int]) -> str:  # type: ignore[override]
        """The published architecture string, e.g. `|avg_pool_3x3~0|+|...`."""
        names = list(_OPERATORS)
        groups: dict[int, list[str]] = {}
        for (source, target), choice in zip(EDGES, arch, strict=True):
            groups.setdefault(target, []).append(f"{names[choice]}~{source}")
        return "+".join("|" + "|".join(group) + "|" for group in groups.values())

    def parse(self, text: str) -> Architecture:
        """The architecture written as choice numbers, as `slot=label`, or as the published string."""
        if "~" not in text:
            return super().parse(text)
        found = re.fullmatch(r"\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|", text.strip())
        unknown = [name for name in found.groups() if name not in _OPERATORS] if found else []
        if found is None or unknown:
            raise SpaceError(f"{text!r} must be |op~0|+|op~0|op~1|+|op~0|op~1|op~2| with the operators {', '.join(_OPERATORS)}")
        return self.check(list(_OPERATORS).index(name) for name in found.groups())
