"""A plugin for pytest, which finds it by itself: two fixtures for tests of programs on libevent.

`event_base` is an EventBase of the test's own. After the test it is closed, with all that it
holds. If the test has passed, what is left then makes it fail: an object of pylibevent's that
somebody still refers to, or a socket that is still open.

`run_until(predicate, timeout=5)` runs that base's loop until predicate() is true. After `timeout`
seconds it raises AssertionError, with the events that are pending.

Where plugins are not loaded by themselves: `pytest -p pytest_pylibevent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pytest_pylibevent import event_base, run_until

__all__ = ["RunUntil", "event_base", "run_until"]


class RunUntil(Protocol):
    """The type of `run_until`."""

    def __call__(self, predicate: Callable[..., object], timeout: float = 5) -> None:
        """Runs the loop until predicate() is true."""
