"""A timer every two seconds, which tells how long it really was. Ports time-test.c.

    python time_test.py [-p] [--interval 2] [--times 0]

Without -p the timer fires once and is added again in its callback, so that each delay adds up;
with -p libevent adds it again (EV_PERSIST), counting from when it was due. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import sys
import time

from pylibevent import EventBase, Timer


class Clock:
    def __init__(self, base: EventBase, interval: float, times: int, persist: bool) -> None:
        self.interval = interval
        self.left = times
        self.timer = Timer(base, self.on_timeout, persist=persist)
        self.timer.add(interval)
        self.last = time.monotonic()

    def on_timeout(self) -> None:
        now = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')}: {now - self.last:.3f} seconds passed", flush=True)
        self.last = now
        self.left -= 1
        if self.left == 0:
            self.timer.close()
        elif not self.timer.pending():
            self.timer.add(self.interval)


def main() -> int:
    parser = argparse.ArgumentParser(description="A timer that tells how long it really was.")
    parser.add_argument("-p", "--persist", action="store_true", help="one persisting timer")
    parser.add_argument("--interval", type=float, default=2, help="seconds")
    parser.add_argument("--times", type=int, default=0, help="0: until Ctrl-C")
    arguments = parser.parse_args()
    with EventBase() as base:
        try:
            Clock(base, arguments.interval, arguments.times, arguments.persist)
        except ValueError as error:
            parser.error(str(error))
        try:
            base.dispatch()
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
