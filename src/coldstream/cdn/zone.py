"""The domain's zone at Cloudflare: its plan, its cache rules, its purges. Rules are appended, and never replaced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from coldstream.cdn.rule import PHASE, is_there
from coldstream.cloudflare import Api
from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError

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
    found = [row.get("proxied") for row in rows if row.get("name") == host]
    return any(found) if found else None


def append(api: Api, zone: Zone, rules: Sequence[dict[str, Any]]) -> list[str]:
    """Adds rules behind those that are there.

    Args:
        api: With a token that may edit cache rules.
        zone: Where.
        rules: As `rule.rules_for` makes them.

    Returns:
        The descriptions of those that were added; of those that were there already, none.

    Raises:
        What `Api.call` raises.
    """
    identity, existing = _ruleset(api, zone)
    missing = [rule for rule in rules if not is_there(rule, existing)]
    if not missing:
        return []
    if identity is None:
        body = {"name": "default", "kind": "zone", "phase": PHASE, "rules": missing}
        api.call("POST", f"/zones/{zone.id}/rulesets", body, repeatable=False)
    else:
        for rule in missing:
            # Not all of it at once: a write of the ruleset would take everybody's rules with it.
            api.call("POST", f"/zones/{zone.id}/rulesets/{identity}/rules", rule, repeatable=False)
    return [str(rule["description"]) for rule in missing]


def calls_for(zone: Zone | None, rules: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What `append` would call, as (method, path), when no rule is there yet; for people."""
    identity = zone.id if zone else "ZONE"
    path = f"/zones/{identity}/rulesets/RULESET/rules"
    return [("GET", f"/zones/{identity}/rulesets/phases/{PHASE}/entrypoint"), *(("POST", path) for _ in rules)]


def purge(api: Api, zone: Zone, urls: Sequence[str]) -> None:
    """Makes Cloudflare forget these URLs, everywhere.

    Raises:
        What `Api.call` raises.
    """
    for at in range(0, len(urls), _PURGED_AT_ONCE):
        api.call("POST", f"/zones/{zone.id}/purge_cache", {"files": [*urls[at : at + _PURGED_AT_ONCE]]})


def _ruleset(api: Api, zone: Zone) -> tuple[str | None, list[Any]]:
    """(id of the zone's ruleset for the cache, its rules)."""
    try:
        found = api.call("GET", f"/zones/{zone.id}/rulesets/phases/{PHASE}/entrypoint")
    except NotFoundError:
        return None, []
    identity = found.get("id") if isinstance(found, dict) else None
    rules = found.get("rules") or [] if isinstance(found, dict) else None
    if not isinstance(identity, str) or not _ID.fullmatch(identity) or not isinstance(rules, list):
        raise IntegrityError("Cloudflare's API answers with what is no ruleset", hint="check CLOUDFLARE_BASE_URL")
    return identity, rules


def _rows(found: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise IntegrityError(
            f"Cloudflare's API answers with what is no list of {what}", hint="check CLOUDFLARE_BASE_URL"
        )
    return found
