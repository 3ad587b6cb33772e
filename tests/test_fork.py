"""fork: what a child may do with its parent's base, and what it cannot do to it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import fork, in_child, wait_for

from pylibevent import (
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    Event,
    EventBase,
    EventConfig,
    Listener,
    Signal,
    Timer,
    supported_methods,
)

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]

Sockets = tuple[socket.socket, socket.socket]
RunUntil = Callable[..., None]
ANY_PORT = ("127.0.0.1", 0)


def nothing(*_args: Any) -> None:
    pass


@pytest.fixture(params=supported_methods())
def any_base(request: pytest.FixtureRequest) -> Iterator[EventBase]:
    config = EventConfig()
    for method in supported_methods():
        if method != request.param:
            config.avoid_method(method)
    with EventBase(config) as base:
        yield base


class Busy:
    """A base with one of each pending, and a check that all of it works as before."""

    def __init__(self, base: EventBase, with_signal: bool = True) -> None:
        self.base = base
        self.seen: list[str] = []
        self.sockets = [*socket.socketpair(), *socket.socketpair()]
        a, self.peer, b, self.other = self.sockets
        self.event = Event(base, a, EV_READ | EV_PERSIST, self.readable, a)
        self.event.add()
        self.bev = BufferEvent.socket(base, b)
        self.bev.setcb(self.input)
        self.bev.enable(EV_READ)
        self.listener = Listener.bind(base, self.accepted, ANY_PORT)
        self.where = self.listener.address
        self.timer = Timer(base, self.seen.append, "timer", persist=True)
        self.timer.add(0.01)
        self.signal = Signal(base, signal.SIGUSR1, lambda signum: self.seen.append("signal"))
        self.with_signal = with_signal
        if with_signal:
            self.signal.add()
        base.loop(EVLOOP_NONBLOCK)

    def readable(self, _fd: int, _what: int, sock: socket.socket) -> None:
        sock.recv(100)
        self.seen.append("event")

    def input(self, bev: BufferEvent) -> None:
        bev.read()
        self.seen.append("bev")

    def accepted(self, _listener: Listener, fd: int, _address: Any) -> None:
        os.close(fd)
        self.seen.append("listener")

    def check(self) -> None:
        self.seen.clear()
        self.peer.send(b"x")
        self.other.send(b"x")
        expected = {"event", "bev", "listener", "timer"}
        with socket.create_connection(self.where):
            if self.with_signal:
                os.kill(os.getpid(), signal.SIGUSR1)
                expected.add("signal")
            late = time.monotonic() + 10
            while set(self.seen) != expected and time.monotonic() < late:
                self.base.loop(EVLOOP_ONCE)
        assert set(self.seen) == expected
        assert self.seen.count("event") == self.seen.count("bev") == 1

    def close(self) -> None:
        self.base.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def busy(base: EventBase) -> Iterator[Busy]:
    busy = Busy(base)
    yield busy
    busy.close()


# ---- before reinit ----


def assert_forked(call: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="reinit"):
        call()


def test_in_the_child_every_use_before_reinit_is_a_runtime_error(busy: Busy) -> None:
    base, event, bev, listener = busy.base, busy.event, busy.bev, busy.listener
    timer = Timer(base, nothing)

    def child() -> None:
        for call in (
            base.dispatch,
            lambda: base.loop(EVLOOP_NONBLOCK),
            base.loopexit,
            base.loopbreak,
            base.loopcontinue,
            base.num_events,
            base.update_cache_time,
            lambda: base.got_exit,
            lambda: base.features,
            lambda: base.priority_init(1),
            lambda: base.once(-1, EV_TIMEOUT, nothing),
            lambda: Event(base, -1, EV_READ, nothing),
            lambda: Timer(base, nothing),
            lambda: BufferEvent.pair(base),
            lambda: BufferEvent.socket(base),
            lambda: Listener.bind(base, nothing, ANY_PORT),
            lambda: event.add(1),
            lambda: event.active(EV_READ),
            event.delete,
            event.remove_timer,
            event.pending,
            lambda: event.expires_in,
            lambda: timer.add(1),
            lambda: bev.write(b"x"),
            bev.read,
            lambda: bev.enable(EV_READ),
            lambda: bev.disable(EV_READ),
            bev.input.readln,
            lambda: bev.output.add(b"x"),
            bev.close_after_write,
            listener.enable,
            listener.disable,
            lambda: listener.fd,
        ):
            assert_forked(call)

    in_child(child)
    busy.check()


def test_repr_and_what_needs_no_libevent_work_in_the_child(busy: Busy) -> None:
    def child() -> None:
        for thing in (busy.base, busy.event, busy.timer, busy.signal, busy.bev, busy.listener):
            assert repr(thing).startswith("<")
        assert not busy.base.closed
        assert not busy.base.running
        assert busy.event.base is busy.base

    in_child(child)
    busy.check()


def test_a_new_base_in_the_child_works_at_once(busy: Busy) -> None:
    def child() -> None:
        seen: list[int] = []
        with EventBase() as base:
            Timer(base, seen.append, 1).add(0.001)
            assert base.dispatch() == 1
        assert seen == [1]

    in_child(child)
    busy.check()


def test_signals_of_a_new_base_in_the_child(busy: Busy) -> None:
    """The parent's base, closed in the child, is no longer in the way there."""

    def child() -> None:
        busy.base.close()
        seen: list[int] = []
        with EventBase() as base:
            event = Signal(base, signal.SIGUSR1, seen.append)
            event.add()
            os.kill(os.getpid(), signal.SIGUSR1)
            base.loop(EVLOOP_ONCE)
        assert seen == [signal.SIGUSR1]

    in_child(child)
    busy.check()


# ---- reinit ----


def test_after_reinit_it_works_in_the_child_and_the_parent_is_undisturbed(
    any_base: EventBase,
) -> None:
    busy = Busy(any_base)

    def child() -> None:
        any_base.reinit()
        busy.check()
        busy.check()
        busy.close()

    in_child(child)
    busy.check()
    in_child(child)
    busy.check()
    busy.close()


def test_parent_and_child_run_at_the_same_time(busy: Busy) -> None:
    def child() -> None:
        busy.base.reinit()
        busy.event.close()
        busy.bev.close()
        busy.listener.close()
        ticks: list[int] = []
        Timer(busy.base, ticks.append, 1, persist=True).add(0.001)
        late = time.monotonic() + 10
        while len(ticks) < 50 and time.monotonic() < late:
            busy.base.loop(EVLOOP_ONCE)
        assert len(ticks) >= 50
        assert set(busy.seen) <= {"timer"}

    busy.seen.clear()
    pid = fork(child)
    for _ in range(5):
        busy.check()
    wait_for(pid)
    busy.check()


def test_a_signal_to_the_parent_does_not_reach_the_child_and_the_other_way_round(
    busy: Busy,
) -> None:
    to_parent, from_child = os.pipe()
    to_child, from_parent = os.pipe()

    def child() -> None:
        busy.base.reinit()
        busy.event.close()
        busy.bev.close()
        busy.listener.close()
        busy.seen.clear()
        os.write(from_child, b"1")
        os.read(to_child, 1)  # the parent had its signal now
        for _ in range(3):
            busy.base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)
        assert "signal" not in busy.seen
        os.kill(os.getpid(), signal.SIGUSR1)
        late = time.monotonic() + 10
        while "signal" not in busy.seen and time.monotonic() < late:
            busy.base.loop(EVLOOP_ONCE)
        assert busy.seen.count("signal") == 1

    pid = fork(child)
    os.read(to_parent, 1)
    busy.check()
    busy.seen.clear()
    os.write(from_parent, b"1")
    wait_for(pid)
    for _ in range(3):
        busy.base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)
    assert "signal" not in busy.seen
    for fd in (to_parent, from_child, to_child, from_parent):
        os.close(fd)


def test_ctrl_c_works_in_the_child_after_reinit(base: EventBase) -> None:
    Timer(base, nothing).add(0)
    base.dispatch()  # the wakeup pipe is there

    def child() -> None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        base.reinit()
        Timer(base, nothing).add(3600)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            base.dispatch()

    in_child(child)
    assert base.dispatch() == 1


def test_another_thread_wakes_the_childs_loop_after_reinit(base: EventBase) -> None:
    base.loopbreak()
    base.dispatch()

    def child() -> None:
        base.reinit()
        Timer(base, nothing).add(3600)
        threading.Timer(0.05, base.loopbreak).start()
        assert base.dispatch() == 0

    in_child(child)


def test_reinit_in_the_parent_is_allowed(busy: Busy) -> None:
    busy.base.reinit()
    busy.check()
    busy.base.reinit()
    busy.check()


def test_a_grandchild_has_to_reinit_again(busy: Busy) -> None:
    def grandchild() -> None:
        assert_forked(busy.base.num_events)
        busy.base.reinit()
        busy.check()

    def child() -> None:
        busy.base.reinit()
        busy.check()
        in_child(grandchild)
        busy.check()

    in_child(child)
    busy.check()


def test_two_children_at_once(busy: Busy) -> None:
    def child() -> None:
        busy.base.reinit()
        busy.timer.close()
        for thing in (busy.event, busy.bev, busy.listener, busy.signal):
            thing.close()
        seen: list[int] = []
        Timer(busy.base, seen.append, 1).add(0.01)
        busy.base.dispatch()
        assert seen == [1]

    pids = [fork(child) for _ in range(4)]
    busy.check()
    for pid in pids:
        wait_for(pid)
    busy.check()


def test_buffered_output_is_written_by_whoever_goes_on(base: EventBase, sockets: Sockets) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.write(b"once")

    def child() -> None:
        base.reinit()
        bev.close_after_write()
        base.dispatch()

    in_child(child)
    assert sockets[1].recv(100) == b"once"
    bev.close()


# ---- the child leaves the parent alone ----


def close_base(busy: Busy) -> None:
    busy.base.close()


def close_each(busy: Busy) -> None:
    for thing in (busy.event, busy.timer, busy.signal, busy.bev, busy.listener):
        try:
            thing.close()
        except RuntimeError:
            continue
    busy.base.close()


def drop(busy: Busy) -> None:
    import gc

    for name in list(vars(busy)):
        delattr(busy, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()


def reinit_and_close(busy: Busy) -> None:
    busy.base.reinit()
    close_each(busy)


def with_statement(busy: Busy) -> None:
    with busy.base:
        pass


def close_twice(busy: Busy) -> None:
    busy.base.close()
    busy.base.close()
    assert busy.base.closed
    assert busy.event.closed


@pytest.mark.parametrize(
    "act", [close_base, close_each, drop, reinit_and_close, with_statement, close_twice]
)
def test_what_the_child_does_with_its_copy_does_not_disturb_the_parent(
    any_base: EventBase, act: Callable[[Busy], None]
) -> None:
    busy = Busy(any_base)
    in_child(lambda: act(busy))
    busy.check()
    pid = fork(lambda: act(busy))
    busy.check()
    wait_for(pid)
    busy.check()
    busy.close()


def test_a_child_that_ends_as_programs_do_does_not_disturb_the_parent(busy: Busy) -> None:
    """With atexit handlers, garbage collection and all that belongs to it."""
    pid = os.fork()
    if pid == 0:
        try:
            import atexit

            atexit._run_exitfuncs()
            os._exit(0)
        finally:
            os._exit(1)
    wait_for(pid)
    busy.check()


def test_multiprocessing_with_fork(busy: Busy) -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work() -> None:
        try:
            busy.base.num_events()
        except RuntimeError as error:
            queue.put(type(error).__name__)
        busy.base.reinit()
        busy.check()
        queue.put("worked")

    process = context.Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert [queue.get(), queue.get()] == ["RuntimeError", "worked"]
    process.close()
    queue.close()
    busy.check()


def test_a_subprocess_does_not_disturb_the_parent(busy: Busy) -> None:
    """Descriptors of the base are not inherited."""
    import subprocess

    code = "import os; print(len(os.listdir('/proc/self/fd')))"
    before = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False
    ).stdout
    with EventBase() as other:
        Timer(other, nothing).add(0)
        other.dispatch()
        after = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        ).stdout
    assert after == before
    busy.check()


# ---- fork in a callback ----


@pytest.mark.parametrize("kind", ["timer", "event", "bev", "listener", "signal"])
def test_fork_inside_a_callback_and_exit_there(base: EventBase, kind: str) -> None:
    busy = Busy(base)
    forked: list[int] = []
    append = busy.seen.append

    def at(name: str) -> None:
        append(name)
        if name == kind and not forked:
            forked.append(fork(lambda: assert_forked(base.num_events)))

    class Seen(list[str]):
        def append(self, name: str, /) -> None:
            at(name)
            super().append(name)

    busy.seen = Seen()
    busy.timer.close()
    busy.timer = Timer(base, lambda: busy.seen.append("timer"), persist=True)
    busy.timer.add(0.01)
    busy.check()
    assert len(forked) == 1
    wait_for(forked[0])
    busy.check()
    busy.close()


def test_a_child_that_returns_from_the_callback_gets_a_runtime_error(base: EventBase) -> None:
    pids: list[int] = []
    Timer(base, lambda: pids.append(os.fork())).add(0)
    seen: list[int] = []
    Timer(base, seen.append, 1).add(0.01)
    try:
        base.dispatch()
    except RuntimeError as error:
        os._exit(0 if pids == [0] and "reinit" in str(error) and not seen else 1)
    except BaseException:
        os._exit(2)
    if pids == [0]:
        os._exit(3)
    wait_for(pids[0])
    assert seen == [1]


def test_a_child_that_calls_reinit_in_the_callback_goes_on_in_the_loop(base: EventBase) -> None:
    pids: list[int] = []
    seen: list[int] = []

    def callback() -> None:
        pids.append(os.fork())
        if pids == [0]:
            base.reinit()

    Timer(base, callback).add(0)
    Timer(base, seen.append, 1).add(0.01)
    try:
        result = base.dispatch()
    except BaseException:
        if pids == [0]:
            traceback.print_exc()
            os._exit(1)
        raise
    if pids == [0]:
        os._exit(0 if (result, seen) == (1, [1]) else 2)
    wait_for(pids[0])
    assert (result, seen) == (1, [1])


def test_a_child_that_closes_the_base_in_the_callback(base: EventBase, sockets: Sockets) -> None:
    pids: list[int] = []
    seen: list[int] = []
    event = Event(base, sockets[0], EV_WRITE, lambda fd, what: seen.append(what))

    def callback() -> None:
        pids.append(os.fork())
        if pids == [0]:
            base.close()

    Timer(base, callback).add(0)
    try:
        base.loop(EVLOOP_ONCE)
    except BaseException:
        if pids == [0]:
            traceback.print_exc()
            os._exit(1)
        raise
    if pids == [0]:
        os._exit(0 if base.closed else 2)
    wait_for(pids[0])
    event.add()
    base.dispatch()
    assert seen == [EV_WRITE]


def test_a_prefork_server(base: EventBase) -> None:
    """The classic: one listening socket, several processes that accept from it."""
    answered: list[bytes] = []

    def accepted(_listener: Listener, fd: int, _address: Any) -> None:
        bev = BufferEvent.socket(base, fd)
        bev.write(b"%d" % os.getpid())
        bev.close_after_write()

    listener = Listener.bind(base, accepted, ANY_PORT)
    where = listener.address

    def child() -> None:
        base.reinit()
        event = Signal(base, signal.SIGTERM, lambda signum: base.loopexit())
        event.add()
        base.dispatch()

    pids = [fork(child) for _ in range(2)]
    listener.close()
    for _ in range(20):
        with socket.create_connection(where, timeout=10) as client:
            answered.append(client.recv(100))
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        wait_for(pid)
    assert {int(answer) for answer in answered} <= set(pids)


# ---- fork and threads ----


def test_fork_while_another_thread_is_in_the_loop(base: EventBase) -> None:
    """That thread and its locks do not come along: the child is told so, and can leave."""
    running = threading.Event()
    base.once(-1, EV_TIMEOUT, lambda fd, what: running.set())
    thread = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,), daemon=True)
    thread.start()
    assert running.wait(10)

    def child() -> None:
        for call in (base.num_events, base.dispatch, base.loopbreak):
            with pytest.raises(RuntimeError):
                call()
        with EventBase() as own:
            Timer(own, nothing).add(0)
            assert own.dispatch() == 1

    in_child(child)
    base.loopbreak()
    thread.join(10)
    assert not thread.is_alive()


def test_children_made_while_threads_hammer_the_base_can_always_leave(base: EventBase) -> None:
    """A lock that another thread holds at the fork stays locked in the child for ever."""
    stop = threading.Event()
    running = threading.Event()
    base.once(-1, EV_TIMEOUT, lambda fd, what: running.set())
    looper = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,), daemon=True)
    looper.start()

    def hammer() -> None:
        while not stop.is_set():
            timer = Timer(base, nothing)
            timer.add(0.0001)
            timer.delete()

    threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert running.wait(10)

    def child() -> None:
        with pytest.raises(RuntimeError):
            base.num_events()
        base.close()

    try:
        for _ in range(50):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        base.loopbreak()
        looper.join(10)
