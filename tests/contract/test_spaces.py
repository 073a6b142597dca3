"""Laws 1 to 5 of the design, over every file of `hwnas/spaces`: a new space is tested before anyone writes a test for it."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas import context, layers, resources
from hwnas.cost import STEPS, CostModel, choice_mask, one_hot
from hwnas.errors import SpaceError
from hwnas.network import Network
from hwnas.op import OpSpec
from hwnas.space import IDENTITY, Architecture, SearchSpace, Site, certificate, load_space
from hwnas.supernet import Supernet

ENUMERABLE = 20_000
"""Architectures that a test goes through one by one."""


def priced(space: SearchSpace, rng: np.random.Generator, offset: float) -> Iterator[tuple[CostModel, Callable[[Architecture], float]]]:
    """Models with prices whose sum betrays every operator that is left out or counted twice, and that sum: plain, and in context."""
    more = context.contextual(space)
    for beside in ((), more) if more else ((),):
        prices = {op: float(rng.uniform(0.1, 10)) for op in (*space.operators(), *beside)}

        def total(arch: Architecture, prices: dict[OpSpec, float] = prices) -> float:
            return offset + sum(prices[op] for op in context.lower_for(space, arch, prices))

        yield CostModel(space, prices, offset=offset, contextual=bool(beside)), total
    prices = {op: float(rng.uniform(0.1, 10)) for op in (*space.operators(), context.PRESSURE)}
    squares = CostModel(space, lambda op: float(op == context.PRESSURE), pressing=True)

    def pressed(arch: Architecture) -> float:
        square = float(squares.of([arch]))
        return offset + sum(prices[op] for op in space.lower(arch)) + prices[context.PRESSURE] * square

    yield CostModel(space, prices, offset=offset, pressing=True), pressed


def test_pressure_is_the_square_of_the_weights(space: SearchSpace, rng: np.random.Generator) -> None:
    model = CostModel(space, lambda op: 0.0, pressing=True)
    archs = sample(space, rng)
    shares = model.counts(archs)[:, -1].sqrt().numpy()
    weights = np.array([sum(map(resources.params, space.lower(arch))) for arch in archs])
    assert (shares <= 1.01).all()
    largest = weights.argmax()
    steps = max(len(space.graph(arch)) for arch in archs) * 0.5 / STEPS
    np.testing.assert_allclose(shares / shares[largest], weights / weights[largest], atol=2 * steps / shares[largest])


def sample(space: SearchSpace, rng: np.random.Generator, n: int = 40) -> list[Architecture]:
    """Valid architectures, half of them with a dead branch where 400 random ones hold as many."""
    drawn = [space.random(rng) for _ in range(400)]
    dead = [arch for arch in drawn if len(space.active(arch)) > len(space.graph(arch))]
    chosen = dead[: n // 2]
    return chosen + drawn[: n - len(chosen)]


def run_onnx(module: nn.Module, images: Tensor) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """The module as an ONNX model (by the quick exporter, which keeps the names of modules), and what ONNX Runtime computes with it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (images,), file, dynamo=False, input_names=["input"], output_names=["output"])  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"])
    (computed,) = session.run(None, {"input": images.numpy()})
    return onnx.load_from_string(file.getvalue()), computed


def lived_in(module: nn.Module, generator: torch.Generator) -> None:
    """Random weights, and BatchNorm statistics as if the module had been trained: zeros do not come out as zeros."""
    layers.initialise(module, generator)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.3, generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.5, generator=generator)


# Law 1


def test_cost_is_the_sum_of_prices(space: SearchSpace, rng: np.random.Generator) -> None:
    archs = sample(space, rng)
    for model, total in priced(space, rng, 0.75):
        expected = torch.tensor([total(arch) for arch in archs], dtype=torch.float64)
        torch.testing.assert_close(model(one_hot(space, archs).double()), expected)
        torch.testing.assert_close(model.of(archs), expected)
        torch.testing.assert_close(0.75 + model.counts(archs) @ model.price, expected)


def test_cost_is_the_sum_of_prices_at_full_size(default_space: SearchSpace, rng: np.random.Generator) -> None:
    archs = sample(default_space, rng)
    for model, total in itertools.islice(priced(default_space, rng, 0.0), 2 if context.contextual(default_space) else 1):
        expected = torch.tensor([total(arch) for arch in archs], dtype=torch.float64)
        torch.testing.assert_close(model(one_hot(default_space, archs).double()), expected)
        torch.testing.assert_close(model.of(archs), expected)


# Law 2


def supports(space: SearchSpace, rng: np.random.Generator) -> list[list[list[int]]]:
    """Choices to spread probability over, slot by slot: all where the space is small, and random parts of at most 512 networks."""
    found = [[list(range(n)) for n in space.num_choices]] if space.size <= ENUMERABLE else []
    for _ in range(6):
        support = [[int(rng.integers(n))] for n in space.num_choices]
        for slot in rng.permutation(len(support)).tolist():
            choices = rng.permutation(space.num_choices[slot])[: int(rng.integers(2, 5))].tolist()
            if math.prod(map(len, support)) * len(choices) <= 512:
                support[slot] = choices
        found.append(support)
    return found


def test_expectation_is_the_mean_over_all_networks(space: SearchSpace, rng: np.random.Generator) -> None:
    models = list(priced(space, rng, 0.5))
    for model, _ in models:
        if not model.expects:
            with pytest.raises(SpaceError, match="search it with a searcher that prices whole architectures"):
                model(choice_mask(space) / choice_mask(space).sum(-1, keepdim=True))
    models = [(model, total) for model, total in models if model.expects]
    if not models:
        pytest.skip(f"{space.name} has no expected cost")
    every = supports(space, rng)
    few = every[-3:]
    for (model, total), support in itertools.product(models, every):
        if (model.contextual or model.pressing) and support not in few:
            continue  # to lower all networks once is enough
        grid = np.stack(np.meshgrid(*map(np.array, support), indexing="ij"), -1).reshape(-1, len(support))
        costs = torch.tensor([total(arch) for arch in map(tuple, grid.tolist())], dtype=torch.float64)
        allowed = torch.zeros(choice_mask(space).shape, dtype=torch.bool)
        for slot, choices in enumerate(support):
            allowed[slot, choices] = True
        logits = torch.as_tensor(rng.normal(size=allowed.shape)).requires_grad_()
        probs = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        weights = probs[torch.arange(len(support)), torch.as_tensor(grid)].prod(-1)
        mean = weights @ costs
        expected = model(probs)
        torch.testing.assert_close(expected, mean, rtol=1e-10, atol=1e-10)
        by_model, by_force = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (expected, mean))
        torch.testing.assert_close(by_model, by_force, rtol=1e-8, atol=1e-8)


def test_gradient_of_the_expectation_is_the_numerical_one(space: SearchSpace, rng: np.random.Generator) -> None:
    models = [model for model, _ in priced(space, rng, 0.0) if model.expects]
    if not models:
        pytest.skip(f"{space.name} has no expected cost")
    padding = ~choice_mask(space)
    for model in models:
        logits = torch.as_tensor(rng.normal(size=choice_mask(space).shape)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, model=model: model(x.masked_fill(padding, -torch.inf).softmax(-1)), (logits,))


# Law 3


def test_operators_parse(default_space: SearchSpace) -> None:
    for op in default_space.operators():
        assert OpSpec.parse(str(op)) == op


def test_operators_count_build_run_and_export(default_operators: list[OpSpec]) -> None:
    generator = torch.Generator().manual_seed(0)
    for op in default_operators:
        assert resources.count(op).params >= 0
        module = layers.build(op).eval()
        lived_in(module, generator)
        image = torch.randn(2, op.c_in, op.height, op.width, generator=generator)
        with torch.inference_mode():
            out = module(image)
        assert tuple(out.shape) == (2, *layers.output_shape(op)), op
        _, computed = run_onnx(module, image)
        np.testing.assert_allclose(computed, out.numpy(), rtol=1e-4, atol=1e-4, err_msg=str(op))


def test_what_is_called_weightless_is(default_space: SearchSpace) -> None:
    for op in {site.op for site in default_space.sites if site.weightless}:
        assert not layers.build(op).state_dict(), op


def test_nodes_have_the_shapes_that_their_readers_expect(default_space: SearchSpace) -> None:
    for site in default_space.sites:
        shapes = [default_space.node_shape(node) for node in site.inputs]
        below = (shapes[0][0], sum(shape[1] for shape in shapes), shapes[0][2])  # joined along the height
        if len(shapes) > 1 and below == (site.op.c_in, site.op.height, site.op.width):
            continue
        assert all(shape[1:] == (site.op.height, site.op.width) for shape in shapes), site
        assert sum(shape[0] for shape in shapes) == site.op.c_in or all(shape[0] == site.op.c_in for shape in shapes), site


# Law 4


def test_network_is_the_supernet_under_one_hot_probabilities(space: SearchSpace, rng: np.random.Generator) -> None:
    generator = torch.Generator().manual_seed(1)
    supernet = Supernet(space).eval()
    lived_in(supernet, generator)
    images = torch.randn(2, *space.input_shape, generator=generator)
    ran: list[int] = []
    for name, module in supernet.sites.items():
        module.register_forward_hook(lambda *_, i=int(name): ran.append(i))
    for arch in sample(space, rng):
        network = supernet.extract(arch).eval()
        ran.clear()
        with torch.inference_mode():
            out = supernet(images, one_hot(space, [arch])[0])
        computing = [space.module_index(i) for i in space.alive(arch) if space.sites[i].op.kind != IDENTITY]
        assert ran == computing or not space.expectable, space.describe(arch)
        ran.clear()
        for name, module in network.sites.items():
            module.register_forward_hook(lambda *_, i=int(name): ran.append(i))
        with torch.inference_mode():
            torch.testing.assert_close(out, network(images), rtol=1e-5, atol=1e-6)
            computed = Counter(site.op for site in space.steps(arch) if site.op.kind != IDENTITY)
            assert Counter(space.sites[i].op for i in ran) == computed, space.describe(arch)
            torch.testing.assert_close(supernet.of(images, arch), network(images), rtol=1e-5, atol=1e-6)


def test_supernet_is_continuous_at_one_hot_probabilities(space: SearchSpace, rng: np.random.Generator) -> None:
    if not space.expectable:
        pytest.skip(f"the networks of {space.name} cannot be mixed")
    generator = torch.Generator().manual_seed(2)
    supernet = Supernet(space).eval()
    lived_in(supernet, generator)
    images = torch.randn(2, *space.input_shape, generator=generator)
    everything = choice_mask(space) / choice_mask(space).sum(-1, keepdim=True)
    for arch in sample(space, rng, 6):
        hard = one_hot(space, [arch])[0]
        with torch.inference_mode():
            exact = supernet(images, hard)
            near = [float((supernet(images, (1 - e) * hard + e * everything) - exact).abs().max()) for e in (1e-3, 1e-4)]
        assert near[1] < 0.02 * (1 + float(exact.abs().max()))
        assert near[1] < 0.5 * near[0] + 1e-5


# Law 5


def sites_of(model: onnx.ModelProto) -> set[int]:
    """The sites whose modules left a node in the graph, by the names that the exporter takes from the modules."""
    return {int(found[1]) for node in model.graph.node if (found := re.match(r"/sites\.(\d+)/", node.name))}


def test_exported_network_computes_the_same_and_holds_nothing_dead(space: SearchSpace, rng: np.random.Generator) -> None:
    generator = torch.Generator().manual_seed(3)
    for arch in sample(space, rng, 10):
        network = Network(space, arch)
        lived_in(network, generator)
        images = torch.randn(3, *space.input_shape, generator=generator)
        model, computed = run_onnx(network, images)
        with torch.inference_mode():
            expected = network.eval()(images)
        np.testing.assert_allclose(computed, expected.numpy(), rtol=1e-4, atol=1e-4)
        held = set(map(space.module_index, space.alive(arch)))
        working = {i for i in held if resources.count(space.sites[i].op).macs}  # a BatchNorm may have become part of a convolution
        assert working <= sites_of(model) <= held, space.describe(arch)


# What every space promises beside the laws


def test_architectures_are_drawn_described_and_parsed(space: SearchSpace, rng: np.random.Generator) -> None:
    for arch in sample(space, rng):
        assert space.check(arch) == arch
        assert space.parse(",".join(map(str, arch))) == arch
        assert space.parse(space.describe(arch)) == arch


def test_isomorphic_networks_are_one(space: SearchSpace, rng: np.random.Generator) -> None:
    """Other names for the nodes and another order of independent steps change nothing; another operator does."""
    for arch in sample(space, rng, 10):
        steps = list(space.steps(arch))
        same = certificate(steps, space.input, space.output)
        assert same == SearchSpace.identity(space, arch)
        nodes = {node: f"n{i}" for i, node in enumerate(rng.permutation(sorted({site.output for site in steps})).tolist())}
        nodes[space.input] = space.input
        ties = {site.tied: f"t{i}" for i, site in enumerate(reversed(steps)) if site.tied}
        renamed = [
            replace(site, inputs=tuple(nodes.get(n, "dead") for n in site.inputs), output=nodes[site.output], tied=ties.get(site.tied, ""))
            for site in steps
        ]
        assert certificate(shuffled(renamed, space.input, rng), space.input, nodes[space.output]) == same
        changed = int(rng.integers(len(steps)))
        other = replace(steps[changed].op, dilation=steps[changed].op.dilation + 1)
        steps[changed] = replace(steps[changed], op=other)
        assert certificate(steps, space.input, space.output) != same


def shuffled(steps: list[Site], start: str, rng: np.random.Generator) -> list[Site]:
    """The steps in another topological order: what writes a node still stands before what reads it."""
    left, found = steps.copy(), []
    while left:
        unwritten = {site.output for site in left}
        ready = [site for site in left if not unwritten & set(site.inputs)]
        found.append(left.pop(left.index(ready[int(rng.integers(len(ready)))])))
    return found


def test_options_make_the_same_space_again(space: SearchSpace) -> None:
    again = load_space(space.name, space.options)
    assert again.id == space.id
    assert again.options == space.options
    assert again.sites == space.sites


def test_small_version_is_small(space: SearchSpace) -> None:
    assert len(space.sites) <= 2000, "give the space's class `small`, the options of a tiny version"
