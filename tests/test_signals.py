"""Ctrl-C, Python's signal handlers, and libevent's Signal events."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import run_script

from pylibevent import (
    EV_PERSIST,
    EV_READ,
    EV_SIGNAL,
    EV_TIMEOUT,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    Event,
    EventBase,
    Listener,
    Signal,
    Timer,
)

RunUntil = Callable[..., None]
ANY_PORT = ("127.0.0.1", 0)


class Ring(Exception):
    """What the signal handlers here raise."""


def nothing(*_args: Any) -> None:
    pass


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.fixture
def handler() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """handler(fn): fn is the Python signal handler of SIGUSR1 and SIGALRM during the test."""
    before = [(s, signal.getsignal(s)) for s in (signal.SIGUSR1, signal.SIGALRM)]

    def install(function: Callable[..., Any]) -> None:
        for signum, _ in before:
            signal.signal(signum, function)

    yield install
    signal.setitimer(signal.ITIMER_REAL, 0)
    for signum, function in before:
        signal.signal(signum, function)


Install = Callable[[Callable[..., Any]], None]


def ring(_signum: int, _frame: Any) -> None:
    raise Ring


# ---- Ctrl-C ----

SCRIPT = """
import os, signal, socket, sys, threading, time
from pylibevent import *

base = EventBase()

def interrupt():
    started.wait()
    while not base.running:
        time.sleep(0.001)
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGINT)

started = threading.Event()
thread = threading.Thread(target=interrupt)
thread.start()
kind = sys.argv[1]
flags = 0
if kind == "timer":
    Timer(base, print).add(3600)
elif kind == "nothing":
    flags = EVLOOP_NO_EXIT_ON_EMPTY
elif kind == "busy":
    def again(fd, what):
        event.active(EV_READ)
    event = Event(base, -1, EV_READ, again)
    event.active(EV_READ)
elif kind == "ticks":
    Timer(base, int, persist=True).add(0.0001)
elif kind == "listener":
    Listener.bind(base, print, ("127.0.0.1", 0))
elif kind == "bufferevent":
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a)
    bev.enable(EV_READ)
elif kind == "once":
    flags = EVLOOP_ONCE
    Timer(base, print).add(3600)
elif kind == "handler":
    base.exception_handler = print
    Timer(base, print).add(3600)
elif kind == "poll" or kind == "select":
    base.close()
    config = EventConfig()
    for method in supported_methods():
        if method != kind:
            config.avoid_method(method)
    base = EventBase(config)
    Timer(base, print).add(3600)
try:
    started.set()
    base.loop(flags)
except KeyboardInterrupt:
    print("interrupted")
thread.join()
base.close()
"""


@pytest.mark.parametrize(
    "kind",
    [
        "timer",
        "nothing",
        "busy",
        "ticks",
        "listener",
        "bufferevent",
        "once",
        "handler",
        "poll",
        "select",
    ],
)
def test_ctrl_c_ends_the_loop_at_once(kind: str) -> None:
    started = time.monotonic()
    assert run_script(SCRIPT, kind, "0.05") == "interrupted\n"
    assert time.monotonic() - started < 20


def test_ctrl_c_from_the_first_moment_of_the_loop() -> None:
    assert run_script(SCRIPT, "timer", "0") == "interrupted\n"


def test_an_interrupted_program_ends_as_python_programs_do() -> None:
    code = """
import sys
from pylibevent import *
with EventBase() as base:
    base.once(-1, EV_TIMEOUT, lambda fd, what: print("running", flush=True))
    Timer(base, print).add(3600)
    base.dispatch()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert errors.count("Traceback") == 1


# ---- Python's signal handlers ----


def test_a_handler_runs_at_once_in_a_sleeping_loop(base: EventBase, handler: Install) -> None:
    seen: list[int] = []

    def called(signum: int, _frame: Any) -> None:
        seen.append(signum)
        base.loopbreak()

    handler(called)
    Timer(base, nothing).add(3600)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    base.dispatch()
    assert seen == [signal.SIGALRM]


def test_a_handler_does_not_end_the_loop(base: EventBase, handler: Install) -> None:
    seen: list[Any] = []
    handler(lambda signum, frame: seen.append(signum))
    Timer(base, seen.append, "end").add(0.1)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    assert base.dispatch() == 1
    assert seen == [signal.SIGALRM, "end"]


def test_what_a_handler_raises_leaves_dispatch(base: EventBase, handler: Install) -> None:
    handler(ring)
    timer = Timer(base, nothing)
    timer.add(3600)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with pytest.raises(Ring):
        base.dispatch()
    assert timer.pending()


def test_a_handler_may_use_the_base(base: EventBase, handler: Install) -> None:
    seen: list[str] = []

    def called(_signum: int, _frame: Any) -> None:
        Timer(base, seen.append, "added").add(0)
        base.loopexit(0.01)

    handler(called)
    Timer(base, nothing).add(3600)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    assert base.dispatch() == 0
    assert seen == ["added"]


def test_a_handler_may_close_the_base(handler: Install) -> None:
    with EventBase() as base:
        handler(lambda signum, frame: base.close())
        Timer(base, nothing).add(3600)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert base.dispatch() == 0
        assert base.closed


@pytest.mark.parametrize("flags", [EVLOOP_NONBLOCK, EVLOOP_NONBLOCK | EVLOOP_ONCE])
def test_a_handler_runs_in_a_program_that_polls(
    base: EventBase, handler: Install, flags: int
) -> None:
    seen: list[int] = []
    handler(lambda signum, frame: seen.append(signum))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    deadline = time.monotonic() + 5
    while not seen and time.monotonic() < deadline:
        base.loop(flags)
    assert seen == [signal.SIGALRM]


def test_many_signals_all_reach_their_handler(base: EventBase, handler: Install) -> None:
    seen: list[int] = []

    def called(signum: int, _frame: Any) -> None:
        seen.append(signum)
        if len(seen) == 1000:
            base.loopbreak()

    handler(called)
    Timer(base, nothing).add(60)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    base.dispatch()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(seen) >= 1000


def test_handlers_run_in_two_loops_one_inside_the_other(base: EventBase, handler: Install) -> None:
    seen: list[str] = []
    with EventBase() as inner:

        def called(_signum: int, _frame: Any) -> None:
            seen.append("handler")
            inner.loopbreak()

        handler(called)

        def outer() -> None:
            Timer(inner, nothing).add(3600)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            inner.dispatch()
            seen.append("inner ended")

        Timer(base, outer).add(0)
        base.dispatch()
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        handler(lambda signum, frame: base.loopbreak())
        Timer(base, nothing).add(3600)
        base.dispatch()
    assert seen == ["handler", "inner ended"]
    assert base.got_break


# ---- the wakeup descriptor ----


def wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


@pytest.fixture
def wakeup() -> Iterator[socket.socket]:
    """The reading end of a wakeup descriptor that somebody, asyncio for one, has set."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    yield reader
    assert signal.set_wakeup_fd(before) == writer.fileno()
    reader.close()
    writer.close()


def test_there_is_no_wakeup_descriptor_after_the_loop(base: EventBase) -> None:
    seen: list[int] = []
    Timer(base, lambda: seen.append(wakeup_fd())).add(0)
    assert wakeup_fd() == -1
    base.dispatch()
    assert seen[0] >= 0
    assert wakeup_fd() == -1


def test_the_wakeup_descriptor_before_is_restored(base: EventBase, wakeup: socket.socket) -> None:
    before = wakeup_fd()
    base.dispatch()
    assert wakeup_fd() == before

    def failing() -> None:
        raise Ring

    Timer(base, failing).add(0)
    with pytest.raises(Ring):
        base.dispatch()
    assert wakeup_fd() == before
    Timer(base, base.close).add(0)
    base.dispatch()
    assert wakeup_fd() == before


def test_the_wakeup_descriptor_before_still_gets_its_bytes(
    base: EventBase, wakeup: socket.socket, handler: Install
) -> None:
    handler(nothing)
    Timer(base, send, signal.SIGUSR1).add(0)
    Timer(base, nothing).add(0.02)
    base.dispatch()
    assert wakeup.recv(10) == bytes([signal.SIGUSR1])


@pytest.mark.parametrize("end", ["loopbreak", "raise", "close", "once"])
def test_a_signal_at_the_very_end_of_the_loop_reaches_the_one_before(
    base: EventBase, wakeup: socket.socket, handler: Install, end: str
) -> None:
    handler(nothing)

    def last() -> None:
        send(signal.SIGUSR1)
        if end == "loopbreak":
            base.loopbreak()
        elif end == "close":
            base.close()
        elif end == "raise":
            raise Ring

    Timer(base, last).add(0)
    if end == "raise":
        with pytest.raises(Ring):
            base.dispatch()
    else:
        base.loop(EVLOOP_ONCE if end == "once" else 0)
    assert wakeup.recv(10) == bytes([signal.SIGUSR1])


def test_a_full_wakeup_descriptor_does_no_harm(
    base: EventBase, wakeup: socket.socket, handler: Install
) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.write(wakeup_fd(), bytes(65536)):
            pass
    seen: list[int] = []
    handler(lambda signum, frame: seen.append(signum))
    Timer(base, send, signal.SIGUSR1).add(0)
    Timer(base, nothing).add(0.02)
    base.dispatch()
    assert seen == [signal.SIGUSR1]


def test_the_loop_of_another_thread_leaves_the_wakeup_descriptor_alone(base: EventBase) -> None:
    before = wakeup_fd()
    running = threading.Event()
    base.once(-1, EV_TIMEOUT, lambda fd, what: running.set())
    thread = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,))
    thread.start()
    running.wait(5)
    assert wakeup_fd() == before
    base.loopbreak()
    thread.join()
    assert wakeup_fd() == before


def test_handlers_run_in_the_main_thread_while_another_is_in_the_loop(
    base: EventBase, handler: Install
) -> None:
    seen: list[threading.Thread] = []
    handler(lambda signum, frame: seen.append(threading.current_thread()))
    thread = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,))
    thread.start()
    send(signal.SIGUSR1)
    deadline = time.monotonic() + 5
    while not seen and time.monotonic() < deadline:
        time.sleep(0.001)
    base.loopbreak()
    thread.join()
    assert seen == [threading.main_thread()]


def test_asyncio_works_before_inside_and_after(base: EventBase) -> None:
    import asyncio

    async def answer() -> int:
        await asyncio.sleep(0.001)
        return 42

    seen = [asyncio.run(answer())]
    Timer(base, lambda: seen.append(asyncio.run(answer()))).add(0)
    base.dispatch()
    seen.append(asyncio.run(answer()))
    assert seen == [42, 42, 42]


# ---- nothing is lost when a handler's exception comes in ----

STORM = """
import os, signal, socket, sys, time, traceback
import pylibevent
from pylibevent import *

class Tick(Exception):
    pass

PACKAGE = os.path.dirname(pylibevent.__file__)
ticks = 0
armed = False
nested = False  # True: the handler raises again while what it raised is on its way

def tick(signum, frame):  # raises in loop(), in a callback, between the two, not elsewhere
    global armed, ticks
    if sys._getframe(1).f_code.co_name in ("__del__", "_gone"):
        return  # a finalizer, out of which Python lets nothing
    while armed and frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            ticks += 1
            armed = nested
            raise Tick
        frame = frame.f_back

def frames_of(error, code):  # the local names of the calls that an exception came out of
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is code:
                yield frame.f_locals
        error = error.__context__

done = {}

def happened(n):
    done[n] = done.get(n, 0) + 1

def run(base, finished, callback, name):  # an exception in each round, for 20 seconds at most
    global armed
    ticker = Timer(base, int, persist=True)
    ticker.add(0.002)
    late = time.monotonic() + 20
    while not finished() and time.monotonic() < late:
        try:
            armed = True
            base.loop(EVLOOP_ONCE)
            armed = False
        except Tick as error:
            armed = False
            for local in frames_of(error, callback.__code__):
                if local[name] not in done:  # entered, and interrupted in its first step
                    happened(local[name])
    ticker.close()

def report(expected):
    signal.setitimer(signal.ITIMER_REAL, 0)
    missing = set(expected) - set(done)
    twice = [n for n, times in done.items() if times > 1]
    print(len(missing), len(twice), ticks)

signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
base = EventBase()
"""


def storm(code: str, *args: str) -> None:
    missing, twice, ticks = map(int, run_script(STORM + code, *args).split())
    assert ticks > 20
    assert missing == 0
    if sys.version_info >= (3, 11):  # 3.10 runs handlers between any two steps, not only at calls
        assert twice == 0


def test_timers_are_not_lost_in_a_storm_of_exceptions() -> None:
    storm("""
N = 20000
def called(n):
    happened(n)
for n in range(N):
    Timer(base, called, n).add(n % 100 / 1000)
run(base, lambda: len(done) >= N, called, "n")
report(range(N))
base.close()
""")


def test_readers_are_not_lost_in_a_storm_of_exceptions() -> None:
    storm("""
N = 5000
a, b = socket.socketpair()
b.send(b"always readable")
added = 0
def called(fd, what, n):
    happened(n)
def finished():
    global added
    if len(done) == added:
        for added in range(added + 1, min(N, added + 20) + 1):
            Event(base, a, EV_READ, called, added).add()
    return len(done) >= N
run(base, finished, called, "n")
report(range(1, N + 1))
base.close()
""")


def test_connections_are_not_lost_in_a_storm_of_exceptions() -> None:
    storm("""
N = 300
ports = []
clients = []
def called(port, fd):
    happened(port)
    BufferEvent.socket(base, fd).close()
def accepted(listener, fd, address):
    called(address[1], fd)
listener = Listener.bind(base, accepted, ("127.0.0.1", 0))
where = listener.address
def finished():
    if len(ports) == len(done) < N:
        for client in clients:
            client.close()
        clients[:] = [socket.create_connection(where) for _ in range(10)]
        ports.extend(client.getsockname()[1] for client in clients)
    return len(done) >= N
ticker = Timer(base, int, persist=True)
ticker.add(0.002)
late = time.monotonic() + 20
while not finished() and time.monotonic() < late:
    try:
        armed = True
        base.loop(EVLOOP_ONCE)
        armed = False
    except Tick as error:
        armed = False
        for local in frames_of(error, accepted.__code__):
            if local["address"][1] not in done:
                happened(local["address"][1])
report(ports)
base.close()
""")


def test_input_is_not_lost_in_a_storm_of_exceptions() -> None:
    """A read callback that an exception kept from running is called again."""
    storm("""
N = 2000
a, b = socket.socketpair()
def readable(bev):
    global entered
    entered = True
bev = BufferEvent.socket(base, a)
bev.setcb(readable)
bev.enable(EV_READ)
ticker = Timer(base, int, persist=True)
ticker.add(0.002)
late = time.monotonic() + 20
for n in range(N):
    entered = False
    b.send(b"x")
    while not entered and time.monotonic() < late:
        try:
            armed = True
            base.loop(EVLOOP_ONCE)
            armed = False
        except Tick as error:
            armed = False
            entered = entered or any(True for _ in frames_of(error, readable.__code__))
    if not entered:
        break
    happened(n)
report(range(N))
base.close()
""")


def test_exceptions_of_callbacks_are_not_lost_in_a_storm_of_others() -> None:
    """A callback's own exception and a handler's at the same time: both come out."""
    storm("""
class Own(Exception):
    pass
N = 20000
calls = {}
def called(n):
    calls[n] = calls.get(n, 0) + 1
    raise Own(n)
for n in range(N):
    Timer(base, called, n).add(0)
def note(error):
    seen = {local["n"] for local in frames_of(error, called.__code__)}
    while error is not None:
        if isinstance(error, Own):
            seen.add(error.args[0])
        error = error.__context__
    for n in seen:  # as an exception of its own, and once more as the context of a Tick
        done[n] = 1
sys.unraisablehook = lambda args: note(args.exc_value)
idle = 0
while idle < 50:
    try:
        armed = True
        rc = base.loop()
        armed = False
        idle += 1
    except (Own, Tick) as error:
        armed = False
        note(error)
done.update((n, times) for n, times in calls.items() if times > 1)
report(range(N))
base.close()
""")


@pytest.mark.parametrize("call", ["add", "once", "active", "delete", "close"])
def test_an_exception_inside_a_call_does_not_crash(call: str) -> None:
    """Its effect has come or not; what returned has happened, and memory is right."""
    storm(
        """
call = sys.argv[1]
N = 20000
whole = []
def called(n):
    happened(n)
def active(fd, what, n):
    happened(n)
for n in range(N):
    try:
        armed = True
        if call == "add":
            Timer(base, called, n).add(0)
        elif call == "once":
            base.once(-1, EV_TIMEOUT, active, n)
        elif call == "active":
            Event(base, -1, 0, active, n).active(EV_READ)
        else:
            timer = Timer(base, called, n)
            timer.add(0)
            if call == "delete":
                timer.delete()
            else:
                timer.close()
        armed = False
        whole.append(n)
    except Tick:
        armed = False
    timer = None
    if n % 100 == 0:
        base.loop(EVLOOP_NONBLOCK)
base.loopexit(0.05)
base.dispatch()
if call in ("delete", "close"):
    wrong = [n for n in whole if n in done]
    assert not wrong, len(wrong)
    whole = []
assert base.num_events() == 0, base.num_events()
report(whole)
base.close()
""",
        call,
    )


@pytest.mark.parametrize("kind", ["timer", "event", "signal", "listener", "bufferevent"])
def test_exceptions_inside_exceptions_do_not_crash(kind: str) -> None:
    """The handler raises again and again, also in what deals with its last exception. What has
    no way out then is reported on stderr; memory stays right and the loop usable."""
    done = subprocess.run(
        [sys.executable, "-c", STORM + NESTED, kind],
        capture_output=True,
        text=True,
        timeout=30,
        env=dict(os.environ, PYTHONMALLOC="debug"),
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "usable\n"), done.stderr[-2000:]


NESTED = """
kind = sys.argv[1]
calls = []
def called(*args):
    calls.append(1)
    raise KeyError
a, b = socket.socketpair()
b.send(b"always readable")
def start():
    if kind == "timer":
        Timer(base, called).add(0)
    elif kind == "event":
        Event(base, a, EV_READ, called).add()
    elif kind == "signal":
        Event(base, signal.SIGUSR1, EV_SIGNAL, called).add()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    elif kind == "listener":
        listener = Listener.bind(base, called, ("127.0.0.1", 0))
        socket.create_connection(listener.address).close()
        return listener
    else:
        bev, other = BufferEvent.pair(base)
        bev.setcb(called, called, called)
        bev.enable(EV_READ)
        other.write(b"x")
        return bev
nested = True
late = time.monotonic() + 1
while time.monotonic() < late:
    thing = start()
    try:
        try:
            armed = True
            base.loop(EVLOOP_NONBLOCK | EVLOOP_ONCE)
        finally:
            armed = False
    except (KeyError, Tick, LibeventError):
        pass
    junk = [bytes(k) for k in range(100, 300, 10)]
    if thing is not None:
        thing.close()
signal.setitimer(signal.ITIMER_REAL, 0)
seen = []
Timer(base, seen.append, 1).add(0.01)
while not seen:
    try:
        base.loop(EVLOOP_ONCE)
    except (KeyError, Tick, LibeventError):
        pass
assert calls
base.close()
print("usable")
"""


# ---- Signal events ----


def test_a_signal_event_is_called_with_number_and_arguments(
    base: EventBase, run_until: RunUntil
) -> None:
    seen: list[Any] = []
    with Signal(base, signal.SIGUSR1, lambda *args: seen.append(args), "x") as event:
        event.add()
        send(signal.SIGUSR1)
        run_until(lambda: seen)
    assert seen == [(signal.SIGUSR1, "x")]


def test_a_signal_event_wakes_a_sleeping_loop(base: EventBase) -> None:
    seen: list[int] = []

    def called(signum: int) -> None:
        seen.append(signum)
        event.delete()

    event = Signal(base, signal.SIGALRM, called)
    event.add()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    assert base.dispatch() == 1
    assert seen == [signal.SIGALRM]


def test_a_signal_event_stays_until_deleted(base: EventBase, run_until: RunUntil) -> None:
    seen: list[int] = []
    event = Signal(base, signal.SIGUSR1, seen.append)
    event.add()
    for n in range(1, 4):
        send(signal.SIGUSR1)
        run_until(lambda n=n: len(seen) == n)
    assert event.pending() == EV_SIGNAL
    event.close()


def test_several_deliveries_before_the_loop_are_several_calls(base: EventBase) -> None:
    seen: list[int] = []
    event = Signal(base, signal.SIGUSR1, seen.append)
    event.add()
    for _ in range(3):
        send(signal.SIGUSR1)
    base.loop(EVLOOP_ONCE)
    assert len(seen) == 3
    event.close()


@pytest.mark.parametrize("end", ["close", "delete"])
def test_a_signal_event_that_ends_itself_is_called_once(base: EventBase, end: str) -> None:
    seen: list[int] = []

    def called(signum: int) -> None:
        seen.append(signum)
        getattr(event, end)()

    event = Signal(base, signal.SIGUSR1, called)
    event.add()
    for _ in range(5):
        send(signal.SIGUSR1)
    base.loop(EVLOOP_ONCE)
    assert base.dispatch() == 1
    assert seen == [signal.SIGUSR1]


def test_a_signal_event_that_closes_its_base_is_called_once() -> None:
    seen: list[int] = []
    with EventBase() as base:

        def called(signum: int) -> None:
            seen.append(signum)
            base.close()

        Signal(base, signal.SIGUSR1, called).add()
        for _ in range(5):
            send(signal.SIGUSR1)
        base.dispatch()
    assert seen == [signal.SIGUSR1]


def test_an_event_for_a_signal_that_does_not_persist(base: EventBase) -> None:
    seen: list[Any] = []
    event = Event(base, signal.SIGUSR1, EV_SIGNAL, lambda *args: seen.append(args))
    event.add()
    send(signal.SIGUSR1)
    assert base.dispatch() == 1
    assert seen == [(signal.SIGUSR1, EV_SIGNAL)]
    assert not event.pending()


def test_an_event_for_a_signal_with_a_time_limit(base: EventBase) -> None:
    seen: list[Any] = []
    event = Event(base, signal.SIGUSR1, EV_SIGNAL, lambda *args: seen.append(args))
    event.add(0.01)
    assert base.dispatch() == 1
    assert seen == [(signal.SIGUSR1, EV_TIMEOUT)]


def test_two_events_for_one_signal(base: EventBase, run_until: RunUntil) -> None:
    seen: list[str] = []
    one = Signal(base, signal.SIGUSR1, lambda signum: seen.append("one"))
    two = Signal(base, signal.SIGUSR1, lambda signum: seen.append("two"))
    one.add()
    two.add()
    send(signal.SIGUSR1)
    run_until(lambda: len(seen) == 2)
    assert sorted(seen) == ["one", "two"]
    one.close()
    send(signal.SIGUSR1)
    run_until(lambda: len(seen) == 3)
    assert seen[2] == "two"
    two.close()


def test_several_signals(base: EventBase, run_until: RunUntil) -> None:
    seen: list[int] = []
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
    events = [Signal(base, number, seen.append) for number in numbers]
    for event in events:
        event.add()
        send(event.signum)
    run_until(lambda: len(seen) == len(numbers))
    assert sorted(seen) == sorted(numbers)
    for event in events:
        event.close()


def test_active_calls_a_signal_event_without_a_signal(base: EventBase) -> None:
    seen: list[int] = []
    event = Signal(base, signal.SIGUSR1, seen.append)
    event.active(EV_SIGNAL)
    assert base.dispatch() == 1
    assert seen == [signal.SIGUSR1]


def test_sigint_goes_to_the_event_while_it_is_pending(base: EventBase, run_until: RunUntil) -> None:
    seen: list[int] = []
    with Signal(base, signal.SIGINT, seen.append) as event:
        event.add()
        send(signal.SIGINT)
        run_until(lambda: seen)
    assert seen == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_pythons_handler_is_back_after_the_event(
    base: EventBase, handler: Install, run_until: RunUntil
) -> None:
    by_python: list[int] = []
    by_event: list[int] = []
    handler(lambda signum, frame: by_python.append(signum))
    event = Signal(base, signal.SIGUSR1, by_event.append)
    for end in (event.delete, event.close):
        event.add()
        send(signal.SIGUSR1)
        run_until(lambda: by_event)
        by_event.clear()
        assert by_python == []
        end()
        send(signal.SIGUSR1)
        assert by_python == [signal.SIGUSR1]
        by_python.clear()


def test_the_end_of_a_child_process(base: EventBase, run_until: RunUntil) -> None:
    seen: list[int] = []

    def ended(signum: int) -> None:
        seen.append(signum)
        if process.poll() is not None:
            event.close()

    event = Signal(base, signal.SIGCHLD, ended)
    event.add()
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        run_until(lambda: event.closed, 20)
        assert process.returncode == 3
    assert signal.SIGCHLD in seen


def test_signal_events_work_in_the_loop_of_another_thread(base: EventBase) -> None:
    seen: list[threading.Thread] = []

    def called(_signum: int) -> None:
        seen.append(threading.current_thread())
        event.close()

    event = Signal(base, signal.SIGUSR1, called)
    event.add()
    thread = threading.Thread(target=base.dispatch)
    thread.start()
    send(signal.SIGUSR1)
    thread.join(10)
    assert seen == [thread]


def test_a_loop_with_only_a_signal_event_waits(base: EventBase) -> None:
    event = Signal(base, signal.SIGUSR1, nothing)
    event.add()
    base.loopexit(0.02)
    assert base.dispatch() == 0
    event.delete()
    assert base.dispatch() == 1


# ---- one base with signals ----


def test_a_second_base_with_signals_is_a_runtime_error(base: EventBase) -> None:
    first = Signal(base, signal.SIGUSR1, nothing)
    first.add()
    with EventBase() as other:
        second = Signal(other, signal.SIGUSR2, nothing)
        with pytest.raises(RuntimeError, match="another EventBase"):
            second.add()
        with pytest.raises(RuntimeError, match="another EventBase"):
            second.active(EV_SIGNAL)
        plain = Event(other, signal.SIGUSR2, EV_SIGNAL | EV_PERSIST, nothing)
        with pytest.raises(RuntimeError, match="another EventBase"):
            plain.add()
        assert not second.pending()
        assert other.dispatch() == 1
    first.close()


@pytest.mark.parametrize("end", ["delete", "close", "base.close", "fired"])
def test_the_place_is_free_again_when_the_first_ends(end: str) -> None:
    seen: list[int] = []
    with EventBase() as one, EventBase() as two:
        first = Event(one, signal.SIGUSR1, EV_SIGNAL, nothing)
        first.add()
        first.add()
        if end == "fired":
            send(signal.SIGUSR1)
            one.dispatch()
        elif end == "base.close":
            one.close()
        else:
            getattr(first, end)()
        second = Signal(two, signal.SIGUSR1, seen.append)
        second.add()
        send(signal.SIGUSR1)
        two.loop(EVLOOP_ONCE)
        assert seen == [signal.SIGUSR1]


def test_the_place_stays_taken_while_one_of_two_is_left(base: EventBase) -> None:
    one = Signal(base, signal.SIGUSR1, nothing)
    two = Signal(base, signal.SIGUSR2, nothing)
    one.add()
    two.add()
    one.close()
    with EventBase() as other:
        third = Signal(other, signal.SIGUSR1, nothing)
        with pytest.raises(RuntimeError):
            third.add()
        two.delete()
        third.add()


def test_the_place_is_free_when_a_base_was_dropped() -> None:
    for _ in range(3):
        base = EventBase()
        Signal(base, signal.SIGUSR1, nothing).add()
        base.loop(EVLOOP_NONBLOCK)
        del base
        with pytest.warns(ResourceWarning):
            gc.collect()


def test_bases_take_turns_with_signals() -> None:
    seen: list[int] = []
    with EventBase() as one, EventBase() as two:
        for n in range(6):
            base = (one, two)[n % 2]
            event = Signal(base, signal.SIGUSR1, lambda signum, n: seen.append(n), n)
            event.add()
            send(signal.SIGUSR1)
            base.loopexit(5)
            while len(seen) <= n:
                assert base.loop(EVLOOP_ONCE) == 0
            event.close()
    assert seen == list(range(6))


def test_no_signal_descriptor_is_left_in_a_program_that_only_reads(
    base: EventBase, handler: Install
) -> None:
    """A signal in the middle of much other work is handled, and the work goes on."""
    seen: list[int] = []
    a, b = socket.socketpair()
    handler(lambda signum, frame: seen.append(signum))
    got: list[bytes] = []

    def readable(bev: BufferEvent) -> None:
        got.append(bev.read())
        if sum(map(len, got)) == 1 << 20:
            bev.close()

    bev = BufferEvent.socket(base, a)
    bev.setcb(readable)
    bev.enable(EV_READ)
    writer = threading.Thread(target=b.sendall, args=(bytes(1 << 20),))
    writer.start()
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    base.dispatch()
    signal.setitimer(signal.ITIMER_REAL, 0)
    writer.join()
    b.close()
    assert sum(map(len, got)) == 1 << 20


def test_a_listener_accepts_while_signals_come(base: EventBase, handler: Install) -> None:
    handler(nothing)
    accepted: list[int] = []

    def callback(listener: Listener, fd: int, _address: Any) -> None:
        os.close(fd)
        accepted.append(fd)
        if len(accepted) == 50:
            listener.close()

    where = Listener.bind(base, callback, ANY_PORT).address

    def connect() -> None:
        for _ in range(50):
            socket.create_connection(where).close()

    thread = threading.Thread(target=connect)
    thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    base.dispatch()
    signal.setitimer(signal.ITIMER_REAL, 0)
    thread.join()
    assert len(accepted) == 50
