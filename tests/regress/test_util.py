"""Sockets, addresses, numbers, time and random bytes of event2/util.h."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from common import measures_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from pylibevent import EV_MONOT_FALLBACK, EV_MONOT_PRECISE, BufferEvent, EventBase, lib, util

SETTINGS = settings(deadline=None, database=None)
V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def is_inherited(sock: socket.socket) -> bool:
    return not fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


# ---- sockets ----


def test_socketpair_gives_two_connected_sockets() -> None:
    one, two = util.socketpair()
    with one, two:
        one.sendall(b"there")
        two.sendall(b"back")
        assert two.recv(100) == b"there"
        assert one.recv(100) == b"back"
        assert one.family == two.family == socket.AF_UNIX
        assert one.type == two.type == socket.SOCK_STREAM


def test_socketpair_is_for_this_program_alone_and_blocks() -> None:
    for sock in util.socketpair():
        with sock:
            assert not is_inherited(sock)
            assert sock.getblocking()


def test_socketpair_of_datagrams() -> None:
    one, two = util.socketpair(type=socket.SOCK_DGRAM)
    with one, two:
        one.send(b"first")
        one.send(b"second")
        assert two.recv(100) == b"first"
        assert two.recv(100) == b"second"


def test_a_socketpair_makes_bufferevents(base: EventBase) -> None:
    one, two = util.socketpair()
    with one:
        bev = BufferEvent.socket(base, two)
        assert two.fileno() == -1
        bev.close()


@pytest.mark.parametrize(
    "arguments", [(socket.AF_INET,), (socket.AF_UNIX, 77), (socket.AF_UNIX, 1, 77), (-1,)]
)
def test_no_such_socketpair(arguments: tuple[int, ...]) -> None:
    with pytest.raises(OSError, match="evutil_socketpair"):
        util.socketpair(*arguments)


def test_no_descriptor_left_for_a_socketpair() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 2, hard))
        try:
            with pytest.raises(OSError, match="evutil_socketpair") as error:
                util.socketpair()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.value.errno == errno.EMFILE


def test_make_socket_nonblocking(tcp: socket.socket) -> None:
    assert os.get_blocking(tcp.fileno())
    for _ in (1, 2):
        util.make_socket_nonblocking(tcp)
        assert not os.get_blocking(tcp.fileno())


def test_make_socket_closeonexec(tcp: socket.socket) -> None:
    tcp.set_inheritable(True)
    for _ in (1, 2):
        util.make_socket_closeonexec(tcp.fileno())
        assert not is_inherited(tcp)


@pytest.mark.parametrize(
    ("function", "option"),
    [
        (util.make_listen_socket_reuseable, (socket.SOL_SOCKET, socket.SO_REUSEADDR)),
        (util.make_listen_socket_reuseable_port, (socket.SOL_SOCKET, socket.SO_REUSEPORT)),
    ],
)
def test_options_of_a_listener(
    tcp: socket.socket, function: Callable[[Any], None], option: tuple[int, int]
) -> None:
    assert not tcp.getsockopt(*option)
    function(tcp)
    assert tcp.getsockopt(*option)


def test_two_listeners_on_a_port() -> None:
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            util.make_listen_socket_reuseable_port(sock)
        one.bind(("127.0.0.1", 0))
        two.bind(one.getsockname())
        one.listen()
        two.listen()


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="the system has none")
def test_make_tcp_listen_socket_deferred(tcp: socket.socket) -> None:
    util.make_tcp_listen_socket_deferred(tcp)
    assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)


def test_make_listen_socket_ipv6only() -> None:
    try:
        sock = socket.socket(V6)
    except OSError:
        pytest.skip("no IPv6 here")
    with sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        util.make_listen_socket_ipv6only(sock)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_closesocket_closes_a_descriptor() -> None:
    read, write = os.pipe()
    util.closesocket(write)
    assert os.read(read, 1) == b""
    util.closesocket(read)
    with pytest.raises(OSError, match="evutil_closesocket") as error:
        util.closesocket(read)
    assert error.value.errno == errno.EBADF


def test_closesocket_detaches_a_socket(tcp: socket.socket) -> None:
    fd = tcp.fileno()
    util.closesocket(tcp)
    assert tcp.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_closesocket_closes_nothing_that_others_close_once_more() -> None:
    with open(os.devnull) as file, pytest.raises(TypeError):
        util.closesocket(file)  # type: ignore[arg-type]


ON_SOCKETS: list[Callable[[Any], None]] = [
    util.make_socket_nonblocking,
    util.make_socket_closeonexec,
    util.make_listen_socket_reuseable,
    util.make_listen_socket_reuseable_port,
    util.make_listen_socket_ipv6only,
    util.make_tcp_listen_socket_deferred,
    util.closesocket,
]


@pytest.fixture(params=ON_SOCKETS)
def on_socket(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Each function that does something to a socket."""
    return request.param  # type: ignore[no-any-return]


def test_a_descriptor_that_is_closed(on_socket: Callable[[Any], None], tcp: socket.socket) -> None:
    fd = tcp.fileno()
    tcp.close()
    for closed in (fd, -1):
        with pytest.raises(OSError, match=f"evutil_{on_socket.__name__}") as error:
            on_socket(closed)
        assert error.value.errno == errno.EBADF


def test_a_socket_that_is_closed(on_socket: Callable[[Any], None], tcp: socket.socket) -> None:
    tcp.close()
    with pytest.raises((OSError, ValueError)):
        on_socket(tcp)


@pytest.mark.parametrize("fd", [-2, 2**31, 2**32, 2**100])
def test_no_descriptor_is_that_big_or_small(on_socket: Callable[[Any], None], fd: int) -> None:
    with pytest.raises(ValueError, match="not a file descriptor"):
        on_socket(fd)


@pytest.mark.parametrize("fd", [None, "1", 1.0, b""])
def test_no_descriptor_at_all(on_socket: Callable[[Any], None], fd: Any) -> None:
    with pytest.raises(TypeError):
        on_socket(fd)


def test_options_that_a_pipe_does_not_have() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="evutil_make_listen_socket_reuseable") as error:
            util.make_listen_socket_reuseable(read)
        assert error.value.errno == errno.ENOTSOCK
    finally:
        os.close(read)
        os.close(write)


def test_what_goes_wrong_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        util.make_socket_nonblocking(-1)
    assert [record.name for record in caplog.records] == ["libevent"]


def test_socket_geterror_is_the_errno_of_the_last_call() -> None:
    assert lib.evutil_closesocket(-1) == -1
    assert util.socket_geterror() == util.socket_geterror(0) == errno.EBADF
    lib.EVUTIL_SET_SOCKET_ERROR(errno.EAGAIN)
    assert util.socket_geterror() == errno.EAGAIN


@pytest.mark.parametrize("code", [0, errno.ENOENT, errno.ECONNREFUSED, 12345, -1])
def test_socket_error_to_string(code: int) -> None:
    assert util.socket_error_to_string(code) == os.strerror(code)
    with pytest.raises(ValueError, match="errnum"):
        util.socket_error_to_string(code + 2**32)


# ---- addresses ----

ADDRESSES = [
    (V4, "0.0.0.0", "00000000"),
    (V4, "9.8.7.6", "09080706"),
    (V4, "255.255.255.255", "ffffffff"),
    (V6, "::", "00" * 16),
    (V6, "::1", "00" * 15 + "01"),
    (V6, "::5.6.7.8", "00" * 12 + "05060708"),
    (V6, "::ffff:5.6.7.8", "00" * 10 + "ffff05060708"),
    (V6, "fe80::a:b", "fe80" + "00" * 10 + "000a000b"),
    (V6, "1:2:3:4:5:6:7:8", "00010002000300040005000600070008"),
    (V6, "abcd:0:0:1::", "abcd000000000001" + "00" * 8),
]


@pytest.mark.parametrize(("family", "text", "packed"), ADDRESSES)
def test_an_address_and_its_bytes(family: int, text: str, packed: str) -> None:
    assert util.inet_pton(family, text).hex() == packed
    assert util.inet_ntop(family, bytes.fromhex(packed)) == text
    assert util.inet_ntop(family, memoryview(bytearray.fromhex(packed))) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0:0:0:0:0:0:0:0", "::"),
        ("ABCD::", "abcd::"),
        ("0a::00b", "a::b"),
        ("1::3.4.5.6", "1::304:506"),
    ],
)
def test_other_ways_to_write_an_address(text: str, canonical: str) -> None:
    assert util.inet_ntop(V6, util.inet_pton(V6, text)) == canonical


@pytest.mark.parametrize(
    ("family", "text"),
    [
        *[(V4, text) for text in ("", "x", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.-4", "::1")],
        *[(V4, text) for text in ("1.2.3.4 ", "1.2.3.4\0", "1.2.3.4:5", "1" * 1000)],
        *[(V6, text) for text in ("", ":", "1", "abcd", "1:2", "g::", ":::", "1::2::3", "12345::")],
        *[
            (V6, text)
            for text in ("1:2:3:4:5:6:7:8:9", "::1.2.3", "::1.2.3.456", "::1%lo", "[::1]")
        ],
        *[(V6, text) for text in ("1.2.3.4", "::1\0", ":" * 1000, "1:" * 1000)],
    ],
)
def test_no_address(family: int, text: str) -> None:
    with pytest.raises(ValueError, match=r"not an address|NUL"):
        util.inet_pton(family, text)


@pytest.mark.parametrize("family", [0, socket.AF_UNIX, -1, 2**40])
def test_no_address_family(family: int) -> None:
    with pytest.raises(ValueError, match="family must be"):
        util.inet_pton(family, "1.2.3.4")
    with pytest.raises(ValueError, match="family must be"):
        util.inet_ntop(family, b"1234")


@pytest.mark.parametrize(("family", "n"), [(V4, 0), (V4, 3), (V4, 16), (V6, 4), (V6, 17)])
def test_an_address_has_its_length(family: int, n: int) -> None:
    with pytest.raises(ValueError, match="bytes, not"):
        util.inet_ntop(family, bytes(n))


@pytest.mark.parametrize(
    ("text", "family", "address"),
    [
        ("9.8.7.6", V4, ("9.8.7.6", 0)),
        ("9.8.7.6:1", V4, ("9.8.7.6", 1)),
        ("9.8.7.6:65535", V4, ("9.8.7.6", 65535)),
        ("9.8.7.6:00080", V4, ("9.8.7.6", 80)),
        ("::", V6, ("::", 0, 0, 0)),
        ("12::34", V6, ("12::34", 0, 0, 0)),
        ("[12::34]", V6, ("12::34", 0, 0, 0)),
        ("[12::34]:443", V6, ("12::34", 443, 0, 0)),
        ("::ffff:1.2.3.4", V6, ("::ffff:1.2.3.4", 0, 0, 0)),
        ("fe80::1%7", V6, ("fe80::1", 0, 0, 7)),
        ("[fe80::1%0]:9", V6, ("fe80::1", 9, 0, 0)),
    ],
)
def test_parse_sockaddr_port(text: str, family: int, address: tuple[Any, ...]) -> None:
    assert util.parse_sockaddr_port(text) == (family, address)


@pytest.mark.parametrize(
    "text",
    [
        *["", ":", ":80", "x", "localhost", "localhost:80", "1.2.3", "1.2.3.4.5:6", "256.1.1.1"],
        *["1.2.3.4:", "1.2.3.4:0", "1.2.3.4:-1", "1.2.3.4:65536", "1.2.3.4:80x", "1.2.3.4: 80"],
        *["1.2.3.4:99999999999999999999", "1.2.3.4:4294967376", "1.2.3.4:+80", "1.2.3.4\0:80"],
        *["[", "]", "[]", "[::1", "::1]", "[::1]:", "[::1]:0", "[::1]:65536", "[::1]x", "[::1]80"],
        *["[1.2.3.4]", "[1.2.3.4]:80", "[[::1]]", "::1%no-such-interface", "1:2", "::g"],
        *["1" * 200, ":" * 100_000 + "]", "[" + ":" * 1000 + "]", "::1%" + "1" * 1000],
    ],
)
def test_what_parse_sockaddr_port_does_not_take(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an address|NUL"):
        util.parse_sockaddr_port(text)


@SETTINGS
@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_is_parsed(address: Any, port: int) -> None:
    family = V4 if address.version == 4 else V6
    text = util.inet_ntop(family, address.packed)
    more = () if family == V4 else (0, 0)
    with_port = f"{text}:{port}" if family == V4 else f"[{text}]:{port}"
    assert util.parse_sockaddr_port(text) == (family, (text, 0, *more))
    assert util.parse_sockaddr_port(with_port) == (family, (text, port, *more))


@SETTINGS
@given(st.text(alphabet=":[].%0123456789af\x00 é", max_size=40))
def test_what_is_parsed_makes_an_address(text: str) -> None:
    try:
        family, address = util.parse_sockaddr_port(text)
    except ValueError:
        return
    assert util.inet_ntop(family, util.inet_pton(family, address[0])) == address[0]
    assert 0 <= address[1] <= 65535


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


@pytest.mark.parametrize(
    ("a", "b", "same_host", "same"),
    [
        (("9.8.7.6", 80), ("9.8.7.6", 80), True, True),
        (("9.8.7.6", 80), ("9.8.7.6", 81), True, False),
        (("9.8.7.6", 80), ("9.8.7.7", 80), False, False),
        (("9.8.7.6", 80), ("::ffff:9.8.7.6", 80), False, False),
        (("12::34", 80), ("12:0::34", 80, 0, 0), True, True),
        (("12::34", 80), ("12::34", 8080), True, False),
        (("12::34", 80), ("12::35", 80), False, False),
        (("fe80::1", 80, 0, 1), ("fe80::1", 80, 0, 2), True, True),
    ],
)
def test_sockaddr_cmp(a: Any, b: Any, same_host: bool, same: bool) -> None:
    for include_port, expected in ((True, same), (False, same_host)):
        there = util.sockaddr_cmp(a, b, include_port)
        back = util.sockaddr_cmp(b, a, include_port)
        assert (there == 0) is expected
        assert sign(there) == -sign(back)


def test_the_order_of_addresses_is_one() -> None:
    addresses: list[Any] = [
        (host, port) for host in ("1.1.1.1", "2.1.1.1", "::1", "::2") for port in (1, 2)
    ]
    for a in addresses:
        for b in addresses:
            for c in addresses:
                if util.sockaddr_cmp(a, b) < 0 and util.sockaddr_cmp(b, c) < 0:
                    assert util.sockaddr_cmp(a, c) < 0


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("localhost", 80), ValueError),
        (("", 80), ValueError),
        (("1.2.3.4\0", 80), ValueError),
        (("1.2.3.4", -1), ValueError),
        (("1.2.3.4", 65536), ValueError),
        (("::1", 80, 2**20), ValueError),
        (("::1", 80, 0, 2**32), ValueError),
        (("::1", 80, 0, -1), ValueError),
        (("1.2.3.4", "80"), TypeError),
        ((None, 80), TypeError),
        (("1.2.3.4",), TypeError),
        (("::1", 80, 0, 0, 0), TypeError),
        ("/a/path", TypeError),
        (None, TypeError),
    ],
)
def test_what_sockaddr_cmp_does_not_take(address: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        util.sockaddr_cmp(address, ("1.2.3.4", 80))
    with pytest.raises(error):
        util.sockaddr_cmp(("1.2.3.4", 80), address)


# ---- getaddrinfo ----

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
NUMERIC = socket.AI_NUMERICHOST


def test_getaddrinfo_of_numbers() -> None:
    (found,) = util.getaddrinfo("9.8.7.6", 8080, type=STREAM)
    assert found == (V4, STREAM, TCP, "", ("9.8.7.6", 8080))
    assert isinstance(found[0], socket.AddressFamily)
    assert isinstance(found[1], socket.SocketKind)
    (found,) = util.getaddrinfo("12::34", "4321", proto=UDP)
    assert found == (V6, DGRAM, UDP, "", ("12::34", 4321, 0, 0))


@pytest.mark.parametrize(
    ("family", "flags", "host"),
    [
        (V4, socket.AI_PASSIVE, "0.0.0.0"),
        (V4, 0, "127.0.0.1"),
        (V6, socket.AI_PASSIVE, "::"),
        (V6, 0, "::1"),
    ],
)
def test_getaddrinfo_without_a_host(family: int, flags: int, host: str) -> None:
    """An address to bind to, or one to connect to."""
    (found,) = util.getaddrinfo(None, 9999, family, proto=TCP, flags=flags)
    assert found[4][:2] == (host, 9999)


def test_getaddrinfo_without_a_type_gives_all() -> None:
    found = util.getaddrinfo("9.8.7.6", None, flags=NUMERIC)
    assert {(kind, proto) for _, kind, proto, _, _ in found} >= {(STREAM, TCP), (DGRAM, UDP)}
    assert {address for *_, address in found} == {("9.8.7.6", 0)}


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except socket.gaierror as error:
        return error.errno


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("127.0.0.1", 80), {}),
        ((b"127.0.0.1", b"80"), {}),
        (("::1", 0), {"type": STREAM}),
        (("::1%1", 1), {"type": STREAM}),
        (("fe80::1%1", 1), {"type": STREAM}),
        (("localhost", 80), {"type": STREAM}),
        (("localhost", None), {"flags": socket.AI_CANONNAME}),
        (("127.0.0.1", 80), {"flags": socket.AI_PASSIVE | socket.AI_ADDRCONFIG}),
        ((None, 80), {}),
        ((None, 80), {"flags": socket.AI_PASSIVE}),
        ((None, None), {}),
        (("", 80), {}),
        (("no such host", 80), {"flags": NUMERIC}),
        (("example.org", 80), {"flags": NUMERIC}),
        (("1.2.3.4", "http"), {"type": STREAM}),
        (("1.2.3.4", "http"), {"type": STREAM, "flags": socket.AI_NUMERICSERV}),
        (("1.2.3.4", "no such service"), {"type": STREAM}),
        (("1.2.3.4", 80), {"family": V6, "flags": NUMERIC}),
        (("1.2.3.4", 80), {"family": V6, "flags": NUMERIC | socket.AI_V4MAPPED}),
        (("::1", 80), {"family": V4, "flags": NUMERIC}),
        (("1.2.3.4", 80), {"family": 77}),
        (("1.2.3.4", 80), {"type": 77}),
        (("1.2.3.4", 80), {"type": STREAM, "proto": UDP}),
        (("1.2.3.4", 80), {"flags": 1 << 28}),
    ],
)
def test_getaddrinfo_answers_as_the_socket_module_does(args: Any, kwargs: Any) -> None:
    assert outcome(util.getaddrinfo, *args, **kwargs) == outcome(
        socket.getaddrinfo, *args, **kwargs
    )


def test_a_failed_look_up() -> None:
    with pytest.raises(socket.gaierror) as error:
        util.getaddrinfo("example.org", 80, flags=NUMERIC)
    assert error.value.errno == socket.EAI_NONAME
    assert error.value.strerror == util.gai_strerror(socket.EAI_NONAME)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("1.2.3.4\0.example.org", 80), ValueError),
        ((b"1.2.3.4\0", 80), ValueError),
        (("1.2.3.4", "80\0"), ValueError),
        (("a" * 64 + ".example.org", 80), ValueError),  # no label is that long
        (("1.2.3.4", -1), ValueError),
        (("1.2.3.4", 65536), ValueError),
        (("1.2.3.4", "65536"), ValueError),
        (("1.2.3.4", b" +4294967376"), ValueError),
        (("1.2.3.4", 2**80), ValueError),
        (("1.2.3.4", 80, 2**31), ValueError),
        (("1.2.3.4", 80, 0, 2**31), ValueError),
        (("1.2.3.4", 80, 0, 0, 2**31), ValueError),
        (("1.2.3.4", 80, 0, 0, 0, 2**31), ValueError),
        (("1.2.3.4", 80.0), TypeError),
        ((1234, 80), TypeError),
        (("1.2.3.4", 80, "AF_INET"), TypeError),
    ],
)
def test_what_getaddrinfo_does_not_take(args: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        util.getaddrinfo(*args)


@measures_memory
def test_getaddrinfo_frees_what_it_got() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * resource.getpagesize()

    def look_up(times: int) -> None:
        for _ in range(times):
            util.getaddrinfo("1.2.3.4", 80, flags=NUMERIC)

    look_up(100)
    before = resident()
    look_up(8000)  # 3 results each: more than 2 MB
    assert resident() - before < 1_000_000


def test_getaddrinfo_in_several_threads() -> None:
    found: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda n=n: found.extend(util.getaddrinfo("1.2.3.4", n, type=STREAM))
        )
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(address[1] for *_, address in found) == list(range(1, 9))


def test_gai_strerror() -> None:
    texts = {util.gai_strerror(code) for code in (socket.EAI_NONAME, socket.EAI_AGAIN, 0)}
    assert len(texts) == 3
    assert util.gai_strerror(lib.EVUTIL_EAI_CANCEL) == "Request canceled"
    assert util.gai_strerror(123456)
    with pytest.raises(ValueError, match="code"):
        util.gai_strerror(2**31)


# ---- texts ----


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 0),
        ("Content-Length", "content-LENGTH", 0),
        (b"abc", "ABC", 0),
        ("a", "b", -1),
        ("B", "a", 1),
        ("abc", "abcd", -1),
        ("Z", "_", 1),  # as z: libevent compares small letters
        ("[", "{", -1),
        ("Ä", "ä", -1),  # no ASCII letter
    ],
)
def test_ascii_strcasecmp(a: Any, b: Any, expected: int) -> None:
    assert sign(util.ascii_strcasecmp(a, b)) == expected
    assert sign(util.ascii_strcasecmp(b, a)) == -expected
    assert sign(util.ascii_strncasecmp(a, b, 2**63 - 1)) == expected


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 0), (3, 0), (4, -1), (100, -1)])
def test_ascii_strncasecmp_looks_at_n_bytes(n: int, expected: int) -> None:
    assert sign(util.ascii_strncasecmp("abcX", "ABCY", n)) == expected


def test_texts_have_no_nul() -> None:
    for a, b in (("a\0", "a"), ("a", "a\0"), (b"\0", b"")):
        with pytest.raises(ValueError, match="NUL"):
            util.ascii_strcasecmp(a, b)
        with pytest.raises(ValueError, match="NUL"):
            util.ascii_strncasecmp(a, b, 1)
    with pytest.raises(ValueError, match="NUL"):
        util.strtoll("1\0")


@pytest.mark.parametrize("n", [-1, 2**63, 2**64])
def test_ascii_strncasecmp_takes_a_number_of_bytes(n: int) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        util.ascii_strncasecmp("a", "a", n)


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("9876543210", 10, (9876543210, 10)),
        ("-9876543210", 10, (-9876543210, 11)),
        ("  +12abc", 10, (12, 5)),
        (b"ff", 16, (255, 2)),
        ("0xff", 0, (255, 4)),
        ("0xff", 16, (255, 4)),
        ("017", 0, (15, 3)),
        ("zz", 36, (1295, 2)),
        ("102", 2, (2, 2)),
        ("", 10, (0, 0)),
        ("abc", 10, (0, 0)),
        ("-", 10, (0, 0)),
        ("9223372036854775807", 10, (2**63 - 1, 19)),
        ("-9223372036854775808", 10, (-(2**63), 20)),
    ],
)
def test_strtoll(text: Any, base: int, expected: tuple[int, int]) -> None:
    assert util.strtoll(text, base) == expected


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 1000])
def test_strtoll_does_not_cut_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        util.strtoll(text)


@pytest.mark.parametrize("base", [-1, 1, 37, 2**40])
def test_strtoll_has_36_digits(base: int) -> None:
    with pytest.raises(ValueError, match="base"):
        util.strtoll("1", base)


@SETTINGS
@given(st.integers(-(2**63), 2**63 - 1), st.text("ghx -+é"))
def test_strtoll_reads_what_python_writes(number: int, rest: str) -> None:
    text = str(number)
    assert util.strtoll(text + rest) == (number, len(text))


# ---- time ----


def test_gettimeofday() -> None:
    before = time.time()
    now = util.gettimeofday()
    assert before - 1e-5 <= now <= time.time() + 1e-5


FLAGS = [0, EV_MONOT_PRECISE, EV_MONOT_FALLBACK, EV_MONOT_PRECISE | EV_MONOT_FALLBACK]


@pytest.fixture(params=FLAGS, ids=str)
def timer(request: pytest.FixtureRequest) -> util.MonotonicTimer:
    return util.MonotonicTimer(request.param)


def test_a_monotonic_timer_moves_and_never_goes_back(timer: util.MonotonicTimer) -> None:
    first = last = timer.gettime()
    deadline = time.monotonic() + 5
    while last < first + 0.01:
        assert time.monotonic() < deadline
        now = timer.gettime()
        assert now >= last
        last = now


@pytest.mark.parametrize("flags", [0, EV_MONOT_PRECISE], ids=str)
def test_a_monotonic_timer_counts_seconds(flags: int) -> None:
    """Its difference lies between those of Python's clock read outside and inside of it."""
    timer = util.MonotonicTimer(flags)
    outer, start, inner = time.monotonic(), timer.gettime(), time.monotonic()
    while time.monotonic() < inner + 0.05:
        pass
    inner_end, end, outer_end = time.monotonic(), timer.gettime(), time.monotonic()
    tick = 0.02  # what the coarse clock may be behind
    assert inner_end - inner - tick <= end - start <= outer_end - outer + tick


def test_the_fallback_is_the_time_of_day() -> None:
    assert abs(util.MonotonicTimer(EV_MONOT_FALLBACK).gettime() - util.gettimeofday()) < 60


def test_a_monotonic_timer_in_several_threads(timer: util.MonotonicTimer) -> None:
    wrong: list[float] = []

    def read() -> None:
        last = timer.gettime()
        for _ in range(2000):
            now = timer.gettime()
            if now < last:
                wrong.append(now - last)
            last = now

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_copied_timer_is_the_same_clock() -> None:
    timer = util.MonotonicTimer()
    twin = copy.copy(timer)
    del timer
    assert twin.gettime() > 0


def test_gettime_monotonic() -> None:
    times = [util.gettime_monotonic() for _ in range(100)]
    assert times == sorted(times)


@pytest.mark.parametrize("flags", [-1, 4, 2**31])
def test_unknown_flags_of_a_timer(flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        util.MonotonicTimer(flags)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (-1, "Wed, 31 Dec 1969 23:59:59 GMT"),
        (-0.5, "Wed, 31 Dec 1969 23:59:59 GMT"),
        (951782400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (1111111111.9, "Fri, 18 Mar 2005 01:58:31 GMT"),
        (1234567890, "Fri, 13 Feb 2009 23:31:30 GMT"),
        (1709210096, "Thu, 29 Feb 2024 12:34:56 GMT"),
        (2**31, "Tue, 19 Jan 2038 03:14:08 GMT"),
        (2**32, "Sun, 07 Feb 2106 06:28:16 GMT"),
        (253402300799, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ],
)
def test_date_rfc1123(seconds: float, text: str) -> None:
    assert util.date_rfc1123(seconds) == text


@SETTINGS
@given(st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30), timezones=st.timezones()))
def test_date_rfc1123_of_a_datetime(when: datetime) -> None:
    expected = format_datetime(when.astimezone(timezone.utc), usegmt=True)
    assert util.date_rfc1123(when) == expected


@pytest.mark.parametrize("zone", [timezone.utc, None])
def test_date_rfc1123_does_not_round_up(zone: timezone | None) -> None:
    when = datetime(4148, 1, 1, 0, 0, 0, 999_999, tzinfo=zone)
    expected = format_datetime(when.astimezone(timezone.utc), usegmt=True)
    assert util.date_rfc1123(when) == expected


def test_date_rfc1123_of_now() -> None:
    before = datetime.now(timezone.utc)
    text = util.date_rfc1123()
    allowed = {format_datetime(before + timedelta(seconds=n), usegmt=True) for n in range(60)}
    assert text in allowed


@pytest.mark.parametrize("when", [253402300800, -62135596801, 1e300, float("nan"), 2**70])
def test_dates_that_have_no_four_digits(when: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        util.date_rfc1123(when)


@pytest.mark.parametrize("when", ["now", b"", (2000, 1, 1), time.gmtime(0)])
def test_what_is_no_date(when: Any) -> None:
    with pytest.raises(TypeError):
        util.date_rfc1123(when)


# ---- random bytes ----


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 31, 32, 33, 100_000])
def test_secure_rng_get_bytes_gives_n(n: int) -> None:
    assert len(util.secure_rng_get_bytes(n)) == n


def test_every_byte_is_random() -> None:
    """8 draws or-ed: a byte that stays 0 was not drawn (or 1 in 2**64)."""
    for n in range(1, 33):
        total = 0
        for _ in range(8):
            total |= int.from_bytes(util.secure_rng_get_bytes(n), "big")
        assert 0 not in total.to_bytes(n, "big")


def test_random_bytes_of_several_threads_differ() -> None:
    drawn: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: drawn.extend(util.secure_rng_get_bytes(16) for _ in range(200))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 800


@pytest.mark.parametrize("n", [-1, 2**63, 2**100])
def test_no_number_of_random_bytes(n: int) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        util.secure_rng_get_bytes(n)


@pytest.mark.parametrize("n", [2**62, 2**63 - 1])
def test_more_random_bytes_than_there_is_memory(n: int) -> None:
    with pytest.raises(MemoryError):
        util.secure_rng_get_bytes(n)


@pytest.mark.parametrize("n", [None, 1.0, "1", b""])
def test_random_bytes_are_counted(n: Any) -> None:
    with pytest.raises(TypeError):
        util.secure_rng_get_bytes(n)


def test_seeding() -> None:
    for _ in (1, 2):
        util.secure_rng_init()
    for more in (b"", b"x", bytearray(1000), memoryview(b"abc")):
        util.secure_rng_add_bytes(more)
    assert util.secure_rng_get_bytes(16) != util.secure_rng_get_bytes(16)
    text: Any = "text"
    with pytest.raises(TypeError):
        util.secure_rng_add_bytes(text)


DEVICE = """
from pylibevent import LibeventError, util
try:
    util.secure_rng_set_urandom_device_file("/dev/urandom")
except LibeventError:
    pass  # this libevent needs no device
util.secure_rng_init()
util.secure_rng_add_bytes(b"more")
print(len(util.secure_rng_get_bytes(1000)))
"""


def test_seeding_from_a_device() -> None:
    """In a process of its own: it holds for the whole of one."""
    run = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=True)
    assert run.stdout == "1000\n"


def test_seeds_come_from_a_device(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    with pytest.raises(FileNotFoundError):
        util.secure_rng_set_urandom_device_file(file)
    file.write_bytes(b"not random")
    with pytest.raises(ValueError, match="not a device"):
        util.secure_rng_set_urandom_device_file(file)
    with pytest.raises(ValueError, match="NUL"):
        util.secure_rng_set_urandom_device_file(b"/dev/urandom\0")
