"""The build: each of these works on a copy of the source tree, with the tools that users have."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import pylibevent

ROOT = Path(__file__).resolve().parent.parent
PIP = ("-m", "pip", "--disable-pip-version-check")
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "build",
    "dist",
    "*.so",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)
pytestmark = pytest.mark.slow


def need(*modules: str) -> None:
    """The build back end of this environment, so that no test needs the network."""
    for name in modules:
        if not importlib.util.find_spec(name):
            pytest.skip(f"needs {name} beside {sys.executable}")


def run(
    *command: object, python: Path | str = sys.executable, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *map(str, command)],
        cwd="/",
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("setuptools")
    top = tmp_path_factory.mktemp("sdist")
    tree = shutil.copytree(ROOT, top / "tree", ignore=LEFT_OUT)
    code = "import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]); "
    succeed(run("-c", code + "build_meta.build_sdist(sys.argv[2])", tree, top))
    (archive,) = top.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    need("pip")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "-w", sdist.parent)
    succeed(run(*PIP, "wheel", *options, sdist, PYLIBEVENT_CFLAGS="-O0"))  # half the time of -O2
    (path,) = sdist.parent.glob("*.whl")
    return path


@pytest.mark.parametrize(
    "hidden", [{"PKG_CONFIG_LIBDIR": ""}, {"PATH": ""}], ids=["libevent", "pkg-config"]
)
def test_a_missing_libevent_is_one_clear_line(hidden: dict[str, str], tmp_path: Path) -> None:
    need("pip", "setuptools")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=LEFT_OUT)
    (tmp_path / "empty").mkdir()
    env = {"PKG_CONFIG_PATH": ""} | dict.fromkeys(hidden, str(tmp_path / "empty"))
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--target", tmp_path / "target")
    result = run(*PIP, "install", *options, tree, **env)
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "Traceback" not in output
    (line,) = (line for line in output.splitlines() if "libevent-dev" in line)
    for name in ("Debian", "Ubuntu", "Fedora", "Alpine", "macOS", "libevent-devel", "pkg-config"):
        assert name in line


@pytest.mark.parametrize(
    ("module", "linked"),
    [
        ("_libevent", {"event_core", "event_extra", "event_pthreads"}),
        ("_libevent_ssl", {"event_openssl"}),
    ],
)
def test_linked_with_the_parts_and_never_with_the_whole(module: str, linked: set[str]) -> None:
    spec = importlib.util.find_spec(f"pylibevent.{module}")
    if not spec or not spec.origin:
        pytest.skip(f"built without {module}")
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    elf = subprocess.run(["readelf", "-d", spec.origin], capture_output=True, text=True, check=True)
    found = set(re.findall(r"\(NEEDED\).*\[lib(event\w*)", elf.stdout))
    assert linked <= found
    assert "event" not in found


def test_every_cdef_file_and_source_is_in_the_build() -> None:
    spec = importlib.util.spec_from_file_location("build_libevent", ROOT / "build_libevent.py")
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    cffi = ROOT / "pylibevent" / "_cffi"
    assert {*build.HEADERS, *build.HEADERS_SSL} == {path.stem for path in cffi.glob("cdef/*")}
    assert {*build.SOURCES, *build.SOURCES_SSL} == {path.stem for path in cffi.glob("src/*.c")}


def test_the_sdist_is_whole(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"build_libevent.py", "setup.py", "pyproject.toml", "Makefile", "scripts/setup.sh"}
    for folder in ("pylibevent", "tests", "examples", "docs"):
        tracked = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        expected |= {
            str(path.relative_to(ROOT))
            for path in tracked
            if "__pycache__" not in path.parts and path.suffix != ".so"
        }
    assert expected - names == set()


def test_the_wheel_is_abi3_and_has_no_sources(wheel: Path) -> None:
    if sys.implementation.name == "cpython" and not sys.abiflags:
        assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pylibevent/py.typed", "pylibevent/__main__.py"} <= set(names)
    assert any(name.startswith("pylibevent/_libevent.") and name.endswith(".so") for name in names)
    assert [name for name in names if name.endswith((".c", ".h", ".o")) or "_cffi" in name] == []


def test_installed_from_the_sdist_it_runs(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/*/site-packages")
    # cffi and pip are those of this environment: no network.
    (site / "here.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("-packages"))
    )
    options = ("--no-deps", "--no-index", "--force-reinstall")
    succeed(run(*PIP, "install", *options, wheel, python=python))
    output = succeed(run("-m", "pylibevent", python=python))
    assert output.startswith(f"pylibevent {pylibevent.__version__}\n")
    assert pylibevent.version() in output
    output = succeed(run("-c", "import pylibevent; print(pylibevent.__file__)", python=python))
    assert output.startswith(str(site))
