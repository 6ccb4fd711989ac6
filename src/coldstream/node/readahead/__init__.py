"""What a start reads from the disk, recorded on one node and asked of the kernel on the next.

reads      the record: which files, and which ranges of them, in the order of need; pure
pages      /proc/PID/maps and pagemap as ranges of files; pure
recording  the processes of a start that has succeeded, looked at from outside
asking     the kernel reads the record's files while the start still imports

reads = record(session(child.pid), service.modules())
data = reads.encode()                               # to the next node
ahead = ReadAhead(decode(data)); ahead.start()      # there, as early as possible
"""
