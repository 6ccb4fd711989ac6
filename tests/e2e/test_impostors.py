"""Every command against a server that is none: a portal, a web site, a redirect. One line names what answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.command import Command
from tests.models import sharded_model, write_model
from tests.servers.fake_vllm import fake_vllm
from tests.servers.impostor import ANSWERS, impostor

# What a message has to show of each answer.
NAMED = {
    "a redirect to a page": "302, a redirect to HOST",
    "a redirect for good": "301, a redirect to HOST",
    "a redirect that keeps the method": "307, a redirect to HOST",
    "a redirect to nowhere": "302( without content)?$",
    "a page": '200 text/html( "Sign in to Hotel Wi-Fi")?',
    "a page that is XML": r'200 application/xhtml\+xml( "Welcome to nginx!")?',
    "nothing": "200 without content|gets 200$",
    "broken XML": '200 application/xml( "<.xml version="1.0".><ListBucketResult><Name>")?',
    "JSON": '200 application/json( "{"status": "ok", "version": 3}")?',
    "a page that is not found": '404 text/html( "404 Not Found")?',
}
STORE = {
    "setup": ("setup",),
    "upload a folder": ("upload", "FOLDER", "--as", "org/model"),
    "list": ("list",),
    "verify": ("verify", "org/model"),
    "download": ("download", "org/model", "OUT"),
    "remove": ("remove", "org/model", "--yes"),
    "load": ("load", "org/model"),
    "serve": ("serve", "org/model", "--vllm", "VLLM", "--", "--uds", "vllm.sock"),
    "doctor": ("doctor", "org/model"),
    "bundle list": ("bundle", "list"),
    "bundle show": ("bundle", "show", "org/model"),
    "bundle remove": ("bundle", "remove", "org/model", "--yes"),
    "cdn check": ("cdn", "check", "org/model"),
    "cdn warm": ("cdn", "warm", "org/model"),
    "cdn purge": ("cdn", "purge", "org/model"),
    "cost": ("cost",),
    "tune": ("tune", "org/model"),
    "launch": ("launch", "org/model", "--gpus", "L4:1", "--dry-run"),
    "bench": ("bench", "org/model"),
}
OTHERS = {
    "upload": ("upload", "org/model"),
    "load from the Hub": ("load", "hf://org/model"),
    "tune for the Hub": ("tune", "hf://org/model"),
    "cdn rule": ("cdn", "rule"),
}
# Each command meets this one; the rest of the answers, those commands that read them in different ways.
ALWAYS = ("a page",)
SOME = ("setup", "list", "load", "load from the Hub", "cdn rule")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    write_model(tmp_path / "m", sharded_model())
    command = Command(None, "", cwd=tmp_path)
    command.environ |= {
        "R2_BUCKET": "models",
        "R2_ACCESS_KEY": "an-access-key-000000",
        "R2_SECRET_KEY": "MARKED-key-00000000000000000000",
        "R2_CDN_DOMAIN": "cdn.invalid",
        "CLOUDFLARE_API_TOKEN": "MARKED-token-000000000000000000",
        "COLDSTREAM_BUNDLE_KEY": "MARKED" * 10,
        "COLDSTREAM_RETRY_SECONDS": "0.2",
    }
    return command


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_command_names_what_answers(answer: str, command: Command) -> None:
    program = str(fake_vllm(command.cwd / "env"))
    wrong = []
    with impostor(ANSWERS[answer]) as url:
        command.environ |= {"R2_ENDPOINT": url, "HF_ENDPOINT": url, "CLOUDFLARE_BASE_URL": f"{url}/client/v4"}
        expected = NAMED[answer].replace("HOST", re.escape(url.removeprefix("http://")))
        for verb, arguments in (STORE | OTHERS).items():
            if answer not in ALWAYS and verb not in SOME:
                continue
            places = {"FOLDER": str(command.cwd / "m"), "OUT": str(command.cwd / f"out {verb}"), "VLLM": program}
            code, out, err = command.ended(*(places.get(word, word) for word in arguments))
            lines = [line for line in (out + err).splitlines() if re.match(r"error: |fail ", line)]
            one = len(lines) == 1 and re.search(expected, lines[0]) and code in {1, 13}
            if not one or "Traceback" in err or "MARKED" in out + err:
                wrong.append((verb, code, out, err))
    assert not wrong
