"""A chat for everybody who has netcat: the first line is a name, the others go to all the rest.

    python chat_server.py [--host 127.0.0.1] [--port 9000]

Then `nc 127.0.0.1 9000` in two terminals or more. A guest who reads too slowly to follow is shown
the door, as is one who says nothing for an hour; nobody else notices.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import Any

from pylibevent import (
    BEV_EVENT_TIMEOUT,
    EV_READ,
    EVBUFFER_EOL_CRLF,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    LineTooLong,
    Listener,
    Signal,
)

MAX_LINE = 1000  # bytes
MAX_NAME = 20  # characters
MAX_BEHIND = 256 * 1024  # bytes that a guest may have yet to read
IDLE = 3600  # seconds
LAST_WORDS = 10  # seconds in which they have to be read

log = logging.getLogger("chat_server")


class Chat:
    def __init__(self, base: EventBase, host: str, port: int) -> None:
        self.guests: dict[str, Guest] = {}  # by name
        self.listener = Listener.bind(base, self.on_accept, (host, port))
        base.exception_handler = self.on_exception

    def on_accept(self, listener: Listener, fd: int, _address: Any) -> None:
        Guest(self, BufferEvent.socket(listener.base, fd))

    def tell(self, text: str, besides: Guest | None = None) -> None:
        message = text.encode() + b"\n"
        for guest in list(self.guests.values()):
            if guest is not besides:
                guest.send(message)

    def on_exception(self, exception: Exception, source: Any) -> None:
        log.error("a connection is dropped", exc_info=exception)
        if isinstance(source, BufferEvent):
            source.close()


class Guest:
    def __init__(self, chat: Chat, bev: BufferEvent) -> None:
        self.chat, self.bev, self.name = chat, bev, ""
        bev.setcb(self.on_read, None, self.on_event)
        bev.setwatermark(EV_READ, 0, MAX_LINE + 2)  # a line and its end
        bev.set_timeouts(read=IDLE)
        bev.enable(EV_READ)
        self.send(b"Your name?\n")

    def send(self, message: bytes) -> None:
        if len(self.bev.output) > MAX_BEHIND:
            self.leave("cannot follow")
            self.bev.close()
        else:
            self.bev.write(message)

    def leave(self, why: str) -> None:
        """Is no guest any more; what is on its way is still sent."""
        if self.chat.guests.pop(self.name, None):
            log.info("%s %s", self.name, why)
            self.chat.tell(f"* {self.name} {why}")

    def on_read(self, bev: BufferEvent) -> None:
        lines = bev.input
        try:
            while (
                not bev.closed and (line := lines.readln(EVBUFFER_EOL_CRLF, MAX_LINE)) is not None
            ):
                self.on_line(printable(line))
        except LineTooLong:
            bev.write(b"That was too long for me.\n")
            self.leave("spoke without end")
            bev.close_after_write(LAST_WORDS)

    def on_line(self, text: str) -> None:
        if not self.name:
            self.enter(text)
        elif text == "/quit":
            self.leave("left")
            self.bev.close_after_write(LAST_WORDS)
        elif text == "/who":
            self.send(f"* here: {', '.join(sorted(self.chat.guests))}\n".encode())
        elif text.startswith("/me "):
            self.chat.tell(f"* {self.name} {text[4:]}")
        elif text.startswith("/"):
            self.send(b"* /who, /me does something, /quit\n")
        elif text:
            self.chat.tell(f"<{self.name}> {text}", besides=self)

    def enter(self, name: str) -> None:
        if not name.isidentifier() or len(name) > MAX_NAME:
            self.send(b"Letters and digits, please. Your name?\n")
        elif name in self.chat.guests:
            self.send(b"There is one already. Your name?\n")
        else:
            self.chat.tell(f"* {name} is here")
            self.name = name
            self.chat.guests[name] = self
            self.send(f"Welcome, {name}. /who tells who is here, /quit leaves.\n".encode())

    def on_event(self, bev: BufferEvent, what: BufferEventFlags) -> None:
        self.leave("fell asleep" if what & BEV_EVENT_TIMEOUT else "left")
        bev.close_after_write(LAST_WORDS)


def printable(line: bytes) -> str:
    """Without what would play with the others' terminals."""
    return "".join(filter(str.isprintable, line.decode(errors="replace"))).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat for everybody who has netcat.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0: any that is free")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level="INFO")
    with EventBase() as base:
        try:
            chat = Chat(base, arguments.host, arguments.port)
        except OSError as error:
            print(f"{arguments.host}:{arguments.port}: {error}", file=sys.stderr)
            return 1
        for signum in (signal.SIGINT, signal.SIGTERM):
            Signal(base, signum, lambda _signum: base.loopexit()).add()
        log.info("listening on %s:%d", *chat.listener.address[:2])
        base.dispatch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
