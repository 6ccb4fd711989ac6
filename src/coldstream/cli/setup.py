"""`coldstream setup`."""

from __future__ import annotations

import secrets
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coldstream.cli.session import EXIT_CODES, State, coloured, common_options

if TYPE_CHECKING:
    from coldstream.env import Settings
    from coldstream.probe import Check

_WRITTEN = (
    "R2_ENDPOINT",
    "R2_BUCKET",
    "R2_ACCESS_KEY",
    "R2_SECRET_KEY",
    "R2_SESSION_TOKEN",
    "R2_CDN_DOMAIN",
    "HF_TOKEN",
    "COLDSTREAM_BUNDLE_KEY",
)
_ASKED = {
    "R2_ENDPOINT": ("endpoint (https://<account>.r2.cloudflarestorage.com)", False),
    "R2_BUCKET": ("bucket", False),
    "R2_ACCESS_KEY": ("access key id", False),
    "R2_SECRET_KEY": ("secret access key", True),
}
_SECRET_EXPORTS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


@click.command(epilog=EXIT_CODES)
@click.option(
    "--location", metavar="HINT", help="Where to create the bucket: wnam enam weur eeur apac oc, or a region."
)
@click.option("--no-create", is_flag=True, help="Do not create a missing bucket.")
@click.option("--write-env", is_flag=True, help="Write the settings to .env (mode 0600); asks for what is missing.")
@click.option(
    "--bundle-key",
    is_flag=True,
    help="Make a key that signs warm-start bundles, and keep it in .env; one that is there stays.",
)
@click.option("--show-secrets", is_flag=True, help="Print the export lines with the keys.")
@click.option("--exports-only", is_flag=True, help="Print the export lines alone, without touching the network.")
@common_options
def command(
    state: State,
    location: str | None,
    no_create: bool,
    write_env: bool,
    bundle_key: bool,
    show_secrets: bool,
    exports_only: bool,
) -> int:
    """Check the configuration and prove that the bucket works; create it if it is not there.

    \b
    coldstream setup                            check, and print what the AWS CLI and vLLM need
    coldstream setup --write-env                ask for what is missing and keep it in .env
    coldstream setup --bundle-key               make the key that signs warm-start bundles
    coldstream setup --location weur            create the bucket in western Europe
    eval "$(coldstream setup --exports-only --show-secrets)"

    Reads R2_ENDPOINT, R2_BUCKET, R2_ACCESS_KEY, R2_SECRET_KEY or their AWS_ twins from the environment or .env.
    """
    from coldstream import probe

    if bundle_key and not state.settings().get("COLDSTREAM_BUNDLE_KEY"):
        state.flags["COLDSTREAM_BUNDLE_KEY"] = secrets.token_hex(32)
    if write_env or bundle_key:
        _write_env(state)
    settings = state.settings()
    if exports_only:
        click.echo("\n".join(_export_lines(probe.exports(settings), show_secrets=show_secrets)))
        return 0
    checks = probe.check_configuration(settings)
    _print(state, checks)
    if not any(check.state == "fail" for check in checks):
        more = _network_checks(state, settings, create=not no_create, location=location)
        checks += more
    failed = [check for check in checks if check.state == "fail"]
    lines = [] if failed else _export_lines(probe.exports(settings), show_secrets=show_secrets)
    if state.json:
        state.show({"checks": [asdict(check) for check in checks], "exports": lines}, "")
    else:
        _epilogue(state, checks, lines, show_secrets=show_secrets)
    return max((check.exit_code for check in failed), default=0)


def _network_checks(state: State, settings: Settings, *, create: bool, location: str | None) -> list[Check]:
    from coldstream import probe

    checks: list[Check] = []

    def note(*found: Check | None) -> bool:
        new = [check for check in found if check]
        checks.extend(new)
        _print(state, new)
        return not any(check.state == "fail" for check in new)

    store = state.open_store(2)
    note(probe.check_clock(settings.endpoint()))
    if note(probe.check_bucket(store, create=create, location=location)):
        note(*probe.check_round_trip(store))
    return checks


def _print(state: State, checks: list[Check]) -> None:
    if state.json:
        return
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        click.echo(f"{coloured(f'{check.state:<5}', colours[check.state])} {check.name:<20} {check.found}")
        if check.hint and check.state != "ok":
            click.echo(f"{'':<26} {check.hint}")


def _epilogue(state: State, checks: list[Check], lines: list[str], *, show_secrets: bool) -> None:
    from coldstream.units import plural

    counts = {kind: sum(check.state == kind for check in checks) for kind in ("fail", "warn", "ok")}
    click.echo(f"{counts['fail']} failed, {plural(counts['warn'], 'warning')}, {counts['ok']} ok")
    if lines:
        masked = "" if show_secrets else " (keys masked; whole with --show-secrets)"
        click.echo(f"\n# for the AWS CLI and vLLM{masked}:")
        click.echo("\n".join(lines))
        state.say("\nnext:  coldstream upload Qwen/Qwen3-8B")


def _export_lines(values: dict[str, str], *, show_secrets: bool) -> list[str]:
    from coldstream.env import mask

    return [
        f"export {name}={shlex.quote(value if show_secrets or name not in _SECRET_EXPORTS else mask(value))}"
        for name, value in values.items()
    ]


def _write_env(state: State) -> None:
    """Merges the settings into the file, which is replaced atomically and readable by its owner alone."""
    import os
    import tempfile

    from coldstream.env import VARIABLES
    from coldstream.errors import ConfigError

    path = state.env_file or Path(".env")
    if state.env_file and not path.exists():
        path.touch(mode=0o600)
    settings = state.settings()
    twins = {
        "R2_ENDPOINT": ("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "R2_ACCESS_KEY": ("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        "R2_SECRET_KEY": ("R2_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
        "R2_SESSION_TOKEN": ("R2_SESSION_TOKEN", "AWS_SESSION_TOKEN"),
    }
    values = {name: settings.get(*twins.get(name, (name,))) for name in _WRITTEN}
    if settings.get("COLDSTREAM_STORE"):
        values["COLDSTREAM_STORE"] = settings.get("COLDSTREAM_STORE")
    missing = [name for name in _ASKED if not values[name]] if "COLDSTREAM_STORE" not in values else []
    if missing and not sys.stdin.isatty():
        raise ConfigError(
            f"{', '.join(missing)} not set in {' or '.join(settings.looked_in)}",
            hint="set them, or run this in a terminal to be asked",
        )
    for name in missing:
        text, hidden = _ASKED[name]
        values[name] = click.prompt(text, hide_input=hidden, err=True)
    ours = {name: value for name, value in values.items() if value}
    for name, value in ours.items():
        if any(character in value for character in "'\n\r"):
            raise ConfigError(f"{name} holds a quote or a line break and cannot be written to {path}")
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.removeprefix("export ").partition("=")[0].strip() not in ours]
    new = [f"{name}='{value}'" for name, value in ours.items()]
    assert all(name in VARIABLES for name in ours)
    descriptor, temporary = tempfile.mkstemp(prefix=".env-", dir=path.absolute().parent)  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join([*kept, *new]) + "\n")
    os.replace(temporary, path)
    state.say(f"wrote {', '.join(ours)} to {path}, readable by you alone; keep it out of version control")
