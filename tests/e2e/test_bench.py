"""`coldstream bench` against a real bucket, with real loaders."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from coldstream.node.http_endpoint import free_port
from coldstream.operate.bench import contestant, floors
from coldstream.operate.bench.programs.mount import mount_refusal
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_vllm
from tests.servers.stores import S3Server
from tests.vllm.conftest import PYTHON as VLLM_PYTHON

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
# Other processes use the page cache too: no test drops it.
KEEP_PAGE_CACHE = ("--no-drop-caches",)


@pytest.fixture(autouse=True)
def quick_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "_SECONDS", 0.3)
    monkeypatch.setattr(floors, "_ONE_SECONDS", 0.3)


@pytest.fixture
def command(rclone: S3Server, tmp_path: Path) -> Command:
    made = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    made.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    (tmp_path / "m").mkdir()
    for path, content in sharded_checkpoint(shards=2).items():
        (tmp_path / "m" / path).write_bytes(content)
    made.run("upload", str(tmp_path / "m"), "--as", "org/m")
    return made


@pytest.mark.slow
def test_ours_boto3_and_run_ai_give_the_same_bytes(command: Command) -> None:
    """Coldstream bench org/m --with boto3 --python PATH --png FILE --html FILE."""
    names = ["coldstream", "coldstream-warm", "boto3"]
    more: list[str] = []
    if VLLM_PYTHON.exists():
        names += ["runai", "runai-tuned", "vllm-default"]
        more = ["--python", str(VLLM_PYTHON)]
    only = [part for name in names for part in ("--only", name)]
    png, page = command.cwd / "b.png", command.cwd / "b.html"
    out, err = command.run(
        "bench",
        "org/m",
        "--runs",
        "1",
        *KEEP_PAGE_CACHE,
        *only,
        *more,
        "--png",
        str(png),
        "--html",
        str(page),
        "--json",
    )
    found = json.loads(out)
    rows = {row["name"]: row for row in found["loads"]}
    assert set(rows) == set(names)
    for row in rows.values():
        assert row["state"] == "ok", row
        assert row["same"] is True
        assert row["seconds"]["median"] > 0
        assert row["cpu_seconds_per_gib"]["median"] > 0
        assert row["memory_bytes"]["median"] > 1 << 20
    assert found["floors"]["bucket"] > 0
    assert found["floors"]["connection"] > 0
    assert rows["coldstream"]["nearest"]["stage"] in {"bucket", "receiving", "connections"}
    assert found["page_cache"]["dropped"] == "nothing"
    assert found["verdict"]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text()
    for secret in (command.environ["R2_SECRET_KEY"], command.environ["R2_ACCESS_KEY"]):
        assert secret not in out + err + page.read_text()
    # The user's own cache is as it was, and nothing is left beside it.
    assert not (command.cwd / "cache").exists()
    assert not list(command.cwd.glob("coldstream-bench-*"))


def test_a_missing_loader_is_skipped_by_name(command: Command) -> None:
    """Coldstream bench org/m --only coldstream --only obstore, with no obstore."""
    out, err = command.run(
        "bench", "org/m", "--runs", "1", *KEEP_PAGE_CACHE, "--only", "coldstream", "--only", "obstore"
    )
    assert "skipped  obstore: obstore is not installed   run: pip install obstore" in out
    assert "no other loader ran, so there is nothing to compare with" in out
    assert "first run        coldstream, cold" in err
    assert "round 1" in err


def test_loaders_that_fail_or_give_wrong_bytes_do_not_stop_the_others(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coldstream bench org/m, with a boto3 that raises and an s3fs that gives other bytes."""
    broken = command.cwd / "readers.py"
    code = contestant.READERS.read_text().replace(
        "    import boto3 as library\n", "    raise OSError('the moon is in the way')\n"
    )
    code = code.replace(
        "    from s3fs import S3FileSystem\n",
        "    yield PREPARED\n    yield {'bytes': sum(n for _, n in options['files']), 'tensors': {'a': 'b'}}\n",
    )
    broken.write_text(code)
    monkeypatch.setattr(contestant, "READERS", broken)
    loaders = tuple(
        loader if loader.name != "s3fs" else contestant.Loader("s3fs", "s3fs", (), ("s3",))
        for loader in contestant.LOADERS
    )
    monkeypatch.setattr(contestant, "LOADERS", loaders)
    only = ("--only", "coldstream", "--only", "boto3", "--only", "s3fs")
    out, _ = command.run("bench", "org/m", "--runs", "1", *KEEP_PAGE_CACHE, *only, code=3)
    assert "failed   boto3: exit 1: OSError: the moon is in the way" in out
    assert "wrong    s3fs" in out
    assert "coldstream, cold: " in out


def test_a_mounted_bucket_gives_the_same_bytes_and_leaves_no_mount(command: Command) -> None:
    """Coldstream bench org/m --only coldstream --only rclone-mount --only rclone-mount-full."""
    pytest.importorskip("safetensors.torch")
    if refusal := mount_refusal():
        pytest.skip(": ".join(refusal))
    names = ("coldstream", "rclone-mount", "rclone-mount-full")
    only = [part for name in names for part in ("--only", name)]
    out, err = command.run("bench", "org/m", "--runs", "1", *KEEP_PAGE_CACHE, *only, "--json")
    rows = {row["name"]: (row["state"], row["same"]) for row in json.loads(out)["loads"]}
    assert rows == dict.fromkeys(names, ("ok", True))
    assert "round 1          rclone mount full" in err
    for secret in (command.environ["R2_SECRET_KEY"], command.environ["R2_ACCESS_KEY"]):
        assert secret not in out + err
    assert str(command.cwd) not in Path("/proc/mounts").read_text()
    assert not list(command.cwd.glob("coldstream-bench-*"))


@pytest.mark.slow
def test_whole_starts(command: Command) -> None:
    """Coldstream bench org/m --vllm -- FLAGS, with a vLLM that only prints its log lines."""
    program = fake_vllm(command.cwd / "env")
    program.with_name("python").symlink_to(sys.executable)
    only = ("--only", "coldstream", "--only", "runai", "--only", "vllm-default")
    python = ("--python", str(program.with_name("python")))
    out, _ = command.run(
        "bench", "org/m", "--runs", "1", *KEEP_PAGE_CACHE, *only, *python, "--json", "--vllm", "--", "--seed", "1"
    )
    found = json.loads(out)
    assert [(row["name"], row["state"]) for row in found["starts"]] == [("coldstream", "ok"), ("vllm-default", "ok")]
    assert {"name": "runai", "of": "start"}.items() <= next(
        one for one in found["skipped"] if (one["name"], one["of"]) == ("runai", "start")
    ).items()
    (run,) = found["starts"][0]["runs"]
    # The kernel tells when a process began in clock ticks, rounded down.
    assert run["start"]["first_token_seconds"] <= run["seconds"] + 1 / os.sysconf("SC_CLK_TCK")
    assert run["cpu_seconds"] > 0
    assert [phase["name"] for phase in run["start"]["phases"][:2]] == ["command", "resolve"]


def test_a_folder_of_this_machine(command: Command) -> None:
    """Coldstream bench ./m."""
    found = command.json("bench", "./m", "--runs", "1", *KEEP_PAGE_CACHE, "--skip", "vllm-default")
    assert found["loads"][0]["name"] == "coldstream"
    assert found["floors"]["bucket"] is None
    assert found["floors"]["disk"] > 0
    assert "read in place" in next(one["reason"] for one in found["skipped"] if one["name"] == "coldstream-warm")


def test_a_model_in_a_folder_of_models(command: Command) -> None:
    """Coldstream bench org/m --store ./models: the measuring process reads the same store."""
    command.run("upload", "./m", "--as", "org/m", "--store", "./models")
    report = command.json(
        "bench", "org/m", "--store", "./models", "--runs", "1", *KEEP_PAGE_CACHE, "--only", "coldstream"
    )
    (row,) = report["loads"]
    assert (row["name"], row["state"]) == ("coldstream", "ok"), row


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("org/absent",), 10, "there is no model org/absent"),
        (("org/m", "--only", "nix"), 2, "no loader 'nix'"),
        (("org/m", "--device", "gpu"), 2, "not a device"),
        (("org/m", "--only", "obstore"), 10, "obstore is not installed"),
        (("org/m", "--python", "/nowhere/python"), 2, "not a working Python interpreter"),
        (("org/m", "--png", "/nowhere/b.png"), 1, "cannot write"),
        (("org/m", "--", "--seed", "1"), 2, "are for vLLM"),
        (("org/m", "--only", "coldstream", "--timeout", "0.5"), 2, "timeout"),
        (("org/m", "--only", "coldstream", "--vllm"), 10, "needs vLLM"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    command.environ["PATH"] = "/usr/bin:/bin"
    err = command.run("bench", *arguments, code=code)[1]
    assert says in err
    assert len(err.splitlines()) <= 2


def test_a_bucket_that_does_not_answer_is_one_line(command: Command) -> None:
    command.environ |= {"R2_ENDPOINT": f"http://127.0.0.1:{free_port()}", "COLDSTREAM_RETRY_SECONDS": "1"}
    err = command.run("bench", "org/m", code=1)[1]
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2


def test_ctrl_c_ends_all_of_it(command: Command) -> None:
    """Coldstream bench org/m, broken off during a run."""
    only = ("--only", "coldstream", "--only", "boto3", "--only", "rclone-mount")
    process = command.start("bench", "org/m", "--runs", "100", *KEEP_PAGE_CACHE, *only)
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if "round 1" in line:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert str(command.cwd) not in Path("/proc/mounts").read_text()
    assert not list(command.cwd.glob("coldstream-bench-*"))
    deadline = time.monotonic() + 10
    mine = command.environ["R2_BUCKET"].encode()
    while (left := _with_environment(mine)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _with_environment(text: bytes) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if text in Path(f"/proc/{entry}/environ").read_bytes():
                found.append(int(entry))
    return found
