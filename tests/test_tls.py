"""TLS bufferevents, against the standard library's ssl."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import few_rounds, is_open
from conftest import RunUntil
from tls import Certificates, Log, Peer

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_EVENT_READING,
    BEV_EVENT_TIMEOUT,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    EV_READ,
    EV_WRITE,
    EVLOOP_NO_EXIT_ON_EMPTY,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    BufferEventFlags,
    ClosedError,
    EventBase,
    Listener,
    Timer,
    TokenBucketConfig,
)

pytest.importorskip("pylibevent._libevent_ssl", reason="built without OpenSSL")

from pylibevent.bufferevent_ssl import TLSConnection, TLSContext, TLSSession

Sockets = tuple[socket.socket, socket.socket]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=VERSIONS, ids=["TLS 1.2", "TLS 1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    found: ssl.TLSVersion = request.param
    return found


def server_on(
    base: EventBase, sock: socket.socket, certs: Certificates, context: TLSContext | None = None
) -> Log:
    context = context or TLSContext.server(certs.good)
    return Log(BufferEvent.openssl_socket(base, sock, context, server_side=True))


def client_on(
    base: EventBase,
    sock: socket.socket,
    certs: Certificates,
    context: TLSContext | None = None,
    host: str = "localhost",
) -> Log:
    context = context or TLSContext.client(cafile=certs.cafile)
    return Log(BufferEvent.openssl_socket(base, sock, context, server_hostname=host))


def connect_by_ssl(certs: Certificates, sock: socket.socket) -> ssl.SSLSocket:
    return certs.for_client().wrap_socket(sock, server_hostname="localhost")


def accept_by_ssl(
    sock: socket.socket, certs: Certificates, cert: Path | None = None
) -> ssl.SSLSocket:
    return certs.for_server(cert).wrap_socket(sock, server_side=True)


def everything_from(sock: ssl.SSLSocket) -> bytes:
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


# ---- talking ----


def test_a_server_talks_with_a_client_of_the_standard_library(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    version: ssl.TLSVersion,
) -> None:
    context = TLSContext.server(certs.good)
    context.maximum_version = version
    log = server_on(base, sockets[0], certs, context)

    def talk(sock: socket.socket) -> tuple[str | None, bytes]:
        with connect_by_ssl(certs, sock) as tls:
            tls.sendall(b"hello")
            return tls.version(), tls.recv(100)

    peer = Peer(base, sockets[1], talk)
    run_until(lambda: log.data == b"hello")
    log.bev.write(b"and hello to you")
    run_until(lambda: peer.over)
    assert peer.error is None
    assert peer.result == (version.name.replace("_", "."), b"and hello to you")
    assert log.bev.tls
    assert log.bev.tls.version == version.name.replace("_", ".")
    log.bev.close()


def test_a_client_talks_with_a_server_of_the_standard_library(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    version: ssl.TLSVersion,
) -> None:
    def talk(sock: socket.socket) -> bytes:
        with accept_by_ssl(sock, certs) as tls:
            tls.sendall(b"welcome")
            return tls.recv(100)

    context = TLSContext.client(cafile=certs.cafile)
    context.maximum_version = version
    log = client_on(base, sockets[0], certs, context)
    log.bev.write(b"written before the handshake")
    peer = Peer(base, sockets[1], talk)
    run_until(lambda: peer.over and log.data)
    assert (peer.error, peer.result) == (None, b"written before the handshake")
    assert log.data == b"welcome"
    assert log.events[0] == BEV_EVENT_CONNECTED
    log.bev.close()


def test_both_sides_are_ours(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    version: ssl.TLSVersion,
) -> None:
    context = TLSContext.server(certs.good)
    context.minimum_version = context.maximum_version = version
    assert context.minimum_version == context.maximum_version == version
    server, client = server_on(base, sockets[0], certs, context), client_on(base, sockets[1], certs)
    server.bev.write(b"from the server")
    client.bev.write(b"from the client")
    run_until(lambda: server.data and client.data)
    assert server.data == b"from the client"
    assert client.data == b"from the server"
    server.bev.close()
    client.bev.close()


def test_a_client_connects_by_itself_and_is_accepted(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    context = TLSContext.server(certs.good)
    servers: list[Log] = []

    def accepted(_listener: Listener, fd: int, _address: object) -> None:
        servers.append(Log(BufferEvent.openssl_socket(base, fd, context)))

    with Listener.bind(base, accepted, ("127.0.0.1", 0)) as listener:
        trusting = TLSContext.client(cafile=certs.cafile)
        log = Log(BufferEvent.openssl_socket(base, None, trusting, server_hostname="127.0.0.1"))
        assert log.bev.fd == -1
        log.bev.connect(listener.address)
        log.bev.write(b"hello")
        run_until(lambda: servers and servers[0].data == b"hello")
        assert log.connected
        fds = [log.bev.fd, servers[0].bev.fd]
        log.bev.close()
        servers[0].bev.close()
        assert not any(map(is_open, fds))


def test_a_connect_that_is_refused_has_an_errno_and_no_tls_error(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        trusting = TLSContext.client(cafile=certs.cafile)
        log = Log(BufferEvent.openssl_socket(base, None, trusting, server_hostname="localhost"))
        log.bev.connect(nobody.getsockname())
        run_until(lambda: log.events)
    assert log.events[0] & BEV_EVENT_ERROR
    assert isinstance(log.bev.error, ConnectionRefusedError)
    assert log.bev.tls_error is None
    log.bev.close()


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("garbage", [b"", b"nonsense"])
def test_output_that_cannot_go_any_more_does_not_keep_the_loop_busy(
    base: EventBase,
    run_until: RunUntil,
    certs: Certificates,
    dirty: bool,
    garbage: bytes,
) -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(base, theirs, lambda sock: connect_by_ssl(certs, sock).detach())
    log = server_on(base, ours, certs)
    log.bev.allow_dirty_shutdown = dirty
    run_until(lambda: peer.over and log.connected)
    with socket.socket(fileno=peer.result) as sock:
        sock.sendall(garbage)
    log.bev.write(bytes(1_000_000))
    run_until(lambda: len(log.events) > 1)
    log.bev.write(b"and more")
    for _ in range(10):
        base.loop(EVLOOP_NONBLOCK)
    events = len(log.events)
    over: list[bool] = []
    Timer(base, over.append, True).add(0.01)
    rounds = 0
    while not over:
        base.loop(EVLOOP_ONCE)
        rounds += 1
    assert rounds < 10
    assert len(log.events) == events
    log.bev.close()


# ---- what is known of a connection ----


def test_an_event_that_the_program_triggers_is_no_handshake(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    client, server = client_on(base, sockets[0], certs), server_on(base, sockets[1], certs)
    run_until(lambda: client.connected and server.connected)
    ours, theirs = socket.socketpair()
    other = client_on(base, ours, certs)
    other.bev.trigger_event(BEV_EVENT_CONNECTED)
    run_until(lambda: other.connected)
    assert other.bev.tls is None
    client.bev.write(b"hello")
    run_until(lambda: server.data == b"hello")
    for log in (client, server, other):
        log.bev.close()
    theirs.close()


def test_tls_tells_what_was_agreed_on(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    context, trusting = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    context.set_alpn_protocols(["h2", "http/1.1"])
    trusting.set_alpn_protocols(["spdy", "http/1.1", "h2"])
    server = server_on(base, sockets[0], certs, context)
    client = client_on(base, sockets[1], certs, trusting)
    assert client.bev.tls is None
    run_until(lambda: server.connected and client.connected)
    tls, other = client.bev.tls, server.bev.tls
    assert isinstance(tls, TLSConnection)
    assert other
    assert tls.version == other.version == "TLSv1.3"
    assert tls.cipher == other.cipher
    assert tls.cipher
    assert tls.cipher[1:] == ("TLSv1.3", 256)
    assert tls.selected_alpn_protocol == other.selected_alpn_protocol == "h2"
    assert tls.server_hostname == other.server_hostname == "localhost"
    assert other.peer_certificate is None
    pem = certs.good.read_text()
    first = pem[pem.index("-----BEGIN CERTIFICATE") :].split("-----END CERTIFICATE-----")[0]
    assert tls.peer_certificate == ssl.PEM_cert_to_DER_cert(first + "-----END CERTIFICATE-----\n")
    assert tls.context is trusting
    assert not tls.session_reused
    assert "TLSv1.3" in repr(tls)
    server.bev.close()
    client.bev.close()
    assert tls.version == "TLSv1.3"  # as long as somebody has it


def test_without_a_common_protocol_the_server_goes_on_without_one(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    context, trusting = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    context.set_alpn_protocols(["h2"])
    trusting.set_alpn_protocols(["smtp"])
    server = server_on(base, sockets[0], certs, context)
    client = client_on(base, sockets[1], certs, trusting)
    run_until(lambda: server.connected and client.connected)
    assert client.bev.tls
    assert client.bev.tls.selected_alpn_protocol is None
    server.bev.close()
    client.bev.close()


def test_a_server_asks_for_a_client_certificate(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    context, trusting = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    context.load_verify_locations(cafile=certs.cafile)
    context.verify_mode = ssl.CERT_REQUIRED
    trusting.load_cert_chain(certs.client)
    server = server_on(base, sockets[0], certs, context)
    client = client_on(base, sockets[1], certs, trusting)
    run_until(lambda: server.connected and client.connected)
    assert server.bev.tls
    assert server.bev.tls.peer_certificate
    server.bev.close()
    client.bev.close()


def test_a_client_without_the_certificate_that_is_asked_for_is_refused(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    context = TLSContext.server(certs.good)
    context.verify_mode = ssl.CERT_REQUIRED
    server, client = server_on(base, sockets[0], certs, context), client_on(base, sockets[1], certs)
    run_until(lambda: server.events and any(e & BEV_EVENT_ERROR for e in client.events))
    assert "peer did not return a certificate" in str(server.bev.tls_error)
    assert "certificate required" in str(client.bev.tls_error)
    server.bev.close()
    client.bev.close()


# ---- what fails ----


def failed_handshake(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    cert: Path,
    host: str = "localhost",
) -> BufferEvent:
    log = client_on(base, sockets[0], certs, host=host)
    peer = Peer(base, sockets[1], lambda sock: accept_by_ssl(sock, certs, cert))
    run_until(lambda: peer.over and log.events)
    assert isinstance(peer.error, ssl.SSLError)  # it was told, too
    assert log.events[0] == BEV_EVENT_ERROR | BEV_EVENT_READING
    assert log.bev.tls is None
    log.bev.close()
    return log.bev  # the error is still there


@pytest.mark.parametrize(
    ("name", "host", "code", "text"),
    [
        ("expired", "localhost", 10, "certificate has expired"),
        ("other", "localhost", 62, "hostname mismatch"),
        ("other", "127.0.0.1", 64, "IP address mismatch"),
        ("unknown", "localhost", 20, "unable to get local issuer certificate"),
    ],
)
def test_a_certificate_that_does_not_do_is_an_error_that_says_why(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    name: str,
    host: str,
    code: int,
    text: str,
) -> None:
    cert: Path = getattr(certs, name)
    error = failed_handshake(base, run_until, sockets, certs, cert, host).tls_error
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert error.verify_code == code
    assert text.lower() in error.verify_message.lower()
    assert text.lower() in str(error).lower()
    assert error.reason == "CERTIFICATE_VERIFY_FAILED"


def test_a_self_signed_certificate_is_refused(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates, tmp_path: Path
) -> None:
    made = tmp_path / "self.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 1 -keyout"
    subprocess.run([*command.split(), str(made), "-out", str(made) + ".c"], check=True, stderr=-3)
    made.write_text(made.read_text() + Path(f"{made}.c").read_text())
    error = failed_handshake(base, run_until, sockets, certs, made).tls_error
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert "self" in error.verify_message
    assert "signed certificate" in error.verify_message


def test_unless_told_otherwise_only_whom_the_system_trusts_is_trusted(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    server = server_on(base, sockets[0], certs)
    trusting = TLSContext.client()
    assert (trusting.verify_mode, trusting.check_hostname) == (ssl.CERT_REQUIRED, True)
    client = client_on(base, sockets[1], certs, trusting)
    run_until(lambda: client.events and server.events)
    assert isinstance(client.bev.tls_error, ssl.SSLCertVerificationError)
    assert isinstance(server.bev.tls_error, ssl.SSLError)
    assert "unknown ca" in str(server.bev.tls_error)
    server.bev.close()
    client.bev.close()


def test_the_systems_store_is_openssls(certs: Certificates) -> None:
    """SSL_CERT_FILE names another one, for the whole process."""
    code = f"""
        import socket, ssl
        from pylibevent import BufferEvent, EventBase, TLSContext
        base = EventBase()
        a, b = socket.socketpair()
        new = BufferEvent.openssl_socket
        server = new(base, a, TLSContext.server({str(certs.good)!r}))
        client = new(base, b, TLSContext.client(), server_hostname="localhost")
        client.setcb(event=lambda bev, what: (print(repr(what)), base.loopbreak()))
        base.loopexit(10)
        base.dispatch()
        base.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "SSL_CERT_FILE": str(certs.cafile)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "CONNECTED" in done.stdout


def test_a_client_that_is_told_not_to_verify_takes_anybody(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    careless = TLSContext.client()
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    server = server_on(base, sockets[0], certs, TLSContext.server(certs.expired))
    client = Log(BufferEvent.openssl_socket(base, sockets[1], careless))
    run_until(lambda: client.connected and server.connected)
    server.bev.close()
    client.bev.close()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\0" * 50, b"\x16\x03\x01\xff\xff"]
)
def test_garbage_instead_of_a_client_hello_is_an_error(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates, garbage: bytes
) -> None:
    log = server_on(base, sockets[0], certs)
    sockets[1].send(garbage)
    run_until(lambda: log.events)
    assert log.events == [BEV_EVENT_ERROR | BEV_EVENT_READING]
    assert isinstance(log.bev.tls_error, ssl.SSLError)
    assert log.bev.tls_error.reason
    assert log.bev.tls is None
    log.bev.close()


@pytest.mark.parametrize("dirty", [False, True])
def test_a_peer_that_goes_before_the_handshake_is_an_error(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates, dirty: bool
) -> None:
    log = server_on(base, sockets[0], certs)
    log.bev.allow_dirty_shutdown = dirty
    sockets[1].close()
    run_until(lambda: log.events)
    assert log.events == [BEV_EVENT_ERROR | BEV_EVENT_READING]
    assert isinstance(log.bev.tls_error, ssl.SSLEOFError)
    log.bev.close()


def test_a_handshake_that_stalls_times_out(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    log = server_on(base, sockets[0], certs)
    log.bev.set_timeouts(read=0.05)
    run_until(lambda: log.events)
    assert log.events == [BEV_EVENT_TIMEOUT]
    log.bev.close()


@pytest.mark.parametrize("disabled", [EV_READ, EV_WRITE, EV_READ | EV_WRITE])
def test_disabling_does_not_stall_the_handshake(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates, disabled: int
) -> None:
    server = server_on(base, sockets[0], certs)
    server.bev.write(b"written")
    few_rounds(base)  # it waits for the client
    server.bev.disable(disabled)
    client = client_on(base, sockets[1], certs)
    client.bev.write(b"hello")
    run_until(lambda: server.connected and client.connected)
    few_rounds(base)
    assert (server.data == b"") == bool(disabled & EV_READ)
    assert (client.data == b"") == bool(disabled & EV_WRITE)
    server.bev.enable(disabled)
    run_until(lambda: server.data == b"hello" and client.data == b"written")
    server.bev.close()
    client.bev.close()


# ---- the end ----


def test_close_after_write_sends_it_all_and_a_close_notify(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    version: ssl.TLSVersion,
) -> None:
    def read(sock: socket.socket) -> int:
        context = certs.for_client()
        context.maximum_version = version
        with context.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as tls:
            return len(everything_from(tls))

    log = server_on(base, sockets[0], certs)
    log.bev.write(bytes(1_000_000))
    log.bev.close_after_write()
    peer = Peer(base, sockets[1], read)
    run_until(lambda: peer.over and log.bev.closed)
    assert (peer.error, peer.result) == (None, 1_000_000)


def test_close_after_write_with_nothing_to_write_sends_a_close_notify(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    server, client = server_on(base, sockets[0], certs), client_on(base, sockets[1], certs)
    run_until(lambda: server.connected and client.connected)
    server.bev.close_after_write()
    run_until(lambda: len(client.events) > 1)
    assert client.events[1] == BEV_EVENT_EOF | BEV_EVENT_READING
    assert client.bev.tls_error is None
    client.bev.close()
    run_until(lambda: server.bev.closed)


def test_close_after_write_in_a_handshake_with_nothing_to_write_closes_at_once(
    base: EventBase, sockets: Sockets, certs: Certificates
) -> None:
    log = server_on(base, sockets[0], certs)
    few_rounds(base)
    log.bev.close_after_write()
    assert log.bev.closed


def test_close_after_write_gives_a_stalled_handshake_up(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    log = server_on(base, sockets[0], certs)
    log.bev.write(b"for nobody")
    log.bev.close_after_write(0.05)
    assert not log.bev.closed
    run_until(lambda: log.bev.closed)


def test_the_close_notify_waits_for_a_peer_that_does_not_read(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server, client = server_on(base, sockets[0], certs), client_on(base, sockets[1], certs)
    run_until(lambda: server.connected and client.connected)
    client.bev.disable(EV_READ)
    server.bev.write(bytes(300_000))
    server.bev.close_after_write()
    few_rounds(base)
    assert not server.bev.closed
    client.bev.enable(EV_READ)
    run_until(lambda: len(client.events) > 1)
    assert client.events[1] == BEV_EVENT_EOF | BEV_EVENT_READING
    assert len(client.data) == 300_000
    client.bev.close()
    run_until(lambda: server.bev.closed)


@pytest.mark.parametrize("dirty", [False, True])
def test_an_end_without_a_close_notify_is_an_error_unless_it_is_allowed(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    version: ssl.TLSVersion,
    dirty: bool,
) -> None:
    def cut(sock: socket.socket) -> None:
        context = certs.for_client()
        context.maximum_version = version
        with context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.recv(1)  # nothing is unread: that would be a reset
            tls.sendall(b"half a")  # the with statement sends no close_notify

    log = server_on(base, sockets[0], certs)
    assert not log.bev.allow_dirty_shutdown
    log.bev.allow_dirty_shutdown = dirty
    assert log.bev.allow_dirty_shutdown == dirty
    log.bev.write(b"x")
    peer = Peer(base, sockets[1], cut)
    run_until(lambda: peer.over and len(log.events) > 1)
    assert log.data == b"half a"
    end = BEV_EVENT_EOF if dirty else BEV_EVENT_ERROR
    assert log.events[1] == end | BEV_EVENT_READING
    assert isinstance(log.bev.tls_error, ssl.SSLEOFError) == (not dirty)
    log.bev.close()


def test_a_close_notify_is_a_clean_end(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    def say_goodbye(sock: socket.socket) -> None:
        tls = connect_by_ssl(certs, sock)
        tls.sendall(b"all")
        tls.unwrap().close()

    log = server_on(base, sockets[0], certs)
    peer = Peer(base, sockets[1], say_goodbye)
    run_until(lambda: len(log.events) > 1)
    assert log.events[1] == BEV_EVENT_EOF | BEV_EVENT_READING
    assert log.bev.tls_error is None
    log.bev.close_after_write()
    run_until(lambda: peer.over and log.bev.closed)
    assert peer.error is None


@pytest.mark.parametrize("options", [0, BEV_OPT_DEFER_CALLBACKS, BEV_OPT_THREADSAFE])
@pytest.mark.parametrize("when", ["connected", "read", "write", "eof", "buffer"])
def test_it_may_be_closed_in_each_callback(
    base: EventBase,
    run_until: RunUntil,
    sockets: Sockets,
    certs: Certificates,
    when: str,
    options: int,
) -> None:
    called: list[str] = []

    def close(name: str) -> None:
        if name == when and not bev.closed:
            called.append(name)
            bev.close()
            assert not is_open(fd)

    def on_event(_bev: BufferEvent, what: BufferEventFlags) -> None:
        close("connected" if what & BEV_EVENT_CONNECTED else "eof")

    context = TLSContext.server(certs.good)
    bev = BufferEvent.openssl_socket(base, sockets[0], context, options=options)
    fd = bev.fd

    def on_read(bev: BufferEvent) -> None:
        bev.read()
        close("read")

    bev.setcb(on_read, lambda _: close("write"), on_event)
    if when == "buffer":
        bev.input.add_cb(lambda *_: close("buffer"))
    bev.enable(EV_READ)
    bev.write(b"something")
    client = client_on(base, sockets[1], certs)
    client.bev.write(bytes(100_000))
    run_until(lambda: client.data or client.connected)
    client.bev.close_after_write()
    run_until(lambda: called)
    few_rounds(base)
    assert called == [when]
    assert bev.closed
    with pytest.raises(ClosedError):
        bev.write(b"more")
    client.bev.close()


def test_a_base_that_is_closed_closes_them_at_each_stage(certs: Certificates) -> None:
    for rounds in range(8):
        with EventBase() as base:
            a, b = socket.socketpair()
            fd = a.fileno()
            server_on(base, a, certs)
            client_on(base, b, certs).bev.write(b"hello")
            few_rounds(base, rounds)
        assert not is_open(fd)


def test_a_socket_that_is_not_taken_over_is_left_open(
    base: EventBase, sockets: Sockets, certs: Certificates
) -> None:
    context = TLSContext.server(certs.good)
    bev = BufferEvent.openssl_socket(base, sockets[0].fileno(), context, options=0)
    few_rounds(base)
    bev.close()
    assert is_open(sockets[0].fileno())


# ---- what the arguments are ----


def test_arguments_that_do_not_fit_are_errors(
    base: EventBase, sockets: Sockets, certs: Certificates
) -> None:
    server, client = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    new = BufferEvent.openssl_socket
    with pytest.raises(ValueError, match="check_hostname needs a server_hostname"):
        new(base, None, client)
    with pytest.raises(ValueError, match="a server needs a server's context"):
        new(base, None, client, server_side=True, server_hostname="localhost")
    with pytest.raises(ValueError, match="for clients"):
        new(base, None, server, server_hostname="localhost")
    with pytest.raises(TypeError, match="must be a TLSContext"):
        new(base, None, ssl.create_default_context())  # type: ignore[arg-type]
    for host in ("", ".example", "a\0b"):
        with pytest.raises(ValueError, match="server_hostname"):
            new(base, None, client, server_hostname=host)
    with pytest.raises(ValueError, match="needs BEV_OPT_DEFER_CALLBACKS"):
        new(base, None, server, options=BEV_OPT_UNLOCK_CALLBACKS)
    bev = new(base, None, server)
    with pytest.raises(ValueError, match="bufferevent_setfd"):
        bev.fd = sockets[0].fileno()
    bev.close()


def test_what_is_not_tls_has_none_of_it(base: EventBase) -> None:
    bev = BufferEvent.socket(base)
    assert (bev.tls, bev.tls_error, bev.allow_dirty_shutdown) == (None, None, False)
    with pytest.raises(ValueError, match="for TLS"):
        bev.allow_dirty_shutdown = True
    bev.close()


# ---- contexts ----


def test_a_private_key_with_a_password(certs: Certificates, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", certs.good, "-out", key]
        if "RSA" in certs.good.read_text()
        else [
            "openssl",
            "pkey",
            "-aes128",
            "-passout",
            "pass:secret",
            "-in",
            certs.good,
            "-out",
            key,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    for password in ("secret", b"secret", bytearray(b"secret"), lambda: "secret"):
        assert TLSContext.server(certs.good, key, password).server_side
    for wrong in (None, "wrong", ""):
        with pytest.raises(ssl.SSLError):
            TLSContext.server(certs.good, key, wrong)
    with pytest.raises(TypeError):
        TLSContext.server(certs.good, key, 5)  # type: ignore[arg-type]


def test_files_that_are_missing_or_wrong_say_so(certs: Certificates, tmp_path: Path) -> None:
    context = TLSContext(server_side=True)
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        context.load_cert_chain(tmp_path / "none.pem")
    with pytest.raises(FileNotFoundError):
        context.load_verify_locations(tmp_path / "none.pem")
    with pytest.raises(ssl.SSLError, match="key values mismatch") as caught:
        context.load_cert_chain(certs.good, certs.other)
    assert (caught.value.library, caught.value.reason) == ("X509", "KEY_VALUES_MISMATCH")
    with pytest.raises(ssl.SSLError, match="no start line"):
        context.load_cert_chain(Path(__file__))
    with pytest.raises(ssl.SSLError):
        context.load_verify_locations(Path(__file__))


def test_authorities_from_memory(base: EventBase, run_until: RunUntil, certs: Certificates) -> None:
    pem = certs.cafile.read_text()
    for cadata in (pem, pem + pem, ssl.PEM_cert_to_DER_cert(pem)):
        a, b = socket.socketpair()
        server = server_on(base, a, certs)
        context = TLSContext.client(cadata=cadata)
        client = client_on(base, b, certs, context)
        run_until(lambda: client.events)  # noqa: B023  # used in this round only
        assert client.connected
        server.bev.close()
        client.bev.close()
    for wrong in (
        "",
        b"",
        "no certificate",
        b"\x30\x03abc",
        pem + "-----BEGIN CERTIFICATE-----\nx",
    ):
        with pytest.raises(ssl.SSLError):
            TLSContext.client(cadata=wrong)
    with pytest.raises(TypeError, match="cannot be all omitted"):
        TLSContext(server_side=False).load_verify_locations()


def test_what_is_verified_fits_together() -> None:
    context = TLSContext(server_side=False)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    context.check_hostname = True
    assert context.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(ValueError, match="check_hostname"):
        context.verify_mode = ssl.CERT_NONE
    context.verify_mode = ssl.CERT_OPTIONAL
    assert context.verify_mode == ssl.CERT_OPTIONAL
    with pytest.raises(ValueError, match="for clients"):
        TLSContext(server_side=True).check_hostname = True


def test_versions_from_tls_1_2_on() -> None:
    context = TLSContext(server_side=False)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    with pytest.raises(ValueError, match=r"TLSv1_2 or TLSv1_3"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ValueError, match=r"TLSv1_2 or TLSv1_3"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1


def test_versions_that_have_none_in_common_fail(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    context, trusting = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    server = server_on(base, sockets[0], certs, context)
    client = client_on(base, sockets[1], certs, trusting)
    run_until(lambda: server.events and client.events)
    assert "unsupported protocol" in str(server.bev.tls_error)
    assert "protocol version" in str(client.bev.tls_error)
    server.bev.close()
    client.bev.close()


def test_ciphers_are_chosen(
    base: EventBase, run_until: RunUntil, certs: Certificates, version: ssl.TLSVersion
) -> None:
    context = TLSContext.server(certs.good)
    context.maximum_version = version
    context.set_ciphers("ECDHE+AES128+AESGCM")
    context.set_ciphersuites("TLS_AES_128_GCM_SHA256")
    a, b = socket.socketpair()
    server, client = server_on(base, a, certs, context), client_on(base, b, certs)
    run_until(lambda: server.connected and client.connected)
    assert client.bev.tls
    assert client.bev.tls.cipher
    assert client.bev.tls.cipher[2] == 128
    server.bev.close()
    client.bev.close()
    with pytest.raises(ssl.SSLError, match="no cipher match"):
        context.set_ciphers("NOSUCH")
    with pytest.raises(ssl.SSLError):
        context.set_ciphersuites("NOSUCH")


@pytest.fixture(autouse=True)
def _one_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# ---- SNI ----


def named(
    base: EventBase, certs: Certificates, function: object
) -> tuple[Log, Log, list[tuple[BufferEvent, str | None, TLSContext]]]:
    """A server whose SNI callback answers with what function() does, and a client."""
    called: list[tuple[BufferEvent, str | None, TLSContext]] = []

    def choose(bev: BufferEvent, name: str | None, context: TLSContext) -> TLSContext | int | None:
        called.append((bev, name, context))
        return function() if callable(function) else function  # type: ignore[return-value]

    context = TLSContext.server(certs.other)
    context.sni_callback = choose
    assert context.sni_callback is choose
    a, b = socket.socketpair()
    return server_on(base, a, certs, context), client_on(base, b, certs), called


def test_the_sni_callback_chooses_the_context(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    chosen = TLSContext.server(certs.good)
    server, client, called = named(base, certs, chosen)
    first = server.bev._tls.context if server.bev._tls else None
    run_until(lambda: client.events and server.connected)
    assert client.connected
    assert called == [(server.bev, "localhost", first)]
    assert server.bev.tls
    assert server.bev.tls.context is chosen
    server.bev.close()
    client.bev.close()


def test_the_sni_callback_may_leave_it_as_it_is(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client, called = named(base, certs, None)
    run_until(lambda: client.events and server.events)
    assert len(called) == 1
    assert "hostname mismatch" in str(client.bev.tls_error).lower()
    server.bev.close()
    client.bev.close()


def test_the_sni_callback_may_refuse_with_an_alert(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    alert = ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    server, client, _called = named(base, certs, alert)
    run_until(lambda: client.events and server.events)
    assert "unrecognized name" in str(client.bev.tls_error)
    assert isinstance(server.bev.tls_error, ssl.SSLError)
    server.bev.close()
    client.bev.close()


def test_what_the_sni_callback_raises_leaves_the_loop_and_fails_the_handshake(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    def fail() -> None:
        raise KeyError("no such host")

    server, client, _called = named(base, certs, fail)
    with pytest.raises(KeyError, match="no such host"):
        run_until(lambda: client.events)
    run_until(lambda: client.events and server.events)
    assert "internal error" in str(client.bev.tls_error)
    server.bev.close()
    client.bev.close()


@pytest.mark.parametrize("wrong", [TLSContext.client, lambda: 256, lambda: "localhost"])
def test_an_answer_of_the_sni_callback_that_makes_no_sense_is_an_error(
    base: EventBase, run_until: RunUntil, certs: Certificates, wrong: object
) -> None:
    server, client, _called = named(base, certs, wrong)
    with pytest.raises((TypeError, ValueError)):
        run_until(lambda: client.events)
    run_until(lambda: client.events)
    server.bev.close()
    client.bev.close()


def test_it_may_be_closed_in_the_sni_callback(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    def close() -> None:
        server.bev.close()

    server, client, _called = named(base, certs, close)
    run_until(lambda: client.events)
    assert server.bev.closed
    assert server.events == []
    client.bev.close()


def test_a_client_that_names_no_host_calls_the_sni_callback_with_none(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    names: list[str | None] = []
    context = TLSContext.server(certs.good)
    context.sni_callback = lambda _bev, name, _context: names.append(name)
    server = server_on(base, sockets[0], certs, context)
    client = client_on(base, sockets[1], certs, host="127.0.0.1")
    run_until(lambda: server.connected and client.connected)
    assert names == [None]
    server.bev.close()
    client.bev.close()


# ---- sessions ----


def test_a_session_is_resumed(
    base: EventBase, run_until: RunUntil, certs: Certificates, version: ssl.TLSVersion
) -> None:
    context, trusting = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    context.maximum_version = version
    session: TLSSession | None = None
    reused = []
    for _ in range(3):
        a, b = socket.socketpair()
        server = server_on(base, a, certs, context)
        bev = BufferEvent.openssl_socket(
            base, b, trusting, server_hostname="localhost", session=session
        )
        client = Log(bev)
        server.bev.write(b"behind the ticket")
        run_until(lambda: client.data)  # noqa: B023  # used in this round only
        assert bev.tls
        session = bev.tls.session
        assert session
        assert session.resumable
        reused.append(bev.tls.session_reused)
        client.bev.close_after_write()
        server.bev.close()
    assert reused == [False, True, True]
    other = TLSContext.client(cafile=certs.cafile)
    with pytest.raises(ValueError, match="of another context"):
        BufferEvent.openssl_socket(base, None, other, server_hostname="localhost", session=session)


def test_without_tickets_tls_1_3_resumes_nothing(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    context = TLSContext.server(certs.good)
    assert context.num_tickets == 2
    context.num_tickets = 0
    server, client = server_on(base, sockets[0], certs, context), client_on(base, sockets[1], certs)
    server.bev.write(b"no ticket before this")
    run_until(lambda: client.data)
    assert client.bev.tls
    assert client.bev.tls.session
    assert not client.bev.tls.session.resumable
    server.bev.close()
    client.bev.close()
    with pytest.raises(ValueError, match="for servers"):
        TLSContext(server_side=False).num_tickets = 1
    with pytest.raises(ValueError, match="from 0 to 255"):
        context.num_tickets = 256


def test_the_keys_are_logged_where_keylog_filename_says(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    context = TLSContext.server(certs.good)
    context.keylog_filename = str(first)
    context.keylog_filename = str(second)
    assert context.keylog_filename == str(second)
    server, client = server_on(base, sockets[0], certs, context), client_on(base, sockets[1], certs)
    del context
    run_until(lambda: server.connected and client.connected)
    server.bev.close()
    client.bev.close()
    assert first.read_text() == ""
    lines = [line.split() for line in second.read_text().splitlines()]
    assert {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"} <= {line[0] for line in lines}
    assert {len(line) for line in lines} == {3}
    few_rounds(base)  # the last connection lets go of the context and of the file


# ---- limits and sizes ----


def exchange(base: EventBase, run_until: RunUntil, certs: Certificates) -> tuple[Log, Log]:
    """A server and a client that are connected."""
    a, b = socket.socketpair()
    server, client = server_on(base, a, certs), client_on(base, b, certs)
    run_until(lambda: server.connected and client.connected)
    few_rounds(base)  # the tickets are read
    return server, client


def test_a_record_that_a_watermark_cuts_is_not_stuck(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    """All of the record is out of the kernel when the first 100 bytes have been read."""
    server, client = exchange(base, run_until, certs)
    taken = []

    def take(bev: BufferEvent) -> None:
        taken.append(bev.read(100))

    server.bev.setwatermark(EV_READ, 0, 100)
    server.bev.setcb(take)
    client.bev.write(bytes(range(250)) * 60)
    run_until(lambda: taken)
    while sum(map(len, taken)) < 15000:
        data = server.bev.read(1000)
        assert data
        taken.append(data)
        few_rounds(base)
    assert b"".join(taken) == bytes(range(250)) * 60
    server.bev.close()
    client.bev.close()


def test_the_high_watermark_bounds_what_is_read_by_two_records(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    server.bev.setcb(lambda _bev: None)
    server.bev.setwatermark(EV_READ, 0, 1000)
    client.bev.write(bytes(1_000_000))
    run_until(lambda: len(server.bev.input) >= 1000)
    few_rounds(base, 50)
    assert 1000 <= len(server.bev.input) <= 1000 + 2 * 16384
    total = 0
    while total < 1_000_000:
        run_until(lambda: len(server.bev.input))
        total += len(server.bev.read())
    server.bev.close()
    client.bev.close()


def test_the_end_is_told_after_all_that_came_before_it(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    order: list[str] = []

    def on_read(bev: BufferEvent) -> None:
        order.append(f"read {len(bev.read())}")

    server.bev.setcb(on_read, None, lambda _bev, _what: order.append("end"))
    server.bev.disable(EV_READ)
    client.bev.write(b"last words")
    client.bev.close_after_write()
    run_until(lambda: client.bev.closed)
    server.bev.enable(EV_READ)
    run_until(lambda: "end" in order)
    assert order == ["read 10", "end"]
    server.bev.close()


def test_reading_one_byte_at_a_time(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    data = bytearray()

    def one(bev: BufferEvent) -> None:
        data.extend(bev.read(1))

    server.bev.setcb(one)
    server.bev.setwatermark(EV_READ, 0, 1)
    for letter in b"one byte in each record":
        client.bev.write(bytes([letter]))
    client.bev.write(b" and several in this one")
    run_until(lambda: len(data) + len(server.bev.input) == 47)
    assert data + server.bev.read() == b"one byte in each record and several in this one"
    server.bev.close()
    client.bev.close()


def test_a_peer_that_sends_its_bytes_one_by_one(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates
) -> None:
    """Of the handshake, too."""

    def trickle(sock: socket.socket) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = certs.for_client().wrap_bio(incoming, outgoing, server_hostname="localhost")

        def send() -> None:
            for byte in outgoing.read():
                sock.send(bytes([byte]))

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                send()
                incoming.write(sock.recv(65536))
        tls.write(b"slowly")
        send()
        while True:
            try:
                return tls.read(100)
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))

    log = server_on(base, sockets[0], certs)
    peer = Peer(base, sockets[1], trickle)
    run_until(lambda: log.data == b"slowly")
    log.bev.write(b"all of it")
    run_until(lambda: peer.over)
    assert (peer.error, peer.result) == (None, b"all of it")
    log.bev.close()


@pytest.mark.parametrize("reads", [True, False])
def test_what_comes_along_with_the_end_of_the_handshake_is_not_stuck(
    base: EventBase, run_until: RunUntil, sockets: Sockets, certs: Certificates, reads: bool
) -> None:
    def talk(sock: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = certs.for_client().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        sock.sendall(outgoing.read())
        while tls.version() is None or outgoing.pending == 0:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
        tls.write(b"along with it")
        sock.sendall(outgoing.read())  # in one piece
        assert sock.recv(1)  # a ticket: the handshake is over

    log = server_on(base, sockets[0], certs)
    if not reads:
        log.bev.disable(EV_READ)
    peer = Peer(base, sockets[1], talk)
    run_until(lambda: log.connected)
    few_rounds(base)
    if not reads:
        assert log.data == b""
        log.bev.enable(EV_READ)
    few_rounds(base)
    assert log.data == b"along with it"
    run_until(lambda: peer.over)
    assert peer.error is None
    log.bev.close()


def test_what_is_disabled_in_its_callback_gets_the_rest_of_the_record_later(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    taken = []

    def take(bev: BufferEvent) -> None:
        taken.append(len(bev.read()))
        bev.disable(EV_READ)

    server.bev.setwatermark(EV_READ, 0, 100)
    server.bev.setcb(take)
    client.bev.write(bytes(10_000))
    run_until(lambda: taken)
    few_rounds(base)
    assert len(taken) == 1
    while sum(taken) < 10_000:
        n = len(taken)
        server.bev.enable(EV_READ)
        run_until(lambda: len(taken) > n)  # noqa: B023  # used in this round only
    server.bev.close()
    client.bev.close()


def test_a_view_of_the_input_holds_reading_back(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    server.bev.setcb(None)
    client.bev.write(b"first")
    run_until(lambda: len(server.bev.input) == 5)
    views = server.bev.input.peek()
    client.bev.write(b"second")
    few_rounds(base)
    assert [bytes(view) for view in views] == [b"first"]
    for view in views:
        view.release()
    run_until(lambda: len(server.bev.input) == 11)
    assert server.bev.read() == b"firstsecond"
    server.bev.close()
    client.bev.close()


def test_rate_limits_count_what_goes_over_the_wire(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    server.bev.set_rate_limit(TokenBucketConfig(20_000, 20_000, 20_000, 20_000, tick=0.01))
    client.bev.write(bytes(15_000))
    run_until(lambda: len(server.data) == 15_000)
    assert server.bev.read_limit < 5_000
    client.bev.write(bytes(200_000))
    server.bev.write(bytes(200_000))
    few_rounds(base)
    assert len(server.data) < 200_000
    assert len(client.data) < 200_000
    run_until(lambda: len(server.data) == 215_000 and len(client.data) == 200_000)
    server.bev.close()
    client.bev.close()


def test_max_single_read_and_write(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)
    server.bev.max_single_read = server.bev.max_single_write = 100
    client.bev.write(bytes(50_000))
    server.bev.write(bytes(50_000))
    run_until(lambda: len(server.data) == len(client.data) == 50_000)
    server.bev.close()
    client.bev.close()


@pytest.mark.parametrize("size", [1, 4096, 16384, 16385, 1 << 20])
def test_sizes_around_those_of_records(
    base: EventBase, run_until: RunUntil, certs: Certificates, size: int
) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    server, client = exchange(base, run_until, certs)
    server.bev.write(data)
    client.bev.write(data[::-1])
    run_until(lambda: len(server.data) == len(client.data) == size)
    assert client.data == data
    assert server.data == data[::-1]
    server.bev.close()
    client.bev.close()


def test_a_file_is_sent_encrypted(
    base: EventBase, run_until: RunUntil, certs: Certificates, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    server, client = exchange(base, run_until, certs)
    with path.open("rb") as file:
        server.bev.output.add_file(file)
    run_until(lambda: len(client.data) == 256_000)
    assert client.data == path.read_bytes()
    server.bev.close()
    client.bev.close()


@pytest.mark.slow
def test_100_mb_each_way(
    base: EventBase, run_until: RunUntil, certs: Certificates, version: ssl.TLSVersion
) -> None:
    size, piece = 100_000_000, bytes(range(250)) * 1000
    context = TLSContext.server(certs.good)
    context.maximum_version = version
    a, b = socket.socketpair()
    bevs = [
        server_on(base, a, certs, context).bev,
        client_on(base, b, certs).bev,
    ]
    sent, got, wrong = [0, 0], [0, 0], []

    def more(bev: BufferEvent, which: int) -> None:
        if sent[which] < size:
            sent[which] += len(piece)
            bev.write(piece)

    def take(bev: BufferEvent, which: int) -> None:
        data = bev.read()
        start = got[which] % 250
        if data[:250] != piece[start : start + 250][: len(data)]:
            wrong.append(got[which])
        got[which] += len(data)

    for which, bev in enumerate(bevs):
        bev.setcb(take, more, None, which)
        more(bev, which)
    run_until(lambda: got == [size, size], timeout=100)
    assert wrong == []
    for bev in bevs:
        bev.close()


@pytest.mark.slow
def test_500_connections(base: EventBase, run_until: RunUntil, certs: Certificates) -> None:
    context, trusting = TLSContext.server(certs.good), TLSContext.client(cafile=certs.cafile)
    echoed: list[BufferEvent] = []

    def echo(bev: BufferEvent) -> None:
        bev.write_buffer(bev.input)

    def ended(bev: BufferEvent, what: BufferEventFlags) -> None:
        if not what & BEV_EVENT_CONNECTED:
            bev.close()

    def accepted(_listener: Listener, fd: int, _address: object) -> None:
        bev = BufferEvent.openssl_socket(base, fd, context)
        bev.setcb(echo, None, ended)
        bev.enable(EV_READ)

    def answered(bev: BufferEvent, number: int) -> None:
        if len(bev.input) == 1000:
            assert bev.read() == b"%04d" % number * 250
            echoed.append(bev)
            bev.close_after_write()

    with Listener.bind(base, accepted, ("127.0.0.1", 0), backlog=512) as listener:
        for number in range(500):
            bev = BufferEvent.openssl_socket(base, None, trusting, server_hostname="localhost")
            bev.setcb(answered, None, None, number)
            bev.enable(EV_READ)
            bev.connect(listener.address)
            bev.write(b"%04d" % number * 250)
        run_until(lambda: len(echoed) == 500, timeout=60)
        run_until(lambda: not any(isinstance(o, BufferEvent) for o in base._table.values()), 20)


# ---- the openssl program ----


def test_openssl_s_client(
    base: EventBase, run_until: RunUntil, certs: Certificates, version: ssl.TLSVersion
) -> None:
    context = TLSContext.server(certs.good)
    logs: list[Log] = []
    with Listener.bind(
        base,
        lambda _listener, fd, _address: logs.append(
            Log(BufferEvent.openssl_socket(base, fd, context))
        ),
        ("127.0.0.1", 0),
    ) as listener:
        assert isinstance(listener.address, tuple)
        command = [
            "openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", str(certs.cafile),
            "-servername", "localhost", "-verify_hostname", "localhost",
            "-tls1_3" if version == ssl.TLSVersion.TLSv1_3 else "-tls1_2",
            "-connect", f"127.0.0.1:{listener.address[1]}",
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(b"from openssl\n")
            process.stdin.flush()
            run_until(lambda: logs and logs[0].data == b"from openssl\n", timeout=20)
            logs[0].bev.write(b"to openssl\n")
            logs[0].bev.close_after_write()
            run_until(lambda: logs[0].bev.closed)
            assert process.stdout.read() == b"to openssl\n"


def test_openssl_s_server(base: EventBase, run_until: RunUntil, certs: Certificates) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(certs.good)]
    command += ["-key", str(certs.good), "-rev"]
    with subprocess.Popen(
        [*command, "-key", str(certs.good), "-rev"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(b"ACCEPT"):
                break
        try:
            trusting = TLSContext.client(cafile=certs.cafile)
            bev = BufferEvent.openssl_socket(base, None, trusting, server_hostname="localhost")
            log = Log(bev)
            bev.connect(("127.0.0.1", port))
            bev.write(b"backwards\n")
            run_until(lambda: log.data == b"sdrawkcab\n", timeout=20)
            bev.close()
        finally:
            process.kill()


# ---- threads, exceptions, memory ----


def test_another_thread_writes_and_closes_a_threadsafe_one(certs: Certificates) -> None:
    context = TLSContext.server(certs.good)
    with EventBase() as base:
        for _ in range(10):
            a, b = socket.socketpair()
            bev = BufferEvent.openssl_socket(base, a, context, options=BEV_OPT_THREADSAFE)
            fd = bev.fd
            connected = threading.Event()
            bev.setcb(None, None, lambda _bev, _what: connected.set())  # noqa: B023
            bev.enable(EV_READ)
            loop = threading.Thread(target=base.loop, args=(EVLOOP_NO_EXIT_ON_EMPTY,))
            loop.start()
            b.settimeout(20)
            with connect_by_ssl(certs, b) as peer:
                assert connected.wait(20)
                bev.write(b"from the main thread")
                assert peer.recv(100) == b"from the main thread"
                peer.sendall(bytes(100_000))
                with bev.lock():
                    assert bev.tls
                    assert bev.tls.version == "TLSv1.3"
                bev.close()
                assert not is_open(fd)
            base.loopbreak()
            loop.join()


def test_an_exception_in_a_callback_costs_nothing(
    base: EventBase, run_until: RunUntil, certs: Certificates
) -> None:
    server, client = exchange(base, run_until, certs)

    def fail(_bev: BufferEvent) -> None:
        raise ZeroDivisionError

    server.bev.setcb(fail, None, server.on_event)
    client.bev.write(b"hello")
    with pytest.raises(ZeroDivisionError):
        run_until(lambda: False)
    assert server.bev.read() == b"hello"
    server.bev.setcb(server.on_read, None, server.on_event)
    client.bev.write(b"again")
    run_until(lambda: server.data == b"again")
    server.bev.close()
    client.bev.close()


def test_what_is_dropped_without_close_is_freed_with_its_base(certs: Certificates) -> None:
    contexts = [TLSContext.server(certs.good)]
    gone = weakref.ref(contexts[0])
    with EventBase() as base:
        a, b = socket.socketpair()
        server_on(base, a, certs, contexts.pop())
        client_on(base, b, certs)
        few_rounds(base)
        assert gone() is not None
    del base
    gc.collect()
    assert gone() is None
