"""Prometheus metrics of loads and starts; `prometheus_client` is only imported once metrics are configured."""
