"""Which settings a model needs on which GPUs, and how long it will take to load.

gpus       what fits into them, and how fast bytes get there; pure
model      what of a model decides; pure
clouds     where machines are rented; pure
fit        whether it fits, and how it is spread; pure
predict    the slowest stage of the way from the bucket; pure
settings   for our loader and for Run:ai's; pure
matrix     the rules as a table; pure
measure    the real bucket at a rising number of connections
reading    what a model in a bucket is, and what this machine is
chart      the curve of a bucket, drawn
"""
