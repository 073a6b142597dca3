"""InstaNAS: the sanity facts of `algorithms.md`, section 5, and what the searcher does around them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from hwnas import plugins, resources
from hwnas.cost import CostModel
from hwnas.data import Augmentation, Dataset, Part
from hwnas.errors import ConfigError
from hwnas.run import Run
from hwnas.searcher import Problem
from hwnas.searchers import instanas
from hwnas.searchers.instanas import InstaNAS
from hwnas.space import SearchSpace, load_space
from hwnas.spaces.instance_mobilenet import InstanceMobileNet
from hwnas.verify import MemberReport
from tests.searchers import brightness

make_problem = partial(brightness.make_problem, of_class=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def meta() -> InstanceMobileNet:
    """Two blocks of three modules."""
    space = load_space("instance_mobilenet", {**InstanceMobileNet.small, "channels": 1, "classes": 4})
    assert isinstance(space, InstanceMobileNet)
    return space


def make(problem: Problem, seed: int = 0, **options: Any) -> InstaNAS:
    searcher: InstaNAS = plugins.build("searchers", "instanas", {**InstaNAS.small, **options}, problem, np.random.default_rng(seed))
    return searcher


def all_policies(slots: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=slots)))


# Fact 1


def test_fact_1_the_latency_reward_is_a_parabola_between_the_bounds() -> None:
    low, high = 2.0, 10.0
    reward = instanas.latency_reward(torch.tensor([2.0, 10.0, 1.0, 11.0, 6.0, 4.0, 8.0]), low, high)
    assert reward[:4].tolist() == [0, 0, 0, 0]
    assert float(reward[4]) == 1
    assert float(reward[5]) == float(reward[6]) == 0.75
    offsets = torch.linspace(0, 4, 50, dtype=torch.float64)
    torch.testing.assert_close(instanas.latency_reward(6 + offsets, low, high), instanas.latency_reward(6 - offsets, low, high))
    assert instanas.latency_reward(torch.tensor([5.0]), 5.0, 5.0).tolist() == [0]


def test_fact_1_a_wrong_answer_gets_the_penalty(meta: InstanceMobileNet) -> None:
    searcher = make(make_problem(meta), penalty=-3.0, power=2.0)
    searcher.shared.supernet.eval()
    images = torch.randn(8, *meta.input_shape, generator=generator())
    gates = torch.bernoulli(torch.full((8, 6), 0.5), generator=generator())
    with torch.no_grad():
        answers = searcher.shared.supernet(images, instanas.choice_rows(gates)).argmax(1)
        right = searcher._rewards(images, answers, gates, 1e6)
        wrong = searcher._rewards(images, (answers + 1) % 4, gates, 1e6)
    parabola = instanas.latency_reward(searcher.cost.of(gates.long()), searcher.low, 1e6)
    torch.testing.assert_close(right.double(), 30 * parabola**2)
    assert wrong.tolist() == [-3.0] * 8


# Fact 2


def test_fact_2_the_settled_policy_has_no_advantage_and_no_gradient(meta: InstanceMobileNet) -> None:
    searcher = make(make_problem(meta))
    searcher.shared.supernet.eval()
    images, labels = next(searcher.shared.batches(searcher.shared.data.train, searcher.batch_size, generator()))
    own = searcher.gates(images)
    settled = (own >= 0.5).float()
    with torch.no_grad():
        advantage = searcher._rewards(images, labels, settled, 1e6) - searcher._rewards(images, labels, settled.clone(), 1e6)
    assert not advantage.any()
    loss = instanas.policy_loss(instanas.explore(own, 0.8), settled, advantage, 0.0)
    grads = torch.autograd.grad(loss.sum(), list(searcher.controller.parameters()))
    assert not any(bool(grad.any()) for grad in grads)
    loss = instanas.policy_loss(instanas.explore(searcher.gates(images), 0.8), settled, advantage + 1, 0.0)
    assert any(bool(grad.any()) for grad in torch.autograd.grad(loss.sum(), list(searcher.controller.parameters())))


@pytest.mark.parametrize("full", [True, False])
def test_the_policy_gradient_is_that_of_the_expected_reward(full: bool) -> None:
    """Over all 64 policies of six gates: the mean of the estimator is the gradient of E[reward] + beta x entropy, whatever the baseline."""
    logits = torch.randn(1, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    policies = all_policies(6).double()
    rewards = torch.randn(64, generator=generator(1), dtype=torch.float64)
    probs = instanas.explore(logits.sigmoid(), 0.8)
    chance = torch.where(policies > 0, probs, 1 - probs).prod(-1)
    assert float(chance.detach().sum()) == pytest.approx(1)
    entropy = -(probs * probs.log()).sum() - (((1 - probs) * (1 - probs).log()).sum() if full else 0)
    (exact,) = torch.autograd.grad(chance @ rewards + 0.8 * entropy, logits, retain_graph=True)
    loss = instanas.policy_loss(probs.expand(64, -1), policies, rewards - 2.5, 0.8, full_entropy=full)
    (mean,) = torch.autograd.grad(chance.detach() @ loss, logits)
    torch.testing.assert_close(-mean, exact)


# Fact 3 is in `spaces/test_instance_mobilenet.py` and `test_supernet.py`


def test_fact_3_a_batch_of_policies_is_each_image_under_its_own(meta: InstanceMobileNet) -> None:
    supernet = make(make_problem(meta)).shared.supernet.eval()
    gates = torch.stack([*all_policies(6)[[0, 63]], *torch.bernoulli(torch.full((6, 6), 0.4), generator=generator())])
    images = torch.randn(8, *meta.input_shape, generator=generator())
    with torch.no_grad():
        together = supernet(images, instanas.choice_rows(gates))
        for image, policy, out in zip(images, gates.int().tolist(), together, strict=True):
            torch.testing.assert_close(supernet.extract(policy).eval()(image[None])[0], out, rtol=1e-4, atol=1e-6)


# Fact 4


def test_fact_4_sampled_costs_have_the_expected_cost_as_their_mean(meta: InstanceMobileNet) -> None:
    cost = make_problem(meta).costs["macs"]
    probs = instanas.explore(torch.rand(3, 6, generator=generator()), 0.8)
    exact = cost(instanas.choice_rows(probs))
    for expected, row in zip(exact.tolist(), probs, strict=True):
        sampled = cost.of(torch.bernoulli(row.expand(100_000, -1), generator=generator(1)).long())
        assert abs(float(sampled.mean()) - expected) < 4 * float(sampled.std()) / 100_000**0.5


# Fact 5: on planted easy and hard images


def planted(n: int, seed: int, side: int = 12) -> tuple[Part, Tensor]:
    """Of an easy image brightness tells the class; of a hard one, in which direction bright pixels lie two apart: more than a stem sees."""
    draws = generator(seed)
    labels, hard = torch.arange(n) % 4, (torch.arange(n) // 4) % 2 == 1
    images = torch.randint(0, 40, (n, 1, side, side), generator=draws)
    for image, label, is_hard in zip(images, labels.tolist(), hard.tolist(), strict=True):
        down, right = ((0, 2), (2, 0), (2, 2), (2, -2))[label]
        for _ in range(4 if is_hard else 0):
            y = int(torch.randint(0, side - down, (), generator=draws))
            x = int(torch.randint(max(0, -right), side - max(0, right), (), generator=draws))
            image[0, [y, y + down], [x, x + right]] += 150
        if not is_hard:
            image += 45 * (label + 1)
    return Part(images.clamp_max(255).to(torch.uint8), labels), hard


PLANTED = {
    "input_size": 12, "channels": 1, "classes": 4, "stem_width": 8, "widths": [8, 12], "depths": [2, 2], "strides": [1, 2],
    "head_width": 32, "modules": ["k5e3", "k3e3", "k1e1"], "controller_widths": [8, 16],
}  # fmt: skip
"""Four blocks of three modules; the fallback looks at single pixels."""


@pytest.mark.slow
def test_fact_5_latency_follows_its_bound_and_hard_images_get_more_of_it() -> None:
    valid, hard = planted(256, 2)
    data = Dataset("planted", planted(512, 1)[0], valid, planted(64, 3)[0], tuple("abcd"), Augmentation())
    options: dict[str, Any] = {
        "pretrain_epochs": 24, "epochs": 24, "epochs_per_ask": 8, "finetune_epochs": 2, "batch_size": 32, "lr": 0.1, "search_lr": 0.02,
        "controller_lr": 2e-3, "kappa": 0.0,
    }  # fmt: skip
    searcher = make(make_problem(load_space("instance_mobilenet", PLANTED), data=data), **options)
    logs = []
    for _ in range(3):
        searcher._train()
        searcher._record()
        logs.append(dict(searcher.log))
        gates = (searcher.probs(valid) >= 0.5).long()
        costs = searcher.cost.of(gates).numpy()
        assert 1 < searcher.log["unique_policies"] < len(valid)
    assert logs[0]["bound"] > logs[1]["bound"] > logs[2]["bound"]
    assert logs[0]["mean_macs"] > logs[1]["mean_macs"] > logs[2]["mean_macs"]
    assert mannwhitneyu(costs[hard], costs[~hard], alternative="greater").pvalue < 1e-6
    right = searcher.right(valid, gates)
    assert float(right[~hard].float().mean()) > 0.9
    assert float(right[hard].float().mean()) > 0.7


# The phases


def test_modules_are_kept_less_and_less_in_the_second_half_of_the_first_phase() -> None:
    assert [instanas.kept(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 1, 1, 0.75, 0.5]


def test_the_bounds_begin_above_half_open_gates_and_end_by_the_base_network(meta: InstanceMobileNet) -> None:
    problem = make_problem(meta)
    searcher = make(problem, epochs=10)
    cost = problem.costs["macs"]
    everything = {arch: float(cost.of([arch])) for arch in meta.all()}
    least, most, base = min(everything.values()), max(everything.values()), everything[meta.base]
    assert searcher.low == least
    assert searcher.bound(0) == pytest.approx(least + 0.7 * (most - least))
    assert searcher.bound(10) == pytest.approx(least + 0.5 * (base - least))
    assert searcher.bound(5) == pytest.approx((searcher.bound(0) + searcher.bound(10)) / 2)
    assert searcher.bound(0) > float(cost(torch.full((6, 2), 0.5)))
    budget = (least + searcher.bound(10)) / 2
    assert make(make_problem(meta, budgets={"macs": budget}), epochs=10).bound(10) == budget


def test_the_meta_graph_is_trained_under_other_images_policies(meta: InstanceMobileNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the search, the policies of a batch are dealt out anew; when fine-tuned, every image has its own."""
    searcher = make(make_problem(meta), batch_size=32, exploration=1.0, finetune_epochs=1, epochs_per_ask=2)
    brightness: list[Tensor] = []

    def by_brightness(images: Tensor) -> Tensor:
        brightness.append((images.mean((1, 2, 3)) > 0).float())
        return brightness[-1][:, None].expand(-1, 6) * 0.999 + 5e-4

    seen: list[Tensor] = []
    real = searcher.shared.supernet.forward

    def spy(images: Tensor, probs: Tensor) -> Tensor:
        if searcher.shared.supernet.training:
            seen.append(probs[:, 0, 1].detach())
        return real(images, probs)

    monkeypatch.setattr(searcher, "gates", by_brightness)
    monkeypatch.setattr(searcher, "_teach", lambda high, generator: None)
    monkeypatch.setattr(searcher.shared.supernet, "forward", spy)
    searcher._train()
    assert len(seen) == 2 + 2 + 1 and len(brightness) == 3
    for given, own in zip(seen[2:4], brightness[:2], strict=True):
        assert float(given.sum()) == pytest.approx(float(own.sum()), abs=2)
        assert not torch.equal(given, own)
    assert torch.equal(seen[4], brightness[2])
    assert float(seen[0].min()) == 1  # all modules open in the first half of the first phase


def test_a_checkpoint_is_fine_tuned_and_the_search_goes_on_from_before(meta: InstanceMobileNet, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = make(make_problem(meta), epochs=2, finetune_epochs=2)
    searcher._train()
    tuned = {name: tensor.clone() for name, tensor in searcher.shared.supernet.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in searcher._before.items()}
    assert not all(torch.equal(tuned[name], before[name]) for name in tuned)
    started: list[dict[str, Tensor]] = []
    monkeypatch.setattr(
        searcher,
        "_teach",
        lambda high, generator: started.append({name: tensor.clone() for name, tensor in searcher.shared.supernet.state_dict().items()}),
    )
    searcher._train()
    assert all(torch.equal(started[0][name], before[name]) for name in before)


def test_the_controller_learns_from_rewards(meta: InstanceMobileNet) -> None:
    """With a heavy price on expected cost gates close; without a price the entropy keeps them half open."""
    ends = []
    for kappa in (0.0, 1000.0):
        searcher = make(make_problem(meta), kappa=kappa, epochs=10, epochs_per_ask=0, controller_lr=0.03)
        searcher.ask(1)
        ends.append(float(searcher.cost(instanas.choice_rows(searcher.probs(searcher.shared.data.valid))).mean()))
    assert ends[1] < 0.7 * ends[0]


# What is asked and logged


def test_the_commonest_policies_are_asked_first_and_the_log_tells_of_the_instance_wise_network(
    meta: InstanceMobileNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = make(make_problem(meta), samples=3, epochs=1, epochs_per_ask=0, finetune_epochs=0)
    shares = torch.full((32, 6), 0.1)
    shares[:20, 0] = shares[20:28, 1] = shares[28:, 2] = 0.9
    monkeypatch.setattr(searcher, "probs", lambda part: shares)
    archs = searcher.ask(5)
    policies = [(1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0)]
    assert archs == policies
    costs = sorted(np.repeat(searcher.cost.of(policies).numpy() + searcher.controller_cost, [20, 8, 4]))
    assert searcher.log.keys() == {
        "epoch", "bound", "instance_accuracy", "mean_macs", "p50_macs", "p95_macs", "controller_macs", "unique_policies", "entropy",
    }  # fmt: skip
    assert searcher.log["mean_macs"] == pytest.approx(np.mean(costs))
    assert searcher.log["p50_macs"] == pytest.approx(np.median(costs))
    assert searcher.log["p95_macs"] == pytest.approx(np.quantile(costs, 0.95))
    assert searcher.log["controller_macs"] == sum(resources.macs(op) for op in meta.controller)
    assert searcher.log["unique_policies"] == 3
    assert searcher.log["entropy"] == pytest.approx(-0.1 * math.log(0.1) - 0.9 * math.log(0.9), rel=1e-5)
    assert len(searcher.ask(4)) == 4  # after the last checkpoint draws go on


def test_instance_accuracy_is_that_of_every_image_alone_under_its_policy(meta: InstanceMobileNet) -> None:
    searcher = make(make_problem(meta))
    searcher.ask(1)
    valid = searcher.shared.data.valid
    gates = (searcher.probs(valid) >= 0.5).long()
    right = 0
    with torch.no_grad():
        for image, label, policy in zip(valid.images, valid.labels, gates.tolist(), strict=True):
            network = searcher.shared.supernet.extract(policy).eval()
            right += int(network(searcher.shared.data.normalise(image[None])).argmax() == label)
    assert searcher.log["instance_accuracy"] == pytest.approx(right / len(valid))


def test_an_interrupted_ask_goes_on_from_its_last_epoch(meta: InstanceMobileNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in any of its epochs (three phases, and the second portion), it ends with the same weights, bit for bit."""
    options: dict[str, Any] = {"epochs": 2, "epochs_per_ask": 1, "finetune_epochs": 1, "batch_size": 32}
    whole = make(make_problem(meta), **options)
    expected = [whole.ask(3) for _ in range(2)]
    for last in (1, 3, 4):
        path = tmp_path / f"supernet{last}"
        real, done = InstaNAS._descend, 0

        def descend(self: InstaNAS, *args: Any, last: int = last, real: Any = real) -> None:
            nonlocal done
            if done == last:
                raise KeyboardInterrupt
            done += 1
            real(self, *args)

        monkeypatch.setattr(InstaNAS, "_descend", descend)
        stopped = make(make_problem(meta, checkpoint=path), **options)
        asked = [stopped.ask(3)] if last > 3 else []
        state = {name: tensor.clone() for name, tensor in stopped.state()[0].items()}, stopped.state()[1]
        with pytest.raises(KeyboardInterrupt):
            stopped.ask(3)
        monkeypatch.undo()
        again = make(make_problem(meta, seed=7, checkpoint=path), 5, **options)
        again.restore(state)
        asked += [again.ask(3) for _ in range(2 - len(asked))]
        assert asked == expected
        for name, tensor in whole.state()[0].items():
            assert torch.equal(tensor, again.state()[0][name]), name


# What it refuses


def test_a_space_without_gates_is_refused(diamond: SearchSpace) -> None:
    for space in (diamond, load_space("nasbench201", {"input_size": 8, "channels": 1, "width": 4, "cells": 1})):
        with pytest.raises(
            ConfigError, match=f"opens gates for each image, and {space.name} has none; set the space to instance_mobilenet"
        ):
            make(make_problem(space))


def test_a_resource_that_no_gate_changes_is_refused(meta: InstanceMobileNet) -> None:
    problem = make_problem(meta)
    problem.costs["free"] = CostModel(meta, lambda op: 0.0, metric="free")
    with pytest.raises(ConfigError, match="no gate of instance_mobilenet changes its free"):
        make(problem, resource="free")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resource": "mac"}, "nothing gives the resource 'mac'; did you mean 'macs'"),
        ({"resource": "peak_mb"}, "peak_mb is not a sum over operators, which instanas needs; set resource to another metric"),
        ({"exploration": 0.5}, "exploration"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_options_that_cannot_be_meant(meta: InstanceMobileNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_problem(meta), **options)


def test_a_diverged_meta_graph_is_an_error_that_says_what_to_do(meta: InstanceMobileNet) -> None:
    with pytest.raises(ConfigError, match=r"the meta-graph's loss became no number after \d epochs; lower lr \(now 1e\+30\)"):
        make(make_problem(meta), lr=1e30, pretrain_epochs=20, batch_size=8).ask(1)


WHOLE = """\
device: cpu-1t
data: {name: digits, size: 8}
space: {name: instance_mobilenet, input_size: 8, channels: 1, stem_width: 8, widths: [8, 16], depths: [2, 1], strides: [1, 2],
        head_width: 32, modules: [k3e3, k5e2, basic], controller_widths: [4, 8]}
searcher: {name: instanas, pretrain_epochs: 10, epochs: 4, epochs_per_ask: 2, finetune_epochs: 1, samples: 4, lr: 0.1, search_lr: 0.05,
           controller_lr: 0.002}
trials: 10
batch: 4
final: {members: 2, training: {epochs: 3, batch_size: 32}}
"""


@pytest.mark.slow
def test_on_digits_from_the_search_to_verified_models(search_and_verify: Callable[[str], tuple[Run, list[MemberReport]]]) -> None:
    run, reports = search_and_verify(WHOLE)
    trials = run.trials(run.experiment.load_space())
    assert len(trials) == 10
    logs = [trial.notes["log"] for trial in trials]
    assert [log["epoch"] for log in logs] == [12, 12, 12, 12, 14, 14, 14, 14, 14, 14]
    assert logs[0]["bound"] > logs[4]["bound"]
    assert logs[4]["instance_accuracy"] > 0.5
    assert min(trial.values["error"] for trial in trials) < 0.5
    assert reports
    for report in reports:
        assert report.passed and {check.status for check in report.checks} == {"passed"}, report
