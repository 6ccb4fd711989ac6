"""The parts of benchmarks/bare.py: what is served, the node, file systems, and the tables."""
