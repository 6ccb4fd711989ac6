"""`coldstream cache`."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from coldstream.cli.session import EXIT_CODES, Group, Size, State, common_options, confirm
from coldstream.cli.table import table_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldstream.cache.cache import Cache
    from coldstream.cache.space import Entry

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A span of time such as 7d, as a float of seconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads it."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not an age; write it like 7d, 12h or 30m", param, ctx)
        return float(match[1]) * _UNIT_SECONDS[match[2]]


@click.group(cls=Group, epilog=EXIT_CODES)
def command() -> None:
    """Show and empty this machine's copies of models.

    \b
    coldstream cache list                        what lies there
    coldstream cache prune --keep 200GB          remove the least recently used
    vllm serve $(coldstream cache path Qwen/Qwen3-8B)

    A load fills the cache behind itself, and the next one reads from it. It lies in ~/.cache/coldstream
    [env: COLDSTREAM_CACHE_DIR, XDG_CACHE_HOME] and holds at most COLDSTREAM_CACHE_LIMIT; without that, half of the
    disk, leaving a tenth of it or 10 GB free. Models in use are never removed.
    """


@command.command("list", epilog=EXIT_CODES)
@common_options
def list_(state: State) -> None:
    """Show the copies, the most recently used first.

    \b
    coldstream cache list
    coldstream cache list --json | jq '.copies[] | select(.complete).folder'

    States: complete; partial (a load was broken off; the next one goes on from there); writing (a load is filling
    it). With "in use": a process holds it.
    """
    cache = _cache(state)
    entries = cache.entries()[::-1]
    used = sum(entry.bytes for entry in entries)
    limit = cache.limit_bytes(used)
    document = {
        "folder": str(cache.root),
        "limit_bytes": limit,
        "bytes": used,
        "copies": [_as_json(entry) for entry in entries],
    }
    state.show(document, _table(cache, entries, used, limit))


@command.command(epilog=EXIT_CODES)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every copy that is not in use.")
@click.option("--keep", "keep_bytes", type=Size(), help="Stop when what is left takes no more than this.")
@click.option("--older-than", "older_seconds", type=Age(), help="Only what was not used for so long: 30m, 12h, 7d, 4w.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --all.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@common_options
def prune(
    state: State,
    names: tuple[str, ...],
    everything: bool,
    keep_bytes: int | None,
    older_seconds: float | None,
    yes: bool,
    dry_run: bool,
) -> int:
    """Remove copies, the least recently used first, and what broken-off removals left.

    \b
    coldstream cache prune Qwen/Qwen3-8B
    coldstream cache prune --keep 200GB
    coldstream cache prune --older-than 7d --dry-run
    coldstream cache prune --all --yes

    A copy in use stays. When one that was named stays for that reason, the exit code is 3.
    """
    from coldstream.errors import NotFoundError, UsageError
    from coldstream.units import format_bytes, plural

    if everything and names:
        raise UsageError("--all and names exclude each other", hint="see: coldstream cache prune --help")
    if not (everything or names) and keep_bytes is None and older_seconds is None:
        raise UsageError("nothing says what to remove", hint="name a model, or add --keep, --older-than or --all")
    cache = _cache(state)
    before = cache.entries()
    if missing := [name for name in names if all(entry.name != name for entry in before)]:
        raise NotFoundError(f"{missing[0]} is not in the cache {cache.root}", hint="see: coldstream cache list")
    if everything and not (yes or dry_run):
        _confirm(cache, before)
    removed = cache.prune(keep_bytes=keep_bytes or 0, names=names, older_seconds=older_seconds, dry_run=dry_run)
    held = [entry for entry in before if entry.in_use and (not names or entry.name in names)]
    freed = sum(entry.bytes for entry in removed)
    document = {
        "removed": [_as_json(entry) for entry in removed],
        "bytes": freed,
        "in_use": [_as_json(entry) for entry in held],
        "dry_run": dry_run,
    }
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb}   {entry.name}   {_short(entry.version)}   {format_bytes(entry.bytes)}" for entry in removed]
    state.show(document, "\n".join([*lines, f"{verb}   {plural(len(removed), 'model')}, {format_bytes(freed)}"]))
    for entry in held:
        state.say(f"kept   {entry.name}   {_short(entry.version)}   in use")
    return 3 if names and held else 0


@command.command(epilog=EXIT_CODES)
@click.argument("name", metavar="[NAME]", required=False)
@common_options
def path(state: State, name: str | None) -> None:
    """Print the folder of a complete copy, the most recently used one; without a name, that of the whole cache.

    \b
    vllm serve $(coldstream cache path Qwen/Qwen3-8B)
    du -sh $(coldstream cache path)
    """
    from coldstream.errors import NotFoundError

    cache = _cache(state)
    if name is None:
        state.show({"path": str(cache.root)}, str(cache.root))
        return
    copies = [entry for entry in cache.entries() if entry.name == name]
    whole = [entry for entry in copies if entry.complete]
    if not whole:
        what = "is not complete in" if copies else "is not in"
        raise NotFoundError(f"{name} {what} the cache {cache.root}", hint="a load fills it; see: coldstream cache list")
    entry = whole[-1]
    state.show({"path": str(entry.folder), "name": entry.name, "version": entry.version}, str(entry.folder))


def _cache(state: State) -> Cache:
    from coldstream.cache.cache import cache_of

    settings = state.settings()
    return cache_of(settings)


def _confirm(cache: Cache, entries: Sequence[Entry]) -> None:
    from coldstream.units import format_bytes, plural

    free = [entry for entry in entries if not entry.in_use]
    what = f"{plural(len(free), 'model')}, {format_bytes(sum(entry.bytes for entry in free))}, in {cache.root}"
    confirm("delete", what)


def _table(cache: Cache, entries: Sequence[Entry], used: int, limit: int) -> str:
    from datetime import datetime, timezone

    from coldstream.units import format_age, format_bytes

    total = f"{format_bytes(used)} of at most {format_bytes(limit)} in {cache.root}"
    if not entries:
        return f"no models in {cache.root}; it may hold {format_bytes(limit)}"
    now = datetime.now(timezone.utc)
    rows = [("MODEL", "VERSION", "SIZE", "STATE", "LAST USED")]
    rows += [
        (
            entry.name,
            _short(entry.version),
            format_bytes(entry.bytes),
            _state(entry),
            format_age((now - entry.used).total_seconds()),
        )
        for entry in entries
    ]
    return f"{table_text(rows)}\n{total}"


def _state(entry: Entry) -> str:
    if entry.complete:
        return "complete, in use" if entry.in_use else "complete"
    share = f" {min(100 * entry.bytes // max(entry.bytes_total, 1), 99)} %"
    if entry.writing:
        return f"writing{share}"
    return f"partial{share}, in use" if entry.in_use else f"partial{share}"


def _short(version: str) -> str:
    """As much of a version as tells it from others."""
    return version.removeprefix("sha256:")[:12]


def _as_json(entry: Entry) -> dict[str, Any]:
    return asdict(entry) | {"folder": str(entry.folder), "used": entry.used.isoformat()}
