"""`coldstream setup --write-env`, on a terminal: asks, checks, and writes what works."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coldstream.cli import setup_command
from coldstream.settings import load_settings
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.stores import S3Server

_SECONDS = 60.0


class Terminal:
    """A command on a terminal of its own. `answer` waits for a question and types."""

    def __init__(self, command: Command, *arguments: str) -> None:
        self._leader, follower = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coldstream", *arguments],
            env=command.environ,
            cwd=command.cwd,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)
        self.text = ""
        self._seen = 0

    def answer(self, question: str, text: str) -> None:
        """Waits until `question` stands there, after what was waited for before, and types `text` and Return."""
        self._read_until(question)
        os.write(self._leader, f"{text}\n".encode())

    def end(self) -> int:
        """Waits for the end; the exit code."""
        self._read_until(None)
        os.close(self._leader)
        return self._process.wait(_SECONDS)

    def _read_until(self, question: str | None) -> None:
        deadline = time.monotonic() + _SECONDS
        while question is None or (match := re.search(re.escape(question), self.text[self._seen :])) is None:
            assert select.select([self._leader], [], [], deadline - time.monotonic())[0], self.text
            try:
                read = os.read(self._leader, 1 << 16)
            except OSError:  # Linux: no process has the other end open
                read = b""
            if not read:
                assert question is None, f"it ended before {question!r}:\n{self.text}"
                return
            self.text += read.decode()
        self._seen += match.end()


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(None, "", cwd=tmp_path)


def written(tmp_path: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in (tmp_path / ".env").read_text().splitlines())
    return {name: value.strip("'\"") for name, _, value in lines}


def test_wrong_answers_are_asked_again_and_nothing_is_written_before_the_checks_pass(
    rclone: S3Server, command: Command, tmp_path: Path
) -> None:
    """coldstream setup --write-env: a placeholder, a bad URL, a bad name, a wrong secret; then all of it right"""
    bucket = fresh_bucket(rclone)
    (tmp_path / ".env").write_text("# mine\nR2_ENDPOINT=https://<account-id>.r2.cloudflarestorage.com\nOTHER=1\n")
    before = (tmp_path / ".env").read_text()
    terminal = Terminal(command, "setup", "--write-env")
    terminal.answer("endpoint", "https://<account-id>.r2.cloudflarestorage.com")
    terminal.answer("that is a placeholder", "minio.example")
    terminal.answer("not a server's URL", rclone.endpoint)
    terminal.answer("bucket", "My_Models")
    terminal.answer("is not a valid bucket name", f"s3://{bucket}/")
    terminal.answer("access key id", rclone.access_key)
    terminal.answer("secret access key", "wrong-secret-key-0123456789")
    terminal.answer("the secret key does not belong to the access key", "")
    # That empty line answered "answer again?" with its default, yes.
    assert (tmp_path / ".env").read_text() == before
    terminal.answer(f"[{rclone.endpoint}]", "")
    terminal.answer(f"[{bucket}]", "")
    terminal.answer(f"[{rclone.access_key}]", "")
    terminal.answer("[…6789]", rclone.secret_key)
    assert terminal.end() == 0, terminal.text
    assert "0 failed" in terminal.text
    assert rclone.secret_key not in terminal.text
    assert "wrong-secret-key" not in terminal.text
    assert written(tmp_path) == {
        "# mine": "",
        "OTHER": "1",
        "R2_ENDPOINT": rclone.endpoint,
        "R2_BUCKET": bucket,
        "R2_ACCESS_KEY": rclone.access_key,
        "R2_SECRET_KEY": rclone.secret_key,
    }
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert command.run("list")[0].startswith("no models")


def test_giving_up_leaves_no_file(rclone: S3Server, command: Command, tmp_path: Path) -> None:
    """coldstream setup --write-env --env-file new.env: a check fails, and it is not tried again"""
    command.environ |= rclone.environ(fresh_bucket(rclone))
    terminal = Terminal(command, "setup", "--write-env", "--env-file", "new.env")
    for question in ("endpoint", "bucket", "access key id"):
        terminal.answer(question, "")
    terminal.answer("secret access key", "not-the-secret-key")
    terminal.answer("answer again?", "n")
    assert terminal.end() == 130
    assert not (tmp_path / "new.env").exists()


def test_without_a_terminal_what_works_is_written_and_what_does_not_is_not(
    rclone: S3Server, command: Command, tmp_path: Path
) -> None:
    """coldstream setup --write-env < /dev/null"""
    assert "R2_BUCKET" in command.run("setup", "--write-env", code=2)[1]
    bucket = fresh_bucket(rclone)
    command.environ |= rclone.environ(bucket) | {"R2_SECRET_KEY": "not-the-secret-key"}
    assert "was not written" in command.run("setup", "--write-env", code=12)[1]
    assert not (tmp_path / ".env").exists()
    command.environ |= rclone.environ(bucket)
    command.run("setup", "--write-env")
    assert written(tmp_path)["R2_BUCKET"] == bucket


def test_on_aws_no_endpoint_and_no_keys_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["aws", "my-models", ""])
    monkeypatch.setattr("click.prompt", lambda *_, **options: next(answers))
    old = {
        "R2_ENDPOINT": "https://x.example",
        "R2_ACCESS_KEY": "old",
        "R2_SECRET_KEY": "old",
        "R2_SESSION_TOKEN": "old",
    }
    settings = setup_command.ask(load_settings(environ=old), setup_command.NAMES)
    assert settings.endpoint() is None
    assert settings.keys() is None
    assert dict(settings.values) == {"R2_BUCKET": "my-models"}


def test_a_missing_bucket_is_answered_with_the_wizard(command: Command) -> None:
    """coldstream list, with nothing configured"""
    assert "coldstream setup --write-env" in command.run("list", code=2)[1]


def test_a_token_of_hf_auth_login_is_not_overlooked(
    rclone: S3Server, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """coldstream setup, logged in to the Hub by its own command"""
    command.environ |= rclone.environ(fresh_bucket(rclone))

    def shown() -> str:
        return next(
            check["found"] for check in command.json("setup")["checks"] if check["name"] == "hugging face token"
        )

    assert shown() == "not set: public models only"
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_0123456789abcdefghij")
    assert shown() == "the token of `hf auth login`, ends in …ghij"
