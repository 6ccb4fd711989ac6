"""Blocking calls on parallel threads, without the slow import of `concurrent.futures`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

THREADS_MAX = 16

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Sequence[T], *, threads: int = THREADS_MAX) -> list[R]:
    """The results of `work` in the order of `items`. After an error, waits for running calls and raises it."""
    results: dict[int, R] = {}
    errors: list[BaseException] = []
    rest = iter(range(len(items)))

    def run() -> None:
        try:
            # `next` on a range iterator is atomic under the interpreter's lock.
            while not errors and (index := next(rest, None)) is not None:
                results[index] = work(items[index])
        except BaseException as exc:  # noqa: BLE001  # raised again below, in the calling thread
            errors.append(exc)

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(items)) - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]
