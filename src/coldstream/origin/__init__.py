"""Where a load's bytes come from: a URI becomes shards that plain HTTP or a local file gives.

    contract    Shard, Checkpoint, Origin
    opening     open_origin: chooses by URI
    stored      a bucket: links are presigned here, so that nothing below ever holds a key
    folder      a local folder, and a store that is one
    web         a CDN or any other HTTP server
    hub         Hugging Face
    cdn         the CDN in front of the bucket
    records     coldstream.json, if there is one
    heads       the shards' headers, one speculative read each, in parallel
    fetching    small HTTP reads with retries and errors for people

Everything heavy (boto3, msgspec, huggingface_hub) is imported when a URI needs it.
"""

from __future__ import annotations

from coldstream.origin.cdn import VIAS, Cdn
from coldstream.origin.contract import Checkpoint, Link, Origin, Shard
from coldstream.origin.opening import open_origin, scheme_of, uses_tls

__all__ = ["VIAS", "Cdn", "Checkpoint", "Link", "Origin", "Shard", "open_origin", "scheme_of", "uses_tls"]
