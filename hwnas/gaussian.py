"""A Gaussian process over groups of features: what is expected of a network that nobody has trained, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]

_JITTER = 1e-6
_SPREAD = (1.5, 1.0, 1.5)
"""Standard deviations of the logarithms of a group's weight, the amplitude and the noise before anything is seen."""
_BOUNDS = ((-9.0, 5.0), (-4.0, 4.0), (-12.0, 2.0))
_STEPS = 20


def distances(a: Sequence[NDArray[np.float32]], b: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Squared Euclidean distances (group, row of a, row of b), group by group."""
    rows = [(x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T for x, y in zip(a, b, strict=True)]
    return np.asarray(np.maximum(np.stack(rows), 0), np.float32)


class GaussianProcess:
    """Matern 5/2 in the distance r^2 = sum over groups of weight x squared distance, and noise; values are standardised.

    Weights, amplitude and noise maximise the marginal likelihood times log-normal priors, under which r is about 1 at the
    mean distance and the noise is a hundredth of the variance.

    Args:
        groups: how many groups of features there are, each scaled to a mean squared distance of 1.
        doubtful: whether some rows, the last ones, have noise of their own: ten times that of the others before anything is seen.
    """

    def __init__(self, groups: int, doubtful: bool = False) -> None:
        noises = 1 + doubtful
        self._prior = np.array([*[math.log(0.5 / max(groups, 1))] * groups, 0.0, math.log(1e-2), math.log(1e-1)][: groups + 1 + noises])
        self._spread = np.array([_SPREAD[0]] * groups + [_SPREAD[1]] + [_SPREAD[2]] * noises)
        self._groups = groups
        self.theta = self._prior.copy()
        """Logarithms of the groups' weights, the amplitude and the noise, and that of the doubtful rows."""

    def _noises(self, theta: Floats, rows: int, doubtful: int) -> Floats:
        """The noise of each row, of which the last ones are doubtful."""
        return np.repeat(np.exp(theta[[self._groups + 1, -1]]), [rows - doubtful, doubtful])

    def fit(self, between: NDArray[np.float32], values: Floats, doubtful: int = 0) -> None:
        """Chooses `theta` for values with those distances (group, row, row), from where it stands; `doubtful` counts the last rows."""
        squared, scaled = between.astype(np.float64), _standardised(values)[0]
        bounds = [_BOUNDS[0]] * len(squared) + [_BOUNDS[1]] + [_BOUNDS[2]] * (len(self.theta) - self._groups - 1)
        self.theta = minimize(
            self.loss, self.theta, (squared, scaled, doubtful), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
        ).x

    def loss(self, theta: Floats, squared: Floats, values: Floats, doubtful: int = 0) -> tuple[float, Floats]:
        """Minus the logarithm of likelihood and prior of standardised values (but for a constant), and its gradient."""
        weights, amplitude = np.exp(theta[: self._groups]), math.exp(theta[self._groups])
        noise = self._noises(theta, len(values), doubtful)
        shape, slope = _matern(np.tensordot(weights, squared, 1))
        factor = _factor(np.asarray(amplitude * shape + np.diag(noise + _JITTER), np.float64)), True
        alpha = cho_solve(factor, values)
        inner = np.outer(alpha, alpha) - cho_solve(factor, np.eye(len(values)))
        off = (theta - self._prior) / self._spread
        value = 0.5 * values @ alpha + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
        by_weight = -0.5 * amplitude * weights * np.tensordot(squared, inner * slope, 2)
        by_noise = -0.5 * noise * np.diag(inner)
        sure = len(values) - doubtful
        by_rest = [-0.5 * amplitude * (inner * shape).sum(), by_noise[:sure].sum(), by_noise[sure:].sum()][: len(theta) - self._groups]
        return float(value), np.array([*by_weight, *by_rest]) + off / self._spread

    def posterior(self, between: NDArray[np.float32], across: NDArray[np.float32], values: Floats, doubtful: int = 0) -> Posterior:
        """What `values`, the last of them doubtful, say of rows at the distances `across` (group, row, told)."""
        amplitude, noise = np.exp(self.theta[self._groups : self._groups + 2])
        scaled, mean, deviation = _standardised(values)
        told = self.kernel(between).astype(np.float64) + np.diag(self._noises(self.theta, len(values), doubtful) + _JITTER)
        factor = _factor(told)
        towards = self.kernel(across)
        weights = cho_solve((factor, True), scaled).astype(np.float32)
        explained = solve_triangular(factor.astype(np.float32), towards.T, lower=True, check_finite=False)
        variance = np.maximum(amplitude - np.square(explained).sum(0, dtype=np.float64), 1e-8)
        return Posterior(self, mean + deviation * (towards @ weights).astype(np.float64), variance, explained, deviation, noise)

    def kernel(self, squared: NDArray[np.float32]) -> NDArray[np.float32]:
        """Covariance at those distances (group, ...), in single precision."""
        weights = np.exp(self.theta[: self._groups]).astype(np.float32)
        return np.float32(math.exp(self.theta[self._groups])) * _matern(np.tensordot(weights, squared, 1))[0].astype(np.float32)


class Posterior:
    """Mean and deviation of rows in the values' unit, and what they become when a row is taken for known."""

    def __init__(
        self, process: GaussianProcess, mean: Floats, variance: Floats, explained: NDArray[np.float32], scale: float, noise: float
    ) -> None:
        self.process, self.mean, self._variance, self._explained, self._scale, self._noise = (
            process,
            mean,
            variance,
            explained,
            scale,
            noise,
        )
        self._assumed: list[Floats] = []

    @property
    def deviation(self) -> Floats:
        """Standard deviation of each row's value, without noise."""
        return self._scale * np.sqrt(self._variance)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Forgets all rows but these."""
        self.mean, self._variance, self._explained = self.mean[rows], self._variance[rows], self._explained[:, rows]
        self._assumed = [shared[rows] for shared in self._assumed]

    def assume(self, row: int, squared: NDArray[np.float32]) -> None:
        """Takes the row's mean for its value: means stay, deviations fall. `squared` are its distances (group, row)."""
        shared = self.process.kernel(squared).astype(np.float64) - self._explained.T @ self._explained[:, row]
        for earlier in self._assumed:
            shared -= earlier * earlier[row]
        shared /= math.sqrt(self._variance[row] + self._noise + _JITTER)
        self._assumed.append(shared)
        self._variance = np.maximum(self._variance - shared**2, 1e-8)


def _matern(squared: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Matern 5/2 of r^2, and its derivative by r^2."""
    root = np.sqrt(5 * squared)
    decay = np.exp(-root)
    return (1 + root + root * root / 3) * decay, -5 / 6 * (1 + root) * decay


def _factor(covariance: Floats) -> Floats:
    """The lower Cholesky factor; the diagonal is raised until there is one: distances in single precision can make a kernel indefinite."""
    mean = covariance.diagonal().mean()
    for raised in (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        try:
            return np.asarray(cholesky(covariance + raised * mean * np.eye(len(covariance)), lower=True))
        except np.linalg.LinAlgError:
            continue
    return np.asarray(cholesky(covariance + len(covariance) * covariance.max() * np.eye(len(covariance)), lower=True))


def _standardised(values: Floats) -> tuple[Floats, float, float]:
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    return (values - mean) / deviation, mean, deviation
