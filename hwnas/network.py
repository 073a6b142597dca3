"""Architecture -> nn.Module, and the one walk over a network that it shares with the supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hwnas import layers
from hwnas.errors import SpaceError
from hwnas.space import IDENTITY, Architecture, SearchSpace


def execute(
    space: SearchSpace,
    indices: Sequence[int],
    modules: nn.ModuleDict,
    images: Float[Tensor, "batch channel height width"],
    weights: Mapping[int, Tensor] | None = None,
) -> Float[Tensor, "batch classes *steps"]:
    """The value of the output node where exactly the sites `indices` (topological order, none dead) are there.

    `modules` holds a site's operator under `str(space.module_index(index))`; `weights` scales what a site writes (1 where it is None),
    in all images or in each by a number of its own.
    A dead input of a site that has others is zeros. What is weightless is computed once for the same value.

    Raises:
        SpaceError: the sites hold no path from the input to the output.
    """
    if not indices:
        raise SpaceError(f"there is no path from the input of {space.name} to its output under these choices")
    values: dict[str, Tensor] = {space.input: images}
    computed: dict[tuple[object, ...], Tensor] = {}
    for i in indices:
        site = space.sites[i]
        inputs = [values[n] if n in values else layers.nothing(images, space.node_shape(n)) for n in site.inputs]
        known = (site.op, *map(id, inputs))
        if site.op.kind == IDENTITY:
            out = inputs[0]
        elif site.weightless and known in computed:
            out = computed[known]
        else:
            out = modules[str(space.module_index(i))](*inputs)
            if site.weightless:
                computed[known] = out
        if weights is not None:
            out = out * weights[i].reshape(-1, *[1] * (out.ndim - 1))
        values[site.output] = values[site.output] + out if site.output in values else out
    return values[space.output]


class Network(nn.Module):
    """The network of one architecture: its live operators only, keyed by the index of their site in the space.

    Its state dict is a part of the supernet's. Weights are initialised from `generator` where one is given.

    Raises:
        SpaceError: the architecture is not one of the space's.
    """

    def __init__(self, space: SearchSpace, arch: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.space = space
        self.arch: Architecture = space.check(arch)
        self.indices = space.alive(self.arch)
        held = sorted(set(map(space.module_index, self.indices)))
        self.sites = nn.ModuleDict({str(i): layers.build(space.sites[i].op) for i in held})
        if generator is not None:
            layers.initialise(self, generator)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes *steps"]:
        """Logits of normalised images."""
        return execute(self.space, self.indices, self.sites, images)
