"""What a load's owner does: starts the streamer, renews links, turns failures into errors, counts loads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coldstream.engine.attach import Owner
from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.loading.load_plan import PreparedLoad, uri_key
from coldstream.loading.options import OnProgress, Options
from coldstream.machine.connections import connections_for, workers_for
from coldstream.machine.hardware import cores, link_bytes_per_second
from coldstream.model.names import Uri, model_name
from coldstream.places.opening import scheme_of, uses_tls
from coldstream.settings import Settings

if TYPE_CHECKING:
    from coldstream.telemetry.metrics.measuring import LibraryLoad
    from coldstream.telemetry.metrics.meter import Loading

_logger = logging.getLogger("coldstream")
_logged: set[str] = set()
_ENDED = "{target}: the streaming process {message}"
# Failures by kind: the error, its text around the streamer's message, and its hint.
_FAILURES: dict[str, tuple[type[ColdstreamError], str, str]] = {
    "killed": (ColdstreamError, _ENDED, "did the machine run out of memory? see: dmesg | grep -i 'out of memory'"),
    "start": (ColdstreamError, _ENDED, "is memory or the number of open files limited? see: ulimit -a"),
    "gone": (ColdstreamError, _ENDED, "load it again; the messages above may say more"),
    "internal": (ColdstreamError, _ENDED, "please report it, with the output of --debug"),
    "integrity": (IntegrityError, "{message}", "run: coldstream verify --deep; a proxy or cache may alter the bytes"),
    "not-found": (NotFoundError, "{message}", "an object was deleted during the load; run: coldstream verify"),
    "credentials": (CredentialsError, "{message}", "the link expired or the key lost its permission; load it again"),
    "readers": (ColdstreamError, "{message}", "did a reader die before it attached? see its own messages"),
    "memory": (ColdstreamError, "{target}: {message}", "release tensors sooner, or raise the limit: see ulimit -a"),
    "usage": (ColdstreamError, "{target}: {message}", "start the load with as many consumers as there are readers"),
    "conflict": (
        ConflictError,
        "{path} was replaced while loading or since its upload: {message}",
        "load it again; run: coldstream verify",
    ),
    "unavailable": (UnavailableError, "{message}", "nothing was received for COLDSTREAM_RETRY_SECONDS"),
}


def start_owner(uri: Uri, options: Options, settings: Settings) -> Owner:
    """Starts the streamer, which gets ready while the model is resolved."""
    connections = options.connections or connections_for(cores(), link_bytes_per_second())
    return Owner(
        workers=options.workers or workers_for(cores(), connections),
        connections=connections,
        tls=uses_tls(uri, settings),
        ca_bundle=settings.get("AWS_CA_BUNDLE") if scheme_of(uri, settings) == "s3" else None,
    )


def attend(owner: Owner, prepared: PreparedLoad, on_progress: OnProgress | None, *, seconds: float = 0.0) -> None:
    """Takes in the streamer's messages, waiting for them up to `seconds`, and answers them.

    A link that could not be renewed ends the load with its error.
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


def cached_now(owner: Owner | None, prepared: PreparedLoad) -> str:
    """The state of the local copy, as `LoadReport.cached`; `owner` is None if no streamer was needed."""
    if prepared.local_copy is None or owner is None or owner.copy_failure is None:
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
    if kind == "limit":
        return ColdstreamError(message, hint=failure.get("hint"))
    error, text, hint = _FAILURES.get(kind, _FAILURES["unavailable"])
    path = failure.get("path") or "the model"
    return error(text.format(target=target, message=message, path=path), hint=hint, retryable=False)


def counted(load: Loading, uri: Uri, options: Options, settings: Settings) -> Callable[[], None]:
    """Follows a load in the metrics file that the environment names; returns what ends that. No load fails by it.

    Only to a file: commands also have a port, but every process of a program would use the same one.
    """
    file = settings.get("COLDSTREAM_METRICS_FILE") if options.metrics else None
    single: LibraryLoad | None = None
    if file is not None:
        with _warns():
            from coldstream.telemetry.metrics.measuring import LibraryLoad

            single = LibraryLoad(load, model=model_name(uri), uri=uri_key(uri, settings), file=file)

    def end() -> None:
        if single is not None:
            with _warns():
                if warning := single.end():
                    _log_once(warning)

    return end


@contextmanager
def _warns() -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # noqa: BLE001  # the load goes on in any case
        # Other messages may contain anything, secrets included.
        why = exc.message if isinstance(exc, ColdstreamError) else type(exc).__name__
        _log_once(f"the metrics are not kept: {why}")


def _log_once(text: str) -> None:
    """A program may load every minute."""
    if text not in _logged:
        _logged.add(text)
        _logger.warning(text)
