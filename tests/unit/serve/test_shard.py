"""What `coldstream shard` says of a vLLM that failed."""

from __future__ import annotations

import pytest

from coldstream.serve.shard import raised

LOGGED = "(Worker_TP1 pid=24049) ERROR 11-28 18:44:11 [multiproc_executor.py:953] "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (LOGGED + "ValueError: Missing keys in loaded state!", "ValueError: Missing keys in loaded state!"),
        (LOGGED + "coldstream.errors.ConflictError: it was replaced\n", "it was replaced"),
        ("RuntimeError: Engine core initialization failed.", "RuntimeError: Engine core initialization failed."),
        ("KeyError", "KeyError"),
        (LOGGED + "Exception: " + "x" * 1000, "Exception: " + "x" * 289),
        (LOGGED + "    raise ValueError(f'Missing keys')", None),
        (LOGGED + "Traceback (most recent call last):", None),
        (LOGGED + "WorkerProc failed to start.", None),
        ("(Worker pid=1) INFO 11-28 18:44:11 [x.py:1] ValueError: told, not raised", None),
        ("Errors: none", None),
        ("", None),
    ],
)
def test_the_reason_is_the_last_line_of_a_traceback(line: str, expected: str | None) -> None:
    assert raised(line) == expected
