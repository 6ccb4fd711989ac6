"""What answered, in a few words."""

from __future__ import annotations

import pytest

from coldstream.net.reply import describe_reply, first_words, is_page
from tests.servers.impostor import PORTAL


def test_a_page_is_named_by_its_title() -> None:
    kind = {"content-type": "text/html; charset=utf-8"}
    assert describe_reply(200, kind, PORTAL.encode()) == '200 text/html "Sign in to Hotel Wi-Fi"'
    assert first_words(b"<title>\n Tom &amp; Jerry&#39;s\n</title>") == "Tom & Jerry's"


def test_nothing_and_redirects() -> None:
    assert describe_reply(200, {}) == "200 without content"
    assert describe_reply(302, {"location": "https://u:p@login.example:8443/a?token=1"}) == (
        "302, a redirect to login.example:8443"
    )
    assert describe_reply(301, {"location": "/login?token=1"}) == "301, a redirect to another path"


def test_no_secret_and_no_control_character_is_shown() -> None:
    body = "GET /m/a.bin?X-Amz-Signature=abc&x=1 was \x1b[31mrefused\u202e\nX-Amz-Security-Token=def token=ghi".encode()
    words = first_words(body)
    assert words == "GET /m/a.bin… was [31mrefused … …"
    assert len(first_words(b"word " * 100)) <= 60


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/html", b"", True),
        ("application/xhtml+xml", b"", True),
        (None, b"\xef\xbb\xbf <!-- hello --> <!DOCTYPE  html>", True),
        ("application/octet-stream", b"\n<HTML lang=en>", True),
        ("application/xml", b"<?xml version='1.0'?><ListBucketResult/>", False),
        (None, b"<htmlish>", False),
        (None, b"", False),
    ],
)
def test_what_is_a_page(content_type: str | None, body: bytes, expected: bool) -> None:
    assert is_page(content_type, body) is expected
