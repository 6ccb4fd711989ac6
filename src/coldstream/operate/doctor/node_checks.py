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
from coldstream.operate.doctor.case import Case, DoctorCheck
from coldstream.operate.probe import Check, fail, ok, warn
from coldstream.tune.gpus import detect_gpus
from coldstream.tune.model_shape import read_model
from coldstream.tune.predict import NetworkPath, path_to_bucket
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
    """Whether the local cache lies where only this user can write, on a disk of this machine."""
    root = cache_of(case.configured).root
    there = checked_root(root, create=False)
    around = _existing(root)
    if not there and not os.access(around, os.W_OK | os.X_OK):
        return fail(
            f"{root} does not exist, and {around} is not writable by this user",
            hint="set COLDSTREAM_CACHE_DIR to a writable directory",
        )
    kind = _file_system(around)
    detail = f"{root}, {'private to this user' if there else 'not created yet'}{f', on {kind}' if kind else ''}"
    if kind and _REMOTE.fullmatch(kind):
        hint = "set COLDSTREAM_CACHE_DIR to a local disk, ideally NVMe"
        return warn(f"{detail}: a network file system", hint=hint)
    if kind in {"tmpfs", "ramfs"}:
        hint = "set COLDSTREAM_CACHE_DIR to a disk: files here take memory and are lost on a restart"
        return warn(f"{detail}, which is in memory", hint=hint)
    return ok(detail)


def disk(case: Case) -> Check:
    """Whether there is room: for what any start writes, and for a copy of the model."""
    cache = cache_of(case.configured)
    _, free = size_and_free(_existing(cache.root))
    if free < _FREE_BYTES_MIN:
        return fail(
            f"{format_bytes(free)} free at {cache.root}; logs and vLLM's caches need more",
            hint="free some space: coldstream cache prune",
        )
    held = cache.entries()
    limit = cache.limit_bytes(sum(entry.bytes for entry in held))
    detail = f"{format_bytes(free)} free; the cache may use {format_bytes(limit)}"
    if not case.knows_model():
        return ok(detail)
    if any(entry.name == case.name and entry.complete for entry in held):
        return ok(f"{detail}; {case.name} is cached: the next start is warm")
    size = case.checkpoint.bytes
    if size > limit:
        return warn(
            f"{detail}, and this model has {format_bytes(size)}: its starts will never be warm",
            hint="raise COLDSTREAM_CACHE_LIMIT, or set COLDSTREAM_CACHE_DIR to a larger disk",
        )
    return ok(f"{detail}; this model needs {format_bytes(size)}")


def memory(case: Case) -> Check:
    """Whether the memory that the container leaves is enough for the arena, and on the CPU for the model."""
    available, left = hardware.available_bytes(), hardware.left_in_group()
    needed, why = _memory_needed(case)
    contained = left is not None and left <= available
    detail = f"{format_bytes(available)} available" + (", limited by the control group" if contained else "")
    if available < needed:
        return fail(
            f"{detail}; {why} needs {format_bytes(needed)}",
            hint="give the container more memory" if contained else "use a machine with more memory, or free some",
        )
    if not hardware.gpus() and (shortage := _shortage(case)) is not None:
        return warn(shortage[0], hint=shortage[1])
    return ok(f"{detail}; {why} needs {format_bytes(needed)}")


def _shortage(case: Case) -> tuple[str, str] | None:
    """Whether vLLM itself would refuse to start, as it is started without flags."""
    if case.obstacle("vllm") is not None or case.program is None:
        return None
    return memory_shortage(case.program, Flags(()), case.environ)


def _memory_needed(case: Case) -> tuple[int, str]:
    largest = _largest_tensor(case)
    if hardware.gpus():
        return max(_DEVICE_ARENA_BYTES, 2 * largest), "the buffer of a load to the GPU"
    if case.obstacle("vllm") is None and case.program is not None and case.knows_model():
        return case.checkpoint.bytes + _ARENA_BYTES, "vLLM on the CPU, which holds the model,"
    return max(_ARENA_BYTES, 2 * largest), "the buffer of a load"


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
        return ok(f"{shown}; it only matters with a GPU")
    needed = max(_DEVICE_ARENA_BYTES, 2 * _largest_tensor(case))
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warn(
            f"{shown} may be locked, the buffer has {format_bytes(needed)}: some drivers refuse to pin it",
            hint="run: ulimit -l unlimited   (docker: --ulimit memlock=-1)",
        )
    return ok(shown)


def open_files(_case: Case) -> Check:
    """Whether the streamer may open its connections. It raises the soft limit to the hard one by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return ok(f"soft limit {soft}, no hard limit")
    enough = connections_within(hard, CONNECTIONS_MAX)
    detail = f"hard limit {hard:,}, soft limit {soft:,}"
    if enough < CONNECTIONS_MAX:
        descriptors = descriptors_for(CONNECTIONS_MAX)
        return fail(
            f"{detail}: enough for {plural(enough, 'connection')}, {CONNECTIONS_MAX} need {descriptors}",
            hint="run: ulimit -Hn 4096   (systemd: LimitNOFILE=4096; docker: --ulimit nofile=4096)",
        )
    return ok(f"{detail}; enough for {CONNECTIONS_MAX} connections")


def gpu(case: Case) -> Check:
    """Whether the driver works, is new enough for the installed CUDA, and the model fits its GPUs."""
    cards = hardware.gpus()
    if not cards:
        if shutil.which("nvidia-smi") is None and not _devices():
            return ok("none: only needed to serve")
        return fail(
            "the driver does not answer: nvidia-smi lists no GPU",
            hint="run: nvidia-smi   (docker: --gpus all)",
        )
    detail = f"{len(cards)} x {cards[0].name}, capability {cards[0].capability}, driver {cards[0].driver or 'unknown'}"
    if (fault := _driver_fault(case, cards[0].driver)) is not None:
        return fail(f"{detail}: {fault}", hint="install a newer driver, or a vLLM for its CUDA version")
    if case.obstacle("vllm") is None and case.program is not None and case.program.is_cpu_build:
        hint = "install the CUDA build of vLLM instead"
        return warn(f"{detail}: this vLLM is a CPU build", hint=hint)
    if (shortage := _shortage(case)) is not None:
        return fail(f"{detail}: {shortage[0]}", hint=shortage[1])
    gpus = detect_gpus(cards)
    if gpus is not None and case.knows_model():
        assert case.name is not None
        fit = advise(read_model(case.name, case.settings), gpus, path_to_bucket(NetworkPath(), None)).fit
        if fit.fault is not None:
            return fail(f"{detail}: {fit.fault}", hint=f"see: coldstream tune {case.name}")
    return ok(detail)


def _driver_fault(case: Case, driver: str) -> str | None:
    program = case.program if case.obstacle("vllm") is None else None
    if program is None or (installed := _major(driver)) is None:
        return None
    for name, version in program.packages.items():
        major = _major(version) if re.fullmatch(r"nvidia_cuda_runtime(_cu\d+)?", name) else None
        if major is not None and installed < _DRIVERS.get(major, 0):
            return f"the torch of vLLM is built for CUDA {major}, which needs driver {_DRIVERS[major]} or newer"
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


CHECKS = (
    DoctorCheck(name="cache folder", run=cache_folder, needs=("configuration",)),
    DoctorCheck(name="disk", run=disk, needs=("configuration", "cache folder")),
    DoctorCheck(name="memory", run=memory),
    DoctorCheck(name="locked memory", run=locked_memory),
    DoctorCheck(name="open files", run=open_files),
    DoctorCheck(name="gpu", run=gpu),
)
