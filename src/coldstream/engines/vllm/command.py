"""The `vllm serve` command for each way of loading the weights.

The user's own flags always win: ours are added only where they are missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from coldstream.engines.vllm.flags import Flags
from coldstream.errors import ConfigError, UsageError
from coldstream.node.child import Command
from coldstream.node.load_service import VARIABLE
from coldstream.settings import Settings

# Every vLLM needs the key that it demands of its clients. In a container at AWS, Run:ai's streamer may get the bucket's
# keys by the other one.
KEPT_CREDENTIALS = ("VLLM_API_KEY",)
_KEPT_BY_RUNAI = (*KEPT_CREDENTIALS, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
# By default vLLM aborts its requests at once. Kubernetes kills 30 s after SIGTERM, and vLLM needs some seconds to exit.
_DRAIN_SECONDS = 15
# Run:ai's default of a second is too short for a bucket behind the internet.
_RUNAI_TIMEOUT_MS = 30_000
_RUNAI_CONCURRENCY = 16


def streamed(launcher: Sequence[str], folder: str, name: str, flags: Flags, *, service: str) -> Command:
    """With the load format `coldstream`.

    Args:
        launcher: See `Program.launcher`.
        folder: The model's folder.
        name: What the model is called in the API.
        flags: The user's.
        service: The address of the load service.
    """
    ours = {"--load-format": "coldstream"}
    return _serve(launcher, folder, name, flags, ours, environment={VARIABLE: service})


def plain(program: str, folder: str, name: str, flags: Flags) -> Command:
    """With vLLM's own loader, on a folder with the weights."""
    return _serve([program], folder, name, flags, {})


def runai(
    program: str,
    uri: str,
    name: str,
    flags: Flags,
    settings: Settings,
    *,
    concurrency: int | None = None,
    memory_limit: int | None = None,
    ranks: int | None = None,
) -> Command:
    """With Run:ai's streamer on the same bucket, and the environment that it needs for R2.

    Args:
        program: The `vllm` to run.
        uri: `s3://bucket/org/model`, or a local folder.
        name: What the model is called in the API.
        flags: The user's.
        settings: Where the bucket is.
        concurrency: Run:ai's clients.
        memory_limit: Size of its buffer in bytes.
        ranks: Of a checkpoint that `coldstream shard` made, whose ranks read their own files: how many it is for.

    Raises:
        UsageError: The flags ask for another number of ranks, or another load format.
    """
    limits = {"concurrency": concurrency or _RUNAI_CONCURRENCY}
    if memory_limit is not None:
        limits["memory_limit"] = memory_limit
    environment = _bucket_environment(settings) if uri.startswith("s3://") else {}
    if ranks is None:
        ours = {"--load-format": "runai_streamer", "--model-loader-extra-config": json.dumps(limits)}
    else:
        parallel = flags.value("--tensor-parallel-size")
        if parallel not in {None, str(ranks)}:
            raise UsageError(
                f"{name} was sharded for {ranks} ranks, but --tensor-parallel-size is {parallel}",
                hint=f"run: coldstream shard MODEL --tp {parallel}",
            )
        ours = {"--load-format": "runai_streamer_sharded", "--tensor-parallel-size": str(ranks)}
        # This format accepts no numbers in --model-loader-extra-config.
        environment = {f"RUNAI_STREAMER_{key.upper()}": str(value) for key, value in limits.items()} | environment
    return _serve([program], uri, name, flags, ours, environment=environment, keep=_KEPT_BY_RUNAI)


def _serve(
    launcher: Sequence[str],
    model: str,
    name: str,
    flags: Flags,
    ours: Mapping[str, str],
    *,
    environment: Mapping[str, str] | None = None,
    keep: tuple[str, ...] = KEPT_CREDENTIALS,
) -> Command:
    needed, chosen = ours.get("--load-format"), flags.value("--load-format")
    if needed and chosen not in {None, needed}:
        raise UsageError(
            f"this loader needs --load-format {needed}, but --load-format {chosen} was given to vLLM",
            hint="choose with --loader: coldstream, runai, runai-sharded or default",
        )
    every = {**ours, "--served-model-name": name, "--shutdown-timeout": str(_DRAIN_SECONDS)}
    added = [part for flag, value in every.items() if flag not in flags for part in (flag, value)]
    arguments = (*launcher, "serve", model, *added, *flags.arguments)
    return Command(arguments=arguments, environment=environment or {}, keep=keep)


def _bucket_environment(settings: Settings) -> dict[str, str]:
    environment = {}
    # At AWS itself, keys may come from the instance.
    if endpoint := settings.endpoint():
        environment = {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": endpoint,
            "RUNAI_STREAMER_S3_ENDPOINT": endpoint,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": str(_RUNAI_TIMEOUT_MS),
        }
    if region := settings.region:
        environment["AWS_REGION"] = region
    if bundle := settings.get("AWS_CA_BUNDLE"):
        environment["AWS_CA_BUNDLE"] = bundle
    if keys := settings.keys():
        access_key, secret_key, session_token = keys
        environment |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        if session_token:
            environment["AWS_SESSION_TOKEN"] = session_token
    elif settings.is_r2:
        raise ConfigError("no keys for the bucket are configured", hint="run: coldstream setup --write-env")
    return environment
