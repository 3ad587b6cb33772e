"""What the classes over C structs have in common."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn, TypeVar

from . import _callbacks as cb
from .errors import CLOSED, fail

Self = TypeVar("Self", bound="Handle")


class Handle:
    """Owns a C struct: cannot be copied, and as a context manager it closes itself."""

    __slots__ = ("__weakref__", "_ptr")

    _ptr: Any

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

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {type(self).__name__}")
