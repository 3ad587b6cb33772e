"""libevent's classic benchmark: a chain of events through many socket pairs.

    python benchmarks/chain.py [--quick] [-n 100 1000 9000] [-a 1 100] [-w 10000] [-m method] [-t]
    python benchmarks/chain.py --peer pylibevent -n 1000 -a 100

`active` of the pairs get a byte. Each event reads one byte and, `writes` times in all, writes one
into the next pair. So a run has active + writes events, among many descriptors that are only
waited for. README.md says what is compared, and how.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import platform
import resource
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylibevent import (
    EV_PERSIST,
    EV_READ,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    Event,
    EventBase,
    EventConfig,
    supported_methods,
    version,
)

SELECTORS = {"epoll": "EpollSelector", "poll": "PollSelector", "select": "SelectSelector"}


@dataclass
class Work:
    """What is to be done, and by which backend ("": the best)."""

    pairs: int
    active: int
    writes: int
    runs: int
    method: str = ""
    once: bool = False
    timeouts: bool = False

    @property
    def events(self) -> int:
        return self.active + self.writes


class Chain:
    """The pairs, and the callback that every Python peer has called."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.handled = self.left = 0
        self.stop: Callable[[], object] = lambda: None
        self.pairs = [socket.socketpair() for _ in range(work.pairs)]
        self.reads = [one.fileno() for one, _ in self.pairs]
        self.writes = [other.fileno() for _, other in self.pairs]
        self.nexts = self.writes[1:] + self.writes[:1]

    def pass_on(self, fd: int, _what: int, next_fd: int) -> None:
        os.read(fd, 1)
        self.handled += 1
        if self.left:
            self.left -= 1
            os.write(next_fd, b"e")
        elif self.handled == self.work.events:
            self.stop()

    def begin(self) -> None:
        self.handled, self.left = 0, self.work.writes
        space = self.work.pairs // self.work.active
        for i in range(self.work.active):
            os.write(self.writes[i * space], b"e")

    def measure(self, run: Callable[[], object]) -> None:
        """Prints the microseconds of each run, and how many events it had."""
        for _ in range(self.work.runs):
            self.begin()
            start = time.perf_counter()
            run()
            print(f"{(time.perf_counter() - start) * 1e6:.1f} {self.handled}", flush=True)


# ---- the peers ----


def on_pylibevent(chain: Chain) -> None:
    config = EventConfig()
    if chain.work.method:
        for method in set(supported_methods()) - {chain.work.method}:
            config.avoid_method(method)
    with EventBase(config) as base:
        for i, (fd, next_fd) in enumerate(zip(chain.reads, chain.nexts, strict=True)):
            event = Event(base, fd, EV_READ | EV_PERSIST, chain.pass_on, next_fd)
            event.add(60 + i % 60 if chain.work.timeouts else None)

        def loop_until_done() -> None:
            while chain.handled != chain.work.events:
                base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)

        if chain.work.once:
            chain.measure(loop_until_done)
        else:
            chain.stop = base.loopbreak
            chain.measure(base.dispatch)


def on_asyncio_loop(chain: Chain, loop: asyncio.AbstractEventLoop) -> None:
    limits: dict[int, asyncio.TimerHandle] = {}

    def pass_on(fd: int, what: int, next_fd: int) -> None:
        limits[fd].cancel()
        limits[fd] = loop.call_later(60, chain.stop)
        chain.pass_on(fd, what, next_fd)

    callback = pass_on if chain.work.timeouts else chain.pass_on
    for i, (fd, next_fd) in enumerate(zip(chain.reads, chain.nexts, strict=True)):
        loop.add_reader(fd, callback, fd, int(EV_READ), next_fd)
        if chain.work.timeouts:
            limits[fd] = loop.call_later(60 + i % 60, chain.stop)
    chain.stop = loop.stop
    chain.measure(loop.run_forever)
    for fd in chain.reads:
        loop.remove_reader(fd)
    loop.close()


def new_selector(method: str) -> selectors.BaseSelector:
    if not method:
        return selectors.DefaultSelector()
    return getattr(selectors, SELECTORS[method])()  # type: ignore[no-any-return]


def on_asyncio(chain: Chain) -> None:
    on_asyncio_loop(chain, asyncio.SelectorEventLoop(new_selector(chain.work.method)))


def on_uvloop(chain: Chain) -> None:
    import uvloop

    on_asyncio_loop(chain, uvloop.new_event_loop())


def on_selectors(chain: Chain) -> None:
    with new_selector(chain.work.method) as selector:
        for fd, next_fd in zip(chain.reads, chain.nexts, strict=True):
            selector.register(fd, selectors.EVENT_READ, next_fd)

        def loop_until_done() -> None:
            while chain.handled != chain.work.events:
                for key, what in selector.select():
                    chain.pass_on(key.fd, what, key.data)

        chain.measure(loop_until_done)


PEERS: dict[str, Callable[[Chain], None]] = {
    "pylibevent": on_pylibevent,
    "uvloop": on_uvloop,
    "asyncio": on_asyncio,
    "selectors": on_selectors,
}


# ---- side by side ----


def commands(work: Work, c_program: Path | None) -> dict[str, list[str]]:
    """How to run each peer that there is for this work."""
    found = {}
    if c_program:
        numbers = (work.pairs, work.active, work.writes, work.runs)
        flags = (int(work.once), int(work.timeouts))
        found["C"] = [str(c_program), *map(str, numbers), work.method, *map(str, flags)]
    options = [f"-n{work.pairs}", f"-a{work.active}", f"-w{work.writes}", f"-r{work.runs}"]
    options += [f"-m{work.method}"] * bool(work.method)
    options += ["--once"] * work.once + ["-t"] * work.timeouts
    for name in PEERS:
        if name == "uvloop" and (work.method or not importlib.util.find_spec("uvloop")):
            continue
        if name == "selectors" and work.timeouts:
            continue
        if name in ("asyncio", "selectors") and work.method not in ("", *SELECTORS):
            continue
        found[name] = [sys.executable, __file__, "--peer", name, *options]
    return found


def compile_c(directory: str) -> Path | None:
    """c/chain.c as a program; None without a C compiler or pkg-config."""
    if not shutil.which("cc") or not shutil.which("pkg-config"):
        return None
    program = Path(directory, "chain")
    config = ["pkg-config", "--cflags", "--libs", "libevent_core"]
    flags = subprocess.run(config, check=True, capture_output=True, text=True).stdout.split()
    source = str(Path(__file__).with_name("c") / "chain.c")
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), source, *flags], check=True)
    return program


def run_alone(name: str, work: Work) -> int:
    if name != "C":
        PEERS[name](Chain(work))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        program = compile_c(directory)
        if program is None:
            print("chain.py: no cc, or no pkg-config", file=sys.stderr)
            return 1
        return subprocess.run(commands(work, program)["C"], check=False).returncode


def ns_per_event(command: list[str], work: Work) -> float:
    """The median of a process' runs. RuntimeError if one of them handled too few or too many."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    lines = [line.split() for line in done.stdout.splitlines()]
    if [int(handled) for _, handled in lines] != [work.events] * work.runs:
        raise RuntimeError(f"{command}: {work.events} events were due:\n{done.stdout}")
    return statistics.median(float(us) for us, _ in lines) * 1000 / work.events


def compare(work: Work, rounds: int, c_program: Path | None) -> None:
    """Prints a table line for each peer. Rounds go through all peers, each from another one on."""
    todo = list(commands(work, c_program).items())
    results: dict[str, list[float]] = {name: [] for name, _ in todo}
    for _ in range(rounds):
        for name, command in todo:
            results[name].append(ns_per_event(command, work))
        todo.append(todo.pop(0))
    for name, times in results.items():
        ratio = ""
        if "C" in results and name != "C":
            ratios = [mine / c for mine, c in zip(times, results["C"], strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        ns = statistics.median(times)
        print(f"| {work.pairs} | {work.active} | {name} | {ns:.0f} | {ratio} |", flush=True)


def raise_limit() -> int:
    """Descriptors: as many as the system allows, not as many as the shell does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def arguments() -> Any:
    parser = argparse.ArgumentParser(description="libevent's chain benchmark, side by side.")
    add = parser.add_argument
    add("-n", "--pairs", type=int, nargs="+", default=[100, 1000, 9000], help="socket pairs")
    add("-a", "--active", type=int, nargs="+", default=[1, 100], help="bytes under way at once")
    add("-w", "--writes", type=int, default=10_000, help="how often a byte is passed on")
    add("-r", "--runs", type=int, default=25, help="in each process")
    add("-m", "--method", default="", help="the backend: epoll, poll, select")
    add("-t", "--timeouts", action="store_true", help="each event has a timeout as well")
    add("--once", action="store_true", help="loop(EVLOOP_ONCE | EVLOOP_NONBLOCK), not dispatch()")
    add("--rounds", type=int, default=7, help="processes of each peer")
    add("--quick", action="store_true", help="one round, fewer and shorter runs")
    add("--peer", choices=["C", *PEERS], help="only it: microseconds, events of each run")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    if given.quick:
        given.rounds, given.runs, given.writes = 1, min(given.runs, 5), min(given.writes, 1000)
    descriptors = raise_limit()
    works = [
        Work(pairs, active, given.writes, given.runs, given.method, given.once, given.timeouts)
        for pairs in given.pairs
        for active in given.active
        if 0 < active <= pairs
    ]
    for work in list(works):
        if 2 * work.pairs + 50 > descriptors:
            print(f"{work.pairs} pairs: only {descriptors} descriptors", file=sys.stderr)
            works.remove(work)
    if not works:
        return 1
    if given.peer:
        return max(run_alone(given.peer, work) for work in works)
    print(f"libevent {version()}, {platform.python_implementation()} {platform.python_version()},")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, rounds: {given.rounds}\n")
    print("| pairs | active | | ns an event | x C (lowest to highest round) |")
    print("| ---: | ---: | --- | ---: | --- |", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        c_program = compile_c(directory)
        for work in works:
            compare(work, given.rounds, c_program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
