"""Libraries of others on aio.EventLoop: aiohttp, client and server, and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import trustme
import uvicorn
from aiohttp import web

from pylibevent import Timer, aio

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def run(main: Any) -> Any:
    async def limited() -> Any:
        result = await asyncio.wait_for(main, 30)
        await asyncio.sleep(0)  # transports close in the next round
        return result

    return aio.run(limited())


# ---- aiohttp ----


async def greet(request: web.Request) -> web.Response:
    return web.Response(text=f"hello, {request.match_info['name']}")


async def count(request: web.Request) -> web.Response:
    return web.json_response({"size": len(await request.read())})


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for n in range(100):
        await response.write(b"%d\n" % n * 1000)
    await response.write_eof()
    return response


async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(str(message.data).upper())
    return socket


async def later(_request: web.Request) -> web.Response:
    """Waits for a timer of libevent's."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, aio.EventLoop)
    done = loop.create_future()
    Timer(loop.base, done.set_result, "a timer").add(0.001)
    return web.Response(text=await done)


def application() -> web.Application:
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get("/hello/{name}", greet)
    app.router.add_post("/count", count)
    app.router.add_get("/stream", stream)
    app.router.add_get("/talk", talk)
    app.router.add_get("/later", later)
    return app


async def visited(visit: Callable[[aiohttp.ClientSession, str], Any], **how: Any) -> Any:
    """What visit(session, url) finds at the application."""
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=how.get("server"))
        await site.start()
        host, port = runner.addresses[0][:2]
        scheme = "https" if how else "http"
        connector = aiohttp.TCPConnector(
            ssl=how.get("client", True), resolver=aiohttp.ThreadedResolver()
        )
        async with aiohttp.ClientSession(connector=connector) as session:
            return await visit(session, f"{scheme}://{host}:{port}")
    finally:
        await runner.cleanup()


def test_aiohttp_answers_many_requests_at_once() -> None:
    async def visit(session: aiohttp.ClientSession, url: str) -> list[str]:
        async def one(n: int) -> str:
            async with session.get(f"{url}/hello/{n}") as response:
                return await response.text()

        return await asyncio.gather(*(one(n) for n in range(200)))

    assert run(visited(visit)) == [f"hello, {n}" for n in range(200)]


def test_aiohttp_takes_and_gives_large_bodies() -> None:
    async def visit(session: aiohttp.ClientSession, url: str) -> tuple[int, int]:
        async with session.post(f"{url}/count", data=io.BytesIO(b"x" * 5_000_000)) as response:
            size = (await response.json())["size"]
        async with session.get(f"{url}/stream") as response:
            return size, len(await response.read())

    assert run(visited(visit)) == (5_000_000, sum(len(b"%d\n" % n) * 1000 for n in range(100)))


def test_aiohttp_speaks_websocket() -> None:
    async def visit(session: aiohttp.ClientSession, url: str) -> list[str]:
        async with session.ws_connect(f"{url}/talk") as socket:
            answers = []
            for word in ("one", "two"):
                await socket.send_str(word)
                answers.append(await socket.receive_str())
            return answers

    assert run(visited(visit)) == ["ONE", "TWO"]


def test_a_handler_of_aiohttps_waits_for_libevent() -> None:
    async def visit(session: aiohttp.ClientSession, url: str) -> str:
        async with session.get(f"{url}/later") as response:
            return await response.text()

    assert run(visited(visit)) == "a timer"


def test_aiohttp_over_tls() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    async def visit(session: aiohttp.ClientSession, url: str) -> str:
        async with session.get(f"{url}/hello/tls") as response:
            return await response.text()

    assert run(visited(visit, server=server, client=client)) == "hello, tls"


# ---- uvicorn ----


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Says back what it was sent, and by which path."""
    assert scope["type"] == "http"
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            break
    answer = json.dumps({"path": scope["path"], "size": len(body)}).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    """Where uvicorn listens, meanwhile."""
    config = uvicorn.Config(app, "127.0.0.1", 0, loop="none", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        await task


def test_uvicorn_serves_an_application() -> None:
    async def main() -> list[dict[str, Any]]:
        answers = []
        async with serving() as (host, port), aiohttp.ClientSession() as session:
            for n in range(20):
                async with session.post(
                    f"http://{host}:{port}/{n}", data=b"x" * n * 1000
                ) as response:
                    answers.append(await response.json())
        return answers

    assert run(main()) == [{"path": f"/{n}", "size": n * 1000} for n in range(20)]


def test_a_bufferevent_is_a_client_of_uvicorns() -> None:
    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, aio.EventLoop)
        async with serving() as address:
            reader, writer = await aio.connect(loop, address)
            writer.write(b"GET /plain HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    assert b'{"path": "/plain", "size": 0}' in run(main())
