"""What libevent's own tests ask of event.c, by the raw layer: struct event in memory of the
program's, the macros, the calls of libevent 1, what there is one of in a process."""

from __future__ import annotations

import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from processes import fork, wait_for

from pylibevent import EventBase, EventConfig, ffi, lib

from .helpers import METHODS, SOON, Raw, run_script, script, send, spin, timeval

Sockets = tuple[socket.socket, socket.socket]

ROUND = lib.EVLOOP_ONCE | lib.EVLOOP_NONBLOCK
NOW = timeval(0)


# ---- event_new, event_assign ----


@pytest.mark.parametrize("how", ["new", "assign"])
def test_an_event_that_is_its_own_argument_is_the_running_one(
    raw: Raw, raw_base: Any, how: str
) -> None:
    seen: list[bool] = []

    def called(_fd: int, _what: int, arg: Any) -> None:
        seen.append(arg == event == lib.event_base_get_running_event(raw_base))
        lib.event_base_loopexit(lib.event_get_base(arg), ffi.NULL)

    callback = raw.callback(called)
    if how == "new":
        event = lib.event_new(raw_base, -1, lib.EV_READ, callback, lib.event_self_cbarg())
    else:
        event = raw.event()
        what = lib.EV_READ
        assert lib.event_assign(event, raw_base, -1, what, callback, lib.event_self_cbarg()) == 0
    lib.event_active(event, lib.EV_READ, 1)
    assert lib.event_base_dispatch(raw_base) == 0
    assert seen == [True]
    if how == "new":
        lib.event_free(event)


def test_reading_and_signal_at_once_is_refused(raw: Raw, raw_base: Any) -> None:
    event = raw.event()
    what = lib.EV_SIGNAL | lib.EV_READ
    assert lib.event_assign(event, raw_base, -1, what, raw.note("x"), ffi.NULL) == -1
    assert not lib.event_new(raw_base, -1, what, raw.note("x"), ffi.NULL)


def test_initialized_is_what_was_assigned(raw: Raw, raw_base: Any) -> None:
    event = raw.event()
    assert not lib.event_initialized(event)
    lib.event_assign(event, raw_base, -1, 0, raw.note("x"), ffi.NULL)
    assert lib.event_initialized(event)
    assert lib.evtimer_initialized(event)
    assert lib.evsignal_initialized(event)
    assert lib.evuser_initialized(event)


def test_what_an_event_was_made_of(raw: Raw, raw_base: Any, sockets: Sockets) -> None:
    fd = sockets[0].fileno()
    argument = raw.handle("foo")
    callback = raw.note("x")
    event = lib.event_new(raw_base, fd, lib.EV_READ, callback, argument)
    base_out, fd_out = ffi.new("struct event_base **"), ffi.new("evutil_socket_t *")
    events_out, arg_out = ffi.new("short *"), ffi.new("void **")
    callback_out = ffi.new("event_callback_fn *")
    lib.event_get_assignment(event, base_out, fd_out, events_out, callback_out, arg_out)
    assert (base_out[0], fd_out[0], events_out[0]) == (raw_base, fd, lib.EV_READ)
    assert (callback_out[0], arg_out[0]) == (callback, argument)
    lib.event_get_assignment(event, *[ffi.NULL] * 5)  # none is wanted
    assert lib.event_get_base(event) == raw_base
    assert lib.event_get_fd(event) == fd
    assert lib.event_get_events(event) == lib.EV_READ
    assert lib.event_get_callback(event) == callback
    assert ffi.from_handle(lib.event_get_callback_arg(event)) == "foo"
    assert lib.event_get_priority(event) == 0
    lib.event_free(event)


def test_the_size_of_an_event_is_that_of_the_struct() -> None:
    assert lib.event_get_struct_event_size() == ffi.sizeof("struct event")


def test_the_flags_of_an_event_tell_which_lists_it_is_in(
    raw: Raw, raw_base: Any, sockets: Sockets
) -> None:
    event = raw.event()
    lib.event_assign(event, raw_base, sockets[0].fileno(), lib.EV_READ, raw.note("x"), ffi.NULL)

    def flags() -> int:
        return int(event.ev_evcallback.evcb_flags)

    assert flags() == lib.EVLIST_INIT
    assert lib.event_add(event, timeval(60)) == 0
    assert flags() == lib.EVLIST_INIT | lib.EVLIST_INSERTED | lib.EVLIST_TIMEOUT
    both = lib.EV_READ | lib.EV_TIMEOUT
    assert lib.event_pending(event, both | lib.EV_WRITE, ffi.NULL) == both
    assert lib.event_pending(event, lib.EV_WRITE, ffi.NULL) == 0
    assert lib.event_remove_timer(event) == 0
    assert flags() == lib.EVLIST_INIT | lib.EVLIST_INSERTED
    lib.event_active(event, lib.EV_READ, 1)
    assert flags() == lib.EVLIST_INIT | lib.EVLIST_INSERTED | lib.EVLIST_ACTIVE
    assert lib.event_del(event) == 0
    assert flags() == lib.EVLIST_INIT


def test_a_base_takes_over_an_event_that_is_not_pending(raw: Raw, raw_base: Any) -> None:
    other = lib.event_base_new()
    event = raw.event()
    lib.evtimer_assign(event, raw_base, raw.note("timer"), ffi.NULL)
    assert lib.evtimer_add(event, timeval(60)) == 0
    assert lib.event_base_set(other, event) == -1
    assert lib.evtimer_del(event) == 0
    assert lib.event_base_set(other, event) == 0
    assert lib.event_get_base(event) == other
    lib.evtimer_add(event, NOW)
    assert lib.event_base_dispatch(raw_base) == 1
    assert raw.seen == []
    assert lib.event_base_dispatch(other) == 1
    assert raw.seen == [("timer", lib.EV_TIMEOUT)]
    lib.event_base_free(other)


# ---- the macros for timers, signals, and events of the user's ----


def test_a_timer_by_the_macros(raw: Raw, raw_base: Any) -> None:
    timer = lib.evtimer_new(raw_base, raw.note("timer"), ffi.NULL)
    assert not lib.evtimer_pending(timer, ffi.NULL)
    lib.evtimer_add(timer, timeval(0.5))
    when = timeval(0)
    assert lib.evtimer_pending(timer, when) == lib.EV_TIMEOUT
    assert abs(when.tv_sec + when.tv_usec / 1e6 - time.time() - 0.5) < 0.4
    lib.evtimer_add(timer, timeval(0.001))
    assert lib.event_base_dispatch(raw_base) == 1
    assert raw.seen == [("timer", lib.EV_TIMEOUT)]
    assert lib.evtimer_del(timer) == 0
    lib.event_free(timer)


@pytest.mark.parametrize("how", ["new", "assign"])
def test_a_signal_by_the_macros(raw: Raw, raw_base: Any, how: str) -> None:
    callback = raw.note("signal")
    if how == "new":
        event = lib.evsignal_new(raw_base, signal.SIGUSR1, callback, ffi.NULL)
    else:
        event = raw.event()
        assert lib.evsignal_assign(event, raw_base, signal.SIGUSR1, callback, ffi.NULL) == 0
    assert lib.event_get_signal(event) == signal.SIGUSR1
    assert lib.event_get_events(event) == lib.EV_SIGNAL | lib.EV_PERSIST
    assert lib.evsignal_add(event, ffi.NULL) == 0
    assert lib.evsignal_pending(event, ffi.NULL) == lib.EV_SIGNAL
    send(signal.SIGUSR1)
    lib.event_base_loop(raw_base, ROUND)
    assert raw.seen == [("signal", lib.EV_SIGNAL)]
    assert lib.evsignal_del(event) == 0
    if how == "new":
        lib.event_free(event)


def test_an_event_of_the_users_is_triggered(raw: Raw, raw_base: Any) -> None:
    event = lib.evuser_new(raw_base, raw.note("user"), ffi.NULL)
    lib.evuser_trigger(event)
    lib.event_base_loop(raw_base, ROUND)
    assert raw.seen == [("user", 0)]
    assert not lib.evuser_pending(event, ffi.NULL)
    assert lib.evuser_del(event) == 0
    lib.event_free(event)


# ---- arming ----


@pytest.mark.parametrize("how", ["fd", "signal"])
def test_what_no_table_has_room_for_is_not_added(raw: Raw, raw_base: Any, how: str) -> None:
    numbers = [-1, signal.NSIG] if how == "signal" else [0x7FFFFFFF, 0x7FFFFFFF // 2]
    for number in numbers:
        if how == "signal":
            event = lib.evsignal_new(raw_base, number, raw.note("x"), ffi.NULL)
        else:
            event = lib.event_new(raw_base, number, lib.EV_READ, raw.note("x"), ffi.NULL)
        assert event
        assert lib.event_add(event, ffi.NULL) != 0
        lib.event_free(event)


def test_once_without_a_handle(raw: Raw, raw_base: Any, sockets: Sockets) -> None:
    a, b = sockets
    what = lib.EV_READ
    assert (
        lib.event_base_once(raw_base, b.fileno(), what, raw.note("read"), ffi.NULL, ffi.NULL) == 0
    )
    what = lib.EV_TIMEOUT
    for wait in timeval(0.002), NOW, ffi.NULL:
        assert lib.event_base_once(raw_base, -1, what, raw.note("time"), ffi.NULL, wait) == 0
    assert lib.event_base_once(raw_base, -1, 0, ffi.NULL, ffi.NULL, ffi.NULL) == -1
    for what in lib.EV_SIGNAL, lib.EV_READ | lib.EV_PERSIST:
        callback = raw.note("never")
        assert lib.event_base_once(raw_base, 1, what, callback, ffi.NULL, ffi.NULL) == -1
    a.send(b"x")
    assert lib.event_base_dispatch(raw_base) == 1
    assert sorted(raw.seen) == [("read", lib.EV_READ), *[("time", lib.EV_TIMEOUT)] * 3]


def test_the_priority_of_an_active_event_stays(raw: Raw, raw_base: Any) -> None:
    assert lib.event_base_priority_init(raw_base, 8) == 0
    assert lib.event_base_get_npriorities(raw_base) == 8
    event = lib.evuser_new(raw_base, raw.note("x"), ffi.NULL)
    assert lib.event_get_priority(event) == 4
    assert lib.event_priority_set(event, 8) == -1
    assert lib.event_priority_set(event, 7) == 0
    lib.event_active(event, lib.EV_READ, 1)
    assert lib.event_priority_set(event, 1) == -1
    assert lib.event_get_priority(event) == 7
    lib.event_free(event)


def test_counts_of_events(raw: Raw, raw_base: Any) -> None:
    event = lib.event_new(raw_base, -1, lib.EV_READ, raw.note("x"), ffi.NULL)
    lib.event_add(event, timeval(60))
    lib.event_active(event, lib.EV_READ, 1)
    added, active = lib.EVENT_BASE_COUNT_ADDED, lib.EVENT_BASE_COUNT_ACTIVE
    assert lib.event_base_get_num_events(raw_base, added) == 3
    assert lib.event_base_get_num_events(raw_base, added | active) == 4
    lib.event_free(event)
    assert lib.event_base_get_num_events(raw_base, added | active) == 0
    assert lib.event_base_get_max_events(raw_base, added, 1) == 3
    assert lib.event_base_get_max_events(raw_base, added, 0) == 0


# ---- event_del and threads ----


class Running:
    """An event whose callback runs in the loop of another thread until it is let go on."""

    def __init__(self, raw: Raw, base: Any, flags: int) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.finished: list[bool] = []
        callback = raw.callback(self._called)
        self.event = lib.event_new(base, -1, lib.EV_PERSIST | flags, callback, ffi.NULL)
        lib.event_active(self.event, lib.EV_TIMEOUT, 1)
        self.thread = threading.Thread(target=lib.event_base_dispatch, args=(base,), daemon=True)
        self.thread.start()
        assert self.entered.wait(SOON)

    def _called(self, _fd: int, _what: int, _arg: Any) -> None:
        self.entered.set()
        assert self.go_on.wait(SOON)
        self.finished.append(True)

    def join(self) -> None:
        self.go_on.set()
        self.thread.join(SOON)
        assert not self.thread.is_alive()
        lib.event_free(self.event)


@pytest.mark.parametrize(
    ("delete", "flags"),
    [(lib.event_del_noblock, 0), (lib.event_del, lib.EV_FINALIZE)],
    ids=["event_del_noblock", "EV_FINALIZE"],
)
def test_a_delete_that_does_not_wait_for_the_running_callback(
    raw: Raw, raw_base: Any, delete: Callable[[Any], int], flags: int
) -> None:
    running = Running(raw, raw_base, flags)
    assert delete(running.event) == 0
    assert running.finished == []
    running.join()
    assert running.finished == [True]


@pytest.mark.parametrize(
    ("delete", "flags"),
    [(lib.event_del_block, lib.EV_FINALIZE), (lib.event_del, 0)],
    ids=["event_del_block", "event_del"],
)
def test_a_delete_that_waits_for_the_running_callback(
    raw: Raw, raw_base: Any, delete: Callable[[Any], int], flags: int
) -> None:
    running = Running(raw, raw_base, flags)
    at_return: list[bool] = []

    def run() -> None:
        delete(running.event)
        at_return.extend(running.finished)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    running.go_on.set()
    thread.join(SOON)
    running.join()
    assert at_return == [True]


# ---- common timeouts ----


def test_common_timeouts_are_one_for_each_length(raw_base: Any) -> None:
    """What comes back is not a time but a mark for event_add: which queue, besides the length."""
    init = lib.event_base_init_common_timeout
    short, long, seconds = (init(raw_base, timeval(t)) for t in (0.1, 0.2, 5))
    assert init(raw_base, timeval(0.2)) == long
    assert init(raw_base, long) == long
    assert init(raw_base, ffi.new("struct timeval *", (0, 5_000_000))) == seconds
    assert [(tv.tv_sec, tv.tv_usec) for tv in (short, long, seconds)] == [
        (0, 100_000 | 0x50000000),
        (0, 200_000 | 0x50100000),
        (5, 0x50200000),
    ]


def test_events_go_between_common_and_other_timeouts(raw: Raw) -> None:
    """A hundred that fire four times, added in each of the ways there are, some of them twice;
    and again afterwards, for the base to find them when it is freed."""
    base = lib.event_base_new()
    short = lib.event_base_init_common_timeout(base, timeval(0.01))
    long = lib.event_base_init_common_timeout(base, timeval(0.02))
    counts = [0] * 100
    last: list[float] = [0.0] * 100

    def fired(_fd: int, _what: int, arg: Any) -> None:
        i = ffi.from_handle(arg)
        counts[i] += 1
        last[i] = time.monotonic()
        if counts[i] == 4:
            lib.event_del(events[i])

    callback = raw.callback(fired)
    events = [raw.event() for _ in counts]
    ways = {1: (long, timeval(0.01)), 3: (timeval(0.02), short), 5: (long, short)}
    for i, event in enumerate(events):
        what = lib.EV_TIMEOUT | lib.EV_PERSIST
        lib.event_assign(event, base, -1, what, callback, raw.handle(i))
        for wait in ways.get(i % 20, (short,)) if i % 2 else (long,):
            assert lib.event_add(event, wait) == 0
    assert lib.event_base_dispatch(base) == 1
    assert counts == [4] * 100
    assert max(last[1::2]) < min(last[::2])
    for i, event in enumerate(events):
        assert lib.event_add(event, short if i % 2 else long) == 0
    lib.event_base_free(base)


# ---- looking at all events ----


def test_foreach_event_shows_each_once_and_stops_when_told(raw: Raw, raw_base: Any) -> None:
    events = [lib.event_new(raw_base, -1, 0, raw.note("x"), ffi.NULL) for _ in range(5)]
    lib.event_add(events[0], timeval(10))
    lib.event_add(events[1], timeval(10))
    lib.event_active(events[1], lib.EV_TIMEOUT, 1)
    lib.event_active(events[2], lib.EV_TIMEOUT, 1)
    lib.event_add(events[3], timeval(10))
    visited: list[Any] = []

    def visit(base: Any, event: Any, arg: Any) -> int:
        assert base == raw_base
        visited.append(event)
        return 101 if event == events[2] and ffi.from_handle(arg) == "find" else 0

    callback = raw.callback(visit, "event_base_foreach_event_cb", error=-1)
    look, find = raw.handle("look"), raw.handle("find")
    assert lib.event_base_foreach_event(ffi.NULL, callback, look) == -1
    assert lib.event_base_foreach_event(raw_base, ffi.NULL, look) == -1
    assert lib.event_base_foreach_event(raw_base, callback, look) == 0
    assert [visited.count(event) for event in events] == [1, 1, 1, 1, 0]
    visited.clear()
    assert lib.event_base_foreach_event(raw_base, callback, find) == 101
    assert visited[-1] == events[2]
    for event in events:
        lib.event_free(event)


def test_active_by_fd_and_by_signal_reach_what_was_added(
    raw: Raw, raw_base: Any, sockets: Sockets
) -> None:
    a, b = (sock.fileno() for sock in sockets)
    for fd in 1000, -1:  # of which there is none
        lib.event_base_active_by_fd(raw_base, fd, lib.EV_READ)
        lib.event_base_active_by_signal(raw_base, fd)
    made = [
        (a, lib.EV_READ, "1", timeval(600)),
        (a, lib.EV_WRITE, "2", ffi.NULL),
        (b, lib.EV_READ, "3", ffi.NULL),
        (b, lib.EV_READ, "4", timeval(600)),
        (signal.SIGHUP, lib.EV_SIGNAL, "signal", timeval(600)),
    ]
    events = []
    for fd, what, name, wait in made:
        events.append(lib.event_new(raw_base, fd, what, raw.note(name), ffi.NULL))
        lib.event_add(events[-1], wait)
    lib.event_base_active_by_fd(raw_base, a, lib.EV_WRITE)
    lib.event_base_active_by_fd(raw_base, b, lib.EV_READ)
    lib.event_base_active_by_fd(raw_base, b, lib.EV_TIMEOUT)
    lib.event_base_active_by_signal(raw_base, signal.SIGHUP)
    lib.event_base_loop(raw_base, lib.EVLOOP_ONCE)
    assert sorted(raw.seen) == [
        ("2", lib.EV_WRITE),
        ("3", lib.EV_READ),
        ("4", lib.EV_READ | lib.EV_TIMEOUT),
        ("signal", lib.EV_SIGNAL),
    ]
    for event in events:
        lib.event_free(event)


def test_dump_events_writes_what_is_there_to_a_file(
    raw: Raw, raw_base: Any, sockets: Sockets
) -> None:
    a, b = (sock.fileno() for sock in sockets)
    one = lib.event_new(raw_base, a, lib.EV_WRITE, raw.note("x"), ffi.NULL)
    two = lib.event_new(raw_base, b, lib.EV_READ | lib.EV_PERSIST, raw.note("x"), ffi.NULL)
    user = lib.evuser_new(raw_base, raw.note("x"), ffi.NULL)
    on_signal = lib.evsignal_new(raw_base, signal.SIGINT, raw.note("x"), ffi.NULL)
    lib.event_add(one, ffi.NULL)
    lib.event_add(two, lib.event_base_init_common_timeout(raw_base, timeval(1)))
    lib.event_active(user, lib.EV_READ | lib.EV_WRITE | lib.EV_TIMEOUT, 1)
    lib.event_add(on_signal, ffi.NULL)
    with tempfile.TemporaryFile("w+") as file:
        lib.event_base_dump_events(raw_base, file)
        file.seek(0)
        inserted, active = file.read().split("Active events:")
    lines = [line for line in inserted.splitlines() if "Internal" not in line]
    assert any(f"[fd  {a}] Write" in line for line in lines)
    assert any(f"[fd  {b}] Read Persist Timeout=" in line for line in lines)
    assert any(f"[sig {signal.SIGINT:d}] Signal Persist" in line for line in lines)
    assert "[fd  -1, priority=0] Read Write Timeout active" in active
    for event in one, two, user, on_signal:
        lib.event_free(event)


# ---- the base, its config, the clock ----


def test_a_base_of_a_config(raw: Raw) -> None:
    names = lib.event_get_supported_methods()
    methods: list[bytes] = []
    while names[len(methods)]:
        methods.append(ffi.string(names[len(methods)]))
    assert methods == [method.encode() for method in METHODS]
    config = lib.event_config_new()
    assert lib.event_config_avoid_method(config, methods[0]) == 0
    assert lib.event_config_require_features(config, 0) == 0
    assert lib.event_config_set_flag(config, lib.EVENT_BASE_FLAG_IGNORE_ENV) == 0
    assert lib.event_config_set_num_cpus_hint(config, 2) == 0
    base = lib.event_base_new_with_config(config)
    lib.event_config_free(config)
    assert bool(base) == (len(methods) > 1)
    if base:
        assert ffi.string(lib.event_base_get_method(base)) == methods[1]
        assert lib.event_base_get_features(base) & lib.EV_FEATURE_ET == 0
        lib.event_base_free(base)


@pytest.mark.parametrize("limit", ["callbacks", "time", "none"])
def test_max_dispatch_interval_has_the_loop_look_for_higher_priorities_in_between(
    raw: Raw, sockets: Sockets, limit: str
) -> None:
    """Ten active ones, the first of which makes a reader of a higher priority ready."""
    a, b = sockets
    config = EventConfig()
    if limit == "callbacks":
        lib.event_config_set_max_dispatch_interval(config.ptr, ffi.NULL, 1, 1)
    elif limit == "time":
        lib.event_config_set_max_dispatch_interval(config.ptr, timeval(0.001), -1, 1)
    order: list[str] = []

    def low(_fd: int, _what: int, arg: Any) -> None:
        order.append(str(ffi.from_handle(arg)))
        if len(order) == 1:
            a.send(b"x")
            spin(0.02)

    def high(_fd: int, _what: int, _arg: Any) -> None:
        order.append(b.recv(1).decode())

    with EventBase(config) as base:
        base.priority_init(2)
        reader = lib.event_new(base.ptr, b.fileno(), lib.EV_READ, raw.callback(high), ffi.NULL)
        lib.event_priority_set(reader, 0)
        lib.event_add(reader, ffi.NULL)
        callback = raw.callback(low)
        events = [lib.event_new(base.ptr, -1, 0, callback, raw.handle(i)) for i in range(10)]
        for event in events:
            lib.event_priority_set(event, 1)
            lib.event_active(event, lib.EV_TIMEOUT, 1)
        base.dispatch()
        for event in (reader, *events):
            lib.event_free(event)
    assert order == (["0", "x", *"123456789"] if limit != "none" else [*"0123456789", "x"])


def test_loopcontinue_and_loopbreak_and_how_it_ended(raw: Raw, raw_base: Any) -> None:
    lib.event_base_priority_init(raw_base, 2)

    def called(_fd: int, _what: int, _arg: Any) -> None:
        raw.seen.append("first")
        lib.event_active(high, lib.EV_READ, 1)
        lib.event_base_loopcontinue(raw_base)

    def broke(_fd: int, _what: int, _arg: Any) -> None:
        raw.seen.append("high")
        lib.event_base_loopbreak(raw_base)

    high = lib.evuser_new(raw_base, raw.callback(broke), ffi.NULL)
    low = [lib.evuser_new(raw_base, raw.callback(called), ffi.NULL) for _ in (1, 2)]
    lib.event_priority_set(high, 0)
    for event in low:
        lib.event_priority_set(event, 1)
        lib.evuser_trigger(event)
    assert lib.event_base_dispatch(raw_base) == 0
    assert raw.seen == ["first", "high"]
    assert lib.event_base_got_break(raw_base)
    assert not lib.event_base_got_exit(raw_base)
    for event in (high, *low):
        lib.event_free(event)


def test_a_loop_inside_the_loop_is_an_error(raw: Raw, raw_base: Any) -> None:
    def called(_fd: int, _what: int, _arg: Any) -> None:
        raw.seen.append(lib.event_base_loop(raw_base, 0))

    event = lib.evuser_new(raw_base, raw.callback(called), ffi.NULL)
    lib.event_active(event, lib.EV_WRITE, 1)
    assert lib.event_base_loop(raw_base, 0) == 1
    assert raw.seen == [-1]
    lib.event_free(event)


def seconds(tv: Any) -> float:
    return float(tv.tv_sec + tv.tv_usec / 1e6)


def test_the_cached_time_and_the_monotonic_one(raw: Raw, raw_base: Any) -> None:
    now = timeval(0)
    for base in raw_base, ffi.NULL:
        assert lib.event_base_gettimeofday_cached(base, now) == 0
        assert abs(seconds(now) - time.time()) < 1
    assert lib.event_base_update_cache_time(raw_base) == 0
    times = []

    def called(_fd: int, _what: int, _arg: Any) -> None:
        for update in (False, False, True):
            if update:
                spin(0.01)
                assert lib.event_base_update_cache_time(raw_base) == 0
            assert lib.event_base_gettimeofday_cached(raw_base, now) == 0
            times.append(seconds(now))

    lib.event_base_once(raw_base, -1, lib.EV_TIMEOUT, raw.callback(called), ffi.NULL, ffi.NULL)
    lib.event_base_dispatch(raw_base)
    assert times[0] == times[1] < times[2]
    before = timeval(0)
    assert lib.event_gettime_monotonic(raw_base, before) == 0
    spin(0.01)
    assert lib.event_gettime_monotonic(raw_base, now) == 0
    assert 0 < seconds(now) - seconds(before) < 10


def test_versions_are_numbers_and_text_of_the_same() -> None:
    number = lib.event_get_version_number()
    assert number == lib.LIBEVENT_VERSION_NUMBER
    text = ffi.string(lib.event_get_version()).decode()
    assert text.split("-")[0] == f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}"


# ---- libevent 1 ----


def test_libevent_1_init_and_free() -> None:
    """test-init.c, and freeing what event_init's caller did not keep."""
    assert lib.event_init()
    lib.event_base_free(ffi.NULL)


def test_libevent_1_a_base_that_was_freed_is_not_the_current_one(raw: Raw) -> None:
    one = lib.event_init()
    two = lib.event_init()
    event = raw.event()
    lib.event_set(event, -1, 0, raw.note("x"), ffi.NULL)
    assert lib.event_get_base(event) == two
    lib.event_base_free(one)
    lib.event_set(event, -1, 0, raw.note("x"), ffi.NULL)
    assert lib.event_get_base(event) == two
    lib.event_base_free(two)
    lib.event_set(event, -1, 0, raw.note("x"), ffi.NULL)
    assert not lib.event_get_base(event)


def test_libevent_1_method_and_priorities(current: Any, raw: Raw) -> None:
    assert ffi.string(lib.event_get_method()) == ffi.string(lib.event_base_get_method(current))
    assert lib.event_priority_init(3) == 0
    assert lib.event_base_get_npriorities(current) == 3
    event = raw.event()
    lib.timeout_set(event, raw.note("x"), ffi.NULL)
    assert lib.event_get_priority(event) == 1


@pytest.mark.parametrize(
    ("npriorities", "first", "last"),
    [(1, 3, 3), (2, 3, 1), (3, 3, 0)],
)
def test_libevent_1_which_of_two_run_before_loopexit(
    current: Any, raw: Raw, npriorities: int, first: int, last: int
) -> None:
    counts = [0, 0]

    def called(_fd: int, _what: int, arg: Any) -> None:
        i = ffi.from_handle(arg)
        if counts[i] == 3:
            lib.event_loopexit(ffi.NULL)
            return
        counts[i] += 1
        lib.timeout_add(events[i], NOW)

    lib.event_priority_init(npriorities)
    callback = raw.callback(called)
    events = [raw.event(), raw.event()]
    for i, event in enumerate(events):
        lib.timeout_set(event, callback, raw.handle(i))
        assert lib.event_priority_set(event, i * (npriorities - 1)) == 0
        lib.timeout_add(event, NOW)
    lib.event_dispatch()
    assert counts == [first, last]
    for event in events:
        lib.timeout_del(event)


def test_libevent_1_timers_have_two_names(current: Any, raw: Raw) -> None:
    event = raw.event()
    lib.evtimer_set(event, raw.note("timer"), ffi.NULL)
    assert lib.timeout_initialized(event)
    assert lib.timeout_add(event, timeval(60)) == 0
    assert lib.timeout_pending(event, ffi.NULL) == lib.evtimer_pending(event, ffi.NULL) != 0
    assert lib.timeout_del(event) == 0
    assert not lib.timeout_pending(event, ffi.NULL)
    lib.timeout_add(event, NOW)
    assert lib.event_loop(lib.EVLOOP_ONCE) == 0
    assert raw.seen == [("timer", lib.EV_TIMEOUT)]


@pytest.mark.parametrize(
    ("set_", "add", "delete"),
    [
        (lib.signal_set, lib.signal_add, lib.signal_del),
        (lib.evsignal_set, lib.evsignal_add, lib.evsignal_del),
    ],
    ids=["signal", "evsignal"],
)
def test_libevent_1_signals_have_two_names(
    current: Any, raw: Raw, set_: Any, add: Any, delete: Any
) -> None:
    event = raw.event()
    set_(event, signal.SIGUSR1, raw.note("signal"), ffi.NULL)
    assert lib.EVENT_SIGNAL(event) == signal.SIGUSR1
    assert lib.signal_initialized(event)
    assert add(event, ffi.NULL) == 0
    assert delete(event) == 0
    assert add(event, ffi.NULL) == 0
    assert lib.signal_pending(event, ffi.NULL) == lib.EV_SIGNAL
    send(signal.SIGUSR1)
    lib.event_loop(lib.EVLOOP_NONBLOCK)
    assert raw.seen == [("signal", lib.EV_SIGNAL)]
    assert delete(event) == 0


def test_libevent_1_a_signal_in_the_callback_of_the_one_before(current: Any, raw: Raw) -> None:
    count = 0

    def on_signal(signum: int, _what: int, _arg: Any) -> None:
        nonlocal count
        count += 1
        if count < 5:
            send(signum)
        else:
            lib.event_loopexit(ffi.NULL)

    def on_timer(_fd: int, _what: int, _arg: Any) -> None:
        if count:
            lib.event_loopbreak()
        else:
            lib.evtimer_add(timer, timeval(20))
            send(signal.SIGUSR1)

    event, timer = raw.event(), raw.event()
    lib.signal_set(event, signal.SIGUSR1, raw.callback(on_signal), ffi.NULL)
    lib.signal_add(event, ffi.NULL)
    lib.evtimer_set(timer, raw.callback(on_timer), ffi.NULL)
    lib.evtimer_add(timer, NOW)
    lib.event_dispatch()
    assert count == 5
    assert lib.event_base_got_exit(current)
    lib.signal_del(event)
    lib.evtimer_del(timer)


def test_libevent_1_a_signal_goes_to_the_base_whose_loop_ran_last(raw: Raw) -> None:
    """Only the classes refuse a second base with signals; C warns and moves them."""
    bases = [lib.event_init(), lib.event_init()]
    events = [raw.event(), raw.event()]
    for i, (base, event) in enumerate(zip(bases, events, strict=True)):
        lib.evsignal_set(event, signal.SIGUSR1, raw.note(str(i)), ffi.NULL)
        assert lib.event_base_set(base, event) == 0
        assert lib.event_add(event, ffi.NULL) == 0
        assert lib.event_get_base(event) == base
    for i in (0, 1, 0):
        lib.event_base_loop(bases[i], lib.EVLOOP_NONBLOCK)
        send(signal.SIGUSR1)
        for base in bases[i], bases[1 - i]:
            lib.event_base_loop(base, lib.EVLOOP_NONBLOCK)
    assert [name for name, _ in raw.seen] == ["0", "1", "0"]
    for base in bases:
        lib.event_base_free(base)


def test_libevent_1_loopexit_loopbreak_once(current: Any, raw: Raw, sockets: Sockets) -> None:
    far = raw.event()
    lib.evtimer_set(far, raw.note("far"), ffi.NULL)
    lib.evtimer_add(far, timeval(24 * 60 * 60))
    lib.event_loopexit(timeval(0.002))
    assert lib.event_dispatch() == 0
    assert lib.event_base_got_exit(current)

    def called(_fd: int, _what: int, _arg: Any) -> None:
        raw.seen.append("once")
        lib.event_loopbreak()

    callback = raw.callback(called)
    fd = sockets[0].fileno()
    assert lib.event_once(fd, lib.EV_WRITE, callback, ffi.NULL, ffi.NULL) == 0
    assert lib.event_dispatch() == 0
    assert lib.event_base_got_break(current)
    assert raw.seen == ["once"]
    lib.evtimer_del(far)


def test_libevent_1_a_message_from_one_end_to_the_other(
    current: Any, raw: Raw, sockets: Sockets
) -> None:
    a, b = sockets
    message = bytes(range(256)) * 400
    sent = 0
    got = b""

    def writable(_fd: int, _what: int, arg: Any) -> None:
        nonlocal sent
        sent += a.send(message[sent : sent + 9000])
        if sent == len(message):
            a.shutdown(socket.SHUT_WR)
        else:
            lib.event_add(arg, ffi.NULL)

    def readable(_fd: int, _what: int, arg: Any) -> None:
        nonlocal got
        data = b.recv(8000)
        got += data
        if data:
            lib.event_add(arg, ffi.NULL)

    writer, reader = raw.event(), raw.event()
    lib.event_set(writer, a.fileno(), lib.EV_WRITE, raw.callback(writable), writer)
    lib.event_set(reader, b.fileno(), lib.EV_READ, raw.callback(readable), reader)
    assert lib.EVENT_FD(reader) == b.fileno()
    assert lib.event_add(writer, ffi.NULL) == lib.event_add(reader, ffi.NULL) == 0
    assert lib.event_dispatch() == 1
    assert got == message


def test_libevent_1_reinit_in_a_child(current: Any, raw: Raw, sockets: Sockets) -> None:
    """Reader and signals of before the fork work in the child, and then in the parent."""
    a, b = sockets

    def readable(_fd: int, _what: int, arg: Any) -> None:
        raw.seen.append(b.recv(256))
        if raw.seen[-1] == b"one":
            lib.event_add(arg, ffi.NULL)

    def on_signal(signum: int, _what: int, arg: Any) -> None:
        raw.seen.append(signum)
        lib.event_del(arg)

    reader, event = raw.event(), raw.event()
    assert lib.evthread_make_base_notifiable(current) == 0
    lib.event_set(reader, b.fileno(), lib.EV_READ, raw.callback(readable), reader)
    lib.event_add(reader, ffi.NULL)
    lib.evsignal_set(event, signal.SIGUSR2, raw.callback(on_signal), event)
    lib.evsignal_add(event, ffi.NULL)

    def child() -> None:
        assert lib.event_reinit(current) == 0
        send(signal.SIGUSR2)
        a.send(b"one")
        assert lib.event_loop(ROUND) == 0
        a.send(b"two")
        while len(raw.seen) < 3:
            assert lib.event_loop(lib.EVLOOP_ONCE) == 0
        assert set(raw.seen) == {signal.SIGUSR2, b"one", b"two"}
        lib.event_base_free(current)

    wait_for(fork(child))
    assert raw.seen == []
    a.send(b"three")
    send(signal.SIGUSR2)
    assert lib.event_dispatch() == 1
    assert sorted(map(str, raw.seen)) == sorted(map(str, [signal.SIGUSR2.value, b"three"]))


# ---- what there is one of in a process ----


def test_debug_mode_knows_which_events_were_set_up() -> None:
    out = script("""
lib.event_enable_debug_mode()
base = lib.event_base_new()
event = ffi.new("struct event *")
callback = ffi.callback("event_callback_fn", lambda fd, what, arg: print("fired"))
for _ in range(2):
    assert lib.event_assign(event, base, -1, 0, callback, ffi.NULL) == 0
    assert lib.event_add(event, ffi.new("struct timeval *", (0, 1000))) == 0
    assert lib.event_base_dispatch(base) == 1
    lib.event_debug_unassign(event)
event = lib.evtimer_new(base, callback, ffi.NULL)
lib.event_free(event)
lib.event_base_free(base)
with EventBase() as base:
    Timer(base, print, "class").add(0)
    base.dispatch()
print("done")
""")
    assert out == ["fired", "fired", "class", "done"]


@pytest.mark.parametrize(
    ("misuse", "text"),
    [("event_add(event, ffi.NULL)", "non-initialized"), ("event_del(event)", "non-setup")],
)
def test_debug_mode_ends_the_process_at_an_event_that_was_not_set_up(
    misuse: str, text: str
) -> None:
    _, error = run_script(
        f"""
lib.event_enable_debug_mode()
base = lib.event_base_new()
event = ffi.new("struct event *")
callback = ffi.callback("event_callback_fn", lambda fd, what, arg: None)
lib.event_assign(event, base, -1, lib.EV_READ, callback, ffi.NULL)
lib.event_debug_unassign(event)
lib.{misuse}
""",
        status=-signal.SIGABRT,
    )
    assert text in error


def test_debug_mode_comes_before_all_else_or_ends_the_process_by_the_fatal_callback() -> None:
    out, _ = run_script(
        """
@ffi.callback("event_fatal_cb")
def fatal(code):
    print("fatal", code, flush=True)
lib.event_set_fatal_callback(fatal)
base = lib.event_base_new()
lib.event_enable_debug_mode()
print("not reached")
""",
        status=1,
    )
    assert out.split() == ["fatal", "1"]


def test_log_callback_and_debug_logging() -> None:
    out = script("""
@ffi.callback("event_log_cb")
def log(severity, text):
    seen.append((severity, ffi.string(text).decode()))
seen = []
lib.event_set_log_callback(log)
base = lib.event_base_new()
fd = os.dup(0)
os.close(fd)
event = lib.event_new(base, fd, lib.EV_READ, ffi.NULL, ffi.NULL)
lib.event_add(event, ffi.NULL)
print([severity for severity, text in seen] == [lib.EVENT_LOG_WARN], "Epoll" in seen[0][1])
seen.clear()
lib.event_enable_debug_logging(lib.EVENT_DBG_ALL)
lib.event_add(event, ffi.new("struct timeval *", (1, 0)))
lib.event_enable_debug_logging(lib.EVENT_DBG_NONE)
print(sum(severity == lib.EVENT_LOG_DEBUG for severity, text in seen) > 0)
seen.clear()
lib.event_del(event)
print(seen)
lib.event_free(event)
lib.event_base_free(base)
lib.event_set_log_callback(ffi.NULL)
""")
    assert out == ["True", "True", "True", "[]"]


def test_memory_comes_from_functions_of_the_programs_and_all_of_it_goes_back() -> None:
    out = script("""
import ctypes
libc = ctypes.CDLL(None)
for name, arguments in dict(malloc=1, realloc=2, free=1).items():
    getattr(libc, name).argtypes = [ctypes.c_size_t] * arguments
    getattr(libc, name).restype = ctypes.c_size_t
alive = set()
def take(address):
    alive.add(address)
    return ffi.cast("void *", address)
@ffi.callback("void *(size_t)")
def malloc(size):
    return take(libc.malloc(size))
@ffi.callback("void *(void *, size_t)")
def realloc(old, size):
    old = int(ffi.cast("size_t", old))
    alive.discard(old)
    return take(libc.realloc(old, size))
@ffi.callback("void(void *)")
def free(old):
    old = int(ffi.cast("size_t", old))
    alive.discard(old)
    libc.free(old)
lib.event_set_mem_functions(malloc, realloc, free)
base = EventBase()
print(int(ffi.cast("size_t", base.ptr)) in alive)
for i in range(100):
    Timer(base, str).add(0.001)
a, b = socket.socketpair()
Event(base, a, EV_WRITE, lambda fd, what: print("writable")).add()
base.dispatch()
buffer = EvBuffer(b"x" * 100000)
buffer.close()
before = len(alive)
base.close()
print(before > 3, len(alive))
""")
    assert out[:3] == ["True", "writable", "True"]
    assert int(out[3]) <= 2  # what libevent has one of in a process


def test_global_shutdown_comes_after_all_else() -> None:
    out = script("""
with EventBase() as base:
    with Signal(base, signal.SIGUSR1, print) as event:
        event.add()
        os.kill(os.getpid(), signal.SIGUSR1)
        base.loop(EVLOOP_NONBLOCK)
lib.libevent_global_shutdown()
print("done")
""")
    assert out == [str(int(signal.SIGUSR1)), "done"]
