"""Whether the tensors of an adapter fit its base, from the headers of both. Pure.

PEFT stores two matrices for each module: `lora_A` of the shape (rank, in) and `lora_B` of the shape (out, rank), next
to the base's weight of the shape (out, in). Embeddings and GPT-2's layers have theirs the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from coldstream.model.header import Tensor
from coldstream.printable import printable

# Tensors of a base, by the ends of the names of their modules.
Modules = Mapping[str, Sequence[Tensor]]

_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<which>[AB])(?:\.weight)?")
# Weights in other dtypes are quantised: they hold several values in one, or are reordered.
_PLAIN_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# A copy of the base's own weights, and the one module that vLLM takes as a whole.
_NOT_LORA = re.compile(r".*\.(?:base_layer|score|classifier)\.(?:weight|bias)")
# All experts of a layer in one module, whose matrices PEFT stores as one, of their ranks together.
_FUSED_EXPERTS = re.compile(r".*\.experts(?:\.base_layer)?")
_SHOWN_MAX = 160
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"


def modules_of(base: Iterable[Tensor]) -> Modules:
    """A base as `misfits` compares it."""
    modules: dict[str, list[Tensor]] = {}
    for tensor in base:
        modules.setdefault(_end(tensor.name.rpartition(".")[0]), []).append(tensor)
    # Models with tied embeddings store one of them.
    if _EMBEDDING in modules:
        modules.setdefault(_HEAD, modules[_EMBEDDING])
    return modules


def misfits(adapter: Iterable[Tensor], base: Modules, *, rank: int, only_certain: bool = False) -> list[str]:
    """What of an adapter of this rank does not fit, a sentence for each tensor or module; empty if all of it does.

    A checkpoint may name its modules in another way than PEFT. With `only_certain`, a module that it does not have is a
    misfit only if it has others of that name, in other layers.
    """
    faults = []
    matrices: dict[str, dict[str, Tensor]] = {}
    for tensor in adapter:
        if match := _MATRIX.fullmatch(tensor.name):
            matrices.setdefault(match["module"].removeprefix(_PREFIX), {})[match["which"]] = tensor
        elif not _NOT_LORA.fullmatch(tensor.name):
            faults.append(f"{_shown(tensor.name)} is not a tensor of a LoRA adapter")
    known = {end.rpartition(".")[2] for end in base}
    for module, pair in sorted(matrices.items()):
        candidates = base.get(_end(module), ())
        if only_certain and not candidates and module.rpartition(".")[2] not in known:
            continue
        if fault := _misfit(module, pair, candidates, rank):
            faults.append(f"{_shown(module)} {fault}")
    return faults if matrices else ["it has no LoRA tensors", *faults]


def _shown(name: str) -> str:
    return printable(name[:_SHOWN_MAX])


def _end(module: str) -> str:
    """A module's name from the number of its layer, with the word before it: `layers.0.self_attn.q_proj`.

    Versions of transformers differ in what stands before that.
    """
    match = re.search(r"[^.]+\.\d+\..+", module)
    return match[0] if match else module.rpartition(".")[2]


def _misfit(module: str, pair: Mapping[str, Tensor], candidates: Sequence[Tensor], rank: int) -> str | None:
    """Why a module's matrices do not fit; `candidates` are the base's tensors whose names end like the module's."""
    if len(pair) < 2:
        return f"has a lora_{next(iter(pair))} without the other matrix"
    first, second = pair["A"].shape, pair["B"].shape
    if len(first) != 2 or len(second) != 2 or _FUSED_EXPERTS.fullmatch(module):
        return None  # those of convolutions and fused experts depend on the model
    if first[0] != second[1]:
        return f"has the ranks {first[0]} (lora_A) and {second[1]} (lora_B)"
    if first[0] > rank:
        return f"has the rank {first[0]}, and adapter_config.json says at most {rank}"
    if not candidates:
        # Checkpoints have each expert by itself where the model, and so the adapter, has all in one.
        return None if ".experts" in module else "is not in the base"
    shape = (second[0], first[1])
    weights = [tensor for tensor in candidates if tensor.name.endswith(".weight") and tensor.dtype in _PLAIN_DTYPES]
    if not weights or any(shape in {tensor.shape, tensor.shape[::-1]} for tensor in weights):
        return None
    return f"is for a weight of the shape {list(shape)}, and the base's has {list(weights[0].shape)}"
