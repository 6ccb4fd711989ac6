"""A streamer's failures as errors of the library."""

from __future__ import annotations

import pytest

from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.loading.ownership import error_of


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("integrity", IntegrityError, "why"),
        ("not-found", NotFoundError, "why"),
        ("credentials", CredentialsError, "why"),
        ("conflict", ConflictError, "m/a was replaced while loading or since its upload: why"),
        ("unavailable", UnavailableError, "why"),
        ("readers", ColdstreamError, "why"),
        ("memory", ColdstreamError, "org/m: why"),
        ("usage", ColdstreamError, "org/m: why"),
        ("killed", ColdstreamError, "org/m: the streaming process why"),
        ("internal", ColdstreamError, "org/m: the streaming process why"),
    ],
)
def test_failures_are_errors_with_hints(kind: str, error: type[ColdstreamError], message: str) -> None:
    made = error_of({"kind": kind, "message": "why", "path": "m/a"}, "org/m")
    assert type(made) is error
    assert made.message == message
    assert made.hint
    assert not made.retryable


def test_a_limit_keeps_the_hint_of_the_streamer() -> None:
    assert error_of({"kind": "limit", "message": "why", "hint": "ulimit -n"}, "org/m").hint == "ulimit -n"


def test_a_reader_cannot_know_why() -> None:
    assert error_of(None, "/socket").message == "/socket: the streaming process ended"
