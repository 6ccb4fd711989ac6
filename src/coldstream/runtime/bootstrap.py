#!/usr/bin/env python3
"""Starts coldstream on a machine that has Python 3.8, keys for the bucket, and nothing else.

    python3 bootstrap.py sha256:DIGEST serve org/model [flags] [-- vLLM's flags]

DIGEST is the SHA-256 of the runtime's manifest in the bucket; `coldstream runtime publish` prints it. The manifest has
the SHA-256 of the unpacker and of every chunk of the image. So nothing runs here that the author of the command did not
choose, even if others can write to the bucket. The image is downloaded, mounted (by root) or unpacked, and executed in
this process's place. It stays for the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from http import client
from typing import Any, Iterator
from urllib import parse, request

CONNECTIONS = 40  # R2 and S3 give each 20 to 70 MB/s; each holds a chunk of 4 MiB
REFUSALS = {"RequestTimeTooSkewed": "this machine's clock is wrong", "ExpiredToken": "they have expired"}


class StartError(Exception):
    """Ends the start with one of coldstream's exit codes (docs/exit-codes.md) and a message."""


def setting(*names: str) -> str:
    return next((os.environ[name].strip() for name in names if os.environ.get(name, "").strip()), "")


def content(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""


def first(pattern: str, text: str, default: str = "") -> str:
    match = re.search(pattern, text)
    return match[1] if match else default


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


class BucketClient:
    """Signed, verified GETs from the store that coldstream's own settings name. One connection for each thread."""

    def __init__(self) -> None:
        store = setting("COLDSTREAM_STORE") or "s3://" + setting("R2_BUCKET")
        if not re.match("s3://.", store):
            raise StartError(2, "no bucket is configured: set R2_BUCKET, or COLDSTREAM_STORE=s3://bucket")
        self.root, region = f"{store[5:].strip('/')}/.coldstream/runtimes", setting("AWS_REGION", "AWS_DEFAULT_REGION")
        endpoint = setting("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        self.region = region or ("auto" if "r2.cloudflarestorage" in endpoint else "us-east-1")
        self.url = parse.urlsplit(endpoint or f"https://s3.{self.region}.amazonaws.com")
        r2 = setting("R2_ACCESS_KEY"), setting("R2_SECRET_KEY"), setting("R2_SESSION_TOKEN")
        aws = setting("AWS_ACCESS_KEY_ID"), setting("AWS_SECRET_ACCESS_KEY"), setting("AWS_SESSION_TOKEN")
        self.key, self.secret, self.token = r2 if r2[0] else aws
        if not self.key or not self.secret:
            raise StartError(12, "no keys for the bucket: set R2_ACCESS_KEY and R2_SECRET_KEY")
        self.host = self.url.hostname or ""
        proxy = "" if request.proxy_bypass(self.host) else request.getproxies().get(self.url.scheme, "")
        self.proxy = parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}") if proxy else None
        ca = setting("AWS_CA_BUNDLE") or None
        self.tls = ssl.create_default_context(cafile=ca) if self.url.scheme == "https" else None
        self.local = threading.local()

    def connection(self) -> client.HTTPConnection:
        made: client.HTTPConnection | None = getattr(self.local, "connection", None)
        if made is None:
            port = self.url.port or (443 if self.tls else 80)
            server = (self.proxy.hostname or "", self.proxy.port or 80) if self.proxy else (self.host, port)
            made = client.HTTPConnection(*server, timeout=20)
            if self.tls:
                made = client.HTTPSConnection(*server, timeout=20, context=self.tls)
            if self.proxy and self.tls:
                made.set_tunnel(self.host, port)
            self.local.connection = made
        return made

    def get(self, name: str, span: tuple[int, int] | None) -> bytes:
        path = parse.quote(f"/{self.root}/{name}")
        # Signed by AWS's signature, version 4.
        now, empty = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), hashlib.sha256().hexdigest()
        headers = {"host": self.url.netloc, "x-amz-content-sha256": empty, "x-amz-date": now}
        headers.update({"x-amz-security-token": self.token} if self.token else {})
        names, lines = ";".join(sorted(headers)), "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = f"GET\n{path}\n\n{lines}\n{names}\n{empty}"
        scope, key = f"{now[:8]}/{self.region}/s3/aws4_request", f"AWS4{self.secret}".encode()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        for part in [*scope.split("/"), text]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"Credential={self.key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}"
        headers.update({"range": f"bytes={span[0]}-{span[1] - 1}"} if span else {})
        target = f"{self.url.scheme}://{self.url.netloc}{path}" if self.proxy and not self.tls else path
        self.connection().request("GET", target, headers=headers)
        response = self.connection().getresponse()
        body = response.read(64 << 20)
        if response.status in (200, 206):
            return body
        code = first(r"<Code>(\w+)</Code>", body[:4096].decode("utf-8", "replace"))
        if response.status in (429, 500, 502, 503, 504) or code == "RequestTimeout":
            raise OSError(f"HTTP {response.status} {code}")
        if response.status == 404:
            raise StartError(10, f"s3://{self.root}/{name} does not exist; see: coldstream runtime list")
        reason = REFUSALS.get(code, f"HTTP {response.status} {code}")
        raise StartError(12, f"the keys may not read s3://{self.root}/{name}: {reason}")

    def fetch(self, name: str, sha256: str, span: tuple[int, int] | None = None) -> bytes:
        """Verified bytes. Tries again for COLDSTREAM_RETRY_SECONDS."""
        begin, patience = time.monotonic(), float(setting("COLDSTREAM_RETRY_SECONDS") or 180)
        while True:
            try:
                data = self.get(name, span)
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
                error = StartError(13, f"s3://{self.root}/{name} is not what was published: its SHA-256 differs")
                patience = 5  # it may have been damaged on the way
            except ssl.SSLCertVerificationError as exc:
                help_ = "install ca-certificates, or set SSL_CERT_FILE, and check the clock"
                raise StartError(1, f"{self.url.netloc}: {exc.verify_message}; {help_}") from None
            except (OSError, client.HTTPException) as exc:
                error = StartError(1, f"{self.url.netloc} cannot be read: {str(exc) or type(exc).__name__}")
            self.connection().close()
            self.local.connection = None
            if time.monotonic() - begin > patience:
                raise error
            time.sleep(min(5, 0.2 + (time.monotonic() - begin) / 4))


def download(bucket: BucketClient, name: str, image: dict[str, Any], path: str) -> str:
    """Brings an image over many connections; what an interrupted start has brought is kept. Returns what limited it."""
    is_resumed, size, seconds = os.path.exists(path), image["chunk_bytes"], {"link": 0.0, "disk": 0.0}
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, image["size"])

    def bring(index: int) -> None:
        start, sha256, begin = index * size, image["chunks"][index], time.monotonic()
        if is_resumed and hashlib.sha256(os.pread(file, size, start)).hexdigest() == sha256:
            return
        data = bucket.fetch(name, sha256, (start, min(start + size, image["size"])))
        read = time.monotonic()
        if os.pwrite(file, data, start) < len(data):  # if two connections bring one chunk, their bytes are equal
            raise OSError(f"{path}: no space left")
        seconds["link"] += read - begin
        seconds["disk"] += time.monotonic() - read

    begin = shown = time.monotonic()
    left, cpu, pool = set(range(len(image["chunks"]))), time.process_time(), ThreadPoolExecutor(CONNECTIONS)
    running = {pool.submit(bring, index): index for index in sorted(left)}
    while left:
        done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            left.discard(running.pop(future))
        if not done and len(running) == len(left) < CONNECTIONS:  # the last ones are slow: they may be overtaken, once
            running.update({pool.submit(bring, index): index for index in left})
        if left and time.monotonic() - shown > (1 if sys.stderr.isatty() else 5):
            shown = time.monotonic()
            percent = 100 - 100 * len(left) // len(image["chunks"])
            print(f"runtime: {percent} % of {image['size'] / 1e6:.0f} MB", file=sys.stderr)
    share = (time.process_time() - cpu) / (time.monotonic() - begin) / len(os.sched_getaffinity(0))
    return "processor" if share > 0.8 else max(seconds, key=lambda what: seconds[what])


def check_platform(needs: dict[str, str]) -> None:
    driver = first(r" (\d+\.[\d.]+) ", content("/proc/driver/nvidia/version"), "none")
    libc = os.confstr("CS_GNU_LIBC_VERSION") or "none"
    for what, present in (("machine", os.uname().machine), ("glibc", libc), ("driver", driver)):
        if present != needs[what] if what == "machine" else numbers(present) < numbers(needs[what] or ""):
            raise StartError(2, f"the runtime needs {what} {needs[what]}, and this machine has {present}")


def places() -> Iterator[tuple[str, str | None]]:
    """Where a runtime may lie, the fastest first: a folder of our own in each, or why there is none."""
    cache, chosen = setting("COLDSTREAM_CACHE_DIR"), setting("COLDSTREAM_RUNTIME_DIR")
    bases = ["/dev/shm", cache or os.path.expanduser("~/.cache/coldstream"), "/var/tmp", "/tmp"]
    for base in [chosen] if chosen else bases:
        folder = os.path.join(base, f"coldstream-runtimes-{os.geteuid()}")
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            info = os.lstat(folder)
            # Others may be able to write to the base, but not to what is executed.
            is_ours = info.st_uid == os.geteuid() and info.st_mode & 0o170022 == 0o40000
            yield folder, None if is_ours else "belongs to others"
        except OSError as exc:
            yield folder, exc.strerror or str(exc)


def choose(digest: str, image: dict[str, Any], *, is_mounted: bool) -> str:
    """The first place with room, from which programs may run."""
    need, faults = image["size"] + (0 if is_mounted else image["unpacked"]) + (64 << 20), []
    memory = int(first(r"MemAvailable:\s*(\d+)", content("/proc/meminfo"), "0")) << 10
    limit, used = content("/sys/fs/cgroup/memory.max").strip(), content("/sys/fs/cgroup/memory.current")
    memory = min(memory, int(limit) - int(used)) if limit.isdigit() else memory
    for folder, fault in places():
        if not fault:
            info, part = os.statvfs(folder), os.path.join(folder, digest, "image.part")
            room = info.f_bavail * info.f_frsize + (os.stat(part).st_blocks * 512 if os.path.exists(part) else 0)
            if folder.startswith("/dev/shm/"):
                room = min(room, memory // 3)  # the model needs memory, too
            if room >= need and (is_mounted or not info.f_flag & os.ST_NOEXEC):
                return os.path.join(folder, digest)
            faults.append(f"{folder} {'has %d MiB' % (room >> 20) if room < need else 'is mounted noexec'}")
        else:
            faults.append(f"{folder} {fault}")
    raise StartError(1, f"the runtime needs {need >> 20} MiB: {'; '.join(faults)} (COLDSTREAM_RUNTIME_DIR chooses)")


def unpack(bucket: BucketClient, digest: str, sha256: str, folder: str) -> None:
    """With the unpacker that was published with the image, which needs nothing of this system."""
    tool, tree, image = (os.path.join(folder, name) for name in ("unpacker", "tree", "image"))
    with tarfile.open(fileobj=io.BytesIO(bucket.fetch(f"{digest}/unpacker", sha256))) as archive:
        archive.extractall(tool)
    flags = ("-q", "-n", "-f", "-no-xattrs", "-da", "16", "-fr", "16")  # by default, its queues take 512 MiB
    program = (f"{tool}/ld.so", "--library-path", tool, f"{tool}/unsquashfs", *flags)
    if subprocess.call([*program, "-d", f"{tree}.part", image], stdout=subprocess.DEVNULL):
        raise StartError(1, f"the runtime cannot be unpacked to {tree}")
    os.rename(f"{tree}.part", tree)
    os.unlink(image)


def provide(digest: str, folders: list[str], phases: list[list[Any]]) -> str:
    """The root of the runtime, brought here unless an earlier start did."""
    for folder in folders:
        mounted, tree = os.path.join(folder, digest, "mount"), os.path.join(folder, digest, "tree")
        if os.path.ismount(mounted) or os.path.isdir(tree):
            return tree if os.path.isdir(tree) else mounted
    bucket, began = BucketClient(), time.time()
    manifest = json.loads(bucket.fetch(f"{digest}/manifest.json", digest))
    check_platform(manifest["platform"])
    capabilities = int(first(r"CapEff:\s*(\w+)", content("/proc/self/status"), "0"), 16)
    can_mount = capabilities >> 21 & 1 and os.path.exists("/dev/loop-control") and shutil.which("mount")
    is_mounted = bool(can_mount) and setting("COLDSTREAM_RUNTIME_MODE") != "unpack"
    folder = choose(digest, manifest["image"], is_mounted=is_mounted)
    image, point = os.path.join(folder, "image"), os.path.join(folder, "mount")
    os.makedirs(point, 0o700, exist_ok=True)
    if not os.path.exists(image):
        limit = download(bucket, f"{digest}/image", manifest["image"], f"{image}.part")
        os.rename(f"{image}.part", image)
        phases.append(["fetch", began, time.time(), limit])
    began, is_mounted = time.time(), is_mounted and not subprocess.call(["mount", "-o", "loop,ro,nosuid", image, point])
    if not is_mounted:
        unpack(bucket, digest, manifest["unpacker"]["sha256"], folder)
    phases.append(["mount" if is_mounted else "unpack", began, time.time(), "processor"])
    return point if is_mounted else os.path.join(folder, "tree")


def start(root: str, arguments: list[str], facts: dict[str, Any]) -> None:
    """Becomes coldstream."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environ["COLDSTREAM_BOOTSTRAP"] = json.dumps(facts)
    environ["LD_LIBRARY_PATH"] = f"{root}/lib:{root}/lib/system:{setting('LD_LIBRARY_PATH')}".rstrip(":")
    environ["PATH"] = f"{root}/bin:{os.environ.get('PATH', os.defpath)}"
    environ.setdefault("USER", "coldstream")  # a user id without a name has none
    if not os.access(os.path.expanduser("~"), os.W_OK):
        environ["HOME"] = os.path.dirname(root)
    python = f"{root}/bin/python3" if os.path.exists(f"{root}/bin/python3") else sys.executable
    os.execve(python, [python, "-s", f"{root}/bin/coldstream", *arguments], environ)


def main(arguments: list[str]) -> None:
    began, phases = time.time(), []  # type: float, list[list[Any]]
    digest = first("^(?:sha256:)?([0-9a-f]{64})$", arguments[0] if len(arguments) > 1 else "")
    if not digest:
        raise StartError(2, "usage: bootstrap.py sha256:DIGEST serve MODEL …")
    folders = [folder for folder, fault in places() if fault is None]
    # One start at a time brings a runtime to this machine; the others wait, and find it.
    with open(os.path.join(folders[0], "lock") if folders else os.devnull, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = provide(digest, folders, phases)
    start(root, arguments[1:], {"began": began, "phases": phases})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        os._exit(130)
    except (StartError, OSError) as exc:
        code, message = exc.args if isinstance(exc, StartError) else (1, exc)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(code)  # at once: threads may be waiting for the bucket
