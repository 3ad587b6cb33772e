"""What is raised, and when: one place that turns a C function's answer into an exception."""

from __future__ import annotations

import errno
import os
import threading
from typing import NoReturn

from ._libevent import ffi, lib


class LibeventError(Exception):
    """A libevent call failed and errno does not say why; the text names the C function."""


class ClosedError(LibeventError, ValueError):
    """The object, or the base or bufferevent that it belongs to, is closed."""


class LineTooLong(LibeventError, ValueError):
    """A line is longer than `max_length` bytes. Nothing was removed from the buffer."""


FAIL, SYS, CLOSED, VIEWED, RAISED, THREAD, FORKED, RANGE = range(-1, -9, -1)
NOMEM, TOOLONG, RUNNING, INUSE, FILE, NONE, SIGBASE, SMALL = range(-9, -17, -1)
PRIORITY, UNABLE, IDLE, DEEP, LATE, BLOCKS, FILTERED, BORROWED = range(-17, -25, -1)

_TEXTS: dict[int, tuple[type[Exception], str]] = {
    FAIL: (LibeventError, "failed"),
    CLOSED: (ClosedError, "used after close"),
    VIEWED: (BufferError, "a memoryview of this buffer is out; release it first"),
    THREAD: (RuntimeError, "in use by another thread"),
    FORKED: (RuntimeError, "this EventBase is the parent process's; call its reinit() first"),
    RANGE: (ValueError, "argument out of range"),
    NOMEM: (MemoryError, "out of memory"),
    TOOLONG: (LineTooLong, "line longer than max_length"),
    RUNNING: (RuntimeError, "the loop is running already, or a buffer's callback is"),
    INUSE: (BufferError, "the buffer is in the middle of a move, or of a TLS handshake"),
    FILE: (BufferError, "the buffer holds a file that goes out by sendfile, never to memory"),
    SIGBASE: (RuntimeError, "another EventBase has signal events; a process has one such base"),
    UNABLE: (LibeventError, "this base's method cannot do that"),
    IDLE: (ValueError, "no descriptor, signal or timeout to wait for"),
    DEEP: (RecursionError, "callbacks make calls that call back, too deep"),
    LATE: (RuntimeError, "too late: call it before the first EventBase is made"),
    BLOCKS: (ValueError, "in debug mode a descriptor has to be non-blocking"),
    FILTERED: (RuntimeError, "a filter is on top of this bufferevent; use the filter"),
    BORROWED: (LibeventError, "it belongs to a C library, which alone may do that"),
    PRIORITY: (ValueError, "events with a higher priority than that exist already"),
}


class Stash(threading.local):
    """Exceptions of callbacks, on their way to the call that is to raise them."""

    def __init__(self) -> None:
        self.exceptions: list[BaseException] = []


stash: Stash = Stash()


def stashed() -> list[BaseException]:
    """Takes what the callbacks under the call that just returned RAISED have raised."""
    first = max(0, len(stash.exceptions) - lib.pyle_raised())
    exceptions = stash.exceptions[first:]
    del stash.exceptions[first:]
    return exceptions


def raise_first(exceptions: list[BaseException]) -> NoReturn:
    """Raises it with no frame left that refers to it: that would be a cycle."""
    try:
        raise exceptions[0]
    finally:
        exceptions.clear()


def os_error(code: int, function: str) -> OSError | MemoryError:
    """The exception for an errno that the C function named has left."""
    if code == errno.ENOMEM:
        return MemoryError(f"{function}: {os.strerror(code)}")
    return OSError(code, f"{function}: {os.strerror(code)}")


def fail(code: int, function: str) -> NoReturn:
    """Raises what `code`, the answer of the C function named, stands for."""
    if code == SYS:
        raise os_error(ffi.errno, function)
    if code == RAISED:
        exceptions = stashed() or [RuntimeError(f"{function}: a callback was interrupted twice")]
        for other in exceptions[1:]:
            unraisable(other)
        raise_first(exceptions)
    kind, text = _TEXTS.get(code, (LibeventError, f"failed ({code})"))
    raise kind(f"{function}: {text}")


class _Lost:
    def __init__(self, exception: BaseException) -> None:
        self.exceptions = [exception]

    def __del__(self) -> None:
        raise_first(self.exceptions)


def unraisable(exception: BaseException) -> None:
    """Reports an exception that no call is left to raise, as Python itself does."""
    _Lost(exception)


if lib.pyle_init() < 0:
    raise ImportError(
        "pylibevent was built against another libevent than the one that is installed, "
        "or another part of this process uses libevent with other locks; reinstall it"
    )
