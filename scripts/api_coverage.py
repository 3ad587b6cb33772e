"""Writes docs/api_coverage.md: each public C name, where it is in the package, what tests it.

The names are those of the installed headers, the raw layer is what cffi has parsed of the cdef
files, the class layer is found by the C names in the docstrings, and the tests by reading them:
see Tests. `--check` writes nothing and fails if the file on disk is not what it should be.
"""

from __future__ import annotations

import ast
import io
import re
import socket
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from libevent_headers import LEFT_OUT, Headers, headers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import build_libevent as build  # noqa: E402

TARGET = ROOT / "docs" / "api_coverage.md"

ORDER = [
    f"event2/{name}.h"
    for name in (
        "util", "event", "event_struct", "thread", "buffer", "bufferevent", "bufferevent_struct",
        "bufferevent_ssl", "listener", "dns", "dns_struct", "http", "http_struct", "keyvalq_struct",
        "tag", "event_compat", "buffer_compat", "bufferevent_compat", "dns_compat", "http_compat",
        "tag_compat",
    )
]  # fmt: skip

PLANNED = "planned"
OLD = "of libevent 1.x, for old programs line by line"
OWN_MEMORY = "for a struct event in memory of the program's own"
FINALIZE = "Event.close() may be called at any time and from any thread"
LOCKS = "the locks of pthreads are set when the package is imported"
CALLBACK = "C's callback is the package's own"

# What a docstring does not name: another form of the same call.
SAME = {
    "evutil_monotonic_timer_free": "MonotonicTimer.__init__",
    "evutil_freeaddrinfo": "util.getaddrinfo",
    "EVUTIL_CLOSESOCKET": "util.closesocket",
    "event_base_new": "EventBase.__init__",
    "event_get_base": "Event.base",
    "evtimer_add": "Event.add",
    "evtimer_del": "Event.delete",
    "evtimer_pending": "Event.pending",
    "evsignal_add": "Event.add",
    "evsignal_del": "Event.delete",
    "evsignal_pending": "Event.pending",
    "evuser_new": "Event.__init__",
    "evuser_del": "Event.delete",
    "evuser_pending": "Event.pending",
    "evuser_trigger": "Event.active",
    "evbuffer_get_length": "EvBuffer.__len__",
    "evbuffer_add_file": "EvBuffer.add_file",
    "evbuffer_search": "EvBuffer.search",
    "evbuffer_write": "EvBuffer.write",
    "evbuffer_remove_cb": "CallbackEntry.remove",
    "bufferevent_unlock": "BufferEvent.lock",
}

# Why a function has no method, by a pattern of its header and name. The first that fits counts.
REASONS = {
    r"event2/\w+_compat.h .*": OLD,
    r"event2/http.h .*": PLANNED,
    r".* bufferevent_ssl_renegotiate": "TLS 1.3 has no renegotiation, and in 1.2 it is an attack",
    r".* evdns_getaddrinfo_cancel": "DnsRequest.cancel() does it, for getaddrinfo too",
    r".* evdns_base_(nameserver_add|nameserver_ip_add)": "DnsBase.add_nameserver() does it",
    r".* evdns_set_(log_fn|transaction_id_fn|random_bytes_fn)": "libevent's own are the right ones",
    r".* evtag_init": "it does nothing",
    r".* evutil_timer\w+": "sums and comparisons of floats do it",
    r".* event_gettime_monotonic": "util.gettime_monotonic() and time.monotonic() do it",
    r".* evutil_snprintf": "% does it",
    r".* evutil_inet_pton_scope": "socket.getaddrinfo() does it",
    r".* EVUTIL_SET_SOCKET_ERROR": "errno is C's; Python has exceptions",
    r".* event_debug_unassign": OWN_MEMORY,
    r".* event_set_(log|fatal)_callback": "libevent's messages go to Python's logging",
    r".* event_set_mem_functions": "too late: libevent has allocated memory by then",
    r".* libevent_global_shutdown": "it takes away what others in the process may still use",
    r".* (event_assign|event_base_set|evtimer_assign|evsignal_assign)": OWN_MEMORY,
    r".* event_get_struct_event_size": OWN_MEMORY,
    r".* (event|evtimer|evsignal|evuser)_initialized": "an Event always is",
    r".* event_(finalize|free_finalize|del_block|del_noblock|base_free_nofinalize)": FINALIZE,
    r".* event_self_cbarg": "a Python callback is a closure, or gets the event as an argument",
    r".* event_get_(callback|callback_arg|assignment)": CALLBACK,
    r".* event_get_version_number": "version() tells it",
    r".* evthread_\w*(callbacks?|pthreads|notifiable)": LOCKS,
    r".* evthread_enable_lock_debugg?ing": "for C code that locks; call it first of all",
    r".* evbuffer_(enable_locking|lock|unlock|defer_callbacks|add_iovec)": PLANNED,
    r".* evbuffer_(reserve_space|commit_space|add_buffer_reference|\w*file_segment\w*)": PLANNED,
    r".* bufferevent_base_set": "the base is given when it is made",
    r".* bufferevent_(incref|decref)": "Python counts references",
    r".* (ev_token_bucket_cfg_\w+|bufferevent_\w*(rate_limit|max_single|limit|max_to)\w*)": PLANNED,
    r".* bufferevent_get_token_bucket_cfg": PLANNED,
}


# ---- the package ----


class Package:
    """The public classes and functions, and the C names that their docstrings name."""

    def __init__(self) -> None:
        self.wraps: defaultdict[str, list[str]] = defaultdict(list)  # C name: Python names
        self.bases: dict[str, list[str]] = {}  # class: the classes it derives from
        self.members: dict[str, dict[str, ast.expr | None]] = {}  # class: names, with their types
        self.constants: set[str] = set()
        self.modules: set[str] = set()  # those with functions that are not at the package's top
        top = ast.parse((ROOT / "pylibevent" / "__init__.py").read_text())
        self.top = {
            alias.name
            for node in top.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for path in sorted((ROOT / "pylibevent").glob("*.py")):
            if not path.name.startswith("_"):
                self.read(path.stem, ast.parse(path.read_text()))

    def read(self, module: str, tree: ast.Module) -> None:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants.add(node.targets[0].id)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                self.document(name := self.name(module, node.name), node)
                self.members.setdefault("", {})[name] = node.returns
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                self.document(node.name, node)
                self.bases[node.name] = [b.id for b in node.bases if isinstance(b, ast.Name)]
                members = self.members[node.name] = {}
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and item.name not in members:
                        members[item.name] = item.returns
                        if not re.match("_[^_]", item.name):
                            self.document(f"{node.name}.{item.name}", item)
                    elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        members[item.target.id] = item.annotation

    def name(self, module: str, name: str) -> str:
        if name in self.top:
            return name
        self.modules.add(module)
        return f"{module}.{name}"

    def document(self, name: str, node: ast.FunctionDef | ast.ClassDef) -> None:
        for word in dict.fromkeys(re.findall(r"\w+", ast.get_docstring(node) or "")):
            self.wraps[word].append(name)

    def find(self, kind: str, name: str) -> tuple[str, ast.expr | None] | None:
        """The class that gives a class a member, and the member's type."""
        if name in self.members.get(kind, {}):
            return kind, self.members[kind][name]
        return next((f for b in self.bases.get(kind, ()) if (f := self.find(b, name))), None)


# ---- the tests ----

Type = str | tuple["Type", ...] | None  # a class of the package, several in a tuple, or unknown


class Tests(ast.NodeVisitor):
    """What each test file uses of `lib` and of the classes.

    Which class a method belongs to is told by the types that the file gives: annotations of
    parameters, calls of constructors, and from there on what the package's annotations say. Where
    that does not tell, a method counts if no other class, nor Python's own, has one of that name.
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        self.used: defaultdict[str, set[str]] = defaultdict(set)  # name: files
        self.file = ""
        self.functions: dict[str, ast.expr | None] = {}
        self.aliases: dict[str, ast.expr] = {}
        self.imported: set[str] = set()
        self.scopes: list[dict[str, Type]] = []
        owners: defaultdict[str, list[str]] = defaultdict(list)
        for kind, members in package.members.items():
            for name in members:
                owners[name].append(f"{kind}.{name}")
        pythons = (list, set, dict, bytes, bytearray, io.TextIOWrapper, re.Pattern, socket.socket)
        everyday = {"address", "error", "event", "fd", "lock", "socket"}
        everyday.update(*map(dir, pythons))
        self.unique = {n: o[0] for n, o in owners.items() if len(o) == 1 and n not in everyday}
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            file = path.relative_to(ROOT / "tests")
            self.file = str(file.with_name(file.stem.removeprefix("test_")))
            self.module(ast.parse(path.read_text()))

    def module(self, tree: ast.Module) -> None:
        self.functions = {
            node.name: node.returns for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
        }
        self.aliases = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, (ast.Name, ast.Subscript))
        }
        self.imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        self.scopes = [{}]
        self.generic_visit(tree)

    def use(self, name: str) -> None:
        self.used[name].add(self.file)

    # types

    def annotated(self, node: ast.expr | None, owner: str = "") -> Type:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Name):
            if node.id == "Self":
                return owner
            if node.id in self.aliases:
                return self.annotated(self.aliases[node.id])
            return node.id if node.id in self.package.members else None
        if isinstance(node, ast.BinOp):  # X | None
            return self.annotated(node.left, owner) or self.annotated(node.right, owner)
        if isinstance(node, ast.Subscript):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            types = tuple(self.annotated(item, owner) for item in items)
            return types if any(types) else None
        return None

    def type_of(self, node: ast.expr) -> Type:
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), None)
        if isinstance(node, (ast.Tuple, ast.List)):
            return tuple(self.type_of(item) for item in node.elts)
        if isinstance(node, ast.Subscript):
            whole = self.type_of(node.value)
            if isinstance(whole, tuple) and whole:
                index = node.slice.value if isinstance(node.slice, ast.Constant) else 0
                return whole[index] if isinstance(index, int) and index < len(whole) else whole[0]
            return None
        if isinstance(node, ast.Attribute):
            found = self.member(node)
            return self.annotated(found[1], found[0]) if found else None
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                if node.func.id in self.package.bases:
                    return node.func.id
                return self.annotated(self.functions.get(node.func.id))
            if isinstance(node.func, ast.Attribute) and self.in_module(node.func):
                return node.func.attr if node.func.attr in self.package.bases else None
            return self.type_of(node.func)
        return None

    def in_module(self, node: ast.Attribute) -> bool:
        return isinstance(node.value, ast.Name) and node.value.id in self.package.modules

    def member(self, node: ast.Attribute) -> tuple[str, ast.expr | None] | None:
        owner = self.type_of(node.value)
        if isinstance(node.value, ast.Name) and node.value.id in self.package.bases:
            owner = node.value.id  # a class method
        return self.package.find(owner, node.attr) if isinstance(owner, str) else None

    def bind(self, target: ast.expr, kind: Type) -> None:
        if isinstance(target, ast.Name) and kind:
            self.scopes[-1][target.id] = kind
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(kind, tuple):
            for one, its in zip(target.elts, kind, strict=False):
                self.bind(one, its)

    # the tree

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scopes.append({a.arg: self.annotated(a.annotation) for a in arguments})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, self.type_of(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self.bind(node.target, self.annotated(node.annotation))

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item)
            kind = self.type_of(item.context_expr)
            if item.optional_vars:
                self.bind(item.optional_vars, kind)
            if isinstance(kind, str) and (found := self.package.find(kind, "close")):
                self.use(f"{found[0]}.close")
        for statement in node.body:
            self.visit(statement)

    def loop(self, node: ast.For | ast.comprehension) -> None:
        kinds = self.type_of(node.iter)
        self.bind(node.target, kinds[0] if isinstance(kinds, tuple) and kinds else None)

    def visit_For(self, node: ast.For) -> None:
        self.loop(node)
        self.generic_visit(node)

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> None:
        for generator in node.generators:
            self.loop(generator)
        self.generic_visit(node)

    visit_ListComp = visit_GeneratorExp = comprehension

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self.package.bases or node.id in self.package.members[""]:
            self.use(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in ("lib", "pylibevent"):
            self.use(f"lib.{node.attr}" if node.value.id == "lib" else node.attr)
        elif found := self.member(node):
            self.use(f"{found[0]}.{node.attr}")
        elif self.in_module(node):
            self.use(ast.unparse(node))
            self.use(node.attr)
        elif isinstance(node.value, ast.Name) and node.value.id in self.imported:
            pass  # a module's
        elif self.type_of(node.value) is None and node.attr in self.unique:
            self.use(self.unique[node.attr])

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and self.in_module(node.func):
            name = node.func.attr
        elif isinstance(node.func, ast.Name):
            name = node.func.id
        else:
            return
        if name in self.package.bases and (found := self.package.find(name, "__init__")):
            self.use(f"{found[0]}.__init__")
        elif name in ("len", "bytes", "bool") and node.args:
            kind = self.type_of(node.args[0])
            if isinstance(kind, str) and (found := self.package.find(kind, f"__{name}__")):
                self.use(f"{found[0]}.__{name}__")

    def visit_Constant(self, node: ast.Constant) -> None:
        """A program that a test runs in a process of its own."""
        if isinstance(node.value, str) and ("lib." in node.value or "import" in node.value):
            try:
                tree = ast.parse(textwrap.dedent(node.value))
            except SyntaxError:
                return
            outer = self.scopes, self.functions, self.aliases, self.imported
            self.module(tree)
            self.scopes, self.functions, self.aliases, self.imported = outer


# ---- the document ----


def declared() -> set[str]:
    """Each name of `lib`."""
    main = build.declare(build.HEADERS)
    names = set()
    for ffi in (main, build.declare(build.HEADERS_SSL, main)):
        for key, (declaration, _) in ffi._parser._declarations.items():
            kind, _, name = key.partition(" ")
            if kind in ("function", "macro", "constant"):
                names.add(name)
            elif kind == "enum":
                names.update(declaration.enumerators)
    return names


def python_name(name: str) -> str:
    owner, _, member = name.partition(".")
    if member == "__init__":
        return f"`{owner}(...)`"
    return f"`{member.strip('_')}({owner})`" if member.startswith("__") else f"`{name}`"


def reason(header: str, name: str) -> str:
    """Why no method wraps a function; "" if nobody has said."""
    key = f"{header} {name}"
    return next((why for pattern, why in REASONS.items() if re.fullmatch(pattern, key)), "")


class Row:
    """A function, or a macro that acts as one."""

    def __init__(
        self, header: str, name: str, raw: set[str], package: Package, tests: Tests
    ) -> None:
        self.name = name
        self.left_out = "" if name in raw else LEFT_OUT[name]
        self.methods = package.wraps.get(name, [])
        if not self.methods and name in SAME:
            self.methods = [SAME[name]]
        self.reason = "" if self.methods or self.left_out else reason(header, name)
        used = (tests.used[python] for python in [f"lib.{name}", *self.methods])
        self.tests = sorted({file for files in used for file in files})

    def line(self) -> str:
        if self.left_out:
            return f"| `{self.name}` | no: {self.left_out} | | |\n"
        layer = ", ".join(map(python_name, self.methods)) or "**none**"
        if self.reason:
            layer = self.reason if self.reason == PLANNED else f"raw only: {self.reason}"
        more = f" and {len(self.tests) - 3} more" if len(self.tests) > 3 else ""
        tests = ", ".join(self.tests[:3]) + more or "**none**"
        return f"| `{self.name}` | yes | {layer} | {tests} |\n"


def names(of: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in of)


def constants(found: Headers, header: str, raw: set[str], package: Package) -> Iterator[str]:
    tables = (found.enumerators, found.values, found.text)
    functions = {*found.functions, *found.calls}
    every = dict.fromkeys(n for table in tables for n, entry in table.items() if entry[0] == header)
    every = {n: None for n in every if n not in functions and not (n in LEFT_OUT and n.islower())}
    there = [n for n in every if n in raw]
    if there:
        wrapped = [n for n in there if n in package.constants]
        only = [n for n in there if n not in package.constants]
        text = f"{len(there)} constants, all in the raw layer"
        if wrapped:
            text += f"; {len(wrapped)} of them members of a Python enum too"
        yield text + (f". Raw only: {names(only)}" if wrapped and only else "") + ".\n"
    if left := [n for n in every if n in LEFT_OUT]:
        yield "Left out: " + "; ".join(f"`{name}` ({LEFT_OUT[name]})" for name in left) + ".\n"


def document() -> str:
    found, raw, package = headers(), declared(), Package()
    tests = Tests(package)
    for python in SAME.values():
        there = python in package.members[""] or package.find(*python.split(".", 1))
        assert there, f"in SAME, but not in the package: {python}"
    functions: defaultdict[str, list[Row]] = defaultdict(list)
    tables = [(n, entry[0]) for n, entry in [*found.functions.items(), *found.calls.items()]]
    compiled_out = [(n, e[0]) for n, e in found.text.items() if n in LEFT_OUT and n.islower()]
    for name, header in dict(tables + compiled_out).items():
        functions[header].append(Row(header, name, raw, package, tests))

    sections, totals = [], []
    every: list[Row] = []
    for header in ORDER:
        rows = functions.get(header, [])
        text = f"\n## {header}\n"
        if rows:
            text += "\n| C | raw layer | class layer | tests |\n| --- | --- | --- | --- |\n"
            text += "".join(row.line() for row in rows)
            totals.append(total(f"[{header}](#{header.translate({47: None, 46: None})})", rows))
            every += rows
        for line in constants(found, header, raw, package):
            text += f"\n{line}"
        structs = [name for name, (where, _) in found.structs.items() if where == header]
        if structs:
            text += f"\nStructs: {names(structs)}.\n"
        sections.append(text)
    left = sorted(name for name in found.read if name in LEFT_OUT)
    text = INTRODUCTION + "".join([total("all", every), *totals]) + "".join(sections)
    text += "\n## Headers left out\n\n"
    return text + "".join(f"- {name}: {LEFT_OUT[name]}\n" for name in left)


def total(name: str, rows: list[Row]) -> str:
    there = [row for row in rows if not row.left_out]
    counts = (
        len(rows),
        len(there),
        sum(bool(row.methods) for row in there),
        sum(bool(row.reason) and row.reason != PLANNED for row in there),
        sum(row.reason == PLANNED for row in there),
        sum(not row.methods and not row.reason for row in there),
        sum(bool(row.tests) for row in there),
        sum(not row.tests for row in there),
    )
    return f"| {name} | " + " | ".join(map(str, counts)) + " |\n"


INTRODUCTION = """\
# libevent's public names, and where they are here

Made by scripts/api_coverage.py (`make generate`) from libevent's installed headers, the
declarations that cffi has parsed, the C names in the docstrings, and the test files. A test file
counts if it uses the name of `lib`, or the method, property or class that wraps it: `buffer` is
tests/test_buffer.py. "raw only" is followed by the reason.

Functions, and macros that act as functions:

| header | functions | raw layer | class layer | raw only | planned | neither | tested | untested |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> int:
    text = document()
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    if "--check" in sys.argv:
        print("docs/api_coverage.md is out of date, run make generate", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
