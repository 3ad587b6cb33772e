"""Looks names up, or answers for them. Ports dns-example.c.

    python dns_example.py [-x | -g] [-s NAMESERVER] [-c RESOLV_CONF] NAME...
    python dns_example.py -T [--port 10053]

With -x the names are addresses, whose names are looked up; -g looks up as getaddrinfo does. With
-T it is a nameserver that says 192.168.11.11: try `dig @127.0.0.1 -p 10053 any.name`.
"""

from __future__ import annotations

import argparse
import sys

from pylibevent import (
    DNS_OPTION_NAMESERVERS,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVDNS_TYPE_A,
    EVDNS_TYPE_PTR,
    AddrInfoResult,
    DnsBase,
    DnsResult,
    DnsServerPort,
    DnsServerRequest,
    EventBase,
)


def on_result(result: DnsResult, name: str) -> None:
    for found in result.addresses + result.names:
        print(f"{name}: {found}")
    if result.error:
        print(f"{name}: no answer ({result.error.strerror})")


def on_addresses(result: AddrInfoResult, name: str) -> None:
    for i, (_family, _type, _protocol, _canonical, address) in enumerate(result.infos):
        print(f"[{i}] {name}: {address[0]}")
    if result.error:
        print(f"{name}: {result.error.strerror}")


def on_question(request: DnsServerRequest) -> None:
    for question in request.questions:
        if question.type == EVDNS_TYPE_A:
            request.add_a(question.name, "192.168.11.11", 10)
        elif question.type == EVDNS_TYPE_PTR:
            request.add_ptr(question.name, "foo.bar.example.com", 10)
        print(f"asked for {question.name} ({question.type!r})", flush=True)
    request.respond()


def serve(base: EventBase, port: int) -> None:
    host, number = DnsServerPort(base, ("127.0.0.1", port), on_question).address
    print(f"listening on {host}:{number}", file=sys.stderr, flush=True)
    base.dispatch()


def look_up(base: EventBase, arguments: argparse.Namespace) -> None:
    dns = DnsBase(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE)  # so that the loop ends
    if arguments.nameserver:
        dns.add_nameserver(arguments.nameserver)
    else:
        dns.resolv_conf_parse(DNS_OPTION_NAMESERVERS, arguments.resolv_conf)
    for name in arguments.names:
        if arguments.reverse:
            dns.resolve_reverse(name, on_result, name, timeout=arguments.timeout)
        elif arguments.getaddrinfo:
            dns.getaddrinfo(name, None, on_addresses, name, timeout=arguments.timeout)
        else:
            dns.resolve_ipv4(name, on_result, name, timeout=arguments.timeout)
    base.dispatch()


def main() -> int:
    parser = argparse.ArgumentParser(description="Looks names up, or answers for them.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-x", "--reverse", action="store_true", help="the names are addresses")
    parser.add_argument("-g", "--getaddrinfo", action="store_true")
    parser.add_argument("-s", "--nameserver", help="ip or ip:port, instead of a file's")
    parser.add_argument("-c", "--resolv-conf", default="/etc/resolv.conf")
    parser.add_argument("-T", "--server", action="store_true", help="answer for every name")
    parser.add_argument("--port", type=int, default=10053, help="0: any that is free")
    parser.add_argument("--timeout", type=float, default=30)
    arguments = parser.parse_args()
    with EventBase() as base:
        try:
            if arguments.server:
                serve(base, arguments.port)
            else:
                look_up(base, arguments)
        except (OSError, ValueError) as error:
            print(f"dns_example: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
