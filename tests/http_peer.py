"""A client of our HTTP servers in the same thread: it sends bytes, and reads replies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from common import received

from pylibevent import HttpServer


@dataclass
class Reply:
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


def _chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """The body, and what is behind it; None: there is more to come."""
    body = b""
    while True:
        line, found, data = data.partition(b"\r\n")
        if not found:
            return None
        n = int(line, 16)
        if len(data) < n + 2:
            return None
        assert data[n : n + 2] == b"\r\n"
        body += data[:n]
        data = data[n + 2 :]
        if n == 0:
            return body, data


def parse(data: bytes, ended: bool, method: str) -> tuple[Reply, bytes] | None:
    """A reply, and what is behind it; None: there is more to come."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    line, *lines = head.decode("latin-1").split("\r\n")
    version, status, reason = line.split(" ", 2)
    assert version in ("HTTP/1.0", "HTTP/1.1")
    pairs = [one.split(": ", 1) for one in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), f"repeated headers: {head!r}"
    reply = Reply(int(status), reason, headers, b"")
    if method == "HEAD" or reply.status in (101, 204, 304):
        return reply, rest
    if headers.get("transfer-encoding") == "chunked":
        answer = _chunks(rest)
        if answer is None:
            return None
        reply.body, rest = answer
    elif "content-length" in headers:
        n = int(headers["content-length"])
        if len(rest) < n:
            return None
        reply.body, rest = rest[:n], rest[n:]
    elif ended:
        reply.body, rest = rest, b""
    else:
        return None
    return reply, rest


class Client:
    def __init__(self, server: HttpServer, run_until: Callable[..., None]) -> None:
        self.sock = socket.create_connection(server.bound_sockets[0].address, timeout=10)
        self.sock.setblocking(False)
        self.data = b""
        self.ended = False
        self.run_until = run_until

    def close(self) -> None:
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
        found: list[tuple[Reply, bytes]] = []

        def there() -> bool:
            self.read()
            answer = parse(self.data, self.ended, method)
            if answer is not None:
                found.append(answer)
            assert answer or not self.ended, f"no reply: {self.data!r}"
            return answer is not None

        self.run_until(there)
        answer, self.data = found[0]
        return answer

    def end(self) -> bytes:
        """What else comes until the server closes the connection."""
        self.run_until(self.read)
        return self.data

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
