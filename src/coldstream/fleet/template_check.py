"""What is wrong with a file that brings vLLM up: YAML of any target, a shell script, or a guide in Markdown. Pure.

Two readings of the same text. Lines are read as a shell would read them, comments apart: that works in every kind of
file, and in scripts inside of YAML. Documents of YAML are read as trees with line numbers, never made into objects, so
that neither tags nor aliases that refer to each other can do anything. No finding shows a secret's value.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldstream.errors import UsageError

if TYPE_CHECKING:
    from yaml.nodes import Node

BYTES_MAX = 1 << 20
# Nodes that are looked at; an alias costs nothing twice.
_NODES_MAX = 100_000
# Rule to what to do about it. Each is described in docs/template.md.
RULES = {
    "yaml": "mend what the parser stumbles over",
    "inline-secret": "name the secret, and give its value outside: --secret NAME, a Secret, the environment",
    "hf-transfer": "nothing reads it any more: remove it, or set HF_XET_HIGH_PERFORMANCE=1",
    "loader-key": "vLLM refuses to start with it: remove it",
    "missing-host": "say where it listens: --host 0.0.0.0 behind an API key, or --host 127.0.0.1",
    "open-port": "set VLLM_API_KEY, as a secret",
    "r2-region": "set AWS_REGION=auto",
    "fallback-without-spot": "set use_spot: true; on-demand machines have nothing to fall back from",
    "mixed-any-of": "all entries spot, and dynamic_ondemand_fallback: true in the service's replica_policy",
    "recovery-in-service": "remove job_recovery: the service replaces its replicas by itself",
    "service-port": "set resources.ports, or service.ports, to the port that is served",
    "key-twice": "keep it among the secrets",
}
_KEY_NAME = (
    r"(?:[A-Z][A-Z0-9]*_)*(?:SECRET|TOKEN|PASSWORD|API_KEY|(?:SECRET_)?ACCESS_KEY(?:_ID)?|SECRET_KEY|BUNDLE_KEY"
    r"|ACCESS_CLIENT_ID|CDN_HEADER)"
)
# Not `${NAME:-…}`, which is a shell's.
_ASSIGNED = re.compile(
    rf"(?<!\$\{{)(?<![A-Za-z0-9_$.-])(?P<name>{_KEY_NAME})(?![A-Za-z0-9_])[\"']?\s*[:=]\s*(?P<value>\S*)"
)
_NAMED = re.compile(rf"{_KEY_NAME}$")
_KEY_FLAG = re.compile(r"(?P<name>--(?:api-key|hf-token|token))[= ]+(?P<value>\S+)")
# As their issuers shape them: such a string is a secret wherever it stands.
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
# `auto` may come to be Run:ai's or vLLM's own.
_LOADER_KEYS = {
    "auto": {"concurrency", "memory_limit", "distributed", "enable_multithread_load", "num_threads"},
    "runai_streamer": {"concurrency", "memory_limit", "distributed"},
    "runai_streamer_sharded": {"pattern"},
    "coldstream": {"uri", "concurrency", "memory_limit", "workers", "verify", "cache", "enable_weights_track"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong.

    Attributes:
        rule: One of `RULES`.
        line: Where, from 1.
        text: What.
    """

    rule: str
    line: int
    text: str

    @property
    def hint(self) -> str:
        """What to do about it."""
        return RULES[self.rule]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as a shell reads it: comments gone, continued ones joined, and where it begins."""

    number: int
    text: str


def check(text: str, name: str) -> list[Finding]:
    """Looks a file over.

    Args:
        text: Its content.
        name: Its name, of which the ending tells how it is read.

    Returns:
        What was found, by line; each rule at most once for each line.

    Raises:
        UsageError: It is too large to be such a file.
    """
    if len(text) > BYTES_MAX:
        raise UsageError(f"{name} has more than {BYTES_MAX >> 20} MiB", hint="that is no deployment")
    ending = name.rpartition(".")[2].lower()
    lines = _read(text, fenced_only=ending in {"md", "markdown"})
    found = [*_shapes(text), *_secrets(lines), *_dead(lines), *_commands(lines), *_region(lines)]
    # Tabs and colons make YAML of nearly nothing else.
    if ending in {"yaml", "yml"}:
        found += _documents(text, lines)
    return sorted({(item.rule, item.line): item for item in reversed(found)}.values(), key=lambda f: (f.line, f.rule))


def _read(text: str, *, fenced_only: bool) -> list[_Line]:
    lines: list[_Line] = []
    # Of the line that is being continued.
    parts: list[str] = []
    begun = 0
    inside = not fenced_only
    for number, raw in enumerate(text.splitlines(), 1):
        if fenced_only and raw.lstrip().startswith(("```", "~~~")):
            inside = not inside
            continue
        if not inside:
            continue
        begun = begun if parts else number
        plain = _COMMENT.sub("", raw).rstrip()
        parts.append(plain.removesuffix("\\"))
        if not plain.endswith("\\"):
            lines.append(_Line(begun, " ".join(parts)))
            parts = []
    return [*lines, _Line(begun, " ".join(parts))] if parts else lines


def _shapes(text: str) -> Iterator[Finding]:
    """Strings that look like a secret: in comments and in text they are as public as anywhere."""
    for number, line in enumerate(text.splitlines(), 1):
        if _SHAPES.search(line):
            yield Finding(rule="inline-secret", line=number, text="a secret's value stands here")


def _secrets(lines: Sequence[_Line]) -> Iterator[Finding]:
    for line in lines:
        for match in (*_ASSIGNED.finditer(line.text), *_KEY_FLAG.finditer(line.text)):
            if not _harmless(match["value"]):
                yield Finding(rule="inline-secret", line=line.number, text=f"{match['name']} has its value here")


def _harmless(value: str) -> bool:
    """Whether what stands for a secret is none: nothing, a variable, a placeholder, the beginning of a structure."""
    plain = value.strip().strip("\"'")
    return not plain or _HARMLESS.match(plain) is not None


def _dead(lines: Sequence[_Line]) -> Iterator[Finding]:
    for line in lines:
        if "HF_HUB_ENABLE_HF_TRANSFER" in line.text:
            yield Finding(rule="hf-transfer", line=line.number, text="HF_HUB_ENABLE_HF_TRANSFER has no effect")


def _commands(lines: Sequence[_Line]) -> Iterator[Finding]:
    for line in lines:
        serves = _SERVES.search(line.text)
        if serves is None and "loader" not in line.text:
            continue
        words = _words(line.text[serves.start() :] if serves else line.text)
        yield from _of_command(words, line.number, serves=serves is not None)


def _words(text: str) -> list[str]:
    try:
        found = shlex.split(text)
    except ValueError:
        # A quote that ends on another line.
        found = text.split()
    words: list[str] = []
    for word in found:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            words += [flag.replace("_", "-"), *([value] if equals else [])]
        else:
            words.append(word)
    return words


def _of_command(words: Sequence[str], number: int, *, serves: bool) -> Iterator[Finding]:
    # `"$@"`, `--config`: the rest comes from elsewhere.
    if serves and not {"--host", "--uds", "--config", "$@", "$$@"} & {*words}:
        yield Finding(rule="missing-host", line=number, text="vLLM is started without --host: it listens everywhere")
    extra = _after(words, _EXTRA)
    if extra is None or "$" in extra:
        return
    form = _form(words)
    allowed = _LOADER_KEYS.get(form)
    if allowed is None:
        return
    try:
        given = json.loads(extra)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        yield Finding(rule="loader-key", line=number, text=f"{_EXTRA} is no JSON object")
        return
    if unknown := sorted(str(key)[:40] for key in given.keys() - allowed):
        known = ", ".join(sorted(allowed))
        text = f"{form} has no {', '.join(map(repr, unknown))} in {_EXTRA}; it has {known}"
        yield Finding(rule="loader-key", line=number, text=text)


def _form(words: Sequence[str]) -> str:
    """The load format that a command has, or comes to."""
    given = _after(words, "--load-format")
    if given not in {None, "auto"}:
        return str(given)
    if _OURS.search(" ".join(words)):
        return "runai_streamer" if _after(words, "--loader") == "runai" else "coldstream"
    return "runai_streamer" if any(word.startswith(("s3://", "gs://", "az://")) for word in words) else "auto"


def _after(words: Sequence[str], flag: str) -> str | None:
    for index, word in enumerate(words[:-1]):
        if word == flag:
            return words[index + 1]
    return None


def _region(lines: Sequence[_Line]) -> Iterator[Finding]:
    endpoint = next((line for line in lines if _R2.search(line.text)), None)
    # Ours takes `auto` by itself.
    if endpoint and not any(_REGION.search(line.text) or _OURS.search(line.text) for line in lines):
        yield Finding(rule="r2-region", line=endpoint.number, text="an endpoint of R2, and no AWS_REGION beside it")


def _documents(text: str, lines: Sequence[_Line]) -> Iterator[Finding]:
    import yaml

    try:
        documents = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        problem = getattr(exc, "problem", None) or "it cannot be read"
        yield Finding(rule="yaml", line=mark.line + 1 if mark else 1, text=f"no YAML: {problem}")
        return
    except RecursionError:
        yield Finding(rule="yaml", line=1, text="no YAML that anybody should read: nested too deeply")
        return
    has_key = any(_KEY_SET.search(line.text) for line in lines)
    runs_vllm = any("vllm" in line.text.lower() or _OURS.search(line.text) for line in lines)
    for node in documents:
        yield from _of_sky(node)
        yield from _of_mappings(node)
        if runs_vllm and not has_key and (port := _open_port(node)) is not None:
            yield Finding(rule="open-port", line=_line(port), text="a port is open, and vLLM asks for no API key")


def _of_sky(node: Node) -> Iterator[Finding]:
    service, resources = _get(node, "service"), _get(node, "resources")
    for name, key in _entries(_get(node, "envs")):
        if any(name == other for other, _ in _entries(_get(node, "secrets"))):
            yield Finding(rule="key-twice", line=_line(key), text=f"{name[:60]} is among envs and secrets")
    if service is None or resources is None:
        return
    choices = [choice for name in ("any_of", "ordered") for choice in _items(_get(resources, name))]
    of_all = _true(_get(resources, "use_spot"))
    spots = [of_all if (own := _get(choice, "use_spot")) is None else _true(own) for choice in choices] or [of_all]
    if len({*spots}) > 1:
        yield Finding(rule="mixed-any-of", line=_line(choices[0]), text="spot and on-demand are mixed in a service")
    policy = _get(service, "replica_policy")
    for name in ("dynamic_ondemand_fallback", "base_ondemand_fallback_replicas"):
        fallback = _get(policy, name)
        if fallback is not None and _text(fallback).lower() not in {"false", "0"} and not any(spots):
            yield Finding(rule="fallback-without-spot", line=_line(fallback), text=f"{name} without use_spot")
    for holder in (resources, *choices):
        if (recovery := _get(holder, "job_recovery") or _get(holder, "spot_recovery")) is not None:
            yield Finding(rule="recovery-in-service", line=_line(recovery), text="job_recovery is for jobs alone")
    if not any(_get(holder, "ports") is not None for holder in (service, resources, *choices)):
        yield Finding(rule="service-port", line=_line(service), text="a service without a port")


def _of_mappings(root: Node) -> Iterator[Finding]:
    """What any mapping of a document may hold: a variable as Kubernetes writes it, a command as a list."""
    for node in _below(root):
        name, value = _text(_get(node, "name")), _get(node, "value")
        if value is not None and _NAMED.fullmatch(name) and not _harmless(_text(value)):
            yield Finding(rule="inline-secret", line=_line(value), text=f"{name} has its value here")
        listed = [item for key in ("entrypoint", "command", "args") for item in _items(_get(node, key))]
        if len(listed) > 1 and all(_scalar(item) for item in listed):
            words = [_text(item) for item in listed]
            serves = _SERVES.search(" ".join(words)) is not None or _extends_vllm(node)
            yield from _of_command(_words(shlex.join(words)), _line(listed[0]), serves=serves)


def _extends_vllm(container: Node) -> bool:
    """Whether words follow `vllm serve`, the entry point of vLLM's image: compose's `command`, Kubernetes' `args`."""
    if "vllm-openai" not in _text(_get(container, "image")) or _get(container, "entrypoint") is not None:
        return False
    return _get(container, "args") is None or _get(container, "command") is None


def _open_port(root: Node) -> Node | None:
    """The first port that others reach, as SkyPilot, compose and Kubernetes open one."""
    resources = _get(root, "resources")
    if (port := _get(resources, "ports") or _get(_get(root, "service"), "ports")) is not None:
        return port
    for _, service in _values(_get(root, "services")):
        for port in _items(_get(service, "ports")):
            if not _text(port).startswith(("127.", "localhost", "[::1]")):
                return port
    if _text(_get(root, "kind")) == "Service":
        return _get(_get(root, "spec"), "ports")
    return next((port for node in _below(root) if (port := _get(node, "containerPort")) is not None), None)


def _below(root: Node) -> Iterator[Node]:
    """A node and all below it; each once, whatever refers to it."""
    seen: set[int] = set()
    waiting = [root]
    while waiting and len(seen) < _NODES_MAX:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        waiting += _items(node)
        waiting += [value for _, value in _values(node)]


def _values(node: Any) -> list[tuple[str, Node]]:
    if getattr(node, "id", None) != "mapping":
        return []
    return [(str(key.value), value) for key, value in node.value if _scalar(key)]


def _entries(node: Any) -> list[tuple[str, Node]]:
    """The keys of a mapping, with where they stand."""
    if getattr(node, "id", None) != "mapping":
        return []
    return [(str(key.value), key) for key, _ in node.value if _scalar(key)]


def _items(node: Any) -> list[Node]:
    return list(node.value) if getattr(node, "id", None) == "sequence" else []


def _get(node: Any, name: str) -> Node | None:
    return next((value for key, value in _values(node) if key == name), None)


def _scalar(node: Any) -> bool:
    return getattr(node, "id", None) == "scalar"


def _text(node: Any) -> str:
    """What a scalar says; empty when it is none."""
    return str(node.value) if _scalar(node) else ""


def _true(node: Any) -> bool:
    return _text(node).lower() in {"true", "yes", "on"}


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
