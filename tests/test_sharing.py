"""A C library (tests/clib.c) and this package on the same libevent: .ptr and from_ptr."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from common import SANITIZED

from pylibevent import (
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVBUF_FS_DISABLE_SENDFILE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    EventInfo,
    FileSegment,
    LibeventError,
    Listener,
    RateLimitGroup,
    Signal,
    Timer,
    TokenBucketConfig,
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
            struct evbuffer *lines_new(void);
            int lines_take(struct evbuffer *);
            void lines_free(struct evbuffer *);
            struct evbuffer_file_segment *part_new(int fd, int offset, int length);
            int part_add(struct evbuffer_file_segment *, struct evbuffer *);
            void part_free(struct evbuffer_file_segment *);
            struct ev_token_bucket_cfg *limit_new(int n);
            void limit_free(struct ev_token_bucket_cfg *);
            struct bufferevent_rate_limit_group *share_new(struct event_base *,
                                                           struct ev_token_bucket_cfg *);
            int share_join(struct bufferevent_rate_limit_group *, struct bufferevent *);
            int share_written(struct bufferevent_rate_limit_group *);
            void share_free(struct bufferevent_rate_limit_group *);
            """
        )
        self.lib: Any = self.ffi.dlopen(str(path))

    def base(self, base: EventBase) -> Any:
        return self.its("struct event_base *", base)

    def its(self, type_: str, ours: Any) -> Any:
        """The struct of one of ours, as a pointer of the library's."""
        return self.ffi.cast(type_, int(ffi.cast("intptr_t", ours.ptr)))


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


KINDS = [EventBase, EventConfig, Event, BufferEvent, Listener, EvBuffer, FileSegment]
KINDS += [TokenBucketConfig, RateLimitGroup]


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("pending", [True, False])
def test_from_ptr_knows_our_own_events(base: EventBase, pending: bool) -> None:
    events = [Event(base, 0, EV_TIMEOUT, print), Timer(base, print), Signal(base, 10, print)]
    for event in events:
        if pending:
            event.add(9)
        assert Event.from_ptr(event.ptr) is event
        event.close()


def test_from_ptr_knows_our_own_event_that_libevent_names(base: EventBase) -> None:
    event = Timer(base, print)
    event.add(9)
    found: list[Event] = []

    @ffi.callback("event_base_foreach_event_cb")
    def look(_base: Any, ptr: Any, _arg: Any) -> int:
        if lib.event_get_callback_arg(ptr) and lib.event_get_events(ptr) == 0:
            found.append(Event.from_ptr(ffi.cast("struct event *", ptr)))
        return 0

    lib.event_base_foreach_event(base.ptr, look, ffi.NULL)
    assert found == [event]
    event.close()


def test_from_ptr_of_our_own_event_that_is_closed_is_refused(base: EventBase) -> None:
    event = Timer(base, print)
    ptr = event.ptr
    event.close()
    with pytest.raises(ClosedError):
        Event.from_ptr(ptr)


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


# ---- buffers ----


@pytest.fixture
def lines(clib: Clib) -> Iterator[Any]:
    lines = clib.lib.lines_new()
    yield lines
    clib.lib.lines_free(lines)


def test_a_buffer_of_c_is_read_and_filled(clib: Clib, lines: Any) -> None:
    with EvBuffer.from_ptr(lines) as buf:
        assert buf.readln() == b"first"
        assert clib.lib.lines_take(lines) == len("second")
        buf.add(b"by Python\n")
        assert clib.lib.lines_take(lines) == len("by Python")
        assert clib.lib.lines_take(lines) == -1


def test_a_buffer_of_ours_is_read_by_c(clib: Clib) -> None:
    buf = EvBuffer(b"one\nthree\n")
    assert clib.lib.lines_take(clib.its("struct evbuffer *", buf)) == len("one")
    assert buf == b"three\n"


def test_from_ptr_knows_our_own_buffers() -> None:
    buf = EvBuffer(b"x" * 5000)
    assert EvBuffer.from_ptr(buf.ptr) is buf
    assert EvBuffer.from_ptr(int(ffi.cast("intptr_t", buf.ptr))) is buf


def test_a_buffer_is_borrowed_once(lines: Any) -> None:
    with EvBuffer.from_ptr(lines) as buf:
        view = buf.peek()[0]
        with pytest.raises(BufferError):
            EvBuffer.from_ptr(lines).drain(1)
        assert bytes(view[:5]) == b"first"
        view.release()


def test_a_buffer_that_was_closed_is_borrowed_anew(lines: Any) -> None:
    first = EvBuffer.from_ptr(lines)
    first.close()
    again = EvBuffer.from_ptr(lines)
    assert again is not first
    assert again.readln() == b"first"


@pytest.mark.skipif(SANITIZED, reason="a sanitizer does not give freed memory out again")
def test_a_buffer_of_c_where_one_of_ours_was_is_not_ours() -> None:
    buf = EvBuffer()
    address = buf.ptr
    buf.close()
    made: list[Any] = []
    while address not in made and len(made) < 1000:
        made.append(lib.evbuffer_new())
    assert address in made
    with EvBuffer.from_ptr(address) as borrowed:
        assert borrowed is not buf
        assert len(borrowed) == 0
    for raw in made:
        lib.evbuffer_free(raw)


def test_from_ptr_knows_the_buffers_of_our_bufferevents(base: EventBase) -> None:
    bev = BufferEvent.socket(base)
    raw = bev.ptr
    assert EvBuffer.from_ptr(lib.bufferevent_get_input(raw)) is bev.input
    assert EvBuffer.from_ptr(lib.bufferevent_get_output(raw)) is bev.output


def test_from_ptr_knows_the_buffers_of_what_ours_are_joined_to(base: EventBase) -> None:
    a, b = BufferEvent.pair(base)
    f = BufferEvent.filter(a)
    under = lib.bufferevent_get_underlying(f.ptr)
    partner = lib.bufferevent_pair_get_partner(under)
    assert EvBuffer.from_ptr(lib.bufferevent_get_output(under)) is a.output
    assert EvBuffer.from_ptr(lib.bufferevent_get_input(partner)) is b.input


def test_from_ptr_knows_the_buffers_of_a_borrowed_bufferevent(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket]
) -> None:
    bev = BufferEvent.from_ptr(echo[0])
    raw = ffi.cast("struct bufferevent *", int(clib.ffi.cast("intptr_t", echo[0])))
    assert EvBuffer.from_ptr(lib.bufferevent_get_input(raw)) is bev.input
    bev.close()
    clib.lib.echo_free(echo[0])
    base.loop(EVLOOP_NONBLOCK)


def test_the_pointer_of_an_object_does_not_keep_it(base: EventBase) -> None:
    buf, bev = EvBuffer(), BufferEvent.socket(base)
    gone: list[weakref.ref[Any]] = [weakref.ref(buf), weakref.ref(bev)]
    assert buf.ptr
    assert bev.ptr
    bev.close()
    del buf, bev
    assert [reference() for reference in gone] == [None, None]


# ---- parts of files ----


@pytest.fixture
def file() -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        yield file


def test_a_segment_of_c_goes_into_our_buffers(clib: Clib, file: Any) -> None:
    part = clib.lib.part_new(file.fileno(), 2, 4)
    with FileSegment.from_ptr(part) as segment:
        bufs = [EvBuffer(), EvBuffer()]
        for buf in bufs:
            buf.add_file_segment(segment)
    clib.lib.part_free(part)
    assert bufs == [b"2345", b"2345"]


def test_a_segment_of_ours_goes_into_the_buffers_of_c(clib: Clib, lines: Any, file: Any) -> None:
    with FileSegment(file, 2, 4, EVBUF_FS_DISABLE_SENDFILE) as segment:
        part = clib.its("struct evbuffer_file_segment *", segment)
        assert clib.lib.part_add(part, lines) == 0
    with EvBuffer.from_ptr(lines) as buf:
        assert buf == b"first\nsecond\n2345"


def test_from_ptr_knows_our_own_segments(file: Any) -> None:
    with FileSegment(file) as segment:
        assert FileSegment.from_ptr(segment.ptr) is segment


# ---- rate limits ----


@pytest.fixture
def limit(clib: Clib) -> Iterator[Any]:
    limit = clib.lib.limit_new(1000)
    yield limit
    clib.lib.limit_free(limit)


def test_a_limit_of_c_holds_for_our_bufferevents(
    base: EventBase, limit: Any, sockets: tuple[socket.socket, socket.socket]
) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.set_rate_limit(TokenBucketConfig.from_ptr(limit))
    bev.write(b"x" * 5000)
    base.loop(EVLOOP_NONBLOCK)
    assert len(_received(sockets[1]) + _received(sockets[1])) <= 1000
    assert len(bev.output) >= 4000
    bev.close()
    base.loop(EVLOOP_NONBLOCK)


def test_a_limit_of_ours_is_used_by_c(clib: Clib, base: EventBase) -> None:
    cfg = TokenBucketConfig(10, 10, 20, 20)
    its = clib.its("struct ev_token_bucket_cfg *", cfg)
    share = clib.lib.share_new(clib.base(base), its)
    with RateLimitGroup.from_ptr(share, base) as group:
        assert (group.read_limit, group.write_limit) == (10, 20)
    clib.lib.share_free(share)


def test_from_ptr_knows_our_own_limits() -> None:
    cfg = TokenBucketConfig(10)
    assert TokenBucketConfig.from_ptr(cfg.ptr) is cfg


@pytest.fixture
def share(clib: Clib, base: EventBase, limit: Any) -> Iterator[Any]:
    """A group that the library has made on our base."""
    share = clib.lib.share_new(clib.base(base), limit)
    yield share
    clib.lib.share_free(share)


def test_our_bufferevents_join_a_group_of_c(
    clib: Clib, base: EventBase, share: Any, sockets: tuple[socket.socket, socket.socket]
) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    with RateLimitGroup.from_ptr(share, base) as group:
        assert group.base is base
        bev.add_to_rate_limit_group(group)
        bev.write(b"x" * 5000)
        base.loop(EVLOOP_NONBLOCK)
        assert clib.lib.share_written(share) == group.get_totals()[1] == 1000
    assert group.closed


def test_bufferevents_leave_a_group_of_c_when_it_is_given_back(
    base: EventBase, share: Any, sockets: tuple[socket.socket, socket.socket]
) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    group = RateLimitGroup.from_ptr(share, base)
    bev.add_to_rate_limit_group(group)
    bev.write(b"x" * 5000)
    group.close()
    base.loop(EVLOOP_NONBLOCK)
    assert len(bev.output) == 0


@pytest.mark.parametrize("named", [True, False])
def test_a_group_of_c_goes_on_when_its_members_are_closed(
    clib: Clib, base: EventBase, share: Any, named: bool
) -> None:
    bev = BufferEvent.socket(base)
    group = RateLimitGroup.from_ptr(share, base)
    bev.add_to_rate_limit_group(group)
    if not named:
        del group
    bev.close()
    base.loop(EVLOOP_NONBLOCK)
    assert clib.lib.share_written(share) == 0


def test_a_group_of_c_may_be_closed_along_with_the_base(
    clib: Clib, limit: Any, sockets: tuple[socket.socket, socket.socket]
) -> None:
    base = EventBase()
    share = clib.lib.share_new(clib.base(base), limit)
    group = RateLimitGroup.from_ptr(share, base)
    bev = BufferEvent.socket(base, sockets[0])
    bev.add_to_rate_limit_group(group)
    bev.close()
    clib.lib.share_free(share)
    base.close()
    assert group.closed


def test_a_bufferevent_of_c_joins_a_group_of_ours(
    clib: Clib, base: EventBase, echo: tuple[Any, socket.socket]
) -> None:
    group = RateLimitGroup(base, TokenBucketConfig(100, 100, 50, 50))
    its = clib.its("struct bufferevent_rate_limit_group *", group)
    assert clib.lib.share_join(its, echo[0]) == 0
    echo[1].send(b"x" * 80)
    base.loop(EVLOOP_ONCE)
    base.loop(EVLOOP_NONBLOCK)
    assert _received(echo[1]) == b"x" * 50
    clib.lib.echo_free(echo[0])
    base.loop(EVLOOP_NONBLOCK)
    group.close()


def test_only_c_configures_its_group(base: EventBase, share: Any) -> None:
    with (
        RateLimitGroup.from_ptr(share, base) as group,
        pytest.raises(LibeventError, match="belongs to a C library"),
    ):
        group.set_cfg(TokenBucketConfig(10))


def test_a_group_is_borrowed_once(base: EventBase, share: Any) -> None:
    with RateLimitGroup.from_ptr(share, base) as group:
        assert RateLimitGroup.from_ptr(share) is group
        assert RateLimitGroup.from_ptr(share, base) is group


def test_a_group_of_c_needs_its_base(share: Any) -> None:
    with pytest.raises(TypeError, match="base"):
        RateLimitGroup.from_ptr(share)


def test_from_ptr_knows_our_own_groups(base: EventBase) -> None:
    group = RateLimitGroup(base, TokenBucketConfig(10))
    assert RateLimitGroup.from_ptr(group.ptr) is group


def test_a_group_of_ours_that_only_its_members_have_is_not_borrowed(base: EventBase) -> None:
    bev = BufferEvent.socket(base)
    group = RateLimitGroup(base, TokenBucketConfig(10))
    bev.add_to_rate_limit_group(group)
    ptr = group.ptr
    del group
    with pytest.raises(ClosedError):
        RateLimitGroup.from_ptr(ptr, base)


# ---- configs ----


def test_from_ptr_knows_our_own_configs() -> None:
    with EventConfig() as config:
        assert EventConfig.from_ptr(config.ptr) is config


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
