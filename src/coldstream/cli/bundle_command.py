"""`coldstream bundle`."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click
import msgspec

from coldstream.cli.output import attributes, table_text
from coldstream.cli.session import State, confirm
from coldstream.cli.verbs import Group, dry_run_option, yes_option
from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.errors import NotFoundError, UsageError
from coldstream.model.names import checked_name
from coldstream.node.bundle.bundle_pointer import checked_secret
from coldstream.node.bundle.bundle_store import BundleEntry, BundleStore, entries
from coldstream.node.bundle.local_bundles import local_bundles_of
from coldstream.printable import printable
from coldstream.units import format_age, format_bytes, format_seconds, plural

_DIGITS = 12
_COLOURS = {"signed": "green", "foreign": "yellow", "unverified": "yellow", "unreadable": "red"}


@click.group(cls=Group)
def command() -> None:
    """List, publish and remove warm-start bundles (compile caches).

    \b
    coldstream bundle list
    coldstream bundle show Qwen/Qwen3-8B
    coldstream bundle remove Qwen/Qwen3-8B

    A bundle holds the caches that vLLM built on one node, so that the next node starts faster. `coldstream serve`
    restores and publishes bundles automatically. They contain code, so they are signed with COLDSTREAM_BUNDLE_KEY
    (create it with: coldstream setup --bundle-key) and used only where that key is set.
    """


@command.command("list")
@click.argument("name", metavar="[MODEL]", required=False)
def list_(state: State, name: str | None) -> None:
    """List the bundles in the bucket.

    \b
    coldstream bundle list
    coldstream bundle list Qwen/Qwen3-8B --json

    States: signed (with this COLDSTREAM_BUNDLE_KEY: used); foreign (with another key: not used); unverified
    (COLDSTREAM_BUNDLE_KEY is not set); unreadable.
    """
    store = state.open_store(8)
    bundles = entries(store, _secret(state), checked_name(name) if name else None)
    document = {"store": store.uri, "bundles": [_document(entry) for entry in bundles]}
    state.show(document, _table(bundles) if bundles else f"no bundles in {store.uri}")
    if not bundles:
        state.say("next:  coldstream serve MODEL   (publishes a bundle)")


@command.command()
@click.argument("name", metavar="MODEL")
@click.argument("key", metavar="[KEY]", required=False)
def show(state: State, name: str, key: str | None) -> None:
    """Show what a model's bundles contain and which starts they fit.

    \b
    coldstream bundle show Qwen/Qwen3-8B
    coldstream bundle show Qwen/Qwen3-8B 7f3a09

    KEY can be abbreviated to its first characters.
    """
    bundles = _chosen(_shelf(state, name).entries(_secret(state)), name, key)
    state.show({"bundles": [_document(entry) for entry in bundles]}, "\n\n".join(_details(entry) for entry in bundles))


@command.command()
@click.argument("name", metavar="MODEL")
@dry_run_option
def publish(state: State, name: str, dry_run: bool) -> None:
    """Publish the compile caches of earlier starts on this machine.

    \b
    coldstream bundle publish Qwen/Qwen3-8B
    coldstream bundle publish Qwen/Qwen3-8B --dry-run

    Replaces bundles for the same starts. `coldstream serve` does this automatically; use this command after starts with
    `--bundle read`, or with keys that could not write.
    """
    secret = _secret(state)
    if secret is None:
        raise UsageError("COLDSTREAM_BUNDLE_KEY is not set", hint="run: coldstream setup --bundle-key")
    layout = VllmCaches()
    base = layout.base(state.settings(), os.environ)
    kept = local_bundles_of(base, name, layout)
    if not kept:
        raise NotFoundError(f"no compile caches of {name} in {base}", hint=f"run: coldstream serve {shlex.quote(name)}")
    shelf = _shelf(state, name)
    rows, lines = [], []
    for caches in kept:
        key, folder = caches.key.digest, str(caches.root)
        pointer = None if dry_run else shelf.publish(caches, secret, replaces=shelf.etag(key))[0]
        rows.append({"key": key, "folder": folder, "bytes": pointer.archive.size if pointer else None})
        verb, what = ("published", format_bytes(pointer.archive.size)) if pointer else ("would publish", folder)
        lines.append(f"{verb}   {key[:_DIGITS]}   {what}")
    state.show({"published": rows, "dry_run": dry_run}, "\n".join(lines))


@command.command()
@click.argument("name", metavar="MODEL")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@yes_option
@dry_run_option
def remove(state: State, name: str, keys: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Remove all or some of a model's bundles from the bucket.

    \b
    coldstream bundle remove Qwen/Qwen3-8B
    coldstream bundle remove Qwen/Qwen3-8B 7f3a09 --yes
    """
    shelf = _shelf(state, name)
    every = shelf.entries(None)
    chosen = [entry for key in keys or (None,) for entry in _chosen(every, name, key)]
    what = f"{plural(len(chosen), 'bundle')} of {name} in {shelf.store.uri}"
    if not (dry_run or yes):
        confirm("delete", what)
    if not dry_run:
        shelf.remove([entry.key for entry in chosen] if keys else None)
    document = {"name": name, "keys": [entry.key for entry in chosen], "removed": not dry_run}
    state.show(document, f"{'would remove' if dry_run else 'removed'}   {what}")


def _secret(state: State) -> bytes | None:
    return checked_secret(state.settings().get("COLDSTREAM_BUNDLE_KEY"))


def _shelf(state: State, name: str) -> BundleStore:
    return BundleStore(state.open_store(8), checked_name(name))


def _chosen(bundles: list[BundleEntry], name: str, key: str | None) -> list[BundleEntry]:
    chosen = [entry for entry in bundles if key is None or entry.key.startswith(key)]
    if not chosen:
        which = f" whose key begins with {key}" if key else ""
        raise NotFoundError(f"no bundle of {name}{which} in the bucket", hint="run: coldstream bundle list")
    return chosen


def _document(entry: BundleEntry) -> dict[str, Any]:
    pointer = None if entry.pointer is None else msgspec.to_builtins(entry.pointer)
    return {**attributes(entry, "name", "key", "state"), "bundle": pointer}


def _table(bundles: list[BundleEntry]) -> str:
    rows = [("MODEL", "KEY", "SIZE", "FILES", "STATE", "PUBLISHED", "VLLM", "DEVICE")]
    for entry in bundles:
        size, files, age, software, device = ["-"] * 5
        if (pointer := entry.pointer) is not None:
            size, files = format_bytes(pointer.archive.size), str(pointer.archive.files)
            age = format_age(pointer.created)
            software, device = (pointer.parts.get(part, "-") for part in ("vllm", "device"))
        rows.append((entry.name, entry.key[:_DIGITS], size, files, entry.state, age, software, device))
    return table_text(rows, colours=_COLOURS, coloured_column=4)


def _details(entry: BundleEntry) -> str:
    rows: dict[str, str] = {}
    if (pointer := entry.pointer) is not None:
        archive = pointer.archive
        size = f"{format_bytes(archive.size)}, unpacked {format_bytes(archive.bytes)}"
        rows["caches"] = f"{plural(archive.files, 'file')}   {size}"
        rows["published"] = f"{pointer.created:%Y-%m-%d %H:%M} UTC by {printable(pointer.tool)}"
        if pointer.ready_seconds:
            rows["without it"] = f"ready in {format_seconds(pointer.ready_seconds)}"
        if pointer.reads is not None:
            rows["read-ahead"] = f"{format_bytes(pointer.reads.size)} of names and ranges"
        rows |= {printable(name): printable(value) or "-" for name, value in pointer.parts.items()}
    return "\n".join([f"{entry.key}   {entry.state}", *(f"  {name:<18} {text}" for name, text in rows.items())])
