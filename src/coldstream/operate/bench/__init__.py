"""`coldstream bench`: compares ways of loading a model on this machine.

`comparing` runs a `BenchPlan` of `contestant`s against a `target` by `runner`; `result` is pure.
"""
