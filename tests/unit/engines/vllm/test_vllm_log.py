"""What each line of vLLM's log says about a start, and why it failed."""

from __future__ import annotations

import pytest

from coldstream.engines.vllm.vllm_log import FailureReason, metrics, read_line
from coldstream.telemetry.timeline.recorder import LogFacts
from tests.unit.telemetry.timeline import logs


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        # Words that stand in a value are not vLLM's own.
        ("[a.py:1] non-default args: {'model': 'Loading weights took 1 seconds'}", "args"),
        ("[c.py:1] Initializing a V1 LLM engine (v0.32.0) with config: model='Graph capturing finished in '", "engine"),
        ("[g.py:1] Loading model from scratch...", "loading"),
        ("[m.py:1] torch.compile takes 3.00 s in total", "compiled"),
        ("[b.py:1] [eagle_head] torch.compile took 3.00 s in total", "compiled"),
    ],
)
def test_a_line_sets_one_mark(line: str, mark: str) -> None:
    assert read_line(line).mark == mark


def test_other_lines_set_none() -> None:
    assert read_line("(Worker pid=9) INFO [weight_utils.py:1108] Filesystem type for checkpoints: EXT4.").mark is None
    assert read_line("") == LogFacts()
    assert read_line("[c.py:1] torch.compile took 3.00 s in total").compile_event is None


def test_the_figures_that_vllm_prints() -> None:
    figures: dict[str, float] = {}
    for _, line in logs.CUDA_COLD:
        figures |= read_line(line).figures
    assert figures == {
        "model_init_seconds": 0.9,
        "weights_seconds": 1.98,
        "model_loading_seconds": 3.4,
        "dynamo_seconds": 3.21,
        "torch_compile_seconds": 12.5,
        "graph_capture_seconds": 5.0,
        "init_engine_seconds": 23.4,
        "compilation_seconds": 12.5,
        "kv_cache_tokens": 401000.0,
    }


def test_the_metrics_of_the_first_token() -> None:
    text = """# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="/m"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="/m"} 1.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="/m"} 0.25
vllm:time_to_first_token_seconds_sum{engine="1",model_name="/m"} 0.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="} 9"} 2.5e-05
vllm:request_prefill_time_seconds_sum{engine="0"} NaN
process_start_time_seconds 1.7
"""
    assert metrics(text) == {"time_to_first_token_seconds": 0.25, "queue_seconds": 2.5e-05}
    assert metrics("<html>") == {}


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
    assert FailureReason.raised(line) == expected


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
