"""A double of Cloudflare's API for a zone: its plan, its DNS records, its cache rules, its purges.

Bodies are held against the schema of the Rulesets and the Purge API, as far as a cache rule uses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.r2 import API_TOKEN, _served

ZONE_ID = "023e105f4ecef8ad9ca31a8372d0c353"
RULESET_ID = "2f2feab2026849078ba485f918791bdc"
PHASE = "http_request_cache_settings"
_SETTINGS = {
    "additional_cacheable_ports",
    "browser_ttl",
    "cache",
    "cache_key",
    "cache_reserve",
    "edge_ttl",
    "origin_cache_control",
    "origin_error_page_passthru",
    "origin_range_requests",
    "read_timeout",
    "respect_strong_etags",
    "serve_stale",
}
_FILES_MAX = 30


@dataclass
class FakeZone:
    """The zone.

    Attributes:
        url: For CLOUDFLARE_BASE_URL.
        rules: Of the cache, in order; None while the phase has no ruleset.
        purged: URLs.
        requests: "METHOD /path" of each.
        faults: What a client must never do.
    """

    name: str
    plan: str
    proxied: bool
    url: str = ""
    rules: list[Any] = field(default_factory=list)
    has_ruleset: bool = False
    purged: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        """What coldstream needs to use it."""
        return {"CLOUDFLARE_API_TOKEN": API_TOKEN, "CLOUDFLARE_BASE_URL": self.url}

    def answer(self, method: str, target: str, document: Any) -> tuple[int, Any]:
        """(status, result or (code, message))."""
        split = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        entry = f"/zones/{ZONE_ID}/rulesets/phases/{PHASE}/entrypoint"
        routes = {
            ("GET", "/zones"): lambda: self._zones(query),
            ("GET", f"/zones/{ZONE_ID}/dns_records"): lambda: self._records(query),
            ("GET", entry): self._entry,
            ("POST", f"/zones/{ZONE_ID}/rulesets"): lambda: self._create(document),
            ("POST", f"/zones/{ZONE_ID}/rulesets/{RULESET_ID}/rules"): lambda: self._append(document),
            ("POST", f"/zones/{ZONE_ID}/purge_cache"): lambda: self._purge(document),
        }
        if method in {"PUT", "PATCH"} and "rulesets" in split.path:
            self.faults.append(f"{method} {split.path} replaces the rules of everybody")
        route = routes.get((method, split.path))
        return route() if route else (404, (7003, "Could not route to that, is the identifier valid?"))

    def _zones(self, query: dict[str, str]) -> tuple[int, Any]:
        row = {"id": ZONE_ID, "name": self.name, "status": "active", "plan": {"legacy_id": self.plan}}
        return 200, [row] if query.get("name") == self.name else []

    def _records(self, query: dict[str, str]) -> tuple[int, Any]:
        return 200, [{"name": query.get("name"), "type": "CNAME", "proxied": self.proxied}]

    def _entry(self) -> tuple[int, Any]:
        if not self.has_ruleset:
            return 404, (10003, "could not find entrypoint ruleset in the http_request_cache_settings phase")
        return 200, {"id": RULESET_ID, "kind": "zone", "phase": PHASE, "rules": self.rules}

    def _create(self, document: Any) -> tuple[int, Any]:
        if self.has_ruleset:
            self.faults.append("a second ruleset for the phase")
        if document.get("kind") != "zone" or document.get("phase") != PHASE or not document.get("name"):
            return 400, (20115, "not a ruleset of a zone for the phase")
        for rule in document["rules"]:
            status, result = self._append(rule)
            if status != 200:
                return status, result
        self.has_ruleset = True
        return 200, {"id": RULESET_ID, "rules": self.rules}

    def _append(self, rule: Any) -> tuple[int, Any]:
        if fault := _rule_fault(rule):
            return 400, (20120, fault)
        if rule["ref"] in {other.get("ref") for other in self.rules}:
            return 400, (20014, "a rule with that ref exists")
        self.rules.append(rule)
        return 200, {"id": RULESET_ID, "rules": self.rules}

    def _purge(self, document: Any) -> tuple[int, Any]:
        files = document.get("files")
        if not isinstance(files, list) or not 0 < len(files) <= _FILES_MAX or document.keys() != {"files"}:
            return 400, (1094, "1 to 30 files in a purge")
        self.purged += files
        return 200, {"id": ZONE_ID}


def _rule_fault(rule: Any) -> str | None:
    if not isinstance(rule, dict) or rule.keys() - {
        "ref",
        "description",
        "expression",
        "action",
        "action_parameters",
        "enabled",
    }:
        return "unknown field in a rule"
    settings = rule.get("action_parameters", {})
    if rule.get("action") != "set_cache_settings" or not isinstance(rule.get("expression"), str):
        return "no cache rule"
    if settings.keys() - _SETTINGS:
        return f"unknown settings {sorted(settings.keys() - _SETTINGS)}"
    edge = settings.get("edge_ttl", {"mode": "respect_origin"})
    if edge["mode"] not in {"respect_origin", "bypass_by_default", "override_origin"}:
        return "unknown mode of edge_ttl"
    if edge["mode"] == "override_origin" and not (type(edge.get("default")) is int and edge["default"] >= 0):
        return "override_origin needs a default"
    for entry in edge.get("status_code_ttl", []):
        if type(entry.get("value")) is not int or not ({"status_code", "status_code_range"} & entry.keys()):
            return "malformed status_code_ttl"
    return None


@contextmanager
def zone_api(
    *, name: str = "example.com", plan: str = "free", proxied: bool = True, rules: Sequence[Any] = ()
) -> Iterator[FakeZone]:
    """The API, until the context ends.

    Args:
        name: Of the only zone that the token sees.
        plan: Its plan.
        proxied: Whether Cloudflare stands before its records.
        rules: Cache rules that are there; none: the phase has no ruleset yet.
    """
    zone = FakeZone(name=name, plan=plan, proxied=proxied, rules=[*rules], has_ruleset=bool(rules))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = self.path.removeprefix("/client/v4")
            zone.requests.append(f"{self.command} {target}")
            if self.headers.get("Authorization") != f"Bearer {API_TOKEN}":
                status, result = 403, (9109, "Invalid access token")
            else:
                status, result = zone.answer(self.command, target, json.loads(data) if data else None)
            errors = [] if status == 200 else [{"code": result[0], "message": result[1]}]
            body = {
                "success": status == 200,
                "errors": errors,
                "messages": [],
                "result": result if not errors else None,
            }
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    with _served(Handler) as url:
        zone.url = f"{url}/client/v4"
        yield zone
