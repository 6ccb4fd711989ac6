"""The domain's zone at Cloudflare: its cache rules, of which only those of coldstream are changed, and purges.

By default Cloudflare caches neither `.safetensors` nor `.json` (docs cache/how-to/cache-rules). A segment's bytes never
change, so it is cached for a year; files under their own names for a day, except for the manifest. Errors are not
cached: a 404 from before an upload would stay for minutes. A ranged miss does not fetch the whole object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError, UsageError
from coldstream.mirror.segment_pool import ROOT
from coldstream.model.names import MANIFEST_NAME
from coldstream.places.cloudflare import Api

PHASE = "http_request_cache_settings"
_SEGMENT_SECONDS = 365 * 86400
_FILE_SECONDS = 86400
# Fields of a rule that the API returns but does not accept.
_READ_ONLY = {"id", "version", "last_updated", "categories"}
# The last label begins with a letter: an address has no zone.
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?")
# URLs in one purge: Free, Pro and Business (docs cache/how-to/purge-cache/purge-by-single-file).
_PURGED_AT_ONCE = 30
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone: its id of 32 hexadecimal digits, its apex such as "example.com", and its plan, if the API tells it."""

    id: str
    name: str
    plan: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field of a rule that differs; one of action_parameters has dots: "edge_ttl.default"."""

    field: str
    actual: Any
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleState:
    """An expected rule, and the zone's rule in its place, or None."""

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
        return self.actual is not None and self.actual.get("ref") == self.rule["ref"]


# A call that changes a zone's rules: the method, the path and the body, as `Api.call` takes them.
Change = tuple[str, str, dict[str, Any]]


def rule_for(host: str, *, segments: bool) -> dict[str, Any]:
    """The rule for a domain's segments, or for its other objects, as the Rulesets API takes it."""
    if not _HOST.fullmatch(host):
        raise UsageError(f"{host[:80]!r} is not a domain of a zone", hint="for example models.example.com")
    kind = "segments" if segments else "files"
    inside = f'http.request.uri.path contains "/{ROOT}"'
    where = inside if segments else f'not {inside} and not ends_with(http.request.uri.path, "/{MANIFEST_NAME}")'
    return {
        # Unique in a ruleset, where a zone may have several domains.
        "ref": f"coldstream_{kind}_{host.replace('.', '_')}",
        "description": f"coldstream: keep {kind} of {host}",
        "expression": f'(http.host eq "{host}" and {where})',
        "action": "set_cache_settings",
        "action_parameters": {
            "cache": True,
            "edge_ttl": {
                "mode": "override_origin",
                "default": _SEGMENT_SECONDS if segments else _FILE_SECONDS,
                # -1: not cached.
                "status_code_ttl": [{"status_code_range": {"from": 400, "to": 599}, "value": -1}],
            },
            "browser_ttl": {"mode": "respect_origin"},
            "origin_range_requests": {"mode": "on"},
            "respect_strong_etags": True,
        },
        "enabled": True,
    }


def rules_for(host: str) -> list[dict[str, Any]]:
    """All rules of a domain."""
    return [rule_for(host, segments=True), rule_for(host, segments=False)]


def rule_state(rule: dict[str, Any], existing: Sequence[Any]) -> RuleState:
    """Compares a rule with the zone's: with that of its `ref`, or, if it was created manually, of its expression."""
    effect = {name: rule[name] for name in ("expression", "action")}
    rivals = [
        (other, _differences(other, rule))
        for other in existing
        if isinstance(other, dict) and (other.get("ref") == rule["ref"] or not _differing(other, effect))
    ]
    # One that is as expected is enough; of others, ours can be replaced.
    rivals.sort(key=lambda rival: (bool(rival[1]), rival[0].get("ref") != rule["ref"]))
    actual, differences = rivals[0] if rivals else (None, ())
    return RuleState(rule=rule, actual=actual, differences=tuple(differences))


def _differences(actual: dict[str, Any], rule: dict[str, Any]) -> list[Difference]:
    """The fields that differ. Additional fields, and the description, are up to the rule's owner."""
    expected = {name: rule[name] for name in ("expression", "action", "enabled")}
    # A rule is enabled by default.
    differing = _differing({"enabled": True, **actual}, expected)
    return differing + _differing(actual.get("action_parameters"), rule["action_parameters"])


def _differing(actual: Any, expected: dict[str, Any], inside: str = "") -> list[Difference]:
    values = actual if isinstance(actual, dict) else {}
    differing: list[Difference] = []
    for name, value in expected.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            differing += _differing(values[name], value, f"{inside}{name}.")
        elif _without_spaces(values.get(name)) != _without_spaces(value):
            differing.append(Difference(field=f"{inside}{name}", actual=values.get(name), expected=value))
    return differing


def _without_spaces(value: Any) -> Any:
    return value.replace(" ", "") if isinstance(value, str) else value


def rewritten(standing: RuleState) -> dict[str, Any]:
    """The complete replacement of a rule of ours, with its owner's additions that do not contradict it."""
    # Cloudflare drops fields that a change leaves out.
    rule, actual = standing.rule, standing.actual or {}
    kept = {name: value for name, value in actual.items() if name not in _READ_ONLY}
    parameters = actual.get("action_parameters")
    added = parameters if isinstance(parameters, dict) else {}
    return {
        **rule,
        **kept,
        **{name: rule[name] for name in ("ref", "expression", "action", "enabled")},
        "action_parameters": {**added, **rule["action_parameters"]},
    }


def find_zone(api: Api, host: str, *, named: str | None = None) -> Zone:
    """The zone of this name, or else that of the longest ending of the domain that is a zone."""
    labels = host.split(".")
    names = [named] if named else [".".join(labels[at:]) for at in range(len(labels) - 1)]
    for name in names:
        for row in _rows(api.call("GET", f"/zones?name={quote(name)}"), "zones"):
            identity, plan = row.get("id"), row.get("plan")
            if row.get("name") == name and isinstance(identity, str) and _ID.fullmatch(identity):
                kind = plan.get("legacy_id") if isinstance(plan, dict) else None
                return Zone(id=identity, name=name, plan=kind if isinstance(kind, str) else None)
    hint = "give it 'Zone: Read' and 'Cache Rules: Edit' for that zone; or name it: --zone example.com"
    raise NotFoundError(f"the token sees no zone {named or f'that {host} is in'}", hint=hint)


def is_proxied(api: Api, zone: Zone, host: str) -> bool | None:
    """Whether Cloudflare proxies a domain; None without a DNS record, or without the permission to read it."""
    try:
        rows = _rows(api.call("GET", f"/zones/{zone.id}/dns_records?name={quote(host)}"), "DNS records")
    except ColdstreamError:
        return None
    proxied = [row.get("proxied") for row in rows if row.get("name") == host]
    return any(proxied) if proxied else None


def look(api: Api, zone: Zone, rules: Sequence[dict[str, Any]]) -> tuple[str | None, list[RuleState]]:
    """The id of a zone's cache ruleset, None if it has none, and the state of each of these rules."""
    try:
        answer = api.call("GET", f"/zones/{zone.id}/rulesets/phases/{PHASE}/entrypoint")
    except NotFoundError:
        return None, [rule_state(rule, []) for rule in rules]
    ruleset = answer if isinstance(answer, dict) else {}
    identity, existing = ruleset.get("id"), ruleset.get("rules") or []
    if not isinstance(identity, str) or not _ID.fullmatch(identity) or not isinstance(existing, list):
        raise IntegrityError("Cloudflare's API did not return a ruleset", hint="check CLOUDFLARE_BASE_URL")
    return identity, [rule_state(rule, existing) for rule in rules]


def changes_for(zone: Zone, ruleset: str | None, standings: Sequence[RuleState], *, replace: bool) -> list[Change]:
    """The calls that add absent rules and, with `replace`, rewrite those of ours that differ, in place. Pure."""
    # Never a write of the whole ruleset, which would delete the rules of others.
    absent = [standing.rule for standing in standings if standing.state == "absent"]
    if ruleset is None:
        body = {"name": "default", "kind": "zone", "phase": PHASE, "rules": absent}
        return [("POST", f"/zones/{zone.id}/rulesets", body)] if absent else []
    rules = f"/zones/{zone.id}/rulesets/{ruleset}/rules"
    changes: list[Change] = []
    for standing in standings:
        if replace and standing.state == "differs" and standing.is_ours:
            identity = (standing.actual or {}).get("id")
            if not isinstance(identity, str) or not _ID.fullmatch(identity):
                fault = "Cloudflare's API answers with a rule that has no id"
                raise IntegrityError(fault, hint="check CLOUDFLARE_BASE_URL")
            changes.append(("PATCH", f"{rules}/{identity}", rewritten(standing)))
    return changes + [("POST", rules, rule) for rule in absent]


def purge(api: Api, zone: Zone, urls: Sequence[str]) -> None:
    """Removes these URLs from the cache, everywhere."""
    for at in range(0, len(urls), _PURGED_AT_ONCE):
        api.call("POST", f"/zones/{zone.id}/purge_cache", {"files": [*urls[at : at + _PURGED_AT_ONCE]]})


def _rows(answer: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise IntegrityError(f"Cloudflare's API did not return a list of {what}", hint="check CLOUDFLARE_BASE_URL")
    return answer
