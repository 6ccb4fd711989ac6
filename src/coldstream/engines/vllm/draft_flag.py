"""The flag of vLLM that names a draft model: which model it is, and the flags with its folder instead.

vLLM takes it in JSON (`--speculative-config '{"model": …}'`), as a part of that (`--speculative-config.model`), or as
`--spec-model`. An EAGLE head is a draft model too; n-grams and a model's own MTP layers have no model of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstream.engines.vllm.flags import Flags
from coldstream.errors import NotFoundError, UsageError
from coldstream.model.names import Uri, is_path
from coldstream.node.model_folder import read_note

CONFIG = "--speculative-config"
_NAME_ONLY = ("--spec-model", f"{CONFIG}.model", "-sc.model")
_METHOD = ("--spec-method", f"{CONFIG}.method", "-sc.method")
# Of `SpeculativeConfig` in vllm/config/speculative.py; some of them are also accepted as the name of the model.
_WITHOUT_MODEL = frozenset({"ngram", "[ngram]", "ngram_gpu", "suffix", "custom_class", "extract_hidden_states"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFlag:
    """A flag and the model that it names; `config` is the flag's JSON, None for a flag with nothing but the name."""

    flag: str
    model: str
    config: Mapping[str, Any] | None = None

    def uri(self, *, in_bucket: bool) -> Uri | None:
        """The model as coldstream streams it; None when vLLM reads it itself.

        vLLM reads local folders, and, unless plain names mean models `in_bucket`, what the Hub has under the name.
        Raises NotFoundError if a folder does not exist.
        """
        if os.path.isdir(self.model):
            # A folder of `coldstream.prepare` has no weights.
            note = read_note(self.model)
            return None if note is None else note.uri
        if is_path(self.model):
            raise NotFoundError(f"{self.flag}: there is no folder {self.model}")
        if "://" in self.model:
            return Uri(self.model)
        revision = (self.config or {}).get("revision")
        return Uri(f"{self.model}@{revision}" if revision else self.model) if in_bucket else None

    def arguments(self, flags: Flags, folder: Path) -> tuple[str, ...]:
        """The user's arguments with a folder instead of the model's name."""
        value = str(folder) if self.config is None else json.dumps({**self.config, "model": str(folder)})
        return (*flags.without(self.flag), self.flag, value)


def draft_flag(flags: Flags) -> DraftFlag | None:
    """The flag that names a draft model; None without one. Raises UsageError if its JSON is not valid."""
    config = _config(flags)
    named = [DraftFlag(flag=name, model=model) for name in _NAME_ONLY if (model := flags.value(name))]
    if model := config.get("model"):
        named.insert(0, DraftFlag(flag=CONFIG, model=str(model), config=config))
    methods = {str(config.get("method")), *(flags.value(name) for name in _METHOD)}
    flag = next(iter(named), None)
    if flag is None or _WITHOUT_MODEL & {*methods, flag.model} or _is_class(flag.model):
        return None
    return flag


def _config(flags: Flags) -> Mapping[str, Any]:
    text = flags.value(CONFIG)
    if text is None or text in {"", "None"}:
        return {}
    try:
        config = json.loads(text)
    except ValueError as exc:
        raise UsageError(f"vLLM's {CONFIG} is not valid JSON: {exc}") from exc
    return config if isinstance(config, dict) else {}


def _is_class(model: str) -> bool:
    """Whether it is a proposer of the user's own, `package.Class`."""
    parts = model.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)
