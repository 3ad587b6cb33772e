"""Calls that fail: each one of a kind that a piece of code makes, one at a time (faults.c)."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cffi
import pytest
from common import is_open
from conftest import open_descriptors
from processes import in_child

from pylibevent import _callbacks as cb
from pylibevent.errors import stash

SOURCE = Path(__file__).with_name("faults.c")
CC = os.environ.get("CC", "cc")
NEVER = 1 << 30

needs_faults = pytest.mark.skipif(
    sys.platform != "linux" or sys.maxsize < 2**32 or not shutil.which(CC),
    reason="for Linux, 64 bits, and needs a C compiler",
)


class Fault:
    """In its with statement the Nth call of a kind fails, and so may `times` of them.

    That has to end the statement with MemoryError, or an OSError of that errno, which goes no
    further; or, if it is `tolerated`, may go unnoticed.
    """

    def __init__(self, lib: Any, call: str, number: int, error: int, times: int = 1) -> None:
        self._lib = lib
        self.call, self.number, self.error, self.times = call, number, error, times
        self.hit = False  # a call failed
        self.raised: BaseException | None = None
        self.may_leave_memory = self.may_close_twice = False
        self._tolerated = False

    @property
    def tolerated(self) -> Fault:
        self._tolerated = True
        return self

    def is_told_by(self, exception: BaseException | None) -> bool:
        if self.error == errno.ENOMEM:
            return isinstance(exception, MemoryError)
        return isinstance(exception, OSError) and exception.errno == self.error

    def __enter__(self) -> Fault:
        self._lib.faults_arm(self.call.encode(), self.number, self.times, self.error)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        exception: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        self.hit = bool(self._lib.faults_disarm())
        if self.hit and exception is None:
            assert self._tolerated, f"nobody was told that {self} failed"
        return self._is_known(exception)

    def _is_known(self, exception: BaseException | None) -> bool:
        if exception is None or not (self.hit and self.is_told_by(exception)):
            return False
        self.raised = exception.with_traceback(None)
        return True

    def __str__(self) -> str:
        return f"{self.call} number {self.number}"


class Room(Fault):
    """In its with statement only so many more descriptors may be opened."""

    def __init__(self, number: int) -> None:
        super().__init__(None, "descriptor", number, errno.EMFILE)

    def __enter__(self) -> Fault:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = (fd for fd in range(self._limits[0]) if not is_open(fd))
        limit = next(itertools.islice(free, self.number, None), self._limits[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, self._limits[1]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
        self.hit = exception is not None
        return self._is_known(exception)


Case = Callable[[Fault], None]


class Faults:
    def __init__(self, path: Path) -> None:
        self._ffi = cffi.FFI()
        self._ffi.cdef(
            """
            int faults_install(void);
            void faults_arm(const char *which, int number, int how_many, int number_of_error);
            int faults_disarm(void);
            int faults_stray_closes(void);
            long faults_now(void);
            int faults_live(void);
            void faults_tell(long after, char *out, int size);
            """
        )
        self._lib: Any = self._ffi.dlopen(str(path))

    def each(
        self,
        case: Case,
        call: str = "malloc",
        error: int = errno.ENOMEM,
        *,
        times: int = 1,
        tolerated: bool = False,
    ) -> None:
        """Runs the case, in a process of its own, with the first call of that kind failing (and
        those after it, `times` in all), the second, and so on until there are no more. Each time
        all that was allocated or opened is given back."""

        def child() -> None:
            assert self._lib.faults_install() > 0
            logging.getLogger("libevent").setLevel(logging.CRITICAL)
            gc.freeze()
            case(Fault(self._lib, call, NEVER, error))  # what is made once, and stays
            gc.collect()
            for number in itertools.count(1):
                fault = Fault(self._lib, call, number, error, times)
                fault = fault.tolerated if tolerated else fault
                with self._balance(fault):
                    case(fault)
                if not fault.hit:
                    assert number > 1, f"no call of {call}"
                    return

        in_child(child)

    def none(self, case: Case, call: str = "malloc") -> None:
        """Runs it; it makes no such call."""

        def child() -> None:
            assert self._lib.faults_install() > 0
            case(Fault(self._lib, call, NEVER, errno.ENOMEM))
            gc.collect()
            fault = Fault(self._lib, call, 1, errno.ENOMEM, NEVER)
            with self._balance(fault):
                case(fault)
            assert not fault.hit

        in_child(child)

    def each_room(self, case: Case, most: int = 12) -> None:
        """The same with no descriptor to be had, with one, and so on."""

        def child() -> None:
            assert self._lib.faults_install() > 0
            logging.getLogger("libevent").setLevel(logging.CRITICAL)
            gc.freeze()
            case(Room(NEVER))
            gc.collect()
            failed = 0
            for number in range(most):
                room = Room(number)
                with self._balance(room):
                    case(room)
                failed += room.hit
            assert 0 < failed < most

        in_child(child)

    @contextlib.contextmanager
    def _balance(self, fault: Fault) -> Iterator[None]:
        descriptors, live = open_descriptors(), self._lib.faults_live()
        now, strays = self._lib.faults_now(), self._lib.faults_stray_closes()
        try:
            yield
        except BaseException:
            print(f"with {fault} failing:", file=sys.stderr)
            raise
        gc.collect()
        if self._lib.faults_live() != live and not fault.may_leave_memory:
            out = self._ffi.new("char[]", 4096)
            self._lib.faults_tell(now, out, len(out))
            left = self._ffi.string(out).decode()
            raise AssertionError(f"with {fault} failing, memory is left:\n{left}")
        assert open_descriptors() == descriptors, f"with {fault} failing"
        closes = self._lib.faults_stray_closes() - strays
        assert closes == 0 or fault.may_close_twice, f"with {fault} failing: closed twice"
        assert (list(cb.bases.values()), cb.pins, stash.exceptions) == ([], {}, []), str(fault)


def build(directory: Path) -> Faults:
    path = directory / "faults.so"
    flags = "-shared -fPIC -g -O1 -Wall -Wextra -Werror"
    subprocess.run([CC, *shlex.split(flags), "-o", str(path), str(SOURCE)], check=True)
    return Faults(path)
