"""CPython's own tests of asyncio with aio.EventLoop in place of the selector loop.

    python scripts/asyncio_suite.py [--jobs N] [--skips] [test_events ...]

Each module runs in a process of its own. Exit status 0: nothing failed. Needs a Python that has the
package `test`. What is skipped, and why, stands in SKIPPED; each of those tests is run by itself
with --skips, which says which of them pass by now.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import importlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pylibevent import aio

MODULES = (
    "test_events",
    "test_base_events",
    "test_selector_events",
    "test_streams",
    "test_subprocess",
    "test_sslproto",
    "test_ssl",
    "test_unix_events",
    "test_server",
    "test_sock_lowlevel",
    "test_runners",
    "test_tasks",
    "test_sendfile",
    "test_buffered_proto",
)

# Patterns of test ids, and why they are left out: none is, at present.
SKIPPED: dict[str, str] = {}

made = 0


class Loop(aio.EventLoop):
    """Takes the selector that a test gives it, and does without."""

    def __init__(self, selector: Any = None) -> None:
        global made  # noqa: PLW0603
        made += 1
        if selector is not None:
            selector.close()
        super().__init__()


def install() -> None:
    """Wherever asyncio and its tests look for the selector loop they find ours."""
    unix = importlib.import_module("asyncio.unix_events")
    for module in (asyncio, unix):
        for name in ("SelectorEventLoop", "_UnixSelectorEventLoop", "EventLoop"):
            if hasattr(module, name):
                setattr(module, name, Loop)
    unix._UnixDefaultEventLoopPolicy._loop_factory = Loop


def tests(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests(test)
        else:
            yield test


def reason(name: str) -> str | None:
    for pattern, why in SKIPPED.items():
        if fnmatch.fnmatch(name, pattern):
            return why
    return None


def run_module(name: str, skips: bool) -> None:
    """In a process of its own: runs it, and prints counts as its last line."""
    if importlib.util.find_spec(f"test.test_asyncio.{name}") is None:
        print("null")
        return
    # A shell's background job has it ignored, and test_runners would wait for it for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install()
    loader = unittest.TestLoader()
    suite, skipped = unittest.TestSuite(), 0
    for test in tests(loader.loadTestsFromName(f"test.test_asyncio.{name}")):
        if bool(reason(test.id())) is skips:
            suite.addTest(test)
        else:
            skipped += 1
    result = unittest.TextTestRunner(verbosity=2 if skips else 1).run(suite)
    bad = [test.id() for test, _ in (*result.failures, *result.errors)]
    bad += [test.id() for test in result.unexpectedSuccesses]
    counts = {
        "run": result.testsRun - len(result.skipped),
        "failed": sorted(set(bad)),
        "left out here": skipped,
        "left out by CPython": len(result.skipped),
        "loops": made,
    }
    print(json.dumps(counts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds for a module")
    parser.add_argument("--skips", action="store_true", help="run what is skipped, and only that")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_module(args.modules[0], args.skips)
        return 0

    def run(name: str) -> tuple[str, float, int, str, str]:
        start = time.monotonic()
        command = [sys.executable, __file__, "--one", name, *(["--skips"] if args.skips else [])]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=args.limit, check=False
            )
        except subprocess.TimeoutExpired as late:
            err = late.stderr or b""
            return name, args.limit, -1, "", err.decode() if isinstance(err, bytes) else err
        return name, time.monotonic() - start, done.returncode, done.stdout, done.stderr

    status = 0
    totals: dict[str, int] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, seconds, code, out, err in pool.map(run, args.modules):
            if code != 0 or not out:
                print(f"{name:22} ended with {code} after {seconds:.0f} s", err[-6000:], sep="\n")
                status = 1
                continue
            counts = json.loads(out.splitlines()[-1])
            if counts is None:
                print(f"{name:22} not in this Python")
                continue
            failed = counts.pop("failed")
            for key, value in counts.items():
                totals[key] = totals.get(key, 0) + value
            print(f"{name:22} {seconds:6.1f} s  {counts}", f"FAILED: {len(failed)}" * bool(failed))
            if failed:
                status = 1
                print(err[-20000:] if args.skips else err)
    print(f"Python {sys.version.split()[0]}: {totals}", "FAILED" * status)
    return status


if __name__ == "__main__":
    sys.exit(main())
