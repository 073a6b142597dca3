"""Tables filled by measuring, in ONNX Runtime: a few operators of a tiny space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas import layers, profile, resources
from hwnas.config import load_device
from hwnas.errors import MissingPriceError, SpaceError, TableError
from hwnas.measure import Measurement, Protocol, Timing, measure
from hwnas.op import OpSpec
from hwnas.profile import (
    DeviceTables,
    chains,
    check,
    measure_networks,
    paper_costs,
    profile_networks,
    profile_operators,
    spaces_of,
)
from hwnas.space import SearchSpace, Site, Slot, load_space
from hwnas.table import CostTable

QUICK = Protocol(rounds=3, most_rounds=3, visit_ms=0.3)


@pytest.fixture
def tables(tmp_path: Path, local_fingerprint: dict[str, str]) -> DeviceTables:
    return DeviceTables(tmp_path, load_device("cpu-1t"), local_fingerprint)


def test_chains_differ_by_what_they_say() -> None:
    keeps, changes = OpSpec("conv_bn", 4, 4, 8, 8, kernel=3), OpSpec("conv_bn", 4, 8, 8, 8, stride=2)
    assert chains(keeps)[2] == profile.CHAIN - 1
    assert chains(changes)[2] == 1


def test_what_is_measured_is_written_and_what_is_there_is_kept(
    tables: DeviceTables, diamond: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = diamond.operators()
    table = profile_operators(tables, operators[:2], protocol=QUICK)
    first = dict(table.rows)
    assert first.keys() == set(operators[:2])
    asked: list[int] = []

    def counted(models: Mapping[str, bytes], *arguments: Any, **options: Any) -> Measurement:
        asked.append(len(models))
        return measure(models, *arguments, **options)

    monkeypatch.setattr(profile, "measure", counted)
    table = profile_operators(tables, operators, protocol=QUICK)
    assert asked == [2 * (len(operators) - 2)]
    loaded = CostTable.load(tables.folder / "latency_ms.csv")
    assert loaded.rows.keys() == set(operators)
    assert all(loaded.rows[op].price == pytest.approx(row.price, rel=1e-5) for op, row in first.items())
    assert loaded.fingerprint == tables.fingerprint
    assert {"date", "noise floor", "drift", "protocol rounds"} <= loaded.facts.keys()
    assert not list(tables.folder.glob("*.journal"))
    energy = CostTable.load(tables.folder / "energy_mj.csv")
    assert energy.rows.keys() == set(operators) and {row.source for row in energy.rows.values()} == {"modelled"}
    profile_operators(tables, operators, protocol=QUICK)
    assert asked == [2 * (len(operators) - 2)]
    rows, _ = measure_networks(tables, diamond, list(diamond.all())[-2:], protocol=QUICK)
    assert len(rows) == 2 and all(row.price > 0 and row.n > 0 for row in rows.values())


def test_an_operator_that_fails_is_a_named_bad_row_and_no_price(
    tables: DeviceTables, diamond: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = diamond.operators()

    def half(models: Mapping[str, bytes], *arguments: Any, **options: Any) -> Measurement:
        failed = f"{operators[0]} long"
        timings = {key: Timing(0.2 if key.endswith("long") else 0.1, 0.0, 0.2, 0.3, 9) for key in models if key != failed}
        return Measurement(timings, {failed: "crashed the runtime (SIGSEGV)"}, tables.fingerprint, 0.0, 1.0)

    monkeypatch.setattr(profile, "measure", half)
    table = profile_operators(tables, operators)
    assert table.bad == {operators[0]: "crashed the runtime (SIGSEGV)"} and operators[0] not in table.rows
    assert CostTable.load(tables.folder / "latency_ms.csv").bad == table.bad
    with pytest.raises(MissingPriceError, match="crashed the runtime"):
        table.price(operators[0])
    with pytest.raises(TableError, match=r"measuring it failed: crashed the runtime"):
        tables.calibration(diamond)
    with pytest.raises(MissingPriceError, match="crashed the runtime"):
        profile_networks(tables, diamond, 8)


def made_up(tables: DeviceTables, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a model takes a time that follows from its size."""

    def sized(models: Mapping[str, bytes], *arguments: Any, **options: Any) -> Measurement:
        rng = np.random.default_rng(len(models))
        times = {key: 1e-6 * len(model) * float(rng.normal(1, 1e-3)) for key, model in models.items()}
        return Measurement({key: Timing(t, 0.0, t, t, 9) for key, t in times.items()}, {}, tables.fingerprint, 0.0, 1.0)

    monkeypatch.setattr(profile, "measure", sized)


def test_networks_are_measured_until_there_are_enough_and_then_checked(tables: DeviceTables, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tables, monkeypatch)
    space = load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1})
    profile_operators(tables, space.operators())
    first = dict(profile_networks(tables, space, 10).rows)
    assert len(first) == 10
    more = profile_networks(tables, space, 14)
    assert len(more.rows) == 14 and all(more.rows[arch].price == pytest.approx(row.price, rel=1e-5) for arch, row in first.items())
    assert len(profile_networks(tables, space, 12).rows) == 14
    assert spaces_of(tables) == [{"name": "nasbench201", "options": space.options}]
    costs = tables.costs(space)
    assert costs.keys() == {"latency_ms", *paper_costs(space, tables.device)}
    found = check(tables, space, 20)
    assert found["n"] == 20 and found["probes"] == 14 and found["device"] == "cpu-1t" and found["space"] == space.id
    assert found["noise_floor"]["within_5"] == 1.0 and found["after"]["mape"] < found["before"]["mape"]
    assert 0 <= found["interval_coverage"] <= 1


def test_a_check_that_was_killed_goes_on(tables: DeviceTables, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tables, monkeypatch)
    space = load_space("nasbench201", {"input_size": 8, "width": 4, "cells": 1})
    profile_operators(tables, space.operators())
    profile_networks(tables, space, 10)
    made, journals = vars(profile)["measure"], []

    def journalled(*arguments: Any, journal: Path, **options: Any) -> Measurement:
        journals.append(journal)
        journal.write_text("")
        if len(journals) == 2:
            raise KeyboardInterrupt
        found: Measurement = made(*arguments, **options)
        return found

    monkeypatch.setattr(profile, "measure", journalled)
    with pytest.raises(KeyboardInterrupt):
        check(tables, space, 10)
    assert len(set(journals)) == 2 and all(path.exists() for path in journals)
    assert check(tables, space, 10)["n"] == 10
    assert journals[2:] == journals[:2] and not any(path.exists() for path in journals)


def test_a_space_without_unseen_networks_cannot_be_checked(tables: DeviceTables, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tables, monkeypatch)
    kernels = [OpSpec("conv_bn", 3, 3, 8, 8, kernel=2 * i + 1) for i in range(9)]
    sites = tuple(Site(op, ("input",), "a", ((0, i),)) for i, op in enumerate(kernels))
    head = Site(OpSpec("classifier", 3, 2, 8, 8, stride=8), ("a",), "output")
    small = SearchSpace((3, 8, 8), 2, (Slot("kernel", tuple("abcdefghi")),), (*sites, head), name="small")
    profile_operators(tables, small.operators())
    assert len(profile_networks(tables, small, 40).rows) == 9
    with pytest.raises(TableError, match="calibration has seen all networks of small"):
        check(tables, small, 10)


def test_an_operator_without_a_builder(tables: DeviceTables) -> None:
    with pytest.raises(SpaceError, match="no builder"):
        profile_operators(tables, [OpSpec("conv_b", 3, 4, 8, 8)])
    assert "conv_b" not in layers.kinds() and not tables.folder.exists()


def test_a_machine_that_slowed_down_does_not_change_the_table(
    monkeypatch: pytest.MonkeyPatch, tables: DeviceTables, local_fingerprint: dict[str, str]
) -> None:
    """The same network in a session in which everything, the reference too, takes 1.5 times as long costs what it cost."""
    space = load_space("nasbench201", {"width": 4, "cells": 1, "input_size": 16})
    arch = (1, 1, 1, 1, 1, 1)
    slow = 1.0

    def timed(models: Mapping[str, bytes], *args: object, **options: object) -> Measurement:
        timing = Timing(0.2 * slow, 0.002 * slow, 0.21 * slow, 0.22 * slow, 9)
        return Measurement(dict.fromkeys(models, timing), {}, local_fingerprint, 0.0, 0.1 * slow)

    monkeypatch.setattr(profile, "measure", timed)
    profile.profile_operators(tables, space.operators())
    before = next(iter(profile.profile_networks(tables, space, 5).rows.values()))
    slow = 1.5
    after = profile.measure_networks(tables, space, [arch])[0][arch]
    assert (after.price, after.error, after.p50) == pytest.approx((before.price, before.error, before.p50))
    assert before.price == pytest.approx(0.2)


def test_a_state_that_slows_kinds_of_operators_differently_is_learnt_from_networks_of_the_table(rng: np.random.Generator) -> None:
    space = load_space("nasbench201")
    archs = [space.random(rng) for _ in range(100)]
    slowed = {"conv_bn": 0.9, "avg_pool": 0.2, "relu": 0.3}

    def cost(op: OpSpec, slow: bool) -> float:
        return float((1e-3 + 1e-8 * resources.macs(op)) * (1 + slow * slowed.get(op.kind, 0.1)))

    then, now = (np.array([sum(cost(op, slow) for op in space.lower(arch)) for arch in archs]) for slow in (False, True))
    anchors = np.arange(16)
    found = profile.then_over_now(space, archs, now, anchors, then[anchors] / now[anchors])
    left = np.abs(found * now / then - 1)[16:]
    scaled = np.abs(np.median(then[anchors] / now[anchors]) * now / then - 1)[16:]
    assert left.mean() < 0.3 * scaled.mean() and left.max() < 0.1
