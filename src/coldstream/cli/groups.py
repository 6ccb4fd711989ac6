"""Groups of commands: sections in their help, suggestions for misspelt names, a default command."""

from __future__ import annotations

import difflib
import re
from typing import Any, NoReturn

import click

EXIT_CODES = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 partial, 10 not found, 12 credentials refused, 13 integrity mismatch, "
    "130 cancelled."
)


class Group(click.Group):
    """A group that suggests the nearest command for a misspelt one, with any version of click."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            self.reject(ctx, args[0])
        return super().resolve_command(ctx, args)

    def reject(self, ctx: click.Context, name: str, *, more: str = "") -> NoReturn:
        """Raises a usage error for a command that does not exist; `more` is appended to the message."""
        near = self.nearest(ctx, name)
        ctx.fail(f"No such command {name!r}." + (f" Did you mean {near!r}?" if near else "") + more)

    def nearest(self, ctx: click.Context, name: str) -> str | None:
        """The command whose name is most like `name`, or None."""
        return next(iter(difflib.get_close_matches(name.lower(), self.list_commands(ctx), n=1)), None)


class DefaultGroup(Group):
    """A group whose first word may be a model's name: `coldstream template org/model` is `… render org/model`."""

    def __init__(self, *args: Any, default: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            # Model names without a slash are rare, and can be written after the name of the default command.
            if re.fullmatch(r"[a-z]+", args[0]) and self.nearest(ctx, args[0]):
                self.reject(ctx, args[0], more=f" A model of that name: {ctx.command_path} {self._default} {args[0]}")
            args = [self._default, *args]
        return super().parse_args(ctx, args)
