"""`coldstream doctor`: bundles and the local cache."""

from __future__ import annotations

from datetime import datetime, timezone

from coldstream.node.bundle.archive import Archive
from coldstream.node.bundle.bundle_pointer import Pointer, encode
from tests.e2e.doctor.doctor_place import NAME, Place


def pointer() -> Pointer:
    return Pointer(
        format=1,
        key="1" * 64,
        parts={"vllm": "0.32.0"},
        archive=Archive(sha256="2" * 64, size=10, files=1, bytes=20),
        created=datetime(2026, 1, 2, tzinfo=timezone.utc),
        tool="coldstream",
        ready_seconds=12.5,
    )


def test_bundles_that_another_key_signed(place: Place) -> None:
    place.command.environ["COLDSTREAM_BUNDLE_KEY"] = "a" * 64
    assert place.checks()["bundles"]["found"] == "none yet: the first start publishes one"
    key = f".coldstream/bundles/{NAME}/{'1' * 64}.bundle"
    place.store.put(key, encode(pointer(), b"a" * 64))
    assert place.checks()["bundles"]["found"] == "1 bundle, signed with this key"
    place.store.put(key, encode(pointer(), b"b" * 64))
    check = place.checks()["bundles"]
    assert check["state"] == "warn"
    assert "1 of 1 not signed with this key: foreign" in check["found"]
    assert check["hint"].endswith(f"coldstream bundle remove {NAME}")


def test_a_bundle_key_that_is_too_short(place: Place) -> None:
    place.command.environ["COLDSTREAM_BUNDLE_KEY"] = "short"
    checks = place.checks(code=1)
    assert checks["bundle key"]["state"] == "fail"
    assert checks["bundles"]["found"] == "skipped: bundle key failed"


def test_a_copy_makes_the_next_start_a_warm_one(place: Place) -> None:
    place.command.run("load", NAME)
    assert "the next start is warm" in place.checks()["disk"]["found"]


def test_a_cache_that_others_can_write_to(place: Place) -> None:
    """It is used through a directory inside it that only this user can access."""
    (place.command.cwd / "cache").mkdir()
    (place.command.cwd / "cache").chmod(0o777)
    check = place.checks()["cache folder"]
    assert check["state"] == "ok"
    assert check["found"].startswith(f"{place.command.cwd}/cache/")
