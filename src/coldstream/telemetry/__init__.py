"""What a start and a load did: the timeline of a start, and the metrics for Prometheus."""
