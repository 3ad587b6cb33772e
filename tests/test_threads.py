"""Threads: what wakes a loop, what waits for a callback, what is refused."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import run_script

from pylibevent import (
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    EV_PERSIST,
    EV_READ,
    EV_SIGNAL,
    EV_TIMEOUT,
    EV_WRITE,
    EVENT_BASE_FLAG_NOLOCK,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
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

Sockets = tuple[socket.socket, socket.socket]
ANY_PORT = ("127.0.0.1", 0)
SOON = 20  # seconds; what these tests wake would sleep for an hour


def nothing(*_args: Any) -> None:
    pass


class Looper:
    """The loop of a base in a thread; join() returns what came of it."""

    def __init__(self, base: EventBase, flags: int = EVLOOP_NO_EXIT_ON_EMPTY) -> None:
        self.base = base
        self.flags = flags
        self.result: Any = None
        self.error: BaseException | None = None
        started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        base.once(-1, EV_TIMEOUT, lambda fd, what: started.set())
        self.thread.start()
        assert started.wait(SOON)

    def _run(self, started: threading.Event) -> None:
        try:
            self.result = self.base.loop(self.flags)
        except BaseException as error:
            self.error = error
        started.set()

    def call(self, function: Callable[[], object]) -> None:
        """Has function called in the loop's thread, and waits for it."""
        done = threading.Event()

        def run(_fd: int, _what: int) -> None:
            function()
            done.set()

        self.base.once(-1, EV_TIMEOUT, run)
        assert done.wait(SOON)

    def join(self) -> Any:
        self.thread.join(SOON)
        assert not self.thread.is_alive(), "the loop goes on"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def looper(base: EventBase) -> Iterator[Looper]:
    looper = Looper(base)
    yield looper
    if looper.thread.is_alive():
        with contextlib.suppress(ClosedError):
            base.loopbreak()
        looper.join()


@pytest.fixture
def switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(n: int, function: Callable[[int], object]) -> None:
    """Calls function(0) to function(n - 1), each in a thread of its own; raises what they raise."""
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


# ---- what wakes a sleeping loop ----


def test_loopbreak_wakes_it(looper: Looper) -> None:
    looper.base.loopbreak()
    assert looper.join() == 0
    assert looper.base.got_break


def test_loopexit_wakes_it(looper: Looper) -> None:
    looper.base.loopexit()
    assert looper.join() == 0
    assert looper.base.got_exit


def test_loopexit_after_a_time_wakes_it(looper: Looper) -> None:
    looper.base.loopexit(0.01)
    assert looper.join() == 0


def test_close_wakes_it(looper: Looper) -> None:
    looper.base.close()
    assert looper.join() == 0
    assert looper.base.closed


def test_an_added_timer_wakes_it(looper: Looper) -> None:
    called = threading.Event()
    Timer(looper.base, nothing).add(3600)
    Timer(looper.base, called.set).add(0.001)
    assert called.wait(SOON)


def test_an_added_reader_wakes_it(looper: Looper, sockets: Sockets) -> None:
    called = threading.Event()
    sockets[1].send(b"!")
    Event(looper.base, sockets[0], EV_READ, lambda fd, what: called.set()).add()
    assert called.wait(SOON)


def test_active_wakes_it(looper: Looper) -> None:
    called = threading.Event()
    event = Event(looper.base, -1, 0, lambda fd, what: called.set())
    event.active(EV_READ)
    assert called.wait(SOON)


def test_once_wakes_it(looper: Looper) -> None:
    called: list[threading.Thread] = []
    looper.call(lambda: called.append(threading.current_thread()))
    assert called == [looper.thread]


def test_a_shorter_time_wakes_it(looper: Looper) -> None:
    called = threading.Event()
    timer = Timer(looper.base, called.set)
    timer.add(3600)
    timer.add(0)
    assert called.wait(SOON)


def test_deleting_the_last_event_ends_a_loop_that_waits_for_it(base: EventBase) -> None:
    """libevent itself would sleep on, with nothing left to wait for."""
    timer = Timer(base, nothing)
    timer.add(3600)
    looper = Looper(base, 0)
    timer.delete()
    assert looper.join() == 1


def test_a_callback_that_raises_ends_the_loop_in_its_thread(looper: Looper) -> None:
    looper.base.once(-1, EV_TIMEOUT, lambda fd, what: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        looper.join()


def test_running_is_seen_from_other_threads(looper: Looper) -> None:
    assert looper.base.running
    looper.base.loopbreak()
    looper.join()
    assert not looper.base.running


def test_the_gil_is_free_while_it_sleeps(looper: Looper) -> None:
    Timer(looper.base, nothing).add(3600)
    n = 0
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        n += 1
    assert n > 1000


def test_a_loop_that_runs_elsewhere_is_a_runtime_error(looper: Looper) -> None:
    for run in (looper.base.dispatch, lambda: looper.base.loop(EVLOOP_NONBLOCK)):
        with pytest.raises(RuntimeError, match="running"):
            run()
    seen: list[int] = []
    looper.call(lambda: seen.append(1))
    assert seen == [1]


# ---- loopbreak is not lost ----


def test_loopbreak_right_before_the_loop_starts_is_not_lost(
    base: EventBase, switch_often: None
) -> None:
    keep = Timer(base, nothing)
    keep.add(3600)
    barrier = threading.Barrier(2)
    rounds = 2000

    def breaker() -> None:
        for _ in range(rounds):
            barrier.wait(SOON)
            base.loopbreak()

    thread = threading.Thread(target=breaker, daemon=True)
    thread.start()
    for _ in range(rounds):
        barrier.wait(SOON)
        assert base.loop() == 0
    thread.join(SOON)
    assert keep.pending()


def test_loopbreak_in_a_thread_right_before_the_loop_of_another(switch_often: None) -> None:
    for _ in range(200):
        with EventBase() as base:
            Timer(base, nothing).add(3600)
            thread = threading.Thread(target=base.dispatch, daemon=True)
            thread.start()
            base.loopbreak()
            thread.join(SOON)
            assert not thread.is_alive()


def test_loopexit_right_before_the_loop_starts_is_not_lost(switch_often: None) -> None:
    for _ in range(200):
        with EventBase() as base:
            Timer(base, nothing).add(3600)
            thread = threading.Thread(target=base.dispatch, daemon=True)
            thread.start()
            base.loopexit()
            thread.join(SOON)
            assert not thread.is_alive()


def test_close_right_when_the_loop_starts_or_ends() -> None:
    """The base is freed once, by whoever comes last, and its place given back once."""
    run_script("""
import contextlib, sys, threading
from pylibevent import *
from pylibevent.event import _free_slots
sys.setswitchinterval(1e-6)
def run(base, barrier):
    barrier.wait()
    with contextlib.suppress(ClosedError):
        base.loop(EVLOOP_NONBLOCK)
for _ in range(1000):
    base = EventBase()
    Timer(base, int).add(0)
    Timer(base, int).add(3600)
    barrier = threading.Barrier(2)
    thread = threading.Thread(target=run, args=(base, barrier))
    thread.start()
    barrier.wait()
    base.close()
    thread.join()
    assert base.closed
assert len(_free_slots) == len(set(_free_slots))
""")


def test_two_threads_close_one_base() -> None:
    run_script("""
import sys, threading
from pylibevent import *
from pylibevent.event import _free_slots
sys.setswitchinterval(1e-6)
def close(base, barrier):
    barrier.wait()
    base.close()
for _ in range(1000):
    base = EventBase()
    Timer(base, int).add(3600)
    barrier = threading.Barrier(2)
    thread = threading.Thread(target=close, args=(base, barrier))
    thread.start()
    close(base, barrier)
    thread.join()
    assert base.closed
assert len(_free_slots) == len(set(_free_slots))
""")


# ---- hammering ----


def test_eight_threads_hand_work_to_a_loop(looper: Looper, switch_often: None) -> None:
    counts = [0] * 8
    done = threading.Event()
    n = 1000

    def work(_fd: int, _what: int, i: int) -> None:
        counts[i] += 1
        if sum(counts) == 8 * n:
            done.set()

    def hand(i: int) -> None:
        for k in range(n):
            if k % 3 == 0:
                looper.base.once(-1, EV_TIMEOUT, work, i)
            elif k % 3 == 1:
                Timer(looper.base, work, -1, 0, i).add(0)
            else:
                Event(looper.base, -1, 0, work, i).active(EV_READ)

    in_threads(8, hand)
    assert done.wait(SOON), counts
    assert counts == [n] * 8


def test_eight_threads_add_and_delete_the_same_events(
    looper: Looper, sockets: Sockets, switch_often: None
) -> None:
    fired = [0]

    def fire(*_args: Any) -> None:
        fired[0] += 1

    timers = [Timer(looper.base, fire, persist=bool(n % 2)) for n in range(4)]
    readers = [Event(looper.base, sockets[0], EV_WRITE, fire) for _ in range(4)]
    events = [*timers, *readers]

    def hammer(i: int) -> None:
        for k in range(500):
            event = events[(i + k) % len(events)]
            event.add(0.0001)
            if k % 2:
                event.active(EV_READ)
            if k % 3 == 0:
                event.delete()
            if k % 7 == 0:
                event.remove_timer()
            event.pending()
            _ = event.expires_in

    in_threads(8, hammer)
    for event in events:
        event.delete()
    looper.call(nothing)
    assert fired[0] > 0
    assert looper.base.num_events() == 0
    assert looper.base._table == {}


def test_eight_threads_make_and_close_events_while_they_fire(
    looper: Looper, switch_often: None
) -> None:
    def hammer(_i: int) -> None:
        for k in range(300):
            timer = Timer(looper.base, nothing, persist=True)
            timer.add(0.0001)
            timer.active(EV_TIMEOUT)
            if k % 2:
                timer.delete()
            timer.close()
            with pytest.raises(ClosedError):
                timer.add(0)

    in_threads(8, hammer)
    looper.call(nothing)
    assert looper.base.num_events() == 0
    assert looper.base._table == {}


def test_events_that_threads_drop_while_they_fire() -> None:
    """Names are dropped in one thread while the loop of another uses the object."""
    run_script("""
import sys, threading
from pylibevent import *
sys.setswitchinterval(1e-6)
base = EventBase()
fired = []
loop = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,))
loop.start()
def work(i):
    for k in range(1000):
        event = Timer(base, fired.append, (i, k))
        event.add(0)
        del event
        event = Event(base, -1, 0, lambda fd, what: None)
        event.active(EV_READ)
        event.delete()
        del event
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
base.loopexit(0.05)
loop.join()
assert len(fired) == len(set(fired)) == 8000, len(fired)
base.close()
""")


def test_one_event_activated_by_eight_threads(looper: Looper, switch_often: None) -> None:
    fired = [0]

    def fire(_fd: int, _what: int) -> None:
        fired[0] += 1

    event = Event(looper.base, -1, 0, fire)

    def activate(_i: int) -> None:
        for _ in range(500):
            event.active(EV_READ)

    in_threads(8, activate)
    looper.call(nothing)
    assert 1 <= fired[0] <= 4000
    before = fired[0]
    event.active(EV_READ)
    looper.call(nothing)
    assert fired[0] == before + 1


def test_one_loop_for_each_of_eight_threads(switch_often: None) -> None:
    seen: list[set[threading.Thread]] = [set() for _ in range(8)]
    counts = [0] * 8

    def run(i: int) -> None:
        with EventBase() as base:

            def tick() -> None:
                seen[i].add(threading.current_thread())
                counts[i] += 1
                if counts[i] == 200:
                    timer.close()

            timer = Timer(base, tick, persist=True)
            timer.add(0.0001)
            a, b = BufferEvent.pair(base)
            b.setcb(lambda bev: bev.write(bev.read()))
            a.enable(EV_READ)
            b.enable(EV_READ)
            a.write(b"x" * 100)
            assert base.dispatch() == 1

    in_threads(8, run)
    assert counts == [200] * 8
    assert all(len(threads) == 1 for threads in seen)


def test_the_loop_moves_from_thread_to_thread(base: EventBase, sockets: Sockets) -> None:
    seen: list[bytes] = []
    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(lambda bev: seen.append(bev.read()))
    bev.enable(EV_READ)
    for n in range(5):
        sockets[1].send(b"%d" % n)
        in_threads(1, lambda _: base.loop(EVLOOP_ONCE))
    assert seen == [b"0", b"1", b"2", b"3", b"4"]
    bev.write(b"from here")
    bev.close_after_write()
    base.dispatch()
    assert sockets[1].recv(20) == b"from here"


def test_two_loops_use_each_other(switch_often: None) -> None:
    """Each hands the other its next turn: neither lock order can deadlock."""
    with EventBase() as one, EventBase() as two:
        turns = [0]
        done = threading.Event()

        def turn(_fd: int, _what: int, mine: EventBase, other: EventBase) -> None:
            turns[0] += 1
            if turns[0] < 2000:
                other.once(-1, EV_TIMEOUT, turn, other, mine)
            else:
                done.set()

        loopers = Looper(one), Looper(two)
        one.once(-1, EV_TIMEOUT, turn, one, two)
        two.once(-1, EV_TIMEOUT, turn, two, one)
        assert done.wait(SOON)
        for looper in loopers:
            looper.base.loopbreak()
            looper.join()


# ---- waiting for a callback ----


@pytest.mark.parametrize("end", ["delete", "close"])
def test_delete_from_another_thread_waits_for_the_running_callback(
    looper: Looper, end: str
) -> None:
    inside, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def callback(_fd: int, _what: int) -> None:
        inside.set()
        assert go_on.wait(SOON)
        time.sleep(0.02)
        finished.set()

    event = Event(looper.base, -1, EV_PERSIST, callback)
    event.active(EV_READ)
    assert inside.wait(SOON)
    go_on.set()
    getattr(event, end)()
    assert finished.is_set()


def test_delete_from_another_thread_does_not_wait_for_other_callbacks(looper: Looper) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def callback(_fd: int, _what: int) -> None:
        inside.set()
        assert go_on.wait(SOON)

    busy = Event(looper.base, -1, 0, callback)
    other = Timer(looper.base, nothing)
    other.add(3600)
    busy.active(EV_READ)
    assert inside.wait(SOON)
    other.close()
    assert not go_on.is_set()
    go_on.set()


def test_the_base_may_be_closed_while_another_thread_waits_in_delete(looper: Looper) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def callback(_fd: int, _what: int) -> None:
        inside.set()
        assert go_on.wait(SOON)
        looper.base.close()

    event = Event(looper.base, -1, EV_PERSIST, callback)
    event.active(EV_READ)
    assert inside.wait(SOON)
    deleter = threading.Thread(target=event.close)
    deleter.start()
    go_on.set()
    deleter.join(SOON)
    assert not deleter.is_alive()
    looper.join()
    assert event.closed


def test_close_of_the_base_from_another_thread_while_a_callback_runs(looper: Looper) -> None:
    inside, go_on = threading.Event(), threading.Event()
    errors: list[str] = []

    def callback() -> None:
        inside.set()
        assert go_on.wait(SOON)
        try:
            Timer(looper.base, nothing)
        except ClosedError as error:
            errors.append(str(error))

    timer = Timer(looper.base, callback)
    timer.add(0)
    assert inside.wait(SOON)
    looper.base.close()
    assert looper.base.closed
    go_on.set()
    assert looper.join() == 0
    assert timer.closed
    assert len(errors) == 1


def test_close_of_the_base_while_eight_threads_use_it(switch_often: None) -> None:
    for _ in range(20):
        base = EventBase()
        looper = Looper(base)

        def use(i: int, base: EventBase = base) -> None:
            if i == 0:
                time.sleep(0.002)
                base.close()
                return
            with contextlib.suppress(ClosedError):
                while True:
                    timer = Timer(base, nothing, persist=True)
                    timer.add(0.0001)
                    base.once(-1, EV_TIMEOUT, nothing)
                    timer.active(EV_READ)
                    timer.delete()
                    base.num_events()

        in_threads(8, use)
        looper.join()
        assert base.closed


def test_delete_after_another_thread_has_closed_the_base(base: EventBase) -> None:
    """The base still has the event, and takes it off before its memory goes (use after free)."""
    refused: list[bool] = []

    def callback() -> None:
        event = Timer(base, nothing, persist=True)
        event.add(0.001)
        event.active(EV_TIMEOUT)
        closer = threading.Thread(target=base.close)  # the loop runs: it will free the base
        closer.start()
        closer.join()
        try:
            event.delete()
        except ClosedError:  # not pytest.raises: its traceback would keep the event
            refused.append(True)

    Timer(base, callback).add(0)
    base.dispatch()
    assert base.closed
    assert refused == [True]


# ---- what belongs to the loop's thread ----


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="thread"):
        call()


def test_a_bufferevent_used_from_another_thread_is_a_runtime_error(
    base: EventBase, sockets: Sockets
) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.setcb(nothing)
    bev.enable(EV_READ)
    input_, output = bev.input, bev.output
    looper = Looper(base)
    for call in (
        lambda: bev.write(b"x"),
        lambda: bev.write_buffer(EvBuffer(b"x")),
        lambda: bev.read_buffer(EvBuffer()),
        bev.read,
        lambda: bev.enable(EV_READ),
        lambda: bev.disable(EV_READ),
        bev.setcb,
        bev.set_timeouts,
        lambda: bev.setwatermark(EV_READ, 0, 0),
        lambda: bev.getwatermark(EV_READ),
        lambda: bev.trigger(EV_READ),
        lambda: bev.trigger_event(1),
        lambda: bev.flush(EV_WRITE),
        lambda: bev.connect(("127.0.0.1", 9)),
        lambda: bev.enabled,
        lambda: bev.fd,
        lambda: bev.priority,
        bev.close,
        bev.close_after_write,
        lambda: BufferEvent.socket(base),
        lambda: BufferEvent.pair(base),
        lambda: len(input_),
        input_.readln,
        lambda: input_.drain(1),
        lambda: output.add(b"x"),
    ):
        refused(call)
    assert not bev.closed
    looper.call(lambda: bev.write(b"allowed"))
    base.loopbreak()
    looper.join()
    bev.close_after_write()
    base.dispatch()
    sockets[1].setblocking(True)
    assert sockets[1].recv(20) == b"allowed"


def test_a_listener_used_from_another_thread_is_a_runtime_error(base: EventBase) -> None:
    listener = Listener.bind(base, nothing, ANY_PORT)
    looper = Looper(base)
    for call in (
        listener.enable,
        listener.disable,
        listener.close,
        lambda: listener.fd,
        lambda: listener.enabled,
        lambda: listener.set_cb(nothing),
        lambda: listener.set_error_cb(nothing),
        lambda: Listener.bind(base, nothing, ANY_PORT),
    ):
        refused(call)
    base.loopbreak()
    looper.join()
    listener.close()


def test_repr_works_in_every_thread(base: EventBase, sockets: Sockets) -> None:
    things = [
        base,
        Timer(base, nothing),
        BufferEvent.socket(base, sockets[0]),
        Listener.bind(base, nothing, ANY_PORT),
        EvBuffer(b"x"),
    ]
    looper = Looper(base)
    for thing in things:
        assert repr(thing).startswith("<")
    base.loopbreak()
    looper.join()


SAFE = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE


@pytest.mark.parametrize(
    "options",
    [
        SAFE,
        SAFE | BEV_OPT_DEFER_CALLBACKS,
        SAFE | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
    ],
    ids=str,
)
def test_a_threadsafe_bufferevent_written_from_four_threads_loses_nothing(
    base: EventBase, options: int, switch_often: None
) -> None:
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a, options)
    looper = Looper(base)
    lines = 500
    received = bytearray()

    def write(i: int) -> None:
        for n in range(lines):
            bev.write(b"%d %d\n" % (i, n))

    def read() -> None:
        while received.count(b"\n") < 4 * lines and (data := b.recv(65536)):
            received.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    in_threads(4, write)
    reader.join(SOON)
    assert not reader.is_alive()
    found: list[list[int]] = [[], [], [], []]
    for line in received.splitlines():
        i, n = map(int, line.split())
        found[i].append(n)
    assert found == [list(range(lines))] * 4
    bev.close()
    base.loopbreak()
    looper.join()
    b.close()


def test_a_threadsafe_bufferevent_may_be_used_while_its_callbacks_run(
    base: EventBase, switch_often: None
) -> None:
    a, b = socket.socketpair()
    got = bytearray()
    bev = BufferEvent.socket(base, a, SAFE)
    bev.setcb(lambda bev: got.extend(bev.read()), nothing, nothing)
    bev.enable(EV_READ)
    looper = Looper(base)

    def use(i: int) -> None:
        for n in range(300):
            if i == 0:
                b.sendall(b"x" * 10)
            elif i == 1:
                bev.disable(EV_READ)
                bev.enable(EV_READ)
            elif i == 2:
                bev.set_timeouts(10 + n, None)
                bev.setwatermark(EV_READ, 0, 0)
                len(bev.input)
            else:
                with bev.lock():
                    bev.write(b"y")
                    bev.write(b"z")

    in_threads(4, use)
    b.settimeout(SOON)
    answers = bytearray()
    while len(answers) < 600:
        answers += b.recv(1000)
    assert answers == b"yz" * 300
    deadline = time.monotonic() + SOON
    while len(got) < 3000 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert bytes(got) == b"x" * 3000
    base.loopbreak()
    looper.join()
    bev.close()
    b.close()


def test_a_threadsafe_bufferevent_closed_from_another_thread(switch_often: None) -> None:
    with EventBase() as base:
        looper = Looper(base)
        for _ in range(100):
            a, b = socket.socketpair()
            b.send(b"x" * 1000)
            bev = BufferEvent.socket(base, a, SAFE)
            bev.setcb(lambda bev: bev.write(bev.read()), nothing, nothing)
            bev.enable(EV_READ)
            bev.write(b"y" * 1000)
            bev.close()
            with pytest.raises(ClosedError):
                bev.write(b"z")
            b.close()
            del bev
        base.loopbreak()
        looper.join()


def test_a_buffer_of_its_own_belongs_to_one_thread_at_a_time(switch_often: None) -> None:
    """Whatever four threads do to it, nothing crashes: it works or it is a RuntimeError."""
    run_script("""
import sys, threading
from pylibevent import *
sys.setswitchinterval(1e-6)
buffer = EvBuffer()
def work(i):
    for n in range(3000):
        try:
            buffer.add(b"line %d\\n" % n)
            buffer.readln()
            buffer.remove(3)
            len(buffer)
            buffer.prepend(b"x" * 100)
            buffer.drain(50)
        except RuntimeError:
            pass
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""")


# ---- EVENT_BASE_FLAG_NOLOCK ----


@pytest.fixture
def nolock() -> Iterator[EventBase]:
    config = EventConfig()
    config.set_flag(EVENT_BASE_FLAG_NOLOCK)
    with EventBase(config) as base:
        yield base


def test_a_base_without_locks_works_in_its_thread(nolock: EventBase, sockets: Sockets) -> None:
    seen: list[Any] = []
    sockets[1].send(b"x")
    Event(nolock, sockets[0], EV_READ, lambda fd, what: seen.append(what)).add()
    Timer(nolock, seen.append, "timer").add(0.001)
    nolock.once(-1, EV_TIMEOUT, lambda fd, what: seen.append("once"))
    assert nolock.dispatch() == 1
    assert len(seen) == 3


def test_a_base_without_locks_may_be_used_by_one_thread_after_another(nolock: EventBase) -> None:
    seen: list[int] = []
    timer = Timer(nolock, seen.append, 1)
    in_threads(1, lambda _: timer.add(0))
    in_threads(1, lambda _: nolock.dispatch())
    assert seen == [1]


def test_a_base_without_locks_refuses_other_threads_while_it_runs(nolock: EventBase) -> None:
    errors: list[BaseException] = []
    timer = Timer(nolock, nothing)
    timer.add(3600)

    def meddle() -> None:
        for call in (
            nolock.loopbreak,
            nolock.loopexit,
            nolock.loopcontinue,
            nolock.dispatch,
            nolock.num_events,
            nolock.close,
            lambda: nolock.once(-1, EV_TIMEOUT, nothing),
            lambda: timer.add(0),
            lambda: timer.active(EV_READ),
            timer.delete,
            timer.close,
            lambda: Timer(nolock, nothing),
        ):
            try:
                call()
            except RuntimeError as error:
                errors.append(error)
            else:
                errors.append(AssertionError(f"{call} is allowed"))

    thread = threading.Thread(target=meddle)

    def start_and_wait() -> None:
        thread.start()
        thread.join(SOON)
        nolock.loopexit()

    Timer(nolock, start_and_wait).add(0)
    nolock.dispatch()
    assert [error for error in errors if not isinstance(error, RuntimeError)] == []
    assert len(errors) == 12
    assert not nolock.closed
    assert timer.pending()


def test_ctrl_c_in_a_base_without_locks(nolock: EventBase) -> None:
    Timer(nolock, nothing).add(3600)
    interrupt = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        nolock.dispatch()
    interrupt.join()


# ---- signals and threads ----


def test_a_signal_event_added_from_another_thread(looper: Looper) -> None:
    called = threading.Event()
    event = Signal(looper.base, signal.SIGUSR1, lambda signum: called.set())
    event.add()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert called.wait(SOON)
    event.close()


# ---- what is linked ----


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    "arm",
    [
        lambda signal: signal.add(60),
        lambda signal: signal.active(EV_SIGNAL),
        lambda signal: signal.base.active_by_signal(signal.signum),
        lambda signal: signal.finalize(nothing),
        lambda signal: signal.close(),
    ],
    ids=["add", "active", "active_by_signal", "finalize", "close"],
)
def test_a_signals_event_is_armed_from_another_thread_while_its_callback_uses_the_base(
    looper: Looper, arm: Callable[[Signal], None]
) -> None:
    """libevent waits for the callback then: with a lock held that the callback wants, for ever."""
    running, armed = threading.Event(), threading.Event()
    late = threading.Timer(0.05, armed.set)  # the callback goes on while the other thread waits

    def callback(_signum: int) -> None:
        if not running.is_set():
            running.set()
            late.start()
            assert armed.wait(SOON)
            looper.base.num_events()
            Timer(looper.base, nothing).add(60)

    event = Signal(looper.base, signal.SIGUSR1, callback)
    event.add()
    event.active(EV_SIGNAL)
    assert running.wait(SOON)
    arm(event)
    armed.set()
    late.join()
    looper.base.loopbreak()
    assert looper.join() == 0
    if not event.closed:
        event.close()


def test_importing_it_in_another_interpreter_is_an_import_error_that_says_why() -> None:
    out = run_script("""
import importlib, sys
import pylibevent
name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
interpreters = importlib.import_module(name)
other = interpreters.create()
try:
    print(interpreters.run_string(other, "import pylibevent"))  # an answer from 3.13 on
except Exception as error:
    print(error)
interpreters.destroy(other)
""")
    assert "pylibevent works in the main interpreter only" in out


def test_the_process_has_one_libevent() -> None:
    """libevent.so beside libevent_core.so would bring a second set of lock callbacks, and a
    loopbreak from another thread would not wake the loop."""
    out = run_script("""
import pylibevent
for line in open("/proc/self/maps"):
    if "libevent" in line:
        print(line.split("/")[-1].strip())
""")
    names = {name.split("-2")[0].split(".so")[0] for name in out.split()}
    names.discard("_libevent.abi3")
    assert "libevent" not in names
    if names - {"_libevent"}:  # linked, not built in
        assert "libevent_core" in names
        assert "libevent_pthreads" in names


def test_locks_are_on_at_import() -> None:
    code = """
import threading, time
from pylibevent import *
base = EventBase()
Timer(base, print).add(3600)
def stop():
    while not base.running:
        time.sleep(0.001)
    time.sleep(0.05)
    base.loopbreak()
threading.Thread(target=stop).start()
started = time.monotonic()
assert base.dispatch() == 0
print(time.monotonic() - started < 10)
base.close()
"""
    assert run_script(code) == "True\n"
