"""asyncio on an EventBase: aio.EventLoop, aio.Selector, aio.run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest
from processes import in_child

from pylibevent import (
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EVLOOP_NONBLOCK,
    BufferEvent,
    ClosedError,
    Event,
    EventBase,
    EventConfig,
    Signal,
    Timer,
    aio,
    supported_methods,
)

Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def loop(base: EventBase) -> Iterator[aio.EventLoop]:
    """A loop on a base of the test's."""
    loop = aio.EventLoop(base)
    yield loop
    loop.close()


@pytest.fixture
def selector(base: EventBase) -> Iterator[aio.Selector]:
    selector = aio.Selector(base)
    yield selector
    if not base.closed:
        selector.close()


# ---- one loop for both ----


def test_a_coroutine_waits_for_what_a_libevent_callback_gives() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, aio.EventLoop)
        future = loop.create_future()
        Timer(loop.base, future.set_result, 42).add(0)
        answer: int = await asyncio.wait_for(future, 10)
        return answer

    assert aio.run(main()) == 42


def test_run_ends_with_what_the_coroutine_raises() -> None:
    async def main() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        aio.run(main())


def test_run_cancels_what_is_left() -> None:
    ended = []

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async def main() -> asyncio.Task[None]:
        task = asyncio.ensure_future(endless())
        await asyncio.sleep(0)
        return task

    assert aio.run(main()).cancelled()
    assert ended == [True]


def test_run_sets_debug() -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert aio.run(main(), debug=True)
    assert not aio.run(main(), debug=False)


def test_run_inside_of_a_loop_is_an_error() -> None:
    async def inner() -> None:
        raise AssertionError("it runs")

    async def main() -> None:
        coroutine = inner()
        with pytest.raises(RuntimeError, match="running event loop"):
            aio.run(coroutine)
        coroutine.close()

    aio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner is of 3.11")
def test_it_is_a_loop_factory_for_a_runner() -> None:
    async def main() -> type:
        return type(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=aio.EventLoop) as runner:
        assert runner.run(main()) is aio.EventLoop


def test_libevent_and_asyncio_serve_both_ends_of_a_connection(
    loop: aio.EventLoop, sockets: Sockets
) -> None:
    bev = BufferEvent.socket(loop.base, sockets[0])
    bev.setcb(read=lambda bev: bev.write(bev.read().upper()))
    bev.enable(EV_READ)

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection(sock=sockets[1])
        writer.write(b"hello\n")
        line = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await writer.wait_closed()
        return line

    assert loop.run_until_complete(main()) == b"HELLO\n"
    bev.close()


def test_the_base_stays_when_a_loop_on_it_is_closed(base: EventBase) -> None:
    calls: list[str] = []
    loop = aio.EventLoop(base)
    Timer(base, calls.append, "in the loop").add(0)
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    Timer(base, calls.append, "after it").add(0)
    assert base.dispatch() == 1
    assert calls == ["in the loop", "after it"]


def test_a_base_of_its_own_is_closed_with_it() -> None:
    loop = aio.EventLoop()
    base = loop.base
    loop.close()
    loop.close()
    assert base.closed


def test_a_closed_loop_leaves_no_cycle() -> None:
    gc.collect()
    gc.disable()
    try:
        loop = aio.EventLoop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        gone = weakref.ref(loop.base), weakref.ref(loop)
        del loop
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def test_the_base_has_to_be_one() -> None:
    with pytest.raises(TypeError, match="base must be an EventBase"):
        aio.EventLoop("epoll")  # type: ignore[arg-type]


def test_events_of_a_higher_priority_come_first(loop: aio.EventLoop) -> None:
    loop.base.priority_init(3)
    order: list[int] = []
    events = [
        Event(loop.base, -1, EV_TIMEOUT, lambda _fd, _what, n: order.append(n), n)
        for n in (2, 0, 1)
    ]
    for event, priority in zip(events, (2, 0, 1), strict=True):
        event.priority = priority
        event.active(EV_TIMEOUT)
    loop.run_until_complete(asyncio.sleep(0.001))
    assert order == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_event_that_is_always_ready_leaves_coroutines_their_turn(
    loop: aio.EventLoop, sockets: Sockets, n: int
) -> None:
    loop.base.priority_init(n)
    sockets[1].send(b"never read")
    busy = Event(loop.base, sockets[0], EV_READ | EV_PERSIST, lambda *_: None)
    busy.priority = 0
    busy.add()
    a, b = socket.socketpair()
    with a, b:

        async def main() -> bytes:
            await asyncio.sleep(0.001)
            b.send(b"x")
            a.setblocking(False)
            return await loop.sock_recv(a, 1)

        assert loop.run_until_complete(asyncio.wait_for(main(), 30)) == b"x"
    busy.close()


@pytest.mark.parametrize("method", supported_methods())
def test_it_works_with_every_method(method: str) -> None:
    config = EventConfig()
    for other in supported_methods():
        if other != method:
            config.avoid_method(other)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async def main() -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        data = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.close()
        await server.wait_closed()
        return data

    with EventBase(config) as base:
        assert base.method == method
        loop = aio.EventLoop(base)
        assert len(loop.run_until_complete(main())) == 1_000_000
        loop.close()


# ---- exceptions ----


def test_what_a_callback_raises_goes_to_the_loops_exception_handler(loop: aio.EventLoop) -> None:
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: contexts.append(context))
    timer = Timer(loop.base, lambda: 1 / 0)
    timer.add(0)
    loop.run_until_complete(asyncio.sleep(0.001))
    (context,) = contexts
    assert context["source"] is timer
    assert isinstance(context["exception"], ZeroDivisionError)
    assert "Timer" in context["message"]


def test_a_handler_of_the_bases_own_stays(base: EventBase) -> None:
    raised: list[tuple[Exception, Any]] = []
    base.exception_handler = handler = lambda exception, source: raised.append((exception, source))
    loop = aio.EventLoop(base)
    Timer(base, lambda: 1 / 0).add(0)
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    assert base.exception_handler is handler
    assert len(raised) == 1


def test_a_loop_that_is_closed_takes_its_handler_away(base: EventBase) -> None:
    aio.EventLoop(base).close()
    assert base.exception_handler is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_is_no_error_leaves_the_loop(loop: aio.EventLoop, kind: type[BaseException]) -> None:
    def stop() -> None:
        raise kind

    Timer(loop.base, stop).add(0)
    with pytest.raises(kind):
        loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0))


# ---- the end ----


@pytest.mark.parametrize("end", ["loopexit", "loopbreak"])
def test_loopexit_and_loopbreak_stop_the_loop(loop: aio.EventLoop, end: str) -> None:
    Timer(loop.base, getattr(loop.base, end)).add(0)
    loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0.001))


def test_loopbreak_stops_the_loop_in_a_crowd_of_callbacks(loop: aio.EventLoop) -> None:
    calls: list[int] = []

    def count(n: int) -> None:
        calls.append(n)
        if n == 255:
            loop.base.loopbreak()

    for n in range(1000):
        Event(loop.base, -1, EV_TIMEOUT, lambda _fd, _what, n: count(n), n).active(EV_TIMEOUT)
    loop.run_forever()
    assert calls == list(range(256))
    loop.run_until_complete(asyncio.sleep(0.001))
    assert calls == list(range(1000))


def test_loopbreak_in_a_coroutine_stops_the_loop(loop: aio.EventLoop) -> None:
    loop.call_soon(loop.base.loopbreak)
    loop.run_forever()


def test_a_base_that_is_closed_in_a_callback_ends_the_loop() -> None:
    base = EventBase()
    loop = aio.EventLoop(base)
    Timer(base, base.close).add(0)
    with pytest.raises(ClosedError):
        loop.run_forever()
    loop.close()


def test_a_base_that_is_closed_in_a_coroutine_ends_the_loop() -> None:
    base = EventBase()
    loop = aio.EventLoop(base)
    loop.call_soon(base.close)
    with pytest.raises(ClosedError):
        loop.run_forever()
    loop.close()


def test_a_closed_base_gets_no_loop() -> None:
    base = EventBase()
    base.close()
    with pytest.raises(ClosedError):
        aio.EventLoop(base)


# ---- threads, signals, processes ----


def test_call_soon_threadsafe_wakes_the_loop(loop: aio.EventLoop) -> None:
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def test_an_event_of_another_thread_wakes_the_loop(loop: aio.EventLoop) -> None:
    event = Event(loop.base, -1, EV_TIMEOUT, lambda *_: loop.stop())
    thread = threading.Thread(target=event.active, args=(EV_TIMEOUT,))
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def test_the_loop_of_another_thread_is_not_ours_to_change(
    loop: aio.EventLoop, sockets: Sockets
) -> None:
    errors: list[BaseException] = []
    inside = threading.Event()
    go_on = threading.Event()

    def wait() -> None:  # in libevent's part of the round
        inside.set()
        go_on.wait(10)
        loop.stop()

    def meddle() -> None:
        inside.wait(10)
        try:
            loop._selector.register(sockets[0], EVENT_READ)  # type: ignore[attr-defined]
        except RuntimeError as error:
            errors.append(error)
        go_on.set()

    thread = threading.Thread(target=meddle)
    thread.start()
    Timer(loop.base, wait).add(0)
    loop.run_forever()
    thread.join()
    assert "another thread" in str(errors[0])


def test_two_loops_run_in_two_threads() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, os.getpid)

    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(aio.run(main()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [os.getpid()] * 2


def send_from_outside(number: signal.Signals) -> subprocess.Popen[bytes]:
    """Another process sends us a signal, while we wait for nothing else."""
    code = f"import os; os.kill({os.getpid()}, {int(number)})"
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_second_run_of_a_loop_is_an_error_and_leaves_the_first_one_running(
    loop: aio.EventLoop,
) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()
        assert asyncio.get_running_loop() is loop
        assert loop.is_running()

    loop.run_until_complete(main())


def test_control_c_ends_a_loop_with_nothing_to_do(loop: aio.EventLoop) -> None:
    before = signal.set_wakeup_fd(-1)
    with send_from_outside(signal.SIGINT), pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert signal.set_wakeup_fd(before) == -1


def test_control_c_cancels_the_main_task_of_a_run() -> None:
    async def main() -> None:
        with send_from_outside(signal.SIGINT):
            await asyncio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        aio.run(main())


def test_a_signal_handler_of_the_loop_is_called(loop: aio.EventLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    with send_from_outside(signal.SIGUSR1):
        loop.run_forever()
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_control_c_works_after_the_last_signal_handler_is_removed(loop: aio.EventLoop) -> None:
    def remove() -> None:
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.remove_signal_handler(signal.SIGUSR1)

    loop.call_soon(remove)
    with send_from_outside(signal.SIGINT), pytest.raises(KeyboardInterrupt):
        loop.run_forever()


def test_a_libevent_signal_calls_back(loop: aio.EventLoop) -> None:
    event = Signal(loop.base, signal.SIGUSR2, lambda _: loop.stop())
    event.add()
    with send_from_outside(signal.SIGUSR2):
        loop.run_forever()
    event.close()


def test_a_subprocess_is_waited_for() -> None:
    async def main() -> tuple[bytes, int | None]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input())", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(b"hello\n")
        return out, process.returncode

    assert aio.run(main()) == (b"hello\n", 0)


def test_datagrams_go_both_ways() -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.transport.sendto(data.upper(), address)

    class Ask(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.answer.set_result(data)

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(Echo, ("127.0.0.1", 0))
        address = server.get_extra_info("sockname")
        client, protocol = await loop.create_datagram_endpoint(Ask, remote_addr=address)
        client.sendto(b"hello")
        answer: bytes = await asyncio.wait_for(protocol.answer, 10)
        client.close()
        server.close()
        await asyncio.sleep(0)
        return answer

    assert aio.run(main()) == b"HELLO"


# ---- fork ----


def test_a_child_cannot_use_the_loop_and_does_the_parents_no_harm(
    loop: aio.EventLoop, sockets: Sockets
) -> None:
    loop.add_reader(sockets[0], loop.stop)

    def child() -> None:
        with pytest.raises(RuntimeError, match="parent process"):
            loop.run_until_complete(asyncio.sleep(0))
        loop.base.close()
        loop.close()

    in_child(child)
    sockets[1].send(b"x")
    loop.run_forever()
    loop.remove_reader(sockets[0])


def test_a_child_may_close_the_loop(base: EventBase, sockets: Sockets) -> None:
    shared, own = aio.EventLoop(base), aio.EventLoop()
    for loop in (shared, own):
        loop.add_reader(sockets[0], loop.stop)

    def child() -> None:
        shared.close()
        own.close()
        base.close()

    in_child(child)
    sockets[1].send(b"x")
    for loop in (shared, own):
        loop.run_forever()
        loop.remove_reader(sockets[0])
        loop.close()


def test_a_childs_timer_is_not_the_parents(loop: aio.EventLoop) -> None:
    async def main() -> None:
        soon = asyncio.ensure_future(asyncio.sleep(0.05))
        await asyncio.sleep(0.001)

        def child() -> None:
            loop.base.reinit()
            for _ in range(3):
                loop._selector.select(0.05)  # type: ignore[attr-defined]

        in_child(child)
        await soon

    loop.run_until_complete(asyncio.wait_for(main(), 20))


def test_a_child_may_reinit_and_go_on(loop: aio.EventLoop, sockets: Sockets) -> None:
    loop.run_until_complete(asyncio.sleep(0.001))

    def child() -> None:
        loop.base.reinit()
        loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0.001), 10))
        loop.add_reader(sockets[0], loop.stop)
        sockets[1].send(b"x")
        loop.run_forever()

    in_child(child)
    loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0.001), 10))


# ---- the selector ----


def test_a_selector_tells_what_is_ready(selector: aio.Selector, sockets: Sockets) -> None:
    key = selector.register(sockets[0], EVENT_READ, "data")
    assert selector.select(0) == []
    sockets[1].send(b"x")
    assert selector.select(10) == [(key, EVENT_READ)]
    assert selector.select() == [(key, EVENT_READ)]


def test_reading_and_writing_are_told_together(selector: aio.Selector, sockets: Sockets) -> None:
    sockets[1].send(b"x")
    key = selector.register(sockets[0], EVENT_READ | EVENT_WRITE)
    assert selector.select() == [(key, EVENT_READ | EVENT_WRITE)]


def test_a_closed_connection_is_ready(selector: aio.Selector, sockets: Sockets) -> None:
    key = selector.register(sockets[0], EVENT_READ)
    sockets[1].close()
    assert selector.select() == [(key, EVENT_READ)]


def test_a_wait_ends_after_the_timeout(selector: aio.Selector) -> None:
    for timeout in (0, -1, 0.001, 0.0001):
        assert selector.select(timeout) == []


def test_a_longer_timeout_after_a_shorter_one_counts(
    selector: aio.Selector, base: EventBase
) -> None:
    calls: list[bool] = []
    assert selector.select(0.001) == []
    Timer(base, calls.append, True).add(0.01)
    assert selector.select(30) == []
    assert calls == [True]


def test_modify_changes_what_is_watched_and_the_data(
    selector: aio.Selector, sockets: Sockets
) -> None:
    selector.register(sockets[0], EVENT_READ, 1)
    key = selector.modify(sockets[0], EVENT_WRITE, 2)
    assert (key.fileobj, key.events, key.data) == (sockets[0], EVENT_WRITE, 2)
    assert selector.select() == [(key, EVENT_WRITE)]
    selector.modify(sockets[0], EVENT_READ)
    assert selector.select(0) == []


def test_what_is_unregistered_is_not_told(selector: aio.Selector, sockets: Sockets) -> None:
    sockets[1].send(b"x")
    key = selector.register(sockets[0], EVENT_READ)
    assert selector.unregister(sockets[0]) is key
    assert selector.select(0) == []


def test_the_map_has_what_is_registered(selector: aio.Selector, sockets: Sockets) -> None:
    key = selector.register(sockets[0], EVENT_READ)
    mapping = selector.get_map()
    assert (len(mapping), list(mapping)) == (1, [key.fd])
    assert mapping[sockets[0]] is mapping[key.fd] is mapping.get(sockets[0]) is key
    assert selector.get_key(sockets[0]) is key
    assert mapping.get(sockets[1]) is None
    assert sockets[1] not in mapping


def test_wrong_uses_are_errors(selector: aio.Selector, sockets: Sockets) -> None:
    for events in (0, 4, EVENT_READ | 8):
        with pytest.raises(ValueError, match="Invalid events"):
            selector.register(sockets[0], events)
    for call in (selector.unregister, selector.get_key):
        with pytest.raises(KeyError, match="not registered"):
            call(sockets[0])
    with pytest.raises(KeyError, match="not registered"):
        selector.modify(sockets[0], EVENT_READ)
    with pytest.raises(ValueError, match="Invalid file descriptor"):
        selector.register(-1, EVENT_READ)
    selector.register(sockets[0], EVENT_READ)
    with pytest.raises(KeyError, match="already registered"):
        selector.register(sockets[0], EVENT_READ)
    with pytest.raises(ValueError, match="Invalid events"):
        selector.modify(sockets[0], 0)


def test_a_closed_descriptor_is_an_oserror(selector: aio.Selector, sockets: Sockets) -> None:
    fd = sockets[0].fileno()
    sockets[0].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        selector.register(fd, EVENT_READ)
    assert len(selector.get_map()) == 0


def test_a_regular_file_is_a_permissionerror(selector: aio.Selector) -> None:
    if selector.base.method != "epoll":
        pytest.skip("other methods take files")
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
        selector.register(file, EVENT_READ)


def test_a_descriptor_that_was_closed_is_unregistered_by_its_object(
    selector: aio.Selector, sockets: Sockets
) -> None:
    key = selector.register(sockets[0], EVENT_READ)
    sockets[0].close()
    assert selector.unregister(sockets[0]) is key
    assert selector.select(0) == []


def test_a_number_that_is_used_again_can_be_registered_again(selector: aio.Selector) -> None:
    a, b = socket.socketpair()
    fd = selector.register(a, EVENT_READ).fd
    a.close()
    selector.unregister(fd)
    c, d = socket.socketpair()
    key = selector.register(c, EVENT_READ)
    assert key.fd == fd
    d.send(b"x")
    assert selector.select() == [(key, EVENT_READ)]
    selector.unregister(c)
    for each in (b, c, d):
        each.close()


def test_callbacks_may_register_and_unregister(
    selector: aio.Selector, base: EventBase, sockets: Sockets
) -> None:
    for each in sockets:
        each.send(b"x")
    selector.register(sockets[0], EVENT_READ)
    selector.select()

    def change() -> None:
        selector.unregister(sockets[0])
        selector.register(sockets[1], EVENT_READ)
        selector.modify(sockets[1], EVENT_WRITE)
        selector.modify(sockets[1], EVENT_READ)

    for _ in range(3):
        event = Event(base, -1, EV_TIMEOUT, lambda *_: change())
        event.active(EV_TIMEOUT)
        for key, _events in [*selector.select(), *selector.select()]:
            assert key.fileobj is sockets[1]
        selector.unregister(sockets[1])
        selector.register(sockets[0], EVENT_READ)


def test_more_than_fit_in_one_round_are_told_in_the_next(
    base: EventBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "_ROOM", 2)
    with aio.Selector(base) as selector:
        pairs = [socket.socketpair() for _ in range(5)]
        for a, b in pairs:
            selector.register(a, EVENT_READ)
            b.send(b"x")
        found: list[Any] = []
        while len(found) < 5:
            ready = selector.select()
            assert 1 <= len(ready) <= 2
            for key, _ in ready:
                found.append(key.fileobj)
                selector.unregister(key.fileobj)
        assert {*found} == {a for a, _ in pairs}
        for pair in pairs:
            for each in pair:
                each.close()


def test_a_loop_of_libevents_does_not_lose_what_is_ready(
    selector: aio.Selector, base: EventBase, sockets: Sockets
) -> None:
    key = selector.register(sockets[0], EVENT_READ | EVENT_WRITE)
    sockets[1].send(b"x")
    base.loop(EVLOOP_NONBLOCK)
    assert selector.select() == [(key, EVENT_READ | EVENT_WRITE)]
    base.loop(EVLOOP_NONBLOCK)
    selector.modify(sockets[0], EVENT_READ)
    assert selector.select() == [(selector.get_key(sockets[0]), EVENT_READ)]
    base.loop(EVLOOP_NONBLOCK)
    selector.unregister(sockets[0])
    assert selector.select(0) == []


def test_a_closed_selector_is_of_no_use(base: EventBase, sockets: Sockets) -> None:
    selector = aio.Selector(base)
    selector.register(sockets[0], EVENT_READ)
    selector.close()
    selector.close()
    assert selector.get_map() is None  # as selectors have it
    for call in (selector.select, lambda: selector.register(sockets[0], EVENT_READ)):
        with pytest.raises(ClosedError):
            call()
    assert base.dispatch() == 1  # nothing of it is left


def test_a_selector_survives_its_base(sockets: Sockets) -> None:
    with EventBase() as base:
        selector = aio.Selector(base)
        selector.register(sockets[0], EVENT_READ)
    with pytest.raises(ClosedError):
        selector.select(0)
    selector.unregister(sockets[0])
    selector.close()


def test_a_wait_inside_of_a_callback_is_an_error(selector: aio.Selector, base: EventBase) -> None:
    errors: list[str] = []

    def wait() -> None:
        try:
            selector.select(0)
        except RuntimeError as error:
            errors.append(str(error))

    Timer(base, wait).add(0)
    base.dispatch()
    Timer(base, wait).add(0)
    while len(errors) < 2:
        selector.select()
    assert all("running already" in error for error in errors)


@pytest.mark.parametrize("seed", range(5))
def test_it_tells_what_an_epoll_selector_tells(
    selector: aio.Selector, base: EventBase, seed: int
) -> None:
    """Whatever is registered, changed, sent, read and closed, in whichever order."""
    rng = random.Random(seed)
    other = selectors.DefaultSelector()
    pairs = [socket.socketpair() for _ in range(8)]
    for pair in pairs:
        for each in pair:
            each.setblocking(False)
    for _ in range(1000):
        a, b = rng.choice(pairs)
        events = rng.choice([EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE])
        match rng.randrange(7):
            case 0 | 1 if a in other.get_map():
                for one in (selector, other):
                    one.modify(a, events)
            case 0 | 1 if a.fileno() >= 0:
                for one in (selector, other):
                    one.register(a, events)
            case 2 if a in other.get_map():
                for one in (selector, other):
                    one.unregister(a)
            case 3 if b.fileno() >= 0 and a.fileno() >= 0:
                with contextlib.suppress(BlockingIOError):
                    b.send(bytes(rng.choice([1, 1_000_000])))
            case 4 if a.fileno() >= 0:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    a.recv(1_000_000)
            case 5 if a.fileno() >= 0:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    a.send(bytes(1_000_000))
            case 6 if rng.random() < 0.1:
                b.close()
        if rng.random() < 0.2:
            base.loop(EVLOOP_NONBLOCK)
        told = [{(key.fd, events) for key, events in one.select(0)} for one in (selector, other)]
        assert told[0] == told[1]
    other.close()
    selector.close()
    for pair in pairs:
        for each in pair:
            each.close()
