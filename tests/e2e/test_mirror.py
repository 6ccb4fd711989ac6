"""From the Hub into a bucket and back, by the command line, against real servers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstream.model.names import MANIFEST_BYTES_MAX
from tests.adapters import BASE, adapter_files, base_files
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import safetensors_bytes, sharded_model, write_model
from tests.servers.hub import FakeHub
from tests.servers.impostor import PORTAL
from tests.servers.stores import S3Server, fault_proxy

REPO = "org/model"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


@pytest.fixture(params=["rclone", "moto"])
def command(request: pytest.FixtureRequest, hub: FakeHub, tmp_path: Path) -> Command:
    server: S3Server = request.getfixturevalue(request.param)
    return Command(server, fresh_bucket(server), hub=hub.endpoint, cwd=tmp_path)


@pytest.fixture
def quick(moto: S3Server, hub: FakeHub, tmp_path: Path) -> Command:
    return Command(moto, fresh_bucket(moto), hub=hub.endpoint, cwd=tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_adapter_goes_up_and_comes_back_equal(command: Command, hub: FakeHub, tmp_path: Path) -> None:
    """coldstream upload me/adapter; list; doctor --only adapter; verify --deep; download; remove org/base"""
    files = adapter_files(rank=16)
    hub.add_repo("me/adapter", files | {"checkpoint-10/adapter_model.safetensors": files["adapter_model.safetensors"]})
    write_model(tmp_path / "base", base_files())
    command.run("upload", "./base", "--as", BASE)
    report = command.json("upload", "me/adapter")
    assert (report["kind"], report["base"], report["rank"], report["files"]) == ("adapter", BASE, 16, len(files))
    assert command.json("upload", "me/adapter")["up_to_date"]
    assert "  me/adapter   rank 16" in command.run("list")[0].splitlines()[2]
    (check,) = command.json("doctor", "me/adapter", "--only", "adapter")["checks"]
    assert (check["state"], check["found"]) == ("ok", f"LoRA adapter of {BASE}, rank 16; its 8 tensors fit {BASE}")
    assert command.json("verify", "me/adapter", "--deep")["ok"] is True
    command.run("download", "me/adapter", "out")
    assert content(tmp_path / "out") == files
    assert "1 adapter of it will stay" in command.run("remove", BASE, "--yes")[1]
    assert command.states() == {"me/adapter": "ready"}


def test_a_model_goes_up_and_comes_back_equal(command: Command, hub: FakeHub, tmp_path: Path) -> None:
    """coldstream upload org/model; list; verify --deep; download; remove"""
    files = sharded_model(shard_bytes=6 << 20)
    commit = hub.add_repo(REPO, files | {"pytorch_model.bin": b"pickle", "original/consolidated.00.pth": b"x"})
    report = json.loads(command.process("upload", REPO, "--part-size", "5MiB", "--json")[0])
    assert report["state"] == "ready"
    assert report["source"]["commit"] == commit
    assert report["bytes"] == sum(map(len, files.values()))
    assert hub.bytes_sent(".bin") == 0
    assert command.states() == {REPO: "ready"}
    assert command.json("verify", REPO, "--deep")["ok"] is True
    command.process("download", REPO, "out")
    assert content(tmp_path / "out") == files
    again = command.json("download", REPO, "out")
    assert again["kept_files"] == len(files)
    command.run("remove", REPO, code=2)
    command.run("remove", REPO, "--yes")
    assert command.states() == {}


def test_several_models_go_up_and_one_that_fails_stops_no_other(quick: Command, hub: FakeHub) -> None:
    hub.add_repo("org/a", sharded_model(seed=1))
    hub.add_repo("org/b", sharded_model(seed=2))
    out, _ = quick.run("upload", "org/a", "org/b", "--dry-run")
    assert out.count("would send") == 2
    out, err = quick.run("upload", "org/a", "org/nowhere", "org/b", code=3)
    assert quick.states() == {"org/a": "ready", "org/b": "ready"}
    assert out.count("ready") == 2
    assert err.count("error:") == 1
    again = quick.json("upload", "org/a", "org/nowhere", code=3)["models"]
    assert again[0]["up_to_date"]
    assert (again[1]["source"], again[1]["error"]["kind"]) == ("org/nowhere", "not-found")
    assert len(quick.json("upload", "org/no", "org/nowhere", code=10)["models"]) == 2
    quick.run("upload", "org/a", "org/b", "--as", "org/c", code=2)
    quick.run("upload", "org/a", "org/b", "--revision", "v1", code=2)


@pytest.mark.parametrize("typed", [["--hf-token", "hf_topsecret"], ["--token=hf_topsecret"]])
def test_a_secret_on_the_command_line_is_refused_in_one_line(quick: Command, typed: list[str]) -> None:
    _, err = quick.run("upload", REPO, *typed, code=2)
    assert "every user of this machine can read a command line" in err
    assert "HF_TOKEN" in err
    assert "topsecret" not in err


def test_a_second_upload_sends_nothing(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model())
    quick.run("upload", REPO)
    hub.clear_requests()
    out, _ = quick.run("upload", REPO)
    assert "up to date" in out
    assert hub.bytes_sent(".safetensors", listener="cdn") == 0


def test_only_a_changed_shard_is_sent_again(quick: Command, hub: FakeHub, tmp_path: Path) -> None:
    files = sharded_model()
    hub.add_repo(REPO, files)
    quick.run("upload", REPO)
    files[SHARD] = sharded_model(seed=7)[SHARD]
    hub.add_repo(REPO, files)
    hub.clear_requests()
    report = quick.json("upload", REPO)
    assert report["sent_files"] == 1
    assert report["sent_bytes"] == len(files[SHARD]) == hub.bytes_sent(".safetensors", listener="cdn")
    quick.run("download", REPO, "out")
    assert content(tmp_path / "out") == files


def test_a_file_that_left_the_repository_leaves_the_bucket(quick: Command, hub: FakeHub) -> None:
    files = sharded_model()
    hub.add_repo(REPO, files | {"extra.json": b"{}"})
    quick.run("upload", REPO)
    hub.add_repo(REPO, files)
    quick.run("upload", REPO)
    assert quick.json("verify", REPO)["files"] == len(files)
    assert quick.json("remove", REPO, "--dry-run")["objects"] == len(files) + 1


def test_wrong_bytes_are_named_and_never_ready(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model(shard_bytes=11 << 20))
    hub.faults.corrupt(SHARD, 5000)
    _, err = quick.run("upload", REPO, "--part-size", "5MiB", code=13)
    assert SHARD in err
    assert "SHA-256" in err
    assert quick.states() == {REPO: "incomplete"}
    hub.faults.clear()
    quick.run("upload", REPO, "--part-size", "5MiB")
    assert quick.json("verify", REPO, "--deep")["ok"] is True


@pytest.mark.parametrize(
    ("repo", "token", "code", "said"),
    [
        ("org/gated", "hf_known_token_0000x9Qz", 12, "licence"),
        ("org/gated", "", 12, "licence"),
        ("org/nowhere", "", 10, "private"),
        (REPO, "hf_never_issued_000x9Qz", 12, "HF_TOKEN"),
        ("not a name!", "", 2, "neither"),
    ],
)
def test_refusals_are_one_clear_line(quick: Command, hub: FakeHub, repo: str, token: str, code: int, said: str) -> None:
    hub.known_tokens.add("hf_known_token_0000x9Qz")
    hub.add_repo("org/gated", sharded_model(), gated=True)
    hub.add_repo(REPO, sharded_model())
    if token:
        quick.environ["HF_TOKEN"] = token
    _, err = quick.run("upload", repo, code=code)
    assert said in err
    assert err.count("error:") == 1
    if token:
        assert token not in err
    assert quick.states() == {}


def test_a_missing_revision_is_reported(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model())
    _, err = quick.run("upload", REPO, "--revision", "v9", code=10)
    assert "no revision 'v9'" in err


def test_weights_on_another_branch_are_pointed_to(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, {"README.md": b"see the branches"})
    hub.add_repo(REPO, {"README.md": b"no weights"}, branch="notes")
    hub.add_repo(REPO, sharded_model(), branch="4.0bpw")
    _, err = quick.run("upload", REPO, code=2)
    assert "its branches 4.0bpw have" in err
    assert "--revision 4.0bpw" in err
    _, err = quick.run("load", f"hf://{REPO}", code=10)
    assert f"hf://{REPO}@4.0bpw" in err
    quick.run("upload", f"{REPO}@4.0bpw")
    assert quick.states() == {REPO: "ready"}


def test_what_the_hub_has_in_place_of_a_file_is_refused_by_name(quick: Command, hub: FakeHub) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n".encode()
    hub.add_repo(REPO, sharded_model() | {"tokenizer.json": pointer, "a\\b.json": b"{}"})
    _, err = quick.run("upload", REPO, code=2)
    assert "holds a backslash" in err
    _, err = quick.run("upload", REPO, "--exclude", "a*b.json", code=13)
    assert "tokenizer.json is a Git LFS pointer" in err
    hub.add_repo("org/pointers", {"model.safetensors": pointer, "config.json": b"{}"})
    _, err = quick.run("load", "hf://org/pointers", code=13)
    assert "model.safetensors is a Git LFS pointer" in err


def test_a_disabled_repository_is_not_blamed_on_the_token(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model(), disabled=True)
    for verb, name in (("upload", REPO), ("load", f"hf://{REPO}")):
        _, err = quick.run(verb, name, code=10)
        assert "is disabled on the Hub" in err


def test_a_name_with_a_revision_is_that_revision_or_not_found(quick: Command, hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO, sharded_model(), branch="v1")
    quick.run("upload", f"{REPO}@v1")
    for revision in ("v1", commit, commit[:7]):
        assert quick.json("verify", f"{REPO}@{revision}")["name"] == REPO
    assert quick.json("load", f"{REPO}@{commit[:7]}", "--no-cache")["verified"]
    assert quick.json("download", f"{REPO}@v1", "out")["name"] == REPO
    assert content(tmp_path / "out") == sharded_model()
    other = f"{REPO}@v2"
    for arguments in (("verify", other), ("load", other), ("download", other, "other"), ("remove", other, "--yes")):
        _, err = quick.run(*arguments, code=10)
        assert f"holds revision v1 (commit {commit[:7]}), not v2" in err
        assert f"coldstream upload {other} --as NAME" in err
    assert quick.states() == {REPO: "ready"}
    quick.run("remove", f"{REPO}@v1", "--yes")
    assert quick.states() == {}


def test_a_name_with_a_revision_that_nothing_tells_is_not_found(quick: Command, tmp_path: Path) -> None:
    quick.run("upload", str(write_model(tmp_path / "folder", sharded_model())), "--as", REPO)
    for verb in ("verify", "load"):
        _, err = quick.run(verb, f"{REPO}@main", code=10)
        assert "has no record of its revision" in err
        _, err = quick.run(verb, "org/absent@main", code=10)
        assert "there is no model org/absent in" in err
    _, err = quick.run("upload", str(tmp_path / "folder"), "--as", f"{REPO}@main", code=2)
    assert f"write {REPO}" in err


def test_an_organisation_is_not_a_model(quick: Command, tmp_path: Path) -> None:
    quick.run("upload", str(write_model(tmp_path / "folder", sharded_model())), "--as", REPO)
    organisation = REPO.partition("/")[0]
    for verb in ("verify", "load"):
        _, err = quick.run(verb, organisation, code=10)
        assert f"there is no model {organisation} in s3://" in err
        assert f"hint:  below it: {REPO}" in err


def test_a_part_of_a_repository_is_stored_with_include(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, {"model_index.json": b"{}", "vae/config.json": b"{}", "vae/model.safetensors": b"x"})
    _, err = quick.run("upload", f"hf://{REPO}/vae", code=2)
    assert f"coldstream upload {REPO} --include 'vae/*'" in err


def test_a_repository_without_safetensors_is_refused(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, {"pytorch_model.bin": b"x", "config.json": b"{}"})
    _, err = quick.run("upload", REPO, code=2)
    assert "no safetensors" in err
    assert "pickled" in err


@pytest.mark.parametrize("lie", ["truncated", "longer", "hole"])
def test_a_lying_header_is_refused(quick: Command, hub: FakeHub, lie: str) -> None:
    good = safetensors_bytes({"a": 100, "b": 200})
    bad = {
        "truncated": good[:-50],
        "longer": good + b"more",
        "hole": good.replace(b'"data_offsets": [100, 300]', b'"data_offsets": [101, 301]') + b"x",
    }[lie]
    hub.add_repo(REPO, {"model.safetensors": bad, "config.json": b"{}"})
    _, err = quick.run("upload", REPO, code=13)
    assert "model.safetensors" in err
    assert quick.states() == {REPO: "incomplete"}


def test_bad_moments_of_the_hub_are_survived(quick: Command, hub: FakeHub) -> None:
    files = sharded_model(shard_bytes=6 << 20)
    hub.add_repo(REPO, files)
    hub.faults.rate_limit(1, seconds=1, where="api")
    hub.faults.rate_limit(1, seconds=1, where="resolve")
    hub.faults.fail(2, status=503, where="cdn")
    hub.faults.cut(5, after_bytes=1_000_000, where="cdn")  # of which two meet pages
    hub.faults.page(2, PORTAL, where="cdn")
    hub.faults.page(1, PORTAL, where="resolve")
    report = quick.json("upload", REPO)
    assert report["retries"] >= 10
    assert quick.json("verify", REPO, "--deep")["ok"] is True


def test_the_token_stays_with_the_hub(quick: Command, hub: FakeHub) -> None:
    hub.accepted_tokens.add("hf_good_token_00000x9Qz")
    hub.add_repo(REPO, sharded_model(), gated=True)
    quick.environ["HF_TOKEN"] = "hf_good_token_00000x9Qz"
    quick.run("upload", REPO)
    assert any(record.had_authorization for record in hub.requests if record.listener == "hub")
    assert not any(record.had_authorization for record in hub.requests if record.listener == "cdn")


def test_a_server_that_ignores_ranges_is_reported(quick: Command, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model(shard_bytes=11 << 20))
    hub.faults.ignore_range()
    _, err = quick.run("upload", REPO, "--part-size", "5MiB", code=1)
    assert "the range was ignored" in err


def test_a_file_that_only_xet_gives_comes_that_way(moto: S3Server, tmp_path: Path) -> None:
    files = sharded_model(shard_bytes=6 << 20)
    with FakeHub(xet_store=tmp_path / "xet") as hub:
        hub.add_repo(REPO, files)
        hub.faults.fail(100, status=400, where="cdn")
        command = Command(moto, fresh_bucket(moto), hub=hub.endpoint, cwd=tmp_path)
        report = command.json("upload", REPO, "--part-size", "5MiB")
    assert report["sent_bytes"] == sum(map(len, files.values()))
    assert command.json("verify", REPO, "--deep")["ok"] is True


def test_a_busy_bucket_is_survived(moto: S3Server, hub: FakeHub, tmp_path: Path) -> None:
    bucket = fresh_bucket(moto)
    hub.add_repo(REPO, sharded_model(shard_bytes=6 << 20))
    with fault_proxy(moto) as (server, faults):
        command = Command(server, bucket, hub=hub.endpoint, cwd=tmp_path)
        faults.add("fail", "^PUT", times=3)
        faults.add("fail", "^GET", times=2)
        faults.add("lose_answer", "uploadId", times=2)
        faults.add("cut_request", "partNumber", times=2, after_bytes=1000)
        command.run("upload", REPO, "--part-size", "5MiB")
        assert command.json("verify", REPO, "--deep")["ok"] is True


def test_a_dry_run_writes_nothing(quick: Command, hub: FakeHub) -> None:
    files = sharded_model(shard_bytes=6 << 20)
    hub.add_repo(REPO, files)
    document = quick.json("upload", REPO, "--dry-run", "--part-size", "5MiB")
    assert document["send_bytes"] == document["bytes"] == sum(map(len, files.values()))
    assert document["parts"] == 3 * 2 + 4
    assert hub.bytes_sent(".safetensors", listener="cdn") == 0
    assert quick.states() == {}


def test_a_folder_is_uploaded_too(quick: Command, tmp_path: Path) -> None:
    files = sharded_model(shard_bytes=6 << 20)
    write_model(tmp_path / "mine", files)
    quick.run("upload", "./mine", "--as", "me/mine", "--part-size", "5MiB")
    assert quick.states() == {"me/mine": "ready"}
    assert "up to date" in quick.run("upload", "./mine", "--as", "me/mine")[0]
    quick.run("download", "me/mine", "out")
    assert content(tmp_path / "out") == files


def test_a_local_folder_is_a_store(hub: FakeHub, tmp_path: Path) -> None:
    files = sharded_model(shard_bytes=6 << 20)
    hub.add_repo(REPO, files)
    command = Command(None, "", hub=hub.endpoint, cwd=tmp_path)
    store = ["--store", str(tmp_path / "store")]
    command.run("upload", REPO, *store, "--part-size", "5MiB")
    assert command.json("verify", REPO, "--deep", *store)["ok"] is True
    stored = content(tmp_path / "store" / REPO)
    assert stored.pop("coldstream.json")
    assert stored == files


def test_damage_is_found(tmp_path: Path, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model())
    command = Command(None, "", hub=hub.endpoint, cwd=tmp_path)
    store = ["--store", str(tmp_path / "store")]
    command.run("upload", REPO, *store)
    shard = tmp_path / "store" / REPO / SHARD
    data = bytearray(shard.read_bytes())
    data[600_000] ^= 1
    shard.write_bytes(data)
    report = command.json("verify", REPO, *store, code=13)
    assert [problem["path"] for problem in report["problems"]] == [SHARD]
    shard.unlink()
    assert "missing" in command.run("verify", REPO, *store, code=13)[0]
    assert "damaged" in command.run("list", *store)[0]
    command.run("upload", REPO, *store)
    command.run("verify", REPO, "--deep", *store)


def test_a_newer_manifest_is_refused_with_advice(tmp_path: Path, hub: FakeHub) -> None:
    hub.add_repo(REPO, sharded_model())
    command = Command(None, "", hub=hub.endpoint, cwd=tmp_path)
    store = ["--store", str(tmp_path / "store")]
    command.run("upload", REPO, *store)
    path = tmp_path / "store" / REPO / "coldstream.json"
    path.write_text(path.read_text().replace('"format":1', '"format":2'))
    _, err = command.run("verify", REPO, *store, code=13)
    assert "format 2" in err
    assert "upgrade" in err
    assert "unreadable" in command.run("list", *store)[0]


def test_a_bad_manifest_hides_no_other_model(tmp_path: Path, hub: FakeHub) -> None:
    """coldstream list; coldstream remove bad/state"""
    hub.add_repo(REPO, sharded_model())
    command = Command(None, "", hub=hub.endpoint, cwd=tmp_path)
    command.environ["COLDSTREAM_STORE"] = (tmp_path / "store").as_uri()
    command.run("upload", REPO)
    good = json.loads((tmp_path / "store" / REPO / "coldstream.json").read_bytes())
    good.pop("digest")
    bad = {
        "state": {"state": []},
        "surrogate": {"source": {"kind": "hub", "repo": "\ud800"}},
        "zone": {"created": "2026-11-24T00:00:00"},
    }
    for name, change in bad.items():
        body = json.dumps(good | change).encode()
        path = tmp_path / "store" / "bad" / name / "coldstream.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(body[:-1] + f',"digest":"sha256:{hashlib.sha256(body).hexdigest()}"}}'.encode())
    path = tmp_path / "store" / "bad" / "long" / "coldstream.json"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(MANIFEST_BYTES_MAX + 1)
    assert command.states() == {REPO: "ready"} | {f"bad/{name}": "unreadable" for name in (*bad, "long")}
    out, _ = command.run("list")
    assert "timezone" in out
    for name in (*bad, "long"):
        command.run("remove", f"bad/{name}", "--yes")
    assert command.states() == {REPO: "ready"}


def test_an_unwritable_target_is_one_line(quick: Command, hub: FakeHub, tmp_path: Path) -> None:
    hub.add_repo(REPO, sharded_model())
    quick.run("upload", REPO)
    (tmp_path / "file").write_text("")
    _, err = quick.run("download", REPO, "file", code=1)
    assert err.count("error:") == 1


def test_the_aws_cli_works_on_what_was_uploaded_and_the_other_way(
    command: Command, hub: FakeHub, tmp_path: Path
) -> None:
    """aws s3 ls; aws s3 sync down; aws s3 sync up; coldstream verify, as foreign"""
    files = sharded_model()
    hub.add_repo(REPO, files)
    command.run("upload", REPO)
    environment = command.environ | {
        "AWS_ENDPOINT_URL": command.environ["R2_ENDPOINT"],
        "AWS_ACCESS_KEY_ID": command.environ["R2_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": command.environ["R2_SECRET_KEY"],
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    bucket = command.environ["R2_BUCKET"]

    def aws(*arguments: str) -> str:
        program = str(Path(sys.executable).with_name("aws"))
        done = subprocess.run(
            [program, "s3", *arguments], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert SHARD in aws("ls", f"s3://{bucket}/{REPO}/")
    aws("sync", f"s3://{bucket}/{REPO}/", "synced")
    synced = content(tmp_path / "synced")
    assert synced.pop("coldstream.json")
    assert synced == files
    (tmp_path / "synced" / "coldstream.json").unlink()
    aws("sync", "synced", f"s3://{bucket}/foreign/model/")
    assert command.states() == {REPO: "ready", "foreign/model": "foreign"}
    assert command.json("verify", "foreign/model", "--deep")["state"] == "foreign"
    aws("rm", f"s3://{bucket}/foreign/model/{SHARD}")
    assert f"names '{SHARD}', which is not there" in command.run("verify", "foreign/model", code=13)[0]
    assert command.run("verify", REPO, "foreign/model", code=3)[0].count("\n") >= 2


def test_what_a_store_does_with_conditions_is_never_guessed(command: Command, hub: FakeHub) -> None:
    """coldstream upload org/model; the same again, which writes nothing; setup"""
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors": safetensors_bytes({"a": 100})})
    checks = {check["name"]: check for check in command.json("setup")["checks"]}
    honoured = checks["conditional put"]["state"] == "ok"
    assert command.json("upload", REPO)["conditional"] is honoured
    assert command.json("upload", REPO)["conditional"] is None
    assert {check["exit_code"] for check in checks.values()} == {0}


def test_the_error_for_a_missing_model_suggests_the_nearest_name(quick: Command, hub: FakeHub) -> None:
    """coldstream load org/modle; verify; download"""
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors": safetensors_bytes({"a": 100})})
    quick.run("upload", REPO)
    for arguments in (("load", "org/modle"), ("verify", "ORG/model"), ("download", "model", "out")):
        assert f"did you mean {REPO}?" in quick.run(*arguments, code=10)[1]


def test_a_wrong_secret_is_named_by_every_verb(rclone: S3Server, tmp_path: Path) -> None:
    """coldstream setup, upload and list: a HEAD's answer cannot say why, and another request can."""
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.environ["R2_SECRET_KEY"] = "not-the-secret-key"
    write_model(tmp_path / "model", {"config.json": b"{}", "model.safetensors": safetensors_bytes({"a": 100})})
    for arguments in (("setup",), ("upload", "./model"), ("list",)):
        out, err = command.run(*arguments, code=12)
        assert "the secret key does not belong to the access key" in out + err


def test_only_what_continues_says_so_when_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during coldstream verify; during coldstream download"""
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_STORE"] = (tmp_path / "store").as_uri()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coldstream.cli.stored_models.stored_bytes", lambda *_, **__: 1)
    monkeypatch.setattr("coldstream.cli.stored_models.verify", interrupted)
    monkeypatch.setattr("coldstream.cli.stored_models.download", interrupted)
    assert command.run("verify", REPO, code=130)[1].strip() == "error: cancelled"
    assert "complete files are kept; run the same command again" in command.run("download", REPO, "out", code=130)[1]
