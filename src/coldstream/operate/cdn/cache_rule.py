"""The cache rule for a domain in front of a bucket (docs cache/how-to/cache-rules). Pure.

By default Cloudflare keeps neither `.safetensors` nor `.json`. The rules make all of the domain eligible. The bytes of
a segment's key never change, so it is kept for a year; files under their own names are replaced by uploads, and are
kept for a day, but for the manifest, which lists the files. What failed is not kept: a 404 from before an upload
would otherwise stay for minutes. A ranged miss fetches ranges rather than the whole object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.errors import UsageError
from coldstream.mirror.segment_pool import ROOT
from coldstream.model.names import MANIFEST_NAME

PHASE = "http_request_cache_settings"
SEGMENTS = f"/{ROOT}"
SEGMENT_SECONDS = 365 * 86400
FILE_SECONDS = 86400
# Fields of a rule that the API returns but does not accept.
_READ_ONLY = {"id", "version", "last_updated", "categories"}
# The last label begins with a letter: an address has no zone.
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?")


def rule_for(host: str, *, segments: bool) -> dict[str, Any]:
    """A rule, as the Rulesets API takes it.

    Args:
        host: The bucket's custom domain.
        segments: Of segments; otherwise of all else.

    Raises:
        UsageError: It is not a domain.
    """
    if not _HOST.fullmatch(host):
        raise UsageError(f"{host[:80]!r} is not a domain of a zone", hint="for example models.example.com")
    inside = f'http.request.uri.path contains "{SEGMENTS}"'
    where = inside if segments else f'not {inside} and not ends_with(http.request.uri.path, "/{MANIFEST_NAME}")'
    return {
        # Unique in a ruleset, where a zone may have several domains.
        "ref": f"coldstream_{'segments' if segments else 'files'}_{host.replace('.', '_')}",
        "description": f"coldstream: keep {'segments' if segments else 'files'} of {host}",
        "expression": f'(http.host eq "{host}" and {where})',
        "action": "set_cache_settings",
        "action_parameters": {
            "cache": True,
            "edge_ttl": {
                "mode": "override_origin",
                "default": SEGMENT_SECONDS if segments else FILE_SECONDS,
                # -1: not kept.
                "status_code_ttl": [{"status_code_range": {"from": 400, "to": 599}, "value": -1}],
            },
            "browser_ttl": {"mode": "respect_origin"},
            "origin_range_requests": {"mode": "on"},
            "respect_strong_etags": True,
        },
        "enabled": True,
    }


def rules_for(host: str) -> list[dict[str, Any]]:
    """All that a domain needs."""
    return [rule_for(host, segments=True), rule_for(host, segments=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field in which a rule is not as expected.

    Attributes:
        field: Its name; of action_parameters with dots: "edge_ttl.default".
        actual: What is there; None when it is not.
        expected: What belongs there.
    """

    field: str
    actual: Any
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleState:
    """How a rule stands in a zone.

    Attributes:
        rule: As expected.
        actual: The one that is there in its place; None when none is.
        differences: Between them.
    """

    rule: dict[str, Any]
    actual: dict[str, Any] | None
    differences: tuple[Difference, ...]

    @property
    def state(self) -> str:
        """One of "absent", "as wanted", "differs"."""
        if self.actual is None:
            return "absent"
        return "differs" if self.differences else "as wanted"

    @property
    def is_ours(self) -> bool:
        """Whether what is there was made by coldstream, and may be written anew."""
        return self.actual is not None and self.actual.get("ref") == self.rule["ref"]


def rule_state(rule: dict[str, Any], existing: Sequence[Any]) -> RuleState:
    """What a zone has of a rule: by its `ref`, or, if it was created manually, by its expression.

    Args:
        rule: As `rule_for` makes it.
        existing: The zone's rules, as the API gives them.
    """
    rivals = [
        (other, differences_of(other, rule))
        for other in existing
        if isinstance(other, dict) and (other.get("ref") == rule["ref"] or _does_the_same(other, rule))
    ]
    # One that is as expected is enough; of others, ours can be replaced.
    rivals.sort(key=lambda rival: (bool(rival[1]), rival[0].get("ref") != rule["ref"]))
    actual, differences = rivals[0] if rivals else (None, ())
    return RuleState(rule=rule, actual=actual, differences=differences)


def differences_of(actual: dict[str, Any], rule: dict[str, Any]) -> tuple[Difference, ...]:
    """In what a rule is not as expected. What it has beside that, and its description, are its owner's."""
    differing = [
        Difference(field=name, actual=actual.get(name), expected=rule[name])
        for name in ("expression", "action")
        if _without_spaces(actual.get(name)) != _without_spaces(rule[name])
    ]
    # Enabled is what a rule is that does not say.
    if actual.get("enabled", True) is not True:
        differing.append(Difference(field="enabled", actual=actual["enabled"], expected=True))
    return (*differing, *_differing(actual.get("action_parameters"), rule["action_parameters"], ""))


def rewritten(standing: RuleState) -> dict[str, Any]:
    """The whole of a rule of ours as it is to be: Cloudflare drops what a change leaves out.

    What its owner has added and does not contradict stays.
    """
    actual = standing.actual or {}
    kept = {name: value for name, value in actual.items() if name not in _READ_ONLY}
    parameters = actual.get("action_parameters")
    beside = parameters if isinstance(parameters, dict) else {}
    return {
        **standing.rule,
        **kept,
        **{name: standing.rule[name] for name in ("ref", "expression", "action", "enabled")},
        "action_parameters": {**beside, **standing.rule["action_parameters"]},
    }


def _differing(actual: Any, expected: dict[str, Any], inside: str) -> list[Difference]:
    values = actual if isinstance(actual, dict) else {}
    differing: list[Difference] = []
    for name, value in expected.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            differing += _differing(values[name], value, f"{inside}{name}.")
        elif values.get(name) != value:
            differing.append(Difference(field=f"{inside}{name}", actual=values.get(name), expected=value))
    return differing


def _does_the_same(other: dict[str, Any], rule: dict[str, Any]) -> bool:
    same = _without_spaces(other.get("expression")) == _without_spaces(rule["expression"])
    return same and bool(other.get("action") == rule["action"])


def _without_spaces(value: Any) -> Any:
    return value.replace(" ", "") if isinstance(value, str) else value
