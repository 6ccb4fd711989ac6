"""vLLM's start from a disk that has nothing in the page cache: alone, and with its files asked for ahead of it.

    make .venv-vllm/tests.done                                   vLLM's CPU build
    .venv/bin/python benchmarks/readahead.py --rounds 3 --markdown > section.md

Needs root, and the machine alone: it drops the page cache. vLLM's environment lies in an image, mounted from a disk
that is as far away as stated (slow_disk.py); each start begins with a fresh mount, of which the kernel has nothing.
`plain` is the disk of this machine, emptied from the page cache by /proc/sys/vm/drop_caches; `warm` the same with
everything there. One start on this machine's disk is recorded first.

A start is `vllm serve` on a small model, eager, until /health answers. With read-ahead, a process of Python begins at
the same moment, reads the record and asks. CPU seconds are those of vLLM's processes; the asking process's stand apart.
Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src"), str(_ROOT / "benchmarks")]

from coldstream.loading.options import Options  # noqa: E402
from coldstream.machine.process_session import session  # noqa: E402
from coldstream.node.load_service import VARIABLE, LoadService  # noqa: E402
from coldstream.node.readahead.read_record import decode  # noqa: E402
from coldstream.node.readahead.recording import record  # noqa: E402
from slow_disk import make_image, slow_disk  # noqa: E402

_ENVIRONMENT = _ROOT / ".venv-vllm"
_READY_SECONDS = 600
_DISKS = {
    # name: (seconds of a read, bytes per second); None for this machine's own.
    "network disk": (0.001, 125e6),
    "lazily pulled image": (0.01, 125e6),
    "plain": None,
    "warm": None,
}
_ASK = """
import json, resource, sys, time
from coldstream.node.readahead.prefetch import prefetch
from coldstream.node.readahead.read_record import decode
began = time.monotonic()
asked = prefetch(decode(open(sys.argv[1], "rb").read()))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "bytes": asked.bytes}))
"""


def main() -> None:
    """Runs the rounds and prints a table; writes benchmarks/out/readahead.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(_DISKS), help="some of: " + ", ".join(_DISKS))
    parser.add_argument("--markdown", action="store_true", help="print the section for docs/benchmarks.md")
    args = parser.parse_args()
    if os.geteuid():
        raise SystemExit("mounting and dropping the page cache need root")
    # Mounts and processes are left behind by nobody who may still clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    disks = args.only.split(",")
    samples: dict[str, dict[str, list[dict[str, float]]]] = {disk: {"alone": [], "ahead": []} for disk in disks}
    with tempfile.TemporaryDirectory(prefix="coldstream-ahead-") as temporary:
        folder = Path(temporary)
        _make_model(folder / "model")
        about = _record(folder)
        print(f"  recorded: {about}", file=sys.stderr)
        if any(_DISKS[disk] for disk in disks):
            make_image(_ENVIRONMENT, folder / "image")
        for number in range(args.rounds):
            for disk in disks:
                # The second of two starts finds the processor warmer; each is first in every other round.
                for way in ("alone", "ahead") if number % 2 == 0 else ("ahead", "alone"):
                    sample = _start(folder, disk, ahead=way == "ahead")
                    samples[disk][way].append(sample)
                    print(f"  round {number + 1}  {disk:<20} {way:<6} {sample}", file=sys.stderr)
    out = _ROOT / "benchmarks/out"
    out.mkdir(exist_ok=True)
    document = {"arguments": vars(args), "record": about, "samples": samples}
    (out / "readahead.json").write_text(json.dumps(document, indent=2))
    print(_markdown(args, about, samples) if args.markdown else json.dumps(document, indent=2))


def _make_model(folder: Path) -> None:
    sized = f"sized_llama(Path({str(folder)!r}), 10**8)"
    code = f"from pathlib import Path; from tests.vllm.models import sized_llama; {sized}"
    subprocess.run([str(_ENVIRONMENT / "bin/python"), "-c", code], cwd=_ROOT, check=True)


def _record(folder: Path) -> dict[str, float]:
    """Two starts on this machine's disk: the first fills vLLM's own caches, the second is recorded."""
    with LoadService("nothing", options=Options()) as service:
        with _vllm(folder, {}):
            pass
        with _vllm(folder, {VARIABLE: service.address}) as (pid, _):
            began, used = time.monotonic(), time.process_time()
            reads = record(session(pid), service.modules())
            seconds, cpu = time.monotonic() - began, time.process_time() - used
    data = reads.encode()
    (folder / "record").write_bytes(data)
    assert decode(data) == reads
    return {
        "files": len(reads.files),
        "bytes": sum(file.read_bytes for file in reads.files),
        "of_bytes": sum(file.size for file in reads.files),
        "encoded_bytes": len(data),
        "seconds": seconds,
        "cpu": cpu,
    }


def _start(folder: Path, disk: str, *, ahead: bool) -> dict[str, float]:
    place = _DISKS[disk]
    if place is not None:
        with slow_disk(folder / "image", latency_seconds=place[0], bytes_per_second=place[1]) as mounted:
            return _timed(folder, ahead=ahead, mounted=mounted)
    if disk == "plain":
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        # What measures is not what is measured.
        subprocess.run([sys.executable, "-c", _ASK.partition("began")[0]], env=_environ(), check=True)
    return _timed(folder, ahead=ahead, mounted=None)


def _timed(folder: Path, *, ahead: bool, mounted: Path | None) -> dict[str, float]:
    prefix = _inside(mounted)
    command = [*prefix, sys.executable, "-c", _ASK, str(folder / "record")]
    asking = subprocess.Popen(command, env=_environ(), stdout=subprocess.PIPE, text=True) if ahead else None
    with _vllm(folder, {}, prefix=prefix) as (pid, seconds):
        sample = {"seconds": seconds, "cpu": sum(map(_cpu_seconds, session(pid)))}
    if asking is not None:
        asked = json.loads(asking.communicate()[0])
        sample |= {f"asking_{name}": value for name, value in asked.items()}
    return sample


def _inside(mounted: Path | None) -> list[str]:
    """A command in front of others, for which the mounted environment lies where vLLM's does."""
    if mounted is None:
        return []
    script = f'mount --bind {mounted} {_ENVIRONMENT} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@contextmanager
def _vllm(folder: Path, environ: dict[str, str], *, prefix: list[str] | None = None) -> Iterator[tuple[int, float]]:
    """A vLLM that answers: its process and how long that took."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environ = {
        **_environ(),
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **environ,
    }
    flags = ["--enforce-eager", "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(port)]
    command = [*(prefix or ()), str(_ENVIRONMENT / "bin/vllm"), "serve", str(folder / "model"), *flags]
    with (folder / "log").open("wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > began + _READY_SECONDS:
                    raise SystemExit(f"vLLM did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
                time.sleep(0.05)
            yield process.pid, time.monotonic() - began
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT / "src")}


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    # Its own, and of children that have ended.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _markdown(
    args: argparse.Namespace, about: dict[str, float], samples: dict[str, dict[str, list[dict[str, float]]]]
) -> str:
    packages = str(next(_ENVIRONMENT.glob("lib/*/site-packages")))
    torch = next(iter(distributions(name="torch", path=[packages]))).version
    only = "" if args.only == ",".join(_DISKS) else f' --only "{args.only}"'
    machine = f"{os.cpu_count()} shared virtual cores, Linux {platform.release().split('-')[0]}"
    megabytes, of_megabytes = about["bytes"] / 1e6, about["of_bytes"] / 1e6
    lines = [
        f"`python benchmarks/readahead.py --rounds {args.rounds}{only}`, {machine},",
        f"Python {platform.python_version()}, vLLM 0.32.0 (CPU build, eager), torch {torch}.",
        "",
        f"The record names {about['files']:.0f} files and {megabytes:.0f} MB of their {of_megabytes:.0f} MB; it has",
        f"{about['encoded_bytes'] / 1e3:.0f} kB, and was made in {about['seconds']:.2f} s.",
        "",
        "| Disk | alone, s | read ahead, s | difference, s | CPU of vLLM: alone; ahead, s | asking: wall, CPU, s |",
        "|---|---|---|---|---|---|",
    ]
    for disk, ways in samples.items():
        place = _DISKS[disk]
        name = disk if place is None else f"{disk}: {place[0] * 1e3:g} ms, {place[1] / 1e6:g} MB/s"
        alone, ahead = ways["alone"], ways["ahead"]
        pairs = [{"x": b["seconds"] - a["seconds"]} for a, b in zip(alone, ahead, strict=True)]
        lines.append(
            f"| {name} | {_spread(alone, 'seconds')} | {_spread(ahead, 'seconds')} | {_spread(pairs, 'x', '+.1f')} | "
            f"{_spread(alone, 'cpu')}; {_spread(ahead, 'cpu')} | "
            f"{_spread(ahead, 'asking_seconds')}; {_spread(ahead, 'asking_cpu', '.2f')} |"
        )
    return "\n".join(lines)


def _spread(samples: list[dict[str, float]], key: str, form: str = ".1f") -> str:
    every = [sample[key] for sample in samples]
    return f"{statistics.median(every):{form}} ({min(every):{form}} to {max(every):{form}})"


if __name__ == "__main__":
    main()
