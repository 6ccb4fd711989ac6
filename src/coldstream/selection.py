"""Which files of a repository make the model: one set of weights, and everything that is needed beside it. Pure.

Repositories often hold the same weights several times over (PyTorch pickles, the vendor's original layout, ONNX,
GGUF). Run:ai's loader in vLLM takes every top-level `*.safetensors` without looking at the index, so what should not
be loaded must not be stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from coldstream.errors import IntegrityError, UsageError
from coldstream.paths import MANIFEST_NAME, is_hidden

INDEX_NAME = "model.safetensors.index.json"

# Whole folders of other formats, at any depth of which nothing is needed to serve the safetensors.
_FOREIGN_FOLDERS = {
    "original": "the vendor's own layout of the same weights",
    "onnx": "ONNX weights",
    "openvino": "OpenVINO weights",
    "coreml": "Core ML weights",
    "gguf": "GGUF weights",
    "metal": "weights for Apple Metal",
    "tensorrt": "TensorRT engines",
}
_FOREIGN_WEIGHTS = {
    ".bin": "pickled weights",
    ".pt": "pickled weights",
    ".pth": "pickled weights",
    ".ckpt": "pickled weights",
    ".pkl": "pickled data",
    ".gguf": "GGUF weights",
    ".ggml": "GGML weights",
    ".onnx": "ONNX weights",
    ".onnx_data": "ONNX weights",
    ".h5": "TensorFlow weights",
    ".tflite": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".ot": "Rust weights",
    ".mlmodel": "Core ML weights",
    ".nemo": "NeMo weights",
    ".engine": "TensorRT engines",
}
# Each object is one more serial request on Run:ai's path; none of these is read by vLLM or transformers.
_NOT_SERVED = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4", ".webm", ".mov", ".avif"), "media"),
    **dict.fromkeys((".pdf", ".ipynb"), "documents"),
}
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken and what is left.

    Attributes:
        chosen: Paths, sorted.
        skipped: Path to why it is left out.
    """

    chosen: tuple[str, ...]
    skipped: Mapping[str, str]


def needs_index(paths: Iterable[str]) -> bool:
    """Whether `select` wants the content of `INDEX_NAME` for these paths."""
    return INDEX_NAME in paths


def select(
    paths: Iterable[str],
    *,
    index: bytes | None = None,
    include: Sequence[str] = (),
    also: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Selection:
    """Chooses the files to store.

    Args:
        paths: Every file of the repository, relative, with `/`.
        index: The content of `model.safetensors.index.json`, when there is one.
        include: Take exactly the files that match one of these shell patterns, whatever they are; as in `hf download`.
            Hidden files, here and below, are matched only by a pattern that has their dot.
        also: Take the files that match, beside the usual ones.
        exclude: Leave out the files that match; wins over everything.

    Raises:
        UsageError: Nothing is left, or there are no safetensors among what is left and none were asked around.
        IntegrityError: The index is malformed or names a shard that is not there.
    """
    every = sorted(set(paths))
    if include:
        reasons = {path: "not in --include" for path in every if not _matches(path, include)}
    else:
        reasons = {path: why for path, why in _defaults(every, index).items() if not _matches(path, also)}
    reasons |= {path: "in --exclude" for path in every if _matches(path, exclude)}
    # An upload of a downloaded copy: our own manifest describes another place.
    reasons |= {MANIFEST_NAME: "coldstream's manifest"} if MANIFEST_NAME in every else {}
    chosen = tuple(path for path in every if path not in reasons)
    if not chosen:
        raise UsageError("no file is left to upload", hint="look at --include and --exclude, or add --dry-run")
    if not (include or also) and not any(path.endswith(_SAFETENSORS) for path in chosen):
        raise UsageError(
            "there are no safetensors weights in it" + _instead(every),
            hint="convert it to safetensors first, or name the files to upload with --include",
        )
    return Selection(chosen, reasons)


def is_weights(path: str) -> bool:
    """Whether a chosen file is a shard of weights."""
    return path.endswith(_SAFETENSORS)


def weights(paths: Iterable[str], *, index: bytes | None = None) -> tuple[str, ...]:
    """The shards that a load reads: every top-level safetensors but those that repeat others, sorted. As in vLLM.

    Args:
        paths: The model's files, relative, with `/`.
        index: The content of `INDEX_NAME`, when `needs_index` and there is one.

    Raises:
        IntegrityError: The index is malformed or names a shard that is not there.
    """
    every = sorted(set(paths))
    repeated = _duplicate_weights(every, index)
    return tuple(path for path in every if is_weights(path) and "/" not in path and path not in repeated)


def beside(paths: Iterable[str]) -> tuple[str, ...]:
    """The files that a server of the model needs beside its weights, sorted.

    A sentence-transformers model has small modules with weights of their own in sub-folders: vLLM reads them as files.
    """
    every = sorted(set(paths))
    with_safetensors = {_folder(path) for path in every if is_weights(path)}
    modules = "modules.json" in every
    return tuple(
        path
        for path in every
        if (not is_weights(path) or (modules and "/" in path)) and not _default_reason(path, with_safetensors)
    )


def indexed(index: bytes) -> frozenset[str]:
    """The shards that the content of `INDEX_NAME` names.

    Raises:
        IntegrityError: It is malformed.
    """
    return frozenset(_indexed(index))


def _defaults(every: Sequence[str], index: bytes | None) -> dict[str, str]:
    folders_with_safetensors = {_folder(path) for path in every if path.endswith(_SAFETENSORS)}
    reasons = {}
    for path in every:
        if why := _default_reason(path, folders_with_safetensors):
            reasons[path] = why
    reasons |= _duplicate_weights([path for path in every if path not in reasons], index)
    return reasons


def _default_reason(path: str, folders_with_safetensors: set[str]) -> str | None:
    folder, name = _folder(path), path.rpartition("/")[2]
    for segment in folder.lower().split("/"):
        if segment in _FOREIGN_FOLDERS:
            return _FOREIGN_FOLDERS[segment]
    if is_hidden(path):
        return "hidden"
    suffix = "." + name.rpartition(".")[2].lower() if "." in name else ""
    if suffix in _FOREIGN_WEIGHTS:
        # A module of sentence-transformers (2_Dense/) may exist as a pickle only, and is needed then.
        module = bool(folder) and folder[0].isdigit() and folder not in folders_with_safetensors and suffix == ".bin"
        return None if module else _FOREIGN_WEIGHTS[suffix]
    if name.endswith((".bin.index.json", ".h5.index.json", ".msgpack.index.json")):
        return "index of other weights"
    return _NOT_SERVED.get(suffix)


def _duplicate_weights(left: Sequence[str], index: bytes | None) -> dict[str, str]:
    """The top-level safetensors that the loader would read beside the ones that it needs."""
    top = [path for path in left if path.endswith(_SAFETENSORS) and "/" not in path]
    if index is not None and INDEX_NAME in left:
        listed = _indexed(index)
        if missing := sorted(listed - set(left)):
            raise IntegrityError(
                f"{INDEX_NAME} names {missing[0]!r}, which is not there" + _more(missing),
                hint="the repository is incomplete; take another revision with --revision",
            )
        return {path: f"not in {INDEX_NAME}" for path in top if path not in listed}
    if "model.safetensors" in top:
        # transformers and vLLM read this one when it exists; consolidated, fp16 variants and shards repeat it.
        return {
            path: "the same weights as model.safetensors"
            for path in top
            if path != "model.safetensors" and path.startswith(("model.", "model-", "consolidated"))
        }
    rest = [path for path in top if not path.startswith("consolidated")]
    if not rest:
        return {}
    return {path: "the same weights in the vendor's layout" for path in top if path.startswith("consolidated")}


def _indexed(index: bytes) -> set[str]:
    try:
        weight_map = json.loads(index)["weight_map"]
        names = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise IntegrityError(f"{INDEX_NAME} is malformed: it has no weight_map") from exc
    if not names or not all(isinstance(name, str) for name in names):
        raise IntegrityError(f"{INDEX_NAME} is malformed: its weight_map names no files")
    return names


def _instead(every: Sequence[str]) -> str:
    found = sorted({why for path in every if (why := _default_reason(path, set()))} & set(_FOREIGN_WEIGHTS.values()))
    return f", only {' and '.join(found)}" if found else ""


def _matches(path: str, patterns: Sequence[str]) -> bool:
    # As in huggingface_hub: `*` also matches `/`, and a pattern that ends in `/` means all that is in the folder. As in
    # a shell, a hidden file is matched only by a pattern that has its dot.
    if is_hidden(path):
        patterns = [pattern for pattern in patterns if is_hidden(pattern)]
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
