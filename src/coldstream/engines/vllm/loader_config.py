"""What `--model-loader-extra-config` may say. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERS = ("concurrency", "memory_limit", "workers")
_SWITCHES = ("verify", "cache")
# vLLM's users know these two names from its other load formats; the command's flags are named differently.
_OPTIONS = {"concurrency": "connections", "memory_limit": "memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderConfig:
    """The load format's options.

    Attributes:
        uri: Where the weights are; None when the model's folder says so itself.
        concurrency: Most connections at once.
        memory_limit: Memory limit for data in flight, in bytes.
        workers: Fetching processes.
        verify: Whether every chunk is compared with the manifest's hash.
        cache: Whether the node's cache is read and filled.
        enable_weights_track: As for vLLM's own formats: whether missing weights are an error; None: as vLLM decides.
    """

    uri: str | None = None
    concurrency: int | None = None
    memory_limit: int | None = None
    workers: int | None = None
    verify: bool = True
    cache: bool = True
    enable_weights_track: bool | None = None

    def options(self, keys: Collection[str] = (*_NUMBERS, *_SWITCHES)) -> dict[str, Any]:
        """Those of `keys` that have a value, by their names in `Options`."""
        values = {key: getattr(self, key) for key in (*_NUMBERS, *_SWITCHES) if key in keys}
        return {_OPTIONS.get(key, key): value for key, value in values.items() if value is not None}


def parse_loader_config(config: object) -> LoaderConfig:
    """Checks what the user wrote.

    Raises:
        ValueError: It is not an object, or has an unknown key or a value of a wrong type. vLLM shows the message.
    """
    where = "--model-loader-extra-config of the load format coldstream"
    if not isinstance(config, Mapping):
        raise ValueError(  # noqa: TRY004  # vLLM shows a ValueError, and nothing of a TypeError
            f"{where} must be a JSON object, not {config!r}"
        )
    known = LoaderConfig.__slots__
    for key, value in config.items():
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}; known: {', '.join(known)}")
        if key == "uri" and not (isinstance(value, str) and value):
            raise ValueError(f"{where}: uri must be the URI of a model, not {value!r}")
        # bool is an int in Python, but `true` is not meant as one connection.
        if key in _NUMBERS and (type(value) is not int or value < 1):
            raise ValueError(f"{where}: {key} must be a whole number from 1 on, not {value!r}")
        if key in {*_SWITCHES, "enable_weights_track"} and type(value) is not bool:
            raise ValueError(f"{where}: {key} must be true or false, not {value!r}")
    return LoaderConfig(**config)
