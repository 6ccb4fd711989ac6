"""Renders the file for a target from its template in `files/`.

All external text goes through one of two filters: `quoted`, a double-quoted YAML scalar, or `shell`, a shell word. So a
model's name cannot become anything but a value.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from coldstream.fleet.deployment import Deployment

if TYPE_CHECKING:
    from jinja2 import Environment

_WIDTH = 100


def render(deployment: Deployment) -> str:
    """The content of the file; the same deployment always gives the same text."""
    template = _environment().get_template(f"{deployment.options.target}.yaml.j2")
    return template.render(d=deployment, options=deployment.options)


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
    """A double-quoted YAML scalar; characters that are not printable ASCII are escaped."""
    characters = (
        f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else f"\\U{ord(char):08x}" for char in str(text)
    )
    return f'"{"".join(characters)}"'


def _compose(text: str) -> str:
    """Text in which Compose substitutes no variables."""
    return text.replace("$", "$$")


def _words(arguments: tuple[str, ...], indent: int) -> str:
    """Arguments for a shell, wrapped; a flag and its value stay on one line."""
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
