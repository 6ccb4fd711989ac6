"""The secret header and service tokens of a CDN."""

from __future__ import annotations

import logging

import pytest

from coldstream.errors import ConfigError
from tests.faults.cdn.fake_cdn import SECRET, Place, bytes_of, reports_of


def test_a_secret_header_opens_it_and_goes_nowhere_else(
    place: Place, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    place.cdn.secret = ("X-Models", SECRET)
    place = place.with_settings(COLDSTREAM_CDN_HEADER=f"X-Models: {SECRET}")
    # Some of it from the bucket too: that must not see the header.
    place.cdn.add("status", status=503, times=3, first=4)
    place.cdn.add("redirect", times=3, first=10, location=f"{place.settings.values['R2_ENDPOINT']}/elsewhere")
    loading = place.load()
    assert bytes_of(loading) == expected
    _, cdn = reports_of(loading)
    assert cdn.fallbacks >= 6
    assert all(request.headers["x-models"] == SECRET for request in place.cdn.requests)
    assert place.faults.headers
    assert not any(SECRET in text or "x-models" in text.lower() for text in place.faults.headers)
    assert not any("elsewhere" in line for line, _ in place.faults.requests)
    assert loading._prepared is not None
    out, err = capfd.readouterr()
    shown = repr((loading._prepared, loading._prepared.jobs, loading._prepared.checkpoint, loading.report))
    for text in (shown, repr(place.settings), caplog.text, out, err, repr(loading._prepared.origin)):
        assert SECRET not in text


def test_a_service_token(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.secret = ("CF-Access-Client-Secret", SECRET)
    place = place.with_settings(CF_ACCESS_CLIENT_ID="id.access", CF_ACCESS_CLIENT_SECRET=SECRET)
    loading = place.load()
    assert bytes_of(loading) == expected
    assert set(reports_of(loading)[1].failures) <= {"slow"}
    assert place.cdn.requests[0].headers["cf-access-client-id"] == "id.access"
    assert not any("cf-access" in text.lower() for text in place.faults.headers)


@pytest.mark.parametrize("header", ["", "X-Models: another"])
def test_a_secret_that_is_missing_or_wrong(header: str, place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.secret = ("X-Models", SECRET)
    place = place.with_settings(**({"COLDSTREAM_CDN_HEADER": header} if header else {}))
    loading = place.load()
    assert bytes_of(loading) == expected
    _, cdn = reports_of(loading)
    assert ": 403" in cdn.gave_up
    assert set(cdn.failures) == {"refused"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"COLDSTREAM_CDN_HEADER": f"X-Models {SECRET}"},
        {"COLDSTREAM_CDN_HEADER": f"X-Models: {SECRET}\r\nX-Other: 1"},
        {"COLDSTREAM_CDN_HEADER": f"X Models: {SECRET}"},
        {"COLDSTREAM_CDN_HEADER": f"Range: {SECRET}"},
        {"CF_ACCESS_CLIENT_ID": "id", "CF_ACCESS_CLIENT_SECRET": f"{SECRET}\nX: 1"},
        {"CF_ACCESS_CLIENT_SECRET": SECRET},
        {"R2_CDN_DOMAIN": "http://models.example.com", "COLDSTREAM_CDN_HEADER": f"X-Models: {SECRET}"},
        {"R2_CDN_DOMAIN": f"https://user:{SECRET}@models.example.com"},
        {"R2_CDN_DOMAIN": "models.example.com/folder"},
        {"R2_CDN_DOMAIN": "ftp://models.example.com"},
        {"R2_CDN_DOMAIN": "mod els"},
    ],
)
def test_what_cannot_be_sent_is_refused_without_showing_it(wrong: dict[str, str], place: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        place.with_settings(**wrong).load().__next__()
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.hint}"
    assert caught.value.hint or "not a token" in caught.value.message
