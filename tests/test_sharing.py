"""A C library (tests/clib.c) and this package on the same libevent: .ptr and from_ptr."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest

from pylibevent import (
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    EventInfo,
    LibeventError,
    Listener,
    Timer,
    ffi,
    lib,
)

SOURCE = Path(__file__).with_name("clib.c")
CC = os.environ.get("CC", "cc")

pytestmark = pytest.mark.skipif(not shutil.which(CC), reason="no C compiler")


class Clib:
    """The library: its functions, and the ffi they were declared with (not the package's)."""

    def __init__(self, path: Path) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(
            """
            struct counter *counter_new(struct event_base *, int limit);
            int counter_count(const struct counter *);
            struct event *counter_event(const struct counter *);
            void counter_free(struct counter *);
            struct event_base *base_new(void);
            int base_dispatch(struct event_base *);
            void base_free(struct event_base *);
            struct bufferevent *echo_new(struct event_base *, int fd);
            void echo_free(struct bufferevent *);
            struct evconnlistener *server_new(struct event_base *);
            void server_restore(struct evconnlistener *);
            void server_free(struct evconnlistener *);
            """
        )
        self.lib: Any = self.ffi.dlopen(str(path))

    def base(self, base: EventBase) -> Any:
        return self.ffi.cast("struct event_base *", int(ffi.cast("intptr_t", base.ptr)))


@pytest.fixture(scope="module")
def clib(tmp_path_factory: pytest.TempPathFactory) -> Clib:
    path = tmp_path_factory.mktemp("clib") / "libclib.so"
    flags = subprocess.check_output(
        ["pkg-config", "--cflags", "--libs", "libevent_core"], text=True
    )
    command = [CC, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(path), str(SOURCE)]
    subprocess.run([*command, *shlex.split(flags)], check=True)
    return Clib(path)


@pytest.fixture
def c_base(clib: Clib) -> Iterator[Any]:
    """A base that the library owns."""
    base = clib.lib.base_new()
    yield base
    clib.lib.base_free(base)


@pytest.fixture
def counter(clib: Clib, base: EventBase) -> Iterator[Any]:
    counter = clib.lib.counter_new(clib.base(base), 3)
    yield counter
    clib.lib.counter_free(counter)


# ---- bases ----


def test_the_events_of_a_c_library_run_in_our_loop(
    clib: Clib, base: EventBase, counter: Any
) -> None:
    ticks: list[int] = []
    timer = Timer(base, lambda: ticks.append(clib.lib.counter_count(counter)), persist=True)
    timer.add(0.002)
    while clib.lib.counter_count(counter) < 3:
        base.loop(1)
    timer.close()
    assert base.dispatch() == 1  # the library's event has ended, nothing is left
    assert ticks


def test_our_events_run_on_the_base_of_a_c_library(clib: Clib, c_base: Any) -> None:
    counter = clib.lib.counter_new(c_base, 3)
    fired: list[str] = []
    with EventBase.from_ptr(c_base) as base:
        Timer(base, fired.append, "timer").add(0.001)
        base.once(-1, EV_TIMEOUT, lambda fd, what: fired.append("once"))
        assert base.dispatch() == 1
        assert sorted(fired) == ["once", "timer"]
    assert clib.lib.counter_count(counter) == 3
    clib.lib.counter_free(counter)


def test_a_c_library_runs_the_loop_and_calls_us_back(clib: Clib, c_base: Any) -> None:
    fired: list[object] = []
    with EventBase.from_ptr(c_base) as base:
        Timer(base, lambda: fired.append(base.running_event)).add(0)
        a, b = BufferEvent.pair(base)

        def read(bev: BufferEvent) -> None:
            fired.append(bev.read())
            a.close()
            b.close()

        b.setcb(read)
        b.enable(EV_READ)
        a.write(b"hello")
        assert clib.lib.base_dispatch(c_base) == 1
        assert fired[0] == b"hello"
        assert isinstance(fired[1], Timer)


def test_an_exception_ends_the_loop_of_c_and_is_raised_by_our_next_one(
    clib: Clib, c_base: Any
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in a callback")

    with EventBase.from_ptr(c_base) as base:
        Timer(base, fail).add(0)
        later: list[str] = []
        timer = Timer(base, later.append, "later")
        timer.add(0.001)
        assert clib.lib.base_dispatch(c_base) == 0
        assert later == []
        with pytest.raises(ZeroDivisionError, match="in a callback"):
            base.dispatch()
        base.dispatch()
        assert later == ["later"]


def test_the_exception_handler_serves_a_loop_of_c_too(clib: Clib, base: EventBase) -> None:
    handled: list[Exception] = []

    def fail() -> None:
        raise ZeroDivisionError

    base.exception_handler = lambda error, source: handled.append(error)
    Timer(base, fail).add(0)
    clib.lib.base_dispatch(clib.base(base))
    assert [type(error) for error in handled] == [ZeroDivisionError]


def test_closing_a_borrowed_base_leaves_it_to_c(clib: Clib, c_base: Any) -> None:
    counter = clib.lib.counter_new(c_base, 3)
    base = EventBase.from_ptr(c_base)
    timer = Timer(base, lambda: pytest.fail("closed with the base"))
    timer.add(0)
    _pair = BufferEvent.pair(base)
    Listener.bind(base, lambda *_: None, ("127.0.0.1", 0))
    base.close()
    assert timer.closed
    assert clib.lib.base_dispatch(c_base) == 1
    assert clib.lib.counter_count(counter) == 3
    clib.lib.counter_free(counter)


def test_a_finalizer_on_a_borrowed_base_runs_after_it_was_let_go(clib: Clib, c_base: Any) -> None:
    finalized: list[Event] = []
    base = EventBase.from_ptr(c_base)
    timer = Timer(base, lambda: None)
    timer.finalize(finalized.append)
    base.close()
    assert finalized == []
    clib.lib.base_dispatch(c_base)
    assert finalized == [timer]


def test_from_ptr_knows_our_own_bases(base: EventBase) -> None:
    assert EventBase.from_ptr(base.ptr) is base
    assert EventBase.from_ptr(int(ffi.cast("intptr_t", base.ptr))) is base


def test_a_base_is_borrowed_once(clib: Clib, c_base: Any) -> None:
    with EventBase.from_ptr(c_base) as base:
        assert EventBase.from_ptr(c_base) is base


def test_a_borrowed_base_has_everything(clib: Clib, c_base: Any) -> None:
    with EventBase.from_ptr(c_base) as base:
        assert base.method in base.__repr__()
        assert base.npriorities == 1
        timer = Timer(base, lambda: None)
        timer.add(base.init_common_timeout(60))
        assert base.foreach_event(lambda info: info.event) is timer
        timer.close()


@pytest.mark.parametrize("kind", [EventBase, EventConfig, Event, BufferEvent, Listener, EvBuffer])
@pytest.mark.parametrize(
    ("ptr", "error"),
    [
        (None, TypeError),
        ("text", TypeError),
        (ffi.new("char[8]"), TypeError),
        (ffi.NULL, ValueError),
        (0, ValueError),
    ],
    ids=["None", "str", "another struct", "NULL", "zero"],
)
def test_what_is_no_pointer_is_refused(kind: Any, ptr: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        kind.from_ptr(ptr)


def test_a_pointer_to_another_struct_is_refused(base: EventBase) -> None:
    with pytest.raises(TypeError, match="struct event "):
        Event.from_ptr(base.ptr)


# ---- events ----


def test_an_event_of_c_is_added_and_deleted(clib: Clib, base: EventBase, counter: Any) -> None:
    event = Event.from_ptr(clib.lib.counter_event(counter))
    assert event.base is base
    assert event.events == EV_PERSIST
    assert event.pending(EV_TIMEOUT)
    event.delete()
    assert not event.pending(EV_TIMEOUT)
    assert base.dispatch() == 1
    event.add(0.001)
    event.active(EV_TIMEOUT)
    base.dispatch()
    assert clib.lib.counter_count(counter) == 3


def test_an_event_of_c_gets_no_time_back_by_active_after_delete(
    clib: Clib, base: EventBase, counter: Any
) -> None:
    event = Event.from_ptr(clib.lib.counter_event(counter))
    event.delete()
    event.active(EV_TIMEOUT)
    base.loop(EVLOOP_NONBLOCK)
    assert clib.lib.counter_count(counter) == 1
    assert not event.pending()


def test_an_event_of_c_takes_a_priority(clib: Clib, base: EventBase) -> None:
    base.priority_init(3)
    counter = clib.lib.counter_new(clib.base(base), 1)
    event = Event.from_ptr(clib.lib.counter_event(counter))
    event.priority = 2
    assert lib.event_get_priority(ffi.cast("struct event *", event.ptr)) == 2
    clib.lib.counter_free(counter)


def test_closing_a_borrowed_event_does_not_delete_it(
    clib: Clib, base: EventBase, counter: Any
) -> None:
    event = Event.from_ptr(clib.lib.counter_event(counter))
    event.close()
    with pytest.raises(ClosedError):
        event.add(1)
    base.dispatch()
    assert clib.lib.counter_count(counter) == 3


def test_only_c_finalizes_its_event(clib: Clib, counter: Any) -> None:
    event = Event.from_ptr(clib.lib.counter_event(counter))
    with pytest.raises(LibeventError, match="belongs to a C library"):
        event.finalize(print)
    assert not event.closed


def test_a_borrowed_event_that_is_dropped_goes_on(clib: Clib, base: EventBase) -> None:
    counter = clib.lib.counter_new(clib.base(base), 3)
    Event.from_ptr(clib.lib.counter_event(counter)).add(0.001)
    base.dispatch()
    assert clib.lib.counter_count(counter) == 3
    clib.lib.counter_free(counter)


def test_an_event_without_a_base_cannot_be_borrowed() -> None:
    with pytest.raises(ValueError, match="no base"):
        Event.from_ptr(ffi.new("struct event *"))


def test_foreach_event_shows_those_of_c_without_an_event(
    clib: Clib, base: EventBase, counter: Any
) -> None:
    ours = Timer(base, print)
    ours.add(50)
    infos: list[EventInfo] = []
    base.foreach_event(infos.append)
    shown = [info.event for info in infos if not info.internal]
    assert sorted(shown, key=bool) == [None, ours]
    ours.close()


# ---- bufferevents ----


@pytest.fixture
def echo(
    clib: Clib, base: EventBase, sockets: tuple[socket.socket, socket.socket]
) -> tuple[Any, socket.socket]:
    """A bufferevent of the library's that echoes, and the other end of its socket."""
    ours, theirs = sockets
    return clib.lib.echo_new(clib.base(base), theirs.detach()), ours


def test_a_bufferevent_of_c_is_written_to(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket], run_until: Callable[..., None]
) -> None:
    ptr, peer = echo
    bev = BufferEvent.from_ptr(ptr)
    assert bev.base is base
    assert bev.enabled == EV_READ | EV_WRITE
    bev.write(b"from Python\n")
    run_until(lambda: len(bev.output) == 0)
    assert peer.recv(100) == b"from Python\n"
    bev.close()
    peer.send(b"echo")
    run_until(lambda: _received(peer) == b"echo")
    clib.lib.echo_free(ptr)
    base.loop(EVLOOP_NONBLOCK)


def _received(peer: socket.socket) -> bytes:
    try:
        return peer.recv(100)
    except BlockingIOError:
        return b""


def test_callbacks_of_python_take_the_place_of_c(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket], run_until: Callable[..., None]
) -> None:
    ptr, peer = echo
    bev = BufferEvent.from_ptr(ptr)
    got: list[bytes] = []
    bev.setcb(lambda bev: got.append(bev.read()))
    peer.send(b"for Python")
    run_until(lambda: got)
    assert got == [b"for Python"]
    bev.close()
    clib.lib.echo_free(ptr)
    base.loop(EVLOOP_NONBLOCK)


def test_c_may_free_its_bufferevent_first(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket]
) -> None:
    ptr, _ = echo
    bev = BufferEvent.from_ptr(ptr)
    view = bev.input
    clib.lib.echo_free(ptr)
    base.loop(EVLOOP_NONBLOCK)
    assert len(view) == 0
    bev.write(b"nobody reads this")
    bev.close()
    with pytest.raises(ClosedError):
        len(view)
    base.loop(EVLOOP_NONBLOCK)


def test_a_borrowed_bufferevent_goes_with_its_base(
    clib: Clib, sockets: tuple[socket.socket, socket.socket]
) -> None:
    base = EventBase()
    ptr = clib.lib.echo_new(clib.base(base), sockets[1].detach())
    bev = BufferEvent.from_ptr(ptr)
    assert BufferEvent.from_ptr(ptr) is bev
    clib.lib.echo_free(ptr)
    base.close()
    assert bev.closed


def test_only_c_closes_its_bufferevent_after_the_write(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket]
) -> None:
    bev = BufferEvent.from_ptr(echo[0])
    with pytest.raises(LibeventError, match="belongs to a C library"):
        bev.close_after_write()
    bev.close()
    clib.lib.echo_free(echo[0])
    base.loop(EVLOOP_NONBLOCK)


def test_from_ptr_knows_our_own_bufferevents(base: EventBase) -> None:
    a, _ = BufferEvent.pair(base)
    assert BufferEvent.from_ptr(a.ptr) is a


def test_a_filter_may_stand_on_a_bufferevent_of_c(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket], run_until: Callable[..., None]
) -> None:
    ptr, peer = echo

    def upper(src: EvBuffer, dst: EvBuffer, limit: int, mode: int) -> int:
        dst.add(src.remove().upper())
        return 0

    below = BufferEvent.from_ptr(ptr)
    bev = BufferEvent.filter(below, upper)
    got: list[bytes] = []
    bev.setcb(lambda bev: got.append(bev.read()))
    bev.enable(EV_READ)
    peer.send(b"shout")
    run_until(lambda: got)
    assert got == [b"SHOUT"]
    bev.close()
    below.close()
    clib.lib.echo_free(ptr)
    base.loop(EVLOOP_NONBLOCK)


# ---- listeners ----


@pytest.fixture
def server(clib: Clib, base: EventBase) -> Iterator[Any]:
    server = clib.lib.server_new(clib.base(base))
    yield server
    if not base.closed:
        clib.lib.server_free(server)


def test_a_listener_of_c_says_where_it_listens(
    base: EventBase, server: Any, run_until: Callable[..., None]
) -> None:
    listener = Listener.from_ptr(server)
    assert listener.base is base
    with socket.create_connection(listener.address) as peer:
        peer.setblocking(False)
        peer.send(b"echo")
        run_until(lambda: _received(peer) == b"echo")
    listener.close()
    run_until(lambda: base.num_events() == 2)  # run_until's own, and the library's listener


def test_a_listener_of_c_is_switched_off_and_on(
    base: EventBase, server: Any, run_until: Callable[..., None]
) -> None:
    listener = Listener.from_ptr(server)
    listener.disable()
    with socket.create_connection(listener.address) as peer:
        peer.setblocking(False)
        peer.send(b"echo")
        base.loop(EVLOOP_NONBLOCK)
        assert base.dispatch() == 1  # nothing to wait for
        listener.enable()
        run_until(lambda: _received(peer) == b"echo")
    listener.close()
    run_until(lambda: base.num_events() == 2)


def test_connections_of_a_listener_of_c_come_to_python_until_it_is_given_back(
    clib: Clib, base: EventBase, server: Any, run_until: Callable[..., None]
) -> None:
    accepted: list[int] = []
    listener = Listener.from_ptr(server)
    address = listener.address
    listener.set_cb(lambda listener, fd, address: accepted.append(fd))
    listener.set_error_cb(lambda listener, error: None)
    with socket.create_connection(address) as peer:
        run_until(lambda: accepted)
        listener.close()
        os.close(accepted[0])
        assert peer.recv(1) == b""
    with socket.create_connection(address) as peer:
        peer.setblocking(False)
        peer.send(b"echo")
        base.loop(EVLOOP_NONBLOCK)
        assert _received(peer) == b""  # it waits in the system's queue
        clib.lib.server_restore(server)
        run_until(lambda: _received(peer) == b"echo")
    run_until(lambda: base.num_events() == 2)


def test_from_ptr_knows_our_own_listeners(base: EventBase) -> None:
    listener = Listener.bind(base, print, ("127.0.0.1", 0))
    assert Listener.from_ptr(listener.ptr) is listener


def test_a_config_of_c_makes_bases_of_ours() -> None:
    ptr = lib.event_config_new()
    with EventConfig.from_ptr(ptr) as config:
        config.avoid_method("epoll")
        with EventBase(config) as base:
            assert base.method != "epoll"
    again = lib.event_base_new_with_config(ptr)  # close() did not free it
    with EventBase.from_ptr(again) as borrowed:
        assert borrowed.method != "epoll"
    lib.event_base_free(again)
    lib.event_config_free(ptr)
