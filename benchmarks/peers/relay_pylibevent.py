"""A relay on pylibevent, line by line as in c/relay.c."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.peers import announce
from pylibevent import (
    BEV_EVENT_CONNECTED,
    EV_READ,
    EV_WRITE,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    Listener,
)

MAX_OUTPUT = 512 * 1024


def on_read(bev: BufferEvent, other: BufferEvent) -> None:
    other.write_buffer(bev.input)
    if len(other.output) >= MAX_OUTPUT:
        other.setcb(on_read, on_drained, on_event, bev)
        other.setwatermark(EV_WRITE, MAX_OUTPUT // 2, MAX_OUTPUT)
        bev.disable(EV_READ)


def on_drained(bev: BufferEvent, other: BufferEvent) -> None:
    bev.setcb(on_read, None, on_event, other)
    bev.setwatermark(EV_WRITE, 0, 0)
    other.enable(EV_READ)


def on_event(bev: BufferEvent, what: BufferEventFlags, other: BufferEvent) -> None:
    if not what & BEV_EVENT_CONNECTED:
        bev.close()
        other.close()


def on_accept(listener: Listener, fd: int, _address: Any, backend: int) -> None:
    client, server = BufferEvent.socket(listener.base, fd), BufferEvent.socket(listener.base)
    client.setcb(on_read, None, on_event, server)
    server.setcb(on_read, None, on_event, client)
    server.connect(("127.0.0.1", backend))
    client.enable(EV_READ)
    server.enable(EV_READ)


def main() -> None:
    with (
        EventBase() as base,
        Listener.bind(base, on_accept, ("127.0.0.1", 0), int(sys.argv[1])) as listener,
    ):
        announce(listener.address[1])
        base.dispatch()


if __name__ == "__main__":
    main()
