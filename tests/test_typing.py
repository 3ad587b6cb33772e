"""The program whose types `make lint` checks also runs, and the stubs are those of the modules."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import pylibevent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TYPING = Path(__file__).parent / "typing"
program = load(TYPING / "program.py")
USES = {name: use for name, use in vars(program).items() if name.startswith("use_")}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_typed_program_runs(use: Callable[[], None]) -> None:
    use()


def test_each_public_class_is_in_the_typed_program() -> None:
    classes = {name for name in pylibevent.__all__ if isinstance(getattr(pylibevent, name), type)}
    assert classes - set(re.findall(r"\w+", (TYPING / "program.py").read_text())) == set()


@pytest.mark.parametrize("module", ["_libevent", "_libevent_ssl"])
def test_a_stub_has_each_name_of_lib_and_the_arguments_of_each_function(module: str) -> None:
    try:
        built = importlib.import_module(f"pylibevent.{module}")
    except ModuleNotFoundError:
        pytest.skip("built without OpenSSL")
    tree = ast.parse((Path(pylibevent.__file__).parent / f"{module}.pyi").read_text())
    (library,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_Lib")
    names = set()
    for node in library.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
            function = built.ffi.typeof(getattr(built.lib, node.name))
            assert len(node.args.posonlyargs) == 1 + len(function.args), node.name
            assert bool(node.args.vararg) is function.ellipsis, node.name
        else:
            assert isinstance(node, ast.AnnAssign)
            assert isinstance(node.target, ast.Name)
            names.add(node.target.id)
    assert names <= set(dir(built.lib))
    if module == "_libevent":
        assert names == set(dir(built.lib))
