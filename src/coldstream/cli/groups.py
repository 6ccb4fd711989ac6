"""Commands and groups: common options, suggestions for misspelt names, a default command."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

import click

from coldstream.cli.session import State

EXIT_CODES = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 partial, 10 not found, 12 credentials refused, 13 integrity mismatch, "
    "130 cancelled."
)
FILE = click.Path(dir_okay=False, path_type=Path)
_STORE_HELP = "Bucket (s3://bucket[/prefix]) or folder of models.  [env: COLDSTREAM_STORE, R2_BUCKET]"
_COMMON_OPTIONS = [
    click.Option(["--store"], metavar="URI", help=_STORE_HELP),
    click.Option(["--env-file"], type=FILE, help="Read settings from this file instead of ./.env."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Print only the result and errors."),
    click.Option(["--debug"], is_flag=True, help="Show tracebacks of errors."),
]


class Verb(click.Command):
    """A command that has the common options, as a `State`, which its function takes as `state`."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **{"epilog": EXIT_CODES, **attributes})
        self.params += _COMMON_OPTIONS

    def invoke(self, ctx: click.Context) -> Any:
        state, values = ctx.ensure_object(State), ctx.params
        state.json, state.quiet, state.debug = values.pop("as_json"), values.pop("quiet"), values.pop("debug")
        state.env_file, state.flags["COLDSTREAM_STORE"] = values.pop("env_file"), values.pop("store")
        values["state"] = state
        return super().invoke(ctx)


class Group(click.Group):
    """A group that suggests the nearest command for a misspelt one, with any version of click."""

    command_class = Verb

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **{"epilog": EXIT_CODES, **attributes})

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

    def __init__(self, *args: Any, default: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            # Model names without a slash are rare, and can be written after the name of the default command.
            if re.fullmatch(r"[a-z]+", args[0]) and self.nearest(ctx, args[0]):
                self.reject(ctx, args[0], more=f" A model of that name: {ctx.command_path} {self._default} {args[0]}")
            args = [self._default, *args]
        return super().parse_args(ctx, args)
