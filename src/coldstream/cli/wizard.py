"""The questions of `coldstream setup --write-env` and the file that their answers are written to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from coldstream.cli.output import echo
from coldstream.errors import ConfigError, DiskError
from coldstream.machine.child_environment import SECRETS
from coldstream.settings import ENDPOINTS, VARIABLES, Settings, is_placeholder, mask

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question for the value of the variable `name`.

    Attributes:
        check: Returns the value to store for an answer, or raises ConfigError for an invalid one.
    """

    name: str
    text: str
    check: Callable[[str], str]


def checked_endpoint(text: str) -> str:
    """The endpoint's URL for a URL or a Cloudflare account ID; `aws` stays."""
    if text.lower() == _AWS:
        return _AWS
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return f"https://{text}.r2.cloudflarestorage.com"
    return _settings_of("R2_ENDPOINT", text).endpoint() or text


def checked_bucket(text: str) -> str:
    """A bucket's name, also from `s3://name/`."""
    name = text.removeprefix("s3://").rstrip("/")
    return _settings_of("R2_BUCKET", name).store_uri().removeprefix("s3://")


def checked_key(text: str) -> str:
    """Either half of a key pair."""
    if not re.fullmatch(r"[!-~]+", text) or {*text} & {*"'\"`"}:
        raise ConfigError("a key cannot contain spaces, quotes or control characters", hint="copy only the key")
    return text


QUESTIONS = (
    Question(
        name="R2_ENDPOINT",
        text="endpoint (https://<account>.r2.cloudflarestorage.com, or just the account ID, or aws)",
        check=checked_endpoint,
    ),
    Question(name="R2_BUCKET", text="bucket", check=checked_bucket),
    Question(name="R2_ACCESS_KEY", text="access key id", check=checked_key),
    Question(name="R2_SECRET_KEY", text="secret access key (not shown)", check=checked_key),
)
NAMES = tuple(question.name for question in QUESTIONS)


def unanswered(settings: Settings) -> list[str]:
    """The required variables without a value: none with COLDSTREAM_STORE, no keys with AWS_PROFILE."""
    if settings.get("COLDSTREAM_STORE"):
        return []
    names = NAMES[:2] if settings.get("AWS_PROFILE") else NAMES
    return [name for name in names if not settings.get(*_TWINS[name])]


def ask(settings: Settings, names: Collection[str]) -> Settings:
    """Asks for these variables on the terminal, each until the answer is valid; the old value is the default.

    On AWS, keys are optional: a profile or a role can provide them.
    """
    for question in QUESTIONS:
        name, old = question.name, settings.get(*_TWINS[question.name])
        if name not in names or (name == _SECRET and not settings.get(*_TWINS[_KEY])):
            continue
        optional = name in {_KEY, _SECRET} and settings.get(*ENDPOINTS) is None
        value = _answer(question, old, optional=optional)
        settings = with_value(settings, name, value)
        if value != (old or _AWS):
            for stale in _DEPENDENT.get(name, ()):
                settings = with_value(settings, stale, "")
    return settings


def _answer(question: Question, old: str | None, *, optional: bool) -> str:
    secret = question.name in SECRETS
    try:
        old = question.check(old) if old else None
    except ConfigError:
        old = None
    shown = f" [{mask(old) if secret else old}]" if old else " (empty: the AWS profile or role)" if optional else ""
    while True:
        # The text shows the default: click would show a secret, or nothing.
        text = click.prompt(
            f"{question.text}{shown}",
            default=old or ("" if optional else None),
            show_default=False,
            hide_input=secret,
            err=True,
        ).strip()
        try:
            if is_placeholder(text):
                raise ConfigError("that is a placeholder", hint="copy the value from the dashboard that created it")
            return question.check(text) if text or not optional else ""
        except ConfigError as exc:
            echo(f"  {exc.message}" + (f"; {exc.hint}" if exc.hint else ""), err=True)


def with_value(settings: Settings, name: str, value: str) -> Settings:
    """The settings with a new value, which replaces all twins of the variable; an empty value removes them."""
    values = {known: old for known, old in settings.values.items() if known not in _TWINS[name]}
    if value not in {"", _AWS}:
        values[name] = value
    return replace(settings, values=values, origins={**settings.origins, name: ANSWER})


def check_place(path: Path) -> None:
    """Checks before the questions that the answers can be written to `path`.

    Raises:
        DiskError: They cannot.
    """
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
    """Merges the settings of the bucket into a file, which is replaced atomically with mode 0600.

    Returns:
        Messages for the user.

    Raises:
        ConfigError: A value cannot be written, or the file is not UTF-8.
        DiskError: The file cannot be written.
    """
    from coldstream.machine.atomic_file import write_atomically

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
    assert all(name in VARIABLES for name in ours)
    try:
        write_atomically(path.resolve(), ("\n".join([*kept, *new]) + "\n").encode())
    except OSError as exc:
        raise DiskError(f"cannot write {path}: {exc.strerror or exc}", target=str(path)) from exc
    notes = [f"wrote {', '.join(ours)} to {path}, readable only by you; keep it out of version control"]
    if quoted:
        others = "docker and podman (--env-file) and kubectl (--from-env-file)"
        notes.append(f"warning: {', '.join(quoted)} is in quotes, which {others} read as part of the value")
    overridden = [name for name, value in ours.items() if environ.get(name, value).strip() not in {"", value}]
    if overridden:
        notes.append(f"warning: {', '.join(overridden)} in the environment override this file; unset them")
    return notes


def _settings_of(name: str, value: str) -> Settings:
    return Settings(values={name: value}, origins={name: ANSWER}, looked_in=())
