"""A model on a CDN or any other HTTP server. It cannot be listed: the manifest, the index or a known name tells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from urllib.parse import quote, unquote, urlsplit

from coldstream.errors import ConfigError, CredentialsError, IntegrityError, NotFoundError, UsageError
from coldstream.machine.parallel import in_parallel
from coldstream.model.job import Headers
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME, checked_path
from coldstream.model.place_names import folder_name
from coldstream.model.selection import INDEX_NAME, indexed, weights
from coldstream.net.retry import Retry
from coldstream.places.origin import Checkpoint, Link
from coldstream.places.origin_records import Record, looks_like_record, read_record, whole_content
from coldstream.places.shard_choice import INDEX_BYTES_MAX, choose, recorded_files
from coldstream.places.shard_headers import Found, Part, Piece, checkpoint_of
from coldstream.places.small_reads import Reader, arrived

SINGLE_NAME = "model.safetensors"
# What vLLM and transformers look for beside the weights, as far as it has fixed names.
WELL_KNOWN_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
    "params.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    INDEX_NAME,
)
_PROBE_BYTES = 64


class WebOrigin:
    """A model below a URL. Implements `Origin`. The URL's query goes with every request and is never shown."""

    def __init__(self, url: str, *, retry: Retry) -> None:
        """Prepares; nothing is asked yet.

        Raises:
            UsageError: It is no URL of a folder.
        """
        split = _split(url)
        self._base = f"{split[0]}://{split[1]}{split[2]}"
        self._query = f"?{split[3]}" if split[3] else ""
        self.label = self._base
        self._name = _name(self._base)
        self._reader = Reader(retry, forbidden="the URL may need a token, or its token has ended")
        self._keys: Mapping[str, Sequence[str]] = {}  # of the objects of the last checkpoint's shards, by path
        self._known: tuple[Record | None] | None = None
        self._moved = False  # whether the server sends its readers elsewhere

    def __repr__(self) -> str:
        return f"WebOrigin({self.label})"

    def checkpoint(self) -> Checkpoint:
        with self._reader:
            return self._checkpoint()

    def _checkpoint(self) -> Checkpoint:
        record = self._record()
        left_out: Mapping[str, str] = {}
        if record:
            choice = choose(record.entries, self.read, is_checked=True)
            paths, left_out = choice.shards, choice.left_out
        else:
            index = self._optional(INDEX_NAME, INDEX_BYTES_MAX)
            paths = self._indexed(index) if index and index.lstrip()[:1] == b"{" else (SINGLE_NAME,)
        found = []
        keys = {}
        for path in paths:
            entry = record.entries[path] if record else None
            objects = [(stored.key, stored.size) for stored in entry.objects] if entry else [(path, None)]
            keys[path] = [self._inside(key) for key, _ in objects]
            parts = tuple(
                Part(
                    size=size,
                    read=partial(self._read_range, path, number),
                    rest=partial(self._rest, path, number),
                )
                for number, (_, size) in enumerate(objects)
            )
            found.append(Found(path=path, where=self._where(path), entry=entry, parts=parts))
        self._keys = keys
        version = record.version if record else None
        try:
            return checkpoint_of(
                found, uri=self.label, name=self._name, version=version, left_out=left_out, salt=self._query
            )
        except NotFoundError as exc:
            if record or paths != (SINGLE_NAME,):
                raise
            raise NotFoundError(
                f"there is no model at {self.label}: none of {MANIFEST_NAME}, {INDEX_NAME} and {SINGLE_NAME} exists",
                hint="name the folder that holds the files; a web server cannot be asked what it has",
                target=self.label,
            ) from exc

    def renew(self, path: str, segment: int = 0) -> Link:
        return self._reader.follow(self._link(self._keys[path][segment]), where=self._where(path))

    def names(self) -> Sequence[str]:
        if record := self._record_once():
            return recorded_files(record)
        with self._reader:
            return self._present()

    def read(self, path: str, bytes_max: int) -> bytes:
        checked_path(path, where=self.label)
        record = self._record_once()
        if record is None:
            return self._whole(path, bytes_max)
        if path not in record.entries:
            raise NotFoundError(f"{self._where(path)} does not exist", target=self._where(path))
        return whole_content(
            record.entries[path],
            lambda stored: self._whole(self._inside(stored.key), bytes_max),
            bytes_max=bytes_max,
            where=self._where(path),
        )

    def _record_once(self) -> Record | None:
        return self._known[0] if self._known else self._record()

    def _record(self) -> Record | None:
        data = self._optional(MANIFEST_NAME, MANIFEST_BYTES_MAX)
        is_record = data is not None and looks_like_record(data)
        record = read_record(data, where=self._where(MANIFEST_NAME)) if data is not None and is_record else None
        self._known = (record,)
        return record

    def _indexed(self, index: bytes) -> tuple[str, ...]:
        shards = [checked_path(path, where=self._where(INDEX_NAME)) for path in indexed(index)]
        return weights([*shards, INDEX_NAME], index=index)

    def _present(self) -> list[str]:
        """The well-known names that are there, sorted."""

        def there(name: str) -> bool:
            try:
                found = self._reader.get(
                    self._link(name), where=self._where(name), stop=_PROBE_BYTES, bytes_max=_PROBE_BYTES
                )
            except (NotFoundError, CredentialsError):
                return False
            # Some servers answer every name with a page.
            return not re.match(rb"\s*<(!doctype|html)", found.body, re.IGNORECASE)

        answers = in_parallel(there, WELL_KNOWN_NAMES)
        return sorted(name for name, answer in zip(WELL_KNOWN_NAMES, answers, strict=True) if answer)

    def _optional(self, path: str, bytes_max: int) -> bytes | None:
        """A file's content, or None where there is none, or where a server hides whether there is."""
        try:
            return self._whole(path, bytes_max)
        except (NotFoundError, CredentialsError):
            return None

    def _whole(self, key: str, bytes_max: int) -> bytes:
        found = self._reader.get(self._link(key), where=self._where(key), stop=bytes_max, bytes_max=bytes_max)
        if found.size > bytes_max:
            raise IntegrityError(f"{self._where(key)} has {found.size} bytes; at most {bytes_max} are read")
        return found.body

    def _rest(self, path: str, segment: int) -> tuple[str, Headers, None]:
        # Where the first objects were found at their own place, no probe asks after each of hundreds.
        url, headers = self.renew(path, segment) if self._moved else self._link(self._keys[path][segment])
        return url, headers, None

    def _read_range(self, path: str, segment: int, start: int, stop: int, etag: str | None) -> Piece:
        link = self._link(self._keys[path][segment])
        found = self._reader.get(
            link, where=self._where(path), start=start, stop=stop, bytes_max=stop - start, etag=etag
        )
        url, headers = arrived(link, found)
        self._moved |= url != link[0]
        return Piece(
            body=found.body, size=found.size, etag=found.etag, stamp=found.etag or "", url=url, headers=headers
        )

    def _inside(self, key: str) -> str:
        if key.startswith("/"):
            raise ConfigError(
                f"{self.label}: its manifest names {key!r}, relative to a store that is not known here",
                hint="load it from the bucket, as org/model",
            )
        return key

    def _link(self, path: str) -> Link:
        return f"{self._base}/{quote(path)}{self._query}", ()

    def _where(self, path: str) -> str:
        return f"{self.label}/{path}"


def _split(url: str) -> tuple[str, str, str, str]:
    """Scheme, host with port, path without a slash at the end, and query, all percent-encoded."""
    try:
        split = urlsplit(url)
        sound = bool(split.hostname) and (split.port is None or split.port > 0)
    except ValueError:
        split, sound = urlsplit(""), False
    if not sound or split.scheme not in {"http", "https"}:
        raise UsageError("that is no URL of a model", hint="for example https://models.example.com/org/model")
    # What is encoded already stays; what is not, is.
    path = quote(split.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
    query = quote(split.query, safe="/%:@!$&'()*+,;=~-._?[]")
    return split.scheme, split.netloc.lower(), path, query


def _name(base: str) -> str:
    """A name like `org/model` out of a URL: the last segments of its path, or its host."""
    split = urlsplit(base)
    return folder_name([unquote(segment) for segment in split.path.split("/")][-2:], split.hostname or "model")
