"""Prometheus: what loads and starts did, served while they run and left in a file when they end.

    names       every metric: its kind, its labels, their few values; pure
    families    metrics as numbers, to be added up and kept bounded; pure
    wanted      what the user asks for: a port, a file; checked before anything begins
    text        the text format, read and written
    meter       Meter: what it is told, and nobody counts
    counts      the numbers of this process
    registry    Metrics: counts what loads, starts and bundles report
    endpoint    answers scrapes over HTTP
    textfile    the file that node exporter's textfile collector reads
    costs       the month's dollars, in such a file
    measuring   all of it around one command
    single      a load by the library, in the file

What is named here costs nothing to import: `prometheus_client` and the rest come when metrics are asked for, and the
streamer's processes never see them.
"""
