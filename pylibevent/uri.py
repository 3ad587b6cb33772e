"""event2/http.h: URIs and queries, taken apart and put together, and the encoding of text in them.

libevent's own texts are bytes. Here they are str with a character for each byte (latin-1), as what
an HTTP request has; a conformant URI is ASCII. `uriencode` and the like take any text, as UTF-8.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from ._args import data, only
from ._handle import Handle
from ._libevent import ffi, lib
from .constants import HttpUriFlags
from .errors import NONE, RANGE, fail

_FLAGS = lib.EVHTTP_URI_NONCONFORMANT
_TEXT = ffi.typeof("struct pyle_text *")


def _string(text: str | bytes, name: str = "text", encoding: str = "latin-1") -> bytes:
    """The bytes of a C string."""
    if isinstance(text, str):
        string = str.encode(text, encoding)
    elif isinstance(text, bytes):
        string = bytes(memoryview(text))
    else:
        raise TypeError(f"{name} must be a str or bytes, not {type(text).__name__}")
    if b"\0" in string:
        raise ValueError(f"NUL in {name}")
    return string


def _line(text: str, name: str) -> bytes:
    """The same for what goes into a line of a request or a header."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    string = _string(text, name)
    if b"\r" in string or b"\n" in string:
        raise ValueError(f"CR or LF in {name}")
    return string


def _new_text() -> Any:
    return ffi.gc(ffi.new(_TEXT), lib.pyle_text_end)


def _answer(call: Callable[..., int], function: str, *args: Any) -> bytes:
    text = _new_text()
    rc = call(text, *args)
    if rc < 0:
        fail(rc, function)
    return bytes(ffi.buffer(text.bytes, text.n))


class HttpUri(Handle):
    """A URI in its parts, each of which may be read and set (struct evhttp_uri).

    What is set has to be encoded, as it stands in a URI; ValueError if it is no such part, and then
    the old one stays. A CR, a LF or a NUL is in no part, whatever the flags. Any thread may use it.
    """

    __slots__ = ()

    def __init__(self, uri: str | None = None, flags: int = 0) -> None:
        """Wraps evhttp_uri_parse_with_flags; without a text evhttp_uri_new. ValueError if it is no
        URI or relative reference of RFC 3986; with EVHTTP_URI_NONCONFORMANT any character may be in
        the path, the query and the fragment."""
        self._first_init()
        source = ffi.NULL if uri is None else _line(uri, "uri")
        number = only(_FLAGS, flags)
        ptr = self._make("evhttp_uri_new", lib.pyle_uri_new)
        try:
            self._checked(lib.pyle_uri_open(ptr, source, number), "evhttp_uri_parse", "URI", uri)
        except BaseException:
            del self._ptr, self._anchor
            raise

    @classmethod
    def parse(cls, uri: str, flags: int = 0) -> HttpUri:
        """The same as HttpUri(uri, flags) (evhttp_uri_parse)."""
        _line(uri, "uri")
        return cls(uri, flags)

    def _checked(self, rc: int, function: str, what: str, value: object) -> None:
        if rc == RANGE:
            raise ValueError(f"{function}: not a {what}: {value!r}")
        self._check(rc, function)

    @property
    def ptr(self) -> Any:
        """The struct evhttp_uri *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_uri_ptr(self._ptr)

    @property
    def closed(self) -> bool:
        """Always false: it is freed with the object."""
        return False

    def close(self) -> None:
        """Does nothing: it is freed (evhttp_uri_free) with the object."""

    @property
    def flags(self) -> HttpUriFlags:
        """What may be set, too (evhttp_uri_set_flags): EVHTTP_URI_NONCONFORMANT or 0."""
        return HttpUriFlags(lib.pyle_uri_flags(self._ptr))

    @flags.setter
    def flags(self, flags: int) -> None:
        rc = lib.pyle_uri_set_flags(self._ptr, only(_FLAGS, flags))
        self._check(rc, "evhttp_uri_set_flags")

    def _get(self, part: int, function: str) -> str | None:
        text = _new_text()
        rc = lib.pyle_uri_get(self._ptr, part, text)
        if rc == NONE:
            return None
        self._check(rc, function)
        return bytes(ffi.buffer(text.bytes, text.n)).decode("latin-1")

    def _set(self, part: int, name: str, value: str | None) -> None:
        string = ffi.NULL if value is None else _line(value, name)
        rc = lib.pyle_uri_set(self._ptr, part, string)
        self._checked(rc, f"evhttp_uri_set_{name}", name, value)

    @property
    def scheme(self) -> str | None:
        """As "http"; None: it has none (evhttp_uri_get_scheme, evhttp_uri_set_scheme)."""
        return self._get(lib.PYLE_URI_SCHEME, "evhttp_uri_get_scheme")

    @scheme.setter
    def scheme(self, scheme: str | None) -> None:
        self._set(lib.PYLE_URI_SCHEME, "scheme", scheme)

    @property
    def userinfo(self) -> str | None:
        """What is before the "@"; None: nothing (evhttp_uri_get_userinfo,
        evhttp_uri_set_userinfo)."""
        return self._get(lib.PYLE_URI_USERINFO, "evhttp_uri_get_userinfo")

    @userinfo.setter
    def userinfo(self, userinfo: str | None) -> None:
        self._set(lib.PYLE_URI_USERINFO, "userinfo", userinfo)

    @property
    def host(self) -> str | None:
        """A name or address, IPv6 in brackets; None: it has none (evhttp_uri_get_host,
        evhttp_uri_set_host)."""
        return self._get(lib.PYLE_URI_HOST, "evhttp_uri_get_host")

    @host.setter
    def host(self, host: str | None) -> None:
        self._set(lib.PYLE_URI_HOST, "host", host)

    @property
    def port(self) -> int | None:
        """From 0 to 65535; None: it has none (evhttp_uri_get_port, evhttp_uri_set_port)."""
        port = lib.pyle_uri_port(self._ptr)
        return None if port == NONE else self._check(port, "evhttp_uri_get_port")

    @port.setter
    def port(self, port: int | None) -> None:
        number = -1 if port is None else operator.index(port)
        if port is not None and not 0 <= number <= 0xFFFF:
            raise ValueError(f"port must be from 0 to 65535, not {port!r}")
        self._check(lib.pyle_uri_set_port(self._ptr, number), "evhttp_uri_set_port")

    @property
    def path(self) -> str:
        """It may be empty (evhttp_uri_get_path, evhttp_uri_set_path)."""
        return self._get(lib.PYLE_URI_PATH, "evhttp_uri_get_path") or ""

    @path.setter
    def path(self, path: str) -> None:
        _line(path, "path")
        self._set(lib.PYLE_URI_PATH, "path", path)

    @property
    def query(self) -> str | None:
        """What is behind the "?"; None: there is none (evhttp_uri_get_query,
        evhttp_uri_set_query)."""
        return self._get(lib.PYLE_URI_QUERY, "evhttp_uri_get_query")

    @query.setter
    def query(self, query: str | None) -> None:
        self._set(lib.PYLE_URI_QUERY, "query", query)

    @property
    def fragment(self) -> str | None:
        """What is behind the "#"; None: there is none (evhttp_uri_get_fragment,
        evhttp_uri_set_fragment)."""
        return self._get(lib.PYLE_URI_FRAGMENT, "evhttp_uri_get_fragment")

    @fragment.setter
    def fragment(self, fragment: str | None) -> None:
        self._set(lib.PYLE_URI_FRAGMENT, "fragment", fragment)

    def __str__(self) -> str:
        """Its text (evhttp_uri_join). ValueError if the parts do not go together: a path without a
        "/" behind a host, a userinfo or a port without one, or a path that would be read as a host
        or a scheme."""
        text = _new_text()
        rc = lib.pyle_uri_join(self._ptr, text)
        if rc == RANGE:
            raise ValueError("evhttp_uri_join: the parts make no URI together")
        self._check(rc, "evhttp_uri_join")
        return bytes(ffi.buffer(text.bytes, text.n)).decode("latin-1")

    def _describe(self) -> str:
        """Without userinfo and query, which may be secrets."""
        return f"scheme={self.scheme!r} host={self.host!r} port={self.port} path={self.path!r}"


def parse_query(
    query: HttpUri | str | bytes, encoding: str = "utf-8", errors: str = "surrogateescape"
) -> list[tuple[str, str]]:
    """Names and values of a query, "a=1&b=2", in order, or of an HttpUri's (evhttp_parse_query_str,
    evhttp_parse_query).

    Values are decoded, and a "+" in them is a space; names are left as they are, as C does it. A
    str that is a whole URI goes through HttpUri first. ValueError if a name is empty or has no "=",
    or if there is a "%00", which would end a C string.
    """
    text = (query.query or "") if isinstance(query, HttpUri) else query
    string = _string(text, "query")
    answer = _new_text()
    rc = lib.pyle_parse_query(answer, string)
    if rc == RANGE:
        raise ValueError(f"evhttp_parse_query_str: not a query: {text!r}")
    if rc < 0:
        fail(rc, "evhttp_parse_query_str")
    found = bytes(ffi.buffer(answer.bytes, answer.n)).split(b"\0")
    texts = [part.decode(encoding, errors) for part in found]
    return list(zip(texts[:-1:2], texts[1::2], strict=True))


def uriencode(text: str | bytes | bytearray | memoryview, space_to_plus: bool = False) -> str:
    """Any text, as UTF-8, or bytes, so that they are part of a URI: all but letters, digits and
    "-._~" become %XX, or a space "+" (evhttp_uriencode)."""
    source = data(str.encode(text) if isinstance(text, str) else text)
    call, function = lib.pyle_uriencode, "evhttp_uriencode"
    return _answer(call, function, source, len(source), bool(space_to_plus)).decode("ascii")


def uridecode(text: str | bytes, plus: bool = False) -> bytes:
    """What `uriencode` has made of bytes; a "%" that no two digits follow stays
    (evhttp_uridecode). With plus a "+" is a space."""
    return _answer(lib.pyle_uridecode, "evhttp_uridecode", _string(text), bool(plus))


def encode_uri(text: str | bytes) -> str:
    """`uriencode` of a text without a NUL (evhttp_encode_uri)."""
    return uriencode(_string(text, encoding="utf-8"))


def decode_uri(uri: str | bytes) -> bytes:
    """A whole URI decoded: a "+" is a space behind the first "?" (evhttp_decode_uri). What it
    consisted of can no longer be told: take it apart first, by HttpUri."""
    return _answer(lib.pyle_decode_uri, "evhttp_decode_uri", _string(uri, "uri"))


def htmlescape(text: str) -> str:
    """A text for HTML: <, >, ", ' and & become entities (evhttp_htmlescape)."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    source = _string(text, encoding="utf-8")
    return _answer(lib.pyle_htmlescape, "evhttp_htmlescape", source).decode()
