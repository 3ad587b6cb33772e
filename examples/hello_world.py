"""Greets whoever connects, and hangs up once the greeting is written. Ports hello-world.c.

    python hello_world.py [--host 127.0.0.1] [--port 9995] [--delay 2]

Try it with `nc 127.0.0.1 9995`. Ctrl-C ends it, two seconds later.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from pylibevent import BufferEvent, BufferEventFlags, EventBase, Listener, Signal

GREETING = b"Hello, World!\n"


def on_accept(listener: Listener, fd: int, address: Any) -> None:
    bev = BufferEvent.socket(listener.base, fd)  # a new one writes and does not read
    bev.setcb(None, on_written, on_event, address)
    bev.write(GREETING)


def on_written(bev: BufferEvent, address: Any) -> None:
    print(f"{address}: greeted", flush=True)
    bev.close_after_write()  # not close(): the kernel would reset a client that has sent something


def on_event(bev: BufferEvent, what: BufferEventFlags, address: Any) -> None:
    print(f"{address}: {bev.error or what}", flush=True)
    bev.close()


def on_interrupt(_signum: int, base: EventBase, delay: float) -> None:
    print(f"interrupted: ends in {delay:g} seconds", flush=True)
    base.loopexit(delay)


def main() -> int:
    parser = argparse.ArgumentParser(description="Greets whoever connects, and hangs up.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9995, help="0: any that is free")
    parser.add_argument("--delay", type=float, default=2, help="seconds from Ctrl-C to the end")
    arguments = parser.parse_args()
    with EventBase() as base:
        try:
            listener = Listener.bind(base, on_accept, (arguments.host, arguments.port))
        except (OSError, ValueError) as error:
            print(f"hello_world: {error}", file=sys.stderr)
            return 1
        Signal(base, signal.SIGINT, on_interrupt, base, arguments.delay).add()
        host, port = listener.address[:2]
        print(f"listening on {host}:{port}", file=sys.stderr)
        base.dispatch()
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
