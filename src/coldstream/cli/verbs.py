"""Commands and groups of commands, and the options that several commands share with the types of their values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from coldstream.cli.session import State
from coldstream.errors import UsageError
from coldstream.units import parse_bytes

F = TypeVar("F", bound=Callable[..., Any])
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
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


class ParsedType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A value that `parse` converts from text. It raises UsageError for an invalid one."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except UsageError as exc:
            self.fail(exc.message + (f"; {exc.hint}" if exc.hint else ""), param, ctx)


def count(least: int, most: int) -> ParsedType:
    """The type of a whole number within bounds."""

    def parse(text: str) -> int:
        if not (re.fullmatch(r"\s*\d{1,18}\s*", text) and least <= int(text) <= most):
            raise UsageError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return ParsedType("N", parse)


def _parse_age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not an age", hint="write it like 7d, 12h or 30m")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _parse_speed(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg])bit(?:/s)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is not a speed", hint="write it like 10Gbit or 500Mbit")
    return float(match[1]) * _BITS[match[2].lower()] / 8


# In bytes, seconds, and bytes per second.
SIZE, AGE, SPEED = ParsedType("SIZE", parse_bytes), ParsedType("AGE", _parse_age), ParsedType("SPEED", _parse_speed)


def options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds several options, in this order."""

    def decorate(function: F) -> F:
        for option in reversed(declared):
            function = option(function)
        return function

    return decorate


def negative_flag(name: str, summary: str) -> Callable[[F], F]:
    """A flag such as --no-cache, whose parameter is positive: `cache`."""
    parameter = name.removeprefix("--no-").replace("-", "_")
    return click.option(name, parameter, is_flag=True, callback=lambda _ctx, _param, value: not value, help=summary)


def _set(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """A callback for options that become settings."""
    assert param.name is not None
    ctx.ensure_object(State).flags[f"COLDSTREAM_{param.name.upper()}"] = None if value is None else str(value)


def _set_chart(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None and param.name is not None:
        ctx.ensure_object(State).charts[param.name] = value


def setting(*names: str, callback: Callable[..., None] = _set, **attributes: Any) -> Callable[[F], F]:
    """An option that sets the variable COLDSTREAM_NAME and is not passed to the function."""
    return click.option(*names, callback=callback, expose_value=False, **attributes)


transfer_options = options(
    click.option("--connections", type=count(1, 256), default=8, help="Parallel transfers."),
    click.option("--memory", "memory_bytes", type=SIZE, default="640MiB", help="Memory limit for data in flight."),
)
# The parameters of `load_options`, which have the names of fields of `coldstream.loading.options.Options`.
LOAD_OPTIONS = ("connections", "memory", "workers", "via", "cache", "verify")
load_options = options(
    click.option(
        "--connections",
        type=count(1, 1024),
        help="Maximum parallel connections; the actual number adapts to the bucket.  "
        "[default: 32 per core, from 64 to 1,024, as the network card needs]",
    ),
    click.option(
        "--memory", type=SIZE, help="Memory limit for data in flight.  [default: half of the available memory]"
    ),
    click.option("--workers", type=count(1, 64), help="Streaming processes.  [default: one per core, at most 64]"),
    click.option(
        "--via",
        type=click.Choice(["auto", "cdn", "s3"]),
        default="auto",
        help="Read weights through the CDN or from the bucket itself; auto prefers a configured CDN.  "
        "[env: R2_CDN_DOMAIN]",
    ),
    negative_flag("--no-cache", "Skip the local cache."),
    negative_flag("--no-verify", "Skip the check against the manifest's hashes."),
)
metrics_options = options(
    setting(
        "--metrics-port",
        type=count(0, 65535),
        help="Serve Prometheus metrics on this port while running (0 picks a free port).  "
        "[env: COLDSTREAM_METRICS_PORT]",
    ),
    setting("--metrics-host", metavar="ADDRESS", help="Address to serve metrics on.  [default: 127.0.0.1]"),
    setting("--metrics-file", type=FILE, help="Write the metrics to this .prom file at the end, for node_exporter."),
)
chart_options = options(
    setting(
        "--html", "html_file", type=FILE, callback=_set_chart, help="Write the charts to a self-contained HTML page."
    ),
    setting("--png", "png_file", type=FILE, callback=_set_chart, help="Write the charts to a PNG image."),
)
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Show what would be done without doing it.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
vllm_option = click.option(
    "--vllm", "program", metavar="PATH", help="The vllm program.  [default: next to coldstream, else on the PATH]"
)


def deployment_options(command: str) -> Callable[[F], F]:
    """Adds the flags of `template` or `launch`; their parameters have the names of the fields of `DeployOptions`."""
    from coldstream.fleet.deploy_options import DEFAULTS, FLAGS

    declared = []
    for field, flag in FLAGS.items():
        default, kind = DEFAULTS[field], click.Choice(flag.choices) if flag.choices else None
        is_text = isinstance(default, (str, int)) and not isinstance(default, bool)
        option = click.option(
            flag.name,
            field,
            type=click.IntRange(*flag.bounds) if flag.bounds else kind,
            metavar=flag.metavar,
            is_flag=isinstance(default, bool) or "/" in flag.name,
            # click 8.3 takes an explicit None for the value of a required option.
            **({"required": True} if default is MISSING else {"default": default if is_text else None}),
            help=flag.help,
        )
        declared += [option] if command in flag.commands else []
    return options(*declared)
