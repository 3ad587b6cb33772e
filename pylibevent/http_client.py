"""event2/http.h, the client's side: HttpConnection makes requests, one after the other."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _callbacks as cb
from ._args import Address, Seconds, function, integer, only, seconds, size
from ._handle import Handle
from ._libevent import ffi, lib
from .constants import (
    EVHTTP_CON_READ_ON_WRITE_ERROR,
    EVHTTP_CON_REUSE_CONNECTED_ADDR,
    EVHTTP_REQ_CONNECT,
    EVHTTP_REQ_GET,
    EVHTTP_REQ_PATCH,
    EVHTTP_REQ_POST,
    EVHTTP_REQ_PUT,
    EVREQ_HTTP_REQUEST_CANCEL,
    HttpConnectionFlags,
    HttpError,
    HttpMethod,
)
from .dns import AddrInfoResult, DnsBase, DnsRequest, _encoded
from .errors import CLOSED, INUSE, LibeventError, fail, os_error
from .event import EventBase
from .http import HttpRequest, HttpServerRequest
from .uri import HttpUri

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._args import Args, Variadic
    from ._libevent import CData
    from .bufferevent_ssl import TLSConnection, TLSContext


class _Default(int):
    """A limit that nobody has set."""


_MAX_HEADERS = 64 << 10
_MAX_BODY = _Default(64 << 20)
_CONNECT_TIMEOUT = 45.0  # evhttp's
_FAILURES = (OSError, LibeventError, MemoryError, ValueError)  # of connecting
_FLAGS = EVHTTP_CON_REUSE_CONNECTED_ADDR | EVHTTP_CON_READ_ON_WRITE_ERROR
_WITH_BODY = EVHTTP_REQ_POST | EVHTTP_REQ_PUT | EVHTTP_REQ_PATCH
_METHODS = {int(method): method for method in HttpMethod}
_URI = re.compile(r"[\x21-\x7e\x80-\xff]+")
_ERRORS = {int(error): error for error in HttpError}


def _nothing(*_args: Any) -> None:
    """The callback of what is over."""


class HttpConnection(Handle):
    """Makes requests of one server, one after the other, and connects when there is one to be made
    and as often as that takes (struct evhttp_connection).

    A request that comes to nothing has its callback called with `response_code` 0, and its `error`
    and `exception` tell why; the next one gets a new connection. While it is open its base keeps it
    alive; `close()` drops what waits, and nobody is called back.

    Its methods belong to the loop's thread. After a fork the child connects anew: see
    `EventBase.reinit`.
    """

    __slots__ = (
        "_address", "_args", "_base", "_closecb", "_dns", "_exception", "_family", "_flags",
        "_found", "_host", "_initial_retry", "_left", "_local", "_lookup",
        "_max_body_size", "_max_headers_size", "_port", "_requests", "_retries",
        "_server_hostname", "_timeout", "_tls", "_tls_context", "_token",
    )  # fmt: skip

    def __init__(
        self,
        base: EventBase,
        host: str,
        port: int,
        *,
        dns: DnsBase | None = None,
        tls: TLSContext | None = None,
        server_hostname: str | None = None,
        family: int = socket.AF_UNSPEC,
        timeout: Seconds | None = None,
        retries: int = 0,
        initial_retry: Seconds = 2.0,
        local_address: str | None = None,
        local_port: int = 0,
        max_headers_size: int | None = _MAX_HEADERS,
        max_body_size: int | None = _MAX_BODY,
        flags: int = 0,
    ) -> None:
        """Wraps evhttp_connection_base_new, and with `tls`, a client's context,
        evhttp_connection_base_bufferevent_new: then the certificate has to be for `host`, or for
        `server_hostname`. With `dns`, a DnsBase of the same base, a name is looked up without
        blocking; without one the loop stands still for as long as that takes. The rest is set by
        the properties of that name."""
        self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        if dns is not None and not isinstance(dns, DnsBase):
            raise TypeError(f"dns must be a DnsBase, not {type(dns).__name__}")
        if dns is not None and dns.base is not base:
            raise ValueError("dns is of another EventBase")
        if not isinstance(host, str):
            raise TypeError(f"host must be a str, not {type(host).__name__}")
        self._base = base
        self._host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        self._port = integer(port, "port")
        if not 0 < self._port <= 0xFFFF:
            raise ValueError(f"port must be from 1 to 65535, not {port!r}")
        if not _is_address(self._host):
            _encoded(self._host, "host")
        self._dns = dns
        self._tls_context = tls
        self._server_hostname = self._host if server_hostname is None else server_hostname
        self._tls: TLSConnection | None = None
        self._address: Address = None
        self._left: list[str] = []
        self._found: list[str] = []
        self._lookup: DnsRequest | None = None
        self._exception: Exception | None = None
        self._requests: set[int] = set()
        self._closecb: Callable[..., object] = _nothing
        self._args: tuple[Any, ...] = ()
        self._family = self._flags = 0
        self._local: tuple[str | None, int] = (None, 0)
        self._token = cb.next_token()
        if tls is not None:
            self._new_tls(tls)  # which checks them
        self._make("evhttp_connection_base_new", lib.pyle_client_new, base._ptr, self._token)
        self._check(lib.pyle_client_start(self._ptr), "evhttp_connection_base_new")
        self.family = family
        self.timeout = timeout
        self.retries = retries
        self.initial_retry = initial_retry
        self.local_address = local_address
        self.local_port = local_port
        self.max_headers_size = max_headers_size
        self.max_body_size = max_body_size
        self.flags = flags
        base._table[self._token] = self

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct evhttp_connection *, for ffi/lib and other C code; it is another one for each
        connection made, and ClosedError while there is none."""
        return lib.pyle_client_ptr(self._ptr) or fail(CLOSED, "evhttp_connection")

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return bool(lib.pyle_client_closed(self._ptr))

    @property
    def base(self) -> EventBase:
        """The base it belongs to (evhttp_connection_get_base)."""
        return self._base

    @property
    def peer(self) -> tuple[str, int]:
        """The host, as it was given, and the port (evhttp_connection_get_peer)."""
        return self._host, self._port

    @property
    def address(self) -> Address:
        """What it connected to last, as the socket module has it, or None
        (evhttp_connection_get_addr)."""
        return self._address

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return bool(lib.pyle_client_connected(self._ptr))

    @property
    def tls(self) -> TLSConnection | None:
        """What the TLS handshake has come to, as `BufferEvent.tls`; None without a connection
        (bufferevent_openssl_get_ssl)."""
        tls = self._tls
        return tls if tls is not None and self.connected and tls._connected else None

    def close(self) -> None:
        """Closes it (evhttp_connection_free). Requests that wait are dropped, and no callback of
        theirs or its own is called any more. May be called twice, and in each callback."""
        rc = lib.pyle_client_close(self._ptr, 0)
        if lib.pyle_client_closed(self._ptr):
            self._base._table.pop(self._token, None)
            self._forget()
        self._check(rc, "evhttp_connection_free")

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_client_close(self._ptr, 1)
        self._forget()

    def _after_fork(self) -> None:
        lib.pyle_client_after_fork(self._ptr)

    def _forget(self) -> None:
        self._end_lookup()
        self._closecb = _nothing
        self._args = ()
        while self._requests:
            request = self._base._table.pop(next(iter(self._requests)), None)
            if request is not None:
                request._drop(EVREQ_HTTP_REQUEST_CANCEL)
            else:
                self._requests.pop()

    def free_on_completion(self) -> None:
        """Closes it when the callback of the last request that waits is over
        (evhttp_connection_free_on_completion)."""
        name = "evhttp_connection_free_on_completion"
        self._set(lib.PYLE_CLIENT_FREE_WHEN_DONE, name, 1)

    def set_closecb(
        self,
        callback: Callable[[HttpConnection, Unpack[Args]], object] | Variadic | None,
        *args: Unpack[Args],
    ) -> None:
        """callback(connection, *args) is called when a connection that was there has been closed,
        by the server or since it is of no more use; not by `close()`. The next request makes
        another one (evhttp_connection_set_closecb)."""
        wanted = callback is not None
        self._closecb = _nothing if callback is None else function(callback)
        self._args = args
        self._set(lib.PYLE_CLIENT_WANTS_CLOSED, "evhttp_connection_set_closecb", wanted)

    # ---- settings ----

    def _set(self, what: int, name: str, number: int, seconds: float = 0) -> None:
        self._check(lib.pyle_client_set(self._ptr, what, seconds, number), name)

    @property
    def timeout(self) -> float | None:
        """How long connecting, and each wait for the peer, may take, in seconds; None: 45 for a
        look-up and for connecting, 50 for the rest (evhttp_connection_set_timeout,
        evhttp_connection_set_timeout_tv)."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: Seconds | None) -> None:
        number = seconds(value)
        if number == 0:
            raise ValueError("timeout must be more than 0, or None")
        self._set(lib.PYLE_CLIENT_TIMEOUT, "evhttp_connection_set_timeout_tv", 0, number)
        self._timeout = None if number < 0 else number

    @property
    def retries(self) -> int:
        """How often it tries again to connect; -1: for ever. A request that was sent is never sent
        again (evhttp_connection_set_retries)."""
        return self._retries

    @retries.setter
    def retries(self, value: int) -> None:
        number = integer(value, "retries")
        if number < -1:
            raise ValueError(f"retries must be -1 or more, not {value!r}")
        self._set(lib.PYLE_CLIENT_RETRIES, "evhttp_connection_set_retries", number)
        self._retries = number

    @property
    def initial_retry(self) -> float:
        """The seconds before the first retry, doubled for each further one, up to an hour
        (evhttp_connection_set_initial_retry_tv)."""
        return self._initial_retry

    @initial_retry.setter
    def initial_retry(self, value: Seconds) -> None:
        if value is None:
            raise TypeError("initial_retry must be int, float or timedelta, not None")
        number = seconds(value)
        name = "evhttp_connection_set_initial_retry_tv"
        self._set(lib.PYLE_CLIENT_INITIAL_RETRY, name, 0, number)
        self._initial_retry = number

    @property
    def local_address(self) -> str | None:
        """The address to connect from (evhttp_connection_set_local_address), None for any: from the
        next connection on."""
        return self._local[0]

    @local_address.setter
    def local_address(self, value: str | None) -> None:
        if value is not None and not isinstance(value, str):
            raise TypeError(f"local_address must be a str, not {type(value).__name__}")
        text = b"" if value is None else str(ipaddress.ip_address(value)).encode()
        name = "evhttp_connection_set_local_address"
        self._check(lib.pyle_client_set_local_address(self._ptr, text), name)
        self._local = (value, self._local[1])

    @property
    def local_port(self) -> int:
        """The port to connect from (evhttp_connection_set_local_port), 0 for any: from the next
        connection on."""
        return self._local[1]

    @local_port.setter
    def local_port(self, value: int) -> None:
        number = integer(value, "local_port")
        if not 0 <= number <= 0xFFFF:
            raise ValueError(f"local_port must be from 0 to 65535, not {value!r}")
        self._set(lib.PYLE_CLIENT_LOCAL_PORT, "evhttp_connection_set_local_port", number)
        self._local = (self._local[0], number)

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6: addresses of that kind only; AF_UNSPEC: of both
        (evhttp_connection_set_family)."""
        return self._family

    @family.setter
    def family(self, value: int) -> None:
        number = integer(value, "family")
        if number not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"unknown family: {value!r}")
        self._check(lib.pyle_client_check(self._ptr), "evhttp_connection_set_family")
        self._family = number

    @property
    def max_headers_size(self) -> int | None:
        """The bytes that the head of a reply may have (64 KiB), None: any number
        (evhttp_connection_set_max_headers_size)."""
        return self._max_headers_size

    @max_headers_size.setter
    def max_headers_size(self, value: int | None) -> None:
        number = -1 if value is None else size(value)
        name = "evhttp_connection_set_max_headers_size"
        self._set(lib.PYLE_CLIENT_MAX_HEADERS, name, number)
        self._max_headers_size = value

    @property
    def max_body_size(self) -> int | None:
        """The bytes that the body of a reply may have, None: any number
        (evhttp_connection_set_max_body_size). As long as nobody sets it: 64 MiB, but any number
        if the request has a `chunked` callback, with 64 MiB for one of the server's chunks."""
        return self._max_body_size

    @max_body_size.setter
    def max_body_size(self, value: int | None) -> None:
        number = -1 if value is None else -2 if isinstance(value, _Default) else size(value)
        self._set(lib.PYLE_CLIENT_MAX_BODY, "evhttp_connection_set_max_body_size", number)
        self._max_body_size = value

    @property
    def flags(self) -> HttpConnectionFlags:
        """EVHTTP_CON_REUSE_CONNECTED_ADDR: the name is looked up once.
        EVHTTP_CON_READ_ON_WRITE_ERROR: what the server has answered is read even if the rest of a
        request does not go out; without TLS (evhttp_connection_set_flags)."""
        return HttpConnectionFlags(self._flags)

    @flags.setter
    def flags(self, value: int) -> None:
        number = only(_FLAGS, value)
        self._set(lib.PYLE_CLIENT_FLAGS, "evhttp_connection_set_flags", number)
        self._flags = number

    # ---- requests ----

    def make_request(
        self, request: HttpRequest, method: int = EVHTTP_REQ_GET, uri: str = "/"
    ) -> None:
        """Makes a request, after those that wait (evhttp_make_request). The body is what is in its
        `output_buffer`. Headers that HTTP/1.1 asks for are added if they are not there:
        Host, and Content-Length for a body.

        ValueError for a URI with spaces or control characters, for a Content-Length that is not
        that of the body, and for a Transfer-Encoding: 2.1 sends no body in parts.
        """
        if not isinstance(request, HttpRequest):
            raise TypeError(f"request must be an HttpRequest, not {type(request).__name__}")
        if isinstance(request, HttpServerRequest):
            raise RuntimeError("evhttp_make_request: not a request of a client's")
        kind = _METHODS.get(integer(method, "method"))
        if kind is None:
            raise ValueError(f"method must be one EVHTTP_REQ_*, not {method!r}")
        if not isinstance(uri, str):
            raise TypeError(f"uri must be a str, not {type(uri).__name__}")
        if not _URI.fullmatch(uri):
            raise ValueError(f"not a URI for a request, which has to be encoded: {uri!r}")
        self._check(lib.pyle_client_check(self._ptr), "evhttp_make_request")
        if lib.pyle_request_made(request._ptr):
            raise RuntimeError("evhttp_make_request: a request is made once")
        self._complete(request, kind, uri)
        wants = (request._chunked is not None) * lib.PYLE_HTTP_WANTS_CHUNKS
        wants |= (request._header is not None) * lib.PYLE_HTTP_WANTS_HEADERS
        token, table = request._token, self._base._table
        try:
            request._connection = self
            table[token] = request
            self._requests.add(token)
            rc = lib.pyle_client_make_request(
                self._ptr, request._ptr, int(kind), uri.encode("latin-1"), wants
            )
            if rc == INUSE:
                raise RuntimeError("evhttp_make_request: not a request of a client's")
            self._check(rc, "evhttp_make_request")
        except BaseException:
            if not lib.pyle_request_made(request._ptr):
                table.pop(token, None)
                self._requests.discard(token)
                request._connection = None
            raise

    def _complete(self, request: HttpRequest, method: HttpMethod, uri: str) -> None:
        headers = request.output_headers
        if "Transfer-Encoding" in headers:
            raise ValueError("a request has no Transfer-Encoding: its body is sent as a whole")
        length = self._check(lib.pyle_request_length(request._ptr), "evhttp_make_request")
        given = headers.getall("Content-Length")
        if given and given != [str(length)]:
            raise ValueError(f"the body has {length} bytes, not Content-Length: {given}")
        if not given and (length or method & _WITH_BODY):
            headers["Content-Length"] = str(length)
        if "Host" not in headers:
            headers["Host"] = self._authority(method, uri)

    def _authority(self, method: HttpMethod, uri: str) -> str:
        if method == EVHTTP_REQ_CONNECT:
            return uri
        if "://" in uri.partition("?")[0]:  # for a proxy
            parsed = HttpUri(uri, lib.EVHTTP_URI_NONCONFORMANT)
            if parsed.host:
                return parsed.host if parsed.port is None else f"{parsed.host}:{parsed.port}"
        host = f"[{self._host.partition('%')[0]}]" if ":" in self._host else self._host
        default = 80 if self._tls_context is None else 443
        return host if self._port == default else f"{host}:{self._port}"

    # ---- connecting: what C asks for ----

    def _connect(self, again: bool) -> None:
        try:
            if not (again and self._left):
                self._end_lookup()
                self._exception = None
                self._left = self._known()
            if self._left:
                self._open()
        except _FAILURES as exception:
            self._failed(exception)

    def _known(self) -> list[str]:
        """The addresses, if there is no need to wait for them; else they are looked up."""
        if _is_address(self._host):
            return [self._host]
        if self._found and self._flags & EVHTTP_CON_REUSE_CONNECTED_ADDR:
            return list(self._found)
        args = self._host, self._port
        if self._dns is None:
            found = socket.getaddrinfo(*args, self._family, socket.SOCK_STREAM)
            return [str(info[4][0]) for info in found]
        limit = _CONNECT_TIMEOUT if self._timeout is None else self._timeout
        self._lookup = self._dns.getaddrinfo(
            *args, self._looked_up, family=self._family, type=socket.SOCK_STREAM, timeout=limit
        )
        return []

    def _looked_up(self, result: AddrInfoResult) -> None:
        self._lookup = None
        try:
            if result.error is not None:
                raise result.error
            self._left = [info[4][0] for info in result.infos]
            self._open()
        except _FAILURES as exception:
            self._failed(exception)
        except BaseException:
            lib.pyle_client_again(self._ptr)
            raise

    def _new_tls(self, context: TLSContext) -> TLSConnection:
        from .bufferevent_ssl import connection

        return connection(self._base._ptr, self._token, context, False, self._server_hostname, None)

    def _open(self) -> None:
        address = self._left.pop(0)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if self._family not in (socket.AF_UNSPEC, family):
            raise OSError(f"{address} is not of the family asked for")
        tls = ffi.NULL
        if self._tls_context is not None:
            self._tls = self._new_tls(self._tls_context)
            tls = self._tls._ptr
        self._address = (address, self._port)
        self._found = [address]
        more = len(self._left)
        rc = lib.pyle_client_open(self._ptr, address.encode(), self._port, tls, more)
        self._check(rc, "evhttp_make_request")

    def _failed(self, exception: Exception) -> None:
        self._exception = exception
        self._left = []
        lib.pyle_client_failed(self._ptr)

    def _end_lookup(self) -> None:
        lookup, self._lookup = self._lookup, None
        if lookup is not None:
            lookup._forget()

    def _why(self, system_error: int) -> Exception | None:
        """Why the last connection came to nothing."""
        if system_error < 0:
            return self._exception
        failure = None if self._tls is None else self._tls._failure()
        if failure is None and system_error:
            failure = os_error(system_error, "evhttp_make_request")
        return failure

    def _describe(self) -> str:
        return f"to {self._host}:{self._port}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
