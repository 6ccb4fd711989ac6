"""Temporary, read-only credentials for a rented node.

R2 offers two ways (docs r2/api/s3/temporary-credentials): Cloudflare's API issues them, or the holder of a long-lived
key signs them without a request. Either way they are the parent's access key ID, a token that states what is allowed
and until when, and a secret derived from the token. They can do nothing that the parent cannot, and end when the
parent is revoked. Other S3 servers have no equivalent, so there the node gets the user's own keys.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from coldstream.errors import ConfigError, IntegrityError, UsageError
from coldstream.fleet.deployment import bucket_of
from coldstream.mirror.segment_pool import ROOT as SEGMENTS
from coldstream.model.names import checked_name
from coldstream.node.bundle.bundle_store import ROOT as BUNDLES
from coldstream.places.cloudflare import Api, open_api, r2_account
from coldstream.runtime.runtime_store import ROOT as RUNTIMES
from coldstream.settings import Settings
from coldstream.units import parse_duration

# R2 refuses longer lives (docs r2/api/s3/temporary-credentials, and the maximum of `ttlSeconds` in the API's schema).
TTL_SECONDS_MAX = 7 * 86400
# Shorter ones would expire before a node reads its first byte.
TTL_SECONDS_MIN = 60
_SCOPE = "object-read-only"
# The session token, which every request has in a header, is 16/9 as long as what it states. Servers limit headers;
# common limits begin at 8 KiB.
_PREFIXES_CHARACTERS_MAX = 3500

How = Literal["auto", "sign", "api", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a node's keys are, or will be if made now, without secrets.

    They are "signed" here, "issued" by Cloudflare's API, or the user's "own", with all their permissions and no known
    expiry. The others expire (in Unix seconds), and read only the objects with the prefixes.
    """

    how: Literal["signed", "issued", "own"]
    expires_at: int | None
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Keys for a node; temporary ones have their parent's access key ID and a session token."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    terms: Terms

    @property
    def environment(self) -> dict[str, str]:
        """The variables that coldstream reads them from on a node. All but the first are secret."""
        return {
            "R2_ACCESS_KEY": self.access_key,
            "R2_SECRET_KEY": self.secret_key,
            # Empty counts as unset, and overrides one that the node's image may set.
            "R2_SESSION_TOKEN": self.session_token or "",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPlan:
    """The keys of a node before they are made, and the user's own keys that they derive from.

    Attributes:
        how: See `Terms.how`.
        endpoint: URL of the S3 API; temporary keys are valid only for this host.
        prefixes: Of the objects to read; each ends in a slash. Empty for the user's own keys.
        api: Issues the keys, with a token that may edit the account's R2 storage.
    """

    how: Literal["signed", "issued", "own"]
    endpoint: str
    bucket: str
    prefixes: tuple[str, ...]
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    ttl_seconds: int
    api: Api | None = None

    def __post_init__(self) -> None:
        _check_ttl(self.ttl_seconds, f"{self.ttl_seconds} s")
        # Without any, or with an empty one, R2 would allow the whole bucket.
        assert self.how == "own" or (self.prefixes and all(self.prefixes))

    def terms(self, now: float | None = None) -> Terms:
        """The terms of keys that are made at `now`, by default the present, in Unix seconds."""
        made_at = int(time.time() if now is None else now)
        expires_at = None if self.how == "own" else made_at + self.ttl_seconds
        return Terms(how=self.how, expires_at=expires_at, prefixes=self.prefixes)

    def mint(self, now: float | None = None) -> Credentials:
        """Makes the keys. Raises ConfigError if the endpoint is not R2's, and what Cloudflare's API raises."""
        # Before the request, so that the expiry is never stated too late.
        now = time.time() if now is None else now
        keys = (self.access_key, self.secret_key, self.session_token)
        if self.how != "own":
            keys = self._sign(int(now)) if self.api is None else self._issue(self.api)
        return Credentials(access_key=keys[0], secret_key=keys[1], session_token=keys[2], terms=self.terms(now))

    def _sign(self, issued_at: int) -> tuple[str, str, str | None]:
        place = r2_account(self.endpoint)
        # Names and meaning: docs r2/examples/authenticate-r2-temp-credentials.
        claims = {
            "bucket": self.bucket,
            "scope": _SCOPE,
            "paths": {"prefixPaths": list(self.prefixes), "objectPaths": []},
            "sub": place.account,
            "iss": self.access_key,
            "aud": place.host,
            "iat": issued_at,
            "exp": issued_at + self.ttl_seconds,
        }
        parts = (json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims))
        signed = b".".join(map(_url_base64, parts))
        token = signed + b"." + _url_base64(hmac.digest(self.secret_key.encode(), signed, "sha256"))
        return self.access_key, hashlib.sha256(token).hexdigest(), base64.b64encode(b"jwt/" + token).decode()

    def _issue(self, api: Api) -> tuple[str, str, str | None]:
        body = {
            "bucket": self.bucket,
            "parentAccessKeyId": self.access_key,
            "permission": _SCOPE,
            "ttlSeconds": self.ttl_seconds,
            "prefixes": list(self.prefixes),
        }
        answer = api.call("POST", f"/accounts/{r2_account(self.endpoint).account}/r2/temp-access-credentials", body)
        names = ("accessKeyId", "secretAccessKey", "sessionToken")
        values = [answer.get(name) for name in names] if isinstance(answer, Mapping) else []
        words = [value for value in values if isinstance(value, str) and re.fullmatch(r"[!-~]{1,16384}", value)]
        if len(words) != len(names):
            raise IntegrityError(
                "the answer of Cloudflare's API has no temporary credentials", hint="check CLOUDFLARE_BASE_URL"
            )
        return words[0], words[1], words[2]


def _url_base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def parse_ttl(text: str) -> int:
    """Parses the lifetime of credentials, "24h", "7d", "90m" or "3600", into seconds. Raises UsageError."""
    seconds = parse_duration(text)
    _check_ttl(seconds, text.strip())
    return seconds


def _check_ttl(seconds: int, shown: str) -> None:
    if not TTL_SECONDS_MIN <= seconds <= TTL_SECONDS_MAX:
        raise UsageError(
            f"credentials cannot be valid for {shown}, only for {TTL_SECONDS_MIN} s to {TTL_SECONDS_MAX} s (7 days)",
            hint="write it like 24h, 7d or 90m",
        )


def prefixes_of(
    model: str,
    store_prefix: str,
    *,
    beside: Sequence[str] = (),
    in_segments: bool = False,
    runtime: str | None = None,
) -> tuple[str, ...]:
    """The prefixes of what a serving node reads: the model's files, its warm-start bundles, its runtime.

    The models `beside` it are adapters and a draft model.
    Each ends in a slash, so that access to `org/model` does not include `org/model-2`. Models share segments, and the
    keys can read all of them: a token with the key of each segment would be too long.
    """
    name, root = checked_name(model), store_prefix.strip("/")
    inside = f"{root}/" if root else ""
    shared = (f"{inside}{SEGMENTS}",) if in_segments else ()
    image = (f"{inside}{RUNTIMES}/{runtime}/",) if runtime else ()
    own = (f"{inside}{checked_name(other)}/" for other in beside)
    return (f"{inside}{name}/", f"{inside}{BUNDLES}/{name}/", *own, *shared, *image)


def plan_keys(
    settings: Settings,
    model: str,
    ttl_seconds: int,
    how: How = "auto",
    *,
    beside: Sequence[str] = (),
    in_segments: bool = False,
    runtime: str | None = None,
) -> KeyPlan:
    """Plans the keys of a node that serves a model from the configured bucket, without sending a request.

    On R2, "auto" signs them here if the configured keys are long-lived; temporary keys cannot sign, so then
    Cloudflare's API issues them, if there is a token for it. Elsewhere they are the user's own: the caller warns.

    Raises:
        UsageError: The store is a directory, the name or lifetime is not valid, or the store does not support `how`.
        ConfigError: A bucket, keys or a token is not configured.
    """
    store, endpoint = urlsplit(bucket_of(settings).uri), settings.endpoint() or ""
    prefixes = prefixes_of(model, store.path, beside=beside, in_segments=in_segments, runtime=runtime)
    if how in {"sign", "api"} and not settings.is_r2:
        raise UsageError(
            f"{urlsplit(endpoint).hostname or 'AWS S3'} does not support temporary credentials; Cloudflare R2 does",
            hint="use --credentials own, preferably with keys that only read this bucket",
        )
    access_key, secret_key, session_token = _own_keys(settings)
    plan = KeyPlan(
        how="own",
        endpoint=endpoint,
        bucket=store.netloc,
        prefixes=(),
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
        ttl_seconds=ttl_seconds,
    )
    if how == "own" or not settings.is_r2:
        return plan
    api = open_api(settings)
    if how == "api" and api is None:
        raise ConfigError(
            f"CLOUDFLARE_API_TOKEN is not set in {' or '.join(settings.looked_in)}, and Cloudflare's API needs it",
            hint="create a token with 'Workers R2 Storage: Edit' at dash.cloudflare.com/profile/api-tokens",
        )
    if how == "sign" or (how == "auto" and session_token is None):
        api = None
    if session_token is not None and api is None:
        raise ConfigError(
            "no R2 token to sign with: the configured keys are temporary themselves (R2_SESSION_TOKEN is set)",
            hint="configure the long-lived R2_ACCESS_KEY and R2_SECRET_KEY, or CLOUDFLARE_API_TOKEN",
        )
    if sum(map(len, prefixes)) > _PREFIXES_CHARACTERS_MAX:
        raise UsageError(
            f"{len(beside)} adapters are too many for temporary keys, which name each of them",
            hint="name fewer with --adapters, or use --credentials own",
        )
    # Checks that the host names its account.
    r2_account(endpoint)
    return replace(plan, how="signed" if api is None else "issued", prefixes=prefixes, api=api)


def _own_keys(settings: Settings) -> tuple[str, str, str | None]:
    """(access key ID, secret, session token), configured or from the AWS credential chain."""
    if keys := settings.keys():
        return keys
    # Takes half a second to import, and only profiles, SSO and roles need it.
    import boto3
    import botocore.exceptions

    try:
        chain = boto3.session.Session(profile_name=settings.get("AWS_PROFILE")).get_credentials()
        frozen = chain.get_frozen_credentials() if chain else None
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
