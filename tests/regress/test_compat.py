"""The raw layer's bufferevents and buffers, 2.x and those of libevent 1 (event2/*_compat.h)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pylibevent import BEV_EVENT_EOF, BEV_EVENT_READING, EV_READ, EV_WRITE, ffi, lib

from .helpers import Raw


@pytest.fixture
def buffer() -> Iterator[Any]:
    buffer = lib.evbuffer_new()
    yield buffer
    lib.evbuffer_free(buffer)


def content(buffer: Any) -> bytes:
    length = lib.evbuffer_get_length(buffer)
    return bytes(ffi.unpack(lib.evbuffer_pullup(buffer, -1), length)) if length else b""


# ---- buffers ----


def test_evbuffer_setcb_tells_the_length_before_and_after(buffer: Any, raw: Raw) -> None:
    callback = raw.callback(
        lambda _buffer, old, new, _arg: raw.seen.append((old, new)), "evbuffer_cb"
    )
    lib.evbuffer_setcb(buffer, callback, ffi.NULL)
    lib.evbuffer_add(buffer, b"four", 4)
    lib.evbuffer_drain(buffer, 3)
    lib.evbuffer_setcb(buffer, ffi.NULL, ffi.NULL)
    lib.evbuffer_add(buffer, b"!", 1)
    assert raw.seen == [(0, 4), (4, 1)]


def test_evbuffer_find_points_into_the_buffer(buffer: Any) -> None:
    lib.evbuffer_add(buffer, b"one two", 7)
    found = lib.evbuffer_find(buffer, b"two", 3)
    assert ffi.unpack(found, 3) == list(b"two")
    assert found - lib.EVBUFFER_DATA(buffer) == 4
    assert lib.evbuffer_find(buffer, b"six", 3) == ffi.NULL


def test_evbuffer_readline_gives_memory_to_be_freed(buffer: Any) -> None:
    lib.evbuffer_add(buffer, b"one\r\ntwo", 8)
    line = lib.evbuffer_readline(buffer)
    assert ffi.string(line) == b"one"
    lib.free(line)
    assert lib.evbuffer_readline(buffer) == ffi.NULL
    assert lib.EVBUFFER_LENGTH(buffer) == 3


def test_a_callback_entry_is_switched_off_and_on(buffer: Any, raw: Raw) -> None:
    callback = raw.callback(
        lambda _buffer, info, _arg: raw.seen.append((info.orig_size, info.n_added, info.n_deleted)),
        "evbuffer_cb_func",
    )
    entry = lib.evbuffer_add_cb(buffer, callback, ffi.NULL)
    assert lib.evbuffer_cb_clear_flags(buffer, entry, lib.EVBUFFER_CB_ENABLED) == 0
    lib.evbuffer_add(buffer, b"unseen", 6)
    assert lib.evbuffer_cb_set_flags(buffer, entry, lib.EVBUFFER_CB_ENABLED) == 0
    lib.evbuffer_add(buffer, b"seen", 4)
    assert raw.seen == [(6, 4, 0)]


def test_a_buffer_that_drains_to_a_descriptor_sends_files_by_sendfile(
    buffer: Any, sockets: tuple[socket.socket, socket.socket], tmp_path: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"from a file")
    assert lib.evbuffer_set_flags(buffer, lib.EVBUFFER_FLAG_DRAINS_TO_FD) == 0
    with path.open("rb") as file:
        segment = lib.evbuffer_file_segment_new(file.fileno(), 5, -1, 0)
        assert lib.evbuffer_add_file_segment(buffer, segment, 0, -1) == 0
        lib.evbuffer_file_segment_free(segment)
        assert lib.evbuffer_write(buffer, sockets[0].fileno()) == 6
    assert sockets[1].recv(100) == b"a file"
    assert lib.evbuffer_clear_flags(buffer, lib.EVBUFFER_FLAG_DRAINS_TO_FD) == 0


# ---- bufferevents ----


def callbacks(raw: Raw) -> tuple[Any, Any, Any]:
    """read (which upper-cases), write and event callbacks that say what they were told."""

    def read(bev: Any, _arg: Any) -> None:
        data = ffi.new("char[]", 100)
        n = lib.bufferevent_read(bev, data, 100)
        text = bytes(ffi.unpack(data, n))
        raw.seen.append(("read", text))
        lib.bufferevent_write(bev, text.upper(), n)

    return (
        raw.callback(read, "bufferevent_data_cb"),
        raw.callback(lambda _bev, _arg: raw.seen.append("write"), "bufferevent_data_cb"),
        raw.callback(
            lambda _bev, what, _arg: raw.seen.append(("event", what)), "bufferevent_event_cb"
        ),
    )


def test_a_bufferevent_of_libevent_1_echoes(
    raw: Raw, current: Any, sockets: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = sockets
    bev = lib.bufferevent_new(theirs.fileno(), *callbacks(raw), ffi.NULL)
    assert lib.bufferevent_base_set(current, bev) == 0
    lib.bufferevent_settimeout(bev, 20, 20)
    lib.bufferevent_enable(bev, lib.EV_READ)
    ours.send(b"hello")
    lib.event_loop(lib.EVLOOP_ONCE)
    assert lib.EVBUFFER_LENGTH(lib.EVBUFFER_INPUT(bev)) == 0
    assert lib.EVBUFFER_LENGTH(lib.EVBUFFER_OUTPUT(bev)) == 5
    lib.event_loop(lib.EVLOOP_ONCE)
    assert ours.recv(100) == b"HELLO"
    ours.shutdown(socket.SHUT_WR)
    lib.event_loop(lib.EVLOOP_ONCE)
    assert raw.seen == [
        ("read", b"hello"),
        "write",
        ("event", lib.EVBUFFER_READ | lib.EVBUFFER_EOF),
    ]
    assert lib.EVBUFFER_READ | lib.EVBUFFER_EOF == BEV_EVENT_READING | BEV_EVENT_EOF
    lib.bufferevent_free(bev)
    lib.event_loop(lib.EVLOOP_NONBLOCK)


def test_a_bufferevent_lives_as_long_as_somebody_counts_on_it(raw_base: Any) -> None:
    bev = lib.bufferevent_socket_new(raw_base, -1, 0)
    lib.bufferevent_incref(bev)
    lib.bufferevent_free(bev)
    lib.event_base_loop(raw_base, lib.EVLOOP_NONBLOCK)
    assert lib.bufferevent_getfd(bev) == -1
    assert lib.bufferevent_decref(bev) == 1  # it was the last
    lib.event_base_loop(raw_base, lib.EVLOOP_NONBLOCK)


def test_a_filter_made_of_c_functions(raw: Raw, raw_base: Any) -> None:
    pair = ffi.new("struct bufferevent *[2]")
    assert lib.bufferevent_pair_new(raw_base, 0, pair) == 0

    def upper(src: Any, dst: Any, _limit: int, _mode: int, _arg: Any) -> int:
        text = content(src).upper()
        lib.evbuffer_add(dst, text, len(text))
        lib.evbuffer_drain(src, len(text))
        return int(lib.BEV_OK)

    below, above = (
        pair[0],
        lib.bufferevent_filter_new(
            pair[0],
            raw.callback(upper, "bufferevent_filter_cb"),
            ffi.NULL,
            lib.BEV_OPT_CLOSE_ON_FREE,
            ffi.NULL,
            ffi.NULL,
        ),
    )
    assert lib.bufferevent_get_underlying(above) == below
    lib.bufferevent_enable(above, lib.EV_READ)
    lib.bufferevent_write(pair[1], b"shout", 5)
    lib.event_base_loop(raw_base, lib.EVLOOP_NONBLOCK)
    assert content(lib.bufferevent_get_input(above)) == b"SHOUT"
    lib.bufferevent_free(above)
    lib.bufferevent_free(pair[1])
    lib.event_base_loop(raw_base, lib.EVLOOP_NONBLOCK)


def test_what_is_enabled_at_first_and_later(raw_base: Any) -> None:
    bev = lib.bufferevent_socket_new(raw_base, -1, 0)
    assert lib.bufferevent_get_enabled(bev) == EV_WRITE
    lib.bufferevent_enable(bev, lib.EV_READ)
    lib.bufferevent_disable(bev, lib.EV_WRITE)
    assert lib.bufferevent_get_enabled(bev) == EV_READ
    lib.bufferevent_free(bev)
    lib.event_base_loop(raw_base, lib.EVLOOP_NONBLOCK)


# ---- the rest ----


def test_libevents_snprintf_always_ends_its_text() -> None:
    out = ffi.new("char[]", b"xxxxxxxx")
    assert lib.evutil_snprintf(out, 4, b"%d", ffi.cast("int", 123456)) == 6
    assert ffi.string(out) == b"123"


def test_an_unassigned_event_is_not_initialized(raw: Raw, raw_base: Any) -> None:
    event = raw.event()
    lib.event_assign(event, raw_base, -1, 0, raw.note("timer"), ffi.NULL)
    assert lib.event_initialized(event)
    lib.event_debug_unassign(event)
    assert not lib.event_initialized(event)


def test_evtag_init_may_be_called_and_does_nothing(buffer: Any) -> None:
    lib.evtag_init()
    lib.evtag_marshal_int(buffer, 1, 2)
    assert content(buffer) == b"\x01\x01\x02"


def test_an_address_with_a_scope_is_taken_apart() -> None:
    address, scope = ffi.new("char[16]"), ffi.new("unsigned *")
    assert lib.evutil_inet_pton_scope(socket.AF_INET6, b"fe80::1%1", address, scope) == 1
    assert (ffi.unpack(address, 16)[:2], scope[0]) == (b"\xfe\x80", 1)
