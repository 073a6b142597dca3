"""CostModel: what an architecture costs on a device, exactly for one, and in expectation, with its gradient, for a distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor, nn

from hwnas import context, resources
from hwnas.diagram import Diagrams, Evaluation, Function
from hwnas.errors import ConfigError, MissingPriceError, SpaceError, TableError
from hwnas.op import OpSpec
from hwnas.space import IDENTITY, Architecture, Decision, SearchSpace, Site

ENUMERABLE = 1 << 16
"""Architectures up to which the cheapest is found by pricing all of them."""
STEPS = 1 << 8
"""In how many steps a network's weights are told apart where their square counts."""
MOST_NODES = 1 << 18
"""Nodes of decision diagrams that may be made to find out when a site is alive."""
MOST_MORE_NODES = 1 << 16
"""The same for what makes prices truer: operators in context, and the square of the weights."""
_DENSE = 1 << 20  # entries of the largest table that prices of architectures are looked up in
_IN_CACHE = 1 << 13  # entries of a table that stays in the first cache level
_CHUNK = 1 << 14  # architectures looked up at a time
_REMEMBERED = 1 << 16  # networks whose operators a cost model keeps
_STARTS, _FEW_STARTS = 16, 3  # of the descent to the cheapest network: by lookup, and where networks are walked one by one

Prices = Mapping[OpSpec, float] | Callable[[OpSpec], float]


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What is not known of the prices: their covariance, that of the offset, and the relative noise of a whole network.

    `covariance` is over the model's `operators`, all choices slot by slot where there are corrections, and last the offset,
    in squared units of the metric; `noise` is the standard deviation of a network's true cost about its sum of prices,
    as a share of the sum.
    """

    covariance: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    noise: float


class CostModel(nn.Module):
    """cost = offset + sum over sites of price x probability that the site is in the network.

    That probability is the product of the probabilities of the site's decisions, times the probability that the site
    is alive given them. The latter is exact: when a site is alive is a decision diagram over the choices (`diagram.py`),
    where choices that wire the network alike are one. Where it grows too large, or the space chooses its sites by a rule,
    `expects` is False: networks are priced one by one, and soft rows are refused.

    Args:
        prices: the price of each of `operators`, in the unit that ends `metric`'s name.
        offset: what every network costs beside its operators (a session's overhead), in the same unit.
        corrections: (slot, choice) what a choice costs beside its operators; not negative, anything in the padding.
        once: operators that share their weights (tied sites) are paid for once a network: for prices of what is stored.
        contextual: operators that a convolution takes in, and changes of layout, have prices of their own (see `hwnas.context`).
        pressing: the square of a network's weights has a price too, that of `context.PRESSURE`.

    Raises:
        TableError: a price is missing, negative or not finite.
    """

    operators: tuple[OpSpec, ...]
    """`space.operators()`, and behind them the contextual ones where these are told apart, and `PRESSURE` last."""

    quick = True
    """Whether networks are priced fast enough to look for the cheapest and the costliest."""

    def __init__(
        self,
        space: SearchSpace,
        prices: Prices,
        *,
        metric: str = "cost",
        offset: float = 0.0,
        corrections: NDArray[np.float64] | None = None,
        uncertainty: Uncertainty | None = None,
        once: bool = False,
        contextual: bool = False,
        pressing: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        self.once = once and space.reuses
        self.metric = metric
        self.offset = float(offset)
        self.uncertainty = uncertainty
        self.contextual = contextual
        self.pressing = pressing
        beside = (*(context.contextual(space) if contextual else ()), *((context.PRESSURE,) if pressing else ()))
        self.operators = (*space.operators(), *beside)
        self._pressure = _pressure(space) if pressing else None
        price = torch.tensor([_price(prices, op, metric) for op in self.operators], dtype=torch.float64)
        self.price: Tensor
        self.register_buffer("price", price, persistent=False)
        self._terms: _Terms | _Walked
        self.term_price: Tensor
        unmixed = SpaceError(f"{space.name} prices its networks one by one; search it with a searcher that prices whole architectures")
        terms = _terms(space, contextual) if space.expectable and not self.once else unmixed
        self._terms = _Walked(self, str(terms)) if isinstance(terms, SpaceError) else terms
        self.register_buffer("term_price", self._terms.usage @ price[: self._terms.usage.shape[1]], persistent=False)
        self.corrections: Tensor | None
        self.register_buffer("corrections", None if corrections is None else _corrections(space, corrections), persistent=False)

    @property
    def expects(self) -> bool:
        """Whether soft rows have an expected cost."""
        return isinstance(self._terms, _Terms) and (self._pressure is None or self._pressure.expects)

    def forward(self, probs: Float[Tensor, "*batch slot choice"]) -> Float[Tensor, "*batch"]:
        """Expected cost under independent choices; exact on one-hot rows. Rows are padded with zeros behind the last choice.

        Raises:
            SpaceError: soft rows where `expects` is False.
        """
        out: Tensor = self._terms.presence(probs) @ self.term_price.to(probs) + self.offset
        if self.corrections is not None:
            out = out + (probs * self.corrections.to(probs)).sum((-1, -2))
        if self._pressure is not None:
            out = out + self._pressure.mean(probs) * self.price[-1].to(probs)
        return out

    def of(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n"]:
        """Cost of each architecture, by lookup: millions a second."""
        archs = torch.as_tensor(archs, dtype=torch.int64).reshape(len(archs), len(self.space.slots))
        linear = self._linear(archs)
        return linear if self._pressure is None else linear + self._pressure.of(archs) * self.price[-1]

    def _linear(self, archs: Int[Tensor, "n slot"]) -> Float[Tensor, "n"]:
        """Offset, operators and corrections."""
        if self._lookup is None:
            sums = torch.cat([self._terms.present(rows) @ self.term_price for rows in torch.split(archs, _CHUNK)]) + self.offset
            return sums if self.corrections is None else sums + self._corrected(archs)
        out = self.price.new_full((len(archs),), self._fixed)
        for rows, cost in zip(torch.split(archs, _CHUNK), torch.split(out, _CHUNK), strict=True):
            columns = [column.contiguous() for column in rows.unbind(1)]
            for slots, table in self._lookup:
                index = columns[slots[0]]
                for slot in slots[1:]:
                    index = index * self.space.num_choices[slot] + columns[slot]
                cost += table.index_select(0, index)  # on one thread: waiting for others takes longer than the work
        return out

    def _corrected(self, archs: Int[Tensor, "n slot"]) -> Float[Tensor, "n"]:
        assert self.corrections is not None
        out: Tensor = self.corrections[torch.arange(archs.shape[1]), archs].sum(-1)
        return out

    def counts(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n operator"]:
        """How often each of `operators` occurs in each architecture's network."""
        archs = torch.as_tensor(archs, dtype=torch.int64).reshape(len(archs), len(self.space.slots))
        found = self._terms.present(archs) @ self._terms.usage
        return found if self._pressure is None else torch.cat([found, self._pressure.of(archs)[:, None]], -1)

    def deviation(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n"]:
        """Standard deviation of the true cost about `of(archs)`; 0 for counted metrics."""
        cost = self.of(archs)
        if self.uncertainty is None:
            return torch.zeros_like(cost)
        counts = self.counts(archs)
        if self.corrections is not None:
            rows = torch.as_tensor(archs, dtype=torch.int64).reshape(-1, len(self.space.slots))
            made = [nn.functional.one_hot(column, number) for column, number in zip(rows.unbind(1), self.space.num_choices, strict=True)]
            counts = torch.cat([counts, *(one.to(counts) for one in made)], -1)
        counts = nn.functional.pad(counts, (0, 1), value=1.0)
        covariance = torch.as_tensor(self.uncertainty.covariance)
        variance = ((counts @ covariance) * counts).sum(-1).clamp_min(0) + (self.uncertainty.noise * cost) ** 2
        return variance.sqrt()

    def upper(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture], confidence: float = 0.95) -> Float[Tensor, "n"]:
        """The bound that the true cost stays below with this (one-sided) confidence; budgets are held against it."""
        return self.of(archs) + float(norm.ppf(confidence)) * self.deviation(archs)

    def cheapest(self) -> Architecture:
        """An architecture of least cost: exact where the space can be enumerated, else by descent on one slot at a time."""
        return cheapest(self, self.space)

    @cached_property
    def _lookup(self) -> list[tuple[tuple[int, ...], Tensor]] | None:
        """Tables over the joint choices of a few slots each, whose entries add up to the cost; None where one would be too large."""
        space = self.space
        if isinstance(self._terms, _Walked):
            return None
        groups = self._terms.by_slots()
        if any(math.prod(space.num_choices[slot] for slot in slots) > _DENSE for slots in groups):
            return None
        tables = []
        for slots, rows in groups.items():
            shape = [space.num_choices[slot] for slot in slots]
            archs = torch.zeros(math.prod(shape), len(space.slots), dtype=torch.int64)
            for slot, column in zip(slots, np.indices(shape).reshape(len(shape), -1), strict=True):
                archs[:, slot] = torch.as_tensor(column)
            tables.append((slots, self._terms.present(archs, rows) @ self.term_price[rows]))
        if self.corrections is not None:
            left = dict(enumerate(self.corrections))
            for slots, table in tables:
                shape = [space.num_choices[slot] for slot in slots]
                for position, slot in enumerate(slots):
                    if slot in left:
                        row = left.pop(slot)[: space.num_choices[slot]]
                        table += row.reshape([-1 if i == position else 1 for i in range(len(slots))]).expand(shape).reshape(-1)
            tables += [((slot,), row[: space.num_choices[slot]].clone()) for slot, row in left.items()]
        return tables

    @cached_property
    def _fixed(self) -> float:
        assert isinstance(self._terms, _Terms)
        return self.offset + float(self.term_price[self._terms.always].sum())


class _Walked:
    """What `_Terms` is where presence cannot be enumerated: every operator is a term, counted network by network, and remembered."""

    def __init__(self, model: CostModel, reason: str) -> None:
        self.space, self.once, self.contextual, self.reason = model.space, model.once, model.contextual, reason
        counted = [op for op in model.operators if op != context.PRESSURE]  # that is no operator of a network
        self._index = {op: i for i, op in enumerate(counted)}
        self.usage = torch.eye(len(counted), dtype=torch.float64)
        self._known: dict[Architecture, dict[int, int]] = {}

    def present(self, archs: Int[Tensor, "n slot"]) -> Float[Tensor, "n operator"]:
        out = torch.zeros(len(archs), len(self._index), dtype=torch.float64)
        for row, arch in enumerate(map(tuple, archs.tolist())):
            if arch not in self._known:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                lowered = context.lower(self.space, arch) if self.contextual else self.space.lower(arch)
                self._known[arch] = Counter(self._index[op] for op in (self.space.stored(arch) if self.once else lowered))
            for column, number in self._known[arch].items():
                out[row, column] = number
        return out

    def presence(self, probs: Float[Tensor, "*batch slot choice"]) -> Float[Tensor, "*batch operator"]:
        if not bool(((probs == 0) | (probs == 1)).all()):
            raise SpaceError(self.reason)
        rows = probs.argmax(-1).reshape(-1, len(self.space.slots))
        return self.present(rows).to(probs).reshape(*probs.shape[:-2], -1)


class _Pressure:
    """The square of a network's weights, these as a share of the most that a network of the space could have, in `STEPS` steps."""

    def __init__(self, space: SearchSpace) -> None:
        most: dict[int, dict[int, int]] = {}
        for site in space.sites:
            slot, choice = site.when[0] if site.when else (-1, 0)
            most.setdefault(slot, {}).setdefault(choice, 0)
            most[slot][choice] += resources.count(site.op).params
        unit = sum(max(choices.values()) for choices in most.values()) / STEPS or 1.0
        steps = {op: round(resources.count(op).params / unit) for op in space.operators()}
        self.weights = CostModel(space, {op: float(number) for op, number in steps.items()})
        self.expects = self.weights.expects
        if self.expects:
            try:
                self._build(space, steps)
            except SpaceError:
                self.expects = False

    def _build(self, space: SearchSpace, steps: Mapping[OpSpec, int]) -> None:
        classes = _classes(space, steps.__getitem__)
        self.live_slots = [slot for slot, labels in enumerate(classes) if max(labels) > 0]
        variable = {slot: k for k, slot in enumerate(self.live_slots)}
        diagrams = Diagrams([max(classes[slot]) + 1 for slot in self.live_slots], MOST_MORE_NODES)
        alive = _alive(space, diagrams, [_holds(diagrams, variable, classes, site.when) for site in space.sites])
        total = diagrams.false
        for i in _without_alternatives(space, classes):
            if number := steps[space.sites[i].op]:
                total = diagrams.plus(total, diagrams.choose(alive[i], diagrams.constant(number), diagrams.false))
        self._square = Evaluation(diagrams, [total], lambda number: (number / STEPS) ** 2)
        self.members = _members(space, classes, self.live_slots)

    def of(self, archs: Int[Tensor, "n slot"]) -> Float[Tensor, "n"]:
        return (self.weights.of(archs) / STEPS) ** 2

    def mean(self, probs: Float[Tensor, "*batch slot choice"]) -> Float[Tensor, "*batch"]:
        if not self.expects:
            rows = probs.argmax(-1).reshape(-1, probs.shape[-2])
            return self.of(rows).to(probs).reshape(probs.shape[:-2])
        share = torch.einsum("...sc,scg->...sg", probs[..., self.live_slots, :], self.members.to(probs))
        return self._square.mean(share).squeeze(-1)


class PeakMemory(nn.Module):
    """`peak_mb` of an architecture behind the interface of a cost model; it is a maximum, so it has no exact expectation."""

    quick = False
    expects = False
    metric = "peak_mb"
    uncertainty = None

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self, probs: Float[Tensor, "*batch slot choice"]) -> Float[Tensor, "*batch"]:
        """Peak memory of one-hot rows.

        Raises:
            ConfigError: rows that are not one-hot.
        """
        if not bool(((probs == 0) | (probs == 1)).all()):
            raise ConfigError("peak_mb is not a sum over operators and has no expectation to follow; use SNAS's `score` estimator for it")
        return self.of(probs.argmax(-1).reshape(-1, len(self.space.slots))).to(probs).reshape(probs.shape[:-2])

    def of(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n"]:
        """Peak memory of each architecture, MB."""
        rows = torch.as_tensor(archs).reshape(-1, len(self.space.slots)).tolist()
        return torch.tensor([resources.peak_mb(self.space, row) for row in rows], dtype=torch.float64)

    def upper(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture], confidence: float = 0.95) -> Float[Tensor, "n"]:
        """The same as `of`: nothing about it is uncertain."""
        return self.of(archs)

    def cheapest(self) -> Architecture:
        """An architecture of least peak memory, as far as `CostModel.cheapest` finds it."""
        return cheapest(self, self.space)


class TabularCost(nn.Module):
    """A tabulated metric of whole networks behind the interface of a cost model; of soft rows nothing is known.

    Args:
        values: an array of shape `space.num_choices`, NaN for what has no path to the output, or a function of the architecture.
    """

    quick = True
    expects = False
    uncertainty = None

    def __init__(self, space: SearchSpace, metric: str, values: NDArray[np.float64] | Callable[[Architecture], float]) -> None:
        super().__init__()
        self.space = space
        self.metric = metric
        self._values = values

    def forward(self, probs: Float[Tensor, "*batch slot choice"]) -> Float[Tensor, "*batch"]:
        """The cost of one-hot rows.

        Raises:
            SpaceError: rows that are not one-hot.
        """
        if not bool(((probs == 0) | (probs == 1)).all()):
            raise SpaceError(
                f"{self.metric} is tabulated for whole architectures and has no expectation to follow; choose a searcher without one"
            )
        return self.of(probs.argmax(-1).reshape(-1, len(self.space.slots))).to(probs).reshape(probs.shape[:-2])

    def of(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n"]:
        """Cost of each architecture; infinite for what has no path to the output and does not stand in the table."""
        rows = torch.as_tensor(archs, dtype=torch.int64).reshape(-1, len(self.space.slots))
        if callable(self._values):
            return torch.tensor([self._values(tuple(row)) for row in rows.tolist()], dtype=torch.float64)
        found = torch.as_tensor(self._values[tuple(rows.T.numpy())], dtype=torch.float64)
        return found.nan_to_num(nan=math.inf)

    def deviation(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n"]:
        """0: what stands in the table is taken for the truth."""
        return torch.zeros(len(archs), dtype=torch.float64)

    def upper(self, archs: Int[Tensor, "n slot"] | Sequence[Architecture], confidence: float = 0.95) -> Float[Tensor, "n"]:
        """The same as `of`."""
        return self.of(archs)

    def cheapest(self) -> Architecture:
        """An architecture of least cost, as far as `CostModel.cheapest` finds it."""
        return cheapest(self, self.space)


Cost = CostModel | PeakMemory | TabularCost
"""What searchers, evaluators and budgets ask: `forward(probs)`, `of(archs)`, `upper(archs)`, `cheapest()`."""


def one_hot(space: SearchSpace, archs: Int[Tensor, "n slot"] | Sequence[Architecture]) -> Float[Tensor, "n slot choice"]:
    """Architectures as one-hot rows, padded to the slot with most choices."""
    archs = torch.as_tensor(archs, dtype=torch.int64).reshape(-1, len(space.slots))
    return nn.functional.one_hot(archs, max(space.num_choices, default=1)).to(torch.get_default_dtype())


def choice_mask(space: SearchSpace) -> Bool[Tensor, "slot choice"]:
    """True where a slot has that choice, False in the padding."""
    return torch.arange(max(space.num_choices, default=1)) < torch.tensor(space.num_choices)[:, None]


def cheapest(cost: Cost, space: SearchSpace, seed: int = 0) -> Architecture:
    """An architecture of least cost among the valid: all of them up to 2^16, else coordinate descent from random starts."""
    if space.size <= ENUMERABLE:
        return _least(cost, space, list(space.all()))[1]
    rng = np.random.default_rng(seed)
    best: tuple[float, Architecture] = (math.inf, ())
    for _ in range(_STARTS if cost.expects else _FEW_STARTS):
        arch = space.random(rng)
        value = math.inf
        while True:
            near = [(*arch[:s], c, *arch[s + 1 :]) for s, n in enumerate(space.num_choices) for c in range(n)]
            least = _least(cost, space, near)
            if least[0] >= value:
                break
            value, arch = least
        best = min(best, (value, arch))
    return best[1]


def _least(cost: Cost, space: SearchSpace, archs: Sequence[Architecture]) -> tuple[float, Architecture]:
    """The valid architecture of least cost, after its cost."""
    costs = cost.of(archs)
    for i in costs.argsort(stable=True).tolist():
        if space.graph(archs[i]):
            return float(costs[i]), archs[i]
    raise SpaceError(f"no architecture of {space.name} has a path from input to output; mend its sites")


def _corrections(space: SearchSpace, corrections: NDArray[np.float64]) -> Tensor:
    mask = choice_mask(space)
    if corrections.shape != tuple(mask.shape):
        raise TableError(f"the corrections of {space.name} must have the shape {tuple(mask.shape)}, but have {corrections.shape}")
    found = torch.as_tensor(corrections, dtype=torch.float64).where(mask, 0.0)
    if not bool((found.isfinite() & (found >= 0)).all()):
        raise TableError(f"the corrections of {space.name} must be finite and not negative; calibrate again")
    return found


def _price(prices: Prices, op: OpSpec, metric: str) -> float:
    try:
        value = float(prices(op) if callable(prices) else prices[op])
    except MissingPriceError:
        raise
    except KeyError:
        raise MissingPriceError(f"there is no {metric} price of {op}; measure or add it") from None
    if not (math.isfinite(value) and value >= 0):
        raise TableError(f"the {metric} price of {op} must be finite and not negative, but is {value}; measure that row again")
    return value


@lru_cache(maxsize=8)
def _pressure(space: SearchSpace) -> _Pressure:
    return _Pressure(space)


@lru_cache(maxsize=16)
def _terms(space: SearchSpace, contextual: bool) -> _Terms | SpaceError:
    """What all metrics of a space share, or why it has no expected cost."""
    try:
        return _Terms(space, contextual)
    except SpaceError as error:
        return SpaceError(f"{space.name} has no expected cost: {error}; search it with a searcher that prices whole architectures")


class _Terms:
    """The sites grouped by what they hang on: a term is a set of decisions and, given these, the wirings in which they are alive.

    `usage` (term, operator) counts how many sites of each operator a term stands for.
    """

    def __init__(self, space: SearchSpace, contextual: bool = False) -> None:
        self.space = space
        operators = (*space.operators(), *(context.contextual(space) if contextual else ()))
        classes = _classes(space, context.traits if contextual else None)
        self.live_slots = [slot for slot, labels in enumerate(classes) if max(labels) > 0]
        self._variable = {slot: k for k, slot in enumerate(self.live_slots)}
        diagrams = Diagrams([max(classes[slot]) + 1 for slot in self.live_slots], MOST_MORE_NODES if contextual else MOST_NODES)
        index = {op: i for i, op in enumerate(operators)}
        found: dict[tuple[tuple[Decision, ...], Function], dict[int, int]] = {}

        def count(op: OpSpec, when: tuple[Decision, ...], lives: Function, number: int = 1) -> None:
            fixed = {self._variable[slot]: classes[slot][choice] for slot, choice in when if slot in self._variable}
            lives = diagrams.restrict(lives, fixed)
            if lives != diagrams.false:
                uses = found.setdefault((when, lives), {})
                uses[index[op]] = uses.get(index[op], 0) + number

        chosen = [_holds(diagrams, self._variable, classes, site.when) for site in space.sites]
        alive = _alive(space, diagrams, chosen)
        writers = _writers(space, diagrams, classes, alive)
        computed, works, values = _computed(space, diagrams, alive, writers, contextual)
        for site, lives in zip(space.sites, computed, strict=True):
            count(site.op, site.when, lives)
        for node, writing in writers.items():
            for k in range(2, max(diagrams.leaves(writing)) + 1):
                count(space.addition(node), (), diagrams.at_least(writing, k))
        if contextual:
            once = [(space.sites[i], alive[i], works[i]) for i in _without_alternatives(space, classes)]
            for op, lives in context.conditions(space, diagrams, once, values):
                count(op, (), lives)
                if (instead := context.plain(op)) is not None:
                    count(instead, (), lives, -1)
        self.terms = sorted(found, key=lambda term: (term[1] != diagrams.true, tuple(slot for slot, _ in term[0]), term))
        self.usage = torch.zeros(len(self.terms), len(operators), dtype=torch.float64)
        for row, term in enumerate(self.terms):
            for column, number in found[term].items():
                self.usage[row, column] = number
        self._certain = sum(lives == diagrams.true for _, lives in self.terms)
        self._lives = Evaluation(diagrams, [lives for _, lives in self.terms[self._certain :]])
        self._deciding = [{slot for slot, _ in when} | {self.live_slots[k] for k in diagrams.support(lives)} for when, lives in self.terms]
        self._index_decisions(classes)

    def _index_decisions(self, classes: list[list[int]]) -> None:
        space = self.space
        width = max(space.num_choices, default=1)
        longest = max((len(when) for when, _ in self.terms), default=0)
        pad = len(space.slots) * width
        flat = [[slot * width + choice for slot, choice in when] + [pad] * (longest - len(when)) for when, _ in self.terms]
        self.flat = torch.tensor(flat, dtype=torch.int64).reshape(len(self.terms), longest)
        self.members = _members(space, classes, self.live_slots)

    def presence(self, probs: Float[Tensor, "*batch slot choice"]) -> Float[Tensor, "*batch term"]:
        """Probability that each term is in the network."""
        space = self.space
        if probs.shape[-2:] != (len(space.slots), max(space.num_choices, default=1)):
            wanted = (len(space.slots), max(space.num_choices, default=1))
            raise SpaceError(f"probs of {space.name} must end in {wanted}, but have shape {tuple(probs.shape)}")
        flat = nn.functional.pad(probs.flatten(-2), (0, 1), value=1.0)
        present = flat[..., self.flat].prod(-1)
        if self._certain == len(self.terms):
            return present
        share = torch.einsum("...sc,scg->...sg", probs[..., self.live_slots, :], self.members.to(probs))
        certain = probs.new_ones(()).expand(*present.shape[:-1], self._certain)
        return present * torch.cat([certain, self._lives.mean(share)], -1)

    def present(self, archs: Int[Tensor, "n slot"], rows: Sequence[int] | None = None) -> Float[Tensor, "n term"]:
        """1 where a term, of all or of those `rows`, is in an architecture's network: `presence` of one-hot rows, by lookup."""
        space = self.space
        width = max(space.num_choices, default=1)
        wanted = torch.arange(len(self.terms)) if rows is None else torch.tensor(rows, dtype=torch.int64)
        flat = nn.functional.pad(archs, (0, 1)) + torch.arange(len(space.slots) + 1) * width
        chosen = torch.zeros(len(archs), (len(space.slots) + 1) * width, dtype=torch.float64).scatter_(1, flat, 1.0)
        out = chosen[:, self.flat[wanted]].prod(-1)
        open_ = wanted >= self._certain
        if open_.any():
            groups = self.members.argmax(-1)[torch.arange(len(self.live_slots)), archs[:, self.live_slots]]
            lives = self._lives if rows is None else self._lives.part(wanted[open_] - self._certain)
            out[:, open_] *= lives.at(groups)
        return out

    @property
    def always(self) -> list[int]:
        """The terms that every network holds."""
        return [row for row, slots in enumerate(self._deciding) if not slots]

    def by_slots(self) -> dict[tuple[int, ...], list[int]]:
        """The other terms by the slots that decide them; groups are joined while few joint choices come of it."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, deciding in enumerate(self._deciding):
            if deciding:
                groups.setdefault(tuple(sorted(deciding)), []).append(row)
        joined: dict[tuple[int, ...], list[int]] = {}
        for slots in sorted(groups):
            for other in joined:
                union = tuple(sorted({*slots, *other}))
                if math.prod(self.space.num_choices[slot] for slot in union) <= _IN_CACHE or set(slots) <= set(other):
                    joined[union] = joined.pop(other) + groups[slots]
                    break
            else:
                joined[slots] = groups[slots]
        return joined


def _classes(space: SearchSpace, traits: Callable[[OpSpec], object] | None = None) -> list[list[int]]:
    """For each slot the class of each choice: choices of one class wire the network alike, with operators of the same traits."""
    classes = [list(range(n)) for n in space.num_choices]
    twins = any(site.weightless for site in space.sites)  # whether a choice only hands on makes a difference then
    deciding: list[list[Site]] = [[] for _ in classes]
    for site in space.sites:
        for slot, _ in site.when:
            deciding[slot].append(site)
    changed = True
    while changed:
        changed = False
        for slot in range(len(space.slots)):
            wiring: list[Counter[object]] = [Counter() for _ in classes[slot]]
            for site in deciding[slot]:
                rest = tuple((t, classes[t][c]) for t, c in site.when if t != slot and len(set(classes[t])) > 1)
                trait = traits(site.op) if traits else None
                wiring[dict(site.when)[slot]][site.inputs, site.output, rest, twins and site.op.kind == IDENTITY, trait] += 1
            distinct = [w for i, w in enumerate(wiring) if w not in wiring[:i]]
            merged = [distinct.index(w) for w in wiring]
            if merged != classes[slot]:
                classes[slot], changed = merged, True
    return classes


def _members(space: SearchSpace, classes: list[list[int]], slots: list[int]) -> Float[Tensor, "slot choice class"]:
    """1 where a choice of one of the slots is of a class."""
    found = torch.zeros(len(slots), max(space.num_choices, default=1), max((max(classes[s]) + 1 for s in slots), default=1))
    for k, slot in enumerate(slots):
        for choice, group in enumerate(classes[slot]):
            found[k, choice, group] = 1
    return found


def _holds(diagrams: Diagrams, variable: Mapping[int, int], classes: list[list[int]], when: tuple[Decision, ...]) -> Function:
    found = diagrams.true
    for slot, choice in when:
        if slot in variable:
            found = diagrams.both(found, diagrams.literal(variable[slot], classes[slot][choice]))
    return found


def _alive(space: SearchSpace, diagrams: Diagrams, chosen: list[Function]) -> list[Function]:
    """For every site: where it is chosen, fed and used."""
    fed = {space.input: diagrams.true}
    alive = []
    for site, holds in zip(space.sites, chosen, strict=True):
        lives = diagrams.both(holds, diagrams.either(fed.get(node, diagrams.false) for node in site.inputs))
        fed[site.output] = diagrams.either((fed.get(site.output, diagrams.false), lives))
        alive.append(lives)
    used = {space.output: diagrams.true}
    for i in range(len(space.sites) - 1, -1, -1):
        site = space.sites[i]
        alive[i] = diagrams.both(alive[i], used.get(site.output, diagrams.false))
        for node in site.inputs:
            used[node] = diagrams.either((used.get(node, diagrams.false), alive[i]))
    return alive


def _writers(space: SearchSpace, diagrams: Diagrams, classes: list[list[int]], alive: list[Function]) -> dict[str, Function]:
    """How many live sites write each node. Choices of one class are alternatives: they count once."""
    kinds: dict[str, dict[tuple[Decision, ...], dict[tuple[Decision, ...], Function]]] = {}
    for site, lives in zip(space.sites, alive, strict=True):
        wired = tuple((slot, classes[slot][choice]) for slot, choice in site.when)
        alternatives = kinds.setdefault(site.output, {}).setdefault(wired, {})
        alternatives[site.when] = diagrams.plus(alternatives.get(site.when, diagrams.false), lives)
    writing = {node: [next(iter(a.values())) for a in groups.values()] for node, groups in kinds.items()}
    return {node: reduce(diagrams.plus, numbers) for node, numbers in writing.items()}


def _without_alternatives(space: SearchSpace, classes: list[list[int]]) -> list[int]:
    """The sites but those that, among choices of one class, stand where another one could."""
    first: dict[tuple[object, ...], tuple[Decision, ...]] = {}
    wired = [(site.output, tuple((slot, classes[slot][choice]) for slot, choice in site.when)) for site in space.sites]
    return [i for i, site in enumerate(space.sites) if first.setdefault(wired[i], site.when) == site.when]


def _computed(
    space: SearchSpace, diagrams: Diagrams, alive: list[Function], writers: Mapping[str, Function], contextual: bool
) -> tuple[list[Function], list[Function], dict[str, Function]]:
    """Where each site is alive and computes what no earlier weightless site computes, and where it does more than hand on.

    Last which node's value each node has (see `space.resolved`); found out where there is something weightless or contextual needs it.
    """
    if not contextual and not any(site.weightless for site in space.sites):
        return alive, alive, {}
    values = {node: diagrams.constant(i) for i, node in enumerate([space.input, *writers])}
    one = diagrams.constant(1)
    computed, works = list(alive), list(alive)
    known: dict[OpSpec, list[int]] = {}
    for i, site in enumerate(space.sites):
        if site.op.kind == IDENTITY and site.output != space.output:
            alone = diagrams.both(alive[i], diagrams.equal(writers[site.output], one))
            values[site.output] = diagrams.choose(alone, values[site.inputs[0]], values[site.output])
            works[i] = diagrams.without(alive[i], alone)
        elif site.weightless:
            for j in known.setdefault(site.op, []):
                other = space.sites[j]
                twin = diagrams.both(computed[i], computed[j])
                for a, b in zip(site.inputs, other.inputs, strict=True):
                    twin = diagrams.both(twin, diagrams.equal(values[a], values[b]))
                values[site.output] = diagrams.choose(twin, values[other.output], values[site.output])
                computed[i] = diagrams.without(computed[i], twin)
            works[i] = computed[i]
            known[site.op].append(i)
    return computed, works, values
