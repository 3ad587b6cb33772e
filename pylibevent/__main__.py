"""python -m pylibevent: which libevent this is and what it can do here."""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
from importlib import metadata
from pathlib import Path

import cffi

import pylibevent


def openssl_support() -> str:
    try:
        ssl = importlib.import_module("pylibevent._libevent_ssl")
    except ImportError as error:
        return f"no ({error})"
    return "yes, " + str(ssl.ffi.string(ssl.lib.OpenSSL_version(0)), "ascii")


def libraries() -> str:
    """Where libevent's code comes from: the packages that are inside the wheel, by its bill of
    materials, or the file that this process has loaded."""
    files = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        files = metadata.files("pylibevent") or []
    inside = {
        f"{part['name']} {part['version']}"
        for file in files
        if file.name.endswith(".cdx.json")
        for part in json.loads(file.read_text())["components"]
        if part["name"] != "pylibevent"
    }
    if inside:
        return "inside this wheel: " + ", ".join(sorted(inside))
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "libevent_core" in line:
                return line.split(maxsplit=5)[5]
    return "of the system"


def main() -> None:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    with pylibevent.EventBase() as base:
        features = " ".join(
            flag.name or "" for flag in type(base.features) if flag in base.features
        )
        rows = {
            "pylibevent": pylibevent.__version__,
            "libevent": f"{pylibevent.version()} (built with {pylibevent.header_version()})",
            "from": libraries(),
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
