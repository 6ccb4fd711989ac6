"""Any text can be looked over, and any name that is allowed stays a value."""

from __future__ import annotations

import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.fleet.deploy_options import TARGETS
from coldstream.fleet.deployment import Bucket, render
from coldstream.fleet.template_check import RULES, check
from tests.unit.fleet.deployments import deployment

PIECES = st.sampled_from(
    [
        "service:",
        "resources:",
        "any_of:",
        "use_spot: true",
        "ports: 8000",
        "- ",
        "  ",
        "\n",
        "\n  ",
        "{",
        "}",
        "[",
        "]",
        "vllm serve m",
        "--host ::",
        "--model-loader-extra-config",
        "'{\"a\": 1}'",
        "HF_TOKEN=",
        "VLLM_API_KEY: ",
        "&a ",
        "*a",
        "name: HF_TOKEN",
        "value: x",
        "command: ",
        "image: vllm/vllm-openai",
        "\\\n",
        "'",
        '"',
        "#",
        "```",
        ": ",
        "? ",
        "!!x ",
    ]
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=30).map("".join))


@settings(deadline=None)
@given(text=TEXTS, ending=st.sampled_from(["yaml", "sh", "md"]))
def test_any_text_can_be_looked_over(text: str, ending: str) -> None:
    lines = max(1, len(text.splitlines())) + 1
    for finding in check(text, f"f.{ending}"):
        assert finding.rule in RULES
        assert 1 <= finding.line <= lines


@settings(deadline=None)
@given(
    target=st.sampled_from(TARGETS),
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,60}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,60})?", fullmatch=True),
    endpoint=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60),
)
def test_any_name_stays_a_value(target: str, name: str, endpoint: str) -> None:
    bucket = Bucket(uri="s3://models", endpoint=endpoint, region="auto")
    plain = deployment(target, bucket=Bucket(uri="s3://models", endpoint="e", region="auto"))
    odd = list(yaml.safe_load_all(render(deployment(target, name=name, bucket=bucket))))
    assert [_shape(document) for document in odd] == [
        _shape(document) for document in yaml.safe_load_all(render(plain))
    ]
    # compose doubles the dollar, by which it puts variables in.
    wanted = endpoint.replace("$", "$$") if target == "compose" else endpoint
    assert json.dumps(wanted)[1:-1] in json.dumps(odd)


def _shape(found: object) -> object:
    """Keys and kinds of values, without the values."""
    if isinstance(found, dict):
        return {key: _shape(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_shape(value) for value in found]
    return type(found).__name__
