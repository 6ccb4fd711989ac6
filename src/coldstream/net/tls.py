"""TLS for the engine: a verified context, and the reading of a connection straight into the destination.

`cryptography` brings its own OpenSSL, usually newer than the system's and with quicker AES-GCM code, and its bindings
read into any buffer without a copy; measured in docs/benchmarks.md. Python's `ssl` is always there. Both verify the
chain and the host name, require TLS 1.2, and trust the same certificates.

A `ByteStream` is a connected socket, plain or TLS. It blocks, with a receive timeout of the poll interval, so that a
waiting thread costs nothing and still checks for a cancel regularly.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from coldstream.errors import ConfigError

if TYPE_CHECKING:
    import ssl

Backend = Literal["auto", "cryptography", "ssl"]

# They name the trusted certificates; together they replace the system's. boto3 can use only the first file.
CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

# Where distributions keep theirs, when Python's own build looks elsewhere (the list of Go's crypto/x509).
_SYSTEM_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_SYSTEM_FOLDERS = ("/etc/ssl/certs",)

# OpenSSL's reasons for a handshake that can never succeed; any other failure may pass.
_PERMANENT_REASONS = (
    "wrong version number",
    "unsupported protocol",
    "alert protocol version",
    "alert handshake failure",
    "unrecognized name",
    "http request",
    "packet length too long",
    "record layer failure",
)


class CertificateError(Exception):
    """The server cannot be trusted, or the two sides have no TLS in common. Permanent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The trusted certificates and the library to use. Hashable: contexts are cached by it.

    Without `ca_files` (PEM) and `ca_dirs` (certificates under their hashed names), the system's or certifi's are
    trusted. "auto" uses `cryptography` if it is installed with the expected bindings, else `ssl`.
    """

    ca_files: tuple[str, ...] = ()
    ca_dirs: tuple[str, ...] = ()
    backend: Backend = "auto"


def tls_settings(
    environ: Mapping[str, str] | None = None, *, ca_bundle: str | None = None, backend: Backend = "auto"
) -> TlsSettings:
    """The settings from the environment; `ca_bundle` replaces AWS_CA_BUNDLE. ConfigError: a file does not exist."""
    environ = os.environ if environ is None else environ
    files: list[str] = []
    folders: list[str] = []
    for name in CA_VARIABLES:
        value = (name == "AWS_CA_BUNDLE" and ca_bundle) or environ.get(name) or ""
        for path in value.split(os.pathsep if name == "SSL_CERT_DIR" else "\0"):
            if not path:
                continue
            if os.path.isdir(path) and name != "SSL_CERT_FILE":
                folders.append(path)
            elif os.path.isfile(path) and name != "SSL_CERT_DIR":
                files.append(path)
            else:
                raise ConfigError(f"{name}: there are no certificates at {path!r}", hint="name a PEM file that exists")
    return TlsSettings(ca_files=tuple(files), ca_dirs=tuple(folders), backend=backend)


def trusted_places(settings: TlsSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files and folders to load: those of the settings, else the system's, else certifi's, else ConfigError."""
    if settings.ca_files or settings.ca_dirs:
        return settings.ca_files, settings.ca_dirs
    import glob
    import ssl

    paths = ssl.get_default_verify_paths()
    # A folder of hashed names is read certificate by certificate as they are needed: 1 ms instead of 30 to 55.
    for folder in (paths.capath, *_SYSTEM_FOLDERS):
        if folder and glob.glob(os.path.join(glob.escape(folder), "*.0")):
            return (), (folder,)
    for file in (paths.cafile, *_SYSTEM_FILES):
        if file and os.path.isfile(file):
            return (file,), ()
    try:
        import certifi
    except ImportError:
        raise ConfigError(
            "this machine has no trusted certificates", hint="install ca-certificates, or name a file in SSL_CERT_FILE"
        ) from None
    return (certifi.where(),), ()


class ByteStream:
    """A connected socket, for a single thread; another thread can shut the socket down to wake it."""

    sock: socket.socket
    label: str
    _wake_bytes = 1

    def wake_at(self, count: int) -> None:
        """Lets receives wait for `count` bytes, or until the poll interval is over."""
        if count != self._wake_bytes:
            self._wake_bytes = count
            with suppress(OSError):  # a system that cannot wakes it sooner
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def send(self, data: bytes) -> None:
        """Sends all of it, or raises OSError."""
        raise NotImplementedError

    def receive(self, view: memoryview) -> int:
        """Fills the view as far as possible within about the poll interval.

        Returns the number of bytes, 0 when the server has closed the connection in order, -1 when nothing arrived.
        Raises OSError when the connection is broken and all earlier bytes have been returned.
        """
        raise NotImplementedError

    def receive_some(self, view: memoryview) -> int:
        """Like `receive`, but returns as soon as there is a byte."""
        raise NotImplementedError

    def is_quiet(self) -> bool:
        """Whether the connection is open and no data is pending, between two replies. Never waits.

        Under TLS the data in the socket may be only a session ticket: that only TLS can tell.
        """
        os.set_blocking(self.sock.fileno(), False)
        try:
            return self.receive_some(memoryview(bytearray(1))) == -1
        except OSError:
            return False
        finally:
            os.set_blocking(self.sock.fileno(), True)


def set_timeouts(sock: socket.socket, *, poll_seconds: float, send_seconds: float) -> None:
    """Makes the socket block, and lets receives return after `poll_seconds` and sends after `send_seconds`.

    Python's own timeouts would make it non-blocking and cost a poll for each receive.
    """
    sock.settimeout(None)
    for option, seconds in ((socket.SO_RCVTIMEO, poll_seconds), (socket.SO_SNDTIMEO, send_seconds)):
        whole = int(seconds)
        timeval = struct.pack("@ll", whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


class PlainStream(ByteStream):
    """TCP without TLS."""

    label = "plain"

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, view: memoryview) -> int:
        try:
            # One call into the kernel for the whole piece: it returns early on the poll interval, an end or an error.
            return self.sock.recv_into(view, len(view), socket.MSG_WAITALL)
        except BlockingIOError:
            return -1

    def receive_some(self, view: memoryview) -> int:
        try:
            return self.sock.recv_into(view)
        except BlockingIOError:
            return -1


class TlsStream(ByteStream):
    """A stream whose handshake is still to be done."""

    def __init__(self, sock: socket.socket, poll_seconds: float) -> None:
        self.sock, self._poll_seconds = sock, poll_seconds
        # The error that ended a receive after some bytes.
        self._failure: OSError | None = None

    def handshake(self) -> bool:
        """One step of the handshake; returns whether it is done. Raises CertificateError and OSError."""
        raise NotImplementedError


class CryptographyStream(TlsStream):
    """TLS by the OpenSSL inside `cryptography`, read without a copy.

    The socket is connected and blocks, with a receive timeout of `poll_seconds`; the certificate must be for `host`.
    """

    def __init__(self, sock: socket.socket, context: _CryptographyContext, host: str, poll_seconds: float) -> None:
        super().__init__(sock, poll_seconds)
        self.label = f"cryptography ({context.version})"
        self._lib, self._ffi, self._context = context.lib, context.ffi, context
        self._ssl = context.new(sock, host)

    def handshake(self) -> bool:
        self._lib.ERR_clear_error()
        result = self._lib.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        verified = self._lib.SSL_get_verify_result(self._ssl)
        error = self._error(result)
        if isinstance(error, BlockingIOError):
            return False
        if isinstance(error, EOFError):
            raise ConnectionResetError("closed in the handshake")
        if verified != self._lib.X509_V_OK:
            why = self._ffi.string(self._lib.X509_verify_cert_error_string(verified)).decode()
            raise CertificateError(why)
        if isinstance(error, _TlsError) and _is_permanent(error.reason):
            raise CertificateError(error.reason)
        raise error

    def send(self, data: bytes) -> None:
        # Requests are small: partial writes are off in OpenSSL, so a call writes all or has to be repeated.
        while True:
            self._lib.ERR_clear_error()
            result = self._lib.SSL_write(self._ssl, data, len(data))
            if result == len(data):
                return
            error = self._error(result)
            if isinstance(error, EOFError):
                raise ConnectionResetError("closed")
            if not isinstance(error, BlockingIOError):
                raise error
            if error.args[-1] == "write":
                raise TimeoutError("send timed out")

    def receive(self, view: memoryview) -> int:
        if self._failure:
            raise self._failure
        read, tls, size, done = self._lib.SSL_read, self._ssl, len(view), 0
        self._lib.ERR_clear_error()
        deadline = time.monotonic() + self._poll_seconds
        # It holds the buffer only while this call lasts; the view may be released right after.
        with self._ffi.from_buffer(view, require_writable=True) as place:
            while done < size:
                count = read(tls, place + done, size - done)
                if count <= 0:
                    return self._ended(count, done)
                done += count
                if time.monotonic() >= deadline:
                    break
        return done

    def receive_some(self, view: memoryview) -> int:
        if self._failure:
            raise self._failure
        self._lib.ERR_clear_error()
        with self._ffi.from_buffer(view, require_writable=True) as place:
            count: int = self._lib.SSL_read(self._ssl, place, len(view))
        return count if count > 0 else self._ended(count, 0)

    def _ended(self, result: int, done: int) -> int:
        """The value of a receive that `result` ended after `done` bytes."""
        error = self._error(result)
        if isinstance(error, BlockingIOError):
            return done or -1
        if isinstance(error, EOFError):
            return done
        if not done:
            raise error
        self._failure = error
        return done

    def _error(self, result: int) -> OSError | EOFError:
        """The exception for a result <= 0: BlockingIOError to go on, EOFError for an end in order."""
        lib, errno = self._lib, self._ffi.errno
        code = lib.SSL_get_error(self._ssl, result)
        if code == lib.SSL_ERROR_WANT_READ:
            return BlockingIOError(0, "read")
        if code == lib.SSL_ERROR_WANT_WRITE:
            return BlockingIOError(0, "write")
        if code == lib.SSL_ERROR_ZERO_RETURN:
            return EOFError("closed")
        if code == lib.SSL_ERROR_SYSCALL and errno:
            return OSError(errno, os.strerror(errno))
        reason = lib.ERR_reason_error_string(lib.ERR_peek_error())
        lib.ERR_clear_error()
        text = self._ffi.string(reason).decode("ascii", "replace") if reason != self._ffi.NULL else "closed"
        return _TlsError(text)


class _TlsError(ConnectionError):
    """A failure that OpenSSL names a reason for."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SslStream(TlsStream):
    """TLS by Python's `ssl`, which is imported only where it is used: that takes long."""

    label = "ssl"

    def __init__(self, sock: ssl.SSLSocket, poll_seconds: float) -> None:
        import ssl

        super().__init__(sock, poll_seconds)
        self._ssl, self._tls = ssl, sock

    def handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except (self._ssl.SSLWantReadError, self._ssl.SSLWantWriteError):
            return False
        except self._ssl.SSLError as exc:
            if fault := tls_fault(exc):
                raise CertificateError(fault) from exc
            raise
        return True

    def send(self, data: bytes) -> None:
        # Requests are small: partial writes are off in OpenSSL, so a call writes all or fails.
        try:
            self._tls.sendall(data)
        except (self._ssl.SSLWantReadError, self._ssl.SSLWantWriteError) as exc:
            raise TimeoutError("send timed out") from exc

    def receive(self, view: memoryview) -> int:
        if self._failure:
            raise self._failure
        tls, size, done = self._tls, len(view), 0
        deadline = time.monotonic() + self._poll_seconds
        try:
            while done < size:
                count = tls.recv_into(view[done:])
                if count == 0:
                    return done
                done += count
                if time.monotonic() >= deadline:
                    return done
        except self._ssl.SSLWantReadError:
            return done or -1
        except OSError as exc:
            if not done:
                raise
            self._failure = exc
        return done

    def receive_some(self, view: memoryview) -> int:
        if self._failure:
            raise self._failure
        try:
            return self._tls.recv_into(view)
        except self._ssl.SSLWantReadError:
            return -1


def _is_permanent(reason: str) -> bool:
    return any(words in reason for words in _PERMANENT_REASONS)


def tls_fault(exc: BaseException) -> str | None:
    """Why TLS with a server can never succeed, by the `ssl.SSLError` that is behind an error of an HTTP client.

    None: TLS did not fail, or the failure may pass.
    """
    import ssl

    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or "").replace("_", " ").lower()
            return reason if _is_permanent(reason) else None
        inner = (argument for argument in cause.args if isinstance(argument, BaseException))
        # urllib3 keeps the cause of its own errors in an argument.
        cause = next(inner, None) or cause.__cause__ or cause.__context__
    return None


class _CryptographyContext:
    """An SSL_CTX of the OpenSSL inside `cryptography`. ImportError: its bindings are missing or not as expected."""

    # All functions and constants that are used; a later version without one of them is not.
    _NAMES = (
        "ERR_clear_error ERR_peek_error ERR_reason_error_string OpenSSL_version OPENSSL_VERSION SSL_CTX_free "
        "SSL_CTX_load_verify_locations SSL_CTX_new SSL_CTX_set_min_proto_version SSL_CTX_set_verify SSL_do_handshake "
        "SSL_ERROR_SYSCALL SSL_ERROR_WANT_READ SSL_ERROR_WANT_WRITE SSL_ERROR_ZERO_RETURN SSL_free SSL_get0_param "
        "SSL_get_error SSL_get_verify_mode SSL_get_verify_result SSL_new SSL_read SSL_set_connect_state SSL_set_fd "
        "SSL_set_tlsext_host_name SSL_VERIFY_PEER SSL_write TLS1_2_VERSION TLS_client_method "
        "X509_CHECK_FLAG_NEVER_CHECK_SUBJECT X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS X509_VERIFY_PARAM_set1_host "
        "X509_VERIFY_PARAM_set1_ip X509_VERIFY_PARAM_set_hostflags X509_V_OK X509_verify_cert_error_string"
    )

    def __init__(self, files: tuple[str, ...], folders: tuple[str, ...]) -> None:
        from cryptography.hazmat.bindings.openssl.binding import Binding

        binding: Any = Binding()
        lib: Any = getattr(binding, "lib", None)
        ffi: Any = getattr(binding, "ffi", None)
        missing = [name for name in self._NAMES.split() if not hasattr(lib, name)]
        if missing or not hasattr(ffi, "from_buffer"):
            raise ImportError(f"the bindings of cryptography lack {missing}")
        self.lib, self.ffi = lib, ffi
        self.version: str = ffi.string(lib.OpenSSL_version(lib.OPENSSL_VERSION)).decode()
        self._context = ffi.gc(lib.SSL_CTX_new(lib.TLS_client_method()), lib.SSL_CTX_free)
        lib.SSL_CTX_set_min_proto_version(self._context, lib.TLS1_2_VERSION)
        lib.SSL_CTX_set_verify(self._context, lib.SSL_VERIFY_PEER, ffi.NULL)
        places = [(os.fsencode(file), ffi.NULL) for file in files]
        places += [(ffi.NULL, os.fsencode(folder)) for folder in folders]
        for file, folder in places:
            if lib.SSL_CTX_load_verify_locations(self._context, file, folder) != 1:
                lib.ERR_clear_error()
                raise ConfigError(f"no certificates can be read from {', '.join(files + folders)}")

    def new(self, sock: socket.socket, host: str) -> Any:
        """An SSL for one connection, which only accepts a certificate for `host`."""
        lib, ffi = self.lib, self.ffi
        tls = ffi.gc(lib.SSL_new(self._context), lib.SSL_free)
        parameters = lib.SSL_get0_param(tls)
        lib.X509_VERIFY_PARAM_set_hostflags(
            parameters, lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
        )
        try:
            address = ipaddress.ip_address(host).packed
        except ValueError:
            address = b""
        if address:
            done = lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))
        else:
            name = host.encode("ascii")
            done = lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
            lib.SSL_set_tlsext_host_name(tls, name)
        # Without these the certificate would be taken for any host: nothing goes on unless they hold.
        if done != 1 or lib.SSL_get_verify_mode(tls) != lib.SSL_VERIFY_PEER or lib.SSL_set_fd(tls, sock.fileno()) != 1:
            raise CertificateError(f"OpenSSL refused to check a certificate for {host!r}")
        lib.SSL_set_connect_state(tls)
        return tls


_contexts: dict[TlsSettings, ssl.SSLContext | _CryptographyContext] = {}
_contexts_lock = threading.Lock()


def context_for(settings: TlsSettings) -> ssl.SSLContext | _CryptographyContext:
    """The context for these settings, made once per process. Thread-safe; may be called before a fork.

    ConfigError: the certificates cannot be read, or the backend is not available.
    """
    with _contexts_lock:
        if settings not in _contexts:
            _contexts[settings] = _new_context(settings)
        return _contexts[settings]


def ssl_context(*, ca_bundle: str | None = None) -> ssl.SSLContext:
    """A context for other HTTP clients, with the certificates that the engine trusts. Raises ConfigError."""
    context = context_for(tls_settings(ca_bundle=ca_bundle, backend="ssl"))
    assert not isinstance(context, _CryptographyContext)
    return context


def _new_context(settings: TlsSettings) -> ssl.SSLContext | _CryptographyContext:
    import ssl

    files, folders = trusted_places(settings)
    if settings.backend != "ssl":
        try:
            return _CryptographyContext(files, folders)
        except ImportError as exc:
            if settings.backend == "cryptography":
                raise ConfigError(f"the TLS backend cryptography is not available: {exc}") from exc
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        for file in files:
            context.load_verify_locations(cafile=file)
        for folder in folders:
            context.load_verify_locations(capath=folder)
    except OSError as exc:
        raise ConfigError(f"no certificates can be read from {', '.join(files + folders)}") from exc
    return context


def tls_stream(sock: socket.socket, host: str, settings: TlsSettings, poll_seconds: float) -> TlsStream:
    """A stream over a connected socket that blocks with timeouts; its `handshake` is still to be done.

    The stream's `sock` replaces `sock`, which must not be used any more.
    """
    context = context_for(settings)
    if isinstance(context, _CryptographyContext):
        return CryptographyStream(sock, context, host, poll_seconds)
    # To Python the socket does not block, so that `ssl` reports "nothing yet" instead of waiting again; to the kernel
    # it does, for as long as its receive timeout.
    sock.settimeout(0)
    wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    os.set_blocking(wrapped.fileno(), True)
    return SslStream(wrapped, poll_seconds)
