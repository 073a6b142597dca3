"""The recurrent cell of NAO and ENAS: its published counts, its equations, weights that all steps share, a whole search on text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hwnas import resources
from hwnas.config import Experiment, parse
from hwnas.cost import CostModel
from hwnas.device import Device
from hwnas.errors import ConfigError
from hwnas.exporters.onnx import ONNX
from hwnas.front import export_run, front_of
from hwnas.network import Network
from hwnas.profile import network_onnx
from hwnas.run import Run
from hwnas.search import run_search
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.spaces.rnn_cell import ACTIVATIONS, RNNCell
from hwnas.supernet import Supernet
from hwnas.verify import graph_faults, verify

SMALL = {"nodes": 3, "hidden": 6, "vocabulary": 9, "steps": 4}


def cell_space(**options: object) -> RNNCell:
    space = load_space("rnn_cell", {**SMALL, **options})
    assert isinstance(space, RNNCell)
    return space


def windows(space: SearchSpace, n: int = 5) -> Tensor:
    return torch.randint(space.classes, (n, *space.input_shape), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize(("nodes", "published"), [(11, 1.7e14), (9, 9.5e10)], ids=["NAO", "ENAS"])
def test_published_numbers_of_cells(nodes: int, published: float) -> None:
    space = load_space("rnn_cell", {"nodes": nodes, "steps": 2})
    assert space.size == math.factorial(nodes) * 4**nodes
    assert space.size == pytest.approx(published, rel=0.02)


def by_hand(network: Network, tokens: Tensor, include_first: bool) -> Tensor:
    """The logits by the published equations, token after token."""
    space = network.space
    assert isinstance(space, RNNCell)
    modules = {i: network.sites[str(space.module_index(i))] for i in network.indices}
    held = {space.sites[i].tied: module for i, module in modules.items()}
    embedding, decoder = modules[network.indices[0]], modules[network.indices[-1]]

    def highway(x: Tensor, s: Tensor, layer: nn.Module, activation: str) -> Tensor:
        c, g = x @ layer.transfer.weight.T, x @ layer.candidate.weight.T  # type: ignore[operator, union-attr]
        acts: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}
        found: Tensor = s + torch.sigmoid(c) * (acts.get(activation, torch.clone)(g) - s)
        return found

    h = torch.zeros(len(tokens), SMALL["hidden"])
    logits = []
    for t in range(tokens.shape[2]):
        x = embedding.weight[tokens[:, 0, t, 0].long()]  # type: ignore[index]
        states = [highway(torch.cat([x, h], 1), h, held["n0"], "tanh")]
        for node, (earlier, activation) in enumerate(space.cell(network.arch), 1):
            states.append(highway(states[earlier], states[earlier], held[f"n{node}.{earlier}.{activation}"], activation))
        h = torch.stack(states if include_first else states[1:]).mean(0)
        logits.append(h @ embedding.weight.T if decoder is embedding else decoder.body(h[:, :, None, None])[:, :, 0])  # type: ignore[operator]
    return torch.stack(logits, 2)


@pytest.mark.parametrize("include_first", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_networks_compute_the_published_equations(rng: np.random.Generator, include_first: bool, tied: bool) -> None:
    space = cell_space(include_first=include_first, tied=tied)
    tokens = windows(space)
    for seed in range(4):
        network = Network(space, space.random(rng), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(network(tokens), by_hand(network, tokens, include_first))


def test_a_token_is_predicted_from_those_before_it_alone(rng: np.random.Generator) -> None:
    space = cell_space()
    network = Network(space, space.random(rng), torch.Generator().manual_seed(0))
    tokens = windows(space)
    changed = tokens.clone()
    changed[:, :, 2] = (changed[:, :, 2] + 1) % space.classes
    before, after = network(tokens), network(changed)
    assert before.shape == (5, *space.output_shape) == (5, 9, 4)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.isclose(before[:, :, 2:], after[:, :, 2:]).all()


def test_tokens_out_of_range_are_the_nearest(rng: np.random.Generator) -> None:
    space = cell_space()
    network = Network(space, space.random(rng))
    assert torch.equal(network(windows(space).clamp_min(8) + 5), network(torch.full((5, 1, 4, 1), 8.0)))
    assert torch.equal(network(windows(space) - 9), network(torch.zeros(5, 1, 4, 1)))


@pytest.mark.parametrize("tied", [True, False])
def test_every_step_has_the_same_weights_and_every_choice_its_own(rng: np.random.Generator, tied: bool) -> None:
    space = cell_space(tied=tied)
    hidden, vocabulary, nodes = SMALL["hidden"], SMALL["vocabulary"], SMALL["nodes"]
    fixed = hidden * vocabulary * (1 if tied else 2) + (0 if tied else vocabulary) + 2 * hidden * 2 * hidden
    highway = 2 * hidden * hidden
    network = Network(space, space.random(rng))
    assert sum(p.numel() for p in network.parameters()) == fixed + nodes * highway
    choices = sum(node * len(ACTIVATIONS) for node in range(1, nodes + 1))
    assert sum(p.numel() for p in Supernet(space).parameters()) == fixed + choices * highway
    counted = CostModel(space, resources.params, metric="params", once=True)
    assert float(counted.of([network.arch])[0]) == fixed + nodes * highway


def test_every_node_is_in_every_network(rng: np.random.Generator) -> None:
    space = cell_space()
    for _ in range(20):
        arch = space.random(rng)
        assert list(space.alive(arch)) == space.chosen(arch)
        assert sum(site.op.kind.startswith("highway") for site in space.graph(arch)) == SMALL["nodes"] * SMALL["steps"]


def renumbered(cell: list[tuple[int, str]], order: tuple[int, ...]) -> set[tuple[int, int, str]]:
    number = {0: 0, **dict(enumerate(order, 1))}
    return {(number[node], number[earlier], activation) for node, (earlier, activation) in enumerate(cell, 1)}


def test_cells_that_differ_in_the_numbers_of_their_nodes_are_one(rng: np.random.Generator) -> None:
    space = cell_space()
    drawn = [space.random(rng) for _ in range(60)]

    def same(a: Architecture, b: Architecture) -> bool:
        orders = itertools.permutations(range(1, SMALL["nodes"] + 1))
        return any(renumbered(space.cell(a), order) == renumbered(space.cell(b), (1, 2, 3)) for order in orders)

    for a, b in itertools.combinations(drawn, 2):
        assert (space.identity(a) == space.identity(b)) == same(a, b), (a, b)
    two = load_space("rnn_cell", {**SMALL, "nodes": 2})
    assert len({two.identity(arch) for arch in two.all()}) == 10 + 16, "two leaves in no order, or a chain"
    assert len({SearchSpace.identity(two, arch) for arch in two.all()}) == two.size, "which joins as an ordered input tells apart"


def test_a_tied_network_exported_and_measured(rng: np.random.Generator, tmp_path: Path) -> None:
    space = cell_space(tied=True, nodes=1, steps=2)
    network = Network(space, space.random(rng), torch.Generator().manual_seed(0))
    ONNX(Device(backend="onnxruntime")).write(network, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert graph_faults(model) == []
    assert [value.name for value in model.graph.input] == ["tokens"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        (found,) = session.run(None, {"tokens": windows(space, batch).numpy()})
        np.testing.assert_allclose(found, network(windows(space, batch)).detach().numpy(), rtol=0, atol=1e-5)
    stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    assert stored == pytest.approx(sum(p.numel() for p in network.parameters()), abs=20), "no weight is written twice"
    quick = onnxruntime.InferenceSession(network_onnx(space, network.arch, 2), providers=["CPUExecutionProvider"])
    (found,) = quick.run(None, {"input": windows(space, 2).numpy()})
    assert found.shape == (2, *space.output_shape)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tied": True, "embedding": 4}, "a tied decoder needs embedding = hidden, but got 4 and 6"),
        ({"nodes": 0}, "nodes"),
        ({"steps": 1}, "steps"),
        ({"vocabulary": 2}, "vocabulary"),
        ({"activations": ["tanh"]}, "'activations'"),
    ],
)
def test_options_that_make_no_cell(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        cell_space(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["random", "nsga2"])
def test_a_search_on_text_ends_in_verified_models(
    test_data: Path, tmp_path: Path, make_up_tables: Callable[[Path, SearchSpace], None], searcher: str
) -> None:
    text = test_data / "text"
    given = {
        "name": "text",
        "data": {
            "name": "text", "train": str(text / "wikitext2_valid.txt"), "valid": str(text / "wikitext2_test.txt"),
            "vocabulary": 500, "steps": 8, "limit": 1500,
        },
        "space": {"name": "rnn_cell", "nodes": 3, "hidden": 48, "vocabulary": 500, "steps": 8, "tied": True},
        "objectives": ["loss", "latency_ms"],
        "searcher": {"name": searcher},
        "evaluator": {"name": "shared", "epochs": 2, "lr": 1.0, "clip_norm": 0.25, "weight_decay": 1e-5},
        "trials": 12, "batch": 6, "final": {"members": 2, "training": {"epochs": 3, "lr": 1.0, "clip_norm": 0.25, "weight_decay": 1e-5}},
    }  # fmt: skip
    experiment = parse(Experiment, given, "test")
    space = experiment.load_space()
    make_up_tables(tmp_path / "latency_tables", space)
    run = run_search(experiment, tmp_path / "run", tables=tmp_path / "latency_tables")
    trials = run.trials(space)
    assert len({space.identity(trial.arch) for trial in trials}) == 12
    assert all(trial.values["perplexity"] == pytest.approx(math.exp(trial.values["loss"])) for trial in trials)
    folder = export_run(Run.open(tmp_path / "run"), tables=tmp_path / "latency_tables")
    reports = verify(folder)
    assert reports and all(report.passed for report in reports), reports
    checked = {check.name: check.status for report in reports for check in report.checks}
    assert checked["outputs"] == checked["accuracy"] == checked["latency"] == "passed"
    data = experiment.load_data()
    counts = torch.bincount(data.train.labels.flatten(), minlength=500).double() + 1
    unigram = math.exp(-float((counts / counts.sum()).log()[data.valid.labels.flatten()].mean()))
    for member in front_of(run)["members"]:
        assert member["values"]["perplexity"] < 0.9 * unigram, "what follows a word hangs on the word"
        assert member["values"]["test_perplexity"] < unigram
