"""A signal handler's exception may come in at any step of Python's: nothing is lost by it.

Each test does the same thing again and again, interrupted at one later call each time, until it is
over before that. Python looks for signals when a call is over, and when a function begins.
"""

# ruff: noqa: B023  (each lambda is called in its own turn of the loop)
from __future__ import annotations

import contextlib
import ctypes
import dis
import functools
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from types import CodeType, FrameType
from typing import Any

import pytest
from common import is_open

from pylibevent import (
    BEV_NEED_MORE,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_THREADSAFE,
    DNS_ERR_NOTEXIST,
    EV_READ,
    EV_WRITE,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    DnsBase,
    DnsServerPort,
    DnsServerRequest,
    EvBuffer,
    Event,
    EventBase,
    FileSegment,
    HttpConnection,
    HttpRequest,
    HttpServer,
    HttpServerRequest,
    Listener,
    Signal,
    Timer,
    aio,
    util,
)
from pylibevent import _callbacks as cb

pytestmark = [
    pytest.mark.skipif(sys.gettrace() is not None, reason="something traces already"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="tracing keeps what is let go"),
]

# As a trace function: a signal comes in, and no step of Python's is before the one traced.
signal_comes = ctypes.pythonapi["PyErr_SetInterruptEx"]
signal_comes.argtypes = [ctypes.c_int, ctypes.py_object, ctypes.py_object, ctypes.py_object]
signal_comes.restype = None


class Interrupt(Exception):
    pass


class Step:
    def __init__(self, number: int) -> None:
        self.left = number
        self.done = False
        self.where: CodeType | None = None  # in what it was interrupted

    def interrupt(self, function: Callable[[], object]) -> bool:
        """Calls it; whether it was interrupted, at this step."""
        outer = signal.signal(signal.SIGUSR1, self.on_signal)
        sys.settrace(self.trace)
        try:
            function()
        except Interrupt:
            pass
        finally:
            sys.settrace(None)
            signal.signal(signal.SIGUSR1, outer)
        return self.done

    def on_signal(self, _number: int, frame: FrameType | None) -> None:
        if not self.done:  # it may come more than once
            self.done = True
            if frame and frame.f_code is Step.trace.__code__:  # it is told of the call first
                frame = frame.f_back
            self.where = frame and frame.f_code
            raise Interrupt

    def trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if self.left <= 0 or frame.f_code.co_filename in (__file__, signal.__file__):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in before_calls(frame.f_code):
            self.left -= 1
            if self.left == 0:
                return functools.partial(signal_comes, signal.SIGUSR1)
        return self.trace


@functools.cache
def before_calls(code: CodeType) -> set[int]:
    """Where the instructions are that calls follow."""
    found, last = set(), -1
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith("CALL"):
            found.add(last)
        if instruction.opname not in ("CACHE", "EXTENDED_ARG"):
            last = instruction.offset
    return found


def each_step() -> Iterator[Step]:
    yield Step(sys.maxsize)  # Python 3.12 may trace only a function's later calls
    number = 1
    while True:
        step = Step(number)
        yield step
        if not step.done:
            assert step.left > 0
            if number == 1 and sys.version_info >= (3, 13):
                pytest.skip("this Python does not trace each function")
            assert number > 1, "nothing was interrupted"
            return
        number += 1


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def in_other_thread(function: Callable[[], object]) -> None:
    """It does not wait for ever for a lock."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def at_the_end(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


# ---- views: one that nobody got does not keep the buffer as it is ----


@pytest.mark.parametrize(
    "show",
    [
        EvBuffer.peek,
        EvBuffer.pullup,
        lambda buf: buf.reserve_space(10, 2),
        lambda buf: buf.peek(20),
    ],
    ids=["peek", "pullup", "reserve_space", "peek-20"],
)
def test_a_buffer_can_change_though_showing_it_was_interrupted(
    show: Callable[[EvBuffer], object],
) -> None:
    for step in each_step():
        with EvBuffer(b"x" * 100) as buf:
            for _ in range(20):  # more pieces than peek() takes at first
                buf.add_reference(b"y")
            step.interrupt(lambda: show(buf))
            buf.add(b"z")
            assert len(buf) == 121


def test_commit_space_interrupted() -> None:
    for step in each_step():
        with EvBuffer() as buf:
            views = buf.reserve_space(10)
            views[0][:3] = b"abc"
            step.interrupt(lambda: buf.commit_space(3))
            del views
            buf.add(b"!")
            assert buf.remove() in (b"!", b"abc!")


# ---- locks ----


def hold(lock: Any) -> None:
    with lock():
        pass


def test_the_lock_of_a_buffer_is_given_back() -> None:
    for step in each_step():
        with EvBuffer() as buf:
            buf.enable_locking()
            step.interrupt(lambda: hold(buf.lock))
            in_other_thread(lambda: buf.add(b"x"))


def test_the_lock_of_a_bufferevent_is_given_back(base: EventBase) -> None:
    for step in each_step():
        a, b = socket.socketpair()
        bev = BufferEvent.socket(base, a, BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE)
        with b, bev:
            step.interrupt(lambda: hold(bev.lock))
            in_other_thread(lambda: bev.write(b"x"))
            hold(bev.output.lock)


# ---- closing ----


def full_base() -> tuple[EventBase, list[socket.socket]]:
    base, peers = EventBase(), []
    for _ in range(3):
        a, peer = socket.socketpair()
        peer.setblocking(False)
        BufferEvent.socket(base, a).enable(EV_READ)
        peers.append(peer)
    BufferEvent.pair(base)
    below = BufferEvent.pair(base)[0]
    BufferEvent.filter(below, None, None, BEV_OPT_CLOSE_ON_FREE)
    Listener.bind(base, lambda *_: None, ("127.0.0.1", 0))
    DnsServerPort(base, ("127.0.0.1", 0), print)
    dns = DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE)
    dns.add_nameserver("127.0.0.1:9")
    dns.getaddrinfo("www.example", 80, print)
    Event(base, peers[0], EV_WRITE, lambda *_: None).add()
    Timer(base, lambda: None).add(100)
    return base, peers


def test_closing_a_base_closes_all_it_has() -> None:
    for step in each_step():
        before = descriptors()
        base, peers = full_base()
        step.interrupt(base.close)
        if not base.closed:  # interrupted before it began
            base.close()
        assert all(map(at_the_end, peers))
        for peer in peers:
            peer.close()
        assert descriptors() == before
        base.close()


def test_a_base_closed_in_its_loop_closes_all_it_has() -> None:
    for step in each_step():
        before = descriptors()
        base, peers = full_base()
        base.exception_handler = None
        base.once(-1, 0, lambda *_: base.close(), timeout=0)
        step.interrupt(lambda: base.loop(EVLOOP_NONBLOCK))
        base.close()
        assert all(map(at_the_end, peers))
        for peer in peers:
            peer.close()
        assert descriptors() == before


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_base_that_is_dropped_is_closed() -> None:
    for step in each_step():
        before = descriptors()
        dropped = [full_base()]

        def drop(dropped: list[Any] = dropped) -> None:
            dropped.clear()

        step.interrupt(drop)
        gc.collect()
        assert descriptors() == before


def test_close_after_write_interrupted(base: EventBase) -> None:
    for step in each_step():
        a, peer = socket.socketpair()
        peer.setblocking(False)
        bev = BufferEvent.socket(base, a)
        step.interrupt(bev.close_after_write)
        bev.close()
        assert at_the_end(peer)
        peer.close()


# ---- callbacks: one that was not entered is called later ----


@pytest.mark.parametrize("args", [(), (1,), (1, 2)], ids=["no-args", "one-arg", "two-args"])
@pytest.mark.parametrize("kind", ["timer", "event", "signal", "read", "write", "filter"])
def test_a_callback_that_was_not_entered_is_called_later(
    base: EventBase, kind: str, args: tuple[int, ...]
) -> None:
    def callback(*_given: object) -> int:
        calls.append(1)
        return BEV_NEED_MORE  # for the filter

    for step in each_step():
        calls: list[int] = []
        a, peer = socket.socketpair()
        with a, peer:
            peer.send(b"x")
            if kind == "timer":
                Timer(base, callback, *args).add(0)
            elif kind == "event":
                Event(base, a, EV_READ, callback, *args).add()
            elif kind == "signal":
                Signal(base, signal.SIGUSR2, callback, *args).add()
                os.kill(os.getpid(), signal.SIGUSR2)
            else:
                bev = BufferEvent.socket(base, os.dup(a.fileno()))
                if kind == "read":
                    bev.setcb(callback, None, None, *args)
                    bev.enable(EV_READ)
                elif kind == "write":
                    bev.setcb(None, callback, None, *args)
                    bev.write(b"x")
                else:
                    top = BufferEvent.filter(bev, callback)
                    top.enable(EV_READ)
                    bev.enable(EV_READ)
            step.interrupt(lambda: base.loop(EVLOOP_NONBLOCK))
            if step.where is callback.__code__:  # entered, and interrupted in its first step
                callback()
            for _ in range(3):
                base.loop(EVLOOP_NONBLOCK)
            assert calls == [1]
            for found in [*base._table.values()]:
                found.close()


# ---- descriptors: each has one owner ----


def check_owner(given: socket.socket, peer: socket.socket, owner: Any) -> None:
    """The socket is the caller's as before, or the new object's, which closes it."""
    if given.fileno() >= 0:
        assert owner == [] or owner[0].closed
        del owner[:]
        gc.collect(1)
        assert is_open(given.fileno())
        given.close()
    else:
        for one in owner:
            one.close()
    assert at_the_end(peer)
    peer.close()


def test_a_socket_given_to_a_bufferevent(base: EventBase) -> None:
    for step in each_step():
        before = descriptors()
        given, peer = socket.socketpair()
        peer.setblocking(False)
        made: list[BufferEvent] = []
        step.interrupt(lambda: made.append(BufferEvent.socket(base, given)))
        check_owner(given, peer, made)
        assert descriptors() == before


def test_a_socket_given_to_a_bufferevent_later(base: EventBase) -> None:
    for step in each_step():
        before = descriptors()
        given, peer = socket.socketpair()
        peer.setblocking(False)
        bev = BufferEvent.socket(base)
        step.interrupt(lambda: setattr(bev, "fd", given))
        if given.fileno() >= 0:
            assert bev.fd == -1
        bev.close()
        check_owner(given, peer, [])
        assert descriptors() == before


def test_a_socket_given_to_a_listener(base: EventBase) -> None:
    for step in each_step():
        before = descriptors()
        given = socket.create_server(("127.0.0.1", 0))
        made: list[Listener] = []
        step.interrupt(lambda: made.append(Listener(base, lambda *_: None, given)))
        if given.fileno() >= 0:
            given.getsockname()
            given.close()
        for one in made:
            one.close()
        assert descriptors() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda base: Listener.bind(base, lambda *_: None, ("127.0.0.1", 0)),
        lambda base: DnsServerPort(base, ("127.0.0.1", 0), print),
        lambda base: DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE),
        lambda base: HttpServer(base).bind("127.0.0.1", 0),
        BufferEvent.pair,
        BufferEvent.socket,
        lambda base: util.socketpair(),
        lambda base: EventBase(),
        lambda base: Timer(base, lambda: None).add(1),
    ],
    ids=["bind", "port", "dns", "http", "pair", "socket", "socketpair", "base", "timer"],
)
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_what_is_made_halfway_is_gone(base: EventBase, make: Callable[[EventBase], object]) -> None:
    for step in each_step():
        with EventBase() as inner:
            before = descriptors()
            made: list[object] = []
            step.interrupt(lambda: made.append(make(inner)))
            made.clear()
            gc.collect(1)
            for found in [*inner._table.values()]:  # the base keeps those that are open
                found.close()
            assert descriptors() == before


def test_the_address_of_a_listener(base: EventBase) -> None:
    listener = Listener.bind(base, lambda *_: None, ("127.0.0.1", 0))
    before = descriptors()
    for step in each_step():
        step.interrupt(lambda: listener.address)
        assert descriptors() == before
        assert listener.address[1] > 0


def test_a_file_in_a_buffer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with path.open("rb") as file:
        for step in each_step():
            before = descriptors()
            with EvBuffer() as buf:
                step.interrupt(lambda: buf.add_file(file))
                assert bytes(buf) in (b"", b"text")
            assert descriptors() == before


def test_a_file_segment(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with path.open("rb") as file:
        for step in each_step():
            before = descriptors()
            made: list[FileSegment] = []
            step.interrupt(lambda: made.append(FileSegment(file)))
            made.clear()
            gc.collect(1)
            assert descriptors() == before


# ---- what C keeps for Python ----


def test_memory_that_is_referred_to() -> None:
    for step in each_step():
        memory = bytearray(b"text")
        with EvBuffer() as buf:
            step.interrupt(lambda: buf.add_reference(memory))
            assert bytes(buf) in (b"", b"text")
        memory.append(0)  # BufferError while it is lent
        assert cb.pins == {}


def test_the_cleanup_of_a_segment(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with path.open("rb") as file:
        for step in each_step():
            done: list[int] = []
            segment = FileSegment(file)
            step.interrupt(lambda: segment.add_cleanup_cb(lambda *_: done.append(1)))
            segment.close()
            assert cb.pins == {}
            assert step.done or done == [1]


def test_a_callback_of_a_buffer() -> None:
    for step in each_step():
        with EvBuffer() as buf:
            calls: list[int] = []
            step.interrupt(lambda: buf.add_cb(lambda *_: calls.append(1)))
            buf.add(b"x")
            assert step.done or calls == [1]


# ---- look-ups: each calls back, whatever comes in between ----


@pytest.mark.parametrize("how", ["resolve_ipv4", "getaddrinfo", "numbers", "time limit"])
def test_an_interrupted_loop_loses_no_answer(base: EventBase, how: str) -> None:
    """Unless it is the callback of Python's that was interrupted: then it has begun."""

    def answer(request: DnsServerRequest) -> None:
        request.respond(DNS_ERR_NOTEXIST)

    with (
        DnsServerPort(base, ("127.0.0.1", 0), answer) as port,
        DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE) as dns,
    ):
        dns.set_option("timeout", 0.01)  # the question that an interrupt has dropped comes again
        for option in ("attempts", "max-timeouts"):
            dns.set_option(option, 255)
        if how != "time limit":
            dns.add_nameserver(port.address)
        for step in each_step():
            got: list[object] = []
            if how == "getaddrinfo":
                request = dns.getaddrinfo("www.example", 80, got.append)
            elif how == "numbers":
                request = dns.getaddrinfo("127.0.0.1", 80, got.append)
            else:
                request = dns.resolve_ipv4("www.example", got.append, timeout=0.001)
            step.interrupt(lambda: base.loop(EVLOOP_ONCE))
            while not request.done:
                base.loop(EVLOOP_ONCE)
            assert len(got) == 1 or step.done


# ---- HTTP: each request ends, and its connection can be used and closed ----


@pytest.fixture
def web() -> Iterator[int]:
    """A server that has one answer, on that port."""

    def answer(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
        sock.recv(1)

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(10)
                answer(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_http_request_ends_though_it_was_interrupted(web: int, host: str) -> None:
    for step in each_step():
        with EventBase() as base, HttpConnection(base, host, web) as conn:
            got: list[object] = []
            request = HttpRequest(got.append, chunked=got.append, header=got.append)

            def go() -> None:
                conn.make_request(request)
                while not request.done:
                    base.loop(EVLOOP_ONCE)

            step.interrupt(go)
            while request.connection is not None and not request.done:
                base.loop(EVLOOP_ONCE)
            if request.connection is not None:
                assert request.response_code == 200
                assert len(got) == 3 or step.done


def test_an_http_connection_can_be_closed_though_that_was_interrupted(web: int) -> None:
    for step in each_step():
        with EventBase() as base:
            conn = HttpConnection(base, "127.0.0.1", web)
            requests = [HttpRequest(print) for _ in range(3)]
            for request in requests:
                conn.make_request(request)
            for _ in range(5):
                base.loop(EVLOOP_NONBLOCK)
            step.interrupt(conn.close)
            conn.close()
            assert conn.closed
            assert all(request.done for request in requests)
            base.dispatch()


def test_an_http_connection_closes_itself_though_that_was_interrupted(web: int) -> None:
    for step in each_step():
        with EventBase() as base:
            conn = HttpConnection(base, "127.0.0.1", web)
            conn.free_on_completion()
            conn.make_request(HttpRequest(lambda request: None))
            step.interrupt(base.dispatch)
            base.dispatch()
            assert conn.closed


def test_an_http_connection_whose_making_was_interrupted_is_gone_with_its_base() -> None:
    for step in each_step():
        with EventBase() as base:
            step.interrupt(lambda: HttpConnection(base, "localhost", 80, retries=3))


# ---- HTTP: each client gets a whole reply, or the end of its connection ----


@contextlib.contextmanager
def a_request(server: HttpServer) -> Iterator[socket.socket]:
    with socket.create_connection(server.bound_sockets[0].address, timeout=10) as sock:
        sock.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        sock.setblocking(False)
        yield sock


def reply_of(base: EventBase, sock: socket.socket) -> bytes:
    data = b""
    deadline = Timer(base, lambda: None)
    deadline.add(10)
    readable = Event(base, sock, EV_READ, lambda *_: None)
    while deadline.pending():
        with contextlib.suppress(BlockingIOError):
            data += sock.recv(100_000)
        if b"\r\n\r\n" in data:
            break
        readable.add()
        base.loop(EVLOOP_ONCE)
    readable.close()
    deadline.close()
    return data


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: request.send_reply(200, None, b"x"),
        lambda request: request.send_reply(200, "Fine", EvBuffer(b"x")),
        lambda request: request.send_error(200),
        lambda request: request.headers["Host"] and request.read() and request.send_reply(200),
        lambda request: request.on_complete(print) or request.send_reply(200),
    ],
    ids=["reply", "buffer", "error", "headers", "on_complete"],
)
def test_an_interrupted_loop_loses_no_request(
    base: EventBase, answer: Callable[[HttpServerRequest], object]
) -> None:
    with HttpServer(base) as server:
        server.set_cb("/", answer)
        server.bind("127.0.0.1", 0)
        for step in each_step():
            with a_request(server) as sock:
                step.interrupt(lambda: [base.loop(EVLOOP_NONBLOCK) for _ in range(4)])
                reply = reply_of(base, sock)
                assert b" 200 " in reply or (step.done and b" 500 " in reply), reply


@pytest.mark.parametrize("how", ["reply", "start", "chunk", "end", "take over"])
def test_an_answer_that_was_interrupted_is_given_or_not(base: EventBase, how: str) -> None:
    def answer(request: HttpServerRequest) -> None:
        if how in ("chunk", "end"):
            request.send_reply_start(200)
        before = descriptors()
        step.interrupt(lambda: calls[how](request))
        if how == "take over":
            gc.collect(1)
            assert descriptors() <= before + 1
            request.cancel()
            return
        with contextlib.suppress(ClosedError, RuntimeError):
            request.send_reply(200)
        with contextlib.suppress(ClosedError, RuntimeError):
            request.send_reply_end()

    calls: dict[str, Callable[[HttpServerRequest], object]] = {
        "reply": lambda request: request.send_reply(200, None, b"x"),
        "start": lambda request: request.send_reply_start(200),
        "chunk": lambda request: request.send_reply_chunk(b"x", print),
        "end": lambda request: request.send_reply_end(),
        "take over": lambda request: request.take_over().close(),
    }
    with HttpServer(base) as server:
        server.set_cb("/", answer)
        server.bind("127.0.0.1", 0)
        for step in each_step():  # noqa: B007  # the handler has it
            with a_request(server) as sock:
                if how == "take over":
                    base.loop(EVLOOP_ONCE)
                    base.loop(EVLOOP_ONCE)
                else:
                    assert b" 200 " in reply_of(base, sock)
        for bev in [*base._table.values()]:
            if isinstance(bev, BufferEvent):
                bev.close()


# ---- selectors: what is registered is watched, and nothing else is ----


def test_a_selector_whose_making_was_interrupted_leaves_nothing() -> None:
    for step in each_step():
        with EventBase() as base:
            before = descriptors()
            step.interrupt(lambda: aio.Selector(base).close())
            gc.collect()
            base.loop(EVLOOP_NONBLOCK)
            assert descriptors() <= before + 3  # those that the base makes for itself


@pytest.mark.parametrize(
    "change",
    [
        lambda selector, sock: selector.register(sock, EVENT_READ),
        lambda selector, sock: selector.modify(sock, EVENT_WRITE),
        lambda selector, sock: selector.unregister(sock),
        lambda selector, sock: selector.select(0),
    ],
    ids=["register", "modify", "unregister", "select"],
)
def test_a_selector_goes_on_after_an_interrupted_call(
    change: Callable[[aio.Selector, socket.socket], object],
) -> None:
    a, b = socket.socketpair()
    with a, b:
        b.send(b"x")
        for step in each_step():
            with EventBase() as base, aio.Selector(base) as selector:
                selector.register(b, EVENT_READ)
                sock = b if change.__code__.co_names[0] != "register" else a
                step.interrupt(lambda: change(selector, sock))
                for key, events in selector.select(0):
                    assert key.events & events
                if sock in selector.get_map():
                    selector.unregister(sock)
                key = selector.register(sock, EVENT_WRITE)
                assert (key, EVENT_WRITE) in selector.select()
