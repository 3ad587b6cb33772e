"""A WSGI server (PEP 3333) on HttpServer.

    python -m pylibevent.wsgi module:app --bind 127.0.0.1:8000 --workers 4

or `serve(app, ...)` in a program. An application blocks by nature: each worker, a process, answers
one request at a time, and while the application thinks the others wait. Slow clients do not count:
requests come to the application whole, replies are written in the loop, and a generator is asked
for its next part once the last one is written, so that it costs no memory either. A file that was
wrapped with `wsgi.file_wrapper` goes out by sendfile.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import logging
import operator
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from ._args import FileDescriptor, Seconds, seconds
from ._libevent import ffi, lib
from .buffer import EvBuffer
from .constants import (
    EV_READ,
    EVHTTP_REQ_CONNECT,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    HttpMethod,
)
from .errors import ClosedError
from .event import Event, EventBase, Timer
from .http import HttpServer, HttpServerRequest
from .uri import _new_text

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["WSGIServer", "serve"]

log: logging.Logger = logging.getLogger("pylibevent.wsgi")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None
_METHODS = {str(int(m)): str(m.name).removeprefix("EVHTTP_REQ_") for m in HttpMethod}
_ALL_METHODS = functools.reduce(operator.or_, HttpMethod) & ~EVHTTP_REQ_CONNECT
_BODYLESS = {204, 304}
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailers",
    "transfer-encoding",
    "upgrade",
}
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_MOST_DEATHS, _DEATHS_WITHIN = 10, 60.0  # of workers, after which there is no sense in more


class _Body(io.RawIOBase):
    """What a request has of a body, out of its buffer."""

    def __init__(self, buffer: EvBuffer) -> None:
        self._buffer = buffer

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self._buffer.remove_into(into) if self._buffer else 0

    def readall(self) -> bytes:
        return self._buffer.remove(len(self._buffer)) or b""


@functools.lru_cache(1024)
def _key(name: str) -> str:
    """Of a header in the environ; "" for those that are not the application's: an underscore
    would pass for a hyphen, and there are no chunks any more."""
    key = name.upper().replace("-", "_")
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        return "" if "_" in name or key == "CONTENT_LENGTH" else key
    return "" if "_" in name or key == "TRANSFER_ENCODING" else f"HTTP_{key}"


def _environ(request: HttpServerRequest, common: dict[str, Any]) -> dict[str, Any]:
    text = _new_text()
    request._check(lib.pyle_request_all(request._ptr, text), "evhttp_request")
    parts = iter(str(ffi.buffer(text.bytes, text.n), "latin-1").split("\0"))
    environ = common.copy()
    environ["REQUEST_METHOD"] = _METHODS[next(parts)]
    environ["SERVER_PROTOCOL"] = next(parts)
    length = next(parts)
    environ["REMOTE_PORT"] = next(parts)
    environ["REMOTE_ADDR"] = next(parts)
    environ["REQUEST_URI"] = uri = next(parts)
    for name, value in zip(parts, parts, strict=False):
        if key := _key(name):
            if key not in environ:
                environ[key] = value
            else:
                environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
    path, _, environ["QUERY_STRING"] = uri.partition("?")
    if not path.startswith("/"):  # http://host/path, or *
        path = "/" + path.partition("://")[2].partition("/")[2]
    environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
    if length != "0" or environ["REQUEST_METHOD"] in ("POST", "PUT", "PATCH"):
        environ["CONTENT_LENGTH"] = length
    if length == "0":
        environ["wsgi.input"] = io.BytesIO()
    else:
        environ["wsgi.input"] = io.BufferedReader(_Body(request.input_buffer), 65536)
    return environ


@functools.lru_cache(1024)
def _status(status: str) -> tuple[int, str]:
    """Its code and its reason."""
    code, space, reason = status[:3], status[3:4], status[4:]
    if len(code) < 3 or not (code.isascii() and code.isdigit()) or space not in ("", " "):
        raise ValueError(f"no status: {status!r}")
    if code < "200":
        raise ValueError(f"the server's to send, not the application's: {status!r}")
    return int(code), reason


class _Reply:
    """What an application makes of a request."""

    __slots__ = (
        "_begun",
        "_body",
        "_code",
        "_head",
        "_headers",
        "_length",
        "_parts",
        "_reason",
        "_request",
        "_server",
    )

    _headers: list[tuple[str, str]]
    _length: str | None
    _parts: Iterator[bytes]
    _reason: str

    def __init__(self, request: HttpServerRequest, server: WSGIServer) -> None:
        self._request = request
        self._server = server
        self._begun = False
        self._body: Any = None
        self._code = 0
        try:
            environ = _environ(request, server._environ)
            self._head = environ["REQUEST_METHOD"] == "HEAD"
            self._body = server.app(environ, self._start)
            del environ
            if not self._begun and self._send_whole(self._body):
                self._close()
            else:
                self._stream()
        except BaseException as error:
            self._fail(error)

    # ---- what the application calls ----

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo = None
    ) -> Callable[[bytes], object]:
        if exc_info:
            try:
                if self._begun and exc_info[1]:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it refers to this frame
        elif self._code:
            raise RuntimeError("start_response() called again, without exc_info")
        code, reason = _status(status)
        length = None
        for name, value in headers:
            lower = name.lower()
            if lower in _HOP_BY_HOP:
                raise ValueError(f"the server's to send, not the application's: {name}")
            if lower == "content-length":
                length = value
        self._code, self._reason, self._headers, self._length = code, reason, headers, length
        return self._write

    def _write(self, part: bytes) -> None:
        self._begin()
        self._request.send_reply_chunk(part)

    # ---- what becomes of it ----

    def _add_headers(self) -> None:
        if not self._code:
            raise RuntimeError("start_response() was not called")
        headers = self._request.output_headers
        headers.extend(self._headers)
        if self._server._stopping:
            headers.add("Connection", "close")

    def _begin(self) -> None:
        if not self._begun:
            self._add_headers()
            self._request.send_reply_start(self._code, self._reason)
            self._begun = True

    def _send(self, body: bytes | None) -> bool:
        self._add_headers()
        self._request.send_reply(self._code, self._reason, body)
        self._begun = True
        return True

    def _send_whole(self, body: Any) -> bool:
        """Where all of it is known, all goes out now."""
        if type(body) in (list, tuple):
            return self._send(body[0] if len(body) == 1 else b"".join(body))
        if type(body) is FileWrapper and self._add_file(body.filelike):
            return self._send(None)
        return False

    def _add_file(self, file: Any) -> bool:
        raw = getattr(file, "raw", file)
        if not isinstance(raw, io.FileIO):  # what it reads may not be what its descriptor has
            return False
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode):
            return False
        start = file.tell()
        length = max(status.st_size - start, 0)
        if self._length is not None:
            length = min(length, int(self._length))
        self._request.output_buffer.add_file(raw, start, length)
        return True

    def _stream(self) -> None:
        """The rest of it is made when the first part is written."""
        self._parts = filter(None, self._body)
        first = next(self._parts, b"")  # start_response() may be called as late as in this
        if not self._begun:
            bodyless = self._head or self._code in _BODYLESS
            if bodyless or not first or self._length == str(len(first)):
                self._send(b"" if bodyless else first)
                self._close()
                return
        self._begin()
        self._request.on_close(self._on_close)
        self._next(first)

    def _next(self, part: bytes) -> None:
        if part:
            self._request.send_reply_chunk(part, self._on_written)
        else:
            self._request.send_reply_end()
            self._close()

    def _on_written(self, _request: HttpServerRequest) -> None:
        try:
            if self._body is not None:
                self._next(next(self._parts, b""))
        except BaseException as error:
            self._fail(error)

    def _on_close(self, _request: HttpServerRequest) -> None:
        self._close()

    def _fail(self, error: BaseException) -> None:
        request = self._request
        try:
            if isinstance(error, Exception):
                log.error("%r", request, exc_info=error)
            with contextlib.suppress(ClosedError):
                if self._begun:
                    request.cancel()
                else:
                    request.send_error(500)
        finally:
            self._close()
        if not isinstance(error, Exception):
            raise error

    def _close(self) -> None:
        body, self._body = self._body, None
        try:
            if close := getattr(body, "close", None):
                close()
        except Exception:
            log.exception("%r: close()", body)


class WSGIServer:
    """Has an application answer the requests of a server's: `http`, which may be asked for all
    that an HttpServer can.

    It blocks its loop while the application is called. What that raises is logged, as an error
    of the logger "pylibevent.wsgi", and answered with a 500, or the end of the connection where
    the reply has begun. SystemExit and KeyboardInterrupt leave `run()`.
    """

    def __init__(
        self, base: EventBase, app: WSGIApplication, *, multiprocess: bool = False
    ) -> None:
        self.base = base
        self.app = app
        self.http: HttpServer = HttpServer(base)
        self.http.default_content_type = None
        self.http.allowed_methods = _ALL_METHODS
        self.http.set_gencb(_Reply, self)
        self._stopping = False
        self._environ: dict[str, Any] = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "0",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.multithread": False,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
        }

    def accept(self, sock: FileDescriptor) -> Any:
        """Takes connections from a socket that listens, which becomes the server's; returns its
        address."""
        address = self.http.accept(sock).address
        if isinstance(address, tuple):
            self._environ["SERVER_NAME"], self._environ["SERVER_PORT"] = address[0], str(address[1])
        return address

    def run(self, graceful_timeout: Seconds = 30) -> None:
        """Answers requests until `stop()` is called. Then it listens no more, has those requests
        that have come answered, and closes; after graceful_timeout at the latest."""
        base, late = self.base, list[bool]()
        while not self._stopping:
            base.loop()
        for _ in range(3):  # connections and requests that the system has accepted for us
            base.loop(EVLOOP_NONBLOCK)
        for bound in self.http.bound_sockets:
            bound.close()
        deadline = Timer(base, late.append, True)
        deadline.add(graceful_timeout)
        while self.http.unanswered and not late:
            base.loop(EVLOOP_ONCE)
        deadline.close()
        self.http.close()
        base.loop(EVLOOP_NONBLOCK)  # for what that tells: close() of what is not at its end

    def stop(self) -> None:
        """Ends `run()`. Any thread and any signal handler may call it."""
        self._stopping = True
        self.base.loopbreak()


# ---- workers ----


def serve(
    app: WSGIApplication,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    workers: int = 1,
    timeout: Seconds | None = 60,
    graceful_timeout: Seconds = 30,
    max_body_size: int = 64 << 20,
) -> int:
    """Serves an application until SIGTERM or SIGINT; returns 0, or 1 if workers died too often.

    More than one worker are processes, each with a socket of its own for the same address
    (SO_REUSEPORT); one that dies is started again, up to 10 times in a minute. timeout and
    max_body_size are those of HttpServer. A first signal has what has come answered, for
    graceful_timeout at most; a second one ends it at once.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers!r}")
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for _ in range(workers):
            sockets.append(stack.enter_context(_listen(host, port, workers > 1)))
            port = sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        log.info("listening on %s:%d", shown, port)
        work = functools.partial(_work, app, timeout, graceful_timeout, max_body_size)
        if workers > 1:
            return _Workers(work, sockets, seconds(graceful_timeout)).run()
        with EventBase() as base:
            work(base, sockets[0], False, (signal.SIGTERM, signal.SIGINT))
    return 0


def _listen(host: str, port: int, shared: bool) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address, family=family, backlog=1024, reuse_port=shared)


def _work(
    app: WSGIApplication,
    timeout: Seconds | None,
    graceful_timeout: Seconds,
    max_body_size: int,
    base: EventBase,
    sock: socket.socket,
    multiprocess: bool,
    signals: Iterable[signal.Signals],
    parent: socket.socket | None = None,
) -> None:
    server = WSGIServer(base, app, multiprocess=multiprocess)
    server.http.timeout = timeout
    server.http.max_body_size = max_body_size
    server.accept(sock)

    def on_signal(signum: int, _frame: object) -> None:
        if not server._stopping:
            server.stop()
        elif parent is None:
            raise SystemExit(128 + signum)

    if parent is not None:  # its end is readable
        Event(base, parent, EV_READ, lambda _fd, _what: server.stop()).add()
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, on_signal) for signum in signals if main}
    try:
        server.run(graceful_timeout)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Workers:
    """The processes, and what looks after them."""

    def __init__(
        self, work: Callable[..., None], sockets: list[socket.socket], patience: float
    ) -> None:
        self.work = work
        self.sockets = sockets
        self.patience = patience + 5
        self.deadline: float | None = None  # when those that have not ended are killed
        self.pids: dict[int, socket.socket] = {}
        self.deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self.status = 0

    def run(self) -> int:
        with contextlib.ExitStack() as stack:
            # The workers have one end of it, and stop when the other one is closed: also if we die.
            self.life, self.ours = map(stack.enter_context, socket.socketpair())
            self.wakeup, signals = map(stack.enter_context, socket.socketpair())
            signals.setblocking(False)
            for signum in _SIGNALS:
                stack.callback(signal.signal, signum, signal.signal(signum, lambda *_: None))
            fd = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, fd)
            stack.callback(self.kill)
            for sock in self.sockets:
                self.start(sock)
            while self.pids:
                self.wait()
                self.bury()
        return self.status

    def start(self, sock: socket.socket) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self.child(sock, mask)
            self.pids[pid] = sock
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def child(self, sock: socket.socket, mask: Iterable[int]) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for signum in _SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for us all
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.ours.close()
            for other in self.sockets:
                if other is not sock:
                    other.close()
            with EventBase() as base:
                self.work(base, sock, True, (signal.SIGTERM,), self.life)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            log.exception("worker %d", os.getpid())
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def wait(self) -> None:
        """Until something has happened."""
        limit = None if self.deadline is None else max(self.deadline - time.monotonic(), 0)
        if not select.select([self.wakeup], [], [], limit)[0]:
            self.kill()
        elif {signal.SIGTERM, signal.SIGINT} & set(self.wakeup.recv(512)):
            if self.deadline is None:
                self.stop()
            else:
                self.kill()

    def bury(self) -> None:
        for pid in list(self.pids):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
            sock, now = self.pids.pop(pid), time.monotonic()
            if self.deadline is not None:
                continue
            if len(self.deaths) == _MOST_DEATHS and now - self.deaths[0] < _DEATHS_WITHIN:
                log.error("worker %d has died, as too many have: giving up", pid)
                self.status = 1
                self.stop()
                continue
            log.error("worker %d has died: another one starts", pid)
            self.deaths.append(now)
            self.start(sock)

    def stop(self) -> None:
        self.deadline = time.monotonic() + self.patience
        self.ours.close()
        self.kill(signal.SIGTERM)  # gets to those that do not look, too
        for sock in self.sockets:
            sock.close()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        for pid in self.pids:
            os.kill(pid, signum)


# ---- the command ----


def _load(text: str) -> WSGIApplication:
    name, _, path = text.partition(":")
    names = (path or "application").split(".")
    return cast("WSGIApplication", functools.reduce(getattr, names, importlib.import_module(name)))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"not host:port: {text}")
    return host.strip("[]"), int(port)


def main(arguments: list[str] | None = None) -> int:
    """`python -m pylibevent.wsgi`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pylibevent.wsgi",
        description="Serves a WSGI application.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("app", help="module:name; without a name, module:application")
    add("--bind", type=_address, default="127.0.0.1:8000", metavar="HOST:PORT", help="where")
    add("--workers", type=int, default=1, help="how many processes")
    add("--timeout", type=float, default=60, help="seconds in which nothing comes from a client")
    add("--graceful-timeout", type=float, default=30, help="seconds for what runs, at the end")
    add("--max-body-size", type=int, default=64 << 20, help="bytes that a request may have")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(name)s: %(message)s", level="INFO")
    sys.path.insert(0, "")
    try:
        return serve(
            _load(given.app),
            *given.bind,
            workers=given.workers,
            timeout=given.timeout,
            graceful_timeout=given.graceful_timeout,
            max_body_size=given.max_body_size,
        )
    except OSError as error:
        log.error("%s:%d: %s", *given.bind, error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
