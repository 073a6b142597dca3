"""Calibration: whole networks correct the prices of isolated operators, as prices, and say how sure they are.

An operator in context does not cost what it costs alone (fusion, layouts, caches). The model is hierarchical and Gaussian:

    cost(network) = offset + sum of price(op) + noise,   noise ~ N(0, (sigma cost)^2)
    price(op) = features(op) . beta + residual(op),      residual ~ N(0, (tau scale(op))^2)

The features are the isolated price (whose weight is expected to be 1), multiply-adds by kind, numbers moved,
parameters, layers, and one; beta has a Gaussian prior; the spreads are those of greatest marginal likelihood. So a few
dozen networks correct hundreds of prices, also of operators that none of them holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.stats import norm, spearmanr

from hwnas import resources
from hwnas.cost import CostModel, Uncertainty
from hwnas.errors import TableError
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace
from hwnas.table import CostTable

Floats = NDArray[np.float64]
FEWEST = 8
"""Networks below which nothing is calibrated."""


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
    """Hyper-parameters, all relative to the mean cost of a probe: of the feature weights, the residuals, the noise."""

    weight: float
    isolated: float
    residual: float
    noise: float


class Calibration:
    """Prices of a space's operators corrected by measured whole networks.

    `prices` are posterior means, never negative; `uncertainty` their covariance with the offset's; `offset` what
    every network costs beside its operators; all in ms.
    """

    def __init__(self, space: SearchSpace, isolated: Floats, counts: Floats, measured: Floats, errors: Floats | None = None) -> None:
        if len(measured) < FEWEST:
            raise TableError(f"calibration needs at least {FEWEST} measured networks, but has {len(measured)}; profile with more probes")
        self.space = space
        self.operators = space.operators()
        self.isolated, self.counts, self.measured = isolated, counts, measured
        self.errors = np.zeros_like(measured) if errors is None else errors
        self._design()
        self.spreads = self._fit()
        self._solve()

    @classmethod
    def from_tables(cls, space: SearchSpace, table: CostTable, archs: Sequence[Architecture], measured: Floats) -> Calibration:
        """From a table of isolated operators and measured networks.

        Raises:
            MissingPriceError: the table lacks an operator of the space.
            TableError: too few networks.
        """
        counter = CostModel(space, table.price)
        return cls(space, counter.price.numpy(), counter.counts(archs).numpy(), np.asarray(measured, dtype=np.float64))

    def cost_model(self, metric: str = "latency_ms") -> CostModel:
        """The calibrated prices as a cost model with its uncertainty."""
        prices = dict(zip(self.operators, self.prices.tolist(), strict=True))
        uncertainty = Uncertainty(self.covariance, self.spreads.noise)
        return CostModel(self.space, prices, metric=metric, offset=self.offset, uncertainty=uncertainty)

    def _design(self) -> None:
        """Features scaled so that each contributes the mean cost to a mean probe, and the rows relative to their cost."""
        level = float(self.measured.mean())
        features = np.column_stack([self.isolated, op_features(self.operators)])
        usual = self.counts.mean(0) @ features
        kept = usual > 1e-12 * np.abs(features).max(0, initial=1e-300)
        kept[0] = True
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

    def _prior(self, spreads: Spreads) -> tuple[Floats, Floats]:
        """Prior mean and covariance of (prices, offset)."""
        spread = np.full(self.features.shape[1], spreads.weight)
        spread[0] = spreads.isolated
        mean = np.append(self.features @ self.expected, 0.0)
        covariance = np.zeros((len(mean), len(mean)))
        covariance[:-1, :-1] = (self.features * spread**2) @ self.features.T
        covariance[:-1, :-1] += np.diag((spreads.residual * self.scale) ** 2)
        covariance[-1, -1] = (0.3 * self.level) ** 2
        return mean, covariance

    def _evidence(self, spreads: Spreads) -> tuple[Floats, Floats, Floats, Floats]:
        rows = np.column_stack([self.counts, np.ones(len(self.counts))]) * self.weights[:, None]
        mean, covariance = self._prior(spreads)
        noise = spreads.noise**2 + (self.errors * self.weights) ** 2
        gram = rows @ covariance @ rows.T + np.diag(noise)
        return rows, mean, covariance, gram

    def _fit(self) -> Spreads:
        def loss(logs: Floats) -> float:
            rows, mean, _, gram = self._evidence(Spreads(*np.exp(logs)))
            error = 1 - rows @ mean
            try:
                factor = cho_factor(gram, lower=True)
            except np.linalg.LinAlgError:
                return 1e10
            fit = 0.5 * error @ cho_solve(factor, error) + np.log(np.diag(factor[0])).sum()
            # weak priors keep the spreads within reason where few networks say little about them
            return float(fit + 0.5 * (((logs - _USUAL) / 1.5) ** 2).sum())

        found = [minimize(loss, start, method="L-BFGS-B", bounds=_BOUNDS) for start in (_USUAL, _USUAL + [1, -1, 1, -1])]
        best = min(found, key=lambda result: float(result.fun))
        return Spreads(*np.exp(best.x))

    def _solve(self) -> None:
        rows, mean, covariance, gram = self._evidence(self.spreads)
        factor = cho_factor(gram, lower=True)
        gain = cho_solve(factor, rows @ covariance).T
        posterior = mean + gain @ (1 - rows @ mean)
        self.covariance = covariance - gain @ rows @ covariance
        pinned: list[int] = []
        while (posterior < -1e-12).any():
            # condition on the negative ones being exactly zero: the others make up for it
            pinned = sorted({*pinned, *np.flatnonzero(posterior < 0).tolist()})
            free = posterior_given_zero(mean + gain @ (1 - rows @ mean), covariance - gain @ rows @ covariance, pinned)
            posterior, self.covariance = free
        posterior = np.maximum(posterior, 0.0)
        self.prices, self.offset = posterior[:-1], float(posterior[-1])
        self._gram, self._error = gram, 1 - rows @ mean

    @cached_property
    def left_out(self) -> Floats:
        """Each probe's relative error when it is predicted from the others (closed form, without the bound at zero)."""
        inverse = np.linalg.inv(self._gram)
        return np.asarray((inverse @ self._error) / np.diag(inverse))

    def predict(self, counts: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the cost of networks given by their operator counts (network, operator), ms."""
        mean = counts @ self.prices + self.offset
        full = np.column_stack([counts, np.ones(len(counts))])
        variance = ((full @ self.covariance) * full).sum(1) + (self.spreads.noise * mean) ** 2
        return mean, np.sqrt(np.maximum(variance, 0))


_USUAL = np.log([0.3, 0.2, 0.1, 0.01])
_BOUNDS = [(np.log(1e-3), np.log(3.0)), (np.log(1e-3), np.log(2.0)), (np.log(1e-4), np.log(2.0)), (np.log(1e-3), np.log(0.3))]


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


def op_features(operators: Sequence[OpSpec]) -> Floats:
    """What an operator's price in context may depend on, (operator, feature): multiply-adds by kind, numbers moved, ..."""
    rows = []
    for op in operators:
        c = resources.count(op)
        out = op.c_out * op.out_height * op.out_width
        rows.append([c.macs_dense, c.macs_pointwise, c.macs_depthwise, c.moved, out, c.params, c.layers, 1.0])
    return np.array(rows, dtype=np.float64)


def interval(mean: Floats, deviation: Floats, confidence: float = 0.9) -> tuple[Floats, Floats]:
    """The central interval of that confidence."""
    z = float(norm.ppf(0.5 + confidence / 2))
    return mean - z * deviation, mean + z * deviation


def choose_probes(space: SearchSpace, isolated: Floats, number: int, rng: np.random.Generator, pool: int = 600) -> list[Architecture]:
    """Networks worth measuring: half of them random, the others in turn where the prior and the networks so far leave most doubt."""
    found: dict[tuple[int, ...], Architecture] = {}
    for _ in range(20 * pool):
        arch = space.random(rng)
        found.setdefault(space.alive(arch), arch)
        if len(found) == pool:
            break
    archs = list(found.values())
    counter = CostModel(space, lambda op: 0.0)
    counts = counter.counts(archs).numpy()
    total = counts @ isolated
    features = np.column_stack([isolated, op_features(space.operators())])
    features = features / np.maximum(counts.mean(0) @ features, 1e-300) * total.mean()
    rows = counts / total[:, None]
    basis = np.column_stack([rows @ features * 0.3, rows * (0.1 * total.mean() / counts.sum(1).mean()), 0.3 * total.mean() / total])
    chosen: list[int] = list(range(min(number - number // 2, len(archs))))
    precision = np.eye(basis.shape[1]) + basis[chosen].T @ basis[chosen] / 0.01**2
    covariance = np.linalg.inv(precision)
    while len(chosen) < min(number, len(archs)):
        spread = basis @ covariance
        variance = (spread * basis).sum(1)
        variance[chosen] = -1
        best = int(variance.argmax())
        chosen.append(best)
        covariance -= np.outer(spread[best], spread[best]) / (variance[best] + 0.01**2)
    return [archs[i] for i in chosen]
