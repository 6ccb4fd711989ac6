"""What a rented node gets to read one model with: keys that end soon, reach its prefixes alone, and only read.

R2 knows two ways to them (docs r2/api/s3/temporary-credentials): Cloudflare's API issues them, or whoever holds a
long-lived key signs them without asking anybody. Both are the same thing: the parent's access key id, a token that says
what is allowed and until when, and a secret that follows from the token. What the parent may not do, they may not;
when the parent is revoked, they end. Other servers of the S3 API have nothing like it, so there the node gets the
user's own keys, and whoever mints them says so.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from coldstream.errors import ConfigError, IntegrityError, UsageError
from coldstream.fleet.deployment import bucket_of
from coldstream.mirror.segment_pool import ROOT as SEGMENTS
from coldstream.model.names import checked_name
from coldstream.node.bundle.bundle_store import ROOT as BUNDLES
from coldstream.places.cloudflare import Api, open_api, r2_account
from coldstream.settings import Settings
from coldstream.units import parse_duration

# R2 refuses longer lives (docs r2/api/s3/temporary-credentials, and the maximum of `ttlSeconds` in the API's schema).
TTL_SECONDS_MAX = 7 * 86400
# Ours: what ends sooner has ended before a node reads its first byte.
TTL_SECONDS_MIN = 60
_SCOPE = "object-read-only"

How = Literal["auto", "sign", "api", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a node's keys are, or will be. No secret.

    Attributes:
        how: "signed" here; "issued" by Cloudflare's API; "own": the user's keys as they are, with all that they may do.
        expires_at: When they end, in Unix seconds; of keys that are not made yet, if they were made now. None when that
            is not known or never.
        prefixes: What the keys of readable objects begin with; empty for the user's own.
    """

    how: Literal["signed", "issued", "own"]
    expires_at: int | None
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Keys for a node. The repr shows no secret.

    Attributes:
        access_key: The access key id; that of temporary ones is their parent's.
        secret_key: The secret access key.
        session_token: None for keys that live on.
        terms: What they are otherwise.
    """

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    terms: Terms

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a node's coldstream reads them from. Secret, but for the first."""
        return {
            "R2_ACCESS_KEY": self.access_key,
            "R2_SECRET_KEY": self.secret_key,
            # Empty counts as absent, and does away with one that the node's image may bring.
            "R2_SESSION_TOKEN": self.session_token or "",
        }


def parse_ttl(text: str) -> int:
    """Reads how long credentials shall live: "24h", "7d", "90m", "3600".

    Returns:
        Seconds.

    Raises:
        UsageError: It is no duration, or not between TTL_SECONDS_MIN and TTL_SECONDS_MAX.
    """
    seconds = parse_duration(text)
    _check_ttl(seconds, text.strip())
    return seconds


def prefixes_of(model: str, store_prefix: str, *, in_segments: bool = False) -> tuple[str, ...]:
    """What the keys of all that a serving node reads begin with: the model's files, and its warm-start bundles.

    Each ends in a slash, so that `org/model` does not let anybody read `org/model-2`.

    Args:
        model: `org/model` in the store.
        store_prefix: Of the store in its bucket, with or without slashes around it; "" for the bucket's root.
        in_segments: Whether its weights are stored in segments. Models share those, so that the keys of a node that
            reads some open all: a token names prefixes, and would be too long with each segment's key in it.

    Raises:
        UsageError: It is no model's name.
    """
    name, root = checked_name(model), store_prefix.strip("/")
    inside = f"{root}/" if root else ""
    shared = (f"{inside}{SEGMENTS}",) if in_segments else ()
    return (f"{inside}{name}/", f"{inside}{BUNDLES}/{name}/", *shared)


def sign(
    *,
    endpoint: str,
    bucket: str,
    prefixes: Sequence[str],
    access_key: str,
    secret_key: str,
    ttl_seconds: int,
    now: float,
) -> Credentials:
    """Makes credentials that R2 accepts, without asking it. Pure.

    Args:
        endpoint: URL of R2's S3 API; they are good for this host alone.
        bucket: The one bucket that they reach.
        prefixes: What readable keys begin with; at least one, none of them empty.
        access_key: The parent's access key id: a long-lived one.
        secret_key: Its secret.
        ttl_seconds: How long they live.
        now: Unix seconds.

    Raises:
        UsageError: The life is too short or too long.
        ConfigError: The endpoint is not R2's.
    """
    _check_ttl(ttl_seconds, f"{ttl_seconds} s")
    _check_prefixes(prefixes)
    place = r2_account(endpoint)
    issued_at = int(now)
    # Names and meaning: docs r2/examples/authenticate-r2-temp-credentials.
    claims = {
        "bucket": bucket,
        "scope": _SCOPE,
        "paths": {"prefixPaths": list(prefixes), "objectPaths": []},
        "sub": place.account,
        "iss": access_key,
        "aud": place.host,
        "iat": issued_at,
        "exp": issued_at + ttl_seconds,
    }
    signed = b".".join(_url_base64(_compact(part)) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    signature = hmac.new(secret_key.encode(), signed, hashlib.sha256).digest()
    token = signed + b"." + _url_base64(signature)
    return Credentials(
        access_key=access_key,
        secret_key=hashlib.sha256(token).hexdigest(),
        session_token=base64.b64encode(b"jwt/" + token).decode(),
        terms=Terms(how="signed", expires_at=issued_at + ttl_seconds, prefixes=tuple(prefixes)),
    )


def issue(
    api: Api,
    *,
    endpoint: str,
    bucket: str,
    prefixes: Sequence[str],
    access_key: str,
    ttl_seconds: int,
    now: float,
) -> Credentials:
    """Lets Cloudflare's API make the credentials.

    Args:
        api: With a token that may edit the account's R2 storage.
        endpoint: URL of R2's S3 API; it names the account.
        bucket: The one bucket that they reach.
        prefixes: What readable keys begin with; at least one, none of them empty.
        access_key: The parent's access key id; its secret is not needed.
        ttl_seconds: How long they live.
        now: Unix seconds; their end is counted from here, so it is never told too late.

    Raises:
        UsageError: The life is too short or too long.
        ConfigError: The endpoint is not R2's.
        CredentialsError: The API refuses the token.
        UnavailableError: The API does not answer.
        ColdstreamError: The API refuses the request.
        IntegrityError: It answers with what are no credentials.
    """
    _check_ttl(ttl_seconds, f"{ttl_seconds} s")
    _check_prefixes(prefixes)
    account = r2_account(endpoint).account
    body = {
        "bucket": bucket,
        "parentAccessKeyId": access_key,
        "permission": _SCOPE,
        "ttlSeconds": ttl_seconds,
        "prefixes": list(prefixes),
    }
    found = api.call("POST", f"/accounts/{account}/r2/temp-access-credentials", body)
    values = [
        found.get(name) if isinstance(found, Mapping) else None
        for name in ("accessKeyId", "secretAccessKey", "sessionToken")
    ]
    words = [value for value in values if isinstance(value, str) and re.fullmatch(r"[!-~]{1,16384}", value)]
    if len(words) != 3:
        raise IntegrityError(
            "Cloudflare's API answers with what are no temporary credentials", hint="check CLOUDFLARE_BASE_URL"
        )
    return Credentials(
        access_key=words[0],
        secret_key=words[1],
        session_token=words[2],
        terms=Terms(how="issued", expires_at=int(now) + ttl_seconds, prefixes=tuple(prefixes)),
    )


def terms_of(
    settings: Settings,
    model: str,
    ttl_seconds: int,
    how: How = "auto",
    *,
    in_segments: bool = False,
    now: float | None = None,
) -> Terms:
    """What `mint` would make of the same arguments. Nothing is made, and nobody is asked.

    Raises:
        UsageError: The store is a folder, the name is none, the life is too short or too long, or that way does not
            exist for this store.
        ConfigError: No bucket, no keys or no token are configured.
    """
    prefixes = prefixes_of(model, urlsplit(bucket_of(settings).uri).path, in_segments=in_segments)
    _check_ttl(ttl_seconds, f"{ttl_seconds} s")
    endpoint = settings.endpoint() or ""
    if how in {"sign", "api"} and not settings.is_r2:
        raise UsageError(
            f"{urlsplit(endpoint).hostname or 'AWS S3'} gives no temporary credentials this way; Cloudflare R2 does",
            hint="let the node have your own keys, best ones that read this bucket alone",
        )
    _, _, session_token = _own_keys(settings)
    if how == "own" or not settings.is_r2:
        return Terms(how="own", expires_at=None, prefixes=())
    has_api = open_api(settings) is not None
    if how == "api" and not has_api:
        raise ConfigError(
            f"CLOUDFLARE_API_TOKEN is not set in {' or '.join(settings.looked_in)}, and Cloudflare's API wants it",
            hint="make a token with 'Workers R2 Storage: Edit' at dash.cloudflare.com/profile/api-tokens",
        )
    issued = how == "api" or (how == "auto" and session_token is not None and has_api)
    if session_token is not None and not issued:
        raise ConfigError(
            "no R2 token to sign with: the configured keys are temporary themselves (R2_SESSION_TOKEN is set)",
            hint="configure the long-lived R2_ACCESS_KEY and R2_SECRET_KEY, or CLOUDFLARE_API_TOKEN",
        )
    # Keys are for a host that names its account.
    r2_account(endpoint)
    expires_at = int(time.time() if now is None else now) + ttl_seconds
    return Terms(how="issued" if issued else "signed", expires_at=expires_at, prefixes=prefixes)


def mint(
    settings: Settings,
    model: str,
    ttl_seconds: int,
    how: How = "auto",
    *,
    in_segments: bool = False,
    now: float | None = None,
) -> Credentials:
    """The credentials for a node that serves a model from the configured bucket.

    On R2 "auto" signs them here when the configured keys live on; temporary ones cannot sign, so then Cloudflare's API
    is asked, if there is a token for it. Elsewhere they are the user's own: the caller looks at `how` and warns.

    Args:
        settings: Where the bucket is, the parent's keys, and the token for Cloudflare's API.
        model: `org/model` in the store.
        ttl_seconds: How long they live; the user's own are not changed by it.
        how: "auto", or the one way to take: "sign", "api", or "own".
        in_segments: See `prefixes_of`.
        now: Unix seconds; the clock's when None.

    Raises:
        UsageError, ConfigError: As `terms_of`.
        CredentialsError: Cloudflare's API refuses the token.
        ColdstreamError: Cloudflare's API does not answer, or refuses.
    """
    now = time.time() if now is None else now
    terms = terms_of(settings, model, ttl_seconds, how, in_segments=in_segments, now=now)
    access_key, secret_key, session_token = _own_keys(settings)
    if terms.how == "own":
        return Credentials(access_key=access_key, secret_key=secret_key, session_token=session_token, terms=terms)
    endpoint, bucket = settings.endpoint() or "", urlsplit(bucket_of(settings).uri).netloc
    if terms.how == "issued":
        api = open_api(settings)
        assert api is not None
        return issue(
            api,
            endpoint=endpoint,
            bucket=bucket,
            prefixes=terms.prefixes,
            access_key=access_key,
            ttl_seconds=ttl_seconds,
            now=now,
        )
    return sign(
        endpoint=endpoint,
        bucket=bucket,
        prefixes=terms.prefixes,
        access_key=access_key,
        secret_key=secret_key,
        ttl_seconds=ttl_seconds,
        now=now,
    )


def _own_keys(settings: Settings) -> tuple[str, str, str | None]:
    """(access key id, secret, session token): the configured ones, or what the AWS chain has now."""
    if keys := settings.keys():
        return keys
    # Half a second to import, and only profiles, SSO and roles need it.
    import boto3
    import botocore.exceptions

    try:
        found = boto3.session.Session(profile_name=settings.get("AWS_PROFILE")).get_credentials()
        frozen = found.get_frozen_credentials() if found else None
    except botocore.exceptions.BotoCoreError as exc:
        raise ConfigError(
            f"the AWS chain has no credentials: {str(exc)[:200]}", hint="run: coldstream setup --write-env"
        ) from exc
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        raise ConfigError(
            "no credentials for the bucket: neither R2_ACCESS_KEY nor AWS_ACCESS_KEY_ID is set in "
            f"{' or '.join(settings.looked_in)}, and the AWS chain (profile, SSO, instance role) has none",
            hint="set R2_ACCESS_KEY and R2_SECRET_KEY, or run: coldstream setup --write-env",
        )
    return frozen.access_key, frozen.secret_key, frozen.token or None


def _check_ttl(seconds: int, shown: str) -> None:
    if not TTL_SECONDS_MIN <= seconds <= TTL_SECONDS_MAX:
        raise UsageError(
            f"credentials cannot live for {shown}, but from {TTL_SECONDS_MIN} s to {TTL_SECONDS_MAX} s (7 days)",
            hint="write it like 24h, 7d or 90m",
        )


def _check_prefixes(prefixes: Sequence[str]) -> None:
    # Without any, or with an empty one, R2 would give the whole bucket.
    assert prefixes
    assert all(prefixes)


def _compact(part: Mapping[str, object]) -> bytes:
    return json.dumps(part, separators=(",", ":")).encode()


def _url_base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
