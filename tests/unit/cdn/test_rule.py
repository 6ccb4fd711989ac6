"""The cache rule, and what a plan keeps."""

from __future__ import annotations

import pytest

from coldstream.cdn import PLANS, Object, limit_of
from coldstream.cdn.limits import kept_share
from coldstream.cdn.rule import is_there, rule_for, rules_for
from coldstream.errors import UsageError


def an_object(size: int, *, weights: bool = True, label: str = "m.safetensors") -> Object:
    return Object(
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
    with pytest.raises(UsageError, match="no domain"):
        rule_for(host, segments=True)


def test_a_rule_is_known_by_what_it_does() -> None:
    rule = rule_for("models.example.com", segments=False)
    assert is_there(rule, [{"action": "other"}, {**rule, "ref": "by hand", "description": "mine"}])
    assert is_there(rule, [{**rule, "expression": rule["expression"].replace(" and ", "  and ")}])
    assert not is_there(rule, [rule_for("other.example.com", segments=False), "no rule", {}])
    assert not is_there(rule, [{**rule, "action": "block"}])


def test_the_limits_of_plans() -> None:
    assert limit_of("free") == limit_of("business") == 512_000_000
    assert limit_of("enterprise") == 5_000_000_000
    assert limit_of(None) == min(PLANS.values())
    with pytest.raises(UsageError, match="no plan"):
        limit_of("platinum")


def test_the_share_that_can_be_kept() -> None:
    objects = [an_object(600), an_object(400), an_object(10_000, weights=False)]
    assert kept_share(objects, 500) == 0.4
    assert kept_share(objects, 600) == 1.0
    assert kept_share([an_object(1, weights=False)], 500) is None
