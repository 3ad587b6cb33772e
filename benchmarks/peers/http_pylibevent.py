"""The web server on pylibevent: as c/http.c, line by line."""

from __future__ import annotations

import sys

from benchmarks.peers import announce
from pylibevent import EventBase, HttpServer, HttpServerRequest


def on_root(request: HttpServerRequest) -> None:
    request.output_headers["Content-Type"] = "text/plain"
    request.send_reply(200, "OK", b"Hello, world!")


def on_file(request: HttpServerRequest, path: str) -> None:
    with open(path, "rb", 0) as file:
        request.output_buffer.add_file(file)
    request.output_headers["Content-Type"] = "application/octet-stream"
    request.send_reply(200, "OK")


def main() -> None:
    with EventBase() as base:
        server = HttpServer(base)
        server.set_cb("/", on_root)
        server.set_cb("/file", on_file, sys.argv[1])
        announce(server.bind("127.0.0.1", 0).address[1])
        base.dispatch()


if __name__ == "__main__":
    main()
