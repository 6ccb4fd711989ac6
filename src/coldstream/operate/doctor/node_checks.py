"""The machine: where copies lie, what memory and limits leave, and its GPUs."""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path

from coldstream.cache.cache import cache_of
from coldstream.engine.load_layout import connections_within, descriptors_for
from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.memory_budget import memory_shortage
from coldstream.loading.options import CONNECTIONS_MAX
from coldstream.machine import hardware
from coldstream.machine.disk import checked_root, size_and_free
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check
from coldstream.tune.model_facts import detect_gpus, path_to_bucket, read_model
from coldstream.tune.predict import NetworkPath
from coldstream.tune.recommended import advise
from coldstream.units import GIB, MIB, format_bytes, plural

# vLLM's logs, what it compiles, and a model's small files lie somewhere.
_FREE_BYTES_MIN = GIB
# The arena of the smallest load, and of one to a device (loading.prepare).
_ARENA_BYTES = 256 * MIB
_DEVICE_ARENA_BYTES = GIB
# File systems of other machines: locks and speed are theirs.
_REMOTE = re.compile(r"nfs\d?|cifs|smb\d?|9p|fuse\..*|ceph|glusterfs|lustre|beegfs|gcsfuse")
_MOUNTS = Path("/proc/mounts")
# CUDA's major version to the first driver that has it (docs.nvidia.com/deploy/cuda-compatibility).
_DRIVERS = {12: 525, 13: 580}


def cache_folder(case: Case) -> Check:
    """Whether the local cache lies where this user alone can write, on a disk of this machine."""
    root = cache_of(case.given).root
    there = checked_root(root, create=False)
    around = _existing(root)
    if not there and not os.access(around, os.W_OK | os.X_OK):
        return Check(
            name="cache folder",
            state="fail",
            found=f"{root} is not there, and this user may not write to {around}",
            hint="point COLDSTREAM_CACHE_DIR to a folder that this user can write",
        )
    kind = _file_system(around)
    found = f"{root}, {'private to this user' if there else 'not made yet'}{f', on {kind}' if kind else ''}"
    if kind and _REMOTE.fullmatch(kind):
        hint = "point COLDSTREAM_CACHE_DIR to a disk of this machine, NVMe at best"
        return Check(name="cache folder", state="warn", found=f"{found}: another machine's disk", hint=hint)
    if kind in {"tmpfs", "ramfs"}:
        hint = "point COLDSTREAM_CACHE_DIR to a disk: copies here take memory, and are gone after a restart"
        return Check(name="cache folder", state="warn", found=f"{found}, which is memory", hint=hint)
    return Check(name="cache folder", state="ok", found=found)


def disk(case: Case) -> Check:
    """Whether there is room: for what any start writes, and for a copy of the model."""
    cache = cache_of(case.given)
    _, free = size_and_free(_existing(cache.root))
    if free < _FREE_BYTES_MIN:
        return Check(
            name="disk",
            state="fail",
            found=f"{format_bytes(free)} free at {cache.root}; logs and vLLM's own caches need more",
            hint="free some space, for example: coldstream cache prune",
        )
    held = cache.entries()
    limit = cache.limit_bytes(sum(entry.bytes for entry in held))
    found = f"{format_bytes(free)} free; copies may take {format_bytes(limit)}"
    if not case.knows_model():
        return Check(name="disk", state="ok", found=found)
    if any(entry.name == case.name and entry.complete for entry in held):
        return Check(name="disk", state="ok", found=f"{found}; {case.name} is there: the next start is a warm one")
    size = case.checkpoint.bytes
    if size > limit:
        return Check(
            name="disk",
            state="warn",
            found=f"{found}, and this model has {format_bytes(size)}: no start of it will be a warm one",
            hint="raise COLDSTREAM_CACHE_LIMIT, or point COLDSTREAM_CACHE_DIR to a larger disk",
        )
    return Check(name="disk", state="ok", found=f"{found}; this model needs {format_bytes(size)}")


def memory(case: Case) -> Check:
    """Whether the memory that the container leaves is enough for the arena, and on the CPU for the model."""
    available, left = hardware.available_bytes(), hardware.left_in_group()
    needed, why = _memory_needed(case)
    contained = left is not None and left <= available
    found = f"{format_bytes(available)} available" + (", by the control group's limit" if contained else "")
    if available < needed:
        return Check(
            name="memory",
            state="fail",
            found=f"{found}; {why} needs {format_bytes(needed)}",
            hint="give the container more memory" if contained else "a machine with more memory, or end what takes it",
        )
    if not hardware.gpus() and (shortage := _shortage(case)) is not None:
        return Check(name="memory", state="warn", found=shortage[0], hint=shortage[1])
    return Check(name="memory", state="ok", found=f"{found}; {why} needs {format_bytes(needed)}")


def _shortage(case: Case) -> tuple[str, str] | None:
    """Whether vLLM itself would refuse to start, as it is started without flags."""
    if case.obstacle("vllm") is not None or case.program is None:
        return None
    return memory_shortage(case.program, Flags(()), case.environ)


def _memory_needed(case: Case) -> tuple[int, str]:
    largest = _largest_tensor(case)
    if hardware.gpus():
        return max(_DEVICE_ARENA_BYTES, 2 * largest), "the arena of a load to the GPU"
    if case.obstacle("vllm") is None and case.program is not None and case.knows_model():
        return case.checkpoint.bytes + _ARENA_BYTES, "vLLM on the CPU, which keeps the model,"
    return max(_ARENA_BYTES, 2 * largest), "the arena of a load"


def _largest_tensor(case: Case) -> int:
    if not case.knows_model():
        return 0
    shards = case.checkpoint.shards
    return max((tensor.stop - tensor.start for shard in shards for tensor in shard.header.tensors), default=0)


def locked_memory(case: Case) -> Check:
    """Whether the arena may be pinned, which copies to a GPU are twice as fast from."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shown = "no limit" if soft == resource.RLIM_INFINITY else format_bytes(soft)
    if not hardware.gpus():
        return Check(name="locked memory", state="ok", found=f"{shown}; it matters with a GPU alone")
    needed = max(_DEVICE_ARENA_BYTES, 2 * _largest_tensor(case))
    if soft != resource.RLIM_INFINITY and soft < needed:
        return Check(
            name="locked memory",
            state="warn",
            found=f"{shown} may be locked, the arena has {format_bytes(needed)}: some drivers refuse to pin it",
            hint="run: ulimit -l unlimited   (docker: --ulimit memlock=-1)",
        )
    return Check(name="locked memory", state="ok", found=shown)


def open_files(_case: Case) -> Check:
    """Whether the streamer may open its connections. It raises the soft limit to the hard one by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Check(name="open files", state="ok", found=f"soft limit {soft}, no hard one")
    enough = connections_within(hard, CONNECTIONS_MAX)
    found = f"hard limit {hard:,}, soft limit {soft:,}"
    if enough < CONNECTIONS_MAX:
        wanted = descriptors_for(CONNECTIONS_MAX)
        return Check(
            name="open files",
            state="fail",
            found=f"{found}: enough for {plural(enough, 'connection')}, {CONNECTIONS_MAX} want {wanted}",
            hint="raise it where the process is started: ulimit -Hn 4096; LimitNOFILE=; docker: --ulimit nofile=4096",
        )
    return Check(name="open files", state="ok", found=f"{found}; {CONNECTIONS_MAX} connections have room")


def gpu(case: Case) -> Check:
    """Whether the driver works, is new enough for the installed CUDA, and the model fits its GPUs."""
    cards = hardware.gpus()
    if not cards:
        if shutil.which("nvidia-smi") is None and not _devices():
            return Check(name="gpu", state="ok", found="none: needed where vLLM serves, and nowhere else")
        return Check(
            name="gpu",
            state="fail",
            found="the driver does not answer: nvidia-smi shows no GPU",
            hint="look at: nvidia-smi; in a container: --gpus all",
        )
    found = f"{len(cards)} x {cards[0].name}, capability {cards[0].capability}, driver {cards[0].driver or 'unknown'}"
    if (fault := _driver_fault(case, cards[0].driver)) is not None:
        return Check(name="gpu", state="fail", found=f"{found}: {fault}", hint="a newer driver, or a vLLM for its CUDA")
    if case.obstacle("vllm") is None and case.program is not None and case.program.is_cpu_build:
        hint = "install vLLM for CUDA in its place"
        return Check(name="gpu", state="warn", found=f"{found}: this vLLM is built for the CPU alone", hint=hint)
    if (shortage := _shortage(case)) is not None:
        return Check(name="gpu", state="fail", found=f"{found}: {shortage[0]}", hint=shortage[1])
    gpus = detect_gpus(cards)
    if gpus is not None and case.knows_model():
        assert case.name is not None
        fit = advise(read_model(case.name, case.settings), gpus, path_to_bucket(NetworkPath(), None)).fit
        if fit.fault is not None:
            return Check(
                name="gpu", state="fail", found=f"{found}: {fit.fault}", hint=f"see: coldstream tune {case.name}"
            )
    return Check(name="gpu", state="ok", found=found)


def _driver_fault(case: Case, driver: str) -> str | None:
    program = case.program if case.obstacle("vllm") is None else None
    if program is None or (here := _major(driver)) is None:
        return None
    for name, version in program.packages.items():
        major = _major(version) if re.fullmatch(r"nvidia_cuda_runtime(_cu\d+)?", name) else None
        if major is not None and here < _DRIVERS.get(major, 0):
            return f"CUDA {major}, which vLLM's torch is for, needs a driver from {_DRIVERS[major]} on"
    return None


def _major(version: str) -> int | None:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else None


def _devices() -> bool:
    return Path("/dev/nvidiactl").exists()


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _file_system(path: Path) -> str | None:
    """The kind of file system that a folder lies on; None when the system does not say."""
    try:
        text = _MOUNTS.read_text(errors="replace")
    except OSError:
        return None
    best, kind = "", None
    real = os.path.realpath(path)
    for line in text.splitlines():
        _, _, rest = line.partition(" ")
        point, _, rest = rest.partition(" ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # What was mounted last lies on top.
        if inside and len(point) >= len(best):
            best, kind = point, rest.partition(" ")[0]
    return kind
