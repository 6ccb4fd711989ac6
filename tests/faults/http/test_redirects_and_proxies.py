"""Redirects and proxies."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.net.connection import Connection
from coldstream.net.http_message import FetchError, Proxy, parse_target, proxy_for
from coldstream.net.pool import HttpPool, read
from tests.faults.http.connections import DATA, PATH, QUICK, TLS_BACKENDS, trust
from tests.servers.ranged import HttpProxy, RangedServer, certificates


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_read_follows_redirects(server: RangedServer, pool: HttpPool | None, status: int) -> None:
    server.add("redirect", "/first", status=status, location="second?a=b")
    server.add("redirect", "/second", status=status, location=server.link("/small"))
    found = read(server.url + "/first", stop=10, headers=[("Authorization", "x")], pool=pool)
    assert (found.body, found.url) == (b"0123456789", server.link("/small"))
    assert [seen.headers.get("authorization") for seen in server.requests] == ["x"] * 3


def test_credentials_do_not_follow_to_another_host(server: RangedServer) -> None:
    with RangedServer({"/x": b"x"}) as other:
        server.add("redirect", "/first", location=other.link("/back"))
        other.add("redirect", "/back", location=server.link("/small"))
        assert read(server.url + "/first", stop=10, headers=[("Authorization", "x")]).body == b"0123456789"
        assert "authorization" not in other.requests[0].headers
        assert "authorization" not in server.requests[-1].headers


def test_redirects_end(server: RangedServer) -> None:
    server.add("redirect", location="/small", times=5)
    assert read(server.link("/small"), stop=10).body == b"0123456789"
    server.add("redirect", location="/small", times=6)
    with pytest.raises(FetchError, match="more than 5 redirects"):
        read(server.link("/small"), stop=10)
    server.add("redirect", location="ftp://elsewhere/")
    with pytest.raises(FetchError, match="not an http or https URL"):
        read(server.link("/small"), stop=10)
    server.add("redirect", location="http://[::1/")
    with pytest.raises(FetchError, match="no valid host"):
        read(server.link("/small"), stop=10)


def test_https_never_redirects_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates().ca_file))
    with RangedServer({PATH: DATA}) as plain, RangedServer({PATH: DATA}, tls=True) as secure:
        secure.add("redirect", location=plain.link(PATH))
        with pytest.raises(FetchError, match="redirects to plain http"):
            read(secure.link(PATH), stop=10)
        plain.add("redirect", location=secure.link(PATH))
        assert read(plain.link(PATH), stop=10).body == DATA[:10]


@pytest.mark.parametrize("credentials", [None, "user:p%40ss"])
def test_plain_http_through_a_proxy(
    server: RangedServer, monkeypatch: pytest.MonkeyPatch, credentials: str | None
) -> None:
    with HttpProxy(credentials=credentials and "user:p@ss") as proxy:
        at = f"{credentials}@" if credentials else ""
        monkeypatch.setenv("http_proxy", f"http://{at}{proxy.host}:{proxy.port}")
        assert read(server.link("/small"), stop=10).body == b"0123456789"
        assert proxy.lines == [f"GET {server.url}/small HTTP/1.1"]
        assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.parametrize("backend", TLS_BACKENDS)
def test_https_through_a_tunnel(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server, HttpProxy(credentials="user:pass") as proxy:
        target = parse_target(server.link(PATH))
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        found = proxy_for(target)
        connection = Connection(target, proxy=found, tls=trust(backend), timeouts=QUICK)
        buffer = bytearray(len(DATA))
        for _ in range(2):
            connection.get(target, 0, len(DATA), memoryview(buffer), etag=None, size=None)
            assert buffer == DATA
        assert proxy.lines == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]
        assert "proxy-authorization" not in server.requests[0].headers
        assert "pass" not in repr(found)
        connection.close()


@pytest.mark.parametrize(
    ("options", "kind", "status"),
    [
        ({"credentials": "user:pass"}, "refused", 407),
        ({"refuse": 403}, "refused", 403),
        ({"refuse": 503}, "busy", 503),
        ({"chatty": True}, "protocol", None),
    ],
)
def test_a_proxy_that_does_not_want_to(options: dict[str, Any], kind: str, status: int | None) -> None:
    with RangedServer({PATH: DATA}, tls=True) as server, HttpProxy(**options) as proxy:
        target = parse_target(server.link(PATH))
        connection = Connection(target, proxy=Proxy(proxy.host, proxy.port), tls=trust(), timeouts=QUICK)
        with pytest.raises(FetchError) as caught:
            connection.get(target, 0, 10, memoryview(bytearray(10)), etag=None, size=None)
        assert (caught.value.kind, caught.value.status) == (kind, status)
