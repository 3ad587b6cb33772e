"""TLS on top of other bufferevents: STARTTLS, pairs, filters."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

import pytest
from common import few_rounds, is_open
from conftest import RunUntil
from tls import Certificates, Log, Peer

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_TIMEOUT,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_THREADSAFE,
    BEV_TRIG_IGNORE_WATERMARKS,
    EV_READ,
    EV_WRITE,
    BufferEvent,
    BufferEventFlags,
    EvBuffer,
    EventBase,
)

pytest.importorskip("pylibevent._libevent_ssl", reason="built without OpenSSL")

from pylibevent.bufferevent_ssl import TLSContext

Sockets = tuple[socket.socket, socket.socket]
Unders = tuple[BufferEvent, BufferEvent]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def over(
    under: BufferEvent, certs: Certificates, server: bool, options: int = BEV_OPT_CLOSE_ON_FREE
) -> Log:
    if server:
        context = TLSContext.server(certs.good)
        return Log(BufferEvent.openssl_filter(under, context, options=options))
    context = TLSContext.client(cafile=certs.cafile)
    bev = BufferEvent.openssl_filter(under, context, server_hostname="localhost", options=options)
    return Log(bev)


def on_sockets(base: EventBase) -> Unders:
    a, b = socket.socketpair()
    return BufferEvent.socket(base, a), BufferEvent.socket(base, b)


def on_a_pair(base: EventBase) -> Unders:
    return BufferEvent.pair(base)


def on_filters(base: EventBase) -> Unders:
    a, b = on_sockets(base)
    options = BEV_OPT_CLOSE_ON_FREE
    return BufferEvent.filter(a, options=options), BufferEvent.filter(b, options=options)


@pytest.fixture(params=[on_sockets, on_a_pair, on_filters])
def unders(base: EventBase, request: pytest.FixtureRequest) -> Unders:
    make: Callable[[EventBase], Unders] = request.param
    return make(base)


@pytest.fixture
def ends(run_until: RunUntil, unders: Unders, certs: Certificates) -> tuple[Log, Log]:
    """A server and a client that are connected."""
    server, client = over(unders[0], certs, server=True), over(unders[1], certs, server=False)
    run_until(lambda: server.connected and client.connected)
    return server, client


def test_both_ways(ends: tuple[Log, Log], run_until: RunUntil) -> None:
    server, client = ends
    data = bytes(i % 253 for i in range(300_000))
    server.bev.write(data)
    client.bev.write(data[::-1])
    run_until(lambda: len(server.data) == len(client.data) == len(data))
    assert client.data == data
    assert server.data == data[::-1]
    assert server.bev.tls
    assert server.bev.tls.version == "TLSv1.3"
    server.bev.close()
    client.bev.close()


def test_what_is_written_before_the_handshake_goes_out_after_it(
    unders: Unders, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = over(unders[0], certs, server=True), over(unders[1], certs, server=False)
    server.bev.write(b"one")
    client.bev.write(b"two")
    run_until(lambda: server.data == b"two" and client.data == b"one")
    server.bev.close()
    client.bev.close()


def test_starttls_loses_nothing_and_lets_nothing_through(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    """A server that answers STARTTLS in clear, and a client of the standard library."""
    logs: list[Log] = []

    def on_line(bev: BufferEvent) -> None:
        assert bev.input.readln() == b"STARTTLS"
        bev.write(b"220 go ahead\r\n")
        context = TLSContext.server(certs.good)
        logs.append(Log(BufferEvent.openssl_filter(bev, context, options=BEV_OPT_CLOSE_ON_FREE)))
        logs[0].bev.write(b"250 welcome\r\n")

    def talk(sock: socket.socket) -> tuple[bytes, bytes]:
        sock.sendall(b"STARTTLS\r\n")
        answer = sock.recv(14)
        with certs.for_client().wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as tls:
            welcome = tls.recv(100)
            tls.sendall(b"QUIT\r\n")
            assert tls.recv(100) == b""
            return answer, welcome

    under = BufferEvent.socket(base, sockets[0])
    under.setcb(on_line)
    under.enable(EV_READ)
    peer = Peer(base, sockets[1], talk)
    run_until(lambda: logs and logs[0].data == b"QUIT\r\n")
    logs[0].bev.close_after_write()
    run_until(lambda: peer.over and under.closed)
    assert (peer.error, peer.result) == (None, (b"220 go ahead\r\n", b"250 welcome\r\n"))


def test_bytes_that_came_before_the_handshake_are_an_error(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    under = BufferEvent.socket(base, sockets[0])
    under.enable(EV_READ)
    sockets[1].send(b"STARTTLS\r\nRCPT TO:<somebody@example.org>\r\n")
    run_until(lambda: len(under.input))
    assert under.input.readln() == b"STARTTLS"
    with pytest.raises(ssl.SSLError, match="bytes came in clear before the handshake"):
        over(under, certs, server=True)
    assert not under.closed
    under.input.drain(len(under.input))
    over(under, certs, server=True).bev.close()
    assert under.closed


def test_nothing_in_clear_is_on_the_wire(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    sock, b = sockets
    a, relay = socket.socketpair()
    seen = bytearray()
    sides = [BufferEvent.socket(base, sock.detach()), BufferEvent.socket(base, relay)]

    def pass_on(bev: BufferEvent, to: BufferEvent) -> None:
        data = bev.read()
        seen.extend(data)
        to.write(data)

    for side, other in (sides, sides[::-1]):
        side.setcb(pass_on, None, None, other)
        side.enable(EV_READ)
    server = over(BufferEvent.socket(base, a), certs, server=True)
    client = over(BufferEvent.socket(base, b), certs, server=False)
    for log in (server, client):
        log.bev.write(b"a secret")
    run_until(lambda: server.data == client.data == b"a secret")
    for log in (server, client):
        log.bev.write(b"a secret")
        log.bev.close_after_write()
    run_until(lambda: server.bev.closed and client.bev.closed)
    few_rounds(base)
    assert len(seen) > 1000
    assert b"secret" not in seen
    for side in sides:
        side.close()


def test_close_after_write_sends_it_all_and_a_close_notify(
    ends: tuple[Log, Log], run_until: RunUntil
) -> None:
    server, client = ends
    under = server.bev.underlying
    assert under
    server.bev.write(bytes(500_000))
    server.bev.close_after_write()
    assert server.bev.closed
    run_until(lambda: len(client.events) > 1)
    assert client.events[1] & BEV_EVENT_EOF
    assert len(client.data) == 500_000
    assert client.bev.tls_error is None
    client.bev.close()
    run_until(lambda: under.closed)


def test_close_after_write_waits_for_the_handshake(
    unders: Unders, run_until: RunUntil, certs: Certificates
) -> None:
    server = over(unders[0], certs, server=True)
    server.bev.write(b"last words")
    server.bev.close_after_write()
    assert not server.bev.closed
    client = over(unders[1], certs, server=False)
    run_until(lambda: len(client.events) > 1)
    assert client.data == b"last words"
    assert client.events[1] & BEV_EVENT_EOF
    run_until(lambda: server.bev.closed)
    client.bev.close()
    run_until(lambda: unders[0].closed)


@pytest.mark.parametrize("dirty", [False, True])
def test_an_end_without_a_close_notify_is_an_error_unless_it_is_allowed(
    base: EventBase, run_until: RunUntil, certs: Certificates, dirty: bool
) -> None:
    a, b = on_sockets(base)
    server, client = over(a, certs, server=True), over(b, certs, server=False)
    server.bev.allow_dirty_shutdown = dirty
    client.bev.write(b"half a")
    run_until(lambda: server.data)
    few_rounds(base)  # nothing is unread, which would be a reset
    client.bev.close()
    run_until(lambda: len(server.events) > 1)
    if dirty:
        assert server.events[1] & BEV_EVENT_EOF
        assert server.bev.tls_error is None
    else:
        assert server.events[1] & BEV_EVENT_ERROR
        assert isinstance(server.bev.tls_error, ssl.SSLEOFError)
    server.bev.close()


def test_the_end_comes_after_all_input(ends: tuple[Log, Log], run_until: RunUntil) -> None:
    server, client = ends
    server.bev.disable(EV_READ)
    client.bev.write(bytes(200_000))
    client.bev.close_after_write()
    few_rounds(server.bev.base, 50)
    assert server.events == [BEV_EVENT_CONNECTED]
    assert server.data == b""
    server.bev.enable(EV_READ)
    run_until(lambda: len(server.events) > 1)
    assert len(server.data) == 200_000
    assert server.events[1] & BEV_EVENT_EOF
    few_rounds(server.bev.base)
    assert len(server.events) == 2
    server.bev.close()


def test_who_does_not_read_holds_the_peer_back(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    a, b = on_sockets(base)
    server, client = over(a, certs, server=True), over(b, certs, server=False)
    server.bev.disable(EV_READ)
    run_until(lambda: server.connected and client.connected)
    client.bev.write(bytes(10_000_000))
    few_rounds(base, 200)
    assert len(a.input) < 1_000_000
    server.bev.setwatermark(EV_READ, 0, 1000)
    server.bev.setcb(None)
    server.bev.enable(EV_READ)
    few_rounds(base, 200)
    assert len(server.bev.input) < 50_000
    assert len(a.input) < 1_000_000
    total = 0
    while total < 10_000_000:
        run_until(lambda: len(server.bev.input))
        total += len(server.bev.read())
    server.bev.close()
    client.bev.close()


def test_a_handshake_that_stalls_times_out(
    unders: Unders, run_until: RunUntil, certs: Certificates
) -> None:
    log = over(unders[0], certs, server=True)
    log.bev.set_timeouts(read=0.05)
    run_until(lambda: log.events)
    assert log.events[0] & BEV_EVENT_TIMEOUT
    log.bev.close()
    unders[1].close()


def test_garbage_is_an_error(
    base: EventBase, run_until: RunUntil, unders: Unders, certs: Certificates
) -> None:
    log = over(unders[0], certs, server=True)
    unders[1].write(b"EHLO example.org\r\n")
    run_until(lambda: log.events)
    assert log.events[0] & BEV_EVENT_ERROR
    assert isinstance(log.bev.tls_error, ssl.SSLError)
    log.bev.close()
    unders[1].close()


@pytest.mark.parametrize("disabled", [EV_READ, EV_WRITE, EV_READ | EV_WRITE])
def test_disabling_does_not_stall_the_handshake(
    unders: Unders, run_until: RunUntil, certs: Certificates, disabled: int
) -> None:
    server = over(unders[0], certs, server=True)
    few_rounds(server.bev.base)
    server.bev.disable(disabled)
    client = over(unders[1], certs, server=False)
    client.bev.write(b"hello")
    run_until(lambda: server.connected and client.connected)
    few_rounds(server.bev.base)
    assert (server.data == b"") == bool(disabled & EV_READ)
    server.bev.enable(disabled)
    run_until(lambda: server.data == b"hello")
    server.bev.close()
    client.bev.close()


@pytest.mark.parametrize("when", ["connected", "read", "write", "eof"])
@pytest.mark.parametrize("options", [0, BEV_OPT_CLOSE_ON_FREE])
def test_it_may_be_closed_in_each_callback(
    unders: Unders, run_until: RunUntil, certs: Certificates, when: str, options: int
) -> None:
    called: list[str] = []

    def close(name: str) -> None:
        if name == when and not bev.closed:
            called.append(name)
            bev.close()
            assert unders[0].closed == bool(options)

    def on_read(bev: BufferEvent) -> None:
        bev.read()
        close("read")

    def on_event(_bev: BufferEvent, what: BufferEventFlags) -> None:
        close("connected" if what & BEV_EVENT_CONNECTED else "eof")

    bev = over(unders[0], certs, server=True, options=options).bev
    bev.setcb(on_read, lambda _: close("write"), on_event)
    bev.write(b"something")
    client = over(unders[1], certs, server=False)
    client.bev.write(bytes(100_000))
    run_until(lambda: client.connected or client.events)
    client.bev.close_after_write()
    run_until(lambda: called)
    few_rounds(unders[0].base)
    assert called == [when]
    client.bev.close()
    unders[0].close()
    unders[1].close()


def test_what_it_is_on_may_be_closed_first(ends: tuple[Log, Log]) -> None:
    server, client = ends
    assert server.bev.underlying
    server.bev.underlying.close()
    server.bev.write(b"to nobody")
    few_rounds(server.bev.base)
    server.bev.close()
    client.bev.close()


def test_what_it_is_on_is_its_own_again_when_it_is_closed(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    a, b = on_sockets(base)
    server, client = over(a, certs, True, options=0), over(b, certs, False, options=0)
    run_until(lambda: server.connected and client.connected)
    with pytest.raises(RuntimeError, match="filter is on top"):
        a.setcb(None)
    run_until(lambda: not len(b.input))
    server.bev.close()
    client.bev.close()
    few_rounds(base)
    clear = Log(a)
    b.write(b"in clear")
    run_until(lambda: clear.data.endswith(b"in clear"))
    a.close()
    b.close()


@pytest.mark.parametrize("on_top", [False, True], ids=["plain", "with a filter on top"])
def test_openssl_is_not_entered_again_from_the_sni_callback(
    unders: Unders, run_until: RunUntil, certs: Certificates, on_top: bool
) -> None:
    def meddle(bev: BufferEvent, _name: str | None, _context: TLSContext) -> None:
        for one in (under, bev, top.bev):
            one.trigger(EV_READ | EV_WRITE, BEV_TRIG_IGNORE_WATERMARKS)
            one.setwatermark(EV_READ, 0, 10_000)
            one.enable(EV_READ | EV_WRITE)
            one.flush(EV_READ | EV_WRITE)
        top.bev.write(b"hello")

    context = TLSContext.server(certs.good)
    context.sni_callback = meddle
    under = unders[0]
    top = server = Log(BufferEvent.openssl_filter(under, context), read=not on_top)
    if on_top:
        top = Log(BufferEvent.filter(server.bev))
    client = over(unders[1], certs, server=False)
    run_until(lambda: client.data == b"hello")
    client.bev.write(b"and to you")
    run_until(lambda: top.data == b"and to you")
    for one in (top.bev, server.bev, under, client.bev):
        one.close()


def test_its_input_cannot_be_changed_from_the_sni_callback(
    unders: Unders, run_until: RunUntil, certs: Certificates
) -> None:
    """Room in it would have OpenSSL read, which is in the middle of that."""
    told: list[str] = []

    def meddle(bev: BufferEvent, _name: str | None, _context: TLSContext) -> None:
        changes: list[Callable[[], object]] = [
            lambda: bev.input.drain(200),
            lambda: bev.input.prepend(b"more"),
            bev.read,
            lambda: bev.read_buffer(EvBuffer()),
        ]
        for change in changes:
            with pytest.raises(BufferError, match="handshake") as caught:
                change()
            told.append(str(caught.value))

    context = TLSContext.server(certs.good)
    context.sni_callback = meddle
    server = Log(BufferEvent.openssl_filter(unders[0], context))
    server.bev.setwatermark(EV_READ, 0, 100)
    server.bev.input.prepend(b"x" * 200)
    client = over(unders[1], certs, server=False)
    client.bev.write(b"and to you")
    run_until(lambda: len(told) == 4)
    assert server.bev.read() == b"x" * 200
    run_until(lambda: server.data == b"and to you")
    for one in (server.bev, unders[0], client.bev):
        one.close()


def test_tls_in_tls(base: EventBase, run_until: RunUntil, certs: Certificates) -> None:
    a, b = on_sockets(base)
    outer = over(a, certs, server=True), over(b, certs, server=False)
    run_until(lambda: outer[0].connected and outer[1].connected)
    inner = over(outer[0].bev, certs, server=True), over(outer[1].bev, certs, server=False)
    inner[0].bev.write(b"inside")
    inner[1].bev.write(b"insider")
    run_until(lambda: inner[0].data == b"insider" and inner[1].data == b"inside")
    inner[0].bev.close()
    inner[1].bev.close()
    assert a.closed
    assert b.closed


@pytest.mark.parametrize("when", ["before the handshake", "after it"])
def test_filters_are_put_on_tls_sockets(
    base: EventBase, run_until: RunUntil, certs: Certificates, when: str
) -> None:
    a, b = socket.socketpair()
    trusting = TLSContext.client(cafile=certs.cafile)
    server = BufferEvent.openssl_socket(base, a, TLSContext.server(certs.good))
    client = BufferEvent.openssl_socket(base, b, trusting, server_hostname="localhost")
    if when == "after it":
        run_until(lambda: server.tls and client.tls)
    owns = BEV_OPT_CLOSE_ON_FREE
    plain = (
        Log(BufferEvent.filter(server, options=owns)),
        Log(BufferEvent.filter(client, options=owns)),
    )
    data = bytes(i % 249 for i in range(300_000))
    plain[0].bev.write(data)
    plain[1].bev.write(data[::-1])
    run_until(lambda: len(plain[0].data) == len(plain[1].data) == len(data))
    assert plain[1].data == data
    assert plain[0].data == data[::-1]
    assert server.tls
    assert client.tls
    plain[1].bev.close_after_write()
    run_until(lambda: any(what & BEV_EVENT_EOF for what in plain[0].events))
    assert server.tls_error is None
    plain[0].bev.close()
    assert server.closed


def test_a_base_that_is_closed_closes_them_at_each_stage(certs: Certificates) -> None:
    for rounds in range(8):
        with EventBase() as base:
            a, b = on_sockets(base)
            fd = a.fd
            over(a, certs, server=True)
            over(b, certs, server=False).bev.write(b"hello")
            few_rounds(base, rounds)
        assert not is_open(fd)


def test_threadsafe_is_refused(base: EventBase, certs: Certificates) -> None:
    under = BufferEvent.socket(base)
    context = TLSContext.server(certs.good)
    with pytest.raises(ValueError, match="THREADSAFE"):
        BufferEvent.openssl_filter(under, context, options=BEV_OPT_THREADSAFE)
    with pytest.raises(TypeError, match="must be a BufferEvent"):
        BufferEvent.openssl_filter(None, context)  # type: ignore[arg-type]
    filtered = BufferEvent.openssl_filter(under, context)
    with pytest.raises(RuntimeError, match="filter is on top"):
        BufferEvent.openssl_filter(under, context)
    filtered.close()
    under.close()
