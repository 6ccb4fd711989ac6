"""Cloudflare's own API: REST and GraphQL, as far as R2 and its CDN need them.

Cloudflare allows a token 1,200 requests in five minutes, then answers 429 (docs fundamentals/api/reference/limits).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from coldstream.errors import (
    ColdstreamError,
    ConfigError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.machine.hardware import is_loopback
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.reply import describe_reply
from coldstream.net.retry import Backoff, Retry, is_retryable_status, retry_after
from coldstream.places.small_reads import unanswered
from coldstream.settings import Settings
from coldstream.units import MIB, format_bytes

BASE_URL = "https://api.cloudflare.com/client/v4"
RESPONSE_BYTES_MAX = 16 * MIB
_CONNECTIONS = 4
_PIECE_BYTES = 64 << 10
_REASON_CHARACTERS_MAX = 300
# A token that is malformed or unknown also gets a 400: "Invalid request headers", "Invalid access token".
_TOKEN_CODES = {6003, 6111, 9106, 9109, 10000, 10001}
# With or without a jurisdiction between the account and the domain.
_R2_HOST = re.compile(r"([0-9a-f]{32})(?:\.([a-z]+))?\.r2\.cloudflarestorage\.com")
# What a token needs for a path, as the dashboard calls it (docs fundamentals/api/reference/permissions).
_PERMISSIONS = (
    (r"/accounts/[^/]+/r2/", "Workers R2 Storage: Edit, on the account"),
    (r"/zones/[^/]+/purge_cache", "Cache Purge: Purge, on the zone"),
    (r"/zones/[^/]+/rulesets", "Cache Rules: Edit, on the zone"),
    (r"/zones", "Zone: Read, on the zone"),
    (r"/graphql", "Account Analytics: Read, on the account"),
)


class _Fault(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""
    extensions: dict[str, Any] | None = None


class _CloudflareReply(msgspec.Struct, frozen=True):
    """The envelope of the replies: of the REST API with `success` and `result`, of GraphQL with `data`."""

    success: bool | None = None
    result: Any = None
    data: dict[str, Any] | None = None
    errors: tuple[_Fault, ...] | None = None

    def __post_init__(self) -> None:
        if self.success is None and self.data is None and not self.errors:
            raise ValueError("neither success nor data nor errors")


# Made here: two threads that make the first decoder of a type at once can crash msgspec 0.22.
_DECODER = msgspec.json.Decoder(_CloudflareReply)


@dataclass(frozen=True, slots=True)
class R2Account:
    """The account of an endpoint; `jurisdiction` is "eu", "us", "fedramp" or None."""

    host: str
    account: str
    jurisdiction: str | None


def r2_account(endpoint: str) -> R2Account:
    """The account in the host name of an endpoint; raises ConfigError when it is not R2's."""
    host = urlsplit(endpoint).hostname or ""
    match = _R2_HOST.fullmatch(host)
    if not match:
        raise ConfigError(
            f"the endpoint's host {host!r} names no account of Cloudflare R2",
            hint="R2_ENDPOINT is https://<account>.r2.cloudflarestorage.com, with 32 hexadecimal digits",
        )
    return R2Account(host, match[1], match[2])


class Api:
    """Cloudflare's API with one token. Thread-safe. The token leaves it only in the requests' headers."""

    def __init__(self, token: str, base_url: str = BASE_URL, *, retry: Retry | None = None) -> None:
        """Touches no network; raises ConfigError for a malformed token or URL."""
        from coldstream.net.pool import HttpPool

        # A header with a line break in it would fail later, with the token in the message.
        if not re.fullmatch(r"[!-~]+", token):
            raise ConfigError("CLOUDFLARE_API_TOKEN has a character that no token has", hint="paste it again")
        self.base_url = _checked_base_url(base_url)
        self.retry = retry or Retry()
        self._token = token
        self._reached = False
        self._pool = HttpPool(_CONNECTIONS)

    def __repr__(self) -> str:
        return f"Api({self.base_url})"

    def call(self, method: str, path: str, body: object = None, *, repeatable: bool = True) -> Any:
        """One call of the REST API; returns the `result` of the reply, not validated further.

        `path` is below the base URL, quoted, with a leading slash. If not `repeatable`, because a second execution
        would do harm (a rule appended twice), it is retried only where the first cannot have happened.

        Raises CredentialsError (the token is refused, or lacks the permission), NotFoundError, UnavailableError, and
        ColdstreamError with Cloudflare's words and code.
        """
        where = f"{method} {path.partition('?')[0]}"

        def attempt() -> Any:
            status, headers, reply = self._send(method, path, body, where, repeatable=repeatable)
            if status < 300 and reply is not None and reply.success:
                return reply.result
            raise self._refused(status, headers, reply, where, repeatable=repeatable)

        return self.retry.run(attempt)

    def graphql(self, query: str, variables: Mapping[str, object]) -> dict[str, Any]:
        """Queries the GraphQL API, which only reads, and returns the `data` of the reply; raises as `call`."""
        where = "POST /graphql"
        body = {"query": query, "variables": variables}

        def attempt() -> dict[str, Any]:
            status, headers, reply = self._send("POST", "/graphql", body, where, repeatable=True)
            if status >= 300 or reply is None or reply.success is not None:
                raise self._refused(status, headers, reply, where, repeatable=True)
            if reply.errors:
                reason = self._shown(reply.errors[0].message)
                if any((fault.extensions or {}).get("code") == "authz" for fault in reply.errors):
                    raise self._forbidden(where, reason, "/graphql")
                raise ColdstreamError(f"Cloudflare refuses the query: {reason}")
            return reply.data or {}

        return self.retry.run(attempt)

    def _send(
        self, method: str, path: str, body: object, where: str, *, repeatable: bool
    ) -> tuple[int, Mapping[str, str], _CloudflareReply | None]:
        """Status, headers and the decoded reply. No redirect is followed: the token is for this host.

        A reply is None if it is an error's and not of Cloudflare's form.
        """
        import urllib3

        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        sent = None
        if body is not None:
            sent, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            with self._pool.request(method, self.base_url + path, body=sent, headers=headers) as response:
                self._reached = True
                data = bytearray()
                while piece := response.read(_PIECE_BYTES):
                    self.retry.check()
                    data += piece
                    if len(data) > RESPONSE_BYTES_MAX:
                        raise IntegrityError(
                            f"Cloudflare's answer to {where} is larger than {format_bytes(RESPONSE_BYTES_MAX)}",
                        )
                status = response.status
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            if isinstance(exc, ColdstreamError):
                raise
            raise self._broken(where, exc, repeatable=repeatable) from exc
        try:
            return status, response.headers, _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            if status >= 500 or status in {401, 403} or is_retryable_status(status):
                return status, response.headers, None
            shown = describe_reply(status, response.headers, bytes(data))
            raise IntegrityError(
                f"{self.base_url} does not answer {where} as Cloudflare's API does: {shown}",
                hint="check CLOUDFLARE_BASE_URL and HTTPS_PROXY",
            ) from exc

    def _refused(
        self, status: int, headers: Mapping[str, str], answer: _CloudflareReply | None, where: str, *, repeatable: bool
    ) -> ColdstreamError:
        first = answer.errors[0] if answer and answer.errors else _Fault()
        reason = self._shown(first.message)
        code = f"code {first.code}" if first.code else str(status)
        if status == 429:
            return UnavailableError(
                f"Cloudflare limits the rate of requests (429): {where}",
                hint="wait some minutes; Cloudflare allows a token 1,200 requests in five minutes",
                retry_after_seconds=retry_after(headers),
            )
        if status >= 500 or is_retryable_status(status):
            return UnavailableError(
                f"Cloudflare answered {status}: {where}",
                hint="see cloudflarestatus.com",
                retryable=repeatable and is_retryable_status(status),
                retry_after_seconds=retry_after(headers),
            )
        if status in {401, 403} or (status == 400 and first.code in _TOKEN_CODES):
            return self._forbidden(where, reason or str(status), where.partition(" ")[2])
        if status == 404:
            return NotFoundError(f"Cloudflare knows nothing at {where}: {reason or '404'} ({code})")
        return ColdstreamError(f"Cloudflare refuses {where}: {reason or 'no reason given'} ({code})")

    def _forbidden(self, where: str, reason: str, path: str) -> CredentialsError:
        needed = next((name for pattern, name in _PERMISSIONS if re.match(pattern, path)), None)
        lacks = f"lacks the permission {needed!r}" if needed else "lacks a permission"
        return CredentialsError(
            f"Cloudflare refuses the token in CLOUDFLARE_API_TOKEN for {where}: {reason}",
            hint=f"it is wrong, has expired, or {lacks}: see dash.cloudflare.com/profile/api-tokens",
        )

    def _broken(self, where: str, exc: Exception, *, repeatable: bool) -> UnavailableError:
        import urllib3

        host, hint = urlsplit(self.base_url).hostname or "", "check the network, HTTPS_PROXY and CLOUDFLARE_BASE_URL"
        error = unanswered(exc, where, host, reached=self._reached, hint=hint)
        unsent = isinstance(exc, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
        error.retryable = error.retryable and (repeatable or unsent)
        return error

    def _shown(self, reason: str) -> str:
        """Cloudflare's words, without the token and control characters."""
        reason = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", reason.replace(self._token, "…")).strip()
        return reason[:_REASON_CHARACTERS_MAX]


def open_api(settings: Settings, retry: Retry | None = None) -> Api | None:
    """Cloudflare's API with the configured token, or None; see `Api`."""
    token = settings.get("CLOUDFLARE_API_TOKEN")
    if token is None:
        return None
    retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
    return Api(token, settings.get("CLOUDFLARE_BASE_URL") or BASE_URL, retry=retry)


def _checked_base_url(text: str) -> str:
    try:
        target = parse_target(text)
    except FetchError:
        target = None
    if target is None or "?" in text or "#" in text:
        raise ConfigError(
            "CLOUDFLARE_BASE_URL is not a valid URL of an API", hint=f"leave it out, or write it like {BASE_URL}"
        )
    if target.scheme != "https" and not is_loopback(target.host):
        raise ConfigError(
            f"CLOUDFLARE_BASE_URL is {target.scheme}://{target.host}, where the token would travel in the open",
            hint=f"write it like {BASE_URL}",
        )
    return target.url.rstrip("/")
