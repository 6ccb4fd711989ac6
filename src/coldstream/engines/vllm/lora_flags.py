"""vLLM's flags for LoRA adapters: what the user chose, and what is added to it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from coldstream.engines.vllm.flags import Flags
from coldstream.errors import UsageError
from coldstream.model.adapter import VLLM_RANKS

# vLLM reserves GPU memory for each adapter that may be in a batch, and by default computes one adapter at a time.
_BATCH_MAX = 4
# It keeps so many adapters in the machine's memory, and reads others from their folders again.
_IN_MEMORY = 16


def adapter_paths(flags: Flags) -> dict[str, str]:
    """The adapters of `--lora-modules`, each `name=path` or a JSON object: name to path."""
    return {name: str(module["path"]) for name, module in _modules(flags).items()}


def rank_max(flags: Flags, rank: int) -> int:
    """The user's `--max-lora-rank`, or the smallest that vLLM allows from `rank` on."""
    if chosen := flags.value("--max-lora-rank"):
        return int(chosen) if chosen.isdecimal() else rank
    allowed = [limit for limit in VLLM_RANKS if limit >= rank]
    if not allowed:
        raise UsageError(f"vLLM serves adapters of ranks up to {VLLM_RANKS[-1]}, not {rank}")
    return allowed[0]


def with_adapters(flags: Flags, paths: Mapping[str, str], *, rank_max: int | None, on_demand: bool) -> Flags:
    """The flags that serve the adapters `paths` (name to path), and others on demand; see `InferenceEngine`."""
    modules, arguments = _modules(flags), flags.without("--lora-modules")
    if rank_max is not None:
        ours = _sizes(flags, len(paths), rank_max=rank_max, on_demand=on_demand)
        arguments += [part for flag, values in ours.items() if flag not in flags for part in (flag, *values)]
    if paths:
        arguments += ["--lora-modules"]
        arguments += [json.dumps({**modules.get(name, {"name": name}), "path": path}) for name, path in paths.items()]
    return Flags(arguments)


def _sizes(flags: Flags, paths: int, *, rank_max: int, on_demand: bool) -> dict[str, tuple[str, ...]]:
    count = max(paths, _BATCH_MAX if on_demand else 1)
    batch = flags.number("--max-loras") if "--max-loras" in flags else min(count, _BATCH_MAX)
    ours: dict[str, tuple[str, ...]] = {
        "--enable-lora": (),
        "--max-lora-rank": (str(rank_max),),
        "--max-loras": (str(batch),),
        "--max-cpu-loras": (str(max(batch, _IN_MEMORY if on_demand else min(count, _IN_MEMORY))),),
    }
    if on_demand and "--data-parallel-size" in flags and "--headless" not in flags:
        # vLLM loads no adapters on demand in several API servers, of which it starts one for each replica.
        ours["--api-server-count"] = ("1",)
    return ours


def _modules(flags: Flags) -> dict[str, dict[str, object]]:
    modules: dict[str, dict[str, object]] = {}
    for text in flags.values.get("--lora-modules", ()):
        if "=" in text and "," not in text:  # as vLLM tells one form from the other
            name, _, path = text.partition("=")
            modules[name] = {"name": name, "path": path}
            continue
        try:
            module = json.loads(text)
            modules[str(module["name"])] = {**module, "path": str(module["path"])}
        except (ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"--lora-modules: {text[:200]!r} is neither name=path nor a JSON object of both") from exc
    return modules
