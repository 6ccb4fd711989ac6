"""What the HTTP client decides without a connection: URLs, proxies, heads, ranges, waits."""

from __future__ import annotations

import urllib.request

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coldstream.errors import ConfigError
from coldstream.net import http_message
from coldstream.net.http_message import (
    FetchError,
    Head,
    Proxy,
    check_range,
    parse_content_range,
    parse_head,
    parse_target,
    plain_etag,
    proxy_for,
    same_etag,
)
from coldstream.net.pool import Ranged

# URLs.


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path", "authority"),
    [
        ("http://h", "http", "h", 80, "/", "h"),
        ("https://H.Example/a%20b?c=d%2F&e", "https", "h.example", 443, "/a%20b?c=d%2F&e", "h.example"),
        ("https://h:8443/x", "https", "h", 8443, "/x", "h:8443"),
        ("http://h:443/x#part", "http", "h", 443, "/x", "h:443"),
        ("http://[::1]:81/", "http", "::1", 81, "/", "[::1]:81"),
        ("https://[2001:db8::1]/", "https", "2001:db8::1", 443, "/", "[2001:db8::1]"),
        ("http://127.0.0.1?q", "http", "127.0.0.1", 80, "/?q", "127.0.0.1"),
        ("HTTPS://a_b.example/", "https", "a_b.example", 443, "/", "a_b.example"),
    ],
)
def test_a_url_becomes_a_target(url: str, scheme: str, host: str, port: int, path: str, authority: str) -> None:
    target = parse_target(url)
    assert (target.scheme, target.host, target.port, target.path) == (scheme, host, port, path)
    assert target.authority == authority
    assert parse_target(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        "", "h", "//h/", "/x", "ftp://h/", "file:///etc/passwd", "http://", "http:///x", "http://u@h/", "http://u:p@h/",
        "http://h:0/", "http://h:x/", "http://h:65536/", "http://h:-1/", "http://[::1/", "http://[h]/", "http://-h/",
        "http://h /", "http://h/a b", "http://h/\r\nX: y", "http://h/\x00", "http://h/\t", "http://h/ü", "http://ü/",
        "http://h/a\\b", "http://h\\@e/", "http://h/<", "http://h/{", "http://h%20/", "http://h/\x7f", "http://h,e/",
    ],
)  # fmt: skip
def test_what_is_no_clean_url_is_refused(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_target(url)
    assert caught.value.kind == "protocol"


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "http://h/", "https://h:1/?"]))
def test_any_text_is_a_target_or_a_fetch_error(text: str, prefix: str) -> None:
    try:
        target = parse_target(prefix + text)
    except FetchError as exc:
        assert exc.kind == "protocol"
        assert "?" not in prefix or text not in exc.message or len(text) < 3
    else:
        assert target.path.startswith("/")
        assert target.path.isascii()
        assert target.path.isprintable()
        assert " " not in target.path


def test_the_query_is_never_shown() -> None:
    target = parse_target("https://h/a?X-Amz-Signature=s3cr3t")
    assert repr(target) == "Target(https://h/a?…)"
    assert repr(parse_target("https://h/a")) == "Target(https://h/a)"
    assert target.shown == "https://h/a"
    assert "s3cr3t" not in repr(Ranged(b"", 0, None, target.url))
    with pytest.raises(FetchError) as caught:
        parse_target("ftp://h/a?X-Amz-Signature=s3cr3t")
    assert "s3cr3t" not in str(caught.value)


# Proxies.

ENVIRONS: list[dict[str, str]] = [
    {},
    {"HTTP_PROXY": "http://p:1"},
    {"http_proxy": "http://p:1", "HTTP_PROXY": "http://q:2"},
    {"http_proxy": "", "HTTP_PROXY": "http://q:2"},
    {"HTTP_PROXY": "http://q:2", "REQUEST_METHOD": "GET"},
    {"http_proxy": "http://q:2", "REQUEST_METHOD": "GET"},
    {"HTTPS_PROXY": "http://p:1"},
    {"Https_Proxy": "http://p:1"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "h.example"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "example"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": ".Example, other"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "ample"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "h.example:8080"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "h.example:80"},
    {"HTTP_PROXY": "http://p:1", "no_proxy": "", "NO_PROXY": "h.example"},
    {"HTTP_PROXY": "http://p:1", "NO_PROXY": "127.0.0.1,,"},
]


def set_proxies(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """Makes these the only variables for proxies."""
    for name in list(http_message.os.environ):
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environ", ENVIRONS)
@pytest.mark.parametrize("url", ["http://h.example:8080/x", "https://h.example:8080/x", "http://127.0.0.1:81/"])
def test_the_proxy_is_the_one_that_urllib_takes(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], url: str
) -> None:
    set_proxies(monkeypatch, environ)
    target = parse_target(url)
    expected = urllib.request.getproxies_environment().get(target.scheme)
    if urllib.request.proxy_bypass_environment(f"{target.host}:{target.port}"):  # type: ignore[attr-defined]
        expected = None
    found = proxy_for(target)
    assert (f"http://{found.host}:{found.port}" if found else None) == expected


def test_all_proxy_is_for_both_and_behind_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxies(monkeypatch, {"ALL_PROXY": "a:1", "HTTPS_PROXY": "http://s:2"})
    assert proxy_for(parse_target("http://h/")) == Proxy("a", 1)
    assert proxy_for(parse_target("https://h/")) == Proxy("s", 2)
    set_proxies(monkeypatch, {"ALL_PROXY": "http://[::2]"})
    assert proxy_for(parse_target("http://[::1]/")) == Proxy("::2", 80)


def test_a_proxys_credentials_are_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    set_proxies(monkeypatch, {"http_proxy": "http://us%40er:p%3Aass@p:1/"})
    found = proxy_for(parse_target("http://h/"))
    assert found == Proxy("p", 1, "Basic dXNAZXI6cDphc3M=")
    assert "dXNA" not in repr(found)


@pytest.mark.parametrize("url", ["socks5://p:1", "https://p:1", "http://", "http://p:x", "http://u:secret@", "p q:1"])
def test_other_proxies_are_refused_without_their_credentials(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    set_proxies(monkeypatch, {"HTTP_PROXY": url})
    with pytest.raises(ConfigError, match="HTTP_PROXY") as caught:
        proxy_for(parse_target("http://h/"))
    assert "secret" not in f"{caught.value} {caught.value.hint}"


# Heads.


def test_a_head_is_read() -> None:
    head = parse_head(
        b'HTTP/1.1 206 Partial Content\r\nETag: "abc-2"\r\nContent-Length:  12 \r\nX-A: 1\r\nx-a: 2\r\n'
        b"Content-Length: 12\r\nEmpty:\r\nLatin: \xe4"
    )
    assert (head.status, head.length, head.etag, head.chunked, head.keeps_alive) == (206, 12, "abc-2", False, True)
    assert head.headers["x-a"] == "1, 2"
    assert head.headers["empty"] == ""
    assert head.headers["latin"] == "ä"
    assert parse_head(b"HTTP/1.1 404").etag is None
    assert parse_head(b"HTTP/1.1 404 ").length is None
    assert parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked").chunked


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("HTTP/1.1 200 OK", True),
        ("HTTP/1.1 200 OK\r\nConnection: Close", False),
        ("HTTP/1.1 200 OK\r\nConnection: x, close", False),
        ("HTTP/1.0 200 OK", False),
        ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive", True),
    ],
)
def test_whether_a_connection_is_kept(text: str, *, keeps: bool) -> None:
    assert parse_head(text.encode()).keeps_alive is keeps


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\r\n", b"HTTP/1.1", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 099 X", b"HTTP/2 200",
        b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200 OK\nA: b", b"ICY 200 OK",
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n: x", b"HTTP/1.1 200 OK\r\nA b: x", b"HTTP/1.1 200 OK\r\nA : x",
        b"HTTP/1.1 200 OK\r\n folded: x", b"HTTP/1.1 200 OK\r\nA: x\r\n y", b"HTTP/1.1 200 OK\r\nA: x\ny",
        b"HTTP/1.1 200 OK\r\nA: \x00", b"HTTP/1.1 200 OK\r\nnothing", b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x10", b"HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 20, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nETag: a\r\nETag: b", b"HTTP/1.1 200 OK\r\nContent-Range: a\r\nContent-Range: b",
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused(data: bytes) -> None:
    with pytest.raises(FetchError) as caught:
        parse_head(data)
    assert caught.value.kind == "protocol"


PIECES = st.sampled_from(
    [b"HTTP/1.1 ", b"HTTP/1.0 200 OK", b"206", b"\r\n", b"\n", b"\r", b":", b" ", b"Content-Length", b"12", b"chunked",
     b"Transfer-Encoding: ", b"ETag: ", b'"', b"W/", b"Connection: close", b"\x00", b"\xff", b","]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=20).map(b"".join)))
@example(b"HTTP/1.1 206 OK\r\nContent-Length: 12\r\nETag: W/")
def test_any_bytes_are_a_head_or_a_fetch_error(data: bytes) -> None:
    try:
        head = parse_head(data)
    except FetchError as exc:
        assert exc.kind == "protocol"
    else:
        assert 100 <= head.status <= 999
        assert head.length is None or head.length >= 0
        assert isinstance(head.etag, (str, type(None)))
        assert all(name == name.lower() for name in head.headers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", (0, 1, 1)),
        ("bytes 5-9/10", (5, 10, 10)),
        ("bytes 5-9/*", (5, 10, None)),
        ("bytes */10", (0, 0, 10)),
        ("bytes */*", None),
        ("bytes 5-4/10", None),
        ("bytes 5-10/10", None),
        ("bytes=5-9/10", None),
        ("bytes 5-9", None),
        ("bytes -9/10", None),
        ("bytes 5-9/10, 11-12/20", None),
        ("lines 5-9/10", None),
        ("bytes ²-9/10", None),
        ("", None),
    ],
)
def test_content_ranges(text: str, expected: tuple[int, int, int | None] | None) -> None:
    assert parse_content_range(text) == expected


@given(st.text(st.sampled_from("bytes 0123456789-/*=,"), max_size=30))
def test_any_content_range_is_half_open_or_none(text: str) -> None:
    found = parse_content_range(text)
    if found:
        start, stop, total = found
        assert 0 <= start <= stop
        assert total is None or stop <= total


def test_etags_lose_their_quotes_and_compare_weakly() -> None:
    assert plain_etag('"a-2"') == "a-2"
    assert plain_etag('W/"a"') == "W/a"
    assert plain_etag("a") == "a"
    assert plain_etag('"') == '"'
    assert plain_etag("") == ""
    assert same_etag('W/"a-2"', "a-2")
    assert same_etag("W/a", '"a"')
    assert not same_etag("a-2", "a-3")


def test_an_error_says_what_it_is() -> None:
    error = FetchError("busy", "503", status=503, retry_after_seconds=1.5, received=7)
    assert str(error) == "503"
    assert repr(error) == "FetchError(busy: 503; received=7)"
    assert (error.status, error.retry_after_seconds) == (503, 1.5)


@pytest.mark.parametrize(
    ("sent", "etag"),
    [
        ('"a"', "a"),
        ('W/"a"', "W/a"),
        ("a-2", "a-2"),
        ('"\x80"', None),
        ('"a\x01"', None),
        ('"a"b"', None),
        ('""', None),
    ],
)
def test_an_etag_that_cannot_be_sent_as_a_condition_is_none(sent: str, etag: str | None) -> None:
    head = Head(200, {"etag": sent}, keeps_alive=True)
    assert head.etag == etag


@pytest.mark.parametrize(
    ("coding", "fits"),
    [("aws-chunked", True), ("AWS-Chunked, identity", True), ("gzip", False), ("aws-chunked,gzip", False)],
)
def test_what_was_stored_with_the_coding_of_its_upload_is_plain(coding: str, fits: bool) -> None:
    headers = {"content-range": "bytes 0-7/9", "content-length": "8", "content-encoding": coding}
    head = Head(206, headers, keeps_alive=True)
    if fits:
        assert check_range(head, 0, 8, 9, None) == 9
    else:
        with pytest.raises(FetchError, match="encoded with"):
            check_range(head, 0, 8, 9, None)
