"""The models that are served: real safetensors files with Llama's tensor sizes, random content, and a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

GIB = 1 << 30
LISTING = "listing.xml"
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Model:
    """A model on tmpfs.

    Attributes:
        root: The folder that a server serves.
        path: The model's folder below it, "bench/llama": the first step is the bucket's name for S3 clients.
        files: Name and size of each shard, in order.
        tensors: How many there are in all.
    """

    root: Path
    path: str
    files: tuple[tuple[str, int], ...]
    tensors: int

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(size for _, size in self.files)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.root / self.path


def llama_tensors(total_bytes: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes (bf16) of a Llama 3.2 of the 1B kind, with as many layers as the size needs."""
    hidden, inner, narrow = 2048, 8192, 512
    vocabulary = 128_256 if total_bytes >= GIB else 16_032
    tensors: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocabulary, hidden))]
    left = total_bytes - vocabulary * hidden * 2
    layer = 0
    while left > 0:
        prefix = f"model.layers.{layer}"
        block: list[tuple[str, tuple[int, ...]]] = [
            (f"{prefix}.input_layernorm.weight", (hidden,)),
            (f"{prefix}.mlp.down_proj.weight", (hidden, inner)),
            (f"{prefix}.mlp.gate_proj.weight", (inner, hidden)),
            (f"{prefix}.mlp.up_proj.weight", (inner, hidden)),
            (f"{prefix}.post_attention_layernorm.weight", (hidden,)),
            (f"{prefix}.self_attn.k_proj.weight", (narrow, hidden)),
            (f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)),
            (f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)),
            (f"{prefix}.self_attn.v_proj.weight", (narrow, hidden)),
        ]
        tensors += block
        left -= sum(_bytes(shape) for _, shape in block)
        layer += 1
    return [*tensors, ("model.norm.weight", (hidden,))]


def small_tensors(count: int, tensor_bytes: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes (bf16) of many equal tensors: the experts' scales of a large quantised model look like this."""
    return [(f"model.layers.{n // 1000}.experts.{n % 1000}.scale", (tensor_bytes // 2,)) for n in range(count)]


def make_model(
    root: Path, path: str, tensors: Sequence[tuple[str, tuple[int, ...]]], *, shards: int, manifest: bool = True
) -> Model:
    """Writes the shards, the index, a config and the manifest below `root/path`.

    The manifest's ETags are those that nginx and the sendfile server give: the time of change and the size.
    """
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(_bytes(shape) for _, shape in tensors)
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shards)]
    position = 0
    for name, shape in tensors:
        groups[min(shards - 1, position * shards // total)].append((name, shape))
        position += _bytes(shape)
    weight_map: dict[str, str] = {}
    files: list[tuple[str, int]] = []
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        weight_map |= dict.fromkeys((tensor for tensor, _ in group), name)
        files.append((name, _write(folder / name, _shard(group))))
    beside = ["config.json"]
    _write(folder / "config.json", [b'{"model_type": "llama"}'])
    if shards > 1:
        beside.append("model.safetensors.index.json")
        _write(
            folder / beside[-1], [json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}).encode()]
        )
    if "/" in path:
        write_listing(folder.parent)
    if manifest:
        write_manifest(folder, path, [*(name for name, _ in files), *beside])
    return Model(root=root, path=path, files=tuple(files), tensors=len(tensors))


def write_listing(bucket: Path) -> None:
    """Writes what a server answers to ListObjectsV2 for a bucket's folder, whatever the prefix."""
    entries = "".join(
        f"<Contents><Key>{path.relative_to(bucket).as_posix()}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
        f"<ETag>&quot;{etag(path)}&quot;</ETag><Size>{path.stat().st_size}</Size></Contents>"
        for path in sorted(bucket.glob("*/*.safetensors"))
    )
    text = f"<ListBucketResult><Name>{bucket.name}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    (bucket / LISTING).write_text(text)


def etag(path: Path) -> str:
    """The ETag that nginx gives a file, without quotes."""
    found = path.stat()
    return f"{int(found.st_mtime):x}-{found.st_size:x}"


def _bytes(shape: tuple[int, ...]) -> int:
    count = 2
    for length in shape:
        count *= length
    return count


def _shard(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Iterable[bytes]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors:
        stop = position + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    while position:
        piece = os.urandom(min(position, _PIECE_BYTES))
        position -= len(piece)
        yield piece


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    """Writes a file; its size."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        return file.tell()


def write_manifest(folder: Path, path: str, names: Sequence[str]) -> None:
    """Hashes the files, which are in the page cache, and writes the manifest beside them."""
    # Imported here: benchmarks/gpu.py makes models where msgspec is not installed, and then without a manifest.
    import msgspec

    from coldstream.mirror.digest import StreamDigest
    from coldstream.model.manifest import FileEntry, Manifest, Provenance, StoredObject, pack_header, serialize
    from coldstream.model.names import MANIFEST_NAME

    entries = []
    for name in names:
        size = (folder / name).stat().st_size
        digest = StreamDigest(name, size)
        with (folder / name).open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(memoryview(piece))
        found = digest.finish()
        stored = StoredObject(key=name, size=size, etag=etag(folder / name))
        chunks = found.chunks
        if name.endswith(".safetensors"):
            with (folder / name).open("rb") as file:
                chunks = msgspec.structs.replace(chunks, header=pack_header(file.read(chunks.stops[0])))
        entries.append(FileEntry(path=name, size=size, sha256=found.sha256, objects=(stored,), chunks=chunks))
    record = Manifest(
        name=path.partition("/")[2],
        source=Provenance(kind="folder"),
        created=datetime.now(timezone.utc),
        tool="benchmarks/stream.py",
        files=tuple(entries),
    )
    (folder / MANIFEST_NAME).write_bytes(serialize(record))
