"""HTTP: requests and their headers, the server."""

from __future__ import annotations

import pytest

from pylibevent import HttpRequest

# ---- headers ----


@pytest.fixture
def request_() -> HttpRequest:
    return HttpRequest(print)


def test_headers_are_a_mapping_in_their_order(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["Host"] = "example.org"
    headers.update({"Accept": "*/*", "X-One": "1"})
    assert list(headers) == ["Host", "Accept", "X-One"]
    assert headers["Accept"] == "*/*"
    assert dict(headers) == {"Host": "example.org", "Accept": "*/*", "X-One": "1"}
    assert len(headers) == 3
    assert headers.pop("Accept") == "*/*"
    assert headers.get("Accept") is None
    headers.clear()
    assert not headers


def test_the_case_of_a_header_does_not_matter(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["Content-Type"] = "text/plain"
    assert headers["content-TYPE"] == "text/plain"
    assert "CONTENT-type" in headers
    del headers["content-type"]
    assert "Content-Type" not in headers


def test_a_header_may_be_there_more_than_once(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers.add("Set-Cookie", "a=1")
    headers.add("X", "x")
    headers.add("set-cookie", "b=2")
    assert headers["Set-Cookie"] == "a=1"
    assert headers.getall("SET-COOKIE") == ["a=1", "b=2"]
    assert headers.getall("none") == []
    assert list(headers.items()) == [("Set-Cookie", "a=1"), ("X", "x"), ("set-cookie", "b=2")]
    assert list(headers.keys()) == ["Set-Cookie", "X", "set-cookie"]
    assert list(headers.values()) == ["a=1", "x", "b=2"]
    assert ("set-cookie", "b=2") in headers.items()
    assert "b=2" in headers.values()
    assert len(headers) == 3


def test_setting_a_header_replaces_all_of_its_name_in_the_place_of_the_first(
    request_: HttpRequest,
) -> None:
    headers = request_.output_headers
    for name, value in (("a", "1"), ("b", "2"), ("A", "3"), ("c", "4"), ("a", "5")):
        headers.add(name, value)
    headers["A"] = "6"
    headers.add("d", "7")
    assert list(headers.items()) == [("A", "6"), ("b", "2"), ("c", "4"), ("d", "7")]


def test_deleting_a_header_deletes_all_of_its_name(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers.add("a", "1")
    headers.add("b", "2")
    headers.add("A", "3")
    del headers["a"]
    assert list(headers.items()) == [("b", "2")]
    with pytest.raises(KeyError, match="a"):
        del headers["a"]
    with pytest.raises(KeyError, match="a"):
        headers["a"]


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\n", "\ra", "a\0b", "a\r\n b"])
def test_a_header_cannot_be_injected_by_a_value(request_: HttpRequest, value: str) -> None:
    headers = request_.output_headers
    with pytest.raises(ValueError, match="no header"):
        headers["A"] = value
    with pytest.raises(ValueError, match="no header"):
        headers.add("A", value)
    assert not headers


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\0", " a", "a\t", "é", "(a)"])
def test_the_name_of_a_header_is_a_token(request_: HttpRequest, name: str) -> None:
    headers = request_.output_headers
    with pytest.raises(ValueError, match="no header"):
        headers[name] = "1"
    with pytest.raises(ValueError, match="no header"):
        headers.add(name, "1")
    assert name not in headers
    assert headers.get(name) is None
    assert headers.getall(name) == []


def test_headers_are_latin_1(request_: HttpRequest) -> None:
    headers = request_.output_headers
    headers["A"] = "é"
    assert headers["A"] == "é"
    with pytest.raises(ValueError, match="latin-1"):
        headers["A"] = "€"
    with pytest.raises(TypeError, match="value must be a str, not int"):
        headers["A"] = 1  # type: ignore[assignment]
    with pytest.raises(TypeError, match="name must be a str, not bytes"):
        headers[b"A"] = "1"  # type: ignore[index]


def test_the_buffers_of_a_request_are_its_own(request_: HttpRequest) -> None:
    request_.output_buffer.add(b"body")
    assert request_.output_buffer is request_.output_buffer
    request_.output_buffer.close()  # they end with it, as a bufferevent's do
    assert bytes(request_.output_buffer) == b"body"
    request_.input_buffer.add(b"answer")
    assert request_.read() == b"answer"
    assert request_.read() == b""


def test_a_buffer_may_outlive_the_request_object() -> None:
    buffer = HttpRequest(print).output_buffer
    buffer.add(b"body")
    assert bytes(buffer) == b"body"
