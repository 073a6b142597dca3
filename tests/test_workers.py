"""Networks trained in worker processes: the same whatever the number of workers, and a lost worker is an error with a name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hwnas.checkpoint import load_state
from hwnas.config import load_experiment
from hwnas.errors import HwnasError, RunError
from hwnas.train import TrainSettings
from hwnas.workers import Job, ShortTraining, TrainingPool

SETTINGS = TrainSettings(epochs=2, batch_size=32)
ARCHS = [(1, 1, 1, 1, 1, 1), (2, 0, 2, 1, 0, 2)]


def test_values_are_the_same_whatever_the_number_of_workers(tiny: Path) -> None:
    experiment = load_experiment("tiny.yaml")
    jobs = [Job(arch, 7, SETTINGS, save=tiny / f"{arch[0]}.safetensors") for arch in ARCHS]
    epochs: list[int] = []
    with TrainingPool(experiment, 1) as pool:
        alone = dict(pool.train(jobs, epochs.append))
        again = dict(pool.train(jobs[1:]))
    assert sorted(epochs) == [0, 0, 1, 1]
    assert all(0 <= values["error"] <= 1 and values["error"] + values["accuracy"] == 1 for values in alone.values())
    short = ShortTraining(experiment, SETTINGS)
    short.prepare(lambda done, of: None)
    together = dict(short.evaluate(ARCHS, [7, 7]))
    short.close()
    assert together == alone and again[0] == alone[1]
    tensors, about = load_state(tiny / "2.safetensors")
    assert tensors and about == {"arch": list(ARCHS[1]), "space": experiment.load_space().id}


def test_a_killed_worker_and_a_workers_own_error(tiny: Path) -> None:
    experiment = load_experiment("tiny.yaml")
    (tiny / "damaged.safetensors").write_bytes(b"damaged")
    with TrainingPool(experiment, 1) as pool:
        with pytest.raises(HwnasError, match="damaged.safetensors"):
            list(pool.train([Job(ARCHS[0], 0, SETTINGS, checkpoint=tiny / "damaged.safetensors")]))

        def kill(_: int) -> None:
            os.kill(pool._processes[0].pid, signal.SIGKILL)

        with pytest.raises(RunError, match=r"\[2, 0, 2, 1, 0, 2\] ended with code -9"):
            list(pool.train([Job(ARCHS[1], 0, TrainSettings(epochs=500, batch_size=2))], kill))
