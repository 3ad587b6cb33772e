"""What libevent's own tests ask of listeners, of the class and of the raw layer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from common import is_open

from pylibevent import (
    LEV_OPT_CLOSE_ON_EXEC,
    LEV_OPT_CLOSE_ON_FREE,
    LEV_OPT_REUSEABLE,
    LEV_OPT_THREADSAFE,
    EventBase,
    Listener,
    ffi,
    lib,
)

from .helpers import Raw, script

Sockets = tuple[socket.socket, socket.socket]

LOCAL = ("127.0.0.1", 0)
FLAGS = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE


def connect(address: Any) -> socket.socket:
    return socket.create_connection(address, timeout=5)


class Few:
    """Accepts so many connections, then has the listener stop."""

    def __init__(self, n: int, stop: str = "disable") -> None:
        self.left = n
        self.stop = stop

    def __call__(self, listener: Listener, fd: int, address: Any) -> None:
        os.close(fd)
        self.left -= 1
        if not self.left:
            getattr(listener, self.stop)()


# ---- the class ----


@pytest.mark.parametrize("threadsafe", [0, LEV_OPT_THREADSAFE])
def test_two_on_ports_that_the_system_picks(each_base: EventBase, threadsafe: int) -> None:
    flags = FLAGS | LEV_OPT_CLOSE_ON_EXEC | threadsafe
    counts = [Few(2), Few(1)]
    one, two = (Listener.bind(each_base, count, LOCAL, flags=flags) for count in counts)
    assert one.address[0] == two.address[0] == "127.0.0.1"
    assert one.address[1] != two.address[1]
    assert one.base is two.base is each_base
    with connect(one.address), connect(one.address), connect(two.address):
        assert each_base.dispatch() == 1
    assert [count.left for count in counts] == [0, 0]
    assert one.fd != two.fd


@pytest.mark.parametrize("threadsafe", [0, LEV_OPT_THREADSAFE])
def test_a_socket_that_does_not_listen_is_refused_at_once(
    base: EventBase, sockets: Sockets, threadsafe: int
) -> None:
    """libevent takes it, and calls the error callback when there is something to read."""
    sockets[1].send(b"hello")
    with pytest.raises(OSError, match="evconnlistener_new"):
        Listener(base, Few(1), sockets[0].fileno(), flags=FLAGS | threadsafe)
    assert base.dispatch() == 1
    assert sockets[0].recv(10) == b"hello"  # and is still the user's


def test_it_may_be_freed_in_the_callback_of_what_it_accepted(each_base: EventBase) -> None:
    count = Few(1, "close")
    listener = Listener.bind(each_base, count, LOCAL, flags=FLAGS)
    fd = listener.fd
    with connect(listener.address):
        assert each_base.dispatch() == 1
    assert count.left == 0
    assert listener.closed
    assert not is_open(fd)


@pytest.mark.parametrize("stop", ["disable", "close"])
def test_of_two_that_wait_it_takes_one_when_the_callback_stops_it(
    each_base: EventBase, stop: str
) -> None:
    """libevent accepts all that wait in one go: but not after it was told to stop."""
    count = Few(1, stop)
    listener = Listener.bind(each_base, count, LOCAL, flags=FLAGS)
    address = listener.address
    with connect(address) as first, connect(address):
        assert each_base.dispatch() == 1
        assert count.left == 0
        assert first.recv(1) == b""
    listener.close()


def test_a_listener_with_locks_lets_go_of_them_when_accept_fails() -> None:
    """With no descriptor left; libevent's lock debugging ends the process if a lock is held on
    the way out, or given back twice."""
    out = script("""
import resource
lib.evthread_enable_lock_debugging()
base = EventBase()
errors = []
def failed(listener, error):
    errors.append(error.errno)
    listener.disable()
flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE | LEV_OPT_THREADSAFE
listener = Listener.bind(base, print, ("127.0.0.1", 0), flags=flags)
listener.set_error_cb(failed)
client = socket.create_connection(listener.address)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno(), hard))
while not errors:
    base.loop(EVLOOP_NONBLOCK)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
listener.close()
base.close()
print(errors)
""")
    assert out == ["[24]"]


def test_no_descriptor_leaks_from_server_or_client() -> None:
    """test-fdleak.c: many connections one after another, with room for a few."""
    out = script("""
import resource
base = EventBase()
room = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 12
resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
done = 0

def serve(listener, fd, address):
    bev = BufferEvent.socket(base, fd)
    bev.setcb(read=lambda bev: bev.write_buffer(bev.input), event=lambda bev, what: bev.close())
    bev.enable(EV_READ)

def answered(bev):
    global done
    assert bev.read() == b"A"
    bev.close()
    done += 1
    if done < 300:
        start()
    else:
        listener.close()

def connected(bev, what):
    assert what & BEV_EVENT_CONNECTED, what
    bev.write(b"A")
    bev.enable(EV_READ)

def start():
    bev = BufferEvent.socket(base)
    bev.setcb(read=answered, event=connected)
    bev.connect(where)

listener = Listener.bind(base, serve, ("127.0.0.1", 0))
where = listener.address
start()
print(base.dispatch(), done)
base.close()
""")
    assert out == ["1", "300"]


# ---- the raw layer ----


@pytest.fixture
def address() -> tuple[Any, int]:
    """A struct sockaddr_storage of 127.0.0.1, port 0, and the address's length."""
    where = ffi.new("struct sockaddr_storage *")
    length = ffi.new("int *", ffi.sizeof("struct sockaddr_storage"))
    sa = ffi.cast("struct sockaddr *", where)
    assert lib.evutil_parse_sockaddr_port(b"127.0.0.1", sa, length) == 0
    return where, length[0]


class RawListener:
    """A listener of the raw layer, its callback, and what came to it."""

    def __init__(self, raw: Raw, base: Any) -> None:
        self.raw = raw
        self.base = base
        self.left = 1
        self.stop: Callable[[Any], object] = lib.evconnlistener_disable
        self.families: list[int] = []
        self.errors = 0
        self.argument = raw.handle(self)
        self.callback = raw.callback(self._accepted, "evconnlistener_cb")
        self.error_callback = raw.callback(self._failed, "evconnlistener_errorcb")
        self.ptr: Any = None

    def bind(self, address: tuple[Any, int], flags: int = FLAGS) -> None:
        where = ffi.cast("struct sockaddr *", address[0])
        self.ptr = lib.evconnlistener_new_bind(
            self.base, self.callback, self.argument, flags, -1, where, address[1]
        )
        assert self.ptr

    def name(self) -> Any:
        fd = lib.evconnlistener_get_fd(self.ptr)
        with socket.socket(fileno=os.dup(fd)) as copy:
            return copy.getsockname()

    def free(self) -> None:
        if self.ptr:
            lib.evconnlistener_free(self.ptr)

    def _accepted(self, listener: Any, fd: int, where: Any, _length: int, arg: Any) -> None:
        os.close(fd)
        assert ffi.from_handle(arg) is self
        assert listener == self.ptr
        self.families.append(where.sa_family)
        self.left -= 1
        if not self.left:
            self.stop(listener)

    def _failed(self, listener: Any, arg: Any) -> None:
        assert ffi.from_handle(arg) is self
        self.errors += 1
        lib.evconnlistener_disable(listener)


@pytest.fixture
def listener(raw: Raw, raw_base: Any) -> Iterator[RawListener]:
    listener = RawListener(raw, raw_base)
    yield listener
    listener.free()


def test_raw_accepting_until_disabled(
    listener: RawListener, raw_base: Any, address: tuple[Any, int]
) -> None:
    listener.left = 2
    listener.bind(address, FLAGS | LEV_OPT_CLOSE_ON_EXEC)
    assert lib.evconnlistener_get_base(listener.ptr) == raw_base
    with connect(listener.name()), connect(listener.name()), connect(listener.name()):
        assert lib.event_base_dispatch(raw_base) == 1
        assert listener.families == [socket.AF_INET] * 2
        listener.left = 1
        assert lib.evconnlistener_enable(listener.ptr) == 0
        assert lib.event_base_dispatch(raw_base) == 1
    assert len(listener.families) == 3


def test_raw_another_callback(
    raw: Raw, listener: RawListener, raw_base: Any, address: tuple[Any, int]
) -> None:
    listener.bind(address)
    other = RawListener(raw, raw_base)
    other.ptr = listener.ptr
    lib.evconnlistener_set_cb(listener.ptr, other.callback, other.argument)
    with connect(listener.name()):
        assert lib.event_base_dispatch(raw_base) == 1
    assert (listener.families, other.families) == ([], [socket.AF_INET])


def test_raw_free_in_its_callback(
    listener: RawListener, raw_base: Any, address: tuple[Any, int]
) -> None:
    listener.stop = lib.evconnlistener_free
    listener.bind(address)
    fd = lib.evconnlistener_get_fd(listener.ptr)
    with connect(listener.name()):
        assert lib.event_base_dispatch(raw_base) == 1
    assert not is_open(fd)
    listener.ptr = None


@pytest.mark.parametrize("flags", [0, LEV_OPT_THREADSAFE])
def test_raw_a_socket_that_does_not_listen_calls_the_error_callback(
    listener: RawListener, raw_base: Any, sockets: Sockets, flags: int
) -> None:
    sockets[1].send(b"hello")
    fd = sockets[0].fileno()
    listener.ptr = lib.evconnlistener_new(
        raw_base, listener.callback, listener.argument, flags, 0, fd
    )
    assert listener.ptr
    lib.evconnlistener_set_error_cb(listener.ptr, listener.error_callback)
    assert lib.event_base_dispatch(raw_base) == 1
    assert (listener.errors, listener.families) == (1, [])


def test_raw_without_close_on_free_the_socket_stays(listener: RawListener, raw_base: Any) -> None:
    with socket.create_server(LOCAL) as server:
        server.setblocking(False)
        listener.ptr = lib.evconnlistener_new(
            raw_base, listener.callback, listener.argument, 0, -1, server.fileno()
        )
        with connect(server.getsockname()):
            assert lib.event_base_dispatch(raw_base) == 1
        listener.free()
        listener.ptr = None
        assert is_open(server.fileno())
    assert len(listener.families) == 1
