"""The warm-start bundle: the compile caches that one node's start of vLLM built, for the starts of other nodes.

    .coldstream/bundles/<org/model>/<key>.bundle          the pointer: a signature, then JSON; written last
    .coldstream/bundles/<org/model>/<sha256>.tar.gz       an archive, named by its content
    .coldstream/bundles/<org/model>/<sha256>.reads        what to read ahead, likewise

    <cache>/bundles/<key>/                                the caches, where they were built and will be restored
    <cache>/bundles/<key>.json                            a start with them answered: they are whole
    <cache>/bundles/<key>.lock                            held by the starts that use them

An archive holds code that vLLM will run, so write access to the bucket is not enough to be trusted: a pointer counts
only with an HMAC-SHA-256 by `COLDSTREAM_BUNDLE_KEY`, an archive only with the SHA-256 that its pointer names, and both
are checked before one byte is unpacked. Nothing that goes wrong here fails a start.
"""
