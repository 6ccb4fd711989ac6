"""The local copy of models: a plain Hugging Face-style folder that any tool can read, plus a journal of its chunks.

    cache.py      Cache: open a copy, find the latest, list and prune
    copy.py       Copy: one version of one model, held against eviction while it is open
    writer.py     CopyWriter: fills a copy, chunk by chunk in any order, from a process of its own
    room.py       what lies in the cache, what has to go, and taking it away
    contents.py   what of a copy lies on the disk, by its journal
    records.py    plan and journal as bytes; pure
    disk.py       locks, permissions, atomic files, errors

    <root>/models/<org--model>/<version>/...              complete files alone, at their own paths
    <root>/models/<org--model>/<version>/.coldstream/     plan.json journal partial/ lock writer.lock used
    <root>/latest/<sha256 of the URI>.json                the version that a URI had last, for starts without a network
    <root>/lock                                           held for moments, whenever any lock above is taken or tested

Crash-only: a journal record is written after the bytes that it claims, so a killed process leaves less than it wrote
and never more. After a power failure a record may have outlived its bytes; whoever reads a chunk checks its XXH3-128
and tells the writer to `forget` a wrong one. Standard library only, and Linux or macOS.
"""
