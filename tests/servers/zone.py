"""The part of Cloudflare's API that is about a zone: its names, its Cache Rules, purging.

    with zone_api(name="example.com") as zone: ...  # environ: zone.environ()

A request that would harm other rules (a PUT replaces them all) or that the API's schema does not allow is noted
in `faults` as well as refused, so that a test can ask that there are none.
"""

from __future__ import annotations

import http.server
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.servers.r2 import ACCOUNT, API_TOKEN, Answer, _served, fault

ZONE = "023e105f4ecef8ad9ca31a8372d0c353"
RULESET = "2f2feab2026849078ba485f918791bdc"
PHASE = "http_request_cache_settings"
PURGED_MAX = 30
# How many Cache Rules a zone may have.
RULES_MAX = {"free": 10, "pro": 25, "business": 50, "enterprise": 300}

_RULE_KEYS = {"action", "action_parameters", "description", "enabled", "expression", "id", "position", "ref"}
_FLAGS = {"cache", "origin_cache_control", "origin_error_page_passthru", "respect_strong_etags"}
_MODES = {
    "edge_ttl": {"override_origin", "respect_origin", "bypass_by_default"},
    "browser_ttl": {"override_origin", "respect_origin", "bypass_by_default", "bypass"},
    "origin_range_requests": {"on", "off", "default"},
}
_PARAMETERS = {
    *_FLAGS,
    *_MODES,
    "additional_cacheable_ports",
    "cache_key",
    "cache_reserve",
    "read_timeout",
    "serve_stale",
}


@dataclass
class FakeZone:
    """A zone.

    Attributes:
        name: Its domain.
        plan: "free", "pro", "business" or "enterprise".
        token: For CLOUDFLARE_API_TOKEN.
        proxied: Whether its names go through Cloudflare.
        rules: Its Cache Rules, in order.
        has_ruleset: Whether there is a ruleset for them; a new zone has none.
        absent: Names without a DNS record.
        denied: What the token may not do: patterns for "METHOD /path".
        purged: URLs that were purged; a prefix ends with "*".
        requests: "METHOD /path?query" and the body of each.
        faults: What should not have been asked.
        answers: Taken from the front before anything is looked at.
        url: For CLOUDFLARE_BASE_URL.
    """

    name: str = "example.com"
    plan: str = "free"
    token: str = API_TOKEN
    proxied: bool = True
    rules: list[dict[str, Any]] = field(default_factory=list)
    has_ruleset: bool = False
    absent: set[str] = field(default_factory=set)
    denied: list[str] = field(default_factory=list)
    purged: list[str] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    url: str = ""
    version: int = 1
    _made: int = 0

    def environ(self) -> dict[str, str]:
        """What coldstream needs to use it."""
        return {"CLOUDFLARE_API_TOKEN": self.token, "CLOUDFLARE_BASE_URL": self.url}

    def add(self, rule: dict[str, Any]) -> None:
        """Appends a rule, as a person would at the dashboard."""
        self.has_ruleset = True
        self.rules.append(self._named(rule))

    def decide(self, method: str, target: str, authorization: str | None, document: Any) -> Answer:
        """The answer to a request."""
        kind, _, token = (authorization or "").partition(" ")
        if kind != "Bearer" or not token:
            return fault(403, 10000, "Authentication error")
        if token != self.token:
            return fault(403, 9109, "Invalid access token")
        split = urlsplit(target)
        if any(re.search(pattern, f"{method} {split.path}") for pattern in self.denied):
            return fault(403, 10000, "Authentication error")
        query = dict(parse_qsl(split.query))
        if (method, split.path) == ("GET", "/zones"):
            return _page([self._zone()] if query.get("name", self.name) == self.name else [])
        found = re.fullmatch(r"/zones/([^/]+)(/.*)?", split.path)
        if not found:
            return _lost()
        if found[1] != ZONE:
            return fault(404 if re.fullmatch(r"[0-9a-f]{32}", found[1]) else 400, 7003, "Could not route to that zone")
        return self._in_zone(method, found[2] or "", query, document)

    def _in_zone(self, method: str, path: str, query: dict[str, str], document: Any) -> Answer:
        if method == "GET" and path == "":
            return _well(self._zone())
        if method == "GET" and path == "/dns_records":
            return _page(self._records(query.get("name")))
        if method == "POST" and path == "/purge_cache":
            return self._purge(document)
        if path.startswith("/rulesets"):
            return self._rulesets(method, path.removeprefix("/rulesets"), document)
        return _lost()

    def _zone(self) -> dict[str, Any]:
        return {
            "id": ZONE,
            "name": self.name,
            "status": "active",
            "paused": False,
            "type": "full",
            "account": {"id": ACCOUNT, "name": "tests"},
            "plan": {"id": "0feeeeeeeeeeeeeeeeeeeeeeeeeeeeee", "name": f"{self.plan} plan", "legacy_id": self.plan},
        }

    def _records(self, name: str | None) -> list[dict[str, Any]]:
        inside = name is not None and (name == self.name or name.endswith(f".{self.name}"))
        if not inside or name in self.absent:
            return []
        return [
            {
                "id": "372e67954025e0ba6aaa6d586b9e0b59",
                "name": name,
                "type": "CNAME",
                "content": "public.r2.dev",
                "proxied": self.proxied,
                "proxiable": True,
                "ttl": 1,
            }
        ]

    def _purge(self, document: Any) -> Answer:
        if not isinstance(document, dict) or len(document) != 1:
            return self._refuse("a purge of not one kind", 400, 1012, "Request must contain one of purge_everything, …")
        kind, values = next(iter(document.items()))
        if kind == "purge_everything":
            # Somebody else's pages would go as well.
            return self._refuse("a purge of everything", 400, 1012, "not in these tests")
        if kind not in {"files", "prefixes", "hosts", "tags"} or not _is_texts(values):
            return self._refuse(f"a purge of {kind}", 400, 1012, "Request must contain one of purge_everything, …")
        if len(values) > PURGED_MAX:
            return self._refuse(f"a purge of {len(values)}", 400, 1094, f"Exceeded maximum of {PURGED_MAX} per request")
        if kind != "files" and self.plan != "enterprise":
            return fault(400, 1107, f"Only enterprise zones can purge by {kind}")
        if kind == "files":
            foreign = [url for url in values if not self._is_ours(urlsplit(url).hostname or "")]
            if foreign:
                return self._refuse(f"a purge of {foreign[0]}", 400, 1016, "Unable to purge: not in this zone")
        elif any("://" in value for value in values):
            return self._refuse(f"a purge of {values}", 400, 1016, "A prefix has no scheme")
        self.purged += values if kind == "files" else [f"{value}*" for value in values]
        return _well({"id": ZONE})

    def _is_ours(self, host: str) -> bool:
        return host == self.name or host.endswith(f".{self.name}")

    def _rulesets(self, method: str, path: str, document: Any) -> Answer:
        entry = f"/phases/{PHASE}/entrypoint"
        if method == "PUT":
            return self._refuse(f"PUT {path} replaces everybody's rules", 405, 10405, "not in these tests")
        if method == "DELETE" and not path.startswith(f"/{RULESET}/rules/"):
            return self._refuse(f"DELETE {path} removes everybody's rules", 405, 10405, "not in these tests")
        if (method, path) == ("POST", ""):
            return self._create(document)
        if method == "GET" and path.startswith("/phases/"):
            if path == entry and self.has_ruleset:
                return _well(self._ruleset())
            phase = path.split("/")[2]
            return fault(404, 10003, f"could not find entrypoint ruleset in the {phase} phase")
        if not self.has_ruleset or not path.startswith(f"/{RULESET}"):
            return fault(404, 10003, "could not find ruleset") if path else _lost()
        if (method, path) == ("GET", f"/{RULESET}"):
            return _well(self._ruleset())
        if (method, path) == ("POST", f"/{RULESET}/rules"):
            return self._append(document)
        found = re.fullmatch(rf"/{RULESET}/rules/([^/]+)", path)
        if found and method in {"PATCH", "DELETE"}:
            return self._change(method, found[1], document)
        return _lost()

    def _create(self, document: Any) -> Answer:
        if not isinstance(document, dict) or (document.get("kind"), document.get("phase")) != ("zone", PHASE):
            return self._refuse(f"a ruleset of {document!r:.100}", 400, 20015, "kind or phase is not valid")
        if type(document.get("name")) is not str or document.keys() - {"kind", "phase", "name", "description", "rules"}:
            return self._refuse(f"a ruleset of {sorted(document)}", 400, 20015, "name is missing, or unknown fields")
        if self.has_ruleset:
            return fault(400, 20217, "exceeded maximum number of zone kind rulesets in the phase: 2 out of 1")
        rules = document.get("rules", [])
        for rule in rules:
            wrong = self._wrong(rule)
            if wrong is not None:
                return wrong
        if len(rules) > RULES_MAX[self.plan]:
            return self._too_many(len(rules))
        self.has_ruleset = True
        self.rules += [self._named(rule) for rule in rules]
        return _well(self._ruleset())

    def _append(self, document: Any) -> Answer:
        wrong = self._wrong(document)
        if wrong is not None:
            return wrong
        if len(self.rules) >= RULES_MAX[self.plan]:
            return self._too_many(len(self.rules) + 1)
        if document.get("ref") in {rule["ref"] for rule in self.rules}:
            return fault(400, 20029, f"rule ref {document['ref']!r} is not unique")
        place = self._place(document.get("position"))
        if place is None:
            return self._refuse(f"a position of {document['position']!r}", 400, 20015, "the position is not valid")
        self.rules.insert(place, self._named(document))
        self.version += 1
        return _well(self._ruleset())

    def _change(self, method: str, rule_id: str, document: Any) -> Answer:
        index = next((index for index, rule in enumerate(self.rules) if rule["id"] == rule_id), None)
        if index is None:
            return fault(404, 10002, "could not find rule")
        if method == "DELETE":
            del self.rules[index]
        else:
            refusal = self._patch(index, document)
            if refusal is not None:
                return refusal
        self.version += 1
        return _well(self._ruleset())

    def _patch(self, index: int, document: Any) -> Answer | None:
        """Moves a rule, or makes it what is said, where what is left out is gone (docs ruleset-engine, update-rule)."""
        before = self.rules[index]
        moves = isinstance(document, dict) and "position" in document
        if not (moves and document.keys() == {"position"}):
            wrong = self._wrong(document)
            if wrong is not None:
                return wrong
            if document.get("id", before["id"]) != before["id"]:
                return self._refuse("another rule's id", 400, 20015, "the id is not the rule's")
            if document.get("ref") in {rule["ref"] for rule in self.rules if rule is not before}:
                return fault(400, 20029, f"rule ref {document['ref']!r} is not unique")
            version = str(int(before["version"]) + 1)
            self.rules[index] = self._named({"ref": before["ref"]} | document | {"id": before["id"]})
            self.rules[index]["version"] = version
        if moves:
            rule = self.rules.pop(index)
            place = self._place(document["position"])
            if place is None:
                self.rules.insert(index, rule)
                return self._refuse(f"a position of {document['position']!r}", 400, 20015, "the position is not valid")
            self.rules.insert(place, rule)
        return None

    def _place(self, position: Any) -> int | None:
        """Where a rule goes; None: there is no such place."""
        if position is None:
            return len(self.rules)
        ids = [rule["id"] for rule in self.rules]
        match position:
            case {"index": int(index)} if 1 <= index <= len(ids) + 1:
                return index - 1
            case {"before": str(other)} if not other or other in ids:
                return ids.index(other) if other else 0
            case {"after": str(other)} if not other or other in ids:
                return ids.index(other) + 1 if other else len(ids)
        return None

    def _ruleset(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": RULESET,
            "name": "default",
            "description": "",
            "kind": "zone",
            "phase": PHASE,
            "version": str(self.version),
            "last_updated": "2026-01-01T00:00:00.000000Z",
        }
        # An empty ruleset has no list at all.
        return found | ({"rules": self.rules} if self.rules else {})

    def _named(self, rule: dict[str, Any]) -> dict[str, Any]:
        self._made += 1
        name = rule.get("id") or f"{self._made:032x}"
        given = {key: value for key, value in rule.items() if key != "position"}
        defaults = {"version": "1", "ref": name, "enabled": True, "last_updated": "2026-01-01T00:00:00.000000Z"}
        return {"id": name, **defaults, **given}

    def _too_many(self, count: int) -> Answer:
        most = RULES_MAX[self.plan]
        return fault(400, 20217, f"exceeded maximum number of rules in the phase {PHASE}: {count} out of {most}")

    def _wrong(self, rule: Any) -> Answer | None:
        """The refusal of a rule that the API's schema does not allow."""
        why = problem(rule)
        return self._refuse(why, 400, 20015, f"invalid rule: {why}") if why else None

    def _refuse(self, why: str, status: int, code: int, message: str) -> Answer:
        self.faults.append(why)
        return fault(status, code, message)


def problem(rule: Any) -> str:
    """What is wrong with a Cache Rule; empty: nothing."""
    if not isinstance(rule, dict):
        return "a rule is an object"
    if rule.keys() - _RULE_KEYS:
        return f"unknown fields {sorted(rule.keys() - _RULE_KEYS)}"
    if rule.get("action") != "set_cache_settings":
        return f"action {rule.get('action')!r}"
    if type(rule.get("expression")) is not str or not rule["expression"]:
        return f"expression {rule.get('expression')!r}"
    if type(rule.get("enabled", True)) is not bool:
        return f"enabled {rule['enabled']!r}"
    for name in ("description", "ref"):
        if type(rule.get(name, "")) is not str:
            return f"{name} {rule[name]!r}"
    parameters = rule.get("action_parameters")
    if not isinstance(parameters, dict) or not parameters:
        return f"action_parameters {parameters!r}"
    if parameters.keys() - _PARAMETERS:
        return f"unknown action_parameters {sorted(parameters.keys() - _PARAMETERS)}"
    return next((why for name, value in parameters.items() if (why := _parameter_problem(name, value))), "")


def _parameter_problem(name: str, value: Any) -> str:
    if name in _FLAGS:
        return "" if type(value) is bool else f"{name} {value!r}"
    if name == "additional_cacheable_ports":
        return "" if isinstance(value, list) else f"{name} {value!r}"
    if name == "read_timeout":
        return "" if type(value) is int else f"{name} {value!r}"
    if not isinstance(value, dict):
        return f"{name} {value!r}"
    if name not in _MODES:
        return ""
    mode = value.get("mode")
    if mode not in _MODES[name]:
        return f"{name}.mode {mode!r}"
    allowed = {"edge_ttl": {"default", "status_code_ttl"}, "browser_ttl": {"default"}}.get(name, set())
    if value.keys() - allowed - {"mode"}:
        return f"unknown {sorted(value.keys() - allowed - {'mode'})} in {name}"
    if mode == "override_origin" and type(value.get("default")) is not int:
        return f"{name}.default {value.get('default')!r}"
    if mode != "override_origin" and "default" in value:
        return f"{name}.default goes with override_origin alone"
    return next((why for entry in value.get("status_code_ttl", []) if (why := _status_problem(entry))), "")


def _status_problem(entry: Any) -> str:
    if not isinstance(entry, dict) or type(entry.get("value")) is not int:
        return f"status_code_ttl {entry!r}"
    match {key: value for key, value in entry.items() if key != "value"}:
        case {"status_code": int(code), **rest} if 100 <= code <= 999 and not rest:
            return ""
        case {"status_code_range": {**bounds}, **rest} if not rest and bounds and bounds.keys() <= {"from", "to"}:
            return ""
    return f"status_code_ttl {entry!r}"


def _is_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is str and value for value in values)


def _well(result: Any, **more: Any) -> Answer:
    return Answer(200, {"success": True, "errors": [], "messages": [], "result": result, **more})


def _page(result: list[Any]) -> Answer:
    count = len(result)
    info = {"page": 1, "per_page": 20, "count": count, "total_count": count, "total_pages": min(count, 1)}
    return _well(result, result_info=info)


def _lost() -> Answer:
    return fault(404, 7003, "Could not route to that, perhaps your object identifier is invalid?")


@contextmanager
def zone_api(
    *,
    name: str = "example.com",
    plan: str = "free",
    token: str = API_TOKEN,
    proxied: bool = True,
    rules: Sequence[dict[str, Any]] = (),
) -> Iterator[FakeZone]:
    """The API on loopback, with one zone, until the context ends; with rules there is a ruleset for them."""
    zone = FakeZone(name=name, plan=plan, token=token, proxied=proxied)
    for rule in rules:
        zone.add(rule)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = self.path.removeprefix("/client/v4")
            try:
                document = json.loads(data) if data else None
            except ValueError:
                document = data
            zone.requests.append((f"{self.command} {target}", document))
            if zone.answers:
                answer = zone.answers.pop(0)
            elif data and self.headers.get("Content-Type") != "application/json":
                answer = fault(400, 10021, "The JSON you provided was not well formed")
            else:
                answer = zone.decide(self.command, target, self.headers.get("Authorization"), document)
            if answer.status == 0:
                self.close_connection = True
                return
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for header, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    with _served(Handler) as url:
        zone.url = f"{url}/client/v4"
        yield zone
