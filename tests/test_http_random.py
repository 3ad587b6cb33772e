"""Clients and handlers that do anything at any moment: nothing crashes, and nothing is left."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tls
from common import FUZZ, few_rounds

from pylibevent import (
    EV_READ,
    BufferEvent,
    EvBuffer,
    EventBase,
    HttpServer,
    HttpServerRequest,
    Timer,
    TLSContext,
)

REQUESTS = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: b.vhost\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" + bytes(50000),
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nand more",
    b"not HTTP\r\n\r\n",
]


class World:
    """A server, its clients and what its handlers have kept."""

    def __init__(self, seed: int, certificates: tls.Certificates | None) -> None:
        self.draw = random.Random(seed)
        self.kept: list[Any] = []
        self.clients: list[socket.socket] = []
        self.certificates = certificates
        self.base = base = EventBase()
        base.exception_handler = lambda error, source: None
        self.server = server = HttpServer(base)
        self.vhost = HttpServer(base)
        server.timeout = self.draw.choice([0.02, 0.1, 5])
        server.max_body_size = 200_000
        server.add_virtual_host("*.vhost", self.vhost)
        self.address = server.bind("127.0.0.1", 0).address
        if certificates:
            context = TLSContext(server_side=True)
            context.load_cert_chain(certificates.good)
            server.set_bevcb(lambda base: BufferEvent.openssl_socket(base, None, context))
        for one in (server, self.vhost):
            one.set_gencb(self.handle)
        server.set_cb("/a", self.handle)

    def perhaps(self, chance: float) -> bool:
        return self.draw.random() < chance

    # ---- what handlers do ----

    def handle(self, request: HttpServerRequest) -> None:
        if self.perhaps(0.2):
            request.on_complete(self.told)
        if self.perhaps(0.2):
            request.on_error(self.told)
            request.on_close(self.told)
        if self.perhaps(0.1):
            request.own()
            self.kept.append(request)
        if self.perhaps(0.1):
            self.kept.extend(request.input_buffer.peek())
        if self.perhaps(0.1):
            request.output_buffer.add_cb(self.told)
            request.output_headers["A"] = request.headers.get("Host", "")
        self.draw.choice(self.ANSWERS)(self, request)

    def told(self, *_: object) -> None:
        if self.perhaps(0.05):
            raise LookupError
        if self.perhaps(0.03):
            self.server.close()

    def reply(self, request: HttpServerRequest) -> None:
        request.send_reply(200, None, bytes(self.draw.choice([0, 1, 100, 100_000])))

    def file(self, request: HttpServerRequest) -> None:
        with Path(__file__).open("rb") as file:
            request.output_buffer.add_file(file)
        request.send_reply(200)

    def keep(self, request: HttpServerRequest) -> None:
        self.kept.append(request)

    def drop(self, request: HttpServerRequest) -> None:
        pass

    def fail(self, request: HttpServerRequest) -> None:
        raise LookupError

    def error(self, request: HttpServerRequest) -> None:
        request.send_error(404)

    def cancel(self, request: HttpServerRequest) -> None:
        request.cancel()

    def later(self, request: HttpServerRequest) -> None:
        Timer(self.base, self.reply, request).add(self.draw.random() * 0.03)

    def parts(self, request: HttpServerRequest) -> None:
        request.send_reply_start(200)
        self.more(request)

    def more(self, request: HttpServerRequest) -> None:
        if self.perhaps(0.05):
            raise LookupError
        if self.perhaps(0.3):
            request.send_reply_end()
        else:
            parts: list[bytes | EvBuffer] = [b"", b"y" * 50_000, EvBuffer(b"z" * 10)]
            part = self.draw.choice(parts)
            request.send_reply_chunk(part, self.more)

    def take_over(self, request: HttpServerRequest) -> None:
        bev = request.take_over()
        bev.setcb(lambda bev: bev.output.add_buffer(bev.input), None, lambda bev, _: bev.close())
        bev.enable(EV_READ)

    def close(self, request: HttpServerRequest) -> None:
        self.draw.choice([self.server, self.vhost, self.base]).close()

    ANSWERS: tuple[Callable[[World, HttpServerRequest], None], ...] = (
        *(reply, reply, reply, file, keep, keep, drop, fail, error, cancel, later, later),
        *(parts, parts, take_over, take_over),
    )

    # ---- what clients do ----

    def step(self) -> None:
        what = self.draw.random()
        if what < 0.3 and not self.server.closed:
            self.connect()
        elif self.clients and what < 0.8:
            data = self.draw.choice(REQUESTS) * self.draw.choice([1, 1, 1, 3, 10])
            if self.perhaps(0.2):
                data = data[: self.draw.randrange(len(data))]
            self.draw.choice(self.clients).send(data)
        elif self.clients and what < 0.9:
            self.draw.choice(self.clients).recv(100_000)
        elif self.clients and what < 0.95:
            if self.perhaps(0.3):
                self.draw.choice(self.clients).shutdown(socket.SHUT_WR)
            else:
                self.clients.pop(self.draw.randrange(len(self.clients))).close()
        elif self.kept and what < 0.98:
            one = self.kept.pop(self.draw.randrange(len(self.kept)))
            if isinstance(one, HttpServerRequest) and self.perhaps(0.5):
                self.reply(one)
        elif self.perhaps(0.3):
            self.draw.choice([self.server, self.vhost, self.base]).close()

    def connect(self) -> None:
        sock = socket.create_connection(self.address)
        sock.setblocking(False)
        if self.certificates and self.perhaps(0.9):
            sock = self.certificates.for_client().wrap_socket(
                sock, server_hostname="localhost", do_handshake_on_connect=False
            )
        self.clients.append(sock)

    def end(self) -> None:
        if self.perhaps(0.3):
            self.server.close()
        if self.perhaps(0.5):
            self.kept.clear()
        self.base.close()
        self.kept.clear()
        for client in self.clients:
            client.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tls.Certificates:
    return tls.Certificates(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("seed", range(20 * max(FUZZ, 1)))
def test_anything_may_happen(certificates: tls.Certificates, seed: int) -> None:
    world = World(seed, certificates if seed % 3 == 0 else None)
    for _ in range(150):
        with contextlib.suppress(OSError, ssl.SSLError, RuntimeError, ValueError, BufferError):
            world.step()
        few_rounds(world.base, world.draw.randrange(6))
    world.end()
