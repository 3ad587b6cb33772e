"""event2/bufferevent.h: TokenBucketConfig and RateLimitGroup, which limit bytes in a tick."""

from __future__ import annotations

import operator
from typing import Any

from ._args import Seconds, pointer, seconds
from ._handle import Handle, behind, expose
from ._libevent import ffi, lib
from .errors import CLOSED, NONE, UNABLE, LibeventError, fail
from .event import EventBase

_MOST = int(lib.EV_RATE_LIMIT_MAX)
_MOST_MSEC = 0x7FFFFFFF


class TokenBucketConfig(Handle):
    """How many bytes a bufferevent or a group may read and write (struct ev_token_bucket_cfg).

    It cannot be changed, and may be used for any number of them; they keep what they use.
    """

    __slots__ = ("_tick", "_values")

    _tick: float
    _values: tuple[int | None, ...]

    def __init__(
        self,
        read_rate: int | None = None,
        read_burst: int | None = None,
        write_rate: int | None = None,
        write_burst: int | None = None,
        tick: Seconds | None = None,
    ) -> None:
        """Wraps ev_token_bucket_cfg_new.

        A rate is the number of bytes that each tick adds, a burst how many may add up, at least
        the rate; None: no limit. A tick is in seconds, of which libevent counts milliseconds (less
        than one is a ValueError); None: one second. It moves no more than 2**31 - 1 bytes a tick.
        """
        self._first_init()
        values = read_rate, read_burst, write_rate, write_burst
        r_rate, r_burst, w_rate, w_burst = (_rate(value) for value in values)
        if r_burst < r_rate or w_burst < w_rate:
            name = "read" if r_burst < r_rate else "write"
            raise ValueError(f"{name}_burst must not be less than {name}_rate")
        msec = int(round((1.0 if tick is None else seconds(tick)) * 1000, 3))
        if not 1 <= msec <= _MOST_MSEC:
            raise ValueError(f"tick must be from 0.001 to {_MOST_MSEC // 1000} s, not {tick!r}")
        new = "ev_token_bucket_cfg_new"
        self._make(new, lib.pyle_limit_new, r_rate, r_burst, w_rate, w_burst, msec)
        self._values = values
        self._tick = msec / 1000
        expose(self.ptr, self)

    @classmethod
    def from_ptr(cls, ptr: Any) -> TokenBucketConfig:
        """The TokenBucketConfig of a struct ev_token_bucket_cfg *: the one that it belongs to, or a
        new one that borrows it from a C library.

        A borrowed one has to outlive all that uses it. What is in it libevent does not tell: its
        attributes raise LibeventError.
        """
        found = pointer(ptr, "ev_token_bucket_cfg")
        owner = behind(found)
        if isinstance(owner, TokenBucketConfig) and owner.ptr == found:
            return owner
        self = cls.__new__(cls)
        self._make("ev_token_bucket_cfg", lib.pyle_limit_borrow, found)
        self._values = ()
        self._tick = 0.0
        return self

    @property
    def ptr(self) -> Any:
        """The struct ev_token_bucket_cfg *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_limit_ptr(self._ptr)

    @property
    def closed(self) -> bool:
        """Always false: it is freed with the last thing that uses it."""
        return False

    def close(self) -> None:
        """Does nothing: it is freed (ev_token_bucket_cfg_free) with the last thing that uses it."""

    def _value(self, i: int) -> int | None:
        if not self._values:
            raise LibeventError("a struct ev_token_bucket_cfg does not tell what is in it")
        return self._values[i]

    @property
    def read_rate(self) -> int | None:
        """Bytes to read that each tick adds; None: no limit (ev_token_bucket_cfg_new)."""
        return self._value(0)

    @property
    def read_burst(self) -> int | None:
        """How many of them may add up; None: no limit (ev_token_bucket_cfg_new)."""
        return self._value(1)

    @property
    def write_rate(self) -> int | None:
        """Bytes to write that each tick adds; None: no limit (ev_token_bucket_cfg_new)."""
        return self._value(2)

    @property
    def write_burst(self) -> int | None:
        """How many of them may add up; None: no limit (ev_token_bucket_cfg_new)."""
        return self._value(3)

    @property
    def tick(self) -> float:
        """The seconds of a tick, in whole milliseconds (ev_token_bucket_cfg_new)."""
        self._value(0)
        return self._tick

    def _describe(self) -> str:
        if not self._values:
            return "borrowed"
        return "read={}/{} write={}/{} tick={}".format(*self._values, self._tick)


class RateLimitGroup(Handle):
    """A limit that bufferevents share (struct bufferevent_rate_limit_group).

    They join by `BufferEvent.add_to_rate_limit_group` and leave it when they close. It lives while
    it has a name or members, and while it does its timer keeps the loop going, as in C. Its
    methods belong to the loop's thread: RuntimeError from another one while the loop runs.
    """

    __slots__ = ("_base",)

    def __init__(self, base: EventBase, cfg: TokenBucketConfig) -> None:
        """Wraps bufferevent_rate_limit_group_new. The group starts with a tick's bytes."""
        self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        limit = _config(cfg)
        ptr = self._start(base)
        self._check(lib.pyle_group_open(ptr, limit), "bufferevent_rate_limit_group_new")
        expose(lib.pyle_group_ptr(ptr), self)

    @classmethod
    def from_ptr(cls, ptr: Any, base: EventBase | None = None) -> RateLimitGroup:
        """The RateLimitGroup of a struct bufferevent_rate_limit_group *: the one that it belongs
        to, or a new one that borrows it from a C library; then `base` has to be the base that the
        library has made it with, which libevent does not tell.

        A borrowed one is never freed: `close()` only has members leave that have joined it here,
        and has to come before C frees it. C alone sets its configuration.
        """
        found = pointer(ptr, "bufferevent_rate_limit_group")
        owner = behind(found)
        if isinstance(owner, RateLimitGroup) and lib.pyle_group_ptr(owner._ptr) == found:
            return owner
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be the group's EventBase, not {type(base).__name__}")
        self = cls.__new__(cls)
        rc = lib.pyle_group_borrow(self._start(base), found)
        self._check(rc, "bufferevent_rate_limit_group")
        expose(found, self)
        return self

    def _start(self, base: EventBase) -> Any:
        self._base = base
        new = "bufferevent_rate_limit_group_new"
        return self._make(new, lib.pyle_group_new, base._ptr)

    @property
    def ptr(self) -> Any:
        """The struct bufferevent_rate_limit_group *, for ffi/lib and other C code; it stays ours
        to free. What is put into it there has to leave it there, before it is closed."""
        return lib.pyle_group_ptr(self._ptr) or fail(CLOSED, "bufferevent_rate_limit_group")

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_group_ptr(self._ptr)

    @property
    def base(self) -> EventBase:
        """The base it belongs to (bufferevent_rate_limit_group_new)."""
        return self._base

    def close(self) -> None:
        """Frees it; its members go on without it (bufferevent_rate_limit_group_free). May be
        called twice, and in their callbacks."""
        self._check(lib.pyle_group_close(self._ptr), "bufferevent_rate_limit_group_free")

    def set_cfg(self, cfg: TokenBucketConfig) -> None:
        """Sets other rates and bursts (bufferevent_rate_limit_group_set_cfg). The tick has to be
        the same, else ValueError: libevent would mistake one's count of ticks for the other's."""
        rc = lib.pyle_group_set_cfg(self._ptr, _config(cfg))
        self._check(rc, "bufferevent_rate_limit_group_set_cfg")

    def set_min_share(self, n: int) -> None:
        """Sets the bytes that a member may move, however many share: 64 at first, and never more
        than a rate (bufferevent_rate_limit_group_set_min_share). At least 1."""
        n = operator.index(n)
        if not 1 <= n <= _MOST:
            raise ValueError(f"min_share must be from 1 to EV_RATE_LIMIT_MAX, not {n!r}")
        rc = lib.pyle_group_set_min_share(self._ptr, n)
        self._check(rc, "bufferevent_rate_limit_group_set_min_share")

    def _limit(self, write: int, function: str) -> int:
        out = ffi.new("long long *")
        self._check(lib.pyle_group_limit(self._ptr, write, out), function)
        return int(out[0])

    @property
    def read_limit(self) -> int:
        """The bytes left to read, below 0 if the group is in debt
        (bufferevent_rate_limit_group_get_read_limit)."""
        return self._limit(0, "bufferevent_rate_limit_group_get_read_limit")

    @property
    def write_limit(self) -> int:
        """The same for writing (bufferevent_rate_limit_group_get_write_limit)."""
        return self._limit(1, "bufferevent_rate_limit_group_get_write_limit")

    def decrement_read_limit(self, n: int) -> None:
        """Takes n bytes off the limit, or gives -n back, up to the burst, for what was read by
        other means (bufferevent_rate_limit_group_decrement_read)."""
        rc = lib.pyle_group_decrement(self._ptr, 0, _amount(n))
        self._check(rc, "bufferevent_rate_limit_group_decrement_read")

    def decrement_write_limit(self, n: int) -> None:
        """The same for writing (bufferevent_rate_limit_group_decrement_write)."""
        rc = lib.pyle_group_decrement(self._ptr, 1, _amount(n))
        self._check(rc, "bufferevent_rate_limit_group_decrement_write")

    def get_totals(self) -> tuple[int, int]:
        """The bytes that members have (read, written) since the start, or since reset_totals()
        (bufferevent_rate_limit_group_get_totals)."""
        out = ffi.new("unsigned long long[2]")
        rc = lib.pyle_group_get_totals(self._ptr, out)
        self._check(rc, "bufferevent_rate_limit_group_get_totals")
        return out[0], out[1]

    def reset_totals(self) -> None:
        """Counts again from 0 (bufferevent_rate_limit_group_reset_totals)."""
        rc = lib.pyle_group_reset_totals(self._ptr)
        self._check(rc, "bufferevent_rate_limit_group_reset_totals")


def _rate(value: int | None) -> int:
    if value is None:
        return _MOST
    number = operator.index(value)
    if not 1 <= number <= _MOST:
        raise ValueError(f"rates and bursts are from 1 to EV_RATE_LIMIT_MAX bytes, not {value!r}")
    return number


def _amount(n: int) -> int:
    number = operator.index(n)
    if not -_MOST <= number <= _MOST:
        raise ValueError(f"out of range: {n!r}")
    return number


def _config(cfg: TokenBucketConfig) -> Any:
    if not isinstance(cfg, TokenBucketConfig):
        raise TypeError(f"cfg must be a TokenBucketConfig, not {type(cfg).__name__}")
    return cfg._ptr


def _set_or_fail(rc: int, function: str) -> None:
    """What became of a bufferevent's limit."""
    if rc == UNABLE:
        raise ValueError(f"{function}: only a socket's traffic is limited")
    if rc == NONE:
        raise LibeventError(f"{function}: it has no rate limit")
    if rc < 0:
        fail(rc, function)
