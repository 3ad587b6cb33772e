"""TokenBucketConfig, RateLimitGroup and the limits of BufferEvent, measured in bytes a tick."""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from common import few_rounds, received
from conftest import RunUntil
from processes import in_child, run_script

from pylibevent import (
    BEV_EVENT_EOF,
    BEV_EVENT_READING,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    EV_PERSIST,
    EV_READ,
    EV_WRITE,
    EVENT_BASE_FLAG_NOLOCK,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    Event,
    EventBase,
    EventConfig,
    LibeventError,
    RateLimitGroup,
    Timer,
    TokenBucketConfig,
    ffi,
    lib,
)

Sockets = tuple[socket.socket, socket.socket]
MAX = int(lib.EV_RATE_LIMIT_MAX)
THREADED = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE
TICK = 0.02
FOREVER = 3600.0  # a tick that no test sees the end of


def both(rate: int, burst: int, tick: float = FOREVER) -> TokenBucketConfig:
    """The same limit for reading and for writing."""
    return TokenBucketConfig(rate, burst, rate, burst, tick)


class Meter:
    """Counts bytes, and holds the count against the ticks that have gone by."""

    def __init__(self, base: EventBase, cfg: TokenBucketConfig, rate: int, slack: int = 0) -> None:
        self.base = base
        self.tick = cfg.tick
        self.rate = rate
        self.slack = slack
        self.last = 0
        self.start = self.ticks()
        self.bytes = 0
        self.above = 0  # the limit, by how much at most

    def ticks(self) -> int:
        """As libevent counts them; its clock may be a little back from one look to the next."""
        now = round(self.base.gettimeofday_cached() * 1_000_000) // round(self.tick * 1_000_000)
        self.last = max(self.last, now)
        return self.last

    def add(self, n: int) -> None:
        """n bytes have come; a tick's worth may have from the start, and one more each tick."""
        self.bytes += n
        allowed = self.rate * (1 + self.ticks() - self.start) + self.slack
        self.above = max(self.above, self.bytes - allowed)

    def read(self, bev: BufferEvent) -> None:
        """A read callback."""
        self.add(len(bev.read()))

    def watch(self, sock: socket.socket) -> Event:
        """Counts what a socket receives."""
        event = Event(
            self.base, sock, EV_READ | EV_PERSIST, lambda *_: self.add(len(received(sock)))
        )
        event.add()
        return event


class Wire:
    """A bufferevent that reads, and the socket at its other end."""

    def __init__(self, base: EventBase, options: int = BEV_OPT_CLOSE_ON_FREE) -> None:
        mine, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.bev = BufferEvent.socket(base, mine, options)
        self.data = b""
        self.events: list[int] = []
        self.bev.setcb(self.read, None, lambda _bev, what: self.events.append(what))
        self.bev.enable(EV_READ)

    def read(self, bev: BufferEvent) -> None:
        self.data += bev.read()


@pytest.fixture
def wire(base: EventBase) -> Iterator[Callable[..., Wire]]:
    """wire(options) makes one more."""
    wires: list[Wire] = []

    def make(options: int = BEV_OPT_CLOSE_ON_FREE, on: EventBase = base) -> Wire:
        wires.append(Wire(on, options))
        return wires[-1]

    yield make
    for one in wires:
        one.peer.close()
        if not one.bev.closed:
            one.bev.setcb()


MakeWire = Callable[..., Wire]


@pytest.fixture
def wired(wire: MakeWire) -> Wire:
    return wire()


HEAD = """
import gc, socket, sys, threading
from pylibevent import *

def wire(base, options=BEV_OPT_CLOSE_ON_FREE):
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a, options)
    bev.setcb(lambda bev: bev.read())
    bev.enable(EV_READ)
    return bev, b
"""


def run_checked(code: str) -> str:
    """Runs code after HEAD in an interpreter of its own."""
    return run_script(HEAD + code, PYTHONWARNINGS="error,ignore::ResourceWarning")


# ---- TokenBucketConfig ----


def test_a_config_has_what_it_was_made_with() -> None:
    cfg = TokenBucketConfig(1000, 4000, 200, 300, tick=0.25)
    assert (cfg.read_rate, cfg.read_burst) == (1000, 4000)
    assert (cfg.write_rate, cfg.write_burst) == (200, 300)
    assert cfg.tick == 0.25
    assert repr(cfg).startswith("<TokenBucketConfig read=1000/4000 write=200/300 tick=0.25 at ")


def test_by_default_there_is_no_limit_and_a_tick_is_a_second() -> None:
    cfg = TokenBucketConfig()
    assert (cfg.read_rate, cfg.read_burst, cfg.write_rate, cfg.write_burst) == (None,) * 4
    assert cfg.tick == 1.0


@pytest.mark.parametrize(
    ("tick", "counted"),
    [
        (1, 1.0),
        (0.57, 0.57),
        (0.001, 0.001),
        (0.0157, 0.015),
        (timedelta(milliseconds=20), 0.02),
        (2147483, 2147483.0),
    ],
)
def test_a_tick_is_counted_in_milliseconds(tick: Any, counted: float) -> None:
    assert TokenBucketConfig(1, 1, tick=tick).tick == counted


@pytest.mark.parametrize(
    "arguments",
    [
        {"read_rate": 0},
        {"read_rate": -1},
        {"write_burst": 0},
        {"read_rate": MAX + 1},
        {"write_rate": 1 << 70, "write_burst": 1 << 70},
        {"read_rate": 10, "read_burst": 9},
        {"write_rate": 10, "write_burst": 9},
        {"read_burst": 10},  # less than no limit
        {"tick": 0},
        {"tick": 0.0009},  # libevent would divide by 0
        {"tick": 1 << 32},
        {"tick": 4294967.296},  # its milliseconds overflow to 0
        {"tick": -1},
        {"tick": float("nan")},
        {"tick": float("inf")},
    ],
)
def test_rates_and_ticks_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"burst|tick|seconds"):
        TokenBucketConfig(**arguments)


@pytest.mark.parametrize("arguments", [{"read_rate": 1.5}, {"write_burst": "9"}, {"tick": "1"}])
def test_rates_and_ticks_of_the_wrong_type(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TokenBucketConfig(**arguments)


@pytest.mark.parametrize("name", ["read_rate", "read_burst", "write_rate", "write_burst", "tick"])
def test_a_config_cannot_be_changed(name: str) -> None:
    cfg = both(10, 20)
    with pytest.raises(AttributeError):
        setattr(cfg, name, 30)
    cfg.close()
    assert not cfg.closed
    assert (cfg.read_rate, cfg.tick) == (10, FOREVER)


def test_ptr_is_the_c_struct(wired: Wire) -> None:
    cfg = both(10, 20)
    assert lib.bufferevent_set_rate_limit(wired.bev.ptr, cfg.ptr) == 0
    assert wired.bev.read_limit == 10
    assert wired.bev.token_bucket_cfg is None  # it knows what set_rate_limit() was given
    lib.bufferevent_set_rate_limit(wired.bev.ptr, ffi.NULL)


def test_from_ptr_borrows(base: EventBase, wired: Wire) -> None:
    raw = lib.ev_token_bucket_cfg_new(10, 20, 30, 40, ffi.new("struct timeval *", (3600, 0)))
    cfg = TokenBucketConfig.from_ptr(raw)
    wired.bev.set_rate_limit(cfg)
    assert (wired.bev.read_limit, wired.bev.write_limit) == (10, 30)
    assert wired.bev.token_bucket_cfg is cfg
    wired.bev.set_rate_limit(None)
    with pytest.raises(LibeventError, match="does not tell"):
        _ = cfg.read_rate
    with pytest.raises(LibeventError, match="does not tell"):
        _ = cfg.tick
    assert "borrowed" in repr(cfg)
    lib.ev_token_bucket_cfg_free(raw)


def test_from_ptr_of_nothing() -> None:
    with pytest.raises(ValueError, match="NULL"):
        TokenBucketConfig.from_ptr(ffi.NULL)
    with pytest.raises(TypeError):
        TokenBucketConfig.from_ptr(ffi.new("int *"))
    with pytest.raises(TypeError):
        TokenBucketConfig.from_ptr(None)


# ---- a bufferevent's own limit ----


def test_no_more_is_read_than_the_rate(base: EventBase, wired: Wire, run_until: RunUntil) -> None:
    cfg = TokenBucketConfig(100, 100, tick=TICK)
    meter = Meter(base, cfg, 100)
    wired.bev.setcb(meter.read)
    wired.bev.set_rate_limit(cfg)
    wired.peer.send(b"x" * 1000)
    run_until(lambda: meter.bytes == 1000)
    assert meter.above <= 0
    assert meter.ticks() - meter.start >= 9


def test_no_more_is_written_than_the_rate(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    cfg = TokenBucketConfig(None, None, 100, 100, tick=TICK)
    meter = Meter(base, cfg, 100)
    event = meter.watch(wired.peer)
    wired.bev.set_rate_limit(cfg)
    wired.bev.write(b"x" * 1000)
    run_until(lambda: meter.bytes == 1000)
    event.close()
    assert meter.above <= 0
    assert meter.ticks() - meter.start >= 9


def test_both_directions_at_once(base: EventBase, wire: MakeWire, run_until: RunUntil) -> None:
    """An echo through a limit: what goes out has come in."""
    cfg = both(100, 100, TICK)
    echo, client = wire(), wire()
    client.peer.close()
    client.bev.close()
    meter = Meter(base, cfg, 100)
    event = meter.watch(echo.peer)
    echo.bev.setcb(lambda bev: bev.write_buffer(bev.input))
    echo.bev.set_rate_limit(cfg)
    echo.peer.send(b"x" * 1000)
    run_until(lambda: meter.bytes == 1000)
    event.close()
    assert meter.above <= 0


def test_over_tcp(base: EventBase, run_until: RunUntil) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    cfg = TokenBucketConfig(5000, 5000, tick=TICK)
    meter = Meter(base, cfg, 5000)
    bev = BufferEvent.socket(base, accepted)
    bev.setcb(meter.read)
    bev.set_rate_limit(cfg)
    bev.enable(EV_READ)
    with peer:
        peer.sendall(b"x" * 60_000)
        run_until(lambda: meter.bytes == 60_000)
    assert meter.above <= 0


def test_a_limit_starts_with_one_ticks_bytes(base: EventBase, wired: Wire) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(10, 30, tick=FOREVER))
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert wired.data == b"x" * 10
    assert wired.bev.read_limit == 0


def test_unused_ticks_add_up_to_the_burst(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(10, 30, tick=TICK))
    base.loopexit(TICK * 6)
    base.dispatch()
    assert wired.bev.read_limit == 30
    wired.peer.send(b"x" * 100)
    base.loop(EVLOOP_ONCE)
    assert len(wired.data) == 30
    run_until(lambda: len(wired.data) == 100)


@pytest.mark.parametrize("direction", ["read", "write"])
def test_none_is_no_limit(base: EventBase, wired: Wire, direction: str) -> None:
    """The one direction is used up, the other goes on."""
    if direction == "read":
        wired.bev.set_rate_limit(TokenBucketConfig(None, None, 1, 1, tick=FOREVER))
        wired.peer.send(b"x" * 50_000)
        few_rounds(base, 50)
        assert len(wired.data) == 50_000
    else:
        wired.bev.set_rate_limit(TokenBucketConfig(1, 1, None, None, tick=FOREVER))
        wired.bev.write(b"x" * 50_000)
        few_rounds(base, 50)
        assert len(received(wired.peer)) == 50_000


@pytest.mark.parametrize("rate", [1 << 32, (1 << 32) + 5, (1 << 31), MAX])
def test_a_rate_that_no_int_holds_is_not_taken_for_the_end(
    base: EventBase, wired: Wire, rate: int
) -> None:
    """libevent asks for the low 32 bits of it, and takes 0 bytes read for the end."""
    wired.bev.set_rate_limit(TokenBucketConfig(rate, rate, rate, MAX, tick=FOREVER))
    for _ in range(3):
        wired.peer.send(b"hello")
        few_rounds(base)
    assert wired.data == b"hello" * 3
    assert wired.events == []
    assert wired.bev.read_limit == 0x7FFFFFFF - 15


def test_the_end_comes_after_all_that_came_before_it(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(10, 10, tick=0.005))
    wired.peer.send(b"x" * 45)
    wired.peer.close()
    run_until(lambda: wired.events)
    assert wired.data == b"x" * 45
    assert wired.events == [BEV_EVENT_READING | BEV_EVENT_EOF]


def test_the_watermark_and_the_limit_hold_both(base: EventBase, wired: Wire) -> None:
    wired.bev.setwatermark(EV_READ, 0, 7)
    wired.bev.set_rate_limit(TokenBucketConfig(10, 10, tick=FOREVER))
    sizes: list[int] = []
    wired.bev.setcb(lambda bev: sizes.append(len(bev.read())))
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert sizes == [7, 3]


def test_a_timeout_does_not_run_while_the_limit_is_used_up(base: EventBase, wired: Wire) -> None:
    wired.bev.set_timeouts(read=0.02)
    wired.bev.set_rate_limit(TokenBucketConfig(10, 10, tick=FOREVER))
    wired.peer.send(b"x" * 100)
    base.loopexit(0.1)
    base.dispatch()
    assert len(wired.data) == 10
    assert wired.events == []


def test_one_that_waits_for_its_next_tick_keeps_the_loop_going(
    base: EventBase, wired: Wire
) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(10, 10, tick=0.05))
    wired.peer.send(b"x" * 10)
    base.loop(EVLOOP_ONCE)
    wired.bev.disable(EV_READ | EV_WRITE)
    assert base.num_events() == 1
    assert base.dispatch() == 1  # once the tick is over there is nothing left
    assert wired.bev.read_limit == 10


# ---- setting and taking away ----


def test_the_config_that_is_set(wired: Wire) -> None:
    cfg = both(10, 20)
    assert wired.bev.token_bucket_cfg is None
    wired.bev.set_rate_limit(cfg)
    assert wired.bev.token_bucket_cfg is cfg
    wired.bev.set_rate_limit(None)
    assert wired.bev.token_bucket_cfg is None


def test_a_reader_that_waits_goes_on_when_its_limit_is_taken_away(
    base: EventBase, wired: Wire
) -> None:
    wired.bev.set_rate_limit(both(10, 10))
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert len(wired.data) == 10
    wired.bev.set_rate_limit(None)
    few_rounds(base)
    assert len(wired.data) == 100


def test_a_writer_that_waits_goes_on_when_its_limit_is_taken_away(
    base: EventBase, wired: Wire
) -> None:
    wired.bev.set_rate_limit(both(10, 10))
    wired.bev.write(b"x" * 100)
    few_rounds(base)
    assert len(received(wired.peer)) == 10
    wired.bev.set_rate_limit(None)
    few_rounds(base)
    assert len(received(wired.peer)) == 90


def test_one_that_is_disabled_stays_so_when_its_limit_is_taken_away(
    base: EventBase, wired: Wire
) -> None:
    wired.bev.set_rate_limit(both(10, 10))
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    wired.bev.disable(EV_READ)
    wired.bev.set_rate_limit(None)
    few_rounds(base)
    assert len(wired.data) == 10


def test_taking_away_a_limit_that_is_not_there(base: EventBase, wired: Wire) -> None:
    wired.bev.set_rate_limit(None)
    wired.peer.send(b"hello")
    few_rounds(base)
    assert wired.data == b"hello"


def test_in_its_own_callback_a_limit_is_set_and_taken_away(base: EventBase, wired: Wire) -> None:
    sizes: list[int] = []

    def read(bev: BufferEvent) -> None:
        sizes.append(len(bev.read()))
        bev.set_rate_limit(both(10, 10) if len(sizes) == 1 else None)

    wired.bev.setcb(read)
    wired.bev.set_rate_limit(both(20, 20))
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert sizes == [20]  # nothing is left of the first limit, so nothing of the second
    wired.bev.decrement_read_limit(-10)
    few_rounds(base)
    assert sizes == [20, 10, 70]


@pytest.mark.parametrize("tick", [FOREVER, 7.0, 0.05], ids=["the same", "another", "short"])
def test_another_limit_starts_with_what_is_left(base: EventBase, wired: Wire, tick: float) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(50, 50, 50, 50, tick=FOREVER))
    wired.peer.send(b"x" * 40)
    few_rounds(base)
    wired.bev.set_rate_limit(TokenBucketConfig(30, 30, 40, 45, tick=tick))
    assert wired.bev.read_limit == 10
    assert wired.bev.write_limit == 45
    wired.bev.set_rate_limit(TokenBucketConfig(5, 5, 5, 5, tick=tick))
    assert (wired.bev.read_limit, wired.bev.write_limit) == (5, 5)


@pytest.mark.parametrize("used_up", [False, True])
@pytest.mark.parametrize(
    ("before", "after"), [(1.0, 0.05), (0.05, 0.02), (FOREVER, 0.02), (0.001, 0.05), (0.02, 0.03)]
)
def test_a_limit_with_other_ticks_is_kept_and_refilled(
    base: EventBase,
    wired: Wire,
    run_until: RunUntil,
    before: float,
    after: float,
    used_up: bool,
) -> None:
    """libevent 2.1 would count on from a number of the old ticks; most of the time it would not
    refill for years."""
    wired.bev.set_rate_limit(TokenBucketConfig(10, 10, 10, 10, tick=before))
    if used_up:
        wired.bev.decrement_read_limit(10)
        wired.bev.decrement_write_limit(10)
    cfg = TokenBucketConfig(10, 10, 10, 10, tick=after)
    meter = Meter(base, cfg, 10)
    wired.bev.setcb(meter.read)
    wired.bev.set_rate_limit(cfg)
    wired.peer.send(b"x" * 40)
    wired.bev.write(b"y" * 40)
    run_until(lambda: meter.bytes == 40 and not wired.bev.output)
    assert meter.above <= 0
    assert received(wired.peer) == b"y" * 40


def test_a_borrowed_config_after_another_is_refilled(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    raw = lib.ev_token_bucket_cfg_new(10, 10, 10, 10, ffi.new("struct timeval *", (0, 20_000)))
    wired.bev.set_rate_limit(both(10, 10))
    wired.bev.set_rate_limit(TokenBucketConfig.from_ptr(raw))
    wired.peer.send(b"x" * 30)
    run_until(lambda: len(wired.data) == 30)
    wired.bev.close()
    lib.ev_token_bucket_cfg_free(raw)


def test_the_same_config_again_changes_nothing(base: EventBase, wired: Wire) -> None:
    cfg = both(10, 20)
    wired.bev.set_rate_limit(cfg)
    wired.bev.decrement_read_limit(15)
    wired.bev.set_rate_limit(cfg)
    assert wired.bev.read_limit == -5


def test_one_config_for_many(base: EventBase, wire: MakeWire) -> None:
    cfg = both(10, 10)
    wires = [wire() for _ in range(3)]
    for one in wires:
        one.bev.set_rate_limit(cfg)
        one.peer.send(b"x" * 100)
    few_rounds(base)
    assert [len(one.data) for one in wires] == [10, 10, 10]


# ---- how much is left ----


def test_without_a_limit(wired: Wire) -> None:
    assert (wired.bev.read_limit, wired.bev.write_limit) == (MAX, MAX)
    assert (wired.bev.max_to_read, wired.bev.max_to_write) == (16384, 16384)


def test_what_is_left_goes_down_with_the_traffic(base: EventBase, wired: Wire) -> None:
    wired.bev.set_rate_limit(TokenBucketConfig(100, 100, 50, 50, tick=FOREVER))
    assert (wired.bev.read_limit, wired.bev.write_limit) == (100, 50)
    wired.peer.send(b"x" * 30)
    wired.bev.write(b"y" * 20)
    few_rounds(base)
    assert (wired.bev.read_limit, wired.bev.write_limit) == (70, 30)
    assert (wired.bev.max_to_read, wired.bev.max_to_write) == (70, 30)


@pytest.mark.parametrize("direction", ["read", "write"])
def test_taking_off_all_stops_it_and_giving_back_starts_it(
    base: EventBase, wired: Wire, direction: str
) -> None:
    bev: BufferEvent = wired.bev
    peer = wired.peer
    bev.set_rate_limit(both(20, 20))
    decrement = bev.decrement_read_limit if direction == "read" else bev.decrement_write_limit
    decrement(25)
    assert (bev.read_limit if direction == "read" else bev.write_limit) == -5
    assert (bev.max_to_read if direction == "read" else bev.max_to_write) == 0
    peer.send(b"x" * 20)
    bev.write(b"x" * 20)
    few_rounds(base)
    read, written = len(wired.data), len(received(peer))
    assert (read, written) == ((0, 20) if direction == "read" else (20, 0))
    decrement(-12)
    few_rounds(base)
    assert (len(wired.data) - read, len(received(peer))) == (
        (7, 0) if direction == "read" else (0, 7)
    )


def test_a_debt_is_paid_off_before_anything_is_read(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    cfg = TokenBucketConfig(10, 10, tick=TICK)
    meter = Meter(base, cfg, 10, slack=-50)
    wired.bev.setcb(meter.read)
    wired.bev.set_rate_limit(cfg)
    wired.bev.decrement_read_limit(50)
    wired.peer.send(b"x" * 20)
    run_until(lambda: meter.bytes == 20)
    assert meter.above <= 0


def test_no_more_is_given_back_than_the_burst(base: EventBase, wired: Wire) -> None:
    """Above its burst libevent 2.1 would add to a limit for ever."""
    wired.bev.set_rate_limit(both(10, 25, 0.001))
    for n in (-1000, -MAX):
        wired.bev.decrement_read_limit(n)
        wired.bev.decrement_write_limit(n)
        base.loopexit(0.01)
        base.dispatch()
        assert (wired.bev.read_limit, wired.bev.write_limit) == (25, 25)


def test_taking_off_more_than_a_number_holds_is_no_overflow(wired: Wire) -> None:
    wired.bev.set_rate_limit(both(10, 25))
    for _ in range(4):
        wired.bev.decrement_read_limit(MAX)
        wired.bev.decrement_write_limit(MAX)
    assert wired.bev.read_limit == wired.bev.write_limit < -(1 << 61)
    for _ in range(4):
        wired.bev.decrement_read_limit(-MAX)
        wired.bev.decrement_write_limit(-MAX)
    assert (wired.bev.read_limit, wired.bev.write_limit) == (25, 25)


def test_a_debt_outlives_a_change_of_ticks(wired: Wire) -> None:
    wired.bev.set_rate_limit(both(10, 10))
    for _ in range(3):
        wired.bev.decrement_read_limit(MAX)
    debt = wired.bev.read_limit
    wired.bev.set_rate_limit(both(10, 10, 1800))
    assert wired.bev.read_limit == debt


@pytest.mark.parametrize("name", ["decrement_read_limit", "decrement_write_limit"])
def test_taking_off_a_limit_that_is_not_there_is_an_error(wired: Wire, name: str) -> None:
    """libevent would end the process."""
    with pytest.raises(LibeventError, match="no rate limit"):
        getattr(wired.bev, name)(5)
    wired.bev.set_rate_limit(both(10, 10))
    wired.bev.set_rate_limit(None)
    with pytest.raises(LibeventError, match="no rate limit"):
        getattr(wired.bev, name)(5)


# ---- max_single_read, max_single_write ----


def test_the_most_to_read_at_a_time(base: EventBase, wired: Wire) -> None:
    sizes: list[int] = []
    wired.bev.setcb(lambda bev: sizes.append(len(bev.read())))
    assert wired.bev.max_single_read == 16384
    wired.bev.max_single_read = 30
    assert (wired.bev.max_single_read, wired.bev.max_to_read) == (30, 30)
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert sizes == [30, 30, 30, 10]


def test_the_most_to_write_at_a_time(base: EventBase, wired: Wire) -> None:
    assert wired.bev.max_single_write == 16384
    wired.bev.max_single_write = 30
    assert (wired.bev.max_single_write, wired.bev.max_to_write) == (30, 30)
    wired.bev.write(b"x" * 100)
    sizes: list[int] = []
    for _ in range(4):
        base.loop(EVLOOP_ONCE)
        sizes.append(len(received(wired.peer)))
    assert sizes == [30, 30, 30, 10]


@pytest.mark.parametrize("name", ["max_single_read", "max_single_write"])
def test_0_is_the_default_again(wired: Wire, name: str) -> None:
    setattr(wired.bev, name, 30)
    setattr(wired.bev, name, 0)
    assert getattr(wired.bev, name) == 16384


@pytest.mark.parametrize("name", ["max_single_read", "max_single_write"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1 << 32, ValueError), (1 << 70, ValueError), (1.5, TypeError)],
)
def test_a_most_out_of_range(wired: Wire, name: str, value: Any, error: type[Exception]) -> None:
    """1 << 32 bytes to read would be none, and that the end (as above)."""
    with pytest.raises(error):
        setattr(wired.bev, name, value)
    assert getattr(wired.bev, name) == 16384


def test_a_limit_of_its_own_takes_its_place(base: EventBase, wired: Wire) -> None:
    """As in C, where only the one or the other is looked at."""
    wired.bev.max_single_read = 5
    wired.bev.set_rate_limit(both(20, 20))
    assert wired.bev.max_to_read == 20
    wired.bev.set_rate_limit(None)
    assert wired.bev.max_to_read == 5


# ---- groups: sharing ----


@pytest.mark.parametrize("n", [1, 2, 5])
def test_members_read_no_more_than_the_groups_rate(
    base: EventBase, wire: MakeWire, run_until: RunUntil, n: int
) -> None:
    cfg = TokenBucketConfig(100, 100, tick=TICK)
    group = RateLimitGroup(base, cfg)
    group.set_min_share(1)
    meter = Meter(base, cfg, 100)
    for _ in range(n):
        one = wire()
        one.bev.setcb(meter.read)
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * (1000 // n))
    run_until(lambda: meter.bytes == 1000)
    assert meter.above <= 0
    assert meter.ticks() - meter.start >= 9
    assert group.get_totals() == (1000, 0)


@pytest.mark.parametrize("n", [1, 3])
def test_members_write_no_more_than_the_groups_rate(
    base: EventBase, wire: MakeWire, run_until: RunUntil, n: int
) -> None:
    cfg = TokenBucketConfig(None, None, 100, 100, tick=TICK)
    group = RateLimitGroup(base, cfg)
    group.set_min_share(1)
    meter = Meter(base, cfg, 100)
    events = []
    for _ in range(n):
        one = wire()
        events.append(meter.watch(one.peer))
        one.bev.add_to_rate_limit_group(group)
        one.bev.write(b"x" * 300)
    run_until(lambda: meter.bytes == 300 * n)
    for event in events:
        event.close()
    assert meter.above <= 0
    assert group.get_totals() == (0, 300 * n)


def test_with_a_least_share_a_tick_may_be_overdrawn_by_less_than_that(
    base: EventBase, wire: MakeWire, run_until: RunUntil
) -> None:
    """Two members that may both move 8 bytes where the group has 10; the next tick pays."""
    cfg = TokenBucketConfig(10, 10, tick=TICK)
    group = RateLimitGroup(base, cfg)
    group.set_min_share(8)
    meter = Meter(base, cfg, 10, slack=7)
    wires = [wire(), wire()]
    for one in wires:
        one.bev.setcb(meter.read)
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 60)
    assert [one.bev.max_to_read for one in wires] == [8, 8]
    run_until(lambda: meter.bytes == 120)
    assert meter.above <= 0


def test_no_member_starves(base: EventBase, wire: MakeWire, run_until: RunUntil) -> None:
    group = RateLimitGroup(base, TokenBucketConfig(50, 50, tick=0.005))
    group.set_min_share(10)
    wires = [wire() for _ in range(4)]
    for one in wires:
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 4000)
    run_until(lambda: all(len(one.data) > 200 for one in wires))
    assert group.get_totals()[0] == sum(len(one.data) for one in wires) < 16_000


def test_a_share_is_the_nth_part(base: EventBase, wire: MakeWire) -> None:
    group = RateLimitGroup(base, both(1000, 1000))
    wires = [wire() for _ in range(4)]
    for one in wires:
        one.bev.add_to_rate_limit_group(group)
    assert {one.bev.max_to_read for one in wires} == {250}
    assert {one.bev.max_to_write for one in wires} == {250}
    group.set_min_share(400)
    assert wires[0].bev.max_to_read == 400
    group.set_min_share(5000)  # no more than a rate
    assert wires[0].bev.max_to_read == 1000


@pytest.mark.parametrize("n", [0, -1, MAX + 1, 1 << 70])
def test_a_least_share_out_of_range(base: EventBase, n: int) -> None:
    """With 0, a share may be 0 bytes; libevent would read that many, and take it for the end."""
    group = RateLimitGroup(base, both(2, 2))
    with pytest.raises(ValueError, match="min_share"):
        group.set_min_share(n)


def test_many_members_of_a_small_group_see_no_end(
    base: EventBase, wire: MakeWire, run_until: RunUntil
) -> None:
    group = RateLimitGroup(base, both(2, 2, 0.002))
    group.set_min_share(1)
    wires = [wire() for _ in range(6)]
    for one in wires:
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 5)
        one.bev.write(b"y" * 5)
    run_until(lambda: all(len(one.data) == 5 and not one.bev.output for one in wires))
    assert [one.events for one in wires] == [[]] * 6


def test_a_limit_of_its_own_holds_in_a_group_too(base: EventBase, wire: MakeWire) -> None:
    group = RateLimitGroup(base, both(100, 100))
    poor, rich = wire(), wire()
    poor.bev.set_rate_limit(both(10, 10))
    for one in (poor, rich):
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 1000)
    few_rounds(base, 50)
    assert len(poor.data) == 10
    assert 90 <= len(rich.data) <= 90 + 63  # 64 is the least share
    poor.bev.set_rate_limit(None)
    few_rounds(base)
    assert len(poor.data) == 10  # the group has nothing left


def test_totals_and_reset_totals(base: EventBase, wired: Wire) -> None:
    group = RateLimitGroup(base, both(1000, 1000))
    wired.bev.add_to_rate_limit_group(group)
    assert group.get_totals() == (0, 0)
    wired.peer.send(b"x" * 30)
    wired.bev.write(b"y" * 20)
    few_rounds(base)
    assert group.get_totals() == (30, 20)
    assert (group.read_limit, group.write_limit) == (970, 980)
    group.reset_totals()
    assert group.get_totals() == (0, 0)


# ---- groups: changing ----


@pytest.mark.parametrize("direction", ["read", "write"])
def test_taking_off_a_groups_limit_stops_its_members_and_giving_back_starts_them(
    base: EventBase, wire: MakeWire, direction: str
) -> None:
    group = RateLimitGroup(base, both(200, 200))
    decrement = group.decrement_read_limit if direction == "read" else group.decrement_write_limit
    wires = [wire(), wire()]
    for one in wires:
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 10)
        one.bev.write(b"y" * 10)
    decrement(205)
    assert (group.read_limit if direction == "read" else group.write_limit) == -5
    few_rounds(base)
    moved = [(len(one.data), len(received(one.peer))) for one in wires]
    assert moved == [(0, 10) if direction == "read" else (10, 0)] * 2
    decrement(-105)
    few_rounds(base)
    assert [len(one.data) for one in wires] == [10, 10]
    assert all(not one.bev.output for one in wires)


def test_no_more_is_given_back_to_a_group_than_the_burst(base: EventBase) -> None:
    group = RateLimitGroup(base, both(10, 25, 0.001))
    for n in (-1000, -MAX):
        group.decrement_read_limit(n)
        group.decrement_write_limit(n)
        base.loopexit(0.01)
        base.dispatch()
        assert (group.read_limit, group.write_limit) == (25, 25)


def test_taking_off_a_group_more_than_a_number_holds_is_no_overflow(base: EventBase) -> None:
    group = RateLimitGroup(base, both(10, 25))
    for _ in range(4):
        group.decrement_read_limit(MAX)
        group.decrement_write_limit(MAX)
    assert group.read_limit == group.write_limit < -(1 << 61)
    for _ in range(4):
        group.decrement_read_limit(-MAX)
        group.decrement_write_limit(-MAX)
    assert (group.read_limit, group.write_limit) == (25, 25)


def test_other_rates(base: EventBase, wired: Wire, run_until: RunUntil) -> None:
    group = RateLimitGroup(base, both(1, 1, TICK))
    wired.bev.add_to_rate_limit_group(group)
    wired.peer.send(b"x" * 5000)
    few_rounds(base)
    group.set_cfg(both(1000, 1000, TICK))
    run_until(lambda: len(wired.data) == 5000, 2)
    group.set_cfg(both(5, 5, TICK))
    assert group.read_limit <= 5
    group.decrement_read_limit(-100)
    assert group.read_limit == 5


def test_other_ticks_are_refused(base: EventBase) -> None:
    """libevent 2.1 would count on from a number of the old ticks, and not refill for years."""
    group = RateLimitGroup(base, both(10, 10, 1.0))
    with pytest.raises(ValueError, match="bufferevent_rate_limit_group_set_cfg"):
        group.set_cfg(both(10, 10, 0.05))


# ---- groups: joining and leaving ----


def test_one_that_leaves_goes_on_without(base: EventBase, wired: Wire) -> None:
    group = RateLimitGroup(base, both(10, 10))
    wired.bev.add_to_rate_limit_group(group)
    wired.peer.send(b"x" * 100)
    wired.bev.write(b"y" * 100)
    few_rounds(base)
    assert (len(wired.data), len(received(wired.peer))) == (10, 10)
    wired.bev.remove_from_rate_limit_group()
    few_rounds(base)
    assert (len(wired.data), len(received(wired.peer))) == (100, 90)
    assert group.get_totals() == (10, 10)


def test_one_that_joins_a_group_with_nothing_left_waits(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    group = RateLimitGroup(base, both(10, 10, 0.05))
    group.decrement_read_limit(20)
    wired.bev.add_to_rate_limit_group(group)
    wired.peer.send(b"x" * 10)
    few_rounds(base)
    assert wired.data == b""
    run_until(lambda: len(wired.data) == 10)


def test_moving_to_another_group(base: EventBase, wired: Wire) -> None:
    first, second = RateLimitGroup(base, both(10, 10)), RateLimitGroup(base, both(20, 20))
    wired.bev.add_to_rate_limit_group(first)
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert len(wired.data) == 10
    wired.bev.add_to_rate_limit_group(second)
    first.close()
    few_rounds(base)
    assert len(wired.data) == 30
    second.close()
    few_rounds(base)
    assert len(wired.data) == 100


def test_joining_twice_and_leaving_twice(base: EventBase, wired: Wire) -> None:
    group = RateLimitGroup(base, both(100, 100))
    wired.bev.add_to_rate_limit_group(group)
    wired.bev.add_to_rate_limit_group(group)
    assert wired.bev.max_to_read == 100  # a member once
    wired.bev.remove_from_rate_limit_group()
    wired.bev.remove_from_rate_limit_group()
    assert wired.bev.max_to_read == 16384


def test_leaving_no_group_calls_nothing(base: EventBase, wired: Wire) -> None:
    """libevent would switch writing on again, and call the write callback for it."""
    calls: list[int] = []
    few_rounds(base)
    wired.bev.setcb(None, lambda _bev: calls.append(1))
    wired.bev.remove_from_rate_limit_group()
    few_rounds(base)
    assert calls == []


def test_a_group_of_another_base(base: EventBase, wired: Wire) -> None:
    with EventBase() as other:
        group = RateLimitGroup(other, both(10, 10))
        with pytest.raises(ValueError, match="another base"):
            wired.bev.add_to_rate_limit_group(group)


def test_joining_a_closed_group(base: EventBase, wired: Wire) -> None:
    group = RateLimitGroup(base, both(10, 10))
    group.close()
    with pytest.raises(ClosedError):
        wired.bev.add_to_rate_limit_group(group)
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert len(wired.data) == 100


def test_joining_a_closed_group_leaves_the_old_one_as_it_was(base: EventBase, wired: Wire) -> None:
    old, closed = RateLimitGroup(base, both(10, 10)), RateLimitGroup(base, both(10, 10))
    wired.bev.add_to_rate_limit_group(old)
    closed.close()
    with pytest.raises(ClosedError):
        wired.bev.add_to_rate_limit_group(closed)
    assert wired.bev.max_to_read == 10


# ---- groups: their life ----


def test_a_group_as_a_context_manager(base: EventBase) -> None:
    with RateLimitGroup(base, both(10, 10)) as group:
        assert not group.closed
        assert group.base is base
        assert lib.bufferevent_rate_limit_group_get_read_limit(group.ptr) == 10
    assert group.closed
    group.close()


def test_closing_a_group_with_members(base: EventBase, wire: MakeWire) -> None:
    """libevent would end the process."""
    group = RateLimitGroup(base, both(10, 10))
    wires = [wire() for _ in range(3)]
    for one in wires:
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 1000)
    few_rounds(base)
    group.close()
    few_rounds(base)
    assert [len(one.data) for one in wires] == [1000] * 3
    assert {one.bev.max_to_read for one in wires} == {16384}


def test_closing_a_group_of_one_that_closes_after_it_has_written(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    group = RateLimitGroup(base, both(10, 10))
    wired.bev.add_to_rate_limit_group(group)
    wired.bev.write(b"x" * 100)
    wired.bev.close_after_write()
    few_rounds(base)
    assert len(received(wired.peer)) == 10
    group.close()
    run_until(lambda: wired.bev.closed)
    assert len(received(wired.peer)) == 90


@pytest.mark.parametrize("options", [0, BEV_OPT_DEFER_CALLBACKS, BEV_OPT_THREADSAFE])
def test_closing_a_group_right_after_its_member(
    base: EventBase, wire: MakeWire, options: int
) -> None:
    """libevent counts a freed one as a member until the loop has come round."""
    group = RateLimitGroup(base, both(10, 10))
    one = wire(BEV_OPT_CLOSE_ON_FREE | options)
    one.bev.add_to_rate_limit_group(group)
    one.peer.send(b"x" * 5)
    base.loop(EVLOOP_NONBLOCK)
    one.bev.trigger(EV_READ)
    one.bev.close()
    group.close()
    few_rounds(base)
    assert base.num_events() == 0


@pytest.mark.parametrize("options", [0, BEV_OPT_DEFER_CALLBACKS, BEV_OPT_THREADSAFE])
@pytest.mark.parametrize("what", ["group", "itself", "another", "all", "base", "leave", "move"])
def test_closing_in_a_members_callback(what: str, options: int) -> None:
    base = EventBase()
    group, other = RateLimitGroup(base, both(100, 100)), RateLimitGroup(base, both(9, 9))
    wires = [Wire(base, BEV_OPT_CLOSE_ON_FREE | options) for _ in range(3)]
    called: list[BufferEvent] = []

    def read(bev: BufferEvent) -> None:
        called.append(bev)
        rest = [one.bev for one in wires if one.bev is not bev]
        if what in ("group", "all"):
            group.close()
        if what in ("itself", "all"):
            bev.close()
        if what in ("another", "all"):
            rest[0].close()
            rest[1].close()
        if what == "base":
            base.close()
        if what == "leave":
            bev.remove_from_rate_limit_group()
        if what == "move":
            for one in wires:
                one.bev.add_to_rate_limit_group(other)

    for one in wires:
        one.bev.setcb(read)
        one.bev.add_to_rate_limit_group(group)
        one.peer.send(b"x" * 50)
    for _ in range(20):
        if base.closed:
            break
        base.loop(EVLOOP_NONBLOCK)
    assert called
    group.close()
    other.close()
    base.close()
    assert all(one.bev.closed for one in wires)
    for one in wires:
        one.peer.close()


def test_a_group_without_a_name_limits_its_members(base: EventBase, wired: Wire) -> None:
    wired.bev.add_to_rate_limit_group(RateLimitGroup(base, both(10, 10)))
    gc.collect()
    wired.peer.send(b"x" * 100)
    few_rounds(base)
    assert len(wired.data) == 10


@pytest.mark.parametrize("how", ["close", "leave", "base"])
def test_a_group_without_a_name_goes_with_its_last_member(how: str) -> None:
    with EventBase() as base:
        wire = Wire(base)
        wire.bev.add_to_rate_limit_group(RateLimitGroup(base, both(10, 10)))
        wire.bev.disable(EV_READ | EV_WRITE)
        few_rounds(base)
        assert base.num_events() == 1  # the group's timer
        if how == "close":
            wire.bev.close()
        elif how == "leave":
            wire.bev.remove_from_rate_limit_group()
        else:
            base.close()
        if how != "base":
            wire.bev.close()
            few_rounds(base)
            assert base.num_events() == 0
        wire.peer.close()


def test_a_group_with_neither_name_nor_members_is_gone(base: EventBase) -> None:
    RateLimitGroup(base, both(10, 10))
    assert base.num_events() == 0


def test_an_open_group_keeps_the_loop_going(base: EventBase) -> None:
    group = RateLimitGroup(base, both(10, 10, 0.01))
    base.loopexit(0.05)
    assert base.dispatch() == 0
    assert base.got_exit
    group.close()
    assert base.dispatch() == 1


def test_a_base_that_is_closed_before_its_groups(wire: MakeWire) -> None:
    base = EventBase()
    group, empty = (RateLimitGroup(base, both(10, 10)) for _ in range(2))
    one = wire(on=base)
    one.bev.add_to_rate_limit_group(group)
    one.bev.set_rate_limit(both(5, 5))
    base.close()
    for closed in (group, empty):
        assert closed.closed
        with pytest.raises(ClosedError):
            _ = closed.read_limit
        closed.close()
    with pytest.raises(ClosedError):
        one.bev.add_to_rate_limit_group(group)
    with pytest.raises(ClosedError):
        RateLimitGroup(base, both(10, 10))


def test_a_base_that_is_dropped_with_its_groups() -> None:
    base = EventBase()
    group = RateLimitGroup(base, both(10, 10))
    base.close()
    del base
    gc.collect()
    assert group.closed


def test_closing_one_that_waits_leaves_no_timer(base: EventBase, wire: MakeWire) -> None:
    one = wire()
    one.bev.set_rate_limit(both(10, 10))
    one.peer.send(b"x" * 100)
    few_rounds(base)
    one.bev.close()
    assert base.dispatch() == 1


def test_a_config_lives_as_long_as_what_uses_it() -> None:
    run_checked("""
base = EventBase()
group = RateLimitGroup(base, TokenBucketConfig(50, 50, 50, 50, tick=0.001))
wires = [wire(base) for _ in range(5)]
for bev, peer in wires:
    bev.set_rate_limit(TokenBucketConfig(5, 5, 5, 5, tick=0.001))
    bev.add_to_rate_limit_group(group)
    peer.send(b'x' * 200)
    bev.write(b'y' * 200)
    gc.collect()
base.loopexit(0.1)
base.dispatch()
for bev, peer in wires:
    bev.set_rate_limit(TokenBucketConfig(7, 7, 7, 7, tick=0.002))
del bev
gc.collect()
base.loopexit(0.1)
base.dispatch()
for bev, peer in wires:
    bev.close()
    del bev
gc.collect()
base.loopexit(0.1)
base.dispatch()
base.close()
""")


def test_everything_at_random_does_no_harm() -> None:
    moved = run_checked("""
import random
random.seed(7)
base = EventBase()
moved = 0
ticks = 0.001, 0.002, 0.003
configs = [TokenBucketConfig(*[random.randint(1, 40)] * 4, random.choice(ticks)) for _ in range(8)]
groups, wires = [], []

def act(*_):
    global moved
    r = random.randrange(10)
    try:
        if r == 0:
            groups.append(RateLimitGroup(base, random.choice(configs)))
        elif r == 1 and groups:
            group = groups.pop(random.randrange(len(groups)))
            moved += sum(group.get_totals())
            if random.random() < 0.5:
                group.close()
        elif r == 2:
            bev, peer = wire(base, random.choice((1, 3, 5, 7, 15)))
            bev.setcb(act, act, act)
            wires.append((bev, peer))
        elif r == 3 and len(wires) > 5:
            bev, peer = wires.pop(random.randrange(len(wires)))
            random.choice((bev.close, bev.close_after_write))()
            peer.close()
        elif wires:
            bev, peer = random.choice(wires)
            if r == 4:
                bev.set_rate_limit(random.choice((None, *configs)))
            elif r == 5 and groups:
                bev.add_to_rate_limit_group(random.choice(groups))
            elif r == 6:
                bev.remove_from_rate_limit_group()
            elif r == 7:
                bev.write(b'y' * 50)
                peer.setblocking(False)
                peer.send(b'x' * 50)
                peer.recv(1000)
            elif r == 8 and bev.token_bucket_cfg:
                bev.decrement_read_limit(random.randint(-50, 50))
                bev.decrement_write_limit(random.randint(-50, 50))
            elif r == 9 and groups:
                random.choice(groups).decrement_read_limit(random.randint(-50, 50))
                random.choice(groups).set_cfg(random.choice(configs))
    except (ValueError, BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass

for _ in range(3000):
    act()
    base.loop(EVLOOP_NONBLOCK)
base.loopexit(0.05)
base.dispatch()
base.close()
print(moved)
""")
    assert int(moved) > 100


def test_the_end_of_the_interpreter_with_everything_open() -> None:
    run_checked("""
base = EventBase()
group = RateLimitGroup(base, TokenBucketConfig(5, 5, 5, 5))
bev, peer = wire(base)
bev.set_rate_limit(TokenBucketConfig(5, 5, 5, 5))
bev.add_to_rate_limit_group(group)
bev.add_to_rate_limit_group(RateLimitGroup(base, TokenBucketConfig(5, 5, 5, 5)))
peer.send(b'x' * 100)
base.loop(EVLOOP_NONBLOCK)
""")


# ---- close_after_write ----


def test_close_after_write_keeps_to_the_limit(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    cfg = TokenBucketConfig(None, None, 100, 100, tick=TICK)
    meter = Meter(base, cfg, 100)
    event = meter.watch(wired.peer)
    wired.bev.set_rate_limit(cfg)
    wired.bev.write(b"x" * 500)
    wired.bev.close_after_write()
    run_until(lambda: wired.bev.closed)
    event.close()
    meter.add(len(received(wired.peer)))
    assert meter.bytes == 500
    assert meter.above <= 0


def test_close_after_write_does_not_keep_to_the_limit_for_what_nobody_reads(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    group = RateLimitGroup(base, TokenBucketConfig(1, 1, None, None, tick=FOREVER))
    wired.bev.disable(EV_READ)
    wired.bev.set_rate_limit(TokenBucketConfig(1, 1, None, None, tick=FOREVER))
    wired.bev.add_to_rate_limit_group(group)
    wired.peer.send(b"x" * 50_000)
    wired.bev.write(b"answer")
    wired.bev.close_after_write()
    few_rounds(base)
    wired.peer.shutdown(socket.SHUT_WR)
    run_until(lambda: wired.bev.closed, 1)
    assert received(wired.peer) == b"answer"


# ---- what is not a socket, not open, or not of the right type ----

SETS: dict[str, Callable[[BufferEvent, RateLimitGroup], object]] = {
    "set_rate_limit": lambda bev, _: bev.set_rate_limit(both(10, 10)),
    "set_rate_limit None": lambda bev, _: bev.set_rate_limit(None),
    "add_to_rate_limit_group": lambda bev, group: bev.add_to_rate_limit_group(group),
    "remove_from_rate_limit_group": lambda bev, _: bev.remove_from_rate_limit_group(),
    "decrement_read_limit": lambda bev, _: bev.decrement_read_limit(1),
    "decrement_write_limit": lambda bev, _: bev.decrement_write_limit(1),
    "max_single_read": lambda bev, _: setattr(bev, "max_single_read", 5),
    "max_single_write": lambda bev, _: setattr(bev, "max_single_write", 5),
}
GETS: dict[str, Callable[[BufferEvent, RateLimitGroup], object]] = {
    name: lambda bev, _, name=name: getattr(bev, name)  # type: ignore[misc]
    for name in (
        "token_bucket_cfg",
        "read_limit",
        "write_limit",
        "max_to_read",
        "max_to_write",
        "max_single_read",
        "max_single_write",
    )
}
GROUP_USES: dict[str, Callable[[RateLimitGroup], object]] = {
    "set_cfg": lambda group: group.set_cfg(both(10, 10)),
    "set_min_share": lambda group: group.set_min_share(1),
    "read_limit": lambda group: group.read_limit,
    "write_limit": lambda group: group.write_limit,
    "decrement_read_limit": lambda group: group.decrement_read_limit(1),
    "decrement_write_limit": lambda group: group.decrement_write_limit(1),
    "get_totals": lambda group: group.get_totals(),
    "reset_totals": lambda group: group.reset_totals(),
}


@pytest.mark.parametrize("use", SETS)
def test_a_pair_has_no_limits_to_set(base: EventBase, use: str) -> None:
    """libevent would take them, and move the data all the same."""
    group = RateLimitGroup(base, both(10, 10))
    for bev in BufferEvent.pair(base):
        with pytest.raises(ValueError, match="only a socket"):
            SETS[use](bev, group)


@pytest.mark.parametrize("use", SETS)
def test_a_filter_has_no_limits_to_set(base: EventBase, wired: Wire, use: str) -> None:
    group = RateLimitGroup(base, both(10, 10))
    filter_ = BufferEvent.filter(wired.bev)
    with pytest.raises(ValueError, match="only a socket"):
        SETS[use](filter_, group)
    filter_.close()


def test_the_limit_of_what_a_filter_is_on_limits_the_filter(
    base: EventBase, wired: Wire, run_until: RunUntil
) -> None:
    cfg = both(100, 100, TICK)
    meter = Meter(base, cfg, 100)
    wired.bev.set_rate_limit(cfg)
    filter_ = BufferEvent.filter(wired.bev)
    filter_.setcb(meter.read)
    filter_.enable(EV_READ)
    wired.peer.send(b"x" * 500)
    run_until(lambda: meter.bytes == 500)
    assert meter.above <= 0
    filter_.close()


@pytest.fixture
def raw(base: EventBase) -> Iterator[tuple[Any, socket.socket]]:
    """A C library's bufferevent, and the socket at its other end."""
    mine, peer = socket.socketpair()
    peer.setblocking(False)
    bev = lib.bufferevent_socket_new(base.ptr, mine.detach(), BEV_OPT_CLOSE_ON_FREE)
    yield bev, peer
    lib.bufferevent_free(bev)
    peer.close()


def test_a_borrowed_one_is_limited_until_it_is_given_back(
    base: EventBase, raw: tuple[Any, socket.socket]
) -> None:
    ptr, peer = raw
    bev = BufferEvent.from_ptr(ptr)
    bev.set_rate_limit(both(10, 10))
    bev.add_to_rate_limit_group(RateLimitGroup(base, both(7, 7)))
    bev.write(b"x" * 100)
    few_rounds(base)
    assert len(received(peer)) == 7
    bev.close()
    gc.collect()
    assert lib.bufferevent_get_token_bucket_cfg(ptr) == ffi.NULL
    few_rounds(base)
    assert len(received(peer)) == 93


def test_a_borrowed_one_keeps_a_limit_of_its_owners(raw: tuple[Any, socket.socket]) -> None:
    cfg = both(10, 10)
    lib.bufferevent_set_rate_limit(raw[0], cfg.ptr)
    BufferEvent.from_ptr(raw[0]).close()
    assert lib.bufferevent_get_token_bucket_cfg(raw[0]) == cfg.ptr
    lib.bufferevent_set_rate_limit(raw[0], ffi.NULL)


def test_a_limit_in_place_of_its_owners_is_refilled(
    base: EventBase, raw: tuple[Any, socket.socket], run_until: RunUntil
) -> None:
    owners = both(10, 10, 1.0)
    lib.bufferevent_set_rate_limit(raw[0], owners.ptr)
    bev = BufferEvent.from_ptr(raw[0])
    bev.set_rate_limit(both(10, 10, 0.05))
    bev.write(b"x" * 30)
    run_until(lambda: not bev.output)
    bev.close()


def test_what_a_pairs_limits_are(base: EventBase) -> None:
    bev, _ = BufferEvent.pair(base)
    assert bev.token_bucket_cfg is None
    assert (bev.read_limit, bev.write_limit) == (MAX, MAX)


@pytest.mark.parametrize("use", SETS | GETS)
def test_a_closed_bufferevent(base: EventBase, wired: Wire, use: str) -> None:
    group = RateLimitGroup(base, both(10, 10))
    wired.bev.close()
    with pytest.raises(ClosedError):
        (SETS | GETS)[use](wired.bev, group)


@pytest.mark.parametrize("use", [*GROUP_USES, "ptr"])
def test_a_closed_group(base: EventBase, use: str) -> None:
    group = RateLimitGroup(base, both(10, 10))
    group.close()
    with pytest.raises(ClosedError):
        (GROUP_USES | {"ptr": lambda group: group.ptr})[use](group)


@pytest.mark.parametrize(
    "call",
    [
        lambda base, bev, group: bev.set_rate_limit(5),
        lambda base, bev, group: bev.set_rate_limit(group),
        lambda base, bev, group: bev.add_to_rate_limit_group(None),
        lambda base, bev, group: bev.add_to_rate_limit_group(both(1, 1)),
        lambda base, bev, group: bev.decrement_read_limit(1.5),
        lambda base, bev, group: RateLimitGroup(base, 5),  # type: ignore[arg-type]
        lambda base, bev, group: RateLimitGroup(bev, both(1, 1)),
        lambda base, bev, group: group.set_cfg(None),
        lambda base, bev, group: group.set_min_share("1"),
        lambda base, bev, group: group.decrement_write_limit(None),
    ],
)
def test_wrong_types(base: EventBase, wired: Wire, call: Callable[..., object]) -> None:
    group = RateLimitGroup(base, both(10, 10))
    with pytest.raises(TypeError):
        call(base, wired.bev, group)


@pytest.mark.parametrize("n", [MAX + 1, -MAX - 1, 1 << 70])
def test_amounts_out_of_range(base: EventBase, wired: Wire, n: int) -> None:
    group = RateLimitGroup(base, both(10, 10))
    wired.bev.set_rate_limit(both(10, 10))
    for decrement in (
        wired.bev.decrement_read_limit,
        wired.bev.decrement_write_limit,
        group.decrement_read_limit,
        group.decrement_write_limit,
    ):
        with pytest.raises(ValueError, match="out of range"):
            decrement(n)


@pytest.mark.parametrize("what", ["bufferevent", "group"])
def test_the_timers_of_limits_have_a_priority(wired: Wire, base: EventBase, what: str) -> None:
    """Its number is that of the middle one; an event with one that is gone would end the
    process."""
    base.priority_init(10)
    group = None
    if what == "group":
        group = RateLimitGroup(base, both(10, 10))
    else:
        wired.bev.set_rate_limit(both(10, 10))
    with pytest.raises(ValueError, match="priority"):
        base.priority_init(5)
    base.priority_init(6)
    assert group is None or group.read_limit == 10


def test_on_a_base_without_locks(run_until: RunUntil) -> None:
    config = EventConfig()
    config.set_flag(EVENT_BASE_FLAG_NOLOCK)
    with EventBase(config) as base:
        one = Wire(base)
        one.bev.add_to_rate_limit_group(RateLimitGroup(base, both(10, 10, 0.005)))
        one.peer.send(b"x" * 30)
        deadline = time.monotonic() + 5
        while len(one.data) < 30:
            assert time.monotonic() < deadline
            base.loop(EVLOOP_ONCE)
        one.peer.close()


# ---- threads ----


def in_a_thread(base: EventBase, action: Callable[[], object]) -> list[BaseException]:
    """Runs action() in another thread while the loop runs here; what it raised."""
    raised: list[BaseException] = []

    def other() -> None:
        try:
            while not base.running:
                time.sleep(0.001)
            action()
        except BaseException as exception:
            raised.append(exception)
        finally:
            base.loopbreak()

    thread = threading.Thread(target=other)
    late = Timer(base, lambda: None)
    late.add(20)
    thread.start()
    base.dispatch()
    assert late.pending(), "it did not happen within 20 s"
    thread.join()
    late.close()
    return raised


def test_another_thread_gets_a_runtime_error_while_the_loop_runs(
    base: EventBase, wired: Wire
) -> None:
    group = RateLimitGroup(base, both(10, 10))
    wrong: list[str] = []

    def use_all() -> None:
        uses: dict[str, Callable[[], object]] = {
            name: lambda use=use: use(wired.bev, group)  # type: ignore[misc]
            for name, use in (SETS | GETS).items()
        }
        for name, use in GROUP_USES.items():
            uses[f"group.{name}"] = lambda use=use: use(group)  # type: ignore[misc]
        uses["group.close"] = group.close
        uses["RateLimitGroup"] = lambda: RateLimitGroup(base, both(1, 1))
        for name, call in uses.items():
            try:
                call()
                wrong.append(name)
            except RuntimeError as error:
                if "thread" not in str(error):
                    wrong.append(f"{name}: {error}")

    assert in_a_thread(base, use_all) == []
    assert wrong == []
    assert not group.closed


@pytest.mark.parametrize("use", SETS | GETS)
def test_a_threadsafe_one_may_be_limited_from_another_thread(
    base: EventBase, wire: MakeWire, use: str
) -> None:
    group = RateLimitGroup(base, both(10, 10))
    one = wire(THREADED)
    one.bev.set_rate_limit(both(10, 10))
    assert in_a_thread(base, lambda: (SETS | GETS)[use](one.bev, group)) == []


def test_a_group_dropped_in_another_thread_ends_in_the_loops(base: EventBase) -> None:
    groups = [RateLimitGroup(base, both(10, 10))]
    done: list[bool] = []

    def drop() -> None:
        while not base.running:
            time.sleep(0.001)
        groups.clear()
        done.append(True)

    thread = threading.Thread(target=drop)
    looked: list[int] = []

    def look() -> None:
        looked.append(base.num_events())
        if (done and looked[-1] == 1) or len(looked) == 4000:
            base.loopbreak()

    look_again = Timer(base, look, persist=True)
    look_again.add(0.005)
    thread.start()
    base.dispatch()
    thread.join()
    look_again.close()
    assert looked[0] == 2 or done
    assert looked[-1] == 1


def test_members_come_and_go_in_other_threads_while_data_flows(base: EventBase) -> None:
    groups = [RateLimitGroup(base, both(50, 50, 0.001)) for _ in range(2)]
    wires = [Wire(base, THREADED) for _ in range(6)]
    for one in wires:
        one.bev.setcb(lambda bev: bev.write(bev.read()))
        one.peer.send(b"x" * 3000)
    raised: list[BaseException] = []
    left = [3]

    def play(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(300):
                bev = rng.choice(wires).bev
                try:
                    if rng.random() < 0.6:
                        bev.add_to_rate_limit_group(rng.choice(groups))
                    elif rng.random() < 0.6:
                        bev.set_rate_limit(both(20, 20, rng.choice((0.001, 0.002))))
                    elif rng.random() < 0.9:
                        bev.remove_from_rate_limit_group()
                    else:
                        bev.close()
                except ClosedError:
                    pass
        except BaseException as exception:
            raised.append(exception)
        left[0] -= 1
        if not left[0]:
            base.loopbreak()

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    base.dispatch()
    for thread in threads:
        thread.join()
    assert raised == []
    for group in groups:
        group.close()
    for one in wires:
        one.peer.close()


def test_a_group_closed_while_other_threads_hold_and_close_its_members(base: EventBase) -> None:
    """The loop does not run: each thread is as good as the other."""
    for _ in range(20):
        group = RateLimitGroup(base, both(10, 10))
        wires = [Wire(base, THREADED) for _ in range(4)]
        for one in wires:
            one.bev.add_to_rate_limit_group(group)

        def hold(wires: list[Wire] = wires) -> None:
            for one in wires[:2]:
                with one.bev.lock():
                    time.sleep(0)
            for one in wires[2:]:
                one.bev.close()

        threads = [threading.Thread(target=hold), threading.Thread(target=group.close)]
        for thread in threads:
            thread.start()
        group.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert group.closed
        for one in wires:
            one.bev.close()
            one.peer.close()
        few_rounds(base, 2)


# ---- fork ----


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")


@needs_fork
def test_in_a_child_limits_wait_for_reinit(base: EventBase, wired: Wire) -> None:
    group = RateLimitGroup(base, both(10, 10))
    wired.bev.add_to_rate_limit_group(group)
    wired.bev.set_rate_limit(both(10, 10))

    def child() -> None:
        for use in SETS.values():
            with pytest.raises(RuntimeError, match="reinit"):
                use(wired.bev, group)
        for use_group in GROUP_USES.values():
            with pytest.raises(RuntimeError, match="reinit"):
                use_group(group)
        with pytest.raises(RuntimeError, match="reinit"):
            group.close()
        base.reinit()
        assert group.read_limit == 10
        group.close()
        wired.bev.set_rate_limit(None)
        base.close()

    in_child(child)
    assert group.read_limit == wired.bev.read_limit == 10


@needs_fork
@pytest.mark.parametrize("how", ["close", "drop", "drop all"])
def test_in_a_child_groups_go_without_harm(how: str) -> None:
    base = EventBase()
    things: list[Any] = [RateLimitGroup(base, both(10, 10)) for _ in range(2)]
    wire = Wire(base)
    wire.bev.add_to_rate_limit_group(things[0])
    things.append(base)

    def child() -> None:
        if how == "close":
            things.pop().close()
            assert things[0].closed
        elif how == "drop":
            del things[:2]
            gc.collect()
            things[0].reinit()
            few_rounds(things[0])
            things[0].close()
        else:
            things.clear()
            gc.collect()

    in_child(child)
    assert things[0].read_limit == 10
    base.close()
    wire.peer.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_in_a_child_of_a_process_whose_loop_ran_elsewhere(base: EventBase) -> None:
    """The thread in the loop stayed behind, perhaps with the group's lock."""
    group = RateLimitGroup(base, both(10, 10, 0.001))
    wire = Wire(base)
    wire.bev.add_to_rate_limit_group(group)
    things = [group]
    thread = threading.Thread(target=base.dispatch)
    thread.start()
    while not base.running:
        time.sleep(0.001)

    def child() -> None:
        with pytest.raises(RuntimeError):
            _ = things[0].read_limit
        things.clear()
        gc.collect()
        base.close()

    try:
        in_child(child)
    finally:
        base.loopbreak()
        thread.join()
        wire.peer.close()
