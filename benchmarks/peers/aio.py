"""What the asyncio peers share: the same programs run on asyncio's loop, on uvloop and on ours."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Coroutine
from typing import Any, cast


def arguments(*more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=["asyncio", "uvloop", "pylibevent"])
    for name in more:
        parser.add_argument(name, type=int)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--tls", metavar="cert.pem")
    return parser.parse_args()


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()  # a type without uvloop, too
        return loop
    if name == "pylibevent":
        from pylibevent.aio import EventLoop

        return EventLoop()
    return asyncio.SelectorEventLoop()


def run(name: str, main: Coroutine[Any, Any, None]) -> None:
    run_on(new_loop(name), main)


def run_on(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    # asyncio reads into a new block of 256 KiB each time. glibc maps and unmaps each of them, which
    # takes longer than all else, until a larger one has been freed: in most programs one has been.
    bytes(2**20)
    asyncio.set_event_loop(loop)
    loop.run_until_complete(main)


class Paused(asyncio.Protocol):
    """Reads nothing while the other side (itself, in an echo server) can't write any more."""

    transport: asyncio.Transport
    source: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports don't derive from asyncio's.
        self.transport = self.source = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self.source.pause_reading()

    def resume_writing(self) -> None:
        self.source.resume_reading()
