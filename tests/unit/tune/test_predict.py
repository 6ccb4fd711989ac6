"""The names of clouds."""

from __future__ import annotations

import pytest

from coldstream.errors import UsageError
from coldstream.tune.predict import parse_cloud


@pytest.mark.parametrize(
    ("text", "cloud"), [("aws", "aws"), (" GCP/us-Central1 ", "gcp/us-central1"), ("vast", "vast")]
)
def test_a_cloud_and_a_place_in_it_are_read(text: str, cloud: str) -> None:
    assert parse_cloud(text) == cloud


@pytest.mark.parametrize(
    ("text", "hint"), [("azzure", "did you mean azure?"), ("gpc/us-central1", "did you mean gcp/us-central1?")]
)
def test_a_misspelt_cloud_is_told_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="is not a known cloud") as caught:
        parse_cloud(text)
    assert caught.value.hint == hint


def test_an_unknown_cloud_is_told_all_of_them() -> None:
    with pytest.raises(UsageError, match="'mars' is not a known cloud") as caught:
        parse_cloud("mars")
    assert "aws, azure" in (caught.value.hint or "")
