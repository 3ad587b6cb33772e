"""The echo server on asyncio's streams, as their documentation has it."""

from __future__ import annotations

import asyncio

from benchmarks.peers import aio, announce, keep_busy

LIMIT = 2**17  # lines of 64 KiB fit, which they don't without


async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(b"Client msg " + line)
        await writer.drain()
    writer.close()


async def main(busy: bool) -> None:
    server = await asyncio.start_server(on_connect, "127.0.0.1", 0, limit=LIMIT)
    announce(server.sockets[0].getsockname()[1])
    if busy:
        keep_busy()
    await server.serve_forever()


if __name__ == "__main__":
    given = aio.arguments()
    aio.run(given.loop, main(given.busy))
