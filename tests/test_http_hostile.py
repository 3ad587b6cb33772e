"""What an HttpServer makes of requests that are none, or that two readers would understand in two
ways. docs/http.md has this as a table."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from common import FUZZ, few_rounds
from conftest import RunUntil
from http_peer import Client
from hypothesis import given, settings, strategies

from pylibevent import (
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_DELETE,
    EVHTTP_REQ_GET,
    EVHTTP_REQ_HEAD,
    EVHTTP_REQ_OPTIONS,
    EVHTTP_REQ_POST,
    EVHTTP_REQ_TRACE,
    EventBase,
    HttpServer,
    HttpServerRequest,
)

MakeClient = Callable[[], Client]


@pytest.fixture
def seen() -> list[tuple[str, str, bytes]]:
    """What handlers have got."""
    return []


@pytest.fixture
def server(base: EventBase, seen: list[tuple[str, str, bytes]]) -> Iterator[HttpServer]:
    def handler(request: HttpServerRequest) -> None:
        seen.append((request.command, request.uri, request.read()))
        request.send_reply(200, None, b"fine")

    server = HttpServer(base)
    server.bind("127.0.0.1", 0)
    server.max_headers_size = 4096
    server.max_body_size = 1 << 16
    server.allowed_methods = (
        EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_DELETE
        | EVHTTP_REQ_OPTIONS | EVHTTP_REQ_TRACE | EVHTTP_REQ_CONNECT
    )  # fmt: skip
    server.set_gencb(handler)
    server.add_server_alias("known")
    yield server
    server.close()


@pytest.fixture
def connect(server: HttpServer, run_until: RunUntil) -> Iterator[MakeClient]:
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(Client(server, run_until))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: MakeClient) -> Client:
    return connect()


def post(*lines: str, body: bytes = b"") -> bytes:
    head = ["POST / HTTP/1.1", "Host: a", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


CHUNKED = "Transfer-Encoding: chunked"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"

# A request that is refused before any handler, with this code; then the connection ends.
REFUSED: dict[str, tuple[bytes, int]] = {
    "both lengths": (post("Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    "both lengths, the other way round": (
        post(CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"),
        400,
    ),
    "two Content-Lengths": (post("Content-Length: 5", "Content-Length: 6", body=b"12345"), 400),
    "the same one twice": (post("Content-Length: 5", "content-length: 5", body=b"12345"), 400),
    "a list of them": (post("Content-Length: 5, 5", body=b"12345"), 400),
    "a negative one": (post("Content-Length: -1"), 400),
    "one with a sign": (post("Content-Length: +5", body=b"12345"), 400),
    "a hexadecimal one": (post("Content-Length: 0x5", body=b"12345"), 400),
    "one and something": (post("Content-Length: 5a", body=b"12345"), 400),
    "one with a space in it": (post("Content-Length: 1 2", body=b"12345"), 400),
    "an empty one": (post("Content-Length:"), 400),
    "one beyond all numbers": (post("Content-Length: " + "9" * 30), 400),
    "one with a NUL": (post("Content-Length: 5\0", body=b"12345"), 400),
    "two Transfer-Encodings": (post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 400),
    "a list of codings": (post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "chunked twice": (post("Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "another coding": (post("Transfer-Encoding: identity"), 400),
    "a coding in quotes": (post('Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    "a coding with a vertical tab": (post("Transfer-Encoding: \vchunked", body=b"0\r\n\r\n"), 400),
    "chunked in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a space before the colon": (post("Content-Length : 5", body=b"12345"), 400),
    "a tab before the colon": (post("Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"), 400),
    "a folded header": (post("Transfer-Encoding:", " chunked", body=b"0\r\n\r\n"), 400),
    "a header that starts with a space": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400),
    "a header without a name": (b"GET / HTTP/1.1\r\n: a\r\n\r\n", 400),
    "a header's name that is no token": (b"GET / HTTP/1.1\r\nA(b): a\r\n\r\n", 400),
    "a NUL in a name": (b"GET / HTTP/1.1\r\nA\0b: a\r\n\r\n", 400),
    "a NUL in a value": (b"GET / HTTP/1.1\r\nA: a\0b\r\n\r\n", 400),
    "a CR in a value": (b"GET / HTTP/1.1\r\nA: a\rb\r\n\r\n", 400),
    "a bare LF behind the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "a bare LF behind a header": (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
    "a bare LF at the end of the headers": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "http/1.1 in small letters": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "a space in the URI": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a tab in place of a space": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a NUL in the URI": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an empty line first": (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
    "a HEAD with a body": (b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n" + NEXT, 400),
    "a TRACE with a body": (
        b"TRACE / HTTP/1.1\r\nHost: a\r\n" + CHUNKED.encode() + b"\r\n\r\n",
        400,
    ),
    "a CONNECT with a body": (
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345",
        400,
    ),
    "an unknown method with a body": (
        b"BREW / HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n" + NEXT,
        400,
    ),
    "an unknown method": (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "a method in small letters": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "an unknown expectation": (post("Expect: miracles", "Content-Length: 5", body=b"12345"), 417),
    "headers without an end": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000, 400),
    "a header without an end": (b"GET / HTTP/1.1\r\nA: " + b"b" * 10000, 400),
    "a request line without an end": (b"GET /" + b"a" * 10000, 400),
    "a method without an end": (b"G" * 10000, 400),
    "a body that is too long": (post("Content-Length: 65537"), 413),
    "a chunk that is too long": (post(CHUNKED, body=b"10001\r\n"), 413),
    "chunks that are too long together": (
        post(CHUNKED, body=(b"8000\r\n" + bytes(0x8000) + b"\r\n") * 3),
        413,
    ),
    "a chunk size beyond all numbers": (post(CHUNKED, body=b"f" * 17 + b"\r\n"), 413),
    "a chunk size of 2 ** 63": (post(CHUNKED, body=b"8000000000000000\r\n"), 413),
    "a negative chunk size": (post(CHUNKED, body=b"-1\r\n"), 413),
    "a chunk size with a sign": (post(CHUNKED, body=b"+5\r\n12345\r\n0\r\n\r\n"), 413),
    "a chunk size with 0x": (post(CHUNKED, body=b"0x5\r\n12345\r\n0\r\n\r\n"), 413),
    "a chunk size after a space": (post(CHUNKED, body=b" 5\r\n12345\r\n0\r\n\r\n"), 413),
    "a chunk size before a space": (post(CHUNKED, body=b"5 \r\n12345\r\n0\r\n\r\n"), 413),
    "no chunk size": (post(CHUNKED, body=b"\r\n"), 413),
    "a chunk size that is no number": (post(CHUNKED, body=b"five\r\n"), 413),
    "a chunk extension": (post(CHUNKED, body=b"5;a=b\r\n12345\r\n0\r\n\r\n"), 413),
    "a chunk size without an end": (post(CHUNKED, body=b"0" * 100000), 413),
    "a bare LF behind a chunk size": (post(CHUNKED, body=b"5\n12345\r\n0\r\n\r\n"), 413),
    "a chunk longer than its size": (post(CHUNKED, body=b"5\r\n123456\r\n0\r\n\r\n"), 413),
    "a bare LF behind a chunk": (post(CHUNKED, body=b"5\r\n12345\n0\r\n\r\n"), 413),
    "no line between chunks": (post(CHUNKED, body=b"5\r\n123450\r\n\r\n"), 413),
    "a trailer": (post(CHUNKED, body=b"0\r\nA: b\r\n\r\n"), 413),
    "trailers without an end": (post(CHUNKED, body=b"0\r\n" + b"A: b\r\n" * 2000), 413),
    "a bare LF at the end of the chunks": (post(CHUNKED, body=b"0\r\n\n"), 413),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("how", ["at once", "byte by byte", "behind another one"])
def test_a_hostile_request_is_refused_and_ends_the_connection(
    base: EventBase, client: Client, seen: list[tuple[str, str, bytes]], name: str, how: str
) -> None:
    data, code = REFUSED[name]
    if how == "behind another one":
        client.send(NEXT + data + NEXT)
        assert client.reply().body == b"fine"
        assert seen.pop() == ("GET", "/next", b"")
    elif how == "byte by byte" and len(data) < 300:
        for i in range(len(data)):
            client.send(data[i : i + 1])
            few_rounds(base, 2)
        client.send(NEXT)
    else:
        client.send(data + NEXT)
    assert client.reply().status == code
    assert client.end() == b""
    assert seen == []


# What is unusual and means one thing only.
UNDERSTOOD: dict[str, tuple[bytes, tuple[str, str, bytes]]] = {
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", ("GET", "/", b"")),
    "HTTP/1.0": (
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        ("GET", "/", b""),
    ),
    "a GET with a body": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345",
        ("GET", "/", b"12345"),
    ),
    "a POST without a length": (post(), ("POST", "/", b"")),
    "Content-Length: 0": (post("Content-Length: 0"), ("POST", "/", b"")),
    "a HEAD with no body": (
        b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        ("HEAD", "/", b""),
    ),
    "zeros before a length": (post("Content-Length: 0005", body=b"12345"), ("POST", "/", b"12345")),
    "white space around a value": (
        post("Content-Length: \t 5 \t ", body=b"12345"),
        ("POST", "/", b"12345"),
    ),
    "no space behind the colon": (post("Content-Length:5", body=b"12345"), ("POST", "/", b"12345")),
    "an empty header": (post("A:", "Content-Length: 1", body=b"1"), ("POST", "/", b"1")),
    "chunks": (
        post(CHUNKED, body=b"5\r\n12345\r\n00a\r\n0123456789\r\n0\r\n\r\n"),
        ("POST", "/", b"123450123456789"),
    ),
    "a chunk size in capitals": (
        post("transfer-encoding: CHUNKED", body=b"A\r\n0123456789\r\n000\r\n\r\n"),
        ("POST", "/", b"0123456789"),
    ),
    "no chunk but the last one": (post(CHUNKED, body=b"0\r\n\r\n"), ("POST", "/", b"")),
    "what looks like a request in a body": (
        post(f"Content-Length: {len(NEXT)}", body=NEXT),
        ("POST", "/", NEXT),
    ),
    "an absolute URI": (
        b"GET http://known/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
        ("GET", "http://known/b?c", b""),
    ),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", ("OPTIONS", "*", b"")),
    "bytes beyond ASCII": (
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\nA: \xe9\r\n\r\n",
        ("GET", "/\xc3\xa9", b""),
    ),
    "an Upgrade that nobody takes": (
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ("GET", "/", b""),
    ),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", ("CONNECT", "a:443", b"")),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
@pytest.mark.parametrize("whole", [True, False])
def test_an_unusual_request_is_understood_and_so_is_the_next_one(
    base: EventBase, client: Client, seen: list[tuple[str, str, bytes]], name: str, whole: bool
) -> None:
    data, what = UNDERSTOOD[name]
    data += NEXT
    for part in [data] if whole else [data[i : i + 1] for i in range(len(data))]:
        client.send(part)
        few_rounds(base, 2)
    if what[0] == "CONNECT":  # has no end but that of the connection
        client.run_until(lambda: seen)
        assert seen[0] == what
        return
    assert client.reply(what[0]).status == 200
    assert client.reply().status == 200
    assert seen == [what, ("GET", "/next", b"")]


def test_what_follows_an_upgrade_that_nobody_takes_is_looked_at_too(
    client: Client, seen: list[tuple[str, str, bytes]]
) -> None:
    client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n"
        + REFUSED["both lengths"][0]
        + NEXT
    )
    assert client.reply().status == 200
    assert client.reply().status == 400
    assert client.end() == b""
    assert len(seen) == 1


def test_an_absolute_uri_of_somebody_else_ends_the_connection(
    client: Client, seen: list[tuple[str, str, bytes]]
) -> None:
    client.send(b"GET http://else/ HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT)
    assert client.reply().status == 200
    assert client.end() == b""
    assert seen == [("GET", "http://else/", b"")]


def test_a_connect_that_is_refused_ends_the_connection(
    server: HttpServer, connect: MakeClient, seen: list[tuple[str, str, bytes]]
) -> None:
    def refuse(request: HttpServerRequest) -> None:
        request.send_error(403)

    hostile = b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT
    server.set_gencb(refuse)
    client = connect()
    client.send(hostile)
    assert client.reply().status == 403
    assert client.end() == b""
    for code in (404, 501):
        server.set_gencb(None)
        client = connect()
        client.send(hostile)
        assert client.reply().status == code
        assert client.end() == b""
        server.allowed_methods = EVHTTP_REQ_GET
    assert seen == []


def test_100_continue_comes_before_the_body(
    client: Client, seen: list[tuple[str, str, bytes]]
) -> None:
    client.send(post("Expect: 100-continue", "Content-Length: 5"))
    expected = b"HTTP/1.1 100 Continue\r\n\r\n"
    client.run_until(lambda: client.read() or client.data == expected)
    client.data.clear()
    client.send(b"12345" + NEXT)
    assert client.reply().status == client.reply().status == 200
    assert seen == [("POST", "/", b"12345"), ("GET", "/next", b"")]


def test_a_body_that_is_too_long_is_refused_without_a_continue(client: Client) -> None:
    client.send(post("Expect: 100-continue", "Content-Length: 65537"))
    assert client.reply().status == 413


def test_what_comes_behind_a_hostile_request_is_not_kept(
    client: Client, seen: list[tuple[str, str, bytes]]
) -> None:
    client.send(REFUSED["both lengths"][0])
    client.send(bytes(10 << 20))
    client.end()
    assert seen == []


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_requests_may_come_in_pieces_of_any_size(
    base: EventBase, client: Client, seen: list[tuple[str, str, bytes]], n: int
) -> None:
    requests = [what for name, what in UNDERSTOOD.items() if name != "CONNECT"]
    data = b"".join(data for data, _ in requests)
    for i in range(0, len(data), n):
        client.send(data[i : i + n])
        few_rounds(base, 2)
    for _, what in requests:
        assert client.reply(what[0]).status == 200
    assert seen == [what for _, what in requests]


# ---- any bytes ----

STREAMS = [data for data, _ in UNDERSTOOD.values()] + [data for data, _ in REFUSED.values()]
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b";",
    b"0",
    b"5",
    b"-",
    b"+",
    b"\0",
    b"\x80",
    NEXT,
]


def handled(data: bytes, cuts: list[int]) -> list[tuple[str, str, bytes]]:
    """What handlers get of these bytes, cut up in this way."""
    seen: list[tuple[str, str, bytes]] = []

    def handler(request: HttpServerRequest) -> None:
        seen.append((request.command, request.uri, request.read()))
        request.send_reply(200)

    with EventBase() as base, HttpServer(base) as server:
        server.bind("127.0.0.1", 0)
        server.set_gencb(handler)
        server.max_headers_size = 2000
        with socket.create_connection(server.bound_sockets[0].address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            few_rounds(base, 2)
            for start, end in pairwise([0, *sorted(cuts), len(data)]):
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.send(data[start:end])
                few_rounds(base, 3)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            few_rounds(base, 10)
    return seen


@settings(max_examples=300 * max(FUZZ, 1))
@given(strategies.data())
def test_what_handlers_get_does_not_depend_on_how_it_comes(data: strategies.DataObject) -> None:
    parts = data.draw(strategies.lists(strategies.sampled_from(STREAMS), min_size=1, max_size=4))
    stream = bytearray(b"".join(part[:4000] for part in parts))
    for _ in range(data.draw(strategies.integers(0, 4))):
        at = data.draw(strategies.integers(0, len(stream)))
        gone = data.draw(strategies.integers(0, 3))
        stream[at : at + gone] = data.draw(strategies.sampled_from([b"", *PIECES]))
    cuts = data.draw(strategies.lists(strategies.integers(0, len(stream)), max_size=20))
    assert handled(bytes(stream), cuts) == handled(bytes(stream), [])


def read_by_h11(data: bytes) -> tuple[list[tuple[str, str, bytes]], str]:
    """What h11 makes of them, and why it has stopped."""
    h11 = pytest.importorskip("h11")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    seen: list[tuple[str, str, bytes]] = []
    command = target = body = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return seen, str(error)
        if isinstance(event, h11.Request):
            command, target, body = event.method, event.target, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            seen.append((command.decode(), target.decode("latin-1"), body))
            connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return seen, "the end"
            connection.start_next_cycle()
        else:
            return seen, "no more"


@settings(max_examples=300 * max(FUZZ, 1))
@given(strategies.data())
def test_h11_understands_what_handlers_get_as_they_do(data: strategies.DataObject) -> None:
    """A Host is not asked for here, bytes beyond ASCII are not refused, and HTTP/1.0 may keep its
    connection."""
    plain = [one for one in STREAMS if b"HTTP/1.0" not in one and one.isascii()]
    parts = data.draw(strategies.lists(strategies.sampled_from(plain), min_size=1, max_size=4))
    stream = bytearray(b"".join(part[:4000] for part in parts))
    for _ in range(data.draw(strategies.integers(0, 4))):
        at = data.draw(strategies.integers(0, len(stream)))
        gone = data.draw(strategies.integers(0, 3))
        stream[at : at + gone] = data.draw(strategies.sampled_from([b"", *PIECES]))
    ours = handled(bytes(stream), [])
    theirs, why = read_by_h11(bytes(stream))
    assert ours[: len(theirs)] == theirs[: len(ours)]
    if len(theirs) < len(ours):
        assert "Host" in why or not stream.isascii() or b"HTTP/1.0" in stream
