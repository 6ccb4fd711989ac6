"""`coldstream runtime`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import click
import msgspec

from coldstream.cli.live import progress_for
from coldstream.cli.output import echo, table_text
from coldstream.cli.session import State, confirm, write_file
from coldstream.cli.stored_runtimes import publish_runtime
from coldstream.cli.verbs import FILE, Group, dry_run_option, yes_option
from coldstream.engines.vllm.model_facts import add_model_facts
from coldstream.engines.vllm.program import Program
from coldstream.errors import NotFoundError, UsageError
from coldstream.runtime import environment, packages, runtime_store
from coldstream.runtime.image import packed
from coldstream.runtime.runtime_manifest import Platform, RuntimeManifest
from coldstream.runtime.runtime_store import CONNECTIONS, Runtime
from coldstream.units import format_age, format_bytes, plural

_DIGITS = 12
_COLOURS = {"ready": "green", "incomplete": "yellow", "damaged": "red"}


@click.group(cls=Group)
def command() -> None:
    """Publish Python, vLLM and coldstream to the bucket, for bare nodes.

    \b
    coldstream runtime publish
    coldstream runtime list
    coldstream runtime bootstrap > start.py     # then on a bare node: python3 -I start.py sha256:… serve Qwen/Qwen3-8B

    A runtime is one read-only image: Python, vLLM, torch, CUDA libraries, coldstream. A node downloads it in seconds,
    checks it against the digest in its deployment file, and mounts it. `template` and `launch` use the newest one.
    """


@command.command()
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    metavar="VENV",
    help="The environment to publish.  [default: that of the vllm that `coldstream serve` starts]",
)
@click.option("--without-vllm", is_flag=True, help="Publish only coldstream, for images that have vLLM.")
@dry_run_option
def publish(state: State, source: Path | None, without_vllm: bool, dry_run: bool) -> None:
    """Publish this machine's environment with vLLM.

    \b
    coldstream runtime publish
    coldstream runtime publish --from ~/vllm --dry-run
    coldstream runtime publish --without-vllm

    The environment needs vLLM and coldstream; it stays as it is. Needs squashfs-tools and twice the environment's size
    in TMPDIR. An environment that is in the bucket already is not sent again.
    """
    if source is not None and without_vllm:
        raise UsageError("--from and --without-vllm contradict each other", hint="keep one of them")
    if without_vllm:
        fill = packages.gather
    else:
        installed = environment.inspect(source or Path(Program.find(None).interpreter or sys.executable))
        state.say(f"packing {installed.python.parent.parent}")
        fill = partial(_fill_with_vllm, state, installed)
    with packed(fill) as runtime:
        manifest = runtime.manifest
        document = {"digest": manifest.digest, "published": False, **_described(manifest)}
        if dry_run:
            state.show(document, f"would publish\n{_summary(manifest)}")
            return
        is_new = publish_runtime(state, runtime)
    text = f"{'published' if is_new else 'already published'}   sha256:{manifest.digest}\n{_summary(manifest)}"
    state.show(document | {"published": is_new}, text)


@command.command("list")
def list_(state: State) -> None:
    """List the runtimes in the bucket, the newest first.

    \b
    coldstream runtime list

    States: ready; incomplete (not completely published); damaged (run: coldstream runtime remove).
    """
    store = state.open_store(CONNECTIONS)
    entries = runtime_store.runtimes(store)
    document = {"store": store.uri, "runtimes": [_document(entry) for entry in entries]}
    state.show(document, _table(entries) if entries else f"no runtimes in {store.uri}")
    if not entries:
        state.say("next:  coldstream runtime publish")


@command.command()
@click.argument("digest", metavar="[DIGEST]", required=False)
def show(state: State, digest: str | None) -> None:
    """Show what a runtime contains and what it needs of a node.

    \b
    coldstream runtime show
    coldstream runtime show 76496d0e

    DIGEST can be abbreviated; without it, the newest runtime is shown.
    """
    entry = _chosen(state, digest)
    summary = f"\n{_summary(entry.manifest)}" if entry.manifest else ""
    state.show(_document(entry), f"sha256:{entry.digest}   {entry.state}{summary}")


@command.command()
@click.argument("digest", metavar="[DIGEST]", required=False)
def verify(state: State, digest: str | None) -> None:
    """Read all of a runtime and compare it with its hashes.

    \b
    coldstream runtime verify
    """
    entry = _chosen(state, digest)
    size = entry.manifest.image.size if entry.manifest else 0
    store = state.open_store(CONNECTIONS)
    with progress_for(state, total_bytes=size, verb="verify", files=False) as progress:
        progress.begin("image", size, stages=1)
        runtime_store.verify(store, entry, on_read=lambda count: progress.fetched("image", count))
    document = {"digest": entry.digest, "state": "verified", "bytes": entry.bytes}
    state.show(document, f"verified   sha256:{entry.digest}   {format_bytes(entry.bytes)}")


@command.command()
@click.argument("digests", metavar="DIGEST...", nargs=-1, required=True)
@yes_option
@dry_run_option
def remove(state: State, digests: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Delete runtimes from the bucket. Deployments that pin them no longer start.

    \b
    coldstream runtime remove 76496d0e --yes
    """
    store = state.open_store(CONNECTIONS)
    entries = runtime_store.runtimes(store)
    chosen = [runtime_store.choose(entries, digest) for digest in digests]
    what = f"{plural(len(chosen), 'runtime')} ({format_bytes(sum(entry.bytes for entry in chosen))}) in {store.uri}"
    if not (dry_run or yes):
        confirm("delete", what)
    for entry in () if dry_run else chosen:
        runtime_store.remove(store, entry)
    document = {"digests": [entry.digest for entry in chosen], "removed": not dry_run}
    state.show(document, f"{'would remove' if dry_run else 'removed'}   {what}")


@command.command()
@click.option("-o", "--output", type=FILE, help="Write it to this file instead of stdout.")
def bootstrap(state: State, output: Path | None) -> None:
    """Print the program that starts a runtime on a bare node.

    \b
    coldstream runtime bootstrap > start.py
    scp start.py node:
    ssh node 'set -a; . ./.env; python3 -I start.py sha256:… serve Qwen/Qwen3-8B -- --port 8000'

    It needs Python 3.8 and the bucket's settings in the environment. It runs nothing but the runtime with the digest
    in its first argument, and any command of coldstream after it.
    """
    text = resources.files("coldstream.runtime").joinpath("bootstrap.py").read_text()
    if output is None:
        echo(text.rstrip("\n"))
    else:
        write_file(output, text.encode())
        state.say(f"wrote {output}")


def _fill_with_vllm(state: State, installed: environment.Environment, out: Path) -> Platform:
    facts = environment.relocate(installed, out)
    state.say("inspecting vLLM's model classes")
    if not add_model_facts(out):
        state.say("warning: they were not inspected, so each first start of a model does it and takes longer")
    return facts


def _chosen(state: State, digest: str | None) -> Runtime:
    """The runtime with a digest; the newest one that is ready without."""
    store = state.open_store(CONNECTIONS)
    entries = runtime_store.runtimes(store)
    if digest is not None:
        return runtime_store.choose(entries, digest)
    newest = next((entry for entry in entries if entry.state == "ready"), None)
    if newest is None:
        raise NotFoundError(f"no runtimes in {store.uri}", hint="run: coldstream runtime publish")
    return newest


def _described(manifest: RuntimeManifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"platform": None}
    facts = manifest.image
    sizes = {"bytes": facts.size, "unpacked_bytes": facts.unpacked, "files": facts.files}
    return {"platform": msgspec.to_builtins(manifest.platform), **sizes}


def _document(entry: Runtime) -> dict[str, Any]:
    document = asdict(entry) | {"published": entry.published.isoformat()} | _described(entry.manifest)
    del document["manifest"]
    return document


def _summary(manifest: RuntimeManifest) -> str:
    facts, size = manifest.platform, manifest.image
    needs = [f"Linux on {facts.machine}", f"glibc {facts.glibc}"]
    needs += [f"NVIDIA driver {facts.driver}"] if facts.driver else []
    rows = {
        "vLLM": facts.vllm,
        "torch": facts.torch + (f" for CUDA {facts.cuda}" if facts.cuda else ""),
        "Python": facts.python,
        "coldstream": facts.coldstream,
        "size": f"{format_bytes(size.size)}, unpacked {format_bytes(size.unpacked)}, {plural(size.files, 'file')}",
        "needs": ", ".join(needs),
    }
    return "\n".join(f"  {name:<12} {value or '-'}" for name, value in rows.items())


def _table(entries: list[Runtime]) -> str:
    rows: list[tuple[str, ...]] = [("DIGEST", "SIZE", "VLLM", "TORCH", "PYTHON", "MACHINE", "STATE", "PUBLISHED")]
    for entry in entries:
        facts = entry.manifest.platform if entry.manifest else None
        columns = [getattr(facts, name, None) or "-" for name in ("vllm", "torch", "python", "machine")]
        size, age = format_bytes(entry.bytes), format_age(entry.published)
        rows.append((entry.digest[:_DIGITS], size, *columns, entry.state, age))
    return table_text(rows, colours=_COLOURS, coloured_column=6)
