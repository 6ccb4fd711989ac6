"""The cache rule for a domain in front of a bucket (docs cache/how-to/cache-rules). Pure.

By default Cloudflare keeps neither `.safetensors` nor `.json`. The rules make all of the domain eligible. The bytes of
a segment's key never change, so it is kept for a year; files under their own names are replaced by uploads, and are
kept for a day, but for the manifest, which says what is there. What failed is not kept: a 404 from before an upload
would otherwise stay for minutes. A ranged miss fetches ranges rather than the whole object.
"""

from __future__ import annotations

import re
from typing import Any

from coldstream.errors import UsageError
from coldstream.paths import MANIFEST_NAME

PHASE = "http_request_cache_settings"
SEGMENTS = "/.coldstream/segments/"
SEGMENT_SECONDS = 365 * 86400
FILE_SECONDS = 86400
# The last label begins with a letter: an address has no zone.
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?")


def rule_for(host: str, *, segments: bool) -> dict[str, Any]:
    """A rule, as the Rulesets API takes it.

    Args:
        host: The bucket's custom domain.
        segments: Of segments; otherwise of all else.

    Raises:
        UsageError: It is no domain.
    """
    if not _HOST.fullmatch(host):
        raise UsageError(f"{host[:80]!r} is no domain of a zone", hint="for example models.example.com")
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


def is_there(rule: dict[str, Any], existing: list[Any]) -> bool:
    """Whether a ruleset has a rule: by its expression, since others may have made it by hand."""
    return any(
        isinstance(other, dict)
        and other.get("action") == rule["action"]
        and other.get("expression", "").replace(" ", "") == rule["expression"].replace(" ", "")
        for other in existing
    )
