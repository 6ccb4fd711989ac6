"""What the doctor says of an adapter and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coldstream.operate.probe import Check
from tests.adapters import BASE, adapter_files, base_files, llama_shapes
from tests.models import write_model
from tests.unit.mirror.stored_models import folder_store, send
from tests.unit.operate.doctor.cases import case_of, looked


def examined(tmp_path: Path, **settings: Any) -> Check:
    """What is said of an adapter with these settings."""
    send(folder_store(tmp_path), tmp_path, adapter_files(**settings), "org/adapter")
    return looked(case_of(tmp_path, "org/adapter"), "model", "adapter")


@pytest.fixture
def base(tmp_path: Path) -> None:
    send(folder_store(tmp_path), tmp_path, base_files(), BASE)


@pytest.mark.usefixtures("base")
def test_an_adapter_that_fits(tmp_path: Path) -> None:
    check = examined(tmp_path, rank=16)
    assert (check.state, check.detail) == ("ok", f"LoRA adapter of {BASE}, rank 16; its 8 tensors fit {BASE}")
    # An adapter has no config.json, and needs none.
    assert looked(case_of(tmp_path, "org/adapter"), "model").state == "ok"
    assert looked(case_of(tmp_path, BASE), "model", "adapter").detail == "not used: it is a model"


@pytest.mark.usefixtures("base")
def test_an_adapter_without_a_manifest(tmp_path: Path) -> None:
    write_model(tmp_path / "store/org/adapter", adapter_files())
    assert looked(case_of(tmp_path, "org/adapter"), "model", "adapter").state == "ok"


def test_a_base_that_is_not_in_the_bucket(tmp_path: Path) -> None:
    check = examined(tmp_path)
    assert (check.state, check.detail) == ("fail", f"its base {BASE} is not in the bucket")
    assert f"coldstream upload {BASE}" in (check.hint or "")


@pytest.mark.usefixtures("base")
def test_a_base_that_was_replaced(tmp_path: Path) -> None:
    assert examined(tmp_path).state == "ok"
    send(folder_store(tmp_path), tmp_path, base_files(llama_shapes(hidden=64), hidden=64), BASE)
    check = looked(case_of(tmp_path, "org/adapter"), "model", "adapter")
    assert check.state == "fail"
    fault = "model.layers.0.self_attn.q_proj is for a weight of the shape [32, 32], and the base's has [64, 64]"
    assert check.detail == f"it does not fit {BASE}: {fault} (and 3 more)"
    assert "was the base replaced?" in (check.hint or "")


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "its type is IA3"),
        ({"use_dora": True}, "its configuration sets use_dora"),
        ({"rank": 1024}, "its rank is 1024"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    check = examined(tmp_path, **settings)
    assert check.state == "fail"
    assert check.detail.startswith(f"vLLM cannot serve it: {reason}")
    assert "merge_and_unload" in (check.hint or "")


def test_a_malformed_configuration_fails_the_model(tmp_path: Path) -> None:
    write_model(tmp_path / "store/org/adapter", adapter_files(None))
    case = case_of(tmp_path, "org/adapter")
    assert "names no base model" in looked(case, "model").detail
    assert looked(case, "adapter").state == "skipped"
