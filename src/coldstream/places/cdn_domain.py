"""The CDN in front of the bucket.

Only weights come through it, chunk by chunk, each checked against its hash; the manifest and the small files come from
the bucket itself. Its secrets come only from the environment and are sent only to its own host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from coldstream.errors import ConfigError
from coldstream.machine.hardware import is_loopback
from coldstream.model.job import Headers
from coldstream.places.checkpoint import Shard
from coldstream.settings import Settings

VIAS = ("auto", "cdn", "s3")
_HEADER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")
# The engine sends them itself, or they would change the meaning of an answer.
_RESERVED_HEADERS = {
    *("accept-encoding", "connection", "content-length", "host", "if-match", "if-none-match", "if-range", "range"),
    *("transfer-encoding", "user-agent"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnDomain:
    """A custom domain in front of a bucket, whose root is `url` (without a trailing slash); `headers` are secrets."""

    url: str
    headers: Headers = field(default=(), repr=False)

    def link(self, key: str) -> str:
        """The URL of the object of this key, which is relative to the bucket."""
        return f"{self.url}/{quote(key)}"

    def before(self, shard: Shard, keys: list[str]) -> Shard:
        """The shard, with the URLs of its objects behind the CDN as well."""
        segments = tuple(
            replace(segment, cdn=self.link(key)) for segment, key in zip(shard.segments, keys, strict=True)
        )
        return replace(shard, segments=segments)


def cdn_of(settings: Settings, via: str = "auto") -> CdnDomain | None:
    """The CDN for loads from the configured bucket (`R2_CDN_DOMAIN`), or None.

    `via` is "auto" (if one is configured), "cdn" (one has to be) or "s3" (none). ConfigError has no secret.
    """
    domain = settings.get("R2_CDN_DOMAIN")
    if via == "s3" or (via == "auto" and domain is None):
        return None
    if domain is None:
        raise ConfigError(
            f"no CDN is configured: R2_CDN_DOMAIN is not set in {' or '.join(settings.looked_in)}",
            hint="set R2_CDN_DOMAIN to the bucket's custom domain, for example models.example.com",
        )
    url, host = _checked_domain(domain)
    headers = (*_secret_header(settings), *_access_token(settings))
    if headers and url.startswith("http:") and not is_loopback(host):
        raise ConfigError(
            f"R2_CDN_DOMAIN is {url}, and a secret would cross the network unencrypted", hint=f"write https://{host}"
        )
    return CdnDomain(url=url, headers=headers)


def _checked_domain(text: str) -> tuple[str, str]:
    """Scheme and authority, and the host."""
    _, mark, rest = text.partition("://")
    try:
        split = urlsplit(text if mark else f"https://{text}")
        host, port = split.hostname or "", split.port
    except ValueError:
        split, host, port = urlsplit(""), "", None
    if "@" in (rest if mark else text):
        raise ConfigError("R2_CDN_DOMAIN holds a user or a password", hint="see COLDSTREAM_CDN_HEADER")
    sound = re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,252})", host) or host == "::1"
    if split.scheme not in {"http", "https"} or not sound or port == 0:
        raise ConfigError(f"R2_CDN_DOMAIN: {text[:200]!r} is not a valid domain", hint="for example models.example.com")
    if split.path.strip("/") or split.query or split.fragment:
        raise ConfigError(
            f"R2_CDN_DOMAIN: {text[:200]!r} has a path or a query; the domain by itself stands for the bucket's root",
            hint=f"write {split.netloc}",
        )
    return f"{split.scheme}://{split.netloc.lower()}", host


def _secret_header(settings: Settings) -> Headers:
    text = settings.get("COLDSTREAM_CDN_HEADER")
    if text is None:
        return ()
    match = _HEADER.fullmatch(text)
    if not match or match[1].lower() in _RESERVED_HEADERS:
        raise ConfigError(
            f"COLDSTREAM_CDN_HEADER (in {settings.origins['COLDSTREAM_CDN_HEADER']}) is not a valid header",
            hint="write it as: X-Name: value",
        )
    return ((match[1], match[2]),)


def _access_token(settings: Settings) -> Headers:
    names = ("CF_ACCESS_CLIENT_ID", "CF_ACCESS_CLIENT_SECRET")
    present = [name for name in names if settings.get(name)]
    if not present:
        return ()
    if len(present) == 1:
        (missing,) = set(names) - set(present)
        raise ConfigError(
            f"{present[0]} is set (in {settings.origins[present[0]]}) and {missing} is not",
            hint="a service token of Cloudflare Access has both",
        )
    for name in names:
        if not _TOKEN.fullmatch(settings.values[name]):
            raise ConfigError(f"{name} (in {settings.origins[name]}) is not a token: it has characters besides ASCII")
    return (("CF-Access-Client-Id", settings.values[names[0]]), ("CF-Access-Client-Secret", settings.values[names[1]]))
