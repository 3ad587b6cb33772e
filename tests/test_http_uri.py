"""HttpUri, queries, and the encoding of text in URIs and HTML."""

from __future__ import annotations

import html
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
from common import FUZZ
from conftest import alive
from faults import Case, Fault, Faults, build, needs_faults
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import in_child

from pylibevent import (
    EVHTTP_URI_NONCONFORMANT,
    ClosedError,
    HttpUri,
    HttpUriFlags,
    decode_uri,
    encode_uri,
    ffi,
    htmlescape,
    lib,
    parse_query,
    uridecode,
    uriencode,
)

NAMES = ["scheme", "userinfo", "host", "port", "path", "query", "fragment"]
FULL = "http://me:secret@example.com:8080/a/b?c=d&e#f"
examples = settings(max_examples=200 * max(1, FUZZ))


def parts(uri: HttpUri) -> tuple[object, ...]:
    return tuple(getattr(uri, name) for name in NAMES)


# ---- taken apart ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FULL, ("http", "me:secret", "example.com", 8080, "/a/b", "c=d&e", "f")),
        ("/path?x=1", (None, None, None, None, "/path", "x=1", None)),
        ("mailto:a@b", ("mailto", None, None, None, "a@b", None, None)),
        ("//host", (None, None, "host", None, "", None, None)),
        ("http://[::1]:80/", ("http", None, "[::1]", 80, "/", None, None)),
        ("http://[v1.a:b]", ("http", None, "[v1.a:b]", None, "", None, None)),
        ("file:///etc", ("file", None, "", None, "/etc", None, None)),
        ("?#", (None, None, None, None, "", "", "")),
        ("", (None, None, None, None, "", None, None)),
        ("*", (None, None, None, None, "*", None, None)),
    ],
)
def test_a_uri_is_taken_apart_and_joined_again(text: str, expected: tuple[object, ...]) -> None:
    uri = HttpUri(text)
    assert parts(uri) == expected
    assert str(uri) == text


def test_parse_is_the_constructor_by_another_name() -> None:
    assert parts(HttpUri.parse(FULL)) == parts(HttpUri(FULL))


def test_a_port_that_is_empty_is_none() -> None:
    assert HttpUri("http://h:/").port is None
    assert str(HttpUri("http://h:/")) == "http://h/"


def test_a_port_loses_its_zeros_in_front() -> None:
    assert str(HttpUri("http://h:0080/")) == "http://h:80/"


@pytest.mark.parametrize(
    "text",
    [
        "http://h/a b",
        "http://h/%7",
        "http://h/%zz",
        "http://h/\x01",
        "http://h/\xe9",
        "http://a\x01b/",
        "http://h:65536/",
        "http://h:99999999999999999999/",
        "http://h:-1/",
        "http://h:+5/",
        "http://h:8x/",
        "http://[::1",
        "http://[::1]]/",
        "http://[]/",
        "http://[v]/",
        f"http://[{'1:' * 100}]/",
        "http://a%4/",
        "http://u%4@h/",
        "http://a@b@c/",
        "://h",
        "1:2",
        "a%3a:b",
    ],
)
def test_what_is_no_uri_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a URI"):
        HttpUri(text)


@pytest.mark.parametrize("flags", [0, EVHTTP_URI_NONCONFORMANT])
@pytest.mark.parametrize("bad", ["\0", "\r", "\n", "\r\nX: y"])
def test_nul_and_the_end_of_a_line_are_refused_anywhere(bad: str, flags: int) -> None:
    for text in (bad, f"http://h/{bad}", f"http://h/{bad}x", f"/?{bad}", f"/#{bad}", f"//{bad}"):
        with pytest.raises(ValueError, match=r"NUL in uri|CR or LF in uri"):
            HttpUri(text, flags)
    uri = HttpUri(FULL, flags)
    for name in set(NAMES) - {"port"}:
        with pytest.raises(ValueError, match=f"NUL in {name}|CR or LF in {name}"):
            setattr(uri, name, f"a{bad}")
    assert str(uri) == FULL


def test_a_character_that_is_no_byte_is_a_value_error() -> None:
    with pytest.raises(UnicodeEncodeError):
        HttpUri("/\u20ac", EVHTTP_URI_NONCONFORMANT)


@pytest.mark.parametrize("wrong", [b"/", 1, bytearray(b"/"), object()])
def test_what_is_no_str_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        HttpUri(wrong)
    with pytest.raises(TypeError):
        HttpUri.parse(wrong)
    for name in set(NAMES) - {"port"}:
        with pytest.raises(TypeError):
            setattr(HttpUri(), name, wrong)


def test_what_failed_to_parse_has_no_parts() -> None:
    uri = HttpUri.__new__(HttpUri)
    with pytest.raises(ValueError, match="not a URI"):
        uri.__init__("http://[")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        uri.path  # noqa: B018


def test_what_was_interrupted_while_it_was_made_is_closed() -> None:
    uri = HttpUri.__new__(HttpUri)
    uri._make("evhttp_uri_new", lib.pyle_uri_new)  # and then a signal handler raises
    for name in (*NAMES, "__str__"):
        with pytest.raises(ClosedError):
            getattr(uri, name) if name in NAMES else str(uri)
    for name in NAMES:
        with pytest.raises(ClosedError):
            setattr(uri, name, 1 if name == "port" else "")
    with pytest.raises(ClosedError):
        uri.flags = EVHTTP_URI_NONCONFORMANT


def test_init_cannot_be_called_twice() -> None:
    with pytest.raises(RuntimeError, match="called twice"):
        HttpUri("/").__init__("/")  # type: ignore[misc]


# ---- flags ----


def test_nonconformant_lets_any_character_into_path_query_and_fragment() -> None:
    text = "http://h/a b\x01\xff?[%]#{ }"
    uri = HttpUri(text, EVHTTP_URI_NONCONFORMANT)
    assert (uri.path, uri.query, uri.fragment) == ("/a b\x01\xff", "[%]", "{ }")
    assert str(uri) == text


def test_nonconformant_does_not_let_them_into_a_host() -> None:
    with pytest.raises(ValueError, match="not a URI"):
        HttpUri("http://a b/", EVHTTP_URI_NONCONFORMANT)


def test_flags_decide_what_may_be_set_from_then_on() -> None:
    uri = HttpUri("/")
    assert uri.flags == HttpUriFlags(0)
    with pytest.raises(ValueError, match="not a path"):
        uri.path = "/a b"
    uri.flags = EVHTTP_URI_NONCONFORMANT
    uri.path = "/a b"
    assert uri.flags is EVHTTP_URI_NONCONFORMANT
    assert str(uri) == "/a b"


@pytest.mark.parametrize("flags", [2, -1, 1 << 40])
def test_flags_that_there_are_not_are_a_value_error(flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        HttpUri("/", flags)
    with pytest.raises(ValueError, match="flags"):
        HttpUri("/").flags = flags


# ---- put together ----


def test_a_uri_is_built_part_by_part() -> None:
    uri = HttpUri()
    assert (str(uri), parts(uri)) == ("", (None, None, None, None, "", None, None))
    uri.scheme, uri.userinfo, uri.host, uri.port = "https", "u", "h", 0
    uri.path, uri.query, uri.fragment = "/p", "", "f"
    assert str(uri) == "https://u@h:0/p?#f"


def test_none_takes_a_part_away() -> None:
    uri = HttpUri(FULL)
    uri.userinfo = uri.port = uri.query = uri.fragment = None
    assert str(uri) == "http://example.com/a/b"
    uri.scheme = uri.host = None
    assert str(uri) == "/a/b"


def test_a_path_is_never_none() -> None:
    with pytest.raises(TypeError):
        HttpUri("/").path = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scheme", ""),
        ("scheme", "1a"),
        ("scheme", "a:"),
        ("userinfo", "a@b"),
        ("userinfo", "%4"),
        ("host", "a/b"),
        ("host", "a:80"),
        ("host", "u@h"),
        ("host", "[::1"),
        ("host", "["),
        ("host", "[v"),
        ("host", "%"),
        ("path", "/a?b"),
        ("path", "/a#b"),
        ("path", "/%"),
        ("query", "a#b"),
        ("query", " "),
        ("fragment", "#"),
    ],
)
def test_what_is_no_such_part_is_refused_and_the_old_one_stays(name: str, value: str) -> None:
    uri = HttpUri(FULL)
    with pytest.raises(ValueError, match=f"not a {name}"):
        setattr(uri, name, value)
    assert str(uri) == FULL


@pytest.mark.parametrize("port", [-1, 65536, 1 << 31, 1 << 70])
def test_a_port_out_of_range_is_a_value_error(port: int) -> None:
    uri = HttpUri(FULL)
    with pytest.raises(ValueError, match="port must be"):
        uri.port = port
    assert uri.port == 8080


def test_a_port_is_an_integer() -> None:
    for wrong in ("80", 80.0, b"80"):
        with pytest.raises(TypeError):
            HttpUri(FULL).port = wrong  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"path": "//evil/x"}, "a path that reads as a host"),
        ({"path": "http:x"}, "a path that reads as a scheme"),
        ({"port": 80}, "a port without a host"),
        ({"userinfo": "u"}, "a userinfo without a host"),
        ({"host": "h", "path": "x"}, "a path that goes on with the host"),
    ],
)
def test_parts_that_would_be_read_as_others_are_not_joined(
    changes: dict[str, Any], why: str
) -> None:
    uri = HttpUri("/")
    for name, value in changes.items():
        setattr(uri, name, value)
    with pytest.raises(ValueError, match="make no URI together"):
        str(uri)


UNRESERVED = "abcXYZ019-._~"
PCHARS = st.text(st.sampled_from(UNRESERVED + "!$&'()*+,;=:@/"), max_size=20)
OPTIONAL = st.none() | PCHARS
REG_NAME = st.text(st.sampled_from(UNRESERVED), max_size=20)


@given(
    scheme=st.none() | st.from_regex(r"[a-zA-Z][a-zA-Z0-9+.-]{0,8}", fullmatch=True),
    userinfo=st.none() | st.text(st.sampled_from(UNRESERVED + ":;"), max_size=10),
    host=st.none() | REG_NAME | st.just("[2001:db8::1]"),
    port=st.none() | st.integers(0, 65535),
    path=PCHARS,
    query=OPTIONAL,
    fragment=OPTIONAL,
)
@examples
def test_what_is_joined_is_taken_apart_as_it_was_put_together(**values: Any) -> None:
    uri = HttpUri()
    for name, value in values.items():
        setattr(uri, name, value)
    try:
        text = str(uri)
    except ValueError:
        return
    assert parts(HttpUri(text)) == tuple(values[name] for name in NAMES)


LATIN = st.text(st.characters(max_codepoint=255), max_size=60)
SYNTAX = st.text(st.sampled_from("ah1:/?#[]@%&= v.\xff\x01\0\r\n"), max_size=30)


@given(text=LATIN | SYNTAX, flags=st.sampled_from([0, EVHTTP_URI_NONCONFORMANT]))
@example(text="http:////h", flags=0)
@example(text="http://h%", flags=0)
@example(text="//:@[", flags=EVHTTP_URI_NONCONFORMANT)
@examples
def test_any_text_is_refused_or_read_and_joined_to_the_same_parts(text: str, flags: int) -> None:
    try:
        uri = HttpUri(text, flags)
    except ValueError:
        return
    again = HttpUri(str(uri), flags)
    assert parts(again) == parts(uri)
    assert str(again) == str(uri)


def test_a_very_long_uri_is_read_and_joined() -> None:
    text = "http://h/" + "a" * (1 << 20) + "?" + "b" * (1 << 20)
    assert str(HttpUri(text)) == text


# ---- the object ----


def test_repr_shows_no_password_and_no_query() -> None:
    assert "secret" not in repr(HttpUri(FULL))
    assert "c=d" not in repr(HttpUri(FULL))
    assert "example.com" in repr(HttpUri(FULL))


def test_repr_is_there_even_if_the_parts_do_not_go_together() -> None:
    uri = HttpUri()
    uri.port = 80
    assert "port=80" in repr(uri)


def test_the_raw_layer_reads_the_same_struct() -> None:
    uri = HttpUri(FULL)
    assert ffi.string(lib.evhttp_uri_get_host(uri.ptr)) == b"example.com"


def test_a_uri_cannot_be_closed_early() -> None:
    with HttpUri(FULL) as uri:
        pass
    assert not uri.closed
    assert str(uri) == FULL


def test_a_uri_is_freed_with_its_object() -> None:
    before = alive()["PYLE_URIS"]
    uris = [HttpUri(FULL) for _ in range(10)]
    assert alive()["PYLE_URIS"] == before + 10
    uris.clear()
    assert alive()["PYLE_URIS"] == before


def test_threads_may_read_what_another_one_sets() -> None:
    uri = HttpUri("http://h/")
    paths = {"/" + letter * 5000 for letter in "abc"}
    uri.path = min(paths)
    wrong: list[str] = []

    def read() -> None:
        for _ in range(2000):
            if (path := uri.path) not in paths or str(uri)[8:] not in paths:
                wrong.append(path)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for path in paths:
            uri.path = path
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_child_process_has_its_own_copy() -> None:
    uri = HttpUri(FULL)

    def child() -> None:
        uri.host = "child"
        assert uri.host == "child"

    in_child(child)
    assert uri.host == "example.com"


def test_a_child_can_use_a_uri_that_a_thread_was_using_at_the_fork() -> None:
    uri = HttpUri(FULL)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            uri.path = "/" + "x" * 20000

    def child() -> None:
        assert uri.path.startswith("/")

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(20):
            in_child(child)
    finally:
        stop.set()
        thread.join()


# ---- queries ----


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", []),
        ("a=1", [("a", "1")]),
        ("a=1&b=2&a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
        ("a=", [("a", "")]),
        ("a=1&", [("a", "1")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=x+y%20z%2B", [("a", "x y z+")]),
        ("a=%C3%BC", [("a", "\xfc")]),
        ("a=%zz%4", [("a", "%zz%4")]),
        ("a%20b=1", [("a%20b", "1")]),
        ("a;b=1?c", [("a;b", "1?c")]),
        (b"a=1", [("a", "1")]),
    ],
)
def test_a_query_is_a_list_of_names_and_values(
    query: str | bytes, expected: list[tuple[str, str]]
) -> None:
    assert parse_query(query) == expected


def test_the_query_of_a_uri_is_parsed() -> None:
    assert parse_query(HttpUri("http://h/p?a=1#b=2")) == [("a", "1")]
    assert parse_query(HttpUri("http://h/p")) == []


@pytest.mark.parametrize("query", ["a", "=1", "a=1&b", "a=1&&b=2", "&a=1", "a=1&=2"])
def test_a_name_that_is_empty_or_without_a_value_is_a_value_error(query: str) -> None:
    with pytest.raises(ValueError, match="not a query"):
        parse_query(query)


@pytest.mark.parametrize("query", ["a=safe%00evil", "a=%00", "a=1&%00b=2"])
def test_a_nul_never_cuts_a_value_off(query: str) -> None:
    with pytest.raises(ValueError, match="not a query"):
        parse_query(query)


def test_a_percent_sign_that_is_encoded_is_no_nul() -> None:
    assert parse_query("a=%2500") == [("a", "%00")]


def test_bytes_that_are_no_utf_8_come_through() -> None:
    ((_, value),) = parse_query("a=%ff")
    assert value.encode("utf-8", "surrogateescape") == b"\xff"
    assert parse_query("a=%ff", "latin-1") == [("a", "\xff")]


@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from("abc-._~"), min_size=1),
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        ),
        max_size=10,
    )
)
@examples
def test_a_query_of_any_values_comes_back(pairs: list[tuple[str, str]]) -> None:
    plus = "&".join(f"{name}={uriencode(value, space_to_plus=True)}" for name, value in pairs)
    assert parse_query(plus) == pairs
    assert parse_query(urllib.parse.urlencode(pairs)) == pairs


@given(LATIN | st.text(st.sampled_from("a=&%0+\0\xff"), max_size=30))
@examples
def test_any_text_is_refused_as_a_query_or_read(text: str) -> None:
    try:
        pairs = parse_query(text)
    except ValueError:
        return
    assert len(pairs) == len([part for part in text.split("&") if part])
    assert all(name for name, _ in pairs)


def test_a_query_of_many_values_is_read() -> None:
    assert parse_query("a=1&" * 50_000) == [("a", "1")] * 50_000


# ---- encoding ----


@given(st.binary(max_size=200))
@example(bytes(range(256)))
@examples
def test_any_bytes_come_back_from_their_encoding(raw: bytes) -> None:
    assert uridecode(uriencode(raw)) == raw
    assert uridecode(uriencode(raw, space_to_plus=True), plus=True) == raw
    assert uriencode(raw) == urllib.parse.quote(raw, safe="")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
@examples
def test_a_text_is_encoded_as_utf_8(text: str) -> None:
    assert uridecode(uriencode(text)).decode() == text


@given(LATIN.filter(lambda text: "\0" not in text))
@examples
def test_any_text_is_decoded_as_the_standard_library_does(text: str) -> None:
    raw = text.encode("latin-1")
    assert uridecode(text) == uridecode(raw) == urllib.parse.unquote_to_bytes(raw)
    assert uridecode(raw, plus=True) == urllib.parse.unquote_to_bytes(raw.replace(b"+", b" "))


def test_a_plus_is_a_space_only_if_asked() -> None:
    assert (uriencode("a b+"), uriencode("a b+", True)) == ("a%20b%2B", "a+b%2B")
    assert (uridecode("a+b"), uridecode("a+b", True)) == (b"a+b", b"a b")


def test_uriencode_takes_what_has_bytes() -> None:
    for raw in (b"a\0", bytearray(b"a\0"), memoryview(b"a\0")):
        assert uriencode(raw) == "a%00"


def test_encode_uri_is_uriencode_without_nuls() -> None:
    assert encode_uri("a b/\xfc") == encode_uri("a b/\xfc".encode()) == "a%20b%2F%C3%BC"


def test_decode_uri_knows_a_plus_behind_the_question_mark() -> None:
    assert decode_uri("/a+b%20?c+d?e+") == b"/a+b ?c d?e "


@given(st.text(st.sampled_from("a0F%+?/\xff"), max_size=40))
@example("a%00b")
@example("%")
@examples
def test_decode_uri_returns_all_that_was_decoded(text: str) -> None:
    path, mark, query = text.encode("latin-1").partition(b"?")
    expected = urllib.parse.unquote_to_bytes(path) + mark
    assert decode_uri(text) == expected + urllib.parse.unquote_to_bytes(query.replace(b"+", b" "))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=100))
@example("<a href=\"x\" title='&amp;'>")
@examples
def test_escaped_html_reads_as_the_text(text: str) -> None:
    escaped = htmlescape(text)
    assert not set(escaped) & set("<>\"'")
    expected = html.escape(text).replace("&#x27;", "&#039;")
    assert escaped == expected


@pytest.mark.parametrize(
    "function",
    [uridecode, encode_uri, decode_uri, htmlescape, parse_query],
    ids=lambda f: f.__name__,
)
def test_a_nul_is_a_value_error_where_c_would_stop_at_it(function: Callable[[str], object]) -> None:
    for text in ("\0", "a=b\0c", "a=\0"):
        with pytest.raises(ValueError, match="NUL"):
            function(text)


@pytest.mark.parametrize(
    "function",
    [uriencode, uridecode, encode_uri, decode_uri, htmlescape, parse_query],
    ids=lambda f: f.__name__,
)
def test_what_is_no_text_is_a_type_error(function: Callable[[Any], object]) -> None:
    for wrong in (None, 1, object(), ["a"]):
        with pytest.raises(TypeError):
            function(wrong)


def test_half_a_surrogate_pair_is_a_value_error() -> None:
    for function in (uriencode, encode_uri, htmlescape, uridecode, parse_query):
        with pytest.raises(UnicodeEncodeError):
            function("\ud800")


# ---- short of memory ----


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return build(tmp_path_factory.mktemp("faults"))


LONG = "http://u@h:80/" + "p" * 3000 + "?" + "q" * 3000 + "#" + "f" * 3000


def uri(fault: Fault) -> None:
    with fault:
        HttpUri(LONG)
    assert str(HttpUri(LONG)) == LONG


def empty_uri(fault: Fault) -> None:
    with fault:
        HttpUri()
    assert str(HttpUri()) == ""


def joined(fault: Fault) -> None:
    uri = HttpUri(LONG)
    with fault:
        assert str(uri) == LONG
    assert str(uri) == LONG


def read(fault: Fault) -> None:
    uri = HttpUri(LONG)
    with fault:
        assert len(uri.path) == 3001
    assert len(uri.path) == 3001


def changed(fault: Fault) -> None:
    uri = HttpUri(FULL)
    with fault.tolerated:  # memory for it is stored first
        uri.path = "/" + "x" * 3000
    assert uri.path == ("/a/b" if fault.raised else "/" + "x" * 3000)


def encoded(fault: Fault) -> None:
    with fault:
        assert uriencode(b"a b" * 3000) == "a%20b" * 3000
    assert uriencode(b"a b" * 3000) == "a%20b" * 3000


def decoded(fault: Fault) -> None:
    with fault:
        assert uridecode("a%20b" * 3000) == b"a b" * 3000


def uri_decoded(fault: Fault) -> None:
    with fault:
        assert decode_uri("a%20b" * 3000) == b"a b" * 3000


def escaped(fault: Fault) -> None:
    with fault:
        assert htmlescape("<" * 3000) == "&lt;" * 3000


def query(fault: Fault) -> None:
    with fault:
        assert parse_query("a=1&" * 20) == [("a", "1")] * 20
    assert parse_query("a=1&" * 20) == [("a", "1")] * 20


@needs_faults
@pytest.mark.parametrize(
    "case",
    [uri, empty_uri, joined, read, changed, encoded, decoded, uri_decoded, escaped, query],
    ids=lambda case: case.__name__,
)
def test_memory_that_is_not_to_be_had_is_a_memory_error(case: Case, faults: Faults) -> None:
    faults.each(case)
