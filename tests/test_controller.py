from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.controller import (
    INIT,
    Baseline,
    Buffer,
    Controller,
    Decoder,
    Form,
    Keep,
    Pick,
    make_controller,
    make_plan,
    reinforce,
    scalarisations,
    scalarised,
    share_below,
)
from hwnas.errors import ConfigError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

OPERATORS = ("sep_3x3", "sep_5x5", "avg_3x3", "max_3x3", "identity")


def bare(*slots: Slot) -> SearchSpace:
    """A space whose slots decide nothing."""
    return SearchSpace((3, 8, 8), 2, slots, (Site(OpSpec("classifier", 3, 2, 8, 8, stride=8), ("input",), "output"),), name="bare")


def cell(name: str, nodes: int, branches: str = "ab") -> list[Slot]:
    """The slots of an ENAS cell, named as `enas_micro` names them."""
    labels = ["in1", "in2", *(f"n{node}" for node in range(1, nodes + 1))]
    return [
        Slot(f"{name}.n{node}.{branch}.{what}", tuple(labels[: node + 1]) if what == "from" else OPERATORS)
        for node in range(1, nodes + 1)
        for branch in branches
        for what in ("from", "op")
    ]


def small(sizes: tuple[int, ...] = (2, 3, 2), scale: float = 10.0, **form: Any) -> Controller:
    """A controller of hardly any units whose weights are `scale` times as large as new ones, so that it has a will."""
    space = bare(*(Slot(f"s{i}", tuple(map(str, range(size)))) for i, size in enumerate(sizes)))
    controller = make_controller(space, Form(**{"hidden": 6, **form}), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in controller.parameters():
            if parameter.requires_grad:
                parameter.mul_(scale)
    return controller


def everything(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def gradient(loss: Tensor, controller: Controller) -> Tensor:
    wanted = [parameter for parameter in controller.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, wanted, strict=True)])


@pytest.mark.parametrize("form", [{"one_hot": True}, {"share": True, "squash": 2.0, "temperature": 0.5}, {"contexts": 3}], ids=str)
def test_probabilities_of_all_sequences_are_one_and_draws_come_as_often(form: dict[str, Any]) -> None:
    controller = small(**form)
    archs = everything((2, 3, 2))
    turn = controller.form.contexts - 1
    reading = controller(torch.full((12,), turn), archs)
    assert torch.equal(reading.log_probs[:, 0, 2:], torch.full((12, 1), -math.inf))
    probs = reading.log_prob.exp().detach()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-5)
    assert float(probs.max()) > 1.5 / 12
    n = 20_000
    drawn = controller.sample(torch.full((n,), turn), torch.Generator().manual_seed(1))
    counts = torch.stack([(drawn.archs == arch).all(1).sum() for arch in archs]) / n
    assert bool(((counts - probs).abs() < 4.5 * (probs * (1 - probs) / n).sqrt()).all())
    again = controller(torch.full((n,), turn), drawn.archs)
    assert torch.allclose(again.log_prob, drawn.log_prob, atol=1e-5)
    assert torch.allclose(again.entropy[0, 0].exp().clamp(1, 2), again.entropy[0, 0].exp())


def test_contexts_have_policies_of_their_own() -> None:
    controller = small(contexts=2)
    archs = everything((2, 3, 2))
    one, other = (controller(torch.full((12,), turn), archs).log_prob for turn in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_prefix_is_kept() -> None:
    controller = small()
    drawn = controller.sample(torch.zeros(50, dtype=torch.int64), torch.Generator().manual_seed(0), torch.tensor([[1, 2]]).expand(50, -1))
    assert {tuple(arch[:2]) for arch in drawn.archs.tolist()} == {(1, 2)}
    assert len(set(drawn.archs[:, 2].tolist())) == 2


# MONAS fact 3 and ENAS fact 1: the estimator against enumeration


def test_reinforce_is_unbiased_with_any_baseline_and_a_good_one_lowers_its_variance() -> None:
    controller = small()
    archs = everything((2, 3, 2))
    rewards = torch.sin(torch.arange(12.0)) + 3
    log_prob = controller(torch.zeros(12, dtype=torch.int64), archs).log_prob
    probs = log_prob.exp()
    exact = -gradient((probs * rewards).sum(), controller)
    spread = []
    for baseline in (0.0, 1.7, float((probs.detach() * rewards).sum())):
        each = torch.stack([gradient(reinforce(log_prob[i : i + 1], rewards[i : i + 1] - baseline), controller) for i in range(12)])
        mean = (probs.detach()[:, None] * each).sum(0)
        assert torch.allclose(mean, exact, atol=1e-5)
        spread.append(float((probs.detach()[:, None] * (each - mean) ** 2).sum()))
    assert spread[2] < 0.1 * spread[0]
    n = 4000
    drawn = controller.sample(torch.zeros(n, dtype=torch.int64), torch.Generator().manual_seed(0)).archs
    number = (drawn * torch.tensor([6, 2, 1])).sum(1)
    sampled = gradient(reinforce(log_prob[number], rewards[number] - 3.0), controller)
    deviation = torch.stack([gradient(reinforce(log_prob[i : i + 1], rewards[i : i + 1] - 3.0), controller) for i in range(12)])
    error = ((probs.detach()[:, None] * (deviation - exact) ** 2).sum(0) / n).sqrt()
    assert bool(((sampled - exact).abs() <= 5 * error + 1e-6).all())


def test_what_another_policy_drew_teaches_the_same_by_its_importance() -> None:
    controller = small()
    archs = everything((2, 3, 2))
    rewards = torch.cos(torch.arange(12.0))
    log_prob = controller(torch.zeros(12, dtype=torch.int64), archs).log_prob
    drew = torch.linspace(1, 3, 12).softmax(0)
    ratio = log_prob.detach().exp() / drew
    weighted = 12 * drew  # the mean over all is then the mean over what was drawn
    exact = -gradient((log_prob.exp() * rewards).sum(), controller)
    assert torch.allclose(gradient(reinforce(log_prob, rewards * weighted, ratio), controller), exact, atol=1e-5)


# ENAS fact 2: what squashing allows, whatever the weights are


def test_squashed_policies_cannot_commit() -> None:
    space = bare(*cell("normal", 5), *cell("reduction", 5))
    form = Form(hidden=8, share=True, squash=1.1, op_reduce=2.5, prefer=("normal*=sep*",))
    controller = make_controller(space, form, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(10)
        (head,) = controller.heads.values()
        head.bias.copy_(torch.tensor([1.0, -1, -1, -1, -1]) * 1e6)  # type: ignore[operator]
    reading = controller.sample(torch.zeros(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    highest = reading.log_probs.exp().amax((0, 2))
    least = reading.entropy.amin(0) / torch.tensor(space.num_choices).log()
    bounds = {2: 0.90, 3: 0.82, 4: 0.75, 5: 0.69, 6: 0.64}
    for slot, most, share in zip(space.slots, highest.tolist(), least.tolist(), strict=True):
        if slot.name.endswith("op"):
            assert most <= (0.4615 if slot.name.startswith("normal") else 0.377)
            assert share >= (0.85 if slot.name.startswith("normal") else 0.94)
        else:
            assert most <= bounds[len(slot.choices)] + 0.005
    assert highest[1].item() == pytest.approx(0.461, abs=1e-3)
    assert highest[-1].item() == pytest.approx(0.376, abs=1e-3)
    free = make_controller(space, Form(hidden=8, share=True), torch.Generator().manual_seed(0))
    free.load_state_dict(controller.state_dict())
    assert float(free.sample(torch.zeros(9, dtype=torch.int64), torch.Generator().manual_seed(0)).log_probs.exp().max()) > 0.99


def test_odds_of_the_recurrent_settings_are_bounded() -> None:
    controller = small(scale=1000, squash=2.25, temperature=5.0)
    reading = controller.sample(torch.zeros(100, dtype=torch.int64), torch.Generator().manual_seed(0))
    finite = reading.log_probs.masked_fill(reading.log_probs.isinf(), math.nan)
    odds = (finite.nan_to_num(-math.inf).amax(-1) - finite.nan_to_num(math.inf).amin(-1)).exp()
    assert 30 < float(odds.max()) <= math.exp(4.5) + 1e-3


# ENAS fact 3: the two inputs of a cell feed the same zeros


def test_pasts_that_differ_by_a_cells_input_are_one_past() -> None:
    space = bare(*cell("normal", 2))
    controller = make_controller(space, Form(hidden=8, share=True), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(10)
    first = [0, 1, 1, 2, 0, 3, 1, 0]
    pasts = torch.tensor([first, [1, *first[1:]], [*first[:4], 2, *first[5:]]])
    log_probs = controller(torch.zeros(3, dtype=torch.int64), pasts).log_probs
    assert torch.equal(log_probs[0], log_probs[1])
    assert not torch.allclose(log_probs[0, 5], log_probs[2, 5], atol=1e-3)  # a node's state is told from an input's zeros


def test_the_plan_of_cells() -> None:
    plan = make_plan(bare(*cell("normal", 2), *cell("reduction", 1)), share=True)
    slots = [step.slot if isinstance(step, Pick) else (step.anchor, step.silent) for step in plan]
    assert slots == [
        (0, True), (1, True), 0, 2, 1, 3, (2, False), 4, 6, 5, 7, (3, False),
        (4, True), (5, True), 8, 10, 9, 11, (6, False),
    ]  # fmt: skip
    picks = {step.slot: step for step in plan if isinstance(step, Pick)}
    assert picks[6].anchors == (0, 1, 2)
    assert picks[8].anchors == (4, 5)
    assert picks[1].anchors == ()
    assert picks[1].kind == picks[11].kind


def test_the_plan_of_a_recurrent_cell() -> None:
    acts = ("tanh", "relu")
    slots = (
        Slot("n1.act", acts),
        Slot("n2.from", ("0", "1")),
        Slot("n2.act", acts),
        Slot("n3.from", ("0", "1", "2")),
        Slot("n3.act", acts),
    )
    plan = make_plan(bare(*slots), share=True)
    assert plan[0] == Keep(0, silent=True)
    assert [step.anchors for step in plan if isinstance(step, Pick)] == [(), (0, 1), (), (0, 1, 2), ()]
    assert [step.anchor for step in plan if isinstance(step, Keep)] == [0, 1, 2, 3]


def test_other_spaces_are_written_slot_by_slot(diamond: SearchSpace) -> None:
    assert make_plan(diamond, share=True) == (Pick(0, 0), Pick(1, 1))
    alike = bare(Slot("a", ("x", "y")), Slot("b", ("x", "y")))
    assert [step.kind for step in make_plan(alike, share=True) if isinstance(step, Pick)] == [0, 0]
    assert [step.kind for step in make_plan(alike, share=False) if isinstance(step, Pick)] == [0, 1]
    assert make_plan(bare(*cell("normal", 1)), share=False) == tuple(Pick(slot, slot) for slot in range(4))


# ENAS fact 5: choices that depend on earlier ones


def test_conditioning_exceeds_the_best_independent_policy() -> None:
    """Reward 1 where the second of two choices among three equals the first, and half a nat's worth for every nat of entropy."""
    worth = 0.5
    grid = np.array([p for p in itertools.product(np.linspace(0, 1, 21), repeat=3) if abs(sum(p) - 1) < 1e-9])
    nats = -(grid * np.log(np.maximum(grid, 1e-12))).sum(1)
    best = float((grid @ grid.T + worth * (nats[:, None] + nats)).max())
    controller = small((3, 3), scale=1.0, hidden=16)
    adam = torch.optim.Adam(controller.parameters(), lr=0.03)
    generator, baseline = torch.Generator().manual_seed(0), Baseline(1, 0.9)
    turns = torch.zeros(64, dtype=torch.int64)
    for _ in range(100):
        reading = controller(turns, controller.sample(turns, generator).archs)
        rewards = (reading.archs[:, 0] == reading.archs[:, 1]).float()
        loss = reinforce(reading.log_prob, rewards - baseline.update(rewards.mean()[None])[0]) - worth * reading.entropy.sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    archs = everything((3, 3))
    log_prob = controller(torch.zeros(9, dtype=torch.int64), archs).log_prob.detach()
    reached = float((log_prob.exp() * ((archs[:, 0] == archs[:, 1]).float() - worth * log_prob)).sum())
    assert reached > best + 0.05
    assert reached <= worth * math.log(3 * (math.exp(1 / worth) + 2)) + 1e-5


# The parts


def test_new_weights_are_small_and_follow_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same = (small(scale=1.0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for weight, twin in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(weight, twin)
        assert float(weight.detach().abs().max()) <= INIT


def test_one_hot_choices_are_shared_by_all_slots_and_not_learnt() -> None:
    controller = small(one_hot=True, contexts=2)
    assert torch.equal(controller.start, torch.zeros(5))
    weight = controller.embeddings["1"].weight
    assert isinstance(weight, Tensor) and torch.equal(weight, torch.eye(3, 5))
    assert torch.equal(controller.context.weight, torch.eye(5)[3:])
    assert not any(parameter.requires_grad for parameter in controller.embeddings.parameters())
    assert torch.equal(small(one_hot=True).context.weight, torch.zeros(1, 3))


def test_what_is_preferred_must_exist(diamond: SearchSpace) -> None:
    with pytest.raises(ConfigError, match=r"prefer: 'normal\*=sep\*' matches no choice of diamond; write patterns like left=conv3"):
        make_controller(diamond, Form(prefer=("normal*=sep*",)), torch.Generator())
    controller = make_controller(diamond, Form(prefer=("left=conv*",), bias=0.5), torch.Generator())
    assert controller.bias.tolist() == [[-0.5, 0.5, 0.5], [0, 0, 0]]


def test_baseline_begins_with_the_first_reward_and_follows() -> None:
    baseline = Baseline(2, 0.9)
    assert baseline.update(torch.tensor([1.0, 2.0])).tolist() == [[1.0], [2.0]]
    assert baseline.update(torch.tensor([2.0, 2.0]))[:, 0].tolist() == pytest.approx([1.1, 2.0])


def test_weights_of_the_rewards() -> None:
    assert scalarisations([0.0, 0.25, 1.0], True, 1).tolist() == [[0, 1], [0.25, 0.75], [1, 0]]
    assert scalarisations([0.5, 1.0], True, 2).tolist() == [[0.5, 0, 0.5], [0.5, 0.25, 0.25], [0.5, 0.5, 0], [1, 0, 0]]
    assert scalarisations([0.5], True, 0).tolist() == [[1]]
    assert scalarisations([0.5, 1.0], False, 1).tolist() == [[0, 1]]
    assert scalarised(torch.tensor([[0.25, 0.75]]), torch.tensor([0.8]), torch.tensor([[0.4]])).tolist() == pytest.approx([-0.1])


def test_ranks_are_shares() -> None:
    assert share_below(torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([0.0, 1.0, 2.0, 9.0])).tolist() == [0, 0.125, 0.5, 1]


def test_the_buffer_holds_each_once_and_forgets_the_oldest() -> None:
    buffer = Buffer(3)
    buffer.push([(0, 1), (1, 1), (0, 1), (2, 1), (3, 1)])
    assert list(buffer.archs) == [(1, 1), (2, 1), (3, 1)]
    drawn = buffer.draw(10, torch.Generator().manual_seed(0))
    assert sorted(map(tuple, drawn.tolist())) == [(1, 1), (2, 1), (3, 1)]
    assert len(buffer.draw(2, torch.Generator())) == 2


def test_the_decoder_sees_the_state_only() -> None:
    decoder = Decoder((2, 3), 4, torch.Generator().manual_seed(0))
    state = torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).expand(6, -1)
    probs = (-decoder(state, everything((2, 3)))).exp().detach()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-5)
    table = probs.view(2, 3)
    assert torch.allclose(table, table.sum(1, keepdim=True) * table.sum(0), atol=1e-5)  # what it says of one slot hangs on no other
