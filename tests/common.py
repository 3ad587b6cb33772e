"""Small things that many tests do."""

from __future__ import annotations

import os
import socket

import pytest

from pylibevent import EVLOOP_NONBLOCK, EventBase

# scripts/sanitize.sh and scripts/valgrind.sh set it.
SANITIZED = "PYLIBEVENT_SANITIZED" in os.environ
PATIENCE = 6 if SANITIZED else 1  # how much longer all may take

# They keep what is freed for a while.
measures_memory = pytest.mark.skipif(SANITIZED, reason="a sanitizer has its own use of memory")

# How many times as much as else is tried by tests that draw what they do: see `make fuzz`.
FUZZ = int(os.environ.get("PYLIBEVENT_FUZZ", "0"))


def few_rounds(base: EventBase, n: int = 20) -> None:
    """Runs all that is due, and what follows from it."""
    for _ in range(n):
        if not base.closed:
            base.loop(EVLOOP_NONBLOCK)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def received(sock: socket.socket) -> bytes:
    """What is there to read now; the last b"" is the end."""
    data = b""
    while True:
        try:
            part = sock.recv(1 << 20)
        except BlockingIOError:
            return data
        if not part:
            return data
        data += part
