"""Builds pylibevent._libevent, and pylibevent._libevent_ssl where OpenSSL is there.

cffi, out-of-line API mode. setup.py hands the two ffibuilder functions to cffi, which exec()s this
file outside of any package: it imports nothing of ours. PYLIBEVENT_CFLAGS and PYLIBEVENT_LDFLAGS
add flags, PYLIBEVENT_NO_OPENSSL=1 leaves OpenSSL out.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from cffi import FFI, PkgConfigError
from cffi.pkgconfig import flags_from_pkgconfig

CFFI = Path(__file__).resolve().parent / "pylibevent" / "_cffi"

# One cdef file per libevent header, in the order in which they depend on each other;
# then what our own C source offers (shim) and every C -> Python entry point (callbacks).
HEADERS = (
    "util", "thread", "event_struct", "event", "event_compat",
    "buffer", "buffer_compat", "bufferevent", "bufferevent_struct", "bufferevent_compat",
    "listener", "keyvalq_struct", "dns", "dns_struct", "dns_compat",
    "http", "http_struct", "http_compat", "tag", "tag_compat",
    "shim", "callbacks",
)  # fmt: skip
SOURCES = (
    "base", "event", "buffer", "bufferevent", "fast", "ratelimit", "listener", "log", "memory",
    "tag", "dns", "poll", "uri", "http",
    "http_scan", "http_client",
)  # fmt: skip
PRELUDE = '#include "preamble.h"\n#include "pyle.h"\n'

# Never plain -levent, which libevent_pthreads.pc and libevent_openssl.pc ask for: it is a second
# copy of the core with a lock table of its own, and no thread could wake a loop.
LIBEVENT = ["libevent_core >= 2.1.12", "libevent_extra >= 2.1.12"]
LIBRARIES = ["event_core", "event_extra", "event_pthreads"]
OPENSSL = ["libevent_openssl >= 2.1.12", "openssl"]
HEADERS_SSL = ("bufferevent_ssl", "shim_ssl", "callbacks_ssl")
SOURCES_SSL = ("tls",)
PRELUDE_SSL = """
#include <event2/bufferevent_ssl.h>
#include <openssl/ssl.h>
#include "../cdef/shim_ssl.h"
#include "../cdef/callbacks_ssl.h"
"""
OPENSSL_LIBRARIES = ["event_openssl", "event_core", "ssl", "crypto"]

MISSING = (
    "pylibevent needs libevent >= 2.1.12 with its headers, and pkg-config to find it. Install: "
    "Debian/Ubuntu: apt-get install libevent-dev pkg-config; "
    "Fedora: dnf install libevent-devel pkgconf-pkg-config; "
    "Alpine: apk add libevent-dev pkgconf; "
    "macOS: brew install libevent pkg-config"
)


def have_openssl() -> bool:
    if os.environ.get("PYLIBEVENT_NO_OPENSSL", "") not in ("", "0"):
        return False
    try:
        flags_from_pkgconfig(OPENSSL)
    except PkgConfigError:
        return False
    return True


def declare(headers: tuple[str, ...], include: FFI | None = None) -> FFI:
    """What the cdef files declare; the stubs of the raw layer are made of it."""
    ffi = FFI()
    if include:
        ffi.include(include)
    for name in headers:
        text = (CFFI / "cdef" / f"{name}.h").read_text()
        if name.startswith("callbacks"):
            text = f'extern "Python+C" {{ {text} }}'
        elif name == "shim":
            text = "struct pyle_event { ...; }; struct pyle_buf { signed char dry; ...; };" + text
        ffi.cdef(text)
    return ffi


def make(
    module: str,
    headers: tuple[str, ...],
    prelude: str,
    packages: list[str],
    libraries: list[str],
    sources: tuple[str, ...] = (),
    include: FFI | None = None,
) -> FFI:
    try:
        flags = flags_from_pkgconfig(packages)
    except PkgConfigError:
        raise SystemExit(MISSING) from None
    flags["libraries"] = libraries
    flags["include_dirs"].append(str(CFFI / "src"))
    cflags = shlex.split(os.environ.get("PYLIBEVENT_CFLAGS", ""))
    flags["extra_compile_args"] += ["-std=gnu11", "-O2", "-fvisibility=hidden", *cflags]
    flags["extra_link_args"] += shlex.split(os.environ.get("PYLIBEVENT_LDFLAGS", ""))
    flags["sources"] = [os.path.relpath(CFFI / "src" / f"{name}.c") for name in sources]
    # An edit of any of these rebuilds the module, as an edit of a source does.
    flags["depends"] = [os.path.relpath(path) for path in (Path(__file__), *CFFI.glob("*/*.h"))]
    ffi = declare(headers, include)
    ffi.set_source(module, prelude, **flags)
    return ffi


def ffibuilder() -> FFI:
    return make("pylibevent._libevent", HEADERS, PRELUDE, LIBEVENT, LIBRARIES, SOURCES)


def ffibuilder_ssl() -> FFI:
    return make(
        "pylibevent._libevent_ssl",
        HEADERS_SSL,
        PRELUDE + PRELUDE_SSL,
        LIBEVENT + OPENSSL,
        OPENSSL_LIBRARIES,
        SOURCES_SSL,
        include=ffibuilder(),
    )
