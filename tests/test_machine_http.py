"""HTTP's servers, connections and requests used, closed and dropped in any order, inside any of
their callbacks, with peers that do anything: nothing crashes, hangs, calls too late or is left.

Each step is a method that a seed chooses, at the top or in a callback.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tls
from common import FUZZ, PATIENCE
from conftest import Balance
from faults import build, needs_faults
from processes import in_child

from pylibevent import (
    EV_READ,
    EV_WRITE,
    EVDNS_BASE_NAMESERVERS_NO_DEFAULT,
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_GET,
    EVHTTP_REQ_HEAD,
    EVHTTP_REQ_POST,
    EVHTTP_REQ_PUT,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    EVREQ_HTTP_REQUEST_CANCEL,
    BufferEvent,
    ClosedError,
    DnsBase,
    EvBuffer,
    EventBase,
    FileSegment,
    HttpConnection,
    HttpConnectionFlags,
    HttpError,
    HttpRequest,
    HttpServer,
    HttpServerFlags,
    HttpServerRequest,
    LibeventError,
    Timer,
    TLSContext,
)

LOG = os.environ.get("PYLIBEVENT_FUZZ_LOG")  # a file for the steps of the run that is under way
MOST = 6  # of each kind; one more takes the place of another, which is dropped
SPIN = 5000  # callbacks in a run of the loop
RESET = struct.pack("ii", 1, 0)
REFUSALS = (
    *(
        "in use by another thread",
        "the parent process's",
        "running already",
        "too deep",
        "a reply has begun",
        "send_reply_start() comes first",
    ),
    *("a request is made once", "not a request of a client's", "a virtual host has no sockets"),
)
REQUESTS = [
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a?x=%41#y HTTP/1.1\r\nHost: b.vhost\r\nConnection: close\r\n\r\n",
    b"GET http://c.d.vhost/a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: b.vhost\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" + bytes(50000),
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nand more",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\nand more",
    b"not HTTP\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
]
REPLIES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100000),
    b"HTTP/1.1 200 OK\r\n\r\nto the end",
    b"HTTP/1.0 200 OK\r\n\r\nto the end",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nand more",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
    b"not HTTP\r\n\r\n",
    b"\0\xff" * 100,
]
URIS = ["/", "/a", "/a?b=c#d", "*", "http://c.d.vhost/a", "http://[::1]:1/a", "//x:1/", "/%zz", ""]
HOSTS = ["*.vhost", "b.vhost", "*", "127.0.0.1", "a"]
METHODS = [
    *(EVHTTP_REQ_GET, EVHTTP_REQ_GET, EVHTTP_REQ_GET, EVHTTP_REQ_POST),
    *(EVHTTP_REQ_PUT, EVHTTP_REQ_HEAD, EVHTTP_REQ_CONNECT),
]


class Boom(Exception):
    """What callbacks raise."""


class Quit(BaseException):
    """What they raise past every exception handler."""


class Note:
    """What is known of an object. Its callbacks have this for an argument, and refer to nothing
    else, so that the object can be dropped."""

    def __init__(self, above: Note | None = None) -> None:
        self.above = above
        self.over = False
        self.calls: list[str] = []
        self.cancelled = False
        self.waits = False  # something is still to be called
        self.cycle: Any = None

    def root(self) -> Note:
        return self if self.above is None else self.above.root()

    def gone(self) -> bool:
        return self.over or (self.above is not None and self.above.gone())


class World:
    def __init__(
        self, seed: int, certificates: tls.Certificates | None, faults: Any = None
    ) -> None:
        self.faults = faults
        self.draw = random.Random(seed)
        self.failures: list[BaseException] = []
        self.depth = self.calls = 0
        self.quiet = False  # callbacks do nothing any more
        self.forked = False
        self.wild = self.draw.choice([0.02, 0.1, 0.5])  # how odd settings are
        self.busy = self.draw.choice([0.05, 0.3, 0.6])  # how much callbacks do
        self.hot: dict[str, Any] = {}  # what the callback that is under way is about
        self.certificates = certificates
        self.bases = [(EventBase(), Note()), (EventBase(), Note())]
        for base, _ in self.bases:
            if self.perhaps(0.7):
                base.exception_handler = self.on_exception
            if self.perhaps(0.2):
                base.priority_init(3)
        self.notes: list[Note] = []
        self.servers: list[tuple[HttpServer, Note]] = []
        self.bounds: list[Any] = []
        self.conns: list[tuple[HttpConnection, Note]] = []
        self.requests: list[tuple[HttpRequest, Note]] = []
        self.served: list[tuple[HttpServerRequest, Note]] = []
        self.bevs: list[tuple[BufferEvent, Note]] = []
        self.bases_of_names: list[DnsBase] = []
        self.views: list[memoryview] = []
        self.clients: list[socket.socket] = []
        self.peers: list[socket.socket] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.deaf = socket.socket()  # has a port, and does not listen
        self.deaf.bind(("127.0.0.1", 0))
        self.silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.silent.bind(("127.0.0.1", 0))
        self.hosts_file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.hosts_file.write(b"127.0.0.1 known.example\n")
        self.hosts_file.flush()
        for function in (self.new_server, self.new_server, self.new_conn, self.new_conn):
            self.attempt(function)

    # ---- helpers ----

    def perhaps(self, chance: float) -> bool:
        return self.draw.random() < chance

    def check(self, holds: object, what: str) -> None:
        try:
            assert holds, what
        except AssertionError as failure:
            self.failures.append(failure)

    def keep(self, kind: list[Any], it: Any) -> None:
        if len(kind) < MOST:
            kind.append(it)
        else:
            kind[self.draw.randrange(MOST)] = it

    def note(self, above: Note) -> Note:
        note = Note(above)
        self.notes.append(note)
        return note

    def some_base(self) -> tuple[EventBase, Note]:
        return self.bases[self.perhaps(0.15)]

    def pick(self, kind: Sequence[Any]) -> Any:
        return self.draw.choice(kind) if kind else None

    def one_of(self, kind: str) -> Any:
        if kind in self.hot and self.perhaps(0.6):
            return self.hot[kind]
        return self.pick(getattr(self, kind))

    def usual(self, value: Any, *others: Any) -> Any:
        return self.pick([value, *others]) if self.perhaps(self.wild) else value

    def port(self) -> Any:
        ports = [bound.address[1] for bound in self.bounds if not bound.closed]
        return self.pick(ports or [self.deaf.getsockname()[1]])

    def attempt(self, function: Callable[..., object], *args: Any) -> None:
        """What is closed says so, and all else that is raised is in its docstring."""
        if LOG:
            with open(LOG, "a") as log:
                log.write(f"{'    ' * self.depth}{function.__name__}{args}\n")
        try:
            function(*args)
        except (Boom, Quit):
            if self.depth and self.perhaps(0.3):
                raise
        except RuntimeError as error:
            if not any(text in str(error) for text in REFUSALS):
                self.failures.append(error)
        except (OSError, ValueError, LibeventError, BufferError, KeyError):
            pass
        except BaseException as failure:
            if not self.may_be_raised(failure):
                self.failures.append(failure)

    @contextlib.contextmanager
    def using(self, *ones: Any) -> Iterator[None]:
        try:
            yield
        except ClosedError as error:
            answered = any(isinstance(one, HttpServerRequest) for one in ones)  # perhaps
            over = any(one.closed or (one.base and one.base.closed) for one in ones)
            if not answered and not over and not str(error).startswith("evbuffer"):
                self.failures.append(error)

    def close(self, one: Any, note: Note) -> None:
        try:
            one.close()
        finally:
            if one.closed:
                note.over = True

    def step(self) -> None:
        functions, weights = zip(*self.STEPS.items(), strict=True)
        self.attempt(self.draw.choices(functions, weights)[0].__get__(self))

    # ---- callbacks ----

    def call(self, note: Note, what: str, **hot: Any) -> None:
        """What every callback does."""
        self.check(not note.gone(), f"{what} after the end")
        note.calls.append(what)
        self.calls += 1
        if self.calls > SPIN:
            self.check(False, "callbacks without an end")
            for base, _ in self.bases:
                if not base.closed:
                    base.loopbreak()
        if LOG:
            with open(LOG, "a") as log:
                log.write(f"{'    ' * self.depth}  [{what}]\n")
        if self.quiet or self.depth > 3:
            return
        self.depth += 1
        outer, self.hot = self.hot, hot
        try:
            while self.perhaps(self.busy):
                self.step()
            if self.perhaps(0.06):
                raise Boom
            if self.perhaps(0.01):
                raise Quit
        finally:
            self.depth -= 1
            self.hot = outer

    def may_be_raised(self, error: BaseException) -> bool:
        """By callbacks, or for want of memory."""
        kinds = (Boom, Quit, MemoryError) if self.faults else (Boom, Quit)
        return isinstance(error, kinds) or "bevcb" in str(error)

    def on_exception(self, exception: Exception, _source: Any) -> None:
        if not self.may_be_raised(exception):
            self.failures.append(exception)
        self.call(Note(), "exception")

    def on_unraisable(self, info: Any) -> None:
        if not self.may_be_raised(info.exc_value):
            self.failures.append(info.exc_value)

    def on_timer(self, note: Note) -> None:
        self.call(note, "timer")

    def on_change(self, _buf: EvBuffer, _size: int, _added: int, _deleted: int) -> None:
        self.call(Note(), "change")

    # ---- bases ----

    def loop(self) -> None:
        base, _ = self.some_base()
        if self.depth == 0:
            self.calls = 0
            self.pump()
        base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)

    def wait(self) -> None:
        base, note = self.some_base()
        if self.depth or base.closed:
            return
        timer = Timer(base, self.on_timer, self.note(note))
        timer.add(0.003)
        for _ in range(30):
            if base.closed or not timer.pending():
                return
            self.calls = 0
            self.pump()
            base.loop(EVLOOP_ONCE)

    def leave_loop(self) -> None:
        base, _ = self.some_base()
        self.pick([base.loopbreak, base.loopexit, base.loopcontinue])()

    def timer(self) -> None:
        base, note = self.some_base()
        Timer(base, self.on_timer, self.note(note)).add(self.pick([0, 0.001, 0.01]))

    def close_base(self) -> None:
        if self.perhaps(0.1):
            self.close(*self.some_base())

    def elsewhere(self) -> None:
        """Another thread drops something, or does a step."""
        if self.depth > 1:
            return
        kind = self.pick([self.requests, self.served, self.conns, self.servers, self.bevs])
        dropped = [kind.pop()] if kind else []

        def work() -> None:
            dropped.clear()
            with contextlib.suppress(Boom, Quit):
                while self.perhaps(0.5):
                    self.step()

        thread = threading.Thread(target=work)
        self.depth += 1
        thread.start()
        thread.join()
        self.depth -= 1

    def handle_exceptions(self) -> None:
        base, _ = self.some_base()
        if not base.closed:
            base.exception_handler = self.pick([None, self.on_exception])

    def fork(self) -> None:
        """The child goes on, with its copy of all, for a while."""
        if self.perhaps(0.7) or self.forked or self.faults:
            return
        child = os.fork()
        if child:
            self.check(os.waitpid(child, 0)[1] == 0, "a child has failed")
            return
        status = 1
        try:
            signal.alarm(20 * PATIENCE)
            self.forked = True
            for base, _ in self.bases:
                if self.perhaps(0.8) and not base.closed:
                    self.attempt(base.reinit)
            for _ in range(self.draw.randrange(20)):
                self.step()
            if self.perhaps(0.5):
                for base, _ in self.bases:
                    base.close()
            for failure in self.failures:
                traceback.print_exception(failure)
            status = bool(self.failures)
        finally:
            os._exit(status)

    def fail(self) -> None:
        """Soon there is no memory for something."""
        if self.faults:
            number = self.pick([1, 1, 2, 3, 5, 10, 20, 40, 80])
            self.faults.faults_arm(b"malloc", number, 1, errno.ENOMEM)

    def collect(self) -> None:
        gc.collect(self.draw.randrange(3))

    # ---- servers ----

    def new_server(self) -> None:
        base, above = self.some_base()
        server, note = HttpServer(base), self.note(above)
        server.timeout = self.usual(0.1, 0.01, 0.5)
        server.max_body_size = self.usual(200_000, 0, 1000)
        server.set_gencb(self.handle, note)
        server.set_cb("/a", self.handle, note)
        if self.perhaps(0.5 if self.certificates else 0.1):
            server.set_bevcb(self.give, note)
        self.keep(self.servers, (server, note))
        if self.perhaps(0.7):
            self.bind(server)

    def give(self, base: EventBase, note: Note) -> BufferEvent:
        self.call(note, "bevcb")
        what = 0.5 if self.quiet else self.draw.random()
        if what < 0.05:
            return None  # type: ignore[return-value]
        if what < 0.8 and self.certificates:
            context = TLSContext(server_side=True)
            context.load_cert_chain(self.certificates.good)
            other = self.usual(base, self.some_base()[0])
            return BufferEvent.openssl_socket(base if other.closed else other, None, context)
        bev = BufferEvent.socket(base)
        if what < 0.85:
            bev.close()
        if what > 0.95 and not (other := self.some_base()[0]).closed:
            return BufferEvent.socket(other)
        return bev

    def bind(self, server: HttpServer | None = None) -> None:
        if server is None:
            if not self.servers:
                return
            server, _ = self.one_of("servers")
        if self.perhaps(0.8):
            bound = server.bind("127.0.0.1", 0)
        elif self.perhaps(0.3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(f"\0pylibevent-{os.getpid()}-{self.draw.random()}")
                sock.listen()
                bound = server.accept(sock)
        else:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                bound = server.accept(sock)
        self.keep(self.bounds, bound)

    def use_bound(self) -> None:
        if bound := self.pick(self.bounds):
            with self.using(bound):
                self.pick([bound.enable, bound.enable, bound.disable, bound.__repr__])()
            if self.perhaps(0.2):
                bound.close()

    def close_server(self) -> None:
        if self.servers and self.perhaps(0.3):
            self.close(*self.one_of("servers"))

    def drop_server(self) -> None:
        if self.servers and self.perhaps(0.3):
            del self.servers[self.draw.randrange(len(self.servers))]

    def set_server(self) -> None:
        if not self.servers:
            return
        server, note = self.one_of("servers")
        how = self.draw.randrange(10)
        with self.using(server):
            if how == 0:
                server.set_gencb(None)
            elif how == 1:
                server.set_gencb(self.handle, note)
            elif how == 2:
                server.del_cb("/a")
            elif how == 3:
                server.set_cb("/a", self.handle, note)
            elif how == 4:
                server.timeout = self.usual(0.1, 0.01, 0.5)
            elif how == 5:
                server.max_body_size = self.pick([0, 1000, 200_000])
                server.max_headers_size = self.pick([0, 100, 65536])
            elif how == 6:
                server.flags = self.pick(list(HttpServerFlags))
            elif how == 7:
                server.default_content_type = self.pick([None, "text/plain"])
            elif how == 8:
                server.allowed_methods = self.pick([EVHTTP_REQ_GET, server.allowed_methods])
            else:
                self.look(server, "unanswered", "bound_sockets", "ptr", "base")

    def hosts(self) -> None:
        if not self.servers:
            return
        (server, _), (other, _) = self.one_of("servers"), self.pick(self.servers)
        name = self.pick(HOSTS)
        how = self.draw.randrange(5)
        if how < 2:
            server.add_virtual_host(name, other)
        elif how == 2:
            server.remove_virtual_host(other)
        elif how == 3:
            server.add_server_alias(name)
        else:
            server.remove_server_alias(name)

    def look(self, one: Any, *names: str) -> None:
        assert repr(one)
        for name in names:
            if hasattr(type(one), name):
                with contextlib.suppress(ClosedError):
                    getattr(one, name)

    # ---- requests that handlers get ----

    def handle(self, request: HttpServerRequest, above: Note) -> None:
        note = self.note(above.root())
        if self.quiet:
            request.send_reply(200)
            return
        if self.perhaps(0.1):
            note.cycle = request
        if self.perhaps(0.5):
            self.listen(request, note)
        if self.perhaps(0.7):
            self.keep(self.served, (request, note))
        self.call(above, "handler", served=(request, note), servers=(request.server, above))
        while self.perhaps(0.7):
            self.answer(request, note)

    def listen(self, request: HttpServerRequest, note: Note) -> None:
        with self.using(request):
            request.on_complete(self.on_complete, note)
            request.on_error(self.on_error, note)
            request.on_close(self.on_close, note)
            note.waits = True

    def on_complete(self, request: HttpServerRequest, note: Note) -> None:
        self.check(note.waits, "complete, after the end")
        note.waits = False
        self.look(request, *LOOKS)
        self.call(note, "complete", served=(request, note))

    def on_error(self, request: HttpServerRequest, error: HttpError, note: Note) -> None:
        self.check(note.waits, f"{error!r}, after the end")
        note.waits = False
        self.look(request, *LOOKS)
        self.call(note, "error", served=(request, note))

    def on_close(self, request: HttpServerRequest, note: Note) -> None:
        self.check(not note.waits, "closed before an error")
        self.check("close" not in note.calls, "closed twice")
        self.call(note, "close", served=(request, note))

    def on_written(self, request: HttpServerRequest, note: Note) -> None:
        self.call(note, "written", served=(request, note))
        if self.quiet:
            request.close()
        else:
            self.answer(request, note)

    def answer(self, request: HttpServerRequest, note: Note) -> None:
        self.attempt(self.pick(self.ANSWERS).__get__(self), request, note)

    def use_served(self) -> None:
        if self.served:
            self.answer(*self.one_of("served"))

    def drop_served(self) -> None:
        if self.served:
            del self.served[self.draw.randrange(len(self.served))]

    def reply(self, request: HttpServerRequest, _note: Note) -> None:
        with self.using(request):
            body = self.pick([None, b"", b"x", bytes(100_000), EvBuffer(b"x" * 10)])
            if self.perhaps(0.2):
                body = self.some_buffer(request)
            request.send_reply(self.usual(200, 204, 304, 404, 101), None, body)

    def some_buffer(self, request: HttpRequest) -> Any:
        """One of its own, of another's, or one that calls back."""
        how = self.draw.randrange(5)
        if how < 2:
            return self.pick([request.input_buffer, request.output_buffer])
        if how < 4 and (other := self.pick([*self.requests, *self.served])):
            with contextlib.suppress(ClosedError):
                return self.pick([other[0].input_buffer, other[0].output_buffer])
        buf = EvBuffer(b"called")
        buf.add_cb(self.on_change)
        with open(__file__, "rb") as file, FileSegment(file, 0, 100) as segment:
            segment.add_cleanup_cb(self.call, Note(), "cleanup")
            buf.add_file_segment(segment)
        return buf

    def file(self, request: HttpServerRequest, _note: Note) -> None:
        with open(__file__, "rb") as file, self.using(request):
            request.output_buffer.add_file(file)
            request.send_reply(200)

    def error(self, request: HttpServerRequest, _note: Note) -> None:
        with self.using(request):
            request.send_error(self.pick([400, 404, 500]), self.pick([None, "<x>"]))

    def cancel_served(self, request: HttpServerRequest, _note: Note) -> None:
        self.pick([request.cancel, request.close])()

    def own(self, request: HttpRequest, _note: Note) -> None:
        with self.using(request):
            request.own()

    def start(self, request: HttpServerRequest, note: Note) -> None:
        with self.using(request):
            request.send_reply_start(self.pick([200, 200, 500]))
        self.chunk(request, note)

    def chunk(self, request: HttpServerRequest, note: Note) -> None:
        with self.using(request):
            part = self.pick([b"", b"y", b"y" * 50_000, EvBuffer(b"z" * 10)])
            if self.perhaps(0.2):
                part = self.some_buffer(request)
            if self.perhaps(0.7):
                request.send_reply_chunk(part, self.on_written, note)
            else:
                request.send_reply_chunk(part)

    def finish(self, request: HttpServerRequest, _note: Note) -> None:
        with self.using(request):
            request.send_reply_end()

    def take_over(self, request: HttpRequest, above: Note) -> None:
        with self.using(request):
            bev = request.take_over()
            note = self.note(above.root())
            bev.setcb(self.on_bev, self.on_bev, self.on_bev_event, note)
            bev.enable(EV_READ | EV_WRITE)
            self.keep(self.bevs, (bev, note))

    def on_bev(self, bev: BufferEvent, note: Note) -> None:
        if not bev.closed:
            bev.output.add_buffer(bev.input)
        self.call(note, "bev", bevs=(bev, note))

    def on_bev_event(self, bev: BufferEvent, _what: int, note: Note) -> None:
        self.call(note, "bev event")
        self.close(bev, note)

    def use_bev(self) -> None:
        if self.bevs:
            bev, note = self.one_of("bevs")
            how = self.draw.randrange(4)
            with self.using(bev):
                if how == 0:
                    bev.write(self.pick([b"x", bytes(100_000), REPLIES[0]]))
                elif how == 1:
                    self.close(bev, note)
                elif how == 2:
                    bev.disable(EV_READ)
                else:
                    self.bevs.pop()

    def look_at(self, request: HttpRequest, _note: Note) -> None:
        self.look(request, *LOOKS)
        with self.using(request):
            assert str(request.parsed_uri) or not request.uri
            dict(request.headers), request.read()

    def headers(self, request: HttpRequest, _note: Note) -> None:
        with self.using(request):
            headers = self.pick([request.headers, request.output_headers])
            how = self.draw.randrange(6)
            if how == 0:
                headers["A"] = "b"
            elif how == 1:
                headers.add("Connection", self.pick(["close", "keep-alive", "upgrade"]))
            elif how == 2:
                headers.clear()
            elif how == 3:
                headers["Content-Length"] = self.pick(["0", "5", "100000", "x"])
            elif how == 4:
                headers.add("Transfer-Encoding", "chunked")
            else:
                headers.extend([("B", "c")] * 20)

    def buffers(self, request: HttpRequest, _note: Note) -> None:
        with self.using(request):
            buf = self.pick([request.input_buffer, request.output_buffer])
            how = self.draw.randrange(10)
            if how == 0:
                buf.add_cb(self.on_change)
            elif how == 1:
                buf.add(self.pick([b"x", bytes(5000)]))
            elif how == 2:
                buf.drain(self.draw.randrange(100))
            elif how == 3:
                self.views += buf.peek()
            elif how == 4:
                buf.freeze(self.perhaps(0.5))
            elif how == 5:
                EvBuffer().add_buffer(buf)
            elif how == 6:
                buf.add_buffer(self.some_buffer(request))
            elif how == 7:
                buf.add_buffer_reference(self.some_buffer(request))
            elif how == 8:
                buf.add_reference(bytearray(100))
            else:
                buf.close()

    def release(self) -> None:
        self.views.clear()

    # ---- connections ----

    def new_dns(self) -> None:
        if self.faults:  # evdns does not look
            return
        base, _ = self.some_base()
        dns = DnsBase(base, EVDNS_BASE_NAMESERVERS_NO_DEFAULT)
        dns.load_hosts(self.hosts_file.name)
        if self.perhaps(0.5):
            dns.add_nameserver(self.silent.getsockname())
        self.keep(self.bases_of_names, dns)

    def close_dns(self) -> None:
        if dns := self.pick(self.bases_of_names):
            dns.close(self.perhaps(0.5))

    def new_conn(self) -> None:
        base, above = self.some_base()
        port = self.port() if self.perhaps(0.6) else self.listening.getsockname()[1]
        dns = self.pick([None, *self.bases_of_names])
        host = "127.0.0.1"
        if dns and not dns.closed:
            host = self.pick(["127.0.0.1", "known.example", "unknown.example"])
        elif self.perhaps(0.1):
            host = self.pick(["localhost", "::1", "0.0.0.1"])
        context = None
        if self.certificates and self.perhaps(0.4):
            context = TLSContext(server_side=False)
            context.load_verify_locations(self.certificates.cafile)
        conn = HttpConnection(
            *(base, host, self.usual(port, self.deaf.getsockname()[1])),
            dns=dns,
            tls=context,
            server_hostname="localhost" if context else None,
            timeout=self.usual(0.1, 0.01, 0.05),
            retries=self.pick([0, 0, 1, 3]),
            initial_retry=self.pick([0, 0.001]),
            local_address=self.usual(None, "127.0.0.2", "::1"),
            max_headers_size=self.usual(65536, None, 100),
            flags=self.usual(0, *HttpConnectionFlags),
        )
        note = self.note(above)
        self.keep(self.conns, (conn, note))
        if self.perhaps(0.7):
            conn.set_closecb(self.on_conn_closed, note)

    def on_conn_closed(self, conn: HttpConnection, note: Note) -> None:
        self.check(not conn.closed, "told of a connection that Python has closed")
        self.call(note, "connection closed", conns=(conn, note))

    def close_conn(self) -> None:
        if self.conns:
            self.close(*self.one_of("conns"))

    def drop_conn(self) -> None:
        if self.conns:
            del self.conns[self.draw.randrange(len(self.conns))]

    def set_conn(self) -> None:
        if not self.conns:
            return
        conn, note = self.one_of("conns")
        how = self.draw.randrange(7)
        with self.using(conn):
            if how == 0:
                conn.free_on_completion()
            elif how == 1:
                conn.set_closecb(self.on_conn_closed, note)
            elif how == 2:
                conn.set_closecb(None)
            elif how == 3:
                conn.timeout = self.usual(0.1, 0.01, 0.05)
            elif how == 4:
                conn.max_body_size = self.usual(None, 0, 10, 100_000)
            elif how == 5:
                conn.max_headers_size = self.usual(None, 0, 10, 100_000)
            else:
                self.look(conn, "ptr", "connected", "tls", "address", "peer")

    def request(self) -> None:
        if not self.conns:
            return
        conn, above = self.one_of("conns")
        note = self.note(above)
        callbacks: dict[str, Any] = {
            name: function
            for name, function in (
                ("chunked", self.on_chunked),
                ("header", self.on_header),
                ("error", self.on_failed),
            )
            if self.perhaps(0.5)
        }
        request = HttpRequest(self.on_done, note, **callbacks)
        with self.using(request):
            if self.perhaps(0.3):
                request.output_headers["Host"] = self.pick(["a", "b.vhost", "c.d.vhost"])
            if self.perhaps(0.2):
                request.output_headers["Connection"] = self.pick(["close", "keep-alive"])
            if self.perhaps(0.1):
                request.output_headers["Expect"] = "100-continue"
            if self.perhaps(0.3):
                request.output_buffer.add(bytes(self.pick([1, 1000, 100_000, 1_000_000])))
            if self.perhaps(0.05):
                request.output_buffer.add_cb(self.on_change)
        if self.perhaps(0.1):
            note.cycle = request
        if self.perhaps(0.6):
            self.keep(self.requests, (request, note))
        note.waits = True
        try:
            with self.using(conn):
                conn.make_request(request, self.pick(METHODS), self.usual("/", *URIS))
        finally:  # what a callback of the buffer's has raised does not keep it from being made
            note.waits &= request.connection is not None

    def make_again(self) -> None:
        """Those that handlers got, and those that are made already, cannot be made."""
        other: Any = self.pick([*self.requests, *self.served])
        if other and self.conns:
            conn, _ = self.pick(self.conns)
            with self.using(conn, other[0]):
                if not isinstance(other[0], HttpServerRequest) and not other[1].waits:
                    return
                conn.make_request(other[0])
                self.check(False, "made twice")

    @staticmethod
    def around(request: HttpRequest, note: Note) -> dict[str, Any]:
        return {"requests": (request, note), "conns": (request.connection, note.above)}

    def on_header(self, request: HttpRequest, note: Note) -> object:
        self.check(note.waits, "headers after the end")
        self.look(request, *LOOKS)
        self.call(note, "header", **self.around(request, note))
        return self.usual(None, True, False, -1)

    def on_chunked(self, request: HttpRequest, note: Note) -> None:
        self.check(note.waits, "a part after the end")
        if self.perhaps(0.7):
            request.read()
        self.call(note, "chunked", **self.around(request, note))

    def on_failed(self, request: HttpRequest, error: HttpError, note: Note) -> None:
        self.check(note.waits, "an error after the end")
        self.check(request.error is error, "another error")
        note.waits = error is not EVREQ_HTTP_REQUEST_CANCEL
        self.call(note, "failed", **self.around(request, note))

    def on_done(self, request: HttpRequest, note: Note) -> None:
        self.check(note.waits, "done after the end")
        note.waits = False
        self.look(request, *LOOKS)
        if self.perhaps(0.3):
            self.attempt(self.take_over, request, note)
        self.call(note, "done", **self.around(request, note))

    def use_request(self) -> None:
        if self.requests:
            request, note = self.one_of("requests")
            functions = [self.headers, self.buffers, self.look_at, self.own, self.take_over]
            self.attempt(self.pick(functions), request, note)

    def cancel(self) -> None:
        if self.requests:
            request, note = self.one_of("requests")
            note.cancelled = True  # and if it has no callback for that, nothing comes
            with self.using(request):
                self.pick([request.cancel, request.close])()

    def drop_request(self) -> None:
        if self.requests:
            del self.requests[self.draw.randrange(len(self.requests))]

    # ---- peers without libevent ----

    def client(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", self.port()))
        if self.certificates and self.perhaps(0.3):
            sock = self.certificates.for_client().wrap_socket(
                sock, server_hostname="localhost", do_handshake_on_connect=False
            )
        self.keep(self.clients, sock)

    def accept(self) -> None:
        sock, _ = self.listening.accept()
        sock.setblocking(False)
        self.keep(self.peers, sock)

    def pump(self) -> None:
        """The peers do what is expected of them."""
        if self.perhaps(0.5):
            with contextlib.suppress(OSError):
                self.accept()
        for sock in self.peers:
            with contextlib.suppress(OSError):
                if sock.recv(1_000_000) and self.perhaps(0.7):
                    sock.send(self.part_of(self.pick(REPLIES)))
        for sock in self.clients:
            if self.perhaps(0.5):
                with contextlib.suppress(OSError):
                    sock.recv(1_000_000)

    def part_of(self, data: bytes) -> bytes:
        if self.perhaps(0.3):
            return data[: self.draw.randrange(len(data))]
        return data

    def client_sends(self) -> None:
        if self.clients:
            data = self.pick(REQUESTS) * self.pick([1, 1, 1, 3, 10])
            self.pick(self.clients).send(self.part_of(data))

    def peer_sends(self) -> None:
        if self.peers:
            data = self.pick(REPLIES) * self.pick([1, 1, 1, 1, 3])
            self.pick(self.peers).send(self.part_of(data))

    def receive(self) -> None:
        if sock := self.pick(self.clients + self.peers):
            sock.recv(1_000_000)

    def hang_up(self) -> None:
        kind = self.pick([self.clients, self.peers])
        if kind:
            how = self.draw.randrange(4)
            if how == 0:
                self.pick(kind).shutdown(self.pick([socket.SHUT_WR, socket.SHUT_RD]))
                return
            sock = kind.pop(self.draw.randrange(len(kind)))
            if how == 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()

    ANSWERS: tuple[Callable[..., None], ...] = (
        *(reply, reply, reply, reply, file, error, cancel_served, own, start, start, start),
        *(chunk, chunk, finish, finish, take_over, look_at, headers, headers, buffers),
    )
    STEPS: ClassVar[dict[Callable[..., None], int]] = {
        loop: 40,
        wait: 8,
        leave_loop: 2,
        timer: 4,
        close_base: 1,
        collect: 2,
        handle_exceptions: 1,
        fork: 1,
        fail: 14,
        elsewhere: 2,
        new_server: 2,
        bind: 2,
        use_bound: 2,
        close_server: 2,
        drop_server: 1,
        set_server: 4,
        hosts: 4,
        use_served: 12,
        drop_served: 4,
        use_bev: 4,
        release: 2,
        new_dns: 1,
        close_dns: 1,
        new_conn: 6,
        close_conn: 2,
        drop_conn: 2,
        set_conn: 4,
        request: 20,
        make_again: 1,
        use_request: 6,
        cancel: 4,
        drop_request: 3,
        client: 6,
        accept: 8,
        client_sends: 14,
        peer_sends: 14,
        receive: 4,
        hang_up: 5,
    }

    # ---- the end ----

    def settle(self) -> None:
        """The peers go and the handlers drop what they have: then all comes to an end."""
        self.quiet = True
        self.views.clear()
        self.served.clear()
        self.bevs.clear()
        for sock in (*self.clients, *self.peers, self.listening):
            sock.close()
        for note in self.notes:
            note.cycle = None
        gc.collect()
        waiting: list[list[str]] = []
        for _ in range(500 * PATIENCE):
            open_ones = [one for one, _ in self.servers if not one.closed]
            waiting = [note.calls for note in self.notes if self.still_waits(note)]
            waiting += [[repr(one)] for one in open_ones if one.unanswered]
            if not waiting:
                return
            self.calls = 0
            for base, note in self.bases:
                if not base.closed:
                    Timer(base, self.on_timer, self.note(note)).add(0.005)
                    self.attempt(base.loop, EVLOOP_ONCE)
        self.check(False, f"not over: {waiting}")

    @staticmethod
    def still_waits(note: Note) -> bool:
        return note.waits and not note.cancelled and not note.gone()

    def end(self) -> None:
        self.quiet = True
        if self.faults:
            self.faults.faults_disarm()
        if self.perhaps(0.5):
            self.settle()
        if self.perhaps(0.3):
            for kind in (self.servers, self.conns, self.served, self.bevs):
                for one, _ in kind:
                    with contextlib.suppress(Boom, Quit):
                        one.close()
        if self.perhaps(0.5):
            self.forget()
        for base, _ in self.bases:
            if self.perhaps(0.8):
                base.close()
        self.forget()
        self.bases.clear()
        for sock in (*self.clients, *self.peers, self.listening, self.silent, self.deaf):
            sock.close()
        self.hosts_file.close()
        if self.failures:
            raise self.failures[0]

    def forget(self) -> None:
        kinds: list[list[Any]] = [self.servers, self.conns, self.served, self.bevs, self.requests]
        for kind in (*kinds, self.bounds, self.bases_of_names, self.views, self.notes):
            kind.clear()


LOOKS = (
    *("uri", "host", "version", "response_code", "response_code_line", "method", "command"),
    *("remote", "tls", "owned", "done", "connection", "base", "server", "exception", "closed"),
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tls.Certificates:
    return tls.Certificates(tmp_path_factory.mktemp("tls"))


def run(world: World) -> None:
    hook, sys.unraisablehook = sys.unraisablehook, world.on_unraisable
    try:
        for _ in range(world.draw.randrange(300)):
            world.step()
            if world.failures:
                break
        world.end()
    finally:
        sys.unraisablehook = hook


FIRST = int(os.environ.get("PYLIBEVENT_FUZZ_SEED", "0"))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 40 * max(FUZZ, 1)))
def test_anything_may_happen_to_http(certificates: tls.Certificates, seed: int) -> None:
    if LOG:
        with open(LOG, "w") as log:
            log.write(f"seed {seed}\n")
    run(World(seed, certificates if seed % 4 == 0 else None))


@needs_faults
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_anything_may_happen_to_http_without_memory(tmp_path: Path) -> None:
    faults = build(tmp_path)

    def child() -> None:
        assert faults._lib.faults_install() > 0
        logging.getLogger("libevent").setLevel(logging.CRITICAL)
        for seed in range(FIRST, FIRST + 15 * max(FUZZ, 1)):
            print(f"seed {seed}", file=sys.stderr)
            balance = Balance()
            run(World(seed, None, faults._lib))  # evhttp does not survive that with TLS
            balance.check()
            gc.freeze()

    in_child(child)
