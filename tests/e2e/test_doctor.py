"""`coldstream doctor` against real buckets: all green where nothing is wrong, and each fault found by its check."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from coldstream.machine import hardware
from coldstream.mirror.manifest_records import read_record, record_key
from coldstream.model.manifest import Journal, Manifest, serialize
from coldstream.node.bundle.bundle_pointer import Archive, Pointer, encode
from coldstream.operate.doctor import cdn_checks, node_checks
from coldstream.operate.doctor import speed_checks as speed_module
from coldstream.operate.doctor.checklist import CHECKLIST
from coldstream.places.place import Store
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.servers.r2 import FakeR2, keys_of, r2
from tests.servers.ranged import RangedServer
from tests.servers.stores import Faults, S3Server, fault_proxy

NAME = "org/m"
FILES = sharded_checkpoint(shards=2, layers=2, rows=128, columns=256)
Checks = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU, with a local disk, whatever this one has."""
    (tmp_path / "mounts").write_text("/dev/root / ext4 rw 0 0\n")
    monkeypatch.setattr(node_checks, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(node_checks, "_devices", lambda: False)
    hardware.gpus.cache_clear()
    yield
    hardware.gpus.cache_clear()


@dataclass
class Place:
    """A bucket with a model, and the command that looks at it."""

    command: Command
    store: Store

    def checks(self, *arguments: str, code: int = 0) -> Checks:
        found = self.command.json("doctor", NAME, "--quick", *arguments, code=code)
        assert found["failed"] == sum(check["state"] == "fail" for check in found["checks"])
        return {check["name"]: check for check in found["checks"]}

    def faults(self, *arguments: str) -> Checks:
        """Those that failed; the exit code is 1."""
        return {name: check for name, check in self.checks(*arguments, code=1).items() if check["state"] == "fail"}


def made(server: S3Server, folder: Path) -> Place:
    bucket = fresh_bucket(server)
    command = Command(server, bucket, cwd=folder)
    (folder / "bin").mkdir()
    command.environ |= {"COLDSTREAM_CACHE_DIR": str(folder / "cache"), "PATH": str(folder / "bin")}
    command.environ["COLDSTREAM_RETRY_SECONDS"] = "3"
    (folder / "m").mkdir()
    for path, content in FILES.items():
        (folder / "m" / path).write_bytes(content)
    command.run("upload", str(folder / "m"), "--as", NAME)
    return Place(command, quick_store(server.environ(bucket)))


@pytest.fixture
def place(rclone: S3Server, tmp_path: Path) -> Place:
    return made(rclone, tmp_path)


def test_all_is_green(place: Place) -> None:
    """coldstream doctor org/m: on the demo's kind of store, on a machine with neither GPU nor vLLM"""
    out, err = place.command.run("doctor", NAME)
    lines = out.splitlines()
    assert [line[:5] for line in lines[:-1]] == ["ok   "] * len(CHECKLIST)
    assert [line[6:].startswith(item.name) for line, item in zip(lines, CHECKLIST, strict=False)] == [True] * 28
    assert lines[-1] == "0 failed, 0 warnings, 28 ok"
    assert err == ""
    assert [info.key for info in place.store.list(".coldstream-probe/")] == []


def test_as_json(place: Place) -> None:
    """coldstream doctor org/m --json"""
    found = place.command.json("doctor", NAME, "--skip", "speed", "--skip", "round-trip")
    assert (found["failed"], found["warned"], found["skipped"], found["ok"]) == (0, 0, 0, 26)
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
    assert "0 failed, 0 warnings, 24 ok, 4 skipped" in out


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


# What the keys may do.


@pytest.fixture
def double(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, FakeR2]]:
    place = made(moto, tmp_path)
    with r2(moto) as found:
        place.command.environ |= found.environ(place.command.environ["R2_BUCKET"])
        yield place, found


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


@pytest.fixture
def proxied(moto: S3Server, tmp_path: Path) -> Iterator[tuple[Place, Faults]]:
    place = made(moto, tmp_path)
    with fault_proxy(moto) as (server, faults):
        place.command.environ["R2_ENDPOINT"] = server.endpoint
        yield place, faults


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


# The model.


def test_a_shard_that_is_missing(place: Place) -> None:
    place.store.delete([f"{NAME}/model-00002-of-00002.safetensors"])
    found = place.faults()
    assert list(found) == ["model"]
    assert "model-00002-of-00002.safetensors is missing" in found["model"]["found"]
    assert found["model"]["hint"].startswith("run: coldstream upload ")


def test_a_shard_that_was_replaced(place: Place) -> None:
    place.store.put(f"{NAME}/model-00002-of-00002.safetensors", b"something else")
    assert "has 14 bytes" in place.faults()["model"]["found"]


def test_an_upload_that_was_broken_off(place: Place) -> None:
    record = read_record(place.store, NAME)
    assert record is not None
    whole = record[0]
    assert isinstance(whole, Manifest)
    journal = Journal(
        name=NAME,
        source=whole.source,
        created=whole.created,
        tool=whole.tool,
        writer="w",
        planned_files=9,
        planned_bytes=9,
        files=(),
    )
    place.store.put(record_key(NAME), serialize(journal))
    found = place.faults()
    assert list(found) == ["model"]
    assert "the upload is incomplete; run: coldstream upload" in found["model"]["found"]


def test_a_manifest_that_was_altered(place: Place) -> None:
    data, _ = place.store.get(record_key(NAME))
    place.store.put(record_key(NAME), data.replace(b'"ready"', b'"read_"'))
    assert "was altered" in place.faults()["model"]["found"]


def test_a_model_without_a_manifest(place: Place) -> None:
    place.store.delete([record_key(NAME)])
    found = place.command.json("doctor", NAME, "--skip", "speed")
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["model"]["state"] == "warn"
    assert checks["model"]["hint"] == f"for a manifest with hashes run: coldstream upload {NAME}"
    assert checks["chunk hashes"]["found"] == "skipped: there is no manifest to compare with"


def test_a_model_without_safetensors(place: Place) -> None:
    for info in list(place.store.list(f"{NAME}/")):
        place.store.delete([info.key])
    place.store.put(f"{NAME}/config.json", b"{}")
    assert "has no safetensors" in place.faults()["model"]["found"]


def test_a_model_without_a_configuration(place: Place, tmp_path: Path) -> None:
    (tmp_path / "m/config.json").unlink()
    place.command.run("upload", str(tmp_path / "m"), "--as", "org/bare")
    found = place.command.json("doctor", "org/bare", "--only", "model")
    assert "no config.json: vLLM cannot serve it" in found["checks"][0]["found"]
    assert found["warned"] == 1


def test_a_header_that_lies(place: Place, tmp_path: Path) -> None:
    """A shard that is no safetensors file: one fault, said once."""
    files = {f"org/liar/{path}": content for path, content in FILES.items() if path == "config.json"}
    files["org/liar/model.safetensors"] = b"\xff" * 64
    for key, content in files.items():
        place.store.put(key, content)
    found = place.command.json("doctor", "org/liar", "--quick", code=1)
    assert [check["name"] for check in found["checks"] if check["state"] == "fail"] == ["model"]


def test_an_altered_byte(place: Place) -> None:
    """The store holds other bytes than were hashed, under the ETag that the manifest names: a disk that forgets."""
    path = "model-00001-of-00002.safetensors"
    data = bytearray(place.store.get(f"{NAME}/{path}")[0])
    data[-1] ^= 1
    etag = place.store.put(f"{NAME}/{path}", bytes(data))
    record = read_record(place.store, NAME)
    assert record is not None
    manifest = record[0]
    assert isinstance(manifest, Manifest)
    old = next(entry.objects[0].etag for entry in manifest.files if entry.path == path)
    body = serialize(manifest).rpartition(b',"digest":"')[0].replace(old.encode(), etag.encode())
    digest = hashlib.sha256(body + b"}").hexdigest()
    place.store.put(record_key(NAME), body + f',"digest":"sha256:{digest}"}}\n'.encode())
    found = place.command.json("doctor", NAME, "--skip", "conditional-put", code=1)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["model"]["state"] == "ok"
    assert checks["chunk hashes"]["state"] == "fail"
    assert f"{path}: bytes " in checks["chunk hashes"]["found"]
    assert "coldstream verify org/m --deep" in checks["chunk hashes"]["hint"]
    assert checks["speed"]["found"] == "skipped: chunk hashes failed"


def test_a_read_that_goes_wrong_in_the_sample(proxied: tuple[Place, Faults]) -> None:
    place, faults = proxied
    faults.drop_range = True
    found = place.command.json("doctor", NAME, "--only", "chunk-hashes", code=1)
    assert "range" in found["checks"][0]["found"]


def test_a_model_larger_than_the_sample(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.operate.doctor.model_checks._SAMPLE_BYTES", 1)
    found = place.command.json("doctor", NAME, "--only", "chunk-hashes")
    assert found["checks"][0]["found"].startswith("1 of ")


def test_shards_that_cannot_be_read_through_links(proxied: tuple[Place, Faults]) -> None:
    """coldstream doctor org/m --only speed: the streamer's own requests are refused"""
    place, faults = proxied
    faults.add("fail", r"safetensors\?.*X-Amz-Signature", times=9999, status=403, code="AccessDenied")
    found = place.command.json("doctor", NAME, "--only", "speed", code=1)
    assert found["checks"][0]["exit_code"] == 12


def test_a_slow_bucket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_module, "_LOAD_SECONDS_MAX", 0.1)
    found = place.command.json("doctor", NAME, "--only", "speed")
    assert found["warned"] == 1
    assert "a cold start takes more than a minute" in found["checks"][0]["found"]


# Bundles.


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


# The CDN.


@pytest.fixture
def domain(place: Place) -> Iterator[RangedServer]:
    with RangedServer({f"/{NAME}/config.json": FILES["config.json"]}) as server:
        place.command.environ["R2_CDN_DOMAIN"] = server.url
        yield server


def cdn_check(place: Place, *, code: int = 0) -> dict[str, Any]:
    found = place.command.json("doctor", NAME, "--only", "cdn", code=code)["checks"][0]
    assert isinstance(found, dict)
    return found


def answers(server: RangedServer, *statuses: str) -> None:
    for number, status in enumerate(statuses, 1):
        last = number == len(statuses)
        times = None if last else 1
        server.add("header", first=number, times=times, value=f"CF-Cache-Status: {status}")


def test_a_cdn_that_caches(place: Place, domain: RangedServer) -> None:
    answers(domain, "MISS", "HIT")
    check = cdn_check(place)
    assert check["state"] == "ok"
    assert check["found"].endswith("serves the bucket's bytes: MISS, then HIT")


@pytest.mark.parametrize(("statuses", "reads"), [(("DYNAMIC",), 2), (("MISS",), 3), ((), 2)])
def test_a_cdn_that_keeps_nothing(place: Place, domain: RangedServer, statuses: tuple[str, ...], reads: int) -> None:
    answers(domain, *statuses)
    check = cdn_check(place)
    assert check["state"] == "warn"
    assert "cache rule" in check["hint"]
    assert domain.count("config.json") == reads


def test_shards_that_a_cdn_does_not_keep(place: Place, domain: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(domain, "HIT")
    monkeypatch.setattr(cdn_checks, "CACHED_BYTES_MAX", 1000)
    check = cdn_check(place)
    assert check["state"] == "warn"
    assert "2 shards above 512 MB are never cached" in check["found"]


def test_a_cdn_that_gives_other_bytes(place: Place, domain: RangedServer) -> None:
    domain.put(f"/{NAME}/config.json", b"{}")
    check = cdn_check(place, code=1)
    assert "serves other bytes than the bucket" in check["found"]
    domain.add("header", value="Content-Type: text/html; charset=utf-8", times=None)
    assert "serves an HTML page" in cdn_check(place, code=1)["found"]


@pytest.mark.parametrize(("status", "says"), [(403, "blocks this machine"), (404, "belongs to this bucket")])
def test_a_cdn_that_refuses(place: Place, domain: RangedServer, status: int, says: str) -> None:
    domain.add("status", status=status, times=None)
    check = cdn_check(place, code=1)
    assert check["found"].endswith(f"answers {status}")
    assert says in check["hint"]


def test_a_cdn_that_keeps_a_404_from_before_the_upload(place: Place, domain: RangedServer) -> None:
    domain.add("status", status=404, times=None)
    answers(domain, "HIT")
    assert f"coldstream cdn purge {NAME}, or wait 3 minutes" in cdn_check(place, code=1)["hint"]


def test_an_unreachable_cdn(place: Place, domain: RangedServer) -> None:
    with domain.refusing():
        check = cdn_check(place, code=1)
    assert check["found"].startswith(f"cannot reach {domain.url}: ")
    assert "Traceback" not in check["found"]
    place.command.environ["R2_CDN_DOMAIN"] = "cdn.example.com/models"
    assert "the domain by itself" in cdn_check(place, code=1)["found"]


def test_a_cdn_before_a_store_below_a_prefix(place: Place, domain: RangedServer, tmp_path: Path) -> None:
    answers(domain, "HIT")
    uri = f"s3://{place.command.environ['R2_BUCKET']}/below"
    place.command.run("upload", str(tmp_path / "m"), "--as", NAME, "--store", uri)
    domain.put(f"/below/{NAME}/config.json", FILES["config.json"])
    assert place.command.json("doctor", NAME, "--only", "cdn", "--store", uri)["ok"] == 1
    assert domain.count(f"GET /below/{NAME}/config.json") == 2


# The cache.


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


# The terminal.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_check_is_named_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    from coldstream.cli import doctor_command

    monkeypatch.setattr(doctor_command, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(doctor_command, "_TICK_SECONDS", 0.01)
    terminal = Terminal()
    waiting = doctor_command._ProgressLine(terminal)
    with waiting.shown():
        waiting.begin("speed")
        waiting.tell("8: 240 MB/s")
        deadline = time.monotonic() + 10
        while "speed   8: 240 MB/s   0 s" not in terminal.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        waiting.end()
        assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_drawn_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    from coldstream.cli import doctor_command

    waiting = doctor_command._ProgressLine(None)
    with waiting.shown():
        waiting.begin("speed")
        waiting.tell("8: 240 MB/s")
        waiting.end()
    assert capfd.readouterr() == ("", "")
