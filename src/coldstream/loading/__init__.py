"""From a URI to tensors: the library's face.

options    how a load is to be done
prepare    what there is to load, and what of it lies in the local cache
reader     tensors out of ready extents, on the CPU or on a device
load       one process loads: `stream`, `load`
sharing    one process starts a load, several read it: `share`, `attach`
into       into a torch module, in place: `load_into`
report     what a load did; account: what it has done so far
counting   in the metrics' file, if one is configured
"""

from __future__ import annotations

from coldstream.loading.account import Account
from coldstream.loading.into import LoadIntoReport, load_into
from coldstream.loading.options import Options
from coldstream.loading.report import LoadReport
from coldstream.loading.sharing import Attached, Share, attach, share
from coldstream.loading.streaming import Load, load, stream

__all__ = [
    "Account",
    "Attached",
    "Load",
    "LoadIntoReport",
    "LoadReport",
    "Options",
    "Share",
    "attach",
    "load",
    "load_into",
    "share",
    "stream",
]
