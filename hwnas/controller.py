"""Controllers: an LSTM that writes an architecture choice by choice, and how it is taught (arXiv 1806.10332, 1802.03268).

The modules, the estimators and what their searchers share stand here once; `hwnas/searchers/monas.py` and `enas.py` say
which rewards they follow. Not from the papers: one controller serves a grid of rewards, whose number it is given with every step;
what has been evaluated teaches again, by importance weights; and costs, which are free, are learnt from architectures that are
never evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hwnas.checkpoint import load_optimizer, optimizer_tensors, part
from hwnas.errors import ConfigError
from hwnas.evaluate import Trial
from hwnas.searcher import Problem, Searcher, State
from hwnas.space import Architecture, SearchSpace

Choose = Callable[[int, Tensor], Tensor]
INIT = 0.1
"""Weights begin uniformly between -INIT and INIT."""


@dataclass(frozen=True)
class Pick:
    """A step that chooses for `slot`.

    Slots of one `kind` share the weights of their softmax and the embeddings of their choices. Where the choices are earlier
    nodes, `anchors` are the states kept of them, and the softmax is an attention over these.
    """

    slot: int
    kind: int = 0
    anchors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Keep:
    """A step whose state is kept as `anchor`; `silent` ones feed zeros when they are chosen (a cell's inputs)."""

    anchor: int
    silent: bool = False


Plan = tuple[Pick | Keep, ...]
"""What the LSTM does, step by step: every slot is picked once."""


_FROM = re.compile(r"(?P<cell>.*?)(?P<node>n[0-9]+)\..*")
"""The slots of a space whose nodes choose what they read: `n2.from`, `normal.n1.a.from` and `normal.n1.a.op` belong to nodes of cells."""


def make_plan(space: SearchSpace, *, share: bool) -> Plan:
    """Slot after slot; where slots are named `<cell>n<number>.<...>from`, their choices are the cell's inputs and earlier nodes.

    Then, as ENAS does, a state is kept of every input and every finished node, and the `from` slots of a node are picked first.

    Args:
        share: slots with the same labels are of one kind; else each is of its own.
    """
    kinds: dict[Any, int] = {}
    picks = [Pick(i, kinds.setdefault(slot.choices if share else i, len(kinds))) for i, slot in enumerate(space.slots)]
    places = [_FROM.fullmatch(slot.name) for slot in space.slots]
    if not share or not all(places) or not any(slot.name.endswith(".from") for slot in space.slots):
        return tuple(picks)
    cells: dict[str, dict[str, list[Pick]]] = {}
    for pick, place in zip(picks, places, strict=True):
        assert place is not None
        cells.setdefault(place["cell"], {}).setdefault(place["node"], []).append(pick)
    plan: list[Pick | Keep] = []
    kept = 0
    for nodes in cells.values():
        reading = {pick.slot: i for i, node in enumerate(nodes.values()) for pick in node if space.slots[pick.slot].name.endswith(".from")}
        slot, finished = next(iter(reading.items()))
        inputs = space.num_choices[slot] - finished
        anchors = list(range(kept, kept + inputs + len(nodes)))
        plan += [Keep(anchor, silent=True) for anchor in anchors[:inputs]]
        for node, anchor in zip(nodes.values(), anchors[inputs:], strict=True):
            node.sort(key=lambda pick: pick.slot not in reading)
            plan += [
                Pick(pick.slot, pick.kind, tuple(anchors[: space.num_choices[pick.slot]]) if pick.slot in reading else ()) for pick in node
            ]
            plan.append(Keep(anchor))
        kept += len(anchors)
    return tuple(plan)


@dataclass(frozen=True)
class Reading:
    """What a controller says of architectures that it writes or reads, slot by slot in the order of the space.

    `log_probs` are of each slot's choices given those before; minus infinity in the padding. `state` is its last (h, c).
    """

    archs: Int[Tensor, "n slot"]
    log_probs: Float[Tensor, "n slot choice"]
    state: Float[Tensor, "n state"]

    @cached_property
    def log_prob(self) -> Float[Tensor, " n"]:
        """Log-probability of each architecture."""
        chosen: Tensor = self.log_probs.gather(-1, self.archs[..., None]).squeeze(-1)
        return chosen.sum(-1)

    @cached_property
    def entropy(self) -> Float[Tensor, "n slot"]:
        """Entropy of each slot's distribution given the choices before, nats; differentiable."""
        finite = self.log_probs.masked_fill(self.log_probs.isinf(), 0.0)
        return -(self.log_probs.exp() * finite).sum(-1)


@dataclass(frozen=True)
class Form:
    """What a controller is made like; JSON-able, so that it can be made again from a run's checkpoint.

    Args:
        contexts: rewards that it serves; the number of one is given to it with every step.
        share: slots with the same labels share their softmax and embeddings, and choices of nodes are made by attention (ENAS);
            else each slot has its own (MONAS).
        one_hot: a choice is fed back as a one-hot vector that all slots share, zeros at the first step (MONAS), and not as a learnt
            embedding (ENAS).
        squash: logits become `squash * tanh(logit / temperature)`; 0 leaves them. Those of operators are divided by `op_reduce` besides.
        prefer: patterns of `slot=label`, as in `normal*=sep*`: `bias` is added to the logits of what matches, and taken from those
            of the other choices of such slots.
    """

    contexts: int = 1
    hidden: int = 64
    share: bool = False
    one_hot: bool = False
    squash: float = 0.0
    temperature: float = 1.0
    op_reduce: float = 1.0
    prefer: tuple[str, ...] = ()
    bias: float = 0.25


def make_controller(space: SearchSpace, form: Form, generator: torch.Generator) -> Controller:
    """A controller over the slots of a space.

    Raises:
        ConfigError: a pattern of `prefer` that matches no choice.
    """
    controller = Controller(space.num_choices, make_plan(space, share=form.share), form, generator)
    for pattern in form.prefer:
        liked = [[fnmatchcase(f"{slot.name}={label}", pattern) for label in slot.choices] for slot in space.slots]
        if not any(map(any, liked)):
            first = space.slots[0]
            raise ConfigError(
                f"prefer: {pattern!r} matches no choice of {space.name}; write patterns like {first.name}={first.choices[-1]}"
            )
    for slot in range(len(space.slots)):
        labels = [f"{space.slots[slot].name}={label}" for label in space.slots[slot].choices]
        likes = torch.tensor([any(fnmatchcase(label, pattern) for pattern in form.prefer) for label in labels])
        if likes.any():
            controller.bias[slot, : len(labels)] = torch.where(likes, form.bias, -form.bias)
    return controller


class Controller(nn.Module):
    """One LSTM layer over the steps of a plan, each fed the choice before it and the embedding of the context."""

    bias: Tensor
    mask: Tensor

    def __init__(self, sizes: Sequence[int], plan: Plan, form: Form, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes, self.plan, self.form = tuple(sizes), plan, form
        self.picks = tuple(step for step in plan if isinstance(step, Pick))
        assert sorted(pick.slot for pick in self.picks) == list(range(len(sizes))), "a plan picks every slot once"
        widest, hidden, contexts = max(sizes), form.hidden, form.contexts
        mask = torch.arange(widest) < torch.tensor(self.sizes)[:, None]
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("bias", torch.zeros(mask.shape), persistent=False)
        kinds = {pick.kind: self.sizes[pick.slot] for pick in self.picks if not pick.anchors}
        with torch.random.fork_rng([]):  # modules draw their first weights from torch's own generator
            self.heads = nn.ModuleDict({str(kind): nn.Linear(hidden, size) for kind, size in kinds.items()})
            if form.one_hot:
                width = widest + (contexts if contexts > 1 else 0)
                self.start = nn.Parameter(torch.zeros(width), requires_grad=False)
                self.embeddings = nn.ModuleDict({str(kind): _one_hot(size, width, 0) for kind, size in kinds.items()})
                self.context = _one_hot(contexts, width, widest)
            else:
                width = hidden
                self.start = nn.Parameter(torch.empty(width))
                self.embeddings = nn.ModuleDict({str(kind): nn.Embedding(size, width) for kind, size in kinds.items()})
                self.context = nn.Embedding(contexts, width)
            self.lstm = nn.LSTMCell(width, hidden)
            if any(pick.anchors for pick in self.picks):
                self.key, self.query, self.score = (nn.Linear(hidden, size, bias=False) for size in (hidden, hidden, 1))
        initialise(self, generator)

    def forward(self, contexts: Int[Tensor, " n"], archs: Int[Tensor, "n slot"]) -> Reading:
        """Reads architectures: their log-probabilities by teacher forcing, differentiable."""
        return self._walk(contexts, lambda slot, log_probs: archs[:, slot])

    @torch.no_grad()
    def sample(self, contexts: Int[Tensor, " n"], generator: torch.Generator, prefix: Int[Tensor, "n begun"] | None = None) -> Reading:
        """Writes an architecture for each context; `prefix` gives the choices of the first picks."""
        begun = {} if prefix is None else {pick.slot: column for pick, column in zip(self.picks, prefix.unbind(1), strict=False)}

        def choose(slot: int, log_probs: Tensor) -> Tensor:
            if slot in begun:
                return begun[slot]
            return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)

        return self._walk(contexts, choose)

    def _walk(self, contexts: Tensor, choose: Choose) -> Reading:
        n = len(contexts)
        context = self.context(contexts)
        start = self.start.expand(n, -1)
        fed = start
        state = (context.new_zeros(n, self.form.hidden), context.new_zeros(n, self.form.hidden))
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        archs: dict[int, Tensor] = {}
        log_probs: dict[int, Tensor] = {}
        for step in self.plan:
            state = self.lstm(fed + context, state)
            if isinstance(step, Keep):
                keys[step.anchor] = self.key(state[0])
                values[step.anchor] = torch.zeros_like(state[0]) if step.silent else state[0]
                fed = start
                continue
            logits = self._logits(step, state[0], keys)
            log_probs[step.slot] = logits.log_softmax(-1)
            chosen = archs[step.slot] = choose(step.slot, log_probs[step.slot].detach())
            if step.anchors:
                kept = torch.stack([values[anchor] for anchor in step.anchors], 1)
                fed = kept[torch.arange(n), chosen]
            else:
                fed = self.embeddings[str(step.kind)](chosen)
        slots = range(len(self.sizes))
        return Reading(
            torch.stack([archs[slot] for slot in slots], 1), torch.stack([log_probs[slot] for slot in slots], 1), torch.cat(state, -1)
        )

    def _logits(self, step: Pick, h: Tensor, keys: Mapping[int, Tensor]) -> Tensor:
        squash = self.form.squash
        if step.anchors:
            kept = torch.stack([keys[anchor] for anchor in step.anchors], 1)
            logits = self.score(torch.tanh(kept + self.query(h)[:, None])).squeeze(-1)
        else:
            logits = self.heads[str(step.kind)](h)
            squash /= self.form.op_reduce
        if squash:
            logits = squash * torch.tanh(logits / self.form.temperature)
        logits = functional.pad(logits, (0, self.mask.shape[1] - logits.shape[1]))
        return (logits + self.bias[step.slot]).masked_fill(~self.mask[step.slot], -torch.inf)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws every trainable weight uniformly between -INIT and INIT."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.uniform_(-INIT, INIT, generator=generator)


def _one_hot(rows: int, width: int, first: int) -> nn.Embedding:
    """Embeddings that are not learnt: ones in the columns from `first` on, one a row; zeros where there is no column."""
    embedding = nn.Embedding(rows, width)
    embedding.weight = nn.Parameter(torch.eye(first + rows, width)[first:], requires_grad=False)
    return embedding


def reinforce(
    log_prob: Float[Tensor, "*batch"], advantage: Float[Tensor, "*batch"], ratio: Float[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    """A number whose gradient estimates that of minus the expected reward: minus the mean of ratio x advantage x log pi.

    `advantage` is the reward less a baseline; `ratio` the policy's probability over that of the policy that drew, 1 where it is the same.
    """
    credit = advantage if ratio is None else ratio * advantage
    loss: Tensor = -(credit.detach() * log_prob).mean()
    return loss


class Baseline:
    """An exponential moving average of the rewards of each context; it begins with the first."""

    def __init__(self, contexts: int, decay: float) -> None:
        self.decay = decay
        self.value = torch.full((contexts,), math.nan)

    def update(self, mean: Float[Tensor, " context"]) -> Float[Tensor, "context 1"]:
        """Takes in mean rewards; the average after that."""
        self.value = torch.where(self.value.isnan(), mean, self.value + (1 - self.decay) * (mean - self.value))
        return self.value[:, None]


def scalarisations(alphas: Sequence[float], measured: bool, costs: int) -> Float[Tensor, "context weight"]:
    """Weights of quality (first) and of each cost, a row for each reward: alpha, and 1 - alpha for one of the costs or shared by all.

    Without costs quality is all, without a measured objective the costs are.
    """
    if not costs:
        return torch.ones(1, 1)
    shares = torch.eye(costs) if costs == 1 else torch.cat([torch.eye(costs), torch.full((1, costs), 1 / costs)])
    rows = [torch.cat([torch.tensor([alpha]), (1 - alpha) * share]) for alpha in (alphas if measured else [0.0]) for share in shares]
    found: Tensor = torch.unique(torch.stack(rows), dim=0)
    return found


def scalarised(weights: Float[Tensor, "n weight"], quality: Float[Tensor, " n"], costs: Float[Tensor, "n cost"]) -> Float[Tensor, " n"]:
    """Each architecture's reward by its own row of `scalarisations`."""
    found: Tensor = weights[:, 0] * quality - (weights[:, 1:] * costs).sum(1)
    return found


class Decoder(nn.Module):
    """A small LSTM that must tell an architecture from a controller's last state alone: it is fed nothing, least of all choices."""

    def __init__(self, sizes: Sequence[int], hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            self.lstm = nn.LSTMCell(1, hidden)
            self.heads = nn.ModuleList(nn.Linear(hidden, size) for size in sizes)
        initialise(self, generator)

    def forward(self, state: Float[Tensor, "n state"], archs: Int[Tensor, "n slot"]) -> Float[Tensor, " n"]:
        """Minus the log-probability of each architecture."""
        h, c = state.chunk(2, -1)
        nothing = state.new_zeros(len(state), 1)
        losses = []
        for head, column in zip(self.heads, archs.unbind(1), strict=True):
            h, c = self.lstm(nothing, (h, c))
            losses.append(functional.cross_entropy(head(h), column, reduction="none"))
        return torch.stack(losses).sum(0)


class Buffer:
    """The architectures sampled last, each once; the oldest goes when it is full."""

    def __init__(self, capacity: int = 1000) -> None:
        self.capacity = capacity
        self.archs: dict[Architecture, None] = {}

    def push(self, archs: Iterable[Architecture]) -> None:
        """Takes in architectures; one that is there keeps its place."""
        for arch in archs:
            self.archs.setdefault(arch)
            if len(self.archs) > self.capacity:
                del self.archs[next(iter(self.archs))]

    def draw(self, m: int, generator: torch.Generator) -> Int[Tensor, "m slot"]:
        """At most m of them, none twice."""
        archs = torch.tensor(list(self.archs))
        return archs[torch.randperm(len(archs), generator=generator)[:m]]


RATIO = 10.0
"""The largest importance weight of an evaluated architecture."""
NORMALISATION = 200
"""Random architectures over whose smallest and largest costs the costs are scaled."""
FEW = 32
"""The same where costs are had one by one."""
DRAWS = 32
"""Draws from the policy for every architecture wanted, of which the first new ones are asked."""


@dataclass(frozen=True)
class Learning:
    """How a controller is taught.

    Args:
        scale: of what a reward is made of, to values between 0 and 1. "range": qualities by the best and worst that was told,
            costs by the least and largest of 200 random architectures; "rank": the share of all that was told that is worse.
        lr: of Adam.
        entropy: weight, in what is maximised, of the entropy of the policy as a share of the uniform one's.
        steps: steps of Adam for each tell.
        replay: evaluated architectures looked at in a step, drawn from all that there are.
        free: architectures that each reward's policy draws in a step, of which only the costs are looked at.
        decay: of the moving averages that are the baselines.
        kappa: what an architecture loses that is no network, or by the share by which it exceeds a budget.
    """

    scale: Literal["range", "rank"]
    lr: float
    entropy: float
    steps: int
    replay: int
    free: int
    decay: float
    kappa: float


class ControllerSearcher(Searcher):
    """What is asked is drawn from a controller, reward after reward; what is told teaches it by REINFORCE.

    A reward is a sum of what is known of any architecture, its costs, and of what only an evaluation tells. The policy
    gradient of the first comes from fresh draws, that of the second from all that was told, weighted by how much more probable
    the policy makes it now than the policies of all rewards together did when it was told; each has a baseline of its own. What
    is no network or exceeds a budget is never asked, and pays for it in the first part.

    Args:
        weights: of quality (first) and of each cost among the objectives, a row for each reward; see `scalarisations`.
    """

    def __init__(
        self, problem: Problem, rng: np.random.Generator, weights: Float[Tensor, "context weight"], form: Form, learning: Learning
    ) -> None:
        super().__init__(problem, rng)
        space = problem.space
        self.weights, self.learning, self.contexts = weights, learning, len(weights)
        self.controller = make_controller(space, replace(form, contexts=self.contexts), self.torch_generator())
        self.optimizer = torch.optim.Adam(self.trained(), lr=learning.lr)
        self.told_baseline, self.free_baseline = (Baseline(self.contexts, learning.decay) for _ in range(2))
        self.costs = {name: problem.costs[name] for name in cost_objectives(problem)}
        self.free = torch.tensor([cost.quick for cost in self.costs.values()], dtype=torch.bool)
        """Which of the costs can be had of thousands of architectures; the others are taken from what is told."""
        self._is_cost = torch.tensor([objective.name in self.costs for objective in problem.objectives])
        self.archs = torch.zeros(0, len(space.slots), dtype=torch.int64)
        self.losses = torch.zeros(0, len(problem.objectives), dtype=torch.float64)
        self.drawn_with = torch.zeros(0)
        self._is_network = lru_cache(1 << 16)(lambda arch: bool(space.alive(arch)))
        self._always_network, self._seen = self._look_around()

    def trained(self) -> list[nn.Parameter]:
        """What Adam trains."""
        return [parameter for parameter in self.controller.parameters() if parameter.requires_grad]

    def quality_and_costs(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n cost"]]:
        """Of all that was told, scaled; the quality is the mean over the measured objectives, the larger the better."""
        measured = self.losses[:, ~self._is_cost]
        if self.learning.scale == "rank":
            losses = torch.stack([share_below(column, column) for column in measured.T], 1) if measured.shape[1] else measured
        else:
            low, high = measured.amin(0), measured.amax(0)
            losses = (measured - low) / (high - low).clamp_min(1e-12)
        quality = 1 - losses.mean(1) if measured.shape[1] else torch.zeros(len(measured))
        return quality.float(), self.scaled(self.losses[:, self._is_cost])

    def told_rewards(
        self, told: Int[Tensor, " n"], quality: Float[Tensor, " n"], costs: Float[Tensor, "n cost"]
    ) -> Float[Tensor, "context n"]:
        """The part of each reward that only an evaluation tells, for some (by number) of what was told."""
        rewards: Tensor = self.weights[:, :1] * quality - (self.weights[:, 1:] * ~self.free) @ costs.T
        return rewards

    def free_rewards(self, archs: Int[Tensor, "context n slot"], costs: Float[Tensor, "context n cost"]) -> Float[Tensor, "context n"]:
        """The part of each reward that is known of any architecture, for the draws of its own policy."""
        rewards: Tensor = -(costs * (self.weights[:, 1:] * self.free)[:, None]).sum(-1)
        return rewards

    def extra_loss(self, generator: torch.Generator) -> Tensor:
        """What is lowered besides, in every step."""
        return torch.zeros(())

    def promising(self, archs: Sequence[Architecture]) -> NDArray[np.bool_]:
        """Which draws are worth an evaluation, as far as that is known."""
        return self.problem.feasible(archs)

    def propose(self, n: int) -> list[Architecture]:
        """Draws for one reward after another; what has been asked already gives its turn away, and random networks fill the rest."""
        turns = (torch.arange(n) + len(self.asked)) % self.contexts
        drawn = self.drawn(turns.repeat(DRAWS), self.torch_generator())
        strangers = (arch for arch in self.random_architectures(n) if self.promising([arch])[0])
        return self.unasked(chain(drawn, strangers, self.random_architectures(n)), n)

    def drawn(self, turns: Int[Tensor, " n"], generator: torch.Generator) -> list[Architecture]:
        """What the policies of these turns draw, each architecture once, as far as it is worth an evaluation."""
        archs = list(dict.fromkeys(map(tuple, self.controller.sample(turns, generator).archs.tolist())))
        return [arch for arch, worth in zip(archs, self.promising(archs), strict=True) if worth]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Remembers what was told, and takes the steps."""
        if not trials:
            return
        archs = torch.tensor([trial.arch for trial in trials])
        self.archs = torch.cat([self.archs, archs])
        self.losses = torch.cat([self.losses, torch.as_tensor(self.vectors(trials))])
        with torch.no_grad():
            mixture = self._log_probs(archs).logsumexp(0) - math.log(self.contexts)
        self.drawn_with = torch.cat([self.drawn_with, mixture])
        generator = self.torch_generator()
        quality, costs = self.quality_and_costs()
        for _ in range(self.learning.steps):
            told = torch.randperm(len(self.archs), generator=generator)[: self.learning.replay]
            loss = self.told_loss(told, quality[told], costs[told])
            self.descend(loss + self.free_loss(generator) + self.extra_loss(generator))

    def told_loss(self, told: Int[Tensor, " n"], quality: Float[Tensor, " n"], costs: Float[Tensor, "n cost"]) -> Tensor:
        """What some of what was told, by number, says of every policy."""
        log_probs = self._log_probs(self.archs[told])
        ratio = (log_probs.detach() - self.drawn_with[told]).exp().clamp_max(RATIO)
        rewards = self.told_rewards(told, quality, costs)
        baseline = self.told_baseline.update((ratio * rewards).sum(1) / ratio.sum(1))
        return reinforce(log_probs, rewards - baseline, ratio)

    def descend(self, loss: Tensor) -> None:
        """One step of Adam."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    def free_loss(self, generator: torch.Generator) -> Tensor:
        """What fresh draws of all policies say: costs, budgets and entropy."""
        turns = torch.arange(self.contexts).repeat_interleave(self.learning.free)
        archs = self.controller.sample(turns, generator).archs
        reading = self.controller(turns, archs)
        costs = self.known(archs, self.free)
        excess = self._excess(archs)
        shape = (self.contexts, self.learning.free)
        rewards = self.free_rewards(archs.view(*shape, archs.shape[1]), costs.view(*shape, costs.shape[1]))
        rewards = rewards - self.learning.kappa * excess.view(shape)
        entropy = reading.entropy.sum() / len(archs) / (math.log(self.problem.space.size) or 1.0)
        self.log = {"entropy": float(entropy.detach()), "feasible": float((excess == 0).float().mean())}
        surprise = rewards - self.free_baseline.update(rewards.mean(1))
        loss: Tensor = reinforce(reading.log_prob.view(shape), surprise) - self.learning.entropy * entropy
        return loss

    def save(self) -> State:
        """Controller, Adam, baselines, and all that was told."""
        tensors = {
            **{f"controller.{name}": value for name, value in self.controller.state_dict().items()},
            **optimizer_tensors("adam", self.optimizer),
            "weights": self.weights, "archs": self.archs, "losses": self.losses, "drawn_with": self.drawn_with,
            "told_baseline": self.told_baseline.value, "free_baseline": self.free_baseline.value,
        }  # fmt: skip
        return tensors, {"controller": asdict(self.controller.form)}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self.controller.load_state_dict(part(tensors, "controller"))
        load_optimizer("adam", self.optimizer, tensors)
        self.archs, self.losses, self.drawn_with = tensors["archs"], tensors["losses"], tensors["drawn_with"]
        self.told_baseline.value, self.free_baseline.value = tensors["told_baseline"], tensors["free_baseline"]

    def _look_around(self) -> tuple[bool, list[Float[Tensor, " n"]]]:
        """Whether every assignment of choices seems to be a network, and each cost of random architectures."""
        rng = np.random.default_rng(0)
        anything = [tuple(int(rng.integers(size)) for size in self.problem.space.num_choices) for _ in range(NORMALISATION)]
        networks = [arch for arch in anything if self._is_network(arch)] or [self.problem.random(rng)]
        known = [cost.of(networks if free else networks[:FEW]) for cost, free in zip(self.costs.values(), self.free, strict=True)]
        return len(networks) == NORMALISATION, known

    def _log_probs(self, archs: Tensor) -> Float[Tensor, "context n"]:
        """How probable each policy makes architectures."""
        turns = torch.arange(self.contexts).repeat_interleave(len(archs))
        reading: Reading = self.controller(turns, archs.repeat(self.contexts, 1))
        log_probs: Tensor = reading.log_prob.view(self.contexts, -1)
        return log_probs

    def scaled(self, costs: Float[Tensor, "n cost"]) -> Float[Tensor, "n cost"]:
        """Costs between about 0 and 1; what is no network may cost an infinity, and then costs as much as the worst."""
        told = self.losses[:, self._is_cost]
        columns = []
        for i, column in enumerate(costs.T):
            if self.learning.scale == "rank":
                columns.append(share_below(torch.cat([self._seen[i], told[:, i]]), column))
            else:
                low, high = self._seen[i].aminmax()
                columns.append(((column - low) / (high - low).clamp_min(1e-12)).nan_to_num(posinf=1.0).float())
        return torch.stack(columns, 1) if columns else costs.float()

    def known(self, archs: Int[Tensor, "n slot"], which: Bool[Tensor, " cost"]) -> Float[Tensor, "n cost"]:
        """The scaled costs of architectures; 0 where they are not among those asked for."""
        nothing = torch.zeros(len(archs), dtype=torch.float64)
        columns = [cost.of(archs) if wanted else nothing for cost, wanted in zip(self.costs.values(), which, strict=True)]
        return self.scaled(torch.stack(columns, 1) if columns else nothing[:, None][:, :0])

    def _excess(self, archs: Int[Tensor, "n slot"]) -> Float[Tensor, " n"]:
        """By which shares architectures exceed the budgets, summed; 1 for what is no network."""
        found = torch.zeros(len(archs), dtype=torch.float64)
        for metric, limit in self.problem.budgets.items():
            found += (self.problem.costs[metric].upper(archs, self.problem.confidence) / limit - 1).clamp(0, 1)
        if not self._always_network:
            found = torch.where(torch.tensor([self._is_network(tuple(arch)) for arch in archs.tolist()]), found, 1.0)
        return found.float()


def cost_objectives(problem: Problem) -> list[str]:
    """The objectives that are known before anything is evaluated."""
    return [objective.name for objective in problem.objectives if objective.name in problem.costs]


def share_below(values: Float[Tensor, " n"], these: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The share of `values` that is less than each of `these`; of equal ones a half."""
    ordered = values.sort().values.contiguous()
    below = torch.searchsorted(ordered, these.contiguous()) + torch.searchsorted(ordered, these.contiguous(), right=True)
    return below.float() / (2 * len(values))
