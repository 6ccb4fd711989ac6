"""`coldstream cost` against real buckets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import coldstream
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket, quick_store
from tests.e2e.command import Command
from tests.models import write_model
from tests.servers.analytics import Analytics
from tests.servers.r2 import FakeR2, cloudflare, r2
from tests.servers.stores import S3Server

MODEL = sharded_checkpoint(shards=3, rows=512, columns=1024) | {"config.json": b"{}", "tokenizer.json": b"{}"}


@pytest.fixture(scope="module")
def stocked(rclone: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with the model in it, twice."""
    folder = write_model(tmp_path_factory.mktemp("model"), MODEL)
    command = Command(rclone, fresh_bucket(rclone), cwd=folder)
    for name in ("org/m", "org/n"):
        command.run("upload", str(folder), "--as", name, "--quiet")
    return command.environ["R2_BUCKET"]


@pytest.fixture
def command(rclone: S3Server, stocked: str, tmp_path: Path) -> Command:
    return Command(rclone, stocked, cwd=tmp_path)


def test_the_bucket_as_it_is(command: Command) -> None:
    """Coldstream cost; coldstream cost --model org/m --launches-per-day 3 --gpus L4 --png FILE --html FILE."""
    size = sum(map(len, MODEL.values()))
    found = command.json("cost")
    plan = found["plan"]
    assert [content["name"] for content in plan["contents"]] == ["org/m", "org/n"]
    # Two manifests lie there as well.
    assert 2 * size < plan["stored_bytes"] < 2 * size + 100_000
    assert plan["objects"] == 2 * (len(MODEL) + 1)
    assert plan["loads"] == 300
    assert found["bills"][0]["key"] == "r2"
    assert found["bills"][0]["dollars"] == 0
    one = command.json("cost", "--model", "org/m", "--launches-per-day", "3")["plan"]
    assert one["objects"] == len(MODEL) + 1
    assert plan["load_bytes"] == one["load_bytes"] == size
    pytest.importorskip("matplotlib")
    png, page = command.cwd / "c.png", command.cwd / "c.html"
    text, said = command.run("cost", "--model", "org/m", "--gpus", "L4", "--png", str(png), "--html", str(page))
    assert text.startswith("org/m, ")
    assert "Hugging Face Hub" in text
    assert str(png) in said
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text()


def test_a_model_of_others_has_no_manifest(command: Command, rclone: S3Server, tmp_path: Path) -> None:
    command.environ |= rclone.environ(fresh_bucket(rclone))
    folder = write_model(tmp_path / "m", MODEL)
    command.run("upload", str(folder), "--as", "org/theirs", "--quiet")
    quick_store(command.environ).delete(["org/theirs/coldstream.json"])
    (content,) = command.json("cost")["plan"]["contents"]
    assert (content["name"], content["shards"]) == ("org/theirs", 3)
    # Below 8 MiB and above: chunks of data and a header, three times.
    shard = len(MODEL["model-00001-of-00003.safetensors"])
    assert content["chunks"] == 3 * (-(-shard // (8 << 20)) + 1)


@pytest.fixture
def double(moto: S3Server) -> Iterator[FakeR2]:
    with r2(moto) as double:
        yield double


def test_a_start_makes_as_many_reads_as_are_estimated(
    double: FakeR2, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM is given, and the load, as the server counts them; and the writes of the upload."""
    command = Command(None, "", cwd=tmp_path)
    command.environ |= double.environ(fresh_bucket(moto))
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    # With tensors of several chunks.
    files = sharded_checkpoint(shards=2, layers=1, rows=2048, columns=2048) | {"config.json": b"{}"}
    command.run("upload", str(write_model(tmp_path / "m", files)), "--as", "org/m", "--quiet")
    writes = [line for line in double.log if line.startswith(("PUT", "POST")) and "coldstream.json" not in line]
    plan = command.json("cost", "--launches-per-day", "1", "--days", "1")["plan"]
    # Three more for each file stand for creating, completing and the record, which is written the oftener the slower.
    assert len(writes) <= plan["class_a"] <= len(writes) + 3 * len(files)
    for name, value in command.environ.items():
        monkeypatch.setenv(name, value)

    def counted() -> int:
        """Reads of a start, less those that went wrong or were taken over."""
        double.log.clear()
        coldstream.prepare("org/m")
        report = command.json("load", "org/m")
        assert not any(_lists(line) for line in double.log)
        return sum(line.startswith("GET") for line in double.log) - report["retries"] - report["hedges"]

    assert counted() == plan["class_b"]
    # Now it is in the cache: only the manifest and headers are read.
    again = command.json("cost", "--launches-per-day", "1", "--days", "1", "--cache-hits", "1")["plan"]
    assert counted() == again["class_b"]


def _lists(line: str) -> bool:
    """Whether it asks for a bucket, not for an object."""
    method, path = line.split()[:2]
    return method == "GET" and path.strip("/").count("/") == 0


def test_what_was_counted(double: FakeR2, tmp_path: Path) -> None:
    """Coldstream cost --actual --budget 4; --budget 5."""
    now = datetime.now(timezone.utc)
    with cloudflare(double) as api:
        # The command asks a moment later: what is kept is counted from its own clock.
        analytics = api.graphql = Analytics(now + timedelta(seconds=30))
        analytics.storage += [(now - timedelta(days=day), "models", 310_000_000_000, 7) for day in range(30)]
        analytics.operations.append((now - timedelta(seconds=1), "models", "GetObject", 200, 1234))
        command = Command(None, "", cwd=tmp_path)
        command.environ |= double.environ("models") | api.environ()
        # (310 - 10) x 0.015 = 4.50, and the few reads are free.
        text, _ = command.run("cost", "--actual")
        assert "310 GB" in text
        assert "GetObject 1,234" in text
        found = command.json("cost", "--actual", "--budget", "5")
        assert found["projected"]["dollars"] == pytest.approx(4.5)
        assert found["budget"] == {"dollars": 5.0, "month": pytest.approx(4.5), "exceeded": False}
        out, err = command.run("cost", "--actual", "--budget", "4", "--json", code=1)
        assert json.loads(out)["budget"]["exceeded"]
        assert err == "error: the month in R2 will cost $4.50, and the budget is $4.00\n"


def test_a_plan_without_a_bucket(tmp_path: Path) -> None:
    """Coldstream cost --models 10 --size 16GB --launches-per-day 100 [--budget 2 | --prices FILE]."""
    command = Command(None, "", cwd=tmp_path)
    example = ("cost", "--models", "10", "--size", "16GB", "--launches-per-day", "100")
    text, _ = command.run(*example)
    assert "Cloudflare R2                $2.25" in text
    file = command.cwd / "month.prom"
    command.run(*example, "--budget", "2.25", "--metrics-file", str(file))
    assert 'coldstream_month_dollars{kind="projected"} 2.25' in file.read_text()
    assert 'coldstream_month_dollars{kind="budget"} 2.25' in file.read_text()
    out, err = command.run(*example, "--budget", "2.24", code=1)
    assert "$2.25" in out
    assert err.count("\n") == 1
    (tmp_path / "mine.json").write_text('{"providers": {"r2": {"storage_per_gb_month": 0.03}}}')
    assert command.json(*example, "--prices", "mine.json")["bills"][0]["dollars"] == pytest.approx(4.5)
    priced = command.json(*example, "--gpus", "H100:8", "--gpu-dollars-per-hour", "4")
    assert priced["plan"]["dollars_of_a_second"] == pytest.approx(3000 * 8 * 4 / 3600)
    assert "H100 has no price here" in command.run(*example, "--gpus", "H100:8")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--model", "org/none"), 10, "no model org/none"),
        (("--launches-per-day", "0"), 2, "0 launches a day"),
        (("--size", "1GB", "--nodes", "-1"), 2, "-1 nodes"),
        (("--size", "1GB", "--gpu-dollars-per-hour", "-1"), 2, "cannot be -1"),
        (("--size", "1GB", "--cache-hits", "2"), 2, "not a share"),
        (("--size", "1GB", "--gpus", "L5"), 2, "is not a known GPU"),
        (("--size", "1GB", "--budget", "-1"), 2, "not a valid budget"),
        (("--size", "1GB", "--prices", "bad.json"), 2, "providers.r2.class_a_per_million"),
        (("--size", "1GB", "--prices", "gpu.json"), 2, "is not a known GPU"),
        (("--size", "1GB", "--prices", "none.json"), 10, "no file"),
        (("--size", "1GB", "--png", "/nowhere/x.png"), 1, "cannot write"),
        (("--size", "1GB", "--model", "org/m"), 2, "two things"),
        (("--models", "3"), 2, "not how large"),
        (("--size", "huge"), 2, "not a size"),
        (("--actual",), 2, "names no account of Cloudflare R2"),
        (("--actual", "--png", "x.png"), 2, "--actual"),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: tuple[str, ...], code: int, says: str) -> None:
    (command.cwd / "bad.json").write_text('{"providers": {"r2": {"class_a_per_million": -4.5}}}')
    (command.cwd / "gpu.json").write_text('{"gpus": {"dollars_per_hour": {"L5": 1}}}')
    out, err = command.run("cost", *arguments, code=code)
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") <= 2
    assert not out


def test_a_bucket_that_is_not_there(command: Command, rclone: S3Server) -> None:
    command.environ |= rclone.environ("nobody-s-bucket") | {"COLDSTREAM_RETRY_SECONDS": "2"}
    assert "nobody-s-bucket" in command.run("cost", code=10)[1]
    command.environ |= {"R2_ENDPOINT": "http://127.0.0.1:1"}
    assert command.run("cost", code=1)[1].startswith("error: cannot reach")
    command.environ |= rclone.environ(fresh_bucket(rclone))
    assert "coldstream cost --models 10 --size 16GB" in command.run("cost", code=10)[1]
