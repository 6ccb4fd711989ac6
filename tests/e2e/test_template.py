"""`coldstream template` against a real bucket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from coldstream.fleet.deploy_options import TARGETS
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.e2e.test_tune import CONFIG
from tests.servers.stores import S3Server

MODEL = ("template", "org/m", "--gpus", "L4:2")


@pytest.fixture
def command(rclone: S3Server, tmp_path: Path) -> Command:
    made = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    (tmp_path / "m").mkdir()
    for path, content in {**sharded_checkpoint(shards=2), "config.json": json.dumps(CONFIG).encode()}.items():
        (tmp_path / "m" / path).write_bytes(content)
    made.run("upload", str(tmp_path / "m"), "--as", "org/m")
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_for_each_target(command: Command, target: str) -> None:
    """Coldstream template org/m --gpus L4:2 --target TARGET; coldstream template check FILE."""
    more = ("--command", "python ask.py") if target == "sky-job" else ()
    text, err = command.run(*MODEL, "--target", target, *more)
    assert "this machine" in err
    assert "org/m" in text
    assert "--tensor-parallel-size" in text
    assert command.run("template", "render", *MODEL[1:], "--target", target, *more)[0] == text
    for secret in ("R2_ACCESS_KEY", "R2_SECRET_KEY"):
        assert command.environ[secret] not in text
    list(yaml.safe_load_all(text))
    (command.cwd / "f.yaml").write_text(text)
    assert "no findings" in command.run("template", "check", "f.yaml")[0]


def test_a_file_is_written_and_kept(command: Command) -> None:
    """Coldstream template org/m --gpus L4:2 --target sky-serve --replicas 1..3 -o FILE --force."""
    written = (*MODEL, "--target", "sky-serve", "--replicas", "1..3", "--max-model-len", "2048", "-o", "serve.yaml")
    assert command.run(*written)[0] == "wrote serve.yaml\n"
    text = (command.cwd / "serve.yaml").read_text()
    assert "max_replicas: 3" in text
    assert "--max-model-len 2048" in text
    assert "exists" in command.run(*written, code=2)[1]
    (command.cwd / "serve.yaml").write_text("mine")
    found = command.json(*written, "--force")
    assert (command.cwd / "serve.yaml").read_text() == text == found["text"]
    assert found["file"] == "serve.yaml"
    assert found["target"] == "sky-serve"
    assert "R2_SECRET_KEY" in found["secrets"]


def test_the_cdn_in_front(command: Command) -> None:
    """R2_CDN_DOMAIN=… coldstream template org/m --gpus L4:2 --target k8s; the same with --loader runai."""
    command.environ |= {"R2_CDN_DOMAIN": "models.example.com", "COLDSTREAM_CDN_HEADER": "X-Key: s3cr3t-of-the-user"}
    found = command.json(*MODEL, "--target", "k8s")
    assert found["cdn"] == "https://models.example.com"
    assert found["secrets"][3] == "COLDSTREAM_CDN_HEADER"
    assert "s3cr3t" not in json.dumps(found)
    found = command.json(*MODEL, "--target", "k8s", "--loader", "runai")
    assert found["cdn"] is None
    assert "CDN" not in found["text"]
    command.environ["R2_CDN_DOMAIN"] = "http://127.0.0.1:9000"
    assert "no other machine reaches the CDN there" in command.run(*MODEL, "--target", "k8s")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((*MODEL, "--target", "nomad"), 2, "nomad"),
        ((*MODEL,), 2, "--target"),
        (("template", "org/m", "--target", "sky"), 2, "--gpus"),
        (("template", "org/m", "--target", "sky", "--gpus", "L5"), 2, "is not a known GPU"),
        ((*MODEL, "--target", "sky", "--max-model-len", "99999999"), 2, "does not fit"),
        ((*MODEL, "--target", "sky-serve", "--replicas", "0"), 2, "would serve nothing"),
        ((*MODEL, "--target", "sky", "--image", "a", "--no-image"), 2, "contradict"),
        ((*MODEL, "--target", "sky", "--store", "./folder"), 2, "directory of this machine"),
        ((*MODEL, "--target", "sky", "-o", "/nowhere/f.yaml"), 1, "cannot write"),
        (("template", "org/other", "--gpus", "L4", "--target", "sky"), 10, "org/other"),
        (("template", "check", "none.yaml"), 10, "no file"),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: tuple[str, ...], code: int, says: str) -> None:
    err = command.run(*arguments, code=code)[1]
    assert says in err


def test_a_foreign_file_is_looked_over(command: Command) -> None:
    """Coldstream template check FILE, which needs no bucket."""
    secret = "s3cr3t-value-of-somebody"
    (command.cwd / "f.yaml").write_text(
        f"resources: {{ports: 8000}}\nenvs:\n  R2_SECRET_KEY: {secret}\n  HF_HUB_ENABLE_HF_TRANSFER: 1\n"
        "run: vllm serve m\n"
    )
    command.environ = {name: value for name, value in command.environ.items() if not name.startswith("R2_")}
    out, err = command.run("template", "check", "f.yaml", code=1)
    assert "f.yaml:3: inline-secret" in out
    assert "4 findings" in out
    found = command.json("template", "check", "f.yaml", code=1)
    assert [(row["line"], row["rule"]) for row in found["findings"]] == [
        (1, "open-port"),
        (3, "inline-secret"),
        (4, "hf-transfer"),
        (5, "missing-host"),
    ]
    assert secret not in out + err + json.dumps(found)
    (command.cwd / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in command.run("template", "check", "binary.yaml", code=2)[1]


def test_help_names_both(command: Command) -> None:
    text = command.run("template", "--help")[0]
    assert "render" in text
    assert "check" in text
    assert "--target" in command.run("template", "render", "--help")[0]
