"""The types of the optional second module. Made by scripts/make_stub.py: do not edit."""

from typing import Final, type_check_only

from ._libevent import _FFI, CData
from ._libevent import _Lib as _Main

@type_check_only
class _Lib(_Main):
    # bufferevent_ssl.h
    BUFFEREVENT_SSL_OPEN: Final[int]
    BUFFEREVENT_SSL_CONNECTING: Final[int]
    BUFFEREVENT_SSL_ACCEPTING: Final[int]
    def OpenSSL_version(self, type: int, /) -> CData: ...
    def bufferevent_openssl_filter_new(
        self, base: CData, underlying: CData, ssl: CData, state: int, options: int, /
    ) -> CData: ...
    def bufferevent_openssl_socket_new(
        self, base: CData, fd: int, ssl: CData, state: int, options: int, /
    ) -> CData: ...
    def bufferevent_openssl_get_allow_dirty_shutdown(self, bev: CData, /) -> int: ...
    def bufferevent_openssl_set_allow_dirty_shutdown(
        self, bev: CData, allow_dirty_shutdown: int, /
    ) -> None: ...
    def bufferevent_openssl_get_ssl(self, bufev: CData, /) -> CData: ...
    def bufferevent_ssl_renegotiate(self, bev: CData, /) -> int: ...
    def bufferevent_get_openssl_error(self, bev: CData, /) -> int: ...

ffi: Final[_FFI]
lib: Final[_Lib]
