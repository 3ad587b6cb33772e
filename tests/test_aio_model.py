"""Streams that do what a seed tells them: all that is sent arrives, once and in its order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from typing import Any

import pytest
from common import FUZZ

from pylibevent import EVLOOP_NONBLOCK, aio

LIMIT = 300


def data(rng: random.Random) -> bytes:
    """Lines, most of them short, some longer than the limit."""
    lines = [b"x" * rng.choice([0, 1, 5, 50, 299, 300, 301, 2000]) for _ in range(rng.randrange(9))]
    return b"\n".join(lines)


class Side:
    """Reads and writes by chance, until told to stop; then to the end."""

    def __init__(self, rng: random.Random, reader: Any, writer: Any, limit: float) -> None:
        self.rng = rng
        self.reader = reader
        self.writer = writer
        self.limit = limit
        self.sent = b""
        self.got = b""

    async def read_some(self) -> bool:
        """False: it is the end."""
        reader = self.reader
        try:
            how = self.rng.randrange(5)
            if how == 0:
                some = await reader.readline()
            elif how == 1:
                some = await reader.read(self.rng.choice([1, 10, 1000]))
            elif how == 2:
                some = await reader.readuntil(self.rng.choice([b"\n", b"x\nx", b"xxxxxxxxxx"]))
            elif how == 3:
                some = await reader.readexactly(self.rng.choice([1, 7, 700]))
            else:
                some = await asyncio.wait_for(reader.readline(), self.rng.choice([0, 0.001, 0.01]))
        except asyncio.IncompleteReadError as error:
            some = error.partial
        except (ValueError, asyncio.LimitOverrunError):  # a line beyond the limit
            some = await reader.read(LIMIT)
        except asyncio.TimeoutError:
            return True
        self.got += some
        return bool(some)

    async def read_all(self) -> None:
        while await self.read_some():
            if self.rng.random() < 0.1:
                await asyncio.sleep(0)

    async def cancelled_now_and_then(self) -> None:
        while True:
            task = asyncio.ensure_future(self.read_all())
            for _ in range(self.rng.randrange(30)):
                await asyncio.sleep(0)
            if self.rng.random() < 0.1:
                await task
            elif task.cancel():
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                    return
                continue
            return

    async def write_some(self) -> None:
        for _ in range(self.rng.randrange(20)):
            some = data(self.rng)
            self.sent += some
            self.writer.write(some)
            if self.rng.random() < 0.5:
                await self.writer.drain()
            if self.rng.random() < 0.5:
                await asyncio.sleep(self.rng.choice([0, 0, 0, 0.001]))
        self.writer.write_eof()


async def play(rng: random.Random, loop: aio.EventLoop) -> None:
    sides: list[tuple[Side, Side]] = []
    accepted: dict[Any, asyncio.Future[Side]] = {}

    async def handler(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")
        await asyncio.sleep(0)
        accepted[tuple(name)].set_result(Side(rng, reader, writer, LIMIT))
        await writer.wait_closed()

    server = await aio.start_server(loop, handler, ("127.0.0.1", 0), limit=LIMIT)
    for _ in range(rng.randrange(1, 8)):
        sock = socket.create_connection(server.address)
        accepted[sock.getsockname()] = loop.create_future()
        reader, writer = await asyncio.open_connection(sock=sock)
        sides.append((Side(rng, reader, writer, 65536), await accepted[sock.getsockname()]))
    work = []
    for pair in sides:
        for side in pair:
            work += [side.cancelled_now_and_then(), side.write_some()]
    await asyncio.gather(*work)
    for one, other in sides:
        assert one.got == other.sent
        assert other.got == one.sent
        one.writer.close()
        other.writer.close()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)


FIRST = int(os.environ.get("PYLIBEVENT_FUZZ_SEED", "0"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 25 * max(FUZZ, 1)))
def test_what_one_side_sends_the_other_gets(seed: int) -> None:
    rng = random.Random(seed)
    with contextlib.closing(aio.EventLoop()) as loop:
        loop.set_debug(rng.random() < 0.1)
        loop.slow_callback_duration = 60
        loop.run_until_complete(asyncio.wait_for(play(rng, loop), 30))
        loop.base.loop(EVLOOP_NONBLOCK)
