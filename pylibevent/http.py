"""event2/http.h: HttpServer, its requests and their headers.

Text of HTTP's is str with a character for each byte (latin-1).
"""

from __future__ import annotations

import functools
import os
import socket
from collections import deque
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from . import _callbacks as cb
from ._args import (
    Address,
    FileDescriptor,
    Seconds,
    data,
    fileno,
    function,
    integer,
    only,
    seconds,
    size,
    sockaddr,
)
from ._handle import Handle
from ._libevent import ffi, lib
from .buffer import Bytes, EvBuffer
from .constants import (
    EV_READ,
    EV_TIMEOUT,
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_DELETE,
    EVHTTP_REQ_GET,
    EVHTTP_REQ_HEAD,
    EVHTTP_REQ_POST,
    EVHTTP_REQ_PUT,
    EVHTTP_URI_NONCONFORMANT,
    EVREQ_HTTP_REQUEST_CANCEL,
    LEV_OPT_REUSEABLE,
    LEV_OPT_REUSEABLE_PORT,
    HttpError,
    HttpMethod,
    HttpServerFlags,
)
from .errors import CLOSED, INUSE, NONE, RANGE, LibeventError, fail
from .event import EventBase
from .listener import _backlog
from .uri import HttpUri, _line, _new_text, _string

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._args import Args, Variadic
    from ._libevent import CData
    from .bufferevent import BufferEvent
    from .bufferevent_ssl import TLSConnection
    from .http_client import HttpConnection

_ERRORS = {int(error): error for error in HttpError}
_METHODS = {int(method): method for method in HttpMethod}
_REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}
_reply = lib.pyle_http_reply
_take_request = lib.pyle_request_take


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

    `headers[name]` is the first one (evhttp_find_header); setting it leaves one of that name,
    deleting none (evhttp_remove_header). `add` adds one more, `getall` has all of a name. What goes
    through them all (`len`, `items` and the rest) has the repeats, too.

    CR, LF and NUL in a value, and a name that is no token, are a ValueError.
    """

    __slots__ = ("_input", "_request")

    _input: int
    _request: HttpRequest

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

    def extend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Adds all of these (name, value) at the end, whatever there is of those names. At a
        ValueError those before are there."""
        parts = [name + "\0" + value + "\0" for name, value in pairs]
        string = "".join(parts).encode("latin-1")
        if string.count(0) != 2 * len(parts):
            raise ValueError(f"evhttp_add_header: a NUL in {parts!r}")
        rc = lib.pyle_headers_extend(self._request._ptr, self._input, string, len(string))
        if rc == RANGE:
            raise ValueError(f"evhttp_add_header: no headers: {parts!r}")
        self._check(rc, "evhttp_add_header")

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


def _optional(value: Any, name: str) -> Any:
    return None if value is None else function(value, name)


class HttpRequest(Handle):
    """A request and its reply (struct evhttp_request): made by a client, given to a server's
    handler as an HttpServerRequest."""

    __slots__ = (
        "_args",
        "_callback",
        "_chunked",
        "_connection",
        "_error",
        "_error_cb",
        "_exception",
        "_header",
        "_headers",
        "_input",
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
        self._chunked: Callable[..., object] | None = _optional(chunked, "chunked")
        self._header: Callable[..., object] | None = _optional(header, "header")
        self._error_cb: Callable[..., object] | None = _optional(error, "error")
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
        """The same as `cancel()` (evhttp_cancel_request)."""
        self.cancel()

    def cancel(self) -> None:
        """Gives it up: its `error` callback is called, with EVREQ_HTTP_REQUEST_CANCEL, and no
        other; the connection, if it is the one under way, is closed (evhttp_cancel_request).
        Nothing happens if it has not been made, or is over."""
        self._check(lib.pyle_request_cancel(self._ptr), "evhttp_cancel_request")

    def own(self) -> None:
        """Has its headers, its URI and what it has in its buffers stay, also when it is over, as
        long as this object does (evhttp_request_own). Without that they are freed then
        (evhttp_request_free), and all of its methods raise ClosedError."""
        self._check(lib.pyle_request_own(self._ptr), "evhttp_request_own")

    @property
    def owned(self) -> bool:
        """Whether `own()` was called (evhttp_request_is_owned)."""
        return bool(self._number(lib.PYLE_REQUEST_OWNED, "evhttp_request_is_owned"))

    # ---- a client's ----

    def take_over(self) -> BufferEvent:
        """In the callback: takes the connection from evhttp, after a 101 for the protocol that it
        was switched to, or after a CONNECT for what is at the other end. What the server has sent
        since is in the BufferEvent's input; the next request makes another connection
        (evhttp_connection_get_bufferevent).

        LibeventError if there is none to be taken, or it has TLS.
        """
        from .bufferevent import BufferEvent

        if self._connection is None:
            raise LibeventError("evhttp_connection_get_bufferevent: not made yet")
        bev = BufferEvent.socket(self._connection.base)
        try:
            rc = lib.pyle_client_take_over(self._ptr, bev._ptr)
            if rc == NONE:
                raise LibeventError("evhttp_connection_get_bufferevent: nothing to be taken over")
            self._check(rc, "evhttp_connection_get_bufferevent")
        except BaseException:
            bev.close()
            raise
        return bev

    @property
    def connection(self) -> HttpConnection | None:
        """The one that makes it, or None (evhttp_request_get_connection)."""
        return getattr(self, "_connection", None)

    @property
    def base(self) -> EventBase | None:
        """The base whose loop calls back, once it is made (evhttp_connection_get_base)."""
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
        connecting is EVREQ_HTTP_TIMEOUT or EVREQ_HTTP_EOF, and in `exception`
        (evhttp_request_set_error_cb)."""
        return getattr(self, "_error", None)

    @property
    def exception(self) -> Exception | None:
        """The OSError, socket.gaierror or ssl.SSLError behind that, if there is one."""
        return getattr(self, "_exception", None)

    def _end(self, error: int, system_error: int) -> None:
        self._input = None
        if error >= 0 and self._connection is not None:
            self._error = _ERRORS[error]
            self._exception = self._connection._why(system_error)

    def _drop(self, error: HttpError | None = None) -> None:
        """No callback any more."""
        if error is not None and self._error is None:
            self._error = error
        self._callback = _nothing
        self._chunked = self._header = self._error_cb = None
        self._args = ()
        if self._connection is not None:
            self._connection._requests.discard(self._token)

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
        return HttpHeaders._of(self, 1)

    input_headers = headers

    @property
    def output_headers(self) -> HttpHeaders:
        """What is to go out (evhttp_request_get_output_headers)."""
        return HttpHeaders._of(self, 0)

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
        """Takes all that is in `input_buffer`: the body (evbuffer_remove)."""
        buffer = self.input_buffer
        return buffer.remove(len(buffer)) or b""

    def _describe(self) -> str:
        return f"{self.command} {self.uri}"


class HttpServerRequest(HttpRequest):
    """A request that a handler has got, to be answered there or later: by `send_reply`, by
    `send_reply_start`, `send_reply_chunk` and `send_reply_end`, or by `send_error`.

    An object that is dropped without an answer, and a handler that raises, get the client a 500,
    or the end of the connection if the reply has begun. One that is not answered within the
    server's `timeout` gets it a 503. Once the reply is written, or the client has gone, it is over:
    all of its methods raise ClosedError. Its methods belong to the loop's thread.
    """

    __slots__ = ("_chunks", "_n_chunks", "_on_close", "_on_complete", "_on_error", "_server")

    _chunks: deque[tuple[int, Callable[..., object], tuple[Any, ...]]] | None
    _n_chunks: int
    _on_close: tuple[Callable[..., object], tuple[Any, ...]] | None
    _on_complete: tuple[Callable[..., object], tuple[Any, ...]] | None
    _on_error: tuple[Callable[..., object], tuple[Any, ...]] | None
    _server: HttpServer

    def __init__(self, *_: object) -> None:
        raise TypeError("made by an HttpServer, for its handlers")

    @property
    def base(self) -> EventBase:
        """The base whose loop it came in (evhttp_connection_get_base)."""
        return self._server._base

    @property
    def server(self) -> HttpServer:
        """The server, or the virtual host, whose handler has got it
        (evhttp_connection_get_server)."""
        return self._server

    @property
    def remote(self) -> tuple[str, int]:
        """Where it came from: address and port (evhttp_request_get_connection,
        evhttp_connection_get_peer)."""
        address = self._text(lib.PYLE_REQUEST_REMOTE, "evhttp_connection_get_peer")
        port = self._number(lib.PYLE_REQUEST_PORT, "evhttp_connection_get_peer")
        return address or "", port

    @property
    def tls(self) -> TLSConnection | None:
        """What the TLS handshake has come to, as `BufferEvent.tls`; None: no TLS
        (bufferevent_openssl_get_ssl)."""
        token = lib.pyle_http_bev(self._ptr)
        if token < 0:
            self._check(int(token), "bufferevent_openssl_get_ssl")
        bev = self.base._table.get(token)
        return None if bev is None else bev.tls

    # ---- the reply ----

    def send_reply(
        self, code: int, reason: str | None = None, body: Bytes | EvBuffer | None = None
    ) -> None:
        """Answers, with what `output_buffer` has and then the body (evhttp_send_reply). reason:
        None for the usual one. What an EvBuffer has moves.

        Without a body: HEAD, and 204 and 304, whatever there is. A Content-Length that was set has
        to be right, a Transfer-Encoding is not the handler's: ValueError.
        """
        line = _REASONS.get(code, b"") if reason is None else _latin(reason, "reason")
        memory: Any = body
        if body is None:
            memory = b""
        elif type(body) is not bytes:
            memory = self._body(body)
        rc = _reply(self._ptr, _code(code), line, len(line), memory, len(memory))
        if rc < 0:
            self._refused(rc, "evhttp_send_reply")

    def _body(self, body: Bytes | EvBuffer) -> Any:
        if not isinstance(body, EvBuffer):
            return data(body)
        if body is not self._output:
            self.output_buffer.add_buffer(body)
        return b""

    def _refused(self, rc: int, function: str) -> None:
        if rc == RANGE:
            raise ValueError(f"{function}: not a code, a reason, or a length that fits the headers")
        if rc == INUSE:
            raise RuntimeError(f"{function}: a reply has begun")
        if rc == NONE:
            raise RuntimeError(f"{function}: send_reply_start() comes first")
        self._check(rc, function)

    def send_reply_start(self, code: int, reason: str | None = None) -> None:
        """Begins a reply whose body comes in parts (evhttp_send_reply_start). An HTTP/1.1 client
        gets it chunked, unless the handler has set a Content-Length; an older one up to the end of
        the connection."""
        line = _REASONS.get(code, b"") if reason is None else _latin(reason, "reason")
        rc = lib.pyle_http_start(self._ptr, _code(code), line, len(line))
        self._refused(rc, "evhttp_send_reply_start")

    def send_reply_chunk(
        self,
        chunk: Bytes | EvBuffer,
        callback: Callable[[Self, Unpack[Args]], object] | Variadic | None = None,
        *args: Unpack[Args],
    ) -> None:
        """Sends a part of the body (evhttp_send_reply_chunk, evhttp_send_reply_chunk_with_cb):
        callback(request, *args) is called, in the loop, when it has been written, so that the next
        one may be made then."""
        if callback is not None:
            function(callback)
            if self._chunks is None:
                self._chunks = deque()
            self._n_chunks += 1
            self._chunks.append((self._n_chunks, callback, args))
            self._listen("evhttp_send_reply_chunk")
        wanted = callback is not None
        try:
            if isinstance(chunk, EvBuffer):
                rc = lib.pyle_http_chunk_buffer(self._ptr, chunk._ptr, wanted)
            else:
                memory = data(chunk)
                rc = lib.pyle_http_chunk(self._ptr, memory, len(memory), wanted)
            self._refused(rc, "evhttp_send_reply_chunk")
        except BaseException:
            if wanted and self._chunks:
                self._chunks.pop()
                self._n_chunks -= 1
            raise

    def send_reply_end(self) -> None:
        """Ends that reply (evhttp_send_reply_end). If it is shorter than its Content-Length, the
        connection ends with it."""
        self._refused(lib.pyle_http_end(self._ptr), "evhttp_send_reply_end")

    def send_error(self, code: int, reason: str | None = None) -> None:
        """Answers with a page that says so, and ends the connection (evhttp_send_error). What there
        is of headers and a body is dropped; the reason is escaped in the page."""
        line = _REASONS.get(code, b"") if reason is None else _latin(reason, "reason")
        rc = lib.pyle_http_error(self._ptr, _code(code), line, len(line))
        self._refused(rc, "evhttp_send_error")

    def cancel(self) -> None:
        """Closes the connection, without an answer (evhttp_connection_free). May be called
        twice."""
        rc = lib.pyle_http_cancel(self._ptr)
        if rc != CLOSED:
            self._check(rc, "evhttp_connection_free")

    def take_over(self) -> BufferEvent:
        """Takes the connection from evhttp, for another protocol: what the BufferEvent writes comes
        after the headers of the reply, and its input has what the client has sent since. A reply
        that has not begun is a 101, with the `output_headers`; to a CONNECT, begin one with 200.

        The request is over with that (evhttp_connection_get_bufferevent). Not with TLS
        (LibeventError).
        """
        from .bufferevent import BufferEvent

        self._check(lib.pyle_request_check(self._ptr), "evhttp_connection_get_bufferevent")
        bev = BufferEvent.socket(self.base)
        try:
            rc = lib.pyle_http_take_over(self._ptr, bev._ptr)
            if rc == NONE:
                self.send_reply_start(101)
                rc = lib.pyle_http_take_over(self._ptr, bev._ptr)
            self._refused(rc, "evhttp_connection_get_bufferevent")
            if bev.input:  # libevent tells only of what comes from now on
                self.base.once(-1, EV_TIMEOUT, _look, bev)
        except BaseException:
            bev.close()
            raise
        return bev

    # ---- what becomes of it ----

    def on_complete(
        self, callback: Callable[[Self, Unpack[Args]], object] | Variadic, *args: Unpack[Args]
    ) -> None:
        """Has callback(request, *args) called once the reply is written
        (evhttp_request_set_on_complete_cb). It may still be read there."""
        function(callback)
        self._listen("evhttp_request_set_on_complete_cb")
        self._on_complete = (callback, args)

    def on_error(
        self,
        callback: Callable[[Self, HttpError, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> None:
        """Has callback(request, error, *args) called if it comes to nothing
        (evhttp_request_set_error_cb): EVREQ_HTTP_EOF, the client has gone; EVREQ_HTTP_TIMEOUT, it
        or the handler took too long; EVREQ_HTTP_REQUEST_CANCEL, it was cancelled, or the server
        closed; EVREQ_HTTP_BUFFER_ERROR, there was no memory."""
        function(callback)
        self._listen("evhttp_request_set_error_cb")
        self._on_error = (callback, args)

    def on_close(
        self, callback: Callable[[Self, Unpack[Args]], object] | Variadic, *args: Unpack[Args]
    ) -> None:
        """Has callback(request, *args) called if the connection ends before the reply is written:
        the client has gone, as a rule (evhttp_connection_set_closecb)."""
        function(callback)
        self._listen("evhttp_connection_set_closecb")
        self._on_close = (callback, args)

    def _listen(self, function: str) -> None:
        """It has callbacks: until it is over the base keeps it."""
        table = self._server._base._table
        known = self._token in table
        table[self._token] = self
        try:
            if self._check(lib.pyle_http_tell(self._ptr), function):
                fail(CLOSED, function)
        except BaseException:
            if not known:
                table.pop(self._token, None)
            raise

    def _told(
        self, what: int, error: int, chunks: int
    ) -> list[tuple[Callable[..., object], tuple[Any, ...]]]:
        """What is to be called with this object."""
        calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        if what == lib.PYLE_HTTP_CHUNK:
            waiting = self._chunks or ()
            calls += [(function, args) for n, function, args in waiting if n <= chunks]
            while self._chunks and self._chunks[0][0] <= chunks:
                self._chunks.popleft()
            return calls
        if what == lib.PYLE_HTTP_COMPLETE:
            calls += [(function, args) for _, function, args in self._chunks or ()]
            calls += [self._on_complete] if self._on_complete else []
        else:
            if self._on_error:
                function, args = self._on_error
                calls.append((function, (HttpError(error), *args)))
            calls += [self._on_close] if self._on_close else []
        self._forget()
        return calls

    def _forget(self) -> None:
        self._on_close = self._on_complete = self._on_error = None
        self._chunks = None

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_http_untell(self._ptr)
        self._forget()


def _look(_fd: int, _what: int, bev: BufferEvent) -> None:
    if not bev.closed and bev.enabled & EV_READ and bev.input:
        bev.trigger(EV_READ)


def _code(code: int) -> int:
    return code if type(code) is int and 0 <= code <= 999 else integer(code, "code")


# ---- the server ----


class _Route:
    """A handler, under its token in the base's table."""

    __slots__ = ("_args", "_callback", "_server", "_token")

    def __init__(
        self, server: HttpServer, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self._server = server
        self._callback = callback
        self._args = args
        self._token = cb.next_token()

    def _take(self) -> HttpServerRequest:
        """The request that C is calling for."""
        request = HttpServerRequest.__new__(HttpServerRequest)
        request._server = self._server
        request._headers = request._output_headers = None
        request._input = request._output = None
        request._on_close = request._on_complete = request._on_error = request._chunks = None
        request._n_chunks = 0
        request._token = token = cb.next_token()
        request._make("evhttp_request", _take_request, token)
        return request

    def _close_with_base(self, _token: int) -> None:
        self._callback = _nothing
        self._args = ()


class HttpBoundSocket(Handle):
    """Where an HttpServer listens (struct evhttp_bound_socket). It is the server's, which closes it
    in the end."""

    __slots__ = ("_server",)

    _server: HttpServer

    def __init__(self, *_: object) -> None:
        raise TypeError("made by HttpServer.bind() and accept()")

    @classmethod
    def _new(cls, server: HttpServer) -> HttpBoundSocket:
        self = cls.__new__(cls)
        self._server = server
        self._make("evhttp_bind_socket_with_handle", lib.pyle_bound_new, server._ptr)
        return self

    @property
    def ptr(self) -> CData:
        """The struct evhttp_bound_socket *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_bound_ptr(self._ptr) or fail(CLOSED, "evhttp_bound_socket")

    @property
    def closed(self) -> bool:
        """Whether it, its server or its base was closed."""
        return not lib.pyle_bound_ptr(self._ptr)

    def close(self) -> None:
        """Listens there no more (evhttp_del_accept_socket); connections stay. May be called
        twice."""
        self._check(lib.pyle_bound_close(self._ptr), "evhttp_del_accept_socket")
        self._server._bound.pop(self, None)

    def enable(self) -> None:
        """Takes connections, as it does from the start (evhttp_bound_socket_get_listener,
        evconnlistener_enable)."""
        self._check(lib.pyle_bound_enable(self._ptr, 1), "evconnlistener_enable")

    def disable(self) -> None:
        """Lets them wait in the system's queue (evconnlistener_disable)."""
        self._check(lib.pyle_bound_enable(self._ptr, 0), "evconnlistener_disable")

    @property
    def fd(self) -> int:
        """The listening socket's descriptor (evhttp_bound_socket_get_fd)."""
        return self._check(lib.pyle_bound_fd(self._ptr), "evhttp_bound_socket_get_fd")

    @property
    def address(self) -> Address:
        """Where it listens, as the socket module has it."""
        found: list[Any] = []
        try:  # in one step of Python's: a descriptor that nobody has yet would stay open
            found.extend(map(_socket_of, map(os.dup, (self.fd,))))
            return found[0].getsockname()
        finally:
            for one in found:
                one.close()

    def _describe(self) -> str:
        return repr(self.address)


class HttpServer(Handle):
    """Answers HTTP/1.1 and HTTP/1.0 (struct evhttp), by handlers: handler(request, *args) gets an
    HttpServerRequest. The one that `set_cb` has set for the path is called, or else that of
    `set_gencb`; without one the client gets a 404.

    A request comes to its handler as a whole, with its body in memory: `max_body_size` is how much
    that may be. While it is open the base keeps it alive, and closes it in the end. Its methods
    belong to the loop's thread.
    """

    __slots__ = (
        "_base",
        "_bevcb",
        "_bound",
        "_content_type",
        "_flags",
        "_gencb",
        "_max_body_size",
        "_max_headers_size",
        "_methods",
        "_routes",
        "_timeout",
        "_token",
    )

    def __init__(
        self, base: EventBase, *, bevcb: Callable[[EventBase], BufferEvent] | None = None
    ) -> None:
        """Makes one that listens nowhere yet (evhttp_new). bevcb: as by `set_bevcb`."""
        self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self._base = base
        self._bevcb: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._bound: dict[HttpBoundSocket, None] = {}
        self._routes: dict[bytes, _Route] = {}
        self._gencb: _Route | None = None
        self._content_type: str | None = "text/html; charset=ISO-8859-1"  # evhttp's
        self._flags = HttpServerFlags(0)
        self._methods = _DEFAULT_METHODS
        self._token = cb.next_token()
        self._make("evhttp_new", lib.pyle_http_new, base._ptr, self._token)
        base._table[self._token] = self
        try:
            self._check(lib.pyle_http_open(self._ptr), "evhttp_new")
            self.max_headers_size = 65536
            self.max_body_size = 64 << 20
            self.timeout = 60
            if bevcb is not None:
                self.set_bevcb(bevcb)
        except BaseException:
            self.close()
            raise

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct evhttp *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_http_ptr(self._ptr) or fail(CLOSED, "evhttp")

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_http_ptr(self._ptr)

    @property
    def base(self) -> EventBase:
        """The base it belongs to."""
        return self._base

    def close(self) -> None:
        """Closes it, and its connections, now (evhttp_free): requests that wait are over. Its
        virtual hosts stay. May be called twice, and in its own callbacks."""
        self._check(lib.pyle_http_close(self._ptr, 0), "evhttp_free")
        table = self._base._table
        for route in (*self._routes.values(), self._gencb):
            if route is not None:
                table.pop(route._token, None)
        table.pop(self._token, None)
        self._forget()

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_http_close(self._ptr, 1)
        self._forget()

    def _forget(self) -> None:
        self._routes.clear()
        self._gencb = self._bevcb = None
        self._bound.clear()

    def _after_fork(self) -> None:
        lib.pyle_http_after_fork(self._ptr)

    def _describe(self) -> str:
        return f"at {[bound.address for bound in self._bound]}" if self._bound else "unbound"

    # ---- where it listens ----

    def bind(
        self,
        host: str | None,
        port: int,
        *,
        backlog: int = -1,
        flags: int = LEV_OPT_REUSEABLE,
    ) -> HttpBoundSocket:
        """Listens on a new socket (evhttp_bind_socket, evhttp_bind_socket_with_handle,
        evhttp_bind_listener); port 0: a free one, host None: all addresses. flags:
        LEV_OPT_REUSEABLE, LEV_OPT_REUSEABLE_PORT; backlog -1: as many as the system allows. OSError
        if the address is in use."""
        where, length = sockaddr((host, port), passive=True)
        return self._listen(where, length, -1, only(_BIND_FLAGS, flags), backlog)

    def accept(self, sock: FileDescriptor) -> HttpBoundSocket:
        """Takes connections from a socket that listens already, unix sockets among them
        (evhttp_accept_socket, evhttp_accept_socket_with_handle). It is closed with the server; a
        socket.socket is detached."""
        bound = self._listen(ffi.NULL, 0, fileno(sock), 0, 0)
        if isinstance(sock, socket.socket):
            sock.detach()
        return bound

    def _listen(
        self, where: Any, length: int, fd: int, flags: int, backlog: int
    ) -> HttpBoundSocket:
        function = "evhttp_bind_socket_with_handle" if where else "evhttp_accept_socket_with_handle"
        bound = HttpBoundSocket._new(self)
        rc = lib.pyle_bound_open(bound._ptr, where, length, fd, flags, _backlog(backlog))
        if rc == INUSE:
            raise RuntimeError(f"{function}: a virtual host has no sockets of its own")
        self._check(rc, function)
        self._bound[bound] = None
        return bound

    @property
    def bound_sockets(self) -> list[HttpBoundSocket]:
        """Where it listens (evhttp_foreach_bound_socket)."""
        return [bound for bound in self._bound if not bound.closed]

    @property
    def unanswered(self) -> int:
        """How many requests have come whose replies are not written yet. A server that ends closes
        where it listens, runs the loop until this is 0, and closes."""
        return self._check(lib.pyle_http_unanswered(self._ptr), "evhttp")

    # ---- handlers ----

    def set_cb(
        self,
        path: str,
        callback: Callable[[HttpServerRequest, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> None:
        """Has callback(request, *args) called for a path, decoded and without a query
        (evhttp_set_cb). ValueError if there is one: see `del_cb`."""
        key = _string(path, "path", "utf-8")
        route = _Route(self, function(callback), args)
        self._base._table[route._token] = route
        try:
            rc = lib.pyle_http_set_cb(self._ptr, key, route._token)
            if rc == INUSE:
                raise ValueError(f"evhttp_set_cb: there is one for {path!r}")
            self._check(rc, "evhttp_set_cb")
        except BaseException:
            self._base._table.pop(route._token, None)
            raise
        self._routes[key] = route

    def del_cb(self, path: str) -> None:
        """Takes that away (evhttp_del_cb). KeyError if there is none."""
        key = _string(path, "path", "utf-8")
        route = self._routes.get(key)
        token = 0 if route is None else route._token
        rc = lib.pyle_http_del_cb(self._ptr, key, token)
        if rc == NONE:
            raise KeyError(path)
        self._check(rc, "evhttp_del_cb")
        self._routes.pop(key, None)
        self._base._table.pop(token, None)

    def set_gencb(
        self,
        callback: Callable[[HttpServerRequest, Unpack[Args]], object] | Variadic | None,
        *args: Unpack[Args],
    ) -> None:
        """Has callback(request, *args) called for all other paths; None: nobody
        (evhttp_set_gencb)."""
        table, old = self._base._table, self._gencb
        route = None if callback is None else _Route(self, function(callback), args)
        if route is not None:
            table[route._token] = route
        try:
            rc = lib.pyle_http_set_gencb(self._ptr, 0 if route is None else route._token)
            self._check(rc, "evhttp_set_gencb")
        except BaseException:
            if route is not None:
                table.pop(route._token, None)
            raise
        self._gencb = route
        if old is not None:
            table.pop(old._token, None)

    def set_bevcb(
        self,
        callback: Callable[[EventBase, Unpack[Args]], BufferEvent] | Variadic | None,
        *args: Unpack[Args],
    ) -> None:
        """Has callback(base, *args) make the BufferEvent of each connection, without a descriptor:
        `BufferEvent.openssl_socket(base, None, context)` for TLS (evhttp_set_bevcb). None: plain
        ones, as from the start. If it raises, the connection is closed. The BufferEvent is
        evhttp's then, and closed to Python."""
        if callback is not None:
            function(callback)
        old, self._bevcb = self._bevcb, None if callback is None else (callback, args)
        try:
            self._set(lib.PYLE_HTTP_BEVCB, callback is not None, "evhttp_set_bevcb")
        except BaseException:
            self._bevcb = old
            raise

    def _give(self) -> None:
        from .bufferevent import BufferEvent

        if self._bevcb is None:
            return
        callback, args = self._bevcb
        bev = callback(self._base, *args)
        if not isinstance(bev, BufferEvent):
            raise TypeError(f"bevcb must return a BufferEvent, not {type(bev).__name__}")
        if bev.base is not self._base:
            raise ValueError("evhttp_set_bevcb: a BufferEvent of another EventBase")
        rc = lib.pyle_http_give(bev._ptr)
        if rc < 0 and not self.closed:
            raise ValueError("evhttp_set_bevcb: not a BufferEvent on a socket that is yet to come")
        if rc == 0:
            bev.close()  # nothing is left of it

    # ---- virtual hosts ----

    def add_virtual_host(self, pattern: str, vhost: HttpServer) -> None:
        """Has another server, which listens nowhere, answer for the hosts that the pattern fits:
        "*.example.org" (evhttp_add_virtual_host). Its handlers count, and its virtual hosts; limits
        and the like are those of this one."""
        if not isinstance(vhost, HttpServer):
            raise TypeError(f"vhost must be an HttpServer, not {type(vhost).__name__}")
        rc = lib.pyle_http_add_vhost(self._ptr, _string(pattern, "pattern"), vhost._ptr)
        if rc == INUSE:
            raise ValueError("evhttp_add_virtual_host: it is one already, listens, or has this one")
        self._check(rc, "evhttp_add_virtual_host")

    def remove_virtual_host(self, vhost: HttpServer) -> None:
        """Has it answer no more (evhttp_remove_virtual_host). ValueError if it does not."""
        if not isinstance(vhost, HttpServer):
            raise TypeError(f"vhost must be an HttpServer, not {type(vhost).__name__}")
        rc = lib.pyle_http_remove_vhost(self._ptr, vhost._ptr)
        if rc == NONE:
            raise ValueError("evhttp_remove_virtual_host: it is none of this one")
        self._check(rc, "evhttp_remove_virtual_host")

    def add_server_alias(self, alias: str) -> None:
        """Gives it one more name to answer for (evhttp_add_server_alias)."""
        rc = lib.pyle_http_alias(self._ptr, _string(alias, "alias"), 1)
        self._check(rc, "evhttp_add_server_alias")

    def remove_server_alias(self, alias: str) -> None:
        """Takes that away (evhttp_remove_server_alias). ValueError if it has no such name."""
        rc = lib.pyle_http_alias(self._ptr, _string(alias, "alias"), 0)
        if rc == NONE:
            raise ValueError(f"evhttp_remove_server_alias: no such name: {alias!r}")
        self._check(rc, "evhttp_remove_server_alias")

    # ---- limits ----

    def _set(self, what: int, value: int, function: str) -> None:
        self._check(lib.pyle_http_set(self._ptr, what, value), function)

    @property
    def allowed_methods(self) -> HttpMethod:
        """Requests with another one get a 501 (evhttp_set_allowed_methods)."""
        return self._methods

    @allowed_methods.setter
    def allowed_methods(self, methods: int) -> None:
        number = only(_ALL_METHODS, methods, "methods")
        self._set(lib.PYLE_HTTP_METHODS, number, "evhttp_set_allowed_methods")
        self._methods = HttpMethod(number)

    @property
    def max_headers_size(self) -> int:
        """Of the request line and the headers, in bytes; connections that come have it
        (evhttp_set_max_headers_size)."""
        return self._max_headers_size

    @max_headers_size.setter
    def max_headers_size(self, n: int) -> None:
        number = size(n)
        self._set(lib.PYLE_HTTP_MAX_HEADERS, number, "evhttp_set_max_headers_size")
        self._max_headers_size = number

    @property
    def max_body_size(self) -> int:
        """Of a request's body, in bytes: more gets a 413 (evhttp_set_max_body_size)."""
        return self._max_body_size

    @max_body_size.setter
    def max_body_size(self, n: int) -> None:
        number = size(n)
        self._set(lib.PYLE_HTTP_MAX_BODY, number, "evhttp_set_max_body_size")
        self._max_body_size = number

    @property
    def timeout(self) -> float | None:
        """Seconds in which nothing comes from a client, nothing can be written to it, or its
        request is not answered, after which its connection ends; None: none (evhttp_set_timeout,
        evhttp_set_timeout_tv)."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: Seconds | None) -> None:
        number = seconds(timeout)
        if number == 0:
            raise ValueError("timeout must be more than 0, or None")
        self._check(lib.pyle_http_set_timeout(self._ptr, number), "evhttp_set_timeout")
        self._timeout = number if number >= 0 else None

    @property
    def default_content_type(self) -> str | None:
        """The Content-Type of replies without one; None: they go without
        (evhttp_set_default_content_type)."""
        return self._content_type

    @default_content_type.setter
    def default_content_type(self, content_type: str | None) -> None:
        line = ffi.NULL if content_type is None else _line(content_type, "content_type")
        rc = lib.pyle_http_set_content_type(self._ptr, line)
        self._check(rc, "evhttp_set_default_content_type")
        self._content_type = content_type

    @property
    def flags(self) -> HttpServerFlags:
        """EVHTTP_SERVER_LINGERING_CLOSE: what is too long is read to its end before the 413, so
        that the client sees that (evhttp_set_flags)."""
        return self._flags

    @flags.setter
    def flags(self, flags: int) -> None:
        number = only(lib.EVHTTP_SERVER_LINGERING_CLOSE, flags)
        self._set(lib.PYLE_HTTP_FLAGS, number, "evhttp_set_flags")
        self._flags = HttpServerFlags(number)


_ALL_METHODS = sum(HttpMethod)
_DEFAULT_METHODS = (
    EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE
)
_BIND_FLAGS = LEV_OPT_REUSEABLE | LEV_OPT_REUSEABLE_PORT
_socket_of = functools.partial(socket.SocketType, -1, -1, -1)


def _nothing(*_args: Any) -> None:
    """The handler of a server whose base is closed."""
