"""The settings of the CDN in front of the bucket: its URL, its secrets, and when it is used."""

from __future__ import annotations

import pytest

from coldstream.errors import ConfigError
from coldstream.places.cdn_domain import CdnDomain, cdn_of
from coldstream.settings import load_settings

DOMAIN = "R2_CDN_DOMAIN"
SECRET = "s3cr3t"


def configured(via: str = "auto", **flags: str) -> CdnDomain | None:
    return cdn_of(load_settings(flags, environ={}), via)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("models.example.com", "https://models.example.com"),
        ("https://Models.Example.com/", "https://models.example.com"),
        ("https://models.example.com:8443", "https://models.example.com:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1:80"),
    ],
)
def test_the_url_of_a_domain(text: str, url: str) -> None:
    cdn = configured(R2_CDN_DOMAIN=text)
    assert cdn == CdnDomain(url=url)
    assert cdn.link("org/a model/x+y.safetensors") == f"{url}/org/a%20model/x%2By.safetensors"


@pytest.mark.parametrize(
    "text",
    ["ftp://h", "https://", "https://h:0", "https://h:x", "https://u:p@h", "https://h/path", "https://h?q=1", "-h"],
)
def test_malformed_domains_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=DOMAIN):
        configured(R2_CDN_DOMAIN=text)


def test_when_the_cdn_is_used() -> None:
    assert configured() is None
    assert configured("s3", R2_CDN_DOMAIN="h") is None
    assert configured("cdn", R2_CDN_DOMAIN="h") == CdnDomain(url="https://h")
    with pytest.raises(ConfigError, match="no CDN is configured"):
        configured("cdn")


def test_secrets_are_headers_and_are_not_shown() -> None:
    tokens = {"CF_ACCESS_CLIENT_ID": "id", "CF_ACCESS_CLIENT_SECRET": SECRET}
    cdn = configured(R2_CDN_DOMAIN="h", COLDSTREAM_CDN_HEADER=f"X-Key: {SECRET}", **tokens)
    assert cdn is not None
    expected = (("X-Key", SECRET), ("CF-Access-Client-Id", "id"), ("CF-Access-Client-Secret", SECRET))
    assert cdn.headers == expected
    assert SECRET not in repr(cdn)


@pytest.mark.parametrize(
    "flags",
    [
        {"COLDSTREAM_CDN_HEADER": SECRET},
        {"COLDSTREAM_CDN_HEADER": f"Range: {SECRET}"},
        {"COLDSTREAM_CDN_HEADER": f"X-Key: {SECRET}\r\nX-Other: 1"},
        {"COLDSTREAM_CDN_HEADER": f"X-Key: {SECRET}", DOMAIN: "http://models.example.com"},
        {"CF_ACCESS_CLIENT_SECRET": SECRET},
        {"CF_ACCESS_CLIENT_ID": "id", "CF_ACCESS_CLIENT_SECRET": f"ü{SECRET}"},
    ],
)
def test_malformed_secrets_are_refused_without_being_shown(flags: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(**{DOMAIN: "h"} | flags)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
