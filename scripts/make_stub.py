"""Writes pylibevent/_libevent.pyi and _libevent_ssl.pyi, the types of the raw layer.

Made of what cffi has parsed of the cdef files, so that a type checker knows each function of `lib`
with its arguments. `--check` writes nothing and fails if a file on disk is not what it should be.
"""

from __future__ import annotations

import keyword
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cffi import FFI, model
from cffi.cparser import Parser
from pycparser import c_ast  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import build_libevent as build  # noqa: E402

WIDTH = 100

MAIN = '''\
"""The raw layer's types. Made by scripts/make_stub.py (`make generate`): do not edit.

`lib` and `ffi` are all that there is when a program runs. The classes are for type checkers:
`if TYPE_CHECKING: from pylibevent._libevent import CData`.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import IO, Any, Final, Protocol, TypeAlias, TypeVar, overload, type_check_only

from typing_extensions import Buffer

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

@type_check_only
class CData:
    """A C value or pointer: what `ffi.new` makes and the functions of `lib` take and return."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getitem__(self, index: int | slice, /) -> Any: ...
    def __setitem__(self, index: int | slice, value: Any, /) -> None: ...
    def __call__(self, *args: Any) -> Any: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __bool__(self) -> bool: ...
    def __int__(self) -> int: ...
    def __float__(self) -> float: ...
    def __add__(self, other: int, /) -> CData: ...
    def __radd__(self, other: int, /) -> CData: ...
    @overload
    def __sub__(self, other: CData, /) -> int: ...
    @overload
    def __sub__(self, other: int, /) -> CData: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __lt__(self, other: CData, /) -> bool: ...
    def __le__(self, other: CData, /) -> bool: ...
    def __gt__(self, other: CData, /) -> bool: ...
    def __ge__(self, other: CData, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __enter__(self) -> CData: ...
    def __exit__(self, *args: object) -> None: ...

@type_check_only
class CField:
    type: CType
    offset: int
    bitshift: int
    bitsize: int
    flags: int

@type_check_only
class CType:
    """A C type, as `ffi.typeof` returns it. Which attributes there are depends on `kind`."""

    kind: str
    cname: str
    item: CType
    length: int | None
    fields: list[tuple[str, CField]]
    args: tuple[CType, ...]
    result: CType
    ellipsis: bool
    abi: int
    elements: dict[int, str]
    relements: dict[str, int]

@type_check_only
class _CBuffer:
    def __init__(self, cdata: CData, size: int = -1) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int | slice, /) -> bytes: ...
    def __setitem__(self, index: int | slice, value: bytes, /) -> None: ...

@type_check_only
class _Allocator(Protocol):
    def __call__(self, cdecl: str | CType, init: Any = None) -> CData: ...

# What a parameter takes beside CData. Where C only reads: bytes for characters, and what cffi can
# make an array or a struct of.
_Chars: TypeAlias = CData | bytes
_Array: TypeAlias = CData | list[Any] | tuple[Any, ...]
_Struct: TypeAlias = CData | list[Any] | tuple[Any, ...] | dict[str, Any]
_File: TypeAlias = CData | IO[Any]

@type_check_only
class _Library: ...

_CDataType: TypeAlias = type[CData]
_CTypeType: TypeAlias = type[CType]

@type_check_only
class _Types:
    CData: Final[_CDataType]
    CType: Final[_CTypeType]

@type_check_only
class _FFI(_Types):
    NULL: Final[CData]
    buffer: Final[type[_CBuffer]]
    error: Final[type[Exception]]
    errno: int
    def addressof(self, cdata: CData | _Library, /, *fields: str | int) -> CData: ...
    def alignof(self, cdecl: str | CType | CData, /) -> int: ...
    @overload
    def callback(
        self,
        cdecl: str | CType,
        python_callable: None = None,
        error: Any = None,
        onerror: Callable[..., Any] | None = None,
    ) -> Callable[[Callable[..., Any]], CData]: ...
    @overload
    def callback(
        self,
        cdecl: str | CType,
        python_callable: Callable[..., Any],
        error: Any = None,
        onerror: Callable[..., Any] | None = None,
    ) -> CData: ...
    def cast(self, cdecl: str | CType, source: CData | float | bytes, /) -> CData: ...
    def def_extern(
        self, name: str = ..., error: Any = None, onerror: Callable[..., Any] | None = None
    ) -> Callable[[_F], _F]: ...
    @overload
    def from_buffer(
        self, cdecl: str | CType, python_buffer: Buffer, require_writable: bool = False
    ) -> CData: ...
    @overload
    def from_buffer(self, python_buffer: Buffer, /, *, require_writable: bool = False) -> CData: ...
    def from_handle(self, x: CData, /) -> Any: ...
    @overload
    def gc(self, cdata: CData, destructor: Callable[[CData], object], size: int = 0) -> CData: ...
    @overload
    def gc(self, cdata: CData, destructor: None, size: int = 0) -> None: ...
    def getctype(self, cdecl: str | CType, replace_with: str = "") -> str: ...
    def init_once(self, func: Callable[[], _T], tag: Hashable) -> _T: ...
    def integer_const(self, name: str) -> int: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...
    def memmove(self, dest: CData | Buffer, src: CData | Buffer, n: int) -> None: ...
    def new(self, cdecl: str | CType, init: Any = None) -> CData: ...
    def new_allocator(
        self,
        alloc: Callable[[int], CData] | None = None,
        free: Callable[[CData], object] | None = None,
        should_clear_after_alloc: bool = True,
    ) -> _Allocator: ...
    def new_handle(self, x: object, /) -> CData: ...
    def offsetof(self, cdecl: str | CType, /, *fields: str | int) -> int: ...
    def release(self, cdata: CData, /) -> None: ...
    def sizeof(self, cdecl: str | CType | CData, /) -> int: ...
    def string(self, cdata: CData, maxlen: int = -1) -> bytes: ...
    def typeof(self, cdecl: str | CData | Callable[..., Any], /) -> CType: ...
    def unpack(self, cdata: CData, length: int) -> Any: ...

'''

SSL = '''\
"""The types of the optional second module. Made by scripts/make_stub.py: do not edit."""

from typing import Final, type_check_only

from ._libevent import _FFI, CData, _Array, _Chars
from ._libevent import _Lib as _Main

'''

LIB = "@type_check_only\nclass _Lib({}):"
END = "\nffi: Final[_FFI]\nlib: Final[_Lib]\n"


def is_chars(t: model.BaseTypeByIdentity) -> bool:
    return isinstance(t, model.PrimitiveType) and t.name in (
        "char", "signed char", "unsigned char", "int8_t", "uint8_t",
    )  # fmt: skip


def is_whole(t: Any) -> bool:
    """Whether cffi knows how large it is, and can make one of a Python value."""
    if isinstance(t, model.StructOrUnion):
        return t.fldnames is not None
    return not isinstance(t, (model.VoidType, model.UnknownIntegerType))


def value(t: Any) -> str:
    """The Python type of a value of C's."""
    if isinstance(t, model.VoidType):
        return "None"
    if isinstance(t, (model.EnumType, model.UnknownIntegerType)):
        return "int"
    if isinstance(t, model.PrimitiveType):
        if t.name == "_Bool":
            return "bool"
        if t.name == "char":
            return "bytes"
        return "float" if t.is_float_type() else "int"
    return "CData"


def parameter(t: Any) -> str:
    """The Python types that cffi takes for a parameter."""
    if isinstance(t, model.StructOrUnion):
        return "_Struct"
    if isinstance(t, model.FunctionPtrType) or not isinstance(t, model.PointerType):
        return value(t)
    to = t.totype
    if to.get_c_name() == "FILE":
        return "_File"
    if not t.quals & model.Q_CONST:
        return "CData"  # a list's values would be lost with what C writes over them
    if isinstance(to, model.VoidType) or is_chars(to):
        return "_Chars"
    return "_Array" if is_whole(to) else "CData"


def named(node: Any, taken: list[str]) -> str:
    """What to call a parameter: its name in the cdef, or else what it points to."""
    name = node.name
    while not name and isinstance(node, (c_ast.Typename, c_ast.PtrDecl, c_ast.TypeDecl)):
        node = node.type
        name = getattr(node, "name", None)
    if not isinstance(name, str) or name in taken:
        name = f"arg{len(taken) + 1}"
    return f"{name}_" if keyword.iskeyword(name) or name == "self" else name


def function(name: str, t: Any, node: Any) -> str:
    names: list[str] = []
    for part in node.args.params if node.args and t.args else ():
        if not isinstance(part, c_ast.EllipsisParam) and len(names) < len(t.args):
            names.append(named(part, names))
    arguments = ["self"]
    for argument, kind in zip(names, t.args, strict=True):
        arguments.append(f"{argument}: {parameter(kind)}")
    arguments.append("/")
    if t.ellipsis:  # cffi wants to be told the type of each of these
        arguments.append("*args: CData")
    result = f") -> {value(t.result)}: ..."
    text = ", ".join(arguments)
    if len(line := f"    def {name}({text}{result}") <= WIDTH:
        return line
    if len(line := f"        {text}") <= WIDTH:
        return f"    def {name}(\n{line}\n    {result}"
    lines = "".join(f"        {argument},\n" for argument in arguments)
    return f"    def {name}(\n{lines}    {result}"


class Names(c_ast.NodeVisitor):  # type: ignore[misc]
    """The names of a cdef file, in its order."""

    def __init__(self) -> None:
        self.constants: list[str] = []
        self.others: list[tuple[str, Any]] = []  # functions and variables

    def visit_Enumerator(self, node: Any) -> None:
        if not node.name.startswith("__"):  # cffi's own, for "..."
            self.constants.append(node.name)

    def visit_Decl(self, node: Any) -> None:
        if node.name and not node.name.startswith("__"):
            self.others.append((node.name, node.type))
        self.generic_visit(node.type if isinstance(node.type, c_ast.TypeDecl) else node)

    def visit_FuncDecl(self, node: Any) -> None:
        pass

    def visit_Struct(self, node: Any) -> None:
        pass


def members(parser: Parser, header: str) -> Iterator[str]:
    """A line for each name that the cdef file of a header gives `lib`."""
    tree, macros, _ = parser._parse((build.CFFI / "cdef" / f"{header}.h").read_text())
    names = Names()
    for node in tree.ext:
        if not (isinstance(node, c_ast.Typedef) and node.coord.line < 0):
            names.visit(node)
    declared = parser._declarations
    for name in dict.fromkeys([*macros, *names.constants]):
        yield f"    {name}: Final[int]"
    for name, node in names.others:
        if f"function {name}" in declared:
            yield function(name, declared[f"function {name}"][0], node)
        elif f"extern_python_plus_c {name}" in declared:
            yield f"    {name}: Final[CData]"
        elif f"constant {name}" in declared:
            yield f"    {name}: Final[{value(declared[f'constant {name}'][0])}]"
        elif f"variable {name}" in declared:
            yield f"    {name}: {value(declared[f'variable {name}'][0])}"


def library(ffi: FFI, headers: tuple[str, ...], base: str) -> str:
    lines = [LIB.format(base)]
    for header in headers:
        if found := list(members(ffi._parser, header)):
            lines += ["", f"    # {header}.h", *found]
    del lines[1]
    return "\n".join(lines) + "\n"


def stubs() -> dict[str, str]:
    """The files' names, and what is to be in them."""
    main = build.declare(build.HEADERS)
    ssl = build.declare(build.HEADERS_SSL, main)
    return {
        "_libevent.pyi": MAIN + library(main, build.HEADERS, "_Library") + END,
        "_libevent_ssl.pyi": SSL + library(ssl, build.HEADERS_SSL, "_Main") + END,
    }


def main() -> int:
    stale = []
    for name, text in stubs().items():
        path = ROOT / "pylibevent" / name
        if not path.exists() or path.read_text() != text:
            stale.append(f"pylibevent/{name}")
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"out of date, run make generate: {' '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
