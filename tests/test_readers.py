"""Whatever reads from a network gets bytes that nobody meant: samples changed at random, cut
anywhere, with a half close, a close or a reset at the end. What comes out is what a model in plain
Python makes of them, or an error that is documented.

READERS has a line for each reader: the samples, and a function that feeds it and looks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import ipaddress
import random
import socket
import ssl
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import FUZZ, received
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_buffer_model import EOL, take_line

from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_OPT_CLOSE_ON_FREE,
    EV_READ,
    EVBUFFER_EOL_ANY,
    EVBUFFER_EOL_CRLF,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    DnsBase,
    DnsResult,
    DnsServerPort,
    DnsServerRequest,
    EvBuffer,
    EventBase,
    LineTooLong,
    Listener,
    tag,
)

MAX_LINE = 64
ENDINGS = ["half close", "close", "reset"]

# ---- what is sent ----


def mutated(rng: random.Random, samples: list[bytes]) -> bytes:
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice([0, 1, 1, 2, 5, 20])):
        at = rng.randint(0, len(data))
        n = rng.choice([0, 1, 1, 2, 7, 100])
        match rng.randrange(6):
            case 0:
                del data[at : at + n]
            case 1:
                data[at:at] = rng.choice([b"\r", b"\n", b"\r\n", b"\0", b"\xff", b"\x80"]) * n
            case 2:
                data[at : at + n] = rng.randbytes(n)
            case 3:
                data[at:at] = data[rng.randint(0, len(data)) :][:n]
            case 4 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 5:
                data[at:] = rng.choice(samples)[rng.randint(0, 20) :]
    return bytes(data[:20_000])


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice([0, 0, 1, 3, 30])))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Peer:
    """The other end: sends in pieces, ends in one of several ways, and gets what comes back."""

    def __init__(self, base: EventBase, sock: socket.socket, rng: random.Random) -> None:
        self.base = base
        self.sock = sock
        self.rng = rng
        self.got = b""
        self.ending = rng.choice(ENDINGS)
        sock.setblocking(False)

    def round(self) -> None:
        self.base.loop(EVLOOP_NONBLOCK)
        if self.sock.fileno() >= 0:
            with contextlib.suppress(ConnectionError):
                self.got += received(self.sock)

    def send(self, data: bytes, rounds: int = 30) -> None:
        with contextlib.suppress(ConnectionError):
            for piece in pieces(self.rng, data):
                self.sock.sendall(piece)  # there is room for 20,000 bytes
                for _ in range(self.rng.randint(0, 2)):
                    self.round()
            if self.ending == "half close":
                with contextlib.suppress(OSError):  # it was reset
                    self.sock.shutdown(socket.SHUT_WR)
        if self.ending == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.ending != "half close":
            self.sock.close()
        for _ in range(rounds):
            self.round()
        self.sock.close()


def end_of(bev: BufferEvent, _what: int) -> None:
    bev.close()


# ---- lines ----


def lines(rng: random.Random, data: bytes) -> None:
    eol = rng.choice(sorted(EOL))
    limit = rng.choice([None, None, 5, MAX_LINE])
    whole = rng.random() < 0.3 or eol == EVBUFFER_EOL_ANY  # whose lines depend on the pieces
    by_readlines = rng.random() < 0.5
    got: list[bytes] = []
    too_long: list[bool] = []

    def on_read(bev: BufferEvent) -> None:
        try:
            if by_readlines:
                while found := bev.input.readlines(eol, limit):
                    got.extend(found)
            else:
                while (line := bev.input.readln(eol, limit)) is not None:
                    got.append(line)
        except LineTooLong:
            too_long.append(True)
            bev.close()

    def on_event(bev: BufferEvent, what: int) -> None:
        if whole and what & BEV_EVENT_EOF:
            on_read(bev)
        ended.append(what)
        bev.close()

    model, expected = bytearray(data), []
    try:
        while (line := take_line(model, eol, limit)) is not None:
            expected.append(line)
        fails = False
    except LineTooLong:
        fails = True
    ended: list[int] = []
    ours, theirs = socket.socketpair()
    with EventBase() as base:
        bev = BufferEvent.socket(base, ours)
        bev.setcb(None if whole else on_read, None, on_event)
        bev.enable(EV_READ)
        peer = Peer(base, theirs, rng)
        peer.send(data)
        assert bev.closed
    assert got == expected
    assert bool(too_long) is fails


# ---- tagged records ----

UNMARSHAL: list[Callable[[EvBuffer, random.Random], object]] = [
    lambda buf, rng: tag.unmarshal(buf, EvBuffer(b"before")),
    lambda buf, rng: tag.unmarshal_header(buf),
    lambda buf, rng: tag.unmarshal_int(buf, rng.randrange(4)),
    lambda buf, rng: tag.unmarshal_int64(buf, rng.randrange(4)),
    lambda buf, rng: tag.unmarshal_timeval(buf, rng.randrange(4)),
    lambda buf, rng: tag.unmarshal_fixed(buf, rng.randrange(4), rng.randrange(10)),
    lambda buf, rng: tag.unmarshal_string(buf, rng.randrange(4)),
    lambda buf, rng: tag.consume(buf),
    lambda buf, rng: tag.decode_int(buf),
    lambda buf, rng: tag.decode_int64(buf),
    lambda buf, rng: tag.decode_tag(buf),
    lambda buf, rng: (tag.peek(buf), tag.peek_length(buf), tag.payload_length(buf)),
]


def records(rng: random.Random, data: bytes) -> None:
    buf = EvBuffer()
    for piece in pieces(rng, data):
        buf.add(piece)
        for _ in range(rng.randint(0, 20)):
            before = bytes(buf)
            try:
                rng.choice(UNMARSHAL)(buf, rng)
            except tag.TagError:
                assert buf == before
            except UnicodeDecodeError:
                assert len(buf) < len(before)
            else:
                assert before.endswith(bytes(buf))


def record_samples() -> list[bytes]:
    buf = EvBuffer()
    for i in range(4):
        tag.marshal(buf, i, b"payload" * i)
        tag.marshal_int(buf, i, 1 << 8 * i)
        tag.marshal_int64(buf, i, 1 << 16 * i)
        tag.marshal_string(buf, i, "text")
        tag.marshal_timeval(buf, i, 1.5 * i)
        tag.encode_int(buf, 77)
    whole = bytes(buf)
    return [whole, whole[50:], b"\x01\xff\xff\xff\xff\xff", b"\x80" * 40, b""]


# ---- the examples ----


def echo_server(rng: random.Random, data: bytes) -> None:
    example: Any = importlib.import_module("examples.echo_server")
    expected, model = [], bytearray(data)
    try:
        while (line := take_line(model, EVBUFFER_EOL_CRLF, MAX_LINE)) is not None:
            expected.append(line)
        if model:
            expected.append(bytes(model).removesuffix(b"\r"))
    except LineTooLong:
        pass
    answer = b"".join(b"Client msg %b\n" % line for line in expected)
    with EventBase() as base:
        server = example.EchoServer(base, "127.0.0.1", 0, MAX_LINE)
        base.exception_handler = None
        peer = Peer(base, socket.create_connection(server.listener.address), rng)
        peer.send(data)
        if peer.ending == "half close":
            assert peer.got == answer
        else:
            assert answer.startswith(peer.got)


def proxy(rng: random.Random, data: bytes) -> None:
    example: Any = importlib.import_module("examples.le_proxy")
    back = data[::-1]
    with socket.create_server(("127.0.0.1", 0)) as server, EventBase() as base:
        listener = Listener.bind(base, example.Connection, ("127.0.0.1", 0), server.getsockname())
        peer = Peer(base, socket.create_connection(listener.address), rng)
        for _ in range(3):
            peer.round()
        far = Peer(base, server.accept()[0], rng)
        far.sock.sendall(back)
        peer.send(data, 0 if peer.ending != "half close" else 30)
        for _ in range(30):
            far.round()
        far.send(b"")
        if peer.ending == "half close":
            assert far.got == data
            assert peer.got == back
        else:
            assert data.startswith(far.got)
            assert back.startswith(peer.got)
        assert base.num_events() <= 1  # the listener's: nobody is connected any more


def zlib_filter(rng: random.Random, data: bytes) -> None:
    example: Any = importlib.import_module("examples.zlib_filter")
    model, most, broken = zlib.decompressobj(), b"", False
    try:
        for i in range(len(data)):
            most += model.decompress(data[i : i + 1])
    except zlib.error:
        broken = True
    got: list[bytes] = []
    ours, theirs = socket.socketpair()
    with EventBase() as base, contextlib.redirect_stderr(io.StringIO()):
        decompress = example.Filter(zlib.decompressobj().decompress)
        below = BufferEvent.socket(base, ours)
        bev = BufferEvent.filter(below, decompress, None, BEV_OPT_CLOSE_ON_FREE)
        bev.setcb(lambda bev: got.append(bev.read()), None, end_of)
        bev.enable(EV_READ)
        Peer(base, theirs, rng).send(data)
        assert bev.closed
    assert most.startswith(b"".join(got))
    assert broken or b"".join(got) == most


# ---- DNS ----


def dns_answers(rng: random.Random, data: bytes) -> None:
    """What a nameserver says to a question of ours, whose number it knows."""
    got: list[DnsResult] = []
    with EventBase() as base, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        dns = DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE)
        dns.add_nameserver(server.getsockname())
        dns.set_option("randomize-case", rng.randrange(2))
        if rng.random() < 0.2:
            dns.resolve_reverse("10.1.2.3", got.append, timeout=0.01)
        else:
            rng.choice([dns.resolve_ipv4, dns.resolve_ipv6])(
                "www.example", got.append, timeout=0.01
            )
        base.loop(EVLOOP_NONBLOCK)
        question, client = server.recvfrom(600)
        for piece in pieces(rng, data) if rng.random() < 0.2 else [data]:
            server.sendto(question[:2] + piece, client)
        while not got:
            base.loop(EVLOOP_ONCE)
        if rng.random() < 0.5:
            dns.close()
    assert len(got) == 1
    for address in got[0].addresses:
        ipaddress.ip_address(address)


def dns_message(flags: int, question: bytes, *answers: bytes) -> bytes:
    return struct.pack("!5H", flags, 1, len(answers), 0, 0) + question + b"".join(answers)


def dns_record(name: bytes, kind: int, data: bytes) -> bytes:
    return name + struct.pack("!HHIH", kind, 1, 60, len(data)) + data


NAME = b"\3www\7example\0"
A_QUESTION, AAAA_QUESTION = NAME + b"\0\1\0\1", NAME + b"\0\x1c\0\1"
PTR_QUESTION = b"\0013\0012\0011\00210\7in-addr\4arpa\0\0\x0c\0\1"
POINTER, LOOP = b"\xc0\x0c", b"\xc0\x1d"
ANSWERS = [
    dns_message(0x8180, A_QUESTION, dns_record(POINTER, 1, b"\n\0\0\1")),
    dns_message(0x8180, A_QUESTION, *[dns_record(NAME, 1, b"\n\0\0%c" % i) for i in range(40)]),
    dns_message(0x8180, A_QUESTION, dns_record(POINTER, 5, POINTER), dns_record(LOOP, 1, b"1234")),
    dns_message(0x8180, AAAA_QUESTION, dns_record(POINTER, 28, bytes(range(16)))),
    dns_message(0x8180, PTR_QUESTION, dns_record(POINTER, 12, NAME)),
    dns_message(0x8180, PTR_QUESTION, dns_record(POINTER, 12, LOOP)),
    dns_message(0x8183, A_QUESTION),
    dns_message(0x8380, A_QUESTION),
    b"",
]


def dns_questions(rng: random.Random, data: bytes) -> None:
    def answer(request: DnsServerRequest) -> None:
        for question in request.questions:
            with contextlib.suppress(ValueError):  # a name, or more than there is room for
                request.add_a(question.name, ["10.0.0.1"] * rng.randrange(1, 30))
            with contextlib.suppress(ValueError):
                request.add_ptr(question.name, question.name)
        request.respond()

    with EventBase() as base, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.setblocking(False)
        port = DnsServerPort(base, ("127.0.0.1", 0), answer)
        for piece in pieces(rng, data):
            client.sendto(piece, port.address)
            for _ in range(rng.randint(1, 4)):
                base.loop(EVLOOP_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                assert client.recv(70_000)[:2] == piece[:2]


# ---- TLS ----


@functools.cache
def tls_contexts() -> tuple[ssl.SSLContext, Any]:
    """Of the standard library's client, and of our server."""
    pylibevent = pytest.importorskip("pylibevent.bufferevent_ssl", exc_type=ImportError)
    with tempfile.TemporaryDirectory() as folder:
        certificates = importlib.import_module("tls").Certificates(Path(folder))
        server = pylibevent.TLSContext.server(certificates.good)
        return certificates.for_client(), server


def tls_server(rng: random.Random, data: bytes) -> None:
    """One flight of a client's is changed on its way, or none, or all is rubbish."""
    theirs_context, context = tls_contexts()
    got: list[bytes] = []

    def on_event(bev: BufferEvent, what: int) -> None:
        if not what & BEV_EVENT_CONNECTED:
            assert bev.tls_error is None or isinstance(bev.tls_error, ssl.SSLError)
            bev.close()

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    ours, theirs = socket.socketpair()
    changed = rng.randrange(6)
    with EventBase() as base:
        bev = BufferEvent.openssl_socket(base, ours, context, server_side=True)
        bev.setcb(lambda bev: got.append(bev.read()), None, on_event)
        bev.enable(EV_READ)
        peer = Peer(base, theirs, rng)
        steps = [client.do_handshake, lambda: client.write(data or b"x"), client.unwrap]
        for flight in range(8):
            with contextlib.suppress(ssl.SSLError):
                while steps:
                    steps[0]()
                    steps.pop(0)
            sent = outgoing.read()
            with contextlib.suppress(ConnectionError):
                theirs.sendall(mutated(rng, [sent, data]) if flight == changed else sent)
            peer.got = b""
            for _ in range(3):
                peer.round()
            incoming.write(peer.got)
        peer.send(b"")
        assert bev.closed
    assert (data or b"x").startswith(b"".join(got))
    assert changed < 3 or b"".join(got) == (data or b"x")


LINES = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"one\ntwo\nthree",
    b"\r\r\n\n\0\0",
    b"a" * 63 + b"\r\n" + b"b" * 64 + b"\n",
    b"x" * 10_000,
    b"\n" * 500,
]
TEXT = b"".join(b"%d bottles of beer\n" % i for i in range(500))

Reader = Callable[[random.Random, bytes], None]
READERS: dict[str, tuple[list[bytes], Reader]] = {
    "lines": (LINES, lines),
    "tagged records": (record_samples(), records),
    "echo_server": (LINES, echo_server),
    "le_proxy": (LINES, proxy),
    "DNS answers": (ANSWERS, dns_answers),
    "DNS questions": ([b"\0\1" + dns_message(0x100, A_QUESTION), *ANSWERS], dns_questions),
    "TLS": ([b"data" * 100, b"\x16\3\1\2\0\1\0\1\xfc\3\3" + b"r" * 300], tls_server),
    "zlib_filter": ([zlib.compress(TEXT), zlib.compress(b""), zlib.compress(TEXT, 0)], zlib_filter),
}


@pytest.mark.parametrize("name", READERS)
def test_what_comes_from_the_network_does_no_harm(name: str) -> None:
    samples, reader = READERS[name]

    @settings(max_examples=40 * max(FUZZ * 10, 1), phases=[Phase.generate])
    @given(st.integers(0, 1 << 64))
    def feed(seed: int) -> None:
        rng = random.Random(seed)
        reader(rng, mutated(rng, samples))

    feed()
