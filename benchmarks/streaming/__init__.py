"""The parts of benchmarks/stream.py that `coldstream bench` does not have: models, servers, links, rows, scenarios."""
