"""A worker on another machine, over SSH: the far end needs Python, numpy and the runtime; code and models are copied once.

AsyncSSH (the extra `remote`) carries it. Host keys are checked against known_hosts, the user is known by a key. The few
modules that a worker imports go there as one archive, models as files, both by the hash of their content. Where the
connection is lost the worker is started anew, gets its models (which are there already), and goes on with what it had
in hand.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import io
import json
import secrets
import shlex
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hwnas import plugins
from hwnas.device import Device, Remote
from hwnas.errors import ConnectionLostError, DeviceError, PluginError, WorkerLostError, nearest
from hwnas.worker import Handle, Message

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")
WAITS = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each attempt to have a lost connection again."""
KEEPALIVE_S = 5.0
"""How often a silent connection is asked whether it is there; without an answer to three in a row it is lost."""
MOST_LOSSES = 3
"""How often the connection may be lost with the same model in hand before the model is held to be the reason."""
OLDEST = (3, 10)
"""The oldest Python that a worker runs in."""

_FAR_END = """
import hashlib, io, json, os, sys, tempfile, zipfile
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
token, folder, digest, size = json.loads(sys.stdin.buffer.readline().decode())
folder = os.path.expanduser(folder)
code = os.path.join(folder, "code", digest)
lacks = not os.path.isdir(code)
answers.write(("\\n%s %s\\n" % (token, json.dumps([os.getpid(), lacks, sys.version_info[:2]]))).encode())
answers.flush()
if lacks:
    packed = sys.stdin.buffer.read(size)
    if hashlib.sha256(packed).hexdigest() != digest:
        sys.exit("the code came cut off")
    os.makedirs(os.path.dirname(code), exist_ok=True)
    fresh = tempfile.mkdtemp(dir=os.path.dirname(code))
    zipfile.ZipFile(io.BytesIO(packed)).extractall(fresh)
    try:
        os.rename(fresh, code)
    except OSError:
        if not os.path.isdir(code):
            raise
sys.path[0] = code
from pathlib import Path
from hwnas.worker import Lines, serve
serve(Lines(sys.stdin.buffer, answers, Path(folder, "models")))
"""
"""What the remote interpreter is sent first; in a Python that older ones understand too, so that they can say what they are."""


class _LostError(Exception):
    """The connection is gone."""


class _LateError(_LostError):
    """Something did not answer in time."""


def modules_of(backend: str) -> list[Path]:
    """The files of this package that a worker with the backend imports, directly or through others."""
    package = Path(__file__).parent
    found: set[Path] = set()
    todo = [package / "__init__.py", package / "worker.py", package / "plain.py"]
    todo += sorted((package / "backends").glob(f"{backend}.py"))
    while todo:
        path = todo.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            parts = [name.split(".")[1:] for name in names if name.startswith("hwnas.")]
            todo += [package.joinpath(*part[:-1], f"{part[-1]}.py") for part in parts]
    return sorted(found)


def packed(files: Sequence[Path]) -> bytes:
    """The files, placed as in this package, as a zip archive that is the same whenever they are the same."""
    package = Path(__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in files:
            out.writestr(zipfile.ZipInfo(path.relative_to(package.parent).as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return archive.getvalue()


class RemoteWorker(Handle):
    """A worker on the machine that the device's `remote` section names."""

    def __init__(self, device: Device, memory_gb: float = 0.0) -> None:
        assert device.remote is not None
        self._remote, self._device, self._memory_gb = device.remote, device, memory_gb
        self._thread = _LoopThread()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._ran = ""  # what ends the process: of this connection, or of the one that was lost
        self._said: deque[str] = deque(maxlen=20)
        self._made: list[Message] = []
        self._owed: deque[Message] = deque()
        self._losses = 0
        self.fingerprint: dict[str, str] = {}

    @property
    def where(self) -> str:
        """The remote as errors name it."""
        user = f"{self._remote.user}@" if self._remote.user else ""
        return f"{user}{self._remote.host}:{self._remote.port}"

    def start(self) -> None:
        """See `Handle`; a worker that was started before is tried for longer, as after a lost connection."""
        self._made, self._owed, self._losses = [], deque(), 0
        if self.fingerprint:
            self._again()
            return
        try:
            self.fingerprint = self._begin()
        except _LostError as error:
            self.stop()
            raise DeviceError(
                f"cannot reach {self.where}: {error}; check `remote.host` and `remote.port`, and that sshd runs there"
            ) from None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """See `Handle`."""
        if self._connection is not None:
            connection, self._connection, self._process = self._connection, None, None
            try:
                if self._ran:
                    self._thread.run(connection.run(self._ran), 10)
                    self._ran = ""
            except _LostError:
                pass  # it ends by itself when it finds that nobody listens, or is ended by the next one
            self._thread.call(connection.abort)
        self._thread.stop()

    def send(self, message: Message) -> None:
        """See `Handle`."""
        self._owed.extend([("round", [visit]) for visit in message[1]] if message[0] == "round" else [message])
        try:
            self._write(message)
        except _LostError:
            self._recover()
        except DeviceError:
            self._owed.clear()
            raise

    def receive(self, timeout_s: float) -> Any:
        """See `Handle`; a lost connection is had again meanwhile.

        Raises:
            ConnectionLostError: it cannot be had again.
        """
        while True:
            try:
                value = self._read(timeout_s)
            except _LostError:
                self._recover()
            except WorkerLostError:
                self._owed.clear()
                raise
            except DeviceError:
                self._answered()
                raise
            else:
                message = self._answered()
                if message[0] in ("compile", "meter"):
                    self._made.append(message)
                return np.array(value, dtype=np.int64) if message[0] == "round" else value

    def _answered(self) -> Message:
        self._losses = 0
        return self._owed.popleft()

    def _recover(self) -> None:
        self._losses += 1
        if self._losses > MOST_LOSSES:
            self._owed.clear()
            raise WorkerLostError(f"lost the connection to {self.where} {MOST_LOSSES + 1} times in a row")
        self._again()

    def _again(self) -> None:
        """Connects again, with patience, to the same machine, and brings a new worker to where the lost one was."""
        reason = ""
        for wait in WAITS:
            time.sleep(wait)
            try:
                found = self._begin()
                if found != self.fingerprint:
                    raise ConnectionLostError(f"{self.where} is another machine or runtime since the connection was lost; measure again")
                for message in self._made:
                    self._write(message)
                    self._read(300)
                for message in self._owed:
                    self._write(message)
                return
            except (_LostError, WorkerLostError) as error:
                reason = str(error)
                self._drop()
            except DeviceError as error:
                raise ConnectionLostError(str(error)) from None
        raise ConnectionLostError(
            f"the connection to {self.where} was lost and could not be had again in {sum(WAITS):.0f} s ({reason}); "
            "what was measured is kept: the same command goes on from here"
        )

    def _begin(self) -> dict[str, str]:
        """Connects, starts a worker and makes the backend in it; its fingerprint."""
        if plugins.missing_packages(("asyncssh",)):
            raise PluginError(f"{self._device.name or 'a device'} is reached over SSH, which needs asyncssh: pip install 'hwnas[remote]'")
        for key, path in (("known_hosts", self._remote.known_hosts), ("key", self._remote.key)):
            if path and not Path(path).expanduser().is_file():
                raise DeviceError(f"`remote.{key}` must be a file, but {path} is none; correct it in the device's YAML")
        if self._device.backend not in plugins.names("backends"):
            known = nearest(self._device.backend, plugins.names("backends"))
            raise PluginError(f"there is no backend called {self._device.backend!r}; {known}")
        self._drop()
        self._connection = self._thread.run(connect(self._remote), 60, self._failure)
        if self._ran:
            self._thread.run(self._connection.run(self._ran), 30)
        self._launch()
        local = self._device.model_copy(update={"remote": None})
        self._write(("open", local.model_dump_json(), self._memory_gb))
        try:
            fingerprint: dict[str, str] = self._read(120)
        except WorkerLostError as error:
            raise DeviceError(f"the worker on {self.where} {error}{self._last_words()}") from None
        except DeviceError as error:
            raise DeviceError(f"on {self.where}: {error}") from None
        return fingerprint

    def _failure(self, error: Exception) -> Exception:
        """The error that the user gets for what went wrong while connecting."""
        return failure(error, self._remote, self.where)

    def _launch(self) -> None:
        """Starts the remote interpreter and gives it the code that it lacks."""
        assert self._connection is not None
        token, code = secrets.token_hex(8), packed(modules_of(self._device.backend))
        python = self._remote.python.removeprefix("~/")
        command = f"exec {shlex.quote(python)} -c 'import json, sys; exec(json.loads(sys.stdin.buffer.readline().decode()))' {token}"
        self._said.clear()
        self._process = self._thread.run(_started(self._connection, command), 30)
        self._thread.start(self._listen(self._process))
        hello = [token, self._remote.folder, hashlib.sha256(code).hexdigest(), len(code)]
        self._put(json.dumps(_FAR_END).encode() + b"\n" + json.dumps(hello).encode() + b"\n")
        try:
            line = self._line(30)
            while not line.startswith(token.encode()):  # what a login shell says first
                line = self._line(30)
        except WorkerLostError:
            raise DeviceError(
                f"{self.where} cannot run {self._remote.python!r}{self._last_words()}; "
                "set `remote.python` to an interpreter there that has numpy and the runtime"
            ) from None
        process, lacks, version = json.loads(line[len(token) :])
        self._ran = f"sh -c '(grep -qs {token} /proc/{process}/cmdline || ps -p {process} -o args= | grep -q {token}) && kill -9 {process}'"
        if tuple(version) < OLDEST:
            raise DeviceError(f"{self._remote.python!r} on {self.where} is Python {version[0]}.{version[1]}; a worker needs 3.10 or newer")
        if lacks:
            self._put(code)

    async def _listen(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        """Keeps the last lines of the process's standard error."""
        async for line in process.stderr:
            if line.strip():
                self._said.append(line.decode(errors="replace").strip())

    def _last_words(self) -> str:
        return f" ({self._said[-1]})" if self._said else ""

    def _drop(self) -> None:
        if self._connection is not None:
            self._thread.call(self._connection.abort)
        self._connection = self._process = None

    def _write(self, message: Message) -> None:
        """Sends one message; a model goes as a file, where it is not there already."""
        if message[0] == "compile":
            _, key, model = message
            digest = hashlib.sha256(model).hexdigest()
            self._put(json.dumps(["have", digest]).encode() + b"\n")
            if not self._read(60):
                self._put(json.dumps(["keep", digest, len(model)]).encode() + b"\n" + model)
                self._read(600)
            message = ("compile", key, digest)
        self._put(json.dumps(message).encode() + b"\n")

    def _put(self, data: bytes) -> None:
        if self._process is None:
            raise _LostError("not connected")
        try:
            self._thread.run(_sent(self._process, data), 600)
        except _LostError:
            self._thread.run(self._process.wait_closed(), 20)
            if self._process.exit_status is None and self._process.exit_signal is None:
                raise
            # it has ended by itself: whoever reads its answer finds out how

    def _read(self, timeout_s: float) -> Any:
        """The next answer as it came."""
        status, value = json.loads(self._line(timeout_s))
        if status == "error":
            raise DeviceError(value)
        return value

    def _line(self, timeout_s: float) -> bytes:
        if self._process is None or self._connection is None:
            raise _LostError("not connected")
        try:
            line = self._thread.run(self._process.stdout.readline(), timeout_s)
        except _LateError:
            self._thread.run(self._connection.run("exit 0"), 20)  # raises where it is the connection that is dead
            raise WorkerLostError(f"gave no answer in {timeout_s:g} s") from None
        if line.endswith(b"\n"):
            return line
        self._thread.run(self._process.wait_closed(), 20)
        signal, status = self._process.exit_signal, self._process.exit_status
        if signal is None and status is None:
            raise _LostError("the connection was closed")
        self._ran = ""
        if signal is not None:
            raise WorkerLostError(f"crashed the runtime (SIG{signal[0]})")
        raise WorkerLostError(f"ended the worker process (exit code {status})")


async def connect(remote: Remote) -> asyncssh.SSHClientConnection:
    """A connection that notices when the other end is gone. Only keys are tried, and known_hosts is always asked."""
    import asyncssh

    known = Path(remote.known_hosts or "~/.ssh/known_hosts").expanduser()
    given: dict[str, Any] = {"known_hosts": str(known) if known.is_file() else b""}  # given even so: ~/.ssh/config cannot switch it off
    if remote.key:
        given["client_keys"] = str(Path(remote.key).expanduser())
    if remote.user:
        given["username"] = remote.user
    return await asyncssh.connect(
        remote.host, remote.port, **given,
        preferred_auth="publickey", connect_timeout=20, login_timeout=20, keepalive_interval=KEEPALIVE_S, keepalive_count_max=3,
    )  # fmt: skip


def failure(error: Exception, remote: Remote, where: str) -> Exception:
    """What the user is told of an error while connecting; a `_LostError` where it may pass by itself."""
    import asyncssh

    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        known = remote.known_hosts or "~/.ssh/known_hosts"
        return DeviceError(
            f"the host key of {where} is not trusted; compare it with the machine's own and put it into {known} "
            f"(`ssh-keyscan -p {remote.port} {remote.host}` shows it)"
        )
    if isinstance(error, asyncssh.PermissionDenied):
        keys = f"the key {remote.key}" if remote.key else "the keys of the agent and of ~/.ssh"
        return DeviceError(
            f"{where} does not let the user in with {keys}; add the public key to ~/.ssh/authorized_keys there, "
            "or change `remote.user` or `remote.key`"
        )
    if isinstance(error, ValueError):  # asyncssh's errors of keys have no narrower base
        return DeviceError(f"the key {remote.key} cannot be used ({error}); take one without a passphrase, or give it to ssh-agent")
    return _lost(error)


def _lost(error: Exception) -> _LostError:
    return _LostError((getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip("."))


async def _started(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[bytes]:
    return await connection.create_process(command, encoding=None)


async def _sent(process: asyncssh.SSHClientProcess[bytes], data: bytes) -> None:
    process.stdin.write(data)
    await process.stdin.drain()


class _LoopThread:
    """An event loop in a thread, where keepalives are answered while the session does something else."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float, failed: Callable[[Exception], Exception] = _lost) -> T:
        """The result of the coroutine.

        Raises:
            _LateError: it took too long. Whatever SSH or the network raises becomes what `failed` makes of it.
        """
        import asyncssh

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), self._loop)
        try:
            return future.result()
        except TimeoutError:
            raise _LateError(f"no answer in {timeout_s:g} s") from None
        except (OSError, ValueError, asyncssh.Error) as error:
            raise failed(error) from None
        finally:
            future.cancel()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets the coroutine run beside."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Calls the function in the loop's thread, some time."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Ends the thread and all that runs in it."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
