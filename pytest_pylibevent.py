"""pytest's way into pylibevent: see pylibevent/pytest_plugin.py.

It stands outside of the package, since pytest imports it whatever the tests are about: libevent is
loaded by the first test that asks for a fixture.
"""

from __future__ import annotations

import gc
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pylibevent import EventBase
    from pylibevent.pytest_plugin import RunUntil

RAISED = pytest.StashKey[bool]()
NAMES = {"BASES": "EventBase", "BUFS": "EvBuffer", "BEVS": "BufferEvent", "LISTENERS": "Listener"}


def alive() -> dict[str, int]:
    """How many structs of each kind our C source has."""
    from pylibevent import ffi, lib

    kinds = ffi.typeof("enum pyle_thing").elements
    return {name: lib.pyle_alive(kind) for kind, name in kinds.items()}


def open_sockets() -> set[tuple[int, int]]:
    """The descriptor and the inode of each."""
    found = set()
    for fd in map(int, os.listdir("/dev/fd")):
        try:
            status = os.fstat(fd)
        except OSError:  # listdir's own
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.add((fd, status.st_ino))
    return found


class Leftovers:
    """What there is more than when this was made."""

    def __init__(self) -> None:
        self.structs, self.sockets = alive(), open_sockets()

    def found(self) -> list[str]:
        more = [
            f"{n - self.structs[kind]} {NAMES.get(name := kind.removeprefix('PYLE_'), name)}"
            for kind, n in alive().items()
            if n > self.structs[kind]
        ]
        return more + [f"socket {fd}" for fd, _ in sorted(open_sockets() - self.sockets)]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        item.stash[RAISED] = True


@pytest.fixture
def event_base(request: pytest.FixtureRequest) -> Iterator[EventBase]:
    """An EventBase. After the test it is closed, with all that it holds, and then nothing of
    pylibevent's and no socket may be left that was not there before."""
    from pylibevent import EventBase

    base = EventBase()
    before = Leftovers()
    yield base
    base.close()
    if RAISED in request.node.stash:  # its traceback still refers to what the test had
        return
    request.node.funcargs.clear()
    if before.found():
        gc.collect()
    if left := before.found():
        pytest.fail(f"left by the test: {', '.join(left)}", pytrace=False)


@pytest.fixture
def run_until(event_base: EventBase) -> RunUntil:
    """run_until(predicate, timeout=5): runs the loop until predicate() is true; AssertionError,
    with the events that are pending, after `timeout` seconds."""
    from pylibevent import EVLOOP_ONCE, Timer

    def run_until(predicate: Callable[..., object], timeout: float = 5) -> None:
        __tracebackhide__ = True
        late: list[bool] = []
        deadline = Timer(event_base, late.append, True)
        deadline.add(timeout)
        try:
            while not predicate():
                if late:
                    events = io.StringIO()
                    event_base.dump_events(events)
                    raise AssertionError(
                        f"it did not happen within {timeout} s; pending:\n{events.getvalue()}"
                    )
                event_base.loop(EVLOOP_ONCE)
        finally:
            if not event_base.closed:
                deadline.close()

    return run_until
