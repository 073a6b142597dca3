"""Optuna's samplers through ask and tell: each by its name, restored exactly, taught by what is told, refused where it cannot serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from hwnas.checkpoint import load_state, save_state
from hwnas.errors import ConfigError
from hwnas.evaluate import Objective, Trial
from hwnas.searcher import Problem
from hwnas.searchers.optuna import sampler_class
from hwnas.space import SearchSpace

SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 4}, "TPESampler": {"multivariate": False, "n_startup_trials": 4}, "gp": {"n_startup_trials": 4},
    "nsgaii": {"population_size": 4}, "nsgaiii": {"population_size": 4}, "qmc": {}, "random": {}, "brute_force": {},
}  # fmt: skip


def states(searcher: Any) -> list[int]:
    found: list[int] = searcher.save()[0]["states"].tolist()
    return found


@pytest.mark.parametrize("sampler", [pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name for name in SAMPLERS])
def test_every_sampler_keeps_the_budget_draws_from_its_generator_and_goes_on_as_it_would_have(
    toy: Any, sampler: str, tmp_path: Path
) -> None:  # fmt: skip
    problem, options = toy.problem(share=0.4), {"sampler": sampler, "options": SAMPLERS[sampler]}
    untouched = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    searcher = toy.make("optuna", problem, 5, **options)
    trials = toy.search(searcher, 8, batch=4)
    waiting = searcher.ask(1)
    save_state(tmp_path / "searcher", *searcher.state())
    fresh = toy.make("optuna", problem, 6, **options)
    fresh.restore(load_state(tmp_path / "searcher"))
    asked = []
    for one in (searcher, fresh):
        one.tell(toy.evaluate(waiting, 8))
        asked.append([trial.arch for trial in toy.search(one, 4, batch=2)])
    assert asked[0] == asked[1]
    archs = [*(trial.arch for trial in trials), *waiting, *asked[0]]
    assert len(set(archs)) == 13 and bool(problem.feasible(archs).all())
    assert (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()) == untouched  # type: ignore[index] # noqa: NPY002


def test_the_sequence_of_qmc_goes_on_from_ask_to_ask(toy: Any) -> None:
    """64 points of one Sobol' sequence hit each of a slot's four choices 16 times; of 64 sequences begun anew they would not."""
    searcher = toy.make("optuna", toy.problem(), sampler="qmc", options={"qmc_type": "sobol"})
    archs = np.array([searcher.ask(1)[0] for _ in range(70)])[5:69]  # the first are the ends, and a sequence begins after an evaluation
    counts = np.array([np.bincount(column, minlength=4) for column in archs.T])
    assert abs(counts - 16).max() <= 4


def test_a_space_is_asked_to_its_end(diamond: SearchSpace, toy: Any) -> None:
    for sampler in ("brute_force", "nsgaii"):
        searcher = toy.make("optuna", Problem(diamond, (Objective("error"),), {}), sampler=sampler)
        asked = []
        for i in range(5):
            archs = searcher.ask(1)
            searcher.tell([Trial(i, arch, {"error": float(sum(arch))}) for arch in archs])
            asked += archs
        assert len(asked) == 3


def test_values_teach_and_what_has_none_has_failed(toy: Any) -> None:
    problem = toy.problem()
    searcher = toy.make("optuna", problem, options={"n_startup_trials": 4})
    archs = searcher.ask(4)
    assert states(searcher).count(TrialState.RUNNING) == 4
    told = toy.evaluate(archs)
    searcher.tell([*told[:3], Trial(3, archs[3], {"error": float("nan"), "macs": 1.0})])
    other = toy.evaluate([(3, 2) * 5], 4)
    searcher.tell(other)
    tensors, _ = searcher.save()
    complete = tensors["states"] == int(TrialState.COMPLETE)
    values = tensors["values"][complete].tolist()
    assert sorted(values) == sorted(trial.vector(problem.objectives) for trial in [*told[:3], *other])
    assert int(TrialState.RUNNING) not in states(searcher)
    assert [3, 2] * 5 in tensors["archs"][complete].tolist()


def test_a_sampler_learns_where_to_look(toy: Any) -> None:
    """With one objective TPE soon proposes larger kernels than at random, whose choices have a mean of 1.5."""
    searcher = toy.make("optuna", toy.problem(objectives=(Objective("error"),)), 1)
    trials = toy.search(searcher, 60, batch=5)
    assert np.mean([trial.arch for trial in trials[40:]]) > 2


def test_names() -> None:
    assert sampler_class("tpe") is sampler_class("TPESampler") is sampler_class("TPE") is TPESampler


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sampler": "tpee"}, "no sampler called 'tpee'.*did you mean 'tpe'"),
        ({"sampler": "grid"}, "no sampler called 'grid' that needs no arguments"),
        ({"sampler": "base"}, "no sampler called 'base'"),
        ({"sampler": "cmaes"}, "CmaEsSampler cannot be used for 2 objectives"),
        ({"options": {"startup_trials": 3}}, "TPESampler has no option 'startup_trials'; did you mean 'n_startup_trials'"),
        ({"options": {"seed": 3}}, "TPESampler has no option 'seed'"),
        ({"sampler": "nsgaii", "options": {"population_size": 1}}, "NSGAIISampler cannot be used .*population_size"),
    ],
)
def test_what_cannot_be_meant_is_refused(toy: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        toy.make("optuna", toy.problem(), **options)


@pytest.mark.slow
def test_tpe_beats_random_search_at_equal_evaluations(toy: Any) -> None:
    gains = toy.gains("optuna")
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / len(gains) ** 0.5
