"""The questions of `coldstream setup --write-env`, and the file that the answers go to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from coldstream.cli.session import echo
from coldstream.errors import ConfigError, DiskError
from coldstream.machine.child_environment import SECRETS
from coldstream.settings import ENDPOINTS, VARIABLES, Settings, is_placeholder, mask

ANSWER = "your answer"
# What is written, and the variables whose values count.
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
# What a shell, dotenv, docker, podman and kubectl all read as it stands.
_PLAIN = re.compile(r"[A-Za-z0-9%+,./:=@_-]+")
_AWS = "aws"
_KEY, _SECRET, _TOKEN = "R2_ACCESS_KEY", "R2_SECRET_KEY", "R2_SESSION_TOKEN"
_BELONGING = {"R2_ENDPOINT": (_KEY, _SECRET, _TOKEN), _KEY: (_SECRET, _TOKEN)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something to ask.

    Attributes:
        name: The variable that the answer is the value of.
        text: For people.
        check: Returns the answer as it is kept, or raises ConfigError for one that cannot be right.
    """

    name: str
    text: str
    check: Callable[[str], str]


def checked_endpoint(text: str) -> str:
    """An endpoint as it is kept; Cloudflare's account ID means its URL, `aws` means AWS itself."""
    if text.lower() == _AWS:
        return _AWS
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return f"https://{text}.r2.cloudflarestorage.com"
    return _settings_of("R2_ENDPOINT", text).endpoint() or text


def checked_bucket(text: str) -> str:
    """A bucket's name."""
    name = text.removeprefix("s3://").rstrip("/")
    return _settings_of("R2_BUCKET", name).store_uri().removeprefix("s3://")


def checked_key(text: str) -> str:
    """One of a pair of keys."""
    if not re.fullmatch(r"[!-~]+", text) or {*text} & {*"'\"`"}:
        raise ConfigError("a key holds no spaces, quotes or control characters", hint="copy it again, by itself")
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
    """The variables that have no value. None where a store is named as a whole; no keys where a profile has them."""
    if settings.get("COLDSTREAM_STORE"):
        return []
    names = NAMES[:2] if settings.get("AWS_PROFILE") else NAMES
    return [name for name in names if not settings.get(*_TWINS[name])]


def ask(settings: Settings, names: Collection[str]) -> Settings:
    """Asks for these variables on the terminal, each until its answer can be right; the old value is offered.

    On AWS keys may be left out: a profile or a role has them.
    """
    for question in QUESTIONS:
        name, old = question.name, settings.get(*_TWINS[question.name])
        if name not in names or (name == _SECRET and not settings.get(*_TWINS[_KEY])):
            continue
        optional = name in {_KEY, _SECRET} and settings.get(*ENDPOINTS) is None
        value = _answer(question, old, optional=optional)
        settings = with_value(settings, name, value)
        if value != (old or _AWS):
            # What belongs to the old endpoint, or to the old key, opens nothing now.
            for stale in _BELONGING.get(name, ()):
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
        # The default is shown by us: click would show a secret, or nothing.
        text = click.prompt(
            f"{question.text}{shown}",
            default=old or ("" if optional else None),
            show_default=False,
            hide_input=secret,
            err=True,
        ).strip()
        try:
            if is_placeholder(text):
                raise ConfigError("that is a placeholder", hint="the dashboard that made the key shows the real value")
            return question.check(text) if text or not optional else ""
        except ConfigError as exc:
            echo(f"  {exc.message}" + (f"; {exc.hint}" if exc.hint else ""), err=True)


def with_value(settings: Settings, name: str, value: str) -> Settings:
    """The settings with an answer, which counts instead of the variable's twins; an empty one removes them."""
    values = {known: old for known, old in settings.values.items() if known not in _TWINS[name]}
    if value not in {"", _AWS}:
        values[name] = value
    return replace(settings, values=values, origins={**settings.origins, name: ANSWER})


def check_place(path: Path) -> None:
    """Finds out before the questions whether their answers can be kept.

    Raises:
        DiskError: They cannot.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        fault = "its folder does not exist"
    elif path.is_dir():
        fault = "it is a folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        fault = "its folder is not writable by this user"
    else:
        return
    raise DiskError(f"cannot write {path}: {fault}", hint="name another file: --env-file FILE", target=str(path))


def write(settings: Settings, path: Path, environ: Mapping[str, str]) -> list[str]:
    """Merges the settings into a file, which is replaced atomically and readable by its owner only.

    Args:
        settings: Of which those are written that say where the bucket is and how to get in.
        path: The file, which may be absent.
        environ: The environment, which beats the file.

    Returns:
        What to tell the user.

    Raises:
        ConfigError: A value, or the file as it is, cannot be kept.
        DiskError: The disk refuses.
    """
    from coldstream.machine.atomic_file import write_atomically

    values = {name: settings.get(*twins) for name, twins in _TWINS.items()}
    ours = {name: value for name, value in values.items() if value}
    for name, value in ours.items():
        if any(character in value for character in "'\n\r"):
            raise ConfigError(f"{name} holds a quote or a line break and cannot be written to {path}")
    try:
        lines = path.read_text("utf-8-sig").splitlines() if path.exists() else []
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the settings file {path} is not UTF-8", hint="save it as UTF-8 text") from exc
    # What was answered with nothing leaves the file too.
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
        notes.append(f"warning: {', '.join(quoted)} is in quotes, which {others} take as part of the value")
    beaten = [name for name, value in ours.items() if environ.get(name, value).strip() not in {"", value}]
    if beaten:
        notes.append(f"warning: {', '.join(beaten)} in the environment differ, and win: unset them")
    return notes


def _settings_of(name: str, value: str) -> Settings:
    return Settings(values={name: value}, origins={name: ANSWER}, looked_in=())
