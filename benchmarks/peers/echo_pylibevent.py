"""The echo server on pylibevent: a line at a time, as in C, or all lines that there are."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.peers import announce, answers, keep_busy
from pylibevent import (
    BEV_EVENT_CONNECTED,
    EV_READ,
    EVBUFFER_EOL_LF,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    Listener,
    TLSContext,
)


def on_read_plain(bev: BufferEvent) -> None:
    lines = bev.input
    while (line := lines.readln(EVBUFFER_EOL_LF)) is not None:
        bev.write(b"Client msg %s\n" % line)


def on_read_all(bev: BufferEvent) -> None:
    if lines := bev.input.readlines():
        bev.write(answers(lines))


def on_event(bev: BufferEvent, what: BufferEventFlags) -> None:
    if what != BEV_EVENT_CONNECTED:
        bev.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("form", choices=["plain", "readlines"])
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--tls", metavar="cert.pem")
    given = parser.parse_args()
    on_read = on_read_plain if given.form == "plain" else on_read_all

    context = TLSContext.server(given.tls) if given.tls else None

    def on_accept(_listener: Listener, fd: int, _address: Any) -> None:
        if context is None:
            bev = BufferEvent.socket(base, fd)
        else:
            bev = BufferEvent.openssl_socket(base, fd, context)
        bev.setcb(on_read, None, on_event)
        bev.enable(EV_READ)

    with EventBase() as base, Listener.bind(base, on_accept, ("127.0.0.1", 0)) as listener:
        announce(listener.address[1])
        if given.busy:
            keep_busy()
        base.dispatch()


if __name__ == "__main__":
    main()
