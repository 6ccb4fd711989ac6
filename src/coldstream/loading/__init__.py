"""The Python library: from a URI to tensors.

streaming     stream, load and load_into: one process loads
sharing       share and attach: one process loads, several read
options       parameters of a load, checked
load_plan     before: the model resolved, the local copy opened
ownership     during: the streamer started, its messages answered, the load counted
tensors       extents as tensors, on the CPU or on a device
load_report   after: what the load did
"""
