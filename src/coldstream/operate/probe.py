"""Does this bucket work? The checks of `coldstream setup`, each against the real thing.

A probe object of a random name is put, conditionally put again, read by range, listed and deleted. What is measured is
measured from here: latency, and the speed of one stream, which on R2 says little about many.
"""

from __future__ import annotations

import email.utils
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from coldstream.errors import ColdstreamError
from coldstream.places.place import Store, honours_conditions
from coldstream.settings import ENDPOINTS, Settings, mask
from coldstream.units import MIB, format_rate, format_seconds

_SPEED_BYTES = 8 * MIB
_LATENCY_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        name: Its name in `--only`, `--skip` and the JSON.
        state: "ok", "warn" or "fail"; in `coldstream doctor` also "skipped".
        detail: The measured value, the fault, or why the check was skipped; for people.
        hint: How to fix it, or None.
        exit_code: The exit code of the error behind a failure; 0 if nothing failed.
        blocked_by: What a skipped check depends on that failed or is missing; "" otherwise.
    """

    name: str
    state: str
    detail: str
    hint: str | None = None
    exit_code: int = 1
    blocked_by: str = ""

    def __post_init__(self) -> None:
        if self.state != "fail":
            object.__setattr__(self, "exit_code", 0)

    def document(self) -> dict[str, Any]:
        """The check as `--json` prints it; a contract."""
        return {"name": self.name, "state": self.state, "found": self.detail, "hint": self.hint,
                "exit_code": self.exit_code}  # fmt: skip


def ok(detail: str) -> Check:
    """A check of `coldstream doctor` that passed; the checklist names it."""
    return Check(name="", state="ok", detail=detail)


def warn(detail: str, *, hint: str | None = None) -> Check:
    """A check that found something that works, but not well."""
    return Check(name="", state="warn", detail=detail, hint=hint)


def fail(detail: str, *, hint: str | None = None, exit_code: int = 1) -> Check:
    """A check that failed."""
    return Check(name="", state="fail", detail=detail, hint=hint, exit_code=exit_code)


def skipped(reason: str) -> Check:
    """A check that did not run."""
    return Check(name="", state="skipped", detail=f"skipped: {reason}", blocked_by=reason)


def check_configuration(settings: Settings) -> list[Check]:
    """What is configured, from where; touches no network."""
    # Its import takes longer than anything else here, and only `setup` shows the token.
    from coldstream.places.hub import hub_token

    checks = []
    for name, needed, ask in (
        ("store", True, settings.store_uri),
        ("endpoint", False, settings.endpoint),
        ("credentials", False, lambda: _described_keys(settings)),
    ):
        checks.append(_configured(name, settings, ask, needed=needed))
    token, origin = hub_token(settings)
    detail = f"{origin}, ends in {mask(token)}" if token else "not set: public models only"
    checks.append(Check(name="hugging face token", state="ok", detail=detail))
    return checks


def _configured(name: str, settings: Settings, ask: Callable[[], str | None], *, needed: bool) -> Check:
    origins = {
        "store": ("COLDSTREAM_STORE", "R2_BUCKET"),
        "endpoint": ENDPOINTS,
        "credentials": ("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    }[name]
    try:
        value = ask()
    except ColdstreamError as exc:
        return Check(name=name, state="fail", detail=exc.message, hint=exc.hint, exit_code=exc.exit_code)
    if value:
        origin = settings.origin(*origins)
        return Check(name=name, state="ok", detail=f"{value}   ({origin})" if origin else value)
    looked = f"{' and '.join(origins)} are not set in {' or '.join(settings.looked_in)}"
    fallback = {"endpoint": "; AWS S3 itself is used", "credentials": "; the AWS chain (profile, SSO, role) is used"}
    return Check(name=name, state="fail" if needed else "warn", detail=looked + fallback.get(name, ""), exit_code=2)


def _described_keys(settings: Settings) -> str | None:
    keys = settings.keys()
    if keys is None:
        return f"profile {profile}" if (profile := settings.get("AWS_PROFILE")) else None
    return f"{mask(keys[0])} and its secret {mask(keys[1])}" + (", with a session token" if keys[2] else "")


def check_bucket(store: Store, *, create: bool, location: str | None) -> Check:
    """Whether the bucket is there; creates it if not and if allowed."""
    from coldstream.places.s3_store import S3Store

    try:
        if not isinstance(store, S3Store):
            return Check(name="bucket", state="ok", detail=f"{store.uri} is a folder")
        if store.bucket_exists():
            return Check(name="bucket", state="ok", detail=f"{store.bucket} exists")
        if not create:
            return Check(name="bucket", state="fail", detail=f"{store.bucket} does not exist", exit_code=10)
        store.create_bucket(location)
    except ColdstreamError as exc:
        return _failed("bucket", exc)
    return Check(name="bucket", state="ok", detail=f"{store.bucket} created")


def judged_clock(date: str | None) -> Check | None:
    """How far this machine's clock is from what a server says in its header `Date`; None when it says nothing."""
    try:
        off = time.time() - email.utils.parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        off = None
    if off is None:
        return None
    # A Date has whole seconds; signatures may be 15 minutes off.
    state = "ok" if abs(off) < 60 else "warn" if abs(off) < 600 else "fail"
    hint = None if state == "ok" else "set the clock: timedatectl set-ntp true"
    return Check(name="clock", state=state, detail=f"differs by {abs(off):.0f} s from the server's", hint=hint)


def check_round_trip(store: Store, *, measure: bool = True) -> list[Check]:
    """Puts a probe object and does everything with it that coldstream needs; leaves nothing behind.

    Args:
        store: Where.
        measure: Whether latency and the speed of one stream are of interest, which takes the longest.
    """
    key = f".coldstream-probe/{uuid.uuid4().hex}"
    body = os.urandom(4096)
    checks: list[Check] = []
    try:
        put = _timed(lambda: store.put(key, body))
        get = _timed(lambda: store.read_into(key, 1000, memoryview(bytearray(96))))
        piece = bytearray(96)
        store.read_into(key, 1000, memoryview(piece))
        if piece != body[1000:1096]:
            checks.append(Check(name="round trip", state="fail", detail="a range read returned wrong bytes"))
        elif key not in [info.key for info in store.list(key)]:
            checks.append(Check(name="round trip", state="fail", detail="the listing lacks a new object"))
        else:
            detail = f"put {format_seconds(put)}   ranged get {format_seconds(get)}   list ok"
            checks.append(Check(name="round trip", state="ok", detail=detail))
        checks.append(_check_conditions(store, key, body))
        checks.append(_check_multipart(store, key))
        if measure:
            checks.extend(_measure(store, key))
        store.delete([key])
        checks.append(Check(name="delete", state="ok", detail="ok"))
    except ColdstreamError as exc:
        checks.append(_failed("round trip", exc))
    finally:
        _sweep(store, key)
    return checks


def _sweep(store: Store, key: str) -> None:
    try:
        store.delete([key])
    except ColdstreamError:
        return  # refused or unreachable: the check that failed has said so


def _check_conditions(store: Store, key: str, body: bytes) -> Check:
    if honours_conditions(store, key, body):
        return Check(name="conditional put", state="ok", detail="honoured")
    return Check(
        name="conditional put",
        state="warn",
        detail="not supported by this store",
        hint="do not upload the same model from two machines at once",
    )


def _check_multipart(store: Store, key: str) -> Check:
    other = f"{key}-multipart"
    upload_id = store.create_upload(other)
    store.put_part(other, upload_id, 1, b"probe")
    listed = [part.number for part in store.parts(other, upload_id)]
    store.abort_upload(other, upload_id)
    if listed != [1]:
        return Check(name="multipart", state="warn", detail="parts cannot be listed: interrupted uploads start over")
    return Check(name="multipart", state="ok", detail="parts can be listed: interrupted uploads resume")


def _measure(store: Store, key: str) -> list[Check]:
    latency = median(_timed(lambda: store.head(key)) for _ in range(_LATENCY_ROUNDS))
    body = os.urandom(_SPEED_BYTES)
    up = _timed(lambda: store.put(key, body))
    down = _timed(lambda: store.read_into(key, 0, memoryview(bytearray(_SPEED_BYTES))))
    speed = f"up {format_rate(_SPEED_BYTES, up)}   down {format_rate(_SPEED_BYTES, down)}   with one stream of 8 MiB"
    return [
        Check(name="latency", state="ok", detail=f"{format_seconds(latency)} a request"),
        Check(name="speed", state="ok", detail=speed),
    ]


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _failed(name: str, exc: ColdstreamError) -> Check:
    return Check(name=name, state="fail", detail=exc.message, hint=exc.hint, exit_code=exc.exit_code)


def exports(settings: Settings) -> dict[str, str]:
    """The environment that the AWS CLI, vLLM and Run:ai's streamer need for this bucket. Holds secrets.

    Run:ai's own variables: path-style addressing, and a request timeout longer than its second (R2's first byte can
    take that).
    """
    variables: dict[str, str | None] = {
        "AWS_ENDPOINT_URL": settings.endpoint(),
        "AWS_CA_BUNDLE": settings.get("AWS_CA_BUNDLE"),
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_PROFILE": None if settings.keys() else settings.get("AWS_PROFILE"),
    }
    if keys := settings.keys():
        variables |= {"AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1], "AWS_SESSION_TOKEN": keys[2]}
    if settings.endpoint():
        variables |= {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": "30000",
        }
    return {name: value for name, value in variables.items() if value}
