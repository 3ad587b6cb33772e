"""EvBuffers against bytearrays: whatever is done to both, they hold the same bytes."""

from __future__ import annotations

import contextlib
import gc
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from common import FUZZ
from conftest import watch_for_hangs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pylibevent import (
    EVBUFFER_EOL_ANY,
    EVBUFFER_EOL_CRLF,
    EVBUFFER_EOL_CRLF_STRICT,
    EVBUFFER_EOL_LF,
    EVBUFFER_EOL_NUL,
    EVLOOP_NONBLOCK,
    ClosedError,
    EvBuffer,
    EventBase,
    FileSegment,
    LibeventError,
    LineTooLong,
)
from pylibevent import _callbacks as cb

FILE = bytes(i * 31 % 251 for i in range(9000))
BUFFERS = 3

SETTINGS = settings(max_examples=100 * max(FUZZ, 1))

# ---- the model of a line ----

EOL = {
    EVBUFFER_EOL_ANY: re.compile(rb"[\r\n]+"),
    EVBUFFER_EOL_CRLF: re.compile(rb"\r?\n"),
    EVBUFFER_EOL_CRLF_STRICT: re.compile(rb"\r\n"),
    EVBUFFER_EOL_LF: re.compile(rb"\n"),
    EVBUFFER_EOL_NUL: re.compile(rb"\0"),
}


def first_line(data: bytes | bytearray, eol: int, limit: int | None) -> tuple[int, int] | None:
    """How long the first line is, and how long with its end."""
    end = EOL[eol].search(data)  # type: ignore[index]
    if end is None:
        maybe_end = eol in (EVBUFFER_EOL_CRLF, EVBUFFER_EOL_CRLF_STRICT) and data.endswith(b"\r")
        if limit is not None and len(data) - maybe_end > limit:
            raise LineTooLong
        return None
    if limit is not None and end.start() > limit:
        raise LineTooLong
    return end.start(), end.end()


def take_line(data: bytearray, eol: int, limit: int | None) -> bytes | None:
    found = first_line(data, eol, limit)
    if found is None:
        return None
    line = bytes(data[: found[0]])
    del data[: found[1]]
    return line


def take_lines(data: bytearray, eol: int, limit: int | None) -> list[bytes]:
    lines: list[bytes] = []
    try:
        while (line := take_line(data, eol, limit)) is not None:
            lines.append(line)
    except LineTooLong:
        if not lines:
            raise
    return lines


# ---- what is drawn ----

small_bytes = st.text("\r\n\0ab", max_size=30).map(str.encode)
any_bytes = st.one_of(
    small_bytes, st.builds(lambda n, c: bytes([c]) * n, st.integers(0, 6000), st.integers(10, 13))
)
eols = st.sampled_from(sorted(EOL))
limits = st.none() | st.integers(0, 40)
numbers = st.one_of(st.integers(0, 30), st.integers(0, 12_000))
which = st.integers(0, BUFFERS - 1)


@st.composite
def chunks(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes, cut anywhere."""
    whole = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


HOW: list[Callable[[EvBuffer, bytes], None]] = [
    lambda buf, data: buf.add(data),
    lambda buf, data: buf.add_reference(data),
    lambda buf, data: buf.add_buffer(EvBuffer(data)),
]


@st.composite
def filled(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> tuple[EvBuffer, bytes]:
    """A buffer whose bytes lie in pieces of all kinds, and these bytes."""
    pieces = draw(chunks(data))
    buf = EvBuffer(b"prefix")
    for piece in pieces:
        draw(st.sampled_from(HOW))(buf, piece)
    buf.drain(6)
    return buf, b"".join(pieces)


# ---- one thing at a time ----

alike = st.text("ab", max_size=40).map(str.encode)


@given(filled(alike), alike, st.integers(0, 45), st.none() | st.integers(0, 45))
@SETTINGS
def test_search_finds_what_bytes_find_does(
    buffer: tuple[EvBuffer, bytes], needle: bytes, start: int, end: int | None
) -> None:
    buf, data = buffer
    assume(start <= len(data) and (end is None or end <= len(data)))
    needle = needle[:5]
    expected = data.find(needle, start, end)
    found = buf.search(needle, start, end)
    assert (-1 if found is None else found.pos) == expected
    assert found is None or found.length == len(needle)


@given(filled(small_bytes), eols, st.integers(0, 20))
@SETTINGS
def test_search_eol_finds_the_end_of_a_line(
    buffer: tuple[EvBuffer, bytes], eol: int, start: int
) -> None:
    buf, data = buffer
    assume(start <= len(data))
    expected = first_line(data[start:], eol, None)
    found = buf.search_eol(start, eol)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.pos, found.pos + found.length) == tuple(start + n for n in expected)


@given(filled(small_bytes), eols, limits)
@SETTINGS
def test_readln_takes_a_line(buffer: tuple[EvBuffer, bytes], eol: int, limit: int | None) -> None:
    buf, data = buffer
    model = bytearray(data)
    while True:
        try:
            expected = take_line(model, eol, limit)
        except LineTooLong:
            with pytest.raises(LineTooLong):
                buf.readln(eol, limit)
            expected = None
        else:
            assert buf.readln(eol, limit) == expected
        assert buf == model
        if expected is None:
            return


@given(filled(small_bytes), eols, limits)
@SETTINGS
def test_readlines_takes_all_lines(
    buffer: tuple[EvBuffer, bytes], eol: int, limit: int | None
) -> None:
    buf, data = buffer
    model = bytearray(data)
    try:
        expected = take_lines(model, eol, limit)
    except LineTooLong:
        with pytest.raises(LineTooLong):
            buf.readlines(eol, limit)
    else:
        assert buf.readlines(eol, limit) == expected
    assert buf == model


@given(chunks(small_bytes), eols, st.booleans(), limits)
@SETTINGS
def test_the_lines_do_not_depend_on_how_the_bytes_arrive(
    parts: list[bytes], eol: int, by_readlines: bool, limit: int | None
) -> None:
    """Not of EVBUFFER_EOL_ANY, where a run of CR and LF that arrives in parts is two ends."""
    assume(eol != EVBUFFER_EOL_ANY)
    whole = bytearray(b"".join(parts))
    expected: list[bytes] = []
    too_long = False
    try:
        while (line := take_line(whole, eol, limit)) is not None:
            expected.append(line)
    except LineTooLong:
        too_long = True
    buf = EvBuffer()
    got: list[bytes] = []
    try:
        for part in parts:
            buf.add(part)
            if by_readlines:
                while lines := buf.readlines(eol, limit):
                    got += lines
            else:
                while (line := buf.readln(eol, limit)) is not None:
                    got.append(line)
    except LineTooLong:
        assert too_long
    else:
        assert not too_long
    assert got == expected


@given(filled(any_bytes), numbers, numbers)
@SETTINGS
def test_every_way_to_look_shows_the_same(
    buffer: tuple[EvBuffer, bytes], start: int, n: int
) -> None:
    buf, data = buffer
    start = min(start, len(data))
    part = data[start : start + n]
    assert buf.copyout_from(start, n) == part
    assert b"".join(buf.peek(n, start)) == part
    assert b"".join(buf.peek(start=start)) == data[start:]
    n = min(n, len(data))
    assert bytes(buf.pullup(n)) == data[:n]
    assert bytes(buf) == data
    assert len(buf) == len(data)


# ---- everything, in any order ----


class Boom(Exception):
    pass


Action = tuple[Any, ...]
actions = st.one_of(
    st.tuples(st.just("add"), which, small_bytes),
    st.tuples(st.just("prepend"), which, small_bytes),
    st.tuples(st.just("add_reference"), which, small_bytes),
    st.tuples(st.just("drain"), which, numbers),
    st.tuples(st.just("add_buffer"), which, which),
    st.tuples(st.just("prepend_buffer"), which, which),
    st.tuples(st.just("remove_buffer"), which, which, numbers),
    st.tuples(st.just("add_buffer_reference"), which, which),
    st.tuples(st.just("add_iovec"), which, st.lists(small_bytes, max_size=4)),
    st.tuples(st.just("close"), which),
    st.tuples(st.just("view"), which),
    st.tuples(st.just("freeze"), which, st.booleans(), st.booleans()),
    st.tuples(st.just("collect")),
    st.tuples(st.just("raise")),
)


class Buffers(RuleBasedStateMachine):
    """Three buffers and their models. Each buffer has a callback, which keeps count, and which
    does what was planned for it: change a buffer, close one, take a view, raise.

    While a view of a buffer is out each change of it is refused, and while it is frozen those at
    that end. What a callback does may also be refused because its buffer is in the middle of a
    move. A buffer whose callbacks are deferred tells in the loop what has changed.
    """

    def __init__(self) -> None:
        super().__init__()
        watch_for_hangs()
        self.pins = set(cb.pins)
        self.base = EventBase()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(FILE)
        self.file.flush()
        self.segment = FileSegment(self.file, 50, 8000)
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.bufs: list[EvBuffer] = []
        self.models: list[bytearray] = []
        self.counts: list[int] = []
        self.views: list[list[tuple[memoryview, bytes]]] = []
        self.orphans: list[tuple[memoryview, bytes]] = []
        self.plans: list[list[Action]] = []
        self.frozen: list[set[bool]] = [set() for _ in range(BUFFERS)]
        self.deferred: list[bool] = [False] * BUFFERS
        for i in range(BUFFERS):
            self.bufs.append(EvBuffer())
            self.models.append(bytearray())
            self.counts.append(0)
            self.views.append([])
            self.plans.append([])
            self.bufs[i].add_cb(self.on_change, i)
        self.unraisablehook = sys.unraisablehook
        sys.unraisablehook = self.on_unraisable

    def on_unraisable(self, info: Any) -> None:
        if not isinstance(info.exc_value, Boom):  # the second one of a call
            self.unraisablehook(info)

    def teardown(self) -> None:
        for views in [self.orphans, *self.views]:
            while views:
                views.pop()[0].release()
        for buf in self.bufs:
            buf.close()
        self.segment.close()
        self.base.close()
        self.file.close()
        self.ours.close()
        self.theirs.close()
        sys.unraisablehook = self.unraisablehook
        if cb.pins.keys() - self.pins:
            gc.collect()  # a dropped buffer that a traceback holds
        assert not cb.pins.keys() - self.pins

    # -- what callbacks do --

    def on_change(self, buf: EvBuffer, size: int, added: int, deleted: int, i: int) -> None:
        if buf is not self.bufs[i]:
            return  # closed in a callback before this one
        assert size + added >= deleted  # libevent may tell of two changes in one call
        self.counts[i] += added - deleted
        if self.plans[i]:
            self.act(*self.plans[i].pop(0))

    def act(self, name: str, *args: Any) -> None:
        if name == "raise":
            raise Boom
        if name == "view":
            i = args[0]
            with contextlib.suppress(ClosedError):
                self.views[i] += [(view, bytes(view)) for view in self.bufs[i].peek()]
            return
        before = [bytearray(model) for model in self.models]
        if name == "collect":
            gc.collect()
            return
        if name == "freeze":
            self.do_freeze(*args)
            return
        try:
            if name == "close":
                self.bufs[args[0]].close()
                assert self.bufs[args[0]].closed
            else:
                getattr(self, f"do_{name}")(*args)
        except (BufferError, LibeventError):
            self.models = before
        except Boom:
            pass  # the change was made

    # -- each change: of the model first, because callbacks run before the call returns --

    def do_add(self, i: int, data: bytes) -> None:
        self.models[i] += data
        self.bufs[i].add(data)

    def do_prepend(self, i: int, data: bytes) -> None:
        self.models[i][:0] = data
        self.bufs[i].prepend(data)

    def do_add_reference(self, i: int, data: bytes) -> None:
        self.models[i] += data
        self.bufs[i].add_reference(bytearray(data))

    def do_drain(self, i: int, n: int) -> None:
        del self.models[i][:n]
        self.bufs[i].drain(n)

    def do_add_buffer(self, i: int, j: int) -> None:
        if i != j:
            self.models[i] += self.models[j]
            self.models[j].clear()
        self.bufs[i].add_buffer(self.bufs[j])

    def do_prepend_buffer(self, i: int, j: int) -> None:
        if i != j:
            self.models[i][:0] = self.models[j]
            self.models[j].clear()
        self.bufs[i].prepend_buffer(self.bufs[j])

    def do_remove_buffer(self, i: int, j: int, n: int) -> None:
        expected = 0
        if i != j:
            expected = min(n, len(self.models[i]))
            self.models[j] += self.models[i][:n]
            del self.models[i][:n]
        assert self.bufs[i].remove_buffer(self.bufs[j], n) == expected

    def do_add_buffer_reference(self, i: int, j: int) -> None:
        self.models[i] += self.models[j]
        self.bufs[i].add_buffer_reference(self.bufs[j])

    def do_add_iovec(self, i: int, pieces: list[bytes]) -> None:
        if self.plans[i]:  # as in C callbacks come after each piece, and may add between them
            pieces = [b"".join(pieces)]
        self.models[i] += b"".join(pieces)
        assert self.bufs[i].add_iovec(pieces) == len(b"".join(pieces))

    def do_freeze(self, i: int, at_front: bool, on: bool) -> None:
        with contextlib.suppress(ClosedError):
            if on:
                self.bufs[i].freeze(at_front)
                self.frozen[i].add(at_front)
            else:
                self.bufs[i].unfreeze(at_front)
                self.frozen[i].discard(at_front)

    @contextlib.contextmanager
    def change(self, *involved: int) -> Iterator[bool]:
        """Whether it may: no view of these buffers is out. A frozen one may refuse as well."""
        may = not any(self.views[i] for i in involved)
        before = [bytearray(model) for model in self.models]
        try:
            yield may
        except Boom:
            assert may
        except BufferError:
            assert not may
            self.models = before
        except LibeventError:
            assert any(self.frozen[i] for i in involved)
            self.models = before
        for i, buf in enumerate(self.bufs):
            if buf.closed:
                self.renew(i)

    def renew(self, i: int) -> None:
        self.orphans += self.views[i]
        self.bufs[i] = EvBuffer()
        self.bufs[i].add_cb(self.on_change, i)
        self.models[i] = bytearray()
        self.views[i] = []
        self.counts[i] = 0
        self.frozen[i] = set()
        self.deferred[i] = False

    # -- the rules --

    @rule(i=which, data=any_bytes)
    def add(self, i: int, data: bytes) -> None:
        with self.change(i):
            self.do_add(i, data)

    @rule(i=which, data=any_bytes)
    def prepend(self, i: int, data: bytes) -> None:
        with self.change(i):
            self.do_prepend(i, data)

    @rule(i=which, data=any_bytes)
    def add_reference(self, i: int, data: bytes) -> None:
        with self.change(*[i] if data else []):
            self.do_add_reference(i, data)

    @rule(i=which, offset=st.integers(0, len(FILE)), n=numbers)
    def add_file(self, i: int, offset: int, n: int) -> None:
        n = min(n, len(FILE) - offset)
        with self.change(i):
            self.models[i] += FILE[offset : offset + n]
            self.bufs[i].add_file(self.file, offset, n)

    @rule(i=which, offset=st.integers(0, 8000), n=numbers)
    def add_file_segment(self, i: int, offset: int, n: int) -> None:
        n = min(n, 8000 - offset)
        with self.change(i):
            self.models[i] += FILE[50 + offset :][:n]
            self.bufs[i].add_file_segment(self.segment, offset, n)

    @rule(i=which, j=which)
    def add_buffer_reference(self, i: int, j: int) -> None:
        assume(i != j)
        with self.change(i, j):
            self.do_add_buffer_reference(i, j)

    @rule(i=which, data=chunks(any_bytes))
    def add_iovec(self, i: int, data: list[bytes]) -> None:
        with self.change(i):
            self.do_add_iovec(i, data)

    @rule(i=which, data=small_bytes, n=st.integers(0, 99))
    def add_printf(self, i: int, data: bytes, n: int) -> None:
        with self.change(i):
            self.models[i] += b"%b %d" % (data, n)
            assert self.bufs[i].add_printf(b"%b %d", data, n) == len(b"%b %d" % (data, n))

    @rule(i=which, data=any_bytes, room=numbers, pieces=st.integers(1, 4), commit=st.booleans())
    def reserve(self, i: int, data: bytes, room: int, pieces: int, commit: bool) -> None:
        """Either all is written there and added, or the views stay out."""
        with self.change(i):
            views = self.bufs[i].reserve_space(len(data) + room, pieces)
            assert sum(map(len, views)) >= len(data) + room
            rest = data
            for view in views:
                part, rest = rest[: len(view)], rest[len(view) :]
                view[: len(part)] = part
            if commit:
                self.models[i] += data
                self.bufs[i].commit_space(len(data))
            else:
                self.views[i] += [(view, bytes(view)) for view in views]

    @rule(i=which, at_front=st.booleans(), on=st.booleans())
    def freeze(self, i: int, at_front: bool, on: bool) -> None:
        self.do_freeze(i, at_front, on)
        if on and self.models[i] and not self.views[i]:
            with pytest.raises(LibeventError):
                self.bufs[i].drain(1) if at_front else self.bufs[i].add(b"x")

    @rule(i=which)
    def defer(self, i: int) -> None:
        with self.change(i):
            self.bufs[i].defer_callbacks(self.base)
            self.deferred[i] = True

    @rule()
    def loop(self) -> None:
        """Tells all that was deferred, as often as callbacks make more of it."""
        for _ in range(100):
            with self.change():
                self.base.loop(EVLOOP_NONBLOCK)
                break
        assert self.counts == [len(model) for model in self.models]

    @rule(i=which, needle=small_bytes, start=numbers, n=numbers)
    def look(self, i: int, needle: bytes, start: int, n: int) -> None:
        """Positions are numbers: whatever was done before, they are where they say."""
        model, buf = bytes(self.models[i]), self.bufs[i]
        start = min(start, len(model))
        found = buf.search(needle, buf.ptr_set(start))
        assert (-1 if found is None else found.pos) == model.find(needle, start)
        assert buf.copyout_from(start, n) == model[start : start + n]
        assert buf.contiguous_space <= len(model)
        assert (needle in buf) is (needle in model)

    @rule(i=which, n=numbers)
    def expand(self, i: int, n: int) -> None:
        with self.change(i):
            self.bufs[i].expand(n)

    @rule(i=which, n=numbers)
    def drain(self, i: int, n: int) -> None:
        with self.change(i):
            self.do_drain(i, n)

    @rule(i=which, n=numbers | st.just(-1))
    def remove(self, i: int, n: int) -> None:
        with self.change(i):
            expected = bytes(self.models[i][:n] if n >= 0 else self.models[i])
            del self.models[i][: len(expected)]
            assert self.bufs[i].remove(n) == expected

    @rule(i=which, n=numbers)
    def remove_into(self, i: int, n: int) -> None:
        with self.change(i):
            expected = bytes(self.models[i][:n])
            del self.models[i][:n]
            memory = bytearray(n)
            assert self.bufs[i].remove_into(memory) == len(expected)
            assert memory.startswith(expected)

    @rule(i=which, eol=eols, limit=limits)
    def readln(self, i: int, eol: int, limit: int | None) -> None:
        with self.change(i):
            try:
                expected = take_line(self.models[i], eol, limit)
            except LineTooLong:
                with pytest.raises((LineTooLong, BufferError)):
                    self.bufs[i].readln(eol, limit)
            else:
                assert self.bufs[i].readln(eol, limit) == expected

    @rule(i=which, eol=eols, limit=limits)
    def readlines(self, i: int, eol: int, limit: int | None) -> None:
        assume(len(self.models[i]) < 65536)  # in one step: what a callback adds is not read too
        with self.change(i):
            try:
                expected = take_lines(self.models[i], eol, limit)
            except LineTooLong:
                with pytest.raises((LineTooLong, BufferError)):
                    self.bufs[i].readlines(eol, limit)
            else:
                assert self.bufs[i].readlines(eol, limit) == expected

    @rule(i=which, j=which)
    def add_buffer(self, i: int, j: int) -> None:
        with self.change(i, j):
            self.do_add_buffer(i, j)

    @rule(i=which, j=which)
    def prepend_buffer(self, i: int, j: int) -> None:
        with self.change(i, j):
            self.do_prepend_buffer(i, j)

    @rule(i=which, j=which, n=numbers)
    def remove_buffer(self, i: int, j: int, n: int) -> None:
        with self.change(i, j):
            self.do_remove_buffer(i, j, n)

    @rule(i=which, data=any_bytes)
    def read(self, i: int, data: bytes) -> None:
        assume(data)
        self.theirs.send(data)
        left = data
        while left:
            part, taken = left[:4096], False
            with self.change(i) as may:
                self.models[i] += part
                taken = may
                try:
                    assert self.bufs[i].read(self.ours) == len(part)
                except LibeventError:  # frozen
                    taken = False
                    raise
            if not taken:
                assert self.ours.recv(10_000) == left
                return
            left = left[len(part) :]

    @rule(i=which, n=numbers)
    def write(self, i: int, n: int) -> None:
        with self.change(i) as may:
            # in pieces as they lie: how many go out at once is libevent's affair
            front = bytes(self.models[i][: min(n, 3000)])
            del self.models[i][: len(front)]
            try:
                written = self.bufs[i].write(self.ours, len(front))
            except Boom:
                written = len(front)
            if may:
                assert written == len(front)
                assert not front or self.theirs.recv(10_000) == front

    @rule(i=which, n=numbers)
    def pullup(self, i: int, n: int) -> None:
        n = min(n, len(self.models[i]))
        with self.change(i):
            view = self.bufs[i].pullup(n)
            assert bytes(view) == self.models[i][:n]
            if n:
                self.views[i].append((view, bytes(view)))

    @rule(i=which, start=numbers, n=numbers)
    def peek(self, i: int, start: int, n: int) -> None:
        start = min(start, len(self.models[i]))
        views = self.bufs[i].peek(n, start)
        assert b"".join(views) == self.models[i][start : start + n]
        self.views[i] += [(view[1:], bytes(view[1:])) for view in views]

    @precondition(lambda self: any(self.views))
    @rule(i=which)
    def release(self, i: int) -> None:
        self.views[i].clear()

    @rule(i=which, action=actions)
    def plan(self, i: int, action: Action) -> None:
        self.plans[i].append(action)

    @rule(i=which)
    def drop(self, i: int) -> None:
        self.renew(i)

    # -- what always holds --

    @invariant()
    def same_bytes(self) -> None:
        for buf, model in zip(self.bufs, self.models, strict=True):
            assert len(buf) == len(model)
            assert bytes(buf) == model

    @invariant()
    def counts_add_up(self) -> None:
        for count, model, deferred in zip(self.counts, self.models, self.deferred, strict=True):
            assert deferred or count == len(model)

    @invariant()
    def views_show_what_they_showed(self) -> None:
        for views in [self.orphans, *self.views]:
            for view, data in views:
                assert view == data


TestBuffers = pytest.mark.slow(Buffers.TestCase)
TestBuffers.settings = settings(max_examples=100 * max(FUZZ, 1), stateful_step_count=50)
