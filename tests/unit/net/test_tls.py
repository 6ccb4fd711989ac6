"""Whom the TLS contexts trust."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest

from coldstream.errors import ConfigError
from coldstream.net import tls


def test_certificates_are_found_in_the_environment(tmp_path: Path) -> None:
    file, other, folder = tmp_path / "a.pem", tmp_path / "b.pem", tmp_path / "certs"
    file.touch()
    other.touch()
    folder.mkdir()
    environ = {"SSL_CERT_FILE": str(file), "AWS_CA_BUNDLE": str(other), "SSL_CERT_DIR": f"{folder}::{folder}"}
    settings = tls.tls_settings(environ, backend="ssl")
    assert settings.ca_files == (str(other), str(file))
    assert settings.ca_dirs == (str(folder), str(folder))
    assert settings.backend == "ssl"
    assert tls.trusted_places(settings) == (settings.ca_files, settings.ca_dirs)
    assert tls.tls_settings({"REQUESTS_CA_BUNDLE": str(folder), "SSL_CERT_FILE": ""}).ca_dirs == (str(folder),)
    assert tls.tls_settings({}) == tls.TlsSettings()


@pytest.mark.parametrize("name", tls.CA_VARIABLES)
def test_certificates_that_are_not_there_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        tls.tls_settings({name: str(tmp_path / "missing")})


def test_the_systems_certificates_are_preferred_to_certifis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ssl.get_default_verify_paths()
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths._replace(cafile=None, capath=str(tmp_path)))
    monkeypatch.setattr(tls, "_SYSTEM_FILES", (str(tmp_path / "bundle.pem"),))
    monkeypatch.setattr(tls, "_SYSTEM_FOLDERS", ())
    import certifi

    assert tls.trusted_places(tls.TlsSettings()) == ((certifi.where(),), ())
    (tmp_path / "bundle.pem").touch()
    assert tls.trusted_places(tls.TlsSettings()) == ((str(tmp_path / "bundle.pem"),), ())
    (tmp_path / "0123abcd.0").touch()
    assert tls.trusted_places(tls.TlsSettings()) == ((), (str(tmp_path),))


def test_without_any_certificates_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ssl.get_default_verify_paths()
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths._replace(cafile=None, capath=None))
    monkeypatch.setattr(tls, "_SYSTEM_FILES", ())
    monkeypatch.setattr(tls, "_SYSTEM_FOLDERS", ())
    monkeypatch.setitem(sys.modules, "certifi", None)
    with pytest.raises(ConfigError, match="no trusted certificates"):
        tls.trusted_places(tls.TlsSettings())


def test_a_context_is_made_once() -> None:
    settings = tls.TlsSettings(backend="ssl")
    assert tls.context_for(settings) is tls.context_for(tls.TlsSettings(backend="ssl"))
