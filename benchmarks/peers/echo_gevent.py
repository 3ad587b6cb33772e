"""The echo server on gevent."""

from __future__ import annotations

import sys
from typing import Any

from gevent.server import StreamServer

from benchmarks.peers import announce, answers, keep_busy


def on_connect(sock: Any, _address: Any) -> None:
    rest = b""
    while data := sock.recv(65536):
        if rest:
            data = rest + data
        *lines, rest = data.split(b"\n")
        if lines:
            sock.sendall(answers(lines))


def main() -> None:
    server = StreamServer(("127.0.0.1", 0), on_connect)
    server.start()
    announce(server.server_port)
    if "--busy" in sys.argv:
        keep_busy()
    server.serve_forever()


if __name__ == "__main__":
    main()
