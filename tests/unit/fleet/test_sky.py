"""What SkyPilot prints, read; what it is run with; and programs that are something else."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from coldstream.errors import ColdstreamError, NotFoundError, UnavailableError, UsageError
from coldstream.fleet.sky import (
    INSTALL,
    NAME,
    Sky,
    SkyOutput,
    environment_for,
    find_sky,
    launch_refusal,
    parse_offers,
    plain,
)
from coldstream.settings import Settings, load_settings

R2_HOST = "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"
TABLE = """YAML to run: /tmp/f.yaml
Considered resources (1 node):
-----------------------------------------------------------------------------------
 INFRA              INSTANCE          vCPUs   Mem(GB)   GPUS   COST ($)   CHOSEN
-----------------------------------------------------------------------------------
 AWS (us-west-2b)   g6.2xlarge[Spot]  8       32        L4:1   0.35
 AWS (us-east-1a)   g6.xlarge[Spot]   4       16        L4:1   1,030.30       \x1b[32m   ✔\x1b[0m
 Kubernetes (ctx)   -                 -       nan       L4:1   inf
-----------------------------------------------------------------------------------
Dryrun finished.

 INFRA words that are no row   of the table   4   16   L4:1   1.0
"""


def settings(**values: str) -> Settings:
    return load_settings(values, environ={})


def program(tmp_path: Path, code: str, *, first: str = f"#!{sys.executable} -IS\n") -> Path:
    path = tmp_path / "sky"
    path.write_text(first + code)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def sky(tmp_path: Path, code: str) -> Sky:
    return Sky(path=str(program(tmp_path, code)), version="0.14.1", environment={"A": "secret"})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_chosen_machine_comes_first() -> None:
    chosen, other, cluster = parse_offers(plain(TABLE))
    assert (chosen.infra, chosen.instance, chosen.cloud) == ("AWS (us-east-1a)", "g6.xlarge", "aws")
    assert (chosen.cores, chosen.memory_gib, chosen.dollars_per_hour) == (4, 16.0, 1030.30)
    assert (other.instance, other.cores, other.dollars_per_hour) == ("g6.2xlarge", 8, 0.35)
    assert cluster.cloud == "kubernetes"
    assert (cluster.cores, cluster.memory_gib, cluster.dollars_per_hour) == (None, None, None)


@pytest.mark.parametrize("text", ["", "Dryrun finished.", TABLE.replace("vCPUs", "CPUs"), "INFRA | INSTANCE\n-- nan"])
def test_no_table_is_no_offer(text: str) -> None:
    assert parse_offers(plain(text)) == []


@pytest.mark.parametrize(
    ("text", "kind", "says", "hint"),
    [
        (
            "sky.exceptions.ResourcesUnavailableError: Task requires gcp which is not enabled. To enable access, …",
            UsageError,
            "gcp is not enabled",
            "sky check gcp",
        ),
        (
            "NoCloudAccessError: Cloud access is not set up. Run: sky check",
            UsageError,
            "no cloud is enabled",
            "sky check",
        ),
        (
            "RuntimeError: `rsync` is required for provisioning and it is not installed. For Debian, install it:\n",
            NotFoundError,
            "needs rsync",
            "apt install rsync",
        ),
        (
            "ResourcesUnavailableError: Catalog does not contain any instances satisfying the request: 1x",
            UsageError,
            "such a spot machine",
            "sky gpus list",
        ),
        (
            "noise\nsky.exceptions.InvalidSkyPilotConfigError: bad\nHint: see the docs",
            ColdstreamError,
            "sky refused: InvalidSkyPilotConfigError: bad",
            "sky check",
        ),
        ("", ColdstreamError, "it printed nothing", "sky check"),
    ],
)
def test_a_refusal_says_what_is_to_be_done(text: str, kind: type[ColdstreamError], says: str, hint: str) -> None:
    found = launch_refusal(text, spot=True)
    assert type(found) is kind
    assert says in found.message
    assert hint in (found.hint or "")
    assert "spot" not in launch_refusal("No resource satisfying", spot=False).message


def test_the_last_line_that_says_something() -> None:
    assert SkyOutput(code=1, text="ValueError: first\nand then\n\n").last_line == "ValueError: first"
    assert SkyOutput(code=1, text="one\ntwo\nHint: three\n").last_line == "two"
    assert len(SkyOutput(code=1, text="x" * 1000).last_line) == 300


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        *((name, True) for name in ("m", "qwen3-8b", "a" * 40)),
        *((name, False) for name in ("a" * 41, "8b", "a-", "A", "a_b", "", "a\n", "-a", "a/b", "../a")),
    ],
)
def test_names(name: str, fits: bool) -> None:
    assert bool(NAME.fullmatch(name)) is fits


OWN = {
    "R2_ACCESS_KEY": "a",
    "R2_SECRET_KEY": "b",
    "R2_SESSION_TOKEN": "c",
    "CLOUDFLARE_API_TOKEN": "d",
    "COLDSTREAM_BUNDLE_KEY": "e" * 32,
    "HF_TOKEN": "f",
    "VLLM_API_KEY": "g",
    "COLDSTREAM_CDN_HEADER": "X-Key: k",
    "CF_ACCESS_CLIENT_ID": "l",
    "CF_ACCESS_CLIENT_SECRET": "m",
}
AWS_KEYS = {"AWS_ACCESS_KEY_ID": "h", "AWS_SECRET_ACCESS_KEY": "i", "AWS_SESSION_TOKEN": "j"}
OTHERS = {"PATH": "/bin", "HOME": "/root", "GOOGLE_APPLICATION_CREDENTIALS": "/g.json", "AWS_PROFILE": "sky"}


def test_our_own_keys_are_not_passed_on() -> None:
    here = settings(R2_ENDPOINT=R2_HOST, R2_BUCKET="models", R2_ACCESS_KEY="a", R2_SECRET_KEY="b")
    assert environment_for(here, OWN | AWS_KEYS | OTHERS, {}) == AWS_KEYS | OTHERS
    given = {"R2_ACCESS_KEY": "minted", "R2_SESSION_TOKEN": "", "VLLM_API_KEY": "made"}
    assert environment_for(here, OWN | OTHERS, given) == OTHERS | given


def test_aws_variables_that_mean_the_bucket_are_not_passed_on() -> None:
    meant = {"AWS_ENDPOINT_URL": f"{R2_HOST}/", "AWS_ENDPOINT_URL_S3": R2_HOST, "AWS_REGION": "auto"}
    here = settings(AWS_ENDPOINT_URL=R2_HOST, R2_BUCKET="models", AWS_ACCESS_KEY_ID="h", AWS_SECRET_ACCESS_KEY="i")
    assert environment_for(here, meant | AWS_KEYS | OTHERS, {}) == OTHERS


def test_aws_variables_that_mean_aws_are_passed_on() -> None:
    moto = {"AWS_ENDPOINT_URL": "http://127.0.0.1:5077", "AWS_DEFAULT_REGION": "us-east-1"}
    elsewhere = settings(R2_ENDPOINT=R2_HOST, R2_BUCKET="models", R2_ACCESS_KEY="a", R2_SECRET_KEY="b")
    assert environment_for(elsewhere, moto | AWS_KEYS, {}) == moto | AWS_KEYS
    # The bucket is AWS's own: its keys are the machines' keys.
    assert environment_for(settings(R2_BUCKET="models"), moto | AWS_KEYS, {}) == moto | AWS_KEYS


def test_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFoundError, match="SkyPilot is not installed") as caught:
        find_sky(settings())
    assert INSTALL in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="/nowhere/sky is not a program"):
        find_sky(settings(), named="/nowhere/sky")


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("print('sky 3.1, an astronomer')", None),
        ("print('skypilot, version 0.14.1'); raise SystemExit(1)", None),
        ("no interpreter", "\x7fELF"),
        ("echo", "#!/nowhere/python\n"),
    ],
)
def test_another_program(tmp_path: Path, code: str, first: str | None) -> None:
    path = program(tmp_path, code, **({} if first is None else {"first": first}))
    with pytest.raises(UsageError, match="is not SkyPilot, or does not run") as caught:
        find_sky(settings(), named=str(path))
    assert INSTALL in (caught.value.hint or "")


def test_a_program_is_found(tmp_path: Path) -> None:
    path = program(tmp_path, "print('skypilot, version 0.14.1.dev2')")
    bare = find_sky(settings(), named=str(path))
    assert bare.version == "0.14.1.dev2"
    found = bare.with_secrets(settings(), {"VLLM_API_KEY": "made-for-a-node"})
    assert (found.path, found.version) == (bare.path, bare.version)
    assert "VLLM_API_KEY" not in bare.environment
    assert found.environment["VLLM_API_KEY"] == "made-for-a-node"
    assert "made-for-a-node" not in repr(found)


def test_a_document_stands_between_remarks(tmp_path: Path) -> None:
    text = "Fetching [one] queue\n[warning] old\n{not json either\n[\n {}\n]\nand [so] on"
    assert sky(tmp_path, f"print({text!r})").document("status") == [{}]


@pytest.mark.parametrize("code", ["print('nothing')", "print('[')", "print('[]'); raise SystemExit(1)"])
def test_no_document(tmp_path: Path, code: str) -> None:
    with pytest.raises(ColdstreamError, match="sky status failed"):
        sky(tmp_path, code).document("status")


def test_lines_come_as_they_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    code = "import os\nprint('\\r\\x1b[2Kspinning\\r⚙︎ \\x1b[1mLaunching\\x1b[0m on AWS\\n\\n' + min(os.environ))\n1/0"
    answer = sky(tmp_path, code).follow("launch", on_line=said.append)
    assert said[:2] == ["⚙︎ Launching on AWS", "A"]
    assert answer.code == 1
    assert answer.last_line == "ZeroDivisionError: division by zero"


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="sky status timed out after 0 s"):
        sky(tmp_path, "import time; time.sleep(60)").ask("status", seconds=0.3)


def test_an_interruption_is_handed_on(tmp_path: Path) -> None:
    code = (
        "import signal, time, pathlib\n"
        "def stop(*_):\n    pathlib.Path('interrupted').touch()\n    raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, stop)\nprint('Launching', flush=True)\ntime.sleep(60)\n"
    )

    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sky(tmp_path, code).follow("launch", on_line=interrupted)
    assert Path("interrupted").exists()
