"""event2/bufferevent.h: BufferEvent, a socket or a pair with buffers and callbacks."""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_INET, AF_INET6, AF_UNSPEC, SOCK_STREAM, gaierror
from socket import socket as Socket
from typing import TYPE_CHECKING, Any

from . import _callbacks as cb
from ._args import (
    Address,
    FileDescriptor,
    Seconds,
    data,
    fileno,
    function,
    integer,
    only,
    pointer,
    seconds,
    size,
    sockaddr,
)
from ._handle import Handle, Lock, behind, expose
from ._libevent import ffi, lib
from .buffer import Bytes, EvBuffer, _ptr
from .constants import (
    BEV_NORMAL,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_UNLOCK_CALLBACKS,
    EV_READ,
    EV_WRITE,
    BufferEventFlags,
    BufferEventOptions,
    EventFlags,
    FlushMode,
    TriggerOptions,
)
from .errors import CLOSED, INUSE, RANGE, fail, os_error
from .event import EventBase
from .ratelimit import RateLimitGroup, TokenBucketConfig, _amount, _set_or_fail

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Self, Unpack

    from ._args import Args, Variadic
    from ._libevent import CData
    from .bufferevent_ssl import TLSConnection, TLSContext, TLSSession
    from .dns import AddrInfoResult, DnsBase, DnsRequest

Callback = Callable[..., object]
Filter = Callable[[EvBuffer, EvBuffer, int, FlushMode], int]

_ALL_OPTIONS = sum(BufferEventOptions)
_TRIGGER_OPTIONS = sum(TriggerOptions)
_write = lib.pyle_bev_write


class BufferEvent(Handle):
    """A connection with an input and an output buffer (struct bufferevent).

    Made by `socket` or `pair`. libevent reads into the input and calls the read callback, and
    writes what is in the output. While it is open its base keeps it alive. Its methods belong to
    the loop's thread (RuntimeError from another one while the loop runs), unless it was made with
    BEV_OPT_THREADSAFE.
    """

    __slots__ = (
        "_args",
        "_base",
        "_cfg",
        "_error",
        "_event",
        "_input",
        "_joined",
        "_lookup",
        "_output",
        "_read",
        "_tls",
        "_token",
        "_write",
    )

    _args: tuple[Any, ...]
    _base: EventBase
    _cfg: TokenBucketConfig | None
    _error: int
    _event: Callback | None
    _input: EvBuffer | None
    _joined: BufferEvent | _Filtering | None
    _lookup: DnsRequest | gaierror | None  # for connect_hostname: under way, or failed
    _output: EvBuffer | None
    _read: Callback | None
    _tls: TLSConnection | None
    _token: int
    _write: Callback | None

    def __init__(self) -> None:
        raise TypeError(
            "use BufferEvent.socket(...), BufferEvent.pair(...) or BufferEvent.filter(...)"
        )

    @classmethod
    def _new(cls, base: EventBase) -> Self:
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self = cls.__new__(cls)
        self._token = cb.next_token()
        self._base = base
        self._args = ()
        self._read = self._write = self._event = None
        self._input = self._output = self._joined = None
        self._cfg = self._tls = None
        self._error = 0
        self._lookup = None
        self._make("bufferevent_socket_new", lib.pyle_bev_new, base._ptr, self._token)
        return self

    @classmethod
    def socket(
        cls,
        base: EventBase,
        fd: FileDescriptor | None = None,
        options: int = BEV_OPT_CLOSE_ON_FREE,
        nodelay: bool = True,
    ) -> Self:
        """Wraps a stream socket (bufferevent_socket_new), or none yet: see `connect`.

        fd is made non-blocking. A socket.socket is taken over: it is detached and, whatever the
        options, closed with the bufferevent; a plain number is closed if BEV_OPT_CLOSE_ON_FREE is
        set. TCP sockets get TCP_NODELAY; nodelay=False leaves them as C does.
        """
        options = _options(options)
        self = cls._new(base)
        self._open(lib.pyle_bev_socket, fd, options, nodelay, "bufferevent_socket_new")
        return self

    def _open(
        self,
        how: Callable[..., int],
        fd: FileDescriptor | None,
        options: int,
        nodelay: bool,
        function: str,
        *args: CData,
    ) -> None:
        """how(ptr, *args, fd, options, nodelay) makes it one on a socket."""
        if isinstance(fd, Socket):
            options |= BEV_OPT_CLOSE_ON_FREE
        number = -1 if fd is None else fileno(fd)
        self._base._table[self._token] = self
        try:
            self._check(how(self._ptr, *args, number, options, bool(nodelay)), function)
            if isinstance(fd, Socket):
                fd.detach()
        except BaseException:
            if not isinstance(fd, Socket) or fd.fileno() >= 0:
                lib.pyle_bev_unopen(self._ptr)
            self._abandon()
            raise

    @classmethod
    def openssl_socket(
        cls,
        base: EventBase,
        fd: FileDescriptor | None,
        context: TLSContext,
        *,
        server_side: bool | None = None,
        server_hostname: str | None = None,
        session: TLSSession | None = None,
        options: int = BEV_OPT_CLOSE_ON_FREE,
        nodelay: bool = True,
    ) -> Self:
        """TLS on a stream socket, or on one that `connect` makes (bufferevent_openssl_socket_new).

        The handshake starts by itself, once the socket is connected. At its end the event callback
        is called with BEV_EVENT_CONNECTED, and `tls` has what was agreed on; or with
        BEV_EVENT_ERROR, and `tls_error` says why. What is written before goes out after it.
        `set_timeouts(read=...)` limits the handshake too: BEV_EVENT_TIMEOUT.

        A client names the host (or address) that it wants as `server_hostname`, and may go on with
        an earlier `session`. server_side is what the context is for. fd and nodelay are as for
        `socket`; fd cannot be set later. OpenSSL takes records as a whole: watermarks, rate limits
        and `max_single_read` may be exceeded by two of them (16 KiB each).
        """
        from .bufferevent_ssl import connection

        options = _options(options)
        self = cls._new(base)
        tls = connection(base._ptr, self._token, context, server_side, server_hostname, session)
        self._tls = tls
        function = "bufferevent_openssl_socket_new"
        self._open(lib.pyle_bev_tls_socket, fd, options, nodelay, function, tls._ptr)
        return self

    def _abandon(self) -> None:
        """What made it has failed, or was interrupted: the caller will not know it."""
        lib.pyle_bev_close(self._ptr, 0)
        self._base._table.pop(self._token, None)
        self._joined = None

    @classmethod
    def pair(cls, base: EventBase, options: int = 0) -> tuple[Self, Self]:
        """Two that are joined: what is written to one is read from the other
        (bufferevent_pair_new). Their callbacks are always deferred."""
        options = _options(options)
        first, second = cls._new(base), cls._new(base)
        first._joined, second._joined = second, first
        base._table[first._token] = first
        base._table[second._token] = second
        try:
            rc = lib.pyle_bev_pair(first._ptr, second._ptr, options)
            first._check(rc, "bufferevent_pair_new")
        except BaseException:
            first._abandon()
            second._abandon()
            raise
        return first, second

    @classmethod
    def filter(
        cls,
        underlying: BufferEvent,
        input_filter: Filter | None = None,
        output_filter: Filter | None = None,
        options: int = 0,
    ) -> Self:
        """One on top of another, whose bytes pass through functions (bufferevent_filter_new).

        filter(src, dst, limit, mode) moves bytes from EvBuffer src to dst, at most `limit` of
        them or -1: any number; mode is BEV_NORMAL, or what `flush` was called with. It returns
        BEV_OK if it did something, BEV_NEED_MORE if it can do nothing yet, or BEV_ERROR. None
        passes everything on as it is. input_filter moves from the input of `underlying` to ours,
        output_filter from our output to its.

        What a filter raises goes the way of every exception; that, and BEV_ERROR, makes the event
        callback be called with BEV_EVENT_ERROR and BEV_EVENT_READING or BEV_EVENT_WRITING.

        What `underlying` tells its event callback comes to ours, BEV_EVENT_EOF not before input
        that our high watermark or a memoryview holds back. Its callbacks are the filter's until
        that is closed (RuntimeError from `setcb`). BEV_OPT_CLOSE_ON_FREE closes it along with the
        filter. Callbacks are always deferred. BEV_OPT_THREADSAFE is a ValueError: libevent's
        filters deadlock with it.
        """
        options = _options(options)
        if not isinstance(underlying, BufferEvent):
            raise TypeError(f"underlying must be a BufferEvent, not {type(underlying).__name__}")
        self = cls._new(underlying._base)
        self._joined = _Filtering(underlying, input_filter, output_filter, options)
        what = 0
        if input_filter is not None and function(input_filter, "input_filter"):
            what |= EV_READ
        if output_filter is not None and function(output_filter, "output_filter"):
            what |= EV_WRITE
        self._base._table[self._token] = self
        try:
            rc = lib.pyle_bev_filter(self._ptr, underlying._ptr, what, options)
            if rc == RANGE:
                raise ValueError("neither a filter nor what it is on can be BEV_OPT_THREADSAFE")
            self._check(rc, "bufferevent_filter_new")
        except BaseException:
            self._abandon()
            raise
        underlying._read = underlying._write = underlying._event = None
        underlying._args = ()
        return self

    @classmethod
    def openssl_filter(
        cls,
        underlying: BufferEvent,
        context: TLSContext,
        *,
        server_side: bool | None = None,
        server_hostname: str | None = None,
        session: TLSSession | None = None,
        options: int = 0,
    ) -> Self:
        """TLS on top of another one, from now on: STARTTLS (bufferevent_openssl_filter_new).

        All is as for `openssl_socket` and, what becomes of `underlying`, as for `filter`. What it
        still has to write goes out first, in clear. Input of its that nobody has read raises
        ssl.SSLError: it came in clear, perhaps from somebody else. Timeouts count once EV_READ is
        enabled.
        """
        from .bufferevent_ssl import before_the_handshake, connection

        options = _options(options)
        if not isinstance(underlying, BufferEvent):
            raise TypeError(f"underlying must be a BufferEvent, not {type(underlying).__name__}")
        self = cls._new(underlying._base)
        self._tls = connection(
            self._base._ptr, self._token, context, server_side, server_hostname, session
        )
        self._joined = _Filtering(underlying, None, None, options)
        self._base._table[self._token] = self
        try:
            ptr, under = self._tls._ptr, underlying._ptr
            rc = lib.pyle_bev_tls_filter(self._ptr, ptr, under, options)
            if rc == INUSE:
                raise before_the_handshake()
            if rc == RANGE:
                raise ValueError("neither a filter nor what it is on can be BEV_OPT_THREADSAFE")
            self._check(rc, "bufferevent_openssl_filter_new")
        except BaseException:
            self._abandon()
            raise
        underlying._read = underlying._write = underlying._event = None
        underlying._args = ()
        return self

    @classmethod
    def from_ptr(cls, ptr: CData | int) -> BufferEvent:
        """The BufferEvent of a struct bufferevent *: the one that it belongs to, or a new one that
        borrows it from a C library.

        A borrowed one has a reference on it (bufferevent_incref) until `close()`, which never
        frees it: it gives the reference back and takes callbacks that were set here away. Call
        it; until then the base keeps this object.
        """
        found = pointer(ptr, "bufferevent")
        base = EventBase.from_ptr(lib.bufferevent_get_base(found))
        for one in list(base._table.values()):
            if isinstance(one, BufferEvent) and lib.pyle_bev_ptr(one._ptr) == found:
                return one
        self = cls._new(base)
        base._table[self._token] = self
        rc = lib.pyle_bev_borrow(self._ptr, found)
        if rc < 0:
            base._table.pop(self._token, None)
            self._check(rc, "bufferevent_incref")
        self._expose(found)
        return self

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct bufferevent *, for ffi/lib and other C code; it stays ours to free."""
        ptr: CData = lib.pyle_bev_expose(self._ptr) or fail(CLOSED, "bufferevent")
        self._expose(ptr)
        return ptr

    def _expose(self, ptr: CData) -> None:
        """From one of them C code gets at others, and at the buffers of each."""
        if behind(ptr) is self:
            return
        expose(ptr, self)
        expose(lib.bufferevent_get_input(ptr), self)
        expose(lib.bufferevent_get_output(ptr), self)
        for other in (self.partner, self.underlying):
            if other is not None and (found := lib.pyle_bev_ptr(other._ptr)):
                other._expose(found)

    def _buffers(self) -> tuple[EvBuffer, ...]:
        return () if self.closed else (self.input, self.output)

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_bev_ptr(self._ptr)

    @property
    def base(self) -> EventBase:
        """The base it belongs to (bufferevent_get_base)."""
        return self._base

    def close(self) -> None:
        """Frees it, and closes the socket, now (bufferevent_free). Output not yet written is
        dropped: see `close_after_write`. May be called twice, and in its own callbacks."""
        below = self._owned()
        self._close()
        if below is not None:
            below.close()

    def _close(self) -> None:
        self._check(lib.pyle_bev_close(self._ptr, 0), "bufferevent_free")
        self._base._table.pop(self._token, None)
        self._forget()

    def close_after_write(self, timeout: Seconds | None = None) -> None:
        """Closes it once all output is written, or cannot be. Its callbacks are not called again,
        and no method but `close` may be used from now on.

        A peer that does not read keeps it open: `timeout` says after how many seconds in which
        nothing could be written it is closed all the same; None: what `set_timeouts(write=...)`
        has set, if anything.

        What the peer has sent and nobody has read is dropped, for up to 2 seconds, so that the
        peer gets all of the output and not a reset.

        A filter hands on what it can, and is closed now; if it was made with
        BEV_OPT_CLOSE_ON_FREE, what it is on is closed after its write.
        """
        below = self._owned()
        self._end_lookup()
        rc = lib.pyle_bev_finish(self._ptr, seconds(timeout))
        if self._check(rc, "bufferevent_enable"):
            if below is None:
                self.close()
            else:
                self._close()
                if not below.closed:
                    below.close_after_write(timeout)
        else:
            self._read = self._write = self._event = None
            self._args = ()
            if isinstance(self._joined, _Filtering):
                self._joined.timeout = timeout

    def _finished(self) -> None:
        """close_after_write() has nothing to wait for any more."""
        below, joined = self._owned(), self._joined
        self._close()
        if below is not None and not below.closed and isinstance(joined, _Filtering):
            below.close_after_write(joined.timeout)

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_bev_close(self._ptr, 1)
        self._forget()

    def _forget(self) -> None:
        self._end_lookup()
        self._read = self._write = self._event = None
        self._args = ()
        self._cfg = None
        joined, self._joined = self._joined, None
        if isinstance(joined, BufferEvent):
            joined._joined = None
        for buffer in (self._input, self._output):
            if buffer is not None:
                buffer._forget()
        self._input = self._output = None

    def _describe(self) -> str:
        return f"fd={self.fd}"

    # ---- callbacks ----

    def setcb(
        self,
        read: Callable[[Self, Unpack[Args]], object] | Variadic | None = None,
        write: Callable[[Self, Unpack[Args]], object] | Variadic | None = None,
        event: Callable[[Self, BufferEventFlags, Unpack[Args]], object] | Variadic | None = None,
        *args: Unpack[Args],
    ) -> None:
        """Sets the callbacks, None for none: read(bev, *args) when there is input,
        write(bev, *args) when the output is down to its low watermark, event(bev, what, *args)
        with the BEV_EVENT_* of what else happened (bufferevent_setcb)."""
        for name, value in (("read", read), ("write", write), ("event", event)):
            if value is not None:
                function(value, name)
        rc = lib.pyle_bev_setcb(self._ptr, read is not None, write is not None, event is not None)
        self._check(rc, "bufferevent_setcb")
        self._read, self._write, self._event, self._args = read, write, event, args

    def getcb(
        self,
    ) -> tuple[Callback | None, Callback | None, Callback | None, tuple[Any, ...]]:
        """The callbacks that are set, and their arguments (bufferevent_getcb)."""
        return self._read, self._write, self._event, self._args

    def trigger(self, what: int, options: int = 0) -> None:
        """Has the read or write callback called, EV_READ, EV_WRITE or both, if the watermarks
        allow or BEV_TRIG_IGNORE_WATERMARKS is given (bufferevent_trigger)."""
        how = only(_TRIGGER_OPTIONS, options, "options")
        rc = lib.pyle_bev_trigger(self._ptr, integer(what, "what"), how)
        self._check(rc, "bufferevent_trigger")

    def trigger_event(self, what: int, options: int = 0) -> None:
        """Has the event callback called with these BEV_EVENT_* (bufferevent_trigger_event)."""
        how = only(_TRIGGER_OPTIONS, options, "options")
        what = integer(what, "what")
        if not 0 < what <= 0xFF:
            raise ValueError(f"unknown events: {what!r}")
        rc = lib.pyle_bev_trigger_event(self._ptr, what, how)
        self._check(rc, "bufferevent_trigger_event")

    @property
    def error(self) -> OSError | MemoryError | None:
        """What the last BEV_EVENT_ERROR was about; None if it told no errno
        (EVUTIL_SOCKET_ERROR)."""
        return os_error(self._error, "bufferevent") if self._error else None

    # ---- switching on and off ----

    def enable(self, what: int) -> None:
        """Starts reading (EV_READ) or writing (EV_WRITE) (bufferevent_enable). A new one
        writes and does not read."""
        self._check(lib.pyle_bev_enable(self._ptr, integer(what, "what")), "bufferevent_enable")

    def disable(self, what: int) -> None:
        """Stops it (bufferevent_disable). A deferred callback for it waits for `enable`."""
        self._check(lib.pyle_bev_disable(self._ptr, integer(what, "what")), "bufferevent_disable")

    @property
    def enabled(self) -> EventFlags:
        """What is switched on (bufferevent_get_enabled)."""
        rc = lib.pyle_bev_enabled(self._ptr)
        return EventFlags(self._check(rc, "bufferevent_get_enabled"))

    def set_timeouts(self, read: Seconds | None = None, write: Seconds | None = None) -> None:
        """Seconds without input, or without progress in writing, after which the event callback
        is called with BEV_EVENT_TIMEOUT and that direction is disabled; None or 0: no limit
        (bufferevent_set_timeouts)."""
        rc = lib.pyle_bev_set_timeouts(self._ptr, seconds(read), seconds(write))
        self._check(rc, "bufferevent_set_timeouts")

    def setwatermark(self, what: int, low: int = 0, high: int = 0) -> None:
        """Sets watermarks in bytes, for EV_READ, EV_WRITE or both (bufferevent_setwatermark).

        Reading: the callback is called from `low` on, and no more is read at `high` (0: no
        limit). At `high`, if the callback takes nothing, it is called again once something was
        taken and more has come. Writing: the callback is called at `low` or less.
        """
        what = integer(what, "what")
        rc = lib.pyle_bev_setwatermark(self._ptr, what, size(low), size(high))
        self._check(rc, "bufferevent_setwatermark")

    def getwatermark(self, what: int) -> tuple[int, int]:
        """The (low, high) watermarks of EV_READ or EV_WRITE (bufferevent_getwatermark)."""
        low, high = ffi.new("size_t *"), ffi.new("size_t *")
        rc = lib.pyle_bev_getwatermark(self._ptr, integer(what, "what"), low, high)
        self._check(rc, "bufferevent_getwatermark")
        return low[0], high[0]

    @property
    def priority(self) -> int:
        """The priority of its events (bufferevent_get_priority, bufferevent_priority_set);
        settable for sockets."""
        return self._check(lib.pyle_bev_get_priority(self._ptr), "bufferevent_get_priority")

    @priority.setter
    def priority(self, priority: int) -> None:
        rc = lib.pyle_bev_set_priority(self._ptr, integer(priority, "priority"))
        self._check(rc, "bufferevent_priority_set")

    # ---- data ----

    @property
    def input(self) -> EvBuffer:
        """What was read and not yet taken (bufferevent_get_input); ends with the bufferevent."""
        buffer = self._input
        if buffer is None:
            buffer = self._input = self._buffer(1)
        return buffer

    @property
    def output(self) -> EvBuffer:
        """What is to be written (bufferevent_get_output); ends with the bufferevent."""
        buffer = self._output
        if buffer is None:
            buffer = self._output = self._buffer(0)
        return buffer

    def _buffer(self, is_input: int) -> EvBuffer:
        ptr = lib.pyle_bev_buffer(self._ptr, is_input)
        if not ptr:
            if self.closed:
                fail(CLOSED, "bufferevent_get_input" if is_input else "bufferevent_get_output")
            raise MemoryError("bufferevent_get_input")
        return EvBuffer._of(ptr, self._anchor)

    def write(self, data_: Bytes) -> None:
        """Adds bytes to the output (bufferevent_write)."""
        source = data_ if type(data_) is bytes else data(data_)
        rc = _write(self._ptr, source, len(source))
        if rc < 0:
            fail(rc, "bufferevent_write")

    def write_buffer(self, buffer: EvBuffer) -> None:
        """Moves all of a buffer to the output, without copying (bufferevent_write_buffer)."""
        rc = lib.pyle_bev_write_buffer(self._ptr, _ptr(buffer))
        self._check(rc, "bufferevent_write_buffer")

    def read(self, n: int = -1) -> bytes:
        """Takes up to n bytes of the input, -1: all (bufferevent_read)."""
        return self.input.remove(n)

    def read_buffer(self, buffer: EvBuffer) -> None:
        """Moves all of the input to the end of a buffer, without copying
        (bufferevent_read_buffer)."""
        rc = lib.pyle_bev_read_buffer(self._ptr, _ptr(buffer))
        self._check(rc, "bufferevent_read_buffer")

    def flush(self, what: int, mode: int = BEV_NORMAL) -> bool:
        """Moves what it can move now; whether it moved anything (bufferevent_flush). Of use for
        pairs and filters: for a socket it does nothing, see `close_after_write`."""
        number = integer(mode, "mode")
        if number not in (0, 1, 2):
            raise ValueError(f"unknown mode: {mode!r}")
        rc = lib.pyle_bev_flush(self._ptr, only(EV_READ | EV_WRITE, what, "what"), number)
        return bool(self._check(rc, "bufferevent_flush"))

    # ---- sockets and pairs ----

    @property
    def fd(self) -> int:
        """The socket's descriptor, -1 if there is none (bufferevent_getfd, bufferevent_setfd).

        Setting it neither closes the old one nor forgets the buffers; a socket.socket is taken
        over.
        """
        return self._check(lib.pyle_bev_fd(self._ptr), "bufferevent_getfd") - 1

    @fd.setter
    def fd(self, fd: FileDescriptor) -> None:
        taken, number = isinstance(fd, Socket), fileno(fd)
        try:
            self._check(lib.pyle_bev_setfd(self._ptr, number, taken), "bufferevent_setfd")
            if isinstance(fd, Socket):
                fd.detach()
        except BaseException:
            if (
                isinstance(fd, Socket)
                and lib.pyle_bev_fd(self._ptr) == number + 1 == fd.fileno() + 1
            ):
                lib.pyle_bev_setfd(
                    self._ptr, -1, False
                )  # interrupted: it is the caller's as before
            raise

    @property
    def partner(self) -> BufferEvent | None:
        """The other one of a pair; None for a socket, or when it is closed
        (bufferevent_pair_get_partner)."""
        return self._joined if isinstance(self._joined, BufferEvent) else None

    @property
    def underlying(self) -> BufferEvent | None:
        """What a filter is on; None for a socket or a pair, or when it is closed
        (bufferevent_get_underlying)."""
        joined = self._joined
        below = joined.underlying if isinstance(joined, _Filtering) else None
        return None if below is None or below.closed else below

    def _owned(self) -> BufferEvent | None:
        """What a filter closes along with itself."""
        joined = self._joined
        return joined.underlying if isinstance(joined, _Filtering) and joined.owns else None

    def connect(self, address: Address, family: int | None = None) -> None:
        """Starts to connect: to (host, port), or to the path of a unix socket; makes a socket if
        there is none (bufferevent_socket_connect).

        The event callback is called with BEV_EVENT_CONNECTED or BEV_EVENT_ERROR (see `error`);
        what fails at once raises OSError. A host name is looked up first, which blocks.
        """
        where, length = sockaddr(address, family)
        self._end_lookup()
        rc = lib.pyle_bev_connect(self._ptr, where, length)
        self._check(rc, "bufferevent_socket_connect")

    def connect_hostname(
        self, host: str, port: int, family: int = AF_UNSPEC, dns: DnsBase | None = None
    ) -> None:
        """Looks a host up, and starts to connect to its first address
        (bufferevent_socket_connect_hostname). With `dns`, a DnsBase of the same base, the look-up
        does not block. A failed one calls the event callback with BEV_EVENT_ERROR, and `dns_error`
        tells why."""
        if not isinstance(host, str):
            raise TypeError(f"host must be a str, not {type(host).__name__}")
        if "\0" in host:
            raise ValueError("NUL in a host name")
        port, family = integer(port, "port"), integer(family, "family")
        if not 0 < port <= 0xFFFF:
            raise ValueError(f"port must be from 1 to 65535, not {port}")
        if family not in (AF_UNSPEC, AF_INET, AF_INET6):
            raise ValueError(f"unknown family: {family!r}")
        if dns is not None:
            self._look_up(host, port, family, dns)
            return
        self._end_lookup()
        rc = lib.pyle_bev_connect_hostname(self._ptr, family, host.encode("idna"), port)
        self._check(rc, "bufferevent_socket_connect_hostname")

    def _look_up(self, host: str, port: int, family: int, dns: DnsBase) -> None:
        rc = lib.pyle_bev_connect_failed(self._ptr, -1)
        self._check(rc, "bufferevent_socket_connect_hostname")
        if dns.base is not self._base:
            raise ValueError("dns is of another EventBase")
        self._end_lookup()
        self._lookup = dns.getaddrinfo(host, port, self._looked_up, family=family, type=SOCK_STREAM)

    def _looked_up(self, result: AddrInfoResult) -> None:
        self._lookup = result.error
        if result.error is not None:
            self._connect_failed(0)
            return
        try:
            self.connect(result.infos[0][4])
        except OSError as error:
            self._connect_failed(error.errno or 0)

    def _connect_failed(self, error: int) -> None:
        rc = lib.pyle_bev_connect_failed(self._ptr, error)
        self._check(rc, "bufferevent_socket_connect_hostname")

    def _end_lookup(self) -> None:
        lookup, self._lookup = self._lookup, None
        if lookup is not None and not isinstance(lookup, gaierror):
            lookup._forget()

    @property
    def dns_error(self) -> gaierror | None:
        """Why the last look-up failed, or None (bufferevent_socket_get_dns_error)."""
        rc = lib.pyle_bev_dns_error(self._ptr)
        code = -self._check(rc, "bufferevent_socket_get_dns_error")
        if isinstance(self._lookup, gaierror):
            return self._lookup
        if code == 0:
            return None
        return gaierror(code, str(ffi.string(lib.evutil_gai_strerror(code)), "ascii"))

    # ---- TLS ----

    @property
    def tls(self) -> TLSConnection | None:
        """What the TLS handshake has come to (bufferevent_openssl_get_ssl); None before its end,
        and without TLS."""
        tls = self._tls
        return tls if tls is not None and tls._connected else None

    @property
    def tls_error(self) -> Exception | None:
        """What OpenSSL said about the last BEV_EVENT_ERROR, as `ssl` has it: an ssl.SSLError, for a
        certificate ssl.SSLCertVerificationError, for a connection that ended without a close_notify
        ssl.SSLEOFError (bufferevent_get_openssl_error). None if it said nothing: see `error`."""
        return None if self._tls is None else self._tls._failure()

    @property
    def allow_dirty_shutdown(self) -> bool:
        """Whether a connection that ends without a close_notify, which an attacker may have cut
        off, is BEV_EVENT_EOF and not BEV_EVENT_ERROR (bufferevent_openssl_get_allow_dirty_shutdown,
        bufferevent_openssl_set_allow_dirty_shutdown)."""
        return self._tls is not None and self._tls._dirty()

    @allow_dirty_shutdown.setter
    def allow_dirty_shutdown(self, allow: bool) -> None:
        if self._tls is None:
            raise ValueError("allow_dirty_shutdown is for TLS")
        self._tls._dirty(bool(allow))

    # ---- locking ----

    def lock(self) -> AbstractContextManager[BufferEvent]:
        """Holds the lock of a BEV_OPT_THREADSAFE one for a with statement (bufferevent_lock)."""
        return Lock(self, lib.pyle_bev_lock, "bufferevent_lock")

    # ---- rate limits (sockets only: ValueError for one of a pair) ----

    def set_rate_limit(self, cfg: TokenBucketConfig | None) -> None:
        """Limits how much it reads and writes in a tick; None: no more
        (bufferevent_set_rate_limit). Another limit starts with what is left of this one."""
        if cfg is not None and not isinstance(cfg, TokenBucketConfig):
            raise TypeError(f"cfg must be a TokenBucketConfig or None, not {type(cfg).__name__}")
        limit = ffi.NULL if cfg is None else cfg._ptr
        _set_or_fail(lib.pyle_bev_set_rate_limit(self._ptr, limit), "bufferevent_set_rate_limit")
        self._cfg = cfg

    @property
    def token_bucket_cfg(self) -> TokenBucketConfig | None:
        """The limit that is set, or None (bufferevent_get_token_bucket_cfg)."""
        rc = lib.pyle_bev_has_rate_limit(self._ptr)
        return self._cfg if self._check(rc, "bufferevent_get_token_bucket_cfg") else None

    def add_to_rate_limit_group(self, group: RateLimitGroup) -> None:
        """Joins a group of the same base, and leaves the one it is in
        (bufferevent_add_to_rate_limit_group). A limit of its own holds as well."""
        if not isinstance(group, RateLimitGroup):
            raise TypeError(f"group must be a RateLimitGroup, not {type(group).__name__}")
        if group.base is not self._base:
            raise ValueError("the group belongs to another base")
        rc = lib.pyle_bev_add_to_group(self._ptr, group._ptr)
        _set_or_fail(rc, "bufferevent_add_to_rate_limit_group")

    def remove_from_rate_limit_group(self) -> None:
        """Leaves its group, if it is in one (bufferevent_remove_from_rate_limit_group)."""
        rc = lib.pyle_bev_remove_from_group(self._ptr)
        _set_or_fail(rc, "bufferevent_remove_from_rate_limit_group")

    def _limit(self, which: int, function: str) -> int:
        out = ffi.new("long long *")
        self._check(lib.pyle_bev_limit(self._ptr, which, out), function)
        return int(out[0])

    @property
    def read_limit(self) -> int:
        """The bytes that its own limit lets it read now, below 0 if it is in debt; if it has
        none, EV_RATE_LIMIT_MAX (bufferevent_get_read_limit)."""
        return self._limit(lib.PYLE_LIMIT_READ, "bufferevent_get_read_limit")

    @property
    def write_limit(self) -> int:
        """The same for writing (bufferevent_get_write_limit)."""
        return self._limit(lib.PYLE_LIMIT_WRITE, "bufferevent_get_write_limit")

    @property
    def max_to_read(self) -> int:
        """The bytes it would read now at most, by its limit, its share of the group's and, without
        a limit of its own, `max_single_read` (bufferevent_get_max_to_read)."""
        return self._limit(lib.PYLE_LIMIT_MAX_TO_READ, "bufferevent_get_max_to_read")

    @property
    def max_to_write(self) -> int:
        """The same for writing (bufferevent_get_max_to_write)."""
        return self._limit(lib.PYLE_LIMIT_MAX_TO_WRITE, "bufferevent_get_max_to_write")

    def decrement_read_limit(self, n: int) -> None:
        """Takes n bytes off its own limit, or gives -n back, up to the burst, for what was read
        by other means (bufferevent_decrement_read_limit). LibeventError if it has no limit."""
        rc = lib.pyle_bev_decrement(self._ptr, 0, _amount(n))
        _set_or_fail(rc, "bufferevent_decrement_read_limit")

    def decrement_write_limit(self, n: int) -> None:
        """The same for writing (bufferevent_decrement_write_limit)."""
        rc = lib.pyle_bev_decrement(self._ptr, 1, _amount(n))
        _set_or_fail(rc, "bufferevent_decrement_write_limit")

    @property
    def max_single_read(self) -> int:
        """The most bytes to read at a time; 0 sets the default, 16384. Not looked at while it has
        a limit of its own (bufferevent_get_max_single_read, bufferevent_set_max_single_read)."""
        return self._limit(lib.PYLE_LIMIT_MAX_SINGLE_READ, "bufferevent_get_max_single_read")

    @max_single_read.setter
    def max_single_read(self, n: int) -> None:
        rc = lib.pyle_bev_set_max_single(self._ptr, 0, integer(n, "max_single_read"))
        _set_or_fail(rc, "bufferevent_set_max_single_read")

    @property
    def max_single_write(self) -> int:
        """The same for writing (bufferevent_get_max_single_write,
        bufferevent_set_max_single_write)."""
        return self._limit(lib.PYLE_LIMIT_MAX_SINGLE_WRITE, "bufferevent_get_max_single_write")

    @max_single_write.setter
    def max_single_write(self, n: int) -> None:
        rc = lib.pyle_bev_set_max_single(self._ptr, 1, integer(n, "max_single_write"))
        _set_or_fail(rc, "bufferevent_set_max_single_write")


class _Filtering:
    """What a filter has that other bufferevents have not."""

    __slots__ = ("input_filter", "output_filter", "owns", "timeout", "underlying")

    timeout: Seconds | None

    def __init__(
        self,
        underlying: BufferEvent,
        input_filter: Filter | None,
        output_filter: Filter | None,
        options: int,
    ) -> None:
        self.underlying = underlying
        self.input_filter = input_filter
        self.output_filter = output_filter
        self.owns = bool(options & BEV_OPT_CLOSE_ON_FREE)


def _options(options: int) -> int:
    number = only(_ALL_OPTIONS, options, "options")
    if number & BEV_OPT_UNLOCK_CALLBACKS and not number & BEV_OPT_DEFER_CALLBACKS:
        raise ValueError("BEV_OPT_UNLOCK_CALLBACKS needs BEV_OPT_DEFER_CALLBACKS")
    return number
