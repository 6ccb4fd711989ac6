"""Checks an endpoint and a bucket with real requests, for `coldstream setup` and `coldstream doctor`.

Latency and the throughput of one stream are those of this machine; on R2, one stream says little about many.
"""

from __future__ import annotations

import email.utils
import os
import ssl
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import urllib3

from coldstream.errors import ColdstreamError, UnavailableError
from coldstream.net.http_message import parse_target, proxy_for
from coldstream.net.pool import HttpPool, failure
from coldstream.net.tls import tls_fault
from coldstream.places.place import Store, honours_conditions
from coldstream.settings import ENDPOINTS, Settings, mask
from coldstream.units import MIB, format_rate, format_seconds

PROBE_FOLDER = ".coldstream-probe"
_SPEED_BYTES = 8 * MIB
_LATENCY_ROUNDS = 5
_ENDPOINT_SECONDS = 10.0
_UNCONDITIONAL = ("not supported by this store", "do not upload the same model from two machines at once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    state: str  # "ok", "warn" or "fail"; in `coldstream doctor` also "skipped"
    detail: str  # the measured value, the fault, or why the check was skipped; for people
    hint: str | None = None
    exit_code: int = 0  # the exit code of the error behind a failure; 0 if nothing failed
    blocked_by: str = ""  # the failed or missing dependency of a skipped check

    def document(self) -> dict[str, Any]:
        """The check as `--json` prints it; a contract."""
        return {"name": self.name, "state": self.state, "found": self.detail, "hint": self.hint,
                "exit_code": self.exit_code}  # fmt: skip


def ok(detail: str, *, name: str = "") -> Check:
    """A check that passed; the doctor's checklist fills in the name."""
    return Check(name=name, state="ok", detail=detail)


def warn(detail: str, hint: str | None = None, *, name: str = "") -> Check:
    """A check of something that works, but not well."""
    return Check(name=name, state="warn", detail=detail, hint=hint)


def fail(detail: str, hint: str | None = None, *, exit_code: int = 1, name: str = "") -> Check:
    """A check that failed."""
    return Check(name=name, state="fail", detail=detail, hint=hint, exit_code=exit_code)


def failed(exc: ColdstreamError, *, name: str = "") -> Check:
    """A check that failed with this error."""
    return fail(exc.message, exc.hint, exit_code=exc.exit_code, name=name)


def skipped(reason: str) -> Check:
    """A check that did not run."""
    return Check(name="", state="skipped", detail=f"skipped: {reason}", blocked_by=reason)


def check_configuration(settings: Settings) -> list[Check]:
    """Checks the store, endpoint and credentials, and names their origins; does not use the network."""
    # Its import takes longer than anything else here, and only `setup` shows the token.
    from coldstream.places.hub import hub_token

    checks = [
        _configured(settings, "store", ("COLDSTREAM_STORE", "R2_BUCKET"), settings.store_uri),
        _configured(settings, "endpoint", ENDPOINTS, settings.endpoint, "AWS S3 itself is used"),
        _configured(
            settings,
            "credentials",
            ("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
            lambda: _described_keys(settings),
            "the AWS chain (profile, SSO, role) is used",
        ),
    ]
    token, origin = hub_token(settings)
    detail = f"{origin}, ends in {mask(token)}" if token else "not set: public models only"
    return [*checks, ok(detail, name="hugging face token")]


def _configured(
    settings: Settings, name: str, variables: tuple[str, ...], read: Callable[[], str | None], fallback: str = ""
) -> Check:
    try:
        value = read()
    except ColdstreamError as exc:
        return failed(exc, name=name)
    if value:
        origin = settings.origin(*variables)
        return ok(f"{value}   ({origin})" if origin else value, name=name)
    detail = f"{' and '.join(variables)} are not set in {' or '.join(settings.looked_in)}"
    return warn(f"{detail}; {fallback}", name=name) if fallback else fail(detail, exit_code=2, name=name)


def _described_keys(settings: Settings) -> str | None:
    keys = settings.keys()
    if keys is None:
        return f"profile {profile}" if (profile := settings.get("AWS_PROFILE")) else None
    return f"{mask(keys[0])} and its secret {mask(keys[1])}" + (", with a session token" if keys[2] else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointProbe:
    """The response of an endpoint."""

    seconds: float  # until the response, including the connection
    date: str | None = None  # the header `Date`
    protocol: str | None = None  # "TLSv1.3"; None without TLS
    expires: float | None = None  # when the certificate expires, in Unix time
    tls_fault: str | None = None  # why TLS failed, such as an untrusted certificate
    proxy: str | None = None


def probe_endpoint(url: str, *, ca_bundle: str | None = None) -> EndpointProbe:
    """Requests `/` of a valid URL without credentials; any status counts. UnavailableError without a response."""
    target = parse_target(url)
    proxy = proxy_for(target)
    through = f"{proxy.host}:{proxy.port}" if proxy else None
    protocol, expires = None, None
    began = time.monotonic()
    with HttpPool(1, ca_bundle=ca_bundle, read_seconds=_ENDPOINT_SECONDS) as pool:
        try:
            with pool.request("GET", f"{target.scheme}://{target.authority}/") as response:
                date = response.headers.get("Date")
                if isinstance(sock := getattr(response.connection, "sock", None), ssl.SSLSocket):
                    protocol = sock.version()
                    ends = (sock.getpeercert() or {}).get("notAfter")
                    expires = ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None
        except urllib3.exceptions.HTTPError as exc:
            if fault := tls_fault(exc):
                return EndpointProbe(seconds=time.monotonic() - began, tls_fault=fault, proxy=through)
            by = f" through the proxy {through}" if through else ""
            raise UnavailableError(
                f"cannot reach {url}{by}: {failure(exc, target.authority).message}",
                hint="check R2_ENDPOINT and the network",
                retryable=False,
            ) from exc
    seconds = time.monotonic() - began
    return EndpointProbe(seconds=seconds, date=date, protocol=protocol, expires=expires, proxy=through)


def check_bucket(store: Store, *, create: bool, location: str | None) -> Check:
    """Checks that the bucket exists; creates it if not and if allowed."""
    from coldstream.places.s3_store import S3Store

    if not isinstance(store, S3Store):
        return ok(f"{store.uri} is a folder", name="bucket")
    try:
        if store.bucket_exists():
            return ok(f"{store.bucket} exists", name="bucket")
        if not create:
            return fail(f"{store.bucket} does not exist", exit_code=10, name="bucket")
        store.create_bucket(location)
    except ColdstreamError as exc:
        return failed(exc, name="bucket")
    return ok(f"{store.bucket} created", name="bucket")


def judged_clock(date: str | None) -> Check | None:
    """Compares this machine's clock with a server's header `Date`; None without a valid one."""
    try:
        off = abs(time.time() - email.utils.parsedate_to_datetime(date or "").timestamp())
    except ValueError:
        return None
    detail, hint = f"differs by {off:.0f} s from the server's", "set the clock: timedatectl set-ntp true"
    # A Date has whole seconds; signatures may be 15 minutes off.
    if off < 60:
        return ok(detail, name="clock")
    return warn(detail, hint, name="clock") if off < 600 else fail(detail, hint, name="clock")


def check_round_trip(store: Store, *, measure: bool = True) -> list[Check]:
    """Does everything with a probe object that coldstream needs, and deletes it; `measure` takes the longest."""
    key = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
    body, piece = os.urandom(4096), bytearray(96)
    checks: list[Check] = []
    try:
        put = _timed(lambda: store.put(key, body))
        get = _timed(lambda: store.read_into(key, 1000, memoryview(piece)))
        if piece != body[1000:1096]:
            checks.append(fail("a range read returned wrong bytes", name="round trip"))
        elif key not in [info.key for info in store.list(key)]:
            checks.append(fail("the listing lacks a new object", name="round trip"))
        else:
            detail = f"put {format_seconds(put)}   ranged get {format_seconds(get)}   list ok"
            checks.append(ok(detail, name="round trip"))
        check = ok("honoured") if honours_conditions(store, key, body) else warn(*_UNCONDITIONAL)
        checks += [replace(check, name="conditional put"), _check_multipart(store, key)]
        if measure:
            checks += _measure(store, key)
        store.delete([key])
        checks.append(ok("ok", name="delete"))
    except ColdstreamError as exc:
        checks.append(failed(exc, name="round trip"))
    finally:
        # The failed check reports a store that refuses or is unreachable.
        with suppress(ColdstreamError):
            store.delete([key])
    return checks


def _check_multipart(store: Store, key: str) -> Check:
    other = f"{key}-multipart"
    upload_id = store.create_upload(other)
    store.put_part(other, upload_id, 1, b"probe")
    listed = [part.number for part in store.parts(other, upload_id)]
    store.abort_upload(other, upload_id)
    if listed != [1]:
        return warn("parts cannot be listed: interrupted uploads start over", name="multipart")
    return ok("parts can be listed: interrupted uploads resume", name="multipart")


def _measure(store: Store, key: str) -> list[Check]:
    latency = median(_timed(lambda: store.head(key)) for _ in range(_LATENCY_ROUNDS))
    body = bytearray(os.urandom(_SPEED_BYTES))
    up = _timed(lambda: store.put(key, bytes(body)))
    down = _timed(lambda: store.read_into(key, 0, memoryview(body)))
    speed = f"up {format_rate(_SPEED_BYTES, up)}   down {format_rate(_SPEED_BYTES, down)}   with one stream of 8 MiB"
    return [ok(f"{format_seconds(latency)} a request", name="latency"), ok(speed, name="speed")]


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def exports(settings: Settings) -> dict[str, str]:
    """The environment that the AWS CLI, vLLM and Run:ai's streamer need for this bucket. Holds secrets."""
    keys, endpoint = settings.keys(), settings.endpoint()
    variables: dict[str, str | None] = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CA_BUNDLE": settings.get("AWS_CA_BUNDLE"),
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_PROFILE": None if keys else settings.get("AWS_PROFILE"),
    }
    if keys:
        variables |= {"AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1], "AWS_SESSION_TOKEN": keys[2]}
    if endpoint:
        variables |= {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            # R2's first byte can take longer than the default of one second.
            "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": "30000",
        }
    return {name: value for name, value in variables.items() if value}
