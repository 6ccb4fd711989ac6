"""`coldstream shard`."""

from __future__ import annotations

from dataclasses import asdict

import click

from coldstream.cli.live import progress_for
from coldstream.cli.session import State
from coldstream.cli.verbs import Verb, count, transfer_options, vllm_option
from coldstream.engines.vllm.sharding import sharded_folder
from coldstream.errors import UsageError
from coldstream.loading.options import Options
from coldstream.mirror.upload import upload
from coldstream.mirror.upload_plan import plan_upload
from coldstream.model.names import is_path
from coldstream.places.folder import FolderSnapshot
from coldstream.units import format_bytes, format_seconds


@click.command(cls=Verb)
@click.argument("uri", metavar="MODEL")
@click.argument("vllm_arguments", metavar="[-- VLLM FLAGS]", nargs=-1, type=click.UNPROCESSED)
@click.option("--tp", "ranks", type=count(1, 64), required=True, help="Tensor parallelism: the number of ranks.")
@click.option("--as", "name", metavar="NAME", help="Name in the bucket.  [default: MODEL-tpN]")
@vllm_option
@transfer_options
def command(
    state: State,
    uri: str,
    vllm_arguments: tuple[str, ...],
    ranks: int,
    name: str | None,
    program: str | None,
    connections: int,
    memory_bytes: int,
) -> None:
    """Create and upload a checkpoint with one shard per rank.

    \b
    coldstream shard Qwen/Qwen3-32B --tp 4
    coldstream serve Qwen/Qwen3-32B-tp4 --loader runai-sharded

    vLLM loads the model and each rank writes its shard to the disk of the local cache, from where it is uploaded. Run
    it on the devices that will serve it: the shards fit one version of vLLM, one kind of device, one quantisation and
    one number of ranks. Flags after `--` go to vLLM's engine.
    """
    if name is None:
        if "://" in uri or is_path(uri):
            raise UsageError(f"{uri} is not a name in the bucket, so the new model needs one", hint="add --as org/name")
        name = f"{uri}-tp{ranks}"
    settings = state.settings()
    store = state.open_store(connections)
    with sharded_folder(
        uri,
        ranks=ranks,
        arguments=vllm_arguments,
        settings=settings,
        options=Options(settings=settings, metrics=False),
        program=program,
        say=lambda line: state.say(line) if state.debug else None,
    ) as folder:
        source = FolderSnapshot(folder)
        plan = plan_upload(store, source, name)
        state.say(f"upload   {name}   {format_bytes(plan.size)}   → {store.uri}")
        with progress_for(state, total_bytes=sum(file.size for file in plan.to_send), verb="upload") as progress:
            report = upload(store, source, plan, progress=progress, connections=connections, memory_bytes=memory_bytes)
    text = f"ready   {name}   {format_bytes(plan.size)} for {ranks} ranks in {format_seconds(report.seconds)}\n"
    text += f"next:  coldstream serve {name} --loader runai-sharded"
    state.show({**asdict(report), "name": name, "ranks": ranks, "bytes": plan.size}, text)
