"""Processes of their own: examples and what talks to them, scripts, forked children."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import PATIENCE

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def command(example: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / example), *arguments]


def run(
    example: str, *arguments: str, data: bytes = b"", timeout: float = 20
) -> subprocess.CompletedProcess[bytes]:
    """Runs an example to its end, with `data` as its input."""
    return subprocess.run(
        command(example, *arguments),
        input=data,
        capture_output=True,
        timeout=timeout * PATIENCE,
        check=False,
    )


@contextlib.contextmanager
def started(example: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """An example that runs, with its output and errors to read, until the with statement ends."""
    process = subprocess.Popen(
        command(example, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of its output, without its end."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def complaint_of(process: subprocess.Popen[str]) -> str:
    """The next line of its errors, without its end."""
    assert process.stderr is not None
    return process.stderr.readline().rstrip("\n")


def read_to_end(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    host: str = "127.0.0.1"

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=10)

    def talk(self, data: bytes) -> bytes:
        """Sends it, half closes, and reads to the end."""
        with self.connect() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_to_end(sock)

    def _kib(self, what: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+)", status)[1])  # type: ignore[index]

    def resident_kib(self) -> int:
        return self._kib("VmRSS")

    def peak_kib(self) -> int:
        """The most that `resident_kib` has been."""
        return self._kib("VmHWM")


@contextlib.contextmanager
def serving(example: str, *arguments: str) -> Iterator[Server]:
    """An example that says on its standard error where it listens."""
    with started(example, *arguments) as process:
        line = complaint_of(process)
        found = re.search(r"listening on \[?(.*?)\]?(?::(\d+))?$", line)
        assert found, line + process.communicate()[1]
        yield Server(process, int(found[2] or 0), found[1])


# For programs that are not Python's: with a sanitizer in them, some wait for ever.
PLAIN_ENV = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def curl(url: str, *arguments: str) -> bytes:
    """What curl prints."""
    command = ["curl", "-sS", *arguments, url]
    return subprocess.run(
        command, capture_output=True, check=True, timeout=60, env=PLAIN_ENV
    ).stdout


# ---- scripts ----


def run_script(code: str, *args: str, **env: str) -> str:
    """Runs Python code that might end the interpreter; its output, if it ends with status 0 and
    has nothing to say on stderr. Freed memory is overwritten, so that use of it shows."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=100 * PATIENCE,
        check=False,
        env={**os.environ, "PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "165", **env},
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


# ---- children ----


def fork(child: Callable[[], object]) -> int:
    """Runs child() in a child process, which ends with status 0 if it did not raise."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        child()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait_for(pid: int, limit: float = 20) -> None:
    """The child ends with status 0 within a time."""
    deadline = time.monotonic() + limit * PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            assert code == 0, f"the child ended with {code}: see its traceback on stderr"
            return
        time.sleep(0.001)  # there is no waitpid with a time limit
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def in_child(child: Callable[[], object]) -> None:
    wait_for(fork(child))
