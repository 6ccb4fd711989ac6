"""The cache rule, and what a plan keeps."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.errors import UsageError
from coldstream.operate.cdn.edge_cache import PLANS, CdnObject, kept_share, limit_of
from coldstream.operate.cdn.zone import rewritten, rule_for, rule_state, rules_for


def an_object(size: int, *, weights: bool = True, label: str = "m.safetensors") -> CdnObject:
    return CdnObject(
        model="org/m",
        key="org/m/x",
        label=label,
        size=size,
        etag="e",
        sha256=None,
        is_weights=weights,
        is_read=weights,
    )


def test_segments_are_kept_for_a_year_and_files_for_a_day() -> None:
    segments, files = rules_for("models.example.com")
    assert segments["action_parameters"]["edge_ttl"]["default"] == 31_536_000
    assert files["action_parameters"]["edge_ttl"]["default"] == 86_400
    assert 'http.request.uri.path contains "/.coldstream/segments/"' in segments["expression"]
    assert "and not http.request.uri.path contains" in files["expression"]
    assert 'and not ends_with(http.request.uri.path, "/coldstream.json")' in files["expression"]
    assert segments["ref"] != files["ref"] != rule_for("other.example.com", segments=False)["ref"]
    for rule in (segments, files):
        assert rule["action_parameters"]["cache"] is True
        assert rule["action_parameters"]["origin_range_requests"] == {"mode": "on"}
        assert rule["action_parameters"]["edge_ttl"]["status_code_ttl"][0]["value"] == -1
        assert 'http.host eq "models.example.com"' in rule["expression"]


@pytest.mark.parametrize("host", ["", "localhost", 'x" or true', "a b.com", "-a.com", "a..com", "a" * 254 + ".com"])
def test_what_is_no_domain_gets_no_rule(host: str) -> None:
    with pytest.raises(UsageError, match="not a domain"):
        rule_for(host, segments=True)


def test_a_rule_is_known_by_what_it_does() -> None:
    rule = rule_for("models.example.com", segments=False)

    def state(*existing: object) -> str:
        return rule_state(rule, existing).state

    assert state({"action": "other"}, {**rule, "ref": "by hand", "description": "mine"}) == "as wanted"
    assert state({**rule, "expression": rule["expression"].replace(" and ", "  and ")}) == "as wanted"
    assert state(rule_for("other.example.com", segments=False), "no rule", {}) == "absent"
    assert state({**rule, "ref": "by hand", "action": "block"}) == "absent"
    assert state({**rule, "ref": "by hand", "enabled": False}) == "differs"
    # As the API gives it: with fields of its own, and none that says that it is enabled.
    given = {name: value for name, value in rule.items() if name != "enabled"}
    assert state({**given, "id": "0" * 32, "version": "3", "last_updated": "2026"}) == "as wanted"


def with_parameters(rule: dict[str, Any], **parameters: object) -> dict[str, Any]:
    return {**rule, "action_parameters": {**rule["action_parameters"], **parameters}}


def test_each_field_that_differs_is_named() -> None:
    rule = rule_for("models.example.com", segments=True)
    ttl = rule["action_parameters"]["edge_ttl"]
    changes: list[tuple[dict[str, Any], dict[str, tuple[object, object]]]] = [
        (
            with_parameters(rule, edge_ttl={**ttl, "default": 60}),
            {"edge_ttl.default": (60, 31_536_000)},
        ),
        (
            with_parameters(rule, edge_ttl={"mode": "respect_origin"}),
            {
                "edge_ttl.mode": ("respect_origin", "override_origin"),
                "edge_ttl.default": (None, 31_536_000),
                "edge_ttl.status_code_ttl": (None, ttl["status_code_ttl"]),
            },
        ),
        ({**rule, "expression": "true"}, {"expression": ("true", rule["expression"])}),
        ({**rule, "enabled": False}, {"enabled": (False, True)}),
        (with_parameters(rule, origin_range_requests=None), {"origin_range_requests": (None, {"mode": "on"})}),
        ({**rule, "action_parameters": "none"}, {name: (None, v) for name, v in rule["action_parameters"].items()}),
        # What is its owner's.
        ({**rule, "description": "mine"}, {}),
        (with_parameters(rule, read_timeout=900), {}),
    ]
    for found, expected in changes:
        standing = rule_state(rule, [found])
        assert {each.field: (each.actual, each.expected) for each in standing.differences} == expected
        assert standing.state == ("differs" if expected else "as wanted")
        assert standing.is_ours


def test_of_several_rules_one_that_is_as_wanted_counts_and_then_ours() -> None:
    rule = rule_for("models.example.com", segments=True)
    ours = {**rule, "enabled": False}
    by_hand = {**with_parameters(rule, cache=False), "ref": "by hand"}
    assert rule_state(rule, [by_hand, ours]).actual is ours
    assert rule_state(rule, [ours, by_hand, {**rule, "ref": "exact"}]).state == "as wanted"
    alone = rule_state(rule, [by_hand])
    assert (alone.state, alone.is_ours) == ("differs", False)


def test_a_rule_is_written_anew_with_what_its_owner_added() -> None:
    rule = rule_for("models.example.com", segments=True)
    found = with_parameters(rule, read_timeout=900, cache=False, edge_ttl={"mode": "respect_origin"})
    found |= {"id": "0" * 32, "version": "3", "last_updated": "2026", "description": "mine", "enabled": False}
    written = rewritten(rule_state(rule, [found]))
    assert written == {**with_parameters(rule, read_timeout=900), "description": "mine"}
    assert rule_state(rule, [written]).state == "as wanted"


def test_the_limits_of_plans() -> None:
    assert limit_of("free") == limit_of("business") == 512_000_000
    assert limit_of("enterprise") == 5_000_000_000
    assert limit_of(None) == min(PLANS.values())
    assert limit_of("platinum") == min(PLANS.values()), "a plan that Cloudflare has added"


def test_the_share_that_can_be_kept() -> None:
    objects = [an_object(600), an_object(400), an_object(10_000, weights=False)]
    assert kept_share(objects, 500) == 0.4
    assert kept_share(objects, 600) == 1.0
    assert kept_share([an_object(1, weights=False)], 500) is None
