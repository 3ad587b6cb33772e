"""The raw layer against libevent's installed headers.

Every public name of theirs is in ffi and lib, with the type that it has in C, or stands in
libevent_headers.LEFT_OUT (in scripts) with the reason.
"""

from __future__ import annotations

import importlib
import re
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from libevent_headers import LEFT_OUT, T, Table, headers

from pylibevent import ffi, lib


def known(in_ffi: Any, name: str) -> bool:
    try:
        in_ffi.typeof(f"{name} *")  # typeof refuses a function type, but not a pointer to one
    except in_ffi.error:
        return False
    return True


def fields_of(in_ffi: Any, name: str) -> set[str]:
    try:
        in_ffi.sizeof(name)
    except in_ffi.error:
        return set()  # opaque; cffi 2.1 aborts when it is asked for the fields of such a one
    return {field for field, _ in in_ffi.typeof(name).fields or ()}


def missing(in_ffi: Any, in_lib: Any, main: bool) -> Iterator[str]:
    """What the headers have and a module has not, one readable line each."""
    found = headers()
    systems = {
        f"struct {value}": f"struct {name}"
        for name, (_, value) in found.values.items()
        if re.fullmatch(r"[a-z]\w+", value) and known(ffi, f"struct {name}")
    }

    def asked(table: Table[T]) -> Iterator[tuple[str, str, T]]:
        """The optional module answers for the TLS header, the main one for all others."""
        for name, (header, what) in table.items():
            if (header != "event2/bufferevent_ssl.h") == main and name not in LEFT_OUT:
                yield name, header, what

    def ctype(text: str) -> Any:
        for theirs, ours in systems.items():
            text = re.sub(rf"\b{theirs}\b", ours, text)
        return in_ffi.typeof(text)

    for name, header, text in asked(found.functions):
        if not hasattr(in_lib, name):
            yield f"{header}: function {name}"
        elif in_ffi.typeof(getattr(in_lib, name)) is not ctype(text):
            yield f"{header}: function {name} is not of the type {text}"
    for name, header, text in asked(found.typedefs):
        if not known(in_ffi, name):
            yield f"{header}: typedef {name}"
        elif in_ffi.typeof(f"{name} *") is not ctype(text):
            yield f"{header}: typedef {name} is not what {text} points to"
    for name, header, fields in asked(found.structs):
        tag = systems.get(name, name)
        if not known(in_ffi, tag):
            yield f"{header}: {tag}"
            continue
        have = fields_of(in_ffi, tag)
        for field in fields:
            if field not in have and f"{name}.{field}" not in LEFT_OUT:
                yield f"{header}: field {field} of {name}"
    for name, header, _ in asked(found.enumerators):
        if not isinstance(getattr(in_lib, name, None), int):
            yield f"{header}: enum constant {name}"
    for name, header, value in asked(found.values):
        if not (hasattr(in_lib, name) or known(in_ffi, name) or known(in_ffi, f"struct {name}")):
            yield f"{header}: macro {name}, which is {value}"
    for name, header, arguments in asked(found.calls):
        if not hasattr(in_lib, name):
            yield f"{header}: macro {name}() with {arguments} arguments"
        elif len(in_ffi.typeof(getattr(in_lib, name)).args) != arguments:
            yield f"{header}: macro {name}() takes {arguments} arguments"
    seen = {*found.functions, *found.values, *found.calls}
    for name, header, _ in asked(found.text):
        if name not in seen and not hasattr(in_lib, name):
            yield f"{header}: {name}, which is compiled out here"


def report(lines: Iterable[str]) -> str:
    return "".join(f"\n  {line}" for line in sorted(lines))


def test_the_headers_are_read() -> None:
    """A parse that finds less than there is would let everything pass."""
    found = headers()
    assert {"event.h", "evdns.h", "evhttp.h", "evutil.h", "event2/http_struct.h"} <= found.read
    assert found.functions["event_init"] == (
        "event2/event_compat.h",
        "struct event_base *(*)(void)",
    )
    assert found.typedefs["event_log_cb"][1] == "void (**)(int, const char *)"
    assert found.structs["struct evkeyval"][1] == ["next", "key", "value"]
    assert found.enumerators["BEV_NEED_MORE"] == ("event2/bufferevent.h", None)
    assert found.values["EV_READ"] == ("event2/event.h", "0x02")
    assert found.calls["evsignal_new"] == ("event2/event.h", 4)
    # Two ways of reading the same files: what the parser has, the bare text has too.
    parsed = {*found.functions, *found.values, *found.calls}
    assert not parsed - set(found.text)
    assert len(found.functions) > 350
    # And against a module without a single name, everything is missing.
    assert len(list(missing(ffi, object(), main=True))) > 600


def test_nothing_is_missing() -> None:
    lines = report(missing(ffi, lib, main=True))
    assert not lines, f"neither in the raw layer nor in LEFT_OUT:{lines}"


def test_nothing_is_missing_in_the_optional_module() -> None:
    try:
        ssl = importlib.import_module("pylibevent._libevent_ssl")
    except ModuleNotFoundError:
        pytest.skip("built without OpenSSL")
    lines = report(missing(ssl.ffi, ssl.lib, main=False))
    assert not lines, f"neither in the raw layer nor in LEFT_OUT:{lines}"


def test_what_is_left_out_is_left_out_and_exists() -> None:
    found = headers()
    fields = {f"{name}.{field}" for name, (_, names) in found.structs.items() for field in names}
    exist = {*found.read, *found.functions, *found.enumerators, *found.text, *fields}
    gone = sorted(set(LEFT_OUT) - exist)
    assert not gone, f"in LEFT_OUT, but no header has it: {gone}"
    there = [name for name in LEFT_OUT if hasattr(lib, name)]
    for name in LEFT_OUT:
        struct, _, field = name.partition(".")
        if struct.startswith("struct "):
            there += [name] if field in fields_of(ffi, struct) else []
    assert not there, f"in LEFT_OUT, but the raw layer has it: {there}"
    assert all(LEFT_OUT.values())


def test_constants() -> None:
    assert (lib.EV_TIMEOUT, lib.EV_READ, lib.EV_WRITE, lib.EV_SIGNAL) == (1, 2, 4, 8)
    assert (lib.EV_PERSIST, lib.EV_ET, lib.EV_FINALIZE, lib.EV_CLOSED) == (0x10, 0x20, 0x40, 0x80)
    assert (lib.EVLOOP_ONCE, lib.EVLOOP_NONBLOCK, lib.EVLOOP_NO_EXIT_ON_EMPTY) == (1, 2, 4)
    assert lib.BEV_EVENT_READING | lib.BEV_EVENT_EOF == lib.EVBUFFER_READ | lib.EVBUFFER_EOF == 0x11
    assert lib.BEV_OPT_DEFER_CALLBACKS == lib.BEV_TRIG_DEFER_CALLBACKS == 4
    assert [lib.EVBUFFER_EOL_ANY, lib.EVBUFFER_EOL_LF, lib.EVBUFFER_EOL_NUL] == [0, 3, 4]
    assert lib.LEV_OPT_REUSEABLE == 8
    assert lib.EVLIST_INTERNAL == 0x10
    assert lib.EVENT_DBG_ALL == 0xFFFFFFFF
    assert lib.EV_UINT64_MAX == 2**64 - 1
    assert lib.EV_INT64_MIN == -(2**63)
    assert lib.EV_RATE_LIMIT_MAX == lib.EV_SSIZE_MAX
    assert lib.DNS_OPTIONS_ALL == 15
    assert lib.EVUTIL_EAI_NONAME == socket.EAI_NONAME
    assert lib.EVUTIL_AI_PASSIVE == socket.AI_PASSIVE
    assert lib.EVUTIL_INVALID_SOCKET == -1
    assert (lib.HTTP_OK, lib.HTTP_SERVUNAVAIL, lib.EVHTTP_REQ_PATCH) == (200, 503, 256)
    assert lib.EVHTTP_CON_PUBLIC_FLAGS_END == 0x100000
    assert ffi.string(lib.LIBEVENT_VERSION).startswith(b"2.1.")
    assert lib.LIBEVENT_VERSION_NUMBER >> 16 == 0x0201
    assert ffi.sizeof("struct event") == lib.event_get_struct_event_size()


def test_macros_that_act_as_functions() -> None:
    times = ffi.new("struct timeval[3]", [(1, 600_000), (2, 700_000)])
    one, two, result = times
    lib.evutil_timeradd(ffi.addressof(one), ffi.addressof(two), ffi.addressof(result))
    assert (result.tv_sec, result.tv_usec) == (4, 300_000)
    lib.evutil_timersub(ffi.addressof(two), ffi.addressof(one), ffi.addressof(result))
    assert (result.tv_sec, result.tv_usec) == (1, 100_000)
    assert lib.evutil_timerisset(ffi.addressof(result))
    lib.evutil_timerclear(ffi.addressof(result))
    assert not lib.evutil_timerisset(ffi.addressof(result))
    assert lib.evutil_gettimeofday(ffi.addressof(result), ffi.NULL) == 0
    assert result.tv_sec > 1_600_000_000
    lib.EVUTIL_SET_SOCKET_ERROR(11)
    assert lib.EVUTIL_SOCKET_ERROR() == lib.evutil_socket_geterror(-1) == ffi.errno == 11
    assert ffi.string(lib.evutil_socket_error_to_string(2)) == b"No such file or directory"


def test_libevent_1_round_trip() -> None:
    """event_init, event_set, event_add, event_dispatch: what an old program's main does."""
    ours, theirs = socket.socketpair()
    base = lib.event_init()
    assert base
    seen = []

    def on_read(fd: int, what: int, arg: Any) -> None:
        data = ours.recv(100)
        seen.append((fd, what, ffi.from_handle(arg), data))
        if not data:
            lib.event_del(event)

    def on_timer(fd: int, what: int, arg: Any) -> None:
        seen.append((fd, what, ffi.from_handle(arg), b""))
        theirs.send(b"abc")
        theirs.shutdown(socket.SHUT_WR)

    read_callback = ffi.callback("event_callback_fn", on_read)
    timer_callback = ffi.callback("event_callback_fn", on_timer)
    argument = ffi.new_handle("argument")
    event = ffi.new("struct event *")
    timer = ffi.new("struct event *")
    with ours, theirs:
        lib.event_set(event, ours.fileno(), lib.EV_READ | lib.EV_PERSIST, read_callback, argument)
        lib.evtimer_set(timer, timer_callback, argument)
        assert lib.event_add(event, ffi.NULL) == 0
        assert lib.evtimer_add(timer, ffi.new("struct timeval *", (0, 1000))) == 0
        assert lib.evtimer_pending(timer, ffi.NULL)
        assert lib.EVENT_FD(event) == event.ev_fd == ours.fileno()
        assert event.ev_base == base
        assert event.ev_evcallback.evcb_arg == argument
        assert lib.event_dispatch() == 1  # no events left
        assert seen == [
            (-1, lib.EV_TIMEOUT, "argument", b""),
            (ours.fileno(), lib.EV_READ, "argument", b"abc"),
            (ours.fileno(), lib.EV_READ, "argument", b""),
        ]
        lib.event_base_free(base)


def test_libevent_1_buffers() -> None:
    buffer = lib.evbuffer_new()
    word = ffi.new("char[]", b"one")
    assert lib.evbuffer_add_printf(buffer, b"%s %d\r\n", word, ffi.cast("int", 1)) == 7
    assert lib.evbuffer_add(buffer, b"two", 3) == 0
    assert lib.EVBUFFER_LENGTH(buffer) == 10
    assert ffi.buffer(lib.EVBUFFER_DATA(buffer), 10)[:] == b"one 1\r\ntwo"
    line = lib.evbuffer_readline(buffer)
    assert ffi.string(line) == b"one 1"
    lib.free(line)
    assert not lib.evbuffer_readline(buffer)
    assert lib.evbuffer_search(buffer, b"o", 1, ffi.NULL).pos == 2
    lib.evbuffer_free(buffer)
