"""`coldstream doctor`: the bucket, and what the keys allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.e2e.doctor.doctor_place import NAME, Place
from tests.servers.r2 import FakeR2, keys_of
from tests.servers.stores import Faults, S3Server


def use(place: Place, found: FakeR2, prefixes: list[str], **claims: Any) -> None:
    """Temporary keys instead of the parent's."""
    token = found.token(place.command.environ["R2_BUCKET"], prefixes, **claims)
    keys = keys_of(token)
    place.command.environ |= {
        "R2_ACCESS_KEY": keys["accessKeyId"],
        "R2_SECRET_KEY": keys["secretAccessKey"],
        "R2_SESSION_TOKEN": keys["sessionToken"],
    }


def test_keys_that_only_read(double: tuple[Place, FakeR2]) -> None:
    place, found = double
    use(place, found, [])
    checks = place.checks("--skip", "tls")
    assert checks["permissions"]["state"] == "ok"
    assert "these keys are read-only" in checks["permissions"]["found"]
    for name in ("round trip", "conditional put", "multipart"):
        assert (checks[name]["state"], checks[name]["found"]) == ("skipped", "skipped: these keys are read-only")
    assert checks["model"]["state"] == "ok"


def test_keys_for_one_model(double: tuple[Place, FakeR2]) -> None:
    """coldstream doctor org/m, with the keys that launch mints; without the name they open nothing"""
    place, found = double
    use(place, found, [f"{NAME}/", f".coldstream/bundles/{NAME}/"])
    place.command.environ["COLDSTREAM_BUNDLE_KEY"] = "k" * 64
    checks = place.checks()
    assert checks["bucket"]["found"] == f"these keys only open {NAME}/"
    assert "are read-only" in checks["permissions"]["found"]
    assert checks["model"]["state"] == checks["bundles"]["state"] == "ok"
    checks = {c["name"]: c for c in place.command.json("doctor", "--quick", code=1)["checks"]}
    assert checks["bucket"]["state"] == "fail"
    assert "do not cover this object" in checks["bucket"]["hint"]


def test_a_server_that_honours_conditions(proxied: tuple[Place, Faults]) -> None:
    place, _ = proxied
    assert place.checks()["conditional put"]["found"] == "honoured"


def test_keys_that_may_not_read(proxied: tuple[Place, Faults]) -> None:
    place, faults = proxied
    faults.add("fail", rf"GET /[^?]*/{NAME}/", times=99, status=403, code="AccessDenied")
    found = place.faults()
    assert list(found) == ["permissions"]
    assert found["permissions"]["exit_code"] == 12


def test_keys_that_may_not_delete(proxied: tuple[Place, Faults]) -> None:
    place, faults = proxied
    faults.add("fail", r"POST .*\?delete", times=99, status=403, code="AccessDenied")
    check = place.checks("--only", "permissions")["permissions"]
    assert check["state"] == "warn"
    assert "but not delete: .coldstream-probe/" in check["found"]


def test_an_empty_bucket(rclone: S3Server, tmp_path: Path) -> None:
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    found = command.json("doctor", "--only", "permissions")
    assert found["ok"] == 1


def test_a_server_that_ignores_ranges(proxied: tuple[Place, Faults]) -> None:
    place, faults = proxied
    faults.drop_range = True
    found = place.faults("--only", "round-trip", "--only", "multipart")
    assert list(found) == ["round trip"]
    assert "range" in found["round trip"]["found"]


def test_a_busy_server_is_reported_without_waiting(proxied: tuple[Place, Faults]) -> None:
    place, faults = proxied
    place.command.environ["COLDSTREAM_RETRY_SECONDS"] = "1"
    faults.add("fail", r"HEAD ", times=99)
    assert list(place.faults()) == ["bucket"]


def test_a_store_that_ignores_conditions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.operate.doctor.case.is_loopback", lambda host: False)
    checks = place.checks()
    assert checks["conditional put"]["state"] == "warn"
    assert checks["conditional put"]["hint"] == "do not upload the same model from two machines at once"
    assert checks["tls"]["state"] == "warn"


def test_a_store_that_lists_no_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.places.s3_store.S3Store.parts", lambda *_: [])
    assert place.checks()["multipart"]["state"] == "warn"
