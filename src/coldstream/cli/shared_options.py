"""Options that several commands share, each declared once, and the types of their values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from coldstream.cli.session import State

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(dir_okay=False, path_type=Path)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}


class Count(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A whole number within bounds."""

    name = "N"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self._least - 1
        if not self._least <= number <= self._most:
            self.fail(f"{value!r} is not a whole number from {self._least} to {self._most}", param, ctx)
        return number


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A size such as 64MiB, as bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from coldstream.errors import UsageError
        from coldstream.units import parse_bytes

        try:
            return value if isinstance(value, int) else parse_bytes(str(value))
        except UsageError as exc:
            self.fail(f"{exc.message}; {exc.hint}", param, ctx)


class Age(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A duration such as 7d, as seconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not an age; write it like 7d, 12h or 30m", param, ctx)
        return float(match[1]) * _UNIT_SECONDS[match[2]]


class Link(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A network speed such as 10Gbit, as bytes per second."""

    name = "SPEED"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg])bit(?:/s)?", str(value).strip(), re.IGNORECASE)
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a speed; write it like 10Gbit or 500Mbit", param, ctx)
        return float(match[1]) * _BITS[match[2].lower()] / 8


def options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds several options, in this order."""

    def decorate(function: F) -> F:
        for option in reversed(declared):
            function = option(function)
        return function

    return decorate


def common_options(function: F) -> F:
    """Adds the options of every command, and passes a `State` as the first argument."""

    @options(
        click.option(
            "--store",
            metavar="URI",
            help="Bucket (s3://bucket[/prefix]) or folder of models.  [env: COLDSTREAM_STORE, R2_BUCKET]",
        ),
        click.option("--env-file", type=FILE, help="Read settings from this file instead of ./.env."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("-q", "--quiet", is_flag=True, help="Print only the result and errors."),
        click.option("--debug", is_flag=True, help="Show tracebacks of errors."),
    )
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
        **others: Any,
    ) -> Any:
        state.json, state.quiet, state.debug, state.env_file = as_json, quiet, debug, env_file
        state.flags["COLDSTREAM_STORE"] = store
        return function(state, *args, **others)

    return functools.update_wrapper(wrapped, function)  # type: ignore[return-value]


transfer_options = options(
    click.option("--connections", type=Count(1, 256), default=8, show_default=True, help="Parallel transfers."),
    click.option(
        "--memory",
        "memory_bytes",
        type=Size(),
        default="640MiB",
        show_default=True,
        help="Memory limit for data in flight.",
    ),
)


def negated(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool:  # click's signature
    """A callback for flags like --no-cache, whose parameters are positive."""
    return not value


# The parameters have the names of the fields of `coldstream.loading.options.Options`.
load_options = options(
    click.option(
        "--connections",
        type=Count(1, 1024),
        default=64,
        show_default=True,
        help="Maximum parallel connections; the actual number adapts to the bucket.",
    ),
    click.option(
        "--memory",
        type=Size(),
        help="Memory limit for data in flight.  [default: half of the available memory]",
    ),
    click.option("--workers", type=Count(1, 64), help="Streaming processes.  [default: one per core, at most 8]"),
    click.option(
        "--via",
        type=click.Choice(["auto", "cdn", "s3"]),
        default="auto",
        show_default=True,
        help="Read weights through the CDN or from the bucket itself; auto prefers a configured CDN.  "
        "[env: R2_CDN_DOMAIN]",
    ),
    click.option("--no-cache", "cache", is_flag=True, callback=negated, help="Skip the local cache."),
    click.option(
        "--no-verify", "verify", is_flag=True, callback=negated, help="Skip the check against the manifest's hashes."
    ),
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


def _setting(ctx: click.Context, param: click.Parameter, value: object) -> None:
    assert param.name is not None
    ctx.ensure_object(State).flags[f"COLDSTREAM_{param.name.upper()}"] = None if value is None else str(value)


# These become settings: see `coldstream.telemetry.metrics.measuring`.
metrics_options = options(
    click.option(
        "--metrics-port",
        type=Count(0, 65535),
        callback=_setting,
        expose_value=False,
        help="Serve Prometheus metrics on this port while running (0 picks a free port).  "
        "[env: COLDSTREAM_METRICS_PORT]",
    ),
    click.option(
        "--metrics-host",
        metavar="ADDRESS",
        callback=_setting,
        expose_value=False,
        help="Address to serve metrics on.  [default: 127.0.0.1]",
    ),
    click.option(
        "--metrics-file",
        type=FILE,
        callback=_setting,
        expose_value=False,
        help="Write the metrics to this .prom file at the end, for node_exporter.",
    ),
)
