"""What runs, for each way of loading the weights.

Flags that the user gave always win: of ours, only those are added that are not there.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coldstream.engines.vllm.flags import number_of, value_of
from coldstream.errors import ConfigError, UsageError
from coldstream.machine.child_environment import CREDENTIALS, SECRETS
from coldstream.node.load_service import VARIABLE
from coldstream.settings import Settings

LOADERS = ("coldstream", "runai", "runai-sharded", "default")

# What every vLLM asks its clients for, and what Run:ai's streamer may get its keys by in a container at AWS.
_KEPT = ("VLLM_API_KEY",)
_KEPT_BY_RUNAI = (*_KEPT, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
# vLLM aborts its requests at once by itself. Kubernetes kills 30 s after SIGTERM, and vLLM needs some seconds to end.
_DRAIN_SECONDS = 15
# Run:ai's default of a second is too short for a bucket behind the internet.
_RUNAI_TIMEOUT_MS = 30_000
_RUNAI_CONCURRENCY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A vLLM to run.

    Attributes:
        arguments: The program and its arguments; no secret.
        environment: Variables to set; may hold secrets.
        keep: Credentials that it inherits.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    keep: tuple[str, ...] = _KEPT

    @property
    def without(self) -> list[str]:
        """The credentials that it does not inherit."""
        return sorted(CREDENTIALS - {*self.keep, *self.environment})

    def having(self, environment: Mapping[str, str]) -> Command:
        """The same with more in its environment."""
        return replace(self, environment={**self.environment, **environment})

    def shown(self) -> str:
        """The command for people, to be pasted into a shell."""
        return shlex.join(self.arguments)

    def shown_environment(self) -> list[str]:
        """What changes in the environment, one line each; secrets are masked."""
        lines = [f"unset {name}" for name in self.without]
        for name, value in sorted(self.environment.items()):
            lines.append(f"export {name}={'****' if name in SECRETS else shlex.quote(value)}")
        return lines


def consumers_of(arguments: Sequence[str]) -> int:
    """How many of vLLM's ranks will read the weights on this node, as far as the flags tell."""
    return number_of(arguments, "--tensor-parallel-size") * number_of(arguments, "--pipeline-parallel-size")


def streamed(launcher: Sequence[str], folder: str, name: str, arguments: Sequence[str], *, service: str) -> Command:
    """VLLM with the load format of this project.

    Args:
        launcher: What runs `vllm`: see `Program.launcher`.
        folder: The model's folder.
        name: What the model is to be called.
        arguments: The user's.
        service: Where its ranks ask for the weights.
    """
    return Command(
        arguments=(*launcher, "serve", folder, *_added(arguments, {"--load-format": "coldstream"}, name), *arguments),
        environment={VARIABLE: service},
    )


def plain(program: str, folder: str, name: str, arguments: Sequence[str]) -> Command:
    """VLLM's own loader on a folder with the weights."""
    return Command(arguments=(program, "serve", folder, *_added(arguments, {}, name), *arguments))


def runai(
    program: str,
    uri: str,
    name: str,
    arguments: Sequence[str],
    settings: Settings,
    *,
    concurrency: int | None = None,
    memory_limit: int | None = None,
) -> Command:
    """VLLM with Run:ai's streamer on the same bucket, and the environment that R2 needs for it.

    Args:
        program: The `vllm` to run.
        uri: `s3://bucket/org/model`, or a local folder.
        name: What the model is to be called.
        arguments: The user's.
        settings: Where the bucket is.
        concurrency: Run:ai's clients.
        memory_limit: Bytes of its buffer.
    """
    extra = {"concurrency": concurrency or _RUNAI_CONCURRENCY}
    if memory_limit is not None:
        extra["memory_limit"] = memory_limit
    flags = {"--load-format": "runai_streamer", "--model-loader-extra-config": json.dumps(extra)}
    return Command(
        arguments=(program, "serve", uri, *_added(arguments, flags, name), *arguments),
        environment=_runai_environment(uri, settings),
        keep=_KEPT_BY_RUNAI,
    )


def runai_sharded(
    program: str,
    uri: str,
    name: str,
    arguments: Sequence[str],
    settings: Settings,
    *,
    ranks: int,
    concurrency: int | None = None,
    memory_limit: int | None = None,
) -> Command:
    """The same for a checkpoint that `coldstream shard` made: each rank reads its own files.

    Args:
        program: The `vllm` to run.
        uri: `s3://bucket/org/model-tp4`, or a local folder.
        name: What the model is to be called.
        arguments: The user's.
        settings: Where the bucket is.
        ranks: How many the checkpoint was made for.
        concurrency: Run:ai's clients.
        memory_limit: Bytes of its buffer.

    Raises:
        UsageError: The user's flags ask for another number of ranks.
    """
    asked = value_of(arguments, "--tensor-parallel-size")
    if asked not in {None, str(ranks)}:
        raise UsageError(
            f"{name} was sharded for {ranks} ranks, and --tensor-parallel-size is {asked}",
            hint=f"run: coldstream shard MODEL --tp {asked}",
        )
    # This format accepts no numbers in --model-loader-extra-config.
    environment = {"RUNAI_STREAMER_CONCURRENCY": str(concurrency or _RUNAI_CONCURRENCY)}
    if memory_limit is not None:
        environment["RUNAI_STREAMER_MEMORY_LIMIT"] = str(memory_limit)
    flags = {"--load-format": "runai_streamer_sharded", "--tensor-parallel-size": str(ranks)}
    return Command(
        arguments=(program, "serve", uri, *_added(arguments, flags, name), *arguments),
        environment=environment | _runai_environment(uri, settings),
        keep=_KEPT_BY_RUNAI,
    )


def _added(arguments: Sequence[str], flags: Mapping[str, str], name: str) -> list[str]:
    needed, given = flags.get("--load-format"), value_of(arguments, "--load-format")
    if needed and given not in {None, needed}:
        raise UsageError(
            f"--load-format {given} was given to vLLM, and this loader needs {needed}",
            hint="choose with --loader: coldstream, runai, runai-sharded or default",
        )
    every = {**flags, "--served-model-name": name, "--shutdown-timeout": str(_DRAIN_SECONDS)}
    return [part for flag, value in every.items() if value_of(arguments, flag) is None for part in (flag, value)]


def _runai_environment(uri: str, settings: Settings) -> dict[str, str]:
    if not uri.startswith("s3://"):
        return {}
    environment = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": str(_RUNAI_TIMEOUT_MS),
    }
    if endpoint := settings.endpoint():
        environment |= {"AWS_ENDPOINT_URL": endpoint, "RUNAI_STREAMER_S3_ENDPOINT": endpoint}
    else:
        # At AWS itself keys may come from the instance.
        environment = {}
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
