"""Names that come from elsewhere: what may become a key or a path, and what may not."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import IntegrityError, UsageError
from coldstream.model.names import (
    KEY_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    checked_name,
    checked_path,
    is_hidden,
    model_name,
    path_fault,
    split_revision,
)

HOSTILE = st.text(st.sampled_from("ab./\\:~\0\n-_ü模"), max_size=30) | st.text(max_size=40)


@pytest.mark.parametrize(
    "path", ["config.json", "1_Pooling/config.json", "a b/ü 模型.bin", "..a", "a..b/c", ".hidden", "x" * 255]
)
def test_ordinary_paths_pass(path: str) -> None:
    assert path_fault(path) is None
    assert checked_path(path, where="x") == path


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", "empty"),
        ("../etc/passwd", "'..'"),
        ("a/../../b", "'..'"),
        ("a/./b", "'.'"),
        ("/etc/passwd", "absolute"),
        ("a//b", "''"),
        ("a/", "''"),
        ("a\\..\\b", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("\ud800", "Unicode"),
        ("x" * (SEGMENT_BYTES_MAX + 1), "segment longer"),
        ("ü" * 200, "segment longer"),
        ("x/" * 512 + "x", "longer than"),
    ],
)
def test_what_would_leave_or_not_fit_is_refused(path: str, fault: str) -> None:
    with pytest.raises(IntegrityError, match="the Hub names a file") as caught:
        checked_path(path, where="the Hub")
    assert fault in (path_fault(path) or "")
    assert fault in caught.value.message
    assert caught.value.exit_code == 13


@given(HOSTILE)
def test_a_path_that_passes_stays_inside(path: str) -> None:
    if path_fault(path) is not None:
        return
    assert posixpath.normpath(posixpath.join("/store/model", path)) == f"/store/model/{path}"
    assert not PurePosixPath(path).is_absolute()
    assert ".." not in PureWindowsPath(path).parts
    assert len(path.encode()) <= KEY_BYTES_MAX
    assert all(len(segment.encode()) <= SEGMENT_BYTES_MAX for segment in path.split("/"))


@pytest.mark.parametrize("name", ["gpt2", "org/model", "a/b/c", "Qwen/Qwen3-8B_v1.0", "_x/1"])
def test_models_have_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "a//b", ".hidden", "a/.b", "..", "a/../b", "-x", "a b", "ü", "a\n", "a?b", "x" * 600]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_name(name)
    assert caught.value.exit_code == 2


@given(HOSTILE)
def test_a_name_that_passes_is_a_path(name: str) -> None:
    try:
        checked_name(name)
    except UsageError:
        return
    assert path_fault(name) is None
    assert not name.startswith((".", "-", "/"))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("org/m", "org/m"),
        ("s3://bucket/prefix/org/m/", "org/m"),
        ("https://host/org/m?X-Amz-Signature=secret", "org/m"),
        ("https://user:secret@host", "host"),
        ("hf://org/m@main", "org/m"),
        ("/models/m", "m"),
        ("file:///models/m", "m"),
    ],
)
def test_what_a_model_is_called(uri: str, name: str) -> None:
    assert model_name(uri) == name


@pytest.mark.parametrize("character", ["\x1b", "\n", "\x7f", "\x85", "\x9b", "\u202e", "\u2066", "\u200f", "\u2028"])
def test_what_would_steer_a_terminal_is_no_part_of_a_path(character: str) -> None:
    assert path_fault(f"a{character}b.json")


def test_hidden_files_and_files_in_hidden_folders() -> None:
    paths = (".env", ".cache/x", "1_Pooling/config.json", "model..json")
    assert [is_hidden(path) for path in paths] == [True, True, False, False]


def test_a_revision_follows_the_name() -> None:
    assert split_revision("org/model@v1.0") == ("org/model", "v1.0")
