"""Every function that C calls, and the table in which C's numbers find Python's objects.

C knows an object by two numbers: the slot of its base's table and its token, the key there. A
token is never used twice, so one that comes too late finds nothing and nothing happens. The
table is also what keeps a pending event or an open bufferevent alive.

Each function answers with what became of the call (enum pyle_answer in _cffi/src/pyle.h): DONE,
ERROR (it raised; the exception waits in `stash`), HANDLED (the base's exception_handler took it).
An exception that hits before the user's function is `entered` (a signal handler's, which Python
runs when a function starts) makes cffi return RETRY, and C sees to it that the call is made again
later. So the table keeps what C would call again until nothing can come between its removal and
the answer: no call, since Python runs signal handlers after calls.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from operator import index
from socket import AF_INET, AF_INET6
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._libevent import ffi, lib
from .constants import (
    BEV_EVENT_ERROR,
    BUFFEREVENT_FLAGS,
    EVENT_FLAGS,
    EVREQ_HTTP_REQUEST_CANCEL,
    FilterResult,
    FlushMode,
)
from .errors import os_error, stash, unraisable

if TYPE_CHECKING:
    from .buffer import EvBuffer
    from .event import EventBase

_RETRY, DONE, ERROR, HANDLED = range(4)
EVENT, TIMER, SIGNAL = range(3)  # enum pyle_kind

next_token = itertools.count(1).__next__
tables: list[dict[int, Any] | None] = []  # of the bases whose loop runs
bases: weakref.WeakValueDictionary[int, EventBase] = weakref.WeakValueDictionary()
buffers: weakref.WeakValueDictionary[int, EvBuffer] = weakref.WeakValueDictionary()
pins: dict[int, Any] = {}  # what libevent was lent, and what waits for it to be done
finalizing: dict[int, Any] = {}  # events that outlive their base's table
log = logging.getLogger("libevent")


def table_of(slot: int) -> dict[int, Any]:
    """The table of a base whose loop does not run: a callback made by a call of the user's."""
    base = bases.get(slot)
    return {} if base is None else base._table


def escaped(
    _kind: type[BaseException], exception: BaseException, traceback: TracebackType | None
) -> int | None:
    """What cffi calls when an exception leaves a function below: a signal handler's, as a rule.
    Before the user's function was entered cffi's 0, RETRY, is the right answer."""
    stash.exceptions.append(exception.with_traceback(traceback))
    names: dict[str, Any] = traceback.tb_frame.f_locals if traceback else {}
    if not names.get("entered"):
        return None
    if names.get("released") and names["token"] in names["table"]:  # as the function's last steps
        del names["table"][names["token"]]
    return ERROR


def caught(exception: BaseException, source: Any) -> int:
    handler = source.base.exception_handler
    if handler is not None and isinstance(exception, Exception):
        try:
            handler(exception, source)
            return HANDLED
        except BaseException as error:
            stash.exceptions.append(error)
    else:
        stash.exceptions.append(exception)
    return ERROR


def callback(function: Any) -> Any:
    return ffi.def_extern(name=f"pyle_py_{function.__name__}", onerror=escaped)(function)


@callback
def event(slot: int, token: int, fd: int, what: int, released: int) -> int:
    table = tables[slot] or table_of(slot)
    try:
        source = table[token]
    except KeyError:
        return DONE
    entered = False
    try:
        if not (args := source._args):
            entered = True
            source._callback(fd, EVENT_FLAGS[what])
        elif len(args) == 1:  # quicker than the general case
            entered = True
            source._callback(fd, EVENT_FLAGS[what], args[0])
        else:
            entered = True
            source._callback(fd, EVENT_FLAGS[what], *args)
        answer = DONE
    except BaseException as exception:
        if not entered:
            raise
        answer = caught(exception, source)
    if released and token in table:
        del table[token]
    return answer


@callback
def timer(slot: int, token: int, _fd: int, _what: int, released: int) -> int:
    table = tables[slot] or table_of(slot)
    try:
        source = table[token]
    except KeyError:
        return DONE
    entered = False
    try:
        if args := source._args:
            entered = True
            source._callback(*args)
        else:
            entered = True
            source._callback()
        answer = DONE
    except BaseException as exception:
        if not entered:
            raise
        answer = caught(exception, source)
    if released and token in table:
        del table[token]
    return answer


@callback
def signal(slot: int, token: int, signum: int, what: int, released: int) -> int:
    source = (table := tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    entered = False
    try:
        if source._kind == SIGNAL:
            entered = True
            source._callback(signum, *source._args)
        else:  # an Event for a signal
            entered = True
            source._callback(signum, EVENT_FLAGS[what & 0xFF], *source._args)
        answer = DONE
    except BaseException as exception:
        if not entered:
            raise
        answer = caught(exception, source)
        if answer == ERROR and (left := what >> 16):
            lib.pyle_event_again(source._ptr, left)
    if released:
        source.base._last_signal = source  # libevent looks at it once more after this
    if released and token in table:
        del table[token]
    return answer


@callback
def finalized(slot: int, token: int) -> int:
    table = finalizing if token in finalizing else tables[slot] or table_of(slot)
    source = table.get(token)
    if source is None:
        return DONE
    released = entered = True  # noqa: F841
    try:
        source._finalized()
        answer = DONE
    except BaseException as exception:
        answer = caught(exception, source)
    if token in table:
        del table[token]
    return answer


@callback
def keep(slot: int) -> int:
    base = bases.get(slot)
    if base is None:
        unraisable(stash.exceptions.pop())
    else:
        base._keep(1)
    return DONE


@callback
def bev_read(slot: int, token: int) -> int:
    try:
        source = tables[slot][token]  # type: ignore[index]  # None: see table_of
    except (KeyError, TypeError):
        source = table_of(slot).get(token)
    if source is None or (function := source._read) is None:
        return DONE
    entered = False
    try:
        if not (args := source._args):
            entered = True
            function(source)
        elif len(args) == 1:  # quicker than the general case
            entered = True
            function(source, args[0])
        else:
            entered = True
            function(source, *args)
    except BaseException as exception:
        if not entered:
            raise
        return caught(exception, source)
    return DONE


@callback
def noted(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    entered = True  # noqa: F841
    try:
        source.go_on()
    except BaseException as exception:
        return caught(exception, source)
    return DONE


@callback
def bev_write(slot: int, token: int) -> int:
    try:
        source = tables[slot][token]  # type: ignore[index]  # None: see table_of
    except (KeyError, TypeError):
        source = table_of(slot).get(token)
    if source is None or (function := source._write) is None:
        return DONE
    entered = False
    try:
        if not (args := source._args):
            entered = True
            function(source)
        elif len(args) == 1:  # quicker than the general case
            entered = True
            function(source, args[0])
        else:
            entered = True
            function(source, *args)
    except BaseException as exception:
        if not entered:
            raise
        return caught(exception, source)
    return DONE


@callback
def bev_event(slot: int, token: int, what: int, error: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None or (function := source._event) is None:
        return DONE
    if what & BEV_EVENT_ERROR:
        source._error = error
    entered = True  # noqa: F841
    try:
        function(source, BUFFEREVENT_FLAGS[what], *source._args)
    except BaseException as exception:
        return caught(exception, source)
    return DONE


_MODES = {int(mode): mode for mode in FlushMode}
_RESULTS = {int(result) for result in FilterResult}


@callback
def bev_filter(slot: int, token: int, output: int, limit: int, mode: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE  # it was closed: as BEV_ERROR
    joined = source._joined
    under = joined.underlying
    if output:
        function, ways = joined.output_filter, (source.output, under.output)
    else:
        function, ways = joined.input_filter, (under.input, source.input)
    mode = _MODES[mode]
    entered = True  # noqa: F841
    try:
        result = function(*ways, limit, mode)
        number = -1 if type(result) is bool or not isinstance(result, int) else index(result)
        if number not in _RESULTS:
            raise TypeError(f"a filter must return BEV_OK, BEV_NEED_MORE or BEV_ERROR: {result!r}")
    except BaseException as exception:
        return caught(exception, source)
    return int(number + lib.PYLE_FILTER_RESULT)


@callback
def bev_finished(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is not None:
        source._finished()
    return DONE


@callback
def accept(
    slot: int,
    token: int,
    fd: int,
    family: int,
    host: Any,
    length: int,
    port: int,
    flowinfo: int,
    scope: int,
) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return HANDLED  # C closes fd
    address: Any
    name = ffi.unpack(host, length)
    if family == AF_INET:
        address = (name.decode(), port)
    elif family == AF_INET6:
        address = (name.decode(), port, flowinfo, scope)
    else:
        address = unix_address(name)
    entered = True  # noqa: F841
    try:
        source._callback(source, fd, address, *source._args)
    except BaseException as exception:
        return caught(exception, source)
    return DONE


def unix_address(name: bytes) -> str | bytes:
    """As the socket module has it: bytes in Linux' abstract name space, str for a path."""
    return name if name.startswith(b"\0") else name.decode("utf-8", "surrogateescape")


@callback
def accept_error(slot: int, token: int, error: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    exception = os_error(error, "accept")
    function = source._error_callback
    entered = True  # noqa: F841
    try:
        if function is None:
            log.warning("%s; the listener tries again in 0.1 s", exception)
        else:
            function(source, exception)
    except BaseException as raised:
        return caught(raised, source)
    return DONE


@callback
def buffer(slot: int, token: int, orig_size: int, n_added: int, n_deleted: int) -> int:
    source = buffers.get(token)
    if slot >= 0:
        table_of(slot).pop(token, None)
    if source is None or not (n_added or n_deleted):
        return DONE
    raised: list[BaseException] = []
    entered = True  # noqa: F841
    for entry in tuple(source._callbacks or ()):
        if not (entry.active and entry.enabled):  # perhaps by one before it
            continue
        try:
            entry.callback(source, orig_size, n_added, n_deleted, *entry.args)
        except BaseException as exception:
            raised.append(exception)
    return several(raised, slot, source)


def several(raised: list[BaseException], slot: int, source: Any) -> int:
    """What several callbacks have raised: to the handler of the base whose loop called them, or
    the first one goes on, and the others are reported."""
    if slot >= 0 and (base := bases.get(slot)) and (handler := base.exception_handler):
        left, raised[:] = raised[:], []
        while left:
            if isinstance(left[0], Exception):
                try:
                    handler(left[0], source)
                except BaseException as error:
                    raised.append(error)
                del left[0]
            else:
                raised.append(left.pop(0))
    if not raised:
        return DONE
    stash.exceptions.append(raised.pop(0))
    while raised:  # and leave none in this frame, which they refer to
        unraisable(raised.pop(0))
    return ERROR


@callback
def buffer_waits(slot: int, token: int) -> int:
    source, base = buffers.get(token), bases.get(slot)
    if source is not None and base is not None and not base.closed:
        base._table[token] = source
    return DONE


@callback
def dns(
    slot: int, token: int, error: int, kind: int, count: int, ttl: int, data: Any, length: int
) -> int:
    source = (table := tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    result = source._result(error, kind, count, ttl, ffi.unpack(data, length))
    if result is None:
        table.pop(token, None)
        return DONE
    released = entered = True  # noqa: F841
    try:
        source._callback(result, *source._args)
        answer = DONE
    except BaseException as exception:
        answer = caught(exception, source)
    source._drop()
    if token in table:
        del table[token]
    return answer


@callback
def dns_closed(slot: int, token: int) -> int:
    (tables[slot] or table_of(slot)).pop(token, None)
    return DONE


@callback
def dns_query(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    entered = True  # noqa: F841
    try:
        source._asked()
    except BaseException as exception:
        return caught(exception, source)
    return DONE


@callback
def http_request(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE  # C answers
    request = source._take()
    entered = True  # noqa: F841
    try:
        source._callback(request, *source._args)
    except BaseException as exception:
        return caught(exception, request)
    return DONE


@callback
def http_bev(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    entered = True  # noqa: F841
    try:
        source._give()
    except BaseException as exception:
        return caught(exception, source)
    return DONE


@callback
def http_gone(slot: int, token: int) -> int:
    (tables[slot] or table_of(slot)).pop(token, None)
    return DONE


@callback
def http_told(slot: int, token: int, what: int, error: int, chunks: int) -> int:
    source = (table := tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    raised: list[BaseException] = []
    calls = source._told(what, error, chunks)
    released, entered = what != lib.PYLE_HTTP_CHUNK, True  # noqa: F841
    for function, args in calls:
        if source.base.closed:  # by one before it
            break
        try:
            function(source, *args)
        except BaseException as exception:
            raised.append(exception)
    answer = several(raised, slot, source)
    if released and token in table:
        del table[token]
    return answer


@callback
def http_connect(slot: int, token: int, again: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    entered = True  # noqa: F841
    try:
        source._connect(bool(again))
    except BaseException as exception:
        return caught(exception, source)
    return DONE


@callback
def http_closed(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    entered = True  # noqa: F841
    try:
        source._closecb(source, *source._args)
    except BaseException as exception:
        return caught(exception, source)
    return DONE


@callback
def http_over(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is not None:
        source.close()
    return DONE


@callback
def http_headers(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None or (function := source._header) is None:
        return DONE
    entered = True  # noqa: F841
    try:
        answer = function(source, *source._args)
        refused = answer is False or (isinstance(answer, int) and index(answer) < 0)
    except BaseException as exception:
        return caught(exception, source)
    return int(lib.PYLE_HTTP_REFUSED) if refused else DONE


@callback
def http_chunk(slot: int, token: int) -> int:
    source = (tables[slot] or table_of(slot)).get(token)
    if source is None or (function := source._chunked) is None:
        return DONE
    source._input = None  # which was of another part
    entered = True  # noqa: F841
    try:
        function(source, *source._args)
    except BaseException as exception:
        return caught(exception, source)
    return DONE


@callback
def http_done(slot: int, token: int, error: int, system_error: int) -> int:
    source = (table := tables[slot] or table_of(slot)).get(token)
    if source is None:
        return DONE
    source._end(error, system_error)
    failed, args, raised = source._error, source._args, []
    released = entered = True  # noqa: F841
    if failed is not None and (function := source._error_cb) is not None:
        try:
            function(source, failed, *args)
        except BaseException as exception:
            raised.append(exception)
    if failed is not EVREQ_HTTP_REQUEST_CANCEL:
        try:
            source._callback(source, *args)
        except BaseException as exception:
            raised.append(exception)
    answer = several(raised, slot, source)
    source._drop()
    if token in table:
        del table[token]
    return answer


@callback
def signals() -> int:
    for _ in (0, 1):  # the interpreter runs signal handlers between steps of a loop at the latest
        pass
    return DONE


class Cleanups(list[tuple[Any, tuple[Any, ...]]]):
    """A pin that has functions to be called, with these arguments, when it is let go of."""


@callback
def release() -> int:
    raised: list[BaseException] = []
    # Taken and popped in one step, whatever a signal handler raises between steps.
    for what in map(pins.pop, iter(lib.pyle_pin_take, 0), itertools.repeat(())):
        for function, args in what if type(what) is Cleanups else ():
            try:
                function(*args)
            except BaseException as exception:
                raised.append(exception)
    if raised and lib.pyle_outermost():  # an object's end: there is no call that could raise
        while raised:
            unraisable(raised.pop(0))
    return several(raised, lib.pyle_loop_slot(), None)


LEVELS = {
    lib.EVENT_LOG_DEBUG: logging.DEBUG,
    lib.EVENT_LOG_MSG: logging.INFO,
    lib.EVENT_LOG_WARN: logging.WARNING,
}


@callback
def log_messages() -> int:
    drain_log()
    return DONE


def drain_log() -> None:
    """Hands what libevent has logged to `logging`."""
    text = ffi.new("char[512]")
    while (severity := lib.pyle_log_take(text, 512)) >= 0:
        log.log(
            LEVELS.get(severity, logging.ERROR), "%s", ffi.string(text).decode(errors="replace")
        )
