"""What a load's owner does: starts the streamer, renews links, turns failures into errors."""

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
from coldstream.loading.load_plan import PreparedLoad
from coldstream.loading.options import OnProgress, Options
from coldstream.model.uri import Uri
from coldstream.places.opening import scheme_of, uses_tls
from coldstream.settings import Settings

# Hints for a streamer that ended, by how it ended.
_ENDINGS = {
    "killed": "did the machine run out of memory? see: dmesg | grep -i 'out of memory'",
    "start": "is memory or the number of open files limited? see: ulimit -a",
    "gone": "load it again; the messages above may say more",
    "internal": "please report it, with the output of --debug",
}
# Failures by kind: the error, and its hint. The message is the streamer's.
_FAILURES: dict[str, tuple[type[ColdstreamError], str]] = {
    "integrity": (IntegrityError, "run: coldstream verify --deep; a proxy or cache may alter the bytes"),
    "not-found": (NotFoundError, "an object was deleted during the load; run: coldstream verify"),
    "credentials": (CredentialsError, "the link expired or the key lost its permission; load it again"),
    "readers": (ColdstreamError, "did a reader die before it attached? see its own messages"),
    # These two name what was being loaded in front.
    "memory": (ColdstreamError, "release tensors sooner, or raise the limit: see ulimit -a"),
    "usage": (ColdstreamError, "start the load with as many consumers as there are readers"),
}


def start_owner(uri: Uri, options: Options, settings: Settings) -> Owner:
    """Starts the streamer, which gets ready while the model is resolved."""
    return Owner(
        workers=options.processes,
        connections=options.connections,
        tls=uses_tls(uri, settings),
        ca_bundle=settings.get("AWS_CA_BUNDLE") if scheme_of(uri, settings) == "s3" else None,
    )


def attend(owner: Owner, prepared: PreparedLoad, on_progress: OnProgress | None, *, seconds: float = 0.0) -> None:
    """Takes in the streamer's messages, waiting for them up to `seconds`, and answers them.

    Raises:
        ColdstreamError: A link could not be renewed; the load ends.
    """
    owner.hear(seconds)
    while owner.renewals:
        segment = owner.renewals.pop()
        if prepared.origin is None:
            owner.link(segment, None)
            continue
        try:
            url, headers = prepared.origin.renew(*prepared.segments[segment])
        except ColdstreamError:
            owner.link(segment, None)
            raise
        owner.link(segment, url, headers)
    if owner.statistics and on_progress:
        on_progress(min(owner.statistics.loaded_bytes, prepared.bytes), prepared.bytes)


def cached_now(owner: Owner, prepared: PreparedLoad) -> str:
    """The state of the local copy, as `LoadReport.cached`."""
    if prepared.local_copy is None or owner.copy_failure is None:
        return prepared.cached
    if owner.copy_failure:
        return owner.copy_failure
    if not prepared.writes:
        return prepared.cached
    return "written" if prepared.local_copy.complete else "partly"


def error_of(failure: dict[str, Any] | None, target: str) -> ColdstreamError:
    """A streamer's failure (`Owner.last_words`) as an error; None in a process that cannot know it."""
    if failure is None:
        return ColdstreamError(
            f"{target}: the streaming process ended", hint="the process that started the load says why"
        )
    kind, message = failure["kind"], failure["message"]
    if kind in _ENDINGS:
        return ColdstreamError(f"{target}: the streaming process {message}", hint=_ENDINGS[kind])
    if kind == "conflict":
        return ConflictError(
            f"the model was replaced while loading: {message}", hint="load it again; run: coldstream verify"
        )
    if kind == "limit":
        return ColdstreamError(message, hint=failure.get("hint"))
    if kind in _FAILURES:
        error, hint = _FAILURES[kind]
        return error(f"{target}: {message}" if kind in {"memory", "usage"} else message, hint=hint)
    return UnavailableError(message, retryable=False, hint="nothing was received for COLDSTREAM_RETRY_SECONDS")
