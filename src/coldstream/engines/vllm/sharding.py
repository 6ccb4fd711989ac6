"""`coldstream shard`: writes a checkpoint with a part for each rank, for Run:ai's sharded loader.

vLLM loads the model, with its weights streamed from the bucket, and writes what each rank holds into a folder, which
needs disk space for the whole model and is then uploaded like any other model.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm.program import Program
from coldstream.engines.vllm.vllm_engine import KEPT_CREDENTIALS
from coldstream.engines.vllm.vllm_log import FailureReason
from coldstream.errors import ColdstreamError, DiskError
from coldstream.loading.options import Options
from coldstream.machine.disk import checked_root, size_and_free
from coldstream.node.child import Child, Command, running
from coldstream.node.load_service import VARIABLE, LoadService
from coldstream.node.model_folder import NOTE_NAME, model_folder
from coldstream.printable import printable
from coldstream.settings import Settings
from coldstream.units import format_bytes

# The file system needs some space beside the bytes.
_SPARE_SHARE = 1.05
_LAST_LINES = 12


@contextmanager
def sharded_folder(
    uri: str,
    *,
    ranks: int,
    arguments: Sequence[str],
    settings: Settings,
    options: Options,
    program: str | None,
    say: Callable[[str], None],
) -> Iterator[Path]:
    """A folder with the checkpoint of a model for `ranks`-way tensor parallelism, removed after the block.

    `arguments` are more flags for vLLM's engine; `say` is called with each line of its output. Raises DiskError if the
    model does not fit on the disk.
    """
    vllm = Program.find(program).path
    cache = cache_of(settings)
    checked_root(cache.root, create=True)
    with (
        LoadService(uri, options=options) as service,
        tempfile.TemporaryDirectory(prefix="shards-", dir=cache.root) as temporary,
    ):
        share = service.begin(consumers=ranks)
        source = model_folder(uri, settings, resolved=share)
        need, free = int(share.bytes * _SPARE_SHARE), size_and_free(cache.root)[1]
        if need > free:
            raise DiskError(
                f"the shards need {format_bytes(need)}, but {cache.root} has only {format_bytes(free)} free",
                hint="set COLDSTREAM_CACHE_DIR to a folder on a larger disk",
            )
        out = Path(temporary)
        flags = ("--load-format", "coldstream", "--tensor-parallel-size", str(ranks), "--enforce-eager", *arguments)
        module = ("-m", "coldstream.engines.vllm.save_sharded", str(out), "--", str(source.path))
        command = Command(
            arguments=(os.path.join(os.path.dirname(vllm), "python"), *module, *flags),
            environment={VARIABLE: service.address},
            keep=KEPT_CREDENTIALS,
        )
        _run(command, say)
        # All files but the stubs of the weights and their index, which describes other files.
        for path in sorted(source.path.rglob("*")):
            relative = path.relative_to(source.path)
            weights = len(relative.parts) == 1 and path.name.endswith((".safetensors", ".safetensors.index.json"))
            if path.is_file() and not weights and path.name != NOTE_NAME:
                (out / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, out / relative)
        yield out


def _run(command: Command, say: Callable[[str], None]) -> None:
    last_lines: list[str] = []
    reason = FailureReason()

    def on_line(line: str) -> None:
        last_lines.append(line)
        del last_lines[:-_LAST_LINES]
        reason.line(line)
        say(line)

    with (
        open(os.devnull, "wb") as nowhere,
        running(partial(Child, command, on_line=on_line, stdout=nowhere, stderr=nowhere)) as child,
    ):
        code = child.wait()
    if child.signalled:
        raise KeyboardInterrupt
    if code:
        what = f"vLLM exited with {code} while it wrote the shards"
        if reason.text:
            raise ColdstreamError(f"{what}: {reason.text}", hint="--debug shows its whole output")
        print(printable("\n".join(last_lines), keep="\n\t"), file=sys.stderr)  # noqa: T201  # the child's own last words
        raise ColdstreamError(what, hint="see its last lines above")
