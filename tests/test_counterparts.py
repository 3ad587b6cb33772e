"""What comparable bindings of libevent have, we have: a name of ours for each of theirs.

python-libevent 0.9.2, the Python binding of libevent 2.0, and PHP's event 3.1. Not here: their
DNS, HTTP and TLS classes. Names of ours start in the package, or in a module named first.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

import pylibevent

PYTHON_LIBEVENT = {
    "Base": "EventBase",
    "Base.reinit": "EventBase.reinit",
    "Base.dispatch": "EventBase.dispatch",
    "Base.loop": "EventBase.loop",
    "Base.loopexit": "EventBase.loopexit",
    "Base.loopbreak": "EventBase.loopbreak",
    "Base.got_exit": "EventBase.got_exit",
    "Base.got_break": "EventBase.got_break",
    "Base.priority_init": "EventBase.priority_init",
    "Base.method": "EventBase.method",
    "Base.features": "EventBase.features",
    "Config": "EventConfig",
    "Config.avoid_method": "EventConfig.avoid_method",
    "Config.require_features": "EventConfig.require_features",
    "Config.set_flag": "EventConfig.set_flag",
    "Config.set_num_cpus_hint": "EventConfig.set_num_cpus_hint",
    "Event": "Event",
    "Event.add": "Event.add",
    "Event.delete": "Event.delete",
    "Event.set_priority": "Event.priority",
    "Event.base": "Event.base",
    "Event.callback": "Event.callback",
    "Event.userdata": "Event.args",
    "Event.fd": "Event.fd",
    "Timer": "Timer",
    "Signal": "Signal",
    "Buffer": "EvBuffer",
    "Buffer.__len__": "EvBuffer.__len__",
    "Buffer.__contains__": "EvBuffer.__contains__",
    "Buffer.enable_locking": "EvBuffer.enable_locking",
    "Buffer.lock": "EvBuffer.lock",
    "Buffer.unlock": "EvBuffer.lock",  # the end of its with statement
    "Buffer.__enter__": "EvBuffer.lock",
    "Buffer.__exit__": "EvBuffer.lock",
    "Buffer.get_contiguous_space": "EvBuffer.contiguous_space",
    "Buffer.expand": "EvBuffer.expand",
    "Buffer.add": "EvBuffer.add",
    "Buffer.remove": "EvBuffer.remove",
    "Buffer.copyout": "EvBuffer.copyout",
    "Buffer.remove_buffer": "EvBuffer.remove_buffer",
    "Buffer.readln": "EvBuffer.readln",
    "Buffer.add_file": "EvBuffer.add_file",
    "Buffer.drain": "EvBuffer.drain",
    "Buffer.write": "EvBuffer.write",
    "Buffer.read": "EvBuffer.read",
    "Buffer.pullup": "EvBuffer.pullup",
    "Buffer.prepend": "EvBuffer.prepend",
    "Buffer.freeze": "EvBuffer.freeze",
    "Buffer.unfreeze": "EvBuffer.unfreeze",
    "Buffer.defer_callbacks": "EvBuffer.defer_callbacks",
    "Buffer.search": "EvBuffer.search",
    "BufferEvent": "BufferEvent.socket",
    "BufferEvent.lock": "BufferEvent.lock",
    "BufferEvent.unlock": "BufferEvent.lock",
    "BufferEvent.__enter__": "BufferEvent.lock",
    "BufferEvent.__exit__": "BufferEvent.lock",
    "BufferEvent.set_callbacks": "BufferEvent.setcb",
    "BufferEvent.write": "BufferEvent.write",
    "BufferEvent.read": "BufferEvent.read",
    "BufferEvent.enable": "BufferEvent.enable",
    "BufferEvent.disable": "BufferEvent.disable",
    "BufferEvent.set_timeouts": "BufferEvent.set_timeouts",
    "BufferEvent.set_watermark": "BufferEvent.setwatermark",
    "BufferEvent.set_ratelimit": "BufferEvent.set_rate_limit",
    "BufferEvent.base": "BufferEvent.base",
    "BufferEvent.input": "BufferEvent.input",
    "BufferEvent.output": "BufferEvent.output",
    "BufferEvent.bucket": "BufferEvent.token_bucket_cfg",
    "BucketConfig": "TokenBucketConfig",
    "BucketConfig.read_rate": "TokenBucketConfig.read_rate",
    "BucketConfig.read_burst": "TokenBucketConfig.read_burst",
    "BucketConfig.write_rate": "TokenBucketConfig.write_rate",
    "BucketConfig.write_burst": "TokenBucketConfig.write_burst",
    "BucketConfig.tick": "TokenBucketConfig.tick",
    "Listener": "Listener",
    "Listener.enable": "Listener.enable",
    "Listener.disable": "Listener.disable",
    "Listener.base": "Listener.base",
    "Listener.callback": "Listener.set_cb",
    "Listener.userdata": "Listener.set_cb",
    "Listener.fd": "Listener.fd",
    "enable_debug_mode": "enable_debug_mode",
    "socket_get_error": "util.socket_geterror",
    "socket_error_to_string": "util.socket_error_to_string",
    "set_log_callback": "logging:getLogger",  # the logger "libevent"
    "set_fatal_callback": "lib.event_set_fatal_callback",
    "METHODS": "supported_methods",
}

PECL_EVENT = {
    "Event.__construct": "Event",
    "Event.free": "Event.close",
    "Event.set": "Event",  # a new one: they cost little
    "Event.getSupportedMethods": "supported_methods",
    "Event.add": "Event.add",
    "Event.del": "Event.delete",
    "Event.setPriority": "Event.priority",
    "Event.pending": "Event.pending",
    "Event.$pending": "Event.pending",
    "Event.removeTimer": "Event.remove_timer",
    "Event.timer": "Timer",
    "Event.setTimer": "Timer",
    "Event.signal": "Signal",
    "Event.addTimer": "Timer.add",
    "Event.delTimer": "Timer.delete",
    "Event.addSignal": "Signal.add",
    "Event.delSignal": "Signal.delete",
    "Event.$data": "Event.args",
    "EventBase.__construct": "EventBase",
    "EventBase.getMethod": "EventBase.method",
    "EventBase.getFeatures": "EventBase.features",
    "EventBase.priorityInit": "EventBase.priority_init",
    "EventBase.loop": "EventBase.loop",
    "EventBase.dispatch": "EventBase.dispatch",
    "EventBase.exit": "EventBase.loopexit",
    "EventBase.set": "Event",  # an event is made with its base
    "EventBase.stop": "EventBase.loopbreak",
    "EventBase.gotStop": "EventBase.got_break",
    "EventBase.gotExit": "EventBase.got_exit",
    "EventBase.getTimeOfDayCached": "EventBase.gettimeofday_cached",
    "EventBase.reInit": "EventBase.reinit",
    "EventBase.free": "EventBase.close",
    "EventBase.updateCacheTime": "EventBase.update_cache_time",
    "EventBase.resume": "EventBase.loopcontinue",
    "EventConfig.__construct": "EventConfig",
    "EventConfig.avoidMethod": "EventConfig.avoid_method",
    "EventConfig.requireFeatures": "EventConfig.require_features",
    "EventConfig.setMaxDispatchInterval": "EventConfig.set_max_dispatch_interval",
    "EventConfig.setFlags": "EventConfig.set_flag",
    "EventBuffer.__construct": "EvBuffer",
    "EventBuffer.freeze": "EvBuffer.freeze",
    "EventBuffer.unfreeze": "EvBuffer.unfreeze",
    "EventBuffer.lock": "EvBuffer.lock",
    "EventBuffer.unlock": "EvBuffer.lock",
    "EventBuffer.enableLocking": "EvBuffer.enable_locking",
    "EventBuffer.add": "EvBuffer.add",
    "EventBuffer.read": "EvBuffer.remove",
    "EventBuffer.addBuffer": "EvBuffer.add_buffer",
    "EventBuffer.appendFrom": "EvBuffer.remove_buffer",
    "EventBuffer.expand": "EvBuffer.expand",
    "EventBuffer.prepend": "EvBuffer.prepend",
    "EventBuffer.prependBuffer": "EvBuffer.prepend_buffer",
    "EventBuffer.drain": "EvBuffer.drain",
    "EventBuffer.copyout": "EvBuffer.copyout",
    "EventBuffer.readLine": "EvBuffer.readln",
    "EventBuffer.search": "EvBuffer.search",
    "EventBuffer.searchEol": "EvBuffer.search_eol",
    "EventBuffer.pullup": "EvBuffer.pullup",
    "EventBuffer.write": "EvBuffer.write",
    "EventBuffer.readFrom": "EvBuffer.read",
    "EventBuffer.substr": "EvBuffer.copyout_from",
    "EventBuffer.$length": "EvBuffer.__len__",
    "EventBuffer.$contiguous_space": "EvBuffer.contiguous_space",
    "EventBufferEvent.__construct": "BufferEvent.socket",
    "EventBufferEvent.free": "BufferEvent.close",
    "EventBufferEvent.close": "BufferEvent.close",
    "EventBufferEvent.connect": "BufferEvent.connect",
    "EventBufferEvent.connectHost": "BufferEvent.connect_hostname",
    "EventBufferEvent.getDnsErrorString": "BufferEvent.dns_error",
    "EventBufferEvent.setCallbacks": "BufferEvent.setcb",
    "EventBufferEvent.enable": "BufferEvent.enable",
    "EventBufferEvent.disable": "BufferEvent.disable",
    "EventBufferEvent.getEnabled": "BufferEvent.enabled",
    "EventBufferEvent.getInput": "BufferEvent.input",
    "EventBufferEvent.getOutput": "BufferEvent.output",
    "EventBufferEvent.$input": "BufferEvent.input",
    "EventBufferEvent.$output": "BufferEvent.output",
    "EventBufferEvent.setWatermark": "BufferEvent.setwatermark",
    "EventBufferEvent.write": "BufferEvent.write",
    "EventBufferEvent.writeBuffer": "BufferEvent.write_buffer",
    "EventBufferEvent.read": "BufferEvent.read",
    "EventBufferEvent.readBuffer": "BufferEvent.read_buffer",
    "EventBufferEvent.createPair": "BufferEvent.pair",
    "EventBufferEvent.setPriority": "BufferEvent.priority",
    "EventBufferEvent.$priority": "BufferEvent.priority",
    "EventBufferEvent.setTimeouts": "BufferEvent.set_timeouts",
    "EventBufferEvent.$fd": "BufferEvent.fd",
    "EventListener.__construct": "Listener",
    "EventListener.__construct, an address": "Listener.bind",
    "EventListener.free": "Listener.close",
    "EventListener.enable": "Listener.enable",
    "EventListener.disable": "Listener.disable",
    "EventListener.setCallback": "Listener.set_cb",
    "EventListener.setErrorCallback": "Listener.set_error_cb",
    "EventListener.getBase": "Listener.base",
    "EventListener.getSocketName": "Listener.address",
    "EventListener.$fd": "Listener.fd",
    "EventUtil.getLastSocketErrno": "util.socket_geterror",
    "EventUtil.getLastSocketError": "util.socket_error_to_string",
    "EventUtil.getSocketName": "socket:socket.getsockname",
    "EventUtil.getSocketFd": "socket:socket.fileno",
    "EventUtil.setSocketOption": "socket:socket.setsockopt",
    "EventUtil.createSocket": "socket:socket",
    "EventUtil::LIBEVENT_VERSION_NUMBER": "header_version",
    "EventException": "LibeventError",
    "EventException.$errorInfo": "BufferEvent.error",
}

# What neither of them has.
BEYOND = [
    *["EventBase.once", "EventBase.num_events", "EventBase.max_events", "EventBase.foreach_event"],
    *["EventBase.dump_events", "EventBase.running_event", "EventBase.init_common_timeout"],
    *["EventBase.active_by_fd", "EventBase.active_by_signal", "Event.active", "Event.finalize"],
    *["EvBuffer.add_reference", "EvBuffer.add_buffer_reference", "EvBuffer.add_file_segment"],
    *["EvBuffer.peek", "EvBuffer.reserve_space", "EvBuffer.commit_space", "EvBuffer.add_iovec"],
    *["EvBuffer.add_cb", "EvBuffer.readlines", "FileSegment", "BufferPosition"],
    *["BufferEvent.filter", "BufferEvent.trigger", "BufferEvent.trigger_event"],
    *["BufferEvent.flush", "BufferEvent.getwatermark", "BufferEvent.max_single_read"],
    *["BufferEvent.max_single_write", "BufferEvent.add_to_rate_limit_group", "RateLimitGroup"],
    *["BufferEvent.remove_from_rate_limit_group", "BufferEvent.close_after_write"],
    *["util.socketpair", "util.parse_sockaddr_port", "util.getaddrinfo", "util.MonotonicTimer"],
    *["util.secure_rng_get_bytes", "tag.marshal", "tag.unmarshal"],
]

# Constants under their C names: python-libevent has these families, PHP has most of them
# (EventBufferEvent::OPT_DEFER_CALLBACKS is BEV_OPT_DEFER_CALLBACKS).
CONSTANTS = """
EV_TIMEOUT EV_READ EV_WRITE EV_SIGNAL EV_PERSIST EV_ET EV_FINALIZE EV_CLOSED
EV_FEATURE_ET EV_FEATURE_O1 EV_FEATURE_FDS EV_FEATURE_EARLY_CLOSE
EVLOOP_ONCE EVLOOP_NONBLOCK EVLOOP_NO_EXIT_ON_EMPTY
EVENT_BASE_FLAG_NOLOCK EVENT_BASE_FLAG_IGNORE_ENV EVENT_BASE_FLAG_STARTUP_IOCP
EVENT_BASE_FLAG_NO_CACHE_TIME EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST EVENT_BASE_FLAG_PRECISE_TIMER
EVBUFFER_EOL_ANY EVBUFFER_EOL_CRLF EVBUFFER_EOL_CRLF_STRICT EVBUFFER_EOL_LF EVBUFFER_EOL_NUL
EVBUFFER_PTR_SET EVBUFFER_PTR_ADD
BEV_EVENT_READING BEV_EVENT_WRITING BEV_EVENT_EOF BEV_EVENT_ERROR BEV_EVENT_TIMEOUT
BEV_EVENT_CONNECTED
BEV_OPT_CLOSE_ON_FREE BEV_OPT_THREADSAFE BEV_OPT_DEFER_CALLBACKS BEV_OPT_UNLOCK_CALLBACKS
BEV_NORMAL BEV_FLUSH BEV_FINISHED BEV_OK BEV_NEED_MORE BEV_ERROR
LEV_OPT_LEAVE_SOCKETS_BLOCKING LEV_OPT_CLOSE_ON_FREE LEV_OPT_CLOSE_ON_EXEC LEV_OPT_REUSEABLE
LEV_OPT_DISABLED LEV_OPT_THREADSAFE LEV_OPT_DEFERRED_ACCEPT LEV_OPT_REUSEABLE_PORT
"""


def find(name: str) -> Any:
    """The object of a dotted name in the package, or behind `module:`."""
    module, _, path = name.rpartition(":")
    found: Any = importlib.import_module(module) if module else pylibevent
    for part in path.split("."):
        found = getattr(found, part, None)
        assert found is not None, f"there is no {name}: {part} is missing"
    return found


def check(name: str) -> None:
    found = find(name)
    if name.startswith("lib."):
        assert callable(found)
    elif not name.endswith("__") and (callable(found) or isinstance(found, property)):
        assert inspect.getdoc(found), f"{name} has no docstring"


@pytest.mark.parametrize(("theirs", "ours"), PYTHON_LIBEVENT.items())
def test_python_libevent(theirs: str, ours: str) -> None:
    check(ours)


@pytest.mark.parametrize(("theirs", "ours"), PECL_EVENT.items())
def test_pecl_event(theirs: str, ours: str) -> None:
    check(ours)


@pytest.mark.parametrize("ours", BEYOND)
def test_what_they_do_not_have(ours: str) -> None:
    check(ours)


@pytest.mark.parametrize("name", CONSTANTS.split())
def test_a_constant_prints_as_its_c_name(name: str) -> None:
    constant = find(name)
    assert constant == getattr(pylibevent.lib, name)
    assert str(constant) == name
