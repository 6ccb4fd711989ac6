"""The caches of one start: restored before vLLM begins, published once it answers. Nothing here fails a start."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from coldstream.errors import CancelledError, ColdstreamError, ConflictError, IntegrityError
from coldstream.machine.disk import disk_errors
from coldstream.node.bundle import caches
from coldstream.node.bundle.archive import pack, unpack
from coldstream.node.bundle.bundle_pointer import Pointer, StoredReads, archive_of
from coldstream.node.bundle.bundle_store import BundleStore, StoredPointer
from coldstream.node.bundle.local_bundles import LocalBundle
from coldstream.package import __version__

MODES = ("auto", "read", "write", "off")
# The shortest time that a restore may take; else the time that the start took which it spares.
_RESTORE_SECONDS_MIN = 20.0
# After vLLM answers its caches are complete once nothing was added for so long.
_SETTLED_SECONDS = 1.0
_SETTLING_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmState:
    """What became of a start's caches.

    Attributes:
        state: "restored" from the store; "local": they were on this machine; "none": nothing fits yet, or it did not
            come; "refused": what is in the store is not trusted; "off".
        key: Of the start, a digest; None when off.
        detail: Why, for people; empty when there is nothing to say.
        bytes: Of the archive that was fetched.
        seconds: What restoring took.
        built: Files that vLLM built all the same; None until it answers.
        compiled: How many of them come from a compiler.
        published: "published"; "kept": there was nothing new; "no: " and why; None until that is known.
        published_bytes: Of the archive that was published.
    """

    state: str
    key: str | None = None
    detail: str = ""
    bytes: int = 0
    seconds: float = 0.0
    built: int | None = None
    compiled: int | None = None
    published: str | None = None
    published_bytes: int = 0

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class WarmStart:
    """The caches of one start. `restore`, then `environment` for vLLM, then `publish`; `close` in any case.

    Attributes:
        state: What became of them.
        reads: The record of what to read ahead, that came with the bundle; None without.
    """

    def __init__(self, kept: LocalBundle, shelf: BundleStore, *, secret: bytes, mode: str) -> None:
        """Prepares; touches nothing.

        Args:
            kept: The caches.
            shelf: Where bundles are. Its store's retry is ours alone: `close` cancels it.
            secret: The signing key.
            mode: One of `MODES`.
        """
        self.state = WarmState(state="none", key=kept.key.digest)
        self.reads: bytes | None = None
        self._kept, self._shelf, self._secret, self._mode = kept, shelf, secret, mode
        self._found: StoredPointer | None = None
        self._before: caches.Tree = {}
        self._ready_seconds: float | None = None
        self._publishing = threading.Lock()

    def __repr__(self) -> str:
        return f"WarmStart({self._kept.root.name}, {self.state.state})"

    def restore(self) -> None:
        """Puts the caches in place, if there are any; `state` tells."""
        began = time.monotonic()
        try:
            alone = self._kept.hold()
            try:
                self._restore(alone=alone)
            except IntegrityError as exc:
                self._note(state="refused", detail=exc.message)
            except CancelledError:
                self._note(state="none", detail="it took longer to come than the start that it spares")
            except ColdstreamError as exc:
                self._note(detail=exc.message)
            self._kept.share()
            self._before = caches.tree(str(self._kept.root))
        except ColdstreamError as exc:
            self._note(state="off", key=None, detail=exc.message)
        self._note(seconds=time.monotonic() - began)

    def _restore(self, *, alone: bool) -> None:
        whole = self._kept.is_whole
        if whole:
            self._note(state="local")
        if self._mode not in {"auto", "read"}:
            return
        self._found = self._shelf.find(self._kept.key.digest, self._secret)
        if self._found is None:
            return
        pointer = self._found.pointer
        with suppress(ColdstreamError):
            self.reads = self._shelf.fetch_reads(pointer)
        # Caches that no start has finished with may be anything, and give way; those in use stay.
        if not whole and alone:
            with self._limited(pointer.ready_seconds):
                self._fetch(pointer)
            self._kept.mark_whole(self._shelf.name)
            self._note(state="restored", bytes=pointer.archive.size)

    def explain_miss(self) -> str | None:
        """Notes how the bundle that comes nearest was built, where none fits this start; None where that is not known.

        It asks the bucket, so it is for when vLLM runs. Keys that cannot list the bucket learn nothing.
        """
        if self.state.state != "none" or self.state.detail or self._mode not in {"auto", "read"}:
            return None
        with suppress(ColdstreamError):
            if nearest := self._shelf.nearest(self._kept.key, self._secret):
                count, pointer = nearest
                which = "the bundle" if count == 1 else f"the nearest of {count} bundles"
                self._note(detail=f"{which} in the bucket was built {self._kept.key.explain(pointer.parts)}")
        return self.state.detail or None

    def _fetch(self, pointer: Pointer) -> None:
        with self._kept.replaced() as folder, tempfile.TemporaryFile(dir=self._kept.base) as file:
            self._shelf.fetch(pointer, file)
            unpack(file, folder, files=pointer.archive.files, size=pointer.archive.bytes)

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """Ends the store's calls after so long."""
        cancel = self._shelf.store.retry.cancel
        timer = threading.Timer(max(_RESTORE_SECONDS_MIN, seconds), cancel.set)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            cancel.clear()

    def environment(self, environ: Mapping[str, str], *, gpu: bool, vllm: str) -> dict[str, str]:
        """The variables that vLLM needs to find them; see `caches.environment`."""
        if self.state.state == "off":
            return {}
        return caches.environment(str(self._kept.root), environ, gpu=gpu, vllm=vllm)

    def publish(self, *, ready_seconds: float, reads: Callable[[], bytes | None], over: threading.Event) -> None:
        """Publishes what the start built, if that is anything new; `state` tells.

        Args:
            ready_seconds: What the start took.
            reads: Records what it read; asked only when there is something to publish.
            over: Set when vLLM ends.
        """
        if self.state.state == "off":
            return
        with self._publishing:
            self._note(published=self._try_to_publish(ready_seconds, reads, over))

    def publish_more(self, *, over: threading.Event) -> None:
        """Publishes what was built since, if anything was, and if something was published at all."""
        with self._publishing:
            if self._ready_seconds is not None and self.state.published in {"published", "kept"}:
                self._note(published=self._try_to_publish(self._ready_seconds, lambda: None, over))

    def _try_to_publish(self, ready_seconds: float, reads: Callable[[], bytes | None], over: threading.Event) -> str:
        self._ready_seconds = ready_seconds
        try:
            with disk_errors(self._kept.root):
                now = self._settled(over)
                built = caches.built(self._before, now)
                self._note(built=len(built), compiled=len(caches.compiled(built)))
                self._kept.mark_whole(self._shelf.name)
                return self._publish(now, built, ready_seconds, reads)
        except ConflictError:
            return "no: another node published first"
        except CancelledError:
            return "no: vLLM ended"
        except ColdstreamError as exc:
            # Above all CredentialsError: nodes of a fleet should have keys that can only read.
            return f"no: {exc.message}"

    def _publish(
        self, now: caches.Tree, built: Sequence[str], ready_seconds: float, reads: Callable[[], bytes | None]
    ) -> str:
        if self._mode not in {"auto", "write"}:
            return "no: not asked for"
        if not now:
            return "no: vLLM kept nothing"
        if self._found is not None and not built:
            return "kept"
        self.reads = reads() or self.reads
        replaces = self._found.etag if self._found else self._shelf.etag(self._kept.key.digest)
        pointer = publish(
            self._shelf,
            self._kept,
            self._secret,
            paths=list(now),
            reads=self.reads,
            ready_seconds=ready_seconds,
            replaces=replaces,
        )
        self._note(published_bytes=pointer.archive.size)
        self._before = now
        if etag := self._shelf.etag(self._kept.key.digest):
            self._found = StoredPointer(pointer=pointer, etag=etag)
        return "published"

    def _settled(self, over: threading.Event) -> caches.Tree:
        deadline = time.monotonic() + _SETTLING_SECONDS_MAX
        now = caches.tree(str(self._kept.root))
        while not over.wait(_SETTLED_SECONDS) and time.monotonic() < deadline:
            before, now = now, caches.tree(str(self._kept.root))
            if before == now:
                break
        return now

    def cancel(self) -> None:
        """Ends what is being published, soon."""
        self._shelf.store.retry.cancel.set()

    def close(self) -> None:
        """Lets go of the caches, and ends what is still being published. Idempotent."""
        self.cancel()
        self._kept.close()

    def _note(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


def publish(
    shelf: BundleStore,
    kept: LocalBundle,
    secret: bytes,
    *,
    paths: Sequence[str] | None = None,
    reads: bytes | None = None,
    ready_seconds: float = 0.0,
    replaces: str | None,
) -> Pointer:
    """Packs caches of this machine and puts them on the shelf.

    Args:
        shelf: Where to.
        kept: What.
        secret: The signing key.
        paths: Those of its files that are meant; None for all that are worth keeping.
        reads: The record of what a start with them read; None when there is none.
        ready_seconds: What a start took that had to build them; 0 when that is not known.
        replaces: The version of the pointer that is there; None when there is none.

    Raises:
        ConflictError: Somebody else published meanwhile.
        DiskError: There is no room for the archive.
        What the store's calls raise.
    """
    # vLLM answers by now, and comes first.
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    with disk_errors(kept.base), tempfile.TemporaryFile(dir=kept.base) as file:
        files = caches.tree(str(kept.root)) if paths is None else paths
        packed = pack(str(kept.root), files, file, check=shelf.store.retry.check)
        pointer = Pointer(
            format=1,
            key=kept.key.digest,
            parts=dict(kept.key.parts),
            archive=archive_of(packed),
            reads=StoredReads(sha256=hashlib.sha256(reads).hexdigest(), size=len(reads)) if reads else None,
            created=datetime.now(timezone.utc),
            tool=f"coldstream {__version__}",
            ready_seconds=ready_seconds,
        )
        shelf.publish(pointer, file, reads, secret, replaces=replaces)
    return pointer
