"""LoRA adapters as PEFT stores them: what their configuration says, checked, and whether vLLM can serve them. Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from coldstream.errors import IntegrityError, UsageError
from coldstream.model.names import checked_name

WEIGHTS_NAME = "adapter_model.safetensors"
# A rank for each module of a large model takes some 100 KiB.
CONFIG_BYTES_MAX = 1 << 20
# What `--max-lora-rank` may be. Source: vLLM 0.32, `MaxLoRARanks` in config/lora.py.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# The settings with which vLLM refuses an adapter. Source: vLLM 0.32, `PEFTHelper` in lora/peft_helper.py.
_UNSUPPORTED_FLAGS = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
_SAVED_MODULES = {"classifier", "score"}
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
_CONFIG_HINT = "save the adapter again with PEFT's save_pretrained"
_BASE_HINT = "name the model in the bucket that it belongs to: coldstream upload … --base org/model"

_Text = Annotated[str, Meta(max_length=1024)]
_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,64}\Z")]
_Rank = Annotated[int, Meta(ge=1, le=1 << 31)]


class Adapter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a server has to know of an adapter before it loads it. Part of the manifest."""

    base: _Text  # the model that it was trained on, as a name in the bucket
    rank: Annotated[int, Meta(ge=0, le=1 << 31)]  # the largest of its modules; 0 for another type than LORA
    peft_type: _Word = "LORA"  # as PEFT calls it, in capitals
    features: tuple[_Word, ...] = ()  # settings of its configuration that vLLM does not support, by their names

    def __post_init__(self) -> None:
        try:
            checked_name(self.base)
        except UsageError as exc:
            raise ValueError(f"base: {exc.message}") from exc

    def is_of(self, name: str, repo: str | None = None) -> bool:
        """Whether its base is the model of this name in the bucket, which was copied from `repo` on the Hub."""
        return self.base in {name, repo}

    @property
    def label(self) -> str:
        """What it is, for people."""
        if self.peft_type != "LORA":
            return f"{self.peft_type} adapter of {self.base}"
        return f"LoRA adapter of {self.base}, rank {self.rank}"

    def wrong_base(self, name: str, base: str) -> UsageError:
        """The error of serving the adapter called `name` with this base, of which it is not."""
        return UsageError(
            f"{name} is an adapter of {self.base}, not of {base}",
            hint=f"if it fits {base} nevertheless: coldstream upload … --as {name} --base {base}",
        )

    @property
    def refusal(self) -> str | None:
        """Why vLLM cannot serve it; None when it can, as far as its configuration tells."""
        if self.peft_type != "LORA":
            return f"its type is {self.peft_type}, and vLLM serves only LORA"
        if self.rank > VLLM_RANKS[-1]:
            return f"its rank is {self.rank}, and vLLM serves ranks up to {VLLM_RANKS[-1]}"
        if self.features:
            return f"its configuration sets {' and '.join(self.features)}, which vLLM does not support"
        return None


class _PeftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that all types of adapters have."""

    peft_type: _Word = "LORA"
    base_model_name_or_path: Annotated[str, Meta(max_length=4096)] | None = None


class _LoraConfig(msgspec.Struct, frozen=True, kw_only=True):
    r: _Rank
    lora_alpha: int | float
    rank_pattern: dict[str, _Rank] | None = None
    target_modules: list[str] | str | None = None
    bias: str | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = None
    use_dora: bool | None = None
    lora_bias: bool | None = None
    alora_invocation_tokens: list[int] | None = None
    layer_replication: list[list[int]] | None = None
    use_bdlora: dict[str, Any] | bool | None = None
    use_qalora: bool | None = None

    @property
    def features(self) -> tuple[str, ...]:
        names = [name for name in _UNSUPPORTED_FLAGS if getattr(self, name)]
        if self.bias not in {None, "none"}:
            names.append("bias")
        if not {*(self.modules_to_save or ())} <= _SAVED_MODULES:
            names.append("modules_to_save")
        if isinstance(self.init_lora_weights, str) and self.init_lora_weights.lower() not in _PLAIN_INITS:
            names.append("init_lora_weights")
        return tuple(names)


# Made here, once: msgspec 0.22 crashes when two threads make the first decoder of a type at the same time.
_PEFT = msgspec.json.Decoder(_PeftConfig)
_LORA = msgspec.json.Decoder(_LoraConfig)


def parse_config(data: bytes, *, where: str, base: str | None = None) -> Adapter:
    """Reads an `adapter_config.json`; `base` replaces the base model that it names.

    Raises IntegrityError if it is malformed, and UsageError if it names no model that can be in a bucket.
    """
    if len(data) > CONFIG_BYTES_MAX:
        raise IntegrityError(
            f"{where} has {len(data)} bytes; an adapter's configuration has at most {CONFIG_BYTES_MAX}"
        )
    try:
        config = _PEFT.decode(data)
        peft_type = config.peft_type.upper()
        lora = _LORA.decode(data) if peft_type == "LORA" else None
    except msgspec.ValidationError as exc:
        raise IntegrityError(f"{where} is malformed: {exc}", hint=_CONFIG_HINT) from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise IntegrityError(f"{where} is not JSON: {exc}", hint=_CONFIG_HINT) from exc
    base = base or config.base_model_name_or_path
    if not base:
        raise UsageError(f"{where} names no base model", hint=_BASE_HINT)
    try:
        checked_name(base)
    except UsageError as exc:
        raise UsageError(f"{where}: its base model {base[:80]!r} is not a model's name", hint=_BASE_HINT) from exc
    ranks = (lora.r, *(lora.rank_pattern or {}).values()) if lora else (0,)
    return Adapter(base=base, rank=max(ranks), peft_type=peft_type, features=lora.features if lora else ())
