"""What a user's program may write: mypy and pyright, both strict, find nothing to say.

One function for each public class; tests/test_typing.py runs them too, so that the types are those
of what there is when the program runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from datetime import timedelta
from functools import partial
from selectors import SelectorKey
from typing import TYPE_CHECKING, Any

import pylibevent
from pylibevent import (
    BEV_ERROR,
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_FINISHED,
    BEV_NORMAL,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_TRIG_DEFER_CALLBACKS,
    DNS_OPTION_SEARCH,
    DNS_QUERY_NO_SEARCH,
    EV_MONOT_PRECISE,
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVBUF_FS_DISABLE_SENDFILE,
    EVBUFFER_CB_ENABLED,
    EVBUFFER_EOL_CRLF,
    EVBUFFER_EOL_LF,
    EVBUFFER_FLAG_DRAINS_TO_FD,
    EVBUFFER_PTR_ADD,
    EVDNS_BASE_DISABLE_WHEN_INACTIVE,
    EVDNS_TYPE_TXT,
    EVENT_BASE_COUNT_ADDED,
    EVENT_BASE_FLAG_PRECISE_TIMER,
    EVHTTP_URI_NONCONFORMANT,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    LEV_OPT_CLOSE_ON_FREE,
    LEV_OPT_REUSEABLE,
    AddrInfoResult,
    BaseFlags,
    BufferCallbackFlags,
    BufferEvent,
    BufferEventFlags,
    BufferEventOptions,
    BufferFlags,
    BufferPosition,
    CallbackEntry,
    ClosedError,
    CountFlags,
    DnsBase,
    DnsBaseFlags,
    DnsError,
    DnsErrorCode,
    DnsOptions,
    DnsQueryFlags,
    DnsQuestion,
    DnsRequest,
    DnsResult,
    DnsSection,
    DnsServerFlags,
    DnsServerPort,
    DnsServerRequest,
    DnsType,
    EolStyle,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    EventFlags,
    EventInfo,
    FileSegment,
    FileSegmentFlags,
    FilterResult,
    FlushMode,
    HttpBoundSocket,
    HttpConnection,
    HttpConnectionFlags,
    HttpError,
    HttpHeaders,
    HttpMethod,
    HttpRequest,
    HttpServer,
    HttpServerFlags,
    HttpServerRequest,
    HttpStatus,
    HttpUri,
    HttpUriFlags,
    LibeventError,
    LineTooLong,
    Listener,
    ListenerOptions,
    LoopFlags,
    MethodFeatures,
    MonotonicFlags,
    PtrHow,
    RateLimitGroup,
    Signal,
    Timer,
    TLSConnection,
    TLSContext,
    TLSSession,
    TokenBucketConfig,
    TriggerOptions,
    aio,
    decode_uri,
    encode_uri,
    ffi,
    htmlescape,
    lib,
    parse_query,
    tag,
    uridecode,
    uriencode,
    util,
    wsgi,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

    from pylibevent._libevent import CData


def use_event_config() -> None:
    with EventConfig() as config:
        config.set_flag(EVENT_BASE_FLAG_PRECISE_TIMER)
        config.require_features(MethodFeatures.EV_FEATURE_O1)
        config.avoid_method("select")
        EventBase(config).close()


def use_event_base() -> None:
    def handler(error: Exception, source: object) -> None:
        print(error, source)

    def on_timeout(fd: int, what: EventFlags, name: str) -> None:
        print(fd, what, name)

    with EventBase() as base:
        base.exception_handler = handler
        base.exception_handler = None
        base.once(-1, EV_TIMEOUT, on_timeout, "name", timeout=timedelta(milliseconds=1))
        nothing_left: int = base.dispatch()
        base.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK)
        base.loopexit(0.5)
        method: str = base.method
        now: float = base.gettimeofday_cached()
        added: int = base.num_events(EVENT_BASE_COUNT_ADDED)
        same: EventBase = EventBase.from_ptr(base.ptr)
        assert same is base
        infos: list[EventInfo] = []
        base.foreach_event(infos.append)
        base.foreach_event(lambda info, fd: info.fd == fd, 3)
        running: Event | None = base.running_event
        print(infos, running)
        print(nothing_left, method, now, added, base.features, base.got_exit)


def use_event() -> None:
    class Reader:
        def on_read(self, fd: int, what: EventFlags, most: int) -> bytes:
            return os.read(fd, most) if what & EV_READ else b""

    a, b = socket.socketpair()
    with a, b, EventBase() as base:
        event = Event(base, a, EV_READ | EV_PERSIST, Reader().on_read, 100)
        event.add()
        event.add(timeout=1)
        event.priority = 0
        pending: EventFlags = event.pending(EV_READ | EV_TIMEOUT)
        left: float | None = event.expires_in
        print(pending, left, event.fd, event.events)
        b.send(b"x")
        base.loop(EVLOOP_ONCE)
        event.delete()
        Event(base, -1, 0, lambda fd, what: print(what, fd)).active(EV_READ)
        base.dispatch()


def use_timer_and_signal() -> None:
    def on_signal(signum: int, timer: Timer) -> None:
        print(signum)
        timer.close()

    with EventBase() as base:
        times: list[float] = []
        Timer(base, times.append, 1.5).add(0)
        Timer(base, print).add(0)
        timer = Timer(base, lambda: os.kill(os.getpid(), signal.SIGUSR1), persist=True)
        timer.add(0.01)
        on_usr1 = Signal(base, signal.SIGUSR1, on_signal, timer)
        on_usr1.add()
        base.loop(EVLOOP_ONCE)
        number: int = on_usr1.signum
        print(number, times)


def use_buffer() -> None:
    def on_change(buffer: EvBuffer, orig_size: int, n_added: int, n_deleted: int) -> None:
        print(buffer, orig_size, n_added, n_deleted)

    with EvBuffer(b"one\r\n") as buffer, EvBuffer() as other:
        entry: CallbackEntry = buffer.add_cb(on_change)
        buffer.add(bytearray(b"two\n"))
        buffer.prepend(memoryview(b"zero\n"))
        buffer.add_printf("%d\n", 3)
        entry.remove()
        line: bytes | None = buffer.readln(EVBUFFER_EOL_CRLF, max_length=100)
        lines: list[bytes] = buffer.readlines(EVBUFFER_EOL_LF)
        other.add_reference(b"reference")
        moved: int = other.remove_buffer(buffer, 3)
        buffer.add_buffer(other)
        room = bytearray(2)
        filled: int = buffer.remove_into(room)
        with buffer.pullup() as view:
            print(len(view), [len(piece) for piece in buffer.peek()])
        print(line, lines, moved, filled, len(buffer), bytes(buffer), buffer == b"", b"x" in buffer)


def use_space_locks_and_deferred_callbacks() -> None:
    with EventBase() as base, EvBuffer() as buffer:
        added: int = buffer.add_iovec([b"one", bytearray(b"two"), memoryview(b"three")])
        views: list[memoryview] = buffer.reserve_space(100, n_vecs=1)
        views[0][:4] = b"four"
        buffer.commit_space(4)
        other = EvBuffer()
        other.add_buffer_reference(buffer)
        buffer.enable_locking()
        with buffer.lock() as locked:
            locked.add(b"!")
        entry = buffer.add_cb(lambda buffer, size, added, deleted: print(added))
        entry.clear_flags(EVBUFFER_CB_ENABLED)
        flags: BufferCallbackFlags = EVBUFFER_CB_ENABLED
        buffer.defer_callbacks(base)
        buffer.set_flags(EVBUFFER_FLAG_DRAINS_TO_FD)
        drains: BufferFlags = EVBUFFER_FLAG_DRAINS_TO_FD
        same = EvBuffer.from_ptr(buffer.ptr)
        print(added, len(other), entry.enabled, flags, drains, len(same))
        same.close()


def use_file_segment() -> None:
    flags: FileSegmentFlags = EVBUF_FS_DISABLE_SENDFILE
    with (
        open(__file__, "rb") as file,
        FileSegment(file, 0, 100, flags) as segment,
        EvBuffer() as buffer,
    ):
        segment.add_cleanup_cb(print, "the segment has gone")
        buffer.add_file_segment(segment, offset=10, length=20)
        buffer.add_file(file, 0, 10)
        print(len(buffer), segment.closed)


def use_buffer_position() -> None:
    buffer = EvBuffer(b"key: value\n")
    colon: BufferPosition | None = buffer.search(b":")
    assert colon is not None
    after: BufferPosition = buffer.ptr_set(1, EVBUFFER_PTR_ADD, colon)
    end = buffer.search_eol(after)
    assert end is not None
    assert colon < after < end
    value: bytes = buffer.copyout_from(after, int(end) - after.pos)
    print(value, end.length)


def use_bufferevent() -> None:
    def on_read(bev: BufferEvent, name: str) -> None:
        bev.write(bev.read())
        print(name, bev.input.readln())

    def on_write(bev: BufferEvent, name: str) -> None:
        print(name, bev.enabled)

    def on_event(bev: BufferEvent, what: BufferEventFlags, name: str) -> None:
        if what & BEV_EVENT_EOF:
            bev.close_after_write()
        elif not what & BEV_EVENT_CONNECTED:
            print(name, what, bev.error, bev.dns_error)

    a, b = socket.socketpair()
    with b, EventBase() as base:
        bev = BufferEvent.socket(base, a, BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS)
        bev.setcb(on_read, on_write, on_event, "name")
        bev.setcb(read=lambda bev: bev.write(bev.read()), event=None)
        bev.setcb(None, None, lambda bev, what: print(bev.fd, what))
        bev.setcb()
        bev.enable(EV_READ | EV_WRITE)
        bev.setwatermark(EV_READ, low=1, high=65536)
        low, high = bev.getwatermark(EV_READ)
        bev.set_timeouts(read=10, write=timedelta(seconds=10))
        bev.write_buffer(EvBuffer(b"x"))
        bev.output.add(b"y")
        print(low + high, bev.fd, bev.priority)
        bev.close()


def use_bufferevent_pair() -> None:
    with EventBase() as base:
        one, other = BufferEvent.pair(base)
        one.setcb(lambda bev: print(bev.read()))
        one.enable(EV_READ)
        other.write(b"x")
        other.flush(EV_WRITE, BEV_NORMAL)
        base.loop(EVLOOP_NONBLOCK)
        partner: BufferEvent | None = one.partner
        print(partner)


def use_bufferevent_filter() -> None:
    def upper(source: EvBuffer, to: EvBuffer, limit: int, mode: FlushMode) -> FilterResult:
        to.add(source.remove(limit).upper())
        return BEV_ERROR if mode == BEV_FINISHED else BEV_OK

    with EventBase() as base:
        one, other = BufferEvent.pair(base)
        filtered = BufferEvent.filter(one, upper, None, BEV_OPT_CLOSE_ON_FREE)
        filtered.setcb(lambda bev: print(bev.read()))
        filtered.enable(EV_READ)
        other.write(b"x")
        base.loop(EVLOOP_NONBLOCK)
        underlying: BufferEvent | None = filtered.underlying
        print(underlying)


def use_rate_limits() -> None:
    config = TokenBucketConfig(1000, 2000, write_rate=500, write_burst=500, tick=0.1)
    rate: int | None = config.read_rate
    with EventBase() as base, RateLimitGroup(base, config) as group:
        bev = BufferEvent.socket(base)
        bev.set_rate_limit(config)
        bev.add_to_rate_limit_group(group)
        left: int = bev.read_limit + bev.max_to_write + group.write_limit
        read, written = group.get_totals()
        bev.max_single_read = bev.max_single_write + 1
        bev.decrement_read_limit(10)
        group.set_min_share(64)
        bev.remove_from_rate_limit_group()
        bev.set_rate_limit(None)
        limit: TokenBucketConfig | None = bev.token_bucket_cfg
        print(rate, left, read + written, limit)


def use_callbacks_of_every_kind() -> None:
    def whatever(*args: object, **options: str) -> None:
        print(args, options)

    def optional(bev: BufferEvent, number: int = 1) -> None:
        print(bev, number)

    def swapped(number: int, bev: BufferEvent) -> None:
        print(bev, number)

    class Callback:
        def __call__(self, bev: BufferEvent) -> None:
            print(bev)

    with EventBase() as base:
        bev = BufferEvent.socket(base)
        bev.setcb(whatever, print, whatever, "a", "b")
        bev.setcb(optional, optional)
        bev.setcb(optional, None, None, 3)
        bev.setcb(partial(swapped, 3), Callback(), partial(whatever, key="value"))
        bev.setcb(Callback(), lambda bev: bev.close(), lambda bev, what: print(bev.fd, what))
        bev.close()


def use_a_class_derived_from_bufferevent() -> None:
    class Connection(BufferEvent):
        __slots__ = ()

        def on_read(self) -> None:
            self.write(self.read())

    with EventBase() as base:
        connection = Connection.socket(base)
        connection.setcb(Connection.on_read)
        connection.close()


def use_listener() -> None:
    class Server:
        def __init__(self) -> None:
            self.seen: list[str] = []

    def on_accept(
        listener: Listener, fd: int, address: tuple[str, int], server: Server, limit: int
    ) -> None:
        host, port = address
        server.seen.append(f"{host} {port} {limit}")
        BufferEvent.socket(listener.base, fd).close()
        listener.base.loopbreak()

    def on_error(listener: Listener, error: OSError) -> None:
        print(listener, error.errno)

    with EventBase() as base:
        server = Server()
        flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE
        listener = Listener.bind(base, on_accept, ("127.0.0.1", 0), server, 3, flags=flags)
        listener.set_error_cb(on_error)
        with socket.create_connection(listener.address):
            base.dispatch()
        listener.set_cb(lambda listener, fd, address: os.close(fd))
        print(server.seen, listener.fd)


def use_errors() -> None:
    buffer = EvBuffer(b"a line that is too long")
    try:
        buffer.readln(max_length=3)
    except LineTooLong as error:
        print(error)
    buffer.close()
    try:
        buffer.add(b"x")
    except ClosedError as error:
        errors: list[LibeventError | ValueError] = [error]
        print(errors)


def use_constants() -> None:
    what: EventFlags = EV_READ | EV_WRITE
    options: BufferEventOptions = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS
    flags: tuple[BaseFlags, CountFlags, LoopFlags, ListenerOptions, TriggerOptions] = (
        EVENT_BASE_FLAG_PRECISE_TIMER,
        EVENT_BASE_COUNT_ADDED,
        EVLOOP_ONCE,
        LEV_OPT_REUSEABLE,
        BEV_TRIG_DEFER_CALLBACKS,
    )
    constants: tuple[EolStyle, PtrHow, FlushMode] = (EVBUFFER_EOL_LF, EVBUFFER_PTR_ADD, BEV_NORMAL)
    number: int = EVBUFFER_EOL_LF
    print(what, options, flags, constants, number, EV_READ in what, EventFlags(3).name)


def use_util() -> None:
    flags: MonotonicFlags = EV_MONOT_PRECISE
    timer = util.MonotonicTimer(flags)
    now: float = timer.gettime() + util.gettimeofday() + util.gettime_monotonic()
    number, used = util.strtoll(b"12x")
    a, b = util.socketpair()
    util.make_socket_nonblocking(a)
    util.closesocket(a)
    util.closesocket(b)
    family, address = util.parse_sockaddr_port("127.0.0.1:80")
    random: bytes = util.secure_rng_get_bytes(8)
    order: int = util.ascii_strcasecmp("a", b"B") + util.sockaddr_cmp(address, address)
    packed: bytes = util.inet_pton(family, "127.0.0.1")
    text: str = util.inet_ntop(family, packed) + util.date_rfc1123()
    print(now, number + used, random, order, text)


def use_tag() -> None:
    buffer = EvBuffer()
    tag.marshal(buffer, 1, b"bytes")
    tag.marshal_string(buffer, 2, "text")
    tag.marshal_int(buffer, 3, 4)
    tag.marshal_timeval(buffer, 4, timedelta(seconds=1))
    number: int = tag.peek(buffer) + tag.payload_length(buffer)
    data: bytes = tag.unmarshal_fixed(buffer, 1, 5)
    text: str = tag.unmarshal_string(buffer, 2)
    integer: int = tag.unmarshal_int(buffer, 3)
    seconds: float = tag.unmarshal_timeval(buffer, 4)
    print(number, data, text, integer, seconds)
    try:
        tag.consume(buffer)
    except tag.IncompleteTag as error:
        print(error)


def use_uris() -> None:
    uri = HttpUri("http://h/p?a=1", EVHTTP_URI_NONCONFORMANT)
    parts: list[str | None] = [uri.scheme, uri.userinfo, uri.host, uri.query, uri.fragment]
    path: str = uri.path
    port: int | None = uri.port
    flags: HttpUriFlags = uri.flags
    uri.port, uri.userinfo, uri.path = 80, None, path
    pairs: list[tuple[str, str]] = parse_query(uri) + parse_query(b"a=1")
    decoded: bytes = uridecode(uriencode(b"a b"), plus=True) + decode_uri(encode_uri("a"))
    print(parts, port, flags, pairs, decoded, htmlescape(str(uri)))


def use_tls() -> None:
    try:
        context = TLSContext.client()
    except ImportError:  # built without OpenSSL
        return
    context.set_alpn_protocols(["h2"])
    with EventBase() as base:
        bev = BufferEvent.openssl_socket(base, None, context, server_hostname="localhost")
        tls: TLSConnection | None = bev.tls
        if tls is not None:
            session: TLSSession | None = tls.session
            text: str = tls.version
            print(text, tls.cipher, session)
        error: Exception | None = bev.tls_error
        bev.allow_dirty_shutdown = error is None
        bev.close()


def use_dns() -> None:
    found: list[DnsResult] = []
    infos: list[AddrInfoResult] = []

    def on_found(result: DnsResult, what: str) -> None:
        error: DnsError | None = result.error
        code: DnsErrorCode | None = error.code if error else None
        print(what, result.addresses, result.names, result.ttl, code)
        found.append(result)

    def on_infos(result: AddrInfoResult) -> None:
        addresses = [address for _family, _type, _proto, _name, address in result.infos]
        print(addresses, result.error)
        infos.append(result)

    def on_question(request: DnsServerRequest, ttl: int) -> None:
        question: DnsQuestion = request.questions[0]
        if question.type == DnsType.EVDNS_TYPE_A:
            request.add_a(question.name, ["10.0.0.1"], ttl)
            request.add_reply(
                DnsSection.EVDNS_ADDITIONAL_SECTION, "a.example", EVDNS_TYPE_TXT, 1, ttl, b"\1a"
            )
        request.flags |= DnsServerFlags.EVDNS_FLAGS_AA
        request.respond()

    flags: DnsBaseFlags = EVDNS_BASE_DISABLE_WHEN_INACTIVE
    options: tuple[DnsOptions, DnsQueryFlags] = (DNS_OPTION_SEARCH, DNS_QUERY_NO_SEARCH)
    with EventBase() as base:
        port = DnsServerPort(base, ("127.0.0.1", 0), on_question, 60)
        dns = DnsBase(base, flags)
        dns.add_nameserver(port.address)
        servers: list[tuple[str, int]] = dns.nameservers
        request: DnsRequest = dns.resolve_ipv4("a.example", on_found, "a", flags=options[1])
        dns.getaddrinfo("a.example", 80, on_infos, timeout=5)
        while not request.done or not infos:
            base.loop(EVLOOP_ONCE)
        print(servers, found)


def use_wsgi() -> None:
    def app(environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        start("200 OK", [])
        return [b"body"]

    with EventBase() as base:
        server = wsgi.WSGIServer(base, app)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            assert server.accept(sock)[0] == "127.0.0.1"
        assert server.http.unanswered == 0
        server.stop()
        server.run(graceful_timeout=1)
    assert callable(wsgi.serve)


def use_aio() -> None:
    async def answer(reader: aio.StreamReader, writer: aio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, aio.EventLoop)
        base: EventBase = loop.base
        server: aio.Server = await aio.start_server(loop, answer, ("127.0.0.1", 0))
        async with server:
            reader, writer = await aio.connect(base, server.address)
            writer.write(b"hello\n")
            line: bytes = await reader.readline()
            assert line + await reader.read(0) == b"HELLO\n"
            writer.close()
            await writer.wait_closed()
        what: EventFlags = await aio.wait_event(base, -1, EV_TIMEOUT, 0.001)
        return int(what)

    assert aio.run(main()) == EV_TIMEOUT
    with EventBase() as base, aio.Selector(base) as selector:
        ready: list[tuple[SelectorKey, int]] = selector.select(0)
        assert ready == []


def use_http_server() -> None:
    seen: list[object] = []

    def handler(request: HttpServerRequest, word: str) -> None:
        headers: HttpHeaders = request.headers
        host: str = headers["Host"]
        method: HttpMethod = request.method
        remote: tuple[str, int] = request.remote
        seen.extend((host, method, remote[0], request.read(), request.server is server))
        request.output_headers["X-Word"] = word
        request.on_complete(lambda request, n: seen.append(n), 1)
        request.on_error(failed)
        request.send_reply_start(HttpStatus.HTTP_OK)
        request.send_reply_chunk(b"part", lambda request: request.send_reply_end())

    def failed(request: HttpServerRequest, error: HttpError) -> None:
        seen.append((request.uri, error))

    def done(_fd: int, _what: EventFlags) -> None:
        base.loopexit(0.01)

    with EventBase() as base, HttpServer(base) as server:
        bound: HttpBoundSocket = server.bind("127.0.0.1", 0)
        server.set_cb("/", handler, "word")
        server.set_gencb(lambda request: request.send_error(404))
        server.allowed_methods = HttpMethod.EVHTTP_REQ_GET
        server.flags = HttpServerFlags.EVHTTP_SERVER_LINGERING_CLOSE
        with socket.create_connection(bound.address) as sock:
            sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            base.once(sock, EV_READ, done)
            base.dispatch()
            assert b"X-Word: word" in sock.recv(1000)
    assert seen == ["a", HttpMethod.EVHTTP_REQ_GET, "127.0.0.1", b"", True, 1]


def use_http_client() -> None:
    seen: list[object] = []

    def done(request: HttpRequest, word: str) -> None:
        error: HttpError | None = request.error
        why: Exception | None = request.exception
        body: bytes = request.read()
        seen.extend((word, request.response_code, error, why, body))
        if request.connection is not None:
            request.connection.close()
            server.close()

    def part(request: HttpRequest, word: str) -> None:
        seen.append((word, bytes(request.input_buffer)))

    def failed(request: HttpRequest, error: HttpError, word: str) -> None:
        print(request.uri, error, word)

    with EventBase() as base, HttpServer(base) as server:
        server.set_gencb(lambda request: request.send_reply(200, "OK", request.uri.encode()))
        bound = server.bind("127.0.0.1", 0)
        conn = HttpConnection(base, bound.address[0], bound.address[1], timeout=5, retries=1)
        conn.flags = HttpConnectionFlags.EVHTTP_CON_REUSE_CONNECTED_ADDR
        conn.set_closecb(lambda conn, word: print(conn.peer, word), "word")
        request = HttpRequest(
            done, "word", chunked=part, header=lambda request, word: True, error=failed
        )
        request.output_headers.add("A", "b")
        names: list[str] = [*request.output_headers]
        conn.make_request(request, HttpMethod.EVHTTP_REQ_GET, "/path")
        base.dispatch()
    assert names == ["A"]
    assert seen == [("word", b"/path"), "word", 200, None, None, b""]


def use_versions() -> None:
    versions: list[str] = [pylibevent.version(), pylibevent.header_version()]
    print(versions, pylibevent.supported_methods(), pylibevent.__version__)


def use_the_raw_layer() -> None:
    seen: list[tuple[int, object]] = []

    @ffi.callback("event_callback_fn")
    def on_timeout(_fd: int, what: int, arg: CData) -> None:
        seen.append((what, ffi.from_handle(arg)))

    handle = ffi.new_handle("argument")
    with EventBase() as base:
        event: CData = lib.event_new(base.ptr, -1, lib.EV_TIMEOUT, on_timeout, handle)
        assert lib.event_add(event, ffi.new("struct timeval *", (0, 1))) == 0
        base.dispatch()
        lib.event_free(event)
    assert seen == [(lib.EV_TIMEOUT, "argument")]

    buffer = ffi.gc(lib.evbuffer_new(), lib.evbuffer_free)
    lib.evbuffer_add(buffer, b"line\n", 5)
    lib.evbuffer_add_printf(buffer, b"%d\n", ffi.cast("int", 1))
    length = ffi.new("size_t *")
    line = lib.evbuffer_readln(buffer, length, lib.EVBUFFER_EOL_LF)
    text: bytes = ffi.string(line)
    assert ffi.unpack(line, length[0]) == text == bytes(ffi.buffer(line, 4))
    lib.free(line)
    assert lib.evbuffer_search(buffer, b"\n", 1, ffi.NULL).pos == 1
    assert ffi.sizeof("struct timeval") == 16 or ffi.errno == 0
