"""The options of `coldstream template` and `coldstream launch`. Pure.

A flag is declared once, as a field of `DeployOptions`. The commands' flags, the equivalent command line, the check
against the target, and what `coldstream serve` gets on the node are all derived from that declaration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from coldstream.errors import UsageError
from coldstream.tune.gpus import Gpus, parse_gpus
from coldstream.tune.predict import parse_cloud

TARGETS = ("sky", "sky-serve", "sky-job", "k8s", "kserve", "dstack", "compose")
# The other targets run on machines that exist already, so that spot and on-demand do not differ.
RENTING = ("sky", "sky-serve", "sky-job", "dstack")
CONTAINERS = ("k8s", "kserve", "compose")
_ONE_MACHINE = ("sky", "sky-job", "compose")
_SCALING = ("sky-serve", "dstack")
VLLM_VERSION = "0.32.0"
IMAGE = f"vllm/vllm-openai:v{VLLM_VERSION}"
SGLANG_VERSION = "0.5.23"
SGLANG_IMAGE = f"lmsysorg/sglang:v{SGLANG_VERSION}"
# For runtimes with vLLM, which need only Python's standard library and CA certificates.
PYTHON_IMAGE = "docker.io/library/python:3.12-slim-bookworm"
_KSERVE_PORT = 8000
_REPLICAS_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """The number of replicas: a range if it follows the load."""

    fewest: int = 1
    most: int = 1

    @property
    def scales(self) -> bool:
        return self.fewest != self.most

    def __str__(self) -> str:
        return f"{self.fewest}..{self.most}" if self.scales else str(self.fewest)


def parse_replicas(text: str) -> Replicas:
    """Parses `2`, or `1..4`. Raises UsageError for other text, and for a number out of range."""
    fewest, dots, most = text.strip().partition("..")
    hint = "a number like 2, or a range like 1..4"
    if not (fewest.isdecimal() and (most.isdecimal() or not dots)) or len(text) > 12:
        raise UsageError(f"{text[:40]!r} is not a number of replicas", hint=hint)
    replicas = Replicas(fewest=int(fewest), most=int(most) if dots else int(fewest))
    if replicas.fewest == 0:
        raise UsageError("0 replicas would serve nothing", hint=hint)
    if not replicas.fewest <= replicas.most <= _REPLICAS_MAX:
        raise UsageError(f"{text!r} is not a range of replicas", hint=f"{hint}, at most {_REPLICAS_MAX}")
    return replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """How a field of `DeployOptions` is written on the command line, and which targets and commands have it.

    Attributes:
        name: `--name`, or `--yes/--no` for a field that is True, False or None.
        bounds: The least and the greatest value, both inclusive.
        pattern: What the text must match in full.
        is_for_serve: Whether `coldstream serve` has the same flag and gets its value on the node.
    """

    name: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    bounds: tuple[int, int | None] | None = None
    parse: Callable[[str], Any] | None = None
    pattern: str | None = None
    targets: tuple[str, ...] = TARGETS
    commands: tuple[str, ...] = ("template", "launch")
    is_for_serve: bool = False

    def arguments(self, value: Any) -> list[str]:
        if isinstance(value, bool):
            return [self.name.split("/")[0 if value else 1]]
        return [self.name, str(value)]


def _flag(name: str, summary: str, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"flag": Flag(name=name, help=summary, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """The options of a deployment; `check` tells whether they go together."""

    target: str = _flag("--target", "What to deploy with.", MISSING, choices=TARGETS, commands=("template",))
    gpus: Gpus = _flag(
        "--gpus", "GPUs in each machine, such as L4 or A100-80GB:4.", MISSING, metavar="GPU[:N]", parse=parse_gpus
    )
    spot: bool | None = _flag(
        "--spot/--on-demand", "Rent spot or on-demand machines.  [default: spot]", targets=RENTING
    )
    cloud: str | None = _flag(
        "--cloud",
        "Cloud and optional region, as in aws or gcp/us-central1.  [default: any]",
        parse=parse_cloud,
        pattern=r"[a-z][a-z0-9-]{0,30}(/[A-Za-z0-9*-]{1,40}){0,2}",
    )
    replicas: Replicas = _flag(
        "--replicas",
        "Number of replicas; a range scales with the load. With launch, runs a service.  [default: 1]",
        Replicas(),
        metavar="N|N..M",
        parse=parse_replicas,
    )
    engine: str = _flag(
        "--engine",
        "The engine that serves the model. SGLang comes from its image.",
        "vllm",
        choices=("vllm", "sglang"),
        targets=tuple(target for target in TARGETS if target != "kserve"),
        is_for_serve=True,
    )
    loader: str = _flag(
        "--loader", "How vLLM reads the weights.", "coldstream", choices=("coldstream", "runai"), is_for_serve=True
    )
    adapters: str | None = _flag(
        "--adapters",
        "LoRA adapters in the bucket, with commas between, or all: those of this model.",
        metavar="NAME,...|all",
        pattern=r"[A-Za-z0-9._/-]+(,[A-Za-z0-9._/-]+)*",
        is_for_serve=True,
    )
    speculative_config: str | None = _flag(
        "--speculative-config",
        'vLLM\'s flag for a draft model in the bucket: \'{"model": "org/draft", ...}\'.',
        metavar="JSON",
        pattern=r"[ -~]{2,2000}",
    )
    runtime: str | None = _flag(
        "--runtime",
        "Runtime from which nodes start vLLM.  [default: the newest in the bucket that fits]",
        metavar="DIGEST|none",
        pattern=r"none|(sha256:)?[0-9a-f]{4,64}",
    )
    image: str | None = _flag(
        "--image",
        "Container image with the engine, or for --runtime.  [default: the engine's own, if there is no runtime]",
        pattern=r"[a-z0-9][A-Za-z0-9._:/@-]{0,254}",
    )
    no_image: bool = _flag(
        "--no-image",
        "Install vLLM on the machine instead of using an image.",
        default=False,
        targets=tuple(target for target in TARGETS if target not in CONTAINERS),
    )
    package: str | None = _flag(
        "--package",
        "Install coldstream with pip from this wheel, URL or requirement instead of from the bucket.",
        metavar="SPEC",
        pattern=r"[!-,.-~][ -~]{0,299}",
    )
    port: int = _flag("--port", "Port of the model's API.", 8000, bounds=(1, 65535))
    max_model_len: int | None = _flag("--max-model-len", "Context length, in tokens, to support.", bounds=(1, None))
    fallback: str | None = _flag(
        "--fallback", "Where to stream from if the bucket fails at start-up.", choices=("hf",), is_for_serve=True
    )
    command: str | None = _flag(
        "--command", "Run this command against the model as a job, then exit.", metavar="COMMAND", targets=("sky-job",)
    )
    cache_path: str | None = _flag(
        "--cache-path",
        "Directory of the node for local copies, which outlive the container.",
        metavar="DIR",
        pattern=r"/[A-Za-z0-9._/-]{1,200}",
        targets=CONTAINERS,
        commands=("template",),
    )

    @property
    def has_own_engine(self) -> bool:
        """Whether the engine comes from an image or an index, as the user chose, unless a runtime was chosen too."""
        return self.engine != "vllm" or self.runtime == "none" or bool(self.image or self.no_image or self.package)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple(self.adapters.split(",")) if self.adapters else ()

    def changed(self) -> Iterator[tuple[Flag, Any]]:
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                yield item.metadata["flag"], value

    def arguments(self) -> list[str]:
        """The options on the command line of `coldstream template`."""
        return [word for flag, value in self.changed() for word in flag.arguments(value)]

    @property
    def _contradictions(self) -> Mapping[str, bool]:
        """Pairs of options that do not go together, and whether both are chosen."""
        has_runtime, adapters = self.runtime not in (None, "none"), bool(self.adapters)
        other, config = self.loader != "coldstream", bool(self.speculative_config)
        pairs = {
            "--image and --no-image": bool(self.image and self.no_image),
            "--package and --runtime": bool(self.package and has_runtime),
            f"--adapters and --loader {self.loader}": adapters and other,
            f"--speculative-config and --loader {self.loader}": config and other,
        }
        # Runtimes have vLLM, and SGLang comes from its image.
        of_vllm = {"--adapters": adapters, "--speculative-config": config, "--no-image": self.no_image}
        of_vllm |= {"--runtime": has_runtime, f"--loader {self.loader}": other}
        engine = self.engine
        return pairs | {f"{flag} and --engine {engine}": engine != "vllm" and on for flag, on in of_vllm.items()}

    def check(self) -> None:
        """Raises UsageError for options that contradict each other or do not apply to the target."""
        target = self.target
        if target not in TARGETS:
            raise UsageError(f"{target!r} is not a target", hint=f"known: {', '.join(TARGETS)}")
        for flags, applies in self._contradictions.items():
            if applies:
                raise UsageError(f"{flags} contradict each other", hint="keep one of them")
        for flag, value in self.changed():
            if target not in flag.targets:
                raise UsageError(
                    f"{flag.name} does not apply to {target}", hint=f"it applies to {', '.join(flag.targets)}"
                )
            if flag.pattern and not re.fullmatch(flag.pattern, value):
                raise UsageError(
                    f"{value[:60]!r} is not valid for {flag.name}", hint="see: coldstream template render --help"
                )
        if self.replicas.most > 1 and target in _ONE_MACHINE:
            raise UsageError(
                f"{target} runs one replica, not {self.replicas.most}", hint="use --target sky-serve or k8s"
            )
        if self.replicas.scales and target not in _SCALING:
            raise UsageError(
                f"{target} takes a fixed number of replicas, not a range", hint=f"ranges: {', '.join(_SCALING)}"
            )
        if target == "sky-job" and self.command is None:
            raise UsageError("a job needs a command to run", hint="--target sky-job --command 'python ask.py'")
        if self.command and not all(char.isprintable() or char == "\n" for char in self.command):
            raise UsageError("the command has characters that cannot be displayed", hint="put it into a script")
        if target == "kserve" and self.port != _KSERVE_PORT:
            raise UsageError(f"KServe requires port {_KSERVE_PORT}", hint="remove --port")


FLAGS: Mapping[str, Flag] = {item.name: item.metadata["flag"] for item in fields(DeployOptions)}
DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in fields(DeployOptions)}


def read_options(values: Mapping[str, Any]) -> DeployOptions:
    """Parses the values of the command line, by field; None stands for the default. Raises UsageError."""
    present = {name: value for name, value in values.items() if value is not None}
    return DeployOptions(
        **{name: parse(value) if (parse := FLAGS[name].parse) else value for name, value in present.items()}
    )
