"""The tensors of a load, in each of the engine's ranks that read it together."""

from __future__ import annotations

import itertools
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from coldstream.errors import ColdstreamError, ConflictError
from coldstream.loading.options import Options
from coldstream.loading.sharing import Share, attach
from coldstream.loading.streaming import Load
from coldstream.node import load_service
from coldstream.node.model_folder import Note

if TYPE_CHECKING:
    import torch

    from coldstream.engine.load_statistics import LoadReport

# Gathers a value of each rank that loads the model now, in the same order in each of them. Collective.
Gather = Callable[[Any], list[Any]]

# The loads of this process; every rank counts alike, so that they request the same load. Draft models are counted
# apart, because not every rank has them.
_loads = itertools.count(1)
_draft_loads = itertools.count(1)


def rank_tensors(
    note: Note,
    options: Mapping[str, Any],
    *,
    gather: Gather,
    group: str = "",
    is_draft: bool = False,
    log: Callable[..., None],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the model, from the process that streams them on this node.

    Args:
        options: Those of a load, by their names in `Options`. Of a load service, only framework and pin apply.
        group: Tells the ranks of `gather` from others that may load the same model at the same time.
        is_draft: Whether it is the draft model, which `serve` begins to stream as such.
        log: Called as `logging` calls its functions.
    """
    which = f"draft {next(_draft_loads)}{group}" if is_draft else f"{next(_loads)}{group}"
    mine = (*_place(), uuid.uuid4().hex)
    neighbours = [rank for rank in gather(mine) if rank[:2] == mine[:2]]
    if address := os.environ.get(load_service.VARIABLE):
        offer = load_service.ask(address, note.uri, which, consumers=len(neighbours))
        with attach(offer, framework=options["framework"], pin=options["pin"]) as attached:
            log("coldstream: reading %s from the stream of this node", note.uri)
            yield from attached
        return
    if len(neighbours) == 1:
        with Load(note.uri, Options(**options)) as loading:
            for pair in loading:
                _check_version(note, loading.version)
                yield pair
                # What is held here stays in memory.
                del pair
            assert loading.report is not None
            _log_report(loading.report, log)
        return
    with ExitStack() as stack:
        shared: Share | None = None
        error: ColdstreamError | None = None
        if neighbours[0] == mine:
            try:
                shared = stack.enter_context(Share(note.uri, consumers=len(neighbours), options=Options(**options)))
                _check_version(note, shared.version)
            except ColdstreamError as exc:
                error = exc
        outcome = (shared.address if shared and not error else "", error.message if error else "")
        offers = dict(gather((mine, outcome)))
        address, message = offers[neighbours[0]]
        if not address:
            raise error or ColdstreamError(message)
        with attach(address, framework=options["framework"], pin=options["pin"]) as attached:
            yield from attached
        if shared is not None and (report := shared.wait(60.0)):
            _log_report(report, log)
        # The first rank's streamer serves the others until they are done.
        gather("")


def _place() -> tuple[str, str]:
    """This node: its name, and what tells it from others of the same name."""
    boot_id = ""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read()
    return socket.gethostname(), boot_id


def _check_version(note: Note, version: str) -> None:
    if note.version not in {"", version}:
        raise ConflictError(f"{note.uri} was replaced since its folder was made", hint="start again")


def _log_report(report: LoadReport, log: Callable[..., None]) -> None:
    checked = "verified" if report.verified else "unverified"
    log(f"coldstream: {report.bytes / 1e9:.2f} GB in {report.seconds:.2f} s, {checked}; {report.limited_by}")
