"""Every public name says what it does, and every method over a C struct which C function it is."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest
from libevent_headers import headers

import pylibevent
from pylibevent import ffi, lib
from pylibevent._handle import Handle

# Those that are no C function, and why: a property's name, or a class and a name.
NO_C_FUNCTION = {
    "closed": "libevent does not know",
    "ptr": "C's own pointer",
    "from_ptr": "C's own pointer",
    "EventBase.running": "libevent does not tell",
    "Event.base": "event_get_base would need an open one",
    "EvBuffer.readlines": "several evbuffer_readln in one step",
    "BufferEvent.close_after_write": "libevent has none",
    "Listener.enabled": "libevent does not tell",
    "Listener.address": "getsockname",
    "DnsRequest.base": "C has no such call",
    "DnsRequest.done": "C does not know",
    "DnsBase.base": "C has no such call",
    "DnsServerRequest.port": "a field of C's own",
    "DnsServerRequest.questions": "a field of struct evdns_server_request",
    "HttpServer.unanswered": "libevent does not tell",
    "HttpConnection.connected": "libevent does not tell",
    "HttpRequest.done": "C does not know",
    "HttpRequest.exception": "libevent does not keep it",
    "DnsServerPort.base": "C has no such call",
    "DnsServerPort.fd": "C has no such call",
    "DnsServerPort.address": "getsockname",
    "HttpRequest.version": "fields of struct evhttp_request",
    "HttpServerRequest.base": "C has no such call",
    "HttpBoundSocket.address": "getsockname",
    "HttpServer.base": "C has no such call",
}


def public() -> Iterator[tuple[str, Any]]:
    """Each class and function of the package's public modules, with its name."""
    for _, module, _ in pkgutil.iter_modules(pylibevent.__path__, "pylibevent."):
        if not module.startswith("pylibevent._"):
            for name, value in vars(importlib.import_module(module)).items():
                if (
                    not name.startswith("_")
                    and isinstance(value, (type, FunctionType))
                    and value.__module__ == module
                ):
                    yield name, value


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """A class's own methods and properties, with their names."""
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and isinstance(function, (property, FunctionType)):
            yield f"{kind.__name__}.{name}", function


PUBLIC = dict(public())
MEMBERS = dict(pair for kind in PUBLIC.values() if isinstance(kind, type) for pair in members(kind))


def test_the_public_names_are_found() -> None:
    """A search that finds nothing would let everything pass."""
    assert {"EventBase", "EvBuffer", "BufferEvent", "Listener", "version"} <= set(PUBLIC)
    assert {"Event.add", "EventBase.method", "BufferEvent.socket", "EvBuffer.ptr"} <= set(MEMBERS)
    exported = {name for name in pylibevent.__all__ if isinstance(getattr(pylibevent, name), type)}
    assert exported <= set(PUBLIC)


@pytest.mark.parametrize("what", [PUBLIC, MEMBERS], ids=["classes and functions", "members"])
def test_what_is_public_has_a_docstring(what: dict[str, Any]) -> None:
    assert [name for name, value in what.items() if not value.__doc__] == []


def test_a_method_over_a_c_struct_names_its_c_function() -> None:
    functions = headers().functions
    nameless = [
        name
        for name, value in MEMBERS.items()
        if issubclass(PUBLIC[name.partition(".")[0]], Handle)
        and not {name, name.partition(".")[2]} & set(NO_C_FUNCTION)
        and not any(
            w in functions or callable(getattr(lib, w, None))
            for w in re.findall(r"\w+", value.__doc__)
        )
    ]
    assert nameless == []


def test_what_names_no_c_function_exists() -> None:
    names = {*MEMBERS, *(name.partition(".")[2] for name in MEMBERS)}
    assert set(NO_C_FUNCTION) - names == set()


def is_enum(name: str) -> bool:
    try:
        ffi.typeof(f"enum {name}")
    except ffi.error:
        return False
    return True


def test_c_names_in_docstrings_are_names_of_libevent() -> None:
    found = headers()
    structs = {name.removeprefix("struct ") for name in found.structs}
    known = {*found.text, *found.functions, *found.enumerators, *found.typedefs, *structs}
    prefixes = (
        "event|evbuffer|evconnlistener|evutil|evthread|evdns|evhttp|evtag|evtimer|bufferevent"
    )
    wrong = [
        f"{name}: {word}"
        for name, value in {**PUBLIC, **MEMBERS}.items()
        for word in re.findall(rf"\b(?:{prefixes})_\w+", value.__doc__ or "")
        if word not in known and not is_enum(word)
    ]
    assert wrong == []
