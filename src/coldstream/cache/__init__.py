"""The local copies of models: plain Hugging Face folders that any tool can read, each with a journal of its chunks.

    cache         opens copies, finds the latest one, lists and prunes them; an open copy is protected from eviction
    copy_writer   fills a copy, chunk by chunk in any order, from a separate process
    space         what is in the cache, what has to go, and its removal
    copy_records  a copy's plan and journal, checked against its files

    <root>/models/<org--model>/<version>/...              complete files only, at their own paths
    <root>/models/<org--model>/<version>/.coldstream/     plan.json journal partial/ lock writer.lock used
    <root>/latest/<sha256 of the URI>.json                the last version of a URI, for starts without a network
    <root>/lock                                           held briefly, whenever any lock above is taken or tested

Crash-only: a journal record is written after its bytes, so a killed process claims less than it wrote, never more.
After a power failure a record may have outlived its bytes: the reader of a chunk checks its XXH3-128, and tells the
writer to `forget` a wrong one. Standard library only, on Linux or macOS.
"""
