"""BufferEvent.filter: bytes that pass through functions, and what may go on meanwhile."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from common import few_rounds
from conftest import RunUntil

from pylibevent import (
    BEV_ERROR,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_READING,
    BEV_EVENT_TIMEOUT,
    BEV_EVENT_WRITING,
    BEV_FINISHED,
    BEV_FLUSH,
    BEV_NEED_MORE,
    BEV_NORMAL,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    EV_READ,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    BufferEvent,
    ClosedError,
    EvBuffer,
    EventBase,
    FlushMode,
    Timer,
)

Both = tuple[BufferEvent, BufferEvent]
Calls = list[tuple[int, FlushMode]]
FAILED_READING = BEV_EVENT_ERROR | BEV_EVENT_READING
FAILED_WRITING = BEV_EVENT_ERROR | BEV_EVENT_WRITING


class Seen:
    """What the callbacks of a bufferevent were called with."""

    def __init__(self, bev: BufferEvent, take: bool = True) -> None:
        self.take = take
        self.data: Any = bytearray()
        self.reads = self.writes = 0
        self.events: list[int] = []
        bev.setcb(self.read, self.write, self.event)
        bev.enable(EV_READ)

    def read(self, bev: BufferEvent) -> None:
        self.reads += 1
        if self.take:
            self.data += bev.read()

    def write(self, _bev: BufferEvent) -> None:
        self.writes += 1

    def event(self, _bev: BufferEvent, what: int) -> None:
        self.events.append(what)


def cpu_of_a_loop(base: EventBase, seconds: float) -> float:
    base.loopexit(seconds)
    before = time.process_time()
    base.dispatch()
    return time.process_time() - before


def amount(src: EvBuffer, limit: int) -> int:
    return len(src) if limit < 0 else min(limit, len(src))


def upper(src: EvBuffer, dst: EvBuffer, limit: int, _mode: FlushMode) -> int:
    if not src:
        return BEV_NEED_MORE
    dst.add(src.remove(amount(src, limit)).upper())
    return BEV_OK


def xor(src: EvBuffer, dst: EvBuffer, limit: int, _mode: FlushMode) -> int:
    if not src:
        return BEV_NEED_MORE
    dst.add(bytes(byte ^ 0x55 for byte in src.remove(min(amount(src, limit), 1000))))
    return BEV_OK


def pairs(src: EvBuffer, dst: EvBuffer, limit: int, _mode: FlushMode) -> int:
    """Passes on whole pairs of bytes only."""
    n = amount(src, limit) & ~1
    if n == 0:
        return BEV_NEED_MORE
    src.remove_buffer(dst, n)
    return BEV_OK


def fails(_src: EvBuffer, _dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
    return BEV_ERROR


def raises(_src: EvBuffer, _dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
    raise LookupError("filter")


def recorder(calls: Calls) -> Callable[[EvBuffer, EvBuffer, int, FlushMode], int]:
    def record(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        calls.append((limit, mode))
        n = amount(src, limit)
        return BEV_OK if n and src.remove_buffer(dst, n) else BEV_NEED_MORE

    return record


def socket_pair(base: EventBase) -> Both:
    a, b = socket.socketpair()
    return BufferEvent.socket(base, a), BufferEvent.socket(base, b)


def tcp_pair(base: EventBase) -> Both:
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        b, _ = server.accept()
    return BufferEvent.socket(base, a), BufferEvent.socket(base, b)


def two_deep(base: EventBase) -> Both:
    a, b = BufferEvent.pair(base)
    below, above = BufferEvent.filter(a), BufferEvent.filter(b, xor, xor)
    below.enable(EV_READ)
    above.enable(EV_READ)
    return BufferEvent.filter(below, xor, xor), above


MAKERS: dict[str, Callable[[EventBase], Both]] = {
    "pair": BufferEvent.pair,
    "socket": socket_pair,
    "tcp": tcp_pair,
    "filter": two_deep,
}


@pytest.fixture(params=MAKERS)
def ends(request: pytest.FixtureRequest, base: EventBase) -> Both:
    """Two connected bufferevents of each kind that a filter can be on."""
    return MAKERS[request.param](base)


@pytest.fixture
def pair(base: EventBase) -> Both:
    return BufferEvent.pair(base)


# ---- bytes through it ----


@pytest.mark.parametrize("filter_", [None, xor], ids=["none", "xor"])
def test_bytes_pass_through_both_ways(ends: Both, run_until: RunUntil, filter_: Any) -> None:
    a, b = (BufferEvent.filter(end, filter_, filter_) for end in ends)
    seen_a, seen_b = Seen(a), Seen(b)
    there, back = bytes(range(256)) * 800, bytes(range(255)) * 300
    a.write(there)
    b.write(back)
    run_until(lambda: (seen_b.data, seen_a.data) == (there, back))


def test_the_output_filter_sees_what_is_written_and_the_input_filter_what_comes(
    pair: Both, run_until: RunUntil
) -> None:
    f, peer = BufferEvent.filter(pair[0], pairs, upper), pair[1]
    seen_f, seen_peer = Seen(f), Seen(peer)
    f.write(b"shout")
    peer.write(b"odd")
    run_until(lambda: seen_peer.data and seen_f.data)
    assert (seen_peer.data, seen_f.data) == (b"SHOUT", b"od")


def test_none_passes_everything_on_as_it_is(pair: Both, run_until: RunUntil) -> None:
    f = BufferEvent.filter(pair[0], None, upper)
    seen = Seen(f)
    pair[1].write(b"as it is")
    run_until(lambda: seen.data == b"as it is")


def test_what_waits_for_more_is_passed_on_when_more_has_come(base: EventBase, pair: Both) -> None:
    f = BufferEvent.filter(pair[0], pairs)
    seen = Seen(f)
    got = []
    for piece in (b"a", b"b", b"c"):
        pair[1].write(piece)
        few_rounds(base)
        got.append(bytes(seen.data))
    assert got == [b"", b"ab", b"ab"]
    assert pair[0].input == b"c"


def test_a_filter_may_make_more_of_little(pair: Both, run_until: RunUntil) -> None:
    def expand(src: EvBuffer, dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
        dst.add(src.remove(1) * 100_000)
        return BEV_OK

    f = BufferEvent.filter(pair[0], None, expand)
    seen = Seen(pair[1])
    f.write(b"abc")
    run_until(lambda: len(seen.data) == 300_000)
    assert seen.data == b"".join(byte * 100_000 for byte in (b"a", b"b", b"c"))


def test_data_that_was_there_before_the_filter_passes(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    """LE#362."""
    pair[0].enable(EV_READ)
    pair[1].write(b"early")
    few_rounds(base)
    assert pair[0].input == b"early"
    seen = Seen(BufferEvent.filter(pair[0], upper))
    run_until(lambda: seen.data == b"EARLY")


@pytest.mark.parametrize("options", [0, BEV_OPT_DEFER_CALLBACKS])
def test_a_filter_may_be_made_in_the_read_callback(
    base: EventBase, run_until: RunUntil, options: int
) -> None:
    a, b = socket.socketpair()
    bev, peer = BufferEvent.socket(base, a, options), BufferEvent.socket(base, b)
    seen: list[Seen] = []
    bev.setcb(lambda bev: seen.append(Seen(BufferEvent.filter(bev, upper))))
    bev.setwatermark(EV_READ, 0, 4)
    bev.enable(EV_READ)
    peer.write(b"hello, world")
    run_until(lambda: seen and seen[0].data == b"HELLO, WORLD")


def test_nothing_is_read_before_enable_and_nothing_is_stuck_then(
    base: EventBase, ends: Both, run_until: RunUntil
) -> None:
    f = BufferEvent.filter(ends[0], upper)
    seen = Seen(f)
    f.disable(EV_READ)
    ends[1].write(b"first")
    few_rounds(base)
    assert seen.data == b""
    f.enable(EV_READ)
    run_until(lambda: seen.data)


def test_what_was_written_while_writing_was_disabled_goes_out_with_enable(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    f = BufferEvent.filter(pair[0], None, upper)
    seen = Seen(pair[1])
    f.disable(EV_WRITE)
    f.write(b"later")
    few_rounds(base)
    assert (seen.data, bytes(f.output)) == (b"", b"later")
    f.enable(EV_WRITE)
    run_until(lambda: seen.data == b"LATER")


def test_its_fd_is_that_of_what_it_is_on(base: EventBase) -> None:
    a, _b = socket_pair(base)
    f = BufferEvent.filter(a)
    assert f.fd == a.fd
    with pytest.raises(ValueError, match="out of range"):
        f.fd = 0


def test_underlying_is_what_it_is_on_until_either_is_closed(base: EventBase) -> None:
    (a, _), (c, _) = BufferEvent.pair(base), BufferEvent.pair(base)
    f, g = BufferEvent.filter(a), BufferEvent.filter(c)
    assert (f.underlying, g.underlying, a.underlying) == (a, c, None)
    f.close()
    c.close()
    assert (f.underlying, g.underlying) == (None, None)


# ---- limits, watermarks ----


def test_limit_is_minus_one_without_watermarks(pair: Both, run_until: RunUntil) -> None:
    calls: Calls = []
    f = BufferEvent.filter(pair[0], recorder(calls), recorder(calls))
    Seen(f), Seen(pair[1])
    f.write(b"out")
    pair[1].write(b"in")
    run_until(lambda: len(calls) >= 2)
    assert set(calls) == {(-1, BEV_NORMAL)}


@pytest.mark.parametrize("filter_", [None, xor], ids=["none", "xor"])
def test_no_more_comes_through_than_the_high_watermark(
    base: EventBase, ends: Both, run_until: RunUntil, filter_: Any
) -> None:
    f = BufferEvent.filter(ends[0], filter_, None)
    f.setwatermark(EV_READ, 0, 100)
    seen = Seen(f, take=False)
    ends[1].write(b"x" * 1000)
    few_rounds(base)
    assert len(f.input) == 100
    seen.take = True
    seen.read(f)
    run_until(lambda: len(seen.data) == 1000)


@pytest.mark.parametrize("filter_", [None, upper], ids=["none", "upper"])
def test_the_high_watermark_of_what_is_below_holds_back_and_goes_on(
    base: EventBase, run_until: RunUntil, filter_: Any
) -> None:
    below, peer = socket_pair(base)
    below.setwatermark(EV_WRITE, 0, 5000)
    f = BufferEvent.filter(below, None, filter_)
    f.write(b"y" * 3_000_000)
    few_rounds(base)
    assert len(below.output) <= 5000
    assert len(f.output) > 2_000_000
    seen = Seen(peer)
    run_until(lambda: len(seen.data) == 3_000_000)


@pytest.mark.parametrize("filter_", [None, upper], ids=["none", "upper"])
@pytest.mark.parametrize("high", [0, 100, 1000], ids="below {}".format)
def test_at_the_high_watermark_with_nothing_taken_the_loop_sleeps(
    base: EventBase, ends: Both, run_until: RunUntil, filter_: Any, high: int
) -> None:
    """LE#891, for a filter and for what it is on."""
    ends[0].setwatermark(EV_READ, 0, high)
    f = BufferEvent.filter(ends[0], filter_)
    f.setwatermark(EV_READ, 0, 100)
    seen = Seen(f, take=False)
    ends[1].write(b"x" * 5000)
    few_rounds(base)
    assert cpu_of_a_loop(base, 0.1) < 0.05
    seen.take = True
    f.trigger(EV_READ)
    run_until(lambda: len(seen.data) == 5000)


def test_a_filter_that_needs_more_than_what_is_below_may_read_does_not_spin(
    base: EventBase,
) -> None:
    below, peer = socket_pair(base)
    below.setwatermark(EV_READ, 0, 10)
    Seen(BufferEvent.filter(below, lambda *_: BEV_NEED_MORE))
    peer.write(b"x" * 100)
    few_rounds(base)
    assert cpu_of_a_loop(base, 0.1) < 0.05


@pytest.mark.parametrize("high", [0, 300])
def test_a_higher_watermark_lets_through_what_waited(
    base: EventBase, ends: Both, run_until: RunUntil, high: int
) -> None:
    f = BufferEvent.filter(ends[0])
    f.setwatermark(EV_READ, 0, 100)
    Seen(f, take=False)
    ends[1].write(b"x" * 300)
    few_rounds(base)
    f.setwatermark(EV_READ, 0, high)
    run_until(lambda: len(f.input) == 300)


@pytest.mark.parametrize("how", ["read", "read_buffer", "drain"])
def test_whatever_makes_room_lets_more_through(
    base: EventBase, pair: Both, run_until: RunUntil, how: str
) -> None:
    f = BufferEvent.filter(pair[0])
    f.setwatermark(EV_READ, 0, 100)
    Seen(f, take=False)
    pair[1].write(b"x" * 100)
    few_rounds(base)
    pair[1].write(b"y" * 50)
    pair[1].flush(EV_WRITE, BEV_FLUSH)  # heeds no watermark
    few_rounds(base)
    if how == "read":
        f.read()
    elif how == "read_buffer":
        f.read_buffer(EvBuffer())
    else:
        f.input.drain(100)
    run_until(lambda: f.input == b"y" * 50)


def test_the_end_comes_after_all_that_was_sent_before_it(
    base: EventBase, run_until: RunUntil
) -> None:
    below, peer = socket_pair(base)
    f = BufferEvent.filter(below, upper)
    f.setwatermark(EV_READ, 0, 10)
    order: list[Any] = []
    f.setcb(None, None, lambda bev, what: order.append((bev.read(), what)))
    f.enable(EV_READ)
    peer.write(b"x" * 100)
    peer.close_after_write()
    few_rounds(base)
    taken = b""
    while not order:
        taken += f.read(7)
        few_rounds(base, 3)
    assert taken + order[0][0] == b"X" * 100
    assert order[0][1] == BEV_EVENT_EOF | BEV_EVENT_READING


# ---- BEV_ERROR, exceptions ----


def test_an_error_of_the_input_filter_calls_the_event_callback(
    ends: Both, run_until: RunUntil
) -> None:
    f = BufferEvent.filter(ends[0], fails)
    seen = Seen(f)
    ends[1].write(b"corrupt")
    run_until(lambda: seen.events)
    assert set(seen.events) == {FAILED_READING}
    assert f.error is None
    assert not f.closed
    assert not ends[0].closed


def test_an_error_of_the_output_filter_calls_the_event_callback(
    ends: Both, run_until: RunUntil
) -> None:
    f = BufferEvent.filter(ends[0], None, fails)
    seen = Seen(f)
    f.write(b"x")
    run_until(lambda: seen.events)
    assert set(seen.events) == {FAILED_WRITING}
    assert f.output == b"x"


def test_the_error_of_a_lower_filter_comes_to_the_one_on_top(
    pair: Both, run_until: RunUntil
) -> None:
    low = BufferEvent.filter(pair[0], fails)
    low.enable(EV_READ)
    seen = Seen(BufferEvent.filter(low))
    pair[1].write(b"x")
    run_until(lambda: seen.events == [FAILED_READING])


def test_what_an_input_filter_raises_leaves_dispatch(base: EventBase, pair: Both) -> None:
    f = BufferEvent.filter(pair[0], raises)
    seen = Seen(f)
    pair[1].write(b"x")
    with pytest.raises(LookupError, match="filter"):
        base.dispatch()
    base.dispatch()
    assert seen.events == [FAILED_READING]
    assert not f.closed
    assert pair[0].input == b"x"


def test_what_an_output_filter_raises_leaves_write(base: EventBase, pair: Both) -> None:
    f = BufferEvent.filter(pair[0], None, raises)
    seen = Seen(f)
    with pytest.raises(LookupError, match="filter"):
        f.write(b"x")
    base.dispatch()
    assert seen.events == [FAILED_WRITING]
    assert f.output == b"x"


@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.flush(EV_WRITE, BEV_FLUSH),
        lambda f: f.write_buffer(EvBuffer(b"y")),
        lambda f: f.output.add(b"y"),
        lambda f: f.close_after_write(),
    ],
    ids=["flush", "write_buffer", "output.add", "close_after_write"],
)
def test_what_a_filter_raises_leaves_the_call_that_caused_it(
    base: EventBase, pair: Both, call: Callable[[BufferEvent], object]
) -> None:
    f = BufferEvent.filter(pair[0], None, raises)
    f.disable(EV_WRITE)
    f.write(b"x")
    f.enable(EV_WRITE)
    with pytest.raises(LookupError, match="filter"):
        call(f)
    assert not f.closed
    with pytest.raises(LookupError, match="filter"):
        base.dispatch()  # enable has it tried again


def test_a_filter_that_raised_once_goes_on(base: EventBase, pair: Both) -> None:
    angry = [True]

    def sometimes(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        if angry:
            angry.clear()
            raise LookupError
        return upper(src, dst, limit, mode)

    f = BufferEvent.filter(pair[0], sometimes)
    seen = Seen(f)
    pair[1].write(b"one ")
    with pytest.raises(LookupError):
        base.dispatch()
    pair[1].write(b"two")
    base.dispatch()
    assert seen.data == b"ONE TWO"


@pytest.mark.parametrize("where", ["in", "out"])
def test_the_exception_handler_gets_the_exception_and_the_filter(
    base: EventBase, pair: Both, where: str
) -> None:
    f = BufferEvent.filter(pair[0], raises, raises)
    seen = Seen(f)
    handled: list[Any] = []
    base.exception_handler = lambda exc, source: handled.append((type(exc), source))
    if where == "in":
        pair[1].write(b"x")
    else:
        f.write(b"x")
    base.dispatch()
    assert handled == [(LookupError, f)]
    assert seen.events == [FAILED_READING if where == "in" else FAILED_WRITING]


@pytest.mark.parametrize("where", ["in", "out"])
def test_the_exception_handler_may_close_the_filter(
    base: EventBase, pair: Both, where: str
) -> None:
    f = BufferEvent.filter(pair[0], raises, raises, BEV_OPT_CLOSE_ON_FREE)
    f.enable(EV_READ)
    base.exception_handler = lambda _exc, source: source.close()
    if where == "in":
        pair[1].write(b"x")
        base.dispatch()
    else:
        f.write(b"x")
    assert f.closed
    assert pair[0].closed


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_always_leaves_dispatch(
    base: EventBase, pair: Both, kind: type[BaseException]
) -> None:
    def interrupt(*_: object) -> int:
        raise kind

    base.exception_handler = lambda *_: None
    Seen(BufferEvent.filter(pair[0], interrupt))
    pair[1].write(b"x")
    with pytest.raises(kind):
        base.dispatch()
    base.dispatch()


def test_ctrl_c_ends_a_filter_that_never_comes_to_an_end(base: EventBase, pair: Both) -> None:
    def adds_for_ever(_src: EvBuffer, dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
        dst.add(b"x")
        return BEV_OK

    f = BufferEvent.filter(pair[0], None, adds_for_ever)
    threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        f.write(b"x")
    assert not f.closed


def test_exceptions_of_a_signal_handler_cost_no_byte(base: EventBase, run_until: RunUntil) -> None:
    class Alarm(Exception):
        pass

    def on_alarm(*_: object) -> None:
        raise Alarm

    calls: Calls = []
    below, peer = socket_pair(base)
    f = BufferEvent.filter(below, recorder(calls))
    f.enable(EV_READ)
    alarms, sent = 0, bytearray()
    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        for i in range(300):
            sent += b"%d," % i * 1000
            peer.write(b"%d," % i * 1000)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.000_01 * (1 + i % 30))
                base.loop(EVLOOP_NONBLOCK)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                alarms += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    peer.write(b"!")
    run_until(lambda: len(f.input) == len(sent) + 1)
    assert f.input == sent + b"!"
    assert alarms > 0


@pytest.mark.parametrize(
    "result", [None, 3, -1, "ok", 0.5, 1.0, True, 1 << 70, [], object()], ids=repr
)
def test_another_result_is_a_type_error(base: EventBase, pair: Both, result: Any) -> None:
    f = BufferEvent.filter(pair[0], None, lambda *_: result)
    seen = Seen(f)
    with pytest.raises(TypeError):
        f.write(b"x")
    base.dispatch()
    assert seen.events == [FAILED_WRITING]


@pytest.mark.parametrize("direction", ["in", "out"])
def test_ok_without_having_done_anything_does_not_hang(
    base: EventBase, pair: Both, direction: str
) -> None:
    calls: list[int] = []

    def lazy(*_: object) -> int:
        calls.append(1)
        return BEV_OK

    f = BufferEvent.filter(pair[0], lazy, lazy)
    Seen(f)
    if direction == "in":
        pair[1].write(b"x")
    else:
        f.write(b"x")
    few_rounds(base)
    assert 1 <= len(calls) <= 3


# ---- arguments ----


def test_wrong_arguments(base: EventBase, pair: Both) -> None:
    with pytest.raises(TypeError, match="underlying"):
        BufferEvent.filter(base)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="input_filter"):
        BufferEvent.filter(pair[0], 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="output_filter"):
        BufferEvent.filter(pair[0], None, b"")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="options"):
        BufferEvent.filter(pair[0], options=1 << 20)
    BufferEvent.filter(pair[0])  # it had no effect on what it was to be on


def test_threadsafe_is_refused(base: EventBase, pair: Both) -> None:
    with pytest.raises(ValueError, match="THREADSAFE"):
        BufferEvent.filter(pair[0], options=BEV_OPT_THREADSAFE)
    threadsafe, _ = BufferEvent.pair(base, BEV_OPT_THREADSAFE)
    with pytest.raises(ValueError, match="THREADSAFE"):
        BufferEvent.filter(threadsafe)


def test_unlock_callbacks_works(base: EventBase, pair: Both, run_until: RunUntil) -> None:
    f = BufferEvent.filter(
        pair[0], upper, options=BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS
    )
    seen = Seen(f)
    pair[1].write(b"x")
    run_until(lambda: seen.data == b"X")


def test_what_has_a_filter_on_it_takes_no_callbacks_and_no_other_filter(pair: Both) -> None:
    f = BufferEvent.filter(pair[0])
    with pytest.raises(RuntimeError, match="filter"):
        pair[0].setcb(print)
    with pytest.raises(RuntimeError, match="filter"):
        BufferEvent.filter(pair[0])
    with pytest.raises(RuntimeError, match="filter"):
        pair[0].close_after_write()
    f.close()
    pair[0].setcb(print)


def test_a_closed_underlying_is_a_closed_error(pair: Both) -> None:
    pair[0].close()
    with pytest.raises(ClosedError):
        BufferEvent.filter(pair[0])


def test_making_one_while_a_view_is_out_is_a_buffer_error(base: EventBase, pair: Both) -> None:
    pair[1].disable(EV_READ)
    pair[0].write(b"x")
    view = pair[0].output.peek()
    with pytest.raises(BufferError):
        BufferEvent.filter(pair[0])
    del view
    BufferEvent.filter(pair[0])


def test_from_another_thread_while_the_loop_runs_it_is_a_runtime_error(
    base: EventBase, pair: Both
) -> None:
    f = BufferEvent.filter(pair[0])
    errors: list[BaseException] = []

    def elsewhere() -> None:
        for call in (
            lambda: BufferEvent.filter(pair[1]),
            lambda: f.write(b"x"),
            lambda: f.flush(EV_WRITE, BEV_FLUSH),
            f.close,
        ):
            try:
                call()
            except RuntimeError as error:
                errors.append(error)
        base.loopexit(0)

    thread = threading.Thread(target=elsewhere)
    Timer(base, thread.start).add(0)
    Timer(base, lambda: None).add(10)
    base.dispatch()
    thread.join()
    assert len(errors) == 4
    assert not f.closed


# ---- closing ----


def test_close_on_free_closes_what_it_is_on(ends: Both) -> None:
    f = BufferEvent.filter(ends[0], options=BEV_OPT_CLOSE_ON_FREE)
    f.close()
    assert f.closed
    assert ends[0].closed
    f.close()


@pytest.mark.parametrize("where", ["outside", "callback", "filter"])
def test_without_close_on_free_what_it_was_on_is_usable_again(
    base: EventBase, ends: Both, run_until: RunUntil, where: str
) -> None:
    def close_it() -> int:
        f.close()
        return BEV_OK

    f = BufferEvent.filter(ends[0], lambda *_: close_it() if where == "filter" else BEV_NEED_MORE)
    if where == "callback":
        f.setcb(lambda f: f.close())
        f.trigger(EV_READ)
    elif where == "filter":
        f.enable(EV_READ)
        ends[1].write(b"")
        ends[0].trigger(EV_READ)
    else:
        f.close()
    run_until(lambda: f.closed)
    seen, seen_peer = Seen(ends[0]), Seen(ends[1])
    ends[0].write(b"ping")
    ends[1].write(b"pong")
    run_until(lambda: seen.data == b"pong" and seen_peer.data == b"ping")


@pytest.mark.parametrize("where", ["outside", "callback", "filter"])
def test_another_filter_may_take_its_place(
    base: EventBase, pair: Both, run_until: RunUntil, where: str
) -> None:
    """Also while libevent is still in the middle of one of the first one's callbacks."""
    seen: list[Seen] = []

    def change(f: BufferEvent) -> int:
        f.close()
        seen.append(Seen(BufferEvent.filter(pair[0], upper, upper)))
        return BEV_OK

    f = BufferEvent.filter(pair[0], None, lambda *_: change(f) if where == "filter" else BEV_OK)
    peer = Seen(pair[1])
    if where == "outside":
        change(f)
    elif where == "callback":
        f.setcb(change)
        f.trigger(EV_READ)
    else:
        f.write(b"x")
    few_rounds(base)
    pair[1].write(b"in")
    pair[0].write(b"past ")
    assert seen
    second = [bev for bev in base._table.values() if getattr(bev, "underlying", None) is pair[0]]
    second[0].write(b"out")
    run_until(lambda: seen[0].data == b"IN" and peer.data == b"past OUT")


def test_what_is_below_reads_again_though_a_filter_is_still_on_the_closed_one(
    pair: Both, run_until: RunUntil
) -> None:
    low = BufferEvent.filter(pair[0])
    top = BufferEvent.filter(low)
    top.enable(EV_READ)
    low.close()
    seen = Seen(pair[0])
    pair[1].write(b"x")
    run_until(lambda: seen.data == b"x")
    assert not top.closed


def test_disabled_by_the_user_before_the_filter_it_is_enabled_after_it(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    pair[0].disable(EV_READ)
    BufferEvent.filter(pair[0]).close()
    assert EV_READ in pair[0].enabled
    reads: list[bytes] = []
    pair[0].setcb(lambda bev: reads.append(bev.read()))
    pair[1].write(b"x")
    run_until(lambda: reads == [b"x"])


def test_when_what_it_is_on_was_closed_reading_and_writing_are_errors(
    base: EventBase, ends: Both
) -> None:
    f = BufferEvent.filter(ends[0], None, upper)
    seen = Seen(f)
    ends[0].close()
    few_rounds(base)
    f.write(b"x")
    few_rounds(base)
    assert seen.events == [FAILED_WRITING]
    with pytest.raises(ClosedError):
        f.flush(EV_WRITE, BEV_FLUSH)
    f.close_after_write()
    assert f.closed


def test_a_flush_moves_nothing_through_what_is_closed(base: EventBase, pair: Both) -> None:
    f = BufferEvent.filter(pair[0])
    pair[1].disable(EV_READ)
    pair[0].close()
    pair[1].write(b"x" * 1000)
    view = pair[1].output.peek()[0]
    with pytest.raises(ClosedError):
        f.flush(EV_READ | EV_WRITE, BEV_FLUSH)
    assert view == b"x" * 1000


def close_peer(f: BufferEvent) -> None:
    if (below := f.underlying) and below.partner:
        below.partner.close()


def close_below(f: BufferEvent) -> None:
    if below := f.underlying:
        below.close()


CLOSERS: dict[str, Callable[[BufferEvent], object]] = {
    "itself": lambda f: f.close(),
    "below": close_below,
    "base": lambda f: f.base.close(),
    "after write": lambda f: f.close_after_write(),
    "peer": close_peer,
}


@pytest.mark.parametrize("options", [0, BEV_OPT_CLOSE_ON_FREE])
@pytest.mark.parametrize("result", [BEV_OK, BEV_NEED_MORE, BEV_ERROR])
@pytest.mark.parametrize("when", ["write", "read", "flush", "read again"])
@pytest.mark.parametrize("closer", CLOSERS)
def test_closing_inside_a_filter(closer: str, when: str, result: int, options: int) -> None:
    base = EventBase()
    a, b = BufferEvent.pair(base)
    calls: list[int] = []

    def closing(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        calls.append(1)
        dst.add(src.remove(1))
        if len(calls) == (2 if when == "read again" else 1):
            CLOSERS[closer](f)
        return result if len(calls) < 10 else BEV_NEED_MORE

    f = BufferEvent.filter(a, closing, closing, options)
    Seen(f)
    f.set_timeouts(5, 5)
    b.write(b"abc")
    if when == "write":
        f.write(b"abc")
    elif when == "flush":
        f.flush(EV_READ | EV_WRITE, BEV_FINISHED)
    few_rounds(base)
    assert calls
    base.close()


@pytest.mark.parametrize("options", [0, BEV_OPT_CLOSE_ON_FREE])
@pytest.mark.parametrize(
    "order", ["f a b", "a f b", "b f a", "b a f", "a b f", "base", "f base", "a base"]
)
@pytest.mark.parametrize("maker", MAKERS)
def test_closing_in_any_order_leaves_nothing(maker: str, order: str, options: int) -> None:
    base = EventBase()
    a, b = MAKERS[maker](base)
    f = BufferEvent.filter(a, upper, xor, options)
    Seen(f), Seen(b)
    f.write(b"x")
    b.write(b"y")
    base.loop(EVLOOP_NONBLOCK)
    named = {"a": a, "b": b, "f": f, "base": base}
    for name in order.split():
        named[name].close()
        if not base.closed:
            base.loop(EVLOOP_NONBLOCK)
    gone = [weakref.ref(one) for one in (a, b, f)]
    base.close()
    del a, b, f, named
    gc.collect()
    assert [one() for one in gone] == [None, None, None]


def test_without_the_garbage_collector_nothing_is_left_of_it_after_close(base: EventBase) -> None:
    gc.disable()
    try:
        a, b = BufferEvent.pair(base)
        f = BufferEvent.filter(a, upper, upper, BEV_OPT_CLOSE_ON_FREE)
        seen = Seen(f)
        b.write(b"x")
        f.write(b"y")
        few_rounds(base)
        gone = weakref.ref(f), weakref.ref(a), weakref.ref(seen)
        f.close()
        b.close()
        few_rounds(base)
        del f, a, b, seen
        assert [one() for one in gone] == [None, None, None]
    finally:
        gc.enable()


def test_an_open_one_lives_without_a_name(base: EventBase, pair: Both, run_until: RunUntil) -> None:
    seen = Seen(BufferEvent.filter(pair[0], upper))
    gc.collect()
    pair[1].write(b"x")
    run_until(lambda: seen.data == b"X")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_one_of_a_dropped_base_is_freed() -> None:
    a, _b = BufferEvent.pair(EventBase())
    f = BufferEvent.filter(a, upper)
    seen = Seen(f)
    f.write(b"x")
    gone = weakref.ref(f), weakref.ref(f.base)
    del a, _b, f, seen
    gc.collect()
    assert [one() for one in gone] == [None, None]


AT_EXIT = """
import threading, pylibevent as p

def pass_on(src, dst, limit, mode):
    dst.add(src.remove())
    return p.BEV_OK

base = p.EventBase()
for end in p.BufferEvent.pair(base):
    f = p.BufferEvent.filter(end, pass_on, pass_on, p.BEV_OPT_CLOSE_ON_FREE)
    f.setcb(lambda f: f.write(f.read()))
    f.enable(p.EV_READ)
f.write(b"to and fro")
runs = threading.Event()
p.Timer(base, runs.set).add(0)
threading.Thread(target=base.dispatch, daemon=True).start()
runs.wait()
"""


def test_the_interpreter_may_end_while_filters_are_at_work() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", AT_EXIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- close_after_write, flush ----


@pytest.mark.parametrize("filter_", [None, xor], ids=["none", "xor"])
@pytest.mark.parametrize("options", [0, BEV_OPT_CLOSE_ON_FREE])
@pytest.mark.parametrize("maker", ["tcp", "pair"])
def test_close_after_write_loses_nothing(
    base: EventBase, run_until: RunUntil, maker: str, options: int, filter_: Any
) -> None:
    """10 MB (1 MB through Python) to a peer that reads late, with the filter held back."""
    below, peer = MAKERS[maker](base)
    below.setwatermark(EV_WRITE, 0, 50_000)
    f = BufferEvent.filter(below, None, filter_, options)
    data = bytes(range(250)) * (4_000 if filter_ else 40_000)
    f.disable(EV_WRITE)
    f.write(data)
    f.close_after_write()
    assert f.closed
    assert f.underlying is None
    few_rounds(base)
    seen = Seen(BufferEvent.filter(peer, filter_, None))
    run_until(lambda: len(seen.data) == len(data))
    assert seen.data == data
    if options:
        run_until(lambda: below.closed)
    else:
        assert not below.closed


def test_close_after_write_hands_its_timeout_to_what_it_is_on(
    base: EventBase, run_until: RunUntil
) -> None:
    below, _peer = socket_pair(base)
    _peer.disable(EV_READ)
    f = BufferEvent.filter(below, None, None, BEV_OPT_CLOSE_ON_FREE)
    f.write(b"x" * 5_000_000)
    f.close_after_write(timeout=0.05)
    assert f.closed
    run_until(lambda: below.closed)


def test_close_after_write_of_two_deep_loses_nothing(base: EventBase, run_until: RunUntil) -> None:
    below, peer = tcp_pair(base)
    low = BufferEvent.filter(below, None, xor, BEV_OPT_CLOSE_ON_FREE)
    low.setwatermark(EV_WRITE, 0, 100)
    below.setwatermark(EV_WRITE, 0, 100)
    top = BufferEvent.filter(low, None, upper, BEV_OPT_CLOSE_ON_FREE)
    top.write(b"x" * 200_000)
    top.close_after_write()
    seen = Seen(BufferEvent.filter(peer, xor))
    run_until(lambda: below.closed and len(seen.data) == 200_000)
    assert seen.data == b"X" * 200_000


def test_close_after_write_in_the_write_callback(base: EventBase, run_until: RunUntil) -> None:
    below, peer = tcp_pair(base)
    f = BufferEvent.filter(below, None, upper, BEV_OPT_CLOSE_ON_FREE)

    def on_write(f: BufferEvent) -> None:
        f.write(b"y" * 1000)
        f.close_after_write()

    f.setcb(None, on_write)
    f.write(b"x")
    seen = Seen(peer)
    run_until(lambda: below.closed and seen.events)
    assert seen.data == b"X" + b"Y" * 1000


@pytest.mark.parametrize("mode", FlushMode)
def test_flush_calls_the_filter_with_its_mode(pair: Both, mode: FlushMode) -> None:
    calls: Calls = []
    f = BufferEvent.filter(pair[0], recorder(calls), recorder(calls))
    f.disable(EV_WRITE)
    f.write(b"x")
    f.enable(EV_WRITE)
    assert f.flush(EV_WRITE, mode)
    assert calls[0] == (-1, mode)
    calls.clear()
    f.flush(EV_READ, mode)
    assert calls == ([] if mode == BEV_NORMAL else [(-1, mode)])


def test_flush_of_the_top_flushes_all(pair: Both) -> None:
    low_calls: Calls = []
    low = BufferEvent.filter(pair[0], None, recorder(low_calls))
    top = BufferEvent.filter(low)
    top.flush(EV_WRITE, BEV_FINISHED)
    assert (-1, BEV_FINISHED) in low_calls


@pytest.mark.parametrize("deep", [1, 2])
def test_flush_of_what_came_calls_the_read_callback(base: EventBase, pair: Both, deep: int) -> None:
    f = BufferEvent.filter(pair[0])
    if deep == 2:
        f.enable(EV_READ)
        f = BufferEvent.filter(f)
    seen = Seen(f)
    few_rounds(base)
    f.disable(EV_READ)
    pair[1].write(b"x")
    pair[1].flush(EV_WRITE, BEV_FLUSH)
    f.enable(EV_READ)
    f.flush(EV_READ, BEV_FLUSH)
    few_rounds(base)
    assert seen.data == b"x"


def test_flush_says_whether_it_moved_anything(pair: Both) -> None:
    f = BufferEvent.filter(pair[0], pairs, pairs)
    assert not f.flush(EV_WRITE, BEV_FLUSH)
    f.disable(EV_WRITE)
    f.write(b"xy")
    assert f.flush(EV_WRITE, BEV_FLUSH)


def test_flush_heeds_no_watermark(base: EventBase) -> None:
    below, _peer = socket_pair(base)
    below.setwatermark(EV_WRITE, 0, 10)
    f = BufferEvent.filter(below, None, upper)
    f.write(b"x" * 100)
    assert (len(f.output), len(below.output)) == (90, 10)
    f.flush(EV_WRITE, BEV_FLUSH)
    assert (len(f.output), len(below.output)) == (0, 100)


def test_the_end_of_a_pair_comes_through_after_the_data(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    f, g = BufferEvent.filter(pair[0]), BufferEvent.filter(pair[1], upper)
    order: list[Any] = []
    g.setcb(lambda g: order.append(g.read()), None, lambda _g, what: order.append(int(what)))
    g.enable(EV_READ)
    f.write(b"last")
    f.flush(EV_WRITE, BEV_FINISHED)
    run_until(lambda: order == [b"LAST", BEV_EVENT_EOF | BEV_EVENT_READING])


def test_a_filter_that_flushes_itself_is_a_recursion_error(pair: Both) -> None:
    def again(*_: object) -> int:
        f.flush(EV_WRITE, BEV_FLUSH)
        return BEV_OK

    f = BufferEvent.filter(pair[0], None, again)
    with pytest.raises(RecursionError):
        f.write(b"x")


# ---- views ----


VIEWS: dict[str, Callable[[BufferEvent, BufferEvent], EvBuffer]] = {
    "its input": lambda f, _a: f.input,
    "its output": lambda f, _a: f.output,
    "input below": lambda _f, a: a.input,
    "output below": lambda _f, a: a.output,
}


@pytest.mark.parametrize("filter_", [None, xor], ids=["none", "xor"])
@pytest.mark.parametrize("which", VIEWS)
def test_while_a_view_is_out_everything_waits_and_then_goes_on(
    base: EventBase, run_until: RunUntil, which: str, filter_: Any
) -> None:
    a, peer = socket_pair(base)
    f = BufferEvent.filter(a, filter_, filter_)
    g = BufferEvent.filter(peer, filter_, filter_)
    seen, seen_peer = Seen(f, take=False), Seen(g)
    # something to look at in each of the four
    a.disable(EV_WRITE)
    f.write(b"one")
    g.write(b"in1")
    run_until(lambda: f.input)
    f.disable(EV_READ | EV_WRITE)
    f.write(b"two")
    a.flush(EV_READ, BEV_FLUSH)
    f.enable(EV_READ | EV_WRITE) if which.endswith("below") else None
    buffer = VIEWS[which](f, a)
    views = buffer.peek() or [memoryview(b"")]
    before = [bytes(view) for view in views]
    f.enable(EV_READ | EV_WRITE)
    a.enable(EV_WRITE)
    g.write(b"in2")
    if which != "its output":
        f.write(b"three")
    few_rounds(base)
    assert [bytes(view) for view in views] == before
    views.clear()
    gc.collect()
    expected = b"onetwo" + (b"three" if which != "its output" else b"")
    run_until(lambda: seen_peer.data == expected and f.input == b"in1in2")
    assert seen.events == []


def test_data_behind_a_view_of_the_input_goes_on_when_the_view_is_gone(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    """What came to the lower input while the filter was held back is not stuck there."""
    f = BufferEvent.filter(pair[0])
    Seen(f, take=False)
    pair[1].write(b"one")
    few_rounds(base)
    view = f.input.peek()[0]
    pair[1].write(b"two")
    pair[1].flush(EV_WRITE, BEV_FLUSH)
    few_rounds(base)
    assert (bytes(view), bytes(pair[0].input)) == (b"one", b"two")
    view.release()
    run_until(lambda: f.input == b"onetwo")


def test_data_behind_a_view_of_the_output_goes_on_when_the_view_is_gone(
    base: EventBase, run_until: RunUntil
) -> None:
    below, peer = socket_pair(base)
    below.setwatermark(EV_WRITE, 0, 10)
    f = BufferEvent.filter(below)
    f.write(b"x" * 100)
    view = f.output.peek()[0]
    seen = Seen(peer)
    run_until(lambda: not below.output)
    few_rounds(base)
    assert (len(view), len(seen.data)) == (90, 10)
    view.release()
    run_until(lambda: len(seen.data) == 100)


@pytest.mark.parametrize("deep", [1, 2])
def test_flush_is_a_buffer_error_while_a_view_is_out_anywhere_on_the_way(
    base: EventBase, pair: Both, deep: int
) -> None:
    f = pair[0]
    for _ in range(deep):
        f = BufferEvent.filter(f)
    Seen(pair[1], take=False)
    f.write(b"x" * 10)
    few_rounds(base)
    view = pair[1].input.peek()[0]
    with pytest.raises(BufferError):
        f.flush(EV_WRITE, BEV_FLUSH)
    with pytest.raises(BufferError):
        f.close_after_write()
    view.release()
    f.close_after_write()


@pytest.mark.parametrize("which", VIEWS)
def test_a_view_outlives_the_filter(base: EventBase, pair: Both, which: str) -> None:
    f = BufferEvent.filter(pair[0], lambda *_: BEV_NEED_MORE, lambda *_: BEV_NEED_MORE)
    f.input.add(b"its input")
    f.write(b"its output")
    pair[0].enable(EV_READ)
    f.enable(EV_READ)
    pair[1].write(b"input below")
    pair[0].write(b"output below")
    few_rounds(base)
    view = VIEWS[which](f, pair[0]).peek()[0]
    f.close()
    pair[0].close()
    few_rounds(base)
    assert view == which.encode()


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_filter_may_look_at_its_source(pair: Both, run_until: RunUntil, direction: str) -> None:
    def look(src: EvBuffer, dst: EvBuffer, _limit: int, _mode: FlushMode) -> int:
        views = src.peek()
        dst.add(b"".join(views).upper())
        for view in views:
            view.release()
        src.drain(len(src))
        return BEV_OK

    f = BufferEvent.filter(pair[0], look, look)
    seen_f, seen_peer = Seen(f), Seen(pair[1])
    pair[1].write(b"in")
    f.write(b"out")
    run_until(lambda: (seen_f.data, seen_peer.data) == (b"IN", b"OUT"))


def test_a_filter_that_keeps_a_view_stops_until_it_lets_go(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    kept: list[memoryview] = []

    def keep(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        if not kept:
            kept.extend(src.peek())
            return BEV_OK
        return upper(src, dst, limit, mode)

    f = BufferEvent.filter(pair[0], keep)
    seen = Seen(f)
    pair[1].write(b"abc")
    few_rounds(base)
    pair[1].write(b"def")
    few_rounds(base)
    assert (kept[0].tobytes(), seen.data) == (b"abc", b"")
    kept[0].release()
    run_until(lambda: seen.data == b"ABCDEF")


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_filter_that_kept_a_view_is_called_again_when_it_lets_go(
    base: EventBase, pair: Both, run_until: RunUntil, direction: str
) -> None:
    kept: list[memoryview] = []

    def keep(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        if not kept:
            kept.extend(src.peek())
            return BEV_NEED_MORE
        return upper(src, dst, limit, mode)

    f = BufferEvent.filter(pair[0], keep, keep)
    seen, seen_peer = Seen(f), Seen(pair[1])
    if direction == "in":
        pair[1].write(b"abc")
    else:
        f.write(b"abc")
    few_rounds(base)
    kept[0].release()
    run_until(lambda: (seen if direction == "in" else seen_peer).data == b"ABC")


# ---- callbacks of buffers in the middle of a move ----


def test_a_lower_filter_may_not_change_what_is_being_moved_to_it(base: EventBase) -> None:
    below, _ = socket_pair(base)

    meddled: list[int] = []

    def meddle(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        if len(meddled) < 50:
            meddled.append(limit)
            top.output.drain(5000)
            top.output.prepend(b"p" * 100)
        return upper(src, dst, limit, mode)

    low = BufferEvent.filter(below, None, meddle)
    low.setwatermark(EV_WRITE, 0, 7)
    top = BufferEvent.filter(low)
    for _ in range(5):
        with contextlib.suppress(BufferError):
            top.write(b"x" * 20_000)
        few_rounds(base)
    assert meddled
    assert set(bytes(top.output)) <= set(b"px")


@pytest.mark.parametrize("closer", ["itself", "below", "base"])
@pytest.mark.parametrize("high", [0, 7])
def test_closing_in_a_buffers_callback_in_the_middle_of_a_move(closer: str, high: int) -> None:
    base = EventBase()
    a, _b = BufferEvent.pair(base)
    f = BufferEvent.filter(a)
    a.setwatermark(EV_WRITE, 0, high)
    f.disable(EV_WRITE)
    f.write(b"x" * 1000)
    f.output.add_cb(lambda *_: CLOSERS[closer](f))
    a.output.add_cb(lambda *_: CLOSERS[closer](f))
    f.enable(EV_WRITE)
    with contextlib.suppress(ClosedError):
        base.dispatch()
    base.close()


# ---- timeouts, trigger, write callbacks ----


def test_a_read_timeout_disables_reading(base: EventBase, pair: Both, run_until: RunUntil) -> None:
    f = BufferEvent.filter(pair[0])
    seen = Seen(f)
    f.set_timeouts(0.01)
    run_until(lambda: seen.events == [BEV_EVENT_TIMEOUT | BEV_EVENT_READING])
    assert EV_READ not in f.enabled


def test_a_write_timeout_while_nothing_is_taken(base: EventBase, run_until: RunUntil) -> None:
    below, _peer = socket_pair(base)
    below.setwatermark(EV_WRITE, 0, 100)
    f = BufferEvent.filter(below)
    seen = Seen(f)
    f.set_timeouts(None, 0.01)
    f.write(b"x" * 1_000_000)
    run_until(lambda: seen.events == [BEV_EVENT_TIMEOUT | BEV_EVENT_WRITING])


@pytest.mark.parametrize("again", [False, True])
def test_there_is_no_write_timeout_with_nothing_to_write(
    base: EventBase, pair: Both, again: bool
) -> None:
    f = BufferEvent.filter(pair[0])
    seen, _ = Seen(f), Seen(pair[1])
    f.set_timeouts(None, 0.01)
    f.write(b"x")
    if again:
        f.enable(EV_WRITE)
    base.dispatch()  # nothing is left to wait for
    assert seen.events == []


def test_trigger_calls_the_callbacks(base: EventBase, pair: Both) -> None:
    f = BufferEvent.filter(pair[0])
    seen = Seen(f)
    f.trigger(EV_READ | EV_WRITE)
    f.trigger_event(BEV_EVENT_EOF)
    few_rounds(base)
    assert (seen.reads, seen.writes, seen.events) == (1, 1, [BEV_EVENT_EOF])


def test_events_of_what_is_below_come_to_the_filter(base: EventBase, run_until: RunUntil) -> None:
    below, peer = tcp_pair(base)
    seen = Seen(BufferEvent.filter(below))
    peer.close()
    run_until(lambda: seen.events == [BEV_EVENT_EOF | BEV_EVENT_READING])


def test_an_error_without_errno_says_nothing_of_an_older_one(
    base: EventBase, run_until: RunUntil
) -> None:
    below = BufferEvent.socket(base)
    f = BufferEvent.filter(below, None, fails)
    seen = Seen(f)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    below.connect(("127.0.0.1", port))
    run_until(lambda: seen.events)
    assert isinstance(f.error, ConnectionRefusedError)
    f.write(b"x")
    run_until(lambda: len(seen.events) == 2)
    assert f.error is None


def test_connecting_below_a_filter(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        below = BufferEvent.socket(base)
        f = BufferEvent.filter(below, None, upper, BEV_OPT_CLOSE_ON_FREE)
        seen = Seen(f)
        f.write(b"early")
        below.connect(server.getsockname())
        run_until(lambda: seen.events and not below.output)
        with server.accept()[0] as sock:
            assert sock.recv(100) == b"EARLY"


def test_a_write_callback_that_always_writes_more_does_not_hang_the_call(
    base: EventBase, pair: Both
) -> None:
    f = BufferEvent.filter(pair[0])
    writes: list[int] = []

    def on_write(f: BufferEvent) -> None:
        writes.append(1)
        f.write(b"more")

    f.setcb(None, on_write)
    Seen(pair[1])
    f.write(b"first")
    base.loopexit(0)
    base.dispatch()
    assert writes


def test_a_filter_may_write_to_its_own_output(
    base: EventBase, pair: Both, run_until: RunUntil
) -> None:
    """An answer from the input filter, as a handshake needs it."""

    def shake(src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        f.write(b"answer to " + bytes(src))
        return upper(src, dst, limit, mode)

    f = BufferEvent.filter(pair[0], shake)
    seen, peer = Seen(f), Seen(pair[1])
    pair[1].write(b"hello")
    run_until(lambda: seen.data == b"HELLO" and peer.data == b"answer to hello")


def test_from_ptr_finds_the_filter(pair: Both) -> None:
    f = BufferEvent.filter(pair[0])
    assert BufferEvent.from_ptr(f.ptr) is f


def test_a_filter_on_a_borrowed_bufferevent(base: EventBase, run_until: RunUntil) -> None:
    from pylibevent import ffi, lib

    both = ffi.new("struct bufferevent *[2]")
    assert lib.bufferevent_pair_new(base.ptr, 0, both) == 0
    a, b = BufferEvent.from_ptr(both[0]), BufferEvent.from_ptr(both[1])
    f = BufferEvent.filter(a, upper)
    seen = Seen(f)
    b.write(b"x")
    run_until(lambda: seen.data == b"X")
    a.close()
    b.write(b"y")
    few_rounds(base)
    f.close()
    b.close()
    lib.bufferevent_free(both[0])
    lib.bufferevent_free(both[1])


# ---- everything at once ----


class Machine:
    """Two ends, one or two filters on each, and random things done to them everywhere: in their
    callbacks, in their filters, and between the rounds of the loop."""

    def __init__(self, seed: int, harm: bool) -> None:
        self.random = random.Random(seed)
        self.harm = harm
        self.acts = 60
        self.moving = self.mixed = False
        self.base = EventBase()
        self.base.exception_handler = lambda *_: None
        maker = self.random.choice([BufferEvent.pair, socket_pair])
        self.levels = [
            self.random.choice([None, 0x11, 0x22]) for _ in range(self.random.choice([1, 2]))
        ]
        self.stacks = [[end] for end in maker(self.base)]
        self.sent: list[bytes] = [b"", b""]
        self.got = [bytearray(), bytearray()]
        self.views: list[memoryview] = []
        self.disabled: list[tuple[BufferEvent, int]] = []
        options = 0 if harm and self.random.random() < 0.5 else BEV_OPT_CLOSE_ON_FREE
        for side, stack in enumerate(self.stacks):
            for key in self.levels:
                function = None if key is None else self.filter(key)
                stack[-1].enable(EV_READ)
                stack.append(BufferEvent.filter(stack[-1], function, function, options))
            stack[-1].setcb(self.on_read, self.on_other, self.on_other, side)
            stack[-1].enable(EV_READ)

    def filter(self, key: int) -> Callable[[EvBuffer, EvBuffer, int, FlushMode], int]:
        table = bytes(byte ^ key for byte in range(256))

        def filter_(src: EvBuffer, dst: EvBuffer, limit: int, _mode: FlushMode) -> int:
            outer = self.moving
            try:
                self.perhaps()
                if self.harm and self.random.random() < 0.03:
                    raise LookupError("filter")
                n = min(amount(src, limit), self.random.choice([1, 10, 1000]))
                if n == 0:
                    return BEV_NEED_MORE
                self.moving = True  # all or nothing
                dst.add(b"")
                dst.add(src.remove(n).translate(table))
            except (BufferError, ClosedError):
                return BEV_NEED_MORE
            finally:
                self.moving = outer
            return BEV_OK

        return filter_

    def on_read(self, bev: BufferEvent, side: int) -> None:
        self.perhaps()
        if self.random.random() < 0.8:
            self.take(side)

    def on_other(self, *_: object) -> None:
        self.perhaps()

    def take(self, side: int) -> None:
        with contextlib.suppress(BufferError, ClosedError):
            self.got[side] += self.stacks[side][-1].read(self.random.choice([-1, -1, 5]))

    def perhaps(self) -> None:
        if self.acts > 0 and not self.moving and self.random.random() < 0.3:
            self.acts -= 1
            with contextlib.suppress(BufferError, ClosedError, RecursionError):
                self.act()

    def act(self) -> None:
        side = self.random.randrange(2)
        stack = self.stacks[side]
        bev = self.random.choice(stack)
        direction = self.random.choice([EV_READ, EV_WRITE])
        action = self.random.randrange(12 if self.harm else 10)
        if action <= 2:
            part = self.random.randbytes(self.random.choice([1, 50, 3000]))
            before = len(stack[-1].output)
            self.sent[side] += part
            try:
                stack[-1].write(part)
            except BaseException:
                if not stack[-1].closed and len(stack[-1].output) == before:
                    self.sent[side] = self.sent[side][: -len(part)]
                raise
        elif action == 3:
            self.views += self.random.choice([bev.input, bev.output]).peek()
        elif action == 4 and self.views:
            self.views.pop(self.random.randrange(len(self.views))).release()
        elif action == 5:
            bev.disable(direction)
            self.disabled.append((bev, direction))
        elif action == 6 and self.disabled:
            self.enable(self.disabled.pop())
        elif action == 7:
            stack[-1].flush(direction, self.random.choice([BEV_NORMAL, BEV_FLUSH]))
        elif action == 8:
            bev.setwatermark(direction, 0, self.random.choice([0, 20, 200, 2000]))
        elif action == 9:
            bev.trigger(direction)
        elif action == 10:
            bev.close()
        elif action == 11:
            what = self.random.randrange(5)
            if what == 0:
                self.base.close()
            elif what == 1:
                bev.close_after_write()
            elif what == 2:
                stack.append(BufferEvent.filter(bev))
                self.mixed = True  # from another level from now on
            elif what == 3:
                gc.collect(0)

    def enable(self, what: tuple[BufferEvent, int]) -> None:
        with contextlib.suppress(ClosedError):
            what[0].enable(what[1])

    def rounds(self, n: int) -> None:
        for _ in range(n):
            if not self.base.closed:
                self.base.loop(EVLOOP_NONBLOCK)

    def run(self) -> None:
        for _ in range(25):
            self.perhaps()
            self.rounds(1)
        self.acts = 0
        while self.views:
            self.views.pop().release()
        for one in self.disabled:
            self.enable(one)
        before = -1
        while before < (before := sum(map(len, self.got))):
            self.rounds(8)
            self.take(0)
            self.take(1)

    def is_through(self) -> bool:
        return [bytes(got) for got in self.got] == self.sent[::-1]


@pytest.mark.parametrize("first", range(0, 300, 75))
def test_whatever_is_done_to_them_all_bytes_come_in_order(first: int) -> None:
    for seed in range(first, first + 75):
        machine = Machine(seed, harm=False)
        machine.run()
        lengths = [len(got) for got in machine.got], [len(sent) for sent in machine.sent[::-1]]
        machine.base.close()
        assert machine.is_through(), (seed, lengths)


@pytest.mark.parametrize("first", range(0, 300, 75))
def test_whatever_is_closed_what_comes_is_the_beginning_of_what_was_sent(first: int) -> None:
    for seed in range(first, first + 75):
        machine = Machine(seed, harm=True)
        with contextlib.suppress(
            RuntimeError, LookupError
        ):  # a filter is on it; after base.close()
            machine.run()
        machine.base.close()
        for got, sent in zip(machine.got, machine.sent[::-1], strict=True):
            assert machine.mixed or sent.startswith(got), seed
