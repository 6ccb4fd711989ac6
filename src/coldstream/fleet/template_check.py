"""Checks a file that starts vLLM: YAML of any target, a shell script, or a guide in Markdown. Pure.

It reads the text twice: as shell lines without comments, which works in every kind of file and in scripts inside YAML;
and YAML as trees of nodes with line numbers, which are never turned into objects, so that tags and recursive aliases
have no effect. No finding shows the value of a secret.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFinding:
    """A problem in a file.

    Attributes:
        rule: A key of `RULES`.
        line: From 1.
    """

    rule: str
    line: int
    text: str

    @property
    def hint(self) -> str:
        return RULES[self.rule]


@dataclass(frozen=True, slots=True)
class _Line:
    """A shell line: without comments, with continuation lines joined, and the number of its first line."""

    number: int
    text: str


def check(text: str, name: str) -> list[TemplateFinding]:
    """Checks the text of a file, whose name tells its format.

    Returns:
        Findings by line; each rule at most once per line.

    Raises:
        UsageError: The text is too large.
    """
    if len(text) > BYTES_MAX:
        raise UsageError(f"{name} is larger than {BYTES_MAX >> 20} MiB", hint="check a deployment file")
    ending = name.rpartition(".")[2].lower()
    lines = _read(text, fenced_only=ending in {"md", "markdown"})
    findings = [*_shapes(text), *_secrets(lines), *_dead(lines), *_commands(lines), *_region(lines)]
    # Other texts are rarely valid YAML.
    if ending in {"yaml", "yml"}:
        findings += _documents(text, lines)
    return sorted(
        {(item.rule, item.line): item for item in reversed(findings)}.values(), key=lambda f: (f.line, f.rule)
    )


def _read(text: str, *, fenced_only: bool) -> list[_Line]:
    lines: list[_Line] = []
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


def _shapes(text: str) -> Iterator[TemplateFinding]:
    """Strings that look like a secret, also in comments and prose."""
    for number, line in enumerate(text.splitlines(), 1):
        if _SHAPES.search(line):
            yield TemplateFinding(rule="inline-secret", line=number, text="the value of a secret is here")


def _secrets(lines: Sequence[_Line]) -> Iterator[TemplateFinding]:
    for line in lines:
        for match in (*_ASSIGNED.finditer(line.text), *_KEY_FLAG.finditer(line.text)):
            if not _harmless(match["value"]):
                yield TemplateFinding(
                    rule="inline-secret", line=line.number, text=f"{match['name']} is set to a value here"
                )


def _harmless(value: str) -> bool:
    """Whether the value of a secret is empty, a variable, a placeholder or the beginning of a structure."""
    plain = value.strip().strip("\"'")
    return not plain or _HARMLESS.match(plain) is not None


def _dead(lines: Sequence[_Line]) -> Iterator[TemplateFinding]:
    for line in lines:
        if "HF_HUB_ENABLE_HF_TRANSFER" in line.text:
            yield TemplateFinding(rule="hf-transfer", line=line.number, text="HF_HUB_ENABLE_HF_TRANSFER has no effect")


def _commands(lines: Sequence[_Line]) -> Iterator[TemplateFinding]:
    for line in lines:
        serves = _SERVES.search(line.text)
        if serves is None and "loader" not in line.text:
            continue
        words = _words(line.text[serves.start() :] if serves else line.text)
        yield from _of_command(words, line.number, serves=serves is not None)


def _words(text: str) -> list[str]:
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


def _of_command(words: Sequence[str], number: int, *, serves: bool) -> Iterator[TemplateFinding]:
    # With `"$@"` or `--config`, the other arguments are not visible here.
    if serves and not {"--host", "--uds", "--config", "$@", "$$@"} & {*words}:
        yield TemplateFinding(
            rule="missing-host", line=number, text="vLLM is started without --host, so it listens on every interface"
        )
    extra = _after(words, _EXTRA)
    if extra is None or "$" in extra:
        return
    form = _form(words)
    allowed = _LOADER_KEYS.get(form)
    if allowed is None:
        return
    try:
        config = json.loads(extra)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        yield TemplateFinding(rule="loader-key", line=number, text=f"{_EXTRA} is not a JSON object")
        return
    if unknown := sorted(str(key)[:40] for key in config.keys() - allowed):
        known = ", ".join(sorted(allowed))
        text = f"{form} does not support {', '.join(map(repr, unknown))} in {_EXTRA}; it supports {known}"
        yield TemplateFinding(rule="loader-key", line=number, text=text)


def _form(words: Sequence[str]) -> str:
    """The load format of a command, also if it is implied."""
    explicit = _after(words, "--load-format")
    if explicit not in {None, "auto"}:
        return str(explicit)
    if _OURS.search(" ".join(words)):
        return "runai_streamer" if _after(words, "--loader") == "runai" else "coldstream"
    return "runai_streamer" if any(word.startswith(("s3://", "gs://", "az://")) for word in words) else "auto"


def _after(words: Sequence[str], flag: str) -> str | None:
    for index, word in enumerate(words[:-1]):
        if word == flag:
            return words[index + 1]
    return None


def _region(lines: Sequence[_Line]) -> Iterator[TemplateFinding]:
    endpoint = next((line for line in lines if _R2.search(line.text)), None)
    # coldstream uses `auto` by default.
    if endpoint and not any(_REGION.search(line.text) or _OURS.search(line.text) for line in lines):
        yield TemplateFinding(rule="r2-region", line=endpoint.number, text="an R2 endpoint without AWS_REGION")


def _documents(text: str, lines: Sequence[_Line]) -> Iterator[TemplateFinding]:
    import yaml

    try:
        documents = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        problem = getattr(exc, "problem", None) or "it cannot be parsed"
        yield TemplateFinding(rule="yaml", line=mark.line + 1 if mark else 1, text=f"not valid YAML: {problem}")
        return
    except RecursionError:
        yield TemplateFinding(rule="yaml", line=1, text="not readable YAML: nested too deeply")
        return
    has_key = any(_KEY_SET.search(line.text) for line in lines)
    runs_vllm = any("vllm" in line.text.lower() or _OURS.search(line.text) for line in lines)
    for node in documents:
        yield from _of_sky(node)
        yield from _of_mappings(node)
        if runs_vllm and not has_key and (port := _open_port(node)) is not None:
            yield TemplateFinding(rule="open-port", line=_line(port), text="a port is open, but vLLM has no API key")


def _of_sky(node: Node) -> Iterator[TemplateFinding]:
    service, resources = _get(node, "service"), _get(node, "resources")
    for name, key in _entries(_get(node, "envs")):
        if any(name == other for other, _ in _entries(_get(node, "secrets"))):
            yield TemplateFinding(rule="key-twice", line=_line(key), text=f"{name[:60]} is in both envs and secrets")
    if service is None or resources is None:
        return
    choices = [choice for name in ("any_of", "ordered") for choice in _items(_get(resources, name))]
    of_all = _true(_get(resources, "use_spot"))
    spots = [of_all if (own := _get(choice, "use_spot")) is None else _true(own) for choice in choices] or [of_all]
    if len({*spots}) > 1:
        yield TemplateFinding(
            rule="mixed-any-of", line=_line(choices[0]), text="a service mixes spot and on-demand machines"
        )
    policy = _get(service, "replica_policy")
    for name in ("dynamic_ondemand_fallback", "base_ondemand_fallback_replicas"):
        fallback = _get(policy, name)
        if fallback is not None and _text(fallback).lower() not in {"false", "0"} and not any(spots):
            yield TemplateFinding(rule="fallback-without-spot", line=_line(fallback), text=f"{name} without use_spot")
    for holder in (resources, *choices):
        if (recovery := _get(holder, "job_recovery") or _get(holder, "spot_recovery")) is not None:
            yield TemplateFinding(
                rule="recovery-in-service", line=_line(recovery), text="job_recovery is only for jobs"
            )
    if not any(_get(holder, "ports") is not None for holder in (service, resources, *choices)):
        yield TemplateFinding(rule="service-port", line=_line(service), text="a service without a port")


def _of_mappings(root: Node) -> Iterator[TemplateFinding]:
    """Problems in any mapping: a variable in Kubernetes' form, a command as a list."""
    for node in _below(root):
        name, value = _text(_get(node, "name")), _get(node, "value")
        if value is not None and _NAMED.fullmatch(name) and not _harmless(_text(value)):
            yield TemplateFinding(rule="inline-secret", line=_line(value), text=f"{name} is set to a value here")
        listed = [item for key in ("entrypoint", "command", "args") for item in _items(_get(node, key))]
        if len(listed) > 1 and all(_scalar(item) for item in listed):
            words = [_text(item) for item in listed]
            serves = _SERVES.search(" ".join(words)) is not None or _extends_vllm(node)
            yield from _of_command(_words(shlex.join(words)), _line(listed[0]), serves=serves)


def _extends_vllm(container: Node) -> bool:
    """Whether the words are arguments of `vllm serve`, the entry point of vLLM's image."""
    if "vllm-openai" not in _text(_get(container, "image")) or _get(container, "entrypoint") is not None:
        return False
    return _get(container, "args") is None or _get(container, "command") is None


def _open_port(root: Node) -> Node | None:
    """The first port that is open to other machines, in the forms of SkyPilot, Compose and Kubernetes."""
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
    """A node and its descendants, each once."""
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
    """The keys of a mapping, with their nodes."""
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
    """The text of a scalar; empty for another node."""
    return str(node.value) if _scalar(node) else ""


def _true(node: Any) -> bool:
    return _text(node).lower() in {"true", "yes", "on"}


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
