"""What users of libevent fall into, one test for each trap, named after it. (LE#n: the issue of
libevent's in which somebody did.) Traps that are a promise of one class are tested with that."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from typing import Any

import pytest
from common import few_rounds
from conftest import RunUntil
from processes import run_script

from pylibevent import (
    BEV_EVENT_EOF,
    BEV_EVENT_READING,
    BEV_EVENT_TIMEOUT,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    BEV_TRIG_DEFER_CALLBACKS,
    EV_PERSIST,
    EV_READ,
    EV_WRITE,
    EVENT_BASE_FLAG_PRECISE_TIMER,
    EVLOOP_NONBLOCK,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    Listener,
    Signal,
    Timer,
)

run_checked = functools.partial(run_script, PYTHONWARNINGS="error")

Sockets = tuple[socket.socket, socket.socket]
THREADED = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE


# ---- free inside a callback, callbacks after free ----

FUZZ = """
import gc, random, socket, sys
from pylibevent import *

seed, options = int(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
base = EventBase()
alive, peers, kept, calls = [], [], [], 0
handled = []

class Mine(Exception):
    pass

def unraisable(lost):  # of several in one call one leaves it, the others come here
    if not isinstance(lost.exc_value, Mine):
        sys.__unraisablehook__(lost)

sys.unraisablehook = unraisable

def handler(exception, source):
    assert isinstance(exception, Mine), repr(exception)
    handled.append(source)
    if random.random() < 0.5:
        source.close()

def act(bev):
    "Does something to some bufferevent, perhaps to this one."
    other = random.choice([bev, bev, random.choice(alive)])
    n = random.randrange(18)
    try:
        if n == 0:
            other.close()
        elif n == 1:
            other.close_after_write()
        elif n == 2:
            other.setcb()
        elif n == 3:
            other.disable(random.choice([EV_READ, EV_WRITE, EV_READ | EV_WRITE]))
        elif n == 4:
            other.enable(EV_READ | EV_WRITE)
        elif n == 5:
            other.setwatermark(EV_READ, random.randrange(50), random.randrange(0, 2000, 100))
        elif n == 6:
            other.set_timeouts(random.choice([None, 0.001]), random.choice([None, 0.001]))
        elif n == 7:
            kept.append(other.input.peek())
        elif n == 8:
            kept.append(other.output.peek())
        elif n == 9 and kept:
            kept.pop(random.randrange(len(kept)))
        elif n == 10:
            other.write_buffer(bev.input)
        elif n == 11:
            other.trigger(EV_READ | EV_WRITE, random.choice([0, BEV_TRIG_DEFER_CALLBACKS]))
        elif n == 12:
            other.trigger_event(BEV_EVENT_EOF, random.choice([0, BEV_TRIG_DEFER_CALLBACKS]))
        elif n == 13:
            raise Mine
        elif n == 14 and other.partner:
            other.flush(random.choice([EV_READ, EV_WRITE]), random.choice([1, 2]))
        elif n == 15:
            other.input.add_cb(lambda buf, *args: act(random.choice(alive)) if depth < 3 else None)
        elif n == 16:
            start()
        else:
            other.write(bytes(random.randrange(5000)))
            other.read(random.randrange(1000))
    except (ClosedError, BufferError, LibeventError, OSError, RuntimeError):
        pass

depth = 0
def callback(bev, *args):
    global calls, depth
    if depth > 5:
        return
    calls += 1
    depth += 1
    try:
        act(bev)
        act(bev)
    finally:
        depth -= 1

def start():
    if len(alive) > 3000:
        return
    if random.random() < 0.3:
        some = list(BufferEvent.pair(base, options & ~BEV_OPT_CLOSE_ON_FREE))
    else:
        a, b = socket.socketpair()
        b.setblocking(False)
        peers.append(b)
        if len(peers) > 60:
            peers.pop(0).close()
        some = [BufferEvent.socket(base, a, options)]
    for bev in some:
        bev.setcb(callback, callback, callback)
        bev.enable(EV_READ)
        bev.write(bytes(100))
        alive.append(bev)

base.exception_handler = handler
for _ in range(20):
    start()
for turn in range(400):
    if len(alive) > 200:
        random.shuffle(alive)
        for bev in alive[100:]:
            bev.close()
        del alive[100:]
    start()
    for peer in peers:
        try:
            if random.random() < 0.5:
                peer.send(bytes(random.randrange(3000)))
            if random.random() < 0.5:
                peer.recv(100000)
            if random.random() < 0.02:
                peer.close()
        except OSError:
            pass
    try:
        base.loop(EVLOOP_NONBLOCK)
    except Mine:
        pass
    try:
        act(random.choice(alive))
    except Mine:
        pass
    if turn % 100 == 99:
        kept.clear()
        gc.collect()
if seed % 2:
    kept.clear()
base.close()
kept.clear()
alive.clear()
gc.collect()
for peer in peers:
    peer.close()
print(calls)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        BEV_OPT_CLOSE_ON_FREE,
        THREADED,
        BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS,
        THREADED | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
    ],
    ids=["plain", "threadsafe", "deferred", "unlocked"],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_anything_at_all_inside_callbacks(options: int, seed: int) -> None:
    assert int(run_checked(FUZZ, str(seed), str(int(options)))) > 1000


TRANSFERS = {
    "enable": """
        watch()
        p.write(b"x")
        q.enable(EV_READ)
""",
    "write": """
        q.enable(EV_READ)
        watch()
        p.write(b"x")
""",
    "flush": """
        p.write(b"x")
        watch()
        p.flush(EV_WRITE, BEV_FLUSH)
""",
    "close_after_write": """
        q.enable(EV_READ)
        p.disable(EV_WRITE)
        p.write(b"x")
        watch()
        p.close_after_write()
""",
    "a view of the input let go of": """
        q.enable(EV_READ)
        p.write(b"x")
        views = q.input.peek()
        watch()
        p.write(b"y")
        del views
""",
    "a view of the output let go of": """
        q.enable(EV_READ)
        p.disable(EV_WRITE)
        p.write(b"x")
        views = p.output.peek()
        p.enable(EV_WRITE)
        watch()
        del views
""",
    "drained below the high watermark": """
        full()
        watch()
        q.input.drain(5)
""",
    "read_buffer below the high watermark": """
        full()
        watch()
        q.read_buffer(EvBuffer())
""",
    "the high watermark raised": """
        full()
        watch()
        q.setwatermark(EV_READ, 0, 0)
""",
}


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_an_input_callback_closes_in_the_middle_of_a_transfer(transfer: str) -> None:
    """What one of a pair does moves data to the other, whose EvBuffer's callback may close
    either."""
    out = run_checked(
        f"""
import gc
from pylibevent import *
for options in (0, BEV_OPT_THREADSAFE):
    for victims in ("p", "q", "pq"):
        base = EventBase()
        p, q = BufferEvent.pair(base, options)

        def close(buf, before, added, deleted):
            if added:
                p.close() if "p" in victims else None
                q.close() if "q" in victims else None

        def watch():
            q.input.add_cb(close)

        def full():
            q.setwatermark(EV_READ, 0, 5)
            q.setcb(read=lambda bev: None)
            q.enable(EV_READ)
            p.write(b"0123456789")
            for _ in range(5):
                base.loop(EVLOOP_NONBLOCK)
            assert len(q.input) == 5
{TRANSFERS[transfer]}
        gc.collect()
        for _ in range(5):
            base.loop(EVLOOP_NONBLOCK)
        assert p.closed or "p" not in victims
        assert q.closed == ("q" in victims)
        base.close()
        del p, q
        gc.collect()
print("fine")
"""
    )
    assert out == "fine\n"


def test_free_on_timeout_with_output_pending(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    """LE#1127: closed at a read timeout in the middle of writing."""
    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(event=lambda bev, _what: bev.close())
    bev.set_timeouts(read=0.01)
    bev.enable(EV_READ)
    bev.write(bytes(5_000_000))
    run_until(lambda: bev.closed)
    few_rounds(base)


def test_trigger_after_free_from_another_thread(base: EventBase, run_until: RunUntil) -> None:
    """LE#1564."""
    wrong: list[BaseException] = []
    current: list[BufferEvent] = []
    stop = threading.Event()

    def trigger() -> None:
        while not stop.is_set():
            try:
                for bev in tuple(current):
                    bev.trigger(EV_READ, BEV_TRIG_DEFER_CALLBACKS)
                    bev.write(b"x")
            except ClosedError:
                pass
            except BaseException as error:
                wrong.append(error)
                return

    thread = threading.Thread(target=trigger)
    thread.start()
    for _ in range(500):
        a, b = BufferEvent.pair(base, BEV_OPT_THREADSAFE)
        a.setcb(read=lambda _bev: None)
        a.enable(EV_READ)
        b.enable(EV_READ)
        current[:] = [a, b]
        base.loop(EVLOOP_NONBLOCK)
        a.close()
        b.close()
    stop.set()
    thread.join()
    assert wrong == []


@pytest.mark.parametrize("n", [1, 5])
def test_event_free_in_the_callback_of_a_signal_that_came_more_than_once(
    base: EventBase, n: int
) -> None:
    """LE#1287: libevent looks at the event again for each time that the signal came."""
    calls: list[int] = []

    def callback(signum: int) -> None:
        calls.append(signum)
        events.pop().close()

    events = [Signal(base, signal.SIGUSR1, callback)]
    events[0].add()
    for _ in range(n):
        os.kill(os.getpid(), signal.SIGUSR1)
    few_rounds(base)
    gc.collect()
    few_rounds(base)
    assert calls == [signal.SIGUSR1]


def test_bufferevent_free_is_asynchronous(base: EventBase, sockets: Sockets) -> None:
    """LE#344: in C memory and descriptor go with the next round of the loop, if one comes."""
    bev = BufferEvent.socket(base, sockets[0])
    fd = bev.fd
    bev.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("order", ["base first", "base last"])
def test_free_order_of_events_and_base(sockets: Sockets, order: str) -> None:
    """LE#659: an event freed after its base is use of freed memory, in C."""
    base = EventBase()
    things: list[Any] = [
        Event(base, sockets[0], EV_READ | EV_PERSIST, print),
        Timer(base, print),
        Signal(base, signal.SIGUSR1, print),
        BufferEvent.socket(base),
        *BufferEvent.pair(base),
        Listener.bind(base, print, ("127.0.0.1", 0)),
    ]
    for thing in things[:2]:
        thing.add(10)
    things[2].add()
    if order == "base first":
        base.close()
    for thing in things:
        thing.close()
        assert thing.closed
    base.close()


def test_a_deferred_callback_after_disable_and_setcb_none(base: EventBase) -> None:
    """LE#1809."""
    calls: list[int] = []
    a, b = BufferEvent.pair(base)
    b.setcb(read=lambda _bev: calls.append(1))
    b.enable(EV_READ)
    a.write(b"x")
    b.disable(EV_READ)
    b.setcb()
    few_rounds(base)
    assert calls == []
    assert b.input == b"x"


def test_a_methods_call_on_one_that_has_no_socket(base: EventBase) -> None:
    """What a binding that took the descriptor for granted crashed at."""
    bev = BufferEvent.socket(base)
    bev.enable(EV_READ | EV_WRITE)
    bev.set_timeouts(0.01, 0.01)
    bev.write(b"x")
    bev.read()
    bev.trigger(EV_READ | EV_WRITE)
    bev.trigger_event(BEV_EVENT_EOF)
    bev.disable(EV_READ | EV_WRITE)
    bev.flush(EV_READ)
    assert bev.dns_error is None
    few_rounds(base)
    bev.close()


def test_an_object_that_was_never_made(base: EventBase) -> None:
    for cls in (BufferEvent, Listener, Event, EvBuffer):
        thing: Any = cls.__new__(cls)
        with pytest.raises(AttributeError):
            thing.close()
        del thing
    gc.collect()


# ---- threads ----


def test_deadlock_of_two_threads_and_their_locks(base: EventBase) -> None:
    """LE#1750 and others: two bufferevents whose callbacks write to each other, and threads that
    use both in either order."""
    a_side, a_peer = socket.socketpair()
    b_side, b_peer = socket.socketpair()
    options = THREADED | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS
    a = BufferEvent.socket(base, a_side, options)
    b = BufferEvent.socket(base, b_side, options)
    a.setcb(read=lambda bev: b.write(bev.read()))
    b.setcb(read=lambda bev: a.write(bev.read()))
    left = [3]

    def use(first: BufferEvent, second: BufferEvent) -> None:
        for _ in range(300):
            first.write(b"x")
            second.disable(EV_READ)
            second.enable(EV_READ)
            first.set_timeouts(10, 10)
            second.write(b"y")
        left[0] -= 1
        base.loopbreak()

    def feed() -> None:
        for _ in range(300):
            for peer in (a_peer, b_peer):
                peer.send(b"z")
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    peer.recv(1 << 20)
                peer.setblocking(True)
        left[0] -= 1
        base.loopbreak()

    a.enable(EV_READ)
    b.enable(EV_READ)
    threads = [
        threading.Thread(target=use, args=(a, b)),
        threading.Thread(target=use, args=(b, a)),
        threading.Thread(target=feed),
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while left[0] and time.monotonic() < deadline:
        base.loopexit(1)
        base.dispatch()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    a_peer.close()
    b_peer.close()


@pytest.mark.parametrize("how", ["delete", "close", "remove_timer"])
def test_deleting_the_last_event_from_another_thread_wakes_the_loop(
    base: EventBase, how: str
) -> None:
    """LE#623: in C nothing is left to wait for, and the loop waits."""
    timer = Timer(base, print)
    timer.add(30)

    def other() -> None:
        while not base.running:
            time.sleep(0.001)
        time.sleep(0.02)  # it is asleep by now, most likely
        getattr(timer, how)()

    thread = threading.Thread(target=other)
    thread.start()
    guard = threading.Timer(10, base.loopbreak)
    guard.start()
    try:
        assert base.dispatch() == 1
    finally:
        guard.cancel()
        guard.join()
        thread.join()


def test_closing_the_last_bufferevent_from_another_thread_wakes_the_loop(
    base: EventBase, sockets: Sockets
) -> None:
    bev = BufferEvent.socket(base, sockets[0], THREADED)
    bev.enable(EV_READ)

    def other() -> None:
        while not base.running:
            time.sleep(0.001)
        time.sleep(0.02)
        bev.close()

    thread = threading.Thread(target=other)
    thread.start()
    guard = threading.Timer(10, base.loopbreak)
    guard.start()
    try:
        assert base.dispatch() == 1
    finally:
        guard.cancel()
        guard.join()
        thread.join()


# ---- timeouts ----


def test_a_read_timeout_kills_no_long_write(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    """LE#715: the peer has nothing to say while it takes its time to read the answer."""
    bev = BufferEvent.socket(base, sockets[0])
    events: list[int] = []
    bev.setcb(event=lambda _bev, what: events.append(what))
    bev.enable(EV_READ)
    bev.set_timeouts(read=0.02)
    bev.write(bytes(2_000_000))
    run_until(lambda: events)
    assert events == [BEV_EVENT_READING | BEV_EVENT_TIMEOUT]
    assert bev.enabled == EV_WRITE
    got = 0

    def done() -> bool:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += len(sockets[1].recv(1 << 20))
        return got == 2_000_000

    run_until(done)
    assert len(events) == 1


def test_a_timer_in_a_slow_callback_does_not_fire_early(base: EventBase) -> None:
    """LE#1173: a timer counts from the start of the round, which a slow callback leaves behind."""
    waited: list[float] = []

    def slow() -> None:
        time.sleep(0.1)
        start = time.monotonic()
        Timer(base, lambda: waited.append(time.monotonic() - start)).add(0.05)

    Timer(base, slow).add(0)
    base.dispatch()
    assert waited[0] >= 0.05


def test_with_a_precise_timer_no_timeout_is_early() -> None:
    """LE#1173: the coarse clock lags by milliseconds, and whatever wakes the loop shows it."""
    config = EventConfig()
    config.set_flag(EVENT_BASE_FLAG_PRECISE_TIMER)
    waited: list[float] = []
    with EventBase(config) as base:
        waker = Timer(base, lambda: None, persist=True)
        waker.add(0.0005)

        def again() -> None:
            start = time.monotonic()
            base.update_cache_time()
            Timer(base, done, start).add(0.004)

        def done(start: float) -> None:
            waited.append(time.monotonic() - start)
            if len(waited) < 50:
                again()
            else:
                waker.close()

        again()
        base.dispatch()
    assert min(waited) >= 0.004 - 2e-6  # libevent counts microseconds


# ---- descriptors ----


def test_a_bufferevent_on_a_regular_file_under_epoll(base: EventBase) -> None:
    """LE#835: epoll takes no regular files. In C the output stays where it is and nobody is
    told."""
    if base.method != "epoll":
        pytest.skip("this is epoll's")
    with tempfile.TemporaryFile() as file:

        def write_and_read() -> None:
            bev = BufferEvent.socket(base, file.fileno(), options=0)
            bev.write(b"x")
            bev.enable(EV_READ)

        with pytest.raises(OSError, match=r"bufferevent|socket"):
            write_and_read()
    few_rounds(base)


def test_writing_to_a_regular_file_by_a_bufferevent_under_epoll(
    base: EventBase, run_until: RunUntil
) -> None:
    """The same for one that only writes: an error, or an error event, or the bytes are there."""
    if base.method != "epoll":
        pytest.skip("this is epoll's")
    events: list[int] = []
    with tempfile.TemporaryFile() as file:
        try:
            bev = BufferEvent.socket(base, file.fileno(), options=0)
            bev.setcb(event=lambda _bev, what: events.append(what))
            bev.write(b"x")
        except OSError:
            return
        few_rounds(base)
        assert events or file.read() == b"x"


def test_a_listener_on_what_cannot_be_listened_on(base: EventBase) -> None:
    with (
        tempfile.TemporaryFile() as file,
        pytest.raises(OSError, match="evconnlistener_new"),
    ):
        Listener(base, print, file.fileno(), flags=0)
    few_rounds(base)


# ---- signals, logs ----


def test_signals_on_two_bases(base: EventBase) -> None:
    """libevent moves all signals of the process to the second base, with a warning."""
    with EventBase() as other:
        mine = Signal(base, signal.SIGUSR1, print)
        mine.add()
        with pytest.raises(RuntimeError, match="signal"):
            Signal(other, signal.SIGUSR2, print).add()
        mine.close()
        theirs = Signal(other, signal.SIGUSR2, print)
        theirs.add()  # now it is free
        theirs.close()


def test_warnings_on_stderr(
    base: EventBase, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """They go to logging's logger "libevent"."""
    fd = os.dup(0)
    os.close(fd)
    with caplog.at_level(logging.DEBUG, "libevent"), pytest.raises(OSError, match="event_add"):
        Event(base, fd, EV_READ, print).add()
    assert capfd.readouterr().err == ""
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("libevent", logging.WARNING)
    ]
    assert "Bad file descriptor" in caplog.records[0].getMessage()


# ---- fork ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_with_a_server_running() -> None:
    """LE#319: the child shares the kernel's side of the loop with its parent, until reinit()."""
    out = run_checked(
        """
import os, socket, sys
from pylibevent import *

base = EventBase()
def accept(listener, fd, address):
    bev = BufferEvent.socket(base, fd)
    bev.setcb(read=lambda bev: bev.write_buffer(bev.input), event=lambda bev, what: bev.close())
    bev.enable(EV_READ)
listener = Listener.bind(base, accept, ("127.0.0.1", 0))
a, b = socket.socketpair()
bev = BufferEvent.socket(base, a)
got = []
bev.setcb(read=lambda bev: got.append(bev.read()))
bev.enable(EV_READ)
base.loop(EVLOOP_NONBLOCK)

def talk():
    with socket.create_connection(address) as client:
        client.send(b"hello")
        client.setblocking(False)
        for _ in range(1000):
            base.loopexit(0.01)
            base.dispatch()
            try:
                return client.recv(100)
            except BlockingIOError:
                pass

address = listener.address
pid = os.fork()
if pid == 0:
    status = 1
    try:
        for use in (
            lambda: base.dispatch(),
            lambda: bev.write(b"x"),
            lambda: bev.enable(EV_READ),
            lambda: bev.close(),
            lambda: bev.input.add(b"x"),
            lambda: listener.disable(),
            lambda: listener.close(),
            lambda: BufferEvent.socket(base),
            lambda: Listener.bind(base, print, ("127.0.0.1", 0)),
        ):
            try:
                use()
            except RuntimeError as error:
                assert "reinit" in str(error), error
            else:
                raise AssertionError("no error")
        base.reinit()
        assert talk() == b"hello"  # the child can serve
        bev.close()
        base.close()
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)
_, status = os.waitpid(pid, 0)
assert status == 0, status
b.send(b"still there")
for _ in range(1000):
    if got:
        break
    base.loopexit(0.01)
    base.dispatch()
assert got == [b"still there"]
assert talk() == b"hello"  # and the parent
b.close()
base.close()
print("fine")
"""
    )
    assert out == "fine\n"


def test_base_freed_while_its_loop_runs_in_another_thread() -> None:
    out = run_checked(
        """
import contextlib, threading, socket, time
from pylibevent import *

def read(bev):
    with contextlib.suppress(ClosedError):  # the other thread may close it at any time
        bev.read()

for _ in range(50):
    base = EventBase()
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a, BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE)
    bev.setcb(read=read)
    bev.enable(EV_READ)
    listener = Listener.bind(base, print, ("127.0.0.1", 0))
    thread = threading.Thread(target=base.dispatch)
    thread.start()
    while not base.running:
        time.sleep(0.0001)
    b.send(b"x")
    base.close()
    thread.join(10)
    assert not thread.is_alive()
    assert bev.closed and listener.closed
    try:
        assert b.recv(1) == b""
    except ConnectionResetError:  # what it sent was not read
        pass
    b.close()
print("fine")
"""
    )
    assert out == "fine\n"


# ---- evbuffers ----


def test_the_count_of_prepended_bytes_in_callbacks() -> None:
    """LE#349."""
    counts: list[tuple[int, int, int]] = []
    buffer = EvBuffer(b"tail")
    buffer.add_cb(lambda _buffer, before, added, deleted: counts.append((before, added, deleted)))
    buffer.prepend(b"head")
    buffer.prepend(bytes(5000))
    buffer.prepend_buffer(EvBuffer(bytes(300)))
    assert counts == [(4, 4, 0), (8, 5000, 0), (5008, 300, 0)]


def test_mmap_of_a_file_at_an_offset_past_a_page() -> None:
    """LE#306."""
    data = bytes(range(256)) * 100
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        buffer = EvBuffer()
        buffer.add_file(file, 10_001, 5_000)
        assert bytes(buffer) == data[10_001:15_001]


def test_add_reference_of_memory_that_its_owner_drops(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    """The bufferevent still has to write it."""
    bev = BufferEvent.socket(base, sockets[0])
    bev.disable(EV_WRITE)
    bev.output.add_reference(bytearray(b"lent" * 1000))
    gc.collect()
    bev.enable(EV_WRITE)
    run_until(lambda: not bev.output)
    assert sockets[1].recv(10_000) == b"lent" * 1000
