"""The streamer's words to the process that started it: links to renew, progress, failures."""

from __future__ import annotations

from typing import Any

from coldstream.engine.attach import Owner
from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.loading.load_plan import Prepared
from coldstream.loading.options import OnProgress, Options
from coldstream.model.uri import Uri
from coldstream.places.origin_opening import scheme_of, uses_tls
from coldstream.settings import Settings

# How the streamer ended without saying why, and what to do about it.
_ENDINGS = {
    "killed": "did the machine run out of memory? see: dmesg | grep -i 'out of memory'",
    "start": "is memory or the number of open files limited? see: ulimit -a",
    "gone": "load it again; the messages above may say more",
    "internal": "please report it, with the output of --debug",
}


def start_owner(uri: Uri, options: Options, settings: Settings) -> Owner:
    """Starts the streamer, which gets ready while the names are resolved."""
    return Owner(
        workers=options.processes,
        connections=options.connections,
        tls=uses_tls(uri, settings),
        ca_bundle=settings.get("AWS_CA_BUNDLE") if scheme_of(uri, settings) == "s3" else None,
    )


def attend(owner: Owner, prepared: Prepared, on_progress: OnProgress | None, *, seconds: float = 0.0) -> None:
    """Takes in what the streamer says, waiting for it up to so long, and answers it.

    Raises:
        ColdstreamError: A link could not be renewed; the load ends.
    """
    owner.hear(seconds)
    while owner.renewals:
        _renew(owner, prepared, owner.renewals.pop())
    if owner.progress and on_progress:
        on_progress(min(owner.progress["bytes"], prepared.bytes), prepared.bytes)


def _renew(owner: Owner, prepared: Prepared, segment: int) -> None:
    if prepared.origin is None:
        owner.link(segment, None)
        return
    try:
        url, headers = prepared.origin.renew(*prepared.segments[segment])
    except ColdstreamError:
        owner.link(segment, None)
        raise
    owner.link(segment, url, headers)


def cached_now(owner: Owner, prepared: Prepared) -> str:
    """What has become of the local copy."""
    if prepared.copy is None or owner.stored is None:
        return prepared.cached
    if owner.stored["failed"]:
        return str(owner.stored["failed"])
    if not prepared.writes:
        return prepared.cached
    return "written" if prepared.copy.complete else "partly"


def error_of(failure: dict[str, Any] | None, where: str) -> ColdstreamError:
    """A streamer's failure as one of ours.

    Args:
        failure: What it said, or how it ended: see `Owner.last_words`; None when that cannot be known here.
        where: What was being loaded, for the message.
    """
    if failure is None:
        return ColdstreamError(
            f"{where}: the streaming process ended", hint="the process that started the load says why"
        )
    kind, said = failure["kind"], failure["message"]
    if kind in _ENDINGS:
        return ColdstreamError(f"{where}: the streaming process {said}", hint=_ENDINGS[kind])
    if kind == "conflict":
        return ConflictError(
            f"the model was replaced while loading: {said}", hint="load it again; run: coldstream verify"
        )
    if kind == "integrity":
        return IntegrityError(said, hint="run: coldstream verify --deep; a proxy or cache may alter the bytes")
    if kind == "not-found":
        return NotFoundError(said, hint="an object went while loading; run: coldstream verify")
    if kind == "credentials":
        return CredentialsError(said, hint="the link expired or the key lost its permission; load it again")
    if kind == "memory":
        return ColdstreamError(f"{where}: {said}", hint="let go of tensors sooner, or raise the limit: see ulimit -a")
    if kind == "limit":
        return ColdstreamError(said, hint=failure.get("hint"))
    if kind == "usage":
        return ColdstreamError(f"{where}: {said}", hint="start the load with as many consumers as there are readers")
    if kind == "readers":
        return ColdstreamError(said, hint="did a reader die before it attached? see its own messages")
    return UnavailableError(said, retryable=False, hint="nothing arrived for COLDSTREAM_RETRY_SECONDS")
