"""Checks a file that starts vLLM: YAML of any target, a shell script, or a guide in Markdown. Pure.

It reads the text twice: as shell lines without comments, which works in every kind of file and in scripts inside YAML;
and YAML as trees of nodes with line numbers, which are never turned into objects, so that tags and recursive aliases
have no effect. No finding shows the value of a secret.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from coldstream.errors import UsageError

BYTES_MAX = 1 << 20
# Limit of nodes to visit; an aliased node counts once.
_NODES_MAX = 100_000
# Rule to hint. docs/template.md describes each rule.
RULES = {
    "yaml": "fix the syntax",
    "inline-secret": "keep only the name here, and pass the value by --secret NAME, a Secret or the environment",
    "hf-transfer": "remove it, or set HF_XET_HIGH_PERFORMANCE=1",
    "loader-key": "remove it: vLLM refuses to start with it",
    "missing-host": "add --host 0.0.0.0 with an API key, or --host 127.0.0.1",
    "open-port": "set VLLM_API_KEY, as a secret",
    "r2-region": "set AWS_REGION=auto",
    "fallback-without-spot": "set use_spot: true: only spot machines have a fallback",
    "mixed-any-of": "make all entries spot, and set dynamic_ondemand_fallback: true in the service's replica_policy",
    "recovery-in-service": "remove job_recovery: a service replaces its replicas anyway",
    "service-port": "set resources.ports or service.ports to the port of the model's API",
    "key-twice": "keep it only in secrets",
}
_KEY_NAME = (
    r"(?:[A-Z][A-Z0-9]*_)*(?:SECRET|TOKEN|PASSWORD|API_KEY|(?:SECRET_)?ACCESS_KEY(?:_ID)?|SECRET_KEY|BUNDLE_KEY"
    r"|ACCESS_CLIENT_ID|CDN_HEADER)"
)
# Not `${NAME:-…}` of a shell.
_ASSIGNED = re.compile(
    rf"(?<!\$\{{)(?<![A-Za-z0-9_$.-])(?P<name>{_KEY_NAME})(?![A-Za-z0-9_])[\"']?\s*[:=]\s*(?P<value>\S*)"
)
_NAMED = re.compile(rf"{_KEY_NAME}$")
_KEY_FLAG = re.compile(r"(?P<name>--(?:api-key|hf-token|token))[= ]+(?P<value>\S+)")
# The formats of known issuers: such a string is a secret anywhere.
_SHAPES = re.compile(r"\bhf_[A-Za-z0-9]{30,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bsk-[A-Za-z0-9_-]{32,}")
_HARMLESS = re.compile(
    r"[\"'\s]*(?:$|[\"'#$<|>{}*&,=…]|null\b|~|(?:hf_)?your[_-]|x{3,}|\.\.\.|required\b|None\b|str\b|optional\b|os\.|process\.env|getenv)"
    r"|.*(?:environ|getenv)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$")
_R2 = re.compile(r"\.r2\.cloudflarestorage\.com|\bR2_ENDPOINT\b")
_REGION = re.compile(r"\bAWS_(?:DEFAULT_)?REGION\b")
_SERVES = re.compile(r"\bvllm\s+serve\b|vllm\.entrypoints\.openai\.api_server|\bcoldstream\s+serve\b")
_OURS = re.compile(r"\bcoldstream\s+serve\b")
_KEY_SET = re.compile(r"\bVLLM_API_KEY\b|--api-key\b")
_EXTRA = "--model-loader-extra-config"
# `auto` may select Run:ai's loader or vLLM's own.
_LOADER_KEYS = {
    "auto": {"concurrency", "memory_limit", "distributed", "enable_multithread_load", "num_threads"},
    "runai_streamer": {"concurrency", "memory_limit", "distributed"},
    "runai_streamer_sharded": {"pattern"},
    "coldstream": {"uri", "concurrency", "memory_limit", "workers", "verify", "cache", "enable_weights_track"},
}


@dataclass(frozen=True, slots=True)
class TemplateFinding:
    """A problem in a file: a key of `RULES`, and the number of the line, from 1."""

    rule: str
    line: int
    text: str

    @property
    def hint(self) -> str:
        return RULES[self.rule]


def check(text: str, name: str) -> list[TemplateFinding]:
    """Checks the text of a file, whose name tells its format; by line, with each rule at most once per line.

    Raises UsageError if the text is too large.
    """
    if len(text) > BYTES_MAX:
        raise UsageError(f"{name} is larger than {BYTES_MAX >> 20} MiB", hint="check a deployment file")
    ending = name.rpartition(".")[2].lower()
    lines = _shell_lines(text, fenced_only=ending in {"md", "markdown"})
    # Also in comments and prose.
    shaped = [number for number, line in enumerate(text.splitlines(), 1) if _SHAPES.search(line)]
    findings = [TemplateFinding("inline-secret", number, "the value of a secret is here") for number in shaped]
    for number, line in lines.items():
        findings += _check_line(number, line)
    endpoint = next((number for number, line in lines.items() if _R2.search(line)), None)
    # coldstream uses `auto` by default.
    if endpoint and not any(_REGION.search(line) or _OURS.search(line) for line in lines.values()):
        findings.append(TemplateFinding("r2-region", endpoint, "an R2 endpoint without AWS_REGION"))
    # Other texts are rarely valid YAML.
    if ending in {"yaml", "yml"}:
        findings += _check_yaml(text, lines)
    unique = {(item.rule, item.line): item for item in reversed(findings)}
    return sorted(unique.values(), key=lambda item: (item.line, item.rule))


def _shell_lines(text: str, *, fenced_only: bool) -> dict[int, str]:
    """Shell lines without comments, with continuation lines joined, by the number of the first line."""
    lines: dict[int, str] = {}
    parts: list[str] = []
    begun = 0
    inside = not fenced_only
    for number, raw in enumerate(text.splitlines(), 1):
        if fenced_only and raw.lstrip().startswith(("```", "~~~")):
            inside = not inside
        elif inside:
            begun = begun if parts else number
            plain = _COMMENT.sub("", raw).rstrip()
            parts.append(plain.removesuffix("\\"))
            if not plain.endswith("\\"):
                lines[begun] = " ".join(parts)
                parts = []
    return lines | {begun: " ".join(parts)} if parts else lines


def _check_line(number: int, line: str) -> Iterator[TemplateFinding]:
    for match in (*_ASSIGNED.finditer(line), *_KEY_FLAG.finditer(line)):
        if not _is_harmless(match["value"]):
            yield TemplateFinding("inline-secret", number, f"{match['name']} is set to a value here")
    if "HF_HUB_ENABLE_HF_TRANSFER" in line:
        yield TemplateFinding("hf-transfer", number, "HF_HUB_ENABLE_HF_TRANSFER has no effect")
    serves = _SERVES.search(line)
    if serves or "loader" in line:
        words = _words(line[serves.start() :] if serves else line)
        yield from _check_command(words, number, serves=serves is not None)


def _is_harmless(value: str) -> bool:
    """Whether the value of a secret is empty, a variable, a placeholder or the beginning of a structure."""
    plain = value.strip().strip("\"'")
    return not plain or _HARMLESS.match(plain) is not None


def _words(text: str) -> list[str]:
    """The words of a command, with `--a_flag=value` as two."""
    try:
        parts = shlex.split(text)
    except ValueError:
        # A quote that ends on another line.
        parts = text.split()
    words: list[str] = []
    for word in parts:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            words += [flag.replace("_", "-"), *([value] if equals else [])]
        else:
            words.append(word)
    return words


def _check_command(words: Sequence[str], number: int, *, serves: bool) -> Iterator[TemplateFinding]:
    # With `"$@"` or `--config`, the other arguments are not visible here.
    if serves and not {"--host", "--uds", "--config", "$@", "$$@"} & {*words}:
        text = "vLLM is started without --host, so it listens on every interface"
        yield TemplateFinding("missing-host", number, text)
    extra, form = _after(words, _EXTRA), _load_format(words)
    allowed = _LOADER_KEYS.get(form)
    if extra is None or "$" in extra or allowed is None:
        return
    try:
        config = json.loads(extra)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        yield TemplateFinding("loader-key", number, f"{_EXTRA} is not a JSON object")
    elif unknown := sorted(str(key)[:40] for key in config.keys() - allowed):
        known = ", ".join(sorted(allowed))
        text = f"{form} does not support {', '.join(map(repr, unknown))} in {_EXTRA}; it supports {known}"
        yield TemplateFinding("loader-key", number, text)


def _load_format(words: Sequence[str]) -> str:
    """The load format of a command, also if it is implied."""
    explicit = _after(words, "--load-format")
    if explicit not in {None, "auto"}:
        return str(explicit)
    if _OURS.search(" ".join(words)):
        return "runai_streamer" if _after(words, "--loader") == "runai" else "coldstream"
    return "runai_streamer" if any(word.startswith(("s3://", "gs://", "az://")) for word in words) else "auto"


def _after(words: Sequence[str], flag: str) -> str | None:
    return next((value for word, value in pairwise(words) if word == flag), None)


def _check_yaml(text: str, lines: Mapping[int, str]) -> Iterator[TemplateFinding]:
    try:
        documents = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        problem = getattr(exc, "problem", None) or "it cannot be parsed"
        yield TemplateFinding("yaml", mark.line + 1 if mark else 1, f"not valid YAML: {problem}")
        return
    except RecursionError:
        yield TemplateFinding("yaml", 1, "not readable YAML: nested too deeply")
        return
    has_key = any(_KEY_SET.search(line) for line in lines.values())
    runs_vllm = any("vllm" in line.lower() or _OURS.search(line) for line in lines.values())
    for node in documents:
        yield from _check_sky(node)
        yield from _check_mappings(node)
        if runs_vllm and not has_key and (port := _open_port(node)) is not None:
            yield _finding("open-port", port, "a port is open, but vLLM has no API key")


def _finding(rule: str, node: Node, text: str) -> TemplateFinding:
    return TemplateFinding(rule, int(node.start_mark.line) + 1, text)


def _check_sky(root: Node) -> Iterator[TemplateFinding]:
    secrets = {key.value for key, _ in _pairs(_get(root, "secrets"))}
    for key, _ in _pairs(_get(root, "envs")):
        if key.value in secrets:
            yield _finding("key-twice", key, f"{key.value[:60]} is in both envs and secrets")
    service, resources = _get(root, "service"), _get(root, "resources")
    if service is None or resources is None:
        return
    choices = [choice for name in ("any_of", "ordered") for choice in _items(_get(resources, name))]
    of_all = _is_true(_get(resources, "use_spot"))
    spots = [of_all if (own := _get(choice, "use_spot")) is None else _is_true(own) for choice in choices] or [of_all]
    if len({*spots}) > 1:
        yield _finding("mixed-any-of", choices[0], "a service mixes spot and on-demand machines")
    policy = _get(service, "replica_policy")
    for name in ("dynamic_ondemand_fallback", "base_ondemand_fallback_replicas"):
        fallback = _get(policy, name)
        if fallback is not None and _text(fallback).lower() not in {"false", "0"} and not any(spots):
            yield _finding("fallback-without-spot", fallback, f"{name} without use_spot")
    for holder in (resources, *choices):
        if (recovery := _get(holder, "job_recovery") or _get(holder, "spot_recovery")) is not None:
            yield _finding("recovery-in-service", recovery, "job_recovery is only for jobs")
    if not any(_get(holder, "ports") is not None for holder in (service, resources, *choices)):
        yield _finding("service-port", service, "a service without a port")


def _check_mappings(root: Node) -> Iterator[TemplateFinding]:
    """Problems in any mapping: a variable in Kubernetes' form, a command as a list."""
    for node in _descendants(root):
        name, value = _text(_get(node, "name")), _get(node, "value")
        if value is not None and _NAMED.fullmatch(name) and not _is_harmless(_text(value)):
            yield _finding("inline-secret", value, f"{name} is set to a value here")
        listed = [item for key in ("entrypoint", "command", "args") for item in _items(_get(node, key))]
        if len(listed) > 1 and all(isinstance(item, ScalarNode) for item in listed):
            words = list(map(_text, listed))
            # Arguments of `vllm serve`, the entry point of vLLM's image.
            is_image = "vllm-openai" in _text(_get(node, "image")) and _get(node, "entrypoint") is None
            extends_image = is_image and (_get(node, "args") is None or _get(node, "command") is None)
            serves = extends_image or _SERVES.search(" ".join(words)) is not None
            yield from _check_command(_words(shlex.join(words)), int(listed[0].start_mark.line) + 1, serves=serves)


def _open_port(root: Node) -> Node | None:
    """The first port that is open to other machines, in the forms of SkyPilot, Compose and Kubernetes."""
    port = _get(_get(root, "resources"), "ports") or _get(_get(root, "service"), "ports")
    if port is not None:
        return port
    for _, service in _pairs(_get(root, "services")):
        for port in _items(_get(service, "ports")):
            if not _text(port).startswith(("127.", "localhost", "[::1]")):
                return port
    if _text(_get(root, "kind")) == "Service":
        return _get(_get(root, "spec"), "ports")
    return next((port for node in _descendants(root) if (port := _get(node, "containerPort")) is not None), None)


def _descendants(root: Node) -> Iterator[Node]:
    """A node and all below it, each once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting and len(seen) < _NODES_MAX:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += [*_items(node), *(value for _, value in _pairs(node))]


def _pairs(node: Node | None) -> list[tuple[Node, Node]]:
    """The entries of a mapping whose keys are scalars; none of another node."""
    pairs = node.value if isinstance(node, MappingNode) else ()
    return [(key, value) for key, value in pairs if isinstance(key, ScalarNode)]


def _items(node: Node | None) -> list[Node]:
    return list(node.value) if isinstance(node, SequenceNode) else []


def _get(node: Node | None, name: str) -> Node | None:
    return next((value for key, value in _pairs(node) if key.value == name), None)


def _text(node: Node | None) -> str:
    """The text of a scalar; empty for another node."""
    return str(node.value) if isinstance(node, ScalarNode) else ""


def _is_true(node: Node | None) -> bool:
    return _text(node).lower() in {"true", "yes", "on"}
