"""The rows: the command and the environment of each, as contestants of `coldstream bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coldstream.operate.bench.contestant import CHUNK_BYTES, MOUNT, READERS, Contestant, clean_environment
from coldstream.operate.bench.programs.mount import mount_environment
from coldstream.operate.demo_bucket import find_rclone
from streaming.model import Model

RUNAI_CLIENTS = (1, 4, 8, 16, 32)
_HERE = Path(__file__).resolve().parent
# These are not among the readers of `coldstream bench`.
_OWN_READERS = ("first", "huggingface", "leave", "mapped", "repeated")
# Besides what `coldstream bench` removes: no row uses a proxy or the machine's certificates.
_FOREIGN = ("CURL_", "SSL_", "REQUESTS_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True)
class Served:
    """A model on a server.

    Attributes:
        url: `http://host:port` or `https://host:port`.
        authority: The PEM file with its CA, for TLS.
        model: What is served.
    """

    url: str
    authority: Path | None
    model: Model

    @property
    def uri(self) -> str:
        """The model's address for readers of plain HTTP."""
        return f"{self.url}/{self.model.path}"

    @property
    def bucket_uri(self) -> str:
        """Its address for readers of a bucket, whose keys and endpoint are in the environment."""
        return f"s3://{self.model.path}"


class Contestants:
    """Makes the rows for a server.

    `python` is the interpreter with the other loaders, `floor` the compiled C loop, `scratch` an empty folder on tmpfs.
    """

    def __init__(self, *, python: Path, floor: Path, scratch: Path) -> None:
        self._python, self._floor, self._scratch = python, floor, scratch

    def coldstream(self, served: Served, *options: str, name: str = "coldstream", uri: str | None = None) -> Contestant:
        """`coldstream load`; its interpreter, imports and workers all count."""
        command = (sys.executable, "-m", "coldstream", "load", uri or served.uri, "--json", "--no-cache", *options)
        return Contestant(name=name, label=name, command=command, environ=environment(served))

    def script(
        self, served: Served, mode: str, *, environ: Mapping[str, str] | None = None, **options: object
    ) -> Contestant:
        """A program that uses the library: a mode of the reader `coldstream`, or `first` or `leave`."""
        reader = mode if mode in _OWN_READERS else "coldstream"
        name, python = f"coldstream, {mode}", Path(sys.executable)
        return self._reader(reader, served, name=name, python=python, environ=environ, mode=mode, **options)

    def floor(self, served: Served, *, threads: int = 4) -> Contestant:
        """The C loop; over TLS it reads ahead 64 KiB, which is a little cheaper than record by record."""
        host, port = served.url.rpartition("/")[2].split(":")
        tls = ["--tls", str(served.authority), "--read-ahead", "65536"] if served.authority else []
        files = [f"/{served.model.path}/{name}:{size}" for name, size in served.model.files]
        options = [*tls, "--threads", str(threads), "--chunk", str(CHUNK_BYTES)]
        command = (str(self._floor), *options, host, port, *files)
        return Contestant(name="C floor", label="C floor", command=command, environ=environment(served))

    def runai(self, served: Served, clients: int | None, *, verify: bool = False, retry_seconds: int = 0) -> Contestant:
        """Run:ai Model Streamer with its default or another number of clients; `retry_seconds` of 0 is its default."""
        name = "Run:ai, default" if clients is None else f"Run:ai, {clients} client{'s' if clients > 1 else ''}"
        environ = {} if clients is None else {"RUNAI_STREAMER_CONCURRENCY": str(clients)}
        if retry_seconds:
            name += ", retries"
            environ["RUNAI_STREAMER_S3_TIMEOUT"] = str(retry_seconds)
        return self._reader("runai", served, name=name, environ=environ, verify=verify)

    def repeated(self, served: Served, loader: str, *, repeats: int, clients: int | None = None) -> Contestant:
        """Several loads in one process, by coldstream or Run:ai with a number of clients."""
        python = Path(sys.executable) if loader == "coldstream" else self._python
        like = self.runai(served, clients) if loader == "runai" else self.coldstream(served)
        options = {"loader": loader, "mode": "drain", "repeats": repeats}
        return self._reader("repeated", served, name=like.name, python=python, environ=like.environ, **options)

    def mapped(self, served: Served, *, reuse: bool) -> Contestant:
        """The mmap of safetensors and a copy of each tensor, from tmpfs."""
        name = "safetensors mmap + copy" + (" to reused memory" if reuse else "")
        return self._reader("mapped", served, name=name, folder=str(served.model.folder), reuse=reuse)

    def mounted(self, served: Served, mode: str) -> Contestant:
        """`rclone mount` with a `--vfs-cache-mode`, whose cache is on tmpfs too, and safetensors' mmap of its files."""
        folder, cache = self._scratch / "mount", self._scratch / "mount-cache"
        row = self._reader("mapped", served, name=f"rclone mount, {mode}", folder=str(folder), reuse=False)
        mount = (sys.executable, str(MOUNT), str(find_rclone()), f"bucket:{served.model.path}/", str(folder))
        environ = mount_environment(row.environ, cache=cache, mode=mode)
        return replace(row, command=(*mount, *row.command), environ=environ, emptied=(folder, cache))

    def other(self, reader: str, served: Served, *, verify: bool = False) -> Contestant:
        """obstore, boto3, s3fs or huggingface."""
        return self._reader(reader, served, name=reader, verify=verify)

    def _reader(
        self,
        reader: str,
        served: Served,
        *,
        name: str,
        python: Path | None = None,
        environ: Mapping[str, str] | None = None,
        **options: object,
    ) -> Contestant:
        bucket, _, key = served.model.path.partition("/")
        request = {
            "url": served.url,
            "uri": served.uri,
            "bucket": bucket,
            "key": key,
            "files": served.model.files,
            "threads": 8,
            "chunk_bytes": CHUNK_BYTES,
            "scratch": str(self._scratch),
            "verify": False,
            **options,
        }
        return Contestant(
            name=name,
            label=name,
            command=(str(python or self._python), str(reader_program(reader)), reader),
            environ={**environment(served), **(environ or {}), "BENCH_OPTIONS": json.dumps(request)},
        )


def reader_program(reader: str) -> Path:
    """The program that has a reader."""
    return _HERE / "readers.py" if reader in _OWN_READERS else READERS


def environment(served: Served) -> dict[str, str]:
    """The caller's environment without variables that configure a loader, and with what all need for this server."""
    environ = {
        name: value
        for name, value in clean_environment(python_path=False).items()
        if not name.startswith(_FOREIGN) and name.lower() not in _PROXIES
    }
    environ |= {
        "AWS_ENDPOINT_URL": served.url,
        **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1"),
        "AWS_ACCESS_KEY_ID": "benchmark-key",
        "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        # Run:ai's default gives up on a part after a second.
        "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": "60000",
        "RUNAI_STREAMER_LOG_LEVEL": "ERROR",
    }
    if served.authority:
        environ |= dict.fromkeys(("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), str(served.authority))
    return environ


def compile_floor(into: Path) -> Path:
    """Compiles c_floor.c with the system's compiler and OpenSSL."""
    program = into / "c_floor"
    source = _HERE.parent / "c_floor.c"
    command = ["cc", "-O2", "-pthread", "-o", str(program), str(source), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cannot compile {source.name} (apt-get install gcc libssl-dev):\n{done.stderr}")
    return program
