"""Transfer: a device's table from a sibling's table and a few operators that are measured on it.

    log price(op on target) = log price(op on source) + offset + f(features(op)) + noise

f is a Gaussian process over logarithms of the source's price and of what the operator does on paper: linear plus smooth, spreads by
marginal likelihood. The measured operators are chosen greedily, where one says most about all the others. What is predicted is
marked `modelled`, and its error is estimated by leaving each measured operator out in turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hwnas.calibrate import op_features
from hwnas.device import digest
from hwnas.doctor import find_table
from hwnas.errors import ConfigError, TableError
from hwnas.measure import Progress, Protocol, silent
from hwnas.op import OpSpec
from hwnas.profile import TRANSFER_FACT, DeviceTables, profile_operators, unmeasured
from hwnas.space import SearchSpace
from hwnas.table import CostTable, Row

Floats = NDArray[np.float64]
LATENCY = "latency_ms"
FEWEST = 5
"""Measured operators below which nothing is predicted."""
_FLOOR = 0.01
"""Prices are compared as log(price + this share of their median), so that an operator that costs nothing has a finite one."""


def features(operators: Sequence[OpSpec], source: Floats) -> Floats:
    """(operator, feature): logarithms of the source's price and of what the operator does on paper, standardised, and its kind."""
    kinds = sorted({op.kind for op in operators})
    kind = np.array([[float(op.kind == name) for name in kinds] for op in operators])
    paper = np.log1p(op_features(operators))
    numbers = np.column_stack([_log(source, _floor(source)), paper])
    spread = numbers.std(0)
    return np.column_stack([(numbers - numbers.mean(0))[:, spread > 0] / spread[spread > 0], 0.5 * kind])


def choose(rows: Floats, number: int, known: Sequence[int] = ()) -> list[int]:
    """`number` row indices, those `known` first, then in turn the row that most reduces what is not known of all rows together."""
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1) / rows.shape[1]
    covariance = 1 + rows @ rows.T / rows.shape[1] + np.exp(-apart)
    noise = 0.1 * float(np.diag(covariance).mean())
    chosen: list[int] = []

    def take(index: int) -> None:
        nonlocal covariance
        column = covariance[index]
        covariance = covariance - np.outer(column, column) / (noise + column[index])
        chosen.append(index)

    for index in known[:number]:
        take(index)
    while len(chosen) < min(number, len(rows)):
        gain = (covariance**2).sum(0) / (noise + np.diag(covariance))
        gain[chosen] = -1
        take(int(gain.argmax()))
    return chosen


@dataclass(frozen=True)
class LeftOut:
    """How well measured operators are predicted from the other ones: all errors as a share of all prices, relative ones, within 10 %.

    An operator that costs next to nothing may be wrong by a hundred times and does not matter: hence no mean of relative errors.
    """

    n: int
    of_total: float
    median: float
    within_10: float
    spearman: float


class Transfer:
    """Prices on a target, learnt from those on a source and a few on the target, in the same unit.

    Args:
        rows: `features` of all operators. measured: index -> (price, standard error) on the target.
    """

    def __init__(self, rows: Floats, source: Floats, measured: Mapping[int, tuple[float, float]]) -> None:
        if len(measured) < FEWEST:
            raise TableError(f"a transfer needs at least {FEWEST} operators measured on the target, but has {len(measured)}")
        self.rows, self.source = rows, _log(source, _floor(source))
        self.index = sorted(measured)
        self.target = np.array([measured[i][0] for i in self.index])
        errors = np.array([measured[i][1] for i in self.index])
        self.floor = _floor(self.target)
        self.ratio = _log(self.target, self.floor) - self.source[self.index]
        self.noise = (errors / (self.target + self.floor)) ** 2 + 1e-6

    def predict(self) -> tuple[Floats, Floats]:
        """Price of every operator on the target and its standard error."""
        everything = np.arange(len(self.index))
        log, deviation = self._from(everything, np.arange(len(self.rows)))
        deviation = deviation * self.caution
        return np.maximum(np.exp(log) - self.floor, 0.0), np.exp(log) * deviation

    @cached_property
    def left_out(self) -> LeftOut:
        """The error on each measured operator when it is predicted from the other ones, with its spreads fitted without it."""
        predicted = np.maximum(np.exp(self._loo[0]) - self.floor, 0.0)
        relative = np.abs(np.exp(self._loo[0]) / (self.target + self.floor) - 1)
        rank = float(spearmanr(predicted, self.target).statistic)
        of_total = float(np.abs(predicted - self.target).sum() / self.target.sum())
        return LeftOut(len(relative), of_total, float(np.median(relative)), float((relative <= 0.1).mean()), rank)

    @cached_property
    def caution(self) -> float:
        """What standard errors are multiplied with, so that they are not smaller than the left-out errors say."""
        log, deviation = self._loo
        score = (self.ratio + self.source[self.index] - log) / deviation
        return max(1.0, float(np.sqrt(np.mean(score**2))))

    @cached_property
    def _loo(self) -> tuple[Floats, Floats]:
        everything = np.arange(len(self.index))
        found = [self._from(np.delete(everything, i), np.array([self.index[i]])) for i in everything]
        return np.array([log[0] for log, _ in found]), np.array([deviation[0] for _, deviation in found])

    def _from(self, given: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Log price (with the floor) of the rows `wanted` and its standard error, from the measured ones `given` (their numbers)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

        width = self.rows.shape[1] ** 0.5
        linear = ConstantKernel(0.03, (1e-5, 1.0)) * DotProduct(0.0, "fixed")
        smooth = ConstantKernel(0.03, (1e-5, 1.0)) * RBF(width, (0.3 * width, 10 * width))
        process = GaussianProcessRegressor(linear + smooth + WhiteKernel(1e-3, (1e-5, 0.1)), alpha=self.noise[given])
        ratio = self.ratio[given]
        centre = float(np.median(ratio))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a spread at its bound is an answer
            process.fit(self.rows[[self.index[i] for i in given]], ratio - centre)
        mean, deviation = process.predict(self.rows[wanted], return_std=True)
        return np.asarray(mean + centre + self.source[wanted], dtype=np.float64), np.asarray(deviation, dtype=np.float64)


def _floor(prices: Floats) -> float:
    return _FLOOR * float(np.median(prices)) or 1e-9


def _log(prices: Floats, floor: float) -> Floats:
    return np.asarray(np.log(np.maximum(prices, 0.0) + floor))


def load_source(name: str, root: Path) -> tuple[Path, CostTable]:
    """The latency table to learn from: a device's own here, else the one last measured elsewhere, or the file of that name.

    Raises:
        TableError: there is none, or it is damaged. DeviceError: no such device.
    """
    path, _, _ = find_table(name, root)
    table = CostTable.load(path)
    if table.metric != LATENCY:
        raise TableError(f"{path} holds {table.metric}; a transfer needs a table of {LATENCY}")
    return path, table


def transfer_table(
    source: CostTable,
    target: DeviceTables,
    space: SearchSpace,
    number: int = 20,
    *,
    protocol: Protocol | None = None,
    progress: Progress = silent,
) -> tuple[CostTable, dict[str, Any]]:
    """Measures `number` of the space's operators on the target, predicts the others, and writes the target's table.

    Operators that the target measured before count among the `number`. Predicted rows are `modelled`; `hwnas profile` replaces
    them. Also gives a summary: `source`, `target`, `operators`, `measured`, `predicted`, `bad`, `left_out`.

    Raises:
        ConfigError: fewer than `FEWEST` operators asked for, or the source is the target itself.
        TableError: the source lacks operators of the space, or too few could be measured.
    """
    if number < FEWEST:
        raise ConfigError(f"a transfer needs at least {FEWEST} measured operators, but --operators is {number}; give 10 to 20")
    if source.device == target.device.name and source.fingerprint == target.fingerprint:
        raise ConfigError(f"the source is {target.device.name}'s own table; choose another device's, or measure with `hwnas profile`")
    operators = space.operators()
    lacking = unmeasured(source, operators)
    if lacking:
        raise TableError(
            f"the table of {source.device} has no measured price of {len(lacking)} operators of {space.name}, e.g. {lacking[0]}; "
            f"measure it there with `hwnas profile {source.device} CONFIG`"
        )
    prices = np.array([source.rows[op].price for op in operators])
    rows = features(operators, prices)
    table = target.operators(LATENCY)
    before = set(unmeasured(table, operators))
    chosen = choose(rows, number, [i for i, op in enumerate(operators) if op not in before])
    table = profile_operators(target, [operators[i] for i in chosen], protocol=protocol, progress=progress)
    todo = unmeasured(table, operators)
    left = {i: (table.rows[op].price, table.rows[op].error) for i, op in enumerate(operators) if op not in todo}
    unpredicted = [op for op in todo if op not in table.bad]
    summary: dict[str, Any] = {
        "source": f"{source.device}/{digest(source.fingerprint)}",
        "target": f"{target.device.name}/{digest(target.fingerprint)}",
        "operators": len(operators),
        "measured": len(left),
        "predicted": len(unpredicted),
        "bad": {str(op): table.bad[op] for op in operators if op in table.bad},
        "left_out": None,
    }
    if unpredicted:
        model = Transfer(rows, prices, left)
        mean, error = model.predict()
        index = {op: i for i, op in enumerate(operators)}
        found = {op: Row(float(mean[index[op]]), float(error[index[op]]), source="modelled") for op in unpredicted}
        table.add(found, target.fingerprint)
        summary["left_out"] = vars(model.left_out)
        table.facts |= {
            f"{TRANSFER_FACT}source": summary["source"],
            f"{TRANSFER_FACT}measured operators": str(len(left)),
            f"{TRANSFER_FACT}left-out error": f"{model.left_out.of_total:.4f}",
        }
        table.save(target.folder / f"{LATENCY}.csv")
    return table, summary
