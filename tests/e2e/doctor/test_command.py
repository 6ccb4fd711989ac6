"""`coldstream doctor`: its output, settings, and what needs no model."""

from __future__ import annotations

from pathlib import Path

from coldstream.operate.doctor.checklist import CHECKLIST
from tests.e2e.doctor.doctor_place import NAME, Place


def test_all_is_green(place: Place) -> None:
    """coldstream doctor org/m: on the demo's kind of store, on a machine with neither GPU nor vLLM"""
    out, err = place.command.run("doctor", NAME)
    lines = out.splitlines()
    assert [line[:5] for line in lines[:-1]] == ["ok   "] * len(CHECKLIST)
    assert [line[6:].startswith(item.name) for line, item in zip(lines, CHECKLIST, strict=False)] == [True] * 29
    assert lines[-1] == "0 failed, 0 warnings, 29 ok"
    assert err == ""
    assert [info.key for info in place.store.list(".coldstream-probe/")] == []


def test_as_json(place: Place) -> None:
    """coldstream doctor org/m --json"""
    found = place.command.json("doctor", NAME, "--skip", "speed", "--skip", "round-trip")
    assert (found["failed"], found["warned"], found["skipped"], found["ok"]) == (0, 0, 0, 27)
    assert found["checks"][0] == {
        "name": "configuration",
        "state": "ok",
        "found": found["checks"][0]["found"],
        "hint": None,
        "exit_code": 0,
    }


def test_without_a_model(place: Place) -> None:
    """coldstream doctor"""
    out, _ = place.command.run("doctor")
    assert "-     model            skipped: no model was named" in out
    assert "0 failed, 0 warnings, 24 ok, 5 skipped" in out


def test_a_folder_as_the_store(place: Place, tmp_path: Path) -> None:
    """coldstream doctor org/m --store FOLDER"""
    place.command.run("upload", str(tmp_path / "m"), "--as", NAME, "--store", str(tmp_path / "store"))
    found = place.command.json("doctor", NAME, "--store", str(tmp_path / "store"))
    assert (found["failed"], found["warned"], found["skipped"]) == (0, 0, 0)


def test_a_usage_error(place: Place) -> None:
    """coldstream doctor --only sped; s3://…; with settings that cannot be read: 2"""
    assert "there is no check 'sped'" in place.command.run("doctor", "--only", "sped", code=2)[1]
    assert "not a model's name" in place.command.run("doctor", "s3://b/org/m", code=2)[1]
    place.command.environ["COLDSTREAM_CASH_DIR"] = "x"
    assert "did you mean COLDSTREAM_CACHE_DIR" in place.command.run("doctor", code=2)[1]


def test_a_fault_on_the_terminal(place: Place) -> None:
    """coldstream doctor org/none: one clear line, and a fix"""
    out, _ = place.command.run("doctor", "org/none", "--quick", code=1)
    assert "fail  model            there is no model org/none in s3://" in out
    assert "see: coldstream list" in out
    assert "-     bundles          skipped: model failed" in out
    assert out.splitlines()[-1].startswith("1 failed, 0 warnings, ")


def test_a_settings_file_that_others_can_read(place: Place) -> None:
    file = place.command.cwd / ".env"
    file.write_text(f"R2_SECRET_KEY={place.command.environ.pop('R2_SECRET_KEY')}\n")
    file.chmod(0o640)
    checks = place.checks()
    assert (checks["secrets"]["state"], checks["secrets"]["hint"]) == ("warn", "run: chmod 600 .env")
    assert checks["bucket"]["state"] == "ok"


def test_half_a_pair_of_keys(place: Place) -> None:
    del place.command.environ["R2_SECRET_KEY"]
    checks = place.checks(code=1)
    assert [name for name, check in checks.items() if check["state"] == "fail"] == ["configuration"]
    assert checks["model"]["found"] == "skipped: configuration failed"
    assert checks["open files"]["state"] == "ok"


def test_a_wrong_secret(place: Place) -> None:
    place.command.environ["R2_SECRET_KEY"] = "0" * 32
    faults = place.faults()
    assert list(faults) == ["bucket"]
    assert faults["bucket"]["exit_code"] == 12
    assert "refused" in faults["bucket"]["found"]


def test_a_bucket_that_is_not_there(place: Place) -> None:
    place.command.environ["R2_BUCKET"] = "no-such-bucket"
    faults = place.faults()
    assert list(faults) == ["bucket"]
    assert faults["bucket"]["hint"] == "create it: coldstream setup"
