"""Which adapters a deployment has: refused, warned of, or left out by their tensors, before a machine is rented."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import UsageError
from coldstream.fleet.deploy_options import DeployOptions
from coldstream.fleet.models_beside import with_adapters
from coldstream.settings import load_settings
from tests.adapters import BASE, adapter_files, base_files, llama_shapes
from tests.unit.mirror.stored_models import folder_store, send

MISFIT = "org/small does not fit org/base: model.layers.0.self_attn.q_proj is for a weight of the shape [16, 16]"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A base; an adapter of it, one of a smaller model, and one whose names the base does not use."""
    store = folder_store(tmp_path)
    send(store, tmp_path, base_files(), BASE)
    send(store, tmp_path, adapter_files(), "org/a")
    send(store, tmp_path, adapter_files(shapes=llama_shapes(hidden=16)), "org/small")
    send(store, tmp_path, adapter_files(modules=["qkv"], shapes={"model.layers.0.qkv": (32, 32)}), "org/fused")
    return tmp_path


def chosen(bucket: Path, text: str) -> tuple[str | None, list[str]]:
    """The adapters of a deployment, and what is printed."""
    store, lines = folder_store(bucket), list[str]()
    settings = load_settings({"COLDSTREAM_STORE": store.uri}, environ={})
    options = DeployOptions(target="k8s", gpus="L4:1", adapters=text)
    return with_adapters(options, BASE, settings, store, say=lines.append).adapters, lines


def test_one_that_serve_would_refuse_is_refused(bucket: Path) -> None:
    assert chosen(bucket, "org/a") == ("org/a", [])
    with pytest.raises(UsageError) as refused:
        chosen(bucket, "org/a,org/small")
    assert refused.value.message.startswith(MISFIT)
    assert refused.value.hint == "see: coldstream doctor org/small"


def test_names_that_the_base_does_not_use_are_the_engine_s_to_refuse(bucket: Path) -> None:
    names, lines = chosen(bucket, "org/fused")
    assert names == "org/fused"
    assert lines == ["warning: org/fused does not fit org/base: model.layers.0.qkv is not in the base"]


def test_of_all_those_that_fit_are_left(bucket: Path) -> None:
    names, lines = chosen(bucket, "all")
    assert names == "org/a"
    fused, small = sorted(lines)
    assert fused.endswith("org/fused does not fit org/base: model.layers.0.qkv is not in the base")
    assert small.startswith(f"warning: an adapter is left out: {MISFIT}")
