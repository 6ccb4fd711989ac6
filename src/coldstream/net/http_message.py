"""The grammar of HTTP/1.1: targets, proxies, requests and the heads of replies. Pure.

Heads are read strictly: a reply that could be read in two ways is refused.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import unquote, urljoin, urlsplit

from coldstream.errors import ConfigError
from coldstream.net.reply import describe_reply, is_page
from coldstream.net.retry import is_retryable_status, retry_after
from coldstream.package import __version__

Kind = Literal[
    "broken", "tls", "busy", "refused", "gone", "changed", "range", "protocol", "cancelled", "unexpected"
]  # fmt: skip
Headers = Sequence[tuple[str, str]]

# An object's version that can be sent as a condition, without quotes. RFC 9110 allows bytes above ASCII too, which
# each program decodes in its own way.
ETAG: Final = r"[\x20\x21\x23-\x7e]{1,1024}"

_UNSAFE: Final = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_HEADER_LINE: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00\r\n]*)")
_ERROR_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_CONTENT_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)")
# A duplicate of one of these headers with another value is ambiguous: such a reply is refused.
_SINGLE: Final = frozenset(
    {"content-length", "content-range", "content-encoding", "transfer-encoding", "etag", "location", "retry-after"}
)


class FetchError(Exception):
    """A request failed. Internal: the engine and the places turn it into one of `coldstream.errors`.

    `message` is without the query of the URL, `code` is S3's in the reply ("ExpiredToken"), and so many `received`
    bytes of the range are in place at the start of the buffer. `kind`:

        "broken": refused, reset, cut, timed out, a bad TLS record: try again.
        "tls": the certificate is not valid, or there is no TLS in common: permanent.
        "busy": a status that `is_retryable_status` knows: try again later, and with less.
        "refused": 401, 403 and other permanent ones: the link has expired or does not allow this.
        "gone": 404 or 410.
        "changed": 412, or another ETag or total size than required.
        "range": other bytes than requested: the range ignored or another one, a wrong length, an encoding.
        "unexpected": no bytes of any object: a web page, an empty body, a redirect. Something on the way answered,
            or the server is out of order: try again.
        "protocol": not valid HTTP.
        "cancelled": by `Connection.cancel`.
    """

    __slots__ = ("code", "kind", "message", "received", "retry_after_seconds", "status")

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        code: str = "",
        retry_after_seconds: float | None = None,
        received: int = 0,
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.status = status
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.received = received

    def __repr__(self) -> str:
        return f"FetchError({self.kind}: {self.message}; received={self.received})"


class ClosedError(FetchError):
    """The peer closed the connection, in order or by a reset. Before the first byte of a reply: sent too late."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """Where an object is. Its query may be a signature, so neither `repr` nor `shown` has it.

    The host is in lower case, an IPv6 address without brackets; the path has the query, both percent-encoded.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Scheme, host and port: what a connection is for."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """As in the Host header: without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port(self.scheme) else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """Without the query."""
        return f"{self.scheme}://{self.authority}{self.path.partition('?')[0]}"

    @property
    def url(self) -> str:
        """A secret."""
        return f"{self.scheme}://{self.authority}{self.path}"

    def __repr__(self) -> str:
        return f"Target({self.shown}{'?…' if '?' in self.path else ''})"


def default_port(scheme: str) -> int:
    """The port of a URL without one."""
    return 443 if scheme == "https" else 80


def parse_target(url: str, *, base: str = "") -> Target:
    """Reads a URL strictly: http or https, no user, nothing that has to be encoded first. A fragment is dropped.

    Raises FetchError ("protocol"), whose message does not have the query.
    """
    # This comes first: `urlsplit` drops some control characters in silence.
    if _UNSAFE.search(url):
        raise FetchError("protocol", "a URL holds characters that have to be percent-encoded")
    try:
        split = urlsplit(urljoin(base, url))
        host, port = split.hostname or "", split.port
    except ValueError:
        raise FetchError("protocol", "a URL has no valid host or port") from None
    if "@" in split.netloc:
        raise FetchError("protocol", "a URL holds a user or a password")
    # Brackets are only for IPv6 addresses; Python 3.10 accepts names in them.
    bracketed = "[" in split.netloc
    if split.scheme not in {"http", "https"} or not _is_host(host) or bracketed != (":" in host) or port == 0:
        raise FetchError("protocol", f"{url.partition('?')[0][:200]} is not an http or https URL")
    path = (split.path or "/") + (f"?{split.query}" if split.query else "")
    return Target(split.scheme, host, port or default_port(split.scheme), path)


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return ip_address(host).version == 6
        except ValueError:
            return False
    return re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,252})", host) is not None


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is the value of Proxy-Authorization, a secret."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)


def proxy_for(target: Target) -> Proxy | None:
    """The proxy that the environment names for this target, or else for all. The one rule for all requests.

    Raises ConfigError if it is malformed, or of a kind that is not supported.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    # It costs each fetching process 20 ms of imports.
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    proxies = getproxies_environment()
    name = target.scheme if target.scheme in proxies else "all"
    if name not in proxies or proxy_bypass_environment(f"{target.host}:{target.port}", proxies):
        return None
    return _parse_proxy(proxies[name], f"{name.upper()}_PROXY")


def _parse_proxy(url: str, variable: str) -> Proxy:
    scheme, mark, rest = url.partition("://")
    if mark and scheme.lower() != "http":
        raise ConfigError(
            f"{variable} names a proxy of the kind {scheme[:10]!r}, which is not supported",
            hint="an HTTP proxy is: http://host:port",
        )
    user, has_user, address = (rest if mark else url).rpartition("@")
    try:
        target = parse_target(f"http://{address}")
    except FetchError:
        hint = "for example http://proxy.example:3128"
        raise ConfigError(f"{variable} is not a valid proxy URL", hint=hint) from None
    pair = unquote(user if ":" in user else f"{user}:").encode()
    return Proxy(target.host, target.port, f"Basic {base64.b64encode(pair).decode()}" if has_user else None)


def same_etag(one: str, other: str) -> bool:
    """Whether two ETags, quoted or not, weak or not, are of the same version."""
    return plain_etag(one).removeprefix("W/") == plain_etag(other).removeprefix("W/")


def plain_etag(text: str) -> str:
    """An ETag without its quotes; a weak one keeps its `W/`."""
    weak = "W/" if text.startswith("W/") else ""
    text = text[len(weak) :]
    return weak + (text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text)


# Some uploaders store the coding of their own request with the object, whose bytes are plain.
_PLAIN_CODINGS = {"", "identity", "aws-chunked"}


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a reply. Header names are in lower case; repeated headers are joined by ", "."""

    status: int
    headers: Mapping[str, str]
    keeps_alive: bool

    @property
    def length(self) -> int | None:
        text = self.headers.get("content-length")
        return None if text is None else int(text)

    @property
    def chunked(self) -> bool:
        return "transfer-encoding" in self.headers

    @property
    def etag(self) -> str | None:
        """The ETag without quotes, if it can be sent as a condition."""
        text = plain_etag(self.headers.get("etag", ""))
        return text if re.fullmatch(ETAG, text) else None


def parse_head(data: bytes) -> Head:
    """Reads a status line and headers, without the empty line. Raises FetchError ("protocol")."""
    lines = data.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if not match:
        raise FetchError("protocol", f"the reply starts with {lines[0][:40]!r}: not a valid HTTP response")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        pair = _HEADER_LINE.fullmatch(line)
        if not pair:
            raise FetchError("protocol", f"malformed header {line.partition(':')[0][:40]!r}")
        name, value = pair[1].lower(), pair[2].rstrip(" \t")
        if name not in headers:
            headers[name] = value
        elif name not in _SINGLE:
            headers[name] += ", " + value
        elif headers[name] != value:
            raise FetchError("protocol", f"two different {name} headers")
    connection = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    keeps_alive = "close" not in connection and (match[1] == "1" or "keep-alive" in connection)
    return checked_head(int(match[2]), headers, keeps_alive=keeps_alive)


def checked_head(status: int, headers: Mapping[str, str], *, keeps_alive: bool = True) -> Head:
    """A head whose body has a certain length. Raises FetchError ("protocol")."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) <= 19):
        raise FetchError("protocol", f"the Content-Length is {length[:40]!r}")
    if coding is not None and (coding.lower() != "chunked" or length is not None):
        raise FetchError("protocol", f"the Transfer-Encoding is {coding[:40]!r}, beside Content-Length {length}")
    return Head(status, headers, keeps_alive)


def parse_content_range(text: str) -> tuple[int, int, int | None] | None:
    """A Content-Range as (start, stop, total), half-open; start and stop are 0 for `bytes */total`. None: malformed."""
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if not match:
        return None
    total = None if match[3] == "*" else int(match[3])
    if match[1] is None:
        return None if total is None else (0, 0, total)
    start, stop = int(match[1]), int(match[2]) + 1
    if stop <= start or (total is not None and stop > total):
        return None
    return start, stop, total


def conditions(start: int, stop: int, etag: str | None) -> list[tuple[str, str]]:
    """The headers that request `[start, stop)` of one version."""
    lines = [("Range", f"bytes={start}-{stop - 1}")]
    if etag is not None and not etag.startswith("W/"):
        lines.append(("If-Match", f'"{plain_etag(etag)}"'))
    return lines


def check_version(head: Head, etag: str | None) -> None:
    """Checks that a reply is of the required version, and not compressed."""
    current = head.etag
    if etag is not None and current is not None and not same_etag(etag, current):
        raise FetchError(
            "changed", f"the object is of the version {current[:80]} now, not {etag[:80]}", status=head.status
        )
    encoding = head.headers.get("content-encoding", "")
    if {coding.strip().lower() for coding in encoding.split(",")} - _PLAIN_CODINGS:
        raise FetchError(
            "range",
            f"the answer is encoded with {encoding[:40]!r}, and ranges of that are not the file's",
            status=head.status,
        )


def check_range(head: Head, start: int, stop: int, size: int | None, etag: str | None) -> int | None:
    """Checks that a successful reply is exactly the requested range; returns the object's size, if it is sent."""
    check_version(head, etag)
    announced = _announced(head)
    # Without a Content-Range the length is that of whatever was sent, and does not tell the object's size.
    if announced is None and ((start, stop) != (0, head.length) or size not in {None, stop}):
        raise FetchError("range", "the range was ignored", status=head.status)
    total = announced[2] if announced else head.length
    if size is not None and total not in {None, size}:
        raise FetchError("changed", f"the object has {total} bytes now, not {size}", status=head.status)
    if announced and announced[:2] != (start, stop):
        raise FetchError("range", f"[{announced[0]}, {announced[1]}) came for [{start}, {stop})", status=head.status)
    return total


def _announced(head: Head) -> tuple[int, int, int | None] | None:
    """The Content-Range; None when the reply has none and holds the whole object."""
    text = head.headers.get("content-range")
    if text is None:
        if head.status == 206:
            raise FetchError("range", "the answer is partial and does not say which part it is", status=206)
        return None
    content_range = parse_content_range(text)
    if content_range is None or content_range[0] == content_range[1]:
        raise FetchError("range", f"the Content-Range is {text[:60]!r}", status=head.status)
    if head.length not in {None, content_range[1] - content_range[0]}:
        raise FetchError("range", f"{head.length} bytes for the Content-Range {text[:60]!r}", status=head.status)
    return content_range


def is_unexpected(head: Head, size: int | None = None) -> bool:
    """Whether a successful reply to a range request is not from an object of that size: a web page, or empty."""
    if "content-range" in head.headers or (size and head.length == size):
        return False
    if is_page(head.headers.get("content-type")) or head.length == 0:
        return True
    return size is not None and head.length is not None and head.etag is None


def reported_size(head: Head) -> int | None:
    """The object's size by the Content-Range, which a 416 has too."""
    content_range = parse_content_range(head.headers.get("content-range", ""))
    return content_range[2] if content_range else None


def refusal(head: Head, target: Target, body: bytes, size: int | None = None) -> FetchError:
    """The error for a reply without the requested bytes; `body` is its beginning, `size` the object's."""
    match = _ERROR_CODE.search(body)
    code = match[1].decode() if match else ""
    status = head.status
    text = f"{target.shown}: {status} {code}".rstrip()
    if is_retryable_status(status):
        return FetchError("busy", text, status=status, retry_after_seconds=retry_after(head.headers))
    if status == 416:
        total = reported_size(head)
        if size is not None and total not in {None, size}:
            return FetchError("changed", f"{text}: it has {total} bytes now, not {size}", status=status)
        return FetchError("range", f"{text}: there is no such range", status=status)
    if status < 400:
        shown = describe_reply(status, head.headers, body)
        return FetchError("unexpected", f"{target.shown} answers {shown} in place of the file's bytes", status=status)
    kinds: Mapping[int, Kind] = {404: "gone", 410: "gone", 412: "changed"}
    return FetchError(kinds.get(status, "refused"), text, status=status, code=code)


def request_bytes(target: Target, headers: Headers, *, proxy: Proxy | None) -> bytes:
    """A GET as it is sent to the server or the proxy. ValueError for an invalid header does not show its value."""
    path = f"http://{target.authority}{target.path}" if proxy else target.path
    lines = []
    if proxy and proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}\r\n")
    for name, value in headers:
        line = f"{name}: {value}"
        if not (_HEADER_LINE.fullmatch(line) and line.isascii() and line.isprintable()):
            raise ValueError(f"the header {name[:40]!r} cannot be sent as it is")
        lines.append(line + "\r\n")
    return (
        f"GET {path} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: coldstream/{__version__}\r\n"
        f"Accept-Encoding: identity\r\n{''.join(lines)}\r\n"
    ).encode("ascii")
