"""Configurations and headers of adapters that someone else wrote: read, or refused with an error of ours."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import IntegrityError, UsageError
from coldstream.mirror.manifest_records import now
from coldstream.model.adapter import parse_config
from coldstream.model.adapter_fit import misfits, modules_of
from coldstream.model.header import Tensor
from coldstream.model.manifest import Manifest, Provenance, parse, serialize
from tests.adapters import adapter_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(json.loads(adapter_config()))
MODULES = st.sampled_from(
    ["q_proj", "layers.0.q_proj", "model.layers.1.q_proj", "lm_head", "embed_tokens", "", "..", "é\n\x1b[2J"]
)
SUFFIXES = st.sampled_from(
    [".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".weight", ".qweight", "", ".bias"]
)
TENSORS = st.lists(
    st.builds(
        lambda prefix, module, suffix, shape: Tensor(f"{prefix}{module}{suffix}", "BF16", tuple(shape), 0, 0),
        st.sampled_from(["", "base_model.model.", "base_model.model.model."]),
        MODULES,
        SUFFIXES,
        st.lists(st.integers(0, 9), max_size=3),
    ),
    max_size=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4) | JSON, st.sampled_from([None, "org/base", "../x"]))
def test_any_configuration_is_read_or_refused(changes: Any, base: str | None) -> None:
    config = json.loads(adapter_config()) | changes if isinstance(changes, dict) else changes
    try:
        adapter = parse_config(json.dumps(config).encode(), where="x", base=base)
    except (IntegrityError, UsageError) as exc:
        assert "\n" not in exc.message
        assert exc.hint
        return
    manifest = Manifest(
        name="org/a",
        kind="adapter",
        adapter=adapter,
        source=Provenance(kind="folder"),
        created=now(),
        tool="t",
        files=(),
    )
    assert parse(serialize(manifest), where="x") == manifest


@given(TENSORS, TENSORS, st.integers(0, 8))
def test_any_tensors_fit_or_do_not(adapter: list[Tensor], base: list[Tensor], rank: int) -> None:
    assert all(fault.isprintable() for fault in misfits(adapter, modules_of(base), rank=rank))
