"""event2/util.h: sockets, addresses, numbers, time and random bytes, as libevent does them.

What Python has itself is not here: snprintf, and the arithmetic of timevals, which are seconds.
A socket may be given as its descriptor or as anything with fileno().
"""

from __future__ import annotations

import errno
import math
import operator
import os
import re
import socket as _socket
import stat
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from socket import AF_INET, AF_INET6, AddressFamily, SocketKind
from typing import Any

from . import _callbacks as cb
from ._args import Address, FileDescriptor, data, fileno, integer, only, real, size
from ._libevent import ffi, lib
from .buffer import Bytes, _new_block, _unpack
from .constants import MonotonicFlags
from .errors import FAIL, SYS, fail, os_error

AddressInfo = tuple[AddressFamily, SocketKind, int, str, Address]

_PACKED = {AF_INET: 4, AF_INET6: 16}
_MAX_PORT = 0xFFFF
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MONOTONIC_FLAGS = sum(MonotonicFlags)


def _c_string(text: str | bytes, name: str) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"{name} must be a str or bytes, not {type(text).__name__}")
    raw = text.encode() if isinstance(text, str) else text
    if b"\0" in raw:
        raise ValueError(f"NUL in {name}: {text!r}")
    return raw


# ---- sockets ----


def socketpair(
    family: int = _socket.AF_UNIX, type: int = _socket.SOCK_STREAM, protocol: int = 0
) -> tuple[_socket.socket, _socket.socket]:
    """Two connected sockets, which the caller owns (evutil_socketpair). They block, and are not
    inherited by programs that this one starts. OSError if the system has no such pair."""
    fds = ffi.new("int[2]", [-1, -1])
    pair = (integer(family, "family"), integer(type, "type"), integer(protocol, "protocol"))
    # There before their descriptors are: each has an owner, whatever comes in between.
    a, b = (_socket.socket.__new__(_socket.socket) for _ in range(2))
    try:
        if (rc := lib.pyle_socketpair(*pair, fds)) < 0:
            fail(rc, "evutil_socketpair")
        for sock, fd in ((a, fds[0]), (b, fds[1])):
            _socket.socket.__init__(sock, fileno=fd)
    except BaseException:
        for sock, fd in ((a, fds[0]), (b, fds[1])):
            sock.detach()
            if fd >= 0:
                os.close(fd)
        raise
    return a, b


def _on_socket(call: Callable[[int], int], sock: FileDescriptor, function: str) -> None:
    if call(fileno(sock)) < 0:
        error = os_error(ffi.errno, function)
        cb.drain_log()
        raise error


def make_socket_nonblocking(sock: FileDescriptor) -> None:
    """Has no call on it wait (evutil_make_socket_nonblocking). OSError if that cannot be. A
    socket.socket does not notice: for one, use its setblocking(False)."""
    _on_socket(lib.evutil_make_socket_nonblocking, sock, "evutil_make_socket_nonblocking")


def make_listen_socket_reuseable(sock: FileDescriptor) -> None:
    """Lets it be bound where one was closed just now, SO_REUSEADDR
    (evutil_make_listen_socket_reuseable). OSError if that cannot be."""
    _on_socket(lib.evutil_make_listen_socket_reuseable, sock, "evutil_make_listen_socket_reuseable")


def make_listen_socket_reuseable_port(sock: FileDescriptor) -> None:
    """Lets several listen on one port, SO_REUSEPORT, on Linux
    (evutil_make_listen_socket_reuseable_port). OSError if that cannot be."""
    function = "evutil_make_listen_socket_reuseable_port"
    _on_socket(lib.evutil_make_listen_socket_reuseable_port, sock, function)


def make_listen_socket_ipv6only(sock: FileDescriptor) -> None:
    """Has an IPv6 listener take no IPv4 connections, IPV6_V6ONLY
    (evutil_make_listen_socket_ipv6only). OSError if that cannot be."""
    _on_socket(lib.evutil_make_listen_socket_ipv6only, sock, "evutil_make_listen_socket_ipv6only")


def make_socket_closeonexec(sock: FileDescriptor) -> None:
    """Closes it in programs that this one starts, as Python does with its own
    (evutil_make_socket_closeonexec). OSError if that cannot be."""
    _on_socket(lib.evutil_make_socket_closeonexec, sock, "evutil_make_socket_closeonexec")


def make_tcp_listen_socket_deferred(sock: FileDescriptor) -> None:
    """Has a listener tell of a connection once it has sent something, where the system can do
    that (evutil_make_tcp_listen_socket_deferred). OSError if that cannot be."""
    function = "evutil_make_tcp_listen_socket_deferred"
    _on_socket(lib.evutil_make_tcp_listen_socket_deferred, sock, function)


def closesocket(sock: int | _socket.socket) -> None:
    """Closes a descriptor, or a socket.socket, which is detached (evutil_closesocket). OSError if
    it is closed."""
    if isinstance(sock, _socket.socket):
        sock = sock.detach()
    elif not isinstance(sock, int):
        raise TypeError(f"sock must be an int or a socket, not {type(sock).__name__}")
    _on_socket(lib.evutil_closesocket, sock, "evutil_closesocket")


def socket_geterror(sock: FileDescriptor = -1) -> int:
    """The errno that the last call of C in this thread has left, whatever the socket
    (evutil_socket_geterror). What went wrong on a BufferEvent: see its `error`."""
    return int(lib.evutil_socket_geterror(fileno(sock)))


def socket_error_to_string(errnum: int) -> str:
    """The text of an errno (evutil_socket_error_to_string, which is strerror)."""
    return os.strerror(integer(errnum, "errnum"))


# ---- addresses ----


def _family(family: int) -> tuple[AddressFamily, int]:
    number = operator.index(family)
    for known, length in _PACKED.items():
        if number == known:
            return known, length
    raise ValueError(f"family must be AF_INET or AF_INET6, not {family!r}")


def inet_ntop(family: int, packed: Bytes) -> str:
    """The text of an address of 4 (AF_INET) or 16 (AF_INET6) bytes (evutil_inet_ntop)."""
    known, length = _family(family)
    source = data(packed)
    if len(source) != length:
        raise ValueError(f"an address of {known.name} has {length} bytes, not {len(source)}")
    return _ntop(known, source)


def _ntop(family: AddressFamily, source: Any) -> str:
    out = ffi.new("char[64]")
    if not lib.evutil_inet_ntop(family, source, out, 64):
        fail(SYS, "evutil_inet_ntop")
    return str(ffi.string(out), "ascii")


def inet_pton(family: int, text: str) -> bytes:
    """The bytes of an address in numbers (evutil_inet_pton). ValueError if it is none."""
    known, length = _family(family)
    out = ffi.new("char[16]")
    if lib.evutil_inet_pton(known, _c_string(text, "text"), out) != 1:
        raise ValueError(f"not an address of {known.name}: {text!r}")
    return bytes(_unpack(out, length))


# libevent itself overlooks what follows a port or a bracket, and takes 4294967376 for port 80.
_WITH_PORT = re.compile(rb"\[[^][]+](:[0-9]{1,5})?|[^][:]+(:[0-9]{1,5})?|[^][:]*:[^][]*:[^][]*")


def parse_sockaddr_port(text: str) -> tuple[AddressFamily, Address]:
    """Family and address, as the socket module has them, of `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`
    or `[::1]:80`; without a port it is 0 (evutil_parse_sockaddr_port). ValueError if it is none of
    these; no name is looked up."""
    out, length = ffi.new("struct sockaddr_storage *"), ffi.new("int *")
    length[0] = ffi.sizeof("struct sockaddr_storage")
    raw, address = _c_string(text, "text"), ffi.cast("struct sockaddr *", out)
    clean = len(raw) < 128 and _WITH_PORT.fullmatch(raw)
    if not clean or lib.evutil_parse_sockaddr_port(raw, address, length) < 0:
        raise ValueError(f"not an address in numbers, with or without a port: {text!r}")
    return _from_sockaddr(address)


def _from_sockaddr(address: Any) -> tuple[AddressFamily, Address]:
    if address.sa_family == AF_INET:
        four = ffi.cast("struct sockaddr_in *", address)
        host = _ntop(AF_INET, ffi.addressof(four, "sin_addr"))
        return AF_INET, (host, _socket.ntohs(four.sin_port))
    six = ffi.cast("struct sockaddr_in6 *", address)
    host = _ntop(AF_INET6, ffi.addressof(six, "sin6_addr"))
    port, flow = _socket.ntohs(six.sin6_port), _socket.ntohl(six.sin6_flowinfo)
    return AF_INET6, (host, port, flow, six.sin6_scope_id)


def _to_sockaddr(address: Address) -> Any:
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
        raise TypeError(f"address must be (host, port) and so on, not {address!r}")
    host, *numbers = address
    port, flow, scope = (*map(operator.index, numbers), 0, 0)[:3]
    if not (0 <= port <= _MAX_PORT and 0 <= flow <= 0xFFFFF and 0 <= scope <= 0xFFFFFFFF):
        raise ValueError(f"port, flow or scope out of range: {address!r}")
    text = _c_string(host, "host")
    out = ffi.new("struct sockaddr_storage *")
    family = AF_INET6 if b":" in text else AF_INET
    if not lib.pyle_sockaddr_inet(out, family, text, port, flow, scope):
        raise ValueError(f"not an address in numbers: {address!r}")
    return out


def sockaddr_cmp(a: Address, b: Address, include_port: bool = True) -> int:
    """0 if two addresses, as the socket module has them and in numbers, are the same, else below
    or above 0, in an order of libevent's own (evutil_sockaddr_cmp). It does not look at the scope.
    """
    one, two = _to_sockaddr(a), _to_sockaddr(b)  # what owns the memory
    first, second = (ffi.cast("struct sockaddr *", owner) for owner in (one, two))
    return int(lib.evutil_sockaddr_cmp(first, second, bool(include_port)))


def getaddrinfo(
    host: str | bytes | None,
    port: str | bytes | int | None,
    family: int = 0,
    type: int = 0,
    proto: int = 0,
    flags: int = 0,
) -> list[AddressInfo]:
    """As socket.getaddrinfo, results and errors alike, by libevent, and blocking
    (evutil_getaddrinfo). socket.gaierror if the look-up fails, ValueError for a port past 65535."""
    name = host.encode("idna") if isinstance(host, str) else host
    node = ffi.NULL if name is None else _c_string(name, "host")
    service = ffi.NULL if port is None else _service(port)
    hints = ffi.new("struct evutil_addrinfo *")
    hints.ai_family = integer(family, "family")
    hints.ai_socktype = integer(type, "type")
    hints.ai_protocol = integer(proto, "proto")
    hints.ai_flags = integer(flags)
    found = ffi.new("struct evutil_addrinfo **")
    try:
        code = lib.evutil_getaddrinfo(node, service, hints, found)
        if code == lib.EVUTIL_EAI_SYSTEM:
            fail(SYS, "evutil_getaddrinfo")
        if code:
            raise _socket.gaierror(code, gai_strerror(code))
        results = []
        one = found[0]
        while one:
            results.append(_result(one))
            one = one.ai_next
        return results
    finally:
        if found[0]:
            lib.evutil_freeaddrinfo(found[0])


def _service(port: str | bytes | int) -> bytes:
    raw = _c_string(port if isinstance(port, (str, bytes)) else str(operator.index(port)), "port")
    number = raw.strip()
    if number.lstrip(b"+-").isdigit() and not (len(number) < 10 and 0 <= int(number) <= _MAX_PORT):
        raise ValueError(f"port must be from 0 to {_MAX_PORT}, not {port!r}")
    return raw


def _result(one: Any) -> AddressInfo:
    name = str(ffi.string(one.ai_canonname), "utf-8", "replace") if one.ai_canonname else ""
    family, address = _from_sockaddr(one.ai_addr)
    return family, SocketKind(one.ai_socktype), one.ai_protocol, name, address


def gai_strerror(code: int) -> str:
    """The text of an error of getaddrinfo, EVUTIL_EAI_* or socket.EAI_* (evutil_gai_strerror)."""
    return str(ffi.string(lib.evutil_gai_strerror(integer(code, "code"))), "utf-8", "replace")


# ---- texts ----


def ascii_strcasecmp(a: str | bytes, b: str | bytes) -> int:
    """0 if two texts are the same but for the case of their ASCII letters, else below or above 0
    (evutil_ascii_strcasecmp). ValueError if there is a NUL in one."""
    return int(lib.evutil_ascii_strcasecmp(_c_string(a, "a"), _c_string(b, "b")))


def ascii_strncasecmp(a: str | bytes, b: str | bytes, n: int) -> int:
    """The same for the first n bytes (evutil_ascii_strncasecmp)."""
    return int(lib.evutil_ascii_strncasecmp(_c_string(a, "a"), _c_string(b, "b"), size(n)))


def strtoll(text: str | bytes, base: int = 10) -> tuple[int, int]:
    """The number that a text begins with, and how many characters that took, 0 if there is none
    (evutil_strtoll). base: 2 to 36, or 0 for C's prefixes. ValueError if 64 bits don't hold it."""
    base = integer(base, "base")
    if base != 0 and not 2 <= base <= 36:
        raise ValueError(f"base must be 0 or from 2 to 36, not {base!r}")
    source = ffi.from_buffer("char[]", _c_string(text, "text") + b"\0")
    end = ffi.new("char **")
    ffi.errno = 0
    number = int(lib.evutil_strtoll(source, end, base))
    if ffi.errno == errno.ERANGE:
        raise ValueError(f"out of range: {text!r}")
    return number, end[0] - source


# ---- time ----


def gettimeofday() -> float:
    """The time, in seconds since 1970 (evutil_gettimeofday)."""
    now = ffi.new("struct timeval *")
    if lib.evutil_gettimeofday(now, ffi.NULL) < 0:
        fail(SYS, "evutil_gettimeofday")
    return float(now.tv_sec + now.tv_usec / 1_000_000)


class MonotonicTimer:
    """A clock that never goes back (struct evutil_monotonic_timer). Any thread may read it."""

    __slots__ = ("_lock", "_timer")

    def __init__(self, flags: int = 0) -> None:
        """EV_MONOT_PRECISE for more exact and slower, EV_MONOT_FALLBACK to make it of the time of
        day (evutil_monotonic_timer_new, evutil_configure_monotonic_time)."""
        flags = only(_MONOTONIC_FLAGS, flags)
        timer = ffi.gc(lib.evutil_monotonic_timer_new(), lib.evutil_monotonic_timer_free)
        if not timer:
            raise MemoryError("evutil_monotonic_timer_new")
        if lib.evutil_configure_monotonic_time(timer, flags) < 0:
            fail(FAIL, "evutil_configure_monotonic_time")
        self._lock = threading.RLock()  # libevent has none for it
        self._timer = timer

    def gettime(self) -> float:
        """Seconds since a moment of its own (evutil_gettime_monotonic)."""
        now = ffi.new("struct timeval *")
        with self._lock:
            rc = lib.evutil_gettime_monotonic(self._timer, now)
        if rc < 0:
            fail(FAIL, "evutil_gettime_monotonic")
        return float(now.tv_sec + now.tv_usec / 1_000_000)


def gettime_monotonic() -> float:
    """The same of a timer that is there for all, made with EV_MONOT_PRECISE
    (evutil_gettime_monotonic)."""
    return _timer.gettime()


_timer = MonotonicTimer(MonotonicFlags.EV_MONOT_PRECISE)


def date_rfc1123(when: float | datetime | None = None) -> str:
    """A time as HTTP has it, `Fri, 31 Dec 1999 23:59:59 GMT`: seconds since 1970, a datetime, or
    None for now (evutil_date_rfc1123). ValueError outside of the years 1 to 9999."""
    tm: Any = ffi.NULL
    if when is not None:
        if not isinstance(when, datetime):
            if not isinstance(when, (int, float)):
                raise TypeError(f"when must be a number or a datetime, not {type(when).__name__}")
            seconds = real(when)
        elif when.utcoffset() is None:
            seconds = real(when.replace(microsecond=0).timestamp())
        else:  # a float has no room for the microseconds of distant years
            seconds = operator.index((when - _EPOCH) // timedelta(seconds=1))
        if not -62135596800 <= seconds < 253402300800:  # nor NaN
            raise ValueError(f"out of range: {when!r}")
        utc = time.gmtime(math.floor(seconds))
        tm = ffi.new("struct tm *")
        tm.tm_year, tm.tm_mon, tm.tm_mday = utc.tm_year - 1900, utc.tm_mon - 1, utc.tm_mday
        tm.tm_hour, tm.tm_min, tm.tm_sec = utc.tm_hour, utc.tm_min, utc.tm_sec
        tm.tm_wday = (utc.tm_wday + 1) % 7
    out = ffi.new("char[64]")
    lib.evutil_date_rfc1123(out, 64, tm)
    return str(ffi.string(out), "ascii")


# ---- random bytes ----


def secure_rng_get_bytes(n: int) -> bytes:
    """n random bytes (evutil_secure_rng_get_bytes). MemoryError if there is no room for them. For
    keys, Python's secrets module."""
    n = size(n)
    if n == 0:
        return b""
    try:
        block = _new_block("char[]", n)
    except OverflowError:
        raise MemoryError(f"evutil_secure_rng_get_bytes: {n} bytes") from None
    lib.evutil_secure_rng_get_bytes(block, n)
    return bytes(_unpack(block, n))


def secure_rng_init() -> None:
    """Seeds the generator now, not at its first use, for a program that is about to give up the
    right to read the device (evutil_secure_rng_init). LibeventError if it cannot be seeded."""
    if lib.evutil_secure_rng_init() < 0:
        fail(FAIL, "evutil_secure_rng_init")


def secure_rng_set_urandom_device_file(path: str | bytes | os.PathLike[str]) -> None:
    """Seeds from another device than /dev/urandom; of use before the first random byte
    (evutil_secure_rng_set_urandom_device_file). ValueError if it is no character device,
    LibeventError where libevent takes the system's arc4random, which needs no device."""
    raw = _c_string(os.fsencode(path), "path")
    if not stat.S_ISCHR(os.stat(raw).st_mode):
        raise ValueError(f"not a device: {path!r}")
    name = ffi.new("char[]", raw)
    _device_files.append(name)  # libevent keeps the pointer
    if lib.evutil_secure_rng_set_urandom_device_file(name) < 0:
        fail(FAIL, "evutil_secure_rng_set_urandom_device_file")


_device_files: list[Any] = []


def secure_rng_add_bytes(data_: Bytes) -> None:
    """Stirs random bytes of the caller's into the generator, up to 2**31 - 1
    (evutil_secure_rng_add_bytes). Where libevent takes the system's arc4random it does nothing."""
    source = data(data_)
    lib.evutil_secure_rng_add_bytes(source, len(source))
