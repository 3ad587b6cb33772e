"""The benchmarks run and do what they say they measure. What they measure is not asserted."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.runner import Result, Runner, Sample, Settings, finish, wrk_figures
from benchmarks.works import ALL, BY_NAME, PEERS, Work
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


# ---- chain.py ----


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


# ---- python -m benchmarks ----

TINY_SETTINGS = Settings(
    rounds=1,
    warmup=0,
    window=10,
    messages=20,  # long before these ten seconds are over
    counts=0,
    chain_runs=2,
    chain_writes=20,
    timers_within=0.01,
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    if no_compiler:
        pytest.skip("no cc or pkg-config")
    return Runner(TINY_SETTINGS, str(tmp_path_factory.mktemp("benchmarks")))


def who_can(peer: str) -> Any:
    missing = pytest.mark.skipif(not PEERS[peer].installed, reason=f"no {PEERS[peer].needs}")
    return pytest.param(peer, marks=missing)


def tiny(work: Work) -> Work:
    return dataclasses.replace(
        work,
        connections=min(work.connections, 3),
        depth=min(work.depth, 5),
        idle=min(work.idle, 4),
        pairs=min(work.pairs, 8),
        active_pairs=min(work.active_pairs, 2),
        count=min(work.count, 50),
    )


def ask(port: int, *parts: bytes) -> bytes:
    """What a server answers to these parts, each in a packet of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        want = len(b"".join(parts)) + len(b"Client msg ") * b"".join(parts).count(b"\n")
        for part in parts:
            sock.sendall(part)
            time.sleep(0.01)
        got = b""
        while len(got) < want and (data := sock.recv(65536)):
            got += data
        return got


@pytest.mark.parametrize("peer", [who_can(name) for name, peer in PEERS.items() if peer.echo])
def test_each_echo_server_answers_lines_however_they_come(runner: Runner, peer: str) -> None:
    long = b"x" * 65536
    with runner.server(runner.command(PEERS[peer].echo)) as (_, port):
        assert ask(port, b"hel", b"lo\nand\n\ngood", b"bye\n") == (
            b"Client msg hello\nClient msg and\nClient msg \nClient msg goodbye\n"
        )
        assert ask(port, long + b"\n") == b"Client msg " + long + b"\n"


@pytest.mark.parametrize("peer", [who_can(name) for name, peer in PEERS.items() if peer.relay])
def test_each_relay_passes_chunks_there_and_back(runner: Runner, peer: str) -> None:
    sample = runner.measure(tiny(BY_NAME["relay"]), peer)
    assert sample["messages"] * 2 * 2**20 == sample["bytes"] > 0


@pytest.mark.skipif(not shutil.which("wrk"), reason="no wrk")
@pytest.mark.parametrize(
    ("work", "peer"),
    [
        pytest.param(work, *who_can(peer).values, marks=who_can(peer).marks)
        for work in ("http-13", "http-64k", "wsgi-13")
        if work in BY_NAME
        for peer in BY_NAME[work].peers
    ],
)
def test_each_web_server_serves_what_is_asked_for(runner: Runner, work: str, peer: str) -> None:
    sample = runner.measure(tiny(BY_NAME[work]), peer)
    assert sample["rate"] > 0


def test_a_web_server_that_fails_ends_it() -> None:
    with pytest.raises(RuntimeError, match="wrk is not content"):
        wrk_figures("10 requests in 1s\n  Non-2xx or 3xx responses: 3\nRequests/sec:  10.0\n", 0)


@pytest.mark.parametrize("peer", [who_can(name) for name, peer in PEERS.items() if peer.timers])
def test_each_loop_fires_its_timers(runner: Runner, peer: str) -> None:
    sample = runner.measure(tiny(BY_NAME["timers"]), peer)
    assert sample["fired"] == 50


@pytest.mark.parametrize("work", ALL, ids=lambda work: work.name)
def test_each_work_runs(runner: Runner, work: Work) -> None:
    result = runner.run(tiny(work), ["pylibevent"], lambda _text: None)
    assert len(result.samples["pylibevent"]) == 1
    assert result.samples["pylibevent"][0][work.value] > 0
    assert {"pylibevent", work.reference} <= set(work.peers)


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_system_calls_are_counted(runner: Runner) -> None:
    runner = copy.copy(runner)
    runner.settings = dataclasses.replace(TINY_SETTINGS, counts=0.05)
    counts = runner.count(tiny(BY_NAME["echo-50"]), "epoll")
    if not counts:
        pytest.skip("strace may not attach to a process here")
    assert counts["sendto"] == counts["recvfrom"] == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: b"Client msg " + request.replace(b"a", b"b"), "a wrong answer"),
        (lambda request: b"Client msg " + request + b"\n", "more was answered than was asked"),
        (lambda request: b"", "the server closed a connection"),
    ],
    ids=["wrong", "more", "none"],
)
def test_a_wrong_answer_ends_it(
    runner: Runner, answer: Callable[[bytes], bytes], error: str
) -> None:
    work = dataclasses.replace(BY_NAME["echo-1"], connections=1)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        runner.load("echo", work, "-p", listener.getsockname()[1]) as load,
    ):
        sock, _ = listener.accept()
        with sock:
            sock.sendall(answer(sock.recv(1000)))
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(RuntimeError, match=error):
                finish(load, "")


def test_rounds_go_through_the_peers_from_another_one_each() -> None:
    class Recorder(Runner):
        def __init__(self) -> None:
            self.settings = dataclasses.replace(TINY_SETTINGS, rounds=3)
            self.measured: list[str] = []

        def measure(self, work: Work, peer: str) -> Sample:
            self.measured.append(peer)
            return {"rate": 1}

    recorder = Recorder()
    recorder.run(BY_NAME["echo-50"], ["c", "uvloop", "asyncio"], lambda _text: None)
    turns = ["".join(name[0] for name in recorder.measured[i : i + 3]) for i in (0, 3, 6)]
    assert turns == ["cua", "uac", "acu"]


@pytest.fixture
def measured() -> Result:
    result = Result(
        BY_NAME["echo-50"],
        {
            "c": [{"rate": 100.0, "load": 0.5, "server": 1.0}, {"rate": 200.0}, {"rate": 300.0}],
            "pylibevent": [{"rate": 200.0, "load": 0.99, "server": 0.5}] * 3,
        },
        {"c": {"read": 1.0, "write": 1.5}},
    )
    return result


def test_the_table_has_medians_of_the_ratios_in_a_round(measured: Result) -> None:
    text = report.markdown([measured], TINY_SETTINGS)
    assert "| C, libevent | 200 (100 to 300) | 1 | 2.50 |" in text
    assert "| pylibevent \\* | 200 | 1.00 (0.67 to 2.00) |  |" in text


def test_json_has_every_number_and_no_name_of_the_machine(measured: Result, tmp_path: Path) -> None:
    report.write_json(tmp_path / "a" / "found.json", [measured], TINY_SETTINGS)
    text = (tmp_path / "a" / "found.json").read_text()
    found = json.loads(text)
    assert found["works"]["echo-50"]["samples"] == measured.samples
    assert found["works"]["echo-50"]["counts"] == measured.counts
    assert found["settings"]["window"] == TINY_SETTINGS.window
    assert platform.node() not in text
    assert str(Path.home()) not in text


@pytest.mark.skipif(no_compiler, reason="no cc or pkg-config")
def test_the_command_runs_what_it_is_told_to(tmp_path: Path) -> None:
    works = ["echo-1", "echo-50", "chain-100-1"]
    command = [sys.executable, "-m", "benchmarks", "--quick", "--window", "0.05"]
    command += ["--work", *works, "--peer", "c", "pylibevent", "--plots", str(tmp_path)]
    command += ["--table", str(tmp_path / "table.md"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=60, check=True
    )
    assert (tmp_path / "table.md").read_text() == done.stdout.removesuffix("\n")
    assert list(json.loads((tmp_path / "found.json").read_text())["works"]) == works
    plots = {path.stem for path in tmp_path.glob("*.svg") if "</svg>" in path.read_text()}
    if importlib.util.find_spec("matplotlib"):
        assert plots == {*works, "echo"}
    else:
        assert "no plots: matplotlib is not installed" in done.stderr
