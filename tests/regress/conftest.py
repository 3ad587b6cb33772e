"""Bases of all backends, raw ones and that of libevent 1, and C callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pylibevent import EventBase, lib

from .helpers import CHANGELIST, METHODS, Raw, config_for


@pytest.fixture(params=[*METHODS, *([CHANGELIST] if "epoll" in METHODS else [])])
def each_base(request: pytest.FixtureRequest) -> Iterator[EventBase]:
    """A base on each backend of this libevent."""
    with EventBase(config_for(request.param)) as base:
        yield base


@pytest.fixture
def raw() -> Iterator[Raw]:
    """C callbacks, and the exceptions that they met with."""
    raw = Raw()
    yield raw
    raw.finish()


@pytest.fixture
def raw_base() -> Iterator[Any]:
    """A struct event_base *."""
    base = lib.event_base_new()
    yield base
    lib.event_base_free(base)


@pytest.fixture
def current() -> Iterator[Any]:
    """The current base of libevent 1: event_init's, which its other calls mean."""
    base = lib.event_init()
    yield base
    lib.event_base_free(base)
