"""No secret is printed, written, or handed to a process that has no use for it, whatever the command and its end."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from coldstream.machine.child_environment import CREDENTIALS
from coldstream.node.http_endpoint import free_port
from tests.checkpoints import expected_tensors, sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_vllm
from tests.servers.ranged import RangedServer
from tests.servers.stores import S3Server

TOKEN = "marker-url-token"
# A word of its own in every place where a secret can stand, but for the bucket's keys, which have to be right.
MARKED = {
    "AWS_ACCESS_KEY_ID": "marker-aws-id",
    "AWS_SECRET_ACCESS_KEY": "marker-aws-secret",
    "AWS_SESSION_TOKEN": "marker-aws-session",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "marker-aws-container",
    "HF_TOKEN": "hf_markerHfToken",
    "HUGGING_FACE_HUB_TOKEN": "hf_markerOldHfToken",
    "CLOUDFLARE_API_TOKEN": "marker-cloudflare-token",
    "COLDSTREAM_BUNDLE_KEY": "marker-bundle-key-marker-bundle-key",
    "COLDSTREAM_CDN_HEADER": "X-Marker: marker-cdn-header",
    "CF_ACCESS_CLIENT_ID": "marker-access-id",
    "CF_ACCESS_CLIENT_SECRET": "marker-access-secret",
    "VLLM_API_KEY": "marker-vllm-key",
}
# Stands for a program that is started: says what it inherits, and fails.
_TELLING = """#!{python}
import os, sys
open({file!r}, "ab").write(open("/proc/self/environ", "rb").read())
sys.exit("told")
"""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=1)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    made = Command(None, "", cwd=tmp_path)
    made.environ |= {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    return made


def told(process: subprocess.Popen[str], word: str) -> str:
    """What a process writes to standard output, as far as a line that holds the word."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if word in line:
            return text
    raise AssertionError(f"{text}\n{process.communicate()[1]}")


def written(folder: Path, secret: str) -> list[Path]:
    """The files below a folder that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_url_with_a_token_is_served_and_its_token_stays_with_us(
    command: Command, files: dict[str, bytes], tmp_path: Path
) -> None:
    """coldstream serve 'https://host/org/m?token=…'"""
    fake_vllm(tmp_path / "env")
    command.environ["FAKE_VLLM_READS"] = "1"
    size = sum(map(len, expected_tensors(tmp_path / "expected", files).values()))
    flags = ("--host", "127.0.0.1", "--port", str(free_port()))
    with RangedServer({f"/org/m/{path}": content for path, content in files.items()}, query_token=TOKEN) as server:
        arguments = (f"{server.url}/org/m?token={TOKEN}", "--vllm", str(tmp_path / "env/bin/vllm"), "--bundle", "off")
        with command.start("serve", *arguments, "--", *flags) as process:
            out = told(process, "READ")
            process.send_signal(signal.SIGTERM)
            rest, err = process.communicate(timeout=60)
        assert process.returncode in {0, 128 + signal.SIGTERM}, err
        assert f"READ {size} of {server.url}/org/m\n" in out
        command.process("serve", f"{server.url}/org/m?token=not-{TOKEN}", "--vllm", arguments[2], "--", *flags, code=12)
    assert TOKEN not in out + rest + err
    assert not written(tmp_path, TOKEN)


@contextmanager
def watched_children(root: int, files: list[Path]) -> Iterator[dict[bytes, bytes]]:
    """The environment of every process below one, by its command line; those of the files' programs as they told."""
    seen: dict[bytes, bytes] = {}
    over = threading.Event()

    def look(pid: int) -> None:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                with suppress(OSError):
                    # Read in this order: before its exec a process still has its parent's command line.
                    line = Path(f"/proc/{child}/cmdline").read_bytes()
                    environ = Path(f"/proc/{child}/environ").read_bytes()
                    if line and environ and line != Path(f"/proc/{root}/cmdline").read_bytes():
                        seen[line] = environ
                    look(int(child))

    def watch() -> None:
        while not over.wait(0.01):
            with suppress(OSError):
                look(root)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
        seen |= {str(file).encode(): file.read_bytes() for file in files if file.exists()}


def told_by(program: Path) -> Path:
    """Writes a program that tells its environment; the file that it tells it to."""
    file = program.with_name(f"{program.name}.environ")
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(_TELLING.format(python=sys.executable, file=str(file)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return file


def names_in(environ: bytes, secrets: Mapping[str, str]) -> set[str]:
    """The secrets that stand in an environment, by the variables that they were given in."""
    return {name for name, value in secrets.items() if value.encode() in environ}


def is_streaming(seen: Mapping[bytes, bytes]) -> bool:
    """Whether the streamer was seen."""
    return any(b"coldstream.engine.streamer" in line for line in list(seen))


@pytest.fixture
def bucket(rclone: S3Server, files: dict[str, bytes], tmp_path: Path) -> Command:
    """A model in a bucket, programs that tell what they inherit, and secrets everywhere."""
    made = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    for path, content in files.items():
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / path).write_bytes(content)
    made.environ |= {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    made.run("upload", "./m", "--as", "org/m")
    made.environ |= MARKED | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    return made


@pytest.mark.parametrize("verb", ["load", "tune", "doctor", "serve", "shard"])
def test_no_child_inherits_a_credential_that_it_does_not_need(bucket: Command, tmp_path: Path, verb: str) -> None:
    """coldstream load; tune --measure; doctor; serve; shard"""
    fake_vllm(tmp_path / "env")
    vllm = ("--vllm", str(tmp_path / "env/bin/vllm"))
    files = [told_by(tmp_path / name) for name in ("bin/nvidia-smi", "env/bin/vllm", "env/bin/python", "bin/sky")]
    arguments = {
        "load": ("load", "org/m", "--no-cache"),
        "tune": ("tune", "org/m", "--measure"),
        "doctor": ("doctor", "org/m", *vllm),
        "serve": ("serve", "org/m", *vllm, "--pass-env", "HF_TOKEN", "--", "--port", str(free_port())),
        "shard": ("shard", "org/m", "--tp", "1", *vllm),
    }
    with bucket.start(*arguments[verb]) as process, watched_children(process.pid, files) as seen:
        while verb == "tune" and not is_streaming(seen) and process.poll() is None:
            time.sleep(0.01)
        if verb == "tune":
            # It would go on measuring for long.
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    secrets = {name: bucket.environ[name] for name in CREDENTIALS if name in bucket.environ}
    assert len(secrets) == len(MARKED) + 2
    found = {line: names_in(environ, secrets) for line, environ in seen.items()}
    of_vllm = {"VLLM_API_KEY", "HF_TOKEN"} if verb == "serve" else {"VLLM_API_KEY"}
    leaks = {line: names - (of_vllm if b"/env/bin/" in line else set()) for line, names in found.items()}
    assert not {line: names for line, names in leaks.items() if names}, err
    assert not [line for line in seen if names_in(line, secrets)]
    assert is_streaming(seen), err
    if verb in {"serve", "shard"}:
        assert of_vllm in found.values(), err


# What is wrong: what the model is called, what else is set, and the verbs that meet it; "" stands for all of them.
_URL = "https://user:marker-user@127.0.0.1:9/org/m?token=marker-query"
TROUBLE: dict[str, tuple[str, dict[str, str], str]] = {
    "nothing": ("org/m", {}, ""),
    "a URL's secrets": (_URL, {}, ""),
    "a token where a name is due": ("127.0.0.1:9/org/m?token=marker-query", {}, ""),
    "a bucket's URI with keys": (
        "s3://AKIA:marker/pass@models/org/m",
        {},
        "load tune serve bench upload template verify list",
    ),
    "the Hub's URI with a token": (
        "hf://hf_marker@org/m",
        {"HF_ENDPOINT": "http://user:marker-hub@127.0.0.1:9"},
        "load tune serve upload verify doctor",
    ),
    "a URL that nobody answers": ("https://127.0.0.1:9/org/m?token=marker-query", {}, "load tune serve shard bench"),
    "wrong keys": (
        "org/m",
        {"R2_SECRET_KEY": "marker-wrong-key", "R2_SESSION_TOKEN": "marker-wrong-session"},
        "list verify download load tune serve bundle remove setup",
    ),
    "a store with keys": ("org/m", {"COLDSTREAM_STORE": "s3://AKIA:marker/pass@models"}, ""),
    "an endpoint with keys": ("org/m", {"R2_ENDPOINT": "https://AKIA:marker-pass@127.0.0.1:9"}, ""),
    "a proxy with a password": (
        "org/m",
        {"R2_ENDPOINT": "http://bucket.invalid", "http_proxy": "http://user:marker-proxy@127.0.0.1:9"},
        "list load setup doctor",
    ),
    "a CDN with a password": (
        "org/m",
        {"R2_CDN_DOMAIN": "https://user:marker-cdn@127.0.0.1:9"},
        "load serve cdn template launch doctor",
    ),
    "a CDN that nobody answers": ("org/m", {"R2_CDN_DOMAIN": "127.0.0.1:9"}, "load cdn template doctor"),
    "a profile's keys": (
        "org/m",
        {"R2_ACCESS_KEY": "", "R2_SECRET_KEY": "", "AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "marked"},
        "list load setup",
    ),
}


def every_verb(model: str, folder: Path) -> list[tuple[str, ...]]:
    """A command line of each verb, or several: what works on a model that is there, and what does not."""
    vllm = ("--vllm", str(folder / "env/bin/vllm"))
    return [
        ("list",),
        ("verify", model, "--deep"),
        ("download", model, str(folder / "downloaded")),
        ("load", model),
        ("load", model, "surplus", model),
        ("tune", model, "--gpus", "L4"),
        ("cost", "--actual"),
        ("template", model, "--target", "compose"),
        ("template", "check", model),
        ("serve", model, *vllm, "--print-command", "--print-env"),
        ("serve", model, *vllm, "--fallback", "hf"),
        ("shard", model, "--tp", "1", *vllm),
        ("bench", model, "--only", "runai", "--no-drop"),
        ("timeline", model),
        ("bundle", "list"),
        ("bundle", "publish", model),
        ("cdn", "check", model),
        ("cdn", "rule"),
        ("cache", "list"),
        ("cache", "path", model),
        ("doctor", model, *vllm, "--skip", "speed"),
        ("launch", model, "--gpus", "L4:1", "--dry-run"),
        ("launch", "status"),
        ("demo", "--dir", model),
        ("upload", model, "--dry-run"),
        ("remove", model, "--yes"),
        ("setup", "--bundle-key", model),
        ("setup",),
        (model,),
        ("list", "--store", model),
    ]


@pytest.mark.parametrize("trouble", TROUBLE)
def test_no_verb_shows_or_writes_a_secret(
    bucket: Command, tmp_path: Path, trouble: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every verb, with --debug and with --json, where all is well and in every kind of trouble."""
    fake_vllm(tmp_path / "env")
    for name in ("env/bin/vllm", "env/bin/python", "bin/sky"):
        told_by(tmp_path / name).unlink(missing_ok=True)
    written_by_us = {tmp_path / ".env": "AWS_REGION=auto\nCOLDSTREAM_BUNDLE_KEY=marker-dotenv-marker-dotenv-marker\n"}
    written_by_us[tmp_path / "aws"] = "[marked]\naws_access_key_id = marker\naws_secret_access_key = marker-profile\n"
    for path, text in written_by_us.items():
        path.write_text(text)
    model, environ, verbs = TROUBLE[trouble]
    bucket.environ |= {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws"), "COLDSTREAM_RETRY_SECONDS": "0.2"}
    bucket.environ |= environ
    secret = bucket.environ["R2_SECRET_KEY"] or "marker"
    every = [arguments for arguments in every_verb(model, tmp_path) if not verbs or arguments[0] in verbs.split()]
    for number, arguments in enumerate(every):
        ended, out, err = bucket.ended(*arguments, "--json" if number % 2 else "--debug")
        shown = f"{out}{err}{''.join(capfd.readouterr())}"
        assert ended is not None, arguments
        assert "marker" not in shown.lower(), (arguments, shown)
        assert secret not in shown, (arguments, shown)
    left = {*written(tmp_path, "marker"), *written(tmp_path, secret)} - {*written_by_us}
    assert not {path for path in left if path.suffix != ".environ"}
