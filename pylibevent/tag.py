"""event2/tag.h: records of a tag, a length and a payload, written to an EvBuffer and read from it.

A record goes into the buffer whole or not at all, and comes out the same way: what raises removes
nothing, unless it is a callback of the buffer's that raised. TagError: the bytes at the front of
the buffer are malformed, or not what was asked for. IncompleteTag: they may become that, once more
bytes have come; `peek_length` tells how many there have to be, so that a peer that announces too
much can be refused in time. No record has more than 2**31 - 1 bytes of payload.
"""

from __future__ import annotations

import operator
from datetime import timedelta
from typing import Any, NoReturn

from ._args import Seconds, data, real, size
from ._libevent import ffi, lib
from .buffer import Bytes, EvBuffer, _new_block, _ptr, _unpack
from .errors import NONE, RANGE, SMALL, LibeventError, fail

_MAX_PAYLOAD = 0x7FFFFFFF
_MICROSECOND = timedelta(microseconds=1)


class TagError(LibeventError, ValueError):
    """The bytes in the buffer are malformed, or not of that tag or length. None was removed."""


class IncompleteTag(TagError):
    """The buffer ends before the record does. No byte was removed."""


def _failed(rc: int, function: str) -> NoReturn:
    if rc == RANGE:
        raise TagError(f"{function}: malformed, or not of that tag or length")
    if rc == NONE:
        raise IncompleteTag(f"{function}: the buffer ends before the record does")
    fail(rc, function)


def _number(value: int, bits: int, name: str) -> int:
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} must be an unsigned number of {bits} bits, not {value!r}")
    return number


def _tag(tag: int) -> int:
    return _number(tag, 32, "tag")


# ---- writing ----


def _encode(
    buf: EvBuffer, what: int, tag: int, number: int, function: str, micros: int = 0
) -> None:
    rc = lib.pyle_tag_encode(_ptr(buf), what, tag, number, micros)
    if rc < 0:
        fail(rc, function)


def marshal(buf: EvBuffer, tag: int, data_: Bytes) -> None:
    """Adds a record with these bytes to the end (evtag_marshal)."""
    source = data(data_)
    if len(source) > _MAX_PAYLOAD:
        raise ValueError(f"more than {_MAX_PAYLOAD} bytes")
    rc = lib.pyle_tag_marshal(_ptr(buf), _tag(tag), source, len(source))
    if rc < 0:
        fail(rc, "evtag_marshal")


def marshal_buffer(buf: EvBuffer, tag: int, payload: EvBuffer) -> None:
    """Adds a record with all of another buffer, which is moved (evtag_marshal_buffer).

    ValueError if it is the same buffer or holds more than 2**31 - 1 bytes.
    """
    rc = lib.pyle_tag_marshal_buffer(_ptr(buf), _tag(tag), _ptr(payload))
    if rc < 0:
        fail(rc, "evtag_marshal_buffer")


def marshal_string(buf: EvBuffer, tag: int, text: str, encoding: str = "utf-8") -> None:
    """Adds a record with a text (evtag_marshal_string). ValueError if there is a NUL in it, which
    ends a C string."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    if "\0" in text:
        raise ValueError("NUL in a string")
    marshal(buf, tag, text.encode(encoding))


def marshal_int(buf: EvBuffer, tag: int, integer: int) -> None:
    """Adds a record with an unsigned number of 32 bits (evtag_marshal_int)."""
    number = _number(integer, 32, "integer")
    _encode(buf, lib.PYLE_TAG_MARSHAL_INT, _tag(tag), number, "evtag_marshal_int")


def marshal_int64(buf: EvBuffer, tag: int, integer: int) -> None:
    """Adds a record with an unsigned number of 64 bits (evtag_marshal_int64)."""
    number = _number(integer, 64, "integer")
    _encode(buf, lib.PYLE_TAG_MARSHAL_INT64, _tag(tag), number, "evtag_marshal_int64")


def marshal_timeval(buf: EvBuffer, tag: int, seconds: Seconds) -> None:
    """Adds a record with a time, in seconds, to the microsecond (evtag_marshal_timeval).
    ValueError if it is negative or 2**32 seconds and more."""
    if isinstance(seconds, timedelta):
        micros = timedelta.__floordiv__(seconds, _MICROSECOND)
    else:
        number = real(seconds)
        if not 0 <= number < 1 << 32:  # nor NaN
            raise ValueError(f"seconds must be from 0 to 2**32, not {seconds!r}")
        micros = round(number * 1_000_000)
    whole, micros = divmod(micros, 1_000_000)
    what = lib.PYLE_TAG_MARSHAL_TIMEVAL
    _encode(buf, what, _tag(tag), _number(whole, 32, "seconds"), "evtag_marshal_timeval", micros)


def encode_int(buf: EvBuffer, number: int) -> None:
    """Adds an unsigned number of 32 bits by itself, in 1 to 5 bytes (evtag_encode_int)."""
    _encode(buf, lib.PYLE_TAG_INT, 0, _number(number, 32, "number"), "evtag_encode_int")


def encode_int64(buf: EvBuffer, number: int) -> None:
    """Adds an unsigned number of 64 bits by itself, in 1 to 9 bytes (evtag_encode_int64)."""
    _encode(buf, lib.PYLE_TAG_INT64, 0, _number(number, 64, "number"), "evtag_encode_int64")


def encode_tag(buf: EvBuffer, tag: int) -> None:
    """Adds a tag by itself, in 1 to 5 bytes. No header of libevent's declares this one."""
    _encode(buf, lib.PYLE_TAG_TAG, _tag(tag), 0, "evtag_encode_tag")


# ---- looking ----


def _peek(buf: EvBuffer, what: int, function: str) -> int:
    rc: int = lib.pyle_tag_peek(_ptr(buf), what)
    if rc < 0:
        _failed(rc, function)
    return rc


def peek(buf: EvBuffer) -> int:
    """The tag of the record at the front (evtag_peek)."""
    return _peek(buf, lib.PYLE_TAG_TAG, "evtag_peek")


def peek_length(buf: EvBuffer) -> int:
    """How many bytes the record at the front has, with its tag and its length; they need not be
    there yet (evtag_peek_length)."""
    return _peek(buf, lib.PYLE_TAG_LENGTH, "evtag_peek_length")


def payload_length(buf: EvBuffer) -> int:
    """How many bytes of payload it has; they need not be there yet (evtag_payload_length)."""
    return _peek(buf, lib.PYLE_TAG_PAYLOAD_LENGTH, "evtag_payload_length")


# ---- reading ----


def unmarshal(src: EvBuffer, dst: EvBuffer) -> int:
    """Takes the record at the front, moves its payload to the end of another buffer and returns
    its tag (evtag_unmarshal). ValueError if it is the same buffer."""
    if src is dst:
        raise ValueError("the payload cannot go to the buffer that it comes from")
    rc: int = lib.pyle_tag_unmarshal(_ptr(src), _ptr(dst))
    if rc < 0:
        _failed(rc, "evtag_unmarshal")
    return rc


def unmarshal_header(buf: EvBuffer) -> tuple[int, int]:
    """Takes tag and length of the record at the front and returns them; its payload has to be
    there, and stays (evtag_unmarshal_header)."""
    tag = ffi.new("unsigned *")
    rc: int = lib.pyle_tag_unmarshal_header(_ptr(buf), tag)
    if rc < 0:
        _failed(rc, "evtag_unmarshal_header")
    return tag[0], rc


def consume(buf: EvBuffer) -> None:
    """Drops the record at the front (evtag_consume)."""
    rc = lib.pyle_tag_consume(_ptr(buf))
    if rc < 0:
        _failed(rc, "evtag_consume")


def _unmarshal_int(buf: EvBuffer, need_tag: int, bits: int, function: str) -> int:
    number = ffi.new("uint64_t *")
    rc = lib.pyle_tag_unmarshal_int(_ptr(buf), _tag(need_tag), bits, number)
    if rc < 0:
        _failed(rc, function)
    return int(number[0])


def unmarshal_int(buf: EvBuffer, need_tag: int) -> int:
    """Takes a record with this tag and a number of 32 bits (evtag_unmarshal_int)."""
    return _unmarshal_int(buf, need_tag, 32, "evtag_unmarshal_int")


def unmarshal_int64(buf: EvBuffer, need_tag: int) -> int:
    """Takes a record with this tag and a number of 64 bits (evtag_unmarshal_int64)."""
    return _unmarshal_int(buf, need_tag, 64, "evtag_unmarshal_int64")


def unmarshal_timeval(buf: EvBuffer, need_tag: int) -> float:
    """Takes a record with this tag and a time; returns its seconds (evtag_unmarshal_timeval)."""
    seconds, micros = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    rc = lib.pyle_tag_unmarshal_timeval(_ptr(buf), _tag(need_tag), seconds, micros)
    if rc < 0:
        _failed(rc, "evtag_unmarshal_timeval")
    return float(seconds[0] + micros[0] / 1_000_000)


def _unmarshal_bytes(buf: EvBuffer, need_tag: int, n: int, function: str) -> bytes:
    ptr, tag = _ptr(buf), _tag(need_tag)
    room = 4096
    while True:
        block: Any = _new_block("char[]", room)
        rc = lib.pyle_tag_unmarshal_bytes(ptr, tag, n, block, room)
        if rc >= 0:
            return bytes(_unpack(block, rc))
        if rc != SMALL:
            _failed(rc, function)
        room = payload_length(buf) + lib.PYLE_TAG_HEADER  # they are there


def unmarshal_fixed(buf: EvBuffer, need_tag: int, n: int) -> bytes:
    """Takes a record with this tag and n bytes, and returns these (evtag_unmarshal_fixed)."""
    return _unmarshal_bytes(buf, need_tag, size(n), "evtag_unmarshal_fixed")


def unmarshal_string(buf: EvBuffer, need_tag: int, encoding: str = "utf-8") -> str:
    """Takes a record with this tag and a text (evtag_unmarshal_string). UnicodeDecodeError if it
    is none; that has the bytes as its `object`, and the record is taken."""
    return _unmarshal_bytes(buf, need_tag, -1, "evtag_unmarshal_string").decode(encoding)


def decode_int(buf: EvBuffer) -> int:
    """Takes what `encode_int` added."""
    return _decode(buf, lib.PYLE_TAG_INT, "evtag_decode_int")


def decode_int64(buf: EvBuffer) -> int:
    """Takes what `encode_int64` or `encode_int` added."""
    return _decode(buf, lib.PYLE_TAG_INT64, "evtag_decode_int64")


def decode_tag(buf: EvBuffer) -> int:
    """Takes what `encode_tag` added."""
    return _decode(buf, lib.PYLE_TAG_TAG, "evtag_decode_tag")


def _decode(buf: EvBuffer, what: int, function: str) -> int:
    number = ffi.new("uint64_t *")
    rc = lib.pyle_tag_decode(_ptr(buf), what, number)
    if rc < 0:
        _failed(rc, function)
    return int(number[0])
