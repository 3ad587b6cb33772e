"""What the classes over C structs have in common."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from . import _callbacks as cb
from ._libevent import ffi, lib
from .errors import CLOSED, THREAD, LibeventError, fail

if TYPE_CHECKING:
    from .buffer import EvBuffer

Self = TypeVar("Self", bound="Handle")


_ANCHOR = ffi.typeof("char[1]")
_OWNED = ffi.typeof("struct pyle_owned *")


# The references that Python objects have to C structs, each with what it ends with: an object's
# anchor. An ffi.gc in the object itself would not do: the garbage collector runs its destructor
# along with the __del__ methods of a cycle, in any order, and a later one of these may use the
# struct. The anchor is plain memory of cffi's, which the collector does not look at: it ends when
# the object is deallocated, after all of them. Then no step is Python's, where a signal handler's
# exception would be lost, and the struct with it.
_owned: dict[weakref.ref[Any], Any] = {}


def _disown() -> None:
    """At exit objects may outlive this module: nothing is freed under them."""
    for owned in list(_owned.values()):
        ffi.gc(owned, None)


atexit.register(_disown)


def held() -> Any:
    """Where C writes what it counts for the caller (struct pyle_held): whatever comes in between,
    the end of this object gives it back."""
    return ffi.gc(ffi.new("struct pyle_held *"), lib.pyle_let_go)


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
        _owned[weakref.ref(anchor, _owned.pop)] = ffi.gc(ptr, release)
        self._anchor = anchor
        self._ptr = ptr

    def _make(self, function: str, new: Callable[..., Any], *args: Any) -> Any:
        """Owns what new(owned, *args) makes: at no moment it is nobody's, whatever a signal
        handler raises. MemoryError, naming the function, if that is NULL."""
        owned = ffi.new(_OWNED)
        anchor = ffi.new(_ANCHOR)
        _owned[weakref.ref(anchor, _owned.pop)] = ffi.gc(owned, lib.pyle_disown)
        ptr = new(owned, *args)
        if not ptr:
            raise MemoryError(function)
        self._anchor = anchor
        self._ptr = ptr
        return ptr

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


class Lock(Generic[Self]):
    """An object's lock, held for a with statement."""

    __slots__ = ("_function", "_held", "_owner", "_take")

    def __init__(self, owner: Self, take: Callable[[Any, Any], int], function: str) -> None:
        self._owner = owner
        self._take = take
        self._function = function
        self._held: Any = None

    def __enter__(self) -> Self:
        if self._held is not None:
            raise RuntimeError(f"{self._function}: this one is held; call lock() once more")
        self._held = mine = held()
        try:
            self._owner._check(self._take(self._owner._ptr, mine), self._function)
        except BaseException:
            self._held = None
            lib.pyle_let_go(mine)
            raise
        return self._owner

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        mine = self._held or held()
        try:
            rc = lib.pyle_unlock(mine)
            if rc != THREAD:
                self._held = None
            self._owner._check(rc, self._function[:-4] + "unlock")
        finally:
            del mine
