"""The user's flags for `vllm serve`, and the options of our load format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from coldstream.node.engine_flags import EngineFlags

_NUMBER, _SWITCH = "a whole number from 1 on", "true or false"
# The options of the load format, what their values must be, and their names in `Options`, if any. vLLM's users
# know two of them from its other load formats. See docs/serve.md.
_LOADER_KEYS: Mapping[str, tuple[str, str | None]] = {
    "uri": ("the URI of a model", None),
    "concurrency": (_NUMBER, "connections"),
    "memory_limit": (_NUMBER, "memory"),
    "workers": (_NUMBER, "workers"),
    "verify": (_SWITCH, "verify"),
    "cache": (_SWITCH, "cache"),
    "enable_weights_track": (_SWITCH, None),
}


class Flags(EngineFlags):
    """vLLM's flags."""

    engine = "vLLM"
    aliases: ClassVar = {
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-dp": "--data-parallel-size",
        "-sc": "--speculative-config",
    }


def checked_loader_config(config: object) -> Mapping[str, Any]:
    """What `--model-loader-extra-config` sets for the load format `coldstream`. Raises ValueError if it is invalid."""
    where = "--model-loader-extra-config of the load format coldstream"
    if not isinstance(config, Mapping):
        raise ValueError(  # noqa: TRY004  # vLLM shows a ValueError, and nothing of a TypeError
            f"{where} must be a JSON object, not {config!r}"
        )
    for key, value in config.items():
        if key not in _LOADER_KEYS:
            raise ValueError(f"{where} has the unknown key {key!r}; known: {', '.join(_LOADER_KEYS)}")
        expected, _ = _LOADER_KEYS[key]
        if expected == _SWITCH:
            is_valid = type(value) is bool
        elif expected == _NUMBER:
            # bool is an int in Python, but `true` does not mean one connection.
            is_valid = type(value) is int and value >= 1
        else:
            is_valid = isinstance(value, str) and value != ""
        if not is_valid:
            raise ValueError(f"{where}: {key} must be {expected}, not {value!r}")
    return config


def load_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a load among those of the load format, by their names in `Options`."""
    return {option: value for key, value in config.items() if (option := _LOADER_KEYS[key][1])}
