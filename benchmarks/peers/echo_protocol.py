"""The echo server as an asyncio Protocol."""

from __future__ import annotations

import asyncio
import ssl

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


async def main(busy: bool, cert: str | None) -> None:
    context = None
    if cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=context)
    announce(server.sockets[0].getsockname()[1])
    if busy:
        keep_busy()
    await server.serve_forever()


if __name__ == "__main__":
    given = aio.arguments()
    aio.run(given.loop, main(given.busy, given.tls))
