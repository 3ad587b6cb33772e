"""Forwards ports, and shows what goes through them: live with rich, else a line for each change.

    python port_forward.py 8888:example.org:80 8443:example.org:443 [--every 0.5]

`pip install rich`, and on a terminal there is a table that changes in place. Bytes go from buffer
to buffer: none of them becomes a Python object. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import time
from typing import Any

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    EV_READ,
    EV_WRITE,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    Listener,
    Signal,
    Timer,
)

try:
    import rich.live
    import rich.table
except ImportError:
    rich = None  # type: ignore[assignment]

MAX_OUTPUT = 512 * 1024  # bytes that wait for one side before we stop reading from the other
PATIENCE = 30  # seconds without progress in writing the last of a connection


class Forward:
    """A port and its target, and what has gone through: to the target, and back."""

    def __init__(self, base: EventBase, text: str) -> None:
        port, host, target_port = text.split(":", 2)
        self.target = (host, int(target_port))
        self.listener = Listener.bind(base, self.on_accept, ("127.0.0.1", int(port)))
        print("listening on {}:{}".format(*self.listener.address), file=sys.stderr)
        self.open, self.total, self.bytes, self.before = 0, 0, [0, 0], [0, 0]

    def on_accept(self, listener: Listener, fd: int, _address: Any) -> None:
        Connection(self, BufferEvent.socket(listener.base, fd), BufferEvent.socket(listener.base))

    def row(self, seconds: float) -> list[str]:
        name = f"{self.listener.address[1]} to {self.target[0]}:{self.target[1]}"
        counts = zip(self.bytes, self.before, strict=True)
        traffic = [f"{n / 1e6:.3f} MB, {(n - b) / 1e6 / seconds:.3f} MB/s" for n, b in counts]
        self.before = self.bytes.copy()
        return [name, f"{self.open} of {self.total} open", *traffic]


class Connection:
    def __init__(self, forward: Forward, client: BufferEvent, server: BufferEvent) -> None:
        self.forward, self.client = forward, client
        self.ended: BufferEvent | None = None  # who has sent its end first
        forward.open += 1
        forward.total += 1
        for bev, other in ((client, server), (server, client)):
            bev.setcb(self.on_read, self.on_written, self.on_event, other)
            bev.setwatermark(EV_WRITE, MAX_OUTPUT // 2)
        try:
            server.connect(forward.target)
        except OSError as error:  # at once: no such host, no descriptor left
            print(f"{forward.target[0]}: {error}", file=sys.stderr)
            self.finish(server, client)

    def on_read(self, bev: BufferEvent, other: BufferEvent) -> None:
        self.forward.bytes[bev is not self.client] += len(bev.input)
        other.write_buffer(bev.input)
        if len(other.output) >= MAX_OUTPUT:
            bev.disable(EV_READ)

    def on_written(self, bev: BufferEvent, other: BufferEvent) -> None:
        if self.ended is not other:
            other.enable(EV_READ)
        elif not bev.output:  # its end is passed on, behind all that came before it
            sock = socket.socket(fileno=bev.fd)
            with contextlib.suppress(OSError):  # reset meanwhile: an event will tell
                sock.shutdown(socket.SHUT_WR)
            sock.detach()

    def on_event(self, bev: BufferEvent, what: BufferEventFlags, other: BufferEvent) -> None:
        if what & BEV_EVENT_CONNECTED:
            bev.enable(EV_READ)
            other.enable(EV_READ)
            return
        self.on_read(bev, other)  # what is left
        if what & BEV_EVENT_EOF and self.ended is None:
            self.ended = bev
            other.setwatermark(EV_WRITE, 0)
            self.on_written(other, bev)
        else:
            self.finish(bev, other)

    def finish(self, bev: BufferEvent, other: BufferEvent) -> None:
        self.forward.open -= 1
        bev.close_after_write(PATIENCE)
        other.close_after_write(PATIENCE)


class Display:
    def __init__(self, forwards: list[Forward], live: Any) -> None:
        self.forwards, self.live, self.then = forwards, live, time.monotonic()
        self.rows: list[list[str]] = []

    def look(self) -> None:
        """Shows how things are, if they have changed."""
        then, self.then = self.then, time.monotonic()
        before, self.rows = self.rows, [f.row(self.then - then) for f in self.forwards]
        if self.rows != before and self.live:
            table = rich.table.Table("port", "connections", "to the target", "back")
            for row in self.rows:
                table.add_row(*row)
            self.live.update(table, refresh=True)
        elif self.rows != before:
            print(*("; ".join(row) for row in self.rows), sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forwards ports and shows what goes through.")
    parser.add_argument("forward", nargs="+", metavar="PORT:TARGET:PORT")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two looks")
    arguments = parser.parse_args()
    with EventBase() as base:
        try:
            forwards = [Forward(base, text) for text in arguments.forward]
        except (OSError, ValueError) as error:
            parser.error(str(error))
        live = rich.live.Live(auto_refresh=False) if rich and sys.stdout.isatty() else None
        with live or contextlib.nullcontext():
            Timer(base, Display(forwards, live).look, persist=True).add(arguments.every)
            Signal(base, signal.SIGTERM, lambda _signum: base.loopexit()).add()
            with contextlib.suppress(KeyboardInterrupt):
                base.dispatch()


if __name__ == "__main__":
    main()
