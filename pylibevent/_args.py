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


# What is checked is what C gets: a plain int or float. A subclass may compare as it likes, cffi
# asks __int__ where the check asked __index__; operator.index() makes a plain int of a subclass's.


def real(value: int | float, name: str = "seconds") -> int | float:
    """A plain int or float."""
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, int):
        return operator.index(value)
    raise TypeError(f"{name} must be int, float or timedelta, not {type(value).__name__}")


def seconds(value: Seconds | None) -> float:
    """Seconds as a float for C; -1 for None."""
    if value is None:
        return NEVER
    number = timedelta.total_seconds(value) if isinstance(value, timedelta) else real(value)
    if not 0 <= number <= MAX_SECONDS:
        raise ValueError(f"seconds must be from 0 to {MAX_SECONDS:g}, not {value!r}")
    return float(number)


def integer(value: int, name: str = "flags") -> int:
    """An int for C: TypeError if it is none, ValueError if C's int does not hold it."""
    number = operator.index(value)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise ValueError(f"{name} out of range: {value!r}")
    return number


def size(n: int, least: int = 0) -> int:
    """A number of bytes for C; with -1 for the least one, that too."""
    number = operator.index(n)
    if not least <= number <= MAX_SIZE:
        raise ValueError(f"not a number of bytes: {n!r}")
    return number


def only(allowed: int, value: int, name: str = "flags") -> int:
    """Flags for C: ValueError unless all of them are in `allowed`."""
    number = integer(value, name)
    if number & ~int(allowed):
        raise ValueError(f"unknown {name}, or not allowed here: {value!r}")
    return number


def fileno(file: FileDescriptor) -> int:
    """The descriptor of an int or of anything with fileno()."""
    if isinstance(file, int):
        fd = operator.index(file)
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
        path = data(os.fsencode(address))
        length = lib.pyle_sockaddr_unix(out, path, len(path))
        if not length:
            raise ValueError(f"not an AF_UNIX path, or too long: {address!r}")
        return out, length
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
        raise TypeError(f"address must be (host, port) or a path, not {address!r}")
    host, port, *more = address
    limits = ("port", 0xFFFF), ("flowinfo", 0xFFFFF), ("scope", 0xFFFFFFFF)
    port, *more = (
        _number(value, *limit) for value, limit in zip((port, *more), limits, strict=False)
    )
    wanted = 0 if family is None else integer(family, "family")
    if host is None:
        host = ""
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    how = socket.AI_PASSIVE if passive else 0
    found = socket.getaddrinfo(host or None, port, wanted, socket.SOCK_STREAM, 0, how)
    found_family, _, _, _, where = found[0]
    flowinfo, scope = (*more, *where[2 + len(more) :], 0, 0)[:2]
    text = str(where[0]).partition("%")[0].encode()
    length = lib.pyle_sockaddr_inet(out, int(found_family), text, port, flowinfo, scope)
    if not length:
        raise ValueError(f"not an address: {address!r}")
    return out, length


def _number(value: int, name: str, most: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = operator.index(value)
    if not 0 <= number <= most:
        raise ValueError(f"{name} must be from 0 to {most}, not {value!r}")
    return number


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
