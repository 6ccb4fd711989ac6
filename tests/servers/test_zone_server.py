"""The double of a zone's API keeps Cloudflare's rules, by hand."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers.zone import PHASE, RULESET, ZONE, FakeZone, zone_api

RULE = {
    "action": "set_cache_settings",
    "expression": '(http.host eq "cdn.example.com")',
    "ref": "ours",
    "description": "segments",
    "action_parameters": {
        "cache": True,
        "edge_ttl": {
            "mode": "override_origin",
            "default": 31536000,
            "status_code_ttl": [{"status_code": 404, "value": 0}, {"status_code_range": {"from": 500}, "value": 0}],
        },
        "origin_range_requests": {"mode": "on"},
    },
}
OTHER = {"action": "set_cache_settings", "expression": "true", "action_parameters": {"cache": False}}
ENTRY = f"/zones/{ZONE}/rulesets/phases/{PHASE}/entrypoint"


def ask(zone: FakeZone, line: str, document: Any = None, token: str | None = None) -> tuple[int, Any, Any]:
    """The status, the code of the error if there is one, and the result."""
    method, _, path = line.partition(" ")
    split = urlsplit(zone.url)
    headers = {"Authorization": f"Bearer {zone.token if token is None else token}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(split.netloc, timeout=10)
    try:
        connection.request(method, split.path + path, json.dumps(document) if document is not None else None, headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
    finally:
        connection.close()
    assert body["success"] == (answer.status == 200)
    return answer.status, body["errors"][0]["code"] if body["errors"] else None, body["result"]


def test_names_and_tokens() -> None:
    with zone_api(plan="pro", proxied=False) as zone:
        zone.absent.add("none.example.com")
        assert ask(zone, "GET /zones?name=example.com")[2][0]["plan"]["legacy_id"] == "pro"
        assert ask(zone, "GET /zones?name=cdn.example.com")[2] == []
        assert ask(zone, f"GET /zones/{ZONE}")[2]["name"] == "example.com"
        (record,) = ask(zone, f"GET /zones/{ZONE}/dns_records?name=cdn.example.com")[2]
        assert (record["name"], record["proxied"]) == ("cdn.example.com", False)
        assert ask(zone, f"GET /zones/{ZONE}/dns_records?name=none.example.com")[2] == []
        assert ask(zone, "GET /zones", token="other")[:2] == (403, 9109)
        assert ask(zone, "GET /zones", token="")[:2] == (403, 10000)
        zone.denied.append("/rulesets")
        assert ask(zone, f"GET {ENTRY}")[:2] == (403, 10000)
        assert ask(zone, f"GET /zones/{'0' * 32}")[:2] == (404, 7003)
        assert not zone.faults


def test_the_first_rule_makes_the_ruleset() -> None:
    with zone_api() as zone:
        assert ask(zone, f"GET {ENTRY}")[:2] == (404, 10003)
        made = {"name": "default", "kind": "zone", "phase": PHASE, "rules": [RULE]}
        assert ask(zone, f"POST /zones/{ZONE}/rulesets", made)[2]["rules"][0]["ref"] == "ours"
        assert ask(zone, f"POST /zones/{ZONE}/rulesets", made)[:2] == (400, 20217)
        found = ask(zone, f"GET {ENTRY}")[2]
        assert (found["id"], [rule["enabled"] for rule in found["rules"]]) == (RULESET, [True])


def test_rules_are_appended_changed_and_removed() -> None:
    with zone_api(rules=[OTHER]) as zone:
        rules = f"/zones/{ZONE}/rulesets/{RULESET}/rules"
        found = ask(zone, f"POST {rules}", RULE)[2]
        assert [rule["expression"] for rule in found["rules"]] == ["true", RULE["expression"]]
        assert ask(zone, f"POST {rules}", RULE)[:2] == (400, 20029)
        assert ask(zone, f"POST {rules}", RULE | {"ref": "first", "position": {"index": 1}})[0] == 200
        assert [rule["ref"] for rule in zone.rules] == ["first", zone.rules[1]["id"], "ours"]
        ours = zone.rules[2]["id"]
        assert ask(zone, f"PATCH {rules}/{ours}", RULE | {"enabled": False})[2]["rules"][2]["enabled"] is False
        assert ask(zone, f"DELETE {rules}/{ours}")[0] == 200
        assert len(zone.rules) == 2
        assert not zone.faults
        for number in range(8):
            assert ask(zone, f"POST {rules}", OTHER | {"ref": f"{number}"})[0] == 200
        assert ask(zone, f"POST {rules}", RULE)[:2] == (400, 20217)
        assert ask(zone, f"PUT {ENTRY}", {"rules": [RULE]})[0] == 405
        assert ask(zone, f"DELETE /zones/{ZONE}/rulesets/{RULESET}")[0] == 405
        assert len(zone.faults) == 2
        assert len(zone.rules) == 10


@pytest.mark.parametrize(
    "changed",
    [
        {"action": "execute"},
        {"expression": ""},
        {"expression": None},
        {"more": 1},
        {"action_parameters": {}},
        {"action_parameters": {"cache": "on"}},
        {"action_parameters": {"edge_tll": {}}},
        {"action_parameters": {"edge_ttl": {"mode": "override_origin"}}},
        {"action_parameters": {"edge_ttl": {"mode": "override", "default": 1}}},
        {"action_parameters": {"edge_ttl": {"mode": "respect_origin", "default": 1}}},
        {"action_parameters": {"edge_ttl": {"mode": "respect_origin", "status_code_ttl": [{"status_code": 404}]}}},
        {"action_parameters": {"origin_range_requests": True}},
        {"action_parameters": {"origin_range_requests": {"mode": "maybe"}}},
    ],
)
def test_wrong_rules(changed: dict[str, Any]) -> None:
    with zone_api(rules=[OTHER]) as zone:
        assert ask(zone, f"POST /zones/{ZONE}/rulesets/{RULESET}/rules", RULE | changed)[:2] == (400, 20015)
        assert len(zone.faults) == len(zone.rules) == 1


def test_purges() -> None:
    path = f"POST /zones/{ZONE}/purge_cache"
    urls = [f"https://cdn.example.com/{number}" for number in range(31)]
    with zone_api() as zone:
        assert ask(zone, path, {"files": urls[:30]})[0] == 200
        assert zone.purged == urls[:30]
        assert ask(zone, path, {"prefixes": ["cdn.example.com/a"]})[:2] == (400, 1107)
        assert not zone.faults
        for wrong in (
            {"files": urls},
            {"files": []},
            {"files": ["https://notexample.com/1"]},
            {"purge_everything": True},
        ):
            assert ask(zone, path, wrong)[0] == 400
        assert len(zone.faults) == 4
        zone.plan = "enterprise"
        assert ask(zone, path, {"prefixes": ["cdn.example.com/a"]})[0] == 200
        assert zone.purged[30:] == ["cdn.example.com/a*"]


def test_patching_a_rule_replaces_it_and_no_other() -> None:
    with zone_api(rules=[OTHER, RULE | {"description": "by hand", "enabled": False}]) as zone:
        other, ours = (rule["id"] for rule in zone.rules)
        path = f"PATCH /zones/{ZONE}/rulesets/{RULESET}/rules/{ours}"
        whole = {name: RULE[name] for name in ("action", "expression", "action_parameters")}
        found = ask(zone, path, whole)[2]["rules"]
        # What was left out is gone, but for the name.
        assert (found[1]["enabled"], found[1]["ref"], found[1]["version"]) == (True, "ours", "2")
        assert "description" not in found[1]
        assert found[0] == zone.rules[0] == {**zone.rules[0], **OTHER, "id": other, "version": "1"}
        assert ask(zone, path, {"position": {"before": other}})[0] == 200
        assert [rule["id"] for rule in zone.rules] == [ours, other]
        assert not zone.faults
        assert ask(zone, path, whole | {"ref": zone.rules[1]["ref"]})[:2] == (400, 20029)
        for wrong in ({"enabled": True}, whole | {"id": other}, whole | {"version": "7"}, {"position": {"index": 9}}):
            assert ask(zone, path, wrong)[:2] == (400, 20015)
        assert len(zone.faults) == 4
        assert ask(zone, f"{path}0", whole)[:2] == (404, 10002)
