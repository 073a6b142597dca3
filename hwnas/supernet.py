"""All sites of a space at once, under given probabilities of the choices, with weights that every network shares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hwnas import layers
from hwnas.errors import SpaceError
from hwnas.network import Network, execute
from hwnas.space import Decision, SearchSpace


class Supernet(nn.Module):
    """`forward(images, probs)`: every site's output weighted by the probability of the decisions that choose it.

    Where a decision holds for everything that reaches a node (the width of a stage), its probability is applied once,
    where the node is read beside its alternatives: earlier, the next BatchNorm would take it away again. A site is
    also weighted by the probability that something feeds it, so that under one-hot probabilities the output is exactly
    that of the network (a BatchNorm of zeros is not zero), and the supernet is continuous there.

    Every image may have probabilities of its own, (batch, slot, choice). In eval mode each then gets what it would get
    alone; in train mode BatchNorm takes its statistics over all images, those too that do not use what a site writes.
    """

    def __init__(self, space: SearchSpace, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.space = space
        held = sorted(set(map(space.module_index, range(len(space.sites)))))
        self.sites = nn.ModuleDict({str(i): layers.build(space.sites[i].op) for i in held})
        if generator is not None:
            layers.initialise(self, generator)

    def forward(
        self, images: Float[Tensor, "batch channel height width"], probs: Float[Tensor, "*each slot choice"]
    ) -> Float[Tensor, "batch classes *steps"]:
        """Logits under `probs`, each slot's row padded with zeros behind its last choice; sites of weight 0 do not run.

        Raises:
            SpaceError: soft rows or rows for each image, where the space has a rule of its own for what an architecture chooses.
        """
        if not self.space.expectable:
            if probs.ndim > 2 or not bool(((probs == 0) | (probs == 1)).all()):
                raise SpaceError(
                    f"{self.space.name} chooses its operators by a rule, so its networks cannot be mixed; "
                    "use a searcher that trains one network at a time"
                )
            return self.of(images, probs.argmax(-1).tolist())
        indices, weights, scale = self._weights(probs.movedim((-2, -1), (0, 1)))
        logits = execute(self.space, indices, self.sites, images, weights)
        return logits * scale.reshape(-1, *[1] * (logits.ndim - 1))

    def of(self, images: Float[Tensor, "batch channel height width"], arch: Sequence[int]) -> Float[Tensor, "batch classes *steps"]:
        """Logits of one architecture's network with the shared weights."""
        return execute(self.space, self.space.alive(arch), self.sites, images)

    def extract(self, arch: Sequence[int]) -> Network:
        """A network of its own with a copy of the shared weights."""
        network = Network(self.space, arch)
        with torch.no_grad():
            shared = self.state_dict()
            network.load_state_dict({name: shared[name] for name in network.state_dict()})
        return network

    @cached_property
    def _gates(self) -> tuple[list[tuple[Decision, ...]], tuple[Decision, ...]]:
        """The decisions applied at each site, and those left for the output node."""
        sites = self.space.sites
        carried: dict[str, frozenset[Decision]] = {self.space.input: frozenset()}
        held: list[frozenset[Decision]] = []
        for site in sites:
            decisions = frozenset(site.when) | frozenset.intersection(*(carried[node] for node in site.inputs))
            held.append(decisions)
            carried[site.output] = carried.get(site.output, decisions) & decisions
        gates = [tuple(sorted(decisions - carried[site.output])) for site, decisions in zip(sites, held, strict=True)]
        return gates, tuple(sorted(carried[self.space.output]))

    def _weights(self, probs: Tensor) -> tuple[list[int], dict[int, Tensor], Tensor]:
        gates, last = self._gates
        one = probs.new_ones(())
        support = (probs.detach() > 0).reshape(*probs.shape[:2], -1).any(-1)
        possible = [i for i, s in enumerate(self.space.sites) if all(bool(support[d]) for d in s.when)]
        indices = list(self.space.prune(possible))
        fed: dict[str, Tensor] = {self.space.input: one}
        groups: dict[str, dict[tuple[int, ...], Tensor]] = {}
        weights: dict[int, Tensor] = {}
        for i in indices:
            site = self.space.sites[i]
            for node in site.inputs:
                if node not in fed:
                    starved = one
                    for share in groups.get(node, {}).values():
                        starved = starved * (1 - share).clamp_min(0)
                    fed[node] = 1 - starved
            reached = one
            for node in site.inputs:
                reached = reached * (1 - fed[node])
            weight = 1 - reached
            for decision in gates[i]:
                weight = weight * probs[decision]
            weights[i] = weight
            slots = tuple(slot for slot, _ in gates[i])
            shares = groups.setdefault(site.output, {})
            shares[slots] = shares[slots] + weight if slots in shares else weight
        scale = one
        for decision in last:
            scale = scale * probs[decision]
        return indices, weights, scale
