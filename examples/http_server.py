"""Serves the files of a directory over HTTP. Ports libevent's sample http-server.c.

    python http_server.py --port 8080 ~/public_html

A directory's own index.html is its page, or else a list of what is in it. What is outside of the
directory is not served, also if a symbolic link there leads to it. Files go out by sendfile and
never come to memory. /dump, with any method, prints the request.
"""

from __future__ import annotations

import argparse
import errno
import logging
import mimetypes
import os
import signal
import stat
import sys
from pathlib import Path

from pylibevent import (
    EVHTTP_REQ_GET,
    EVHTTP_REQ_HEAD,
    EventBase,
    HttpServer,
    HttpServerRequest,
    Signal,
    htmlescape,
    uridecode,
    uriencode,
)

log = logging.getLogger("http_server")

PAGE = """<!DOCTYPE html>
<html>
 <head><meta charset="utf-8"><title>{title}</title></head>
 <body>
  <h1>{title}</h1>
  <ul>
{entries}
  </ul>
 </body>
"""


def send_document(request: HttpServerRequest, root: bytes) -> None:
    if request.method not in (EVHTTP_REQ_GET, EVHTTP_REQ_HEAD):
        request.output_headers["Allow"] = "GET, HEAD"
        request.send_reply(405)
        return
    encoded = request.parsed_uri.path or "/"
    path = uridecode(encoded)
    try:
        where = inside(root, path)
        if not os.path.isdir(where):
            send_file(request, where + b"/" * path.endswith(b"/"))
        elif not path.endswith(b"/"):  # the page's links would lead to its parent
            request.output_headers["Location"] = f"./{encoded.rpartition('/')[2]}/"
            request.send_reply(301)
        elif os.path.exists(where + b"/index.html"):
            send_file(request, inside(root, path + b"index.html"))
        else:
            send_index(request, where, path)
    except PermissionError:
        request.send_error(403)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        request.send_error(404)


def inside(root: bytes, path: bytes) -> bytes:
    """What a path leads to, if that is in root: ".." or a symbolic link might go elsewhere."""
    if b"\0" not in path and b".." not in path.split(b"/"):
        where = os.path.realpath(root + b"/" + path)
        if os.path.commonpath([root, where]) == root:
            return where
    raise FileNotFoundError(errno.ENOENT, "outside of the directory", path)


def send_file(request: HttpServerRequest, path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would have us wait
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        kind, encoding = mimetypes.guess_type(os.fsdecode(path))
        if encoding:  # it is compressed: the type is that of what is in it
            kind = None
        request.output_headers["Content-Type"] = kind or "application/octet-stream"
        request.output_buffer.add_file(file)
        request.send_reply(200)


def send_index(request: HttpServerRequest, where: bytes, path: bytes) -> None:
    names = sorted(entry.name + b"/" * entry.is_dir() for entry in os.scandir(where))
    links = [uriencode(name).replace("%2F", "/") for name in names]
    entries = "\n".join(
        f'   <li><a href="{link}">{show(name)}</a></li>'
        for link, name in zip(links, names, strict=True)
    )
    page = PAGE.format(title=show(path), entries=entries)
    request.output_headers["Content-Type"] = "text/html; charset=utf-8"
    request.send_reply(200, None, page.encode())


def show(name: bytes) -> str:
    return htmlescape(name.decode("utf-8", "replace"))


def dump(request: HttpServerRequest) -> None:
    print(f"Received a {request.command} request for {request.uri}\nHeaders:")
    for name, value in request.headers.items():
        print(f"  {name}: {value}")
    print(f"Input data: <<<\n{request.read().decode('utf-8', 'replace')}\n>>>", flush=True)
    request.send_reply(200)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serves the files of a directory.")
    parser.add_argument("docroot", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s", level="INFO")
    if not arguments.docroot.is_dir():
        parser.error(f"no directory: {arguments.docroot}")
    root = os.path.realpath(os.fsencode(arguments.docroot))

    with EventBase() as base:
        base.exception_handler = lambda error, _source: log.error("", exc_info=error)
        server = HttpServer(base)
        server.set_cb("/dump", dump)
        server.set_gencb(send_document, root)
        try:
            host, port = server.bind(arguments.host, arguments.port).address[:2]
        except OSError as error:
            log.error("%s:%d: %s", arguments.host, arguments.port, error)
            return 1
        for signum in (signal.SIGINT, signal.SIGTERM):
            Signal(base, signum, lambda _signum: base.loopexit()).add()
        log.info("listening on %s:%d", f"[{host}]" if ":" in host else host, port)
        base.dispatch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
