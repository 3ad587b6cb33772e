"""Edge-triggered events, after libevent's own tests of them."""

from __future__ import annotations

import socket

import pytest

from pylibevent import (
    EV_ET,
    EV_FEATURE_ET,
    EV_PERSIST,
    EV_READ,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    Event,
    EventBase,
    EventConfig,
    LibeventError,
)

from .helpers import CHANGELIST, METHODS, config_for, script

Sockets = tuple[socket.socket, socket.socket]

ROUND = EVLOOP_ONCE | EVLOOP_NONBLOCK
epoll = pytest.mark.skipif("epoll" not in METHODS, reason="no epoll here")


def test_an_edge_is_told_once_and_a_level_each_time(each_base: EventBase, sockets: Sockets) -> None:
    """A byte of many is read; where there are no edges, the flag does not count."""
    a, b = sockets
    a.send(b"test string\0")
    a.shutdown(socket.SHUT_WR)
    seen: list[int] = []

    def readable(_fd: int, what: int) -> None:
        seen.append(what)
        b.recv(1)

    event = Event(each_base, b, EV_READ | EV_ET | EV_PERSIST, readable)
    event.add()
    for _ in range(2):
        assert each_base.loop(ROUND) == 0
    edges = bool(each_base.features & EV_FEATURE_ET)
    assert edges == each_base.method.startswith(("epoll", "kqueue"))
    assert seen == ([EV_READ | EV_ET] if edges else [EV_READ, EV_READ])
    event.close()


def test_only_some_backends_can(each_base: EventBase) -> None:
    config = config_for(each_base.method)
    config.require_features(EV_FEATURE_ET)
    if each_base.features & EV_FEATURE_ET:
        with EventBase(config) as other:
            assert other.method == each_base.method
    else:
        with pytest.raises(LibeventError, match="event_base_new_with_config"):
            EventBase(config)


@epoll
@pytest.mark.parametrize("method", ["epoll", CHANGELIST])
def test_what_is_left_stays_edge_triggered_when_the_other_event_goes(
    sockets: Sockets, method: str
) -> None:
    a, b = sockets
    reads: list[int] = []
    writes: list[int] = []
    with EventBase(config_for(method)) as base:
        a.send(b"A")
        what = EV_ET | EV_PERSIST
        reader = Event(base, b, EV_READ | what, lambda _fd, what: reads.append(what))
        writer = Event(base, b, EV_WRITE | what, lambda _fd, what: writes.append(what))
        reader.add()
        writer.add()
        base.loop(ROUND)
        base.loop(ROUND)
        assert reads == [EV_READ | EV_ET]
        assert writes == [EV_WRITE | EV_ET]
        reader.delete()
        a.close()
        base.loop(ROUND)
        base.loop(ROUND)
        assert reads == [EV_READ | EV_ET]
        assert writes == [EV_WRITE | EV_ET] * 2


@epoll
@pytest.mark.parametrize("method", ["epoll", CHANGELIST])
def test_an_event_that_is_added_again_sees_the_edge_again(sockets: Sockets, method: str) -> None:
    """So one that does not persist loses nothing that it left unread."""
    a, b = sockets
    got = b""

    def readable(_fd: int, _what: int) -> None:
        nonlocal got
        got += b.recv(1)
        if len(got) < 3:
            event.add()

    with EventBase(config_for(method)) as base:
        event = Event(base, b, EV_READ | EV_ET, readable)
        event.add()
        a.send(b"abc")
        assert base.dispatch() == 1
    assert got == b"abc"


@epoll
def test_an_event_for_both_directions_is_told_of_both_at_the_first_and_of_each_later(
    sockets: Sockets,
) -> None:
    a, b = sockets
    seen: list[int] = []
    with EventBase(config_for("epoll")) as base:
        what = EV_READ | EV_WRITE | EV_ET | EV_PERSIST
        Event(base, b, what, lambda _fd, what: seen.append(what)).add()
        base.loop(ROUND)
        assert seen == [EV_WRITE | EV_ET]
        base.loop(ROUND)
        assert len(seen) == 1
        a.send(b"x")
        base.loop(ROUND)
        base.loop(ROUND)
        assert [what & EV_READ for what in seen[1:]] == [EV_READ]


MIXED = """
a, b = socket.socketpair()
a.setblocking(False)
base = EventBase()
edge = Event(base, a, EV_READ | EV_ET, print)
level = Event(base, a, EV_READ, print)
for first, second in (edge, level), (level, edge):
    first.add()
    try:
        second.add()
    except LibeventError:
        print(int(first.pending(EV_READ)), int(second.pending(EV_READ)))
    first.delete()
base.close()
"""


@epoll
def test_edge_and_level_of_one_descriptor_do_not_mix_in_debug_mode() -> None:
    """libevent looks in debug mode only, and says what is wrong in the log."""
    out = script(
        f"""
import logging
logging.disable()
pylibevent.enable_debug_mode()
{MIXED}"""
    )
    assert out == ["2", "0"] * 2


@epoll
def test_edge_and_level_of_one_descriptor_make_edges_of_both_without_debug_mode(
    sockets: Sockets,
) -> None:
    a, b = sockets
    seen: list[tuple[str, int]] = []
    a.send(b"ab")
    with EventBase(EventConfig()) as base:
        for name, flag in ("edge", EV_ET), ("level", 0):
            Event(
                base,
                b,
                EV_READ | EV_PERSIST | flag,
                lambda _fd, what, name: seen.append((name, what)),
                name,
            ).add()
        base.loop(ROUND)
        base.loop(ROUND)
    assert ("edge", EV_READ | EV_ET) in seen
    assert "level" in dict(seen)
