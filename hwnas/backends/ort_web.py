"""onnxruntime-web (WebAssembly) under node or in headless Chromium: what a model costs in a web page.

The npm package is pinned by `web/package-lock.json` and installed into the user's cache folder when it is first needed.
Times are taken where the model runs, by `performance.now()`. In a browser its steps are coarse (5 us at best): inferences
shorter than 100 steps are timed several together, and their mean is one time.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import queue
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import platformdirs
from numpy.typing import NDArray

from hwnas.device import Device, Precision, require_precision
from hwnas.errors import DeviceError

PRECISIONS: tuple[Precision, ...] = ("fp32",)
WEB = Path(__file__).parent / "web"
PACKAGE = "onnxruntime-web"
INSTALL_TIMEOUT_S = 100
"""Less than a worker process has for making its backend."""
PAGE_TIMEOUT_S = 60
WATCH = """
folder=$(mktemp -d) || exit 1
"$@" --user-data-dir="$folder" >/dev/null 2>&1 </dev/null &
cat >/dev/null
kill $!
wait $!
rm -rf "$folder"
"""
"""A shell's script that ends the browser and removes its profile when its standard input closes: when the worker is gone, however."""


@runtime_checkable
class Host(Protocol):
    """Where the engine runs."""

    name: str

    def ask(self, call: str, *values: Any) -> Any:
        """What the engine's method `call` gives; raises DeviceError with its reason where it fails."""


class ORTWeb:
    """The backend of the devices whose YAML says `backend: ort_web`; `host` is where it runs, `browser` the program of Chromium."""

    def __init__(self, device: Device, *, host: Literal["node", "chromium"] = "node", browser: str = "chromium") -> None:
        require_precision(device, PRECISIONS)
        self._batch = device.batch
        packages = installed()
        self._host: Host = Node(packages, device.threads) if host == "node" else Chromium(packages, device.threads, browser)
        self._version = str(self._host.ask("about")["version"])

    def fingerprint(self) -> dict[str, str]:
        """Runtime, version, and the host with its version."""
        return {"runtime": PACKAGE, "runtime_version": self._version, "provider": "wasm", "host": self._host.name}

    def compile(self, model: bytes) -> Session:
        """A session of the model.

        Raises:
            DeviceError: the runtime refuses the model.
        """
        try:
            return Session(self._host, self._host.ask("compile", base64.b64encode(model).decode(), self._batch))
        except RefusedError as error:
            raise DeviceError(f"{PACKAGE} refuses the model: {error}") from None


class Session:
    """A session in the host, by its number there."""

    def __init__(self, host: Host, number: int) -> None:
        self._host, self._number = host, number

    def run(self) -> None:
        """One inference."""
        self._host.ask("run", self._number)

    def time(self, runs: int) -> NDArray[np.int64]:
        """How long each of `runs` inferences in a row took by the host's clock, ns; each a mean where that clock is coarse."""
        return np.rint(np.array(self._host.ask("time", self._number, runs)) * 1e6).astype(np.int64)

    def outputs(self, feed: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """What the model computes of these inputs."""
        given = {name: {"shape": values.shape, "data": values.ravel().tolist()} for name, values in feed.items()}
        found = self._host.ask("outputs", self._number, given)
        return [np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"]) for tensor in found]


class RefusedError(DeviceError):
    """What the engine says went wrong."""


def value_of(answer: bytes) -> Any:
    """What an answer of the engine holds; raises RefusedError where that is an error."""
    found = json.loads(answer)
    if "error" in found:
        raise RefusedError(found["error"] or "it gives no reason")
    return found["value"]


class Node:
    """The engine in a node process, which ends when its standard input closes."""

    def __init__(self, packages: Path, threads: int) -> None:
        self.name = f"node {_version(_program('node'))}"
        self._process = subprocess.Popen(
            [_program("node"), str(WEB / "node.mjs"), str(packages), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        weakref.finalize(self, _end, self._process)

    def ask(self, call: str, *values: Any) -> Any:
        """See `Host`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, "with": values}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise DeviceError(f"node ended in the middle of its work (exit code {self._process.wait()})")
        return value_of(line)


class Chromium:
    """The engine in a page of headless Chromium, served from this process on 127.0.0.1."""

    def __init__(self, packages: Path, threads: int, browser: str) -> None:
        program = _program(browser)
        self.name = f"Chromium {_version(program)}"
        self._questions: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[bytes] = queue.Queue()
        folders = (WEB, packages / "node_modules" / PACKAGE / "dist")
        secret = secrets.token_urlsafe()  # no other page or process may ask or answer
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(folders, secret, self._questions, self._answers))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root without
        url = f"http://127.0.0.1:{server.server_port}/{secret}/page.html?threads={threads}"
        watch = subprocess.Popen(["sh", "-c", WATCH, "sh", program, *flags, url], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        weakref.finalize(self, _end, watch, server)
        try:
            self._ask(PAGE_TIMEOUT_S, "about")
        except queue.Empty:
            raise DeviceError(f"{browser} did not open the page in {PAGE_TIMEOUT_S} s; see whether it runs with --headless=new") from None

    def ask(self, call: str, *values: Any) -> Any:
        """See `Host`; waits as long as the page takes."""
        return self._ask(None, call, *values)

    def _ask(self, timeout_s: float | None, call: str, *values: Any) -> Any:
        self._questions.put(json.dumps({"call": call, "with": values}).encode())
        return value_of(self._answers.get(timeout=timeout_s))


def _handler(
    folders: tuple[Path, ...], secret: str, questions: queue.Queue[bytes], answers: queue.Queue[bytes]
) -> type[http.server.BaseHTTPRequestHandler]:
    kinds = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._name() == "question":
                self._send(questions.get(), "application/json")
                return
            for path in (folder / self._name() for folder in folders):
                if path.suffix in kinds and path.is_file():
                    self._send(path.read_bytes(), kinds[path.suffix])
                    return
            self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self._name() == "answer":
                answers.put(body)
                self._send(b"", "text/plain")
            else:
                self.send_error(404)

        def _name(self) -> str:
            match = re.fullmatch(rf"/{secret}/([\w.-]+)", self.path.partition("?")[0])
            return match[1] if match else ""

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            # an isolated page may share memory between threads, and its clock steps by 5 us instead of 100
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _end(process: subprocess.Popen[bytes], server: http.server.HTTPServer | None = None) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    if server is not None:
        server.shutdown()
        server.server_close()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DeviceError(f"backend ort_web needs {name!r}, which is not on the PATH; install {ADVICE.get(name, 'it, or name another')}")
    return found


ADVICE = {
    "node": "Node.js (version 18 or newer)",
    "npm": "npm (it comes with Node.js)",
    "chromium": "Chromium, or say in the device's options which program is yours (browser: google-chrome)",
}


def _version(program: str) -> str:
    printed = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d[\d.]*", printed)
    if found is None:
        raise DeviceError(f"{program} --version prints no version; name another program")
    return found[0]


def installed() -> Path:
    """The folder of the installed npm packages, one a lock file; they are installed by `npm ci` if it is not there yet.

    Raises:
        DeviceError: npm is missing, or cannot reach its registry.
    """
    lock = (WEB / "package-lock.json").read_bytes()
    folder = Path(platformdirs.user_cache_dir("hwnas")) / f"{PACKAGE}-{hashlib.sha256(lock).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    npm = _program("npm")
    made = ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(WEB / name, Path(made) / name)
        _install(npm, made)
        os.rename(made, folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was quicker
            problem = f"{PACKAGE} cannot be installed into {folder}: {error.strerror}"
            raise DeviceError(f"{problem}; set XDG_CACHE_HOME to another folder") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _install(npm: str, folder: str) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"npm did not install {PACKAGE} in {INSTALL_TIMEOUT_S} s; see whether it reaches its registry") from None
    if ended.returncode:
        said = [line.removeprefix("npm error ") for line in ended.stderr.splitlines() if line.startswith("npm error ")]
        reason = next((line for line in said if not line.startswith(("code ", "syscall ", "errno "))), "it gives no reason")
        raise DeviceError(f"npm cannot install {PACKAGE}: {reason}; see whether it reaches its registry (npm config get registry)")
