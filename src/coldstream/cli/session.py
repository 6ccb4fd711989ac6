"""What all verbs share: their common options, the settings and the store, and how errors look."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from coldstream.printable import printable

if TYPE_CHECKING:
    from coldstream.errors import ColdstreamError
    from coldstream.net.retry import Retry
    from coldstream.places.store import Store
    from coldstream.settings import Settings

# The escape sequences that `coloured` writes around a word, and no others.
_COLOURS = re.compile(r"(\x1b\[(?:0|3[1-3])m)")
F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 partial, 10 not found, 12 credentials refused, 13 integrity mismatch, "
    "130 cancelled."
)


@dataclass(slots=True)
class State:
    """The common options of one run.

    Attributes:
        json: One JSON document on stdout instead of text.
        quiet: Nothing on stderr but errors.
        debug: Tracebacks of expected errors too.
        flags: Settings given as flags, under their variables' names.
        env_file: The settings file that was named, or None.
        resume: What running the same command again continues from, for the hint after Ctrl-C; None: it starts over.
        warned: Whether the warning of the settings was shown.
    """

    json: bool = False
    quiet: bool = False
    debug: bool = False
    flags: dict[str, str | None] = field(default_factory=dict)
    env_file: Path | None = None
    resume: str | None = None
    warned: bool = False

    def settings(self, *, draft: bool = False) -> Settings:
        """The resolved settings; see `load_settings`."""
        from coldstream.settings import load_settings

        settings = load_settings(self.flags, env_file=self.env_file, draft=draft)
        if settings.warning and not self.warned:
            self.say(f"warning: {settings.warning}")
            self.warned = True
        return settings

    def open_store(self, connections: int) -> Store:
        """The configured store, with a retry policy that tells the user when it waits long."""
        from coldstream.places.store_opening import open_store

        settings = self.settings()
        return open_store(settings, retry=self.new_retry(settings), connections=connections)

    def new_retry(self, settings: Settings) -> Retry:
        """A retry policy with the configured patience."""
        from coldstream.net.retry import Backoff, Retry

        return Retry(Backoff(give_up_seconds=settings.retry_seconds), on_retry=self._waiting)

    def say(self, text: str) -> None:
        """A line of progress or advice, on stderr."""
        if not self.quiet:
            echo(text, err=True)

    def explain(self, message: str, hint: str | None) -> None:
        """An error and its hint, on stderr, without secrets. No further line of either looks like another error."""
        from coldstream.model.uri import without_secrets

        echo(f"{coloured('error:', 'red', sys.stderr)} {_indented(without_secrets(message))}", err=True)
        if hint:
            echo(f"hint:  {_indented(without_secrets(hint))}", err=True)

    def report(self, exc: ColdstreamError) -> dict[str, Any]:
        """An error, with its traceback under `--debug`; returns what `--json` shows of it."""
        if self.debug:
            show_traceback(exc)
        self.explain(exc.message, exc.hint)
        return error_document(exc.kind, exc.message, exc.hint, exc.exit_code)

    def show(self, document: Any, text: str) -> None:
        """The result: `document` as JSON when that was asked for, `text` otherwise."""
        if self.json:
            echo_json(document, indent=2)
        else:
            echo(text)

    def write(self, path: Path, data: bytes) -> None:
        """Writes a file that the user named, whole or not at all, and says so.

        Raises:
            DiskError: The disk refuses.
        """
        from coldstream.errors import DiskError
        from coldstream.machine.atomic_file import write_output

        try:
            write_output(path, data)
        except OSError as exc:
            raise DiskError(f"cannot write {path}: {exc.strerror or exc}", target=str(path)) from exc
        self.say(f"wrote {path}")

    def _waiting(self, error: Exception, seconds: float) -> None:
        if seconds >= 2:
            self.say(f"{error}; trying again in {seconds:.0f} s")


def error_document(kind: str, message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    """What `--json` shows of an error, without secrets; a contract."""
    from coldstream.model.uri import without_secrets

    message, hint = without_secrets(message), without_secrets(hint) if hint else None
    return {"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}}


def show_traceback(exc: Exception) -> None:
    """A traceback, on stderr."""
    import traceback

    from coldstream.model.uri import without_secrets

    echo(without_secrets("".join(traceback.format_exception(exc))).rstrip(), err=True)


def shown(text: str) -> str:
    """A text for people, in which what others wrote (names, keys, errors) can neither steer a terminal nor hide."""
    parts = _COLOURS.split(text)
    return "".join(part if number % 2 else printable(part, keep="\n\t") for number, part in enumerate(parts))


def echo(text: str, *, err: bool = False) -> None:
    """Writes a text for people; all that a command shows goes through here, or through `echo_json`."""
    click.echo(shown(text), err=err)


def echo_json(document: Any, *, indent: int | None = None) -> None:
    """Writes a document to stdout, exactly: what a terminal could mistake is escaped as JSON does."""
    click.echo(json.dumps(document, indent=indent, default=str).replace("\x7f", "\\u007f"))


def _indented(text: str) -> str:
    return text.replace("\n", "\n       ")


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in a colour where that means something to whoever reads: on a terminal, unless NO_COLOR is set.

    Args:
        text: What to show.
        colour: green for done, yellow for look here, red for failed.
        stream: Where it goes; stdout when None.
    """
    stream = stream or sys.stdout
    return click.style(text, fg=colour) if stream.isatty() and not os.environ.get("NO_COLOR") else text


class Group(click.Group):
    """A group that suggests the nearest command for a misspelt one, whatever the version of click."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            self.refuse(ctx, args[0])
        return super().resolve_command(ctx, args)

    def refuse(self, ctx: click.Context, name: str, *, more: str = "") -> NoReturn:
        """Ends with a usage error: there is no command `name`.

        Args:
            ctx: Of this group.
            name: As it was typed.
            more: Something else that may have been meant.
        """
        near = self.nearest(ctx, name)
        ctx.fail(f"No such command {name!r}." + (f" Did you mean {near!r}?" if near else "") + more)

    def nearest(self, ctx: click.Context, name: str) -> str | None:
        """The command whose name is most like this one, or None."""
        import difflib

        return next(iter(difflib.get_close_matches(name.lower(), self.list_commands(ctx), n=1)), None)


class DefaultGroup(Group):
    """A group whose first word may be a model's name: `coldstream template org/model` is `… render org/model`."""

    def __init__(self, *args: Any, default: str, **options: Any) -> None:
        """Makes it.

        Args:
            args: Of `click.Group`.
            default: The command that takes a model.
            options: Of `click.Group`.
        """
        super().__init__(*args, **options)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            # A model's name has a slash, nearly always; one that has none can be written after the command's name.
            if re.fullmatch(r"[a-z]+", args[0]) and self.nearest(ctx, args[0]):
                self.refuse(ctx, args[0], more=f" A model of that name: {ctx.command_path} {self._default} {args[0]}")
            args = [self._default, *args]
        return super().parse_args(ctx, args)


def confirm(deed: str, what: str) -> None:
    """Asks whether this is to be done.

    Args:
        deed: "delete", "launch".
        what: To whom.

    Raises:
        UsageError: Nobody is there to be asked.
        click.Abort: No.
    """
    from coldstream.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(f"will not {deed} {what} without being told to", hint="add --yes")
    click.confirm(shown(f"{deed} {what}?"), abort=True, err=True)


def common_options(function: F) -> F:
    """Adds the options that every verb has, and passes a `State` as the first argument."""

    @click.option(
        "--store", metavar="URI", help="s3://bucket[/prefix] or a folder.  [env: COLDSTREAM_STORE, R2_BUCKET]"
    )
    @click.option(
        "--env-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Settings file to read instead of ./.env.",
    )
    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no advice, only the result and errors.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.pass_obj
    def wrapped(
        state: State,
        /,
        *args: Any,
        store: str | None,
        env_file: Path | None,
        as_json: bool,
        quiet: bool,
        debug: bool,
        **options: Any,
    ) -> Any:
        state.json, state.quiet, state.debug, state.env_file = as_json, quiet, debug, env_file
        state.flags["COLDSTREAM_STORE"] = store
        return function(state, *args, **options)

    return functools.update_wrapper(wrapped, function)  # type: ignore[return-value]


def transfer_options(function: F) -> F:
    """Adds the options of verbs that move bytes."""
    function = click.option(
        "--connections",
        type=click.IntRange(1, 256),
        default=8,
        show_default=True,
        help="Transfers at the same time.",
    )(function)
    return click.option(
        "--memory",
        "memory_bytes",
        type=Size(),
        default="640MiB",
        show_default=True,
        help="Most memory to hold data in.",
    )(function)


def metrics_options(function: F) -> F:
    """Adds the options of verbs that load. They become settings: see `coldstream.telemetry.metrics.metric_options`."""

    def setting(ctx: click.Context, param: click.Parameter, value: object) -> None:
        assert param.name is not None
        ctx.ensure_object(State).flags[f"COLDSTREAM_{param.name.upper()}"] = None if value is None else str(value)

    for flag, kind, text in (
        (
            "--metrics-file",
            click.Path(dir_okay=False),
            "Leave Prometheus' metrics in this file, NAME.prom, at the end.",
        ),
        ("--metrics-host", str, "Where to serve them.  [default: 127.0.0.1]"),
        ("--metrics-port", click.IntRange(0, 65535), "Serve them on this port meanwhile; 0: any that is free."),
    ):
        function = click.option(flag, type=kind, callback=setting, expose_value=False, help=text)(function)
    return function


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A size such as 64MiB, as an int of bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Reads it."""
        from coldstream.errors import UsageError
        from coldstream.units import parse_bytes

        if isinstance(value, int):
            return value
        try:
            return parse_bytes(str(value))
        except UsageError as exc:
            self.fail(f"{exc.message}; {exc.hint}", param, ctx)
