"""The examples that port libevent's samples, as a user runs them: processes of their own."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from common import measures_memory
from processes import (
    Server,
    complaint_of,
    line_of,
    read_to_end,
    run,
    serving,
    started,
)

MAX_OUTPUT = 512 * 1024  # of le_proxy
HELLO = b"Hello, World!\n"


def reset(sock: socket.socket) -> None:
    """Closes it so that the peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- hello_world ----


@pytest.fixture(scope="module")
def hello() -> Iterator[Server]:
    with serving("hello_world.py", "--port", "0") as server:
        yield server


def test_hello_world_greets_and_hangs_up(hello: Server) -> None:
    if shutil.which("nc"):
        netcat = ["nc", hello.host, str(hello.port)]
        answer = subprocess.run(
            netcat, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        ).stdout
    else:
        with hello.connect() as sock:
            answer = read_to_end(sock)
    assert answer == HELLO
    assert line_of(hello.process).endswith("greeted")


def test_hello_world_greets_one_that_speaks_first_and_does_not_reset_it(hello: Server) -> None:
    for _ in range(20):
        with hello.connect() as sock:
            sock.sendall(b"x" * 10_000)
            assert read_to_end(sock) == HELLO
        assert line_of(hello.process).endswith("greeted")


def test_hello_world_outlives_clients_that_reset(hello: Server) -> None:
    for _ in range(20):
        reset(hello.connect())
        line_of(hello.process)  # greeted, or why not
    with hello.connect() as sock:
        assert read_to_end(sock) == HELLO
    assert line_of(hello.process).endswith("greeted")


def test_hello_world_still_greets_in_the_two_seconds_from_sigint_to_its_end() -> None:
    with serving("hello_world.py", "--port", "0") as server:
        server.process.send_signal(signal.SIGINT)
        assert line_of(server.process) == "interrupted: ends in 2 seconds"
        with server.connect() as sock:
            assert read_to_end(sock) == HELLO
        rest = server.process.communicate(timeout=10)[0]
        assert rest.splitlines()[-1] == "done"
        assert server.process.returncode == 0


def test_hello_world_tells_that_its_port_is_taken_in_one_line(hello: Server) -> None:
    done = run("hello_world.py", "--port", str(hello.port))
    assert done.returncode == 1
    assert b"in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- event_read_fifo ----


@contextlib.contextmanager
def reading(fifo: Path) -> Iterator[subprocess.Popen[str]]:
    with started("event_read_fifo.py", str(fifo)) as process:
        assert complaint_of(process) == f"write something to {fifo}"
        assert stat.S_ISFIFO(fifo.stat().st_mode)
        yield process


def test_event_read_fifo_prints_what_is_written_and_ends_with_the_writer(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    with reading(fifo) as process:
        with fifo.open("wb", buffering=0) as writer:
            for i in range(5):
                part = b"part %d\n" % i
                writer.write(part)
                assert line_of(process) == f"read: {part!r}"
        assert process.wait(10) == 0
    assert not fifo.exists()


def test_event_read_fifo_reads_what_another_program_writes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    with reading(fifo) as process:
        subprocess.run(["sh", "-c", 'printf hello > "$0"', str(fifo)], check=True, timeout=10)
        out, err = process.communicate(timeout=10)
    assert (out, err) == ("read: b'hello'\n", "the writer has closed it\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_event_read_fifo_removes_the_pipe_when_interrupted(
    tmp_path: Path, signum: signal.Signals
) -> None:
    with reading(tmp_path / "fifo") as process:
        process.send_signal(signum)
        assert process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_event_read_fifo_takes_the_place_of_an_old_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    with reading(fifo) as first:
        first.kill()
        first.wait()
    assert fifo.exists()
    with reading(fifo) as second:
        fifo.write_bytes(b"hello")
        assert line_of(second) == "read: b'hello'"


def test_event_read_fifo_leaves_a_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    done = run("event_read_fifo.py", str(file))
    assert done.returncode == 1
    assert b"exists" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert file.read_bytes() == b"precious"


# ---- signal_test ----


def test_signal_test_counts_interrupts_and_ends_on_the_third() -> None:
    with started("signal_test.py") as process:
        assert line_of(process) == "press Ctrl-C"
        for i in (1, 2, 3):
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert line_of(process) == f"SIGINT {i} of 3"
        assert process.wait(10) == 0


# ---- time_test ----


@pytest.mark.parametrize("option", [[], ["-p"]], ids=["added again", "persisting"])
def test_time_test_tells_each_interval(option: list[str]) -> None:
    done = run("time_test.py", *option, "--interval", "0.05", "--times", "4")
    assert (done.returncode, done.stderr) == (0, b"")
    passed = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(passed) == 4
    assert sum(passed) >= 4 * 0.04  # libevent's clock is a coarse one


def test_time_test_goes_on_until_interrupted() -> None:
    with started("time_test.py", "-p", "--interval", "0.01") as process:
        for _ in range(10):
            assert line_of(process).endswith("seconds passed")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")


def test_time_test_refuses_an_interval_below_zero() -> None:
    done = run("time_test.py", "--interval=-1")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


# ---- le_proxy ----


class Relay:
    """le_proxy, and the listening socket that it connects to."""

    def __init__(self, proxy: Server, target: socket.socket) -> None:
        self.proxy = proxy
        self.target = target

    @contextlib.contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """The two ends: a client of the proxy, and what the proxy's connection became."""
        with self.proxy.connect() as client:
            server, _ = self.target.accept()
            with server:
                server.settimeout(10)
                yield client, server

    def works(self) -> bool:
        with self.connection() as (client, server):
            client.sendall(b"ping")
            server.sendall(server.recv(10) + b" pong")
            return client.recv(100) == b"ping pong"


@contextlib.contextmanager
def relaying(host: str = "127.0.0.1", family: int = socket.AF_INET) -> Iterator[Relay]:
    where = f"[{host}]" if ":" in host else host
    with socket.create_server((host, 0), family=family, backlog=300) as target:
        target.settimeout(10)
        port = target.getsockname()[1]
        with serving("le_proxy.py", f"{where}:0", f"{where}:{port}") as proxy:
            yield Relay(proxy, target)


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with relaying() as relay:
        yield relay


@pytest.fixture(params=["client", "server"])
def ends(
    relay: Relay, request: pytest.FixtureRequest
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a relayed connection, once with the client first, once with the server."""
    with relay.connection() as (client, server):
        yield (client, server) if request.param == "client" else (server, client)


Ends = tuple[socket.socket, socket.socket]


def test_what_one_sends_the_other_gets(ends: Ends) -> None:
    one, other = ends
    for i in range(20):
        one.sendall(b"%d" % i)
        assert other.recv(100) == b"%d" % i


BLOCK = bytes(range(256)) * 4096  # 1 MiB


def send_bulk(sock: socket.socket, seed: int, mib: int = 50) -> str:
    """Sends that many MiB, no two alike, and half closes; the checksum of what went out."""
    digest = hashlib.sha256()
    for i in range(mib):
        block = struct.pack("=QQ", seed, i) + BLOCK[16:]
        digest.update(block)
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive_bulk(sock: socket.socket) -> tuple[int, str]:
    digest, size, memory = hashlib.sha256(), 0, memoryview(bytearray(1 << 18))
    while n := sock.recv_into(memory):
        digest.update(memory[:n])
        size += n
    return size, digest.hexdigest()


@measures_memory
def test_fifty_megabytes_each_way_at_once_arrive_as_sent_in_little_memory() -> None:
    with relaying() as relay, relay.connection() as (client, server), ThreadPoolExecutor() as pool:
        before = relay.proxy.peak_kib()
        sums: list[Future[str]] = [
            pool.submit(send_bulk, client, 1),
            pool.submit(send_bulk, server, 2),
        ]
        got = [pool.submit(receive_bulk, server), pool.submit(receive_bulk, client)]
        for sent, received in zip(sums, got, strict=True):
            assert received.result(60) == (50 << 20, sent.result(60))
        assert relay.proxy.peak_kib() - before < 4 * MAX_OUTPUT // 1024 + 1024


def send_until_stuck(sock: socket.socket, most: int) -> int:
    """Sends until nobody has taken anything for half a second, or it was `most` bytes."""
    sock.setblocking(False)
    sent = 0
    while sent < most and select.select([], [sock], [], 0.5)[1]:
        sent += sock.send(BLOCK[: min(65536, most - sent)])
    sock.settimeout(10)
    return sent


@measures_memory
def test_a_peer_that_does_not_read_stops_the_other_in_bounded_memory(
    relay: Relay, ends: Ends
) -> None:
    one, other = ends
    before = relay.proxy.peak_kib()
    sent = send_until_stuck(one, 64 << 20)
    assert sent < 64 << 20, "the proxy never stopped reading"
    assert relay.proxy.peak_kib() - before < 2 * MAX_OUTPUT // 1024 + 1024
    assert relay.works()  # for others
    other.sendall(b"still open this way")
    assert one.recv(100) == b"still open this way"
    one.shutdown(socket.SHUT_WR)
    assert receive_bulk(other)[0] == sent  # when it reads at last, all comes


def test_two_hundred_connections_at_once_each_have_their_own(relay: Relay) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(relay.connection()) for _ in range(200)]
        for round_ in range(3):
            for i, (client, server) in enumerate(pairs):
                client.sendall(b"client %d round %d" % (i, round_))
                server.sendall(b"server %d round %d" % (i, round_))
            for i, (client, server) in enumerate(pairs):
                assert server.recv(100) == b"client %d round %d" % (i, round_)
                assert client.recv(100) == b"server %d round %d" % (i, round_)


def test_half_a_close_is_passed_on_and_the_answer_still_comes(ends: Ends) -> None:
    one, other = ends
    one.sendall(b"question")
    one.shutdown(socket.SHUT_WR)
    assert read_to_end(other) == b"question"
    other.sendall(b"answer " * 100_000)
    other.shutdown(socket.SHUT_WR)
    assert read_to_end(one) == b"answer " * 100_000


def test_an_end_that_comes_behind_more_than_fits_comes_after_it(ends: Ends) -> None:
    one, other = ends
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send_bulk, one, 3, 20)
        assert receive_bulk(other) == (20 << 20, sent.result(60))


def test_a_client_that_says_nothing_and_ends_at_once_is_passed_on(relay: Relay) -> None:
    for _ in range(50):
        with relay.proxy.connect() as client:
            client.shutdown(socket.SHUT_WR)
            server, _ = relay.target.accept()
            with server:
                server.settimeout(10)
                assert server.recv(10) == b""
                server.sendall(b"bye")
            assert read_to_end(client) == b"bye"


def test_an_end_that_comes_before_the_target_has_accepted_waits_for_that() -> None:
    """The target's queue is full: connecting hangs until there is room."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        target.settimeout(10)
        address = f"127.0.0.1:{target.getsockname()[1]}"
        proxy = stack.enter_context(serving("le_proxy.py", "127.0.0.1:0", address))
        waiting: list[socket.socket] = []
        while not waiting or select.select([], waiting[-1:], [], 0.2)[1]:
            waiting.append(stack.enter_context(socket.socket()))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(target.getsockname())
        waiting.pop().close()
        client = stack.enter_context(proxy.connect())
        client.shutdown(socket.SHUT_WR)
        for _ in waiting:
            target.accept()[0].close()
        server = stack.enter_context(target.accept()[0])
        server.settimeout(10)
        assert server.recv(10) == b""
        server.sendall(b"late, but here")
        server.close()
        assert read_to_end(client) == b"late, but here"


def test_netcat_gets_an_answer_through_it(relay: Relay) -> None:
    netcat = shutil.which("nc")
    if netcat is None:
        pytest.skip("no nc on this machine")
    with ThreadPoolExecutor(1) as pool:

        def answer() -> bytes:
            server, _ = relay.target.accept()
            with server:
                question = read_to_end(server)
                server.sendall(question.upper())
                return question

        asked = pool.submit(answer)
        done = subprocess.run(
            [netcat, "-N", relay.proxy.host, str(relay.proxy.port)],
            input=b"hello",
            capture_output=True,
            timeout=10,
            check=False,
        )
        if b"invalid option" in done.stderr:
            relay.proxy.connect().close()
            pytest.skip("this nc has no -N")
        assert (asked.result(10), done.stdout) == (b"hello", b"HELLO")


def test_one_that_closes_is_the_end_for_the_other(relay: Relay, ends: Ends) -> None:
    one, other = ends
    one.sendall(b"last words")
    one.close()
    assert read_to_end(other) == b"last words"
    other.close()
    assert relay.works()


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_by_one_is_the_end_for_the_other_and_a_line(who: str) -> None:
    with relaying() as relay:
        with relay.connection() as (client, server):
            one, other = (client, server) if who == "client" else (server, client)
            one.sendall(b"x")
            assert other.recv(10) == b"x"
            reset(one)
            assert other.recv(10) == b""
        assert "reset by peer" in complaint_of(relay.proxy.process)
        assert relay.works()


def test_a_reset_by_one_while_both_send_and_neither_reads_frees_the_other(ends: Ends) -> None:
    one, other = ends
    sent = send_until_stuck(one, 64 << 20)
    send_until_stuck(other, 64 << 20)
    reset(one)
    other.sendall(bytes(16 << 20))  # it reads only after that
    other.shutdown(socket.SHUT_WR)
    assert receive_bulk(other)[0] <= sent


def test_a_reset_by_one_while_the_other_does_not_read_harms_nobody(
    relay: Relay, ends: Ends
) -> None:
    one, other = ends
    sent = send_until_stuck(one, 64 << 20)
    reset(one)
    with contextlib.suppress(ConnectionError):
        assert receive_bulk(other)[0] <= sent
    assert relay.works()


def test_a_target_that_refuses_costs_the_client_its_connection_and_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with serving("le_proxy.py", "127.0.0.1:0", f"127.0.0.1:{port}") as proxy:
        for data in (b"", b"question" * 10_000):
            with proxy.connect() as client:
                client.sendall(data)
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == b""
            complaint = complaint_of(proxy.process)
            assert f"127.0.0.1:{port}" in complaint
            assert "refused" in complaint
        with socket.create_server(("127.0.0.1", port)) as target:
            target.settimeout(10)
            assert Relay(proxy, target).works()  # now that it is there


def test_when_no_descriptor_is_left_clients_are_dropped_and_later_ones_served() -> None:
    with relaying() as relay, relay.connection() as (client, server):
        client.sendall(b"ping")
        assert server.recv(10) == b"ping"
        pid = relay.proxy.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, limits[1]))
        with relay.proxy.connect() as dropped:
            assert dropped.recv(10) == b""
            assert "Too many open files" in complaint_of(relay.proxy.process)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert relay.works()


def test_it_joins_unix_sockets_and_removes_its_own(tmp_path: Path) -> None:
    front, back = tmp_path / "front", tmp_path / "back"
    with socket.socket(socket.AF_UNIX) as target, socket.socket(socket.AF_UNIX) as client:
        target.bind(str(back))
        target.listen()
        target.settimeout(10)
        client.settimeout(10)
        with serving("le_proxy.py", str(front), str(back)) as proxy:
            client.connect(str(front))
            with target.accept()[0] as server:
                client.sendall(b"hello")
                assert server.recv(100) == b"hello"
                server.sendall(b"and back")
                assert client.recv(100) == b"and back"
            assert client.recv(100) == b""
            proxy.process.send_signal(signal.SIGTERM)
            assert proxy.process.wait(10) == 0
    assert list(tmp_path.iterdir()) == [back]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no ::1 here")
def test_it_takes_ipv6_addresses_in_brackets() -> None:
    with relaying("::1", socket.AF_INET6) as relay:
        assert relay.proxy.host == "::1"
        assert relay.works()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_in_the_middle_of_a_transfer(signum: signal.Signals) -> None:
    with relaying() as relay, relay.connection() as (client, server):
        assert send_until_stuck(client, 64 << 20) < 64 << 20
        relay.proxy.process.send_signal(signum)
        assert relay.proxy.process.wait(10) == 0
        assert relay.proxy.process.communicate()[1] == ""
        with contextlib.suppress(ConnectionError):
            receive_bulk(server)


@pytest.mark.parametrize(
    ("listen", "connect", "why"),
    [
        ("127.0.0.1:none", "127.0.0.1:80", "127.0.0.1:none"),
        ("127.0.0.1:0", "127.0.0.1:100000", "127.0.0.1:100000"),
        ("127.0.0.1:0", "no.such.name.invalid:80", "no.such.name.invalid"),
    ],
)
def test_what_is_no_address_is_told(listen: str, connect: str, why: str) -> None:
    done = run("le_proxy.py", listen, connect)
    assert done.returncode == 2
    assert why in done.stderr.decode().splitlines()[-1]


def test_a_listening_address_in_use_is_one_line_and_a_status(relay: Relay) -> None:
    taken = f"127.0.0.1:{relay.proxy.port}"
    done = run("le_proxy.py", taken, "127.0.0.1:80")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert taken.encode() in done.stderr
    assert b"in use" in done.stderr


# ---- zlib_filter ----


def test_a_file_comes_out_as_it_went_in_and_takes_less_on_the_way() -> None:
    lines = "".join(f"{i} and a line\n" for i in range(30_000))
    with serving("zlib_filter.py", "receive", "--port", "0") as receiver:
        sent = run("zlib_filter.py", "send", "--port", str(receiver.port), data=lines.encode())
        output, told = receiver.process.communicate(timeout=20)
    assert (output, sent.returncode, receiver.process.returncode) == (lines, 0, 0)
    size, wire = (int(word) for word in sent.stderr.split() if word.isdigit())
    assert wire < size / 5
    assert told == f"{wire} bytes in, {size} bytes out\n"


def test_an_empty_file_comes_out_empty() -> None:
    with serving("zlib_filter.py", "receive", "--port", "0") as receiver:
        sent = run("zlib_filter.py", "send", "--port", str(receiver.port))
        output, _ = receiver.process.communicate(timeout=20)
    assert (output, sent.returncode, receiver.process.returncode) == ("", 0, 0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no zlib stream", "incorrect header"),
        (zlib.compress(b"half of it" * 100)[:-5], "not what was sent"),
        (zlib.compress(b"all") + b"and more", "not what was sent"),
    ],
    ids=["corrupt", "cut short", "too much"],
)
def test_what_is_not_all_of_a_stream_is_told(data: bytes, why: str) -> None:
    with serving("zlib_filter.py", "receive", "--port", "0") as receiver:
        receiver.talk(data)
        _, told = receiver.process.communicate(timeout=20)
    assert why in told
    assert "Traceback" not in told
    assert receiver.process.returncode == 1


def test_nobody_to_send_to_is_one_line_and_a_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    done = run("zlib_filter.py", "send", "--port", str(port))
    assert done.returncode == 1
    assert b"refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- dns_example ----


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    with serving("dns_example.py", "-T", "--port", "0") as server:
        yield f"{server.host}:{server.port}"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["a.example"], "a.example: 192.168.11.11\n"),
        (["-x", "10.0.0.1"], "10.0.0.1: foo.bar.example.com\n"),
        (["-g", "127.0.0.1"], "[0] 127.0.0.1: 127.0.0.1\n"),
    ],
)
def test_dns_example_looks_up_what_dns_example_answers(
    nameserver: str, arguments: list[str], output: str
) -> None:
    done = run("dns_example.py", "-s", nameserver, *arguments)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert done.stdout.decode().startswith(output)


def test_dns_example_says_what_fails() -> None:
    done = run("dns_example.py", "-s", "127.0.0.1:9", "--timeout", "0.1", "a.example")
    assert b"a.example: no answer" in done.stdout
    done = run("dns_example.py", "-s", "nobody", "a.example")
    assert (done.stdout, done.returncode) == (b"", 1)
    assert b"nobody" in done.stderr
