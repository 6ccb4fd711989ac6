"""What a start reads from the disk: recorded on one node, read ahead by the kernel of the next.

data = record(session(child.pid), service.modules()).encode()   # on one node, once the start has succeeded
start_read_ahead(data)                                           # on the next one, as early as possible
"""
