"""Killed with -9 at random moments and started again, a search ends as if it had never been interrupted."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.checkpoint import load_state
from hwnas.front import front_of
from hwnas.run import Run
from hwnas.search import read_members

ROOT = Path(__file__).parents[1]
KILLS = 20
OVERRIDES = ("trials=60", "batch=6", "evaluator.epochs=3", "final.members=3", "final.training.epochs=3", "data.limit=200")


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hwnas.cli", "search", "tiny.yaml", *OVERRIDES, *overrides, "--run", str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> float:
    """Waits for the end of a command that must succeed; the seconds."""
    began = time.monotonic()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    return time.monotonic() - began


def outcome(folder: Path) -> tuple[list[Any], list[Any], Any]:
    """Trials, members and front as plain data."""
    run = Run.open(folder)
    trials = [(trial.index, trial.arch, repr(trial.values), trial.notes) for trial in run.trials(run.experiment.load_space())]
    return trials, [member.model_dump() for member in read_members(run)], front_of(run)


def assert_same(folder: Path, whole: Path) -> None:
    assert outcome(folder) == outcome(whole)
    for name in ("searcher.safetensors", *(f"members/m{number:02d}/weights.safetensors" for number in range(3))):
        (tensors, about), (expected, said) = load_state(folder / name), load_state(whole / name)
        assert about == said and tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in expected.items()), name
    with sqlite3.connect(folder / "trials.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (len(outcome(whole)[0]),)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["nsga2", "snas"])
def test_killed_at_random_moments_it_gives_the_same_trials_and_the_same_front(tiny: Path, searcher: str) -> None:
    chosen = {"nsga2": "searcher={name: nsga2, population: 12}", "snas": "searcher={name: snas, epochs: 6}"}[searcher]
    whole, pieces = tiny / "whole", tiny / "pieces"
    took = finish(start(whole, chosen))
    idle = finish(start(whole, chosen))  # all but imports and start-up is done
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}; {took:.1f} s uninterrupted, {idle:.1f} s of it to start")  # noqa: T201
    rng = np.random.default_rng(seed)
    kills = finished = 0
    share = 0.25  # of what is to be done, at most, before a kill
    while kills < KILLS:
        process = start(pieces, chosen)
        try:
            process.wait(rng.uniform(0.6 * idle, idle + share * (took - idle)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        finish(process)
        assert_same(pieces, whole)
        finished += 1
        idle, share = 0.9 * idle, 0.9 * share  # the machine has become quicker
        shutil.rmtree(pieces)
    finish(start(pieces, chosen))
    assert_same(pieces, whole)
    print(f"{kills} kills over {finished + 1} searches")  # noqa: T201
