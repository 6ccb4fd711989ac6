"""`coldstream cache`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from coldstream.cache.cache import Cache, cache_of
from coldstream.cache.space import CachedCopy
from coldstream.cli.output import attributes, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.verbs import AGE, SIZE, Group, dry_run_option, yes_option
from coldstream.errors import NotFoundError, UsageError
from coldstream.runtime.node_runtimes import NodeRuntime, evict, node_runtimes
from coldstream.units import format_age, format_bytes, plural


@click.group(cls=Group)
def command() -> None:
    """List and prune this machine's local copies of models.

    \b
    coldstream cache list
    coldstream cache prune --keep 200GB          remove the least recently used
    vllm serve $(coldstream cache path Qwen/Qwen3-8B)

    A load writes to the cache in the background, and later loads read from it. The cache is in ~/.cache/coldstream
    [env: COLDSTREAM_CACHE_DIR, XDG_CACHE_HOME]. Its size limit is COLDSTREAM_CACHE_LIMIT; by default half of the disk,
    with a tenth of the disk or 10 GB left free. Models in use are never removed. On a bare node, the runtimes that were
    brought to it are listed and pruned, too.
    """


@command.command("list")
def list_(state: State) -> None:
    """List the copies, most recently used first.

    \b
    coldstream cache list
    coldstream cache list --json | jq '.copies[] | select(.complete).folder'

    States: complete; partial (a load was interrupted; the next one continues it); writing (a load is filling it).
    "in use" means that a process holds it.
    """
    cache = cache_of(state.settings())
    entries = cache.entries()[::-1]
    used = sum(entry.bytes for entry in entries)
    limit = cache.limit_bytes(used)
    copies = [_as_json(entry) for entry in entries]
    document = {"folder": str(cache.root), "limit_bytes": limit, "bytes": used, "copies": copies}
    runtimes = node_runtimes(cache.root, state.settings().get("COLDSTREAM_RUNTIME_DIR"))
    text = _table(cache, entries, used, limit) + ("\n\n" + _runtime_table(runtimes) if runtimes else "")
    state.show(document | {"runtimes": [_as_json(runtime) for runtime in runtimes]}, text)


@command.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove every copy that is not in use.")
@click.option("--keep", "keep_bytes", type=SIZE, help="Remove the least recently used until at most this is left.")
@click.option(
    "--older-than", "older_seconds", type=AGE, help="Remove only copies unused for this long: 30m, 12h, 7d, 4w."
)
@yes_option
@dry_run_option
def prune(state: State, names: tuple[str, ...], everything: bool, yes: bool, dry_run: bool, **limits: Any) -> int:
    """Remove copies, least recently used first.

    \b
    coldstream cache prune Qwen/Qwen3-8B
    coldstream cache prune --keep 200GB
    coldstream cache prune --older-than 7d --dry-run
    coldstream cache prune --all --yes

    Also deletes leftovers of interrupted removals. Copies in use are kept; the exit code is 3 if that applies to a
    model you named. --all asks for confirmation.

    A runtime on this node is named by its digest, sha256:…; --all and --older-than apply to runtimes, too. --keep does
    not.
    """
    chosen = {name: limit for name, limit in limits.items() if limit is not None}
    if everything and names:
        raise UsageError("--all cannot be combined with names", hint="see: coldstream cache prune --help")
    if not (everything or names or chosen):
        raise UsageError("no copies are selected", hint="name a model, or add --keep, --older-than or --all")
    cache = cache_of(state.settings())
    runtimes = node_runtimes(cache.root, state.settings().get("COLDSTREAM_RUNTIME_DIR"))
    before = cache.entries()
    models = [name for name in names if not name.startswith("sha256:")]
    known = {entry.name for entry in before} | {name for name in names for entry in runtimes if entry.is_named(name)}
    if missing := [name for name in names if name not in known]:
        raise NotFoundError(f"{missing[0]} is not in the cache {cache.root}", hint="run: coldstream cache list")
    if everything and not (yes or dry_run):
        free = [entry for entry in before if not entry.in_use]
        size = format_bytes(sum(entry.bytes for entry in free))
        also = f", and {plural(len(runtimes), 'runtime')}" if runtimes else ""
        confirm("delete", f"{plural(len(free), 'model')}, {size}, in {cache.root}{also}")
    removed: list[CachedCopy | NodeRuntime] = []
    if models or not names:
        removed += cache.prune(names=models, dry_run=dry_run, **chosen)
    held: list[CachedCopy | NodeRuntime] = []
    held += [entry for entry in before if entry.in_use and (not names or entry.name in names)]
    age = chosen.get("older_seconds", 0 if everything or names else None)
    for runtime in runtimes:
        is_old = age is not None and runtime.used.timestamp() <= time.time() - age
        if is_old and (not names or any(runtime.is_named(name) for name in names)):
            is_removed = not runtime.in_use if dry_run else evict(runtime)
            (removed if is_removed else held).append(runtime)
    freed = sum(entry.bytes for entry in removed)
    groups = {"removed": [_as_json(entry) for entry in removed], "in_use": [_as_json(entry) for entry in held]}
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb}   {entry.name}   {_short(entry.version)}   {format_bytes(entry.bytes)}" for entry in removed]
    count = sum(isinstance(entry, NodeRuntime) for entry in removed)
    what = plural(len(removed) - count, "model") + (f" and {plural(count, 'runtime')}" if count else "")
    text = "\n".join([*lines, f"{verb}   {what}, {format_bytes(freed)}"])
    state.show({**groups, "bytes": freed, "dry_run": dry_run}, text)
    for entry in held:
        state.say(f"kept   {entry.name}   {_short(entry.version)}   in use")
    return 3 if names and held else 0


@command.command()
@click.argument("name", metavar="[NAME]", required=False)
def path(state: State, name: str | None) -> None:
    """Print the directory of a complete copy, or of the whole cache.

    \b
    vllm serve $(coldstream cache path Qwen/Qwen3-8B)
    du -sh $(coldstream cache path)
    """
    cache = cache_of(state.settings())
    if name is None:
        state.show({"path": str(cache.root)}, str(cache.root))
        return
    copies = [entry for entry in cache.entries() if entry.name == name]
    whole = [entry for entry in copies if entry.complete]
    if not whole:
        what = "is not complete in" if copies else "is not in"
        raise NotFoundError(f"{name} {what} the cache {cache.root}", hint=f"run: coldstream load {shlex.quote(name)}")
    entry = whole[-1]
    state.show({"path": str(entry.folder), **attributes(entry, "name", "version")}, str(entry.folder))


def _table(cache: Cache, entries: Sequence[CachedCopy], used: int, limit: int) -> str:
    if not entries:
        return f"no models in {cache.root}; its limit is {format_bytes(limit)}"
    rows = [("MODEL", "VERSION", "SIZE", "STATE", "LAST USED")]
    for entry in entries:
        size, age = format_bytes(entry.bytes), format_age(entry.used)
        rows.append((entry.name, _short(entry.version), size, _state(entry), age))
    return f"{table_text(rows)}\n{format_bytes(used)} of at most {format_bytes(limit)} in {cache.root}"


def _runtime_table(runtimes: Sequence[NodeRuntime]) -> str:
    rows = [("RUNTIME", "SIZE", "STATE", "LAST USED", "FOLDER")]
    for entry in runtimes:
        words = ("mounted" if entry.mounted else "unpacked") + (", in use" if entry.in_use else "")
        folder = str(entry.folder.parent)
        rows.append((entry.version[:19], format_bytes(entry.bytes), words, format_age(entry.used), folder))
    return table_text(rows)


def _state(entry: CachedCopy) -> str:
    share = "" if entry.complete else f" {min(100 * entry.bytes // max(entry.bytes_total, 1), 99)} %"
    if share and entry.writing:
        return f"writing{share}"
    return f"{'partial' if share else 'complete'}{share}{', in use' if entry.in_use else ''}"


def _short(version: str) -> str:
    return version.removeprefix("sha256:")[:12]


def _as_json(entry: CachedCopy | NodeRuntime) -> dict[str, Any]:
    return asdict(entry) | {"folder": str(entry.folder), "used": entry.used.isoformat()}
