"""Counts Ctrl-C, and ends on the third. Ports signal-test.c.

    python signal_test.py [--times 3]

The loop ends by itself: when the signal's event is deleted, nothing is left to wait for.
"""

from __future__ import annotations

import argparse
import signal
import sys

from pylibevent import EventBase, Signal


class Counter:
    def __init__(self, base: EventBase, times: int) -> None:
        self.times = times
        self.count = 0
        self.event = Signal(base, signal.SIGINT, self.on_signal)
        self.event.add()

    def on_signal(self, signum: int) -> None:
        self.count += 1
        print(f"{signal.Signals(signum).name} {self.count} of {self.times}", flush=True)
        if self.count >= self.times:
            self.event.delete()


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts SIGINT, and ends on the third.")
    parser.add_argument("--times", type=int, default=3, help="how many SIGINT it takes")
    arguments = parser.parse_args()
    with EventBase() as base:
        Counter(base, arguments.times)
        print("press Ctrl-C", flush=True)
        base.dispatch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
