"""What every test has besides the fixtures of our pytest plugin: a balance."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from common import FUZZ, PATIENCE, SANITIZED
from hypothesis import settings

from pylibevent import EventBase, lib
from pylibevent import _callbacks as cb
from pylibevent.errors import stash
from pylibevent.pytest_plugin import RunUntil
from pytest_pylibevent import alive

__all__ = ["RunUntil", "alive"]


def open_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:  # listdir's own
            continue
    return found


# `make fuzz` sets the second one: with --hypothesis-seed each run is another, and can be repeated.
settings.register_profile("fixed", deadline=None, database=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, database=None, print_blob=False)
settings.load_profile("fuzz" if FUZZ else "fixed")


stderr: list[int] = []  # the real one, which the capturing of output leaves alone


def pytest_configure() -> None:
    stderr.append(os.dup(2))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    if SANITIZED:
        ctypes.CDLL(None).malloc(ctypes.c_size_t(2**62))  # refused: the report's file is opened


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # collections look at what is new since, not at pytest


def pytest_sessionfinish() -> None:
    """Under LeakSanitizer (scripts/sanitize.sh), while all that Python has is still in use: memory
    that nothing points to is reported."""
    if check := getattr(ctypes.CDLL(None), "__lsan_do_recoverable_leak_check", None):
        gc.collect()
        check()


def watch_for_hangs() -> None:
    """All ends in 120 seconds, and says where, unless this is called again or the test ends."""
    if not SANITIZED:  # its thread may have the lock of their allocator during a fork
        faulthandler.dump_traceback_later(120, exit=True, file=stderr[0])


class Balance:
    """What there is at one moment, of which nothing more may be left later."""

    def __init__(self) -> None:
        self.descriptors, self.structs = open_descriptors(), alive()

    def check(self) -> None:
        """No base, struct of C's, pending event, pin, exception or descriptor is left."""
        gc.collect()
        assert list(cb.bases.values()) == []
        assert alive() == self.structs
        assert not any(cb.tables)
        assert cb.finalizing == {}
        assert not lib.pyle_signals()
        assert cb.pins == {}
        assert stash.exceptions == []
        assert open_descriptors() - self.descriptors == set()


@pytest.fixture(autouse=True)
def _balance(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: nothing of ours and no thread is left that was not there before."""
    balance, threads = Balance(), set(threading.enumerate())
    watch_for_hangs()
    yield
    faulthandler.cancel_dump_traceback_later()
    request.node.funcargs.clear()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive(), f"{thread} is left"
    balance.check()
    gc.freeze()


@pytest.fixture
def run_until(run_until: RunUntil) -> RunUntil:
    return lambda predicate, timeout=5: run_until(predicate, timeout * PATIENCE)


@pytest.fixture
def base(event_base: EventBase) -> EventBase:
    """The plugin's, by a shorter name."""
    return event_base


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected stream sockets, non-blocking."""
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    yield a, b
    a.close()
    b.close()
