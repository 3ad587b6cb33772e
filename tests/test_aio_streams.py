"""Streams on bufferevents, and libevent's events for coroutines: aio.connect, aio.start_server,
aio.wait_event."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme

from pylibevent import (
    EV_READ,
    EV_SIGNAL,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    EventBase,
    LineTooLong,
    TLSContext,
    aio,
)

Handler = Callable[[aio.StreamReader, aio.StreamWriter], Any]


def on_the_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test is a coroutine, which has 20 seconds."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        aio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return run


def running() -> aio.EventLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, aio.EventLoop)
    return loop


@contextlib.asynccontextmanager
async def talking(
    handler: Handler, **how: Any
) -> AsyncIterator[tuple[aio.StreamReader, aio.StreamWriter]]:
    """A reader and a writer whose other side is what the handler gets."""
    async with await aio.start_server(running(), handler, ("127.0.0.1", 0)) as server:
        reader, writer = await aio.connect(running(), server.address, **how)
        yield reader, writer
        writer.close()
        await writer.wait_closed()


def says(data: bytes) -> Handler:
    """The other side says that, and closes."""

    async def handler(_reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return handler


async def echo(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


# ---- reading ----


@on_the_loop
async def test_readline_gives_lines_with_their_ends_and_the_rest() -> None:
    async with talking(says(b"one\ntwo\r\n\nrest")) as (reader, _):
        lines = [await reader.readline() for _ in range(6)]
    assert lines == [b"one\n", b"two\r\n", b"\n", b"rest", b"", b""]


@on_the_loop
async def test_a_reader_is_an_iterator_of_lines() -> None:
    async with talking(says(b"one\ntwo\nrest")) as (reader, _):
        assert [line async for line in reader] == [b"one\n", b"two\n", b"rest"]


@on_the_loop
async def test_a_line_that_is_too_long_is_an_error_and_stays() -> None:
    async with talking(says(b"x" * 11 + b"\n"), limit=10) as (reader, _):
        with pytest.raises(LineTooLong):
            await reader.readline()
        assert await reader.read(100) == b"x" * 11 + b"\n"


@on_the_loop
async def test_a_line_without_an_end_is_an_error_before_it_fills_the_memory() -> None:
    async with talking(echo, limit=1000) as (reader, writer):
        writer.write(b"x" * 1_000_000)
        with pytest.raises(LineTooLong):
            await reader.readline()
        assert len(writer.bufferevent.input) <= 2000


@on_the_loop
async def test_readuntil_gives_all_up_to_a_separator() -> None:
    async with talking(says(b"a--b-c--")) as (reader, _):
        assert await reader.readuntil(b"--") == b"a--"
        assert await reader.readuntil(b"--") == b"b-c--"
        with pytest.raises(asyncio.IncompleteReadError) as error:
            await reader.readuntil(b"--")
        assert (error.value.partial, error.value.expected) == (b"", None)
        with pytest.raises(ValueError, match="Separator"):
            await reader.readuntil(b"")


@on_the_loop
async def test_a_separator_that_comes_in_two_parts_is_found() -> None:
    async with talking(echo) as (reader, writer):
        found = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        for part in (b"GET /\r\n\r", b"\n"):
            writer.write(part)
            await asyncio.sleep(0.001)
        assert await found == b"GET /\r\n\r\n"


@pytest.mark.parametrize("end", [b"", b"--"])
@on_the_loop
async def test_a_separator_beyond_the_limit_is_an_error_and_all_stays(end: bytes) -> None:
    async with talking(says(b"x" * 20 + end), limit=10) as (reader, writer):
        while len(writer.bufferevent.input) < 20:
            await asyncio.sleep(0)
        with pytest.raises(asyncio.LimitOverrunError):
            await reader.readuntil(b"--")
        assert await reader.readexactly(20) == b"x" * 20


@on_the_loop
async def test_readexactly_gives_just_so_many() -> None:
    async with talking(says(b"12345678")) as (reader, _):
        assert await reader.readexactly(0) == b""
        assert await reader.readexactly(3) == b"123"
        with pytest.raises(asyncio.IncompleteReadError) as error:
            await reader.readexactly(6)
        assert (error.value.partial, error.value.expected) == (b"45678", 6)
        with pytest.raises(ValueError, match="less than zero"):
            await reader.readexactly(-1)


@on_the_loop
async def test_readexactly_may_ask_for_more_than_is_read_ahead() -> None:
    async with talking(echo, limit=100) as (reader, writer):
        writer.write(b"x" * 1_000_000)
        assert await reader.readexactly(999_999) == b"x" * 999_999
        assert await reader.readexactly(1) == b"x"
        assert writer.bufferevent.getwatermark(EV_READ) == (0, 200)


@on_the_loop
async def test_read_gives_what_there_is_or_all() -> None:
    async with talking(says(b"x" * 300_000)) as (reader, _):
        assert await reader.read(0) == b""
        assert await reader.read(5) == b"xxxxx"
        assert not reader.at_eof()
        assert await reader.read() == b"x" * 299_995
        assert reader.at_eof()
        assert await reader.read() == await reader.read(1) == b""


@on_the_loop
async def test_two_coroutines_cannot_wait_for_one_reader() -> None:
    async with talking(echo) as (reader, writer):
        first = asyncio.ensure_future(reader.readline())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waiting"):
            await reader.readline()
        writer.write(b"x\n")
        assert await first == b"x\n"


@on_the_loop
async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    async with talking(echo) as (reader, writer):
        writer.write(b"half a ")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.01)
        writer.write(b"line\n")
        assert await reader.readline() == b"half a line\n"


@pytest.mark.parametrize("debug", [False, True])
def test_a_coroutine_that_goes_on_is_the_current_task_with_its_context(debug: bool) -> None:
    where: contextvars.ContextVar[str] = contextvars.ContextVar("where")

    async def read(reader: aio.StreamReader) -> None:
        where.set("in here")
        task = asyncio.current_task()
        for _ in range(3):
            await reader.readline()
            assert asyncio.current_task() is task
            assert where.get() == "in here"

    async def main() -> None:
        async with talking(echo) as (reader, writer):
            reading = asyncio.ensure_future(read(reader))
            for _ in range(3):
                await asyncio.sleep(0.001)
                writer.write(b"x\n")
            await reading

    aio.run(asyncio.wait_for(main(), 20), debug=debug)


@on_the_loop
async def test_no_coroutine_goes_on_inside_of_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = await aio.connect(running(), listener.getsockname())
        other, _ = listener.accept()
    with other:
        reading = asyncio.ensure_future(reader.readline())
        await asyncio.sleep(0)
        other.send(b"x\n")
        while not len(writer.bufferevent.input):
            running().base.loop(EVLOOP_ONCE)  # a loop of libevent's within the task
        writer.bufferevent.trigger(EV_READ)
        assert not reading.done()
        assert await reading == b"x\n"
        writer.close()


@on_the_loop
async def test_what_a_coroutine_raises_that_goes_on_is_its_own() -> None:
    async def fails(reader: aio.StreamReader) -> None:
        await reader.readline()
        raise LookupError

    async with talking(echo) as (reader, writer):
        task = asyncio.ensure_future(fails(reader))
        await asyncio.sleep(0)
        writer.write(b"x\n")
        with pytest.raises(LookupError):
            await task


# ---- writing ----


async def lines_of(
    stack: contextlib.ExitStack, handler: Handler, n: int
) -> tuple[aio.Server, list[socket.socket]]:
    """n connections to a handler, which all wait for input."""
    server = await aio.start_server(running(), handler, ("127.0.0.1", 0))
    clients = [stack.enter_context(socket.create_connection(server.address)) for _ in range(n)]
    while len(server._tasks) < n:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return server, clients


async def end(server: aio.Server, clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()
    server.close()
    await server.wait_closed()


@on_the_loop
async def test_hundreds_that_have_input_in_one_round_all_go_on() -> None:
    got: set[bytes] = set()

    async def handler(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        while line := await reader.readline():
            got.add(line)
        writer.close()

    with contextlib.ExitStack() as stack:
        server, clients = await lines_of(stack, handler, 300)
        for times in range(2):
            got.clear()
            for i, client in enumerate(clients):
                client.sendall(b"%d\n" % i)
            while len(got) < len(clients):
                await asyncio.sleep(0)
            assert got == {b"%d\n" % i for i in range(len(clients))}, times
        await end(server, clients)


@on_the_loop
async def test_one_that_is_closed_by_another_of_its_round_does_not_go_on_with_its_input() -> None:
    writers: list[aio.StreamWriter] = []
    got: list[bytes] = []

    async def handler(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        writers.append(writer)
        got.append(await reader.readline())
        for each in writers:
            each.bufferevent.close()

    with contextlib.ExitStack() as stack:
        server, clients = await lines_of(stack, handler, 5)
        for client in clients:
            client.sendall(b"line\n")
        await end(server, clients)
    assert sorted(got) == [b"", b"", b"", b"", b"line\n"]


class Hit(asyncio.Future[None]):
    """A signal handler raises just when its task is to go on."""

    def remove_done_callback(self, callback: Any, /) -> int:
        super().remove_done_callback(callback)
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["in a coroutine", "in between"])
def test_who_waits_when_an_exception_ends_the_loop_goes_on_in_the_next_run(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[bytes] = []

    async def handler(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        got.append(await reader.readline())
        writer.close()
        if how == "in a coroutine" and len(got) == 1:
            raise KeyboardInterrupt

    loop = aio.EventLoop()
    with contextlib.ExitStack() as stack, contextlib.closing(loop):
        with monkeypatch.context() as patch:
            if how == "in between":
                patch.setattr(aio, "_Future", Hit)
            server, clients = loop.run_until_complete(lines_of(stack, handler, 5))
        for client in clients:
            client.sendall(b"line\n")
        loop.set_exception_handler(lambda _loop, _context: None)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        while len(got) < 5:
            with contextlib.suppress(KeyboardInterrupt):
                loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0), 20))
        loop.run_until_complete(end(server, clients))
    assert got == [b"line\n"] * 5


def test_input_that_comes_while_the_base_runs_by_itself_wakes_who_waits() -> None:
    got: list[bytes] = []

    async def handler(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        got.append(await reader.readline())
        writer.close()

    loop = aio.EventLoop()
    with contextlib.ExitStack() as stack, contextlib.closing(loop):
        server, clients = loop.run_until_complete(lines_of(stack, handler, 2))
        for client in clients:
            client.sendall(b"line\n")
        loop.base.loop(EVLOOP_NONBLOCK)
        assert got == []
        loop.run_until_complete(end(server, clients))
    assert got == [b"line\n"] * 2


@on_the_loop
async def test_a_reader_that_does_not_read_holds_drain_back() -> None:
    go_on = asyncio.Event()

    async def slow(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(b"%d" % len(await reader.read()))
        writer.close()

    async with talking(slow) as (reader, writer):
        total = 0
        while True:
            writer.write(b"x" * 100_000)
            total += 100_000
            drain = asyncio.ensure_future(writer.drain())
            await asyncio.sleep(0.001)
            if not drain.done():
                break
        go_on.set()
        await drain
        assert len(writer.bufferevent.output) <= 16384
        writer.write_eof()
        assert await reader.read() == b"%d" % total


@on_the_loop
async def test_several_may_wait_in_drain() -> None:
    async with talking(echo) as (reader, writer):
        writer.write(b"x" * 10_000_000)
        drains = [asyncio.ensure_future(writer.drain()) for _ in range(3)]
        await asyncio.sleep(0)
        drains[0].cancel()
        writer.write_eof()
        assert len(await reader.read()) == 10_000_000
        await asyncio.gather(*drains[1:])


@on_the_loop
async def test_writes_come_in_their_order_whoever_sends_them() -> None:
    async with talking(echo) as (reader, writer):
        bev = writer.bufferevent
        expected = b""
        for n in range(200):
            data = b"%d " % n * (n * 10)
            expected += data
            writer.write(data) if n % 2 else bev.write(data)
        writer.writelines([b"the ", bytearray(b"end"), memoryview(b"\n")])
        writer.write_eof()
        assert await reader.read() == expected + b"the end\n"


@on_the_loop
async def test_write_eof_ends_one_way_only() -> None:
    async def count(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        writer.write(b"%d\n" % len(await reader.read()))
        writer.close()

    for n in (0, 1, 5_000_000):
        async with talking(count) as (reader, writer):
            assert writer.can_write_eof()
            writer.write(b"x" * n)
            writer.write_eof()
            writer.write_eof()
            assert await reader.readline() == b"%d\n" % n


@on_the_loop
async def test_close_sends_what_was_written() -> None:
    sizes: list[int] = []

    async def count(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        sizes.append(len(await reader.read()))
        writer.close()

    async with talking(count) as (_, writer):
        writer.write(b"x" * 5_000_000)
        writer.close()
        assert writer.is_closing()
        await writer.wait_closed()
        await writer.wait_closed()
    assert sizes == [5_000_000]


@on_the_loop
async def test_close_ends_the_wait_of_a_reader() -> None:
    async with talking(echo) as (reader, writer):
        waits = asyncio.ensure_future(reader.read())
        await asyncio.sleep(0.001)
        writer.close()
        assert await waits == b""
        assert reader.at_eof()


@on_the_loop
async def test_a_connection_that_is_reset_is_an_error_of_both_sides() -> None:
    async def reset(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        await reader.readline()
        sock = socket.socket(fileno=os.dup(writer.bufferevent.fd))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.bufferevent.close()
        sock.close()

    async with talking(reset) as (reader, writer):
        writer.write(b"go\n")
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        assert isinstance(reader.exception(), ConnectionResetError)
        with pytest.raises(ConnectionResetError):
            await writer.drain()


@on_the_loop
async def test_a_write_to_one_that_has_gone_is_told_by_drain() -> None:
    async with talking(says(b"bye")) as (reader, writer):
        assert await reader.read() == b"bye"

        async def write() -> None:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await write()


# ---- connecting and serving ----


@on_the_loop
async def test_connect_tells_why_it_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await aio.connect(running(), address)


@on_the_loop
async def test_a_connect_that_is_cancelled_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        task = asyncio.ensure_future(aio.connect(running(), sock.getsockname()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_the_loop
async def test_a_name_is_looked_up() -> None:
    async with await aio.start_server(running(), says(b"hi"), ("127.0.0.1", 0)) as server:
        reader, writer = await aio.connect(running().base, ("localhost", server.address[1]))
        assert await reader.read() == b"hi"
        writer.close()


@on_the_loop
async def test_unix_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with await aio.start_server(running(), says(b"hi"), path):
        reader, writer = await aio.connect(running(), path)
        assert await reader.read() == b"hi"
        writer.close()
        await writer.wait_closed()


@on_the_loop
async def test_the_addresses_of_both_sides_are_told() -> None:
    seen: list[Any] = []

    def connected(_reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername"))
        writer.close()

    async with talking(connected) as (reader, writer):
        await reader.read()
        assert seen == [writer.get_extra_info("sockname")]
        assert writer.get_extra_info("peername")[0] == "127.0.0.1"
        assert isinstance(writer.get_extra_info("bufferevent"), BufferEvent)
        assert writer.get_extra_info("ssl_object") is None
        assert writer.get_extra_info("compression", 5) == 5


@on_the_loop
async def test_what_a_handler_raises_goes_to_the_loop_and_closes_the_connection() -> None:
    contexts: list[dict[str, Any]] = []
    running().set_exception_handler(lambda _, context: contexts.append(context))

    async def fails(_reader: aio.StreamReader, _writer: aio.StreamWriter) -> None:
        raise LookupError

    async with talking(fails) as (reader, _):
        assert await reader.read() == b""
    assert [type(context["exception"]) for context in contexts] == [LookupError]


@on_the_loop
async def test_so_does_what_a_handler_raises_that_is_a_function() -> None:
    contexts: list[dict[str, Any]] = []
    running().set_exception_handler(lambda _, context: contexts.append(context))

    def fails(_reader: aio.StreamReader, _writer: aio.StreamWriter) -> None:
        raise LookupError

    async with talking(fails) as (reader, _):
        assert await reader.read() == b""
    assert [type(context["exception"]) for context in contexts] == [LookupError]


@on_the_loop
async def test_serve_forever_ends_when_it_is_cancelled() -> None:
    server = await aio.start_server(running(), echo, ("127.0.0.1", 0))
    task = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    assert server.is_serving()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.is_serving()


@on_the_loop
async def test_fifty_connections_at_once() -> None:
    async def client(address: Any, n: int) -> bytes:
        reader, writer = await aio.connect(running(), address)
        data = b"%d\n" % n * 1000
        writer.write(data)
        answer = await reader.readexactly(len(data))
        writer.close()
        await writer.wait_closed()
        return answer

    async with await aio.start_server(running(), echo, ("127.0.0.1", 0)) as server:
        answers = await asyncio.gather(*(client(server.address, n) for n in range(50)))
    assert answers == [b"%d\n" % n * 1000 for n in range(50)]


@on_the_loop
async def test_asyncios_streams_and_ours_talk_to_each_other() -> None:
    async with await aio.start_server(running(), echo, ("127.0.0.1", 0)) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()


@on_the_loop
async def test_the_base_has_to_be_that_of_the_running_loop() -> None:
    with EventBase() as other, pytest.raises(RuntimeError, match="the running loop"):
        await aio.connect(other, ("127.0.0.1", 1))
    with pytest.raises(TypeError, match="expected an EventBase"):
        await aio.connect(None, ("127.0.0.1", 1))  # type: ignore[arg-type]


def test_streams_need_our_loop(base: EventBase) -> None:
    with pytest.raises(RuntimeError, match="the running loop"):
        asyncio.run(aio.wait_event(base, -1, EV_TIMEOUT, 0))


@on_the_loop
async def test_a_base_that_is_closed_ends_the_streams() -> None:
    async def inner() -> None:
        async with await aio.start_server(running(), echo, ("127.0.0.1", 0)) as server:
            reader, writer = await aio.connect(running(), server.address)
            running().base.close()
            assert await reader.read() == b""
            assert writer.is_closing()
            writer.close()
            await writer.wait_closed()

    coroutine = inner()
    with pytest.raises(RuntimeError):
        aio.run(coroutine)
    coroutine.close()


@pytest.mark.parametrize("waiting", ["read", "wait_closed", "drain", "event", "connect"])
def test_a_base_is_closed_after_its_loop_whatever_was_waited_for(
    sockets: tuple[socket.socket, socket.socket], waiting: str
) -> None:
    async def start() -> asyncio.Task[Any]:
        server = await aio.start_server(loop, lambda *_: None, ("127.0.0.1", 0))
        reader, writer = await aio.connect(loop, server.address)
        writer.write(bytes(10_000_000))
        work: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "read": reader.read,
            "wait_closed": writer.wait_closed,
            "drain": writer.drain,
            "event": lambda: aio.wait_event(loop, sockets[0], EV_READ),
            "connect": lambda: aio.connect(loop, server.address, tls=TLSContext(False)),
        }
        task = loop.create_task(work[waiting]())
        await asyncio.sleep(0)
        return task

    with EventBase() as base:
        loop = aio.EventLoop(base)
        loop.set_exception_handler(lambda *_: None)  # of a task that is still pending
        task = loop.run_until_complete(start())
        loop.close()
        sockets[1].send(b"x")
        base.loop(EVLOOP_NONBLOCK)
    assert not task.done()
    task.get_coro().close()


# ---- TLS ----


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def contexts(authority: trustme.CA) -> tuple[TLSContext, TLSContext]:
    """For a server named localhost, and for a client that trusts it."""
    pytest.importorskip("pylibevent._libevent_ssl")
    certificate = authority.issue_cert("localhost")
    with certificate.private_key_and_cert_chain_pem.tempfile() as path:
        server = TLSContext.server(path)
    pem = authority.cert_pem.bytes().decode()
    return server, TLSContext.client(cadata=pem)


@on_the_loop
async def test_tls(contexts: tuple[TLSContext, TLSContext]) -> None:
    ours, theirs = contexts
    async with await aio.start_server(running(), echo, ("127.0.0.1", 0), tls=ours) as server:
        reader, writer = await aio.connect(
            running(), server.address, tls=theirs, server_hostname="localhost"
        )
        assert writer.get_extra_info("ssl_object").version == "TLSv1.3"
        assert not writer.can_write_eof()
        with pytest.raises(NotImplementedError):
            writer.write_eof()
        writer.write(b"x" * 1_000_000)
        assert await reader.readexactly(1_000_000) == b"x" * 1_000_000
        writer.close()
        await writer.wait_closed()


@on_the_loop
async def test_a_certificate_that_is_not_trusted_is_an_error_of_connect(
    contexts: tuple[TLSContext, TLSContext],
) -> None:
    async with await aio.start_server(running(), echo, ("127.0.0.1", 0), tls=contexts[0]) as server:
        for how in ({"tls": True}, {"tls": contexts[1], "server_hostname": "example.org"}):
            with pytest.raises(ssl.SSLCertVerificationError):
                await aio.connect(running(), server.address, **how)


# ---- events ----


@on_the_loop
async def test_wait_event_waits_for_a_descriptor(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    assert await aio.wait_event(running(), sockets[0], EV_WRITE) == EV_WRITE
    assert await aio.wait_event(running().base, sockets[0], EV_READ, 0.001) == EV_TIMEOUT
    sockets[1].send(b"x")
    assert await aio.wait_event(running(), sockets[0], EV_READ) == EV_READ


@on_the_loop
async def test_wait_event_waits_for_a_timeout_or_a_signal() -> None:
    assert await aio.wait_event(running(), -1, EV_TIMEOUT, 0.001) == EV_TIMEOUT
    task = asyncio.ensure_future(aio.wait_event(running(), signal.SIGUSR1, EV_SIGNAL))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await task == EV_SIGNAL


@on_the_loop
async def test_a_wait_event_that_is_cancelled_is_pending_no_more(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    before = running().base.num_events()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(aio.wait_event(running(), sockets[0], EV_READ), 0.001)
    assert running().base.num_events() == before
