"""The soak test: clients of every kind, about 1,000 at a time, for minutes; half of them talk to
the echo server, half to the proxy before it. Linux only.

    python scripts/soak.py [--minutes 5] [--seed 1] [--connections 1000]

It fails if an answer that is due is wrong, missing or late, if a server's memory grows or a
descriptor of its stays open, if it says what it should not, or does not end as it should.
This program is the clients: sockets and selectors, nothing of pylibevent.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import heapq
import itertools
import os
import random
import re
import resource
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from math import inf
from pathlib import Path

MAX_LINE = 65536  # the echo server's
PREFIX = b"Client msg "
LIMIT = 60.0  # seconds for a server to start and to stop
HELD = 4 << 20  # bytes that both servers together hold for a client that does not read, at most
GROWTH = 2.0  # per cent more memory in the last quarter than in the second
JUDGED = 60.0  # seconds; memory of shorter runs is that of their beginning
AT_ONCE = 50  # connections begun in one round of the loop
SIZE_OF_PAGE = resource.getpagesize()


class Wrong(Exception):
    """What must not happen."""


# ---- kinds of clients ----


class Ending(Enum):
    HALF_CLOSE = auto()  # after all is sent; the server closes when all is answered
    CLOSE = auto()  # by the client, when all is answered
    SERVER = auto()  # by the server: a line was too long
    LEAVE = auto()  # by the client, with or without its answers


@dataclass
class Answered:
    """Sending goes on when so many bytes of the answer have come."""

    n: int


Piece = bytes | float | Answered  # to send; seconds to wait


@dataclass
class Plan:
    pieces: Iterator[Piece]
    owed: bytes  # the whole answer
    ending: Ending = Ending.HALF_CLOSE
    chunk: int = 1 << 18  # bytes read at once; 0: it never reads
    pause: float = 0  # seconds between reads
    small_buffers: bool = False
    leaves_after: float | None = None  # seconds
    leaves_at: int | None = None  # bytes of the answer
    resets: bool = False
    goes_on: bool = False  # sending, whatever the server says


def most_on_the_way() -> int:
    """Bytes that the servers hold and the kernel can, in four connections from client to client."""
    limits = [Path(f"/proc/sys/net/ipv4/tcp_{way}mem").read_text().split()[2] for way in "rw"]
    return HELD + 4 * sum(map(int, limits))


NOISE = random.Random(0).randbytes(1 << 20)
TEXT = NOISE.replace(b"\n", b"")


def answers(data: bytes) -> bytes:
    *lines, rest = data.split(b"\n")
    if rest:
        lines.append(rest)
    return b"".join([b"%b%b\n" % (PREFIX, line.removesuffix(b"\r")) for line in lines])


def a_line(rng: random.Random) -> bytes:
    most = rng.choices((0, 1, 20, 100, 4096, MAX_LINE), (5, 5, 40, 35, 13, 2))[0]
    length = rng.choice((most, rng.randint(0, most)))
    start = rng.randrange(len(TEXT) - length)
    return TEXT[start : start + length] + rng.choice((b"\n", b"\r\n"))


def some_lines(rng: random.Random, size: int, whole: bool = False) -> bytes:
    """Some of them many times, so that many come in one read; the last perhaps without its end."""
    lines = []
    while size > 0:
        line = a_line(rng)
        lines.append(line * rng.choices((1, 100), (9, 1))[0] if len(line) < 200 else line)
        size -= len(lines[-1])
    if not whole and rng.random() < 0.3:
        lines.append(a_line(rng).rstrip(b"\r\n"))
    return b"".join(lines)


def cut(rng: random.Random, data: bytes, pauses: float = 0.5, longest: float = 0.6) -> list[Piece]:
    """Pieces of it at random boundaries, with pauses after some."""
    pieces: list[Piece] = []
    at = 0
    for _ in range(rng.randint(0, 20)):
        end = at + rng.randint(1, rng.choice((1, 2, 10, 1000, 10_000, 65536)))
        pieces.append(data[at:end])
        at = end
        if at >= len(data):
            break
        if rng.random() < pauses:
            pieces.append(rng.uniform(0, longest))
    return [*pieces, data[at:]]


def talks(rng: random.Random) -> Plan:
    data = some_lines(rng, rng.choice((10, 1000, 30_000, 200_000)))
    return Plan(iter(cut(rng, data)), answers(data))


def stalls(rng: random.Random) -> Plan:
    data = some_lines(rng, rng.choice((1000, 30_000)))
    return Plan(iter(cut(rng, data, pauses=0.4, longest=2)), answers(data))


def asks_and_waits(rng: random.Random) -> Plan:
    pieces: list[Piece] = []
    owed = b""
    for _ in range(rng.randint(1, 100)):
        line = a_line(rng)
        owed += answers(line)
        pieces += [line, Answered(len(owed))]
    return Plan(iter(pieces), owed, Ending.CLOSE)


def half_closes_at_once(rng: random.Random) -> Plan:
    data = some_lines(rng, rng.choice((0, 10, 30_000)))
    return Plan(iter([rng.random(), data]), answers(data), small_buffers=True)


def says_nothing(rng: random.Random) -> Plan:
    ending = rng.choice((Ending.HALF_CLOSE, Ending.CLOSE))
    return Plan(iter([rng.uniform(0, 3)]), b"", ending)


def sends_random_bytes(rng: random.Random) -> Plan:
    start = rng.randrange(len(NOISE) // 2)
    data = NOISE[start : start + rng.randint(1, 200_000)]
    return Plan(iter(cut(rng, data)), answers(data))


def reads_slowly(rng: random.Random) -> Plan:
    data = some_lines(rng, 200_000)
    chunk = rng.randint(5000, 30_000)
    return Plan(iter([data]), answers(data), chunk=chunk, pause=0.1, small_buffers=True)


def sends_a_long_line(rng: random.Random) -> Plan:
    before = some_lines(rng, 5000, whole=True)
    length = rng.choice((MAX_LINE + 1, rng.randint(MAX_LINE + 1, 4 * MAX_LINE)))
    data = before + b"x" * length + b"\nnot read\n"
    return Plan(iter(cut(rng, data)), answers(before), Ending.SERVER)


def sends_an_endless_line(rng: random.Random) -> Plan:
    before = some_lines(rng, 5000, whole=True)
    pieces: Iterator[Piece] = itertools.chain([before], itertools.cycle((b"x" * 30_000, 0.03)))
    return Plan(pieces, answers(before), Ending.SERVER, goes_on=rng.random() < 0.5)


def never_reads(rng: random.Random) -> Plan:
    def flood() -> Iterator[Piece]:
        lines = (b"a" * rng.randint(300, 3000) + b"\n") * 30
        most = most_on_the_way()
        yield from itertools.repeat(lines, most // len(lines))
        raise Wrong(f"{most} bytes were taken from one who does not read")

    return Plan(
        flood(),
        b"",
        Ending.LEAVE,
        chunk=0,
        small_buffers=True,
        leaves_after=rng.uniform(2, 6),
        resets=rng.random() < 0.5,
    )


def never_reads_and_stays(rng: random.Random) -> Plan:
    """What is held for it is held for the whole run, so that growth of anything else shows."""
    return replace(never_reads(rng), leaves_after=inf)


def resets(rng: random.Random) -> Plan:
    data = some_lines(rng, 100_000)
    after = rng.choice((0, rng.uniform(0, 2)))
    pieces = iter(cut(rng, data))
    return Plan(pieces, answers(data), Ending.LEAVE, leaves_after=after, resets=True)


def leaves_in_an_answer(rng: random.Random) -> Plan:
    data = some_lines(rng, rng.choice((1000, 300_000)), whole=True)
    owed = answers(data)
    at = rng.randrange(len(owed))
    pieces: list[Piece] = [rng.random(), data]
    chunk = rng.randint(5000, 50_000)
    return Plan(iter(pieces), owed, Ending.LEAVE, chunk=chunk, leaves_at=at)


# How many of two hundred there are at any time. Few never read and leave: what is held for them
# comes and goes, and is the noise in the servers' memory.
KINDS: dict[Callable[[random.Random], Plan], int] = {
    talks: 48,
    asks_and_waits: 28,
    stalls: 24,
    half_closes_at_once: 12,
    says_nothing: 12,
    sends_random_bytes: 16,
    reads_slowly: 12,
    sends_a_long_line: 8,
    sends_an_endless_line: 8,
    never_reads_and_stays: 7,
    never_reads: 1,
    resets: 12,
    leaves_in_an_answer: 12,
}


# ---- one client ----


@dataclass
class Slot:
    """Where one client follows the other, of one kind and to one server."""

    number: int
    kind: Callable[[random.Random], Plan]
    server: Server
    rng: random.Random
    clients: int = 0
    lines: int = 0
    octets: int = 0


class Client:
    def __init__(self, soak: Soak, slot: Slot) -> None:
        slot.clients += 1
        self.soak, self.slot = soak, slot
        self.plan = slot.kind(slot.rng)
        self.name = f"{slot.kind.__name__}, {slot.clients} in slot {slot.number}"
        self.out = memoryview(b"")
        self.received = 0
        self.awaited: int | None = None
        self.reading, self.writing = self.plan.chunk > 0, True
        self.half_closed = self.refused = self.closed = False
        self.progress = time.monotonic()
        self.mask = 0
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.plan.small_buffers:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)

    def begin(self) -> None:
        error = self.sock.connect_ex(("127.0.0.1", self.slot.server.port))
        if error not in {0, errno.EINPROGRESS}:
            raise Wrong(f"cannot connect: {os.strerror(error)}")
        self.update()
        if self.plan.leaves_after is not None:
            self.soak.later(self, self.plan.leaves_after, self.close)

    def update(self) -> None:
        mask = selectors.EVENT_READ * self.reading | selectors.EVENT_WRITE * self.writing
        if self.closed or mask == self.mask:
            return
        if not mask:
            self.soak.selector.unregister(self.sock)
        elif self.mask:
            self.soak.selector.modify(self.sock, mask, self)
        else:
            self.soak.selector.register(self.sock, mask, self)
        self.mask = mask

    def ready(self, mask: int) -> None:
        self.progress = time.monotonic()
        if mask & selectors.EVENT_READ:
            self.read()
        if mask & selectors.EVENT_WRITE and self.writing and not self.closed:
            self.write()
        self.update()

    def go_on(self, what: str) -> None:
        """After a pause."""
        self.progress = time.monotonic()
        setattr(self, what, True)
        self.update()

    def write(self) -> None:
        if not self.out and not self.next_piece():
            return
        try:
            self.out = self.out[self.sock.send(self.out) :]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            if self.plan.ending is not Ending.SERVER:
                raise Wrong(f"{error}, {self.missing()}") from None
            self.writing, self.refused = False, True
            if not self.reading:
                self.close()

    def next_piece(self) -> bool:
        """Whether there is something to send now."""
        for piece in self.plan.pieces:
            if isinstance(piece, bytes):
                self.out = memoryview(piece)
                if piece:
                    return True
            else:
                if isinstance(piece, float):
                    self.soak.later(self, piece, lambda: self.go_on("writing"))
                elif self.received >= piece.n:
                    continue
                else:
                    self.awaited = piece.n
                self.writing = False
                return False
        self.writing = False
        if self.plan.ending is Ending.HALF_CLOSE:
            self.half_closed = True
            with contextlib.suppress(OSError):  # reset: reading tells
                self.sock.shutdown(socket.SHUT_WR)
        elif self.plan.ending is Ending.CLOSE:
            self.close()
        return False

    def read(self) -> None:
        plan = self.plan
        try:
            part = self.sock.recv(plan.chunk)
        except BlockingIOError:
            return
        except ConnectionError as error:
            self.ended(error)
            return
        if not part:
            self.ended(None)
            return
        end = self.received + len(part)
        owed = plan.owed[self.received : end]
        if part != owed:
            raise Wrong(f"byte {self.received} and on: {part[:60]!r} instead of {owed[:60]!r}")
        self.received = end
        self.slot.octets += len(part)
        self.slot.lines += part.count(b"\n")
        if plan.leaves_at is not None and end >= plan.leaves_at:
            self.close()
        elif plan.pause:
            self.reading = False
            self.soak.later(self, plan.pause, lambda: self.go_on("reading"))
        elif self.awaited is not None and end >= self.awaited:
            self.awaited = None
            self.writing = True

    def missing(self) -> str:
        return f"{len(self.plan.owed) - self.received} of {len(self.plan.owed)} bytes are missing"

    def ended(self, error: OSError | None) -> None:
        """By the server. Where a line was too long it may be a reset: it does not read for ever."""
        ending = self.plan.ending
        expected = ending is Ending.SERVER or (self.half_closed and error is None)
        if not expected or self.received < len(self.plan.owed):
            raise Wrong(f"{error or 'closed'}, {self.missing()}")
        if error is None and self.plan.goes_on and not self.refused:
            self.reading = False
        else:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.mask:
            self.soak.selector.unregister(self.sock)
        if self.plan.resets:
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()
        self.soak.clients.discard(self)
        self.soak.vacant.append(self.slot)


# ---- the servers ----

CLIENT = r"\('127\.0\.0\.1', \d+\)"
GONE = r"\[Errno \d+\] bufferevent: (?:Connection reset by peer|Broken pipe)"
SAID = {
    "too long": rf"WARNING {CLIENT} sent a line of more than {MAX_LINE} bytes",
    "gone": rf"(?:INFO {CLIENT}|a connection to 127\.0\.0\.1:\d+): {GONE}",
    "stopped": r"INFO stopped",
}


class Server:
    """An example in a process of its own."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.name = path.stem
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments], stderr=subprocess.PIPE, text=True
        )
        self.said: Counter[str] = Counter()
        self.strange: list[str] = []
        self.memory: list[int] = []  # KiB, each second
        self.before = self.most = self.after = 0  # descriptors
        assert self.process.stderr
        line = self.process.stderr.readline()
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)$", line)
        if not found:
            raise Wrong(f"{self.name}: {line}{self.process.stderr.read()}")
        self.port = int(found[1])
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            for name, pattern in SAID.items():
                if re.search(rf"{self.name}(?: |: ){pattern}$", line.rstrip("\n")):
                    self.said[name] += 1
                    break
            else:
                self.strange.append(line.rstrip("\n"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check(self) -> None:
        if (status := self.process.poll()) is not None:
            raise Wrong(f"{self.name} ended with status {status}")

    def sample(self) -> None:
        self.check()
        resident = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        self.memory.append(resident * SIZE_OF_PAGE // 1024)
        self.most = max(self.most, self.descriptors())

    def quarters(self) -> list[float]:
        """The median of memory in each quarter of the run."""
        n = len(self.memory)
        parts = [self.memory[n * i // 4 : n * (i + 1) // 4] for i in range(4)]
        return [statistics.median(part) if part else 0 for part in parts]

    def growth(self) -> float:
        _, second, _, last = self.quarters()
        return (last / second - 1) * 100 if second else 0

    def stop(self, signum: int) -> None:
        self.check()
        self.process.send_signal(signum)
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Wrong(f"{self.name} goes on after a signal") from None
        self.listener.join(LIMIT)
        if status:
            raise Wrong(f"{self.name} ended with status {status}")


# ---- the run ----


@dataclass
class Soak:
    seconds: float
    seed: int
    connections: int
    late: float  # seconds without a byte for or from a client, or for the last to be closed
    examples: Path
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    clients: set[Client] = field(default_factory=set)
    vacant: deque[Slot] = field(default_factory=deque)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timers: list[tuple[float, int, Client, Callable[[], None]]] = []
        self.order = itertools.count()
        self.servers: list[Server] = []
        self.slots: list[Slot] = []

    def later(self, client: Client, seconds: float, call: Callable[[], None]) -> None:
        when = time.monotonic() + seconds
        heapq.heappush(self.timers, (when, next(self.order), client, call))

    def run(self) -> bool:
        """Whether all was well."""
        try:
            with contextlib.ExitStack() as stack:
                self.start(stack)
                self.serve_until(time.monotonic() + self.seconds)
                self.finish()
        except Wrong as error:
            self.wrong.insert(0, str(error))
        self.report()
        return not self.wrong

    def start(self, stack: contextlib.ExitStack) -> None:
        def started(name: str, *arguments: str) -> Server:
            server = Server(self.examples / name, *arguments)
            stack.callback(server.process.kill)
            self.servers.append(server)
            return server

        echo = started("echo_server.py", "--port", "0")
        proxy = started("le_proxy.py", "0", str(echo.port))
        # One that is answered: both loops run, and have all the descriptors that they need.
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT) as sock:
            sock.sendall(b"\n")
            if sock.recv(100) != answers(b"\n"):
                raise Wrong("the first line is not answered")
            echo.before = echo.descriptors() - 1
            proxy.before = proxy.descriptors() - 2
        kinds = [kind for kind, n in KINDS.items() for _ in range(n)]
        for i in range(self.connections):
            rng = random.Random(f"{self.seed} {i}")
            self.slots.append(Slot(i, kinds[i % len(kinds)], self.servers[(i + i // 200) % 2], rng))
        random.Random(self.seed).shuffle(self.slots)
        self.vacant.extend(self.slots)

    @contextlib.contextmanager
    def blaming(self, client: Client) -> Iterator[None]:
        try:
            yield
        except Wrong as error:
            self.wrong.append(f"{client.slot.server.name}: {client.name}: {error}")
            client.close()

    def serve_until(self, end: float) -> None:
        next_sample = 0.0
        while (now := time.monotonic()) < end and not self.wrong:
            if now >= next_sample:
                next_sample = now + 1
                for server in self.servers:
                    server.sample()
                self.find_late(now)
            for _ in range(min(AT_ONCE, len(self.vacant))):
                client = Client(self, self.vacant.popleft())
                self.clients.add(client)
                with self.blaming(client):
                    client.begin()
            self.round(next_sample - now)

    def finish(self) -> None:
        """No new clients; when the last are gone all is as it was, and the servers stop."""
        for client in list(self.clients):
            if client.plan.leaves_after == inf:
                client.close()
        while self.clients and not self.wrong:
            self.find_late(time.monotonic())
            self.round(1)
        if self.wrong:
            for server in self.servers:  # perhaps because it is about to be dead
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.process.wait(1)
                server.check()
            return
        deadline = time.monotonic() + self.late
        for server in self.servers:
            while (n := server.descriptors()) != server.before and time.monotonic() < deadline:
                time.sleep(0.01)  # nothing tells that a descriptor is closed
            server.after = n
            if n != server.before:
                raise Wrong(f"{server.name} has {n} descriptors open, not {server.before}")
        for server, signum in zip(self.servers, (signal.SIGINT, signal.SIGTERM), strict=True):
            server.stop(signum)
        self.judge()

    def round(self, seconds: float) -> None:
        if self.vacant:
            seconds = min(seconds, 0.01)
        if self.timers:
            seconds = min(seconds, self.timers[0][0] - time.monotonic())
        for key, mask in self.selector.select(max(0, seconds)):
            client: Client = key.data
            if not client.closed:
                with self.blaming(client):
                    client.ready(mask)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, _, client, call = heapq.heappop(self.timers)
            if not client.closed:
                with self.blaming(client):
                    call()

    def find_late(self, now: float) -> None:
        for client in list(self.clients):
            if now - client.progress <= self.late or client.plan.leaves_after is not None:
                continue
            with self.blaming(client):
                raise Wrong(f"nothing has happened for {self.late:.0f} s, {client.missing()}")

    def judge(self) -> None:
        too_long = rude = 0
        for slot in self.slots:
            ending = slot.kind(random.Random(0)).ending
            too_long += slot.clients if ending is Ending.SERVER else 0
            rude += slot.clients if ending in {Ending.SERVER, Ending.LEAVE} else 0
        echo, proxy = self.servers
        for server in self.servers:
            self.wrong += [f"{server.name} says: {line}" for line in server.strange[:5]]
            if server.said["gone"] > rude:
                self.wrong.append(f"{server.name} has lost {server.said['gone']}, {rude} were rude")
            if self.seconds >= JUDGED and abs(server.growth()) > GROWTH:
                self.wrong.append(f"{server.name}'s memory has changed by {server.growth():+.1f} %")
        if echo.said["too long"] != too_long:
            self.wrong.append(f"{echo.said['too long']} complaints of {too_long} long lines")
        if (echo.said["stopped"], proxy.said["stopped"]) != (1, 0):
            self.wrong.append("the echo server has not said that it stops")

    def report(self) -> None:
        print(
            f"seed {self.seed}: {self.seconds:.0f} s, {self.connections} connections at a time\n\n"
            f"{'connections made':<24}{'direct':>10}{'proxy':>10}{'lines':>12}{'MB':>10}"
        )
        for kind in KINDS:
            self.row(kind.__name__, [slot for slot in self.slots if slot.kind is kind])
        self.row("all", self.slots)
        print(f"\n{'KiB by quarter (median)':<24}{'1st':>10}{'2nd':>10}{'3rd':>10}{'4th':>10}")
        for server in self.servers:
            row = "".join(f"{kib:>10.0f}" for kib in server.quarters())
            print(f"{server.name:<24}{row}  4th to 2nd: {server.growth():+.2f} %")
        print(f"\n{'descriptors':<24}{'before':>10}{'most':>10}{'after':>10}")
        for server in self.servers:
            print(f"{server.name:<24}{server.before:>10}{server.most:>10}{server.after:>10}")
        print("", *[f"WRONG: {line}" for line in self.wrong[:20]] or ["all is well"], sep="\n")

    def row(self, name: str, slots: list[Slot]) -> None:
        by = [sum(slot.clients for slot in slots if slot.server is s) for s in self.servers]
        lines, octets = sum(s.lines for s in slots), sum(s.octets for s in slots)
        cells = "".join(f"{n:>10}" for n in by)
        print(f"{name:<24}{cells}{lines:>12}{octets / 1e6:>10.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Clients of every kind against the examples.")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--connections", type=int, default=1000, help="at a time")
    parser.add_argument("--late", type=float, default=60, help="seconds until an answer is late")
    parser.add_argument(
        "--examples",
        type=Path,
        default=Path(__file__).resolve().parent.parent / "examples",
        help="where echo_server.py and le_proxy.py are",
    )
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = arguments.connections + 100
    if hard != resource.RLIM_INFINITY and hard < 2 * needed:  # the proxy has two for each
        print(f"only {hard} descriptors are allowed here", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    soak = Soak(
        arguments.minutes * 60,
        arguments.seed,
        arguments.connections,
        arguments.late,
        arguments.examples,
    )
    return 0 if soak.run() else 1


if __name__ == "__main__":
    sys.exit(main())
