from __future__ import annotations

import builtins
import mmap
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.machine.process_session import session
from coldstream.node.readahead import recording
from coldstream.node.readahead.read_record import decode
from coldstream.node.readahead.recording import Mapping, mappings, merged, ordered, prefixes_of, present, record

_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
_PAGE = mmap.PAGESIZE
# Linux 6.18 may map a whole folio for one touched page: what one page table maps, at most (2 MiB of 4 KiB pages).
_TABLE = _PAGE * _PAGE // 8
_MAPPING = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
mapped.madvise(mmap.MADV_RANDOM)
for at in map(int, sys.argv[2:]):
    mapped[at]
print("mapped", flush=True)
sys.stdin.read()
"""


def test_modules_stand_in_their_order_and_libraries_before_their_package() -> None:
    packages = "/v/lib/python3.12/site-packages"
    modules = [
        "/u/lib/python3.12/os.pyc",
        f"{packages}/numpy/__init__.pyc",
        f"{packages}/torch/__init__.pyc",
        f"{packages}/torch/_C.so",
        f"{packages}/vllm/__init__.pyc",
    ]
    mapped = [
        f"{packages}/torch/_C.so",
        f"{packages}/torch/lib/libtorch.so",
        f"{packages}/nvidia/cublas/lib/libcublas.so.12",
        f"{packages}/numpy.libs/libblas.so",
        "/usr/lib/libc.so.6",
    ]
    assert ordered(modules, mapped) == [
        "/usr/lib/libc.so.6",
        "/u/lib/python3.12/os.pyc",
        f"{packages}/nvidia/cublas/lib/libcublas.so.12",
        f"{packages}/numpy.libs/libblas.so",
        f"{packages}/numpy/__init__.pyc",
        f"{packages}/torch/lib/libtorch.so",
        f"{packages}/torch/__init__.pyc",
        f"{packages}/torch/_C.so",
        f"{packages}/vllm/__init__.pyc",
    ]


def test_prefixes_are_where_programs_lie() -> None:
    found = prefixes_of(["/v/lib/python3.12/site-packages/x.py", "/w/lib64/python3.9/os.py", "/models/lib/x", "/a"])
    assert {"/usr/lib", "/v/lib", "/v/bin", "/w/lib64"} <= set(found)
    assert not any(prefix.startswith(("/models", "/a")) for prefix in found)
    assert prefixes_of(["/dev/shm/v/lib/python3.12/os.py"]) == prefixes_of([])


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A Python's folder, with one module, its bytecode, another without, and a library of four page tables."""
    packages = tmp_path.resolve() / "lib/python3.12/site-packages"
    for name in ("one/__pycache__", "one-1.0.dist-info", "transformers/models/bert"):
        (packages / name).mkdir(parents=True)
    for name in (
        "one/__init__.py",
        "one/__pycache__/__init__.cpython-312.pyc",
        "one/plain.py",
        "one-1.0.dist-info/METADATA",
        "one-1.0.dist-info/direct_url.json",
        "transformers/__init__.py",
        "transformers/models/bert/__init__.py",
        "transformers/models/bert/modeling_bert.py",
        "transformers/models/bert/modular_bert.py",
    ):
        (packages / name).write_text("x = 1\n")
    (packages / "one/empty.py").touch()
    (packages / "one/library.so").write_bytes(bytes(4 * _TABLE))
    return packages


@_LINUX
def test_modules_are_recorded_by_what_was_read(environment: Path) -> None:
    cached = f"{environment}/one/__pycache__"
    modules = [
        f"{environment}/transformers/__init__.py",
        f"{cached}/__init__.cpython-312.pyc",
        f"{cached}/plain.cpython-312.pyc",
        f"{environment}/one/empty.py",
        f"{environment}/one/gone.py",
        "frozen",
        "/etc/passwd",
        f"{environment}/one",
    ]
    reads = record([], modules)
    assert [os.path.relpath(file.path, environment) for file in reads.files] == [
        "one-1.0.dist-info/METADATA",
        "transformers/__init__.py",
        "transformers/models/bert/modeling_bert.py",
        "one/__pycache__/__init__.cpython-312.pyc",
        "one/plain.py",
    ]
    assert decode(reads.encode()) == reads


@_LINUX
@pytest.mark.parametrize("pagemap", [True, False], ids=["pagemap", "no pagemap"])
def test_pages_that_a_process_touched_are_recorded(
    environment: Path, monkeypatch: pytest.MonkeyPatch, *, pagemap: bool
) -> None:
    library = environment / "one/library.so"
    touched = [0, 2 * _TABLE + 40 * _PAGE]
    command = [sys.executable, "-c", _MAPPING, str(library), *map(str, touched)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        assert session(process.pid) == [process.pid]
        monkeypatch.setattr(recording, "_GAP_BYTES", 1)
        if not pagemap:
            opened = open

            def refusing(path: str, *rest: str) -> object:
                if str(path).endswith("/pagemap"):
                    raise PermissionError(path)
                return opened(path, *rest)

            monkeypatch.setattr(builtins, "open", refusing)
        reads = record([process.pid, 1 << 30], [str(environment / "one/plain.py")])
        monkeypatch.undo()
        process.communicate()
    (found,) = (file for file in reads.files if file.path == str(library))
    assert found.size == 4 * _TABLE
    if pagemap:
        assert all(any(start <= at < stop for start, stop in found.spans()) for at in touched)
        # Of a file that was just written all pages are there, and those around a touched one are mapped with it.
        assert found.read_bytes <= 2 * _TABLE
    else:
        assert found.ranges == ()
    assert any("libc" in file.path or "python" in file.path for file in reads.files if file.path != str(library))
    assert decode(reads.encode()) == reads


_MAPS = """\
55d0c0a00000-55d0c0a01000 r--p 00002000 fe:00 123456                     /usr/bin/python3.11
7f0000000000-7f0000002000 rw-p 00000000 00:00 0
7f1000000000-7f1000001000 r-xp 00001000 fe:00 7 /a folder/with spaces.so
7f2000000000-7f2000001000 rw-s 00000000 00:01 9                          /memfd:arena (deleted)
7f3000000000-7f3000001000 r--p 00000000 fe:00 8                          /odd\\012name
7f4000000000-7f4000001000 rw-s 00000000 00:05 0                          /dev/zero
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_mappings_are_those_with_a_file() -> None:
    assert list(mappings(_MAPS)) == [
        Mapping(path="/usr/bin/python3.11", start=0x55D0C0A00000, stop=0x55D0C0A01000, offset=0x2000),
        Mapping(path="/a folder/with spaces.so", start=0x7F1000000000, stop=0x7F1000001000, offset=0x1000),
    ]


def test_pages_that_are_there_or_were_become_ranges() -> None:
    present_, swapped, absent = 1 << 63, 1 << 62, 1 << 55
    entries = b"".join(
        e.to_bytes(8, "little") for e in (absent, present_, present_ | 1 << 61, absent, 0, swapped, absent)
    )
    assert list(present(entries, offset=8192, page_bytes=4096)) == [(12288, 20480), (28672, 32768)]
    assert list(present(b"", offset=0, page_bytes=4096)) == []


def test_near_ranges_are_joined_and_cut_at_the_end() -> None:
    assert merged([(30, 40), (0, 10), (5, 12), (50, 60)], gap_bytes=11, size=55) == ((0, 12), (30, 55))
    assert merged([(60, 70)], gap_bytes=1, size=60) == ()


_RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)).map(lambda r: (r[0], r[0] + r[1])), max_size=30)


@given(_RANGES, st.integers(1, 50), st.integers(1, 320))
def test_merging_keeps_every_byte(ranges: list[tuple[int, int]], gap: int, size: int) -> None:
    found = merged(ranges, gap_bytes=gap, size=size)
    wanted = {at for start, stop in ranges for at in range(start, min(stop, size))}
    covered = {at for start, stop in found for at in range(start, stop)}
    assert wanted <= covered
    assert all(start < stop <= size for start, stop in found)
    assert all(later[0] - earlier[1] >= gap for earlier, later in pairwise(found))
    assert covered <= set(range(size))
    # Nothing is added but gaps.
    assert all(start in wanted and stop - 1 in wanted for start, stop in found)
