"""event2/bufferevent_ssl.h: TLSContext, and what `BufferEvent.tls` tells.

The bufferevents are made by `BufferEvent.openssl_socket` and `BufferEvent.openssl_filter`. Names
and exceptions are those of the standard library's `ssl`, which has no other part in it.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import _callbacks as cb
from ._args import integer
from ._libevent import lib as _main
from .errors import os_error

if TYPE_CHECKING:
    from typing_extensions import Self

    from .bufferevent import BufferEvent

try:
    from ._libevent_ssl import ffi, lib
except ImportError as _import_error:
    _missing: ImportError | None = _import_error
else:
    _missing = None

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Password = str | bytes | bytearray | Callable[[], "str | bytes | bytearray"]
SNICallback = Callable[["BufferEvent", "str | None", "TLSContext"], "TLSContext | int | None"]

_OLDEST = ssl.TLSVersion.TLSv1_2
_ALERTS = 256


def need_openssl() -> None:
    """Raises the ImportError that says what to install, if TLS was left out of the build."""
    if _missing is not None:
        raise ImportError(
            "pylibevent was built without TLS. Install OpenSSL's headers and libevent_openssl, and "
            "build pylibevent again: "
            "Debian/Ubuntu: apt-get install libssl-dev libevent-dev; "
            "Fedora: dnf install openssl-devel libevent-devel; "
            "Alpine: apk add openssl-dev libevent-dev; "
            f"macOS: brew install openssl libevent ({_missing})"
        )


def _why() -> Any:
    return ffi.new("struct pyle_tls_why *")


def _error(why: Any) -> Exception:
    """The exception that `ssl` would raise."""
    if why.truncated:
        return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")
    if not why.code:
        return os_error(why.error, "OpenSSL") if why.error else ssl.SSLError("unknown error")
    texts = [ffi.new("char[256]") for _ in range(3)]
    lib.pyle_tls_texts(why, *texts)
    library, reason, verify = (ffi.string(text).decode(errors="replace") for text in texts)
    library = library.partition(" ")[0].upper()
    name = reason.upper().replace(" ", "_")
    text = f"[{library}: {name}] {reason}"
    exception: ssl.SSLError
    if why.verify:
        exception = ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, f"{text}: {verify}")
        exception.verify_code, exception.verify_message = why.verify, verify
    else:
        exception = ssl.SSLError(ssl.SSL_ERROR_SSL, text)
    exception.library, exception.reason = library, name
    return exception


def _fail_if(rc: int, why: Any) -> int:
    if rc < 0:
        raise _error(why)
    return rc


def _readable(path: Path) -> bytes:
    """The path for C; raises the OSError of a file that cannot be opened."""
    with open(path, "rb"):
        return _path(path)


def _path(path: Path) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _text(value: str, name: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    encoded = value.encode("ascii")
    if b"\0" in encoded:
        raise ValueError(f"NUL in {name}")
    return encoded


class TLSContext:
    """What connections have in common: certificates, what is verified, protocols (SSL_CTX).

    Its methods are named as those of `ssl.SSLContext`. TLS 1.2 at least, no renegotiation.
    Connections keep what they need of it: it may go before them.
    """

    __slots__ = ("__weakref__", "_check_hostname", "_keylog", "_ptr", "_server_side", "_sni")

    _sni: SNICallback | None

    def __init__(self, server_side: bool) -> None:
        need_openssl()
        why = _why()
        ptr = lib.pyle_ctx_new(bool(server_side), why)
        if not ptr:
            raise _error(why)
        self._ptr = ffi.gc(ptr, lib.pyle_ctx_free)
        self._server_side = bool(server_side)
        self._check_hostname = False
        self._keylog: str | None = None
        self._sni = None

    @classmethod
    def client(
        cls,
        *,
        cafile: Path | None = None,
        capath: Path | None = None,
        cadata: str | bytes | None = None,
    ) -> Self:
        """For clients: the server's certificate has to be for the host name and signed by one of
        the given authorities; if none is given, by one that the system trusts."""
        self = cls(False)
        self.check_hostname = True
        if cafile is None and capath is None and cadata is None:
            self.load_default_certs()
        else:
            self.load_verify_locations(cafile, capath, cadata)
        return self

    @classmethod
    def server(cls, cert: Path, key: Path | None = None, password: Password | None = None) -> Self:
        """For servers, with this certificate: see `load_cert_chain`."""
        self = cls(True)
        self.load_cert_chain(cert, key, password)
        return self

    @property
    def server_side(self) -> bool:
        """Whether it is for servers."""
        return self._server_side

    def __repr__(self) -> str:
        return f"<TLSContext {'server' if self._server_side else 'client'} at {id(self):#x}>"

    # ---- certificates ----

    def load_cert_chain(
        self, certfile: Path, keyfile: Path | None = None, password: Password | None = None
    ) -> None:
        """Our own certificate with those of its issuers, a PEM file, and its private key, by
        default in the same file. password, or what it returns, opens an encrypted key; nobody is
        asked for one."""
        given = password() if callable(password) else password
        if isinstance(given, str):
            given = given.encode()
        if given is not None and not isinstance(given, (bytes, bytearray)):
            raise TypeError(f"password must be str or bytes, not {type(given).__name__}")
        secret = ffi.NULL if given is None else bytes(given)
        cert = _readable(certfile)
        key = cert if keyfile is None else _readable(keyfile)
        why = _why()
        length = len(given or b"")
        rc = lib.pyle_ctx_load_cert_chain(self._ptr, cert, key, secret, length, why)
        _fail_if(rc, why)

    def load_verify_locations(
        self,
        cafile: Path | None = None,
        capath: Path | None = None,
        cadata: str | bytes | None = None,
    ) -> None:
        """Whom to trust: a PEM file, a directory as `openssl rehash` makes it, or certificates, PEM
        as str or DER as bytes."""
        if cafile is None and capath is None and cadata is None:
            raise TypeError("cafile, capath and cadata cannot be all omitted")
        why = _why()
        if cadata is not None:
            if not isinstance(cadata, (str, bytes, bytearray, memoryview)):
                raise TypeError(f"cadata must be str or bytes, not {type(cadata).__name__}")
            der = not isinstance(cadata, str)
            raw = cadata.encode("ascii") if isinstance(cadata, str) else bytes(cadata)
            _fail_if(lib.pyle_ctx_load_verify_data(self._ptr, raw, len(raw), der, why), why)
        if cafile is not None or capath is not None:
            file = ffi.NULL if cafile is None else _readable(cafile)
            path = ffi.NULL if capath is None else _path(capath)
            _fail_if(lib.pyle_ctx_load_verify_locations(self._ptr, file, path, why), why)

    def load_default_certs(self) -> None:
        """Trusts whom the system trusts: OpenSSL's directory, or what SSL_CERT_FILE and
        SSL_CERT_DIR name."""
        why = _why()
        _fail_if(lib.pyle_ctx_set_default_verify_paths(self._ptr, why), why)

    set_default_verify_paths = load_default_certs

    # ---- what is verified ----

    @property
    def verify_mode(self) -> ssl.VerifyMode:
        """Whether the other side needs a certificate that can be verified: ssl.CERT_NONE,
        CERT_OPTIONAL (a server takes clients without one) or CERT_REQUIRED."""
        bits = lib.SSL_CTX_get_verify_mode(self._ptr)
        if not bits & 1:
            return ssl.CERT_NONE
        return ssl.CERT_REQUIRED if bits & 2 else ssl.CERT_OPTIONAL

    @verify_mode.setter
    def verify_mode(self, mode: int) -> None:
        mode = ssl.VerifyMode(mode)
        if mode == ssl.CERT_NONE and self._check_hostname:
            raise ValueError(
                "CERT_NONE while check_hostname is on: set check_hostname = False first"
            )
        lib.pyle_ctx_set_verify(self._ptr, mode == ssl.CERT_REQUIRED, mode == ssl.CERT_OPTIONAL)

    @property
    def check_hostname(self) -> bool:
        """Whether a client has the certificate matched with its `server_hostname`. Switching it on
        sets CERT_REQUIRED."""
        return self._check_hostname

    @check_hostname.setter
    def check_hostname(self, check: bool) -> None:
        if check and self._server_side:
            raise ValueError("check_hostname is for clients")
        if check and self.verify_mode == ssl.CERT_NONE:
            self.verify_mode = ssl.CERT_REQUIRED
        self._check_hostname = bool(check)

    # ---- the protocol ----

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        """The oldest version that is spoken, from TLS 1.2 on."""
        return ssl.TLSVersion(lib.pyle_ctx_get_version(self._ptr, 0))

    @minimum_version.setter
    def minimum_version(self, version: int) -> None:
        self._set_version(0, version, ssl.TLSVersion.MINIMUM_SUPPORTED, _OLDEST)

    @property
    def maximum_version(self) -> ssl.TLSVersion:
        """The newest version that is spoken."""
        number = lib.pyle_ctx_get_version(self._ptr, 1)
        return ssl.TLSVersion(number) if number else ssl.TLSVersion.MAXIMUM_SUPPORTED

    @maximum_version.setter
    def maximum_version(self, version: int) -> None:
        self._set_version(1, version, ssl.TLSVersion.MAXIMUM_SUPPORTED, 0)

    def _set_version(self, maximum: int, version: int, any_: int, number: int) -> None:
        version = ssl.TLSVersion(version)
        if version != any_:
            if not _OLDEST <= version <= ssl.TLSVersion.TLSv1_3:
                raise ValueError(f"TLSv1_2 or TLSv1_3, not {version!r}")
            number = version
        why = _why()
        _fail_if(lib.pyle_ctx_set_version(self._ptr, maximum, number, why), why)

    def set_ciphers(self, ciphers: str) -> None:
        """The cipher suites of TLS 1.2, in OpenSSL's notation."""
        self._set_ciphers(ciphers, 0)

    def set_ciphersuites(self, ciphersuites: str) -> None:
        """The cipher suites of TLS 1.3, with colons between them."""
        self._set_ciphers(ciphersuites, 1)

    def _set_ciphers(self, names: str, tls13: int) -> None:
        why = _why()
        _fail_if(lib.pyle_ctx_set_ciphers(self._ptr, _text(names, "ciphers"), tls13, why), why)

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """The protocols to offer or to choose from, the preferred one first. A server that knows
        none of the client's goes on without one."""
        names = [_text(name, "a protocol's name") for name in alpn_protocols]
        if not all(0 < len(name) < 256 for name in names):
            raise ValueError("a protocol's name has 1 to 255 characters")
        wire = b"".join(bytes([len(name)]) + name for name in names)
        if len(wire) > 65535:
            raise ValueError("too many protocols")
        if lib.pyle_ctx_set_alpn(self._ptr, wire, len(wire)) < 0:
            raise MemoryError("SSL_CTX_set_alpn_protos")

    @property
    def num_tickets(self) -> int:
        """How many session tickets a server gives in TLS 1.3."""
        return lib.pyle_ctx_get_num_tickets(self._ptr)

    @num_tickets.setter
    def num_tickets(self, n: int) -> None:
        if not self._server_side:
            raise ValueError("num_tickets is for servers")
        if not 0 <= (n := integer(n, "num_tickets")) <= 255:
            raise ValueError(f"num_tickets must be from 0 to 255, not {n}")
        lib.pyle_ctx_set_num_tickets(self._ptr, n)

    @property
    def keylog_filename(self) -> str | None:
        """A file to which the keys of connections are added, for programs such as Wireshark: who
        can read it can read them."""
        return self._keylog

    @keylog_filename.setter
    def keylog_filename(self, path: Path | None) -> None:
        fd = -1
        if path is not None:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lib.pyle_ctx_set_keylog(self._ptr, fd)
        self._keylog = None if path is None else os.fsdecode(path)

    @property
    def sni_callback(self) -> SNICallback | None:
        """A server's function(bev, server_name, context), called with the name that a client asks
        for, or None. It returns None to go on, another TLSContext to go on with, or an
        ssl.AlertDescription that ends the handshake; so does what it raises."""
        return self._sni

    @sni_callback.setter
    def sni_callback(self, function: SNICallback | None) -> None:
        if function is not None and not callable(function):
            raise TypeError("sni_callback must be callable or None")
        if not self._server_side:
            raise ValueError("sni_callback is for servers")
        self._sni = function
        lib.pyle_ctx_set_sni(self._ptr, function is not None)


class TLSSession:
    """A session of a client's, to go on with in a later connection (SSL_SESSION)."""

    __slots__ = ("_context", "_ptr")

    _context: TLSContext
    _ptr: Any

    def __init__(self) -> None:
        raise TypeError("use BufferEvent.tls.session")

    @classmethod
    def _of(cls, ptr: Any, context: TLSContext) -> TLSSession:
        self = cls.__new__(cls)
        self._ptr = ffi.gc(ptr, lib.SSL_SESSION_free)
        self._context = context
        return self

    @property
    def resumable(self) -> bool:
        """Whether it can be used again. In TLS 1.3 that needs a ticket, which comes with the first
        bytes that the server sends, or right before them."""
        return bool(lib.SSL_SESSION_is_resumable(self._ptr))


class TLSConnection:
    """What was agreed on in a handshake: what `BufferEvent.tls` gives."""

    __slots__ = ("_context", "_host", "_ptr")

    _context: TLSContext
    _host: str | None
    _ptr: Any

    def __init__(self) -> None:
        raise TypeError("use BufferEvent.tls")

    @classmethod
    def _new(
        cls,
        base: Any,
        token: int,
        context: TLSContext,
        host: str | None,
        session: TLSSession | None,
    ) -> TLSConnection:
        self = cls.__new__(cls)
        ptr = lib.pyle_tls_new(context._ptr, context._server_side, base, token)
        if not ptr:
            raise MemoryError("SSL_new")
        self._ptr = ffi.gc(ptr, lib.pyle_tls_unref)
        self._context = context
        self._host = host
        why = _why()
        if host is not None:
            name, is_ip = _host(host)
            check = context._check_hostname
            _fail_if(lib.pyle_tls_set_host(self._ptr, name, is_ip, check, why), why)
        if session is not None:
            _fail_if(lib.pyle_tls_set_session(self._ptr, session._ptr, why), why)
        return self

    @property
    def _connected(self) -> bool:
        return bool(lib.pyle_tls_connected(self._ptr))

    def _dirty(self, allow: bool | None = None) -> bool:
        return bool(lib.pyle_tls_dirty(self._ptr, -1 if allow is None else allow))

    def _failure(self) -> Exception | None:
        why = _why()
        if not lib.pyle_tls_failure(self._ptr, why) or not (why.code or why.truncated):
            return None
        return _error(why)

    @property
    def context(self) -> TLSContext:
        """The context it was made with, or that the SNI callback has chosen."""
        return self._context

    @property
    def version(self) -> str:
        """As "TLSv1.3"."""
        return str(ffi.string(lib.pyle_tls_version(self._ptr)), "ascii")

    @property
    def cipher(self) -> tuple[str, str, int] | None:
        """Its name, the version that has brought it and the number of secret bits."""
        version, bits = ffi.new("char const **"), ffi.new("int *")
        name = lib.pyle_tls_cipher(self._ptr, version, bits)
        if not name:
            return None
        texts = (str(ffi.string(text), "ascii") for text in (name, version[0]))
        return next(texts), next(texts), bits[0]

    @property
    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was chosen, or None."""
        name = ffi.new("unsigned char const **")
        length = lib.pyle_tls_alpn(self._ptr, name)
        return str(ffi.buffer(name[0], length)[:], "ascii") if length else None

    @property
    def peer_certificate(self) -> bytes | None:
        """The other side's certificate, DER, or None."""
        length = lib.pyle_tls_peer(self._ptr, ffi.NULL, 0)
        if not length:
            return None
        out = ffi.new("unsigned char[]", length)
        lib.pyle_tls_peer(self._ptr, out, length)
        return bytes(ffi.buffer(out))

    @property
    def server_hostname(self) -> str | None:
        """The host that the client has asked for."""
        if not self._context._server_side:
            return self._host
        name = lib.pyle_tls_server_name(self._ptr)
        return str(ffi.string(name), "ascii", "replace") if name else None

    @property
    def session_reused(self) -> bool:
        """Whether it goes on with an earlier session."""
        return bool(lib.pyle_tls_session_reused(self._ptr))

    @property
    def session(self) -> TLSSession | None:
        """The session as it is now, for `BufferEvent.openssl_socket(session=...)`; see
        `TLSSession.resumable`."""
        ptr = lib.pyle_tls_session(self._ptr)
        return TLSSession._of(ptr, self._context) if ptr else None

    def __repr__(self) -> str:
        return f"<TLSConnection {self.version} {(self.cipher or ['no cipher'])[0]}>"


def _host(name: str) -> tuple[bytes, bool]:
    """For C, and whether it is an address."""
    try:
        return str(ipaddress.ip_address(name)).encode(), True
    except ValueError:
        pass
    if not name or name.startswith("."):
        raise ValueError("server_hostname must not be empty or start with a dot")
    if "\0" in name:
        raise ValueError("NUL in server_hostname")
    return name.encode("idna").removesuffix(b"."), False


def connection(
    base: Any,
    token: int,
    context: TLSContext,
    server_side: bool | None,
    server_hostname: str | None,
    session: TLSSession | None,
) -> TLSConnection:
    """Checks the arguments of the constructors of BufferEvent."""
    need_openssl()
    if not isinstance(context, TLSContext):
        raise TypeError(f"context must be a TLSContext, not {type(context).__name__}")
    if server_side is not None and bool(server_side) != context._server_side:
        raise ValueError("a server needs a server's context, and a client a client's")
    if context._server_side:
        if server_hostname is not None or session is not None:
            raise ValueError("server_hostname and session are for clients")
    else:
        if server_hostname is None and context._check_hostname:
            raise ValueError("check_hostname needs a server_hostname")
        if server_hostname is not None and not isinstance(server_hostname, str):
            raise TypeError(f"server_hostname must be a str, not {type(server_hostname).__name__}")
        if session is not None and not isinstance(session, TLSSession):
            raise TypeError(f"session must be a TLSSession, not {type(session).__name__}")
        if session is not None and session._context is not context:
            raise ValueError("the session is of another context")
    return TLSConnection._new(base, token, context, server_hostname, session)


def before_the_handshake() -> ssl.SSLError:
    """What is wrong with bytes that came before TLS began."""
    return ssl.SSLError(ssl.SSL_ERROR_SSL, "bytes came in clear before the handshake")


def _sni(slot: int, token: int, name: Any) -> int:
    source = (cb.tables[slot] or cb.table_of(slot)).get(token)
    if source is None or (tls := source._tls) is None or (function := tls._context._sni) is None:
        return cb.DONE
    entered = True  # noqa: F841
    try:
        text = str(ffi.string(name), "ascii", "replace") if name else None
        result = function(source, text, tls._context)
        if result is None:
            return cb.DONE
        if isinstance(result, TLSContext):
            if not result._server_side:
                raise ValueError("sni_callback returned a client's context")
            lib.pyle_tls_set_context(tls._ptr, result._ptr)
            tls._context = result
            return cb.DONE
        if not 0 <= (alert := integer(result, "sni_callback's result")) < _ALERTS:
            raise ValueError(f"unknown alert: {result!r}")
    except BaseException as exception:
        return cb.caught(exception, source)
    return int(alert + lib.PYLE_SNI_ALERT)


if _missing is None:
    lib.pyle_tls_serve(_main.pyle_set_tls_hooks(lib.pyle_tls_hooks()))
    ffi.def_extern(name="pyle_py_sni", onerror=cb.escaped)(_sni)
