"""The parts of benchmarks/stream.py.

model       the models that are served, and their manifests
servers     a sendfile server with faults, and nginx behind one face
link        a network namespace whose link has a token bucket
measure     one command, from spawn to exit: wall, CPU and memory of everything it started
readers     the other loaders, each in a process of its own with the set-up's Python
contestants the command lines and environments of all rows
scenarios   what is run, how often, and what counts as reached
report      JSON and Markdown
"""
