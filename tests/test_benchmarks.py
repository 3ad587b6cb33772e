"""The benchmarks run and do what they say they measure. What they measure is not asserted."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pylibevent import supported_methods

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ["-n", "8", "-w", "20", "-r", "3"]

no_compiler = not shutil.which("cc") or not shutil.which("pkg-config")
peers = [
    pytest.param("C", marks=pytest.mark.skipif(no_compiler, reason="no cc or pkg-config")),
    pytest.param(
        "uvloop",
        marks=pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="no uvloop"),
    ),
    "pylibevent",
    "asyncio",
    "selectors",
]


def chain(*options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / "chain.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("active", [1, 8])
@pytest.mark.parametrize("peer", peers)
def test_each_peer_of_the_chain_handles_every_event_of_every_run(peer: str, active: int) -> None:
    lines = chain("--peer", peer, *TINY, "-a", str(active)).splitlines()
    assert [int(line.split()[1]) for line in lines] == [active + 20] * 3


@pytest.mark.parametrize("option", ["--once", "-t"])
@pytest.mark.parametrize("peer", ["pylibevent", "asyncio", peers[0]])
def test_so_it_does_by_other_ways_to_run_the_loop(peer: str, option: str) -> None:
    lines = chain("--peer", peer, *TINY, "-a", "2", option).splitlines()
    assert [int(line.split()[1]) for line in lines] == [22] * 3


@pytest.mark.skipif("poll" not in supported_methods(), reason="no poll here")
def test_the_chain_takes_a_backend_and_compares_those_that_have_it() -> None:
    table = chain("--quick", *TINY, "-a", "1", "4", "-m", "poll")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()]
    names = ["C"] * (not no_compiler) + ["pylibevent", "asyncio", "selectors"]
    assert [row for row in rows if row and row[0] == "8"] == [
        ["8", active, name] for active in ("1", "4") for name in names
    ]
