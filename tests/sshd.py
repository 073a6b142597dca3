"""A real SSH server on loopback for tests: its own port, host key and user key, run as the user who runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.device import Remote

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def key_pair(path: Path) -> str:
    """Makes a key without a passphrase; its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text(encoding="utf-8").strip()


@dataclass
class Server:
    """A running sshd."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def remote(self, **more: Any) -> Remote:
        """The `remote` section of a device that lives there."""
        given = {
            "host": "127.0.0.1", "port": self.port, "user": getpass.getuser(), "known_hosts": str(self.folder / "known_hosts"),
            "key": str(self.folder / "key"), "python": sys.executable, "folder": str(self.folder / "far"),
        }  # fmt: skip
        return Remote.model_validate(given | more)

    def trust(self, port: int) -> None:
        """Says that the server is known at this port too, e.g. a proxy's."""
        public = (self.folder / "host.pub").read_text(encoding="utf-8")
        with (self.folder / "known_hosts").open("a", encoding="utf-8") as known:
            known.write(f"[127.0.0.1]:{port} {public}\n")

    def sessions(self) -> list[int]:
        """The processes of its connections."""
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in listed.stdout.split()]

    def cut(self) -> None:
        """Kills the processes of all connections; the server stays."""
        for session in self.sessions():
            os.kill(session, signal.SIGKILL)


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """An sshd that lets in who has `folder/key`, and is known to `folder/known_hosts`."""
    assert SSHD is not None
    folder.mkdir(parents=True, exist_ok=True)
    key_pair(folder / "host")
    (folder / "authorized_keys").write_text(key_pair(folder / "key") + "\n", encoding="utf-8")
    port = free_port()
    settings = {
        "ListenAddress": "127.0.0.1", "Port": port, "HostKey": folder / "host", "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password", "MaxStartups": "50",
    }  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()), encoding="utf-8")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's server keeps its unprivileged process
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "sshd.log").read_text(encoding="utf-8")
            time.sleep(0.05)
        found = Server(process, port, folder)
        found.trust(port)
        yield found
        found.cut()
    finally:
        process.kill()
        process.wait()


class Proxy:
    """Passes bytes on to a port until it is told to drop its connections, or to go quiet."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.accepted = 0
        self._quiet: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            far = socket.create_connection(("127.0.0.1", self._to))
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if source not in self._quiet:
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Cuts every connection."""
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def hush(self) -> None:
        """Keeps the connections that there are, and passes nothing on any more."""
        self._quiet.update(end for pair in self._pairs for end in pair)

    def close(self) -> None:
        """Cuts every connection and takes no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
