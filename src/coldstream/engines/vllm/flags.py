"""The user's flags for `vllm serve`, from the command line and from the file that `--config` names, parsed once.

vLLM accepts `--max-model-len 1`, `--max-model-len=1`, `--max_model_len 1`, and short names for some flags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coldstream.errors import UsageError

_SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"}
# A negative number is a value.
_FLAG = re.compile(r"--?[A-Za-z]")
_NUMBER, _SWITCH = "a whole number from 1 on", "true or false"
# The options of the load format, and what their values must be. See docs/serve.md.
_LOADER_KEYS = {
    "uri": "the URI of a model",
    "concurrency": _NUMBER,
    "memory_limit": _NUMBER,
    "workers": _NUMBER,
    "verify": _SWITCH,
    "cache": _SWITCH,
    "enable_weights_track": _SWITCH,
}
# Their names in `Options`. vLLM's users know two of them from its other load formats.
_OPTIONS = {
    "concurrency": "connections",
    "memory_limit": "memory",
    "workers": "workers",
    "verify": "verify",
    "cache": "cache",
}


class Flags:
    """The flags of one start: `arguments` as the user wrote them, and `values` by long name; the last flag counts."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Parses the arguments. Raises UsageError if vLLM's configuration file cannot be read."""
        self.arguments = tuple(arguments)
        self.values: dict[str, list[str]] = {}
        flag = ""
        for argument in with_config(arguments):
            if _FLAG.match(argument):
                name, equals, value = argument.partition("=")
                flag = _SHORT.get(name) or (name.replace("_", "-") if name.startswith("--") else name)
                self.values[flag] = [value] if equals else []
            elif flag:
                self.values[flag].append(argument)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def value(self, name: str) -> str | None:
        """The first value of a flag, "" when it has no value; None without the flag."""
        values = self.values.get(name)
        return None if values is None else next(iter(values), "")

    def number(self, name: str) -> int:
        """The value of a flag that counts something; 1 without the flag, or when it is not a number."""
        text = self.value(name) or ""
        return max(1, int(text)) if text.isdecimal() else 1

    @property
    def ranks(self) -> int:
        """The number of vLLM's ranks that will read the weights on this node, as far as the flags tell."""
        return self.number("--tensor-parallel-size") * self.number("--pipeline-parallel-size")


def with_config(arguments: Sequence[str]) -> Sequence[str]:
    """Replaces `--config FILE` by the flags in the file, as vLLM does, which ignores the form `--config=FILE`.

    They come first, so that the command line wins (`FlexibleArgumentParser._pull_args_from_config`). Raises UsageError
    if the file cannot be read or does not hold flags.
    """
    if "--config" not in arguments:
        return arguments
    index = arguments.index("--config")
    if index + 1 == len(arguments) or "--config" in arguments[index + 1 :]:
        raise UsageError("vLLM's --config takes one file and can be given once")
    return [*_flags_in(arguments[index + 1]), *arguments[:index], *arguments[index + 2 :]]


def _flags_in(path: str) -> Iterator[str]:
    import yaml

    if not path.endswith((".yaml", ".yml")):
        raise UsageError(f"vLLM's --config {path}: the name must end in .yaml or .yml")
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except OSError as exc:
        raise UsageError(f"vLLM's --config {path} cannot be read: {exc.strerror}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: bytes that are not UTF-8, a 13th month
        # The parser's own message may quote a line, and with it a key.
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"vLLM's --config {path} is not valid YAML{where}") from exc
    if not isinstance(settings, dict):
        raise UsageError(f"vLLM's --config {path} must hold `flag: value` lines")
    for name, value in settings.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value)) if value else ()
        else:
            yield from (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))


def checked_loader_config(config: object) -> Mapping[str, Any]:
    """What `--model-loader-extra-config` sets for the load format `coldstream`. Raises ValueError if it is invalid."""
    where = "--model-loader-extra-config of the load format coldstream"
    if not isinstance(config, Mapping):
        raise ValueError(  # noqa: TRY004  # vLLM shows a ValueError, and nothing of a TypeError
            f"{where} must be a JSON object, not {config!r}"
        )
    for key, value in config.items():
        expected = _LOADER_KEYS.get(key)
        if expected is None:
            raise ValueError(f"{where} has the unknown key {key!r}; known: {', '.join(_LOADER_KEYS)}")
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
    return {_OPTIONS[key]: value for key, value in config.items() if key in _OPTIONS}
