"""HttpConnection and the requests that it makes, against peers of every kind."""

from __future__ import annotations

import contextlib
import errno
import gc
import http.server
import os
import random
import resource
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from common import FUZZ, few_rounds, measures_memory
from conftest import RunUntil
from faults import NEVER, Fault, Faults, build, needs_faults
from processes import in_child, run
from tls import Certificates

from pylibevent import (
    DNS_ERR_NOTEXIST,
    EV_READ,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVDNS_TYPE_A,
    EVHTTP_CON_READ_ON_WRITE_ERROR,
    EVHTTP_CON_REUSE_CONNECTED_ADDR,
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_DELETE,
    EVHTTP_REQ_GET,
    EVHTTP_REQ_HEAD,
    EVHTTP_REQ_OPTIONS,
    EVHTTP_REQ_PATCH,
    EVHTTP_REQ_POST,
    EVHTTP_REQ_PUT,
    EVHTTP_REQ_TRACE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    EVREQ_HTTP_DATA_TOO_LONG,
    EVREQ_HTTP_EOF,
    EVREQ_HTTP_INVALID_HEADER,
    EVREQ_HTTP_REQUEST_CANCEL,
    EVREQ_HTTP_TIMEOUT,
    BufferEvent,
    ClosedError,
    DnsBase,
    DnsServerPort,
    EvBuffer,
    EventBase,
    HttpConnection,
    HttpError,
    HttpMethod,
    HttpRequest,
    HttpServer,
    HttpServerRequest,
    LibeventError,
    Listener,
    Timer,
    TLSContext,
    lib,
)

CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Link:
    """One connection, as the server has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")

    def read(self) -> bytes:
        """A whole request."""
        head = b""
        length = 0
        while line := self.file.readline():
            head += line
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            if line == b"\r\n":
                return head + self.file.read(length)
        return head

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, data: bytes = OK) -> bytes:
        request = self.read()
        self.send(data)
        return request

    def wait_for_the_end(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            return self.file.read()
        return b""

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class Peer:
    """A server in a thread, with a function for each connection that is to come."""

    def __init__(
        self, *connections: Callable[[Link], Any], family: int = socket.AF_INET, wrap: Any = None
    ) -> None:
        self.socket = socket.socket(family)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.socket.listen()
        self.socket.settimeout(20)
        self.port: int = self.socket.getsockname()[1]
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.peers: list[Any] = []
        self._connections = connections
        self._wrap = wrap
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for function in self._connections:
            try:
                sock, peer = self.socket.accept()
            except OSError:
                return
            sock.settimeout(20)
            self.peers.append(peer)
            try:
                if self._wrap:
                    sock = self._wrap(sock)
                link = Link(sock)
                try:
                    self.results.append(function(link))
                finally:
                    link.close()
            except OSError as error:
                self.errors.append(error)
                sock.close()

    @property
    def over(self) -> bool:
        return len(self.peers) == len(self._connections)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(20)


class Serve(Protocol):
    def __call__(self, *connections: Callable[[Link], Any], **options: Any) -> Peer: ...


@pytest.fixture
def serve() -> Iterator[Serve]:
    peers: list[Peer] = []

    def serve(*connections: Callable[[Link], Any], **options: Any) -> Peer:
        peers.append(Peer(*connections, **options))
        return peers[-1]

    yield serve
    for peer in peers:
        peer.close()


class Result:
    """A request, and what has become of it."""

    def __init__(self, base: EventBase, **more: Any) -> None:
        self.base = base
        self.calls: list[str] = []
        self.code = -1
        self.body = b""
        self.parts: list[bytes] = []
        options: dict[str, Any] = {"error": self.on_error} | more
        if options.get("chunked") is True:
            options["chunked"] = self.on_chunk
        self.request = HttpRequest(self.on_done, **options)

    def on_chunk(self, request: HttpRequest) -> None:
        self.calls.append("chunk")
        self.parts.append(request.read())

    def on_error(self, request: HttpRequest, error: HttpError) -> None:
        assert error == request.error
        self.calls.append("error")

    def on_done(self, request: HttpRequest) -> None:
        assert request is self.request
        self.calls.append("done")
        self.code = request.response_code
        self.body = request.read()

    def make(
        self, conn: HttpConnection, method: int = EVHTTP_REQ_GET, uri: str = "/", body: bytes = b""
    ) -> Result:
        if body:
            self.request.output_buffer.add(body)
        conn.make_request(self.request, method, uri)
        return self

    @property
    def error(self) -> HttpError | None:
        return self.request.error

    @property
    def over(self) -> bool:
        return self.request.done


class Fetch(Protocol):
    def __call__(
        self,
        conn: HttpConnection,
        method: int = EVHTTP_REQ_GET,
        uri: str = "/",
        body: bytes = b"",
        **options: Any,
    ) -> Result: ...


@pytest.fixture
def fetch(base: EventBase, run_until: RunUntil) -> Fetch:
    """Makes a request, and runs the loop until it is over."""

    def fetch(
        conn: HttpConnection,
        method: int = EVHTTP_REQ_GET,
        uri: str = "/",
        body: bytes = b"",
        **options: Any,
    ) -> Result:
        result = Result(base, **options).make(conn, method, uri, body)
        run_until(lambda: result.over, 20)
        return result

    return fetch


def connection(base: EventBase, peer: Peer, **options: Any) -> HttpConnection:
    return HttpConnection(base, "127.0.0.1", peer.port, **options)


def answers(*replies: bytes) -> Callable[[Link], list[bytes]]:
    """Answers with these, then waits until the client has gone."""

    def talk(link: Link) -> list[bytes]:
        requests = [link.answer(reply) for reply in replies]
        link.wait_for_the_end()
        return requests

    return talk


def answers_and_goes(*replies: bytes) -> Callable[[Link], list[bytes]]:
    return lambda link: [link.answer(reply) for reply in replies]


# ---- a request and its reply ----


def test_a_request_gets_its_reply(base: EventBase, serve: Serve, fetch: Fetch) -> None:
    peer = serve(answers(b"HTTP/1.1 201 Made it\r\nContent-Length: 5\r\nA: b\r\n\r\nhello"))
    with connection(base, peer) as conn:
        result = fetch(conn, EVHTTP_REQ_GET, "/path?q=1")
    request = result.request
    assert (result.code, result.body, result.calls) == (201, b"hello", ["done"])
    assert (request.response_code, request.response_code_line) == (201, "Made it")
    assert list(request.headers.items()) == [("Content-Length", "5"), ("A", "b")]
    assert (request.method, request.command, request.uri) == (EVHTTP_REQ_GET, "GET", "/path?q=1")
    assert request.version == (1, 1)
    assert (request.error, request.exception) == (None, None)
    peer.close()
    assert peer.results[0][0].splitlines() == [
        b"GET /path?q=1 HTTP/1.1",
        b"Host: 127.0.0.1:%d" % peer.port,
        b"",
    ]


def test_the_callback_gets_the_arguments_and_so_do_the_others(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(OK), lambda link: None)
    seen: list[Any] = []
    with connection(base, peer) as conn:
        request = HttpRequest(
            lambda *args: seen.append(("done", args[1:])),
            1,
            "two",
            header=lambda *args: seen.append(("header", args[1:])),
            chunked=lambda *args: seen.append(("chunk", args[1:])),
        )
        conn.make_request(request)
        run_until(lambda: request.done)
        peer.socket.close()
        conn.close()
    assert seen == [(what, (1, "two")) for what in ("header", "chunk", "done")]
    with HttpConnection(base, "127.0.0.1", 1) as conn:
        request = HttpRequest(
            lambda *args: seen.append(args[1:]), 3, error=lambda *args: seen.append(args[1:])
        )
        conn.make_request(request)
        run_until(lambda: request.done)
    assert seen[-2:] == [(EVREQ_HTTP_EOF, 3), (3,)]


def test_requests_are_made_one_after_the_other_on_one_connection(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(
        answers(*[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % i for i in range(5)])
    )
    with connection(base, peer) as conn:
        results = [Result(base).make(conn, uri=f"/{i}") for i in range(5)]
        run_until(lambda: results[-1].over)
        assert conn.connected
    assert [result.body for result in results] == [b"0", b"1", b"2", b"3", b"4"]
    peer.close()
    assert [request.split()[1] for request in peer.results[0]] == [
        b"/0",
        b"/1",
        b"/2",
        b"/3",
        b"/4",
    ]


@pytest.mark.parametrize(
    ("method", "has_length"),
    [
        (EVHTTP_REQ_GET, False),
        (EVHTTP_REQ_DELETE, False),
        (EVHTTP_REQ_OPTIONS, False),
        (EVHTTP_REQ_TRACE, False),
        (EVHTTP_REQ_POST, True),
        (EVHTTP_REQ_PUT, True),
        (EVHTTP_REQ_PATCH, True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_each_method_is_sent_and_those_with_a_body_have_its_length(
    base: EventBase, serve: Serve, fetch: Fetch, method: HttpMethod, has_length: bool
) -> None:
    peer = serve(answers(OK))
    with connection(base, peer) as conn:
        assert fetch(conn, method, "*").code == 200
    peer.close()
    sent = peer.results[0][0]
    assert sent.startswith(
        str(method.name).removeprefix("EVHTTP_REQ_").encode() + b" * HTTP/1.1\r\n"
    )
    assert (b"Content-Length: 0\r\n" in sent) == has_length


@pytest.mark.parametrize("method", [EVHTTP_REQ_GET, EVHTTP_REQ_POST, EVHTTP_REQ_DELETE])
def test_a_body_is_sent_with_its_length_whatever_the_method(
    base: EventBase, serve: Serve, fetch: Fetch, method: HttpMethod
) -> None:
    body = os.urandom(300_000)
    peer = serve(answers(OK))
    with connection(base, peer) as conn:
        result = fetch(conn, method, body=body)
        assert result.code == 200
    peer.close()
    head, _, sent = peer.results[0][0].partition(b"\r\n\r\n")
    assert sent == body
    assert head.count(b"Content-Length: 300000") == 1


def test_headers_are_sent_in_order_and_with_repeats(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(OK))
    with connection(base, peer) as conn:
        result = Result(base)
        headers = result.request.output_headers
        for name, value in [("B", "1"), ("Host", "example.org"), ("A", "2"), ("b", "3")]:
            headers.add(name, value)
        result.make(conn)
        base.dispatch() if result.over else None
        while not result.over:
            base.loop(1)
    peer.close()
    assert peer.results[0][0].splitlines()[1:-1] == [
        b"B: 1",
        b"Host: example.org",
        b"A: 2",
        b"b: 3",
    ]


@pytest.mark.parametrize(
    ("method", "uri", "host"),
    [
        (EVHTTP_REQ_CONNECT, "example.org:443", b"example.org:443"),
        (EVHTTP_REQ_GET, "http://example.org/x", b"example.org"),
        (EVHTTP_REQ_GET, "http://example.org:81/x?a://b", b"example.org:81"),
        (EVHTTP_REQ_GET, "/x?http://example.org/", None),
    ],
)
def test_the_host_header_is_that_of_the_uri_or_of_the_connection(
    base: EventBase, serve: Serve, fetch: Fetch, method: int, uri: str, host: bytes | None
) -> None:
    peer = serve(answers(OK))
    with connection(base, peer) as conn:
        fetch(conn, method, uri)
    peer.close()
    wanted = host or b"127.0.0.1:%d" % peer.port
    assert b"Host: %s\r\n" % wanted in peer.results[0][0]


def test_a_file_is_sent_as_the_body(
    base: EventBase, serve: Serve, run_until: RunUntil, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"0123456789" * 10_000)
    peer = serve(answers(OK))
    with connection(base, peer) as conn, path.open("rb") as file:
        result = Result(base)
        result.request.output_buffer.add_file(file)
        result.make(conn, EVHTTP_REQ_PUT)
        run_until(lambda: result.over)
    peer.close()
    assert peer.results[0][0].endswith(b"\r\n\r\n" + path.read_bytes())


# ---- bodies of replies ----


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (CHUNKED + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n", None),
        (CHUNKED + b"3 \r\nabc\r\n0\r\nTrailer: yes\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx", b"x"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)
def test_a_body_ends_where_its_headers_say(
    base: EventBase, serve: Serve, fetch: Fetch, reply: bytes, body: bytes | None
) -> None:
    peer = serve(answers(reply))
    with connection(base, peer) as conn:
        result = fetch(conn)
    if body is None:  # an extension of a chunk: 2.1.12 takes none
        assert result.error == EVREQ_HTTP_DATA_TOO_LONG
    else:
        assert (result.code, result.body) == (200, body)


def test_trailers_are_no_headers(base: EventBase, serve: Serve, fetch: Fetch) -> None:
    peer = serve(answers(CHUNKED + b"1\r\na\r\n0\r\nSum: 97\r\n\r\n", OK))
    with connection(base, peer) as conn:
        result = fetch(conn)
        assert list(result.request.headers) == ["Transfer-Encoding"]
        assert result.body == b"a"
        assert fetch(conn).body == b"ok"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_a_body_without_a_length_ends_with_the_connection(
    base: EventBase, serve: Serve, fetch: Fetch, head: bytes
) -> None:
    peer = serve(answers_and_goes(head + b"x" * 100_000), answers(OK))
    with connection(base, peer) as conn:
        result = fetch(conn)
        assert (result.code, len(result.body)) == (200, 100_000)
        assert fetch(conn).body == b"ok"


@pytest.mark.parametrize(
    ("method", "reply", "code"),
    [
        (EVHTTP_REQ_HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200),
        (EVHTTP_REQ_HEAD, CHUNKED, 200),
        (EVHTTP_REQ_GET, b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (EVHTTP_REQ_GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n", 304),
    ],
)
def test_what_has_no_body_is_over_after_its_headers(
    base: EventBase, serve: Serve, fetch: Fetch, method: int, reply: bytes, code: int
) -> None:
    peer = serve(answers(reply, OK))
    with connection(base, peer) as conn:
        result = fetch(conn, method)
        assert (result.code, result.body) == (code, b"")
        assert fetch(conn).body == b"ok"
    assert len(peer.peers) == 1


@pytest.mark.parametrize("code", [100, 102, 103])
def test_a_reply_of_1xx_is_not_the_last_word(
    base: EventBase, serve: Serve, fetch: Fetch, code: int
) -> None:
    peer = serve(answers(b"HTTP/1.1 %d Wait\r\nLink: x\r\n\r\n" % code * 3 + OK, OK))
    with connection(base, peer) as conn:
        headers: list[Any] = []
        result = fetch(conn, header=lambda request: headers.append(request.response_code))
        assert (result.code, result.body, headers) == (200, b"ok", [200])
        assert "Link" not in result.request.headers
        assert fetch(conn).body == b"ok"


def test_replies_of_1xx_without_an_end_end_the_request(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000))
    with connection(base, peer) as conn:
        assert fetch(conn).error == EVREQ_HTTP_DATA_TOO_LONG


def test_a_body_waits_for_100_continue(base: EventBase, serve: Serve, fetch: Fetch) -> None:
    def talk(link: Link) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += link.file.readline()
        link.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.sock.recv(1)
        link.sock.settimeout(20)
        link.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = link.sock.makefile("rb").read(4)
        link.send(OK)
        link.wait_for_the_end()
        return body

    peer = serve(talk)
    with connection(base, peer) as conn:
        result = Result(base)
        result.request.output_headers["Expect"] = "100-continue"
        result.make(conn, EVHTTP_REQ_POST, body=b"body")
        while not result.over:
            base.loop(1)
        assert result.body == b"ok"
    peer.close()
    assert peer.results == [b"body"]


def test_an_upgraded_connection_is_not_used_for_another_request(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    peer = serve(answers(upgrade), answers(OK))
    with connection(base, peer) as conn:
        assert fetch(conn).code == 101
        assert fetch(conn).body == b"ok"
    assert len(peer.peers) == 2


# ---- streams ----


def test_a_body_comes_in_parts_to_the_chunked_callback(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    with connection(base, peer) as conn:
        result = fetch(conn, chunked=True)
    assert (result.parts, result.body) == ([b"abc", b"de"], b"")
    assert result.calls == ["chunk", "chunk", "done"]


@pytest.mark.parametrize("length", [b"Content-Length: 10000000\r\n", b""])
def test_a_body_with_a_length_or_without_one_is_streamed_too(
    base: EventBase, serve: Serve, fetch: Fetch, length: bytes
) -> None:
    body = os.urandom(10_000_000)
    peer = serve(answers_and_goes(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body))
    with connection(base, peer) as conn:
        result = fetch(conn, chunked=True)
    assert b"".join(result.parts) == body
    assert len(result.parts) > 10


def test_what_the_chunked_callback_leaves_is_gone(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    lengths: list[int] = []
    with connection(base, peer) as conn:
        result = fetch(conn, chunked=lambda request: lengths.append(len(request.input_buffer)))
    assert (lengths, result.body) == ([3, 2], b"")


def test_a_part_may_be_kept_and_looked_at_later(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    buffers: list[EvBuffer] = []
    views: list[memoryview] = []

    def keep(request: HttpRequest) -> None:
        buffers.append(request.input_buffer)
        views.extend(request.input_buffer.peek())

    with connection(base, peer) as conn:
        fetch(conn, chunked=keep)
    assert [bytes(view) for view in views] == [b"abc", b"de"]
    for view in views:
        view.release()
    assert [bytes(buffer) for buffer in buffers] == [b"abc", b"de"]
    for buffer in buffers:
        buffer.close()


@measures_memory
def test_a_stream_of_any_length_needs_little_memory(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    def talk(link: Link) -> None:
        link.read()
        link.send(CHUNKED)
        for _ in range(3200):  # 200 MiB
            link.send(chunk)
        link.send(b"0\r\n\r\n")
        link.wait_for_the_end()

    peer = serve(talk)
    total, most = 0, 0

    def count(request: HttpRequest) -> None:
        nonlocal total, most
        total += len(request.input_buffer)
        most = max(most, resident())

    before = resident()
    with connection(base, peer) as conn:
        assert fetch(conn, chunked=count).code == 200
    assert total == 3200 * 65536
    assert most - before < 32 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# ---- headers ----


@pytest.mark.parametrize("answer", [False, -1])
def test_the_header_callback_may_give_a_reply_up(
    base: EventBase, serve: Serve, fetch: Fetch, answer: object
) -> None:
    peer = serve(answers(OK), answers(OK))
    with connection(base, peer) as conn:
        result = fetch(conn, header=lambda request: answer)
        assert (result.code, result.error, result.calls) == (0, EVREQ_HTTP_EOF, ["error", "done"])
        assert fetch(conn).code == 200


@pytest.mark.parametrize("answer", [None, True, 0, 1, "x"])
def test_other_answers_of_the_header_callback_go_on(
    base: EventBase, serve: Serve, fetch: Fetch, answer: object
) -> None:
    peer = serve(answers(OK))
    with connection(base, peer) as conn:
        assert fetch(conn, header=lambda request: answer).body == b"ok"


def test_the_header_callback_sees_the_head_and_no_body(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(OK))
    seen: list[Any] = []
    with connection(base, peer) as conn:
        result = fetch(
            conn,
            header=lambda request: seen.append(
                (request.response_code, request.headers["content-length"], request.read())
            ),
        )
    assert seen == [(200, "2", b"")]
    assert result.body == b"ok"


# ---- what is wrong is refused before it is sent ----


@pytest.mark.parametrize(
    "uri", ["", "/a b", "/a\r\nX: y", "/\n", "/\0", "/\t", "/\x7f", "/ HTTP/1.1", "/\u20ac"]
)
def test_a_uri_that_would_break_the_request_is_a_value_error(base: EventBase, uri: str) -> None:
    with HttpConnection(base, "127.0.0.1", 1) as conn:
        request = HttpRequest(print)
        with pytest.raises(ValueError, match="URI"):
            conn.make_request(request, EVHTTP_REQ_GET, uri)
        assert request.connection is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", "b\r\nX: y"),
        ("A", "b\n"),
        ("A", "b\0"),
        ("A\r\nX", "b"),
        ("A b", "c"),
        ("", "x"),
        ("A:", "b"),
    ],
)
def test_a_header_that_would_break_the_request_is_a_value_error(name: str, value: str) -> None:
    headers = HttpRequest(print).output_headers
    with pytest.raises(ValueError, match="header"):
        headers[name] = value
    with pytest.raises(ValueError, match="header"):
        headers.add(name, value)
    assert not headers


@pytest.mark.parametrize("method", [0, -1, 3, 1 << 20])
def test_a_method_that_is_none_is_a_value_error(base: EventBase, method: int) -> None:
    with (
        HttpConnection(base, "127.0.0.1", 1) as conn,
        pytest.raises(ValueError, match="method"),
    ):
        conn.make_request(HttpRequest(print), method)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Length", "5"),
        ("Content-Length", "-1"),
        ("Content-Length", "+4"),
        ("Transfer-Encoding", "chunked"),
    ],
)
def test_headers_that_are_at_odds_with_the_body_are_a_value_error(
    base: EventBase, name: str, value: str
) -> None:
    with HttpConnection(base, "127.0.0.1", 1) as conn:
        request = HttpRequest(print)
        request.output_buffer.add(b"body")
        request.output_headers[name] = value
        with pytest.raises(ValueError, match=name):
            conn.make_request(request, EVHTTP_REQ_POST)
        request.output_headers.clear()
        conn.make_request(request, EVHTTP_REQ_POST)
        request.cancel()


def test_arguments_of_the_wrong_kind_are_type_errors(base: EventBase) -> None:
    with HttpConnection(base, "127.0.0.1", 1) as conn:
        with pytest.raises(TypeError, match="request"):
            conn.make_request("GET")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="uri"):
            conn.make_request(HttpRequest(print), EVHTTP_REQ_GET, b"/")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="callable"):
            conn.set_closecb(1)  # type: ignore[arg-type]
    for option in ("chunked", "header", "error"):
        with pytest.raises(TypeError, match=option):
            HttpRequest(print, **{option: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="host"):
        HttpConnection(base, b"localhost", 80)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="base"):
        HttpConnection(None, "localhost", 80)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dns"):
        HttpConnection(base, "localhost", 80, dns=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"host": ""},
        {"host": "a b\0"},
        {"host": "x" * 300},
        {"port": 0},
        {"port": 65536},
        {"timeout": 0},
        {"timeout": -1},
        {"retries": -2},
        {"initial_retry": -1},
        {"local_address": "localhost"},
        {"local_port": 65536},
        {"family": 77},
        {"max_headers_size": -1},
        {"max_body_size": -1},
        {"flags": 1 << 20},
    ],
    ids=str,
)
def test_values_out_of_range_are_value_errors(base: EventBase, options: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"host": "localhost", "port": 80} | options
    with pytest.raises(ValueError, match=r".+"):
        HttpConnection(base, **arguments)
    assert not base._table


def test_what_is_set_can_be_read(base: EventBase) -> None:
    with HttpConnection(base, "[::1]", 8080) as conn:
        assert conn.peer == ("::1", 8080)
        assert (conn.base, conn.address, conn.connected, conn.tls) == (base, None, False, None)
        assert (conn.timeout, conn.retries, conn.initial_retry) == (None, 0, 2.0)
        assert (conn.local_address, conn.local_port, conn.family) == (None, 0, socket.AF_UNSPEC)
        assert (conn.max_headers_size, conn.max_body_size, conn.flags) == (65536, 64 << 20, 0)
        conn.timeout, conn.retries, conn.initial_retry = 1.5, -1, 0.5
        conn.local_address, conn.local_port, conn.family = "::1", 5, socket.AF_INET6
        conn.max_headers_size, conn.max_body_size = 100, None
        conn.flags = EVHTTP_CON_REUSE_CONNECTED_ADDR
        assert (conn.timeout, conn.retries, conn.initial_retry) == (1.5, -1, 0.5)
        assert (conn.local_address, conn.local_port, conn.family) == ("::1", 5, socket.AF_INET6)
        assert (conn.max_headers_size, conn.max_body_size) == (100, None)
        assert conn.flags == EVHTTP_CON_REUSE_CONNECTED_ADDR
        assert "::1:8080" in repr(conn)
        with pytest.raises(ClosedError):
            _ = conn.ptr
    assert "closed" in repr(conn)


def test_a_request_is_made_once(base: EventBase) -> None:
    with HttpConnection(base, "127.0.0.1", 1) as conn, HttpConnection(base, "::1", 1) as other:
        request = HttpRequest(print)
        conn.make_request(request)
        for one in (conn, other):
            with pytest.raises(RuntimeError, match="once"):
                one.make_request(request)


def test_a_request_that_a_server_has_got_is_not_made(base: EventBase, run_until: RunUntil) -> None:
    def forward(request: HttpServerRequest) -> None:
        with pytest.raises(RuntimeError, match="client"):
            conn.make_request(request)
        assert len(request.output_headers) == 0
        request.send_reply(200)

    with HttpServer(base) as server:
        server.set_gencb(forward)
        with HttpConnection(base, *server.bind("127.0.0.1", 0).address) as conn:
            request = HttpRequest(lambda _: None)
            conn.make_request(request)
            run_until(lambda: request.done)
            assert request.response_code == 200


def test_a_body_that_is_looked_at_is_not_taken(base: EventBase) -> None:
    with HttpConnection(base, "127.0.0.1", 1) as conn:
        request = HttpRequest(print)
        request.output_buffer.add(b"body")
        (view,) = request.output_buffer.peek()
        with pytest.raises(BufferError):
            conn.make_request(request)
        assert request.connection is None
        view.release()
        conn.make_request(request)
        assert request.connection is conn


# ---- failures ----


def test_a_refused_connection_fails_the_request(base: EventBase, fetch: Fetch) -> None:
    with HttpConnection(base, "127.0.0.1", unused_port()) as conn:
        result = fetch(conn)
    assert (result.code, result.error, result.calls) == (0, EVREQ_HTTP_EOF, ["error", "done"])
    assert isinstance(result.request.exception, ConnectionRefusedError)


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_refused_connection_fails_all_that_wait(base: EventBase, run_until: RunUntil) -> None:
    with HttpConnection(base, "127.0.0.1", unused_port()) as conn:
        results = [Result(base).make(conn) for _ in range(3)]
        run_until(lambda: all(result.over for result in results))
        assert [result.error for result in results] == [EVREQ_HTTP_EOF] * 3


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", EVREQ_HTTP_EOF),
        (b"HTTP/1.1 200 OK\r\nContent-Len", EVREQ_HTTP_EOF),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", EVREQ_HTTP_EOF),
        (CHUNKED + b"10\r\n12345", EVREQ_HTTP_EOF),
        (CHUNKED + b"5\r\n12345\r\n", EVREQ_HTTP_EOF),
        (CHUNKED + b"5\r\n12345\r\n0\r\n", EVREQ_HTTP_EOF),
        (b"HTTP/1.1 100 Continue\r\n\r\n", EVREQ_HTTP_EOF),
    ],
)
def test_a_reply_that_is_cut_off_fails_the_request(
    base: EventBase, serve: Serve, fetch: Fetch, reply: bytes, error: HttpError
) -> None:
    peer = serve(answers_and_goes(reply), answers(OK))
    with connection(base, peer) as conn:
        result = fetch(conn)
        assert (result.code, result.error, result.request.response_code) == (0, error, 0)
        assert fetch(conn).body == b"ok"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"garbage\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"\0" * 100 + b"\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"SSH-2.0-x\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/2.0 200 OK\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 OK\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 2xx OK\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 -5 OK\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 99999 OK\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nok", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nok", EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 10**30, EVREQ_HTTP_INVALID_HEADER),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
            EVREQ_HTTP_INVALID_HEADER,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
            EVREQ_HTTP_INVALID_HEADER,
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", EVREQ_HTTP_INVALID_HEADER),
        (
            b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n",
            EVREQ_HTTP_INVALID_HEADER,
        ),
        (CHUNKED + b"xyz\r\n", EVREQ_HTTP_DATA_TOO_LONG),
        (CHUNKED + b"-5\r\nabcde\r\n", EVREQ_HTTP_DATA_TOO_LONG),
        (CHUNKED + b"7fffffffffffffff\r\n", EVREQ_HTTP_DATA_TOO_LONG),
        (CHUNKED + b"ffffffffffffffff\r\n", EVREQ_HTTP_DATA_TOO_LONG),
        (CHUNKED + b"ffffffffffffffffffffffff\r\n", EVREQ_HTTP_DATA_TOO_LONG),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * 20_000, EVREQ_HTTP_DATA_TOO_LONG),
        (CHUNKED + b"1" * 100_000, EVREQ_HTTP_DATA_TOO_LONG),
        (b"H" * 100_000, EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, EVREQ_HTTP_INVALID_HEADER),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000, EVREQ_HTTP_INVALID_HEADER),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (65 << 20),
            EVREQ_HTTP_DATA_TOO_LONG,
        ),
        (CHUNKED + b"%x\r\n" % (65 << 20), EVREQ_HTTP_DATA_TOO_LONG),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_reply_that_is_none_fails_the_request_and_the_next_one_is_made_anew(
    base: EventBase, serve: Serve, fetch: Fetch, reply: bytes, error: HttpError
) -> None:
    """All of these keep the connection open, and would go on for ever."""
    peer = serve(answers(reply), answers(OK))
    with connection(base, peer) as conn:
        result = fetch(conn)
        assert (result.code, result.error, result.calls) == (0, error, ["error", "done"])
        assert fetch(conn).body == b"ok"


def mutated(rng: random.Random) -> bytes:
    reply = bytearray(
        rng.choice(
            [
                OK,
                CHUNKED + b"3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nbody",
                b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 3\r\n\r\nabc",
            ]
        )
    )
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(reply) + 1)
        match rng.randrange(4):
            case 0:
                reply[at : at + 1] = rng.randbytes(1)
            case 1:
                reply[at:at] = rng.choice([b"\r\n", b"\n", b"\0", b":", b" ", b"-", b"f" * 20])
            case 2:
                del reply[at : at + rng.randrange(1, 20)]
            case _:
                reply[at:at] = reply[rng.randrange(len(reply) + 1) :]
    return bytes(reply[:20_000])


@pytest.mark.parametrize("seed", range(1 + FUZZ))
def test_each_request_ends_whatever_the_server_says(
    base: EventBase, serve: Serve, fetch: Fetch, seed: int
) -> None:
    rng = random.Random(seed)
    peer = serve(*[answers_and_goes(mutated(rng)) for _ in range(500)])
    with connection(base, peer, timeout=20) as conn:
        codes = set()
        while not peer.over:
            result = fetch(conn, chunked=rng.choice([None, True]))
            assert (result.code == 0) == (result.error is not None)
            codes.add(result.code)
    assert {0, 200} <= codes


@measures_memory
def test_what_comes_while_a_request_is_sent_is_bounded(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    def talk(link: Link) -> None:
        link.sock.recv(1)
        for _ in range(2000):
            link.send(b"x" * 100_000)

    peer = serve(talk)
    before = resident()
    with connection(base, peer, max_body_size=1_000_000) as conn:
        result = fetch(conn, EVHTTP_REQ_POST, body=b"x" * 20_000_000)
        assert result.error == EVREQ_HTTP_DATA_TOO_LONG
    assert resident() - before < 64 << 20


@pytest.mark.parametrize("chunked", [None, True])
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100,
        CHUNKED + b"32\r\n" + b"x" * 50 + b"\r\n32\r\n" + b"x" * 50 + b"\r\n0\r\n\r\n",
    ],
)
def test_max_body_size_is_the_bodys_however_it_comes(
    base: EventBase, serve: Serve, fetch: Fetch, reply: bytes, chunked: bool | None
) -> None:
    peer = serve(answers_and_goes(reply), answers_and_goes(reply))
    with connection(base, peer, max_body_size=99) as conn:
        assert fetch(conn, chunked=chunked).error == EVREQ_HTTP_DATA_TOO_LONG
        conn.max_body_size = 100
        assert fetch(conn, chunked=chunked).code == 200


def test_max_headers_size_is_the_heads(base: EventBase, serve: Serve, fetch: Fetch) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: %s\r\n\r\nok" % (b"x" * 1000)
    peer = serve(answers(reply), answers(reply))
    with connection(base, peer, max_headers_size=1000) as conn:
        assert fetch(conn).error == EVREQ_HTTP_INVALID_HEADER
        conn.max_headers_size = 2000
        assert fetch(conn).body == b"ok"


def test_a_peer_that_resets_fails_the_request(base: EventBase, serve: Serve, fetch: Fetch) -> None:
    def talk(link: Link) -> None:
        link.read()
        link.reset()

    peer = serve(talk, answers(OK))
    with connection(base, peer) as conn:
        assert fetch(conn).error == EVREQ_HTTP_EOF
        assert fetch(conn).code == 200


def test_a_peer_that_says_nothing_fails_the_request_after_the_timeout(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(lambda link: link.wait_for_the_end(), answers(OK))
    with connection(base, peer, timeout=0.1) as conn:
        result = fetch(conn)
        assert (result.error, result.code) == (EVREQ_HTTP_TIMEOUT, 0)
        assert fetch(conn).code == 200


@pytest.fixture
def full() -> Iterator[int]:
    """A port that nobody accepts at any more: connecting there takes for ever."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


def test_connecting_ends_with_the_timeout(base: EventBase, fetch: Fetch, full: int) -> None:
    with HttpConnection(base, "127.0.0.1", full, timeout=0.1) as conn:
        result = fetch(conn)
    assert result.error == EVREQ_HTTP_TIMEOUT
    assert isinstance(result.request.exception, TimeoutError)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        CHUNKED + b"5\r\n123",
    ],
)
def test_with_read_on_write_error_a_reply_cut_off_still_ends_the_request(
    base: EventBase, serve: Serve, fetch: Fetch, reply: bytes
) -> None:
    """evhttp, left alone, waits for the rest when nothing comes any more."""
    peer = serve(answers_and_goes(reply))
    with connection(base, peer, flags=EVHTTP_CON_READ_ON_WRITE_ERROR) as conn:
        assert fetch(conn).error == EVREQ_HTTP_EOF


def test_with_read_on_write_error_an_early_answer_to_a_large_body_is_read(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    def talk(link: Link) -> None:
        link.sock.recv(1000)
        link.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        link.sock.shutdown(socket.SHUT_RD)
        link.wait_for_the_end()

    peer = serve(talk)
    with connection(base, peer, flags=EVHTTP_CON_READ_ON_WRITE_ERROR, timeout=5) as conn:
        result = fetch(conn, EVHTTP_REQ_POST, body=b"x" * 20_000_000)
        assert result.error is None or result.error in (EVREQ_HTTP_EOF, EVREQ_HTTP_TIMEOUT)
        assert result.error is not None or (result.code, result.body) == (413, b"no")


# ---- retries and addresses ----


def test_connecting_is_tried_again(base: EventBase, run_until: RunUntil) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with HttpConnection(base, "127.0.0.1", port, retries=10, initial_retry=0.01) as conn:
            result = Result(base).make(conn)
            Timer(base, listener.listen).add(0.05)
            accepted: list[socket.socket] = []

            def accept() -> None:
                listener.setblocking(False)
                with contextlib.suppress(BlockingIOError, OSError):
                    sock, _ = listener.accept()
                    sock.sendall(OK)
                    accepted.append(sock)

            timer = Timer(base, accept, persist=True)
            timer.add(0.01)
            run_until(lambda: result.over, 20)
            timer.close()
            assert result.body == b"ok"
            for sock in accepted:
                sock.close()


def test_retries_come_to_an_end(base: EventBase, fetch: Fetch) -> None:
    with HttpConnection(base, "127.0.0.1", unused_port(), retries=3, initial_retry=0.001) as conn:
        result = fetch(conn)
        assert (result.error, result.calls) == (EVREQ_HTTP_EOF, ["error", "done"])


def test_a_request_that_was_sent_is_not_sent_again(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers_and_goes(b""), answers(OK))
    with connection(base, peer, retries=5, initial_retry=0.001) as conn:
        assert fetch(conn).error == EVREQ_HTTP_EOF
        assert len(peer.peers) == 1
        assert fetch(conn).body == b"ok"


def test_a_name_with_several_addresses_is_tried_with_each(
    base: EventBase, serve: Serve, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = serve(answers(OK))
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, peer.port))
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args: found)
    with HttpConnection(base, "somewhere.example", peer.port) as conn:
        assert fetch(conn).body == b"ok"
        assert conn.address == ("127.0.0.1", peer.port)


def test_ipv6_and_the_families(base: EventBase, serve: Serve, fetch: Fetch) -> None:
    peer = serve(answers(OK), answers(OK), family=socket.AF_INET6)
    with HttpConnection(base, "::1", peer.port) as conn:
        assert fetch(conn).body == b"ok"
    with HttpConnection(base, "::1", peer.port, family=socket.AF_INET) as conn:
        assert fetch(conn).error == EVREQ_HTTP_EOF
    with HttpConnection(base, "::1", peer.port, family=socket.AF_INET6) as conn:
        assert fetch(conn).body == b"ok"
    peer.close()
    assert b"Host: [::1]:%d\r\n" % peer.port in peer.results[0][0]


def test_it_connects_from_the_local_address_and_port(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(OK), answers(OK))
    with connection(base, peer, local_address="127.0.0.9") as conn:
        assert fetch(conn).code == 200
    port = unused_port()
    with connection(base, peer, local_port=port) as conn:
        assert fetch(conn).code == 200
    peer.close()
    assert peer.peers[0][0] == "127.0.0.9"
    assert peer.peers[1] == ("127.0.0.1", port)


def test_a_local_address_that_is_not_ours_fails_the_request(base: EventBase, fetch: Fetch) -> None:
    with HttpConnection(base, "127.0.0.1", 1, local_address="192.0.2.1") as conn:
        result = fetch(conn)
        assert result.error == EVREQ_HTTP_EOF
        assert isinstance(result.request.exception, OSError)


# ---- the connection's life ----


def test_the_next_request_after_the_server_has_closed_connects_again(
    base: EventBase, serve: Serve, fetch: Fetch, run_until: RunUntil
) -> None:
    peer = serve(answers_and_goes(OK), answers(OK))
    closed: list[Any] = []
    with connection(base, peer) as conn:
        conn.set_closecb(lambda *args: closed.append(args), "x")
        assert fetch(conn).code == 200
        run_until(lambda: closed)
        assert closed == [(conn, "x")]
        assert not conn.connected
        assert fetch(conn).code == 200
        conn.set_closecb(None)
    assert len(closed) == 1
    assert len(peer.peers) == 2


def test_a_connection_that_the_server_has_just_closed_is_not_used(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    """The end is there to be read, but the loop has not seen it yet."""
    gone = threading.Event()

    def talk(link: Link) -> None:
        link.answer(OK)
        link.close()
        gone.set()

    peer = serve(talk, answers(OK))
    with connection(base, peer) as conn:
        second = Result(base)

        def then(request: HttpRequest) -> None:
            gone.wait(20)
            second.make(conn)

        conn.make_request(HttpRequest(then))
        run_until(lambda: second.over)
        assert second.body == b"ok"


def test_what_comes_behind_a_reply_is_not_the_answer_to_the_next_request(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    peer = serve(answers(OK + evil), answers(OK))
    with connection(base, peer) as conn:
        assert fetch(conn).body == b"ok"
        assert fetch(conn).body == b"ok"
    assert len(peer.peers) == 2


def test_a_reply_that_nobody_has_asked_for_is_not_the_answer_to_the_next_request(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    sent = threading.Event()

    def talk(link: Link) -> None:
        link.answer(OK)
        link.send(OK.replace(b"ok", b"no"))
        sent.set()
        link.wait_for_the_end()

    peer = serve(talk, answers(OK))
    with connection(base, peer) as conn:
        assert fetch(conn).body == b"ok"
        assert sent.wait(20)
        assert fetch(conn).body == b"ok"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: te\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: TE , Close\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: te\r\nConnection: close\r\n",
    ],
)
def test_a_connection_that_will_be_closed_is_not_used_again(
    base: EventBase, serve: Serve, run_until: RunUntil, head: bytes
) -> None:
    peer = serve(answers(head + b"Content-Length: 2\r\n\r\nok"), answers(OK))
    with connection(base, peer) as conn:
        first, second = Result(base).make(conn), Result(base).make(conn)
        run_until(lambda: second.over)
        assert (first.body, second.body) == (b"ok", b"ok")
    assert len(peer.peers) == 2


@pytest.mark.parametrize(
    "head", [b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", b"HTTP/1.1 200 OK\r\nConnection: closed"]
)
def test_a_connection_that_stays_open_is_used_again(
    base: EventBase, serve: Serve, run_until: RunUntil, head: bytes
) -> None:
    peer = serve(answers(head + b"\r\nContent-Length: 2\r\n\r\nok", OK))
    with connection(base, peer) as conn:
        first, second = Result(base).make(conn), Result(base).make(conn)
        run_until(lambda: second.over)
        assert (first.body, second.body) == (b"ok", b"ok")
    assert len(peer.peers) == 1


@pytest.mark.parametrize("side", ["client", "server"])
def test_connection_close_is_heeded(
    base: EventBase, serve: Serve, run_until: RunUntil, side: str
) -> None:
    peer = serve(answers(OK if side == "client" else CLOSING), answers(OK))
    with connection(base, peer) as conn:
        first, second = Result(base), Result(base)
        if side == "client":
            first.request.output_headers["Connection"] = "close"
        first.make(conn)
        second.make(conn)
        run_until(lambda: second.over)
        assert (first.code, second.code) == (200, 200)
    assert len(peer.peers) == 2


def test_free_on_completion_closes_it_after_the_last_request(base: EventBase, serve: Serve) -> None:
    peer = serve(answers(OK, OK, OK))
    conn = connection(base, peer)
    conn.free_on_completion()
    results = [Result(base), Result(base), Result(base)]

    def one_more(request: HttpRequest) -> None:
        results[2].make(conn)

    results[0].make(conn)
    more = HttpRequest(one_more)
    conn.make_request(more)
    assert base.dispatch() == 1
    assert conn.closed
    assert [results[0].code, more.response_code, results[2].code] == [200, 200, 200]


def test_free_on_completion_closes_it_after_a_failure_too(base: EventBase) -> None:
    conn = HttpConnection(base, "127.0.0.1", unused_port())
    result = Result(base).make(conn)
    conn.free_on_completion()
    base.dispatch()
    assert conn.closed
    assert result.calls == ["error", "done"]


def test_a_connection_and_its_request_live_without_names(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(OK))
    seen: list[bytes] = []
    conn = connection(base, peer)
    conn.free_on_completion()
    conn.make_request(HttpRequest(lambda request: seen.append(request.read())))
    gone = weakref.ref(conn)
    del conn
    gc.collect()
    run_until(lambda: seen)
    assert seen == [b"ok"]
    few_rounds(base, 3)
    gc.collect()
    assert gone() is None


def test_a_request_that_is_never_made_is_freed() -> None:
    request = HttpRequest(print)
    request.output_buffer.add(b"x" * 100_000)
    request.output_headers["A"] = "b"
    assert not request.done
    request.cancel()
    assert request.base is None


def test_a_request_that_is_over_is_freed_at_once_with_its_last_name(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    peer = serve(answers(OK))
    with connection(base, peer) as conn:
        result = fetch(conn, header=lambda request: None, chunked=lambda request: request.read())
        assert result.request.headers["content-length"] == "2"
        gone = weakref.ref(result.request)
        gc.disable()
        try:
            del result
            assert gone() is None
        finally:
            gc.enable()


def test_a_reply_may_be_read_after_connection_and_base_are_closed(serve: Serve) -> None:
    peer = serve(answers(OK))
    with EventBase() as base, connection(base, peer) as conn:
        conn.free_on_completion()
        request = HttpRequest(lambda request: None)
        conn.make_request(request)
        base.dispatch()
    assert (request.response_code, request.read()) == (200, b"ok")
    assert request.headers["Content-Length"] == "2"


def test_close_drops_what_waits_and_calls_nobody(base: EventBase, serve: Serve) -> None:
    peer = serve(lambda link: link.wait_for_the_end())
    conn = connection(base, peer)
    results = [Result(base).make(conn) for _ in range(3)]
    few_rounds(base, 10)
    conn.close()
    conn.close()
    few_rounds(base, 10)
    assert [result.calls for result in results] == [[], [], []]
    assert all(result.over and result.error == EVREQ_HTTP_REQUEST_CANCEL for result in results)
    with pytest.raises(ClosedError):
        conn.make_request(HttpRequest(print))
    for name in ("timeout", "retries"):
        with pytest.raises(ClosedError):
            setattr(conn, name, 1)


def test_close_in_the_middle_of_a_body_leaves_nothing(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(CHUNKED + b"1\r\na\r\n"))
    with connection(base, peer) as conn:
        request = HttpRequest(print, chunked=lambda request: conn.close())
        conn.make_request(request)
        run_until(lambda: request.done)
        few_rounds(base)
    assert [lib.pyle_alive(kind) for kind in (lib.PYLE_EXCHANGES, lib.PYLE_REQUESTS)] == [0, 1]


@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 20])
def test_a_base_may_be_closed_with_requests_in_each_state(serve: Serve, rounds: int) -> None:
    peer = serve(answers(OK, b""), lambda link: None)
    base = EventBase()
    conn = connection(base, peer)
    results = [Result(base).make(conn) for _ in range(3)]
    refused = HttpConnection(base, "127.0.0.1", unused_port(), retries=5)
    results.append(Result(base).make(refused))
    few_rounds(base, rounds)
    base.close()
    assert conn.closed
    assert refused.closed
    assert all(result.over for result in results)
    with pytest.raises(ClosedError):
        conn.make_request(HttpRequest(print))


# ---- cancel ----


def test_a_cancelled_request_has_its_error_callback_called_and_no_other(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    got = threading.Event()

    def talk(link: Link) -> None:
        link.read()
        got.set()
        base.loopbreak()
        link.wait_for_the_end()

    peer = serve(talk, answers(OK))
    with connection(base, peer) as conn:
        first, second = Result(base).make(conn), Result(base).make(conn)
        run_until(got.is_set)
        first.request.cancel()
        first.request.cancel()
        assert first.calls == []
        run_until(lambda: second.over)
        assert (first.calls, first.error) == (["error"], EVREQ_HTTP_REQUEST_CANCEL)
        assert second.body == b"ok"
        first.request.cancel()
    assert len(peer.peers) == 2


def test_a_request_that_waits_is_cancelled_without_harm_to_the_others(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(OK, OK))
    with connection(base, peer) as conn:
        results = [Result(base).make(conn) for _ in range(3)]
        results[1].request.cancel()
        run_until(lambda: all(result.over for result in results))
        assert [result.code for result in results] == [200, -1, 200]
        assert results[1].calls == ["error"]
    assert len(peer.peers) == 1


def test_a_request_is_cancelled_while_it_connects_or_waits_for_a_retry(
    base: EventBase, run_until: RunUntil, full: int
) -> None:
    for port, retries in ((full, 0), (unused_port(), 5)):
        with HttpConnection(base, "127.0.0.1", port, retries=retries) as conn:
            result = Result(base).make(conn)
            few_rounds(base, 10)
            result.request.cancel()
            run_until(lambda: result.over)  # noqa: B023
            assert result.calls == ["error"]


# ---- in each callback ----

STAGES = ["header", "chunk", "done", "error", "closed", "failed"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("action", ["conn.close", "request.cancel", "base.close", "raise"])
def test_all_may_end_in_each_callback(serve: Serve, stage: str, action: str) -> None:
    reply = CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" + b"x"
    peer = serve(
        *[answers_and_goes(b"" if stage in ("error", "failed") else reply) for _ in range(3)]
    )
    base = EventBase()
    happened: list[str] = []
    conn = connection(base, peer, timeout=5)

    def act(what: str) -> None:
        happened.append(what)
        if what != stage or happened.count(what) > 1:
            return
        if action == "conn.close":
            conn.close()
        elif action == "request.cancel":
            request.cancel()
        elif action == "base.close":
            base.close()
        else:
            raise RuntimeError(stage)

    request = HttpRequest(
        lambda request: act("failed" if request.error is not None else "done"),
        header=lambda request: act("header"),
        chunked=lambda request: act("chunk"),
        error=lambda request, error: act("error"),
    )
    conn.set_closecb(lambda conn: act("closed"))
    conn.make_request(request)
    others = [Result(base).make(conn), Result(base).make(conn)]
    if action == "raise":
        with pytest.raises(RuntimeError, match=stage):
            base.dispatch()
    deadline = Timer(base, base.loopbreak) if not base.closed else None
    if deadline:
        deadline.add(20)
    while not base.closed and not conn.closed and not all(other.over for other in others):
        base.loop(1)
    assert stage in happened
    ended = len(happened)
    if action in ("conn.close", "base.close"):
        assert conn.closed
        assert all(other.calls == [] for other in others)
        few_rounds(base)
        assert len(happened) == ended
    else:
        assert all(other.over for other in others)
    if action == "request.cancel" and stage in ("header", "chunk"):
        assert request.error == EVREQ_HTTP_REQUEST_CANCEL
        assert "done" not in happened
    base.close()


def test_a_request_may_be_made_in_each_callback(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(CHUNKED + b"1\r\na\r\n0\r\n\r\n", OK, OK, OK), answers(OK, OK, OK))
    with connection(base, peer) as conn:
        more: list[Result] = []

        def make(_: HttpRequest) -> None:
            more.append(Result(base).make(conn))

        request = HttpRequest(make, header=make, chunked=make)
        conn.make_request(request)
        run_until(lambda: len(more) == 3 and all(one.over for one in more))
        assert [one.body for one in more] == [b"ok"] * 3


def test_a_request_made_in_the_callback_of_a_failure_does_not_recurse(
    base: EventBase, run_until: RunUntil
) -> None:
    count = 0
    with HttpConnection(base, "127.0.0.1", unused_port()) as conn:

        def again(request: HttpRequest) -> None:
            nonlocal count
            count += 1
            if count < 2000:
                conn.make_request(HttpRequest(again))

        conn.make_request(HttpRequest(again))
        run_until(lambda: count == 2000, 30)


@pytest.mark.parametrize("stage", ["header", "chunk", "done"])
@pytest.mark.parametrize("what", ["conn", "base"])
def test_all_may_end_in_a_loop_that_c_runs(serve: Serve, stage: str, what: str) -> None:
    peer = serve(answers(CHUNKED + b"1\r\na\r\n0\r\n\r\n"))
    ptr = lib.event_base_new()
    borrowed = EventBase.from_ptr(ptr)
    conn = connection(borrowed, peer)
    happened: list[str] = []

    def act(now: str) -> None:
        happened.append(now)
        if now == stage:
            conn.close() if what == "conn" else borrowed.close()

    request = HttpRequest(
        lambda request: act("done"),
        header=lambda request: act("header"),
        chunked=lambda request: act("chunk"),
    )
    conn.make_request(request)
    lib.event_base_dispatch(ptr)
    assert happened[-1] == stage
    assert conn.closed
    borrowed.close()
    lib.event_base_free(ptr)


@pytest.mark.parametrize("n", [1, 3])
def test_a_base_may_have_priorities(serve: Serve, n: int) -> None:
    peer = serve(answers(OK))
    with EventBase() as base:
        base.priority_init(n)
        with connection(base, peer) as conn:
            conn.free_on_completion()
            result = Result(base).make(conn)
            base.dispatch()
            assert result.body == b"ok"


def test_callbacks_of_the_output_buffer_are_called_by_make_request_and_not_in_the_loop(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(OK, OK))
    changes: list[int] = []
    with connection(base, peer) as conn:
        result = Result(base)
        result.request.output_buffer.add(b"body")
        result.request.output_buffer.add_cb(lambda *args: changes.append(args[3]))
        conn.make_request(result.request, EVHTTP_REQ_POST)
        assert changes == [4]
        run_until(lambda: result.over)
        assert changes == [4]

        def fail(*_: object) -> None:
            raise RuntimeError("no")

        result = Result(base)
        result.request.output_buffer.add(b"body")
        result.request.output_buffer.add_cb(fail)
        with pytest.raises(RuntimeError, match="no"):
            conn.make_request(result.request, EVHTTP_REQ_POST)
        run_until(lambda: result.over)
        assert result.body == b"ok"


@pytest.mark.parametrize("what", ["conn", "base", "again"])
def test_all_may_be_done_in_a_callback_of_the_output_buffer(base: EventBase, what: str) -> None:
    conn = HttpConnection(base, "127.0.0.1", 1)
    result = Result(base)
    result.request.output_buffer.add(b"body")

    def act(*_: object) -> None:
        if what == "conn":
            conn.close()
        elif what == "base":
            base.close()
        else:
            del result.request.output_headers["Content-Length"]
            conn.make_request(result.request, EVHTTP_REQ_GET)

    entry = result.request.output_buffer.add_cb(act)
    if what == "again":
        with pytest.raises(RuntimeError, match="client"):
            conn.make_request(result.request, EVHTTP_REQ_POST)
        assert result.request.connection is conn
    else:
        with pytest.raises(ClosedError):
            conn.make_request(result.request, EVHTTP_REQ_POST)
        assert result.request.connection is None
    entry.remove()
    conn.close()


def test_an_exception_goes_to_the_handler_with_the_request(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(OK))
    handled: list[Any] = []
    base.exception_handler = lambda error, source: handled.append((str(error), source))

    def fail(request: HttpRequest) -> None:
        raise RuntimeError(f"no {len(handled)}")

    with connection(base, peer) as conn:
        request = HttpRequest(fail, header=fail, chunked=fail)
        conn.make_request(request)
        run_until(lambda: request.done)
        assert handled == [("no 0", request), ("no 1", request), ("no 2", request)]


# ---- names ----


@pytest.fixture
def names(base: EventBase) -> Iterator[DnsBase]:
    """Answers for any name that does not start with "no" or "silent"."""

    def answer(request: Any) -> None:
        question = request.questions[0]
        name = question.name.lower()
        if name.startswith("silent"):
            request.drop()
        elif name.startswith("no"):
            request.respond(DNS_ERR_NOTEXIST)
        else:
            if question.type == EVDNS_TYPE_A:
                request.add_a(question.name, "127.0.0.1", 60)
            request.respond()

    with (
        DnsServerPort(base, ("127.0.0.1", 0), answer) as port,
        DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE) as dns,
    ):
        dns.add_nameserver(port.address)
        yield dns


def test_a_name_is_looked_up_without_blocking(
    base: EventBase, serve: Serve, fetch: Fetch, names: DnsBase
) -> None:
    peer = serve(answers(OK))
    with HttpConnection(base, "some.example", peer.port, dns=names) as conn:
        assert fetch(conn).body == b"ok"
        assert conn.address == ("127.0.0.1", peer.port)
    peer.close()
    assert b"Host: some.example:%d\r\n" % peer.port in peer.results[0][0]


def test_a_name_that_does_not_exist_fails_the_request(
    base: EventBase, fetch: Fetch, names: DnsBase
) -> None:
    with HttpConnection(base, "no.example", 80, dns=names) as conn:
        result = fetch(conn)
        assert result.error == EVREQ_HTTP_EOF
        assert isinstance(result.request.exception, socket.gaierror)


def test_a_look_up_that_hangs_ends_with_the_timeout(
    base: EventBase, fetch: Fetch, names: DnsBase
) -> None:
    with HttpConnection(base, "silent.example", 80, dns=names, timeout=0.2) as conn:
        result = fetch(conn)
        assert result.error in (EVREQ_HTTP_TIMEOUT, EVREQ_HTTP_EOF)
        assert isinstance(result.request.exception, (TimeoutError, socket.gaierror))


def test_a_name_is_looked_up_for_each_connection_or_once(
    base: EventBase, serve: Serve, fetch: Fetch, names: DnsBase
) -> None:
    peer = serve(*[answers(CLOSING)] * 3)
    with HttpConnection(base, "some.example", peer.port, dns=names) as conn:
        conn.flags = EVHTTP_CON_REUSE_CONNECTED_ADDR
        assert fetch(conn).code == 200
        names.clear_nameservers()
        assert fetch(conn).code == 200
        conn.flags = 0
        conn.timeout = 0.2
        assert fetch(conn).code == 0


@pytest.mark.parametrize("what", ["dns", "conn", "request", "base"])
def test_all_may_be_closed_while_a_name_is_looked_up(
    base: EventBase, names: DnsBase, run_until: RunUntil, what: str
) -> None:
    conn = HttpConnection(base, "silent.example", 80, dns=names)
    result = Result(base).make(conn)
    few_rounds(base, 5)
    if what == "dns":
        names.close()
        run_until(lambda: result.over)
        assert result.calls == ["error", "done"]
        assert isinstance(result.request.exception, socket.gaierror)
    elif what == "conn":
        conn.close()
    elif what == "request":
        result.request.cancel()
        run_until(lambda: result.over)
        assert result.calls == ["error"]
    else:
        base.close()
    assert result.over
    conn.close()


def test_a_dns_base_that_is_closed_already_fails_the_request(
    base: EventBase, fetch: Fetch, names: DnsBase
) -> None:
    with HttpConnection(base, "some.example", 80, dns=names) as conn:
        names.close()
        result = fetch(conn)
        assert result.error == EVREQ_HTTP_EOF
        assert isinstance(result.request.exception, ClosedError)


# ---- TLS ----


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    pytest.importorskip("pylibevent._libevent_ssl")
    return Certificates(tmp_path_factory.mktemp("certificates"))


def client_context(certificates: Certificates) -> TLSContext:
    context = TLSContext.client()
    context.load_verify_locations(certificates.cafile)
    return context


def over_tls(context: ssl.SSLContext) -> Callable[[socket.socket], ssl.SSLSocket]:
    return lambda sock: context.wrap_socket(sock, server_side=True)


def test_requests_go_over_tls_and_the_connection_is_used_again(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    body = os.urandom(1_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    peer = serve(answers(head + body, OK), wrap=over_tls(certificates.for_server()))
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        result = fetch(conn, EVHTTP_REQ_POST, body=body)
        assert result.request.exception is None
        assert (result.code, result.body) == (200, body)
        assert conn.tls is not None
        assert conn.tls.version in ("TLSv1.2", "TLSv1.3")
        assert fetch(conn).body == b"ok"
    assert conn.tls is None
    assert len(peer.peers) == 1
    peer.close()
    assert peer.results[0][0].endswith(body)


def test_chunks_over_tls(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    peer = serve(
        answers(CHUNKED + chunk * 100 + b"0\r\n\r\n"), wrap=over_tls(certificates.for_server())
    )
    with HttpConnection(base, "127.0.0.1", peer.port, tls=client_context(certificates)) as conn:
        result = fetch(conn, chunked=True)
    assert b"".join(result.parts) == b"x" * 0x8000 * 100


def test_a_reply_of_1xx_over_tls_is_not_the_last_word(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    wait = b"HTTP/1.1 100 Continue\r\n\r\n"
    peer = serve(answers(wait + OK, wait * 3 + OK), wrap=over_tls(certificates.for_server()))
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        assert fetch(conn).body == b"ok"
        assert fetch(conn).body == b"ok"


def test_a_write_error_over_tls_ends_the_request_whatever_the_flags(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    def talk(link: Link) -> None:
        link.sock.recv(1000)
        link.reset()

    peer = serve(*[talk] * 20, wrap=over_tls(certificates.for_server()))
    with HttpConnection(
        base,
        "localhost",
        peer.port,
        tls=client_context(certificates),
        flags=EVHTTP_CON_READ_ON_WRITE_ERROR,
    ) as conn:
        for i in range(20):
            result = fetch(conn, EVHTTP_REQ_POST, body=b"x" * 100_000 * (i + 1))
            assert result.error == EVREQ_HTTP_EOF


def test_a_new_connection_over_tls_is_made_after_the_server_has_closed(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    peer = serve(*[answers(CLOSING)] * 3, wrap=over_tls(certificates.for_server()))
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        for _ in range(3):
            result = fetch(conn)
            assert (result.body, result.request.exception) == (b"ok", None)


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("other", "ostname mismatch"),
        ("expired", "expired"),
        ("unknown", "unable to get|self.signed"),
    ],
)
def test_a_certificate_that_is_not_right_fails_the_request(
    base: EventBase,
    serve: Serve,
    fetch: Fetch,
    certificates: Certificates,
    which: str,
    text: str,
) -> None:
    server = certificates.for_server(getattr(certificates, which))
    peer = serve(answers(OK), wrap=over_tls(server))
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        result = fetch(conn)
    assert (result.code, result.error) == (0, EVREQ_HTTP_EOF)
    assert isinstance(result.request.exception, ssl.SSLCertVerificationError)
    assert result.request.exception.verify_message
    peer.close()
    assert peer.results == []


def test_the_certificate_may_be_for_another_name(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    peer = serve(answers(OK), wrap=over_tls(certificates.for_server(certificates.other)))
    with HttpConnection(
        base,
        "127.0.0.1",
        peer.port,
        tls=client_context(certificates),
        server_hostname="other.example",
    ) as conn:
        assert fetch(conn).body == b"ok"


def test_a_peer_without_tls_fails_the_request(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    def talk(link: Link) -> None:
        link.send(b"HTTP/1.1 400 Bad\r\n\r\n")
        link.wait_for_the_end()

    peer = serve(talk)
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        result = fetch(conn)
        assert result.error == EVREQ_HTTP_EOF
        assert isinstance(result.request.exception, ssl.SSLError)


def test_a_handshake_that_stalls_ends_with_the_timeout(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    peer = serve(lambda link: link.wait_for_the_end())
    context = client_context(certificates)
    with HttpConnection(base, "localhost", peer.port, tls=context, timeout=0.2) as conn:
        assert fetch(conn).error == EVREQ_HTTP_TIMEOUT


def test_a_body_that_ends_without_a_close_notify_is_cut_off(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    """One without a length: what an attacker has cut off would pass for all of it."""

    def talk(link: Link) -> None:
        link.answer(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        link.sock.shutdown(socket.SHUT_RDWR)

    peer = serve(talk, wrap=over_tls(certificates.for_server()))
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        assert fetch(conn).error == EVREQ_HTTP_EOF


def test_a_body_that_ends_with_a_close_notify_is_whole(
    base: EventBase, serve: Serve, fetch: Fetch, certificates: Certificates
) -> None:
    def talk(link: Link) -> None:
        link.answer(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        assert isinstance(link.sock, ssl.SSLSocket)
        with contextlib.suppress(OSError):
            link.sock.unwrap()

    peer = serve(talk, wrap=over_tls(certificates.for_server()))
    with HttpConnection(base, "localhost", peer.port, tls=client_context(certificates)) as conn:
        assert fetch(conn).body == b"all of it"


def test_a_servers_context_is_refused(base: EventBase, certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="client"):
        HttpConnection(base, "localhost", 443, tls=TLSContext.server(certificates.good))
    with pytest.raises(TypeError, match="TLSContext"):
        HttpConnection(base, "localhost", 443, tls=1)  # type: ignore[arg-type]


# ---- proxies ----


def test_connect_makes_a_tunnel_in_which_the_next_request_goes(
    base: EventBase, serve: Serve, fetch: Fetch
) -> None:
    def tunnel(link: Link) -> list[bytes]:
        requests = [link.answer(b"HTTP/1.1 200 Connected\r\n\r\n"), link.answer(OK)]
        link.wait_for_the_end()
        return requests

    peer = serve(tunnel)
    with connection(base, peer) as conn:
        assert fetch(conn, EVHTTP_REQ_CONNECT, "example.org:80").code == 200
        assert fetch(conn, EVHTTP_REQ_GET, "/").body == b"ok"
    peer.close()
    assert peer.results[0][0].startswith(b"CONNECT example.org:80 HTTP/1.1\r\n")
    assert len(peer.peers) == 1


def page_through(link: Link) -> list[bytes]:
    """As a proxy does it, and the server at the other end."""
    requests = [link.answer(b"HTTP/1.1 200 Connected\r\n\r\n")]
    requests.append(link.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\npage\n"))
    link.wait_for_the_end()
    return requests


def test_the_example_gets_a_page_through_a_proxy(serve: Serve) -> None:
    peer = serve(page_through)
    proxy = f"http://127.0.0.1:{peer.port}"
    done = run("http_connect.py", proxy, "http://www.example.org:81/page?q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"page\n", b"200 OK\n")
    peer.close()
    tunnel, page = peer.results[0]
    assert tunnel.startswith(b"CONNECT www.example.org:81 HTTP/1.1\r\nHost: www.example.org:81\r\n")
    assert page.startswith(b"GET /page?q HTTP/1.1\r\nHost: www.example.org\r\n")


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", b"the proxy said 403 Forbidden"),
        (b"garbage\r\n", b"INVALID_HEADER"),
    ],
)
def test_the_example_says_why_there_is_no_page(
    serve: Serve, reply: bytes, complaint: bytes
) -> None:
    peer = serve(answers(reply))
    done = run("http_connect.py", f"http://127.0.0.1:{peer.port}", "http://www.example.org/")
    assert (done.returncode, done.stdout) == (1, b"")
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("proxy", "complaint"),
    [("http://127.0.0.1:1", b"refused"), ("https://x/", b"not the URL"), ("://", b"http_connect")],
)
def test_the_example_says_what_is_wrong_with_the_proxy(proxy: str, complaint: bytes) -> None:
    done = run("http_connect.py", proxy, "http://www.example.org/")
    assert (done.returncode, done.stdout) == (1, b"")
    assert complaint in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_tunnel_may_be_taken_over(
    base: EventBase, serve: Serve, run_until: RunUntil, fetch: Fetch
) -> None:
    def tunnel(link: Link) -> bytes:
        link.answer(b"HTTP/1.1 200 Connected\r\n\r\nwelcome\n")
        line = link.file.readline()
        link.send(b"you said " + line)
        return line + link.wait_for_the_end()

    peer = serve(tunnel, answers(OK))
    bevs: list[BufferEvent] = []
    lines: list[bytes] = []
    closed: list[object] = []

    def connected(request: HttpRequest) -> None:
        bev = request.take_over()
        bevs.append(bev)
        bev.setcb(read=lambda bev: lines.extend(bev.input.readlines()))
        bev.enable(EV_READ)
        bev.write(b"hello\n")
        with pytest.raises(LibeventError, match="nothing"):
            request.take_over()

    with connection(base, peer) as conn:
        conn.set_closecb(closed.append)
        conn.make_request(HttpRequest(connected), EVHTTP_REQ_CONNECT, "example.org:7")
        run_until(lambda: len(lines) == 2)
        assert lines == [b"welcome", b"you said hello"]
        bevs[0].close()
        assert fetch(conn).body == b"ok"
        assert closed == []
    peer.close()
    assert peer.results[0] == b"hello\n"


def test_an_upgraded_connection_may_be_taken_over(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    def talk(link: Link) -> bytes:
        link.answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n")
        link.send(link.file.readline())
        return link.wait_for_the_end()

    peer = serve(talk)
    seen: list[bytes] = []
    bevs: list[BufferEvent] = []

    def switched(request: HttpRequest) -> None:
        bevs.append(request.take_over())
        bevs[0].setcb(read=lambda bev: seen.append(bev.read()))
        bevs[0].enable(EV_READ)
        bevs[0].write(b"echo\n")

    with connection(base, peer) as conn:
        request = HttpRequest(switched)
        request.output_headers["Upgrade"] = "echo"
        request.output_headers["Connection"] = "upgrade"
        conn.make_request(request)
        run_until(lambda: seen)
    assert seen == [b"echo\n"]
    bevs[0].close()


def test_only_a_switched_connection_is_taken_over(
    base: EventBase, serve: Serve, run_until: RunUntil
) -> None:
    peer = serve(answers(OK, b"HTTP/1.1 403 No\r\n\r\n"))
    errors: list[str] = []

    def done(request: HttpRequest) -> None:
        with pytest.raises(LibeventError) as caught:
            request.take_over()
        errors.append(str(caught.value))

    with connection(base, peer) as conn:
        requests = [HttpRequest(done), HttpRequest(done)]
        with pytest.raises(LibeventError, match="not made"):
            requests[0].take_over()
        conn.make_request(requests[0])
        conn.make_request(requests[1], EVHTTP_REQ_CONNECT, "example.org:7")
        run_until(lambda: len(errors) == 2)
        assert all("nothing" in error for error in errors)


# ---- threads, forks ----


def test_its_methods_belong_to_the_loops_thread(base: EventBase, serve: Serve) -> None:
    inside, go_on = threading.Event(), threading.Event()
    peer = serve(answers(OK))
    conn = connection(base, peer)
    request, another = HttpRequest(print), HttpRequest(lambda request: None)

    def hold(_: HttpRequest) -> None:
        inside.set()
        go_on.wait(20)
        base.loopbreak()

    running = HttpRequest(hold)
    conn.make_request(running)
    conn.make_request(another)
    thread = threading.Thread(target=base.dispatch)
    thread.start()
    try:
        assert inside.wait(20)
        for call in (
            lambda: conn.make_request(request),
            conn.close,
            running.cancel,
            another.cancel,
            lambda: setattr(conn, "timeout", 1),
            lambda: running.response_code,
            running.read,
        ):
            with pytest.raises(RuntimeError, match="thread"):
                call()
    finally:
        go_on.set()
        thread.join()
    conn.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_in_a_child_it_works_after_reinit_and_the_parents_connection_is_left_alone(
    base: EventBase, serve: Serve, fetch: Fetch, run_until: RunUntil
) -> None:
    got = threading.Event()
    go_on = threading.Event()

    def talk(link: Link) -> None:
        link.answer(OK)
        link.read()
        got.set()
        base.loopbreak()
        go_on.wait(20)
        link.send(OK)
        link.wait_for_the_end()

    peer = serve(talk, answers(OK))
    conn = connection(base, peer)
    assert fetch(conn).code == 200
    result = Result(base).make(conn)
    run_until(got.is_set)

    def child() -> None:
        with pytest.raises(RuntimeError, match="reinit"):
            conn.make_request(HttpRequest(print))
        with pytest.raises(RuntimeError, match="reinit"):
            result.request.cancel()
        base.reinit()
        run_until(lambda: result.over)
        assert result.error == EVREQ_HTTP_EOF
        conn.close()
        base.close()

    in_child(child)
    go_on.set()
    run_until(lambda: result.over)
    assert result.body == b"ok"
    conn.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("tls", [False, True])
def test_in_a_child_the_base_may_be_closed_at_once(
    base: EventBase, serve: Serve, run_until: RunUntil, certificates: Certificates, tls: bool
) -> None:
    got, go_on = threading.Event(), threading.Event()

    def talk(link: Link) -> None:
        link.read()
        got.set()
        base.loopbreak()
        go_on.wait(20)
        link.send(OK)
        link.wait_for_the_end()

    peer = serve(talk, wrap=over_tls(certificates.for_server()) if tls else None)
    with connection(base, peer, tls=client_context(certificates) if tls else None) as conn:
        result = Result(base).make(conn)
        run_until(got.is_set)
        in_child(base.close)
        go_on.set()
        run_until(lambda: result.over)
        assert result.body == b"ok"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_requests_that_wait_are_made_by_parent_and_child(
    base: EventBase, standard: int, run_until: RunUntil
) -> None:
    with HttpConnection(base, "127.0.0.1", standard) as conn:
        results = [Result(base).make(conn) for _ in range(3)]

        def end() -> None:
            run_until(lambda: all(result.over for result in results))
            assert [result.code for result in results] == [200] * 3

        def child() -> None:
            base.reinit()
            end()
            base.close()

        in_child(child)
        end()


# ---- all at once ----


class Oops(Exception):
    pass


class Chaos:
    """Connections, a server in the same loop, and callbacks that do anything to any of them."""

    def __init__(self, base: EventBase, seed: int, **options: Any) -> None:
        self.base = base
        self.context: TLSContext | None = options.pop("context", None)
        self.options = options
        self.rng = random.Random(seed)
        self.listener = Listener.bind(base, self.on_accept, ("127.0.0.1", 0))
        self.port = self.listener.address[1]
        self.conns = [self.connection() for _ in range(3)]
        self.requests: list[HttpRequest] = []
        self.left = 300
        self.make()

    def connection(self) -> HttpConnection:
        conn = HttpConnection(
            self.base,
            self.rng.choice(["127.0.0.1", "localhost"]),
            self.port if self.rng.random() < 0.9 else 1,
            timeout=0.05,
            retries=self.rng.randrange(3),
            initial_retry=0.001,
            flags=self.rng.choice([0, EVHTTP_CON_READ_ON_WRITE_ERROR]),
            **self.options,
        )
        conn.set_closecb(self.act)
        return conn

    def on_accept(self, _listener: Listener, fd: int, _address: object) -> None:
        if self.context is None:
            bev = BufferEvent.socket(self.base, fd)
        else:
            bev = BufferEvent.openssl_socket(self.base, fd, self.context, server_side=True)
        bev.setcb(read=self.on_read, event=lambda bev, what: bev.close())
        bev.enable(EV_READ)

    def on_read(self, bev: BufferEvent) -> None:
        bev.read()
        chance = self.rng.random()
        if chance < 0.9:
            bev.write(OK if self.rng.random() < 0.4 else mutated(self.rng))
        if 0.6 < chance < 0.8:
            bev.close_after_write()
        elif 0.8 < chance < 0.95:
            bev.close()

    def make(self) -> None:
        if self.left > 0:
            self.left -= 1
            act = self.act
            request = HttpRequest(
                act,
                header=self.rng.choice([None, act, lambda request: act(request) or False]),
                chunked=self.rng.choice([None, act]),
                error=self.rng.choice([None, act]),
            )
            request.output_buffer.add(b"x" * self.rng.choice([0, 1, 100_000]))
            self.rng.choice(self.conns).make_request(request, EVHTTP_REQ_POST)
            self.requests = [*self.requests[-9:], request]

    def act(self, *_: object) -> None:
        match self.rng.randrange(12):
            case 0 | 1 | 2:
                self.make()
            case 3:
                self.rng.choice(self.requests).cancel()
            case 4:
                at = self.rng.randrange(3)
                self.conns[at].close()
                self.conns[at] = self.connection()
            case 5:
                raise Oops
            case 6:
                self.rng.choice(self.conns).free_on_completion()
            case 7:
                gc.collect()
            case 8:
                self.rng.choice(self.requests).read()

    def step(self) -> None:
        self.conns = [self.connection() if conn.closed else conn for conn in self.conns]
        try:
            self.act()
            self.make()
            self.base.loop(EVLOOP_ONCE)
        except (Oops, ClosedError):
            pass


# Of several exceptions in one step of evhttp's one leaves the loop, and the others are reported.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(2 + 10 * FUZZ))
@pytest.mark.parametrize("kind", ["plain", "tls", "names"])
def test_anything_may_be_done_to_any_of_them_at_any_moment(
    base: EventBase, names: DnsBase, certificates: Certificates, kind: str, seed: int
) -> None:
    options: dict[str, Any] = {}
    if kind == "tls":
        options["context"] = TLSContext.server(certificates.good)
        options["tls"] = client_context(certificates)
    elif kind == "names":
        options["dns"] = names
    chaos = Chaos(base, seed, **options)
    while chaos.left > 0:
        chaos.step()
    for conn in chaos.conns[1:]:
        conn.close()
    base.close()


# ---- real servers ----


@pytest.fixture
def standard() -> Iterator[int]:
    """The standard library's server, on that port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("X-Method", self.command)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_PATCH = do_POST

        def do_GET(self) -> None:
            self.headers["Content-Length"] = "0"
            self.do_POST()

        do_HEAD = do_DELETE = do_OPTIONS = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_speaks_with_the_standard_librarys_server(
    base: EventBase, standard: int, fetch: Fetch
) -> None:
    with HttpConnection(base, "127.0.0.1", standard) as conn:
        for method in (EVHTTP_REQ_GET, EVHTTP_REQ_HEAD, EVHTTP_REQ_DELETE, EVHTTP_REQ_OPTIONS):
            assert fetch(conn, method).code == 200
        for method in (EVHTTP_REQ_POST, EVHTTP_REQ_PUT, EVHTTP_REQ_PATCH):
            body = os.urandom(100_000)
            result = fetch(conn, method, body=body)
            assert result.body == body
            assert result.request.headers["x-method"] == result.request.command


def test_it_speaks_with_an_http_server_in_the_same_loop(base: EventBase, fetch: Fetch) -> None:
    server = HttpServer(base)
    bound = server.bind("127.0.0.1", 0)
    server.set_gencb(lambda request: request.send_reply(200, "OK", request.uri.encode()))
    with HttpConnection(base, "127.0.0.1", bound.address[1]) as conn:
        for i in range(10):
            assert fetch(conn, uri=f"/{i}").body == b"/%d" % i
    server.close()


@measures_memory
def test_memory_stays_flat_over_many_requests(base: EventBase, run_until: RunUntil) -> None:
    server = HttpServer(base)
    bound = server.bind("127.0.0.1", 0)
    server.set_gencb(lambda request: request.send_reply(200, "OK", b"x" * 1000))
    with HttpConnection(base, "127.0.0.1", bound.address[1]) as conn:
        done = 0

        def again(request: HttpRequest) -> None:
            nonlocal done
            done += 1
            assert len(request.read()) == 1000
            conn.make_request(HttpRequest(again))

        conn.make_request(HttpRequest(again))
        run_until(lambda: done > 2000, 60)
        before = resident()
        run_until(lambda: done > 12_000, 60)
        assert resident() - before < 1 << 20
    server.close()


# ---- what fails for want of memory or descriptors ----


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return build(tmp_path_factory.mktemp("faults"))


def make_connection(fault: Fault) -> None:
    with EventBase() as base:
        with fault:
            HttpConnection(base, "127.0.0.1", 1).close()
        HttpConnection(base, "127.0.0.1", 1).close()


def make_request(fault: Fault) -> None:
    with EventBase() as base, HttpConnection(base, "127.0.0.1", 1) as conn:
        with fault.tolerated:  # some have memory in store
            request = HttpRequest(print)
            request.output_buffer.add(b"body")
            conn.make_request(request, EVHTTP_REQ_POST)
            assert request.connection is conn
        conn.make_request(HttpRequest(print))


@needs_faults
@pytest.mark.parametrize("case", [make_connection, make_request])
def test_an_allocation_that_fails_is_a_memory_error(
    case: Callable[[Fault], None], faults: Faults
) -> None:
    faults.each(case)


def talk_to_a_server(fault: Fault) -> None:
    """Whatever fails, the request ends, and the next one is made."""
    reply = CHUNKED[:-2] + b"Connection: close\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
    with EventBase() as base, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        ended: list[HttpError | None] = []

        def step(accepted: list[socket.socket]) -> None:
            with contextlib.suppress(BlockingIOError):
                accepted.append(listener.accept()[0])
                accepted[-1].sendall(reply)
            base.loop(EVLOOP_NONBLOCK)

        def fetch(conn: HttpConnection, accepted: list[socket.socket]) -> None:
            conn.make_request(
                HttpRequest(
                    lambda request: ended.append(request.error),
                    header=lambda request: request.headers["transfer-encoding"] == "chunked",
                    chunked=lambda request: request.read(),
                )
            )
            while not ended:
                step(accepted)

        with (
            HttpConnection(base, "127.0.0.1", listener.getsockname()[1], timeout=0.1) as conn,
            contextlib.ExitStack() as stack,
        ):
            accepted: list[socket.socket] = []
            with fault.tolerated:
                fetch(conn, accepted)
            while base._table.keys() - {conn._token}:  # it was made, and is not over
                step(accepted)
            ended.clear()
            conn.timeout = 10
            fetch(conn, accepted)
            for sock in accepted:
                stack.enter_context(sock)
            assert ended == [None]


@needs_faults
def test_a_request_ends_whatever_allocation_fails(faults: Faults) -> None:
    faults.each(talk_to_a_server)
    faults.each(talk_to_a_server, times=NEVER)


@needs_faults
def test_a_request_over_tls_ends_whatever_allocation_fails(
    faults: Faults, certificates: Certificates
) -> None:
    context = client_context(certificates)

    def begin(fault: Fault) -> None:
        with EventBase() as base, socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with HttpConnection(base, "127.0.0.1", port, tls=context, timeout=0.05) as conn:
                ended: list[HttpError | None] = []
                conn.make_request(HttpRequest(lambda request: ended.append(request.error)))
                with fault.tolerated:
                    for _ in range(3):
                        base.loop(EVLOOP_NONBLOCK)
                while not ended:
                    base.loop(EVLOOP_ONCE)
                assert ended[0] is not None

    faults.each(begin)


def test_without_descriptors_the_request_fails() -> None:
    def child() -> None:
        ended: list[Any] = []
        with EventBase() as base, HttpConnection(base, "127.0.0.1", 1) as conn:
            Timer(base, base.loopbreak).add(0)
            base.dispatch()  # which makes what the loop itself needs
            conn.make_request(HttpRequest(lambda request: ended.append(request.exception)))
            conn.free_on_completion()
            lowest = os.dup(0)
            os.close(lowest)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            base.dispatch()
            assert isinstance(ended[0], OSError)
            assert ended[0].errno == errno.EMFILE

    in_child(child)
