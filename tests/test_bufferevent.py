"""BufferEvent.socket and BufferEvent.pair, over real sockets."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from common import few_rounds, is_open, measures_memory, received
from conftest import RunUntil
from processes import run_script

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_READING,
    BEV_EVENT_TIMEOUT,
    BEV_EVENT_WRITING,
    BEV_FINISHED,
    BEV_FLUSH,
    BEV_NORMAL,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    BEV_TRIG_DEFER_CALLBACKS,
    BEV_TRIG_IGNORE_WATERMARKS,
    EV_PERSIST,
    EV_READ,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    LibeventError,
    Timer,
    lib,
)

run_checked = functools.partial(run_script, PYTHONWARNINGS="error")

Sockets = tuple[socket.socket, socket.socket]
Action = Callable[[BufferEvent], object]


class Seen:
    """What the callbacks of a bufferevent were called with."""

    def __init__(self, bev: BufferEvent, take: bool = True) -> None:
        self.take = take
        self.data = b""
        self.reads = 0
        self.writes = 0
        self.events: list[int] = []
        self.errors: list[BaseException | None] = []
        bev.setcb(self.read, self.write, self.event)

    def read(self, bev: BufferEvent) -> None:
        self.reads += 1
        if self.take:
            self.data += bev.read()

    def write(self, _bev: BufferEvent) -> None:
        self.writes += 1

    def event(self, bev: BufferEvent, what: int) -> None:
        self.events.append(what)
        self.errors.append(bev.error)


def cpu_of_a_loop(base: EventBase, seconds: float) -> float:
    """Runs the loop for so many seconds; how many of them it used the processor."""
    base.loopexit(seconds)
    before = time.process_time()
    base.dispatch()
    return time.process_time() - before


def tcp_sockets() -> Sockets:
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        b, _ = server.accept()
    a.setblocking(False)
    b.setblocking(False)
    return a, b


def reset(sock: socket.socket) -> None:
    """Closes a TCP socket so that the peer gets ECONNRESET."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def at_eof(sock: socket.socket) -> bool:
    """Whether the peer has closed, everything that it sent having been read."""
    try:
        return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1, socket.MSG_PEEK) == b""
    except ConnectionResetError:  # what we sent was not read
        return True


def fill(sock: socket.socket) -> int:
    """Sends until the other side's kernel takes no more."""
    sent = 0
    while True:
        try:
            sent += sock.send(b"f" * 65536)
        except BlockingIOError:
            return sent


def pattern(n: int) -> bytes:
    return b"".join(b"%08x" % i for i in range(n // 8 + 1))[:n]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def tcp() -> Iterator[Sockets]:
    a, b = tcp_sockets()
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def wired(base: EventBase, sockets: Sockets) -> tuple[BufferEvent, socket.socket]:
    """A bufferevent that reads, and the socket at the other end."""
    bev = BufferEvent.socket(base, sockets[0])
    bev.enable(EV_READ)
    return bev, sockets[1]


Wired = tuple[BufferEvent, socket.socket]


# ---- making one ----


def test_it_wraps_a_number(base: EventBase, sockets: Sockets) -> None:
    fd = os.dup(sockets[0].fileno())
    bev = BufferEvent.socket(base, fd)
    assert bev.fd == fd
    assert bev.base is base
    assert not bev.closed
    assert f"fd={fd}" in repr(bev)


def test_a_number_is_closed_with_it_by_default(base: EventBase, sockets: Sockets) -> None:
    fd = os.dup(sockets[0].fileno())
    BufferEvent.socket(base, fd).close()
    assert not is_open(fd)


def test_without_close_on_free_a_number_stays_open(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0].fileno(), options=0)
    bev.close()
    few_rounds(base)
    base.close()
    assert sockets[0].send(b"still mine") == 10


@pytest.mark.parametrize("options", [0, BEV_OPT_CLOSE_ON_FREE])
def test_a_socket_object_is_taken_over(base: EventBase, sockets: Sockets, options: int) -> None:
    a, b = sockets
    fd = a.fileno()
    bev = BufferEvent.socket(base, a, options=options)
    assert a.fileno() == -1  # detached
    assert bev.fd == fd
    bev.close()
    assert not is_open(fd)
    assert at_eof(b)


def test_a_socket_object_is_not_taken_over_when_it_fails(sockets: Sockets) -> None:
    base = EventBase()
    base.close()
    with pytest.raises(ClosedError):
        BufferEvent.socket(base, sockets[0])
    assert sockets[0].send(b"x") == 1


def test_anything_with_fileno_is_wrapped(base: EventBase, sockets: Sockets) -> None:
    class HasFileno:
        def fileno(self) -> int:
            return sockets[0].fileno()

    bev = BufferEvent.socket(base, HasFileno(), options=0)
    assert bev.fd == sockets[0].fileno()


def test_a_bad_descriptor_is_an_oserror(base: EventBase) -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match="bufferevent_socket_new") as caught:
        BufferEvent.socket(base, fd)
    assert caught.value.errno == errno.EBADF


def test_a_closed_socket_object_is_an_error(base: EventBase) -> None:
    a, b = socket.socketpair()
    a.close()
    b.close()
    with pytest.raises((OSError, ValueError)):
        BufferEvent.socket(base, a)


def test_a_blocking_socket_is_made_nonblocking(base: EventBase) -> None:
    a, b = socket.socketpair()
    with b:
        assert os.get_blocking(a.fileno())
        bev = BufferEvent.socket(base, a)
        assert not os.get_blocking(bev.fd)


def test_without_a_socket_its_descriptor_is_minus_one(base: EventBase) -> None:
    assert BufferEvent.socket(base).fd == -1
    assert BufferEvent.socket(base, -1).fd == -1


def test_a_new_one_writes_and_does_not_read(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    assert bev.enabled == EV_WRITE
    sockets[1].send(b"x")
    few_rounds(base)
    assert len(bev.input) == 0


@pytest.mark.parametrize("nodelay", [True, False])
def test_tcp_nodelay(base: EventBase, tcp: Sockets, nodelay: bool) -> None:
    fd = os.dup(tcp[0].fileno())
    BufferEvent.socket(base, fd, nodelay=nodelay)
    assert bool(tcp[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay


def test_tcp_nodelay_is_the_default(base: EventBase, tcp: Sockets) -> None:
    BufferEvent.socket(base, os.dup(tcp[0].fileno()))
    assert tcp[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("nodelay", [True, False])
def test_tcp_nodelay_of_a_socket_that_connect_made(base: EventBase, nodelay: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base, nodelay=nodelay)
        bev.connect(server.getsockname())
        with socket.socket(fileno=os.dup(bev.fd)) as same:
            assert bool(same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
        bev.close()


def test_a_descriptor_can_be_set_later(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    bev.enable(EV_READ)
    bev.write(b"from before")
    bev.fd = os.dup(sockets[0].fileno())
    sockets[1].send(b"hello")
    run_until(lambda: seen.data == b"hello" and not bev.output)
    assert sockets[1].recv(100) == b"from before"


def test_setting_a_blocking_descriptor_makes_it_nonblocking(base: EventBase) -> None:
    a, b = socket.socketpair()
    with a, b:
        bev = BufferEvent.socket(base)
        bev.fd = os.dup(a.fileno())
        assert not os.get_blocking(bev.fd)


def test_setting_a_bad_descriptor_is_an_oserror_and_changes_nothing(
    base: EventBase, sockets: Sockets
) -> None:
    bev = BufferEvent.socket(base, os.dup(sockets[0].fileno()))
    fd = bev.fd
    bad = os.dup(0)
    os.close(bad)
    with pytest.raises(OSError, match="bufferevent_setfd"):
        bev.fd = bad
    assert bev.fd == fd


def test_a_socket_object_set_as_descriptor_is_closed_once(base: EventBase) -> None:
    a, b = socket.socketpair()
    with b:
        bev = BufferEvent.socket(base)
        bev.fd = a
        fd = bev.fd
        assert a.fileno() == -1  # taken over, as by BufferEvent.socket
        bev.close()
        assert not is_open(fd)
        assert b.recv(1) == b""


def test_it_cannot_be_made_by_its_class() -> None:
    with pytest.raises(TypeError, match=r"BufferEvent\.socket"):
        BufferEvent()


@pytest.mark.parametrize("make", [BufferEvent.socket, BufferEvent.pair])
def test_making_one_on_something_else_than_a_base(make: Any) -> None:
    with pytest.raises(TypeError, match="EventBase"):
        make(object())


@pytest.mark.parametrize("make", [BufferEvent.socket, BufferEvent.pair])
def test_making_one_on_a_closed_base(make: Any) -> None:
    base = EventBase()
    base.close()
    with pytest.raises(ClosedError):
        make(base)


# ---- closing ----


def test_close_closes_the_descriptor_at_once(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    fd = bev.fd
    bev.close()
    assert not is_open(fd)
    assert at_eof(peer)
    assert bev.closed


@pytest.mark.parametrize("kind", ["read", "write", "event"])
def test_close_in_its_own_callback_closes_the_descriptor_at_once(
    base: EventBase, wired: Wired, run_until: RunUntil, kind: str
) -> None:
    bev, peer = wired
    eof: list[bool] = []

    def close(bev: BufferEvent, *_args: object) -> None:
        bev.close()
        eof.append(at_eof(peer))

    bev.setcb(**{kind: close})
    if kind == "read":
        peer.send(b"x")
    elif kind == "write":
        bev.write(b"x")
    else:
        peer.shutdown(socket.SHUT_WR)
    if kind == "write":
        run_until(lambda: bev.closed)
        assert peer.recv(1) == b"x"
        assert at_eof(peer)
    else:
        run_until(lambda: eof)
        assert eof == [True]
    assert bev.closed


@pytest.mark.parametrize("kind", ["read", "event"])
def test_close_in_the_callback_of_another_one(
    base: EventBase, wired: Wired, run_until: RunUntil, kind: str
) -> None:
    bev, peer = wired
    other, other_peer = socket.socketpair()
    with other_peer:
        other_bev = BufferEvent.socket(base, other)
        other_bev.enable(EV_READ)
        calls: list[BufferEvent] = []

        def close_both(which: BufferEvent, *_args: object) -> None:
            calls.append(which)
            bev.close()
            other_bev.close()

        bev.setcb(**{kind: close_both})
        other_bev.setcb(**{kind: close_both})
        for sock in (peer, other_peer):  # both are ready in the same round
            if kind == "read":
                sock.send(b"x")
            else:
                sock.shutdown(socket.SHUT_WR)
        run_until(lambda: calls)
        few_rounds(base)
        assert len(calls) == 1
        assert bev.closed
        assert other_bev.closed


def _close(bev: BufferEvent) -> None:
    bev.close()


def _close_base(bev: BufferEvent) -> None:
    bev.base.close()


def _close_after_write(bev: BufferEvent) -> None:
    bev.close_after_write()


def _close_in_callback(bev: BufferEvent) -> None:
    bev.setcb(event=lambda bev, _what: bev.close())
    bev.trigger_event(BEV_EVENT_EOF)


def _close_in_deferred_callback(bev: BufferEvent) -> None:
    bev.setcb(event=lambda bev, _what: bev.close())
    bev.trigger_event(BEV_EVENT_EOF, BEV_TRIG_DEFER_CALLBACKS)
    few_rounds(bev.base)


@pytest.mark.parametrize(
    "close",
    [_close, _close_base, _close_after_write, _close_in_callback, _close_in_deferred_callback],
)
def test_the_descriptor_is_never_closed_twice(
    base: EventBase, wired: Wired, close: Callable[[BufferEvent], None]
) -> None:
    bev, _ = wired
    mine = bev.fd
    with open(os.devnull, "rb") as null:
        close(bev)
        assert bev.closed
        assert not is_open(mine)
        os.dup2(null.fileno(), mine)  # somebody else gets that number
    try:
        bev.close()
        if not base.closed:
            few_rounds(base)
            base.close()
        del bev
        gc.collect()
        assert is_open(mine)
    finally:
        os.close(mine)


def test_close_twice(wired: Wired) -> None:
    bev, _ = wired
    bev.close()
    bev.close()
    assert "closed" in repr(bev)


def test_as_a_context_manager(wired: Wired) -> None:
    bev, peer = wired
    with bev as same:
        assert same is bev
    assert bev.closed
    assert at_eof(peer)


def test_close_drops_output_that_was_not_written(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    bev.write(b"dropped")
    bev.close()
    few_rounds(base)
    assert received(peer) == b""


USES: dict[str, Action] = {
    "ptr": lambda bev: bev.ptr,
    "input": lambda bev: bev.input,
    "output": lambda bev: bev.output,
    "fd": lambda bev: bev.fd,
    "fd=": lambda bev: setattr(bev, "fd", 0),
    "enabled": lambda bev: bev.enabled,
    "priority": lambda bev: bev.priority,
    "priority=": lambda bev: setattr(bev, "priority", 0),
    "dns_error": lambda bev: bev.dns_error,
    "setcb": lambda bev: bev.setcb(),
    "enable": lambda bev: bev.enable(EV_READ),
    "disable": lambda bev: bev.disable(EV_READ),
    "set_timeouts": lambda bev: bev.set_timeouts(1, 1),
    "setwatermark": lambda bev: bev.setwatermark(EV_READ, 1, 2),
    "getwatermark": lambda bev: bev.getwatermark(EV_READ),
    "write": lambda bev: bev.write(b"x"),
    "write_buffer": lambda bev: bev.write_buffer(EvBuffer(b"x")),
    "read": lambda bev: bev.read(),
    "read_buffer": lambda bev: bev.read_buffer(EvBuffer()),
    "flush": lambda bev: bev.flush(EV_READ, BEV_FLUSH),
    "trigger": lambda bev: bev.trigger(EV_READ),
    "trigger_event": lambda bev: bev.trigger_event(BEV_EVENT_EOF),
    "connect": lambda bev: bev.connect(("127.0.0.1", 1)),
    "connect_hostname": lambda bev: bev.connect_hostname("127.0.0.1", 1),
    "lock": lambda bev: bev.lock().__enter__(),
    "close_after_write": lambda bev: bev.close_after_write(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("by", ["close", "base"])
def test_use_after_close_is_a_closed_error(
    base: EventBase, wired: Wired, use: str, by: str
) -> None:
    bev, _ = wired
    (bev if by == "close" else base).close()
    with pytest.raises(ClosedError):
        USES[use](bev)


@pytest.mark.parametrize("use", USES)
def test_use_of_one_of_a_pair_after_close_is_a_closed_error(base: EventBase, use: str) -> None:
    bev, _ = BufferEvent.pair(base)
    bev.close()
    with pytest.raises(ClosedError):
        USES[use](bev)


def test_its_buffers_end_with_it(wired: Wired) -> None:
    bev, _ = wired
    input_, output = bev.input, bev.output
    output.add(b"x")
    bev.close()
    for buffer in (input_, output):
        assert buffer.closed
        with pytest.raises(ClosedError):
            len(buffer)
        with pytest.raises(ClosedError):
            buffer.add(b"x")


def test_its_buffers_are_the_same_objects_each_time(wired: Wired) -> None:
    bev, _ = wired
    assert bev.input is bev.input
    assert bev.output is bev.output


def test_closing_its_buffers_does_nothing(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    bev.input.close()
    bev.output.close()
    bev.write(b"x")
    run_until(lambda: not bev.output)
    assert peer.recv(1) == b"x"


def test_an_open_one_lives_without_a_name(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    got: list[bytes] = []

    def start() -> weakref.ref[BufferEvent]:
        bev = BufferEvent.socket(base, sockets[0])
        bev.setcb(read=lambda bev: got.append(bev.read()))
        bev.enable(EV_READ)
        return weakref.ref(bev)

    ref = start()
    gc.collect()
    assert ref() is not None
    sockets[1].send(b"hello")
    run_until(lambda: got)
    assert got == [b"hello"]


def test_nothing_is_left_of_it_after_close_even_without_the_garbage_collector(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    class Connection:
        def __init__(self) -> None:
            self.bev = BufferEvent.socket(base, sockets[0])
            self.buffers = self.bev.input, self.bev.output
            self.bev.setcb(self.read, self.read, self.event, self)

        def read(self, *_args: object) -> None: ...

        def event(self, *_args: object) -> None:
            self.bev.close()

    connection = Connection()
    refs = weakref.ref(connection), weakref.ref(connection.bev), weakref.ref(connection.buffers[0])
    connection.bev.enable(EV_READ)
    del connection
    sockets[1].close()
    gc.disable()
    try:
        run_until(lambda: refs[0]() is None)
        assert [ref() for ref in refs] == [None, None, None]
    finally:
        gc.enable()


def test_no_reference_cycle_is_left_of_a_closed_pair(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    refs = weakref.ref(a), weakref.ref(b)
    gc.disable()
    try:
        a.close()
        b.close()
        del a, b
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_base_close_closes_everything_that_is_open(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    seen = Seen(bev)
    bev.enable(EV_READ)
    bev.set_timeouts(1, 1)
    a, b = BufferEvent.pair(base)
    Seen(a)
    Seen(b)
    b.enable(EV_READ)
    a.write(b"under way")
    input_ = b.input
    bev.write(b"dropped")
    sockets[1].send(b"unread")
    base.close()
    assert bev.closed
    assert a.closed
    assert b.closed
    assert input_.closed
    assert at_eof(sockets[1])
    assert (seen.reads, seen.writes, seen.events) == (0, 0, [])


def test_base_close_in_a_callback_of_one(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    bev.setcb(read=lambda bev: bev.base.close())
    peer.send(b"x")
    base.dispatch()
    assert base.closed
    assert bev.closed
    assert at_eof(peer)


def test_no_callback_comes_after_close(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    seen = Seen(bev)
    peer.send(b"x")
    bev.write(b"x")
    bev.trigger(EV_READ | EV_WRITE, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS)
    bev.trigger_event(BEV_EVENT_EOF, BEV_TRIG_DEFER_CALLBACKS)
    bev.close()
    few_rounds(base)
    assert (seen.reads, seen.writes, seen.events) == (0, 0, [])


# ---- connecting ----


def test_connect_to_an_address(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.enable(EV_READ)
        bev.connect(server.getsockname())
        bev.write(b"hello")  # goes out once it is connected
        run_until(lambda: seen.events)
        assert seen.events == [BEV_EVENT_CONNECTED]
        assert bev.error is None
        peer, _ = server.accept()
        with peer:
            run_until(lambda: not bev.output)
            assert peer.recv(5) == b"hello"
            peer.send(b"welcome")
            run_until(lambda: seen.data)
            assert seen.data == b"welcome"
            assert peer.getpeername() == _name_of(bev)
        bev.close()


def _name_of(bev: BufferEvent) -> Any:
    with socket.socket(fileno=os.dup(bev.fd)) as same:
        return same.getsockname()


def test_connect_over_ipv6(base: EventBase, run_until: RunUntil) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.connect(server.getsockname())
        run_until(lambda: seen.events)
        assert seen.events == [BEV_EVENT_CONNECTED]
        bev.close()


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_connect_to_a_unix_path(
    base: EventBase, run_until: RunUntil, tmp_path: Path, kind: Callable[[str], Any]
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.connect(kind(path))
        run_until(lambda: seen.events)
        assert seen.events == [BEV_EVENT_CONNECTED]
        bev.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' abstract name space")
@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_connect_to_an_abstract_name(
    base: EventBase, run_until: RunUntil, kind: Callable[[str], Any]
) -> None:
    name = f"\0pylibevent-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.connect(kind(name))
        run_until(lambda: seen.events)
        assert seen.events == [BEV_EVENT_CONNECTED]
        bev.close()


def test_connect_with_a_socket_of_the_users(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        name = sock.getsockname()
        bev = BufferEvent.socket(base, sock)
        seen = Seen(bev)
        bev.connect(server.getsockname())
        run_until(lambda: seen.events)
        peer, address = server.accept()
        peer.close()
        assert address == name
        bev.close()


@pytest.mark.parametrize("options", [0, BEV_OPT_CLOSE_ON_FREE])
def test_a_socket_that_connect_made_is_closed_whatever_the_options(
    base: EventBase, options: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base, options=options)
        bev.connect(server.getsockname())
        fd = bev.fd
        bev.close()
        assert not is_open(fd)


def test_a_refused_connection_is_an_error_event(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    bev.connect(address)
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_ERROR]
    assert isinstance(bev.error, ConnectionRefusedError)
    assert seen.writes == 0


def test_a_refused_unix_connection_is_an_error_event(
    base: EventBase, run_until: RunUntil, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    bev.connect(path)
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_ERROR]
    assert isinstance(seen.errors[0], ConnectionRefusedError)


def test_what_fails_at_once_is_raised(base: EventBase, tmp_path: Path) -> None:
    bev = BufferEvent.socket(base)
    with pytest.raises(FileNotFoundError, match="bufferevent_socket_connect"):
        bev.connect(tmp_path / "nothing")
    assert bev.fd == -1


def test_connect_may_be_tried_again_after_it_failed(
    base: EventBase, run_until: RunUntil, tmp_path: Path
) -> None:
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    with pytest.raises(FileNotFoundError):
        bev.connect(tmp_path / "nothing")
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev.connect(server.getsockname())
        run_until(lambda: seen.events)
        assert seen.events == [BEV_EVENT_CONNECTED]
        bev.close()


def test_connecting_what_is_connected_is_an_oserror_and_it_stays_connected(
    base: EventBase, tcp: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, tcp[0])
    seen = Seen(bev)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(OSError, match="bufferevent_socket_connect") as caught:
            bev.connect(server.getsockname())
        assert caught.value.errno == errno.EISCONN
    bev.write(b"x")
    run_until(lambda: not bev.output)
    assert tcp[1].recv(1) == b"x"
    assert seen.events == []


def test_connecting_twice_leaves_one_connection(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.connect(server.getsockname())
        fd = bev.fd
        with contextlib.suppress(OSError):
            bev.connect(server.getsockname())
        assert bev.fd == fd
        run_until(lambda: seen.events)
        assert seen.events[0] == BEV_EVENT_CONNECTED
        peer, _ = server.accept()
        with peer:
            bev.write(b"x")
            run_until(lambda: not bev.output)
            assert peer.recv(1) == b"x"
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        bev.close()


def test_close_while_connecting(base: EventBase) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.connect(server.getsockname())
        bev.close()
        few_rounds(base)
        assert seen.events == []


def test_connected_comes_before_the_data_and_the_end(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        order: list[Any] = []
        bev.setcb(lambda bev: order.append(bev.read()), None, lambda _bev, what: order.append(what))
        bev.enable(EV_READ)
        bev.connect(server.getsockname())
        peer, _ = server.accept()
        peer.send(b"banner")
        peer.close()  # all of it has happened before the loop looks
        run_until(lambda: len(order) == 3)
        assert order == [BEV_EVENT_CONNECTED, b"banner", BEV_EVENT_READING | BEV_EVENT_EOF]
        bev.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_connect_hostname(base: EventBase, run_until: RunUntil, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        seen = Seen(bev)
        bev.connect_hostname(host, server.getsockname()[1], socket.AF_INET)
        run_until(lambda: seen.events)
        assert seen.events == [BEV_EVENT_CONNECTED]
        assert bev.dns_error is None
        with socket.socket(fileno=os.dup(bev.fd)) as same:
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        bev.close()


def test_connect_hostname_of_a_name_that_does_not_exist(base: EventBase) -> None:
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    bev.connect_hostname("nobody.invalid", 80)
    assert seen.events == [BEV_EVENT_ERROR]
    assert bev.error is None
    assert isinstance(bev.dns_error, socket.gaierror)
    assert bev.dns_error.errno in (socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL)


def test_dns_error_is_gone_after_a_good_look_up(base: EventBase, run_until: RunUntil) -> None:
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    bev.connect_hostname("::1", 80, socket.AF_INET)  # no such address in that family
    assert bev.dns_error is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev.connect_hostname("127.0.0.1", server.getsockname()[1])
        run_until(lambda: BEV_EVENT_CONNECTED in seen.events)
        assert bev.dns_error is None
        bev.close()


def test_connect_hostname_refused(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    bev = BufferEvent.socket(base)
    seen = Seen(bev)
    bev.connect_hostname("127.0.0.1", port)
    run_until(lambda: seen.events)
    assert isinstance(seen.errors[0], ConnectionRefusedError)
    assert bev.dns_error is None


def test_close_in_the_callback_of_a_failed_look_up(base: EventBase) -> None:
    bev = BufferEvent.socket(base)
    bev.setcb(event=lambda bev, _what: bev.close())
    bev.connect_hostname("::1", 80, socket.AF_INET)
    assert bev.closed
    few_rounds(base)


def test_an_exception_in_the_callback_of_a_failed_look_up_leaves_the_call(
    base: EventBase,
) -> None:
    error = KeyError("mine")

    def fail(_bev: BufferEvent, _what: int) -> None:
        raise error

    bev = BufferEvent.socket(base)
    bev.setcb(event=fail)
    with pytest.raises(KeyError) as caught:
        bev.connect_hostname("::1", 80, socket.AF_INET)
    assert caught.value is error
    few_rounds(base)


@pytest.mark.parametrize(
    "connect",
    [
        lambda bev: bev.connect(("127.0.0.1", 1)),
        lambda bev: bev.connect_hostname("127.0.0.1", 1),
    ],
)
def test_a_pair_cannot_connect(base: EventBase, connect: Action) -> None:
    a, _ = BufferEvent.pair(base)
    with pytest.raises(ValueError, match="connect"):
        connect(a)


# ---- data ----


def test_callbacks_get_the_bufferevent_and_the_arguments(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    calls: dict[str, tuple[Any, ...]] = {}
    bev.setcb(
        lambda *args: calls.setdefault("read", args),
        lambda *args: calls.setdefault("write", args),
        lambda *args: calls.setdefault("event", args),
        "one",
        2,
    )
    peer.send(b"x")
    bev.write(b"x")
    peer.shutdown(socket.SHUT_WR)
    run_until(lambda: len(calls) == 3)
    assert calls == {
        "read": (bev, "one", 2),
        "write": (bev, "one", 2),
        "event": (bev, BEV_EVENT_READING | BEV_EVENT_EOF, "one", 2),
    }
    assert repr(calls["event"][1]) == "BEV_EVENT_READING|BEV_EVENT_EOF"


def test_getcb_gives_back_what_setcb_set(wired: Wired) -> None:
    bev, _ = wired
    assert bev.getcb() == (None, None, None, ())
    bev.setcb(print, None, len, 1, 2)  # type: ignore[arg-type]
    assert bev.getcb() == (print, None, len, (1, 2))
    bev.setcb()
    assert bev.getcb() == (None, None, None, ())


def test_without_callbacks_it_reads_and_writes_all_the_same(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    peer.send(b"in")
    bev.write(b"out")
    run_until(lambda: bev.input == b"in" and not bev.output)
    assert peer.recv(10) == b"out"


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:]])
def test_write_takes_any_bytes(wired: Wired, run_until: RunUntil, data: Any) -> None:
    bev, peer = wired
    bev.write(data)
    run_until(lambda: not bev.output)
    assert peer.recv(10) == b"abc"


def test_writing_nothing(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    bev.write(b"")
    few_rounds(base)
    assert received(peer) == b""


def test_writes_arrive_in_order(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    for i in range(1000):
        bev.write(b"%d " % i)
    run_until(lambda: not bev.output)
    assert received(peer) == b"".join(b"%d " % i for i in range(1000))


def test_write_buffer_moves_all_of_it(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    buffer = EvBuffer(b"moved")
    bev.write_buffer(buffer)
    assert len(buffer) == 0
    run_until(lambda: not bev.output)
    assert peer.recv(10) == b"moved"


def test_read_takes_as_much_as_asked_for(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    assert bev.read() == b""
    peer.send(b"abcdef")
    run_until(lambda: len(bev.input) == 6)
    assert bev.read(2) == b"ab"
    assert bev.read(0) == b""
    assert bev.read(100) == b"cdef"
    assert bev.read(1) == b""


def test_read_buffer_moves_all_of_the_input(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    peer.send(b"abcdef")
    run_until(lambda: len(bev.input) == 6)
    buffer = EvBuffer(b"> ")
    bev.read_buffer(buffer)
    assert buffer == b"> abcdef"
    assert not bev.input


def test_the_output_may_be_filled_as_a_buffer(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    bev.output.add(b"hello ")
    bev.output.add_buffer(EvBuffer(b"world"))
    bev.output.add_printf("%d", 1)
    run_until(lambda: not bev.output)
    assert peer.recv(100) == b"hello world1"


def test_the_output_may_not_be_read(wired: Wired) -> None:
    bev, _ = wired
    bev.disable(EV_WRITE)
    bev.write(b"x")
    with pytest.raises(LibeventError, match="evbuffer_remove"):
        bev.output.remove(1)
    with pytest.raises(LibeventError, match="evbuffer_prepend"):
        bev.output.prepend(b"x")


def test_the_input_may_not_be_added_to(wired: Wired) -> None:
    bev, _ = wired
    with pytest.raises(LibeventError, match="evbuffer_add"):
        bev.input.add(b"x")


def test_the_read_callback_comes_again_only_when_more_has_come(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev, take=False)
    peer.send(b"one")
    run_until(lambda: seen.reads == 1)
    few_rounds(base)
    assert seen.reads == 1
    peer.send(b"two")
    run_until(lambda: seen.reads == 2)
    assert bev.read() == b"onetwo"


def test_disabled_reading_leaves_the_data_in_the_kernel(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.disable(EV_READ)
    assert bev.enabled == EV_WRITE
    peer.send(b"x")
    few_rounds(base)
    assert seen.reads == 0
    bev.enable(EV_READ)
    assert bev.enabled == EV_READ | EV_WRITE
    run_until(lambda: seen.data == b"x")


def test_disabled_writing_leaves_the_data_in_the_output(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    bev.disable(EV_WRITE)
    bev.write(b"x")
    few_rounds(base)
    assert received(peer) == b""
    assert bev.output == b"x"
    bev.enable(EV_WRITE)
    run_until(lambda: not bev.output)
    assert peer.recv(1) == b"x"


def test_the_write_callback_comes_when_the_output_is_empty(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    lengths: list[int] = []
    bev.setcb(write=lambda bev: lengths.append(len(bev.output)))
    bev.write(pattern(1_000_000))
    got = bytearray()

    def done() -> bool:
        got.extend(received(peer))
        return bool(lengths)

    run_until(done)
    assert lengths == [0]
    got += received(peer)
    assert bytes(got) == pattern(1_000_000)


@pytest.mark.parametrize("size", [65536, 5_000_000])
def test_data_arrives_intact_both_ways(
    base: EventBase, tcp: Sockets, run_until: RunUntil, size: int
) -> None:
    out, back = pattern(size), pattern(size)[::-1]
    ends = []
    for sock, data in ((tcp[0], out), (tcp[1], back)):
        bev = BufferEvent.socket(base, sock)
        bev.enable(EV_READ)
        bev.write(data)
        ends.append(bev)
    run_until(lambda: [len(bev.input) for bev in ends] == [size, size], 30)
    assert [digest(bev.read()) for bev in ends] == [digest(back), digest(out)]


@pytest.mark.parametrize("size", [65536, 5_000_000])
def test_an_echo_by_write_buffer_is_intact(
    base: EventBase, tcp: Sockets, run_until: RunUntil, size: int
) -> None:
    data = pattern(size)
    echo = BufferEvent.socket(base, tcp[0])
    echo.setcb(read=lambda bev: bev.write_buffer(bev.input))
    echo.enable(EV_READ)
    client = BufferEvent.socket(base, tcp[1])
    seen = Seen(client, take=False)
    client.enable(EV_READ)
    client.write(data)
    run_until(lambda: len(client.input) == size, 30)
    assert digest(client.read()) == digest(data)
    assert seen.events == []


# ---- the end of a connection ----


def test_data_before_the_end_is_read_first(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    order: list[Any] = []
    bev.setcb(lambda bev: order.append(bev.read()), None, lambda _bev, what: order.append(what))
    peer.send(b"last words")
    peer.close()
    run_until(lambda: len(order) == 2)
    assert order == [b"last words", BEV_EVENT_READING | BEV_EVENT_EOF]


def test_all_of_5_mb_comes_before_the_end(
    base: EventBase, tcp: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, tcp[0])
    bev.enable(EV_READ)
    sender = BufferEvent.socket(base, tcp[1])
    sender.write(pattern(5_000_000))
    sender.close_after_write()
    at_end: list[int] = []
    bev.setcb(event=lambda bev, _what: at_end.append(len(bev.input)))
    run_until(lambda: at_end, 30)
    assert at_end == [5_000_000]
    assert digest(bev.read()) == digest(pattern(5_000_000))


def test_data_below_the_low_watermark_is_there_at_the_end(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.setwatermark(EV_READ, 100)
    peer.send(b"short")
    peer.close()
    run_until(lambda: seen.events)
    assert seen.reads == 0
    assert bev.read() == b"short"


def test_after_the_end_reading_is_disabled(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    peer.close()
    run_until(lambda: seen.events)
    assert bev.enabled == EV_WRITE
    few_rounds(base)
    assert len(seen.events) == 1


def test_a_half_close_by_the_peer_still_gets_the_answer(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired

    def event(bev: BufferEvent, what: int) -> None:
        assert what == BEV_EVENT_READING | BEV_EVENT_EOF
        bev.write(b"you said: " + bev.read())
        bev.close_after_write()

    bev.setcb(event=event)
    peer.send(b"question")
    peer.shutdown(socket.SHUT_WR)
    run_until(lambda: bev.closed)
    assert received(peer) == b"you said: question"
    assert at_eof(peer)


def test_a_reset_is_a_connection_reset_error(
    base: EventBase, tcp: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, tcp[0])
    seen = Seen(bev)
    bev.enable(EV_READ)
    reset(tcp[1])
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_READING | BEV_EVENT_ERROR]
    assert isinstance(bev.error, ConnectionResetError)
    assert "bufferevent" in str(bev.error)


def test_writing_to_a_closed_peer_is_a_broken_pipe(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.disable(EV_READ)
    peer.close()
    bev.write(b"x")
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_WRITING | BEV_EVENT_ERROR]
    assert isinstance(seen.errors[0], BrokenPipeError)


def test_there_is_no_error_at_first(wired: Wired) -> None:
    assert wired[0].error is None


# ---- timeouts ----


@pytest.mark.parametrize("seconds", [0.02, timedelta(milliseconds=20)])
def test_a_read_timeout_disables_reading(
    base: EventBase, wired: Wired, run_until: RunUntil, seconds: Any
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.set_timeouts(read=seconds)
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_READING | BEV_EVENT_TIMEOUT]
    assert bev.enabled == EV_WRITE
    peer.send(b"x")
    few_rounds(base)
    assert seen.data == b""
    bev.enable(EV_READ)
    run_until(lambda: seen.data == b"x")
    run_until(lambda: len(seen.events) == 2)  # and it counts again


def test_a_write_timeout_disables_writing(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.set_timeouts(write=0.02)
    bev.write(pattern(2_000_000))
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_WRITING | BEV_EVENT_TIMEOUT]
    assert bev.enabled == EV_READ
    assert len(bev.output) > 0
    bev.set_timeouts()
    bev.enable(EV_WRITE)
    got = bytearray()

    def done() -> bool:
        got.extend(received(peer))
        return len(got) == 2_000_000

    run_until(done)
    assert bytes(got) == pattern(2_000_000)


def test_data_puts_the_read_timeout_off(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.set_timeouts(read=0.2)
    start = time.monotonic()

    def trickle() -> bool:
        if time.monotonic() - start < 0.4 and len(seen.data) == sent[0]:
            peer.send(b"x")
            sent[0] += 1
        return bool(seen.events)

    sent = [0]
    run_until(trickle)
    assert time.monotonic() - start >= 0.4


@pytest.mark.parametrize("none", [None, 0])
def test_timeouts_can_be_taken_away(base: EventBase, wired: Wired, none: Any) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.set_timeouts(0.02, 0.02)
    bev.set_timeouts(none, none)
    base.loopexit(0.1)
    base.dispatch()
    assert seen.events == []


def test_a_write_timeout_taken_away_after_all_was_written_does_not_come_back(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.set_timeouts(write=0.02)
    bev.write(b"handshake")
    run_until(lambda: len(bev.output) == 0)
    assert received(peer) == b"handshake"
    bev.set_timeouts()
    bev.write(bytes(2_000_000))  # to one that does not read
    base.loopexit(0.1)
    base.dispatch()
    assert seen.events == []
    assert bev.enabled == EV_READ | EV_WRITE


@pytest.mark.parametrize("reading", [True, False])
def test_a_timeout_taken_away_after_it_came_does_not_come_again(
    base: EventBase, wired: Wired, run_until: RunUntil, reading: bool
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    if reading:
        bev.set_timeouts(read=0.02)
    else:
        bev.set_timeouts(write=0.02)
        bev.write(bytes(2_000_000))
    run_until(lambda: seen.events)
    bev.set_timeouts()
    bev.enable(EV_READ | EV_WRITE)
    before = len(bev.output)
    if reading:
        peer.send(b"x")
    else:
        received(peer)
    run_until(lambda: seen.data if reading else len(bev.output) < before)
    base.loopexit(0.1)
    base.dispatch()
    assert len(seen.events) == 1


def test_a_timeout_taken_away_while_disabled_does_not_come_back(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.set_timeouts(read=0.02)
    bev.disable(EV_READ)
    bev.set_timeouts()
    bev.enable(EV_READ)
    peer.send(b"x")
    run_until(lambda: seen.data)
    base.loopexit(0.1)
    base.dispatch()
    assert seen.events == []


def test_a_timeout_taken_away_when_it_is_due_comes_no_more_than_once(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    timer = Timer(base, bev.set_timeouts)
    timer.add(0.01)
    bev.set_timeouts(read=0.02)
    due = time.monotonic() + 0.04
    while time.monotonic() < due:  # then both are active in one round, the timer first
        pass
    base.loop(EVLOOP_NONBLOCK)
    assert seen.events == [BEV_EVENT_READING | BEV_EVENT_TIMEOUT]
    bev.enable(EV_READ)
    peer.send(b"x")
    run_until(lambda: seen.data)
    base.loopexit(0.1)
    base.dispatch()
    assert len(seen.events) == 1


def test_there_is_no_write_timeout_with_nothing_to_write(base: EventBase, wired: Wired) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.set_timeouts(write=0.02)
    base.loopexit(0.1)
    base.dispatch()
    assert seen.events == []


def test_a_connection_that_takes_too_long_times_out(base: EventBase, run_until: RunUntil) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = []
        try:
            for _ in range(10):  # more than the queue takes: the next one gets no answer
                fillers.append(socket.socket())
                fillers[-1].setblocking(False)
                fillers[-1].connect_ex(server.getsockname())
            bev = BufferEvent.socket(base)
            seen = Seen(bev)
            bev.set_timeouts(write=0.1)
            bev.connect(server.getsockname())
            run_until(lambda: seen.events)
            assert seen.events == [BEV_EVENT_WRITING | BEV_EVENT_TIMEOUT]
            bev.close()
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.parametrize("kind", [0, 1])
def test_timeouts_on_a_pair(base: EventBase, run_until: RunUntil, kind: int) -> None:
    a, _b = BufferEvent.pair(base)
    seen = Seen(a)
    if kind:
        a.set_timeouts(read=0.02)
        a.enable(EV_READ)
    else:
        a.set_timeouts(write=0.02)
        a.write(b"nobody reads it")
        a.enable(EV_WRITE)
    run_until(lambda: seen.events)
    assert seen.events == [(BEV_EVENT_READING if kind else BEV_EVENT_WRITING) | BEV_EVENT_TIMEOUT]


# ---- watermarks ----


def test_watermarks_are_nought_at_first_and_what_was_set_later(wired: Wired) -> None:
    bev, _ = wired
    assert bev.getwatermark(EV_READ) == (0, 0)
    bev.setwatermark(EV_READ, 5, 100)
    bev.setwatermark(EV_WRITE, 7)
    assert bev.getwatermark(EV_READ) == (5, 100)
    assert bev.getwatermark(EV_WRITE) == (7, 0)
    bev.setwatermark(EV_READ | EV_WRITE, 1, 2)
    assert bev.getwatermark(EV_READ) == bev.getwatermark(EV_WRITE) == (1, 2)


def test_the_low_watermark_holds_the_read_callback_back(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.setwatermark(EV_READ, 10)
    peer.send(b"123456789")
    run_until(lambda: len(bev.input) == 9)
    few_rounds(base)
    assert seen.reads == 0
    peer.send(b"0")
    run_until(lambda: seen.reads)
    assert seen.data == b"1234567890"


def test_no_more_is_read_than_the_high_watermark(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    bev.setwatermark(EV_READ, 0, 1000)
    lengths: list[int] = []
    got = bytearray()

    def read(bev: BufferEvent) -> None:
        lengths.append(len(bev.input))
        got.extend(bev.read(100))

    bev.setcb(read=read)
    peer.send(pattern(20000))
    run_until(lambda: len(got) + len(bev.input) == 20000)
    assert max(lengths) <= 1000
    assert bytes(got) + bev.read() == pattern(20000)


@pytest.mark.parametrize("options", [0, BEV_OPT_DEFER_CALLBACKS, BEV_OPT_THREADSAFE])
def test_at_the_high_watermark_with_nothing_taken_the_loop_sleeps(
    base: EventBase, sockets: Sockets, run_until: RunUntil, options: int
) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=options)
    seen = Seen(bev, take=False)
    bev.setwatermark(EV_READ, 0, 4096)
    bev.enable(EV_READ)
    fill(sockets[1])
    run_until(lambda: len(bev.input) == 4096)
    assert cpu_of_a_loop(base, 0.3) < 0.15
    assert seen.reads <= 3
    assert len(bev.input) == 4096
    assert bev.enabled == EV_READ | EV_WRITE  # as the user has it


def _to_buffer(move: Callable[[BufferEvent, EvBuffer], object]) -> Action:
    def drain(bev: BufferEvent) -> None:
        buffer = EvBuffer()
        move(bev, buffer)
        buffer.close()

    return drain


def _to_devnull(bev: BufferEvent) -> None:
    with open(os.devnull, "wb") as null:
        bev.input.write(null)


def _to_another(bev: BufferEvent) -> None:
    a, b = BufferEvent.pair(bev.base)
    a.write_buffer(bev.input)
    a.close()
    b.close()


DRAINS: dict[str, Action] = {
    "read": lambda bev: bev.read(10),
    "read_buffer": _to_buffer(lambda bev, buffer: bev.read_buffer(buffer)),
    "write_buffer of another": _to_another,
    "input.remove": lambda bev: bev.input.remove(10),
    "input.remove_into": lambda bev: bev.input.remove_into(bytearray(10)),
    "input.drain": lambda bev: bev.input.drain(10),
    "input.readln": lambda bev: bev.input.readln(),
    "input.readlines": lambda bev: bev.input.readlines(),
    "input.remove_buffer": _to_buffer(lambda bev, buffer: bev.input.remove_buffer(buffer, 10)),
    "add_buffer(input)": _to_buffer(lambda bev, buffer: buffer.add_buffer(bev.input)),
    "prepend_buffer(input)": _to_buffer(lambda bev, buffer: buffer.prepend_buffer(bev.input)),
    "input.write": _to_devnull,
    "a higher watermark": lambda bev: bev.setwatermark(EV_READ, 0, 8192),
    "no watermark": lambda bev: bev.setwatermark(EV_READ, 0, 0),
}


@pytest.mark.parametrize("drain", DRAINS)
def test_at_the_high_watermark_it_goes_on_when_drained(
    base: EventBase, wired: Wired, run_until: RunUntil, drain: str
) -> None:
    bev, peer = wired
    seen = Seen(bev, take=False)
    bev.setwatermark(EV_READ, 0, 4096)
    peer.send(b"line of fifteen\n" * 1000)
    run_until(lambda: len(bev.input) == 4096)
    few_rounds(base)
    reads = seen.reads
    DRAINS[drain](bev)
    run_until(lambda: seen.reads > reads)


def test_at_the_high_watermark_draining_while_disabled_goes_on_with_enable(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev, take=False)
    bev.setwatermark(EV_READ, 0, 100)
    peer.send(pattern(300))
    run_until(lambda: len(bev.input) == 100)
    few_rounds(base)
    bev.disable(EV_READ)
    assert bev.enabled == EV_WRITE
    data = bev.read()
    reads = seen.reads
    few_rounds(base)
    assert seen.reads == reads
    bev.enable(EV_READ)
    run_until(lambda: len(bev.input) == 100)
    assert data + bev.read() == pattern(200)


def test_at_the_high_watermark_disable_and_enable_does_not_spin(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev, take=False)
    bev.setwatermark(EV_READ, 0, 100)
    fill(peer)
    run_until(lambda: len(bev.input) == 100)
    bev.disable(EV_READ)
    bev.enable(EV_READ)
    assert cpu_of_a_loop(base, 0.2) < 0.1
    assert seen.reads <= 4


def test_at_the_high_watermark_without_a_read_callback_the_loop_sleeps(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    bev.setwatermark(EV_READ, 0, 100)
    fill(peer)
    run_until(lambda: len(bev.input) == 100)
    assert cpu_of_a_loop(base, 0.2) < 0.1
    assert len(bev.read()) == 100
    run_until(lambda: len(bev.input) == 100)


def test_at_the_high_watermark_a_callback_that_takes_a_little_is_called_until_it_is_done(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    got = bytearray()
    bev.setcb(read=lambda bev: got.extend(bev.read(1)))
    bev.setwatermark(EV_READ, 0, 10)
    peer.send(pattern(1000))
    run_until(lambda: len(got) + len(bev.input) == 1000)
    assert bytes(got) + bev.read() == pattern(1000)


def test_a_lowered_watermark_stops_reading_and_goes_on_when_drained(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev, take=False)
    peer.send(pattern(1000))
    run_until(lambda: len(bev.input) == 1000)
    bev.setwatermark(EV_READ, 0, 100)
    peer.send(pattern(1000))
    few_rounds(base)
    assert len(bev.input) == 1000
    assert cpu_of_a_loop(base, 0.2) < 0.1
    reads = seen.reads
    bev.input.drain(950)
    run_until(lambda: len(bev.input) == 100)
    run_until(lambda: seen.reads > reads)


def test_the_end_comes_through_after_the_high_watermark(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev, take=False)
    bev.setwatermark(EV_READ, 0, 100)
    peer.send(pattern(100))
    peer.close()
    run_until(lambda: len(bev.input) == 100)
    few_rounds(base)
    assert seen.events == []  # it does not read, so it cannot know
    assert bev.read() == pattern(100)
    run_until(lambda: seen.events)
    assert seen.events == [BEV_EVENT_READING | BEV_EVENT_EOF]


def test_the_high_watermark_on_a_pair(base: EventBase, run_until: RunUntil) -> None:
    a, b = BufferEvent.pair(base)
    seen = Seen(b, take=False)
    b.setwatermark(EV_READ, 0, 100)
    b.enable(EV_READ)
    a.write(pattern(1000))
    run_until(lambda: seen.reads)
    assert cpu_of_a_loop(base, 0.2) < 0.1
    assert seen.reads <= 3
    assert len(b.input) == 100
    got = bytearray()

    def drained() -> bool:
        got.extend(b.read())
        return len(got) == 1000

    run_until(drained)
    assert bytes(got) == pattern(1000)
    assert not a.output


def test_the_low_watermark_of_writing_calls_before_the_output_is_empty(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    lengths: list[int] = []
    bev.setcb(write=lambda bev: lengths.append(len(bev.output)))
    bev.setwatermark(EV_WRITE, 1_000_000)
    bev.write(bytes(3_000_000))

    def done() -> bool:
        received(peer)
        return bool(lengths) and not bev.output

    run_until(done)
    assert max(lengths) <= 1_000_000
    assert lengths[0] > 0
    assert lengths[-1] == 0


def test_a_fast_sender_is_bounded_by_the_high_watermark(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    bev.setwatermark(EV_READ, 0, 65536)
    longest = 0
    for _ in range(200):
        fill(peer)
        base.loop(EVLOOP_NONBLOCK)
        longest = max(longest, len(bev.input))
    assert longest == 65536


def test_a_slow_reader_is_bounded_by_pausing_at_a_mark(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    """An echo that reads no more while too much waits to be written."""
    bev, peer = wired
    mark = 100_000
    longest = 0

    def read(bev: BufferEvent) -> None:
        nonlocal longest
        bev.write_buffer(bev.input)
        longest = max(longest, len(bev.output))
        if len(bev.output) > mark:
            bev.disable(EV_READ)

    def write(bev: BufferEvent) -> None:
        bev.enable(EV_READ)

    bev.setcb(read, write)
    data, got = pattern(3_000_000), bytearray()
    sent = 0
    stalled = 0
    while stalled < 20:  # the peer writes and never reads
        base.loop(EVLOOP_NONBLOCK)
        try:
            sent += peer.send(data[sent : sent + 65536])
            stalled = 0
        except BlockingIOError:
            stalled += 1
        if sent == len(data):
            break
    assert sent < len(data)
    assert longest < mark + 300_000

    def done() -> bool:  # now it reads
        nonlocal sent
        got.extend(received(peer))
        if sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(data[sent : sent + 65536])
        return len(got) == len(data)

    run_until(done, 20)
    assert digest(bytes(got)) == digest(data)


# ---- close_after_write ----


def test_close_after_write_delivers_10_mb_to_a_slow_reader(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    data = pattern(10_000_000)
    bev.write(data)
    bev.close_after_write()
    ref = weakref.ref(bev)
    h = hashlib.sha256()
    length = 0

    def slowly(_fd: int, _what: int) -> None:
        nonlocal length
        part = peer.recv(50_000)
        if not part:
            reader.close()
            return
        length += len(part)
        h.update(part)

    reader = Event(base, peer, EV_READ | EV_PERSIST, slowly)
    reader.add()
    run_until(lambda: reader.closed, 30)
    assert length == len(data)
    assert h.hexdigest() == digest(data)
    peer.close()
    run_until(lambda: (bev := ref()) is None or bev.closed)


def test_close_after_write_of_one_that_nobody_holds(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.write(pattern(1_000_000))
    bev.close_after_write()
    del bev
    gc.collect()
    got = bytearray()

    def done() -> bool:
        got.extend(received(sockets[1]))
        return at_eof(sockets[1])

    run_until(done)
    assert bytes(got) == pattern(1_000_000)


def test_close_after_write_delivers_all_though_the_peer_sent_what_was_not_read(
    base: EventBase, tcp: Sockets, run_until: RunUntil
) -> None:
    """close() with unread input makes the kernel reset the connection and drop what it still
    has to send."""
    bev = BufferEvent.socket(base, tcp[0])
    data = pattern(3_000_000)
    tcp[1].send(b"a request too long to be read")
    few_rounds(base)
    bev.write(data)
    bev.close_after_write()
    got = bytearray()

    def slowly() -> bool:
        with contextlib.suppress(BlockingIOError):
            got.extend(tcp[1].recv(20_000))
        return at_eof(tcp[1])

    tick = Timer(base, lambda: None, persist=True)  # the peer reads on while the socket is full
    tick.add(0.001)
    run_until(slowly, 20)
    assert digest(bytes(got)) == digest(data)
    tcp[1].close()
    run_until(lambda: bev.closed)


def test_close_after_write_calls_no_callback_of_the_input_either() -> None:
    out = run_checked(
        """
import gc, socket
from pylibevent import *
for options in (1, 1 | BEV_OPT_DEFER_CALLBACKS, 1 | BEV_OPT_THREADSAFE):
    base = EventBase()
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a, options)
    bev.enable(EV_READ)
    b.send(b"in the input")
    while not bev.input:
        base.loop(EVLOOP_ONCE)
    bev.disable(EV_READ)
    calls = []
    bev.input.add_cb(lambda *args: (calls.append(args), bev.close()))
    b.send(b"in the kernel")
    bev.write(b"bye")
    bev.close_after_write()
    for _ in range(20):
        base.loop(EVLOOP_NONBLOCK)
        b.send(b"more") if not bev.closed and not calls else None
    assert b.recv(100) == b"bye"
    b.close()
    for _ in range(20):
        base.loop(EVLOOP_NONBLOCK)
    assert bev.closed
    assert calls == [], calls
    base.close()
print("fine")
""",
        MALLOC_PERTURB_="165",
    )
    assert out == "fine\n"


def test_close_after_write_with_nothing_to_write_closes_at_once(wired: Wired) -> None:
    bev, peer = wired
    bev.close_after_write()
    assert bev.closed
    assert at_eof(peer)


def test_close_after_write_with_writing_disabled_writes_all_the_same(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    bev.disable(EV_WRITE)
    bev.write(b"x")
    bev.close_after_write()
    run_until(lambda: bev.closed)
    assert received(peer) == b"x"


def test_close_after_write_heeds_no_write_watermark(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    bev.setwatermark(EV_WRITE, 500_000)
    bev.write(pattern(1_000_000))
    bev.close_after_write()
    got = bytearray()

    def done() -> bool:
        got.extend(received(peer))
        return bev.closed

    run_until(done)
    got += received(peer)
    assert bytes(got) == pattern(1_000_000)


def test_after_close_after_write_no_callback_is_called(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    seen = Seen(bev)
    bev.write(pattern(1_000_000))
    bev.close_after_write()
    peer.send(b"not read")

    def done() -> bool:
        with contextlib.suppress(ConnectionResetError):
            received(peer)
        return bev.closed

    peer.shutdown(socket.SHUT_WR)
    run_until(done)
    assert (seen.reads, seen.writes, seen.events) == (0, 0, [])


@pytest.mark.parametrize(
    "use", [name for name in USES if name not in ("close_after_write", "fd", "lock", "ptr")]
)
def test_after_close_after_write_it_may_not_be_used(wired: Wired, use: str) -> None:
    bev, _ = wired
    bev.write(pattern(1_000_000))
    bev.close_after_write()
    if use in ("input", "output", "dns_error"):
        return  # looking does no harm
    with pytest.raises(ClosedError):
        USES[use](bev)


def test_close_after_write_twice(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    bev.write(b"x")
    bev.close_after_write()
    bev.close_after_write()
    run_until(lambda: bev.closed)
    assert received(peer) == b"x"


def test_close_after_write_may_be_cut_short_by_close(base: EventBase, wired: Wired) -> None:
    bev, peer = wired
    bev.write(pattern(5_000_000))
    bev.close_after_write()
    few_rounds(base)
    bev.close()
    assert bev.closed
    assert len(received(peer)) < 5_000_000
    assert at_eof(peer)


def test_close_after_write_ends_when_the_peer_resets(
    base: EventBase, tcp: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, tcp[0])
    bev.write(pattern(20_000_000))
    bev.close_after_write()
    few_rounds(base)
    assert not bev.closed
    reset(tcp[1])
    run_until(lambda: bev.closed)


def test_close_after_write_ends_when_the_peer_is_gone_already(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    peer.close()
    bev.write(b"x")
    bev.close_after_write()
    run_until(lambda: bev.closed)


def test_close_after_write_ends_at_the_write_timeout(wired: Wired, run_until: RunUntil) -> None:
    bev, _ = wired
    bev.set_timeouts(write=0.05)
    bev.write(pattern(5_000_000))
    bev.close_after_write()
    run_until(lambda: bev.closed)


def test_close_after_write_ends_at_its_own_timeout(wired: Wired, run_until: RunUntil) -> None:
    bev, _ = wired
    bev.write(pattern(5_000_000))
    bev.close_after_write(timeout=0.05)
    run_until(lambda: bev.closed)


def test_close_after_write_keeps_its_timeout_from_a_peer_that_reads(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    data = pattern(2_000_000)
    got = bytearray()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            got.extend(peer.recv(50_000))

    reader = Timer(bev.base, read, persist=True)
    reader.add(0.01)
    bev.write(data)
    bev.close_after_write(timeout=0.2)
    run_until(lambda: bev.closed)
    got.extend(received(peer))
    assert got == data


def test_close_after_write_takes_the_place_of_the_write_timeout(
    wired: Wired, run_until: RunUntil
) -> None:
    bev, _ = wired
    bev.set_timeouts(write=60)
    bev.write(pattern(5_000_000))
    bev.close_after_write(timeout=0.05)
    run_until(lambda: bev.closed)


def test_close_after_write_with_a_bad_timeout_does_nothing(wired: Wired) -> None:
    bev, _ = wired
    with pytest.raises(ValueError, match="seconds"):
        bev.close_after_write(timeout=-1)
    bev.write(b"still open")


def test_close_after_write_to_a_peer_that_never_reads_ends_with_the_base(
    base: EventBase, wired: Wired
) -> None:
    bev, peer = wired
    bev.write(pattern(5_000_000))
    bev.close_after_write()
    few_rounds(base)
    assert not bev.closed
    base.close()
    assert bev.closed
    received(peer)
    assert at_eof(peer)


def test_close_after_write_to_a_peer_that_never_reads_does_not_spin(
    base: EventBase, wired: Wired
) -> None:
    bev, peer = wired
    bev.write(pattern(5_000_000))
    bev.close_after_write()
    peer.send(b"and it has something to say")
    assert cpu_of_a_loop(base, 0.2) < 0.15


@pytest.mark.parametrize("kind", ["read", "write", "event"])
def test_close_after_write_inside_callbacks(wired: Wired, run_until: RunUntil, kind: str) -> None:
    bev, peer = wired

    def callback(bev: BufferEvent, *_args: object) -> None:
        bev.write(b"bye")
        bev.close_after_write()

    bev.setcb(**{kind: callback})
    if kind == "read":
        peer.send(b"x")
    elif kind == "write":
        bev.write(b"good")
    else:
        peer.shutdown(socket.SHUT_WR)
    run_until(lambda: bev.closed)
    assert received(peer) == (b"goodbye" if kind == "write" else b"bye")
    assert at_eof(peer)


def test_close_after_write_while_connecting(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        bev.connect(server.getsockname())
        bev.write(b"knock")
        bev.close_after_write()
        run_until(lambda: bev.closed)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(10) == b"knock"
            assert peer.recv(10) == b""


def test_close_after_write_of_a_refused_connection(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    bev = BufferEvent.socket(base)
    bev.connect(address)
    bev.write(b"knock")
    bev.close_after_write()
    run_until(lambda: bev.closed)


def test_close_after_write_without_a_socket_closes(base: EventBase) -> None:
    bev = BufferEvent.socket(base)
    bev.write(b"to nobody")
    bev.close_after_write()
    few_rounds(base)
    assert bev.closed


def test_close_after_write_on_a_pair(base: EventBase, run_until: RunUntil) -> None:
    a, b = BufferEvent.pair(base)
    a.write(b"abc")
    a.close_after_write()
    few_rounds(base)
    assert not a.closed  # b does not read yet
    b.enable(EV_READ)
    run_until(lambda: a.closed)
    assert b.read() == b"abc"
    assert b.partner is None


@pytest.mark.parametrize("first", [True, False])
def test_close_after_write_on_a_pair_ends_when_the_partner_is_closed(
    base: EventBase, first: bool
) -> None:
    a, b = BufferEvent.pair(base)
    a.write(b"abc")
    if first:
        b.close()
    a.close_after_write()
    few_rounds(base)
    b.close()
    few_rounds(base)
    assert a.closed


# ---- callbacks, triggered and replaced ----


def test_setcb_inside_a_callback(wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    calls: list[tuple[str, bytes]] = []

    def first(bev: BufferEvent, who: str) -> None:
        calls.append((who, bev.read()))
        bev.setcb(second, None, None, "second", 2)

    def second(bev: BufferEvent, who: str, number: int) -> None:
        assert number == 2
        calls.append((who, bev.read()))

    bev.setcb(first, None, None, "first")
    peer.send(b"one")
    run_until(lambda: calls)
    peer.send(b"two")
    run_until(lambda: len(calls) == 2)
    assert calls == [("first", b"one"), ("second", b"two")]


def test_setcb_none_inside_a_callback(base: EventBase, wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    calls: list[int] = []

    def once(bev: BufferEvent) -> None:
        calls.append(len(bev.read()))
        bev.setcb()

    bev.setcb(read=once)
    peer.send(b"one")
    run_until(lambda: calls)
    peer.send(b"two")
    run_until(lambda: len(bev.input) == 3)
    few_rounds(base)
    assert calls == [3]


def test_disable_inside_the_read_callback(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    got: list[bytes] = []

    def read(bev: BufferEvent) -> None:
        got.append(bev.read())
        bev.disable(EV_READ)

    bev.setcb(read=read)
    peer.send(b"one")
    run_until(lambda: got)
    peer.send(b"two")
    few_rounds(base)
    assert got == [b"one"]
    bev.enable(EV_READ)
    run_until(lambda: len(got) == 2)
    assert got == [b"one", b"two"]


def test_a_deferred_callback_does_not_come_after_disable(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    seen = Seen(b)
    b.enable(EV_READ)
    a.write(b"x")  # its callback is deferred, and so comes later
    b.disable(EV_READ)
    few_rounds(base)
    assert seen.reads == 0
    b.enable(EV_READ)
    few_rounds(base)
    assert seen.data == b"x"  # and is not lost


def test_a_deferred_write_callback_does_not_come_after_disable(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    seen = Seen(a)
    b.enable(EV_READ)
    a.write(b"x")
    a.disable(EV_WRITE)
    few_rounds(base)
    assert seen.writes == 0
    a.enable(EV_WRITE)
    few_rounds(base)
    assert seen.writes == 1


def test_disable_in_one_callback_stops_the_others_deferred_one(
    base: EventBase, run_until: RunUntil
) -> None:
    pairs = [BufferEvent.pair(base) for _ in range(2)]
    readers = [b for _, b in pairs]
    called: list[BufferEvent] = []

    def read(bev: BufferEvent) -> None:
        called.append(bev)
        for reader in readers:
            if reader is not bev:
                reader.disable(EV_READ)

    for a, b in pairs:
        b.setcb(read=read)
        b.enable(EV_READ)
        a.write(b"x")
    run_until(lambda: called)
    few_rounds(base)
    assert len(called) == 1


def test_trigger_calls_the_callbacks_at_once(wired: Wired) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.trigger(EV_READ)
    assert (seen.reads, seen.writes) == (1, 0)
    bev.trigger(EV_WRITE)
    assert (seen.reads, seen.writes) == (1, 1)
    bev.trigger(EV_READ | EV_WRITE)
    assert (seen.reads, seen.writes) == (2, 2)


def test_trigger_heeds_the_watermarks_unless_told_not_to(wired: Wired) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.setwatermark(EV_READ, 1)
    bev.trigger(EV_READ)
    assert seen.reads == 0
    bev.trigger(EV_READ, BEV_TRIG_IGNORE_WATERMARKS)
    assert seen.reads == 1


def test_trigger_deferred_calls_from_the_loop(base: EventBase, wired: Wired) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.trigger(EV_READ, BEV_TRIG_DEFER_CALLBACKS)
    assert seen.reads == 0
    few_rounds(base)
    assert seen.reads == 1


def test_trigger_calls_even_what_is_disabled(wired: Wired) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.disable(EV_READ | EV_WRITE)
    bev.trigger(EV_READ | EV_WRITE)
    assert (seen.reads, seen.writes) == (1, 1)


def test_a_trigger_that_the_watermark_held_back_is_over(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    seen = Seen(b)
    b.setwatermark(EV_READ, 10)
    b.trigger(EV_READ)
    few_rounds(base)
    b.enable(EV_READ)
    a.write(b"enough for the watermark")
    b.disable(EV_READ)
    few_rounds(base)
    assert seen.reads == 0


def test_trigger_event(base: EventBase, wired: Wired) -> None:
    bev, _ = wired
    seen = Seen(bev)
    bev.trigger_event(BEV_EVENT_EOF | BEV_EVENT_READING)
    assert seen.events == [BEV_EVENT_EOF | BEV_EVENT_READING]
    bev.trigger_event(BEV_EVENT_CONNECTED, BEV_TRIG_DEFER_CALLBACKS)
    assert len(seen.events) == 1
    few_rounds(base)
    assert seen.events[1] == BEV_EVENT_CONNECTED


def test_triggered_without_callbacks_nothing_happens(base: EventBase, wired: Wired) -> None:
    bev, _ = wired
    bev.trigger(EV_READ | EV_WRITE)
    bev.trigger_event(BEV_EVENT_EOF)
    few_rounds(base)


# ---- options ----


def test_deferred_callbacks_come_from_the_loop(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(
        base, sockets[0], options=BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS
    )
    seen = Seen(bev)
    bev.enable(EV_READ)
    bev.trigger(EV_READ)
    bev.trigger_event(BEV_EVENT_EOF)
    assert (seen.reads, seen.events) == (0, [])
    sockets[1].send(b"hello")
    bev.write(b"x")
    run_until(lambda: seen.data and seen.writes and seen.events)
    assert seen.data == b"hello"
    assert seen.events == [BEV_EVENT_EOF]


def test_the_errno_of_a_deferred_error_is_the_right_one(
    base: EventBase, tcp: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, tcp[0], options=BEV_OPT_DEFER_CALLBACKS)
    seen = Seen(bev)
    bev.enable(EV_READ)
    reset(tcp[1])
    run_until(lambda: seen.events)
    assert isinstance(seen.errors[0], ConnectionResetError)


@pytest.mark.parametrize("make", [BufferEvent.socket, BufferEvent.pair])
@pytest.mark.parametrize(
    "options", [BEV_OPT_UNLOCK_CALLBACKS, BEV_OPT_UNLOCK_CALLBACKS | BEV_OPT_THREADSAFE]
)
def test_unlock_callbacks_needs_defer_callbacks(base: EventBase, make: Any, options: int) -> None:
    with pytest.raises(ValueError, match="BEV_OPT_DEFER_CALLBACKS"):
        make(base, options=options)


THREADED = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE


@pytest.mark.parametrize("options", [THREADED, THREADED | BEV_OPT_DEFER_CALLBACKS])
def test_a_threadsafe_one_is_locked_in_its_callbacks(
    base: EventBase, sockets: Sockets, run_until: RunUntil, options: int
) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=options)
    order: list[str] = []

    def other() -> None:
        started.set()
        with bev.lock():
            order.append("thread")

    started = threading.Event()
    thread = threading.Thread(target=other)

    def read(_bev: BufferEvent) -> None:
        thread.start()
        started.wait(5)
        order.append("callback")

    bev.setcb(read=read)
    bev.enable(EV_READ)
    sockets[1].send(b"x")
    run_until(lambda: order)
    thread.join(5)
    assert order == ["callback", "thread"]


def test_with_unlock_callbacks_it_is_not_locked_in_its_callbacks(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(
        base,
        sockets[0],
        options=THREADED | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
    )
    finished: list[bool] = []

    def read(bev: BufferEvent) -> None:
        thread = threading.Thread(target=lambda: bev.write(bev.read()))
        thread.start()
        thread.join(5)
        finished.append(not thread.is_alive())

    bev.setcb(read=read)
    bev.enable(EV_READ)
    sockets[1].send(b"hello")
    run_until(lambda: finished and not bev.output)
    assert finished == [True]
    assert sockets[1].recv(10) == b"hello"


def test_a_threadsafe_one_may_be_written_to_from_other_threads(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=THREADED)
    bev.enable(EV_READ)

    def write(letter: bytes) -> None:
        for _ in range(500):
            bev.write(letter * 10)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    got = bytearray()

    def done() -> bool:
        got.extend(received(sockets[1]))
        return len(got) == 4 * 5000

    run_until(done)
    for thread in threads:
        thread.join()
    pieces = [bytes(got[i : i + 10]) for i in range(0, len(got), 10)]
    assert all(len(set(piece)) == 1 for piece in pieces)  # each write in one piece
    assert all(pieces.count(bytes([65 + i]) * 10) == 500 for i in range(4))


def test_a_threadsafe_one_written_to_wakes_a_sleeping_loop(
    base: EventBase, sockets: Sockets
) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=THREADED)
    bev.setcb(write=lambda bev: bev.base.loopexit())
    bev.enable(EV_READ)

    def write() -> None:
        while not base.running:
            time.sleep(0.001)
        bev.write(b"x")

    thread = threading.Thread(target=write)
    thread.start()
    base.loopexit(5)
    start = time.monotonic()
    base.dispatch()
    assert time.monotonic() - start < 4
    thread.join()
    assert sockets[1].recv(1) == b"x"


def test_a_threadsafe_one_may_be_closed_from_another_thread(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=THREADED)
    seen = Seen(bev)
    bev.enable(EV_READ)

    def close() -> None:
        while not base.running:
            time.sleep(0.001)
        bev.close()

    thread = threading.Thread(target=close)
    thread.start()
    run_until(lambda: bev.closed)
    thread.join()
    run_until(lambda: at_eof(sockets[1]))
    assert seen.events == []


def test_without_threadsafe_another_thread_gets_a_runtime_error_while_the_loop_runs(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, _ = wired
    input_ = bev.input
    uses: dict[str, Action] = {
        name: use for name, use in USES.items() if name not in ("ptr", "input", "output")
    }
    uses["close"] = lambda bev: bev.close()
    uses["len(input)"] = lambda bev: len(input_)
    wrong: list[str] = []

    def other() -> None:
        while not base.running:
            time.sleep(0.001)
        for name, use in uses.items():
            try:
                use(bev)
                wrong.append(name)
            except RuntimeError as error:
                if "thread" not in str(error):
                    wrong.append(f"{name}: {error}")
            except Exception as error:
                wrong.append(f"{name}: {error!r}")
        done.append(True)
        base.loopbreak()

    done: list[bool] = []
    thread = threading.Thread(target=other)
    thread.start()
    run_until(lambda: done)
    thread.join()
    assert wrong == []
    assert not bev.closed


def test_unknown_options(base: EventBase) -> None:
    for options in (1 << 6, -1, 1 << 40):
        with pytest.raises(ValueError, match="options"):
            BufferEvent.socket(base, options=options)
        with pytest.raises(ValueError, match="options"):
            BufferEvent.pair(base, options=options)


# ---- lock ----


def test_lock_keeps_other_threads_out(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=THREADED)
    bev.disable(EV_WRITE)
    released = False
    at_write: list[bool] = []

    def other() -> None:
        started.set()
        bev.write(b"other")
        at_write.append(released)

    started = threading.Event()
    thread = threading.Thread(target=other)
    with bev.lock() as same:
        assert same is bev
        thread.start()
        started.wait(5)
        bev.write(b"mine ")
        with bev.lock():  # it may be taken twice
            bev.write(b"mine ")
        time.sleep(0.01)  # the other thread's chance to get it wrong
        released = True
    thread.join(5)
    assert at_write == [True]
    assert bev.output == b"mine mine other"


def test_lock_of_one_that_has_none(wired: Wired) -> None:
    bev, _ = wired
    with bev.lock():
        bev.write(b"x")


@pytest.mark.parametrize("options", [BEV_OPT_CLOSE_ON_FREE, THREADED])
def test_close_within_lock(base: EventBase, sockets: Sockets, options: int) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=options)
    with bev.lock():
        bev.close()
    assert bev.closed
    few_rounds(base)


def test_an_exception_within_lock_lets_go_of_it(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0], options=THREADED)
    with pytest.raises(KeyError), bev.lock():
        raise KeyError
    thread = threading.Thread(target=lambda: bev.write(b"x"))
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


# ---- priorities ----


def test_priorities_decide_who_is_served_first(base: EventBase, run_until: RunUntil) -> None:
    base.priority_init(3)
    order: list[int] = []
    peers = []
    for priority in (2, 1, 0):
        a, b = socket.socketpair()
        bev = BufferEvent.socket(base, a)
        assert bev.priority == 1  # the middle one
        bev.priority = priority
        assert bev.priority == priority
        bev.setcb(read=lambda bev: order.append(bev.priority))
        bev.enable(EV_READ)
        peers.append(b)
    for peer in peers:
        peer.send(b"x")
    run_until(lambda: len(order) == 3)
    assert order == [0, 1, 2]
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("priority", [-1, 1, 1 << 40])
def test_a_priority_that_the_base_does_not_have(wired: Wired, priority: int) -> None:
    with pytest.raises(ValueError, match=r".*"):
        wired[0].priority = priority


def test_pairs_have_no_priority_to_set(base: EventBase) -> None:
    a, _ = BufferEvent.pair(base)
    assert a.priority == 0
    with pytest.raises(ValueError, match="bufferevent_priority_set"):
        a.priority = 0


# ---- pairs ----


def test_what_one_of_a_pair_writes_the_other_reads(base: EventBase, run_until: RunUntil) -> None:
    a, b = BufferEvent.pair(base)
    assert a.partner is b
    assert b.partner is a
    assert a.fd == -1
    at_a, at_b = Seen(a), Seen(b)
    a.enable(EV_READ)
    b.enable(EV_READ)
    a.write(b"to b")
    b.write(b"to a")
    assert (at_a.reads, at_b.reads) == (0, 0)  # always deferred
    run_until(lambda: at_a.data and at_b.data and at_a.writes and at_b.writes)
    assert (at_a.data, at_b.data) == (b"to a", b"to b")


@pytest.mark.parametrize("options", [0, BEV_OPT_THREADSAFE, BEV_OPT_DEFER_CALLBACKS])
def test_5_mb_through_a_pair(base: EventBase, run_until: RunUntil, options: int) -> None:
    a, b = BufferEvent.pair(base, options)
    b.setwatermark(EV_READ, 0, 65536)
    h = hashlib.sha256()
    b.setcb(read=lambda bev: h.update(bev.read()))
    b.enable(EV_READ)
    data = pattern(5_000_000)
    a.write(data)
    run_until(lambda: h.hexdigest() == digest(data), 20)


def test_a_pair_waits_for_its_reader(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    a.write(b"x")
    few_rounds(base)
    assert (len(a.output), len(b.input)) == (1, 0)
    b.enable(EV_READ)
    assert (len(a.output), len(b.input)) == (0, 1)


def test_closing_one_of_a_pair_leaves_the_other(base: EventBase, run_until: RunUntil) -> None:
    a, b = BufferEvent.pair(base)
    seen = Seen(b)
    b.enable(EV_READ)
    a.write(b"last words")
    a.close()
    assert b.partner is None
    assert not b.closed
    run_until(lambda: seen.data)
    assert seen.data == b"last words"
    b.write(b"to nobody")
    few_rounds(base)
    assert len(b.output) == 9


@pytest.mark.parametrize("whom", ["itself", "partner", "both", "base"])
def test_closing_of_a_pair_inside_its_callbacks(base: EventBase, whom: str) -> None:
    a, b = BufferEvent.pair(base)
    calls: list[str] = []

    def read(bev: BufferEvent) -> None:
        calls.append("read")
        if whom in ("itself", "both"):
            bev.close()
        if whom in ("partner", "both"):
            a.close()
        if whom == "base":
            base.close()

    b.setcb(read=read)
    a.setcb(write=lambda _bev: calls.append("write"))
    a.enable(EV_READ)
    b.enable(EV_READ)
    b.write(b"x")
    a.write(b"x")
    if whom == "base":
        base.dispatch()
    else:
        few_rounds(base)
    assert calls[0] == "read" or calls[:2] == ["write", "read"]
    assert b.closed == (whom != "partner")
    assert a.closed == (whom != "itself")


def test_flush_moves_past_the_high_watermark(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    b.setwatermark(EV_READ, 0, 10)
    b.enable(EV_READ)
    a.write(pattern(100))
    assert len(b.input) == 10
    assert b.flush(EV_READ, BEV_NORMAL) is False
    assert len(b.input) == 10
    assert b.flush(EV_READ, BEV_FLUSH) is True
    assert b.input == pattern(100)


def test_flush_moves_to_one_that_does_not_read(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    a.write(b"abc")
    assert a.flush(EV_WRITE, BEV_FLUSH) is True
    assert b.input == b"abc"


def test_flush_finished_tells_the_partner_the_end(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    seen = Seen(b)
    b.enable(EV_READ)
    a.write(b"last")
    a.flush(EV_WRITE, BEV_FINISHED)
    few_rounds(base)
    assert seen.data == b"last"
    assert seen.events == [BEV_EVENT_READING | BEV_EVENT_EOF]


def test_flush_without_a_partner(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    b.close()
    with pytest.raises(LibeventError, match="bufferevent_flush"):
        a.flush(EV_WRITE, BEV_FLUSH)


def test_flush_of_a_socket_does_nothing(wired: Wired) -> None:
    bev, peer = wired
    bev.write(b"x")
    assert bev.flush(EV_READ | EV_WRITE, BEV_FINISHED) is False
    assert received(peer) == b""


# ---- memoryviews of its buffers ----


def _peek(bev: BufferEvent) -> memoryview:
    return bev.input.peek()[0]


def _pullup(bev: BufferEvent) -> memoryview:
    return bev.input.pullup()


@pytest.mark.parametrize("look", [_peek, _pullup])
def test_a_view_of_the_input_pauses_reading(
    base: EventBase, wired: Wired, run_until: RunUntil, look: Callable[[BufferEvent], memoryview]
) -> None:
    bev, peer = wired
    views: list[memoryview] = []
    bev.setcb(read=lambda bev: views.append(look(bev)))
    peer.send(b"first")
    run_until(lambda: views)
    assert bev.enabled == EV_READ | EV_WRITE  # as the user has it
    peer.send(b"second")
    few_rounds(base)
    assert bytes(views[0]) == b"first"
    assert len(views) == 1
    assert len(bev.input) == 5
    with pytest.raises(BufferError):
        bev.read()
    with pytest.raises(BufferError):
        bev.input.drain(1)
    buffer = EvBuffer()
    with pytest.raises(BufferError):
        bev.read_buffer(buffer)
    bev.setcb()
    views.clear()
    gc.collect()
    run_until(lambda: bev.input == b"firstsecond")


def test_a_paused_reader_does_not_spin(base: EventBase, wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    peer.send(b"first")
    run_until(lambda: len(bev.input) == 5)
    views = bev.input.peek()
    fill(peer)
    assert cpu_of_a_loop(base, 0.2) < 0.1
    assert bytes(views[0]) == b"first"
    del views


def test_a_view_and_disable_and_enable(base: EventBase, wired: Wired, run_until: RunUntil) -> None:
    bev, peer = wired
    peer.send(b"first")
    run_until(lambda: len(bev.input) == 5)
    views = bev.input.peek()
    bev.disable(EV_READ)
    assert bev.enabled == EV_WRITE
    bev.enable(EV_READ)
    assert bev.enabled == EV_READ | EV_WRITE
    peer.send(b"second")
    few_rounds(base)
    assert len(bev.input) == 5
    bev.disable(EV_READ)
    del views
    few_rounds(base)
    assert len(bev.input) == 5  # the user has it disabled
    bev.enable(EV_READ)
    run_until(lambda: bev.input == b"firstsecond")


def test_a_view_of_the_output_pauses_writing(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    bev.write(b"first")
    views = bev.output.peek()
    assert bev.enabled == EV_READ | EV_WRITE
    few_rounds(base)
    assert received(peer) == b""
    with pytest.raises(BufferError):
        bev.write(b"second")
    with pytest.raises(BufferError):
        bev.write_buffer(EvBuffer(b"second"))
    assert bytes(views[0]) == b"first"
    del views
    bev.write(b"second")
    run_until(lambda: not bev.output)
    assert received(peer) == b"firstsecond"


def test_a_view_of_a_pairs_input_pauses_the_transfer(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    b.enable(EV_READ)
    a.write(b"first")
    views = b.input.peek()
    a.write(b"second")
    assert len(b.input) == 5
    assert bytes(views[0]) == b"first"
    del views
    base.loop(EVLOOP_NONBLOCK)
    assert b.input == b"firstsecond"


@pytest.mark.parametrize("buffer", ["input", "output"])
@pytest.mark.parametrize("how", ["close", "base.close", "in a callback"])
def test_a_view_outlives_its_bufferevent(buffer: str, how: str) -> None:
    out = run_checked(
        f"""
import gc, socket
from pylibevent import *
base = EventBase()
a, b = socket.socketpair()
bev = BufferEvent.socket(base, a)
bev.disable(EV_WRITE)
bev.enable(EV_READ)
data = bytes(range(256)) * 100
b.send(data)
bev.write(data)
while len(bev.input) < len(data):
    base.loop(EVLOOP_ONCE)
buffer = bev.{buffer}
views = buffer.peek()
how = {how!r}
if how == "close":
    bev.close()
elif how == "base.close":
    base.close()
else:
    bev.setcb(event=lambda bev, what: bev.close())
    bev.trigger_event(BEV_EVENT_EOF)
assert bev.closed and buffer.closed
if not base.closed:
    for _ in range(5):
        base.loop(EVLOOP_NONBLOCK)
    base.close()
del bev, buffer
gc.collect()
others = [EvBuffer(bytes(4000)) for _ in range(50)]
assert b"".join(views) == data
del views
gc.collect()
b.close()
print("fine")
""",
        MALLOC_PERTURB_="165",
    )
    assert out == "fine\n"


def test_close_after_write_with_a_view_of_the_output_out() -> None:
    """Either it is refused, or it waits until the view is gone."""
    out = run_checked(
        """
import gc, socket
from pylibevent import *
base = EventBase()
a, b = socket.socketpair()
b.setblocking(False)
bev = BufferEvent.socket(base, a)
data = bytes(range(256)) * 100
bev.write(data)
views = bev.output.peek()
try:
    bev.close_after_write()
except BufferError:
    del views
    bev.close_after_write()
else:
    for _ in range(20):
        base.loop(EVLOOP_NONBLOCK)
    assert b"".join(views) == data, "changed under the view"
    del views
gc.collect()
base.dispatch()
assert bev.closed
got = b""
while part := b.recv(100000):
    got += part
assert got == data
b.close()
base.close()
print("fine")
""",
        MALLOC_PERTURB_="165",
    )
    assert out == "fine\n"


@pytest.mark.parametrize("whose", ["partner.output", "partner.input", "own.output", "own.input"])
@pytest.mark.parametrize("what", ["EV_READ", "EV_WRITE"])
def test_flush_does_not_move_what_a_view_shows(whose: str, what: str) -> None:
    out = run_checked(
        f"""
import gc
from pylibevent import *
base = EventBase()
own, partner = BufferEvent.pair(base)
data = bytes(range(256)) * 100
own.enable(EV_READ)
partner.enable(EV_READ)
own.write(data)
partner.write(data)
own.disable(EV_READ)
partner.disable(EV_READ)
own.write(data)
partner.write(data)
views = {whose}.peek()
try:
    own.flush({what}, BEV_FLUSH)
except BufferError:
    pass
for bev in (own, partner):
    try:
        bev.read()
    except BufferError:
        pass
others = [EvBuffer(bytes(4000)) for _ in range(50)]
assert b"".join(views) == data, "changed under the view"
del views
gc.collect()
base.close()
print("fine")
""",
        MALLOC_PERTURB_="165",
    )
    assert out == "fine\n"


def test_a_view_let_go_of_in_another_thread_resumes_reading(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired
    peer.send(b"first")
    run_until(lambda: len(bev.input) == 5)
    views = bev.input.peek()
    peer.send(b"second")

    def let_go() -> None:
        while not base.running:
            time.sleep(0.001)
        views.clear()

    thread = threading.Thread(target=let_go)
    thread.start()
    run_until(lambda: bev.input == b"firstsecond" if not views else False)
    thread.join()


# ---- exceptions ----


@pytest.mark.parametrize("kind", ["read", "write", "event"])
def test_an_exception_leaves_dispatch_and_dispatch_goes_on(
    base: EventBase, wired: Wired, run_until: RunUntil, kind: str
) -> None:
    bev, peer = wired
    error = KeyError("mine")
    fail = True
    calls: list[str] = []

    def callback(bev: BufferEvent, *_args: object) -> None:
        if fail:
            raise error
        calls.append(kind)

    bev.setcb(**{kind: callback})
    poke: dict[str, Callable[[], object]] = {
        "read": lambda: peer.send(b"x"),
        "write": lambda: bev.write(b"x"),
        "event": lambda: bev.trigger_event(BEV_EVENT_CONNECTED, BEV_TRIG_DEFER_CALLBACKS),
    }
    poke[kind]()
    with pytest.raises(KeyError) as caught:
        run_until(lambda: False)
    assert caught.value is error
    assert "callback" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert not bev.closed
    fail = False
    poke[kind]()
    run_until(lambda: calls)
    if kind == "read":
        assert bev.read() == b"xx"


@pytest.mark.parametrize("kind", ["read", "write", "event"])
def test_the_exception_handler_gets_the_exception_and_the_bufferevent(
    base: EventBase, wired: Wired, run_until: RunUntil, kind: str
) -> None:
    bev, peer = wired
    error = KeyError("mine")
    handled: list[tuple[Exception, Any]] = []

    def callback(bev: BufferEvent, *_args: object) -> None:
        raise error

    def handler(exception: Exception, source: Any) -> None:
        handled.append((exception, source))
        source.close()

    base.exception_handler = handler
    bev.setcb(**{kind: callback})
    bev.write(b"x")
    peer.send(b"x")
    peer.shutdown(socket.SHUT_WR)
    run_until(lambda: handled)
    assert handled == [(error, bev)]
    assert bev.closed


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_passes_by_the_exception_handler(
    base: EventBase, wired: Wired, run_until: RunUntil, kind: type[BaseException]
) -> None:
    bev, peer = wired

    def callback(_bev: BufferEvent) -> None:
        raise kind

    base.exception_handler = lambda _exception, _source: None
    bev.setcb(read=callback)
    peer.send(b"x")
    with pytest.raises(kind):
        run_until(lambda: False)


@pytest.mark.parametrize("kind", ["read", "event"])
def test_an_exception_in_a_triggered_callback_leaves_the_trigger(wired: Wired, kind: str) -> None:
    bev, _ = wired
    error = KeyError("mine")

    def callback(_bev: BufferEvent, *_args: object) -> None:
        raise error

    bev.setcb(**{kind: callback})
    trigger: Action = lambda bev: bev.trigger(EV_READ)  # noqa: E731
    if kind == "event":
        trigger = lambda bev: bev.trigger_event(BEV_EVENT_EOF)  # noqa: E731
    with pytest.raises(KeyError) as caught:
        trigger(bev)
    assert caught.value is error


def test_an_exception_after_close_in_the_same_callback(
    base: EventBase, wired: Wired, run_until: RunUntil
) -> None:
    bev, peer = wired

    def callback(bev: BufferEvent) -> None:
        bev.close()
        raise KeyError("after close")

    bev.setcb(read=callback)
    peer.send(b"x")
    with pytest.raises(KeyError):
        run_until(lambda: False)
    assert at_eof(peer)
    few_rounds(base)


def test_an_exception_of_one_loses_nothing_of_the_others(base: EventBase) -> None:
    peers = []
    got: list[bytes] = []
    failed: list[BufferEvent] = []

    def read(bev: BufferEvent) -> None:
        got.append(bev.read())
        failed.append(bev)
        raise KeyError(len(failed))

    for i in range(10):
        a, b = socket.socketpair()
        bev = BufferEvent.socket(base, a)
        bev.setcb(read=read)
        bev.enable(EV_READ)
        b.send(b"%d" % i)
        peers.append(b)
    for i in range(10):  # all are ready; each dispatch raises the next one
        with pytest.raises(KeyError) as caught:
            base.dispatch()
        assert caught.value.args == (i + 1,)
    assert sorted(got) == [b"%d" % i for i in range(10)]
    for peer in peers:
        peer.close()


def test_exceptions_of_deferred_callbacks_leave_dispatch_too(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    got: list[bytes] = []

    def read(bev: BufferEvent) -> None:
        got.append(bev.read())
        raise KeyError("mine")

    b.setcb(read=read)
    b.enable(EV_READ)
    for i in range(3):
        a.write(b"%d" % i)
        with pytest.raises(KeyError):
            base.dispatch()
    assert got == [b"0", b"1", b"2"]


# ---- the interrupt that comes in between ----


def test_an_interrupt_on_the_way_to_a_callback_loses_nothing() -> None:
    """The process is stopped while data and then SIGINT arrive; when it goes on, the loop finds
    the data first, and the interrupt hits before the user's callback has begun."""
    code = """
import socket, sys
from pylibevent import *
base = EventBase()
a = socket.socket(fileno=int(sys.argv[1]))
bev = BufferEvent.socket(base, a)
got = b""
def read(bev):
    global got
    got += bev.read()
    if got.endswith(b"."):
        base.loopexit()
bev.setcb(read=read)
bev.enable(EV_READ)
print("ready", flush=True)
interrupts = 0
while not got.endswith(b"."):
    try:
        base.dispatch()
    except KeyboardInterrupt:
        interrupts += 1
        print("interrupted", flush=True)
print(got.decode(), interrupts, flush=True)
base.close()
"""
    _interrupted(code, b"hello.", "hello. 1")


def test_an_interrupt_on_the_way_to_the_end_of_close_after_write_loses_nothing() -> None:
    code = """
import socket, sys
from pylibevent import *
base = EventBase()
a = socket.socket(fileno=int(sys.argv[1]))
bev = BufferEvent.socket(base, a)
bev.write(bytes(1_000_000))
bev.close_after_write()
print("ready", flush=True)
interrupts = 0
while not bev.closed:
    try:
        if base.dispatch():
            break
    except KeyboardInterrupt:
        interrupts += 1
        print("interrupted", flush=True)
print(bev.closed, interrupts, flush=True)
base.close()
"""
    _interrupted(code, None, "True 1")


def _interrupted(code: str, data: bytes | None, expected: str) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            theirs.close()
            _wait_for_state(process.pid, "S")
            process.send_signal(signal.SIGSTOP)
            _wait_for_state(process.pid, "T")
            if data is not None:
                ours.send(data)
            else:
                ours.setblocking(False)
                received(ours)
                ours.setblocking(True)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            if data is None:
                while ours.recv(1 << 20):
                    pass
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert err == ""
    assert process.returncode == 0
    assert out.splitlines() == ["interrupted", expected]


def _wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state:
            return
        time.sleep(0.005)
    pytest.fail(f"process {pid} did not get to {state}")


# ---- wrong types and values ----


WRONG: list[tuple[str, Action, type[Exception]]] = [
    ("enable str", lambda bev: bev.enable("x"), TypeError),  # type: ignore[arg-type]
    ("enable digits", lambda bev: bev.enable("2"), TypeError),  # type: ignore[arg-type]
    ("enable float", lambda bev: bev.enable(2.0), TypeError),  # type: ignore[arg-type]
    ("enable None", lambda bev: bev.enable(None), TypeError),  # type: ignore[arg-type]
    ("enable unknown", lambda bev: bev.enable(64), ValueError),
    ("enable negative", lambda bev: bev.enable(-1), ValueError),
    ("enable huge", lambda bev: bev.enable(1 << 40), ValueError),
    ("disable str", lambda bev: bev.disable("2"), TypeError),  # type: ignore[arg-type]
    ("disable unknown", lambda bev: bev.disable(64), ValueError),
    ("disable huge", lambda bev: bev.disable(1 << 70), ValueError),
    ("trigger nothing", lambda bev: bev.trigger(0), ValueError),
    ("trigger str", lambda bev: bev.trigger("2"), TypeError),  # type: ignore[arg-type]
    ("trigger unknown", lambda bev: bev.trigger(1), ValueError),
    ("trigger huge", lambda bev: bev.trigger(1 << 40), ValueError),
    ("trigger options", lambda bev: bev.trigger(EV_READ, 1), ValueError),
    ("trigger_event nothing", lambda bev: bev.trigger_event(0), ValueError),
    ("trigger_event huge", lambda bev: bev.trigger_event(1 << 40), ValueError),
    ("trigger_event float", lambda bev: bev.trigger_event(1.5), TypeError),  # type: ignore[arg-type]
    ("trigger_event options", lambda bev: bev.trigger_event(1, 1), ValueError),
    ("setcb", lambda bev: bev.setcb("f"), TypeError),  # type: ignore[arg-type]
    ("setcb event", lambda bev: bev.setcb(event=1), TypeError),  # type: ignore[arg-type]
    ("timeouts str", lambda bev: bev.set_timeouts("1"), TypeError),  # type: ignore[arg-type]
    ("timeouts negative", lambda bev: bev.set_timeouts(-1), ValueError),
    ("timeouts nan", lambda bev: bev.set_timeouts(float("nan")), ValueError),
    ("timeouts huge", lambda bev: bev.set_timeouts(write=1e300), ValueError),
    ("setwatermark what", lambda bev: bev.setwatermark(0), ValueError),
    ("setwatermark str", lambda bev: bev.setwatermark("2"), TypeError),  # type: ignore[arg-type]
    ("setwatermark low", lambda bev: bev.setwatermark(EV_READ, -1), ValueError),
    ("setwatermark high", lambda bev: bev.setwatermark(EV_READ, 0, -1), ValueError),
    ("setwatermark huge", lambda bev: bev.setwatermark(EV_READ, 0, 1 << 70), ValueError),
    ("setwatermark float", lambda bev: bev.setwatermark(EV_READ, 1.5), TypeError),  # type: ignore[arg-type]
    ("getwatermark both", lambda bev: bev.getwatermark(EV_READ | EV_WRITE), ValueError),
    ("getwatermark huge", lambda bev: bev.getwatermark(1 << 40), ValueError),
    ("write str", lambda bev: bev.write("text"), TypeError),  # type: ignore[arg-type]
    ("write int", lambda bev: bev.write(5), TypeError),  # type: ignore[arg-type]
    ("write None", lambda bev: bev.write(None), TypeError),  # type: ignore[arg-type]
    ("write_buffer bytes", lambda bev: bev.write_buffer(b"x"), TypeError),  # type: ignore[arg-type]
    ("read_buffer bytearray", lambda bev: bev.read_buffer(bytearray()), TypeError),  # type: ignore[arg-type]
    ("read negative", lambda bev: bev.read(-2), ValueError),
    ("read str", lambda bev: bev.read("1"), TypeError),  # type: ignore[arg-type]
    ("flush what", lambda bev: bev.flush(64), ValueError),
    ("flush huge", lambda bev: bev.flush(1 << 40), ValueError),
    ("flush mode", lambda bev: bev.flush(EV_READ, 7), ValueError),
    ("flush mode str", lambda bev: bev.flush(EV_READ, "x"), TypeError),  # type: ignore[arg-type]
    ("fd str", lambda bev: setattr(bev, "fd", "1"), TypeError),
    ("fd huge", lambda bev: setattr(bev, "fd", 1 << 40), ValueError),
    ("priority str", lambda bev: setattr(bev, "priority", "0"), TypeError),
    ("connect None", lambda bev: bev.connect(None), TypeError),
    ("connect int", lambda bev: bev.connect(80), TypeError),
    ("connect one", lambda bev: bev.connect(("127.0.0.1",)), TypeError),
    ("connect port str", lambda bev: bev.connect(("127.0.0.1", "80")), TypeError),
    ("connect port", lambda bev: bev.connect(("127.0.0.1", 65536)), ValueError),
    ("connect host", lambda bev: bev.connect((1, 80)), TypeError),
    ("connect no path", lambda bev: bev.connect(""), ValueError),
    ("connect long path", lambda bev: bev.connect("x" * 200), ValueError),
    ("connect_hostname bytes", lambda bev: bev.connect_hostname(b"x", 80), TypeError),  # type: ignore[arg-type]
    ("connect_hostname None", lambda bev: bev.connect_hostname(None, 80), TypeError),  # type: ignore[arg-type]
    ("connect_hostname port", lambda bev: bev.connect_hostname("127.0.0.1", 0), ValueError),
    ("connect_hostname port", lambda bev: bev.connect_hostname("127.0.0.1", 1 << 16), ValueError),
    ("connect_hostname port str", lambda bev: bev.connect_hostname("::1", "80"), TypeError),  # type: ignore[arg-type]
    ("connect_hostname family", lambda bev: bev.connect_hostname("::1", 80, 64), ValueError),
    ("connect_hostname NUL", lambda bev: bev.connect_hostname("a\0b", 80), ValueError),
]


@pytest.mark.parametrize(
    ("call", "error"),
    [(call, error) for _, call, error in WRONG],
    ids=[name for name, _, _ in WRONG],
)
def test_wrong_types_and_values(base: EventBase, call: Action, error: type[Exception]) -> None:
    bev = BufferEvent.socket(base)
    with pytest.raises(error):
        call(bev)
    assert not bev.closed


def test_socket_options_of_the_wrong_type(base: EventBase) -> None:
    for options in ("1", 1.0, None):
        with pytest.raises(TypeError):
            BufferEvent.socket(base, options=options)  # type: ignore[arg-type]


# ---- the raw layer ----


def test_ptr_is_the_c_struct(wired: Wired) -> None:
    bev, _ = wired
    assert lib.bufferevent_getfd(bev.ptr) == bev.fd
    assert lib.bufferevent_get_base(bev.ptr) == bev.base.ptr


# ---- many ----


@pytest.mark.slow
@measures_memory
def test_opening_and_closing_many_leaves_no_memory_behind() -> None:
    out = run_checked(
        """
import gc, resource, socket
from pylibevent import *

def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

base = EventBase()
def one_round():
    for _ in range(500):
        a, b = socket.socketpair()
        with b:
            bev = BufferEvent.socket(base, a)
            bev.setcb(read=lambda bev: bev.close(), event=lambda bev, what: bev.close())
            bev.enable(EV_READ)
            bev.write(bytes(1000))
            bev.input, bev.output
            b.send(bytes(1000))
            base.loop(EVLOOP_NONBLOCK)
            assert bev.closed
for _ in range(4):
    one_round()
gc.collect()
before = rss()
for _ in range(20):
    one_round()
gc.collect()
base.close()
print(rss() - before)
"""
    )
    assert int(out) < 2_000_000  # 10,000 of them: less than 200 bytes each


@pytest.mark.slow
@measures_memory
def test_closing_without_running_the_loop_leaves_no_memory_behind_once_the_base_is_closed() -> None:
    out = run_checked(
        """
import gc, resource
from pylibevent import *

def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

def one_round():
    with EventBase() as base:
        for _ in range(500):
            bev = BufferEvent.socket(base)
            bev.write(bytes(1000))
            bev.close()
            a, b = BufferEvent.pair(base)
            a.write(bytes(1000))
            a.close()
            b.close()
for _ in range(4):
    one_round()
gc.collect()
before = rss()
for _ in range(60):
    one_round()
gc.collect()
print(rss() - before)
"""
    )
    # A round takes 2.5 MB, which may be back with the system or not; 60 of them make 90,000
    # bufferevents, so this is less than 50 bytes each.
    assert int(out) < 4_000_000
