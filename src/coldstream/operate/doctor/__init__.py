"""`coldstream doctor`: checks of the configuration, bucket, model and node, each from a `Case` to a `probe.Check`."""
