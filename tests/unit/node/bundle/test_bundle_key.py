from __future__ import annotations

from typing import Any

import pytest

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import Program
from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.node.bundle.bundle_pointer import Key


def key(**changes: Any) -> Key:
    given: dict[str, Any] = {
        "model": "a" * 64,
        "loader": "coldstream",
        "device": "NVIDIA H100 80GB HBM3, 9.0, driver 570",
        "processor": "x86_64 0123456789ab",
        "python": "python3.12",
        "packages": {"vllm": "0.32.0", "torch": "2.13.0+cu130", "requests": "2.1"},
        "arguments": ("--max-model-len", "8192"),
        "environ": {"PATH": "/bin"},
        "caches": "/home/user/.cache/coldstream/bundles",
        "site": "/opt/venv/lib/python3.12/site-packages",
    }
    given |= changes
    engine = {name: given.pop(name) for name in ("python", "packages", "site")}
    program = Program(path="/bin/vllm", version=None, compiled=True, **engine)
    parts = VllmCaches().key_parts(program, Flags(given.pop("arguments")), given.pop("environ"))
    return Key(parts=given | parts)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("model", {"model": "b" * 64}),
        ("loader", {"loader": "runai"}),
        ("device", {"device": "NVIDIA L4, 8.9, driver 570"}),
        ("processor", {"processor": "x86_64 ffffffffffff"}),
        ("python", {"python": "python3.11"}),
        ("vllm", {"packages": {"vllm": "0.31.0", "torch": "2.13.0+cu130"}}),
        ("torch", {"packages": {"vllm": "0.32.0", "torch": "2.13.0+cu128"}}),
        ("arguments", {"arguments": ("--max-model-len", "4096")}),
        ("arguments", {"arguments": ("--max-model-len", "8192", "--quantization", "fp8")}),
        ("arguments", {"arguments": ("--max-model-len", "8192", "--enable-expert-parallel")}),
        ("arguments", {"arguments": ("--max-model-len", "8192", "-O3")}),
        ("tensor-parallel", {"arguments": ("--max-model-len", "8192", "-tp", "4")}),
        ("pipeline-parallel", {"arguments": ("--max-model-len", "8192", "--pipeline-parallel-size=2")}),
        ("environment", {"environ": {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}}),
        ("environment", {"environ": {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}}),
        ("caches", {"caches": "/data/bundles"}),
        ("site", {"site": "/usr/lib/python3/dist-packages"}),
    ],
)
def test_what_makes_another_key(part: str, changes: dict[str, Any]) -> None:
    other = key(**changes)
    assert other.digest != key().digest
    assert key().differences(other.parts) == (part,)


@pytest.mark.parametrize(
    ("theirs", "built"),
    [
        ({"model": "b" * 64}, "for another version of the model"),
        ({"packages": {"vllm": "0.31.0", "torch": "2.13.0+cu130"}}, "with vllm 0.31.0 (this is 0.32.0)"),
        (
            {"device": "NVIDIA L4, 8.9, driver 570"},
            "on NVIDIA L4, 8.9, driver 570 (this is NVIDIA H100 80GB HBM3, 9.0, driver 570)",
        ),
        ({"processor": "x86_64 ffffffffffff"}, "on a processor with other instruction sets"),
        ({"python": "python3.11"}, "with python python3.11 (this is python3.12)"),
        ({"loader": "runai"}, "with --loader runai (this is coldstream)"),
        ({"arguments": ("--max-model-len", "4096")}, "with --max-model-len 4096 (this is 8192)"),
        ({"arguments": ()}, "without --max-model-len"),
        (
            {"arguments": ("--max-model-len", "8192", "--enforce-eager", "--cudagraph-capture-sizes", "1", "2", "-O3")},
            (
                "with --cudagraph-capture-sizes 1 2 (this is without); with --enforce-eager (this is without); "
                "with -O3 (this is without)"
            ),
        ),
        ({"arguments": ("--max-model-len", "8192", "-tp", "4")}, "with --tensor-parallel-size 4 (this is 1)"),
        (
            {"environ": {"VLLM_USE_V2": "1", "TORCH_X": "a b"}},
            "with TORCH_X a b (this is without); with VLLM_USE_V2 1 (this is without)",
        ),
        (
            {"model": "b", "loader": "runai", "python": "p", "site": "/s", "caches": "/c"},
            (
                "with its caches in /c (here: /home/user/.cache/coldstream/bundles); with --loader runai (this is "
                "coldstream); for another version of the model; and 2 more differences"
            ),
        ),
    ],
)
def test_how_a_bundle_was_built_that_does_not_fit(theirs: dict[str, Any], built: str) -> None:
    assert key().explain(key(**theirs).parts) == built


@pytest.mark.parametrize(
    "changes",
    [
        {"packages": {"vllm": "0.32.0", "torch": "2.13.0+cu130", "requests": "3.0"}},
        {"arguments": ("--port", "9000", "--max_model_len=8192", "--api-key", "hidden", "--hf-token=hidden")},
        {"arguments": ("--max-model-len", "1", "--max-model-len", "8192", "--served-model-name", "a", "b")},
        {"environ": {"VLLM_API_KEY": "hidden", "VLLM_CACHE_ROOT": "/x", "CUDA_VISIBLE_DEVICES": "3", "HOME": "/root"}},
    ],
)
def test_what_does_not(changes: dict[str, Any]) -> None:
    other = key(**changes)
    assert other.digest == key().digest
    assert "hidden" not in str(other.parts)


def test_flags_are_read_as_vllm_reads_them() -> None:
    given = (
        "-tp=2",
        "--dtype",
        "bfloat16",
        "--cudagraph-capture-sizes",
        "1",
        "2",
        "4",
        "--seed",
        "-1",
        "--enforce-eager",
    )
    parts = VllmCaches().key_parts(Program(path="/bin/vllm", version=None, compiled=True), Flags(given), {})
    assert parts["tensor-parallel"] == "2"
    assert parts["arguments"] == "--cudagraph-capture-sizes=1 2 4 --dtype=bfloat16 --enforce-eager"
