"""Listener, over real sockets and with real processes for what needs a small or large number of
descriptors."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import few_rounds, is_open
from conftest import RunUntil

from pylibevent import (
    BEV_OPT_CLOSE_ON_FREE,
    EV_READ,
    LEV_OPT_BIND_IPV6ONLY,
    LEV_OPT_CLOSE_ON_EXEC,
    LEV_OPT_CLOSE_ON_FREE,
    LEV_OPT_DEFERRED_ACCEPT,
    LEV_OPT_DISABLED,
    LEV_OPT_LEAVE_SOCKETS_BLOCKING,
    LEV_OPT_REUSEABLE,
    LEV_OPT_REUSEABLE_PORT,
    LEV_OPT_THREADSAFE,
    BufferEvent,
    ClosedError,
    EventBase,
    Listener,
    lib,
)

LOCAL = ("127.0.0.1", 0)
FLAGS = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE


class Accepted:
    """A callback that keeps what was accepted."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: list[Any] = []
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, listener: Listener, fd: int, address: Any, *args: Any) -> None:
        self.sockets.append(socket.socket(fileno=fd))
        self.addresses.append(address)
        self.calls.append((listener, *args))

    def __len__(self) -> int:
        return len(self.sockets)


@pytest.fixture
def accepted() -> Any:
    accepted = Accepted()
    yield accepted
    for sock in accepted.sockets:
        sock.close()


def connect(address: Any) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address[:2], timeout=5)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return sock


def ended(sock: socket.socket) -> bool:
    """Whether the peer has closed, or reset, the connection; waits for it up to 5 seconds."""
    sock.settimeout(5)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def echo(_listener: Listener, fd: int, _address: Any) -> None:
    bev = BufferEvent.socket(_listener.base, fd)
    bev.setcb(read=lambda bev: bev.write_buffer(bev.input), event=lambda bev, _what: bev.close())
    bev.enable(EV_READ)


# ---- where it listens ----


def test_port_0_is_a_free_port(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    host, port = listener.address
    assert host == "127.0.0.1"
    assert port > 0
    with connect(listener.address) as client:
        run_until(lambda: accepted)
        assert accepted.addresses == [client.getsockname()]
        assert accepted.sockets[0].getpeername() == client.getsockname()


def test_the_callback_gets_the_listener_and_the_arguments(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, LOCAL, "one", 2)
    with connect(listener.address):
        run_until(lambda: accepted)
    assert accepted.calls == [(listener, "one", 2)]


def test_a_host_name_is_looked_up(base: EventBase, accepted: Accepted) -> None:
    listener = Listener.bind(base, accepted, ("localhost", 0))
    assert listener.address[0] in ("127.0.0.1", "::1")


def test_the_empty_host_is_every_address(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, ("", 0))
    assert listener.address[0] in ("0.0.0.0", "::")
    with connect(("127.0.0.1", listener.address[1])):
        run_until(lambda: accepted)


def test_a_name_that_does_not_exist_is_a_gaierror(base: EventBase) -> None:
    with pytest.raises(socket.gaierror):
        Listener.bind(base, print, ("nobody.invalid", 0))


def test_ipv6(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    listener = Listener.bind(base, accepted, ("::1", 0))
    assert listener.address[0] == "::1"
    assert len(listener.address) == 4
    with connect(listener.address) as client:
        run_until(lambda: accepted)
        assert accepted.addresses == [client.getsockname()]
        assert accepted.sockets[0].getpeername() == accepted.addresses[0]


def test_ipv6_only(base: EventBase, accepted: Accepted) -> None:
    if not hasattr(socket, "IPV6_V6ONLY") or not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = Listener.bind(base, accepted, ("::", 0), flags=FLAGS | LEV_OPT_BIND_IPV6ONLY)
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", listener.address[1]))


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_a_unix_path(
    base: EventBase,
    accepted: Accepted,
    run_until: RunUntil,
    tmp_path: Path,
    kind: Callable[[str], Any],
) -> None:
    path = str(tmp_path / "server")
    listener = Listener.bind(base, accepted, kind(path))
    assert listener.address == path
    with connect(path):
        run_until(lambda: accepted)
    assert accepted.addresses == [""]  # a client without a name, as the socket module has it
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(str(tmp_path / "client"))
        client.connect(path)
        run_until(lambda: len(accepted) == 2)
    assert accepted.addresses[1] == str(tmp_path / "client")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' abstract name space")
@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_an_abstract_name(
    base: EventBase, accepted: Accepted, run_until: RunUntil, kind: Callable[[str], Any]
) -> None:
    name = f"\0pylibevent-{os.getpid()}"
    listener = Listener.bind(base, accepted, kind(name))
    assert listener.address == name.encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(name + "-client")
        client.connect(name)
        run_until(lambda: accepted)
        assert accepted.addresses == [client.getsockname()]
        assert accepted.addresses == [name.encode() + b"-client"]


def test_a_unix_path_that_is_not_utf_8(
    base: EventBase, accepted: Accepted, run_until: RunUntil, tmp_path: Path
) -> None:
    path = os.fsencode(tmp_path / "server")
    Listener.bind(base, accepted, path + b"\xff")
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(path + b"\xfe")
        client.connect(path + b"\xff")
        run_until(lambda: accepted)
        assert accepted.addresses == [client.getsockname()]


def test_addresses_are_those_of_the_socket_module(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    with socket.socket(fileno=os.dup(listener.fd)) as same:
        assert listener.address == same.getsockname()
    clients = [connect(listener.address) for _ in range(10)]
    run_until(lambda: len(accepted) == 10)
    assert accepted.addresses == [sock.getpeername() for sock in accepted.sockets]
    for client in clients:
        client.close()


# ---- what cannot be bound ----


def test_a_port_in_use_is_an_oserror(base: EventBase) -> None:
    with (
        socket.create_server(LOCAL) as taken,
        pytest.raises(OSError, match="evconnlistener_new_bind") as caught,
    ):
        Listener.bind(base, print, taken.getsockname())
    assert caught.value.errno == errno.EADDRINUSE


def test_a_path_in_use_is_an_oserror(base: EventBase, tmp_path: Path) -> None:
    Listener.bind(base, print, tmp_path / "s")
    with pytest.raises(OSError, match="evconnlistener_new_bind") as caught:
        Listener.bind(base, print, tmp_path / "s")
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_that_is_not_ours_is_an_oserror(base: EventBase) -> None:
    with pytest.raises(OSError, match="evconnlistener_new_bind") as caught:
        Listener.bind(base, print, ("192.0.2.1", 0))  # for documentation: nobody has it
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_path_in_no_directory_is_an_oserror(base: EventBase, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Listener.bind(base, print, tmp_path / "nowhere" / "s")


def test_a_privileged_port_is_a_permission_error() -> None:
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not start.exists() or int(start.read_text()) < 2:
        pytest.skip("no port is privileged here")
    drop = "" if os.getuid() != 0 else "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import encodings.idna, os  # the first: later it may not be read any more
from pylibevent import *
with EventBase() as base:
    {drop}
    try:
        Listener.bind(base, print, ("127.0.0.1", 1))
    except PermissionError as error:
        print(error)
""",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "evconnlistener_new_bind" in done.stdout


# ---- flags and backlog ----


def test_accepted_descriptors_do_not_block(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    with connect(listener.address):
        run_until(lambda: accepted)
    assert not os.get_blocking(accepted.sockets[0].fileno())
    assert not os.get_blocking(listener.fd)


def test_leave_sockets_blocking(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, accepted, LOCAL, flags=FLAGS | LEV_OPT_LEAVE_SOCKETS_BLOCKING)
    with connect(listener.address):
        run_until(lambda: accepted)
    assert os.get_blocking(accepted.sockets[0].fileno())
    assert not os.get_blocking(listener.fd)


def test_close_on_exec(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, accepted, LOCAL, flags=FLAGS | LEV_OPT_CLOSE_ON_EXEC)
    with connect(listener.address):
        run_until(lambda: accepted)
    assert not os.get_inheritable(listener.fd)
    assert not os.get_inheritable(accepted.sockets[0].fileno())


def test_without_close_on_free_the_socket_stays_open(base: EventBase) -> None:
    listener = Listener.bind(base, print, LOCAL, flags=LEV_OPT_REUSEABLE)
    fd, address = listener.fd, listener.address
    listener.close()
    with socket.socket(fileno=fd), connect(address):
        pass


def test_it_can_start_disabled(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, accepted, LOCAL, flags=FLAGS | LEV_OPT_DISABLED)
    assert not listener.enabled
    with connect(listener.address):
        few_rounds(base)
        assert not accepted
        listener.enable()
        assert listener.enabled
        run_until(lambda: accepted)


def test_deferred_accept_waits_for_the_first_data(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, LOCAL, flags=FLAGS | LEV_OPT_DEFERRED_ACCEPT)
    with connect(listener.address) as client:
        few_rounds(base)
        assert not accepted
        client.send(b"x")
        run_until(lambda: accepted)


def test_the_threadsafe_flag(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, accepted, LOCAL, flags=FLAGS | LEV_OPT_THREADSAFE)
    with connect(listener.address):
        run_until(lambda: accepted)
    listener.close()


def test_reuse_of_a_port_by_two_listeners(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    flags = FLAGS | LEV_OPT_REUSEABLE_PORT
    first = Listener.bind(base, accepted, LOCAL, "first", flags=flags)
    second = Listener.bind(base, accepted, first.address, "second", flags=flags)
    assert second.address == first.address
    clients = [connect(first.address) for _ in range(50)]
    run_until(lambda: len(accepted) == 50)
    assert {call[1] for call in accepted.calls} == {"first", "second"}  # the kernel spreads them
    for client in clients:
        client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="how a full queue looks differs")
def test_the_backlog_bounds_the_queue(base: EventBase, accepted: Accepted) -> None:
    listener = Listener.bind(base, accepted, LOCAL, backlog=1, flags=FLAGS | LEV_OPT_DISABLED)
    clients = [socket.socket() for _ in range(5)]
    for client in clients:
        client.settimeout(0.1)
    connected = 0
    for client in clients:
        try:
            client.connect(listener.address)
            connected += 1
        except TimeoutError:
            break
    for client in clients:
        client.close()
    assert 1 <= connected < 5


# ---- a socket that exists ----


def test_a_listening_socket_object_is_taken_over(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    server = socket.create_server(LOCAL)
    fd, address = server.fileno(), server.getsockname()
    listener = Listener(base, accepted, server, "arg", flags=0)
    assert server.fileno() == -1  # detached
    assert listener.fd == fd
    assert listener.address == address
    assert not os.get_blocking(fd)
    with connect(address):
        run_until(lambda: accepted)
    assert accepted.calls == [(listener, "arg")]
    listener.close()
    assert not is_open(fd)  # whatever the flags


def test_a_bound_socket_listens_with_a_backlog(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    server = socket.socket()
    server.bind(LOCAL)
    listener = Listener(base, accepted, server, backlog=5)
    with connect(listener.address):
        run_until(lambda: accepted)


@pytest.mark.parametrize("flags", [0, LEV_OPT_CLOSE_ON_FREE])
def test_a_number_is_closed_as_the_flags_say(base: EventBase, flags: int) -> None:
    with socket.create_server(LOCAL) as server:
        fd = os.dup(server.fileno())
        Listener(base, print, fd, flags=flags).close()
        assert is_open(fd) == (flags == 0)
        if flags == 0:
            os.close(fd)


def test_a_bad_descriptor_is_an_oserror(base: EventBase) -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match="evconnlistener_new") as caught:
        Listener(base, print, fd)
    assert caught.value.errno == errno.EBADF


def test_a_socket_that_cannot_listen_is_an_oserror_and_stays_the_users(base: EventBase) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(LOCAL)
        with pytest.raises(OSError, match="evconnlistener_new"):
            Listener(base, print, udp, backlog=5)
        assert udp.fileno() >= 0
        few_rounds(base)


# ---- on and off ----


def test_disabled_connections_wait_and_enabled_they_are_served(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    assert listener.enabled
    listener.disable()
    assert not listener.enabled
    clients = [connect(listener.address) for _ in range(5)]
    few_rounds(base)
    assert not accepted
    listener.enable()
    run_until(lambda: len(accepted) == 5)
    for client in clients:
        client.close()


def test_enable_and_disable_twice(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    listener.disable()
    listener.disable()
    listener.enable()
    listener.enable()
    with connect(listener.address):
        run_until(lambda: accepted)


def test_disable_inside_the_callback_stops_at_once(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    def one_each(listener: Listener, fd: int, address: Any) -> None:
        accepted(listener, fd, address)
        listener.disable()

    listener = Listener.bind(base, one_each, LOCAL)
    clients = [connect(listener.address) for _ in range(3)]
    for n in range(1, 4):
        run_until(lambda n=n: len(accepted) == n)
        few_rounds(base)
        assert len(accepted) == n
        listener.enable()
    for client in clients:
        client.close()


def test_disable_and_enable_inside_the_callback(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    def both(listener: Listener, fd: int, address: Any) -> None:
        accepted(listener, fd, address)
        listener.disable()
        listener.enable()

    listener = Listener.bind(base, both, LOCAL)
    clients = [connect(listener.address) for _ in range(3)]
    run_until(lambda: len(accepted) == 3)
    for client in clients:
        client.close()


def test_a_loop_with_a_disabled_listener_only_returns(base: EventBase) -> None:
    Listener.bind(base, print, LOCAL, flags=FLAGS | LEV_OPT_DISABLED)
    assert base.dispatch() == 1


# ---- callbacks ----


def test_set_cb(base: EventBase, accepted: Accepted, run_until: RunUntil) -> None:
    listener = Listener.bind(base, print, LOCAL, "old")
    listener.set_cb(accepted, "new", 1)
    with connect(listener.address):
        run_until(lambda: accepted)
    assert accepted.calls == [(listener, "new", 1)]


def test_set_cb_inside_the_callback_holds_for_the_next(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    def first(listener: Listener, fd: int, _address: Any) -> None:
        os.close(fd)
        listener.set_cb(accepted, "second")

    listener = Listener.bind(base, first, LOCAL)
    clients = [connect(listener.address) for _ in range(3)]
    run_until(lambda: len(accepted) == 2)
    assert {call[1] for call in accepted.calls} == {"second"}
    for client in clients:
        client.close()


# ---- closing ----


def test_close_refuses_new_connections_at_once(base: EventBase) -> None:
    listener = Listener.bind(base, print, LOCAL)
    address, fd = listener.address, listener.fd
    listener.close()
    assert listener.closed
    assert not is_open(fd)
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    listener.close()
    assert "closed" in repr(listener)


def test_close_inside_the_callback(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    def close(listener: Listener, fd: int, address: Any) -> None:
        accepted(listener, fd, address)
        listener.close()

    listener = Listener.bind(base, close, LOCAL)
    address = listener.address
    clients = [connect(address) for _ in range(3)]
    run_until(lambda: accepted)
    few_rounds(base)
    assert len(accepted) == 1
    assert listener.closed
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    for client in clients:
        client.close()


def test_base_close_inside_the_callback(base: EventBase) -> None:
    def close(listener: Listener, fd: int, _address: Any) -> None:
        os.close(fd)
        listener.base.close()

    listener = Listener.bind(base, close, LOCAL)
    with connect(listener.address) as client:
        base.dispatch()
        assert base.closed
        assert listener.closed
        assert ended(client)


def test_base_close_closes_it(base: EventBase) -> None:
    listener = Listener.bind(base, print, LOCAL)
    fd = listener.fd
    base.close()
    assert listener.closed
    assert not is_open(fd)
    listener.close()


def test_the_descriptor_is_never_closed_twice(base: EventBase) -> None:
    listener = Listener.bind(base, print, LOCAL)
    fd = listener.fd
    with open(os.devnull, "rb") as null:
        listener.close()
        assert not is_open(fd)
        os.dup2(null.fileno(), fd)  # somebody else gets that number
    try:
        listener.close()
        few_rounds(base)
        base.close()
        del listener
        gc.collect()
        assert is_open(fd)
    finally:
        os.close(fd)


def test_as_a_context_manager(base: EventBase) -> None:
    with Listener.bind(base, print, LOCAL) as listener:
        assert not listener.closed
    assert listener.closed


def test_an_open_one_lives_without_a_name(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    address = Listener.bind(base, accepted, LOCAL).address
    gc.collect()
    with connect(address):
        run_until(lambda: accepted)


def test_nothing_is_left_of_it_after_close_even_without_the_garbage_collector(
    base: EventBase,
) -> None:
    class Server:
        def __init__(self) -> None:
            self.listener = Listener.bind(base, self.accept, LOCAL, self)
            self.listener.set_error_cb(self.error)

        def accept(self, *_args: object) -> None: ...

        def error(self, *_args: object) -> None: ...

    server = Server()
    refs = weakref.ref(server), weakref.ref(server.listener)
    gc.disable()
    try:
        server.listener.close()
        del server
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


USES: dict[str, Callable[[Listener], object]] = {
    "ptr": lambda listener: listener.ptr,
    "fd": lambda listener: listener.fd,
    "address": lambda listener: listener.address,
    "enabled": lambda listener: listener.enabled,
    "enable": lambda listener: listener.enable(),
    "disable": lambda listener: listener.disable(),
    "set_cb": lambda listener: listener.set_cb(print),
    "set_error_cb": lambda listener: listener.set_error_cb(print),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("by", ["close", "base"])
def test_use_after_close_is_a_closed_error(base: EventBase, use: str, by: str) -> None:
    listener = Listener.bind(base, print, LOCAL)
    (listener if by == "close" else base).close()
    with pytest.raises(ClosedError):
        USES[use](listener)


def test_another_thread_gets_a_runtime_error_while_the_loop_runs(
    base: EventBase, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, print, LOCAL)
    wrong: list[str] = []
    done: list[bool] = []

    def other() -> None:
        while not base.running:
            time.sleep(0.001)
        for name, use in (*USES.items(), ("close", lambda listener: listener.close())):
            if name == "ptr":
                continue
            try:
                use(listener)
                wrong.append(name)
            except RuntimeError:
                pass
        done.append(True)
        base.loopbreak()

    thread = threading.Thread(target=other)
    thread.start()
    run_until(lambda: done)
    thread.join()
    assert wrong == []
    assert listener.enabled


def test_ptr_is_the_c_struct(base: EventBase) -> None:
    listener = Listener.bind(base, print, LOCAL)
    assert lib.evconnlistener_get_fd(listener.ptr) == listener.fd
    assert listener.base is base


def test_repr_says_where_it_listens(base: EventBase) -> None:
    listener = Listener.bind(base, print, LOCAL)
    assert repr(listener.address) in repr(listener)


# ---- wrong types and values ----


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        (80, TypeError),
        (("127.0.0.1",), TypeError),
        (("127.0.0.1", 0, 0, 0, 0), TypeError),
        (("127.0.0.1", "80"), TypeError),
        ((127, 80), TypeError),
        (("127.0.0.1", -1), ValueError),
        (("127.0.0.1", 65536), ValueError),
        ("", ValueError),
        (b"", ValueError),
        ("x" * 200, ValueError),
    ],
    ids=repr,
)
def test_wrong_addresses(base: EventBase, address: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Listener.bind(base, print, address)


@pytest.mark.parametrize(
    ("flags", "error"),
    [(-1, ValueError), (1 << 12, ValueError), (1 << 40, ValueError), ("1", TypeError),
     (1.5, TypeError), (None, TypeError)],
)  # fmt: skip
def test_wrong_flags(base: EventBase, flags: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Listener.bind(base, print, LOCAL, flags=flags)
    with socket.create_server(LOCAL) as server, pytest.raises(error):
        Listener(base, print, server, flags=flags)


@pytest.mark.parametrize(
    ("backlog", "error"), [("1", TypeError), (1.5, TypeError), (1 << 40, ValueError)]
)
def test_wrong_backlogs(base: EventBase, backlog: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Listener.bind(base, print, LOCAL, backlog=backlog)


def test_wrong_callbacks(base: EventBase) -> None:
    with pytest.raises(TypeError):
        Listener.bind(base, "not callable", LOCAL)  # type: ignore[arg-type]
    listener = Listener.bind(base, print, LOCAL)
    with pytest.raises(TypeError):
        listener.set_cb(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        listener.set_error_cb(1)  # type: ignore[arg-type]
    listener.set_error_cb(None)


@pytest.mark.parametrize("fd", [None, "1", 1.5])
def test_wrong_descriptors(base: EventBase, fd: Any) -> None:
    with pytest.raises(TypeError):
        Listener(base, print, fd)


def test_something_else_than_a_base() -> None:
    with pytest.raises(TypeError, match="EventBase"):
        Listener.bind(object(), print, LOCAL)  # type: ignore[arg-type]


def test_a_closed_base(base: EventBase) -> None:
    base.close()
    with pytest.raises(ClosedError):
        Listener.bind(base, print, LOCAL)
    with socket.create_server(LOCAL) as server:
        with pytest.raises(ClosedError):
            Listener(base, print, server)
        assert server.fileno() >= 0


# ---- callbacks that raise ----


def test_an_exception_closes_the_descriptor_and_leaves_dispatch(base: EventBase) -> None:
    error = KeyError("mine")
    fds: list[int] = []

    def fail(_listener: Listener, fd: int, _address: Any) -> None:
        fds.append(fd)
        raise error

    listener = Listener.bind(base, fail, LOCAL)
    with connect(listener.address) as client:
        with pytest.raises(KeyError) as caught:
            base.dispatch()
        assert caught.value is error
        assert not is_open(fds[0])
        assert ended(client)
    assert not listener.closed
    assert listener.enabled


def test_an_exception_after_a_bufferevent_took_the_descriptor_leaves_it_open(
    base: EventBase, run_until: RunUntil
) -> None:
    def fail(listener: Listener, fd: int, address: Any) -> None:
        echo(listener, fd, address)
        raise KeyError("after")

    listener = Listener.bind(base, fail, LOCAL)
    with connect(listener.address) as client:
        with pytest.raises(KeyError):
            base.dispatch()
        client.send(b"hello")
        client.setblocking(False)
        got: list[bytes] = []

        def done() -> bool:
            try:
                got.append(client.recv(100))
            except BlockingIOError:
                return False
            return True

        run_until(done)
        assert got == [b"hello"]


def test_an_exception_after_the_bufferevent_was_closed_does_not_close_the_number_again(
    base: EventBase,
) -> None:
    mine: list[int] = []

    def fail(listener: Listener, fd: int, _address: Any) -> None:
        BufferEvent.socket(listener.base, fd, options=BEV_OPT_CLOSE_ON_FREE).close()
        mine.append(os.open(os.devnull, os.O_RDONLY))
        assert mine == [fd]  # the number is somebody else's now
        raise KeyError("after")

    listener = Listener.bind(base, fail, LOCAL)
    with connect(listener.address):
        with pytest.raises(KeyError):
            base.dispatch()
        assert is_open(mine[0])
        os.close(mine[0])


def test_an_exception_while_connections_wait_loses_none_of_them(base: EventBase) -> None:
    calls: list[Any] = []

    def fail(_listener: Listener, _fd: int, address: Any) -> None:
        calls.append(address)
        raise KeyError(len(calls))

    listener = Listener.bind(base, fail, LOCAL)
    clients = [connect(listener.address) for _ in range(10)]
    for n in range(1, 11):
        with pytest.raises(KeyError) as caught:
            base.dispatch()
        assert caught.value.args == (n,)
        assert len(calls) == n
    assert sorted(calls) == sorted(client.getsockname() for client in clients)
    for client in clients:
        assert ended(client)
        client.close()


def test_after_an_exception_the_next_dispatch_serves_those_that_waited(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    def fail_once(listener: Listener, _fd: int, _address: Any) -> None:
        listener.set_cb(accepted)
        raise KeyError("once")

    listener = Listener.bind(base, fail_once, LOCAL)
    clients = [connect(listener.address) for _ in range(5)]
    with pytest.raises(KeyError):
        base.dispatch()
    assert not accepted
    run_until(lambda: len(accepted) == 4)
    for client in clients:
        client.close()


def test_disabled_in_the_callback_that_raised_it_stays_disabled(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    def fail(listener: Listener, _fd: int, _address: Any) -> None:
        listener.disable()
        listener.set_cb(accepted)
        raise KeyError("mine")

    listener = Listener.bind(base, fail, LOCAL)
    clients = [connect(listener.address) for _ in range(2)]
    with pytest.raises(KeyError):
        base.dispatch()
    few_rounds(base)
    assert not accepted
    assert not listener.enabled
    listener.enable()
    run_until(lambda: accepted)
    for client in clients:
        client.close()


def test_closed_in_the_callback_that_raised(base: EventBase) -> None:
    def fail(listener: Listener, _fd: int, _address: Any) -> None:
        listener.close()
        raise KeyError("mine")

    listener = Listener.bind(base, fail, LOCAL)
    with connect(listener.address) as client:
        with pytest.raises(KeyError):
            base.dispatch()
        assert ended(client)
    few_rounds(base)


def test_base_closed_in_the_callback_that_raised(base: EventBase) -> None:
    def fail(listener: Listener, _fd: int, _address: Any) -> None:
        listener.base.close()
        raise KeyError("mine")

    listener = Listener.bind(base, fail, LOCAL)
    with connect(listener.address) as client:
        with pytest.raises(KeyError):
            base.dispatch()
        assert ended(client)
    assert base.closed


def test_the_exception_handler_keeps_the_server_running(
    base: EventBase, run_until: RunUntil
) -> None:
    handled: list[tuple[Exception, Any]] = []
    base.exception_handler = lambda exception, source: handled.append((exception, source))
    error = KeyError("mine")

    def fail(_listener: Listener, _fd: int, _address: Any) -> None:
        raise error

    listener = Listener.bind(base, fail, LOCAL)
    clients = [connect(listener.address) for _ in range(3)]
    run_until(lambda: len(handled) == 3)
    assert handled == [(error, listener)] * 3
    for client in clients:
        assert ended(client)
        client.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_in_the_callback_leaves_dispatch(
    base: EventBase, kind: type[BaseException]
) -> None:
    base.exception_handler = lambda _exception, _source: None

    def fail(_listener: Listener, _fd: int, _address: Any) -> None:
        raise kind

    listener = Listener.bind(base, fail, LOCAL)
    with connect(listener.address) as client:
        with pytest.raises(kind):
            base.dispatch()
        assert ended(client)


# ---- no descriptors left ----


SCARCE = """
import logging, os, resource, socket, sys, time
from pylibevent import *

base = EventBase()
served = []

def accept(listener, fd, address):
    served.append(fd)

listener = Listener.bind(base, accept, ("127.0.0.1", 0))
base.loopexit(0)
base.dispatch()  # the first one opens what Ctrl-C needs
clients = [socket.create_connection(listener.address) for _ in range(10)]
records = []

class Keep(logging.Handler):
    def emit(self, record):
        records.append(record)

logging.getLogger("libevent").addHandler(Keep())
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
mine = []
try:
    while True:
        mine.append(os.dup(0))
except OSError:
    pass

def run(seconds):
    before = time.process_time()
    base.loopexit(seconds)
    base.dispatch()
    return time.process_time() - before

def free():
    while mine:
        os.close(mine.pop())

def wait(predicate):
    limit = time.monotonic() + 10
    while not predicate():
        run(0.05)
        assert time.monotonic() < limit, "it did not happen"
"""


def scarce(code: str) -> None:
    """Runs code in a process that has ten clients waiting and no descriptor left."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCARCE + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "fine\n")


def test_without_descriptors_it_logs_and_neither_spins_nor_loses_a_connection() -> None:
    scarce("""
cpu = run(1)
assert served == []
assert cpu < 0.3, cpu
assert 1 <= len(records) <= 15, len(records)
assert all(record.levelno == logging.WARNING for record in records)
assert "accept" in records[0].getMessage() and "Too many open files" in records[0].getMessage()
assert listener.enabled
free()
wait(lambda: len(served) == 10)
n = len(records)
run(0.3)
assert len(records) == n  # nothing more to say
print("fine")
""")


def test_without_descriptors_the_error_callback_gets_the_oserror() -> None:
    scarce("""
import errno
errors = []
def error(which, exception):
    assert which is listener
    errors.append(exception)
listener.set_error_cb(error)
cpu = run(1)
assert cpu < 0.3, cpu
assert 1 <= len(errors) <= 15, len(errors)
assert all(type(e) is OSError and e.errno == errno.EMFILE for e in errors)
assert "accept" in str(errors[0])
assert not records
free()
wait(lambda: len(served) == 10)
print("fine")
""")


def test_without_descriptors_one_freed_serves_one() -> None:
    scarce("""
run(0.3)
for n in range(1, 4):
    os.close(mine.pop())
    wait(lambda: len(served) == n)
print("fine")
""")


def test_without_descriptors_the_error_callback_may_free_some() -> None:
    scarce("""
listener.set_error_cb(lambda listener, error: free())
wait(lambda: len(served) == 10)
print("fine")
""")


def test_disabled_in_the_error_callback_it_stays_disabled() -> None:
    scarce("""
errors = []
def error(listener, exception):
    errors.append(exception)
    listener.disable()
listener.set_error_cb(error)
run(0.5)
assert len(errors) == 1
assert not listener.enabled
free()
run(0.5)
assert served == []
listener.enable()
wait(lambda: len(served) == 10)
print("fine")
""")


def test_enabled_in_the_error_callback_it_does_not_spin() -> None:
    scarce("""
errors = []
def error(listener, exception):
    errors.append(exception)
    listener.enable()
listener.set_error_cb(error)
cpu = run(0.5)
assert cpu < 0.2, cpu
assert len(errors) <= 10, len(errors)
free()
wait(lambda: len(served) == 10)
print("fine")
""")


def test_disabled_while_it_waits_to_try_again_it_stays_disabled() -> None:
    scarce("""
run(0.05)
listener.disable()
free()
run(0.4)
assert served == []
listener.enable()
wait(lambda: len(served) == 10)
print("fine")
""")


def test_closed_in_the_error_callback() -> None:
    scarce("""
listener.set_error_cb(lambda listener, error: listener.close())
wait(lambda: listener.closed)
run(0.2)
free()
print("fine")
""")


def test_closed_while_it_waits_to_try_again() -> None:
    scarce("""
run(0.05)
listener.close()
run(0.2)
free()
print("fine")
""")


def test_base_closed_in_the_error_callback() -> None:
    scarce("""
listener.set_error_cb(lambda listener, error: base.close())
base.dispatch()
assert base.closed and listener.closed
free()
print("fine")
""")


def test_an_exception_in_the_error_callback_leaves_dispatch_and_loses_no_connection() -> None:
    scarce("""
def error(listener, exception):
    raise KeyError("mine")
listener.set_error_cb(error)
for _ in range(3):
    try:
        base.dispatch()
        raise AssertionError("it returned")
    except KeyError:
        pass
free()
listener.set_error_cb(None)
wait(lambda: len(served) == 10)
print("fine")
""")


def test_the_exception_handler_gets_what_the_error_callback_raised() -> None:
    scarce("""
handled = []
base.exception_handler = lambda exception, source: handled.append((type(exception), source))
def error(listener, exception):
    raise KeyError("mine")
listener.set_error_cb(error)
cpu = run(0.5)
assert cpu < 0.2, cpu
assert 1 <= len(handled) <= 10
assert set(handled) == {(KeyError, listener)}
free()
wait(lambda: len(served) == 10)
print("fine")
""")


def test_without_descriptors_those_that_are_connected_are_served() -> None:
    scarce("""
a, b = clients[0], clients[1]
os.close(mine.pop())
os.close(mine.pop())
wait(lambda: len(served) == 2)
bevs = [BufferEvent.socket(base, fd) for fd in served]
got = []
for bev in bevs:
    bev.setcb(read=lambda bev: got.append(bev.read()))
    bev.enable(EV_READ)
for client in clients:
    client.send(b"x")
wait(lambda: len(got) == 2)
print("fine")
""")


def test_without_descriptors_and_logging_it_says_so_on_stderr_and_goes_on() -> None:
    """`logging` as it comes: warnings go to stderr."""
    code = SCARCE.replace('logging.getLogger("libevent").addHandler(Keep())', "")
    done = subprocess.run(
        [sys.executable, "-c", code + "run(0.3)\nfree()\nwait(lambda: len(served) == 10)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert 1 <= len(done.stderr.splitlines()) <= 6
    assert "Too many open files" in done.stderr


def test_nothing_is_logged_when_accepting_goes_well(
    base: EventBase, accepted: Accepted, run_until: RunUntil, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    with caplog.at_level(logging.DEBUG, "libevent"), connect(listener.address):
        run_until(lambda: accepted)
    assert caplog.records == []


def test_a_connection_that_was_reset_in_the_queue_does_no_harm(
    base: EventBase, accepted: Accepted, run_until: RunUntil
) -> None:
    listener = Listener.bind(base, accepted, LOCAL)
    gone = connect(listener.address)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gone.close()
    with connect(listener.address) as client:
        run_until(lambda: client.getsockname() in accepted.addresses)


# ---- many ----


CLIENTS = """
import resource, selectors, socket, sys, time
port, n = int(sys.argv[1]), int(sys.argv[2])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
selector = selectors.DefaultSelector()
waiting = {}
for i in range(n):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    selector.register(sock, selectors.EVENT_WRITE, i)
    waiting[i] = b""
limit = time.monotonic() + 60
connected = 0
said = {i: b"client %d says %d\\n" % (i, i * 7919) * 5 for i in range(n)}
socks = {}
while waiting and time.monotonic() < limit:
    for key, events in selector.select(1):
        sock, i = key.fileobj, key.data
        if events & selectors.EVENT_WRITE:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            connected += 1
            socks[i] = sock
            selector.modify(sock, selectors.EVENT_READ, i)
            if connected == n:  # all are there before the first one speaks
                for j, other in socks.items():
                    other.send(said[j])
        else:
            part = sock.recv(4096)
            assert part, f"{i} was closed"
            waiting[i] += part
            if len(waiting[i]) >= len(said[i]):
                assert waiting.pop(i) == said[i]
print("connected", connected, "unanswered", len(waiting))
"""


@pytest.mark.slow
def test_2000_clients_at_once_each_get_their_own_answers(base: EventBase) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"the hard limit of descriptors is {hard}, below 5,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    try:
        listener = Listener.bind(base, echo, LOCAL)
        port = str(listener.address[1])
        with subprocess.Popen(
            [sys.executable, "-c", CLIENTS, port, "2000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                deadline = time.monotonic() + 60
                while process.poll() is None and time.monotonic() < deadline:
                    base.loopexit(0.1)
                    base.dispatch()
                out, err = process.communicate(timeout=5)
            finally:
                process.kill()
        assert (out, err) == ("connected 2000 unanswered 0\n", "")
        assert base.max_events() > 2000
        base.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- the interrupt that comes in between ----


def test_an_interrupt_between_accept_and_callback_loses_no_connection() -> None:
    """The process is stopped while a connection and then SIGINT arrive; when it goes on, the loop
    accepts the connection first, and the interrupt hits before the user's callback has begun."""
    code = """
import os
from pylibevent import *
base = EventBase()
served = []
def accept(listener, fd, address):
    served.append(address)
    os.write(fd, b"served")
    os.close(fd)
    if len(served) == 3:
        base.loopexit()
listener = Listener.bind(base, accept, ("127.0.0.1", 0))
print(listener.address[1], flush=True)
while len(served) < 3:
    try:
        base.dispatch()
    except KeyboardInterrupt:
        print("interrupted with", len(served), flush=True)
base.close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        clients = []
        try:
            port = int(process.stdout.readline())
            wait_for_state(process.pid, "S")
            process.send_signal(signal.SIGSTOP)
            wait_for_state(process.pid, "T")
            clients = [connect(("127.0.0.1", port)) for _ in range(3)]
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            assert [client.recv(10) for client in clients] == [b"served"] * 3
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
            for client in clients:
                client.close()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() in (["interrupted with 0"], ["interrupted with 3"])


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state:
            return
        time.sleep(0.005)
    pytest.fail(f"process {pid} did not get to {state}")


@pytest.mark.slow
def test_a_storm_of_interrupts_loses_no_connection() -> None:
    """Whenever SIGINT hits outside of the callback, each client is served all the same. (What
    becomes of a connection whose callback was interrupted is the callback's affair.)"""
    code = """
import signal
from pylibevent import *
base = EventBase()
inside = False
def accept(listener, fd, address):
    global inside
    inside = True
    bev = BufferEvent.socket(base, fd)
    bev.write(b"served")
    bev.close_after_write()
    inside = False
listener = Listener.bind(base, accept, ("127.0.0.1", 0))
stop = []
def at_term(*args):
    stop.append(1)
    base.loopbreak()
def at_int(*args):
    if not inside:
        raise KeyboardInterrupt
signal.signal(signal.SIGTERM, at_term)
print(listener.address[1], flush=True)
signal.signal(signal.SIGINT, at_int)
interrupts = 0
while not stop:
    try:
        while not stop:
            try:
                base.dispatch()
            except KeyboardInterrupt:
                interrupts += 1
    except KeyboardInterrupt:
        interrupts += 1
signal.signal(signal.SIGINT, signal.SIG_IGN)
base.close()
print(interrupts, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            wait_for_state(process.pid, "S")
            answers: list[bytes] = []
            for i in range(400):
                with connect(("127.0.0.1", port)) as client:
                    if i % 2:
                        process.send_signal(signal.SIGINT)
                    try:
                        answers.append(client.recv(10))
                    except ConnectionResetError:
                        answers.append(b"")
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    # Of two in one run of the loop the second one is reported.
    assert (
        err.count("Exception ignored in")
        == err.count("\nKeyboardInterrupt")
        == err.count("Traceback")
    )
    assert int(out) > 50
    # It may hit between the callback's entry and its first line, too.
    assert set(answers) <= {b"served", b""}
    assert answers.count(b"served") > 350
