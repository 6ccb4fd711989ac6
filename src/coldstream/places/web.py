"""A model on a CDN or any other HTTP server. It cannot be listed: the manifest, the index or a known name tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from urllib.parse import quote, unquote, urlsplit

from coldstream.errors import CredentialsError, NotFoundError, UsageError
from coldstream.machine.parallel import in_parallel
from coldstream.model.names import MANIFEST_BYTES_MAX, MANIFEST_NAME, checked_path, folder_name
from coldstream.model.selection import INDEX_BYTES_MAX, INDEX_NAME, indexed, weights
from coldstream.net.http_message import FetchError, parse_target
from coldstream.net.reply import is_page
from coldstream.net.retry import Retry
from coldstream.places.checkpoint import Checkpoint, ShardLocation
from coldstream.places.model_reader import Contents, ModelReader
from coldstream.places.model_records import ModelRecord, looks_like_record, read_record
from coldstream.places.place import Link, Location, ObjectInfo, Piece, check_small
from coldstream.places.small_reads import LinkReader

SINGLE_NAME = "model.safetensors"
# What vLLM and transformers look for beside the weights, as far as it has fixed names.
WELL_KNOWN_NAMES = (
    "config.json", "generation_config.json", "params.json", INDEX_NAME,
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "tekken.json",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json",
    "quantize_config.json", "quant_config.json", "hf_quant_config.json",
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
_PROBE_BYTES = 64


class WebPlace:
    """The files below a URL. Implements `Place`. The URL's query is sent with every request and never shown."""

    pins_by_etag = False

    def __init__(self, url: str, *, retry: Retry) -> None:
        """Touches no network; raises UsageError."""
        try:
            # Encodes only the characters that are not encoded yet.
            target = parse_target(quote(url, safe="/%:@!$&'()*+,;=~-._?[]#"))
        except FetchError:
            raise UsageError(
                "not a valid URL of a model", hint="for example https://models.example.com/org/model"
            ) from None
        path, mark, query = target.path.partition("?")
        self.uri = f"{target.scheme}://{target.authority}{path.rstrip('/')}"
        self.query = mark + query
        self.retry = retry
        self._reader = LinkReader(retry, forbidden="the URL may need a token, or its token has expired")
        self._redirects = False

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        def probe(name: str) -> ObjectInfo | None:
            try:
                head = self._reader.get(self._link(name), where=self._where(name), stop=_PROBE_BYTES)
            except (NotFoundError, CredentialsError):
                return None
            # Some servers answer every name with a page.
            return None if is_page(None, head.body) else ObjectInfo(key=name, size=head.size)

        with self.session():
            present = in_parallel(probe, [name for name in sorted(WELL_KNOWN_NAMES) if name.startswith(prefix)])
        yield from (info for info in present if info)

    def get(self, key: str, *, bytes_max: int | None = None) -> tuple[bytes, ObjectInfo]:
        limit = MANIFEST_BYTES_MAX if bytes_max is None else bytes_max
        whole = self._reader.get(self._link(key), where=self._where(key), stop=limit)
        check_small(self._where(key), whole.size, limit)
        return whole.body, ObjectInfo(key=key, size=whole.size, etag=whole.etag or "")

    def read_piece(self, key: str, start: int, stop: int, *, etag: str | None, where: str) -> Piece:
        link = self._link(key)
        piece = self._reader.read_piece(link, start, stop, etag=etag, where=where)
        self._redirects |= piece.location.url != link[0]
        return piece

    def locate(self, key: str) -> Location:
        # Where the first objects were not redirected, the hundreds after them need no request to find them.
        link = self.renew(key, where=self._where(key)) if self._redirects else self._link(key)
        return Location(*link)

    def renew(self, key: str, *, where: str) -> Link:
        return self._reader.follow(self._link(key), where=where)

    def session(self) -> AbstractContextManager[object]:
        return self._reader

    def _link(self, key: str) -> Link:
        return f"{self.uri}/{quote(key)}{self.query}", ()

    def _where(self, key: str) -> str:
        return f"{self.uri}/{key}"


class WebModelReader(ModelReader):
    """A model below a URL."""

    _place: WebPlace

    def __init__(self, url: str, *, retry: Retry) -> None:
        """Touches no network; raises UsageError."""
        place = WebPlace(url, retry=retry)
        split = urlsplit(place.uri)
        segments = [unquote(segment) for segment in split.path.split("/")][-2:]
        super().__init__(place, "", label=place.uri, name=folder_name(segments, split.hostname or "model"))
        self._salt = place.query

    def names(self) -> Sequence[str]:
        if self._look_once()[0]:
            return super().names()
        return [info.key for info in self._place.list("")]

    def _look(self) -> Contents:
        data = self._optional(MANIFEST_NAME, MANIFEST_BYTES_MAX)
        if data is not None and looks_like_record(data):
            return read_record(data, where=self._where(MANIFEST_NAME)), {}
        return None, {}

    def _choose(self, contents: Contents) -> tuple[tuple[str, ...], Mapping[str, str]]:
        if contents[0]:
            return super()._choose(contents)
        index = self._optional(INDEX_NAME, INDEX_BYTES_MAX)
        if index is None or index.lstrip()[:1] != b"{":
            return (SINGLE_NAME,), {}
        shards = [checked_path(path, where=self._where(INDEX_NAME)) for path in indexed(index)]
        return weights([*shards, INDEX_NAME], index=index), {}

    def _read_headers(
        self, locations: Sequence[ShardLocation], record: ModelRecord | None, left_out: Mapping[str, str]
    ) -> Checkpoint:
        try:
            return super()._read_headers(locations, record, left_out)
        except NotFoundError as exc:
            if record or [shard.path for shard in locations] != [SINGLE_NAME]:
                raise
            raise NotFoundError(
                f"there is no model at {self.label}: none of {MANIFEST_NAME}, {INDEX_NAME} and {SINGLE_NAME} exists",
                hint="name the folder that holds the files; a web server cannot be listed",
                target=self.label,
            ) from exc

    def _optional(self, path: str, bytes_max: int) -> bytes | None:
        """A file's content, unless it does not exist or the server hides whether it does."""
        try:
            return self._place.get(path, bytes_max=bytes_max)[0]
        except (NotFoundError, CredentialsError):
            return None
