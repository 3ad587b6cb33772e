"""What libevent's own tests of bufferevents do (regress_bufferevent, test-ratelim, test-eof,
test-weof), asked of the classes. Filters have a file of their own."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from common import few_rounds
from conftest import RunUntil

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
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    BufferEvent,
    EvBuffer,
    Event,
    EventBase,
    Listener,
    RateLimitGroup,
    Timer,
    TokenBucketConfig,
)

Sockets = tuple[socket.socket, socket.socket]
Ends = tuple[BufferEvent, BufferEvent]
ANY_PORT = ("127.0.0.1", 0)
TEXT = b"Two ends of one thing, and what is said at the one is heard at the other"
DEFER, LOCK = BEV_OPT_DEFER_CALLBACKS, BEV_OPT_THREADSAFE
OPTIONS = {
    "plain": 0,
    "defer": DEFER,
    "lock": LOCK,
    "lock defer": LOCK | DEFER,
    "unlocked": LOCK | DEFER | BEV_OPT_UNLOCK_CALLBACKS,
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@pytest.fixture(params=["sockets", "pair"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_ends(base: EventBase, kind: str) -> Callable[..., Ends]:
    """make_ends(options=0): two bufferevents, what is written to one is read from the other."""

    def make(options: int = 0) -> Ends:
        if kind == "pair":
            return BufferEvent.pair(base, options)
        a, b = socket.socketpair()
        return BufferEvent.socket(base, a, options), BufferEvent.socket(base, b, options)

    return make


MakeEnds = Callable[..., Ends]


@pytest.fixture
def closed_port() -> Iterator[tuple[str, int]]:
    """An address that is bound, and that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(ANY_PORT)
        yield bound.getsockname()


def pattern(n: int) -> bytes:
    return bytes(i & 0xFF for i in range(n))


# ---- data, flush ----


@each_option
@pytest.mark.parametrize("flush", [None, BEV_NORMAL, BEV_FLUSH, BEV_FINISHED])
def test_a_block_arrives_whole_and_then_the_loop_ends(
    base: EventBase, make_ends: MakeEnds, kind: str, options: int, flush: int | None
) -> None:
    first, second = make_ends(options)
    whole: list[bytes] = []
    written: list[int] = []
    events: list[int] = []

    def read(bev: BufferEvent) -> None:
        if len(bev.input) == 8333:
            taken = EvBuffer()
            bev.read_buffer(taken)
            bev.disable(EV_READ)
            whole.append(bytes(taken))

    for bev in (first, second):
        bev.setcb(
            read,
            lambda bev: written.append(len(bev.output)),
            lambda _bev, what: events.append(what),
        )
    first.disable(EV_READ)
    second.enable(EV_READ)
    assert first.enabled == EV_WRITE
    assert second.enabled == EV_READ | EV_WRITE
    first.write(pattern(8333))
    if flush is not None:
        first.flush(EV_WRITE, flush)
    assert base.dispatch() == 1
    assert whole == [pattern(8333)]
    assert 0 in written
    assert events == (
        [BEV_EVENT_READING | BEV_EVENT_EOF] if (kind, flush) == ("pair", BEV_FINISHED) else []
    )


@each_option
def test_watermarks_bound_what_a_callback_sees(
    base: EventBase, make_ends: MakeEnds, options: int
) -> None:
    """65,000 bytes, read by 10 to 20 at a time; the writer hears of it from 100 left on."""
    first, second = make_ends(options)
    sizes: list[int] = []
    left: list[int] = []

    def read(bev: BufferEvent) -> None:
        taken = EvBuffer()
        bev.read_buffer(taken)
        sizes.append(len(taken))
        if sum(sizes) == 65_000:
            bev.disable(EV_READ)

    first.setcb(None, lambda bev: left.append(len(bev.output)))
    second.setcb(read)
    first.disable(EV_READ)
    second.enable(EV_READ)
    second.setwatermark(EV_READ, 10, 20)
    first.setwatermark(EV_WRITE, 100, 2000)
    assert second.getwatermark(EV_READ) == (10, 20)
    assert first.getwatermark(EV_WRITE) == (100, 2000)
    with pytest.raises(ValueError, match="bufferevent_getwatermark"):
        first.getwatermark(EV_READ | EV_WRITE)
    first.write(pattern(65_000))
    assert base.dispatch() == 1
    assert sum(sizes) == 65_000
    assert min(sizes) >= 10
    assert max(sizes) <= 20
    assert max(left) <= 100
    assert left[-1] == 0


def test_a_low_watermark_that_is_lowered_lets_what_is_there_be_triggered(
    base: EventBase, make_ends: MakeEnds, run_until: RunUntil
) -> None:
    first, second = make_ends()
    sizes: list[int] = []
    second.setcb(lambda bev: sizes.append(len(bev.read())))
    second.setwatermark(EV_READ, 100, 0)
    second.enable(EV_READ)
    first.write(b"x" * 60)
    run_until(lambda: len(second.input) == 60)
    second.trigger(EV_READ)
    assert sizes == []
    second.setwatermark(EV_READ, 50, 0)
    second.trigger(EV_READ)
    run_until(lambda: sizes)
    assert sizes == [60]


def test_flush_of_one_that_may_not_write_moves_it_all_the_same(base: EventBase) -> None:
    """A pair's flush looks at neither end's switches, only at the mode."""
    first, second = BufferEvent.pair(base)
    first.disable(EV_WRITE)
    second.enable(EV_READ)
    first.write(b"abc")
    assert second.input == b""
    assert first.flush(EV_WRITE, BEV_NORMAL) is False
    assert first.flush(EV_WRITE, BEV_FLUSH) is True
    assert second.input == b"abc"


def test_flush_for_reading_takes_what_the_partner_has_to_write(base: EventBase) -> None:
    first, second = BufferEvent.pair(base)
    first.write(b"abc")
    second.write(b"xyz")
    assert second.flush(EV_READ, BEV_FLUSH) is True
    assert (second.input == b"abc", first.input == b"") == (True, True)
    assert second.flush(EV_READ | EV_WRITE, BEV_FLUSH) is True
    assert first.input == b"xyz"


@pytest.mark.parametrize(
    ("what", "seen"),
    [
        (EV_WRITE, BEV_EVENT_READING | BEV_EVENT_EOF),
        (EV_READ, BEV_EVENT_WRITING | BEV_EVENT_EOF),
        (EV_READ | EV_WRITE, BEV_EVENT_READING | BEV_EVENT_WRITING | BEV_EVENT_EOF),
    ],
)
def test_the_end_by_flush_names_the_partners_direction(
    base: EventBase, what: int, seen: int
) -> None:
    first, second = BufferEvent.pair(base)
    events: list[int] = []
    first.setcb(None, None, lambda _bev, _what: events.append(-1))
    second.setcb(None, None, lambda _bev, what: events.append(what))
    second.enable(EV_READ)
    first.flush(what, BEV_FINISHED)
    base.loop(EVLOOP_NONBLOCK)
    assert events == [seen]


LOCKS = """
import gc, itertools, socket
from pylibevent import *

lib.evthread_enable_lock_debugging()
LOCK, DEFER, UNLOCK = BEV_OPT_THREADSAFE, BEV_OPT_DEFER_CALLBACKS, BEV_OPT_UNLOCK_CALLBACKS
for options, order, rounds in itertools.product(
    (LOCK, LOCK | DEFER, LOCK | DEFER | UNLOCK), ((0, 1), (1, 0), (0,), (1,), ()), (0, 1)
):
    base = EventBase()
    group = RateLimitGroup(base, TokenBucketConfig(9, 9, 9, 9, 0.001))
    a, b = socket.socketpair()
    ends = [BufferEvent.socket(base, fd, options | 1) for fd in (a, b)]
    pair = BufferEvent.pair(base, options)
    for one in ends:
        one.add_to_rate_limit_group(group)
        one.set_rate_limit(TokenBucketConfig(5, 5, 5, 5, 0.001))
    for one in (*ends, *pair):
        one.setcb(lambda bev: bev.read(), lambda bev: None, lambda bev, what: None)
        one.enable(EV_READ)
        one.write(b'x' * 50)
        with one.lock():
            one.write(b'y')
    for _ in range(rounds * 5):
        base.loop(EVLOOP_NONBLOCK)
    for i in order:
        pair[i].close()
        ends[i].close()
    for _ in range(rounds * 5):
        base.loop(EVLOOP_NONBLOCK)
    base.close()
    del base, ends, pair, group
    gc.collect()
print("through")
"""


def test_locks_are_let_go_of_before_they_are_freed() -> None:
    """Under evthread's lock debugging, which ends the process over a lock that is freed while it
    is held, or held after it was freed; pairs share theirs."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", LOCKS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "")


# ---- connect ----


@each_option
def test_two_connect_and_get_a_text_that_nobody_took_before_the_end(
    base: EventBase, run_until: RunUntil, options: int
) -> None:
    """The server closes its side in the write callback; the text is in the input at the end."""
    options |= BEV_OPT_CLOSE_ON_FREE

    def flushed(bev: BufferEvent) -> None:
        if not bev.output:
            bev.disable(EV_READ | EV_WRITE)
            bev.close()

    def accepted(_listener: Listener, fd: int, _address: object) -> None:
        bev = BufferEvent.socket(base, fd, options)
        bev.setcb(None, flushed, lambda _bev, what: events.append(("server", what)))
        bev.write(TEXT)

    events: list[tuple[str, Any]] = []
    reads: list[int] = []
    texts: list[bytes] = []

    def event(bev: BufferEvent, what: int) -> None:
        events.append(("client", what))
        if what & BEV_EVENT_CONNECTED:
            bev.enable(EV_READ)
        if what & BEV_EVENT_EOF:
            texts.append(bev.read())

    listener = Listener.bind(base, accepted, ANY_PORT)
    clients = [BufferEvent.socket(base, options=options) for _ in range(2)]
    for client in clients:
        client.setcb(lambda bev: reads.append(len(bev.input)), None, event)
        client.enable(EV_READ)
        client.connect(listener.address)
    run_until(lambda: len(texts) == 2)
    assert texts == [TEXT, TEXT]
    assert len(reads) >= 2
    assert [what for who, what in events if who == "server"] == []
    assert [what for _, what in events].count(BEV_EVENT_CONNECTED) == 2


@each_option
def test_a_refused_connection_is_one_error_event_and_nothing_else(
    base: EventBase, closed_port: tuple[str, int], options: int
) -> None:
    calls: list[Any] = []
    bev = BufferEvent.socket(base, options=BEV_OPT_CLOSE_ON_FREE | options)
    bev.setcb(
        lambda _bev: calls.append("read"),
        lambda _bev: calls.append("write"),
        lambda bev, what: calls.append((what, type(bev.error))),
    )
    bev.enable(EV_READ | EV_WRITE)
    bev.connect(closed_port)
    assert calls == []
    assert base.dispatch() == 1
    assert calls == [(BEV_EVENT_ERROR, ConnectionRefusedError)]


def test_what_was_written_before_a_refused_connection_stays(
    base: EventBase, closed_port: tuple[str, int], run_until: RunUntil
) -> None:
    """It goes out once the bufferevent has connected elsewhere."""
    events: list[int] = []
    bev = BufferEvent.socket(base)
    bev.setcb(None, None, lambda _bev, what: events.append(what))
    bev.write(TEXT)
    bev.connect(closed_port)
    run_until(lambda: events)
    assert events == [BEV_EVENT_ERROR]
    assert bev.output == TEXT
    with socket.create_server(ANY_PORT) as server:
        refused, bev.fd = bev.fd, -1
        os.close(refused)
        bev.connect(server.getsockname())
        run_until(lambda: not bev.output)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000) == TEXT
        bev.close()


@each_option
def test_what_is_written_before_it_has_connected_goes_out_after_that(
    base: EventBase, run_until: RunUntil, options: int
) -> None:
    order: list[Any] = []
    bev = BufferEvent.socket(base, options=BEV_OPT_CLOSE_ON_FREE | options)
    bev.setcb(
        None,
        lambda bev: order.append(("left", len(bev.output))),
        lambda _bev, what: order.append(what),
    )
    with socket.create_server(ANY_PORT) as server:
        bev.write(TEXT[:20])
        bev.connect(server.getsockname())
        bev.write(TEXT[20:])
        assert order == []
        run_until(lambda: ("left", 0) in order)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000) == TEXT
        assert order[0] == BEV_EVENT_CONNECTED
        bev.close()


def test_writing_that_is_off_when_it_connects_starts_with_enable(
    base: EventBase, run_until: RunUntil
) -> None:
    events: list[int] = []

    def event(bev: BufferEvent, what: int) -> None:
        events.append(what)
        bev.disable(EV_WRITE)

    bev = BufferEvent.socket(base)
    bev.setcb(None, None, event)
    with socket.create_server(ANY_PORT) as server:
        bev.write(TEXT)
        bev.connect(server.getsockname())
        run_until(lambda: events)
        assert events == [BEV_EVENT_CONNECTED]
        assert bev.output == TEXT
        bev.enable(EV_WRITE)
        run_until(lambda: not bev.output)
        bev.close()


def test_connecting_a_socket_that_it_was_given_before(base: EventBase, run_until: RunUntil) -> None:
    events: list[int] = []
    mine = socket.socket()
    mine.bind(ANY_PORT)
    address = mine.getsockname()
    bev = BufferEvent.socket(base)
    bev.fd = mine
    bev.setcb(None, None, lambda _bev, what: events.append(what))
    with socket.create_server(ANY_PORT) as server:
        bev.connect(server.getsockname())
        run_until(lambda: events)
        peer, where = server.accept()
        peer.close()
        assert (events, where) == ([BEV_EVENT_CONNECTED], address)
        bev.close()


@pytest.mark.parametrize(
    ("host", "family"),
    [("::1", socket.AF_INET), ("127.0.0.1", socket.AF_INET6), ("127.0.0.1.5", socket.AF_INET)],
)
@each_option
def test_a_name_that_has_no_address_is_one_error_event(
    base: EventBase, host: str, family: int, options: int
) -> None:
    events: list[tuple[int, Any]] = []
    bev = BufferEvent.socket(base, options=BEV_OPT_CLOSE_ON_FREE | options)
    bev.setcb(None, None, lambda bev, what: events.append((what, bev.dns_error)))
    bev.connect_hostname(host, 80, family)
    few_rounds(base)
    assert [what for what, _ in events] == [BEV_EVENT_ERROR]
    assert isinstance(events[0][1], socket.gaierror)
    assert (bev.fd, bev.error) == (-1, None)


def test_a_name_looked_up_for_a_socket_that_it_has(base: EventBase, run_until: RunUntil) -> None:
    events: list[int] = []
    mine = socket.socket()
    mine.bind(ANY_PORT)
    address = mine.getsockname()
    bev = BufferEvent.socket(base, mine)
    bev.setcb(None, None, lambda _bev, what: events.append(what))
    with socket.create_server(ANY_PORT) as server:
        bev.connect_hostname("127.0.0.1", server.getsockname()[1])
        run_until(lambda: events)
        peer, where = server.accept()
        peer.close()
        assert (events, where) == ([BEV_EVENT_CONNECTED], address)
        bev.close()


# ---- another descriptor ----


def test_the_output_goes_on_at_another_descriptor(base: EventBase, run_until: RunUntil) -> None:
    """setfd changes where it reads and writes, and neither closes the old one nor loses a byte."""
    (a, b), (c, d) = socket.socketpair(), socket.socketpair()
    with a, b, c, d:
        bev = BufferEvent.socket(base, a.fileno(), options=0)
        got: list[bytes] = []
        bev.setcb(lambda bev: got.append(bev.read()))
        bev.enable(EV_READ)
        bev.write(b"to b")
        run_until(lambda: not bev.output)
        bev.disable(EV_WRITE)
        bev.write(b"to d")
        bev.fd = c.fileno()
        b.send(b"unheard")
        d.send(b"heard")
        bev.enable(EV_WRITE)
        run_until(lambda: got and not bev.output)
        assert (got, b.recv(100), d.recv(100)) == ([b"heard"], b"to b", b"to d")
        bev.fd = a.fileno()
        run_until(lambda: len(got) == 2)
        assert got[1] == b"unheard"
        bev.close()
        assert (a.fileno() >= 0, os.get_blocking(c.fileno())) == (True, False)


def test_without_a_descriptor_it_waits(base: EventBase, run_until: RunUntil) -> None:
    a, b = socket.socketpair()
    with b:
        bev = BufferEvent.socket(base, a)
        fd = bev.fd
        events: list[int] = []
        bev.setcb(None, None, lambda _bev, what: events.append(what))
        bev.enable(EV_READ)
        bev.fd = -1
        bev.write(TEXT)
        b.send(b"x")
        few_rounds(base)
        assert (bev.output == TEXT, events) == (True, [])
        bev.fd = fd
        run_until(lambda: not bev.output)
        assert b.recv(1000) == TEXT
        bev.close()


# ---- timeouts ----


@each_option
def test_both_timeouts_of_one_that_can_neither_read_nor_write(
    base: EventBase, kind: str, options: int
) -> None:
    """The writing one is due first. Of the other end, which does not read and has nothing to
    write, a pair has nothing to say; without a descriptor it waits to write, and times out."""
    if kind == "pair":
        first, second = BufferEvent.pair(base, options)
    else:
        first, second = (BufferEvent.socket(base, options=options) for _ in range(2))
    seen: dict[str, list[int]] = {"first": [], "second": []}
    called: list[str] = []
    for name, bev in (("first", first), ("second", second)):
        bev.setcb(
            lambda _bev, name: called.append(name),
            lambda _bev, name: called.append(name),
            lambda _bev, what, name: seen[name].append(what),
            name,
        )
    second.disable(EV_READ)
    first.set_timeouts(read=0.06, write=0.02)
    first.write(b"ABCDEFG")
    first.enable(EV_READ | EV_WRITE)
    second.set_timeouts(read=0.02, write=0.04)
    second.enable(EV_WRITE)
    base.loopexit(0.15)
    base.dispatch()
    assert seen["first"] == [
        BEV_EVENT_WRITING | BEV_EVENT_TIMEOUT,
        BEV_EVENT_READING | BEV_EVENT_TIMEOUT,
    ]
    assert seen["second"] == ([] if kind == "pair" else [BEV_EVENT_WRITING | BEV_EVENT_TIMEOUT])
    assert called == []
    assert first.enabled == 0
    assert first.output == b"ABCDEFG"


def test_a_timeout_comes_again_after_enable(
    base: EventBase, make_ends: MakeEnds, run_until: RunUntil
) -> None:
    first, _second = make_ends()
    seen: list[int] = []
    first.setcb(None, None, lambda _bev, what: seen.append(what))
    first.set_timeouts(read=0.01)
    first.enable(EV_READ)
    run_until(lambda: seen)
    assert first.enabled == EV_WRITE
    base.loopexit(0.05)
    base.dispatch()
    assert len(seen) == 1
    first.enable(EV_READ)
    run_until(lambda: len(seen) == 2)
    assert set(seen) == {BEV_EVENT_READING | BEV_EVENT_TIMEOUT}


def test_a_timeout_set_in_its_own_callback_holds_from_then_on(
    base: EventBase, make_ends: MakeEnds, run_until: RunUntil
) -> None:
    first, _second = make_ends()
    seen: list[int] = []

    def event(bev: BufferEvent, what: int) -> None:
        seen.append(what)
        bev.set_timeouts(read=0.01 if len(seen) < 3 else None)
        bev.enable(EV_READ)

    first.setcb(None, None, event)
    first.set_timeouts(read=0.02)
    first.enable(EV_READ)
    run_until(lambda: len(seen) == 3)
    base.loopexit(0.05)
    base.dispatch()
    assert len(seen) == 3


# ---- trigger ----


@pytest.mark.parametrize("postpone", [False, True])
@each_option
def test_triggered_from_inside_a_callback(
    base: EventBase, run_until: RunUntil, options: int, postpone: bool
) -> None:
    """Below the watermark nothing is called. Else a callback that is neither deferred nor asked to
    wait is called on the spot, within the one that runs."""
    how = BEV_TRIG_DEFER_CALLBACKS if postpone else 0
    waits = postpone or bool(options & DEFER)
    order: list[Any] = []

    def triggered(bev: BufferEvent) -> None:
        order.append("triggered")
        bev.trigger_event(0xFF, how)

    def event(_bev: BufferEvent, what: int) -> None:
        order.append(int(what))

    def read(bev: BufferEvent) -> None:
        order.append("read")
        bev.setcb(triggered, None, event)
        bev.setwatermark(EV_READ, len(bev.input) + 1, 0)
        bev.trigger(EV_READ, how)
        assert order == ["read"]
        bev.trigger(EV_READ, how | BEV_TRIG_IGNORE_WATERMARKS)
        order.append("back")
        bev.setwatermark(EV_READ, 0, 0)

    a, b = socket.socketpair()
    with b:
        bev = BufferEvent.socket(base, a, BEV_OPT_CLOSE_ON_FREE | options)
        bev.setcb(read, None, event)
        bev.enable(EV_READ)
        b.send(TEXT)
        run_until(lambda: 0xFF in order and "back" in order)
        base.loop(EVLOOP_NONBLOCK)
        bev.close()
    if waits:
        assert order == ["read", "back", "triggered", 0xFF]
    else:
        assert order == ["read", "triggered", 0xFF, "back"]


@pytest.mark.parametrize(
    ("options", "calls_at_once"),
    [(0, True), (BEV_TRIG_IGNORE_WATERMARKS, True), (BEV_TRIG_DEFER_CALLBACKS, False)],
)
def test_trigger_event_heeds_no_watermark(
    base: EventBase, options: int, calls_at_once: bool
) -> None:
    seen: list[int] = []
    bev = BufferEvent.socket(base)
    bev.setcb(None, None, lambda _bev, what: seen.append(what))
    bev.setwatermark(EV_READ, 100, 200)
    bev.trigger_event(BEV_EVENT_EOF | BEV_EVENT_READING, options)
    assert bool(seen) is calls_at_once
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [BEV_EVENT_EOF | BEV_EVENT_READING]


def test_events_triggered_while_one_waits_come_together(base: EventBase) -> None:
    """Connected first, and the rest in one call."""
    seen: list[int] = []
    bev, _ = BufferEvent.pair(base)
    bev.setcb(None, None, lambda _bev, what: seen.append(what))
    bev.trigger_event(BEV_EVENT_EOF)
    bev.trigger_event(BEV_EVENT_READING)
    bev.trigger_event(BEV_EVENT_CONNECTED)
    assert seen == []
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [BEV_EVENT_CONNECTED, BEV_EVENT_READING | BEV_EVENT_EOF]


def test_triggers_that_wait_are_one_call_each(base: EventBase) -> None:
    calls: list[str] = []
    bev, _ = BufferEvent.pair(base)
    bev.setcb(lambda _bev: calls.append("read"), lambda _bev: calls.append("write"))
    for _ in range(3):
        bev.trigger(EV_READ)
        bev.trigger(EV_WRITE | EV_READ)
    base.loop(EVLOOP_NONBLOCK)
    assert calls == ["read", "write"]


# ---- test-eof, test-weof ----


def test_the_end_is_one_more_readable_event(base: EventBase) -> None:
    """Data and then the end, with a time limit that the reader sets anew and that never comes."""
    a, b = socket.socketpair()
    with a, b:
        a.send(b"test string\0")
        a.shutdown(socket.SHUT_WR)
        calls: list[tuple[int, bytes]] = []

        def read(fd: int, what: int) -> None:
            calls.append((what, os.read(fd, 256)))
            if calls[-1][1]:
                event.add(60)

        event = Event(base, b, EV_READ | EV_TIMEOUT, read)
        event.add(60)
        assert base.dispatch() == 1
        assert calls == [(EV_READ, b"test string\0"), (EV_READ, b"")]


def test_a_peer_that_is_gone_is_one_more_writable_event(base: EventBase) -> None:
    a, b = socket.socketpair()
    b.setblocking(False)
    with b:
        calls: list[Any] = []

        def write(_fd: int, _what: int) -> None:
            try:
                calls.append(b.send(b"test string\0"))
            except OSError as error:
                calls.append(error.errno)
                return
            event.add()
            a.close()

        event = Event(base, b, EV_WRITE, write)
        event.add()
        assert base.dispatch() == 1
        assert calls == [12, errno.EPIPE]


def test_a_reader_hears_of_the_data_and_then_of_the_end(
    base: EventBase, make_ends: MakeEnds, kind: str
) -> None:
    order: list[Any] = []
    writer, reader = make_ends()
    reader.setcb(lambda bev: order.append(bev.read()), None, lambda _bev, what: order.append(what))
    reader.enable(EV_READ)
    writer.write(b"test string\0")
    if kind == "pair":
        writer.flush(EV_WRITE, BEV_FINISHED)
    else:
        writer.close_after_write()
    base.dispatch()
    assert order == [b"test string\0", BEV_EVENT_READING | BEV_EVENT_EOF]


@each_option
def test_a_writer_hears_of_a_peer_that_is_gone(
    base: EventBase, run_until: RunUntil, options: int
) -> None:
    order: list[Any] = []
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, b, BEV_OPT_CLOSE_ON_FREE | options)

    def event(bev: BufferEvent, what: int) -> None:
        order.append((what, type(bev.error)))

    def write(bev: BufferEvent) -> None:
        order.append("written")
        a.close()
        bev.write(b"once more")

    bev.setcb(None, write, event)
    bev.write(b"test string\0")
    run_until(lambda: len(order) == 2)
    assert order == ["written", (BEV_EVENT_WRITING | BEV_EVENT_ERROR, BrokenPipeError)]
    assert bev.enabled == 0  # writing stopped; it never read
    bev.close()


# ---- test-ratelim ----


class Traffic:
    """Clients that send all they can to an echo server whose side of the connections is limited,
    counted against the ticks that have gone by."""

    tick = 0.02

    def __init__(self, base: EventBase, clients: int, options: int = 0) -> None:
        self.base = base
        self.options = BEV_OPT_CLOSE_ON_FREE | options
        self.servers: list[BufferEvent] = []
        self.read: dict[BufferEvent, int] = {}
        self.received = [0] * clients
        self.limit: TokenBucketConfig | None = None
        self.group: RateLimitGroup | None = None
        self.last = self.start = self.ticks()
        self.listener = Listener.bind(base, self.accept, ANY_PORT)

    def ticks(self) -> int:
        return round(self.base.gettimeofday_cached() * 1_000_000) // round(self.tick * 1_000_000)

    def cfg(self, rate: int) -> TokenBucketConfig:
        return TokenBucketConfig(rate, rate * 4, rate, rate * 4, self.tick)

    def accept(self, _listener: Listener, fd: int, _address: object) -> None:
        bev = BufferEvent.socket(self.base, fd, self.options)
        bev.setcb(self.echo, None, self.gone)
        if self.limit:
            bev.set_rate_limit(self.limit)
            assert bev.token_bucket_cfg is self.limit
        if self.group:
            bev.add_to_rate_limit_group(self.group)
        bev.enable(EV_READ)
        self.servers.append(bev)
        self.read[bev] = 0

    def echo(self, bev: BufferEvent) -> None:
        self.read[bev] += len(bev.input)
        bev.write_buffer(bev.input)

    def gone(self, bev: BufferEvent, what: int) -> None:
        assert what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)
        bev.close()
        self.servers.remove(bev)

    def loud(self, bev: BufferEvent, _i: int) -> None:
        while len(bev.output) < 8192:
            bev.write(b"l" * 1024)

    def hear(self, bev: BufferEvent, i: int) -> None:
        self.received[i] += len(bev.read())

    def connected(self, bev: BufferEvent, what: int, i: int) -> None:
        assert what & BEV_EVENT_CONNECTED
        self.loud(bev, i)

    def check(self) -> None:
        """No bucket is above its burst, no sum above what the ticks have added."""
        self.last = max(self.last, self.ticks())
        allowed = 1 + self.last - self.start
        if self.limit and self.limit.read_rate:
            for bev in self.servers:
                assert bev.read_limit <= 4 * self.limit.read_rate
                assert bev.write_limit <= 4 * self.limit.read_rate
                assert bev.max_to_read <= 4 * self.limit.read_rate
                assert self.read[bev] <= allowed * self.limit.read_rate

    def run(self, ticks: int) -> None:
        clients = []
        for i in range(len(self.received)):
            client = BufferEvent.socket(self.base)
            client.setcb(self.hear, self.loud, self.connected, i)
            client.enable(EV_READ)
            client.connect(self.listener.address)
            clients.append(client)
        checks = Timer(self.base, self.check, persist=True)
        checks.add(self.tick / 2)
        self.base.loopexit(ticks * self.tick)
        self.base.dispatch()
        self.check()
        checks.close()
        for client in clients:
            client.close()
        self.listener.close()
        while self.servers:  # each reads what is left, at its rate; that is not waited for
            self.servers.pop().close()


@pytest.mark.parametrize("options", [0, LOCK], ids=["plain", "lock"])
@pytest.mark.parametrize(
    ("each", "together", "least", "drain"),
    [
        (1000, None, None, 0),
        (None, 3000, None, 0),
        (1000, 3000, None, 0),
        (None, 3000, 500, 0),
        (None, 3000, 1, 0),
        (None, 3000, None, 1000),
    ],
    ids=["each", "group", "both", "large shares", "small shares", "drained group"],
)
def test_an_echo_server_keeps_to_its_limits(
    base: EventBase,
    each: int | None,
    together: int | None,
    least: int | None,
    drain: int,
    options: int,
) -> None:
    """8 clients for 12 ticks. `drain` bytes of the group's are spent elsewhere in each tick."""
    traffic = Traffic(base, 8, options)
    if each:
        traffic.limit = traffic.cfg(each)
    group = None
    if together:
        group = traffic.group = RateLimitGroup(base, traffic.cfg(together))
        if least:
            group.set_min_share(least)
    drained: list[int] = []

    def spend() -> None:
        assert group
        group.decrement_read_limit(drain)
        group.decrement_write_limit(drain)
        drained.append(drain)

    spender = Timer(base, spend, persist=True)
    if drain:
        spender.add(traffic.tick)
    traffic.run(12)
    spender.close()
    ticks = 1 + traffic.last - traffic.start
    assert min(traffic.read.values()) > 0
    assert sum(traffic.received) > 0
    if each:
        assert max(traffic.received) <= ticks * each
    if group and together:
        read, written = group.get_totals()
        debt = -min(0, group.read_limit, group.write_limit)  # drained, and not yet made good
        most = ticks * together - sum(drained) + (least or 64) + debt
        assert read == sum(traffic.read.values()) <= most
        assert sum(traffic.received) <= written <= most
        group.close()
