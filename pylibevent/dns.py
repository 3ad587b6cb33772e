"""event2/dns.h: DnsBase looks names up without blocking, DnsServerPort answers such questions."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _callbacks as cb
from ._args import Address, FileDescriptor, Seconds, fileno, function, integer, only, seconds
from ._handle import Handle
from ._libevent import ffi, lib
from .constants import (
    DNS_ERR_CANCEL,
    DNS_ERR_NODATA,
    DNS_ERR_NONE,
    DNS_ERR_NOTEXIST,
    DNS_ERR_SHUTDOWN,
    DNS_ERR_TIMEOUT,
    DNS_OPTIONS_ALL,
    DNS_QUERY_NO_SEARCH,
    EVDNS_ANSWER_SECTION,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVDNS_BASE_INITIALIZE_NAMESERVERS,
    EVDNS_BASE_NAMESERVERS_NO_DEFAULT,
    EVDNS_CLASS_INET,
    EVDNS_TYPE_A,
    EVDNS_TYPE_AAAA,
    EVDNS_TYPE_CNAME,
    EVDNS_TYPE_PTR,
    DnsBaseFlags,
    DnsErrorCode,
    DnsOptions,
    DnsSection,
    DnsType,
)
from .errors import CLOSED, NONE, RANGE, SMALL, fail
from .event import EventBase

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._args import Args, Variadic
    from ._libevent import CData

    AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Address]

_TIMEOUT = 30.0
_SKEW = 3.0  # how long an answer waits for that of the other family, as in evdns
_MAX_NAME = 253

_EAI = {
    DNS_ERR_NOTEXIST: socket.EAI_NONAME,
    DNS_ERR_NODATA: getattr(socket, "EAI_NODATA", socket.EAI_NONAME),
    DNS_ERR_TIMEOUT: socket.EAI_AGAIN,
}


class DnsError(socket.gaierror):
    """A look-up failed: errno is an EAI_* of the socket module, `code` evdns's DNS_ERR_*, and
    the text its own (evdns_err_to_string)."""

    def __init__(self, code: int) -> None:
        text = ffi.string(lib.evdns_err_to_string(code))
        super().__init__(_EAI.get(DnsErrorCode(code), socket.EAI_FAIL), str(text, "ascii"))
        self.code: DnsErrorCode = DnsErrorCode(code)


@dataclass(frozen=True)
class DnsResult:
    """What a look-up has found, or why it has found nothing: then `error` is set."""

    addresses: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ttl: int = 0
    error: DnsError | None = None


@dataclass(frozen=True)
class AddrInfoResult:
    """What getaddrinfo has found, as socket.getaddrinfo has it, or why it has found nothing."""

    infos: list[AddressInfo] = field(default_factory=list)
    error: socket.gaierror | None = None


# ---- names ----


def _encoded(name: str, what: str = "name") -> bytes:
    """A host name for C: what evdns would cut off, or write past the end of a packet, is refused.
    A final dot is kept."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    try:
        data = name.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        data = name.encode("idna")
    labels = data[:-1].split(b".") if data.endswith(b".") else data.split(b".")
    if len(data) > _MAX_NAME + data.endswith(b".") or b"\0" in data:
        raise ValueError(f"not a {what}: {name!r}")
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"not a {what}, each label of which has 1 to 63 bytes: {name!r}")
    return data


def _decoded(name: bytes) -> str:
    return name.decode("ascii", "surrogateescape")


def _numbers(address: Any, port: int) -> tuple[str, int]:
    """ip and port of ("ip", port), "ip", "ip:port" or "[ip]:port"."""
    if isinstance(address, tuple):
        if len(address) != 2 or not isinstance(address[0], str):
            raise TypeError(f"address must be (ip, port), not {address!r}")
        host, port = address
    elif isinstance(address, str):
        host = address
        found = _WITH_PORT.fullmatch(address)
        if found:
            host, port = found[1] or found[2], int(found[3])
    else:
        raise TypeError(f"address must be a str or (ip, port), not {type(address).__name__}")
    number = integer(port, "port")
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"port must be from 0 to 65535, not {port!r}")
    ipaddress.ip_address(host)
    return host, number


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


_WITH_PORT = re.compile(r"(?:\[([^]]*)\]|([^:]*)):(\d{1,5})", re.ASCII)


def _sockaddr(ip: str, port: int) -> tuple[Any, int]:
    text, _, scope = ip.partition("%")
    zone = 0 if not scope else int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    out = ffi.new("char[128]")
    return out, lib.pyle_sockaddr_inet(out, _family(ip), text.encode(), port, 0, zone)


def _family(ip: str) -> int:
    return int(socket.AF_INET6 if ":" in ip else socket.AF_INET)


# ---- looking up ----


class DnsRequest(Handle):
    """A look-up under way. Its callback is called once, in the loop: with what was found, or with
    an error, which after `cancel()` is DNS_ERR_CANCEL. Until then the base keeps it alive."""

    __slots__ = ("_args", "_base", "_callback", "_dns", "_token", "_what")

    _args: tuple[Any, ...]
    _base: EventBase
    _callback: Callable[..., object]
    _dns: DnsBase
    _token: int
    _what: str

    def __init__(self, *_: object) -> None:
        raise TypeError("made by the methods of DnsBase")

    @classmethod
    def _new(
        cls,
        dns: DnsBase,
        what: str,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> Self:
        self = cls.__new__(cls)
        self._base = dns._base
        self._dns = dns
        self._what = what
        self._callback = callback
        self._args = args
        self._token = cb.next_token()
        try:
            self._make("evdns_base_resolve", lib.pyle_lookup_new, dns._ptr, self._token)
        except MemoryError:
            self._check(lib.pyle_dns_count(dns._ptr), "evdns_base_resolve")  # or was it closed?
            raise
        self._base._table[self._token] = self
        dns._requests.add(self._token)
        return self

    @property
    def base(self) -> EventBase:
        """The base whose loop calls back."""
        return self._base

    @property
    def done(self) -> bool:
        """Whether the callback has been called, and is over, or never will be."""
        return self._token not in self._base._table

    @property
    def closed(self) -> bool:
        """The same: whether it is done."""
        return self.done

    def cancel(self) -> None:
        """Ends it: the callback is called in the loop, with DNS_ERR_CANCEL (evdns_cancel_request).
        Nothing happens if that has been called already, or an answer is on its way."""
        self._end(DNS_ERR_CANCEL)

    def close(self) -> None:
        """The same as `cancel()` (evdns_cancel_request)."""
        self.cancel()

    def _end(self, code: int) -> None:
        if not self.done:
            self._check(lib.pyle_lookup_end(self._ptr, code), "evdns_cancel_request")

    def _start(self, kind: int, data: bytes, flags: int) -> None:
        rc = lib.pyle_lookup_start(self._ptr, kind, data, len(data), flags)
        self._check(rc, "evdns_base_resolve")

    def _wait(self, limit: float) -> None:
        self._check(lib.pyle_lookup_wait(self._ptr, limit), "evdns_base_resolve")

    def _result(self, error: int, kind: int, count: int, ttl: int, data: bytes) -> Any:
        """What the callback gets; asked for again if that is interrupted."""
        if error != DNS_ERR_NONE:
            return DnsResult(error=DnsError(error))
        if kind == lib.DNS_PTR:
            return DnsResult(names=[_decoded(data)], ttl=ttl)
        family = socket.AF_INET if kind == lib.DNS_IPv4_A else socket.AF_INET6
        size = len(data) // max(count, 1)
        parts = (data[i * size : (i + 1) * size] for i in range(count))
        return DnsResult([socket.inet_ntop(family, part) for part in parts], ttl=ttl)

    def _forget(self) -> None:
        """No callback any more."""
        lib.pyle_lookup_forget(self._ptr)
        self._base._table.pop(self._token, None)
        self._drop()

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_lookup_forget(self._ptr)
        self._drop()

    def _drop(self) -> None:
        self._dns._requests.discard(self._token)
        self._callback = _nothing
        self._args = ()

    def _describe(self) -> str:
        return f"for {self._what!r}"


class _AddrInfo(DnsRequest):
    """getaddrinfo: a time limit, and a look-up for each family."""

    __slots__ = ("_answers", "_hints", "_parts", "_port", "_ready")

    def _prepare(self, port: str | int | None, hints: tuple[int, int, int, int]) -> None:
        self._port = port
        self._hints = hints
        self._ready: AddrInfoResult | None = None
        self._answers: dict[int, DnsResult] = {}
        self._parts: list[_Part] = []

    def _ask(self, name: bytes, flags: int, kinds: tuple[int, ...]) -> None:
        for kind in kinds:
            part = _Part._new(self._dns, self._what, _nothing, (self, kind))
            self._parts.append(part)
            part._start(kind, name, flags)

    def _answered(self, kind: int, result: DnsResult) -> None:
        self._answers[kind] = result
        if len(self._answers) == len(self._parts):
            self._end(DNS_ERR_NONE)
        elif result.error is None:
            self._wait(_SKEW)

    def _result(self, error: int, kind: int, count: int, ttl: int, data: bytes) -> Any:
        if self._ready is not None:
            return self._ready
        answers = [self._answers[kind] for kind in sorted(self._answers)]
        found = [address for answer in answers for address in answer.addresses]
        if found and error not in (DNS_ERR_CANCEL, DNS_ERR_SHUTDOWN):
            return AddrInfoResult(_infos(found, self._what, self._port, *self._hints))
        codes = [answer.error.code for answer in answers if answer.error]
        # What says more than that there is nothing, if one of them does.
        codes.sort(key=(DNS_ERR_NODATA, DNS_ERR_NOTEXIST).__contains__)
        return AddrInfoResult(error=DnsError(error or (codes or [DNS_ERR_NODATA])[0]))

    def _drop(self) -> None:
        parts, self._parts = self._parts, []
        for part in parts:
            part._forget()
        super()._drop()


class _Part(DnsRequest):
    """The look-up for one family; it calls nobody back."""

    __slots__ = ()

    def _result(self, error: int, kind: int, count: int, ttl: int, data: bytes) -> Any:
        result = super()._result(error, kind, count, ttl, data)
        if self._args:
            main, family = self._args
            main._answered(family, result)
        self._dns._requests.discard(self._token)


def _infos(
    addresses: list[str],
    name: str,
    port: int | str | None,
    family: int,
    kind: int,
    protocol: int,
    flags: int,
) -> list[AddressInfo]:
    """What socket.getaddrinfo makes of addresses."""
    want_name = flags & socket.AI_CANONNAME
    flags &= ~(socket.AI_CANONNAME | getattr(socket, "AI_ADDRCONFIG", 0))
    infos: list[Any] = []
    for address in addresses:
        infos += socket.getaddrinfo(
            address, port, family, kind, protocol, flags | socket.AI_NUMERICHOST
        )
    if want_name and infos:
        infos[0] = (*infos[0][:3], name, infos[0][4])
    return infos


class DnsBase(Handle):
    """Looks names up in the loop (struct evdns_base), each with a time limit of ours behind which
    evdns would wait for ever for nameservers that are down.

    With EVDNS_BASE_INITIALIZE_NAMESERVERS it starts with what /etc/resolv.conf and /etc/hosts
    say. Without EVDNS_BASE_DISABLE_WHEN_INACTIVE its nameservers keep `dispatch()` from
    returning. While it is open the EventBase keeps it alive, and closes it in the end. Its methods
    belong to the loop's thread. In a child, `EventBase.reinit()` closes it (its sockets are the
    parent's) without callbacks: make a new one.

    An answer is believed if its number, its name and the address that it comes from are right;
    libevent 2.1 does not look at the port.
    """

    __slots__ = ("_base", "_hosts", "_requests", "_token")

    def __init__(
        self,
        base: EventBase,
        flags: int = EVDNS_BASE_INITIALIZE_NAMESERVERS | EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    ) -> None:
        """Makes one (evdns_base_new); flags: EVDNS_BASE_*."""
        self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        flags = only(sum(DnsBaseFlags), flags)
        self._base = base
        self._hosts: dict[str, list[str]] = {}
        self._requests: set[int] = set()
        self._token = cb.next_token()
        self._make("evdns_base_new", lib.pyle_dns_new, base._ptr, self._token)
        base._table[self._token] = self
        try:
            # DISABLE_WHEN_INACTIVE does not hold for nameservers that come from the same call.
            start = flags & EVDNS_BASE_DISABLE_WHEN_INACTIVE
            self._check(lib.pyle_dns_open(self._ptr, start), "evdns_base_new")
            if flags & EVDNS_BASE_INITIALIZE_NAMESERVERS:
                options = int(DNS_OPTIONS_ALL)
                if flags & EVDNS_BASE_NAMESERVERS_NO_DEFAULT:
                    options |= lib.DNS_OPTION_NAMESERVERS_NO_DEFAULT
                self.resolv_conf_parse(options, "/etc/resolv.conf")
        except BaseException:
            self.close(fail_requests=False)
            raise

    # ---- life ----

    @property
    def ptr(self) -> CData:
        """The struct evdns_base *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_dns_ptr(self._ptr) or fail(CLOSED, "evdns_base")

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_dns_ptr(self._ptr)

    @property
    def base(self) -> EventBase:
        """The base whose loop looks up."""
        return self._base

    def close(self, fail_requests: bool = True) -> None:
        """Frees it (evdns_base_free). The callbacks of what is not answered yet are called in the
        loop, with DNS_ERR_SHUTDOWN, or not at all without `fail_requests`. May be called twice,
        and in any callback."""
        if self.closed:
            return
        self._check(lib.pyle_dns_count(self._ptr), "evdns_base_free")
        for token in sorted(self._requests):
            request = self._base._table.get(token)
            if request is None:
                continue
            if fail_requests and not isinstance(request, _Part):
                request._end(DNS_ERR_SHUTDOWN)
            else:
                request._forget()
        self._hosts.clear()
        if self._check(lib.pyle_dns_close(self._ptr, 0), "evdns_base_free") == 0:
            self._base._table.pop(self._token, None)

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_dns_close(self._ptr, 1)

    def _after_fork(self) -> None:
        self.close(fail_requests=False)

    # ---- nameservers and options ----

    def add_nameserver(self, address: str | tuple[str, int]) -> None:
        """Adds one: "ip", "ip:port", "[ip]:port" or (ip, port); port 53 if there is none. One that
        is there already is left as it is (evdns_base_nameserver_sockaddr_add)."""
        where, length = _sockaddr(*_numbers(address, 53))
        rc = lib.pyle_dns_nameserver(self._ptr, where, length)
        if rc != NONE:
            self._check(rc, "evdns_base_nameserver_sockaddr_add")

    @property
    def nameservers(self) -> list[tuple[str, int]]:
        """All of them, as (ip, port) (evdns_base_get_nameserver_addr)."""
        found: list[tuple[str, int]] = []
        out, port = ffi.new("char[64]"), ffi.new("int *")
        while (rc := lib.pyle_dns_get_nameserver(self._ptr, len(found), out, 64, port)) != NONE:
            self._check(rc, "evdns_base_get_nameserver_addr")
            found.append((str(ffi.string(out), "ascii"), port[0]))
        return found

    def count_nameservers(self) -> int:
        """How many there are (evdns_base_count_nameservers)."""
        return self._check(lib.pyle_dns_count(self._ptr), "evdns_base_count_nameservers")

    def clear_nameservers(self) -> None:
        """Removes all; what is not answered yet waits for `add_nameserver()` and `resume()`
        (evdns_base_clear_nameservers_and_suspend)."""
        rc = lib.pyle_dns_clear_nameservers(self._ptr)
        self._check(rc, "evdns_base_clear_nameservers_and_suspend")

    suspend = clear_nameservers

    def resume(self) -> None:
        """Goes on with what waits since `clear_nameservers()` (evdns_base_resume)."""
        self._check(lib.pyle_dns_resume(self._ptr), "evdns_base_resume")

    def resolv_conf_parse(
        self, flags: int = DNS_OPTIONS_ALL, path: str | os.PathLike[str] = "/etc/resolv.conf"
    ) -> None:
        """Reads a file such as /etc/resolv.conf: the DNS_OPTION_* parts of it; with
        DNS_OPTION_HOSTSFILE /etc/hosts too (evdns_base_resolv_conf_parse). Without a nameserver in
        it, or a file, 127.0.0.1 is asked, unless DNS_OPTION_NAMESERVERS_NO_DEFAULT is set."""
        flags = only(sum(DnsOptions), flags)
        name = os.fsencode(path)
        rc = self._check(
            lib.pyle_dns_resolv_conf(self._ptr, flags & ~lib.DNS_OPTION_HOSTSFILE, name),
            "evdns_base_resolv_conf_parse",
        )
        if flags & lib.DNS_OPTION_HOSTSFILE and os.path.exists("/etc/hosts"):
            self.load_hosts("/etc/hosts")
        if rc == 1 and flags & lib.DNS_OPTION_NAMESERVERS_NO_DEFAULT:
            return  # there is none, as was asked for
        if rc in (1, 2, 3, 5):
            reasons = {1: "cannot be opened", 2: "cannot be read", 3: "too large", 5: "short read"}
            raise OSError(f"evdns_base_resolv_conf_parse: {os.fsdecode(name)}: {reasons[rc]}")
        if rc == 4:
            raise MemoryError("evdns_base_resolv_conf_parse")

    def load_hosts(self, path: str | os.PathLike[str]) -> None:
        """Adds what a file such as /etc/hosts says, for `getaddrinfo()`
        (evdns_base_load_hosts)."""
        with open(path, encoding="ascii", errors="surrogateescape") as lines:
            entries = [line.partition("#")[0].split() for line in lines]
        name = os.fsencode(path)
        self._check(lib.pyle_dns_hosts(self._ptr, name), "evdns_base_load_hosts")
        for address, *names in filter(None, entries):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                continue
            for one in names:
                self._hosts.setdefault(one.lower(), []).append(address)

    def clear_host_addresses(self) -> None:
        """Forgets what `load_hosts()` has read (evdns_base_clear_host_addresses)."""
        rc = lib.pyle_dns_hosts(self._ptr, ffi.NULL)
        self._check(rc, "evdns_base_clear_host_addresses")
        self._hosts.clear()

    def search_add(self, domain: str) -> None:
        """Adds a domain that names are looked up in (evdns_base_search_add)."""
        name = _encoded(domain.lstrip("."), "domain") if isinstance(domain, str) else domain
        if not isinstance(name, bytes):
            raise TypeError(f"domain must be a str, not {type(domain).__name__}")
        rc = lib.pyle_dns_search(self._ptr, name, -1)
        self._check(rc, "evdns_base_search_add")

    def search_clear(self) -> None:
        """Removes all of these (evdns_base_search_clear)."""
        self._check(lib.pyle_dns_search(self._ptr, ffi.NULL, -1), "evdns_base_search_clear")

    def search_ndots_set(self, ndots: int) -> None:
        """Names with so many dots are looked up as they are first (evdns_base_search_ndots_set)."""
        number = integer(ndots, "ndots")
        if number < 0:
            raise ValueError(f"ndots must not be negative: {ndots}")
        rc = lib.pyle_dns_search(self._ptr, ffi.NULL, number)
        self._check(rc, "evdns_base_search_ndots_set")

    def set_option(self, name: str, value: str | int | float) -> None:
        """Sets one of evdns's options: timeout, attempts, max-timeouts, max-inflight, ndots,
        randomize-case, bind-to, initial-probe-timeout, getaddrinfo-allow-skew, so-rcvbuf,
        so-sndbuf (evdns_base_set_option)."""
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        name = name.removesuffix(":")
        if name not in _OPTIONS:
            raise ValueError(f"unknown option: {name!r}")
        text = str(value).encode()
        if b"\0" in text:
            raise ValueError(f"NUL in an option: {value!r}")
        if name == "max-inflight" and self._requests:  # evdns would use what it has just freed
            raise RuntimeError("max-inflight cannot be changed while look-ups are under way")
        rc = lib.pyle_dns_set_option(self._ptr, name.encode() + b":", text)
        if rc == RANGE:
            raise ValueError(f"not a value for the option {name}: {value!r}")
        self._check(rc, "evdns_base_set_option")

    # ---- look-ups ----

    def resolve_ipv4(
        self,
        name: str,
        callback: Callable[[DnsResult, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        flags: int = 0,
        timeout: Seconds | None = _TIMEOUT,
    ) -> DnsRequest:
        """Looks the IPv4 addresses of a name up: callback(result, *args) is called in the loop,
        with DNS_ERR_TIMEOUT after `timeout` seconds (evdns_base_resolve_ipv4). flags:
        DNS_QUERY_NO_SEARCH; a name with a final dot is looked up without search domains, too."""
        return self._resolve(lib.DNS_IPv4_A, name, callback, args, flags, timeout)

    def resolve_ipv6(
        self,
        name: str,
        callback: Callable[[DnsResult, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        flags: int = 0,
        timeout: Seconds | None = _TIMEOUT,
    ) -> DnsRequest:
        """The same for IPv6 addresses (evdns_base_resolve_ipv6)."""
        return self._resolve(lib.DNS_IPv6_AAAA, name, callback, args, flags, timeout)

    def resolve_reverse(
        self,
        address: str,
        callback: Callable[[DnsResult, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        timeout: Seconds | None = _TIMEOUT,
    ) -> DnsRequest:
        """Looks the name of an IPv4 or IPv6 address up (evdns_base_resolve_reverse,
        evdns_base_resolve_reverse_ipv6)."""
        if not isinstance(address, str):
            raise TypeError(f"address must be a str, not {type(address).__name__}")
        data = ipaddress.ip_address(address).packed
        return self._start(lib.DNS_PTR, address, data, callback, args, 0, timeout)

    def _resolve(
        self,
        kind: int,
        name: str,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        flags: int,
        timeout: Seconds | None,
    ) -> DnsRequest:
        data, flags = _searched(_encoded(name), only(DNS_QUERY_NO_SEARCH, flags))
        return self._start(kind, name, data, callback, args, flags, timeout)

    def _start(
        self,
        kind: int,
        what: str,
        data: bytes,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        flags: int,
        timeout: Seconds | None,
    ) -> DnsRequest:
        limit = seconds(timeout)
        request = DnsRequest._new(self, what, function(callback), args)
        try:
            request._start(kind, data, flags)
            request._wait(limit)
        except BaseException:
            request._forget()
            raise
        return request

    def getaddrinfo(
        self,
        host: str | None,
        port: str | int | None,
        callback: Callable[[AddrInfoResult, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
        timeout: Seconds | None = _TIMEOUT,
    ) -> DnsRequest:
        """socket.getaddrinfo without blocking: callback(result, *args) is called in the loop, with
        the same list or a socket.gaierror. Numbers and what `load_hosts()` has read need no
        nameserver; with AI_CANONNAME the name is the one asked for (evdns_getaddrinfo)."""
        hints = (
            integer(family, "family"),
            integer(type, "type"),
            integer(proto, "proto"),
            integer(flags, "flags"),
        )
        name = None if host is None or host == "" else _encoded(host, "host")
        limit = seconds(timeout)
        request = _AddrInfo._new(self, host or "", function(callback), args)
        request._prepare(port, hints)
        try:
            request._ready = self._at_once(host, name, port, *hints)
            if request._ready is not None or name is None:
                request._end(DNS_ERR_NONE)
            else:
                kinds = _KINDS.get(hints[0], (lib.DNS_IPv4_A, lib.DNS_IPv6_AAAA))
                request._ask(*_searched(name, 0), kinds)
                request._wait(limit)
        except BaseException:
            request._forget()
            raise
        return request

    def _at_once(
        self,
        host: str | None,
        name: bytes | None,
        port: str | int | None,
        family: int,
        kind: int,
        protocol: int,
        flags: int,
    ) -> AddrInfoResult | None:
        """The answer that needs no nameserver, which an error is too."""
        numeric = flags | socket.AI_NUMERICHOST
        try:
            found: Any = socket.getaddrinfo(host, port, family, kind, protocol, numeric)
            return AddrInfoResult(found)
        except socket.gaierror as error:
            if name is None or flags & socket.AI_NUMERICHOST or _is_address(host):
                return AddrInfoResult(error=error)
        try:  # are the other arguments right?
            socket.getaddrinfo(
                None, port or 0, family, kind, protocol, flags & ~socket.AI_CANONNAME
            )
        except socket.gaierror as error:
            return AddrInfoResult(error=error)
        hosts = self._hosts.get(_decoded(name).rstrip(".").lower())
        if hosts is None:
            return None
        versions = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}
        wanted = [
            one
            for one in hosts
            if not family or ipaddress.ip_address(one).version == versions.get(family)
        ]
        if not wanted:
            return AddrInfoResult(error=DnsError(DNS_ERR_NODATA))
        return AddrInfoResult(_infos(wanted, host or "", port, family, kind, protocol, flags))

    def _describe(self) -> str:
        return f"{self.count_nameservers()} nameservers"


_OPTIONS = {
    "ndots", "timeout", "getaddrinfo-allow-skew", "max-timeouts", "max-inflight", "attempts",
    "randomize-case", "bind-to", "initial-probe-timeout", "so-rcvbuf", "so-sndbuf",
}  # fmt: skip


_KINDS = {int(socket.AF_INET): (lib.DNS_IPv4_A,), int(socket.AF_INET6): (lib.DNS_IPv6_AAAA,)}


def _searched(name: bytes, flags: int) -> tuple[bytes, int]:
    """With a final dot it is meant as it is."""
    return (name[:-1], DNS_QUERY_NO_SEARCH) if name.endswith(b".") else (name, flags)


def _nothing(*_args: Any) -> None:
    """The callback of what is done."""


# ---- answering ----


@dataclass(frozen=True)
class DnsQuestion:
    """What is asked: all records of this type (EVDNS_TYPE_*, EVDNS_QTYPE_*) of a name."""

    name: str
    type: int
    dns_class: int = EVDNS_CLASS_INET


class DnsServerRequest(Handle):
    """Questions of a client, for a DnsServerPort's callback: they are answered by `respond()`, then
    or later. One that nobody has any more is dropped."""

    __slots__ = ("_port", "_questions")

    _port: DnsServerPort
    _questions: list[DnsQuestion]

    def __init__(self, *_: object) -> None:
        raise TypeError("made by DnsServerPort")

    @classmethod
    def _take(cls, port: DnsServerPort) -> DnsServerRequest:
        self = cls.__new__(cls)
        self._port = port
        self._make("evdns_server_request", lib.pyle_query_take)
        self._questions = list(self._asked())
        return self

    def _asked(self) -> Iterator[DnsQuestion]:
        name, kind, dns_class = ffi.new("char[256]"), ffi.new("int *"), ffi.new("int *")
        for index in itertools.count():
            rc = lib.pyle_query_question(self._ptr, index, name, 256, kind, dns_class)
            if self._check(rc, "evdns_server_request"):
                return
            text = _decoded(ffi.string(name))
            yield DnsQuestion(text, _TYPES.get(kind[0], kind[0]), dns_class[0])

    @property
    def ptr(self) -> CData:
        """The struct evdns_server_request *, for ffi/lib and other C code."""
        return lib.pyle_query_ptr(self._ptr) or fail(CLOSED, "evdns_server_request")

    @property
    def closed(self) -> bool:
        """Whether it was answered or dropped, or its port closed."""
        return not lib.pyle_query_ptr(self._ptr)

    def close(self) -> None:
        """The same as `drop()` (evdns_server_request_drop)."""
        self.drop()

    @property
    def port(self) -> DnsServerPort:
        """Where it came in."""
        return self._port

    @property
    def questions(self) -> list[DnsQuestion]:
        """What is asked: one question, as a rule."""
        return list(self._questions)

    @property
    def address(self) -> Address:
        """Who asks (evdns_server_request_get_requesting_addr)."""
        host, port, scope = ffi.new("char[64]"), ffi.new("int *"), ffi.new("unsigned *")
        family = lib.pyle_query_address(self._ptr, host, 64, port, scope)
        self._check(family, "evdns_server_request_get_requesting_addr")
        text = str(ffi.string(host), "ascii")
        return (text, port[0]) if family == socket.AF_INET else (text, port[0], 0, scope[0])

    @property
    def flags(self) -> int:
        """The flags of question and answer, as EVDNS_FLAGS_AA for an answer with authority
        (evdns_server_request_set_flags)."""
        rc = lib.pyle_query_flags(self._ptr, 0, 0)
        return self._check(rc, "evdns_server_request_set_flags")

    @flags.setter
    def flags(self, value: int) -> None:
        number = _sixteen_bits(value, "flags")
        rc = lib.pyle_query_flags(self._ptr, 1, number)
        self._check(rc, "evdns_server_request_set_flags")

    def add_reply(
        self,
        section: int,
        name: str,
        type: int,
        dns_class: int,
        ttl: int,
        data: str | bytes,
    ) -> None:
        """Adds a record: a str in `data` is a name, bytes are the record's own
        (evdns_server_request_add_reply). All of them have about 1,400 bytes, ValueError after
        these; what does not fit into 512 is sent as cut off (TC)."""
        section = int(DnsSection(section))
        if isinstance(data, str):
            content = _record_name(data)
        elif isinstance(data, bytes):
            content = data
        else:
            raise TypeError(f"data must be str or bytes, not {data.__class__.__name__}")
        number = integer(ttl, "ttl")
        if number < 0:
            raise ValueError(f"ttl must not be negative: {ttl}")
        rc = lib.pyle_query_add(
            self._ptr,
            section,
            _record_name(name),
            _sixteen_bits(type, "type"),
            _sixteen_bits(dns_class, "dns_class"),
            number,
            len(content),
            isinstance(data, str),
            content,
        )
        if rc == SMALL:
            raise ValueError("no room in the answer for one more record")
        self._check(rc, "evdns_server_request_add_reply")

    def add_a(self, name: str, addresses: str | Sequence[str], ttl: int = 0) -> None:
        """Adds IPv4 addresses to the answer (evdns_server_request_add_a_reply)."""
        self._add_addresses(socket.AF_INET, EVDNS_TYPE_A, name, addresses, ttl)

    def add_aaaa(self, name: str, addresses: str | Sequence[str], ttl: int = 0) -> None:
        """Adds IPv6 addresses to the answer (evdns_server_request_add_aaaa_reply)."""
        self._add_addresses(socket.AF_INET6, EVDNS_TYPE_AAAA, name, addresses, ttl)

    def _add_addresses(
        self, family: int, type: int, name: str, addresses: str | Sequence[str], ttl: int
    ) -> None:
        texts = [addresses] if isinstance(addresses, str) else list(addresses)
        try:
            records = [socket.inet_pton(family, text) for text in texts]
        except OSError:
            raise ValueError(f"not addresses of that kind: {texts!r}") from None
        for record in records:
            self.add_reply(EVDNS_ANSWER_SECTION, name, type, EVDNS_CLASS_INET, ttl, record)

    def add_ptr(self, address: str, hostname: str, ttl: int = 0) -> None:
        """Adds the name of an address, which is an IPv4 or IPv6 one or the name that was asked for
        (evdns_server_request_add_ptr_reply)."""
        try:
            name = ipaddress.ip_address(address).reverse_pointer
        except ValueError:
            name = address
        args = EVDNS_ANSWER_SECTION, name, EVDNS_TYPE_PTR, EVDNS_CLASS_INET, ttl, hostname
        self.add_reply(*args)

    def add_cname(self, name: str, cname: str, ttl: int = 0) -> None:
        """Adds the name that `name` is another one of (evdns_server_request_add_cname_reply)."""
        args = EVDNS_ANSWER_SECTION, name, EVDNS_TYPE_CNAME, EVDNS_CLASS_INET, ttl, cname
        self.add_reply(*args)

    def respond(self, err: int = DNS_ERR_NONE) -> None:
        """Sends the answer, with a DNS_ERR_* (evdns_server_request_respond). OSError if the system
        does not take it now: then it may be tried again."""
        code = integer(err, "err")
        if not 0 <= code <= 15:
            raise ValueError(f"err must be from 0 to 15, not {err!r}")
        self._check(lib.pyle_query_respond(self._ptr, code), "evdns_server_request_respond")

    def drop(self) -> None:
        """Lets it go without an answer (evdns_server_request_drop). May be called twice."""
        self._check(lib.pyle_query_drop(self._ptr), "evdns_server_request_drop")

    def _describe(self) -> str:
        return f"from {self.address!r}"


class DnsServerPort(Handle):
    """Answers questions that come in by UDP (struct evdns_server_port; 2.1 has no TCP).

    callback(request, *args) is called for each with a DnsServerRequest; an exception handler gets
    this object. While it is open its base keeps it alive. Its methods
    belong to the loop's thread.
    """

    __slots__ = ("_args", "_base", "_callback", "_token")

    def __init__(
        self,
        base: EventBase,
        where: FileDescriptor | Address,
        callback: Callable[[DnsServerRequest, Unpack[Args]], object] | Variadic,
        *args: Unpack[Args],
    ) -> None:
        """Listens on a bound UDP socket, or on (ip, port), port 0 for a free one
        (evdns_add_server_port_with_base). A socket.socket is taken over: detached, and closed with
        the port, as a descriptor is."""
        self._first_init()
        if not isinstance(base, EventBase):
            raise TypeError(f"base must be an EventBase, not {type(base).__name__}")
        self._base = base
        self._callback: Callable[..., object] = function(callback)
        self._args: tuple[Any, ...] = args
        self._token = cb.next_token()
        new = "evdns_add_server_port_with_base"
        self._make(new, lib.pyle_port_new, base._ptr, self._token)
        base._table[self._token] = self
        try:
            with contextlib.ExitStack() as undo:
                if isinstance(where, (tuple, str)):
                    ip, number = _numbers(where, 53)
                    where = undo.enter_context(socket.socket(_family(ip), socket.SOCK_DGRAM))
                    where.bind(_bind_address(ip, number))
                elif isinstance(where, socket.socket) and where.type != socket.SOCK_DGRAM:
                    raise ValueError("not a UDP socket")
                rc = lib.pyle_port_open(self._ptr, fileno(where))
                self._check(rc, "evdns_add_server_port_with_base")
                if isinstance(where, socket.socket):
                    where.detach()
        except BaseException:
            if isinstance(where, socket.socket) and lib.pyle_port_ptr(self._ptr):
                where.detach()  # interrupted: it goes with the port, which has it
            self._abandon()
            raise

    def _abandon(self) -> None:
        lib.pyle_port_close(self._ptr)
        self._base._table.pop(self._token, None)

    @property
    def ptr(self) -> CData:
        """The struct evdns_server_port *, for ffi/lib and other C code; it stays ours to free."""
        return lib.pyle_port_ptr(self._ptr) or fail(CLOSED, "evdns_server_port")

    @property
    def closed(self) -> bool:
        """Whether it, or its base, was closed."""
        return not lib.pyle_port_ptr(self._ptr)

    @property
    def base(self) -> EventBase:
        """The base it belongs to."""
        return self._base

    @property
    def fd(self) -> int:
        """The socket's descriptor."""
        return self._check(lib.pyle_port_fd(self._ptr), "evdns_server_port")

    @property
    def address(self) -> Address:
        """Where it listens, as the socket module has it."""
        with socket.socket(fileno=os.dup(self.fd)) as copy:
            return copy.getsockname()

    def close(self) -> None:
        """Closes it and its socket; what is not answered is dropped (evdns_close_server_port). May
        be called twice, and in its own callback."""
        self._check(lib.pyle_port_close(self._ptr), "evdns_close_server_port")
        self._base._table.pop(self._token, None)
        self._forget()

    def _close_with_base(self, _token: int) -> None:
        lib.pyle_port_close(self._ptr)
        self._forget()

    def _forget(self) -> None:
        self._callback = _nothing
        self._args = ()

    def _asked(self) -> None:
        self._callback(DnsServerRequest._take(self), *self._args)

    def _describe(self) -> str:
        return repr(self.address)


_TYPES = {int(kind): kind for kind in DnsType}


def _bind_address(ip: str, port: int) -> Address:
    return socket.getaddrinfo(ip, port, flags=socket.AI_NUMERICHOST)[0][4]


def _record_name(name: str) -> bytes:
    """A name in a record: as the server's side of evdns has it, without a final dot."""
    return b"" if name == "." else _encoded(name).removesuffix(b".")


def _sixteen_bits(value: int, name: str) -> int:
    number = integer(value, name)
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"{name} must be from 0 to 65535, not {value!r}")
    return number
