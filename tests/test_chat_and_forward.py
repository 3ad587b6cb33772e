"""examples/chat_server.py and examples/port_forward.py, as a user runs them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from processes import EXAMPLES, Server, command, line_of, read_to_end, serving

# ---- the chat ----


class Guest:
    """One who has netcat."""

    def __init__(self, server: Server, name: str = "") -> None:
        self.sock = server.connect()
        self.file = self.sock.makefile("rb")
        assert self.hears() == "Your name?"
        if name:
            self.says(name)
            assert self.hears().startswith(f"Welcome, {name}.")

    def says(self, line: str) -> None:
        self.sock.sendall(line.encode() + b"\n")

    def hears(self) -> str:
        return self.file.readline().decode().rstrip("\n")

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def chat() -> Iterator[Server]:
    with serving("chat_server.py", "--port", "0") as server:
        yield server


@pytest.fixture
def ann_and_bob(chat: Server) -> Iterator[tuple[Guest, Guest]]:
    ann = Guest(chat, "ann")
    bob = Guest(chat, "bob")
    assert ann.hears() == "* bob is here"
    yield ann, bob
    ann.close()
    bob.close()


def test_what_one_says_the_others_hear(ann_and_bob: tuple[Guest, Guest]) -> None:
    ann, bob = ann_and_bob
    ann.says("hello\r")
    bob.says("hi")
    assert (bob.hears(), ann.hears()) == ("<ann> hello", "<bob> hi")


def test_the_commands(ann_and_bob: tuple[Guest, Guest]) -> None:
    ann, bob = ann_and_bob
    ann.says("/who")
    assert ann.hears() == "* here: ann, bob"
    ann.says("/help")
    assert ann.hears() == "* /who, /me does something, /quit"
    ann.says("/me waves")
    assert (ann.hears(), bob.hears()) == ("* ann waves", "* ann waves")
    ann.says("/quit")
    assert (ann.hears(), bob.hears()) == ("", "* ann left")


@pytest.mark.parametrize("name", ["two words", "x" * 21, "ann"])
def test_a_name_that_cannot_be_is_asked_for_again(
    chat: Server, ann_and_bob: tuple[Guest, Guest], name: str
) -> None:
    guest = Guest(chat)
    guest.says(name)
    assert guest.hears().endswith("Your name?")
    guest.says("carla")
    assert guest.hears().startswith("Welcome, carla")
    guest.close()


def test_an_empty_line_is_nothing(ann_and_bob: tuple[Guest, Guest]) -> None:
    ann, bob = ann_and_bob
    ann.says("\nafter it")
    assert bob.hears() == "<ann> after it"


def test_who_goes_away_has_left(ann_and_bob: tuple[Guest, Guest]) -> None:
    ann, bob = ann_and_bob
    ann.close()
    assert bob.hears() == "* ann left"


def test_nobody_plays_with_the_terminal_of_another(ann_and_bob: tuple[Guest, Guest]) -> None:
    ann, bob = ann_and_bob
    ann.says("\x1b[2Jboo\x07 \N{RIGHT-TO-LEFT OVERRIDE}\N{SNOWMAN}")
    assert bob.hears() == "<ann> [2Jboo \N{SNOWMAN}"


def test_who_speaks_without_end_is_shown_the_door(ann_and_bob: tuple[Guest, Guest]) -> None:
    ann, bob = ann_and_bob
    with contextlib.suppress(ConnectionError):
        ann.sock.sendall(b"x" * 100_000)
    assert bob.hears() == "* ann spoke without end"


def test_who_does_not_read_is_shown_the_door(
    chat: Server, ann_and_bob: tuple[Guest, Guest]
) -> None:
    ann, bob = ann_and_bob
    line = "x" * 900
    for _ in range(20_000):
        ann.says("/me " + line)
        if ann.hears() != f"* ann {line}":
            break
    else:
        pytest.fail("18 MB wait for bob")
    ann.says("/who")
    heard = [ann.hears() for _ in range(2)]
    assert "* here: ann" in heard
    bob.close()


def test_the_chat_ends_quietly(chat: Server) -> None:
    guest = Guest(chat, "ann")
    chat.process.send_signal(signal.SIGINT)
    assert chat.process.wait(20) == 0
    guest.close()


# ---- the forwards ----


@contextlib.contextmanager
def target() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


@contextlib.contextmanager
def forwarding(server: socket.socket) -> Iterator[Server]:
    port = server.getsockname()[1]
    with serving("port_forward.py", f"0:127.0.0.1:{port}", "--every", "0.05") as forward:
        yield forward


def test_bytes_go_both_ways_and_half_a_close_is_passed_on() -> None:
    bulk = os.urandom(3_000_000)
    with target() as listening, forwarding(listening) as forward, forward.connect() as client:
        server, _ = listening.accept()
        with server:
            server.settimeout(20)
            for one, other in ((client, server), (server, client)):

                def send(one: socket.socket = one) -> None:
                    one.sendall(bulk)
                    one.shutdown(socket.SHUT_WR)

                sender = threading.Thread(target=send)
                sender.start()
                assert read_to_end(other) == bulk
                sender.join()


def test_what_goes_through_is_shown() -> None:
    with target() as listening, forwarding(listening) as forward:
        start = re.escape(f"{forward.port} to 127.0.0.1:{listening.getsockname()[1]}; ")
        assert re.match(start + "0 of 0 open", line_of(forward.process))
        with forward.connect() as client:
            server, _ = listening.accept()
            with server:
                server.sendall(b"y" * 5000)
                client.recv(5000, socket.MSG_WAITALL)
        while not re.match(start + "0 of 1 open", line := line_of(forward.process)):
            assert line
        assert "; 0.005 MB, " in line


def test_a_client_of_a_target_that_is_not_there_is_hung_up_on() -> None:
    with target() as listening:
        port = listening.getsockname()[1]
    with (
        serving("port_forward.py", f"0:127.0.0.1:{port}") as forward,
        forward.connect() as client,
    ):
        assert read_to_end(client) == b""


def test_a_target_that_goes_away_ends_the_connection() -> None:
    with target() as listening, forwarding(listening) as forward, forward.connect() as client:
        server, _ = listening.accept()
        server.close()
        assert read_to_end(client) == b""


@pytest.mark.parametrize("text", ["8888", "x:127.0.0.1:80", "99999:127.0.0.1:80"])
def test_what_is_no_forward_is_refused(text: str) -> None:
    done = subprocess.run(
        command("port_forward.py", text), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert "error: " in done.stderr.splitlines()[-1]


def test_on_a_terminal_there_is_a_table() -> None:
    if not importlib.util.find_spec("rich"):
        pytest.skip("no rich")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("port_forward.py", "0:127.0.0.1:1", "--every", "0.05"),
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while "0 of 0 open" not in shown.decode(errors="replace"):
            shown += os.read(ours, 4096)
        assert "to the target" in shown.decode()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while os.read(ours, 4096):
                pass
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


# ---- all of them ----


def test_the_index_names_each_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.py)\)", index)) == {p.name for p in EXAMPLES.glob("*.py")}


def test_each_example_is_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        lines = path.read_text().splitlines()
        if path.name == "echo_server_c_style.py":  # without the C program, which is in its comments
            lines = [line for line in lines if line.strip() and not line.strip().startswith("#")]
        assert len(lines) < 150, path.name
