"""The examples as a user runs them: processes of their own, real clients."""

from __future__ import annotations

import contextlib
import resource
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import measures_memory
from processes import EXAMPLES, Server, read_to_end, run, serving

SERVERS = ("echo_server.py", "echo_server_c_style.py")
ANY_PORT = ("--port", "0")


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, *ANY_PORT) as server:
        yield server


@pytest.fixture(scope="module")
def echo_server() -> Iterator[Server]:
    with serving("echo_server.py", *ANY_PORT) as server:
        yield server


# ---- what it answers ----


def test_each_line_is_answered(server: Server) -> None:
    assert server.talk(b"hello\n") == b"Client msg hello\n"


def test_several_lines_in_one_read_are_all_answered_in_order(server: Server) -> None:
    lines = [b"line %d" % i for i in range(1000)]
    expected = b"".join(b"Client msg %b\n" % line for line in lines)
    assert server.talk(b"".join(line + b"\n" for line in lines)) == expected


def test_a_line_may_end_in_cr_lf(server: Server) -> None:
    assert server.talk(b"one\r\ntwo\r\n") == b"Client msg one\nClient msg two\n"


def test_an_unfinished_line_is_kept_until_its_end_comes(server: Server) -> None:
    with server.connect() as sock:
        for piece in (b"fi", b"rst\nsec", b"on", b"d\n"):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b"Client msg first\nClient msg second\n"


def test_a_client_that_stays_gets_its_answers_while_it_stays(server: Server) -> None:
    with server.connect() as sock:
        for i in range(20):
            sock.sendall(b"%d\n" % i)
            assert sock.recv(100) == b"Client msg %d\n" % i


def test_netcat_gets_its_answers(server: Server) -> None:
    netcat = shutil.which("nc")
    if netcat is None:
        pytest.skip("no nc on this machine")
    answer = subprocess.run(
        [netcat, "-N", "127.0.0.1", str(server.port)],
        input=b"hello\nworld\n",
        capture_output=True,
        timeout=10,
        check=False,
    )
    if b"invalid option" in answer.stderr:
        pytest.skip("this nc has no -N")
    assert answer.stdout == b"Client msg hello\nClient msg world\n"


def test_the_rest_without_a_line_end_is_answered_at_half_close(echo_server: Server) -> None:
    assert echo_server.talk(b"one\ntwo") == b"Client msg one\nClient msg two\n"


def test_empty_lines_are_lines(echo_server: Server) -> None:
    assert echo_server.talk(b"\n\r\na\n") == b"Client msg \nClient msg \nClient msg a\n"


def test_any_bytes_are_echoed(echo_server: Server) -> None:
    line = bytes(b for b in range(256) if b not in b"\r\n") * 40
    assert echo_server.talk(line + b"\n") == b"Client msg " + line + b"\n"


def test_a_line_of_the_greatest_length_is_answered(echo_server: Server) -> None:
    line = b"x" * 65536
    assert echo_server.talk(line + b"\r\n") == b"Client msg " + line + b"\n"


def test_bulk_arrives_whole(echo_server: Server) -> None:
    """5 MB of lines, sent by one thread of control that also reads: no deadlock, nothing lost."""
    lines = b"".join(b"%d\n" % i for i in range(700_000))
    expected = lines.replace(b"\n", b"\nClient msg ")[: -len(b"Client msg ")]
    expected = b"Client msg " + expected
    got = bytearray()
    with echo_server.connect() as sock:
        sock.setblocking(False)
        selector = selectors.DefaultSelector()
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        sent = 0
        while len(got) < len(expected):
            for _key, mask in selector.select(10):
                if mask & selectors.EVENT_WRITE:
                    sent += sock.send(lines[sent : sent + 65536])
                    if sent == len(lines):
                        selector.modify(sock, selectors.EVENT_READ)
                if mask & selectors.EVENT_READ:
                    part = sock.recv(1 << 20)
                    assert part, f"closed after {len(got)} of {len(expected)} bytes"
                    got += part
        selector.close()
    assert got == expected


# ---- peers that behave badly ----


@measures_memory
def test_an_endless_line_costs_bounded_memory_and_the_connection(echo_server: Server) -> None:
    before = echo_server.resident_kib()
    with echo_server.connect() as sock, contextlib.suppress(ConnectionError):
        for _ in range(1000):
            sock.sendall(b"x" * 65536)
        pytest.fail("the server took 64 MB of one line")
    assert echo_server.resident_kib() - before < 1024
    assert echo_server.talk(b"still here\n") == b"Client msg still here\n"


@measures_memory
def test_a_peer_that_never_reads_costs_bounded_memory(echo_server: Server) -> None:
    before = echo_server.resident_kib()
    with echo_server.connect() as sock:
        sock.setblocking(False)
        lines = b"a\n" * 32768
        idle_since = time.monotonic()
        sent = 0
        while sent < 64 << 20 and time.monotonic() - idle_since < 0.5:
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(lines)
                idle_since = time.monotonic()
        assert sent < 64 << 20, "the server never stopped reading"
        assert echo_server.talk(b"others\n") == b"Client msg others\n"
        assert echo_server.resident_kib() - before < 1024


def test_a_reset_harms_nobody(server: Server) -> None:
    for _ in range(20):
        with server.connect() as sock:
            sock.sendall(b"a\n" * 100)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.talk(b"still here\n") == b"Client msg still here\n"


def test_two_thousand_clients_at_once_each_get_their_own_answers(server: Server) -> None:
    clients = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < clients + 500:
        pytest.skip(f"only {hard} descriptors are allowed here")
    limit = max(soft, clients + 500)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (min(hard, limit), hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    socks: list[socket.socket] = []
    try:
        for _ in range(clients):
            socks.append(server.connect())
        for round_ in range(3):
            for i, sock in enumerate(socks):
                sock.sendall(b"client %d round %d\n" % (i, round_))
            for i, sock in enumerate(socks):
                expected = b"Client msg client %d round %d\n" % (i, round_)
                got = b""
                while len(got) < len(expected):
                    part = sock.recv(len(expected) - len(got))
                    assert part
                    got += part
                assert got == expected
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.talk(b"still here\n") == b"Client msg still here\n"


# ---- starting and stopping ----


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_cleanly(signum: signal.Signals) -> None:
    with serving("echo_server.py", *ANY_PORT) as server, server.connect() as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"Client msg hello\n"
        server.process.send_signal(signum)
        assert server.process.wait(5) == 0
        assert sock.recv(100) == b""
        assert server.process.stderr is not None
        assert server.process.stderr.read().strip().endswith("stopped")


@pytest.mark.parametrize("example", SERVERS)
def test_a_port_in_use_is_one_line_and_a_status(example: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(example, "--port", str(port))
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert b"in use" in done.stderr


def test_the_longest_line_is_an_option() -> None:
    with serving("echo_server.py", *ANY_PORT, "--max-line", "10") as server:
        assert server.talk(b"0123456789\n") == b"Client msg 0123456789\n"
        with contextlib.suppress(ConnectionError):
            assert server.talk(b"short\n0123456789a\nnot read\n") == b"Client msg short\n"


# ---- the client ----


def run_client(port: int, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return run("echo_client.py", "--port", str(port), data=data)


def test_the_client_sends_its_input_and_prints_the_answers(server: Server) -> None:
    done = run_client(server.port, b"hello\nworld\n")
    assert (done.stdout, done.stderr) == (b"Client msg hello\nClient msg world\n", b"")
    assert done.returncode == 0


def test_the_client_takes_a_file_as_its_input(echo_server: Server, tmp_path: Path) -> None:
    """epoll does not take regular files; the example asks for a backend that does."""
    file = tmp_path / "lines"
    file.write_bytes(b"".join(b"%d\n" % i for i in range(50_000)))
    with file.open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "echo_client.py"), "--port", str(echo_server.port)],
            stdin=stdin,
            capture_output=True,
            timeout=20,
            check=True,
        )
    assert done.stdout == b"".join(b"Client msg %d\n" % i for i in range(50_000))


def test_the_client_says_why_it_cannot_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    done = run_client(port, b"")
    assert done.returncode == 1
    assert b"refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1
