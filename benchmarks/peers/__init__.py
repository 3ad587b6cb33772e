"""The programs that are compared. Each prints its port, or its figures, on stdout."""

from __future__ import annotations

import threading
from collections.abc import Iterable


def answers(lines: Iterable[bytes]) -> bytes:
    """All answers in one: what a good user writes at once."""
    return b"".join([b"Client msg %s\n" % line for line in lines])


def announce(port: int) -> None:
    print(port, flush=True)


def keep_busy() -> None:
    """A thread that never waits for anything: it wants the GIL all the time."""

    def spin() -> None:
        n = 0
        while True:
            n = (n + 1) % 1000

    threading.Thread(target=spin, daemon=True).start()
