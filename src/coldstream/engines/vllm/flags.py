"""The user's flags for `vllm serve`, from the command line and from the file that `--config` names, parsed once.

vLLM accepts `--max-model-len 1`, `--max-model-len=1`, `--max_model_len 1`, and short names for some flags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from coldstream.errors import UsageError

_SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"}
# A negative number is a value.
_FLAG = re.compile(r"--?[A-Za-z]")


class Flags:
    """The flags of one start.

    Attributes:
        arguments: As the user wrote them, to be passed to vLLM.
        values: Each flag by its long name, with its values. Of a flag that is given twice, the last one counts.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Parses the arguments.

        Raises:
            UsageError: vLLM's configuration file cannot be read.
        """
        self.arguments = tuple(arguments)
        self.values: Mapping[str, Sequence[str]] = _parsed(with_config(arguments))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def value(self, name: str) -> str | None:
        """The first value of a flag, "" when it has no value; None when the flag is not given."""
        values = self.values.get(name)
        return None if values is None else next(iter(values), "")

    def number(self, name: str) -> int:
        """The value of a flag that counts something; 1 when it is not given or not a number."""
        text = self.value(name) or ""
        return max(1, int(text)) if text.isdecimal() else 1

    @property
    def ranks(self) -> int:
        """How many of vLLM's ranks will read the weights on this node, as far as the flags tell."""
        return self.number("--tensor-parallel-size") * self.number("--pipeline-parallel-size")


def with_config(arguments: Sequence[str]) -> Sequence[str]:
    """Replaces `--config FILE` by the flags in the file, as vLLM does.

    They come first, so that the command line wins (`FlexibleArgumentParser._pull_args_from_config`). vLLM ignores the
    form `--config=FILE`.

    Raises:
        UsageError: The file cannot be read or does not hold flags.
    """
    if "--config" not in arguments:
        return arguments
    index = arguments.index("--config")
    if index + 1 == len(arguments) or "--config" in arguments[index + 1 :]:
        raise UsageError("vLLM's --config takes one file and can be given once")
    return [*_flags_in(arguments[index + 1]), *arguments[:index], *arguments[index + 2 :]]


def _parsed(arguments: Sequence[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    flag = ""
    for argument in arguments:
        if _FLAG.match(argument):
            name, equals, value = argument.partition("=")
            flag = _SHORT.get(name) or (name.replace("_", "-") if name.startswith("--") else name)
            values[flag] = [value] if equals else []
        elif flag:
            values[flag].append(argument)
    return values


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
