"""Everything at once: whatever is made, used, closed or dropped, in whatever order and inside
whatever callback, nothing crashes, hangs, lies or is left.

Each step of the machine is a rule, and also a thing that a callback may do: `plan` puts steps
into a script, and each callback that is called takes the next lot out of it and does that.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import random
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from common import FUZZ
from conftest import Balance, watch_for_hangs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylibevent import (
    BEV_ERROR,
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    BEV_NEED_MORE,
    BEV_OK,
    BEV_OPT_CLOSE_ON_FREE,
    BEV_OPT_DEFER_CALLBACKS,
    BEV_OPT_THREADSAFE,
    BEV_OPT_UNLOCK_CALLBACKS,
    BEV_TRIG_DEFER_CALLBACKS,
    BEV_TRIG_IGNORE_WATERMARKS,
    EV_CLOSED,
    EV_ET,
    EV_PERSIST,
    EV_READ,
    EV_TIMEOUT,
    EV_WRITE,
    EVLOOP_NONBLOCK,
    EVLOOP_ONCE,
    BufferEvent,
    ClosedError,
    EvBuffer,
    Event,
    EventBase,
    LibeventError,
    Listener,
    RateLimitGroup,
    Signal,
    Timer,
    TokenBucketConfig,
)

BASES = 2
MOST = 5  # of each other kind; one more takes the place of another, which is dropped
SPIN = 3000  # callbacks in a round of the loop
REFUSALS = "too deep", "a filter is on top", "another EventBase has signal events"
LOG = os.environ.get("PYLIBEVENT_FUZZ_LOG")  # a file for the steps of the run that is under way
SIGNAL = signal.SIGUSR1
RESET = struct.pack("ii", 1, 0)
PERIOD = 65521
PATTERN = random.Random(1).randbytes(PERIOD) * 2


class Boom(Exception):
    """What callbacks raise."""


class Quit(BaseException):
    """What they raise past every exception handler."""


class Note:
    """What is known of an object. Its callbacks have this for an argument, and refer to nothing
    else, so that the object can be dropped."""

    def __init__(self, base: Note | None = None) -> None:
        self.base = base
        self.silent = False  # no callback may come any more
        self.style = 0  # how much its callbacks read
        self.out = self.into = Stream()  # of a bufferevent: what it writes, what it reads
        self.frozen = False
        self.finals = 0  # finalizers due
        self.below: Note | None = None  # what a filter is on

    def over(self) -> bool:
        return self.silent or (self.below is not None and self.below.over())

    def called(self) -> None:
        assert not self.silent, "a callback after the end of its object"
        assert self.base is None or not self.base.silent, "a callback after the end of its base"


class Held:
    """A name that the program has for an object."""

    def __init__(self, it: Any, note: Note) -> None:
        self.it = it
        self.note = note


class Stream:
    """What is written at one end, and comes out at the other: always the same bytes."""

    def __init__(self) -> None:
        self.written = self.read = 0
        self.whole = True
        self.reading = False

    @contextlib.contextmanager
    def putting(self, n: int) -> Iterator[bytes]:
        """The next n bytes, which the with statement writes, or it raises that it cannot."""
        start = self.written
        self.written += n
        try:
            yield PATTERN[start % PERIOD :][:n]
        except (Boom, Quit):  # a callback's, who was told of it
            raise
        except BaseException:
            if self.written == start + n:
                self.written = start
            else:
                self.whole = False
            raise

    def got(self, data: bytes) -> None:
        if self.whole:
            assert self.read + len(data) <= self.written
            assert PATTERN[self.read % PERIOD :][: len(data)] == data[:PERIOD]
        self.read += len(data)


def nothing(*_args: Any) -> None:
    pass


# ---- what is drawn ----

which = st.integers(0, MOST - 1)
which_base = st.sampled_from([0, 0, 0, 1])
counts = st.integers(0, 20) | st.sampled_from([100, 4096, 5000, 40_000])
delays = st.sampled_from([None, 0, 0.0005, 0.001, 100])
soon = st.sampled_from([None, 0.0005, 0.001, 100])
directions = st.sampled_from([EV_READ, EV_WRITE, EV_READ | EV_WRITE])
options = st.sampled_from(
    [
        0,
        BEV_OPT_CLOSE_ON_FREE,
        BEV_OPT_DEFER_CALLBACKS,
        BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
        BEV_OPT_THREADSAFE,
        BEV_OPT_THREADSAFE | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
    ]
)
Script = list[tuple[str, dict[str, Any]]]
script_steps: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []


scripts = st.deferred(lambda: st.lists(st.one_of(script_steps), min_size=1, max_size=3))


def step(
    *errors: type[Exception], **drawn: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Any]:
    """A rule that may also be planned. It may raise these errors, and what callbacks raise.

    As a rule it plans another step as often as not, and has the loops go round.
    """

    allowed: tuple[type[BaseException], ...] = (Boom, Quit, *errors)

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def attempt(
            self: Machine, inside: Script | None = None, then: int = 0, **values: Any
        ) -> None:
            if inside:
                self.plan(inside)
            self.tell(function.__name__, values)
            try:
                function(self, **values)
            except allowed:
                pass
            except RuntimeError as error:
                if not any(text in str(error) for text in REFUSALS):
                    raise
            for b in range(BASES if then else 0):
                self.loop(b=b, rounds=then)

        script_steps.append(st.tuples(st.just(function.__name__), st.fixed_dictionaries(drawn)))
        whole: Any = {**drawn, "inside": st.none() | scripts, "then": st.integers(0, 3)}
        as_rule: Any = rule(**whole)
        return as_rule(attempt)

    return decorate


ALL = EV_READ | EV_WRITE
WORLD: dict[str, Script] = {
    "socket": [("new_socket", {"b": 0, "options": 0})],
    "safe socket": [("new_socket", {"b": 0, "options": BEV_OPT_THREADSAFE})],
    "sockets": [("new_sockets", {"b": 1, "options": 0})],
    "pair": [("new_pair", {"b": 0, "options": 0})],
    "filter": [
        ("new_pair", {"b": 0, "options": 0}),
        ("new_filter", {"at": 2, "options": 0, "kinds": (1000, 1000)}),
    ],
    "server": [
        ("new_listener", {"b": 0}),
        ("connect", {"b": 0, "at": 4, "options": 0}),
        ("dial", {"at": 4}),
    ],
    "group": [
        ("new_socket", {"b": 0, "options": 0}),
        ("new_group", {"b": 0, "rate": 20}),
        ("join_group", {"g": 0}),
    ],
    "timer": [("new_timer", {"b": 0, "persist": True}), ("add_event", {"delay": 0})],
    "event": [
        ("new_socket", {"b": 0, "options": 0}),
        ("new_event", {"b": 0, "p": 0, "what": ALL, "persist": True}),
        ("add_event", {"delay": None}),
    ],
    "buffer": [("new_buffer", {"b": 0})],
}


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        watch_for_hangs()
        if LOG:
            open(LOG, "w").close()
        gc.collect()
        self.balance = Balance()
        self.unraisablehook = sys.unraisablehook
        sys.unraisablehook = self.on_unraisable
        self.old_handler = signal.signal(SIGNAL, nothing)
        self.failures: list[BaseException] = []
        self.script: list[Script] = []
        self.depth = self.calls = 0
        self.ending = 0
        self.notes: list[Note] = []
        self.finalized: list[Note] = []
        self.bases: list[Held] = []
        for _ in range(BASES):
            self.bases.append(Held(EventBase(), Note()))
        self.events: list[Held] = []
        self.bevs: list[Held] = []
        self.listeners: list[Held] = []
        self.groups: list[Held] = []
        self.bufs: list[Held] = []
        self.peers: list[tuple[socket.socket, Note]] = []
        self.views: list[tuple[memoryview, bytes]] = []
        self.dialled: dict[int, Note] = {}  # the port of one end, until the other accepts it
        self.old_sockets: list[socket.socket] = []
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(PATTERN)
        self.file.flush()

    def on_unraisable(self, info: Any) -> None:
        if not isinstance(info.exc_value, (Boom, Quit)):  # the second one of a call
            self.failures.append(info.exc_value)

    def teardown(self) -> None:
        self.script.clear()
        self.views.clear()
        kinds = [self.events, self.bevs, self.listeners, self.groups, self.bufs, self.bases]
        for kind in [[kinds[-1]], kinds, []][self.ending]:
            while kind:
                self.close(kind.pop())
        for kind in kinds:  # what is open is dropped
            kind.clear()
        gc.collect()
        for sock, _ in self.peers:
            sock.close()
        for sock in self.old_sockets:
            sock.close()
        self.file.close()
        signal.signal(SIGNAL, self.old_handler)
        sys.unraisablehook = self.unraisablehook
        if self.failures:
            raise self.failures[0]
        if sys.exc_info()[0] is not None:  # which refers to what is left
            return
        self.balance.check()
        assert [note for note in self.notes if note.finals] == []

    # -- helpers --

    def tell(self, name: str, values: dict[str, Any]) -> None:
        """A crash leaves no time to say what led to it."""
        if LOG and self.depth == 0:
            arguments = ", ".join(f"{key}={value!r}" for key, value in values.items())
            with open(LOG, "a") as log:
                log.write(f"state.{name}({arguments})\n")

    def keep(self, kind: list[Held], i: int, it: Any, note: Note) -> None:
        self.notes.append(note)
        if len(kind) < MOST:
            kind.append(Held(it, note))
        else:
            kind[i] = Held(it, note)

    @staticmethod
    def pick(kind: list[Any], i: int) -> Any:
        return kind[i % len(kind)] if kind else None

    @contextlib.contextmanager
    def using(self, *held: Held) -> Iterator[None]:
        """What is closed says so, and nothing else does."""
        closed = [one.it.closed for one in held]
        try:
            yield
        except ClosedError:
            assert any(one.it.closed or one.note.over() for one in held)
        else:
            assert not any(closed)

    def close(self, one: Held) -> None:
        try:
            one.it.close()
        except BufferError:
            assert isinstance(one.it, EvBuffer)
        except (Boom, Quit):
            pass
        if one.it.closed:
            one.note.silent = True

    # -- callbacks --

    def call(self, note: Note) -> None:
        """What every callback does."""
        try:
            note.called()
            self.calls += 1
            if self.calls > SPIN:
                self.calls = 0
                usable = [base.it for base in self.bases if not base.it.closed]
                for base in usable:
                    base.loopbreak()
                # With priorities a persistent event may starve others, as in C.
                assert any(base.npriorities > 1 for base in usable), "callbacks without an end"
            if not self.script:
                return
            self.depth += 1
            try:
                for name, values in self.script.pop(0):
                    if name == "raise_":
                        raise (Quit if values["past_handlers"] else Boom)
                    getattr(self, name)(**values)
            finally:
                self.depth -= 1
        except (Boom, Quit):
            raise
        except BaseException as failure:
            self.failures.append(failure)

    def on_event(self, _fd: int, _what: int, note: Note) -> None:
        self.call(note)

    def on_timer(self, note: Note) -> None:
        self.call(note)

    def on_signal(self, _signum: int, note: Note) -> None:
        self.call(note)

    def on_final(self, event: Event, *args: Any) -> None:
        note = args[-1]
        try:
            assert event.closed
            note.finals -= 1
            assert note.finals == 0
        except BaseException as failure:
            self.failures.append(failure)
        note.silent = False  # this one is called after close
        self.call(Note())
        note.silent = True

    def on_read(self, bev: BufferEvent, note: Note) -> None:
        self.call(note)
        if note.style:
            self.read_some(Held(bev, note), note.style, 0)

    def on_write(self, _bev: BufferEvent, note: Note) -> None:
        self.call(note)

    def on_bev_event(self, bev: BufferEvent, what: int, note: Note) -> None:
        try:
            if what & BEV_EVENT_ERROR and not bev.closed:
                assert bev.error is None or isinstance(bev.error, OSError)
        except BaseException as failure:
            self.failures.append(failure)
        self.call(note)

    def on_change(self, buf: EvBuffer, size: int, added: int, deleted: int, note: Note) -> None:
        try:
            assert size + added >= deleted
        except BaseException as failure:
            self.failures.append(failure)
        self.call(note)

    def on_accept(self, listener: Listener, fd: int, address: Any, note: Note) -> None:
        self.call(note)  # if it raises, fd is libevent's to close
        base = next((one for one in self.bases if one.it is listener.base), None)
        if base is None or base.it.closed:
            raise Boom
        self.adopt(base, BufferEvent.socket(base.it, fd), self.dialled.pop(address[1], None))

    def on_accept_error(self, _listener: Listener, error: OSError) -> None:
        self.failures.append(error)

    def on_exception(self, exception: Exception, _source: Any) -> None:
        if not isinstance(exception, Boom):
            self.failures.append(exception)
        self.call(Note())

    def adopt(self, base: Held, bev: BufferEvent, other: Note | None, i: int = 0) -> Note:
        """Keeps a new bufferevent, whose other end is `other`."""
        note = Note(base.note)
        if other is not None:
            note.out, note.into = other.into, other.out
        else:
            note.out, note.into = Stream(), Stream()
        note.style = 100
        bev.setcb(self.on_read, self.on_write, self.on_bev_event, note)
        bev.enable(EV_READ)
        self.keep(self.bevs, i, bev, note)
        return note

    @initialize(world=st.lists(st.sampled_from(sorted(WORLD)), max_size=6))
    def make(self, world: list[str]) -> None:
        self.tell("make", {"world": world})
        for i, name in enumerate(world):
            for function, values in WORLD[name]:
                getattr(self, function)(**values, i=i % MOST)

    # -- the script --

    def plan(self, steps: Script) -> None:
        self.tell("plan", {"steps": steps})
        self.script.append(steps)

    @step(past_handlers=st.booleans())
    def raise_(self, past_handlers: bool) -> None:
        """Only in a script."""

    @rule(how=st.integers(0, 2))
    def end(self, how: int) -> None:
        self.tell("end", {"how": how})
        self.ending = how

    @step(generation=st.integers(0, 2))
    def collect(self, generation: int) -> None:
        gc.collect(generation)

    # -- bases --

    @step(b=which_base)
    def new_base(self, b: int) -> None:
        self.bases[b] = Held(EventBase(), Note())  # one that was open is dropped

    @step(RuntimeError, b=which_base)
    def close_base(self, b: int) -> None:
        self.close(self.bases[b])

    @step(b=which_base, rounds=st.integers(1, 3))
    def loop(self, b: int, rounds: int) -> None:
        base = self.bases[b]
        for _ in range(rounds):
            if self.depth == 0:
                self.calls = 0
            try:
                with self.using(base):
                    assert base.it.loop(EVLOOP_ONCE | EVLOOP_NONBLOCK) in (0, 1)
            except RuntimeError as error:
                if not self.depth or "running already" not in str(error):
                    raise

    @step(b=which_base)
    def wait(self, b: int) -> None:
        """Long enough for the short timeouts."""
        base = self.bases[b]
        if base.it.closed or self.depth:
            return
        over: list[bool] = []
        timer = Timer(base.it, over.append, True)
        timer.add(0.002)
        for _ in range(20):
            if self.depth == 0:
                self.calls = 0
            if not over and not base.it.closed and timer.pending():
                base.it.loop(EVLOOP_ONCE)

    @step(b=which_base, how=st.sampled_from(["loopexit", "loopbreak", "loopcontinue"]))
    def leave_loop(self, b: int, how: str) -> None:
        base = self.bases[b]
        with self.using(base):
            getattr(base.it, how)()

    @step(b=which_base, on=st.booleans())
    def handle_exceptions(self, b: int, on: bool) -> None:
        base = self.bases[b].it
        if not base.closed:
            base.exception_handler = self.on_exception if on else None

    @step(b=which_base, delay=st.sampled_from([None, 0, 0.001]))
    def once(self, b: int, delay: float | None) -> None:
        base = self.bases[b]
        with self.using(base):
            base.it.once(-1, EV_TIMEOUT, self.on_event, Note(base.note), timeout=delay)

    @step(b=which_base, p=which, what=st.sampled_from([EV_READ, EV_WRITE, EV_TIMEOUT]))
    def active_by_fd(self, b: int, p: int, what: int) -> None:
        base, one = self.bases[b], self.pick(self.bevs, p)
        if one is None or one.it.closed or one.note.silent or one.it.fd < 0:
            return
        with self.using(base):
            base.it.active_by_fd(one.it.fd, what)

    @step(b=which_base)
    def look_at_base(self, b: int) -> None:
        base = self.bases[b]
        with self.using(base):
            assert base.it.num_events() >= 0
            base.it.foreach_event(lambda info: repr(info) == "")
            base.it.dump_events(io.StringIO())
            assert base.it.running_event is None or self.depth

    @step(LibeventError, b=which_base, n=st.integers(1, 4))
    def priorities(self, b: int, n: int) -> None:
        base = self.bases[b]
        with contextlib.suppress(RuntimeError, ValueError), self.using(base):
            base.it.priority_init(n)

    @step(b=which_base, delay=st.sampled_from([0.0005, 0.001, 100]))
    def common_timeout(self, b: int, delay: float) -> None:
        base = self.bases[b]
        with self.using(base):
            base.it.init_common_timeout(delay)

    # -- events --

    @step(
        b=which_base,
        i=which,
        p=which,
        what=st.sampled_from(
            [EV_READ, EV_WRITE, EV_READ | EV_WRITE, EV_READ | EV_ET, EV_READ | EV_CLOSED]
        ),
        persist=st.booleans(),
    )
    def new_event(self, b: int, i: int, p: int, what: int, persist: bool) -> None:
        base, peer = self.bases[b], self.pick(self.peers, p)
        if peer is None or peer[0].fileno() < 0:
            return
        note = Note(base.note)
        flags = what | (EV_PERSIST if persist else 0)
        with self.using(base):
            self.keep(self.events, i, Event(base.it, peer[0], flags, self.on_event, note), note)

    @step(b=which_base, i=which, persist=st.booleans())
    def new_timer(self, b: int, i: int, persist: bool) -> None:
        base = self.bases[b]
        note = Note(base.note)
        with self.using(base):
            self.keep(self.events, i, Timer(base.it, self.on_timer, note, persist=persist), note)

    @step(b=which_base, i=which)
    def new_signal(self, b: int, i: int) -> None:
        base = self.bases[b]
        note = Note(base.note)
        with self.using(base):
            self.keep(self.events, i, Signal(base.it, SIGNAL, self.on_signal, note), note)

    @step()
    def send_signal(self) -> None:
        signal.raise_signal(SIGNAL)

    @step(ValueError, i=which, delay=delays)
    def add_event(self, i: int, delay: float | None) -> None:
        if one := self.pick(self.events, i):
            with self.using(one):
                one.it.add(delay)

    @step(i=which, what=st.sampled_from([EV_READ, EV_WRITE, EV_TIMEOUT]))
    def activate_event(self, i: int, what: int) -> None:
        if one := self.pick(self.events, i):
            with self.using(one):
                one.it.active(what)

    @step(i=which, how=st.sampled_from(["delete", "remove_timer"]))
    def disarm_event(self, i: int, how: str) -> None:
        if one := self.pick(self.events, i):
            with self.using(one):
                getattr(one.it, how)()
                if how == "delete":
                    assert not one.it.pending()

    @step(i=which)
    def look_at_event(self, i: int) -> None:
        if one := self.pick(self.events, i):
            with self.using(one):
                assert repr(one.it)
                one.it.pending()
                one.it.expires_in  # noqa: B018
                one.it.ptr  # noqa: B018

    @step(ValueError, LibeventError, i=which, n=st.integers(0, 3))
    def event_priority(self, i: int, n: int) -> None:
        if one := self.pick(self.events, i):
            with self.using(one):
                one.it.priority = n

    @step(i=which)
    def close_event(self, i: int) -> None:
        if one := self.pick(self.events, i):
            self.close(one)

    @step(i=which)
    def finalize_event(self, i: int) -> None:
        if one := self.pick(self.events, i):
            with self.using(one):
                one.note.finals += 1
                try:
                    one.it.finalize(self.on_final)
                except BaseException:
                    one.note.finals -= 1
                    raise
                one.note.silent = True

    @step(i=which)
    def drop_event(self, i: int) -> None:
        if self.events:
            del self.events[i % len(self.events)]

    # -- bufferevents --

    @step(b=which_base, i=which, options=options)
    def new_socket(self, b: int, i: int, options: int) -> None:
        base = self.bases[b]
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            with self.using(base):
                bev = BufferEvent.socket(base.it, ours, options)
                self.add_peer(theirs, i, self.adopt(base, bev, None, i))
        finally:
            if ours.fileno() >= 0:
                ours.close()
                theirs.close()

    def add_peer(self, sock: socket.socket, i: int, other: Note) -> None:
        note = Note()
        note.out, note.into = other.into, other.out
        if len(self.peers) < MOST:
            self.peers.append((sock, note))
        else:
            self.peers[i][0].close()
            self.peers[i] = sock, note

    @step(b=which_base, i=which, options=options)
    def new_sockets(self, b: int, i: int, options: int) -> None:
        """Two ends that are both bufferevents, of two bases perhaps."""
        first, second = self.bases[b], self.bases[0]
        ours, theirs = socket.socketpair()
        try:
            with self.using(first, second):
                bev = BufferEvent.socket(first.it, ours, options)
                note = self.adopt(first, bev, None, i)
                self.adopt(second, BufferEvent.socket(second.it, theirs), note, i)
        finally:
            ours.close()
            theirs.close()

    @step(b=which_base, i=which, options=options)
    def new_pair(self, b: int, i: int, options: int) -> None:
        base = self.bases[b]
        with self.using(base):
            one, other = BufferEvent.pair(base.it, options)
            self.adopt(base, other, self.adopt(base, one, None, i), (i + 1) % MOST)

    @step(
        BufferError,
        i=which,
        at=which,
        options=options,
        kinds=st.tuples(*[st.sampled_from([0, 1, 1000, "error"])] * 2),
    )
    def new_filter(self, i: int, at: int, options: int, kinds: tuple[Any, Any]) -> None:
        under = self.pick(self.bevs, i)
        base = next((one for one in self.bases if under and one.note is under.note.base), None)
        if base is None:
            return
        note = Note(base.note)
        note.out, note.into = Stream(), Stream()
        note.below = below = under.note
        inward = outward = None
        if kinds[0]:
            inward = functools.partial(self.on_filter, note, below.into, note.into, kinds[0])
        else:  # what is left in it when it is closed is lost
            below.into.whole = False
            note.into = below.into
        if kinds[1]:
            outward = functools.partial(self.on_filter, note, note.out, below.out, kinds[1])
        else:
            below.out.whole = False
            note.out = below.out
        try:
            with self.using(under):
                bev = BufferEvent.filter(under.it, inward, outward, options)
                note.style = 100
                bev.setcb(self.on_read, self.on_write, self.on_bev_event, note)
                bev.enable(EV_READ)
                self.keep(self.bevs, at, bev, note)
        except ValueError as error:
            if "THREADSAFE" not in str(error):
                raise

    def on_filter(
        self,
        note: Note,
        source: Stream,
        target: Stream,
        kind: int | str,
        src: EvBuffer,
        dst: EvBuffer,
        limit: int,
        _mode: int,
    ) -> int:
        """Takes one stream's bytes and makes as many of another one's of them."""
        self.call(note)
        if isinstance(kind, str):
            return BEV_ERROR
        try:
            n = min(len(src), kind, limit if limit >= 0 else kind)
            if not n:
                return BEV_NEED_MORE
            source.got(src.remove(n))
            with target.putting(n) as fresh:
                dst.add(fresh)
            self.calls -= 1  # it comes to an end
        except (Boom, Quit):
            source.whole = False
            raise
        except (ClosedError, BufferError):
            raise Boom from None
        except BaseException as failure:
            self.failures.append(failure)
        return BEV_OK

    @step(i=which, what=st.tuples(*[st.booleans()] * 3), style=counts)
    def set_callbacks(self, i: int, what: tuple[bool, bool, bool], style: int) -> None:
        if one := self.pick(self.bevs, i):
            one.note.style = style
            callbacks = self.on_read, self.on_write, self.on_bev_event
            with self.using(one):
                one.it.setcb(
                    *[f if on else None for f, on in zip(callbacks, what, strict=True)], one.note
                )

    @step(i=which, what=directions, on=st.booleans())
    def enable(self, i: int, what: int, on: bool) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.enable(what) if on else one.it.disable(what)

    @step(
        BufferError,
        i=which,
        n=counts,
        how=st.sampled_from(["write", "output", "buffer", "reference", "reserve", "file"]),
    )
    def write(self, i: int, n: int, how: str) -> None:
        one = self.pick(self.bevs, i)
        if one is None:
            return
        start = one.note.out.written
        refused = [LibeventError] if one.note.frozen else []
        with contextlib.suppress(*refused), self.using(one), one.note.out.putting(n) as data:
            if how == "write":
                one.it.write(data)
            elif how == "output":
                one.it.output.add(data)
            elif how == "buffer":
                buf = EvBuffer(data)
                one.it.write_buffer(buf)
            elif how == "reference":
                one.it.output.add_reference(data)
            elif how == "file":
                one.it.output.add_file(self.file, start % PERIOD, n)
            else:
                views = one.it.output.reserve_space(n, 1)
                views[0][:n] = data
                one.it.output.commit_space(n)

    @step(BufferError, i=which, n=counts, how=st.integers(0, 2))
    def read(self, i: int, n: int, how: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                self.read_some(one, n, how, raises=True)

    def read_some(self, one: Held, n: int, how: int, raises: bool = False) -> None:
        into = one.note.into
        if into.reading:  # in a callback of a read: what comes now is seen before what came first
            into.whole = False
        outer, into.reading = into.reading, True
        try:
            if how == 0:
                into.got(one.it.read(n))
            elif how == 1:
                buf = EvBuffer()
                one.it.read_buffer(buf)
                into.got(bytes(buf))
            else:
                view = one.it.input.pullup(min(n, len(one.it.input)))
                data = bytes(view)
                view.release()
                del view
                one.it.input.drain(len(data))
                into.got(data)
        except (Boom, Quit):
            into.whole = False
            raise
        except (ClosedError, BufferError):
            if raises:
                raise
        except AssertionError as failure:
            self.failures.append(failure)
        finally:
            into.reading = outer

    @step(BufferError, LibeventError, i=which, j=which)
    def relay(self, i: int, j: int) -> None:
        """What one has read the other writes: an end to what we know of either's bytes."""
        one, other = self.pick(self.bevs, i), self.pick(self.bevs, j)
        if one and other:
            one.note.into.whole = other.note.out.whole = False
            with self.using(one, other):
                other.it.write_buffer(one.it.input)

    @step(
        BufferError,
        LibeventError,
        i=which,
        n=counts,
        output=st.booleans(),
        how=st.sampled_from(["drain", "prepend", "freeze", "unfreeze", "expand", "readln"]),
    )
    def meddle(self, i: int, n: int, output: bool, how: str) -> None:
        if one := self.pick(self.bevs, i):
            stream = one.note.out if output else one.note.into
            stream.whole = False
            with self.using(one):
                buf = one.it.output if output else one.it.input
                if how == "prepend":
                    buf.prepend(PATTERN[:n])
                elif how == "readln":
                    buf.readln()
                elif how in ("freeze", "unfreeze"):
                    one.note.frozen = True  # perhaps
                    getattr(buf, how)(n % 2)
                else:
                    getattr(buf, how)(n)

    @step(i=which)
    def other_socket(self, i: int) -> None:
        """Another descriptor takes the place of the old one, which is closed."""
        one = self.pick(self.bevs, i)
        if one is None or one.note.below or one.it.closed or one.note.silent or one.it.fd < 0:
            return
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            with self.using(one):
                old = one.it.fd
                one.it.fd = ours
                os.close(old)
                one.note.out, one.note.into = Stream(), Stream()
                one.note.out.whole = one.note.into.whole = False
                self.add_peer(theirs, i, one.note)
        finally:
            if ours.fileno() >= 0:
                ours.close()
                theirs.close()

    @step(BufferError, i=which, n=counts, output=st.booleans())
    def look_at_buffers(self, i: int, n: int, output: bool) -> None:
        """Takes views, which are kept."""
        if one := self.pick(self.bevs, i):
            with self.using(one):
                buf = one.it.output if output else one.it.input
                self.views += [(view, bytes(view)) for view in buf.peek(n)]

    @step()
    def release_views(self) -> None:
        self.views.clear()

    @step(i=which, output=st.booleans())
    def watch_buffer(self, i: int, output: bool) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                buf = one.it.output if output else one.it.input
                buf.add_cb(self.on_change, one.note)

    @step(i=which, what=directions, low=counts, high=counts)
    def watermarks(self, i: int, what: int, low: int, high: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.setwatermark(what, low, high)

    @step(i=which, read=soon, write=soon)
    def timeouts(self, i: int, read: float | None, write: float | None) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.set_timeouts(read, write)

    @step(
        i=which,
        what=directions,
        options=st.sampled_from([0, BEV_TRIG_IGNORE_WATERMARKS, BEV_TRIG_DEFER_CALLBACKS]),
    )
    def trigger(self, i: int, what: int, options: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.trigger(what, options)

    @step(
        i=which,
        what=st.sampled_from([BEV_EVENT_EOF | EV_READ, BEV_EVENT_ERROR, BEV_EVENT_CONNECTED]),
        options=st.sampled_from([0, BEV_TRIG_DEFER_CALLBACKS]),
    )
    def trigger_event(self, i: int, what: int, options: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.trigger_event(what, options)

    @step(i=which, what=directions, mode=st.integers(0, 2))
    def flush(self, i: int, what: int, mode: int) -> None:
        if one := self.pick(self.bevs, i):
            try:
                with self.using(one):
                    one.it.flush(what, mode)
            except LibeventError:
                assert one.it.partner is None  # as in C

    @step(i=which)
    def look_at_bev(self, i: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                assert repr(one.it)
                assert one.it.enabled >= 0
                one.it.partner, one.it.underlying, one.it.error  # noqa: B018
                one.it.max_to_read  # noqa: B018
                len(one.it.input), len(one.it.output)

    @step(i=which)
    def expose(self, i: int) -> None:
        """From now on all goes libevent's own way."""
        if one := self.pick(self.bevs, i):
            with self.using(one):
                assert BufferEvent.from_ptr(one.it.ptr) is one.it

    @step(ValueError, LibeventError, i=which, n=st.integers(0, 3))
    def bev_priority(self, i: int, n: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.priority = n

    @step(i=which)
    def close_bev(self, i: int) -> None:
        if one := self.pick(self.bevs, i):
            self.close(one)

    @step(i=which, timeout=soon)
    def close_after_write(self, i: int, timeout: float | None) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.close_after_write(timeout)
                one.note.silent = True

    @step(i=which)
    def drop_bev(self, i: int) -> None:
        if self.bevs:
            del self.bevs[i % len(self.bevs)]

    # -- the other ends, without libevent --

    @step(OSError, p=which, n=counts)
    def peer_sends(self, p: int, n: int) -> None:
        if peer := self.pick(self.peers, p):
            sock, note = peer
            with note.out.putting(n) as data:
                sent = sock.send(data)
            note.out.written -= n - sent

    @step(OSError, p=which, n=counts)
    def peer_receives(self, p: int, n: int) -> None:
        if peer := self.pick(self.peers, p):
            sock, note = peer
            note.into.got(sock.recv(n))

    @step(OSError, p=which, how=st.integers(0, 2))
    def peer_shuts_down(self, p: int, how: int) -> None:
        if peer := self.pick(self.peers, p):
            peer[0].shutdown(how)

    @step(OSError, p=which, reset=st.booleans())
    def peer_closes(self, p: int, reset: bool) -> None:
        if peer := self.pick(self.peers, p):
            if reset:
                peer[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            for one in self.events:  # as C asks
                if not one.it.closed and one.it.fd == peer[0].fileno():
                    self.close(one)
            self.old_sockets.append(peer[0].dup())
            peer[0].shutdown(socket.SHUT_RDWR)

    # -- listeners --

    @step(b=which_base, i=which)
    def new_listener(self, b: int, i: int) -> None:
        base = self.bases[b]
        note = Note(base.note)
        with self.using(base):
            listener = Listener.bind(base.it, self.on_accept, ("127.0.0.1", 0), note)
            listener.set_error_cb(self.on_accept_error)
            self.keep(self.listeners, i, listener, note)

    @step(b=which_base, i=which, at=which, options=options)
    def connect(self, b: int, i: int, at: int, options: int) -> None:
        """A bufferevent connects."""
        one, base = self.pick(self.listeners, i), self.bases[b]
        if one is None:
            return
        with self.using(one):
            address = one.it.address
            with self.using(base):
                bev = BufferEvent.socket(base.it, None, options | BEV_OPT_CLOSE_ON_FREE)
                note = self.adopt(base, bev, None, at)
                bev.connect(address)
                with socket.socket(fileno=socket.dup(bev.fd)) as sock:
                    self.dialled[sock.getsockname()[1]] = note

    @step(OSError, i=which, at=which)
    def dial(self, i: int, at: int) -> None:
        """A plain socket connects."""
        one = self.pick(self.listeners, i)
        if one is None:
            return
        with self.using(one):
            address = one.it.address
            sock = socket.create_connection(address)
            sock.setblocking(False)
            note = Note()
            note.out, note.into = Stream(), Stream()
            other = Note()
            other.out, other.into = note.into, note.out
            self.dialled[sock.getsockname()[1]] = note
            self.add_peer(sock, at, other)

    @step(i=which, on=st.booleans())
    def enable_listener(self, i: int, on: bool) -> None:
        if one := self.pick(self.listeners, i):
            with self.using(one):
                one.it.enable() if on else one.it.disable()
                assert one.it.enabled is on

    @step(i=which)
    def listener_callback(self, i: int) -> None:
        if one := self.pick(self.listeners, i):
            with self.using(one):
                one.it.set_cb(self.on_accept, one.note)

    @step(i=which)
    def close_listener(self, i: int) -> None:
        if one := self.pick(self.listeners, i):
            self.close(one)

    @step(i=which)
    def drop_listener(self, i: int) -> None:
        if self.listeners:
            del self.listeners[i % len(self.listeners)]

    # -- limits --

    @step(ValueError, i=which, rate=st.sampled_from([None, 1, 20, 5000]))
    def limit(self, i: int, rate: int | None) -> None:
        if one := self.pick(self.bevs, i):
            cfg = rate and TokenBucketConfig(rate, rate * 2, rate, rate * 2, 0.001)
            with self.using(one):
                one.it.set_rate_limit(cfg)

    @step(ValueError, i=which, n=counts, write=st.booleans())
    def max_single(self, i: int, n: int, write: bool) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                setattr(one.it, "max_single_write" if write else "max_single_read", n)

    @step(b=which_base, i=which, rate=st.sampled_from([1, 20, 5000]))
    def new_group(self, b: int, i: int, rate: int) -> None:
        base = self.bases[b]
        note = Note(base.note)
        with self.using(base):
            cfg = TokenBucketConfig(rate, rate * 2, rate, rate * 2, 0.001)
            self.keep(self.groups, i, RateLimitGroup(base.it, cfg), note)

    @step(ValueError, i=which, g=which)
    def join_group(self, i: int, g: int) -> None:
        one, group = self.pick(self.bevs, i), self.pick(self.groups, g)
        if one and group:
            with self.using(one, group):
                one.it.add_to_rate_limit_group(group.it)

    @step(ValueError, i=which)
    def leave_group(self, i: int) -> None:
        if one := self.pick(self.bevs, i):
            with self.using(one):
                one.it.remove_from_rate_limit_group()

    @step(g=which, rate=st.sampled_from([1, 20, 5000]))
    def change_group(self, g: int, rate: int) -> None:
        if group := self.pick(self.groups, g):
            with self.using(group):
                group.it.set_cfg(TokenBucketConfig(rate, rate * 2, rate, rate * 2, 0.001))
                group.it.set_min_share(rate)

    @step(g=which)
    def close_group(self, g: int) -> None:
        if group := self.pick(self.groups, g):
            self.close(group)

    @step(g=which)
    def drop_group(self, g: int) -> None:
        if self.groups:
            del self.groups[g % len(self.groups)]

    # -- buffers whose callbacks the loop calls --

    @step(b=which_base, i=which)
    def new_buffer(self, b: int, i: int) -> None:
        base = self.bases[b]
        note = Note()
        buf = EvBuffer()
        buf.add_cb(self.on_change, note)
        with self.using(base):
            buf.defer_callbacks(base.it)
        self.keep(self.bufs, i, buf, note)

    @step(i=which, n=counts)
    def fill_buffer(self, i: int, n: int) -> None:
        if one := self.pick(self.bufs, i):
            with self.using(one):
                one.it.add(PATTERN[:n])

    @step(i=which, n=counts)
    def drain_buffer(self, i: int, n: int) -> None:
        if one := self.pick(self.bufs, i):
            with self.using(one):
                one.it.drain(n)

    @step(i=which)
    def close_buffer(self, i: int) -> None:
        if one := self.pick(self.bufs, i):
            self.close(one)

    @step(i=which)
    def drop_buffer(self, i: int) -> None:
        if self.bufs:
            del self.bufs[i % len(self.bufs)]

    # -- what always holds --

    @invariant()
    def nothing_has_failed(self) -> None:
        if self.failures:
            raise self.failures[0]

    @invariant()
    def what_a_closed_base_had_is_closed(self) -> None:
        for base in self.bases:
            if base.it.closed:
                base.note.silent = True
        for one in [*self.events, *self.bevs, *self.listeners, *self.groups]:
            assert one.it.closed or not (one.note.base and one.note.base.silent)

    @invariant()
    def views_show_what_they_showed(self) -> None:
        for view, data in self.views:
            assert view == data


TestMachine = pytest.mark.slow(
    pytest.mark.filterwarnings("ignore:unclosed <EventBase:ResourceWarning")(Machine.TestCase)
)
TestMachine.settings = settings(max_examples=60 * max(FUZZ, 1), stateful_step_count=40)
