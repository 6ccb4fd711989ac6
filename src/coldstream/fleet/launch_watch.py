"""Questions that take their time, asked beside a wait that must not stand still for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """Asks the same thing again and again, in a thread of its own, one question at a time. For one caller's thread.

    A question that is under way when nobody wants to know any more is left to its end, and keeps no process alive.
    """

    def __init__(self, ask: Callable[[], T], *, pause_seconds: float) -> None:
        """Prepares; nothing is asked yet.

        Args:
            ask: The question. What it raises is raised by `news`.
            pause_seconds: Between the end of a question and the next one.
        """
        self._ask = ask
        self._pause_seconds = pause_seconds
        self._due = 0.0
        self._thread: threading.Thread | None = None
        self._answer: T | None = None
        self._failure: BaseException | None = None

    def news(self) -> T | None:
        """What a question has found out, once; None while there is nothing new. Asks again in time; never waits."""
        if self._thread is None:
            if time.monotonic() >= self._due:
                self._thread = threading.Thread(target=self._run, name="coldstream-watch", daemon=True)
                self._thread.start()
            return None
        if self._thread.is_alive():
            return None
        self._thread = None
        self._due = time.monotonic() + self._pause_seconds
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        answer, self._answer = self._answer, None
        return answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except BaseException as exc:  # noqa: BLE001  # it is raised where somebody waits
            self._failure = exc
