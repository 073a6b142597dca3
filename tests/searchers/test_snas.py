"""SNAS: the sanity facts of `algorithms.md`, section 1, and what the searcher does around them."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hwnas import distribution, plugins, resources
from hwnas.cost import CostModel, choice_mask, one_hot
from hwnas.data import batches, load_data
from hwnas.errors import ConfigError
from hwnas.evaluate import Objective
from hwnas.searcher import Problem
from hwnas.searchers import snas
from hwnas.searchers.snas import SNAS
from hwnas.space import SearchSpace, load_space
from tests.searchers.brightness import make_problem

SMALL_MOBILE = {"input_size": 8, "channels": 1, "stages": [{"widths": [4, 8], "depth": 2, "stride": 2}], "stem_width": 4, "head_width": 8}
TEMPERATURES = (1.0, 0.5, 0.2, 0.1)


@pytest.fixture(scope="module")
def cell() -> SearchSpace:
    """NAS-Bench-201 in its smallest form."""
    return load_space("nasbench201", {"input_size": 8, "channels": 1, "width": 4, "cells": 1})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(space: SearchSpace, seed: int = 0) -> Tensor:
    logits = torch.randn(choice_mask(space).shape, generator=generator(seed))
    return logits.masked_fill(~choice_mask(space), -math.inf)


def make(problem: Problem, seed: int = 0, **options: Any) -> SNAS:
    searcher: SNAS = plugins.build("searchers", "snas", {**SNAS.small, **options}, problem, np.random.default_rng(seed))
    return searcher


# Fact 1: three operators with outputs 0, 1, 3; the true gradient is that of the mean over the one-hot choices

OUTPUTS = torch.tensor([0.0, 1.0, 3.0])
TOY = torch.tensor([[0.3, -0.2, 0.1]])


def affine(x: Tensor) -> Tensor:
    return x


def square(x: Tensor) -> Tensor:
    return (x - 1.2) ** 2


def true_gradient(loss: Any) -> Tensor:
    logits = TOY.clone().requires_grad_()
    (grad,) = torch.autograd.grad(logits.softmax(-1)[0] @ loss(OUTPUTS), logits)
    return grad[0]


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(("loss", "biases"), [(affine, (0.32, 0.13, 0.02, 0.01)), (square, (0.66, 0.42, 0.19, 0.08))])
def test_fact_1_the_bias_of_the_relaxed_gradient_falls_with_the_temperature(loss: Any, biases: tuple[float, ...]) -> None:
    exact = true_gradient(loss)
    if loss is square:
        torch.testing.assert_close(exact, torch.tensor([-0.106, -0.415, 0.521]), atol=6e-4, rtol=0)
    found = []
    for temperature in TEMPERATURES:
        logits = TOY.clone().requires_grad_()
        log_z = snas.concrete_sample(logits.expand(400_000, 1, 3), temperature, generator())
        (grad,) = torch.autograd.grad(loss(log_z.exp() @ OUTPUTS).mean(), logits)
        found.append(relative(grad[0], exact))
    assert found == pytest.approx(biases, abs=0.025)
    assert all(hotter > colder for hotter, colder in pairwise(found[:3]))
    assert found[2] > found[3] or loss is affine  # 0.02 and 0.01 are within the noise of each other
    assert found[3] < 0.15


@pytest.mark.parametrize(("loss", "credited"), [(affine, None), (square, (-1.462, -0.987, 2.449))])
def test_fact_1_the_published_credit_is_exact_for_an_affine_loss_only(loss: Any, credited: tuple[float, ...] | None) -> None:
    """E[grad log p(Z) * (dL/dx . x)], the mean over one-hot Z taken exactly (the text's numbers for the square are sampled)."""
    logits = TOY.clone().requires_grad_()
    x = OUTPUTS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(x).sum(), x)
    log_probs = logits.log_softmax(-1)[0]
    (grad,) = torch.autograd.grad((log_probs.exp().detach() * log_probs * (slope * OUTPUTS)).sum(), logits)
    expected = true_gradient(loss) if credited is None else torch.tensor(credited)
    torch.testing.assert_close(grad[0], expected, atol=1e-6 if credited is None else 1e-3, rtol=0)
    assert credited is None or relative(grad[0], true_gradient(loss)) > 1


# Fact 2: exact and score agree in expectation


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
    return grad


@pytest.fixture
def priced(diamond: SearchSpace) -> CostModel:
    """Dead branches and shared decisions are in this cost: it is no plain sum over slots."""
    prices = dict(zip(diamond.operators(), (3.0, 1.0, 4.0, 1.5, 9.0, 2.0), strict=False))
    return CostModel(diamond, prices)


def test_fact_2_exact_and_score_agree_in_expectation(diamond: SearchSpace, priced: CostModel) -> None:
    """The expectation over all hard samples, taken exactly."""
    logits = random_logits(diamond).double().requires_grad_()
    probs = logits.softmax(-1)
    exact = gradient(distribution.exact_cost(priced, logits), logits)
    archs = list(diamond.all())
    hot = one_hot(diamond, archs).double()
    chance = [float(probs.detach().gather(1, torch.tensor([arch]).T).prod()) for arch in archs]
    assert sum(chance) == pytest.approx(1)
    log_probs = logits.log_softmax(-1)
    one = sum(
        weight * snas.score_cost(priced, z, probs, log_probs.gather(1, torch.tensor([arch]).T).squeeze(1))
        for weight, z, arch in zip(chance, hot, archs, strict=True)
    )
    assert isinstance(one, Tensor)
    torch.testing.assert_close(gradient(one, logits), exact)
    costs = priced.of(archs)
    each = torch.stack([log_probs.gather(1, torch.tensor([arch]).T).squeeze(1) for arch in archs])
    pairs = sum(
        chance[i] * chance[j] * distribution.score_of_hard_samples(costs[[i, j]], each[[i, j]])
        for i in range(len(archs))
        for j in range(len(archs))
    )
    assert isinstance(pairs, Tensor)
    torch.testing.assert_close(gradient(pairs, logits), exact)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_fact_2_score_of_relaxed_samples_follows_their_expected_cost(diamond: SearchSpace, priced: CostModel, temperature: float) -> None:
    """Both estimate the gradient of E[cost(Z)] over the Concrete distribution: this fails with a wrong density."""
    logits = random_logits(diamond).requires_grad_()
    draws = torch.Generator().manual_seed(1)
    scores, reparams = [], []
    for _ in range(2000):
        log_z = snas.concrete_sample(logits, temperature, draws)
        reparams.append(gradient(snas.reparam_cost(priced, log_z), logits))
        fixed = log_z.detach()
        scores.append(
            gradient(
                snas.score_cost(priced, fixed.exp(), logits.softmax(-1), snas.concrete_log_density(fixed, logits, temperature)), logits
            )
        )
    difference = torch.stack(scores) - torch.stack(reparams)
    here = choice_mask(diamond)
    error = difference.std(0)[here] / len(scores) ** 0.5
    assert bool((difference.mean(0)[here].abs() < 4 * error + 1e-6).all())
    assert float(torch.stack(reparams).mean(0)[here].abs().max()) > 5 * float(error.max())  # not for want of a signal


def test_choices_of_one_price_get_no_credit_and_so_no_noise() -> None:
    space = load_space("mobilenet_v2", {**SMALL_MOBILE, "kernels": [3, 5]})
    cost = CostModel(space, lambda op: 1.0, offset=100.0)
    logits = random_logits(space).requires_grad_()
    log_z = snas.concrete_sample(logits, 0.5, generator()).detach()
    score = snas.score_cost(cost, log_z.exp(), logits.softmax(-1), snas.concrete_log_density(log_z, logits, 0.5))
    assert float(gradient(score, logits).abs().max()) < 1e-3


def test_fact_2_exact_has_no_variance(cell: SearchSpace) -> None:
    cost = CostModel(cell, resources.macs)
    logits = random_logits(cell).requires_grad_()
    grads = [gradient(distribution.exact_cost(cost, logits), logits) for _ in range(3)]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_the_density_is_one(diamond: SearchSpace) -> None:
    """Of two choices the Concrete density integrates to one over the first entry z = sigmoid(t); padding changes nothing."""
    t = torch.linspace(-150, 150, 100_001, dtype=torch.float64)
    for temperature in (0.4, 1.0, 2.0):
        logits = torch.tensor([[0.7, -0.4, -math.inf]], dtype=torch.float64).expand(len(t), 1, 3)
        log_z = torch.stack([functional.logsigmoid(t), functional.logsigmoid(-t), torch.full_like(t, -math.inf)], -1)[:, None]
        slope = t.sigmoid() * (-t).sigmoid()
        density = snas.concrete_log_density(log_z, logits, temperature).exp().squeeze(1)
        assert float(torch.trapezoid(density * slope, t)) == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(snas.concrete_log_density(log_z[..., :2], logits[..., :2], temperature).exp().squeeze(1), density)


# Fact 3


def test_fact_3_descent_on_exact_lowers_the_expected_cost_at_every_step(space: SearchSpace) -> None:
    cost = CostModel(space, lambda op: resources.macs(op) + sum(map(ord, op.kind)))  # all steps of a recurrent cell have as many MACs
    if not cost.expects:
        pytest.skip(f"{space.name} has no expected cost")
    scale = float(cost(choice_mask(space) / choice_mask(space).sum(-1, keepdim=True)))
    logits = random_logits(space).double()
    expected = []
    for _ in range(200):
        logits.requires_grad_()
        value = distribution.exact_cost(cost, logits) / scale
        expected.append(float(value.detach()))
        logits = (logits - 0.05 * gradient(value, logits)).detach()
    assert all(later < earlier for earlier, later in pairwise(expected))


def test_fact_3_it_tends_to_the_cheapest_operator_everywhere(cell: SearchSpace) -> None:
    """`none` on every edge of a cell; where there is no `none`, the smallest convolution."""
    for space in (cell, load_space("mobilenet_v2", {**SMALL_MOBILE, "kernels": [3, 5]})):
        cost = CostModel(space, resources.macs)
        logits = random_logits(space).requires_grad_()
        begin = float(cost(logits.detach().softmax(-1)))
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            torch.autograd.backward(distribution.exact_cost(cost, logits) / begin)
            optimizer.step()
        least = 0.0 if space is cell else float(cost.of([cost.cheapest()]))
        assert float(cost(logits.detach().softmax(-1))) - least < 0.01 * begin
        assert float(cost.of([tuple(logits.argmax(-1).tolist())])) == least
        assert space is not cell or logits.argmax(-1).tolist() == [0] * 6


# Fact 4


def test_fact_4_the_exchange_of_loss_for_cost(diamond: SearchSpace, priced: CostModel) -> None:
    """Gradient descent on E[L] + eta E[C] over tabulated losses finds each eta's optimum; its cost falls with eta, its loss rises."""
    archs = torch.tensor(list(diamond.all()))
    costs = priced.of(archs).float()
    losses = torch.tensor([1.0, 1.0, 1.0, 0.55, 1.0, 0.3])  # what a dead branch computes is worth nothing
    found = []
    for eta in (0.0, 0.01, 0.05, 0.2, 1.0):
        ends = []
        for seed in range(4):
            logits = random_logits(diamond, seed).requires_grad_()
            optimizer = torch.optim.Adam([logits], lr=0.2)
            for _ in range(150):
                optimizer.zero_grad()
                probs = logits.softmax(-1).gather(1, archs.T).prod(0)
                torch.autograd.backward(probs @ losses + eta * distribution.exact_cost(priced, logits))
                optimizer.step()
            ends.append(int((archs == logits.argmax(-1)).all(1).nonzero()))
        total = losses + eta * costs
        best = min(ends, key=lambda i: float(total[i]))
        assert float(total[best]) == pytest.approx(float(total.min()))
        found.append((float(costs[best]), float(losses[best])))
    assert all(b[0] <= a[0] and b[1] >= a[1] for a, b in pairwise(found))
    assert found[0][0] > found[-1][0]


# Fact 5


def sampled_accuracy(searcher: SNAS, probs: Tensor | None) -> float:
    """Accuracy on the validation part, in batches: under Concrete samples of the last temperature, or under given probabilities."""
    shared, right = searcher.shared, 0
    shared.supernet.train()
    draws = generator(5)
    with torch.no_grad():
        for index in batches(shared.data.valid, 64, generator(4)):
            logits = searcher.logits.detach()
            z = snas.concrete_sample(logits, 0.05, draws).exp() if probs is None else probs
            out = shared.supernet(shared.data.normalise(shared.data.valid.images[index]), z)
            right += int((out.argmax(1) == shared.data.valid.labels[index]).sum())
    return right / len(shared.data.valid)


@pytest.mark.slow
def test_fact_5_the_sampled_supernet_is_closer_to_its_child_than_a_mixture_is(cell: SearchSpace) -> None:
    """Three seeds; the mixture is `relaxation: softmax`, trained on the same space for as long, from the same weights."""
    data = load_data("digits", {"size": 8})
    gaps: dict[str, list[float]] = {"snas": [], "darts": []}
    for seed in range(3):
        options: dict[str, Any] = {"etas": [0.0], "epochs": 20, "epochs_per_ask": 20, "samples": 1, "batch_size": 32}
        ours = make(make_problem(cell, data=data, seed=seed), seed, **options)
        (child,) = ours.ask(1)
        gaps["snas"].append(abs(sampled_accuracy(ours, None) - ours.shared.score(child, 0)["accuracy"]))
        assert ours.log["entropy"] < 0.5 * math.log(5)  # it begins at log 5
        darts = make(make_problem(cell, data=data, seed=seed), seed, **options, relaxation="softmax")
        (child,) = darts.ask(1)
        gaps["darts"].append(abs(sampled_accuracy(darts, darts.probs()) - darts.shared.score(child, 0)["accuracy"]))
    assert np.mean(gaps["snas"]) < np.mean(gaps["darts"])


# Fact 6


@pytest.mark.parametrize(
    ("temperature", "mean_largest", "share_hot"), [(1.0, 0.50, 0.00), (0.5, 0.70, 0.08), (0.1, 0.94, 0.66), (0.03, 0.98, 0.88)]
)
def test_fact_6_samples_become_one_hot(temperature: float, mean_largest: float, share_hot: float) -> None:
    largest = snas.concrete_sample(torch.zeros(100_000, 1, 8), temperature, generator()).exp().amax(-1)
    assert float(largest.mean()) == pytest.approx(mean_largest, abs=0.01)
    assert float((largest > 0.99).float().mean()) == pytest.approx(share_hot, abs=0.01)


def test_fact_6_the_reparam_cost_tends_to_the_exact_one(cell: SearchSpace) -> None:
    cost = CostModel(cell, resources.macs)
    """Measured against the hard samples of the same noise, whose mean cost is the exact one: so 2000 draws tell."""
    logits = 3 * random_logits(cell)
    exact = float(distribution.exact_cost(cost, logits))
    gaps = []
    for temperature in (1.0, 0.3, 0.03):
        log_z = snas.concrete_sample(logits.expand(2000, -1, -1), temperature, generator())
        hard = cost.of(log_z.argmax(-1)).float()
        gaps.append(abs(float((snas.reparam_cost(cost, log_z) - hard).mean())) / exact)
        assert float(hard.mean()) == pytest.approx(exact, rel=0.1)
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.01


# Small parts


def test_the_temperature_falls_linearly() -> None:
    assert [snas.anneal(epoch, 4, 1.0, 0.2) for epoch in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_samples_are_distributions_and_padding_is_never_drawn(space: SearchSpace) -> None:
    if not space.expectable:
        pytest.skip(f"the networks of {space.name} cannot be mixed")
    mask = choice_mask(space)
    logits = random_logits(space)
    for temperature in (1.0, 0.03, 1e-3):
        z = snas.concrete_sample(logits.expand(500, *mask.shape), temperature, generator()).exp()
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.sum(-1), torch.ones(500, len(mask)))
        assert float(z.masked_select(~mask).sum()) == 0
    searcher = make(make_problem(space))
    with torch.no_grad():
        searcher.logits.copy_(torch.where(mask, 0.0, 50.0))
    drawn = searcher._draw(400, generator())
    assert bool((drawn < torch.tensor(space.num_choices)).all())
    assert torch.unique(drawn).tolist() == list(range(max(space.num_choices)))


def test_concrete_samples_choose_as_the_distribution_does() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, -math.inf]])
    z = snas.concrete_sample(logits.expand(50_000, 1, 4), 0.5, generator())
    shares = torch.bincount(z.argmax(-1).flatten(), minlength=4) / 50_000
    torch.testing.assert_close(shares, logits.softmax(-1)[0], atol=0.01, rtol=0)


def test_the_most_probable_come_first_and_all_come_once(diamond: SearchSpace) -> None:
    log_probs = random_logits(diamond).log_softmax(-1)
    chance = {arch: float(log_probs.gather(1, torch.tensor([arch]).T).sum()) for arch in diamond.all()}
    assert list(distribution.most_probable(log_probs)) == sorted(chance, key=lambda arch: -chance[arch])
    wide = torch.randn(30, 7, generator=generator()).log_softmax(-1)
    first = list(islice(distribution.most_probable(wide), 500))
    value = [float(wide.gather(1, torch.tensor([arch]).T).sum()) for arch in first]
    assert first[0] == tuple(wide.argmax(-1).tolist())
    assert len(set(first)) == 500
    assert all(b <= a + 1e-5 for a, b in pairwise(value))


def test_what_is_over_budget_is_repaired_where_it_costs_least_probability(diamond: SearchSpace) -> None:
    """(2, 1) is over budget; (0, 1), (2, 0) and (1, 1) are not: the swap that loses least for what it saves wins."""
    conv1, conv3 = (site.op for site in diamond.sites[1:3])
    cost = CostModel(diamond, lambda op: {conv1: 4.0, conv3: 9.0}.get(op, 1.0), metric="cost")
    problem = Problem(diamond, (Objective("error"),), {"cost": cost}, {"cost": float(cost.of([(1, 1)])[0])})
    log_probs = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.6, 0.0]]).log()
    assert distribution.repaired(problem, (2, 1), log_probs) == (2, 0)
    assert distribution.repaired(problem, (2, 1), torch.tensor([[0.1, 0.4, 0.5], [0.05, 0.95, 0.0]]).log()) == (1, 1)
    assert distribution.repaired(problem, (1, 1), log_probs) == (1, 1)


# The searcher


def test_the_child_leads_and_the_log_tells_what_was_learnt(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell), etas=[0.3], epochs=3, epochs_per_ask=3)
    archs = searcher.ask(8)
    assert len(archs) == 3
    assert archs[0] == next(arch for arch in distribution.most_probable(searcher.probs().log()) if cell.graph(arch))
    assert searcher.log.keys() == {"eta", "epoch", "temperature", "entropy", "expected_macs", "sampled_loss", "sampled_accuracy"}
    assert (searcher.log["eta"], searcher.log["epoch"]) == (0.3, 3)
    assert searcher.log["temperature"] == pytest.approx(snas.anneal(2, 3, 1.0, 0.03))
    assert searcher.log["expected_macs"] == pytest.approx(float(searcher.cost(searcher.probs())))
    assert 0 < searcher.log["entropy"] <= math.log(5)


def test_a_softmax_mixture_trains_every_operator_alike_in_every_epoch(cell: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: what the supernet is given is the distribution itself, and the cost is that of samples."""
    given = []
    searcher = make(make_problem(cell), etas=[0.5], epochs=2, relaxation="softmax")
    real = searcher.shared.supernet.forward

    def forward(images: Tensor, probs: Tensor) -> Tensor:
        given.append((probs, searcher.probs()))
        return real(images, probs)

    monkeypatch.setattr(searcher.shared.supernet, "forward", forward)
    searcher.ask(1)
    assert given
    for probs, distribution_ in given:
        torch.testing.assert_close(probs.detach(), distribution_)


def test_every_eta_is_a_search_of_its_own(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell), etas=[0.0, 0.5, 2.0], epochs=2, epochs_per_ask=0, samples=2)
    seen = []
    while archs := searcher.ask(5):
        seen.append((searcher.log["eta"], searcher.log["epoch"], len(archs)))
    assert seen == [(0.0, 2.0, 2), (0.5, 2.0, 2), (2.0, 2.0, 2)]
    assert searcher.ask(1) == []


def test_a_dear_resource_makes_cheap_networks(cell: SearchSpace) -> None:
    """Each estimator with a weight that drowns the loss: the expected cost ends far below that of weight 0."""
    for estimator, resource in (("exact", "macs"), ("reparam", "macs"), ("score", "macs"), ("score", "peak_mb")):
        ends = []
        for eta in (0.0, 100.0):
            options: dict[str, Any] = {"etas": [eta], "epochs": 8, "epochs_per_ask": 0, "batch_size": 4, "logits_lr": 0.15}
            searcher = make(make_problem(cell), estimator=estimator, resource=resource, **options)
            searcher.ask(1)
            ends.append(searcher.log[f"expected_{resource}"])
        assert ends[1] < 0.8 * ends[0], (estimator, resource, ends)


def test_weights_are_kept_from_eta_to_eta_or_not(cell: SearchSpace) -> None:
    for warm in (True, False):
        searcher = make(make_problem(cell), etas=[0.0, 0.0], epochs=1, epochs_per_ask=0, samples=1, warm_start=warm)
        searcher.ask(1)
        before = {name: tensor.clone() for name, tensor in searcher.shared.tensors().items()}
        learnt = searcher.logits.detach().clone()
        searcher._eta, searcher._epoch = 1, 0
        searcher._begin()
        same = all(torch.equal(before[name], tensor) for name, tensor in searcher.shared.tensors().items())
        assert same == warm
        assert not torch.equal(searcher.logits, learnt)
        assert float(searcher.logits.detach().std()) < 0.02


def test_gradients_are_clipped(cell: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    clipped = []
    real = torch.nn.utils.clip_grad_norm_

    def spy(parameters: Any, max_norm: float) -> Tensor:
        listed = list(parameters)
        norm = real(listed, max_norm)
        after = torch.stack([p.grad.norm() for p in listed if p.grad is not None]).norm()
        clipped.append((len(listed), max_norm, float(after)))
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    searcher = make(make_problem(cell), etas=[1e5], epochs=1)
    searcher.ask(1)
    logits = [after for number, norm, after in clipped if (number, norm) == (1, 10.0)]
    weights = [after for number, norm, after in clipped if number > 1 and norm == 5.0]
    assert len(logits) == len(weights) == len(clipped) / 2 > 0
    assert max(logits) == pytest.approx(10, rel=1e-3)  # a cost of 1e5 is far more
    assert max(weights) < 5.01


def test_a_child_that_is_no_network_gives_way_to_the_most_probable_one(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell), samples=1)
    with torch.no_grad():
        searcher.logits.zero_()
        searcher.logits[:, 0] = 4.0  # `none` everywhere
        searcher.logits[3, 1] = 3.5
    assert not cell.is_valid((0,) * 6)
    assert searcher._children() == [(0, 0, 0, 1, 0, 0)]


@pytest.mark.parametrize("looked_at", [4096, 20])
def test_a_distribution_beyond_the_budget_still_gives_feasible_children(
    cell: SearchSpace, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most probable of what keeps the budget; where that is too improbable to be found, the repaired argmax."""
    monkeypatch.setattr(distribution, "_MOST_PROBABLE", looked_at)
    costs = CostModel(cell, resources.macs)
    budget = float(costs.of([(1, 1, 1, 1, 1, 1)])[0]) * 1.2
    searcher = make(make_problem(cell, budgets={"macs": budget}), samples=6)
    with torch.no_grad():
        searcher.logits.zero_()
        searcher.logits[:, 3] = 30.0  # 3x3 convolutions everywhere, and nothing else is ever drawn
    assert float(costs.of([(3,) * 6])) > budget
    searcher.logits.data += 0.1 * torch.randn(searcher.logits.shape, generator=generator())
    log_probs = searcher.probs().log()
    best = next(arch for arch in distribution.most_probable(log_probs) if cell.graph(arch) and float(costs.of([arch])) <= budget)
    archs = searcher._children()
    assert archs[0] == (best if looked_at == 4096 else distribution.repaired(searcher.problem, (3,) * 6, log_probs))
    assert float(costs.of(archs).max()) <= budget
    assert len(archs) == (6 if looked_at == 4096 else 1)


def test_a_sample_without_a_path_can_be_trained_with(cell: SearchSpace) -> None:
    searcher = make(make_problem(cell))
    none = one_hot(cell, [(0,) * 6])[0]
    z = searcher._runnable(none)
    out = searcher.shared.supernet.train()(torch.randn(4, 1, 8, 8, generator=generator()), z)
    assert bool(out.isfinite().all())
    path = one_hot(cell, [(0, 0, 0, 3, 0, 0)])[0] * (1 - 1e-7) + 2e-8
    assert searcher._runnable(path).count_nonzero() == 6


def test_an_interrupted_ask_goes_on_from_its_last_epoch(cell: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"etas": [0.0, 1.0], "epochs": 3, "epochs_per_ask": 0}
    whole = make(make_problem(cell), **options)
    expected = [whole.ask(2) for _ in range(4)]

    path = tmp_path / "supernet"
    real = SNAS._train_epoch
    trained: list[int] = []

    def epoch(self: SNAS, draws: torch.Generator) -> None:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(self._epoch)
        real(self, draws)

    monkeypatch.setattr(SNAS, "_train_epoch", epoch)
    with pytest.raises(KeyboardInterrupt):
        make(make_problem(cell, checkpoint=path), **options).ask(2)
    trained[:] = [-1, -1, -1]
    again = make(make_problem(cell, checkpoint=path), **options)
    asked = [again.ask(2) for _ in range(4)]
    assert trained[3:] == [2, 0, 1, 2]  # the third epoch of the first eta, then the second eta
    assert asked == expected
    for name, tensor in whole.state()[0].items():
        assert torch.equal(tensor, again.state()[0][name]), name


def test_the_resource_is_the_first_cost_objective_unless_named(cell: SearchSpace) -> None:
    problem = make_problem(cell)
    assert make(problem).resource == "macs"
    assert make(problem, resource="peak_mb", estimator="score").resource == "peak_mb"
    problem.objectives = (Objective("error"),)
    with pytest.raises(ConfigError, match="none of the objectives is a cost; set resource to one of macs, peak_mb"):
        make(problem)
    problem.budgets = {"macs": 1e9}
    assert make(problem).resource == "macs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resource": "mac"}, "nothing gives the resource 'mac'; did you mean 'macs'"),
        ({"resource": "peak_mb"}, "peak_mb of nasbench201 has no expectation, and so no 'exact' estimator; set estimator: score"),
        ({"resource": "peak_mb", "estimator": "reparam"}, "and so no 'reparam' estimator"),
        ({"relaxation": "softmax", "estimator": "score"}, "a softmax mixture has no samples for a 'score' estimator; set estimator: exact"),
        ({"estimator": "guess"}, "estimator: input should be 'exact', 'reparam' or 'score', but got 'guess'"),
        ({"etas": []}, "etas"),
        ({"etas": [-1.0]}, "etas.*greater than or equal to 0"),
        ({"etas": [math.nan]}, "etas"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_options_that_cannot_be_meant(cell: SearchSpace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_problem(cell), **options)


def test_a_diverged_supernet_is_an_error_that_says_what_to_do(cell: SearchSpace) -> None:
    with pytest.raises(ConfigError, match=r"became no number in epoch \d of eta 0; lower lr \(now 1e\+30\)"):
        make(make_problem(cell), lr=1e30, epochs=5, batch_size=4).ask(1)
