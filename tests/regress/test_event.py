"""What libevent's own tests ask of event.c and of the backends, asked of the classes on each
backend."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import random
import re
import signal
import socket
import threading
import time
from typing import Any

import pytest
from conftest import open_descriptors
from processes import fork, wait_for

import pylibevent
from pylibevent import (
    BEV_OPT_DEFER_CALLBACKS,
    BEV_TRIG_IGNORE_WATERMARKS,
    EV_CLOSED,
    EV_ET,
    EV_FEATURE_EARLY_CLOSE,
    EV_FEATURE_ET,
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVENT_BASE_COUNT_ACTIVE,
    EVENT_BASE_COUNT_ADDED,
    EVENT_BASE_COUNT_VIRTUAL,
    EVENT_BASE_FLAG_IGNORE_ENV,
    EVENT_BASE_FLAG_NO_CACHE_TIME,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    Event,
    EventBase,
    EventConfig,
    EventInfo,
    LibeventError,
    Signal,
    Timer,
    ffi,
    lib,
)

from .helpers import CHANGELIST, METHODS, Raw, config_for, nothing, script, send, spin

Sockets = tuple[socket.socket, socket.socket]

ROUND = EVLOOP_ONCE | EVLOOP_NONBLOCK
TEXT = b"this is a test\0"
epoll = pytest.mark.skipif("epoll" not in METHODS, reason="no epoll here")


def fill(sock: socket.socket) -> None:
    """Writes until the socket takes no more."""
    try:
        while True:
            sock.send(bytes(4096))
    except BlockingIOError:
        pass


# ---- reading and writing ----


def test_what_was_sent_before_the_loop_and_the_end_of_it_are_read(
    each_base: EventBase, sockets: Sockets
) -> None:
    a, b = sockets
    a.send(TEXT)
    a.shutdown(socket.SHUT_WR)
    seen: list[bytes] = []

    def readable(_fd: int, _what: int) -> None:
        seen.append(b.recv(256))
        if seen[-1]:
            event.add()

    event = Event(each_base, b, EV_READ, readable)
    event.add()
    assert each_base.dispatch() == 1
    assert seen == [TEXT, b""]


def test_a_socket_that_has_room_is_writable(each_base: EventBase, sockets: Sockets) -> None:
    a, b = sockets
    Event(each_base, a, EV_WRITE, lambda _fd, _what: a.send(TEXT)).add()
    assert each_base.dispatch() == 1
    assert b.recv(256) == TEXT


def test_each_of_several_events_on_one_descriptor_is_called(
    each_base: EventBase, sockets: Sockets
) -> None:
    a, b = sockets
    a.send(TEXT)
    seen: list[int] = []
    for i in range(3):
        Event(each_base, b, EV_READ, lambda _fd, _what, i: seen.append(i), i).add()
    assert each_base.dispatch() == 1
    assert sorted(seen) == [0, 1, 2]


def test_reader_and_writer_of_one_descriptor_are_called_for_their_own_only(
    each_base: EventBase, sockets: Sockets
) -> None:
    a, b = sockets
    seen: list[int] = []
    reader = Event(each_base, a, EV_READ, lambda _fd, what: seen.append(what))
    writer = Event(each_base, a, EV_WRITE, lambda _fd, what: seen.append(what))
    reader.add()
    writer.add()
    each_base.loop(EVLOOP_ONCE)
    assert seen == [EV_WRITE]
    assert reader.pending() == EV_READ
    assert not writer.pending()
    b.send(TEXT)
    each_base.loop(EVLOOP_ONCE)
    assert seen == [EV_WRITE, EV_READ]


def test_a_read_that_was_wanted_once_is_not_called_for_what_comes_in_its_callback(
    each_base: EventBase, sockets: Sockets
) -> None:
    a, b = sockets
    seen: list[bytes] = []

    def readable(_fd: int, _what: int) -> None:
        seen.append(b.recv(256))
        a.send(TEXT)

    Event(each_base, b, EV_READ, readable).add()
    a.send(TEXT)
    assert each_base.dispatch() == 1
    assert seen == [TEXT]


@pytest.mark.parametrize("persist", [0, EV_PERSIST])
def test_a_long_message_arrives_whole(each_base: EventBase, sockets: Sockets, persist: int) -> None:
    """By events that stay, and by events that are added again in each of their callbacks."""
    a, b = sockets
    message = random.Random(1).randbytes(200_000)
    sent = 0
    got = b""

    def writable(fd: int, _what: int) -> None:
        nonlocal sent
        sent += a.send(message[sent : sent + 9000])
        if sent == len(message):
            a.shutdown(socket.SHUT_WR)
            writer.delete()
        elif not persist:
            writer.add()

    def readable(fd: int, _what: int) -> None:
        nonlocal got
        data = b.recv(8000)
        got += data
        if not data:
            reader.delete()
        elif not persist:
            reader.add()

    writer = Event(each_base, a, EV_WRITE | persist, writable)
    reader = Event(each_base, b, EV_READ | persist, readable)
    writer.add()
    reader.add()
    assert each_base.dispatch() == 1
    assert got == message


def test_both_ends_write_and_read_at_once(each_base: EventBase, sockets: Sockets) -> None:
    """Two events on each descriptor, each with its own number of bytes to see through."""
    got = [0, 0]
    left = [4096, 8192]
    events: list[list[Event]] = [[], []]

    def readable(fd: int, _what: int, i: int) -> None:
        data = sockets[i].recv(1000)
        got[i] += len(data)
        if data:
            events[i][0].add()

    def writable(fd: int, _what: int, i: int) -> None:
        left[i] -= sockets[i].send(bytes(min(left[i], 500)))
        if left[i]:
            events[i][1].add()
        else:
            sockets[i].shutdown(socket.SHUT_WR)

    for i in 0, 1:
        events[i] = [
            Event(each_base, sockets[i], EV_READ, readable, i),
            Event(each_base, sockets[i], EV_WRITE, writable, i),
        ]
        for event in events[i]:
            event.add()
    assert each_base.dispatch() == 1
    assert got == [8192, 4096]


def test_two_events_that_add_each_other(base: EventBase, sockets: Sockets) -> None:
    """Both are ready; the callback of the first, which is no longer pending, is to find the second
    as it was, and the second's adds the first again."""
    order: list[int] = []
    events: list[Event] = []

    def readable(_fd: int, _what: int, i: int) -> None:
        sockets[i].recv(256)
        order.append(i)
        events[1 - i].add()

    for i in 0, 1:
        sockets[i].send(b"Hello")
        events.append(Event(base, sockets[i], EV_READ, readable, i))
    for event in events:
        event.add()
    assert base.loop(EVLOOP_ONCE) == 0
    assert sorted(order) == [0, 1]
    first, last = order
    assert events[first].pending(EV_READ)
    assert not events[last].pending(EV_READ)


# ---- the other end goes ----


def test_a_close_makes_the_other_end_readable_and_a_full_one_writable(
    each_base: EventBase, sockets: Sockets
) -> None:
    seen: list[tuple[str, int]] = []
    read_by, closed_by = sockets
    written_by, full_by = socket.socketpair()
    written_by.setblocking(False)
    fill(written_by)

    def close() -> None:
        seen.append(("close", 0))
        closed_by.close()
        full_by.close()

    with written_by:
        Event(each_base, read_by, EV_READ, lambda _fd, what: seen.append(("read", what))).add()
        Event(each_base, written_by, EV_WRITE, lambda _fd, what: seen.append(("write", what))).add()
        Timer(each_base, close).add(0.002)
        assert each_base.dispatch() == 1
    assert seen[0] == ("close", 0)
    assert sorted(seen[1:]) == [("read", EV_READ), ("write", EV_WRITE)]


@epoll
@pytest.mark.parametrize("et", [0, EV_ET])
@pytest.mark.parametrize("persist", [0, EV_PERSIST])
@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_ev_closed_tells_of_a_close_and_of_half_a_close(
    sockets: Sockets, how: str, persist: int, et: int
) -> None:
    config = EventConfig()
    config.require_features(EV_FEATURE_EARLY_CLOSE)
    a, b = sockets
    seen: set[int] = set()
    with EventBase(config) as base:
        event = Event(base, a, EV_CLOSED | persist | et, lambda _fd, what: seen.add(int(what)))
        event.add()
        if how == "close":
            b.close()
        else:
            b.shutdown(socket.SHUT_WR)
        if persist and not et:  # it is called again and again
            base.loopexit(0.003)
        assert base.loop(EVLOOP_NONBLOCK) == (0 if persist else 1)
        assert seen == {EV_CLOSED | et}


@epoll
def test_ev_closed_is_seen_with_bytes_in_the_way_and_none_read(sockets: Sockets) -> None:
    """test-closed.c: with a time limit, which does not pass."""
    config = EventConfig()
    config.require_features(EV_FEATURE_EARLY_CLOSE)
    a, b = sockets
    seen: list[int] = []
    with EventBase(config) as base:
        a.send(b"test string\0")
        a.shutdown(socket.SHUT_WR)
        event = Event(base, b, EV_CLOSED | EV_TIMEOUT, lambda _fd, what: seen.append(what))
        event.add(20)
        assert base.dispatch() == 1
    assert seen == [EV_CLOSED]
    assert b.recv(256) == b"test string\0"


@pytest.mark.skipif("poll" not in METHODS, reason="no poll here")
def test_under_poll_a_descriptor_that_was_closed_is_ready() -> None:
    """The callback's own read is to find out, as libevent has it; not a loop that spins."""
    a, b = socket.socketpair()
    seen: list[int] = []
    with EventBase(config_for("poll")) as base, b:
        base.dispatch()  # opens what the base needs itself, which else would get the number
        event = Event(base, a, EV_READ, lambda _fd, what: seen.append(what))
        event.add(20)
        assert event.pending(EV_READ)
        a.close()
        base.loop(EVLOOP_ONCE)
        assert seen == [EV_READ]
        event.close()


# ---- descriptors that are closed and come again ----


def test_a_number_that_was_closed_and_is_a_copy_again(
    each_base: EventBase, sockets: Sockets
) -> None:
    """Of a copy the kernel goes on to report what is waited for with the first one; a later event
    for the number has to be told only what it asked for."""
    a, b = sockets
    a.send(TEXT)
    seen: list[tuple[int, int]] = []

    def ready(_fd: int, what: int, i: int) -> None:
        seen.append((i, what))

    fd = b.fileno()
    copy = os.dup(fd)
    one = Event(each_base, fd, EV_READ | EV_PERSIST, ready, 1)
    two = Event(each_base, copy, EV_READ | EV_PERSIST, ready, 2)
    one.add()
    two.add()
    each_base.loop(EVLOOP_ONCE)
    assert sorted(seen) == [(1, EV_READ), (2, EV_READ)]
    seen.clear()
    os.close(copy)
    two.close()
    each_base.loop(EVLOOP_ONCE)
    assert seen == [(1, EV_READ)]
    seen.clear()
    assert os.dup2(fd, copy) == copy
    two = Event(each_base, copy, EV_WRITE | EV_PERSIST, ready, 2)
    two.add()
    each_base.loop(EVLOOP_ONCE)
    assert sorted(seen) == [(1, EV_READ), (2, EV_WRITE)]
    two.close()
    os.close(copy)


def test_a_new_socket_under_the_number_of_one_whose_event_went_first(
    each_base: EventBase,
) -> None:
    seen: list[bytes] = []
    numbers = set()
    for i in range(20):
        a, b = socket.socketpair()
        numbers.add(b.fileno())
        with a, b:
            event = Event(each_base, b, EV_READ, lambda _fd, _what, b: seen.append(b.recv(9)), b)
            event.add()
            each_base.loop(EVLOOP_NONBLOCK)
            a.send(b"%d" % i)
            each_base.loop(EVLOOP_ONCE)
            event.close()
    assert seen == [b"%d" % i for i in range(20)]
    assert len(numbers) < 20


@pytest.mark.parametrize("slowly", [False, True])
def test_seventy_descriptors_that_are_ready_at_once(each_base: EventBase, slowly: bool) -> None:
    """A backend has to make room for more than it began with. Slowly: a round of the loop after
    each, so that the first is called in each round and the last in the last two."""
    n = 70
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(n)]
    called = [0] * n
    events = []

    def writable(_fd: int, _what: int, i: int) -> None:
        called[i] += 1

    for i, sock in enumerate(socks):
        what = EV_WRITE | EV_PERSIST if slowly else EV_WRITE
        events.append(Event(each_base, sock, what, writable, i))
        events[-1].add()
        if slowly:
            each_base.loop(ROUND)
    each_base.loop(ROUND if slowly else EVLOOP_NONBLOCK)
    assert called == [n - i + 1 if slowly else 1 for i in range(n)]
    for event, sock in zip(events, socks, strict=True):
        event.close()
        sock.close()


@pytest.mark.parametrize("fd", [0x7FFFFFFF, 0x7FFFFFFF // 2])
def test_a_descriptor_that_no_table_has_room_for_is_refused(base: EventBase, fd: int) -> None:
    with pytest.raises((pylibevent.LibeventError, OSError, ValueError)):
        Event(base, fd, EV_READ, nothing).add()
    assert base.num_events() == 0
    assert base.loop(EVLOOP_NONBLOCK) == 1


@pytest.mark.parametrize("signum", [-1, signal.NSIG])
def test_a_number_that_is_no_signal_is_refused(base: EventBase, signum: int) -> None:
    with pytest.raises(ValueError, match="range"):
        Signal(base, signum, nothing)


# ---- times ----


def test_a_timer_that_persists_ticks_until_the_loop_is_left(each_base: EventBase) -> None:
    count = 0

    def tick(_fd: int, what: int) -> None:
        nonlocal count
        assert what == EV_TIMEOUT
        count += 1
        if count == 6:
            each_base.loopexit()

    event = Event(each_base, -1, EV_TIMEOUT | EV_PERSIST, tick)
    event.add(0.001)
    assert each_base.dispatch() == 0
    assert count >= 6
    assert event.pending() == EV_TIMEOUT


def test_ticks_that_were_missed_are_one_tick(base: EventBase) -> None:
    """When the loop comes late it does not make up for each of them."""
    ticks: list[None] = []
    timer = Timer(base, ticks.append, None, persist=True)
    timer.add(0.05)
    spin(0.16)
    Timer(base, base.loopbreak).add(0.01)
    base.dispatch()
    assert len(ticks) == 1


def test_active_starts_the_time_of_one_that_persists_again(base: EventBase) -> None:
    seen: list[tuple[int, float]] = []

    def called(_fd: int, what: int) -> None:
        seen.append((what, time.monotonic()))
        if len(seen) == 3:
            base.loopexit()

    event = Event(base, -1, EV_TIMEOUT | EV_PERSIST, called)
    event.add(0.3)
    spin(0.1)
    event.active(EV_READ)
    base.dispatch()
    assert [what for what, _ in seen] == [EV_READ, EV_TIMEOUT, EV_TIMEOUT]
    assert seen[1][1] - seen[0][1] > 0.29  # not the 0.2 that were left; the clock is coarse


def test_what_loses_its_time_limit_waits_for_the_rest_only(
    base: EventBase, sockets: Sockets
) -> None:
    a, b = sockets
    events = 0
    count = 0
    fired: list[None] = []

    def readable(_fd: int, what: int) -> None:
        nonlocal events, count
        assert len(b.recv(1)) == 1
        events |= what
        count += 1
        if count == 2:
            reader.delete()

    def remove() -> None:
        reader.remove_timer()
        timer.remove_timer()

    reader = Event(base, b, EV_READ | EV_PERSIST, readable)
    timer = Timer(base, fired.append, None)
    reader.add(0.1)
    timer.add(0.1)
    Timer(base, remove).add(0)
    Timer(base, a.send, b"A").add(0.005)
    Timer(base, a.send, b"A").add(0.15)
    assert base.dispatch() == 1
    assert (events, count, fired) == (EV_READ, 2, [])


def test_timers_that_add_and_delete_one_another(base: EventBase) -> None:
    """test-time.c: each adds or deletes ten others that a die tells, and the loop still ends."""
    rand = random.Random(7)
    n = 1000
    called = 0

    def fired() -> None:
        nonlocal called
        called += 1
        if called >= 3 * n:
            return
        for _ in range(10):
            other = timers[rand.randrange(n)]
            usec = rand.randrange(5000)
            if usec % 2 or called < n:
                other.add(usec / 1e6)
            else:
                other.delete()

    timers = [Timer(base, fired) for _ in range(n)]
    for timer in timers:
        timer.add(rand.randrange(5000) / 1e6)
    assert base.dispatch() == 1
    assert called >= n
    assert base.num_events() == 0


def test_timers_stay_in_order_whichever_are_taken_out_or_moved(base: EventBase) -> None:
    rand = random.Random(3)
    seen: list[int] = []
    usecs = rand.sample(range(10_000), 500)
    timers = {usec: Timer(base, seen.append, usec) for usec in usecs}
    gone = set(usecs[:200])
    moved = set(usecs[200:300])

    def start(_fd: int, _what: int) -> None:  # in a callback: one time to all of them
        for usec, timer in timers.items():
            timer.add(usec / 1e6)
        for usec in gone:
            timers[usec].delete()
        for usec in moved:
            timers[usec].add((usec + 10_000) / 1e6)
        spin(0.03)  # all are due at once

    base.once(-1, EV_TIMEOUT, start)
    assert base.dispatch() == 1
    assert seen == sorted(set(usecs) - gone - moved) + sorted(moved)


def test_timers_go_between_common_and_other_timeouts(base: EventBase) -> None:
    """A hundred that tick four times: some were added when there were no common timeouts yet,
    some are moved from one to another; and again afterwards, for the base's end to find them."""
    counts = [0] * 100
    last = [0.0] * 100

    def tick(i: int) -> None:
        counts[i] += 1
        last[i] = time.monotonic()
        if counts[i] == 4:
            timers[i].delete()

    timers = [Timer(base, tick, i, persist=True) for i in range(100)]

    def start(_fd: int, _what: int) -> None:
        for timer in timers[::3]:
            timer.add(0.01)
        assert base.init_common_timeout(0.01) == 0.01
        assert base.init_common_timeout(0.02) == 0.02
        for i, timer in enumerate(timers):
            if i % 5 == 0:
                timer.add(0.03)
            if i % 7 == 0:
                timer.add(0.01)
            timer.add(0.01 if i % 2 else 0.02)

    base.once(-1, EV_TIMEOUT, start)
    assert base.dispatch() == 1
    assert counts == [4] * 100
    assert max(last[1::2]) < min(last[::2])
    for i, timer in enumerate(timers):
        timer.add(0.01 if i % 2 else 0.02)
    base.close()
    assert all(timer.closed for timer in timers)


def test_common_timeouts_are_limited_to_256_lengths(base: EventBase) -> None:
    for _ in range(2):  # one that is there already counts no second time
        for i in range(256):
            base.init_common_timeout(i + 1)
    with pytest.raises(LibeventError, match="event_base_init_common_timeout"):
        base.init_common_timeout(1000)
    Timer(base, base.loopbreak).add(0)
    assert base.dispatch() == 0


def test_common_timeouts_count_as_the_events_they_are(base: EventBase) -> None:
    base.init_common_timeout(60)
    timers = [Timer(base, nothing) for _ in range(10)]
    for timer in timers:
        timer.add(60)
    assert base.num_events() == 10
    for timer in timers:
        left = timer.expires_in
        assert left is not None
        assert 59 < left <= 60.1
        timer.close()
    assert base.num_events() == 0
    assert base.dispatch() == 1


# ---- priorities ----


@pytest.mark.parametrize(
    ("npriorities", "first", "last"),
    [(1, 3, 3), (2, 3, 1), (3, 3, 0)],
)
def test_which_of_two_run_before_loopexit(
    each_base: EventBase, npriorities: int, first: int, last: int
) -> None:
    """Two that add themselves again with no time, and leave the loop after three times; loopexit
    has the priority in the middle."""
    counts = {"first": 0, "last": 0}

    def called(name: str) -> None:
        if counts[name] == 3:
            each_base.loopexit()
            return
        counts[name] += 1
        timers[name].add(0)

    each_base.priority_init(npriorities)
    timers = {name: Timer(each_base, called, name) for name in counts}
    timers["first"].priority = 0
    timers["last"].priority = npriorities - 1
    for timer in timers.values():
        timer.add(0)
    each_base.dispatch()
    assert counts == {"first": first, "last": last}


def test_one_of_a_higher_priority_made_active_comes_before_the_next_of_the_same(
    base: EventBase,
) -> None:
    base.priority_init(8)
    order: list[str] = []

    def called(_fd: int, _what: int, name: str) -> None:
        order.append(name)
        if name == "first":
            same.active(EV_READ)
            higher.active(EV_TIMEOUT)

    first, same, higher = (Event(base, -1, 0, called, name) for name in ("first", "same", "higher"))
    first.priority = same.priority = 4
    higher.priority = 0
    first.active(EV_WRITE)
    base.dispatch()
    assert order == ["first", "higher", "same"]


# ---- the loop ----


def test_a_loop_that_is_to_end_in_a_moment_leaves_what_is_far_away(each_base: EventBase) -> None:
    timer = Timer(each_base, nothing)
    timer.add(24 * 60 * 60)
    each_base.loopexit(0.005)
    assert each_base.dispatch() == 0
    assert (each_base.got_exit, each_base.got_break) == (True, False)
    assert timer.pending() == EV_TIMEOUT


def test_the_first_of_several_loopexits_counts(base: EventBase) -> None:
    started = time.monotonic()
    base.loopexit(0.005)
    base.loopexit(60)
    assert base.dispatch() == 0
    assert (base.got_exit, base.got_break) == (True, False)
    assert time.monotonic() - started < 30


def test_the_later_loopexit_ends_a_later_loop(base: EventBase) -> None:
    base.loopexit(0.001)
    base.loopexit(0.03)
    assert [base.dispatch(), base.dispatch(), base.dispatch()] == [0, 0, 1]
    assert not base.got_exit


def test_loopbreak_leaves_out_what_is_active_beside_it(each_base: EventBase) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        each_base.loopbreak()

    Timer(each_base, first).add(0)
    Timer(each_base, seen.append, "second").add(0)
    assert each_base.dispatch() == 0
    assert (each_base.got_exit, each_base.got_break) == (False, True)
    assert seen == ["first"]


def test_loopcontinue_sees_what_became_ready_before_the_rest_runs(
    base: EventBase, sockets: Sockets
) -> None:
    """Ten active ones of a low priority, the first of which makes a reader of a high one ready."""
    a, b = sockets
    base.priority_init(2)
    order: list[str] = []

    def low(_fd: int, _what: int, i: int) -> None:
        order.append(str(i))
        if i == 0:
            a.send(b"x")
            base.loopcontinue()

    def high(_fd: int, _what: int) -> None:
        order.append(b.recv(1).decode())

    reader = Event(base, b, EV_READ, high)
    reader.priority = 0
    reader.add()
    events = [Event(base, -1, 0, low, i) for i in range(10)]
    for event in events:
        event.priority = 1
        event.active(EV_TIMEOUT)
    base.dispatch()
    assert order == ["0", "x", *"123456789"]


LOOPS = [  # flags, what there is, what loop() returns, how often the event is called
    (0, "nothing", 1, 0),
    (EVLOOP_ONCE, "nothing", 1, 0),
    (EVLOOP_NONBLOCK, "nothing", 1, 0),
    (EVLOOP_NONBLOCK, "later", 0, 0),
    (ROUND, "later", 0, 0),
    (0, "active", 1, 1),
    (EVLOOP_ONCE, "active", 0, 1),
    (EVLOOP_NONBLOCK, "active", 1, 1),
    (EVLOOP_ONCE, "ready", 0, 1),
    (ROUND, "ready", 0, 1),
    (EVLOOP_NONBLOCK | EVLOOP_NO_EXIT_ON_EMPTY, "nothing", 0, 0),
    (ROUND | EVLOOP_NO_EXIT_ON_EMPTY, "active", 0, 1),
]


@pytest.mark.parametrize(("flags", "there", "rc", "calls"), LOOPS)
def test_loop_flags(
    base: EventBase, sockets: Sockets, flags: int, there: str, rc: int, calls: int
) -> None:
    seen: list[int] = []
    event = Event(base, sockets[0], EV_WRITE | EV_PERSIST, lambda _fd, what: seen.append(what))
    timer = Event(base, -1, EV_TIMEOUT, lambda _fd, what: seen.append(what))
    if there == "ready":
        event.add()
    elif there == "active":
        timer.active(EV_TIMEOUT)
    elif there == "later":
        timer.add(60)
    assert base.loop(flags) == rc
    assert len(seen) == calls
    event.close()
    timer.close()


def test_a_loop_inside_the_loop_is_refused_and_the_outer_one_goes_on(each_base: EventBase) -> None:
    errors: list[BaseException] = []

    def called(_fd: int, _what: int) -> None:
        with pytest.raises(RuntimeError) as caught:
            each_base.loop(0)
        errors.append(caught.value)

    event = Event(each_base, -1, 0, called)
    event.active(EV_WRITE)
    assert each_base.loop(0) == 1
    assert len(errors) == 1


@pytest.mark.parametrize("limit", ["callbacks", "time", "none"])
def test_a_limit_on_dispatch_has_the_loop_look_for_higher_priorities_in_between(
    sockets: Sockets, limit: str
) -> None:
    """Ten active ones, the first of which makes a reader of a higher priority ready."""
    a, b = sockets
    config = EventConfig()
    if limit == "callbacks":
        config.set_max_dispatch_interval(max_callbacks=1, min_priority=1)
    elif limit == "time":
        config.set_max_dispatch_interval(0.001, min_priority=1)
    order: list[str] = []

    def low(_fd: int, _what: int, i: int) -> None:
        order.append(str(i))
        if i == 0:
            a.send(b"x")
            spin(0.02)

    with EventBase(config) as base:
        base.priority_init(2)
        reader = Event(base, b, EV_READ, lambda _fd, _what: order.append(b.recv(1).decode()))
        reader.priority = 0
        reader.add()
        events = [Event(base, -1, 0, low, i) for i in range(10)]
        for event in events:
            event.priority = 1
            event.active(EV_TIMEOUT)
        base.dispatch()
    assert order == (["0", "x", *"123456789"] if limit != "none" else [*"0123456789", "x"])


# ---- once ----


def test_once_for_bytes_for_a_time_and_for_now(each_base: EventBase, sockets: Sockets) -> None:
    a, b = sockets
    seen: list[tuple[str, int]] = []

    def called(_fd: int, what: int, name: str) -> None:
        seen.append((name, what))

    each_base.once(b, EV_READ, called, "bytes")
    each_base.once(-1, EV_TIMEOUT, called, "time", timeout=0.002)
    each_base.once(-1, EV_TIMEOUT, called, "now")
    each_base.once(-1, EV_TIMEOUT, called, "now", timeout=0)
    with pytest.raises(ValueError, match="wait for"):
        each_base.once(-1, 0, called, "never")
    a.send(TEXT)
    a.shutdown(socket.SHUT_WR)
    assert each_base.dispatch() == 1
    assert sorted(seen) == [
        ("bytes", EV_READ),
        ("now", EV_TIMEOUT),
        ("now", EV_TIMEOUT),
        ("time", EV_TIMEOUT),
    ]


def test_several_once_for_now_keep_their_order(base: EventBase) -> None:
    seen: list[int] = []
    for i in range(10):
        base.once(-1, EV_TIMEOUT, lambda _fd, _what, i: seen.append(i), i)
    base.dispatch()
    assert seen == list(range(10))


def test_once_that_never_comes_goes_with_the_base() -> None:
    seen: list[int] = []
    with EventBase() as base:
        base.once(-1, EV_TIMEOUT, lambda _fd, what: seen.append(what), timeout=60)
        base.loopexit(0.003)
        base.dispatch()
        assert base.num_events() == 1
    assert seen == []


# ---- what is pending, what is active ----


def test_pending_is_about_each_of_the_flags(base: EventBase, sockets: Sockets) -> None:
    reader = Event(base, sockets[0], EV_READ, nothing)
    writer = Event(base, sockets[1], EV_WRITE, nothing)
    timer = Timer(base, nothing)
    reader.add()
    timer.add(0.5)
    assert reader.pending(EV_READ) == EV_READ
    assert not reader.pending(EV_WRITE)
    assert reader.pending(EV_READ | EV_WRITE) == EV_READ
    assert not reader.pending(EV_TIMEOUT)
    assert not writer.pending(EV_WRITE)
    assert timer.pending(EV_TIMEOUT) == EV_TIMEOUT
    left = timer.expires_in
    assert left is not None
    assert 0 < left <= 0.51
    for event in reader, writer, timer:
        event.delete()
        assert not event.pending()
        event.close()


def test_an_event_made_active_twice_is_active_for_both(base: EventBase) -> None:
    seen: list[int] = []
    event = Event(base, -1, EV_TIMEOUT, lambda _fd, what: seen.append(what))
    event.active(EV_READ)
    assert event.pending(EV_READ | EV_TIMEOUT | EV_WRITE) == EV_READ
    event.active(EV_WRITE)
    assert event.pending(EV_READ | EV_TIMEOUT | EV_WRITE) == EV_READ | EV_WRITE
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [EV_READ | EV_WRITE]


@pytest.mark.parametrize("how", ["added", "active"])
def test_a_base_may_go_while_it_has_events(sockets: Sockets, how: str) -> None:
    seen: list[int] = []
    base = EventBase()
    event = Event(base, sockets[0], EV_WRITE, lambda _fd, what: seen.append(what))
    if how == "added":
        event.add()
    else:
        event.active(EV_READ)
    base.close()
    assert event.closed
    event.close()
    assert seen == []


COUNTS = [
    (EVENT_BASE_COUNT_ACTIVE, 0, 1),
    (EVENT_BASE_COUNT_VIRTUAL, 0, 0),
    (EVENT_BASE_COUNT_ADDED, 2, 3),
    (EVENT_BASE_COUNT_ACTIVE | EVENT_BASE_COUNT_VIRTUAL, 0, 1),
    (EVENT_BASE_COUNT_ACTIVE | EVENT_BASE_COUNT_ADDED, 2, 4),
    (EVENT_BASE_COUNT_VIRTUAL | EVENT_BASE_COUNT_ADDED, 2, 3),
    (EVENT_BASE_COUNT_ACTIVE | EVENT_BASE_COUNT_VIRTUAL | EVENT_BASE_COUNT_ADDED, 2, 4),
]


@pytest.mark.parametrize(("flags", "added", "active"), COUNTS)
def test_an_event_counts_once_for_each_list_that_it_is_in(
    base: EventBase, flags: int, added: int, active: int
) -> None:
    """A descriptor's and a timeout's while it is added, and one more while it is active."""
    event = Event(base, -1, EV_READ, lambda _fd, _what: base.loopexit())
    event.add(0.1)
    assert base.num_events(flags) == added
    event.active(EV_READ)
    assert base.num_events(flags) == active
    base.loop()
    assert base.num_events(flags) == 0


@pytest.mark.parametrize(("flags", "added", "active"), COUNTS)
def test_the_most_events_there_were(base: EventBase, flags: int, added: int, active: int) -> None:
    """Two were added at a time, one of them became active when the other was gone."""
    one, two = (Event(base, -1, EV_READ, lambda _fd, _what: base.loopexit()) for _ in (1, 2))
    one.add(0.1)
    two.add(0.1)
    two.delete()
    most = 2 * added
    assert base.max_events(flags) == most
    one.active(EV_READ)
    n_active = base.num_events(EVENT_BASE_COUNT_ACTIVE) if flags & EVENT_BASE_COUNT_ACTIVE else 0
    assert base.max_events(flags) == most + n_active
    base.loop()
    assert base.max_events(flags, clear=True) == most + n_active
    assert base.max_events(flags) == 0
    assert active >= added


def test_deferred_callbacks_that_defer_themselves_again_leave_sockets_their_turn(
    base: EventBase, sockets: Sockets
) -> None:
    """Unlike events that make each other active: what is deferred waits for the next round."""
    a, b = sockets
    counts = {"deferred": 0, "read": 0}
    bev, _other = BufferEvent.pair(base, BEV_OPT_DEFER_CALLBACKS)

    def deferred(bev: BufferEvent) -> None:
        counts["deferred"] += 1
        a.send(b"x")
        bev.trigger(EV_READ, BEV_TRIG_IGNORE_WATERMARKS)

    def readable(_fd: int, _what: int) -> None:
        counts["read"] += len(b.recv(100))
        if counts["read"] >= 100:
            base.loopexit()

    bev.setcb(deferred)
    Event(base, b, EV_READ | EV_PERSIST, readable).add()
    bev.trigger(EV_READ, BEV_TRIG_IGNORE_WATERMARKS)
    assert base.dispatch() == 0
    assert 100 <= counts["read"] <= counts["deferred"] < 200


# ---- looking at events ----


def test_the_running_event_is_the_one_whose_callback_runs(base: EventBase) -> None:
    seen: list[Any] = []
    other = EventBase()

    def called(_fd: int, _what: int) -> None:
        seen.append(base.running_event is event)
        seen.append(other.running_event)
        in_thread = threading.Thread(target=lambda: seen.append(base.running_event))
        in_thread.start()
        in_thread.join()
        base.loopexit()

    event = Event(base, -1, EV_READ, called)
    assert base.running_event is None
    event.active(EV_READ)
    base.dispatch()
    assert base.running_event is None  # C reads through NULL here
    assert seen == [True, None, None]
    other.close()


@pytest.mark.parametrize("persist", [0, EV_PERSIST])
@pytest.mark.parametrize("how", ["add", "delete", "active", "close", "finalize"])
def test_the_running_event_is_that_whatever_its_callback_does_to_it(
    base: EventBase, how: str, persist: int
) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "add": (10,),
        "active": (EV_WRITE,),
        "finalize": (nothing,),
    }
    seen: list[bool] = []

    def called(_fd: int, what: int) -> None:
        if what == EV_READ:
            getattr(event, how)(*arguments.get(how, ()))
            seen.append(base.running_event is event)

    event = Event(base, -1, persist, called)
    event.active(EV_READ)
    base.loop(ROUND)
    assert seen == [True]
    event.close()


@pytest.mark.parametrize("kind", ["timer", "signal", "once"])
def test_the_running_event_of_each_kind(base: EventBase, kind: str) -> None:
    seen: list[Event | None] = []

    def called(*_args: Any) -> None:
        seen.append(base.running_event)

    event: Event | None = None
    if kind == "timer":
        event = Timer(base, called)
        event.add(0)
    elif kind == "signal":
        event = Signal(base, signal.SIGUSR1, called)
        event.active(pylibevent.EV_SIGNAL)
    else:
        base.once(-1, EV_TIMEOUT, called)
    base.loop(EVLOOP_ONCE)
    assert isinstance(seen[0], Event)
    assert event in {None, seen[0]}
    seen[0].close()


def test_foreach_event_shows_each_that_is_added_or_active_once(base: EventBase) -> None:
    events = [Timer(base, nothing) for _ in range(5)]
    events[0].add(10)
    events[1].add(10)
    events[1].active(EV_TIMEOUT)
    events[2].active(EV_TIMEOUT)
    events[3].add(10)
    shown: list[EventInfo] = []
    assert base.foreach_event(shown.append) is None
    ours = [info for info in shown if not info.internal]
    assert len(ours) == 4
    assert {info.event for info in ours} == set(events[:4])
    by_event = {info.event: info for info in ours}
    assert by_event[events[2]].expires_in is None
    left = by_event[events[0]].expires_in
    assert left is not None
    assert 9 < left <= 10.1
    assert {info.pending for info in ours} == {EV_TIMEOUT}


def test_foreach_event_stops_at_the_first_true_answer_and_returns_it(base: EventBase) -> None:
    events = [Timer(base, nothing) for _ in range(5)]
    for event in events:
        event.add(10)
    looked: list[Event | None] = []

    def find(info: EventInfo, wanted: Event, found: int) -> int:
        looked.append(info.event)
        return found if info.event is wanted else 0

    assert base.foreach_event(find, events[2], 101) == 101
    assert looked[-1] is events[2]
    with pytest.raises(ZeroDivisionError):
        base.foreach_event(lambda _info: 1 // 0)


def test_foreach_event_may_do_with_the_events_what_it_likes(base: EventBase) -> None:
    events = [Timer(base, nothing) for _ in range(100)]
    for event in events:
        event.add(10)
    new: list[Timer] = []

    def replace(info: EventInfo) -> None:
        if info.event is not None:
            info.event.close()
            new.append(Timer(base, nothing))
            new[-1].add(5)

    base.foreach_event(replace)
    assert all(event.closed for event in events)
    assert len(new) == base.num_events() == 100


def test_foreach_event_tells_what_is_not_ours(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0].detach())
    bev.enable(EV_READ)
    reader = Event(base, sockets[1], EV_READ | EV_PERSIST, nothing)
    reader.add()
    shown: list[EventInfo] = []
    base.foreach_event(shown.append)
    shown = [info for info in shown if not info.internal]
    assert {(info.fd, info.event) for info in shown} == {(bev.fd, None), (reader.fd, reader)}
    mine = next(info for info in shown if info.event is reader)
    assert (mine.events, mine.pending, mine.priority) == (EV_READ | EV_PERSIST, EV_READ, 0)
    bev.close()


@pytest.mark.parametrize("value", [None, 1, "text"])
def test_foreach_event_with_no_function_is_a_type_error(base: EventBase, value: Any) -> None:
    with pytest.raises(TypeError, match="callback"):
        base.foreach_event(value)


@pytest.mark.parametrize("value", [1, "text", []])
def test_dump_events_to_no_file_is_a_type_error(base: EventBase, value: Any) -> None:
    with pytest.raises(TypeError, match="write"):
        base.dump_events(value)


def test_dump_events_says_what_is_added_and_what_is_active(
    base: EventBase, sockets: Sockets
) -> None:
    """test-dumpevents.c; events with and without a common timeout look the same."""
    a, b = (sock.fileno() for sock in sockets)
    base.init_common_timeout(100)
    base.init_common_timeout(200)
    made: list[tuple[Event, float | None]] = [
        (Event(base, a, EV_WRITE, nothing), None),
        (Event(base, b, EV_READ | EV_PERSIST, nothing), 100),
        (Event(base, -1, EV_PERSIST, nothing), 200),
        (Timer(base, nothing), 300),
        (Signal(base, signal.SIGINT, nothing), None),
    ]
    for event, wait in made:
        event.add(wait)
    one, two = (Event(base, -1, 0, nothing) for _ in (1, 2))
    one.active(EV_READ)
    two.active(EV_READ | EV_WRITE | EV_TIMEOUT)
    made[1][0].active(EV_READ)
    now = time.time()
    out = io.StringIO()
    base.dump_events(out)

    def short(line: str) -> str:
        line = re.sub(r"0x[0-9a-f]+ ", "", line).strip()
        return re.sub(
            r"Timeout=([\d.]+)", lambda m: f"Timeout=+{round((float(m[1]) - now) / 100)}", line
        )

    inserted, active = out.getvalue().split("Active events:\n")
    lines = [short(line) for line in inserted.splitlines()[1:] if "Internal" not in line]
    assert sorted(lines) == sorted(
        [
            f"[fd  {a}] Write",
            f"[fd  {b}] Read Persist Timeout=+1",
            "[fd  -1] Persist Timeout=+2",
            "[fd  -1] Timeout=+3",
            f"[sig {signal.SIGINT:d}] Signal Persist",
        ]
    )
    assert {short(line) for line in active.splitlines()} == {
        "[fd  -1, priority=0] Read active",
        "[fd  -1, priority=0] Read Write Timeout active",
        f"[fd  {b}, priority=0] Read active",
    }


def test_dump_events_goes_to_stderr(base: EventBase, capsys: pytest.CaptureFixture[str]) -> None:
    base.dump_events()
    out, error = capsys.readouterr()
    assert out == ""
    lines = [line for line in error.splitlines() if "Internal" not in line]
    assert lines == ["Inserted events:", "Active events:"]


def test_active_by_fd_reaches_the_added_events_of_a_descriptor(
    each_base: EventBase, sockets: Sockets
) -> None:
    a, b = sockets
    each_base.active_by_fd(1000, EV_READ)  # of which there is none
    seen: list[tuple[int, int]] = []
    made = [(a, EV_READ, 600), (a, EV_WRITE, None), (b, EV_READ, None), (b, EV_READ, 600)]
    events = []
    for i, (sock, what, wait) in enumerate(made, 1):
        events.append(Event(each_base, sock, what, lambda _fd, w, i: seen.append((i, w)), i))
        events[-1].add(wait)
    for i, what in (0, EV_WRITE), (1, EV_READ), (1, EV_TIMEOUT):
        each_base.active_by_fd(sockets[i], what)
    each_base.loop(EVLOOP_ONCE)
    assert sorted(seen) == [(2, EV_WRITE), (3, EV_READ), (4, EV_READ | EV_TIMEOUT)]


def test_active_by_fd_with_all_at_once(base: EventBase, sockets: Sockets) -> None:
    """C takes a descriptor's flags or the timeout's, whichever it finds first."""
    seen: list[int] = []
    event = Event(base, sockets[0], EV_READ, lambda _fd, what: seen.append(what))
    event.add(600)
    base.active_by_fd(sockets[0], EV_READ | EV_TIMEOUT)
    base.loop(EVLOOP_ONCE)
    assert seen == [EV_READ | EV_TIMEOUT]


def test_active_by_signal_reaches_the_added_events_of_a_signal(each_base: EventBase) -> None:
    seen: list[int] = []
    with Signal(each_base, signal.SIGHUP, seen.append) as event:
        each_base.active_by_signal(signal.SIGHUP)
        each_base.loop(ROUND)
        assert seen == []
        event.add(600)
        each_base.active_by_signal(signal.SIGHUP)
        each_base.active_by_signal(signal.SIGUSR1)
        each_base.loop(EVLOOP_ONCE)
    assert seen == [signal.SIGHUP]


@pytest.mark.parametrize("number", [-1, 0, 1000])
def test_active_by_what_is_no_number_of_its_kind(base: EventBase, number: int) -> None:
    with pytest.raises(ValueError, match="not a signal"):
        base.active_by_signal(number)
    if number < 0:
        with pytest.raises(ValueError, match="range"):
            base.active_by_fd(number, EV_READ)
    with pytest.raises(ValueError, match="range"):
        base.active_by_fd(0, 0)


# ---- borrowed from C ----


def test_from_ptr_of_a_base_of_ours_is_that_base(base: EventBase) -> None:
    assert EventBase.from_ptr(base.ptr) is base


def test_a_base_of_cs_runs_callbacks_of_python(raw_base: Any) -> None:
    """Whoever runs its loop; and it stays C's to free."""
    seen: list[str] = []
    with EventBase.from_ptr(raw_base) as base:
        assert EventBase.from_ptr(raw_base) is base
        Timer(base, seen.append, "ours").add(0)
        base.dispatch()
        Timer(base, seen.append, "its own").add(0)
        assert lib.event_base_dispatch(raw_base) == 1
    assert seen == ["ours", "its own"]
    assert lib.event_base_dispatch(raw_base) == 1


def test_what_is_raised_in_a_loop_of_cs_is_raised_by_the_next_of_ours(raw_base: Any) -> None:
    def fail() -> None:
        raise KeyError("x")

    with EventBase.from_ptr(raw_base) as base:
        Timer(base, fail).add(0)
        lib.event_base_dispatch(raw_base)
        assert lib.event_base_got_break(raw_base)
        with pytest.raises(KeyError):
            base.dispatch()


def test_an_event_of_cs_is_armed_by_methods(raw: Raw, raw_base: Any) -> None:
    made = lib.event_new(raw_base, -1, 0, raw.note("x"), ffi.NULL)
    event = Event.from_ptr(made)
    assert event.fd == -1
    event.active(EV_READ)
    assert event.pending(EV_READ)
    event.base.loop(ROUND)
    event.add(60)
    assert event.expires_in is not None
    event.delete()
    assert raw.seen == [("x", EV_READ)]
    event.close()
    event.base.close()
    lib.event_free(made)


# ---- signals ----


def c_disposition(signum: int) -> str:
    """What C has set for a signal: sigaction's first field, which Python's own functions do not
    look at."""
    action = (ctypes.c_void_p * 64)()
    assert ctypes.CDLL(None).sigaction(signum, None, action) == 0
    return {None: "default", 1: "ignored"}.get(action[0], "caught")


@pytest.mark.parametrize("reorder", [False, True])
def test_a_signal_from_a_timer_of_the_system(each_base: EventBase, reorder: bool) -> None:
    seen: list[int] = []

    def called(signum: int) -> None:
        seen.append(signum)
        event.delete()

    event = Signal(each_base, signal.SIGALRM, called)
    event.add()
    if reorder:
        event.delete()
        event.add()
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    assert each_base.dispatch() == 1
    assert seen == [signal.SIGALRM]


def test_a_signal_before_the_loop_is_seen_in_one_that_does_not_wait(each_base: EventBase) -> None:
    seen: list[int] = []
    with Signal(each_base, signal.SIGUSR1, seen.append) as event:
        event.add()
        send(signal.SIGUSR1)
        each_base.loop(EVLOOP_NONBLOCK)
    assert seen == [signal.SIGUSR1]


def test_two_events_for_one_signal_each_end_themselves(each_base: EventBase) -> None:
    seen: list[int] = []

    def called(_signum: int, i: int) -> None:
        seen.append(i)
        events[i].delete()

    events = [Signal(each_base, signal.SIGALRM, called, i) for i in (0, 1)]
    for event in events:
        event.add()
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    assert each_base.dispatch() == 1
    assert sorted(seen) == [0, 1]


def test_no_descriptor_is_left_of_bases_that_had_signals() -> None:
    before = open_descriptors()
    one, two = EventBase(), EventBase()
    for base in one, two:
        event = Signal(base, signal.SIGUSR1, nothing)
        event.add()
        event.delete()
    two.close()
    one.close()
    assert open_descriptors() == before


def test_a_signal_after_its_event_was_deleted_does_not_come_to_it(base: EventBase) -> None:
    seen: list[int] = []
    event = Signal(base, signal.SIGCONT, seen.append)
    event.add()
    event.delete()
    send(signal.SIGCONT)
    assert base.loop(EVLOOP_NONBLOCK) == 1
    assert seen == []


@pytest.mark.parametrize(
    ("handler", "disposition"),
    [
        (lambda *_args: None, "caught"),
        (signal.SIG_IGN, "ignored"),
        (signal.SIG_DFL, "default"),
    ],
    ids=["function", "ignored", "default"],
)
@pytest.mark.parametrize("by", ["delete", "close", "base"])
def test_the_handler_from_before_is_put_back(handler: Any, disposition: str, by: str) -> None:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        base = EventBase()
        event = Signal(base, signal.SIGUSR1, nothing)
        event.add()
        assert c_disposition(signal.SIGUSR1) == "caught"
        if by == "base":
            base.close()
        else:
            getattr(event, by)()
        assert c_disposition(signal.SIGUSR1) == disposition
        base.close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_handler_from_before_is_called_after_the_event() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, _frame: seen.append(-signum))
    try:
        with EventBase() as base, Signal(base, signal.SIGUSR1, seen.append) as event:
            event.add()
            send(signal.SIGUSR1)
            base.loop(EVLOOP_NONBLOCK)
        send(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1, -signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_in_the_callback_of_the_one_before(each_base: EventBase) -> None:
    called = 0

    def on_signal(signum: int) -> None:
        nonlocal called
        called += 1
        if called < 5:
            send(signum)
        else:
            each_base.loopexit()

    with Signal(each_base, signal.SIGUSR1, on_signal) as event:
        event.add()
        Timer(each_base, send, signal.SIGUSR1).add(0)
        late = Timer(each_base, each_base.loopbreak)
        late.add(20)
        each_base.dispatch()
        assert each_base.got_exit
        assert called == 5


def test_loopexit_in_a_signals_callback(each_base: EventBase) -> None:
    with Signal(each_base, signal.SIGUSR1, lambda _signum: each_base.loopexit()) as event:
        event.add()
        Timer(each_base, send, signal.SIGUSR1).add(0.002)
        assert each_base.dispatch() == 0
        assert (each_base.got_exit, each_base.got_break) == (True, False)


def test_bases_in_turn_have_the_same_signal() -> None:
    seen: list[tuple[int, int]] = []
    with EventBase() as one, EventBase() as two:
        events = [
            Signal(base, signal.SIGUSR1, lambda signum, i: seen.append((i, signum)), i)
            for i, base in enumerate((one, two))
        ]
        for i in (0, 1, 0):
            events[i].add()
            with pytest.raises(RuntimeError, match="signal"):
                events[1 - i].add()
            send(signal.SIGUSR1)
            two.loop(EVLOOP_NONBLOCK)
            one.loop(EVLOOP_NONBLOCK)
            events[i].delete()
    assert seen == [(i, signal.SIGUSR1) for i in (0, 1, 0)]


# ---- fork ----


def test_a_child_reads_what_its_parent_has_not(sockets: Sockets) -> None:
    """The child takes the first message, with the signal events that it had and one of its own;
    then the parent's loop reads the others as if there had been no fork."""
    a, b = sockets
    told, tell = os.pipe()
    got: list[bytes] = []

    def readable(_fd: int, _what: int) -> None:
        got.append(b.recv(256))
        os.write(tell, b".")
        if got[-1] and len(got) < 2:
            reader.add()

    signals: list[int] = []

    def on_signal(signum: int) -> None:
        signals.append(signum)
        by_number[signal.Signals(signum)].delete()

    base = EventBase()
    reader = Event(base, b, EV_READ, readable)
    by_number = {
        signum: Signal(base, signum, on_signal)
        for signum in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
    }
    reader.add()
    by_number[signal.SIGCHLD].add()
    by_number[signal.SIGUSR2].add()
    a.send(b"one")

    def child() -> None:
        base.reinit()
        by_number[signal.SIGCHLD].delete()
        by_number[signal.SIGUSR1].add()
        send(signal.SIGUSR1)
        send(signal.SIGUSR2)
        assert base.dispatch() == 1
        assert got == [b"one", b"two"]
        assert sorted(signals) == [signal.SIGUSR1, signal.SIGUSR2]
        base.close()

    pid = fork(child)
    assert os.read(told, 1) == b"."
    a.send(b"two")
    wait_for(pid)
    a.send(b"three")
    a.shutdown(socket.SHUT_WR)
    by_number[signal.SIGUSR1].add()
    send(signal.SIGUSR1)
    send(signal.SIGUSR2)
    assert base.dispatch() == 1
    assert got == [b"three", b""]
    assert sorted(signals) == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD]
    base.close()
    os.close(told)
    os.close(tell)


# ---- the base, its backends ----


@pytest.mark.skipif(len(METHODS) < 2, reason="one backend only")
def test_without_the_best_backend_there_is_the_next() -> None:
    config = EventConfig()
    config.avoid_method(METHODS[0])
    config.set_flag(EVENT_BASE_FLAG_IGNORE_ENV)
    with EventBase(config) as base:
        assert base.method == METHODS[1]


def test_a_required_feature_is_there_or_no_base_has_it() -> None:
    config = EventConfig()
    config.require_features(EV_FEATURE_ET)
    try:
        base = EventBase(config)
    except pylibevent.LibeventError:
        base = EventBase()
        assert not base.features & EV_FEATURE_ET
    else:
        assert base.features & EV_FEATURE_ET
    base.close()


@pytest.mark.skipif(len(METHODS) < 2, reason="one backend only")
def test_the_environment_rules_a_backend_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in METHODS:
        monkeypatch.delenv(f"EVENT_NO{method.upper()}", raising=False)
    with EventBase() as base:
        usual = base.method
    monkeypatch.setenv(f"EVENT_NO{usual.partition(' ')[0].upper()}", "1")
    with EventBase() as base:
        assert base.method != usual
    with EventBase(EventConfig()) as base:
        assert base.method != usual
    config = EventConfig()
    config.set_flag(EVENT_BASE_FLAG_IGNORE_ENV)
    with EventBase(config) as base:
        assert base.method == usual.partition(" ")[0]


def test_the_environment_may_rule_all_backends_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in METHODS:
        monkeypatch.setenv(f"EVENT_NO{method.upper()}", "1")
    with pytest.raises(pylibevent.LibeventError, match="event_base_new"):
        EventBase()
    with pytest.raises(pylibevent.LibeventError, match="event_base_new_with_config"):
        EventBase(EventConfig())


@epoll
def test_the_environment_turns_the_changelist_of_epoll_on(
    monkeypatch: pytest.MonkeyPatch, sockets: Sockets
) -> None:
    monkeypatch.setenv("EVENT_EPOLL_USE_CHANGELIST", "yes")
    seen: list[int] = []
    with EventBase() as base:
        assert base.method == CHANGELIST
        Event(base, sockets[0], EV_WRITE, lambda _fd, what: seen.append(what)).add()
        base.dispatch()
    assert seen == [EV_WRITE]


def test_the_environment_turns_the_precise_timer_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a time is never too short, not even by the coarse clock's few milliseconds."""
    monkeypatch.setenv("EVENT_PRECISE_TIMER", "1")
    early: list[float] = []

    def fired(due: float) -> None:
        early.append(due - time.monotonic())

    with EventBase() as base:
        for i in range(20):
            Timer(base, fired, time.monotonic() + i / 1000).add(i / 1000)
        base.dispatch()
    assert len(early) == 20
    assert max(early) < 0.001


# ---- the clock ----


@pytest.mark.parametrize("how", ["", "busy", "busy update", "busy disable", "disable"])
def test_the_time_that_callbacks_of_one_round_see(how: str) -> None:
    config = EventConfig()
    if "disable" in how:
        config.set_flag(EVENT_BASE_FLAG_NO_CACHE_TIME)
    times: list[float] = []
    with EventBase(config) as base:

        def called(_fd: int, _what: int) -> None:
            times.append(base.gettimeofday_cached())
            if "busy" in how:
                spin(0.015)
            if "update" in how:
                base.update_cache_time()

        assert abs(base.gettimeofday_cached() - time.time()) < 1  # outside of a loop: now
        for _ in range(3):
            base.once(-1, EV_TIMEOUT, called)
        base.dispatch()
    one, two, three = times
    if how in {"busy update", "busy disable"}:
        assert two - one > 0.01
        assert three - two > 0.01
    elif how == "disable":
        assert one <= two <= three
    else:
        assert one == two == three


# ---- a cascade ----


@pytest.mark.parametrize("n", [2, 100])
def test_a_byte_goes_down_a_chain_of_socket_pairs(each_base: EventBase, n: int) -> None:
    """bench_cascade.c: each reads a byte and writes one to the next, with a time limit on each."""
    pairs = [socket.socketpair() for _ in range(n)]
    fired: list[tuple[int, int]] = []

    def readable(_fd: int, what: int, i: int) -> None:
        fired.append((i, what))
        pairs[i][0].recv(1)
        if i + 1 < n:
            pairs[i + 1][1].send(b"e")

    for _ in range(3):
        fired.clear()
        for i in range(n):
            Event(each_base, pairs[i][0], EV_READ, readable, i).add(60)
        pairs[0][1].send(b"e")
        assert each_base.dispatch() == 1
        assert fired == [(i, EV_READ) for i in range(n)]
    for a, b in pairs:
        a.close()
        b.close()


@pytest.mark.parametrize("active", [1, 10])
def test_many_pairs_with_a_few_active(each_base: EventBase, active: int) -> None:
    """bench.c: some bytes go round, each read writes one more, until so many are written."""
    n, writes = 50, 200
    pairs = [socket.socketpair() for _ in range(n)]
    count = fired = 0
    left = writes

    def readable(_fd: int, _what: int, i: int) -> None:
        nonlocal count, fired, left
        count += len(pairs[i][0].recv(1))
        if left:
            left -= 1
            pairs[(i + 1) % n][1].send(b"e")
            fired += 1

    events = [Event(each_base, pairs[i][0], EV_READ | EV_PERSIST, readable, i) for i in range(n)]
    for event in events:
        event.add()
    for i in range(active):
        pairs[i * (n // active)][1].send(b"e")
    while count < writes + active:
        assert each_base.loop(EVLOOP_ONCE) == 0
    assert each_base.loop(ROUND) == 0
    assert (count, fired) == (writes + active, writes)
    for event, (a, b) in zip(events, pairs, strict=True):
        event.close()
        a.close()
        b.close()


# ---- changes of mind ----


def test_an_event_that_is_deleted_added_and_deleted_in_its_callback_is_called_once(
    each_base: EventBase, sockets: Sockets
) -> None:
    """test-changelist.c: and the loop sleeps, it does not go round for what nobody waits for."""
    rounds = 0

    def writable(_fd: int, _what: int) -> None:
        nonlocal rounds
        rounds += 1
        event.delete()
        event.add()
        event.delete()

    event = Event(each_base, sockets[0], EV_WRITE | EV_PERSIST, writable)
    event.add()
    Timer(each_base, nothing).add(0.05)
    before = time.process_time()
    assert each_base.dispatch() == 1
    assert rounds == 1
    assert time.process_time() - before < 0.04


@pytest.mark.parametrize("last", ["add", "delete"])
def test_the_last_of_many_changes_between_two_rounds_counts(
    each_base: EventBase, sockets: Sockets, last: str
) -> None:
    a, b = sockets
    a.send(TEXT)
    seen: list[int] = []
    reader = Event(each_base, b, EV_READ | EV_PERSIST, lambda _fd, what: seen.append(what))
    writer = Event(each_base, b, EV_WRITE | EV_PERSIST, lambda _fd, what: seen.append(what))
    each_base.loop(ROUND)
    for _ in range(5):
        for event in reader, writer:
            event.add()
            event.delete()
    getattr(reader, last)()
    each_base.loop(ROUND)
    assert seen == ([EV_READ] if last == "add" else [])


def test_a_change_that_fails_leaves_the_others(each_base: EventBase, sockets: Sockets) -> None:
    """Of a descriptor that is not open nothing is to be heard, of the others all the same."""
    fd = os.dup(0)
    os.close(fd)
    bad = Event(each_base, fd, EV_READ, nothing)
    seen: list[int] = []
    with contextlib.suppress(OSError):  # epoll says so at once
        bad.add()
    if each_base.method == "select":  # which says so of all of them: EBADF
        bad.close()
    Event(each_base, sockets[0], EV_WRITE, lambda _fd, what: seen.append(what)).add()
    each_base.loop(ROUND)
    assert seen == [EV_WRITE]
    bad.close()


# ---- what there is one of in a process ----


def test_debug_mode_is_for_before_the_first_base() -> None:
    out = script("""
pylibevent.enable_debug_mode()
pylibevent.enable_debug_mode()
a, b = socket.socketpair()
with EventBase() as base:
    try:
        Event(base, a, EV_READ, print)
    except ValueError:
        print("blocks")
    b.setblocking(False)
    seen = []
    events = [Event(base, b, EV_WRITE, lambda fd, what: seen.append(what)) for _ in range(10)]
    for event in events:
        event.add()
    base.dispatch()
    for event in events[::2]:
        event.close()
    Timer(base, seen.append, 0).add(0)
    with Signal(base, signal.SIGUSR1, seen.append) as event:
        event.add()
    bev = BufferEvent.socket(base, b)
    bev.enable(EV_READ | EV_WRITE)
    listener = Listener.bind(base, print, ("127.0.0.1", 0))
    base.loop(EVLOOP_NONBLOCK)
    base.once(-1, EV_TIMEOUT, lambda fd, what: base.loopbreak())
    base.dispatch()
    print(len(seen))
pylibevent.enable_debug_mode()
print("done")
""")
    assert out == ["blocks", "11", "done"]


def test_debug_mode_after_the_first_base_is_a_runtime_error() -> None:
    out = script("""
EventBase().close()
try:
    pylibevent.enable_debug_mode()
except RuntimeError as error:
    print("event_enable_debug_mode" in str(error))
with EventBase() as base:
    base.dispatch()
""")
    assert out == ["True"]


def test_debug_logging_goes_to_logging(base: EventBase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "libevent")
    pylibevent.enable_debug_logging()
    try:
        Timer(base, nothing).add(0)
        base.dispatch()
    finally:
        pylibevent.enable_debug_logging(lib.EVENT_DBG_NONE)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    caplog.clear()
    Timer(base, nothing).add(0)
    base.dispatch()
    assert caplog.records == []


@pytest.mark.parametrize("which", [-1, 2**32])
def test_debug_logging_of_what_there_is_not(which: int) -> None:
    with pytest.raises(ValueError, match="which"):
        pylibevent.enable_debug_logging(which)
