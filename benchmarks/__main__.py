"""The benchmarks: pylibevent beside C, uvloop, asyncio and gevent. README.md says what and how.

python -m benchmarks [--quick] [--work echo-50 ...] [--peer pylibevent ...] [--rounds 5]
                     [--table FILE] [--json FILE] [--plots DIRECTORY]
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.runner import Result, Runner, Settings, enough_descriptors
from benchmarks.works import ALL, BY_NAME, PEERS, Work

QUICK = Settings(
    rounds=1,
    warmup=0.1,
    window=0.2,
    counts=0.1,
    chain_runs=3,
    chain_writes=2000,
    timers_within=0.2,
)


def say(text: str) -> None:
    print(text, file=sys.stderr)


def arguments() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="pylibevent beside C and other loops."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one short round: does everything run?")
    add("--work", nargs="+", choices=[*BY_NAME], metavar="WORK", help=", ".join(BY_NAME))
    add("--peer", nargs="+", choices=[*PEERS], metavar="PEER", help=", ".join(PEERS))
    add("--rounds", type=int, help="how often each peer has its turn")
    add("--window", type=float, help="seconds that count, in each turn")
    add("--table", type=Path, metavar="FILE", help="the table, which is printed anyway")
    add("--json", type=Path, metavar="FILE", help="every number")
    add("--plots", type=Path, metavar="DIRECTORY", help="SVG files")
    return parser.parse_args()


def chosen_peers(works: list[Work], wanted: list[str] | None) -> dict[str, list[str]]:
    """For each work those that take part; says who can't."""
    missing = [name for name in wanted or PEERS if not PEERS[name].installed]
    for name in missing:
        say(f"{name}: left out, {PEERS[name].needs} is not installed")
    return {
        work.name: [
            name for name in work.peers if name not in missing and (not wanted or name in wanted)
        ]
        for work in works
    }


def main() -> int:
    given = arguments()
    settings = QUICK if given.quick else Settings()
    settings.rounds = given.rounds or settings.rounds
    settings.window = given.window or settings.window
    if missing := [tool for tool in ("cc", "pkg-config") if not shutil.which(tool)]:
        say(f"not found, and needed: {', '.join(missing)}")
        return 1
    works = [BY_NAME[name] for name in given.work] if given.work else ALL
    peers = chosen_peers(works, given.peer)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        runner = Runner(settings, directory)
        for work in works:
            if not enough_descriptors(work):
                say(f"{work.name}: left out, too few file descriptors are allowed")
            elif peers[work.name]:
                results.append(runner.run(work, peers[work.name], say))
    text = report.markdown(results, settings)
    print(text)
    if given.table:
        given.table.parent.mkdir(parents=True, exist_ok=True)
        given.table.write_text(text)
    if given.json:
        report.write_json(given.json, results, settings)
    if given.plots and importlib.util.find_spec("matplotlib"):
        report.write_plots(given.plots, results)
    elif given.plots:
        say("no plots: matplotlib is not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
