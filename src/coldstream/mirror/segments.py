"""A file on its way into the pool of segments: made from the bytes that pass by, or by the store from a copy it has.

A segment's key is its SHA-256, so its bytes have to be known before it is sent: `SegmentUpload` keeps the parts of a
segment in memory until the last of them is hashed, then looks whether the store has it, and sends only what it has not.
`SegmentCopy` needs no bytes: the file has just been stored in one piece, hashed on the way, and the store cuts it up by
itself. All segments are multipart uploads of one part size, whoever makes them and however: on S3 and R2 two writers of
one segment then give it the same ETag, and neither disturbs a reader of the other's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, NotFoundError, UploadNotFoundError
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest, cut, read_header
from coldstream.mirror.pump import Countdown
from coldstream.mirror.segment_pool import segment_key
from coldstream.model.chunks import PART_BYTES, parts
from coldstream.model.manifest import FileEntry, StoredObject
from coldstream.places.source import Source, SourceFile
from coldstream.places.store import Store, UploadPart
from coldstream.progress import Progress
from coldstream.units import plural


@dataclass(frozen=True, slots=True)
class Whole:
    """The object that holds a whole file: its key in the store, and the ETag of the version that was verified."""

    key: str
    etag: str


@dataclass(slots=True)
class SegmentCounts:
    """What became of the segments of an upload. Thread-safe.

    Attributes:
        sent: How many were sent from here.
        copied: How many the store made from a copy that it had.
        kept: How many were there.
        kept_bytes: What those hold.
        sent_bytes: What was sent of segments.
        parts: In how many parts.
    """

    sent: int = 0
    copied: int = 0
    kept: int = 0
    kept_bytes: int = 0
    sent_bytes: int = 0
    parts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Adds to several of them at once."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


class Pool:
    """The store's segments as one upload sees them. Thread-safe.

    Attributes:
        store: Where they are.
        counts: What became of those that were asked for.
        copies: Whether the store copies ranges; found out at the first attempt.
    """

    def __init__(self, store: Store, known: Mapping[str, str]) -> None:
        """Prepares.

        Args:
            store: Where.
            known: Key, as in a manifest, to the ETag that an earlier upload of this model saw. What has another one
                now is not that object any more, and is replaced.
        """
        self.store = store
        self.counts = SegmentCounts()
        self.copies = True
        self._known = known

    def find(self, sha256: str, size: int) -> StoredObject | None:
        """The segment, if the store has it."""
        key = segment_key(sha256)
        try:
            info = self.store.head(key[1:])
        except NotFoundError:
            return None
        if info.size != size or self._known.get(key, info.etag) != info.etag:
            return None
        return StoredObject(key=key, size=size, etag=info.etag, part_bytes=PART_BYTES)

    def begin(self, sha256: str) -> str:
        """Begins a segment; the upload's id."""
        return self.store.create_upload(segment_key(sha256)[1:])

    def complete(self, sha256: str, size: int, upload_id: str, stored: Sequence[UploadPart]) -> StoredObject | None:
        """Makes a segment of its parts; None when the upload is gone and the segment is not there."""
        key = segment_key(sha256)
        try:
            self.store.complete_upload(key[1:], upload_id, stored)
        except UploadNotFoundError:
            # It may have worked although the answer was lost, or somebody else stored the same.
            return self.find(sha256, size)
        info = self.store.head(key[1:])
        if info.size != size:
            raise IntegrityError(f"{self.store.uri}{key} has {info.size} bytes, {size} were stored")
        return StoredObject(key=key, size=size, etag=info.etag, part_bytes=PART_BYTES)

    def copy(self, sha256: str, start: int, stop: int, whole: Whole) -> StoredObject | None:
        """Has the store make a segment from `[start, stop)` of an object; None when it cannot, or the upload is gone.

        Raises:
            ConflictError: The object is not the one that was hashed.
        """
        key, upload_id = segment_key(sha256)[1:], self.begin(sha256)
        made = []
        try:
            for number, (first, last) in enumerate(parts(stop - start, PART_BYTES), start=1):
                etag = self.store.copy_part(
                    key, upload_id, number, whole.key, start + first, start + last, if_match=whole.etag
                )
                if etag is None:
                    self.copies = False
                    self.store.abort_upload(key, upload_id)
                    return None
                made.append(UploadPart(number, last - first, etag))
            # Whatever stands under the hash is believed by every later upload, and a server may ignore the condition.
            if self.store.head(whole.key).etag != whole.etag:
                raise ConflictError(f"{self.store.uri}/{whole.key} was changed while the upload ran")
        except UploadNotFoundError:
            return None
        except ColdstreamError:
            with self.store.retry.shielded():
                self.store.abort_upload(key, upload_id)
            raise
        found = self.complete(sha256, stop - start, upload_id, made)
        self.counts.add(copied=found is not None)
        return found


@dataclass(slots=True)
class _Segment:
    """One segment on its way.

    Attributes:
        start: Its first byte in the file.
        stop: One past its last.
        ready: Counts down to where its hash and all its pieces are there.
        left: Counts down to where all its pieces are sent.
        pieces: Part number to its bytes and what to call when they may go.
        sha256: Once it is known.
        stored: Once it is in the store.
        upload_id: While it is being sent.
        made: Its stored parts, by number.
    """

    start: int
    stop: int
    ready: Countdown = field(init=False)
    left: Countdown = field(init=False)
    pieces: dict[int, tuple[memoryview, Callable[[], None]]] = field(default_factory=dict)
    sha256: str = ""
    stored: StoredObject | None = None
    upload_id: str = ""
    made: dict[int, UploadPart] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.stop - self.start


class SegmentUpload:
    """A file that is read, hashed and sent by segments. Implements `FileWork`.

    Attributes:
        file: The file.
        entry: What is stored, once all of it is. None after the end when the unfinished upload of a segment vanished:
            then the file starts over, and what is stored of it is found.
        parts: Those of its segments, one segment after the other.
    """

    def __init__(
        self,
        pool: Pool,
        source: Source,
        file: SourceFile,
        *,
        object_bytes_max: int,
        whole: Whole | None,
        submit: Callable[[Callable[[], None]], None],
        note: Callable[[FileEntry], None],
        progress: Progress,
    ) -> None:
        """Prepares.

        Args:
            pool: Where segments go.
            source: What the file is read from.
            file: The file: safetensors.
            object_bytes_max: The most that a segment may have.
            whole: The same bytes in the store already, in one piece, or None.
            submit: Runs a job on one of the pump's threads.
            note: Called with what is stored.
            progress: Who is told.
        """
        self.file = file
        self.entry: FileEntry | None = None
        self.parts: tuple[tuple[int, int], ...] = ()
        self._pool, self._source, self._whole, self._progress = pool, source, whole, progress
        self._object_bytes_max = object_bytes_max
        self._submit, self._note = submit, note
        self._digest: OrderedDigest | None = None
        self._segments: dict[int, _Segment] = {}  # by stop
        self._places: list[tuple[_Segment, int]] = []  # of each part: its segment, its number there
        self._lost = False

    @property
    def digest(self) -> OrderedDigest:
        assert self._digest is not None
        return self._digest

    def prepare(self) -> None:
        # Where segments end must be known before the first part is taken, so the header is read twice.
        _, stops = cut(read_header(self._source, self.file), self._object_bytes_max)
        for start, stop in pairwise((0, *stops)):
            segment = self._segments[stop] = _Segment(start, stop)
            pieces = tuple(parts(segment.size, PART_BYTES))
            segment.ready = Countdown(len(pieces) + 1, partial(self._submit, partial(self._settle, segment)))
            segment.left = Countdown(len(pieces), partial(self._complete, segment))
            self.parts += tuple((start + first, start + last) for first, last in pieces)
            self._places += [(segment, number) for number in range(1, len(pieces) + 1)]
        stream = StreamDigest(
            self.file.path,
            self.file.size,
            git=self.file.git_blob_id is not None,
            object_bytes_max=self._object_bytes_max,
            on_segment=self._on_segment,
        )
        self._digest = OrderedDigest(stream)
        self._progress.begin(self.file.path, self.file.size)

    def fetch(self, start: int, view: memoryview) -> None:
        self._source.read_into(
            self.file, start, view, on_read=lambda count: self._progress.fetched(self.file.path, count)
        )

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        segment, number = self._places[index]
        segment.pieces[number] = (view, stored)
        segment.ready.down()

    def finish(self) -> None:
        digests = self.digest.finish()
        digests.check(self.file, label=self._source.label)
        found = tuple(segment.stored for segment in self._segments.values() if segment.stored)
        if self._lost or len(found) < len(self._segments):
            self._progress.end(self.file.path, "starts over: the unfinished upload of a segment is gone")
            return
        self.entry = digests.entry(self.file, found, object_bytes_max=self._object_bytes_max)
        self._note(self.entry)
        self._progress.end(self.file.path, plural(len(found), "segment"))

    def abort_if_bad(self) -> None:
        """Drops the unfinished segments: no later run goes on from them."""
        for segment in self._segments.values():
            if segment.upload_id and not segment.stored:
                with suppress(ColdstreamError):
                    self._pool.store.abort_upload(segment_key(segment.sha256)[1:], segment.upload_id)

    def _on_segment(self, stop: int, sha256: str) -> None:
        segment = self._segments.get(stop)
        if segment is None:
            raise ConflictError(f"{self.file.path} changed while it was being read", hint="run the same command again")
        segment.sha256 = sha256
        segment.ready.down()

    def _settle(self, segment: _Segment) -> None:
        """All bytes of a segment are here and hashed: whatever is missing is done."""
        segment.stored = self._pool.find(segment.sha256, segment.size)
        if segment.stored:
            self._pool.counts.add(kept=1, kept_bytes=segment.size)
        elif self._whole and self._pool.copies:
            segment.stored = self._pool.copy(segment.sha256, segment.start, segment.stop, self._whole)
        if segment.stored:
            for view, done in segment.pieces.values():
                self._progress.stored(self.file.path, len(view))
                done()
            return
        segment.upload_id = self._pool.begin(segment.sha256)
        for number in tuple(segment.pieces):
            self._submit(partial(self._send, segment, number))

    def _send(self, segment: _Segment, number: int) -> None:
        view, done = segment.pieces[number]
        try:
            etag = self._pool.store.put_part(
                segment_key(segment.sha256)[1:], segment.upload_id, number, view, on_sent=self._on_sent
            )
            segment.made[number] = UploadPart(number, len(view), etag)
            self._pool.counts.add(sent_bytes=len(view), parts=1)
        except UploadNotFoundError:
            self._lost = True
        segment.left.down()
        done()

    def _complete(self, segment: _Segment) -> None:
        if len(segment.made) < len(segment.pieces):
            return
        made = [segment.made[number] for number in sorted(segment.made)]
        segment.stored = self._pool.complete(segment.sha256, segment.size, segment.upload_id, made)
        self._pool.counts.add(sent=1)

    def _on_sent(self, count: int) -> None:
        self._progress.stored(self.file.path, count)


class SegmentCopy:
    """A file whose segments the store makes from the object that holds it in one piece. Implements `FileWork`.

    Its parts are empty, one for each segment: nothing is read here.

    Attributes:
        file: The file.
        entry: What is stored, once all of it is; None after the end when the store cannot copy, or when the unfinished
            upload of a segment vanished.
        parts: See above.
    """

    def __init__(
        self,
        pool: Pool,
        file: SourceFile,
        *,
        object_bytes_max: int,
        whole: Whole,
        digests: Digests,
        note: Callable[[FileEntry], None],
        progress: Progress,
    ) -> None:
        """Prepares.

        Args:
            pool: Where segments go.
            file: The file.
            object_bytes_max: What it was cut by.
            whole: The object to copy from.
            digests: Its hashes, those of its segments among them.
            note: Called with what is stored.
            progress: Who is told.
        """
        self.file = file
        self.entry: FileEntry | None = None
        stops = [stop for stop, _ in digests.segments]
        self._ranges = list(pairwise((0, *stops)))
        self.parts = tuple((start, start) for start, _ in self._ranges)
        self._pool, self._whole, self._digests, self._progress = pool, whole, digests, progress
        self._object_bytes_max, self._note = object_bytes_max, note
        self._stored: dict[int, StoredObject] = {}

    @property
    def digest(self) -> SegmentCopy:
        return self

    def offer(self, index: int, view: memoryview, hashed: Callable[[], None]) -> None:
        """There is nothing to hash."""
        hashed()

    def prepare(self) -> None:
        self._progress.begin(self.file.path, 0)

    def fetch(self, start: int, view: memoryview) -> None:
        pass

    def store(self, index: int, start: int, view: memoryview, stored: Callable[[], None]) -> None:
        (first, last), sha256 = self._ranges[index], self._digests.segments[index][1]
        found = self._pool.find(sha256, last - first)
        if found:
            self._pool.counts.add(kept=1, kept_bytes=found.size)
        elif self._pool.copies:
            found = self._pool.copy(sha256, first, last, self._whole)
        if found:
            self._stored[index] = found
        stored()

    def finish(self) -> None:
        if len(self._stored) == len(self._ranges):
            objects = tuple(self._stored[index] for index in range(len(self._ranges)))
            self.entry = self._digests.entry(self.file, objects, object_bytes_max=self._object_bytes_max)
            self._note(self.entry)
        self._progress.end(self.file.path, plural(len(self._stored), "segment"))

    def abort_if_bad(self) -> None:
        """Nothing of it is unfinished when a copy has failed."""
