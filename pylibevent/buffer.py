"""event2/buffer.h: EvBuffer, a queue of bytes in pieces, and positions in it."""

from __future__ import annotations

import errno
import functools
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from . import _callbacks as cb
from ._args import MAX_SIZE, FileDescriptor, data, fileno, function, integer, only, pointer, size
from ._handle import Handle, Lock, behind, expose, held
from ._libevent import ffi, lib
from .constants import (
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
    EVBUFFER_PTR_SET,
    EolStyle,
)
from .errors import CLOSED, NONE, RAISED, RANGE, SMALL, SYS, UNABLE, fail
from .event import EventBase

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer, Self, Unpack

    from ._args import Args, Variadic
    from ._libevent import CData

Bytes: TypeAlias = "Buffer"  # bytes, bytearray, memoryview: anything with the buffer protocol
ChangeCallback = Callable[..., object]

# Memory that C copies bytes to for Python to take. A call pops a block and gives it back, so a
# signal handler or finalizer that comes in between takes another one.
_BLOCK = 131072
_new_block = ffi.new_allocator(should_clear_after_alloc=False)
_blocks: list[Any] = [_new_block("char[]", _BLOCK)]
_unpack = ffi.unpack
_readln = lib.pyle_buf_readln
_readlines = lib.pyle_buf_readlines
_EOL_STYLES = {int(style) for style in EolStyle}
_MORE = lib.PYLE_MORE
_LAST = lib.PYLE_LAST
_MAX_VECS = 1024


class BufferPosition:
    """A place in an EvBuffer, in bytes from its front (struct evbuffer_ptr).

    `length` says how many bytes a search found there. It is a number, not a pointer: after the
    buffer has changed it is the same distance from the new front.
    """

    __slots__ = ("length", "pos")

    def __init__(self, pos: int, length: int = 0) -> None:
        self.pos: int = pos
        self.length: int = length

    def __index__(self) -> int:
        return operator.index(self.pos)

    __int__ = __index__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (BufferPosition, int)) and self.pos == int(other)

    def __lt__(self, other: BufferPosition | int) -> bool:
        return self.pos < operator.index(other)

    def __le__(self, other: BufferPosition | int) -> bool:
        return self.pos <= operator.index(other)

    def __gt__(self, other: BufferPosition | int) -> bool:
        return self.pos > operator.index(other)

    def __ge__(self, other: BufferPosition | int) -> bool:
        return self.pos >= operator.index(other)

    def __hash__(self) -> int:
        return hash(self.pos)

    def __repr__(self) -> str:
        return f"BufferPosition({self.pos}, length={self.length})"


class CallbackEntry:
    """A callback of an EvBuffer (struct evbuffer_cb_entry), as `EvBuffer.add_cb` returns it.

    While `enabled` is False it is not called; `active` says that it was not removed.
    """

    __slots__ = ("_buffer", "active", "args", "callback", "enabled")

    def __init__(self, buffer: EvBuffer, callback: ChangeCallback, args: tuple[Any, ...]) -> None:
        self._buffer = weakref.ref(buffer)
        self.callback: ChangeCallback = callback
        self.args: tuple[Any, ...] = args
        self.active: bool = True
        self.enabled: bool = True

    def set_flags(self, flags: int) -> None:
        """Has it called again: EVBUFFER_CB_ENABLED is the one flag (evbuffer_cb_set_flags)."""
        if only(EVBUFFER_CB_ENABLED, flags):
            self.enabled = True

    def clear_flags(self, flags: int) -> None:
        """Has it not called for a while (evbuffer_cb_clear_flags)."""
        if only(EVBUFFER_CB_ENABLED, flags):
            self.enabled = False

    def remove(self) -> None:
        """Has it not called any more (evbuffer_remove_cb_entry). May be called twice."""
        buffer = self._buffer()
        was_active, self.active = self.active, False
        if was_active and buffer is not None and buffer._callbacks:
            buffer._callbacks.remove(self)
            if not buffer._callbacks:
                lib.pyle_buf_callbacks(buffer._ptr, 0)


class FileSegment(Handle):
    """Part of a file that may go into several EvBuffers (struct evbuffer_file_segment).

    It is in memory once at most, and lives until it is closed and no buffer holds it. It shares
    the file's position, which is put back after it was read.
    """

    __slots__ = ("_cleanups",)

    def __init__(
        self, file: FileDescriptor, offset: int = 0, length: int = -1, flags: int = 0
    ) -> None:
        """Wraps evbuffer_file_segment_new: length bytes from offset on, -1: to the file's end.

        The descriptor is duplicated, so the file may be closed. OSError unless it is a regular
        file, ValueError beyond its end. EVBUF_FS_DISABLE_SENDFILE: it is read now, else when it is
        first needed. EVBUF_FS_DISABLE_MMAP goes without saying: it is never mapped. The other two
        are refused: close your own file; threads may share a segment.
        """
        self._first_init()
        how = only(EVBUF_FS_DISABLE_SENDFILE | EVBUF_FS_DISABLE_MMAP, flags)
        first, count = size(offset), size(length, -1)
        self._take(ffi.NULL)
        rc = lib.pyle_segment_open(self._ptr, fileno(file), first, count, how)
        self._check(rc, "evbuffer_file_segment_new")
        expose(lib.pyle_segment_ptr(self._ptr), self)

    def _take(self, ptr: Any) -> None:
        self._make("evbuffer_file_segment_new", lib.pyle_segment_new, ptr)
        self._cleanups: cb.Cleanups | None = None

    @classmethod
    def from_ptr(cls, ptr: Any) -> FileSegment:
        """The FileSegment of a struct evbuffer_file_segment *: the one that it belongs to, or a
        new one that borrows it from a C library.

        The library frees a borrowed one, not before this one is closed. It can be added only as a
        whole, and its cleanup callback stays the library's.
        """
        found = pointer(ptr, "evbuffer_file_segment")
        owner = behind(found)
        if isinstance(owner, FileSegment) and lib.pyle_segment_ptr(owner._ptr) == found:
            return owner
        segment = cls.__new__(cls)
        segment._take(found)
        return segment

    @property
    def ptr(self) -> Any:
        """The struct evbuffer_file_segment *, for ffi/lib and other C code; it stays ours to
        free."""
        return lib.pyle_segment_ptr(self._ptr) or fail(CLOSED, "evbuffer_file_segment")

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not lib.pyle_segment_ptr(self._ptr)

    def close(self) -> None:
        """Lets go of it (evbuffer_file_segment_free); buffers that hold it keep it. May be called
        twice."""
        self._check(lib.pyle_segment_close(self._ptr), "evbuffer_file_segment_free")

    def add_cleanup_cb(self, callback: Callable[..., object], *args: Any) -> None:
        """Has callback(*args) called once the segment is freed: closed, and out of every buffer
        (evbuffer_file_segment_add_cleanup_cb, which knows only one callback).

        What it raises leaves the call, or the loop, in which that happened.
        """
        entry = (function(callback), args)
        if self.closed:
            fail(CLOSED, "evbuffer_file_segment_add_cleanup_cb")
        if self._cleanups is not None:
            self._cleanups.append(entry)
            return
        cleanups = cb.Cleanups([entry])
        rc = _pin(cleanups, lib.pyle_segment_cleanup, self._ptr)
        self._check(rc, "evbuffer_file_segment_add_cleanup_cb")
        self._cleanups = cleanups


class EvBuffer(Handle):
    """Bytes in, bytes out (struct evbuffer): added at the end, removed from the front, without
    moving what lies between.

    `len(buf)`, `bytes(buf)`, `buf == other` and `what in buf` work. One thread at a time may use
    it (RuntimeError otherwise), unless it has a lock: `enable_locking()`, or BEV_OPT_THREADSAFE for
    a bufferevent's. While a memoryview of it is out it cannot change (BufferError), and the
    bufferevent whose buffer it is waits. A buffer of a bufferevent ends with that (ClosedError).
    """

    __slots__ = ("_callbacks", "_deferred", "_last", "_reserved", "_token")

    def __init__(self, initial: Bytes = b"") -> None:
        """Wraps evbuffer_new; `initial` is copied."""
        self._first_init()
        self._make("evbuffer_new", lib.pyle_buf_new)
        self._start()
        if initial != b"":
            self.add(initial)

    @classmethod
    def _of(cls, ptr: Any, anchor: Any) -> EvBuffer:
        """The buffer belongs to what the anchor holds."""
        buffer = cls.__new__(cls)
        buffer._ptr = ptr
        buffer._anchor = anchor
        buffer._start()
        return buffer

    def _start(self) -> None:
        self._token = 0
        self._last: int | None = None  # the eol of the last line, if nothing was behind it
        self._callbacks: list[CallbackEntry] | None = None
        self._deferred: EventBase | None = None
        self._reserved: Sequence[weakref.ref[memoryview]] = ()

    @classmethod
    def from_ptr(cls, ptr: Any) -> EvBuffer:
        """The EvBuffer of a struct evbuffer *: the one that it belongs to, `input` or `output` of a
        bufferevent among them, or a new one that borrows it from C code.

        A borrowed one is never freed here; close() forgets it, and that code must not free it
        before. What it changes while a memoryview is out, or in another thread without a lock, is
        not noticed here. Files that it has added by sendfile must not be read. The buffers of a C
        library's bufferevent are to be had from `BufferEvent.from_ptr`, which knows when they end.
        """
        found = pointer(ptr, "evbuffer")
        owner = behind(found)
        for buffer in () if owner is None else owner._buffers():
            if lib.pyle_buf_ptr(buffer._ptr) == found:
                return buffer
        self = cls.__new__(cls)
        self._make("evbuffer", lib.pyle_buf_borrow, found)
        self._start()
        expose(found, self)
        return self

    def _buffers(self) -> tuple[EvBuffer, ...]:
        return (self,)

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct evbuffer *, for ffi/lib and other C code; it stays ours to free."""
        ptr: CData = lib.pyle_buf_expose(self._ptr) or fail(CLOSED, "evbuffer")
        expose(ptr, self)
        return ptr

    @property
    def closed(self) -> bool:
        """Whether it, or the bufferevent that owns it, was closed."""
        return not lib.pyle_buf_ptr(self._ptr)

    def close(self) -> None:
        """Frees it (evbuffer_free); on a buffer of a bufferevent it does nothing. BufferError
        while a memoryview is out. May be called twice, and in its own callback."""
        self._check(lib.pyle_buf_close(self._ptr), "evbuffer_free")
        if self.closed:
            self._forget()

    def _forget(self) -> None:
        for entry in self._callbacks or ():
            entry.active = False
        self._callbacks = None
        if self._deferred is not None:
            self._deferred._table.pop(self._token, None)

    # ---- as a sequence of bytes ----

    def __len__(self) -> int:
        return self._check(lib.pyle_buf_length(self._ptr), "evbuffer_get_length")

    def __bool__(self) -> bool:
        return len(self) > 0

    def __bytes__(self) -> bytes:
        return self.copyout(len(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EvBuffer):
            return self is other or bytes(self) == bytes(other)
        if isinstance(other, (bytes, bytearray, memoryview)):
            return bytes(self) == other
        return NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # it changes

    def __contains__(self, what: Bytes) -> bool:
        return self.search(what) is not None

    def _describe(self) -> str:
        return f"{len(self)} bytes"

    # ---- in ----

    def add(self, data_: Bytes) -> None:
        """Copies bytes to the end (evbuffer_add)."""
        source = data_ if type(data_) is bytes else data(data_)
        rc = lib.pyle_buf_add(self._ptr, source, len(source))
        if rc < 0:
            fail(rc, "evbuffer_add")

    def prepend(self, data_: Bytes) -> None:
        """Copies bytes to the front (evbuffer_prepend)."""
        source = data(data_)
        self._check(lib.pyle_buf_prepend(self._ptr, source, len(source)), "evbuffer_prepend")

    def add_printf(self, format_: str | bytes, *args: Any) -> int:
        """Adds `format % args`, a str as UTF-8; returns how many bytes (evbuffer_add_printf, with
        Python's formatting)."""
        text = format_ % args if args else format_ % ()
        raw = text.encode() if isinstance(text, str) else text
        self.add(raw)
        return len(raw)

    def add_reference(self, obj: Bytes) -> None:
        """Adds an object's memory without a copy; it is held, and must not change, until libevent
        lets go of it (evbuffer_add_reference)."""
        memory = ffi.from_buffer("char[]", obj)
        if len(memory) == 0:
            return
        rc = _pin(memory, lib.pyle_buf_add_reference, self._ptr, memory, len(memory))
        self._check(rc, "evbuffer_add_reference")

    def add_file(self, file: FileDescriptor, offset: int = 0, length: int = -1) -> None:
        """Adds part of a file; -1: to its end (evbuffer_file_segment_new).

        The descriptor is duplicated, so the file may be closed. On the output of a socket it goes
        out by sendfile and never comes to memory; elsewhere it is read now. It is as long as
        os.fstat() says: files of /proc seem empty, use add().
        """
        first, count = size(offset), size(length, -1)
        rc = lib.pyle_buf_add_file(self._ptr, fileno(file), first, count)
        self._check(rc, "evbuffer_add_file")

    def add_file_segment(self, segment: FileSegment, offset: int = 0, length: int = -1) -> None:
        """Adds length bytes of a segment from its offset on; -1: to its end
        (evbuffer_add_file_segment). As `add_file`, but several buffers share the memory."""
        if not isinstance(segment, FileSegment):
            raise TypeError(f"expected a FileSegment, not {type(segment).__name__}")
        first, count = size(offset), size(length, -1)
        rc = lib.pyle_buf_add_segment(self._ptr, segment._ptr, first, count)
        self._check(rc, "evbuffer_add_file_segment")

    def add_iovec(self, pieces: Iterable[Bytes]) -> int:
        """Copies several bytes-like objects to the end; returns how many bytes
        (evbuffer_add_iovec)."""
        memories = [ffi.from_buffer("char[]", piece) for piece in pieces]
        vec = ffi.new("struct evbuffer_iovec[]", len(memories))
        total = 0
        for entry, memory in zip(vec, memories, strict=True):
            entry.iov_base = memory
            entry.iov_len = len(memory)
            total += len(memory)
        rc = lib.pyle_buf_add_iovec(self._ptr, vec, len(memories), total)
        self._check(rc, "evbuffer_add_iovec")
        return total

    def reserve_space(self, n: int, n_vecs: int = 2) -> list[memoryview]:
        """Room for n bytes or more, in n_vecs pieces at most, to be written to without a copy:
        `commit_space` adds what was written (evbuffer_reserve_space).

        The buffer cannot change (BufferError) until that, or until the views are released. What
        the views show before is not defined.
        """
        n_vecs = integer(n_vecs, "n_vecs")
        if not 1 <= n_vecs <= _MAX_VECS:
            raise ValueError(f"n_vecs must be from 1 to {_MAX_VECS}, not {n_vecs!r}")
        pieces, mine = ffi.new("struct evbuffer_iovec[]", n_vecs), held()
        views: list[memoryview] = []
        try:
            rc = lib.pyle_buf_reserve(self._ptr, size(n), pieces, n_vecs, mine)
            views = _views(mine, pieces, self._check(rc, "evbuffer_reserve_space"))
            self._reserved = [weakref.ref(view) for view in views]
            return views
        finally:
            del mine, views  # of which the traceback of an exception must not keep hold

    def commit_space(self, n: int) -> None:
        """Adds the first n bytes of what `reserve_space` gave, and releases its views
        (evbuffer_commit_space).

        BufferError, and nothing added, if something else still has that memory, such as a slice of
        a view: release it, then commit. ValueError if so much was not reserved, or the buffer was
        changed since.
        """
        n, mine = size(n), held()
        try:
            self._check(lib.pyle_buf_hold(self._ptr, n, mine), "evbuffer_commit_space")
            for reference in self._reserved:
                if (view := reference()) is not None:
                    view.release()
            self._check(lib.pyle_buf_commit(self._ptr, n, mine), "evbuffer_commit_space")
        finally:
            del mine

    def expand(self, n: int) -> None:
        """Makes room for n more bytes in one piece (evbuffer_expand)."""
        self._check(lib.pyle_buf_expand(self._ptr, size(n)), "evbuffer_expand")

    @property
    def contiguous_space(self) -> int:
        """How many bytes lie in one piece at the front (evbuffer_get_contiguous_space)."""
        return self._check(lib.pyle_buf_contiguous(self._ptr), "evbuffer_get_contiguous_space")

    # ---- between buffers ----

    def add_buffer(self, source: EvBuffer) -> None:
        """Moves all of another buffer to the end of this one (evbuffer_add_buffer)."""
        self._check(lib.pyle_buf_add_buffer(self._ptr, _ptr(source)), "evbuffer_add_buffer")

    def add_buffer_reference(self, source: EvBuffer) -> None:
        """Adds all of another buffer, which keeps it, without a copy (the work of
        evbuffer_add_buffer_reference, by plain references).

        Either may change or be closed first. A bufferevent's buffer, one of a C library or one
        that is frozen at its front is copied. LibeventError on a buffer itself.
        """
        rc = lib.pyle_buf_add_buffer_reference(self._ptr, _ptr(source))
        self._check(rc, "evbuffer_add_buffer_reference")

    def prepend_buffer(self, source: EvBuffer) -> None:
        """Moves all of another buffer to the front of this one (evbuffer_prepend_buffer)."""
        rc = lib.pyle_buf_prepend_buffer(self._ptr, _ptr(source))
        self._check(rc, "evbuffer_prepend_buffer")

    def remove_buffer(self, destination: EvBuffer, n: int) -> int:
        """Moves up to n bytes from the front to the end of another buffer, without copying whole
        pieces; returns how many (evbuffer_remove_buffer)."""
        rc = lib.pyle_buf_remove_buffer(self._ptr, _ptr(destination), size(n))
        return self._check(rc, "evbuffer_remove_buffer")

    # ---- out ----

    def remove(self, n: int = -1) -> bytes:
        """Takes up to n bytes from the front; -1: all (evbuffer_remove)."""
        if type(n) is not int:
            n = operator.index(n)
        if n < 0 or n > _BLOCK:
            n = min(len(self) if n == -1 else size(n), len(self))
        return self._take(lib.pyle_buf_remove, n, "evbuffer_remove")

    def _take(self, call: Callable[..., int], n: int, function: str, *position: int) -> bytes:
        block = _pop_block(n)
        rc = call(self._ptr, *position, block, n)
        if rc < 0:
            fail(rc, function)
        result: bytes = _unpack(block, rc)
        if n <= _BLOCK:
            _blocks.append(block)
        return result

    def remove_into(self, destination: Bytes) -> int:
        """Fills a writable object, a bytearray for one, from the front; returns how many bytes
        (evbuffer_remove)."""
        memory = ffi.from_buffer("char[]", destination, require_writable=True)
        return self._check(lib.pyle_buf_remove(self._ptr, memory, len(memory)), "evbuffer_remove")

    def drain(self, n: int) -> None:
        """Drops up to n bytes from the front (evbuffer_drain)."""
        self._check(lib.pyle_buf_drain(self._ptr, size(n)), "evbuffer_drain")

    def copyout(self, n: int) -> bytes:
        """Up to n bytes from the front, which stay (evbuffer_copyout)."""
        return self.copyout_from(0, n)

    def copyout_from(self, position: BufferPosition | int, n: int) -> bytes:
        """Up to n bytes from a position on, which stay (evbuffer_copyout_from)."""
        n = min(size(n), len(self))
        return self._take(lib.pyle_buf_copyout, n, "evbuffer_copyout_from", _position(position))

    def readln(self, eol: int = EVBUFFER_EOL_ANY, max_length: int | None = None) -> bytes | None:
        """Takes the next line, without its end; None: no whole line is there yet
        (evbuffer_readln).

        LineTooLong, and nothing removed, if the line, or what there is of it, is longer than
        max_length bytes. EVBUFFER_EOL_ANY takes any run of CR and LF as one end.
        """
        ptr = self._ptr
        limit = -1 if max_length is None else size(max_length)
        if (last := self._last) is not None:  # the line before was the last, perhaps
            self._last = None
            if last is eol and ptr.dry:
                return None
        try:
            block = _blocks.pop()
        except IndexError:
            block = _new_block("char[]", _BLOCK)
        try:
            n = _readln(ptr, block, _BLOCK, eol, limit)
        except OverflowError:
            integer(eol, "eol")
            raise
        if n >= 0:
            if n >= _LAST:
                n -= _LAST
                self._last = eol
            line: bytes = _unpack(block, n)
            _blocks.append(block)
            return line
        _blocks.append(block)
        if n == NONE:
            return None
        if eol not in _EOL_STYLES:
            raise ValueError(f"unknown eol style: {eol!r}")
        if n == SMALL:
            room = len(self)
            block = _new_block("char[]", room)
            n = _readln(ptr, block, room, eol, limit)
        n = self._check(n, "evbuffer_readln")
        return bytes(_unpack(block, n & ~_LAST if room < _LAST else n))

    def readlines(self, eol: int = EVBUFFER_EOL_LF, max_length: int | None = None) -> list[bytes]:
        """Takes every whole line that is there, without their ends, in one step.

        Lines longer than max_length bytes: LineTooLong once such a line is the first.
        """
        try:
            eol, split, last_end = _SPLIT[eol]
        except KeyError:
            raise ValueError(f"unknown eol style: {eol!r}") from None
        limit = -1 if max_length is None else size(max_length)
        lines: list[bytes] = []
        room = _BLOCK
        while True:
            block = _pop_block(room)
            n = _readlines(self._ptr, block, room, eol, limit)
            if n >= 0:
                found = split(_unpack(block, (n & ~_MORE) - last_end))
                lines = lines + found if lines else found
            if room == _BLOCK:
                _blocks.append(block)
            if n == SMALL or n >= _MORE:  # not all of them fitted
                room = max(_BLOCK, len(self))
            elif n >= 0 or n == NONE or (lines and n != RAISED):
                return lines
            else:
                fail(n, "evbuffer_readln")

    # ---- looking ----

    def search(
        self,
        what: Bytes,
        start: BufferPosition | int | None = None,
        end: BufferPosition | int | None = None,
    ) -> BufferPosition | None:
        """Where `what` is, from start on and before end; None: nowhere (evbuffer_search_range)."""
        needle = data(what)
        first = 0 if start is None else _position(start)
        last = -1 if end is None else _position(end)
        if len(needle) == 0:
            if first > len(self) or last > len(self):
                fail(RANGE, "evbuffer_search")
            return BufferPosition(first) if last < 0 or first <= last else None
        rc = lib.pyle_buf_search(self._ptr, needle, len(needle), first, last)
        if rc == NONE:
            return None
        return BufferPosition(self._check(rc, "evbuffer_search"), len(needle))

    def search_eol(
        self, start: BufferPosition | int | None = None, eol: int = EVBUFFER_EOL_ANY
    ) -> BufferPosition | None:
        """Where the next line end is; its `length` is that of the end (evbuffer_search_eol)."""
        eol = integer(eol, "eol")
        if eol not in _EOL_STYLES:
            raise ValueError(f"unknown eol style: {eol!r}")
        length = ffi.new("size_t *")
        first = 0 if start is None else _position(start)
        rc = lib.pyle_buf_search_eol(self._ptr, first, eol, length)
        if rc == NONE:
            return None
        return BufferPosition(self._check(rc, "evbuffer_search_eol"), length[0])

    def ptr_set(
        self,
        position: BufferPosition | int,
        how: int = EVBUFFER_PTR_SET,
        start: BufferPosition | int = 0,
    ) -> BufferPosition:
        """A position in this buffer; with EVBUFFER_PTR_ADD, that far after `start`
        (evbuffer_ptr_set). ValueError if it is past the end."""
        how = integer(how, "how")
        if how not in (EVBUFFER_PTR_SET, EVBUFFER_PTR_ADD):
            raise ValueError(f"unknown how: {how!r}")
        pos = _position(position) + (_position(start) if how == EVBUFFER_PTR_ADD else 0)
        if pos > len(self):
            fail(RANGE, "evbuffer_ptr_set")
        return BufferPosition(pos)

    def pullup(self, n: int = -1) -> memoryview:
        """Brings the first n bytes into one piece, -1: all, and shows them without a copy
        (evbuffer_pullup). ValueError if there are fewer."""
        piece, mine = ffi.new("struct evbuffer_iovec *"), held()
        try:
            rc = lib.pyle_buf_pullup(self._ptr, size(n, -1), piece, mine)
            count = self._check(rc, "evbuffer_pullup")
            return _views(mine, piece, 1, _read_only)[0] if count else memoryview(b"")
        finally:
            del mine

    def peek(self, n: int = -1, start: BufferPosition | int | None = None) -> list[memoryview]:
        """Shows n bytes, -1: all, from start on, as they lie in pieces, without a copy
        (evbuffer_peek)."""
        first = 0 if start is None else _position(start)
        room = 8
        most = size(n, -1)
        mine = held()
        try:
            while True:
                pieces = ffi.new("struct evbuffer_iovec[]", room)
                rc = lib.pyle_buf_peek(self._ptr, first, most, pieces, room, mine)
                count = self._check(rc, "evbuffer_peek")
                if count <= room:
                    return _views(mine, pieces, count, _read_only)
                room = count
        finally:
            del mine

    # ---- descriptors ----

    def read(self, fd: FileDescriptor, n: int = -1) -> int:
        """Reads up to n bytes from a descriptor, -1: what libevent takes at once; returns how
        many, 0 at the end of file (evbuffer_read). OSError, BlockingIOError if none are there."""
        most = min(size(n, -1), 0x7FFFFFFF)
        return self._transfer(lib.pyle_buf_read, fileno(fd), most, "evbuffer_read")

    def write(self, fd: FileDescriptor, n: int = -1) -> int:
        """Writes up to n bytes, -1: all, to a descriptor, and removes what was written; returns
        how many (evbuffer_write_atmost). OSError, BlockingIOError if it takes none."""
        most = size(n, -1)
        return self._transfer(lib.pyle_buf_write, fileno(fd), most, "evbuffer_write")

    def _transfer(self, call: Callable[..., int], fd: int, n: int, function: str) -> int:
        while True:
            rc = call(self._ptr, fd, n)
            if rc != SYS or ffi.errno != errno.EINTR:
                return self._check(rc, function)

    # ---- guards and callbacks ----

    def freeze(self, at_front: bool) -> None:
        """Forbids removing from the front, or adding at the end (evbuffer_freeze): such calls
        raise LibeventError."""
        self._check(lib.pyle_buf_freeze(self._ptr, bool(at_front), 1), "evbuffer_freeze")

    def unfreeze(self, at_front: bool) -> None:
        """Allows it again (evbuffer_unfreeze)."""
        self._check(lib.pyle_buf_freeze(self._ptr, bool(at_front), 0), "evbuffer_unfreeze")

    def add_cb(
        self,
        callback: Callable[[Self, int, int, int, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> CallbackEntry:
        """Has callback(buf, orig_size, n_added, n_deleted, *args) called after each change
        (evbuffer_add_cb). It may change the buffer, or close it.

        What it raises leaves the call that made the change, or the loop if libevent made it.
        """
        entry = CallbackEntry(self, function(callback), args)
        if self._callbacks is None:
            self._callbacks = []
        try:
            self._callbacks.append(entry)
            if not self._token:
                self._token = cb.next_token()
            cb.buffers[self._token] = self
            self._check(lib.pyle_buf_callbacks(self._ptr, self._token), "evbuffer_add_cb")
        except BaseException:
            entry.active = False
            if self._callbacks and entry in self._callbacks:
                self._callbacks.remove(entry)
            raise
        return entry

    def defer_callbacks(self, base: EventBase) -> None:
        """Has the callbacks called by the loop of `base`, once for all changes since (the work of
        evbuffer_defer_callbacks, safe when the base is closed).

        While a call waits the base keeps the buffer. When the base is closed they are not called
        any more. What one raises goes the way of the loop's exceptions. LibeventError if they are
        deferred to another open base.
        """
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self._check(lib.pyle_buf_defer(self._ptr, base._ptr), "evbuffer_defer_callbacks")
        self._deferred = base

    def _close_with_base(self, _token: int) -> None:
        """The base that waited to call the callbacks is closed; the buffer is not."""

    def set_flags(self, flags: int) -> None:
        """Sets EVBUFFER_FLAG_DRAINS_TO_FD: it goes to a descriptor only, by `write`, so files that
        are added from now on stay out of memory and cannot be read (evbuffer_set_flags)."""
        number = only(EVBUFFER_FLAG_DRAINS_TO_FD, flags)
        self._check(lib.pyle_buf_flags(self._ptr, number, 1), "evbuffer_set_flags")

    def clear_flags(self, flags: int) -> None:
        """Clears it again, for what is added from now on (evbuffer_clear_flags)."""
        number = only(EVBUFFER_FLAG_DRAINS_TO_FD, flags)
        self._check(lib.pyle_buf_flags(self._ptr, number, 0), "evbuffer_clear_flags")

    # ---- threads ----

    def enable_locking(self) -> None:
        """From now on any thread may use it: each call waits until no other thread is in one
        (evbuffer_enable_locking). LibeventError if it has a lock, or is a bufferevent's: see
        BEV_OPT_THREADSAFE.

        Its callbacks hold the lock, so, as in C, mind the order in which they take others. Forked
        while a thread is inside, it is of no use in the child (RuntimeError).
        """
        self._check(lib.pyle_buf_enable_locking(self._ptr), "evbuffer_enable_locking")

    def lock(self) -> AbstractContextManager[EvBuffer]:
        """Holds its lock for a with statement (evbuffer_lock, evbuffer_unlock); RuntimeError if it
        has none. May be nested; closed inside, it is freed at the end."""
        return Lock(self, _lock, "evbuffer_lock")


def _lock(ptr: Any, mine: Any) -> int:
    rc: int = lib.pyle_buf_lock(ptr, mine)
    if rc == UNABLE:
        raise RuntimeError("evbuffer_lock: call enable_locking() first")
    return rc


def _pin(what: Any, call: Callable[..., int], *args: Any) -> int:
    """Keeps an object until C lets go of it, if the call takes it."""
    pin, taken = cb.next_token(), ffi.new("int *")
    try:
        cb.pins[pin] = what
        return call(*args, pin, taken)
    finally:
        if not taken[0]:
            cb.pins.pop(pin, None)


_read_only = operator.methodcaller("toreadonly")


def _views(
    mine: Any, pieces: Any, count: int, finish: Callable[[memoryview], memoryview] = memoryview
) -> list[memoryview]:
    """Shows pieces of memory; to C they are one view, which ends with the last of them."""
    try:
        return [
            finish(memoryview(ffi.buffer(_kept(pieces[i].iov_base, mine), pieces[i].iov_len)))
            for i in range(count)
        ]
    finally:
        del mine


def _kept(address: Any, mine: Any) -> Any:
    try:  # the destructor does nothing but hold on to `mine`
        return ffi.gc(ffi.cast("char *", address), functools.partial(operator.is_, mine))
    finally:
        del mine


def _pop_block(n: int) -> Any:
    if n <= _BLOCK:
        try:
            return _blocks.pop()
        except IndexError:
            n = _BLOCK
    return _new_block("char[]", n)


def _position(position: BufferPosition | int) -> int:
    pos = operator.index(position)
    if not 0 <= pos <= MAX_SIZE:
        raise ValueError(f"not a position: {pos!r}")
    return pos


def _ptr(buffer: EvBuffer) -> Any:
    if not isinstance(buffer, EvBuffer):
        raise TypeError(f"expected an EvBuffer, not {type(buffer).__name__}")
    return buffer._ptr


def _split_by(end: bytes) -> tuple[Callable[[bytes], list[bytes]], int]:
    def split(raw: bytes) -> list[bytes]:
        return raw.split(end) if end in raw else [raw]  # split() is slow where there is none

    return split, len(end)


def _split_crlf(raw: bytes) -> list[bytes]:
    return [line[:-1] if line.endswith(b"\r") else line for line in raw.split(b"\n")]


_ANY = re.compile(rb"[\r\n]+")
# The style, and how to split what was read, less the end of the last line, which is that long.
_SPLIT: dict[int, tuple[int, Callable[[bytes], list[bytes]], int]] = {
    EVBUFFER_EOL_ANY: (EVBUFFER_EOL_ANY, lambda raw: _ANY.split(raw)[:-1], 0),
    EVBUFFER_EOL_CRLF: (EVBUFFER_EOL_CRLF, _split_crlf, 1),
    EVBUFFER_EOL_CRLF_STRICT: (EVBUFFER_EOL_CRLF_STRICT, *_split_by(b"\r\n")),
    EVBUFFER_EOL_LF: (EVBUFFER_EOL_LF, *_split_by(b"\n")),
    EVBUFFER_EOL_NUL: (EVBUFFER_EOL_NUL, *_split_by(b"\0")),
}
