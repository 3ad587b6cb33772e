"""Passes TCP and unix connections on to another address. Ports le-proxy.c, without its TLS.

    python le_proxy.py 127.0.0.1:8888 example.com:80
    python le_proxy.py '[::1]:8888' /run/server.sock

An address is host:port, [IPv6]:port, :port of 127.0.0.1, or a path. Little more than MAX_OUTPUT is
held for a side that does not read, and buffers hand their memory on. Half a close is passed on.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pylibevent as le
from pylibevent import EV_READ, EV_WRITE, BufferEvent, EventBase

MAX_OUTPUT = 512 * 1024  # bytes that wait for one side before we stop reading from the other
PATIENCE = 30  # seconds without progress in writing the last of a connection


class Connection:
    """A client and its connection to the target: what one sends the other gets."""

    def __init__(self, listener: le.Listener, fd: int, _address: Any, target: Any) -> None:
        self.target = target
        self.connected = False
        self.ended: BufferEvent | None = None  # the first of the two that has sent its end
        client, server = (BufferEvent.socket(listener.base, one) for one in (fd, -1))
        client.setcb(self.on_read, None, self.on_event, server)
        server.setcb(self.on_read, None, self.on_event, client)
        try:
            server.connect(target)
        except OSError as error:  # at once: no route, no descriptor left
            logging.error("%s: %s", show(target), error)
            server.close()
            client.close_after_write()
        else:
            client.enable(EV_READ)
            server.enable(EV_READ)

    def on_read(self, bev: BufferEvent, other: BufferEvent) -> None:
        other.write_buffer(bev.input)
        if len(other.output) >= MAX_OUTPUT:
            bev.disable(EV_READ)
            other.setwatermark(EV_WRITE, MAX_OUTPUT // 2)
            other.setcb(self.on_read, self.on_drained, self.on_event, bev)

    def on_drained(self, bev: BufferEvent, other: BufferEvent) -> None:
        """Half of what was too much for bev is written: on with reading."""
        bev.setwatermark(EV_WRITE, 0)
        bev.setcb(self.on_read, None, self.on_event, other)
        other.enable(EV_READ)

    def on_event(self, bev: BufferEvent, what: le.BufferEventFlags, other: BufferEvent) -> None:
        other.write_buffer(bev.input)
        if what & le.BEV_EVENT_CONNECTED:
            self.connected = True
            self.on_last_written(bev, other)
        elif what & le.BEV_EVENT_ERROR:
            logging.info("a connection to %s: %s", show(self.target), bev.error)
            bev.close()
            write_the_last(other)
        elif self.ended is None:
            self.ended = bev
            other.setwatermark(EV_WRITE, 0)
            other.setcb(self.on_read, self.on_last_written, self.on_event, bev)
            self.on_last_written(other, bev)
        else:
            bev.close_after_write()
            other.close_after_write()

    def on_last_written(self, bev: BufferEvent, other: BufferEvent) -> None:
        """Passes the other's end on, once bev has got all that was sent before it."""
        if self.connected and self.ended is other and not bev.output:
            sock = socket.socket(fileno=bev.fd)
            with contextlib.suppress(OSError):  # reset meanwhile: an event will tell
                sock.shutdown(socket.SHUT_WR)
            sock.detach()


def write_the_last(bev: BufferEvent) -> None:
    """The other is gone. What bev still sends is dropped: only then it may read what is for it."""
    if bev.output:
        bev.setwatermark(EV_WRITE, 0)
        bev.set_timeouts(write=PATIENCE)
        bev.setcb(lambda bev: bev.input.remove(), BufferEvent.close_after_write, on_last_event)
        bev.enable(EV_READ)
    else:
        bev.close_after_write()


def on_last_event(bev: BufferEvent, what: le.BufferEventFlags) -> None:
    if what & le.BEV_EVENT_EOF:
        bev.close_after_write(PATIENCE)
    elif not what & le.BEV_EVENT_CONNECTED:
        bev.close()


def parse(text: str) -> Any:
    """An address as the socket module has it, of one on the command line."""
    if "/" in text:
        return text
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        if not 0 <= int(port) <= 65535:
            raise ValueError(f"no port: {port}")
        return socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def show(address: Any) -> str:
    if isinstance(address, str):
        return address
    return ("[{}]:{}" if ":" in address[0] else "{}:{}").format(*address[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description="Passes connections on to another address.")
    parser.add_argument("listen", metavar="listen-address", type=parse)
    parser.add_argument("connect", metavar="connect-address", type=parse)
    arguments = parser.parse_args()
    logging.basicConfig(format="le_proxy: %(message)s", level="INFO")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two descriptors a connection

    with EventBase() as base:
        try:
            listener = le.Listener.bind(base, Connection, arguments.listen, arguments.connect)
        except (OSError, ValueError) as error:
            raise SystemExit(f"le_proxy: {show(arguments.listen)}: {error}") from None
        for signum in (signal.SIGINT, signal.SIGTERM):
            le.Signal(base, signum, lambda _signum: base.loopexit()).add()
        logging.info("listening on %s", show(listener.address))
        base.dispatch()
    if isinstance(arguments.listen, str):
        Path(arguments.listen).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
