"""What a searcher is given (Problem) and what it does (ask, tell, state, restore); checks stand here once, for all of them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas import context
from hwnas.checkpoint import load_state, save_state
from hwnas.cost import Cost, CostModel, TabularCost
from hwnas.errors import BudgetError, ConfigError, nearest
from hwnas.evaluate import Objective, SharedWeights, Trial
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and JSON-able values: all a searcher needs to go on as if it had never stopped."""

ENUMERABLE = 1 << 16
"""Assignments of choices up to which the last networks of a space are found by going through all of them."""


@dataclass
class Problem:
    """A space, what is minimised, what everything costs, and the budgets that hold.

    `costs` maps a metric to its cost model; `budgets` maps some of these metrics to what must not be exceeded, held
    against the upper bound of the cost at `confidence`. `shared` is the supernet that gradient searchers train.

    Raises:
        ConfigError: an objective or budget whose metric nothing gives.
        BudgetError: not even the cheapest architecture keeps a budget.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    costs: dict[str, Cost]
    budgets: dict[str, float] = field(default_factory=dict)
    confidence: float = 0.95
    shared: SharedWeights | None = None

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ConfigError("a search needs at least one objective; name some, e.g. objectives: [error, latency_ms]")
        for metric, limit in self.budgets.items():
            if metric not in self.costs:
                raise ConfigError(f"there is a budget on {metric!r}, but nothing gives that metric; {nearest(metric, self.costs)}")
            if not (math.isfinite(limit) and limit > 0):
                raise ConfigError(f"the budget on {metric} must be a positive number, but is {limit}")
            cost = self.costs[metric]
            arch = cost.cheapest()
            bound = float(cost.upper([arch], self.confidence)[0])
            if bound > limit:  # the least bound need not be that of the least cost
                arch, bound = self._least_bound(cost, arch, bound)
            if bound > limit:
                raise BudgetError(
                    f"the budget {metric}={limit:g} cannot be met: the cheapest architecture of {self.space.name} "
                    f"({self.space.describe(arch)}) needs up to {bound:.4g}, most of it for {dominating(cost, arch)}; "
                    f"raise the budget to at least {bound:.4g} or choose a smaller space"
                )

    def _least_bound(self, cost: Cost, arch: Architecture, bound: float) -> tuple[Architecture, float]:
        """The least upper bound: of all networks where they are few, else by changes of single slots."""
        while True:
            few = self.space.size <= ENUMERABLE
            near = [candidate for candidate in (self.space.all() if few else self._near(arch)) if self.space.graph(candidate)]
            bounds = cost.upper(near, self.confidence)
            least = int(bounds.argmin())
            if float(bounds[least]) >= bound:
                return arch, bound
            arch, bound = near[least], float(bounds[least])

    def feasible(self, archs: Sequence[Architecture]) -> NDArray[np.bool_]:
        """Which architectures keep every budget by their upper bound."""
        keep = np.ones(len(archs), dtype=np.bool_)
        if len(archs):
            for metric, limit in self.budgets.items():
                keep &= self.costs[metric].upper(archs, self.confidence).numpy() <= limit
        return keep

    def random(self, rng: np.random.Generator) -> Architecture:
        """A random architecture that keeps the budgets: by rejection, or where that fails by a walk from the cheapest."""
        for _ in range(20):
            archs = [self.space.random(rng) for _ in range(16)]
            keep = self.feasible(archs)
            if keep.any():
                return archs[int(keep.argmax())]
        return self.walk(self.anchor, rng)

    @cached_property
    def anchor(self) -> Architecture:
        """An architecture that keeps every budget.

        Raises:
            BudgetError: each budget can be met, but none of the cheapest architectures meets all of them.
        """
        cheapest = []
        for metric in dict.fromkeys((*self.budgets, *(m for m, cost in self.costs.items() if cost.quick))):
            cheapest.append(self.costs[metric].cheapest())
            if bool(self.feasible(cheapest[-1:])[0]):
                return cheapest[-1]
        rng = np.random.default_rng(0)
        ends = [self._approach(arch) for arch in (*cheapest, *(self.space.random(rng) for _ in range(8)))]
        excess = self._excess(ends)
        best = ends[int(excess.argmin())]
        if excess.min() <= 1:
            return best
        needs = ", ".join(f"{metric} {float(self.costs[metric].upper([best], self.confidence)[0]):.4g}" for metric in self.budgets)
        raise BudgetError(
            f"no architecture of {self.space.name} was found that keeps all of {self.budgets}; the nearest "
            f"({self.space.describe(best)}) needs up to {needs}; loosen one of them"
        )

    def _excess(self, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """The largest ratio of an upper bound to its budget, for each architecture."""
        ratios = [self.costs[metric].upper(archs, self.confidence).numpy() / limit for metric, limit in self.budgets.items()]
        return np.asarray(np.max(ratios, axis=0))

    def _approach(self, arch: Architecture) -> Architecture:
        """Changes single slots while the largest excess over a budget becomes smaller."""
        value = float(self._excess([arch])[0])
        while True:
            near = [candidate for candidate in self._near(arch) if self.space.graph(candidate)]
            excess = self._excess(near)
            if excess.min() >= value:
                return arch
            arch, value = near[int(excess.argmin())], float(excess.min())

    def _near(self, arch: Architecture) -> list[Architecture]:
        """Every architecture that differs in at most one slot."""
        return [(*arch[:slot], choice, *arch[slot + 1 :]) for slot, size in enumerate(self.space.num_choices) for choice in range(size)]

    def costliest(self, metric: str) -> Architecture:
        """The costliest architecture found that keeps the budgets: the large end of a front, by ascent on single slots.

        Dead branches make single changes worth nothing, so the ascent also starts from eight random architectures.
        """
        rng = np.random.default_rng(0)
        starts = [self.anchor, *(self.random(rng) for _ in range(8))] if self.budgets else [self.random(rng) for _ in range(9)]
        ends = [self._ascend(arch, self.costs[metric]) for arch in starts]
        return ends[int(self.costs[metric].of(ends).argmax())]

    def _ascend(self, arch: Architecture, cost: Cost) -> Architecture:
        value = float(cost.of([arch])[0])
        while True:
            near = [candidate for candidate in self._near(arch) if self.space.graph(candidate)]
            costs = np.where(self.feasible(near), cost.of(near).numpy(), -np.inf)
            if costs.max() <= value:  # the value that it was found with: sums of another batch are rounded otherwise
                return arch
            arch, value = near[int(costs.argmax())], float(costs.max())

    def walk(self, arch: Architecture, rng: np.random.Generator, steps: int = 0) -> Architecture:
        """Random changes of single slots from a feasible `arch`, each kept if the budgets still hold (default: 4 a slot)."""
        for _ in range(steps or 4 * len(self.space.slots)):
            slot = int(rng.integers(len(self.space.slots)))
            near = (*arch[:slot], int(rng.integers(self.space.num_choices[slot])), *arch[slot + 1 :])
            if self.space.graph(near) and bool(self.feasible([near])[0]):
                arch = near
        return arch

    def resource(self, name: str = "") -> str:
        """The metric of that name; by default the first objective that is a cost, else the first budget.

        Raises:
            ConfigError: nothing gives it, or none of the objectives is a cost.
        """
        wanted = [*(objective.name for objective in self.objectives), *self.budgets]
        found = name or next((metric for metric in wanted if metric in self.costs), "")
        if not found:
            raise ConfigError(f"none of the objectives is a cost; set resource to one of {', '.join(sorted(self.costs))}")
        if found not in self.costs:
            raise ConfigError(f"nothing gives the resource {found!r}; {nearest(found, self.costs)}")
        return found

    def known(self, archs: Sequence[Architecture]) -> dict[str, NDArray[np.float64]]:
        """The cost of each architecture by metric: known before anything is trained."""
        return {metric: cost.of(archs).numpy() for metric, cost in self.costs.items()}


def dominating(cost: Cost, arch: Architecture, most: int = 3) -> str:
    """The operators that an architecture spends most on, with their share, as text."""
    if isinstance(cost, TabularCost):
        return "operators that a table of whole networks does not tell apart"
    if not isinstance(cost, CostModel):
        return "its largest activations"
    prices: dict[OpSpec, float] = dict(zip(cost.operators, cost.price.tolist(), strict=True))
    spent: dict[str, float] = {}
    for op in context.lower_for(cost.space, arch, prices):
        spent[str(op)] = spent.get(str(op), 0.0) + prices[op]
    total = float(cost.of([arch])) or 1.0
    if (beside := total - sum(spent.values())) > 1e-9 * total:
        spent["what networks cost beside their operators"] = beside
    top = sorted(spent.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} ({value / total:.0%})" for name, value in top)


class Searcher(abc.ABC):
    """Ask for architectures, be told what they are worth. One file in `hwnas/searchers/` with one subclass is a searcher.

    A subclass takes `problem` and `rng` positionally and its options keyword-only; it draws randomness only from
    `rng` and generators seeded from it, and implements `propose`, and if it has something to learn or to save
    `learn`, `save` and `load`. What has been asked is kept here, and no network is ever asked twice.
    """

    needs_shared_weights: bool = False
    """Whether it trains `problem.shared` itself."""

    home: ClassVar[str] = "nasbench201"
    """A space that it serves, that of its publication where there is one: the tests run it there, and on others that it does not refuse."""

    small: ClassVar[dict[str, Any]] = {}
    """Options of a quick version, for tests and trials: few steps, with everything in it that the searcher can do."""

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self.problem = problem
        self.rng = rng
        self.log: dict[str, float] = {}
        """What a searcher wants recorded beside its latest trials."""
        self.asked: dict[bytes, Architecture] = {}
        """Every architecture asked or told so far, by `space.identity`: isomorphic cells are one network."""
        if self.needs_shared_weights and problem.shared is None:
            raise ConfigError(f"{type(self).__name__} trains a supernet and needs data to train it on; give the experiment a data section")

    def ask(self, n: int) -> list[Architecture]:
        """At most `n` valid architectures within the budgets; none when the searcher has nothing more to ask."""
        if n < 1:
            raise ConfigError(f"a searcher must be asked for at least 1 architecture, but got {n}")
        archs = self.propose(n)
        assert len(archs) <= n, f"{type(self).__name__} proposed {len(archs)} architectures, asked for {n}"
        checked = [self.problem.space.check(arch) for arch in archs]
        assert bool(self.problem.feasible(checked).all()), f"{type(self).__name__} proposed an architecture over budget"
        for arch in checked:
            network = self.problem.space.identity(arch)
            assert network not in self.asked, f"{type(self).__name__} proposed the network of {arch} twice"
            self.asked[network] = arch
        return checked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Hands over finished trials; those with a value that is not finite teach nothing and are left out."""
        for trial in trials:
            self.asked.setdefault(self.problem.space.identity(trial.arch), trial.arch)
        names = [objective.name for objective in self.problem.objectives]
        self.learn([trial for trial in trials if all(math.isfinite(trial.values.get(name, math.nan)) for name in names)])

    def state(self) -> State:
        """Everything needed to continue."""
        tensors, values = self.save()
        asked = torch.tensor(list(self.asked.values()), dtype=torch.int64).reshape(-1, len(self.problem.space.slots))
        return {**tensors, "asked": asked}, {**values, "rng": self.rng.bit_generator.state, "log": dict(self.log)}

    def restore(self, state: State) -> None:
        """Continues from what `state` gave: asks what it would have asked."""
        tensors, values = state
        self.rng.bit_generator.state = values["rng"]
        self.log = dict(values["log"])
        archs = [tuple(row) for row in tensors["asked"].tolist()]
        self.asked = {self.problem.space.identity(arch): arch for arch in archs}
        own = {name: tensor for name, tensor in tensors.items() if name != "asked"}
        self.load(own, {key: value for key, value in values.items() if key not in ("rng", "log")})

    @abc.abstractmethod
    def propose(self, n: int) -> list[Architecture]:
        """At most n architectures."""

    def learn(self, trials: Sequence[Trial]) -> None:
        """Takes in finished trials, possibly none."""

    def save(self) -> State:
        """Tensors and JSON-able values beside the generator's state."""
        return {}, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""

    def train_shared(self, position: dict[str, Any], unfinished: Callable[[], bool], epoch: Callable[[torch.Generator], None]) -> None:
        """Trains `problem.shared` epoch by epoch while it is `unfinished`; a call that was interrupted is gone on with.

        After every epoch the state is written to the checkpoint of the shared weights, where they have one; a call that begins
        at the same `position` with the same randomness takes it up from there. An epoch draws from the generator that it is
        given, and from torch's own, which is seeded from it.
        """
        assert self.problem.shared is not None
        path = self.problem.shared.checkpoint
        began = {"rng": self.rng.bit_generator.state, **position}
        if path is not None and path.exists():
            tensors, values = load_state(path)
            if values.pop("began", None) == began:
                self.restore((tensors, values))
        while unfinished():
            generator = self.torch_generator()
            with torch.random.fork_rng(range(torch.cuda.device_count())), torch.backends.cudnn.flags(deterministic=True):
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                epoch(generator)
            if path is not None:
                tensors, values = self.state()
                save_state(path, tensors, {**values, "began": began})

    def unasked(self, candidates: Iterable[Architecture], n: int) -> list[Architecture]:
        """The first `n` candidates that are valid, keep the budgets, and are no network asked before nor each other's."""
        found: dict[bytes, Architecture] = {}
        for arch in candidates:
            network = self.problem.space.identity(arch)
            if network and network not in self.asked and network not in found and bool(self.problem.feasible([arch])[0]):
                found[network] = arch
                if len(found) == n:
                    break
        return list(found.values())

    def random_architectures(self, n: int) -> Iterator[Architecture]:
        """`n` random feasible architectures and some more; of a space that can be enumerated all the others, too.

        Where `unasked` finds nothing in them there is, as good as surely, nothing more to ask.
        """
        few = self.problem.space.size <= ENUMERABLE
        for _ in range(n + (10 if few else 50)):
            yield self.problem.random(self.rng)
        if few:
            yield from (self._all_feasible[i] for i in self.rng.permutation(len(self._all_feasible)))

    @cached_property
    def _all_feasible(self) -> list[Architecture]:
        archs = list(self.problem.space.all())
        return [arch for arch, keeps in zip(archs, self.problem.feasible(archs), strict=True) if keeps]

    def vectors(self, trials: Sequence[Trial]) -> NDArray[np.float64]:
        """Minimised objectives, (trial, objective)."""
        rows = [trial.vector(self.problem.objectives) for trial in trials]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.problem.objectives))

    def torch_generator(self) -> torch.Generator:
        """A torch generator seeded from `rng`."""
        return torch.Generator().manual_seed(int(self.rng.integers(2**62)))
