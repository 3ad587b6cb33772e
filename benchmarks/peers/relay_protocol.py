"""A relay as two asyncio Protocols."""

from __future__ import annotations

import asyncio

from benchmarks.peers import aio, announce


class Side(aio.Paused):
    """What it receives goes to the other side, which stops this one when it can't keep up."""

    other: Side | None = None

    def data_received(self, data: bytes) -> None:
        assert self.other
        self.other.transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other:
            self.other.transport.close()


class Client(Side):
    def __init__(self, backend: int) -> None:
        self.backend = backend
        self.early: list[bytes] = []  # uvloop may read once more after pause_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self.task = asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(Side, "127.0.0.1", self.backend)
        self.other, server.other = server, self
        self.source, server.source = server.transport, self.transport
        server.transport.writelines(self.early)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other:
            self.other.transport.write(data)
        else:
            self.early.append(data)


async def main(backend: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(backend), "127.0.0.1", 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    given = aio.arguments("backend")
    aio.run(given.loop, main(given.backend))
