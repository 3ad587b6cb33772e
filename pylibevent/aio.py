"""asyncio on an EventBase: coroutines and libevent's callbacks in one thread and one wait."""

from __future__ import annotations

import asyncio
import selectors
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, TypeVar

from . import _callbacks as cb
from ._args import MAX_SECONDS
from ._handle import Handle
from ._libevent import ffi, lib
from .errors import RAISED, fail, stash
from .event import EventBase

__all__ = ["EventLoop", "Selector", "run"]

T = TypeVar("T")

_STOP = lib.PYLE_POLL_STOP
_ROOM = 1024  # of the descriptors that are ready in one round
_wait = lib.pyle_poll_wait
_unpack = ffi.unpack


class _Poll(Handle):
    """What stands in the base's table for a Selector."""

    __slots__ = ("_token", "base")

    def __init__(self, base: EventBase) -> None:
        self.base = base
        self._make("selector", lib.pyle_poll_new, base._ptr)
        self._check(lib.pyle_poll_open(self._ptr), "selector")
        self._token = cb.next_token()
        base._table[self._token] = self

    @property
    def closed(self) -> bool:
        return self._token not in self.base._table

    def close(self) -> None:
        self._check(lib.pyle_poll_close(self._ptr, 0), "selector")
        self.base._table.pop(self._token, None)

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_poll_close(self._ptr, 1)


class Selector(selectors.BaseSelector):
    """A selector that waits in an EventBase's loop: `select` runs that for one round, with the
    callbacks of all its events, and returns the descriptors that are ready."""

    def __init__(self, base: EventBase) -> None:
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self.base = base
        self.stopped = False
        """Whether loopexit or loopbreak came in the last round."""
        self._poll: _Poll | None = _Poll(base)
        self._keys: dict[int, SelectorKey] = {}
        self._map = _Map(self)
        self._ready = ffi.new("int[]", 2 * _ROOM)

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
        if self._poll is None:
            raise RuntimeError("the selector is closed")
        rc = lib.pyle_poll_set(self._poll._ptr, fd, events)
        if rc < 0:
            self._poll._check(rc, "event_add")

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watches a descriptor for EVENT_READ, EVENT_WRITE or both."""
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = self._fd(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        key = SelectorKey(fileobj, fd, events, data)
        self._set(fd, events)
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Watches it no longer."""
        try:
            key = self._keys.pop(self._fd(fileobj))
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None
        if self._poll is not None and not self.base.closed:
            self._set(key.fd, 0)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Changes what it is watched for, and the data."""
        fd = self._fd(fileobj)
        if (key := self._keys.get(fd)) is None:
            raise KeyError(f"{fileobj!r} is not registered")
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        if events != key.events:
            try:
                self._set(fd, events)
            except BaseException:
                del self._keys[fd]
                raise
        changed = self._keys[fd] = SelectorKey(key.fileobj, fd, events, data)
        return changed

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """One round of the loop, which ends when a descriptor is ready, or libevent has called a
        callback, or after `timeout` seconds."""
        base = self.base
        if base._later or stash.exceptions:
            base.loop(lib.EVLOOP_NONBLOCK)
        if (poll := self._poll) is None:
            raise RuntimeError("the selector is closed")
        if timeout is None:
            timeout = -1.0
        elif timeout <= 0:
            timeout = 0.0
        elif not timeout <= MAX_SECONDS:
            timeout = MAX_SECONDS
        n = _wait(poll._ptr, timeout, self._ready, _ROOM)
        if lib.pyle_log_waiting:
            cb.drain_log()
        if base._last_signal is not None:
            base._last_signal = None
        if n < 0:
            self._failed(n)
            return []
        if self.stopped or n & _STOP:
            self.stopped = bool(n & _STOP)
            n &= ~_STOP
        ready: list[tuple[SelectorKey, int]] = []
        if n:
            keys, found = self._keys, iter(_unpack(self._ready, 2 * n))
            for fd in found:
                ready.append((keys[fd], next(found)))
        return ready

    def _failed(self, code: int) -> None:
        if self.base.closed:  # in a callback
            self.base.close()
        if code == RAISED:
            self.base._keep(lib.pyle_raised())
            if self.base._later:
                self.base.loop(lib.EVLOOP_NONBLOCK)
            return
        fail(code, "event_base_loop")

    def close(self) -> None:
        """Watches nothing any more; the base stays open."""
        self._keys.clear()
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.close()

    def get_key(self, fileobj: Any) -> SelectorKey:
        """The SelectorKey of what is registered; KeyError if it is not."""
        if self._poll is None:
            raise RuntimeError("Selector is closed")
        try:
            return self._keys[self._fd(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """What is registered: a mapping from file objects to their SelectorKeys."""
        return None if self._poll is None else self._map  # type: ignore[return-value]  # as selectors do


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
            selector = Selector(self._base)
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

    def _process_events(self, event_list: Any) -> None:
        super()._process_events(event_list)  # type: ignore[misc]
        if self._selector.stopped:  # type: ignore[attr-defined]
            self.stop()

    # Python's signal handlers run between two rounds. So a signal has to end the wait, and all that
    # it takes is a byte in the socket that call_soon_threadsafe writes to.

    def run_forever(self) -> None:
        """Runs until stop()."""
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
        if self.is_running() and not self._signal_handlers:  # type: ignore[attr-defined]
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
