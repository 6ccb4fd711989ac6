"""The user's flags for an engine, from the command line and from the file that `--config` names, parsed once.

Engines accept `--max-model-len 1`, `--max-model-len=1`, `--max_model_len 1`, and other names for some flags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from coldstream.errors import UsageError

# A negative number is a value.
_FLAG = re.compile(r"--?[A-Za-z]")


class EngineFlags:
    """The flags of one start: `arguments` as the user wrote them, and `values` by long name; the last flag counts."""

    # For messages.
    engine: ClassVar[str]
    # Other names of flags, and the names that `values` has.
    aliases: ClassVar[Mapping[str, str]] = {}

    def __init__(self, arguments: Sequence[str]) -> None:
        """Parses the arguments. Raises UsageError if the engine's configuration file cannot be read."""
        self.arguments = tuple(arguments)
        self.values: dict[str, list[str]] = {}
        flag = ""
        for argument in with_config(arguments, self.engine):
            if _FLAG.match(argument):
                flag, equals, value = self._long_name(argument), *argument.partition("=")[1:]
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
        """The number of ranks of one replica that will read the weights on this node, as far as the flags tell."""
        return self.number("--tensor-parallel-size") * self.number("--pipeline-parallel-size")

    def without(self, name: str) -> list[str]:
        """The arguments without a flag and its values."""
        kept, flag = [], ""
        for argument in self.arguments:
            flag = self._long_name(argument) if _FLAG.match(argument) else flag
            if flag != name:
                kept.append(argument)
        return kept

    def _long_name(self, argument: str) -> str:
        name = argument.partition("=")[0]
        name = name.replace("_", "-") if name.startswith("--") else name
        return self.aliases.get(name, name)


def with_config(arguments: Sequence[str], engine: str) -> Sequence[str]:
    """Replaces `--config FILE` by the flags in the file, as the engines do, which ignore the form `--config=FILE`.

    They come first, so that the command line wins (vLLM's `FlexibleArgumentParser._pull_args_from_config`, SGLang's
    `ConfigArgumentMerger`). Raises UsageError if the file cannot be read or does not hold flags.
    """
    if "--config" not in arguments:
        return arguments
    index = arguments.index("--config")
    if index + 1 == len(arguments) or "--config" in arguments[index + 1 :]:
        raise UsageError(f"{engine}'s --config takes one file and can be given once")
    return [*_flags_in(arguments[index + 1], engine), *arguments[:index], *arguments[index + 2 :]]


def _flags_in(path: str, engine: str) -> Iterator[str]:
    import yaml

    if not path.endswith((".yaml", ".yml")):
        raise UsageError(f"{engine}'s --config {path}: the name must end in .yaml or .yml")
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except OSError as exc:
        raise UsageError(f"{engine}'s --config {path} cannot be read: {exc.strerror}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: bytes that are not UTF-8, a 13th month
        # The parser's own message may quote a line, and with it a key.
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{engine}'s --config {path} is not valid YAML{where}") from exc
    if not isinstance(settings, dict):
        raise UsageError(f"{engine}'s --config {path} must hold `flag: value` lines")
    for name, value in settings.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value)) if value else ()
        else:
            yield from (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
