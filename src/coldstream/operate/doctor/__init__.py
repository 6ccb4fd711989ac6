"""`coldstream doctor`: checks of the configuration, bucket, model and node.

A check is a function from a `Case` to a `probe.Check`, listed in the checklist. It only reads; the objects that it
writes to the bucket are deleted when it ends. Checks that depend on a failed one are skipped.
"""
