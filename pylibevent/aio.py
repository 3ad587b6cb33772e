"""asyncio on an EventBase: coroutines and libevent's callbacks in one thread and one wait."""

from __future__ import annotations

import asyncio
import functools
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import TYPE_CHECKING, Any, TypeVar

from . import _callbacks as cb
from ._args import Address, FileDescriptor, Seconds, size
from ._args import data as _data
from ._handle import Handle
from ._libevent import ffi, lib
from .buffer import _BLOCK, _LAST, Bytes, _blocks, _pop_block, _readln
from .bufferevent import BufferEvent
from .constants import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_TIMEOUT,
    EV_READ,
    EV_WRITE,
    EVBUFFER_EOL_LF,
    EventFlags,
)
from .errors import CLOSED, FORKED, NONE, RAISED, SMALL, ClosedError, fail
from .event import Event, EventBase
from .listener import Listener

if TYPE_CHECKING:
    from .bufferevent_ssl import TLSContext

__all__ = [
    "EventLoop",
    "Selector",
    "Server",
    "StreamReader",
    "StreamWriter",
    "connect",
    "run",
    "start_server",
    "wait_event",
]

T = TypeVar("T")

_STOP = lib.PYLE_POLL_STOP
_ROOM = 512  # of the descriptors that are ready in one round
_FOREVER = 1e300
_NONE: list[int] = []
_wait = lib.pyle_poll_wait
_unpack = ffi.unpack


class _Poll(Handle):
    """What stands in the base's table for a Selector."""

    __slots__ = ("_token", "base", "go_on")

    def __init__(self, base: EventBase) -> None:
        self.base = base
        self.go_on: Callable[[], None] = _nothing
        self._make("selector", lib.pyle_poll_new, base._ptr)
        self._token = cb.next_token()
        base._table[self._token] = self
        try:
            self._check(lib.pyle_poll_open(self._ptr, self._token), "selector")
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._token not in self.base._table

    def close(self) -> None:
        self.go_on = _nothing
        rc = lib.pyle_poll_close(self._ptr, 0)
        if rc != FORKED:  # else the base still has its events, and closes it
            self._check(rc, "selector")
            self.base._table.pop(self._token, None)

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_poll_close(self._ptr, 1)


class Selector(selectors.BaseSelector):
    """A selector that waits in an EventBase's loop: `select` runs that for one round, with the
    callbacks of all its events, and returns the descriptors that are ready."""

    def __init__(self, base: EventBase) -> None:
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self.base: EventBase = base
        self.stopped: bool = False
        """Whether loopexit or loopbreak came in the last round."""
        self._poll = _Poll(base)
        self._ptr = self._poll._ptr
        self._keys: dict[int, SelectorKey] = {}
        self._map: Mapping[Any, SelectorKey] | None = _Map(self)
        self._ready = ffi.new("int[]", 2 * _ROOM)
        self._noted: Any = ffi.NULL

    def _fd(self, fileobj: Any) -> int:
        """The descriptor; of one that is closed by now, the one that it had."""
        if isinstance(fileobj, int):
            fd = fileobj
        else:
            try:
                fd = int(fileobj.fileno())
            except (AttributeError, TypeError, ValueError):
                fd = -1
            if fd < 0:
                for key in self._keys.values():
                    if key.fileobj is fileobj:
                        return key.fd
        if fd < 0:
            raise ValueError(f"Invalid file descriptor: {fileobj!r}")
        return fd

    def _set(self, fd: int, events: int) -> None:
        rc = lib.pyle_poll_set(self._ptr, fd, events)
        if rc < 0:
            cb.drain_log()
            fail(rc, "event_add")

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watches a descriptor for EVENT_READ, EVENT_WRITE or both."""
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = self._fd(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        key = self._keys[fd] = SelectorKey(fileobj, fd, events, data)
        try:
            self._set(fd, events)
        except BaseException:
            lib.pyle_poll_set(self._ptr, fd, 0)
            del self._keys[fd]
            raise
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Watches it no longer."""
        if (key := self._keys.get(self._fd(fileobj))) is None:
            raise KeyError(f"{fileobj!r} is not registered")
        rc = lib.pyle_poll_set(self._ptr, key.fd, 0)
        if rc < 0 and rc not in (CLOSED, FORKED):
            fail(rc, "event_del")
        del self._keys[key.fd]
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Changes what it is watched for, and the data."""
        fd = self._fd(fileobj)
        if (key := self._keys.get(fd)) is None:
            raise KeyError(f"{fileobj!r} is not registered")
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        changed = SelectorKey(key.fileobj, fd, events, data)
        if events != key.events:
            try:
                self._set(fd, events)
            except BaseException:
                lib.pyle_poll_set(self._ptr, fd, 0)
                del self._keys[fd]
                raise
        self._keys[fd] = changed
        return changed

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """One round of the loop, which ends when a descriptor is ready, or libevent has called a
        callback, or after `timeout` seconds."""
        keys, found = self._keys, iter(self._round(timeout))
        return [(keys[fd], events) for fd, events in zip(found, found, strict=False)]

    def _round(self, timeout: float | None) -> list[int]:
        """Descriptor, events, and so on."""
        if self.base._later:
            self.base.loop(lib.EVLOOP_NONBLOCK)
        seconds = _FOREVER if timeout is None else timeout
        n = _wait(self._ptr, seconds, self._ready, _ROOM, self._noted)
        if n <= 0 or n > _ROOM:
            n = self._special(n)
        return _unpack(self._ready, 2 * n) if n else _NONE

    def _special(self, n: int) -> int:
        if lib.pyle_log_waiting:
            cb.drain_log()
        if n >= 0:
            self.stopped = bool(n & _STOP)
            return n & ~_STOP
        if self.base.closed:  # in a callback
            self.base.close()
        if n == RAISED:
            self.base._keep(lib.pyle_raised())
            if self.base._later:
                self.base.loop(lib.EVLOOP_NONBLOCK)
            return 0
        fail(n, "event_base_loop")

    def close(self) -> None:
        """Watches nothing any more; the base stays open."""
        self._keys.clear()
        self._map = None
        self.base._last_signal = None
        self._poll.close()

    def get_key(self, fileobj: Any) -> SelectorKey:
        """The SelectorKey of what is registered; KeyError if it is not."""
        if self._map is None:
            fail(CLOSED, "selector")
        try:
            return self._keys[self._fd(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """What is registered: a mapping from file objects to their SelectorKeys."""
        return self._map  # type: ignore[return-value]  # None once closed, as selectors have it


class _LoopSelector(Selector):
    select = Selector._round  # type: ignore[assignment]  # what EventLoop._process_events takes


class _Map(Mapping[Any, SelectorKey]):
    def __init__(self, selector: Selector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector._keys)

    def __iter__(self) -> Any:
        return iter(self._selector._keys)

    def __getitem__(self, fileobj: Any) -> SelectorKey:
        return self._selector.get_key(fileobj)

    def get(self, fileobj: Any, default: Any = None) -> Any:
        keys = self._selector._keys
        if fileobj in keys:
            return keys[fileobj]
        try:
            return keys.get(self._selector._fd(fileobj), default)
        except ValueError:
            return default


def _nothing() -> None:
    pass


_Handle = asyncio.Handle
_Future = asyncio.Future


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop, which waits in an EventBase: what is pending there calls back as
    ever, between the steps of coroutines.

    An exception of a libevent callback goes to the loop's exception handler, with the Event,
    BufferEvent or whatever it was as `source` in the context, unless the base has a handler.
    `loopexit` and `loopbreak` stop the loop as `stop()` does.
    """

    _closed = True  # as long as there is nothing to close

    def __init__(self, base: EventBase | None = None) -> None:
        """On a base of the caller's, or on one of its own, which it closes with itself."""
        self._closes = base is None
        self._base = EventBase() if base is None else base
        selector: Selector | None = None
        try:
            self._poll = selector = _LoopSelector(self._base)
            self._noted = ffi.new("long long[]", 1 + lib.PYLE_POLL_NOTES)
            self._tokens = self._noted + 1
            selector._poll.go_on = self._go_on
            super().__init__(selector)
        except BaseException:
            self._closed = True
            if selector is not None and not self._base.closed:
                selector.close()
            if self._closes:
                self._base.close()
            raise
        if self._base.exception_handler is None:
            self._base.exception_handler = self._raised

    @property
    def base(self) -> EventBase:
        """The EventBase that it waits in."""
        return self._base

    def _raised(self, exception: Exception, source: Any) -> None:
        self.call_exception_handler(
            {
                "message": f"Exception in a callback of {source!r}",
                "exception": exception,
                "source": source,
            }
        )

    def set_debug(self, enabled: bool) -> None:
        """Sets debug mode: each step of a coroutine is a round's of the loop, and is timed."""
        super().set_debug(enabled)
        self._poll._noted = ffi.NULL if enabled else self._noted

    def _go_on(self) -> None:
        """Whoever waits for the streams that are noted goes on."""
        table = self._base._table
        for token in _unpack(self._tokens, self._noted[0]):
            if (stream := table.get(token)) is not None:
                stream._go_on()
        self._noted[0] = 0  # only now: what an exception has left over is there in the next round

    def _process_events(self, event_list: Any) -> None:
        """As asyncio has it, without an object for each descriptor."""
        selector = self._poll
        if event_list:
            keys, ready, found = selector._keys, self._ready, iter(event_list)  # type: ignore[attr-defined]
            for fd, events in zip(found, found, strict=False):
                reader, writer = keys[fd].data
                if events & EVENT_READ and reader is not None:
                    if reader._cancelled:
                        self._remove_reader(keys[fd].fileobj)  # type: ignore[attr-defined]
                    else:
                        ready.append(reader)
                if events & EVENT_WRITE and writer is not None:
                    if writer._cancelled:
                        self._remove_writer(keys[fd].fileobj)  # type: ignore[attr-defined]
                    else:
                        ready.append(writer)
        if selector.stopped:
            selector.stopped = False
            self.stop()

    def call_soon(  # type: ignore[override]  # what it takes is not said in all versions alike
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """Calls it in the next round."""
        if self._debug or self._closed:  # type: ignore[attr-defined]
            handle = super().call_soon(callback, *args, context=context)
            if handle._source_traceback:  # type: ignore[attr-defined]
                del handle._source_traceback[-1]  # type: ignore[attr-defined]  # this function
            return handle
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    # Python's signal handlers run between two rounds. So a signal has to end the wait, and all that
    # it takes is a byte in the socket that call_soon_threadsafe writes to.

    def run_forever(self) -> None:
        """Runs until stop()."""
        self._check_closed()  # type: ignore[attr-defined]
        self._check_running()  # type: ignore[attr-defined]  # or 3.13.0 ends the one that runs
        if self.is_running() or threading.current_thread() is not threading.main_thread():
            self._run()
            return
        before = self._listen()
        try:
            self._run()
        finally:
            if not self._signal_handlers:  # type: ignore[attr-defined]
                now = signal.set_wakeup_fd(before, warn_on_full_buffer=False)
                if now != self._wakeup:  # somebody else's
                    signal.set_wakeup_fd(now, warn_on_full_buffer=False)

    def _listen(self) -> int:
        csock = self._csock  # type: ignore[attr-defined]
        self._wakeup = -1 if csock is None else csock.fileno()
        return signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

    def _run(self) -> None:
        tables, base = cb.tables, self._base
        if base.closed or tables[base._slot] is not None:
            super().run_forever()
            return
        slot = base._slot
        tables[slot] = base._table
        try:
            super().run_forever()
        finally:
            tables[slot] = None

    def remove_signal_handler(self, sig: int) -> bool:
        """Removes a handler of add_signal_handler; True if there was one."""
        removed = super().remove_signal_handler(sig)
        if removed and self.is_running() and not self._signal_handlers:  # type: ignore[attr-defined]
            self._listen()
        return removed

    def close(self) -> None:
        """Closes it, and the base if that is its own. May be called twice."""
        super().close()
        if self._base.exception_handler == self._raised:
            self._base.exception_handler = None
        if self._closes:
            self._base.close()


def run(
    main: Coroutine[Any, Any, T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], EventLoop] = EventLoop,
) -> T:
    """As asyncio.run, on an EventLoop."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("aio.run() cannot be called from a running event loop")
    if sys.version_info >= (3, 11):
        with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
            return runner.run(main)
    return _run(main, debug, loop_factory())


def _run(main: Coroutine[Any, Any, T], debug: bool | None, loop: EventLoop) -> T:
    """asyncio.run of Python 3.10, which makes its own loop."""
    if not asyncio.iscoroutine(main):
        loop.close()
        raise ValueError(f"a coroutine was expected, got {main!r}")
    try:
        asyncio.set_event_loop(loop)
        if debug is not None:
            loop.set_debug(debug)
        return loop.run_until_complete(main)
    finally:
        try:
            asyncio.runners._cancel_all_tasks(loop)  # type: ignore[attr-defined]
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


# ---- streams on bufferevents ----

_LIMIT = 1 << 16
_HIGH = 1 << 16  # of the output: then drain() waits
_LOW = 1 << 14  # until it is down to this
_HANDSHAKE = 60.0
_LF = EVBUFFER_EOL_LF | lib.PYLE_KEEP
_LENGTH = _LAST - 1
_write_now = lib.pyle_bev_write_now


def _base_of(base_or_loop: EventBase | EventLoop) -> tuple[EventLoop, EventBase]:
    loop = asyncio.get_running_loop()
    base = base_or_loop.base if isinstance(base_or_loop, EventLoop) else base_or_loop
    if not isinstance(base, EventBase):
        raise TypeError(f"expected an EventBase or an EventLoop, not {type(base).__name__}")
    if not isinstance(loop, EventLoop) or loop.base is not base:
        raise RuntimeError("that base is not the one that the running loop waits in")
    return loop, base


class _Stream(BufferEvent):
    """What a reader and a writer have in common."""

    __slots__ = ("drained", "eof", "exception", "full", "gone", "loop", "over", "reading", "shut")

    def _begin(self, loop: EventLoop) -> None:
        self.loop: EventLoop = loop
        self.reading: asyncio.Future[None] | None = None  # who waits for input
        self.drained: asyncio.Future[None] | None = None  # who waits for the output to go
        self.gone: asyncio.Future[None] | None = None  # who waits for the end
        self.eof: bool = False  # no more input
        self.exception: Exception | None = None
        self.full: bool = False  # the output was above its mark
        self.shut: bool = False  # write_eof() was called
        self.over: bool = False  # it is closed

    def _go(self, limit: int) -> None:
        self.setwatermark(EV_READ, 0, 2 * limit)
        self.setcb(_Stream._wake, None, _Stream._happened)
        self.enable(EV_READ)
        lib.pyle_bev_note(self._ptr)

    def _go_on(self) -> None:
        """Who waits goes on, right here: no task is running."""
        waiter = self.reading
        if waiter is not None and (callbacks := waiter._callbacks):  # None: it was cancelled
            callback, context = callbacks[0]  # a task's
            entered = False
            try:
                waiter.remove_done_callback(callback)
                waiter.set_result(None)
                entered = True
                context.run(callback, waiter)
            except BaseException:
                if not entered:  # a signal handler's
                    if not waiter.done():
                        waiter.set_result(None)
                    self.loop.call_soon(callback, waiter, context=context)
                raise

    def _wake(self) -> None:
        """Who waits goes on soon."""
        self._end(self.reading)

    def _end(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done() and not self.loop.is_closed():
            waiter.set_result(None)

    def _writable(self) -> None:
        if self.shut:
            if len(self.output):
                return
            self._shutdown()
        self.full = False
        self.setcb(_Stream._wake, None, _Stream._happened)
        self._wake_drains()

    def _wake_drains(self) -> None:
        drained, self.drained = self.drained, None
        self._end(drained)

    def _happened(self, what: int) -> None:
        if what & BEV_EVENT_EOF:
            self.eof = True
        elif what & (BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT):
            timeout = what & BEV_EVENT_TIMEOUT
            error = TimeoutError("the connection timed out") if timeout else _why(self)
            self.exception = error
        self._wake()
        if self.exception is not None:
            self._wake_drains()

    def _shutdown(self) -> None:
        sock = socket.socket(fileno=self.fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the other side has gone
            pass
        finally:
            sock.detach()

    def _forget(self) -> None:
        super()._forget()
        if hasattr(self, "loop"):  # else it was never one
            self.eof = self.over = True
            self._wake()
            self._wake_drains()
            self._end(self.gone)


def _why(bev: BufferEvent) -> Exception:
    return bev.tls_error or bev.error or bev.dns_error or ConnectionError("the connection failed")


class StreamReader:
    """The reading side of `connect` and `start_server`: asyncio.StreamReader's methods on the input
    of a BufferEvent. libevent reads up to twice the limit ahead."""

    __slots__ = ("_bev", "_input", "_last", "_limit", "_ptr")

    def __init__(self, bev: _Stream, limit: int) -> None:
        self._bev = bev
        self._limit = size(limit)
        self._input = bev.input
        self._ptr = self._input._ptr
        self._last = False  # there was no more after the last line

    def exception(self) -> Exception | None:
        """Why the connection has failed, or None."""
        return self._bev.exception

    def at_eof(self) -> bool:
        """Whether there is nothing left, and no more will come."""
        bev = self._bev
        return bev.eof and (bev.over or not len(self._input))

    async def _more(self) -> bool:
        """Waits for more input; False: there will be none."""
        bev = self._bev
        if bev.exception is not None:
            raise bev.exception
        if bev.eof:
            return False
        if bev.reading is not None:
            raise RuntimeError("another coroutine is already waiting for incoming data")
        waiter = bev.reading = bev.loop.create_future()
        try:
            await waiter
        finally:
            bev.reading = None
        return True

    def _rest(self) -> bytes:
        return b"" if self._bev.over else self._input.remove()

    async def readline(self) -> bytes:
        """The next line with its b"\\n"; what there is, perhaps nothing, at the end.

        LineTooLong, a ValueError, and nothing removed, if it is longer than the limit.
        """
        bev, ptr = self._bev, self._ptr
        while not bev.over:
            if not (self._last and ptr.dry):
                try:
                    block = _blocks.pop()
                except IndexError:
                    block = _pop_block(_BLOCK)
                n = _readln(ptr, block, _BLOCK, _LF, self._limit)
                if n >= 0:
                    self._last = n >= _LAST
                    line: bytes = _unpack(block, n & _LENGTH)
                    _blocks.append(block)
                    return line
                _blocks.append(block)
                if n != NONE:
                    return self._long_line(n)
            if bev.eof or bev.exception is not None or bev.reading is not None:
                if not await self._more():
                    break
            else:  # the same without a coroutine more
                waiter: asyncio.Future[None] = _Future(loop=bev.loop)
                bev.reading = waiter
                try:
                    await waiter
                finally:
                    bev.reading = None
            self._last = False
        return self._rest()

    def _long_line(self, code: int) -> bytes:
        """One that does not fit in the block, or is an error."""
        line = self._input.readln(EVBUFFER_EOL_LF, self._limit) if code == SMALL else None
        if line is None:
            fail(code, "evbuffer_readln")
        return line + b"\n"

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """All up to the separator, and with it. asyncio.IncompleteReadError at the end;
        asyncio.LimitOverrunError, and nothing removed, if it is further off than the limit."""
        if not separator:
            raise ValueError("Separator should be at least one-byte string")
        start = 0
        while not self._bev.over:
            found = self._input.search(separator, start)
            where = len(self._input) if found is None else int(found)
            if where > self._limit + (len(separator) - 1) * (found is None):
                what = "found, but" if found else "not found, and"
                raise asyncio.LimitOverrunError(
                    f"Separator is {what} chunk exceed the limit", where
                )
            if found is not None:
                return self._input.remove(where + len(separator))
            start = max(0, where - len(separator) + 1)
            if not await self._more():
                break
        raise asyncio.IncompleteReadError(self._rest(), None)

    async def readexactly(self, n: int) -> bytes:
        """n bytes; asyncio.IncompleteReadError if the end comes first."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if n == 0:
            return b""
        bev, grown = self._bev, n > 2 * self._limit
        try:
            while not bev.over:
                if len(self._input) >= n:
                    return self._input.remove(n)
                if grown:
                    bev.setwatermark(EV_READ, 0, n)
                if not await self._more():
                    break
        finally:
            if grown and not bev.over:
                bev.setwatermark(EV_READ, 0, 2 * self._limit)
        raise asyncio.IncompleteReadError(self._rest(), n)

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, as soon as there are some; -1: all, up to the end."""
        if n == 0:
            return b""
        parts: list[bytes] = []
        while not self._bev.over:
            data = self._input.remove(n)
            if data and n > 0:
                return data
            if data:
                parts.append(data)
            if not await self._more():
                break
        parts.append(self._rest() if n < 0 or self._bev.over else self._input.remove(n))
        return b"".join(parts)

    def __aiter__(self) -> StreamReader:
        """The lines."""
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class StreamWriter:
    """The writing side of `connect` and `start_server`: asyncio.StreamWriter's methods on the
    output of a BufferEvent."""

    __slots__ = ("_bev", "_closing", "_peer", "_ptr")

    def __init__(self, bev: _Stream, peer: Any = None) -> None:
        self._bev = bev
        self._ptr = bev._ptr
        self._peer = peer
        self._closing = False

    @property
    def bufferevent(self) -> BufferEvent:
        """The BufferEvent that it writes to; its callbacks and watermarks are not to be changed."""
        return self._bev

    def write(self, data: Bytes) -> None:
        """Writes bytes: to the socket, what that takes, or else to the output."""
        source = data if type(data) is bytes else _data(data)
        rc = _write_now(self._ptr, source, len(source), _HIGH)
        if rc:
            if rc < 0:
                fail(rc, "bufferevent_write")
            self._bev.full = True

    def writelines(self, lines: Iterable[Bytes]) -> None:
        """Writes several, joined."""
        self.write(b"".join(lines))

    async def drain(self) -> None:
        """Waits, if the output is above its high watermark (64 KiB), until it is down to the low
        one (16 KiB). Raises what the connection has failed with."""
        bev = self._bev
        if bev.exception is not None:
            raise bev.exception
        if not bev.full:
            return
        if bev.over or self._closing:
            raise ConnectionResetError("Connection lost")
        if len(bev.output) <= _LOW:
            bev.full = False
            return
        waiter = bev.drained
        if waiter is None:
            waiter = bev.drained = bev.loop.create_future()
            bev.setwatermark(EV_WRITE, 0 if bev.shut else _LOW)
            bev.setcb(_Stream._wake, _Stream._writable, _Stream._happened)
        await asyncio.shield(waiter)  # others may wait for it
        if bev.exception is not None:
            raise bev.exception
        if bev.over:
            raise ConnectionResetError("Connection lost")

    def can_write_eof(self) -> bool:
        """Whether write_eof() can be called: not with TLS."""
        return self._bev._tls is None

    def write_eof(self) -> None:
        """Ends our side of the connection, once all is written."""
        bev = self._bev
        if bev._tls is not None:
            raise NotImplementedError("TLS cannot be closed one way")
        if bev.shut:
            return
        bev.shut = True
        if len(bev.output):
            bev.setwatermark(EV_WRITE, 0)
            bev.setcb(_Stream._wake, _Stream._writable, _Stream._happened)
        else:
            bev._shutdown()

    def close(self) -> None:
        """Closes the connection once all is written (BufferEvent.close_after_write)."""
        if not self._closing:
            self._closing = True
            bev = self._bev
            bev.eof = True
            bev._wake()
            if not bev.over and bev.exception is None:
                bev.close_after_write()
            else:
                bev.close()

    def is_closing(self) -> bool:
        """Whether close() was called, or the connection is closed."""
        return self._closing or self._bev.over

    async def wait_closed(self) -> None:
        """Waits until it is closed."""
        bev = self._bev
        if bev.over:
            return
        if bev.gone is None:
            bev.gone = bev.loop.create_future()
        await asyncio.shield(bev.gone)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """ "peername", "sockname", "ssl_object" (BufferEvent.tls), "bufferevent"."""
        bev = self._bev
        if name == "bufferevent":
            return bev
        if name == "ssl_object":
            return bev.tls or default
        if name == "peername" and self._peer is not None:
            return self._peer
        if name not in ("peername", "sockname") or bev.over:
            return default
        sock = socket.socket(fileno=bev.fd)
        try:
            return sock.getpeername() if name == "peername" else sock.getsockname()
        except OSError:
            return default
        finally:
            sock.detach()


async def connect(
    base_or_loop: EventBase | EventLoop,
    address: Address,
    *,
    tls: TLSContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = _LIMIT,
) -> tuple[StreamReader, StreamWriter]:
    """Connects a BufferEvent, to (host, port) or to the path of a unix socket, and returns a reader
    and a writer for it, when a TLS handshake is over, too.

    tls is a TLSContext, or True: one that verifies by the system's certificates; limit is that of
    a line.
    """
    loop, base = _base_of(base_or_loop)
    context = _context(tls)
    where: list[Any] = [address]
    if isinstance(address, tuple) and len(address) == 2:
        host, port = address
        if context is not None and server_hostname is None:
            server_hostname = host
        try:  # a number?
            found = socket.getaddrinfo(
                host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            )
        except socket.gaierror:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        where = [info[4] for info in found]
    errors: list[Exception] = []
    for one in where:
        if context is None:
            bev = _Stream.socket(base)
        else:
            bev = _Stream.openssl_socket(base, None, context, server_hostname=server_hostname)
        bev._begin(loop)
        done: asyncio.Future[None] = loop.create_future()
        bev.setcb(None, None, _connected, done)
        try:
            bev.connect(one)
            await done
            reader = StreamReader(bev, limit)
            bev._go(limit)
            return reader, StreamWriter(bev)
        except OSError as error:
            bev.close()
            errors.append(error)
        except BaseException:
            bev.close()
            raise
    raise errors[0]


def _context(tls: TLSContext | bool | None) -> TLSContext | None:
    if tls is True:
        from .bufferevent_ssl import TLSContext

        return TLSContext.client()
    return tls or None


def _connected(bev: _Stream, what: int, done: asyncio.Future[None]) -> None:
    if done.done() or bev.loop.is_closed():
        return
    if what & BEV_EVENT_CONNECTED:
        done.set_result(None)
    elif what & BEV_EVENT_TIMEOUT:
        done.set_exception(TimeoutError("the handshake timed out"))
    elif what & BEV_EVENT_EOF:
        done.set_exception(ConnectionResetError("the connection was closed in the handshake"))
    else:
        done.set_exception(_why(bev))


class Server:
    """What `start_server` returns: a Listener, and the connections that it has accepted. Also an
    async context manager, which closes it."""

    def __init__(
        self,
        loop: EventLoop,
        connected: Callable[[StreamReader, StreamWriter], Any],
        context: TLSContext | None,
        limit: int,
    ) -> None:
        self._loop = loop
        self._connected = connected
        self._context = context
        self._limit = limit
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: Listener | None = None
        self._forever: asyncio.Future[None] | None = None

    @property
    def listener(self) -> Listener | None:
        """The Listener; None once closed."""
        return self._listener

    @property
    def address(self) -> Address:
        """Where it listens."""
        if self._listener is None:
            raise ClosedError("the server is closed")
        return self._listener.address

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return self._listener is not None

    def close(self) -> None:
        """Accepts no more; connections stay open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()

    async def wait_closed(self) -> None:
        """Waits until what serves the connections has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def serve_forever(self) -> None:
        """Waits until it is closed, or cancelled, which closes it."""
        if self._forever is not None:
            raise RuntimeError("serve_forever() is under way")
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    def _accept(self, listener: Listener, fd: int, address: Address) -> None:
        if self._context is None:
            bev = _Stream.socket(listener.base, fd)
            bev._begin(self._loop)
            self._serve(bev, address)
            return
        bev = _Stream.openssl_socket(listener.base, fd, self._context)
        bev._begin(self._loop)
        bev.set_timeouts(read=_HANDSHAKE)
        bev.setcb(None, None, self._shaken, address)

    def _shaken(self, bev: _Stream, what: int, address: Address) -> None:
        if not what & BEV_EVENT_CONNECTED:
            bev.close()
            return
        bev.set_timeouts()
        self._serve(bev, address)

    def _serve(self, bev: _Stream, address: Address) -> None:
        reader, writer = StreamReader(bev, self._limit), StreamWriter(bev, address)
        bev._go(self._limit)
        try:
            result = self._connected(reader, writer)
        except BaseException:
            bev.close()
            raise
        if asyncio.iscoroutine(result):
            task = self._loop.create_task(result)
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._served, bev))

    def _served(self, bev: _Stream, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            bev.close()
        elif (exception := task.exception()) is not None:
            bev.close()
            self._loop.call_exception_handler(
                {
                    "message": "Unhandled exception in client_connected_cb",
                    "exception": exception,
                    "source": bev,
                }
            )


async def start_server(
    base_or_loop: EventBase | EventLoop,
    client_connected: Callable[[StreamReader, StreamWriter], Any],
    address: Address,
    *,
    tls: TLSContext | None = None,
    limit: int = _LIMIT,
    backlog: int = -1,
) -> Server:
    """Listens on (host, port) or the path of a unix socket, and calls client_connected(reader,
    writer) for each connection, once a TLS handshake is over; a coroutine is run as a task."""
    loop, base = _base_of(base_or_loop)
    server = Server(loop, client_connected, tls, limit)
    server._listener = Listener.bind(base, server._accept, address, backlog=backlog)
    return server


async def wait_event(
    base_or_loop: EventBase | EventLoop,
    fd: FileDescriptor,
    what: int,
    timeout: Seconds | None = None,
) -> EventFlags:
    """Waits for an event of libevent's: for EV_READ, EV_WRITE or EV_CLOSED of a descriptor, for a
    signal (its number, EV_SIGNAL), with fd -1 for the timeout alone. Returns what happened,
    EV_TIMEOUT after `timeout` seconds."""
    loop, base = _base_of(base_or_loop)
    done: asyncio.Future[EventFlags] = loop.create_future()

    def happened(_fd: int, flags: EventFlags) -> None:
        if not (done.done() or loop.is_closed()):
            done.set_result(flags)

    event = Event(base, fd, what, happened)
    try:
        event.add(timeout)
        return await done
    finally:
        event.close()
