"""What the classes over C structs have in common."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from . import _callbacks as cb
from ._libevent import ffi
from .errors import CLOSED, LibeventError, fail

if TYPE_CHECKING:
    from .buffer import EvBuffer

Self = TypeVar("Self", bound="Handle")


_ANCHOR = ffi.typeof("char[1]")


class _Reference(weakref.ref[Any]):
    """Counts as the reference that a Python object has to a C struct.

    Not ffi.gc: the garbage collector runs that one's destructor along with the __del__ methods of
    a cycle, in any order, and a later one of these may use the struct. The anchor is plain memory
    of cffi's, which the collector does not look at: it ends, and with it this, when the object is
    deallocated, after all of them.
    """

    __slots__ = ("ptr", "release")

    ptr: Any
    release: Callable[[Any], object]


_references: set[_Reference] = set()


def _gone(reference: _Reference, _references: set[_Reference] = _references) -> None:
    _references.discard(reference)
    reference.release(reference.ptr)


# What C code may know by its address, for from_ptr. The memory may have another user by now:
# whoever finds an object here asks it whether that is still its struct.
_exposed: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()


def expose(ptr: Any, handle: Handle) -> None:
    address = int(ffi.cast("uintptr_t", ptr))
    if _exposed.get(address) is not handle:
        _exposed[address] = handle


def behind(ptr: Any) -> Handle | None:
    """What was exposed under this address last, if it is still there."""
    return _exposed.get(int(ffi.cast("uintptr_t", ptr)))


class Handle:
    """Owns a C struct: cannot be copied, and as a context manager it closes itself."""

    __slots__ = ("__weakref__", "_anchor", "_ptr")

    _anchor: Any
    _ptr: Any

    def _own(self, ptr: Any, release: Callable[[Any], object]) -> None:
        """Takes the reference that came with ptr; release(ptr) gives it back."""
        anchor = ffi.new(_ANCHOR)
        reference = _Reference(anchor, _gone)
        reference.ptr = ptr
        reference.release = release
        _references.add(reference)
        self._anchor = anchor
        self._ptr = ptr

    @property
    def closed(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _first_init(self) -> None:
        if hasattr(self, "_ptr"):
            raise RuntimeError(f"{type(self).__name__}.__init__ called twice")

    def _check(self, rc: int, function: str) -> int:
        """Passes an answer of C's on, or raises what it stands for."""
        if rc < 0:
            cb.drain_log()
            fail(rc, function)
        return rc

    def __enter__(self: Self) -> Self:
        if self.closed:
            fail(CLOSED, type(self).__name__)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _buffers(self) -> tuple[EvBuffer, ...]:
        """Those that go with it."""
        return ()

    def _describe(self) -> str:
        return "open"

    def __repr__(self) -> str:
        try:
            what = "closed" if self.closed else self._describe()
        except (OSError, RuntimeError, LibeventError):  # not now, or not from here
            what = "open"
        return f"<{type(self).__name__} {what} at {id(self):#x}>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {type(self).__name__}")
