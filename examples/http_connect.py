"""Gets a page through a proxy: CONNECT makes a tunnel, and the request goes through it.

    python http_connect.py http://127.0.0.1:3128 http://www.example.org/

After libevent's sample http-connect.c.
"""

from __future__ import annotations

import argparse
import sys

from pylibevent import (
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_GET,
    EventBase,
    HttpConnection,
    HttpRequest,
    HttpUri,
)

PATIENCE = 30  # seconds without a byte


def address(url: str) -> tuple[HttpUri, str, int]:
    uri = HttpUri(url)
    if uri.scheme != "http" or not uri.host:
        raise ValueError(f"not the URL of an HTTP server: {url}")
    return uri, uri.host, uri.port or 80


class Page:
    def __init__(self, conn: HttpConnection, url: str) -> None:
        self.status = 1
        self.conn = conn
        uri, self.host, port = address(url)
        self.target = (uri.path or "/") + (f"?{uri.query}" if uri.query else "")
        conn.make_request(HttpRequest(self.on_tunnel), EVHTTP_REQ_CONNECT, f"{self.host}:{port}")

    def on_tunnel(self, request: HttpRequest) -> None:
        if request.response_code != 200:
            self.failed(request)
            return
        page = HttpRequest(self.on_page, chunked=self.on_part)
        page.output_headers["Host"] = self.host  # else it would be the proxy's
        page.output_headers["Connection"] = "close"
        self.conn.make_request(page, EVHTTP_REQ_GET, self.target)

    def on_part(self, page: HttpRequest) -> None:
        sys.stdout.buffer.write(page.read())

    def on_page(self, page: HttpRequest) -> None:
        sys.stdout.buffer.flush()
        if page.error is not None:
            self.failed(page)
            return
        print(f"{page.response_code} {page.response_code_line}", file=sys.stderr)
        self.status = 0

    def failed(self, request: HttpRequest) -> None:
        if request.error is None:
            reason = f"the proxy said {request.response_code} {request.response_code_line}"
        else:
            reason = str(request.exception or request.error)
        print(f"http_connect: {reason}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints a page that comes through a proxy.")
    parser.add_argument("proxy", help="http://host:port")
    parser.add_argument("url", help="http://host[:port]/path?query")
    arguments = parser.parse_args()
    try:
        _, host, port = address(arguments.proxy)
        with EventBase() as base, HttpConnection(base, host, port, timeout=PATIENCE) as conn:
            conn.free_on_completion()
            page = Page(conn, arguments.url)
            base.dispatch()
    except ValueError as error:
        print(f"http_connect: {error}", file=sys.stderr)
        return 1
    return page.status


if __name__ == "__main__":
    sys.exit(main())
