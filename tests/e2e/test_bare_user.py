"""The command where little is given: no home, no name, no working directory, closed or full standard streams."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from coldstream.node import serve_preparation
from tests.checkpoints import sharded_checkpoint
from tests.e2e.command import Command
from tests.models import write_model

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
UID = 54321


@pytest.fixture
def command(tmp_path: Path) -> Command:
    write_model(tmp_path / "store/org/m", sharded_checkpoint(shards=1, layers=1, rows=64, columns=64))
    command = Command(None, "", cwd=tmp_path)
    command.environ |= {"COLDSTREAM_STORE": str(tmp_path / "store"), "HOME": str(tmp_path / "home")}
    return command


def shell(command: Command, line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of the shell, in which `coldstream` is ours."""
    program = f'coldstream() {{ {shlex.quote(sys.executable)} -m coldstream "$@"; }}\n{line}'
    return subprocess.run(
        ["sh", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env=command.environ,
        cwd=command.cwd,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("coldstream load org/m --no-cache <&- >&- 2>&-", 0, "", ""),
        ("coldstream load org/m --no-cache 2>&-", 0, r"unverified   \d+ tensors", ""),
        ("coldstream load org/none --json 2>/dev/full", 10, '"exit_code": 10', ""),
        ("coldstream load org/none --json >/dev/full", 10, "", "error: there is no model org/none in file:.*"),
        (
            "coldstream list >/dev/full",
            1,
            "",
            "error: cannot write to standard output: No space left on device\nhint: ",
        ),
        ("coldstream nonsense 2>/dev/full", 2, "", ""),
        ("{ coldstream list; echo code $? >&2; } | head -c 0", 0, "", "code 0"),
    ],
)
def test_standard_streams(command: Command, line: str, code: int, out: str, err: str) -> None:
    done = shell(command, line)
    assert done.returncode == code, done.stderr
    assert re.search(out, done.stdout) if out else not done.stdout
    assert re.match(err, done.stderr) if err else not done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            # A file in one object would be read in place, which opens few files.
            (
                "coldstream upload ./store/org/large --as org/cut --object-bytes-max 8MiB --no-plain --quiet\n"
                "ulimit -n 9; coldstream load org/cut"
            ),
            r"cannot \w+.*: the limit on open files \(ulimit -n: 9\) is reached",
        ),
        (
            "ulimit -f 1; coldstream load org/large",
            r"two of the largest tensors take 21.5 MB, and the limit on file size \(ulimit -f: .*B\) leaves .*B",
        ),
        ("ulimit -f 1; coldstream download org/large out", r"out/model.*: cannot write: the limit on file size"),
        ("ulimit -f 1; coldstream upload ./store/org/large --as a/b", r"a/b/.*: cannot write: the limit on file size"),
    ],
)
def test_a_limit_is_named(command: Command, line: str, message: str) -> None:
    write_model(command.cwd / "store/org/large", sharded_checkpoint(shards=1, layers=1, rows=2048, columns=1024))
    done = shell(command, f"{line} --quiet")
    assert done.returncode == 1, done.stdout
    error, hint = done.stderr.splitlines()
    assert re.search(message, error)
    assert hint.startswith("hint:  raise ")


def test_tensors_that_are_kept_beyond_a_limit_end_the_load(command: Command) -> None:
    """Where nothing is kept, the same load fits."""
    files = sharded_checkpoint(shards=2, layers=4, rows=1024, columns=1024)
    folder = write_model(command.cwd / "model", files)
    program = f"""
import resource, coldstream, coldstream.loading.streaming
from coldstream.errors import ColdstreamError
from coldstream.machine.limits import mapping_limit
resource.setrlimit(resource.RLIMIT_FSIZE, ({18 << 20}, {18 << 20}))
print(sum(1 for _ in coldstream.stream({str(folder)!r}, framework="buffer")))
for kept in (lambda: list(coldstream.stream({str(folder)!r}, framework="buffer")),
             lambda: coldstream.load({str(folder)!r}, framework="buffer")):
    try:
        kept()
    except ColdstreamError as exc:
        print(exc)
"""
    done = shell(command, f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}")
    assert done.returncode == 0, done.stderr
    count, kept, loaded = done.stdout.splitlines()
    assert int(count) > 0
    assert kept == f"{folder}: the tensors that are kept fill all the memory that may be mapped"
    assert re.fullmatch(r"all tensors take .* MB, and the limit on file size \(ulimit -f: 18.9 MB\) .* 18.9 MB", loaded)


def test_a_limited_address_space_is_named(command: Command) -> None:
    files = sharded_checkpoint(shards=1, layers=1, rows=2048, columns=1024)
    folder = write_model(command.cwd / "model", files)
    program = f"""
import resource, coldstream, coldstream.loading.streaming
from coldstream.errors import ColdstreamError
from coldstream.machine.limits import address_space_left
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
most = (1 << 40) - address_space_left() + (72 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    print(sum(1 for _ in coldstream.stream({str(folder)!r}, framework="buffer")))
except ColdstreamError as exc:
    print(exc)
"""
    done = shell(command, f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"two of the largest .* 21.5 MB, and the limit on address space \(ulimit -v: .*\) leaves .*B\n", done.stdout
    )


def test_a_working_directory_that_is_gone(command: Command) -> None:
    gone = "mkdir gone && cd gone && rmdir ../gone && "
    assert shell(command, gone + "coldstream load org/m --no-cache").returncode == 0
    done = shell(command, gone + "coldstream load ./m")
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot use the working directory: No such file or directory\nhint:  change to another: cd /\n"
    )


def as_another(act: Callable[[], None], folder: Path) -> tuple[int, str]:
    """Runs it in a fork that another user owns, with `folder` as its working directory; its exit code and output."""
    output = folder / "output"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
            os.chdir(folder)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(UID, UID, UID)
            act()
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 98
        finally:
            sys.stdout.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, output.read_text()


@AS_ROOT
def test_a_working_directory_that_must_not_be_entered(command: Command) -> None:
    from coldstream.cli import main

    command.run("list")  # or the fork would have to read modules that another user may not see
    with tempfile.TemporaryDirectory() as temporary:
        store, private = Path(temporary, "store"), Path(temporary, "private")
        shutil.copytree(command.cwd / "store", store)
        Path(temporary).chmod(0o711)
        private.mkdir(0o700)
        (private / ".env").write_text("R2_BUCKET=other\n")
        code, said = as_another(lambda: main(["list", "--store", str(store)]), private)
    assert code == 0, said
    assert "org/m" in said
    assert "Traceback" not in said


@AS_ROOT
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_a_user_without_a_home_and_a_name(command: Command, tmp_path: Path) -> None:
    """As Kubernetes' restricted policy and OpenShift run containers: any uid, group 0, no entry in passwd."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    del command.environ["HOME"]
    for name in ("XDG_CACHE_HOME", "LOGNAME", "USER"):
        command.environ.pop(name, None)
    command.environ["TMPDIR"] = str(temporary)
    # It may read what root's environment is made of, and nothing more.
    capabilities = "--bounding-set -all,+dac_read_search --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    user = f"setpriv --reuid {UID} --regid 0 --clear-groups {capabilities} {shlex.quote(sys.executable)} -m coldstream"
    done = shell(command, f"{user} load org/m && {user} cache list")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert f"no models in {temporary}/coldstream-{UID}" in done.stdout


@AS_ROOT
def test_vllm_gets_a_home_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not serve_preparation.user_environment({"USER": "somebody"})
    monkeypatch.setattr(os, "getuid", lambda: UID)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(serve_preparation, "temporary_root", lambda: tmp_path)
    assert serve_preparation.user_environment({}) == {"HOME": str(tmp_path / "home"), "USER": f"uid{UID}"}
    assert (tmp_path / "home").is_dir()
    monkeypatch.setattr(os.path, "expanduser", lambda _path: "/nonexistent")
    assert serve_preparation.user_environment({})["HOME"] == str(tmp_path / "home")


def test_vllm_gets_a_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only root, Python's tempfile has none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "TMPDIR" not in serve_preparation.user_environment({"USER": "somebody"})
    monkeypatch.setattr(tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError))
    monkeypatch.setattr(serve_preparation, "temporary_root", lambda: tmp_path)
    assert serve_preparation.user_environment({"USER": "somebody"}) == {"TMPDIR": str(tmp_path)}
