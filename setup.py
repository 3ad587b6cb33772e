"""Only what pyproject.toml has no place for: cffi's modules and the wheel's abi3 tag."""

import runpy
import sys

from setuptools import setup

builders = ["ffibuilder"]
if runpy.run_path("build_libevent.py")["have_openssl"]():
    builders.append("ffibuilder_ssl")
abi3 = (
    sys.implementation.name == "cpython" and not sys.abiflags
)  # neither free-threaded nor a debug build
setup(
    cffi_modules=[f"build_libevent.py:{name}" for name in builders],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if abi3 else {},
)
