"""Timers: what it costs to add one, and to have it fire.

    python -m benchmarks.peers.timers pylibevent|asyncio|uvloop COUNT SECONDS

COUNT timers are added, each at a random time within SECONDS. The loop runs when all are due, so
that only the firing is measured and no waiting.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable

from benchmarks.peers import aio

Add = Callable[[float], object]


class Timers:
    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds, self.fired = count, seconds, 0
        self.stop: Callable[[], object] = lambda: None

    def fire(self) -> None:
        self.fired += 1
        if self.fired == self.count:
            self.stop()

    def measure(self, add: Add, run: Callable[[], object]) -> None:
        rng = random.Random(1)
        timeouts = [rng.uniform(0, self.seconds) for _ in range(self.count)]
        start = time.perf_counter()
        for timeout in timeouts:
            add(timeout)
        added = time.perf_counter() - start
        time.sleep(self.seconds + 0.02)
        start = time.perf_counter()
        run()
        fired = time.perf_counter() - start
        ns = 1e9 / self.count
        print(json.dumps({"add_ns": added * ns, "fire_ns": fired * ns, "fired": self.fired}))


def on_pylibevent(timers: Timers) -> None:
    from pylibevent import EventBase, Timer

    fire = timers.fire
    with EventBase() as base:
        timers.stop = base.loopbreak
        timers.measure(lambda timeout: Timer(base, fire).add(timeout), base.dispatch)


def on_loop(timers: Timers, name: str) -> None:
    loop, fire = aio.new_loop(name), timers.fire
    timers.stop = loop.stop
    timers.measure(lambda timeout: loop.call_later(timeout, fire), loop.run_forever)
    loop.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["pylibevent", "asyncio", "uvloop"])
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    timers = Timers(given.count, given.seconds)
    if given.peer == "pylibevent":
        on_pylibevent(timers)
    else:
        on_loop(timers, given.peer)


if __name__ == "__main__":
    main()
