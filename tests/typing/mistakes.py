"""What a user's program may not write: each ignored line is an error for mypy and for pyright.

Both report an ignored error that is none (warn_unused_ignores, reportUnnecessaryTypeIgnoreComment),
so types that are too loose are found. Nothing runs this.
"""

from __future__ import annotations

from typing import Any

from pylibevent import (
    EV_READ,
    BufferEvent,
    BufferEventFlags,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    EventFlags,
    FileSegment,
    HttpConnection,
    HttpRequest,
    Listener,
    RateLimitGroup,
    Signal,
    Timer,
    TokenBucketConfig,
    ffi,
    lib,
    tag,
    util,
)


def on_event(fd: int, what: EventFlags) -> None: ...
def on_event_named(fd: int, what: EventFlags, name: str) -> None: ...
def on_read(bev: BufferEvent) -> None: ...
def on_bufferevent(bev: BufferEvent, what: BufferEventFlags) -> None: ...
def on_accept(listener: Listener, fd: int, address: Any, server: EventBase) -> None: ...


def event_base(base: EventBase) -> None:
    EventBase("epoll")  # type: ignore[arg-type]
    EventConfig().avoid_method(b"epoll")  # type: ignore[arg-type]
    base.dispatch(1)  # type: ignore[call-arg]
    base.loop("once")  # type: ignore[arg-type]
    base.loopexit("1")  # type: ignore[arg-type]
    base.run()  # type: ignore[attr-defined]
    base.method = "epoll"  # type: ignore[misc]
    base.exception_handler = on_read  # type: ignore[assignment]
    base.once(-1, EV_READ, on_event_named)  # type: ignore[arg-type]
    EventBase.from_ptr(base)  # type: ignore[arg-type]
    base.foreach_event(on_event)  # type: ignore[arg-type]


def events(base: EventBase) -> None:
    Event(base, "0", EV_READ, on_event)  # type: ignore[arg-type]
    Event(base, 0, EV_READ)  # type: ignore[call-arg]
    Event(base, 0, EV_READ, on_event_named)  # type: ignore[arg-type]
    Event(base, 0, EV_READ, on_event_named, 1)  # type: ignore[arg-type]
    Event(base, 0, EV_READ, on_read)  # type: ignore[arg-type]
    Event(base, 0, EV_READ, None)  # type: ignore[arg-type]
    Timer(base, on_event)  # type: ignore[arg-type]
    Timer(base, print, persistent=True)  # type: ignore[call-arg]
    Signal(base, 1, on_event_named, "name", 2)  # type: ignore[arg-type]
    event = Event(base, 0, EV_READ, on_event)
    event.add("1")  # type: ignore[arg-type]
    event.priority = "high"  # type: ignore[assignment]


def buffers(buffer: EvBuffer) -> None:
    EvBuffer("text")  # type: ignore[arg-type]
    buffer.add("text")  # type: ignore[arg-type]
    buffer.add(5)  # type: ignore[arg-type]
    buffer.add_buffer(b"bytes")  # type: ignore[arg-type]
    buffer.remove_buffer(buffer)  # type: ignore[call-arg]
    buffer.readln().decode()  # type: ignore[union-attr]
    print(buffer.search(b"x").pos)  # type: ignore[union-attr]
    buffer.add_cb(on_event)  # type: ignore[arg-type]
    buffer.length()  # type: ignore[attr-defined]


def bufferevents(base: EventBase, bev: BufferEvent) -> None:
    BufferEvent(base)  # type: ignore[call-arg]
    BufferEvent.socket(base, options="close")  # type: ignore[arg-type]
    bev.setcb(on_bufferevent)  # type: ignore[arg-type]
    bev.setcb(None, None, on_read)  # type: ignore[arg-type]
    bev.setcb(on_read, None, on_bufferevent, "name")  # type: ignore[arg-type]
    bev.setcb(on_read=on_read)  # type: ignore[call-arg]
    bev.write("text")  # type: ignore[arg-type]
    bev.write_buffer(b"bytes")  # type: ignore[arg-type]
    BufferEvent.filter(bev, on_read)  # type: ignore[arg-type]
    bev.set_timeouts("1")  # type: ignore[arg-type]
    bev.input = EvBuffer()  # type: ignore[misc]
    bev.partner.write(b"")  # type: ignore[union-attr]


def listeners(base: EventBase) -> None:
    Listener.bind(base, on_accept, ("", 0))  # type: ignore[arg-type]
    Listener.bind(base, on_accept, ("", 0), "base")  # type: ignore[arg-type]
    Listener(base, on_accept, 3.5, base)  # type: ignore[arg-type]
    Listener.bind(base, on_accept, ("", 0), base).set_error_cb(on_accept)  # type: ignore[arg-type]


def util_and_tag(buffer: EvBuffer) -> None:
    util.strtoll(12)  # type: ignore[arg-type]
    util.secure_rng_get_bytes(b"")  # type: ignore[arg-type]
    util.make_socket_nonblocking("3")  # type: ignore[arg-type]
    util.setblocking(3)  # type: ignore[attr-defined]
    tag.marshal(1, buffer, b"")  # type: ignore[arg-type]
    tag.marshal(buffer, 1, "text")  # type: ignore[arg-type]
    tag.marshal_string(buffer, 1, b"bytes")  # type: ignore[arg-type]
    tag.unmarshal_int(buffer)  # type: ignore[call-arg]


def rate_limits(base: EventBase, bev: BufferEvent, config: TokenBucketConfig) -> None:
    TokenBucketConfig("1000")  # type: ignore[arg-type]
    bev.set_rate_limit(1000)  # type: ignore[arg-type]
    bev.add_to_rate_limit_group(config)  # type: ignore[arg-type]
    bev.read_limit = 1  # type: ignore[misc]
    RateLimitGroup(config, base)  # type: ignore[arg-type]
    RateLimitGroup(base, config).get_totals() + 1  # type: ignore[operator]


def more_of_buffers(base: EventBase, buffer: EvBuffer) -> None:
    buffer.add_iovec(b"bytes")  # type: ignore[arg-type]
    buffer.add_iovec(["text"])  # type: ignore[list-item]
    buffer.commit_space(buffer.reserve_space(1))  # type: ignore[arg-type]
    buffer.add_file_segment(base)  # type: ignore[arg-type]
    buffer.defer_callbacks()  # type: ignore[call-arg]
    FileSegment("path")  # type: ignore[arg-type]


def http(conn: HttpConnection) -> None:
    HttpRequest()  # type: ignore[call-arg]
    HttpRequest(on_accept)  # type: ignore[arg-type]
    HttpRequest(print, chunked=1)  # type: ignore[arg-type]
    conn.make_request("GET")  # type: ignore[arg-type]
    conn.make_request(HttpRequest(print), uri=b"/")  # type: ignore[arg-type]
    conn.set_closecb(on_bufferevent)  # type: ignore[arg-type]
    conn.timeout = "1"  # type: ignore[assignment]


def the_raw_layer(base: EventBase) -> None:
    lib.event_base_new(1)  # type: ignore[call-arg]
    lib.event_base_dispatch()  # type: ignore[call-arg]
    lib.event_base_dispatch(base)  # type: ignore[arg-type]
    lib.event_base_dispatch(None)  # type: ignore[arg-type]
    lib.event_base_dipatch(base.ptr)  # type: ignore[attr-defined]
    lib.event_base_loop(base.ptr, flags=1)  # type: ignore[call-arg]
    lib.event_base_loop(base.ptr, 1.5)  # type: ignore[arg-type]
    lib.evbuffer_add(lib.evbuffer_new(), "text", 4)  # type: ignore[arg-type]
    lib.evbuffer_add_printf(lib.evbuffer_new(), b"%d", 1)  # type: ignore[arg-type]
    lib.evbuffer_setcb(lib.evbuffer_new(), print, ffi.NULL)  # type: ignore[arg-type]
    lib.EV_READ = 3  # type: ignore[misc]
    print(lib.EV_REED)  # type: ignore[attr-defined]
    ffi.new(1)  # type: ignore[arg-type]
    ffi.newer("int *")  # type: ignore[attr-defined]
    ffi.string(b"bytes")  # type: ignore[arg-type]
