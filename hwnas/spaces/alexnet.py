"""MONAS's AlexNet: five convolutions whose number of filters and kernel are chosen, pools and linear layers fixed (arXiv 1806.10332).

Its text names the target network; the candidates, and the places of the pools (behind convolutions 1, 2 and 5, as in AlexNet),
are ours where it is silent. Convolutions have BatchNorm, so that a short training says something. Node `conv3@48` is the output of
the third where it has 48 filters: a convolution hangs on the filters before it, its own, and its kernel.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from hwnas.layers import operator
from hwnas.op import OpSpec
from hwnas.space import Decision, SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
LAYERS = 5
POOLED = (1, 2, 5)


@operator("alexnet_head", vector=True)
def alexnet_head(op: OpSpec) -> nn.Module:
    """Three linear layers on all pixels of a map, two of them `hidden` wide with ReLU; `stride` is the larger side of the input."""
    first = nn.Linear(op.c_in * op.height * op.width, op.hidden)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(op.hidden, op.hidden), nn.ReLU(), nn.Linear(op.hidden, op.c_out))


class AlexNet(SearchSpace):
    """Every convolution keeps the size of its map; a 3x3 pooling of stride 2 halves it three times."""

    small: ClassVar[dict[str, Any]] = {"input_size": 16, "filters": [4, 6], "kernels": [1, 3], "linear_width": 16}

    def __init__(
        self,
        *,
        input_size: Annotated[int, Field(ge=8)] = 32,
        channels: Positive = 3,
        classes: Annotated[int, Field(ge=2)] = 10,
        filters: Annotated[list[Positive], Field(min_length=1)] = [8, 16, 32, 48, 64],  # noqa: B006
        kernels: Annotated[list[Literal[1, 3, 5, 7, 9, 11]], Field(min_length=1)] = [3, 5, 7, 9],  # noqa: B006
        linear_width: Positive = 256,
    ) -> None:
        slots: list[Slot] = []
        sites: list[Site] = []
        side = input_size
        sources: list[tuple[str, int, tuple[Decision, ...]]] = [("input", channels, ())]
        for layer in range(1, LAYERS + 1):
            name, slot = f"conv{layer}", len(slots)
            slots += [Slot(f"{name}.filters", tuple(map(str, filters))), Slot(f"{name}.kernel", tuple(map(str, kernels)))]
            outputs: list[tuple[str, int, tuple[Decision, ...]]] = []
            for choice, width in enumerate(filters):
                node, decision = f"{name}@{width}", (slot, choice)
                for source, c_in, decisions in sources:
                    for k, kernel in enumerate(kernels):
                        op = OpSpec("conv_bn_relu", c_in, width, side, side, kernel)
                        sites.append(Site(op, (source,), node, (*decisions, decision, (slot + 1, k))))
                if layer in POOLED:
                    sites.append(Site(OpSpec("max_pool", width, width, side, side, 3, 2), (node,), f"pool{layer}@{width}"))
                    node = f"pool{layer}@{width}"
                outputs.append((node, width, (decision,)))
            sources, side = outputs, -(-side // 2) if layer in POOLED else side
        for source, c_in, decisions in sources:
            head = OpSpec("alexnet_head", c_in, classes, side, side, stride=side, hidden=linear_width)
            sites.append(Site(head, (source,), "output", decisions))
        super().__init__((channels, input_size, input_size), classes, tuple(slots), tuple(sites))
