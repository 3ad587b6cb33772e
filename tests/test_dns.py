"""DNS: look-ups, getaddrinfo, and the answering side, each against the other, and against packets
written by hand. Nothing leaves 127.0.0.1, and no test reads this machine's resolv.conf."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from common import few_rounds, is_open
from conftest import RunUntil
from processes import PLAIN_ENV, in_child, run_script

import pylibevent.dns
from pylibevent import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_ERROR,
    BEV_OPT_THREADSAFE,
    DNS_ERR_CANCEL,
    DNS_ERR_NODATA,
    DNS_ERR_NOTEXIST,
    DNS_ERR_REFUSED,
    DNS_ERR_SERVERFAILED,
    DNS_ERR_SHUTDOWN,
    DNS_ERR_TIMEOUT,
    DNS_ERR_TRUNCATED,
    DNS_OPTION_HOSTSFILE,
    DNS_OPTIONS_ALL,
    DNS_QUERY_NO_SEARCH,
    EV_PERSIST,
    EV_READ,
    EVDNS_ADDITIONAL_SECTION,
    EVDNS_ANSWER_SECTION,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVDNS_CLASS_INET,
    EVDNS_FLAGS_AA,
    EVDNS_TYPE_A,
    EVDNS_TYPE_AAAA,
    EVDNS_TYPE_MX,
    EVDNS_TYPE_PTR,
    EVDNS_TYPE_TXT,
    BufferEvent,
    ClosedError,
    DnsBase,
    DnsError,
    DnsResult,
    DnsServerPort,
    DnsServerRequest,
    Event,
    EventBase,
    Timer,
    lib,
)

QUIET = EVDNS_BASE_DISABLE_WHEN_INACTIVE


def answer(request: DnsServerRequest, seen: list[str]) -> None:
    """A small zone: what each name is said to be, its first label says."""
    question = request.questions[0]
    name = question.name.lower()
    kind, what = question.type, name.partition(".")[0]
    seen.append(name)
    if what == "silent" or (what == "four" and kind == EVDNS_TYPE_AAAA):
        request.drop()
    elif what == "refused":
        request.respond(DNS_ERR_REFUSED)
    elif what == "failed":
        request.respond(DNS_ERR_SERVERFAILED)
    elif what == "missing":
        request.respond(DNS_ERR_NOTEXIST)
    elif what == "empty":
        request.respond()
    else:
        if kind == EVDNS_TYPE_PTR:
            request.add_ptr(question.name, "host.example", 30)
        elif kind == EVDNS_TYPE_A:
            request.add_a(question.name, ["10.0.0.1", "10.0.0.2"], 60)
        elif what != "only4":
            request.add_aaaa(question.name, "fe80::1", 61)
        request.respond()


@pytest.fixture
def seen() -> list[str]:
    """The names that `server` was asked for."""
    return []


@pytest.fixture
def server(base: EventBase, seen: list[str]) -> DnsServerPort:
    return DnsServerPort(base, ("127.0.0.1", 0), answer, seen)


@pytest.fixture
def dns(base: EventBase, server: DnsServerPort) -> DnsBase:
    dns = DnsBase(base, QUIET)
    dns.add_nameserver(server.address)
    return dns


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    """A nameserver that says what the test writes, on a blocking socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def codes(results: list[Any]) -> list[Any]:
    return [result.error and result.error.code for result in results]


# ---- look-ups ----


def test_the_addresses_of_a_name_are_found(dns: DnsBase) -> None:
    got: list[tuple[DnsResult, str]] = []
    dns.resolve_ipv4("www.example", lambda result, arg: got.append((result, arg)), "arg")
    few_until(dns, got)
    assert got == [(DnsResult(["10.0.0.1", "10.0.0.2"], ttl=60), "arg")]


def few_until(dns: DnsBase, got: list[Any], n: int = 1) -> None:
    """Runs the loop until n callbacks were called."""
    late: list[bool] = []
    with Timer(dns.base, late.append, True) as deadline:
        deadline.add(5)
        while len(got) < n:
            dns.base.loop(lib.EVLOOP_ONCE)
            assert not late


def found(dns: DnsBase, start: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What the callback of one look-up gets."""
    got: list[Any] = []
    start(*args, got.append, **options)
    few_until(dns, got)
    return got[0]


def test_ipv6_addresses_are_found(dns: DnsBase) -> None:
    assert found(dns, dns.resolve_ipv6, "www.example") == DnsResult(["fe80::1"], ttl=61)


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.1.2.3", "3.2.1.10.in-addr.arpa"), ("::1", "1." + "0." * 31 + "ip6.arpa")],
)
def test_the_name_of_an_address_is_found(
    dns: DnsBase, seen: list[str], address: str, name: str
) -> None:
    assert found(dns, dns.resolve_reverse, address) == DnsResult(names=["host.example"], ttl=30)
    assert seen == [name]


@pytest.mark.parametrize(
    ("name", "code", "errno"),
    [
        ("missing.example", DNS_ERR_NOTEXIST, socket.EAI_NONAME),
        ("empty.example", DNS_ERR_NODATA, socket.EAI_NODATA),
        ("failed.example", DNS_ERR_TIMEOUT, socket.EAI_AGAIN),  # evdns asks again
        ("refused.example", DNS_ERR_REFUSED, socket.EAI_FAIL),
    ],
)
def test_a_failure_is_a_gaierror_with_the_code_of_evdns(
    dns: DnsBase, name: str, code: int, errno: int
) -> None:
    dns.set_option("attempts", 1)
    dns.set_option("timeout", 0.1)
    error = found(dns, dns.resolve_ipv4, name).error
    assert isinstance(error, DnsError)
    assert isinstance(error, socket.gaierror)
    assert (error.code, error.errno) == (code, errno)


def test_the_callback_comes_from_the_loop_and_never_from_the_call(dns: DnsBase) -> None:
    got: list[Any] = []
    request = dns.resolve_ipv4("www.example", got.append)
    dns.getaddrinfo("127.0.0.1", 80, got.append)
    assert got == []
    assert not request.done
    few_until(dns, got, 2)
    assert request.done


def test_a_thousand_look_ups_at_once_are_all_answered(dns: DnsBase, seen: list[str]) -> None:
    got: list[int] = []
    for i in range(1000):
        dns.resolve_ipv4(f"n{i}.example", lambda result, i: got.append(i), i)
    few_until(dns, got, 1000)
    assert sorted(got) == list(range(1000))
    assert len(set(seen)) == 1000


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", ".a", "a" * 64, "a." * 127 + "a", "nul\0.example", ".".join(["a" * 63] * 4)],
)
def test_a_name_that_no_packet_has_room_for_is_refused(dns: DnsBase, name: str) -> None:
    with pytest.raises(ValueError, match=r"not a (name|host)|label"):
        dns.resolve_ipv4(name, print)
    with pytest.raises(ValueError, match=r"not a (name|host)|label") if name else _anything():
        dns.getaddrinfo(name, 80, lambda _result: None)


class _anything:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_the_longest_name_is_looked_up(dns: DnsBase, seen: list[str]) -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert found(dns, dns.resolve_ipv4, name).addresses
    assert seen == [name]


def test_arguments_of_the_wrong_kind_are_type_errors(base: EventBase, dns: DnsBase) -> None:
    wrong: Any = 5
    for call in (
        lambda: dns.resolve_ipv4(wrong, print),
        lambda: dns.resolve_ipv4("a", wrong),
        lambda: dns.resolve_reverse(wrong, print),
        lambda: dns.add_nameserver(wrong),
        lambda: dns.search_add(wrong),
        lambda: dns.set_option(wrong, "1"),
        lambda: DnsBase(wrong),
        lambda: DnsServerPort(wrong, ("127.0.0.1", 0), print),
        lambda: DnsServerPort(base, ("127.0.0.1", 0), wrong),
    ):
        with pytest.raises(TypeError):
            call()


# ---- search domains, hosts, options, nameservers ----


def test_a_short_name_is_looked_up_in_the_search_domains(dns: DnsBase, seen: list[str]) -> None:
    dns.search_add("one.example")
    dns.search_add(".two.example")
    found(dns, dns.resolve_ipv4, "missing")
    assert set(seen) == {"missing.one.example", "missing.two.example", "missing"}
    assert len(seen) == 3


@pytest.mark.parametrize("how", ["flag", "dot", "cleared"])
def test_a_name_can_be_looked_up_as_it_is(dns: DnsBase, seen: list[str], how: str) -> None:
    dns.search_add("one.example")
    if how == "cleared":
        dns.search_clear()
    name = "missing." if how == "dot" else "missing"
    found(dns, dns.resolve_ipv4, name, flags=DNS_QUERY_NO_SEARCH if how == "flag" else 0)
    assert seen == ["missing"]


def test_a_name_with_ndots_dots_is_tried_as_it_is_first(dns: DnsBase, seen: list[str]) -> None:
    dns.search_add("one.example")
    dns.search_ndots_set(2)
    found(dns, dns.resolve_ipv4, "missing.a.b")
    assert seen[0] == "missing.a.b"


def test_a_resolv_conf_says_whom_to_ask_and_where_to_search(
    base: EventBase, tmp_path: Path, server: DnsServerPort, seen: list[str]
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.7\nsearch one.example\noptions ndots:3\n")
    with DnsBase(base, QUIET) as dns:
        dns.resolv_conf_parse(DNS_OPTIONS_ALL & ~DNS_OPTION_HOSTSFILE, conf)
        assert dns.nameservers == [("127.0.0.7", 53)]
        dns.clear_nameservers()
        dns.add_nameserver(server.address)
        found(dns, dns.resolve_ipv4, "host.a.b")
    few_rounds(base)
    assert seen == ["host.a.b.one.example"]


def test_a_resolv_conf_that_cannot_be_read_is_an_os_error(dns: DnsBase, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be opened"):
        dns.resolv_conf_parse(DNS_OPTIONS_ALL & ~DNS_OPTION_HOSTSFILE, tmp_path / "none")


def test_getaddrinfo_knows_what_a_hosts_file_says(
    dns: DnsBase, tmp_path: Path, seen: list[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.9.9.9 here.example alias # comment\n::9 here.example\nrubbish\n1.2 x\n")
    dns.load_hosts(hosts)
    infos = found(dns, dns.getaddrinfo, "HERE.example", 80, type=socket.SOCK_STREAM).infos
    assert [info[4] for info in infos] == [("10.9.9.9", 80), ("::9", 80, 0, 0)]
    only = found(dns, dns.getaddrinfo, "alias", 80, family=socket.AF_INET6)
    assert only.error.code == DNS_ERR_NODATA
    assert seen == []
    dns.clear_host_addresses()
    assert found(dns, dns.getaddrinfo, "here.example", 80).infos
    assert seen


def test_a_hosts_file_that_is_not_there_is_an_os_error(dns: DnsBase, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dns.load_hosts(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:54", ("127.0.0.1", 54)),
        ("::1", ("::1", 53)),
        ("[::1]:55", ("::1", 55)),
        (("127.0.0.1", 56), ("127.0.0.1", 56)),
    ],
)
def test_a_nameserver_is_an_address_with_or_without_a_port(
    base: EventBase, text: Any, address: Any
) -> None:
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver(text)
        dns.add_nameserver(text)  # is there already
        assert dns.nameservers == [address]
        assert dns.count_nameservers() == 1
        dns.clear_nameservers()
        assert dns.nameservers == []


@pytest.mark.parametrize("text", ["localhost", "", "127.0.0.1:", "127.0.0.1:70000", "[::1", "1.2"])
def test_what_is_no_address_is_no_nameserver(dns: DnsBase, text: str) -> None:
    with pytest.raises(ValueError, match=r"port|does not appear"):
        dns.add_nameserver(text)


def test_options_are_checked(dns: DnsBase) -> None:
    dns.set_option("timeout:", 2.5)
    dns.set_option("bind-to", "127.0.0.1")
    with pytest.raises(ValueError, match="unknown option"):
        dns.set_option("timeouts", 1)
    for name, value in (("timeout", "soon"), ("attempts", "x"), ("timeout", "1\0")):
        with pytest.raises(ValueError, match=r"not a value|NUL"):
            dns.set_option(name, value)


def test_max_inflight_does_not_change_under_look_ups(dns: DnsBase) -> None:
    """evdns goes on with the table that it has freed."""
    dns.set_option("max-inflight", 3)
    got: list[Any] = []
    for i in range(9):
        dns.resolve_ipv4(f"n{i}", got.append)
    with pytest.raises(RuntimeError, match="under way"):
        dns.set_option("max-inflight", 100)
    few_until(dns, got, 9)
    dns.set_option("max-inflight", 100)


def test_suspended_look_ups_go_on_with_another_nameserver(
    base: EventBase, udp: socket.socket, server: DnsServerPort
) -> None:
    got: list[Any] = []
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver(udp.getsockname())
        dns.resolve_ipv4("www.example", got.append)
        few_rounds(base)
        dns.suspend()
        few_rounds(base)
        assert got == []
        dns.add_nameserver(server.address)
        dns.resume()
        few_until(dns, got)
        assert got[0].addresses == ["10.0.0.1", "10.0.0.2"]


# ---- nameservers that do not answer ----


def test_without_a_nameserver_a_look_up_ends_with_its_time_limit(base: EventBase) -> None:
    with DnsBase(base, QUIET) as dns:
        result = found(dns, dns.resolve_ipv4, "www.example", timeout=0.01)
        assert result.error.code == DNS_ERR_TIMEOUT
        assert result.error.errno == socket.EAI_AGAIN
        result = found(dns, dns.getaddrinfo, "www.example", 80, timeout=0.01)
        assert result.error.errno == socket.EAI_AGAIN


def test_a_question_is_asked_as_often_as_attempts_says(dns: DnsBase, seen: list[str]) -> None:
    dns.set_option("attempts", 3)
    dns.set_option("timeout", 0.02)
    dns.set_option("max-timeouts", 200)
    result = found(dns, dns.resolve_ipv4, "silent.example")
    assert result.error.code == DNS_ERR_TIMEOUT
    assert seen == ["silent.example"] * 3


def test_another_nameserver_is_asked_when_one_is_dead(
    base: EventBase, dns: DnsBase, udp: socket.socket
) -> None:
    dead = udp.getsockname()
    udp.close()
    dns.set_option("timeout", 0.05)
    dns.set_option("max-timeouts", 1)
    dns.clear_nameservers()
    with DnsServerPort(base, ("127.0.0.1", 0), answer, []) as other:
        dns.add_nameserver(dead)
        dns.add_nameserver(other.address)
        for i in range(4):
            assert found(dns, dns.resolve_ipv4, f"n{i}").addresses


def test_a_nameserver_that_comes_back_is_asked_again(base: EventBase) -> None:
    seen: list[str] = []
    first = DnsServerPort(base, ("127.0.0.1", 0), lambda request: request.drop())
    address = first.address
    with DnsBase(base, 0) as dns:
        for name, value in (("timeout", 0.02), ("attempts", 1), ("initial-probe-timeout", 0.05)):
            dns.set_option(name, value)
        dns.set_option("max-timeouts", 1)
        dns.add_nameserver(address)
        assert found(dns, dns.resolve_ipv4, "a.example", timeout=0.2).error
        first.close()
        got: list[Any] = []
        with DnsServerPort(base, address, answer, seen):
            for _ in range(20):
                got.append(found(dns, dns.resolve_ipv4, "b.example", timeout=0.5))
                if got[-1].error is None:
                    break
        assert got[-1].addresses


def test_a_late_answer_does_nothing(base: EventBase, run_until: RunUntil) -> None:
    kept: list[DnsServerRequest] = []
    got: list[Any] = []
    with DnsServerPort(base, ("127.0.0.1", 0), kept.append) as port, DnsBase(base, QUIET) as dns:
        dns.add_nameserver(port.address)
        dns.resolve_ipv4("www.example", got.append, timeout=0.05)
        run_until(lambda: kept and got)
        kept[0].add_a(kept[0].questions[0].name, "10.0.0.1")
        kept[0].respond()
        few_rounds(base)
        assert codes(got) == [DNS_ERR_TIMEOUT]


# ---- cancel, close ----


def test_a_cancelled_look_up_calls_back_once_with_cancel(dns: DnsBase) -> None:
    got: list[Any] = []
    request = dns.resolve_ipv4("www.example", got.append)
    request.cancel()
    request.cancel()
    few_until(dns, got)
    few_rounds(dns.base)
    request.cancel()
    assert codes(got) == [DNS_ERR_CANCEL]


@pytest.mark.parametrize("host", ["www.example", "127.0.0.1"])
def test_a_cancelled_getaddrinfo_calls_back_once(dns: DnsBase, host: str) -> None:
    got: list[Any] = []
    dns.getaddrinfo(host, 80, got.append).cancel()
    few_until(dns, got)
    few_rounds(dns.base)
    assert len(got) == 1


def test_a_look_up_can_be_cancelled_in_the_callback_of_another(dns: DnsBase) -> None:
    got: list[Any] = []

    def first(result: DnsResult) -> None:
        got.append(result)
        for one in rest:
            one.cancel()

    dns.resolve_ipv4("a.example", first)
    rest = [dns.resolve_ipv4("silent.example", got.append) for _ in range(5)]
    few_until(dns, got, 6)
    assert codes(got) == [None] + [DNS_ERR_CANCEL] * 5


def test_closing_ends_what_is_under_way_with_shutdown(dns: DnsBase) -> None:
    got: list[Any] = []
    dns.resolve_ipv4("silent.example", got.append)
    dns.getaddrinfo("silent.example", 80, got.append)
    few_rounds(dns.base)
    dns.close()
    dns.close()
    few_until(dns, got, 2)
    assert codes(got) == [DNS_ERR_SHUTDOWN] * 2
    with pytest.raises(ClosedError):
        dns.resolve_ipv4("www.example", got.append)


def test_to_cancel_what_closing_has_ended_does_nothing(dns: DnsBase) -> None:
    got: list[Any] = []
    request = dns.resolve_ipv4("silent.example", got.append)
    dns.close()
    request.cancel()
    few_until(dns, got, 1)
    assert codes(got) == [DNS_ERR_SHUTDOWN]


def test_closing_without_fail_requests_calls_nobody_back(dns: DnsBase) -> None:
    got: list[Any] = []
    request = dns.resolve_ipv4("silent.example", got.append)
    dns.getaddrinfo("silent.example", 80, got.append)
    dns.close(fail_requests=False)
    few_rounds(dns.base)
    assert got == []
    assert request.done


@pytest.mark.parametrize("what", ["dns", "base", "server", "all"])
@pytest.mark.parametrize("how", ["resolve_ipv4", "resolve_reverse", "getaddrinfo"])
def test_everything_can_be_closed_in_a_callback(
    dns: DnsBase, server: DnsServerPort, what: str, how: str
) -> None:
    got: list[Any] = []

    def close(result: Any) -> None:
        got.append(result)
        if len(got) > 1:
            return
        if what in ("dns", "all"):
            dns.close()
        if what in ("server", "all"):
            server.close()
        if what in ("base", "all"):
            dns.base.close()

    for _ in range(3):
        if how == "getaddrinfo":
            dns.getaddrinfo("www.example", 80, close)
        else:
            getattr(dns, how)("10.0.0.1" if how == "resolve_reverse" else "www.example", close)
    dns.resolve_ipv4("silent.example", close)
    while not got:
        dns.base.loop(lib.EVLOOP_ONCE)
    few_rounds(dns.base)
    assert dns.closed == (what != "server")


def test_the_base_closes_it_with_all_that_is_under_way(base: EventBase) -> None:
    got: list[Any] = []
    dns = DnsBase(base, QUIET)
    dns.add_nameserver("127.0.0.1:9")
    requests = [dns.resolve_ipv4("www.example", got.append) for _ in range(100)]
    requests += [dns.getaddrinfo("www.example", 80, got.append) for _ in range(100)]
    base.close()
    assert dns.closed
    assert all(request.done for request in requests)
    assert got == []


def test_names_may_be_dropped_while_a_look_up_is_under_way(
    base: EventBase, server: DnsServerPort, run_until: RunUntil
) -> None:
    got: list[Any] = []
    dns = DnsBase(base, QUIET)
    dns.add_nameserver(server.address)
    dns.resolve_ipv4("www.example", got.append)
    del dns
    gc.collect()
    run_until(lambda: got)


def test_the_loop_ends_when_nothing_is_under_way(base: EventBase) -> None:
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver("127.0.0.1:9")
        got: list[Any] = []
        dns.resolve_ipv4("www.example", got.append, timeout=0.01)
        base.dispatch()
        assert len(got) == 1


def test_closing_closes_the_sockets(base: EventBase) -> None:
    before = set(os.listdir("/proc/self/fd"))
    dns = DnsBase(base, QUIET)
    dns.add_nameserver("127.0.0.1:9")
    assert set(os.listdir("/proc/self/fd")) != before
    dns.close()
    assert set(os.listdir("/proc/self/fd")) == before


# ---- exceptions ----


def test_an_exception_leaves_the_loop_and_the_other_look_ups_go_on(dns: DnsBase) -> None:
    got: list[Any] = []
    dns.resolve_ipv4("a.example", lambda _result: 1 / 0)
    for _ in range(3):
        dns.resolve_ipv4("b.example", got.append)
    dns.getaddrinfo("c.example", 80, got.append)
    with pytest.raises(ZeroDivisionError):
        few_until(dns, got, 5)
    few_until(dns, got, 4)


def test_an_exception_handler_gets_the_request(dns: DnsBase, run_until: RunUntil) -> None:
    handled: list[Any] = []
    dns.base.exception_handler = lambda error, source: handled.append((type(error), source))
    requests = [
        dns.resolve_ipv4("a.example", lambda _result: 1 / 0),
        dns.getaddrinfo("b.example", 80, lambda _result: 1 / 0),
        dns.getaddrinfo("127.0.0.1", 80, lambda _result: 1 / 0),
    ]
    run_until(lambda: len(handled) == 3)
    assert {source for _, source in handled} == set(requests)


# ---- getaddrinfo ----


@pytest.mark.parametrize(
    "hints",
    [
        {},
        {"family": socket.AF_INET},
        {"type": socket.SOCK_STREAM},
        {"type": socket.SOCK_DGRAM, "proto": socket.IPPROTO_UDP},
        {"flags": socket.AI_CANONNAME},
        {"flags": socket.AI_NUMERICHOST},
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
@pytest.mark.parametrize("port", [80, "http", None])
def test_for_numbers_getaddrinfo_is_that_of_the_socket_module(
    dns: DnsBase, hints: dict[str, int], host: str | None, port: int | str | None
) -> None:
    result = found(dns, dns.getaddrinfo, host, port, **hints)
    expected: list[Any] = []
    error = None
    try:
        expected += socket.getaddrinfo(host, port, **hints)
    except socket.gaierror as raised:
        error = raised.args
    assert result.infos == expected
    assert (result.error and result.error.args) == error


def test_getaddrinfo_asks_for_both_families(dns: DnsBase) -> None:
    result = found(dns, dns.getaddrinfo, "www.example", "http", type=socket.SOCK_STREAM)
    stream = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
    assert result.error is None
    assert result.infos == [
        (socket.AF_INET, *stream, ("10.0.0.1", 80)),
        (socket.AF_INET, *stream, ("10.0.0.2", 80)),
        (socket.AF_INET6, *stream, ("fe80::1", 80, 0, 0)),
    ]


def test_getaddrinfo_asks_for_the_family_that_is_wanted(dns: DnsBase, seen: list[str]) -> None:
    result = found(dns, dns.getaddrinfo, "www.example", 80, family=socket.AF_INET6)
    assert {info[0] for info in result.infos} == {socket.AF_INET6}
    assert seen == ["www.example"]


def test_getaddrinfo_does_with_one_family(dns: DnsBase) -> None:
    result = found(dns, dns.getaddrinfo, "only4.example", 80, type=socket.SOCK_STREAM)
    assert [info[4][0] for info in result.infos] == ["10.0.0.1", "10.0.0.2"]


def test_getaddrinfo_does_not_wait_long_for_the_other_family(
    dns: DnsBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pylibevent.dns, "_SKEW", 0.05)
    result = found(dns, dns.getaddrinfo, "four.example", 80, type=socket.SOCK_STREAM)
    assert [info[4][0] for info in result.infos] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize(
    ("args", "hints", "errno"),
    [
        (("missing.example", 80), {}, socket.EAI_NONAME),
        (("empty.example", 80), {}, socket.EAI_NODATA),
        (("www.example", "no-such-service"), {}, socket.EAI_SERVICE),
        (("www.example", 80), {"family": 999}, socket.EAI_FAMILY),
        (("www.example", 80), {"type": 99}, socket.EAI_SOCKTYPE),
        (("www.example", 80), {"flags": socket.AI_NUMERICHOST}, socket.EAI_NONAME),
        ((None, None), {}, socket.EAI_NONAME),
    ],
)
def test_getaddrinfo_fails_as_that_of_the_socket_module(
    dns: DnsBase, args: Any, hints: dict[str, int], errno: int
) -> None:
    error = found(dns, dns.getaddrinfo, *args, **hints).error
    assert isinstance(error, socket.gaierror)
    assert error.errno == errno


def test_the_canonical_name_is_the_one_asked_for(dns: DnsBase) -> None:
    infos = found(dns, dns.getaddrinfo, "www.example", 80, flags=socket.AI_CANONNAME).infos
    assert [info[3] for info in infos[:2]] == ["www.example", ""]


# ---- BufferEvent.connect_hostname ----


@pytest.fixture
def here(base: EventBase) -> Iterator[DnsBase]:
    """Every name is 127.0.0.1, except those that are missing."""

    def reply(request: DnsServerRequest) -> None:
        question = request.questions[0]
        if question.name.lower().startswith("missing"):
            request.respond(DNS_ERR_NOTEXIST)
        elif question.type == EVDNS_TYPE_A:
            request.add_a(question.name, "127.0.0.1", 60)
            request.respond()
        else:
            request.respond()

    port = DnsServerPort(base, ("127.0.0.1", 0), reply)
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver(port.address)
        yield dns


def connecting(base: EventBase, events: list[Any]) -> BufferEvent:
    bev = BufferEvent.socket(base)
    bev.setcb(event=lambda bev, what: events.append((what, bev.error, bev.dns_error)))
    return bev


def test_a_bufferevent_connects_to_a_name_without_blocking(
    base: EventBase, here: DnsBase, run_until: RunUntil
) -> None:
    events: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = connecting(base, events)
        bev.write(b"hello")
        bev.connect_hostname("www.example", server.getsockname()[1], dns=here)
        assert bev.fd == -1
        run_until(lambda: events)
        assert events == [(BEV_EVENT_CONNECTED, None, None)]
        peer, _ = server.accept()
        few_rounds(base)
        with peer:
            assert peer.recv(5) == b"hello"
        bev.close()


def test_a_failed_look_up_is_an_error_of_the_bufferevent(
    base: EventBase, here: DnsBase, run_until: RunUntil
) -> None:
    events: list[Any] = []
    bev = connecting(base, events)
    bev.connect_hostname("missing.example", 80, dns=here)
    run_until(lambda: events)
    what, error, dns_error = events[0]
    assert (what, error, dns_error.errno) == (BEV_EVENT_ERROR, None, socket.EAI_NONAME)
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev.connect_hostname("www.example", server.getsockname()[1], dns=here)
        run_until(lambda: len(events) == 2)
    assert events[1] == (BEV_EVENT_CONNECTED, None, None)
    bev.close()


def test_a_refused_connection_behind_a_look_up_is_an_error(
    base: EventBase, here: DnsBase, run_until: RunUntil
) -> None:
    events: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    bev = connecting(base, events)
    bev.connect_hostname("www.example", port, dns=here)
    run_until(lambda: events)
    assert isinstance(events[0][1], ConnectionRefusedError)
    assert events[0][2] is None


@pytest.mark.parametrize("end", ["close", "close_after_write", "close_dns", "close_base"])
def test_closing_while_a_name_is_looked_up(base: EventBase, here: DnsBase, end: str) -> None:
    events: list[Any] = []
    bev = connecting(base, events)
    bev.connect_hostname("www.example", 9, dns=here)
    if end == "close_dns":
        here.close()
    elif end == "close_base":
        base.close()
    else:
        getattr(bev, end)()
    few_rounds(base)
    assert [event[2].code for event in events] == [DNS_ERR_SHUTDOWN] * (end == "close_dns")


def test_another_connect_takes_the_place_of_the_look_up(
    base: EventBase, here: DnsBase, run_until: RunUntil
) -> None:
    events: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        bev = connecting(base, events)
        bev.connect_hostname("missing.example", 80, dns=here)
        bev.connect(server.getsockname())
        run_until(lambda: events)
        few_rounds(base)
    assert [event[0] for event in events][:1] == [BEV_EVENT_CONNECTED]
    assert bev.dns_error is None
    bev.close()


def test_only_a_socket_and_a_dns_base_of_its_base_will_do(base: EventBase, here: DnsBase) -> None:
    a, _b = BufferEvent.pair(base)
    with pytest.raises(ValueError, match="out of range"):
        a.connect_hostname("www.example", 80, dns=here)
    with EventBase() as other, pytest.raises(ValueError, match="another EventBase"):
        BufferEvent.socket(other).connect_hostname("www.example", 80, dns=here)


# ---- answering ----


def ask(base: EventBase, port: DnsServerPort, packet: bytes) -> socket.socket:
    """Sends it, and lets the port see it; the socket to read the answer from."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(port.address)
    sock.settimeout(2)
    sock.send(packet)
    few_rounds(base)
    return sock


def labels(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def question(name: str, kind: int = EVDNS_TYPE_A, n: int = 1, flags: int = 0x100) -> bytes:
    head = struct.pack("!6H", 77, flags, n, 0, 0, 0)
    return head + labels(name) + struct.pack("!2H", kind, EVDNS_CLASS_INET)


def test_a_request_says_what_is_asked_and_by_whom(base: EventBase) -> None:
    got: list[DnsServerRequest] = []
    with DnsServerPort(base, "127.0.0.1:0", got.append) as port:
        with ask(base, port, question("www.example", EVDNS_TYPE_MX)) as sock:
            assert got[0].address == sock.getsockname()
        asked = got[0].questions[0]
        assert (asked.name, asked.type, asked.dns_class) == ("www.example", EVDNS_TYPE_MX, 1)
        assert repr(asked.type) == "EVDNS_TYPE_MX"
        assert got[0].port is port
        got.clear()


def test_records_of_every_kind_are_sent(base: EventBase) -> None:
    def reply(request: DnsServerRequest) -> None:
        request.flags |= EVDNS_FLAGS_AA
        request.add_cname("www.example", "a.example", 5)
        request.add_a("a.example", "10.0.0.9", 6)
        text = EVDNS_ADDITIONAL_SECTION, "t.example", EVDNS_TYPE_TXT, EVDNS_CLASS_INET, 7
        request.add_reply(*text, b"\x05hello")
        request.add_reply(*text, b"")
        request.respond()

    with (
        DnsServerPort(base, ("127.0.0.1", 0), reply) as port,
        ask(base, port, question("www.example")) as sock,
    ):
        packet = sock.recv(1500)
    number, flags, *counts = struct.unpack("!6H", packet[:12])
    assert (number, flags & 0x8400, counts) == (77, 0x8400, [1, 2, 0, 2])
    assert socket.inet_aton("10.0.0.9") in packet
    assert b"\x05hello" in packet
    assert packet.endswith(struct.pack("!2HIH", EVDNS_TYPE_TXT, EVDNS_CLASS_INET, 7, 0))


def test_an_answer_may_come_later(base: EventBase) -> None:
    got: list[DnsServerRequest] = []
    with (
        DnsServerPort(base, ("127.0.0.1", 0), got.append) as port,
        ask(base, port, question("www.example")) as sock,
    ):
        gc.collect()
        got[0].respond(DNS_ERR_NOTEXIST)
        assert sock.recv(1500)[3] & 15 == DNS_ERR_NOTEXIST


@pytest.mark.parametrize("how", ["respond", "drop", "close"])
def test_what_is_answered_is_closed(base: EventBase, how: str) -> None:
    got: list[DnsServerRequest] = []
    with (
        DnsServerPort(base, ("127.0.0.1", 0), got.append) as port,
        ask(base, port, question("www.example")),
    ):
        getattr(got[0], how)()
        assert got[0].closed
        got[0].drop()
        with pytest.raises(ClosedError):
            got[0].respond()
        with pytest.raises(ClosedError):
            got[0].add_a("www.example", "10.0.0.1")
        assert got[0].questions[0].name == "www.example"


def test_requests_that_nobody_answers_do_not_pile_up(base: EventBase) -> None:
    """Each of them would keep the port, and its socket, after close()."""
    n = 0

    def ignore(_request: DnsServerRequest) -> None:
        nonlocal n
        n += 1

    port = DnsServerPort(base, ("127.0.0.1", 0), ignore)
    for _ in range(100):
        ask(base, port, question("www.example")).close()
    fd = port.fd
    port.close()
    assert n == 100
    assert not is_open(fd)


def test_closing_the_port_drops_what_is_not_answered(base: EventBase) -> None:
    got: list[DnsServerRequest] = []
    port = DnsServerPort(base, ("127.0.0.1", 0), got.append)
    ask(base, port, question("www.example")).close()
    fd = port.fd
    port.close()
    assert got[0].closed
    assert not is_open(fd)
    with pytest.raises(ClosedError):
        got[0].respond()


@pytest.mark.parametrize("first", ["port", "answer"])
def test_the_port_can_be_closed_in_its_own_callback(base: EventBase, first: str) -> None:
    calls = []

    def close(request: DnsServerRequest) -> None:
        calls.append(request)
        if first == "answer":
            request.respond()
        port.close()
        if first == "port":
            with pytest.raises(ClosedError):
                request.respond()

    port = DnsServerPort(base, ("127.0.0.1", 0), close)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(5):
            sock.sendto(question("www.example"), port.address)
        few_rounds(base)
    assert len(calls) == 1


def test_the_base_can_be_closed_in_the_callback_of_a_port(base: EventBase) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        port = DnsServerPort(base, ("127.0.0.1", 0), lambda _request: base.close())
        for _ in range(5):
            sock.sendto(question("www.example"), port.address)
        few_rounds(base)
    assert port.closed


def test_an_exception_of_a_port_leaves_the_loop_and_the_next_question_waits(
    base: EventBase,
) -> None:
    calls = []

    def fail(request: DnsServerRequest) -> None:
        calls.append(request.questions[0].name)
        raise KeyError(request.questions[0].name)

    with (
        DnsServerPort(base, ("127.0.0.1", 0), fail) as port,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        for name in "abc":
            sock.sendto(question(name), port.address)
        for name in "abc":
            with pytest.raises(KeyError, match=name):
                few_rounds(base)
    assert calls == ["a", "b", "c"]


def test_an_answer_that_is_too_long_for_a_datagram_is_marked(base: EventBase) -> None:
    def reply(request: DnsServerRequest) -> None:
        request.add_a("www.example", [f"10.0.0.{i}" for i in range(40)])
        request.respond()

    with (
        DnsServerPort(base, ("127.0.0.1", 0), reply) as port,
        ask(base, port, question("www.example")) as sock,
    ):
        packet = sock.recv(1500)
    assert packet[2] & 2
    assert len(packet) <= 512


def test_records_beyond_a_packet_are_refused(base: EventBase) -> None:
    """evdns writes past the end of its memory for names that reach it."""
    got: list[DnsServerRequest] = []
    name = ".".join(["a" * 63] * 3)
    with (
        DnsServerPort(base, ("127.0.0.1", 0), got.append) as port,
        ask(base, port, question("www.example")) as sock,
    ):
        for _ in range(3):
            got[0].add_cname(name, name)
        with pytest.raises(ValueError, match="no room"):
            got[0].add_cname(name, name)
        with pytest.raises(ValueError, match="no room"):
            got[0].add_reply(EVDNS_ANSWER_SECTION, "a", EVDNS_TYPE_TXT, 1, 0, bytes(65536))
        got[0].respond()
        assert sock.recv(1500)


@pytest.mark.parametrize(
    "name", ["", "a..b", "a" * 64, "nul\0.example", ".".join(["a" * 63] * 4) + ".a", "x" * 300]
)
def test_hostile_names_are_refused_in_records(base: EventBase, name: str) -> None:
    got: list[DnsServerRequest] = []
    with (
        DnsServerPort(base, ("127.0.0.1", 0), got.append) as port,
        ask(base, port, question("www.example")),
    ):
        calls: list[Callable[[], object]] = [
            lambda: got[0].add_a(name, "10.0.0.1"),
            lambda: got[0].add_cname("a.example", name),
            lambda: got[0].add_ptr("10.0.0.1", name),
        ]
        for add in calls:
            with pytest.raises(ValueError, match="not a name"):
                add()
        got.clear()


def test_values_of_records_are_checked(base: EventBase) -> None:
    got: list[DnsServerRequest] = []
    with (
        DnsServerPort(base, ("127.0.0.1", 0), got.append) as port,
        ask(base, port, question("www.example")),
    ):
        request = got[0]
        calls: list[Callable[[], object]] = [
            lambda: request.add_a("a", "::1"),
            lambda: request.add_aaaa("a", "10.0.0.1"),
            lambda: request.add_a("a", "10.0.0.1", -1),
            lambda: request.add_reply(7, "a", 1, 1, 0, b""),
            lambda: request.add_reply(0, "a", 65536, 1, 0, b""),
            lambda: request.respond(16),
            lambda: request.respond(-1),
        ]
        for call in calls:
            with pytest.raises(ValueError):  # noqa: PT011
                call()
        with pytest.raises(TypeError):
            request.add_reply(0, "a", 1, 1, 0, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 11,
        question("www.example")[:-3],
        question("www.example", n=9),
        struct.pack("!6H", 1, 0, 0, 0, 0, 0),
        question("www.example", flags=0x8100),
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x7f" + b"a" * 20,
        # many names for the price of two bytes each: no answer has room for them
        struct.pack("!6H", 1, 0, 200, 0, 0, 0)
        + (labels(".".join(["a" * 63] * 3)) + b"\0\1\0\1")
        + b"\xc0\x0c\0\1\0\1" * 199,
        bytes(range(256)) * 5,
    ],
)
def test_packets_that_are_no_question_are_dropped(base: EventBase, packet: bytes) -> None:
    got: list[str] = []

    def reply(request: DnsServerRequest) -> None:
        got.append(request.questions[0].name)
        request.respond()

    with DnsServerPort(base, ("127.0.0.1", 0), reply) as port:
        ask(base, port, packet).close()
        assert got == []
        with ask(base, port, question("www.example")) as sock:
            assert sock.recv(1500)
        assert got == ["www.example"]


def test_a_name_of_any_bytes_comes_back_as_it_was(base: EventBase) -> None:
    def reply(request: DnsServerRequest) -> None:
        request.add_a(request.questions[0].name, "10.0.0.1")
        request.respond()

    raw = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x04\xff\xfe\x01-\0\0\1\0\1"
    with DnsServerPort(base, ("127.0.0.1", 0), reply) as port, ask(base, port, raw) as sock:
        assert sock.recv(1500)[12:22] == raw[12:22]


def test_a_socket_is_taken_over(base: EventBase) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    fd = sock.fileno()
    with DnsServerPort(base, sock, print) as port:
        assert (sock.fileno(), port.fd) == (-1, fd)
    assert not is_open(fd)


def test_a_stream_socket_or_an_address_in_use_is_refused(base: EventBase) -> None:
    with (
        socket.socket() as stream,
        pytest.raises(ValueError, match="not a UDP socket"),
    ):
        DnsServerPort(base, stream, print)
    with (
        DnsServerPort(base, ("127.0.0.1", 0), print) as port,
        pytest.raises(OSError, match="in use"),
    ):
        DnsServerPort(base, port.address, print)


def test_a_port_answers_on_ipv6(base: EventBase) -> None:
    got: list[Any] = []
    with DnsServerPort(base, "[::1]:0", answer, []) as port, DnsBase(base, QUIET) as dns:
        dns.add_nameserver(port.address[:2])
        dns.resolve_ipv4("www.example", got.append)
        few_until(dns, got)
        assert got[0].addresses


# ---- hostile answers ----


class Hostile:
    """Answers the question that comes in with packets of the test's."""

    def __init__(self, base: EventBase, packets: Callable[[bytes], list[bytes]]) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.packets = packets
        self.client: Any = None
        self.event = Event(base, self.sock, EV_READ | EV_PERSIST, self.readable)
        self.event.add()

    def readable(self, _fd: int, _what: int) -> None:
        query, self.client = self.sock.recvfrom(1500)
        for packet in self.packets(query):
            self.sock.sendto(packet, self.client)

    def close(self) -> None:
        self.event.close()
        self.sock.close()


def record(address: bytes = b"\x0a\0\0\x07", name: bytes = b"\xc0\x0c") -> bytes:
    return name + struct.pack("!2HIH", 1, 1, 60, len(address)) + address


def reply_to(query: bytes, records: bytes, n: int = 1, flags: int = 0x8180) -> bytes:
    return query[:2] + struct.pack("!5H", flags, 1, n, 0, 0) + query[12:] + records


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "wrong id": lambda q: bytes([q[0] ^ 1]) + reply_to(q, record())[1:],
    "wrong question": lambda q: reply_to(q[:12] + labels("evil.example") + q[-4:], record()),
    "a question": lambda q: reply_to(q, record(), flags=0x0100),
    "cut off": lambda q: reply_to(q, record())[:-2],
    "cut off in the header": lambda q: q[:5],
    "empty": lambda q: b"",
    "compression loop": lambda q: reply_to(q, record(name=struct.pack("!H", 0xC000 | len(q)))),
    "pointer past the end": lambda q: reply_to(q, record(name=b"\xff\xff")),
    "more records than there are": lambda q: reply_to(q, record(), n=500),
    "length past the end": lambda q: reply_to(q, b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 999)),
    "length no multiple": lambda q: reply_to(q, record(b"\x0a\0\0")),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_false_answer_is_not_believed(base: EventBase, what: str) -> None:
    """It is ignored, or it is the end of the look-up with an error, never an address."""
    hostile = Hostile(base, lambda query: [HOSTILE[what](query)])
    with DnsBase(base, QUIET) as dns:
        dns.set_option("attempts", 1)
        dns.add_nameserver(hostile.sock.getsockname())
        result = found(dns, dns.resolve_ipv4, "www.example", timeout=0.1)
        assert result.addresses == []
        assert isinstance(result.error, DnsError)
    hostile.close()


@pytest.mark.parametrize("what", ["wrong id", "a question", "empty"])
def test_the_true_answer_counts_behind_a_false_one(base: EventBase, what: str) -> None:
    hostile = Hostile(base, lambda query: [HOSTILE[what](query), reply_to(query, record())])
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver(hostile.sock.getsockname())
        assert found(dns, dns.resolve_ipv4, "www.example").addresses == ["10.0.0.7"]
    hostile.close()


def test_an_answer_from_another_address_is_not_believed(base: EventBase) -> None:
    """Only the address counts for evdns 2.1, not the port."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))

        def elsewhere(query: bytes) -> list[bytes]:
            asked.append(query)
            other.sendto(reply_to(query, record()), hostile.client)
            return []

        hostile = Hostile(base, elsewhere)
        with DnsBase(base, QUIET) as dns:
            dns.add_nameserver(hostile.sock.getsockname())
            result = found(dns, dns.resolve_ipv4, "www.example", timeout=0.1)
        hostile.close()
    assert asked
    assert result.error.code == DNS_ERR_TIMEOUT


def test_an_answer_that_is_marked_as_cut_off_is_an_error(base: EventBase) -> None:
    hostile = Hostile(base, lambda query: [reply_to(query, record(), flags=0x8380)])
    with DnsBase(base, QUIET) as dns:
        dns.set_option("attempts", 1)
        dns.set_option("timeout", 0.05)
        dns.add_nameserver(hostile.sock.getsockname())
        result = found(dns, dns.resolve_ipv4, "www.example", timeout=2)
        assert result.error.code in (DNS_ERR_TRUNCATED, DNS_ERR_TIMEOUT)
    hostile.close()


def test_more_addresses_than_evdns_keeps_do_no_harm(base: EventBase) -> None:
    hostile = Hostile(base, lambda query: [reply_to(query, record() * 60, n=60)])
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver(hostile.sock.getsockname())
        result = found(dns, dns.resolve_ipv4, "www.example")
        assert result.addresses == ["10.0.0.7"] * 32
    hostile.close()


# ---- threads and fork ----


def test_another_thread_gets_an_error_while_the_loop_runs(base: EventBase, dns: DnsBase) -> None:
    raised: list[BaseException] = []

    def elsewhere() -> None:
        for call in (
            lambda: dns.resolve_ipv4("www.example", print),
            lambda: dns.add_nameserver("127.0.0.1"),
            dns.close,
        ):
            try:
                call()
            except RuntimeError as error:
                raised.append(error)
        base.loopbreak()

    def start() -> None:
        thread.start()

    thread = threading.Thread(target=elsewhere)
    base.once(-1, lib.EV_TIMEOUT, lambda *_: start(), timeout=0)
    base.loop(lib.EVLOOP_NO_EXIT_ON_EMPTY)
    thread.join()
    assert len(raised) == 3


def test_a_bufferevent_can_be_closed_elsewhere_while_its_name_is_looked_up(
    base: EventBase, run_until: RunUntil
) -> None:
    bevs: list[BufferEvent] = []
    threads: list[threading.Thread] = []

    def close_elsewhere(_request: DnsServerRequest) -> None:
        threads.append(threading.Thread(target=bevs[0].close))
        threads[0].start()

    with (
        DnsServerPort(base, ("127.0.0.1", 0), close_elsewhere) as port,
        DnsBase(base, QUIET) as dns,
    ):
        dns.add_nameserver(port.address)
        bevs.append(BufferEvent.socket(base, options=BEV_OPT_THREADSAFE))
        bevs[0].connect_hostname("www.example", 9, socket.AF_INET, dns=dns)
        run_until(lambda: bevs[0].closed and not threads[0].is_alive())
        few_rounds(base)
        assert not dns._requests


def test_a_request_may_be_dropped_by_another_thread(base: EventBase, run_until: RunUntil) -> None:
    got: list[DnsServerRequest] = []
    threads: list[threading.Thread] = []

    def drop_elsewhere(request: DnsServerRequest) -> None:
        got.append(request)
        threads.append(threading.Thread(target=got.clear))
        threads[0].start()

    with DnsServerPort(base, ("127.0.0.1", 0), drop_elsewhere) as port:
        ask(base, port, question("www.example")).close()
        run_until(lambda: not threads[0].is_alive())
        few_rounds(base)
        fd = port.fd
    assert not is_open(fd)


def test_in_a_child_it_is_an_error_and_reinit_closes_it(dns: DnsBase) -> None:
    got: list[Any] = []
    dns.resolve_ipv4("silent.example", got.append)
    few_rounds(dns.base)

    def child() -> None:
        with pytest.raises(RuntimeError, match="reinit"):
            dns.resolve_ipv4("www.example", got.append)
        dns.base.reinit()
        assert dns.closed
        few_rounds(dns.base)
        assert got == []
        with DnsBase(dns.base, QUIET) as new:
            new.add_nameserver("127.0.0.1:9")
            assert found(new, new.resolve_ipv4, "www.example", timeout=0.01).error
        dns.base.close()

    in_child(child)
    assert found(dns, dns.resolve_ipv4, "www.example").addresses


# ---- real peers ----


@pytest.mark.skipif(not shutil.which("dig"), reason="needs dig (bind9-dnsutils)")
def test_dig_reads_our_answers(base: EventBase, server: DnsServerPort, run_until: RunUntil) -> None:
    host, port = server.address
    command = ["dig", f"@{host}", "-p", str(port), "+short", "+tries=1", "+time=5", "+noedns"]
    done: list[str] = []

    def run(*more: str) -> None:
        out = subprocess.run([*command, *more], capture_output=True, timeout=20, check=False)
        done.append(out.stdout.decode())

    for more in (("www.example", "A"), ("www.example", "AAAA"), ("-x", "10.0.0.1")):
        thread = threading.Thread(target=run, args=more)
        thread.start()
        n = len(done)
        poll = Timer(base, lambda: None, persist=True)
        poll.add(0.02)
        run_until(lambda n=n: len(done) > n, 20)
        poll.close()
        thread.join()
    assert done == ["10.0.0.1\n10.0.0.2\n", "fe80::1\n", "host.example.\n"]


def free_port() -> int:
    """For UDP and TCP."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        with contextlib.suppress(OSError):
            udp.bind(tcp.getsockname())
        return int(tcp.getsockname()[1])


def answers(process: subprocess.Popen[bytes], address: tuple[str, int]) -> bool:
    """Waits until it does, or has ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        for _ in range(200):
            sock.sendto(question("real.example"), address)
            with contextlib.suppress(TimeoutError):
                return bool(sock.recv(1500))
            if process.poll() is not None:
                break
    return False


@pytest.fixture
def dnsmasq(tmp_path: Path) -> Iterator[tuple[str, int]]:
    program = shutil.which("dnsmasq") or shutil.which("dnsmasq", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("needs dnsmasq")
    options = [
        "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=",
        "--listen-address=127.0.0.1", "--bind-interfaces", f"--pid-file={tmp_path / 'pid'}",
        "--address=/real.example/10.5.5.5", "--host-record=six.example,10.6.6.6,fd00::6",
        "--cname=other.example,six.example", "--local=/missing.example/",
    ]  # fmt: skip
    for _ in range(5):  # somebody else may take the port in between
        address = "127.0.0.1", free_port()
        command = [program, *options, f"--port={address[1]}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=PLAIN_ENV)
        try:
            if answers(process, address):
                yield address
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError("dnsmasq does not start")


def test_look_ups_at_a_real_nameserver(base: EventBase, dnsmasq: tuple[str, int]) -> None:
    with DnsBase(base, QUIET) as dns:
        dns.add_nameserver(dnsmasq)
        assert found(dns, dns.resolve_ipv4, "real.example").addresses == ["10.5.5.5"]
        assert found(dns, dns.resolve_ipv6, "other.example").addresses == ["fd00::6"]
        assert found(dns, dns.resolve_reverse, "10.6.6.6").names == ["six.example"]
        assert found(dns, dns.resolve_ipv4, "missing.example").error.code == DNS_ERR_NOTEXIST
        infos = found(dns, dns.getaddrinfo, "six.example", 80, type=socket.SOCK_STREAM).infos
        assert [info[4][0] for info in infos] == ["10.6.6.6", "fd00::6"]


# ---- an answer to evdns's probe waits in the loop ----

PROBED = """
import socket, sys
from pylibevent import *

def look(fd, what):
    data, peer = server.recvfrom(600)
    if b"google" not in data.lower():
        return  # evdns thinks that the nameserver is down, and probes it
    server.sendto(data[:2] + bytes([0x81, 0x80 + int(sys.argv[2])]) + data[4:], peer)
    Event(base, wake, EV_READ, act).add()
    waker.send(b"x")  # both are read in the next round: act comes between evdns's callbacks

def act(fd, what):
    acted.append(True)
    {"clear": dns.clear_nameservers, "close": dns.close, "base": base.close}[sys.argv[1]]()

acted = []
wake, waker = socket.socketpair()
base = EventBase()
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
dns = DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE)
dns.add_nameserver(server.getsockname())
for option in ("timeout", "initial-probe-timeout"):
    dns.set_option(option, 0.01)
for option in ("attempts", "max-timeouts"):
    dns.set_option(option, 1)
dns.resolve_ipv4("www.example", lambda result: None, timeout=5)
watch = Event(base, server, EV_READ | EV_PERSIST, look)
watch.add()
Timer(base, base.loopbreak).add(10)
while not acted:
    base.loop(EVLOOP_ONCE)
watch.close()
for _ in range(5):
    if not base.closed:
        base.loop(EVLOOP_NONBLOCK)
if sys.argv[1] == "clear":
    assert dns.count_nameservers() == 0
    dns.add_nameserver(server.getsockname())
    assert dns.nameservers == [server.getsockname()]
base.close()
"""


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("how", ["clear", "close", "base"])
def test_a_nameserver_that_has_answered_a_probe_can_go(how: str, code: int) -> None:
    tunables = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=165"  # what is freed is seen to be
    run_script(PROBED, how, str(code), GLIBC_TUNABLES=tunables, PYTHONMALLOC="pymalloc_debug")
