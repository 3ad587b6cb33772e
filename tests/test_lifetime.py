"""Who keeps what alive, and closing anything at any moment."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import run_script

from pylibevent import (
    BEV_EVENT_EOF,
    BEV_OPT_DEFER_CALLBACKS,
    EV_PERSIST,
    EV_READ,
    EV_SIGNAL,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    EvBuffer,
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
from pylibevent import _callbacks as cb

Sockets = tuple[socket.socket, socket.socket]
RunUntil = Callable[..., None]
ANY_PORT = ("127.0.0.1", 0)


class Token:
    """Something to hold a weak reference to."""


class Handler:
    """Holds the thing whose callback it is: a cycle as in real programs."""

    def __init__(self) -> None:
        self.thing: Any = None
        self.calls = 0

    def __call__(self, *_args: Any) -> None:
        self.calls += 1


def nothing(*_args: Any) -> None:
    pass


@pytest.fixture
def no_gc() -> Iterator[None]:
    """What dies here dies by its reference count alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- what is pending lives ----


def test_a_pending_timer_lives_without_a_name(base: EventBase) -> None:
    seen: list[int] = []
    Timer(base, seen.append, 1).add(0.001)
    gc.collect()
    base.dispatch()
    assert seen == [1]


def test_a_pending_event_lives_without_a_name(base: EventBase, sockets: Sockets) -> None:
    seen: list[int] = []
    Event(base, sockets[0], EV_READ, lambda fd, what: seen.append(what)).add()
    gc.collect()
    sockets[1].send(b"!")
    base.dispatch()
    assert seen == [EV_READ]


def test_an_active_event_lives_without_a_name(base: EventBase) -> None:
    seen: list[int] = []
    Event(base, -1, 0, lambda fd, what: seen.append(what)).active(EV_WRITE)
    gc.collect()
    base.dispatch()
    assert seen == [EV_WRITE]


def test_a_pending_signal_lives_without_a_name(base: EventBase, run_until: RunUntil) -> None:
    seen: list[int] = []
    Signal(base, signal.SIGUSR1, seen.append).add()
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(lambda: seen)
    assert seen == [signal.SIGUSR1]


def test_an_open_bufferevent_lives_without_a_name(base: EventBase, sockets: Sockets) -> None:
    seen: list[bytes] = []

    def readable(bev: BufferEvent) -> None:
        seen.append(bev.read())
        bev.close()

    def start() -> None:
        bev = BufferEvent.socket(base, sockets[0].detach())
        bev.setcb(readable)
        bev.enable(EV_READ)

    start()
    gc.collect()
    sockets[1].send(b"hello")
    base.dispatch()
    assert seen == [b"hello"]


def test_an_open_listener_lives_without_a_name(base: EventBase, run_until: RunUntil) -> None:
    seen: list[Any] = []

    def accepted(_listener: Listener, fd: int, address: Any) -> None:
        os.close(fd)
        seen.append(address)

    where = Listener.bind(base, accepted, ANY_PORT).address
    gc.collect()
    with socket.create_connection(where) as client:
        run_until(lambda: seen)
        assert seen == [client.getsockname()]


def test_a_base_lives_as_long_as_its_event(no_gc: None) -> None:
    seen: list[int] = []
    timer = Timer(EventBase(), seen.append, 1)
    timer.add(0)
    timer.base.dispatch()
    timer.base.close()
    assert seen == [1]


# ---- what is neither pending nor named is freed ----


def watched(make: Callable[[Token], Any]) -> tuple[Any, weakref.ref[Token]]:
    token = Token()
    return make(token), weakref.ref(token)


def test_a_timer_that_was_called_is_freed(base: EventBase, no_gc: None) -> None:
    timer, token = watched(lambda token: Timer(base, nothing, token))
    timer.add(0)
    del timer
    assert token() is not None
    base.dispatch()
    assert token() is None


def test_a_timer_is_gone_as_soon_as_its_callback_has_returned(base: EventBase, no_gc: None) -> None:
    seen: list[Any] = []
    timer, token = watched(lambda token: Timer(base, nothing, token))
    timer.add(0)
    del timer
    Timer(base, lambda: seen.append(token())).add(0.002)
    base.dispatch()
    assert seen == [None]


def test_an_event_that_was_called_is_freed(base: EventBase, sockets: Sockets, no_gc: None) -> None:
    event, token = watched(lambda token: Event(base, sockets[0], EV_WRITE, nothing, token))
    event.add()
    del event
    base.dispatch()
    assert token() is None


def test_an_event_that_timed_out_is_freed(base: EventBase, sockets: Sockets, no_gc: None) -> None:
    event, token = watched(lambda token: Event(base, sockets[0], EV_READ, nothing, token))
    event.add(0.001)
    del event
    base.dispatch()
    assert token() is None


def test_once_is_freed(base: EventBase, sockets: Sockets, no_gc: None) -> None:
    _, timeout = watched(lambda token: base.once(-1, EV_TIMEOUT, nothing, token))
    _, later = watched(lambda token: base.once(-1, EV_TIMEOUT, nothing, token, timeout=0.001))
    _, writer = watched(lambda token: base.once(sockets[0], EV_WRITE, nothing, token))
    assert None not in (timeout(), later(), writer())
    base.dispatch()
    assert (timeout(), later(), writer()) == (None, None, None)


@pytest.mark.parametrize("end", ["delete", "close", "remove_timer"])
def test_a_timer_that_was_taken_back_is_freed(base: EventBase, no_gc: None, end: str) -> None:
    timer, token = watched(lambda token: Timer(base, nothing, token, persist=True))
    timer.add(3600)
    getattr(timer, end)()
    del timer
    assert token() is None


def test_a_persistent_timer_that_ended_itself_is_freed(base: EventBase, no_gc: None) -> None:
    timers: list[Timer] = []
    timer, token = watched(lambda token: Timer(base, lambda _: timers.pop().delete(), token))
    timers.append(timer)
    timer.add(0)
    del timer
    base.dispatch()
    assert token() is None


def test_an_event_that_was_never_added_is_freed(base: EventBase, no_gc: None) -> None:
    event, token = watched(lambda token: Event(base, -1, EV_READ, nothing, token))
    del event
    assert token() is None


def test_an_event_that_could_not_be_added_is_freed(base: EventBase, no_gc: None) -> None:
    fd = os.dup(0)
    os.close(fd)
    event, token = watched(lambda token: Event(base, fd, EV_READ, nothing, token))
    with pytest.raises(OSError, match="event_add"):
        event.add()
    del event
    assert token() is None


def test_an_event_made_active_and_pending_is_freed_when_it_is_neither(
    base: EventBase, sockets: Sockets, no_gc: None
) -> None:
    event, token = watched(
        lambda token: Event(base, sockets[0], EV_READ | EV_PERSIST, nothing, token)
    )
    event.add()
    event.active(EV_READ)
    base.loop(EVLOOP_NONBLOCK)
    event.active(EV_READ)
    event.delete()
    del event
    assert token() is None


def test_a_signal_that_was_deleted_is_freed(base: EventBase, no_gc: None) -> None:
    """Also after it was called, when libevent has looked at it for the last time."""
    event, token = watched(lambda token: Signal(base, signal.SIGUSR1, nothing, token))
    event.add()
    signal.raise_signal(signal.SIGUSR1)
    base.loop(EVLOOP_ONCE)
    event.delete()
    del event
    assert token() is None


def test_a_signal_that_does_not_persist_is_freed(base: EventBase, no_gc: None) -> None:
    event, token = watched(lambda token: Event(base, signal.SIGUSR1, EV_SIGNAL, nothing, token))
    event.add()
    del event
    signal.raise_signal(signal.SIGUSR1)
    base.loop(EVLOOP_ONCE)
    base.loop(EVLOOP_NONBLOCK)
    assert token() is None


def test_a_signal_with_several_deliveries_is_not_freed_between_them() -> None:
    """libevent calls a signal's event once for each delivery and looks at it in between."""
    run_script("""
import signal
from pylibevent import *
base = EventBase()
seen = []
for what in (EV_SIGNAL, EV_SIGNAL | EV_PERSIST):
    def fired(signum, flags, end):
        seen.append(flags)
        for event in end:
            event.close()
    end = []
    event = Event(base, signal.SIGUSR1, what, fired, end)
    event.add()
    if what & EV_PERSIST:
        end.append(event)
    del event, end
    for _ in range(5):
        signal.raise_signal(signal.SIGUSR1)
    junk = [bytes(200) for _ in range(100)]
    base.loop(EVLOOP_ONCE)
    base.loop(EVLOOP_NONBLOCK)
    assert 1 <= len(seen) <= 5, seen
    seen.clear()
base.close()
""")


def test_close_lets_go_of_callback_and_arguments(base: EventBase, no_gc: None) -> None:
    event, token = watched(lambda token: Event(base, -1, EV_READ, lambda *_: token, token))
    event.close()
    assert token() is None


def test_close_of_a_bufferevent_lets_go_of_callbacks_and_arguments(
    base: EventBase, no_gc: None
) -> None:
    token = Token()
    gone = weakref.ref(token)
    a, b = BufferEvent.pair(base)
    a.setcb(functools.partial(nothing, token), nothing, nothing, token)
    del token
    a.close()
    assert gone() is None
    b.close()


def test_setcb_lets_go_of_the_callbacks_before(base: EventBase, no_gc: None) -> None:
    token = Token()
    gone = weakref.ref(token)
    a, b = BufferEvent.pair(base)
    a.setcb(nothing, nothing, nothing, token)
    del token
    a.setcb()
    assert gone() is None
    a.close()
    b.close()


def test_close_of_a_listener_lets_go_of_callbacks_and_arguments(
    base: EventBase, no_gc: None
) -> None:
    token = Token()
    gone = weakref.ref(token)
    listener = Listener.bind(base, functools.partial(nothing, token), ANY_PORT, token)
    listener.set_error_cb(functools.partial(nothing, token))
    del token
    listener.close()
    assert gone() is None


def test_a_listener_lets_go_of_the_callback_before(base: EventBase, no_gc: None) -> None:
    token = Token()
    gone = weakref.ref(token)
    listener = Listener.bind(base, nothing, ANY_PORT, token)
    del token
    listener.set_cb(nothing)
    assert gone() is None
    listener.close()


# ---- no cycle survives close() ----


def busy(base: EventBase, sockets: Sockets) -> list[weakref.ref[Any]]:
    """One of each on the base, each holding itself by its callback; what to look at later."""
    gone: list[weakref.ref[Any]] = []

    def of_its_own(make: Callable[[Handler], Any]) -> Any:
        handler = Handler()
        thing = handler.thing = make(handler)
        gone.extend((weakref.ref(handler), weakref.ref(thing)))
        return thing

    of_its_own(lambda handler: Event(base, sockets[0], EV_READ, handler)).add()
    of_its_own(lambda handler: Timer(base, handler, persist=True)).add(0.001)
    of_its_own(lambda handler: Signal(base, signal.SIGUSR1, handler)).add()
    a, b = BufferEvent.pair(base)
    c = BufferEvent.socket(base, sockets[1].detach())
    for bev in (a, b, c):
        handler = Handler()
        handler.thing = bev
        bev.setcb(handler, handler, handler, a, b, c)
        bev.input.add_cb(handler, bev.input)
        bev.enable(EV_READ)
        bev.write(b"x")
        gone += map(weakref.ref, (handler, bev, bev.input, bev.output))
    listener = of_its_own(lambda handler: Listener.bind(base, handler, ANY_PORT))
    listener.set_error_cb(Handler())
    return gone


def test_closing_the_base_frees_all_that_it_held(sockets: Sockets, no_gc: None) -> None:
    base = EventBase()
    gone = busy(base, sockets)
    gone.append(weakref.ref(base))
    signal.raise_signal(signal.SIGUSR1)
    base.loop(EVLOOP_ONCE)
    assert all(ref() is not None for ref in gone)
    base.close()
    del base
    assert [ref() for ref in gone if ref() is not None] == []


def test_a_closed_base_is_not_kept_by_its_own_exception_handler(no_gc: None) -> None:
    base = EventBase()
    handler = Handler()
    handler.thing = base
    base.exception_handler = handler
    gone = weakref.ref(base)
    base.close()
    del base, handler
    assert gone() is None


@pytest.mark.parametrize("kind", ["event", "timer", "signal", "bev", "listener", "buffer"])
def test_closing_one_frees_what_holds_itself(base: EventBase, kind: str, no_gc: None) -> None:
    handler = Handler()
    thing: Any
    other: BufferEvent | None = None
    if kind == "event":
        thing = Event(base, -1, EV_READ, handler)
        thing.add()
    elif kind == "timer":
        thing = Timer(base, handler)
        thing.add(0)
    elif kind == "signal":
        thing = Signal(base, signal.SIGUSR1, handler)
        thing.add()
    elif kind == "bev":
        thing, other = BufferEvent.pair(base)
        thing.setcb(handler, handler, handler)
    elif kind == "listener":
        thing = Listener.bind(base, handler, ANY_PORT)
    else:
        thing = EvBuffer()
        thing.add_cb(handler)
    handler.thing = thing
    gone = [weakref.ref(thing), weakref.ref(handler)]
    thing.close()
    if other:
        other.close()
    del thing, handler, other
    assert [ref() for ref in gone] == [None, None]


def test_a_dropped_base_with_pending_events_in_a_cycle_is_collected(sockets: Sockets) -> None:
    handler = Handler()
    base = EventBase()
    event = Event(base, sockets[0], EV_READ, handler, base)
    event.add()
    handler.thing = event
    gone: list[weakref.ref[Any]] = [*map(weakref.ref, (base, event, handler))]
    del base, event, handler
    with pytest.warns(ResourceWarning, match="unclosed <EventBase"):
        gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_an_unclosed_base_is_a_resource_warning() -> None:
    base = EventBase()
    with pytest.warns(ResourceWarning, match="unclosed <EventBase"):
        del base


def test_a_closed_base_is_no_warning() -> None:
    base = EventBase()
    base.close()
    del base
    gc.collect()


def test_create_and_close_leave_nothing_behind() -> None:
    def cycle() -> None:
        with EventBase() as base:
            a, b = socket.socketpair()
            handler = Handler()
            Event(base, a, EV_READ | EV_PERSIST, handler).add()
            Timer(base, handler).add(0)
            Signal(base, signal.SIGUSR1, handler).add()
            bev = BufferEvent.socket(base, b)
            bev.setcb(handler, handler, handler, bev)
            bev.enable(EV_READ)
            bev.write(b"x" * 1000)
            one, two = BufferEvent.pair(base)
            one.write(b"x")
            two.enable(EV_READ)
            Listener.bind(base, handler, ANY_PORT)
            base.once(-1, EV_TIMEOUT, handler)
            base.loop(EVLOOP_ONCE)
            a.close()

    for _ in range(20):
        cycle()
    gc.collect()
    objects, slots = len(gc.get_objects()), len(cb.tables)
    for _ in range(1000):
        cycle()
    gc.collect()
    assert len(gc.get_objects()) <= objects + 20
    assert len(cb.tables) == slots


def test_bases_that_could_not_be_made_leave_nothing_behind() -> None:
    from pylibevent import supported_methods

    config = EventConfig()
    for method in supported_methods():
        config.avoid_method(method)
    with pytest.raises(LibeventError):
        EventBase(config)
    slots = len(cb.tables)
    for _ in range(10):
        with pytest.raises(LibeventError):
            EventBase(config)
    assert len(cb.tables) == slots


def test_many_bases_at_once() -> None:
    seen: list[int] = []
    bases = [EventBase() for _ in range(50)]
    for n, base in enumerate(bases):
        Timer(base, seen.append, n).add(0)
    for base in reversed(bases):
        base.dispatch()
        base.close()
    assert seen == list(range(49, -1, -1))


# ---- closing anything inside any callback ----

THINGS = ["base", "event", "timer", "signal", "bev", "pair", "partner", "listener", "once"]
CALLBACKS = [
    "event",
    "timer",
    "persistent timer",
    "signal",
    "once",
    "bev read",
    "bev write",
    "bev event",
    "deferred read",
    "deferred event",
    "pair read",
    "pair event",
    "listener",
    "input buffer",
    "output buffer",
    "buffer in a call",
    "bev trigger",
    "exception handler",
]


class World:
    """One of everything on a base, all of it busy; `act` is called in the callback named."""

    def __init__(self, base: EventBase, when: str, act: Callable[[World], None]) -> None:
        self.base = base
        self.when = when
        self.act = act
        self.happened = 0
        self.fds: list[int] = []
        self.things: dict[str, Any] = {"base": base}
        self.sockets = [*socket.socketpair(), *socket.socketpair()]
        for sock in self.sockets:
            sock.setblocking(False)
        a, b, c, d = self.sockets
        add = self.things.__setitem__
        add("event", Event(base, a, EV_READ | EV_PERSIST, self.at, "event"))
        self.things["event"].add()
        b.send(b"x")
        add("timer", Timer(base, self.at, "timer"))
        self.things["timer"].add(0)
        self.ticker = Timer(base, self.at, "persistent timer", persist=True)
        self.ticker.add(0.001)
        add("signal", Signal(base, signal.SIGUSR1, self.at, "signal"))
        self.things["signal"].add()
        signal.raise_signal(signal.SIGUSR1)
        options = BEV_OPT_DEFER_CALLBACKS if when.startswith("deferred") else 0
        bev = BufferEvent.socket(base, c, options)
        kind = "deferred" if options else "bev"
        bev.setcb(
            lambda bev: self.at(f"{kind} read"),
            lambda bev: self.at(f"{kind} write"),
            lambda bev, what: self.at(f"{kind} event"),
        )
        bev.enable(EV_READ | EV_WRITE)
        bev.write(b"y" * 1000)
        if when.startswith("input"):
            bev.input.add_cb(lambda *_: self.at("input buffer"))
        if when.startswith("output"):
            bev.output.add_cb(lambda *_: self.at("output buffer"))
        d.send(b"z" * 1000)
        if when.endswith(" event"):
            d.shutdown(socket.SHUT_WR)
        add("bev", bev)
        pair, partner = BufferEvent.pair(base)
        pair.setcb(lambda _: self.at("pair read"), None, lambda *_: self.at("pair event"))
        partner.setcb(lambda _: None, None, lambda *_: None)
        pair.enable(EV_READ | EV_WRITE)
        partner.enable(EV_READ | EV_WRITE)
        partner.write(b"w" * 1000)
        add("pair", pair)
        add("partner", partner)
        listener = Listener.bind(base, self.accepted, ANY_PORT)
        add("listener", listener)
        self.clients = [socket.create_connection(listener.address) for _ in range(3)]
        add("once", Event(base, -1, 0, self.at, "once"))
        self.things["once"].active(EV_READ)

    def accepted(self, _listener: Listener, fd: int, _address: Any) -> None:
        self.fds.append(fd)
        self.at("listener")

    def at(self, *what: Any) -> None:
        name = next(name for name in what if isinstance(name, str))
        if name == "event":
            self.sockets[0].recv(1)
        if self.when == "exception handler" and name == "timer" and not self.happened:
            raise RuntimeError(name)
        if name == self.when and not self.happened:
            self.now()

    def now(self) -> None:
        self.happened += 1
        self.act(self)

    def end(self) -> None:
        self.base.close()
        for sock in (*self.sockets, *self.clients):
            sock.close()
        for fd in self.fds:
            os.close(fd)


def run_world(when: str, act: Callable[[World], None]) -> None:
    with EventBase() as base:
        world = World(base, when, act)
        try:
            base.exception_handler = lambda exc, source: world.now()
            if when == "pair event":
                world.things["partner"].flush(EV_READ | EV_WRITE, 2)
            if when == "buffer in a call":
                bev = world.things["bev"]
                bev.output.add_cb(lambda *_: world.at(when))
                bev.write(b"more")
            elif when == "bev trigger":
                bev = world.things["bev"]
                bev.setcb(lambda _: world.at(when))
                bev.trigger(EV_READ, 1 << 16)
            if not base.closed:
                base.loopexit(0.02)
                base.dispatch()
            assert world.happened == 1, when
            if not base.closed:
                seen: list[int] = []
                Timer(base, seen.append, 1).add(0)
                base.loop(EVLOOP_ONCE)
                base.loopexit(0.005)
                base.dispatch()
                assert seen == [1]
        finally:
            world.end()


@pytest.mark.parametrize("when", CALLBACKS)
@pytest.mark.parametrize("what", THINGS)
def test_closing_inside_a_callback(when: str, what: str) -> None:
    run_world(when, lambda world: world.things[what].close())


@pytest.mark.parametrize("when", CALLBACKS)
def test_closing_everything_inside_a_callback(when: str) -> None:
    def close_all(world: World) -> None:
        for thing in reversed(world.things.values()):
            thing.close()

    run_world(when, close_all)


@pytest.mark.parametrize("when", CALLBACKS)
def test_dropping_everything_inside_a_callback(when: str) -> None:
    def drop_all(world: World) -> None:
        things, world.things = world.things, {}
        things.pop("base").close()
        del things
        gc.collect()

    run_world(when, drop_all)


@pytest.mark.parametrize("when", CALLBACKS)
def test_close_after_write_inside_a_callback(when: str) -> None:
    def finish(world: World) -> None:
        for name in ("bev", "pair", "partner"):
            world.things[name].close_after_write()

    run_world(when, finish)


def test_closing_in_the_middle_of_a_close(base: EventBase) -> None:
    """A finalizer of a callback's argument closes what is being closed, and the base."""

    class Closer:
        def __init__(self, *things: Any) -> None:
            self.things = things

        def __del__(self) -> None:
            for thing in self.things:
                thing.close()

    timer = Timer(base, nothing)
    a, b = BufferEvent.pair(base)
    a.setcb(nothing, nothing, nothing, Closer(a, b, timer, base))
    timer.add(3600)
    a.close()
    assert base.closed
    assert b.closed
    assert timer.closed


def test_a_finalizer_may_use_the_base_that_is_being_closed() -> None:
    errors: list[BaseException] = []

    class Late:
        def __init__(self, base: EventBase) -> None:
            self.base = base

        def __del__(self) -> None:
            try:
                Timer(self.base, nothing).add(0)
            except ClosedError as error:
                errors.append(error.with_traceback(None))

    with EventBase() as base:
        Timer(base, nothing, Late(base)).add(3600)
    assert len(errors) == 1


@pytest.mark.parametrize("kind", ["base", "event", "timer", "bev", "listener", "buffer", "config"])
def test_finalizers_in_a_garbage_cycle_may_use_what_is_in_it(kind: str) -> None:
    """The collector calls the finalizers of a cycle in no order; none may find freed memory."""
    run_script(
        """
import gc, sys, warnings
from pylibevent import *
warnings.simplefilter("ignore", ResourceWarning)
kind = sys.argv[1]
class User:
    def __del__(self):
        for name in dir(self.thing):
            if not name.startswith("_"):
                try:
                    getattr(self.thing, name)
                except Exception:
                    pass
        for use in (repr, lambda thing: thing.close(), repr):
            try:
                use(self.thing)
            except LibeventError:
                pass
def make(first):
    user = User() if first else None
    base = EventBase()
    thing = {
        "base": lambda: base,
        "event": lambda: Event(base, -1, EV_READ, int, base),
        "timer": lambda: Timer(base, int, base),
        "bev": lambda: BufferEvent.pair(base)[0],
        "listener": lambda: Listener.bind(base, int, ("127.0.0.1", 0)),
        "buffer": lambda: EvBuffer(b"x" * 100),
        "config": EventConfig,
    }[kind]()
    user = user or User()
    user.thing, user.base, user.me = thing, base, user
    if kind in ("event", "timer"):
        thing.add(100)
    user.buffers = [bev.input for bev in [thing] if kind == "bev"]
gc.disable()
for n in range(40):
    make(n % 2)
    if n % 7 == 0:
        gc.collect()
gc.collect()
""",
        kind,
    )


# ---- use after close ----


def uses_of_a_base(base: EventBase) -> dict[str, Callable[[], object]]:
    return {
        "ptr": lambda: base.ptr,
        "dispatch": base.dispatch,
        "loop": lambda: base.loop(EVLOOP_NONBLOCK),
        "loopexit": base.loopexit,
        "loopbreak": base.loopbreak,
        "loopcontinue": base.loopcontinue,
        "got_exit": lambda: base.got_exit,
        "got_break": lambda: base.got_break,
        "method": lambda: base.method,
        "features": lambda: base.features,
        "npriorities": lambda: base.npriorities,
        "priority_init": lambda: base.priority_init(1),
        "num_events": base.num_events,
        "max_events": base.max_events,
        "gettimeofday_cached": base.gettimeofday_cached,
        "update_cache_time": base.update_cache_time,
        "once": lambda: base.once(-1, EV_TIMEOUT, nothing),
        "once later": lambda: base.once(-1, EV_TIMEOUT, nothing, timeout=1),
        "reinit": base.reinit,
        "with": base.__enter__,
        "Event": lambda: Event(base, -1, EV_READ, nothing),
        "Timer": lambda: Timer(base, nothing),
        "Signal": lambda: Signal(base, signal.SIGUSR1, nothing),
        "BufferEvent.socket": lambda: BufferEvent.socket(base),
        "BufferEvent.pair": lambda: BufferEvent.pair(base),
        "Listener": lambda: Listener.bind(base, nothing, ANY_PORT),
    }


def uses_of_an_event(event: Event) -> dict[str, Callable[[], object]]:
    def set_priority() -> None:
        event.priority = 0

    return {
        "ptr": lambda: event.ptr,
        "add": event.add,
        "add with a time": lambda: event.add(1),
        "active": lambda: event.active(EV_READ),
        "delete": event.delete,
        "remove_timer": event.remove_timer,
        "pending": event.pending,
        "expires_in": lambda: event.expires_in,
        "fd": lambda: event.fd,
        "events": lambda: event.events,
        "priority": lambda: event.priority,
        "set priority": set_priority,
        "with": event.__enter__,
    }


def uses_of_a_bufferevent(bev: BufferEvent) -> dict[str, Callable[[], object]]:
    def set_priority() -> None:
        bev.priority = 0

    def set_fd() -> None:
        bev.fd = -1

    return {
        "ptr": lambda: bev.ptr,
        "setcb": bev.setcb,
        "trigger": lambda: bev.trigger(EV_READ),
        "trigger_event": lambda: bev.trigger_event(BEV_EVENT_EOF),
        "enable": lambda: bev.enable(EV_READ),
        "disable": lambda: bev.disable(EV_READ),
        "enabled": lambda: bev.enabled,
        "set_timeouts": bev.set_timeouts,
        "setwatermark": lambda: bev.setwatermark(EV_READ, 0, 0),
        "getwatermark": lambda: bev.getwatermark(EV_READ),
        "priority": lambda: bev.priority,
        "set priority": set_priority,
        "input": lambda: bev.input,
        "output": lambda: bev.output,
        "write": lambda: bev.write(b"x"),
        "write_buffer": lambda: bev.write_buffer(EvBuffer(b"x")),
        "read": bev.read,
        "read_buffer": lambda: bev.read_buffer(EvBuffer()),
        "flush": lambda: bev.flush(EV_WRITE),
        "fd": lambda: bev.fd,
        "set fd": set_fd,
        "connect": lambda: bev.connect(("127.0.0.1", 9)),
        "connect_hostname": lambda: bev.connect_hostname("localhost", 9),
        "dns_error": lambda: bev.dns_error,
        "lock": lambda: bev.lock().__enter__(),
        "close_after_write": bev.close_after_write,
        "with": bev.__enter__,
    }


def uses_of_a_listener(listener: Listener) -> dict[str, Callable[[], object]]:
    return {
        "ptr": lambda: listener.ptr,
        "enable": listener.enable,
        "disable": listener.disable,
        "enabled": lambda: listener.enabled,
        "set_cb": lambda: listener.set_cb(nothing),
        "set_error_cb": lambda: listener.set_error_cb(nothing),
        "fd": lambda: listener.fd,
        "address": lambda: listener.address,
        "with": listener.__enter__,
    }


def assert_all_closed(uses: dict[str, Callable[[], object]]) -> None:
    wrong = {}
    for name, use in uses.items():
        try:
            use()
        except ClosedError:
            pass
        except Exception as error:
            wrong[name] = repr(error)
        else:
            wrong[name] = "no error"
    assert wrong == {}


def test_use_of_a_closed_base_is_a_closed_error() -> None:
    base = EventBase()
    base.close()
    base.close()
    assert base.closed
    assert not base.running
    assert_all_closed(uses_of_a_base(base))


@pytest.mark.parametrize("by_base", [False, True], ids=["itself", "by its base"])
@pytest.mark.parametrize("kind", ["event", "timer", "signal"])
def test_use_of_a_closed_event_is_a_closed_error(base: EventBase, by_base: bool, kind: str) -> None:
    event = {
        "event": Event(base, -1, EV_READ, nothing),
        "timer": Timer(base, nothing),
        "signal": Signal(base, signal.SIGUSR1, nothing),
    }[kind]
    event.add(1)
    (base if by_base else event).close()
    assert event.closed
    assert "closed" in repr(event)
    assert_all_closed(uses_of_an_event(event))
    event.close()
    assert event.base is base


@pytest.mark.parametrize("by_base", [False, True], ids=["itself", "by its base"])
@pytest.mark.parametrize("kind", ["socket", "pair"])
def test_use_of_a_closed_bufferevent_is_a_closed_error(
    base: EventBase, sockets: Sockets, by_base: bool, kind: str
) -> None:
    if kind == "socket":
        bev = BufferEvent.socket(base, sockets[0])
    else:
        bev, _ = BufferEvent.pair(base)
    input_, output = bev.input, bev.output
    (base if by_base else bev).close()
    assert bev.closed
    assert "closed" in repr(bev)
    assert_all_closed(uses_of_a_bufferevent(bev))
    for buffer in (input_, output):
        with pytest.raises(ClosedError):
            len(buffer)
    bev.close()
    assert bev.partner is None


@pytest.mark.parametrize("by_base", [False, True], ids=["itself", "by its base"])
def test_use_of_a_closed_listener_is_a_closed_error(base: EventBase, by_base: bool) -> None:
    listener = Listener.bind(base, nothing, ANY_PORT)
    (base if by_base else listener).close()
    assert listener.closed
    assert "closed" in repr(listener)
    assert_all_closed(uses_of_a_listener(listener))
    listener.close()


def test_use_in_the_callback_that_closed_the_base_is_a_closed_error(sockets: Sockets) -> None:
    checked: list[bool] = []
    base = EventBase()

    def closing() -> None:
        base.close()
        assert base.closed
        assert_all_closed(uses_of_a_base(base))
        assert_all_closed(uses_of_an_event(timer))
        assert_all_closed(uses_of_a_bufferevent(bev))
        assert_all_closed(uses_of_a_listener(listener))
        for thing in (timer, bev, listener, base):
            thing.close()
        checked.append(True)

    timer = Timer(base, closing, persist=True)
    timer.add(0)
    bev = BufferEvent.socket(base, sockets[0])
    listener = Listener.bind(base, nothing, ANY_PORT)
    assert base.dispatch() == 0
    assert checked == [True]
    assert_all_closed(uses_of_a_base(base))


def test_objects_may_go_in_any_order_after_the_base() -> None:
    base = EventBase()
    timer = Timer(base, nothing)
    timer.add(1)
    bev, partner = BufferEvent.pair(base)
    listener = Listener.bind(base, nothing, ANY_PORT)
    buffer = bev.input
    base.close()
    del base
    for thing in (listener, timer, partner, bev):
        thing.close()
    del listener, timer, partner, bev
    with pytest.raises(ClosedError):
        buffer.add(b"x")


# ---- what no program should do, and may not crash ----


@pytest.mark.parametrize("kind", ["base", "event", "timer", "signal", "listener"])
def test_a_second_init_does_not_crash(kind: str) -> None:
    """The struct of the first is pending in libevent when a second takes its place."""
    run_script(
        """
import gc, signal, socket, sys, warnings
from pylibevent import *
warnings.simplefilter("ignore")
kind = sys.argv[1]
base = EventBase()
seen = []
def make(thing, *args):
    try:
        type(thing).__init__(thing, *args)
    except Exception as error:
        print(type(error))
if kind == "base":
    Timer(base, seen.append, 1).add(0.001)
    Event(base, -1, EV_READ, seen.append).add(0.001)
    make(base)
elif kind == "event":
    a, b = socket.socketpair()
    event = Event(base, a, EV_WRITE | EV_PERSIST, lambda fd, what: event.close())
    event.add(0.001)
    make(event, base, -1, EV_READ, seen.append)
elif kind == "timer":
    timer = Timer(base, seen.append, 1)
    timer.add(0.001)
    make(timer, base, seen.append, 2)
elif kind == "signal":
    sig = Signal(base, signal.SIGUSR1, seen.append)
    sig.add()
    make(sig, base, signal.SIGUSR2, seen.append)
    signal.raise_signal(signal.SIGUSR1)
else:
    listener = Listener.bind(base, seen.append, ("127.0.0.1", 0))
    where = listener.address
    make(listener, base, seen.append, socket.create_server(("127.0.0.1", 0)))
    try:
        client = socket.create_connection(where)
    except OSError:
        pass
gc.collect()
junk = [bytes(n) for n in range(100, 400)]
if not base.closed:
    base.loopexit(0.02)
    try:
        base.dispatch()
    except Exception as error:
        print(error)
base.close()
""",
        kind,
    )


@pytest.mark.parametrize("kind", [EventBase, Event, Timer, Signal, Listener, BufferEvent])
def test_an_object_without_init_does_not_crash(kind: Any) -> None:
    thing = kind.__new__(kind)
    for name in dir(kind):
        if not name.startswith("_"):
            with contextlib.suppress(AttributeError, TypeError, LibeventError):
                getattr(thing, name)()
    del thing


def test_a_bufferevent_has_no_constructor_of_its_own(base: EventBase) -> None:
    with pytest.raises(TypeError, match=r"BufferEvent\.socket"):
        BufferEvent()


# ---- subclasses ----


def test_a_base_may_be_subclassed(no_gc: None) -> None:
    class Mine(EventBase):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    seen: list[str] = []
    mine = Mine("x")
    with mine:
        Timer(mine, lambda: seen.append(mine.name)).add(0)
        mine.dispatch()
    assert seen == ["x"]


def test_a_base_whose_init_failed_early_goes_in_silence() -> None:
    class Broken(EventBase):
        def __init__(self) -> None:
            raise KeyError("early")

    with pytest.raises(KeyError):
        Broken()


def test_events_may_be_subclassed(base: EventBase, no_gc: None) -> None:
    class Countdown(Timer):
        def __init__(self, base: EventBase, n: int) -> None:
            super().__init__(base, self.tick, persist=True)
            self.n = n

        def tick(self) -> None:
            self.n -= 1
            if self.n == 0:
                self.close()

    countdown = Countdown(base, 3)
    countdown.add(0.001)
    assert base.dispatch() == 1
    assert countdown.n == 0
    gone = weakref.ref(countdown)
    del countdown
    assert gone() is None


def test_bufferevents_may_be_subclassed(base: EventBase, sockets: Sockets) -> None:
    class Connection(BufferEvent):
        greeting = b"hello"

    bev = Connection.socket(base, sockets[0])
    assert isinstance(bev, Connection)
    bev.write(bev.greeting)
    bev.close_after_write()
    base.dispatch()
    assert sockets[1].recv(10) == b"hello"
    a, b = Connection.pair(base)
    assert isinstance(a, Connection)
    assert isinstance(b, Connection)


def test_filters_may_be_subclassed(base: EventBase) -> None:
    class Connection(BufferEvent):
        __slots__ = ("name",)

        name: str

    a, b = BufferEvent.pair(base)
    f = Connection.filter(a)
    f.name = "filter"
    assert type(f) is Connection
    assert f.underlying is a
    f.enable(EV_READ)
    b.write(b"hello")
    base.loop(EVLOOP_NONBLOCK)
    assert f.read() == b"hello"


def test_a_filter_has_no_dict(base: EventBase) -> None:
    f = BufferEvent.filter(BufferEvent.pair(base)[0])
    assert type(f) is BufferEvent
    assert not hasattr(f, "__dict__")


def test_listeners_may_be_subclassed(base: EventBase, run_until: RunUntil) -> None:
    class Server(Listener):
        clients: int

    def accepted(server: Listener, fd: int, _address: Any) -> None:
        assert isinstance(server, Server)
        server.clients += 1
        os.close(fd)

    server = Server.bind(base, accepted, ANY_PORT)
    assert isinstance(server, Server)
    server.clients = 0
    with socket.create_connection(server.address):
        run_until(lambda: server.clients)
    server.close()


@pytest.mark.parametrize("closed_first", [False, True])
def test_a_deferred_callback_that_waits_when_the_base_is_closed_keeps_no_buffer(
    closed_first: bool,
) -> None:
    base = EventBase()
    one, other = BufferEvent.pair(base)
    other.setcb(nothing)
    other.enable(EV_READ)
    one.output.add_reference(b"bytes")
    assert len(other.input) == 5
    if closed_first:
        one.close()
        other.close()
    base.close()
    assert cb.pins == {}


def test_deferred_callbacks_at_the_end_call_no_event_of_a_c_library() -> None:
    base = EventBase()
    calls: list[int] = []
    callback = ffi.callback("event_callback_fn", lambda *_args: calls.append(1))
    event = ffi.new("struct event *")
    lib.event_assign(event, base.ptr, -1, 0, callback, ffi.NULL)
    lib.event_active(event, lib.EV_TIMEOUT, 1)
    base.close()
    assert calls == []


def test_an_event_finalized_in_its_callback_that_closes_the_base_is_let_go_of() -> None:
    base = EventBase()
    finalized: list[Event] = []

    def callback() -> None:
        timer.finalize(finalized.append)
        base.close()

    timer = Timer(base, callback)
    timer.add(0)
    base.dispatch()
    assert finalized == [timer]
    assert cb.finalizing == {}
