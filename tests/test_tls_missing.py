"""Without OpenSSL all but TLS works, and TLS says what to install."""

from __future__ import annotations

import textwrap

from processes import run_script

HIDDEN = """
    import sys
    sys.modules["pylibevent._libevent_ssl"] = None  # as if it had not been built
"""


def without_openssl(code: str) -> str:
    return run_script(textwrap.dedent(HIDDEN) + textwrap.dedent(code))


def test_tls_is_an_import_error_that_says_what_to_install() -> None:
    code = """
        import pylibevent
        from pylibevent import BufferEvent, EventBase, TLSContext
        with EventBase() as base:
            a, b = BufferEvent.pair(base)
            for use in (
                lambda: TLSContext.client(),
                lambda: TLSContext.server("cert.pem"),
                lambda: BufferEvent.openssl_socket(base, None, None),
                lambda: BufferEvent.openssl_filter(a, None),
            ):
                try:
                    use()
                except ImportError as error:
                    print(error)
    """
    lines = without_openssl(code).splitlines()
    assert len(lines) == 4
    for line in lines:
        for name in ("built without TLS", "libssl-dev", "openssl-devel", "openssl-dev", "brew"):
            assert name in line


def test_everything_else_works() -> None:
    code = """
        from pylibevent import *
        with EventBase() as base:
            a, b = BufferEvent.pair(base)
            b.setcb(lambda bev: print(bev.read().decode()))
            b.enable(EV_READ)
            a.write(b"hello")
            base.loop(EVLOOP_NONBLOCK)
            print(a.tls, a.tls_error)
    """
    assert without_openssl(code) == "hello\nNone None\n"


def test_openssl_is_not_loaded_by_who_does_not_use_tls() -> None:
    code = """
        import sys
        from pylibevent import BufferEvent, EventBase
        with EventBase() as base:
            BufferEvent.socket(base).close()
        print([name for name in sys.modules if "ssl" in name])
    """
    assert run_script(textwrap.dedent(code)) == "[]\n"
