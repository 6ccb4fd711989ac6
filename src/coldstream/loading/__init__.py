"""The Python library: from a URI to tensors.

streaming     stream and load: one process loads
sharing       share and attach: one process loads, several read
load_into     into a torch module, in place
options       parameters of a load, checked
load_plan     before: the model resolved, the local copy opened
ownership     during: the streamer started, its messages answered
tensor_reader, tensors, device    extents as tensors, on the CPU or on a device
load_report, cdn_delivery, load_metrics    after: what the load did
"""
