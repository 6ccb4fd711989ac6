"""`coldstream setup`."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import click

from coldstream.cli import wizard
from coldstream.cli.groups import Verb
from coldstream.cli.output import checks_text, echo, echo_check
from coldstream.cli.session import State
from coldstream.errors import ColdstreamError, ConfigError, UsageError
from coldstream.operate import probe
from coldstream.operate.probe import Check
from coldstream.places.opening import open_store
from coldstream.settings import Settings, mask

_SECRET_EXPORTS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


@click.command(cls=Verb)
@click.option(
    "--location", metavar="HINT", help="Location of a new bucket: wnam, enam, weur, eeur, apac, oc, or a region."
)
@click.option("--no-create", is_flag=True, help="Do not create a missing bucket.")
@click.option("--write-env", is_flag=True, help="Ask for the settings, check them and write them to .env.")
@click.option("--bundle-key", is_flag=True, help="Add a key that signs warm-start bundles to .env if it has none.")
@click.option("--show-secrets", is_flag=True, help="Print the export lines with unmasked keys.")
@click.option("--exports-only", is_flag=True, help="Print only the export lines; do not use the network.")
def command(
    state: State,
    location: str | None,
    no_create: bool,
    write_env: bool,
    bundle_key: bool,
    show_secrets: bool,
    exports_only: bool,
) -> int:
    """Check the configuration and the bucket; create a missing bucket.

    \b
    coldstream setup                     check, and print AWS CLI variables
    coldstream setup --write-env         ask for endpoint, bucket and keys first
    coldstream setup --bundle-key        add the key that signs warm-start bundles
    coldstream setup --location weur     create the bucket in western Europe
    eval "$(coldstream setup --exports-only --show-secrets)"

    Reads R2_ENDPOINT, R2_BUCKET, R2_ACCESS_KEY and R2_SECRET_KEY, or their AWS_ equivalents, from the environment or
    .env. The file is written with mode 0600.
    """
    writes = write_env or bundle_key
    if writes and exports_only:
        raise UsageError("--exports-only cannot be combined with options that write .env", hint="leave one of them out")
    path = state.env_file or Path(".env")
    if writes:
        wizard.check_place(path)
    settings = _drafted(state, ask_all=write_env, bundle_key=bundle_key) if writes else state.settings()
    if exports_only:
        echo("\n".join(_export_lines(probe.exports(settings), show_secrets=show_secrets)))
        return 0
    while True:
        checks = _checks(state, settings, create=not no_create, location=location)
        failed = [check for check in checks if check.state == "fail"]
        if not (failed and write_env and _is_interactive(settings)):
            break
        click.confirm("nothing is written yet; answer again?", default=True, abort=True, err=True)
        settings = wizard.ask(settings, wizard.NAMES)
    lines = [] if failed else _export_lines(probe.exports(settings), show_secrets=show_secrets)
    masked = "" if show_secrets else " (keys masked; see --show-secrets)"
    exports = [f"\n# for the AWS CLI and vLLM{masked}:", *lines] if lines else []
    document = {"checks": [check.document() for check in checks], "exports": lines}
    state.show(document, "\n".join([checks_text(Counter(check.state for check in checks)), *exports]))
    if writes:
        for note in [f"{path} was not written: a check failed"] if failed else wizard.write(settings, path, os.environ):
            state.say(note)
    if lines:
        state.say("\nnext:  coldstream upload Qwen/Qwen3-8B")
    return max((check.exit_code for check in failed), default=0)


def _drafted(state: State, *, ask_all: bool, bundle_key: bool) -> Settings:
    """The settings to check and write, including the user's answers."""
    settings = state.settings(draft=True)
    if bundle_key and not settings.get("COLDSTREAM_BUNDLE_KEY"):
        settings = wizard.with_value(settings, "COLDSTREAM_BUNDLE_KEY", secrets.token_hex(32))
    missing = wizard.unanswered(settings)
    if _is_interactive(settings):
        return wizard.ask(settings, wizard.NAMES if ask_all else missing)
    if "R2_BUCKET" in missing:
        raise ConfigError(
            f"{', '.join(missing)} not set in {' or '.join(settings.looked_in)}",
            hint="set them, or run this command in a terminal",
        )
    return settings


def _is_interactive(settings: Settings) -> bool:
    """Whether to ask questions: on a terminal, unless COLDSTREAM_STORE answers them all."""
    return sys.stdin.isatty() and not settings.get("COLDSTREAM_STORE")


def _checks(state: State, settings: Settings, *, create: bool, location: str | None) -> list[Check]:
    """Checks the configuration and, if it is valid, the bucket; prints each result at once."""
    checks: list[Check] = []

    def note(*results: Check | None) -> bool:
        new = [check for check in results if check]
        checks.extend(new)
        for check in new if not state.json else ():
            echo_check(check, 20)
        return not any(check.state == "fail" for check in new)

    if not note(*probe.check_configuration(settings)):
        return checks
    store = open_store(settings, retry=state.new_retry(settings), connections=2)
    if endpoint := settings.endpoint():
        # The check of the bucket reports an unreachable endpoint.
        with suppress(ColdstreamError):
            note(probe.judged_clock(probe.probe_endpoint(endpoint, ca_bundle=settings.get("AWS_CA_BUNDLE")).date))
    if note(probe.check_bucket(store, create=create, location=location)):
        note(*probe.check_round_trip(store))
    return checks


def _export_lines(values: dict[str, str], *, show_secrets: bool) -> list[str]:
    return [
        f"export {name}={shlex.quote(value if show_secrets or name not in _SECRET_EXPORTS else mask(value))}"
        for name, value in values.items()
    ]
