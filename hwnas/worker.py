"""The worker: compiles, times and meters what it is sent, in a process of its own on this machine or on a remote device.

Needs Python (3.10), numpy and the backend's runtime, nothing else: on a remote device it runs from copies of the few
modules that it imports. A local one gets pickled messages through pipes, a remote one JSON lines and files through SSH;
what comes back from another machine is never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwnas.counters import Meter, open_counter
from hwnas.device import Device, Executable, TimedExecutable, device_fingerprint, load_backend
from hwnas.errors import DeviceError, HwnasError

Message = tuple[Any, ...]
H = TypeVar("H", bound="Handle")


class Handle(ABC):
    """The measuring session's end of a worker, which can be killed and started again."""

    fingerprint: dict[str, str]

    def __enter__(self: H) -> H:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Starts the process and makes the backend in it.

        Raises:
            HwnasError: the backend cannot be made; the worker's own reason.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends the process, by force if it does not answer."""

    @abstractmethod
    def send(self, message: Message) -> None:
        """Sends a message whose answers are received later."""

    @abstractmethod
    def receive(self, timeout_s: float) -> Any:
        """The next answer; see `request`."""

    def request(self, message: Message, timeout_s: float) -> Any:
        """Sends a message and gives its answer.

        Raises:
            WorkerLostError: no answer in time, or the process died.
            DeviceError: the answer is an error.
        """
        self.send(message)
        return self.receive(timeout_s)


@runtime_checkable
class Channel(Protocol):
    """The worker's own end."""

    def receive(self) -> Message:
        """The next message; EOFError or OSError where there will be none."""

    def send(self, answer: tuple[str, Any]) -> None:
        """Answers `("ok", value)` or `("error", sentence)`."""


class Pipes:
    """Pickled messages through two pipes of the parent process."""

    def __init__(self, read: int, write: int) -> None:
        self._incoming, self._outgoing = Connection(read, writable=False), Connection(write, readable=False)

    def receive(self) -> Message:
        """See `Channel`."""
        message: Message = self._incoming.recv()
        return message

    def send(self, answer: tuple[str, Any]) -> None:
        """See `Channel`."""
        self._outgoing.send(answer)


class Lines:
    """JSON lines through two streams; models are sent once, and kept in `folder` by the SHA-256 of their content."""

    def __init__(self, read: BinaryIO, write: BinaryIO, folder: Path) -> None:
        self._read, self._write, self._folder = read, write, folder

    def receive(self) -> Message:
        """See `Channel`; what concerns files is answered here."""
        while True:
            line = self._read.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            match json.loads(line):
                case ["have", digest]:
                    path = self._folder / digest
                    self.send(("ok", path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest))
                case ["keep", digest, size]:
                    content = self._read.read(size)
                    try:
                        self._keep(digest, content)
                    except OSError as error:
                        self.send(("error", f"cannot keep a model in {self._folder}: {error.strerror}; make room there or change `folder`"))
                    else:
                        self.send(("ok", True))
                case ["compile", key, digest]:
                    return ("compile", key, self._folder / digest)
                case message:
                    return tuple(message)

    def _keep(self, digest: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != digest:
            raise EOFError  # cut off
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, self._folder / digest)

    def send(self, answer: tuple[str, Any]) -> None:
        """See `Channel`."""
        self._write.write(json.dumps(answer, default=lambda array: array.tolist()).encode() + b"\n")
        self._write.flush()


def times(executable: Executable, runs: int) -> NDArray[np.int64]:
    """How long each of `runs` inferences took, ns: by its own account where it gives one, else by this process's clock."""
    if isinstance(executable, TimedExecutable):
        return executable.time(runs)
    run, clock = executable.run, time.perf_counter_ns
    samples = np.empty(runs, dtype=np.int64)
    for i in range(runs):
        start = clock()
        run()
        samples[i] = clock() - start
    return samples


def serve(channel: Channel) -> None:
    """Does what the messages say, until there are no more."""
    backend = device = meter = None
    models: dict[str, Executable] = {}
    while True:
        try:
            message = channel.receive()
        except (EOFError, OSError):
            return
        try:
            match message:
                case ("open", device_json, memory_gb):
                    if memory_gb:
                        import resource

                        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
                    device = Device.model_validate_json(device_json)
                    backend = load_backend(device)
                    answer: Any = device_fingerprint(device, backend)
                case ("compile", key, model):
                    assert backend is not None
                    executable = backend.compile(model if isinstance(model, bytes) else model.read_bytes())
                    executable.run()
                    answer = float(times(executable, 1)[0]) * 1e-6
                    models[key] = executable
                case ("round", visits):
                    for key, runs in visits:
                        models[key].run()
                        channel.send(("ok", times(models[key], runs)))
                    continue
                case ("meter",):
                    assert device is not None
                    meter = Meter(open_counter(device.energy), device.energy.seconds)
                    answer = {"counter": meter.counter.name, "interval_s": meter.interval_s}
                case ("energy", key):
                    assert meter is not None
                    answer = meter.window(models[key].run if key else None)._asdict()
                case _:
                    raise DeviceError(f"the worker does not know the message {message[0]!r}")
        except HwnasError as error:
            channel.send(("error", str(error)))
        except MemoryError:
            channel.send(("error", "ran out of memory"))
        except Exception as error:  # whatever a runtime raises is that model's failure, not the session's
            channel.send(("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"))
        else:
            channel.send(("ok", answer))


if __name__ == "__main__":
    serve(Pipes(int(sys.argv[1]), int(sys.argv[2])))
