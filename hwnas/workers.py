"""Networks trained in worker processes, one thread each: small networks do not fill a core's threads, so cores train apart.

A worker (`python -m hwnas.workers`) reads one JSON line a job and answers with JSON lines. What it computes follows from
the job alone, so how many workers there are changes nothing but the time.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from hwnas.checkpoint import load_state, save_state
from hwnas.config import Experiment, train_settings
from hwnas.errors import HwnasError, RunError
from hwnas.evaluate import score
from hwnas.network import Network
from hwnas.space import Architecture
from hwnas.train import TrainSettings, train


@dataclass(frozen=True)
class Job:
    """One network to train. `warm` is a file of weights to start from, `checkpoint` is kept while training, `save` gets the weights."""

    arch: Architecture
    seed: int
    settings: TrainSettings
    warm: Path | None = None
    checkpoint: Path | None = None
    save: Path | None = None


class TrainingPool:
    """Workers that hold an experiment's data and space; as many as there are cores unless `size` says otherwise."""

    def __init__(self, experiment: Experiment, size: int | None = None) -> None:
        self._experiment = experiment
        self._size = size or len(os.sched_getaffinity(0))
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> TrainingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers at once."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def train(self, jobs: Sequence[Job], on_epoch: Callable[[int], None] | None = None) -> Iterator[tuple[int, dict[str, float]]]:
        """Trains all jobs; gives each one's number and validation values as it ends. NaN stands for a training that diverged.

        Args:
            on_epoch: called with a job's number after each of its epochs, in this thread.

        Raises:
            HwnasError: a worker's own error, e.g. a damaged checkpoint.
            RunError: a worker died; how, and over which architecture.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(jobs)):
            waiting.put(number)
        answers: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        wanted = min(self._size, len(jobs))
        while len(self._processes) < wanted:
            self._processes.append(self._start())
        for process in self._processes[:wanted]:
            threading.Thread(target=self._feed, args=(process, jobs, waiting, answers), daemon=True).start()
        left = len(jobs)
        while left:
            number, answer = answers.get()
            if "error" in answer:
                raise RunError(answer["error"]) if answer.get("lost") else HwnasError(answer["error"])
            if "values" in answer:
                left -= 1
                yield number, {name: float("nan") if value is None else value for name, value in answer["values"].items()}
            elif on_epoch is not None:
                on_epoch(number)

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "hwnas.workers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdin is not None
        process.stdin.write(self._experiment.model_dump_json() + "\n")
        process.stdin.flush()
        return process

    @staticmethod
    def _feed(
        process: subprocess.Popen[str],
        jobs: Sequence[Job],
        waiting: queue.SimpleQueue[int],
        answers: queue.SimpleQueue[tuple[int, dict[str, Any]]],
    ) -> None:
        assert process.stdin is not None and process.stdout is not None
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            answer: dict[str, Any] = {}
            try:
                process.stdin.write(json.dumps(asdict(jobs[number]), default=str) + "\n")
                process.stdin.flush()
                while "values" not in answer and "error" not in answer:
                    answer = json.loads(process.stdout.readline())
                    answers.put((number, answer))
            except (OSError, ValueError):
                code = process.wait()
                arch = list(jobs[number].arch)
                lost = f"the worker that trained {arch} ended with code {code} (out of memory, if it was killed); start again to go on"
                answers.put((number, {"error": lost, "lost": True}))
                return
            if "error" in answer:
                return


class ShortTraining:
    """The evaluator that trains each architecture on its own for a few epochs, as many at a time as there are cores."""

    def __init__(self, experiment: Experiment, settings: TrainSettings) -> None:
        self._pool = TrainingPool(experiment)
        self._settings = settings

    def prepare(self, progress: Callable[[int, int], None]) -> None:
        """Nothing to prepare."""

    def evaluate(self, archs: Sequence[Architecture], seeds: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
        """Values after training from scratch; a diverged training gives an error of 1 and a NaN loss."""
        return self._pool.train([Job(arch, seed, self._settings) for arch, seed in zip(archs, seeds, strict=True)])

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()


def _serve() -> None:
    """A worker's life: the experiment, then jobs, until standard input closes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get among the answers
    torch.set_num_threads(1)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    experiment = Experiment.model_validate_json(sys.stdin.readline())
    space, data = experiment.load_space(), experiment.load_data()
    for line in sys.stdin:
        job = json.loads(line)
        warm, checkpoint, save = (None if job[key] is None else Path(job[key]) for key in ("warm", "checkpoint", "save"))
        try:
            network = Network(space, job["arch"], torch.Generator().manual_seed(job["seed"]))
            if warm is not None:
                network.load_state_dict({name: tensor for name, tensor in load_state(warm)[0].items() if name in network.state_dict()})
            settings = train_settings(job["settings"], "training")
            report = train(network, data, settings, job["seed"], on_epoch=lambda epoch, loss: answer(epoch=epoch), checkpoint=checkpoint)
            network.cpu()
            values = {"error": 1.0, "accuracy": 0.0, "loss": None} if report.diverged else score(network, data)
            if save is not None and not report.diverged:
                save_state(save, network.state_dict(), {"arch": job["arch"], "space": space.id})
            answer(values=values)
        except HwnasError as error:
            answer(error=str(error))


if __name__ == "__main__":
    _serve()
