"""Calibration: whole networks correct the prices of isolated operators, as prices, and say how sure they are.

An operator in context does not cost what it costs alone (fusion, layouts, caches). The model is hierarchical and Gaussian:

    cost(network) = offset + sum of price(op) + sum of correction(slot, choice) + noise,   noise ~ t_10(0, sigma cost)
    price(op) = features(op) . beta + residual(op),                                        residual ~ N(0, (tau scale(op))^2)
    correction(slot, choice) = what hangs on it . gamma + rest(slot, choice),              rest ~ N(0, rho^2)

The features are the isolated price (whose weight is expected to be 1), multiply-adds by kind, numbers moved,
parameters, layers, and one; beta has a Gaussian prior; the spreads are those of greatest marginal likelihood. So a few
dozen networks correct hundreds of prices, also of operators that none of them holds. Additions and activations that a
convolution takes in, and changes of layout, have prices of their own (`hwnas.context`): a fused operator is expected to
cost what the plain one does but for a discount by kind, a change of layout what it moves. The corrections say what the
same operator costs more at one place than at another, or though nothing uses it (a runtime that does not prune). The
square of a network's weights may have a price: of what no longer fits into a cache. Each is kept only where it predicts
networks better that it has not seen, and where those are farther off than the standard deviations say, these are widened.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.stats import norm, spearmanr

from hwnas import context, resources
from hwnas.cost import CostModel, Uncertainty
from hwnas.errors import TableError
from hwnas.op import OpSpec
from hwnas.space import IDENTITY, Architecture, SearchSpace
from hwnas.table import CostTable

Floats = NDArray[np.float64]
FEWEST = 8
"""Networks below which nothing is calibrated."""
SESSIONS = 0.007
"""Share by which a network's time differs from one session to another; 0.004 to 0.010 on the devices of docs/measurements.md."""
DEGREES = 10.0
"""Degrees of freedom of the noise, Student's t: a network that is far off what the others say counts less."""
FOLDS = 10
"""Parts of the measured networks that are left out in turn."""
HELPS = 0.95
"""Share of the mean squared left-out error that contextual operators, pressure and corrections must each get below to be kept."""


@dataclass(frozen=True)
class Accuracy:
    """How predictions compare with measurements of networks that calibration never saw."""

    mape: float
    within_5: float
    within_10: float
    spearman: float

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> Accuracy:
        """Errors are relative to what was measured, shares in 0..1."""
        relative = np.abs(predicted / measured - 1)
        rank = float(spearmanr(predicted, measured).statistic) if len(measured) > 2 else float("nan")
        return cls(float(relative.mean()), float((relative <= 0.05).mean()), float((relative <= 0.10).mean()), rank)


@dataclass(frozen=True)
class Spreads:
    """Hyper-parameters, all relative to the mean cost of a probe: of the weights of features, the residuals, the noise, the corrections."""

    weight: float
    isolated: float
    residual: float
    noise: float
    place: float = 0.0
    rest: float = 0.0

    def values(self) -> Floats:
        """All of them, in this order."""
        return np.array([self.weight, self.isolated, self.residual, self.noise, self.place, self.rest])


class Calibration:
    """Prices of a space's operators corrected by measured whole networks.

    `operators` are the space's, and where `contextual` behind them those of `hwnas.context`; `prices` their posterior means,
    never negative; `corrections` what a choice costs beside its operators, never negative and 0 for the cheapest choice of
    every slot, None where they did not help; `offset` what every network costs beside that, negative only where there are
    corrections; `covariance` that of (prices, corrections, offset); all in the metric's unit.

    Args:
        isolated: the price of each operator alone; None where only networks were measured.
        archs: the measured networks.
        corrected: whether choices are corrected.
        contextual: whether operators in context have prices of their own.
        pressing: whether the square of the weights has a price.

    Raises:
        TableError: too few networks.
    """

    covariance: Floats

    def __init__(
        self,
        space: SearchSpace,
        isolated: Floats | None,
        archs: Sequence[Architecture],
        measured: Floats,
        corrected: bool = False,
        contextual: bool = False,
        pressing: bool = False,
    ) -> None:
        if len(measured) < FEWEST:
            raise TableError(f"calibration needs at least {FEWEST} measured networks, but has {len(measured)}; profile with more probes")
        self.space = space
        counter = CostModel(space, lambda op: 0.0, contextual=contextual, pressing=pressing)
        self.contextual, self.pressing, self.operators = contextual, pressing, counter.operators
        self.isolated = _isolated(counter, isolated)
        self.counts, self.measured = counter.counts(archs).numpy(), measured
        self.chosen = indicators(space, archs) if corrected else np.zeros((len(measured), 0))
        self._learn()

    def _learn(self, start: Spreads | None = None) -> None:
        """As if the noise were normal, and then again with every network trusted as far as Student's t goes."""
        self.trust = np.ones_like(self.measured)
        self._design()
        for _ in range(2):
            self.spreads = self._fit(start)
            self._solve()
            start = self.spreads
            rows = np.column_stack([self.counts, self.chosen, np.ones(len(self.counts))])
            off = (1 - (rows @ self._posterior) * self.weights) / start.noise
            self.trust = np.sqrt((DEGREES + 1) / (DEGREES + off**2))

    @classmethod
    def best(cls, space: SearchSpace, isolated: Floats | None, archs: Sequence[Architecture], measured: Floats) -> Calibration:
        """With contextual operators, pressure and corrections, each where it predicts networks better that were left out, else without.

        Its uncertainty is widened to what the networks left out say.
        """
        best, kept = cls(space, isolated, archs, measured), dict[str, bool]()
        for more in ("contextual", "pressing", "corrected"):
            if more == "corrected" or tells(space, more):
                other = cls(space, isolated, archs, measured, **kept, **{more: True})
                if best.better(other) is other and other.positive:
                    best, kept[more] = other, True
        best.widen()
        return best

    def better(self, other: Calibration) -> Calibration:
        """The other one, which knows more, where that helps to predict networks that were left out; else this one."""
        return other if (other.left_out**2).mean() < HELPS * (self.left_out**2).mean() else self

    @property
    def positive(self) -> bool:
        """Whether every network costs something: a negative offset could take more than the cheapest one costs."""
        return self.offset >= 0 or float(self._model.of([self._model.cheapest()])) > 0

    @property
    def kept(self) -> tuple[str, ...]:
        """What it knows beside prices of plain operators: `contextual`, `pressing`, `corrected`."""
        known = {"contextual": self.contextual, "pressing": self.pressing, "corrected": self.corrections is not None}
        return tuple(name for name, value in known.items() if value)

    def widen(self) -> None:
        """Takes standard deviations for as much larger as networks left out are farther off than these say.

        To the noise comes what networks of one session cannot say: by how much another session will differ.
        """
        caution = max(1.0, float(np.sqrt((self._left_out[1] ** 2).mean())))
        self.covariance = caution**2 * self.covariance
        self.spreads = replace(self.spreads, noise=math.hypot(caution * self.spreads.noise, SESSIONS))
        self.__dict__.pop("_model", None)

    @classmethod
    def from_tables(cls, space: SearchSpace, table: CostTable, archs: Sequence[Architecture], measured: Floats) -> Calibration:
        """From a table of isolated operators and measured networks.

        Raises:
            MissingPriceError: the table lacks an operator of the space.
            TableError: too few networks.
        """
        isolated = np.array([table.price(op) for op in space.operators()])
        return cls.best(space, isolated, archs, np.asarray(measured, dtype=np.float64))

    def cost_model(self, metric: str = "latency_ms") -> CostModel:
        """The calibrated prices as a cost model with its uncertainty."""
        prices = dict(zip(self.operators, self.prices.tolist(), strict=True))
        uncertainty = Uncertainty(self.covariance, self.spreads.noise)
        return CostModel(
            self.space,
            prices,
            metric=metric,
            offset=self.offset,
            corrections=self.corrections,
            uncertainty=uncertainty,
            contextual=self.contextual,
            pressing=self.pressing,
        )

    def _design(self) -> None:
        """Features scaled so that each contributes the mean cost to a mean probe, and the rows relative to their cost."""
        level = float(self.measured.mean())
        features = np.column_stack([self.isolated, op_features(self.operators)])
        usual = self.counts.mean(0) @ features
        kept = usual > 1e-12 * np.abs(features).max(0, initial=1e-300)
        kept[0] = True  # the isolated price, even where there is none
        self.features = features[:, kept] * (level / np.where(usual > 0, usual, 1))[kept]
        # the isolated price keeps its unit: its weight is expected to be the ratio of measured to summed cost
        self.level = level
        total = self.counts @ self.isolated
        ratio = float(np.median(self.measured / total)) if (total > 0).all() else 1.0
        self.features[:, 0] = self.isolated * ratio
        self.expected = np.zeros(self.features.shape[1])
        self.expected[0] = 1.0
        mean_price = level / max(float(self.counts.sum(1).mean()), 1.0)
        self.scale = 0.5 * (self.isolated * ratio + mean_price)
        self.weights = 1 / self.measured
        if self.chosen.shape[1]:
            places = choice_features(self.space)
            usual = self.chosen.mean(0) @ places
            self.places = places[:, usual > 0] * (level / usual[usual > 0])

    def _prior(self, spreads: Spreads) -> tuple[Floats, Floats]:
        """Prior mean and covariance of (prices, corrections, offset)."""
        operators, corrections = len(self.operators), self.chosen.shape[1]
        spread = np.full(self.features.shape[1], spreads.weight)
        spread[0] = spreads.isolated
        mean = np.concatenate([self.features @ self.expected, np.zeros(corrections + 1)])
        covariance = np.zeros((len(mean), len(mean)))
        covariance[:operators, :operators] = (self.features * spread**2) @ self.features.T
        if corrections:
            covariance[operators:-1, operators:-1] = spreads.place**2 * self.places @ self.places.T
        variances = [(spreads.residual * self.scale) ** 2, np.full(corrections, (spreads.rest * self.level) ** 2)]
        covariance += np.diag(np.concatenate([*variances, [(_OFFSET * self.level) ** 2]]))
        return mean, covariance

    def _evidence(self, mean: Floats) -> tuple[Floats, Floats, float, int]:
        """What the measured networks say: rows (row, price or correction or offset) and what they leave of 1 behind the prior mean.

        The rows are networks, as shares of their cost; or, where there are more networks than terms, as many rows as terms that say
        the same, with the squares and the number of the rest, which say something of the noise only.
        """
        rows = np.column_stack([self.counts, self.chosen, np.ones(len(self.counts))]) * (self.weights * self.trust)[:, None]
        error = self.trust - rows @ mean
        if len(rows) <= rows.shape[1]:
            return rows, error, 0.0, 0
        turn, fewer = np.linalg.qr(rows)
        turned = turn.T @ error
        return fewer, turned, max(float(error @ error - turned @ turned), 0.0), len(rows) - len(fewer)

    def _parts(self, rows: Floats) -> tuple[Floats, Floats]:
        """The covariance of these rows: what each spread's square is multiplied with, and what is there without any."""
        counts, chosen = rows[:, : len(self.operators)], rows[:, len(self.operators) : -1]
        features, residual = counts @ self.features, counts * self.scale
        factors = [features[:, 1:], features[:, :1], residual, np.eye(len(rows))]
        if chosen.shape[1]:
            factors += [chosen @ self.places, chosen * self.level]
        offset = _OFFSET * self.level * rows[:, -1]
        return np.array([factor @ factor.T for factor in factors]), np.outer(offset, offset)

    def _fit(self, start: Spreads | None = None) -> Spreads:
        """The spreads of greatest marginal likelihood, under weak priors that keep them within reason."""
        rows, error, rest, number = self._evidence(self._prior(Spreads(*np.exp(_USUAL)))[0])
        parts, fixed = self._parts(rows)
        usual = _USUAL[: len(parts)]

        def loss(logs: Floats) -> tuple[float, Floats]:
            squares = np.exp(2 * logs)
            gram = np.tensordot(squares, parts, 1) + fixed
            try:
                factor = cho_factor(gram, lower=True)
            except np.linalg.LinAlgError:
                return 1e10, np.zeros_like(logs)
            inverse = cho_solve(factor, np.eye(len(gram)))
            solved = inverse @ error
            off = (logs - usual) / 1.5
            value = 0.5 * error @ solved + np.log(np.diag(factor[0])).sum() + 0.5 * (off**2).sum()
            value += 0.5 * rest / squares[_NOISE] + number * logs[_NOISE]
            slopes = squares * np.array([(inverse * part).sum() - solved @ part @ solved for part in parts]) + off / 1.5
            slopes[_NOISE] += number - rest / squares[_NOISE]
            return float(value), slopes

        starts = [point[: len(usual)] for point in _STARTS] if start is None else [np.log(start.values()[: len(usual)])]
        found = [minimize(loss, point, jac=True, method="L-BFGS-B", bounds=_BOUNDS[: len(usual)]) for point in starts]
        best = min(found, key=lambda result: float(result.fun))
        return Spreads(*np.exp(best.x).tolist())

    def _solve(self) -> None:
        operators = len(self.operators)
        mean, covariance = self._prior(self.spreads)
        rows, error, _, _ = self._evidence(mean)
        factor = cho_factor(rows @ covariance @ rows.T + self.spreads.noise**2 * np.eye(len(rows)), lower=True)
        gain = cho_solve(factor, rows @ covariance).T
        free = mean + gain @ error, covariance - gain @ rows @ covariance
        posterior, self.covariance = free
        prices = np.r_[:operators, len(mean) - 1]  # and the offset; a correction may lower what another choice costs
        pinned: list[int] = []
        while (posterior[prices] < -1e-12).any():
            # condition on the negative ones being exactly zero: the others make up for it
            pinned = sorted({*pinned, *prices[posterior[prices] < 0].tolist()})
            posterior, self.covariance = posterior_given_zero(*free, pinned)
        self._posterior = posterior
        self.prices = np.maximum(posterior[:operators], 0.0)
        self.offset = max(float(posterior[-1]), 0.0)
        self.corrections: Floats | None = None
        if self.chosen.shape[1]:
            self._correct(posterior[operators:-1])

    def _correct(self, corrections: Floats) -> None:
        """Exactly one choice of a slot holds, so what the cheapest is corrected by moves to the offset, which may be negative then."""
        table = np.full((len(self.space.slots), max(self.space.num_choices)), np.nan)
        table[np.arange(table.shape[1]) < np.array(self.space.num_choices)[:, None]] = corrections
        least = np.nanmin(table, axis=1)
        self.corrections = np.nan_to_num(table - least[:, None])
        self.offset += float(least.sum())

    @property
    def left_out(self) -> Floats:
        """Each probe's relative error when it is predicted from the others: by tenths, with spreads fitted without them."""
        return self._left_out[0]

    @cached_property
    def _left_out(self) -> tuple[Floats, Floats]:
        """The relative errors, and the errors in standard deviations."""
        relative, standard = np.empty_like(self.measured), np.empty_like(self.measured)
        order = np.random.default_rng(0).permutation(len(self.measured))
        for fold in np.array_split(order, min(FOLDS, len(order))):
            others = copy.copy(self)
            rest = np.setdiff1d(order, fold)
            others.counts, others.chosen = self.counts[rest], self.chosen[rest]
            others.measured = self.measured[rest]
            others._learn(self.spreads)
            rows = np.column_stack([self.counts[fold], self.chosen[fold], np.ones(len(fold))])
            mean = rows @ others._posterior
            variance = ((rows @ others.covariance) * rows).sum(1) + (others.spreads.noise * mean) ** 2
            relative[fold] = 1 - mean / self.measured[fold]
            standard[fold] = (self.measured[fold] - mean) / np.sqrt(variance)
        return relative, standard

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the cost of networks."""
        return self._model.of(archs).numpy(), self._model.deviation(archs).numpy()

    def sum_of_isolated(self, archs: Sequence[Architecture]) -> Floats:
        """What networks would cost if every operator cost what it costs alone."""
        return np.asarray(CostModel(self.space, dict(zip(self.operators, self.isolated.tolist(), strict=True))).of(archs))

    @cached_property
    def _model(self) -> CostModel:
        return self.cost_model()


_PROBE_NOISE = 0.03
_OFFSET = 0.3
_NOISE = 3  # the place of the noise among the spreads
_USUAL = np.log([0.3, 0.2, 0.1, 0.01, 0.05, 0.01])
_STARTS = _USUAL, _USUAL + [1, -1, 1, -1, 1, 1], np.log([0.02, 0.2, 0.02, 0.02, 0.3, 0.05])
_BOUNDS = [(np.log(low), np.log(high)) for low, high in ((1e-3, 3.0), (1e-3, 2.0), (1e-4, 2.0), (1e-3, 0.3), (1e-4, 3.0), (1e-4, 0.5))]


def indicators(space: SearchSpace, archs: Sequence[Architecture]) -> Floats:
    """(network, choice of a slot): 1 where a network makes that choice, slot by slot."""
    choices = np.asarray(archs, dtype=np.int64).reshape(-1, len(space.slots))
    return np.column_stack([choices[:, slot, None] == np.arange(number) for slot, number in enumerate(space.num_choices)]).astype(float)


def posterior_given_zero(mean: Floats, covariance: Floats, pinned: Sequence[int]) -> tuple[Floats, Floats]:
    """A Gaussian's mean and covariance, conditional on the `pinned` entries being zero."""
    index = list(pinned)
    block = covariance[np.ix_(index, index)] + 1e-15 * np.eye(len(index))
    gain = np.linalg.solve(block, covariance[index]).T
    out = mean - gain @ mean[index]
    spread = covariance - gain @ covariance[index]
    out[index] = 0.0
    spread[index, :] = 0.0
    spread[:, index] = 0.0
    return out, spread


def tells(space: SearchSpace, more: str) -> bool:
    """Whether prices in the space may be `contextual` or `pressing` without losing its expected cost."""
    if more == "contextual" and not context.contextual(space):
        return False
    richer = CostModel(space, lambda op: 0.0, contextual=more == "contextual", pressing=more == "pressing")
    return CostModel(space, lambda op: 0.0).expects == richer.expects


def _isolated(counter: CostModel, isolated: Floats | None) -> Floats:
    """The price of each of the model's operators alone, given those of the space's; 0 where there is none."""
    operators = counter.space.operators()
    known = dict(zip(operators, np.zeros(len(operators)) if isolated is None else isolated, strict=True))
    return np.array([0.0 if (op := context.plain(one)) is None else known[op] for one in counter.operators])


PAPER = 8
"""Features that an operator has on paper."""


def op_features(operators: Sequence[OpSpec]) -> Floats:
    """What an operator's price in context may depend on, (operator, feature): multiply-adds by kind, numbers moved, ...

    Last, for each kind of contextual operator there is, the numbers that come out of it: what a fused one costs less than the plain
    one, whose other features it has, and what a change of layout costs, which has no others.
    """
    kinds = sorted({op.kind for op in operators if context.is_contextual(op)})
    rows = []
    for one in operators:
        op = context.plain(one)
        own = [float(one.c_out * one.out_height * one.out_width * (one.kind == kind)) for kind in kinds]
        if op is None:
            rows.append([0.0] * PAPER + own)
            continue
        c = resources.count(op)
        out = op.c_out * op.out_height * op.out_width
        seen = [c.macs_dense, c.macs_pointwise, c.macs_depthwise, c.moved, out, c.params, c.layers, 1.0]
        rows.append(([0.0] * PAPER if op.kind == IDENTITY else seen) + own)
    return np.array(rows, dtype=np.float64)


def choice_features(space: SearchSpace) -> Floats:
    """What hangs on a choice, (choice of a slot, feature): the features of its sites' operators, dead or alive, and its label."""
    first = np.concatenate([[0], np.cumsum(space.num_choices)])
    labels = sorted({label for slot in space.slots for label in slot.choices})
    operators = space.operators()
    features = dict(zip(operators, op_features(operators), strict=True))
    found = np.zeros((first[-1], len(op_features(operators[:1])[0])))
    for site in space.sites:
        for slot, choice in site.when if site.op in features else ():
            found[first[slot] + choice] += features[site.op] / len(site.when)
    named = [[label == other for other in labels] for slot in space.slots for label in slot.choices]
    return np.column_stack([found, np.array(named, dtype=np.float64)])


def interval(mean: Floats, deviation: Floats, confidence: float = 0.9) -> tuple[Floats, Floats]:
    """The central interval of that confidence."""
    z = float(norm.ppf(0.5 + confidence / 2))
    return mean - z * deviation, mean + z * deviation


def choose_probes(space: SearchSpace, isolated: Floats, number: int, rng: np.random.Generator, pool: int = 600) -> list[Architecture]:
    """Networks worth measuring: half of them random, each of the others the one that takes most doubt from random networks (I-optimal).

    Not the ones that are most doubtful themselves: those are odd ones, and on FBNet's space calibration by them was worse than by
    random networks.
    """
    found: dict[tuple[int, ...], Architecture] = {}
    for _ in range(20 * pool):
        arch = space.random(rng)
        found.setdefault(space.alive(arch), arch)
        if len(found) == pool:
            break
    archs = list(found.values())
    counter = CostModel(space, lambda op: 0.0, contextual=tells(space, "contextual"))
    counts, isolated = counter.counts(archs).numpy(), _isolated(counter, isolated)
    total = np.maximum(counts @ isolated, 1e-12)
    features = np.column_stack([isolated, op_features(counter.operators)])
    features = features / np.maximum(counts.mean(0) @ features, 1e-300) * total.mean()
    rows = counts / total[:, None]
    basis = np.column_stack([rows @ features * 0.3, rows * (0.1 * total.mean() / counts.sum(1).mean()), 0.3 * total.mean() / total])
    chosen: list[int] = list(range(min(number - number // 2, len(archs))))
    covariance = np.linalg.inv(np.eye(basis.shape[1]) + basis[chosen].T @ basis[chosen] / _PROBE_NOISE**2)
    usual = basis.T @ basis / len(basis)
    while len(chosen) < min(number, len(archs)):
        spread = basis @ covariance
        variance = (spread * basis).sum(1) + _PROBE_NOISE**2
        gain = ((spread @ usual) * spread).sum(1) / variance
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        covariance -= np.outer(spread[best], spread[best]) / variance[best]
    return [archs[i] for i in chosen]
