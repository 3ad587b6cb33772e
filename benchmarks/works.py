"""What is measured, and who takes part."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Literal

Kind = Literal["echo", "connect", "relay", "chain", "timers", "tls", "handshakes", "http", "wsgi"]
Command = tuple[str, ...]  # "c:NAME", a file, or a module of this package; then its arguments


@dataclass(frozen=True)
class Peer:
    """A peer's programs: one for each kind of work that it takes part in."""

    title: str
    echo: Command = ()
    relay: Command = ()
    timers: Command = ()
    tls: Command = ()
    chain: str = ""  # its name in chain.py
    needs: str = ""  # a module, or some
    http: Command = ()
    wsgi: Command = ()

    @property
    def installed(self) -> bool:
        return all(map(importlib.util.find_spec, self.needs.split()))


PEERS = {
    "epoll": Peer("C, bare epoll", echo=("c:epoll",)),
    "c": Peer(
        "C, libevent",
        ("c:echo",),
        ("c:relay", "{backend}"),
        ("c:timers",),
        ("c:tls_echo", "{cert}"),
        "C",
        http=("c:http", "{file}"),
    ),
    "c-nodelay": Peer("C, libevent, TCP_NODELAY", ("c:echo", "-n"), ("c:relay", "-n", "{backend}")),
    "pylibevent-shipped": Peer(
        "pylibevent, the example as shipped",
        ("examples/echo_server.py", "--port", "0"),
        ("examples/le_proxy.py", "127.0.0.1:0", "127.0.0.1:{backend}"),
    ),
    "pylibevent": Peer(
        "pylibevent",
        ("echo_pylibevent", "plain"),
        ("relay_pylibevent", "{backend}"),
        ("timers", "pylibevent"),
        ("echo_pylibevent", "plain", "--tls", "{cert}"),
        "pylibevent",
        http=("http_pylibevent", "{file}"),
        wsgi=("wsgi", "pylibevent"),
    ),
    "pylibevent-readlines": Peer("pylibevent, `readlines`", ("echo_pylibevent", "readlines")),
    "uvloop": Peer(
        "uvloop Protocol",
        ("echo_protocol", "uvloop"),
        ("relay_protocol", "uvloop", "{backend}"),
        ("timers", "uvloop"),
        ("echo_protocol", "uvloop", "--tls", "{cert}"),
        "uvloop",
        needs="uvloop",
    ),
    "uvloop-streams": Peer("uvloop streams", ("echo_streams", "uvloop"), needs="uvloop"),
    "asyncio": Peer(
        "asyncio Protocol",
        ("echo_protocol", "asyncio"),
        ("relay_protocol", "asyncio", "{backend}"),
        ("timers", "asyncio"),
        ("echo_protocol", "asyncio", "--tls", "{cert}"),
        "asyncio",
    ),
    "asyncio-streams": Peer("asyncio streams", ("echo_streams", "asyncio")),
    "aio": Peer(
        "Protocol on pylibevent.aio",
        ("echo_protocol", "pylibevent"),
        ("relay_protocol", "pylibevent", "{backend}"),
    ),
    "aio-streams": Peer("asyncio streams on pylibevent.aio", ("echo_streams", "pylibevent")),
    "aio-bridge": Peer("pylibevent.aio streams", ("echo_bridge",)),
    "gevent": Peer("gevent StreamServer", ("echo_gevent",), needs="gevent"),
    "aiohttp": Peer("aiohttp on uvloop", http=("http_aiohttp", "{file}"), needs="aiohttp uvloop"),
    "gunicorn": Peer("gunicorn with gevent", wsgi=("wsgi", "gunicorn"), needs="gunicorn gevent"),
}
# Loops of asyncio's kind have no Protocol where only the loop is measured.
LOOP_TITLES = {"uvloop": "uvloop", "asyncio": "asyncio"}


@dataclass(frozen=True)
class Work:
    name: str
    title: str
    kind: Kind = "echo"
    connections: int = 50
    depth: int = 1
    size: int = 64
    idle: int = 0
    busy: bool = False  # a Python thread that never waits runs beside the loop
    pairs: int = 0
    active_pairs: int = 0
    count: int = 0
    unit: str = "messages/s"
    value: str = "rate"  # which figure of a measurement is compared
    lower_is_better: bool = False
    reference: str = "c"
    only: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ("c-nodelay",)

    @property
    def over_tls(self) -> bool:
        return self.kind in ("tls", "handshakes")

    @property
    def over_http(self) -> bool:
        return self.kind in ("http", "wsgi")

    @property
    def peers(self) -> list[str]:
        kind = {"connect": "echo", "handshakes": "tls"}.get(self.kind, self.kind)
        return [
            name
            for name, peer in PEERS.items()
            if getattr(peer, kind)
            and name not in self.left_out
            and (not self.only or name in self.only)
        ]

    def peer_title(self, peer: str) -> str:
        loops_only = self.kind in ("chain", "timers")
        return (LOOP_TITLES if loops_only else {}).get(peer, PEERS[peer].title)


def web(name: str, title: str, kind: Kind, size: int, reference: str) -> Work:
    return Work(name, title, kind, size=size, unit="requests/s", reference=reference)


def chain(pairs: int, active: int) -> Work:
    return Work(
        f"chain-{pairs}-{active}",
        f"events: {pairs} socket pairs, {active} active",
        "chain",
        pairs=pairs,
        active_pairs=active,
        unit="ns an event",
        value="ns",
        lower_is_better=True,
    )


ALL = [
    Work("echo-1", "echo, 1 connection", connections=1),
    Work("echo-50", "echo, 50 connections"),
    Work("echo-500", "echo, 500 connections", connections=500),
    Work("echo-5000", "echo, 5,000 connections", connections=5000),
    Work("pipelined", "echo, 50 connections, 50 lines pipelined", depth=50),
    Work(
        "echo-64k",
        "echo, 5 connections, lines of 64 KiB",
        connections=5,
        size=65536,
        left_out=(),
        reference="c-nodelay",
    ),
    Work(
        "relay",
        "relay, 5 connections, chunks of 1 MiB there and back",
        "relay",
        connections=5,
        size=2**20,
        unit="MiB/s",
        left_out=(),
        reference="c-nodelay",
    ),
    Work("connect", "connect, one line, close; 50 at a time", "connect", unit="connections/s"),
    Work("idle", "echo, 50 connections beside 9,000 idle ones", idle=9000),
    Work(
        "busy",
        "echo, 1 connection, a busy Python thread beside the loop",
        connections=1,
        busy=True,
        unit="ms, p99",
        value="p99_ms",
        lower_is_better=True,
        reference="asyncio",
        left_out=("epoll", "c", "c-nodelay", "pylibevent-shipped"),
    ),
    *[chain(pairs, active) for pairs in (100, 1000, 9000) for active in (1, 100)],
    Work("tls-echo-50", "TLS echo, 50 connections", "tls"),
    Work("tls-64k", "TLS echo, 5 connections, lines of 64 KiB", "tls", connections=5, size=65536),
    Work(
        "tls-handshakes",
        "TLS: connect, handshake, one line, close; 50 at a time",
        "handshakes",
        unit="handshakes/s",
    ),
    Work(
        "timers",
        "100,000 timers, added and fired",
        "timers",
        count=100_000,
        unit="ns a timer",
        value="ns",
        lower_is_better=True,
    ),
    web("http-13", "HTTP, 50 connections, 13 bytes", "http", 13, "aiohttp"),
    web("http-64k", "HTTP, 50 connections, a file of 64 KiB", "http", 65536, "aiohttp"),
    web("wsgi-13", "WSGI, 50 connections, 13 bytes", "wsgi", 13, "gunicorn"),
]
if not shutil.which("wrk"):
    ALL = [work for work in ALL if not work.over_http]
if importlib.util.find_spec("pylibevent._libevent_ssl") is None:
    ALL = [work for work in ALL if not work.over_tls]
BY_NAME = {work.name: work for work in ALL}
