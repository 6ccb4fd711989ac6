from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import IntegrityError
from coldstream.node.readahead.read_record import RECORD_BYTES_MAX, File, ReadRecord, decode

_LIBRARY = {"path": "/usr/lib/libx.so", "size": 100, "ranges": [0, 10, 20, 100]}
_RECORD = {"format": 1, "prefixes": ["/usr/lib"], "files": [_LIBRARY]}


def _packed(document: object) -> bytes:
    return zlib.compress(json.dumps(document).encode())


def test_a_record_comes_back_equal() -> None:
    reads = ReadRecord(
        prefixes=("/usr/lib", "/venv/lib"),
        files=(
            File(path="/venv/lib/python3.12/os.py", size=7),
            File(path="/usr/lib/libx.so", size=100, ranges=(0, 10, 20, 100)),
        ),
    )
    assert decode(reads.encode()) == reads
    assert sum(file.read_bytes for file in reads.files) == 7 + 90
    assert [list(file.spans()) for file in reads.files] == [[(0, 7)], [(0, 10), (20, 100)]]


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    assert decode(_packed({**_RECORD, "later": 1})).files[0].ranges == (0, 10, 20, 100)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "usr/lib/libx.so"},
        {"path": "/usr/lib/../../etc/shadow"},
        {"path": "/usr/lib//libx.so"},
        {"path": "/usr/lib/./libx.so"},
        {"path": "/usr/lib/a\nb"},
        {"path": "/usr/lib/a\0b"},
        {"path": "/usr/library/libx.so"},
        {"path": "/etc/shadow"},
        {"path": "/usr/lib/" + "x" * 5000},
        {"size": 0},
        {"size": -1},
        {"size": 50},
        {"size": 1 << 50},
        {"size": 100.5},
        {"ranges": [0]},
        {"ranges": [10, 0]},
        {"ranges": [0, 0]},
        {"ranges": [0, 10, 10, 20]},
        {"ranges": [20, 30, 0, 10]},
        {"ranges": [-5, 10]},
        {"ranges": "all"},
    ],
)
def test_a_hostile_file_is_refused(change: dict[str, object]) -> None:
    decode(_packed(_RECORD))
    with pytest.raises(IntegrityError):
        decode(_packed({**_RECORD, "files": [{**_LIBRARY, **change}]}))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"prefixes": ["/"]},
        {"prefixes": ["/dev"], "files": []},
        {"prefixes": ["/proc/self"], "files": []},
        {"prefixes": ["//usr/lib"], "files": []},
        {"prefixes": ["/usr/lib"] * 65},
        {"files": [_LIBRARY, _LIBRARY]},
        {"files": [{"path": f"/usr/lib/{n}", "size": 1} for n in range(50_001)]},
    ],
)
def test_a_hostile_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        decode(_packed({**_RECORD, **change}))


def test_a_damaged_record_is_refused() -> None:
    data = _packed(_RECORD)
    for stop in range(len(data)):
        with pytest.raises(IntegrityError):
            decode(data[:stop])
    for hostile in (b"\0" * (RECORD_BYTES_MAX + 1), zlib.compress(b"[" * (65 << 20)), zlib.compress(b"[" * 100_000)):
        with pytest.raises(IntegrityError):
            decode(hostile)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for candidate in (data, zlib.compress(data)):
        with pytest.raises(IntegrityError):
            decode(candidate)
