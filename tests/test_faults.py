"""Memory that is not to be had, and system calls that fail: each one, one after the other.

A call that needs what failed raises MemoryError or the OSError, leaks nothing, closes nothing
twice, and works the next time; the loop goes on.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE

import pytest
from common import few_rounds, received
from faults import NEVER, Case, Fault, Faults, build, needs_faults

from pylibevent import (
    BEV_EVENT_ERROR,
    BEV_FINISHED,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVBUF_FS_DISABLE_SENDFILE,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    LEV_OPT_CLOSE_ON_FREE,
    LEV_OPT_THREADSAFE,
    BufferEvent,
    DnsBase,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    FileSegment,
    LibeventError,
    Listener,
    RateLimitGroup,
    Signal,
    Timer,
    TokenBucketConfig,
    aio,
    tag,
    util,
)

pytestmark = needs_faults

LARGE = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return build(tmp_path_factory.mktemp("faults"))


def nothing(*_args: object) -> None:
    pass


def both(function: Callable[[], object], fault: Fault) -> None:
    """It fails, or not; then it works."""
    with fault:
        function()
    function()


@contextlib.contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


@contextlib.contextmanager
def a_file(content: bytes = LARGE) -> Iterator[io.BufferedRandom]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file


def pieces(n: int) -> EvBuffer:
    """A buffer of that many pieces."""
    buffer = EvBuffer()
    for i in range(n):
        buffer.add_reference(b"%04d" % i)
    return buffer


# ---- the constructors ----


def config(fault: Fault) -> None:
    both(lambda: EventConfig().close(), fault)


def config_avoid_method(fault: Fault) -> None:
    with EventConfig() as config:
        both(lambda: config.avoid_method("epoll"), fault)
        with EventBase(config) as base:
            assert base.method != "epoll" or fault.raised


def base(fault: Fault) -> None:
    both(lambda: EventBase().close(), fault)


def base_of(method: str) -> Case:
    def case(fault: Fault) -> None:
        with EventConfig() as config:
            for other in {"epoll", "poll", "select"} - {method}:
                config.avoid_method(other)
            both(lambda: EventBase(config).close(), fault)
            with EventBase(config) as base, sockets() as (a, b):
                assert base.method == method
                happened: list[object] = []
                event = Event(base, a, EV_READ, lambda *_: happened.append(1))
                event.add()
                b.send(b"x")
                base.loop(EVLOOP_NONBLOCK)
                assert happened

    case.__name__ = f"base_with_{method}"
    return case


def base_priorities(fault: Fault) -> None:
    with EventBase() as base:
        with fault.tolerated:
            base.priority_init(7)
        assert base.npriorities == (1 if fault.raised else 7)
        base.priority_init(9)
        Timer(base, nothing).add(0)
        base.dispatch()


def common_timeouts(fault: Fault) -> None:
    with EventBase() as base:
        happened: list[int] = []

        def add(timeout: float) -> None:
            base.init_common_timeout(timeout)
            Timer(base, happened.append, 1).add(timeout)

        with fault:
            for i in range(1, 18):
                add(i / 10_000)
        add(0.002)
        base.dispatch()
        assert len(happened) == (18 if not fault.raised else len(happened))


def loopexit(fault: Fault) -> None:
    with EventBase() as base:
        both(lambda: base.loopexit(0), fault)
        timer = Timer(base, nothing, persist=True)
        timer.add(0.001)
        base.dispatch()
        assert base.got_exit


def loop(fault: Fault) -> None:
    with EventBase() as base:
        both(lambda: base.loop(0), fault)


def closed_in_a_deferred_callback(fault: Fault) -> None:
    base = EventBase()
    one, other = BufferEvent.pair(base)
    one.setcb(nothing, None, lambda *_: base.close())
    other.setcb(nothing, None, nothing)
    one.enable(EV_READ)
    other.write(b"x")
    other.flush(EV_READ | EV_WRITE, BEV_FINISHED)
    with fault:
        base.loopexit(60)
    Timer(base, nothing).add(60)
    base.loop(EVLOOP_ONCE)
    assert base.closed


def once(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        happened: list[object] = []
        both(lambda: base.once(a, EV_READ, lambda *_: happened.append(1)), fault)
        b.send(b"x")
        base.dispatch()
        assert len(happened) == (1 if fault.raised else 2)


def reinit(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        happened: list[object] = []
        event = Event(base, a, EV_READ, lambda *_: happened.append(1))
        event.add()
        fault.may_close_twice = True  # libevent does so with the descriptors for signals
        both(base.reinit, fault.tolerated)
        b.send(b"x")
        base.dispatch()
        assert happened


def dump_events(fault: Fault) -> None:
    with EventBase() as base:
        Timer(base, nothing).add(1)
        both(lambda: base.dump_events(io.StringIO()), fault)
        both(lambda: base.foreach_event(nothing), fault)


def foreach_event(fault: Fault) -> None:
    with EventBase() as base:
        Timer(base, nothing).add(1)
        both(lambda: base.foreach_event(nothing), fault)


# ---- events ----


def event_add(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        happened: list[object] = []
        event = Event(base, a, EV_READ, lambda *_: happened.append(1))
        with fault:
            event.add(5)
        assert bool(event.pending()) == (fault.raised is None)
        event.add(5)
        b.send(b"x")
        base.dispatch()
        assert happened == [1]


def selector(fault: Fault) -> None:
    with EventBase() as base:
        with fault:
            aio.Selector(base)
        aio.Selector(base).close()


def selector_register(fault: Fault) -> None:
    with EventBase() as base, aio.Selector(base) as selector, sockets() as (a, b):
        with fault:
            selector.register(a, EVENT_READ | EVENT_WRITE)
        assert (a in selector.get_map()) == (fault.raised is None)
        if fault.raised:
            selector.register(a, EVENT_READ | EVENT_WRITE)
        b.send(b"x")
        assert selector.select() == [(selector.get_key(a), EVENT_READ | EVENT_WRITE)]


def selector_wait(fault: Fault) -> None:
    with EventBase() as base, aio.Selector(base) as selector, sockets() as (a, b):
        key = selector.register(a, EVENT_READ)
        with fault:
            assert selector.select(0.001) == []
        b.send(b"x")
        assert selector.select() == [(key, EVENT_READ)]


def event_add_of_a_high_descriptor(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        high = os.dup2(a.fileno(), 900)
        happened: list[object] = []
        event = Event(base, high, EV_READ, lambda *_: happened.append(1))
        both(event.add, fault)
        b.send(b"x")
        base.loop(EVLOOP_NONBLOCK)
        event.close()
        assert happened == [1]
        os.close(high)


def many_timers(fault: Fault) -> None:
    with EventBase() as base:
        happened: list[int] = []
        timers = [Timer(base, happened.append, i) for i in range(100)]
        with fault:
            for timer in timers:
                timer.add(0)
        pending = sum(1 for timer in timers if timer.pending())
        assert pending == (100 if not fault.raised else pending)
        base.dispatch()
        assert len(happened) == pending


def event_active(fault: Fault) -> None:
    with EventBase() as base:
        happened: list[int] = []
        timer = Timer(base, happened.append, 1)
        with fault.tolerated:
            timer.active(EV_TIMEOUT)
            timer.delete()
            timer.add(1)
            timer.remove_timer()
            timer.add(0)
            base.dispatch()
            timer.finalize(nothing)
            base.dispatch()


def signals(fault: Fault) -> None:
    with EventBase() as base:
        happened: list[int] = []
        events = [Signal(base, n, happened.append) for n in (signal.SIGUSR1, signal.SIGUSR2)]
        fault.may_leave_memory = True  # libevent forgets its copy of the handler that was there
        with fault:
            for event in events:
                event.add()
        for event in events:
            event.add()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        while len(happened) < 2:
            base.loop(EVLOOP_NONBLOCK)
        for event in events:
            event.delete()
    status = Path("/proc/self/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    assert not caught & 1 << signal.SIGUSR1 - 1


# ---- buffers ----


def buffer(fault: Fault) -> None:
    both(lambda: EvBuffer().close(), fault)


def buffer_with_content(fault: Fault) -> None:
    both(lambda: EvBuffer(LARGE).close(), fault)


def changes(
    name: str,
    change: Callable[[EvBuffer], object],
    before: Callable[[], EvBuffer] = lambda: EvBuffer(b"before"),
) -> Case:
    """A change of a buffer that is whole or does not happen."""

    def case(fault: Fault) -> None:
        with before() as buffer:
            content = bytes(buffer)
            with fault.tolerated:
                change(buffer)
            if fault.raised:
                assert bytes(buffer) == content
                change(buffer)
            assert bytes(buffer) != content or not content

    case.__name__ = f"buffer_{name}"
    return case


def looks(
    name: str,
    look: Callable[[EvBuffer], object],
    before: Callable[[], EvBuffer] = lambda: pieces(100),
) -> Case:
    """What leaves the bytes as they are."""

    def case(fault: Fault) -> None:
        with before() as buffer:
            content = bytes(buffer)
            with fault.tolerated:
                look(buffer)
            look(buffer)
            assert bytes(buffer) == content

    case.__name__ = f"buffer_{name}"
    return case


def buffer_move(fault: Fault) -> None:
    for how in (EvBuffer.add_buffer, EvBuffer.prepend_buffer):
        with pieces(3) as source, EvBuffer(b"x") as target:
            with fault.tolerated:
                how(target, source)
            assert len(source) + len(target) == 13
        if fault.hit:
            return


def buffer_remove_buffer(fault: Fault) -> None:
    with EvBuffer(LARGE) as source, EvBuffer(b"x") as target:
        with fault:
            source.remove_buffer(target, 1000)
        assert (len(target), len(source)) == (
            (1, len(LARGE)) if fault.raised else (1001, len(LARGE) - 1000)
        )
        source.remove_buffer(target, 1000)
        assert bytes(target) + bytes(source) == b"x" + LARGE


def buffer_add_buffer_reference(fault: Fault) -> None:
    with pieces(3) as source, EvBuffer(b"x") as target:
        source.add(LARGE)
        content = bytes(source)
        with fault.tolerated:
            target.add_buffer_reference(source)
        assert bytes(source) == content
        assert bytes(target) == (b"x" if fault.raised else b"x" + content)
        target.add_buffer_reference(source)
        source.close()
        assert bytes(target).endswith(content)


def buffer_referred_to_again(fault: Fault) -> None:
    with pieces(3) as source, EvBuffer() as one, EvBuffer() as other:
        content = bytes(source)
        one.add_buffer_reference(source)
        with fault.tolerated:
            other.add_buffer_reference(source)
        assert bytes(source) == bytes(one) == content
        assert bytes(other) == (b"" if fault.raised else content)


def buffer_add_file(fault: Fault) -> None:
    with a_file() as file:
        changes("", lambda buffer: buffer.add_file(file))(fault)


def buffer_add_file_for_sendfile(fault: Fault) -> None:
    with a_file() as file, EvBuffer() as buffer, sockets() as (a, b):
        buffer.set_flags(1)
        with fault.tolerated:
            buffer.add_file(file)
        assert len(buffer) == (0 if fault.raised else len(LARGE))
        buffer.drain(len(LARGE))
        buffer.add_file(file, 0, 100)
        buffer.write(a)
        assert received(b) == LARGE[:100]


def file_segment(fault: Fault) -> None:
    with a_file() as file:
        both(lambda: FileSegment(file).close(), fault.tolerated)


def file_segment_read_now(fault: Fault) -> None:
    with a_file() as file:
        both(lambda: FileSegment(file, flags=EVBUF_FS_DISABLE_SENDFILE).close(), fault.tolerated)


def file_segment_cleanup(fault: Fault) -> None:
    with a_file() as file, FileSegment(file) as segment:
        happened: list[int] = []
        both(lambda: segment.add_cleanup_cb(happened.append, 1), fault)
        segment.close()
        assert len(happened) == (1 if fault.raised else 2)


def lookup_cancel(fault: Fault) -> None:
    """While it waits for a nameserver that says nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, EventBase() as base:
        silent.bind(("127.0.0.1", 0))
        with DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE) as dns:
            dns.add_nameserver(silent.getsockname())
            request = dns.resolve_ipv4("a.example", nothing)
            few_rounds(base)
            with fault.tolerated:
                request.cancel()
            few_rounds(base)


def buffer_add_file_segment(fault: Fault) -> None:
    with a_file() as file, FileSegment(file) as segment, EvBuffer(b"x") as buffer:
        with fault.tolerated:
            buffer.add_file_segment(segment)
        assert len(buffer) == 1 + len(LARGE) * (not fault.raised)
        buffer.add_file_segment(segment)
        segment.close()
        assert bytes(buffer).endswith(LARGE)


def buffer_readln(fault: Fault) -> None:
    with pieces(100) as buffer:
        buffer.add(b"\nmore\n")
        with fault.tolerated:
            buffer.readln()
        assert fault.raised is None


def buffer_reserve(fault: Fault) -> None:
    with EvBuffer(b"x") as buffer:
        with fault:
            buffer.reserve_space(10_000)[0][:2] = b"yz"
            buffer.commit_space(2)
        if fault.raised:
            assert bytes(buffer) == b"x"
            buffer.reserve_space(10_000)[0][:2] = b"yz"
            buffer.commit_space(2)
        assert bytes(buffer) == b"xyz"


def buffer_callbacks(fault: Fault) -> None:
    with EvBuffer() as buffer:
        happened: list[object] = []
        both(lambda: buffer.add_cb(lambda *_: happened.append(1)), fault)
        buffer.add(b"x")
        assert len(happened) == (1 if fault.raised else 2)


def buffer_locking(fault: Fault) -> None:
    with EvBuffer() as buffer:
        with fault:
            buffer.enable_locking()
        if fault.raised:
            buffer.add(b"x")
            buffer.enable_locking()
        with buffer.lock():
            buffer.add(b"x")


def buffer_read(fault: Fault) -> None:
    with sockets() as (a, b), EvBuffer(b"x") as buffer:
        b.send(b"y" * 3000)
        with fault:
            buffer.read(a)
        assert len(buffer) == (1 if fault.raised else 3001)
        while len(buffer) < 3001:
            buffer.read(a)


def buffer_write(fault: Fault) -> None:
    with sockets() as (a, b), pieces(100) as buffer:
        content = bytes(buffer)
        with fault:
            buffer.write(a)
        buffer.write(a)
        assert received(b) == content


# ---- bufferevents ----


def bufferevent_with(options: int) -> Case:
    def case(fault: Fault) -> None:
        with EventBase() as base, sockets() as (a, _):
            with fault:
                BufferEvent.socket(base, a, options)
            if fault.raised:
                assert a.fileno() >= 0
                BufferEvent.socket(base, a, options)
            assert a.fileno() < 0
            few_rounds(base)

    case.__name__ = f"bufferevent_with_options_{int(options):x}"
    return case


def pair(options: int) -> Case:
    def case(fault: Fault) -> None:
        with EventBase() as base:
            with fault.tolerated:
                a, b = BufferEvent.pair(base, options)
            if fault.raised:
                a, b = BufferEvent.pair(base, options)
            a.write(b"x")
            b.enable(EV_READ)
            few_rounds(base)
            assert b.read() == b"x"

    case.__name__ = "pair_with_a_lock" if options else "pair"
    return case


def filter_(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        below = BufferEvent.socket(base, a)
        got: list[bytes] = []
        below.setcb(read=lambda bev: got.append(bev.read()))
        below.enable(EV_READ)
        with fault.tolerated:
            above = BufferEvent.filter(below)
        if fault.raised:
            b.send(b"x")
            few_rounds(base)
            assert got == [b"x"]
            above = BufferEvent.filter(below)
        above.enable(EV_READ)
        above.write(b"to b")
        b.send(b"from b")
        few_rounds(base)
        assert (above.read(), received(b)) == (b"from b", b"to b")


def bufferevent_does(name: str, do: Callable[[BufferEvent], object]) -> Case:
    def case(fault: Fault) -> None:
        with EventBase() as base, sockets() as (a, b):
            bev = BufferEvent.socket(base, a)
            with fault.tolerated:
                do(bev)
            if fault.raised:
                do(bev)
            written = bev.output.copyout(len(bev.output))
            data = b""
            while len(data) < len(written):
                base.loop(EVLOOP_NONBLOCK)
                data += received(b)
            assert data == written
            if bev.enabled & EV_READ:
                b.send(b"x")
                few_rounds(base)
                assert bev.read() == b"x"

    case.__name__ = f"bufferevent_{name}"
    return case


def setup(bev: BufferEvent) -> None:
    bev.setcb(nothing, nothing, nothing)
    bev.setwatermark(EV_READ, 1, 1000)
    bev.set_timeouts(5, 5)
    bev.enable(EV_READ)
    bev.disable(EV_READ)
    bev.enable(EV_READ)


def limit(bev: BufferEvent) -> None:
    bev.set_rate_limit(TokenBucketConfig(10_000, 10_000, 10_000, 10_000))


def share(bev: BufferEvent) -> None:
    group = RateLimitGroup(bev.base, TokenBucketConfig(10_000, 10_000, 10_000, 10_000))
    bev.add_to_rate_limit_group(group)


def other_fd(bev: BufferEvent) -> None:
    bev.set_timeouts(5, 5)
    bev.enable(EV_READ)
    bev.fd = bev.fd


def write(bev: BufferEvent) -> None:
    bev.write(LARGE)


def write_buffer(bev: BufferEvent) -> None:
    with EvBuffer(LARGE) as buffer:
        bev.write_buffer(buffer)


def buffers(bev: BufferEvent) -> None:
    assert (len(bev.input), len(bev.output)) == (0, 0)


def close_after_write(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        bev = BufferEvent.socket(base, a)
        bev.write(LARGE)
        with fault:
            bev.close_after_write(5)
        if fault.raised:
            bev.close()
        else:
            data = b""
            while not bev.closed:
                base.loop(EVLOOP_NONBLOCK)
                data += received(b)
            assert data + received(b) == LARGE


def close(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, _):
        bev = BufferEvent.socket(base, a)
        bev.output.add(b"x")
        view = bev.output.peek()
        with fault.tolerated:
            bev.close()
        assert bev.closed
        assert fault.raised is None
        assert bytes(view[0]) == b"x"
        del view


def connect(fault: Fault) -> None:
    with EventBase() as base, socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        told: list[int] = []
        bev.setcb(event=lambda bev, what: told.append(what))
        address = server.getsockname()
        with fault.tolerated:
            bev.connect(address)
        if fault.raised:
            bev.connect(address)
        while not told:
            base.loop(EVLOOP_NONBLOCK)
        assert told == [0x80]
        bev.close()


def connect_by_name(fault: Fault) -> None:
    with EventBase() as base, socket.create_server(("127.0.0.1", 0)) as server:
        bev = BufferEvent.socket(base)
        told: list[int] = []
        bev.setcb(event=lambda bev, what: told.append(what))
        port = server.getsockname()[1]
        with fault.tolerated:
            bev.connect_hostname("localhost", port, socket.AF_INET)
        few_rounds(base)
        if fault.hit and told != [0x80]:
            assert fault.raised or told == [BEV_EVENT_ERROR]
            del told[:]
            bev.connect_hostname("localhost", port, socket.AF_INET)
        while not told:
            base.loop(EVLOOP_NONBLOCK)
        assert told == [0x80]
        bev.close()


# ---- listeners, limits, records, the rest ----


def listener_bind(fault: Fault) -> None:
    with EventBase() as base:
        both(lambda: Listener.bind(base, nothing, ("127.0.0.1", 0)).close(), fault)


def listener_with_a_lock(fault: Fault) -> None:
    with EventBase() as base:
        flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_THREADSAFE
        both(lambda: Listener.bind(base, nothing, ("127.0.0.1", 0), flags=flags).close(), fault)


def listener_on_a_socket(fault: Fault) -> None:
    with EventBase() as base, socket.create_server(("127.0.0.1", 0)) as server:
        with fault:
            Listener(base, nothing, server)
        if fault.raised:
            assert server.fileno() >= 0
            Listener(base, nothing, server)
        assert server.fileno() < 0


def token_bucket_config(fault: Fault) -> None:
    both(lambda: TokenBucketConfig(1, 2, 3, 4), fault)


def rate_limit_group(fault: Fault) -> None:
    with EventBase() as base:
        cfg = TokenBucketConfig(1000, 1000, 1000, 1000)
        both(lambda: RateLimitGroup(base, cfg).close(), fault)


def record(name: str, write: Callable[[EvBuffer], None]) -> Case:
    def case(fault: Fault) -> None:
        with EvBuffer() as buffer, EvBuffer() as complete:
            write(complete)
            with fault:
                write(buffer)
            assert bytes(buffer) == (b"" if fault.raised else bytes(complete))

    case.__name__ = f"record_{name}"
    return case


def record_of_a_buffer(fault: Fault) -> None:
    with EvBuffer() as buffer, EvBuffer(LARGE) as payload:
        with fault:
            tag.marshal_buffer(buffer, 1, payload)
        if fault.raised:
            assert (bytes(buffer), bytes(payload)) == (b"", LARGE)
            tag.marshal_buffer(buffer, 1, payload)
        assert tag.unmarshal_fixed(buffer, 1, len(LARGE)) == LARGE


def record_to_a_buffer(fault: Fault) -> None:
    with EvBuffer() as buffer, EvBuffer() as target:
        tag.marshal(buffer, 7, LARGE)
        tag.marshal(buffer, 8, b"more")
        content = bytes(buffer)
        with fault:
            tag.unmarshal(buffer, target)
        if fault.raised:
            assert (bytes(buffer), bytes(target)) == (content, b"")
            tag.unmarshal(buffer, target)
        assert bytes(target) == LARGE


def record_taken(fault: Fault) -> None:
    with EvBuffer() as buffer:
        tag.marshal(buffer, 7, b"x" * 300)
        tag.marshal_int(buffer, 8, 9)
        with fault.tolerated:
            assert tag.unmarshal_fixed(buffer, 7, 300) == b"x" * 300
            assert tag.unmarshal_int(buffer, 8) == 9
        assert fault.raised is None


def monotonic_timer(fault: Fault) -> None:
    both(lambda: util.MonotonicTimer().gettime(), fault)


# ---- what opens descriptors, or hands them to the system ----


def socketpair(fault: Fault) -> None:
    def open_and_close() -> None:
        for one in util.socketpair():
            one.close()

    both(open_and_close, fault)


def listener_address(fault: Fault) -> None:
    with EventBase() as base:
        listener = Listener.bind(base, nothing, ("127.0.0.1", 0))
        both(lambda: listener.address, fault)


def buffer_write_of_a_file(fault: Fault) -> None:
    with a_file() as file, EvBuffer() as buffer, sockets() as (a, b):
        buffer.set_flags(1)
        buffer.add_file(file, 0, 1000)
        with fault:
            buffer.write(a)
        if fault.raised:
            assert len(buffer) == 1000
            buffer.write(a)
        assert received(b) == LARGE[:1000]


def loop_of_events(fault: Fault) -> None:
    with EventBase() as base, sockets() as (a, b):
        happened: list[object] = []
        event = Event(base, a, EV_READ, lambda *_: happened.append(1))
        event.add()
        b.send(b"x")
        with fault:
            base.loop(EVLOOP_NONBLOCK)
        base.loop(EVLOOP_NONBLOCK)
        assert happened == [1]


# ---- the loop ----


class Echo:
    """A bufferevent that sends back what it gets, and what it has been told."""

    def __init__(self, bev: BufferEvent) -> None:
        self.bev = bev
        self.errors: list[object] = []
        bev.setcb(read=self.on_read, event=self.on_event)
        bev.enable(EV_READ)

    def on_read(self, bev: BufferEvent) -> None:
        bev.write(bytes(bev.input))  # with a MemoryError the input stays
        bev.input.drain(len(bev.input))

    def on_event(self, bev: BufferEvent, what: int) -> None:
        if what & BEV_EVENT_ERROR:
            self.errors.append(bev.error)

    def goes_on(self) -> None:
        if self.bev.underlying:
            self.bev.underlying.enable(EV_READ | EV_WRITE)
        self.bev.enable(EV_READ | EV_WRITE)
        if self.bev.input:
            self.bev.trigger(EV_READ)


def echo(name: str, make: Callable[[EventBase, socket.socket], BufferEvent], n: int) -> Case:
    """Bytes come back, all of them and in their order, whatever fails."""

    def case(fault: Fault) -> None:
        with EventBase() as base, sockets() as (a, b):
            it = Echo(make(base, a))
            sent, got, chunk = 0, b"", (LARGE * 3)[:n]
            with fault.tolerated:
                for _ in range(3):
                    with contextlib.suppress(BlockingIOError):
                        sent += b.send(chunk)
                    for _ in range(20):
                        base.loop(EVLOOP_NONBLOCK)
                        got += received(b)
            assert all(fault.is_told_by(error) for error in it.errors), it.errors  # type: ignore[arg-type]
            it.goes_on()
            expected = (chunk * 3)[:sent] + b"last"
            last = memoryview(b"last")
            deadline = Timer(base, nothing)
            deadline.add(5)
            while len(got) < len(expected) and deadline.pending():
                if last:
                    with contextlib.suppress(BlockingIOError):
                        last = last[b.send(last) :]
                base.loop(EVLOOP_NONBLOCK)
                got += received(b)
            assert got == expected

    case.__name__ = f"echo_{name}"
    return case


def sock(options: int) -> Callable[[EventBase, socket.socket], BufferEvent]:
    return lambda base, a: BufferEvent.socket(base, a, options | BEV_OPT_CLOSE_ON_FREE)


def with_timeouts(base: EventBase, a: socket.socket) -> BufferEvent:
    bev = BufferEvent.socket(base, a)
    bev.set_timeouts(50, 50)
    return bev


def with_watermarks(base: EventBase, a: socket.socket) -> BufferEvent:
    bev = BufferEvent.socket(base, a)
    bev.setwatermark(EV_READ, 0, 1000)
    return bev


def with_a_limit(base: EventBase, a: socket.socket) -> BufferEvent:
    bev = BufferEvent.socket(base, a)
    bev.set_rate_limit(TokenBucketConfig(100_000, 100_000, 100_000, 100_000, tick=0.001))
    return bev


def with_a_filter(base: EventBase, a: socket.socket) -> BufferEvent:
    return BufferEvent.filter(BufferEvent.socket(base, a), options=BEV_OPT_CLOSE_ON_FREE)


def accepting(fault: Fault) -> None:
    with EventBase() as base:
        echoes: list[Echo] = []
        failures: list[BaseException] = []

        def accept(_listener: Listener, fd: int, _address: object) -> None:
            echoes.append(Echo(BufferEvent.socket(base, fd)))

        listener = Listener.bind(base, accept, ("127.0.0.1", 0))
        listener.set_error_cb(lambda _listener, error: failures.append(error))
        with fault.tolerated, socket.create_connection(listener.address):
            few_rounds(base)
        assert all(fault.is_told_by(error) for error in failures), failures
        with socket.create_connection(listener.address) as client:
            client.sendall(b"x")
            client.setblocking(False)
            deadline = Timer(base, nothing)
            deadline.add(5)
            while not (got := received_or_none(client)) and deadline.pending():
                base.loop(EVLOOP_ONCE if failures else EVLOOP_NONBLOCK)
            assert got == b"x"


def received_or_none(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(100)
    except BlockingIOError:
        return None


def timers_in_callbacks(fault: Fault) -> None:
    with EventBase() as base:
        happened: list[int] = []

        def again(n: int) -> None:
            happened.append(n)
            for _ in range(2 if n < 5 else 0):
                Timer(base, again, n + 1).add(0)

        with fault.tolerated:
            again(0)
            base.dispatch()
        assert fault.raised or len(happened) == 63
        base.dispatch()


def persistent_timers(fault: Fault) -> None:
    with EventBase() as base:
        counts = [0] * 20

        def tick(i: int) -> None:
            counts[i] += 1
            if counts[i] == 3:
                timers[i].delete()

        timers = [Timer(base, tick, i, persist=True) for i in range(20)]
        for timer in timers:
            timer.add(0.0001)
        with fault.tolerated:
            base.loop(EVLOOP_ONCE)
            base.once(-1, EV_TIMEOUT, nothing, timeout=0)
        base.dispatch()
        assert counts == [3] * 20


def handled(fault: Fault) -> None:
    """With an exception_handler nothing leaves the loop."""
    with EventBase() as base, sockets() as (a, b):
        caught: list[BaseException] = []
        base.exception_handler = lambda exception, _source: caught.append(exception)
        it = Echo(BufferEvent.socket(base, a))
        with fault.tolerated:
            b.send(b"x" * 5000)
            few_rounds(base)
        assert fault.raised is None
        assert all(fault.is_told_by(error) for error in [*caught, *it.errors])  # type: ignore[arg-type]
        it.goes_on()
        few_rounds(base)
        assert received(b) == b"x" * 5000


def connected_pair(fault: Fault) -> None:
    with EventBase() as base:
        a, b = BufferEvent.pair(base)
        got: list[bytes] = []
        b.setcb(read=lambda bev: got.append(bev.read()))
        with fault.tolerated:
            b.enable(EV_READ)
            a.write(LARGE)
            few_rounds(base)
        b.enable(EV_READ)
        if fault.raised and not got and not b.input and not a.output:
            a.write(LARGE)
        few_rounds(base)
        assert b"".join(got) + b.read() == LARGE


SHORT_WAY: list[Case] = [
    echo("little", sock(0), 100),
    echo("deferred", sock(BEV_OPT_DEFER_CALLBACKS), 20_000),
    echo("with_timeouts", with_timeouts, 20_000),
    echo("with_watermarks", with_watermarks, 20_000),
]
MUCH: list[Case] = [echo("much", sock(0), 150_000)]
LIBEVENTS_WAY: list[Case] = [
    echo("threadsafe", sock(BEV_OPT_THREADSAFE), 20_000),
    echo("with_a_limit", with_a_limit, 20_000),
    echo("with_a_filter", with_a_filter, 20_000),
]
LOOPS: list[Case] = [
    *SHORT_WAY,
    *MUCH,
    *LIBEVENTS_WAY,
    accepting,
    timers_in_callbacks,
    persistent_timers,
    handled,
    connected_pair,
]


CASES: list[Case] = [
    config,
    config_avoid_method,
    base,
    base_of("epoll"),
    base_of("poll"),
    base_of("select"),
    base_priorities,
    common_timeouts,
    loopexit,
    closed_in_a_deferred_callback,
    loop,
    once,
    reinit,
    dump_events,
    foreach_event,
    event_add,
    event_add_of_a_high_descriptor,
    event_active,
    many_timers,
    signals,
    buffer,
    buffer_with_content,
    changes("add", lambda buffer: buffer.add(LARGE)),
    changes("prepend", lambda buffer: buffer.prepend(LARGE)),
    changes("add_printf", lambda buffer: buffer.add_printf("%2000d", 1)),
    changes("add_iovec", lambda buffer: buffer.add_iovec([b"x" * 3000, LARGE, b"y"])),
    changes("add_reference", lambda buffer: buffer.add_reference(LARGE)),
    looks("expand", lambda buffer: buffer.expand(5000)),
    looks("pullup", lambda buffer: buffer.pullup(-1).release()),
    looks("copyout", lambda buffer: buffer.copyout(200)),
    buffer_remove_buffer,
    buffer_add_buffer_reference,
    buffer_referred_to_again,
    buffer_add_file,
    buffer_add_file_for_sendfile,
    file_segment,
    file_segment_read_now,
    file_segment_cleanup,
    lookup_cancel,
    buffer_add_file_segment,
    buffer_readln,
    buffer_reserve,
    buffer_callbacks,
    buffer_locking,
    buffer_read,
    bufferevent_with(BEV_OPT_CLOSE_ON_FREE),
    bufferevent_with(BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE),
    bufferevent_with(BEV_OPT_DEFER_CALLBACKS),
    pair(0),
    pair(BEV_OPT_THREADSAFE),
    filter_,
    bufferevent_does("setup", setup),
    bufferevent_does("rate_limit", limit),
    bufferevent_does("group", share),
    bufferevent_does("fd", other_fd),
    bufferevent_does("write", write),
    bufferevent_does("write_buffer", write_buffer),
    bufferevent_does("buffers", buffers),
    close_after_write,
    close,
    connect,
    connect_by_name,
    listener_bind,
    listener_with_a_lock,
    listener_on_a_socket,
    token_bucket_config,
    rate_limit_group,
    record("bytes", lambda buffer: tag.marshal(buffer, 1, b"x")),
    record("large", lambda buffer: tag.marshal(buffer, 1, LARGE)),
    record("int", lambda buffer: tag.marshal_int(buffer, 1, 2)),
    record("int64", lambda buffer: tag.marshal_int64(buffer, 1, 2)),
    record("timeval", lambda buffer: tag.marshal_timeval(buffer, 1, 2)),
    record("encoded_int", lambda buffer: tag.encode_int(buffer, 2)),
    record("encoded_int64", lambda buffer: tag.encode_int64(buffer, 2)),
    record("encoded_tag", lambda buffer: tag.encode_tag(buffer, 2)),
    record_of_a_buffer,
    record_to_a_buffer,
    monotonic_timer,
    selector,
    selector_register,
]


def names(case: Case) -> str:
    return case.__name__


@pytest.mark.parametrize("case", CASES, ids=names)
def test_an_allocation_that_fails_is_a_memory_error(case: Case, faults: Faults) -> None:
    faults.each(case)


@pytest.mark.parametrize("case", CASES, ids=names)
def test_memory_that_has_run_out_is_a_memory_error(case: Case, faults: Faults) -> None:
    faults.each(case, times=NEVER)


@pytest.mark.parametrize("case", LOOPS, ids=names)
def test_the_loop_goes_on_without_an_allocation(case: Case, faults: Faults) -> None:
    faults.each(case)


@pytest.mark.parametrize("case", LOOPS, ids=names)
def test_the_loop_goes_on_after_memory_has_run_out(case: Case, faults: Faults) -> None:
    faults.each(case, times=NEVER)


def letting_go(fault: Fault) -> None:
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(EventBase())
        a, b = stack.enter_context(sockets())
        file = stack.enter_context(a_file())
        bev = BufferEvent.socket(base, a)
        bev.set_rate_limit(TokenBucketConfig(1000, 1000, 1000, 1000))
        group = RateLimitGroup(base, TokenBucketConfig(1000, 1000, 1000, 1000))
        bev.add_to_rate_limit_group(group)
        bev.enable(EV_READ)
        bev.write(LARGE)
        pair = BufferEvent.pair(base)
        pair[0].write(LARGE)
        listener = Listener.bind(base, nothing, ("127.0.0.1", 0))
        timer = Timer(base, nothing)
        timer.add(5)
        event = Event(base, b, EV_READ, nothing)
        event.add(5)
        arrived = Signal(base, signal.SIGUSR1, nothing)
        arrived.add()
        segment = FileSegment(file)
        buffer, other = pieces(3), EvBuffer(b"x")
        buffer.add_file_segment(segment)
        other.add_buffer_reference(buffer)
        buffer.add_cb(nothing)
        entry = buffer.add_cb(nothing)
        with fault:
            buffer.drain(2)
            buffer.remove(3)
            other.add_buffer(buffer)
            other.prepend_buffer(buffer)
            entry.remove()
            bev.disable(EV_READ)
            bev.remove_from_rate_limit_group()
            bev.set_rate_limit(None)
            timer.remove_timer()
            event.delete()
            arrived.delete()
            base.loopbreak()
            for one in (buffer, other, segment, timer, event, bev, *pair, listener, group, base):
                one.close()


def buffer_refers_to_itself(fault: Fault) -> None:
    buffer = EvBuffer(b"x")
    with fault, contextlib.suppress(LibeventError):
        buffer.add_buffer_reference(buffer)


NEED_NONE = [letting_go, buffer_move, buffer_write, record_taken, buffer_refers_to_itself]


@pytest.mark.parametrize("case", NEED_NONE, ids=names)
def test_letting_go_and_moving_need_no_memory(case: Case, faults: Faults) -> None:
    faults.none(case)


# What calls may fail with, and the cases that have to tell it.
TOLD: list[tuple[str, int, list[Case]]] = [
    ("pipe", errno.EMFILE, [loop]),
    ("socket", errno.EMFILE, [connect]),
    ("socketpair", errno.EMFILE, [socketpair]),
    ("bind", errno.EADDRINUSE, [listener_bind]),
    ("listen", errno.EADDRINUSE, [listener_bind]),
    ("connect", errno.ENETUNREACH, [connect]),
    ("getsockopt", errno.ENOTSOCK, [listener_on_a_socket]),
    ("sigaction", errno.EINVAL, [signals]),
    ("epoll_ctl", errno.ENOSPC, [event_add, once, loop, selector, selector_register]),
    ("epoll_wait", errno.EBADF, [loop_of_events, selector_wait]),
    (
        "fcntl",
        errno.EMFILE,
        [loop, file_segment, buffer_add_file, bufferevent_with(BEV_OPT_CLOSE_ON_FREE)],
    ),
    (
        "fstat",
        errno.EIO,
        [file_segment, buffer_add_file, bufferevent_with(BEV_OPT_CLOSE_ON_FREE), selector_register],
    ),
    ("lseek", errno.EIO, [file_segment_read_now, buffer_add_file, buffer_add_file_segment]),
    ("read", errno.EIO, [file_segment_read_now, buffer_add_file, buffer_add_file_segment]),
    ("readv", errno.EIO, [buffer_read]),
    ("writev", errno.EIO, [buffer_write]),
    ("sendfile", errno.EIO, [buffer_write_of_a_file]),
]
# And those that get by, or leave it to a callback.
TOLERATED: list[tuple[str, int, list[Case]]] = [
    ("setsockopt", errno.EPERM, [bufferevent_with(BEV_OPT_CLOSE_ON_FREE), connect]),
    ("socket", errno.EMFILE, [listener_bind]),
    ("pipe2", errno.EMFILE, [base]),
    ("epoll_create1", errno.EMFILE, [base]),
    ("epoll_wait", errno.EINTR, [loop_of_events, selector_wait, *SHORT_WAY]),
    (
        "epoll_ctl",
        errno.ENOSPC,
        [
            base,
            signals,
            filter_,
            connect,
            listener_bind,
            listener_on_a_socket,
            bufferevent_does("setup", setup),
            bufferevent_does("fd", other_fd),
            bufferevent_does("write", write),
            bufferevent_does("write_buffer", write_buffer),
            *LIBEVENTS_WAY,
            accepting,
            timers_in_callbacks,
            persistent_timers,
        ],
    ),
    ("ioctl", errno.EINVAL, [buffer_read]),
    ("recv", errno.ECONNRESET, [*SHORT_WAY, *MUCH, handled]),
    ("readv", errno.ECONNRESET, LIBEVENTS_WAY),
    ("send", errno.EPIPE, [*SHORT_WAY, handled]),
    ("writev", errno.EPIPE, [*MUCH, *LIBEVENTS_WAY]),
    ("close", errno.EIO, [base, listener_bind]),
    ("accept4", errno.EMFILE, [accepting]),
    ("accept4", errno.ENFILE, [accepting]),
    ("accept4", errno.ECONNABORTED, [accepting]),
    ("accept4", errno.EINTR, [accepting]),
]
Failure = tuple[str, int, Case]


def each_of(table: list[tuple[str, int, list[Case]]]) -> list[Failure]:
    return [(call, error, case) for call, error, cases in table for case in cases]


def name_of(failure: Failure) -> str:
    call, error, case = failure
    return f"{call}-{errno.errorcode[error]}-{case.__name__}"


@pytest.mark.parametrize("failure", each_of(TOLD), ids=name_of)
def test_a_system_call_that_fails_is_an_os_error(failure: Failure, faults: Faults) -> None:
    call, error, case = failure
    faults.each(case, call, error)


@pytest.mark.parametrize("failure", each_of(TOLERATED), ids=name_of)
def test_a_system_call_that_fails_does_no_harm(failure: Failure, faults: Faults) -> None:
    call, error, case = failure
    faults.each(case, call, error, tolerated=True)


@pytest.mark.parametrize(
    "case",
    [
        base,
        base_of("select"),
        loop,
        connect,
        listener_bind,
        listener_address,
        socketpair,
        file_segment,
        buffer_add_file,
        accepting,
        selector,
    ],
    ids=names,
)
def test_without_descriptors_each_call_fails_cleanly(case: Case, faults: Faults) -> None:
    faults.each_room(case)
