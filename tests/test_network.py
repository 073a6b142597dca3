"""One architecture as a module: what runs, what is added to what, which weights it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas import layers
from hwnas.errors import SpaceError
from hwnas.network import Network, execute
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot
from hwnas.supernet import Supernet


def images_of(space: SearchSpace, n: int = 2) -> Tensor:
    return torch.randn(n, *space.input_shape, generator=torch.Generator().manual_seed(0))


def test_nodes_are_sums_of_what_their_sites_wrote(diamond: SearchSpace) -> None:
    network = Network(diamond, (2, 1), torch.Generator().manual_seed(1)).eval()
    stem, conv, classifier = (network.sites[str(i)] for i in (0, 2, 5))
    images = images_of(diamond)
    a = stem(images)
    torch.testing.assert_close(network(images), classifier(a + conv(a)))


def test_a_network_holds_its_live_operators_only(diamond: SearchSpace) -> None:
    assert [list(Network(diamond, arch).sites) for arch in [(2, 0), (2, 1)]] == [["0", "3", "5"], ["0", "2", "3", "4", "5"]]


def test_its_weights_are_a_part_of_the_supernets(space: SearchSpace, rng: np.random.Generator) -> None:
    whole = Supernet(space).state_dict()
    part = Network(space, space.random(rng)).state_dict()
    assert {name: tensor.shape for name, tensor in part.items()}.items() <= {name: tensor.shape for name, tensor in whole.items()}.items()


def test_an_architecture_of_another_space_is_refused(diamond: SearchSpace) -> None:
    with pytest.raises(SpaceError, match="slot left of diamond has choices"):
        Network(diamond, (3, 0))


def test_weights_follow_from_the_generator(diamond: SearchSpace) -> None:
    one, same, other = (Network(diamond, (2, 1), torch.Generator().manual_seed(seed)).eval()(images_of(diamond)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


class Concatenation(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([one, other], 1)


def test_a_dead_input_beside_live_ones_is_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_KINDS", dict(layers._KINDS))
    layers.operator("concatenation")(lambda op: Concatenation())
    skip = OpSpec("identity", 3, 3, 4, 4)
    sites = (
        Site(skip, ("input",), "a", ((0, 0),)),
        Site(skip, ("input",), "b", ((1, 0),)),
        Site(OpSpec("concatenation", 6, 6, 4, 4), ("a", "b"), "both"),
        Site(OpSpec("classifier", 6, 5, 4, 4, stride=4), ("both",), "output"),
    )
    space = SearchSpace((3, 4, 4), 5, (Slot("a", ("x", "none")), Slot("b", ("x", "none"))), sites)
    images = images_of(space)
    zeros = torch.zeros_like(images)
    modules = nn.ModuleDict({str(i): layers.build(site.op) for i, site in enumerate(sites)})
    for arch, expected in [((0, 0), (images, images)), ((0, 1), (images, zeros)), ((1, 0), (zeros, images))]:
        logits = execute(space, space.alive(arch), modules, images)
        torch.testing.assert_close(logits, modules["3"](torch.cat(expected, 1)))
    with pytest.raises(SpaceError, match="no path from the input"):
        execute(space, space.alive((1, 1)), modules, images)
