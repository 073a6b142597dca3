"""Any program that takes a model file and prints milliseconds: a vendor's benchmark tool, a script that drives a board.

`command` is started anew for every visit, without a shell; `{model}` in it becomes the path of an ONNX file and `{runs}` how
many inferences are wanted. What counts is the last number that it prints, or, with `pattern`, every match of that regular
expression: one for each run, or one for their mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hwnas.device import Device, Precision
from hwnas.errors import ConfigError, DeviceError
from hwnas.feed import parse

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LIMIT_S = 25.0
"""Below the 30 s after which a worker counts as hung: the program is ended and named."""
EXAMPLE = """
import sys, time
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    sum(open(sys.argv[1], "rb").read())
    print("took", 1e3 * (time.perf_counter() - start), "ms")
"""
"""A program that starts quickly and prints how long it took to add up the bytes of the model."""


class Command:
    """The backend of the devices whose YAML says `backend: command`.

    `target` says what the program runs models on, where that is not this machine's processor (`Pixel 8, Android 16`).
    """

    example: ClassVar[dict[str, Any]] = {"command": [sys.executable, "-ISc", EXAMPLE, "{model}", "{runs}"], "pattern": r"took (\S+) ms"}
    """Options that the contract tests use."""

    def __init__(
        self,
        device: Device,
        *,
        command: list[str] | str,
        pattern: str = "",
        target: str = "",
        timeout_s: Annotated[float, Field(gt=0, le=LIMIT_S)] = LIMIT_S,
    ) -> None:
        try:
            self._words = shlex.split(command) if isinstance(command, str) else command
        except ValueError as error:
            raise ConfigError(f"command cannot be split into words ({error}): {command}") from None
        if not any("{model}" in word for word in self._words):
            raise ConfigError("a backend's command must hold {model}, where the path of the model file goes, but is " + repr(command))
        program = shutil.which(self._words[0])
        if program is None:
            raise DeviceError(f"there is no program {self._words[0]!r} to run; install it, or give its path in the device's command")
        self._words = [program, *self._words[1:]]
        self._pattern = _compiled(pattern)
        self._target, self._timeout_s = target, timeout_s

    def fingerprint(self) -> dict[str, str]:
        """The program's name, and as its version the digest of the files that the command names: the program and its scripts."""
        read = hashlib.sha256()
        for word in self._words:
            if os.path.isfile(word):
                read.update(Path(word).read_bytes())
        said = {"runtime": Path(self._words[0]).name, "runtime_version": f"sha256 {read.hexdigest()[:12]}"}
        return {**said, "cpu": self._target} if self._target else said

    def compile(self, model: bytes) -> Program:
        """The model, to be handed to the program.

        Raises:
            DeviceError: it is no ONNX model.
        """
        parse(model)
        return Program(self._words, self._pattern, self._timeout_s, model)


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        found = re.compile(pattern) if pattern else None
    except re.error as error:
        raise ConfigError(f"pattern must be a regular expression, but {pattern!r} is none: {error}") from None
    if found is not None and found.groups > 1:
        raise ConfigError(f"pattern must have at most one group, around the number, but {pattern!r} has {found.groups}")
    return found


class Program:
    """A model and the program that runs it."""

    def __init__(self, words: list[str], pattern: re.Pattern[str] | None, timeout_s: float, model: bytes) -> None:
        self._words, self._pattern, self._timeout_s, self._model = words, pattern, timeout_s, model

    def run(self) -> None:
        """One inference."""
        self.time(1)

    def time(self, runs: int) -> NDArray[np.int64]:
        """What the program printed, ns: a number for each of `runs` runs, or one that is their mean.

        Raises:
            DeviceError: the program fails, hangs, or prints something else.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(self._model)
            printed = self._printed([word.replace("{model}", str(path)).replace("{runs}", str(runs)) for word in self._words])
        name = Path(self._words[0]).name
        texts = self._pattern.findall(printed) if self._pattern else re.findall(NUMBER, printed)[-1:]
        if not texts:
            shown = repr(printed.strip()[-80:]) if printed.strip() else "nothing"
            raise DeviceError(f"{name} must print milliseconds{self._wanted()}, but printed {shown}")
        if len(texts) not in (1, runs) and any("{runs}" in word for word in self._words):
            raise DeviceError(
                f"{name} must print one number{self._wanted()} for each of {runs} runs, or one for all, but printed {len(texts)}"
            )
        times = [self._milliseconds(text) for text in texts]
        return np.rint(np.array(times) * 1e6).astype(np.int64)

    def _milliseconds(self, text: str) -> float:
        value = float(text) if re.fullmatch(NUMBER, text) else float("nan")
        if not 0 < value < float("inf"):
            raise DeviceError(f"{Path(self._words[0]).name} must print milliseconds above 0{self._wanted()}, but printed {text!r}")
        return value

    def _wanted(self) -> str:
        return f" that match {self._pattern.pattern!r}" if self._pattern else ""

    def _printed(self, words: list[str]) -> str:
        name = Path(words[0]).name
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DeviceError(f"{name} cannot be run: {error.strerror}") from None
        with process:
            try:
                printed, complaint = process.communicate(timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                raise DeviceError(f"{name} did not end in {self._timeout_s:g} s") from None
            finally:
                _kill_group(process.pid)
        if process.returncode:
            last = (complaint.strip() or printed.strip() or "it printed nothing").splitlines()[-1]
            raise DeviceError(f"{name} failed (exit code {process.returncode}): {last}")
        return printed


def _kill_group(leader: int) -> None:
    """Ends what the program may have started too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
