"""README and docs/: each Python block in them runs, each C block compiles.

The blocks of a page run one after the other, in one process. One that has a name behind the
language, as in "```python echo_server", is a whole program: it runs by itself, and the peer of
that name below talks to it. A block "```text" behind one is what that has to print.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from processes import read_to_end

import pylibevent
from pylibevent import lib

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "examples" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
FENCE = re.compile(r"^```(\{?[\w-]*\}?)(?: (\w+))?\n(.*?)^```$", re.M | re.S)
LANGUAGES = {"", "c", "console", "python", "sh", "text", "yaml", "{eval-rst}", "{toctree}"}
SEPARATOR = "-- the end of a block --"


@dataclass
class Block:
    page: Path
    line: int  # of its fence, from 0 on
    language: str
    name: str
    code: str
    output: str | None  # of the text block behind it

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line + 1} {self.name}"

    @property
    def in_place(self) -> str:
        """The code, each line where it is on the page."""
        return "\n" * (self.line + 1) + self.code


@functools.cache
def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        shown = re.match(r"\n+```text\n(.*?)^```$", text[match.end() :], re.M | re.S)
        line = text.count("\n", 0, match.start())
        found.append(Block(page, line, match[1], match[2] or "", match[3], shown and shown[1]))
    return found


EVERY = [block for page in PAGES for block in blocks(page)]
PROGRAMS = [block for block in EVERY if block.language == "python" and block.name]
IN_ORDER = {
    str(page.relative_to(ROOT)): [b for b in blocks(page) if b.language == "python" and not b.name]
    for page in PAGES
}
C_BLOCKS = [block for block in EVERY if block.language == "c"]


def test_the_blocks_are_found() -> None:
    """A search that finds nothing would let everything pass."""
    for page in PAGES:
        fences = sum(line.startswith("```") for line in page.read_text().splitlines())
        assert 2 * len(blocks(page)) == fences, page
    assert {block.language for block in EVERY} <= LANGUAGES
    assert len(PROGRAMS) > 10
    assert len(C_BLOCKS) > 10


# ---- Python, page by page ----


@pytest.mark.parametrize("page", [name for name, found in IN_ORDER.items() if found])
def test_the_blocks_of_a_page_run(page: str, folder: Path) -> None:
    lines: list[str] = []
    for block in IN_ORDER[page]:
        code = [*block.code.splitlines(), f"print({SEPARATOR!r}, flush=True)"]
        lines += [""] * (block.line + 1 - len(lines)) + code
    script = folder / "page.py"
    script.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0), f"line numbers are those of {page}"
    outputs = done.stdout.split(SEPARATOR + "\n")
    for block, output in zip(IN_ORDER[page], outputs, strict=False):
        if block.output is not None:
            assert output == block.output, str(block)


def test_the_tests_on_a_page_pass(folder: Path) -> None:
    found = [b for found in IN_ORDER.values() for b in found if "def test_" in b.code]
    assert {block.page.name for block in found} == {"pytest.md"}
    script = folder / "test_page.py"
    script.write_text("\n".join(block.code for block in found))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1].startswith(f"{len(found)} passed"), done.stdout


# ---- Python, whole programs ----


@dataclass
class Program:
    """One that runs, on ports of its own in place of those that the page names."""

    process: subprocess.Popen[str]
    ports: dict[int, int]
    folder: Path

    def connect(self, port: int) -> socket.socket:
        """Connects, once it listens."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.ports[port]), timeout=20)
            except ConnectionRefusedError:
                assert self.process.poll() is None, self.process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.01)  # nothing tells when it will listen

    def talk(self, port: int, data: bytes) -> bytes:
        """Sends it, half closes, and reads to the end."""
        with self.connect(port) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_to_end(sock)

    def stop(self) -> None:
        """Ctrl-C, which all its processes get: they end, by KeyboardInterrupt or quietly."""
        os.killpg(self.process.pid, signal.SIGINT)
        _, errors = self.process.communicate(timeout=20)
        assert not errors or "\nKeyboardInterrupt\n" in errors, errors


Peer = Callable[[Program], object]
PEERS: dict[str, Peer] = {}


def peer(*names: str) -> Callable[[Peer], Peer]:
    def register(function: Peer) -> Peer:
        PEERS.update(dict.fromkeys(names, function))
        return function

    return register


def answered(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line)
    with sock.makefile("rb") as file:
        return file.readline()


@peer("one_at_a_time")
def a_silent_client_keeps_the_next_one_waiting(program: Program) -> None:
    with program.connect(8899), program.connect(8899) as second:
        second.sendall(b"hello\n")
    with program.connect(8899) as third:
        assert answered(third, b"hello\n") == b"Client msg hello\n"
    program.stop()


@peer("thread_each", "by_select")
def a_silent_client_keeps_nobody_waiting(program: Program) -> None:
    with program.connect(8899), program.connect(8899) as second:
        assert answered(second, b"hello\n") == b"Client msg hello\n"
        second.sendall(b"in pie")
        assert answered(second, b"ces\n") == b"Client msg in pieces\n"
    program.stop()


@peer("daytime")
def each_client_gets_the_time(program: Program) -> None:
    for _ in range(2):
        assert time.strptime(program.talk(8899, b"").decode().strip())
    program.stop()


@peer("echo_server", "seed")
def each_line_is_answered(program: Program) -> None:
    with program.connect(8899), program.connect(8899) as sock:
        assert answered(sock, b"hello\n") == b"Client msg hello\n"
        sock.sendall(b"in pie")
        assert answered(sock, b"ces\n") == b"Client msg in pieces\n"
    if "program.py" in str(program.process.args):  # the C program drops what is not written yet
        assert program.talk(8899, b"one\ntwo\n") == b"Client msg one\nClient msg two\n"
        program.stop()


@peer("counting_server")
def a_fault_ends_one_connection(program: Program) -> None:
    with program.connect(8899) as sock:
        assert answered(sock, b"4\n") == b"1: 25\n"
        assert program.talk(8899, b"1\n0\n") == b"1: 100\n"
        assert answered(sock, b"5\n") == b"2: 20\n"
    program.process.send_signal(signal.SIGINT)
    assert "modulo by zero" in program.process.communicate(timeout=20)[1]


@peer("proxy")
def what_one_side_sends_the_other_gets(program: Program) -> None:
    with (
        socket.create_server(("127.0.0.1", program.ports[8899])) as target,
        program.connect(8888) as client,
    ):
        server, _ = target.accept()
        with server:
            bulk = b"x" * 3_000_000
            for one, other in ((client, server), (server, client)):
                sender = threading.Thread(target=one.sendall, args=(bulk,))
                sender.start()
                with other.makefile("rb") as file:
                    assert file.read(len(bulk)) == bulk
                sender.join()
            server.sendall(b"bye")
            server.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b"bye"
    program.stop()


@peer("limited_server")
def what_a_client_may_cost_is_bounded(program: Program) -> None:
    assert program.talk(8899, b"one\ntwo\n") == b"Client msg one\nClient msg two\n"
    assert program.talk(8899, b"x" * 10_000) == b"a line of more than 8192 bytes\n"
    with program.connect(8899) as sock:  # one that does not read is not read from
        sock.setblocking(False)
        sent = 0
        while select.select([], [sock], [], 0.2)[1]:
            sent += sock.send(b"0123456789\n" * 100)
            assert sent < 100_000_000
        sock.settimeout(20)
        sock.shutdown(socket.SHUT_WR)
        assert len(read_to_end(sock)) >= sent // 11 * 22
    program.stop()


@peer("workers")
def several_processes_answer_and_one_that_dies_is_replaced(program: Program) -> None:
    def answering(until: Callable[[set[int]], bool]) -> set[int]:
        pids: set[int] = set()
        deadline = time.monotonic() + 20
        while not until(pids):
            assert time.monotonic() < deadline, pids
            with contextlib.suppress(ConnectionError):  # it waited for the one that ends
                pid, line = program.talk(8899, b"hello\n").split(b": ")
                assert line == b"hello\n"
                pids.add(int(pid))
        return pids

    first = answering(lambda pids: len(pids) == 4)
    os.kill(min(first), signal.SIGTERM)
    answering(lambda pids: bool(pids - first))
    program.stop()


@peer("tls_server")
def a_client_that_verifies_is_served(program: Program) -> None:
    context = ssl.create_default_context(cafile=program.folder / "ca.pem")
    program.connect(8443).close()
    with (
        program.connect(8443) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hello")
        assert tls.recv(100) == b"hello"
    program.stop()


@peer("tls_client")
def a_server_is_verified_and_talked_to(program: Program) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(program.folder / "cert.pem", program.folder / "key.pem")
    with socket.create_server(("127.0.0.1", program.ports[8443])) as server:
        server.settimeout(20)
        sock, _ = server.accept()
        with context.wrap_socket(sock, server_side=True) as tls:
            assert tls.recv(100) == b"hello\n"
            tls.sendall(b"hello yourself\n")
            tls.unwrap().close()
    output, errors = program.process.communicate(timeout=20)
    assert (output, errors) == ("TLSv1.3\nhello yourself\n", "")


@peer("http_server")
def every_path_but_one_is_not_found(program: Program) -> None:
    program.connect(8880).close()
    conn = http.client.HTTPConnection("127.0.0.1", program.ports[8880], timeout=20)
    for path, status, body in (("/", 200, b"Hello, World!"), ("/other", 404, b"Not Found")):
        conn.request("GET", path)
        reply = conn.getresponse()
        assert reply.status == status
        assert body in reply.read()
    conn.close()
    program.stop()


@peer("http_client")
def a_form_is_posted(program: Program) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(program.folder / "cert.pem", program.folder / "key.pem")
    with socket.create_server(("127.0.0.1", program.ports[8443])) as server:
        server.settimeout(20)
        sock, _ = server.accept()
        with context.wrap_socket(sock, server_side=True) as tls, tls.makefile("rwb") as file:
            assert file.readline() == b"POST /form?x=1 HTTP/1.1\r\n"
            while file.readline() != b"\r\n":
                pass
            assert file.read(5) == b"hello"
            file.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: a/b\r\n\r\nyes")
            file.flush()
            tls.unwrap().close()
    output, errors = program.process.communicate(timeout=20)
    assert (output, errors) == ("200 a/b b'yes'\n", "")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def with_ports_of_its_own(code: str) -> tuple[str, dict[int, int]]:
    ports = {int(port): free_port() for port in set(re.findall(r"\b8[48]\d\d\b", code))}
    return re.sub(r"\b8[48]\d\d\b", lambda match: str(ports[int(match[0])]), code), ports


def check(command: list[str], ports: dict[int, int], peer: Peer, folder: Path) -> None:
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        peer(Program(process, ports, folder))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_does_what_it_is_for(block: Block, folder: Path) -> None:
    code, ports = with_ports_of_its_own(block.in_place)
    (folder / "program.py").write_text(code)
    check([sys.executable, "-W", "error", "program.py"], ports, PEERS[block.name], folder)


def test_each_peer_has_its_program() -> None:
    assert PEERS.keys() == {block.name for block in EVERY if block.name}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the blocks run, with the certificates that they name."""
    ca = trustme.CA()
    cert = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in cert.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    return tmp_path


# ---- C ----


@functools.cache
def cflags(*what: str) -> list[str]:
    done = subprocess.run(
        ["pkg-config", *what, "libevent"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


PRELUDE = """
#include <event.h>
#include <event2/listener.h>
#include <event2/thread.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <netinet/in.h>
"""
needs_cc = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("pkg-config")), reason="no C compiler"
)


@needs_cc
@pytest.mark.parametrize("block", [b for b in C_BLOCKS if not b.name], ids=str)
def test_a_c_block_compiles(block: Block) -> None:
    done = subprocess.run(
        ["cc", "-fsyntax-only", "-Wall", "-Werror", "-Wno-unused", *cflags("--cflags"), "-xc", "-"],
        input=f'{PRELUDE}\n# {block.line + 1} "{block.page.name}"\n' + block.code,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


@needs_cc
@pytest.mark.parametrize("block", [b for b in C_BLOCKS if b.name], ids=str)
def test_a_c_program_does_what_it_is_for(block: Block, folder: Path) -> None:
    code, ports = with_ports_of_its_own(block.code)
    program = folder / "program"
    subprocess.run(
        ["cc", "-w", "-o", program, *cflags("--cflags"), "-xc", "-", *cflags("--libs")],
        input=code,
        text=True,
        check=True,
    )
    check([str(program)], ports, PEERS[block.name], folder)


# ---- the README ----

README = (ROOT / "README.md").read_text()


def make(*arguments: str) -> list[str]:
    return ["make", "-C", str(ROOT), "--no-print-directory", f"VENV={sys.prefix}", *arguments]


def test_its_first_command_starts_the_echo_server() -> None:
    """In the environment of `make test`; another one is not to be changed by a test."""
    assert re.search(r"^```sh\nmake echo ", README, re.M)
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    ready = shutil.which("make") and subprocess.run(
        make("-q", f"{sys.prefix}/installed"), env=env, capture_output=True, check=False
    )
    if not ready or ready.returncode:
        pytest.skip("not an environment that make has made")
    process = subprocess.Popen(
        make("echo", "ARGS=--port 0"),
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr
        found = re.search(r"listening on .*:(\d+)$", process.stderr.readline())
        assert found
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=20) as sock:
            assert answered(sock, b"hello\n") == b"Client msg hello\n"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)


def test_each_target_that_the_pages_name_is_makes() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z0-9-]+)", page.read_text(), re.M)
    }
    assert named >= {"echo", "test", "bench"}
    assert named <= targets


def test_the_calls_of_its_table_exist() -> None:
    table = README[README.index("| libevent in C |") : README.index("## Speed")]
    rows = re.findall(r"^\| `(.*)` \| (.*) \|$", table, re.M)
    assert len(rows) == 10
    for c, python in rows:
        for name in re.findall(r"(\w+)\(", c.replace("sizeof(", "")):
            assert hasattr(lib, name)
        for name in re.findall(r"\b([A-Z]\w+)\(", python):
            assert hasattr(pylibevent, name)


def test_what_the_pages_link_to_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_map_names_each_module_and_each_c_source() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## The map") : text.index("## A call in five steps")]
    named = set(re.findall(r"[\w/]+\.(?:py|c|h)\b", table))
    package = ROOT / "pylibevent"
    cffi = package / "_cffi"
    folders = (package, cffi, cffi / "cdef", cffi / "src", ROOT, ROOT / "tests")
    missing = [n for n in named if not any((folder / n).exists() for folder in folders)]
    assert set(missing) <= {name for name in named if name.startswith("event2/")}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("_")}
    sources = {path.name for path in (package / "_cffi/src").glob("*.c")}
    helpers = {"constants.py", "pytest_plugin.py", "log.c", "memory.c"}
    assert (modules | sources) - named <= helpers


# ---- the reference ----


def test_the_reference_has_each_public_name() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    whole = set(re.findall(r"automodule:: pylibevent\.(\w+)", pages))
    named = set(re.findall(r"auto(?:class|function):: (\w+)", pages))
    missing = [
        name
        for name in pylibevent.__all__
        if not name.startswith("_")
        and callable(value := getattr(pylibevent, name))
        and name not in named
        and value.__module__.removeprefix("pylibevent.") not in whole
    ]
    assert missing == []
    assert named <= set(pylibevent.__all__)
    assert {"util", "tag", "aio", "constants", "pytest_plugin"} <= whole
