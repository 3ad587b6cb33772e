"""A WSGI application, on pylibevent.wsgi or on gunicorn with gevent, one worker each."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.peers import announce

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]


def on_pylibevent() -> None:
    from pylibevent import EventBase
    from pylibevent.wsgi import WSGIServer

    with EventBase() as base:
        server = WSGIServer(base, app)
        announce(server.accept(socket.create_server(("127.0.0.1", 0), backlog=1024))[1])
        server.run()


def on_gunicorn() -> None:
    from gunicorn.app.base import BaseApplication

    def ready(arbiter: Any) -> None:
        announce(arbiter.LISTENERS[0].sock.getsockname()[1])

    class Application(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", "127.0.0.1:0")
            self.cfg.set("worker_class", "gevent")
            self.cfg.set("loglevel", "error")
            self.cfg.set("when_ready", ready)

        def load(self) -> Any:
            return app

    sys.argv = sys.argv[:1]
    Application().run()


if __name__ == "__main__":
    {"pylibevent": on_pylibevent, "gunicorn": on_gunicorn}[sys.argv[1]]()
