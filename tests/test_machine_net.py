"""Everything that has to do with names, TLS and coroutines at once: look-ups, servers that answer
late, wrongly or never, handshakes that break off, streams whose bufferevents are closed under them.
A seed draws what happens next, and what each callback does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import ssl
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from common import FUZZ, PATIENCE
from conftest import Balance
from tls import Certificates

from pylibevent import (
    BEV_ERROR,
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_NEED_MORE,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    DNS_OPTIONS_ALL,
    DNS_QUERY_NO_SEARCH,
    EV_READ,
    EV_WRITE,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    AddrInfoResult,
    BufferEvent,
    ClosedError,
    DnsBase,
    DnsResult,
    DnsServerPort,
    DnsServerRequest,
    EvBuffer,
    EventBase,
    LibeventError,
    Listener,
    RateLimitGroup,
    Timer,
    TokenBucketConfig,
    aio,
)

pytest.importorskip("pylibevent._libevent_ssl", reason="built without OpenSSL")

from pylibevent.bufferevent_ssl import TLSContext

MOST = 5  # of each kind; one more takes the place of another, which is dropped
SPIN = 5000  # callbacks in a round
CALM = 300  # of them may do something
DEEPEST = 3
LOG = os.environ.get("PYLIBEVENT_FUZZ_LOG")  # a file for the seed that is under way
RESET = struct.pack("ii", 1, 0)
PERIOD = 65521
PATTERN = random.Random(1).randbytes(PERIOD) * 3
BOTH = EV_READ | EV_WRITE
OPTIONS = [
    0,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS | BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_THREADSAFE,
]
SHORT = [0, 0.0005, 0.002, 0.01]
NAMES = ["a.example", "host", "b.c.d.example.", "x" * 63 + ".example", "list.ed", "\xe4.example"]
ADDRESSES = ["127.0.0.1", "10.0.0.1", "::1", "2001:db8::1", "fe80::1"]
SETTINGS: dict[str, list[Any]] = {
    "timeout": [0.005, 0.02, 0, "x"],
    "attempts": [1, 2, 3],
    "max-timeouts": [1, 2, 3, 0],
    "max-inflight": [1, 2, 64, -1],
    "ndots": [0, 1, 3],
    "randomize-case": [0, 1],
    "bind-to": ["127.0.0.1:0", "nowhere"],
    "initial-probe-timeout": [0.005, 0.02],
    "getaddrinfo-allow-skew": [0.01, 3],
    "so-rcvbuf": [1, 100_000],
}
# What is done more often than else, and what there is from the start, in some of the programs.
THEMES: dict[str, tuple[str, str]] = {
    "names": (
        "new_port new_dns add_nameserver look_up cancel reply_late answer_by_hand nameservers",
        "new_port new_deaf new_dns add_nameserver add_nameserver look_up look_up",
    ),
    "hosts": (
        "new_port new_dns add_nameserver new_listener connect connect_again finish",
        "new_port new_dns add_nameserver new_listener connect connect connect",
    ),
    "tls": (
        "new_tls new_relayed carry new_hostile peer new_tls_pair write read adjust finish",
        "new_tls new_relayed new_tls_pair",
    ),
    "coroutines": (
        "new_server new_client new_waiter cancel_task meddle_with_stream later",
        "new_server new_server run new_client new_client new_client",
    ),
}
# What a step may raise whatever is closed; a tuple's second one is a part of the text.
REFUSALS: list[tuple[type[Exception], str]] = [
    (RuntimeError, "the loop is running already"),
    (RuntimeError, "a filter is on top"),
    (RuntimeError, "look-ups are under way"),
    (RuntimeError, "vent loop is"),  # running, closed: asyncio's
    (RuntimeError, "is not the one that the running loop waits in"),
    (RuntimeError, "another coroutine is already waiting"),
    (RecursionError, "too deep"),
    (ValueError, "THREADSAFE"),
    (BufferError, "in the middle of a move"),
    (BufferError, "a memoryview of this buffer is out"),
]


class Boom(Exception):
    """What callbacks raise."""


class Quit(BaseException):
    """What they raise past every exception handler."""


class Stream:
    """What is written at one end, and comes out at the other: the same bytes, if `whole`."""

    def __init__(self, whole: bool = True) -> None:
        self.written = self.read = 0
        self.whole = whole

    def next(self, n: int) -> bytes:
        start = self.written
        self.written += n
        return PATTERN[start % PERIOD :][:n]

    def got(self, data: bytes) -> None:
        if self.whole:
            assert self.read + len(data) <= self.written, "more came than was written"
            assert PATTERN[self.read % PERIOD :][: len(data)] == data, "other bytes came"
        self.read += len(data)


class Note:
    """What is known of an object. Its callbacks have this for an argument, and refer to nothing
    else, so that the object can be dropped."""

    def __init__(self) -> None:
        self.silent = False  # no callback may come any more
        self.spent = False  # perhaps closed along with a filter
        self.out, self.into = Stream(False), Stream(False)
        self.below: Note | None = None  # what a filter is on
        self.partner: Note | None = None
        self.calls = 0

    def over(self) -> bool:
        return self.silent or self.spent or (self.below is not None and self.below.over())


class Held:
    """A name that the program has for an object."""

    def __init__(self, it: Any, note: Note) -> None:
        self.it = it
        self.note = note


class Relay:
    """Two ends that bytes are carried between, as they are or not."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self.ends = [one, other]
        for end in self.ends:
            end.setblocking(False)


class Files:
    """What is made once."""

    def __init__(self, folder: Path) -> None:
        self.certs = Certificates(folder)
        self.texts = []
        for i, text in enumerate(
            [
                "",
                "nameserver 127.0.0.2\noptions ndots:2 timeout:1 attempts:1\nsearch a.b c.d\n",
                "search\nnameserver\noptions\noptions x:y ndots:\nnameserver 300.1.1.1\n",
                "nameserver 127.0.0.1:1\nnameserver [::1]:1\ndomain example\n\0\xff\n",
            ]
        ):
            self.texts.append(folder / f"resolv{i}")
            self.texts[-1].write_text(text, "latin-1")
        self.hosts = []
        for i, text in enumerate(
            [
                "127.0.0.1 host a.example\n::1 host\n",
                "# nothing\n1.2.3 x\n127.0.0.1\n\xff\xfe\n10.0.0.1 list.ed # z\n",
            ]
        ):
            self.hosts.append(folder / f"hosts{i}")
            self.hosts[-1].write_text(text, "latin-1")
        self.file = folder / "pattern"
        self.file.write_bytes(PATTERN)
        self.servers = [TLSContext.server(self.certs.good) for _ in range(3)]
        self.servers[1].maximum_version = ssl.TLSVersion.TLSv1_2
        self.clients = [TLSContext.client(cafile=self.certs.cafile) for _ in range(2)]
        self.clients[1].maximum_version = ssl.TLSVersion.TLSv1_2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("net"))


steps: list[tuple[int, str]] = []


def step(weight: int) -> Callable[[Callable[[Any], None]], Any]:
    """How often it is drawn, as against the others."""

    def decorate(function: Callable[[Any], None]) -> Any:
        steps.append((weight, function.__name__))
        return function

    return decorate


class Program:
    def __init__(self, seed: int, files: Files) -> None:
        self.rng = random.Random(seed)
        self.files = files
        self.failures: list[BaseException] = []
        self.depth = self.calls = 0
        self.wild = self.rng.choice([0.0, 0.05, 0.2, 0.6])  # how often a callback does something
        self.raising = self.rng.choice([0.0, 0.0, 0.02, 0.1])
        self.deadly = self.rng.choice([0, 1, 3])  # how often things are closed
        weights = [w if w > 0 else -w * self.deadly for w, _ in steps]
        only = self.rng.random() < 0.5
        self.weights = [w * (self.rng.choice([0, 1, 3]) if only else 1) for w in weights]
        self.names = [name for _, name in steps]
        self.themes = self.rng.sample(sorted(THEMES), self.rng.choice([0, 1, 1, 2]))
        for theme in self.themes:
            for name in THEMES[theme][0].split():
                self.weights[self.names.index(name)] += 20
        if not any(self.weights):
            self.weights = weights
        self.base = EventBase()
        if self.rng.random() < 0.1:
            self.base.priority_init(3)
        self.over = False
        self.loop: aio.EventLoop | None = None
        if self.rng.random() < (0.9 if "coroutines" in self.themes else 0.5):
            self.loop = aio.EventLoop(self.base)
            self.loop.set_exception_handler(self.on_loop_exception)
            self.loop.set_debug(self.rng.random() < 0.1)
            self.loop.slow_callback_duration = 60
        self.dnses: list[Held] = []
        self.lookups: list[Held] = []
        self.ports: list[Held] = []
        self.queries: list[Held] = []
        self.bevs: list[Held] = []
        self.listeners: list[Held] = []
        self.groups: list[Held] = []
        self.relays: list[Relay] = []
        self.peers: list[tuple[socket.socket, Note]] = []
        self.deaf: list[socket.socket] = []  # nameservers without libevent
        self.tasks: list[asyncio.Task[Any]] = []
        self.streams: list[tuple[Any, Any]] = []
        self.servers: list[aio.Server] = []
        self.views: list[memoryview] = []
        self.sessions: list[tuple[Any, Any]] = []
        self.waiting: list[tuple[Note, Note]] = []  # look-ups that have to be answered, and whose
        self.kinds: list[list[Any]] = [
            self.dnses,
            self.lookups,
            self.ports,
            self.queries,
            self.bevs,
            self.listeners,
            self.groups,
        ]
        files.servers[2].sni_callback = self.on_sni

    # -- helpers --

    def keep(self, kind: list[Any], it: Any) -> None:
        if len(kind) < MOST:
            kind.append(it)
        else:
            kind[self.rng.randrange(MOST)] = it

    def pick(self, kind: list[Any]) -> Any:
        return self.rng.choice(kind) if kind else None

    def size(self) -> int:
        return self.rng.choice([0, 1, 5, 100, 1000, 5000, 20_000, 60_000])

    @contextlib.contextmanager
    def using(self, *held: Held) -> Iterator[None]:
        """What is closed says so, and nothing else does."""
        try:
            yield
        except ClosedError:
            assert self.base.closed or any(one.it.closed or one.note.over() for one in held)

    def close(self, one: Held) -> None:
        one.it.close()
        if one.it.closed and not isinstance(one.it, DnsBase):
            one.note.silent = True

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    # -- doing something --

    def act(self, name: str | None = None) -> None:
        """One step; what it may raise by the documentation is nothing to worry about."""
        name = name or self.rng.choices(self.names, self.weights)[0]
        try:
            getattr(self, name)()
        except (Boom, Quit):
            if self.depth:
                raise
        except OSError:
            pass
        except Exception as error:
            for kind, text in REFUSALS:
                if isinstance(error, kind) and text in str(error):
                    break
            else:
                self.failures.append(error)

    def call(self, note: Note | None = None) -> None:
        """What every callback does."""
        try:
            if note is not None:
                note.calls += 1
                assert not note.silent, "a callback after the end of its object"
            assert not self.over, "a callback after the end of its base"
            self.calls += 1
            if self.calls > SPIN:
                self.calls = 0
                self.base.loopbreak()
                raise AssertionError("callbacks without an end")
        except BaseException as failure:
            self.failures.append(failure)
        if self.depth < DEEPEST and self.calls < CALM and self.chance(self.wild):
            self.depth += 1
            try:
                for _ in range(self.rng.randrange(1, 4)):
                    self.act()
            finally:
                self.depth -= 1
        if self.chance(self.raising):
            raise Quit if self.chance(0.2) else Boom

    # -- callbacks --

    def on_exception(self, exception: Exception, _source: Any) -> None:
        if not isinstance(exception, Boom):
            self.failures.append(exception)
        self.call()

    def on_loop_exception(self, _loop: Any, context: dict[str, Any]) -> None:
        exception = context.get("exception")
        reads = EOFError, ValueError, asyncio.LimitOverrunError  # of one that timed out as it ended
        if exception is None or isinstance(exception, (Boom, Quit, OSError, *reads)):
            return
        self.failures.append(exception)

    def on_timer(self) -> None:
        self.call()

    def on_lookup(self, result: DnsResult | AddrInfoResult, note: Note) -> None:
        try:
            assert note.calls == 0, "two answers"
            assert result.error is None or isinstance(result.error, socket.gaierror)
        except BaseException as failure:
            self.failures.append(failure)
        self.call(note)

    def on_query(self, request: DnsServerRequest, note: Note) -> None:
        self.call(note)
        what = self.rng.randrange(8)
        if what == 0:
            return  # it is dropped
        if what == 1:
            request.drop()
        elif what == 2:
            self.keep(self.queries, Held(request, Note()))
        elif what == 3:
            self.reply(request, True)
        else:
            self.reply(request, False)

    def reply(self, request: DnsServerRequest, wrong: bool) -> None:
        with contextlib.suppress(ClosedError, OSError):
            for question in request.questions:
                name = question.name
                if wrong:
                    self.wrong_reply(request, name)
                elif question.type == 12:
                    request.add_ptr(name, "host.example", 5)
                elif question.type == 1:
                    request.add_a(name, ["127.0.0.1", "127.0.0.2"][: self.rng.randrange(1, 3)])
                else:
                    request.add_aaaa(name, "::1")
            request.respond(self.rng.choice([0, 0, 1, 2, 3, 5, 15]) if wrong else 0)

    def wrong_reply(self, request: DnsServerRequest, name: str) -> None:
        """Records that nobody has asked for."""
        rng = self.rng
        with contextlib.suppress(ValueError):
            for _ in range(rng.choice([0, 1, 5, 200])):
                what = rng.randrange(5)
                if what == 0:
                    request.add_cname(name, "elsewhere.example")
                elif what == 1:
                    request.add_a("other.example", "127.0.0.1", 2**31 - 1)
                elif what == 2:
                    data = rng.randbytes(rng.choice([0, 3, 5, 17, 300]))
                    request.add_reply(
                        rng.randrange(3), name, rng.choice([1, 28, 12, 16]), 1, 0, data
                    )
                elif what == 3:
                    request.add_a(name, ["127.0.0.1"] * rng.randrange(20))
                else:
                    request.add_ptr(name, "y" * 63 + ".example")
        if rng.random() < 0.2:
            request.flags = rng.randrange(65536)

    def on_read(self, bev: BufferEvent, note: Note) -> None:
        self.call(note)
        self.read_some(Held(bev, note), 0.9)

    def on_write(self, _bev: BufferEvent, note: Note) -> None:
        self.call(note)

    def on_event(self, bev: BufferEvent, what: int, note: Note) -> None:
        try:
            if what & BEV_EVENT_ERROR and not bev.closed:
                assert bev.error is None or isinstance(bev.error, OSError)
                assert bev.tls_error is None or isinstance(bev.tls_error, OSError)
                assert bev.dns_error is None or isinstance(bev.dns_error, OSError)
            if what & BEV_EVENT_CONNECTED and bev.tls is not None:
                assert bev.tls.version.startswith("TLSv1.")
                if not bev.tls.context.server_side and (session := bev.tls.session) is not None:
                    self.keep(self.sessions, (bev.tls.context, session))
        except BaseException as failure:
            self.failures.append(failure)
        self.call(note)
        if what & (BEV_EVENT_EOF | BEV_EVENT_ERROR) and self.chance(0.5):
            bev.close()
            note.silent = True

    def on_filter(self, note: Note, kind: int, src: EvBuffer, dst: EvBuffer, limit: int) -> int:
        self.calls -= 1  # of a few bytes each, and they come to an end
        self.call(note)
        if kind == 0:
            return BEV_ERROR
        with contextlib.suppress(ClosedError):
            n = min(len(src), kind if limit < 0 else min(kind, limit))
            if not n:
                return BEV_NEED_MORE
            dst.add(src.remove(n))
        return BEV_OK

    def on_sni(self, _bev: BufferEvent, _name: str | None, _context: TLSContext) -> Any:
        self.call()
        return self.rng.choice([None] * 5 + [self.files.servers[0]] * 3 + [80, 112])

    def on_accept(self, listener: Listener, fd: int, _address: Any, note: Note) -> None:
        self.call(note)  # if it raises, fd is libevent's to close
        base = listener.base
        if self.chance(0.1) or base.closed:
            os.close(fd)
        elif self.chance(0.5):
            self.adopt(BufferEvent.socket(base, fd))
        else:
            self.adopt(BufferEvent.openssl_socket(base, fd, self.server_context()))

    def on_accept_error(self, _listener: Listener, error: OSError) -> None:
        self.failures.append(error)

    def adopt(self, bev: BufferEvent, note: Note | None = None) -> Note:
        note = note or Note()
        held = Held(bev, note)
        with self.using(held):
            bev.setcb(self.on_read, self.on_write, self.on_event, note)
            if self.chance(0.9):
                bev.enable(EV_READ)
        self.keep(self.bevs, held)
        return note

    def read_some(self, one: Held, p: float) -> None:
        with self.using(one), contextlib.suppress(BufferError):
            n = -1 if self.chance(p) else self.size()
            one.note.into.got(one.it.read(n))

    def server_context(self) -> TLSContext:
        return self.rng.choice(self.files.servers)

    # -- the base --

    @step(40)
    def run(self) -> None:
        """A round or a few of the loop, one way or the other."""
        if self.depth == 0:
            self.calls = 0
        for _ in range(self.rng.randrange(1, 6)):
            closed = self.base.closed
            try:
                if self.loop is not None and self.chance(0.7):
                    self.loop.call_soon(self.loop.stop)
                    self.loop.run_forever()
                else:
                    self.base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)
                assert not closed
            except ClosedError:
                assert self.base.closed

    @step(15)
    def wait(self) -> None:
        """Long enough for the short timeouts."""
        if self.depth or self.base.closed:
            return
        self.calls = 0
        over: list[bool] = []
        timer = Timer(self.base, over.append, True)
        timer.add(self.rng.choice([0.001, 0.003, 0.012]))
        for _ in range(50):
            if not over and not self.base.closed and timer.pending():
                self.calls = 0
                self.base.loop(EVLOOP_ONCE)

    @step(2)
    def leave(self) -> None:
        with self.using():
            getattr(self.base, self.rng.choice(["loopexit", "loopbreak", "loopcontinue"]))()

    @step(-1)
    def close_base(self) -> None:
        if self.chance(0.1):
            self.base.close()

    @step(2)
    def handle_exceptions(self) -> None:
        if not self.base.closed and self.loop is None:
            self.base.exception_handler = self.rng.choice([self.on_exception, None])

    @step(2)
    def later(self) -> None:
        with self.using():
            Timer(self.base, self.on_timer).add(self.rng.choice(SHORT))

    @step(3)
    def collect(self) -> None:
        gc.collect(self.rng.randrange(2))

    @step(-3)
    def drop(self) -> None:
        kind = self.rng.choice(self.kinds)
        if kind:
            del kind[self.rng.randrange(len(kind))]

    @step(-3)
    def close_one(self) -> None:
        if one := self.pick(self.rng.choice(self.kinds)):
            if isinstance(one.it, DnsBase):
                self.close_dns(one)
            elif one in self.lookups:
                with self.using(one):
                    one.it.cancel()
            elif one.it.closed or not isinstance(one.it, RateLimitGroup):
                self.close(one)
            else:
                one.it.close()

    # -- names --

    @step(5)
    def new_dns(self) -> None:
        flags = self.rng.choice([0, EVDNS_BASE_DISABLE_WHEN_INACTIVE])
        with self.using():
            one = Held(DnsBase(self.base, flags), Note())
            self.keep(self.dnses, one)
            for _ in range(self.rng.randrange(3)):
                self.add_nameserver(one)
            if self.chance(0.7):
                one.it.set_option("timeout", self.rng.choice([0.003, 0.01]))
                one.it.set_option("initial-probe-timeout", 0.005)

    def close_dns(self, one: Held) -> None:
        fail_requests = self.chance(0.6)
        was_closed = one.it.closed
        one.it.close(fail_requests)
        if not fail_requests and not was_closed:
            one.note.silent = True
            for lookup, whose in self.waiting:
                if whose is one.note and not lookup.calls:
                    lookup.silent = True

    @step(6)
    def add_nameserver(self, one: Held | None = None) -> None:
        one = one or self.pick(self.dnses)
        if one is None:
            return
        if port := self.pick(self.ports):
            with self.using(one, port):
                one.it.add_nameserver(port.it.address[:2])
        elif self.deaf and self.chance(0.7):
            with self.using(one):
                one.it.add_nameserver(self.pick(self.deaf).getsockname()[:2])
        else:
            with self.using(one):
                one.it.add_nameserver(self.rng.choice([("127.0.0.1", 1), "[::1]:1"]))

    @step(4)
    def nameservers(self) -> None:
        if one := self.pick(self.dnses):
            with self.using(one):
                what = self.rng.randrange(4)
                if what == 0:
                    assert len(one.it.nameservers) == one.it.count_nameservers()
                elif what == 1:
                    one.it.resume()
                else:
                    one.it.clear_nameservers()

    @step(4)
    def configure(self) -> None:
        if one := self.pick(self.dnses):
            with self.using(one), contextlib.suppress(ValueError):
                what = self.rng.randrange(7)
                if what == 0:
                    one.it.search_add(self.rng.choice(["example", ".ed", "x.y.z"]))
                elif what == 1:
                    one.it.search_clear()
                elif what == 2:
                    one.it.search_ndots_set(self.rng.randrange(4))
                elif what == 3:
                    path = self.rng.choice(self.files.texts)
                    one.it.resolv_conf_parse(self.rng.randrange(DNS_OPTIONS_ALL + 1) & ~4, path)
                elif what == 4:
                    one.it.load_hosts(self.rng.choice(self.files.hosts))
                elif what == 5:
                    one.it.clear_host_addresses()
                else:
                    name = self.rng.choice(sorted(SETTINGS))
                    one.it.set_option(name, self.rng.choice(SETTINGS[name]))

    @step(12)
    def look_up(self) -> None:
        one = self.pick(self.dnses)
        if one is None or len(self.waiting) > 300:
            return
        note = Note()
        name = self.rng.choice(NAMES)
        timeout = self.rng.choice(SHORT)
        for _ in range(self.rng.choice([1, 1, 1, 10])):
            with self.using(one):
                what = self.rng.randrange(5)
                if what == 0:
                    address = self.rng.choice(ADDRESSES)
                    it = one.it.resolve_reverse(address, self.on_lookup, note, timeout=timeout)
                elif what < 3:
                    method = one.it.resolve_ipv4 if what == 1 else one.it.resolve_ipv6
                    flags = self.rng.choice([0, DNS_QUERY_NO_SEARCH])
                    it = method(name, self.on_lookup, note, flags=flags, timeout=timeout)
                else:
                    family = self.rng.choice([0, socket.AF_INET, socket.AF_INET6])
                    host = self.rng.choice([None, "", "127.0.0.1", "::1", name, name, name, name])
                    port = self.rng.choice([80, 80, 80, "http", "nosuchport"])
                    args = host, port, self.on_lookup, note
                    flags = self.rng.choice([0, socket.AI_CANONNAME, socket.AI_PASSIVE])
                    it = one.it.getaddrinfo(*args, family=family, flags=flags, timeout=timeout)
                self.keep(self.lookups, Held(it, note))
                self.waiting.append((note, one.note))
                note = Note()

    @step(6)
    def cancel(self) -> None:
        if one := self.pick(self.lookups):
            with self.using(one):
                one.it.cancel()

    @step(4)
    def new_port(self) -> None:
        note = Note()
        with self.using():
            where = self.rng.choice(["127.0.0.1", "127.0.0.1", "::1"]), 0
            port = DnsServerPort(self.base, where, self.on_query, note)
            self.keep(self.ports, Held(port, note))

    @step(5)
    def reply_late(self) -> None:
        if one := self.pick(self.queries):
            with self.using(one):
                if self.chance(0.2):
                    one.it.drop()
                else:
                    self.reply(one.it, self.chance(0.3))

    @step(2)
    def new_deaf(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        if len(self.deaf) >= MOST:
            self.deaf.pop(0).close()
        self.deaf.append(sock)

    @step(6)
    def answer_by_hand(self) -> None:
        """Packets that no server would send, most of them."""
        if sock := self.pick(self.deaf):
            rng = self.rng
            for _ in range(rng.randrange(1, 4)):
                data, where = sock.recvfrom(2000)
                answer = bytearray(data)
                answer[2:4] = rng.choice([b"\x81\x80", b"\x83\x80", b"\x81\x83", b"\x01\x00"])
                n = rng.choice([0, 1, 3, 65535])
                answer[6:8] = struct.pack(">H", n)
                kind = data[-4:]
                for _ in range(min(n, 40)):
                    answer += rng.choice(
                        [b"\xc0\x0c", b"\xc0\xff", b"\x01a\x00", bytes(answer[12:20])]
                    )
                    length = rng.choice([0, 4, 16, 5, 500])
                    answer += kind + struct.pack(">IH", 60, length)
                    answer += rng.randbytes(rng.choice([length, length, 2]))
                if rng.random() < 0.3:
                    del answer[rng.randrange(len(answer)) :]
                if rng.random() < 0.2 and answer:
                    answer[rng.randrange(len(answer))] ^= 1 << rng.randrange(8)
                sock.sendto(answer, where)

    @step(3)
    def disturb_port(self) -> None:
        """Questions that no resolver would ask."""
        if one := self.pick(self.ports):
            with self.using(one):
                rng = self.rng
                sock = self.pick(self.deaf)
                if sock is None or len(one.it.address) > 2:
                    return
                header = struct.pack(
                    ">6H", rng.randrange(65536), 256, rng.choice([0, 1, 3]), 0, 0, 0
                )
                question = b"\x01a\x07example\x00" + struct.pack(">HH", rng.choice([1, 255, 16]), 1)
                data = header + question * rng.randrange(3) + rng.randbytes(rng.randrange(3))
                sock.sendto(data[: rng.choice([5, 12, 20, 500])], one.it.address)

    # -- bufferevents --

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        if self.chance(0.5):
            return socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            return ours, server.accept()[0]

    def over_tls(self, where: Any, server_side: bool, note: Note) -> None:
        """A bufferevent with TLS, on a socket or on another one."""
        rng = self.rng
        context = self.server_context() if server_side else rng.choice(self.files.clients)
        values: dict[str, Any] = {"options": rng.choice(OPTIONS)}
        if not server_side:
            values["server_hostname"] = rng.choice(["localhost"] * 12 + ["other.example"])
            sessions = [session for of, session in self.sessions if of is context]
            if sessions and self.chance(0.5):
                values["session"] = rng.choice(sessions)
        if isinstance(where, BufferEvent):
            bev = BufferEvent.openssl_filter(where, context, **values)
        else:
            bev = BufferEvent.openssl_socket(self.base, where, context, **values)
        self.adopt(bev, note)
        if self.chance(0.2):
            bev.allow_dirty_shutdown = True

    def ends(self) -> tuple[Note, Note]:
        """What is known of two that will be joined."""
        one, other = Note(), Note()
        one.out, one.into = Stream(), Stream()
        other.out, other.into = one.into, one.out
        return one, other

    @step(8)
    def new_tls(self) -> None:
        """A client and a server; now and then a client and a client."""
        ours, theirs = self.sockets()
        with ours, theirs, self.using():
            one, other = self.ends()
            self.over_tls(ours, False, one)
            self.over_tls(theirs, self.chance(0.9), other)

    @step(6)
    def new_relayed(self) -> None:
        """The same, with somebody between them."""
        ours, near = self.sockets()
        theirs, far = self.sockets()
        with contextlib.ExitStack() as stack, self.using():
            for sock in (ours, near, theirs, far):
                stack.enter_context(sock)
            one, other = self.ends()
            self.over_tls(ours, False, one)
            self.over_tls(theirs, True, other)
            if len(self.relays) >= MOST:
                for end in self.relays.pop(0).ends:
                    end.close()
            self.relays.append(Relay(near.dup(), far.dup()))

    @step(30)
    def carry(self) -> None:
        if relay := self.pick(self.relays):
            for _ in range(self.rng.randrange(1, 6)):
                ends = relay.ends if self.chance(0.5) else relay.ends[::-1]
                with contextlib.suppress(BlockingIOError):
                    data = bytearray(ends[0].recv(self.rng.choice([1, 5, 100, 70_000, 70_000])))
                    if data and self.chance(0.01):
                        data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
                    ends[1].send(data)
                    if not data and self.chance(0.3):
                        ends[1].shutdown(socket.SHUT_WR)

    @step(-2)
    def cut(self) -> None:
        if relay := self.pick(self.relays):
            end = self.rng.choice(relay.ends)
            if self.chance(0.5):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.close()

    @step(4)
    def new_hostile(self) -> None:
        """TLS, or a plain one, with a peer that knows nothing of it."""
        ours, theirs = self.sockets()
        with ours, self.using():
            theirs.setblocking(False)
            note = Note()
            if len(self.peers) >= MOST:
                self.peers.pop(0)[0].close()
            self.peers.append((theirs, note))
            if self.chance(0.7):
                self.over_tls(ours, self.chance(0.5), note)
            else:
                self.adopt(BufferEvent.socket(self.base, ours, self.rng.choice(OPTIONS)), note)

    @step(6)
    def peer(self) -> None:
        if peer := self.pick(self.peers):
            sock, _ = peer
            what = self.rng.randrange(7)
            if what < 3:
                records = [
                    b"\x16\x03\x01\x02\x00\x01",
                    b"\x15\x03\x03\x00\x02\x02\x28",
                    b"\x16\x03\x03",
                ]
                sock.send(self.rng.choice([*records, self.rng.randbytes(self.size())]))
            elif what < 5:
                sock.recv(100_000)
            elif what == 5:
                sock.shutdown(self.rng.randrange(3))
            else:
                if self.chance(0.5):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()

    @step(4)
    def new_pair(self) -> None:
        with self.using():
            one, other = BufferEvent.pair(self.base, self.rng.choice(OPTIONS))
            first, second = self.ends()
            first.partner, second.partner = second, first
            self.adopt(one, first)
            self.adopt(other, second)

    @step(4)
    def new_sockets(self) -> None:
        ours, theirs = self.sockets()
        with ours, theirs, self.using():
            first, second = self.ends()
            first.partner, second.partner = second, first
            self.adopt(BufferEvent.socket(self.base, ours, self.rng.choice(OPTIONS)), first)
            self.adopt(BufferEvent.socket(self.base, theirs, self.rng.choice(OPTIONS)), second)

    def onto(self, one: Held, server_side: bool, note: Note) -> None:
        note.below = one.note
        with self.using(one), contextlib.suppress(BufferError):
            self.over_tls(one.it, server_side, note)

    @step(6)
    def new_tls_filters(self) -> None:
        """TLS on top of both ends, or of one."""
        one = self.pick(self.bevs)
        if one is None:
            return
        first, second = self.ends()
        for note in (one.note, one.note.partner):
            if note is not None:
                note.out.whole = note.into.whole = False
        self.onto(one, False, first)
        for other in self.bevs:
            if other.note is one.note.partner:
                self.onto(other, True, second)
                break
        else:  # somebody else talks TLS there, if anybody
            first.out.whole = first.into.whole = False
        first.partner, second.partner = second, first

    @step(4)
    def new_tls_pair(self) -> None:
        """TLS on top of both ends, and perhaps once more."""
        with contextlib.suppress(ClosedError):  # by a callback of this handshake, perhaps
            if self.chance(0.5):
                pair = BufferEvent.pair(self.base, self.rng.choice(OPTIONS))
            else:
                ours, theirs = self.sockets()
                with ours, theirs:
                    one = BufferEvent.socket(self.base, ours)
                    pair = one, BufferEvent.socket(self.base, theirs)
            below: tuple[Note, Note] = Note(), Note()
            if self.chance(0.3):
                pair[0].write(b"in clear")
                self.base.loop(EVLOOP_NONBLOCK)
                pair[1].read()
            notes = below
            for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
                notes = self.ends()
                for i, note in enumerate(notes):
                    note.below = below[i]
                    below[i].out.whole = below[i].into.whole = False
                    self.keep(self.bevs, Held(pair[i], below[i]))
                    self.over_tls(pair[i], i == 1, note)
                below, held = notes, {one.note: one.it for one in self.bevs}
                if notes[0] not in held or notes[1] not in held:
                    return
                pair = held[notes[0]], held[notes[1]]
            notes[0].partner, notes[1].partner = notes[1], notes[0]

    @step(2)
    def new_filter(self) -> None:
        if one := self.pick(self.bevs):
            note = Note()
            note.below = one.note
            kinds = [self.rng.choice([None, 0, 7, 1000, 1000]) for _ in range(2)]
            one.note.out.whole = one.note.into.whole = False

            def made(kind: int | None) -> Any:
                if kind is None:
                    return None
                return lambda src, dst, limit, _mode: self.on_filter(note, kind, src, dst, limit)

            with self.using(one):
                options = self.rng.choice(OPTIONS)
                bev = BufferEvent.filter(one.it, made(kinds[0]), made(kinds[1]), options)
                self.adopt(bev, note)

    @step(4)
    def new_listener(self) -> None:
        note = Note()
        with self.using():
            listener = Listener.bind(self.base, self.on_accept, ("127.0.0.1", 0), note)
            listener.set_error_cb(self.on_accept_error)
            self.keep(self.listeners, Held(listener, note))

    @step(8)
    def connect(self) -> None:
        one = self.pick(self.listeners)
        if one is None:
            return
        with self.using(one):
            host, port = one.it.address
            note = Note()
            if self.chance(0.6):
                self.over_tls(None, False, note)
            else:
                options = self.rng.choice(OPTIONS) | BEV_OPT_CLOSE_ON_FREE
                self.adopt(BufferEvent.socket(self.base, None, options), note)
            bev = next((held.it for held in self.bevs if held.note is note), None)
            if bev is None:
                return
            dns = self.pick(self.dnses)
            if dns is not None and self.chance(0.8):
                family = self.rng.choice([0, socket.AF_INET, socket.AF_INET6])
                name = self.rng.choice([*NAMES, "127.0.0.1", "::1"])
                with self.using(dns):
                    bev.connect_hostname(name, port, family, dns.it)
            elif self.chance(0.1):
                bev.connect(("127.0.0.1", 1))
            else:
                bev.connect((host, port))

    @step(3)
    def connect_again(self) -> None:
        one, dns = self.pick(self.bevs), self.pick(self.dnses)
        if one and dns and not one.it.closed and one.it.tls is None:
            # ValueError: it has no socket
            with self.using(one, dns), contextlib.suppress(LibeventError, ValueError):
                if not one.note.over() and one.it.fd < 0:
                    one.it.connect_hostname(self.rng.choice(NAMES), 1, 0, dns.it)

    @step(20)
    def write(self) -> None:
        if one := self.pick(self.bevs):
            with self.using(one), contextlib.suppress(LibeventError):
                stream = one.note.out
                data = stream.next(self.size())
                try:
                    one.it.write(data)
                except BaseException:
                    stream.whole = False
                    raise

    @step(10)
    def read(self) -> None:
        if one := self.pick(self.bevs):
            self.read_some(one, 0.5)

    @step(4)
    def move(self) -> None:
        """Other ways in and out."""
        one, other = self.pick(self.bevs), self.pick(self.bevs)
        if one is None:
            return
        what = self.rng.randrange(6)
        with self.using(one, other), contextlib.suppress(LibeventError, BufferError):
            if what < 2:
                one.note.out.whole = other.note.into.whole = False
                one.it.write_buffer(other.it.input)
            elif what == 2:
                buf = EvBuffer()
                one.it.read_buffer(buf)
                one.note.into.got(bytes(buf))
            elif what == 3:
                self.views += one.it.input.peek(self.size())
            elif what == 4:
                start, n = one.note.out.written % PERIOD, self.size()
                one.note.out.next(n)
                try:
                    with open(self.files.file, "rb") as file:
                        one.it.output.add_file(file, start, n)
                except BaseException:
                    one.note.out.whole = False
                    raise
            else:
                one.note.out.whole = False
                one.it.output.drain(self.size())
        if self.chance(0.5):
            self.views.clear()

    @step(10)
    def adjust(self) -> None:
        rng = self.rng
        if one := self.pick(self.bevs):
            it = one.it
            with self.using(one), contextlib.suppress(ValueError):
                what = rng.randrange(8)
                if what == 0:
                    it.enable(rng.choice([EV_READ, EV_WRITE, BOTH]))
                elif what == 1:
                    it.disable(rng.choice([EV_READ, EV_WRITE]))
                elif what == 2:
                    it.set_timeouts(rng.choice([None, 0.001, 1]), rng.choice([None, 0.001, 1]))
                elif what == 3:
                    low, high = rng.choice([(0, 0), (0, 1), (10, 1000), (1, 20_000)])
                    it.setwatermark(rng.choice([EV_READ, EV_WRITE, BOTH]), low, high)
                elif what == 4:
                    it.trigger(rng.choice([EV_READ, EV_WRITE, BOTH]), rng.choice([0, 0x10000]))
                elif what == 5:
                    it.trigger_event(rng.choice([0x11, 0x20, 0x80, 0x40]))
                elif what == 6:
                    with contextlib.suppress(LibeventError):
                        it.flush(rng.choice([EV_READ, EV_WRITE, BOTH]), rng.randrange(3))
                else:
                    callbacks: list[Any] = [self.on_read, self.on_write, self.on_event]
                    it.setcb(*[f if rng.random() < 0.8 else None for f in callbacks], one.note)

    @step(3)
    def limit(self) -> None:
        rng = self.rng
        if one := self.pick(self.bevs):
            with self.using(one), contextlib.suppress(ValueError, LibeventError):
                rate = rng.choice([20, 5000, 100_000])
                cfg = TokenBucketConfig(rate, rate * 2, rate, rate * 2, 0.001)
                what = rng.randrange(5)
                if what == 0:
                    one.it.set_rate_limit(rng.choice([None, cfg]))
                elif what == 1:
                    self.keep(self.groups, Held(RateLimitGroup(self.base, cfg), Note()))
                elif what == 2 and (group := self.pick(self.groups)):
                    with self.using(one, group):
                        one.it.add_to_rate_limit_group(group.it)
                elif what == 3:
                    one.it.remove_from_rate_limit_group()
                else:
                    one.it.max_single_read = rng.choice([0, 1, 5000])
                    one.it.max_single_write = rng.choice([0, 1, 5000])

    @step(5)
    def look(self) -> None:
        if one := self.pick(self.bevs):
            with self.using(one):
                it = one.it
                assert repr(it)
                it.enabled, it.error, it.tls_error, it.dns_error, it.partner  # noqa: B018
                it.underlying, it.fd, it.allow_dirty_shutdown  # noqa: B018
                len(it.input), len(it.output)
                if it.tls is not None:
                    assert it.tls.cipher
                    it.tls.peer_certificate, it.tls.session_reused, it.tls.session  # noqa: B018
                if self.chance(0.1):
                    assert BufferEvent.from_ptr(it.ptr) is it
        for kind in (self.dnses, self.ports, self.lookups, self.queries):
            if one := self.pick(kind):
                assert repr(one.it)

    @step(-4)
    def finish(self) -> None:
        if one := self.pick(self.bevs):
            with self.using(one):
                one.it.close_after_write(self.rng.choice([None, 0.001, 1]))
                one.note.silent = True
                below = one.note.below
                while below is not None:
                    below.spent = True
                    below = below.below

    # -- coroutines --

    def in_loop(self) -> bool:
        return self.loop is not None and not self.loop.is_closed()

    def start(self, coroutine: Any) -> None:
        assert self.loop is not None
        if len(self.tasks) >= 2 * MOST:
            task = self.tasks.pop(0)
            task.cancel()
        self.tasks.append(self.loop.create_task(self.guarded(coroutine)))

    async def guarded(self, coroutine: Any) -> None:
        try:
            await coroutine
        except (Boom, Quit, OSError, ClosedError, asyncio.IncompleteReadError):
            pass
        except (asyncio.TimeoutError, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as failure:
            if not any(isinstance(failure, k) and t in str(failure) for k, t in REFUSALS):
                self.failures.append(failure)

    async def talk(self, reader: Any, writer: Any) -> None:
        rng = self.rng
        for _ in range(rng.randrange(12)):
            self.call()
            what = rng.randrange(8)
            try:
                if what < 3:
                    writer.write(rng.choice([b"line\n", b"x" * 200 + b"\n", b"z" * 100_000]))
                    if rng.random() < 0.5:
                        await asyncio.wait_for(writer.drain(), rng.choice([0, 0.003]))
                elif what == 3:
                    await asyncio.wait_for(reader.readline(), rng.choice([0, 0.003]))
                elif what == 4:
                    await asyncio.wait_for(reader.readexactly(rng.choice([1, 500])), 0.003)
                elif what == 5:
                    await asyncio.wait_for(reader.read(rng.choice([-1, 1, 10_000])), 0.003)
                elif what == 6:
                    await asyncio.wait_for(reader.readuntil(b"x\n"), 0.003)
                else:
                    writer.get_extra_info(rng.choice(["peername", "ssl_object"]))
                    await asyncio.sleep(rng.choice([0, 0.001]))
            except (asyncio.TimeoutError, asyncio.LimitOverrunError):
                pass
            except ValueError as error:  # a line beyond the limit
                if isinstance(error, ClosedError):
                    raise
        if rng.random() < 0.3 and writer.can_write_eof():
            writer.write_eof()
        if rng.random() < 0.8:
            writer.close()
        if rng.random() < 0.5:
            await writer.wait_closed()

    async def serve(self, reader: Any, writer: Any) -> None:
        self.keep(self.streams, (reader, writer))
        await self.guarded(self.talk(reader, writer))

    def serve_at_once(self, reader: Any, writer: Any) -> None:
        self.call()
        with contextlib.suppress(ClosedError):
            writer.write(b"hello\n")
        if self.chance(0.5):
            writer.close()
        self.keep(self.streams, (reader, writer))

    async def start_server(self) -> None:
        assert self.loop is not None
        handler = self.rng.choice([self.serve, self.serve, self.serve_at_once])
        tls = self.server_context() if self.chance(0.5) else None
        address = "127.0.0.1", 0
        server = await aio.start_server(self.loop, handler, address, tls=tls, limit=100)
        if len(self.servers) >= MOST:
            self.servers.pop(0).close()
        self.servers.append(server)

    async def be_client(self, address: Any) -> None:
        assert self.loop is not None
        tls = self.rng.choice([None, *self.files.clients])
        work = aio.connect(
            self.loop, address, tls=tls, server_hostname="localhost" if tls else None, limit=100
        )
        if self.chance(0.3):
            work = asyncio.wait_for(work, self.rng.choice(SHORT))
        reader, writer = await work
        self.keep(self.streams, (reader, writer))
        await self.talk(reader, writer)

    async def wait_for_it(self) -> None:
        assert self.loop is not None
        peer = self.pick(self.peers)
        with peer[0].dup() if peer else socket.socket() as sock:
            what = self.rng.choice([EV_READ, EV_WRITE])
            await aio.wait_event(self.loop, sock, what, self.rng.choice(SHORT))

    @step(4)
    def new_server(self) -> None:
        if self.in_loop():
            self.start(self.start_server())

    @step(6)
    def new_client(self) -> None:
        if self.in_loop():
            servers = [server for server in self.servers if server.is_serving()]
            listener = self.pick(self.listeners)
            if servers and self.chance(0.8):
                with self.using():
                    self.start(self.be_client(self.rng.choice(servers).address))
            elif listener is not None:
                with self.using(listener):
                    self.start(self.be_client(listener.it.address))

    @step(3)
    def new_waiter(self) -> None:
        if self.in_loop():
            self.start(self.wait_for_it())

    @step(3)
    def cancel_task(self) -> None:
        if self.in_loop() and (task := self.pick(self.tasks)):
            task.cancel()

    @step(3)
    def meddle_with_stream(self) -> None:
        if stream := self.pick(self.streams):
            _, writer = stream
            what = self.rng.randrange(6)
            # ClosedError: close_after_write() came before
            with contextlib.suppress(ClosedError):
                if what == 0:
                    writer.bufferevent.close()
                elif what == 1:
                    if self.in_loop():
                        writer.close()
                elif what == 2 and not writer.bufferevent.closed:
                    writer.bufferevent.trigger_event(self.rng.choice([0x11, 0x20, 0x40]))
                elif what == 3 and not writer.bufferevent.closed:
                    writer.bufferevent.close_after_write(0.001)
                else:
                    self.streams.remove(stream)

    @step(-1)
    def close_server(self) -> None:
        if server := self.pick(self.servers):
            server.close()

    @step(-1)
    def close_loop(self) -> None:
        if self.loop is not None and self.chance(0.1) and not self.loop.is_running():
            self.loop.close()

    # -- the end --

    def settle(self) -> None:
        """Each look-up is answered in the end, as it has a time limit."""
        self.wild = self.raising = 0.0
        for task in self.tasks:
            if self.in_loop():
                task.cancel()
        end = monotonic() + 5 * PATIENCE
        timer = Timer(self.base, lambda: None, persist=True)
        timer.add(0.002)
        while not self.base.closed and (left := self.unanswered()):
            self.calls = 0
            if monotonic() > end:
                raise AssertionError(f"{len(left)} look-ups without an answer")
            with contextlib.suppress(Boom, Quit):
                self.base.loop(EVLOOP_ONCE)
        if self.in_loop() and not self.base.closed:
            for _ in range(10):
                self.calls = 0
                assert self.loop is not None
                with contextlib.suppress(Boom, Quit):
                    self.loop.call_soon(self.loop.stop)
                    self.loop.run_forever()

    def unanswered(self) -> list[Note]:
        return [note for note, _ in self.waiting if not note.calls and not note.silent]

    def end(self) -> None:
        how = self.rng.randrange(4)
        self.views.clear()
        if how < 2 and not self.base.closed:
            self.settle()
        if how == 1:
            things = [one for kind in self.kinds for one in kind]
            self.rng.shuffle(things)
            for one in things:
                one.it.close()
        for server in self.servers:
            server.close()
        if self.loop is not None and self.rng.random() < 0.7:
            self.loop.close()
        if how != 2:
            self.base.close()
            self.over = True
        if self.loop is not None:
            self.loop.close()
        for sock, _ in self.peers:
            sock.close()
        for relay in self.relays:
            for end in relay.ends:
                end.close()
        for sock in self.deaf:
            sock.close()
        self.files.servers[2].sni_callback = None

    def play(self) -> None:
        for theme in self.themes:
            for name in THEMES[theme][1].split():
                self.act(name)
        for _ in range(self.rng.choice([20, 60, 120])):
            self.depth = 0
            self.act()
            if self.failures:
                raise self.failures[0]
        self.end()
        if self.failures:
            raise self.failures[0]


def play(seed: int, files: Files) -> None:
    failures: list[BaseException] = []

    def on_unraisable(info: Any) -> None:
        if not isinstance(info.exc_value, (Boom, Quit)):  # the second one of a call
            failures.append(info.exc_value)

    if LOG:
        Path(LOG).write_text(f"seed {seed}\n")
    hook, sys.unraisablehook = sys.unraisablehook, on_unraisable
    try:
        with warnings.catch_warnings():
            # A socket may be found before the coroutine that would close it.
            warnings.filterwarnings("ignore", "unclosed <(EventBase|socket)", ResourceWarning)
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            program = Program(seed, files)
            try:
                program.play()
            finally:
                files.servers[2].sni_callback = None
            del program
            gc.collect()
    finally:
        sys.unraisablehook = hook
    if failures:
        raise failures[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seeds = list(range(40))
    if FUZZ:
        start = metafunc.config.getoption("hypothesis_seed", None)
        seeds = random.Random(start).sample(range(10**9), 60 * FUZZ)
    metafunc.parametrize("seed", seeds)


def test_nothing_crashes_hangs_or_is_left(seed: int, files: Files) -> None:
    balance = Balance()
    play(seed, files)
    balance.check()
