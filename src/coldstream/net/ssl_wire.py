"""A wire over Python's `ssl`, where `cryptography` is not installed. Apart, since `ssl` takes long to import."""

from __future__ import annotations

import socket
import ssl
import time

from coldstream.net.tls import HOPELESS, CertificateError, nothing_to_read


class SslWire:
    """TLS by Python's `ssl`."""

    label = "ssl"

    def __init__(self, sock: ssl.SSLSocket, poll_seconds: float) -> None:
        self.sock: socket.socket = sock
        self._tls = sock
        self._poll_seconds = poll_seconds
        self._failure: OSError | None = None

    def handshake(self) -> bool:
        """One step of the handshake; whether it is done.

        Raises:
            CertificateError: The certificate is not valid for the host, or there is no TLS in common.
            OSError: The connection is broken.
        """
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except ssl.SSLCertVerificationError as exc:
            raise CertificateError(exc.verify_message) from exc
        except ssl.SSLError as exc:
            reason = (exc.reason or "").replace("_", " ").lower()
            if any(word in reason for word in HOPELESS):
                raise CertificateError(reason) from exc
            raise
        return True

    def send(self, data: bytes) -> None:
        # Requests are small: partial writes are off in OpenSSL, so a call writes all or fails.
        try:
            self._tls.sendall(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            raise TimeoutError("send timed out") from exc

    def receive(self, view: memoryview) -> int:
        if self._failure:
            raise self._failure
        tls, wanted, done = self._tls, len(view), 0
        deadline = time.monotonic() + self._poll_seconds
        try:
            while done < wanted:
                count = tls.recv_into(view[done:])
                if count == 0:
                    return done
                done += count
                if time.monotonic() >= deadline:
                    return done
        except ssl.SSLWantReadError:
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
        except ssl.SSLWantReadError:
            return -1

    def is_quiet(self) -> bool:
        return not self._failure and nothing_to_read(self)

    def close(self) -> None:
        self.sock.close()
