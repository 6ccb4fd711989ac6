"""Whether an adapter's tensors fit its base."""

from __future__ import annotations

import pytest

from coldstream.model.adapter_fit import misfits, modules_of
from coldstream.model.header import Tensor, parse_header
from tests.adapters import Shapes, adapter_files, base_files, llama_shapes

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def tensor(name: str, *shape: int, dtype: str = "BF16") -> Tensor:
    return Tensor(name, dtype, shape, 0, 0)


def pair(module: str, rows: int, columns: int, *, rank: int = 8) -> list[Tensor]:
    return [tensor(f"{module}.lora_A.weight", rank, columns), tensor(f"{module}.lora_B.weight", rows, rank)]


def tensors(data: bytes) -> tuple[Tensor, ...]:
    return parse_header(data, file_bytes=len(data), path="x").tensors


def faults(adapter: list[Tensor], *base: Tensor, rank: int = 8) -> list[str]:
    return misfits(adapter, modules_of(base), rank=rank)


def test_every_linear_module_of_a_llama_fits() -> None:
    names = {name.partition("layers.")[2].partition(".")[2] for name in llama_shapes()}
    adapter = tensors(adapter_files(modules=names)["adapter_model.safetensors"])
    assert len(adapter) == 2 * len(llama_shapes())
    assert misfits(adapter, modules_of(tensors(base_files()["model.safetensors"])), rank=8) == []


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        (llama_shapes(hidden=64), "is for a weight of the shape [64, 64], and the base's has [32, 32]"),
        (llama_shapes(layers=3), "model.layers.2.self_attn.q_proj is not in the base"),
    ],
)
def test_an_adapter_of_another_base(shapes: Shapes, fault: str) -> None:
    adapter = tensors(adapter_files(shapes=shapes)["adapter_model.safetensors"])
    base = modules_of(tensors(base_files()["model.safetensors"]))
    assert fault in misfits(adapter, base, rank=8)[0]
    assert fault in misfits(adapter, base, rank=8, only_certain=True)[0]


def test_other_names_before_the_layer_s_number() -> None:
    adapter = pair("base_model.model.model.language_model.layers.0.self_attn.q_proj", 64, 32)
    assert not faults(adapter, tensor("language_model.model.layers.0.self_attn.q_proj.weight", 64, 32))
    # Towers have layers too: one of the candidates has to fit.
    towers = [
        tensor(f"{tower}.layers.0.self_attn.q_proj.weight", size, 32)
        for tower, size in (("audio", 16), ("language", 64))
    ]
    assert not faults(adapter, *towers)
    assert faults(adapter, towers[0])


def test_weights_that_lie_the_other_way_round() -> None:
    assert not faults(
        pair("base_model.model.transformer.h.0.attn.c_attn", 96, 32), tensor("h.0.attn.c_attn.weight", 32, 96)
    )
    embedding = [
        tensor("base_model.model.model.embed_tokens.lora_embedding_A", 8, 1000),
        tensor("base_model.model.model.embed_tokens.lora_embedding_B", 32, 8),
    ]
    assert not faults(embedding, tensor("model.embed_tokens.weight", 1000, 32))
    assert "[32, 1000]" in faults(embedding, tensor("model.embed_tokens.weight", 1008, 32))[0]


def test_a_tied_head_has_the_shape_of_the_embeddings() -> None:
    head = pair("base_model.model.lm_head", 1000, 32)
    assert not faults(head, tensor("model.embed_tokens.weight", 1000, 32))
    assert not faults(head, tensor("lm_head.weight", 1000, 32), tensor("model.embed_tokens.weight", 5, 32))
    assert faults(head, tensor("model.norm.weight", 32)) == ["lm_head is not in the base"]


@pytest.mark.parametrize(
    ("name", "dtype"), [("q_proj.qweight", "I32"), ("q_proj.weight", "U8"), ("q_proj.weight_packed", "I32")]
)
def test_quantised_weights_are_compared_by_name_only(name: str, dtype: str) -> None:
    assert not faults(pair(PREFIX, 64, 32), tensor(f"model.layers.0.self_attn.{name}", 4, 64, dtype=dtype))


def test_experts_may_be_stored_in_another_form() -> None:
    assert not faults(pair("base_model.model.model.layers.0.mlp.experts.base_layer", 64, 32))
    module = "base_model.model.model.layers.0.mlp.experts"
    assert not faults([tensor(f"{module}.lora_A.weight", 4, 8, 32), tensor(f"{module}.lora_B.weight", 4, 64, 8)])


def test_the_ranks_of_fused_experts_are_added_up() -> None:
    experts = pair("base_model.model.model.layers.0.mlp.experts.base_layer", 64, 32, rank=4 * 8)
    assert not faults(experts, tensor("model.layers.0.mlp.experts.gate_up_proj", 4, 64, 32))


def test_names_that_the_base_does_not_use_may_be_another_way_to_name_it() -> None:
    base = modules_of([tensor("layers.0.attention.wq.weight", 64, 32), tensor("layers.0.o_proj.weight", 32, 64)])
    adapter = pair(PREFIX, 64, 32)
    assert misfits(adapter, base, rank=8)
    assert misfits(adapter, base, rank=8, only_certain=True) == []
    deep = pair("base_model.model.model.layers.7.o_proj", 32, 64)
    assert misfits(deep, base, rank=8, only_certain=True) == ["model.layers.7.o_proj is not in the base"]


def test_tensors_that_are_none_of_an_adapter() -> None:
    base = tensor("model.layers.0.self_attn.q_proj.weight", 64, 32)
    fits = pair(PREFIX, 64, 32)
    beside = ["base_model.model.model.embed_tokens.base_layer.weight", "base_model.model.score.weight"]
    assert not faults([*fits, *(tensor(name, 4, 4) for name in beside)], base)
    assert faults([*fits, tensor(f"{PREFIX}.lora_magnitude_vector", 64)], base) == [
        f"{PREFIX}.lora_magnitude_vector is not a tensor of a LoRA adapter"
    ]
    assert faults([], base) == ["it has no LoRA tensors"]


def test_ranks_that_contradict_each_other() -> None:
    base = tensor("model.layers.0.self_attn.q_proj.weight", 64, 32)
    first, second = pair(PREFIX, 64, 32)
    module = "model.layers.0.self_attn.q_proj"
    assert faults([first], base) == [f"{module} has a lora_A without the other matrix"]
    assert faults([first, second], base, rank=4) == [f"{module} has the rank 8, and adapter_config.json says at most 4"]
    other = tensor(f"{PREFIX}.lora_B.weight", 64, 4)
    assert faults([first, other], base) == [f"{module} has the ranks 8 (lora_A) and 4 (lora_B)"]
