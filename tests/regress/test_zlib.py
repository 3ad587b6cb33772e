"""What libevent's test of filters with zlib does (regress_zlib), asked of the classes."""

from __future__ import annotations

import random
import socket
import zlib

import pytest
from conftest import RunUntil

from pylibevent import (
    BEV_ERROR,
    BEV_EVENT_ERROR,
    BEV_EVENT_READING,
    BEV_FINISHED,
    BEV_FLUSH,
    BEV_NEED_MORE,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    EV_READ,
    EV_WRITE,
    BufferEvent,
    EvBuffer,
    EventBase,
    FlushMode,
)

DATA = bytes(range(256)) * 32 + bytes(range(8333 % 256))  # the 8333 bytes of libevent's
FLUSHES = {BEV_FLUSH: zlib.Z_SYNC_FLUSH, BEV_FINISHED: zlib.Z_FINISH}


class Deflate:
    def __init__(self) -> None:
        self.stream = zlib.compressobj()
        self.calls = 0

    def __call__(self, src: EvBuffer, dst: EvBuffer, _limit: int, mode: FlushMode) -> int:
        self.calls += 1
        result = self.stream.compress(src.remove())
        if mode in FLUSHES:
            result += self.stream.flush(FLUSHES[mode])
        if not result:
            return BEV_NEED_MORE
        dst.add(result)
        return BEV_OK


class Inflate:
    """Gives out no more than it may: the rest stays in src, or in zlib."""

    def __init__(self) -> None:
        self.stream = zlib.decompressobj()
        self.calls = 0
        self.limits: set[int] = set()

    def __call__(self, src: EvBuffer, dst: EvBuffer, limit: int, _mode: FlushMode) -> int:
        self.calls += 1
        self.limits.add(limit)
        piece = src.copyout(len(src))
        try:
            result = self.stream.decompress(piece, max(limit, 0))
        except zlib.error:
            return BEV_ERROR
        left = len(self.stream.unconsumed_tail)
        src.drain(len(piece) - left)
        if not result:
            return BEV_NEED_MORE
        dst.add(result)
        return BEV_OK


class Ends:
    """A socket pair, compressed from `sender` to `receiver`."""

    def __init__(self, base: EventBase) -> None:
        below = [BufferEvent.socket(base, end) for end in socket.socketpair()]
        self.deflate, self.inflate = Deflate(), Inflate()
        self.wire = below[1]
        self.sender = BufferEvent.filter(below[0], None, self.deflate, BEV_OPT_CLOSE_ON_FREE)
        self.receiver = BufferEvent.filter(below[1], self.inflate, None, BEV_OPT_CLOSE_ON_FREE)
        self.got = b""
        self.written = 0
        self.events: list[int] = []
        self.sender.setcb(None, self.on_written, self.on_event)
        self.receiver.setcb(self.on_read, None, self.on_event)
        self.receiver.enable(EV_READ)

    def on_read(self, bev: BufferEvent) -> None:
        self.got += bev.read()

    def on_written(self, bev: BufferEvent) -> None:
        self.written += not bev.output

    def on_event(self, _bev: BufferEvent, what: int) -> None:
        self.events.append(what)


@pytest.fixture
def ends(base: EventBase) -> Ends:
    return Ends(base)


def test_what_is_written_in_two_parts_and_flushed_comes_whole(
    ends: Ends, run_until: RunUntil
) -> None:
    ends.sender.write(DATA[:1800])
    ends.sender.write(DATA[1800:])
    ends.sender.flush(EV_WRITE, BEV_FINISHED)
    run_until(lambda: len(ends.got) == 8333)
    assert ends.got == DATA
    assert ends.inflate.stream.eof
    assert min(ends.deflate.calls, ends.inflate.calls, ends.written) >= 1
    assert ends.events == []


def test_each_flush_lets_out_what_zlib_has_kept(ends: Ends, run_until: RunUntil) -> None:
    for i in range(1, 5):
        ends.sender.write(DATA)
        ends.sender.flush(EV_WRITE, BEV_FLUSH)
        run_until(lambda i=i: ends.got == DATA * i)
    assert not ends.inflate.stream.eof


def test_a_megabyte_that_does_not_compress(ends: Ends, run_until: RunUntil) -> None:
    noise = random.Random(1).randbytes(1 << 20)
    ends.sender.write(noise)
    ends.sender.flush(EV_WRITE, BEV_FINISHED)
    run_until(lambda: len(ends.got) == len(noise))
    assert ends.got == noise


def test_corrupt_bytes_are_an_error_of_reading(ends: Ends, run_until: RunUntil) -> None:
    assert ends.sender.underlying
    ends.sender.underlying.write(b"this was never compressed")
    run_until(lambda: ends.events == [BEV_EVENT_ERROR | BEV_EVENT_READING])
    assert ends.got == b""


def test_a_bomb_swells_no_further_than_the_high_watermark(
    base: EventBase, ends: Ends, run_until: RunUntil
) -> None:
    ends.receiver.setwatermark(EV_READ, 0, 10_000)
    longest: list[int] = []

    def on_read(bev: BufferEvent) -> None:
        longest.append(len(bev.input))
        ends.got += bev.read()

    ends.receiver.setcb(on_read)
    assert ends.sender.underlying
    ends.sender.underlying.write(zlib.compress(bytes(1_000_000)) + b"end")
    run_until(lambda: len(ends.got) == 1_000_000)
    assert max(longest) == 10_000
    assert max(ends.inflate.limits) == 10_000


def test_compressed_twice(base: EventBase, run_until: RunUntil) -> None:
    tops = list(BufferEvent.pair(base))
    for _ in range(2):
        tops[1].enable(EV_READ)
        tops[0] = BufferEvent.filter(tops[0], None, Deflate(), BEV_OPT_CLOSE_ON_FREE)
        tops[1] = BufferEvent.filter(tops[1], Inflate(), None, BEV_OPT_CLOSE_ON_FREE)
    got = bytearray()
    tops[1].setcb(lambda bev: got.extend(bev.read()))
    tops[1].enable(EV_READ)
    tops[0].write(DATA)
    tops[0].flush(EV_WRITE, BEV_FINISHED)
    run_until(lambda: got == DATA)
