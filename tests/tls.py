"""Certificates, and peers that speak TLS by the standard library's ssl, each in a thread."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme

from pylibevent import BEV_EVENT_CONNECTED, EV_READ, BufferEvent, BufferEventFlags, EventBase

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


class Certificates:
    """An authority, and the files of what it has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.stranger = trustme.CA(), trustme.CA()
        self.cafile = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.cafile)
        self.good = self.write("good", self.ca.issue_cert("localhost", "127.0.0.1", "::1"))
        self.other = self.write("other", self.ca.issue_cert("other.example"))
        self.expired = self.write("expired", self.ca.issue_cert("localhost", not_after=LONG_AGO))
        self.unknown = self.write("unknown", self.stranger.issue_cert("localhost"))
        self.client = self.write("client", self.ca.issue_cert("someone@example.org"))

    def write(self, name: str, cert: trustme.LeafCert) -> Path:
        path = self.folder / f"{name}.pem"
        cert.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def for_server(self, cert: Path | None = None) -> ssl.SSLContext:
        """The standard library's, with the good certificate or another one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert or self.good)
        return context

    def for_client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.cafile))


class Peer:
    """function(socket) in a thread; its end wakes the loop."""

    def __init__(
        self, base: EventBase, sock: socket.socket, function: Callable[[socket.socket], Any]
    ) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._base = base
        self._sock = sock
        self._function = function
        self._over = False
        sock.settimeout(20)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._sock:
                self.result = self._function(self._sock)
        except (OSError, AssertionError) as error:  # an SSLError is an OSError
            self.error = error
        finally:
            self._over = True
            self._base.loopbreak()

    @property
    def over(self) -> bool:
        if self._over:
            self._thread.join()
        return self._over


class Log:
    """What became of a bufferevent, and what it has read."""

    def __init__(self, bev: BufferEvent, read: bool = True) -> None:
        self.bev = bev
        self.events: list[BufferEventFlags] = []
        self.data = bytearray()
        bev.setcb(self.on_read if read else None, None, self.on_event)
        if read:
            bev.enable(EV_READ)

    def on_read(self, bev: BufferEvent) -> None:
        self.data += bev.read()

    def on_event(self, _bev: BufferEvent, what: BufferEventFlags) -> None:
        self.events.append(what)

    @property
    def connected(self) -> bool:
        return BEV_EVENT_CONNECTED in self.events
