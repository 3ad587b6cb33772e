"""The textbook libevent echo server: answers each line with `Client msg <line>`.

    python echo_server.py [--host 127.0.0.1] [--port 8899] [--max-line 65536]

Try it with `nc 127.0.0.1 8899`. Ctrl-C stops it.
"""

from __future__ import annotations

import argparse
import logging
import resource
import signal
import sys
from typing import Any

from pylibevent import (
    BEV_EVENT_EOF,
    EV_READ,
    EVBUFFER_EOL_CRLF,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    LineTooLong,
    Listener,
    Signal,
)

MAX_OUTPUT = 65536  # bytes that wait for a slow reader before we stop reading from it

log = logging.getLogger("echo_server")


class EchoServer:
    def __init__(self, base: EventBase, host: str, port: int, max_line: int) -> None:
        self.base = base
        self.max_line = max_line
        self.listener = Listener.bind(base, self.on_accept, (host, port))
        base.exception_handler = self.on_exception

    def on_accept(self, _listener: Listener, fd: int, address: Any) -> None:
        log.debug("%s connected", address)
        bev = BufferEvent.socket(self.base, fd)
        bev.setcb(self.on_read, None, self.on_event, address)
        bev.setwatermark(EV_READ, 0, self.max_line + 2)  # a line and its end
        bev.enable(EV_READ)

    def on_read(self, bev: BufferEvent, address: Any) -> None:
        lines, answers = bev.input, bev.output
        try:
            while (line := lines.readln(EVBUFFER_EOL_CRLF, self.max_line)) is not None:
                bev.write(b"Client msg %b\n" % line)
                if len(answers) >= MAX_OUTPUT:  # read on when they are on their way
                    bev.disable(EV_READ)
                    bev.setcb(None, self.on_written, self.on_event, address)
                    return
        except LineTooLong:
            log.warning("%s sent a line of more than %d bytes", address, self.max_line)
            bev.close_after_write()

    def on_written(self, bev: BufferEvent, address: Any) -> None:
        bev.setcb(self.on_read, None, self.on_event, address)
        bev.enable(EV_READ)
        self.on_read(bev, address)

    def on_event(self, bev: BufferEvent, what: BufferEventFlags, address: Any) -> None:
        if what & BEV_EVENT_EOF:  # perhaps only half a close: what is due still goes out
            if rest := bev.read():
                bev.write(b"Client msg %b\n" % rest.removesuffix(b"\r"))
            log.debug("%s finished", address)
            bev.close_after_write()
        else:
            log.info("%s: %s", address, bev.error or what)
            bev.close()

    def on_exception(self, exception: Exception, source: Any) -> None:
        log.error("dropping a connection", exc_info=exception)
        if isinstance(source, BufferEvent):
            source.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers each line with `Client msg <line>`.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8899, help="0: any that is free")
    parser.add_argument("--max-line", type=int, default=65536, help="bytes")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level="INFO")

    # As many connections as the system allows, not as many as the shell does.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    with EventBase() as base:
        try:
            server = EchoServer(base, arguments.host, arguments.port, arguments.max_line)
        except (OSError, ValueError) as error:
            print(f"{arguments.host}:{arguments.port}: {error}", file=sys.stderr)
            return 1
        for signum in (signal.SIGINT, signal.SIGTERM):
            Signal(base, signum, lambda _signum: base.loopexit()).add()
        host, port = server.listener.address[:2]
        log.info("listening on %s:%d", host, port)
        base.dispatch()
        log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
