"""`make soak` for seconds: it passes, and it finds each fault that is put into the echo server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import EXAMPLES

SOAK = EXAMPLES.parent / "scripts" / "soak.py"

pytestmark = pytest.mark.slow


def soak(seconds: float, n: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    size = ["--minutes", str(seconds / 60), "--connections", str(n), "--seed", "1"]
    return subprocess.run(
        [sys.executable, str(SOAK), *size, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


FAULTS = {
    "a wrong byte": ("% line)", "% line.lower())", "instead of b"),
    "an answer left out": ("if rest := bev.read():", "if rest := b'':", "bytes are missing"),
    "output dropped": ("close_after_write()", "close()", "bytes are missing"),
    "a reader forgotten": ("bev.enable(EV_READ)\n        self", "self", "nothing has happened"),
    "an open descriptor": ("log.debug", "__import__('os').dup(0), log.debug", "descriptors open"),
    "an unexpected word": ("log.debug", "log.info", "echo_server says: "),
    "a crash": ("bev.disable(EV_READ)", "__import__('os').abort()", "ended with status -6"),
    "a bad end": ("return 0\n", "return 3\n", "ended with status 3"),
}


Runs = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """What it says about each fault, and "" for none; several at a time: mostly they wait."""

    def run(fault: str) -> subprocess.CompletedProcess[str]:
        if not fault:
            return soak(3, 200)
        right, wrong, _ = FAULTS[fault]
        examples = tmp_path_factory.mktemp("examples")
        shutil.copy(EXAMPLES / "le_proxy.py", examples)
        source = (EXAMPLES / "echo_server.py").read_text()
        assert right in source
        (examples / "echo_server.py").write_text(source.replace(right, wrong))
        return soak(0.5, 60, "--examples", str(examples), "--late", "5")

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(["", *FAULTS], pool.map(run, ["", *FAULTS]), strict=True))


def test_some_seconds_of_it_pass(runs: Runs) -> None:
    done = runs[""]
    assert (done.stdout.splitlines()[-1], done.stderr) == ("all is well", "")
    assert done.returncode == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_it_finds(runs: Runs, fault: str) -> None:
    assert FAULTS[fault][2] in runs[fault].stdout
    assert "all is well" not in runs[fault].stdout
    assert runs[fault].returncode == 1
