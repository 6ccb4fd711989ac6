"""Why vLLM failed, by its output."""

from __future__ import annotations

import pytest

from coldstream.engines.vllm.failure_reason import FailureReason, raised

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
        ("(EngineCore pid=7) ValueError: raised once more", "ValueError: raised once more"),
        ("vllm serve: error: argument --port: invalid int value", "error: argument --port: invalid int value"),
        (
            "vllm serve: error: unrecognized arguments: --api-kye=sesame --hf-tokn sesame",
            "error: unrecognized arguments: --api-kye --hf-tokn",
        ),
        ("Errors: none", None),
        ("", None),
    ],
)
def test_the_reason_is_the_last_line_of_a_traceback(line: str, expected: str | None) -> None:
    assert raised(line) == expected


def reason_of(*lines: str) -> str | None:
    reason = FailureReason()
    for line in lines:
        reason.line(line)
    return reason.text


WRAPPED = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed: {}"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), None),
        ((WRAPPED,), WRAPPED.partition(") ")[2]),
        (
            ("(EngineCore pid=2) ERROR 11-28 18:44:11 [core.py:1] ValueError: no memory", WRAPPED),
            "ValueError: no memory",
        ),
        # Of nested exceptions the outermost, which says more.
        (
            ("(EngineCore pid=2) KeyError: 'x'", "(EngineCore pid=2) ValueError: no architecture x"),
            "ValueError: no architecture x",
        ),
        # Workers that fail since another one did come later.
        (
            (
                "(Worker_TP1 pid=3) ERROR 11-28 18:44:11 [worker.py:1] torch.OutOfMemoryError: out of memory",
                "(Worker_TP0 pid=4) ERROR 11-28 18:44:11 [worker.py:1] RuntimeError: connection closed by peer",
                "(EngineCore pid=2) Exception: WorkerProc initialization failed due to an exception. See stack trace",
                WRAPPED,
            ),
            "torch.OutOfMemoryError: out of memory",
        ),
        # What the server logged and lived with is not why its engine failed.
        (
            (
                "(APIServer pid=1) ERROR 11-28 18:44:11 [x.py:1] ImportError: no triton",
                "(EngineCore pid=2) ValueError: no memory",
                WRAPPED,
            ),
            "ValueError: no memory",
        ),
        (
            (
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, the length is greater than 256. [type=value_error, input_value={'k': 's'}]",
                "    For further information visit https://errors.pydantic.dev",
            ),
            "the length is greater than 256.",
        ),
        (
            (
                "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig",
                "(APIServer pid=1) block_size",
                "(APIServer pid=1)   Input should be 8, 16 or 32 [type=literal_error, input_value=7, input_type=int]",
            ),
            "block_size: Input should be 8, 16 or 32",
        ),
    ],
)
def test_the_reason_is_the_first_process_s(lines: tuple[str, ...], expected: str | None) -> None:
    assert reason_of(*lines) == expected
