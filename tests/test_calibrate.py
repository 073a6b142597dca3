"""Calibration on a made-up machine whose true prices are known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from hwnas import calibrate, resources
from hwnas.calibrate import FEWEST, SESSIONS, Accuracy, Calibration, choose_probes, indicators, interval, posterior_given_zero
from hwnas.context import is_contextual, plain
from hwnas.cost import CostModel, one_hot
from hwnas.errors import MissingPriceError, TableError
from hwnas.op import OpSpec
from hwnas.space import Architecture, SearchSpace, load_space
from hwnas.table import CostTable, Row

PROBES = 40
FACTORS = {"conv_bn": 0.7, "relu": 0.2, "mbconv": 0.8, "conv_bn_relu": 0.9}
"""What an operator costs in a network, relative to alone; 1 where nothing is said."""


@cache
def made(name: str, seed: int = 0, noise: float = 0.005) -> tuple[Calibration, list[Architecture], np.ndarray]:
    """A calibration from `PROBES` networks, and 200 others with their costs."""
    space = load_space(name)
    rng = np.random.default_rng(seed)
    operators = space.operators()
    isolated = np.array([2e-3 + 3e-7 * resources.macs(op) for op in operators]) * rng.lognormal(0, 0.1, len(operators))
    true = isolated * [FACTORS.get(op.kind, 1.0) for op in operators] * rng.lognormal(0, 0.05, len(operators))
    counter = CostModel(space, lambda op: 0.0)
    probes = choose_probes(space, isolated, PROBES, np.random.default_rng(seed))
    assert len(set(probes)) == PROBES
    measured = (counter.counts(probes).numpy() @ true + 0.02) * (1 + noise * rng.standard_normal(PROBES))
    others = [space.random(rng) for _ in range(200)]
    return Calibration.best(space, isolated, probes, measured), others, counter.counts(others).numpy() @ true + 0.02


NAMES = ("mobilenet_v2", "nasbench201")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_unseen_networks_are_predicted_and_far_better_than_by_the_sum_of_isolated_prices(name: str, seed: int) -> None:
    calibration, archs, true = made(name, seed)
    after = Accuracy.of(calibration.predict(archs)[0], true)
    before = Accuracy.of(calibration.sum_of_isolated(archs), true)
    assert after.within_5 >= 0.95 and after.mape < 0.02
    assert after.mape < before.mape / 4
    assert after.spearman > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_holds_what_it_says(name: str) -> None:
    held = []
    for seed in range(4):  # a whole calibration is right or wrong together: two of them say little
        calibration, archs, true = made(name, seed)
        low, high = interval(*calibration.predict(archs), confidence=0.9)
        held.append(((low <= true) & (true <= high)).mean())
    assert np.mean(held) >= 0.85


@pytest.mark.parametrize("name", NAMES)
def test_prices_are_never_negative_and_what_is_left_out_tells_the_error(name: str) -> None:
    calibration, _, _ = made(name)
    assert (calibration.prices >= 0).all() and calibration.offset >= 0
    assert calibration.left_out.shape == (PROBES,)
    assert np.abs(calibration.left_out).mean() < 0.05


def test_the_cost_model_says_the_same_as_the_calibration() -> None:
    calibration, _, _ = made("nasbench201")
    space = calibration.space
    archs = [space.random(np.random.default_rng(seed)) for seed in range(20)]
    model = calibration.cost_model()
    counts = model.counts(archs).numpy()
    mean = counts @ calibration.prices + calibration.offset
    full = np.column_stack([counts, np.ones(20)])
    deviation = np.sqrt(((full @ calibration.covariance) * full).sum(1) + (calibration.spreads.noise * mean) ** 2)
    for found, expected in zip(calibration.predict(archs), (mean, deviation), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(model.of(archs).numpy(), mean, rtol=1e-6)
    upper = model.upper(archs, 0.95).numpy()
    np.testing.assert_allclose((upper - mean) / deviation, 1.6449, rtol=1e-3)


def by_place(noise: float = 0.002) -> tuple[SearchSpace, np.ndarray, list[Architecture], np.ndarray]:
    """A machine on which the same operators cost more at some places than at others: space, isolated prices, networks, times."""
    space = load_space("nasbench201", {"cells": 1, "width": 4, "input_size": 8})
    rng = np.random.default_rng(3)
    isolated = np.array([0.05 + 1e-6 * resources.macs(op) for op in space.operators()])
    archs = list({space.alive(arch): arch for arch in (space.random(rng) for _ in range(300))}.values())
    places = rng.uniform(0, 0.08, (6, 5))
    times = CostModel(space, lambda op: 0.0).counts(archs).numpy() @ isolated + places[np.arange(6), np.array(archs)].sum(1)
    return space, isolated, archs, times * (1 + noise * rng.standard_normal(len(archs)))


def test_corrections_say_what_an_operator_costs_more_at_its_place() -> None:
    space, isolated, archs, times = by_place()
    seen, unseen = slice(0, 60), slice(60, None)
    best = Calibration.best(space, isolated, archs[seen], times[seen])
    plain = Calibration(space, isolated, archs[seen], times[seen])
    assert best.corrections is not None
    errors = [Accuracy.of(c.predict(archs[unseen])[0], times[unseen]).mape for c in (best, plain)]
    assert errors[0] < 0.5 * errors[1] and errors[0] < 0.01
    assert (best.corrections >= 0).all() and (best.corrections.min(1) == 0).all()
    model = best.cost_model()
    counts = model.counts(archs).numpy()
    mean = counts @ best.prices + best.corrections[np.arange(6), np.array(archs)].sum(1) + best.offset
    full = np.column_stack([counts, indicators(space, archs), np.ones(len(archs))])
    deviation = np.sqrt(((full @ best.covariance) * full).sum(1) + (best.spreads.noise * mean) ** 2)
    np.testing.assert_allclose(model.of(archs).numpy(), mean, rtol=1e-9)
    np.testing.assert_allclose(model.deviation(archs).numpy(), deviation, rtol=1e-6)
    np.testing.assert_allclose(model(one_hot(space, archs).double()).numpy(), mean, rtol=1e-9)


def test_corrections_that_do_not_help_are_not_kept() -> None:
    assert made("nasbench201")[0].kept == ()


@pytest.mark.parametrize(("name", "discount"), [("nasbench201", 0.1), ("fbnet", 1.0)])
def test_operators_in_context_have_prices_of_their_own(name: str, discount: float) -> None:
    space = load_space(name)
    rng = np.random.default_rng(5)
    model = CostModel(space, lambda op: 0.0, contextual=True)
    alone = {op: 2e-3 + 3e-7 * resources.macs(op) + 1e-6 * op.c_out * op.out_height * op.out_width for op in space.operators()}
    isolated = np.array(list(alone.values()))

    def in_context(one: OpSpec) -> float:
        """Fused operators cost a share of the plain ones, a change of layout what a pass over the image does."""
        op = plain(one)
        return 1e-5 * one.c_out * one.height * one.width if op is None else alone[op] * (discount if is_contextual(one) else 1)

    true = np.array([in_context(op) for op in model.operators])
    archs = choose_probes(space, isolated, 60, rng) + [space.random(rng) for _ in range(100)]
    times = (model.counts(archs).numpy() @ true + 0.02) * (1 + 0.005 * rng.standard_normal(160))
    best = Calibration.best(space, isolated, archs[:60], times[:60])
    without = Calibration(space, isolated, archs[:60], times[:60])
    errors = [Accuracy.of(found.predict(archs[60:])[0], times[60:]).mape for found in (best, without)]
    assert best.contextual and errors[0] < 0.7 * errors[1] and errors[0] < 0.01
    assert (best.prices >= 0).all()


def test_weights_that_no_longer_fit_into_a_cache_have_a_price() -> None:
    space = load_space("nasbench201")
    rng = np.random.default_rng(7)
    isolated = np.array([2e-3 + 3e-7 * resources.macs(op) for op in space.operators()])
    archs = choose_probes(space, isolated, 60, rng) + [space.random(rng) for _ in range(100)]
    megabytes = np.array([4e-6 * sum(map(resources.params, space.lower(arch))) for arch in archs])
    times = CostModel(space, lambda op: 0.0).counts(archs).numpy() @ isolated + 0.4 * np.maximum(megabytes - 1, 0) ** 1.5
    times *= 1 + 0.005 * rng.standard_normal(160)
    best = Calibration.best(space, isolated, archs[:60], times[:60])
    without = Calibration(space, isolated, archs[:60], times[:60])
    errors = [Accuracy.of(found.predict(archs[60:])[0], times[60:]).mape for found in (best, without)]
    assert "pressing" in best.kept and errors[0] < 0.7 * errors[1]


def test_corrections_may_take_more_than_every_network_costs_beside_its_operators() -> None:
    """Isolated prices that are too high by as much at every place: nothing is cut off, and no network is predicted at 0 or less."""
    space, isolated, archs, times = by_place()
    best = Calibration(space, 2 * isolated, archs[:60], times[:60], corrected=True)
    mean, _ = best.predict(archs[60:])
    assert Accuracy.of(mean, times[60:]).mape < 0.02
    assert (mean > 0).all()


def test_corrections_by_which_a_network_would_cost_nothing_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    space, isolated, archs, times = by_place()
    best = Calibration(space, isolated, archs[:60], times[:60], corrected=True)
    assert best.positive
    best.offset -= 2 * float(times.max())
    assert not best.positive
    monkeypatch.setattr(Calibration, "positive", property(lambda calibration: calibration.corrections is None))
    assert Calibration.best(space, isolated, archs[:60], times[:60]).corrections is None


@pytest.mark.parametrize("corrected", [False, True])
def test_more_networks_than_terms_say_what_all_their_rows_say(corrected: bool) -> None:
    space, isolated, archs, times = by_place(noise=0.02)

    class RowByRow(Calibration):
        def _evidence(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
            rows = np.column_stack([self.counts, self.chosen, np.ones(len(self.counts))]) * (self.weights * self.trust)[:, None]
            return rows, self.trust - rows @ mean, 0.0, 0

    few, all_ = (kind(space, isolated, archs[:120], times[:120], corrected=corrected) for kind in (Calibration, RowByRow))
    np.testing.assert_allclose(few.spreads.values(), all_.spreads.values(), rtol=0.02)
    for found, expected in zip(few.predict(archs[120:]), all_.predict(archs[120:]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.01)


def test_networks_far_off_what_the_others_say_count_less(monkeypatch: pytest.MonkeyPatch) -> None:
    space, isolated, archs, times = by_place(noise=0.01)
    measured = times.copy()
    measured[[3, 11, 27, 40]] *= 1.3
    robust = Calibration(space, isolated, archs[:60], measured[:60])
    assert set(np.argsort(robust.trust)[:4]) == {3, 11, 27, 40} and robust.trust.max() > 1
    monkeypatch.setattr(calibrate, "DEGREES", 1e9)
    plain = Calibration(space, isolated, archs[:60], measured[:60])
    errors = [Accuracy.of(found.predict(archs[60:])[0], times[60:]).mape for found in (robust, plain)]
    assert errors[0] < 0.9 * errors[1]


def test_what_is_left_out_is_predicted_without_it() -> None:
    calibration, _, _ = made("nasbench201")
    space, order = calibration.space, np.random.default_rng(0).permutation(PROBES)
    archs = choose_probes(space, calibration.isolated, PROBES, np.random.default_rng(0))
    fold, rest = order[:4], np.sort(order[4:])
    others = Calibration(space, calibration.isolated, [archs[i] for i in rest], calibration.measured[rest])
    mean, _ = others.predict([archs[i] for i in fold])
    np.testing.assert_allclose(calibration.left_out[fold], 1 - mean / calibration.measured[fold], atol=2e-4)


def test_standard_deviations_are_widened_where_networks_left_out_are_farther_off() -> None:
    space, isolated, archs, times = by_place(noise=0.03)
    calibration = Calibration(space, isolated, archs[:60], times[:60])
    calibration._left_out = calibration._left_out[0], np.full(60, 3.0)
    before = calibration.covariance.copy(), calibration.spreads.noise
    calibration.widen()
    np.testing.assert_allclose(calibration.covariance, 9 * before[0])
    assert calibration.spreads.noise == pytest.approx(math.hypot(3 * before[1], SESSIONS))
    calibration._left_out = calibration._left_out[0], np.full(60, 0.5)
    calibration.widen()
    np.testing.assert_allclose(calibration.covariance, 9 * before[0])


def test_networks_alone_calibrate_too() -> None:
    space, _, archs, times = by_place()
    mean, _ = Calibration.best(space, None, archs[:80], times[:80]).predict(archs[80:])
    assert Accuracy.of(mean, times[80:]).mape < 0.01


def test_prices_stay_at_zero_or_above_where_the_networks_want_less(diamond: SearchSpace) -> None:
    counter = CostModel(diamond, lambda op: 0.0)
    archs = [arch for arch in diamond.all() for _ in range(3)]
    counts = counter.counts(archs).numpy()
    isolated = np.full(len(diamond.operators()), 1.0)
    # networks with more operators are faster, which no prices explain
    measured = 10.0 - counts.sum(1)
    calibration = Calibration(diamond, isolated, archs, measured)
    assert (calibration.prices >= 0).all() and calibration.offset >= 0
    assert np.isfinite(calibration.covariance).all()


@pytest.mark.parametrize("name", ["enas_micro", "condensenet"])
def test_spaces_whose_networks_are_priced_one_by_one(name: str) -> None:
    space = load_space(name, type(load_space(name)).small)
    rng = np.random.default_rng(0)
    isolated = np.array([2e-3 + 3e-7 * resources.macs(op) for op in space.operators()])
    archs = [space.random(rng) for _ in range(60)]
    times = CostModel(space, lambda op: 0.0).counts(archs).numpy() @ isolated * 1.2 + 0.02
    mean, deviation = Calibration.best(space, isolated, archs[:40], times[:40]).predict(archs[40:])
    assert Accuracy.of(mean, times[40:]).mape < 0.02 and (deviation > 0).all()


def test_too_few_networks(diamond: SearchSpace) -> None:
    archs = list(diamond.all())
    table = CostTable("x", "latency_ms", {}, {op: Row(1.0) for op in diamond.operators()})
    with pytest.raises(TableError, match=f"at least {FEWEST} measured networks, but has 6"):
        Calibration.from_tables(diamond, table, archs, np.ones(len(archs)))


def test_a_missing_price(diamond: SearchSpace) -> None:
    table = CostTable("x", "latency_ms", {}, {OpSpec("relu", 1, 1, 1, 1): Row(1.0)})
    with pytest.raises(MissingPriceError):
        Calibration.from_tables(diamond, table, [next(iter(diamond.all()))] * 9, np.ones(9))


def test_conditioning_on_zero() -> None:
    mean, covariance = np.array([1.0, -1.0]), np.array([[1.0, 0.5], [0.5, 1.0]])
    found, spread = posterior_given_zero(mean, covariance, [1])
    np.testing.assert_allclose(found, [1.5, 0.0])
    np.testing.assert_allclose(spread, [[0.75, 0.0], [0.0, 0.0]], atol=1e-12)


def test_probes_of_a_space_smaller_than_their_number(diamond: SearchSpace) -> None:
    isolated = np.ones(len(diamond.operators()))
    probes = choose_probes(diamond, isolated, 40, np.random.default_rng(0))
    networks = {diamond.alive(arch) for arch in probes}
    assert len(probes) == len(networks) == len({diamond.alive(arch) for arch in diamond.all()})


def test_networks_chosen_to_calibrate_by_do_better_than_random_ones() -> None:
    ratios = []
    for name in NAMES:
        space = load_space(name)
        rng = np.random.default_rng(0)
        isolated = np.array([2e-3 + 3e-7 * resources.macs(op) for op in space.operators()])
        counts = CostModel(space, lambda op: 0.0).counts
        true = isolated * rng.lognormal(0, 0.2, len(isolated))
        others = [space.random(rng) for _ in range(200)]
        errors: dict[str, list[float]] = {"chosen": [], "random": []}
        for seed in range(5):
            noise = 1 + 0.02 * np.random.default_rng(seed).standard_normal(24)
            networks = {
                "chosen": choose_probes(space, isolated, 24, np.random.default_rng(seed)),
                "random": [space.random(np.random.default_rng([seed, i])) for i in range(24)],
            }
            for kind, probes in networks.items():
                calibration = Calibration(space, isolated, probes, counts(probes).numpy() @ true * noise)
                wrong = calibration.predict(others)[0] / (counts(others).numpy() @ true) - 1
                errors[kind].append(float(np.sqrt((wrong**2).mean())))
        ratios.append(np.mean(errors["chosen"]) / np.mean(errors["random"]))
    assert np.exp(np.mean(np.log(ratios))) < 0.97 and max(ratios) < 1.02
