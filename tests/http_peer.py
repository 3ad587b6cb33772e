"""A client of our HTTP servers in the same thread: it sends bytes, and reads replies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from common import received

from pylibevent import EV_READ, Event, HttpServer


@dataclass
class Reply:
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


def _chunks(data: bytearray, at: int) -> tuple[bytes, int] | None:
    """The body, and where it ends; None: there is more to come."""
    parts = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        n = int(data[at:end], 16)
        at = end + 2 + n
        if len(data) < at + 2:
            return None
        assert data[at : at + 2] == b"\r\n"
        parts.append(data[end + 2 : at])
        at += 2
        if n == 0:
            return b"".join(parts), at


def parse(data: bytearray, ended: bool, method: str) -> Reply | None:
    """Takes a reply from the front; None: there is more to come."""
    at = data.find(b"\r\n\r\n")
    if at < 0:
        return None
    line, *lines = data[:at].decode("latin-1").split("\r\n")
    version, status, reason = line.split(" ", 2)
    assert version in ("HTTP/1.0", "HTTP/1.1")
    pairs = [one.split(": ", 1) for one in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), f"repeated headers: {lines}"
    reply = Reply(int(status), reason, headers, b"")
    at += 4
    if method == "HEAD" or reply.status in (101, 204, 304):
        pass
    elif headers.get("transfer-encoding") == "chunked":
        answer = _chunks(data, at)
        if answer is None:
            return None
        reply.body, at = answer
    elif "content-length" in headers or ended:
        n = int(headers.get("content-length", len(data) - at))
        if len(data) < at + n:
            return None
        reply.body = bytes(data[at : at + n])
        at += n
    else:
        return None
    del data[:at]
    return reply


class Client:
    def __init__(self, server: HttpServer, run_until: Callable[..., None]) -> None:
        self.sock = socket.create_connection(server.bound_sockets[0].address, timeout=10)
        self.sock.setblocking(False)
        self.data = bytearray()
        self.ended = False
        self._run_until = run_until
        self._event = Event(server.base, self.sock, EV_READ, lambda *_: None)

    def run_until(self, predicate: Callable[[], object], timeout: float = 5) -> None:
        """The same as the fixture; what comes for the client is something that happens, too."""

        def look() -> object:
            result = predicate()
            if not result and not self.ended:
                self._event.add()
            return result

        try:
            self._run_until(look, timeout)
        finally:
            self._event.delete()

    def close(self) -> None:
        self._event.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        """All of it, with the loop running as long as that takes."""
        left = memoryview(data)

        def written() -> bool:
            nonlocal left
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                self.read()
            except (ConnectionResetError, BrokenPipeError):
                return True
            return not left

        self.run_until(written)

    def read(self) -> bool:
        """What there is; whether that was the end."""
        try:
            self.data += received(self.sock)
            if not self.ended:
                self.ended = self.sock.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        return self.ended

    def reply(self, method: str = "GET") -> Reply:
        """The next reply."""
        found: list[Reply] = []

        def there() -> bool:
            self.read()
            answer = parse(self.data, self.ended, method)
            if answer is not None:
                found.append(answer)
            assert answer or not self.ended, f"no reply: {self.data!r}"
            return answer is not None

        self.run_until(there)
        return found[0]

    def end(self) -> bytes:
        """What else comes until the server closes the connection."""
        self.run_until(self.read)
        return bytes(self.data)

    def ask(self, head: str, body: bytes = b"") -> Reply:
        """Sends a request, with a Host and a Content-Length, and reads the reply."""
        line, *headers = head.split("\n")
        if " HTTP/" not in line:
            line += " HTTP/1.1"
        headers.append("Host: localhost")
        if body:
            headers.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([line, *headers, "", ""]).encode("latin-1") + body)
        return self.reply(line.split(" ")[0])
