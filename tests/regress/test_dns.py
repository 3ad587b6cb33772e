"""What libevent's own tests ask of evdns: nameservers, limits, and the end in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from common import few_rounds
from conftest import RunUntil

from pylibevent import (
    DNS_ERR_CANCEL,
    DNS_ERR_NOTEXIST,
    DNS_ERR_REFUSED,
    DNS_ERR_SHUTDOWN,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    DnsBase,
    DnsResult,
    DnsServerPort,
    DnsServerRequest,
    EventBase,
)

Answer = Callable[[DnsServerRequest], object]


def good(request: DnsServerRequest) -> None:
    request.add_a(request.questions[0].name, "10.0.0.1", 60)
    request.respond()


def asking(base: EventBase, *answers: Answer) -> DnsBase:
    """A DnsBase with a nameserver for each of these, in a hurry."""
    dns = DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE)
    dns.set_option("timeout", 0.05)
    for answer in answers:
        dns.add_nameserver(DnsServerPort(base, ("127.0.0.1", 0), answer).address)
    return dns


def test_a_question_that_one_nameserver_refuses_goes_to_another(
    base: EventBase, run_until: RunUntil
) -> None:
    dns = asking(base, lambda request: request.respond(DNS_ERR_REFUSED), good)
    got: list[DnsResult] = []
    for i in range(8):
        dns.resolve_ipv4(f"n{i}.example", got.append)
    run_until(lambda: len(got) == 8)
    assert [result.addresses for result in got] == [["10.0.0.1"]] * 8


def test_a_question_that_was_lost_is_asked_again(base: EventBase, run_until: RunUntil) -> None:
    asked: list[str] = []

    def third_time(request: DnsServerRequest) -> None:
        asked.append(request.questions[0].name.lower())
        if len(asked) == 3:
            good(request)

    got: list[DnsResult] = []
    asking(base, third_time).resolve_ipv4("a.example", got.append)
    run_until(lambda: got)
    assert got[0].addresses == ["10.0.0.1"]
    assert asked == ["a.example"] * 3


def test_no_more_than_max_inflight_are_asked_at_once(base: EventBase, run_until: RunUntil) -> None:
    waiting: list[DnsServerRequest] = []
    dns = asking(base, waiting.append)
    dns.set_option("max-inflight", 3)
    dns.set_option("timeout", 60)
    got: list[DnsResult] = []
    for i in range(10):
        dns.resolve_ipv4(f"n{i}.example", got.append)
    most = 0
    while len(got) < 10:
        run_until(lambda: waiting)
        few_rounds(base)
        most = max(most, len(waiting))
        good(waiting.pop(0))
        few_rounds(base)
    assert most == 3
    assert all(result.addresses for result in got)


def test_a_look_up_that_waits_for_its_turn_can_be_cancelled(
    base: EventBase, run_until: RunUntil
) -> None:
    dns = asking(base, good)
    dns.set_option("max-inflight", 1)
    got: list[Any] = []
    dns.resolve_ipv4("a.example", got.append)
    dns.resolve_ipv4("b.example", got.append).cancel()
    dns.resolve_ipv4("c.example", got.append)
    run_until(lambda: len(got) == 3)
    codes = [result.error.code if result.error else None for result in got]
    assert sorted(codes, key=str) == [DNS_ERR_CANCEL, None, None]


def test_a_search_can_be_cancelled_between_two_domains(
    base: EventBase, run_until: RunUntil
) -> None:
    def missing(request: DnsServerRequest) -> None:
        asked.append(request.questions[0].name.lower())
        request.respond(DNS_ERR_NOTEXIST)
        if len(asked) == 2:
            look_up.cancel()

    asked: list[str] = []
    got: list[Any] = []
    dns = asking(base, missing)
    for i in range(5):
        dns.search_add(f"d{i}.example")
    look_up = dns.resolve_ipv4("host", got.append)
    run_until(lambda: got)
    few_rounds(base)
    assert got[0].error.code == DNS_ERR_CANCEL
    assert len(asked) == 2


def test_search_domains_may_change_while_a_search_is_under_way(
    base: EventBase, run_until: RunUntil
) -> None:
    def missing(request: DnsServerRequest) -> None:
        asked.append(request.questions[0].name.lower())
        dns.search_clear()
        dns.search_add("other.example")
        request.respond(DNS_ERR_NOTEXIST)

    asked: list[str] = []
    got: list[Any] = []
    dns = asking(base, missing)
    dns.search_add("a.example")
    dns.search_add("b.example")
    dns.resolve_ipv4("host", got.append)
    run_until(lambda: got)
    assert set(asked) == {"host.a.example", "host.b.example", "host"}


@pytest.mark.parametrize("pending", [1, 100])
def test_the_end_in_the_middle_of_an_answer(
    base: EventBase, run_until: RunUntil, pending: int
) -> None:
    """Closed by the nameserver's side, while answers to some of the look-ups are on their way."""
    got: list[Any] = []
    calls = 0

    def close_at_the_third(request: DnsServerRequest) -> None:
        nonlocal calls
        calls += 1
        good(request)
        if calls == 3:
            dns.close()

    dns = asking(base, close_at_the_third)
    for i in range(3 + pending):
        dns.resolve_ipv4(f"n{i}.example", got.append)
    run_until(lambda: len(got) == 3 + pending)
    few_rounds(base)
    assert len(got) == 3 + pending
    assert {result.error.code for result in got if result.error} <= {DNS_ERR_SHUTDOWN}
