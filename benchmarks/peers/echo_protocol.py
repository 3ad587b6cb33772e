"""The echo server as an asyncio Protocol."""

from __future__ import annotations

import asyncio

from benchmarks.peers import aio, announce, answers, keep_busy


class Echo(aio.Paused):
    def __init__(self) -> None:
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        *lines, self.rest = data.split(b"\n")
        if lines:
            self.transport.write(answers(lines))


async def main(busy: bool) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    announce(server.sockets[0].getsockname()[1])
    if busy:
        keep_busy()
    await server.serve_forever()


if __name__ == "__main__":
    given = aio.arguments()
    aio.run(given.loop, main(given.busy))
