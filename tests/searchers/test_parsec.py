"""PARSEC: the sanity facts of `algorithms.md`, section 4, and what the searcher does around them."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas import plugins, resources
from hwnas.checkpoint import load_state, save_state
from hwnas.cost import Cost, CostModel, PeakMemory, TabularCost
from hwnas.data import Augmentation, Dataset, Part, load_data
from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, SharedWeights, Trial
from hwnas.pareto import hypervolume, nondominated
from hwnas.searcher import Problem, Searcher
from hwnas.searchers import parsec
from hwnas.searchers.parsec import PARSEC
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.train import TrainSettings

TOLD: dict[str, Any] = {"likelihood": "told", "etas": [0.0, 3.0, 30.0], "warmup": 4}


@pytest.fixture(scope="module")
def cell() -> SearchSpace:
    """NAS-Bench-201 in its smallest form."""
    return load_space("nasbench201", {"input_size": 8, "channels": 1, "width": 4, "cells": 1})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_up_data(space: SearchSpace, repeats: int = 4) -> Dataset:
    """A few images a class, whose brightness tells it."""
    labels = torch.arange(repeats * space.classes) % space.classes
    noise = torch.randint(0, 50, (len(labels), *space.input_shape), generator=generator())
    part = Part((noise + labels.view(-1, 1, 1, 1) * (200 // space.classes)).to(torch.uint8), labels)
    return Dataset("made up", part, part, part, tuple(map(str, range(space.classes))), Augmentation())


def make_problem(space: SearchSpace, *, shared: bool = True, seed: int = 0, data: Dataset | None = None, costs: Any = None) -> Problem:
    known: dict[str, Cost] = costs or {"macs": CostModel(space, resources.macs, metric="macs"), "peak_mb": PeakMemory(space)}
    weights = SharedWeights(space, data or made_up_data(space), TrainSettings(epochs=1), seed) if shared else None
    return Problem(space, (Objective("error"), Objective(next(iter(known)))), known, shared=weights)


def make(problem: Problem, seed: int = 0, **options: Any) -> PARSEC:
    searcher: PARSEC = plugins.build("searchers", "parsec", {**PARSEC.small, **options}, problem, np.random.default_rng(seed))
    return searcher


# Fact 1: eight architectures, three binary slots

EIGHT = torch.cartesian_prod(*[torch.arange(2)] * 3)
LOGITS = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]])
LIKELIHOODS = 0.4 * torch.randn(8, generator=generator(3))


def chances(logits: Tensor) -> Tensor:
    """The prior probability of each of the eight."""
    return logits.log_softmax(-1)[torch.arange(3), EIGHT].sum(-1).exp()


def exact_gradient() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (grad,) = torch.autograd.grad((chances(logits) * LIKELIHOODS.exp()).sum().log(), logits)
    return grad


def test_fact_1_the_gradient_of_the_evidence_is_posterior_less_prior() -> None:
    posterior = chances(LOGITS) * LIKELIHOODS.exp()
    found = parsec.prior_gradient(posterior / posterior.sum(), EIGHT, LOGITS.softmax(-1))
    torch.testing.assert_close(found, exact_gradient())


def test_fact_1_the_bias_of_the_estimator_falls_as_one_over_the_draws() -> None:
    """The estimator's mean over 100 000 repetitions, drawn together; `parsec`'s own functions give the same for one of them."""
    exact, probs = exact_gradient(), LOGITS.softmax(-1)
    biases, lengths = [], []
    for draws in (2, 4, 8, 16, 64):
        which = torch.multinomial(chances(LOGITS), 100_000 * draws, replacement=True, generator=generator()).reshape(-1, draws)
        omega = LIKELIHOODS[which].softmax(-1)
        mean = torch.zeros(8).index_add(0, which.flatten(), omega.flatten()) / len(which)
        found = parsec.prior_gradient(mean, EIGHT, probs)
        one = parsec.prior_gradient(parsec.importance_weights(LIKELIHOODS[which[0]], 1.0), EIGHT[which[0]], probs)
        by_hand = functional.one_hot(EIGHT[which[0]], 2).float().mul(omega[0][:, None, None]).sum(0) - probs
        torch.testing.assert_close(one, by_hand)
        biases.append(float((found - exact).norm() / exact.norm()))
        lengths.append(float(found.norm() / exact.norm()))
    assert all(fewer > more for fewer, more in pairwise(biases))
    assert all(fewer < more for fewer, more in pairwise(lengths))
    assert lengths == pytest.approx([1 - 1 / draws for draws in (2, 4, 8, 16, 64)], abs=0.05)
    assert biases[2] / biases[3] == pytest.approx(2, rel=0.3)
    assert biases[-1] < 0.05


# Fact 2


def test_fact_2_a_single_draw_teaches_the_prior_nothing(cell: SearchSpace) -> None:
    probs = LOGITS.softmax(-1)
    omega = parsec.importance_weights(LIKELIHOODS[:1], 1.0)
    assert omega.tolist() == [1.0]
    mean = sum(chance * parsec.prior_gradient(omega, arch[None], probs) for chance, arch in zip(chances(LOGITS), EIGHT, strict=True))
    assert isinstance(mean, Tensor)
    assert float(mean.abs().max()) < 1e-6
    with pytest.raises(ConfigError, match="draws must not be 1: a single draw has the weight 1 whatever it is worth"):
        make(make_problem(cell), draws=1)


# Fact 3


def test_fact_3_equal_likelihoods_move_the_prior_nowhere_on_average() -> None:
    probs = LOGITS.softmax(-1)
    pairs = [(a, b) for a in range(8) for b in range(8)]
    omega = parsec.importance_weights(torch.full((2,), -3.0), 1.0)
    weights = [float(chances(LOGITS)[a] * chances(LOGITS)[b]) for a, b in pairs]
    mean = torch.stack([w * parsec.prior_gradient(omega, EIGHT[list(p)], probs) for w, p in zip(weights, pairs, strict=True)]).sum(0)
    assert float(mean.abs().max()) < 1e-6


@pytest.mark.slow
def test_fact_3_the_entropy_falls_while_it_learns(cell: SearchSpace) -> None:
    """On digits, three seeds: the prior's entropy falls, and what its mode is worth is more than what random networks are."""
    data = load_data("digits", {"size": 8})
    better = []
    for seed in range(3):
        searcher = make(make_problem(cell, data=data, seed=seed), seed, etas=[0.0], epochs=20, epochs_per_ask=20, batch_size=32, draws=4)
        child = searcher.ask(1)[0]
        assert searcher.log["entropy"] < 0.8 * math.log(5)
        rng = np.random.default_rng(seed)
        scores = [searcher.shared.score(cell.random(rng), 0)["accuracy"] for _ in range(12)]
        better.append(searcher.shared.score(child, 0)["accuracy"] - float(np.mean(scores)))
    assert np.mean(better) > 0


# Fact 4: bytes that autograd keeps for the backward pass, and operators that run


class Held:
    """A tensor kept for the backward pass; knows how many bytes of them live, and lived at most."""

    now = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.now += self.size
        Held.peak = max(Held.peak, Held.now)

    def __del__(self) -> None:
        Held.now -= self.size


def peak_bytes(step: Any) -> int:
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        step()
    return Held.peak


def epoch_of(name: str, operators: list[str], **options: Any) -> tuple[int, int]:
    """Peak bytes and the number of modules that run in one epoch, whose every draw is the network of 3x3 separable convolutions."""
    space = load_space("darts", {**plugins.load("spaces", "darts").small, "operators": operators})
    problem = make_problem(space, data=made_up_data(space, 2))
    options = {"etas": [0.0], "epochs": 1, "epochs_per_ask": 0, "batch_size": 10, **options}
    searcher: Any = plugins.build("searchers", name, options, problem, np.random.default_rng(0))
    ran: list[str] = []
    for index, module in problem.shared.supernet.sites.items():  # type: ignore[union-attr]
        module.register_forward_hook(lambda *_, i=index: ran.append(i))
    if name == "parsec":
        searcher.priors[:, :, operators.index("sep_conv_3x3")] = 50.0
    searcher._begin()
    return peak_bytes(lambda: searcher._train_epoch(searcher.torch_generator())), len(set(ran))


FEW = ["none", "sep_conv_3x3"]
ALL = [*FEW, "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]


def test_fact_4_memory_is_that_of_one_network_whatever_there_is_to_choose_from() -> None:
    few, more = (epoch_of("parsec", FEW, draws=draws, warmup=0) for draws in (2, 6))
    many = epoch_of("parsec", ALL, draws=2, warmup=0)
    assert few == more == many
    space = load_space("darts", {**plugins.load("spaces", "darts").small, "operators": FEW})
    shared = make_problem(space, data=made_up_data(space, 2)).shared
    assert shared is not None
    shared.supernet.train()
    images, labels = torch.randn(10, *space.input_shape), torch.arange(10)

    def child() -> None:
        torch.autograd.backward(functional.cross_entropy(shared.supernet.of(images, (1,) * 10), labels))

    assert peak_bytes(child) == pytest.approx(few[0], rel=0.01)
    small, large = epoch_of("snas", FEW), epoch_of("snas", ALL)
    assert few[0] < small[0] < 0.5 * large[0]
    assert few[1] < small[1] + 10 < large[1]


# Fact 5


def test_fact_5_large_batches_make_the_weights_winner_take_all_unless_they_are_tempered() -> None:
    spread = 0.1 * torch.randn(20_000, 16, generator=generator())

    def effective(images: int, tempering: float) -> float:
        omega = torch.stack([parsec.importance_weights(row, tempering * images) for row in spread[:4000]])
        return float((1 / omega.square().sum(-1)).mean())

    assert [effective(images, 1.0) for images in (1, 16, 64, 256)] == pytest.approx([15.9, 5.1, 1.6, 1.1], abs=0.15)
    assert effective(64, 64**-0.5) > 9


# Fact 6: on tabulated values, where the likelihood has no noise


def told_losses(cell: SearchSpace, seed: int) -> dict[Architecture, float]:
    """A made-up table: every slot has a best operator, and one seed's table is near to another's."""
    common, own = np.random.default_rng(5).uniform(0, 1, (6, 5)), np.random.default_rng(seed).uniform(0, 1, (6, 5))
    worth = 0.8 * common + 0.2 * own
    return {arch: 0.05 + 0.1 * float(worth[range(6), arch].sum()) for arch in cell.all()}


def play(searcher: Searcher, errors: dict[Architecture, float], n: int, batch: int = 8) -> list[Architecture]:
    """Asks and tells n trials."""
    asked: list[Architecture] = []
    while len(asked) < n:
        archs = searcher.ask(min(batch, n - len(asked)))
        costs = searcher.problem.known(archs)
        values = [{"error": errors[arch], **{m: float(c[i]) for m, c in costs.items()}} for i, arch in enumerate(archs)]
        searcher.tell([Trial(len(asked) + i, arch, value) for i, (arch, value) in enumerate(zip(archs, values, strict=True))])
        asked += archs
    return asked


def mean_error(searcher: PARSEC, errors: dict[Architecture, float], i: int = 0) -> float:
    """The expected error under a prior."""
    archs = torch.tensor(list(errors))
    chance = searcher._distribution(i)[torch.arange(6), archs].prod(-1)
    return float(chance @ torch.tensor(list(errors.values()), dtype=torch.float64))


def test_fact_6_a_learned_prior_gets_there_in_fewer_trials(cell: SearchSpace, tmp_path: Path) -> None:
    first = make(make_problem(cell, shared=False), **TOLD)
    play(first, told_losses(cell, 0), 120)
    save_state(tmp_path / "searcher.safetensors", first.state()[0], {"told": 120, "searcher": first.state()[1]})
    errors = told_losses(cell, 1)
    options = {**TOLD, "warmup": 0}
    fresh, warm = make(make_problem(cell, shared=False), **options), make(make_problem(cell, shared=False), **options, prior=str(tmp_path))
    soft = make(make_problem(cell, shared=False), **options, prior=str(tmp_path / "searcher.safetensors"), tau=4.0)
    torch.testing.assert_close(warm.priors, first.priors)
    torch.testing.assert_close(4 * soft.priors, first.priors)
    reached: dict[str, int] = {}
    goal = 0.9 * mean_error(fresh, errors)
    for name, searcher in (("fresh", fresh), ("warm", warm)):
        for told in range(0, 200, 8):
            if mean_error(searcher, errors) < goal:
                reached[name] = told
                break
            play(searcher, errors, 8)
    assert reached["warm"] < reached["fresh"]


# Small parts


def test_the_online_softmax_gives_the_posterior_mean_gradient() -> None:
    """Against all graphs at once; losses in any order, one of them without a graph, none too far apart to count."""
    layer = nn.Linear(3, 4)
    inputs, labels = torch.randn(5, 20, 3, generator=generator()), torch.randint(4, (20,), generator=generator())
    losses = [functional.cross_entropy(layer(3 * x), labels) for x in inputs]
    omega = (-20.0 * torch.stack([*losses, torch.tensor(1.5)]).detach()).softmax(0)
    wanted = torch.autograd.grad(sum(w * loss for w, loss in zip(omega, losses, strict=False)), list(layer.parameters()))
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        layer.zero_grad()
        again = [functional.cross_entropy(layer(3 * inputs[i]), labels) for i in order]
        values = parsec.posterior_mean_gradient(list(layer.parameters()), iter([*again, torch.tensor(1.5)]), 20.0)
        assert values.tolist() == pytest.approx([*(float(loss.detach()) for loss in again), 1.5])
        for weight, grad in zip(layer.parameters(), wanted, strict=True):
            torch.testing.assert_close(weight.grad, grad, rtol=1e-4, atol=1e-7)


def test_draws_follow_the_entropy() -> None:
    assert [parsec.number_of_draws(0, 0.25, entropy) for entropy in (56.0, 20.0, 9.0, 0.0)] == [14, 5, 2, 2]
    assert parsec.number_of_draws(6, 0.25, 56.0) == 6


def test_the_loss_of_a_calibrated_classifier_is_the_least_for_its_error() -> None:
    for error in (0.01, 0.3, 0.85):
        loss = parsec.calibrated_loss(error, 10)
        for confidence in np.linspace(0.005, 0.995, 100).tolist():
            assert loss <= -(1 - error) * math.log(confidence) - error * math.log((1 - confidence) / 9) + 1e-12
    assert parsec.calibrated_loss(0.0, 10) == 0
    assert parsec.calibrated_loss(1.0, 10) == parsec.calibrated_loss(0.9, 10) == pytest.approx(math.log(10))


# The searcher


@pytest.mark.parametrize(("estimator", "resource"), [("exact", "macs"), ("score", "macs"), ("posterior", "macs"), ("score", "peak_mb")])
def test_a_dear_resource_makes_cheap_networks(cell: SearchSpace, estimator: str, resource: str) -> None:
    options: dict[str, Any] = {"etas": [100.0], "epochs": 6, "epochs_per_ask": 0, "batch_size": 10, "logits_lr": 0.3, "draws": 3}
    searcher = make(make_problem(cell), estimator=estimator, resource=resource, **options)
    searcher.ask(1)
    assert searcher.log[f"expected_{resource}"] < 0.8 * searcher.reference


def test_while_it_warms_up_the_prior_rests_and_draws_are_single(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell), etas=[1.0], epochs=3, warmup=2, epochs_per_ask=1, draws=0, kappa=0.5)
    entropies, draws = [], []
    for _ in range(3):
        searcher._queue = []
        searcher.ask(1)
        searcher._queue = []
        entropies.append(searcher.log["entropy"])
        draws.append(searcher.log["draws"])
    assert entropies[:2] == pytest.approx([math.log(5)] * 2)
    assert entropies[2] < entropies[1]
    assert draws == [1, 1, round(0.5 * 6 * math.log(5))]


def test_weights_and_prior_learn_from_different_images(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell))
    pixels = [{tuple(image.flatten().tolist()) for image in half.images} for half in searcher._halves]
    assert not pixels[0] & pixels[1]
    assert len(searcher._halves[0]) == len(searcher._halves[1]) == 20


def test_told_it_needs_no_supernet_and_gets_what_it_is_told(cell: SearchSpace) -> None:
    """Each eta's prior learns; the dearer the cost, the cheaper; and the cheapest is not the best."""
    errors = told_losses(cell, 0)
    searcher = make(make_problem(cell, shared=False), **TOLD)
    uniform = mean_error(searcher, errors)
    play(searcher, errors, 120)
    means = [mean_error(searcher, errors, i) for i in range(3)]
    costs = [float(searcher.cost(searcher._distribution(i))) for i in range(3)]
    assert means[0] < 0.9 * uniform
    assert means[0] < means[2]
    assert costs[0] > costs[1] > costs[2]
    assert 0 < searcher.log["entropy"] < math.log(5)


def test_told_a_loss_it_takes_the_loss(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell, shared=False), **TOLD)
    assert searcher._told_loss({"loss": 0.4, "error": 0.1}) == 0.4
    assert searcher._told_loss({"loss": math.nan, "error": 0.1}) == parsec.calibrated_loss(0.1, 10)
    assert searcher._told_loss({"accuracy": 0.9}) == pytest.approx(parsec.calibrated_loss(0.1, 10))


def test_told_restored_it_goes_on_as_if_uninterrupted(cell: SearchSpace, tmp_path: Path) -> None:
    errors = told_losses(cell, 0)
    whole = make(make_problem(cell, shared=False), **TOLD)
    play(whole, errors, 24)
    save_state(tmp_path / "state", *whole.state())
    again = make(make_problem(cell, shared=False), 9, **TOLD)
    again.restore(load_state(tmp_path / "state"))
    assert play(whole, errors, 24) == play(again, errors, 24)
    torch.testing.assert_close(whole.priors, again.priors, rtol=0, atol=0)


def test_told_it_comes_to_an_end(diamond: SearchSpace) -> None:
    searcher = make(make_problem(diamond, shared=False), **{**TOLD, "warmup": 1})
    asked = play(searcher, dict.fromkeys(diamond.all(), 0.5), 3, 2)
    assert len({diamond.identity(arch) for arch in asked}) == 3
    assert searcher.ask(2) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resource": "mac"}, "nothing gives the resource 'mac'; did you mean 'macs'"),
        ({"resource": "peak_mb", "estimator": "exact"}, "no 'exact' estimator; set estimator: score or posterior"),
        ({"warmup": 2}, r"warmup \(2 epochs\) must leave epochs \(now 2\)"),
        ({"likelihood": "guess"}, "likelihood: input should be 'shared' or 'told', but got 'guess'"),
        ({"prior": "nowhere"}, "there is no checkpoint nowhere"),
        ({"etas": [-1.0]}, "etas"),
        ({"draws": -1}, "draws"),
    ],
)
def test_options_that_cannot_be_meant(cell: SearchSpace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        make(make_problem(cell), **options)


def test_a_prior_must_be_one_of_the_same_slots(cell: SearchSpace, diamond: SearchSpace, tmp_path: Path) -> None:
    other = make(make_problem(diamond, shared=False), **TOLD)
    save_state(tmp_path / "other", *other.state())
    with pytest.raises(ConfigError, match="is over other slots than those of nasbench201"):
        make(make_problem(cell), prior=str(tmp_path / "other"))
    save_state(tmp_path / "none", {"logits": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match="holds no prior of parsec"):
        make(make_problem(cell), prior=str(tmp_path / "none"))


def test_what_has_no_likelihood_is_refused(cell: SearchSpace) -> None:
    problem = make_problem(cell, shared=False)
    problem.objectives = (Objective("macs"), Objective("peak_mb"))
    with pytest.raises(ConfigError, match="put error, accuracy or loss among the objectives"):
        make(problem, **TOLD)
    with pytest.raises(ConfigError, match="needs data to train it on"):
        make(problem)


@pytest.mark.slow
def test_told_it_beats_random_on_tabulated_networks(test_data: Path) -> None:
    """NAS-Bench-201, 400 trials, medians of five seeds: more hypervolume on at least six of eight devices."""
    table = np.load(test_data / "nasbench201_hw.npz")
    space = load_space("nasbench201", {"input_size": 8, "width": 2, "cells": 1})
    archs = list(map(tuple, table["ops"].tolist()))
    errors = dict(zip(archs, (1 - table["test_acc"].astype(float) / 100).tolist(), strict=True))
    wins = 0
    for device in range(8):
        latency = np.zeros(space.num_choices)
        latency[tuple(table["ops"].T)] = table["latency_ms"][:, device]
        values = np.array([(errors[arch], latency[arch]) for arch in archs if space.graph(arch)])
        front = values[nondominated(values)]
        low, span = front.min(0), np.ptp(front, 0)
        reached: dict[str, list[float]] = {"parsec": [], "random": []}
        for seed in range(5):
            for name, options in (("parsec", {"likelihood": "told"}), ("random", {})):
                problem = make_problem(space, shared=False, costs={"latency_ms": TabularCost(space, "latency_ms", latency)})
                searcher = plugins.build("searchers", name, options, problem, np.random.default_rng(seed))
                found = np.array([(errors[arch], latency[arch]) for arch in play(searcher, errors, 400)])
                reached[name].append(hypervolume((found - low) / span, np.array([1.1, 1.1])))
        wins += bool(np.median(reached["parsec"]) > np.median(reached["random"]))
    assert wins >= 6
