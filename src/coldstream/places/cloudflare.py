"""Cloudflare's own API: REST and GraphQL, as far as R2 and its CDN need them.

Objects never come this way: they go through the S3 API, in `store`. Cloudflare counts 1,200 requests in five minutes
for each token and then answers 429 (docs fundamentals/api/reference/limits).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
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
from coldstream.net.reply import describe_reply
from coldstream.net.retry import Backoff, Retry, is_retryable_status, retry_after
from coldstream.package import __version__
from coldstream.settings import Settings
from coldstream.units import MIB, format_bytes

if TYPE_CHECKING:
    import urllib3

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
    """One of an answer's errors."""

    code: int = 0
    message: str = ""


class _ApiAnswer(msgspec.Struct, frozen=True):
    """What every answer of the REST API is in."""

    success: bool
    errors: tuple[_Fault, ...] | None = None
    result: Any = None


class _GraphExtensions(msgspec.Struct, frozen=True):
    code: str | None = None


class _GraphFault(msgspec.Struct, frozen=True):
    message: str = ""
    extensions: _GraphExtensions | None = None


class _GraphAnswer(msgspec.Struct, frozen=True):
    """What every answer of the GraphQL API is in."""

    data: dict[str, Any] | None = None
    errors: tuple[_GraphFault, ...] | None = None


# Made here: two threads that make the first decoder of a type at once can crash msgspec 0.22.
_ENVELOPE = msgspec.json.Decoder(_ApiAnswer)
_GRAPH_ANSWER = msgspec.json.Decoder(_GraphAnswer)


@dataclass(frozen=True, slots=True)
class R2Account:
    """Whose R2 an endpoint is.

    Attributes:
        host: Of the S3 API.
        account: 32 hexadecimal digits.
        jurisdiction: "eu", "us" or "fedramp"; None for buckets that are in none.
    """

    host: str
    account: str
    jurisdiction: str | None


def r2_account(endpoint: str) -> R2Account:
    """What the endpoint of the S3 API says of the account.

    Raises:
        ConfigError: It is not R2's.
    """
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
        """Touches no network.

        Raises:
            ConfigError: The token or the URL cannot be one.
        """
        from coldstream.net import trust as https

        # A header with a line break in it would fail later, with the token in the message.
        if not re.fullmatch(r"[!-~]+", token):
            raise ConfigError("CLOUDFLARE_API_TOKEN has a character that no token has", hint="paste it again")
        self.base_url = _checked_base_url(base_url)
        self.retry = retry or Retry()
        self._token = token
        self._reached = False
        self._pools = https.connections(_CONNECTIONS)

    def __repr__(self) -> str:
        return f"Api({self.base_url})"

    def call(self, method: str, path: str, body: object = None, *, repeatable: bool = True) -> Any:
        """One call of the REST API.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: Below the base URL, with a leading slash; the caller has quoted it.
            body: Sent as JSON; None for none.
            repeatable: False where doing it twice would do harm (a rule appended twice): then it is tried again only
                where it cannot have been done.

        Returns:
            The answer's `result`: what JSON makes of it, not validated further.

        Raises:
            CredentialsError: The token is refused, or lacks the permission.
            NotFoundError: 404.
            UnavailableError: No connection, 429 or 5xx, for longer than the policy allows.
            ColdstreamError: Refused otherwise, with Cloudflare's words and code. Permanent.
        """
        where = f"{method} {path.partition('?')[0]}"

        def attempt() -> Any:
            status, headers, data = self._send(method, path, body, where, repeatable=repeatable)
            try:
                envelope = _ENVELOPE.decode(data)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                envelope = None
            if status < 300 and envelope is not None and envelope.success:
                return envelope.result
            faults = (envelope.errors or ()) if envelope is not None else ()
            if envelope is None and _is_foreign(status):
                raise self._no_answer(where, status, headers, data)
            raise self._refused(status, headers, faults, where, repeatable=repeatable)

        return self.retry.run(attempt)

    def graphql(self, query: str, variables: Mapping[str, object]) -> dict[str, Any]:
        """Asks the GraphQL API, which only reads.

        Returns:
            The answer's `data`.

        Raises:
            CredentialsError: The token is refused, or may not read these figures.
            UnavailableError: As in `call`.
            ColdstreamError: The query is refused, with Cloudflare's words. Permanent.
        """
        where = "POST /graphql"
        body = {"query": query, "variables": variables}

        def attempt() -> dict[str, Any]:
            status, headers, data = self._send("POST", "/graphql", body, where, repeatable=True)
            try:
                answer = _GRAPH_ANSWER.decode(data)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                answer = None
            faults = (answer.errors or ()) if answer is not None else ()
            if answer is None and _is_foreign(status):
                raise self._no_answer(where, status, headers, data)
            if status >= 300:
                reasons = tuple(_Fault(message=fault.message) for fault in faults)
                raise self._refused(status, headers, reasons, where, repeatable=True)
            if answer is None or (answer.data is None and not faults):
                raise self._no_answer(where, status, headers, data)
            if faults:
                reason = self._shown(faults[0].message)
                if any(fault.extensions and fault.extensions.code == "authz" for fault in faults):
                    raise self._forbidden(where, reason, "/graphql")
                raise ColdstreamError(f"Cloudflare refuses the query: {reason}", operation=where)
            return answer.data or {}

        return self.retry.run(attempt)

    def _send(
        self, method: str, path: str, body: object, where: str, *, repeatable: bool
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request: status, headers and body of the answer."""
        import urllib3

        url = self.base_url + path
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Accept": "application/json",
            # Nothing is unpacked, so what is read is what was counted.
            "Accept-Encoding": "identity",
            "User-Agent": f"coldstream/{__version__}",
        }
        sent = None
        if body is not None:
            sent, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            response = self._pools(url).request(
                # A redirect is not followed: the token is for this host.
                method,
                url,
                body=sent,
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=False,
            )
            self._reached = True
            return response.status, response.headers, _whole(response, where, self.retry.check)
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            if isinstance(exc, ColdstreamError):
                raise
            raise self._broken(where, exc, repeatable=repeatable) from exc

    def _refused(
        self, status: int, headers: Mapping[str, str], faults: tuple[_Fault, ...], where: str, *, repeatable: bool
    ) -> ColdstreamError:
        first = faults[0] if faults else _Fault()
        reason = self._shown(first.message)
        code = f"code {first.code}" if first.code else str(status)
        if status == 429:
            return UnavailableError(
                f"Cloudflare limits the rate of requests (429): {where}",
                hint="wait some minutes; Cloudflare allows a token 1,200 requests in five minutes",
                operation=where,
                retry_after_seconds=retry_after(headers),
            )
        if status >= 500 or is_retryable_status(status):
            return UnavailableError(
                f"Cloudflare answered {status}: {where}",
                hint="see cloudflarestatus.com",
                operation=where,
                retryable=repeatable and is_retryable_status(status),
                retry_after_seconds=retry_after(headers),
            )
        if status in {401, 403} or (status == 400 and first.code in _TOKEN_CODES):
            return self._forbidden(where, reason or str(status), where.partition(" ")[2])
        if status == 404:
            return NotFoundError(f"Cloudflare knows nothing at {where}: {reason or '404'} ({code})", operation=where)
        return ColdstreamError(f"Cloudflare refuses {where}: {reason or 'no reason given'} ({code})", operation=where)

    def _forbidden(self, where: str, reason: str, path: str) -> CredentialsError:
        needed = next((name for pattern, name in _PERMISSIONS if re.match(pattern, path)), None)
        lacks = f"lacks the permission {needed!r}" if needed else "lacks a permission"
        return CredentialsError(
            f"Cloudflare refuses the token in CLOUDFLARE_API_TOKEN for {where}: {reason}",
            hint=f"it is wrong, has expired, or {lacks}: see dash.cloudflare.com/profile/api-tokens",
            operation=where,
        )

    def _broken(self, where: str, exc: Exception, *, repeatable: bool) -> UnavailableError:
        import urllib3

        host = urlsplit(self.base_url).hostname or ""
        if isinstance(exc, urllib3.exceptions.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return UnavailableError(f"{host}: TLS failed", hint="check SSL_CERT_FILE and HTTPS_PROXY", retryable=False)
        if not self._reached:
            # Before anything ever answered, the address or the network is the likelier fault: say so at once.
            return UnavailableError(
                f"cannot reach {host}",
                hint="check the network, HTTPS_PROXY and CLOUDFLARE_BASE_URL",
                operation=where,
                retryable=False,
            )
        unsent = isinstance(exc, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
        return UnavailableError(
            f"{where}: the connection to {host} broke ({type(exc).__name__})",
            operation=where,
            retryable=repeatable or unsent,
        )

    def _no_answer(self, where: str, status: int, headers: Mapping[str, str], data: bytes) -> IntegrityError:
        shown = describe_reply(status, headers.get("Content-Type"), data, location=headers.get("Location", ""))
        return IntegrityError(
            f"{self.base_url} does not answer {where} as Cloudflare's API does: {shown}",
            hint="check CLOUDFLARE_BASE_URL and HTTPS_PROXY",
            operation=where,
        )

    def _shown(self, reason: str) -> str:
        """Cloudflare's words, as they may be printed."""
        reason = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", reason.replace(self._token, "…")).strip()
        return reason[:_REASON_CHARACTERS_MAX]


def open_api(settings: Settings, retry: Retry | None = None) -> Api | None:
    """Cloudflare's API with the configured token; None when there is none. Touches no network.

    Raises:
        ConfigError: The token or the URL cannot be one.
    """
    token = settings.get("CLOUDFLARE_API_TOKEN")
    if token is None:
        return None
    retry = retry or Retry(Backoff(give_up_seconds=settings.retry_seconds))
    return Api(token, settings.get("CLOUDFLARE_BASE_URL") or BASE_URL, retry=retry)


def _is_foreign(status: int) -> bool:
    """Whether an answer of this status that is not Cloudflare's JSON comes from another server."""
    return status < 500 and status not in {401, 403} and not is_retryable_status(status)


def _whole(response: urllib3.BaseHTTPResponse, where: str, check: Callable[[], None]) -> bytes:
    """An answer's body, up to the limit. The connection is reused if all was read, and closed otherwise."""
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := response.read(_PIECE_BYTES, decode_content=False):
            check()
            size += len(piece)
            if size > RESPONSE_BYTES_MAX:
                raise IntegrityError(
                    f"Cloudflare's answer to {where} is larger than {format_bytes(RESPONSE_BYTES_MAX)}", operation=where
                )
            pieces.append(piece)
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return b"".join(pieces)


def _checked_base_url(text: str) -> str:
    try:
        split = urlsplit(text)
        sound = bool(split.hostname) and (split.port is None or split.port > 0)
    except ValueError:
        split, sound = urlsplit(""), False
    if not sound or split.username or split.password or split.query or split.fragment:
        raise ConfigError(
            "CLOUDFLARE_BASE_URL is not a valid URL of an API", hint=f"leave it out, or write it like {BASE_URL}"
        )
    if split.scheme != "https" and not (split.scheme == "http" and is_loopback(split.hostname or "")):
        raise ConfigError(
            f"CLOUDFLARE_BASE_URL is {split.scheme}://{split.hostname}, where the token would travel in the open",
            hint=f"write it like {BASE_URL}",
        )
    return f"{split.scheme}://{split.netloc}{split.path.rstrip('/')}"
