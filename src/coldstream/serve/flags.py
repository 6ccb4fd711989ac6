"""The flags that the user gave to vLLM. Pure.

vLLM takes `--max-model-len 1`, `--max-model-len=1`, `--max_model_len 1`, and short names for some.
"""

from __future__ import annotations

from collections.abc import Sequence

_SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"}


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag; the last one counts. None when it was not given; empty when it has none.

    Args:
        arguments: For `vllm serve`.
        name: With two dashes and dashes inside.
    """
    found: str | None = None
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


def _long(flag: str) -> str:
    if flag in _SHORT:
        return _SHORT[flag]
    return flag.replace("_", "-") if flag.startswith("--") else flag
