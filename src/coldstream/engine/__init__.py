"""The streamer: from URLs or files into memory, each byte received once, into its final place.

    job         what is to be loaded: files, chunks, extents, links
    http  tls   one connection: a range of an object straight into a buffer
    arena       pure: which part of the memory belongs to which extent
    pace        pure: how many connections, from what the bucket gives
    scheduler   pure: what is fetched when, on which connection, and what happens when it fails
    wire        the messages between the processes
    worker      a process of threads, one per connection, that fetch
    streamer    the process that runs the scheduler, and its workers
    attach      the consumer's side: extents as they become ready, as memory that is released by reference

Standard library and xxhash only; no credentials, no torch, no vLLM. Runs on Linux, imports anywhere.
"""
