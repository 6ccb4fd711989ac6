"""Options that several commands share, each declared once, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, TypeVar

import click

from coldstream.cli.groups import FILE
from coldstream.cli.session import State
from coldstream.errors import UsageError
from coldstream.units import parse_bytes

F = TypeVar("F", bound=Callable[..., Any])
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}


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


def negated(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool:  # click's signature
    """A callback for flags like --no-cache, whose parameters are positive."""
    return not value


def _set(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """A callback for options that become settings."""
    assert param.name is not None
    ctx.ensure_object(State).flags[f"COLDSTREAM_{param.name.upper()}"] = None if value is None else str(value)


def setting(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option that sets the variable COLDSTREAM_NAME and is not passed to the function."""
    return click.option(name, callback=_set, expose_value=False, **attributes)


transfer_options = options(
    click.option("--connections", type=count(1, 256), default=8, help="Parallel transfers."),
    click.option("--memory", "memory_bytes", type=SIZE, default="640MiB", help="Memory limit for data in flight."),
)
# The parameters have the names of the fields of `coldstream.loading.options.Options`.
load_options = options(
    click.option(
        "--connections",
        type=count(1, 1024),
        default=64,
        help="Maximum parallel connections; the actual number adapts to the bucket.",
    ),
    click.option(
        "--memory", type=SIZE, help="Memory limit for data in flight.  [default: half of the available memory]"
    ),
    click.option("--workers", type=count(1, 64), help="Streaming processes.  [default: one per core, at most 8]"),
    click.option(
        "--via",
        type=click.Choice(["auto", "cdn", "s3"]),
        default="auto",
        help="Read weights through the CDN or from the bucket itself; auto prefers a configured CDN.  "
        "[env: R2_CDN_DOMAIN]",
    ),
    click.option("--no-cache", "cache", is_flag=True, callback=negated, help="Skip the local cache."),
    click.option(
        "--no-verify", "verify", is_flag=True, callback=negated, help="Skip the check against the manifest's hashes."
    ),
)
# See `coldstream.telemetry.metrics.measuring`.
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
    click.option("--html", "html_file", type=FILE, help="Write the charts to a self-contained HTML page."),
    click.option("--png", "png_file", type=FILE, help="Write the charts to a PNG image."),
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
