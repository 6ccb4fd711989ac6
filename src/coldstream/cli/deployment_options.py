"""The flags of `template` and `launch`, made from the fields of `DeployOptions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, TypeVar

import click

from coldstream.cli.shared_options import options
from coldstream.fleet.deploy_options import DEFAULTS, FLAGS, Flag

F = TypeVar("F", bound=Callable[..., Any])


def deployment_options(command: str) -> Callable[[F], F]:
    """Adds the flags of a command; their parameters have the names of the fields."""
    return options(*(_option(field, flag) for field, flag in FLAGS.items() if command in flag.commands))


def _option(field: str, flag: Flag) -> Callable[[F], F]:
    default = DEFAULTS[field]
    kind: Any = None
    if flag.choices:
        kind = click.Choice(flag.choices)
    elif flag.bounds:
        kind = click.IntRange(*flag.bounds)
    is_text = isinstance(default, (str, int)) and not isinstance(default, bool)
    return click.option(
        flag.name,
        field,
        type=kind,
        metavar=flag.metavar,
        is_flag=isinstance(default, bool) or "/" in flag.name,
        # click 8.3 takes an explicit None for the value of a required option.
        **({"required": True} if default is MISSING else {"default": default if is_text else None}),
        show_default=is_text,
        help=flag.help,
    )
