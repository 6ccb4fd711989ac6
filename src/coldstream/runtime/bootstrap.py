#!/usr/bin/env python3
"""Starts coldstream on a machine that has Python 3.8, keys for the bucket, and nothing else.

    python3 bootstrap.py sha256:DIGEST serve org/model [flags] [-- vLLM's flags]

DIGEST is the SHA-256 of the runtime's manifest, which has those of the unpacker and of the image's chunks: nothing runs
that the author of the command did not choose. The image is mounted or unpacked, and executed in this process's place.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import io
import json
import os
import platform
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
        self.host, self.netloc = self.url.hostname or "", self.url.netloc.rpartition("@")[2]
        proxy = "" if request.proxy_bypass(self.host) else request.getproxies().get(self.url.scheme, "")
        self.proxy = parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}") if proxy else None
        user = parse.unquote(self.proxy.netloc.rpartition("@")[0] if self.proxy else "").encode()
        self.proxy_keys = {"proxy-authorization": f"Basic {base64.b64encode(user).decode()}"} if user else {}
        is_https, ca, self.local = self.url.scheme == "https", setting("AWS_CA_BUNDLE") or None, threading.local()
        self.prefix = f"http://{self.netloc}" if self.proxy and not is_https else ""
        if not self.host or self.url.scheme not in ("http", "https"):
            raise StartError(2, "the endpoint is not a URL: R2_ENDPOINT=https://ACCOUNT.r2.cloudflarestorage.com")
        try:
            self.port = self.url.port or (443 if is_https else 80)
            self.patience = float(setting("COLDSTREAM_RETRY_SECONDS") or 180)
            self.tls = ssl.create_default_context(cafile=ca) if is_https else None
        except (ValueError, OSError) as exc:
            raise StartError(2, f"the endpoint, AWS_CA_BUNDLE or COLDSTREAM_RETRY_SECONDS is wrong: {exc}") from None

    def connection(self) -> client.HTTPConnection:
        if not hasattr(self.local, "connection"):
            server = (self.proxy.hostname or "", self.proxy.port or 80) if self.proxy else (self.host, self.port)
            made = client.HTTPConnection(*server, timeout=20)
            if self.tls:
                made = client.HTTPSConnection(*server, timeout=20, context=self.tls)
            if self.proxy and self.tls:
                made.set_tunnel(self.host, self.port, self.proxy_keys)
            self.local.connection = made
        return self.local.connection  # type: ignore[no-any-return]

    def get(self, name: str, span: tuple[int, int] | None) -> bytes:
        path = parse.quote(f"/{self.root}/{name}")
        # Signed by AWS's signature, version 4.
        now, empty = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), hashlib.sha256().hexdigest()
        headers = {"host": self.netloc, "x-amz-content-sha256": empty, "x-amz-date": now}
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
        headers.update(self.proxy_keys if self.prefix else {})
        self.connection().request("GET", f"{self.prefix}{path}", headers=headers)
        response, size_max = self.connection().getresponse(), span[1] - span[0] if span else 64 << 20
        body = response.read(size_max)
        if len(body) < size_max and response.length:
            raise OSError("the connection was cut")
        if response.status in (200, 206, 416):  # 416: the object is smaller than what was published
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
        begin, patience = time.monotonic(), self.patience
        while True:
            try:
                data = self.get(name, span)
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
                error = StartError(13, f"s3://{self.root}/{name} is not what was published: its SHA-256 differs")
                patience = min(patience, 5)  # it may have been damaged on the way
            except ssl.SSLCertVerificationError as exc:
                raise StartError(1, f"{self.netloc}: {exc.verify_message} (SSL_CERT_FILE, or the clock?)") from None
            except (OSError, client.HTTPException) as exc:
                error = StartError(1, f"{self.netloc} cannot be read: {str(exc) or type(exc).__name__}")
            self.connection().close()  # the next request opens it again
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
            if (index := running.pop(future)) in left:
                future.result()
                left.discard(index)
        if not done and len(running) == len(left) < CONNECTIONS:  # the last ones are slow: they may be overtaken, once
            running.update({pool.submit(bring, index): index for index in left})
        if left and time.monotonic() - shown > (1 if sys.stderr.isatty() else 5):
            shown = time.monotonic()
            print(f"runtime: {1 - len(left) / len(image['chunks']):.0%} of {image['size'] >> 20} MiB", file=sys.stderr)
    share = (time.process_time() - cpu) / (time.monotonic() - begin) / len(os.sched_getaffinity(0))
    return "processor" if share > 0.8 else max(seconds, key=lambda what: seconds[what])


def check_platform(needs: dict[str, str]) -> None:
    driver = first(r" (\d+\.[\d.]+) ", content("/proc/driver/nvidia/version"), "none")
    libc = platform.libc_ver()[1] or "none"
    for what, present in (("machine", os.uname().machine), ("glibc", libc), ("driver", driver)):
        has, least = ([int(part) for part in re.findall(r"\d+", text)] for text in (present, needs[what] or ""))
        if present != needs[what] if what == "machine" else has < least:
            raise StartError(2, f"the runtime needs {what} {needs[what]}, and this machine has {present}")


def places() -> Iterator[tuple[str, str | None]]:
    """Where a runtime may lie, the fastest first: a folder that no one else can write to, or why there is none."""
    cache, chosen = setting("COLDSTREAM_CACHE_DIR"), setting("COLDSTREAM_RUNTIME_DIR")
    cache = os.path.expanduser(cache or os.path.join(setting("XDG_CACHE_HOME") or "~/.cache", "coldstream"))
    cache = re.sub("^~.*", "/tmp", cache)  # a user id without a name has no home
    for base in [chosen] if chosen else ["/dev/shm", cache, "/var/tmp", "/tmp"]:
        folder = os.path.abspath(os.path.join(base, f"coldstream-runtimes-{os.geteuid()}"))
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            info = os.lstat(folder)
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
    for folder, refused in places():
        fault = refused
        if not refused:
            info, path = os.statvfs(folder), os.path.join(folder, digest, "image")
            room = info.f_bavail * info.f_frsize + (os.stat(path).st_blocks * 512 if os.path.exists(path) else 0)
            room = min(room, memory // 3) if folder.startswith("/dev/shm/") else room  # the model needs memory, too
            if room >= need and (is_mounted or not info.f_flag & os.ST_NOEXEC):
                return os.path.join(folder, digest)
            fault = "has %d MiB" % (room >> 20) if room < need else "is mounted noexec"
        faults.append(f"{folder} {fault}")
    raise StartError(1, f"the runtime needs {need >> 20} MiB: {'; '.join(faults)} (COLDSTREAM_RUNTIME_DIR chooses)")


def provide(digest: str, folders: list[str], locks: list[int], phases: list[list[Any]]) -> str:
    """The root of the runtime, brought here unless an earlier start did."""
    for folder in folders:
        mounted, tree = os.path.join(folder, digest, "mount"), os.path.join(folder, digest, "tree")
        if os.path.ismount(mounted) or os.path.isdir(tree):
            return tree if os.path.isdir(tree) else mounted
        shutil.rmtree(f"{tree}.part", ignore_errors=True)
    bucket = BucketClient()
    manifest = json.loads(bucket.fetch(f"{digest}/manifest.json", digest))
    check_platform(manifest["platform"])
    capabilities = int(first(r"CapEff:\s*(\w+)", content("/proc/self/status"), "0"), 16)
    can_mount = capabilities >> 21 & 1 and os.path.exists("/dev/loop-control") and shutil.which("mount")
    is_mounted = bool(can_mount) and setting("COLDSTREAM_RUNTIME_MODE") != "unpack"
    began, folder = time.time(), choose(digest, manifest["image"], is_mounted=is_mounted)
    image, point, tree, tool = (os.path.join(folder, name) for name in ("image", "mount", "tree", "unpacker"))
    os.makedirs(point, 0o700, exist_ok=True)
    limit, fetched = download(bucket, f"{digest}/image", manifest["image"], image), time.time()
    phases.append(["fetch", began, fetched, limit])
    if is_mounted and subprocess.call(["mount", "-o", "loop,ro,nosuid", image, point], pass_fds=locks):
        os.environ["COLDSTREAM_RUNTIME_MODE"] = "unpack"  # perhaps in another place, which has room for the files
        return provide(digest, folders, locks, phases)
    if not is_mounted:
        unpacker = bucket.fetch(f"{digest}/unpacker", manifest["unpacker"]["sha256"])
        with tarfile.open(fileobj=io.BytesIO(unpacker)) as archive:
            archive.extraction_filter = lambda member, _: member  # of what was published
            archive.extractall(tool)
        flags = ("-q", "-n", "-f", "-no-xattrs", "-da", "8", "-fr", "8")  # by default, its queues take 512 MiB
        program = (f"{tool}/ld.so", "--library-path", tool, f"{tool}/unsquashfs", *flags)
        if subprocess.call([*program, "-d", f"{tree}.part", image], stdout=subprocess.DEVNULL, pass_fds=locks):
            raise StartError(1, f"the runtime cannot be unpacked to {tree}")
        os.rename(f"{tree}.part", tree)
        os.unlink(image)
    phases.append(["mount" if is_mounted else "unpack", fetched, time.time(), "processor"])
    return point if is_mounted else tree


def main(arguments: list[str]) -> None:
    began, phases = time.time(), []  # type: float, list[list[Any]]
    digest = first("^(?:sha256:)?([0-9a-f]{64})$", arguments[0] if len(arguments) > 1 else "")
    if not digest:
        raise StartError(2, "usage: bootstrap.py sha256:DIGEST serve MODEL ...")
    # One start at a time brings a runtime to this machine; the others wait, and find it. Its programs hold the locks,
    # too, so that if it is killed, the next start waits for their end. Two places may be one folder.
    folders = dict(sorted((os.stat(folder)[1:3], folder) for folder, fault in places() if fault is None))
    locks = [os.open(folder, os.O_RDONLY) for folder in folders.values()]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    root = provide(digest, [*folders.values()], locks, phases)
    used = os.open(f"{os.path.dirname(root)}/used", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    fcntl.flock(used, fcntl.LOCK_SH)  # while coldstream runs, `coldstream cache prune` leaves the runtime
    fcntl.fcntl(used, fcntl.F_SETFD, 0)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environ["COLDSTREAM_BOOTSTRAP"] = json.dumps({"began": began, "phases": phases})
    environ["LD_LIBRARY_PATH"] = f"{root}/lib:{root}/lib/system:{setting('LD_LIBRARY_PATH')}".rstrip(":")
    environ["PATH"] = f"{root}/bin:{os.environ.get('PATH', os.defpath)}"
    environ.setdefault("USER", "coldstream")  # a user id without a name has none
    if not os.access(os.path.expanduser("~"), os.W_OK):
        environ["HOME"] = os.path.dirname(root)
    python = f"{root}/bin/python3" if os.path.exists(f"{root}/bin/python3") else sys.executable
    os.execve(python, [python, "-s", f"{root}/bin/coldstream", *arguments[1:]], environ)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        os._exit(130)
    except (StartError, OSError) as exc:
        code, message = exc.args if isinstance(exc, StartError) else (1, exc)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(code)  # at once: threads may be waiting for the bucket
