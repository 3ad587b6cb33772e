"""The web server on aiohttp and uvloop."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

from benchmarks.peers import announce


async def on_root(_request: web.Request) -> web.Response:
    return web.Response(body=b"Hello, world!", content_type="text/plain")


async def on_file(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(sys.argv[1])


async def main() -> None:
    app = web.Application()
    app.router.add_get("/", on_root)
    app.router.add_get("/file", on_file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    announce(runner.addresses[0][1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
