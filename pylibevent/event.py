"""event2/event.h: the loop (EventBase, EventConfig) and its events (Event, Timer, Signal)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import operator
import os
import signal as _signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from . import _callbacks as cb
from ._args import (
    MAX_SECONDS,
    NEVER,
    FileDescriptor,
    Seconds,
    fileno,
    function,
    integer,
    only,
    pointer,
    seconds,
)
from ._handle import Handle, behind, expose, held
from ._libevent import ffi, lib
from .constants import (
    EV_PERSIST,
    EV_SIGNAL,
    EV_TIMEOUT,
    EVLOOP_NONBLOCK,
    BaseFlags,
    CountFlags,
    EventFlags,
    LoopFlags,
    MethodFeatures,
)
from .errors import (
    CLOSED,
    RAISED,
    LibeventError,
    fail,
    raise_first,
    stash,
    unraisable,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._args import Args, Variadic
    from ._libevent import CData

ExceptionHandler = Callable[[Exception, Any], object]

_EVENT_TYPE = ffi.typeof("struct pyle_event *")
_new = ffi.new
_event_init = lib.pyle_event_init
_event_add = lib.pyle_event_add
_next_token = cb.next_token
_LOOP_FLAGS = sum(LoopFlags)
_COUNT_FLAGS = sum(CountFlags)
_PATIENCE = 5
_set_wakeup_fd = functools.partial(_signal.set_wakeup_fd, warn_on_full_buffer=False)


def version() -> str:
    """The version of the libevent in use (event_get_version)."""
    return str(ffi.string(lib.event_get_version()), "ascii")


def header_version() -> str:
    """The version of the libevent headers that this package was built with (LIBEVENT_VERSION)."""
    number = lib.LIBEVENT_VERSION_NUMBER
    return f"{number >> 24}.{number >> 16 & 0xFF}.{number >> 8 & 0xFF}"


def supported_methods() -> list[str]:
    """The backends of this libevent, the best first (event_get_supported_methods)."""
    names = lib.event_get_supported_methods()
    if not names:
        raise MemoryError("event_get_supported_methods")
    methods: list[str] = []
    while names[len(methods)]:
        methods.append(str(ffi.string(names[len(methods)]), "ascii"))
    return methods


def enable_debug_mode() -> None:
    """Has libevent check how its calls on events are used, which costs time
    (event_enable_debug_mode). RuntimeError once an EventBase was made. In debug mode an Event for
    a blocking descriptor is a ValueError."""
    rc = lib.pyle_enable_debug_mode()
    if rc < 0:
        fail(rc, "event_enable_debug_mode")


def enable_debug_logging(which: int = lib.EVENT_DBG_ALL) -> None:
    """Has a libevent that was built with verbose debugging log what it does, at the level DEBUG;
    EVENT_DBG_NONE: no more (event_enable_debug_logging).

    What libevent logs goes to `logging.getLogger("libevent")`. If it meets an error that it does
    not survive, it writes the text to stderr and aborts: nothing of Python runs then.
    """
    number = operator.index(which)
    if not 0 <= number <= 0xFFFFFFFF:
        raise ValueError(f"which must be from 0 to 0xffffffff, not {which!r}")
    lib.event_enable_debug_logging(number)


class EventConfig(Handle):
    """What an EventBase is to be like (struct event_config).

    It may be used for any number of bases.
    """

    __slots__ = ("_avoided", "_nolock")

    def __init__(self) -> None:
        """Wraps event_config_new."""
        self._first_init()
        config = lib.event_config_new()
        if not config:
            raise MemoryError("event_config_new")
        self._start(config, lib.event_config_free)
        expose(config, self)

    @classmethod
    def from_ptr(cls, ptr: CData | int) -> EventConfig:
        """The EventConfig of a struct event_config *: the one that it belongs to, or a new one
        that borrows it from a C library, which frees it. If C has set EVENT_BASE_FLAG_NOLOCK in
        it, set it here as well: nobody else tells."""
        found = pointer(ptr, "event_config")
        owner = behind(found)
        if isinstance(owner, EventConfig) and owner._ptr == found:
            return owner
        self = cls.__new__(cls)
        self._start(found, _nothing)
        return self

    def _start(self, config: Any, release: Callable[[Any], object]) -> None:
        self._own(config, release)
        self._nolock = False
        self._avoided: set[str] = set()

    @property
    def ptr(self) -> CData:
        """The struct event_config *, valid until close()."""
        ptr: CData = fail(CLOSED, "event_config") if self.closed else self._ptr
        return ptr

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._ptr is None

    def close(self) -> None:
        """Frees it (event_config_free); bases made with it stay as they are."""
        if self._ptr is not None:
            self._ptr = None
            del self._anchor

    def avoid_method(self, method: str) -> None:
        """Leaves a backend out, "epoll" for one (event_config_avoid_method)."""
        if not isinstance(method, str):
            raise TypeError(f"method must be a str, not {type(method).__name__}")
        if "\0" in method:
            raise ValueError(f"NUL in a method: {method!r}")
        if lib.event_config_avoid_method(self.ptr, method.encode()) < 0:
            raise MemoryError("event_config_avoid_method")
        self._avoided.add(method)

    def require_features(self, features: int) -> None:
        """Asks for a backend with all of these EV_FEATURE_* (event_config_require_features)."""
        number = only(sum(MethodFeatures), features, "features")
        if lib.event_config_require_features(self.ptr, number) < 0:
            raise LibeventError("event_config_require_features: failed")

    def set_flag(self, flag: int) -> None:
        """Sets EVENT_BASE_FLAG_* flags (event_config_set_flag).

        With EVENT_BASE_FLAG_NOLOCK a base belongs to one thread: while its loop runs, a call from
        another one raises RuntimeError.
        """
        flag = only(sum(BaseFlags), flag)
        if lib.event_config_set_flag(self.ptr, flag) < 0:
            raise LibeventError("event_config_set_flag: failed")
        if flag & lib.EVENT_BASE_FLAG_NOLOCK:
            self._nolock = True

    def set_max_dispatch_interval(
        self, interval: Seconds | None = None, max_callbacks: int = -1, min_priority: int = 0
    ) -> None:
        """Looks for new events after at most `interval` seconds and `max_callbacks` callbacks, so
        that those of a high priority do not wait for many of a low one; None, -1: no limit. Counts
        callbacks of priority `min_priority` and lower (event_config_set_max_dispatch_interval)."""
        rc = lib.pyle_config_max_dispatch_interval(
            self.ptr,
            seconds(interval),
            integer(max_callbacks, "max_callbacks"),
            integer(min_priority, "min_priority"),
        )
        if rc < 0:
            raise LibeventError("event_config_set_max_dispatch_interval: failed")

    def set_num_cpus_hint(self, cpus: int) -> None:
        """Tells how many processors to use, on Windows (event_config_set_num_cpus_hint)."""
        if lib.event_config_set_num_cpus_hint(self.ptr, integer(cpus, "cpus")) < 0:
            raise LibeventError("event_config_set_num_cpus_hint: failed")


class EventInfo(NamedTuple):
    """An event of a base's as it was when `EventBase.foreach_event` looked (struct event)."""

    event: Event | None
    """The Event; None: it is not one of ours but a bufferevent's, a listener's, a C library's."""
    fd: int
    """The descriptor, or the signal's number; -1: none (event_get_fd)."""
    events: EventFlags
    """The EV_* it was made with (event_get_events)."""
    pending: EventFlags
    """The EV_* it is pending or active for (event_pending)."""
    expires_in: float | None
    """Seconds until its timeout; None: it has none (event_pending)."""
    priority: int
    """Its priority (event_get_priority)."""
    internal: bool
    """Whether it serves the loop itself: such an event keeps no loop running."""


class EventBase(Handle):
    """An event loop (struct event_base). Also a context manager, which closes it.

    It keeps what is pending: added events, open bufferevents and listeners live on when the
    program drops them. `close()` closes them all. Its methods may be called from any thread.
    """

    __slots__ = (
        "_is_closed",
        "_last_signal",
        "_later",
        "_own_slot",
        "_slot",
        "_table",
        "exception_handler",
    )

    exception_handler: ExceptionHandler | None
    """Called as fn(exception, source) with what a callback raised, if it is an Exception, instead
    of ending the loop; source is the Event, BufferEvent, Listener or EvBuffer, None for a
    FileSegment's cleanup. What it raises itself leaves `dispatch()`. None, the default: whatever a
    callback raises leaves `dispatch()`."""

    def __init__(self, config: EventConfig | None = None) -> None:
        """Wraps event_base_new_with_config. Raises OSError when descriptors run out."""
        self._first_init()
        self._is_closed = True
        if config is not None and not isinstance(config, EventConfig):
            raise TypeError(f"config must be an EventConfig, not {type(config).__name__}")
        raw = config.ptr if config else ffi.NULL
        nolock = config is not None and config._nolock
        select = config is not None and config._avoided >= set(supported_methods()) - {"select"}
        self._start(
            lambda ptr: lib.pyle_base_open(ptr, raw, nolock, select),
            "event_base_new_with_config" if config else "event_base_new",
        )

    @classmethod
    def from_ptr(cls, ptr: CData | int) -> EventBase:
        """The EventBase of a struct event_base *: the one that it belongs to, or a new one that
        borrows it from a C library.

        A borrowed base is never freed: `close()` closes what was made with it here, and has to
        come before C frees it. C may run the loop; what a callback of Python's raises then ends
        that loop and is raised by the next `loop()` here, or reported by `close()`.
        """
        found = pointer(ptr, "event_base")
        for base in list(cb.bases.values()):
            if lib.pyle_base_ptr(base._ptr) == found:
                return base
        self = cls.__new__(cls)
        self._is_closed = True
        self._start(lambda own: lib.pyle_base_borrow(own, found), "event_base")
        return self

    def _start(self, start: Callable[[Any], int], function: str) -> None:
        self._table: dict[int, Any] = {}  # token: what is pending
        self._later: list[BaseException] = []  # raised by the next loop
        self._last_signal: Signal | None = None
        self.exception_handler = None
        self._slot = _take_slot()
        try:
            ptr = self._make(function, lib.pyle_base_new, self._slot)
        except BaseException:
            _give_slot(self._slot)
            raise
        rc = start(ptr)  # its struct stays after close(): events look at it
        if rc < 0:
            _give_slot(self._slot)
        self._check(rc, function)
        self._own_slot = [self._slot]  # until it is freed
        self._is_closed = False
        cb.bases[self._slot] = self

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct event_base *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_base_ptr(self._ptr) or fail(CLOSED, "event_base")

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return getattr(self, "_is_closed", True)  # true if __init__ failed

    def close(self) -> None:
        """Frees the base, after closing all that it holds (event_base_free).

        In a callback, or while the loop runs in another thread, nothing may be used from now on,
        and the loop ends and frees it. May be called twice.
        """
        rc = 0
        raised: list[BaseException] = []
        while getattr(self, "_own_slot", None) and len(raised) < _PATIENCE:
            try:
                rc = self._shut()
                break
            except BaseException as exception:  # a signal handler's: it is raised when all is done
                raised.append(exception)
        if raised:
            for other in raised[1:]:
                unraisable(other)
            raise_first(raised)
        self._check(rc, "event_base_free")

    def _shut(self) -> int:
        """Closes it, as far as that has not happened yet: it may be cut off anywhere."""
        rc: int = lib.pyle_base_shut(self._ptr)
        if rc < 0:
            return rc
        self._is_closed = True
        if lib.pyle_base_state(self._ptr, lib.PYLE_STATE_RUNNING_HERE):
            self._close_children()
        return self._free()

    def _close_children(self) -> None:
        table = self._table
        while table:
            for token in reversed(tuple(table)):
                child = table.get(token)
                if child is not None:
                    child._close_with_base(token)
                    table.pop(token, None)
        self.exception_handler = None

    def _free(self) -> int:
        """Frees it, if it is not running, and nobody else does."""
        rc, claim = 0, held()
        try:
            state = lib.pyle_base_claim_free(self._ptr, claim)
            if state == 1:
                self._close_children()
                rc = lib.pyle_base_free(self._ptr)
            if state:
                self._freed()
        finally:
            del claim
        return rc

    def _freed(self) -> None:
        self._last_signal = None
        while self._later:
            unraisable(self._later[0])
            del self._later[0]
        with contextlib.suppress(IndexError):  # done already
            slot = self._own_slot.pop()
            cb.bases.pop(slot, None)
            _give_slot(slot)

    def __del__(self) -> None:
        try:
            if not self.closed and not lib.pyle_base_state(self._ptr, lib.PYLE_STATE_FORKED):
                warnings.warn(f"unclosed {self!r}", ResourceWarning, 2, source=self)
        finally:
            self.close()

    def _describe(self) -> str:
        return self.method

    def reinit(self) -> None:
        """Makes the base usable in the child after os.fork() (event_reinit).

        Until then its use in the child raises RuntimeError: the kernel's state is the parent's.
        """
        self._check(lib.pyle_base_reinit(self._ptr), "event_reinit")
        for child in tuple(self._table.values()):
            if (after_fork := getattr(child, "_after_fork", None)) is not None:
                after_fork()
        if lib.pyle_base_state(self._ptr, lib.PYLE_STATE_RUNNING_HERE) and _in_main_thread():
            _signal.set_wakeup_fd(lib.pyle_base_wakefd(self._ptr), warn_on_full_buffer=False)

    def _state(self, what: int, function: str) -> int:
        return self._check(lib.pyle_base_state(self._ptr, what), function)

    # ---- the loop ----

    def dispatch(self) -> int:
        """Runs the loop until there is nothing left to wait for, or loopexit, loopbreak or an
        exception ends it (event_base_dispatch).

        Returns 1 if nothing was left, else 0. Raises what a callback raised. Signal handlers of
        Python run at once if this is the main thread.
        """
        return self.loop(0)

    def loop(self, flags: int = 0) -> int:
        """Runs the loop as `dispatch()`, with EVLOOP_* flags (event_base_loop)."""
        flags = only(_LOOP_FLAGS, flags)
        if stash.exceptions and lib.pyle_outermost():  # of a call that was interrupted
            self._keep(len(stash.exceptions))
        if not self._later:
            try:
                rc = self._run(flags)
                self._last_signal = None
                if lib.pyle_log_waiting:
                    cb.drain_log()
            finally:
                if self._is_closed:  # in a callback, or by another thread
                    self.close()
            if rc != RAISED:
                return self._check(rc, "event_base_loop")
            self._keep(lib.pyle_raised())
            if not self._later:  # lost: a second signal's hit while cffi handled a first one's
                return self.loop(flags)
        later = self._later
        try:  # no calls here: a signal handler's exception cannot come between
            raise later[0]
        finally:
            del later[0]

    def _keep(self, n: int) -> None:
        """Moves the last n exceptions of callbacks to where the next loop takes them from."""
        exceptions = stash.exceptions
        first = max(0, len(exceptions) - n)
        self._later += exceptions[first:]
        del exceptions[first:]

    def _run(self, flags: int) -> int:
        ptr, tables, slot = self._ptr, cb.tables, self._slot
        chained, rc = -1, None
        saved: list[int] = []
        try:
            if not flags & EVLOOP_NONBLOCK and _in_main_thread():
                wakefd = self._check(lib.pyle_base_wakefd(ptr), "event_base_loop")
                saved.extend(map(_set_wakeup_fd, (wakefd,)))  # one step: see _handle.held()
                chained = saved[0]
                if chained == wakefd:
                    chained = -1
            first = tables[slot] is None
            if first:
                tables[slot] = self._table
            try:
                rc = lib.pyle_base_loop(ptr, flags, chained)
            finally:
                if first:
                    tables[slot] = None
                if rc is None:  # a signal handler's exception hid it
                    self._keep(lib.pyle_raised())
        finally:
            if saved:
                _signal.set_wakeup_fd(saved[0])
                lib.pyle_base_pass_on(ptr, chained)
        return int(rc)

    def loopexit(self, timeout: Seconds | None = None) -> None:
        """Ends the loop after the events that are active then, `timeout` seconds from now or at
        once (event_base_loopexit). From any thread; also before the loop starts."""
        rc = lib.pyle_base_loopexit(self._ptr, seconds(timeout))
        self._check(rc, "event_base_loopexit")

    def loopbreak(self) -> None:
        """Ends the loop after the callback that runs now (event_base_loopbreak).

        From any thread. If no loop runs, the next one ends at once: unlike in C it is not lost.
        """
        self._check(lib.pyle_base_loopbreak(self._ptr), "event_base_loopbreak")

    def loopcontinue(self) -> None:
        """Looks for new events at once, before the other active ones run
        (event_base_loopcontinue)."""
        self._check(lib.pyle_base_loopcontinue(self._ptr), "event_base_loopcontinue")

    @property
    def got_exit(self) -> bool:
        """Whether the last loop ended by loopexit (event_base_got_exit)."""
        return bool(self._state(lib.PYLE_STATE_GOT_EXIT, "event_base_got_exit"))

    @property
    def got_break(self) -> bool:
        """Whether the last loop ended by loopbreak, or by an exception (event_base_got_break)."""
        return bool(self._state(lib.PYLE_STATE_GOT_BREAK, "event_base_got_break"))

    @property
    def running(self) -> bool:
        """Whether the loop runs, in whichever thread."""
        return bool(lib.pyle_base_state(self._ptr, lib.PYLE_STATE_RUNNING))

    # ---- what it is ----

    @property
    def method(self) -> str:
        """The backend in use, "epoll" for one (event_base_get_method)."""
        return str(ffi.string(lib.event_base_get_method(self.ptr)), "ascii")

    @property
    def features(self) -> MethodFeatures:
        """What the backend can do (event_base_get_features)."""
        return MethodFeatures(self._state(lib.PYLE_STATE_FEATURES, "event_base_get_features"))

    @property
    def npriorities(self) -> int:
        """How many priorities there are (event_base_get_npriorities)."""
        return self._state(lib.PYLE_STATE_NPRIORITIES, "event_base_get_npriorities")

    def priority_init(self, npriorities: int) -> None:
        """Sets how many priorities there are, 1 to 255; 0 is the first served
        (event_base_priority_init). ValueError if an event exists that has a higher one."""
        rc = lib.pyle_base_priority_init(self._ptr, integer(npriorities, "npriorities"))
        self._check(rc, "event_base_priority_init")

    def num_events(self, flags: int = CountFlags.EVENT_BASE_COUNT_ADDED) -> int:
        """How many events are added, active, virtual (event_base_get_num_events)."""
        rc = lib.pyle_base_num_events(self._ptr, only(_COUNT_FLAGS, flags))
        return self._check(rc, "event_base_get_num_events")

    def max_events(
        self, flags: int = CountFlags.EVENT_BASE_COUNT_ADDED, clear: bool = False
    ) -> int:
        """The most that `num_events` has been; `clear` starts again
        (event_base_get_max_events)."""
        rc = lib.pyle_base_max_events(self._ptr, only(_COUNT_FLAGS, flags), bool(clear))
        return self._check(rc, "event_base_get_max_events")

    def gettimeofday_cached(self) -> float:
        """The time in seconds since the epoch; in callbacks, when their round of the loop began
        (event_base_gettimeofday_cached)."""
        now = lib.pyle_base_gettimeofday_cached(self._ptr)
        if now < 0:
            self._check(int(now), "event_base_gettimeofday_cached")
        return float(now)

    def update_cache_time(self) -> None:
        """Brings the cached time up to now, in a callback that takes long
        (event_base_update_cache_time)."""
        rc = lib.pyle_base_update_cache_time(self._ptr)
        self._check(rc, "event_base_update_cache_time")

    def init_common_timeout(self, timeout: Seconds) -> float:
        """Makes timeouts of just that many seconds cheap, however many there are: a queue in
        place of the heap (event_base_init_common_timeout). From then on every `add`, and
        `BufferEvent.set_timeouts`, with this timeout uses it. Up to 256 for a base.

        Returns the timeout, for programs that hand on what C's function returns.
        """
        delay = seconds(timeout)
        if delay < 0:
            raise TypeError("timeout must not be None")
        rc = lib.pyle_base_common_timeout(self._ptr, delay)
        self._check(rc, "event_base_init_common_timeout")
        return delay

    def active_by_fd(self, fd: FileDescriptor, what: int) -> None:
        """Makes the added events active that wait for EV_READ, EV_WRITE or EV_CLOSED on a
        descriptor; with EV_TIMEOUT those that have it and a timeout (event_base_active_by_fd)."""
        rc = lib.pyle_base_active_by_fd(self._ptr, fileno(fd), integer(what, "what"))
        self._check(rc, "event_base_active_by_fd")

    def active_by_signal(self, signum: int) -> None:
        """Makes the added events for a signal active (event_base_active_by_signal)."""
        signum = integer(signum, "signum")
        if not 0 < signum < _signal.NSIG:
            raise ValueError(f"not a signal: {signum!r}")
        rc = lib.pyle_base_active_by_signal(self._ptr, signum)
        self._check(rc, "event_base_active_by_signal")

    @property
    def running_event(self) -> Event | None:
        """The event whose callback runs; None outside of one, in another thread, and in callbacks
        of bufferevents and listeners (event_base_get_running_event)."""
        token = lib.pyle_base_running_event(self._ptr)
        if token < 0:
            self._check(int(token), "event_base_get_running_event")
        return self._table.get(token)

    def foreach_event(
        self, callback: Callable[[EventInfo, Unpack[Args]], object] | Variadic, *args: Unpack[Args]
    ) -> Any:
        """Calls callback(info, *args) with the EventInfo of each event that is added or active,
        until it returns something true, and returns that, or None (event_base_foreach_event).

        What is shown is the state at the call: the callback may do with the base what it likes.
        """
        function(callback)
        room = 64
        while True:
            found = ffi.new("struct pyle_event_info[]", room)
            rc = lib.pyle_base_events(self._ptr, found, room)
            count = self._check(rc, "event_base_foreach_event")
            if count <= room:
                break
            room = count + 16
        infos = [
            EventInfo(
                self._table.get(one.token),
                one.fd,
                EventFlags(one.events),
                EventFlags(one.pending),
                one.seconds if one.seconds >= 0 else None,
                one.priority,
                bool(one.internal),
            )
            for one in found[0:count]
        ]
        for info in infos:
            result = callback(info, *args)
            if result:
                return result
        return None

    def dump_events(self, file: TextIO | None = None) -> None:
        """Writes a line for each event to a text file, None: sys.stderr
        (event_base_dump_events)."""
        out = sys.stderr if file is None else file
        write = function(getattr(out, "write", None), "file.write")
        length, rc = ffi.new("size_t *"), ffi.new("int *")
        memory = lib.pyle_base_dump(self._ptr, length, rc)
        if not memory:
            self._check(rc[0], "event_base_dump_events")
        text = ffi.unpack(ffi.gc(memory, lib.free), length[0])
        write(text.decode())

    def once(
        self,
        fd: FileDescriptor,
        what: int,
        callback: Callable[[int, EventFlags, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        timeout: Seconds | None = None,
    ) -> None:
        """Calls callback(fd, what, *args) once, when fd is ready or after `timeout` seconds; with
        EV_TIMEOUT alone and no timeout, as soon as the loop comes round (event_base_once).

        From any thread: the way to have the loop's thread do something.
        """
        what = integer(what, "what")
        if what & (EV_SIGNAL | EV_PERSIST):
            raise ValueError("once: neither EV_SIGNAL nor EV_PERSIST")
        event = Event(self, fd, what, callback, *args)
        if what == EV_TIMEOUT and seconds(timeout) <= 0:
            event.active(EV_TIMEOUT)
        else:
            event.add(timeout)


class Event(Handle):
    """Something to wait for (struct event): a descriptor, a timeout, a signal.

    callback(fd, what, *args) is called, in the loop's thread, with the EV_* of what happened.
    While it is pending the base keeps it alive. Methods may be called from any thread; `delete`
    and `close` from another one than the loop's wait for a callback that is running, as in C.
    """

    __slots__ = ("_args", "_base", "_callback", "_finalizer", "_table")

    _kind = cb.EVENT

    def __init__(
        self,
        base: EventBase,
        fd: FileDescriptor,
        what: int,
        callback: Callable[[int, EventFlags, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> None:
        """Wraps event_new. fd is not taken over: close it after the event. -1: no descriptor."""
        self._start(base, fileno(fd), integer(what, "what"), callback, args)

    def _start(self, base: EventBase, fd: int, what: int, callback: Any, args: Any) -> None:
        if hasattr(self, "_ptr"):
            self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self._base = base
        self._table = base._table
        self._callback: Callable[..., object] = (
            callback if callable(callback) else function(callback)
        )
        self._args: tuple[Any, ...] = args
        self._finalizer: Callable[..., object] | None = None
        self._ptr = ptr = _new(_EVENT_TYPE)
        rc = _event_init(base._ptr, ptr, fd, what, self._kind)
        if rc < 0:
            fail(rc, "event_new")

    @classmethod
    def from_ptr(cls, ptr: CData | int) -> Event:
        """The Event of a struct event *: the one that it belongs to, or a new one that borrows
        what a C library owns and has assigned to a base.

        The callback of a borrowed one stays C's, and so does the memory: do not use this after C
        has freed it. `close()` only lets go of it.
        """
        event = pointer(ptr, "event")
        base = lib.event_get_base(event)
        if not base:
            raise ValueError("the struct event has no base yet")
        token = lib.pyle_event_owner(event)
        if token >= 0:  # where it is pending its base is open
            owner = EventBase.from_ptr(base)._table.get(token) if token else behind(event)
            if isinstance(owner, Event) and lib.pyle_event_ptr(owner._ptr) == event:
                return owner
            fail(CLOSED, "event")
        self = cls.__new__(cls)
        self._base = EventBase.from_ptr(base)
        self._table = self._base._table
        self._callback, self._args, self._finalizer = _nothing, (), None
        self._ptr = ffi.new(_EVENT_TYPE)
        rc = lib.pyle_event_borrow(self._base._ptr, self._ptr, event)
        self._check(rc, "event")
        return self

    # ---- arming ----

    def add(self, timeout: Seconds | None = None) -> None:
        """Makes it pending; with a timeout, for that many seconds (event_add).

        Raises PermissionError for a regular file under epoll, RuntimeError for a second base
        with signals, ValueError if there is nothing to wait for. From any thread.
        """
        if timeout is None:
            delay = NEVER
        elif type(timeout) is float and 0 <= timeout <= MAX_SECONDS:
            delay = timeout
        else:
            delay = seconds(timeout)
        token = _next_token()
        self._table[token] = self
        try:
            rc = _event_add(self._ptr, token, delay)
        except BaseException:
            self._interrupted(token)
            raise
        if rc != 1:  # already pending, or failed
            self._table.pop(token, None)
            self._check(rc, "event_add")

    def _interrupted(self, token: int) -> None:
        """A signal handler's exception hid C's answer: did C take the token?"""
        if lib.pyle_event_token(self._ptr) != token:
            self._table.pop(token, None)

    def active(self, what: int) -> None:
        """Has the callback called with `what`, as if it had happened (event_active)."""
        what = integer(what, "what")
        token = cb.next_token()
        self._table[token] = self
        try:
            rc = lib.pyle_event_active(self._ptr, token, what)
        except BaseException:
            self._interrupted(token)
            raise
        if rc != 1:
            self._table.pop(token, None)
            self._check(rc, "event_active")

    def delete(self) -> None:
        """Makes it not pending (event_del). It can be added again."""
        self._release(lib.pyle_event_del(self._ptr, 0), "event_del")

    def remove_timer(self) -> None:
        """Takes the timeout away, the event stays pending for the rest (event_remove_timer)."""
        self._release(lib.pyle_event_remove_timer(self._ptr), "event_remove_timer")

    def close(self) -> None:
        """Deletes it for good and lets go of callback and arguments (event_free). May be called
        twice, and in its own callback."""
        self._release(lib.pyle_event_del(self._ptr, 1), "event_free")
        self._forget()

    def finalize(self, callback: Callable[..., object]) -> None:
        """Closes it, from any thread, and has callback(event, *args) called when none of its
        callbacks runs or will run any more: in the loop's thread, or when the base is closed
        (event_finalize). Unlike `close` it does not wait for a callback in another thread."""
        if self._finalizer is not None:
            fail(CLOSED, "event_finalize")
        self._finalizer = function(callback)
        token = cb.next_token()
        self._table[token] = self
        try:
            rc = lib.pyle_event_finalize(self._ptr, token)
        except BaseException:
            self._interrupted(token)
            if token not in self._table:
                self._finalizer = None
            raise
        if rc < 0:
            self._table.pop(token, None)
            self._finalizer = None
        self._release(rc, "event_finalize")

    def _finalized(self) -> None:
        finalizer, args = self._finalizer, self._args
        self._finalizer = None
        self._forget()
        if finalizer is not None:
            finalizer(self, *args)

    def _close_with_base(self, token: int) -> None:
        if self._finalizer is not None and lib.pyle_event_token(self._ptr) == token:
            cb.finalizing[token] = self
        lib.pyle_event_del(self._ptr, 1)
        self._forget()

    def _forget(self) -> None:
        if self._finalizer is None:
            self._callback = _nothing
            self._args = ()

    def _release(self, token: int, function: str) -> None:
        if token < 0:
            self._check(token, function)
        if token:
            self._table.pop(token, None)

    # ---- what it is ----

    @property
    def base(self) -> EventBase:
        """The base it belongs to."""
        return self._base

    @property
    def ptr(self) -> CData:
        """The struct event *, for ffi/lib and other C code; the memory is this object's."""
        ptr: CData = lib.pyle_event_ptr(self._ptr) or fail(CLOSED, "event")
        expose(ptr, self)
        return ptr

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_event_ptr(self._ptr)

    @property
    def fd(self) -> int:
        """The descriptor, or the signal's number; -1: none (event_get_fd)."""
        return int(lib.event_get_fd(self.ptr))

    @property
    def events(self) -> EventFlags:
        """The EV_* it was made with (event_get_events)."""
        return EventFlags(lib.event_get_events(self.ptr))

    @property
    def callback(self) -> Callable[..., object] | None:
        """What is called (event_get_callback); None: it is closed, or C's."""
        return None if self._callback is _nothing else self._callback

    @property
    def args(self) -> tuple[Any, ...]:
        """What the callback is given besides (event_get_callback_arg)."""
        return self._args

    def pending(self, what: int = ~EV_PERSIST & 0xAF) -> EventFlags:
        """Which of these EV_* it is pending or active for; false: none (event_pending)."""
        rc = lib.pyle_event_pending(self._ptr, integer(what, "what"))
        if rc < 0:
            self._check(rc, "event_pending")
        return EventFlags(rc)

    @property
    def expires_in(self) -> float | None:
        """Seconds until its timeout; None: it has none (event_pending)."""
        left = lib.pyle_event_expires(self._ptr)
        if left < -1:
            self._check(int(left) + 1, "event_pending")
        return float(left) if left >= 0 else None

    @property
    def priority(self) -> int:
        """0 is served first (event_get_priority, event_priority_set).

        LibeventError when set while it is active, ValueError for one the base does not have.
        """
        rc = lib.pyle_event_get_priority(self._ptr)
        if rc < 0:
            self._check(rc, "event_get_priority")
        return int(rc)

    @priority.setter
    def priority(self, priority: int) -> None:
        rc = lib.pyle_event_set_priority(self._ptr, integer(priority, "priority"))
        if rc < 0:
            self._check(rc, "event_priority_set")

    def _describe(self) -> str:
        return f"fd={self.fd} {self.events!r}"


class Timer(Event):
    """A timeout (evtimer_new): callback(*args), once after `add(seconds)`; with persist=True
    each time that many seconds have passed.

    As in C the seconds count from when the round of callbacks began (`update_cache_time` makes it
    now), by a clock that lags by up to some milliseconds: a callback may come that much early or
    late. A base with EVENT_BASE_FLAG_PRECISE_TIMER has a precise one, for a system call a round.
    """

    __slots__ = ()

    _kind = cb.TIMER

    def __init__(
        self,
        base: EventBase,
        callback: Callable[[Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        persist: bool = False,
    ) -> None:
        self._start(base, -1, EV_PERSIST if persist else 0, callback, args)


class Signal(Event):
    """A signal (evsignal_new): callback(signum, *args), each time until deleted.

    While it is pending, libevent's C handler takes the place of Python's for that signal. One
    base in a process can have signal events: `add` to a second raises RuntimeError. (With
    `base.loopexit` for a callback the number would be its timeout: wrap it in a lambda.)
    """

    __slots__ = ()

    _kind = cb.SIGNAL

    def __init__(
        self,
        base: EventBase,
        signum: int,
        callback: Callable[[int, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> None:
        self._start(base, integer(signum, "signum"), EV_SIGNAL | EV_PERSIST, callback, args)

    @property
    def signum(self) -> int:
        """The signal's number (event_get_signal)."""
        return self.fd


def _nothing(*_args: Any) -> None:
    """The callback of a closed event; how to free what belongs to C."""


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


# ---- the numbers by which C knows a base ----

_slots_lock = threading.Lock()
_free_slots: list[int] = []


def _take_slot() -> int:
    with _slots_lock:
        if _free_slots:
            return _free_slots.pop()
        cb.tables.append(None)
        return len(cb.tables) - 1


def _give_slot(slot: int) -> None:
    _free_slots.append(slot)


# ---- the ends of processes ----


def _at_exit() -> None:
    """Closes what is open, silently. A loop that a daemon thread is in stays as it is: it calls
    nothing of Python's any more."""
    lib.pyle_set_exiting()
    for base in list(cb.bases.values()):
        if not lib.pyle_base_state(base._ptr, lib.PYLE_STATE_RUNNING):
            base.close()


atexit.register(_at_exit)
os.register_at_fork(
    before=lib.pyle_before_fork,
    after_in_parent=functools.partial(lib.pyle_after_fork, 0),
    after_in_child=functools.partial(lib.pyle_after_fork, 1),
)
