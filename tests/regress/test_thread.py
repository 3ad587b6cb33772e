"""What libevent's own tests ask of a base that several threads use."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from processes import fork, wait_for

from pylibevent import (
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    EV_READ,
    EV_TIMEOUT,
    EVLOOP_NO_EXIT_ON_EMPTY,
    BufferEvent,
    Event,
    EventBase,
    EventConfig,
    Signal,
    Timer,
    ffi,
    lib,
)

from .helpers import SOON, Raw, nothing, script, timeval


class Threads:
    """Threads with a number each; join() raises what one of them raised."""

    def __init__(self, n: int, function: Callable[[int], object]) -> None:
        self.errors: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self._run, args=(function, i), daemon=True) for i in range(n)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, function: Callable[[int], object], i: int) -> None:
        try:
            function(i)
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(SOON)
            assert not thread.is_alive(), "a thread hangs"
        if self.errors:
            raise self.errors[0]


# ---- timers and conditions ----


def many_threads_wait_for_timers(base: EventBase, n: int, times: int) -> None:
    """Each thread adds a timer and waits for the condition that its callback signals, so many
    times; the last one of all ends the loop."""
    lock = threading.Lock()
    count = 0

    def run(_i: int) -> None:
        nonlocal count
        condition = threading.Condition()
        fired = 0

        def wake() -> None:
            nonlocal fired
            with condition:
                fired += 1
                condition.notify_all()

        timer = Timer(base, wake)
        for round_ in range(times):
            with condition:
                timer.add(0.001)
                assert condition.wait_for(lambda n=round_: fired > n, SOON)  # type: ignore[misc]
            with lock:
                count += 1
        with lock:
            if count == n * times:
                base.loopexit()

    threads = Threads(n, run)
    keeps_the_loop = Timer(base, nothing)
    keeps_the_loop.add(1000)
    assert base.dispatch() == 0
    threads.join()
    keeps_the_loop.close()
    assert count == n * times
    assert base.got_exit


def test_timers_of_many_threads(each_base: EventBase) -> None:
    many_threads_wait_for_timers(each_base, 20, 10)


def test_timers_of_many_threads_in_a_child(each_base: EventBase) -> None:
    """The parent waits for the child in the loop of the same base, and hears of nothing else."""
    seen: list[int] = []

    def ended(signum: int) -> None:
        seen.append(signum)
        each_base.loopexit(0.002)

    event = Signal(each_base, signal.SIGCHLD, ended)
    event.add()
    Timer(each_base, seen.append, 0).add(1000)

    def child() -> None:
        each_base.reinit()
        event.delete()
        many_threads_wait_for_timers(each_base, 10, 10)

    pid = fork(child)
    assert each_base.dispatch() == 0
    wait_for(pid)
    assert set(seen) == {signal.SIGCHLD}
    event.close()


def test_one_timer_wakes_one_thread_and_another_all_the_rest(base: EventBase) -> None:
    condition = threading.Condition()
    woken: list[str] = []
    notified = ""

    def run(_i: int) -> None:
        with condition:
            ready.release()
            assert condition.wait(SOON)
            woken.append(notified)

    def wake(how: str, number: int) -> None:
        nonlocal notified
        with condition:
            notified = how
            condition.notify(number)

    ready = threading.Semaphore(0)
    threads = Threads(10, run)
    for _ in range(10):
        assert ready.acquire(timeout=SOON)
    Timer(base, wake, "one", 1).add(0.001)
    many = Timer(base, wake, "all", 10)

    def until_one_is_awake() -> None:
        with condition:
            awake = len(woken)
        (many if awake else again).add(0.001)

    again = Timer(base, until_one_is_awake)
    again.add(0.002)
    assert base.dispatch() == 1
    threads.join()
    assert sorted(woken) == ["all"] * 9 + ["one"]


@pytest.mark.parametrize("delete", ["delete", "close"])
def test_an_event_for_no_descriptor_keeps_the_loop_until_another_thread_deletes_it(
    each_base: EventBase, delete: str
) -> None:
    started = threading.Event()
    event = Event(each_base, -1, EV_READ, nothing)
    event.add()
    each_base.once(-1, EV_TIMEOUT, lambda _fd, _what: started.set())
    results: list[int] = []
    threads = Threads(1, lambda _i: results.append(each_base.dispatch()))
    assert started.wait(SOON)
    getattr(event, delete)()
    threads.join()
    assert results == [1]


# ---- work from other threads ----


def test_a_loop_without_events_gets_them_from_another_thread(each_base: EventBase) -> None:
    """Made active at once, after a time, and the last of them ends the loop."""
    order: list[int] = []
    fired = [threading.Event() for _ in range(5)]

    def note(_fd: int, _what: int, i: int) -> None:
        order.append(i)
        fired[i].set()
        if i == 4:
            each_base.loopbreak()

    events = [Event(each_base, -1, 0, note, i) for i in range(5)]

    def run(_i: int) -> None:
        for i in 0, 1:
            events[i].active(EV_TIMEOUT)
            assert fired[i].wait(SOON)
        events[3].add(0.02)
        events[2].add(0.001)
        assert fired[3].wait(SOON)
        events[4].active(EV_TIMEOUT)

    threads = Threads(1, run)
    assert each_base.loop(EVLOOP_NO_EXIT_ON_EMPTY) == 0
    threads.join()
    assert each_base.got_break
    assert order == [0, 1, 2, 3, 4]


def test_a_load_from_eight_threads_keeps_no_timer_from_its_turn() -> None:
    """With max_dispatch_interval, and each thread's work in the order in which it came."""
    config = EventConfig()
    config.set_max_dispatch_interval(max_callbacks=16)
    done: list[list[int]] = [[] for _ in range(8)]
    at: list[int] = []
    with EventBase(config) as base:

        def work(_fd: int, _what: int, i: int, n: int) -> None:
            done[i].append(n)
            if sum(map(len, done)) == 8 * 128:
                base.loopexit()

        def load(i: int) -> None:
            for n in range(128):
                base.once(-1, EV_TIMEOUT, work, i, n)

        Timer(base, lambda: at.append(sum(map(len, done)))).add(0)
        threads = Threads(8, load)
        assert base.loop(EVLOOP_NO_EXIT_ON_EMPTY) == 0
        threads.join()
    assert done == [list(range(128))] * 8
    assert len(at) == 1


@pytest.mark.parametrize("callbacks", [1, 16])
def test_two_that_make_each_other_active_for_ever_do_not_keep_a_timer_out(callbacks: int) -> None:
    """They would without max_dispatch_interval: an active event runs before the loop looks."""
    config = EventConfig()
    config.set_max_dispatch_interval(max_callbacks=callbacks)
    with EventBase(config) as base:
        calls = [0, 0]
        events: list[Event] = []

        def called(_fd: int, _what: int, i: int) -> None:
            calls[i] += 1
            events[1 - i].active(EV_READ)

        events += [Event(base, -1, 0, called, i) for i in (0, 1)]
        Timer(base, base.loopbreak).add(0.005)
        events[0].active(EV_READ)
        assert base.dispatch() == 0
        assert base.got_break
        assert abs(calls[0] - calls[1]) <= 1 < calls[0]


def test_deferred_callbacks_run_in_the_loops_thread(base: EventBase) -> None:
    """Whichever thread's write they are for."""
    n = 4
    options = BEV_OPT_THREADSAFE | BEV_OPT_DEFER_CALLBACKS
    got = [b""] * n
    where: set[int] = set()

    def read(bev: BufferEvent, i: int) -> None:
        where.add(threading.get_ident())
        got[i] += bev.read()
        if all(len(data) == 5000 for data in got):
            base.loopexit()

    pairs = [BufferEvent.pair(base, options) for _ in range(n)]
    for i, (_, reader) in enumerate(pairs):
        reader.setcb(read, None, None, i)
        reader.enable(EV_READ)

    def write(i: int) -> None:
        for _ in range(50):
            pairs[i][0].write(b"%d" % i * 100)

    threads = Threads(n, write)
    assert base.loop(EVLOOP_NO_EXIT_ON_EMPTY) == 0
    threads.join()
    assert got == [b"%d" % i * 5000 for i in range(n)]
    assert where == {threading.get_ident()}


# ---- the raw layer ----


def test_raw_a_notifiable_base_is_woken_by_other_threads(raw: Raw, raw_base: Any) -> None:
    assert lib.evthread_make_base_notifiable(raw_base) == 0
    assert lib.evthread_make_base_notifiable(raw_base) == 0  # as it is already
    n = 200

    def called(_fd: int, _what: int, _arg: Any) -> None:
        raw.seen.append(threading.get_ident())
        if len(raw.seen) == 4 * n:
            lib.event_base_loopexit(raw_base, ffi.NULL)

    callback = raw.callback(called)

    def run(i: int) -> None:
        for k in range(n):
            wait = timeval(0.001) if k % 2 else ffi.NULL
            rc = lib.event_base_once(raw_base, -1, lib.EV_TIMEOUT, callback, ffi.NULL, wait)
            assert rc == 0

    threads = Threads(4, run)
    assert lib.event_base_loop(raw_base, lib.EVLOOP_NO_EXIT_ON_EMPTY) == 0
    threads.join()
    assert set(raw.seen) == {threading.get_ident()}


def test_raw_locks_that_are_in_use_are_not_replaced(raw: Raw, base: EventBase) -> None:
    """The package has called evthread_use_pthreads, which may be called again."""
    assert lib.EVTHREAD_USE_PTHREADS_IMPLEMENTED
    assert lib.evthread_use_pthreads() == 0

    def never(*_args: Any) -> None:
        raise AssertionError("called")

    def of(struct: str, **numbers: int) -> Any:
        """With numbers in some fields and a function that must not be called in the others."""
        made = ffi.new(f"struct {struct} *", numbers)
        for name, field in ffi.typeof(f"struct {struct}").fields:
            if name not in numbers:
                error = 0 if field.type.result.kind == "primitive" else None
                setattr(made, name, raw.callback(never, field.type, error))
        return made

    locks = of(
        "evthread_lock_callbacks",
        lock_api_version=lib.EVTHREAD_LOCK_API_VERSION,
        supported_locktypes=lib.EVTHREAD_LOCKTYPE_RECURSIVE,
    )
    assert lib.evthread_set_lock_callbacks(locks) == -1
    conditions = of(
        "evthread_condition_callbacks",
        condition_api_version=lib.EVTHREAD_CONDITION_API_VERSION,
    )
    assert lib.evthread_set_condition_callbacks(conditions) == -1
    Timer(base, raw.seen.append, 1).add(0)
    base.dispatch()
    with EventBase() as other:
        other.dispatch()
    assert raw.seen == [1]


def test_raw_locks_conditions_and_thread_numbers_of_the_programs_own() -> None:
    """In a process where nothing has a lock any more. Locks are given back as often as they were
    taken, and each lock and condition is freed."""
    out = script("""
import logging
logging.disable()
taken = given = 0
locks, conditions, threads = {}, {}, set()

@ffi.callback("void *(unsigned)")
def alloc(kind):
    number = len(locks) + 1
    locks[number] = [threading.RLock(), True]
    return ffi.cast("void *", number)
@ffi.callback("void(void *, unsigned)")
def free(lock, kind):
    locks[int(ffi.cast("size_t", lock))][1] = False
@ffi.callback("int(unsigned, void *)")
def lock(mode, lock):
    global taken
    got = locks[int(ffi.cast("size_t", lock))][0].acquire(not mode & lib.EVTHREAD_TRY)
    taken += got
    return not got
@ffi.callback("int(unsigned, void *)")
def unlock(mode, lock):
    global given
    locks[int(ffi.cast("size_t", lock))][0].release()
    given += 1
    return 0
@ffi.callback("void *(unsigned)")
def alloc_condition(kind):
    number = len(conditions) + 1
    conditions[number] = True
    return ffi.cast("void *", number)
@ffi.callback("void(void *)")
def free_condition(condition):
    conditions[int(ffi.cast("size_t", condition))] = False
@ffi.callback("int(void *, int)")
def signal_condition(condition, broadcast):
    return 0
@ffi.callback("int(void *, void *, const struct timeval *)")
def wait_condition(condition, lock, timeout):
    return -1
@ffi.callback("unsigned long(void)")
def number():
    threads.add(threading.get_ident())
    return threading.get_ident()

lib.libevent_global_shutdown()  # frees the locks that there is one of
lib.evthread_set_lock_callbacks(ffi.NULL)
lib.evthread_set_condition_callbacks(ffi.NULL)
made = ffi.new("struct evthread_lock_callbacks *", dict(
    lock_api_version=lib.EVTHREAD_LOCK_API_VERSION,
    supported_locktypes=lib.EVTHREAD_LOCKTYPE_RECURSIVE,
    alloc=alloc, free=free, lock=lock, unlock=unlock))
print(lib.evthread_set_lock_callbacks(made), lib.evthread_set_lock_callbacks(made))
made = ffi.new("struct evthread_condition_callbacks *", dict(
    condition_api_version=lib.EVTHREAD_CONDITION_API_VERSION,
    alloc_condition=alloc_condition, free_condition=free_condition,
    signal_condition=signal_condition, wait_condition=wait_condition))
print(lib.evthread_set_condition_callbacks(made))
lib.evthread_set_id_callback(number)
shared = len(locks)
base = lib.event_base_new()
callback = ffi.callback("event_callback_fn", lambda fd, what, arg: print("fired"))
lib.event_base_once(base, -1, lib.EV_TIMEOUT, callback, ffi.NULL, ffi.NULL)
lib.event_base_dispatch(base)
lib.event_base_free(base)
print(taken == given > 0, threads == {threading.get_ident()})
print(len(locks) > shared, [alive for _, alive in list(locks.values())[shared:]].count(True))
print(len(conditions), True in conditions.values())
""")
    assert " ".join(out) == "0 0 0 fired True True True 0 1 False"


@pytest.mark.parametrize(
    "enable", ["lib.evthread_enable_lock_debugging()", "lib.evthread_enable_lock_debuging()"]
)
def test_with_lock_debugging_the_classes_break_no_rule_of_locks(enable: str) -> None:
    """libevent ends the process at a lock that is given back by another thread than took it, or
    not held where it has to be."""
    out = script(f"""
{enable}
base = EventBase()
a, b = socket.socketpair()
a.setblocking(False)
b.setblocking(False)
seen = set()
n = 0

def count(fd, what):
    global n
    n += 1
    if n == 400:
        base.loopexit()

def work(i):
    for k in range(100):
        base.once(-1, EV_TIMEOUT, count)
        timer = Timer(base, seen.add, "timer")
        timer.add(0.0001)
        if k % 3 == 0:
            timer.delete()
        if k % 5 == 0:
            timer.close()

signals = Signal(base, signal.SIGUSR1, seen.add)
signals.add()
os.kill(os.getpid(), signal.SIGUSR1)
reader = Event(base, b, EV_READ | EV_PERSIST, lambda fd, what: (b.recv(9), seen.add("reader")))
reader.add()
a.send(b"x")
options = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE | BEV_OPT_DEFER_CALLBACKS
one, two = BufferEvent.pair(base, options)
two.setcb(lambda bev: seen.add(bev.read()))
two.enable(EV_READ)
one.write(b"pair")

def accepted(listener, fd, address):
    bev = BufferEvent.socket(base, fd, options)
    bev.setcb(event=lambda bev, what: (seen.add("end"), bev.close()))
    bev.enable(EV_READ)

flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_THREADSAFE
listener = Listener.bind(base, accepted, ("127.0.0.1", 0), flags=flags)
socket.create_connection(listener.address).close()
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
base.loop(EVLOOP_NO_EXIT_ON_EMPTY)
for thread in threads:
    thread.join()
while not {{"end", "timer"}} <= seen:
    base.loop(EVLOOP_ONCE)
base.close()
print(n, sorted(map(str, seen)))
""")
    assert " ".join(out) == f"400 ['{signal.SIGUSR1:d}', \"b'pair'\", 'end', 'reader', 'timer']"


def test_a_loop_per_thread_with_sockets_between_them() -> None:
    """Each thread's base reads from the one before and writes to the next, in a ring."""
    n, laps = 4, 50
    pairs = [socket.socketpair() for _ in range(n)]
    counts = [0] * n

    def run(i: int) -> None:
        into, out = pairs[i][1], pairs[(i + 1) % n][0]
        with EventBase() as base:

            def readable(_fd: int, _what: int) -> None:
                byte = os.read(into.fileno(), 1)
                counts[i] += 1
                os.write(out.fileno(), byte)
                if counts[i] < laps:
                    event.add()

            event = Event(base, into, EV_READ, readable)
            event.add()
            assert base.dispatch() == 1

    threads = Threads(n, run)
    pairs[0][0].send(b"x")
    threads.join()
    assert counts == [laps] * n
    for a, b in pairs:
        a.close()
        b.close()
