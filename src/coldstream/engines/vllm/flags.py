"""The flags that the user gave to vLLM, on the command line or in the file that `--config` names.

vLLM takes `--max-model-len 1`, `--max-model-len=1`, `--max_model_len 1`, and short names for some.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from coldstream.errors import UsageError

_SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"}


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag; the last one counts. None when it was not given; empty when it has none.

    Args:
        arguments: For `vllm serve`.
        name: With two dashes and dashes inside.

    Raises:
        UsageError: vLLM's configuration file cannot be read.
    """
    found: str | None = None
    arguments = with_config(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if _long(flag) != name:
            continue
        if equals:
            found = value
        else:
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            found = "" if following.startswith("--") else following
    return found


def number_of(arguments: Sequence[str], name: str) -> int:
    """The value of a flag that counts something; 1 when it was not given or is no number."""
    text = value_of(arguments, name) or ""
    return max(1, int(text)) if text.isdecimal() else 1


def with_config(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments with the flags of `--config FILE` in its place, as vLLM reads them.

    They precede the command line's, so that those win (`FlexibleArgumentParser._pull_args_from_config`). vLLM ignores
    the form `--config=FILE`.

    Raises:
        UsageError: The file cannot be read, or holds something else.
    """
    if "--config" not in arguments:
        return arguments
    index = arguments.index("--config")
    if index + 1 == len(arguments) or "--config" in arguments[index + 1 :]:
        raise UsageError("vLLM's --config takes one file, and can be used once")
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
        # What the parser says may quote a line, and with it a key.
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


def _long(flag: str) -> str:
    if flag in _SHORT:
        return _SHORT[flag]
    return flag.replace("_", "-") if flag.startswith("--") else flag
