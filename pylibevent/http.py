"""event2/http.h: HttpServer, its requests and their headers.

Text of HTTP's is str with a character for each byte (latin-1).
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, cast

from . import _callbacks as cb
from ._args import function
from ._handle import Handle
from ._libevent import ffi, lib
from .buffer import EvBuffer
from .constants import (
    EVHTTP_REQ_CONNECT,
    EVHTTP_URI_NONCONFORMANT,
    EVREQ_HTTP_REQUEST_CANCEL,
    HttpError,
    HttpMethod,
)
from .errors import CLOSED, NONE, RANGE, fail
from .uri import HttpUri, _new_text

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._args import Args, Variadic
    from ._libevent import CData
    from .event import EventBase
    from .http_client import HttpConnection

_ERRORS = {int(error): error for error in HttpError}
_METHODS = {int(method): method for method in HttpMethod}


# ---- headers ----


class _Keys(KeysView[str]):
    def __init__(self, headers: HttpHeaders) -> None:
        super().__init__(headers)
        self._pairs = headers._pairs

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._pairs()])


class _Values(ValuesView[str]):
    def __init__(self, headers: HttpHeaders) -> None:
        super().__init__(headers)
        self._pairs = headers._pairs

    def __iter__(self) -> Iterator[str]:
        return iter([value for _, value in self._pairs()])

    def __contains__(self, value: object) -> bool:
        return any(value == one for _, one in self._pairs())


class _Items(ItemsView[str, str]):
    def __init__(self, headers: HttpHeaders) -> None:
        super().__init__(headers)
        self._pairs = headers._pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs())

    def __contains__(self, item: object) -> bool:
        return item in self._pairs()


class HttpHeaders(MutableMapping[str, str]):
    """The headers of a request or a reply (struct evkeyvalq): a mapping in the order in which they
    came, in which a name may stand more than once. The case of names does not matter.

    `headers[name]` is the first one; setting it leaves one of that name, deleting none. `add`
    adds one more, `getall` has all of a name. What goes through them all (`len`, `items` and the
    rest) has the repeats, too.

    CR, LF and NUL in a value, and a name that is no token, are a ValueError.
    """

    __slots__ = ("_input", "_request")

    def __init__(self, *_: object) -> None:
        raise TypeError("those of a request are its .headers and .output_headers")

    @classmethod
    def _of(cls, request: HttpRequest, input: int) -> HttpHeaders:
        self = cls.__new__(cls)
        self._request = request
        self._input = input
        return self

    def _check(self, rc: int, function: str) -> int:
        return self._request._check(rc, function)

    def _pairs(self) -> list[tuple[str, str]]:
        text = _new_text()
        rc = lib.pyle_headers_all(self._request._ptr, self._input, text)
        self._check(rc, "evhttp_request_get_input_headers")
        parts = iter(str(ffi.buffer(text.bytes, text.n), "latin-1").split("\0"))
        return list(zip(parts, parts, strict=False))

    def __getitem__(self, name: str) -> str:
        key, text = _name(name), _new_text()
        rc = lib.pyle_headers_get(self._request._ptr, self._input, key, len(key), text)
        if rc == NONE:
            raise KeyError(name)
        self._check(rc, "evhttp_find_header")
        return str(ffi.buffer(text.bytes, text.n), "latin-1")

    def __setitem__(self, name: str, value: str) -> None:
        self._put(lib.pyle_headers_set, name, value)

    def add(self, name: str, value: str) -> None:
        """Adds one at the end, whatever there is of that name (evhttp_add_header)."""
        self._put(lib.pyle_headers_add, name, value)

    def _put(self, how: Callable[..., int], name: str, value: str) -> None:
        key, string = _name(name), _latin(value, "value")
        rc = how(self._request._ptr, self._input, key, len(key), string, len(string))
        if rc == RANGE:
            raise ValueError(f"evhttp_add_header: no header: {name!r}: {value!r}")
        self._check(rc, "evhttp_add_header")

    def __delitem__(self, name: str) -> None:
        key = _name(name)
        rc = lib.pyle_headers_remove(self._request._ptr, self._input, key, len(key))
        if not self._check(rc, "evhttp_remove_header"):
            raise KeyError(name)

    def getall(self, name: str) -> list[str]:
        """The values of all of that name."""
        wanted = str(_name(name), "latin-1").lower()
        return [value for one, value in self._pairs() if one.lower() == wanted]

    def clear(self) -> None:
        """Removes them all (evhttp_clear_headers)."""
        rc = lib.pyle_headers_clear(self._request._ptr, self._input)
        self._check(rc, "evhttp_clear_headers")

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self[name]
        except (KeyError, UnicodeEncodeError):
            return False
        return True

    def __len__(self) -> int:
        rc = lib.pyle_headers_count(self._request._ptr, self._input)
        return self._check(rc, "evhttp_request_get_input_headers")

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._pairs()])

    def keys(self) -> KeysView[str]:
        """The names, in order; one that stands there twice is there twice."""
        return _Keys(self)

    def values(self) -> ValuesView[str]:
        """The values, in order."""
        return _Values(self)

    def items(self) -> ItemsView[str, str]:
        """All (name, value), in order."""
        return _Items(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._request.closed else self._pairs()}>"


def _latin(text: str, name: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    return str.encode(text, "latin-1")


def _name(text: str) -> bytes:
    return _latin(text, "name")


# ---- requests ----


def optional(value: Any, name: str) -> Any:
    return None if value is None else function(value, name)


def _nothing(*_args: Any) -> None:
    """The callback of what is over."""


class HttpRequest(Handle):
    """A request and its reply (struct evhttp_request): made by a client, given to a server's
    handler as an HttpServerRequest."""

    __slots__ = (
        "_args",
        "_callback",
        "_chunked",
        "_connection",
        "_error",
        "_exception",
        "_header",
        "_headers",
        "_input",
        "_on_error",
        "_output",
        "_output_headers",
        "_token",
    )

    _args: tuple[Any, ...]
    _callback: Callable[..., object]
    _headers: HttpHeaders | None
    _input: EvBuffer | None
    _output: EvBuffer | None
    _output_headers: HttpHeaders | None
    _token: int

    def __init__(
        self,
        callback: Callable[[Self, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        chunked: Callable[[Self, Unpack[Args]], object] | Variadic | None = None,
        header: Callable[[Self, Unpack[Args]], object] | Variadic | None = None,
        error: Callable[[Self, HttpError, Unpack[Args]], object] | Variadic | None = None,
    ) -> None:
        """Wraps evhttp_request_new: a request that `HttpConnection.make_request` will make.
        callback(request, *args) is called when its reply is there, or will not come: then
        `response_code` is 0.

        header(request, *args) is called when the headers are there; if it answers False, or a
        negative number, the reply is given up, with EVREQ_HTTP_EOF
        (evhttp_request_set_header_cb). chunked(request, *args) gets the body in parts, each in
        an `input_buffer` of its own, which is empty at the end (evhttp_request_set_chunked_cb).
        error(request, error, *args) is called first if it fails, and alone after `cancel`
        (evhttp_request_set_error_cb)."""
        self._first_init()
        self._start(function(callback), args)
        self._chunked: Callable[..., object] | None = optional(chunked, "chunked")
        self._header: Callable[..., object] | None = optional(header, "header")
        self._on_error: Callable[..., object] | None = optional(error, "error")
        self._connection: HttpConnection | None = None
        self._error: HttpError | None = None
        self._exception: Exception | None = None
        self._make("evhttp_request_new", lib.pyle_request_new, self._token)

    def _start(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args
        self._headers = self._output_headers = None
        self._input = self._output = None
        self._token = cb.next_token()

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct evhttp_request *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_request_ptr(self._ptr) or fail(CLOSED, "evhttp_request")

    @property
    def closed(self) -> bool:
        """Whether it is over, and nothing is left of it: see `own`."""
        return not lib.pyle_request_ptr(self._ptr)

    def close(self) -> None:
        """The same as `cancel()`."""
        self.cancel()

    def cancel(self) -> None:
        """Gives it up: its `error` callback is called, with EVREQ_HTTP_REQUEST_CANCEL, and no
        other; the connection, if it is the one under way, is closed (evhttp_cancel_request).
        Nothing happens if it has not been made, or is over."""
        self._check(lib.pyle_request_cancel(self._ptr), "evhttp_cancel_request")

    def own(self) -> None:
        """Has its headers, its URI and what it has in its buffers stay, also when it is over, as
        long as this object does (evhttp_request_own). Without that they are freed then, and all of
        its methods raise ClosedError."""
        self._check(lib.pyle_request_own(self._ptr), "evhttp_request_own")

    # ---- a client's ----

    @property
    def connection(self) -> HttpConnection | None:
        """The one that makes it, or None (evhttp_request_get_connection)."""
        return self._connection

    @property
    def base(self) -> EventBase | None:
        """The base whose loop calls back, once it is made."""
        return None if self._connection is None else self._connection.base

    @property
    def done(self) -> bool:
        """Whether it has been made, and is over."""
        return bool(lib.pyle_request_made(self._ptr)) and (
            self._connection is None or self._token not in self._connection.base._table
        )

    @property
    def error(self) -> HttpError | None:
        """Why it came to nothing (EVREQ_HTTP_*), None: it has not, so far. What kept it from
        connecting is EVREQ_HTTP_TIMEOUT or EVREQ_HTTP_EOF, and in `exception`."""
        return self._error

    @property
    def exception(self) -> Exception | None:
        """The OSError, socket.gaierror or ssl.SSLError behind that, if there is one."""
        return self._exception

    def _end(self, error: int, system_error: int) -> None:
        self._input = None
        if error >= 0 and self._connection is not None:
            self._error = _ERRORS[error]
            self._exception = self._connection._why(system_error)

    def _tell(self) -> None:
        error = self._error
        try:
            if error is not None and self._on_error is not None:
                self._on_error(self, error, *self._args)
        finally:
            if error != EVREQ_HTTP_REQUEST_CANCEL:
                self._callback(self, *self._args)

    def _drop(self, error: HttpError | None = None) -> None:
        """No callback any more."""
        if error is not None and self._error is None:
            self._error = error
        self._callback = _nothing
        self._chunked = self._header = self._on_error = None
        self._args = ()
        if self._connection is not None:
            self._connection._ended(self._token)

    def _close_with_base(self, _token: int) -> None:
        self._drop(EVREQ_HTTP_REQUEST_CANCEL)

    # ---- what it is ----

    def _text(self, what: int, function: str) -> str | None:
        text = _new_text()
        rc = lib.pyle_request_text(self._ptr, what, text)
        if rc == NONE:
            return None
        self._check(rc, function)
        return str(ffi.buffer(text.bytes, text.n), "latin-1")

    def _number(self, what: int, function: str) -> int:
        return self._check(lib.pyle_request_number(self._ptr, what), function)

    @property
    def method(self) -> HttpMethod:
        """What it asks for (evhttp_request_get_command)."""
        number = self._number(lib.PYLE_REQUEST_TYPE, "evhttp_request_get_command")
        return _METHODS.get(number) or HttpMethod(number)

    @property
    def command(self) -> str:
        """The same as HTTP has it: "GET", for one (evhttp_request_get_command)."""
        return str(self.method.name or "").removeprefix("EVHTTP_REQ_")

    @property
    def uri(self) -> str:
        """As it stands in the request, encoded (evhttp_request_get_uri)."""
        return self._text(lib.PYLE_REQUEST_URI, "evhttp_request_get_uri") or ""

    @property
    def parsed_uri(self) -> HttpUri:
        """A copy of it, in parts (evhttp_request_get_evhttp_uri)."""
        uri = self.uri
        if self.method == EVHTTP_REQ_CONNECT:
            uri = f"//{uri}"
        return HttpUri(uri, EVHTTP_URI_NONCONFORMANT)

    @property
    def host(self) -> str | None:
        """Of the URI, or of the Host header, without a port; None: of neither
        (evhttp_request_get_host)."""
        return self._text(lib.PYLE_REQUEST_HOST, "evhttp_request_get_host")

    @property
    def version(self) -> tuple[int, int]:
        """Of HTTP: (1, 1), for one."""
        name = "evhttp_request"
        major = self._number(lib.PYLE_REQUEST_MAJOR, name)
        return major, self._number(lib.PYLE_REQUEST_MINOR, name)

    @property
    def response_code(self) -> int:
        """Of the reply; 0: there is none (evhttp_request_get_response_code)."""
        return self._number(lib.PYLE_REQUEST_CODE, "evhttp_request_get_response_code")

    @property
    def response_code_line(self) -> str:
        """The reason that came with it (evhttp_request_get_response_code_line)."""
        function = "evhttp_request_get_response_code_line"
        return self._text(lib.PYLE_REQUEST_REASON, function) or ""

    @property
    def headers(self) -> HttpHeaders:
        """What has come in: a server's request, a client's reply
        (evhttp_request_get_input_headers)."""
        if self._headers is None:
            self._headers = HttpHeaders._of(self, 1)
        return self._headers

    input_headers = headers

    @property
    def output_headers(self) -> HttpHeaders:
        """What is to go out (evhttp_request_get_output_headers)."""
        if self._output_headers is None:
            self._output_headers = HttpHeaders._of(self, 0)
        return self._output_headers

    @property
    def input_buffer(self) -> EvBuffer:
        """The body that has come in; it ends with the request (evhttp_request_get_input_buffer)."""
        if self._input is None:
            self._input = self._buffer(1, "evhttp_request_get_input_buffer")
        return self._input

    @property
    def output_buffer(self) -> EvBuffer:
        """The body that is to go out; it ends with the request
        (evhttp_request_get_output_buffer)."""
        if self._output is None:
            self._output = self._buffer(0, "evhttp_request_get_output_buffer")
        return self._output

    def _buffer(self, input: int, function: str) -> EvBuffer:
        self._check(lib.pyle_request_check(self._ptr), function)
        buffer = EvBuffer.__new__(EvBuffer)
        buffer._make(function, lib.pyle_request_buffer, self._ptr, input)
        buffer._start()
        return buffer

    def read(self) -> bytes:
        """Takes all that is in `input_buffer`: the body."""
        buffer = self.input_buffer
        return buffer.remove(len(buffer)) or b""

    def _describe(self) -> str:
        return f"{self.command} {self.uri}"
