"""What callbacks raise: it leaves dispatch() as raised, and nothing else is lost by it."""

from __future__ import annotations

import builtins
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_TRIG_DEFER_CALLBACKS,
    BEV_TRIG_IGNORE_WATERMARKS,
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    EvBuffer,
    Event,
    EventBase,
    Listener,
    Signal,
    Timer,
)

Sockets = tuple[socket.socket, socket.socket]
ANY_PORT = ("127.0.0.1", 0)


class Oops(Exception):
    """What the callbacks here raise."""


class OopsBase(BaseException):
    """The same, not an Exception."""


class Token:
    """Something to hold a weak reference to."""


def nothing(*_args: Any) -> None:
    pass


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- each kind of callback ----

Arrange = Callable[[EventBase, contextlib.ExitStack, Callable[..., Any]], Any]
KINDS: dict[str, Arrange] = {}


def kind(function: Arrange) -> Arrange:
    KINDS[function.__name__] = function
    return function


@kind
def event(base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    a, b = map(stack.enter_context, socket.socketpair())
    b.send(b"x")
    thing = Event(base, a, EV_READ, callback)
    thing.add()
    return thing


@kind
def persistent_event(
    base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]
) -> Any:
    a, b = map(stack.enter_context, socket.socketpair())
    b.send(b"x")
    thing = Event(base, a, EV_READ | EV_PERSIST, callback)
    thing.add()
    return thing


@kind
def activated(base: EventBase, _stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    thing = Event(base, -1, 0, callback)
    thing.active(EV_READ)
    return thing


@kind
def timer(base: EventBase, _stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    thing = Timer(base, callback)
    thing.add(0)
    return thing


@kind
def persistent_timer(
    base: EventBase, _stack: contextlib.ExitStack, callback: Callable[..., Any]
) -> Any:
    thing = Timer(base, callback, persist=True)
    thing.add(0.001)
    return thing


@kind
def once(base: EventBase, _stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    base.once(-1, EV_TIMEOUT, callback)


@kind
def signal_event(
    base: EventBase, _stack: contextlib.ExitStack, callback: Callable[..., Any]
) -> Any:
    thing = Signal(base, signal.SIGUSR1, callback)
    thing.add()
    signal.raise_signal(signal.SIGUSR1)
    return thing


def bev_with(
    base: EventBase, stack: contextlib.ExitStack, options: int = 0
) -> tuple[BufferEvent, socket.socket]:
    a, b = socket.socketpair()
    stack.enter_context(b)
    return BufferEvent.socket(base, a, options), b


@kind
def bev_read(base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    bev, peer = bev_with(base, stack)
    bev.setcb(callback)
    bev.enable(EV_READ)
    peer.send(b"x")
    return bev


@kind
def bev_write(base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    bev, _peer = bev_with(base, stack)
    bev.setcb(None, callback)
    bev.write(b"x")
    return bev


@kind
def bev_event(base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    bev, peer = bev_with(base, stack)
    bev.setcb(None, None, callback)
    bev.enable(EV_READ)
    peer.shutdown(socket.SHUT_WR)
    return bev


@kind
def deferred_read(
    base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]
) -> Any:
    bev, peer = bev_with(base, stack, BEV_OPT_DEFER_CALLBACKS)
    bev.setcb(callback)
    bev.enable(EV_READ)
    peer.send(b"x")
    return bev


@kind
def pair_read(base: EventBase, _stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    a, b = BufferEvent.pair(base)
    a.setcb(callback)
    a.enable(EV_READ)
    b.write(b"x")
    return a


@kind
def connected(base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    server = stack.enter_context(socket.create_server(ANY_PORT))
    bev = BufferEvent.socket(base)
    bev.setcb(None, None, callback)
    bev.connect(server.getsockname())
    return bev


@kind
def accept(base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]) -> Any:
    listener = Listener.bind(base, callback, ANY_PORT)
    stack.enter_context(socket.create_connection(listener.address))
    return listener


@kind
def buffer_in_the_loop(
    base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]
) -> Any:
    bev, peer = bev_with(base, stack)
    bev.input.add_cb(callback)
    bev.enable(EV_READ)
    peer.send(b"x")
    return bev


@kind
def python_signal_handler(
    _base: EventBase, stack: contextlib.ExitStack, callback: Callable[..., Any]
) -> Any:
    before = signal.signal(signal.SIGALRM, callback)
    stack.callback(signal.signal, signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    return None


each_kind = pytest.mark.parametrize("name", KINDS)
each_source = pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("buffer_in_the_loop", "python_signal_handler")]
)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def close_given_fd(args: tuple[Any, ...]) -> None:
    """What a listener's callback that did not raise would have to do with its descriptor."""
    if args and isinstance(args[0], Listener):
        os.close(args[1])


@each_kind
@pytest.mark.parametrize("raised", [Oops("x"), OopsBase("x"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_callback_raises_leaves_dispatch_as_it_was_raised(
    base: EventBase, stack: contextlib.ExitStack, name: str, raised: BaseException
) -> None:
    raised = type(raised)(*raised.args)

    def failing(*_args: Any) -> None:
        raise raised

    keep = Timer(base, nothing)
    keep.add(10)
    KINDS[name](base, stack, failing)
    with pytest.raises(type(raised)) as caught:
        base.dispatch()
    assert caught.value is raised
    assert not base.running
    frames = traceback.extract_tb(raised.__traceback__)
    assert frames[0].name == "test_what_a_callback_raises_leaves_dispatch_as_it_was_raised"
    assert frames[-1].name == "failing"
    assert raised.__cause__ is None
    assert raised.__context__ is None


@each_kind
def test_the_loop_can_go_on_afterwards(
    base: EventBase, stack: contextlib.ExitStack, name: str
) -> None:
    calls: list[int] = []

    def failing(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise Oops
        close_given_fd(args)

    KINDS[name](base, stack, failing)
    keep = Timer(base, nothing)
    keep.add(10)
    with pytest.raises(Oops):
        base.dispatch()
    keep.delete()
    seen: list[int] = []
    Timer(base, seen.append, 1).add(0.005)
    base.loopexit(0.05)
    base.dispatch()
    assert seen == [1]


def test_cause_and_context_stay(base: EventBase) -> None:
    def failing() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise Oops("second") from error

    Timer(base, failing).add(0)
    with pytest.raises(Oops) as caught:
        base.dispatch()
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__context__ is caught.value.__cause__
    text = "".join(traceback.format_exception(caught.value))
    assert "direct cause of" in text
    assert text.count("in failing") == 2


def test_dispatch_in_an_except_clause_adds_its_context_as_any_call_does(base: EventBase) -> None:
    def failing() -> None:
        raise Oops

    Timer(base, failing).add(0)
    try:
        raise KeyError("outside")
    except KeyError:
        with pytest.raises(Oops) as caught:
            base.dispatch()
    assert isinstance(caught.value.__context__, KeyError)


def test_the_same_exception_may_be_raised_again_and_again(base: EventBase) -> None:
    error = Oops()

    def failing() -> None:
        raise error

    for _ in range(3):
        Timer(base, failing).add(0)
        with pytest.raises(Oops) as caught:
            base.dispatch()
        assert caught.value is error
        error.__traceback__ = None


def test_an_exception_without_room_for_attributes(base: EventBase) -> None:
    class Tight(Exception):
        __slots__ = ()

    def failing() -> None:
        raise Tight("x")

    Timer(base, failing).add(0)
    with pytest.raises(Tight, match="x"):
        base.dispatch()


def test_generator_exit_and_stop_iteration_pass(base: EventBase) -> None:
    def failing(kind: type[BaseException]) -> None:
        raise kind

    for kind_ in (GeneratorExit, StopIteration, StopAsyncIteration, MemoryError, RecursionError):
        Timer(base, failing, kind_).add(0)
        with pytest.raises(kind_):
            base.dispatch()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs ExceptionGroup")
def test_an_exception_group_passes_whole(base: EventBase) -> None:
    error = builtins.ExceptionGroup("both", [KeyError(1), Oops(2)])  # type: ignore[attr-defined,unused-ignore]

    def failing() -> None:
        raise error

    Timer(base, failing).add(0)
    with pytest.raises(type(error)) as caught:
        base.dispatch()
    assert caught.value is error


def test_an_exception_in_deep_recursion_passes(base: EventBase) -> None:
    def deep(n: int) -> int:
        return deep(n + 1) + 1

    Timer(base, deep, 0).add(0)
    with pytest.raises(RecursionError):
        base.dispatch()
    Timer(base, nothing).add(0)
    assert base.dispatch() == 1


def test_a_generator_that_is_closed_while_it_dispatches(base: EventBase) -> None:
    def run() -> Iterator[int]:
        yield 1
        base.dispatch()

    generator = run()
    next(generator)

    def failing() -> None:
        raise Oops

    Timer(base, failing).add(0)
    with pytest.raises(Oops):
        next(generator)


def test_wrong_arguments_are_the_type_error_of_the_call(base: EventBase) -> None:
    Timer(base, lambda one, two: None, 1).add(0)  # type: ignore[arg-type, misc]
    with pytest.raises(TypeError, match="two"):
        base.dispatch()


@pytest.mark.parametrize("run", ["dispatch", "once", "nonblock", "both"])
def test_every_way_to_run_the_loop_raises(base: EventBase, run: str) -> None:
    def failing() -> None:
        raise Oops

    Timer(base, failing).add(0)
    flags = {
        "dispatch": 0,
        "once": EVLOOP_ONCE,
        "nonblock": EVLOOP_NONBLOCK,
        "both": EVLOOP_ONCE | EVLOOP_NONBLOCK,
    }
    with pytest.raises(Oops):
        base.loop(flags[run])
    assert base.got_break


# ---- nothing is lost ----


def test_the_other_active_events_run_in_the_next_dispatch(base: EventBase) -> None:
    seen: list[int] = []

    def run(_fd: int, _what: int, n: int) -> None:
        seen.append(n)
        if n % 2 == 0:
            raise Oops(n)

    for n in range(10):
        base.once(-1, EV_TIMEOUT, run, n)
    raised = []
    for _ in range(20):
        try:
            base.dispatch()
        except Oops as error:
            raised.append(error.args[0])
        else:
            break
    assert seen == list(range(10))
    assert raised == [0, 2, 4, 6, 8]


def test_readers_timers_and_deferred_callbacks_are_not_lost(
    base: EventBase, stack: contextlib.ExitStack
) -> None:
    counts: dict[str, int] = {}

    def failing(*args: Any, name: str) -> None:
        counts[name] = counts.get(name, 0) + 1
        if args and isinstance(args[0], BufferEvent):
            args[0].input.drain(1000)
        raise Oops(name)

    names = [
        name
        for name in KINDS
        if name not in ("persistent_event", "persistent_timer", "python_signal_handler")
    ]
    for name in names:
        KINDS[name](base, stack, lambda *args, name=name: failing(*args, name=name))
    raised = []
    base.loopexit(1)
    for _ in range(100):
        try:
            base.loop(EVLOOP_ONCE)
        except Oops as error:
            raised.append(error.args[0])
        if set(counts) >= set(names):
            break
    assert set(counts) == set(names)
    assert sorted(raised) == sorted(name for name, n in counts.items() for _ in range(n))


def test_two_exceptions_of_one_round_leave_one_after_the_other(base: EventBase) -> None:
    """A deferred run calls the read and the event callback without a look at the loop."""
    a, b = BufferEvent.pair(base)

    def failing(_bev: BufferEvent, *what: Any) -> None:
        raise Oops("event" if what else "read")

    a.setcb(failing, None, failing)
    a.trigger(EV_READ, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS)
    a.trigger_event(BEV_EVENT_EOF, BEV_TRIG_DEFER_CALLBACKS)
    raised = []
    for _ in range(4):
        try:
            base.dispatch()
        except Oops as error:
            raised.append(error.args[0])
    assert sorted(raised) == ["event", "read"]
    a.close()
    b.close()


def test_an_exception_that_nobody_came_for_is_reported_when_the_base_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    with EventBase() as base:
        a, _ = BufferEvent.pair(base)

        def failing(_bev: BufferEvent, *what: Any) -> None:
            raise Oops("event" if what else "read")

        a.setcb(failing, None, failing)
        a.trigger(EV_READ, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS)
        a.trigger_event(BEV_EVENT_EOF, BEV_TRIG_DEFER_CALLBACKS)
        with pytest.raises(Oops) as caught:
            base.dispatch()
    assert {caught.value.args[0], *(error.args[0] for error in reported)} == {"event", "read"}
    reported.clear()


def test_connections_that_wait_are_accepted_after_the_exception(
    base: EventBase, stack: contextlib.ExitStack
) -> None:
    accepted: list[int] = []

    def callback(_listener: Listener, fd: int, _address: Any) -> None:
        accepted.append(fd)
        raise Oops(fd)

    listener = Listener.bind(base, callback, ANY_PORT)
    clients = [
        stack.enter_context(socket.create_connection(listener.address, timeout=5)) for _ in range(5)
    ]
    for n in range(5):
        with pytest.raises(Oops):
            base.dispatch()
        assert len(accepted) == n + 1
    for client in clients:  # closed, as nobody took them over
        assert client.recv(10) == b""
    listener.close()


def test_a_descriptor_that_a_bufferevent_took_stays_open_after_an_exception(
    base: EventBase, stack: contextlib.ExitStack
) -> None:
    bevs: list[BufferEvent] = []

    def callback(_listener: Listener, fd: int, _address: Any) -> None:
        bevs.append(BufferEvent.socket(base, fd))
        raise Oops

    listener = Listener.bind(base, callback, ANY_PORT)
    client = stack.enter_context(socket.create_connection(listener.address, timeout=5))
    with pytest.raises(Oops):
        base.dispatch()
    bevs[0].write(b"still here")
    bevs[0].close_after_write()
    listener.close()
    base.dispatch()
    assert client.recv(20) == b"still here"


def test_all_deliveries_of_a_signal_come_although_the_first_raised(base: EventBase) -> None:
    seen: list[int] = []

    def callback(signum: int) -> None:
        seen.append(signum)
        if len(seen) == 1:
            raise Oops

    event = Signal(base, signal.SIGUSR1, callback)
    event.add()
    for _ in range(3):
        signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(Oops):
        base.loop(EVLOOP_ONCE)
    base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)
    assert len(seen) == 3
    event.close()


def test_a_persistent_timer_ticks_on_after_its_exception(base: EventBase) -> None:
    seen: list[int] = []

    def tick() -> None:
        seen.append(1)
        if len(seen) == 5:
            ticker.close()
        raise Oops

    ticker = Timer(base, tick, persist=True)
    ticker.add(0.001)
    for _ in range(5):
        with pytest.raises(Oops):
            base.dispatch()
    assert base.dispatch() == 1
    assert len(seen) == 5


def test_input_stays_for_the_next_dispatch(base: EventBase, sockets: Sockets) -> None:
    seen: list[bytes] = []

    def readable(bev: BufferEvent) -> None:
        if not seen:
            seen.append(b"")
            raise Oops
        seen.append(bev.read())
        bev.close()

    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(readable)
    bev.enable(EV_READ)
    sockets[1].send(b"first ")
    with pytest.raises(Oops):
        base.dispatch()
    sockets[1].send(b"second")
    base.dispatch()
    assert seen == [b"", b"first second"]


def test_an_exception_and_loopexit_at_once(base: EventBase) -> None:
    def failing() -> None:
        base.loopexit()
        base.loopbreak()
        raise Oops

    Timer(base, failing).add(0)
    keep = Timer(base, nothing)
    keep.add(0.01)
    with pytest.raises(Oops):
        base.dispatch()
    while keep.pending():
        base.loop(EVLOOP_ONCE)


def test_an_exception_and_close_at_once() -> None:
    def failing() -> None:
        base.close()
        raise Oops

    base = EventBase()
    Timer(base, failing).add(0)
    with pytest.raises(Oops):
        base.dispatch()
    assert base.closed


def test_an_exception_in_an_inner_loop_leaves_the_inner_dispatch(base: EventBase) -> None:
    seen: list[str] = []

    def failing() -> None:
        raise Oops

    with EventBase() as inner:
        Timer(inner, failing).add(0)

        def outer() -> None:
            with pytest.raises(Oops):
                inner.dispatch()
            seen.append("caught")

        Timer(base, outer).add(0)
        Timer(base, seen.append, "after").add(0.001)
        base.dispatch()
    assert seen == ["caught", "after"]


def test_an_exception_through_two_loops(base: EventBase) -> None:
    def failing() -> None:
        raise Oops

    with EventBase() as inner:
        Timer(inner, failing).add(0)
        Timer(base, inner.dispatch).add(0)
        with pytest.raises(Oops) as caught:
            base.dispatch()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names.count("dispatch") == 2
    assert names[-1] == "failing"


# ---- exception_handler ----


@each_source
def test_the_handler_gets_exception_and_source(
    base: EventBase, stack: contextlib.ExitStack, name: str
) -> None:
    handled: list[tuple[Exception, Any]] = []
    error = Oops()

    def handler(exception: Exception, source: Any) -> None:
        handled.append((exception, source))
        source.close()
        base.loopexit()

    def failing(*_args: Any) -> None:
        raise error

    base.exception_handler = handler
    thing = KINDS[name](base, stack, failing)
    Timer(base, nothing).add(10)
    base.dispatch()
    assert [exception for exception, _ in handled] == [error]
    source = handled[0][1]
    if name == "once":
        assert isinstance(source, Event)
    else:
        assert source is thing


def test_the_loop_goes_on_after_the_handler(base: EventBase) -> None:
    seen: list[Any] = []
    base.exception_handler = lambda exc, source: seen.append(exc.args[0])

    def run(_fd: int, _what: int, n: int) -> None:
        if n % 2:
            raise Oops(n)
        seen.append(n)

    for n in range(6):
        base.once(-1, EV_TIMEOUT, run, n)
    assert base.dispatch() == 1
    assert seen == list(range(6))


def test_the_handler_may_be_taken_away_again(base: EventBase) -> None:
    assert base.exception_handler is None
    base.exception_handler = nothing
    base.exception_handler = None
    Timer(base, int, "x").add(0)
    with pytest.raises(ValueError, match="invalid literal"):
        base.dispatch()


@pytest.mark.parametrize("kind_", [KeyboardInterrupt, SystemExit, GeneratorExit, OopsBase])
def test_what_is_no_exception_passes_the_handler_by(
    base: EventBase, kind_: type[BaseException]
) -> None:
    base.exception_handler = lambda exc, source: pytest.fail("called")

    def failing() -> None:
        raise kind_

    Timer(base, failing).add(0)
    with pytest.raises(kind_):
        base.dispatch()


def test_what_the_handler_raises_leaves_dispatch_with_its_context(base: EventBase) -> None:
    def handler(_exception: Exception, _source: Any) -> None:
        raise KeyError("handler")

    def failing() -> None:
        raise Oops("callback")

    base.exception_handler = handler
    Timer(base, failing).add(0)
    with pytest.raises(KeyError) as caught:
        base.dispatch()
    assert isinstance(caught.value.__context__, Oops)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "handler"


def test_the_handler_may_raise_the_exception_itself(base: EventBase) -> None:
    def handler(exception: Exception, _source: Any) -> None:
        raise exception

    error = Oops()

    def failing() -> None:
        raise error

    base.exception_handler = handler
    Timer(base, failing).add(0)
    with pytest.raises(Oops) as caught:
        base.dispatch()
    assert caught.value is error


def test_the_handler_may_close_the_base() -> None:
    with EventBase() as base:
        base.exception_handler = lambda exc, source: base.close()
        Timer(base, int, "x").add(0)
        Timer(base, pytest.fail, "after close").add(0.001)
        assert base.dispatch() == 0
        assert base.closed


def test_a_connection_handled_by_close_does_not_disturb_another(
    base: EventBase, stack: contextlib.ExitStack
) -> None:
    """The server's use of it: log, drop that one connection, go on."""
    dropped: list[Any] = []

    def handler(exception: Exception, source: Any) -> None:
        dropped.append((exception, source))
        source.close()

    def readable(bev: BufferEvent) -> None:
        number = int(bev.input.readln() or b"")
        bev.write(b"%d\n" % (number * 2))
        bev.close_after_write()

    def accepted(_listener: Listener, fd: int, _address: Any) -> None:
        bev = BufferEvent.socket(base, fd)
        bev.setcb(readable)
        bev.enable(EV_READ)

    base.exception_handler = handler
    listener = Listener.bind(base, accepted, ANY_PORT)
    clients = [
        stack.enter_context(socket.create_connection(listener.address, timeout=5)) for _ in range(2)
    ]
    clients[0].sendall(b"no number\n")
    clients[1].sendall(b"21\n")
    Timer(base, listener.close).add(0.1)
    assert base.dispatch() == 1
    assert clients[0].recv(10) == b""
    assert clients[1].recv(10) == b"42\n"
    assert len(dropped) == 1


def test_the_handler_sees_a_listeners_exception_and_the_descriptor_is_closed(
    base: EventBase, stack: contextlib.ExitStack
) -> None:
    handled: list[Any] = []

    def callback(_listener: Listener, _fd: int, _address: Any) -> None:
        raise Oops

    listener = Listener.bind(base, callback, ANY_PORT)
    base.exception_handler = lambda exc, source: handled.append(source)
    clients = [
        stack.enter_context(socket.create_connection(listener.address, timeout=5)) for _ in range(3)
    ]
    base.loopexit(0.05)
    base.dispatch()
    assert handled == [listener] * 3
    for client in clients:
        assert client.recv(10) == b""


# ---- callbacks outside of the loop ----


def failing_anything(*_args: Any) -> None:
    raise Oops


def test_trigger_raises_what_the_callback_raises(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(failing_anything, failing_anything, failing_anything)
    with pytest.raises(Oops):
        bev.trigger(EV_READ, BEV_TRIG_IGNORE_WATERMARKS)
    with pytest.raises(Oops):
        bev.trigger(EV_WRITE)
    with pytest.raises(Oops):
        bev.trigger_event(BEV_EVENT_CONNECTED)
    bev.close()
    assert base.dispatch() == 1


def test_trigger_inside_a_callback_raises_there(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(failing_anything)
    seen: list[str] = []

    def outer() -> None:
        with pytest.raises(Oops):
            bev.trigger(EV_READ, BEV_TRIG_IGNORE_WATERMARKS)
        seen.append("caught")

    Timer(base, outer).add(0)
    Timer(base, seen.append, "after").add(0.001)
    Timer(base, bev.close).add(0.002)
    base.dispatch()
    assert seen == ["caught", "after"]


def test_the_handler_is_asked_for_callbacks_outside_of_the_loop_too(
    base: EventBase, sockets: Sockets
) -> None:
    handled: list[Any] = []
    base.exception_handler = lambda exc, source: handled.append(source)
    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(failing_anything)
    bev.trigger(EV_READ, BEV_TRIG_IGNORE_WATERMARKS)
    assert handled == [bev]
    bev.close()


@pytest.mark.parametrize("call", ["add", "prepend", "drain", "remove", "readln", "add_buffer"])
def test_a_buffers_callback_raises_in_the_call_that_changed_it(call: str) -> None:
    buffer = EvBuffer(b"line\n")
    buffer.add_cb(failing_anything)
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: buffer.add(b"x"),
        "prepend": lambda: buffer.prepend(b"x"),
        "drain": lambda: buffer.drain(1),
        "remove": lambda: buffer.remove(1),
        "readln": buffer.readln,
        "add_buffer": lambda: buffer.add_buffer(EvBuffer(b"x")),
    }
    with pytest.raises(Oops):
        calls[call]()


def test_a_bufferevents_output_callback_raises_in_write(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    a.output.add_cb(failing_anything)
    with pytest.raises(Oops):
        a.write(b"x")
    a.close()
    b.close()


def test_two_exceptions_of_one_call_the_second_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    buffer = EvBuffer()

    def failing(*args: Any) -> None:
        raise Oops(args[-1])

    buffer.add_cb(failing, 1)
    buffer.add_cb(failing, 2)
    with pytest.raises(Oops) as caught:
        buffer.add(b"x")
    assert {caught.value.args[0], *(error.args[0] for error in reported)} == {1, 2}
    reported.clear()


# ---- nothing of it is kept ----


@each_kind
def test_nothing_keeps_the_frames_of_what_was_raised(
    base: EventBase, stack: contextlib.ExitStack, name: str, no_gc: None
) -> None:
    gone: list[weakref.ref[Token]] = []

    def failing(*_args: Any) -> None:
        local = Token()
        gone.append(weakref.ref(local))
        raise Oops

    Timer(base, nothing).add(10)
    KINDS[name](base, stack, failing)
    with contextlib.suppress(Oops):
        base.dispatch()
    assert [ref() for ref in gone] == [None]


@pytest.mark.parametrize("again", [False, True], ids=["handled", "handler raises"])
def test_nothing_keeps_the_frames_of_what_was_handled(
    base: EventBase, no_gc: None, again: bool
) -> None:
    gone: list[weakref.ref[Token]] = []

    def failing() -> None:
        local = Token()
        gone.append(weakref.ref(local))
        raise Oops

    def handler(_exception: Exception, _source: Any) -> None:
        if again:
            local = Token()
            gone.append(weakref.ref(local))
            raise KeyError

    base.exception_handler = handler
    Timer(base, failing).add(0)
    with contextlib.suppress(KeyError):
        base.dispatch()
    assert len(gone) == 1 + again
    assert [ref() for ref in gone if ref() is not None] == []


def test_nothing_keeps_the_frames_of_what_left_a_call(no_gc: None) -> None:
    gone: list[weakref.ref[Token]] = []

    def failing(*_args: Any) -> None:
        local = Token()
        gone.append(weakref.ref(local))
        raise Oops

    buffer = EvBuffer()
    buffer.add_cb(failing)
    with contextlib.suppress(Oops):
        buffer.add(b"x")
    del buffer
    assert [ref() for ref in gone] == [None]


def test_nothing_keeps_what_a_failed_call_saw(base: EventBase, no_gc: None) -> None:
    token = Token()
    gone = weakref.ref(token)
    event = Event(base, -1, EV_READ, nothing, token)
    del token
    with contextlib.suppress(ValueError):
        event.active(0)
    del event
    assert gone() is None


def test_a_loop_that_always_fails_stays_flat(base: EventBase, no_gc: None) -> None:
    def failing() -> None:
        raise Oops

    def fail_once() -> None:
        Timer(base, failing).add(0)
        with contextlib.suppress(Oops):
            base.dispatch()

    for _ in range(10):
        fail_once()
    objects = len(gc.get_objects())
    for _ in range(500):
        fail_once()
    assert len(gc.get_objects()) <= objects + 10


# ---- what users see ----


def test_an_uncaught_exception_prints_the_usual_traceback() -> None:
    code = """
from pylibevent import EventBase, Timer
def callback():
    raise KeyError("what happened")
with EventBase() as base:
    Timer(base, callback).add(0)
    base.dispatch()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyError: 'what happened'"
    assert "in callback" in done.stderr
    assert done.stderr.count("Traceback") == 1
