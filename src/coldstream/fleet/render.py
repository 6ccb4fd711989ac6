"""The file for a target.

Templates lie in `files/`. Whatever comes from outside goes through one of two filters: `quoted`, a double-quoted scalar
of YAML, and `shell`, a word of a shell. Nothing that a model is called can become more than a value.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from coldstream.fleet.deployment import Deployment

if TYPE_CHECKING:
    from jinja2 import Environment

_WIDTH = 100


def render(deployment: Deployment) -> str:
    """The file. The same deployment gives the same bytes.

    Args:
        deployment: What is to run where.
    """
    template = _environment().get_template(f"{deployment.wish.target}.yaml.j2")
    return template.render(d=deployment, wish=deployment.wish)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("coldstream.fleet", "files"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # this is YAML: see the filters
    )
    environment.filters |= {"quoted": _quoted, "shell": shlex.quote, "words": _words, "compose": _compose}
    return environment


def _quoted(text: str | int) -> str:
    """A string as YAML's double-quoted scalar; what is not printable ASCII is written by its number."""
    characters = (
        f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else f"\\U{ord(char):08x}" for char in str(text)
    )
    return f'"{"".join(characters)}"'


def _compose(text: str) -> str:
    """Text that compose, which puts variables in, leaves as it is."""
    return text.replace("$", "$$")


def _words(arguments: tuple[str, ...], indent: int) -> str:
    """Arguments for a shell, a flag and its value on one line, as many as fit; continued lines are indented."""
    groups: list[str] = []
    for word in map(shlex.quote, arguments):
        if groups and not word.startswith("-") and groups[-1].startswith("-") and " " not in groups[-1]:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [""]
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) > _WIDTH - indent:
            lines.append("")
        lines[-1] += f" {group}" if lines[-1] else group
    return (" \\\n" + " " * indent).join(lines)
