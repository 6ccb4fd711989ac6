"""The caches of one start: restored before the engine starts, published once it answers. Nothing here fails a start."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from coldstream.errors import CancelledError, ColdstreamError, ConflictError, IntegrityError
from coldstream.machine.disk import disk_errors
from coldstream.node.bundle.archive import unpack
from coldstream.node.bundle.bundle_pointer import Pointer, decode
from coldstream.node.bundle.bundle_store import BundleStore
from coldstream.node.bundle.local_bundles import LocalBundle, Tree

# A restore may take as long as the start that it saves took, and at least this long.
_RESTORE_SECONDS_MIN = 20.0
# The caches of an engine that answers are complete once nothing was added for so long.
_SETTLED_SECONDS = 1.0
_SETTLING_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmState:
    """What happened to the caches of a start.

    Attributes:
        state: "restored" from the store; "local": they were on this machine; "none": no bundle fits, or it did not
            arrive; "refused": the one in the store is not trusted; "off".
        detail: The reason for `state`, for people, or "".
        bytes: Size of the fetched archive. `seconds`: duration of the restore.
        built: Number of files that the engine built all the same, of which `compiled` come from a compiler; None until
            it answers.
        published: "published"; "kept": nothing new; "no: " and the reason, `unpublished`; None until it is known.
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
    unpublished: str = ""


class WarmStart:
    """The caches of one start: `restore`, then `environment` for the engine, then `publish`; `close` in any case.

    `state` is what happened to them, `reads` the record for read-ahead that came with the bundle, or None.
    """

    def __init__(self, local: LocalBundle, store: BundleStore, *, secret: bytes, mode: str) -> None:
        """Does no I/O. `close` cancels the retries of `store`, so no other caller may use it."""
        self.state = WarmState(state="none", key=local.key.digest)
        self.reads: bytes | None = None
        self._local, self._store, self._secret = local, store, secret
        self._mode, self._can_read, self._can_publish = mode, mode in {"auto", "read"}, mode in {"auto", "write"}
        # The bundle in the store, if it fits; and the etag of its pointer, valid or not, once it was read.
        self._stored: Pointer | None = None
        self._etag: str | None = None
        self._is_read = False
        self._before: Tree = {}
        self._ready_seconds: float | None = None
        self._publishing = threading.Lock()

    def __repr__(self) -> str:
        return f"WarmStart({self._local.root.name}, {self.state.state})"

    def restore(self) -> None:
        """Puts the caches in place if there is a bundle for them."""
        began = time.monotonic()
        try:
            is_exclusive = self._local.hold()
            try:
                self._restore(is_exclusive=is_exclusive)
            except IntegrityError as exc:
                self._note(state="refused", detail=exc.message)
            except CancelledError:
                self._note(state="none", detail="restoring it took longer than the start that it saves")
            except ColdstreamError as exc:
                self._note(detail=exc.message)
            self._local.share()
            self._before = self._local.tree()
        except ColdstreamError as exc:
            self._note(state="off", key=None, detail=exc.message)
        self._note(seconds=time.monotonic() - began)

    def _restore(self, *, is_exclusive: bool) -> None:
        is_whole = self._local.is_whole
        if is_whole:
            self._note(state="local")
        stored = self._store.find(self._local.key.digest) if self._can_read else None
        self._is_read = self._can_read
        if stored is None:
            return
        data, self._etag = stored
        self._stored = pointer = decode(data, self._secret, key=self._local.key.digest)
        with suppress(ColdstreamError):
            self.reads = self._store.fetch_reads(pointer)
        # Caches left by a start that never answered may be anything, and are replaced; caches in use stay.
        if not is_whole and is_exclusive:
            with (
                self._limited(pointer.ready_seconds),
                self._local.replaced() as folder,
                tempfile.TemporaryFile(dir=self._local.base) as file,
            ):
                self._store.fetch(pointer, file)
                unpack(file, folder, files=pointer.archive.files, size=pointer.archive.bytes)
            self._local.mark_whole(self._store.name)
            self._note(state="restored", bytes=pointer.archive.size)

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """Cancels the store's calls after this time."""
        cancel = self._store.store.retry.cancel
        timer = threading.Timer(max(_RESTORE_SECONDS_MIN, seconds), cancel.set)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            cancel.clear()

    def explain_miss(self) -> str | None:
        """How the nearest bundle was built, when none fits this start; None when that is unknown.

        Lists the bucket, so call it while the engine starts. Keys that may not list the bucket get None.
        """
        if self.state.state != "none" or self.state.detail or not self._can_read:
            return None
        with suppress(ColdstreamError):
            if nearest := self._store.nearest(self._local.key, self._secret):
                count, pointer = nearest
                which = "the bundle" if count == 1 else f"the nearest of {count} bundles"
                self._note(detail=f"{which} in the bucket was built {self._local.key.explain(pointer.parts)}")
        return self.state.detail or None

    def environment(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """The variables that tell the engine where the caches are."""
        if self.state.state == "off":
            return {}
        return self._local.layout.environment(str(self._local.root), environ)

    def publish(self, *, ready_seconds: float, reads: Callable[[], bytes | None], over: threading.Event) -> None:
        """Publishes the caches if the start, which took `ready_seconds`, built anything new.

        Calls `reads` for the record of what the start read, if anything is published. `over`: the engine has exited.
        """
        with self._publishing:
            self._ready_seconds = ready_seconds
            if self.state.state != "off":
                self._try_to_publish(ready_seconds, reads, over)

    def publish_more(self, *, over: threading.Event) -> None:
        """Publishes again if anything was built since `publish` succeeded."""
        with self._publishing:
            if self._ready_seconds is not None and self.state.published in {"published", "kept"}:
                self._try_to_publish(self._ready_seconds, lambda: None, over)

    def _try_to_publish(self, ready_seconds: float, reads: Callable[[], bytes | None], over: threading.Event) -> None:
        why = ""
        try:
            with disk_errors(self._local.root):
                now = self._settled(over)
                built = [path for path in now if path not in self._before]
                self._note(built=len(built), compiled=sum(map(self._local.layout.is_compiled, built)))
                self._local.mark_whole(self._store.name)
                if not self._can_publish:
                    why = f"--bundle {self._mode} does not publish"
                elif not now:
                    why = "the engine left no caches"
                elif self._stored is not None and not built:
                    self._note(published="kept", unpublished="")
                else:
                    self._publish(now, reads() or self.reads, ready_seconds)
        except ConflictError:
            why = "another node published first"
        except CancelledError:
            why = "the engine exited"
        except ColdstreamError as exc:
            # Often a CredentialsError: the nodes of a fleet should have keys that can only read.
            why = exc.message
        if why:
            self._note(published=f"no: {why}", unpublished=why)

    def _publish(self, now: Tree, reads: bytes | None, ready_seconds: float) -> None:
        self.reads = reads
        replaces = self._etag if self._is_read else self._store.etag(self._local.key.digest)
        self._stored, self._etag = self._store.publish(
            self._local, self._secret, paths=list(now), reads=reads, ready_seconds=ready_seconds, replaces=replaces
        )
        self._is_read, self._before = True, now
        self._note(published="published", published_bytes=self._stored.archive.size, unpublished="")

    def _settled(self, over: threading.Event) -> Tree:
        """The files, once no more are added."""
        deadline = time.monotonic() + _SETTLING_SECONDS_MAX
        now = self._local.tree()
        while not over.wait(_SETTLED_SECONDS) and time.monotonic() < deadline:
            before, now = now, self._local.tree()
            if before == now:
                break
        return now

    def cancel(self) -> None:
        """Cancels a publication that is in progress."""
        self._store.store.retry.cancel.set()

    def close(self) -> None:
        """Releases the caches, and cancels a publication. Idempotent."""
        self.cancel()
        self._local.close()

    def _note(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
