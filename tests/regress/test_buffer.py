"""What libevent's own tests of evbuffers exercise, and the rest of event2/buffer.h by class."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pylibevent import (
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    EV_READ,
    EV_WRITE,
    EVBUF_FS_CLOSE_ON_FREE,
    EVBUF_FS_DISABLE_LOCKING,
    EVBUF_FS_DISABLE_MMAP,
    EVBUF_FS_DISABLE_SENDFILE,
    EVBUFFER_CB_ENABLED,
    EVBUFFER_EOL_ANY,
    EVBUFFER_EOL_CRLF,
    EVBUFFER_EOL_CRLF_STRICT,
    EVBUFFER_EOL_LF,
    EVBUFFER_EOL_NUL,
    EVBUFFER_FLAG_DRAINS_TO_FD,
    EVBUFFER_PTR_ADD,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    EolStyle,
    EvBuffer,
    EventBase,
    EventConfig,
    FileSegment,
    LibeventError,
    constants,
    ffi,
    lib,
)
from pylibevent import _callbacks as cb

Sockets = tuple[socket.socket, socket.socket]
RunUntil = Callable[..., None]
Change = tuple[int, int, int]

CONTENT = random.Random(7).randbytes(20_000)
WORDS = b"so much depends upon a red wheel barrow"
SOON = 20  # seconds; how long a test waits for what takes a moment


class Boom(Exception):
    pass


class Lent(bytearray):
    """Something to lend to add_reference() that a weak reference can watch."""


def lend(buf: EvBuffer, data: bytes) -> weakref.ref[Lent]:
    """Adds an object by reference that nobody else holds."""
    lent = Lent(data)
    buf.add_reference(lent)
    return weakref.ref(lent)


def in_pieces(*pieces: bytes) -> EvBuffer:
    """A buffer whose bytes lie in just these pieces, and may be written behind."""
    buf = EvBuffer()
    for piece in pieces:
        buf.add_buffer(EvBuffer(piece))
    return buf


def pieces_of(buf: EvBuffer) -> list[bytes]:
    return [bytes(view) for view in buf.peek()]


def whole(buf: EvBuffer) -> bytes:
    """Its bytes, after the several ways to look at them agreed."""
    seen = b"".join(pieces_of(buf))
    assert len(buf) == len(seen)
    assert bytes(buf) == seen
    return seen


def write_to(views: list[memoryview], data: bytes) -> None:
    for view in views:
        n = min(len(view), len(data))
        view[:n] = data[:n]
        data = data[n:]


def changes_of(buf: EvBuffer) -> list[Change]:
    """What its callback is told from now on."""
    seen: list[Change] = []
    buf.add_cb(lambda _buf, *change: seen.append(change))
    return seen


def address_of(view: memoryview) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))


def times(n: int, function: Callable[..., object], *args: Any) -> None:
    for _ in range(n):
        function(*args)


def in_thread(function: Callable[..., object], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive(), "a thread hangs"


def in_child(function: Callable[[], object]) -> int:
    """The exit status of a forked child that runs function: 0 if it raised nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SOON)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@pytest.fixture
def buf() -> Iterator[EvBuffer]:
    buf = EvBuffer()
    yield buf
    buf.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[BinaryIO]:
    with path.open("r+b") as file:
        yield file


@pytest.fixture
def segment(file: BinaryIO) -> Iterator[FileSegment]:
    segment = FileSegment(file)
    yield segment
    segment.close()


@pytest.fixture
def bev(base: EventBase, sockets: Sockets) -> BufferEvent:
    return BufferEvent.socket(base, sockets[0])


# ---- adding, removing, moving ----


def test_add_drain_move_prepend_and_pullup_keep_the_order(buf: EvBuffer) -> None:
    other = EvBuffer()
    assert buf.add_printf("%s/%d", "hello", 1) == 7
    buf.add_buffer(other)
    buf.drain(len("hello/"))
    other.add_printf("%s", "/hello")
    buf.add_buffer(other)
    assert (whole(buf), whole(other)) == (b"1/hello", b"")
    buf.add(bytes(512))
    assert buf.pullup(7 + 512) == b"1/hello" + bytes(512)
    buf.prepend(b"something")
    buf.prepend(b"else")
    assert bytes(buf.pullup(20)) == b"elsesomething1/hello"
    assert whole(buf) == b"elsesomething1/hello" + bytes(512)


def test_remove_buffer_splits_a_piece(buf: EvBuffer) -> None:
    source = in_pieces(b"a" * 512, b"b" * 512, b"c" * 512)
    assert source.remove_buffer(buf, 1280) == 1280
    assert whole(buf) == b"a" * 512 + b"b" * 512 + b"c" * 256
    assert whole(source) == b"c" * 256


@pytest.mark.parametrize("n", range(10))
@pytest.mark.parametrize("front", [False, True])
def test_moves_between_buffers_with_references_and_copies(n: int, front: bool) -> None:
    source, destination, joint = EvBuffer(), EvBuffer(), EvBuffer()
    for target, text in ((source, b"abc"), (destination, b"xyz")):
        joint.add(text)
        joint.add_reference(text.upper())
        target.add_reference(text + text)
        (target.prepend_buffer if front else target.add_buffer)(joint)
    before, after = whole(source), whole(destination)
    assert source.remove_buffer(destination, n) == n
    assert whole(destination) == after + before[:n]
    assert whole(source) == before[n:]
    assert bytes(source.pullup()) == before[n:]
    assert bytes(destination.pullup()) == after + before[:n]


def test_an_empty_prepend_and_half_a_reference_moved_leave_a_sound_buffer(buf: EvBuffer) -> None:
    other = EvBuffer()
    buf.add_reference(b"foo")
    buf.prepend(b"")
    assert buf.remove_buffer(other, 1) == 1
    buf.add(b"bar")
    assert bytes(buf.pullup()) == b"oobar"


def test_an_empty_piece_between_others_does_not_mix_up_the_order(buf: EvBuffer) -> None:
    """Where libevent once had "aaaaaabcddd"."""
    other = EvBuffer(b"cc")
    other.prepend(b"ddd")
    buf.add(b"aaaaaa")
    room = sum(map(len, buf.reserve_space(1)))
    views = buf.reserve_space(room + 1)
    assert len(views) == 2
    views[0][0] = ord("b")
    buf.commit_space(1)
    other.prepend_buffer(buf)
    buf.add_buffer(other)
    assert buf.remove_buffer(other, 11) == 11
    assert bytes(other.pullup()) == b"aaaaaabdddc"
    assert whole(buf) == b"c"


def test_a_reference_of_nothing_leaves_no_piece(buf: EvBuffer) -> None:
    buf.add_reference(b"")
    buf.prepend(b"foo")
    buf.add(b"")
    assert pieces_of(buf) == [b"foo"]
    assert len(buf.reserve_space(4096)) >= 1
    buf.commit_space(0)
    assert len(buf.reserve_space(8192)) >= 1


@pytest.mark.parametrize("step", [1, 100, 4096])
def test_bytes_stay_in_order_over_many_small_additions(buf: EvBuffer, step: int) -> None:
    expected = bytearray()
    for i in range(200):
        text = b"%*d" % (i % step + 1, i)
        buf.add(text)
        expected += text
    assert whole(buf) == bytes(expected)


@pytest.mark.parametrize("n", [1, 10, 4000, 100_000])
@pytest.mark.parametrize("before", [b"", b"1", b"P" * 950])
def test_expand_keeps_what_is_there_and_makes_one_piece(before: bytes, n: int) -> None:
    buf = EvBuffer(before)
    buf.expand(n)
    (view,) = buf.reserve_space(n, 1)
    assert len(view) >= n
    view.release()
    buf.add(b"2")
    buf.add_reference(b"3")
    buf.add(b"4")
    assert bytes(buf.pullup()) == before + b"234"


@pytest.mark.parametrize("n", [1 << 62, (1 << 63) - 1])
def test_more_room_than_there_can_be_is_an_error_and_changes_nothing(n: int) -> None:
    buf = EvBuffer(b"here")
    for call in (buf.expand, buf.reserve_space, lambda n: buf.reserve_space(n, 1)):
        with pytest.raises((MemoryError, LibeventError)):
            call(n)
    buf.add(b"!")
    assert whole(buf) == b"here!"


def test_prepend_in_each_place_it_can_go(buf: EvBuffer) -> None:
    buf.prepend(b"This string has 29 characters")
    buf.prepend(b"Short.")
    buf.drain(6 + 11)
    buf.prepend(b"it")
    assert pieces_of(buf)[0].startswith(b"it has")
    buf.prepend(b"It is no longer true to say ")
    assert buf.remove() == b"It is no longer true to say it has 29 characters"


def test_prepend_tells_callbacks_how_many_bytes_it_added(buf: EvBuffer) -> None:
    buf.add(b"foo")
    seen = changes_of(buf)
    buf.prepend(b"A" * 8096)
    assert seen == [(3, 8096, 0)]
    assert whole(buf) == b"A" * 8096 + b"foo"


def test_prepend_buffer_to_an_empty_and_to_a_full_one(buf: EvBuffer) -> None:
    for text in (b"Here is string 999. ", b"Here is string 1000. "):
        buf.prepend_buffer(EvBuffer(text))
    assert buf.remove() == b"Here is string 1000. Here is string 999. "


def test_a_lent_object_is_let_go_of_when_its_last_byte_is_gone(buf: EvBuffer) -> None:
    first = lend(buf, b"If you have found the answer to such a problem")
    buf.add(b", ")
    second = lend(buf, b"you ought to write it up for publication")
    assert (buf.remove(6), buf.remove(5)) == (b"If you", b" have")
    buf.prepend(b"I have ")
    buf.drain(7 + 46 - 11 - 1)
    assert bytes(first() or b"").startswith(b"If you")
    assert buf.remove(1) == b"m"
    assert first() is None
    other = EvBuffer(b"I ")
    buf.drain(6)
    other.add_buffer(buf)
    assert second() is not None
    assert other.remove(16) == b"I ought to write"
    other.drain(100)
    assert second() is None
    third = lend(buf, b"ketchup bottle")
    buf.close()
    assert third() is None


# ---- add_iovec ----


def test_add_iovec_adds_every_piece_in_order(buf: EvBuffer) -> None:
    pieces: list[Any] = [
        b"two edges",
        bytearray(b" on the one hand"),
        memoryview(b"x justice")[1:],
        b"",
    ]
    assert buf.add_iovec(iter(pieces)) == 33
    assert whole(buf) == b"two edges on the one hand justice"


def test_add_iovec_of_nothing_adds_nothing(buf: EvBuffer) -> None:
    seen = changes_of(buf)
    assert buf.add_iovec([]) == 0
    assert buf.add_iovec([b"", bytearray()]) == 0
    assert seen == []


def test_add_iovec_of_many_pieces(buf: EvBuffer) -> None:
    assert buf.add_iovec([b"%04d" % i for i in range(5000)]) == 20_000
    assert whole(buf) == b"".join(b"%04d" % i for i in range(5000))


@pytest.mark.parametrize("bad", [None, 7, [1], ["text"], [b"x", None]])
def test_add_iovec_of_what_is_not_bytes_adds_nothing(buf: EvBuffer, bad: Any) -> None:
    with pytest.raises(TypeError):
        buf.add_iovec(bad)
    assert len(buf) == 0


def test_add_iovec_goes_on_when_a_callback_changes_or_closes_the_buffer(buf: EvBuffer) -> None:
    buf.add_cb(lambda b, _size, added, _deleted: b.drain(1) if added else None)
    assert buf.add_iovec([b"ab", b"cd"]) == 4
    assert whole(buf) == b"cd"
    buf.add_cb(lambda b, *_change: b.close())
    buf.add_iovec([b"x", b"y"])
    assert buf.closed


def test_add_iovec_to_a_frozen_end_is_refused(buf: EvBuffer) -> None:
    buf.freeze(False)
    with pytest.raises(LibeventError, match="evbuffer_add_iovec"):
        buf.add_iovec([b"x"])
    assert len(buf) == 0


# ---- reserve_space, commit_space ----


def test_one_piece_is_reserved_filled_and_committed(buf: EvBuffer) -> None:
    data = bytes(range(250)) * 40
    for i in range(3):
        (view,) = buf.reserve_space(10_000, 1)
        assert len(view) >= 10_000
        view[:10_000] = data
        buf.commit_space(10_000)
        assert whole(buf) == (data if i == 0 else data[5000:] + data)
        buf.drain(len(buf) - 5000)


def test_room_is_used_where_the_last_commit_ended_and_then_split(buf: EvBuffer) -> None:
    (first,) = buf.reserve_space(1024)
    start, room = address_of(first), len(first)
    first[:512] = b"X" * 512
    buf.commit_space(512)
    (again,) = buf.reserve_space(32)
    assert (address_of(again), len(again)) == (start + 512, room - 512)
    again[:8] = b"Y" * 8
    buf.commit_space(8)
    left = room - 520
    views = buf.reserve_space(left + 64)
    assert len(views[0]) == left
    assert len(views[1]) >= 64
    write_to(views, b"Z" * left + b"W" * 60)
    buf.commit_space(left + 60)
    assert pieces_of(buf) == [b"X" * 512 + b"Y" * 8 + b"Z" * left, b"W" * 60]


@pytest.mark.parametrize("first", ["nothing", "a byte", "all"])
def test_more_pieces_are_used_before_any_is_replaced(buf: EvBuffer, first: str) -> None:
    (view,) = buf.reserve_space(128)
    used = {"nothing": 0, "a byte": 1, "all": len(view)}[first]
    view[:used] = b"x" * used
    del view
    buf.commit_space(used)
    room = sum(len(view) for view in buf.reserve_space(128))
    for n in (2, 3):
        sizes = [len(view) for view in buf.reserve_space(room + 128, n)]
        assert len(sizes) == n
        room = sum(sizes)
    sizes = [len(view) for view in buf.reserve_space(room + 128, 2)]
    assert len(sizes) == (2 if first == "a byte" else 1)
    assert sum(sizes) >= room + 128
    assert whole(buf) == b"x" * used


def test_an_uncommitted_reservation_ends_with_its_views(buf: EvBuffer) -> None:
    views = buf.reserve_space(4096)
    with pytest.raises(BufferError, match="evbuffer_add"):
        buf.add(b"x")
    for view in views:
        view.release()
    buf.add(b"x")
    assert whole(buf) == b"x"
    buf.reserve_space(4096)
    buf.add(b"y")
    assert whole(buf) == b"xy"


@pytest.mark.parametrize("n", [0, 1, 100])
def test_reserving_next_to_nothing_in_a_full_piece_is_no_abort(n: int) -> None:
    buf = EvBuffer()
    (view,) = buf.reserve_space(1, 1)
    full = len(view)
    view[:] = b"x" * full
    del view
    buf.commit_space(full)
    assert sum(map(len, buf.reserve_space(n))) >= n
    buf.commit_space(0)
    assert len(buf) == full


def test_a_change_between_ends_the_reservation(buf: EvBuffer) -> None:
    for view in buf.reserve_space(100):
        view[:3] = b"abc"
        view.release()
    buf.commit_space(3)
    assert whole(buf) == b"abc"
    for view in buf.reserve_space(100):
        view.release()
    buf.drain(1)
    with pytest.raises(ValueError, match="evbuffer_commit_space"):
        buf.commit_space(3)
    assert whole(buf) == b"bc"


def test_committing_more_than_was_reserved_is_a_value_error_and_can_be_put_right(
    buf: EvBuffer,
) -> None:
    with pytest.raises(ValueError, match="evbuffer_commit_space"):
        buf.commit_space(1)
    (view,) = buf.reserve_space(100, 1)
    view[:2] = b"ok"
    for bad in (len(view) + 1, -1, 1 << 64):
        with pytest.raises(ValueError):  # noqa: PT011
            buf.commit_space(bad)
    buf.commit_space(2)
    assert whole(buf) == b"ok"


@pytest.mark.parametrize("bad", [0, -1, 1 << 20, 1 << 40])
def test_a_senseless_number_of_pieces_is_a_value_error(buf: EvBuffer, bad: int) -> None:
    with pytest.raises(ValueError, match="n_vecs"):
        buf.reserve_space(10, bad)


@pytest.mark.parametrize("keep", [lambda view: view[:3], lambda view: memoryview(view).cast("b")])
def test_who_keeps_part_of_a_view_cannot_write_into_what_was_committed(
    buf: EvBuffer, keep: Callable[[memoryview], memoryview]
) -> None:
    (view,) = buf.reserve_space(100, 1)
    view[:3] = b"abc"
    kept = keep(view)
    del view
    with pytest.raises(BufferError, match="evbuffer_commit_space"):
        buf.commit_space(3)
    assert len(buf) == 0
    with pytest.raises(BufferError):
        buf.add(b"x")
    kept.release()
    buf.commit_space(3)
    assert whole(buf) == b"abc"


def test_a_view_that_another_object_uses_is_not_committed(buf: EvBuffer) -> None:
    (view,) = buf.reserve_space(100, 1)
    view[:3] = b"abc"
    user = ffi.from_buffer(view)
    with pytest.raises(BufferError):
        buf.commit_space(3)
    assert len(buf) == 0
    ffi.release(user)
    buf.commit_space(3)
    assert whole(buf) == b"abc"
    with pytest.raises(ValueError, match="released"):
        view[0] = 0


def test_a_socket_reads_into_reserved_room(buf: EvBuffer, sockets: Sockets) -> None:
    sockets[1].send(b"from the wire")
    (view,) = buf.reserve_space(100, 1)
    buf.commit_space(sockets[0].recv_into(view))
    assert whole(buf) == b"from the wire"


@pytest.mark.parametrize(
    "change",
    [
        lambda buf: buf.prepend(b"x"),
        lambda buf: buf.drain(1),
        lambda buf: buf.expand(10),
        lambda buf: buf.pullup(2),
        lambda buf: buf.reserve_space(10),
        lambda buf: buf.add_iovec([b"x"]),
        lambda buf: buf.add_buffer(EvBuffer(b"x")),
        lambda buf: EvBuffer().add_buffer(buf),
        lambda buf: buf.add_buffer_reference(EvBuffer(b"x")),
        lambda buf: EvBuffer().add_buffer_reference(buf),
        lambda buf: buf.close(),
    ],
)
def test_nothing_changes_the_buffer_while_a_reservation_is_out(
    change: Callable[[EvBuffer], object],
) -> None:
    buf = EvBuffer(b"here")
    views = buf.reserve_space(100)
    with pytest.raises(BufferError):
        change(buf)
    write_to(views, b"!")
    buf.commit_space(1)
    assert whole(buf) == b"here!"


def test_a_callback_of_the_commit_may_change_the_buffer(buf: EvBuffer) -> None:
    buf.add_cb(lambda b, _size, added, _deleted: b.add(b"!") if added > 1 else None)
    write_to(buf.reserve_space(10), b"abc")
    views = buf.reserve_space(10)
    write_to(views, b"abc")
    buf.commit_space(3)
    assert whole(buf) == b"abc!"


def test_a_frozen_end_is_not_reserved_and_not_committed(buf: EvBuffer) -> None:
    views = buf.reserve_space(10)
    write_to(views, b"abc")
    buf.freeze(False)
    with pytest.raises(LibeventError, match="evbuffer_commit_space"):
        buf.commit_space(3)
    with pytest.raises(LibeventError, match="evbuffer_reserve_space"):
        buf.reserve_space(10)
    assert len(buf) == 0


def test_room_reserved_in_an_output_goes_out_after_the_commit(
    bev: BufferEvent, sockets: Sockets, run_until: RunUntil
) -> None:
    bev.enable(EV_WRITE)
    bev.write(b"first, ")
    write_to(bev.output.reserve_space(100), b"lost")
    views = bev.output.reserve_space(100)
    write_to(views, b"then")
    bev.output.commit_space(4)
    run_until(lambda: not len(bev.output))
    assert sockets[1].recv(100) == b"first, then"


def test_room_of_a_bufferevent_that_was_closed_may_be_written_to(bev: BufferEvent) -> None:
    views = bev.output.reserve_space(1000)
    output = bev.output
    bev.close()
    write_to(views, b"x" * 1000)
    assert bytes(views[0][:4]) == b"xxxx"
    with pytest.raises(ClosedError):
        output.commit_space(4)


def test_room_of_a_base_that_was_closed_may_be_written_to(
    base: EventBase, bev: BufferEvent
) -> None:
    bev.output.add(b"x")
    views = bev.output.reserve_space(100_000)
    base.close()
    write_to(views, b"x" * 100_000)
    assert bytes(views[-1][:1]) == b"x"


# ---- positions ----


def test_ptr_set_over_several_pieces(buf: EvBuffer) -> None:
    assert buf.ptr_set(0) == 0
    for how in ({}, {"how": EVBUFFER_PTR_ADD}):
        with pytest.raises(ValueError, match="evbuffer_ptr_set"):
            buf.ptr_set(1, **how)
    for n in (5000, 4000, 3000):
        buf.reserve_space(n, 1)
        buf.add_buffer(EvBuffer(bytes(n)))
    with pytest.raises(ValueError, match="evbuffer_ptr_set"):
        buf.ptr_set(13_000)
    at = buf.ptr_set(0)
    for step, expected in ((10_000, 10_000), (1000, 11_000), (1000, 12_000)):
        at = buf.ptr_set(step, EVBUFFER_PTR_ADD, at)
        assert at == expected
    with pytest.raises(ValueError, match="evbuffer_ptr_set"):
        buf.ptr_set(1000, EVBUFFER_PTR_ADD, at)


@pytest.mark.parametrize(
    ("what", "start", "end", "expected"),
    [
        (b"attack", None, None, 11),
        (b"attacker", None, None, None),
        (b"oc", None, None, 7),
        (b"cat", 7, None, 8),
        (b"tacking", 8, None, None),
        (b"foo", 5, None, 5),
        (b"tat", 7, None, 10),
        (b"foo", None, 12, 5),
        (b"foocata", None, 12, 5),
        (b"foocatat", None, 12, None),
        (b"ack", None, 12, None),
        (b"attack", None, 17, 11),
        (b"attack", 11, 17, 11),
        (b"attack", 17, 17, None),
        (b"attack", 17, None, None),
    ],
)
def test_search_over_pieces_and_within_bounds(
    what: bytes, start: int | None, end: int | None, expected: int | None
) -> None:
    buf = in_pieces(b"hello", b"foo", b"cat", b"attack")
    found = buf.search(what, start, end)
    assert (found is None) if expected is None else (found == expected)


@pytest.mark.parametrize("range_", [(None, None), (0, None), (0, 0)])
def test_search_in_an_empty_buffer_finds_nothing(
    buf: EvBuffer, range_: tuple[int | None, int | None]
) -> None:
    assert buf.search(b"x", *range_) is None


def test_search_does_not_look_behind_the_end(buf: EvBuffer) -> None:
    buf.add(b"1234567890\r\n")
    buf.drain(12)
    buf.add(b"1234567890\r")
    assert buf.search(b"\r\n") is None
    buf.drain(11)
    buf.add(b"a" * 255 + b"x")
    assert buf.search(b"xy") is None
    assert buf.search(b"ax") == 254


@pytest.mark.parametrize(
    ("start", "eol", "expected"),
    [
        (0, EVBUFFER_EOL_CRLF, (8, 2)),
        (8, EVBUFFER_EOL_CRLF, (8, 2)),
        (9, EVBUFFER_EOL_CRLF, (9, 1)),
        (9, EVBUFFER_EOL_CRLF_STRICT, (10, 2)),
        (0, EVBUFFER_EOL_LF, (9, 1)),
        (9, EVBUFFER_EOL_LF, (9, 1)),
        (10, EVBUFFER_EOL_LF, (11, 1)),
        (14, EVBUFFER_EOL_LF, None),
        (0, EVBUFFER_EOL_ANY, (8, 4)),
        (0, EVBUFFER_EOL_NUL, None),
    ],
)
@pytest.mark.parametrize("cut", [0, 8, 9, 10, 11])
def test_search_eol_in_one_piece_or_two(
    start: int, eol: EolStyle, expected: tuple[int, int] | None, cut: int
) -> None:
    text = b"string! \r\n\r\nx\n"
    found = in_pieces(text[:cut], text[cut:]).search_eol(start, eol)
    assert (found and (found.pos, found.length)) == expected


CHUNKS = [b"Contents of chunk [%d]\n" % i for i in range(16)]


def test_peek_shows_the_pieces_as_they_lie() -> None:
    buf = in_pieces(*CHUNKS)
    assert pieces_of(buf) == CHUNKS
    assert [bytes(view) for view in buf.peek(65_536)] == CHUNKS


@pytest.mark.parametrize(
    ("n", "start", "pieces"),
    [(40, 0, 2), (100, 0, 5), (60, 0, 3), (50, 30, 3), (44, 44, 2), (0, 0, 0), (44, 358, 0)],
)
def test_peek_shows_as_many_bytes_as_asked_for(n: int, start: int, pieces: int) -> None:
    buf = in_pieces(*CHUNKS)
    views = buf.peek(n, buf.ptr_set(start))
    assert len(views) == pieces
    assert b"".join(views) == b"".join(CHUNKS)[start : start + n]


def test_peek_into_an_empty_buffer_shows_nothing(buf: EvBuffer) -> None:
    assert buf.peek() == buf.peek(50) == []


def test_copyout_from_any_position_over_any_number_of_pieces(buf: EvBuffer) -> None:
    text = WORDS * 6
    buf.add_reference(text[:80])
    buf.add_reference(text[80:160])
    buf.add(text[160:])
    for position in (0, 15, 79, 80, 160, len(text)):
        for n in (0, 10, 65, 90, 160, 999):
            assert buf.copyout_from(position, n) == text[position : position + n]
    assert buf.copyout(999) == whole(buf) == text


@pytest.mark.parametrize("eol", EolStyle)
def test_readln_of_lines_in_many_pieces(eol: EolStyle) -> None:
    end = {EVBUFFER_EOL_LF: b"\n", EVBUFFER_EOL_NUL: b"\0"}.get(eol, b"\r\n")
    lines = [b"", b"a", b"b" * 5000, b"More", b"last"]
    if eol == EVBUFFER_EOL_ANY:
        lines.remove(b"")  # a run of ends is one
    text = b"".join(line + end for line in lines) + b"no end"
    for step in (1, 7, 4096):
        buf = in_pieces(*(text[i : i + step] for i in range(0, len(text), step)))
        assert [buf.readln(eol) for _ in lines] == lines
        assert buf.readln(eol) is None
        assert whole(buf) == b"no end"


# ---- freezing ----

AT_END: list[Callable[[EvBuffer], object]] = [
    lambda buf: buf.add(b""),
    lambda buf: buf.add(b"abc"),
    lambda buf: buf.reserve_space(10, 1),
    lambda buf: buf.add_reference(b"hello"),
    lambda buf: buf.add_printf("Hello %s", "world"),
    lambda buf: buf.add_buffer(EvBuffer(b"xyz")),
    lambda buf: buf.add_buffer_reference(EvBuffer(b"xyz")),
    lambda buf: buf.add_iovec([b"x"]),
]
AT_FRONT: list[Callable[[EvBuffer], object]] = [
    lambda buf: buf.remove(1),
    lambda buf: buf.drain(3),
    lambda buf: buf.prepend(b"dummy"),
    lambda buf: buf.readln(EVBUFFER_EOL_LF),
    lambda buf: buf.remove_buffer(EvBuffer(), 3),
    lambda buf: buf.prepend_buffer(EvBuffer(b"xyz")),
    lambda buf: EvBuffer().add_buffer(buf),
]


@pytest.mark.parametrize("at_front", [False, True])
def test_a_frozen_side_does_not_change_and_the_other_does(at_front: bool) -> None:
    text = b"I've known the wind\nby water banks to shake\n"
    for frozen, calls in ((True, AT_FRONT), (False, AT_END)):
        for call in calls:
            buf = EvBuffer(text)
            buf.freeze(at_front)
            if frozen != at_front:
                call(buf)
                continue
            with pytest.raises(LibeventError):
                call(buf)
            assert whole(buf) == text


# ---- callbacks ----


def test_a_callback_is_not_called_while_its_flag_is_off(buf: EvBuffer) -> None:
    one: list[Change] = []
    two: list[Change] = []
    first = buf.add_cb(lambda _buf, *change: one.append(change))
    second = buf.add_cb(lambda _buf, *change: two.append(change))
    buf.add(b"x" * 36)
    second.clear_flags(EVBUFFER_CB_ENABLED)
    assert (first.enabled, second.enabled) == (True, False)
    buf.drain(10)
    buf.prepend(b"Hello")
    second.set_flags(EVBUFFER_CB_ENABLED)
    buf.add_reference(b"Goodbye")
    first.remove()
    buf.drain(len(buf))
    buf.add(b"X")
    second.enabled = False
    buf.add(b"Y")
    assert one == [(0, 36, 0), (36, 0, 10), (26, 5, 0), (31, 7, 0)]
    assert two == [(0, 36, 0), (31, 7, 0), (38, 0, 38), (0, 1, 0)]


def test_a_callback_may_switch_off_the_next_one(buf: EvBuffer) -> None:
    seen: list[str] = []

    def switch_off(*_: Any) -> None:
        seen.append("first")
        second.clear_flags(EVBUFFER_CB_ENABLED)

    buf.add_cb(switch_off)
    second = buf.add_cb(lambda *_: seen.append("second"))
    buf.add(b"x")
    assert seen == ["first"]


@pytest.mark.parametrize("bad", [2, 0x10000, -1])
def test_other_flags_of_callbacks_and_buffers_are_refused(buf: EvBuffer, bad: int) -> None:
    entry = buf.add_cb(print)
    for call in (entry.set_flags, entry.clear_flags, buf.set_flags, buf.clear_flags):
        with pytest.raises(ValueError, match="flags"):
            call(bad)
    with pytest.raises(TypeError):
        entry.set_flags("EVBUFFER_CB_ENABLED")  # type: ignore[arg-type]


def test_a_callback_that_drains_what_comes_in(buf: EvBuffer) -> None:
    buf.add_cb(lambda b, *_change: b.drain(len(b)))
    buf.add(b"This should get drained right away.")
    assert len(buf) == 0


# ---- deferred callbacks ----


def test_deferred_callbacks_run_in_the_loop_once_for_all_changes(
    base: EventBase, buf: EvBuffer
) -> None:
    buf.add(b"abc")
    seen = changes_of(buf)
    buf.defer_callbacks(base)
    buf.add(b"12345")
    buf.drain(2)
    assert seen == []
    assert base.dispatch() == 1
    assert seen == [(3, 5, 2)]
    buf.drain(1)
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [(3, 5, 2), (6, 0, 1)]


def test_one_round_of_the_loop_is_enough(base: EventBase, buf: EvBuffer) -> None:
    seen = changes_of(buf)
    buf.defer_callbacks(base)
    buf.add(b"x")
    base.loop(EVLOOP_ONCE)
    assert seen == [(0, 1, 0)]


def test_a_buffer_with_a_deferred_call_is_kept_until_that_is_made(base: EventBase) -> None:
    seen: list[bytes] = []
    buf = EvBuffer()
    buf.add_cb(lambda b, *_change: seen.append(bytes(b)))
    buf.defer_callbacks(base)
    buf.add(b"x")
    gone = weakref.ref(buf)
    del buf
    gc.collect()
    assert gone() is not None
    base.dispatch()
    assert seen == [b"x"]
    gc.collect()
    assert gone() is None
    assert base._table == {}


def test_a_deferred_callback_may_change_its_buffer_and_the_loop_goes_on(
    base: EventBase, run_until: RunUntil
) -> None:
    buf, rounds, ticks = EvBuffer(), [0], [0]

    def change(b: EvBuffer, *_change: int) -> None:
        rounds[0] += 1
        b.add(b"x")

    def tick() -> None:
        ticks[0] += 1

    buf.add_cb(change)
    buf.defer_callbacks(base)
    buf.add(b"x")
    base.once(-1, 0, lambda *_: tick(), timeout=0.01)
    run_until(lambda: ticks[0])
    assert rounds[0] > 1
    buf.close()


def test_many_buffers_get_their_calls_in_the_order_of_their_changes(base: EventBase) -> None:
    seen: list[int] = []
    bufs = [EvBuffer() for _ in range(100)]
    for i, buf in enumerate(bufs):
        buf.add_cb(lambda *args: seen.append(args[-1]), i)
        buf.defer_callbacks(base)
    for i in (5, 3, 99, 5, 0):
        bufs[i].add(b"x")
    base.dispatch()
    assert seen == [5, 3, 99, 0]


def test_what_a_deferred_callback_raises_leaves_the_loop_and_the_others_wait(
    base: EventBase,
) -> None:
    seen: list[str] = []
    first, second = EvBuffer(), EvBuffer()

    def fail(*_: Any) -> None:
        raise Boom

    first.add_cb(fail)
    second.add_cb(lambda *_: seen.append("second"))
    for buf in (first, second):
        buf.defer_callbacks(base)
        buf.add(b"x")
    with pytest.raises(Boom):
        base.dispatch()
    assert seen == []
    base.dispatch()
    assert seen == ["second"]


def test_the_exception_handler_gets_what_a_deferred_callback_raises(base: EventBase) -> None:
    handled: list[tuple[type, object]] = []
    base.exception_handler = lambda exc, source: handled.append((type(exc), source))
    buf, after = EvBuffer(), []

    def fail(*_: Any) -> None:
        raise Boom

    buf.add_cb(fail)
    buf.add_cb(fail)
    buf.add_cb(lambda *_: after.append(1))
    buf.defer_callbacks(base)
    buf.add(b"x")
    base.dispatch()
    assert handled == [(Boom, buf), (Boom, buf)]
    assert after == [1]


def test_the_exception_handler_gets_what_a_callback_raises_on_a_change_of_the_loop(
    base: EventBase, bev: BufferEvent, sockets: Sockets, run_until: RunUntil
) -> None:
    handled: list[object] = []
    base.exception_handler = lambda exc, source: handled.append(source)

    def fail(*_: Any) -> None:
        raise Boom

    bev.input.add_cb(fail)
    bev.enable(EV_READ)
    sockets[1].send(b"x")
    run_until(lambda: handled)
    assert handled == [bev.input]
    with pytest.raises(Boom):
        bev.input.drain(1)


def test_keyboard_interrupt_leaves_the_loop_past_the_exception_handler(base: EventBase) -> None:
    base.exception_handler = lambda exc, source: None
    buf = EvBuffer()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    buf.add_cb(interrupt)
    buf.defer_callbacks(base)
    buf.add(b"x")
    with pytest.raises(KeyboardInterrupt):
        base.dispatch()


@pytest.mark.parametrize("what", ["buffer", "base", "base in callback", "buffer in callback"])
def test_closing_with_a_deferred_call_waiting_is_safe(base: EventBase, what: str) -> None:
    seen: list[str] = []
    first, second = EvBuffer(), EvBuffer()

    def close(*_: Any) -> None:
        (base if what.startswith("base") else second).close()

    if "callback" in what:
        first.add_cb(close)
    second.add_cb(lambda *_: seen.append("second"))
    for buf in (first, second):
        buf.defer_callbacks(base)
        buf.add(b"x")
    if "callback" not in what:
        close()
    if not base.closed:
        base.dispatch()
    assert seen == []
    assert base._table == {}
    if what.startswith("base"):
        second.add(b"more")
        assert whole(second) == b"xmore"
        assert seen == []


def test_a_buffer_outlives_the_base_its_callbacks_are_deferred_to(buf: EvBuffer) -> None:
    seen = changes_of(buf)
    with EventBase() as first:
        buf.defer_callbacks(first)
        buf.add(b"x")
    buf.add(b"y")
    with EventBase() as second:
        buf.defer_callbacks(second)
        buf.add(b"z")
        second.dispatch()
    assert seen == [(2, 1, 0)]


def test_callbacks_are_deferred_to_one_base_only(base: EventBase, buf: EvBuffer) -> None:
    buf.defer_callbacks(base)
    buf.defer_callbacks(base)
    with EventBase() as other, pytest.raises(LibeventError, match="evbuffer_defer_callbacks"):
        buf.defer_callbacks(other)
    with pytest.raises(TypeError):
        buf.defer_callbacks(None)  # type: ignore[arg-type]
    other.close()
    with pytest.raises(ClosedError):
        EvBuffer().defer_callbacks(other)


def test_deferred_calls_of_a_bufferevents_buffer(
    base: EventBase, bev: BufferEvent, sockets: Sockets, run_until: RunUntil
) -> None:
    seen: list[Change] = []
    bev.input.add_cb(lambda _buf, *change: seen.append(change))
    bev.input.defer_callbacks(base)
    bev.enable(EV_READ)
    sockets[1].send(b"abc")
    run_until(lambda: seen)
    assert seen == [(0, 3, 0)]
    bev.input.drain(1)
    bev.close()
    base.loop(EVLOOP_NONBLOCK)
    assert seen == [(0, 3, 0)]
    assert base._table == {}


def test_a_change_in_another_thread_wakes_the_loop(base: EventBase, run_until: RunUntil) -> None:
    buf, seen = EvBuffer(), []
    buf.add_cb(lambda *_: seen.append(threading.get_ident()))
    buf.defer_callbacks(base)
    buf.enable_locking()
    base.once(-1, 0, lambda *_: started.set(), timeout=0)
    started = threading.Event()

    def change() -> None:
        assert started.wait(SOON)
        buf.add(b"x")

    thread = in_thread(change)
    run_until(lambda: seen, timeout=SOON)
    join(thread)
    assert seen == [threading.get_ident()]


def test_a_deferred_call_waits_while_another_thread_is_in_the_buffer(
    base: EventBase, run_until: RunUntil
) -> None:
    """No lock: the other thread is in the middle of a call that calls back."""
    buf, other, seen = EvBuffer(), EvBuffer(), []
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        inside.set()
        assert go_on.wait(SOON)

    other.add_cb(hold)
    buf.add_cb(lambda *_: seen.append(1))
    buf.defer_callbacks(base)
    buf.add(b"xy")
    thread = in_thread(lambda: buf.remove_buffer(other, 1))
    assert inside.wait(SOON)
    base.loop(EVLOOP_NONBLOCK)
    assert seen == []
    go_on.set()
    run_until(lambda: seen)
    join(thread)


def test_changes_before_the_loop_starts_in_a_child_are_told_after_reinit(base: EventBase) -> None:
    buf = EvBuffer()
    seen = changes_of(buf)
    buf.defer_callbacks(base)

    def child() -> None:
        buf.add(b"x")
        base.reinit()
        base.dispatch()
        assert seen == [(0, 1, 0)]

    assert in_child(child) == 0


def test_a_base_without_locks_gets_the_changes_of_other_threads_when_it_runs() -> None:
    config = EventConfig()
    config.set_flag(constants.EVENT_BASE_FLAG_NOLOCK)
    with EventBase(config) as base:
        buf = EvBuffer()
        seen = changes_of(buf)
        buf.defer_callbacks(base)
        join(in_thread(buf.add, b"x"))
        base.dispatch()
        assert seen == [(0, 1, 0)]


def test_priorities_may_change_before_deferred_calls(buf: EvBuffer) -> None:
    with EventBase() as base:
        base.priority_init(4)
        seen = changes_of(buf)
        buf.defer_callbacks(base)
        with pytest.raises(ValueError, match="priority"):
            base.priority_init(1)
        buf.add(b"x")
        base.dispatch()
        assert seen == [(0, 1, 0)]


# ---- file segments ----


@pytest.mark.parametrize("flags", [0, EVBUF_FS_DISABLE_SENDFILE, EVBUF_FS_DISABLE_MMAP])
@pytest.mark.parametrize(("offset", "length"), [(0, -1), (1, 5000), (4096, -1), (19_999, 1)])
def test_a_segment_is_that_part_of_the_file(
    file: BinaryIO, buf: EvBuffer, offset: int, length: int, flags: int
) -> None:
    end = len(CONTENT) if length < 0 else offset + length
    with FileSegment(file, offset, length, flags) as segment:
        file.close()
        buf.add(b"<")
        buf.add_file_segment(segment)
        buf.add(b">")
    assert whole(buf) == b"<" + CONTENT[offset:end] + b">"


@pytest.mark.parametrize(("offset", "length"), [(0, 100), (50, -1), (99, 1), (100, -1), (100, 0)])
def test_part_of_a_segment(file: BinaryIO, buf: EvBuffer, offset: int, length: int) -> None:
    with FileSegment(file, 1000, 100) as segment:
        buf.add_file_segment(segment, offset, length)
    part = CONTENT[1000:1100][offset:]
    assert whole(buf) == (part if length < 0 else part[:length])


def test_one_segment_in_several_buffers_is_in_memory_once(segment: FileSegment) -> None:
    bufs = [EvBuffer() for _ in range(3)]
    for buf in bufs:
        buf.add_file_segment(segment)
    segment.close()
    assert len({address_of(buf.peek()[0]) for buf in bufs}) == 1
    bufs[0].close()
    bufs[1].drain(10)
    assert whole(bufs[1]) == CONTENT[10:]
    assert whole(bufs[2]) == CONTENT


def test_a_segment_in_a_buffer_outlives_its_python_object(file: BinaryIO, buf: EvBuffer) -> None:
    buf.add_file_segment(FileSegment(file))
    gc.collect()
    file.close()
    assert whole(buf) == CONTENT


def test_an_empty_segment_adds_nothing(file: BinaryIO, buf: EvBuffer) -> None:
    for flags in (0, EVBUF_FS_DISABLE_SENDFILE):
        with FileSegment(file, len(CONTENT), flags=flags) as segment:
            buf.add_file_segment(segment)
    assert len(buf) == 0


@pytest.mark.parametrize(("offset", "length"), [(101, -1), (0, 101), (100, 1), (1 << 62, -1)])
def test_beyond_the_end_of_a_segment_is_a_value_error(
    file: BinaryIO, buf: EvBuffer, offset: int, length: int
) -> None:
    with FileSegment(file, 0, 100) as segment:
        with pytest.raises(ValueError, match="evbuffer_add_file_segment"):
            buf.add_file_segment(segment, offset, length)
        buf.add_file_segment(segment)
    assert whole(buf) == CONTENT[:100]


@pytest.mark.parametrize(
    ("offset", "length"), [(20_001, -1), (0, 20_001), (-1, -1), (0, -2), (1 << 62, -1)]
)
def test_beyond_the_end_of_a_file_is_a_value_error(
    file: BinaryIO, offset: int, length: int
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        FileSegment(file, offset, length)


@pytest.mark.parametrize(
    "flags", [EVBUF_FS_CLOSE_ON_FREE, EVBUF_FS_DISABLE_LOCKING, 16, -1, 1 << 40]
)
def test_flags_that_cannot_be_meant_are_refused(file: BinaryIO, flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        FileSegment(file, flags=flags)


def test_what_is_no_regular_file_is_an_os_error(sockets: Sockets, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            FileSegment(directory)
    finally:
        os.close(directory)
    with pytest.raises(OSError, match="evbuffer_file_segment_new"):
        FileSegment(sockets[0])
    with pytest.raises(TypeError):
        FileSegment("name")  # type: ignore[arg-type]


def test_a_segment_that_cannot_be_read_stays_usable(
    file: BinaryIO, buf: EvBuffer, segment: FileSegment
) -> None:
    file.truncate(100)
    with pytest.raises(LibeventError, match="evbuffer_add_file_segment"):
        buf.add_file_segment(segment)
    file.truncate(len(CONTENT))
    buf.add_file_segment(segment)
    assert len(buf) == len(CONTENT)


def test_a_frozen_end_does_not_cost_the_segment(buf: EvBuffer, segment: FileSegment) -> None:
    buf.freeze(False)
    for _ in range(3):
        with pytest.raises(LibeventError, match="evbuffer_add_file_segment"):
            buf.add_file_segment(segment)
    buf.unfreeze(False)
    buf.add_file_segment(segment)
    assert whole(buf) == CONTENT


def test_a_closed_segment_is_refused(buf: EvBuffer, segment: FileSegment) -> None:
    assert segment.ptr
    segment.close()
    segment.close()
    assert segment.closed
    for call in (
        lambda: buf.add_file_segment(segment),
        lambda: segment.ptr,
        lambda: segment.add_cleanup_cb(print),
        segment.__enter__,
    ):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(TypeError):
        buf.add_file_segment(buf)  # type: ignore[arg-type]


def test_a_segment_goes_to_several_sockets_by_sendfile(
    base: EventBase, segment: FileSegment, run_until: RunUntil
) -> None:
    received: list[bytearray] = []
    ends: list[socket.socket] = []
    for _ in range(3):
        near, far = socket.socketpair()
        bev, peer = BufferEvent.socket(base, near), BufferEvent.socket(base, far)
        got = bytearray()
        peer.setcb(lambda b, got: got.extend(b.read()), None, None, got)
        peer.enable(EV_READ)
        bev.output.add_file_segment(segment)
        with pytest.raises(BufferError, match="sendfile"):
            bytes(bev.output)
        bev.enable(EV_WRITE)
        received.append(got)
        ends.append(near)
    segment.close()
    run_until(lambda: all(len(got) == len(CONTENT) for got in received))
    assert all(got == CONTENT for got in received)


def test_without_sendfile_a_segment_in_an_output_can_be_read(
    file: BinaryIO, bev: BufferEvent
) -> None:
    with FileSegment(file, flags=EVBUF_FS_DISABLE_SENDFILE) as segment:
        bev.output.add_file_segment(segment)
    assert bytes(bev.output) == CONTENT


def test_the_cleanup_is_called_when_the_segment_is_closed_and_out_of_every_buffer(
    segment: FileSegment,
) -> None:
    seen: list[str] = []
    segment.add_cleanup_cb(seen.append, "first")
    segment.add_cleanup_cb(seen.append, "second")
    bufs = [EvBuffer(), EvBuffer()]
    for buf in bufs:
        buf.add_file_segment(segment)
    segment.close()
    bufs[0].drain(len(CONTENT))
    assert seen == []
    bufs[1].close()
    assert seen == ["first", "second"]


@pytest.mark.parametrize("end", ["close", "del"])
def test_the_cleanup_of_a_segment_that_no_buffer_holds(file: BinaryIO, end: str) -> None:
    seen: list[str] = []
    segment = FileSegment(file)
    segment.add_cleanup_cb(seen.append, "done")
    if end == "close":
        segment.close()
    else:
        del segment
        gc.collect()
    assert seen == ["done"]


def test_the_cleanup_is_not_called_in_the_middle_of_libevent(
    segment: FileSegment, buf: EvBuffer
) -> None:
    """It uses the very buffer that was being drained, and frees others."""
    seen: list[bytes] = []

    def use() -> None:
        buf.add(b"more")
        seen.append(bytes(buf))

    segment.add_cleanup_cb(use)
    buf.add_file_segment(segment)
    buf.add(b"tail ")
    segment.close()
    buf.drain(len(CONTENT))
    assert seen == [b"tail more"]


def test_what_a_cleanup_raises_leaves_the_call_that_freed_the_segment(
    segment: FileSegment, buf: EvBuffer
) -> None:
    def fail() -> None:
        raise Boom

    segment.add_cleanup_cb(fail)
    buf.add_file_segment(segment)
    segment.close()
    with pytest.raises(Boom):
        buf.drain(len(CONTENT))
    assert len(buf) == 0


@pytest.mark.parametrize("handler", [False, True])
def test_what_a_cleanup_raises_in_the_loop_leaves_it_or_goes_to_its_handler(
    base: EventBase, bev: BufferEvent, sockets: Sockets, segment: FileSegment, handler: bool
) -> None:
    handled: list[tuple[type, object]] = []
    done: list[int] = []

    def fail() -> None:
        done.append(1)
        raise Boom

    if handler:
        base.exception_handler = lambda exc, source: handled.append((type(exc), source))
    segment.add_cleanup_cb(fail)
    bev.output.add_file_segment(segment, 0, 100)
    bev.enable(EV_WRITE)
    segment.close()
    base.once(-1, 0, lambda *_: None, timeout=SOON)
    with contextlib.nullcontext() if handler else pytest.raises(Boom):
        while not done:
            base.loop(EVLOOP_ONCE)
    assert handled == ([(Boom, None)] if handler else [])
    assert sockets[1].recv(1000) == CONTENT[:100]


def test_what_a_cleanup_raises_at_an_objects_end_is_reported(
    file: BinaryIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: reported.append(what.exc_type))

    def fail() -> None:
        raise Boom

    segment = FileSegment(file)
    segment.add_cleanup_cb(fail)
    segment.add_cleanup_cb(fail)
    del segment
    gc.collect()
    assert reported == [Boom, Boom]


def test_a_cleanup_must_be_callable(segment: FileSegment) -> None:
    with pytest.raises(TypeError):
        segment.add_cleanup_cb(None)  # type: ignore[arg-type]


def test_a_c_librarys_segment_is_borrowed(path: Path, buf: EvBuffer) -> None:
    fd = os.open(path, os.O_RDONLY)
    raw = lib.evbuffer_file_segment_new(fd, 0, -1, EVBUF_FS_CLOSE_ON_FREE | EVBUF_FS_DISABLE_MMAP)
    segment = FileSegment.from_ptr(raw)
    assert segment.ptr == raw
    buf.add_file_segment(segment)
    with pytest.raises(ValueError, match="evbuffer_add_file_segment"):
        buf.add_file_segment(segment, 5)
    with pytest.raises(LibeventError):
        segment.add_cleanup_cb(print)
    segment.close()
    lib.evbuffer_file_segment_free(raw)
    assert whole(buf) == CONTENT
    buf.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="NULL"):
        FileSegment.from_ptr(ffi.NULL)
    with pytest.raises(TypeError):
        FileSegment.from_ptr(EvBuffer().ptr)


def test_threads_add_one_segment_and_one_of_them_closes_it(file: BinaryIO) -> None:
    for _ in range(20):
        segment = FileSegment(file, 0, 1000)
        bufs = [EvBuffer() for _ in range(4)]
        start = threading.Barrier(len(bufs) + 1)

        def add(
            buf: EvBuffer,
            segment: FileSegment = segment,
            start: threading.Barrier = start,
        ) -> None:
            start.wait(SOON)
            with contextlib.suppress(ClosedError):
                for _ in range(10):
                    buf.add_file_segment(segment)

        threads = [in_thread(add, buf) for buf in bufs]
        start.wait(SOON)
        segment.close()
        join(*threads)
        for buf in bufs:
            assert whole(buf) == CONTENT[:1000] * (len(buf) // 1000)


# ---- flags ----


def test_a_file_in_a_buffer_that_drains_to_a_descriptor_goes_out_by_sendfile(
    file: BinaryIO, buf: EvBuffer, sockets: Sockets
) -> None:
    buf.set_flags(EVBUFFER_FLAG_DRAINS_TO_FD)
    buf.add(b"head ")
    buf.add_file(file, 10, 90)
    buf.add(b" tail")
    file.seek(0)
    file.write(b"!" * 200)
    file.flush()
    for look in (lambda: bytes(buf), buf.peek, lambda: EvBuffer().add_buffer(buf)):
        with pytest.raises(BufferError, match="sendfile"):
            look()
    received = b""
    while len(buf):
        buf.write(sockets[0])
        received += sockets[1].recv(1000)
    assert received == b"head " + b"!" * 90 + b" tail"
    buf.add(b"again")
    assert whole(buf) == b"again"


def test_a_callback_cannot_read_a_file_that_is_just_being_added(
    file: BinaryIO, bev: BufferEvent
) -> None:
    seen: list[type] = []

    def look(b: EvBuffer, *_change: int) -> None:
        with pytest.raises(BufferError, match="sendfile") as raised:
            bytes(b)
        seen.append(raised.type)

    bev.output.add_cb(look)
    bev.output.add_file(file)
    assert seen == [BufferError]


def test_a_file_that_is_added_once_the_flag_is_cleared_can_be_read(
    file: BinaryIO, buf: EvBuffer, bev: BufferEvent
) -> None:
    buf.set_flags(EVBUFFER_FLAG_DRAINS_TO_FD)
    buf.clear_flags(EVBUFFER_FLAG_DRAINS_TO_FD)
    bev.output.clear_flags(EVBUFFER_FLAG_DRAINS_TO_FD)
    for each in (buf, bev.output):
        each.add_file(file)
        assert bytes(each) == CONTENT


# ---- references to other buffers ----


def test_a_buffer_of_references_shows_the_same_memory(buf: EvBuffer) -> None:
    source = in_pieces(b"one ", b"two ", b"three")
    source.add_reference(b" lent")
    before = [address_of(view) for view in source.peek()]
    buf.add_buffer_reference(source)
    assert whole(source) == whole(buf) == b"one two three lent"
    for each in (source, buf):
        assert [address_of(view) for view in each.peek()] == before


def test_either_may_be_drained_added_to_prepended_or_pulled_up() -> None:
    source = EvBuffer(b"If you have found the answer")
    buf = EvBuffer()
    buf.add_buffer_reference(source)
    for one, other in ((source, buf), (buf, source)):
        text = whole(other)
        assert one.remove(6) == b"If you"
        one.prepend(b"I")
        one.add(b"!")
        one.pullup()
        assert whole(one) == b"I have found the answer!"
        assert whole(other) == text


def test_spare_room_behind_what_is_shared_is_nobodys(buf: EvBuffer) -> None:
    """Where libevent's pullup writes two buffers' bytes to one place."""
    source = EvBuffer(b"abc")
    source.expand(1000)
    buf.add_buffer_reference(source)
    source.add(b"123")
    buf.add(b"xyz")
    assert bytes(source.pullup()) == b"abc123"
    assert bytes(buf.pullup()) == b"abcxyz"
    assert whole(source) == b"abc123"


def test_references_to_references_and_to_itself(buf: EvBuffer) -> None:
    source, third = EvBuffer(b"text"), EvBuffer()
    buf.add_buffer_reference(source)
    third.add_buffer_reference(buf)
    third.add_buffer_reference(source)
    source.add_buffer_reference(third)
    assert [whole(each) for each in (buf, third, source)] == [b"text", b"text" * 2, b"text" * 3]
    assert len({address_of(view) for view in source.peek()}) == 1
    with pytest.raises(LibeventError, match="evbuffer_add_buffer_reference"):
        source.add_buffer_reference(source)
    empty = EvBuffer()
    empty.add_buffer_reference(empty)
    buf.add_buffer_reference(empty)
    assert whole(buf) == b"text"


@pytest.mark.parametrize("order", ["source first", "source last", "drain source", "drain both"])
def test_any_order_of_closing(order: str) -> None:
    source = in_pieces(b"a" * 10, b"b" * 5000)
    lent = lend(source, b"c" * 100)
    users = [EvBuffer(b"<") for _ in range(5)]
    for buf in users:
        buf.add_buffer_reference(source)
    if order == "source first":
        source.close()
    elif order.startswith("drain"):
        source.drain(len(source))
    for i, buf in enumerate(users):
        assert whole(buf) == b"<" + b"a" * 10 + b"b" * 5000 + b"c" * 100
        assert lent() is not None
        if order == "drain both":
            buf.drain(len(buf))
        elif i % 2:
            buf.close()
        else:
            users[i] = EvBuffer()
            del buf
    source.close()
    assert lent() is None


def test_the_source_tells_its_callbacks_nothing_and_the_other_all_at_once() -> None:
    source, buf = in_pieces(b"ab", b"cd"), EvBuffer(b"x")
    of_source, of_buf = changes_of(source), changes_of(buf)
    buf.add_buffer_reference(source)
    assert (of_source, of_buf) == ([], [(1, 4, 0)])
    source.drain(1)
    assert of_source == [(4, 0, 1)]


def test_a_memoryview_of_the_source_does_not_forbid_and_stays_good(buf: EvBuffer) -> None:
    source = EvBuffer(b"text")
    (view,) = source.peek()
    buf.add_buffer_reference(source)
    buf.drain(4)
    with pytest.raises(BufferError):
        source.add(b"x")
    assert bytes(view) == b"text"
    view.release()
    source.drain(1)
    assert whole(source) == b"ext"


def test_a_view_of_the_receiver_forbids(buf: EvBuffer) -> None:
    buf.add(b"x")
    view = buf.pullup()
    with pytest.raises(BufferError):
        buf.add_buffer_reference(EvBuffer(b"y"))
    view.release()


@pytest.mark.parametrize("flags", [0, EVBUF_FS_DISABLE_SENDFILE])
def test_a_file_segment_can_be_referred_to(file: BinaryIO, buf: EvBuffer, flags: int) -> None:
    source = EvBuffer(b"<")
    seen: list[str] = []
    with FileSegment(file, flags=flags) as segment:
        segment.add_cleanup_cb(seen.append, "freed")
        source.add_file_segment(segment)
    buf.add_buffer_reference(source)
    source.close()
    assert whole(buf) == b"<" + CONTENT
    assert seen == []
    buf.close()
    assert seen == ["freed"]


def test_what_goes_by_sendfile_cannot_be_referred_to(
    file: BinaryIO, buf: EvBuffer, bev: BufferEvent
) -> None:
    bev.output.add_file(file)
    with pytest.raises(BufferError, match="sendfile"):
        buf.add_buffer_reference(bev.output)


def test_one_buffer_goes_to_many_connections(base: EventBase, run_until: RunUntil) -> None:
    news = in_pieces(*(b"%d\n" % i * 1000 for i in range(10)))
    expected = whole(news)
    received = []
    for i in range(10):
        near, far = BufferEvent.pair(base)
        got = bytearray()
        far.setcb(lambda b, got: got.extend(b.read()), None, None, got)
        far.enable(EV_READ)
        near.enable(EV_WRITE)
        near.output.add_buffer_reference(news)
        received.append(got)
        if i == 5:
            news.drain(100)
    news.close()
    run_until(lambda: all(len(got) >= len(expected) - 100 for got in received))
    assert [bytes(got) for got in received] == [expected] * 6 + [expected[100:]] * 4


@pytest.mark.parametrize("options", [BEV_OPT_CLOSE_ON_FREE, BEV_OPT_THREADSAFE])
@pytest.mark.parametrize("close", ["bufferevent", "base"])
def test_a_reference_to_a_bufferevents_buffer_outlives_the_bufferevent(
    base: EventBase, sockets: Sockets, buf: EvBuffer, options: int, close: str
) -> None:
    """libevent's own takes the bufferevent's lock when the reference goes: it is freed by then."""
    bev = BufferEvent.socket(base, sockets[0], options)
    lent = lend(bev.output, b"not yet written")
    buf.add_buffer_reference(bev.output)
    bev.output.add_buffer_reference(buf)
    third = EvBuffer()
    third.add_buffer_reference(bev.output)
    (bev if close == "bufferevent" else base).close()
    if not base.closed:
        base.loop(EVLOOP_NONBLOCK)
    assert lent() is None
    assert whole(buf) == b"not yet written"
    buf.drain(100)
    assert whole(third) == b"not yet written" * 2


def test_a_frozen_source_is_copied(buf: EvBuffer) -> None:
    source = EvBuffer(b"text")
    source.freeze(True)
    buf.add_buffer_reference(source)
    source.freeze(False)
    buf.add_buffer_reference(source)
    assert whole(buf) == b"texttext"
    assert whole(source) == b"text"


def test_a_source_in_the_middle_of_a_move_is_refused() -> None:
    source, destination, third = EvBuffer(b"0123456789"), EvBuffer(), EvBuffer()
    seen: list[type] = []

    def refer(*_: Any) -> None:
        try:
            third.add_buffer_reference(source)
        except BufferError as error:
            seen.append(type(error))

    destination.add_cb(refer)
    source.remove_buffer(destination, 5)
    assert seen == [BufferError]
    assert (whole(source), whole(destination), whole(third)) == (b"56789", b"01234", b"")


def test_a_callback_may_refer_to_the_buffer_that_changed(buf: EvBuffer) -> None:
    source = EvBuffer()
    source.add_cb(lambda b, *_change: buf.add_buffer_reference(b))
    source.add(b"a")
    source.add(b"b")
    source.add_iovec([b"c", b"d"])
    assert whole(buf) == b"a" + b"ab" + b"abc" + b"abcd"


def test_ten_thousand_references_do_not_nest() -> None:
    source, buf = EvBuffer(b"x" * 2000), EvBuffer()
    for _ in range(10_000):
        buf.drain(2000)
        buf.add_buffer_reference(source)
    assert whole(buf) == b"x" * 2000
    assert pieces_of(source) == [b"x" * 2000]


def test_references_that_nest_end_without_deep_recursion() -> None:
    """Overlapping memory is lent twice: no share of it is found again, each refers to the last."""
    memory = bytes(2000)
    keeper, first, second = EvBuffer(), EvBuffer(), EvBuffer()
    first.add_reference(memoryview(memory)[:1000])
    keeper.add_buffer_reference(first)
    second.add_reference(memoryview(memory)[500:1500])
    scratch = EvBuffer()
    for _ in range(50_000):
        scratch.add_buffer_reference(second)
        scratch.drain(1000)
    second.close()
    first.close()
    assert whole(keeper) == memory[:1000]


def test_an_empty_receiver_with_room_is_sound_afterwards(buf: EvBuffer) -> None:
    """libevent's own frees that room and goes on using it."""
    buf.expand(5000)
    buf.add_buffer_reference(EvBuffer(b"text"))
    buf.add(b"!")
    assert whole(buf) == b"text!"


def test_random_sharing_keeps_every_buffer_right() -> None:
    rng = random.Random(1)
    bufs = [EvBuffer() for _ in range(6)]
    model = [b""] * 6
    for step in range(3000):
        i, j = rng.sample(range(6), 2)
        kind = rng.randrange(8)
        data = bytes([step & 255]) * rng.choice((1, 10, 700))
        if kind == 0:
            bufs[i].add(data)
            model[i] += data
        elif kind == 1:
            bufs[i].add_reference(data)
            model[i] += data
        elif kind == 2:
            bufs[i].prepend(data)
            model[i] = data + model[i]
        elif kind == 3 and len(model[i]) + len(model[j]) < 20_000:
            bufs[i].add_buffer_reference(bufs[j])
            model[i] += model[j]
        elif kind == 4:
            n = rng.randrange(2000)
            bufs[i].drain(n)
            model[i] = model[i][n:]
        elif kind == 5:
            n = rng.randrange(1000)
            bufs[i].remove_buffer(bufs[j], n)
            model[j] += model[i][:n]
            model[i] = model[i][n:]
        elif kind == 6:
            bufs[i].pullup()
        elif rng.random() < 0.2:
            bufs[i].close()
            bufs[i], model[i] = EvBuffer(), b""
        assert whole(bufs[i]) == model[i]
        assert whole(bufs[j]) == model[j]


def test_threads_that_drain_what_they_share(buf: EvBuffer) -> None:
    lent = lend(buf, b"x" * 100_000)
    buf.add(b"y" * 5000)
    copies = [EvBuffer() for _ in range(8)]
    for copy in copies:
        copy.add_buffer_reference(buf)
    start = threading.Barrier(len(copies))

    def work(copy: EvBuffer) -> None:
        start.wait(SOON)
        mine = EvBuffer()
        for _ in range(50):
            mine.add_buffer_reference(copy)
            mine.drain(60_000)
            copy.remove_buffer(mine, 1000)
        copy.close()
        mine.close()

    threads = [in_thread(work, copy) for copy in copies]
    buf.close()
    join(*threads)
    assert lent() is None
    assert cb.pins == {}


# ---- locking ----


def test_any_thread_may_use_a_buffer_with_a_lock(buf: EvBuffer) -> None:
    buf.enable_locking()
    threads = [in_thread(times, 500, buf.add, b"%d" % i * 10) for i in range(4)]
    taken = bytearray()
    while len(taken) < 4 * 500 * 10:
        taken += buf.remove(1000)
    join(*threads)
    assert sorted(taken[i : i + 10] for i in range(0, len(taken), 10)) == sorted(
        b"%d" % i * 10 for i in range(4) for _ in range(500)
    )


def test_a_callback_in_one_thread_does_not_stop_another_from_waiting(buf: EvBuffer) -> None:
    """The callback needs the GIL while it holds the lock: who waits for that must not hold it."""
    total = [0]
    buf.enable_locking()

    def count(b: EvBuffer, _size: int, added: int, deleted: int) -> None:
        total[0] += added - deleted
        len(b)

    buf.add_cb(count)
    threads = [in_thread(times, 300, buf.add, b"x") for _ in range(3)]
    threads.append(in_thread(times, 300, buf.drain, 1))
    join(*threads)
    assert total[0] == len(buf)


def test_lock_keeps_others_out_until_the_end_of_the_with_statement(buf: EvBuffer) -> None:
    buf.enable_locking()
    with buf.lock() as locked, buf.lock():
        assert locked is buf
        thread = in_thread(buf.add, b"other")
        buf.add(b"first ")
        thread.join(0.02)
        buf.add(b"second ")
        assert whole(buf) == b"first second "
    join(thread)
    assert whole(buf) == b"first second other"


def test_lock_without_a_lock_is_a_runtime_error(buf: EvBuffer, bev: BufferEvent) -> None:
    for each in (buf, bev.output):
        with pytest.raises(RuntimeError, match="enable_locking"), each.lock():
            pass


def test_a_second_lock_is_an_error_and_a_bufferevents_buffer_has_that_ones(
    base: EventBase, buf: EvBuffer, bev: BufferEvent, sockets: Sockets
) -> None:
    buf.enable_locking()
    for each in (buf, bev.output):
        with pytest.raises(LibeventError, match="evbuffer_enable_locking"):
            each.enable_locking()
    safe = BufferEvent.socket(base, sockets[1], BEV_OPT_THREADSAFE)
    with safe.output.lock():
        thread = in_thread(safe.write, b"other")
        thread.join(0.02)
        assert len(safe.output) == 0
    join(thread)


def test_closing_inside_the_lock_frees_at_its_end(buf: EvBuffer) -> None:
    buf.enable_locking()
    lent = lend(buf, b"text")
    with buf.lock():
        buf.close()
        assert buf.closed
        with pytest.raises(ClosedError):
            buf.add(b"x")
        with pytest.raises(ClosedError), buf.lock():
            pass
        assert lent() is not None
    assert lent() is None


def test_who_waits_for_the_lock_of_a_buffer_that_is_closed_is_told(buf: EvBuffer) -> None:
    buf.enable_locking()
    told: list[type] = []
    started = threading.Barrier(4)

    def wait(call: Callable[[], object]) -> None:
        started.wait(SOON)
        try:
            call()
        except ClosedError as error:
            told.append(type(error))

    def lock() -> None:
        with buf.lock():
            raise AssertionError("got in")

    with buf.lock():
        threads = [in_thread(wait, call) for call in (lambda: buf.add(b"x"), lock, buf.pullup)]
        started.wait(SOON)
        threads[0].join(0.02)
        buf.close()
    join(*threads)
    assert told == [ClosedError] * 3


def test_a_view_that_outlives_the_close_of_a_locked_buffer(base: EventBase, buf: EvBuffer) -> None:
    buf.enable_locking()
    buf.add(b"text")
    views = buf.peek()
    with pytest.raises(BufferError):
        buf.close()
    join(in_thread(views.clear))
    buf.close()
    assert buf.closed


def test_moves_both_ways_between_locked_buffers_do_not_deadlock() -> None:
    one, two = EvBuffer(b"x" * 1000), EvBuffer(b"y" * 1000)
    for each in (one, two):
        each.enable_locking()
        each.add_cb(lambda b, *_change: len(b))

    def move(source: EvBuffer, destination: EvBuffer) -> None:
        for i in range(500):
            if i % 3 == 0:
                source.remove_buffer(destination, 100)
            elif i % 3 == 1:
                destination.add_buffer(source)
            else:
                destination.prepend_buffer(source)

    join(in_thread(move, one, two), in_thread(move, two, one))
    assert len(one) + len(two) == 2000


def test_a_worker_thread_and_a_loops_callbacks_share_a_locked_buffer(
    base: EventBase, sockets: Sockets, run_until: RunUntil
) -> None:
    """The callback holds the bufferevent's lock, the worker takes both."""
    shared = EvBuffer()
    shared.enable_locking()
    bev = BufferEvent.socket(base, sockets[0], BEV_OPT_THREADSAFE | BEV_OPT_DEFER_CALLBACKS)
    peer = BufferEvent.socket(base, sockets[1], BEV_OPT_THREADSAFE)
    echoed = [0]

    def echo(b: BufferEvent) -> None:
        b.write(b.read())

    def read(b: BufferEvent) -> None:
        echoed[0] += len(b.input)
        b.read_buffer(shared)

    peer.setcb(read=echo)
    bev.setcb(read=read)
    for each in (bev, peer):
        each.enable(EV_READ | EV_WRITE)

    def work() -> None:
        for i in range(300):
            shared.add(b"x" * 10)
            if i % 2:
                bev.write_buffer(shared)
            else:
                bev.output.add_buffer(shared)

    thread = in_thread(work)
    run_until(lambda: echoed[0] >= 3000, timeout=SOON)
    join(thread)


def test_unlock_belongs_to_the_thread_that_locked(buf: EvBuffer) -> None:
    buf.enable_locking()
    manager, raised = buf.lock(), []
    manager.__enter__()

    def leave() -> None:
        try:
            manager.__exit__(None, None, None)
        except RuntimeError as error:
            raised.append(str(error))

    join(in_thread(leave))
    assert raised == ["evbuffer_unlock: in use by another thread"]
    manager.__exit__(None, None, None)
    join(in_thread(buf.add, b"x"))
    assert len(buf) == 1


def test_a_child_may_use_a_buffer_whose_lock_was_free(buf: EvBuffer) -> None:
    buf.enable_locking()
    buf.add(b"text")

    def child() -> None:
        with buf.lock():
            buf.add(b"x")
        assert whole(buf) == b"textx"
        buf.close()

    assert in_child(child) == 0


def test_a_child_may_not_use_a_buffer_whose_lock_another_thread_had(buf: EvBuffer) -> None:
    buf.enable_locking()
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with buf.lock():
            inside.set()
            assert go_on.wait(SOON)

    def child() -> None:
        with pytest.raises(RuntimeError):
            buf.add(b"x")
        with pytest.raises(RuntimeError), buf.lock():
            pass

    thread = in_thread(hold)
    assert inside.wait(SOON)
    assert in_child(child) == 0
    go_on.set()
    join(thread)


def test_a_child_of_a_thread_inside_the_lock_leaves_it_alone(buf: EvBuffer) -> None:
    buf.enable_locking()

    def child() -> None:
        with pytest.raises(RuntimeError):
            buf.add(b"x")

    with buf.lock():
        assert in_child(child) == 0
    buf.add(b"x")
    assert whole(buf) == b"x"


# ---- borrowed buffers ----


@pytest.fixture
def raw() -> Iterator[Any]:
    raw = lib.evbuffer_new()
    yield raw
    lib.evbuffer_free(raw)


def test_a_c_librarys_buffer_is_borrowed_and_not_freed(raw: Any) -> None:
    with EvBuffer.from_ptr(raw) as buf:
        assert buf.ptr == raw
        buf.add(b"from Python ")
        lib.evbuffer_add(raw, b"from C", 6)
        assert whole(buf) == b"from Python from C"
    assert buf.closed
    assert lib.evbuffer_get_length(raw) == 18
    with pytest.raises(ClosedError):
        buf.add(b"x")
    EvBuffer.from_ptr(raw)
    gc.collect()
    assert lib.evbuffer_get_length(raw) == 18


@pytest.mark.parametrize("end", ["close", "del", "in callback"])
def test_a_borrowed_buffer_has_no_callbacks_of_ours_left(raw: Any, end: str) -> None:
    seen: list[Change] = []
    buf = EvBuffer.from_ptr(raw)

    def note(b: EvBuffer, *change: int) -> None:
        seen.append(change)  # type: ignore[arg-type]
        if end == "in callback":
            b.close()

    buf.add_cb(note)
    lib.evbuffer_add(raw, b"x", 1)
    if end == "close":
        buf.close()
    elif end == "del":
        del buf
        gc.collect()
    lib.evbuffer_add(raw, b"y", 1)
    assert seen == [(0, 1, 0)]
    assert lib.evbuffer_remove_cb(raw, ffi.NULL, ffi.NULL) == -1


@pytest.mark.parametrize("locked", [False, True])
def test_closing_in_a_callback_of_a_change_that_c_code_makes(locked: bool) -> None:
    buf = EvBuffer(b"text")
    if locked:
        buf.enable_locking()
    buf.add_cb(lambda b, *_change: b.close())
    assert lib.evbuffer_add(buf.ptr, b"x" * 10_000, 10_000) == 0
    assert buf.closed


def test_a_borrowed_buffer_takes_and_gives_like_any_other(
    raw: Any, buf: EvBuffer, file: BinaryIO
) -> None:
    borrowed = EvBuffer.from_ptr(raw)
    borrowed.add(b"abc")
    buf.add_buffer_reference(borrowed)
    borrowed.add_buffer_reference(buf)
    borrowed.add_file(file, 0, 3)
    assert whole(borrowed) == b"abcabc" + CONTENT[:3]
    lib.evbuffer_drain(raw, 100)
    assert whole(buf) == b"abc"
    write_to(borrowed.reserve_space(10), b"lost")
    views = borrowed.reserve_space(10)
    write_to(views, b"kept")
    borrowed.commit_space(4)
    assert whole(borrowed) == b"kept"
    borrowed.enable_locking()
    with borrowed.lock():
        borrowed.drain(4)


def test_a_segment_that_may_go_by_sendfile_makes_a_borrowed_buffer_unreadable(
    raw: Any, segment: FileSegment, sockets: Sockets
) -> None:
    """Nobody can tell what the C library has made that buffer for."""
    borrowed = EvBuffer.from_ptr(raw)
    borrowed.add_file_segment(segment, 0, 100)
    with pytest.raises(BufferError, match="sendfile"):
        bytes(borrowed)
    assert borrowed.write(sockets[0]) == 100
    assert sockets[1].recv(1000) == CONTENT[:100]


@pytest.mark.parametrize("bad", [ffi.NULL, 0])
def test_null_is_not_borrowed(bad: Any) -> None:
    with pytest.raises(ValueError, match="NULL"):
        EvBuffer.from_ptr(bad)


def test_other_pointers_are_not_borrowed(buf: EvBuffer, base: EventBase) -> None:
    for bad in (buf, None, base.ptr, buf._ptr):
        with pytest.raises(TypeError):
            EvBuffer.from_ptr(bad)


# ---- the end of the program ----

AT_EXIT = {
    "a deferred call waits": """
        base, buf = EventBase(), EvBuffer()
        buf.add_cb(lambda *_: print("called"))
        buf.defer_callbacks(base)
        buf.add(b"x")
        atexit.register(base.close)
    """,
    "a cleanup waits": """
        segment, buf = FileSegment(open(sys.argv[0], "rb")), EvBuffer()
        segment.add_cleanup_cb(print, "called")
        buf.add_file_segment(segment)
    """,
    "room is reserved": """
        buf = EvBuffer(b"x")
        views = buf.reserve_space(100)
        part = views[0][:10]
    """,
    "memory is shared": """
        one, two = EvBuffer(b"x" * 5000), EvBuffer()
        two.add_buffer_reference(one)
    """,
    "a daemon thread has the lock": """
        buf, locked = EvBuffer(), threading.Event()
        buf.enable_locking()
        buf.add_cb(lambda *_: locked.set())

        def hold():
            with buf.lock():
                while True:
                    buf.add(b"x")
                    buf.drain(1)

        threading.Thread(target=hold, daemon=True).start()
        locked.wait()
    """,
}


@pytest.mark.parametrize("what", AT_EXIT)
def test_the_program_ends_in_peace_while(what: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    imports = "import atexit, sys, threading\nfrom pylibevent import *\n"
    script.write_text(imports + textwrap.dedent(AT_EXIT[what]))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=SOON, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("", "called\n" if what == "a cleanup waits" else "")


# ---- after close ----


@pytest.mark.parametrize(
    "use",
    [
        lambda buf, base: buf.add_iovec([b"x"]),
        lambda buf, base: buf.reserve_space(10),
        lambda buf, base: buf.commit_space(0),
        lambda buf, base: buf.add_buffer_reference(EvBuffer(b"x")),
        lambda buf, base: EvBuffer().add_buffer_reference(buf),
        lambda buf, base: buf.defer_callbacks(base),
        lambda buf, base: buf.enable_locking(),
        lambda buf, base: buf.lock().__enter__(),
        lambda buf, base: buf.set_flags(EVBUFFER_FLAG_DRAINS_TO_FD),
        lambda buf, base: buf.clear_flags(EVBUFFER_FLAG_DRAINS_TO_FD),
    ],
)
def test_use_after_close_is_a_closed_error(
    base: EventBase, buf: EvBuffer, use: Callable[[EvBuffer, EventBase], object]
) -> None:
    buf.close()
    with pytest.raises(ClosedError):
        use(buf, base)
