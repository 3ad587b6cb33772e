"""Gets a page over HTTPS and prints it: the certificate is verified, and the host's name.

    python https_client.py https://www.example.org/ [--ca ca.pem]

After libevent's sample https-client.c.
"""

from __future__ import annotations

import argparse
import sys
from urllib.parse import urlsplit

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    EV_READ,
    EVBUFFER_EOL_CRLF,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    TLSContext,
)

PATIENCE = 30  # seconds without a byte


class Page:
    def __init__(
        self, base: EventBase, context: TLSContext, host: str, port: int, target: str
    ) -> None:
        self.status = 1
        self.in_headers = True
        bev = BufferEvent.openssl_socket(base, None, context, server_hostname=host)
        bev.setcb(self.on_read, None, self.on_event)
        bev.set_timeouts(read=PATIENCE, write=PATIENCE)
        bev.enable(EV_READ)
        request = f"GET {target} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        bev.write(request.encode("ascii"))
        bev.connect_hostname(host, port)

    def on_read(self, bev: BufferEvent) -> None:
        while self.in_headers:
            line = bev.input.readln(EVBUFFER_EOL_CRLF)
            if line is None:
                return
            print(line.decode("latin-1"), file=sys.stderr)
            self.in_headers = line != b""
        sys.stdout.buffer.write(bev.read())

    def on_event(self, bev: BufferEvent, what: BufferEventFlags) -> None:
        if what & BEV_EVENT_CONNECTED:
            print(f"{bev.tls}", file=sys.stderr)
            return
        if what & BEV_EVENT_EOF and not self.in_headers:
            self.status = 0
        else:
            reason = bev.dns_error or bev.tls_error or bev.error or what
            print(f"https_client: {reason}", file=sys.stderr)
        sys.stdout.buffer.flush()
        bev.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints a page; its headers on standard error.")
    parser.add_argument("url", help="https://host[:port]/path?query")
    parser.add_argument("--ca", help="PEM: trust these, and not whom the system trusts")
    arguments = parser.parse_args()
    try:
        url = urlsplit(arguments.url)
        if url.scheme != "https" or not url.hostname:
            raise ValueError("not the URL of an HTTPS server")
        context = TLSContext.client(cafile=arguments.ca)
        target = (url.path or "/") + ("?" + url.query if url.query else "")
        with EventBase() as base:
            page = Page(base, context, url.hostname, url.port or 443, target)
            base.dispatch()
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        print(f"https_client: {error}", file=sys.stderr)
        return 1
    return page.status


if __name__ == "__main__":
    sys.exit(main())
