"""What a month of models in a bucket costs, there and elsewhere.

rounding   usage into units as they are billed; pure
requests   how many reads a load makes, and how many writes an upload; pure
plan       what is stored, and how often it is loaded; pure
bill       what each provider charges for that; pure
compare    from which number of launches on one costs less than another; pure
contents   what is in the bucket
actual     what Cloudflare has counted
chart      the bills over the launches, drawn
"""

from __future__ import annotations

from coldstream.cost.actual import Actual, read_actual
from coldstream.cost.bill import PLACES, Bill, Charge, Usage, bill, bills, charged
from coldstream.cost.compare import BreakEven, Point, break_evens, curve
from coldstream.cost.contents import read_contents
from coldstream.cost.plan import Content, Plan, Start, alike, load_seconds, make_plan
from coldstream.cost.requests import reads_of_load, writes_of_upload
from coldstream.prices import Prices, overridden, prices

__all__ = [
    "PLACES",
    "Actual",
    "Bill",
    "BreakEven",
    "Charge",
    "Content",
    "Plan",
    "Point",
    "Prices",
    "Start",
    "Usage",
    "alike",
    "bill",
    "bills",
    "break_evens",
    "charged",
    "curve",
    "load_seconds",
    "make_plan",
    "overridden",
    "prices",
    "read_actual",
    "read_contents",
    "reads_of_load",
    "writes_of_upload",
]
