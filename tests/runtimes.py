"""Small artificial runtimes, and starts of them on a bare node: another Python, and nothing in the environment."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coldstream.places.place import Store
from coldstream.runtime import bootstrap, environment, image, runtime_store
from coldstream.runtime.runtime_manifest import Image, Platform, RuntimeManifest, Unpacker

SQUASHFS = pytest.mark.skipif(
    shutil.which("mksquashfs") is None, reason="mksquashfs is not installed (apt-get install squashfs-tools)"
)
MOUNT = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="only root can mount, with a loop device"
)
BOOTSTRAP = Path(bootstrap.__file__)
# Another Python than ours where there is one.
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
CHUNK_BYTES = 1 << 20
# Each program of an image that anyone changed leaves a file here.
SENTINEL = "SENTINEL"
_PROGRAM = r"""#!/bin/sh
root=$(dirname "$(dirname "$0")")
echo "started $0"
echo "umask $(umask)"
for argument; do echo "argument $argument"; done
cd "$root" && sha256sum --quiet -c sums && echo "files are whole"
env
"""
_EVIL = '#!/bin/sh\ntouch "$SENTINEL"\necho EVIL\n'


def changed_bootstrap(path: Path, old: str, new: str) -> str:
    """Writes a copy of the bootstrap program with `new` instead of `old`; returns its path."""
    text = BOOTSTRAP.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return str(path)


@dataclass(frozen=True, kw_only=True)
class ArtificialRuntime:
    """An image whose `bin/python3` prints its arguments and its environment, and checks all files."""

    manifest: RuntimeManifest = field(repr=False)
    image: Path
    unpacker: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """What a deployment pins."""
        return self.manifest.digest

    @property
    def folder(self) -> str:
        """Where it lies in a bucket."""
        return f"{runtime_store.ROOT}/{self.digest}"

    def publish(self, store: Store) -> ArtificialRuntime:
        """Stores it, and returns it."""
        runtime_store.publish(store, self.manifest, self.image, self.unpacker, on_sent=lambda count: None)
        return self

    def needing(self, *, unpacked: int | None = None, **platform: Any) -> ArtificialRuntime:
        """The same image with other needs."""
        size = replace_struct(self.manifest.image, unpacked=unpacked) if unpacked else self.manifest.image
        needs = replace_struct(self.manifest.platform, **platform)
        return replace(self, manifest=replace_struct(self.manifest, platform=needs, image=size))


def replace_struct(struct: Any, **changes: Any) -> Any:
    """A copy of a msgspec struct with other values."""
    return msgspec.structs.replace(struct, **changes)


def artificial_runtime(folder: Path, *, size: int = 20_000_000, is_evil: bool = False) -> ArtificialRuntime:
    """Makes an image in a folder.

    Args:
        folder: An empty one.
        size: Of its random files together.
        is_evil: Whether its programs, and its unpacker, leave the file that the variable SENTINEL names.
    """
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/python3").write_text(_EVIL if is_evil else _PROGRAM)
    (root / "bin/python3").chmod(0o755)
    (root / "bin/coldstream").write_text("")
    random_bytes = random.Random(size)
    for index in range(8):
        path = root / f"lib/package{index}/data"
        path.parent.mkdir(parents=True)
        path.write_bytes(random_bytes.randbytes(size // 8))
    sums = subprocess.run(
        "sha256sum lib/*/data bin/*", shell=True, cwd=root, check=True, capture_output=True, text=True
    )
    (root / "sums").write_text(sums.stdout)
    packed = image.pack(root, folder / "image")
    chunks = [hashlib.sha256(part).hexdigest() for part in chunked((folder / "image").read_bytes(), CHUNK_BYTES)]
    tool = _evil_tool(folder) if is_evil else image.unpacker()
    manifest = RuntimeManifest(
        format=1,
        platform=Platform(
            machine=os.uname().machine, glibc="2.17", python="3.11.7", vllm="1", torch="", coldstream="1"
        ),
        image=Image(
            size=packed.size, unpacked=packed.unpacked, files=packed.files, chunk_bytes=CHUNK_BYTES, chunks=chunks
        ),
        unpacker=Unpacker(size=len(tool), sha256=hashlib.sha256(tool).hexdigest()),
    )
    shutil.rmtree(root)
    return ArtificialRuntime(manifest=manifest, image=folder / "image", unpacker=tool)


def chunked(data: bytes, size: int) -> list[bytes]:
    """Pieces of this size, the last one smaller."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def _evil_tool(folder: Path) -> bytes:
    for name in ("ld.so", "unsquashfs"):
        (folder / name).write_text(_EVIL)
        (folder / name).chmod(0o755)
    subprocess.run(["tar", "-cf", "tool", "ld.so", "unsquashfs"], cwd=folder, check=True)
    return (folder / "tool").read_bytes()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a start ended."""

    code: int
    out: str
    err: str

    @property
    def is_started(self) -> bool:
        """Whether it started the runtime, with all of its files."""
        return self.code == 0 and "\nfiles are whole\n" in self.out

    @property
    def root(self) -> Path:
        """Where the runtime lies."""
        match = re.search(r"^started (.*)/bin/python3$", self.out, re.MULTILINE)
        assert match, (self.out, self.err)
        return Path(match[1])

    @property
    def environ(self) -> dict[str, str]:
        """What the runtime was started with."""
        return dict(line.split("=", 1) for line in self.out.splitlines() if re.match(r"\w+=", line))


class BareNode:
    """A machine with Python, and with nothing in the environment but the settings of a bucket.

    Attributes:
        base: The folder for runtimes.
        environ: What it starts with.
        python: The interpreter that it has.
        program: The bootstrap program, which requests each chunk once if all requests succeed.
    """

    def __init__(self, base: Path, environ: Mapping[str, str], *, python: str = PYTHON) -> None:
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        # On a slow machine, chunks would be requested again while the first ones are on their way.
        self.program = changed_bootstrap(base / "bootstrap.py", "wait(running, timeout=1,", "wait(running, timeout=60,")
        self.environ = {
            **environ,
            "PATH": os.defpath,
            "COLDSTREAM_RUNTIME_DIR": str(base),
            "COLDSTREAM_RUNTIME_MODE": "unpack",
            "COLDSTREAM_RETRY_SECONDS": "1",
            "SENTINEL": str(base / SENTINEL),
        }
        self.python = python

    @property
    def sentinel(self) -> Path:
        """Exists when a program was executed that nobody had published."""
        return self.base / SENTINEL

    @property
    def runtimes(self) -> Path:
        """The folder of the runtimes that it has."""
        return self.base / f"coldstream-runtimes-{os.geteuid()}"

    def begin(self, digest: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Begins a start."""
        return subprocess.Popen(
            [self.python, options.pop("program", self.program), digest, *(arguments or ("serve", "org/m"))],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"cwd": "/", "stdin": subprocess.DEVNULL, **options},
        )

    def start(self, digest: str, *arguments: str, **options: Any) -> Ended:
        """Starts a runtime, and waits for the end of its program."""
        with self.begin(digest, *arguments, **options) as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        for name in ("R2_SECRET_KEY", "R2_SESSION_TOKEN"):
            if self.environ.get(name):
                assert self.environ[name] not in err
        assert not self.sentinel.exists()
        # A slow start says what takes so long.
        return Ended(code=process.returncode, out=out, err=re.sub(r"(?m)^runtime: .*\n", "", err))

    def refused(self, digest: str, code: int, *words: str, **options: Any) -> str:
        """Starts a runtime, which must end with this code and one line that has these words."""
        ended = self.start(digest, **options)
        assert ended.code == code, (ended.code, ended.err)
        assert ended.out == ""
        lines = [line for line in ended.err.splitlines() if not line.startswith("runtime: ")]
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("error: ")
        for word in words:
            assert word in lines[0], lines[0]
        return lines[0]


class Venv:
    """A virtual environment with vLLM and coldstream, as their installers leave them."""

    def __init__(self, root: Path, *, python: str = sys.executable) -> None:
        self.root = root
        subprocess.run([python, "-m", "venv", "--without-pip", root], check=True)
        (self.site,) = root.glob("lib/python*/site-packages")
        self.add("vllm", "0.32.0+cpu")
        info = self.add("coldstream", "0.1.0")
        (info / "entry_points.txt").write_text("[vllm.general_plugins]\ncoldstream = coldstream.cli:main\n")
        # What stands in for `coldstream.cli` prints its arguments.
        (self.site / "coldstream/cli.py").write_text("import sys\ndef main(): print('coldstream', sys.argv[1:])\n")

    def add(self, name: str, version: str, *, editable: bool = False) -> Path:
        """Installs a package; returns its metadata's folder."""
        (self.site / name).mkdir()
        (self.site / name / "__init__.py").write_text(f"name = {name!r}\n")
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if editable:
            (info / "direct_url.json").write_text('{"url": "file:///src", "dir_info": {"editable": true}}')
        return info

    def script(self, name: str, start: str) -> None:
        """Installs a program with these first lines, in which PYTHON is the environment's interpreter."""
        path = self.root / "bin" / name
        source = "import os, sys, vllm\nprint(vllm.name, vllm.__file__, sys.argv[1:])\n"
        path.write_text(start.replace("PYTHON", f"{self.root}/bin/python3") + source)
        path.chmod(0o755)

    def relocated(self, out: Path) -> Path:
        out.mkdir(parents=True)
        environment.relocate(environment.inspect(self.root), out)
        return out


def interpreters() -> Sequence[str]:
    """The oldest and the newest supported Python that this machine has, and that of the system."""
    beside = Path(sys.base_prefix).parent.glob("3.*/bin/python3")
    versions = sorted((int(path.parent.parent.name.split(".")[1]), str(path)) for path in beside)
    supported = [path for minor, path in versions if minor >= 8] or [sys.executable]
    return sorted({PYTHON, supported[0], supported[-1]})
