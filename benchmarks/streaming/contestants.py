"""The rows: what is started for each, and in which environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.operate.bench.contestant import CHUNK_BYTES, READERS
from streaming.model import Model

RUNAI_CLIENTS = (1, 4, 8, 16, 32)
_HERE = Path(__file__).resolve().parent
# What may steer a loader from outside; every row starts without it.
_FOREIGN = ("AWS_", "R2_", "HF_", "COLDSTREAM_", "RUNAI_", "CURL_", "SSL_", "REQUESTS_", "PYTHON", "BENCH_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True)
class Served:
    """A model on a server.

    Attributes:
        url: `http://host:port` or `https://host:port`.
        authority: The PEM file that proves it, over TLS.
        model: What is served.
    """

    url: str
    authority: Path | None
    model: Model

    @property
    def uri(self) -> str:
        """The model's address for readers of plain HTTP."""
        return f"{self.url}/{self.model.path}"


@dataclass(frozen=True)
class Contestant:
    """One row.

    Attributes:
        name: As it is shown.
        command: What is started.
        environ: Its whole environment.
        imports_count: Whether its imports are part of what it is charged with. coldstream's and the C loop's are; the
            others' are not, since their import of torch is no property of their reading.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str] = field(repr=False)
    imports_count: bool = False


class Contestants:
    """Makes the rows for a server."""

    def __init__(self, *, python: Path, floor: Path, scratch: Path) -> None:
        """Takes the set-up.

        Args:
            python: Of the virtual environment with the other loaders.
            floor: The compiled C loop.
            scratch: An empty folder on tmpfs, for loaders that write files.
        """
        self._python, self._floor, self._scratch = python, floor, scratch

    def coldstream(self, served: Served, *options: str, name: str = "coldstream") -> Contestant:
        """`coldstream load`, everything counted: interpreter, imports, streamer, workers."""
        command = [sys.executable, "-m", "coldstream", "load", served.uri, "--json", "--no-cache", *options]
        return Contestant(name, command, environment(served), imports_count=True)

    def script(
        self, served: Served, mode: str, *, environ: Mapping[str, str] | None = None, **options: object
    ) -> Contestant:
        """A program that uses the library: see `coldstream` in coldstream.operate.bench.programs.readers."""
        python = Path(sys.executable)
        return self._reader(
            "coldstream", served, name=f"coldstream, {mode}", python=python, environ=environ, mode=mode, **options
        )

    def floor(self, served: Served, *, threads: int = 4) -> Contestant:
        """The C loop; over TLS it reads ahead 64 KiB, which is a little cheaper than reading record by record."""
        host, port = served.url.rpartition("/")[2].split(":")
        tls = ["--tls", str(served.authority), "--read-ahead", "65536"] if served.authority else []
        files = [f"/{served.model.path}/{name}:{size}" for name, size in served.model.files]
        command = [str(self._floor), *tls, "--threads", str(threads), "--chunk", str(CHUNK_BYTES), host, port, *files]
        return Contestant("C floor", command, environment(served), imports_count=True)

    def runai(self, served: Served, clients: int | None, *, verify: bool = False) -> Contestant:
        """Run:ai Model Streamer with its default or a given number of clients."""
        name = "Run:ai, default" if clients is None else f"Run:ai, {clients} client{'s' if clients > 1 else ''}"
        more = {} if clients is None else {"RUNAI_STREAMER_CONCURRENCY": str(clients)}
        return self._reader("runai", served, name=name, environ=more, verify=verify)

    def mapped(self, served: Served, *, reuse: bool) -> Contestant:
        """Safetensors' mmap and a copy of each tensor, from tmpfs."""
        name = "safetensors mmap + copy" + (" to reused memory" if reuse else "")
        return self._reader("mapped", served, name=name, folder=str(served.model.folder), reuse=reuse)

    def other(self, reader: str, served: Served, *, verify: bool = False) -> Contestant:
        """obstore, boto3, s3fs or huggingface."""
        return self._reader(reader, served, verify=verify)

    def _reader(
        self,
        reader: str,
        served: Served,
        *,
        name: str | None = None,
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
            "authority": str(served.authority) if served.authority else None,
            "threads": 8,
            "chunk_bytes": CHUNK_BYTES,
            "scratch": str(self._scratch),
            "verify": False,
            **options,
        }
        command = [str(python or self._python), str(READERS), reader]
        options = {"BENCH_OPTIONS": json.dumps(request)}
        return Contestant(name or reader, command, {**environment(served), **(environ or {}), **options})


def environment(served: Served) -> dict[str, str]:
    """The caller's environment without anything that steers a loader, and with what all need for this server."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and name.lower() not in _PROXIES
    }
    plain |= {
        "AWS_ENDPOINT_URL": served.url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "benchmark-key",
        "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        # Run:ai's default gives up on a part after a second.
        "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": "60000",
        "RUNAI_STREAMER_S3_TIMEOUT": "60000",
        "RUNAI_STREAMER_LOG_LEVEL": "ERROR",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if served.authority:
        plain |= dict.fromkeys(("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), str(served.authority))
    return plain


def compile_floor(into: Path) -> Path:
    """Compiles c_floor.c with the system's compiler and OpenSSL."""
    program = into / "c_floor"
    source = _HERE.parent / "c_floor.c"
    command = ["cc", "-O2", "-pthread", "-o", str(program), str(source), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cannot compile {source.name} (apt-get install gcc libssl-dev):\n{done.stderr}")
    return program
