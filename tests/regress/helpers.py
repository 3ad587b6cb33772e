"""What these tests share: C callbacks made of Python functions, child processes, scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pylibevent
from pylibevent import EventConfig, ffi
from pylibevent import _callbacks as cb

METHODS = pylibevent.supported_methods()
CHANGELIST = "epoll (with changelist)"
SOON = 20  # seconds; how long a test waits for what takes a moment


def nothing(*_args: Any) -> None:
    pass


def timeval(seconds: float) -> Any:
    return ffi.new("struct timeval *", (int(seconds), round(seconds % 1 * 1_000_000)))


def config_for(method: str) -> EventConfig:
    """A config that leaves one backend, or epoll with its changelist."""
    config = EventConfig()
    if method == CHANGELIST:
        config.set_flag(pylibevent.EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST)
        method = "epoll"
    for other in METHODS:
        if other != method:
            config.avoid_method(other)
    return config


class Raw:
    """C callbacks made of Python functions, and what they raised."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.errors: list[BaseException] = []
        self.seen: list[Any] = []

    def callback(
        self, function: Callable[..., Any], ctype: Any = "event_callback_fn", error: Any = None
    ) -> Any:
        made = ffi.callback(ctype, function, error, onerror=self._failed)
        self.kept.append(made)
        return made

    def note(self, name: str) -> Any:
        """An event's callback that appends (name, what) to seen."""
        return self.callback(lambda _fd, what, _arg: self.seen.append((name, what)))

    def handle(self, thing: object) -> Any:
        """A void * that from_handle() turns into the thing again."""
        made = ffi.new_handle(thing)
        self.kept.append(made)
        return made

    def event(self) -> Any:
        """Memory for a struct event, for event_assign and event_set."""
        made = ffi.new("struct event *")
        self.kept.append(made)
        return made

    def _failed(
        self, _kind: type[BaseException], error: BaseException, _traceback: TracebackType
    ) -> None:
        self.errors.append(error)

    def finish(self) -> None:
        cb.drain_log()  # what libevent said to these calls concerns no other test
        if self.errors:
            raise self.errors[0]


def spin(seconds: float) -> None:
    """Lets the clock go on, as a callback that works hard does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def send(signum: int) -> None:
    """Sends a signal to this process; it has come when this returns."""
    os.kill(os.getpid(), signum)


HEAD = """
import os, signal, socket, sys, threading
import pylibevent
from pylibevent import *
from pylibevent import ffi, lib
"""


def run_script(
    code: str, status: int = 0, environ: dict[str, str] | None = None
) -> tuple[str, str]:
    """Runs it in a new interpreter; what it wrote to stdout and to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONMALLOC": "debug", **(environ or {})},
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def script(code: str, environ: dict[str, str] | None = None) -> list[str]:
    """Runs it in a new interpreter, which has nothing to say on stderr; the words on stdout."""
    out, error = run_script(code, environ=environ)
    assert error == ""
    return out.split()
