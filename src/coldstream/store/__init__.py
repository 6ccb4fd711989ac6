"""Where models are kept: one contract, two kinds.

`base` states the contract, `s3` keeps objects in R2, AWS S3, MinIO and the like through boto3, `folder` keeps them in
a local folder. `open_store` chooses by URI. Everything above this package speaks `Store` alone.
"""

from __future__ import annotations

from coldstream.store.contract import ObjectInfo, Part, PendingUpload, Store, honours_conditions
from coldstream.store.opening import open_store

__all__ = ["ObjectInfo", "Part", "PendingUpload", "Store", "honours_conditions", "open_store"]
