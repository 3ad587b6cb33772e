"""Sends a file over the network, compressed on the way by filters (BufferEvent.filter).

    python zlib_filter.py receive [--host 127.0.0.1] [--port 8898] > copy
    python zlib_filter.py send [--host 127.0.0.1] [--port 8898] < file

`receive` takes one connection; both end with it and tell how many bytes their filter was given
and how many it made of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from collections.abc import Callable

from pylibevent import (
    BEV_ERROR,
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_FINISHED,
    BEV_NEED_MORE,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    EV_FEATURE_FDS,
    EV_PERSIST,
    EV_READ,
    EV_WRITE,
    BufferEvent,
    BufferEventFlags,
    EvBuffer,
    Event,
    EventBase,
    EventConfig,
    EventFlags,
    FlushMode,
    Listener,
)

PIECE = 4096  # bytes that go into zlib at a time
MAX_OUTPUT = 65536  # bytes that wait for a slow network before more is compressed

Convert = Callable[[bytes], bytes]


class Filter:
    def __init__(self, convert: Convert, finish: Callable[[], bytes] | None = None) -> None:
        self.convert, self.finish = convert, finish
        self.result = EvBuffer()
        self.used = self.bytes_in = self.bytes_out = 0

    def __call__(self, src: EvBuffer, dst: EvBuffer, limit: int, mode: FlushMode) -> int:
        # What zlib has used stays in src until its result has found room in dst: as long as there
        # is something in src, libevent calls again.
        before = self.bytes_out
        try:
            while limit != 0 and (self.result or self.use(src)):
                n = self.result.remove_buffer(dst, len(self.result) if limit < 0 else limit)
                self.bytes_out += n
                limit = limit if limit < 0 else limit - n
        except zlib.error as error:
            print(f"zlib_filter: {error}", file=sys.stderr)
            return BEV_ERROR
        if mode == BEV_FINISHED and self.finish:  # then there is no limit
            self.bytes_out += len(end := self.finish())
            self.finish = None
            dst.add(end)
        return BEV_OK if self.bytes_out > before else BEV_NEED_MORE

    def use(self, src: EvBuffer) -> bool:
        src.drain(self.used)
        piece = src.copyout(PIECE)
        self.used = len(piece)
        self.bytes_in += self.used
        if piece:
            self.result.add(self.convert(piece))
        return self.used > 0


def send(base: EventBase, host: str, port: int) -> Filter:
    stream = zlib.compressobj()
    compress = Filter(stream.compress, stream.flush)
    below = BufferEvent.socket(base)
    below.setwatermark(EV_WRITE, 0, MAX_OUTPUT)  # no more comes through the filter then
    bev = BufferEvent.filter(below, None, compress, BEV_OPT_CLOSE_ON_FREE)

    def on_event(bev: BufferEvent, what: BufferEventFlags) -> None:
        if not what & BEV_EVENT_CONNECTED:
            sys.exit(f"zlib_filter: {bev.error or what}")
        stdin.add()

    def on_stdin(fd: int, _what: EventFlags) -> None:
        if data := os.read(fd, 16384):
            bev.write(data)
            if len(bev.output) >= MAX_OUTPUT:
                stdin.delete()
        else:
            stdin.close()
            bev.flush(EV_WRITE, BEV_FINISHED)  # the end of the stream, for zlib
            bev.close_after_write()

    stdin = Event(base, sys.stdin, EV_READ | EV_PERSIST, on_stdin)
    bev.setcb(None, lambda _bev: stdin.add(), on_event)
    below.connect((host, port))
    return compress


def receive(base: EventBase, host: str, port: int) -> Filter:
    stream = zlib.decompressobj()
    decompress = Filter(stream.decompress)

    def on_accept(listener: Listener, fd: int, _address: object) -> None:
        listener.close()
        below = BufferEvent.socket(base, fd)
        bev = BufferEvent.filter(below, decompress, None, BEV_OPT_CLOSE_ON_FREE)
        bev.setcb(lambda bev: sys.stdout.buffer.write(bev.read()), None, on_event)
        bev.enable(EV_READ)

    def on_event(bev: BufferEvent, what: BufferEventFlags) -> None:
        bev.close()
        if not (what & BEV_EVENT_EOF and stream.eof) or stream.unused_data:
            sys.exit(f"zlib_filter: not what was sent: {bev.error or what}")

    listener = Listener.bind(base, on_accept, (host, port))
    print(f"listening on {host}:{listener.address[1]}", file=sys.stderr, flush=True)
    return decompress


def main() -> None:
    parser = argparse.ArgumentParser(description="Sends a file, compressed on the way.")
    parser.add_argument("what", choices=["send", "receive"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8898)
    arguments = parser.parse_args()
    config = EventConfig()
    config.require_features(EV_FEATURE_FDS)  # epoll takes no files: `send < file`
    with EventBase(config) as base:
        try:
            start = send if arguments.what == "send" else receive
            filter_ = start(base, arguments.host, arguments.port)
            base.dispatch()
        except OSError as error:
            sys.exit(f"zlib_filter: {error}")
    print(f"{filter_.bytes_in} bytes in, {filter_.bytes_out} bytes out", file=sys.stderr)


if __name__ == "__main__":
    main()
