"""The end of the interpreter with everything open: silent, and with the right status."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAD = """
import atexit, gc, os, signal, socket, sys, threading, time, weakref
from pylibevent import *

def make(base):
    '''One of everything, pending, with data under way.'''
    things = []
    add = things.append
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    add((a, b, d))
    event = Event(base, a, EV_READ | EV_PERSIST, lambda fd, what: None)
    event.add(3600)
    add(event)
    timer = Timer(base, lambda *args: None, things, persist=True)
    timer.add(3600)
    add(timer)
    sig = Signal(base, signal.SIGUSR1, lambda signum: None)
    try:
        sig.add()
    except RuntimeError:  # a second base
        pass
    add(sig)
    bev = BufferEvent.socket(base, c)
    bev.setcb(lambda bev, *args: None, None, lambda bev, what, *args: None, things)
    bev.enable(EV_READ | EV_WRITE)
    bev.write(b'x' * 1000000)
    d.send(b'y' * 1000)
    bev.input.add_cb(lambda *args: None)
    add(bev)
    one, two = BufferEvent.pair(base)
    two.setcb(lambda bev: None)
    two.enable(EV_READ)
    one.write(b'z' * 1000)
    add((one, two, one.output))
    listener = Listener.bind(base, lambda lst, fd, address: os.close(fd), ('127.0.0.1', 0))
    add(listener)
    add(socket.create_connection(listener.address))
    buffer = EvBuffer(b'w' * 1000)
    buffer.add_reference(bytearray(100000))
    bev.write_buffer(buffer)
    add(buffer)
    base.once(-1, EV_READ, lambda fd, what: None, timeout=3600)
    ready = Event(base, -1, 0, lambda fd, what: None)
    ready.active(EV_READ)
    add(ready)
    conn = HttpConnection(base, *listener.address, retries=-1)
    request = HttpRequest(lambda request, *args: None, things)
    request.output_buffer.add(b'v' * 100000)
    conn.make_request(request, EVHTTP_REQ_POST)
    add((conn, request, HttpRequest(print, things)))
    return things
"""


def run(
    code: str, *options: str, status: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs code after HEAD; it must end with that status and nothing on stderr."""
    done = subprocess.run(
        [sys.executable, *options, "-c", HEAD + code],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", status)
    return done


# Warnings on: an unclosed base says so then, which is another test.
MODES = [(), ("-X", "dev", "-W", "ignore::ResourceWarning")]
each_mode = pytest.mark.parametrize("mode", MODES, ids=["plain", "dev"])


@each_mode
def test_everything_pending_in_a_module(mode: tuple[str, ...]) -> None:
    run("base = EventBase(); things = make(base)", *mode)


@each_mode
def test_everything_pending_and_no_names(mode: tuple[str, ...]) -> None:
    run("base = EventBase(); make(base)", *mode)


@each_mode
def test_only_the_things_have_names(mode: tuple[str, ...]) -> None:
    run("things = make(EventBase())", *mode)


@each_mode
def test_the_loop_has_run(mode: tuple[str, ...]) -> None:
    run("base = EventBase(); things = make(base); base.loop(EVLOOP_ONCE)", *mode)


@each_mode
def test_several_bases(mode: tuple[str, ...]) -> None:
    run("bases = [EventBase() for _ in range(5)]; things = [make(base) for base in bases]", *mode)


@each_mode
def test_a_base_that_was_closed(mode: tuple[str, ...]) -> None:
    run("base = EventBase(); things = make(base); base.close()", *mode)


@each_mode
def test_things_in_reference_cycles(mode: tuple[str, ...]) -> None:
    run(
        """
class Program:
    def __init__(self):
        self.base = EventBase()
        self.me = self
        self.things = make(self.base)
        self.things.append(self)
        self.timer = Timer(self.base, self.tick, self, persist=True)
        self.timer.add(1)
        self.base.exception_handler = self.failed
    def tick(self, other):
        pass
    def failed(self, error, source):
        pass
gc.disable()
Program()
program = Program()
""",
        *mode,
    )


@each_mode
def test_things_kept_by_an_extension_or_builtins(mode: tuple[str, ...]) -> None:
    """They live until after the modules are gone."""
    run(
        """
import builtins
builtins.kept = make(EventBase())
sys.kept = make(builtins.kept[1].base)
threading.kept = EventBase()
""",
        *mode,
    )


@each_mode
def test_a_memoryview_of_a_buffer_is_out(mode: tuple[str, ...]) -> None:
    run(
        """
base = EventBase()
bev = make(base)[4]
buffer = EvBuffer(b'x' * 100)
views = [*buffer.peek(), *bev.output.peek(), bev.input.pullup(0)]
""",
        *mode,
    )


# ---- ways to end ----


@each_mode
@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_sys_exit_in_a_callback(mode: tuple[str, ...], status: int) -> None:
    run(
        f"""
base = EventBase()
things = make(base)
Timer(base, sys.exit, {status}).add(0)
base.dispatch()
""",
        *mode,
        status=status,
    )


def test_sys_exit_in_a_callback_passes_the_exception_handler_by() -> None:
    run(
        """
base = EventBase()
things = make(base)
base.exception_handler = print
base.once(-1, EV_TIMEOUT, lambda fd, what: sys.exit(4))
base.dispatch()
""",
        status=4,
    )


@pytest.mark.parametrize("kind", ["bev", "listener", "event", "signal", "buffer", "http"])
def test_sys_exit_in_each_kind_of_callback(kind: str) -> None:
    run(
        f"""
kind = {kind!r}
base = EventBase()
things = make(base)
def leave(*args):
    sys.exit(5)
_, event, timer, sig, bev, pair, listener, client, buffer, ready, web = things
if kind == 'bev':
    bev.setcb(leave)
elif kind == 'listener':
    listener.set_cb(leave)
elif kind == 'event':
    Event(base, bev.fd, EV_READ, leave).add()
elif kind == 'signal':
    sig.delete()
    sig = Signal(base, signal.SIGUSR1, leave)
    sig.add()
    os.kill(os.getpid(), signal.SIGUSR1)
elif kind == 'http':
    HttpConnection(base, '127.0.0.1', 1).make_request(HttpRequest(leave))
else:
    bev.input.add_cb(leave)
base.dispatch()
""",
        status=5,
    )


def test_os_exit_in_a_callback() -> None:
    run(
        """
base = EventBase()
things = make(base)
Timer(base, os._exit, 6).add(0)
base.dispatch()
""",
        status=6,
    )


def test_os_exit_with_everything_open() -> None:
    run("base = EventBase(); things = make(base); os._exit(0)")


def test_a_signal_that_ends_the_process() -> None:
    run(
        """
base = EventBase()
things = make(base)
Timer(base, os.kill, os.getpid(), signal.SIGTERM).add(0)
base.dispatch()
""",
        status=-15,
    )


def test_an_uncaught_exception_is_the_only_output() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HEAD
            + """
base = EventBase()
things = make(base)
def failing():
    raise KeyError("gone")
Timer(base, failing).add(0)
base.dispatch()
""",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'gone'"


def test_an_exception_that_nobody_came_for_is_reported_once() -> None:
    """It cannot leave a dispatch() any more, and is not lost in silence."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HEAD
            + """
base = EventBase()
a, b = BufferEvent.pair(base)
def failing(bev, *what):
    raise KeyError("event" if what else "read")
a.setcb(failing, None, failing)
a.trigger(EV_READ, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS)
a.trigger_event(BEV_EVENT_EOF, BEV_TRIG_DEFER_CALLBACKS)
try:
    base.dispatch()
except KeyError as error:
    print(error)
""",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    told = done.stdout + done.stderr
    assert "'read'" in told
    assert done.stderr.count("KeyError: ") <= 1


def test_exit_inside_a_callback_of_atexit() -> None:
    """atexit handlers, which run before and after the package's own, may use the library."""
    done = run(
        """
base = EventBase()
seen = []
def use(name):
    with EventBase() as mine:
        Timer(mine, seen.append, name).add(0)
        a, b = BufferEvent.pair(mine)
        b.setcb(lambda bev: seen.append(bev.read()))
        b.enable(EV_READ)
        a.write(b'data')
        mine.dispatch()
    print(name, seen, base.closed)
    seen.clear()
things = make(base)
atexit.register(use, 'registered later, runs before')
"""
    )
    assert done.stdout.startswith("registered later, runs before [")
    assert "b'data'" in done.stdout


def test_an_atexit_handler_that_was_registered_first_does_not_crash() -> None:
    """It runs after the package has closed all: errors, but the process ends well."""
    subprocess_code = """
import atexit
seen = []
def use():
    try:
        import pylibevent
        with pylibevent.EventBase() as base:
            pylibevent.Timer(base, seen.append, 1).add(0)
            base.loop(pylibevent.EVLOOP_ONCE)
        things[0].close()
    except pylibevent.LibeventError:
        pass
atexit.register(use)
import pylibevent
kept = pylibevent.EventBase()
things = [pylibevent.Timer(kept, print)]
things[0].add(100)
"""
    done = subprocess.run(
        [sys.executable, "-c", subprocess_code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_finalizers_at_exit_may_use_the_library() -> None:
    run("""
class Late:
    def __init__(self, base, things):
        self.base, self.things = base, things
    def __del__(self):
        try:
            for thing in self.things:
                if hasattr(thing, 'close') and not isinstance(thing, socket.socket):
                    thing.close()
            self.base.close()
        except LibeventError:
            pass
base = EventBase()
things = make(base)
late = Late(base, things)
Timer(base, print, late).add(100)
weakref.finalize(base, lambda: None)
""")


# ---- threads ----

THREAD = """
def start(base, **kwargs):
    running = threading.Event()
    base.once(-1, EV_TIMEOUT, lambda fd, what: running.set())
    thread = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,), daemon=True)
    thread.start()
    running.wait()
    return thread
"""


@each_mode
def test_a_daemon_thread_sleeps_in_a_loop(mode: tuple[str, ...]) -> None:
    run(THREAD + "base = EventBase(); things = make(base); start(base)", *mode)


@each_mode
def test_a_daemon_thread_is_busy_in_a_loop(mode: tuple[str, ...]) -> None:
    """It must not call Python any more once that is gone."""
    run(
        THREAD
        + """
base = EventBase()
things = make(base)
for _ in range(10):
    Timer(base, int, persist=True).add(0.00001)
def again(fd, what):
    event.active(EV_READ)
event = Event(base, -1, 0, again)
event.active(EV_READ)
start(base)
time.sleep(0.02)
""",
        *mode,
    )


def test_several_daemon_threads_are_busy_in_loops() -> None:
    code = (
        THREAD
        + """
bases = [EventBase() for _ in range(4)]
for base in bases:
    Timer(base, int, persist=True).add(0.00001)
    a, b = BufferEvent.pair(base)
    for bev in (a, b):
        bev.setcb(lambda bev: bev.write(bev.read()))
        bev.enable(EV_READ)
    a.write(b'to and fro')
    listener = Listener.bind(base, lambda lst, fd, address: os.close(fd), ('127.0.0.1', 0))
    start(base)
time.sleep(0.02)
"""
    )
    for _ in range(5):
        run(code)


def test_a_daemon_thread_in_the_middle_of_a_callback() -> None:
    run(
        THREAD
        + """
base = EventBase()
inside = threading.Event()
def forever():
    inside.set()
    while True:
        time.sleep(0.001)
Timer(base, forever).add(0)
start_ = threading.Thread(target=base.dispatch, daemon=True)
start_.start()
inside.wait()
"""
    )


def test_a_loop_in_a_thread_that_is_no_daemon_is_waited_for() -> None:
    done = run("""
base = EventBase()
things = []
Timer(base, lambda: print('done')).add(0.1)
threading.Thread(target=base.dispatch).start()
""")
    assert done.stdout == "done\n"


def test_daemon_threads_that_add_events_at_exit() -> None:
    for _ in range(5):
        run("""
base = EventBase()
def work():
    while True:
        try:
            timer = Timer(base, int)
            timer.add(0.0001)
            timer.close()
        except ClosedError:
            time.sleep(0.0001)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.02)
""")


# ---- warnings ----


def test_an_unclosed_base_is_told_in_dev_mode_when_it_is_dropped() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-c",
            "import pylibevent; base = pylibevent.EventBase(); del base",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert "ResourceWarning: unclosed <EventBase" in done.stderr
    assert done.stderr.count("unclosed") == 1


@pytest.mark.parametrize("options", [("-X", "dev"), ("-W", "error"), ("-X", "dev", "-W", "error")])
def test_all_closed_is_silent_with_all_warnings_on(options: tuple[str, ...]) -> None:
    run(
        """
with EventBase() as base:
    things = make(base)
    base.loop(EVLOOP_ONCE)
for sock in (*things[0], things[7]):
    sock.close()
del things
gc.collect()
""",
        *options,
    )


@pytest.mark.parametrize("options", [("-X", "dev"), ("-W", "error")])
def test_a_base_open_at_exit_ends_well_with_all_warnings_on(options: tuple[str, ...]) -> None:
    done = subprocess.run(
        [
            sys.executable,
            *options,
            "-c",
            "from pylibevent import *\nbase = EventBase()\nTimer(base, print).add(9)",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Fatal" not in done.stderr


def test_import_is_silent_with_all_warnings_on() -> None:
    run("", "-X", "dev", "-W", "error")
    run("", "-bb", "-W", "error")


def test_memory_is_right_to_the_end() -> None:
    run("base = EventBase(); things = make(base)", env={"PYTHONMALLOC": "debug"})
    run(
        "base = EventBase(); things = make(base); base.loop(EVLOOP_ONCE)",
        env={"PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3"},
    )


def test_optimized_python_works_the_same() -> None:
    done = run(
        "base = EventBase(); Timer(base, print, 'works').add(0); base.dispatch(); base.close()",
        "-OO",
    )
    assert done.stdout == "works\n"
