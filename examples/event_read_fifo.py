"""Makes a named pipe and prints what is written to it, until the writer closes it. Ports
event-read-fifo.c.

    python event_read_fifo.py [event.fifo]

Try it with `echo hello > event.fifo`. Ctrl-C ends it too; in either case the pipe is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import stat
import sys
from pathlib import Path

from pylibevent import EV_PERSIST, EV_READ, Event, EventBase, EventFlags, Signal


def make_fifo(path: Path) -> int:
    """Makes the pipe, in the place of an old one, and opens it for reading."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISFIFO(path.lstat().st_mode):
            path.unlink()
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # at once, not when there is a writer


def on_readable(fd: int, _what: EventFlags, base: EventBase) -> None:
    data = os.read(fd, 4096)
    if data:
        print(f"read: {data!r}", flush=True)
    else:
        print("the writer has closed it", file=sys.stderr)
        base.loopbreak()


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints what is written to a named pipe.")
    parser.add_argument("fifo", nargs="?", type=Path, default=Path("event.fifo"))
    path = parser.parse_args().fifo
    try:
        fd = make_fifo(path)
    except OSError as error:
        print(f"event_read_fifo: {error}", file=sys.stderr)
        return 1
    try:
        with EventBase() as base:
            for signum in (signal.SIGINT, signal.SIGTERM):
                Signal(base, signum, lambda _signum: base.loopbreak()).add()
            Event(base, fd, EV_READ | EV_PERSIST, on_readable, base).add()
            print(f"write something to {path}", file=sys.stderr)
            base.dispatch()
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
