"""Prometheus metrics of loads and starts: served while a command runs, and left in a file when it ends.

Importing this package costs nothing: `prometheus_client` and the rest are imported once metrics are configured, and
never in the processes of the streamer.
"""
