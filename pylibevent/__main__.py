"""python -m pylibevent: which libevent this is and what it can do here."""

from __future__ import annotations

import importlib
import platform

import cffi

import pylibevent


def openssl_support() -> str:
    try:
        ssl = importlib.import_module("pylibevent._libevent_ssl")
    except ImportError as error:
        return f"no ({error})"
    return "yes, " + str(ssl.ffi.string(ssl.lib.OpenSSL_version(0)), "ascii")


def main() -> None:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    with pylibevent.EventBase() as base:
        features = " ".join(
            flag.name or "" for flag in type(base.features) if flag in base.features
        )
        rows = {
            "pylibevent": pylibevent.__version__,
            "libevent": f"{pylibevent.version()} (built with {pylibevent.header_version()})",
            "methods": " ".join(pylibevent.supported_methods()),
            "in use": base.method,
            "features": features,
            "OpenSSL": openssl_support(),
            "Python": f"{python}, cffi {cffi.__version__}",
        }
    for name, value in rows.items():
        print(f"{name:<11}{value}")


if __name__ == "__main__":
    main()
