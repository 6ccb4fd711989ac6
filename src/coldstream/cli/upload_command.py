"""`coldstream upload`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click
import msgspec

from coldstream.cli.live import progress_for
from coldstream.cli.output import attributes, coloured, echo
from coldstream.cli.session import State
from coldstream.cli.verbs import SIZE, Verb, negative_flag, transfer_options
from coldstream.errors import CancelledError, ColdstreamError, CredentialsError, PartialError, UsageError
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import UploadPlan, UploadReport, plan_upload
from coldstream.model.adapter import Adapter
from coldstream.model.chunks import PART_BYTES_MAX, PART_BYTES_MIN
from coldstream.model.manifest import layout_flags
from coldstream.model.names import Uri, expanded
from coldstream.net.retry import Retry
from coldstream.operate.cost import prices
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Snapshot, Store
from coldstream.places.tree import folder_model, snapshot_of
from coldstream.settings import Settings
from coldstream.units import format_bytes, format_dollars, format_rate, format_seconds, plural


@click.command(cls=Verb)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("--as", "name", metavar="NAME", help="Name in the bucket.  [default: org/model, or the folder's name]")
@click.option("--base", metavar="NAME", help="Base model of an adapter.  [default: the one its configuration names]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub.  [default: main]")
@click.option("--include", multiple=True, metavar="PATTERN", help="Upload only files that match. Repeatable.")
@click.option("--also", multiple=True, metavar="PATTERN", help="Also upload files that match. Repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Skip files that match. Repeatable.")
@click.option("--part-size", "part_bytes", type=SIZE, default="64MiB", help="Part size of multipart uploads.")
@click.option(
    "--object-bytes-max",
    type=SIZE,
    metavar="SIZE",
    help="Store weights as immutable segments of at most this size, 1MiB to 5GiB; 480MiB suits Cloudflare's CDN.  "
    "[default: one object per file]",
)
@negative_flag("--no-plain", "Store only segments, without the plain files that vLLM's loaders read.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be uploaded and its cost; write nothing.")
@transfer_options
def command(
    state: State,
    sources: tuple[str, ...],
    name: str | None,
    revision: str | None,
    dry_run: bool,
    connections: int,
    memory_bytes: int,
    **choices: Any,
) -> int:
    """Copy models from the Hub or from local folders into the bucket.

    \b
    coldstream upload Qwen/Qwen3-8B
    coldstream upload Qwen/Qwen3-8B@v1.0 --as prod/qwen
    coldstream upload Qwen/Qwen3-8B Qwen/Qwen3-0.6B
    coldstream upload ./my-finetune --as me/finetune
    coldstream upload ./my-adapter --as me/adapter --base Qwen/Qwen3-8B
    coldstream upload Qwen/Qwen3-8B --dry-run
    coldstream upload Qwen/Qwen3-8B --object-bytes-max 480MiB --no-plain

    SRC is org/model[@revision] on the Hub, or a folder that begins with ./ or /. Uploads the safetensors and the files
    that they need, without writing to the local disk. A LoRA adapter in PEFT's format is recorded with its base model.
    Run the command again to continue after an interruption. Exits with 3 if only some of several models fail.
    [env: HF_TOKEN, HF_ENDPOINT]
    """
    if not choices["plain"] and choices["object_bytes_max"] is None:
        raise UsageError("--no-plain needs --object-bytes-max", hint="add --object-bytes-max 480MiB")
    if not PART_BYTES_MIN <= (part_bytes := choices["part_bytes"]) <= PART_BYTES_MAX:
        raise UsageError(f"--part-size is {part_bytes} bytes; S3 allows 5 MiB to 5 GiB", hint="use the default, 64MiB")
    if len(sources) > 1 and (name or revision):
        flag, hint = ("--as", "upload them one by one") if name else ("--revision", "write org/model@revision")
        raise UsageError(f"{flag} applies to one model, but {len(sources)} are named", hint=hint)

    def upload_one(source: str) -> tuple[dict[str, Any], str]:
        store = state.open_store(connections)
        opened, default_name = _open_source(source, revision, state.settings(), store.retry, connections)
        plan = plan_upload(store, opened, name or default_name, **choices)
        _announce(state, plan, store)
        if dry_run:
            return _dry_run(plan)
        state.resume = "uploaded parts are kept"
        with progress_for(state, total_bytes=plan.to_read_bytes, verb="upload") as progress:
            report = upload(store, opened, plan, progress=progress, connections=connections, memory_bytes=memory_bytes)
        document = {**asdict(report), "state": "ready", "source": msgspec.to_builtins(plan.source)}
        return document | _kind(plan) | attributes(plan, "up_to_date"), _text(plan, report)

    if len(sources) == 1:
        state.show(*upload_one(sources[0]))
        return 0
    return _upload_each(state, sources, upload_one)


def _upload_each(state: State, sources: Sequence[str], upload_one: Callable[[str], tuple[dict[str, Any], str]]) -> int:
    """Uploads one model after another, also after failures; returns the exit code."""
    documents: list[dict[str, Any]] = []
    failures: list[ColdstreamError] = []
    for source in sources:
        try:
            document, text = upload_one(source)
        except CancelledError:
            raise
        except ColdstreamError as exc:
            documents.append({"source": str(Uri(source)), **state.report(exc)})
            failures.append(exc)
            continue
        documents.append(document)
        if not state.json:
            echo(text)
    if state.json:
        state.show({"models": documents}, "")
    if not failures:
        return 0
    return failures[0].exit_code if len(failures) == len(sources) else PartialError.exit_code


def _open_source(
    text: str, revision: str | None, settings: Settings, retry: Retry, connections: int
) -> tuple[Snapshot, str]:
    """The source that SRC names, and its default name in the bucket."""
    path = expanded(text.removeprefix("file://"))
    if text.startswith(("./", "../", "/", "~", "file://")) or text in {".", ".."}:
        if revision:
            raise UsageError(f"--revision applies to models on the Hub; {text} is a folder", hint="leave it out")
        return FolderSnapshot(snapshot_of(path)), folder_model(path.resolve())
    if path.is_dir():
        hint = f"write {shlex.quote(f'./{text}')} or hf://{text}"
        raise UsageError(f"{text!r} is ambiguous: a local folder, or a model on the Hub", hint=hint)
    match = re.fullmatch(r"(?:hf://|https://[^/]+/)?([\w.-]+(?:/[\w.-]+)?)(?:/tree/([^@]+)|@(.+))?/?", text)
    if part := re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/(.+?)/?", text):
        hint = f"run: coldstream upload {part[1]} --include {shlex.quote(f'{part[2]}/*')}"
        raise UsageError(f"{text} is part of a model; models are uploaded as a whole", hint=hint)
    if not match:
        raise UsageError(f"{text!r} is neither a model on the Hub nor a folder", hint="write Qwen/Qwen3-8B or ./folder")
    from coldstream.places.hub import HubSnapshot

    revision = revision or match[2] or match[3]
    return HubSnapshot(match[1], revision=revision, settings=settings, retry=retry, connections=connections), match[1]


def _announce(state: State, plan: UploadPlan, store: Store) -> None:
    others = len(plan.files) - plan.shards
    contents = f"{plural(plan.shards, 'shard')} + {plural(others, 'file')}" if plan.shards else plural(others, "file")
    state.say(f"{plan.label}   {contents}   {format_bytes(plan.size)}   → {store.uri}/{plan.name}")
    if plan.adapter:
        _announce_adapter(state, plan.adapter, store)
    if plan.object_bytes_max is None and any(entry.object_bytes_max for entry in plan.entries):
        state.say(f"  deleting its segments: without{layout_flags(plan.entries)} each file becomes one object")
    sizes = {**plan.skipped_bytes, **{file.key: file.size for file in plan.files}}
    for verb, reasons in (("skipping", plan.skipped), ("uploading, but hiding from vLLM,", plan.kept_back)):
        groups: dict[str, list[str]] = {}
        for path, why in reasons.items():
            groups.setdefault(why, []).append(path)
        for why, paths in groups.items():
            shown = paths[0] if len(paths) == 1 else f"{len(paths)} files"
            state.say(f"  {verb} {shown} ({format_bytes(sum(sizes[path] for path in paths))}, {why})")


def _announce_adapter(state: State, adapter: Adapter, store: Store) -> None:
    state.say(f"  {adapter.label}")
    warning = coloured("warning:", "yellow", sys.stderr)
    if adapter.refusal:
        state.say(f"  {warning} vLLM cannot serve it: {adapter.refusal}")
    # Keys for one model may not see another one.
    with suppress(CredentialsError):
        if next(iter(store.list(f"{adapter.base}/")), None) is None:
            state.say(f"  {warning} its base is not in the bucket; upload {adapter.base}, or name another with --base")


def _kind(plan: UploadPlan) -> dict[str, Any]:
    adapter = plan.adapter
    return {
        "kind": "adapter" if adapter else "model",
        "base": adapter.base if adapter else None,
        "rank": adapter.rank if adapter else None,
    }


def _dry_run(plan: UploadPlan) -> tuple[dict[str, Any], str]:
    """What an upload would do, as JSON and as text."""
    month = prices.storage_per_month(plan.stored_bytes)
    once = prices.upload_requests(plan.parts, len(plan.to_send) + plan.segment_count)
    files = [{"path": file.key, "bytes": file.size, "kept": file.key in plan.complete} for file in plan.files]
    skipped = [{"path": path, "bytes": plan.skipped_bytes[path], "why": why} for path, why in plan.skipped.items()]
    document = {
        **attributes(plan, "name", "state", "up_to_date", "stored_bytes", "parts"),
        **_kind(plan),
        "source": msgspec.to_builtins(plan.source),
        "bytes": plan.size,
        "send_bytes": plan.to_read_bytes,
        "segments": plan.segment_count,
        "files": files,
        "kept_back": [{"path": path, "why": why} for path, why in plan.kept_back.items()],
        "skipped": skipped,
        "r2_dollars_per_month": month,
        "r2_dollars_once": once,
    }
    lines = []
    for file in plan.files:
        kept = "kept" if file.key in plan.complete else ""
        lines.append(f"  {file.key:<52} {format_bytes(file.size):>9}  {kept}".rstrip())
    sent = f"{format_bytes(plan.to_read_bytes)} of {format_bytes(plan.size)} in {plural(plan.parts, 'part')}"
    cost = f"R2: storage {format_dollars(month)}/month, requests {format_dollars(once)} once"
    lines.append(f"would send {sent}   {cost}")
    if plan.object_bytes_max is not None:
        limit, without_plain = format_bytes(plan.object_bytes_max), format_dollars(prices.storage_per_month(plan.size))
        segments = plural(plan.segment_count, "segment")
        lines.append(f"weights in about {segments} of at most {limit}; existing ones are kept")
        twice = f"{format_bytes(plan.stored_bytes - plan.size)} of that are the plain files"
        absent = "no plain files: vLLM's own loaders cannot load it, only coldstream"
        lines.append(f"{twice}; with --no-plain: {without_plain}/month" if plan.plain else absent)
    return document, "\n".join(lines)


def _text(plan: UploadPlan, report: UploadReport) -> str:
    ready = coloured("ready", "green")
    if plan.up_to_date:
        return f"{ready}   {plan.name} is up to date: {format_bytes(report.bytes)}, nothing uploaded"
    counts = (("sent", report.sent_segments), ("copied", report.copied_segments), ("kept", report.kept_segments))
    segments = ", ".join(f"{count:,} {what}" for what, count in counts if count)
    rate = format_rate(report.sent_bytes, report.seconds)
    parts = [
        ready,
        f"{format_bytes(report.sent_bytes)} in {format_seconds(report.seconds)} ({rate})",
        f"kept {format_bytes(report.kept_bytes)}" if report.kept_bytes else "",
        plural(report.parts, "part"),
        f"segments: {segments}" if segments else "",
        f"{report.retries} {'retry' if report.retries == 1 else 'retries'}" if report.retries else "",
        f"R2 storage {format_dollars(prices.storage_per_month(plan.stored_bytes))}/month",
    ]
    return "   ".join(filter(None, parts))
