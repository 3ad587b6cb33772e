"""CPython's own tests of asyncio on aio.EventLoop, the quick ones; `make test-asyncio` runs all."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "asyncio_suite.py"
MODULES = [
    "test_events", "test_base_events", "test_selector_events", "test_streams", "test_unix_events",
    "test_server", "test_sock_lowlevel", "test_runners", "test_sendfile", "test_buffered_proto",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("test.test_asyncio") is None, reason="this Python comes without `test`"
)
def test_cpythons_tests_of_asyncio_pass() -> None:
    command = [sys.executable, str(SCRIPT), "--limit", "60", *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'loops': 0}" not in done.stdout.splitlines()[-1]
