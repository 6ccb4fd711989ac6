"""A runtime without vLLM, in an image that has vLLM and some of the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from coldstream.package import __version__
from coldstream.runtime import packages
from coldstream.runtime.runtime_manifest import Platform

PROBE = """
import atexit, sys
def show():
    if "coldstream.cli" not in sys.modules:
        return
    for name in ("coldstream", "click", "boto3"):
        if name in sys.modules:
            print(name, sys.modules[name].__file__)
    from importlib.metadata import entry_points
    print("plugins", *[entry.value for entry in entry_points(group="vllm.general_plugins")])
atexit.register(show)
"""


@pytest.fixture(autouse=True, scope="module")
def without_an_index() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_OFFLINE", "1")
        patch.setenv("PIP_NO_INDEX", "1")
        yield


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Platform]:
    out = tmp_path_factory.mktemp("packages")
    return out, packages.gather(out)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The packages of an image: a vLLM, and a click of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], check=True)
    site = next((tmp_path / "image/lib").glob("python3*")) / "site-packages"
    click = metadata.distribution("click")
    shutil.copytree(Path(str(click.locate_file("click"))), site / "click")
    (site / "click-0.1.dist-info").mkdir()
    (site / "click-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: Click\nVersion: 0.1\n")
    (site / "sitecustomize.py").write_text(PROBE)
    return site


def start(
    root: Path, tmp_path: Path, *arguments: str, first_line: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the runtime's program as the bootstrap program does, by a Python that is not the image's."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").write_text(first_line or f"#!{tmp_path}/image/bin/python3\n")
    (tmp_path / "bin/vllm").chmod(0o755)
    environ = {"PATH": f"{tmp_path}/bin:{os.defpath}", "HOME": str(tmp_path)}
    words = [sys.executable, "-s", str(root / "bin/coldstream"), *arguments]
    return subprocess.run(words, env=environ, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def test_the_image_keeps_its_versions_and_sees_the_plugin(
    gathered: tuple[Path, Platform], site: Path, tmp_path: Path
) -> None:
    root, _ = gathered
    done = start(root, tmp_path, "--version")
    assert done.returncode == 0, done.stderr
    version, coldstream, click, plugins = done.stdout.splitlines()
    assert version.split()[-1] == __version__
    assert coldstream == f"coldstream {root}/packages/coldstream/coldstream/__init__.py"
    assert click == f"click {site}/click/__init__.py"
    assert plugins == "plugins coldstream.engines.vllm:register"


def test_packages_that_the_image_lacks_are_used(gathered: tuple[Path, Platform], site: Path, tmp_path: Path) -> None:
    root, _ = gathered
    lines = ("R2_BUCKET=models", "R2_ACCESS_KEY=a", "R2_SECRET_KEY=b", "R2_ENDPOINT=http://127.0.0.1:1")
    (tmp_path / ".env").write_text("\n".join([*lines, "COLDSTREAM_RETRY_SECONDS=1"]))
    words = ("list", "--env-file", str(tmp_path / ".env"))
    done = start(root, tmp_path, *words, first_line=f"#!/bin/sh\n'''exec' \"{tmp_path}/image/bin/python3\" \"$0\"\n")
    assert f"boto3 {root}/packages/boto3/boto3/__init__.py" in done.stdout, done.stderr


def test_another_python_is_one_line(gathered: tuple[Path, Platform], site: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(gathered[0], root, symlinks=True)
    (library,) = (root / "packages/xxhash/xxhash").glob("*.so")
    library.rename(library.with_name("_xxhash.cpython-39-x86_64-linux-gnu.so"))
    done = start(root, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (2, "")
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"error: xxhash in the runtime is for Python 3.9, and the engine has {own}: publish" in done.stderr


def test_a_package_for_the_version_of_the_image_is_used(
    gathered: tuple[Path, Platform], site: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(gathered[0], root, symlinks=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copytree(root / "packages/xxhash", root / f"packages/xxhash@{version}")
    (library,) = (root / "packages/xxhash/xxhash").glob("*.so")
    library.rename(library.with_name("_xxhash.cpython-39-x86_64-linux-gnu.so"))
    done = start(root, tmp_path, "--version")
    assert done.returncode == 0, done.stderr


INSTALLER = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/xxhash" "$2/xxhash-9.dist-info"
touch "$2/xxhash/for-another-version.so"
printf 'Metadata-Version: 2.1\nName: xxhash\nVersion: 9\n' > "$2/xxhash-9.dist-info/METADATA"
printf 'xxhash/for-another-version.so,,\nxxhash-9.dist-info/METADATA,,\n' > "$2/xxhash-9.dist-info/RECORD"
"""


def test_compiled_packages_are_added_for_other_versions_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv").write_text(INSTALLER)
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "out").mkdir()
    packages.gather(tmp_path / "out")
    calls = (tmp_path / "calls").read_text().splitlines()
    own = sys.version_info.minor
    others = [minor for minor in (10, 11, 12, 13) if minor != own]
    assert [f"--python-version 3.{minor} " in call for minor, call in zip(others, calls, strict=True)] == [True] * 3
    # Never coldstream, whose name anybody can take in an index.
    assert all("xxhash==" in call and "coldstream" not in call for call in calls)
    for minor in others:
        assert (tmp_path / f"out/packages/xxhash@3.{minor}/xxhash/for-another-version.so").is_file()
    assert not (tmp_path / f"out/packages/xxhash@3.{own}").exists()


def test_the_origin_tells_packages_apart(monkeypatch: pytest.MonkeyPatch, gathered: tuple[Path, Platform]) -> None:
    assert packages.origin() == gathered[1].origin
    monkeypatch.setattr(packages, "_EXTRAS", frozenset())
    assert packages.origin() != gathered[1].origin


def test_without_vllm_on_the_path_it_runs_with_python3(gathered: tuple[Path, Platform], tmp_path: Path) -> None:
    words = [sys.executable, str(gathered[0] / "bin/coldstream"), "--version"]
    path = f"{Path(sys.executable).parent}:{os.defpath}"
    done = subprocess.run(words, env={"PATH": path}, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split()[-1] == __version__, done.stderr


def test_what_it_consists_of(gathered: tuple[Path, Platform]) -> None:
    root, platform = gathered
    assert (platform.vllm, platform.torch, platform.coldstream) == ("", "", __version__)
    assert platform.python.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    names = {path.name for path in (root / "packages").iterdir()}
    # The TLS extra is what nodes have; torch and matplotlib come with vLLM, or are for charts.
    assert {"coldstream", "boto3", "botocore", "msgspec", "xxhash", "pyyaml", "cryptography"} <= names
    assert not {"torch", "matplotlib", "pytest"} & names
    assert not list(root.rglob("*.pth"))
    assert not list(root.rglob("direct_url.json"))
    assert list((root / "packages/coldstream/coldstream/__pycache__").glob("errors.*.pyc"))


def test_the_same_packages_give_the_same_image(gathered: tuple[Path, Platform], tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    packages.gather(again)
    for path in sorted(again.rglob("*")):
        other = gathered[0] / path.relative_to(again)
        assert path.stat().st_mode == other.stat().st_mode, path
        assert path.is_dir() or path.read_bytes() == other.read_bytes(), path


def test_the_closure_follows_extras() -> None:
    assert "cryptography" not in packages.closure("coldstream", frozenset())
    assert "cffi" in packages.closure("coldstream", frozenset({"tls"}))
    assert packages.closure("no-such-package", frozenset()) == {}
