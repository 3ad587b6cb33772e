"""EventConfig, EventBase, Event, Timer, Signal, once: each method and property of theirs."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import pylibevent
from pylibevent import (
    EV_CLOSED,
    EV_ET,
    EV_FEATURE_EARLY_CLOSE,
    EV_FEATURE_ET,
    EV_FEATURE_FDS,
    EV_FEATURE_O1,
    EV_FINALIZE,
    EV_PERSIST,
    EV_READ,
    EV_SIGNAL,
    EV_TIMEOUT,
    EV_WRITE,
    EVENT_BASE_COUNT_ACTIVE,
    EVENT_BASE_COUNT_ADDED,
    EVENT_BASE_COUNT_VIRTUAL,
    EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST,
    EVENT_BASE_FLAG_IGNORE_ENV,
    EVENT_BASE_FLAG_NO_CACHE_TIME,
    EVENT_BASE_FLAG_PRECISE_TIMER,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    Event,
    EventBase,
    EventConfig,
    LibeventError,
    Listener,
    Signal,
    Timer,
    ffi,
    lib,
)

RunUntil = Callable[..., None]
Sockets = tuple[socket.socket, socket.socket]

METHODS = pylibevent.supported_methods()
ROUND = EVLOOP_ONCE | EVLOOP_NONBLOCK
TIMES = [1, 0.001, timedelta(milliseconds=1), True, 0, 0.0]


def config_for(method: str) -> EventConfig:
    config = EventConfig()
    for other in METHODS:
        if other != method:
            config.avoid_method(other)
    return config


@pytest.fixture(params=METHODS)
def any_base(request: pytest.FixtureRequest) -> Iterator[EventBase]:
    """A base on each backend of this libevent."""
    with EventBase(config_for(request.param)) as base:
        yield base


def nothing(*_args: Any) -> None:
    pass


# ---- the library ----


def test_version_is_that_of_the_library_and_of_the_headers() -> None:
    assert pylibevent.version().startswith("2.1.")
    assert pylibevent.header_version().startswith("2.1.")


def test_supported_methods_are_the_backends_the_best_first() -> None:
    assert "select" in METHODS
    if sys.platform == "linux":
        assert METHODS == ["epoll", "poll", "select"]


# ---- EventConfig ----


@pytest.mark.parametrize("method", METHODS)
def test_avoiding_all_other_methods_leaves_one(method: str) -> None:
    with EventBase(config_for(method)) as base:
        assert base.method == method


def test_avoiding_every_method_fails() -> None:
    config = EventConfig()
    for method in METHODS:
        config.avoid_method(method)
    with pytest.raises(LibeventError, match="event_base_new_with_config"):
        EventBase(config)


def test_avoiding_a_method_that_does_not_exist_does_nothing() -> None:
    config = EventConfig()
    config.avoid_method("carrier pigeon")
    with EventBase(config) as base:
        assert base.method == METHODS[0]


@pytest.mark.parametrize("feature", [EV_FEATURE_ET, EV_FEATURE_O1, EV_FEATURE_FDS])
def test_a_required_feature_is_there(feature: int) -> None:
    config = EventConfig()
    config.require_features(feature)
    with EventBase(config) as base:
        assert base.features & feature


@pytest.mark.skipif(sys.platform != "linux", reason="epoll's features")
def test_features_of_epoll_and_of_select() -> None:
    with EventBase(config_for("epoll")) as base:
        assert base.features == EV_FEATURE_ET | EV_FEATURE_O1 | EV_FEATURE_EARLY_CLOSE
        assert str(base.features) == "EV_FEATURE_ET|EV_FEATURE_O1|EV_FEATURE_EARLY_CLOSE"
    with EventBase(config_for("select")) as base:
        assert base.features == EV_FEATURE_FDS


def test_features_that_no_backend_has_fail() -> None:
    config = EventConfig()
    config.require_features(EV_FEATURE_ET | EV_FEATURE_FDS)
    with pytest.raises(LibeventError):
        EventBase(config)


@pytest.mark.parametrize(
    "flag",
    [
        EVENT_BASE_FLAG_IGNORE_ENV,
        EVENT_BASE_FLAG_NO_CACHE_TIME,
        EVENT_BASE_FLAG_PRECISE_TIMER,
        EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST,
        EVENT_BASE_FLAG_PRECISE_TIMER | EVENT_BASE_FLAG_NO_CACHE_TIME,
    ],
    ids=str,
)
def test_a_base_with_each_flag_works(flag: int, sockets: Sockets) -> None:
    config = EventConfig()
    config.set_flag(flag)
    seen: list[Any] = []
    with EventBase(config) as base:
        sockets[1].send(b"x")
        Event(base, sockets[0], EV_READ, lambda fd, what: seen.append(what)).add(5)
        Timer(base, seen.append, "timer").add(0.001)
        assert base.dispatch() == 1
    assert sorted(map(str, seen)) == ["EV_READ", "timer"]


def test_ignore_env_makes_the_environment_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EVENT_NO{METHODS[0].upper()}", "1")
    with EventBase() as base:
        assert base.method == METHODS[1]
    config = EventConfig()
    config.set_flag(EVENT_BASE_FLAG_IGNORE_ENV)
    with EventBase(config) as base:
        assert base.method == METHODS[0]


def test_one_config_serves_several_bases_and_may_go_before_them() -> None:
    config = config_for("poll")
    with EventBase(config) as one, EventBase(config) as two:
        del config
        assert (one.method, two.method) == ("poll", "poll")


def test_config_ptr_is_the_struct() -> None:
    config = EventConfig()
    assert lib.event_config_avoid_method(config.ptr, METHODS[0].encode()) == 0
    with EventBase(config) as base:
        assert base.method == METHODS[1]


def test_num_cpus_hint_is_taken() -> None:
    EventConfig().set_num_cpus_hint(4)


@pytest.mark.parametrize("value", [-1, 1 << 10, 1 << 40])
def test_unknown_config_flags_and_features_are_value_errors(value: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        EventConfig().set_flag(value)
    with pytest.raises(ValueError, match="features"):
        EventConfig().require_features(value)


@pytest.mark.parametrize("call", ["avoid_method", "set_flag", "require_features"])
@pytest.mark.parametrize("value", [None, 1.5, b"epoll", object()])
def test_wrong_types_in_a_config_are_type_errors(call: str, value: Any) -> None:
    with pytest.raises(TypeError):
        getattr(EventConfig(), call)(value)


def test_a_method_with_a_nul_in_it_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="NUL"):
        EventConfig().avoid_method("epoll\0x")


def test_wrong_type_of_method_and_of_cpus() -> None:
    with pytest.raises(TypeError):
        EventConfig().avoid_method(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        EventConfig().set_num_cpus_hint("4")  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["epoll", 1, object()])
def test_a_base_takes_an_event_config_only(config: Any) -> None:
    with pytest.raises(TypeError, match="EventConfig"):
        EventBase(config)


# ---- the loop ----


def test_an_empty_loop_returns_1(any_base: EventBase) -> None:
    assert any_base.dispatch() == 1
    for flags in (0, EVLOOP_ONCE, EVLOOP_NONBLOCK, EVLOOP_ONCE | EVLOOP_NONBLOCK):
        assert any_base.loop(flags) == 1


def test_a_loop_that_ran_out_of_events_returns_1(base: EventBase) -> None:
    Timer(base, nothing).add(0)
    assert base.dispatch() == 1


def test_once_returns_after_the_first_round(any_base: EventBase) -> None:
    seen: list[int] = []
    tick = Timer(any_base, seen.append, 1, persist=True)
    tick.add(0.001)
    assert any_base.loop(EVLOOP_ONCE) == 0
    assert seen == [1]
    tick.close()


def test_nonblock_does_not_wait(any_base: EventBase) -> None:
    seen: list[int] = []
    Timer(any_base, seen.append, 1).add(3600)
    assert any_base.loop(EVLOOP_NONBLOCK) == 0
    assert seen == []
    Timer(any_base, seen.append, 2).add(0)
    any_base.loop(EVLOOP_NONBLOCK)
    assert seen == [2]


def test_no_exit_on_empty_waits_until_a_thread_breaks_it(any_base: EventBase) -> None:
    breaker = threading.Timer(0.05, any_base.loopbreak)
    breaker.start()
    assert any_base.loop(EVLOOP_NO_EXIT_ON_EMPTY) == 0
    assert any_base.got_break
    breaker.join()


def test_no_exit_on_empty_runs_what_another_thread_adds(base: EventBase) -> None:
    seen: list[threading.Thread] = []

    def arrive() -> None:
        seen.append(threading.current_thread())
        base.loopbreak()

    adder = threading.Thread(target=lambda: Timer(base, arrive).add(0))
    adder.start()
    base.loop(EVLOOP_NO_EXIT_ON_EMPTY)
    adder.join()
    assert seen == [threading.current_thread()]


@pytest.mark.parametrize("flags", [8, 1 << 20, -1, 1 << 40])
def test_unknown_loop_flags_are_a_value_error(base: EventBase, flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        base.loop(flags)


@pytest.mark.parametrize("flags", ["1", None, 1.0])
def test_loop_flags_of_a_wrong_type_are_a_type_error(base: EventBase, flags: Any) -> None:
    with pytest.raises(TypeError):
        base.loop(flags)


def test_dispatch_inside_a_callback_is_a_runtime_error(base: EventBase) -> None:
    errors: list[BaseException] = []

    def again() -> None:
        for run in (base.dispatch, lambda: base.loop(EVLOOP_NONBLOCK)):
            with pytest.raises(RuntimeError, match="running") as caught:
                run()
            errors.append(caught.value)

    seen: list[int] = []
    Timer(base, again).add(0)
    Timer(base, seen.append, 1).add(0.001)
    assert base.dispatch() == 1
    assert len(errors) == 2
    assert seen == [1]


def test_another_base_may_run_inside_a_callback(base: EventBase) -> None:
    seen: list[str] = []
    with EventBase() as inner:
        Timer(inner, seen.append, "inner").add(0.001)

        def outer() -> None:
            inner.dispatch()
            seen.append("outer")

        Timer(base, outer).add(0)
        Timer(base, seen.append, "after").add(0.001)
        base.dispatch()
    assert seen == ["inner", "outer", "after"]


def test_running_is_true_in_callbacks(base: EventBase) -> None:
    seen: list[bool] = []
    Timer(base, lambda: seen.append(base.running)).add(0)
    assert not base.running
    base.dispatch()
    assert seen == [True]
    assert not base.running


def test_loopexit_lets_the_active_events_run(base: EventBase) -> None:
    seen: list[int] = []

    def first() -> None:
        seen.append(1)
        base.loopexit()

    base.once(-1, EV_TIMEOUT, lambda fd, what: first())
    base.once(-1, EV_TIMEOUT, lambda fd, what: seen.append(2))
    Timer(base, seen.append, 3).add(3600)
    assert base.dispatch() == 0
    assert seen == [1, 2]
    assert base.got_exit
    assert not base.got_break


def test_loopbreak_does_not_and_they_run_in_the_next_loop(base: EventBase) -> None:
    seen: list[int] = []

    def first() -> None:
        seen.append(1)
        base.loopbreak()

    base.once(-1, EV_TIMEOUT, lambda fd, what: first())
    base.once(-1, EV_TIMEOUT, lambda fd, what: seen.append(2))
    assert base.dispatch() == 0
    assert seen == [1]
    assert base.got_break
    assert not base.got_exit
    assert base.dispatch() == 1
    assert seen == [1, 2]
    assert not base.got_break


@pytest.mark.parametrize("after", [0.01, timedelta(milliseconds=10), 0, 0.0])
def test_loopexit_after_a_time(any_base: EventBase, after: Any) -> None:
    keep = Timer(any_base, nothing, persist=True)
    keep.add(3600)
    any_base.loopexit(after)
    assert any_base.dispatch() == 0
    assert any_base.got_exit
    keep.close()


def test_loopexit_before_the_loop_starts_is_not_forgotten(base: EventBase) -> None:
    Timer(base, nothing).add(3600)
    base.loopexit()
    assert base.dispatch() == 0
    assert base.got_exit


def test_loopbreak_before_the_loop_starts_is_not_forgotten(base: EventBase) -> None:
    seen: list[int] = []
    Timer(base, seen.append, 1).add(0)
    base.loopbreak()
    assert base.dispatch() == 0
    assert seen == []
    assert base.got_break
    assert base.dispatch() == 1
    assert seen == [1]


def test_loopbreak_before_the_loop_ends_one_loop_only(base: EventBase) -> None:
    base.loopbreak()
    base.loopbreak()
    assert base.dispatch() == 0
    assert base.dispatch() == 1


def test_loopcontinue_looks_for_events_of_a_higher_priority_first(base: EventBase) -> None:
    base.priority_init(2)
    seen: list[str] = []

    def make(name: str, priority: int, then: Callable[[], None] = nothing) -> Event:
        def run(_fd: int, _what: int) -> None:
            seen.append(name)
            then()

        event = Event(base, -1, 0, run)
        event.priority = priority
        return event

    urgent = make("urgent", 0)

    def interrupt() -> None:
        urgent.active(EV_READ)
        base.loopcontinue()

    first, second = make("first", 1, interrupt), make("second", 1)
    first.active(EV_READ)
    second.active(EV_READ)
    assert base.dispatch() == 1
    assert seen == ["first", "urgent", "second"]


def test_loopcontinue_without_a_loop_does_nothing(base: EventBase) -> None:
    base.loopcontinue()
    assert base.dispatch() == 1


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, 1e300, timedelta(days=-1)])
def test_bad_times_are_value_errors(base: EventBase, value: Any) -> None:
    timer = Timer(base, nothing)
    with pytest.raises(ValueError, match="seconds"):
        timer.add(value)
    with pytest.raises(ValueError, match="seconds"):
        base.loopexit(value)
    with pytest.raises(ValueError, match="seconds"):
        base.once(-1, EV_TIMEOUT, nothing, timeout=value)
    assert base.num_events() == 0


@pytest.mark.parametrize("value", [10**400, -(10**400), timedelta.max])
def test_enormous_times_are_value_errors(base: EventBase, value: Any) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Timer(base, nothing).add(value)


@pytest.mark.parametrize("value", ["1", b"1", [], object(), 1j])
def test_times_of_a_wrong_type_are_type_errors(base: EventBase, value: Any) -> None:
    with pytest.raises(TypeError):
        Timer(base, nothing).add(value)
    with pytest.raises(TypeError):
        base.loopexit(value)
    with pytest.raises(TypeError):
        base.once(-1, EV_TIMEOUT, nothing, timeout=value)
    assert base.num_events() == 0


def test_the_longest_time_is_waited_for(any_base: EventBase) -> None:
    timer = Timer(any_base, pytest.fail, "too early")
    timer.add(1e12)
    any_base.loopexit(0.01)
    assert any_base.dispatch() == 0
    assert timer.expires_in == pytest.approx(1e12, abs=100)


# ---- what a base tells ----


def test_num_events_counts_added_active_and_virtual(base: EventBase, sockets: Sockets) -> None:
    assert base.num_events() == 0
    reader = Event(base, sockets[0], EV_READ, nothing)
    reader.add()
    timer = Timer(base, nothing)
    timer.add(3600)
    assert base.num_events() == 2
    assert base.num_events(EVENT_BASE_COUNT_ADDED) == 2
    assert base.num_events(EVENT_BASE_COUNT_ACTIVE) == 0
    reader.active(EV_READ)
    assert base.num_events(EVENT_BASE_COUNT_ACTIVE) == 1
    assert base.num_events(EVENT_BASE_COUNT_VIRTUAL) == 0
    reader.delete()
    timer.delete()
    assert base.num_events(EVENT_BASE_COUNT_ADDED | EVENT_BASE_COUNT_ACTIVE) == 0


def test_max_events_is_the_most_there_were_until_cleared(base: EventBase) -> None:
    timers = [Timer(base, nothing) for _ in range(3)]
    for timer in timers:
        timer.add(3600)
    for timer in timers:
        timer.delete()
    assert base.max_events() == 3
    assert base.max_events(clear=True) == 3
    assert base.max_events() == 0


def test_the_events_of_the_package_itself_are_not_counted(base: EventBase) -> None:
    Timer(base, nothing).add(0)
    base.dispatch()
    base.loopbreak()
    base.dispatch()
    assert base.num_events(7) == 0


@pytest.mark.parametrize("flags", [-1, 8, 1 << 40])
def test_unknown_count_flags_are_value_errors(base: EventBase, flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        base.num_events(flags)
    with pytest.raises(ValueError, match="flags"):
        base.max_events(flags)


def test_gettimeofday_cached_stands_still_in_a_round_until_updated(base: EventBase) -> None:
    seen: list[float] = []

    def look() -> None:
        seen.append(base.gettimeofday_cached())
        time.sleep(0.02)
        seen.append(base.gettimeofday_cached())
        base.update_cache_time()
        seen.append(base.gettimeofday_cached())

    assert base.gettimeofday_cached() == pytest.approx(time.time(), abs=1)
    Timer(base, look).add(0)
    base.dispatch()
    assert seen[0] == seen[1]
    assert seen[2] >= seen[0] + 0.01


def test_without_cached_time_it_goes_on() -> None:
    config = EventConfig()
    config.set_flag(EVENT_BASE_FLAG_NO_CACHE_TIME)
    seen: list[float] = []
    with EventBase(config) as base:

        def look() -> None:
            seen.append(base.gettimeofday_cached())
            time.sleep(0.02)
            seen.append(base.gettimeofday_cached())

        Timer(base, look).add(0)
        base.dispatch()
    assert seen[1] >= seen[0] + 0.01


def test_base_repr_tells_the_method_or_closed() -> None:
    base = EventBase()
    assert re.fullmatch(rf"<EventBase {METHODS[0]} at 0x[0-9a-f]+>", repr(base))
    base.close()
    assert re.fullmatch(r"<EventBase closed at 0x[0-9a-f]+>", repr(base))


def test_base_ptr_is_the_struct(base: EventBase) -> None:
    assert ffi.typeof(base.ptr) is ffi.typeof("struct event_base *")
    assert ffi.string(lib.event_base_get_method(base.ptr)).decode() == base.method
    Timer(base, nothing).add(3600)
    assert lib.event_base_get_num_events(base.ptr, EVENT_BASE_COUNT_ADDED) == 1
    assert lib.event_base_loop(base.ptr, EVLOOP_NONBLOCK) == 0


def test_an_event_of_the_raw_layer_and_one_of_the_classes_share_a_base(base: EventBase) -> None:
    seen: list[str] = []

    @ffi.callback("void(evutil_socket_t, short, void *)")
    def raw(_fd: int, _what: int, _arg: Any) -> None:
        seen.append("raw")

    event = lib.event_new(base.ptr, -1, 0, raw, ffi.NULL)
    lib.event_active(event, EV_READ, 1)
    Timer(base, seen.append, "class").add(0.001)
    base.dispatch()
    lib.event_free(event)
    assert seen == ["raw", "class"]


def test_base_is_a_context_manager_that_closes_it() -> None:
    with EventBase() as base:
        assert not base.closed
    assert base.closed
    with pytest.raises(ClosedError), base:
        pass


def test_base_is_closed_also_when_the_with_statement_raises() -> None:
    with pytest.raises(KeyError), EventBase() as base:
        raise KeyError
    assert base.closed


def test_bases_have_no_other_attributes(base: EventBase) -> None:
    with pytest.raises(AttributeError):
        base.exeption_handler = nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["base", "config", "event", "timer", "bev", "listener"])
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_a_struct_cannot_be_copied(base: EventBase, kind: str, copier: Callable[..., Any]) -> None:
    with Listener.bind(base, nothing, ("127.0.0.1", 0)) as listener:
        bev, other = BufferEvent.pair(base)
        things = {
            "base": base,
            "config": EventConfig(),
            "event": Event(base, -1, EV_READ, nothing),
            "timer": Timer(base, nothing),
            "bev": bev,
            "listener": listener,
        }
        with pytest.raises(TypeError):
            copier(things[kind])
        bev.close()
        other.close()


# ---- priorities ----


def test_events_run_by_priority(base: EventBase) -> None:
    base.priority_init(3)
    assert base.npriorities == 3
    seen: list[int] = []
    for priority in (2, 0, 1):
        event = Event(base, -1, 0, lambda fd, what, p: seen.append(p), priority)
        event.priority = priority
        assert event.priority == priority
        event.active(EV_READ)
    base.dispatch()
    assert seen == [0, 1, 2]


def test_a_base_has_one_priority_and_a_new_event_the_middle_one(base: EventBase) -> None:
    assert base.npriorities == 1
    assert Event(base, -1, EV_READ, nothing).priority == 0
    base.priority_init(5)
    assert Event(base, -1, EV_READ, nothing).priority == 2


@pytest.mark.parametrize("n", [0, -1, 256, 1 << 20, 1 << 40])
def test_a_number_of_priorities_out_of_range_is_a_value_error(base: EventBase, n: int) -> None:
    with pytest.raises(ValueError, match=r".*"):
        base.priority_init(n)


def test_255_priorities_are_possible(base: EventBase) -> None:
    base.priority_init(255)
    event = Event(base, -1, EV_READ, nothing)
    event.priority = 254
    event.active(EV_READ)
    assert base.dispatch() == 1


@pytest.mark.parametrize("priority", [-1, 2, 255, 1 << 20, 1 << 40])
def test_a_priority_that_the_base_does_not_have_is_a_value_error(
    base: EventBase, priority: int
) -> None:
    base.priority_init(2)
    event = Event(base, -1, EV_READ, nothing)
    with pytest.raises(ValueError, match=r".*"):
        event.priority = priority


def test_fewer_priorities_than_an_event_needs_is_a_value_error(base: EventBase) -> None:
    base.priority_init(3)
    event = Event(base, -1, EV_READ, nothing)
    event.priority = 2
    with pytest.raises(ValueError, match="priority"):
        base.priority_init(2)
    event.active(EV_READ)
    base.dispatch()


def test_the_number_of_priorities_cannot_change_while_the_loop_runs(base: EventBase) -> None:
    def change() -> None:
        with pytest.raises(RuntimeError, match="running"):
            base.priority_init(3)

    Timer(base, change).add(0)
    base.once(-1, EV_TIMEOUT, nothing)
    assert base.dispatch() == 1
    base.priority_init(3)


def test_the_priority_of_an_active_event_cannot_change(base: EventBase) -> None:
    base.priority_init(2)
    event = Event(base, -1, EV_READ, nothing)
    event.active(EV_READ)
    with pytest.raises(LibeventError, match="event_priority_set"):
        event.priority = 0
    base.dispatch()
    event.priority = 0


@pytest.mark.parametrize("value", ["1", None, 1.5])
def test_a_priority_of_a_wrong_type_is_a_type_error(base: EventBase, value: Any) -> None:
    event = Event(base, -1, EV_READ, nothing)
    with pytest.raises(TypeError):
        event.priority = value
    with pytest.raises(TypeError):
        base.priority_init(value)


# ---- Event ----


def test_a_reader_is_called_with_descriptor_flags_and_arguments(
    any_base: EventBase, sockets: Sockets
) -> None:
    seen: list[Any] = []
    a, b = sockets
    Event(any_base, a, EV_READ, lambda *args: seen.append(args), "x", 2).add()
    b.send(b"!")
    assert any_base.dispatch() == 1
    assert seen == [(a.fileno(), EV_READ, "x", 2)]
    assert str(seen[0][1]) == "EV_READ"


def test_a_writer_is_called(any_base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    Event(any_base, sockets[0].fileno(), EV_WRITE, lambda fd, what: seen.append(what)).add()
    assert any_base.dispatch() == 1
    assert seen == [EV_WRITE]


def test_reading_and_writing_at_once_is_one_call(any_base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    Event(any_base, sockets[0], EV_READ | EV_WRITE, lambda fd, what: seen.append(what)).add()
    sockets[1].send(b"!")
    any_base.dispatch()
    assert seen == [EV_READ | EV_WRITE]


def test_an_event_that_does_not_persist_is_called_once(
    any_base: EventBase, sockets: Sockets
) -> None:
    seen: list[int] = []
    event = Event(any_base, sockets[0], EV_READ, lambda fd, what: seen.append(what))
    event.add()
    sockets[1].send(b"!")  # and is never read
    assert any_base.dispatch() == 1
    assert seen == [EV_READ]
    assert not event.pending()
    event.add()
    any_base.dispatch()
    assert seen == [EV_READ, EV_READ]


def test_a_persistent_event_is_called_until_deleted(any_base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []

    def readable(_fd: int, what: int) -> None:
        seen.append(what)
        if len(seen) == 3:
            event.delete()

    event = Event(any_base, sockets[0], EV_READ | EV_PERSIST, readable)
    event.add()
    sockets[1].send(b"!")
    assert any_base.dispatch() == 1
    assert len(seen) == 3


def test_an_event_may_be_added_again_in_its_callback(base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []

    def readable(_fd: int, what: int) -> None:
        seen.append(what)
        if len(seen) < 3:
            event.add()

    event = Event(base, sockets[0], EV_READ, readable)
    event.add()
    sockets[1].send(b"!")
    assert base.dispatch() == 1
    assert len(seen) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="edge-triggered: epoll")
def test_edge_triggered_is_called_for_new_bytes_only(base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    a, b = sockets
    event = Event(base, a, EV_READ | EV_ET | EV_PERSIST, lambda fd, what: seen.append(what))
    event.add()
    b.send(b"1")
    for _ in range(3):
        base.loop(EVLOOP_NONBLOCK)
    assert seen == [EV_READ | EV_ET]
    b.send(b"2")
    for _ in range(3):
        base.loop(EVLOOP_NONBLOCK)
    assert len(seen) == 2
    event.close()


@pytest.mark.skipif(sys.platform != "linux", reason="EV_CLOSED: epoll")
@pytest.mark.parametrize("method", ["epoll", "poll"])
def test_ev_closed_tells_of_the_end_without_reading(method: str, sockets: Sockets) -> None:
    seen: list[int] = []
    a, b = sockets
    with EventBase(config_for(method)) as base:
        assert base.features & EV_FEATURE_EARLY_CLOSE
        event = Event(base, a, EV_CLOSED, lambda fd, what: seen.append(what))
        event.add()
        b.send(b"unread")
        base.loop(EVLOOP_NONBLOCK)
        assert seen == []
        b.close()
        base.dispatch()
    assert seen == [EV_CLOSED]
    assert a.recv(10) == b"unread"


@pytest.mark.skipif(sys.platform != "linux", reason="EV_CLOSED: epoll")
def test_ev_closed_where_the_backend_has_none_is_an_error(sockets: Sockets) -> None:
    """It would never be called: an error rather than a wait for ever."""
    with EventBase(config_for("select")) as base:
        assert not base.features & EV_FEATURE_EARLY_CLOSE
        with pytest.raises((LibeventError, ValueError)):
            Event(base, sockets[0], EV_CLOSED, nothing).add()


def test_two_events_on_one_descriptor(any_base: EventBase, sockets: Sockets) -> None:
    seen: list[str] = []
    a, b = sockets
    one = Event(any_base, a, EV_READ | EV_PERSIST, lambda fd, what: seen.append("one"))
    two = Event(any_base, a, EV_READ | EV_PERSIST, lambda fd, what: seen.append("two"))
    writer = Event(any_base, a, EV_WRITE, lambda fd, what: seen.append("writer"))
    for event in (one, two, writer):
        event.add()
    b.send(b"!")
    any_base.loop(ROUND)
    assert sorted(seen) == ["one", "two", "writer"]
    one.delete()
    seen.clear()
    any_base.loop(ROUND)
    assert seen == ["two"]
    two.delete()


def test_many_descriptors_at_once(any_base: EventBase) -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    seen: list[int] = []
    for a, b in pairs:
        Event(any_base, a, EV_READ, lambda fd, what: seen.append(fd)).add()
        b.send(b"!")
    assert any_base.dispatch() == 1
    assert sorted(seen) == sorted(a.fileno() for a, _ in pairs)
    for a, b in pairs:
        a.close()
        b.close()


def test_a_time_limit_on_a_reader(any_base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    event = Event(any_base, sockets[0], EV_READ, lambda fd, what: seen.append(what))
    event.add(0.01)
    assert any_base.dispatch() == 1
    assert seen == [EV_TIMEOUT]
    assert not event.pending()


def test_the_time_limit_of_a_persistent_reader_starts_again(
    base: EventBase, sockets: Sockets
) -> None:
    seen: list[int] = []

    def happened(_fd: int, what: int) -> None:
        seen.append(what)
        if what & EV_READ:
            sockets[0].recv(10)
        if len(seen) == 4:
            event.delete()

    event = Event(base, sockets[0], EV_READ | EV_PERSIST, happened)
    event.add(0.02)
    sockets[1].send(b"!")
    base.dispatch()
    assert seen == [EV_READ, EV_TIMEOUT, EV_TIMEOUT, EV_TIMEOUT]


@pytest.mark.parametrize("seconds", TIMES)
def test_times_are_int_float_or_timedelta(base: EventBase, seconds: Any) -> None:
    event = Event(base, -1, EV_TIMEOUT, nothing)
    event.add(seconds)
    assert event.pending() == EV_TIMEOUT
    expected = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
    assert event.expires_in == pytest.approx(expected, abs=0.9)
    event.close()


def test_expires_in_is_none_without_a_time(base: EventBase, sockets: Sockets) -> None:
    event = Event(base, sockets[0], EV_READ, nothing)
    assert event.expires_in is None
    event.add()
    assert event.expires_in is None
    event.add(100)
    assert event.expires_in == pytest.approx(100, abs=1)


def test_adding_again_changes_the_time(any_base: EventBase) -> None:
    started = time.monotonic()
    timer = Timer(any_base, nothing)
    timer.add(3600)
    timer.add(0.01)
    assert any_base.num_events() == 1
    assert any_base.dispatch() == 1
    assert time.monotonic() - started < 60
    timer.add(0.01)
    timer.add(3600)
    any_base.loopexit(0.05)
    assert any_base.dispatch() == 0
    assert timer.pending() == EV_TIMEOUT


def test_adding_again_without_a_time_keeps_it(base: EventBase, sockets: Sockets) -> None:
    event = Event(base, sockets[0], EV_READ, nothing)
    event.add(100)
    event.add()
    assert event.expires_in == pytest.approx(100, abs=1)


def test_remove_timer_leaves_the_rest_pending(base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    event = Event(base, sockets[0], EV_READ, lambda fd, what: seen.append(what))
    event.add(0.001)
    event.remove_timer()
    assert event.expires_in is None
    assert event.pending() == EV_READ
    time.sleep(0.01)
    base.loop(EVLOOP_NONBLOCK)
    assert seen == []
    sockets[1].send(b"!")
    base.dispatch()
    assert seen == [EV_READ]


def test_remove_timer_of_a_timer_ends_it(base: EventBase) -> None:
    timer = Timer(base, pytest.fail, "it was removed")
    timer.add(0)
    timer.remove_timer()
    assert not timer.pending()
    assert base.dispatch() == 1
    timer.remove_timer()  # nothing to remove is no error


def test_delete_makes_it_not_pending(base: EventBase, sockets: Sockets) -> None:
    event = Event(base, sockets[0], EV_WRITE, pytest.fail)  # type: ignore[arg-type]
    event.add(0)
    event.delete()
    assert not event.pending()
    assert base.dispatch() == 1
    event.delete()  # nothing to delete is no error


def test_adding_again_without_a_time_after_delete_has_none(
    any_base: EventBase, sockets: Sockets
) -> None:
    seen: list[int] = []
    event = Event(any_base, sockets[0], EV_READ | EV_PERSIST, lambda fd, what: seen.append(what))
    event.add(0.02)
    event.delete()
    event.add()
    sockets[1].send(b"!")
    any_base.loop(EVLOOP_ONCE)
    assert seen == [EV_READ]
    assert event.expires_in is None
    assert event.pending() == EV_READ
    event.close()


def test_delete_takes_back_an_active_event(base: EventBase) -> None:
    event = Event(base, -1, 0, pytest.fail)  # type: ignore[arg-type]
    event.active(EV_READ)
    event.delete()
    assert base.dispatch() == 1


def test_a_callback_may_delete_another_event_that_is_active(base: EventBase) -> None:
    seen: list[str] = []

    def end_the_other(fd: int, what: int, name: str) -> None:
        seen.append(name)
        (two if name == "one" else one).delete()

    one = Event(base, -1, 0, end_the_other, "one")
    two = Event(base, -1, 0, end_the_other, "two")
    one.active(EV_READ)
    two.active(EV_READ)
    base.dispatch()
    assert seen == ["one"]


@pytest.mark.parametrize("what", [EV_TIMEOUT, EV_READ, EV_WRITE, EV_READ | EV_WRITE, EV_CLOSED])
def test_active_calls_the_callback_with_what_it_was_told(base: EventBase, what: Any) -> None:
    seen: list[int] = []
    event = Event(base, -1, EV_READ, lambda fd, what: seen.append(what))
    event.active(what)
    assert base.dispatch() == 1
    assert seen == [what]


def test_active_twice_is_one_call_with_both(base: EventBase) -> None:
    seen: list[int] = []
    event = Event(base, -1, EV_READ, lambda fd, what: seen.append(what))
    event.active(EV_READ)
    event.active(EV_WRITE)
    assert base.dispatch() == 1
    assert seen == [EV_READ | EV_WRITE]


def test_active_leaves_a_persistent_event_pending(base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    event = Event(base, sockets[0], EV_READ | EV_PERSIST, lambda fd, what: seen.append(what))
    event.add()
    event.active(EV_TIMEOUT)
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [EV_TIMEOUT]
    assert event.pending() == EV_READ
    event.close()


@pytest.mark.parametrize("what", [EV_READ | EV_PERSIST, EV_PERSIST])
def test_active_after_delete_does_not_bring_the_time_back(
    base: EventBase, sockets: Sockets, what: int
) -> None:
    seen: list[int] = []
    fd = sockets[0] if what & EV_READ else -1
    event = Event(base, fd, what, lambda fd, what: seen.append(what))
    event.add(0.02)
    event.delete()
    event.active(EV_READ)
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [EV_READ]
    assert not event.pending()
    event.close()


def test_active_leaves_a_persistent_event_its_time(base: EventBase) -> None:
    event = Event(base, -1, EV_PERSIST, nothing)
    event.add(100)
    event.active(EV_READ)
    base.loop(EVLOOP_NONBLOCK)
    assert event.expires_in == pytest.approx(100, abs=1)
    event.close()


def test_active_in_its_own_callback_runs_it_again(base: EventBase) -> None:
    seen: list[int] = []

    def again(_fd: int, what: int) -> None:
        seen.append(what)
        if len(seen) < 5:
            event.active(EV_READ)

    event = Event(base, -1, EV_READ, again)
    event.active(EV_READ)
    assert base.dispatch() == 1
    assert len(seen) == 5


@pytest.mark.parametrize("what", [0, EV_PERSIST, EV_ET, EV_FINALIZE, 1 << 10, -1, 1 << 40])
def test_active_with_what_cannot_happen_is_a_value_error(base: EventBase, what: int) -> None:
    event = Event(base, -1, EV_READ, nothing)
    with pytest.raises(ValueError, match=r".*"):
        event.active(what)
    assert base.num_events(7) == 0


@pytest.mark.parametrize("what", ["1", None, 1.5, b"\1"])
def test_flags_of_a_wrong_type_are_type_errors(
    base: EventBase, sockets: Sockets, what: Any
) -> None:
    event = Event(base, -1, EV_READ, nothing)
    with pytest.raises(TypeError):
        event.active(what)
    with pytest.raises(TypeError):
        event.pending(what)
    with pytest.raises(TypeError):
        Event(base, sockets[0], what, nothing)
    with pytest.raises(TypeError):
        base.once(sockets[0], what, nothing)


def test_pending_tells_what_it_waits_for(base: EventBase, sockets: Sockets) -> None:
    event = Event(base, sockets[0], EV_READ | EV_WRITE | EV_PERSIST, nothing)
    assert event.pending() == 0
    event.add()
    assert event.pending() == EV_READ | EV_WRITE
    assert event.pending(EV_READ) == EV_READ
    assert event.pending(EV_TIMEOUT) == 0
    event.add(10)
    assert event.pending() == EV_READ | EV_WRITE | EV_TIMEOUT
    assert repr(event.pending()) == "EV_TIMEOUT|EV_READ|EV_WRITE"
    event.delete()
    assert not event.pending()


def test_pending_tells_what_is_active(base: EventBase) -> None:
    event = Event(base, -1, 0, nothing)
    event.active(EV_WRITE)
    assert event.pending() == EV_WRITE
    base.dispatch()
    assert event.pending() == 0


@pytest.mark.parametrize("what", [1 << 40, -(1 << 40)])
def test_pending_with_unknown_flags_is_a_value_error(base: EventBase, what: int) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Event(base, -1, EV_READ, nothing).pending(what)


@pytest.mark.skipif("epoll" not in METHODS, reason="epoll")
def test_a_regular_file_under_epoll_is_a_permission_error() -> None:
    with tempfile.TemporaryFile() as file, EventBase(config_for("epoll")) as base:
        event = Event(base, file, EV_READ, nothing)
        with pytest.raises(PermissionError, match="event_add"):
            event.add()
        assert not event.pending()
        assert base.num_events() == 0
        assert base.dispatch() == 1


@pytest.mark.parametrize("method", ["poll", "select"])
def test_a_regular_file_is_ready_at_once_under_poll_and_select(method: str) -> None:
    seen: list[int] = []
    with tempfile.TemporaryFile() as file, EventBase(config_for(method)) as base:
        Event(base, file, EV_READ, lambda fd, what: seen.append(what)).add()
        assert base.dispatch() == 1
    assert seen == [EV_READ]


def test_a_descriptor_that_is_not_open_is_an_os_error_under_epoll(base: EventBase) -> None:
    fd = os.dup(0)
    os.close(fd)
    event = Event(base, fd, EV_READ, nothing)
    with pytest.raises(OSError, match="event_add"):
        event.add()
    assert base.num_events() == 0


def test_a_failed_add_with_a_time_leaves_nothing_pending(base: EventBase) -> None:
    fd = os.dup(0)
    os.close(fd)
    event = Event(base, fd, EV_READ, nothing)
    with pytest.raises(OSError, match="event_add"):
        event.add(0.01)
    assert not event.pending()
    assert base.dispatch() == 1


@pytest.mark.parametrize("kind", ["event", "bufferevent", "listener"])
def test_a_descriptor_too_large_for_select_does_not_end_the_process(kind: str) -> None:
    """glibc's FD_SET aborts from FD_SETSIZE, 1024, on: it has to work or to be an exception."""
    code = """
import os, resource, socket, sys
from pylibevent import *
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2000), hard))
config = EventConfig()
for method in supported_methods():
    if method != "select":
        config.avoid_method(method)
base = EventBase(config)
a, b = socket.socketpair()
server = socket.create_server(("127.0.0.1", 0))
kind = sys.argv[1]
os.dup2((server if kind == "listener" else a).fileno(), 1500)
seen = []
try:
    if kind == "event":
        Event(base, 1500, EV_READ, lambda fd, what: seen.append(fd)).add()
        b.send(b"x")
    elif kind == "bufferevent":
        bev = BufferEvent.socket(base, 1500)
        bev.setcb(lambda bev: seen.append(bev.read()) or bev.close())
        bev.enable(EV_READ)
        b.send(b"x")
    else:
        listener = Listener(base, lambda lst, fd, address: seen.append(fd) or lst.close(), 1500)
        client = socket.create_connection(server.getsockname())
except (ValueError, OSError, LibeventError):
    pass
else:
    base.dispatch()
    assert seen, seen
base.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, kind], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_an_event_without_a_descriptor_is_called_when_active(base: EventBase) -> None:
    seen: list[int] = []
    event = Event(base, -1, EV_READ | EV_PERSIST, lambda fd, what: seen.append(fd))
    event.active(EV_READ)
    assert base.dispatch() == 1
    assert seen == [-1]


@pytest.mark.parametrize("what", [0, EV_TIMEOUT, EV_PERSIST])
def test_add_of_an_event_with_nothing_to_wait_for_leaves_nothing_behind(
    base: EventBase, what: int
) -> None:
    """No descriptor, no signal, no time: either an error, or not pending and not held."""
    import weakref

    event = Event(base, -1, what, nothing)
    try:
        event.add()
    except (ValueError, LibeventError):
        pass
    else:
        assert not event.pending()
    assert base.dispatch() == 1
    gone = weakref.ref(event)
    del event
    assert gone() is None


@pytest.mark.parametrize("fd", [-2, -1000, 1 << 31, 1 << 40])
def test_a_number_that_is_no_descriptor_is_a_value_error(base: EventBase, fd: int) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        Event(base, fd, EV_READ, nothing)


@pytest.mark.parametrize("fd", ["0", None, 1.5, object()])
def test_a_descriptor_of_a_wrong_type_is_a_type_error(base: EventBase, fd: Any) -> None:
    with pytest.raises(TypeError):
        Event(base, fd, EV_READ, nothing)


def test_a_closed_socket_is_no_event_that_waits_for_ever(base: EventBase) -> None:
    """Its fileno() is -1, which would mean "no descriptor"."""
    closed = socket.socket()
    closed.close()
    with pytest.raises((ValueError, OSError)):
        Event(base, closed, EV_READ, nothing)


@pytest.mark.parametrize("what", [EV_FINALIZE, 1 << 9, -1, 1 << 40, EV_SIGNAL | EV_READ])
def test_an_event_with_impossible_flags_is_a_value_error(
    base: EventBase, sockets: Sockets, what: int
) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Event(base, sockets[0], what, nothing)


@pytest.mark.parametrize("other", [None, 1, "base", object()])
def test_everything_wants_an_event_base(other: Any) -> None:
    for make in (
        lambda: Event(other, -1, EV_READ, nothing),
        lambda: Timer(other, nothing),
        lambda: Signal(other, signal.SIGUSR1, nothing),
        lambda: BufferEvent.pair(other),
        lambda: BufferEvent.socket(other),
        lambda: Listener.bind(other, nothing, ("127.0.0.1", 0)),
    ):
        with pytest.raises(TypeError, match="EventBase"):
            make()


@pytest.mark.parametrize("callback", [None, 1, "f"])
def test_a_callback_must_be_callable(base: EventBase, callback: Any) -> None:
    for make in (
        lambda: Event(base, -1, EV_READ, callback),
        lambda: Timer(base, callback),
        lambda: Signal(base, signal.SIGUSR1, callback),
        lambda: base.once(-1, EV_TIMEOUT, callback),
    ):
        with pytest.raises(TypeError, match="callable"):
            make()


def test_what_an_event_tells_about_itself(base: EventBase, sockets: Sockets) -> None:
    event = Event(base, sockets[0], EV_READ | EV_PERSIST, nothing)
    assert event.base is base
    assert event.fd == sockets[0].fileno()
    assert event.events == EV_READ | EV_PERSIST
    assert not event.closed
    assert re.fullmatch(rf"<Event fd={event.fd} EV_READ\|EV_PERSIST at 0x[0-9a-f]+>", repr(event))
    event.close()
    assert event.closed
    assert re.fullmatch(r"<Event closed at 0x[0-9a-f]+>", repr(event))


def test_an_event_tells_its_callback_until_it_is_closed(base: EventBase) -> None:
    event = Event(base, -1, 0, print, "a", 2)
    assert event.callback is print
    assert event.args == ("a", 2)
    event.close()
    assert event.callback is None
    assert event.args == ()


def test_timers_and_signals_have_a_repr_of_their_own(base: EventBase) -> None:
    assert repr(Timer(base, nothing)).startswith("<Timer fd=-1 0x0 at ")
    number = int(signal.SIGUSR1)
    text = repr(Signal(base, signal.SIGUSR1, nothing))
    assert text.startswith(f"<Signal fd={number} EV_SIGNAL|EV_PERSIST at ")


def test_event_ptr_is_the_struct(base: EventBase, sockets: Sockets) -> None:
    event = Event(base, sockets[0], EV_READ, nothing)
    assert lib.event_get_fd(event.ptr) == sockets[0].fileno()
    assert lib.event_get_base(event.ptr) == base.ptr
    assert lib.event_pending(event.ptr, EV_READ, ffi.NULL) == 0
    event.add()
    assert lib.event_pending(event.ptr, EV_READ, ffi.NULL) == EV_READ
    assert lib.event_initialized(event.ptr)


def test_an_event_is_a_context_manager_that_closes_it(base: EventBase, sockets: Sockets) -> None:
    with Event(base, sockets[0], EV_READ, nothing) as event:
        event.add()
        assert event.pending()
    assert event.closed
    assert base.num_events() == 0


def test_keyword_arguments_and_methods_as_callbacks(base: EventBase) -> None:
    class Thing:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def happened(self, *args: Any) -> None:
            self.calls.append(args)

    thing = Thing()
    Timer(base, callback=thing.happened, persist=False).add(timeout=0)
    Event(base=base, fd=-1, what=EV_TIMEOUT, callback=thing.happened).add(timeout=0.001)
    base.dispatch()
    assert thing.calls == [(), (-1, EV_TIMEOUT)]


# ---- Timer ----


def test_a_timer_is_called_once_with_its_arguments(any_base: EventBase) -> None:
    seen: list[Any] = []
    Timer(any_base, lambda *args: seen.append(args), 1, "two").add(0.001)
    assert any_base.dispatch() == 1
    assert seen == [(1, "two")]


def test_a_persistent_timer_ticks(any_base: EventBase) -> None:
    seen: list[int] = []

    def tick() -> None:
        seen.append(1)
        if len(seen) == 3:
            timer.delete()

    timer = Timer(any_base, tick, persist=True)
    timer.add(0.001)
    assert any_base.dispatch() == 1
    assert len(seen) == 3


def test_a_persistent_timer_with_no_time_between_is_called_once_for_each_add(
    base: EventBase,
) -> None:
    """As in C: an interval of 0 is not repeated."""
    seen: list[int] = []
    timer = Timer(base, seen.append, 1, persist=True)
    timer.add(0)
    for _ in range(3):
        base.loop(EVLOOP_NONBLOCK)
    assert seen == [1]
    timer.close()


def test_timers_run_in_order_of_time(any_base: EventBase) -> None:
    seen: list[int] = []
    for n in (3, 1, 2, 0):
        Timer(any_base, seen.append, n).add(0.005 * n)
    assert any_base.dispatch() == 1
    assert seen == [0, 1, 2, 3]


def test_a_timer_never_comes_early(any_base: EventBase) -> None:
    late: list[float] = []
    for n in range(20):
        due = time.monotonic() + n / 1000
        timer = Timer(any_base, lambda due: late.append(time.monotonic() - due), due)
        timer.add(n / 1000)
    any_base.dispatch()
    assert min(late) > -0.005  # the coarse clock ticks each 4 ms
    assert len(late) == 20


def test_ten_thousand_timers_are_all_called(base: EventBase) -> None:
    seen: list[int] = []
    for n in range(10_000):
        Timer(base, seen.append, n).add((n * 7919) % 1000 / 100_000)
    assert base.dispatch() == 1
    assert sorted(seen) == list(range(10_000))


# ---- Signal ----


def test_signum_and_events_of_a_signal(base: EventBase) -> None:
    event = Signal(base, signal.SIGUSR1, nothing)
    assert event.signum == signal.SIGUSR1
    assert event.events == EV_SIGNAL | EV_PERSIST


@pytest.mark.parametrize("signum", [0, -1, 65, 1000, 1 << 31, 1 << 40])
def test_a_number_that_is_no_signal_is_a_value_error(base: EventBase, signum: int) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Signal(base, signum, nothing)


@pytest.mark.parametrize("signum", ["10", None, 10.5, sys.stdin])
def test_a_signal_of_a_wrong_type_is_a_type_error(base: EventBase, signum: Any) -> None:
    with pytest.raises(TypeError):
        Signal(base, signum, nothing)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_signal_that_cannot_be_caught_is_an_os_error(base: EventBase, signum: int) -> None:
    event = Signal(base, signum, nothing)
    with pytest.raises(OSError, match="event_add"):
        event.add()
    assert base.num_events() == 0
    with EventBase() as other, Signal(other, signal.SIGUSR1, nothing) as works:
        works.add()  # the failed one does not hold the place of the process's signal base


# ---- once ----


def test_once_with_ev_timeout_runs_as_soon_as_the_loop_does(any_base: EventBase) -> None:
    seen: list[Any] = []
    any_base.once(-1, EV_TIMEOUT, lambda *args: seen.append(args), "x")
    assert any_base.dispatch() == 1
    assert seen == [(-1, EV_TIMEOUT, "x")]


def test_once_after_a_time(base: EventBase) -> None:
    seen: list[Any] = []
    base.once(-1, EV_TIMEOUT, lambda *args: seen.append(args), timeout=timedelta(milliseconds=1))
    assert base.num_events() == 1
    assert base.dispatch() == 1
    assert seen == [(-1, EV_TIMEOUT)]


def test_once_for_a_descriptor(any_base: EventBase, sockets: Sockets) -> None:
    seen: list[Any] = []
    a, b = sockets
    any_base.once(a, EV_READ, lambda *args: seen.append(args))
    any_base.once(a, EV_WRITE, lambda *args: seen.append(args))
    b.send(b"!")
    assert any_base.dispatch() == 1
    assert sorted(seen) == [(a.fileno(), EV_READ), (a.fileno(), EV_WRITE)]


def test_once_for_a_descriptor_with_a_time_limit(base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    base.once(sockets[0], EV_READ, lambda fd, what: seen.append(what), timeout=0.01)
    base.once(sockets[0], EV_READ | EV_TIMEOUT, lambda fd, what: seen.append(what), timeout=0.01)
    assert base.dispatch() == 1
    assert seen == [EV_TIMEOUT, EV_TIMEOUT]


@pytest.mark.parametrize("what", [EV_SIGNAL, EV_READ | EV_PERSIST, EV_PERSIST, 0, -1, 1 << 40])
def test_once_for_what_it_cannot_do_is_a_value_error(base: EventBase, what: int) -> None:
    with pytest.raises(ValueError, match=r".*"):
        base.once(-1, what, nothing)
    assert base.num_events(7) == 0


def test_once_for_a_regular_file_is_a_permission_error(base: EventBase) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
        base.once(file, EV_READ, nothing)
    assert base.dispatch() == 1


# ---- how things print ----


def test_flags_print_as_in_c() -> None:
    assert str(EV_READ) == repr(EV_READ) == f"{EV_READ}" == "EV_READ"
    assert str(EV_READ | EV_PERSIST) == "EV_READ|EV_PERSIST"
    assert str(pylibevent.EVBUFFER_EOL_CRLF) == "EVBUFFER_EOL_CRLF"
    assert str(EVLOOP_ONCE | EVLOOP_NONBLOCK) == "EVLOOP_ONCE|EVLOOP_NONBLOCK"
    assert str(EV_READ & EV_WRITE) == "0x0"
    assert str(type(EV_READ)(EV_READ | 0x100)) == "EV_READ|0x100"


def test_flags_are_numbers() -> None:
    assert EV_READ == lib.EV_READ == 2
    assert EV_READ | 4 == EV_READ | EV_WRITE
    assert isinstance(EV_READ | EV_WRITE, type(EV_READ))
    assert f"{EV_WRITE:#x}" == "0x4"
    assert f"{EV_WRITE:d}" == "4"


def test_the_flags_that_a_callback_gets_are_not_made_each_time(base: EventBase) -> None:
    seen: list[Any] = []
    for _ in range(2):
        base.once(-1, EV_TIMEOUT, lambda fd, what: seen.append(what))
    base.dispatch()
    assert seen[0] is seen[1]
