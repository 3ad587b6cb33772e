"""libevent's flags and constants under their C names, as enum members that print as such."""

from __future__ import annotations

import enum

from ._libevent import lib


class Flag(enum.IntFlag):
    """Base of the flag types: prints as the C expression, `EV_READ|EV_PERSIST`."""

    def __repr__(self) -> str:
        names, rest = [], int(self)
        for flag in type(self):
            if flag in self:
                names.append(str(flag.name))
                rest &= ~int(flag)
        return "|".join([*names, hex(rest)] if rest or not names else names)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


class Constant(enum.IntEnum):
    """Base of the constants that are not flags: prints as its C name."""

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


class EventFlags(Flag):
    """What an event waits for, or what happened (EV_*)."""

    EV_TIMEOUT = lib.EV_TIMEOUT
    EV_READ = lib.EV_READ
    EV_WRITE = lib.EV_WRITE
    EV_SIGNAL = lib.EV_SIGNAL
    EV_PERSIST = lib.EV_PERSIST
    EV_ET = lib.EV_ET
    EV_FINALIZE = lib.EV_FINALIZE
    EV_CLOSED = lib.EV_CLOSED


class LoopFlags(Flag):
    """How to run a loop (EVLOOP_*)."""

    EVLOOP_ONCE = lib.EVLOOP_ONCE
    EVLOOP_NONBLOCK = lib.EVLOOP_NONBLOCK
    EVLOOP_NO_EXIT_ON_EMPTY = lib.EVLOOP_NO_EXIT_ON_EMPTY


class MethodFeatures(Flag):
    """What a backend can do (EV_FEATURE_*)."""

    EV_FEATURE_ET = lib.EV_FEATURE_ET
    EV_FEATURE_O1 = lib.EV_FEATURE_O1
    EV_FEATURE_FDS = lib.EV_FEATURE_FDS
    EV_FEATURE_EARLY_CLOSE = lib.EV_FEATURE_EARLY_CLOSE


class BaseFlags(Flag):
    """How to make an EventBase (EVENT_BASE_FLAG_*)."""

    EVENT_BASE_FLAG_NOLOCK = lib.EVENT_BASE_FLAG_NOLOCK
    EVENT_BASE_FLAG_IGNORE_ENV = lib.EVENT_BASE_FLAG_IGNORE_ENV
    EVENT_BASE_FLAG_STARTUP_IOCP = lib.EVENT_BASE_FLAG_STARTUP_IOCP
    EVENT_BASE_FLAG_NO_CACHE_TIME = lib.EVENT_BASE_FLAG_NO_CACHE_TIME
    EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST = lib.EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST
    EVENT_BASE_FLAG_PRECISE_TIMER = lib.EVENT_BASE_FLAG_PRECISE_TIMER


class CountFlags(Flag):
    """Which events to count (EVENT_BASE_COUNT_*)."""

    EVENT_BASE_COUNT_ACTIVE = lib.EVENT_BASE_COUNT_ACTIVE
    EVENT_BASE_COUNT_VIRTUAL = lib.EVENT_BASE_COUNT_VIRTUAL
    EVENT_BASE_COUNT_ADDED = lib.EVENT_BASE_COUNT_ADDED


class EolStyle(Constant):
    """What ends a line (EVBUFFER_EOL_*)."""

    EVBUFFER_EOL_ANY = lib.EVBUFFER_EOL_ANY
    EVBUFFER_EOL_CRLF = lib.EVBUFFER_EOL_CRLF
    EVBUFFER_EOL_CRLF_STRICT = lib.EVBUFFER_EOL_CRLF_STRICT
    EVBUFFER_EOL_LF = lib.EVBUFFER_EOL_LF
    EVBUFFER_EOL_NUL = lib.EVBUFFER_EOL_NUL


class PtrHow(Constant):
    """How `EvBuffer.ptr_set` takes its number (EVBUFFER_PTR_*)."""

    EVBUFFER_PTR_SET = lib.EVBUFFER_PTR_SET
    EVBUFFER_PTR_ADD = lib.EVBUFFER_PTR_ADD


class BufferFlags(Flag):
    """What an EvBuffer is for (EVBUFFER_FLAG_*)."""

    EVBUFFER_FLAG_DRAINS_TO_FD = lib.EVBUFFER_FLAG_DRAINS_TO_FD


class BufferCallbackFlags(Flag):
    """Whether a callback of an EvBuffer is called (EVBUFFER_CB_*)."""

    EVBUFFER_CB_ENABLED = lib.EVBUFFER_CB_ENABLED


class FileSegmentFlags(Flag):
    """How to make a FileSegment (EVBUF_FS_*)."""

    EVBUF_FS_CLOSE_ON_FREE = lib.EVBUF_FS_CLOSE_ON_FREE
    EVBUF_FS_DISABLE_MMAP = lib.EVBUF_FS_DISABLE_MMAP
    EVBUF_FS_DISABLE_SENDFILE = lib.EVBUF_FS_DISABLE_SENDFILE
    EVBUF_FS_DISABLE_LOCKING = lib.EVBUF_FS_DISABLE_LOCKING


class BufferEventFlags(Flag):
    """What happened to a bufferevent (BEV_EVENT_*)."""

    BEV_EVENT_READING = lib.BEV_EVENT_READING
    BEV_EVENT_WRITING = lib.BEV_EVENT_WRITING
    BEV_EVENT_EOF = lib.BEV_EVENT_EOF
    BEV_EVENT_ERROR = lib.BEV_EVENT_ERROR
    BEV_EVENT_TIMEOUT = lib.BEV_EVENT_TIMEOUT
    BEV_EVENT_CONNECTED = lib.BEV_EVENT_CONNECTED


class BufferEventOptions(Flag):
    """How to make a bufferevent (BEV_OPT_*)."""

    BEV_OPT_CLOSE_ON_FREE = lib.BEV_OPT_CLOSE_ON_FREE
    BEV_OPT_THREADSAFE = lib.BEV_OPT_THREADSAFE
    BEV_OPT_DEFER_CALLBACKS = lib.BEV_OPT_DEFER_CALLBACKS
    BEV_OPT_UNLOCK_CALLBACKS = lib.BEV_OPT_UNLOCK_CALLBACKS


class TriggerOptions(Flag):
    """How to trigger a bufferevent's callbacks (BEV_TRIG_*)."""

    BEV_TRIG_IGNORE_WATERMARKS = lib.BEV_TRIG_IGNORE_WATERMARKS
    BEV_TRIG_DEFER_CALLBACKS = lib.BEV_TRIG_DEFER_CALLBACKS


class FlushMode(Constant):
    """How much `BufferEvent.flush` flushes (BEV_NORMAL, BEV_FLUSH, BEV_FINISHED)."""

    BEV_NORMAL = lib.BEV_NORMAL
    BEV_FLUSH = lib.BEV_FLUSH
    BEV_FINISHED = lib.BEV_FINISHED


class FilterResult(Constant):
    """What a filter says (enum bufferevent_filter_result)."""

    BEV_OK = lib.BEV_OK
    BEV_NEED_MORE = lib.BEV_NEED_MORE
    BEV_ERROR = lib.BEV_ERROR


class ListenerOptions(Flag):
    """How to make a listener (LEV_OPT_*)."""

    LEV_OPT_LEAVE_SOCKETS_BLOCKING = lib.LEV_OPT_LEAVE_SOCKETS_BLOCKING
    LEV_OPT_CLOSE_ON_FREE = lib.LEV_OPT_CLOSE_ON_FREE
    LEV_OPT_CLOSE_ON_EXEC = lib.LEV_OPT_CLOSE_ON_EXEC
    LEV_OPT_REUSEABLE = lib.LEV_OPT_REUSEABLE
    LEV_OPT_THREADSAFE = lib.LEV_OPT_THREADSAFE
    LEV_OPT_DISABLED = lib.LEV_OPT_DISABLED
    LEV_OPT_DEFERRED_ACCEPT = lib.LEV_OPT_DEFERRED_ACCEPT
    LEV_OPT_REUSEABLE_PORT = lib.LEV_OPT_REUSEABLE_PORT
    LEV_OPT_BIND_IPV6ONLY = lib.LEV_OPT_BIND_IPV6ONLY


class MonotonicFlags(Flag):
    """How to make a `util.MonotonicTimer` (EV_MONOT_*)."""

    EV_MONOT_PRECISE = lib.EV_MONOT_PRECISE
    EV_MONOT_FALLBACK = lib.EV_MONOT_FALLBACK


EV_TIMEOUT = EventFlags.EV_TIMEOUT
EV_READ = EventFlags.EV_READ
EV_WRITE = EventFlags.EV_WRITE
EV_SIGNAL = EventFlags.EV_SIGNAL
EV_PERSIST = EventFlags.EV_PERSIST
EV_ET = EventFlags.EV_ET
EV_FINALIZE = EventFlags.EV_FINALIZE
EV_CLOSED = EventFlags.EV_CLOSED
EVLOOP_ONCE = LoopFlags.EVLOOP_ONCE
EVLOOP_NONBLOCK = LoopFlags.EVLOOP_NONBLOCK
EVLOOP_NO_EXIT_ON_EMPTY = LoopFlags.EVLOOP_NO_EXIT_ON_EMPTY
EV_FEATURE_ET = MethodFeatures.EV_FEATURE_ET
EV_FEATURE_O1 = MethodFeatures.EV_FEATURE_O1
EV_FEATURE_FDS = MethodFeatures.EV_FEATURE_FDS
EV_FEATURE_EARLY_CLOSE = MethodFeatures.EV_FEATURE_EARLY_CLOSE
EVENT_BASE_FLAG_NOLOCK = BaseFlags.EVENT_BASE_FLAG_NOLOCK
EVENT_BASE_FLAG_IGNORE_ENV = BaseFlags.EVENT_BASE_FLAG_IGNORE_ENV
EVENT_BASE_FLAG_STARTUP_IOCP = BaseFlags.EVENT_BASE_FLAG_STARTUP_IOCP
EVENT_BASE_FLAG_NO_CACHE_TIME = BaseFlags.EVENT_BASE_FLAG_NO_CACHE_TIME
EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST = BaseFlags.EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST
EVENT_BASE_FLAG_PRECISE_TIMER = BaseFlags.EVENT_BASE_FLAG_PRECISE_TIMER
EVENT_BASE_COUNT_ACTIVE = CountFlags.EVENT_BASE_COUNT_ACTIVE
EVENT_BASE_COUNT_VIRTUAL = CountFlags.EVENT_BASE_COUNT_VIRTUAL
EVENT_BASE_COUNT_ADDED = CountFlags.EVENT_BASE_COUNT_ADDED
EVBUFFER_EOL_ANY = EolStyle.EVBUFFER_EOL_ANY
EVBUFFER_EOL_CRLF = EolStyle.EVBUFFER_EOL_CRLF
EVBUFFER_EOL_CRLF_STRICT = EolStyle.EVBUFFER_EOL_CRLF_STRICT
EVBUFFER_EOL_LF = EolStyle.EVBUFFER_EOL_LF
EVBUFFER_EOL_NUL = EolStyle.EVBUFFER_EOL_NUL
EVBUFFER_PTR_SET = PtrHow.EVBUFFER_PTR_SET
EVBUFFER_PTR_ADD = PtrHow.EVBUFFER_PTR_ADD
EVBUFFER_FLAG_DRAINS_TO_FD = BufferFlags.EVBUFFER_FLAG_DRAINS_TO_FD
EVBUFFER_CB_ENABLED = BufferCallbackFlags.EVBUFFER_CB_ENABLED
EVBUF_FS_CLOSE_ON_FREE = FileSegmentFlags.EVBUF_FS_CLOSE_ON_FREE
EVBUF_FS_DISABLE_MMAP = FileSegmentFlags.EVBUF_FS_DISABLE_MMAP
EVBUF_FS_DISABLE_SENDFILE = FileSegmentFlags.EVBUF_FS_DISABLE_SENDFILE
EVBUF_FS_DISABLE_LOCKING = FileSegmentFlags.EVBUF_FS_DISABLE_LOCKING
BEV_EVENT_READING = BufferEventFlags.BEV_EVENT_READING
BEV_EVENT_WRITING = BufferEventFlags.BEV_EVENT_WRITING
BEV_EVENT_EOF = BufferEventFlags.BEV_EVENT_EOF
BEV_EVENT_ERROR = BufferEventFlags.BEV_EVENT_ERROR
BEV_EVENT_TIMEOUT = BufferEventFlags.BEV_EVENT_TIMEOUT
BEV_EVENT_CONNECTED = BufferEventFlags.BEV_EVENT_CONNECTED
BEV_OPT_CLOSE_ON_FREE = BufferEventOptions.BEV_OPT_CLOSE_ON_FREE
BEV_OPT_THREADSAFE = BufferEventOptions.BEV_OPT_THREADSAFE
BEV_OPT_DEFER_CALLBACKS = BufferEventOptions.BEV_OPT_DEFER_CALLBACKS
BEV_OPT_UNLOCK_CALLBACKS = BufferEventOptions.BEV_OPT_UNLOCK_CALLBACKS
BEV_TRIG_IGNORE_WATERMARKS = TriggerOptions.BEV_TRIG_IGNORE_WATERMARKS
BEV_TRIG_DEFER_CALLBACKS = TriggerOptions.BEV_TRIG_DEFER_CALLBACKS
BEV_NORMAL = FlushMode.BEV_NORMAL
BEV_FLUSH = FlushMode.BEV_FLUSH
BEV_FINISHED = FlushMode.BEV_FINISHED

BEV_OK = FilterResult.BEV_OK
BEV_NEED_MORE = FilterResult.BEV_NEED_MORE
BEV_ERROR = FilterResult.BEV_ERROR
LEV_OPT_LEAVE_SOCKETS_BLOCKING = ListenerOptions.LEV_OPT_LEAVE_SOCKETS_BLOCKING
LEV_OPT_CLOSE_ON_FREE = ListenerOptions.LEV_OPT_CLOSE_ON_FREE
LEV_OPT_CLOSE_ON_EXEC = ListenerOptions.LEV_OPT_CLOSE_ON_EXEC
LEV_OPT_REUSEABLE = ListenerOptions.LEV_OPT_REUSEABLE
LEV_OPT_THREADSAFE = ListenerOptions.LEV_OPT_THREADSAFE
LEV_OPT_DISABLED = ListenerOptions.LEV_OPT_DISABLED
LEV_OPT_DEFERRED_ACCEPT = ListenerOptions.LEV_OPT_DEFERRED_ACCEPT
LEV_OPT_REUSEABLE_PORT = ListenerOptions.LEV_OPT_REUSEABLE_PORT
LEV_OPT_BIND_IPV6ONLY = ListenerOptions.LEV_OPT_BIND_IPV6ONLY
EV_MONOT_PRECISE = MonotonicFlags.EV_MONOT_PRECISE
EV_MONOT_FALLBACK = MonotonicFlags.EV_MONOT_FALLBACK

# What callbacks are given, made once: an enum member for each value costs more than the callback.
EVENT_FLAGS = [EventFlags(value) for value in range(256)]
BUFFEREVENT_FLAGS = [BufferEventFlags(value) for value in range(256)]
