"""The streamer's words to the process that started it: links to renew, progress, failures."""

from __future__ import annotations

import time
from typing import Any

from coldstream.engine.attach import Owner
from coldstream.env import Settings
from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.loading.options import OnProgress, Options
from coldstream.loading.prepare import Prepared
from coldstream.origin import uses_tls
from coldstream.uri import Uri

_LAST_WORDS_SECONDS = 1.0


def start_owner(uri: Uri, options: Options, settings: Settings) -> Owner:
    """Starts the streamer, which gets ready while the names are resolved."""
    return Owner(workers=options.processes, connections=options.concurrency, tls=uses_tls(uri, settings))


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


def last_words(owner: Owner) -> dict[str, Any] | None:
    """Why the load failed, if the streamer still said so before it ended."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    while owner.failure is None and not owner.gone and time.monotonic() < deadline:
        owner.hear(0.05)
    return owner.failure


def error_of(failure: dict[str, Any] | None, where: str) -> ColdstreamError:
    """A streamer's failure as one of ours.

    Args:
        failure: What it said; None when it was killed.
        where: What was being loaded, for the message.
    """
    if failure is None:
        return ColdstreamError(
            f"{where}: the streaming process ended", hint="was it killed? look for the out-of-memory killer"
        )
    kind, said = failure["kind"], failure["message"]
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
    if kind == "readers":
        return ColdstreamError(said, hint="did a reader die before it attached? see its own messages")
    return UnavailableError(said, retryable=False, hint="nothing arrived for COLDSTREAM_RETRY_SECONDS")
