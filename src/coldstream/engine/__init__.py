"""The streamer: from URLs or files into memory, each byte received once, into its final place.

    job  catalog            what is to be loaded; what every consumer is told of it
    message  http           one connection: a range of an object straight into a buffer
    tls  ssl_wire           the same under TLS, by either of two libraries
    arena  extents          pure: which part of the memory belongs to which extent, and who holds it
    actions  scheduler      pure: what is fetched when, on which connection, and what happens when it fails
    pace  slow  trouble     pure: how many connections, which are slow, what failures mean
    processors              whether this machine has any left for more connections
    verdict                 pure: who was the bottleneck
    wire                    the messages between the processes
    worker                  a process of threads, one per connection, that fetch
    tee                     the process that writes the local copy
    streamer                the process that runs the scheduler, and its workers
    rendezvous              the folder that its socket lies in
    attach                  the two ends that a program has: the owner, and consumers with their memory

Standard library and xxhash only; no credentials, no torch, no vLLM. Runs on Linux, imports anywhere.
"""
