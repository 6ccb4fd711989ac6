"""Pointers of Git LFS: small texts in place of large files in a clone that was made without LFS. Pure."""

from __future__ import annotations

# A pointer names a version, a SHA-256 and a size, in 127 bytes and a few; with an extension, some 80 more.
POINTER_BYTES = range(110, 256)
HINT = "fetch the files that the pointers name: git lfs pull; or download the model with: hf download"
_START = b"version https://git-lfs.github.com/spec/v1\n"


def is_pointer(head: bytes | bytearray | memoryview, size: int) -> bool:
    """Whether a file of `size` bytes is a pointer, from at least its first 8 bytes."""
    return size in POINTER_BYTES and bytes(head[: len(_START)]) == _START[: len(head)]


def pointer_message(path: str) -> str:
    """What an error says of such a file."""
    return f"{path} is a Git LFS pointer, not the file that it names"
