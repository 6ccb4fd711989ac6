"""The CDN in front of the bucket: its cache rule, what of a model it has cached, and how to fill and purge it."""
