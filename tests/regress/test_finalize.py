"""Finalizers: what is done to an event when no callback of its can be running any more.

In the raw layer and by Event.finalize that is a callback of the program's; close() does it itself.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from common import is_open

from pylibevent import (
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_TRIG_DEFER_CALLBACKS,
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    Event,
    EventBase,
    Listener,
    Timer,
    ffi,
    lib,
)

from .helpers import SOON, Raw, nothing, script, timeval

Sockets = tuple[socket.socket, socket.socket]
ROUND = EVLOOP_ONCE | EVLOOP_NONBLOCK


class Thing:
    """An argument, to see whether somebody has it still."""


def ended(sock: socket.socket) -> bool:
    """Whether the other end was closed: by then, not some time later."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


# ---- the classes ----


@pytest.mark.parametrize("state", ["new", "added", "active", "added and active"])
def test_a_closed_event_is_not_called_and_has_let_go_of_its_arguments(
    base: EventBase, state: str
) -> None:
    seen: list[Any] = []
    thing = Thing()
    alive = weakref.ref(thing)
    event = Event(base, -1, EV_TIMEOUT, lambda *args: seen.append(args), thing)
    del thing
    if "added" in state:
        event.add(0.001)
    if "active" in state:
        event.active(EV_TIMEOUT)
    event.close()
    assert alive() is None
    Timer(base, nothing).add(0.003)
    assert base.dispatch() == 1
    assert seen == []


def use(call: Callable[[Event], object]) -> Any:
    return call


@pytest.mark.parametrize(
    "call",
    [
        use(lambda event: event.add(10)),
        use(lambda event: event.active(EV_TIMEOUT)),
        use(lambda event: event.delete()),
        use(lambda event: event.remove_timer()),
        use(lambda event: event.pending()),
        use(lambda event: event.ptr),
    ],
    ids=["add", "active", "delete", "remove_timer", "pending", "ptr"],
)
def test_a_closed_event_is_not_used_again(base: EventBase, call: Callable[[Event], Any]) -> None:
    event = Event(base, -1, EV_TIMEOUT, nothing)
    event.add(10)
    event.close()
    with pytest.raises(ClosedError):
        call(event)
    assert base.dispatch() == 1


@pytest.mark.parametrize("persist", [0, EV_PERSIST])
@pytest.mark.parametrize("n", [2, 5])
def test_the_first_of_several_active_ones_closes_them_all(
    base: EventBase, n: int, persist: int
) -> None:
    called: list[int] = []
    alive = []
    events: list[Event] = []

    def close_all(_fd: int, _what: int, i: int, _thing: Thing) -> None:
        called.append(i)
        for event in events:
            event.close()

    for i in range(n):
        thing = Thing()
        alive.append(weakref.ref(thing))
        events.append(Event(base, -1, persist, close_all, i, thing))
        events[-1].active(EV_TIMEOUT)
    del thing
    assert base.dispatch() == 1
    assert len(called) == 1
    assert [ref() for ref in alive] == [None] * n


def test_in_its_own_callback_the_arguments_stay_until_it_returns(base: EventBase) -> None:
    thing = Thing()
    alive = weakref.ref(thing)
    seen: list[bool] = []

    def called(_fd: int, _what: int, _thing: Thing) -> None:
        event.close()
        seen.append(alive() is not None)

    event = Event(base, -1, EV_PERSIST, called, thing)
    del thing
    event.active(EV_READ)
    base.dispatch()
    assert seen == [True]
    assert alive() is None


def test_close_in_another_thread_comes_back_when_the_callback_has(base: EventBase) -> None:
    """Then, and not before, nobody has the arguments any more."""
    thing = Thing()
    alive = weakref.ref(thing)
    entered, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def called(_fd: int, _what: int, _thing: Thing) -> None:
        entered.set()
        assert go_on.wait(SOON)
        order.append("callback")

    def close() -> None:
        event.close()
        order.append("closed")

    event = Event(base, -1, EV_PERSIST, called, thing)
    del thing
    event.active(EV_READ)
    loop = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,), daemon=True)
    loop.start()
    assert entered.wait(SOON)
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    assert alive() is not None
    go_on.set()
    closing.join(SOON)
    base.loopbreak()
    loop.join(SOON)
    assert order == ["callback", "closed"]
    assert alive() is None


@pytest.mark.parametrize("options", [0, BEV_OPT_DEFER_CALLBACKS])
@pytest.mark.parametrize("when", ["before", "in read", "in event"])
def test_a_closed_bufferevent_calls_nothing_any_more_and_lets_go(
    base: EventBase, sockets: Sockets, options: int, when: str
) -> None:
    """With input, the end of it and room to write all there for it to tell."""
    a, b = sockets
    a.send(b"x" * 100)
    a.shutdown(socket.SHUT_WR)
    called: list[str] = []
    thing = Thing()
    alive = weakref.ref(thing)

    def on(kind: str) -> Callable[..., None]:
        def callback(bev: BufferEvent, *_args: Any) -> None:
            called.append(kind)
            if kind in when:
                bev.close()

        return callback

    bev = BufferEvent.socket(base, b.detach(), BEV_OPT_CLOSE_ON_FREE | options)
    read, write = on("read"), on("write")
    if when == "in event":
        bev.setcb(None, None, on("event"), thing)
    else:
        bev.setcb(read, write, on("event"), thing)
    del thing
    bev.enable(EV_READ | EV_WRITE)
    if when == "before":
        bev.trigger(EV_READ | EV_WRITE, BEV_TRIG_DEFER_CALLBACKS)
        bev.close()
    base.dispatch()
    assert called[-1:] == ([] if when == "before" else [when.split()[1]])
    assert called.count("event") == (when == "in event")
    assert bev.closed
    assert alive() is None
    assert ended(a)


def test_one_of_a_pair_goes_with_bytes_on_the_way_and_the_other_in_its_callback(
    base: EventBase,
) -> None:
    seen: list[bytes] = []
    one, two = BufferEvent.pair(base)

    def read(bev: BufferEvent, *_what: object) -> None:
        seen.append(bev.read())
        bev.close()

    two.setcb(read, None, read)
    two.enable(EV_READ)
    one.write(b"x")
    one.close()
    base.dispatch()
    assert seen == [b"x"]
    assert two.closed


def test_the_base_may_go_right_behind_a_bufferevent(sockets: Sockets) -> None:
    """What was to be done in the next round of the loop is done: the descriptor is closed."""
    a, b = sockets
    base = EventBase()
    thing = Thing()
    alive = weakref.ref(thing)
    bev = BufferEvent.socket(base, b.detach())
    bev.setcb(nothing, nothing, nothing, thing)
    del thing
    bev.enable(EV_READ | EV_WRITE)
    fd = bev.fd
    bev.close()
    base.close()
    assert not is_open(fd)
    assert alive() is None
    assert a.recv(1) == b""


def test_a_base_that_is_closed_lets_go_of_all_arguments(sockets: Sockets) -> None:
    base = EventBase()
    things = [Thing() for _ in range(4)]
    alive = [weakref.ref(thing) for thing in things]
    Event(base, sockets[0], EV_READ, nothing, things[0]).add()
    Timer(base, nothing, things[1]).add(60)
    bev = BufferEvent.socket(base, sockets[1].detach())
    bev.setcb(nothing, None, None, things[2])
    Listener.bind(base, nothing, ("127.0.0.1", 0), things[3])
    things.clear()
    assert None not in [ref() for ref in alive]
    base.close()
    assert [ref() for ref in alive] == [None] * 4


# ---- Event.finalize ----


@pytest.mark.parametrize("state", ["new", "added", "active", "was active"])
def test_a_finalizer_is_called_in_place_of_the_callback(base: EventBase, state: str) -> None:
    seen: list[Any] = []
    thing = Thing()
    alive = weakref.ref(thing)

    def finalized(of: Event, *args: Any) -> None:
        seen.append((of is event, of.closed, len(args), args[0] is alive()))

    event = Event(base, -1, EV_TIMEOUT, lambda *_args: seen.append("called"), thing)
    del thing
    if state == "added":
        event.add(10)
    elif "active" in state:
        event.active(EV_TIMEOUT)
    if state == "was active":
        base.dispatch()
        assert seen.pop() == "called"
    event.finalize(finalized)
    assert event.closed
    assert seen == []
    assert base.dispatch() == 1
    assert seen == [(True, True, 1, True)]
    assert alive() is None


@pytest.mark.parametrize("again", [1, 2])
def test_an_event_is_finalized_once(base: EventBase, again: int) -> None:
    seen: list[int] = []
    event = Timer(base, nothing)
    event.finalize(lambda _event: seen.append(1))
    for _ in range(again):
        with pytest.raises(ClosedError):
            event.finalize(lambda _event: seen.append(2))
        with pytest.raises(ClosedError):
            event.add(1)
        event.close()
    base.dispatch()
    assert seen == [1]


@pytest.mark.parametrize("persist", [0, EV_PERSIST])
def test_each_of_two_finalizes_both(base: EventBase, persist: int) -> None:
    counts = [0, 0]
    events: list[Event] = []

    def finalized(_event: Event, i: int) -> None:
        counts[i] += 100

    def called(_fd: int, _what: int, i: int) -> None:
        counts[i] += 1
        for event in events:
            event.finalize(finalized)

    events += [Event(base, -1, persist, called, i) for i in (0, 1)]
    for event in events:
        event.active(EV_TIMEOUT)
    base.dispatch()
    assert counts == [101, 100]


def test_the_end_of_a_base_runs_its_finalizers() -> None:
    seen: list[int] = []
    base = EventBase()
    events = [Timer(base, nothing, i) for i in range(3)]
    events[0].add(10)
    events[1].active(EV_TIMEOUT)
    for event in events:
        event.finalize(lambda _event, i: seen.append(i))
    base.close()
    assert sorted(seen) == [0, 1, 2]


def test_finalize_in_another_thread_does_not_wait_for_the_callback(base: EventBase) -> None:
    entered, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def called(_fd: int, _what: int) -> None:
        entered.set()
        assert go_on.wait(SOON)
        order.append("callback")

    event = Event(base, -1, EV_PERSIST, called)
    event.active(EV_READ)
    loop = threading.Thread(target=base.dispatch, daemon=True)
    loop.start()
    assert entered.wait(SOON)
    event.finalize(lambda _event: order.append("finalizer"))
    order.append("returned")
    go_on.set()
    loop.join(SOON)
    assert order == ["returned", "callback", "finalizer"]


def test_what_a_finalizer_raises_leaves_dispatch(base: EventBase) -> None:
    def finalized(_event: Event) -> None:
        raise KeyError("x")

    Timer(base, nothing).finalize(finalized)
    with pytest.raises(KeyError):
        base.dispatch()
    assert base.dispatch() == 1


def test_a_finalizer_may_finalize_another_and_make_new_ones(base: EventBase) -> None:
    seen: list[str] = []
    other = Timer(base, nothing)

    def finalized(_event: Event) -> None:
        seen.append("first")
        other.finalize(lambda _event: seen.append("other"))
        Timer(base, seen.append, "new").add(0)

    Timer(base, nothing).finalize(finalized)
    assert base.dispatch() == 1
    assert sorted(seen) == ["first", "new", "other"]


# ---- the raw layer ----


class Counter:
    """Counts 1 for a callback and 100 for a finalizer, as libevent's own tests do."""

    def __init__(self, raw: Raw) -> None:
        self.count = 0
        self.argument = raw.handle(self)
        self.callback = raw.callback(self._called)
        self.finalizer = raw.callback(self._finalized, "event_finalize_callback_fn")

    def _called(self, _fd: int, _what: int, arg: Any) -> None:
        assert ffi.from_handle(arg) is self
        self.count += 1

    def _finalized(self, _event: Any, arg: Any) -> None:
        assert ffi.from_handle(arg) is self
        self.count += 100


@pytest.fixture
def counter(raw: Raw) -> Counter:
    return Counter(raw)


@pytest.mark.parametrize("state", ["new", "added", "active", "was active"])
def test_raw_a_finalizer_is_called_in_place_of_the_callback(
    raw_base: Any, counter: Counter, state: str
) -> None:
    event = lib.evtimer_new(raw_base, counter.callback, counter.argument)
    if state == "added":
        lib.event_add(event, timeval(10))
    elif "active" in state:
        lib.event_active(event, lib.EV_TIMEOUT, 1)
    if state == "was active":
        assert lib.event_base_dispatch(raw_base) == 1
        assert counter.count == 1
        counter.count = 0
    assert lib.event_free_finalize(0, event, counter.finalizer) == 0
    assert lib.event_base_dispatch(raw_base) == 1
    assert counter.count == 100


@pytest.mark.parametrize("then", ["add", "delete", "active"])
def test_raw_an_event_that_is_being_finalized_cannot_be_armed_nor_saved(
    raw: Raw, raw_base: Any, counter: Counter, then: str
) -> None:
    event = raw.event()
    lib.evtimer_assign(event, raw_base, counter.callback, counter.argument)
    assert lib.event_finalize(0, event, counter.finalizer) == 0
    assert event.ev_evcallback.evcb_flags & lib.EVLIST_FINALIZING
    if then == "add":
        assert lib.event_add(event, timeval(10)) == -1
    elif then == "delete":
        lib.event_del(event)
    else:
        lib.event_active(event, lib.EV_TIMEOUT, 1)
    assert lib.event_base_dispatch(raw_base) == 1
    assert counter.count == 100


def test_raw_without_a_base_there_is_nothing_to_finalize(raw: Raw, counter: Counter) -> None:
    event = raw.event()
    lib.event_set(event, -1, 0, counter.callback, counter.argument)
    assert lib.event_finalize(0, event, counter.finalizer) == -1


@pytest.mark.parametrize("persist", [0, lib.EV_PERSIST])
def test_raw_each_of_two_finalizes_both_and_the_finalizers_free(
    raw: Raw, raw_base: Any, persist: int
) -> None:
    """The callback of the first keeps that of the second from running."""
    counts = [0, 0]
    freed: list[Any] = []

    def finalized(event: Any, arg: Any) -> None:
        counts[ffi.from_handle(arg)] += 100
        freed.append(event)
        lib.event_free(event)

    finalizer = raw.callback(finalized, "event_finalize_callback_fn")

    def called(_fd: int, _what: int, arg: Any) -> None:
        counts[ffi.from_handle(arg)] += 1
        for event in events:
            lib.event_finalize(0, event, finalizer)

    callback = raw.callback(called)
    events = [lib.event_new(raw_base, -1, persist, callback, raw.handle(i)) for i in (0, 1)]
    for event in events:
        lib.event_active(event, lib.EV_TIMEOUT, 1)
    lib.event_base_dispatch(raw_base)
    assert counts == [101, 100]
    assert freed == events


@pytest.mark.parametrize("run", [True, False])
def test_raw_a_base_that_is_freed_runs_the_finalizers_or_not(
    raw: Raw, counter: Counter, run: bool
) -> None:
    base = lib.event_base_new()
    event = raw.event()
    lib.evtimer_assign(event, base, counter.callback, counter.argument)
    lib.event_active(event, lib.EV_TIMEOUT, 1)
    lib.event_finalize(0, event, counter.finalizer)
    if run:
        lib.event_base_free(base)
    else:
        lib.event_base_free_nofinalize(base)
    assert counter.count == (100 if run else 0)


def test_raw_a_finalizer_may_make_the_event_anew(raw: Raw, raw_base: Any) -> None:
    rounds: list[int] = []

    def finalized(ev: Any, _arg: Any) -> None:
        rounds.append(lib.event_assign(ev, raw_base, -1, 0, ffi.NULL, ffi.NULL))

    finalizer = raw.callback(finalized, "event_finalize_callback_fn")
    event = raw.event()
    lib.event_assign(event, raw_base, -1, lib.EV_TIMEOUT, ffi.NULL, ffi.NULL)
    for _ in range(2):
        assert lib.event_add(event, timeval(60)) == 0
        assert lib.event_finalize(0, event, finalizer) == 0
        assert lib.event_base_dispatch(raw_base) == 1
    assert rounds == [0, 0]


def test_raw_in_debug_mode_a_finalizer_may_make_the_event_anew() -> None:
    out = script("""
lib.event_enable_debug_mode()
base = lib.event_base_new()
@ffi.callback("event_finalize_callback_fn")
def finalized(event, arg):
    print(lib.event_assign(event, base, -1, lib.EV_TIMEOUT, ffi.NULL, ffi.NULL))
event = lib.event_new(base, -1, lib.EV_TIMEOUT, ffi.NULL, base)
for _ in range(2):
    assert lib.event_add(event, ffi.NULL) == 0
    assert lib.event_finalize(0, event, finalized) == 0
    lib.event_base_dispatch(base)
lib.event_free(event)
lib.event_base_free(base)
""")
    assert out == ["0", "0"]


def test_raw_the_memory_goes_after_the_finalizer_or_stays() -> None:
    out = script("""
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_size_t
libc.malloc.argtypes = libc.free.argtypes = [ctypes.c_size_t]
libc.realloc.restype = ctypes.c_size_t
libc.realloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
def number(pointer):
    return int(ffi.cast("size_t", pointer))
@ffi.callback("void *(size_t)")
def malloc(size):
    return ffi.cast("void *", libc.malloc(size))
@ffi.callback("void *(void *, size_t)")
def realloc(old, size):
    return ffi.cast("void *", libc.realloc(number(old), size))
@ffi.callback("void(void *)")
def free(old):
    if number(old) in watched:
        print("free", watched[number(old)])
    libc.free(number(old))
@ffi.callback("event_finalize_callback_fn")
def finalized(event, arg):
    print("finalize", watched[number(event)])
watched = {}
lib.event_set_mem_functions(malloc, realloc, free)
base = lib.event_base_new()
one, two = (lib.event_new(base, -1, 0, ffi.NULL, ffi.NULL) for _ in range(2))
watched = {number(one): 1, number(two): 2}
lib.event_free_finalize(0, one, finalized)
lib.event_finalize(0, two, finalized)
lib.event_base_dispatch(base)
print("still", 2)
lib.event_free(two)
watched = {}
lib.event_base_free(base)
""")
    assert " ".join(out) == "finalize 1 free 1 finalize 2 still 2 free 2"


def test_raw_finalize_does_not_wait_for_the_callback_but_its_finalizer_does(
    raw: Raw, raw_base: Any
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def called(_fd: int, _what: int, _arg: Any) -> None:
        entered.set()
        assert go_on.wait(SOON)
        order.append("callback")

    def finalized(_event: Any, _arg: Any) -> None:
        order.append("finalizer")

    event = lib.event_new(raw_base, -1, lib.EV_PERSIST, raw.callback(called), ffi.NULL)
    lib.event_active(event, lib.EV_READ, 1)
    loop = threading.Thread(target=lib.event_base_dispatch, args=(raw_base,), daemon=True)
    loop.start()
    assert entered.wait(SOON)
    finalizer = raw.callback(finalized, "event_finalize_callback_fn")
    assert lib.event_free_finalize(0, event, finalizer) == 0
    order.append("returned")
    go_on.set()
    loop.join(SOON)
    assert order == ["returned", "callback", "finalizer"]


@pytest.mark.parametrize("by", ["loop", "event_base_free"])
def test_raw_a_bufferevent_closes_its_descriptor_in_a_finalizer(by: str) -> None:
    a, b = socket.socketpair()
    base = lib.event_base_new()
    fd = b.detach()
    os.set_blocking(fd, False)
    bev = lib.bufferevent_socket_new(base, fd, lib.BEV_OPT_CLOSE_ON_FREE)
    lib.bufferevent_enable(bev, lib.EV_READ | lib.EV_WRITE)
    with a:
        lib.bufferevent_free(bev)
        assert is_open(fd)
        if by == "loop":
            assert lib.event_base_loop(base, ROUND) in (0, 1)
            assert not is_open(fd)
        lib.event_base_free(base)
        assert not is_open(fd)
        assert a.recv(1) == b""
