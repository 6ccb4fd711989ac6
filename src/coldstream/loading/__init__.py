"""From a URI to tensors: the library's face.

options    how a load is to be done
prepare    what there is to load, and what of it lies in the local cache
reader     tensors out of ready extents, on the CPU or on a device
load       one process loads: `stream`, `load`
sharing    one process starts a load, several read it: `share`, `attach`
into       into a torch module, in place: `load_into`
report     what a load did; account: what it has done so far
counting   in the metrics' file, if one is configured
"""
