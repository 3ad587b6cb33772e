"""A client for the echo server: sends what it reads from standard input, prints what it gets.

    python echo_client.py [--host 127.0.0.1] [--port 8899]

At the end of the input it closes its half of the connection and waits for the last answers.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    EV_FEATURE_FDS,
    EV_PERSIST,
    EV_READ,
    BufferEvent,
    BufferEventFlags,
    Event,
    EventBase,
    EventConfig,
    EventFlags,
)

MAX_OUTPUT = 65536  # bytes that wait for a slow server before we stop reading our input


class EchoClient:
    def __init__(self, base: EventBase, host: str, port: int) -> None:
        self.base = base
        self.status = 0
        self.at_end = False
        self.stdin = Event(base, sys.stdin, EV_READ | EV_PERSIST, self.on_stdin)
        self.bev = BufferEvent.socket(base)
        self.bev.setcb(self.on_read, self.on_written, self.on_event)
        self.bev.connect((host, port))

    def on_event(self, bev: BufferEvent, what: BufferEventFlags) -> None:
        if what & BEV_EVENT_CONNECTED:
            bev.enable(EV_READ)
            self.stdin.add()
            return
        if not what & BEV_EVENT_EOF:
            print(f"echo_client: {bev.error or what}", file=sys.stderr)
            self.status = 1
        self.stdin.close()
        bev.close()

    def on_stdin(self, fd: int, _what: EventFlags) -> None:
        data = os.read(fd, 16384)
        if data:
            self.bev.write(data)
            if len(self.bev.output) >= MAX_OUTPUT:
                self.stdin.delete()
            return
        self.stdin.close()
        self.at_end = True
        if not self.bev.output:
            self.on_written(self.bev)

    def on_written(self, bev: BufferEvent) -> None:
        if self.at_end:
            with socket.socket(fileno=os.dup(bev.fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        elif not self.stdin.pending():
            self.stdin.add()

    def on_read(self, bev: BufferEvent) -> None:
        sys.stdout.buffer.write(bev.read())
        sys.stdout.buffer.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Sends its input to the echo server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8899)
    arguments = parser.parse_args()
    config = EventConfig()
    config.require_features(EV_FEATURE_FDS)  # epoll takes no files: `echo_client.py < file`
    with EventBase(config) as base:
        try:
            client = EchoClient(base, arguments.host, arguments.port)
        except (OSError, ValueError) as error:
            print(f"echo_client: {error}", file=sys.stderr)
            return 1
        try:
            base.dispatch()
        except KeyboardInterrupt:
            return 130
    return client.status


if __name__ == "__main__":
    sys.exit(main())
