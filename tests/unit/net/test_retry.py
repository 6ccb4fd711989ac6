"""When it is tried again, and when it is given up on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import CancelledError, ColdstreamError, NotFoundError, UnavailableError
from coldstream.net.retry import RETRY_AFTER_SECONDS_MAX, Backoff, Retry, is_retryable_status, retry_after

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.002, give_up_seconds=30)


def failing(*errors: ColdstreamError) -> Callable[[], str]:
    """An operation that raises these one after the other, and then works."""
    left = list(errors)

    def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return operation


@given(st.integers(1, 200))
def test_waits_grow_to_a_limit(failures: int) -> None:
    backoff = Backoff(first_seconds=0.5, longest_seconds=15)
    mean = min(0.5 * 2 ** (failures - 1), 15)
    assert mean / 2 <= backoff.wait_seconds(failures, UnavailableError("busy")) <= mean * 1.5


@given(st.floats(0, 300))
def test_what_the_server_asks_for_is_waited_and_a_little_more(seconds: float) -> None:
    wait = Backoff(longest_seconds=1).wait_seconds(1, UnavailableError("busy", retry_after_seconds=seconds))
    assert seconds < wait <= seconds + 0.6


def test_it_is_tried_until_it_works_and_counted() -> None:
    seen: list[ColdstreamError] = []
    retry = Retry(QUICK, on_retry=lambda error, _seconds: seen.append(error))
    errors = [UnavailableError("1"), UnavailableError("2")]
    assert retry.run(failing(*errors)) == "done"
    assert retry.count == 2
    assert seen == errors


def test_what_is_permanent_is_raised_at_once() -> None:
    retry = Retry(QUICK)
    with pytest.raises(NotFoundError):
        retry.run(failing(NotFoundError("gone")))
    with pytest.raises(UnavailableError, match="for good"):
        retry.run(failing(UnavailableError("for good", retryable=False)))
    assert retry.count == 0


def test_foreign_errors_are_not_tried_again() -> None:
    def operation() -> None:
        raise ZeroDivisionError

    retry = Retry(QUICK)
    with pytest.raises(ZeroDivisionError):
        retry.run(operation)
    assert retry.count == 0


def test_without_progress_it_is_given_up_on_with_the_last_error() -> None:
    retry = Retry(Backoff(first_seconds=0.1, longest_seconds=0.1, give_up_seconds=0.5))
    with pytest.raises(UnavailableError, match="busy"):
        retry.run(failing(*[UnavailableError("busy")] * 1000))
    assert 1 <= retry.count <= 10


def test_a_wait_that_would_end_too_late_is_not_begun() -> None:
    retry = Retry(Backoff(give_up_seconds=5))
    with pytest.raises(UnavailableError):
        retry.run(failing(UnavailableError("busy", retry_after_seconds=60)))
    assert retry.count == 0


def test_progress_starts_the_clock_anew() -> None:
    done = 0
    # Each wait alone nearly uses up what is allowed without progress.
    retry = Retry(Backoff(first_seconds=0.02, longest_seconds=0.02, give_up_seconds=0.04))

    def operation() -> int:
        nonlocal done
        done += 1
        if done < 20:
            raise UnavailableError("cut")
        return done

    assert retry.run(operation, progress=lambda: done) == 20


def test_cancelling_ends_a_wait_and_forbids_the_next_attempt() -> None:
    retry = Retry(Backoff(first_seconds=60, give_up_seconds=600))
    retry.on_retry = lambda _error, _seconds: retry.cancel.set()
    with pytest.raises(CancelledError) as caught:
        retry.run(failing(UnavailableError("busy")))
    assert isinstance(caught.value.__cause__, UnavailableError)
    with pytest.raises(CancelledError):
        retry.run(failing())


def test_last_words_are_tried_once_although_cancelled() -> None:
    retry = Retry(QUICK)
    retry.cancel.set()
    with retry.shielded():
        assert retry.run(failing()) == "done"
        with pytest.raises(UnavailableError):
            retry.run(failing(UnavailableError("busy")))
    with pytest.raises(CancelledError):
        retry.check()


def test_the_shield_is_for_one_thread() -> None:
    retry = Retry(QUICK)
    retry.cancel.set()
    found: list[str] = []

    def other() -> None:
        try:
            retry.check()
        except CancelledError:
            found.append("cancelled")

    with retry.shielded():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == ["cancelled"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "999999999"}, RETRY_AFTER_SECONDS_MAX),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Fri, 99 Nonth"}, None),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=0'}, None),
        ({"ratelimit": '"api";r=0;t=55', "retry-after": "2"}, 2.0),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_how_long_to_wait_until_a_date() -> None:
    wait = retry_after({"retry-after": formatdate(time.time() + 200, usegmt=True)})
    assert wait is not None
    assert 0 < wait <= 200
    assert retry_after({"retry-after": formatdate(time.time() + 5e6, usegmt=True)}) == RETRY_AFTER_SECONDS_MAX


@given(st.text(max_size=40))
def test_any_retry_after_is_a_wait_or_none(text: str) -> None:
    wait = retry_after({"retry-after": text})
    assert wait is None or 0 <= wait <= RETRY_AFTER_SECONDS_MAX


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 524, 529, 530])
def test_what_a_busy_or_failed_server_answers_is_retried(status: int) -> None:
    assert is_retryable_status(status)


@pytest.mark.parametrize("status", [200, 206, 301, 400, 401, 403, 404, 409, 410, 412, 416, 501, 505])
def test_other_answers_are_not_retried(status: int) -> None:
    assert not is_retryable_status(status)
