"""Which files of a repository make the model: one set of weights, and everything that is needed beside it. Pure.

Repositories often hold the same weights several times over. Run:ai's loader in vLLM takes every top-level
`*.safetensors` without looking at the index, so what should not be loaded must not be stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import basename, dirname, splitext

from coldstream.errors import IntegrityError, UsageError
from coldstream.model.header import has_too_many_values
from coldstream.model.names import MANIFEST_NAME, is_hidden
from coldstream.units import format_bytes

INDEX_NAME = "model.safetensors.index.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
INDEX_BYTES_MAX = 64 << 20  # the index is megabytes for models of many experts; what it maps is in the headers as well

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
_WEIGHTS_BY_FORMAT = {
    "pickled weights": ".bin .pt .pth .ckpt",
    "pickled data": ".pkl",
    "GGUF weights": ".gguf",
    "GGML weights": ".ggml",
    "ONNX weights": ".onnx .onnx_data",
    "TensorFlow weights": ".h5 .tflite",
    "Flax weights": ".msgpack",
    "Rust weights": ".ot",
    "Core ML weights": ".mlmodel",
    "NeMo weights": ".nemo",
    "TensorRT engines": ".engine",
}
_FOREIGN_WEIGHTS = {suffix: why for why, suffixes in _WEIGHTS_BY_FORMAT.items() for suffix in suffixes.split()}
# Each object is one more serial request on Run:ai's path; none of these is read by vLLM or transformers.
_NOT_SERVED = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4", ".webm", ".mov", ".avif"), "media"),
    **dict.fromkeys((".pdf", ".ipynb"), "documents"),
}
_SAFETENSORS = ".safetensors"
# The largest part known is a speech encoder of 3.1 GB; whole models begin where such parts end.
PART_OF_MODEL_BYTES_MAX = 4 << 30
_INDEX = ".safetensors.index.json"
# What trainers leave beside a model or an adapter, and what may lie beside a model: the latter is one by itself.
_TRAINING_STATE = re.compile(r"(optimizer|scheduler|scaler|training_args)\b.*")
_ADAPTER = re.compile(r"adapter_model\b.*")
_NOT_THE_MODEL = re.compile(rf"consolidated|{_ADAPTER.pattern}|{_TRAINING_STATE.pattern}")
_CHECKPOINT_FOLDER = re.compile(r"checkpoint-[0-9]+/")
# How transformers and diffusers call the same weights in another precision: model.fp16.safetensors,
# model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors.
_VARIANT = re.compile(r"\.(?:fp(?:4|8|16|32)|bf16|int[48]|(?:non?_)?ema)(?=[.-])")
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken and what is left."""

    chosen: tuple[str, ...]  # paths, sorted
    skipped: Mapping[str, str]  # path to why it is left out
    # Several shards of which neither an index nor their numbers say that they belong together.
    unproven: tuple[str, ...] = ()


def index_name(paths: Iterable[str]) -> str | None:
    """The file that says which shards are the model's: the one that vLLM reads, or the only one of another name."""
    indexes = {path for path in paths if path.endswith(_INDEX) and "/" not in path and not _NOT_THE_MODEL.match(path)}
    if INDEX_NAME in indexes:
        return INDEX_NAME
    return indexes.pop() if len(indexes) == 1 else None


def select(
    paths: Iterable[str],  # every file of the repository, relative, with `/`
    *,
    read: Callable[[str], bytes] | None = None,  # gives the content of the index (see `index_name`), if one is needed
    include: Sequence[str] = (),  # take exactly the files that match, whatever they are; as in `hf download`
    also: Sequence[str] = (),  # take the files that match, beside the usual ones
    exclude: Sequence[str] = (),  # leave out the files that match; wins over everything
) -> Selection:
    """Chooses the files to store; an IntegrityError says that shards are missing, a UsageError that nothing is left."""
    every = sorted(set(paths))
    # An upload of a downloaded copy: our own manifest describes another place.
    reasons = {path: "coldstream's manifest" for path in every if path == MANIFEST_NAME}
    reasons |= {path: "in --exclude" for path in every if _matches(path, exclude)}
    left = [path for path in every if path not in reasons]
    name = None if include or read is None else index_name(left)
    index = read(name) if read is not None and name is not None else None
    if include:
        reasons |= {path: "not in --include" for path in left if not _matches(path, include)}
    else:
        defaults = _default_reasons(left)
        defaults |= left_out([path for path in left if path not in defaults], index=index)
        reasons |= {path: why for path, why in defaults.items() if not _matches(path, also)}
    chosen = tuple(path for path in every if path not in reasons)
    if not chosen and (include or also or exclude):
        raise UsageError("no file is left to upload", hint="look at --include and --exclude, or add --dry-run")
    if not (include or also) and not any(map(is_weights, chosen)):
        formats = {_default_reason(path, set()) or "" for path in every} & {*_FOREIGN_WEIGHTS.values()}
        only = f", only {' and '.join(sorted(formats))}" if formats else ""
        if is_adapter(every):
            raise UsageError(
                f"the adapter has no adapter_model.safetensors{only}",
                hint="load it with PEFT and save it again: PeftModel.from_pretrained(…).save_pretrained(FOLDER)",
            )
        raise UsageError(
            f"there are no safetensors weights in it{only}",
            hint="convert it to safetensors first, or name the files to upload with --include",
        )
    shards = weights(chosen, index=index)
    if not include and index is None:
        check_numbers(shards)
    is_proven = index is not None or len(shards) < 2 or is_complete_set(shards)
    return Selection(chosen, reasons, () if is_proven else shards)


def is_weights(path: str) -> bool:
    """Whether a chosen file is a shard of weights."""
    return path.endswith(_SAFETENSORS)


def is_adapter(paths: Iterable[str]) -> bool:
    """Whether these files are an adapter in PEFT's form, and not a model with an adapter beside it."""
    every = set(paths)
    beside = (_ADAPTER, _TRAINING_STATE)
    return ADAPTER_CONFIG_NAME in every and all(any(one.match(path) for one in beside) for path in _top(every))


def weights(paths: Iterable[str], *, index: bytes | None = None) -> tuple[str, ...]:
    """The shards that a load reads, sorted; `index` is the content of the file that `index_name` names, if any."""
    every = set(paths)
    unread = left_out(every, index=index)
    return tuple(path for path in _top(every) if path not in unread)


def left_out(paths: Iterable[str], *, index: bytes | None = None) -> dict[str, str]:
    """The top-level safetensors that a load does not read, and an index that does not count: path to why."""
    every = set(paths)
    top = _top(every)
    name = index_name(every)
    reasons: dict[str, str] = {}
    for pattern, why in ((_TRAINING_STATE, "the state of a training"), (_ADAPTER, "an adapter beside the model")):
        others = [path for path in top if pattern.match(path)]
        if len(others) + len(reasons) < len(top):
            reasons |= dict.fromkeys(others, why)
    own = [path for path in top if path not in reasons]
    if index is None or name is None:
        return reasons | _repeated(own)
    # An index decides by itself, as in vLLM's default loader. That ignores it beside a single file of weights on the
    # Hub, so there an index of other files is left over.
    listed = indexed(index, name=name)
    missing = sorted(listed - set(top))
    if missing and len(own) == 1 and own[0] not in listed:
        check_numbers(own)
        return reasons | {name: f"left over: it names {missing[0]}, which is not there, and {own[0]} is all there is"}
    if missing:
        what = "no safetensors file at the top" if missing[0] in every else "not there"
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise IntegrityError(
            f"{name} names {missing[0]!r}, which is {what}{more}",
            hint="get the missing files; or, if the index is left over from other files, remove it: "
            f"coldstream upload … --exclude {name}",
        )
    return {path: reasons.get(path, f"not in {name}") for path in top if path not in listed}


def choose_shards(
    paths: Iterable[str], read: Callable[[str, int], bytes], *, is_checked: bool
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The shards among a model's files, sorted, and the weights and the index that do not count: path to why.

    `read` reads at most so many bytes of a small file, and only of the index. With `is_checked` the index was compared
    with the files when they were uploaded, and is not read needlessly.
    """
    paths = list(paths)
    name, shards = index_name(paths), weights(paths)
    if not shards:
        return (), {}
    is_settled = is_checked and (len(shards) == 1 or is_complete_set(shards))
    index = read(name, INDEX_BYTES_MAX) if name is not None and not is_settled else None
    shards = weights(paths, index=index)
    if index is None:
        check_numbers(shards)
    return shards, left_out(paths, index=index)


def small_files(sizes: Mapping[str, int], *, stored: bool) -> tuple[str, ...]:
    """The files that a server of the model is given beside the weights that are streamed, sorted; see `kept_back`."""
    left = kept_back(sizes, stored=stored).keys() | {MANIFEST_NAME}
    return tuple(path for path in sorted(sizes) if path not in left and not _is_streamed(path))


def is_complete_set(shards: Sequence[str]) -> bool:
    """Whether these are `x-00001-of-0000N` to `x-0000N-of-0000N`, all of them and nothing else."""
    groups = _numbered(shards)
    return len(groups) == 1 and all(
        len(shards) == int(count) and numbers == set(range(1, int(count) + 1)) for (_, count), numbers in groups.items()
    )


def check_numbers(shards: Sequence[str]) -> None:
    """Refuses shards of which one is missing, as far as their names tell."""
    for (stem, count), numbers in _numbered(shards).items():
        # Some count from 0.
        if len(numbers) < int(count):
            number = next(number for number in range(1, int(count) + 1) if number not in numbers)
            raise IntegrityError(
                f"{stem}-{number:05d}-of-{count}.safetensors is not there: the weights are incomplete",
                hint="get the missing files, or another revision",
            )


def kept_back(sizes: Mapping[str, int], *, stored: bool) -> dict[str, str]:
    """The files that neither are streamed nor given to a server of the model as files, and why.

    vLLM reads the weights of parts (audio tokenizers, speech encoders, modules of sentence-transformers, adapters) as
    files out of sub-folders. Larger sub-folders hold the whole model once more, in another precision, say: no start
    waits for those. Of files that were chosen for an upload (`stored`), those that it leaves out by itself are wanted.
    """
    reasons = {path: why for path, why in _default_reasons(sizes).items() if not stored or is_hidden(path)}
    totals: dict[str, int] = {}
    rest = {path: size for path, size in sizes.items() if path not in reasons and not _is_streamed(path)}
    for path, size in rest.items():
        if is_tensor_data(path):
            # Each of the top folder is by itself.
            totals[dirname(path) or path] = totals.get(dirname(path) or path, 0) + size
    why = f"larger than a part of a model: more than {format_bytes(PART_OF_MODEL_BYTES_MAX)}"
    for path, size in rest.items():
        if (totals[dirname(path) or path] if is_tensor_data(path) else size) > PART_OF_MODEL_BYTES_MAX:
            reasons[path] = why
    return reasons


def is_tensor_data(path: str) -> bool:
    """Whether a file holds weights of whatever format, by its name."""
    return is_weights(path) or splitext(path)[1].lower() in _FOREIGN_WEIGHTS


def _is_streamed(path: str) -> bool:
    """Whether a file is one that loads stream, or repeats one; vLLM reads an adapter beside a model by itself."""
    return is_weights(path) and "/" not in path and not _ADAPTER.match(path)


def indexed(index: bytes, *, name: str = INDEX_NAME) -> frozenset[str]:
    """The shards that the content of an index names; an IntegrityError if it is malformed."""
    if has_too_many_values(index):
        raise IntegrityError(f"{name} is malformed: its {len(index)} bytes hold more values than any index has")
    try:
        names = frozenset(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise IntegrityError(f"{name} is malformed: it has no weight_map") from exc
    if not names or not all(isinstance(shard, str) for shard in names):
        raise IntegrityError(f"{name} is malformed: its weight_map names no files")
    return names


def _default_reasons(paths: Collection[str]) -> dict[str, str]:
    """What an upload leaves out by itself, beside weights that a load does not read."""
    with_safetensors = {dirname(path) for path in paths if is_weights(path)}
    return {path: why for path in paths if (why := _default_reason(path, with_safetensors))}


def _default_reason(path: str, folders_with_safetensors: set[str]) -> str | None:
    folder, name = dirname(path), basename(path)
    for segment in folder.lower().split("/"):
        if segment in _FOREIGN_FOLDERS:
            return _FOREIGN_FOLDERS[segment]
    if is_hidden(path):
        return "hidden"
    if "" in folders_with_safetensors and _CHECKPOINT_FOLDER.match(path):
        return "an earlier state of the training"
    suffix = splitext(path)[1].lower()
    if suffix in _FOREIGN_WEIGHTS:
        # A module of sentence-transformers (2_Dense/) may exist as a pickle only, and is needed then.
        module = bool(folder) and folder[0].isdigit() and folder not in folders_with_safetensors and suffix == ".bin"
        return None if module else _FOREIGN_WEIGHTS[suffix]
    if name.endswith((".bin.index.json", ".h5.index.json", ".msgpack.index.json")):
        return "index of other weights"
    return _NOT_SERVED.get(suffix)


def _top(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if is_weights(path) and "/" not in path and not is_hidden(path))


def _repeated(top: Sequence[str]) -> dict[str, str]:
    """What repeats other weights, as far as their names tell where there is no index."""
    if "model.safetensors" in top:
        # transformers and vLLM read this one when it exists; consolidated, fp16 variants and shards repeat it.
        return {
            path: "the same weights as model.safetensors"
            for path in top
            if path != "model.safetensors" and path.startswith(("model.", "model-", "consolidated"))
        }
    vendors = [path for path in top if path.startswith("consolidated")]
    reasons = dict.fromkeys(vendors, "the same weights in the vendor's layout") if len(vendors) < len(top) else {}
    plain = {_stem(path) for path in top if not _VARIANT.search(path)}
    variants = [path for path in top if _VARIANT.search(path) and _stem(path) in plain]
    return reasons | dict.fromkeys(variants, "the same weights in another precision")


def _stem(path: str) -> str:
    """The name that all files of one set of weights share, whatever their precision."""
    plain = _VARIANT.sub("", path)
    match = _NUMBERED.fullmatch(plain)
    return match[1] if match else plain.removesuffix(_SAFETENSORS)


def _numbered(shards: Sequence[str]) -> dict[tuple[str, str], set[int]]:
    """The numbers by (stem, count); shards without a number are left out."""
    groups: dict[tuple[str, str], set[int]] = {}
    for match in map(_NUMBERED.fullmatch, shards):
        if match:
            groups.setdefault((match[1], match[3]), set()).add(int(match[2]))
    return groups


def _matches(path: str, patterns: Sequence[str]) -> bool:
    # As in huggingface_hub: `*` also matches `/`, and a pattern that ends in `/` means all that is in the folder. As in
    # a shell, a hidden file is matched only by a pattern that has its dot.
    if is_hidden(path):
        patterns = [pattern for pattern in patterns if is_hidden(pattern)]
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)
