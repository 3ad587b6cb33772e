"""Tagged records: what goes over the wire, that libevent reads what we write and the other way
round, and that no bytes whatever do harm."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pylibevent import (
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_THREADSAFE,
    EV_READ,
    BufferEvent,
    ClosedError,
    EvBuffer,
    EventBase,
    LibeventError,
    ffi,
    lib,
    tag,
)
from pylibevent.tag import IncompleteTag, TagError

RunUntil = Callable[..., None]
Sockets = tuple[socket.socket, socket.socket]

SETTINGS = settings(deadline=None, database=None)
UINT32, UINT64 = 2**32 - 1, 2**64 - 1
MOST = 2**31 - 1  # bytes of payload

tags = st.integers(0, UINT32) | st.integers(0, 200)


def in_pieces(content: bytes) -> EvBuffer:
    """A buffer that has each byte in a piece of its own."""
    buf = EvBuffer()
    for byte in content:
        buf.add_reference(bytes([byte]))
    return buf


@pytest.fixture(params=[EvBuffer, in_pieces])
def made_of(request: pytest.FixtureRequest) -> Callable[[bytes], EvBuffer]:
    """made_of(content): a buffer, in one piece or many."""
    return request.param  # type: ignore[no-any-return]


# ---- numbers and tags by themselves ----

NUMBERS = [
    (0, "00"),
    (1, "01"),
    (0xF, "0f"),
    (0x10, "1010"),
    (0xFF, "1ff0"),
    (0xAF0, "20fa"),
    (0x1000, "300010"),
    (0xFFFF, "3ffff0"),
    (0x12345, "454321"),
    (0xBEF000, "5000feb0"),
    (0x7654321, "61234567"),
    (0xDEADBEEF, "7feebdaed0"),
    (0xFFFFFFFF, "7ffffffff0"),
]
BIG_NUMBERS = [
    (0x1_0000_0000, "8000000001"),
    (0xDEADBEEF0, "80feebdaed"),
    (0x0123_4567_89AB_CDEF, "efedcba987654321"),
    (0xFFFF_FFFF_FFFF_FFFF, "fffffffffffffffff0"),
]


@pytest.mark.parametrize(("number", "wire"), NUMBERS)
def test_a_number_of_32_bits(number: int, wire: str, made_of: Callable[[bytes], EvBuffer]) -> None:
    buf = EvBuffer()
    tag.encode_int(buf, number)
    assert bytes(buf).hex() == wire
    buf = made_of(bytes.fromhex(wire) + b"rest")
    assert tag.decode_int(buf) == number
    assert buf == b"rest"


@pytest.mark.parametrize(("number", "wire"), NUMBERS + BIG_NUMBERS)
def test_a_number_of_64_bits(number: int, wire: str, made_of: Callable[[bytes], EvBuffer]) -> None:
    buf = EvBuffer()
    tag.encode_int64(buf, number)
    assert bytes(buf).hex() == wire
    buf = made_of(bytes.fromhex(wire) + b"rest")
    assert tag.decode_int64(buf) == number
    assert buf == b"rest"


@pytest.mark.parametrize("bits", range(0, 64, 4))
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_numbers_around_each_length(bits: int, more: int) -> None:
    number = max(0, (1 << bits) + more)
    buf = EvBuffer()
    tag.encode_int64(buf, number)
    halves = max(1, (number.bit_length() + 3) // 4)
    assert len(buf) == halves // 2 + 1
    assert tag.decode_int64(buf) == number
    assert not buf


@pytest.mark.parametrize(("_", "wire"), BIG_NUMBERS)
def test_a_number_that_32_bits_do_not_hold_is_malformed(_: int, wire: str) -> None:
    buf = EvBuffer(bytes.fromhex(wire))
    with pytest.raises(TagError, match="evtag_decode_int: malformed"):
        tag.decode_int(buf)
    assert bytes(buf).hex() == wire


TAGS = [
    (0, "00"),
    (1, "01"),
    (0x7F, "7f"),
    (0x80, "8001"),
    (0x166, "e602"),
    (0x3FFF, "ff7f"),
    (0x4000, "808001"),
    (0x1F_FFFF, "ffff7f"),
    (0x20_0000, "80808001"),
    (0xFFF_FFFF, "ffffff7f"),
    (0x1000_0000, "8080808001"),
    (0xDEADBEEF, "effdb6f50d"),
    (0xFFFF_FFFF, "ffffffff0f"),
]


@pytest.mark.parametrize(("number", "wire"), TAGS)
def test_a_tag(number: int, wire: str, made_of: Callable[[bytes], EvBuffer]) -> None:
    buf = EvBuffer()
    tag.encode_tag(buf, number)
    assert bytes(buf).hex() == wire
    buf = made_of(bytes.fromhex(wire) + b"rest")
    assert tag.peek(buf) == tag.decode_tag(buf) == number
    assert buf == b"rest"


@pytest.mark.parametrize("wire", ["8080808080", "ffffffff10", "ffffffffff", "808080808001"])
def test_a_tag_of_more_than_32_bits_is_malformed(wire: str) -> None:
    buf = EvBuffer(bytes.fromhex(wire))
    for read in (tag.peek, tag.decode_tag, tag.peek_length, tag.consume):
        with pytest.raises(TagError, match="malformed"):
            read(buf)
    assert bytes(buf).hex() == wire


# ---- records ----


def test_looking_at_records_and_dropping_them() -> None:
    buf = EvBuffer()
    tag.marshal_int(buf, 30, 0)
    tag.marshal_string(buf, 40, "Hello world")
    assert tag.peek(buf) == 30
    assert (tag.peek_length(buf), tag.payload_length(buf)) == (3, 1)
    tag.consume(buf)
    assert tag.peek(buf) == 40
    assert (tag.peek_length(buf), tag.payload_length(buf)) == (13, 11)
    tag.consume(buf)
    assert not buf


def test_records_on_the_wire() -> None:
    buf = EvBuffer()
    tag.marshal(buf, 1, b"abc")
    tag.marshal(buf, 0x80, b"")
    tag.marshal_int(buf, 2, 0xAF0)
    tag.marshal_int64(buf, 3, 1 << 32)
    tag.marshal_string(buf, 4, "ä")
    tag.marshal_timeval(buf, 5, 1.5)
    tag.marshal_buffer(buf, 6, EvBuffer(b"x" * 20))
    assert bytes(buf) == (
        b"\x01\x03abc"
        b"\x80\x01\x00"
        b"\x02\x02\x20\xfa"
        b"\x03\x05\x80\x00\x00\x00\x01"
        b"\x04\x02\xc3\xa4"
        b"\x05\x04\x01\x40\x21\xa7"
        b"\x06\x14\x10" + b"x" * 20
    )


@SETTINGS
@given(tags, st.binary(max_size=300))
def test_bytes_come_back(number: int, payload: bytes) -> None:
    buf, out = EvBuffer(), EvBuffer(b"before ")
    for _ in range(3):
        tag.marshal(buf, number, payload)
    assert tag.unmarshal(buf, out) == number
    assert out == b"before " + payload
    assert tag.unmarshal_fixed(buf, number, len(payload)) == payload
    assert tag.unmarshal_header(buf) == (number, len(payload))
    assert buf == payload


@SETTINGS
@given(tags, st.integers(0, UINT64), st.integers(0, UINT32), st.text())
def test_numbers_and_texts_come_back(number: int, big: int, small: int, text: str) -> None:
    buf = EvBuffer()
    text = text.replace("\0", "")
    tag.marshal_int64(buf, number, big)
    tag.marshal_int(buf, number, small)
    tag.marshal_string(buf, number, text)
    assert tag.unmarshal_int64(buf, number) == big
    assert tag.unmarshal_int(buf, number) == small
    assert tag.unmarshal_string(buf, number) == text
    assert not buf


@SETTINGS
@given(st.integers(0, UINT32), st.integers(0, 999_999))
@example(UINT32, 999_999)
@example(1, 100_000)
def test_times_come_back_to_the_microsecond(seconds: int, micros: int) -> None:
    buf = EvBuffer()
    tag.marshal_timeval(buf, 0, timedelta(seconds=seconds, microseconds=micros))
    tag.marshal_timeval(buf, 0, seconds + micros / 1_000_000)
    assert tag.unmarshal_timeval(buf, 0) == seconds + micros / 1_000_000
    assert tag.unmarshal_timeval(buf, 0) == seconds + micros / 1_000_000


@pytest.mark.parametrize("n", [0, 1, 15, 16, 255, 256, 4085, 4094, 4096, 4097, 100_000])
def test_payloads_of_all_sizes(n: int) -> None:
    payload = bytes(i * 31 % 251 for i in range(n))
    buf, out = EvBuffer(b""), EvBuffer()
    tag.marshal(buf, 7, payload)
    tag.marshal_buffer(buf, 8, EvBuffer(payload))
    tag.marshal_string(buf, 9, "x" * n)
    assert tag.unmarshal(buf, out) == 7
    assert out == payload
    assert tag.unmarshal_fixed(buf, 8, n) == payload
    assert tag.unmarshal_string(buf, 9) == "x" * n
    assert not buf


def test_marshal_buffer_empties_the_other_buffer() -> None:
    buf, payload = EvBuffer(), EvBuffer(b"abc")
    tag.marshal_buffer(buf, 1, payload)
    assert not payload
    assert buf == b"\x01\x03abc"
    tag.marshal_buffer(buf, 2, payload)
    assert buf == b"\x01\x03abc\x02\x00"


def test_many_small_records_share_a_piece() -> None:
    buf = EvBuffer()
    for number in range(1000):
        tag.marshal_int(buf, 1, number)
    assert len(buf.peek()) < 20
    assert [tag.unmarshal_int(buf, 1) for _ in range(1000)] == list(range(1000))


def test_a_payload_may_go_on_after_its_number() -> None:
    """As libevent has it."""
    buf = EvBuffer(b"\x01\x03\x05ab" + b"\x02\x04\x01\x02cd" + b"rest")
    assert tag.unmarshal_int(buf, 1) == 5
    assert tag.unmarshal_timeval(buf, 2) == 1.000002
    assert buf == b"rest"


def test_bytes_that_are_no_text_come_with_the_error() -> None:
    buf = EvBuffer()
    tag.marshal(buf, 1, b"\xff\xfe")
    with pytest.raises(UnicodeDecodeError) as error:
        tag.unmarshal_string(buf, 1)
    assert error.value.object == b"\xff\xfe"
    assert not buf


def test_other_encodings() -> None:
    buf = EvBuffer()
    tag.marshal_string(buf, 1, "ä", "latin-1")
    assert buf == b"\x01\x01\xe4"
    assert tag.unmarshal_string(buf, 1, "latin-1") == "ä"


# ---- libevent and we understand each other ----


@SETTINGS
@given(st.integers(0, UINT32), st.integers(0, UINT32), st.integers(0, UINT64), st.binary())
def test_libevent_writes_the_same_bytes(number: int, small: int, big: int, payload: bytes) -> None:
    ours, theirs = EvBuffer(), EvBuffer()
    tag.encode_int(ours, small)
    tag.encode_int64(ours, big)
    tag.marshal_int(ours, number, small)
    tag.marshal_int64(ours, number, big)
    tag.marshal(ours, number, payload)
    tag.marshal_buffer(ours, number, EvBuffer(payload))
    tag.marshal_timeval(ours, number, timedelta(seconds=small, microseconds=5))
    ptr, other = theirs.ptr, EvBuffer(payload)
    lib.evtag_encode_int(ptr, small)
    lib.evtag_encode_int64(ptr, big)
    lib.evtag_marshal_int(ptr, number, small)
    lib.evtag_marshal_int64(ptr, number, big)
    lib.evtag_marshal(ptr, number, payload, len(payload))
    lib.evtag_marshal_buffer(ptr, number, other.ptr)
    lib.evtag_marshal_timeval(ptr, number, ffi.new("struct timeval *", (small, 5)))
    assert ours == theirs


def by_libevent(function: Any, c_type: str, *args: Any) -> Callable[[EvBuffer], tuple[int, Any]]:
    """What a reader of libevent's answers, and the number that it gives."""

    def read(buf: EvBuffer) -> tuple[int, Any]:
        out = ffi.new(c_type)
        rc = function(buf.ptr, *args, out)
        return rc, out[0]

    return read


def timeval(buf: EvBuffer) -> tuple[int, float]:
    out = ffi.new("struct timeval *")
    rc = lib.evtag_unmarshal_timeval(buf.ptr, 5, out)
    return rc, out.tv_sec + out.tv_usec / 1_000_000


def moved(buf: EvBuffer) -> tuple[int, bytes]:
    out = EvBuffer()
    return tag.unmarshal(buf, out), bytes(out)


def moved_by_libevent(buf: EvBuffer) -> tuple[int, Any]:
    out, number = EvBuffer(), ffi.new("ev_uint32_t *")
    rc = lib.evtag_unmarshal(buf.ptr, number, out.ptr)
    return rc, (number[0], bytes(out))


def header_by_libevent(buf: EvBuffer) -> tuple[int, Any]:
    number = ffi.new("ev_uint32_t *")
    rc = lib.evtag_unmarshal_header(buf.ptr, number)
    return rc, (number[0], rc)


def text_by_libevent(buf: EvBuffer) -> tuple[int, Any]:
    out, length = ffi.new("char **"), tag.payload_length(buf)
    rc = lib.evtag_unmarshal_string(buf.ptr, 5, out)
    text = ffi.unpack(out[0], length).decode("latin-1")
    lib.free(out[0])
    return rc, text


def fixed_by_libevent(buf: EvBuffer) -> tuple[int, Any]:
    out = ffi.new("char[4]")
    return lib.evtag_unmarshal_fixed(buf.ptr, 5, out, 4), ffi.unpack(out, 4)


U32, U64 = "ev_uint32_t *", "ev_uint64_t *"
# Each reader: how we read, and how libevent does.
READERS: dict[str, tuple[Callable[[EvBuffer], Any], Callable[[EvBuffer], tuple[int, Any]]]] = {
    "peek": (tag.peek, by_libevent(lib.evtag_peek, U32)),
    "peek_length": (
        lambda buf: tag.peek_length(buf) & UINT32,  # libevent's wraps
        by_libevent(lib.evtag_peek_length, U32),
    ),
    "payload_length": (tag.payload_length, by_libevent(lib.evtag_payload_length, U32)),
    "consume": (tag.consume, lambda buf: (lib.evtag_consume(buf.ptr), None)),
    "unmarshal_header": (tag.unmarshal_header, header_by_libevent),
    "unmarshal": (moved, moved_by_libevent),
    "unmarshal_int": (
        lambda buf: tag.unmarshal_int(buf, 5),
        by_libevent(lib.evtag_unmarshal_int, U32, 5),
    ),
    "unmarshal_int64": (
        lambda buf: tag.unmarshal_int64(buf, 5),
        by_libevent(lib.evtag_unmarshal_int64, U64, 5),
    ),
    "unmarshal_timeval": (lambda buf: tag.unmarshal_timeval(buf, 5), timeval),
    "unmarshal_fixed": (lambda buf: tag.unmarshal_fixed(buf, 5, 4), fixed_by_libevent),
    "unmarshal_string": (
        lambda buf: tag.unmarshal_string(buf, 5, "latin-1"),
        text_by_libevent,
    ),
}
LOOKING = {"peek", "peek_length", "payload_length"}
DECODERS: dict[str, Callable[[EvBuffer], Any]] = {
    "decode_int": tag.decode_int,
    "decode_int64": tag.decode_int64,
    "decode_tag": tag.decode_tag,
}
OURS = {name: ours for name, (ours, _) in READERS.items()} | DECODERS


@pytest.fixture(params=list(OURS))
def read(request: pytest.FixtureRequest) -> Callable[[EvBuffer], Any]:
    """Each function that reads."""
    return OURS[request.param]


# Random bytes seldom are a record: most of these begin like one.
beginnings = st.sampled_from(
    [b"", b"\x05", b"\x05\x04", b"\x05\x02", b"\x05\x1f", b"\x05\x7f", b"\x05\x70\xff", b"\x80\x01"]
)
anything = st.builds(bytes.__add__, beginnings, st.binary(max_size=40))


@pytest.mark.parametrize("name", READERS)
@settings(SETTINGS, max_examples=300)
@given(content=anything, pieces=st.booleans())
@example(content=b"\x05\x04abcd", pieces=True)
@example(content=b"\x05\x7f\xff\xff\xff\xf0", pieces=True)
@example(content=b"\x05\x04\x01\x02cd", pieces=False)
def test_any_bytes_are_read_as_libevent_does_or_not_at_all(
    name: str, content: bytes, pieces: bool
) -> None:
    ours, theirs = READERS[name]
    buf, reference = (in_pieces if pieces else EvBuffer)(content), EvBuffer(content)
    try:
        value = ours(buf)
    except TagError:
        assert buf == content
        return
    rc, expected = theirs(reference)
    assert rc >= 0
    assert value == expected
    assert buf == reference


@pytest.mark.parametrize("name", DECODERS)
@settings(SETTINGS, max_examples=300)
@given(content=anything)
def test_any_bytes_are_decoded_or_stay(name: str, content: bytes) -> None:
    buf = EvBuffer(content)
    try:
        assert 0 <= DECODERS[name](buf) <= UINT64
    except TagError:
        assert buf == content
    else:
        assert content.endswith(bytes(buf))
        assert len(content) - 9 <= len(buf) < len(content)


@SETTINGS
@given(content=anything, more=st.binary(max_size=40))
def test_what_is_incomplete_or_whole_does_not_become_malformed(content: bytes, more: bytes) -> None:
    """IncompleteTag promises that more bytes can help: a TagError that is none never goes away."""
    for read in OURS.values():
        try:
            read(EvBuffer(content))
        except IncompleteTag:
            continue
        except TagError:
            with pytest.raises(TagError) as error:
                read(EvBuffer(content + more))
            assert type(error.value) is TagError


# ---- what is not there, or not as it should be ----


@pytest.mark.parametrize("name", OURS)
def test_an_empty_buffer_has_no_record(name: str) -> None:
    with pytest.raises(IncompleteTag, match=f"evtag_{name}: the buffer ends"):
        OURS[name](EvBuffer())


@pytest.mark.parametrize("name", sorted(set(READERS) - LOOKING))
def test_each_part_of_a_record_is_incomplete(name: str) -> None:
    record = b"\x05\x04\x01\x02ab"
    for n in range(len(record)):
        buf = EvBuffer(record[:n])
        with pytest.raises(IncompleteTag):
            OURS[name](buf)
        assert buf == record[:n]
    OURS[name](EvBuffer(record))


@pytest.mark.parametrize(
    "length",
    [pytest.param("7000000080", id="2**31"), pytest.param("7ffffffff0", id="2**32-1")],
)
@pytest.mark.parametrize("name", sorted(set(READERS) - LOOKING))
def test_no_record_is_longer_than_an_int(name: str, length: str) -> None:
    buf = EvBuffer(b"\x05" + bytes.fromhex(length) + b"payload")
    assert tag.payload_length(buf) > MOST
    with pytest.raises(TagError, match="malformed") as error:
        OURS[name](buf)
    assert type(error.value) is TagError
    assert len(buf) == 13


def test_lengths_are_known_before_the_payload_is_there() -> None:
    buf = EvBuffer()
    tag.encode_tag(buf, 5)
    tag.encode_int(buf, UINT32)
    assert tag.payload_length(buf) == UINT32
    assert tag.peek_length(buf) == UINT32 + 6


def test_nothing_is_set_aside_for_a_length_that_is_not_there() -> None:
    buf = EvBuffer()
    tag.encode_tag(buf, 5)
    tag.encode_int(buf, MOST)
    content = bytes(buf)
    with pytest.raises(IncompleteTag):
        tag.unmarshal_string(buf, 5)
    with pytest.raises(IncompleteTag):
        tag.unmarshal_fixed(buf, 5, MOST)
    with pytest.raises(TagError):
        tag.unmarshal_fixed(buf, 5, 2**62)
    assert buf == content


@pytest.mark.parametrize(
    "take",
    [
        lambda buf: tag.unmarshal_int(buf, 6),
        lambda buf: tag.unmarshal_int64(buf, 6),
        lambda buf: tag.unmarshal_fixed(buf, 6, 1),
        lambda buf: tag.unmarshal_fixed(buf, 5, 2),
        lambda buf: tag.unmarshal_fixed(buf, 5, 0),
        lambda buf: tag.unmarshal_string(buf, 6),
        lambda buf: tag.unmarshal_timeval(buf, 6),
        lambda buf: tag.unmarshal_timeval(buf, 5),  # one number, not two
    ],
)
def test_another_record_than_asked_for_stays(take: Callable[[EvBuffer], Any]) -> None:
    buf = EvBuffer(b"\x05\x01\x07" + b"\x05\x01\x08")
    with pytest.raises(TagError, match="not of that tag or length"):
        take(buf)
    assert tag.unmarshal_int(buf, 5) == 7


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x10", id="half of a number"),
        pytest.param(b"\x7f\xff\xff\xff", id="all but the last byte"),
    ],
)
@pytest.mark.parametrize("name", ["unmarshal_int", "unmarshal_int64", "unmarshal_timeval"])
def test_a_number_does_not_go_on_after_its_payload(name: str, payload: bytes) -> None:
    content = b"\x05" + bytes([len(payload)]) + payload + b"\xf0 and what follows it"
    buf = EvBuffer(content)
    with pytest.raises(TagError, match="malformed"):
        OURS[name](buf)
    assert buf == content


def test_a_time_does_not_go_on_after_its_payload() -> None:
    buf = EvBuffer(b"\x05\x02\x01\x10\x10")
    with pytest.raises(TagError, match="malformed"):
        tag.unmarshal_timeval(buf, 5)
    assert len(buf) == 5


def test_a_tag_error_is_a_libevent_error_and_a_value_error() -> None:
    for kind in (LibeventError, ValueError, TagError):
        with pytest.raises(kind):
            tag.peek(EvBuffer())


# ---- arguments ----


@pytest.mark.parametrize("number", [-1, 2**32, 2**64])
def test_tags_and_numbers_have_32_bits(number: int) -> None:
    buf = EvBuffer(b"\x05\x01\x00")
    calls: list[Callable[[], Any]] = [
        lambda: tag.encode_tag(buf, number),
        lambda: tag.encode_int(buf, number),
        lambda: tag.marshal(buf, number, b""),
        lambda: tag.marshal_buffer(buf, number, EvBuffer()),
        lambda: tag.marshal_int(buf, number, 0),
        lambda: tag.marshal_int(buf, 0, number),
        lambda: tag.marshal_int64(buf, number, 0),
        lambda: tag.marshal_string(buf, number, ""),
        lambda: tag.marshal_timeval(buf, number, 0),
        lambda: tag.unmarshal_int(buf, number),
        lambda: tag.unmarshal_int64(buf, number),
        lambda: tag.unmarshal_fixed(buf, number, 1),
        lambda: tag.unmarshal_string(buf, number),
        lambda: tag.unmarshal_timeval(buf, number),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="unsigned number of 32 bits"):
            call()
    assert buf == b"\x05\x01\x00"


@pytest.mark.parametrize("number", [-1, 2**64])
def test_big_numbers_have_64_bits(number: int) -> None:
    buf = EvBuffer()
    with pytest.raises(ValueError, match="unsigned number of 64 bits"):
        tag.encode_int64(buf, number)
    with pytest.raises(ValueError, match="unsigned number of 64 bits"):
        tag.marshal_int64(buf, 0, number)
    assert not buf


@pytest.mark.parametrize(
    "seconds", [-1, -1e-9, 2**32, 4294967295.9999999, float("nan"), float("inf"), timedelta(-1)]
)
def test_times_that_the_format_does_not_hold(seconds: Any) -> None:
    buf = EvBuffer()
    with pytest.raises(ValueError, match="seconds must be"):
        tag.marshal_timeval(buf, 0, seconds)
    assert not buf


def test_a_string_has_no_nul() -> None:
    with pytest.raises(ValueError, match="NUL"):
        tag.marshal_string(EvBuffer(), 1, "a\0b")


TEXT: Any = "text"


@pytest.mark.parametrize(
    "call",
    [
        lambda: tag.marshal(EvBuffer(), "1", b""),  # type: ignore[arg-type]
        lambda: tag.marshal(EvBuffer(), 1.0, b""),  # type: ignore[arg-type]
        lambda: tag.marshal(EvBuffer(), 1, TEXT),
        lambda: tag.marshal(b"", 1, b""),  # type: ignore[arg-type]
        lambda: tag.marshal_buffer(EvBuffer(), 1, b""),  # type: ignore[arg-type]
        lambda: tag.marshal_string(EvBuffer(), 1, b"bytes"),  # type: ignore[arg-type]
        lambda: tag.marshal_int(EvBuffer(), 1, 1.5),  # type: ignore[arg-type]
        lambda: tag.marshal_timeval(EvBuffer(), 1, "1"),  # type: ignore[arg-type]
        lambda: tag.unmarshal(EvBuffer(), None),  # type: ignore[arg-type]
        lambda: tag.unmarshal(bytearray(), EvBuffer()),  # type: ignore[arg-type]
        lambda: tag.unmarshal_fixed(EvBuffer(), 1, "2"),  # type: ignore[arg-type]
        lambda: tag.peek(None),  # type: ignore[arg-type]
        lambda: tag.decode_int(3),  # type: ignore[arg-type]
    ],
)
def test_wrong_types(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        call()


def test_a_buffer_is_no_payload_of_its_own() -> None:
    buf = EvBuffer(b"\x05\x01\x00")
    with pytest.raises(ValueError, match="out of range"):
        tag.marshal_buffer(buf, 1, buf)
    with pytest.raises(ValueError, match="comes from"):
        tag.unmarshal(buf, buf)
    assert buf == b"\x05\x01\x00"


# ---- the buffer's guards ----


def test_closed_buffers(read: Callable[[EvBuffer], Any]) -> None:
    buf = EvBuffer(b"\x05\x04\x01\x02ab")
    buf.close()
    with pytest.raises(ClosedError):
        read(buf)


WRITERS: list[Callable[[EvBuffer], None]] = [
    lambda buf: tag.encode_int(buf, 1),
    lambda buf: tag.encode_int64(buf, 1),
    lambda buf: tag.encode_tag(buf, 1),
    lambda buf: tag.marshal(buf, 1, b"abc"),
    lambda buf: tag.marshal(buf, 1, b"abc" * 9000),
    lambda buf: tag.marshal_buffer(buf, 1, EvBuffer(b"abc")),
    lambda buf: tag.marshal_buffer(buf, 1, EvBuffer()),
    lambda buf: tag.marshal_int(buf, 1, 1),
    lambda buf: tag.marshal_int64(buf, 1, 1),
    lambda buf: tag.marshal_string(buf, 1, "abc"),
    lambda buf: tag.marshal_timeval(buf, 1, 1),
]


@pytest.fixture(params=range(len(WRITERS)))
def write(request: pytest.FixtureRequest) -> Callable[[EvBuffer], None]:
    """Each function that writes."""
    return WRITERS[int(request.param)]


def test_writing_to_a_closed_buffer(write: Callable[[EvBuffer], None]) -> None:
    buf = EvBuffer()
    buf.close()
    with pytest.raises(ClosedError):
        write(buf)


def test_writing_to_a_frozen_buffer_adds_nothing(write: Callable[[EvBuffer], None]) -> None:
    buf = EvBuffer(b"before")
    buf.freeze(False)
    with pytest.raises(LibeventError, match="evtag_"):
        write(buf)
    assert buf == b"before"


def test_a_record_is_one_change(write: Callable[[EvBuffer], None]) -> None:
    buf = EvBuffer(b"before")
    changes: list[tuple[int, int, int]] = []
    buf.add_cb(lambda _buf, *change: changes.append(change))
    write(buf)
    assert changes == [(6, len(buf) - 6, 0)]


@pytest.mark.parametrize("name", sorted(set(OURS) - LOOKING))
def test_reading_is_one_change(name: str) -> None:
    buf = EvBuffer(b"\x05\x04\x01\x02ab" + b"rest")
    changes: list[tuple[int, int, int]] = []
    buf.add_cb(lambda _buf, *change: changes.append(change))
    OURS[name](buf)
    assert changes == [(10, 0, 10 - len(buf))]


def test_a_memoryview_that_is_out_forbids_taking_and_allows_looking() -> None:
    content = b"\x05\x04\x01\x02ab"
    buf = EvBuffer(content)
    (view,) = buf.peek()
    for name, read in OURS.items():
        if name in LOOKING:
            assert read(buf) == READERS[name][1](EvBuffer(content))[1]
        else:
            with pytest.raises(BufferError):
                read(buf)
    for write in WRITERS:
        with pytest.raises(BufferError):
            write(buf)
    assert view == content
    view.release()
    tag.consume(buf)


@pytest.mark.parametrize("name", sorted(set(OURS) - LOOKING))
def test_a_frozen_buffer_keeps_what_it_has(name: str) -> None:
    buf = EvBuffer(b"\x05\x04\x01\x02ab")
    buf.freeze(True)
    with pytest.raises(LibeventError, match=f"evtag_{name}: failed"):
        OURS[name](buf)
    assert len(buf) == 6


def test_a_payload_that_cannot_go_on_stays() -> None:
    source, frozen, closed = EvBuffer(b"\x05\x01a"), EvBuffer(), EvBuffer()
    frozen.freeze(False)
    closed.close()
    with pytest.raises(LibeventError):
        tag.unmarshal(source, frozen)
    with pytest.raises(ClosedError):
        tag.unmarshal(source, closed)
    assert source == b"\x05\x01a"
    payload = EvBuffer(b"abc")
    with pytest.raises(LibeventError):
        tag.marshal_buffer(frozen, 1, payload)
    payload.freeze(True)
    with pytest.raises(LibeventError):
        tag.marshal_buffer(source, 1, payload)
    payload.unfreeze(True)
    assert payload == b"abc"
    assert source == b"\x05\x01a"


@pytest.mark.parametrize("name", sorted(set(OURS) - LOOKING))
def test_a_callback_may_close_the_buffer_that_is_read(name: str) -> None:
    buf = EvBuffer(b"\x05\x04\x01\x02ab" + b"rest")
    buf.add_cb(lambda buf, *_: buf.close())
    OURS[name](buf)
    assert buf.closed


def test_a_callback_may_close_the_buffer_that_is_written(
    write: Callable[[EvBuffer], None],
) -> None:
    buf = EvBuffer()
    buf.add_cb(lambda buf, *_: buf.close())
    write(buf)
    assert buf.closed


@pytest.mark.parametrize(("calls", "closes"), [(0, 1), (1, 0)])
def test_a_callback_of_one_buffer_may_close_the_other(calls: int, closes: int) -> None:
    buffers = EvBuffer(b"\x05\x01a" + b"\x05\x01b"), EvBuffer()
    buffers[calls].add_cb(lambda *_: buffers[closes].close())
    assert tag.unmarshal(*buffers) == 5
    assert buffers[closes].closed
    assert buffers[calls] == (b"\x05\x01b", b"a")[calls]


def test_an_exception_of_a_callback_comes_out() -> None:
    buf = EvBuffer(b"\x05\x01a")
    buf.add_cb(lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        tag.consume(buf)
    assert not buf
    with pytest.raises(ZeroDivisionError):
        tag.marshal_int(buf, 1, 2)
    assert buf == b"\x01\x01\x02"


def test_memory_that_was_lent_is_given_back() -> None:
    payload = bytearray(b"x" * 10000)
    buf, out = EvBuffer(), EvBuffer()
    lent = EvBuffer()
    lent.add_reference(payload)
    tag.marshal_buffer(buf, 1, lent)
    assert tag.unmarshal(buf, out) == 1
    with pytest.raises(BufferError):
        payload.append(0)
    assert out.remove() == payload
    payload.append(0)


# ---- buffers of bufferevents ----


@pytest.mark.parametrize("options", [0, BEV_OPT_THREADSAFE])
def test_records_over_a_socket(
    base: EventBase, sockets: Sockets, run_until: RunUntil, options: int
) -> None:
    a, b = (BufferEvent.socket(base, sock, BEV_OPT_CLOSE_ON_FREE | options) for sock in sockets)
    got, payload = [], EvBuffer()

    def read(bev: BufferEvent) -> None:
        while True:
            try:
                if tag.peek(bev.input) == 1:
                    got.append(tag.unmarshal_int(bev.input, 1))
                else:
                    tag.unmarshal(bev.input, payload)
            except IncompleteTag:
                break

    b.setcb(read)
    b.enable(EV_READ)
    tag.marshal_int(a.output, 1, 1000)
    tag.marshal(a.output, 2, b"x" * 100_000)
    tag.marshal_buffer(a.output, 2, EvBuffer(b"y" * 100_000))
    tag.marshal_int(a.output, 1, 2000)
    run_until(lambda: len(got) == 2)
    assert got == [1000, 2000]
    assert payload == b"x" * 100_000 + b"y" * 100_000
    a.close()
    with pytest.raises(ClosedError):
        tag.marshal_int(a.output, 1, 1)


@pytest.mark.parametrize("options", [0, BEV_OPT_THREADSAFE])
def test_from_one_bufferevent_to_another(
    base: EventBase, sockets: Sockets, run_until: RunUntil, options: int
) -> None:
    a = BufferEvent.socket(base, sockets[0], BEV_OPT_CLOSE_ON_FREE | options)
    b, c = BufferEvent.pair(base, options)
    seen: list[bytes] = []

    def pass_on(bev: BufferEvent) -> None:
        assert tag.unmarshal(bev.input, b.output) == 5

    a.setcb(pass_on)
    a.enable(EV_READ)
    c.setcb(lambda bev: seen.append(bev.read()))
    c.enable(EV_READ)
    sockets[1].send(b"\x05\x03abc")
    run_until(lambda: seen)
    assert seen == [b"abc"]


def test_a_file_that_goes_out_by_sendfile_is_no_record(
    base: EventBase, sockets: Sockets, read: Callable[[EvBuffer], Any]
) -> None:
    bev = BufferEvent.socket(base, sockets[0])
    bev.disable(2)
    with tempfile.TemporaryFile() as file:
        file.write(b"\x05\x04\x01\x02ab")
        file.flush()
        bev.output.add_file(file)
    with pytest.raises(BufferError, match="sendfile"):
        read(bev.output)
