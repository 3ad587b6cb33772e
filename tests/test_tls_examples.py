"""The TLS examples as a user runs them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Server, complaint_of, run, serving
from tls import Certificates

pytest.importorskip("pylibevent._libevent_ssl", reason="built without OpenSSL")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certs: Certificates) -> Iterator[Server]:
    with serving("tls_echo_server.py", str(certs.good), "--port", "0") as server:
        yield server


def connect(server: Server, certs: Certificates) -> ssl.SSLSocket:
    return certs.for_client().wrap_socket(
        server.connect(), server_hostname="localhost", suppress_ragged_eofs=False
    )


def test_the_tls_echo_server_sends_back_what_it_is_sent(
    server: Server, certs: Certificates
) -> None:
    piece = bytes(i % 241 for i in range(30_000))
    with connect(server, certs) as sock:
        for _ in range(30):
            sock.sendall(piece)
            received = bytearray()
            while len(received) < len(piece):
                received += sock.recv(65536)
            assert received == piece
        sock.unwrap().close()  # a close_notify each way
    assert "TLSv1.3" in complaint_of(server.process)


def test_the_tls_echo_server_goes_on_after_clients_that_speak_no_tls(
    server: Server, certs: Certificates
) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):  # an alert, perhaps
                pass
    assert "http request" in complaint_of(server.process)
    with connect(server, certs) as tls:
        tls.sendall(b"still there?")
        assert tls.recv(100) == b"still there?"
        tls.unwrap().close()
    complaint_of(server.process)


def test_the_tls_echo_server_says_what_is_wrong_with_its_certificate(tmp_path: Path) -> None:
    done = run("tls_echo_server.py", str(tmp_path / "none.pem"))
    assert done.returncode == 1
    assert b"No such file" in done.stderr


class HTTPS:
    """Answers one request with a page."""

    PAGE = b"<p>hello</p>\n" * 1000

    def __init__(self, certs: Certificates, cert: Path, clean: bool = True) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20)
        self.port = self.listener.getsockname()[1]
        self.context = certs.for_server(cert)
        self.clean = clean
        self.request = b""
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        sock, _ = self.listener.accept()
        sock.settimeout(20)
        try:
            with self.context.wrap_socket(sock, server_side=True) as tls:
                while b"\r\n\r\n" not in self.request:
                    self.request += tls.recv(4096)
                tls.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + self.PAGE)
                if self.clean:
                    tls.unwrap().close()
        except ssl.SSLError:
            pass  # the client refuses the certificate

    def __enter__(self) -> HTTPS:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        self.listener.close()


def test_the_https_client_prints_the_page(certs: Certificates) -> None:
    with HTTPS(certs, certs.good) as server:
        url = f"https://localhost:{server.port}/page?a=b"
        done = run("https_client.py", url, "--ca", str(certs.cafile))
    assert (done.returncode, done.stdout) == (0, server.PAGE), done.stderr
    assert server.request.startswith(b"GET /page?a=b HTTP/1.0\r\nHost: localhost\r\n")
    assert b"HTTP/1.0 200 OK" in done.stderr


def test_the_https_client_refuses_the_certificate_of_another_host(certs: Certificates) -> None:
    with HTTPS(certs, certs.other) as server:
        url = f"https://localhost:{server.port}/"
        done = run("https_client.py", url, "--ca", str(certs.cafile))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"hostname mismatch" in done.stderr.lower()


def test_the_https_client_trusts_whom_the_system_trusts(certs: Certificates) -> None:
    with HTTPS(certs, certs.good) as server:
        done = run("https_client.py", f"https://localhost:{server.port}/")
    assert done.returncode == 1
    assert b"unable to get local issuer certificate" in done.stderr


def test_the_https_client_tells_a_page_that_was_cut_off(certs: Certificates) -> None:
    with HTTPS(certs, certs.good, clean=False) as server:
        url = f"https://localhost:{server.port}/"
        done = run("https_client.py", url, "--ca", str(certs.cafile))
    assert done.returncode == 1
    assert b"EOF occurred in violation of protocol" in done.stderr


def test_the_https_client_says_what_is_wrong_with_an_url() -> None:
    done = run("https_client.py", "http://localhost/")
    assert done.returncode == 1
    assert b"not the URL of an HTTPS server" in done.stderr
