"""pylibevent.wsgi: what an application sees and may do, the processes, Flask and Django."""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from common import few_rounds, measures_memory, received
from conftest import RunUntil
from http_peer import Client
from processes import Server, complaint_of, curl

from pylibevent import EventBase
from pylibevent.wsgi import WSGIServer, serve

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

TEXT = [("Content-Type", "text/plain")]
Ask = Callable[["WSGIApplication"], Client]


@pytest.fixture
def client_of(base: EventBase, run_until: RunUntil) -> Iterator[Ask]:
    """client_of(app): a client of a server that serves this application."""
    clients: list[Client] = []

    def client_of(app: WSGIApplication) -> Client:
        server = WSGIServer(base, app)
        server.accept(socket.create_server(("127.0.0.1", 0)))
        clients.append(Client(server.http, run_until))
        return clients[-1]

    yield client_of
    for client in clients:
        client.close()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What is logged, as text: a record would keep what its exception's traceback has."""
    text, formatter, log = io.StringIO(), logging.Formatter(), logging.getLogger("pylibevent.wsgi")

    def keep(record: logging.LogRecord) -> bool:
        text.write(formatter.format(record))
        return False

    log.addFilter(keep)
    yield text
    log.removeFilter(keep)


def answering(*parts: bytes, status: str = "200 OK", headers: Any = ()) -> WSGIApplication:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start(status, [*TEXT, *headers])
        return list(parts)

    return app


def generating(*parts: bytes, headers: Any = ()) -> WSGIApplication:
    def app(environ: dict[str, Any], start: StartResponse) -> Iterator[bytes]:
        start("200 OK", [*TEXT, *headers])
        yield from parts

    return app


# ---- what it is asked ----


@pytest.fixture
def environ_of(client_of: Ask) -> Callable[..., dict[str, Any]]:
    def environ_of(head: str, body: bytes = b"") -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
            seen.update(environ, body=environ["wsgi.input"].read())
            start("200 OK", TEXT)
            return []

        assert client_of(app).ask(head, body).status == 200
        return seen

    return environ_of


def test_the_environ_has_what_the_request_says(environ_of: Callable[..., Any]) -> None:
    environ = environ_of("GET /a%20b/%C3%A9?x=%20y&z HTTP/1.0\nX-One: 1\nUser-Agent: me")
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == "/a b/\xc3\xa9"
    assert environ["QUERY_STRING"] == "x=%20y&z"
    assert environ["REQUEST_URI"] == "/a%20b/%C3%A9?x=%20y&z"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert environ["SERVER_NAME"] == "127.0.0.1"
    assert int(environ["SERVER_PORT"]) > 0
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert int(environ["REMOTE_PORT"]) > 0
    assert environ["HTTP_X_ONE"] == "1"
    assert environ["HTTP_USER_AGENT"] == "me"
    assert environ["HTTP_HOST"] == "localhost"
    assert environ["wsgi.url_scheme"] == "http"
    assert "CONTENT_LENGTH" not in environ


def test_of_an_absolute_uri_it_has_the_path(environ_of: Callable[..., Any]) -> None:
    environ = environ_of("GET http://example.org/a/b?c=http://d HTTP/1.1")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/a/b", "c=http://d")


def test_a_uri_without_a_path_is_that_of_the_root(environ_of: Callable[..., Any]) -> None:
    assert environ_of("OPTIONS * HTTP/1.1")["PATH_INFO"] == "/"
    environ = environ_of("GET http://example.org?a=b HTTP/1.1")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/", "a=b")


def test_repeated_headers_are_joined(environ_of: Callable[..., Any]) -> None:
    environ = environ_of("GET /\nAccept: a\nACCEPT: b\nCookie: c=1\nCookie: d=2")
    assert environ["HTTP_ACCEPT"] == "a,b"
    assert environ["HTTP_COOKIE"] == "c=1; d=2"


def test_an_underscore_does_not_pass_for_a_hyphen(environ_of: Callable[..., Any]) -> None:
    environ = environ_of("GET /\nX-User: good\nX_User: bad\nContent_Type: bad")
    assert environ["HTTP_X_USER"] == "good"
    assert "CONTENT_TYPE" not in environ
    assert "bad" not in environ.values()


def test_a_body_is_the_input(environ_of: Callable[..., Any]) -> None:
    body = bytes(range(256)) * 1000
    environ = environ_of("POST /\nContent-Type: application/octet-stream", body)
    assert environ["body"] == body
    assert environ["CONTENT_LENGTH"] == "256000"
    assert environ["CONTENT_TYPE"] == "application/octet-stream"
    assert "HTTP_CONTENT_LENGTH" not in environ


def test_a_chunked_body_has_a_length_like_any_other(client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", TEXT)
        seen = environ["CONTENT_LENGTH"], environ.get("HTTP_TRANSFER_ENCODING")
        return [repr(seen).encode(), environ["wsgi.input"].read()]

    client = client_of(app)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert client.reply().body == b"('5', None)abcde"


def test_the_input_is_a_file(client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        file = environ["wsgi.input"]
        read = [file.readline(), file.read(3), *file, file.read(), file.readline()]
        start("200 OK", TEXT)
        return [repr(read).encode()]

    reply = client_of(app).ask("POST /", b"one\ntwo\nthree\nfour")
    assert reply.body == repr([b"one\n", b"two", b"\n", b"three\n", b"four", b"", b""]).encode()


def test_a_body_may_be_left_alone(client_of: Ask) -> None:
    client = client_of(answering(b"thanks"))
    for _ in range(3):
        assert client.ask("POST /", bytes(100_000)).body == b"thanks"


def test_expect_gets_a_100_first(client_of: Ask) -> None:
    client = client_of(answering(b"done"))
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    client.run_until(lambda: client.read() or b"\r\n\r\n" in client.data)
    assert client.data == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.data.clear()
    client.send(b"abc")
    assert client.reply().body == b"done"


# ---- what it answers ----


def test_a_list_goes_out_with_its_length(client_of: Ask) -> None:
    reply = client_of(answering(b"one", b"", b"two", status="201 Made")).ask("GET /")
    assert (reply.status, reply.reason, reply.body) == (201, "Made", b"onetwo")
    assert reply.headers["content-length"] == "6"
    assert reply.headers["content-type"] == "text/plain"


def test_headers_may_be_repeated(client_of: Ask) -> None:
    client = client_of(answering(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.end().count(b"Set-Cookie: ") == 2


def test_nothing_is_added_that_the_application_should_have_said(client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", [])
        return [b"?"]

    assert "content-type" not in client_of(app).ask("GET /").headers


def test_parts_go_out_chunked(client_of: Ask) -> None:
    client = client_of(generating(b"one", b"", b"two"))
    for _ in range(2):
        reply = client.ask("GET /")
        assert reply.body == b"onetwo"
        assert reply.headers["transfer-encoding"] == "chunked"


def test_to_an_old_client_parts_go_up_to_the_end_of_the_connection(client_of: Ask) -> None:
    client = client_of(generating(b"one", b"two"))
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.end().endswith(b"\r\n\r\nonetwo")


def test_parts_of_a_known_length_are_not_chunked(client_of: Ask) -> None:
    reply = client_of(generating(b"one", b"two", headers=[("Content-Length", "6")])).ask("GET /")
    assert reply.body == b"onetwo"
    assert "transfer-encoding" not in reply.headers


def test_nothing_at_all_is_a_body_of_no_bytes(client_of: Ask) -> None:
    client = client_of(generating())
    assert client.ask("GET /").headers["content-length"] == "0"


def test_start_response_may_be_called_with_the_first_part(client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> Iterator[bytes]:
        yield b""
        start("202 Late", TEXT)
        yield b"part"

    reply = client_of(app).ask("GET /")
    assert (reply.status, reply.body) == (202, b"part")


def test_write_sends_before_what_is_returned(client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        write = start("200 OK", TEXT)
        write(b"one")
        write(b"two")
        return [b"three"]

    client = client_of(app)
    for _ in range(2):
        assert client.ask("GET /").body == b"onetwothree"


def test_head_gets_the_headers_alone(client_of: Ask) -> None:
    reply = client_of(answering(b"12345")).ask("HEAD /")
    assert reply.headers["content-length"] == "5"
    client = client_of(generating(b"12345", headers=[("Content-Length", "5")]))
    for _ in range(2):
        assert client.ask("HEAD /").headers["content-length"] == "5"
    assert "content-length" not in client_of(generating(b"one", b"two")).ask("HEAD /").headers


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_answers_have_no_body(client_of: Ask, status: str) -> None:
    client = client_of(answering(b"in vain", status=status))
    for _ in range(2):
        assert client.ask("GET /").status == int(status[:3])


def test_a_generator_is_asked_for_more_when_that_is_written(
    base: EventBase, client_of: Ask, run_until: RunUntil
) -> None:
    made = got = 0

    def app(environ: dict[str, Any], start: StartResponse) -> Iterator[bytes]:
        nonlocal made
        start("200 OK", [*TEXT, ("Content-Length", str(1000 << 16))])
        for _ in range(1000):
            made += 1
            yield bytes(1 << 16)

    def drained() -> bool:
        nonlocal got
        got += len(received(client.sock))
        return got > 1000 << 16

    client = client_of(app)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    before = -1
    while made > before:  # until nothing happens any more
        before = made
        few_rounds(base)
    assert made < 500
    run_until(drained)
    assert made == 1000


# ---- what it may not do ----


def test_what_is_raised_is_logged_and_answered_with_a_500(
    client_of: Ask, logged: io.StringIO
) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", [*TEXT, ("X-Secret", "1")])
        raise ZeroDivisionError("what it was")

    client = client_of(app)
    reply = client.ask("GET /here")
    assert reply.status == 500
    assert b"what it was" not in reply.body
    assert "x-secret" not in reply.headers
    assert "GET /here" in logged.getvalue()
    assert "ZeroDivisionError: what it was" in logged.getvalue()
    assert client.end() == b""


def wrong_status(start: StartResponse) -> Iterable[bytes]:
    start("OK", TEXT)
    return []


def interim_status(start: StartResponse) -> Iterable[bytes]:
    start("101 Switching Protocols", TEXT)
    return []


def hop_by_hop(start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [("Transfer-Encoding", "chunked")])
    return []


def injected_header(start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [("X", "a\r\nSet-Cookie: b")])
    return []


def injected_reason(start: StartResponse) -> Iterable[bytes]:
    start("200 OK\r\nSet-Cookie: b", TEXT)
    return []


def text_body(start: StartResponse) -> Any:
    start("200 OK", TEXT)
    return ["text"]


def not_started(start: StartResponse) -> Iterable[bytes]:
    return [b"body"]


def not_started_by_a_generator(start: StartResponse) -> Iterable[bytes]:
    yield b"body"


def started_twice(start: StartResponse) -> Iterable[bytes]:
    start("200 OK", TEXT)
    start("200 OK", TEXT)
    return []


def wrong_length(start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [("Content-Length", "10")])
    return [b"nine"]


def nothing_to_iterate(start: StartResponse) -> Any:
    start("200 OK", TEXT)
    return None


@pytest.mark.parametrize(
    "wrong",
    [
        wrong_status,
        interim_status,
        hop_by_hop,
        injected_header,
        injected_reason,
        text_body,
        not_started,
        not_started_by_a_generator,
        started_twice,
        wrong_length,
        nothing_to_iterate,
    ],
)
def test_what_is_no_wsgi_is_a_500(
    client_of: Ask, logged: io.StringIO, wrong: Callable[..., Any]
) -> None:
    client = client_of(lambda environ, start: wrong(start))
    assert client.ask("GET /").status == 500
    assert b"Set-Cookie" not in client.end()
    assert "Error" in logged.getvalue()


def test_what_is_raised_once_a_reply_has_begun_ends_the_connection(
    client_of: Ask, logged: io.StringIO
) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"one"
        raise ZeroDivisionError

    client = client_of(app)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.end().endswith(b"3\r\none\r\n")
    assert "ZeroDivisionError" in logged.getvalue()


def test_more_than_was_promised_ends_the_connection(client_of: Ask, logged: io.StringIO) -> None:
    client = client_of(generating(b"one", b"two", headers=[("Content-Length", "5")]))
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.end().endswith(b"\r\n\r\none")
    assert "ValueError" in logged.getvalue()


def test_exc_info_replaces_what_has_not_been_sent(client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", [*TEXT, ("X-One", "1")])
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start("503 Later", TEXT, sys.exc_info())
        return [b"sorry"]

    reply = client_of(app).ask("GET /")
    assert (reply.status, reply.body) == (503, b"sorry")
    assert "x-one" not in reply.headers


def test_exc_info_is_raised_where_it_is_too_late(client_of: Ask, logged: io.StringIO) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", TEXT)(b"sent")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start("503 Later", TEXT, sys.exc_info())
        return [b"never"]

    client = client_of(app)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"never" not in client.end()
    assert "ZeroDivisionError" in logged.getvalue()


def test_system_exit_leaves_the_loop(base: EventBase, client_of: Ask) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        raise SystemExit(3)

    client = client_of(app)
    with pytest.raises(SystemExit):
        client.ask("GET /")
    assert client.reply().status == 500


# ---- close() ----


class Body:
    """An iterable that notes that it was closed."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self.parts = parts
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts)

    def close(self) -> None:
        self.closed += 1

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Body:
        start("200 OK", TEXT)
        return self


@pytest.mark.parametrize("parts", [[], [b"one"], [b"one", b"two"]])
def test_close_is_called_at_the_end(client_of: Ask, parts: list[bytes]) -> None:
    body = Body(parts)
    assert client_of(body).ask("GET /").body == b"".join(parts)
    assert body.closed == 1


def test_close_is_called_when_the_client_goes_away(client_of: Ask, run_until: RunUntil) -> None:
    body = Body(iter(lambda: bytes(65536), None))
    client = client_of(body)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    run_until(lambda: client.read() or client.data)
    client.close()
    run_until(lambda: body.closed)
    assert body.closed == 1


def test_close_is_called_when_a_part_fails(client_of: Ask, logged: io.StringIO) -> None:
    body = Body(b"x" * (1 // n) for n in (1, 0))
    client = client_of(body)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.end().endswith(b"1\r\nx\r\n")
    assert "ZeroDivisionError" in logged.getvalue()
    assert body.closed == 1


def test_an_exception_of_close_is_logged(client_of: Ask, logged: io.StringIO) -> None:
    class Bad(Body):
        def close(self) -> None:
            raise ZeroDivisionError

    client = client_of(Bad([b"one"]))
    for _ in range(2):
        assert client.ask("GET /").body == b"one"
    assert "ZeroDivisionError" in logged.getvalue()


# ---- files ----


def wrapping(file: Any, *headers: tuple[str, str]) -> WSGIApplication:
    def app(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        start("200 OK", [*TEXT, *headers])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    return app


def test_a_file_goes_out_from_where_it_is(client_of: Ask, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 100_000)
    file = path.open("rb")
    file.read(5)
    reply = client_of(wrapping(file)).ask("GET /")
    assert reply.body == b"56789" + b"0123456789" * 99_999
    assert reply.headers["content-length"] == "999995"
    assert file.closed


def test_of_a_file_as_much_as_was_promised_goes_out(client_of: Ask, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    app = wrapping(path.open("rb"), ("Content-Length", "4"))
    assert client_of(app).ask("GET /").body == b"0123"


def test_head_of_a_file_has_its_length(client_of: Ask, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert client_of(wrapping(path.open("rb"))).ask("HEAD /").headers["content-length"] == "10"


def test_what_is_no_file_of_the_systems_is_read(client_of: Ask) -> None:
    file = io.BytesIO(b"0123456789")
    assert client_of(wrapping(file)).ask("GET /").body == b"0123456789"
    assert file.closed


def test_a_compressed_file_goes_out_as_it_is_read(client_of: Ask, tmp_path: Path) -> None:
    import gzip

    with gzip.open(tmp_path / "file", "wb") as file:
        file.write(b"0123456789")
    with gzip.open(tmp_path / "file") as file:
        assert client_of(wrapping(file)).ask("GET /").body == b"0123456789"


@measures_memory
def test_a_big_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 28)
    with served("flask_app", WSGI_TEST_FILE=str(path)) as server:
        get(server, "/hello/you?from=me")
        before, n = server.peak_kib(), 0
        connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
        connection.request("GET", "/file")
        reply = connection.getresponse()
        while part := reply.read(1 << 20):
            n += len(part)
        connection.close()
        assert n == 1 << 28
        assert server.peak_kib() - before < 16 * 1024


# ---- the validator ----


@pytest.mark.filterwarnings("ignore::wsgiref.validate.WSGIWarning")
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("app", [answering(b"one"), generating(b"one", b"two")])
def test_the_standard_librarys_validator_has_nothing_to_say(
    client_of: Ask, logged: io.StringIO, app: WSGIApplication, method: str
) -> None:
    def reading(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        assert environ["wsgi.input"].read(100) == (b"body" if method == "POST" else b"")
        return app(environ, start)

    client = client_of(validator(reading))
    head = f"{method} /a/b?c=d\nAccept: text/html"
    reply = client.ask(head, b"body" if method == "POST" else b"")
    assert (reply.status, logged.getvalue()) == (200, "")
    assert reply.body == (b"" if method == "HEAD" else reply.body)


def test_the_validator_allows_write(client_of: Ask, logged: io.StringIO) -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", TEXT)(b"one")
        return [b"two"]

    assert client_of(validator(app)).ask("GET /").body == b"onetwo"
    assert logged.getvalue() == ""


# ---- the end of a server ----


def test_stop_answers_what_has_come(base: EventBase, run_until: RunUntil) -> None:
    asked: list[int] = []

    def app(environ: dict[str, Any], start: StartResponse) -> Iterator[bytes]:
        start("200 OK", TEXT)
        asked.append(1)
        server.stop()
        yield bytes(1 << 20)
        yield bytes(1 << 20)

    server = WSGIServer(base, app)
    host, port = server.accept(socket.create_server(("127.0.0.1", 0)))
    bodies: list[int] = []

    def visit() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("GET", "/")
        bodies.append(len(connection.getresponse().read()))
        connection.close()

    thread = threading.Thread(target=visit)
    thread.start()
    server.run()
    thread.join()
    assert bodies == [2 << 20]
    assert server.http.closed


def test_stop_waits_for_a_slow_client_so_long(base: EventBase) -> None:
    body = Body([bytes(1 << 20)] * 100)
    server = WSGIServer(base, body)
    address = server.accept(socket.create_server(("127.0.0.1", 0)))
    with socket.create_connection(address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        threading.Timer(0.1, server.stop).start()
        server.run(graceful_timeout=0.1)
    assert server.http.closed
    assert body.closed == 1


def test_there_is_at_least_one_worker() -> None:
    with pytest.raises(ValueError, match="workers"):
        serve(answering(), workers=0)


# ---- processes ----


@contextlib.contextmanager
def served(app: str, *arguments: str, **env: str) -> Iterator[Server]:
    """The command, with an application of tests/wsgi_apps.py."""
    command = [sys.executable, "-m", "pylibevent.wsgi", f"wsgi_apps:{app}", *arguments]
    process = subprocess.Popen(
        [*command, "--bind", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **env},
    )
    try:
        line = complaint_of(process)
        host, _, port = line.rpartition(" ")[2].rpartition(":")
        assert port.isdigit(), line + process.communicate()[1]
        yield Server(process, int(port), host)
        process.terminate()
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()


def get(server: Server, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read()


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=20)
    return process.returncode


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_runs_is_answered(workers: str, signum: int) -> None:
    with served("plain", "--workers", workers) as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
        connection.request("GET", "/?0.5")
        time.sleep(0.2)
        server.process.send_signal(signum)
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.getheader("Connection") == "close"
        connection.close()
        assert ended(server.process) == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()


@pytest.mark.parametrize(("workers", "status"), [("1", 128 + signal.SIGTERM), ("2", 0)])
def test_a_second_signal_ends_it_at_once(workers: str, status: int) -> None:
    with served("plain", "--workers", workers) as server, server.connect() as sock:
        sock.sendall(b"GET /?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.3)
        server.process.terminate()
        assert ended(server.process) == status


def test_several_workers_answer() -> None:
    with served("plain", "--workers", "3") as server:
        seen: set[bytes] = set()
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(get(server, "/")[1])
        assert len(seen) == 3
        assert str(server.process.pid).encode() not in seen


def test_a_worker_that_dies_is_replaced() -> None:
    with served("plain", "--workers", "2") as server:
        for _ in range(3):
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                get(server, "/die")
            assert "has died: another one starts" in complaint_of(server.process)
            assert get(server, "/")[0] == 200


def test_workers_that_die_too_often_end_it() -> None:
    with served("plain", "--workers", "2") as server:
        while server.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(server, "/die")
        errors = server.process.communicate(timeout=20)[1]
        assert errors.count("another one starts") == 10
        assert "giving up" in errors
        assert server.process.returncode == 1


def test_workers_end_when_their_parent_is_killed() -> None:
    with served("plain", "--workers", "2") as server:
        server.process.kill()
        server.process.wait(20)
        until = time.monotonic() + 20
        with contextlib.suppress(ConnectionRefusedError):
            while time.monotonic() < until:
                server.connect().close()
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_an_address_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "pylibevent.wsgi", "wsgiref.simple_server:demo_app"]
        done = subprocess.run(
            [*command, "--bind", address], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 1
        assert address in done.stderr
        assert "in use" in done.stderr


# ---- Flask and Django ----


@pytest.fixture(scope="module", params=["flask_app", "django_app"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    pytest.importorskip(request.param.removesuffix("_app"))
    path = tmp_path_factory.mktemp("site") / "file"
    path.write_bytes(bytes(range(256)) * 4096)
    with served(request.param, "--workers", "2", WSGI_TEST_FILE=str(path)) as server:
        yield server


def curled(server: Server, path: str, *arguments: str) -> str:
    return curl(f"http://{server.host}:{server.port}{path}", *arguments).decode()


def test_an_applications_page_is_served(site: Server) -> None:
    assert get(site, "/hello/w%C3%B6rld?from=me") == (200, "Hello, wörld from me".encode())
    assert get(site, "/nowhere")[0] == 404


def test_an_applications_page_is_served_to_curl(site: Server) -> None:
    assert curled(site, "/hello/you?from=me") == "Hello, you from me"


def test_a_form_with_a_file_arrives(site: Server, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(bytes(3_000_000))
    answer = curled(site, "/form", "-F", "name=x", "-F", f"file=@{tmp_path / 'upload'}")
    assert "x" in answer
    assert "3000000" in answer


def test_a_stream_arrives(site: Server) -> None:
    assert get(site, "/stream") == (200, b"part 0\npart 1\npart 2\n")
    assert curled(site, "/stream", "--http1.0") == "part 0\npart 1\npart 2\n"


def test_a_file_arrives(site: Server) -> None:
    assert get(site, "/file") == (200, bytes(range(256)) * 4096)


def test_a_connection_serves_many_pages(site: Server) -> None:
    connection = http.client.HTTPConnection(site.host, site.port, timeout=20)
    for path in ["/hello/you?from=me", "/stream", "/file"] * 10:
        connection.request("GET", path)
        assert connection.getresponse().read()
    connection.close()


def test_flasks_own_errors_and_cookies() -> None:
    pytest.importorskip("flask")
    with served("flask_app") as server:
        assert get(server, "/teapot")[0] == 418
        assert get(server, "/raises")[0] == 500
        assert get(server, "/cookie", Cookie="a=x; b=y") == (200, b"xy")
        assert curled(server, "/cookie", "-D-", "-b", "a=x;b=y").count("Set-Cookie:") == 2
