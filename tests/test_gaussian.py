"""The Gaussian process against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal

from hwnas.gaussian import GaussianProcess, distances

Groups = list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]


@pytest.fixture
def groups() -> Groups:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(14, width)).astype(np.float32) for width in (1, 4)]


@pytest.fixture
def values() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(1).normal(3.0, 2.0, size=10)


def covariance(process: GaussianProcess, a: Groups, b: Groups) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Matern 5/2, entry by entry."""
    weights, amplitude = np.exp(process.theta[: len(a)]), math.exp(process.theta[len(a)])
    out = np.zeros((len(a[0]), len(b[0])))
    for i in range(len(a[0])):
        for j in range(len(b[0])):
            r = math.sqrt(5 * sum(w * float(((x[i] - y[j]) ** 2).sum()) for w, x, y in zip(weights, a, b, strict=True)))
            out[i, j] = amplitude * (1 + r + r * r / 3) * math.exp(-r)
    return out


def rows(groups: Groups, chosen: slice) -> Groups:
    return [group[chosen] for group in groups]


def test_posterior_is_the_textbook_s(groups: Groups, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    process = GaussianProcess(2)
    process.theta = np.array([-0.3, 0.4, 0.2, -3.0])
    told, asked = rows(groups, slice(10)), rows(groups, slice(10, 14))
    found = process.posterior(distances(told, told), distances(asked, told), values)
    inverse = np.linalg.inv(covariance(process, told, told) + (math.exp(-3.0) + 1e-6) * np.eye(10))
    towards = covariance(process, asked, told)
    mean = values.mean() + towards @ inverse @ (values - values.mean())
    variance = np.diag(covariance(process, asked, asked) - towards @ inverse @ towards.T)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(found.deviation, values.std() * np.sqrt(variance), rtol=1e-3)


def test_assuming_a_row_is_conditioning_on_its_mean(groups: Groups, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    process = GaussianProcess(2)
    told, asked = rows(groups, slice(10)), rows(groups, slice(10, 14))
    found = process.posterior(distances(told, told), distances(asked, told), values)
    before = found.deviation
    for row in (2, 0):
        found.assume(row, distances(asked, [group[row : row + 1] for group in asked])[:, :, 0])
    more = [np.vstack([group[:10], group[[12, 10]]]) for group in groups]
    inverse = np.linalg.inv(covariance(process, more, more) + (math.exp(process.theta[-1]) + 1e-6) * np.eye(12))
    towards = covariance(process, asked, more)
    variance = np.diag(covariance(process, asked, asked) - towards @ inverse @ towards.T)
    np.testing.assert_allclose(found.deviation, values.std() * np.sqrt(variance), rtol=1e-3)
    assert (found.deviation < before).all() and found.deviation[2] < 0.3 * before[2]
    found.keep(np.array([3, 1]))
    np.testing.assert_allclose(found.deviation, values.std() * np.sqrt(variance[[3, 1]]), rtol=1e-3)


@pytest.mark.parametrize("doubtful", [0, 4])
def test_loss_is_the_likelihood_and_the_prior_and_its_gradient_the_numerical_one(groups: Groups, doubtful: int) -> None:
    process = GaussianProcess(2, doubtful=doubtful > 0)
    squared = distances(rows(groups, slice(10)), rows(groups, slice(10))).astype(np.float64)
    values = np.random.default_rng(2).normal(size=10)
    theta = np.array([-0.3, 0.4, 0.2, -2.0] + [-1.0] * (doubtful > 0))
    given = squared, values, doubtful
    assert check_grad(lambda at: process.loss(at, *given)[0], lambda at: process.loss(at, *given)[1], theta) < 1e-4

    def naive(at: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        process.theta = at
        noise = [math.exp(at[3])] * (10 - doubtful) + [math.exp(at[-1])] * doubtful
        matrix = covariance(process, rows(groups, slice(10)), rows(groups, slice(10))) + np.diag(np.array(noise) + 1e-6)
        prior = np.array([math.log(0.25), math.log(0.25), 0.0, math.log(1e-2), math.log(1e-1)])[: len(at)]
        off = (at - prior) / np.array([1.5, 1.5, 1.0, 1.5, 1.5])[: len(at)]
        return float(-multivariate_normal(np.zeros(10), matrix).logpdf(values) + 0.5 * (off**2).sum())

    other = np.array([0.5, -1.0, -0.4, -4.0] + [0.5] * (doubtful > 0))
    assert process.loss(theta, *given)[0] - process.loss(other, *given)[0] == pytest.approx(naive(theta) - naive(other), rel=1e-4)


def test_doubtful_rows_count_less(groups: Groups) -> None:
    process = GaussianProcess(2, doubtful=True)
    told = rows(groups, slice(6))
    between, values = distances(told, told), np.array([0.0, 0.2, -0.1, 1.0, -1.0, 0.5])
    posterior = process.posterior(between, between, values, doubtful=3)
    off = np.abs(posterior.mean - values)
    assert off[:3].max() < off[3:].max()
    assert posterior.deviation[:3].max() < posterior.deviation[3:].min()


def test_fitting_finds_the_group_that_matters() -> None:
    rng = np.random.default_rng(3)
    groups = [(rng.normal(size=(60, 2)) / 2).astype(np.float32) for _ in range(3)]
    values = (np.sin(3 * groups[1][:, 0]) + groups[1][:, 1]).astype(np.float64)
    told = [group[:45] for group in groups]
    process = GaussianProcess(3)
    process.fit(distances(told, told), values[:45])
    assert process.theta[1] > max(process.theta[0], process.theta[2]) + 2
    found = process.posterior(distances(told, told), distances([group[45:] for group in groups], told), values[:45])
    assert np.abs(found.mean - values[45:]).mean() < 0.15 * values.std()


def test_equal_values_are_no_trouble(groups: Groups) -> None:
    process = GaussianProcess(2)
    between = distances(groups, groups)
    process.fit(between, np.full(14, 2.0))
    found = process.posterior(between, between, np.full(14, 2.0))
    np.testing.assert_allclose(found.mean, 2.0)
    assert np.isfinite(found.deviation).all()


def test_networks_that_single_precision_cannot_tell_apart_are_no_obstacle() -> None:
    """Far from the origin squared distances are rounded so much that the kernel is not positive definite any more."""
    rng = np.random.default_rng(0)
    groups = [(300 + 0.01 * rng.normal(size=(80, 3))).astype(np.float32)]
    between = distances(groups, groups)
    process = GaussianProcess(1)
    process.theta = np.array([4.0, 3.0, -12.0])
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(process.kernel(between).astype(np.float64) + (np.exp(-12.0) + 1e-6) * np.eye(80))
    values = rng.normal(size=80)
    assert np.isfinite(process.loss(process.theta, between.astype(np.float64), values)[0])
    assert np.isfinite(process.posterior(between, between, values).mean).all()
    process.fit(between, values)
