"""The zone of the domain at Cloudflare: its plan, cache rules and purges. Only changes rules of coldstream."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError
from coldstream.operate.cdn.cache_rule import PHASE, RuleState, rewritten, rule_state
from coldstream.places.cloudflare import Api

# URLs in one purge: Free, Pro and Business (docs cache/how-to/purge-cache/purge-by-single-file).
_PURGED_AT_ONCE = 30
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone.

    Attributes:
        id: 32 hexadecimal digits.
        name: Its apex: "example.com".
        plan: "free", "pro", "business", "enterprise", or what Cloudflare calls another; None when it does not say.
    """

    id: str
    name: str
    plan: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneRules:
    """How rules stand in a zone.

    Attributes:
        ruleset: The id of the zone's ruleset for the cache; None when it has none.
        rules: Each rule.
    """

    ruleset: str | None
    rules: tuple[RuleState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A call that changes a zone's rules: as `Api.call` takes it."""

    method: str
    path: str
    body: dict[str, Any]


def find_zone(api: Api, host: str, *, named: str | None = None) -> Zone:
    """The zone that a domain is in.

    Args:
        api: With a token that may read zones.
        host: The domain.
        named: The zone's name; None: the longest ending of the domain that is one.

    Raises:
        NotFoundError: The token sees no such zone.
        What `Api.call` raises.
    """
    labels = host.split(".")
    names = [named] if named else [".".join(labels[at:]) for at in range(len(labels) - 1)]
    for name in names:
        for row in _rows(api.call("GET", f"/zones?name={quote(name)}"), "zones"):
            identity, plan = row.get("id"), row.get("plan")
            if row.get("name") == name and isinstance(identity, str) and _ID.fullmatch(identity):
                kind = plan.get("legacy_id") if isinstance(plan, dict) else None
                return Zone(id=identity, name=name, plan=kind if isinstance(kind, str) else None)
    raise NotFoundError(
        f"the token sees no zone {named}" if named else f"the token sees no zone that {host} is in",
        hint="give it 'Zone: Read' and 'Cache Rules: Edit' for that zone; or name it: --zone example.com",
    )


def is_proxied(api: Api, zone: Zone, host: str) -> bool | None:
    """Whether Cloudflare stands before a domain; None when it has no record, or the token may not look."""
    try:
        rows = _rows(api.call("GET", f"/zones/{zone.id}/dns_records?name={quote(host)}"), "DNS records")
    except ColdstreamError:
        return None
    proxied = [row.get("proxied") for row in rows if row.get("name") == host]
    return any(proxied) if proxied else None


def look(api: Api, zone: Zone, rules: Sequence[dict[str, Any]]) -> ZoneRules:
    """What a zone has of these rules.

    Raises:
        What `Api.call` raises.
    """
    ruleset, existing = _ruleset(api, zone)
    return ZoneRules(ruleset=ruleset, rules=tuple(rule_state(rule, existing) for rule in rules))


def changes_for(zone: Zone, standings: ZoneRules, *, replace: bool) -> list[Change]:
    """The calls that add the rules that are absent and, with `replace`, fix those of ours that differ. Pure.

    Never a write of the ruleset, which would delete the rules of others.

    Args:
        zone: Where.
        standings: As `look` has answer them.
        replace: Whether rules that differ are written anew, each where it stands; otherwise they stay.
    """
    absent = [standing.rule for standing in standings.rules if standing.state == "absent"]
    if standings.ruleset is None:
        body = {"name": "default", "kind": "zone", "phase": PHASE, "rules": absent}
        return [Change(method="POST", path=f"/zones/{zone.id}/rulesets", body=body)] if absent else []
    rules = f"/zones/{zone.id}/rulesets/{standings.ruleset}/rules"
    added = [Change(method="POST", path=rules, body=rule) for rule in absent]
    changed = [
        Change(method="PATCH", path=f"{rules}/{_id_of(standing)}", body=rewritten(standing))
        for standing in standings.rules
        if replace and standing.state == "differs" and standing.is_ours
    ]
    return changed + added


def make(api: Api, changes: Sequence[Change]) -> None:
    """Makes the calls, with a token that may edit cache rules.

    Raises:
        What `Api.call` raises.
    """
    for change in changes:
        # A rule that is appended twice would be there twice; one that is written twice is not.
        api.call(change.method, change.path, change.body, repeatable=change.method == "PATCH")


def purge(api: Api, zone: Zone, urls: Sequence[str]) -> None:
    """Makes Cloudflare forget these URLs, everywhere.

    Raises:
        What `Api.call` raises.
    """
    for at in range(0, len(urls), _PURGED_AT_ONCE):
        api.call("POST", f"/zones/{zone.id}/purge_cache", {"files": [*urls[at : at + _PURGED_AT_ONCE]]})


def _id_of(standing: RuleState) -> str:
    identity = (standing.actual or {}).get("id")
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise IntegrityError("Cloudflare's API answers with a rule that has no id", hint="check CLOUDFLARE_BASE_URL")
    return identity


def _ruleset(api: Api, zone: Zone) -> tuple[str | None, list[Any]]:
    """(id of the zone's ruleset for the cache, its rules)."""
    try:
        answer = api.call("GET", f"/zones/{zone.id}/rulesets/phases/{PHASE}/entrypoint")
    except NotFoundError:
        return None, []
    identity = answer.get("id") if isinstance(answer, dict) else None
    rules = answer.get("rules") or [] if isinstance(answer, dict) else None
    if not isinstance(identity, str) or not _ID.fullmatch(identity) or not isinstance(rules, list):
        raise IntegrityError("Cloudflare's API did not return a ruleset", hint="check CLOUDFLARE_BASE_URL")
    return identity, rules


def _rows(answer: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise IntegrityError(f"Cloudflare's API did not return a list of {what}", hint="check CLOUDFLARE_BASE_URL")
    return answer
