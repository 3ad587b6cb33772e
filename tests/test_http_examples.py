"""The HTTP examples as a user runs them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import measures_memory
from processes import Server, curl, line_of, read_to_end, run, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("top")
    (top / "secret.txt").write_text("secret")
    (top / "root-more").mkdir()
    (top / "root-more" / "file").write_text("secret")
    root = top / "root"
    (root / "site").mkdir(parents=True)
    (root / "site" / "index.html").write_text("<p>the site</p>")
    (root / "files" / "deeper").mkdir(parents=True)
    (root / "files" / "a b&c<d>é.txt").write_text("strange")
    (root / "files" / "..dots").write_text("dots")
    (root / "files" / "page.html").write_text("<p>")
    (root / "files" / "data.json").write_text("{}")
    (root / "files" / "more.tar.gz").write_bytes(b"\x1f\x8b")
    (root / "files" / "unknown").write_bytes(bytes(range(256)))
    (root / "empty").touch()
    (root / "inside").symlink_to("files/page.html")
    (root / "outside").symlink_to("../secret.txt")
    (root / "outside_directory").symlink_to("..")
    (root / "circle").symlink_to("circle")
    (root / "gone").symlink_to("nowhere")
    (root / "index_outside").mkdir()
    (root / "index_outside" / "index.html").symlink_to("../../secret.txt")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with serving("http_server.py", "--port", "0", str(root)) as server:
        yield server


def ask(server: Server, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path)
        reply = connection.getresponse()
        return reply, reply.read()


# ---- http_server.py ----


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/files/page.html", "text/html"),
        ("/files/data.json", "application/json"),
        ("/files/more.tar.gz", "application/octet-stream"),
        ("/files/unknown", "application/octet-stream"),
        ("/empty", "application/octet-stream"),
        ("/inside", "text/html"),
        ("/files//page.html?query", "text/html"),
        ("/%66iles/%70age.html", "text/html"),
        ("/files/..dots", "application/octet-stream"),
    ],
)
def test_a_file_is_served_with_its_type(server: Server, root: Path, path: str, kind: str) -> None:
    reply, body = ask(server, path)
    assert (reply.status, reply.getheader("Content-Type")) == (200, kind)
    name = path.partition("?")[0].replace("%66", "f").replace("%70", "p")
    assert body == (root / name.lstrip("/")).read_bytes()


def test_head_has_what_get_has_but_the_body(server: Server) -> None:
    reply, body = ask(server, "/files/unknown", "HEAD")
    assert (reply.status, reply.getheader("Content-Length"), body) == (200, "256", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/files/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/files/%2e./%2e%2e/secret.txt",
        "/../root-more/file",
        "http://localhost/../secret.txt",
        "/files/../empty",
        "/outside",
        "/outside_directory/",
        "/outside_directory/secret.txt",
        "/index_outside/",
        "/files%00/page.html",
        "/empty%00.html",
    ],
)
def test_what_is_outside_is_not_there(server: Server, path: str) -> None:
    with server.connect() as sock:  # as it is: some clients tidy up
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        reply = read_to_end(sock)
    assert reply.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in reply


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/gone",
        "/circle",
        "/pipe",
        "/empty/",
        "/empty/file",
        "/" + 300 * "x",
        "/%",
        "/*",
    ],
)
def test_what_is_no_file_is_not_there(server: Server, path: str) -> None:
    assert ask(server, path)[0].status == 404


def test_what_may_not_be_read_is_forbidden(root: Path, server: Server) -> None:
    (root / "forbidden").touch(0)
    if os.access(root / "forbidden", os.R_OK):
        pytest.skip("root may read all")
    assert ask(server, "/forbidden")[0].status == 403


def test_a_directory_is_listed(server: Server) -> None:
    reply, body = ask(server, "/files/")
    page = body.decode()
    assert reply.getheader("Content-Type") == "text/html; charset=utf-8"
    links = re.findall('<a href="(.*)">(.*)</a>', page)
    assert ("deeper/", "deeper/") in links
    assert ("a%20b%26c%3Cd%3E%C3%A9.txt", "a b&amp;c&lt;d&gt;é.txt") in links
    assert [name for _, name in links] == sorted(name for _, name in links)
    for link, _ in links:
        assert ask(server, f"/files/{link}")[0].status == 200


def test_a_directorys_own_index_is_its_page(server: Server) -> None:
    reply, body = ask(server, "/site/")
    assert (reply.getheader("Content-Type"), body) == ("text/html", b"<p>the site</p>")


@pytest.mark.parametrize(
    ("path", "to"),
    [("/files", "./files/"), ("/files/deeper?x=y", "./deeper/")],
)
def test_a_directory_without_its_slash_is_elsewhere(server: Server, path: str, to: str) -> None:
    reply, _ = ask(server, path)
    assert (reply.status, reply.getheader("Location")) == (301, to)


def test_files_are_only_to_be_read(server: Server) -> None:
    reply, _ = ask(server, "/empty", "PUT")
    assert (reply.status, reply.getheader("Allow")) == (405, "GET, HEAD")


def test_dump_prints_the_request(root: Path) -> None:
    with serving("http_server.py", "--port", "0", str(root)) as server:
        url = f"http://{server.host}:{server.port}/dump?a=b"
        assert curl(url, "-H", "X-One: 1", "--data-binary", "the body") == b""
        printed: list[str] = []
        while not printed or printed[-1] != ">>>":
            printed.append(line_of(server.process))
    assert printed[0] == "Received a POST request for /dump?a=b"
    assert "  X-One: 1" in printed
    assert printed[-3:] == ["Input data: <<<", "the body", ">>>"]


@measures_memory
def test_a_big_file_takes_no_memory(root: Path, server: Server) -> None:
    with (root / "big").open("wb") as file:
        file.truncate(1 << 28)
    assert ask(server, "/empty")[0].status == 200
    before = server.resident_kib()
    url = f"http://{server.host}:{server.port}/big"
    assert int(curl(url, "-o", "/dev/null", "-w", "%{size_download}")) == 1 << 28
    assert server.peak_kib() - before < 16 * 1024


def test_many_pages_come_over_one_connection(server: Server) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    for path in ["/files/unknown", "/files/", "/site/", "/files"] * 10:
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()


def test_a_signal_ends_it(root: Path) -> None:
    with serving("http_server.py", "--port", "0", str(root)) as server:
        server.process.terminate()
        assert server.process.wait(20) == 0


def test_a_directory_that_is_none_is_said() -> None:
    done = run("http_server.py", "/nowhere/at/all")
    assert done.returncode == 2
    assert b"no directory" in done.stderr
