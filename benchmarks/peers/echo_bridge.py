"""The echo server on aio's streams: bufferevents under coroutines."""

from __future__ import annotations

import argparse

from benchmarks.peers import aio, announce, keep_busy
from benchmarks.peers.echo_streams import LIMIT
from pylibevent.aio import EventLoop, StreamReader, StreamWriter, start_server


async def on_connect(reader: StreamReader, writer: StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(b"Client msg " + line)
        await writer.drain()
    writer.close()


async def main(loop: EventLoop, busy: bool) -> None:
    server = await start_server(loop, on_connect, ("127.0.0.1", 0), limit=LIMIT)
    announce(server.address[1])
    if busy:
        keep_busy()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--busy", action="store_true")
    given = parser.parse_args()
    loop = EventLoop()
    aio.run_on(loop, main(loop, given.busy))
