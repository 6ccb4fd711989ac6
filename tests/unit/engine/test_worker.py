from __future__ import annotations

import mmap
import socket

import pytest

from coldstream.engine import messages
from coldstream.engine.worker import Worker


def fetch() -> bytes:
    return messages.FetchRequest(
        chunk=3,
        segment=0,
        version=0,
        start=0,
        stop=10,
        wire_start=0,
        wire_stop=10,
        offset=0,
        skip=0,
        is_local=False,
        cdn=False,
        checked=False,
        hashed=False,
        digest=b"",
    ).pack()


def test_a_bug_is_answered_and_not_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streamer, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, _kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = Worker(control=control, connections={0: mine}, arena=-1, counters=mmap.mmap(-1, 4096))

    def broken(*_: object) -> messages.FetchResult:
        raise KeyError("https://bucket?X-Amz-Signature=secret")

    monkeypatch.setattr(worker, "_fetch", broken)
    with streamer, mine, control, _kept:
        streamer.send(fetch())
        streamer.shutdown(socket.SHUT_WR)
        worker._serve(0)
        answer = messages.FetchResult.unpack(streamer.recv(messages.MESSAGE_BYTES_MAX))
    assert answer.kind == "broken"
    assert answer.chunk == 3
    assert answer.message.startswith("internal error: KeyError at test_worker.py:")
    assert "secret" not in answer.message
    assert capfd.readouterr() == ("", "")


def test_a_streamer_that_was_killed_ends_the_worker_without_a_word(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The link that is to be fetched was not sent, so it would be waited for so long.
    monkeypatch.setattr("coldstream.engine.worker._LINK_SECONDS", 0.2)
    streamer, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs, mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Messages that nobody read make the kernel say "connection reset".
    control.send(b"unread")
    mine.send(b"unread")
    theirs.send(fetch())
    streamer.close()
    theirs.close()
    worker = Worker(control=control, connections={0: mine}, arena=-1, counters=mmap.mmap(-1, 4096))
    with control, mine:
        worker.run()
        worker._serve(0)
    assert capfd.readouterr() == ("", "")
