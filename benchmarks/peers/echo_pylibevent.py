"""The echo server on pylibevent: a line at a time, as in C, or all lines that there are."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.peers import announce, answers, keep_busy
from pylibevent import (
    EV_READ,
    EVBUFFER_EOL_LF,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    Listener,
)


def on_read_plain(bev: BufferEvent) -> None:
    lines = bev.input
    while (line := lines.readln(EVBUFFER_EOL_LF)) is not None:
        bev.write(b"Client msg %s\n" % line)


def on_read_all(bev: BufferEvent) -> None:
    if lines := bev.input.readlines():
        bev.write(answers(lines))


def on_event(bev: BufferEvent, _what: BufferEventFlags) -> None:
    bev.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("form", choices=["plain", "readlines"])
    parser.add_argument("--busy", action="store_true")
    given = parser.parse_args()
    on_read = on_read_plain if given.form == "plain" else on_read_all

    def on_accept(_listener: Listener, fd: int, _address: Any) -> None:
        bev = BufferEvent.socket(base, fd)
        bev.setcb(on_read, None, on_event)
        bev.enable(EV_READ)

    with EventBase() as base, Listener.bind(base, on_accept, ("127.0.0.1", 0)) as listener:
        announce(listener.address[1])
        if given.busy:
            keep_busy()
        base.dispatch()


if __name__ == "__main__":
    main()
