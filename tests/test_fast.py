"""Sockets the short way (_cffi/src/fast.c): whatever is done in fewer steps means what libevent
means by it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from common import few_rounds, received
from conftest import RunUntil
from processes import fork, run_script, wait_for

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_READING,
    BEV_EVENT_TIMEOUT,
    BEV_EVENT_WRITING,
    BEV_NEED_MORE,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    EV_PERSIST,
    EV_READ,
    EV_WRITE,
    EVBUFFER_EOL_LF,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    FlushMode,
    LibeventError,
    Listener,
    RateLimitGroup,
    Signal,
    Timer,
    TokenBucketConfig,
    lib,
)

CLOSE = BEV_OPT_CLOSE_ON_FREE
OPTIONS = {
    "": CLOSE,
    "deferred": CLOSE | BEV_OPT_DEFER_CALLBACKS,
    "threadsafe": CLOSE | BEV_OPT_THREADSAFE,
    "unlocked": CLOSE | BEV_OPT_THREADSAFE | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
}
ONE_PASS = EVLOOP_ONCE | EVLOOP_NONBLOCK
FOREVER = 3600.0  # a tick that no test sees the end of
BIG = bytes(i * 31 % 251 for i in range(1 << 20)) * 4  # more than a socket takes at once
AT_ONCE = 1 << 18  # so much is read in one go, and no more


class Wire:
    """A bufferevent that reads, and the socket at its other end."""

    def __init__(self, base: EventBase, options: int = CLOSE, tcp: bool = False) -> None:
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self.peer = socket.create_connection(server.getsockname())
                mine, _ = server.accept()
        else:
            mine, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.base = base
        self.bev = BufferEvent.socket(base, mine, options)
        self.calls: list[str] = []
        self.events: list[int] = []
        self.errors: list[int | None] = []
        self.data = b""
        self.on_read: Callable[[BufferEvent], object] | None = None
        self.bev.setcb(self.read, None, self.event)
        self.bev.enable(EV_READ)

    def read(self, bev: BufferEvent) -> None:
        self.calls.append("read")
        self.data += bev.read()
        if self.on_read is not None:
            self.on_read(bev)
        if not bev.closed:
            self.calls.append("read is over")

    def watch_writes(self) -> None:
        self.bev.setcb(self.read, lambda _bev: self.calls.append("write"), self.event)

    def event(self, bev: BufferEvent, what: int) -> None:
        self.calls.append("event")
        self.events.append(what)
        error = bev.error
        self.errors.append(error.errno if isinstance(error, OSError) else None)

    def ask(self, action: Callable[[BufferEvent], object], rounds: int = 1) -> None:
        """Runs action(bev) in the read callback, and the loop for so many rounds."""
        self.on_read = action
        self.peer.send(b"?")
        for _ in range(rounds):
            self.base.loop(ONE_PASS)
        self.on_read = None

    def fill(self) -> int:
        """Sends until the kernel takes no more."""
        sent = 0
        with socket.socket(fileno=os.dup(self.bev.fd)) as same:
            while True:
                try:
                    sent += same.send(b"f" * 65536)
                except BlockingIOError:
                    return sent

    def reset(self) -> None:
        """Closes the peer so that this side gets ECONNRESET."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


MakeWire = Callable[..., Wire]


@pytest.fixture
def wire(base: EventBase) -> Iterator[MakeWire]:
    """wire(options, tcp) makes one more."""
    wires: list[Wire] = []

    def make(options: int = CLOSE, tcp: bool = False, on: EventBase = base) -> Wire:
        wires.append(Wire(on, options, tcp))
        return wires[-1]

    yield make
    for one in wires:
        one.peer.close()


@pytest.fixture
def wired(wire: MakeWire) -> Wire:
    return wire()


@pytest.fixture
def tcp(wire: MakeWire) -> Wire:
    return wire(tcp=True)


Gets = Callable[[socket.socket, int], bytes]


@pytest.fixture
def gets(base: EventBase, run_until: RunUntil) -> Gets:
    """gets(peer, n) runs the loop until the peer has got n bytes, and a little longer."""

    def gets(peer: socket.socket, n: int) -> bytes:
        data = bytearray()
        with Event(base, peer, EV_READ | EV_PERSIST, lambda *_: data.extend(received(peer))) as ev:
            ev.add()
            run_until(lambda: len(data) >= n)
        few_rounds(base, 3)
        return bytes(data) + received(peer)

    return gets


# ---- by all means, from everywhere ----


def write_buffer(bev: BufferEvent, data: bytes) -> None:
    bev.write_buffer(EvBuffer(data))


def add_file(bev: BufferEvent, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        bev.output.add_file(file)


def reserve(bev: BufferEvent, data: bytes) -> None:
    room = bev.output.reserve_space(len(data), 1)[0]
    room[: len(data)] = data
    bev.output.commit_space(len(data))


def put_iovec(bev: BufferEvent, data: bytes) -> None:
    bev.output.add_iovec([data[:1], data[1:]])


MEANS: dict[str, Callable[[BufferEvent, bytes], object]] = {
    "write": BufferEvent.write,
    "write_buffer": write_buffer,
    "add": lambda bev, data: bev.output.add(data),
    "add_printf": lambda bev, data: (
        bev.output.add_printf("%s", data.decode("latin-1"))
        if data.isascii()
        else bev.output.add(data)
    ),
    "add_reference": lambda bev, data: bev.output.add_reference(data),
    "add_buffer": lambda bev, data: bev.output.add_buffer(EvBuffer(data)),
    "add_buffer_reference": lambda bev, data: bev.output.add_buffer_reference(EvBuffer(data)),
    "remove_buffer": lambda bev, data: EvBuffer(data).remove_buffer(bev.output, len(data)),
    "add_iovec": put_iovec,
    "add_file": add_file,
    "reserve": reserve,
}


@pytest.mark.parametrize("means", [name for name in MEANS if name != "reserve"])
def test_what_a_callback_adds_is_at_the_peer_when_it_is_over(wired: Wire, means: str) -> None:
    wired.ask(lambda bev: MEANS[means](bev, b"an answer"))
    assert received(wired.peer) == b"an answer"


def test_the_order_is_that_of_the_calls(wired: Wire) -> None:
    def answer(bev: BufferEvent) -> None:
        for i, means in enumerate(MEANS.values()):
            means(bev, b"%d," % i)
            bev.write(b"w%d," % i)
        bev.write(b"last")

    wired.ask(answer, 5)
    parts = b"".join(b"%d,w%d," % (i, i) for i in range(len(MEANS)))
    assert received(wired.peer) == parts + b"last"


@pytest.mark.parametrize(
    "change",
    [
        lambda buf: buf.prepend(b"x"),
        lambda buf: buf.prepend_buffer(EvBuffer(b"x")),
        lambda buf: buf.drain(1),
        lambda buf: buf.remove(1),
        lambda buf: buf.pullup(99),
        lambda buf: buf.add_file(0, 5, -7),
    ],
    ids=["prepend", "prepend_buffer", "drain", "remove", "pullup", "add_file"],
)
def test_a_call_that_fails_changes_nothing(wired: Wire, change: Any) -> None:
    """libevent has the front of an output frozen."""

    def answer(bev: BufferEvent) -> None:
        bev.write(b"hello ")
        with pytest.raises((LibeventError, ValueError, OSError)):
            change(bev.output)
        assert bev.enabled == EV_READ | EV_WRITE
        bev.write(b"world")

    wired.ask(answer)
    assert received(wired.peer) == b"hello world"


def test_many_small_writes_and_a_large_one(wired: Wire, gets: Gets) -> None:
    parts = [bytes([i % 256]) * (i * 7 % 900) for i in range(1000)]
    parts.insert(500, BIG[:70000])

    def answer(bev: BufferEvent) -> None:
        for part in parts:
            bev.write(part)

    wired.ask(answer)
    assert gets(wired.peer, len(b"".join(parts))) == b"".join(parts)


def test_writing_nothing_sends_nothing(wired: Wire) -> None:
    wired.ask(lambda bev: bev.write(b""))
    assert (received(wired.peer), wired.calls) == (b"", ["read", "read is over"])


def test_nothing_written_by_one_that_is_gone(wire: MakeWire) -> None:
    one, other = wire(), wire()

    def nothing(bev: BufferEvent) -> None:
        bev.write(b"")
        bev.close()

    one.ask(nothing)
    del one.bev
    other.ask(lambda bev: bev.write(b"something"))
    assert received(other.peer) == b"something"


def test_a_timer_writes(base: EventBase, wired: Wire) -> None:
    Timer(base, wired.bev.write, b"tick").add(0)
    base.loop(ONE_PASS)
    assert received(wired.peer) == b"tick"


def test_an_event_and_once_write(base: EventBase, wired: Wire) -> None:
    Event(base, -1, EV_PERSIST, lambda *_: wired.bev.write(b"event ")).active(EV_READ)
    base.once(-1, EV_READ, lambda *_: wired.bev.write(b"once"), timeout=0)
    few_rounds(base, 2)
    assert received(wired.peer) == b"event once"


def test_an_accept_callback_writes(base: EventBase, wired: Wire) -> None:
    def on_accept(_listener: Listener, fd: int, _address: Any) -> None:
        BufferEvent.socket(base, fd).write(b"welcome")
        wired.bev.write(b"one more")

    with (
        Listener.bind(base, on_accept, ("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.address) as client,
    ):
        base.loop(ONE_PASS)
        assert client.recv(100, socket.MSG_DONTWAIT) == b"welcome"
    assert received(wired.peer) == b"one more"


def test_a_signal_event_writes(base: EventBase, wired: Wire, run_until: RunUntil) -> None:
    calls = []

    def on_signal(_signum: int) -> None:
        wired.bev.write(b"signal")
        calls.append(1)

    with Signal(base, signal.SIGUSR1, on_signal) as event:
        event.add()
        os.kill(os.getpid(), signal.SIGUSR1)
        run_until(lambda: calls)
    assert received(wired.peer) == b"signal"


def test_a_signal_handler_of_pythons_writes(wired: Wire, gets: Gets) -> None:
    calls = []

    def handler(*_: Any) -> None:
        wired.bev.write(b"handler")
        calls.append(1)

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        timer = Timer(wired.base, os.kill, os.getpid(), signal.SIGUSR1)
        timer.add(0)
        assert gets(wired.peer, 7) == b"handler"
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_the_event_and_the_write_callback_write(wired: Wire, gets: Gets) -> None:
    def on_write(bev: BufferEvent) -> None:
        bev.setcb(event=lambda bev, _what: bev.write(b"bye"))
        bev.write(b"more,")

    wired.bev.setcb(None, on_write, None)
    wired.bev.write(b"out,")
    assert gets(wired.peer, 9) == b"out,more,"
    wired.peer.shutdown(socket.SHUT_WR)
    assert gets(wired.peer, 3) == b"bye"


def test_a_callback_of_the_input_writes(base: EventBase, wired: Wire) -> None:
    def on_change(_buf: EvBuffer, _size: int, added: int, _gone: int) -> None:
        if added:
            wired.bev.write(b"from it")

    wired.bev.input.add_cb(on_change)
    wired.peer.send(b"x")
    base.loop(ONE_PASS)
    assert received(wired.peer) == b"from it"


def test_before_the_loop_runs_libevent_writes(base: EventBase, wired: Wire) -> None:
    wired.bev.write(b"early")
    assert received(wired.peer) == b""
    few_rounds(base, 2)
    assert received(wired.peer) == b"early"


def test_another_connection_gets_what_a_callback_writes_to_it(wire: MakeWire) -> None:
    one, other = wire(), wire()
    one.ask(lambda _bev: other.bev.write(b"from one"))
    assert received(other.peer) == b"from one"
    assert received(one.peer) == b""


def test_three_connections_in_turn(wire: MakeWire) -> None:
    wires = [wire() for _ in range(3)]

    def answer(_bev: BufferEvent) -> None:
        for i in range(30):
            wires[i % 3].bev.write(b"%d," % i)

    wires[0].ask(answer)
    for i, one in enumerate(wires):
        assert received(one.peer) == b"".join(b"%d," % n for n in range(i, 30, 3))


def test_what_is_full_does_not_hold_up_the_others(wire: MakeWire) -> None:
    one, full = wire(), wire()
    full.fill()

    def answer(bev: BufferEvent) -> None:
        full.bev.write(b"waits")
        bev.write(b"goes")

    one.ask(answer)
    assert received(one.peer) == b"goes"
    assert bytes(full.bev.output) == b"waits"


# ---- what there is in the output ----


def test_the_output_shows_what_was_written(wired: Wire) -> None:
    seen: list[Any] = []

    def answer(bev: BufferEvent) -> None:
        for _ in range(2):
            bev.write(b"abc")
            seen.append((len(bev.output), bytes(bev.output)))
        seen.append(b"".join(bytes(view) for view in bev.output.peek()))
        seen.append(b"ca" in bev.output)
        seen.append(bev.output == b"abcabc")

    wired.ask(answer, 5)
    assert seen == [(3, b"abc"), (6, b"abcabc"), b"abcabc", True, True]
    assert received(wired.peer) == b"abcabc"


def test_a_view_of_the_output_keeps_it_until_it_is_released(wired: Wire, gets: Gets) -> None:
    views: list[memoryview] = []

    def answer(bev: BufferEvent) -> None:
        bev.write(b"look at me")
        views.extend(bev.output.peek())
        with pytest.raises(BufferError):
            bev.write(b"more")
        assert bev.enabled == EV_READ | EV_WRITE

    wired.ask(answer, 5)
    assert (received(wired.peer), bytes(views[0])) == (b"", b"look at me")
    assert wired.bev.enabled == EV_READ | EV_WRITE
    views.pop().release()
    assert gets(wired.peer, 10) == b"look at me"


def test_a_view_released_in_the_callback_keeps_nothing(wired: Wire, gets: Gets) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"one,")
        bev.output.pullup().release()
        bev.write(b"two")

    wired.ask(answer)
    assert gets(wired.peer, 7) == b"one,two"


def test_a_view_outlives_the_close(wired: Wire) -> None:
    views: list[memoryview] = []

    def answer(bev: BufferEvent) -> None:
        bev.write(b"unsent")
        views.extend(bev.output.peek())
        bev.close()

    wired.ask(answer, 3)
    assert bytes(views[0]) == b"unsent"
    assert received(wired.peer) == b""
    views.clear()


def test_a_callback_of_the_output_sees_what_is_added_and_what_goes(wired: Wire) -> None:
    seen: list[Any] = []
    wired.bev.output.add_cb(lambda buf, *numbers: seen.append((numbers, bytes(buf))))
    wired.ask(lambda bev: bev.write(b"abc"))
    assert seen == [((0, 3, 0), b"abc"), ((3, 0, 3), b"")]
    assert received(wired.peer) == b"abc"


# ---- enabled ----


def test_enabled_is_what_the_user_enabled(wired: Wire) -> None:
    seen: list[int] = []

    def answer(bev: BufferEvent) -> None:
        seen.append(bev.enabled)
        bev.write(b"x")
        seen.append(bev.enabled)
        bev.output.add(b"y")
        seen.append(bev.enabled)
        bev.disable(EV_WRITE)
        seen.append(bev.enabled)
        bev.write(b"z")
        seen.append(bev.enabled)
        bev.enable(EV_WRITE)
        seen.append(bev.enabled)

    wired.ask(answer, 3)
    both = EV_READ | EV_WRITE
    assert seen == [both, both, both, EV_READ, EV_READ, both]
    assert wired.bev.enabled == both
    assert received(wired.peer) == b"xyz"


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_enabled_in_a_callback_of_the_output(wired: Wire, means: Any) -> None:
    seen: list[int] = []
    wired.bev.output.add_cb(lambda *_: seen.append(wired.bev.enabled))
    wired.ask(lambda bev: means(bev, b"x"))
    assert seen
    assert set(seen) == {EV_READ | EV_WRITE}


def test_disabled_before_the_callback_nothing_goes_out_until_it_is_enabled(
    base: EventBase, wired: Wire, gets: Gets
) -> None:
    wired.bev.disable(EV_WRITE)
    wired.ask(lambda bev: bev.write(b"held"), 5)
    assert (received(wired.peer), bytes(wired.bev.output)) == (b"", b"held")
    wired.bev.enable(EV_WRITE)
    assert gets(wired.peer, 4) == b"held"


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_disabled_after_the_write_nothing_goes_out(wired: Wire, gets: Gets, means: Any) -> None:
    def answer(bev: BufferEvent) -> None:
        means(bev, b"held")
        bev.disable(EV_WRITE)

    wired.ask(answer, 5)
    assert (received(wired.peer), len(wired.bev.output)) == (b"", 4)
    assert wired.bev.enabled == EV_READ
    wired.ask(lambda bev: bev.enable(EV_WRITE))
    assert gets(wired.peer, 4) == b"held"


@pytest.mark.parametrize("n", [16384, 16385, 100000])
def test_disabled_after_a_large_write_nothing_goes_out(gets: Gets, wired: Wire, n: int) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(BIG[:n])
        assert (len(bev.output), bytes(bev.output)) == (n, BIG[:n])
        bev.disable(EV_WRITE)

    wired.ask(answer, 5)
    assert received(wired.peer) == b""
    wired.bev.enable(EV_WRITE)
    assert gets(wired.peer, n) == BIG[:n]


def test_disabled_in_a_callback_of_the_output_nothing_goes_out(wired: Wire, gets: Gets) -> None:
    wired.bev.output.add_cb(lambda *_: wired.bev.disable(EV_WRITE))
    wired.ask(lambda bev: bev.write(b"held"), 5)
    assert (received(wired.peer), bytes(wired.bev.output)) == (b"", b"held")
    assert wired.bev.enabled == EV_READ
    wired.bev.enable(EV_WRITE)
    assert gets(wired.peer, 4) == b"held"


def test_enabled_in_a_callback_of_the_output_it_goes_out(wired: Wire, gets: Gets) -> None:
    wired.bev.disable(EV_WRITE)
    wired.bev.output.add_cb(lambda *_: wired.bev.enable(EV_WRITE))
    wired.ask(lambda bev: bev.write(b"goes"))
    assert gets(wired.peer, 4) == b"goes"


def test_disabled_by_another_connections_callback(wire: MakeWire) -> None:
    one, other = wire(), wire()

    def answer(bev: BufferEvent) -> None:
        other.bev.write(b"held")
        bev.write(b"goes")
        other.bev.disable(EV_WRITE)

    one.ask(answer, 5)
    assert received(one.peer) == b"goes"
    assert (received(other.peer), bytes(other.bev.output)) == (b"", b"held")


def test_disabled_while_a_part_goes_out_the_rest_stays(wired: Wire, gets: Gets) -> None:
    """In a callback of the output, from the first byte that is gone."""

    def on_change(_buf: EvBuffer, _size: int, _added: int, gone: int) -> None:
        if gone:
            wired.bev.disable(EV_WRITE)

    entry = wired.bev.output.add_cb(on_change)
    wired.ask(lambda bev: bev.write(BIG), 3)
    got = received(wired.peer)
    few_rounds(wired.base, 5)
    assert received(wired.peer) == b""
    assert wired.bev.enabled == EV_READ
    assert len(wired.bev.output) + len(got) == len(BIG)
    entry.remove()
    wired.bev.enable(EV_WRITE)
    assert got + gets(wired.peer, len(BIG) - len(got)) == BIG


# ---- the write callback ----


def test_the_write_callback_comes_once_after_the_read_callback(wired: Wire) -> None:
    wired.watch_writes()

    def answer(bev: BufferEvent) -> None:
        bev.write(b"a")
        bev.output.add(b"b")

    wired.ask(answer, 5)
    assert wired.calls == ["read", "read is over", "write"]
    assert received(wired.peer) == b"ab"


def test_it_may_write_the_next_part(wired: Wire, gets: Gets) -> None:
    parts = [BIG[i : i + 50000] for i in range(0, len(BIG), 50000)]
    left = parts[::-1]

    def on_write(bev: BufferEvent) -> None:
        if left:
            bev.write(left.pop())

    wired.bev.setcb(None, on_write, None)
    wired.bev.write(left.pop())
    assert gets(wired.peer, len(BIG)) == BIG


def test_it_is_not_called_above_the_low_watermark(wired: Wire, gets: Gets) -> None:
    levels: list[int] = []
    wired.bev.setcb(wired.read, lambda bev: levels.append(len(bev.output)), None)
    wired.bev.setwatermark(EV_WRITE, 1000, 0)
    wired.ask(lambda bev: bev.write(BIG), 3)
    assert levels == []
    assert gets(wired.peer, len(BIG)) == BIG
    assert levels
    assert max(levels) <= 1000


def test_it_is_called_though_something_is_left_below_the_low_watermark(wired: Wire) -> None:
    wired.watch_writes()
    wired.bev.setwatermark(EV_WRITE, 1 << 30, 0)
    wired.ask(lambda bev: bev.write(BIG), 1)
    assert wired.calls == ["read", "read is over", "write"]
    assert len(wired.bev.output) > 0


def test_it_waits_while_writing_is_disabled(wired: Wire, run_until: RunUntil) -> None:
    wired.watch_writes()

    def on_change(_buf: EvBuffer, _size: int, _added: int, gone: int) -> None:
        if gone:
            wired.bev.disable(EV_WRITE)

    wired.bev.output.add_cb(on_change)
    wired.ask(lambda bev: bev.write(b"x"), 5)
    assert received(wired.peer) == b"x"
    assert "write" not in wired.calls
    wired.bev.enable(EV_WRITE)
    run_until(lambda: "write" in wired.calls)


def test_a_callback_set_while_the_answer_waits_is_the_one(wired: Wire, run_until: RunUntil) -> None:
    calls: list[int] = []

    def answer(bev: BufferEvent) -> None:
        bev.write(b"x")
        bev.setcb(None, lambda _bev: calls.append(1), None)

    wired.ask(answer)
    run_until(lambda: calls)
    few_rounds(wired.base)
    assert (calls, received(wired.peer)) == ([1], b"x")


# ---- partial writes ----


def test_what_the_socket_does_not_take_goes_out_as_the_peer_reads(wired: Wire, gets: Gets) -> None:
    before = wired.fill()
    wired.ask(lambda bev: bev.write(b"after"), 3)
    assert bytes(wired.bev.output) == b"after"
    assert gets(wired.peer, before + 5)[before:] == b"after"
    assert wired.events == []


@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_everything_comes_in_order(tcp: Wire, gets: Gets, means: Any) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"begin,")
        means(bev, BIG)
        bev.write(b",end")

    tcp.ask(answer)
    assert len(tcp.bev.output) > 0
    got = received(tcp.peer)
    tcp.ask(lambda bev: bev.write(b",and more"))
    wanted = b"begin," + BIG + b",end,and more"
    assert got + gets(tcp.peer, len(wanted) - len(got)) == wanted
    assert tcp.events == []


def test_a_file_for_which_there_is_no_room_yet(gets: Gets, wired: Wire) -> None:
    """libevent takes sendfile's EAGAIN for an end."""
    before = wired.fill()
    wired.ask(lambda bev: add_file(bev, b"the file"), 3)
    assert wired.events == []
    assert gets(wired.peer, before + 8)[before:] == b"the file"
    for n in (1, 3000, 100000, 1 << 20):
        before = wired.fill()
        got = wired.peer.recv(before // 2)
        wired.ask(lambda bev, n=n: add_file(bev, BIG[:n]))  # type: ignore[misc]
        left = before - len(got)
        assert gets(wired.peer, left + n)[left:] == BIG[:n]
    assert wired.events == []


def test_half_an_outbox_is_taken(wired: Wire, gets: Gets) -> None:
    """Small writes of which the kernel takes a part only."""
    with socket.socket(fileno=os.dup(wired.bev.fd)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    parts = [bytes([i]) * 999 for i in range(64)]

    def answer(bev: BufferEvent) -> None:
        for part in parts:
            bev.write(part)

    wired.ask(answer)
    assert 0 < len(wired.bev.output) < 64 * 999
    assert gets(wired.peer, 64 * 999) == b"".join(parts)


# ---- limits, single reads and writes, timeouts ----


def test_a_rate_limit_holds_back_what_a_callback_writes(wired: Wire) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(None, None, 10, 10, FOREVER))
    wired.ask(lambda bev: bev.write(b"0123456789abcdef"), 5)
    assert received(wired.peer) == b"0123456789"
    assert bytes(wired.bev.output) == b"abcdef"


@pytest.mark.parametrize("means", ["write", "write_buffer", "add", "reserve"])
def test_a_rate_limit_set_after_the_write_in_the_callback(wired: Wire, means: str) -> None:
    def answer(bev: BufferEvent) -> None:
        MEANS[means](bev, b"0123456789abcdef")
        bev.set_rate_limit(TokenBucketConfig(None, None, 10, 10, FOREVER))

    wired.ask(answer, 5)
    assert received(wired.peer) == b"0123456789"
    assert wired.bev.write_limit == 0


def test_a_group_joined_after_the_write_in_the_callback(base: EventBase, wired: Wire) -> None:
    group = RateLimitGroup(base, TokenBucketConfig(None, None, 10, 10, FOREVER))
    group.set_min_share(1)

    def answer(bev: BufferEvent) -> None:
        bev.write(b"0123456789abcdef")
        bev.add_to_rate_limit_group(group)

    wired.ask(answer, 5)
    assert received(wired.peer) == b"0123456789"
    assert group.get_totals()[1] == 10


def test_the_members_of_a_group_share_its_limit(base: EventBase, wire: MakeWire) -> None:
    group = RateLimitGroup(base, TokenBucketConfig(10, 10, 10, 10, FOREVER))
    group.set_min_share(1)
    wires = [wire(), wire()]
    for one in wires:
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"0123456789abcdef")
    few_rounds(base)
    assert sum(len(one.data) for one in wires) == 10

    def write() -> None:
        for one in wires:
            one.bev.write(b"0123456789abcdef")

    Timer(base, write).add(0)
    few_rounds(base)
    assert sum(len(received(one.peer)) for one in wires) == 10
    for one in wires:
        one.bev.remove_from_rate_limit_group()
    few_rounds(base)
    assert [one.data for one in wires] == [b"0123456789abcdef"] * 2


def test_a_rate_limit_bounds_each_read(wired: Wire) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(100, 100, tick=FOREVER))
    wired.peer.send(bytes(1000))
    few_rounds(wired.base)
    assert len(wired.data) == 100


def test_without_its_limit_it_goes_on(wired: Wire, gets: Gets) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(10, 10, 10, 10, FOREVER))
    wired.ask(lambda bev: bev.write(b"0123456789abcdef"), 5)
    wired.ask(lambda bev: bev.set_rate_limit(None))
    assert gets(wired.peer, 16) == b"0123456789abcdef"
    wired.ask(lambda bev: bev.write(b"at once"))
    assert received(wired.peer) == b"at once"


@pytest.mark.parametrize("first", [True, False])
def test_max_single_write(wired: Wire, first: bool) -> None:
    def answer(bev: BufferEvent) -> None:
        if first:
            bev.max_single_write = 10
        bev.write(b"0123456789abcdef")
        bev.max_single_write = 10

    wired.ask(answer)
    wired.base.loop(ONE_PASS)
    assert received(wired.peer) == b"0123456789"
    wired.base.loop(ONE_PASS)
    assert received(wired.peer) == b"abcdef"


def test_max_single_read(wired: Wire) -> None:
    wired.bev.max_single_read = 10
    wired.peer.send(b"0123456789abcdef")
    wired.base.loop(ONE_PASS)
    assert wired.data == b"0123456789"
    wired.bev.max_single_read = 0
    wired.base.loop(ONE_PASS)
    assert wired.data == b"0123456789abcdef"


def test_the_read_timeout_comes(wired: Wire, run_until: RunUntil) -> None:
    wired.bev.set_timeouts(read=0.01)
    wired.ask(lambda bev: bev.write(b"x"))
    run_until(lambda: wired.events)
    assert wired.events == [BEV_EVENT_TIMEOUT | BEV_EVENT_READING]
    assert wired.bev.enabled == EV_WRITE


def test_what_comes_keeps_the_read_timeout_away(wired: Wire, run_until: RunUntil) -> None:
    wired.bev.set_timeouts(read=0.5)
    left = [b"."] * 60
    timer = Timer(wired.base, lambda: left and wired.peer.send(left.pop()), persist=True)
    timer.add(0.01)
    run_until(lambda: not left)
    timer.close()
    assert wired.events == []
    run_until(lambda: wired.events)
    assert wired.events == [BEV_EVENT_TIMEOUT | BEV_EVENT_READING]


def test_the_write_timeout_comes_when_the_peer_does_not_read(
    wired: Wire, run_until: RunUntil
) -> None:
    wired.bev.set_timeouts(write=0.01)
    wired.fill()
    wired.ask(lambda bev: bev.write(b"x"))
    run_until(lambda: wired.events)
    assert wired.events == [BEV_EVENT_TIMEOUT | BEV_EVENT_WRITING]
    assert wired.bev.enabled == EV_READ


def test_no_write_timeout_when_all_was_written(wired: Wire, run_until: RunUntil) -> None:
    wired.bev.set_timeouts(write=0.01)
    wired.ask(lambda bev: bev.write(b"x"))
    late: list[int] = []
    Timer(wired.base, late.append, 1).add(0.05)
    run_until(lambda: late)
    assert wired.events == []
    assert received(wired.peer) == b"x"


def test_closed_in_its_timeout_callback(wired: Wire, run_until: RunUntil) -> None:
    """Nobody else holds it then."""
    wired.bev.set_timeouts(write=0.01)
    wired.fill()

    def on_event(bev: BufferEvent, what: int) -> None:
        wired.events.append(what)
        bev.close()

    wired.bev.setcb(wired.read, None, on_event)
    wired.ask(lambda bev: bev.write(b"x"))
    del wired.bev
    run_until(lambda: wired.events)
    assert wired.events == [BEV_EVENT_TIMEOUT | BEV_EVENT_WRITING]


# ---- options ----


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_echo(wire: MakeWire, run_until: RunUntil, options: int) -> None:
    one = wire(options)
    one.bev.setcb(lambda bev: bev.write(bev.read()))
    for part in (b"one line\n", BIG[:100000], BIG):
        sent = memoryview(part)
        got = bytearray()

        def send_and_receive(got: bytearray = got, part: bytes = part) -> bool:
            nonlocal sent
            with contextlib.suppress(BlockingIOError):
                sent = sent[one.peer.send(sent) :] if sent else sent
            with contextlib.suppress(BlockingIOError):
                got += one.peer.recv(1 << 20)
            return len(got) == len(part)

        run_until(send_and_receive)
        assert got == part


def test_deferred_callbacks_come_after_the_read(wire: MakeWire) -> None:
    one, other = wire(OPTIONS["deferred"]), wire(OPTIONS["deferred"])
    other.watch_writes()
    one.on_read = lambda _bev: other.bev.write(b"from one")
    one.peer.send(b"?")
    few_rounds(one.base, 3)
    assert (one.data, received(other.peer)) == (b"?", b"from one")
    assert one.calls == ["read", "read is over"]
    assert other.calls == ["write"]


def test_deferred_data_and_its_error_come_in_order(wire: MakeWire, run_until: RunUntil) -> None:
    one = wire(OPTIONS["deferred"], tcp=True)
    one.peer.setblocking(True)
    one.peer.sendall(BIG[:200000])
    one.reset()
    run_until(lambda: one.events)
    assert one.calls[-1] == "event"
    assert one.events == [BEV_EVENT_ERROR | BEV_EVENT_READING]


def test_another_thread_writes_while_the_loop_echoes(wire: MakeWire, run_until: RunUntil) -> None:
    one = wire(OPTIONS["threadsafe"])
    one.on_read = lambda bev: bev.write(b"e")

    def write() -> None:
        for _ in range(500):
            one.bev.write(b"t")

    thread = threading.Thread(target=write)
    one.peer.send(b"x" * 500)
    thread.start()
    got = bytearray()

    def enough() -> bool:
        with contextlib.suppress(BlockingIOError):
            got.extend(one.peer.recv(1 << 20))
        return got.count(b"t") == 500 and got.count(b"e") == one.calls.count("read")

    run_until(enough)
    thread.join()


# ---- filters, pairs, what is borrowed ----


def upper(src: EvBuffer, dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
    if not src:
        return BEV_NEED_MORE
    dst.add(src.remove().upper())
    return BEV_OK


@pytest.mark.parametrize("output_filter", [None, upper])
def test_a_filter_on_a_socket_echoes(wired: Wire, gets: Gets, output_filter: Any) -> None:
    with BufferEvent.filter(wired.bev, None, output_filter) as top:
        top.setcb(lambda bev: bev.write(bev.read()))
        top.enable(EV_READ | EV_WRITE)
        wired.peer.send(b"hello")
        assert gets(wired.peer, 5).upper() == b"HELLO"
        data = (BIG[:300000].hex()).encode().upper()
        Timer(wired.base, top.write, data).add(0)
        assert gets(wired.peer, len(data)) == data


@pytest.mark.parametrize("output_filter", [None, upper])
def test_what_is_written_below_a_filter_and_through_it_keeps_its_order(
    wire: MakeWire, gets: Gets, output_filter: Any
) -> None:
    one, other = wire(), wire()
    with BufferEvent.filter(one.bev, None, output_filter) as top:
        few_rounds(one.base)
        before = one.fill()

        def answer(_bev: BufferEvent) -> None:
            one.bev.write(b"A")
            top.write(b"B")
            one.bev.write(b"C")

        other.ask(answer)
        assert gets(one.peer, before + 3)[before:] == b"ABC"


def test_a_filter_may_write_a_header_first(wired: Wire, gets: Gets) -> None:
    """In the write callback of what it is on, too, where nothing else runs."""
    state = {"header": 0}

    def with_header(src: EvBuffer, dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
        if not src:
            return BEV_NEED_MORE
        if state["header"] == 0:
            state["header"] = 1
            dst.add(b"[%d]" % len(src))
        else:
            state["header"] = 0
            dst.add_buffer(src)
        return BEV_OK

    with BufferEvent.filter(wired.bev, None, with_header) as top:
        few_rounds(wired.base)
        top.disable(EV_WRITE)
        top.write(b"body")
        top.enable(EV_WRITE)
        assert gets(wired.peer, 7) == b"[4]body"


def test_a_pair_echoes(base: EventBase, run_until: RunUntil) -> None:
    a, b = BufferEvent.pair(base)
    got = bytearray()
    a.setcb(lambda bev: got.extend(bev.read()))
    b.setcb(lambda bev: bev.write(bev.read()))
    a.enable(EV_READ)
    b.enable(EV_READ)
    Timer(base, a.write, BIG).add(0)
    run_until(lambda: len(got) == len(BIG))
    assert got == BIG
    a.close()
    b.close()


def test_between_a_pair_and_a_socket(base: EventBase, wired: Wire, gets: Gets) -> None:
    a, b = BufferEvent.pair(base)
    wired.on_read = lambda _bev: a.write(b"to the pair")
    b.setcb(lambda bev: wired.bev.write_buffer(bev.input))
    b.enable(EV_READ)
    wired.peer.send(b"?")
    assert gets(wired.peer, 11) == b"to the pair"
    a.close()
    b.close()


def test_what_c_has_made_is_written_libevents_way(base: EventBase, gets: Gets) -> None:
    mine, peer = socket.socketpair()
    peer.setblocking(False)
    with mine, peer:
        ptr = lib.bufferevent_socket_new(base.ptr, mine.fileno(), 0)
        bev = BufferEvent.from_ptr(ptr)

        def answer() -> None:
            bev.write(b"first,")
            lib.bufferevent_disable(ptr, EV_WRITE)
            lib.bufferevent_write(ptr, b"second", 6)

        Timer(base, answer).add(0)
        few_rounds(base)
        assert received(peer) == b""
        bev.enable(EV_WRITE)
        assert gets(peer, 12) == b"first,second"
        bev.close()
        lib.bufferevent_free(ptr)
        few_rounds(base)


# ---- errors and ends ----


def test_epipe_on_a_straight_write(wired: Wire) -> None:
    wired.bev.disable(EV_READ)
    wired.peer.close()
    Timer(wired.base, wired.bev.write, b"x").add(0)
    few_rounds(wired.base, 2)
    assert wired.events == [BEV_EVENT_ERROR | BEV_EVENT_WRITING]
    assert wired.errors == [errno.EPIPE]
    assert wired.bev.enabled == 0
    assert bytes(wired.bev.output) == b"x"


@pytest.mark.parametrize("n", [1, 100000])
def test_epipe_comes_after_the_callback_that_wrote(wire: MakeWire, n: int) -> None:
    one, other = wire(), wire()
    other.bev.disable(EV_READ)
    other.peer.close()

    def answer(_bev: BufferEvent) -> None:
        other.bev.write(bytes(n))
        assert other.events == []

    one.ask(answer, 3)
    assert other.events == [BEV_EVENT_ERROR | BEV_EVENT_WRITING]
    assert other.errors == [errno.EPIPE]
    assert one.calls == ["read", "read is over"]


def test_econnreset_on_a_straight_write(tcp: Wire, run_until: RunUntil) -> None:
    tcp.bev.disable(EV_READ)
    tcp.reset()
    Timer(tcp.base, tcp.bev.write, b"x").add(0)
    run_until(lambda: tcp.events)
    assert tcp.events == [BEV_EVENT_ERROR | BEV_EVENT_WRITING]
    assert tcp.errors[0] in (errno.ECONNRESET, errno.EPIPE)


def test_econnreset_on_a_read(tcp: Wire, run_until: RunUntil) -> None:
    tcp.reset()
    run_until(lambda: tcp.events)
    few_rounds(tcp.base)
    assert tcp.events == [BEV_EVENT_ERROR | BEV_EVENT_READING]
    assert tcp.errors == [errno.ECONNRESET]
    assert tcp.bev.enabled == EV_WRITE


@pytest.mark.parametrize("n", [1, 65536, 100000, AT_ONCE, 300000])
def test_an_error_after_much_data_is_told_once(tcp: Wire, run_until: RunUntil, n: int) -> None:
    """Linux drops what has not been read when a reset comes: the data may be less."""
    tcp.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def reset(_bev: BufferEvent) -> None:
        if tcp.peer.fileno() >= 0:
            tcp.reset()

    tcp.on_read = reset
    sent = tcp.peer.send(BIG[:n])
    run_until(lambda: tcp.events)
    few_rounds(tcp.base)
    assert tcp.events == [BEV_EVENT_ERROR | BEV_EVENT_READING]
    assert tcp.errors == [errno.ECONNRESET]
    assert BIG[:sent].startswith(tcp.data)
    assert tcp.calls[0] == "read"


SHORT_READ = """
import socket, struct
from pylibevent import *

# The error comes in the middle of a read that is topped up: somebody resets in between.
base = EventBase()
with socket.create_server(("127.0.0.1", 0)) as server:
    peer = socket.create_connection(server.getsockname())
    mine, _ = server.accept()
events = []
bev = BufferEvent.socket(base, mine)

def on_input(buf, size, added, gone):
    if added and peer.fileno() >= 0:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

def on_event(bev, what):
    events.append((int(what), bev.error.errno))

bev.input.add_cb(on_input)
bev.setcb(lambda bev: {action}, None, on_event)
bev.enable(EV_READ)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
n = peer.send(bytes(200000))
assert n == 200000, n
del bev
for _ in range(10):
    base.loop(EVLOOP_NONBLOCK)
base.close()
print(events)
"""


def test_an_error_in_the_middle_of_a_long_read_is_told_after_the_data() -> None:
    what = BEV_EVENT_ERROR | BEV_EVENT_READING
    wanted = f"[({int(what)}, {errno.ECONNRESET})]\n"
    assert run_script(SHORT_READ.format(action="bev.read()")) == wanted


def test_an_error_in_the_middle_of_a_long_read_and_a_close_in_its_callback() -> None:
    assert run_script(SHORT_READ.format(action="bev.close()")) == "[]\n"


@pytest.mark.parametrize("n", [0, 1, 65535, 65536, 65537, AT_ONCE, AT_ONCE + 1])
def test_the_end_comes_after_all_the_data(tcp: Wire, run_until: RunUntil, n: int) -> None:
    tcp.peer.setblocking(True)

    def send() -> None:
        tcp.peer.sendall(BIG[:n])
        tcp.peer.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    run_until(lambda: tcp.events)
    thread.join()
    assert tcp.data == BIG[:n]
    assert tcp.events == [BEV_EVENT_EOF | BEV_EVENT_READING]
    assert tcp.calls[-1] == "event"
    assert tcp.errors == [None]


def test_an_error_while_it_waits_to_close(wire: MakeWire, run_until: RunUntil) -> None:
    one, other = wire(), wire()
    other.bev.disable(EV_READ)
    other.peer.close()

    def answer(_bev: BufferEvent) -> None:
        other.bev.write(b"x")
        other.bev.close_after_write()

    one.ask(answer)
    run_until(lambda: other.bev.closed)
    assert other.calls == []


# ---- closing ----


@pytest.mark.parametrize("n", [7, 100000])
@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
def test_close_drops_what_the_callback_wrote(wired: Wire, means: Any, n: int) -> None:
    def answer(bev: BufferEvent) -> None:
        means(bev, BIG[:n])
        bev.close()

    wired.ask(answer, 3)
    assert wired.peer.recv(100) == b""
    assert wired.calls == ["read"]


def test_closing_another_that_has_something_to_send(wire: MakeWire) -> None:
    one, other, third = wire(), wire(), wire()

    def answer(bev: BufferEvent) -> None:
        other.bev.write(b"dropped")
        other.bev.close()
        bev.write(b"kept")
        third.bev.write(b"kept too")
        third.bev.write(b".")

    one.ask(answer, 3)
    assert other.peer.recv(100) == b""
    assert (received(one.peer), received(third.peer)) == (b"kept", b"kept too.")


@pytest.mark.parametrize("n", [1, 100000, 1 << 20])
def test_close_after_write_in_the_read_callback(
    wired: Wire, gets: Gets, run_until: RunUntil, n: int
) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(BIG[:n])
        bev.close_after_write()
        with pytest.raises(ClosedError):
            bev.write(b"more")

    wired.ask(answer)
    assert gets(wired.peer, n) == BIG[:n]
    run_until(lambda: wired.bev.closed)
    assert wired.peer.recv(1) == b""
    assert wired.calls == ["read", "read is over"]


def test_close_after_write_while_writing_is_disabled(
    wired: Wire, gets: Gets, run_until: RunUntil
) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"one,")
        bev.disable(EV_WRITE)
        bev.write(b"two")
        bev.close_after_write()

    wired.ask(answer)
    assert gets(wired.peer, 7) == b"one,two"
    run_until(lambda: wired.bev.closed)


def test_close_after_write_in_a_callback_of_the_output(
    wired: Wire, gets: Gets, run_until: RunUntil
) -> None:
    wired.bev.output.add_cb(lambda *_: wired.bev.close_after_write())
    wired.ask(lambda bev: bev.write(b"last"))
    assert gets(wired.peer, 4) == b"last"
    run_until(lambda: wired.bev.closed)


def test_closing_the_base_in_the_callback_after_writing() -> None:
    base = EventBase()
    one = Wire(base)

    def answer(bev: BufferEvent) -> None:
        bev.write(b"dropped")
        base.close()

    with one.peer:
        one.ask(answer)
        assert one.peer.recv(100) == b""


def test_closed_in_a_callback_of_the_output_the_rest_goes_nowhere(wire: MakeWire) -> None:
    """Its descriptor may be another connection's by then."""
    one = wire()
    others: list[socket.socket] = []

    def on_change(_buf: EvBuffer, _size: int, _added: int, gone: int) -> None:
        if gone:
            fd = one.bev.fd
            one.bev.close()
            others.extend(socket.socketpair())
            assert fd in (others[0].fileno(), others[1].fileno())

    one.bev.output.add_cb(on_change)
    one.ask(lambda bev: bev.write(BIG), 3)
    for other in others:
        other.setblocking(False)
    assert [received(other) for other in others] == [b"", b""]
    for other in others:
        other.close()


def test_closed_in_a_callback_of_the_input_no_more_is_read(wire: MakeWire) -> None:
    """Its descriptor may be another connection's by then."""
    one = wire()
    others: list[socket.socket] = []

    def on_change(_buf: EvBuffer, _size: int, added: int, _gone: int) -> None:
        if added:
            fd = one.bev.fd
            one.bev.close()
            others.extend(socket.socketpair())
            index = [other.fileno() for other in others].index(fd)
            others[1 - index].send(b"not for you")

    one.bev.input.add_cb(on_change)
    one.peer.send(bytes(65536))
    few_rounds(one.base, 3)
    assert one.calls == []
    for other in others:
        other.setblocking(False)
    assert b"not for you" in [received(other) for other in others]
    for other in others:
        other.close()


def test_a_view_taken_while_a_part_goes_out_stops_it(wired: Wire, gets: Gets) -> None:
    views: list[memoryview] = []

    def on_change(buf: EvBuffer, _size: int, _added: int, gone: int) -> None:
        if gone and not views:
            views.extend(buf.peek(100))

    wired.bev.output.add_cb(on_change)
    wired.ask(lambda bev: bev.write(BIG), 3)
    got = received(wired.peer)
    assert bytes(views[0]) == BIG[len(got) : len(got) + 100]
    few_rounds(wired.base)
    assert received(wired.peer) == b""
    assert wired.bev.enabled == EV_READ | EV_WRITE
    views.pop().release()
    views.append(memoryview(b""))
    assert got + gets(wired.peer, len(BIG) - len(got)) == BIG


def test_a_view_taken_while_more_is_read_stops_it(wired: Wire, run_until: RunUntil) -> None:
    views: list[memoryview] = []

    def on_change(buf: EvBuffer, _size: int, added: int, _gone: int) -> None:
        if added and not views:
            views.extend(buf.peek())

    wired.bev.setcb(lambda _bev: None)
    wired.bev.input.add_cb(on_change)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += wired.peer.send(BIG[sent : sent + 65536])
    few_rounds(wired.base)
    n = len(wired.bev.input)
    assert b"".join(bytes(view) for view in views) == BIG[:n]
    assert n < sent
    while views:
        views.pop().release()
    views.append(memoryview(b""))
    run_until(lambda: len(wired.bev.input) == sent)
    assert bytes(wired.bev.input) == BIG[:sent]


def test_disabled_in_a_callback_of_the_input_no_more_is_read(wired: Wire) -> None:
    wired.bev.setcb(lambda _bev: None)
    wired.bev.input.add_cb(lambda *_: wired.bev.disable(EV_READ))
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += wired.peer.send(BIG[:65536])
    few_rounds(wired.base)
    assert len(wired.bev.input) <= 65536 < sent


# ---- exceptions, breaks, forks ----


def test_an_exception_after_writing(wired: Wire) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"still")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        wired.ask(answer)
    assert received(wired.peer) == b"still"
    wired.ask(lambda bev: bev.write(b" there"))
    assert received(wired.peer) == b" there"


def test_an_exception_in_a_callback_of_the_output(wired: Wire, run_until: RunUntil) -> None:
    def on_change(_buf: EvBuffer, _size: int, _added: int, gone: int) -> None:
        if gone:
            raise KeyError("mine")

    wired.bev.output.add_cb(on_change)
    with pytest.raises(KeyError, match="mine"):
        wired.ask(lambda bev: bev.write(b"gone"))
    assert received(wired.peer) == b"gone"


def test_the_exception_handler_may_close_it(base: EventBase, wired: Wire) -> None:
    base.exception_handler = lambda _exc, source: source.close()

    def answer(bev: BufferEvent) -> None:
        bev.write(b"dropped")
        raise KeyError

    wired.ask(answer)
    assert wired.bev.closed
    assert wired.peer.recv(100) == b""


@pytest.mark.parametrize("stop", ["loopbreak", "loopexit"])
def test_ending_the_loop_after_writing(base: EventBase, wired: Wire, stop: str) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"out")
        getattr(base, stop)()

    wired.on_read = answer
    wired.peer.send(b"?")
    base.dispatch()
    assert received(wired.peer) == b"out"


@pytest.mark.parametrize("means", ["write", "add"])
def test_a_fork_after_the_write(wired: Wire, gets: Gets, means: str) -> None:
    pids = []

    def answer(bev: BufferEvent) -> None:
        MEANS[means](bev, b"once,")
        pids.append(fork(lambda: None))  # ends without a loop
        bev.write(b"and the rest")

    wired.ask(answer)
    wait_for(pids[0])
    assert gets(wired.peer, 17) == b"once,and the rest"


def in_both(action: Callable[[], object], pids: list[int], child: Callable[[], object]) -> None:
    """action() forks and puts the pid into pids; then child() runs in the child."""
    try:
        action()
    except Exception:  # the child's: it is in the loop of another process
        if pids != [0]:
            raise
    if pids == [0]:
        status = 1
        with contextlib.suppress(BaseException):
            child()
            status = 0
        os._exit(status)
    wait_for(pids[0])


def sends(wired: Wire) -> None:
    """In a child, where it is in the output too."""
    wired.base.reinit()
    few_rounds(wired.base)
    assert not wired.bev.output


def test_a_child_that_reinits_sends_what_it_has(wired: Wire) -> None:
    """As in C: each of the two has it in its output."""
    pids: list[int] = []

    def answer(bev: BufferEvent) -> None:
        bev.write(b"twice")
        pids.append(os.fork())

    in_both(lambda: wired.ask(answer), pids, lambda: sends(wired))
    few_rounds(wired.base)
    assert received(wired.peer) == b"twicetwice"


def test_a_fork_in_the_loop_of_another_base_in_the_callback(wired: Wire) -> None:
    pids: list[int] = []
    other = EventBase()

    def answer(bev: BufferEvent) -> None:
        bev.write(b"twice")
        Timer(other, lambda: pids.append(os.fork())).add(0)
        other.loop(ONE_PASS)

    in_both(lambda: wired.ask(answer), pids, lambda: sends(wired))
    other.close()
    few_rounds(wired.base)
    assert received(wired.peer) == b"twicetwice"


# ---- .ptr ----


def test_ptr_in_the_middle_of_a_callback(wired: Wire, gets: Gets) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"one,")
        lib.bufferevent_write(bev.ptr, b"two,", 4)
        bev.write(b"three")

    wired.ask(answer)
    assert gets(wired.peer, 13) == b"one,two,three"


def test_raw_disable_in_the_middle_of_a_callback(wired: Wire, gets: Gets) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"held")
        lib.bufferevent_disable(bev.ptr, EV_WRITE)

    wired.ask(answer, 5)
    assert received(wired.peer) == b""
    wired.ask(lambda bev: lib.bufferevent_enable(bev.ptr, EV_WRITE))
    assert gets(wired.peer, 4) == b"held"


def test_the_ptr_of_the_output_shows_what_was_written(wired: Wire, gets: Gets) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"four")
        assert lib.evbuffer_get_length(bev.output.ptr) == 4
        lib.evbuffer_add(bev.output.ptr, b"more", 4)

    wired.ask(answer)
    assert gets(wired.peer, 8) == b"fourmore"


def test_raw_enabled_in_a_callback_of_the_output(wired: Wire, gets: Gets) -> None:
    seen: list[int] = []

    def on_change(_buf: EvBuffer, _size: int, added: int, _gone: int) -> None:
        if added:
            seen.append(lib.bufferevent_get_enabled(wired.bev.ptr))
            lib.bufferevent_disable(wired.bev.ptr, EV_WRITE)

    wired.bev.output.add_cb(on_change)
    wired.ask(lambda bev: bev.write(b"held"), 5)
    assert seen == [EV_READ | EV_WRITE]
    assert received(wired.peer) == b""
    wired.bev.enable(EV_WRITE)
    assert gets(wired.peer, 4) == b"held"


def test_ptr_in_the_loop_of_another_base_in_the_callback(wired: Wire, gets: Gets) -> None:
    before = wired.fill()

    def answer(bev: BufferEvent) -> None:
        bev.write(b"one,")
        with EventBase() as other:
            Timer(other, lambda: lib.bufferevent_write(bev.ptr, b"two", 3)).add(0)
            other.loop(ONE_PASS)

    wired.ask(answer)
    assert gets(wired.peer, before + 7)[before:] == b"one,two"


def test_the_ptr_of_a_filter_leads_to_what_it_is_on(wired: Wire, gets: Gets) -> None:
    with BufferEvent.filter(wired.bev) as top:

        def answer() -> None:
            wired.bev.write(b"held")
            lib.bufferevent_disable(lib.bufferevent_get_underlying(top.ptr), EV_WRITE)

        Timer(wired.base, answer).add(0)
        few_rounds(wired.base)
        assert received(wired.peer) == b""
        wired.bev.enable(EV_WRITE)
        assert gets(wired.peer, 4) == b"held"


def test_after_ptr_it_reads_and_writes_as_before(wired: Wire, gets: Gets) -> None:
    assert wired.bev.ptr
    wired.on_read = lambda bev: bev.write(b"pong")
    wired.peer.send(b"ping")
    assert gets(wired.peer, 4) == b"pong"
    assert wired.data == b"ping"


# ---- reading ----


def flood(sock: socket.socket, data: bytes) -> int:
    """Sends what the kernel takes."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + 65536])
    return sent


@pytest.mark.parametrize("high", [1, 100, 65535, 65536, 65537, 100000])
def test_the_high_watermark_is_not_exceeded_and_reading_goes_on(
    wired: Wire, run_until: RunUntil, high: int
) -> None:
    lengths: list[int] = []
    got = bytearray()
    wanted = 50 if high == 1 else 200000

    def on_read(bev: BufferEvent) -> None:
        lengths.append(len(bev.input))
        got.extend(bev.input.remove((len(bev.input) + 1) // 2))

    wired.bev.setcb(on_read)
    wired.bev.setwatermark(EV_READ, 0, high)
    left = BIG[:wanted]

    def more() -> bool:
        nonlocal left
        left = left[flood(wired.peer, left) :]
        return not left and len(got) + len(wired.bev.input) == wanted

    run_until(more)
    assert max(lengths) <= high
    assert got + bytes(wired.bev.input) == BIG[:wanted]


def test_a_full_input_is_left_alone_until_something_is_taken(
    wired: Wire, run_until: RunUntil
) -> None:
    calls: list[int] = []
    wired.bev.setcb(lambda bev: calls.append(len(bev.input)))
    wired.bev.setwatermark(EV_READ, 0, 70000)
    sent = flood(wired.peer, BIG)
    few_rounds(wired.base)
    assert calls[-1] == len(wired.bev.input) == 70000
    n = len(calls)
    few_rounds(wired.base)
    assert len(calls) == n
    wired.bev.input.drain(70000)
    run_until(lambda: len(wired.bev.input) == min(70000, sent - 70000))


def test_the_read_callback_waits_for_the_low_watermark(wired: Wire) -> None:
    wired.bev.setwatermark(EV_READ, 10, 0)
    wired.peer.send(b"123456789")
    few_rounds(wired.base)
    assert wired.calls == []
    wired.peer.send(b"0")
    few_rounds(wired.base)
    assert wired.data == b"1234567890"


def test_one_loud_connection_does_not_starve_another(wire: MakeWire, run_until: RunUntil) -> None:
    loud, quiet = wire(tcp=True), wire()
    loud.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    reads: list[int] = []
    loud.bev.setcb(lambda bev: reads.append(len(bev.read())))
    quiet.bev.setcb(lambda bev: reads.append(-len(bev.read())))
    for _ in range(20):
        flood(loud.peer, BIG)
        quiet.peer.send(b"?")
        n = len(reads)
        run_until(lambda n=n: -1 in reads[n:])
        assert sum(reads[n:]) <= 2 * AT_ONCE
    assert max(reads) <= AT_ONCE


def test_much_is_read_at_once(wired: Wire) -> None:
    wired.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    n = flood(wired.peer, BIG[:100000])
    wired.base.loop(ONE_PASS)
    assert (wired.data, wired.calls) == (BIG[:n], ["read", "read is over"])
    assert n > 65536


def test_disabled_reading_reads_nothing(wired: Wire, run_until: RunUntil) -> None:
    def answer(bev: BufferEvent) -> None:
        bev.write(b"x")
        bev.disable(EV_READ)

    wired.ask(answer)
    wired.peer.send(b"later")
    few_rounds(wired.base)
    assert wired.data == b"?"
    wired.bev.enable(EV_READ)
    run_until(lambda: wired.data == b"?later")


# ---- connecting ----


def test_what_is_written_before_it_is_connected(
    base: EventBase, gets: Gets, run_until: RunUntil
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        events: list[int] = []

        def on_event(bev: BufferEvent, what: int) -> None:
            events.append(what)
            bev.write(b"in it,")

        bev.setcb(None, None, on_event)

        def start() -> None:
            bev.write(b"before,")
            bev.connect(server.getsockname())
            bev.write(b"meanwhile,")

        Timer(base, start).add(0)
        run_until(lambda: events)
        peer, _ = server.accept()
        peer.setblocking(False)
        with peer:
            assert gets(peer, 23) == b"before,meanwhile,in it,"
            Timer(base, bev.write, b"at once").add(0)
            base.loop(ONE_PASS)
            assert received(peer) == b"at once"
        assert events == [BEV_EVENT_CONNECTED]
        bev.close()


def test_a_refused_connection(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    bev = BufferEvent.socket(base)
    events: list[Any] = []

    def on_event(bev: BufferEvent, what: int) -> None:
        assert isinstance(bev.error, OSError)
        events.append((what, bev.error.errno))
        bev.close()

    bev.setcb(None, None, on_event)

    def start() -> None:
        nonlocal bev
        bev.connect(address)
        bev.write(b"nobody gets this")
        del bev

    Timer(base, start).add(0)
    run_until(lambda: events)
    assert events == [(BEV_EVENT_ERROR, errno.ECONNREFUSED)]


def test_another_descriptor_gets_what_was_not_sent(wired: Wire, gets: Gets) -> None:
    a, b = socket.socketpair()
    b.setblocking(False)
    old: list[int] = []

    def answer(bev: BufferEvent) -> None:
        bev.write(b"to the new one")
        old.append(bev.fd)
        bev.fd = a

    with b:
        wired.ask(answer)
        assert gets(b, 14) == b"to the new one"
        assert received(wired.peer) == b""
        wired.bev.close()
        os.close(old[0])


# ---- callbacks in callbacks ----


def test_trigger_in_the_callback_sends_when_the_outer_one_is_over(wired: Wire) -> None:
    seen: list[bytes] = []

    def answer(bev: BufferEvent) -> None:
        wired.on_read = lambda bev: bev.write(b"inner,")
        bev.write(b"outer,")
        bev.trigger(EV_READ)
        seen.append(received(wired.peer))
        bev.write(b"outer")

    wired.ask(answer)
    assert seen == [b""]
    assert received(wired.peer) == b"outer,inner,outer"


def test_the_loop_of_another_base_in_the_callback(wired: Wire, gets: Gets) -> None:
    with EventBase() as other_base:
        other = Wire(other_base)

        def in_the_other(bev: BufferEvent) -> None:
            bev.write(b"inner")
            wired.bev.write(b"from the other,")

        def answer(bev: BufferEvent) -> None:
            bev.write(b"outer,")
            other.ask(in_the_other, 2)
            assert received(other.peer) == b"inner"
            bev.write(b"outer")

        wired.ask(answer)
        other.peer.close()
    assert gets(wired.peer, 26) == b"outer,from the other,outer"


def test_a_loop_in_another_thread_in_the_callback(wired: Wire) -> None:
    with EventBase() as other_base:
        other = Wire(other_base)

        def answer(bev: BufferEvent) -> None:
            bev.write(b"here")
            thread = threading.Thread(target=other.ask, args=(lambda bev: bev.write(b"there"),))
            thread.start()
            thread.join()
            bev.write(b", and here")

        wired.ask(answer)
        assert received(other.peer) == b"there"
        other.peer.close()
    assert received(wired.peer) == b"here, and here"


def test_two_that_write_to_each_other_as_they_send_let_others_run(
    base: EventBase, wire: MakeWire
) -> None:
    one, other = wire(), wire()

    def pass_on(to: BufferEvent) -> Callable[..., object]:
        def on_change(_buf: EvBuffer, _size: int, _added: int, gone: int) -> None:
            if gone and not to.closed:
                received(one.peer)
                received(other.peer)
                to.write(b"x")

        return on_change

    one.bev.output.add_cb(pass_on(other.bev))
    other.bev.output.add_cb(pass_on(one.bev))
    rounds: list[int] = []

    def count() -> None:
        rounds.append(1)
        timer.add(0)

    timer = Timer(base, count)
    timer.add(0)
    one.ask(lambda bev: bev.write(b"x"), 20)
    timer.close()
    assert len(rounds) > 5


# ---- readln, when there is nothing more ----


def dry(wired: Wire, data: bytes = b"line\n") -> EvBuffer:
    """Its input, after the one line that there was has been taken."""
    wired.bev.setcb(lambda _bev: None)
    wired.peer.send(data)
    few_rounds(wired.base, 3)
    assert wired.bev.input.readln() == data[:-1]
    return wired.bev.input


def test_none_after_the_last_line(wired: Wire) -> None:
    buf = dry(wired)
    assert [buf.readln(), buf.readln()] == [None, None]


def test_the_next_line_comes_from_the_loop(wired: Wire) -> None:
    for i in range(3):
        buf = dry(wired)
        wired.peer.send(b"%d\n" % i)
        few_rounds(wired.base, 2)
        assert [buf.readln(), buf.readln()] == [b"%d" % i, None]


def test_the_next_line_comes_from_the_loop_without_callbacks(wired: Wire) -> None:
    buf = dry(wired)
    wired.bev.setcb()
    for i in range(3):
        wired.peer.send(b"%d\n" % i)
        few_rounds(wired.base, 2)
        assert buf.readln() == b"%d" % i


def test_the_next_line_comes_under_a_filter(wired: Wire) -> None:
    buf = dry(wired)

    def leaves_it(_src: EvBuffer, _dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
        return BEV_NEED_MORE

    with BufferEvent.filter(wired.bev, leaves_it) as top:
        top.enable(EV_READ)
        wired.peer.send(b"more\n")
        few_rounds(wired.base, 2)
        assert buf.readln() == b"more"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_next_line_comes_with_every_option(wire: MakeWire, options: int) -> None:
    one = wire(options)
    buf = dry(one)
    one.peer.send(b"more\n")
    few_rounds(one.base, 3)
    assert buf.readln() == b"more"


ADDERS: dict[str, Callable[[EvBuffer], object]] = {
    "add": lambda buf: buf.add(b"more\n"),
    "prepend": lambda buf: buf.prepend(b"more\n"),
    "add_buffer": lambda buf: buf.add_buffer(EvBuffer(b"more\n")),
    "prepend_buffer": lambda buf: buf.prepend_buffer(EvBuffer(b"more\n")),
    "add_buffer_reference": lambda buf: buf.add_buffer_reference(EvBuffer(b"more\n")),
    "remove_buffer": lambda buf: EvBuffer(b"more\nand more").remove_buffer(buf, 5),
    "add_reference": lambda buf: buf.add_reference(b"more\n"),
    "add_iovec": lambda buf: buf.add_iovec([b"mo", b"re\n"]),
    "add_printf": lambda buf: buf.add_printf("%s\n", "more"),
}


@pytest.mark.parametrize("add", ADDERS.values(), ids=ADDERS)
def test_a_buffer_of_ones_own_has_more(add: Any) -> None:
    buf = EvBuffer(b"line\n")
    assert buf.readln() == b"line"
    add(buf)
    assert [buf.readln(), buf.readln()] == [b"more", None]
    add(buf)
    assert buf.readln() == b"more"


@pytest.mark.parametrize(
    "add", [ADDERS["prepend"], ADDERS["prepend_buffer"]], ids=["prepend", "prepend_buffer"]
)
def test_an_input_has_more(wired: Wire, add: Any) -> None:
    buf = dry(wired)
    add(buf)
    assert buf.readln() == b"more"


def test_it_has_more_by_read_write_buffer_file_and_reserve(
    base: EventBase, wired: Wire, tmp_path: Any
) -> None:
    buf = EvBuffer(b"line\n")

    def taken() -> bytes | None:
        assert buf.readln() is None
        buf.add(b"line\n")
        assert buf.readln() == b"line"
        return None

    assert buf.readln() == b"line"
    r, w = os.pipe()
    os.write(w, b"from a pipe\n")
    buf.read(r)
    os.close(r)
    os.close(w)
    assert buf.readln() == b"from a pipe"

    taken()
    path = tmp_path / "file"
    path.write_bytes(b"from a file\n")
    with path.open("rb") as file:
        buf.add_file(file)
    assert buf.readln() == b"from a file"

    taken()
    room = buf.reserve_space(5, 1)[0]
    room[:5] = b"room\n"
    buf.commit_space(5)
    assert buf.readln() == b"room"

    taken()
    wired.bev.setcb(lambda bev: bev.read_buffer(buf))
    wired.peer.send(b"from a socket\n")
    few_rounds(base, 2)
    assert buf.readln() == b"from a socket"


def test_what_c_code_adds_is_seen() -> None:
    buf = EvBuffer(b"line\n")
    assert buf.readln() == b"line"
    lib.evbuffer_add(buf.ptr, b"more\n", 5)
    assert buf.readln() == b"more"
    lib.evbuffer_add(buf.ptr, b"more\n", 5)
    assert buf.readln() == b"more"


def test_what_c_code_adds_to_an_input_is_seen(wired: Wire) -> None:
    buf = dry(wired)
    lib.evbuffer_prepend(lib.bufferevent_get_input(wired.bev.ptr), b"more\n", 5)
    assert buf.readln() == b"more"


def test_what_is_added_through_another_object_is_seen() -> None:
    buf = EvBuffer(b"line\n")
    assert buf.readln() == b"line"
    other = EvBuffer.from_ptr(buf.ptr)
    other.add(b"more\n")
    assert buf.readln() == b"more"
    other.close()


def test_after_close_it_is_a_closed_error(wired: Wire) -> None:
    buf = dry(wired)
    wired.bev.close()
    with pytest.raises(ClosedError):
        buf.readln()
    own = EvBuffer(b"line\n")
    assert own.readln() == b"line"
    own.close()
    with pytest.raises(ClosedError):
        own.readln()


def test_after_close_after_write_it_is_a_closed_error(wired: Wire) -> None:
    wired.fill()
    wired.bev.write(b"x")
    buf = dry(wired)
    wired.bev.close_after_write()
    with pytest.raises(ClosedError):
        buf.readln()


def test_after_the_bases_close_it_is_a_closed_error() -> None:
    base = EventBase()
    one = Wire(base)
    with one.peer:
        buf = dry(one)
        base.close()
        with pytest.raises(ClosedError):
            buf.readln()


@pytest.mark.parametrize("eol", [-1, 5, 99])
def test_a_wrong_eol_is_a_value_error(wired: Wire, eol: int) -> None:
    buf = dry(wired)
    with pytest.raises(ValueError, match="eol"):
        buf.readln(eol)


def test_a_wrong_max_length_is_an_error(wired: Wire) -> None:
    buf = dry(wired)
    with pytest.raises(ValueError, match="number of bytes"):
        buf.readln(EVBUFFER_EOL_LF, -1)


def test_readlines_and_remove_do_not_look_at_it(wired: Wire) -> None:
    buf = dry(wired)
    wired.peer.send(b"more\nand more\n")
    few_rounds(wired.base, 2)
    assert buf.readlines() == [b"more", b"and more"]
    assert buf.readln() is None


def test_a_view_of_the_input_is_still_a_buffer_error(wired: Wire) -> None:
    buf = dry(wired)
    buf.prepend(b"more\n")
    view = buf.pullup()
    with pytest.raises(BufferError):
        buf.readln()
    view.release()


# ---- system calls ----

ECHO = """
import socket, sys
from pylibevent import *

base = EventBase()
a, b = socket.socketpair()
left = int(sys.argv[1])
bev = BufferEvent.socket(base, a)

def on_read(bev):
    while (line := bev.input.readln()) is not None:
        bev.write(b"got %s\\n" % line)

def on_answer(fd, what):
    global left
    assert b.recv(100) == b"got a line\\n"
    if left:
        left -= 1
        b.send(b"a line\\n")
    else:
        base.loopbreak()

bev.setcb(on_read)
bev.enable(EV_READ)
client = Event(base, b, EV_READ | EV_PERSIST, on_answer)
client.add()
b.send(b"a line\\n")
base.dispatch()
base.close()
b.close()
"""


STREAMS = """
import asyncio, socket, sys
from pylibevent import aio

async def answer(reader, writer):
    while line := await reader.readline():
        writer.write(b"got ")
        writer.write(line)
        await writer.drain()
    writer.close()

async def main():
    loop = asyncio.get_running_loop()
    left = int(sys.argv[1])
    async with await aio.start_server(loop, answer, ("127.0.0.1", 0)) as server:
        clients = [socket.create_connection(server.address) for _ in range(2)]
        while left > 0:
            for client in clients:
                client.send(b"a line\\n")
            for client in clients:
                await aio.wait_event(loop, client, 2)
                assert client.recv(100) == b"got a line\\n"
                left -= 1
        for client in clients:
            client.close()

aio.run(main())
"""


def calls_of(program: str, n: int) -> dict[str, int]:
    """The system calls that n echoes cost, from start to end."""
    strace = shutil.which("strace")
    assert strace is not None
    with tempfile.NamedTemporaryFile("r") as file:
        arguments = [strace, "-f", "-c", "-o", file.name, sys.executable, "-c", program, str(n)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        if "ptrace" in done.stderr or "PTRACE" in done.stderr:
            pytest.skip("strace may not trace here")
        assert (done.stderr, done.returncode) == ("", 0)
        rows = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", file.read(), re.M)
    return {name: int(count) for count, name in rows}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("program", [ECHO, STREAMS], ids=["callbacks", "streams"])
def test_an_echo_is_one_read_and_one_write(program: str) -> None:
    before, after = calls_of(program, 10), calls_of(program, 510)
    # Here, and what the client calls.
    for call in ("recvfrom", "sendto"):
        assert round((after[call] - before[call]) / 500) == 1 + 1
    for call in ("read", "readv", "write", "writev", "ioctl"):
        assert after.get(call, 0) - before.get(call, 0) < 50


# ---- a model ----


class Model:
    """Three connections whose callbacks write by chance, and what each peer must get."""

    CONNECTIONS = 3

    def __init__(self, base: EventBase, seed: int) -> None:
        self.base = base
        self.random = random.Random(seed)
        self.wires = [Wire(base, tcp=self.chance(0.3)) for _ in range(self.CONNECTIONS)]
        self.wanted = [bytearray() for _ in self.wires]
        self.got = [bytearray() for _ in self.wires]
        self.on = [True for _ in self.wires]
        self.closed = [False for _ in self.wires]  # what comes from then on is of no account
        self.views: list[memoryview] = []
        self.depth = 0
        self.over = False
        for i, one in enumerate(self.wires):
            one.bev.setcb(self.on_read, self.on_write, self.on_event, i)
            if self.chance(0.3):
                one.bev.output.add_cb(self.on_output, i)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def write(self, i: int) -> None:
        n = int(self.random.choice([0, 1, 10, 100, 3000, 20000, 200000]) * self.random.random())
        start = self.random.randrange(1000)
        data = BIG[start : start + n]
        bev = self.wires[i].bev
        means = self.random.choice(list(MEANS))
        try:
            if n > 0 or means in ("write", "add"):
                MEANS[means](bev, data)
                self.wanted[i] += data
        except BufferError:  # a view is out
            return

    def act(self, depth: int = 0) -> None:
        """Does something to one of them, perhaps not to the one whose callback this is."""
        i = self.random.randrange(self.CONNECTIONS)
        if self.closed[i] or self.over:
            return
        bev = self.wires[i].bev
        n = self.random.randrange(40)
        if n < 20:
            self.write(i)
        elif n < 23:
            bev.disable(EV_WRITE)
            self.on[i] = False
        elif n < 27:
            bev.enable(EV_WRITE)
            self.on[i] = True
        elif n < 28:
            bev.setwatermark(EV_WRITE, self.random.choice([0, 10, 100000]), 0)
        elif n < 29:
            bev.setwatermark(EV_READ, 0, self.random.choice([0, 1, 100]))
        elif n < 30:
            assert len(bev.output) <= len(self.wanted[i])
        elif n < 32 and depth < 3:
            bev.trigger(EV_READ)
        elif n < 33:
            with contextlib.suppress(BufferError):  # a file is in it
                self.views += bev.output.peek(5)
        elif n < 35 and self.views:
            self.views.pop(self.random.randrange(len(self.views))).release()
        elif n < 36:
            timer = Timer(self.base, self.act)
            timer.add(0)
        elif n < 37 and self.chance(0.3):
            assert bev.ptr
        elif n < 38:
            bev.set_timeouts(read=self.random.choice([None, 100]), write=None)
        elif n < 39 and self.chance(0.2):
            bev.set_rate_limit(self.random.choice([None, TokenBucketConfig(10000, tick=0.001)]))
        elif n == 39 and self.chance(0.1):
            self.closed[i] = True
            bev.close()
        if not self.closed[i]:
            expected = EV_READ | (EV_WRITE if self.on[i] else 0)
            assert bev.enabled == expected, (n, i)

    def on_read(self, bev: BufferEvent, _i: int) -> None:
        if self.depth > 5:
            return
        self.depth += 1
        bev.input.drain(len(bev.input))
        for _ in range(self.random.randrange(6)):
            self.act(self.depth)
        self.depth -= 1

    def on_write(self, _bev: BufferEvent, _i: int) -> None:
        if self.chance(0.2):
            self.act()

    def on_event(self, _bev: BufferEvent, what: int, i: int) -> None:
        raise AssertionError((what, i, self.wires[i].bev.error))

    def on_output(self, _buf: EvBuffer, _size: int, added: int, gone: int, i: int) -> None:
        if self.chance(0.05) and not self.closed[i]:
            assert bool(self.wires[i].bev.enabled & EV_WRITE) is self.on[i], (added, gone)

    def receive(self) -> None:
        for i, one in enumerate(self.wires):
            if self.chance(0.7):
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    self.got[i] += one.peer.recv(self.random.choice([100, 100000]))

    def check(self) -> None:
        for got, wanted in zip(self.got, self.wanted, strict=True):
            assert wanted.startswith(got)

    def run(self) -> None:
        for _ in range(60):
            for one in self.wires:
                if self.chance(0.5):
                    with contextlib.suppress(
                        BlockingIOError, BrokenPipeError, ConnectionResetError
                    ):
                        one.peer.send(b"?" * self.random.randrange(1, 50))
            self.base.loop(ONE_PASS)
            self.receive()
            self.check()

    def finish(self, run_until: RunUntil) -> None:
        """Now all may go out, and all comes."""
        for view in self.views:
            view.release()
        self.over = True
        self.on = [True for _ in self.wires]
        for i, one in enumerate(self.wires):
            if not self.closed[i]:
                one.bev.setcb()
                one.bev.set_rate_limit(None)
                one.bev.enable(EV_WRITE)

        def receive(_fd: int, _what: int, i: int) -> None:
            with contextlib.suppress(ConnectionResetError):
                self.got[i] += self.wires[i].peer.recv(1 << 20)

        def all_there() -> bool:
            self.check()
            return all(
                closed or got == wanted
                for closed, got, wanted in zip(self.closed, self.got, self.wanted, strict=True)
            )

        events = [
            Event(self.base, one.peer, EV_READ | EV_PERSIST, receive, i)
            for i, one in enumerate(self.wires)
            if not self.closed[i]
        ]
        for event in events:
            event.add()
        run_until(all_there)
        for event in events:
            event.close()
        few_rounds(self.base, 3)
        assert not any(received(one.peer) for one in self.wires if not one.bev.closed)


@pytest.mark.parametrize("seed", range(40))
def test_each_peer_gets_exactly_what_was_written_in_order(
    base: EventBase, run_until: RunUntil, seed: int
) -> None:
    model = Model(base, seed)
    try:
        model.run()
        model.finish(run_until)
    finally:
        for one in model.wires:
            one.peer.close()
