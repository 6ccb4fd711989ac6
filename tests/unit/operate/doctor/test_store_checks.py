"""Configuration, secrets, endpoint, TLS and clock, each broken for real."""

from __future__ import annotations

import os
import re
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from coldstream.node.http_endpoint import free_port
from coldstream.operate.doctor import store_checks
from coldstream.operate.doctor.case import Case
from coldstream.operate.doctor.checklist import examine, select
from coldstream.settings import load_settings
from tests.servers.ranged import HttpProxy, RangedServer, certificates
from tests.unit.operate.doctor.cases import case_of, looked

KEYS = {"R2_ACCESS_KEY": "an-access-key-id", "R2_SECRET_KEY": "a-secret-access-key"}


def s3_case(endpoint: str) -> Case:
    values = {"R2_ENDPOINT": endpoint, "R2_BUCKET": "models", **KEYS}
    return Case(load_settings({**values}, environ={}))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "no bucket is configured|not set"),
        ({"R2_BUCKET": "Models_"}, "is not a valid bucket name"),
        ({"R2_BUCKET": "models", "R2_ENDPOINT": "ftp://x"}, "not a server's URL"),
        ({"R2_BUCKET": "models", "R2_ACCESS_KEY": "abc"}, "R2_SECRET_KEY is not"),
        ({"R2_BUCKET": "models", "COLDSTREAM_RETRY_SECONDS": "soon"}, "is not a number of seconds"),
        ({"R2_BUCKET": "models", "COLDSTREAM_CACHE_LIMIT": "much"}, "not a size"),
    ],
)
def test_configuration_that_is_wrong(values: dict[str, str], says: str) -> None:
    case = Case(load_settings(values, environ={}))
    checks = {
        check.name: check for check in examine(case, select(only=["configuration", "endpoint", "bucket", "disk"]))
    }
    assert checks["configuration"].state == "fail"
    assert re.search(says, checks["configuration"].detail)
    assert all(checks[name].detail == "skipped: configuration failed" for name in ("endpoint", "bucket", "disk"))


def test_configuration_that_is_right(tmp_path: Path) -> None:
    check = looked(s3_case("https://x.example"), "configuration")
    assert check.state == "ok"
    assert check.detail == "s3://models at https://x.example   keys: R2_ACCESS_KEY from flag"
    assert looked(Case(load_settings({"R2_BUCKET": "models"}, environ={})), "configuration").state == "ok"
    for name in ("configuration", "endpoint", "tls", "clock"):
        assert looked(case_of(tmp_path), name).state == "ok"


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("R2_BUCKET=models\nR2_SECRET_KEY=abc\nR2_ACCESS_KEY=abc\n")
    file.chmod(0o644)
    case = Case(load_settings(env_file=file, environ={}))
    check = looked(case, "secrets")
    assert check.state == "warn"
    assert "mode 0644" in check.detail
    assert check.hint == f"run: chmod 600 {file}"
    file.chmod(0o600)
    assert looked(case, "secrets").state == "ok"
    assert looked(s3_case("http://x.example"), "secrets").detail == "not in a settings file"


def test_an_endpoint_where_nothing_answers() -> None:
    port = free_port()
    case = s3_case(f"http://127.0.0.1:{port}")
    names = ["configuration", "endpoint", "tls", "clock", "bucket", "permissions", "round trip"]
    checks = {check.name: check for check in examine(case, select(only=names))}
    assert checks["endpoint"].state == "fail"
    assert f"cannot reach http://127.0.0.1:{port}: Connection refused" in checks["endpoint"].detail
    assert all(checks[name].detail == "skipped: endpoint failed" for name in names[2:])


def test_an_endpoint_whose_name_nobody_knows() -> None:
    check = looked(s3_case("http://nowhere.invalid"), "endpoint")
    assert check.state == "fail"
    assert "cannot reach http://nowhere.invalid" in check.detail


def test_an_endpoint_that_speaks_something_else() -> None:
    with RangedServer({}) as server:
        server.add("garbage", times=None)
        assert looked(s3_case(server.url), "endpoint").state == "fail"


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates().ca_file))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("certificate", "says"),
    [("expired", "expired"), ("unknown", "unable to get local issuer"), ("wrong_host", "IP address mismatch")],
)
def test_a_certificate_that_does_not_hold(certificate: str, says: str) -> None:
    with RangedServer({}, tls=getattr(certificates(), certificate)) as server:
        case = s3_case(server.url)
        checks = {check.name: check for check in examine(case, select(only=["endpoint", "tls", "clock", "bucket"]))}
    assert checks["endpoint"].state == "ok"
    assert checks["tls"].state == "fail"
    assert says in checks["tls"].detail
    assert "AWS_CA_BUNDLE" in (checks["tls"].hint or "")
    assert checks["clock"].detail == checks["bucket"].detail == "skipped: tls failed"


@pytest.mark.usefixtures("trusted")
def test_a_certificate_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    with RangedServer({}, tls=True) as server:
        check = looked(s3_case(server.url), "tls")
        assert check.state == "ok"
        assert "TLSv1.3, the certificate is valid for another 36" in check.detail
        later = time.time() + 362 * 86400
        monkeypatch.setattr(store_checks.time, "time", lambda: later)
        check = looked(s3_case(server.url), "tls")
    assert check.state == "warn"
    assert "another 2 days" in check.detail


def test_a_server_without_tls_where_it_was_expected() -> None:
    with RangedServer({}) as server:
        assert looked(s3_case(server.url.replace("http:", "https:")), "tls").state == "fail"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("tls", [True, False])
def test_through_a_proxy(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with RangedServer({}, tls=tls) as server, HttpProxy(credentials="me:pass word") as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url.replace(" ", "%20"))
        monkeypatch.setenv("no_proxy", "elsewhere.example")
        case = s3_case(server.url)
        check = looked(case, "endpoint")
        assert check.state == "ok", check
        assert f"through the proxy 127.0.0.1:{proxy.port}" in check.detail
        assert "pass" not in check.detail
        assert looked(case, "tls").state == "ok"
        assert proxy.lines


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with RangedServer({}, tls=True) as server, HttpProxy(refuse=503) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "elsewhere.example")
        check = looked(s3_case(server.url), "endpoint")
    assert check.state == "fail"
    assert "503" in check.detail


def test_http_to_another_machine() -> None:
    check = looked(s3_case("http://minio.example:9000"), "tls")
    assert check.state == "warn"
    assert looked(s3_case("http://localhost:9000"), "tls").state == "ok"


@pytest.mark.parametrize(
    ("off", "state"), [(0.0, "ok"), (-300.0, "warn"), (3600.0, "fail"), (-86400.0, "fail"), (None, "ok")]
)
def test_a_clock_that_is_off(off: float | None, state: str) -> None:
    with RangedServer({}) as server:
        if off is not None:
            server.add("header", value=f"Date: {formatdate(time.time() + off, usegmt=True)}", times=None)
        case = s3_case(server.url)
        checks = {check.name: check for check in examine(case, select(only=["clock", "bucket"]))}
    assert checks["clock"].state == state
    if state == "fail":
        assert "timedatectl" in (checks["clock"].hint or "")
        assert checks["bucket"].detail == "skipped: clock failed"


def test_a_date_that_is_none() -> None:
    with RangedServer({}) as server:
        server.add("header", value="Date: teatime", times=None)
        assert looked(s3_case(server.url), "clock").detail == "the server sends no time"
