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

from __future__ import annotations

from coldstream.tune.clouds import CLOUDS, parse_cloud
from coldstream.tune.fit import Fit, fit, smallest
from coldstream.tune.gpus import GPUS, Gpu, Gpus, find_gpu, parse_gpus
from coldstream.tune.matrix import Row, matrix
from coldstream.tune.measure import PASSES, Curve, Sample, fitted, measured, remember, remembered
from coldstream.tune.model import Model, describe
from coldstream.tune.predict import Prediction, Way, predict
from coldstream.tune.reading import gpus_here, read_model, way_here
from coldstream.tune.settings import Advice, Tuned, advise

__all__ = [
    "CLOUDS",
    "GPUS",
    "PASSES",
    "Advice",
    "Curve",
    "Fit",
    "Gpu",
    "Gpus",
    "Model",
    "Prediction",
    "Row",
    "Sample",
    "Tuned",
    "Way",
    "advise",
    "describe",
    "find_gpu",
    "fit",
    "fitted",
    "gpus_here",
    "matrix",
    "measured",
    "parse_cloud",
    "parse_gpus",
    "predict",
    "read_model",
    "remember",
    "remembered",
    "smallest",
    "way_here",
]
