"""How arguments of several kinds become what C takes."""

from __future__ import annotations

import operator
import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from ._libevent import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple

    Args = TypeVarTuple("Args")  # what a callback gets behind its own arguments: C's void *arg


class Variadic(Protocol):
    """A callback that takes whatever comes; pyright cannot match it with Args."""

    def __call__(self, *args: object) -> object: ...


class HasFileno(Protocol):
    def fileno(self) -> int: ...


FileDescriptor = int | HasFileno
Seconds = int | float | timedelta
Address = (
    Any  # as the socket module has them: tuples for AF_INET and AF_INET6, str or bytes for AF_UNIX
)

MAX_SECONDS = 1e12
MAX_SIZE = (1 << 63) - 1
NEVER = -1.0


def seconds(value: Seconds | None) -> float:
    """Seconds as a float for C; -1 for None."""
    if value is None:
        return NEVER
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif not isinstance(value, (int, float)):
        raise TypeError(f"seconds must be int, float or timedelta, not {type(value).__name__}")
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"seconds must be from 0 to {MAX_SECONDS:g}, not {value!r}")
    return float(value)


def integer(value: int, name: str = "flags") -> int:
    """An int for C: TypeError if it is none, ValueError if C's int does not hold it."""
    number = operator.index(value)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise ValueError(f"{name} out of range: {value!r}")
    return number


def size(n: int) -> int:
    """A number of bytes for C."""
    if not 0 <= operator.index(n) <= MAX_SIZE:
        raise ValueError(f"not a number of bytes: {n!r}")
    return n


def fileno(file: FileDescriptor) -> int:
    """The descriptor of an int or of anything with fileno()."""
    if isinstance(file, int):
        fd = int(file)
    else:
        try:
            method = file.fileno
        except AttributeError:
            raise TypeError(
                f"expected an int or an object with fileno(), not {type(file).__name__}"
            ) from None
        fd = operator.index(method())
        if fd < 0:
            raise ValueError(f"{file!r} is closed: it has no descriptor")
    if not -1 <= fd <= 0x7FFFFFFF:
        raise ValueError(f"not a file descriptor: {fd}")
    return fd


def data(value: Any) -> Any:
    """What C reads the bytes of a bytes-like object from; len() of it is their number."""
    return value if type(value) is bytes else ffi.from_buffer("char[]", value)


def function(value: Any, name: str = "callback") -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    return value


def sockaddr(address: Address, family: int | None = None, passive: bool = False) -> tuple[Any, int]:
    """A struct sockaddr and its length, of an address as the socket module has them.

    A host that is a name is looked up, which may take its time; `socket.gaierror` if it fails.
    """
    out = ffi.new("char[128]")
    if isinstance(address, (str, bytes)) or hasattr(address, "__fspath__"):
        path = os.fsencode(address)
        length = lib.pyle_sockaddr_unix(out, path, len(path))
        if not length:
            raise ValueError(f"not an AF_UNIX path, or too long: {address!r}")
        return out, length
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
        raise TypeError(f"address must be (host, port) or a path, not {address!r}")
    host, port, *more = address
    if not isinstance(port, int):
        raise TypeError(f"port must be an int, not {type(port).__name__}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port must be from 0 to 65535, not {port}")
    if host is None:
        host = ""
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    flags = socket.AI_PASSIVE if passive else 0
    found = socket.getaddrinfo(host or None, port, family or 0, socket.SOCK_STREAM, 0, flags)
    found_family, _, _, _, where = found[0]
    flowinfo, scope = (*more, *where[2 + len(more) :], 0, 0)[:2]
    text = str(where[0]).partition("%")[0].encode()
    length = lib.pyle_sockaddr_inet(out, int(found_family), text, port, flowinfo, scope)
    if not length:
        raise ValueError(f"not an address: {address!r}")
    return out, length


def pointer(ptr: Any, struct: str) -> Any:
    """A `struct *` for from_ptr, of a pointer from this ffi or another one, or of an address."""
    if isinstance(ptr, ffi.CData):
        if ffi.typeof(ptr).cname not in (f"struct {struct} *", "void *"):
            raise TypeError(f"expected a struct {struct} *, not {ptr!r}")
    elif not isinstance(ptr, int):
        raise TypeError(f"expected a struct {struct} *, not {type(ptr).__name__}")
    found = ffi.cast(f"struct {struct} *", ptr)
    if not found:
        raise ValueError(f"NULL is no struct {struct} *")
    return found
