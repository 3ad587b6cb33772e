"""The echo server over TLS: sends each client back what it sends.

    python tls_echo_server.py cert.pem [key.pem] [--host 127.0.0.1] [--port 8443]

Try it with `openssl s_client -connect 127.0.0.1:8443`. A certificate to try it with:
`openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem`.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import Any

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    EV_READ,
    EV_WRITE,
    BufferEvent,
    BufferEventFlags,
    EventBase,
    Listener,
    Signal,
    TLSContext,
)

MAX_OUTPUT = 65536  # bytes that wait for a slow reader before we stop reading from it
HANDSHAKE = 10  # seconds that it may wait for a client
IDLE = 300

log = logging.getLogger("tls_echo_server")


class TLSEchoServer:
    def __init__(self, base: EventBase, context: TLSContext, host: str, port: int) -> None:
        self.base = base
        self.context = context
        self.listener = Listener.bind(base, self.on_accept, (host, port))

    def on_accept(self, _listener: Listener, fd: int, address: Any) -> None:
        bev = BufferEvent.openssl_socket(self.base, fd, self.context, server_side=True)
        bev.setcb(self.on_read, self.on_written, self.on_event, address)
        bev.setwatermark(EV_READ, 0, MAX_OUTPUT)
        bev.set_timeouts(read=HANDSHAKE)
        bev.enable(EV_READ)

    def on_read(self, bev: BufferEvent, _address: Any) -> None:
        bev.write_buffer(bev.input)
        if len(bev.output) >= MAX_OUTPUT:  # read on when it is on its way
            bev.disable(EV_READ)

    def on_written(self, bev: BufferEvent, _address: Any) -> None:
        if not bev.enabled & EV_READ:
            bev.enable(EV_READ)

    def on_event(self, bev: BufferEvent, what: BufferEventFlags, address: Any) -> None:
        if what & BEV_EVENT_CONNECTED:
            log.info("%s: %s", address, bev.tls)
            bev.set_timeouts(read=IDLE, write=IDLE)
        elif what & BEV_EVENT_EOF:
            bev.write_buffer(bev.input)
            bev.enable(EV_WRITE)
            bev.close_after_write()
        else:
            log.info("%s: %s", address, bev.tls_error or bev.error or what)
            bev.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Sends back what it is sent, over TLS.")
    parser.add_argument("cert", help="PEM, with the certificates of its issuers behind it")
    parser.add_argument("key", nargs="?", help="PEM, if it is not in the same file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443, help="0: any that is free")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level="INFO")
    with EventBase() as base:
        try:
            context = TLSContext.server(arguments.cert, arguments.key)
            server = TLSEchoServer(base, context, arguments.host, arguments.port)
        except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
            print(f"tls_echo_server: {error}", file=sys.stderr)
            return 1
        for signum in (signal.SIGINT, signal.SIGTERM):
            Signal(base, signum, lambda _signum: base.loopexit()).add()
        host, port = server.listener.address[:2]
        log.info("listening on %s:%d", host, port)
        base.dispatch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
