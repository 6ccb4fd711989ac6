"""Errors without secrets, on stderr and as JSON."""

from __future__ import annotations

import pytest

from coldstream.cli.session import State, error_document


def test_an_error_shows_no_secret_of_a_uri(capsys: pytest.CaptureFixture[str]) -> None:
    State().explain("vLLM failed: GET https://h/m?token=marker", "see s3://AKIA:marker@b/m")
    shown_text = capsys.readouterr().err
    assert "GET https://h/m" in shown_text
    assert "see s3://b/m" in shown_text
    assert "marker" not in shown_text
    document = error_document("failed", "GET https://h/m?token=marker", "see s3://AKIA:marker@b/m", 1)
    assert document["error"]["message"] == "GET https://h/m"
    assert document["error"]["hint"] == "see s3://b/m"
