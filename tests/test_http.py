"""HTTP: requests and their headers, the server."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tls
from common import few_rounds, is_open, measures_memory, received
from conftest import RunUntil
from http_peer import Client
from processes import PLAIN_ENV, in_child

from pylibevent import (
    EV_READ,
    EV_TIMEOUT,
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_OPTIONS,
    EVHTTP_REQ_PATCH,
    EVHTTP_REQ_POST,
    EVHTTP_SERVER_LINGERING_CLOSE,
    EVLOOP_ONCE,
    EVREQ_HTTP_EOF,
    EVREQ_HTTP_REQUEST_CANCEL,
    EVREQ_HTTP_TIMEOUT,
    LEV_OPT_REUSEABLE_PORT,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    HttpBoundSocket,
    HttpError,
    HttpHeaders,
    HttpRequest,
    HttpServer,
    HttpServerRequest,
    LibeventError,
    Timer,
    TLSContext,
    ffi,
    lib,
)

# ---- headers ----


@pytest.fixture
def request_() -> HttpRequest:
    return HttpRequest(print)


def test_headers_are_a_mapping_in_their_order(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["Host"] = "example.org"
    headers.update({"Accept": "*/*", "X-One": "1"})
    assert list(headers) == ["Host", "Accept", "X-One"]
    assert headers["Accept"] == "*/*"
    assert dict(headers) == {"Host": "example.org", "Accept": "*/*", "X-One": "1"}
    assert len(headers) == 3
    assert headers.pop("Accept") == "*/*"
    assert headers.get("Accept") is None
    headers.clear()
    assert not headers


def test_the_case_of_a_header_does_not_matter(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["Content-Type"] = "text/plain"
    assert headers["content-TYPE"] == "text/plain"
    assert "CONTENT-type" in headers
    del headers["content-type"]
    assert "Content-Type" not in headers


def test_a_header_may_be_there_more_than_once(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers.add("Set-Cookie", "a=1")
    headers.add("X", "x")
    headers.add("set-cookie", "b=2")
    assert headers["Set-Cookie"] == "a=1"
    assert headers.getall("SET-COOKIE") == ["a=1", "b=2"]
    assert headers.getall("none") == []
    assert list(headers.items()) == [("Set-Cookie", "a=1"), ("X", "x"), ("set-cookie", "b=2")]
    assert list(headers.keys()) == ["Set-Cookie", "X", "set-cookie"]
    assert list(headers.values()) == ["a=1", "x", "b=2"]
    assert ("set-cookie", "b=2") in headers.items()
    assert "b=2" in headers.values()
    assert len(headers) == 3


def test_setting_a_header_replaces_all_of_its_name_in_the_place_of_the_first(
    request_: HttpRequest,
) -> None:
    headers = request_.output_headers
    for name, value in (("a", "1"), ("b", "2"), ("A", "3"), ("c", "4"), ("a", "5")):
        headers.add(name, value)
    headers["A"] = "6"
    headers.add("d", "7")
    assert list(headers.items()) == [("A", "6"), ("b", "2"), ("c", "4"), ("d", "7")]


def test_deleting_a_header_deletes_all_of_its_name(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers.add("a", "1")
    headers.add("b", "2")
    headers.add("A", "3")
    del headers["a"]
    assert list(headers.items()) == [("b", "2")]
    with pytest.raises(KeyError, match="a"):
        del headers["a"]
    with pytest.raises(KeyError, match="a"):
        headers["a"]


def test_several_headers_are_added_at_once(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["a"] = "1"
    headers.extend([("b", "2"), ("A", "3")])
    headers.extend(iter([("c", "")]))
    headers.extend([])
    assert list(headers.items()) == [("a", "1"), ("b", "2"), ("A", "3"), ("c", "")]
    for wrong in ([("d", 4)], [(b"d", "4")], [("d", None)], 5):
        with pytest.raises(TypeError):
            headers.extend(wrong)  # type: ignore[arg-type]
    for bad in (("d e", "4"), ("", "4"), ("d", "4\r\ne: 5"), ("d", "4\0"), ("d\0", "4"), ("d",)):
        with pytest.raises(ValueError, match=r"no headers|a NUL|to unpack"):
            headers.extend([bad])  # type: ignore[list-item]
    with pytest.raises(UnicodeEncodeError):
        headers.extend([("d", "€")])
    assert "d" not in headers


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\n", "\ra", "a\0b", "a\r\n b"])
def test_a_header_cannot_be_injected_by_a_value(request_: HttpRequest, value: str) -> None:
    headers = request_.output_headers
    with pytest.raises(ValueError, match="no header"):
        headers["A"] = value
    with pytest.raises(ValueError, match="no header"):
        headers.add("A", value)
    assert not headers


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\0", " a", "a\t", "é", "(a)"])
def test_the_name_of_a_header_is_a_token(request_: HttpRequest, name: str) -> None:
    headers = request_.output_headers
    with pytest.raises(ValueError, match="no header"):
        headers[name] = "1"
    with pytest.raises(ValueError, match="no header"):
        headers.add(name, "1")
    assert name not in headers
    assert headers.get(name) is None
    assert headers.getall(name) == []


def test_headers_are_latin_1(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["A"] = "é"
    assert headers["A"] == "é"
    with pytest.raises(ValueError, match="latin-1"):
        headers["A"] = "€"
    with pytest.raises(TypeError, match="value must be a str, not int"):
        headers["A"] = 1  # type: ignore[assignment]
    with pytest.raises(TypeError, match="name must be a str, not bytes"):
        headers[b"A"] = "1"  # type: ignore[index]


def test_the_buffers_of_a_request_are_its_own(request_: HttpRequest) -> None:
    request_.output_buffer.add(b"body")
    assert request_.output_buffer is request_.output_buffer
    request_.output_buffer.close()  # they end with it, as a bufferevent's do
    assert bytes(request_.output_buffer) == b"body"
    request_.input_buffer.add(b"answer")
    assert request_.read() == b"answer"
    assert request_.read() == b""


def test_a_buffer_may_outlive_the_request_object() -> None:
    buffer = HttpRequest(print).output_buffer
    buffer.add(b"body")
    assert bytes(buffer) == b"body"


# ---- the server ----


@pytest.fixture
def server(base: EventBase) -> Iterator[HttpServer]:
    server = HttpServer(base)
    server.bind("127.0.0.1", 0)
    yield server
    if not base.closed:
        server.close()


MakeClient = Callable[[], Client]


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


def hello(request: HttpServerRequest) -> None:
    request.send_reply(200, "OK", b"Hello, World!")


def test_a_handler_answers(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    reply = client.ask("GET /")
    assert (reply.status, reply.reason, reply.body) == (200, "OK", b"Hello, World!")
    assert reply.headers["content-length"] == "13"
    assert reply.headers["content-type"] == "text/html; charset=ISO-8859-1"
    assert "date" in reply.headers


def test_a_connection_serves_many_requests(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    for _ in range(100):
        assert client.ask("GET /").body == b"Hello, World!"


def test_a_handler_gets_its_arguments_and_what_the_request_is(
    server: HttpServer, client: Client
) -> None:
    seen: list[object] = []

    def handler(request: HttpServerRequest, *args: object) -> None:
        uri = request.parsed_uri
        seen.extend((args, request.method, request.command, request.uri, request.host))
        seen.extend((uri.path, uri.query, request.version, request.headers["x-a"], request.read()))
        seen.extend((request.remote, request.base is server.base, request.server is server))
        request.send_reply(200)

    server.set_gencb(handler, 1, "two")
    client.ask("POST /a%20b?c=d\nX-A: x", b"body")
    assert seen == [
        *((1, "two"), EVHTTP_REQ_POST, "POST", "/a%20b?c=d", "localhost"),
        *("/a%20b", "c=d", (1, 1), "x", b"body"),
        *(client.sock.getsockname(), True, True),
    ]


def test_paths_are_decoded_and_have_no_query(server: HttpServer, client: Client) -> None:
    server.set_cb("/a b", hello)
    assert client.ask("GET /a%20b?c").status == 200
    server.set_cb("/é", hello)
    assert client.ask("GET /%c3%a9").status == 200


def test_what_has_no_handler_is_not_found(server: HttpServer, connect: MakeClient) -> None:
    server.set_cb("/", hello)
    assert connect().ask("GET /a").status == 404
    server.set_gencb(lambda request: request.send_reply(200, "Fine", b"else"))
    assert connect().ask("GET /a").body == b"else"
    server.set_gencb(None)
    assert connect().ask("GET /a").status == 404


def test_a_path_has_one_handler(server: HttpServer, connect: MakeClient) -> None:
    server.set_cb("/", hello)
    with pytest.raises(ValueError, match="there is one for '/'"):
        server.set_cb("/", print)
    server.del_cb("/")
    with pytest.raises(KeyError, match="/"):
        server.del_cb("/")
    assert connect().ask("GET /").status == 404
    server.set_cb("/", lambda request: request.send_reply(200, None, b"new"))
    assert connect().ask("GET /").body == b"new"


def test_a_handler_may_take_itself_away(server: HttpServer, connect: MakeClient) -> None:
    def once(request: HttpServerRequest) -> None:
        server.del_cb("/")
        request.send_reply(200, None, b"once")

    server.set_cb("/", once)
    assert connect().ask("GET /").body == b"once"
    assert connect().ask("GET /").status == 404


# ---- replies ----


def test_headers_are_the_handlers(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_headers["Content-Type"] = "text/plain"
        request.output_headers["X-É"[:2] + "A"] = "é"
        request.send_reply(201, "Just so", b"x")

    server.set_cb("/", handler)
    reply = client.ask("GET /")
    assert (reply.status, reply.reason) == (201, "Just so")
    assert reply.headers["content-type"] == "text/plain"
    assert reply.headers["x-a"] == "é"


@pytest.mark.parametrize(
    ("code", "reason"), [(200, "OK"), (307, "Temporary Redirect"), (429, "Too Many Requests")]
)
def test_a_code_has_its_usual_reason(
    server: HttpServer, client: Client, code: int, reason: str
) -> None:
    server.set_cb("/", lambda request: request.send_reply(code))
    assert client.ask("GET /").reason == reason


@pytest.mark.parametrize("reason", ["a\r\nX: 1", "a\n", "\r", "a\0"])
def test_a_reason_injects_nothing(server: HttpServer, client: Client, reason: str) -> None:
    def handler(request: HttpServerRequest) -> None:
        for send in (request.send_reply, request.send_error, request.send_reply_start):
            with pytest.raises(ValueError, match="not a code, a reason"):
                send(200, reason)
        request.send_reply(200, "fine")

    server.set_cb("/", handler)
    assert client.ask("GET /").reason == "fine"


@pytest.mark.parametrize("code", [-1, 0, 99, 100, 101, 199, 1000, 1 << 31])
def test_what_is_no_code_is_not_sent(server: HttpServer, client: Client, code: int) -> None:
    def handler(request: HttpServerRequest) -> None:
        for send in (request.send_reply, request.send_error):
            with pytest.raises(ValueError, match="code"):
                send(code)
        request.send_reply(200)

    server.set_cb("/", handler)
    assert client.ask("GET /").status == 200


def test_bodies_are_bytes_or_buffers(server: HttpServer, client: Client) -> None:
    bodies: list[Any] = [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), EvBuffer(b"bytes")]

    def handler(request: HttpServerRequest) -> None:
        request.send_reply(200, None, bodies[0])

    server.set_cb("/", handler)
    while bodies:
        assert client.ask("GET /").body == b"bytes"
        if isinstance(body := bodies.pop(0), EvBuffer):
            assert len(body) == 0  # it has moved


def test_the_output_buffer_comes_before_the_body(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_buffer.add(b"a")
        request.send_reply(200, None, b"b")

    server.set_cb("/", handler)
    server.set_cb("/own", lambda request: request.send_reply(200, None, request.output_buffer))
    assert client.ask("GET /").body == b"ab"
    assert client.ask("GET /own").body == b""


def test_a_body_is_no_text(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        with pytest.raises(TypeError):
            request.send_reply(200, None, "text")  # type: ignore[arg-type]
        request.send_reply(200)

    server.set_cb("/", handler)
    assert client.ask("GET /").status == 200


def test_head_has_no_body_but_its_length(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    reply = client.ask("HEAD /")
    assert reply.headers["content-length"] == "13"
    assert client.ask("GET /").body == b"Hello, World!"  # right behind it


@pytest.mark.parametrize("code", [204, 304])
def test_codes_without_a_body_have_none(server: HttpServer, client: Client, code: int) -> None:
    server.set_cb("/", lambda request: request.send_reply(code, None, b"body"))
    for _ in range(2):
        assert client.ask("GET /").status == code


def test_lengths_have_to_be_right(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        for wrong in ("4", "6", "-5", "+5", "5a", ""):
            request.output_headers["Content-Length"] = wrong
            with pytest.raises(ValueError, match="a length that fits"):
                request.send_reply(200, None, b"" if request.output_buffer else b"12345")
        request.output_headers["Content-Length"] = "5"
        request.output_headers["Transfer-Encoding"] = "chunked"
        with pytest.raises(ValueError, match="fits the headers"):
            request.send_reply(200)
        del request.output_headers["Transfer-Encoding"]
        request.send_reply(200)

    server.set_cb("/", handler)
    assert client.ask("GET /").body == b"12345"


def test_a_reply_is_sent_once(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.send_reply(200, None, b"one")
        for send in (request.send_reply, request.send_error, request.send_reply_start):
            with pytest.raises(ClosedError):
                send(200)
        with pytest.raises(ClosedError):
            request.send_reply_chunk(b"a")
        with pytest.raises(ClosedError):
            request.send_reply_end()

    server.set_cb("/", handler)
    for _ in range(2):
        assert client.ask("GET /").body == b"one"


def test_errors_are_pages_and_end_the_connection(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_headers["X-A"] = "dropped"
        request.output_buffer.add(b"dropped")
        request.send_error(418, "<b>")

    server.set_cb("/", handler)
    reply = client.ask("GET /")
    assert (reply.status, reply.reason) == (418, "<b>")
    assert b"<h1>&lt;b&gt;</h1>" in reply.body
    assert "x-a" not in reply.headers
    assert reply.headers["connection"] == "close"
    assert client.end() == b""


@pytest.mark.parametrize("at_front", [True, False])
def test_a_body_that_is_frozen_does_not_go_out(
    server: HttpServer, client: Client, at_front: bool
) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_buffer.add(b"body")
        request.output_buffer.freeze(at_front)
        with pytest.raises(LibeventError):
            request.send_reply(200, None, b", and more")
        if at_front:
            for send in (request.send_reply, request.send_reply_start):
                with pytest.raises(LibeventError):
                    send(200)
        request.output_buffer.unfreeze(at_front)
        request.send_reply(200)

    server.set_gencb(handler)
    assert client.ask("GET /").body == b"body"


def test_an_error_takes_the_place_of_a_body_that_is_frozen(
    server: HttpServer, client: Client
) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_buffer.add(b"body")
        request.output_buffer.freeze(at_front=True)
        request.output_buffer.freeze(at_front=False)
        request.send_error(404)

    server.set_gencb(handler)
    reply = client.ask("GET /")
    assert reply.status == 404
    assert b"Not Found" in reply.body


def test_a_reply_may_come_later(server: HttpServer, client: Client, base: EventBase) -> None:
    def handler(request: HttpServerRequest) -> None:
        timer = Timer(base, request.send_reply, 200, "OK", b"later")
        timer.add(0.01)

    server.set_cb("/", handler)
    for _ in range(3):
        assert client.ask("GET /").body == b"later"


def test_pipelined_requests_are_answered_in_order(
    server: HttpServer, client: Client, base: EventBase
) -> None:
    def handler(request: HttpServerRequest) -> None:
        body = request.uri.encode()
        if body == b"/1":
            Timer(base, request.send_reply, 200, "OK", body).add(0.01)
        else:
            request.send_reply(200, "OK", body)

    server.set_gencb(handler)
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(5)))
    assert [client.reply().body for _ in range(5)] == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_http_1_0_ends_the_connection_unless_it_is_kept_alive(
    server: HttpServer, client: Client
) -> None:
    server.set_cb("/", hello)
    reply = client.ask("GET / HTTP/1.0\nConnection: keep-alive")
    assert reply.headers["connection"] == "keep-alive"
    assert client.ask("GET / HTTP/1.0").body == b"Hello, World!"
    assert client.end() == b""


def test_a_client_may_end_the_connection(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    assert client.ask("GET /\nConnection: close").headers["connection"] == "close"
    assert client.end() == b""


def test_a_handler_may_end_the_connection(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_headers["Connection"] = "close"
        request.send_reply(200)

    server.set_cb("/", handler)
    assert client.ask("GET /").headers["connection"] == "close"
    assert client.end() == b""


def test_a_half_closed_client_gets_its_reply(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    client.sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply().body == b"Hello, World!"


def test_a_large_reply_gets_there(server: HttpServer, client: Client) -> None:
    body = os.urandom(8 << 20)
    server.set_cb("/", lambda request: request.send_reply(200, None, body))
    for _ in range(2):
        assert client.ask("GET /").body == body


def test_c_code_may_answer_by_itself(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        lib.evhttp_add_header(request.ptr.output_headers, b"X-A", b"x")
        lib.evhttp_send_reply(request.ptr, 200, b"Fine", ffi.NULL)

    server.set_cb("/", handler)
    for _ in range(2):
        reply = client.ask("GET /")
        assert (reply.status, reply.reason, reply.headers["x-a"]) == (200, "Fine", "x")


# ---- replies in parts ----


def test_a_reply_in_parts_is_chunked(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_buffer.add(b"first ")
        request.send_reply_start(200)
        request.send_reply_chunk(b"a")
        request.send_reply_chunk(b"")
        request.send_reply_chunk(EvBuffer(b"b"))
        request.send_reply_chunk(bytearray(b"c"))
        request.send_reply_end()

    server.set_cb("/", handler)
    for _ in range(2):
        reply = client.ask("GET /")
        assert reply.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in reply.headers
        assert reply.body == b"first abc"


def test_a_generator_is_driven_by_the_callbacks_of_chunks(
    server: HttpServer, client: Client
) -> None:
    part = b"x" * 100_000

    def handler(request: HttpServerRequest) -> None:
        parts = iter([part] * 50)
        request.send_reply_start(200)
        more(request, parts)

    def more(request: HttpServerRequest, parts: Iterator[bytes]) -> None:
        for one in parts:
            request.send_reply_chunk(one, more, parts)
            return
        request.send_reply_end()

    server.set_cb("/", handler)
    for _ in range(2):
        assert client.ask("GET /").body == part * 50


def test_each_callback_of_a_chunk_is_called_once_in_order(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    seen: list[object] = []

    def handler(request: HttpServerRequest) -> None:
        request.send_reply_start(200)
        for n in range(5):
            request.send_reply_chunk(b"x" * n, lambda request, n: seen.append(n), n)
        request.on_complete(lambda request: seen.append("end"))
        request.send_reply_end()

    server.set_cb("/", handler)
    assert client.ask("GET /").body == b"x" * 10
    run_until(lambda: seen[-1:] == ["end"])
    assert seen == [0, 1, 2, 3, 4, "end"]


def test_a_part_needs_a_reply_that_has_begun(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        with pytest.raises(RuntimeError, match=r"send_reply_start\(\) comes first"):
            request.send_reply_chunk(b"a", print)
        with pytest.raises(RuntimeError, match=r"send_reply_start\(\) comes first"):
            request.send_reply_end()
        request.send_reply_start(200)
        for send in (request.send_reply, request.send_reply_start, request.send_error):
            with pytest.raises(RuntimeError, match="a reply has begun"):
                send(200)
        request.send_reply_end()

    server.set_cb("/", handler)
    assert client.ask("GET /").body == b""


def test_parts_have_the_length_that_was_promised(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_headers["Content-Length"] = "5"
        request.send_reply_start(200)
        request.send_reply_chunk(b"123")
        with pytest.raises(ValueError, match="a length that fits"):
            request.send_reply_chunk(b"456")
        with pytest.raises(ValueError, match="a length that fits"):
            request.send_reply_chunk(EvBuffer(b"456"))
        request.send_reply_chunk(b"45")
        request.send_reply_end()

    server.set_cb("/", handler)
    for _ in range(2):
        assert client.ask("GET /").body == b"12345"


def test_a_reply_shorter_than_promised_ends_the_connection(
    server: HttpServer, client: Client
) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_headers["Content-Length"] = "5"
        request.send_reply_start(200)
        request.send_reply_chunk(b"123")
        request.send_reply_end()

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.end().endswith(b"\r\n\r\n123")


@pytest.mark.parametrize("keep", ["", "\nConnection: keep-alive", "\nConnection: Keep-Alive"])
def test_http_1_0_gets_a_reply_in_parts_up_to_the_end_of_the_connection(
    server: HttpServer, client: Client, keep: str
) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.send_reply_start(200)
        request.send_reply_chunk(b"abc")
        request.send_reply_end()

    server.set_cb("/", handler)
    reply = client.ask(f"GET / HTTP/1.0{keep}")
    assert reply.body == b"abc"
    assert "transfer-encoding" not in reply.headers
    assert "content-length" not in reply.headers
    assert client.ended


def test_head_gets_no_parts(server: HttpServer, client: Client, run_until: RunUntil) -> None:
    called: list[int] = []

    def handler(request: HttpServerRequest) -> None:
        request.send_reply_start(200)
        request.send_reply_chunk(b"abc", more)

    def more(request: HttpServerRequest) -> None:
        called.append(1)
        request.send_reply_end()

    server.set_cb("/", handler)
    for _ in range(2):
        assert client.ask("HEAD /").status == 200
        run_until(lambda: called and called.pop())


# ---- what becomes of a request ----


def test_on_complete_is_called_when_the_reply_is_written(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    seen: list[str] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_complete(lambda request, what: seen.append(request.uri + what), "!")
        request.on_error(print)
        request.send_reply(200)

    server.set_cb("/", handler)
    client.ask("GET /")
    run_until(lambda: seen == ["/!"])


def test_a_request_is_over_when_its_reply_is_written(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    kept: list[HttpServerRequest] = []

    def handler(request: HttpServerRequest) -> None:
        kept.append(request)
        request.input_buffer  # noqa: B018
        request.send_reply(200)

    server.set_cb("/", handler)
    client.ask("POST /", b"body")
    run_until(lambda: kept[0].closed)
    for use in (
        lambda: kept[0].uri,
        lambda: kept[0].headers["Host"],
        lambda: len(kept[0].input_buffer),
        lambda: kept[0].output_buffer,
        lambda: kept[0].send_reply(200),
        lambda: kept[0].on_complete(print),
        kept[0].own,
    ):
        with pytest.raises(ClosedError):
            use()
    kept[0].cancel()
    assert "closed" in repr(kept[0])
    assert "closed" in repr(kept[0].headers)


def test_an_owned_request_can_be_read_as_long_as_the_object_is_there(
    server: HttpServer, client: Client
) -> None:
    kept: list[HttpServerRequest] = []

    def handler(request: HttpServerRequest) -> None:
        kept.append(request)
        assert not request.owned
        request.own()
        assert request.owned
        request.send_reply(200)

    server.set_cb("/", handler)
    client.ask("POST /\nX-A: x", b"one")
    client.ask("POST /\nX-A: y", b"two")
    client.close()
    server.close()
    assert [request.headers["X-A"] for request in kept] == ["x", "y"]
    assert [request.read() for request in kept] == [b"one", b"two"]
    with pytest.raises(ClosedError):
        kept[0].send_reply(200)


def test_a_view_of_a_body_outlives_the_request(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    views: list[memoryview] = []

    def handler(request: HttpServerRequest) -> None:
        views.extend(request.input_buffer.peek())
        request.send_reply(200)

    server.set_cb("/", handler)
    client.ask("POST /", b"body" * 1000)
    client.ask("POST /", b"body" * 1000)
    assert b"".join(views) == b"body" * 2000
    for view in views:
        view.release()


def test_a_view_of_the_output_has_to_go_before_the_reply(
    server: HttpServer, client: Client
) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.output_buffer.add(b"abc")
        (view,) = request.output_buffer.peek()
        with pytest.raises(BufferError, match="memoryview"):
            request.send_reply(200)
        view.release()
        request.send_reply(200)

    server.set_cb("/", handler)
    assert client.ask("GET /").body == b"abc"


def test_the_client_gets_a_500_for_an_exception(
    server: HttpServer, client: Client, base: EventBase
) -> None:
    def handler(request: HttpServerRequest) -> None:
        raise LookupError("from the handler")

    server.set_cb("/", handler)
    client.sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(LookupError, match="from the handler"):
        base.dispatch()
    client.read()  # the loop has ended
    assert client.reply().status == 500
    assert client.end() == b""


def test_the_exception_handler_may_answer(
    server: HttpServer, connect: MakeClient, base: EventBase
) -> None:
    seen: list[object] = []

    def on_exception(error: Exception, source: object) -> None:
        seen.append(str(error))
        if isinstance(source, HttpServerRequest) and source.uri == "/answer":
            source.send_reply(503)

    def handler(request: HttpServerRequest) -> None:
        raise LookupError(request.uri)

    base.exception_handler = on_exception
    server.set_gencb(handler)
    assert connect().ask("GET /").status == 500
    assert connect().ask("GET /answer").status == 503
    assert seen == ["/", "/answer"]


def test_an_exception_in_the_middle_of_a_reply_ends_the_connection(
    server: HttpServer, client: Client, base: EventBase
) -> None:
    def handler(request: HttpServerRequest) -> None:
        request.send_reply_start(200)
        request.send_reply_chunk(b"abc")
        raise LookupError

    base.exception_handler = lambda error, source: None
    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"0\r\n\r\n" not in client.end()


def test_exceptions_of_the_other_callbacks_go_their_way_too(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    def fail(request: HttpServerRequest) -> None:
        raise LookupError("complete")

    def handler(request: HttpServerRequest) -> None:
        request.on_complete(fail)
        request.send_reply(200, None, b"abc")

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(LookupError, match="complete"):
        run_until(lambda: None)
    assert client.reply().body == b"abc"


def test_an_exception_where_the_next_part_was_to_be_made_ends_the_connection(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    errors: list[HttpError] = []

    def fail(request: HttpServerRequest) -> None:
        raise LookupError("chunk")

    def handler(request: HttpServerRequest) -> None:
        request.on_error(lambda request, error: errors.append(error))
        request.send_reply_start(200)
        request.send_reply_chunk(b"abc", fail)

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(LookupError, match="chunk"):
        run_until(lambda: None)
    assert client.end().endswith(b"3\r\nabc\r\n")
    run_until(lambda: errors == [EVREQ_HTTP_REQUEST_CANCEL])


def test_nobody_is_told_after_the_base_was_closed(base: EventBase, server: HttpServer) -> None:
    kept: list[HttpServerRequest] = []
    told: list[str] = []

    def close(request: HttpServerRequest, error: HttpError) -> None:
        told.append("error")
        base.close()

    def handler(request: HttpServerRequest) -> None:
        kept.append(request)
        request.on_error(close)
        request.on_close(lambda request: told.append("close"))

    server.set_cb("/", handler)
    with socket.create_connection(server.bound_sockets[0].address) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        few_rounds(base)
    few_rounds(base)
    assert kept[0].closed
    assert told == ["error"]


def test_the_client_gets_a_500_for_a_request_that_was_dropped(
    server: HttpServer, connect: MakeClient, run_until: RunUntil
) -> None:
    kept: list[HttpServerRequest] = []
    server.set_cb("/now", lambda request: None)
    server.set_cb("/later", kept.append)
    assert connect().ask("GET /now").status == 500
    client = connect()
    client.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: kept)
    kept.clear()
    assert client.reply().status == 500


def test_the_connection_ends_for_a_request_dropped_in_the_middle_of_its_reply(
    server: HttpServer, client: Client
) -> None:
    server.set_cb("/", lambda request: request.send_reply_start(200))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.end()


def test_a_handler_that_never_answers_ends_with_the_timeout(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    errors: list[HttpError] = []
    kept: list[HttpServerRequest] = []

    def handler(request: HttpServerRequest) -> None:
        kept.append(request)
        request.on_error(lambda request, error: errors.append(error))

    server.timeout = 0.05
    server.set_cb("/", handler)
    assert client.ask("GET /").status == 503
    run_until(lambda: errors == [EVREQ_HTTP_TIMEOUT])
    with pytest.raises(ClosedError):
        kept[0].send_reply(200)
    assert client.end() == b""


def test_a_reply_that_never_ends_ends_with_the_timeout(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    kept: list[HttpServerRequest] = []

    def handler(request: HttpServerRequest) -> None:
        kept.append(request)
        request.send_reply_start(200)
        request.send_reply_chunk(b"abc")

    server.timeout = 0.05
    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.end().endswith(b"3\r\nabc\r\n")
    assert kept[0].closed


def test_a_reply_may_take_longer_than_the_timeout_if_it_goes_on(
    server: HttpServer, client: Client, base: EventBase
) -> None:
    left = [10]

    def handler(request: HttpServerRequest) -> None:
        request.send_reply_start(200)
        more(request)

    def more(request: HttpServerRequest) -> None:
        if left[0] == 0:
            request.send_reply_end()
            return
        left[0] -= 1
        request.send_reply_chunk(b"x")
        Timer(base, more, request).add(0.03)

    server.timeout = 0.2
    server.set_cb("/", handler)
    assert client.ask("GET /").body == b"x" * 10


def test_a_client_that_sends_nothing_ends_with_the_timeout(
    server: HttpServer, connect: MakeClient
) -> None:
    server.timeout = 0.05
    server.set_cb("/", hello)
    assert connect().end() == b""
    client = connect()
    client.send(b"GET / HTTP/1.1\r\n")
    client.end()
    client = connect()
    assert client.ask("GET /").status == 200
    assert client.end() == b""


def test_a_client_that_reads_nothing_ends_with_the_timeout(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    errors: list[HttpError] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_error(lambda request, error: errors.append(error))
        request.send_reply(200, None, bytes(64 << 20))

    server.timeout = 0.1
    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: errors == [EVREQ_HTTP_TIMEOUT])


def test_a_client_that_goes_while_the_reply_is_made_is_seen(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    seen: list[object] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_error(lambda request, error: seen.append((request.uri, error)))
        request.on_close(lambda request, what: seen.append(what), "closed")
        request.on_complete(print)

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(server.base)
    client.close()
    run_until(lambda: seen == [("/", EVREQ_HTTP_EOF), "closed"])


def test_a_client_that_goes_in_the_middle_of_a_request_leaves_nothing(
    server: HttpServer, connect: MakeClient, base: EventBase
) -> None:
    server.set_gencb(hello)
    for part in (
        b"",
        b"GE",
        b"GET / HTTP/1.1\r\nHo",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12",
    ):
        client = connect()
        client.send(part)
        few_rounds(base)
        client.close()
    few_rounds(base)
    assert lib.pyle_alive(lib.PYLE_HTTP_CONNS) == 0


def test_a_client_that_goes_in_the_middle_of_a_reply_leaves_nothing(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    server.set_cb("/", lambda request: request.send_reply(200, None, bytes(16 << 20)))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(server.base)
    client.close()
    run_until(lambda: lib.pyle_alive(lib.PYLE_HTTP_CONNS) == 0)
    assert lib.pyle_alive(lib.PYLE_REQUESTS) == 0


def test_what_a_client_sends_while_the_reply_is_made_is_bounded(
    server: HttpServer, client: Client, base: EventBase
) -> None:
    kept: list[HttpServerRequest] = []
    server.set_cb("/", kept.append)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(base)
    sent = 0
    requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10000
    for _ in range(1000):
        try:
            sent += client.sock.send(requests)
        except BlockingIOError:
            break
        few_rounds(base, 3)
    else:
        raise AssertionError(f"{sent} bytes are in memory")
    rounds, late = 0, list[bool]()
    Timer(base, late.append, True).add(0.1)
    while not late:  # what has come and is not read does not wake the loop
        base.loop(EVLOOP_ONCE)
        rounds += 1
    assert rounds < 10
    kept.pop().send_reply(200, None, b"first")  # and is read as ever behind that
    assert client.reply().body == b"first"
    for _ in range(20):
        client.run_until(lambda: kept)
        kept.pop().send_reply(200, None, b"next")
        assert client.reply().body == b"next"


def test_cancel_ends_the_connection(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    errors: list[HttpError] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_error(lambda request, error: errors.append(error))
        request.cancel()
        request.close()

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.end() == b""
    run_until(lambda: errors == [EVREQ_HTTP_REQUEST_CANCEL])


def test_a_connection_is_taken_over_after_a_101(server: HttpServer, client: Client) -> None:
    taken: list[BufferEvent] = []

    def echo(bev: BufferEvent) -> None:
        bev.output.add_buffer(bev.input)

    def handler(request: HttpServerRequest) -> None:
        request.output_headers["Upgrade"] = "echo"
        request.output_headers["Connection"] = "Upgrade"
        bev = request.take_over()
        bev.setcb(echo, None, None)
        bev.enable(EV_READ)
        taken.append(bev)
        with pytest.raises(ClosedError):
            request.send_reply(200)

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
    reply = client.reply()
    assert (reply.status, reply.headers["upgrade"]) == (101, "echo")
    client.send(b"hello")
    client.run_until(lambda: client.read() or client.data == b"hello")
    server.close()  # it is no more the server's
    client.send(b"!")
    client.run_until(lambda: client.read() or client.data == b"hello!")
    taken.pop().close()
    assert client.end() == b"hello!"


def test_what_came_behind_the_request_is_taken_over_too(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    got: list[bytes] = []

    def on_read(bev: BufferEvent) -> None:
        got.append(bytes(bev.input))
        bev.close()

    def handler(request: HttpServerRequest) -> None:
        request.send_reply_start(200, "Connection established")
        bev = request.take_over()
        bev.setcb(on_read, None, None)
        bev.enable(EV_READ)

    server.allowed_methods = EVHTTP_REQ_CONNECT
    server.set_gencb(handler)
    client.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03\x01 any bytes\n")
    run_until(lambda: got == [b"\x16\x03\x01 any bytes\n"])


# ---- the server's settings ----


def test_methods_that_are_not_allowed_are_refused(server: HttpServer, connect: MakeClient) -> None:
    server.set_gencb(hello)
    assert connect().ask("PATCH /").status == 501
    server.allowed_methods = EVHTTP_REQ_PATCH | EVHTTP_REQ_OPTIONS
    assert server.allowed_methods == EVHTTP_REQ_PATCH | EVHTTP_REQ_OPTIONS
    assert connect().ask("PATCH /").status == 200
    assert connect().ask("GET /").status == 501
    with pytest.raises(ValueError, match="methods"):
        server.allowed_methods = 1 << 12


def test_a_body_that_is_too_long_is_refused(server: HttpServer, connect: MakeClient) -> None:
    server.max_body_size = 10
    server.set_cb("/", lambda request: request.send_reply(200, None, request.read()))
    assert connect().ask("POST /", b"0123456789").body == b"0123456789"
    assert connect().ask("POST /", b"0123456789a").status == 413
    client = connect()
    client.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n"
    )
    assert client.reply().status == 413
    assert client.end() == b""


def test_headers_that_are_too_long_are_refused(server: HttpServer, connect: MakeClient) -> None:
    server.max_headers_size = 1000
    server.set_cb("/", hello)
    assert connect().ask(f"GET /\nA: {'x' * 900}").status == 200
    assert connect().ask(f"GET /\nA: {'x' * 1000}").status == 400
    assert connect().ask(f"GET /{'x' * 1000}").status == 400


def test_settings_have_safe_defaults_and_can_be_read(server: HttpServer) -> None:
    assert server.max_headers_size == 65536
    assert server.max_body_size == 64 << 20
    assert server.timeout == 60
    assert server.flags == 0
    server.timeout = None
    assert server.timeout is None
    server.flags = EVHTTP_SERVER_LINGERING_CLOSE
    assert server.flags == EVHTTP_SERVER_LINGERING_CLOSE
    with pytest.raises(ValueError, match="number of bytes"):
        server.max_body_size = -1
    with pytest.raises(ValueError, match="seconds"):
        server.timeout = -1
    with pytest.raises(ValueError, match="more than 0"):
        server.timeout = 0


def test_replies_have_the_default_content_type(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    server.default_content_type = "text/plain"
    assert server.default_content_type == "text/plain"
    assert client.ask("GET /").headers["content-type"] == "text/plain"
    server.default_content_type = None
    assert "content-type" not in client.ask("GET /").headers
    with pytest.raises(ValueError, match="CR or LF"):
        server.default_content_type = "a\r\nX: 1"


def test_a_server_may_listen_at_several_places(
    server: HttpServer, run_until: RunUntil, tmp_path: Path
) -> None:
    server.set_cb("/", lambda request: request.send_reply(200, None, b"here"))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        taken = server.accept(unix)
        assert unix.fileno() == -1
    assert taken.address == str(tmp_path / "socket")
    other = server.bind("127.0.0.1", 0, backlog=5)
    assert len(server.bound_sockets) == 3
    for bound in server.bound_sockets:
        family = socket.AF_UNIX if bound is taken else socket.AF_INET
        with socket.socket(family) as sock:
            sock.connect(bound.address)
            sock.setblocking(False)
            sock.send(b"GET / HTTP/1.0\r\n\r\n")
            data = b""

            def there() -> bool:
                nonlocal data
                data += received(sock)
                return data.endswith(b"here")

            run_until(there)
    fd = other.fd
    other.close()
    other.close()
    assert not is_open(fd)
    assert other not in server.bound_sockets
    with pytest.raises(ClosedError):
        other.fd  # noqa: B018


def test_connections_wait_while_a_socket_is_disabled(
    server: HttpServer, client: Client, base: EventBase
) -> None:
    (bound,) = server.bound_sockets
    server.set_cb("/", hello)
    bound.disable()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(base)
    assert not client.read()
    assert client.data == b""
    bound.enable()
    assert client.reply().body == b"Hello, World!"
    bound.close()
    for use in (bound.enable, bound.disable):
        with pytest.raises(ClosedError):
            use()


def test_an_address_in_use_is_an_oserror(server: HttpServer) -> None:
    with pytest.raises(OSError, match="in use"):
        server.bind(*server.bound_sockets[0].address)
    with socket.socket() as sock, pytest.raises(OSError, match="Invalid argument"):
        server.accept(sock)  # it does not listen
    shared = server.bind("127.0.0.1", 0, flags=LEV_OPT_REUSEABLE_PORT)
    server.bind(*shared.address, flags=LEV_OPT_REUSEABLE_PORT)


def test_virtual_hosts_answer_for_their_names(
    server: HttpServer, base: EventBase, client: Client
) -> None:
    vhost, inner = HttpServer(base), HttpServer(base)
    for one, name in ((server, b"root"), (vhost, b"vhost"), (inner, b"inner")):
        one.set_gencb(lambda request, name: request.send_reply(200, None, name), name)
    server.add_virtual_host("*.example.org", vhost)
    vhost.add_virtual_host("inner.*.org", inner)
    vhost.add_server_alias("alias")

    def who(host: str) -> bytes:
        client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return client.reply().body

    assert who("localhost") == b"root"
    assert who("a.example.org:80") == b"vhost"
    assert who("A.EXAMPLE.ORG") == b"vhost"
    assert who("inner.example.org") == b"inner"
    assert who("alias") == b"vhost"
    vhost.remove_server_alias("alias")
    assert who("alias") == b"root"
    with pytest.raises(ValueError, match="no such name"):
        vhost.remove_server_alias("alias")
    inner.close()
    assert who("inner.example.org") == b"vhost"
    server.remove_virtual_host(vhost)
    assert who("a.example.org") == b"root"
    with pytest.raises(ValueError, match="none of this one"):
        server.remove_virtual_host(vhost)
    vhost.close()


def test_a_virtual_host_is_one_once(server: HttpServer, base: EventBase) -> None:
    vhost = HttpServer(base)
    server.add_virtual_host("a", vhost)
    for to in (server, vhost):
        with pytest.raises(ValueError, match="it is one already"):
            to.add_virtual_host("b", vhost)
    with pytest.raises(ValueError, match="listens"):
        vhost.add_virtual_host("b", server)
    with pytest.raises(RuntimeError, match="no sockets of its own"):
        vhost.bind("127.0.0.1", 0)
    server.close()  # it stays, alone
    vhost.bind("127.0.0.1", 0)
    vhost.close()


# ---- closing ----


def test_close_ends_connections_and_what_waits(
    server: HttpServer, connect: MakeClient, run_until: RunUntil
) -> None:
    errors: list[HttpError] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_error(lambda request, error: errors.append(error))

    server.set_cb("/", handler)
    idle, client = connect(), connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(server.base)
    fd = server.bound_sockets[0].fd
    server.close()
    server.close()
    assert server.closed
    assert not is_open(fd)
    assert idle.end() == client.end() == b""
    run_until(lambda: errors == [EVREQ_HTTP_REQUEST_CANCEL])
    for use in (
        lambda: server.bind("127.0.0.1", 0),
        lambda: server.set_cb("/", print),
        lambda: server.ptr,
    ):
        with pytest.raises(ClosedError):
            use()


@pytest.mark.parametrize("what", ["server", "base"])
@pytest.mark.parametrize("when", ["before", "after", "middle", "chunk", "complete", "error"])
@pytest.mark.parametrize("body", [b"", b"body"])
def test_all_may_be_closed_in_each_callback(
    server: HttpServer, client: Client, base: EventBase, what: str, when: str, body: bytes
) -> None:
    closed: list[HttpServerRequest] = []

    def close(request: HttpServerRequest, *_: object) -> None:
        {"server": server, "base": base}[what].close()
        closed.append(request)

    def handler(request: HttpServerRequest) -> None:
        if when == "before":
            close(request)
            return
        if when == "complete":
            request.on_complete(close)
        if when == "error":
            request.on_error(close)
            request.on_close(print)
            client.close()
            kept.append(request)
            return
        if when in ("middle", "chunk"):
            request.send_reply_start(200)
            request.send_reply_chunk(b"abc", *([close] if when == "chunk" else []))
            if when == "middle":
                close(request)
            else:
                kept.append(request)
            return
        request.send_reply(200, None, b"body")
        if when == "after":
            close(request)

    kept: list[HttpServerRequest] = []
    server.set_cb("/", handler)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    client.sock.send(head + body + head + body)
    deadline = Timer(base, base.loopexit)
    deadline.add(5)
    while not closed:
        base.loop(EVLOOP_ONCE)
    assert closed[0].closed or when in ("chunk", "complete", "error")
    if not base.closed:
        deadline.close()
    few_rounds(base)
    assert server.closed


def test_a_server_knows_how_many_requests_are_not_answered(
    server: HttpServer, client: Client, run_until: RunUntil
) -> None:
    kept: list[HttpServerRequest] = []
    server.set_cb("/", kept.append)
    assert server.unanswered == 0
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: kept)
    assert server.unanswered == 1
    kept[0].send_reply(200, None, b"body")
    assert client.reply().body == b"body"
    assert server.unanswered == 0


@pytest.mark.parametrize("times", [1, 2])
def test_a_base_may_close_before_what_a_closed_server_has_to_tell(
    server: HttpServer, client: Client, base: EventBase, times: int
) -> None:
    kept: list[HttpServerRequest] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_close(print)
        kept.append(request)

    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(base)
    for _ in range(times):
        server.close()
    base.close()
    assert kept[0].closed


def test_a_base_closes_its_servers(run_until: RunUntil) -> None:
    base = EventBase()
    server = HttpServer(base)
    bound = server.bind("127.0.0.1", 0)
    server.set_cb("/", hello)
    server.set_gencb(hello)
    base.close()
    assert server.closed
    assert bound.closed
    server.close()
    bound.close()
    with pytest.raises(ClosedError):
        server.set_cb("/", hello)
    with pytest.raises(ClosedError):
        HttpServer(base)


def test_a_server_is_a_context_manager(base: EventBase) -> None:
    with HttpServer(base) as server:
        server.bind("127.0.0.1", 0)
        assert "127.0.0.1" in repr(server)
    assert server.closed
    with pytest.raises(TypeError, match="base must be an EventBase"):
        HttpServer(None)  # type: ignore[arg-type]
    for kind in (HttpServerRequest, HttpBoundSocket, HttpHeaders):
        with pytest.raises(TypeError):
            kind()


# ---- threads, fork ----


def test_another_thread_is_told_that_it_is_one(server: HttpServer, client: Client) -> None:
    raised: list[BaseException] = []

    def elsewhere(request: HttpServerRequest) -> None:
        for use in (
            lambda: request.send_reply(200),
            lambda: request.uri,
            lambda: request.headers["Host"],
            lambda: request.output_headers.add("a", "b"),
            lambda: server.set_cb("/b", print),
            server.close,
        ):
            try:
                use()
            except BaseException as error:
                raised.append(error)

    def handler(request: HttpServerRequest) -> None:
        thread = threading.Thread(target=elsewhere, args=(request,))
        thread.start()
        thread.join()
        request.send_reply(200)

    server.set_cb("/", handler)
    assert client.ask("GET /").status == 200
    assert [type(error) for error in raised] == [RuntimeError] * 6
    assert "in use by another thread" in str(raised[0])


def test_a_request_dropped_by_another_thread_is_answered(
    server: HttpServer, client: Client
) -> None:
    def drop(box: list[HttpServerRequest]) -> None:
        started.wait()
        box.clear()

    def handler(request: HttpServerRequest) -> None:
        threads.append(threading.Thread(target=drop, args=([request],)))
        threads[0].start()

    threads: list[threading.Thread] = []
    started = threading.Event()
    server.set_cb("/", handler)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    few_rounds(server.base)
    started.set()
    threads.pop().join()
    assert client.reply().status == 500


def test_a_child_cannot_use_the_server_before_reinit(server: HttpServer, client: Client) -> None:
    server.set_cb("/", hello)
    assert client.ask("GET /").status == 200

    def child() -> None:
        with pytest.raises(RuntimeError, match="reinit"):
            server.set_cb("/b", print)
        with pytest.raises(RuntimeError, match="reinit"):
            server.close()
        server.base.close()

    in_child(child)
    assert client.ask("GET /").status == 200  # the connection is as it was


def test_a_child_goes_on_listening_and_leaves_the_parent_its_connections(
    server: HttpServer, client: Client, connect: MakeClient
) -> None:
    server.set_cb("/", lambda request: request.send_reply(200, None, b"%d" % os.getpid()))
    assert client.ask("GET /").body == b"%d" % os.getpid()

    def child() -> None:
        server.base.reinit()
        assert connect().ask("GET /").body == b"%d" % os.getpid()
        server.close()

    in_child(child)
    assert client.ask("GET /").body == b"%d" % os.getpid()


# ---- memory ----


def test_a_file_is_served_without_its_being_in_memory(
    server: HttpServer, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    size = 1 << 30
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - 4)
        file.write(b"last")

    def handler(request: HttpServerRequest) -> None:
        with path.open("rb") as file:
            request.output_buffer.add_file(file)
        request.send_reply(200)

    server.set_cb("/", handler)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    seen, tail = 0, b""
    block = bytearray(1 << 20)

    def all_of_it() -> bool:
        nonlocal seen, tail
        with contextlib.suppress(BlockingIOError):
            while n := client.sock.recv_into(block):
                seen += n
                tail = bytes(block[max(0, n - 4) : n])
        return seen > size and tail == b"last"

    client.run_until(all_of_it, timeout=60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@measures_memory
def test_memory_is_flat_over_many_requests(server: HttpServer, client: Client) -> None:
    def handler(request: HttpServerRequest) -> None:
        assert request.headers["Host"] == "a"
        request.output_headers["X-A"] = "x"
        request.send_reply(200, None, request.read())

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    server.set_cb("/", handler)
    ask = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    first = 0
    for n in range(100):
        client.send(ask * 1000)
        for _ in range(1000):
            assert client.reply().body == b"body"
        if n == 20:
            first = resident()
    assert resident() - first < 500


# ---- TLS ----


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tls.Certificates:
    return tls.Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(server: HttpServer, certificates: tls.Certificates) -> HttpServer:
    context = TLSContext(server_side=True)
    context.load_cert_chain(certificates.good)
    server.set_bevcb(lambda base, context: BufferEvent.openssl_socket(base, None, context), context)
    return server


def https(
    server: HttpServer,
    run_until: RunUntil,
    certificates: tls.Certificates,
    talk: Callable[[http.client.HTTPSConnection], Any],
) -> Any:
    """What talk(connection) returns, in a thread."""
    _, port = server.bound_sockets[0].address

    def run() -> None:
        context = certificates.for_client()
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
        try:
            results.append(talk(connection))
        except BaseException as error:
            results.append(error)
        finally:
            connection.close()
            server.base.once(-1, EV_TIMEOUT, print)

    results: list[Any] = []
    thread = threading.Thread(target=run)
    thread.start()
    run_until(lambda: results, timeout=20)
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def test_a_server_speaks_tls(
    secure: HttpServer, run_until: RunUntil, certificates: tls.Certificates
) -> None:
    versions: list[str | None] = []

    def handler(request: HttpServerRequest) -> None:
        assert request.tls is not None
        versions.append(request.tls.version)
        request.send_reply(200, None, request.read())

    def talk(connection: http.client.HTTPSConnection) -> list[bytes]:
        answers = []
        for body in (b"a", b"b" * 5000, b"c" * 1_000_000):
            connection.request("POST", "/", body)
            answers.append(connection.getresponse().read())
        return answers

    secure.set_cb("/", handler)
    answers = https(secure, run_until, certificates, talk)
    assert [len(answer) for answer in answers] == [1, 5000, 1_000_000]
    assert versions == ["TLSv1.3"] * 3
    few_rounds(secure.base)


def test_replies_over_tls_may_come_later_and_in_parts(
    secure: HttpServer, run_until: RunUntil, certificates: tls.Certificates
) -> None:
    def handler(request: HttpServerRequest) -> None:
        Timer(secure.base, more, request, iter([b"x" * 100_000] * 10)).add(0.01)

    def more(request: HttpServerRequest, parts: Iterator[bytes]) -> None:
        if not request.response_code:
            request.send_reply_start(200)
        for part in parts:
            request.send_reply_chunk(part, more, parts)
            return
        request.send_reply_end()

    def talk(connection: http.client.HTTPSConnection) -> int:
        n = 0
        for _ in range(3):
            connection.request("GET", "/")
            n += len(connection.getresponse().read())
        return n

    secure.set_cb("/", handler)
    assert https(secure, run_until, certificates, talk) == 3_000_000


def test_a_file_over_tls_is_read_first(
    secure: HttpServer, run_until: RunUntil, certificates: tls.Certificates
) -> None:
    def handler(request: HttpServerRequest) -> None:
        with Path(__file__).open("rb") as file:
            request.output_buffer.add_file(file)
        with pytest.raises(LibeventError, match="cannot do that"):
            request.take_over()
        request.send_reply(200)

    def talk(connection: http.client.HTTPSConnection) -> bytes:
        connection.request("GET", "/")
        return connection.getresponse().read()

    secure.set_cb("/", handler)
    assert b"def " in https(secure, run_until, certificates, talk)


def test_a_client_without_tls_is_no_client_of_a_tls_server(
    secure: HttpServer, client: Client, run_until: RunUntil
) -> None:
    secure.set_cb("/", hello)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"HTTP" not in client.end()
    run_until(lambda: lib.pyle_alive(lib.PYLE_HTTP_CONNS) == 0)


def test_a_connection_that_has_no_bufferevent_is_closed(
    server: HttpServer, connect: MakeClient, base: EventBase
) -> None:
    raised: list[str] = []
    base.exception_handler = lambda error, source: raised.append(str(error))
    server.set_gencb(hello)

    def fail(base: EventBase) -> BufferEvent:
        raise LookupError("none today")

    server.set_bevcb(fail)
    assert connect().end() == b""
    server.set_bevcb(lambda base: None)  # type: ignore[arg-type,return-value]
    assert connect().end() == b""
    first, second = BufferEvent.pair(base)
    server.set_bevcb(lambda base: first)
    assert connect().end() == b""
    first.close()
    second.close()
    server.set_bevcb(BufferEvent.socket)
    assert connect().ask("GET /").status == 200
    server.set_bevcb(None)
    assert connect().ask("GET /").status == 200
    assert raised == [
        "none today",
        "bevcb must return a BufferEvent, not NoneType",
        "evhttp_set_bevcb: not a BufferEvent on a socket that is yet to come",
    ]


def test_a_connection_does_not_get_a_bufferevent_of_another_base(
    server: HttpServer, connect: MakeClient, base: EventBase
) -> None:
    raised: list[str] = []
    base.exception_handler = lambda error, source: raised.append(str(error))
    server.set_gencb(hello)
    with EventBase() as other:
        server.set_bevcb(lambda base: BufferEvent.socket(other))
        assert connect().end() == b""
    assert raised == ["evhttp_set_bevcb: a BufferEvent of another EventBase"]


@pytest.mark.parametrize("method", ["epoll", "poll", "select"])
def test_a_server_works_with_each_method(method: str) -> None:
    with EventConfig() as config:
        for other in {"epoll", "poll", "select"} - {method}:
            config.avoid_method(other)
        base = EventBase(config)
    with base, HttpServer(base, bevcb=BufferEvent.socket) as server:
        server.set_cb("/", hello)
        addresses = [server.bind("127.0.0.1", 0).address for _ in range(2)]
        for address in addresses * 2:
            with socket.create_connection(address) as sock:
                sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                few_rounds(base)
                assert sock.recv(1000).endswith(b"Hello, World!")


def test_an_accept_that_fails_is_logged_and_done_again() -> None:
    def child() -> None:
        told: list[str] = []
        log = logging.getLogger("libevent")
        log.addHandler(Told(told))
        with EventBase() as base, HttpServer(base) as server:
            server.set_gencb(lambda request: request.send_reply(204))
            address = server.bind("127.0.0.1", 0).address
            Timer(base, base.loopbreak).add(0)
            base.dispatch()  # which makes what the loop itself needs
            with socket.create_connection(address) as client:
                lowest = os.dup(0)
                os.close(lowest)
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
                base.loop(EVLOOP_ONCE)
                assert told == ["accept: Too many open files; the HTTP server tries again in 0.1 s"]
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = Event(base, client, EV_READ, lambda _fd, _what: base.loopbreak())
                answer.add(10)
                base.dispatch()
                assert client.recv(1000).startswith(b"HTTP/1.0 204")

    in_child(child)


class Told(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def test_descriptors_beyond_select_are_refused_by_it() -> None:
    def child() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1100, 1100))
        with EventConfig() as config:
            config.avoid_method("epoll")
            config.avoid_method("poll")
            base = EventBase(config)
        with base, HttpServer(base) as server, contextlib.ExitStack() as files:
            server.set_cb("/", hello)
            address = server.bind("127.0.0.1", 0).address
            with socket.create_connection(address) as refused:
                while (file := files.enter_context(Path(os.devnull).open("rb"))).fileno() < 1030:
                    pass
                few_rounds(base)
                assert refused.recv(100) == b""
            files.close()
            assert file.closed
            with socket.create_connection(address) as sock:
                sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                few_rounds(base)
                assert sock.recv(1000).endswith(b"Hello, World!")

    in_child(child)


@pytest.mark.parametrize("what", ["server", "base"])
def test_all_may_be_closed_where_a_bufferevent_is_asked_for(
    server: HttpServer, connect: MakeClient, base: EventBase, what: str
) -> None:
    def close(_base: EventBase) -> BufferEvent:
        bev = BufferEvent.socket(base)
        {"server": server, "base": base}[what].close()
        return bev

    server.set_bevcb(close)
    connect()
    connect()
    while not server.closed:
        base.loop(EVLOOP_ONCE)
    few_rounds(base)


class Handshake:
    """A TLS client in this thread, by the standard library's ssl."""

    def __init__(
        self, server: HttpServer, run_until: RunUntil, certificates: tls.Certificates
    ) -> None:
        sock = socket.create_connection(server.bound_sockets[0].address)
        sock.setblocking(False)
        self.sock = certificates.for_client().wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False
        )
        run_until(lambda: self._try(self.sock.do_handshake) is not False)

    def _try(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False

    def read(self) -> Any:
        return self._try(lambda: self.sock.recv(100_000))


def test_a_tls_client_that_goes_while_the_reply_is_made_is_seen(
    secure: HttpServer, run_until: RunUntil, certificates: tls.Certificates
) -> None:
    errors: list[HttpError] = []
    secure.set_cb("/", lambda request: request.on_error(lambda _, error: errors.append(error)))
    peer = Handshake(secure, run_until, certificates)
    peer.sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: lib.pyle_alive(lib.PYLE_REQUESTS))
    peer.sock.close()
    run_until(lambda: errors == [EVREQ_HTTP_EOF])


@pytest.mark.parametrize("stays", [True, False])
def test_a_tls_client_gets_its_503_after_the_handler_has_heard(
    secure: HttpServer, run_until: RunUntil, certificates: tls.Certificates, stays: bool
) -> None:
    kept: list[HttpServerRequest] = []
    errors: list[HttpError] = []

    def handler(request: HttpServerRequest) -> None:
        request.on_error(lambda _, error: errors.append(error))
        kept.append(request)

    secure.timeout = 0.05
    secure.set_cb("/", handler)
    peer = Handshake(secure, run_until, certificates)
    peer.sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: errors == [EVREQ_HTTP_TIMEOUT])
    if not stays:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
    few_rounds(secure.base)
    assert kept.pop().closed
    if stays:
        peer.sock.setblocking(True)
        assert peer.sock.recv(1000).startswith(b"HTTP/1.1 503 ")
        peer.sock.close()


def test_what_a_tls_client_sends_while_the_reply_is_made_is_bounded_and_not_lost(
    secure: HttpServer, run_until: RunUntil, certificates: tls.Certificates, base: EventBase
) -> None:
    kept: list[HttpServerRequest] = []
    answered: list[str] = []

    def handler(request: HttpServerRequest) -> None:
        if request.uri == "/first":
            kept.append(request)
            return
        answered.append(request.uri)
        request.send_reply(200)

    secure.set_gencb(handler)
    peer = Handshake(secure, run_until, certificates)
    sent = 0
    peer.sock.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: kept)
    one = b"GET /a HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 15000 + b"\r\n\r\n"
    for _ in range(2000):
        n = peer._try(lambda: peer.sock.send(one))
        few_rounds(base, 3)
        if n is False:
            break
        assert n == len(one)
        sent += 1
    else:
        raise AssertionError(f"{sent} requests are in memory")
    kept.pop().send_reply(200)

    def all_answered() -> bool:
        peer.read()
        return len(answered) >= sent

    run_until(all_answered)
    peer.sock.close()


@pytest.mark.parametrize("when", ["idle", "asked", "handshake"])
@pytest.mark.parametrize("what", ["server", "base"])
def test_tls_connections_end_with_the_server(
    secure: HttpServer,
    run_until: RunUntil,
    certificates: tls.Certificates,
    base: EventBase,
    what: str,
    when: str,
) -> None:
    kept: list[HttpServerRequest] = []
    secure.set_gencb(kept.append)
    if when == "handshake":
        with socket.create_connection(secure.bound_sockets[0].address) as sock:
            few_rounds(base)
            {"server": secure, "base": base}[what].close()
            assert sock.recv(100) == b""
            return
    peer = Handshake(secure, run_until, certificates)
    if when == "asked":
        peer.sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        run_until(lambda: kept)
    {"server": secure, "base": base}[what].close()
    few_rounds(base)
    peer.sock.setblocking(True)
    assert peer.sock.recv(100) == b""  # with a close_notify: else it is an SSLEOFError
    peer.sock.close()
    assert all(request.closed for request in kept)


# ---- other people's clients ----


def run_client(base: EventBase, run_until: RunUntil, *command: str, data: bytes = b"") -> bytes:
    """What a program has to say that talks to a server in this process."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not there")
    out: list[subprocess.CompletedProcess[bytes]] = []

    def run() -> None:
        how: dict[str, Any] = {"capture_output": True, "timeout": 20, "env": PLAIN_ENV}
        out.append(subprocess.run(command, input=data, check=False, **how))
        base.once(-1, EV_TIMEOUT, print)

    thread = threading.Thread(target=run)
    thread.start()
    run_until(lambda: out, timeout=30)
    thread.join()
    assert (out[0].returncode, out[0].stderr) == (0, b"")
    return out[0].stdout


def url(server: HttpServer) -> str:
    host, port = server.bound_sockets[0].address
    return f"http://{host}:{port}"


def echo(request: HttpServerRequest) -> None:
    request.output_headers["X-Command"] = request.command
    request.send_reply(200, None, request.read())


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--http1.0"],
        ["-H", "Transfer-Encoding: chunked"],
        ["-H", "Expect: 100-continue"],
        ["--compressed"],
        ["-X", "PUT"],
    ],
    ids=str,
)
def test_curl_gets_what_it_sends(
    server: HttpServer, base: EventBase, run_until: RunUntil, options: list[str]
) -> None:
    server.set_gencb(echo)
    body = os.urandom(3_000_000)
    curl = ("curl", "-sS", "--data-binary", "@-", *options)
    assert run_client(base, run_until, *curl, url(server), data=body) == body


def test_curl_sees_headers(server: HttpServer, base: EventBase, run_until: RunUntil) -> None:
    server.set_gencb(echo)
    seen = run_client(base, run_until, "curl", "-sSI", url(server))
    assert seen.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-Command: HEAD\r\n" in seen


def test_wrk_sees_no_error(server: HttpServer, base: EventBase, run_until: RunUntil) -> None:
    server.set_cb("/", hello)
    seen = run_client(base, run_until, "wrk", "-t1", "-c20", "-d1", f"{url(server)}/").decode()
    found = re.search(r"(\d+) requests in", seen)
    assert found, seen
    assert int(found[1]) > 100
    assert "Socket errors" not in seen
    assert "Non-2xx" not in seen


def test_the_standard_library_keeps_its_connection(
    server: HttpServer, base: EventBase, run_until: RunUntil
) -> None:
    host, port = server.bound_sockets[0].address

    def run() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        for body in (b"", b"a", b"b" * 100_000):
            connection.request("POST", "/", body)
            answers.append(connection.getresponse().read())
        connection.request("POST", "/", iter([b"c" * 1000] * 10), encode_chunked=True)
        answers.append(connection.getresponse().read())
        connection.close()
        base.once(-1, EV_TIMEOUT, print)

    answers: list[bytes] = []
    server.set_gencb(echo)
    thread = threading.Thread(target=run)
    thread.start()
    run_until(lambda: len(answers) == 4)
    thread.join()
    assert [len(answer) for answer in answers] == [0, 1, 100_000, 10_000]
