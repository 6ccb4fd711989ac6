"""The streamer: from URLs or files into memory; each byte is received once, into its final place.

    scheduler, with extents, arena, pace, hedging, cdn_choice    pure: what is fetched when, and where to
    streamer, with worker_pool, consumers, tee                   the process that carries out the decisions
    worker                                                       a process of threads, one per connection
    attach                                                       a program's ends: the owner, the consumers
    messages, load_statistics                                    what the processes tell each other
    bottleneck                                                   pure: what set the pace

Standard library and xxhash only; no credentials, no torch, no vLLM. Runs on Linux, imports anywhere.
"""
