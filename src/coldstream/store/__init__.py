"""Where models are kept: one contract, two kinds.

`contract` states what both offer. `s3` keeps objects in R2, AWS S3, MinIO and the like through boto3: `answers` finds
out that something else than an S3 server answered, and `signing` makes many links out of one that boto3 signed.
`folder` keeps objects in a local folder. `open_store` chooses by URI. Everything above this package uses `Store` only.
"""

from __future__ import annotations

from coldstream.store.contract import ObjectInfo, Part, PendingUpload, Store, honours_conditions
from coldstream.store.opening import open_store

__all__ = ["ObjectInfo", "Part", "PendingUpload", "Store", "honours_conditions", "open_store"]
