"""`coldstream setup`: its checks, the questions of --write-env, and the file that the answers are written to."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from coldstream.cli.output import checks_text, echo, echo_check
from coldstream.cli.session import State, write_file
from coldstream.cli.verbs import Verb, negative_flag
from coldstream.errors import ColdstreamError, ConfigError, DiskError, UsageError
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.child_environment import SECRETS
from coldstream.operate import probe
from coldstream.operate.probe import Check
from coldstream.places.opening import open_store
from coldstream.settings import ENDPOINTS, Settings, is_placeholder, mask

_SECRET_EXPORTS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
ANSWER = "your answer"
# The variables that are written, and the ones that they replace.
_TWINS: Mapping[str, tuple[str, ...]] = {
    "COLDSTREAM_STORE": ("COLDSTREAM_STORE",),
    "R2_ENDPOINT": ENDPOINTS,
    "R2_BUCKET": ("R2_BUCKET",),
    "R2_ACCESS_KEY": ("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    "R2_SECRET_KEY": ("R2_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
    "R2_SESSION_TOKEN": ("R2_SESSION_TOKEN", "AWS_SESSION_TOKEN"),
    "R2_CDN_DOMAIN": ("R2_CDN_DOMAIN",),
    "HF_TOKEN": ("HF_TOKEN",),
    "COLDSTREAM_BUNDLE_KEY": ("COLDSTREAM_BUNDLE_KEY",),
}
# Values that a shell, dotenv, docker, podman and kubectl all read the same way without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9%+,./:=@_-]+")
_AWS = "aws"
_KEY, _SECRET, _TOKEN = "R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN"
# Answering one invalidates the others.
_DEPENDENT = {"R2_ENDPOINT": (_KEY, _SECRET, _TOKEN), _KEY: (_SECRET, _TOKEN)}


@click.command(cls=Verb)
@click.option(
    "--location", metavar="HINT", help="Location of a new bucket: wnam, enam, weur, eeur, apac, oc, or a region."
)
@negative_flag("--no-create", "Do not create a missing bucket.")
@click.option("--write-env", is_flag=True, help="Ask for the settings, check them and write them to .env.")
@click.option("--bundle-key", is_flag=True, help="Add a key that signs warm-start bundles to .env if it has none.")
@click.option("--show-secrets", is_flag=True, help="Print the export lines with unmasked keys.")
@click.option("--exports-only", is_flag=True, help="Print only the export lines; do not use the network.")
def command(
    state: State,
    location: str | None,
    create: bool,
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
        check_place(path)
    settings = _drafted(state, ask_all=write_env, bundle_key=bundle_key) if writes else state.settings()
    if exports_only:
        echo("\n".join(_export_lines(probe.exports(settings), show_secrets=show_secrets)))
        return 0
    while True:
        checks = _checks(state, settings, create=create, location=location)
        failed = [check for check in checks if check.state == "fail"]
        if not (failed and write_env and _is_interactive(settings)):
            break
        click.confirm("nothing is written yet; answer again?", default=True, abort=True, err=True)
        settings = ask(settings, NAMES)
    lines = [] if failed else _export_lines(probe.exports(settings), show_secrets=show_secrets)
    masked = "" if show_secrets else " (keys masked; see --show-secrets)"
    exports = [f"\n# for the AWS CLI and vLLM{masked}:", *lines] if lines else []
    document = {"checks": [check.document() for check in checks], "exports": lines}
    state.show(document, "\n".join([checks_text(Counter(check.state for check in checks)), *exports]))
    if writes:
        for note in [f"{path} was not written: a check failed"] if failed else write(settings, path, os.environ):
            state.say(note)
    if lines:
        state.say("\nnext:  coldstream upload Qwen/Qwen3-8B")
    return max((check.exit_code for check in failed), default=0)


def _drafted(state: State, *, ask_all: bool, bundle_key: bool) -> Settings:
    """The settings to check and write, including the user's answers."""
    settings = state.settings(draft=True)
    if bundle_key and not settings.get("COLDSTREAM_BUNDLE_KEY"):
        settings = with_value(settings, "COLDSTREAM_BUNDLE_KEY", secrets.token_hex(32))
    missing = unanswered(settings)
    if _is_interactive(settings):
        return ask(settings, NAMES if ask_all else missing)
    if "R2_BUCKET" in missing:
        message = f"{', '.join(missing)} not set in {' or '.join(settings.looked_in)}"
        raise ConfigError(message, hint="set them, or run this command in a terminal")
    return settings


def _is_interactive(settings: Settings) -> bool:
    """Whether to ask questions: on a terminal, unless COLDSTREAM_STORE answers them all."""
    return sys.stdin.isatty() and not settings.get("COLDSTREAM_STORE")


def _checks(state: State, settings: Settings, *, create: bool, location: str | None) -> list[Check]:
    """Checks the configuration and, if it is valid, the bucket; prints each result at once."""
    checks: list[Check] = []

    def note(*results: Check | None) -> bool:
        for check in filter(None, results):
            checks.append(check)
            if not state.json:
                echo_check(check, 20)
        return not any(check and check.state == "fail" for check in results)

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


def _checked_endpoint(text: str) -> str:
    """The endpoint's URL for a URL or a Cloudflare account ID; `aws` stays."""
    if text.lower() == _AWS:
        return _AWS
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return f"https://{text}.r2.cloudflarestorage.com"
    return _settings_of("R2_ENDPOINT", text).endpoint() or text


def _checked_bucket(text: str) -> str:
    """A bucket's name, also from `s3://name/`."""
    name = text.removeprefix("s3://").rstrip("/")
    return _settings_of("R2_BUCKET", name).store_uri().removeprefix("s3://")


def _checked_key(text: str) -> str:
    """Either half of a key pair."""
    if not re.fullmatch(r"[!-~]+", text) or {*text} & {*"'\"`"}:
        raise ConfigError("a key cannot contain spaces, quotes or control characters", hint="copy only the key")
    return text


def _settings_of(name: str, value: str) -> Settings:
    return Settings(values={name: value}, origins={name: ANSWER}, looked_in=())


# By variable: the text, and what returns the value to store for an answer, or raises ConfigError for an invalid one.
QUESTIONS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "R2_ENDPOINT": (
        "endpoint (https://<account>.r2.cloudflarestorage.com, or just the account ID, or aws)",
        _checked_endpoint,
    ),
    "R2_BUCKET": ("bucket", _checked_bucket),
    _KEY: ("access key id", _checked_key),
    _SECRET: ("secret access key (not shown)", _checked_key),
}
NAMES = tuple(QUESTIONS)


def unanswered(settings: Settings) -> list[str]:
    """The required variables without a value: none with COLDSTREAM_STORE, no keys with AWS_PROFILE."""
    if settings.get("COLDSTREAM_STORE"):
        return []
    names = NAMES[:2] if settings.get("AWS_PROFILE") else NAMES
    return [name for name in names if not settings.get(*_TWINS[name])]


def ask(settings: Settings, names: Collection[str]) -> Settings:
    """Asks for these variables on the terminal, each until the answer is valid; the old value is the default."""
    for name in QUESTIONS:
        old = settings.get(*_TWINS[name])
        if name not in names or (name == _SECRET and not settings.get(*_TWINS[_KEY])):
            continue
        # On AWS, a profile or a role can provide the keys.
        value = _answer(name, old, optional=name in {_KEY, _SECRET} and settings.get(*ENDPOINTS) is None)
        settings = with_value(settings, name, value)
        if value != (old or _AWS):
            for stale in _DEPENDENT.get(name, ()):
                settings = with_value(settings, stale, "")
    return settings


def _answer(name: str, old: str | None, *, optional: bool) -> str:
    (question, check), is_secret = QUESTIONS[name], name in SECRETS
    try:
        old = check(old) if old else None
    except ConfigError:
        old = None
    # The text shows the default: click would show a secret, or nothing.
    shown = f" [{mask(old) if is_secret else old}]" if old else " (empty: the AWS profile or role)" if optional else ""
    default = old or ("" if optional else None)
    while True:
        prompt = f"{question}{shown}"
        text = click.prompt(prompt, default=default, show_default=False, hide_input=is_secret, err=True).strip()
        try:
            if is_placeholder(text):
                raise ConfigError("that is a placeholder", hint="copy the value from the dashboard that created it")
            return check(text) if text or not optional else ""
        except ConfigError as exc:
            echo(f"  {exc.message}" + (f"; {exc.hint}" if exc.hint else ""), err=True)


def with_value(settings: Settings, name: str, value: str) -> Settings:
    """The settings with a new value, which replaces all twins of the variable; an empty value removes them."""
    values = {known: old for known, old in settings.values.items() if known not in _TWINS[name]}
    if value not in {"", _AWS}:
        values[name] = value
    return replace(settings, values=values, origins={**settings.origins, name: ANSWER})


def check_place(path: Path) -> None:
    """Raises DiskError, before the questions, if the answers cannot be written to `path`."""
    folder = path.resolve().parent
    if not folder.is_dir():
        fault = "its directory does not exist"
    elif path.is_dir():
        fault = "it is a directory"
    elif not os.access(folder, os.W_OK | os.X_OK):
        fault = "its directory is not writable by this user"
    else:
        return
    raise DiskError(f"cannot write {path}: {fault}", hint="name another file: --env-file FILE", target=str(path))


def write(settings: Settings, path: Path, environ: Mapping[str, str]) -> list[str]:
    """Merges the settings into a file, which is replaced atomically with mode 0600; returns messages for the user."""
    values = {name: settings.get(*twins) for name, twins in _TWINS.items()}
    ours = {name: value for name, value in values.items() if value}
    for name, value in ours.items():
        if any(character in value for character in "'\n\r"):
            raise ConfigError(f"{name} contains a quote or a line break and cannot be written to {path}")
    try:
        lines = path.read_text("utf-8-sig").splitlines() if path.exists() else []
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the settings file {path} is not UTF-8", hint="save it as UTF-8 text") from exc
    # An empty answer removes a variable from the file.
    dropped = {*ours, *(name for name in _TWINS if settings.origins.get(name) == ANSWER)}
    kept = [line for line in lines if line.removeprefix("export ").partition("=")[0].strip() not in dropped]
    quoted = [name for name, value in ours.items() if not _PLAIN.fullmatch(value)]
    new = [f"{name}='{value}'" if name in quoted else f"{name}={value}" for name, value in ours.items()]
    text = "\n".join([*kept, *new]) + "\n"
    write_file(path, text.encode(), write=lambda path, data: write_atomically(path.resolve(), data))
    notes = [f"wrote {', '.join(ours)} to {path}, readable only by you; keep it out of version control"]
    if quoted:
        others = "docker and podman (--env-file) and kubectl (--from-env-file)"
        notes.append(f"warning: {', '.join(quoted)} is in quotes, which {others} read as part of the value")
    overridden = [name for name, value in ours.items() if environ.get(name, value).strip() not in {"", value}]
    if overridden:
        notes.append(f"warning: {', '.join(overridden)} in the environment override this file; unset them")
    return notes
