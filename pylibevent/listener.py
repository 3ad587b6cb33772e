"""event2/listener.h: Listener, which accepts connections."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _callbacks as cb
from ._args import Address, FileDescriptor, fileno, function, integer, only, pointer, sockaddr
from ._handle import Handle
from ._libevent import lib
from .constants import LEV_OPT_CLOSE_ON_FREE, LEV_OPT_REUSEABLE, ListenerOptions
from .errors import CLOSED, fail
from .event import EventBase

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._args import Args, Variadic
    from ._libevent import CData

ErrorCallback = Callable[["Listener", OSError], object]

_ALL_OPTIONS = sum(ListenerOptions)


class Listener(Handle):
    """Accepts connections (struct evconnlistener).

    callback(listener, fd, address, *args) is called for each: fd is a non-blocking descriptor
    that the callback owns, as a rule by `BufferEvent.socket(base, fd)`; address is as the socket
    module has it. If the callback raises before a bufferevent has taken fd, fd is closed; so one
    that makes something else of fd has to keep or close it itself. While it is open its base
    keeps the listener alive. Its methods belong to the loop's thread.
    """

    __slots__ = ("_args", "_base", "_callback", "_error_callback", "_token")

    def __init__(
        self,
        base: EventBase,
        callback: Callable[[Self, int, Address, Unpack[Args]], object] | Variadic,
        fd: FileDescriptor,
        *args: Unpack[Args],
        flags: int = LEV_OPT_CLOSE_ON_FREE,
        backlog: int = 0,
    ) -> None:
        """Listens on a bound socket (evconnlistener_new). backlog 0: it listens already.

        A socket.socket is taken over: detached, and closed with the listener.
        """
        flags = self._start(base, callback, args, flags)
        taken = isinstance(fd, socket.socket)
        if taken:
            flags |= LEV_OPT_CLOSE_ON_FREE
        number = fileno(fd)
        try:
            rc = lib.pyle_listener_open(self._ptr, number, flags, _backlog(backlog))
            self._check(rc, "evconnlistener_new")
            if isinstance(fd, socket.socket):
                fd.detach()
        except BaseException:
            if isinstance(fd, socket.socket) and lib.pyle_listener_ptr(self._ptr):
                fd.detach()  # interrupted: it goes with the listener, which has it
            self._abandon()
            raise

    @classmethod
    def bind(
        cls,
        base: EventBase,
        callback: Callable[[Self, int, Address, Unpack[Args]], object] | Variadic,
        address: Address,
        *args: Unpack[Args],
        flags: int = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE,
        backlog: int = -1,
    ) -> Self:
        """Listens on a new socket (evconnlistener_new_bind): (host, port), port 0 for a free one,
        or the path of a unix socket. backlog -1: as many as the system allows. OSError if the
        address is in use."""
        where, length = sockaddr(address, passive=True)
        self = cls.__new__(cls)
        flags = self._start(base, callback, args, flags)
        try:
            rc = lib.pyle_listener_bind(self._ptr, where, length, flags, _backlog(backlog))
            self._check(rc, "evconnlistener_new_bind")
        except BaseException:
            self._abandon()
            raise
        return self

    @classmethod
    def from_ptr(cls, ptr: CData | int) -> Listener:
        """The Listener of a struct evconnlistener *: the one that it belongs to, or a new one
        that borrows it from a C library.

        A borrowed one is never freed: `close()` only takes callbacks that were set here away, and
        has to come before C frees it. Until then the base keeps this object.
        """
        found = pointer(ptr, "evconnlistener")
        base = EventBase.from_ptr(lib.evconnlistener_get_base(found))
        for one in list(base._table.values()):
            if isinstance(one, Listener) and lib.pyle_listener_ptr(one._ptr) == found:
                return one
        self = cls.__new__(cls)
        self._start(base, _nothing, (), 0)
        try:
            self._check(lib.pyle_listener_borrow(self._ptr, found), "evconnlistener")
        except BaseException:
            self._abandon()
            raise
        return self

    def _start(
        self,
        base: EventBase,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        flags: int,
    ) -> int:
        self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        flags = only(_ALL_OPTIONS, flags)
        self._base = base
        self._callback: Callable[..., object] = function(callback)
        self._error_callback: ErrorCallback | None = None
        self._args = args
        self._token = cb.next_token()
        self._make("evconnlistener_new", lib.pyle_listener_new, base._ptr, self._token)
        base._table[self._token] = self
        return flags

    def _abandon(self) -> None:
        """What made it has failed, or was interrupted: the caller will not know it."""
        lib.pyle_listener_close(self._ptr)
        self._base._table.pop(self._token, None)

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct evconnlistener *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_listener_ptr(self._ptr) or fail(CLOSED, "evconnlistener")

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_listener_ptr(self._ptr)

    @property
    def base(self) -> EventBase:
        """The base it belongs to (evconnlistener_get_base)."""
        return self._base

    def close(self) -> None:
        """Stops and frees it, and closes the socket if LEV_OPT_CLOSE_ON_FREE is set
        (evconnlistener_free). May be called twice, and in its own callback."""
        self._check(lib.pyle_listener_close(self._ptr), "evconnlistener_free")
        self._base._table.pop(self._token, None)
        self._forget()

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_listener_close(self._ptr)
        self._forget()

    def _forget(self) -> None:
        self._callback = _nothing
        self._error_callback = None
        self._args = ()

    def _describe(self) -> str:
        return repr(self.address)

    # ---- the rest ----

    def enable(self) -> None:
        """Accepts connections, as it does from the start unless LEV_OPT_DISABLED was given
        (evconnlistener_enable)."""
        self._check(lib.pyle_listener_enable(self._ptr, 1), "evconnlistener_enable")

    def disable(self) -> None:
        """Lets them wait in the system's queue (evconnlistener_disable)."""
        self._check(lib.pyle_listener_enable(self._ptr, 0), "evconnlistener_disable")

    @property
    def enabled(self) -> bool:
        """Whether it accepts connections."""
        rc = lib.pyle_listener_enabled(self._ptr)
        return bool(self._check(rc, "evconnlistener_enable"))

    def set_cb(
        self,
        callback: Callable[[Self, int, Address, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> None:
        """Sets another callback (evconnlistener_set_cb)."""
        function(callback)
        self._check(lib.pyle_listener_setcb(self._ptr, 0), "evconnlistener_set_cb")
        self._callback, self._args = callback, args

    def set_error_cb(self, callback: ErrorCallback | None) -> None:
        """Has callback(listener, error) called with the OSError when accept fails, for want of
        descriptors as a rule; without one it is logged (evconnlistener_set_error_cb). In either
        case the listener tries again after 0.1 seconds, unless the callback disables it."""
        if callback is not None:
            function(callback)
        self._check(lib.pyle_listener_setcb(self._ptr, 1), "evconnlistener_set_error_cb")
        self._error_callback = callback

    @property
    def fd(self) -> int:
        """The listening socket's descriptor (evconnlistener_get_fd)."""
        return self._check(lib.pyle_listener_fd(self._ptr), "evconnlistener_get_fd")

    @property
    def address(self) -> Address:
        """Where it listens, as the socket module has it."""
        found: list[Any] = []
        try:  # in one step of Python's: a descriptor that nobody has yet would stay open
            found.extend(map(_socket_of, map(os.dup, (self.fd,))))
            return found[0].getsockname()
        finally:
            for one in found:
                one.close()


_socket_of = functools.partial(socket.SocketType, -1, -1, -1)


def _backlog(backlog: int) -> int:
    number = integer(backlog, "backlog")
    return socket.SOMAXCONN if number < 0 else number


def _nothing(*_args: Any) -> None:
    """The callback of a closed listener."""
