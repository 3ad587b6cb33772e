"""EvBuffer: one behaviour each. test_buffer_model.py does the same with random sequences."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from common import measures_memory

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_WRITING,
    BEV_FLUSH,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_THREADSAFE,
    EV_READ,
    EV_WRITE,
    EVBUFFER_EOL_ANY,
    EVBUFFER_EOL_CRLF,
    EVBUFFER_EOL_CRLF_STRICT,
    EVBUFFER_EOL_LF,
    EVBUFFER_EOL_NUL,
    EVBUFFER_PTR_ADD,
    EVBUFFER_PTR_SET,
    EVLOOP_NONBLOCK,
    BufferEvent,
    BufferPosition,
    ClosedError,
    EvBuffer,
    EventBase,
    LibeventError,
    LineTooLong,
    ffi,
    lib,
)
from pylibevent import _callbacks as cb

Sockets = tuple[socket.socket, socket.socket]
RunUntil = Callable[..., None]
Change = tuple[int, int, int]

BIG = 1 << 20


class Lent(bytearray):
    """Something to lend to add_reference() that a weak reference can watch."""


class Boom(Exception):
    pass


def lend(buf: EvBuffer, data: bytes) -> weakref.ref[Lent]:
    """Adds an object by reference that nobody else holds."""
    lent = Lent(data)
    buf.add_reference(lent)
    return weakref.ref(lent)


def in_pieces(*pieces: bytes) -> EvBuffer:
    """A buffer whose bytes lie in just these pieces."""
    buf = EvBuffer()
    for piece in pieces:
        buf.add_reference(piece)
    return buf


def one_byte_pieces(data: bytes) -> EvBuffer:
    return in_pieces(*(data[i : i + 1] for i in range(len(data))))


def script(code: str) -> None:
    """Runs a program that could end in a crash: it must end well, and silently."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.fixture
def buf() -> Iterator[EvBuffer]:
    buf = EvBuffer(b"abcdef")
    yield buf
    buf.close()


@pytest.fixture
def file() -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        yield file


@pytest.fixture
def bev(base: EventBase, sockets: Sockets) -> BufferEvent:
    return BufferEvent.socket(base, sockets[0])


@pytest.fixture
def unraisables(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What was reported as unraisable."""
    found: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: found.append(info.exc_value))
    return found


CONTENT = bytes(i * 31 % 251 for i in range(20000))


# ---- making one, looking at it ----


def test_a_new_buffer_is_empty() -> None:
    buf = EvBuffer()
    assert len(buf) == 0
    assert not buf
    assert bytes(buf) == b""


@pytest.mark.parametrize(
    "initial", [b"abc", bytearray(b"abc"), memoryview(b"abc"), array("b", b"abc")]
)
def test_the_constructor_copies_anything_bytes_like(initial: Any) -> None:
    buf = EvBuffer(initial)
    assert bytes(buf) == b"abc"
    if isinstance(initial, bytearray):
        initial[:] = b"changed"
        assert bytes(buf) == b"abc"


@pytest.mark.parametrize("initial", ["", "text", 3, None, 1.5, EvBuffer(b"x"), [1, 2]])
def test_the_constructor_takes_nothing_else(initial: Any) -> None:
    with pytest.raises(TypeError):
        EvBuffer(initial)


def test_len_bytes_and_bool(buf: EvBuffer) -> None:
    assert len(buf) == 6
    assert bytes(buf) == b"abcdef"
    assert buf
    assert len(buf) == 6  # bytes() took nothing


def test_equality_is_that_of_the_bytes(buf: EvBuffer) -> None:
    assert buf == b"abcdef"
    assert buf == bytearray(b"abcdef")
    assert buf == memoryview(b"abcdef")
    assert buf == in_pieces(b"abc", b"def")
    assert buf == buf  # noqa: PLR0124
    assert buf != b"abc"
    assert buf != EvBuffer(b"abc")
    assert buf != "abcdef"
    assert buf != 3


def test_it_cannot_be_hashed(buf: EvBuffer) -> None:
    with pytest.raises(TypeError):
        hash(buf)


def test_contains(buf: EvBuffer) -> None:
    assert b"cd" in buf
    assert b"" in buf
    assert b"dc" not in buf
    text: Any = "cd"
    with pytest.raises(TypeError):
        _ = text in buf


def test_repr_tells_the_length_and_whether_it_is_closed(buf: EvBuffer) -> None:
    assert "6 bytes" in repr(buf)
    buf.close()
    assert "closed" in repr(buf)


def test_ptr_is_the_struct_evbuffer_for_the_raw_layer(buf: EvBuffer) -> None:
    assert lib.evbuffer_get_length(buf.ptr) == 6
    assert lib.evbuffer_add(buf.ptr, b"gh", 2) == 0
    assert buf == b"abcdefgh"


def test_a_buffer_is_freed_as_soon_as_nobody_holds_it() -> None:
    buf = EvBuffer(b"x")
    gone = weakref.ref(buf)
    del buf
    assert gone() is None


# ---- add, prepend, expand ----


def test_add_puts_bytes_at_the_end_and_prepend_at_the_front() -> None:
    buf = EvBuffer(b"m")
    buf.add(b"n")
    buf.prepend(b"l")
    buf.add(bytearray(b"op"))
    buf.prepend(memoryview(b"jk"))
    buf.add(memoryview(array("H", [0x4141])))
    assert buf == b"jklmnopAA"


def test_adding_nothing_changes_nothing(buf: EvBuffer) -> None:
    buf.add(b"")
    buf.prepend(b"")
    buf.add_reference(b"")
    buf.add_buffer(EvBuffer())
    assert buf == b"abcdef"


@pytest.mark.parametrize("size", [1, 255, 4096, 65536, BIG + 1])
def test_what_goes_in_comes_out_whatever_its_size(size: int) -> None:
    data = os.urandom(size)
    buf = EvBuffer()
    buf.add(data)
    buf.prepend(data)
    assert buf.remove(size) == data
    assert buf.remove() == data


def test_prepend_many_times_to_what_was_drained_and_refilled() -> None:
    buf = EvBuffer(b"x" * 1000)
    buf.drain(990)
    for i in range(500):
        buf.prepend(b"%04d" % i)
    assert bytes(buf) == b"".join(b"%04d" % i for i in reversed(range(500))) + b"x" * 10


def test_prepend_to_an_expanded_empty_buffer() -> None:
    buf = EvBuffer()
    buf.expand(100)
    buf.prepend(b"p" * 5000)
    buf.add(b"a")
    assert buf == b"p" * 5000 + b"a"


def test_add_printf_formats_as_python_does(buf: EvBuffer) -> None:
    assert buf.add_printf("%s=%03d", "ä", 7) == 6
    assert buf.add_printf(b"%b!", b"x") == 2
    assert buf.add_printf("100%%") == 4
    assert buf == b"abcdef" + "ä=007".encode() + b"x!100%"


def test_expand_makes_room_in_one_piece_and_changes_no_byte(buf: EvBuffer) -> None:
    buf.expand(100_000)
    assert buf == b"abcdef"
    buf.add(b"x" * 90_000)
    assert len(buf.peek()) <= 2
    assert buf == b"abcdef" + b"x" * 90_000


def test_contiguous_space_is_the_length_of_the_first_piece() -> None:
    assert EvBuffer().contiguous_space == 0
    assert in_pieces(b"abc", b"de").contiguous_space == 3


# ---- remove, drain, copyout ----


def test_remove_takes_from_the_front(buf: EvBuffer) -> None:
    assert buf.remove(2) == b"ab"
    assert buf == b"cdef"
    assert buf.remove(0) == b""
    assert buf.remove(100) == b"cdef"
    assert buf.remove(1) == b""


def test_remove_without_a_number_takes_all() -> None:
    data = os.urandom(200_000)
    buf = EvBuffer(data)
    assert buf.remove() == data
    assert buf.remove() == b""
    assert len(buf) == 0


def test_remove_into_fills_what_it_is_given(buf: EvBuffer) -> None:
    memory = bytearray(4)
    assert buf.remove_into(memory) == 4
    assert memory == b"abcd"
    assert buf.remove_into(memoryview(memory)[1:]) == 2
    assert memory == b"aefd"
    assert buf.remove_into(memory) == 0
    assert buf.remove_into(bytearray()) == 0


@pytest.mark.parametrize("destination", [b"read-only", memoryview(b"read-only")])
def test_remove_into_needs_writable_memory(buf: EvBuffer, destination: Any) -> None:
    with pytest.raises((TypeError, BufferError)):
        buf.remove_into(destination)
    assert buf == b"abcdef"


def test_drain_drops_up_to_what_is_there(buf: EvBuffer) -> None:
    buf.drain(0)
    buf.drain(2)
    assert buf == b"cdef"
    buf.drain(100)
    assert buf == b""
    buf.drain(1)


def test_copyout_leaves_the_bytes() -> None:
    buf = in_pieces(b"abc", b"def")
    assert buf.copyout(4) == b"abcd"
    assert buf.copyout(100) == b"abcdef"
    assert buf.copyout(0) == b""
    assert buf == b"abcdef"


def test_copyout_from_starts_at_a_position() -> None:
    buf = in_pieces(b"abc", b"def", b"ghi")
    assert buf.copyout_from(2, 3) == b"cde"
    assert buf.copyout_from(BufferPosition(3), 100) == b"defghi"
    assert buf.copyout_from(9, 1) == b""
    with pytest.raises(ValueError, match="range"):
        buf.copyout_from(10, 1)


def test_copyout_over_many_pieces() -> None:
    data = bytes(range(200))
    assert one_byte_pieces(data).copyout_from(50, 100) == data[50:150]


# ---- lines ----

LINES = [
    (EVBUFFER_EOL_ANY, b"\r\na\r\nb\n\n\rc\nd", [b"", b"a", b"b", b"c"], b"d"),
    (EVBUFFER_EOL_CRLF, b"a\r\nb\nc\r\r\n\nd\re", [b"a", b"b", b"c\r", b""], b"d\re"),
    (EVBUFFER_EOL_CRLF_STRICT, b"a\nb\r\n\r\nc\r\r\nd\r", [b"a\nb", b"", b"c\r"], b"d\r"),
    (EVBUFFER_EOL_LF, b"a\r\nb\n\nc\0", [b"a\r", b"b", b""], b"c\0"),
    (EVBUFFER_EOL_NUL, b"a\n\0\0b\r\n", [b"a\n", b""], b"b\r\n"),
]
EOL_STYLES = [style for style, *_ in LINES]
ENDS: dict[int, bytes] = {
    EVBUFFER_EOL_ANY: b"\r\n",
    EVBUFFER_EOL_CRLF: b"\r\n",
    EVBUFFER_EOL_CRLF_STRICT: b"\r\n",
    EVBUFFER_EOL_LF: b"\n",
    EVBUFFER_EOL_NUL: b"\0",
}


@pytest.mark.parametrize("make", [EvBuffer, one_byte_pieces])
@pytest.mark.parametrize(("eol", "data", "lines", "rest"), LINES)
def test_readln_takes_one_line_at_a_time(
    make: Callable[[bytes], EvBuffer], eol: int, data: bytes, lines: list[bytes], rest: bytes
) -> None:
    buf = make(data)
    for line in lines:
        assert buf.readln(eol) == line
    assert buf.readln(eol) is None
    assert buf == rest


@pytest.mark.parametrize("make", [EvBuffer, one_byte_pieces])
@pytest.mark.parametrize(("eol", "data", "lines", "rest"), LINES)
def test_readlines_takes_every_whole_line(
    make: Callable[[bytes], EvBuffer], eol: int, data: bytes, lines: list[bytes], rest: bytes
) -> None:
    buf = make(data)
    assert buf.readlines(eol) == lines
    assert buf.readlines(eol) == []
    assert buf == rest


def test_readln_takes_any_end_and_readlines_a_newline_unless_told() -> None:
    assert EvBuffer(b"a\r\nb").readln() == b"a"
    assert EvBuffer(b"a\r\nb\rc\n").readlines() == [b"a\r", b"b\rc"]


def test_no_line_in_an_empty_buffer() -> None:
    assert EvBuffer().readln() is None
    assert EvBuffer().readlines() == []


@pytest.mark.parametrize("eol", EOL_STYLES)
def test_a_line_that_comes_bit_by_bit(eol: int) -> None:
    buf = EvBuffer()
    for byte in b"slow":
        buf.add(bytes([byte]))
        assert buf.readln(eol) is None
        assert buf.readlines(eol) == []
    buf.add(ENDS[eol])
    assert buf.readln(eol) == b"slow"
    assert buf == b""


@pytest.mark.parametrize("eol", EOL_STYLES)
@pytest.mark.parametrize("size", [65534, 65535, 65536, 65537, 300_000])
def test_lines_of_64_kib_and_more(eol: int, size: int) -> None:
    line = b"x" * size
    buf = EvBuffer(line + ENDS[eol] + b"next" + ENDS[eol] + b"rest")
    assert buf.readln(eol) == line
    assert buf.readln(eol) == b"next"
    assert buf == b"rest"
    buf = EvBuffer(b"first" + ENDS[eol] + line + ENDS[eol] + b"last" + ENDS[eol])
    assert buf.readlines(eol) == [b"first", line, b"last"]
    assert buf == b""


@pytest.mark.parametrize("eol", EOL_STYLES)
def test_readlines_with_more_than_64_kib_of_lines(eol: int) -> None:
    lines = [b"%d" % i for i in range(30_000)]
    buf = EvBuffer(b"".join(line + ENDS[eol] for line in lines) + b"rest")
    assert buf.readlines(eol) == lines
    assert buf == b"rest"


@pytest.mark.parametrize("eol", EOL_STYLES)
def test_max_length_counts_the_line_without_its_end(eol: int) -> None:
    buf = EvBuffer(b"12345" + ENDS[eol])
    with pytest.raises(LineTooLong):
        buf.readln(eol, max_length=4)
    with pytest.raises(LineTooLong):
        buf.readlines(eol, max_length=4)
    assert buf == b"12345" + ENDS[eol]  # nothing was removed
    assert buf.readln(eol, max_length=5) == b"12345"


@pytest.mark.parametrize("eol", EOL_STYLES)
def test_max_length_holds_for_a_line_without_an_end_yet(eol: int) -> None:
    buf = EvBuffer(b"12345")
    assert buf.readln(eol, 5) is None
    assert buf.readlines(eol, 5) == []
    with pytest.raises(LineTooLong):
        buf.readln(eol, 4)
    with pytest.raises(LineTooLong):
        buf.readlines(eol, 4)
    assert buf == b"12345"


@pytest.mark.parametrize("eol", [EVBUFFER_EOL_CRLF, EVBUFFER_EOL_CRLF_STRICT])
@pytest.mark.parametrize("read", ["readln", "readlines"])
def test_a_cr_whose_lf_is_still_to_come_does_not_make_a_line_too_long(eol: int, read: str) -> None:
    buf = EvBuffer(b"12345\r")
    assert not getattr(buf, read)(eol, max_length=5)
    buf.add(b"\n")
    assert buf.readln(eol, max_length=5) == b"12345"


@pytest.mark.parametrize("eol", [EVBUFFER_EOL_CRLF, EVBUFFER_EOL_CRLF_STRICT])
def test_a_cr_that_is_part_of_a_line_does(eol: int) -> None:
    with pytest.raises(LineTooLong):
        EvBuffer(b"12345\rx").readln(eol, max_length=5)
    with pytest.raises(LineTooLong):
        EvBuffer(b"123456\r").readlines(eol, max_length=5)


def test_a_line_too_long_is_a_value_error_and_a_libevent_error() -> None:
    assert issubclass(LineTooLong, ValueError)
    assert issubclass(LineTooLong, LibeventError)


def test_max_length_0_allows_empty_lines() -> None:
    buf = EvBuffer(b"\n\nx")
    assert buf.readln(EVBUFFER_EOL_LF, 0) == b""
    assert buf.readlines(EVBUFFER_EOL_LF, 0) == [b""]
    with pytest.raises(LineTooLong):
        buf.readln(EVBUFFER_EOL_LF, 0)


def test_readlines_gives_the_lines_before_one_that_is_too_long_first() -> None:
    buf = EvBuffer(b"a\nb\ntoo long\nc\n")
    assert buf.readlines(EVBUFFER_EOL_LF, 3) == [b"a", b"b"]
    with pytest.raises(LineTooLong):
        buf.readlines(EVBUFFER_EOL_LF, 3)
    assert buf == b"too long\nc\n"
    buf = EvBuffer(b"a\nunfinished")
    assert buf.readlines(EVBUFFER_EOL_LF, 3) == [b"a"]
    with pytest.raises(LineTooLong):
        buf.readlines(EVBUFFER_EOL_LF, 3)


def test_max_length_beyond_64_kib() -> None:
    buf = EvBuffer(b"x" * 100_000 + b"\n" + b"y" * 100_001 + b"\n")
    assert buf.readlines(EVBUFFER_EOL_LF, 100_000) == [b"x" * 100_000]
    with pytest.raises(LineTooLong):
        buf.readln(EVBUFFER_EOL_LF, 100_000)
    assert len(buf) == 100_002


# ---- search, search_eol, ptr_set ----


def test_search_finds_the_first_place() -> None:
    buf = EvBuffer(b"one two one")
    found = buf.search(b"one")
    assert isinstance(found, BufferPosition)
    assert (found.pos, found.length) == (0, 3)
    assert buf.search(b"one", start=1) == 8
    assert buf.search(b"two", found) == 4
    assert buf.search(b"three") is None
    assert buf.search(b"one two one two") is None
    assert len(buf) == 11


def test_search_goes_over_the_pieces() -> None:
    buf = in_pieces(b"xa", b"a", b"aab", b"", b"c")
    assert buf.search(b"aaaabc") == 1
    assert buf.search(b"aab") == 3
    assert buf.search(b"bc") == 5
    assert buf.search(b"bcd") is None


def test_search_ends_before_end() -> None:
    for buf in (EvBuffer(b"abcabc"), one_byte_pieces(b"abcabc"), in_pieces(b"abcab", b"c")):
        assert buf.search(b"c", end=2) is None
        assert buf.search(b"c", end=3) == 2
        assert buf.search(b"abc", 1, 5) is None
        assert buf.search(b"abc", 1, 6) == 3
        assert buf.search(b"a", 4, 2) is None


def test_search_for_nothing_finds_it_at_once(buf: EvBuffer) -> None:
    assert buf.search(b"") == 0
    assert buf.search(b"", 6) == 6
    assert buf.search(b"", 3, 2) is None
    assert EvBuffer().search(b"") == 0


def test_search_from_the_end_finds_nothing(buf: EvBuffer) -> None:
    assert buf.search(b"f", 6) is None
    assert EvBuffer().search(b"f", 0, 0) is None


@pytest.mark.parametrize("what", [b"a", b""])
def test_search_with_positions_past_the_end_is_a_value_error(buf: EvBuffer, what: bytes) -> None:
    with pytest.raises(ValueError, match="range"):
        buf.search(what, 7)
    with pytest.raises(ValueError, match="range"):
        buf.search(what, 0, 7)


@pytest.mark.parametrize("make", [EvBuffer, one_byte_pieces])
@pytest.mark.parametrize(
    ("eol", "start", "pos", "length"),
    [
        (EVBUFFER_EOL_ANY, None, 1, 3),
        (EVBUFFER_EOL_ANY, 2, 2, 2),
        (EVBUFFER_EOL_CRLF, 0, 1, 2),
        (EVBUFFER_EOL_CRLF, 2, 2, 1),  # only what comes after start counts
        (EVBUFFER_EOL_CRLF, 3, 3, 1),
        (EVBUFFER_EOL_CRLF_STRICT, 0, 1, 2),
        (EVBUFFER_EOL_CRLF_STRICT, 2, 6, 2),
        (EVBUFFER_EOL_LF, None, 2, 1),
        (EVBUFFER_EOL_NUL, None, 5, 1),
    ],
)
def test_search_eol_tells_where_a_line_ends_and_how_long_the_end_is(
    make: Callable[[bytes], EvBuffer], eol: int, start: int | None, pos: int, length: int
) -> None:
    found = make(b"a\r\n\nb\0\r\n").search_eol(start, eol)
    assert found is not None
    assert (found.pos, found.length) == (pos, length)


def test_search_eol_finds_none() -> None:
    assert EvBuffer(b"abc\r").search_eol(eol=EVBUFFER_EOL_LF) is None
    assert EvBuffer(b"\n").search_eol(1) is None
    assert EvBuffer().search_eol() is None
    with pytest.raises(ValueError, match="range"):
        EvBuffer(b"\n").search_eol(2)


def test_ptr_set_gives_a_position(buf: EvBuffer) -> None:
    assert buf.ptr_set(4).pos == 4
    assert buf.ptr_set(6, EVBUFFER_PTR_SET).pos == 6
    assert buf.ptr_set(2, EVBUFFER_PTR_ADD, start=3) == 5
    three: Any = BufferPosition(3)
    assert buf.ptr_set(three, EVBUFFER_PTR_ADD, three) == 6


def test_ptr_set_past_an_end_is_a_value_error(buf: EvBuffer) -> None:
    with pytest.raises(ValueError, match="range"):
        buf.ptr_set(7)
    with pytest.raises(ValueError, match="range"):
        buf.ptr_set(4, EVBUFFER_PTR_ADD, start=3)
    with pytest.raises(ValueError, match="position"):
        buf.ptr_set(-1)
    with pytest.raises(ValueError, match=r"position|range"):
        buf.ptr_set(0, EVBUFFER_PTR_ADD, start=-1)
    with pytest.raises(ValueError, match="range"):
        buf.ptr_set((1 << 63) - 1, EVBUFFER_PTR_ADD, start=(1 << 63) - 1)


def test_a_position_is_a_number() -> None:
    three = BufferPosition(3)
    assert three == 3
    assert three == BufferPosition(3, length=9)
    assert three != 4
    assert three != "3"
    assert 2 < three < BufferPosition(4)
    assert 3 <= three <= 3
    assert int(three) == 3
    assert b"abcdef"[three:] == b"def"
    assert hash(three) == hash(BufferPosition(3))
    assert repr(BufferPosition(3, length=2)) == "BufferPosition(3, length=2)"


def test_a_position_does_not_compare_with_what_is_no_number() -> None:
    text: Any = "4"
    with pytest.raises(TypeError):
        _ = BufferPosition(3) < text


# ---- peek, pullup: memoryviews ----


def views_of(views: list[memoryview]) -> list[bytes]:
    return [bytes(view) for view in views]


def test_peek_shows_the_pieces_as_they_lie() -> None:
    buf = in_pieces(b"abc", b"de", b"fghi")
    assert views_of(buf.peek()) == [b"abc", b"de", b"fghi"]
    assert views_of(buf.peek(4)) == [b"abc", b"d"]
    assert views_of(buf.peek(3)) == [b"abc"]
    assert views_of(buf.peek(100)) == [b"abc", b"de", b"fghi"]
    assert views_of(buf.peek(start=4)) == [b"e", b"fghi"]
    assert views_of(buf.peek(2, BufferPosition(1))) == [b"bc"]
    assert views_of(buf.peek(3, 2)) == [b"c", b"de"]


def test_peek_at_nothing() -> None:
    buf = EvBuffer(b"abc")
    assert buf.peek(0) == []
    assert buf.peek(start=3) == []
    assert EvBuffer().peek() == []
    with pytest.raises(ValueError, match="range"):
        buf.peek(start=4)
    buf.add(b"no view is out")


def test_peek_at_many_pieces() -> None:
    data = bytes(range(100))
    assert views_of(one_byte_pieces(data).peek()) == [bytes([i]) for i in data]


def test_peek_copies_nothing() -> None:
    memory = b"x" * 1000
    [view] = in_pieces(memory).peek()
    assert ffi.from_buffer(view) == ffi.from_buffer(memory)


def test_pullup_brings_bytes_into_one_piece() -> None:
    buf = in_pieces(b"abc", b"de", b"fghi")
    assert bytes(buf.pullup(4)) == b"abcd"
    assert buf.contiguous_space >= 4
    assert bytes(buf.pullup()) == b"abcdefghi"
    assert views_of(buf.peek()) == [b"abcdefghi"]
    assert bytes(buf.pullup(2)) == b"ab"
    assert buf == b"abcdefghi"


def test_pullup_of_nothing_is_an_empty_view(buf: EvBuffer) -> None:
    assert bytes(buf.pullup(0)) == b""
    assert bytes(EvBuffer().pullup()) == b""
    buf.add(b"no view is out")


def test_pullup_of_more_than_there_is_is_a_value_error(buf: EvBuffer) -> None:
    with pytest.raises(ValueError, match="range"):
        buf.pullup(7)
    buf.add(b"no view is out")


def test_views_are_read_only(buf: EvBuffer) -> None:
    for view in (buf.pullup(), buf.peek()[0]):
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 0
        view.release()


def full_socket(sockets: Sockets) -> socket.socket:
    sockets[1].send(b"more")
    return sockets[0]


Change2 = Callable[[EvBuffer, EvBuffer, Sockets], object]
CHANGES: dict[str, Change2] = {
    "add": lambda buf, other, s: buf.add(b"x"),
    "prepend": lambda buf, other, s: buf.prepend(b"x"),
    "add_printf": lambda buf, other, s: buf.add_printf("x"),
    "add_reference": lambda buf, other, s: buf.add_reference(b"x"),
    "expand": lambda buf, other, s: buf.expand(100_000),
    "remove": lambda buf, other, s: buf.remove(1),
    "remove all": lambda buf, other, s: buf.remove(),
    "remove_into": lambda buf, other, s: buf.remove_into(bytearray(1)),
    "drain": lambda buf, other, s: buf.drain(1),
    "readln": lambda buf, other, s: buf.readln(),
    "readlines": lambda buf, other, s: buf.readlines(),
    "pullup": lambda buf, other, s: buf.pullup(),
    "add_buffer": lambda buf, other, s: buf.add_buffer(other),
    "prepend_buffer": lambda buf, other, s: buf.prepend_buffer(other),
    "remove_buffer": lambda buf, other, s: buf.remove_buffer(other, 1),
    "add_buffer from it": lambda buf, other, s: other.add_buffer(buf),
    "prepend_buffer from it": lambda buf, other, s: other.prepend_buffer(buf),
    "remove_buffer to it": lambda buf, other, s: other.remove_buffer(buf, 1),
    "read": lambda buf, other, s: buf.read(full_socket(s)),
    "write": lambda buf, other, s: buf.write(s[0]),
    "close": lambda buf, other, s: buf.close(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_while_a_view_is_out_nothing_changes_the_buffer(change: str, sockets: Sockets) -> None:
    buf, other = in_pieces(b"line\n", b"def\n"), EvBuffer(b"other")
    view = buf.peek(3)[0]
    with pytest.raises(BufferError):
        CHANGES[change](buf, other, sockets)
    assert bytes(view) == b"lin"
    assert buf == b"line\ndef\n"
    assert other == b"other"
    view.release()
    CHANGES[change](buf, other, sockets)  # now it may


def test_while_a_view_is_out_the_buffer_can_be_read(buf: EvBuffer, file: BinaryIO) -> None:
    view = buf.pullup(3)
    assert buf.copyout(4) == b"abcd"
    assert buf.search(b"f") == 5
    assert buf.search_eol() is None
    assert len(buf) == 6
    assert views_of(buf.peek()) == [b"abcdef"]
    with pytest.raises(BufferError):
        buf.add_file(file)
    view.release()


def test_every_view_has_to_be_let_go_of(buf: EvBuffer) -> None:
    first, second = buf.peek()[0], buf.peek(2)[0]
    first.release()
    with pytest.raises(BufferError):
        buf.drain(1)
    del second
    buf.drain(1)


def test_a_slice_of_a_view_is_a_view(buf: EvBuffer) -> None:
    view = buf.peek()[0]
    part, numbers = view[2:4], view.cast("H")
    view.release()
    with pytest.raises(BufferError):
        buf.drain(1)
    assert bytes(part) == b"cd"
    del part
    with pytest.raises(BufferError):
        buf.drain(1)
    numbers.release()
    buf.drain(1)


def test_what_is_made_from_a_view_holds_it(buf: EvBuffer) -> None:
    stream = io.BytesIO()
    stream.write(buf.peek()[0])
    buf.add(b"nothing is held: BytesIO copied")
    held = ffi.from_buffer(buf.peek()[0])
    with pytest.raises(BufferError):
        buf.drain(1)
    assert ffi.unpack(held, 3) == b"abc"
    del held
    buf.drain(1)


def test_a_view_stays_when_close_is_refused(buf: EvBuffer) -> None:
    view = buf.pullup()
    with pytest.raises(BufferError):
        buf.close()
    assert not buf.closed
    assert bytes(view) == b"abcdef"
    view.release()
    buf.close()
    assert buf.closed


def test_a_view_outlives_the_name_of_its_buffer() -> None:
    buf = EvBuffer(b"x" * 100_000)
    gone = weakref.ref(buf)
    view = buf.pullup()
    part = view[10:20]
    del buf, view
    assert gone() is None
    EvBuffer(b"y" * 100_000).close()
    assert part == b"x" * 10


def test_a_view_of_lent_memory_holds_that() -> None:
    buf = EvBuffer()
    lent = lend(buf, b"lent")
    view = buf.peek()[-1]
    del buf
    assert lent() is not None
    assert bytes(view) == b"lent"
    view.release()
    assert lent() is None


@pytest.mark.parametrize("closing", ["bufferevent", "base"])
@pytest.mark.parametrize("which", ["input", "output"])
def test_a_view_outlives_the_bufferevent_and_the_base(
    base: EventBase,
    sockets: Sockets,
    bev: BufferEvent,
    run_until: RunUntil,
    which: str,
    closing: str,
) -> None:
    bev.write(b"x" * 5000)
    if which == "input":
        sockets[1].send(b"x" * 1000)
        bev.enable(EV_READ)
        run_until(lambda: len(bev.input) == 1000)
        bev.write(b"x" * 1000)
    buf: EvBuffer = getattr(bev, which)
    view = buf.peek()[0]
    length = len(view)
    assert length >= 1000
    if closing == "bufferevent":
        bev.close()
        base.loop(EVLOOP_NONBLOCK)
    else:
        base.close()
    assert bytes(view) == b"x" * length
    assert buf.closed
    with pytest.raises(ClosedError):
        len(buf)
    view.release()


def test_a_bufferevent_reads_on_when_the_view_of_its_input_is_let_go_of(
    base: EventBase, sockets: Sockets, bev: BufferEvent, run_until: RunUntil
) -> None:
    sockets[1].send(b"one")
    bev.enable(EV_READ)
    run_until(lambda: len(bev.input) == 3)
    view = bev.input.pullup()
    sockets[1].send(b"two")
    base.loop(EVLOOP_NONBLOCK)
    assert bytes(view) == b"one"
    assert len(bev.input) == 3
    view.release()
    run_until(lambda: bev.input == b"onetwo")


def test_while_a_view_is_out_a_pair_moves_nothing(base: EventBase) -> None:
    first, second = BufferEvent.pair(base)
    first.write(b"x" * 1000)
    view = first.output.pullup()
    for flushed in (first, second):
        with pytest.raises(BufferError):
            flushed.flush(EV_READ | EV_WRITE, BEV_FLUSH)
    second.enable(EV_READ)
    base.loop(EVLOOP_NONBLOCK)
    assert second.input == b""
    assert bytes(view) == b"x" * 1000
    view.release()
    base.loop(EVLOOP_NONBLOCK)
    assert len(second.input) == 1000


def test_a_view_may_be_let_go_of_by_another_thread(buf: EvBuffer) -> None:
    views = buf.peek()
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    buf.drain(1)


def test_a_view_and_its_buffer_in_a_garbage_cycle() -> None:
    script("""
import gc
from pylibevent import EvBuffer
for _ in range(300):
    buf = EvBuffer(bytes(1000))
    cycle = [buf, buf.peek()[0], buf.peek(5)]
    cycle.append(cycle)
    del buf, cycle
gc.collect()
""")


def test_views_and_buffers_that_are_left_over_at_exit() -> None:
    script("""
import socket, threading, weakref
from pylibevent import BufferEvent, EvBuffer, EventBase
def start():
    global a, b, base, bev
    base = EventBase()
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a.detach())
    return bev.output
import warnings
warnings.simplefilter("ignore", ResourceWarning)
output = start()
bev.write(b"abc")
view = output.peek()
output.add_cb(print)
buf = EvBuffer()
buf.add_reference(bytearray(1000))
buf.add_cb(print)
views = buf.peek()
""")


# ---- from one buffer to another ----


def test_add_buffer_moves_everything_to_the_end(buf: EvBuffer) -> None:
    source = in_pieces(b"gh", b"i")
    buf.add_buffer(source)
    assert buf == b"abcdefghi"
    assert source == b""
    source.add(b"usable")
    assert source == b"usable"


def test_prepend_buffer_moves_everything_to_the_front(buf: EvBuffer) -> None:
    source = in_pieces(b"gh", b"i")
    buf.prepend_buffer(source)
    assert buf == b"ghiabcdef"
    assert source == b""


def test_moving_into_an_empty_buffer() -> None:
    for move in (EvBuffer.add_buffer, EvBuffer.prepend_buffer):
        target, source = EvBuffer(), EvBuffer(b"abc")
        target.expand(100)
        move(target, source)
        assert target == b"abc"
        target.add(b"d")
        target.prepend(b"_")
        assert target == b"_abcd"


def test_remove_buffer_moves_a_part() -> None:
    source, target = in_pieces(b"abc", b"def", b"ghi"), EvBuffer(b"_")
    assert source.remove_buffer(target, 4) == 4
    assert (bytes(source), bytes(target)) == (b"efghi", b"_abcd")
    assert source.remove_buffer(target, 0) == 0
    assert source.remove_buffer(target, 2) == 2
    assert (bytes(source), bytes(target)) == (b"ghi", b"_abcdef")
    assert source.remove_buffer(target, 100) == 3
    assert (bytes(source), bytes(target)) == (b"", b"_abcdefghi")
    assert source.remove_buffer(target, 1) == 0


def test_a_buffer_moved_into_itself_stays_as_it_is(buf: EvBuffer) -> None:
    buf.add_buffer(buf)
    buf.prepend_buffer(buf)
    assert buf.remove_buffer(buf, 3) == 0
    assert buf == b"abcdef"


@pytest.mark.parametrize("other", [b"bytes", None, 3, "text"])
def test_only_a_buffer_can_be_moved(buf: EvBuffer, other: Any) -> None:
    for call in (buf.add_buffer, buf.prepend_buffer, lambda o: buf.remove_buffer(o, 1)):
        with pytest.raises(TypeError):
            call(other)


def test_a_move_from_or_to_a_closed_buffer_leaves_the_other_as_it_is(buf: EvBuffer) -> None:
    closed: EvBuffer = EvBuffer()
    closed.close()
    for call in (
        lambda: buf.add_buffer(closed),
        lambda: closed.add_buffer(buf),
        lambda: buf.prepend_buffer(closed),
        lambda: buf.remove_buffer(closed, 3),
    ):
        with pytest.raises(ClosedError):
            call()
    assert buf == b"abcdef"
    buf.add(b"g")


def test_two_threads_that_move_both_ways_do_not_deadlock() -> None:
    """Of bufferevents with locks: which lock is taken first must not depend on the direction."""
    script("""
import faulthandler, socket, threading
from pylibevent import BEV_OPT_CLOSE_ON_FREE, BEV_OPT_THREADSAFE, BufferEvent, EventBase
faulthandler.dump_traceback_later(20, exit=True)
base = EventBase()
pairs = [socket.socketpair() for _ in range(2)]
options = BEV_OPT_THREADSAFE | BEV_OPT_CLOSE_ON_FREE
one, two = (BufferEvent.socket(base, a, options) for a, _ in pairs)
def relay(source, target):
    for _ in range(30_000):
        target.output.add_buffer(source.input)
thread = threading.Thread(target=relay, args=(one, two))
thread.start()
relay(two, one)
thread.join()
base.close()
for _, b in pairs:
    b.close()
""")


# ---- add_reference ----


def test_a_reference_is_not_copied() -> None:
    lent = Lent(b"before")
    buf = EvBuffer()
    buf.add_reference(lent)
    lent[:] = b"after!"  # nobody should, but it shows
    assert buf == b"after!"


@pytest.mark.parametrize("lent", [b"abc", bytearray(b"abc"), memoryview(b"_abc")[1:]])
def test_anything_bytes_like_can_be_lent(lent: Any) -> None:
    buf = EvBuffer(b"x")
    buf.add_reference(lent)
    buf.add(b"y")
    assert buf == b"xabcy"


def test_lent_memory_cannot_be_resized_until_it_is_back() -> None:
    lent = bytearray(b"abc")
    buf = EvBuffer()
    buf.add_reference(lent)
    with pytest.raises(BufferError):
        lent.append(0)
    buf.drain(3)
    lent.append(0)


def test_what_was_lent_is_let_go_of_with_its_last_byte() -> None:
    buf = EvBuffer(b"__")
    lent = lend(buf, b"abc")
    buf.remove(4)
    assert lent() is not None
    assert buf.remove(1) == b"c"
    assert lent() is None


LETTING_GO: dict[str, Callable[[EvBuffer], object]] = {
    "remove": lambda buf: buf.remove(4),
    "remove_into": lambda buf: buf.remove_into(bytearray(4)),
    "drain": lambda buf: buf.drain(4),
    "readln": lambda buf: buf.readln(),
    "readlines": lambda buf: buf.readlines(),
    "pullup": lambda buf: buf.pullup().release(),
    "close": lambda buf: buf.close(),
}


@pytest.mark.parametrize("how", LETTING_GO)
def test_what_was_lent_is_let_go_of_by(how: str) -> None:
    buf = EvBuffer()
    lent = [lend(buf, b"ab"), lend(buf, b"c\n")]
    LETTING_GO[how](buf)
    assert [ref() for ref in lent] == [None, None]
    assert cb.pins == {}


def test_what_was_lent_is_let_go_of_when_the_buffer_is_dropped() -> None:
    buf = EvBuffer()
    lent = lend(buf, b"abc")
    del buf
    assert lent() is None


def test_what_was_lent_is_let_go_of_when_a_buffer_with_callbacks_is_dropped() -> None:
    gc.disable()
    try:
        buf = EvBuffer()
        buf.add_cb(lambda *_: None)
        lent = lend(buf, b"abc")
        del buf
        assert lent() is None
    finally:
        gc.enable()


def test_what_was_lent_moves_along() -> None:
    first, second, third = EvBuffer(), EvBuffer(b"x"), EvBuffer(b"y")
    lent = lend(first, b"abc")
    second.add_buffer(first)
    first.close()
    third.prepend_buffer(second)
    del second
    assert third == b"xabcy"
    assert lent() is not None
    third.drain(3)
    assert lent() is not None
    third.drain(1)
    assert lent() is None


def test_a_part_of_what_was_lent_moves_as_a_copy() -> None:
    first, second = EvBuffer(), EvBuffer()
    lent = lend(first, b"abcdef")
    first.remove_buffer(second, 2)
    first.drain(4)
    assert lent() is None
    assert second == b"ab"


def test_the_same_object_can_be_lent_many_times() -> None:
    lent = Lent(b"ab")
    ref = weakref.ref(lent)
    buf, other = EvBuffer(), EvBuffer()
    for _ in range(3):
        buf.add_reference(lent)
        other.add_reference(lent)
    del lent
    assert buf == b"ababab"
    buf.close()
    assert ref() is not None
    other.close()
    assert ref() is None


def test_an_empty_object_is_not_kept(buf: EvBuffer) -> None:
    lent = lend(buf, b"")
    assert lent() is None


def test_what_libevent_refuses_is_not_kept(buf: EvBuffer) -> None:
    buf.freeze(False)
    lent = Lent(b"abc")
    ref = weakref.ref(lent)
    with pytest.raises(LibeventError):
        buf.add_reference(lent)
    del lent
    assert ref() is None
    buf.close()
    lent = Lent(b"abc")
    ref = weakref.ref(lent)
    with pytest.raises(ClosedError):
        buf.add_reference(lent)
    del lent
    assert ref() is None


def test_what_was_lent_stays_when_a_callback_raises() -> None:
    """The bytes are in the buffer, so their memory has to be there too."""
    buf = EvBuffer()

    def raises(*_: object) -> None:
        raise Boom

    entry = buf.add_cb(raises)
    lent = Lent(b"abc")
    ref = weakref.ref(lent)
    with pytest.raises(Boom):
        buf.add_reference(lent)
    del lent
    gc.collect()  # the traceback
    assert ref() is not None
    assert buf == b"abc"
    entry.remove()
    buf.drain(3)
    assert ref() is None


def test_what_was_lent_may_go_in_the_callback_of_its_own_coming() -> None:
    buf = EvBuffer()

    def drains(buf: EvBuffer, _size: int, added: int, _deleted: int) -> None:
        if added:
            buf.drain(added)

    buf.add_cb(drains)
    lent = lend(buf, b"abc")
    assert lent() is None
    assert buf == b""


def test_a_view_of_another_buffer_can_be_lent(buf: EvBuffer) -> None:
    other = EvBuffer()
    other.add_reference(buf.peek()[0])
    with pytest.raises(BufferError):
        buf.drain(1)
    assert other.remove(6) == b"abcdef"
    buf.drain(1)


def test_a_view_of_the_buffer_itself_cannot_be_lent(buf: EvBuffer) -> None:
    with pytest.raises(BufferError):
        buf.add_reference(buf.peek()[0])
    buf.add(b"g")
    assert buf == b"abcdefg"


@pytest.mark.parametrize("how", LETTING_GO)
def test_a_finalizer_of_what_was_lent_may_use_the_buffer(how: str) -> None:
    buf = EvBuffer()
    seen: list[object] = []

    class Finalized(bytearray):
        def __del__(self) -> None:
            try:
                buf.add(b"from the finalizer")
                seen.append(buf.copyout(100))
            except (ClosedError, BufferError) as error:
                seen.append(type(error))

    buf.add_reference(Finalized(b"ab\n"))
    buf.add_reference(b"c\n")
    LETTING_GO[how](buf)
    if how == "close":
        assert seen == [ClosedError]
    elif how == "pullup":
        assert seen == [BufferError]  # the view that pullup() is about to return is out
    else:
        assert len(seen) == 1
        assert bytes(buf).endswith(b"from the finalizer")


def test_a_finalizer_of_what_was_lent_may_close_the_buffer() -> None:
    buf = EvBuffer()

    class Finalized(bytearray):
        def __del__(self) -> None:
            buf.close()

    buf.add_reference(Finalized(b"ab"))
    buf.add(b"c" * 10_000)
    assert buf.remove(2) == b"ab"
    assert buf.closed


def test_an_exception_in_a_finalizer_of_what_was_lent_is_reported_as_pythons_own(
    unraisables: list[BaseException | None],
) -> None:
    class Finalized(bytearray):
        def __del__(self) -> None:
            raise Boom

    buf = EvBuffer()
    buf.add_reference(Finalized(b"ab"))
    buf.drain(2)
    assert [type(error) for error in unraisables] == [Boom]
    assert buf == b""


def test_what_was_lent_is_let_go_of_when_the_loop_has_written_it(
    sockets: Sockets, bev: BufferEvent, run_until: RunUntil
) -> None:
    lent = lend(bev.output, b"x" * 1000)
    buf = EvBuffer()
    moved = lend(buf, b"y" * 1000)
    bev.write_buffer(buf)
    assert lent() is not None
    assert moved() is not None
    run_until(lambda: lent() is None and moved() is None)
    assert sockets[1].recv(3000) == b"x" * 1000 + b"y" * 1000


def test_what_was_lent_is_let_go_of_before_the_loop_ends(
    base: EventBase, sockets: Sockets, bev: BufferEvent
) -> None:
    lent = lend(bev.output, b"x" * 1000)
    base.dispatch()
    assert lent() is None


def test_what_was_lent_is_let_go_of_when_the_bufferevent_is_closed(
    base: EventBase, bev: BufferEvent
) -> None:
    lent = lend(bev.output, b"x" * 1000)
    bev.close()
    base.loop(EVLOOP_NONBLOCK)
    assert lent() is None


def test_what_was_lent_is_let_go_of_when_the_base_is_closed(
    base: EventBase, bev: BufferEvent
) -> None:
    lent = lend(bev.output, b"x" * 1000)
    base.close()
    assert lent() is None


# ---- add_file ----


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, -1), (0, 20000), (1, -1), (4096, -1), (5000, -1), (5000, 3), (19999, -1), (8191, 8193)],
)
def test_add_file_adds_a_part_of_a_file(file: BinaryIO, offset: int, length: int) -> None:
    buf = EvBuffer(b"<")
    buf.add_file(file, offset, length)
    buf.add(b">")
    end = len(CONTENT) if length < 0 else offset + length
    assert bytes(buf) == b"<" + CONTENT[offset:end] + b">"


def test_add_file_takes_a_descriptor_and_leaves_it_where_it_was(file: BinaryIO) -> None:
    fd = file.fileno()
    os.lseek(fd, 7, os.SEEK_SET)
    buf = EvBuffer()
    buf.add_file(fd, 10, 5)
    assert buf == CONTENT[10:15]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_add_file_of_nothing_adds_nothing(file: BinaryIO) -> None:
    buf = EvBuffer()
    buf.add_file(file, 0, 0)
    buf.add_file(file, len(CONTENT))
    file.truncate(0)
    buf.add_file(file)
    assert len(buf) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (20001, -1),
        (20000, 1),
        (0, 20001),
        (19999, 2),
        (-1, -1),
        (0, -2),
        (1 << 62, -1),
        (0, 1 << 62),
        (1 << 70, -1),
        (0, 1 << 70),
    ],
)
def test_add_file_beyond_the_end_is_a_value_error(file: BinaryIO, offset: int, length: int) -> None:
    buf = EvBuffer(b"abc")
    with pytest.raises(ValueError):  # noqa: PT011
        buf.add_file(file, offset, length)
    assert buf == b"abc"


@pytest.mark.parametrize("bad", [1.5, "0", None])
def test_add_file_with_wrong_types_leaves_no_descriptor_open(file: BinaryIO, bad: Any) -> None:
    buf = EvBuffer()
    with pytest.raises(TypeError):
        buf.add_file(file, bad)
    with pytest.raises(TypeError):
        buf.add_file(file, 0, bad)
    not_a_file: Any = object()
    with pytest.raises(TypeError):
        buf.add_file(not_a_file)


def test_a_file_may_be_closed_unlinked_and_truncated_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    buf = EvBuffer()
    with path.open("rb") as file:
        buf.add_file(file, 100)
    os.truncate(path, 10)
    path.unlink()
    assert bytes(buf) == CONTENT[100:]


def test_a_file_moves_and_comes_out_in_parts(file: BinaryIO) -> None:
    first, second = EvBuffer(), EvBuffer()
    first.add_file(file)
    first.remove_buffer(second, 5000)
    assert second.remove() == CONTENT[:5000]
    second.add_buffer(first)
    assert second.remove() == CONTENT[5000:]


def test_add_file_of_a_directory_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    buf = EvBuffer()
    try:
        with pytest.raises(IsADirectoryError):
            buf.add_file(fd)
    finally:
        os.close(fd)
    assert buf == b""


def test_add_file_of_a_pipe_or_socket_is_an_error(sockets: Sockets) -> None:
    ends = os.pipe()
    buf = EvBuffer()
    try:
        for what in (ends[0], sockets[0]):
            with pytest.raises(OSError, match="evbuffer_add_file"):
                buf.add_file(what)
    finally:
        os.close(ends[0])
        os.close(ends[1])
    assert buf == b""


def test_add_file_of_a_closed_or_write_only_descriptor_is_an_error(tmp_path: Path) -> None:
    buf = EvBuffer()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        buf.add_file(-1)
    assert caught.value.errno == errno.EBADF
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"abc")
        with pytest.raises(OSError) as caught:  # noqa: PT011
            buf.add_file(file)
    assert caught.value.errno == errno.EBADF


def test_add_file_to_a_frozen_end_is_refused(file: BinaryIO) -> None:
    script("""
import tempfile
from pylibevent import EvBuffer, LibeventError
buf = EvBuffer()
buf.freeze(False)
with tempfile.TemporaryFile() as file:
    file.write(bytes(1000))
    file.flush()
    for _ in range(100):
        try:
            buf.add_file(file)
        except LibeventError:
            continue
        raise AssertionError("it was not refused")
""")


@pytest.mark.parametrize(("offset", "length"), [(0, -1), (5000, -1), (5000, 100)])
def test_a_socket_gets_a_file_by_sendfile(
    sockets: Sockets,
    bev: BufferEvent,
    run_until: RunUntil,
    file: BinaryIO,
    offset: int,
    length: int,
) -> None:
    expected = CONTENT[offset:] if length < 0 else CONTENT[offset : offset + length]
    bev.write(b"<")
    bev.output.add_file(file, offset, length)
    bev.write(b">")
    assert len(bev.output) == len(expected) + 2
    file.close()
    got = bytearray()

    def received() -> bool:
        with contextlib.suppress(BlockingIOError):
            got.extend(sockets[1].recv(1 << 16))
        return got.endswith(b">") and len(got) == len(expected) + 2

    run_until(received)
    assert got == b"<" + expected + b">"
    assert bev.output == b""


READS: dict[str, Callable[[EvBuffer], object]] = {
    "bytes": bytes,
    "==": lambda buf: buf == b"",
    "in": lambda buf: b"x" in buf,
    "remove": lambda buf: buf.remove(),
    "remove_into": lambda buf: buf.remove_into(bytearray(1)),
    "copyout": lambda buf: buf.copyout(1),
    "copyout_from": lambda buf: buf.copyout_from(1, 1),
    "readln": lambda buf: buf.readln(),
    "readlines": lambda buf: buf.readlines(),
    "search": lambda buf: buf.search(b"x"),
    "search_eol": lambda buf: buf.search_eol(),
    "peek": lambda buf: buf.peek(),
    "pullup": lambda buf: buf.pullup(),
}


@pytest.mark.parametrize("read", READS)
def test_a_file_that_goes_out_by_sendfile_cannot_be_read(
    bev: BufferEvent, file: BinaryIO, read: str
) -> None:
    bev.output.unfreeze(True)
    bev.output.add_file(file)
    assert len(bev.output) == len(CONTENT)
    with pytest.raises(BufferError):
        READS[read](bev.output)


def test_a_file_for_sendfile_stays_unreadable_wherever_it_is_moved(
    bev: BufferEvent, base: EventBase, file: BinaryIO
) -> None:
    """Its bytes are nowhere in memory: showing what lies there instead would be a leak."""
    first, second = BufferEvent.pair(base)
    second.enable(EV_READ)
    bev.output.unfreeze(True)
    elsewhere = EvBuffer(b"abc")
    for move in (
        lambda: bev.output.remove_buffer(elsewhere, 10),
        lambda: elsewhere.add_buffer(bev.output),
        lambda: first.write_buffer(elsewhere),
        lambda: first.write_buffer(bev.output),
        lambda: base.loop(EVLOOP_NONBLOCK),
    ):
        if not len(bev.output):
            bev.output.add_file(file)
        try:
            move()
        except BufferError:
            continue
        for buf in (bev.output, elsewhere, first.output, second.input):
            try:
                got = bytes(buf)
            except BufferError:
                continue
            assert got in (b"", b"abc") or CONTENT.startswith(got.removeprefix(b"abc"))


def test_a_file_that_got_shorter_ends_the_writing(
    sockets: Sockets, bev: BufferEvent, run_until: RunUntil, file: BinaryIO
) -> None:
    happened: list[int] = []
    bev.setcb(None, None, lambda _bev, what: happened.append(what))
    bev.output.add_file(file)
    file.truncate(100)
    run_until(lambda: happened)
    assert happened[0] & BEV_EVENT_WRITING
    assert happened[0] & (BEV_EVENT_EOF | BEV_EVENT_ERROR)
    assert not happened[0] & BEV_EVENT_CONNECTED
    assert sockets[1].recv(1000) == CONTENT[:100]


def test_a_directory_on_a_sockets_output_is_refused_at_once(
    bev: BufferEvent, tmp_path: Path
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            bev.output.add_file(fd)
    finally:
        os.close(fd)
    assert bev.output == b""


def test_a_pairs_output_reads_a_file_into_memory(base: EventBase, file: BinaryIO) -> None:
    first, second = BufferEvent.pair(base)
    second.enable(EV_READ)
    first.output.add_file(file, 5000)
    base.loop(EVLOOP_NONBLOCK)
    assert bytes(second.input) == CONTENT[5000:]


# ---- read and write ----


def test_read_takes_what_is_there(sockets: Sockets) -> None:
    buf = EvBuffer(b"_")
    sockets[1].send(b"abcdef")
    assert buf.read(sockets[0], 2) == 2
    assert buf.read(sockets[0].fileno()) == 4
    assert buf == b"_abcdef"


def test_read_when_nothing_is_there_would_block(buf: EvBuffer, sockets: Sockets) -> None:
    with pytest.raises(BlockingIOError):
        buf.read(sockets[0])
    assert buf == b"abcdef"


def test_read_at_the_end_of_file_is_0(buf: EvBuffer, sockets: Sockets) -> None:
    sockets[1].shutdown(socket.SHUT_WR)
    assert buf.read(sockets[0]) == 0
    assert buf == b"abcdef"


def test_read_of_0_bytes_takes_none(buf: EvBuffer, sockets: Sockets) -> None:
    sockets[1].send(b"abc")
    assert buf.read(sockets[0], 0) == 0
    assert buf == b"abcdef"
    assert buf.read(sockets[0]) == 3


def test_read_from_a_pipe_and_a_file(file: BinaryIO) -> None:
    ends = os.pipe()
    try:
        os.write(ends[1], b"abc")
        buf = EvBuffer()
        assert buf.read(ends[0]) == 3
    finally:
        os.close(ends[0])
        os.close(ends[1])
    file.seek(0)
    buf = EvBuffer()
    while buf.read(file):
        pass
    assert bytes(buf) == CONTENT


def test_read_errors_are_os_errors(buf: EvBuffer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="evbuffer_read") as caught:
        buf.read(-1)
    assert caught.value.errno == errno.EBADF
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            buf.read(fd)
    finally:
        os.close(fd)
    assert buf == b"abcdef"


def test_a_peers_reset_is_an_error_of_read(buf: EvBuffer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with peer:
            client.send(b"unread")
            peer.send(b"unread")
            client.close()  # with bytes unread: a reset
            peer.recv(10)
            with pytest.raises(ConnectionResetError):
                buf.read(peer)


def test_write_sends_and_removes(sockets: Sockets) -> None:
    buf = in_pieces(b"abc", b"def")
    assert buf.write(sockets[0], 4) == 4
    assert buf == b"ef"
    assert buf.write(sockets[0].fileno()) == 2
    assert buf == b""
    assert sockets[1].recv(100) == b"abcdef"


def test_write_of_nothing_is_0(buf: EvBuffer, sockets: Sockets) -> None:
    assert EvBuffer().write(sockets[0]) == 0
    assert buf.write(sockets[0], 0) == 0
    assert buf == b"abcdef"


def test_write_to_what_is_full_would_block_and_loses_nothing(sockets: Sockets) -> None:
    data = os.urandom(8 * BIG)
    buf = EvBuffer(data)
    written = buf.write(sockets[0])
    assert 0 < written < len(data)
    with contextlib.suppress(BlockingIOError):
        while True:
            written += buf.write(sockets[0])
    with pytest.raises(BlockingIOError):
        buf.write(sockets[0])
    assert bytes(buf) == data[written:]


def test_write_of_many_pieces(sockets: Sockets) -> None:
    data = bytes(i % 256 for i in range(1000))
    buf = one_byte_pieces(data)
    while buf:
        assert buf.write(sockets[0]) > 0
    assert sockets[1].recv(2000) == data


def test_write_to_a_closed_peer_is_a_broken_pipe(buf: EvBuffer, sockets: Sockets) -> None:
    sockets[1].close()
    with pytest.raises(BrokenPipeError):
        buf.write(sockets[0])
    assert buf == b"abcdef"
    ends = os.pipe()
    os.close(ends[0])
    try:
        with pytest.raises(BrokenPipeError):
            buf.write(ends[1])
    finally:
        os.close(ends[1])


def test_write_errors_are_os_errors(buf: EvBuffer) -> None:
    with pytest.raises(OSError, match="evbuffer_write") as caught:
        buf.write(-1)
    assert caught.value.errno == errno.EBADF


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """alarm(function): a signal's handler calls it a moment later."""
    before = signal.getsignal(signal.SIGALRM)

    def start(function: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: function())
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signals_handler_runs_during_a_blocking_read_which_then_goes_on(
    sockets: Sockets, alarm: Callable[[Callable[[], object]], None]
) -> None:
    sockets[0].setblocking(True)
    alarm(lambda: sockets[1].send(b"now"))
    buf = EvBuffer()
    assert buf.read(sockets[0]) == 3
    assert buf == b"now"


def test_what_a_signals_handler_raises_leaves_a_blocking_read(
    buf: EvBuffer, sockets: Sockets, alarm: Callable[[Callable[[], object]], None]
) -> None:
    def raises() -> None:
        raise Boom

    sockets[0].setblocking(True)
    alarm(raises)
    with pytest.raises(Boom):
        buf.read(sockets[0])
    assert buf == b"abcdef"


# ---- freeze ----

FROM_FRONT: dict[str, Callable[[EvBuffer, EvBuffer, Sockets], object]] = {
    "remove": lambda buf, other, s: buf.remove(1),
    "remove all": lambda buf, other, s: buf.remove(),
    "remove_into": lambda buf, other, s: buf.remove_into(bytearray(1)),
    "drain": lambda buf, other, s: buf.drain(1),
    "readln": lambda buf, other, s: buf.readln(),
    "readlines": lambda buf, other, s: buf.readlines(),
    "prepend": lambda buf, other, s: buf.prepend(b"x"),
    "prepend_buffer": lambda buf, other, s: buf.prepend_buffer(other),
    "remove_buffer": lambda buf, other, s: buf.remove_buffer(other, 1),
    "add_buffer from it": lambda buf, other, s: other.add_buffer(buf),
    "write": lambda buf, other, s: buf.write(s[0]),
}
AT_END: dict[str, Callable[[EvBuffer, EvBuffer, Sockets], object]] = {
    "add": lambda buf, other, s: buf.add(b"x"),
    "add_printf": lambda buf, other, s: buf.add_printf("x"),
    "add_reference": lambda buf, other, s: buf.add_reference(b"x"),
    "add_buffer": lambda buf, other, s: buf.add_buffer(other),
    "remove_buffer to it": lambda buf, other, s: other.remove_buffer(buf, 1),
    "read": lambda buf, other, s: buf.read(full_socket(s)),
}


@pytest.mark.parametrize(
    ("at_front", "call"),
    [(True, call) for call in FROM_FRONT.values()] + [(False, call) for call in AT_END.values()],
    ids=[f"front-{name}" for name in FROM_FRONT] + [f"end-{name}" for name in AT_END],
)
def test_a_frozen_end_of_a_buffer_stays_as_it_is(
    at_front: bool, call: Callable[[EvBuffer, EvBuffer, Sockets], object], sockets: Sockets
) -> None:
    buf, other = EvBuffer(b"line\n"), EvBuffer(b"other")
    buf.freeze(at_front)
    with pytest.raises(LibeventError):
        call(buf, other, sockets)
    assert buf == b"line\n"
    assert other == b"other"
    buf.unfreeze(at_front)
    call(buf, other, sockets)


def test_the_other_end_of_a_frozen_buffer_is_free(buf: EvBuffer) -> None:
    buf.freeze(True)
    buf.add(b"g")
    buf.unfreeze(True)
    buf.freeze(False)
    assert buf.remove(3) == b"abc"
    buf.prepend(b"_")
    assert buf == b"_defg"


def test_a_bufferevents_buffers_are_frozen_where_libevent_works(bev: BufferEvent) -> None:
    with pytest.raises(LibeventError):
        bev.input.add(b"x")
    bev.output.add(b"x")
    with pytest.raises(LibeventError):
        bev.output.remove(1)


# ---- callbacks ----


def recorder(buf: EvBuffer) -> list[Change]:
    changes: list[Change] = []
    buf.add_cb(lambda _buf, *change: changes.append(change))
    return changes


def test_a_callback_is_told_what_changed(buf: EvBuffer) -> None:
    calls: list[tuple[object, ...]] = []
    buf.add_cb(lambda *args: calls.append(args), "an", "argument")
    buf.add(b"ghi")
    assert calls == [(buf, 6, 3, 0, "an", "argument")]
    assert calls[0][0] is buf


COUNTS: dict[str, tuple[Callable[[EvBuffer, EvBuffer, Sockets], object], Change]] = {
    "add": (lambda buf, other, s: buf.add(b"xy"), (6, 2, 0)),
    "add much": (lambda buf, other, s: buf.add(b"x" * 10_000), (6, 10_000, 0)),
    "prepend": (lambda buf, other, s: buf.prepend(b"xy"), (6, 2, 0)),
    "prepend much": (lambda buf, other, s: buf.prepend(b"x" * 10_000), (6, 10_000, 0)),
    "add_reference": (lambda buf, other, s: buf.add_reference(b"xy"), (6, 2, 0)),
    "add_buffer": (lambda buf, other, s: buf.add_buffer(other), (6, 5, 0)),
    "prepend_buffer": (lambda buf, other, s: buf.prepend_buffer(other), (6, 5, 0)),
    "remove": (lambda buf, other, s: buf.remove(2), (6, 0, 2)),
    "remove_into": (lambda buf, other, s: buf.remove_into(bytearray(2)), (6, 0, 2)),
    "drain": (lambda buf, other, s: buf.drain(100), (6, 0, 6)),
    "readln": (lambda buf, other, s: buf.readln(), (6, 0, 3)),
    "readlines": (lambda buf, other, s: buf.readlines(), (6, 0, 6)),
    "moved": (lambda buf, other, s: other.add_buffer(buf), (6, 0, 6)),
    "remove_buffer": (lambda buf, other, s: buf.remove_buffer(other, 4), (6, 0, 4)),
    "read": (lambda buf, other, s: buf.read(full_socket(s)), (6, 4, 0)),
    "write": (lambda buf, other, s: buf.write(s[0], 4), (6, 0, 4)),
}


@pytest.mark.parametrize(("call", "change"), COUNTS.values(), ids=list(COUNTS))
def test_the_counts_of_a_change(
    call: Callable[[EvBuffer, EvBuffer, Sockets], object], change: Change, sockets: Sockets
) -> None:
    buf, other = EvBuffer(b"ab\ncd\n"), EvBuffer(b"other")
    changes = recorder(buf)
    call(buf, other, sockets)
    assert changes == [change]


def test_the_counts_of_a_move_to_another_buffer_add_up() -> None:
    source, target = in_pieces(b"abc", b"def"), EvBuffer(b"12")
    changes = recorder(target)
    source.remove_buffer(target, 4)
    assert sum(added - deleted for _, added, deleted in changes) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda buf: buf.add(b""),
        lambda buf: buf.drain(0),
        lambda buf: buf.remove(0),
        lambda buf: buf.expand(10_000),
        lambda buf: buf.copyout(3),
        lambda buf: buf.pullup().release(),
        lambda buf: buf.readln(),
        lambda buf: buf.add_buffer(EvBuffer()),
        lambda buf: buf.add_buffer(buf),
    ],
)
def test_no_change_no_callback(call: Callable[[EvBuffer], object]) -> None:
    buf = in_pieces(b"abc", b"def")
    changes = recorder(buf)
    call(buf)
    assert changes == []


def test_callbacks_are_called_in_the_order_they_were_added(buf: EvBuffer) -> None:
    calls: list[int] = []
    for i in range(5):
        buf.add_cb(lambda *_args, i=i: calls.append(i))
    buf.add(b"x")
    assert calls == [0, 1, 2, 3, 4]


def test_the_same_function_may_be_there_twice(buf: EvBuffer) -> None:
    calls: list[object] = []
    first = buf.add_cb(lambda *args: calls.append(args[4]), 1)
    buf.add_cb(first.callback, 2)
    buf.add(b"x")
    first.remove()
    buf.add(b"x")
    assert calls == [1, 2, 2]


def test_a_removed_callback_is_not_called(buf: EvBuffer) -> None:
    calls: list[object] = []
    entry = buf.add_cb(lambda *_: calls.append(1))
    assert entry.active
    entry.remove()
    entry.remove()  # as often as you like
    assert not entry.active
    buf.add(b"x")
    assert calls == []
    buf.add_cb(lambda *_: calls.append(2))
    buf.add(b"x")
    assert calls == [2]


def test_a_callback_may_remove_itself(buf: EvBuffer) -> None:
    calls: list[object] = []

    def once(*_: object) -> None:
        calls.append(1)
        entry.remove()

    entry = buf.add_cb(once)
    later = recorder(buf)
    buf.add(b"x")
    buf.add(b"x")
    assert calls == [1]
    assert len(later) == 2


def test_a_callback_may_remove_the_next_one(buf: EvBuffer) -> None:
    calls: list[object] = []
    first = buf.add_cb(lambda *_: second.remove())
    second = buf.add_cb(lambda *_: calls.append("second"))
    buf.add_cb(lambda *_: calls.append("third"))
    buf.add(b"x")
    assert first.active
    assert calls == ["third"]


def test_a_callback_may_remove_all_and_add_new_ones(buf: EvBuffer) -> None:
    calls: list[object] = []

    def replace(buf: EvBuffer, *_: object) -> None:
        for entry in entries:
            entry.remove()
        buf.add_cb(lambda *_: calls.append("new"))

    entries = [buf.add_cb(replace), buf.add_cb(lambda *_: calls.append("old"))]
    buf.add(b"x")
    assert calls == []  # the new one from the next change on
    buf.add(b"x")
    assert calls == ["new"]


def test_a_callback_may_change_the_buffer(buf: EvBuffer) -> None:
    def halve(buf: EvBuffer, _size: int, added: int, _deleted: int) -> None:
        if added:
            buf.drain(added // 2)

    buf.add_cb(halve)
    changes = recorder(buf)
    buf.add(b"ghij")
    assert buf == b"cdefghij"
    assert sorted(changes) == [(6, 4, 0), (10, 0, 2)]


def test_a_callback_may_move_the_buffer_somewhere_else(buf: EvBuffer) -> None:
    target = EvBuffer()
    buf.add_cb(lambda buf, *_: target.add_buffer(buf))
    buf.add(b"ghi")
    buf.prepend(b"jkl")
    assert buf == b""
    assert target == b"abcdefghijkl"


def test_two_buffers_may_feed_each_other() -> None:
    a, b = EvBuffer(), EvBuffer()

    def pass_on(buf: EvBuffer, _size: int, added: int, _deleted: int, to: EvBuffer) -> None:
        if added and len(buf) < 4:
            to.add(b"x" * (len(buf) + 1))

    a.add_cb(pass_on, b)
    b.add_cb(pass_on, a)
    a.add(b"x")
    assert (len(a), len(b)) == (4, 2)


def test_in_the_middle_of_a_move_the_source_cannot_change() -> None:
    """libevent has not taken the bytes off its front yet when the target's callback runs."""
    source, target = in_pieces(b"abc", b"defg"), EvBuffer()
    refused: list[type[BaseException]] = []

    def meddle(_buf: EvBuffer, *_: object) -> None:
        for call in (EvBuffer.remove, lambda buf: buf.drain(1), lambda buf: buf.add(b"x")):
            try:
                call(source)
            except BufferError as error:
                refused.append(type(error))

    entry = target.add_cb(meddle)
    assert source.remove_buffer(target, 5) == 5
    assert refused[:3] == [BufferError] * 3
    entry.remove()
    assert (bytes(source), bytes(target)) == (b"fg", b"abcde")
    source.drain(1)
    source.close()


def test_in_the_middle_of_a_move_the_source_can_be_closed() -> None:
    source, target = in_pieces(b"abc", b"defg"), EvBuffer()
    target.add_cb(lambda *_: source.close())
    source.remove_buffer(target, 5)
    assert target == b"abcde"
    assert source.closed


def test_a_callback_may_refill_the_source_of_a_move() -> None:
    source, target = EvBuffer(b"abc"), EvBuffer()

    def refill(buf: EvBuffer, _size: int, _added: int, deleted: int) -> None:
        if deleted:
            buf.add(b"def")

    source.add_cb(refill)
    target.add_buffer(source)
    assert (bytes(source), bytes(target)) == (b"def", b"abc")


def test_recursion_without_end_is_a_recursion_error(buf: EvBuffer) -> None:
    buf.add_cb(lambda buf, *_: buf.add(b"x"))
    with pytest.raises(RecursionError):
        buf.add(b"x")
    assert bytes(buf).startswith(b"abcdefxxx")


def test_recursion_without_end_is_one_wherever_the_limit_is_hit() -> None:
    script("""
from pylibevent import EvBuffer
def deeper(n, function):
    return deeper(n - 1, function) if n else function()
for n in range(16):
    buf = EvBuffer()
    buf.add_cb(lambda buf, *_: buf.add(b"x"))
    try:
        deeper(n, lambda: buf.add(b"x"))
    except RecursionError:
        continue
    raise AssertionError("no RecursionError")
""")


@pytest.mark.parametrize(
    "change", [name for name in CHANGES if name not in {"expand", "pullup", "close"}]
)
def test_a_callback_may_close_its_buffer(change: str, sockets: Sockets) -> None:
    buf, other = in_pieces(b"line\n", b"def\n"), EvBuffer(b"other")
    calls: list[object] = []

    def close(buf: EvBuffer, *_: object) -> None:
        calls.append(1)
        buf.close()
        assert buf.closed
        with pytest.raises(ClosedError):
            buf.add(b"x")

    buf.add_cb(close)
    buf.add_cb(lambda *_: calls.append(2))
    CHANGES[change](buf, other, sockets)
    assert calls == [1]
    assert buf.closed


def test_a_callback_may_close_the_other_buffer_of_a_move() -> None:
    for move in (EvBuffer.add_buffer, EvBuffer.prepend_buffer):
        source, target = EvBuffer(b"abc"), EvBuffer(b"x")
        source.add_cb(lambda _buf, *_: target.close())  # noqa: B023
        move(target, source)
        assert target.closed
        assert source == b""


def test_after_a_close_in_a_callback_what_was_lent_is_let_go_of() -> None:
    buf = EvBuffer()
    lent = lend(buf, b"abc")
    buf.add_cb(lambda buf, *_: buf.close())
    buf.add(b"x")
    assert lent() is None


def test_a_callback_may_take_a_view_and_keep_it(buf: EvBuffer) -> None:
    views: list[memoryview] = []
    entry = buf.add_cb(lambda buf, *_: views.extend(buf.peek()))
    buf.add(b"g")
    entry.remove()
    assert views_of(views) == [b"abcdefg"]
    with pytest.raises(BufferError):
        buf.add(b"h")
    views.clear()
    buf.add(b"h")


@pytest.mark.parametrize("change", COUNTS)
def test_what_a_callback_raises_leaves_the_call(change: str, sockets: Sockets) -> None:
    call, (size, added, deleted) = COUNTS[change]
    buf, other = EvBuffer(b"ab\ncd\n"), EvBuffer(b"other")

    def raises(*_: object) -> None:
        raise Boom("here")

    entry = buf.add_cb(raises)
    with pytest.raises(Boom, match="here") as caught:
        call(buf, other, sockets)
    assert caught.traceback[-1].name == "raises"
    entry.remove()
    assert len(buf) == size + added - deleted  # the change was made


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
def test_a_callback_may_raise_anything(buf: EvBuffer, kind: type[BaseException]) -> None:
    error = kind()

    def raises(*_: object) -> None:
        raise error

    buf.add_cb(raises)
    with pytest.raises(kind) as caught:
        buf.add(b"x")
    assert caught.value is error


def test_the_callbacks_after_one_that_raised_are_called(
    buf: EvBuffer, unraisables: list[BaseException | None]
) -> None:
    first, second = Boom("first"), Boom("second")

    def raises(_buf: EvBuffer, *args: object) -> None:
        error = args[-1]
        assert isinstance(error, Boom)
        raise error

    buf.add_cb(raises, first)
    changes = recorder(buf)
    buf.add_cb(raises, second)
    with pytest.raises(Boom) as caught:
        buf.add(b"x")
    assert caught.value is first
    assert changes == [(6, 1, 0)]
    assert unraisables == [second]  # lost to the call, not to the user


def test_what_the_callback_of_a_nested_call_raises_leaves_that_call(
    buf: EvBuffer, unraisables: list[BaseException | None]
) -> None:
    other = EvBuffer()
    nested: list[BaseException] = []

    def raises(_buf: EvBuffer, *args: object) -> None:
        raise Boom(args[-1])

    def catches(*_: object) -> None:
        try:
            other.add(b"x")
        except Boom as error:
            nested.append(error)

    other.add_cb(raises, "inner")
    buf.add_cb(raises, "outer")
    buf.add_cb(catches)
    with pytest.raises(Boom, match="outer"):
        buf.add(b"x")
    assert [str(error) for error in nested] == ["inner"]
    assert unraisables == []


def test_an_exception_caught_in_a_callback_does_not_leave_the_outer_call(buf: EvBuffer) -> None:
    def catches(buf: EvBuffer, _size: int, added: int, _deleted: int) -> None:
        if added:
            with pytest.raises(ValueError, match="range"):
                buf.pullup(1000)
            with pytest.raises(Boom):
                buf.drain(1)
        else:
            raise Boom

    buf.add_cb(catches)
    buf.add(b"x")
    assert buf == b"bcdefx"


def test_readlines_in_several_steps_does_not_lose_an_exception() -> None:
    buf = EvBuffer(b"x" * 99 + b"\n")
    buf.add((b"y" * 99 + b"\n") * 2000)
    drains: list[int] = []

    def raises_the_second_time(_buf: EvBuffer, *change: int) -> None:
        drains.append(change[2])
        if len(drains) == 2:
            raise Boom

    buf.add_cb(raises_the_second_time)
    with pytest.raises(Boom):
        buf.readlines()


def test_a_callback_cannot_run_a_loop(buf: EvBuffer, base: EventBase) -> None:
    buf.add_cb(lambda *_: base.loop(EVLOOP_NONBLOCK))
    with pytest.raises(RuntimeError):
        buf.add(b"x")


def test_callbacks_are_let_go_of_with_the_buffer() -> None:
    class Callback:
        def __call__(self, *_: object) -> None:
            pass

    gc.disable()
    try:
        callback = Callback()
        gone = weakref.ref(callback)
        buf = EvBuffer()
        entry = buf.add_cb(callback)
        buf.close()
        del callback, buf, entry
        assert gone() is None
    finally:
        gc.enable()


def test_a_closed_buffer_with_callbacks_is_no_cycle() -> None:
    gc.disable()
    try:
        buf = EvBuffer()
        gone = weakref.ref(buf)
        buf.add_cb(lambda *_: None)
        buf.close()
        del buf
        assert gone() is None
    finally:
        gc.enable()


def test_a_closed_bufferevents_buffers_with_callbacks_are_no_cycle(
    base: EventBase, bev: BufferEvent
) -> None:
    gc.disable()
    try:
        output = weakref.ref(bev.output)
        bev.output.add_cb(lambda *_: None)
        bev.close()
        base.loop(EVLOOP_NONBLOCK)
        assert output() is None
    finally:
        gc.enable()


def test_callbacks_on_a_bufferevents_input_are_called_by_the_loop(
    sockets: Sockets, bev: BufferEvent, run_until: RunUntil
) -> None:
    changes = recorder(bev.input)  # the bufferevent keeps it, no name needed
    bev.enable(EV_READ)
    sockets[1].send(b"abc")
    run_until(lambda: changes)
    assert changes == [(0, 3, 0)]
    assert bev.read() == b"abc"
    assert changes == [(0, 3, 0), (3, 0, 3)]


def test_callbacks_on_a_bufferevents_output_are_called_by_the_loop(
    sockets: Sockets, bev: BufferEvent, run_until: RunUntil
) -> None:
    changes = recorder(bev.output)
    bev.write(b"abc")
    assert changes == [(0, 3, 0)]
    run_until(lambda: len(changes) > 1)
    assert changes == [(0, 3, 0), (3, 0, 3)]
    assert sockets[1].recv(10) == b"abc"


def test_a_callback_on_an_input_may_take_what_came(
    sockets: Sockets, bev: BufferEvent, run_until: RunUntil
) -> None:
    got = bytearray()
    bev.input.add_cb(lambda buf, _size, added, _deleted: got.extend(buf.remove(added)))
    bev.enable(EV_READ)
    sockets[1].send(b"x" * 10_000)
    run_until(lambda: len(got) == 10_000)
    assert bev.input == b""


@pytest.mark.parametrize("which", ["input", "output"])
def test_what_a_callback_raises_under_the_loop_leaves_the_loop(
    base: EventBase, sockets: Sockets, bev: BufferEvent, which: str
) -> None:
    def raises(_buf: EvBuffer, *change: int) -> None:
        if which == "input" or change[2]:
            raise Boom

    buf: EvBuffer = getattr(bev, which)
    entry = buf.add_cb(raises)
    bev.enable(EV_READ)
    bev.write(b"abc")
    sockets[1].send(b"def")
    with pytest.raises(Boom):
        base.dispatch()
    entry.remove()
    while len(bev.input) < 3 or len(bev.output):
        base.loop(EVLOOP_NONBLOCK)
    assert bev.input == b"def"
    assert sockets[1].recv(10) == b"abc"


@pytest.mark.parametrize("closing", ["bev", "base"])
@pytest.mark.parametrize("which", ["input", "output"])
@pytest.mark.parametrize("outside", [True, False], ids=["outside", "in the loop"])
def test_a_callback_may_close_the_bufferevent_or_the_base(
    closing: str, which: str, outside: bool
) -> None:
    if outside and which == "input":
        action = "bev.input.drain(10)"
    elif outside:
        action = "bev.write(bytes(100_000))"
    else:
        action = "base.dispatch()"
    script(f"""
import socket
from pylibevent import BufferEvent, ClosedError, EV_READ, EVLOOP_ONCE, EventBase
base = EventBase()
a, b = socket.socketpair()
bev = BufferEvent.socket(base, a)
buf = bev.{which}
called = []
def close(buf, size, added, deleted):
    if {which == "output"} and {not outside} and not deleted:
        return
    called.append((size, added, deleted))
    {closing}.close()
    assert buf.closed
bev.enable(EV_READ)
b.send(bytes(1000))
if {outside} and {which == "input"}:
    while not len(bev.input):
        base.loop(EVLOOP_ONCE)
if not {outside}:
    bev.write(bytes(1000))
buf.add_cb(close)
try:
    {action}
except ClosedError:
    pass
assert len(called) == 1, called
assert bev.closed
try:
    bev.write(b"x")
except ClosedError:
    pass
base.close()
b.close()
""")


@pytest.mark.parametrize("move", ["bev.write_buffer(buf)", "buf.add_buffer(bev.input)"])
@pytest.mark.parametrize("closing", ["bev", "base", "buf"])
def test_a_callback_may_close_either_side_of_a_move(move: str, closing: str) -> None:
    script(f"""
import socket
from pylibevent import BufferEvent, ClosedError, EV_READ, EVLOOP_ONCE, EvBuffer, EventBase
for side in ("buf", "bev"):
    base = EventBase()
    a, b = socket.socketpair()
    bev = BufferEvent.socket(base, a)
    bev.enable(EV_READ)
    b.send(bytes(1000))
    while not len(bev.input):
        base.loop(EVLOOP_ONCE)
    buf = EvBuffer(bytes(100_000))
    called = []
    def close(*args):
        called.append(args)
        {closing}.close()
    for watched in [buf] if side == "buf" else [bev.input, bev.output]:
        watched.add_cb(close)
    try:
        {move}
    except ClosedError:
        pass
    assert called
    assert {closing}.closed
    base.close()
    b.close()
""")


def test_closing_a_bufferevent_in_the_middle_of_a_move_with_a_view_of_the_rest() -> None:
    script("""
import socket
from pylibevent import BufferEvent, EV_READ, EVLOOP_ONCE, EvBuffer, EventBase
base = EventBase()
a, b = socket.socketpair()
bev = BufferEvent.socket(base, a)
bev.enable(EV_READ)
b.send(b"x" * 3000)
source = bev.input
while len(source) < 3000:
    base.loop(EVLOOP_ONCE)
target = EvBuffer()
views = []
def callback(*_):
    views.extend(source.peek())
    bev.close()
target.add_cb(callback)
source.remove_buffer(target, 100)
assert len(target) == 100
base.loop(EVLOOP_ONCE)
assert all(bytes(view) == b"x" * len(view) for view in views)
views.clear()
base.close()
b.close()
""")


# ---- after close, of a buffer and of its bufferevent ----

CALLS: dict[str, Callable[[EvBuffer], object]] = {
    "len": len,
    "bool": bool,
    **READS,
    "ptr": lambda buf: buf.ptr,
    "add": lambda buf: buf.add(b"x"),
    "prepend": lambda buf: buf.prepend(b"x"),
    "add_printf": lambda buf: buf.add_printf("x"),
    "add_reference": lambda buf: buf.add_reference(b"x"),
    "add_file": lambda buf: buf.add_file(0),
    "expand": lambda buf: buf.expand(1),
    "contiguous_space": lambda buf: buf.contiguous_space,
    "add_buffer": lambda buf: buf.add_buffer(EvBuffer(b"x")),
    "add_buffer to another": lambda buf: EvBuffer(b"x").add_buffer(buf),
    "prepend_buffer": lambda buf: buf.prepend_buffer(EvBuffer(b"x")),
    "remove_buffer": lambda buf: buf.remove_buffer(EvBuffer(b"x"), 1),
    "remove 1": lambda buf: buf.remove(1),
    "drain": lambda buf: buf.drain(1),
    "ptr_set": lambda buf: buf.ptr_set(0),
    "search nothing": lambda buf: buf.search(b""),
    "read": lambda buf: buf.read(0),
    "write": lambda buf: buf.write(0),
    "freeze": lambda buf: buf.freeze(True),
    "unfreeze": lambda buf: buf.unfreeze(True),
    "add_cb": lambda buf: buf.add_cb(print),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_buffer_raises_closed_error(call: str, buf: EvBuffer) -> None:
    buf.close()
    with pytest.raises(ClosedError):
        CALLS[call](buf)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("which", ["input", "output"])
def test_the_buffers_of_a_closed_bufferevent_raise_closed_error(
    call: str, which: str, base: EventBase
) -> None:
    bev = BufferEvent.socket(base)
    bev.write(b"dropped")
    buf: EvBuffer = getattr(bev, which)
    bev.close()
    assert buf.closed
    with pytest.raises(ClosedError):
        CALLS[call](buf)


@pytest.mark.parametrize("which", ["input", "output"])
def test_the_buffers_of_a_closed_base_raise_closed_error(which: str, base: EventBase) -> None:
    buf: EvBuffer = getattr(BufferEvent.socket(base), which)
    base.close()
    assert buf.closed
    for call in CALLS.values():
        with pytest.raises(ClosedError):
            call(buf)


def test_closing_twice_and_removing_a_callback_after_close(buf: EvBuffer) -> None:
    entry = buf.add_cb(print)
    buf.close()
    buf.close()
    entry.remove()
    assert buf.closed


def test_close_does_nothing_to_the_buffer_of_a_bufferevent(bev: BufferEvent) -> None:
    bev.output.close()
    assert not bev.output.closed
    bev.write(b"abc")
    assert len(bev.output) == 3


def test_a_closed_error_is_a_value_error_and_a_libevent_error() -> None:
    assert issubclass(ClosedError, ValueError)
    assert issubclass(ClosedError, LibeventError)


# ---- wrong arguments ----

NEGATIVE: dict[str, Callable[[Any], object]] = {
    "remove": lambda buf: buf.remove(-2),
    "drain": lambda buf: buf.drain(-1),
    "copyout": lambda buf: buf.copyout(-1),
    "copyout_from": lambda buf: buf.copyout_from(-1, 1),
    "remove_buffer": lambda buf: buf.remove_buffer(EvBuffer(), -1),
    "expand": lambda buf: buf.expand(-1),
    "peek": lambda buf: buf.peek(-2),
    "peek start": lambda buf: buf.peek(1, -1),
    "pullup": lambda buf: buf.pullup(-2),
    "search start": lambda buf: buf.search(b"a", -1),
    "search end": lambda buf: buf.search(b"a", 0, -1),
    "search_eol": lambda buf: buf.search_eol(-1),
    "ptr_set": lambda buf: buf.ptr_set(-1),
    "readln max_length": lambda buf: buf.readln(EVBUFFER_EOL_LF, -1),
    "readlines max_length": lambda buf: buf.readlines(EVBUFFER_EOL_LF, -1),
    "read": lambda buf: buf.read(0, -2),
    "write": lambda buf: buf.write(0, -2),
}
HUGE: dict[str, Callable[[Any], object]] = {
    "remove": lambda buf: buf.remove(1 << 64),
    "drain": lambda buf: buf.drain(1 << 64),
    "copyout": lambda buf: buf.copyout(1 << 64),
    "copyout_from": lambda buf: buf.copyout_from(1 << 64, 1),
    "remove_buffer": lambda buf: buf.remove_buffer(EvBuffer(), 1 << 64),
    "expand": lambda buf: buf.expand(1 << 64),
    "peek": lambda buf: buf.peek(1 << 64),
    "peek start": lambda buf: buf.peek(1, 1 << 64),
    "pullup": lambda buf: buf.pullup(1 << 64),
    "search start": lambda buf: buf.search(b"a", 1 << 64),
    "search end": lambda buf: buf.search(b"a", 0, 1 << 64),
    "search_eol": lambda buf: buf.search_eol(1 << 64),
    "ptr_set": lambda buf: buf.ptr_set(1 << 64),
    "readln max_length": lambda buf: buf.readln(EVBUFFER_EOL_LF, 1 << 64),
    "readlines max_length": lambda buf: buf.readlines(EVBUFFER_EOL_LF, 1 << 64),
    "read": lambda buf: buf.read(0, 1 << 64),
    "read descriptor": lambda buf: buf.read(1 << 40),
    "write": lambda buf: buf.write(0, 1 << 64),
    "write descriptor": lambda buf: buf.write(1 << 64),
}
UNKNOWN: dict[str, Callable[[Any], object]] = {
    "readln": lambda buf: buf.readln(99),
    "readlines": lambda buf: buf.readlines(99),
    "search_eol": lambda buf: buf.search_eol(0, 99),
    "ptr_set": lambda buf: buf.ptr_set(0, 99),
}
WRONG_VALUES = (
    [(f"negative-{name}", call) for name, call in NEGATIVE.items()]
    + [(f"huge-{name}", call) for name, call in HUGE.items()]
    + [(f"unknown-{name}", call) for name, call in UNKNOWN.items()]
)


@pytest.mark.parametrize(
    "call", [call for _, call in WRONG_VALUES], ids=[name for name, _ in WRONG_VALUES]
)
def test_values_out_of_range_are_value_errors(buf: EvBuffer, call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        call(buf)
    assert buf == b"abcdef"


BAD_NUMBERS: dict[str, Callable[[Any, Any], object]] = {
    "remove": lambda buf, bad: buf.remove(bad),
    "drain": lambda buf, bad: buf.drain(bad),
    "copyout": lambda buf, bad: buf.copyout(bad),
    "copyout_from": lambda buf, bad: buf.copyout_from(bad, 1),
    "remove_buffer": lambda buf, bad: buf.remove_buffer(EvBuffer(), bad),
    "expand": lambda buf, bad: buf.expand(bad),
    "peek": lambda buf, bad: buf.peek(bad),
    "peek start": lambda buf, bad: buf.peek(1, bad),
    "pullup": lambda buf, bad: buf.pullup(bad),
    "search start": lambda buf, bad: buf.search(b"a", bad),
    "search end": lambda buf, bad: buf.search(b"a", 0, bad),
    "search_eol": lambda buf, bad: buf.search_eol(bad),
    "ptr_set": lambda buf, bad: buf.ptr_set(bad),
    "readln max_length": lambda buf, bad: buf.readln(EVBUFFER_EOL_LF, bad),
    "readlines max_length": lambda buf, bad: buf.readlines(EVBUFFER_EOL_LF, bad),
    "read": lambda buf, bad: buf.read(0, bad),
    "read descriptor": lambda buf, bad: buf.read(bad),
    "write": lambda buf, bad: buf.write(0, bad),
    "write descriptor": lambda buf, bad: buf.write(bad),
}
BAD_BYTES: dict[str, Callable[[Any, Any], object]] = {
    "add": lambda buf, bad: buf.add(bad),
    "prepend": lambda buf, bad: buf.prepend(bad),
    "add_reference": lambda buf, bad: buf.add_reference(bad),
    "search": lambda buf, bad: buf.search(bad),
    "remove_into": lambda buf, bad: buf.remove_into(bad),
}


@pytest.mark.parametrize("bad", ["1", b"1", 1.5, object()], ids=["str", "bytes", "float", "object"])
@pytest.mark.parametrize("call", BAD_NUMBERS)
def test_what_is_no_number_is_a_type_error(buf: EvBuffer, call: str, bad: object) -> None:
    with pytest.raises(TypeError):
        BAD_NUMBERS[call](buf, bad)
    assert buf == b"abcdef"


@pytest.mark.parametrize("bad", ["text", 3, None, [1], EvBuffer()])
@pytest.mark.parametrize("call", BAD_BYTES)
def test_what_has_no_bytes_is_a_type_error(buf: EvBuffer, call: str, bad: object) -> None:
    with pytest.raises(TypeError):
        BAD_BYTES[call](buf, bad)
    assert buf == b"abcdef"


def test_memory_that_is_not_in_one_piece_is_refused(buf: EvBuffer) -> None:
    scattered = memoryview(b"abcdef")[::2]
    for call in (buf.add, buf.prepend, buf.add_reference, buf.search):
        with pytest.raises(BufferError):
            call(scattered)
    assert buf == b"abcdef"


@pytest.mark.parametrize("bad", [None, 3, "text"])
def test_a_callback_has_to_be_callable(buf: EvBuffer, bad: Any) -> None:
    with pytest.raises(TypeError):
        buf.add_cb(bad)
    buf.add(b"g")


@measures_memory
def test_more_room_than_there_is_memory(buf: EvBuffer) -> None:
    with pytest.raises((MemoryError, LibeventError)):
        buf.expand(1 << 62)
    with pytest.raises((MemoryError, LibeventError, ValueError)):
        buf.expand((1 << 63) - 1)
    assert buf == b"abcdef"
    buf.add(b"g")


def test_more_than_there_is_can_be_asked_for(buf: EvBuffer) -> None:
    huge = (1 << 63) - 1
    assert buf.copyout(huge) == b"abcdef"
    assert views_of(buf.peek(huge)) == [b"abcdef"]
    assert buf.remove(huge) == b"abcdef"
    buf.drain(huge)
    buf.add(b"abc")
    other = EvBuffer()
    assert buf.remove_buffer(other, huge) == 3
    assert other == b"abc"


# ---- threads ----


def inside_read(buf: EvBuffer, sock: socket.socket) -> threading.Thread:
    """A thread that is inside a blocking buf.read(sock) when this returns."""
    sock.setblocking(True)

    def read() -> None:
        while True:
            try:
                buf.read(sock)
                return
            except RuntimeError:  # we were looking just then
                continue

    thread = threading.Thread(target=read)
    thread.start()
    deadline = time.monotonic() + 5
    in_a_row = 0
    while in_a_row < 100:
        assert time.monotonic() < deadline
        try:
            len(buf)
            in_a_row = 0
        except RuntimeError:
            in_a_row += 1
        time.sleep(0)  # let it run
    return thread


def test_a_second_thread_is_refused(sockets: Sockets) -> None:
    buf = EvBuffer(b"line\n")
    entry = buf.add_cb(lambda *_: None)
    thread = inside_read(buf, sockets[0])
    try:
        for name, call in CALLS.items():
            if name in {"ptr", "search nothing"}:
                continue
            with pytest.raises(RuntimeError):
                call(buf)
        for name, change in CHANGES.items():
            if name in {"read"}:
                continue
            with pytest.raises(RuntimeError):
                change(buf, EvBuffer(b"x"), sockets)
    finally:
        sockets[1].send(b"more")
        thread.join()
    assert buf == b"line\nmore"
    entry.remove()


def test_two_buffers_are_two_threads_own(buf: EvBuffer, sockets: Sockets) -> None:
    reading = EvBuffer()
    thread = inside_read(reading, sockets[0])
    buf.add(b"g")
    assert buf.remove() == b"abcdefg"
    sockets[1].send(b"x")
    thread.join()


def test_a_pairs_buffer_is_free_after_a_callback_used_it(base: EventBase) -> None:
    first, second = BufferEvent.pair(base)
    output = first.output
    second.enable(EV_READ)
    second.input.add_cb(lambda *_: len(output))
    first.write(b"x")
    base.loop(EVLOOP_NONBLOCK)
    assert second.input == b"x"
    lengths: list[int] = []
    thread = threading.Thread(target=lambda: lengths.append(len(output)))
    thread.start()
    thread.join()
    assert lengths == [0]


def test_threads_share_the_buffers_of_a_threadsafe_bufferevent(
    base: EventBase, sockets: Sockets
) -> None:
    bev = BufferEvent.socket(base, sockets[0], BEV_OPT_THREADSAFE | BEV_OPT_CLOSE_ON_FREE)
    output = bev.output

    def add() -> None:
        for _ in range(2000):
            output.add(b"xyz")

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert output == b"xyz" * 6000


def test_a_second_thread_may_use_it_afterwards(buf: EvBuffer) -> None:
    def use() -> None:
        buf.add(b"ghi")
        got.append(buf.remove(3))

    got: list[bytes] = []
    for _ in range(3):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert got == [b"abc", b"def", b"ghi"]


def test_threads_that_fight_over_a_buffer_do_it_no_harm() -> None:
    script("""
import threading
from pylibevent import EvBuffer
buf, other = EvBuffer(), EvBuffer()
added = []
def work(i):
    n = 0
    for k in range(3000):
        for call in (lambda: buf.add(b"x" * 100), lambda: other.add_buffer(buf),
                     lambda: other.remove_buffer(buf, 70), lambda: buf.prepend_buffer(other),
                     lambda: buf.pullup().release(), lambda: other.readlines()):
            try:
                call()
                n += k >= 0
            except (RuntimeError, BufferError):
                pass
    added.append(n)
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(added) == 4 and sum(added) > 0
data = bytes(buf) + bytes(other)
assert data == b"x" * len(data) and len(data) % 100 == 0
""")


# ---- what a user may do with the type ----


def test_it_can_be_subclassed() -> None:
    class Named(EvBuffer):
        def __init__(self, name: str) -> None:
            super().__init__(name.encode())
            self.name = name

    buf = Named("abc")
    buf.add(b"d")
    assert (buf.name, bytes(buf)) == ("abc", b"abcd")


def test_init_again_is_refused(buf: EvBuffer) -> None:
    buf.add_cb(lambda buf, *_: buf.__init__(b"new"))
    with pytest.raises(RuntimeError):
        buf.add(b"x")
    assert buf == b"abcdefx"


@pytest.mark.parametrize("copy", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_copied_or_pickled(copy: Callable[[object], object], buf: EvBuffer) -> None:
    """bytes(buf) can."""
    with pytest.raises(TypeError):
        copy(buf)
    buf.add(b"g")
