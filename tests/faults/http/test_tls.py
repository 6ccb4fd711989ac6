"""Certificates, TLS versions, and the choice of the TLS library."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import ConfigError
from coldstream.net import tls
from coldstream.net.connection import Connection
from coldstream.net.http_message import FetchError, Target, parse_target
from coldstream.net.pool import read
from coldstream.net.tls import TlsSettings
from tests.faults.http.connections import BACKENDS, DATA, PATH, QUICK, TLS_BACKENDS, Setup, trust
from tests.servers.ranged import RangedServer, certificates


def get_range(connection: Connection, target: Target) -> None:
    connection.get(target, 0, 100, memoryview(bytearray(100)), etag=None, size=None)


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "plain"])
def test_a_bad_tls_record_is_broken(backend: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        setup = Setup(server, trust(backend), [])
        server.add("bad-record", at=1_000_000)
        error = setup.fail()
        assert (error.kind, error.received) == ("broken", 1_000_000)
        setup.get(error.received, len(DATA))
        for connection in setup.opened:
            connection.close()


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize(
    ("name", "host", "words"),
    [
        ("wrong_host", "127.0.0.1", "mismatch"),
        ("wrong_host", "localhost", "mismatch"),
        ("expired", "localhost", "expired"),
        ("unknown", "localhost", "unable to get local issuer"),
    ],
)
def test_certificates_are_checked(backend: str, name: str, host: str, words: str) -> None:
    with RangedServer({PATH: DATA}, tls=getattr(certificates(), name)) as server:
        target = parse_target(server.link(PATH, host=host))
        connection = Connection(target, tls=trust(backend), timeouts=QUICK)
        with pytest.raises(FetchError, match=words) as caught:
            connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
        assert caught.value.kind == "tls"
        assert server.requests == []


@pytest.mark.parametrize("backend", TLS_BACKENDS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_name_and_an_address_are_both_verified(backend: str, host: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        target = parse_target(server.link(PATH, host=host))
        connection = Connection(target, tls=trust(backend), timeouts=QUICK)
        buffer = bytearray(1000)
        connection.get(target, 0, 1000, memoryview(buffer), etag=None, size=None)
        assert buffer == DATA[:1000]
        connection.close()


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_plain_http_behind_https_is_permanent_and_https_behind_http_is_not_valid_http(backend: str) -> None:
    with RangedServer({PATH: DATA}) as plain, RangedServer({PATH: DATA}, tls=True) as secure:
        target = parse_target(f"https://127.0.0.1:{plain.port}/")
        with pytest.raises(FetchError) as caught:
            Connection(target, tls=trust(backend), timeouts=QUICK).get(
                target, 0, 100, memoryview(bytearray(100)), etag=None, size=None
            )
        assert caught.value.kind == "tls"
        target = parse_target(f"http://127.0.0.1:{secure.port}/")
        with pytest.raises(FetchError) as caught:
            get_range(Connection(target, timeouts=QUICK), target)
        assert caught.value.kind in {"broken", "protocol"}


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_tls_1_1_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl
    import warnings

    with RangedServer({PATH: DATA}, tls=True) as server:
        assert server._context is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            server._context.minimum_version = ssl.TLSVersion.TLSv1
            server._context.maximum_version = ssl.TLSVersion.TLSv1_1
        target = parse_target(server.link(PATH))
        with pytest.raises(FetchError) as caught:
            Connection(target, tls=trust(backend), timeouts=QUICK).get(
                target, 0, 100, memoryview(bytearray(100)), etag=None, size=None
            )
        assert caught.value.kind in {"tls", "broken"}


def test_a_certificate_from_the_environment_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        with pytest.raises(FetchError) as caught:
            read(server.link(PATH), stop=10)
        assert caught.value.kind == "tls"
        for name in ["SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"]:
            with monkeypatch.context() as patch:
                patch.setenv(name, str(certificates().ca_file))
                assert read(server.link(PATH), stop=10).body == DATA[:10]


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_a_cut_is_not_an_end_where_tls_can_tell(backend: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        target = parse_target(server.link(PATH))
        server.add("garbage", value="HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99/3000000\r\n\r\nuntil the end")
        with pytest.raises(FetchError) as caught:
            Connection(target, tls=trust(backend), timeouts=QUICK).get(
                target, 0, 100, memoryview(bytearray(100)), etag=None, size=None
            )
        assert caught.value.kind == "broken"


def test_without_cryptography_the_standard_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(tls, "_contexts", {})
    for name in list(sys.modules):
        if name.startswith("cryptography.hazmat.bindings.openssl"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.bindings.openssl.binding", None)
    check_fallback()


def test_with_an_unexpected_cryptography_the_standard_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_contexts", {})
    monkeypatch.setattr(tls._CryptographyContext, "_NAMES", "SSL_read SSL_that_went_away")
    check_fallback()


def check_fallback() -> None:
    with RangedServer({PATH: DATA}, tls=True) as server:
        target = parse_target(server.link(PATH))
        connection = Connection(target, tls=trust("auto"), timeouts=QUICK)
        connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
        assert "ssl)" in repr(connection)
        connection.close()
        with pytest.raises(ConfigError, match="cryptography"):
            tls.context_for(trust("cryptography"))


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for backend in TLS_BACKENDS:
        with pytest.raises(ConfigError, match="no certificates can be read"):
            tls.context_for(TlsSettings(ca_files=(str(tmp_path / "bad.pem"),), backend=backend))  # type: ignore[arg-type]
