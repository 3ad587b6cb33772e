"""`make soak` for a few seconds: it passes, and it finds faults that are put into the servers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import EXAMPLES

SOAK = EXAMPLES.parent / "scripts" / "soak.py"

pytestmark = pytest.mark.slow


def soak(examples: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    arguments = ["--minutes", str(seconds / 60), "--connections", "100", "--seed", "1"]
    return subprocess.run(
        [sys.executable, str(SOAK), *arguments, "--examples", str(examples)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_few_seconds_of_it_pass() -> None:
    done = soak(EXAMPLES, 3)
    assert done.stdout.endswith("all is well\n")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        (
            'removesuffix(b"\\r")',
            'removesuffix(b"\\n")',
            "instead of b",
        ),
        ("b\"Client msg %b\\n\" % line)", "b\"Client msg %b\\n\" % line[:60000])", "instead of b"),
        ("bev.close_after_write()\n\n    def on_written", "bev.close()\n\n    def on_written", "missing"),
        ("log.debug(\"%s connected\"", "log.info(\"%s connected\"", "echo_server says: "),
        ("log.debug(\"%s connected\", address)", "import os; os.dup(0)", "descriptors open, not"),
        ("return 0\n", "return 3\n", "ended with status 3"),
        ("bev.enable(EV_READ)\n        self.on_read", "self.on_read", "nothing has happened"),
    ],
)
def test_it_finds_a_fault(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    pass
