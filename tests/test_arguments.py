"""Numbers that are not what they say: what is checked is what C gets."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pylibevent import (
    EV_READ,
    EV_TIMEOUT,
    BufferEvent,
    BufferPosition,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    FileSegment,
    Listener,
    RateLimitGroup,
    Signal,
    Timer,
    TokenBucketConfig,
    bufferevent,
    event,
    listener,
    ratelimit,
    tag,
    util,
)
from pylibevent import buffer as buffer_module
from pylibevent import lib as real_lib


class Lying(int):
    """An int that says of itself whatever passes a check."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __eq__ = __lt__

    def __hash__(self) -> int:
        return 0

    def __and__(self, other: int) -> int:
        return 0

    __rand__ = __and__

    def __or__(self, other: int) -> int:
        return 0x7FFF

    __ror__ = __or__

    def __index__(self) -> int:
        return 1

    __int__ = __index__


class TwoFaced:
    """Not an int, and another number for the check than for C."""

    def __init__(self, number: int, other: int) -> None:
        self.number = number
        self.other = other

    def __index__(self) -> int:
        return self.number

    def __int__(self) -> int:
        return self.other


class Things:
    """One of each, for a call to be made on."""

    def __init__(self, base: EventBase) -> None:
        self.base = base
        self.buf = EvBuffer(b"x" * 100)
        self.bev = BufferEvent.socket(base)
        self.pair = BufferEvent.pair(base)[0]
        self.event = Event(base, -1, 0, print)
        self.cfg = TokenBucketConfig(10, 10, 10, 10)
        self.bev.set_rate_limit(self.cfg)
        self.group = RateLimitGroup(base, self.cfg)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(b"y" * 100)
        self.file.flush()
        self.cb = self.buf.add_cb(lambda *args: None)


Call = Callable[[Things, Any], object]


def commit(things: Things, n: int) -> None:
    things.buf.reserve_space(8)
    things.buf.commit_space(n)


def unmarshal_fixed(things: Things, n: int) -> None:
    buf = EvBuffer()
    tag.marshal(buf, 1, b"abc")
    tag.unmarshal_fixed(buf, 1, n)


def socketpair(things: Things, family: int) -> None:
    for sock in util.socketpair(family):
        sock.close()


SIZES: dict[str, Call] = {
    "remove": lambda t, n: t.buf.remove(n),
    "drain": lambda t, n: t.buf.drain(n),
    "copyout": lambda t, n: t.buf.copyout(n),
    "copyout_from": lambda t, n: t.buf.copyout_from(n, 1),
    "expand": lambda t, n: t.buf.expand(n),
    "reserve_space": lambda t, n: t.buf.reserve_space(n),
    "reserve_space n_vecs": lambda t, n: t.buf.reserve_space(1, n),
    "commit_space": commit,
    "pullup": lambda t, n: t.buf.pullup(n),
    "peek": lambda t, n: t.buf.peek(n),
    "peek start": lambda t, n: t.buf.peek(1, n),
    "search start": lambda t, n: t.buf.search(b"x", n),
    "search end": lambda t, n: t.buf.search(b"x", 0, n),
    "search_eol": lambda t, n: t.buf.search_eol(n),
    "ptr_set": lambda t, n: t.buf.ptr_set(n),
    "a position": lambda t, n: t.buf.copyout_from(BufferPosition(n), 1),
    "remove_buffer": lambda t, n: t.buf.remove_buffer(EvBuffer(), n),
    "readln": lambda t, n: EvBuffer(b"\n").readln(max_length=n),
    "readlines": lambda t, n: EvBuffer(b"\n").readlines(max_length=n),
    "add_file offset": lambda t, n: t.buf.add_file(t.file, n),
    "add_file length": lambda t, n: t.buf.add_file(t.file, 0, n),
    "FileSegment offset": lambda t, n: FileSegment(t.file, n),
    "FileSegment length": lambda t, n: FileSegment(t.file, 0, n),
    "add_file_segment": lambda t, n: t.buf.add_file_segment(FileSegment(t.file), 0, n),
    "setwatermark": lambda t, n: t.bev.setwatermark(EV_READ, 0, n),
    "ascii_strncasecmp": lambda t, n: util.ascii_strncasecmp("ab", "ac", n),
    "secure_rng_get_bytes": lambda t, n: util.secure_rng_get_bytes(n),
    "unmarshal_fixed": unmarshal_fixed,
    "rate": lambda t, n: TokenBucketConfig(n),
    "min_share": lambda t, n: t.group.set_min_share(n),
    "decrement_read_limit": lambda t, n: t.bev.decrement_read_limit(n),
    "group.decrement_read_limit": lambda t, n: t.group.decrement_read_limit(n),
    "max_single_read": lambda t, n: setattr(t.bev, "max_single_read", n),
}
NUMBERS: dict[str, Call] = {
    "fileno": lambda t, n: Event(t.base, n, EV_READ, print),
    "Signal": lambda t, n: Signal(t.base, n, print),
    "what": lambda t, n: Event(t.base, 0, n, print),
    "active": lambda t, n: t.event.active(n),
    "pending": lambda t, n: t.event.pending(n),
    "event.priority": lambda t, n: setattr(t.event, "priority", n),
    "bev.priority": lambda t, n: setattr(t.bev, "priority", n),
    "loop": lambda t, n: t.base.loop(n),
    "priority_init": lambda t, n: EventBase.priority_init(t.base, n),
    "num_events": lambda t, n: t.base.num_events(n),
    "max_events": lambda t, n: t.base.max_events(n),
    "active_by_fd": lambda t, n: t.base.active_by_fd(n, EV_READ),
    "active_by_signal": lambda t, n: t.base.active_by_signal(n),
    "once": lambda t, n: t.base.once(-1, n, print, timeout=9),
    "set_flag": lambda t, n: EventConfig().set_flag(n),
    "require_features": lambda t, n: EventConfig().require_features(n),
    "set_num_cpus_hint": lambda t, n: EventConfig().set_num_cpus_hint(n),
    "max_callbacks": lambda t, n: EventConfig().set_max_dispatch_interval(1, n),
    "enable_debug_logging": lambda t, n: event.enable_debug_logging(n),
    "socket options": lambda t, n: BufferEvent.socket(t.base, options=n),
    "pair options": lambda t, n: BufferEvent.pair(t.base, n),
    "filter options": lambda t, n: BufferEvent.filter(t.pair, options=n),
    "enable": lambda t, n: t.bev.enable(n),
    "flush": lambda t, n: t.pair.flush(n),
    "flush mode": lambda t, n: t.pair.flush(EV_READ, n),
    "trigger": lambda t, n: t.bev.trigger(n),
    "trigger options": lambda t, n: t.bev.trigger(EV_READ, n),
    "trigger_event": lambda t, n: t.bev.trigger_event(n),
    "getwatermark": lambda t, n: t.bev.getwatermark(n),
    "eol of readln": lambda t, n: t.buf.readln(n),
    "eol of readlines": lambda t, n: t.buf.readlines(n),
    "eol of search_eol": lambda t, n: t.buf.search_eol(0, n),
    "how of ptr_set": lambda t, n: t.buf.ptr_set(0, n),
    "set_flags": lambda t, n: t.buf.set_flags(n),
    "cb.set_flags": lambda t, n: t.cb.set_flags(n),
    "FileSegment flags": lambda t, n: FileSegment(t.file, flags=n),
    "backlog": lambda t, n: Listener.bind(t.base, print, ("127.0.0.1", 0), backlog=n),
    "listener flags": lambda t, n: Listener.bind(t.base, print, ("127.0.0.1", 0), flags=n),
    "connect port": lambda t, n: t.bev.connect(("127.0.0.1", n)),
    "connect flowinfo": lambda t, n: t.bev.connect(("::1", 9, n, 0)),
    "connect scope": lambda t, n: t.bev.connect(("::1", 9, 0, n)),
    "connect family": lambda t, n: t.bev.connect(("127.0.0.1", 9), n),
    "connect_hostname port": lambda t, n: t.bev.connect_hostname("localhost", n),
    "connect_hostname family": lambda t, n: t.bev.connect_hostname("localhost", 9, n),
    "tag": lambda t, n: tag.encode_tag(t.buf, n),
    "encode_int": lambda t, n: tag.encode_int(t.buf, n),
    "encode_int64": lambda t, n: tag.encode_int64(t.buf, n),
    "strtoll": lambda t, n: util.strtoll("12", n),
    "socketpair": socketpair,
    "inet_ntop": lambda t, n: util.inet_ntop(n, b"1234"),
    "sockaddr_cmp": lambda t, n: util.sockaddr_cmp(("::1", 1, 0, n), ("::1", 1)),
    "getaddrinfo": lambda t, n: util.getaddrinfo("127.0.0.1", 1, flags=n),
    "gai_strerror": lambda t, n: util.gai_strerror(n),
    "socket_error_to_string": lambda t, n: util.socket_error_to_string(n),
    "MonotonicTimer": lambda t, n: util.MonotonicTimer(n),
    "secure_rng": lambda t, n: util.secure_rng_get_bytes(n),
}
TIMES: dict[str, Call] = {
    "add": lambda t, n: Timer(t.base, print).add(n),
    "once": lambda t, n: t.base.once(-1, EV_TIMEOUT, print, timeout=n),
    "loopexit": lambda t, n: t.base.loopexit(n),
    "set_timeouts": lambda t, n: t.bev.set_timeouts(n, n),
    "init_common_timeout": lambda t, n: t.base.init_common_timeout(n),
    "max_dispatch_interval": lambda t, n: EventConfig().set_max_dispatch_interval(n),
    "tick": lambda t, n: TokenBucketConfig(tick=n),
    "marshal_timeval": lambda t, n: tag.marshal_timeval(t.buf, 1, n),
}
ALL = {**SIZES, **NUMBERS}


@pytest.fixture
def things(base: EventBase) -> Iterator[Things]:
    things = Things(base)
    yield things
    things.buf.close()
    things.file.close()
    event.enable_debug_logging(0)


@pytest.mark.parametrize("call", ALL.values(), ids=ALL.keys())
def test_an_int_that_says_it_is_in_range_is_refused(things: Things, call: Call) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call(things, Lying(1 << 70))


@pytest.mark.parametrize("call", ALL.values(), ids=ALL.keys())
def test_another_number_for_c_than_for_the_check_is_never_asked_for(
    monkeypatch: pytest.MonkeyPatch, things: Things, call: Call
) -> None:
    def outcome(number: object) -> object:
        try:
            call(things, number)
        except Exception as error:
            return type(error)
        return None

    class Spy:
        def __getattr__(self, name: str) -> Any:
            found = getattr(real_lib, name)
            if not callable(found):
                return found

            def spied(*args: Any) -> Any:
                assert not any(isinstance(arg, (Lying, TwoFaced)) for arg in args), name
                return found(*args)

            return spied

    for module in (buffer_module, bufferevent, event, listener, ratelimit, tag, util):
        monkeypatch.setattr(module, "lib", Spy())
    for number in (Lying(2), TwoFaced(2, 1 << 40)):
        assert outcome(number) is not AssertionError


class LyingFloat(float):
    """A float that says it is in range, and is another one for C."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__

    def __float__(self) -> float:
        return float("nan")

    def __mul__(self, other: float) -> float:
        return float("nan")


class LyingDelta(timedelta):
    def total_seconds(self) -> float:
        return float("nan")


@pytest.mark.parametrize("number", [LyingFloat(-1), LyingFloat("nan"), Lying(-1), LyingDelta(-1)])
@pytest.mark.parametrize("call", TIMES.values(), ids=TIMES.keys())
def test_a_time_that_says_it_is_in_range_is_refused(
    things: Things, call: Call, number: Any
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call(things, number)


def test_no_more_bytes_come_out_than_there_are() -> None:
    assert EvBuffer(b"x" * 100).remove(Lying(1 << 20)) == b"x" * 100


def test_random_bytes_are_as_many_as_there_is_room_for() -> None:
    number: Any = TwoFaced(10, 1 << 20)
    assert len(util.secure_rng_get_bytes(number)) == 10


def test_no_more_pieces_are_reserved_than_there_is_room_for() -> None:
    n_vecs: Any = TwoFaced(1, 1000)
    assert len(EvBuffer(b"x" * 950).reserve_space(5000, n_vecs)) == 1


@pytest.mark.parametrize(
    "address",
    [
        ("::1", 9, 1 << 40, 0),
        ("::1", 9, 1 << 20, 0),
        ("::1", 9, -1, 0),
        ("::1", 9, 0, 1 << 40),
        ("::1", 9, 0, -1),
        ("::1", 1 << 40),
    ],
)
def test_a_part_of_an_address_that_is_out_of_range_is_a_value_error(
    base: EventBase, address: Any
) -> None:
    with pytest.raises(ValueError, match="must be from 0 to"):
        BufferEvent.socket(base).connect(address)
    with pytest.raises(ValueError, match="must be from 0 to"):
        Listener.bind(base, print, address)


@pytest.mark.parametrize("address", [("::1", 9, "0", 0), ("::1", 9, 0, 0.0), ("::1", None)])
def test_a_part_of_an_address_of_a_wrong_type_is_a_type_error(
    base: EventBase, address: Any
) -> None:
    with pytest.raises(TypeError, match="must be an int"):
        BufferEvent.socket(base).connect(address)


def test_a_family_that_is_out_of_range_is_a_value_error(base: EventBase) -> None:
    with pytest.raises(ValueError, match="family"):
        BufferEvent.socket(base).connect(("127.0.0.1", 9), 1 << 40)


def test_the_length_of_a_path_is_its_own(base: EventBase) -> None:
    class LongPath(bytes):
        def __len__(self) -> int:
            return 100

    bev = BufferEvent.socket(base)
    with pytest.raises(FileNotFoundError):
        bev.connect(LongPath(b"/nowhere"))


def test_a_bufferevent_takes_the_options_that_were_checked(base: EventBase) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        bev = BufferEvent.socket(base, ours, Lying(0))
        bev.close()
        assert theirs.recv(1) == b""
