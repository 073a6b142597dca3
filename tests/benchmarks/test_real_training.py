"""Every system ends in verified models on real data (slow), and the benchmark says what it found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from benchmarks.real_training import IMAGES, TEXT, experiment, one, scaled_volume, settings, summary
from hwnas import plugins
from hwnas.space import SearchSpace, load_space


def every_system() -> list[ParameterSet]:
    """Data, space and system; random sampling is no system."""
    return [
        pytest.param(data, space, system, id=f"{data}-{space}-{system}")
        for data in ("digits", "cifar10", "text")
        for space, (_, _, systems) in settings(data).items()
        for system in systems
    ]


def test_no_searcher_is_left_out() -> None:
    taken = {system for _, _, systems in (*IMAGES.values(), *TEXT.values()) for system in systems}
    assert taken | {"random"} == set(plugins.names("searchers"))


@pytest.mark.parametrize(("data", "space", "system"), every_system())
def test_every_setting_is_an_experiment_whose_space_takes_its_data(data: str, space: str, system: str) -> None:
    for name in (system, "random"):
        found = experiment(data, space, name, folder=Path("nowhere"))
        assert found.searcher.name == name
        small = load_space(found.space.name, found.space.options)
        assert found.data is not None
        assert small.input_shape[1] == found.data.options.get("size", found.data.options.get("steps"))


def test_volumes_are_shares_of_the_box() -> None:
    assert scaled_volume([[0.0, 10.0]], [0.0, 10.0], [0.9, 20.0]) == pytest.approx(1)
    assert scaled_volume([[0.45, 15.0], [0.9, 10.0], [0.5, 40.0]], [0.0, 10.0], [0.9, 20.0]) == pytest.approx(0.25)


def test_systems_stand_beside_random_sampling_with_the_same_seed() -> None:
    runs = [
        {"system": system, "seed": seed, "volume": volume, "best test error": 0.1, "verified": True, "seconds": 1.0}
        for system, seed, volume in (("random", 0, 0.5), ("random", 1, 0.8), ("enas", 0, 0.6), ("enas", 1, 0.8))
    ]
    found = summary(runs)
    assert found["enas"]["volume"] == [0.7, 0.6, 0.8]
    assert found["enas"]["of random's"] == [1.1, 1.0, 1.2]
    assert found["random"]["of random's"] == [1.0, 1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "space", "system"), every_system())
def test_from_the_search_to_verified_models(
    data: str, space: str, system: str, request: pytest.FixtureRequest, tmp_path: Path, make_up_tables: Callable[[Path, SearchSpace], None]
) -> None:
    folder = tmp_path if data == "digits" else request.getfixturevalue("test_data")
    final = {"members": 2, "training": {"epochs": 3, "batch_size": 32, "lr": 1.0 if data == "text" else 0.1, "clip_norm": 0.25}}
    given = experiment(data, space, system, folder=folder, trials=6, batch=3, final=final)
    make_up_tables(tmp_path / "tables", given.load_space())
    found = one(given, tmp_path / "run", tmp_path / "tables")
    assert found["trials"] == 6
    assert found["members"] >= 1
    assert set(found["failed checks"]) <= {"latency"}, "made up here"
    assert 0 < found["volume"] < 1
