"""What is to run, and where. Pure.

A deployment names secrets and has no place for their values: none can reach a file that is made of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from coldstream.errors import UsageError
from coldstream.machine.child_environment import CDN_SECRETS
from coldstream.machine.hardware import is_loopback
from coldstream.model.names import checked_name
from coldstream.places.cdn_domain import cdn_of
from coldstream.settings import Settings
from coldstream.tune.fit import smallest
from coldstream.tune.gpus import Gpus
from coldstream.tune.recommended import Advice
from coldstream.units import GIB, format_bytes

TARGETS = ("sky", "sky-serve", "sky-job", "k8s", "kserve", "dstack", "compose")
VLLM_VERSION = "0.32.0"
IMAGE = f"vllm/vllm-openai:v{VLLM_VERSION}"
# Machines of these are bought, so that spot and on-demand differ; the others run on what is there.
_BOUGHT = ("sky", "sky-serve", "sky-job", "dstack")
_ONE_MACHINE = ("sky", "sky-job", "compose")
_RANGES = ("sky-serve", "dstack")
_IMAGE_ONLY = ("k8s", "kserve", "compose")
_CACHE_PATHS = ("k8s", "kserve", "compose")
_KSERVE_PORT = 8000
_REPLICAS_MAX = 1000
# DNS labels have 63 characters; targets append some of their own.
_SLUG_MAX = 40
_IMAGE_NAME = re.compile(r"[a-z0-9][A-Za-z0-9._:/@-]{0,254}")
_CLOUD = re.compile(r"[a-z][a-z0-9-]{0,30}(/[A-Za-z0-9*-]{1,40}){0,2}")
_FOLDER = re.compile(r"/[A-Za-z0-9._/-]{1,200}")
# Image, environment, and what the system takes beside the local copy of the model.
_DISK_GIB = 60
# Until vLLM answers once its weights are there: imports, compilation without a bundle, graphs.
_START_SECONDS = 240
_INSTALL_SECONDS = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """From `fewest` to `most` of them, by load when these differ."""

    fewest: int = 1
    most: int = 1

    @property
    def scales(self) -> bool:
        """Whether their number follows the load."""
        return self.fewest != self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where the weights are. No keys.

    Attributes:
        uri: `s3://bucket[/prefix]`.
        endpoint: Of the S3 API; None for AWS itself.
        region: To sign for; None leaves it to AWS's own chain.
    """

    uri: str
    endpoint: str | None = None
    region: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `coldstream` reads it from."""
        name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        found = {"COLDSTREAM_STORE": self.uri} if prefix else {"R2_BUCKET": name}
        if self.endpoint is not None:
            found = {"R2_ENDPOINT": self.endpoint, **found}
        if self.region is not None:
            found["AWS_REGION"] = self.region
        return found

    @property
    def is_here(self) -> bool:
        """Whether the endpoint is this very machine, which no node reaches."""
        return is_loopback(urlsplit(self.endpoint or "").hostname or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The CDN in front of the bucket, which nodes read weights through.

    Attributes:
        url: Scheme and host.
        secrets: Names of those that it asks for; empty when it is public.
    """

    url: str
    secrets: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether it is this very machine, which no node reaches."""
        return is_loopback(urlsplit(self.url).hostname or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks for.

    Attributes:
        target: One of `TARGETS`.
        loader: "coldstream" or "runai".
        replicas: How many.
        spot: Whether the machine may be taken back; None: as is usual for the target.
        cloud: As SkyPilot writes it, `aws`, `gcp/us-central1`; None for any.
        image: A container image with vLLM; None to install vLLM on the machine.
        port: Where it answers.
        fallback: "hf" to stream from Hugging Face when the bucket fails, or None.
        command: What a job runs against the model; None for what serves.
        cache_path: A folder of the node for the local copies; None for one that goes with the container.
    """

    target: str
    loader: str = "coldstream"
    replicas: Replicas = Replicas()
    spot: bool | None = None
    cloud: str | None = None
    image: str | None = IMAGE
    port: int = 8000
    fallback: str | None = None
    command: str | None = None
    cache_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on its way to a target. Checked; made by `deploy`.

    Attributes:
        model: `org/model` in the bucket.
        slug: The same as a DNS label.
        wish: What was asked for.
        spot: Whether the machines may be taken back.
        gpus: In each machine.
        flags: For vLLM, tuned.
        connections: At most.
        memory_bytes: Of Run:ai's buffer; None with our loader, which takes what is free.
        bucket: Where the weights are.
        domain: The CDN that they are read through; None: from the bucket alone.
        disk_gib: That a machine needs.
        start_seconds: That a first start may take, from a machine that runs to one that answers.
        load_seconds: The prediction for the weights, for people.
        size: Of the weights, for people.
        version: Of coldstream.
    """

    model: str
    slug: str
    wish: Wish
    spot: bool
    gpus: Gpus
    flags: tuple[str, ...]
    connections: int
    memory_bytes: int | None
    bucket: Bucket
    domain: Domain | None
    disk_gib: int
    start_seconds: int
    load_seconds: float
    size: str
    version: str

    @property
    def host(self) -> str:
        """Where vLLM listens: a job asks from the same machine."""
        return "127.0.0.1" if self.wish.target == "sky-job" else "0.0.0.0"  # noqa: S104  # behind its API key

    @property
    def on_demand_replicas(self) -> int:
        """Of a spot service's replicas, those that are not spot: one stays when all spot machines are taken at once."""
        return int(self.spot and self.wish.target == "sky-serve" and self.wish.replicas.fewest > 1)

    @property
    def own_arguments(self) -> tuple[str, ...]:
        """For `coldstream serve`, before `--`."""
        found = [self.model, "--connections", str(self.connections)]
        if self.wish.loader != "coldstream":
            found += ["--loader", self.wish.loader]
        if self.memory_bytes is not None:
            found += ["--memory", f"{self.memory_bytes // GIB}GiB"]
        if self.wish.fallback is not None:
            found += ["--fallback", self.wish.fallback]
        return tuple(found)

    @property
    def vllm_arguments(self) -> tuple[str, ...]:
        """For vLLM, after `--`."""
        return ("--host", self.host, "--port", str(self.wish.port), *self.flags)

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that are no secret."""
        return self.bucket.environment | ({"R2_CDN_DOMAIN": self.domain.url} if self.domain else {})

    @property
    def needed_secrets(self) -> tuple[str, ...]:
        """Names of those without which it does not run as planned, or would be open to anybody."""
        return ("R2_ACCESS_KEY", "R2_SECRET_KEY", "VLLM_API_KEY", *self.domain_secrets)

    @property
    def domain_secrets(self) -> tuple[str, ...]:
        """Of these, the names of those that open the CDN."""
        return self.domain.secrets if self.domain else ()

    @property
    def other_secrets(self) -> tuple[str, ...]:
        """Names of those that may be empty."""
        return ("R2_SESSION_TOKEN", "COLDSTREAM_BUNDLE_KEY", *(("HF_TOKEN",) if self.wish.fallback else ()))

    @property
    def dstack_gpu(self) -> str:
        """The GPUs as dstack writes them: name, memory, how many."""
        kind = self.gpus.gpu
        return f"{kind.name.partition('-')[0]}:{kind.memory_gib}GB:{self.gpus.count}"

    @property
    def requirement(self) -> str:
        """Coldstream, for pip; with OpenSSL's newer half, which spares CPU."""
        return f"coldstream[tls]=={self.version}"

    @property
    def vllm_requirement(self) -> str:
        """VLLM, for pip, where there is no image."""
        return f"vllm{'[runai]' if self.wish.loader == 'runai' else ''}=={VLLM_VERSION}"


def parse_replicas(text: str) -> Replicas:
    """Reads `2`, or `1..4`.

    Raises:
        UsageError: It is neither, or none at all.
    """
    fewest, dots, most = text.strip().partition("..")
    hint = "a number like 2, or a range like 1..4"
    if not (fewest.isdecimal() and (most.isdecimal() or not dots)) or len(text) > 12:
        raise UsageError(f"{text[:40]!r} is no number of replicas", hint=hint)
    found = Replicas(fewest=int(fewest), most=int(most) if dots else int(fewest))
    if found.fewest == 0:
        raise UsageError("0 replicas serve nothing", hint=hint)
    if found.most < found.fewest or found.most > _REPLICAS_MAX:
        raise UsageError(f"{text!r} is no range of replicas", hint=f"{hint}, at most {_REPLICAS_MAX}")
    return found


def bucket_of(settings: Settings) -> Bucket:
    """The bucket that is configured, without its keys.

    Raises:
        UsageError: It is a folder of this machine.
        ConfigError: None is configured, or badly.
    """
    uri = settings.store_uri()
    if not uri.startswith("s3://"):
        raise UsageError(
            f"{uri} is a folder of this machine, and no node reads it", hint="name a bucket: --store s3://…"
        )
    return Bucket(uri=uri, endpoint=settings.endpoint(), region=settings.region)


def domain_of(settings: Settings, loader: str) -> Domain | None:
    """The CDN that is configured, without its secrets' values; None without one, or when the loader cannot use it.

    Raises:
        ConfigError: It is configured badly.
    """
    # Run:ai's loader speaks S3 alone.
    cdn = cdn_of(settings) if loader == "coldstream" else None
    if cdn is None:
        return None
    return Domain(url=cdn.url, secrets=tuple(name for name in CDN_SECRETS if settings.get(name)))


def deploy(
    name: str, wish: Wish, advice: Advice, bucket: Bucket, *, domain: Domain | None = None, version: str
) -> Deployment:
    """Checks that a wish can be fulfilled, and adds what follows from the model.

    Args:
        name: `org/model` in the bucket.
        wish: What was asked for.
        advice: For this model on those GPUs.
        bucket: Where the weights are.
        domain: The CDN in front of it, see `domain_of`.
        version: Of coldstream, to be installed.

    Raises:
        UsageError: The model does not fit, or the wish contradicts itself or its target.
    """
    _check(wish)
    fit = advice.fit
    if fit.fault is not None:
        found = smallest(advice.model, fit.gpus, utilization=fit.utilization)
        hint = f"what fits: --gpus {found}" if found else "choose GPUs with more memory, or a quantised model"
        raise UsageError(f"{name} does not fit: {fit.fault}", hint=hint)
    tuned = next(tuned for tuned in advice.loaders if tuned.loader == wish.loader)
    copy_gib = math.ceil(advice.model.bytes / GIB)
    seconds = tuned.prediction.seconds
    install = 0 if wish.image else _INSTALL_SECONDS
    return Deployment(
        model=checked_name(name),
        slug=_slug(name),
        wish=wish,
        spot=wish.target in _BOUGHT and wish.spot is not False,
        gpus=fit.gpus,
        flags=fit.flags(),
        connections=tuned.connections,
        memory_bytes=tuned.memory_bytes if wish.loader == "runai" else None,
        bucket=bucket,
        domain=domain,
        # The cache takes half of its file system at most.
        disk_gib=_rounded(_DISK_GIB + 2 * copy_gib, 10),
        start_seconds=_rounded(_START_SECONDS + install + 4 * seconds, 60),
        load_seconds=seconds,
        size=format_bytes(advice.model.bytes),
        version=version,
    )


def _check(wish: Wish) -> None:
    """Raises UsageError for a wish that its target cannot fulfil."""
    target = wish.target
    if target not in TARGETS:
        raise UsageError(f"{target!r} is no target", hint=f"known: {', '.join(TARGETS)}")
    if wish.replicas.most > 1 and target in _ONE_MACHINE:
        raise UsageError(
            f"{target} is one replica, and {wish.replicas.most} are asked for", hint="try sky-serve or k8s"
        )
    if wish.replicas.scales and target not in _RANGES:
        raise UsageError(f"{target} takes a number of replicas, no range", hint=f"ranges go with {', '.join(_RANGES)}")
    if wish.spot is not None and target not in _BOUGHT:
        raise UsageError(f"{target} runs on machines that are there already", hint="leave --spot and --on-demand out")
    if wish.image is None and target in _IMAGE_ONLY:
        raise UsageError(f"{target} runs an image", hint="leave --no-image out")
    if (wish.command is None) == (target == "sky-job"):
        message = "a job needs something to run" if wish.command is None else f"{target} serves, and runs no command"
        raise UsageError(message, hint="--target sky-job --command 'python ask.py'")
    if target == "kserve" and wish.port != _KSERVE_PORT:
        raise UsageError(f"KServe asks at port {_KSERVE_PORT}", hint="leave --port out")
    if wish.cache_path is not None and target not in _CACHE_PATHS:
        raise UsageError(f"{target} has no folders of nodes", hint=f"--cache-path goes with {', '.join(_CACHE_PATHS)}")
    for what, text, pattern in (
        ("image", wish.image, _IMAGE_NAME),
        ("cloud", wish.cloud, _CLOUD),
        ("folder", wish.cache_path, _FOLDER),
    ):
        if text is not None and not pattern.fullmatch(text):
            raise UsageError(f"{text[:60]!r} is no {what}", hint="see: coldstream template render --help")
    if wish.command is not None and not all(char.isprintable() or char == "\n" for char in wish.command):
        raise UsageError("the command holds characters that cannot be shown", hint="put it into a script")


def _slug(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower())[:_SLUG_MAX].strip("-")
    return plain if plain[:1].isalpha() else f"m-{plain}".rstrip("-")


def _rounded(number: float, step: int) -> int:
    return math.ceil(number / step) * step
