"""Runs the peers in turn, each in a process of its own, under the load or by themselves."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks import chain
from benchmarks.works import PEERS, Command, Work

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "benchmarks" / "c"
START = 20.0  # seconds that a server may take until it listens
OPENSSL = importlib.util.find_spec("pylibevent._libevent_ssl") is not None
Sample = dict[str, float]
Say = Callable[[str], None]


@dataclass
class Settings:
    rounds: int = 5
    warmup: float = 0.3
    window: float = 1.0
    messages: int = 0  # the window ends after so many; 0: it does not
    counts: float = 0.5  # the window of the run that counts system calls; 0: none
    chain_runs: int = 15
    chain_writes: int = 10_000
    timers_within: float = 1.0


@dataclass
class Result:
    """A list of samples for each peer, one a round, and what was counted apart from them."""

    work: Work
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    counts: dict[str, Sample] = field(default_factory=dict)


class Runner:
    """The compiled programs, the two processors, and the way to measure with them."""

    def __init__(self, settings: Settings, directory: str) -> None:
        self.settings = settings
        self.directory = Path(directory)
        self.processors = sorted(os.sched_getaffinity(0))
        chain.raise_limit()
        for source in SOURCES.glob("*.c"):
            if source.stem != "tls_echo":
                self.compile(source, source.stem)
        self.file = self.directory / "file"
        self.file.write_bytes(bytes(65536))
        self.cert = self.directory / "cert.pem"
        if OPENSSL:
            self.compile(SOURCES / "load.c", "tls_load", "-DTLS")
            self.compile(SOURCES / "tls_echo.c", "tls_echo", "-levent_openssl")
            make_certificate(self.cert)

    def compile(self, source: Path, name: str, *more: str) -> None:
        config = ["pkg-config", "--cflags", "--libs", "libevent_core", "libevent_extra"]
        config += ["openssl"] * bool(more)
        flags = subprocess.run(config, check=True, capture_output=True, text=True).stdout.split()
        program = str(self.directory / name)
        subprocess.run(["cc", "-O2", "-o", program, str(source), *more, *flags], check=True)

    # ---- processes ----

    def command(self, peer: Command, **names: object) -> list[str]:
        program, *rest = (part.format(**names) for part in peer)
        if program.startswith("c:"):
            return [str(self.directory / program[2:]), *rest]
        if program.endswith(".py"):
            return [sys.executable, str(ROOT / program), *rest]
        return [sys.executable, "-m", f"benchmarks.peers.{program}", *rest]

    @contextlib.contextmanager
    def on_processor(self, processor: int) -> Iterator[None]:
        """What starts in it stays on that processor."""
        os.sched_setaffinity(0, {self.processors[processor]})
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.processors)

    @contextlib.contextmanager
    def process(self, command: list[str], processor: int, **more: Any) -> Iterator[Any]:
        """Started on one processor: -1 is the load's, 0 the other one."""
        with self.on_processor(processor):
            started = subprocess.Popen(command, cwd=ROOT, text=True, **more)
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                started.kill()
                started.communicate()

    @contextlib.contextmanager
    def server(self, command: list[str]) -> Iterator[tuple[int, int]]:
        """Its process id, and the port that it told."""
        # A file takes whatever it logs; a pipe that nobody reads would stop it.
        with (
            tempfile.TemporaryFile("w+", dir=self.directory) as out,
            self.process(command, 0, stdout=out, stderr=subprocess.STDOUT) as started,
        ):
            text, until = "", time.monotonic() + START
            while not (port := re.search(r"^(?:.*listening on .*:)?(\d+)\n", text, re.MULTILINE)):
                if started.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command} does not listen:\n{text}")
                time.sleep(0.01)
                text = told(out)
            try:
                yield started.pid, int(port[1])
            except Exception as error:
                raise RuntimeError(f"{command}: {error}\n{told(out)[-2000:]}") from error
            if started.poll() is not None:
                raise RuntimeError(f"{command} has ended: status {started.returncode}")

    def load(self, mode: str, work: Work, *options: object) -> Any:
        numbers = ["-c", work.connections, "-d", work.depth, "-s", work.size, "-i", work.idle]
        program = "tls_load" if work.over_tls else "load"
        command = [str(self.directory / program), mode, *map(str, [*numbers, *options])]
        pipe = subprocess.PIPE
        return self.process(command, -1, stdin=pipe, stdout=pipe, stderr=pipe)

    # ---- measuring ----

    def measure(self, work: Work, peer: str) -> Sample:
        if work.kind == "chain":
            return self.measure_chain(work, peer)
        if work.kind == "timers":
            return self.measure_timers(work, peer)
        if work.kind == "relay":
            return self.measure_relay(work, peer)
        if work.over_http:
            return self.measure_http(work, peer)
        return self.measure_server(work, peer)

    def window(self, work: Work) -> list[object]:
        seconds = self.settings.window * (2 if work.busy else 1)  # few messages
        return ["-w", self.settings.warmup, "-t", seconds, "-n", self.settings.messages]

    def echo_command(self, work: Work, peer: str) -> list[str]:
        if work.over_tls:
            return self.command(PEERS[peer].tls, cert=self.cert)
        return self.command(PEERS[peer].echo) + ["--busy"] * work.busy

    def measure_server(self, work: Work, peer: str) -> Sample:
        with self.server(self.echo_command(work, peer)) as (pid, port):
            before = resident(pid)
            options = ["-p", port, "-P", pid, "-g", "-I", *self.window(work)]
            mode = {"tls": "echo", "handshakes": "connect"}.get(work.kind, work.kind)
            with self.load(mode, work, *options) as load:
                wait_until_ready(load)
                each = (resident(pid) - before) / (work.idle + work.connections)
                sample = figures(work, finish(load, "\n"))
        if work.idle:
            sample["kib"] = each
        return sample

    def measure_http(self, work: Work, peer: str) -> Sample:
        command = PEERS[peer].http if work.kind == "http" else PEERS[peer].wsgi
        seconds = 1 if self.settings.messages else max(round(self.settings.window), 1)
        with self.server(self.command(command, file=self.file)) as (pid, port):
            url = f"http://127.0.0.1:{port}/{'file' if work.size == 65536 else ''}"
            with urllib.request.urlopen(url) as reply:
                if len(reply.read()) != work.size:
                    raise RuntimeError(f"{url}: not {work.size} bytes")
            wrk = ["wrk", "-t", "1", "-c", str(work.connections), "--latency"]
            pipe, before = subprocess.PIPE, processor_time(pid)
            with self.process([*wrk, "-d", f"{seconds}s", url], -1, stdout=pipe) as load:
                text: str = load.communicate(timeout=60)[0]
            return wrk_figures(text, processor_time(pid) - before)

    def measure_relay(self, work: Work, peer: str) -> Sample:
        with self.load("relay", work, *self.window(work)) as load:
            command = self.command(PEERS[peer].relay, backend=int(load.stdout.readline()))
            with self.server(command) as (pid, port):
                return figures(work, finish(load, f"{port} {pid}\n"))

    def measure_chain(self, work: Work, peer: str) -> Sample:
        settings = self.settings
        todo = chain.Work(work.pairs, work.active_pairs, settings.chain_writes, settings.chain_runs)
        command = chain.commands(todo, self.directory / "chain")[PEERS[peer].chain]
        with self.on_processor(0):
            return {"ns": chain.ns_per_event(command, todo)}

    def measure_timers(self, work: Work, peer: str) -> Sample:
        command = self.command(PEERS[peer].timers)
        command += [str(work.count), str(self.settings.timers_within)]
        with self.process(command, 0, stdout=subprocess.PIPE) as started:
            sample: Sample = json.loads(started.communicate(timeout=120)[0])
        if sample["fired"] != work.count:
            raise RuntimeError(f"{peer}: {sample['fired']} of {work.count} timers fired")
        return {**sample, "ns": sample["add_ns"] + sample["fire_ns"]}

    def count(self, work: Work, peer: str) -> Sample:
        """System calls for each message, by name. Empty where there is no strace."""
        found: Sample = {}
        wanted = work.kind == "echo" and not work.busy and self.settings.counts
        if not wanted or not shutil.which("strace"):
            return found
        with self.server(self.echo_command(work, peer)) as (pid, port):
            options = ["-p", port, "-g", "-w", 0, "-t", self.settings.counts]
            with self.load("echo", work, *options) as load:
                wait_until_ready(load)
                table = self.directory / "strace"
                table.unlink(missing_ok=True)
                command = ["strace", "-c", "-f", "-p", str(pid), "-o", str(table)]
                with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
                    assert strace.stderr
                    attached = "attached" in strace.stderr.readline()
                    load.stdin.write("\n")
                    load.stdin.flush()
                    out = load.stdout.readline()
                    strace.send_signal(signal.SIGINT)  # before the connections are closed
                    strace.communicate()
                out += finish(load, "")
        if attached:
            total = json.loads(out)["total"]
            for line in table.read_text().splitlines():
                # time, seconds, µs a call, calls, perhaps errors, name
                call = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
                if call and call[2] != "total":
                    found[call[2]] = int(call[1]) / total
        return found

    def run(self, work: Work, peers: list[str], say: Say) -> Result:
        """All rounds. Each goes through all peers, and begins with another one."""
        result = Result(work, {peer: [] for peer in peers})
        todo = list(peers)
        for number in range(self.settings.rounds):
            for peer in todo:
                say(f"{work.name}, round {number + 1}: {peer}")
                result.samples[peer].append(self.measure(work, peer))
            todo.append(todo.pop(0))
        for peer in peers:
            if counts := self.count(work, peer):
                result.counts[peer] = counts
        return result


def make_certificate(path: Path) -> None:
    """A certificate and its key, in one file."""
    key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    command = ["openssl", *key.split(), "-days", "30", "-keyout", str(path)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    path.write_text(path.read_text() + made.stdout)


def told(out: IO[str]) -> str:
    """What is in a file that a process still writes to, at an offset that is the file's."""
    return os.pread(out.fileno(), 1 << 20, 0).decode(errors="replace")


def wait_until_ready(load: Any) -> None:
    if load.stdout.readline() != "ready\n":
        raise RuntimeError(load.stderr.read())


def finish(load: Any, go: str) -> str:
    """What the load has found. RuntimeError if it has found anything wrong."""
    out, errors = load.communicate(go, timeout=300)
    if load.returncode:
        raise RuntimeError(errors)
    return str(out)


def resident(pid: int) -> int:
    """KiB of memory."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nRss:")[2].split()[0])


def processor_time(pid: int) -> float:
    """Seconds of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    mine = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return mine + sum(processor_time(int(child)) for child in children)


def wrk_figures(text: str, processor: float) -> Sample:
    done = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    if not done or not rate or "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"wrk is not content:\n{text}")
    sample = {"rate": float(rate[1]), "cpu_us": processor / int(done[1]) * 1e6}
    for name, number, unit in re.findall(r"\b(50|99)% +([\d.]+)(us|ms|s)\n", text):
        sample[f"p{name}_ms"] = float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]
    return sample


def figures(work: Work, out: str) -> Sample:
    """The load's raw numbers, and what is compared: for each message, or each MiB of a relay."""
    sample: Sample = json.loads(out)
    done = sample["bytes"] / 2**20 if work.kind == "relay" else sample["messages"]
    if not done:
        raise RuntimeError("nothing was answered within the window")
    sample["rate"] = done / sample["seconds"]
    sample["cpu_us"] = sample["server_cpu"] / done * 1e6
    if "instructions" in sample:
        sample["instructions"] /= done
    sample["p50_ms"], sample["p99_ms"] = sample.pop("p50_us") / 1e3, sample.pop("p99_us") / 1e3
    sample["load"] = sample["client_cpu"] / sample["seconds"]
    sample["server"] = sample["server_cpu"] / sample["seconds"]
    return sample


def descriptors(work: Work) -> int:
    return 100 + max(work.connections + work.idle, 2 * work.pairs)


def enough_descriptors(work: Work) -> bool:
    return descriptors(work) <= resource.getrlimit(resource.RLIMIT_NOFILE)[1]
