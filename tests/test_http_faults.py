"""An HttpServer that gets no memory, or no descriptors: each call that fails, one after the other.

What a client is owed it gets, or the end of its connection; the next one is served.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import tls
from common import few_rounds
from faults import Case, Fault, Faults, build, needs_faults

from pylibevent import (
    BufferEvent,
    ClosedError,
    EvBuffer,
    EventBase,
    HttpRequest,
    HttpServer,
    HttpServerRequest,
    TLSContext,
)
from pylibevent.wsgi import WSGIServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

pytestmark = needs_faults


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return build(tmp_path_factory.mktemp("faults"))


@contextlib.contextmanager
def serving(handler: Callable[[HttpServerRequest], object]) -> Iterator[HttpServer]:
    with EventBase() as base, HttpServer(base) as server:
        server.bind("127.0.0.1", 0)
        server.set_cb("/", handler)
        yield server


@contextlib.contextmanager
def connected(server: HttpServer) -> Iterator[socket.socket]:
    with socket.create_connection(server.bound_sockets[0].address, timeout=10) as sock:
        sock.setblocking(False)
        yield sock


END = b"<end>"
ASK = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"


def answer(server: HttpServer, sock: socket.socket, fault: Fault | None = None) -> bytes:
    """What is answered, until nothing happens any more; with END if the connection ends then."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(ASK)
    with fault.tolerated if fault else contextlib.nullcontext():
        few_rounds(server.base)
    few_rounds(server.base)
    data = b""
    try:
        while part := sock.recv(1 << 20):
            data += part
    except BlockingIOError:
        return data
    except ConnectionResetError:
        pass
    return data + END


def server(fault: Fault) -> None:
    with EventBase() as base:
        with fault:
            HttpServer(base).close()
        HttpServer(base).close()


def bind(fault: Fault) -> None:
    with EventBase() as base, HttpServer(base) as server:
        with fault:
            server.bind("127.0.0.1", 0)
        server.bind("127.0.0.1", 0)
        assert len(server.bound_sockets) == 1 + (fault.raised is None)


def settings(fault: Fault) -> None:
    with EventBase() as base, HttpServer(base) as server, HttpServer(base) as vhost, fault:
        server.set_cb("/a", print)
        server.del_cb("/a")
        server.set_gencb(print)
        server.set_gencb(None)
        server.add_server_alias("a")
        server.default_content_type = "text/plain"
        server.add_virtual_host("b", vhost)


def request(fault: Fault) -> None:
    with fault:
        request = HttpRequest(print)
        request.output_headers["A"] = "1"
        request.output_headers["A"] = "2"
        request.output_headers.extend([("B", "3"), ("B", "4")])
        assert list(request.output_headers.items()) == [("A", "2"), ("B", "3"), ("B", "4")]
        assert request.output_headers["A"] == "2"
        request.output_buffer.add(b"body")


def reply_by(handler: Callable[[HttpServerRequest], object], body: bytes) -> Case:
    """Whole replies are what a client gets, or none."""

    def case(fault: Fault) -> None:
        with serving(handler) as server:
            with connected(server) as sock:
                if handler is not error:  # which ends the connection
                    answer(server, sock)
                got = answer(server, sock, fault)
                assert body in got or got.endswith(END), got
            with connected(server) as sock:
                assert body in answer(server, sock)

    case.__name__ = f"reply_by_{handler.__name__}"
    return case


def accepted(fault: Fault) -> None:
    with serving(whole) as server:
        with connected(server) as sock:
            got = answer(server, sock, fault)
            assert b"a reply" in got or got.endswith(END), got
        with connected(server) as sock:
            assert b"a reply" in answer(server, sock)


def whole(request: HttpServerRequest) -> None:
    request.output_headers["X-A"] = request.headers["Host"]
    request.send_reply(200, None, b"a reply, " + request.read())


def buffer(request: HttpServerRequest) -> None:
    request.output_buffer.add(b"a reply")
    request.send_reply(200, None, EvBuffer(b" and more"))


def parts(request: HttpServerRequest) -> None:
    request.on_complete(print)
    request.send_reply_start(200)
    request.send_reply_chunk(b"one", more)


def more(request: HttpServerRequest) -> None:
    request.send_reply_chunk(EvBuffer(b"two"))
    request.send_reply_end()


def error(request: HttpServerRequest) -> None:
    request.send_error(404, "<Nothing>")


def gateway(fault: Fault) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", [("X-A", environ["HTTP_HOST"]), ("X-B", "1")])
        return [b"a reply, " + environ["wsgi.input"].read()]

    logging.getLogger("pylibevent.wsgi").disabled = True
    with EventBase() as base:
        server = WSGIServer(base, app)
        server.accept(socket.create_server(("127.0.0.1", 0)))
        with connected(server.http) as sock:
            answer(server.http, sock)
            got = answer(server.http, sock, fault)
            assert b"a reply, body" in got or got.endswith(END), got
        with connected(server.http) as sock:
            assert b"a reply, body" in answer(server.http, sock)


def kept(fault: Fault) -> None:
    """Answered later: until then the server looks at what else comes, which is bounded."""
    requests: list[HttpServerRequest] = []
    with serving(requests.append) as server, connected(server) as sock:
        answer(server, sock, fault)
        for request in requests:
            with contextlib.suppress(ClosedError):
                request.send_reply(200)
        requests.clear()
        got = answer(server, sock)
        assert got.startswith(b"HTTP/1.1 200 OK") or got == END, got


def refused(fault: Fault) -> None:
    with serving(whole) as server:
        with connected(server) as sock:
            sock.send(b"GET / HTTP/1.1\r\nno header\r\n")
            got = answer(server, sock, fault)
            assert b"400 Bad Request" in got or got == END, got
        with connected(server) as sock:
            assert b"a reply" in answer(server, sock)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tls.Certificates:
    return tls.Certificates(tmp_path_factory.mktemp("tls"))


def test_no_memory_for_a_connection_with_tls_costs_no_more_than_that(
    faults: Faults, certificates: tls.Certificates
) -> None:
    def case(fault: Fault) -> None:
        context = TLSContext(server_side=True)
        context.load_cert_chain(certificates.good)
        with serving(whole) as server:
            server.set_bevcb(lambda base: BufferEvent.openssl_socket(base, None, context))
            held = set(server.base._table)
            with connected(server), fault.tolerated:
                few_rounds(server.base)
            few_rounds(server.base)
            assert set(server.base._table) == held

    faults.each(case, tolerated=True)


@pytest.mark.parametrize("case", [server, bind, settings], ids=lambda case: case.__name__)
def test_no_memory_for_a_call_is_told(faults: Faults, case: Case) -> None:
    faults.each(case)


@pytest.mark.parametrize(
    "case",
    [
        accepted,
        kept,
        refused,
        reply_by(whole, b"a reply, body"),
        reply_by(buffer, b"a reply and more"),
        reply_by(parts, b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"),
        reply_by(error, b"&lt;Nothing&gt;"),
        gateway,
    ],
    ids=lambda case: case.__name__,
)
def test_no_memory_for_a_request_costs_that_connection_at_most(faults: Faults, case: Case) -> None:
    faults.each(case, tolerated=True)


def test_no_memory_for_a_request_of_a_client_is_told(faults: Faults) -> None:
    faults.each(request, tolerated=True)  # some is kept for what evhttp does not look at


def test_no_descriptors_for_a_server_are_told(faults: Faults) -> None:
    faults.each_room(bind)


def test_a_client_waits_until_there_are_descriptors(faults: Faults) -> None:
    def case(fault: Fault) -> None:
        with serving(whole) as server, connected(server) as sock:
            with fault.tolerated:
                few_rounds(server.base)
            for _ in range(100):
                if got := answer(server, sock):
                    break
                server.base.loopexit(0.05)
                server.base.dispatch()
            assert b"a reply" in got

    faults.each(case, "accept4", errno.EMFILE, tolerated=True)
