"""Environments that run in another folder than they were made in: small real ones, with packages of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from coldstream.errors import NotFoundError, UsageError
from coldstream.runtime import environment, image
from tests.runtimes import SQUASHFS, Venv

SYSTEM_PYTHON = "/usr/bin/python3"
MINOR = f"python{sys.version_info[0]}.{sys.version_info[1]}"
WHERE = "import json, os, sys, zlib, {}; print(json.dumps([sys.prefix, sys.executable, os.__file__, {}.__file__]))"


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    return Venv(tmp_path / "venv")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A relocated environment in another folder, while the one that it was made of is gone."""
    base = tmp_path_factory.mktemp("moved")
    venv = Venv(base / "venv")
    venv.script("plain", "#!PYTHON\n")
    venv.script("env", "#!/usr/bin/env python3\n")
    venv.script("long-pip", "#!/bin/sh\n'''exec' PYTHON \"$0\" \"$@\"\n' '''\n")
    venv.script(
        "long-uv", "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python3' \"$0\" \"$@\"\n' '''\n"
    )
    (venv.root / "bin/tool").write_text("#!/bin/sh\necho a tool\n")
    (venv.root / "bin/tool").chmod(0o755)
    # Installers leave bytecode that is valid for the times of the files there, which change on the way.
    subprocess.run([venv.root / "bin/python3", "-m", "compileall", "-q", venv.site], check=True)
    venv.relocated(base / "out")
    venv.root.rename(base / "gone")
    (base / "out").rename(base / "another place")
    return base / "another place"


def run(root: Path, *arguments: str | Path, path: str = os.defpath) -> str:
    """Runs a program with what the bootstrap program sets, and nothing else."""
    environ = {"PATH": path, "LD_LIBRARY_PATH": f"{root}/lib:{root}/lib/system"}
    done = subprocess.run(arguments, env=environ, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_interpreter_uses_its_own_files(moved: Path) -> None:
    output = run(moved, moved / "bin/python3", "-s", "-c", WHERE.format("vllm", "vllm"))
    prefix, executable, library, package = json.loads(output)
    assert prefix == str(moved)
    assert executable == f"{moved}/bin/python3"
    assert library == f"{moved}/lib/{MINOR}/os.py"
    assert package == f"{moved}/lib/{MINOR}/site-packages/vllm/__init__.py"
    source = "import sys; print([entry for entry in sys.path if entry and not entry.startswith(sys.prefix)])"
    assert run(moved, moved / "bin/python3", "-s", "-c", source) == "[]\n"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_ENABLE_SHARED"), reason="this Python has no shared library")
def test_its_shared_library_is_its_own(moved: Path) -> None:
    source = "print(*[line[line.index('/'):] for line in open('/proc/self/maps') if 'libpython' in line], sep='')"
    libraries = set(run(moved, moved / "bin/python3", "-c", source).split("\n")) - {""}
    assert libraries == {str(moved / "lib" / str(sysconfig.get_config_var("INSTSONAME")))}


@pytest.mark.parametrize("name", ["plain", "env", "long-pip", "long-uv"])
def test_its_programs_run(moved: Path, name: str) -> None:
    output = run(moved, moved / "bin" / name, "an argument", "--flag")
    assert output == f"vllm {moved}/lib/{MINOR}/site-packages/vllm/__init__.py ['an argument', '--flag']\n"


def test_a_program_runs_through_a_link(moved: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(moved / "bin/plain")
    assert f"{moved}/lib" in run(moved, tmp_path / "linked")


def test_coldstream_runs(moved: Path) -> None:
    assert run(moved, moved / "bin/python3", "-s", moved / "bin/coldstream", "serve") == "coldstream ['serve']\n"
    assert run(moved, moved / "bin/coldstream", "serve") == "coldstream ['serve']\n"


def test_other_programs_are_copied(moved: Path) -> None:
    assert run(moved, moved / "bin/tool") == "a tool\n"
    assert not list((moved / "bin").glob("activate*"))


def test_bytecode_is_used_whatever_the_times_of_files_are(moved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(moved, copy, symlinks=True, copy_function=shutil.copy)
    output = run(
        copy, copy / "bin/python3", "-v", "-c", "import vllm, json.decoder, sys; print(sys.dont_write_bytecode)"
    )
    assert output == "False\n"
    paths = list(copy.glob("lib/**/*.pyc"))
    assert {path.name.partition(".")[0] for path in paths} > {"cli", "os", "decoder"}
    for path in paths:
        # Unchecked: flag 1 without flag 2 (PEP 552).
        assert path.read_bytes()[4:8] == b"\x01\0\0\0", path


def test_the_same_environment_gives_the_same_files(venv: Venv, tmp_path: Path) -> None:
    one, other = venv.relocated(tmp_path / "one"), venv.relocated(tmp_path / "two/other")
    listed = [
        {
            path.relative_to(root): (path.stat().st_mode, path.is_file() and path.read_bytes())
            for path in root.rglob("*")
        }
        for root in (one, other)
    ]
    assert listed[0] == listed[1]


@SQUASHFS
def test_the_same_environment_has_the_same_digest(venv: Venv) -> None:
    installed = environment.inspect(venv.root)
    digests = set()
    for _ in range(2):
        with image.packed(lambda out: environment.relocate(installed, out)) as runtime:
            digests.add(runtime.manifest.digest)
    assert len(digests) == 1


def test_the_environment_stays_as_it_is(venv: Venv, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mode, path.stat().st_mtime_ns) for path in venv.root.rglob("*")}

    # A file that only its owner may read gets a copy that others may read, too.
    (venv.site / "vllm/private.py").write_text("x = 1\n")
    (venv.site / "vllm/private.py").chmod(0o600)
    before = state()
    out = venv.relocated(tmp_path / "out")
    assert state() == before
    assert (out / "lib" / MINOR / "site-packages/vllm/private.py").stat().st_mode & 0o777 == 0o644


def test_its_platform(venv: Venv, tmp_path: Path) -> None:
    venv.add("torch", "2.13.0+cu128")
    (venv.site / "torch/version.py").write_text("cuda: Optional[str] = '12.8'\n")
    (tmp_path / "out").mkdir()
    platform = environment.relocate(environment.inspect(venv.root), tmp_path / "out")
    assert (platform.vllm, platform.coldstream, platform.torch) == ("0.32.0+cpu", "0.1.0", "2.13.0+cu128")
    assert (platform.machine, platform.python) == (os.uname().machine, sys.version.split()[0])
    assert (platform.cuda, platform.driver) == ("12.8", "525.60.13")
    own = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
    assert [2, 17] <= [int(part) for part in platform.glibc.split(".")] <= [int(part) for part in own.split(".")]


def test_the_c_library_that_files_need(tmp_path: Path) -> None:
    """The newest symbol counts, but no newer one than this machine has."""
    own = int((os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(".")[2])
    library = tmp_path / "lib/x.so"
    library.parent.mkdir()
    for versions, needed in (([], 17), ([4, 18], 18), ([18, own], own), ([999], own)):
        names = b"".join(b"\0GLIBC_2.%d" % version for version in versions)
        library.write_bytes(b"\x7fELF" + names + b"\0")
        assert environment.oldest_glibc(tmp_path) == f"2.{needed}"
    library.write_bytes(b"\0GLIBC_2.%d\0" % own)  # is not a library
    assert environment.oldest_glibc(tmp_path) == "2.17"


def test_libraries_of_the_system_are_copied(moved: Path) -> None:
    """Those that extension modules load, without the C library and the driver."""
    names = {path.name for path in (moved / "lib/system").iterdir()}
    assert not {name for name in names if re.match(r"(libc|libm|libpthread|ld-linux.*|libcuda)\.so", name)}
    modules = list((moved / "lib" / MINOR / "lib-dynload").glob("*.so"))
    needed = environment.libraries_of(modules, moved / "lib")
    outside = {name for name, path in needed.items() if not path.is_relative_to(moved)}
    assert outside <= names
    for name in names:
        assert (moved / "lib/system" / name).read_bytes()[:4] == b"\x7fELF"


def test_libraries_of_other_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("INPUT(libx.so)")
    assert environment.libraries_of([tmp_path / "text.so"]) == {}
    assert environment.libraries_of([]) == {}


def test_a_link_to_sources_is_refused(venv: Venv, tmp_path: Path) -> None:
    venv.add("my_plugin", "1.0", editable=True)
    with pytest.raises(UsageError, match=r"my_plugin in .* is installed as a link to its sources"):
        environment.inspect(venv.root)


def test_coldstream_as_a_link_to_its_sources_is_copied(venv: Venv, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (venv.site / "coldstream").rename(sources / "coldstream")
    (venv.site / "_coldstream.pth").write_text(f"{sources}\n")
    info = venv.site / "coldstream-0.1.0.dist-info/direct_url.json"
    info.write_text('{"url": "file:///src", "dir_info": {"editable": true}}')
    out = venv.relocated(tmp_path / "out")
    sources.rename(tmp_path / "gone")
    assert run(out, out / "bin/coldstream", "x") == "coldstream ['x']\n"
    assert not list(out.rglob("*coldstream*.pth"))
    assert not list(out.rglob("direct_url.json"))
    assert info.exists()


def test_what_is_not_an_environment(tmp_path: Path, venv: Venv) -> None:
    with pytest.raises(NotFoundError, match="is not a Python environment"):
        environment.inspect(tmp_path)
    shutil.rmtree(venv.site / "vllm-0.32.0+cpu.dist-info")
    with pytest.raises(NotFoundError, match=f"vllm is not installed in {re.escape(str(venv.root))}"):
        environment.inspect(venv.root)


def test_a_stale_plugin_is_refused(venv: Venv) -> None:
    """A link to sources keeps the entry point that they had when it was installed."""
    points = venv.site / "coldstream-0.1.0.dist-info/entry_points.txt"
    points.write_text("[vllm.general_plugins]\ncoldstream = coldstream.vllm:register\n")
    with pytest.raises(
        UsageError, match=r"vLLM cannot load coldstream in .*: .*No module named 'coldstream\.vllm'"
    ) as info:
        environment.inspect(venv.root)
    assert f"run: {venv.root}/bin/python3 -m pip install --force-reinstall" in str(info.value.hint)
    points.unlink()
    with pytest.raises(UsageError, match="it has no entry point for vLLM"):
        environment.inspect(venv.root)


def test_the_interpreter_names_its_environment(venv: Venv) -> None:
    assert environment.inspect(venv.root / "bin/python3").facts == environment.inspect(venv.root).facts


@pytest.mark.skipif(not os.path.exists(SYSTEM_PYTHON), reason="this machine has no Python of its own")
def test_the_system_s_python(tmp_path: Path) -> None:
    """Debian keeps its library, its packages and its shared library elsewhere."""
    try:
        venv = Venv(tmp_path / "venv", python=SYSTEM_PYTHON)
    except subprocess.CalledProcessError:
        pytest.skip("the system's Python cannot make environments (apt-get install python3-venv)")
    venv.script("plain", "#!PYTHON\n")
    out = venv.relocated(tmp_path / "out")
    venv.root.rename(tmp_path / "gone")
    out = out.rename(tmp_path / "another place")
    output = run(out, out / "bin/python3", "-s", "-c", WHERE.format("vllm", "vllm"))
    prefix, executable, library, package = json.loads(output)
    assert executable == f"{out}/bin/python3"
    assert {Path(name).is_relative_to(out) for name in (prefix, library, package)} == {True}
    assert run(out, out / "bin/plain").startswith(f"vllm {out}/")
    assert run(out, out / "bin/coldstream", "serve") == "coldstream ['serve']\n"
