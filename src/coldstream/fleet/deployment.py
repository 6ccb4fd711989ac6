"""What is to run, and where, and the file that starts it. Pure.

A deployment names secrets and has no place for their values, so that none can reach a file that is made from it.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

from coldstream.errors import UsageError
from coldstream.fleet.deploy_options import (
    CONTAINERS,
    FLAGS,
    IMAGE,
    PYTHON_IMAGE,
    RENTING,
    SGLANG_IMAGE,
    VLLM_VERSION,
    DeployOptions,
)
from coldstream.machine.child_environment import CDN_SECRETS
from coldstream.machine.hardware import is_loopback
from coldstream.model.names import checked_name
from coldstream.places.cdn_domain import cdn_of
from coldstream.runtime.runtime_manifest import RuntimeManifest
from coldstream.settings import Settings
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import NetworkPath
from coldstream.tune.recommended import Advice, LoaderSettings, advise, smallest
from coldstream.units import GIB, format_bytes

# DNS labels have 63 characters; targets append some of their own.
_LABEL_MAX = 40
_DIGEST_DIGITS = 6
# The image, the environment and the system, besides the local copy of the model.
_DISK_GIB = 60
# Start-up besides the weights: imports, compilation without a bundle, CUDA graphs.
_START_SECONDS = 240
_INSTALL_SECONDS = 180
# Of wrapped commands.
_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where the weights are: `s3://bucket[/prefix]`, without keys. AWS itself has no endpoint."""

    uri: str
    endpoint: str | None = None
    region: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `coldstream` reads it from."""
        name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        store = {"COLDSTREAM_STORE": self.uri} if prefix else {"R2_BUCKET": name}
        variables = {"R2_ENDPOINT": self.endpoint, **store, "AWS_REGION": self.region}
        return {name: value for name, value in variables.items() if value is not None}

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is this machine, which no node can reach."""
        return is_loopback(urlsplit(self.endpoint or "").hostname or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The CDN in front of the bucket, with the names of the secrets that it asks for; a public one has none."""

    url: str
    secrets: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model with checked options; made by `deploy`.

    Attributes:
        advice: The recommendation for the machine, as far as the machine is known.
        domain: The CDN that weights are read through; None reads from the bucket only.
        runtime: The image in the bucket that nodes start from; None installs `options.package`.
    """

    options: DeployOptions
    advice: Advice
    bucket: Bucket
    domain: Domain | None
    runtime: RuntimeManifest | None = None

    @property
    def model(self) -> str:
        return self.advice.model.name

    @property
    def label(self) -> str:
        """The model's name without its organisation, as a DNS label; models may share it."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.model.rpartition("/")[2].lower())[:_LABEL_MAX].strip("-")
        return plain if plain[:1].isalpha() else f"m-{plain}"[:_LABEL_MAX].rstrip("-")

    @property
    def slug(self) -> str:
        """The name of the deployed resources, of this model only: the label of `a/Model` is also that of `b/Model`."""
        digest = hashlib.sha256(self.model.encode()).hexdigest()[:_DIGEST_DIGITS]
        return f"{self.label[: _LABEL_MAX - _DIGEST_DIGITS - 1].rstrip('-')}-{digest}"

    @property
    def size(self) -> str:
        return format_bytes(self.advice.model.bytes)

    @property
    def spot(self) -> bool:
        return self.options.target in RENTING and self.options.spot is not False

    @property
    def loader(self) -> LoaderSettings:
        """The tuned settings of the chosen loader, and the predicted time to load the weights."""
        return next(tuned for tuned in self.advice.loaders if tuned.loader == self.options.loader)

    @property
    def disk_gib(self) -> int:
        """The disk of a machine; the cache uses at most half of it."""
        return _rounded(_DISK_GIB + 2 * math.ceil(self.advice.model.bytes / GIB), 10)

    @property
    def start_seconds(self) -> int:
        """How long a first start may take, from a running machine to an answering API."""
        install = _INSTALL_SECONDS if self.has_vllm_in_runtime or self.installs_vllm else 0
        return _rounded(_START_SECONDS + install + 4 * self.loader.prediction.seconds, 60)

    @property
    def on_demand_replicas(self) -> int:
        """How many replicas of a spot service are on demand, for the moment when all spot machines are preempted."""
        return int(self.spot and self.options.target == "sky-serve" and self.options.replicas.fewest > 1)

    @property
    def own_arguments(self) -> tuple[str, ...]:
        """For `coldstream serve`, before `--`."""
        words = [self.model, "--connections", str(self.loader.connections)]
        for flag, value in self.options.changed():
            if flag.is_for_serve:
                words += flag.arguments(value)
            if flag is FLAGS["loader"]:
                # Run:ai's buffer is fixed; coldstream's own loader, the default, adapts to the free memory.
                words += ["--memory", f"{self.loader.memory_bytes // GIB}GiB"]
        return tuple(words)

    @property
    def engine_arguments(self) -> tuple[str, ...]:
        """For the engine, after `--`. A job's command runs on the same machine; others are reached from outside."""
        host = "127.0.0.1" if self.options.target == "sky-job" else "0.0.0.0"  # noqa: S104  # behind its API key
        config, fit = self.options.speculative_config, self.advice.fit
        draft = ("--speculative-config", config) if config else ()
        flags = fit.flags() if self.options.engine == "vllm" else fit.sglang_flags()
        return ("--host", host, "--port", str(self.options.port), *flags, *draft)

    @property
    def engine_name(self) -> str:
        return {"vllm": "vLLM", "sglang": "SGLang"}[self.options.engine]

    @property
    def environment(self) -> Mapping[str, str]:
        return self.bucket.environment | ({"R2_CDN_DOMAIN": self.domain.url} if self.domain else {})

    @property
    def domain_secrets(self) -> tuple[str, ...]:
        return self.domain.secrets if self.domain else ()

    @property
    def needed_secrets(self) -> tuple[str, ...]:
        """The names of secrets without which it would fail, or serve without a key; the CDN's are the last."""
        return ("R2_ACCESS_KEY", "R2_SECRET_KEY", "VLLM_API_KEY", *self.domain_secrets)

    @property
    def other_secrets(self) -> tuple[str, ...]:
        """The names of secrets that may be empty."""
        return ("R2_SESSION_TOKEN", "COLDSTREAM_BUNDLE_KEY", *(("HF_TOKEN",) if self.options.fallback else ()))

    @property
    def secrets(self) -> tuple[str, ...]:
        return (*self.needed_secrets, *self.other_secrets)

    @property
    def has_vllm_in_runtime(self) -> bool:
        return self.runtime is not None and self.runtime.platform.vllm != ""

    @property
    def image(self) -> str | None:
        """The container image; None runs on the machine itself."""
        if self.options.image:
            return self.options.image
        if self.has_vllm_in_runtime:
            return PYTHON_IMAGE if self.options.target in CONTAINERS else None
        if self.options.engine == "sglang":
            return SGLANG_IMAGE
        return None if self.options.no_image else IMAGE

    @property
    def installs_vllm(self) -> bool:
        return self.image is None and not self.has_vllm_in_runtime

    @property
    def vllm_requirement(self) -> str:
        return f"vllm{'[runai]' if self.options.loader == 'runai' else ''}=={VLLM_VERSION}"

    @property
    def software(self) -> str:
        """What is installed on the node, and from where, in a line."""
        engine = f"{self.engine_name} from {self.image}"
        if self.installs_vllm:
            engine = f"vLLM {VLLM_VERSION} from the package index"
        if self.runtime is None:
            return f"{engine}; pip installs {self.options.package}"
        facts = self.runtime.platform
        origin = f"from the bucket (sha256:{self.runtime.digest[:12]}, {format_bytes(self.runtime.image.size)})"
        if self.has_vllm_in_runtime:
            return f"vLLM {facts.vllm} with coldstream {facts.coldstream} {origin}"
        return f"{engine}; coldstream {facts.coldstream} {origin}"


def bucket_of(settings: Settings) -> Bucket:
    """The configured bucket, without its keys. Raises UsageError for a directory, ConfigError without a bucket."""
    uri = settings.store_uri()
    if not uri.startswith("s3://"):
        raise UsageError(
            f"{uri} is a directory of this machine, which no node can read", hint="name a bucket: --store s3://…"
        )
    return Bucket(uri=uri, endpoint=settings.endpoint(), region=settings.region)


def domain_of(settings: Settings, loader: str) -> Domain | None:
    """The configured CDN, without the values of its secrets; None without one, or if the loader cannot use it."""
    # Run:ai's loader supports only S3.
    cdn = cdn_of(settings) if loader == "coldstream" else None
    if cdn is None:
        return None
    return Domain(url=cdn.url, secrets=tuple(name for name in CDN_SECRETS if settings.get(name)))


def network_path(bucket: Bucket, cloud: str | None, cores: int | None = None) -> NetworkPath:
    """The path from a machine of a cloud to the bucket."""
    # AWS limits what goes to other networks, which its own buckets are not.
    is_elsewhere = bucket.endpoint is not None
    return NetworkPath(cloud=cloud.partition("/")[0] if cloud and is_elsewhere else None, cores=cores)


def deploy(
    model: Model,
    options: DeployOptions,
    bucket: Bucket,
    *,
    domain: Domain | None = None,
    network: NetworkPath,
) -> Deployment:
    """Raises UsageError if the model does not fit, or the options contradict each other or the target."""
    options.check()
    checked_name(model.name)
    advice = advise(model, options.gpus, network, context=options.max_model_len)
    fit = advice.fit
    if fit.fault is not None:
        gpus = smallest(model, fit.gpus, utilization=fit.utilization)
        hint = f"what fits: --gpus {gpus}" if gpus else "choose GPUs with more memory, or a quantised model"
        raise UsageError(f"{model.name} does not fit: {fit.fault}", hint=hint)
    return Deployment(options=options, advice=advice, bucket=bucket, domain=domain)


def _rounded(number: float, step: int) -> int:
    return math.ceil(number / step) * step


def render(deployment: Deployment) -> str:
    """The file for the target, from its template in `files/`; the same deployment always gives the same text.

    All external text goes through one of two filters: `quoted`, a double-quoted YAML scalar, or `shell`, a shell word.
    So a model's name cannot become anything but a value.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("coldstream.fleet", "files"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # this is YAML: see the filters
    )
    environment.filters |= {"quoted": _quoted, "shell": shlex.quote, "words": _words}
    template = environment.get_template(f"{deployment.options.target}.yaml.j2")
    program = files("coldstream.runtime").joinpath("bootstrap.py").read_text().rstrip()
    return template.render(d=deployment, options=deployment.options, program=program)


def _quoted(text: str | int) -> str:
    """A double-quoted YAML scalar; characters that are not printable ASCII are escaped."""
    characters = (
        f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else f"\\U{ord(char):08x}" for char in str(text)
    )
    return f'"{"".join(characters)}"'


def _words(arguments: tuple[str, ...], indent: int) -> str:
    """Arguments for a shell, wrapped; a flag and its value stay on one line."""
    groups: list[str] = []
    for word in map(shlex.quote, arguments):
        if groups and not word.startswith("-") and groups[-1].startswith("-") and " " not in groups[-1]:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [""]
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) > _WIDTH - indent:
            lines.append("")
        lines[-1] += f" {group}" if lines[-1] else group
    return (" \\\n" + " " * indent).join(lines)
