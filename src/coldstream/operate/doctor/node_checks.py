"""Checks of the node: its cache directory, memory, limits and GPUs, and the installed software."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
from importlib.metadata import Distribution
from pathlib import Path

from coldstream.cache.cache import cache_of
from coldstream.engine.arena import connections_within, descriptors_for
from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.program import memory_shortage
from coldstream.errors import NotFoundError
from coldstream.fleet.sky import INSTALL, TESTED, find_sky
from coldstream.machine import hardware
from coldstream.machine.connections import CONNECTIONS_MIN, connections_for
from coldstream.machine.disk import checked_root, size_and_free
from coldstream.machine.extras import install_hint, own_requirement, pip_install
from coldstream.machine.limits import read_text
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check, fail, ok, warn
from coldstream.package import __version__
from coldstream.tune.gpus import detect_gpus
from coldstream.tune.model_shape import read_model
from coldstream.tune.predict import NetworkPath, path_to_bucket
from coldstream.tune.recommended import advise
from coldstream.units import GIB, MIB, format_bytes, plural

# For vLLM's logs, compile caches and a model's small files.
_FREE_BYTES_MIN = GIB
# The arena of the smallest load, and of one to a device (loading.prepare).
_ARENA_BYTES = 256 * MIB
_DEVICE_ARENA_BYTES = GIB
# Network file systems, whose locks and speed depend on other machines.
_REMOTE = re.compile(r"nfs\d?|cifs|smb\d?|9p|fuse\..*|ceph|glusterfs|lustre|beegfs|gcsfuse")
_MOUNTS = Path("/proc/mounts")
# CUDA's major version to the first driver that has it (docs.nvidia.com/deploy/cuda-compatibility).
_DRIVERS = {12: 525, 13: 580}
_PLUGIN_GROUP = "vllm.general_plugins"


def cache_folder(case: Case) -> Check:
    """Whether the local cache is on a local disk, where only this user can write."""
    root = cache_of(case.configured).root
    exists = checked_root(root, create=False)
    parent = _existing(root)
    if not exists and not os.access(parent, os.W_OK | os.X_OK):
        hint = "set COLDSTREAM_CACHE_DIR to a writable directory"
        return fail(f"{root} does not exist, and {parent} is not writable by this user", hint)
    kind = _file_system(parent)
    detail = f"{root}, {'private to this user' if exists else 'not created yet'}{f', on {kind}' if kind else ''}"
    if kind and _REMOTE.fullmatch(kind):
        return warn(f"{detail}: a network file system", "set COLDSTREAM_CACHE_DIR to a local disk, ideally NVMe")
    if kind in {"tmpfs", "ramfs"}:
        hint = "set COLDSTREAM_CACHE_DIR to a disk: files here take memory and are lost on a restart"
        return warn(f"{detail}, which is in memory", hint)
    return ok(detail)


def disk(case: Case) -> Check:
    """Whether there is space for the files of any start, and for a copy of the model."""
    cache = cache_of(case.configured)
    _, free = size_and_free(_existing(cache.root))
    if free < _FREE_BYTES_MIN:
        hint = "free some space: coldstream cache prune"
        return fail(f"{format_bytes(free)} free at {cache.root}; logs and vLLM's caches need more", hint)
    entries = cache.entries()
    limit = cache.limit_bytes(sum(entry.bytes for entry in entries))
    detail = f"{format_bytes(free)} free; the cache may use {format_bytes(limit)}"
    if not case.knows_model():
        return ok(detail)
    if any(entry.name == case.name and entry.complete for entry in entries):
        return ok(f"{detail}; {case.name} is cached: the next start is warm")
    size = case.checkpoint.bytes
    if size > limit:
        hint = "raise COLDSTREAM_CACHE_LIMIT, or set COLDSTREAM_CACHE_DIR to a larger disk"
        return warn(f"{detail}, and this model has {format_bytes(size)}: its starts will never be warm", hint)
    return ok(f"{detail}; this model needs {format_bytes(size)}")


def memory(case: Case) -> Check:
    """Whether the memory that the container leaves is enough for the arena, and on the CPU for the model."""
    available, left = hardware.available_bytes(), hardware.left_in_group()
    if hardware.gpus():
        needed, why = _arena_bytes(case, _DEVICE_ARENA_BYTES), "the buffer of a load to the GPU"
    elif case.usable_program is not None and case.knows_model():
        needed, why = case.checkpoint.bytes + _ARENA_BYTES, "vLLM on the CPU, which holds the model,"
    else:
        needed, why = _arena_bytes(case, _ARENA_BYTES), "the buffer of a load"
    contained = left is not None and left <= available
    detail = f"{format_bytes(available)} available" + (", limited by the control group" if contained else "")
    if available < needed:
        hint = "give the container more memory" if contained else "use a machine with more memory, or free some"
        return fail(f"{detail}; {why} needs {format_bytes(needed)}", hint)
    if not hardware.gpus() and (shortage := _shortage(case)) is not None:
        return warn(*shortage)
    return ok(f"{detail}; {why} needs {format_bytes(needed)}")


def _shortage(case: Case) -> tuple[str, str] | None:
    """Why vLLM itself would refuse to start without flags, and a fix."""
    program = case.usable_program
    return memory_shortage(program, Flags(()), case.environ) if program else None


def _arena_bytes(case: Case, least: int) -> int:
    """Two of the model's largest tensors, but at least so much."""
    shards = case.checkpoint.shards if case.knows_model() else ()
    return max([least, *(2 * (tensor.stop - tensor.start) for shard in shards for tensor in shard.header.tensors)])


def locked_memory(case: Case) -> Check:
    """Whether the arena may be pinned, which makes copies to a GPU twice as fast."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "no limit" if soft == resource.RLIM_INFINITY else format_bytes(soft)
    if not hardware.gpus():
        return ok(f"{limit}; it only matters with a GPU")
    needed = _arena_bytes(case, _DEVICE_ARENA_BYTES)
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warn(
            f"{limit} may be locked, the buffer has {format_bytes(needed)}: some drivers refuse to pin it",
            "run: ulimit -l unlimited   (docker: --ulimit memlock=-1)",
        )
    return ok(limit)


def open_files(_case: Case) -> Check:
    """Whether the streamer may open its connections. It raises the soft limit to the hard one by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return ok(f"soft limit {soft}, no hard limit")
    most = connections_for(hardware.cores(), hardware.link_bytes_per_second())
    enough = connections_within(hard, most)
    detail = f"hard limit {hard:,}, soft limit {soft:,}"
    if enough < CONNECTIONS_MIN:
        needed = descriptors_for(CONNECTIONS_MIN)
        hint = "run: ulimit -Hn 4096   (systemd: LimitNOFILE=4096; docker: --ulimit nofile=4096)"
        return fail(f"{detail}: enough for {plural(enough, 'connection')}, {CONNECTIONS_MIN} need {needed}", hint)
    return ok(f"{detail}; enough for {enough} of {most} connections")


def gpu(case: Case) -> Check:
    """Whether the driver works, is new enough for the installed CUDA, and the model fits its GPUs."""
    cards = hardware.gpus()
    if not cards:
        if shutil.which("nvidia-smi") is None and not _devices():
            return ok("none: only needed to serve")
        return fail("the driver does not answer: nvidia-smi lists no GPU", "run: nvidia-smi   (docker: --gpus all)")
    detail = f"{len(cards)} x {cards[0].name}, capability {cards[0].capability}, driver {cards[0].driver or 'unknown'}"
    if (fault := _driver_fault(case, cards[0].driver)) is not None:
        return fail(f"{detail}: {fault}", "install a newer driver, or a vLLM for its CUDA version")
    if case.usable_program is not None and case.usable_program.is_cpu_build:
        return warn(f"{detail}: this vLLM is a CPU build", "install the CUDA build of vLLM instead")
    if (shortage := _shortage(case)) is not None:
        return fail(f"{detail}: {shortage[0]}", shortage[1])
    gpus = detect_gpus(cards)
    if gpus is not None and case.name is not None and case.knows_model():
        fit = advise(read_model(case.name, case.settings), gpus, path_to_bucket(NetworkPath(), None)).fit
        if fit.fault is not None:
            return fail(f"{detail}: {fit.fault}", f"see: coldstream tune {case.name}")
    return ok(detail)


def _driver_fault(case: Case, driver: str) -> str | None:
    program, installed = case.usable_program, re.match(r"\d+", driver)
    if program is None or installed is None:
        return None
    for name, version in program.packages.items():
        if re.fullmatch(r"nvidia_cuda_runtime(_cu\d+)?", name) and (major := re.match(r"\d+", version)):
            needed = _DRIVERS.get(int(major[0]), 0)
            if int(installed[0]) < needed:
                return f"the torch of vLLM is built for CUDA {major[0]}, which needs driver {needed} or newer"
    return None


def _devices() -> bool:
    return Path("/dev/nvidiactl").exists()


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _file_system(path: Path) -> str | None:
    kinds = {}
    for line in read_text(_MOUNTS).splitlines():
        # A later mount hides an earlier one.
        _, point, kind, *_ = line.split(" ")
        kinds[re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)] = kind
    real = Path(os.path.realpath(path))
    return next((kinds[str(folder)] for folder in (real, *real.parents) if str(folder) in kinds), None)


def vllm(case: Case) -> Check:
    """Whether vLLM is installed, in a tested version, and compiled to bytecode."""
    program = case.program
    if program is None:
        return ok("not installed: only needed to serve")
    detail = f"{program.version or 'unknown version'} at {program.path}"
    if warning := program.version_warning():
        return warn(f"{detail}: {warning}", "docs/serve.md lists the versions; run: pip install 'vllm>=0.28,<0.34'")
    if not program.compiled:
        packages = Path(program.path).parent.parent
        return warn(f"{detail}: it has no bytecode and starts slowly", f"run: python -m compileall -q {packages}")
    return ok(detail)


def plugin(case: Case) -> Check:
    """Whether this vLLM knows our load format: coldstream is in its environment, and not excluded."""
    program = case.program
    if program is None:
        return ok("not needed: vLLM is not installed")
    if not program.site:
        hint = "check whether coldstream is installed there: pip list"
        return warn(f"{program.path} does not show where its packages are", hint)
    python = program.interpreter or str(Path(program.path).with_name("python"))
    install = f"run: {pip_install(own_requirement(), python=python)}"
    distribution = next(iter(Distribution.discover(name="coldstream", path=[program.site])), None)
    if distribution is None:
        return fail(f"coldstream is not installed in {program.site}: vLLM cannot find the load format", install)
    if not any(point.group == _PLUGIN_GROUP and point.name == "coldstream" for point in distribution.entry_points):
        hint = f"run: {pip_install('--force-reinstall', own_requirement(), python=python)}"
        return fail(f"coldstream {distribution.version} in {program.site} is not registered with vLLM", hint)
    plugins = case.environ.get("VLLM_PLUGINS")
    if plugins is not None and "coldstream" not in plugins.split(","):
        hint = "add coldstream to VLLM_PLUGINS, or unset it"
        return fail(f"VLLM_PLUGINS is {plugins!r} and does not list coldstream: vLLM cannot find the load format", hint)
    if distribution.version != __version__:
        return warn(f"vLLM has coldstream {distribution.version}, this command is {__version__}", install)
    return ok(f"vLLM finds coldstream {distribution.version}")


def runai(case: Case) -> Check:
    """Whether Run:ai's streamer is in vLLM's environment, for `--loader runai`."""
    packages = case.program.packages if case.program else {}
    version = packages.get("runai_model_streamer")
    if version is None:
        return ok("not installed: only needed for --loader runai")
    if "runai_model_streamer_s3" not in packages:
        hint = "run in vLLM's environment: pip install 'runai-model-streamer[s3]'"
        return warn(f"{version}, without S3 support: --loader runai cannot read the bucket", hint)
    return ok(f"{version}, with S3 support")


def skypilot(case: Case) -> Check:
    """Whether SkyPilot and rsync, which `coldstream launch` runs, are installed."""
    try:
        sky = find_sky(case.configured)
    except NotFoundError:
        return ok("not installed: only needed for coldstream launch")
    detail = f"{sky.version} at {sky.path}"
    if shutil.which("rsync", path=sky.environment.get("PATH")) is None:
        return warn(f"{detail}, but rsync is missing", "run: apt install rsync")
    if sky.version.split(".")[:2] != TESTED.split(".")[:2]:
        return warn(f"{detail}: tested with {TESTED}", f"run: {INSTALL}")
    return ok(detail)


def hf_xet(case: Case) -> Check:
    """Whether files that the Hub only serves through hf-xet can be uploaded."""
    consequence = "some files above 50 GB can only be uploaded with it"
    if importlib.util.find_spec("hf_xet") is None:
        return warn(f"not installed: {consequence}", f"run: {pip_install('hf_xet')}")
    if re.fullmatch(r"1|on|yes|true", case.environ.get("HF_HUB_DISABLE_XET", ""), re.IGNORECASE):
        return warn(f"disabled: {consequence}", "unset HF_HUB_DISABLE_XET")
    return ok("installed")


def tls_library(case: Case) -> Check:
    """Whether https uses the library that takes the least CPU time."""
    if case.uses_folder or not case.endpoint.startswith("https:"):
        return ok("not needed: the endpoint has no TLS")
    if importlib.util.find_spec("cryptography") is None:
        return warn("Python's ssl module: https takes more CPU time than with cryptography", install_hint("tls"))
    return ok("cryptography's")
