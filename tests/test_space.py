"""Sites, decisions, dead branches, and the ways to name an architecture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas import plugins
from hwnas.cost import CostModel
from hwnas.errors import ConfigError, SpaceError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace, Site, Slot, load_space
from hwnas.supernet import Supernet

OP = OpSpec("identity", 4, 4, 8, 8)
SLOT = (Slot("s", ("x", "y")),)


def space_of(*sites: Site, slots: tuple[Slot, ...] = SLOT) -> SearchSpace:
    return SearchSpace((4, 8, 8), 4, slots, sites, name="made")


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([Site(OP, ("b",), "output")], "reads node 'b', which no earlier site of made writes"),
        ([Site(OP, ("input",), "a")], "no site of made writes the output node 'output'"),
        ([Site(OP, ("input",), "output", ((0, 0), (0, 1)))], "names a slot twice"),
        ([Site(OP, ("input",), "output", ((1, 0),))], "decision (1, 0), which does not exist"),
        ([Site(OP, ("input",), "output", ((0, 2),))], "decision (0, 2), which does not exist"),
        ([Site(OP, ("input",), "output", ((-1, 0),))], "decision (-1, 0), which does not exist"),
    ],
)
def test_broken_sites_are_refused(sites: list[Site], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        space_of(*sites)
    assert message in str(caught.value)


def test_a_node_has_one_shape() -> None:
    other = OpSpec("conv_bn", 4, 6, 8, 8)
    space = space_of(Site(OP, ("input",), "output"), Site(other, ("input",), "output"))
    with pytest.raises(SpaceError, match="node 'output' of made is written with shapes"):
        space.node_shape("output")


@pytest.mark.parametrize(
    ("arch", "active", "alive", "kinds"),
    [
        ((0, 0), (0, 3, 5), (0, 3, 5), "conv_bn identity classifier"),
        ((1, 0), (0, 1, 3, 5), (0, 3, 5), "conv_bn identity classifier"),
        ((2, 0), (0, 2, 3, 5), (0, 3, 5), "conv_bn identity classifier"),
        ((0, 1), (0, 3, 4, 5), (0, 3, 5), "conv_bn identity classifier"),
        ((1, 1), (0, 1, 3, 4, 5), (0, 1, 3, 4, 5), "conv_bn conv_bn identity identity add classifier"),
        ((2, 1), (0, 2, 3, 4, 5), (0, 2, 3, 4, 5), "conv_bn conv_bn identity identity add classifier"),
    ],
)
def test_dead_branches_are_gone(
    diamond: SearchSpace, arch: tuple[int, int], active: tuple[int, ...], alive: tuple[int, ...], kinds: str
) -> None:
    assert diamond.active(arch) == tuple(diamond.sites[i] for i in active)
    assert diamond.alive(arch) == alive
    assert diamond.graph(arch) == tuple(diamond.sites[i] for i in alive)
    assert [op.kind for op in diamond.lower(arch)] == kinds.split()


RELU, CONV, ADD = (OpSpec(kind, 4, 4, 8, 8) for kind in ("relu", "conv_bn", "add"))
HEAD = OpSpec("classifier", 4, 4, 8, 8, stride=8)


def twins() -> SearchSpace:
    """`a` is the input handed on or a convolution of it; both are read through a ReLU, whose sum is the output."""
    return space_of(
        Site(RELU, ("input",), "input.relu", weightless=True),
        Site(OP, ("input",), "a", ((0, 0),)),
        Site(CONV, ("input",), "a", ((0, 1),)),
        Site(RELU, ("a",), "a.relu", weightless=True),
        Site(OP, ("input.relu",), "sum"),
        Site(OP, ("a.relu",), "sum"),
        Site(HEAD, ("sum",), "output"),
    )


def test_what_has_no_weights_is_computed_once_for_the_same_value() -> None:
    space = twins()
    assert space.operators() == (ADD, HEAD, CONV, OP, RELU)
    assert Counter(space.lower((0,))) == {OP: 3, RELU: 1, ADD: 1, HEAD: 1}
    assert space.lower((1,)) == (RELU, CONV, RELU, OP, OP, ADD, HEAD)
    assert [site.inputs for site in space.steps((0,))] == [("input",), ("input.relu",), ("input.relu",), ("sum",)]
    model = CostModel(space, {RELU: 1.0, CONV: 10.0, ADD: 100.0, HEAD: 1000.0, OP: 0.0})
    assert model.of([(0,), (1,)]).tolist() == [1101, 1112]
    assert float(model(torch.tensor([[0.25, 0.75]]))) == 0.25 * 1101 + 0.75 * 1112
    network = Network(space, (0,))
    ran: list[str] = []
    for name, module in network.sites.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    images = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(network(images), network.sites["6"](2 * images.relu()))
    assert ran[:2] == ["0", "6"]


def test_a_weightless_site_is_unconditional_and_alone() -> None:
    for sites in (
        [Site(RELU, ("input",), "output", ((0, 0),), weightless=True)],
        [Site(RELU, ("input",), "output", weightless=True), Site(OP, ("input",), "output")],
    ):
        with pytest.raises(SpaceError, match="weightless site relu:4-4:8x8 of made must hang on no decision"):
            space_of(*sites)


NODES = "input", "a", "b", "c", "d", "output"


@st.composite
def wirings(draw: st.DrawFn) -> list[Site]:
    """Sites between nodes that stand in topological order, the output written at least once."""
    edges = st.integers(1, 5).flatmap(
        lambda target: st.tuples(st.sets(st.integers(0, target - 1), min_size=1, max_size=2), st.just(target))
    )
    chosen = [*draw(st.lists(edges, max_size=9)), *(({target - 1}, target) for target in range(1, 6))]
    sites = [(tuple(NODES[source] for source in sorted(sources)), target) for sources, target in sorted(chosen, key=lambda edge: edge[1])]
    return [Site(OP, inputs, NODES[target]) for inputs, target in sites]


def on_a_path(space: SearchSpace, indices: Sequence[int], wanted: int) -> bool:
    """Whether some chain of the sites `indices`, each reading what the one before wrote, goes through `wanted`."""

    def reaches(node: str, end: str) -> bool:
        return node == end or any(node in space.sites[i].inputs and reaches(space.sites[i].output, end) for i in indices)

    site = space.sites[wanted]
    return any(reaches(space.input, node) for node in site.inputs) and reaches(site.output, space.output)


@given(wirings(), st.data())
def test_pruning_keeps_exactly_what_lies_on_a_path(sites: list[Site], data: st.DataObject) -> None:
    space = space_of(*sites)
    indices = sorted(data.draw(st.sets(st.integers(0, len(sites) - 1))))
    assert space.prune(indices) == tuple(i for i in indices if on_a_path(space, indices, i))


def test_check_says_what_is_wrong(diamond: SearchSpace) -> None:
    assert diamond.check([2, 1]) == (2, 1)
    for arch, message in (
        ((0,), "has 2 choices, but got 1"),
        ((0, 2), "slot right of diamond has choices 0..1, but got 2"),
        ((-1, 0), "got -1"),
    ):
        with pytest.raises(SpaceError, match=message):
            diamond.check(arch)
        assert not diamond.is_valid(arch)
    space = space_of(Site(OP, ("input",), "output", ((0, 1),)))
    assert space.is_valid((1,))
    with pytest.raises(SpaceError, match="s=x of made has no path from its input to its output"):
        space.check((0,))


def test_size_and_enumeration(diamond: SearchSpace) -> None:
    archs = list(diamond.all())
    assert archs == sorted(archs) == [(left, right) for left in range(3) for right in range(2)]
    assert diamond.size == 6
    assert diamond.num_choices == (3, 2)
    operators = {*(site.op for site in diamond.sites), OpSpec("add", 4, 4, 8, 8)}
    assert diamond.operators() == tuple(sorted(operators, key=str))


def test_random_architectures_are_uniform_over_the_valid_and_follow_the_generator() -> None:
    slots = (Slot("s", ("x", "y")), Slot("t", ("x", "y")))
    space = space_of(
        Site(OP, ("input",), "a", ((0, 0),)), Site(OP, ("a",), "output"), Site(OP, ("input",), "output", ((1, 0),)), slots=slots
    )
    drawn = [space.random(np.random.default_rng(5)) for _ in range(3)]
    assert len(set(drawn)) == 1
    rng = np.random.default_rng(0)
    archs, counts = np.unique([space.random(rng) for _ in range(3000)], axis=0, return_counts=True)
    assert archs.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert abs(counts - 1000).max() < 100


def test_a_space_without_a_path_says_so(rng: np.random.Generator) -> None:
    slots = tuple(Slot(f"s{i}", tuple("abcdefgh")) for i in range(8))
    space = space_of(Site(OP, ("input",), "output", tuple((i, 0) for i in range(8))), slots=slots)
    with pytest.raises(SpaceError, match="none of 1000 random architectures of made"):
        space.random(rng)


def test_parse_reads_numbers_and_labels(diamond: SearchSpace) -> None:
    assert diamond.describe((2, 1)) == "left=conv3 right=skip"
    for text in ("2,1", "2 1", "left=conv3 right=skip", "right=skip, left=conv3"):
        assert diamond.parse(text) == (2, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "2,1,0",
        "2,9",
        "--2,1",
        "²,1",
        "left=conv3",
        "left=conv3 right=skip right=none",
        "left=conv9 right=skip",
        "left=conv3 wrong=skip",
        "x",
    ],
)
def test_parse_refuses_everything_else(diamond: SearchSpace, text: str) -> None:
    with pytest.raises(SpaceError):
        diamond.parse(text)


def test_id_is_the_content_not_the_options() -> None:
    default, same, other = (load_space("nasbench201", options) for options in ({}, {"width": 16}, {"width": 8}))
    assert default.id == same.id != other.id
    assert default.id.startswith("nasbench201-")
    relabelled = space_of(Site(OP, ("input",), "output"), slots=(Slot("s", ("x", "z")),))
    assert relabelled.id != space_of(Site(OP, ("input",), "output")).id


def test_loading_keeps_the_options_as_json() -> None:
    space = load_space("mobilenet_v2", {"stages": [{"widths": [8, 16]}], "kernels": [3]})
    assert json.loads(json.dumps(space.options)) == space.options
    assert space.options["stages"] == [{"widths": [8, 16], "depth": 2, "stride": 1, "kernels": None, "expansions": None}]
    assert load_space("mobilenet_v2", space.options).id == space.id
    with pytest.raises(ConfigError, match="did you mean 'kernels'"):
        load_space("mobilenet_v2", {"kernel": [3]})


def recurrent() -> SearchSpace:
    """Three steps of one convolution, tied, and the rule that a reader stands only where nobody else reads its node."""

    class Ruled(SearchSpace):
        expectable = False

        def chosen(self, arch: Architecture) -> list[int]:
            return [i for i in super().chosen(arch) if i != 4 or arch == (0,)]

    sites = (
        Site(CONV, ("input",), "a", tied="w"),
        Site(CONV, ("a",), "b", tied="w"),
        Site(CONV, ("b",), "c", ((0, 0),), tied="w"),
        Site(OP, ("b",), "c", ((0, 1),)),
        Site(OP, ("a",), "c"),
        Site(HEAD, ("c",), "output"),
    )
    return Ruled((4, 8, 8), 4, (Slot("s", ("again", "stop")),), sites, name="recurrent")


def test_tied_sites_share_a_module_and_a_rule_chooses_sites() -> None:
    space = recurrent()
    assert space.alive((0,)) == (0, 1, 2, 4, 5)
    assert space.alive((1,)) == (0, 1, 3, 5)
    assert space.stored((0,)) == (CONV, OP, HEAD)
    assert space.lower((0,)) == (CONV, CONV, CONV, OP, ADD, HEAD)
    supernet = Supernet(space, torch.Generator().manual_seed(0)).eval()
    assert sorted(supernet.sites) == ["0", "3", "4", "5"]
    network = supernet.extract((0,)).eval()
    assert sorted(network.sites) == ["0", "4", "5"]
    images = torch.randn(2, 4, 8, 8)
    once = network.sites["0"]
    torch.testing.assert_close(network(images), network.sites["5"](once(once(once(images))) + once(images)))
    torch.testing.assert_close(supernet(images, torch.tensor([[1.0, 0.0]])), network(images))
    with pytest.raises(SpaceError, match="chooses its operators by a rule"):
        supernet(images, torch.tensor([[0.5, 0.5]]))


def test_what_is_stored_once_is_priced_once() -> None:
    space = recurrent()
    prices = {CONV: 1.0, OP: 10.0, ADD: 100.0, HEAD: 1000.0}
    assert CostModel(space, prices).of([(0,), (1,)]).tolist() == [1113, 1012]
    assert CostModel(space, prices, once=True).of([(0,), (1,)]).tolist() == [1011, 1011]
    with pytest.raises(SpaceError, match="recurrent prices its networks one by one"):
        CostModel(space, prices)(torch.tensor([[0.5, 0.5]]))


def test_only_equal_operators_are_tied() -> None:
    with pytest.raises(SpaceError, match="is tied as 'w' to another operator"):
        space_of(Site(CONV, ("input",), "a", tied="w"), Site(OP, ("a",), "output", tied="w"))


def test_swapped_nodes_of_a_cell_are_one_network() -> None:
    """Nodes 1 and 2 may change places where no edge joins them: edges (0,1) (0,2) and (1,3) (2,3) with them."""
    space = load_space("nasbench201", {"input_size": 16, "width": 4, "cells": 1})
    identities: dict[bytes, set[Architecture]] = {}
    rng = np.random.default_rng(0)
    for arch in [space.random(rng) for _ in range(60)]:
        a, b, _, c, d, e = arch
        for one in (arch, (a, b, 0, c, d, e), (b, a, 0, c, e, d)):
            if space.graph(one):
                identities.setdefault(space.identity(one), set()).add(one)
        if space.graph((a, b, 0, c, d, e)):
            assert space.identity((a, b, 0, c, d, e)) == space.identity((b, a, 0, c, e, d))
    for same in identities.values():
        assert len({tuple(sorted(str(site.op) for site in space.steps(arch))) for arch in same}) == 1
    assert len(identities) > 60


def test_a_prefix_is_completed_by_what_hands_on(diamond: SearchSpace) -> None:
    assert diamond.rest == (0, 1)  # `left` has no choice that hands on, `right` has skip
    assert diamond.completed((2,)) == (2, 1)
    assert diamond.extensions((2,)) == [(2, 0), (2, 1)]
    assert load_space("nasbench201", {"width": 4, "cells": 1}).rest == (1,) * 6


def test_twins_are_the_same_network_written_otherwise() -> None:
    space = load_space("nasbench201", {"width": 4, "cells": 1})
    assert space.twins((2, 3, 0, 1, 4, 2)) == [(3, 2, 0, 1, 2, 4)]
    assert space.twins((2, 3, 1, 1, 4, 2)) == []  # one node reads the other
    assert space.twins((2, 2, 0, 1, 4, 4)) == []  # nothing changes
    cells = load_space("enas_micro", plugins.load("spaces", "enas_micro").small)
    rng = np.random.default_rng(0)
    arch = next(arch for arch in iter(lambda: cells.random(rng), ()) if arch[:2] != arch[2:4])
    assert (*arch[2:4], *arch[:2], *arch[4:]) in cells.twins(arch)
