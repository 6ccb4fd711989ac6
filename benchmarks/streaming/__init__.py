"""The parts of benchmarks/stream.py.

model       the models that are served, and their manifests
servers     a sendfile server with faults, and nginx behind one face
link        a network namespace whose link has a token bucket
contestants the command lines and environments of all rows
samples     one run of a row, by coldstream.operate.bench, whose readers they all are
scenarios   what is run, how often, and what counts as reached
report      JSON and Markdown
"""
